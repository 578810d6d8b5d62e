"""The page holds what the plan says, is well formed, and asks for nothing from outside."""

import json
import re
from collections import Counter
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
import torch

from superscaler import compiler
from superscaler.codegen.emit import emit
from superscaler.errors import BuildError
from superscaler.ir.graph import Phase
from superscaler.planner.cluster import Cluster
from superscaler.report import describe as describing
from superscaler.report.describe import describe
from superscaler.report.layer_places import layer_places
from superscaler.report.page import DESCRIPTION, make_page, page_of_build
from superscaler.report.python_source import source_html
from superscaler.simulator.replay import Stream
from superscaler.simulator.simulation import format_seconds
from tests.codegen.plans import tiny_gpt
from tests.report.compiled import SEARCHED, compiled

PLANS = (
    "none",
    "dp=2,zero=3,micro_batches=2",
    "tp=2,pp=2,micro_batches=4",
    "pp=2,schedule=zb-v,micro_batches=4",
)
OPEN = {"meta", "link", "wbr"}
"""Elements that nothing closes."""


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps text and links."""

    def __init__(self, text):
        super().__init__()
        self.path, self.text, self.links, self.ids = [], [], [], []
        self.rows = []
        self.feed(text)
        self.close()
        assert not self.path

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [value for key, value in attributes if key in ("src", "href")]
        self.ids += [named["id"]] if "id" in named else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in OPEN:
            self.path.append(tag)

    def handle_endtag(self, tag):
        assert self.path.pop() == tag

    def handle_data(self, data):
        if self.path:
            self.text.append((self.path[-1], data))
        if "td" in self.path or "th" in self.path:
            self.rows[-1][-1] += data

    @property
    def words(self):
        return "".join(text for tag, text in self.text if tag not in ("script", "style"))

    def cells(self, heading):
        """The words in the cells of the first row whose heading says this."""
        return next(cells for first, *cells in self.rows if first == heading)

    @property
    def data(self):
        return json.loads(next(text for tag, text in self.text if tag == "script"))


@pytest.mark.parametrize("how", PLANS)
def test_the_page_is_well_formed_and_asks_for_nothing_from_outside(how):
    text = compiled(how).page()
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    inside = {f"#{name}" for name in page.ids}
    assert all(link in inside or link == "data:," for link in page.links), page.links
    assert not re.search(r"https?://|@import|url\(", text)


@pytest.mark.parametrize("how", PLANS)
def test_what_is_drawn_is_what_was_simulated(how):
    plan = compiled(how)
    simulation, data = plan.simulate(), Page(plan.page()).data
    assert data["step"] == round(simulation.step_seconds * 1e9)
    for row, simulated in zip(data["rows"], simulation.rows, strict=True):
        for stream in Stream:
            drawn = [
                (*data["tasks"][first], data["names"][name], start, end)
                for first, _, name, start, end, *_ in row["streams"][stream]
            ]
            assert drawn == [
                (
                    str(s.task.phase),
                    s.task.stage,
                    s.task.micro_batch,
                    s.name,
                    round(s.start * 1e9),
                    round(s.end * 1e9),
                )
                for s in simulated.spans
                if s.stream is stream
            ]
        assert (
            max(sum(most) for _, _, _, _, most, _, _ in row["memory"])
            == simulated.memory.total
            == row["peak"]
        )


def test_tables_say_where_layers_run_and_what_moves():
    plan = compiled("tp=2,pp=2,micro_batches=4")
    words = Page(plan.page()).words
    for row in plan.communication().table():
        assert row[-1] in words
    for fact in (
        "plan tp=2,pp=2,micro_batches=4",
        "stage 0: tp2 on 0,1",
        "stage 1: tp2 on 2,3",
        "h.0",
        "1f1b",
    ):
        assert fact in words
    for program in plan.programs:
        assert emit(plan, program).strip() in words


def test_every_operator_is_in_one_layer_at_its_stage():
    plan = compiled("tp=2,pp=2,micro_batches=4")
    places = {place.layer: place.operators for place in layer_places(plan)}
    assert list(places["h.0"]) == [0]
    assert list(places["h.3"]) == [1]
    assert {"wte", "wpe", "ln_f"} <= places.keys()
    assert not any("attn" in layer for layer in places)
    phases = Counter(plan.placed.phases[operator.name] for operator in plan.graph.operators)
    found = sum((Counter(counts) for stages in places.values() for counts in stages.values()), Counter())
    assert found == phases
    assert found[Phase.FORWARD]


def test_layers_inside_a_module_are_rows_of_their_own_beside_what_else_it_holds():
    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Linear(4, 4)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            x = self.embed(x)
            for layer in self.layers:
                x = layer(x)
            return x

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = Trunk()

        def forward(self, x):
            return self.trunk(x).sum()

    plan = compiler.compile(Model(), {"x": torch.randn(2, 4)}, cluster=Cluster.local(1))
    layers = [place.layer for place in layer_places(plan)]
    assert [layer for layer in layers if layer] == [
        "trunk.embed", "trunk.layers.0", "trunk.layers.1", "trunk.layers.2",
    ]  # fmt: skip


def test_names_are_text_whatever_they_hold():
    hostile = "</script><script>alert('&lt;')</script>"
    plan = compiled("pp=2,micro_batches=4")
    search = replace(
        SEARCHED, choices=(replace(SEARCHED.choices[0], plan=hostile),), refused=(hostile, hostile)
    )
    described = describe(replace(plan, name=hostile), plan.programs, plan.simulate(), search)
    described = json.loads(json.dumps(described))
    described["title"] = described["rows"][0]["title"] = described["layers"][0][0] = hostile
    described["names"] = [hostile] * len(described["names"])
    described["communication"][0][-1] = described["sources"][0][1] = hostile
    page = make_page(described, {name: f'x = "{hostile}"\n' for name, _ in described["sources"]})
    assert hostile not in page
    assert page.count("</script>") == 2
    assert Page(page).words.count(hostile) >= 10
    assert hostile in Page(page).data["names"]


def test_a_build_keeps_what_its_page_is_made_of(tmp_path):
    plan = compiled("pp=2,micro_batches=4")
    folder = plan.save(tmp_path / "build")
    assert page_of_build(folder) == plan.page()
    source = folder / "stage0.py"
    source.write_text(source.read_text() + "# changed by hand\n")
    assert "# changed by hand" in Page(page_of_build(folder)).words


@pytest.mark.parametrize("text", [None, "{", "[]", '{"format": 0}'])
def test_a_build_without_a_readable_description_is_refused_with_the_remedy(tmp_path, text):
    if text is not None:
        (tmp_path / DESCRIPTION).write_text(text)
    with pytest.raises(BuildError, match=r"report.json.*\n.*compile the build again"):
        page_of_build(tmp_path)


def test_long_schedules_make_no_large_pages(monkeypatch):
    plan = compiled("pp=2,micro_batches=4")
    monkeypatch.setattr(describing, "MOST_SPANS", 40)
    described = describe(plan, plan.programs, plan.simulate())
    for row, simulated in zip(described["rows"], plan.simulate().rows, strict=True):
        drawn = row["streams"][Stream.COMPUTE]
        computing = sum(span.end - span.start for span in simulated.spans if span.stream is Stream.COMPUTE)
        assert len(drawn) <= 6
        assert sum(busy for *_, busy in drawn) == pytest.approx(computing * 1e9, abs=len(drawn))
        assert max(sum(most) for _, _, _, _, most, _, _ in row["memory"]) == row["peak"]


def test_a_model_without_products_and_one_for_inference_have_pages_too():
    class Doubled(torch.nn.Module):
        def forward(self, x):
            return x + x

    plan = compiler.compile(Doubled().eval(), {"x": torch.randn(4, 2)}, cluster=Cluster.local(1))
    page = Page(plan.page())
    assert "Nothing is sent." in page.words
    assert "MFU" in page.words


def test_coloured_source_is_the_source():
    for how in PLANS:
        plan = compiled(how)
        for program in plan.programs:
            source = emit(plan, program)
            html = source_html(source)
            assert unescape(re.sub(r"<[^>]*>", "", html)) == source.rstrip("\n")
            assert '<i class="k">def</i>' in html
    assert source_html("x = '''a\nb'''  # c") == (
        '<span class="line">x = <i class="s">\'\'\'a</i></span>\n'
        '<span class="line"><i class="s">b\'\'\'</i>  <i class="c"># c</i></span>'
    ).replace("'", "&#x27;")
    assert source_html("this is ( no Python <") == '<span class="line">this is ( no Python &lt;</span>'


def test_an_automatic_plan_says_among_which_it_was_chosen_and_how_good_it_is(tmp_path):
    replace(compiled("dp=2,zero=3,micro_batches=2"), report=SEARCHED).save(tmp_path)
    page = Page(page_of_build(tmp_path))
    assert [page.cells(choice.plan) for choice in SEARCHED.choices] == [
        ["chosen", "125 ms", "", "100 ms", "3.0 GiB", "8.0 GiB", "yes"],
        ["runner-up", "62.5 ms", "-50.0%", "62.5 ms", "9.0 GiB", "8.0 GiB", "no"],
    ]
    words = " ".join(page.words.split())
    for fact in ("(objective) 62.5 ms", "(bound) 50 ms", "gap 20.0%", "1,234", "8.0 GiB more on each device"):
        assert fact.replace(" ", "") in words.replace(" ", "")
    assert "a step would take 20.0% less" in words
    assert "heads(3) cannot be cut in 2, which" in words
    assert "remedy: none" not in words


def test_a_plan_that_was_not_searched_for_has_no_search():
    assert "search" not in Page(compiled("none").page()).ids


def test_the_page_of_a_search_is_that_of_its_build(tmp_path):
    plan = compiler.plan(tiny_gpt(layers=4)[2], Cluster.local(2), "auto,dp=2")
    plan.save(tmp_path)
    page = Page(page_of_build(tmp_path))
    for choice in plan.report.choices:
        assert page.cells(choice.plan)[1] == format_seconds(choice.simulated)
