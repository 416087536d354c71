"""The loss zoo of the lab: what it says of each loss, its runs by theorems, and its panel in a browser."""

import math
import re
from typing import Any

import numpy as np
import pytest

from toyld import objectives
from toyld.claims import every
from toyld.lab import zoo
from toyld.lab.zoo import LOSSES

FLAT = {"logits": [0.0, 0.0, 0.0, 0.0], "tokens": 1}
DATA = {loss["name"]: loss for loss in zoo.data()["losses"]}


def test_every_loss_is_told_with_known_claims_and_defaults_within_its_sliders() -> None:
    known = every()
    assert list(DATA) == list(LOSSES)
    assert len({loss["label"] for loss in DATA.values()}) == len(DATA)
    for name, loss in DATA.items():
        assert loss["formula"]
        assert loss["source"] == objectives.get(name).source
        assert [id for id in loss["claims"] if id not in known] == []
        assert loss["claims"][0] == "residual." + name.replace(".", "-").replace("_", "-")
        for parameter in loss["parameters"]:
            assert parameter["value"] == getattr(objectives.get(name), parameter["name"])
            assert parameter["min"] <= parameter["value"] <= parameter["max"], (name, parameter)


def test_no_step_is_larger_than_the_claims_on_targets_allow() -> None:
    known = every()
    for name in ("ipo", "sppo"):
        (allowed,) = re.findall(r"s ≤ 1/(\d)", known[f"residual.{name}-stops-at-target"].statement)
        assert DATA[name]["largest"] == 1.0 / int(allowed)
    assert {name for name, loss in DATA.items() if loss["largest"]} == {"ipo", "sppo"}


def test_golden_vectors_reach_margins_of_700_and_both_ends_of_probability() -> None:
    cases = [one["args"] for one in zoo.cases() if one["call"] == "losses.push"]
    assert {args[0] for args in cases} == set(LOSSES)
    for name in LOSSES:
        places = [at for who, _, at in cases if who == name]
        margins = [at["plus"] - at["refPlus"] - at["minus"] + at["refMinus"] for at in places]
        assert max(margins) == 700.0
        assert min(margins) == -700.0
        assert max(at["plus"] for at in places) == max(at["minus"] for at in places) == -1e-9
        assert len({at["nPlus"] for at in places}) > 3


@pytest.mark.parametrize("shared", [True, False])
def test_a_run_of_dpo_in_one_context_keeps_within_the_bounds_of_its_theorem(shared: bool) -> None:
    beta, s = 0.1, 8.0
    rows = zoo.run("dpo", {"beta": beta}, {**FLAT, "step": s, "shared": shared, "states": 401}, [4, 40, 400])
    # residual.dpo-never-stops: log n / beta, between two constants; of one context.
    share = (1.0 - 0.25) ** 2 * 4 / 3
    for row in rows if shared else []:
        n = row["update"]
        low = math.log1p(share * beta**2 * s * n / 2.0) / beta
        high = math.log1p(4.0 * beta**2 * s * n * math.exp(2.0 * beta**2 * s)) / beta
        assert low <= row["margin"] <= high
    grown = [row["margin"] for row in rows]
    assert np.all(np.diff(grown) > 1.0)
    assert all(row["push"][1] < 0.0 for row in rows)


def test_runs_of_ipo_and_sppo_stop_where_their_theorems_say() -> None:
    for shared in (True, False):
        world = {**FLAT, "step": 0.1, "shared": shared, "states": 101}
        (last,) = zoo.run("ipo", {"beta": 0.1}, world, [100])
        assert last["margin"] == pytest.approx(1.0 / (2.0 * 0.1), abs=1e-9)
        assert last["push"] == pytest.approx([0.0, 0.0], abs=1e-8)
    (last,) = zoo.run("sppo", {"eta": 4.0}, {**FLAT, "step": 0.1, "shared": False, "states": 201}, [200])
    assert last["minus"] - math.log(0.25) == pytest.approx(-2.0, abs=1e-6)  # its own log-ratio, −eta/2


def test_two_contexts_do_not_touch() -> None:
    world = {"logits": [0.0, -1.0, 2.0], "tokens": 2, "step": 0.5, "shared": False, "states": 31}
    (last,) = zoo.run("ga", {}, world, [30])
    assert last["plus"] == pytest.approx(2.0 * (0.0 - math.log(math.e**0 + math.e**-1 + math.e**2)), rel=1e-14)
    (one,) = zoo.run("ga", {}, {**world, "shared": True}, [30])
    assert one["plus"] < last["plus"] - 1.0  # the same push squeezes it where they share a context


WORDS = {
    "fades": "fades, never ends",
    "target": "stops at a target, then turns round",
    "threshold": "is switched off at a threshold",
    "never": "never lets go",
    "none": "y− is never pushed down",
}


def label(page: Any) -> str:
    return str(page.inner_text("#panel-zoo .predict p"))


def test_nothing_is_shown_before_the_guess_and_every_guess_is_judged_as_python_does(opened: Any) -> None:
    page = opened("zoo")
    words = page.evaluate(
        "() => [...document.querySelectorAll('#panel-zoo .predict .row button')].map(b => b.textContent)"
    )
    kinds = ["fades", "target", "threshold", "never", "none"]
    for name in ("dpo", "ipo", "slic", "ga", "sft", "extend", "kto", "trl.exo_pair"):
        loss = DATA[name]
        page.select_option("#panel-zoo select >> nth=0", name)
        assert loss["label"] in label(page)
        assert page.locator("#panel-zoo svg.plot:visible").count() == 1
        assert "updates" not in page.inner_text("#panel-zoo .finding")
        button = page.locator("#panel-zoo .predict .row button", has_text=words[kinds.index(zoo.fate(name))])
        button.click()
        assert ": right." in page.inner_text("#panel-zoo .told"), name
        assert page.locator("#panel-zoo svg.plot:visible").count() == 4
    assert page.problems == []


TABLE = """() => {
    const box = document.querySelector("#panel-zoo .numbers");
    box.open = true;
    box.dispatchEvent(new Event("toggle"));
    return [...box.querySelectorAll("tr")].map((row) => [...row.children].map((cell) => {
        const [number, power] = cell.textContent.replaceAll("−", "-").split("·10");
        if (!power) return number;
        const digits = [...power].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(sign)).map((n) => (n < 0 ? "-" : n));
        return `${number}e${digits.join("")}`;
    }));
}"""


def nats(x: float) -> str:
    """As the panel writes it, with a plain minus sign; a power of ten where the decimals would show nothing."""
    if 0.0 < abs(x) < 0.005:
        power = math.floor(math.log10(abs(x)))
        raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{x / 10.0**power:.1f}·10{raised} nats"
    return f"{x:.{2 if abs(x) < 10.0 else 1}f} nats"


def way(x: float) -> str:
    return f"{'fell' if x < 0.0 else 'rose'} by {nats(abs(x))}"


def percent(x: float) -> str:
    """A part of the largest push."""
    if x == 0.0:
        return "none"
    return "under 0.01 %" if abs(x) < 1e-4 else f"{100.0 * x:.{2 if abs(x) < 0.1 else 0}f} %"


def left(rows: list[Any]) -> float:
    """The last push on y−, in parts of the largest."""
    most = max(abs(row["push"][1]) for row in rows)
    return rows[-1]["push"][1] / -most if most else 0.0


def ended(name: str, parameters: dict[str, float], rows: list[Any], ref: dict[str, float]) -> str:
    """What a run in one context has to be told of the push on y−, from Python's rows of it."""
    last, kind, part = rows[-1], zoo.fate(name), percent(abs(left(rows)))
    if kind == "fades":
        early = [row for row in rows if row["update"] <= last["update"] / 10.0][-1]
        return (
            f"The push on y- is down to {part} of its largest and never ends: the updates after {early['update']} "
            f"still added {nats(last['margin'] - early['margin'])} of margin."
        )
    if kind == "never":
        return f"The push on y- is still {part} of its largest and stays: this loss has no floor."
    if kind == "none":
        return (
            f"y- is never pushed down: that it {way(last['minus'] - rows[0]['minus'])} is what y+ does to its context."
        )
    if kind == "threshold":
        off = next((row["update"] for row in rows if row["push"][1] == 0.0), None)
        if off is None:
            return "The push on y- is at full strength still: the threshold is not reached."
        return f"The push on y- was switched off by update {off}, from full strength to nothing."
    around = [
        zoo.push(name, parameters, {**ref, "plus": last["plus"], "minus": last["minus"] + d})[1] for d in (-0.1, 0.1)
    ]
    if around[0] > 0.0 > around[1]:
        return (
            "The push on y- has stopped: it is within 0.10 nats of its target, and beyond it turns round and pulls "
            "y- up."
        )
    if last["push"][1] > 0.0:
        return (
            f"The push on y- has turned round: y- is beyond the target, and is pulled up with {part} of the largest "
            "push."
        )
    return (
        f"The push on y- is down to {part} of its largest, on its way to a target, beyond which it turns round and "
        "pulls y- up."
    )


@pytest.mark.parametrize(
    ("loss", "start", "updates", "told"),
    [
        ("trl.exo_pair", "flat", 2000, "on its way to a target"),  # 48 nats of margin; the target is at log(999)/β = 69
        ("sppo", "y+ leads", 1000, "has turned round"),
        ("ipo", "flat", 2000, "has stopped"),
        ("dpo", "peaked", 2000, "never ends"),
    ],
)
def test_a_push_has_stopped_only_where_it_turns_round(
    opened: Any, loss: str, start: str, updates: int, told: str
) -> None:
    page = opened("zoo", state=f"zoo.loss={loss}&zoo.start={start}&zoo.updates={updates}&zoo.guess=shown")
    assert told in page.inner_text("#panel-zoo .finding")


@pytest.mark.parametrize(
    ("name", "rate", "other"),
    [("dpo", 0.07, {}), ("ipo", 0.07, {}), ("ipo", 0.5, {"beta": 1.0}), ("sppo", 0.5, {"eta": 1.0}),
     ("slic", 0.07, {}), ("ga", 0.2, {}), ("sft", 0.2, {}), ("cdpo", 0.2, {"beta": 0.3, "epsilon": 0.3})],
)  # fmt: skip
def test_the_finding_tells_the_margins_that_python_computes(
    opened: Any, name: str, rate: float, other: dict[str, float]
) -> None:
    moved = "".join(f"&zoo.{name}.{key}={value}" for key, value in other.items())
    page = opened("zoo", state=f"zoo.loss={name}&zoo.guess=shown&zoo.updates=20&zoo.rate={rate}&zoo.margin=4{moved}")
    finding = page.inner_text("#panel-zoo .finding").replace("−", "-")
    found = [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?(?= nats)", finding)]
    parameters = {p["name"]: p["value"] for p in DATA[name]["parameters"]} | other
    logits, tokens = [0.0, 0.0, 3.0, 0.0, 0.0, 0.0], 10  # the panel's start “peaked”
    ref = tokens * -math.log(5.0 + math.e**3)
    at = {"refPlus": ref, "refMinus": ref, "nPlus": tokens, "nMinus": tokens}
    flat = tokens * -math.log(6.0)  # the rate counts from pushes where all are alike
    alike = dict.fromkeys(("plus", "minus", "refPlus", "refMinus"), flat) | {"nPlus": tokens, "nMinus": tokens}
    first = zoo.push(name, parameters, alike)
    step = min(rate / max(map(abs, first)), DATA[name]["largest"] or math.inf) / tokens
    world = {"logits": logits, "tokens": tokens, "step": step, "states": 21}
    margins = [zoo.run(name, parameters, {**world, "shared": shared}, [20])[0]["margin"] for shared in (True, False)]
    marks = sorted({round(21.0 ** (i / 59.0)) - 1 for i in range(60)})
    shared = zoo.run(name, parameters, {**world, "shared": True}, marks)
    here, _, rest = finding.partition(". After ")
    assert re.fullmatch(rf"{re.escape(DATA[name]['label'])} at a margin of 4\.0 nats: push \S+ on y\+, \S+ on y-", here)
    _, _, rest = rest.partition(" nats. ")
    ending, _, ways = rest.partition(" Shared: ")
    assert ending == ended(name, parameters, shared, at)
    went = [way(shared[-1][line] - shared[0][line]) for line in ("plus", "star")]
    assert ways == f"y+ {went[0]}, y* (likeliest other) {went[1]}."
    table = page.evaluate(TABLE)
    assert table[0] == ["margin h (nats)", "on y+", "on y-"]
    for h, *drawn in ([float(cell) for cell in line] for line in (table[1], table[41], table[121])):
        wanted = zoo.push(name, parameters, {**at, "plus": ref + h / 2.0, "minus": ref - h / 2.0})
        assert drawn == pytest.approx(wanted, abs=0.00051, rel=0.05)
    assert found[0] == 4.0
    assert found[1:3] == pytest.approx(margins, abs=0.0051 if max(margins) < 10.0 else 0.051)
    pushes = [float(x) for x in re.findall(r"[+-]?\d+\.\d{3}(?= on)", here)]
    assert pushes == pytest.approx(
        zoo.push(name, parameters, {**at, "plus": ref + 2.0, "minus": ref - 2.0}), abs=0.00051
    )


def league(name: str) -> list[str]:
    """A row of the table of all losses, after twenty updates from the start that is shown first."""
    parameters = {p["name"]: p["value"] for p in DATA[name]["parameters"]}
    if name == "cdpo":
        parameters["epsilon"] = 0.2
    flat = 10 * -math.log(6.0)
    alike = dict.fromkeys(("plus", "minus", "refPlus", "refMinus"), flat) | {"nPlus": 10, "nMinus": 10}
    step = min(0.2 / max(map(abs, zoo.push(name, parameters, alike))), DATA[name]["largest"] or math.inf) / 10
    world = {"logits": [0.0, 0.0, 3.0, 0.0, 0.0, 0.0], "tokens": 10, "step": step, "shared": True, "states": 21}
    rows = zoo.run(name, parameters, world, sorted({round(21.0 ** (i / 59.0)) - 1 for i in range(60)}))
    numbers = [percent(left(rows)), f"{rows[-1]['margin']:.1f}"]
    return [
        DATA[name]["label"],
        WORDS[zoo.fate(name)],
        *(one.replace("-", "−") for one in numbers),
        DATA[name]["claims"][0],
    ]


def test_another_loss_is_asked_anew_and_the_link_restores_all(opened: Any) -> None:
    page = opened(
        "zoo",
        state="zoo.loss=cdpo&zoo.guess=target&zoo.guess.truth=target&zoo.beside=ipo&zoo.cdpo.epsilon=0.2"
        "&zoo.updates=20",
    )
    text = page.inner_text("#panel-zoo .finding")
    assert "right" in page.inner_text("#panel-zoo .told")
    page.wait_for_function("() => document.querySelectorAll('#panel-zoo svg .end').length > 5")
    assert "IPO" in page.locator("#panel-zoo svg >> nth=1").text_content()
    page.locator("#panel-zoo details.league summary").click()
    page.wait_for_selector("#panel-zoo .league tbody tr")
    rows = page.locator("#panel-zoo .league tbody tr").all_inner_texts()
    assert [row.split("\t") for row in rows] == [league(name) for name in LOSSES]
    copied = page.evaluate("() => { toyldLab.store.set('zoo.margin', 0); return toyldLab.store.hash(); }")
    again = opened("zoo", state=copied.removeprefix("panel=zoo&"))
    assert again.inner_text("#panel-zoo .finding") == text
    page.select_option("#panel-zoo select >> nth=0", "dpo")
    assert "Choose" in page.inner_text("#panel-zoo .told")
    assert page.problems == again.problems == []


def test_every_loss_from_every_start_says_something_that_can_be_read(opened: Any) -> None:
    page = opened("zoo", state="zoo.guess=shown&zoo.updates=40")
    found = page.evaluate(
        """names => names.flatMap(name => ["flat", "peaked", "y− rare", "y+ leads"].map(start => {
            toyldLab.store.set({ "zoo.loss": name, "zoo.start": start, "zoo.updates": 40 });
            return document.querySelector("#panel-zoo .finding").textContent
                + [...document.querySelectorAll("#panel-zoo path")].map(p => p.getAttribute("d")).join();
        }))""",
        list(LOSSES),
    )
    assert len(found) == len(set(found)) == 4 * len(LOSSES)  # KTO and APO-zero differ by their names
    assert not [text for text in found if re.search("NaN|not known|undefined|∞", text)]
    assert "off from the start" in found[4 * list(LOSSES).index("slic") + 2]
    assert page.problems == []
