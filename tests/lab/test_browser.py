"""The lab as people meet it: every panel in a real browser, by pointer, by keyboard, on a phone, in the dark."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from toyld import contexts, objectives, softmax
from toyld.contexts import Gram, Responses, World
from toyld.lab import SCRIPTS, source

PANELS = [
    id for name in SCRIPTS if name.startswith("panel_") for id in re.findall(r'^  id: "(\w+)"', source(name), re.M)
]
FINDING = "section:not([hidden]) .finding"


def finding(page: Any) -> str:
    return str(page.inner_text(FINDING))


def settled(page: Any, *, wait: int = 260) -> str:
    """The address after it was written."""
    page.wait_for_timeout(wait)
    return str(page.evaluate("location.hash"))


def reveal(page: Any) -> None:
    page.keyboard.press("r")


def stored(page: Any, key: str) -> str:
    return str(page.evaluate("key => window.toyldLab.store.get(key, '')", key))


def test_there_are_four_panels() -> None:
    assert PANELS == ["step", "contexts", "zoo", "quiz"]


@pytest.mark.parametrize("size", ["wide", "phone"])
@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_fits_its_screen_and_everybody_can_use_it(opened: Any, panel: str, size: str) -> None:
    page = opened(panel, size)
    reveal(page)
    page.wait_for_function(f"document.querySelector({FINDING!r}).textContent.length > 20")
    width, height = page.viewport_size["width"], page.viewport_size["height"]
    room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert room[0] <= width
    if size == "wide":
        assert room[1] <= height
        assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") == 18.0
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    assert violations(page, {}) == []
    assert sum(map(int, re.findall(r"\d+", page.evaluate(colour)))) > 600
    page.emulate_media(color_scheme="dark")
    assert sum(map(int, re.findall(r"\d+", page.evaluate(colour)))) < 200
    if size == "wide":  # of the dark page only the colours differ, and they are those of a phone
        assert violations(page, {"runOnly": ["color-contrast"]}) == []
    assert page.problems == []
    assert [url.split("#")[0] for url in page.requests] == [page.url.split("#")[0]]


def violations(page: Any, options: dict[str, Any]) -> list[Any]:
    """What axe finds: rules and the elements that break them."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("panel", PANELS)
def test_on_a_projector_all_grows_and_on_a_narrow_screen_nothing_runs_out(opened: Any, panel: str) -> None:
    page = opened(panel, "projector")
    reveal(page)
    room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert room == [1920, 1080]
    assert page.evaluate("parseFloat(getComputedStyle(document.documentElement).fontSize)") == 27.0
    below = f"document.querySelector({FINDING!r}).getBoundingClientRect().bottom"
    assert page.evaluate(below) > 0.75 * 1080
    plot = "section:not([hidden]) .plot-box:not([hidden]) svg"
    assert page.locator(plot).first.evaluate("svg => svg.getScreenCTM().a") == pytest.approx(1.5)
    for width, height, sticks in ((320, 640, "sticky"), (320, 256, "static")):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_function(f"document.querySelector({plot!r}).getScreenCTM().a === 1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(f"getComputedStyle(document.querySelector({FINDING!r})).position") == sticks
        ends = page.locator(f"{plot} .name").evaluate_all("all => all.map((x) => x.getBoundingClientRect().right)")
        assert max(ends) <= width
    assert page.problems == []


@pytest.mark.parametrize("panel", PANELS)
def test_tab_reaches_every_control_and_shows_where_it_is(opened: Any, panel: str) -> None:
    page = opened(panel)
    reveal(page)
    # A group of radio buttons and one of tabs or logits is one stop.
    count = page.evaluate(
        """() => {
            const all = [...document.querySelectorAll("button, input, select, textarea, summary, [tabindex]")];
            const there = all.filter((x) => x.checkVisibility() && !x.closest("[display=none]") && !x.disabled);
            const group = (x) => (x.type === "radio" ? x.name : x.closest("[role=tablist], .draggable")) ?? x;
            there.forEach((x) => (x.stop = group(x)));
            return new Set(there.map((x) => x.stop)).size;
        }"""
    )
    assert count >= 8
    page.evaluate("document.activeElement.blur()")
    seen = """() => {
        const x = document.activeElement;
        if (x === document.body) return null;
        window.been = window.been ?? new Set();
        window.been.add(x.stop);
        const style = getComputedStyle(x);
        const circle = style.outlineStyle === "none" ? parseFloat(style.strokeWidth) : 0;
        const outline = style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth);
        return x.matches(":focus-visible") && (outline >= 2 || circle >= 4);
    }"""
    visible = []
    for _ in range(count):
        page.keyboard.press("Tab")
        visible.append(page.evaluate(seen))
    assert visible == [True] * count
    assert page.evaluate("window.been.size") == count


def test_arrows_go_from_tab_to_tab(opened: Any) -> None:
    page = opened("step")
    page.focus("#tab-step")
    shown = []
    for key in ("ArrowRight", "ArrowRight", "End", "ArrowRight", "ArrowLeft", "Home"):
        page.keyboard.press(key)
        shown.append(page.evaluate("document.activeElement.id"))
        assert page.get_attribute(f"#{shown[-1]}", "aria-selected") == "true"
        assert page.is_visible(f"#{page.get_attribute(f'#{shown[-1]}', 'aria-controls')}")
    assert shown == ["tab-contexts", "tab-zoo", "tab-quiz", "tab-step", "tab-quiz", "tab-step"]
    assert page.problems == []


def test_a_logit_is_moved_by_arrows(opened: Any) -> None:
    page = opened("step", state="step.classes=5&step.z=0,1,2,3,4&step.label=4")
    handle = page.locator('[role="slider"][tabindex="0"]')
    handle.focus()
    page.keyboard.press("ArrowRight")
    for key in ("ArrowUp", "ArrowUp", "PageDown"):
        page.keyboard.press(key)
    assert stored(page, "step.z") == "0,0.2,2,3,4"
    there = page.locator('[role="slider"][tabindex="0"]')
    assert there.get_attribute("aria-valuenow") == "0.2"
    assert there.get_attribute("aria-label") == "Logit of class 1"
    page.keyboard.press("Enter")
    assert stored(page, "step.label") == "1"
    page.keyboard.press("End")
    assert stored(page, "step.z") == "0,10,2,3,4"


def drag_to(page: Any, index: int, value: float) -> None:
    """Take the bar of a class to a logit."""
    box = page.locator(".draggable").bounding_box()
    there = page.locator('[role="slider"]').nth(index).bounding_box()
    zero = page.locator(".draggable .zero").bounding_box()
    x = there["x"] + there["width"] / 2
    page.mouse.move(x, there["y"] + there["height"] / 2)
    page.mouse.down()
    unit = page.locator(".draggable").evaluate("svg => svg.getScreenCTM().a")
    top = box["y"] + 26 * unit  # where the axis ends, logit 10
    page.mouse.move(x, zero["y"] - value / 10.0 * (zero["y"] - top))
    page.mouse.up()
    page.mouse.move(x, box["y"] + 0.7 * box["height"])  # let go: nothing follows any more


def test_a_logit_is_dragged_and_what_is_told_follows(opened: Any) -> None:
    page = opened("step", state="step.classes=6&step.z=0,0,0,0,0,0&step.label=5&step.guess=shown")
    before = finding(page)
    drag_to(page, 2, 4.0)
    z = np.array([float(x) for x in stored(page, "step.z").split(",")])
    assert abs(z[2] - 4.0) < 0.15
    assert np.count_nonzero(z) == 1
    after = np.exp(softmax.log_softmax(z) + softmax.log_alpha(z, 5, s=1.0))
    assert f"class 2 gained {part((after - softmax.softmax(z))[2])}, " in finding(page)
    assert "4 of 5 others lost" in finding(page)
    assert "no other class lost" in before


@pytest.mark.parametrize("kind", ["touch", "mouse", "projector"])
def test_a_finger_and_a_pointer_drag_alike(opened: Any, kind: str) -> None:
    size = "projector" if kind == "projector" else "phone"
    page = opened("step", size, state="step.classes=4&step.z=0,0,0,0&step.guess=shown")
    page.locator(".draggable").scroll_into_view_if_needed()
    page.wait_for_timeout(50)
    scrolled = page.evaluate("scrollY")
    if kind != "touch":
        drag_to(page, 1, 5.0)
        assert float(stored(page, "step.z").split(",")[1]) == pytest.approx(5.0, abs=0.15)
    else:
        there = page.locator('[role="slider"]').nth(1).bounding_box()
        x, y = there["x"] + there["width"] / 2, there["y"] + there["height"] / 2
        send = page.context.new_cdp_session(page).send
        send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for i in range(1, 5):
            send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y - 8 * i}]})
        send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    z = [float(x) for x in stored(page, "step.z").split(",")]
    assert z[1] > 3.0
    assert z[0] == z[2] == z[3] == 0.0
    assert page.evaluate("scrollY") == scrolled
    assert page.problems == []


def quickest(measure: Callable[[], list[float]]) -> float:
    """Median milliseconds of an event, of a few tries: whatever else the machine does only adds."""
    medians: list[float] = []
    while len(medians) < 5 and min(medians, default=np.inf) > 4.0:
        spent = measure()
        assert len(spent) >= 200
        medians.append(float(np.median(spent)))
    return min(medians)


def test_one_drag_event_is_quick_at_fifty_classes(opened: Any) -> None:
    page = opened("step", state="step.classes=50&step.guess=shown&step.s=2")
    page.evaluate(
        """() => {
            window.spent = [];
            let began = 0;
            addEventListener("pointermove", () => (began = performance.now()), true);
            addEventListener("pointermove", () => {
                document.body.offsetHeight;
                document.querySelector(".plot").getBBox();
                window.spent.push(performance.now() - began);
            });
        }"""
    )

    def measure() -> list[float]:
        page.evaluate("window.spent.length = 0")
        waves(page, 220)
        return list(page.evaluate("window.spent"))

    assert quickest(measure) <= 4.0
    assert len(set(stored(page, "step.z").split(","))) > 2


def waves(page: Any, count: int) -> None:
    """Take one of the bars up and down, so many pointer events."""
    box = page.locator(".draggable").bounding_box()
    x = box["x"] + box["width"] / 3
    page.mouse.move(x, box["y"] + 60)
    page.mouse.down()
    for i in range(count):
        page.mouse.move(x, box["y"] + 60 + 50 * np.sin(i / 7.0))
    page.mouse.up()


# An absolute time says nothing on a busy machine; the drag of panel (a), which is asked for, is measured always.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "label"),
    [
        ("contexts.classes=50", "Likeness k"),
        ("contexts.classes=50", "π(y+) at first"),
        ("zoo.updates=1000", "β"),
    ],
)
def test_one_move_of_a_slider_is_quick(opened: Any, state: str, label: str) -> None:
    panel = state.partition(".")[0]
    page = opened(panel, state=f"{state}&{panel}.guess=shown")
    slider = page.locator("section:not([hidden]) .slider:visible", has_text=label).locator("input").first
    before = finding(page)
    measure = """(input) => Array.from({ length: 200 }, (_, i) => {
        input.value = Number(input.min) + (input.max - input.min) * (1 + 0.8 * Math.sin(1.7 * i)) / 2;
        const began = performance.now();
        input.dispatchEvent(new Event("input", { bubbles: true }));
        document.body.offsetHeight;
        document.querySelector("section:not([hidden]) .plot").getBBox();
        return performance.now() - began;
    })"""
    assert quickest(lambda: list(slider.evaluate(measure))) <= 4.0
    assert finding(page) != before


STATES = {
    "step": "step.classes=7&step.z=1,-2,3,0.5,0,-1,2&step.label=3&step.push=up&step.s=0.5&step.count=3&step.scale=log",
    "contexts": "contexts.alike=0.6&contexts.common=2&contexts.plus=0.4&contexts.word=other&contexts.shown=9",
    "zoo": "zoo.loss=ipo&zoo.updates=100",
    "quiz": "quiz.mode=four",
}


def picture(page: Any) -> list[str]:
    """All that can be seen of the panel: what it is, what it says, where it lies."""
    look = """() => [...document.querySelectorAll("section:not([hidden]) *")]
    .filter((x) => x.checkVisibility() && !x.closest("[display=none]")).map((x) => {
        const box = x.getBoundingClientRect();
        const at = [box.x, box.y, box.width, box.height].map((side) => side.toFixed(1));
        const said = x.childElementCount ? "" : x.classList.contains("unseen") ? "" : x.textContent;
        const names = ["class", "d", "aria-label", "aria-pressed", "stroke-dasharray"];
        const what = names.map((name) => x.getAttribute(name));
        return [x.tagName, said, x.value, x.checked, ...what, ...at].join("|");
    })"""
    return list(page.evaluate(look))


@pytest.mark.parametrize("panel", PANELS)
def test_an_address_is_a_state(opened: Any, panel: str) -> None:
    page = opened(panel, state=STATES[panel])
    reveal(page)
    sliders = page.locator("section:not([hidden]) input[type=range]")
    for i in range(min(2, sliders.count())):
        sliders.nth(i).focus()
        page.keyboard.press("ArrowLeft")
    state = settled(page)
    assert state.startswith(f"#panel={panel}")
    if sliders.count():
        assert state.count("=") > 1
    again = opened(panel, state=state.split("&", 1)[1])
    assert picture(again) == picture(page)
    text = page.evaluate("JSON.stringify(Object.fromEntries(new URLSearchParams(location.hash.slice(1))))")
    third = opened(panel)
    assert picture(third) != picture(page)
    third.click("#state summary")
    third.fill("textarea", text)
    third.get_by_role("button", name="Use this text").click()
    third.keyboard.press("Escape")
    assert picture(third) == picture(page)
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


def test_what_is_no_state_is_refused_and_broken_addresses_are_mended(opened: Any) -> None:
    page = opened(
        "none", state="step.z=a,b&step.classes=1e9&step.label=-3&step.s=NaN&step.push=__proto__&contexts.lr=&x=%E0"
    )
    reveal(page)
    assert page.is_visible("#panel-step")
    assert "Class 0" in finding(page)
    page.click("#state summary")
    for text, told in (("{", "Expected a link"), ("[1]", "Expected names and values"), ("null", "Expected names and")):
        page.fill("textarea", text)
        page.get_by_role("button", name="Use this text").click()
        assert told in page.inner_text("#state")
    page.keyboard.press("Escape")
    assert not page.is_visible("textarea")
    for start in ("toString", "constructor", "__proto__"):
        assert "Shared: y+" in turned(page, "zoo", f"zoo.start={start}&zoo.guess=shown&zoo.updates=20")
    assert page.problems == []


def test_a_state_may_hold_any_text_and_what_is_refused_changes_nothing(opened: Any) -> None:
    page = opened("step", state="step.s=3")
    load = "text => [toyldLab.store.load(text), toyldLab.store.json()]"
    told, kept = page.evaluate(load, '{"step.s": 2, "note": "class #1", "a&b=c": "d#e"}')
    assert told == ""
    assert json.loads(kept) == {"step.s": "2", "note": "class #1", "a&b=c": "d#e"}
    link = page.evaluate("'x.html#' + toyldLab.store.hash()")
    for text in ('{"note": "#1"', '["#panel=zoo"]', "see # below", "nothing"):
        told, now = page.evaluate(load, text)
        assert told.startswith("Expected ")
        assert now == kept
    assert page.evaluate(load, "lab.html#")[1] == "{}"
    assert page.evaluate(load, link) == ["", kept]
    page.evaluate(load, '{"half": "\\ud800", "\\udc00": "whole 😀"}')
    assert settled(page).endswith("whole%20%F0%9F%98%80")
    assert page.problems == []


def test_the_key_r_leaves_typing_alone_and_can_be_switched_off(opened: Any) -> None:
    page = opened("zoo")

    def shown() -> bool:
        return "Shown without" in page.inner_text("#panel-zoo .told")

    for box in ("#panel-zoo select >> nth=1", "textarea"):
        if box == "textarea":
            page.click("#state summary")
        page.focus(box)
        reveal(page)
        assert not shown()
    page.focus("#tab-zoo")
    page.keyboard.down("r")
    assert shown()
    page.keyboard.down("r")  # held: the keyboard repeats it
    assert shown()
    page.keyboard.up("r")
    reveal(page)
    assert "press R" in finding(page)
    page.get_by_label("off", exact=True).check()
    reveal(page)
    assert not shown()
    assert "press Show" in finding(page)
    assert "key=off" in settled(page)
    page.get_by_label("on", exact=True).check()
    reveal(page)
    assert shown()


STEPS = """() => [...document.querySelectorAll("section:not([hidden]) input[type=range]")]
    .filter((x) => x.checkVisibility()).map((x) => ["stepUp", "stepDown"].map((step) => {
        const told = (x.told = x.told ?? new Set());
        const end = step === "stepUp" ? x.max : x.min;
        for (let before = null; x.value !== before && x.value !== end; ) {
            before = x.value;
            x[step]();
            x.dispatchEvent(new Event("input", { bubbles: true }));
            told.add(x.getAttribute("aria-valuetext"));
        }
        return [document.querySelector(`label[for=${x.id}]`).textContent, x.value === end, told.size];
    }))"""


@pytest.mark.parametrize("state", ["step=", "contexts=", "zoo.loss=cdpo"])
def test_small_steps_alone_reach_both_ends_of_every_slider(opened: Any, state: str) -> None:
    page = opened(state.split(".")[0].strip("="), state=state)
    ends = [end for slider in page.evaluate(STEPS) for end in slider]
    assert len(ends) >= 8
    assert [label for label, there, _ in ends if not there] == []
    assert [label for label, _, told in ends[1::2] if told < 8] == []
    page.locator("section:not([hidden]) input[type=range] >> visible=true").last.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):  # the keys do what the steps do
        was = page.evaluate("Number(document.activeElement.value)")
        page.keyboard.press(key)
        assert np.sign(page.evaluate("Number(document.activeElement.value)") - was) == (1 if "Right" in key else -1)


@pytest.mark.parametrize("panel", PANELS)
def test_nothing_is_shown_before_it_was_predicted(opened: Any, panel: str) -> None:
    page = opened(panel)
    hidden = finding(page)
    told = page.locator("section:not([hidden]) .told").first
    assert "Choose" in told.inner_text()
    before, shapes = picture(page), [one for one in picture(page) if re.match("path|rect", one)]
    reveal(page)
    shown = [one for one in picture(page) if re.match("path|rect", one)]
    assert (shown != shapes) == (panel != "quiz")  # there the curves are what is asked about
    assert "Shown without a guess" in told.inner_text()
    assert finding(page) != hidden
    assert len(finding(page)) > len(hidden)
    reveal(page)
    assert finding(page) == hidden
    assert picture(page) == before
    page.locator("section:not([hidden]) .predict .row button").first.click()
    assert told.inner_text().startswith("You said “")
    assert page.problems == []


def test_a_guess_is_judged_by_what_happens(opened: Any) -> None:
    told = []
    for label in ("all", "some", "only the likeliest", "none"):
        page = opened("step")
        assert page.locator(".plot path.spot >> visible=true").count() == 0
        page.get_by_role("button", name=label, exact=True).click()
        told.append(
            page.inner_text(".told").split(":" if "right" in page.inner_text(".told") else ";")[1].split(".")[0]
        )
        assert page.get_by_role("button", name=label, exact=True).get_attribute("aria-pressed") == "true"
    z = -2.0 * np.log(np.arange(1.0, 13.0))
    z[-1] = -9.0
    assert list(np.flatnonzero(softmax.winners(z, 11, s=1.0))) == [0]  # y* alone
    wrong = " it was “only the likeliest”"
    assert told == [wrong, wrong, " right", wrong]


def turned(page: Any, panel: str, state: str) -> str:
    """The finding after another address was typed."""
    page.evaluate(
        """hash => new Promise((done) => {
            addEventListener("hashchange", done, { once: true });
            location.hash = hash;
        })""",
        f"#panel={panel}&{state}",
    )
    return finding(page)


def part(x: float) -> str:
    """A probability as the page writes it: a power of ten where the decimals would show nothing."""
    if not 0.0 < x < 0.0005:
        return f"{x:.3f}"
    power = int(np.floor(np.log10(x)))
    return f"{x / 10.0**power:.1f}·10{str(power).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


@pytest.mark.parametrize("push", ["up", "down"])
def test_the_finding_on_one_softmax_is_that_of_python(opened: Any, push: str) -> None:
    page = opened("step")
    for label, s in itertools.product([0, 1, 5], [0.3, 1.0, 4.0]):
        judge_step(page, push, label, s)
    assert page.problems == []


def judge_step(page: Any, push: str, label: int, s: float) -> None:
    """One step on one softmax: every number and word of the finding."""
    z = np.array([1.0, 0.4, 0.3, 0.0, -1.0, -3.0])
    c = 1.0 if push == "up" else -1.0
    numbers = ",".join(map(str, z))
    state = f"step.classes=6&step.z={numbers}&step.label={label}&step.s={s}&step.push={push}&step.guess=shown"
    text, change = turned(page, "step", state), softmax.log_alpha(z, label, s=s, c=c)
    p = softmax.softmax(z)
    after = p * np.exp(change)
    others = np.delete(np.arange(6), label)

    assert f"from {part(p[label])} to {part(after[label])}" in text
    gained = int((change[others] > 0).sum())
    if push == "up":
        most = int(others[np.argmin((after - p)[others])])
        assert f"class {most} lost most, {part(p[most] - after[most])};" in text
        assert ("all others fell" if gained == 0 else f"{gained} of 5 others rose with it") in text
    else:
        star = int(softmax.runner_up(z, label))
        ratio = float(softmax.squeezing_ratio(z, label, s=s))
        assert f"class {star} gained {part(after[star] - p[star])}, {ratio:.{2 if ratio < 10.0 else 0}f} times" in text
        assert ("no other class lost" if gained == 5 else f"{5 - gained} of 5 others lost") in text
        valley = "was a valley" if softmax.valley_depth(z, label) >= 0 else "was no valley"
        assert f"Class {label} {valley}" in text
    fell = softmax.entropy(softmax.step(z, softmax.residual(z, label, c=c), s=s)) < softmax.entropy(z)
    assert f"ntropy {'fell' if fell else 'rose'}" in text
    tau = float(softmax.threshold(z, label, s=-s * c))
    then = softmax.step(z, softmax.residual(z, label, c=c), s=s)
    depth = float(softmax.valley_depth(z, label))
    facts = {
        "entropy H": f"{softmax.entropy(z):.2f} → {softmax.entropy(then):.2f}",
        "threshold τ": f"{softmax.threshold_limit(z, label):.3f} → {tau:.3f}",
        "ratio ρ": "for a push down" if push == "up" else f"{softmax.squeezing_ratio(z, label, s=s):.2f}",
        "valley depth": f"{depth:+.2f}",
    }
    names, values = (page.locator(f".facts {tag}").all_inner_texts() for tag in ("dt", "dd"))
    assert dict(zip(names, values, strict=True)) == {name: one.replace("-", "−") for name, one in facts.items()}


FIRST = (0.02, 10, 0.6)  # as the panel begins: π(y−), classes, peak of the rest


def run_of_two(k: float, c: float, plus: float, same: bool, shown: int) -> dict[str, float]:
    """What two coupled contexts do, by toyld.contexts: changes after updates of DPO with β = .1, η = 20."""
    minus, classes, peak = FIRST

    def belief(y: int, p: float) -> np.ndarray:
        others, favourite = classes - 1, 2
        share = 1.0 / others + peak * (1.0 - 1.0 / others)
        w = np.full(classes, (1.0 - p) * (1.0 - share) / (others - 1))
        w[favourite], w[y] = (1.0 - p) * share, p
        return np.log(w)

    taught = 0 if same else 1
    z = np.stack([belief(0, plus), belief(taught, minus), belief(0, plus)])
    gram = np.array([[1.0, k, 0.0], [k, 1.0, 0.0], [0.0, 0.0, 1.0]]) + c
    mask = np.ones((1, 1, 1), bool)
    responses = {
        kind: Responses(np.full((1, 1, 1), at), np.full((1, 1, 1), y), mask)
        for kind, at, y in (("chosen", 0, 0), ("rejected", 1, taught), ("elsewhere", 2, 0))
    }
    world = World(z[None], Gram(gram[None]), responses, 2, (0,))
    run = contexts.train(world, objectives.get("dpo"), lr=20.0, steps=shown, rejected="rejected", at=(0, shown))

    def moved(name: str, kind: str) -> float:
        path = run.value(name, kind)[:, 0, 0]
        return float(path[-1] - path[0])

    found = {"y+": ("logp", "chosen"), "argmax": ("argmax_logp", "chosen"), "elsewhere": ("logp", "elsewhere")}
    own, other = softmax.residual(z[0], 0), softmax.residual(z[1], taught)
    # One update of so small a rate that its sign is that of the first order.
    small = contexts.train(world, objectives.get("dpo"), lr=1e-3, steps=1, rejected="rejected", at=(0, 1))
    first = small.value("logp", "chosen")[:, 0, 0]
    more = {"needed": float(own @ own / (own @ other)), "first": float(first[1] - first[0])}
    return {name: moved(*what) for name, what in found.items()} | more


def run_of_one(c: float, plus: float, shown: int) -> dict[str, float]:
    """The same in one softmax that holds both answers."""
    minus, classes, peak = FIRST
    others = classes - 2
    share = 1.0 / others + peak * (1.0 - 1.0 / others)
    w = np.full(classes, (1.0 - plus - minus) * (1.0 - share) / (others - 1))
    w[0], w[1], w[2] = plus, minus, (1.0 - plus - minus) * share
    mask = np.ones((1, 1, 1), bool)
    responses = {
        kind: Responses(np.zeros((1, 1, 1), int), np.full((1, 1, 1), y), mask)
        for kind, y in (("chosen", 0), ("rejected", 1))
    }
    world = World(np.log(w)[None, None], Gram(np.full((1, 1, 1), 1.0 + c)), responses, 1, (0,))
    run = contexts.train(world, objectives.get("dpo"), lr=20.0, steps=shown, rejected="rejected", at=(0, shown))
    path = run.value("logp", "chosen")[:, 0, 0]
    return {"y+": float(path[-1] - path[0])}


def before(page: Any, plot: int) -> list[float]:
    """The column “before” of the numbers behind a plot of probabilities."""
    read = """box => {
        box.open = true;
        box.dispatchEvent(new Event("toggle"));
        return [...box.querySelectorAll("tr td:nth-child(2)")].map((cell) => Number(cell.textContent));
    }"""
    return list(page.locator("section:not([hidden]) .numbers").nth(plot).evaluate(read))


@pytest.mark.parametrize("same", [True, False])
def test_the_finding_on_two_contexts_is_that_of_python(opened: Any, same: bool) -> None:
    page = opened("contexts")
    kinds = [
        judge_contexts(page, same, k, c, plus)
        for k, c in ((0.0, 0.0), (0.5, 0.0), (0.95, 0.0), (0.2, 3.0))
        for plus in (0.3, 0.8)
    ]
    assert {"squeezing", "rises"} <= set(kinds) if same else {"displacement", "rises"} == set(kinds)
    assert page.problems == []


def judge_contexts(page: Any, same: bool, k: float, c: float, plus: float) -> str:
    """One run in two contexts: what the finding says of it; returns its kind."""
    state = f"contexts.alike={k}&contexts.common={c}&contexts.plus={plus}&contexts.word={'same' if same else 'other'}"
    shown = 4 if k == 0.5 else 60
    text = turned(page, "contexts", f"{state}&contexts.shown={shown}&contexts.guess=shown")
    one, two = text.split("Two contexts:")
    want = run_of_two(k, c, plus, same, shown)

    def words(x: float) -> str:
        return "hardly moved" if abs(x) < 0.005 else f"{'rose' if x > 0 else 'fell'} by {abs(x):.2f} nats"

    alone = run_of_one(c, plus, shown)
    assert alone["y+"] > 0.005  # pair.winner-rises
    assert one == f"One context: y+ {words(alone['y+'])}; with y− in the same softmax it can only rise, " \
        "at any number of classes. "  # fmt: skip
    kappa = (k + c) / (1.0 + c)
    need = want["needed"]
    first = f"y+ falls at the first update if κ is above {need:.2f}" if 0.0 < need <= 1.0 else \
        "no coupling of this start lowers y+ at the first update"  # fmt: skip
    assert two.endswith(f" To first order {first}; here κ = {kappa:.2f}.")
    assert abs(need - kappa) < 0.02 or (want["first"] < 0.0) == (0.0 < need < kappa)  # what the words say happens
    titles = page.locator("#panel-contexts .plot .name").all_text_contents()
    assert titles[1] == f"Two contexts, coupling κ = {kappa:.2f}"
    start = before(page, 2)
    assert start[0] == pytest.approx(plus, abs=5.1e-5)  # as its slider says, in the one softmax, too
    assert start[1] == pytest.approx(0.02, abs=5.1e-5)
    assert before(page, 3)[0] == pytest.approx(plus, abs=5.1e-5)
    assert f"y+ {words(want['y+'])} and the argmax along it {words(want['argmax'])}" in two
    assert ("squeezing" in two) == (want["y+"] < -0.005 and want["argmax"] > 0.005)
    assert ("displacement" in two) == (want["y+"] < -0.005 and want["argmax"] <= 0.005)
    assert ("elsewhere" in two) == (abs(want["elsewhere"]) >= 0.005)
    assert ("elsewhere" not in two) or f"the word {words(want['elsewhere'])}. " in two
    if k == c == 0.0:
        assert "y+ rose" in two  # kernel.no-cross-talk
    return "squeezing" if "squeezing" in two else "displacement" if "displacement" in two else "rises"


def test_the_numbers_stand_behind_a_plot_as_a_table(opened: Any) -> None:
    page = opened("step", state="step.classes=4&step.z=2,1,0,-3&step.label=3&step.s=0.7&step.guess=shown")
    page.locator("section:not([hidden]) .numbers summary").first.click()
    table = page.locator("section:not([hidden]) .numbers table").first
    table.locator("td").first.wait_for()
    rows = [line.split("\t") for line in table.inner_text().replace("−", "-").splitlines()]
    z = np.array([2.0, 1.0, 0.0, -3.0])
    change = softmax.log_alpha(z, 3, s=0.7)
    before, after = softmax.softmax(z), softmax.softmax(z) * np.exp(change)
    assert [row[0] for row in rows] == ["class", "0 (y*)", "1", "2", "3 (y)"]
    found = np.array([[float(x) for x in row[1:]] for row in rows[1:]])
    np.testing.assert_allclose(found, np.stack([before, after, change], axis=1), rtol=0, atol=0.5001e-4)
    drag_to(page, 1, 6.0)
    assert float(table.inner_text().splitlines()[2].split("\t")[1]) > 0.9


@pytest.mark.parametrize("panel", PANELS)
def test_every_control_changes_what_is_shown(opened: Any, panel: str) -> None:
    page = opened(panel, state="contexts.common=1&contexts.shown=30&step.count=2&zoo.updates=300")
    reveal(page)
    room = "section:not([hidden])"
    look = f"() => document.querySelector('{room} .stage').innerHTML + document.querySelector('{FINDING}').textContent"
    dead = []
    for slider in page.locator(f"{room} input[type=range] >> visible=true").all():
        seen = {page.evaluate(look)}
        for key in ("Home", "ArrowRight", "End"):
            slider.press(key)
            seen.add(page.evaluate(look))
        if len(seen) < 3:
            dead.append(slider.get_attribute("id"))
    for radio in page.locator(f"{room} input[type=radio]:not(:checked) >> visible=true").all():
        before = page.evaluate(look)
        radio.check()
        if page.evaluate(look) == before:
            dead.append(radio.get_attribute("value"))
    assert dead == []
    assert page.problems == []


def test_playing_moves_unless_less_motion_is_wished_for(opened: Any) -> None:
    calm = opened("contexts", state="contexts.guess=shown&contexts.shown=3", reduced_motion="reduce")
    calm.get_by_role("button", name="Play").click()
    assert stored(calm, "contexts.shown") == "60"
    page = opened("contexts", state="contexts.guess=shown", reduced_motion="no-preference")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("Number(window.toyldLab.store.get('contexts.shown', '')) >= 3")
    assert float(stored(page, "contexts.shown")) < 60
    assert page.problems == []
