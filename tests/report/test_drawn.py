"""What is drawn is what was simulated, however much of it is joined."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from superscaler.codegen.memory import MemoryUse, TaskMemory
from superscaler.ir.graph import Phase
from superscaler.planner.schedule import Task
from superscaler.report.drawn_memory import draw_memory
from superscaler.report.drawn_spans import draw_spans, share
from superscaler.simulator.replay import Span, Stream


def spans_of(lengths, stream=Stream.COMPUTE):
    """Spans one after another from (task, pause before, length)."""
    spans, now = [], 0
    for task, pause, length in lengths:
        start = now + pause
        now = start + length
        spans.append(Span(0, stream, Task(0, Phase.FORWARD, task), "", start, now))
    return spans


LENGTHS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 9)), max_size=40)


@given(lengths=LENGTHS, most=st.integers(1, 12))
def test_joined_spans_are_few_and_occupy_the_stream_as_long(lengths, most):
    spans = spans_of(lengths)
    drawn = draw_spans(spans, most)
    assert len(drawn) <= most
    assert sum(span.count for span in drawn) == len(spans)
    assert sum(span.busy for span in drawn) == sum(span.end - span.start for span in spans)
    assert all(one.end <= other.start for one, other in pairwise(drawn))
    if spans:
        assert (drawn[0].start, drawn[-1].end) == (spans[0].start, spans[-1].end)


@given(lengths=LENGTHS)
def test_spans_that_a_chart_can_show_are_drawn_as_they_are(lengths):
    spans = spans_of(lengths)
    drawn = draw_spans(spans, 40)
    assert [(span.first, span.start, span.end) for span in drawn] == [(s.task, s.start, s.end) for s in spans]


def test_spans_of_one_task_are_joined_before_those_of_several():
    spans = spans_of([(0, 0, 1), (0, 0, 1), (1, 0, 1), (1, 1, 2)])
    assert [(span.start, span.end, span.busy) for span in draw_spans(spans, 3)] == [(0, 2, 2), (2, 6, 3)]


@given(counts=st.lists(st.integers(1, 50), max_size=8), most=st.integers(1, 200))
def test_streams_share_what_a_page_draws(counts, most):
    each = share(counts, most)
    drawn = sum(min(count, each) for count in counts)
    assert drawn <= most or each == 1
    # none could have more
    assert drawn == sum(counts) or sum(min(count, each + 1) for count in counts) > most


def use(total):
    return MemoryUse("", 0, 0, 0, total, 0, 0, "")


@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), data=st.data()
)
def test_memory_has_its_peak_and_goes_on_in_time_whatever_is_joined(sizes, data):
    memory = [
        TaskMemory(Task(0, Phase.FORWARD, number), use(left + more), use(left))
        for number, (left, more) in enumerate(sizes)
    ]
    runs = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    spans = spans_of([(number, 1, 2) for number, is_there in enumerate(runs) if is_there])
    most = data.draw(st.integers(1, 40))
    drawn = draw_memory(memory, spans, most)
    assert len(drawn) <= most
    assert max(one.most.total for one in drawn) == max(one.most.total for one in memory)
    assert drawn[-1].after == memory[-1].after
    times = [time for one in drawn for time in (one.start, one.end)]
    assert times == sorted(times)
