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
    assert found[0] == 4.0
    assert found[1:3] == pytest.approx(margins, abs=0.0051 if max(margins) < 10.0 else 0.051)
    pushes = [float(x) for x in re.findall(r"[+-]?\d+\.\d{3}(?= on)", finding)]
    assert pushes == pytest.approx(
        zoo.push(name, parameters, {**at, "plus": ref + 2.0, "minus": ref - 2.0}), abs=0.00051
    )


def test_another_loss_is_asked_anew_and_the_link_restores_all(opened: Any) -> None:
    page = opened(
        "zoo", state="zoo.loss=cdpo&zoo.guess=target&zoo.guess.truth=target&zoo.beside=ipo&zoo.cdpo.epsilon=0.2"
    )
    text = page.inner_text("#panel-zoo .finding")
    assert "right" in page.inner_text("#panel-zoo .told")
    page.wait_for_function("() => document.querySelectorAll('#panel-zoo svg .end').length > 5")
    assert "IPO" in page.locator("#panel-zoo svg >> nth=1").text_content()
    page.locator("#panel-zoo details.league summary").click()
    assert page.locator("#panel-zoo .league tbody tr").count() == len(LOSSES)
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
