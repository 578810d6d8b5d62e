"""The page in a real browser: it opens without a complaint, and charts answer the mouse and the keyboard."""

import re
from dataclasses import replace

import pytest

from tests.report import browser
from tests.report.compiled import SEARCHED, compiled

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not browser.PATH, reason=f"needs a browser: none of {', '.join(browser.NAMES)} is installed"
    ),
]
TIP = "document.getElementById('tip')"
RANGE = "document.getElementById('range').textContent"
TICKS = "[...document.querySelectorAll('#axis span')].map((label) => label.textContent).join(' ')"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    plan = replace(compiled("tp=2,pp=2,micro_batches=4"), report=SEARCHED)
    file.write_text(plan.page(), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def running():
    with browser.running() as running:
        yield running


@pytest.fixture
def window(running, page):
    running.open(page)
    yield running
    assert running.complaints == []


def box(window, name):
    """Left, top, width and height of an element, after it has been scrolled to."""
    element = f"document.getElementById('{name}')"
    window.evaluate(f"{element}.scrollIntoView({{block: 'center'}})")
    return window.evaluate(
        f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect())"
    )


def hover_until_shown(window, name, wanted, heights):
    """Move along lines at these heights of a chart until the tip says what is wanted; returns where, and the tip."""
    left, top, width, _ = box(window, name)
    for y in heights:
        for x in range(110, int(width), 5):
            window.mouse("mouseMoved", left + x, top + y)
            if not window.evaluate(f"{TIP}.hidden"):
                text = window.evaluate(f"{TIP}.innerText")
                if re.search(wanted, text):
                    return (left + x, top + y), text
    raise AssertionError(f"no place of {name} says {wanted!r}")


def test_a_task_says_what_it_is_under_the_pointer(window):
    _, text = hover_until_shown(window, "spans", "F3", [36])
    assert re.search(r"task\s+F3 \(forward\)", text)
    assert re.search(r"micro-batch\s+3", text)
    assert re.search(r"stage\s+0", text)
    assert re.search(r"start\s+[\d.]+ (ms|µs)", text)
    assert re.search(r"duration\s+[\d.]+ (ms|µs)", text)
    window.mouse("mouseMoved", 5, 5)
    assert window.evaluate(f"{TIP}.hidden")


def test_a_collective_says_its_name(window):
    _, text = hover_until_shown(window, "spans", "all.reduce", [56])
    assert re.search(r"micro-batch\s+\d", text)


def test_memory_says_what_it_is_made_of(window):
    _, text = hover_until_shown(window, "memory", "activations", [80])
    assert re.search(r"parameters\s+[\d.]+ [KM]iB", text)


def test_the_mouse_zooms_in_and_out(window):
    whole, ticks = window.evaluate(RANGE), window.evaluate(TICKS)
    left, top, width, _ = box(window, "spans")
    window.mouse("mousePressed", left + width * 0.4, top + 40, button="left", clickCount=1)
    window.mouse("mouseMoved", left + width * 0.5, top + 40, button="left")
    window.mouse("mouseReleased", left + width * 0.5, top + 40, button="left", clickCount=1)
    zoomed = window.evaluate(RANGE)
    assert zoomed != whole
    assert window.evaluate(TICKS) != ticks
    # the chart has been clicked, so the wheel is its own
    window.mouse("mouseWheel", left + width * 0.5, top + 40, deltaX=0, deltaY=-300)
    window.evaluate("new Promise(requestAnimationFrame)")
    closer = window.evaluate(RANGE)
    assert closer != zoomed
    for _ in range(12):
        window.mouse("mouseWheel", left + width * 0.5, top + 40, deltaX=0, deltaY=600)
    window.evaluate("new Promise(requestAnimationFrame)")
    assert window.evaluate(RANGE) == whole
    assert window.evaluate(TICKS) == ticks


def test_the_keyboard_zooms_and_moves(window):
    whole = window.evaluate(RANGE)
    window.evaluate("document.getElementById('spans').focus()")
    seen = [whole]
    for key in ("+", "ArrowRight", "ArrowLeft", "-"):
        window.key(key)
        seen.append(window.evaluate(RANGE))
    assert len(set(seen)) == 3
    assert seen[1] == seen[3]
    assert seen[4] == whole
    window.key("+")
    window.key("0")
    assert window.evaluate(RANGE) == whole


@pytest.mark.parametrize("width", [420, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_windows_narrow_and_wide_light_and_dark(running, page, width, dark):
    running.open(page, width, dark=dark)
    running.evaluate("document.querySelectorAll('#search details').forEach((one) => (one.open = true))")
    assert running.evaluate("document.documentElement.scrollWidth") <= width
    colours = "((style) => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    ink, paper = map(_lightness, running.evaluate(colours))
    assert (ink > paper) == dark
    assert running.complaints == []


def _lightness(colour):
    return sum(map(int, re.findall(r"\d+", colour)[:3]))
