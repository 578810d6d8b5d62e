"""What is in each step: decoding first, prompts in pieces, admission by memory, preemption, forks, trees."""

import pytest

from superscaler.errors import RequestError, ServingError
from superscaler.runtime.serving.kv_cache import KvCache
from superscaler.runtime.serving.limits import Limits
from superscaler.runtime.serving.policies import FirstCome, Priority
from superscaler.runtime.serving.request import Request, State
from superscaler.runtime.serving.sampling_params import SamplingParams
from superscaler.runtime.serving.scheduler import Scheduler
from superscaler.runtime.serving.step import Sampled, tree_depth
from tests.runtime.serving.toy_model import (
    ToyModel,
    Tree,
    continue_alone,
    next_token,
    run_all,
    run_step,
    sample,
)


def request(name, prompt, max_tokens=4, priority=0, arrival=0.0, **params):
    """With a prompt of its own, of so many tokens, or the one given."""
    if isinstance(prompt, int):
        prompt = [100 + ord(name[-1]) * 100 + place for place in range(prompt)]
    return Request(
        name,
        tuple(prompt),
        SamplingParams(max_tokens=max_tokens, **params),
        priority=priority,
        arrival=arrival,
    )


def serving(pages=64, page_size=4, host_pages=0, policy=None, end_tokens=(), **limits):
    cache = KvCache(pages, page_size, host_pages)
    limits = Limits(**{"sequence_tokens": 1000, "watermark": 0.0, **limits})
    scheduler = Scheduler(cache, policy or FirstCome(), limits, lambda: 0.0, end_tokens)
    return cache, scheduler, ToyModel(page_size)


def shape(step):
    """How many tokens of which sequences, in order."""
    return {part.sequence.id: part.new for part in step.parts}


def test_decoding_goes_first_and_prompts_fill_what_is_left_in_pieces():
    _, scheduler, model = serving(step_tokens=10, step_sequences=4, chunk_tokens=6)
    scheduler.add(request("a", 3))
    assert shape(run_step(scheduler, model)) == {"a/0": 3}
    scheduler.add(request("b", 14))
    scheduler.add(request("c", 20))
    assert shape(run_step(scheduler, model)) == {"a/0": 1, "b/0": 6, "c/0": 3}
    assert shape(run_step(scheduler, model)) == {"a/0": 1, "b/0": 6, "c/0": 3}
    step = run_step(scheduler, model)
    assert shape(step) == {"a/0": 1, "b/0": 2, "c/0": 6}
    assert [each.sequence.id for each in step.samples] == ["a/0", "b/0"], "c's prompt goes on"


def test_a_prompt_with_a_known_beginning_computes_the_rest_and_at_least_its_last_token():
    _, scheduler, model = serving()
    prompt = list(range(200, 208))
    scheduler.add(request("a", prompt, max_tokens=1))
    run_all(scheduler, model)
    (same,), (longer,) = scheduler.add(request("b", prompt)), scheduler.add(request("c", prompt + [7]))
    assert shape(run_step(scheduler, model)) == {"b/0": 4, "c/0": 1}
    assert (same.cached, longer.cached) == (4, 8)


def test_continuations_share_a_prompt_that_is_computed_once():
    cache, scheduler, model = serving()
    sequences = scheduler.add(request("a", 10, max_tokens=3, n=4))
    step = run_step(scheduler, model)
    assert (shape(step), step.batch.wanted) == ({"a/0": 10}, (9, 9, 9, 9))
    assert cache.free == 64 - 3, "all hold the same pages"
    step = run_step(scheduler, model)
    assert len(step.batch.copies) == 3, "the last of them keeps the page in which the prompt ends"
    run_all(scheduler, model)
    assert model.computed == 10 + 4 * 2
    for sequence in sequences:
        assert sequence.generated == continue_alone(sequence.request, sequence.index, 13)
        assert sequence.cached == 0


def test_who_came_first_is_not_overtaken_by_small_requests():
    _, scheduler, model = serving(pages=8, page_size=1)
    scheduler.add(request("a", 4, max_tokens=3))
    run_step(scheduler, model)
    (large,) = scheduler.add(request("b", 7, max_tokens=1, arrival=1.0))
    for number in range(5):
        scheduler.add(request(f"small {number}", 1, max_tokens=1, arrival=2.0))
    while large.state is State.WAITING:
        step = run_step(scheduler, model)
        assert not any(name.startswith("small") for name in shape(step)) or large.state is not State.WAITING
    assert large.finish_reason == "length"


def test_the_watermark_leaves_room_for_those_who_run():
    for watermark, together in ((0.0, 2), (0.5, 1)):
        _, scheduler, model = serving(pages=10, page_size=1, watermark=watermark)
        for name in "ab":
            scheduler.add(request(name, 4, max_tokens=2))
        assert len(run_step(scheduler, model).parts) == together


def test_prompts_under_way_are_counted_before_another_is_admitted():
    _, scheduler, model = serving(pages=16, page_size=1, step_tokens=8, step_sequences=4, chunk_tokens=4)
    scheduler.add(request("a", 12, max_tokens=1))
    scheduler.add(request("b", 8, max_tokens=1))
    assert shape(run_step(scheduler, model)) == {"a/0": 4}


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_when_memory_runs_out_the_last_makes_room_and_comes_back(preemption):
    cache, scheduler, model = serving(pages=10, page_size=1, host_pages=10, preemption=preemption)
    (first,) = scheduler.add(request("a", 4, max_tokens=6))
    (last,) = scheduler.add(request("b", 4, max_tokens=6))
    steps = run_all(scheduler, model)
    assert (first.preemptions, last.preemptions) == (0, 1)
    for sequence in (first, last):
        assert sequence.generated == continue_alone(sequence.request, 0, 10)
    out, back = (sum(len(getattr(step.batch, name)) for step in steps) for name in ("swaps_out", "swaps_in"))
    assert (out > 0, back > 0) == (preemption == "swap",) * 2
    computed_alone = 2 * (4 + 5)
    assert (model.computed == computed_alone) == (preemption == "swap")
    assert (cache.free, cache.host_free) == (10, 10)


def test_where_the_host_has_no_room_it_is_computed_again():
    _, scheduler, model = serving(pages=10, page_size=1, host_pages=2, preemption="swap")
    sequences = [*scheduler.add(request("a", 4, max_tokens=6)), *scheduler.add(request("b", 4, max_tokens=6))]
    steps = run_all(scheduler, model)
    assert not any(step.batch.swaps_out for step in steps)
    assert sequences[1].preemptions == 1


def test_a_more_urgent_request_takes_no_more_room_than_it_needs():
    _, scheduler, model = serving(pages=12, page_size=1, policy=Priority())
    sequences = [*scheduler.add(request("a", 5, priority=1)), *scheduler.add(request("b", 5, priority=2))]
    run_step(scheduler, model)
    scheduler.add(request("c", 4, priority=0))
    assert shape(run_step(scheduler, model)) == {"a/0": 1, "c/0": 4}
    assert [sequence.preemptions for sequence in sequences] == [0, 1]


def test_nobody_makes_room_in_vain():
    _, scheduler, model = serving(pages=12, page_size=1, policy=Priority())
    scheduler.add(request("a", 5, priority=0))
    (least,) = scheduler.add(request("b", 3, priority=2))
    run_step(scheduler, model)
    scheduler.add(request("c", 8, priority=1, max_tokens=1))
    assert shape(run_step(scheduler, model)) == {"a/0": 1, "b/0": 1}
    assert least.preemptions == 0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request("x", 30, max_tokens=20), "30 tokens and wants up to 20 more, but a sequence has at most 40"),
        (request("x", 20, max_tokens=14), "33 in 9 pages, but the cache has 8 pages of 4"),
        (request("x", 34, max_tokens=None), "but the cache has 8 pages of 4"),
        (request("x", 3, n=5), "wants 5 continuations, but only 4 sequences run at once"),
    ],
)
def test_what_never_fits_is_refused_with_numbers_and_a_remedy(bad, message):
    cache, scheduler, model = serving(pages=8, sequence_tokens=40, step_sequences=4)
    with pytest.raises(RequestError, match=message) as caught:
        scheduler.add(bad)
    assert caught.value.remedy
    assert scheduler.schedule() is None
    scheduler.add(request("x", 20, max_tokens=13))
    run_all(scheduler, model)
    assert cache.free == 8


def test_without_max_tokens_a_sequence_ends_where_the_model_or_the_cache_does():
    for pages, most in ((8, 33), (64, 40)):
        _, scheduler, model = serving(pages=pages, sequence_tokens=40)
        (sequence,) = scheduler.add(request("x", 5, max_tokens=None))
        run_all(scheduler, model)
        assert (len(sequence.tokens), sequence.finish_reason) == (most, "length")


def test_an_id_is_used_once_at_a_time():
    _, scheduler, model = serving()
    scheduler.add(request("a", 3))
    with pytest.raises(RequestError, match="a request with id a is being served"):
        scheduler.add(request("a", 3))
    run_all(scheduler, model)
    scheduler.add(request("a", 3))


def test_a_request_can_be_cancelled_before_during_and_after_its_steps():
    cache, scheduler, model = serving()
    waiting, running, done = (scheduler.add(request(name, 6, n=2))[0] for name in "abc")
    scheduler.cancel("a")
    step = scheduler.schedule()
    scheduler.cancel("b")
    changed = scheduler.update(step, sample(step, model.run(step.batch)))
    assert {sequence.request.id for sequence in changed} == {"c"}
    run_all(scheduler, model)
    scheduler.cancel("c")
    assert [each.finish_reason for each in (waiting, running, done)] == ["abort", "abort", "length"]
    assert cache.free == 64


def test_one_continuation_can_be_ended_while_the_others_go_on():
    cache, scheduler, model = serving()
    first, second, third = scheduler.add(request("a", 6, n=3))
    scheduler.end(third, "abort")
    run_step(scheduler, model)
    scheduler.end(first, "stop")
    run_all(scheduler, model)
    assert [each.finish_reason for each in (first, second, third)] == ["stop", "length", "abort"]
    assert [len(each.generated) for each in (first, second, third)] == [1, 4, 0]
    assert cache.free == 64


def test_after_a_step_that_failed_those_who_wait_go_on():
    cache, scheduler, model = serving(step_sequences=2)
    lost = scheduler.add(request("a", 6, n=2))
    (waits,) = scheduler.add(request("b", 6))
    scheduler.schedule()
    assert set(scheduler.fail()) == set(lost)
    scheduler.check_integrity()
    assert {each.finish_reason for each in lost} == {"error"}
    run_all(scheduler, model)
    assert waits.generated == continue_alone(waits.request, 0, 10)
    assert cache.free == 64


def test_it_stops_at_the_first_end_token_after_min_tokens_unless_told_to_go_on():
    prompt = [1, 2, 3]
    alone = continue_alone(request("x", prompt), 0, 15)
    first = alone[0]
    later = alone.index(first, 1) + 1
    cases = [({}, 1), ({"min_tokens": 2}, later), ({"ignore_eos": True}, 12)]
    cases += [({"ignore_eos": True, "stop_token_ids": frozenset([first])}, 1)]
    for params, length in cases:
        _, scheduler, model = serving(end_tokens=[first])
        (sequence,) = scheduler.add(request("x", prompt, max_tokens=12, **params))
        run_all(scheduler, model)
        assert sequence.generated == alone[:length]
        assert sequence.finish_reason == ("length" if length == 12 else "stop")


def chain_after(sequence, wrong, right):
    """A tree of wrong children of the root, and then a chain that the model would go on with."""
    tokens, parents = [99] * wrong, [-1] * wrong
    path = list(sequence.tokens)
    for depth in range(right):
        path.append(next_token(path, sequence.index))
        tokens.append(path[-1])
        parents.append(len(tokens) - 2 if depth else -1)
    return Tree(tuple(tokens), tuple(parents))


def test_a_tree_is_checked_in_one_step_and_its_accepted_path_put_in_a_row():
    cache, scheduler, model = serving(page_size=2)
    (sequence,) = scheduler.add(request("a", 5, max_tokens=12))
    run_step(scheduler, model)
    tree = chain_after(sequence, wrong=3, right=4)
    assert tree_depth(tree) == 4
    step = run_step(scheduler, model, {"a/0": tree})
    assert step.batch.positions == (5, 6, 6, 6, 6, 7, 8, 9)
    assert step.batch.lengths == (13,)
    assert step.batch.visible[1] == (True, True, *[False] * 6)
    assert step.batch.visible[7] == (True, False, False, False, *[True] * 4)
    assert step.samples[0].wanted == range(8)
    assert len(sequence.generated) == 1 + 5
    held = cache.held("a/0")
    step = run_step(scheduler, model)
    assert step.batch.moves == ((9, 6), (10, 7), (11, 8), (12, 9))
    assert cache.held("a/0") < held, "what was not accepted is given back once the path has moved"
    run_all(scheduler, model)
    assert sequence.generated == continue_alone(sequence.request, 0, 17)


@pytest.mark.parametrize("preemption", ["recompute", "swap"])
def test_who_makes_room_before_its_path_has_moved_loses_only_that(preemption):
    cache, scheduler, model = serving(
        pages=16, page_size=1, host_pages=16, policy=Priority(), preemption=preemption
    )
    (sequence,) = scheduler.add(request("a", 5, max_tokens=10, priority=1))
    run_step(scheduler, model)
    run_step(scheduler, model, {"a/0": chain_after(sequence, wrong=3, right=4)})
    assert (len(sequence.tokens), sequence.computed) == (11, 10)
    scheduler.add(request("b", 9, max_tokens=1))
    step = run_step(scheduler, model)
    assert shape(step) == {"b/0": 9}
    assert not step.batch.moves
    assert sequence.computed == (6 if preemption == "swap" else 0)
    scheduler.add(request("c", sequence.tokens[:10] + [7], max_tokens=1, priority=2))
    run_all(scheduler, model)
    assert sequence.generated == continue_alone(sequence.request, 0, 15)
    assert cache.free == 16


def test_who_ends_with_an_accepted_path_that_has_not_moved_lets_nobody_find_it():
    _, scheduler, model = serving(page_size=1)
    (sequence,) = scheduler.add(request("a", 5, max_tokens=6))
    run_step(scheduler, model)
    run_step(scheduler, model, {"a/0": chain_after(sequence, wrong=2, right=4)})
    assert sequence.finish_reason == "length"
    (other,) = scheduler.add(request("b", [*sequence.tokens, 7], max_tokens=1))
    run_all(scheduler, model)
    assert other.cached == 6


def test_a_tree_takes_no_tokens_and_no_pages_from_those_who_decode():
    for limits in ({"step_tokens": 8, "step_sequences": 2}, {"pages": 14}):
        _, scheduler, model = serving(**{"page_size": 1, **limits})
        first, second = (scheduler.add(request(name, 3, max_tokens=9))[0] for name in "ab")
        run_step(scheduler, model)
        tree = chain_after(first, wrong=3, right=4)
        assert shape(run_step(scheduler, model, {"a/0": tree})) == {"a/0": 1, "b/0": 1}
        tree = chain_after(first, wrong=1, right=3)
        assert shape(run_step(scheduler, model, {"a/0": tree})) == {"a/0": 5, "b/0": 1}
        assert second.preemptions == 0


def test_tokens_that_are_no_path_of_the_tree_are_not_taken():
    for result in (Sampled((99, 1), (1,)), Sampled((5,), (0,))):
        _, scheduler, model = serving()
        (sequence,) = scheduler.add(request("a", 3))
        run_step(scheduler, model)
        step = scheduler.schedule({"a/0": chain_after(sequence, wrong=1, right=2)})
        with pytest.raises(AssertionError):
            scheduler.update(step, [result])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"step_tokens": 0}, "step_tokens is 0"),
        ({"step_tokens": 4, "step_sequences": 5}, "not all could decode"),
        ({"watermark": 1.0}, "watermark is 1.0"),
        ({"preemption": "forget"}, "preemption is 'forget'"),
    ],
)
def test_limits_that_make_no_sense_are_refused(bad, message):
    with pytest.raises(ServingError, match=message):
        Limits(sequence_tokens=10, **bad)
