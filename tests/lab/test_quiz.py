"""The quiz of the lab: every answer is made again, and its panel judges as the table says."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toyld.checked import BadInput
from toyld.figures import _llm
from toyld.figures._table import rows
from toyld.lab import quiz, recorded

KEPT = {run["id"]: run for run in quiz.data()["runs"]}
TRAINED = ("digits", "tiny transformer")  # networks: the same to rounding, which differs between machines


def test_the_quiz_is_small_and_asks_what_can_be_answered() -> None:
    text = Path(quiz.__file__).with_name("quiz.json").read_bytes()
    found = quiz.data()
    assert len(text) <= 60_000
    assert list(KEPT) == list(quiz.RUNS)
    assert found["options"] == list(quiz.OPTIONS)
    assert found["fours"] == [list(four) for four in quiz.FOURS]
    assert set(quiz.OPTIONS) == {kind for run in KEPT.values() for kind in run["right"]} == set(quiz.WHERE)
    worlds = Counter(run["world"] for run in KEPT.values())
    assert set(worlds) == {"synthetic", "closed form", "digits", "tiny transformer", "language model"}
    for four in quiz.FOURS:
        assert len(set(four)) == 4
        assert sum("squeezing" in KEPT[id]["right"] for id in four) == 1  # one answer and no second one
    for four in quiz.FOURS[:2]:
        assert len({KEPT[id]["world"] for id in four}) == 4


def alike(one: str, other: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by one of the last digit at most."""
    number = r"[−-]?\d+(?:\.\d+)?(?:e[−-]?\d+)?"
    pairs = zip(*(re.findall(number, text) for text in (one, other)), strict=True)
    near = [
        abs(float(a.replace("−", "-")) - float(b.replace("−", "-")))
        <= 1.01
        * 10.0 ** -len(a.partition(".")[2].partition("e")[0])
        * 10.0 ** float((a.partition("e")[2] or "0").replace("−", "-"))
        for a, b in pairs
    ]
    return re.sub(number, "#", one) == re.sub(number, "#", other) and all(near)


def test_texts_with_other_words_or_numbers_are_not_alike() -> None:
    assert alike("chosen +2.3 [−0.07, 62%], 6.4e−03", "chosen +2.3 [−0.08, 63%], 6.5e−03")
    assert not alike("chosen +2.3", "chosen +2.5")
    assert not alike("chosen −2.3", "chosen +2.3")
    assert not alike("argmax +6.4e−03", "argmax +6.4e−02")
    assert not alike("chosen up +2.3", "chosen down +2.3")


def test_where_the_mass_went_is_what_the_intervals_show() -> None:
    # Sign of an interval's change along a line: up, down, or not told from nothing; None where any will do.
    shown = {
        "squeezing": {"argmax": "up", "gap": "up"},
        "displacement": {"chosen": "down", "argmax": "down or still"},
        "divergence": {"chosen": "down", "argmax": "down"},
        "healthy": {"chosen": "up", "rejected": "down"},
        "sft-normal": {"chosen": "up"},
        "rejection": {"rejected": "down"},
        "cannot-tell": {},
    }
    assert shown.keys() == quiz.WHERE.keys()
    for run in KEPT.values():
        assert run["where"] == quiz.WHERE[run["verdict"]]
        for line, ways in shown[run["verdict"]].items():
            low, high = (run["curves"][line][part][-1] for part in ("low", "high"))
            way = "up" if low > 0.0 else "down" if high < 0.0 else "still"
            assert way in ways.split(" or "), (run["id"], line)
        if run["verdict"] == "rejection":
            move = max(abs(run["curves"][line]["mean"][-1]) for line in ("chosen", "argmax"))
            floor = re.search(r"less than (\S+) nats counts", run["doubt"])
            low = min(abs(run["curves"][line][part][-1]) for line in ("chosen", "argmax") for part in ("low", "high"))
            assert low < float(floor[1]) if floor else move < 0.05
            assert move < 0.15 * abs(run["curves"]["rejected"]["mean"][-1])
        if run["verdict"] == "cannot-tell":
            assert "argmax" not in run["curves"]


@pytest.mark.parametrize("name", list(quiz.RUNS))
def test_every_answer_is_made_again(name: str) -> None:
    made, kept = json.loads(json.dumps(quiz.entry(name))), KEPT[name]
    loose = made["world"] in TRAINED
    exact = ("id", "world", "done", "stage", "examples", "updates", "verdict", "right", "where")
    assert {key: made[key] for key in exact} == {key: kept[key] for key in exact}
    assert made.keys() == kept.keys()
    assert made["curves"].keys() == kept["curves"].keys()
    if not loose:
        assert made == kept
    assert alike(made["reason"], kept["reason"])
    assert alike(made["doubt"], kept["doubt"])
    assert made["confidence"] == pytest.approx(kept["confidence"], abs=0.02)
    # One example of them may read otherwise.
    assert made["share"] == pytest.approx(kept["share"], abs=1.5 / made["examples"])
    for line, curve in made["curves"].items():
        for part, values in curve.items():
            # Three digits are kept; of trained networks a last one of them may differ.
            np.testing.assert_allclose(values, kept["curves"][line][part], rtol=0.011, atol=2e-3 if loose else 1e-12)


def test_the_reason_has_the_numbers_that_the_picture_ends_with() -> None:
    for run in KEPT.values():
        reason = run["reason"].replace("−", "-")
        for line, curve in run["curves"].items():
            name = "G" if line == "gap" else line
            (found,) = re.findall(rf"{name} ([+-]?\d[\d.e-]*) \[", reason)
            # Printed to two digits or a decimal, the picture has three.
            assert float(found) == pytest.approx(curve["mean"][-1], abs=0.052 if abs(float(found)) >= 1 else 0.0052)


def test_what_was_recorded_of_language_models_is_what_their_curves_say() -> None:
    table = _llm.load()
    for named in recorded.RUNS:
        ds, which = recorded.load(*named), dict(zip(("run", "stage", "arm"), named, strict=True))
        for kind in recorded.KINDS:
            values = ds.argmax_logp.sel(probe="chosen") if kind == "argmax" else ds.logp.sel(probe=kind)
            means = values.isel(seed=0).mean("example").values
            curve = rows(table, kind=kind, **which)
            assert ds.step.values.tolist() == curve["update"].tolist()
            assert set(curve["n"]) == {ds.sizes["example"]}
            # Two decimals: either end of a change is off by half a unit of the last one at most.
            np.testing.assert_allclose(means - means[0], curve["mean"], rtol=0, atol=0.01)
    assert recorded.load("hh", "sft", "baseline").sizes["example"] == 64


def test_recording_reads_a_run_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = recorded.load("stories", "dpo", "baseline")
    monkeypatch.setattr(recorded, "read_folder", lambda folder: [ds, ds.assign_attrs(arm="another")])
    recorded.record({"stories": tmp_path}, tmp_path / "again.csv")
    again = (tmp_path / "again.csv").read_text(encoding="utf-8").splitlines()
    text = (Path(recorded.__file__).parents[1] / "evidence" / "llm-examples.csv").read_text(encoding="utf-8")
    assert again == [line for line in text.splitlines() if line.startswith(("run,", "stories,"))]


def test_writing_is_deterministic_and_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cheap = {id: run for id, run in quiz.RUNS.items() if run.world in ("synthetic", "language model")}
    monkeypatch.setattr(quiz, "RUNS", cheap)
    quiz.write(tmp_path / "a.json")
    quiz.write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["runs"] == [KEPT[id] for id in cheap]
    with pytest.raises(BadInput, match="expected one of b, c, d"):
        quiz.entry("z")


def press(page: Any, words: str) -> None:
    page.locator("#panel-quiz .predict:visible .row button", has_text=re.compile(f"^{words}$")).click()


def words_of(kind: str) -> str:
    return {"sft-normal": "normal SFT", "cannot-tell": "cannot tell"}.get(kind, kind)


def test_each_run_is_hidden_until_it_is_judged_and_the_score_counts(opened: Any) -> None:
    page = opened("quiz")
    for i, run in enumerate(KEPT.values()):
        assert page.inner_text("#panel-quiz .where") == f"Run {i + 1} of {len(KEPT)}"
        before = page.inner_text("#panel-quiz .stage") + page.inner_text("#panel-quiz .finding")
        assert run["done"] not in before
        assert run["reason"] not in before
        assert words_of(run["verdict"]) not in before
        press(page, words_of(run["verdict"]))
        assert "right." in page.inner_text("#panel-quiz .predict:visible .told")
        after = page.inner_text("#panel-quiz .stage") + page.inner_text("#panel-quiz .finding")
        assert all(run[key] in after for key in ("done", "where", "doubt", "reason"))
        assert page.inner_text("#panel-quiz .score") == f"{i + 1} of {i + 1} right."
        page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Forget my answers").click()
    assert page.inner_text("#panel-quiz .score") == "Nothing answered yet."
    assert page.problems == []


def test_wrong_and_second_answers_and_looking(opened: Any) -> None:
    at = list(KEPT)
    split = next(id for id, run in KEPT.items() if len(run["right"]) == 2)
    page = opened("quiz", state=f"quiz.run={at.index(split) + 1}")
    press(page, words_of(KEPT[split]["right"][1]))
    told = page.inner_text("#panel-quiz .predict:visible .told")
    assert f"it was “{words_of(KEPT[split]['verdict'])}”" in told
    assert "counts as right, too" in told
    assert page.inner_text("#panel-quiz .score") == "1 of 1 right."
    page.get_by_role("button", name="Next").click()
    following = KEPT[at[at.index(split) + 1]]
    press(page, next(words_of(kind) for kind in quiz.OPTIONS if kind not in following["right"]))
    assert page.inner_text("#panel-quiz .score") == "1 of 2 right."
    page.get_by_role("button", name="Next").click()
    page.keyboard.press("r")  # shown to a class: no guess, so no point lost
    assert "Shown without a guess" in page.inner_text("#panel-quiz .predict:visible .told")
    assert page.inner_text("#panel-quiz .score") == "1 of 2 right."
    copied = page.evaluate("toyldLab.store.hash()")
    again = opened("quiz", state=copied)
    assert again.inner_text("#panel-quiz .score") == "1 of 2 right."
    assert page.problems == again.problems == []


def test_one_of_four_is_squeezing(opened: Any) -> None:
    page = opened("quiz", state="quiz.mode=four")
    for i, four in enumerate(quiz.FOURS):
        assert page.locator("#panel-quiz svg.plot:visible").count() == 4
        assert "squeezing" not in page.inner_text("#panel-quiz .finding")
        letter = "ABCD"[[KEPT[id]["verdict"] for id in four].index("squeezing")]
        press(page, letter)
        assert page.inner_text("#panel-quiz .predict:visible .told").endswith(f"“{letter}”: right.")
        assert page.inner_text("#panel-quiz .score") == f"{i + 1} of {i + 1} right."
        found = page.inner_text("#panel-quiz .finding")
        assert f"{letter} ({KEPT[four['ABCD'.index(letter)]]['world']}) squeezing" in found
        page.get_by_role("button", name="Next").click()
    assert page.problems == []


def test_the_picture_has_the_numbers_of_the_table(opened: Any) -> None:
    page = opened("quiz", state="quiz.run=3")
    page.locator("#panel-quiz details.numbers:visible summary >> nth=0").click()
    page.locator("#panel-quiz details.numbers[open] td").first.wait_for()
    cells = page.locator("#panel-quiz details.numbers[open] tr:last-child td").all_inner_texts()
    run = KEPT[list(KEPT)[2]]
    wanted = [run["curves"][line] for line in ("chosen", "argmax", "rejected")]
    assert cells[0] == str(run["updates"][-1])
    for cell, curve in zip(cells[1:], wanted, strict=True):
        numbers = [float(x.replace("−", "-")) for x in re.findall(r"[−-]?\d+\.\d+", cell)]
        assert numbers == pytest.approx([curve[part][-1] for part in ("mean", "low", "high")], abs=5e-4)
