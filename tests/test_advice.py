"""Advice: every source it names exists, the order is by evidence, and nothing is advised against the numbers."""

import ast
import csv
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

from toyld import claims, objectives
from toyld.diagnosis import CLASSES, diagnose
from toyld.diagnosis.advice import PROBE
from toyld.diagnosis.knobs import KNOBS, self_limiting
from toyld.objectives.batch import pair_batch
from toyld.trajectory import trajectory

MOVES = {  # change of chosen, argmax, rejected over a run
    "squeezing": (-5.0, 20.0, -60.0),
    "displacement": (-25.0, 0.0, -60.0),
    "divergence": (-40.0, -30.0, -60.0),
    "healthy": (10.0, 5.0, -60.0),
    "rejection": (0.0, 0.0, -60.0),
    "sft-normal": (50.0, 17.0, 5.0),
    "not-learning": (0.0, 0.0, 0.0),
    "wrong-reference": (-5.0, 20.0, -60.0),
    "cannot-tell": (-5.0, 20.0, -60.0),
}


def table(kind, *, path=None, n=24, attrs=None, **options):
    """A run of a class, moving in straight lines; `path`: chosen's move at each evaluation, a fraction of MOVES."""
    path = np.linspace(0.0, 1.0, 11) if path is None else np.asarray(path)
    paths = np.stack([path, *(np.linspace(0.0, 1.0, len(path)),) * 2])
    rng = np.random.default_rng(7)
    start = np.array([-150.0, -60.0, -120.0])[:, None] * rng.uniform(0.8, 1.2, n)
    moved = np.asarray(MOVES[kind])[:, None, None] * paths[:, :, None] * rng.uniform(0.8, 1.2, (3, 1, n))
    chosen, argmax, rejected = start[:, None] + moved
    values = {"logp": np.stack([chosen, rejected], 1)[None], "argmax_logp": np.stack([argmax, rejected], 1)[None]}
    values["argmax_logp"][:, :, 1] = np.nan
    if kind == "cannot-tell":
        del values["argmax_logp"]
    if kind == "wrong-reference":
        values["ref_logp"] = values["logp"][:, :1].repeat(len(path), 1) - 20.0
    names = [f"e{i}" for i in range(n)]
    values |= {name: np.asarray(a)[None] for name, a in options.pop("by_step", {}).items()}
    return trajectory(values, step=100 * np.arange(len(path)), probe=["chosen", "rejected"], example=names,
                      attrs=attrs, **options)  # fmt: skip


@pytest.mark.parametrize("kind", MOVES)
def test_every_class_has_its_advice_and_what_is_well_has_none(kind):
    found = diagnose(table(kind))
    assert found.verdict == kind
    assert bool(found.advice) == (kind not in ("healthy", "sft-normal"))
    for item in found.advice:
        assert set(item) == {"knob", "change", "evidence"}
        assert re.match(r"(this run|closed form \(|published|users' reports)", item["evidence"]), item
        assert item["change"].endswith(".")
        assert not re.search(r"[{}]", item["change"]), "a brace that nobody filled in"


def test_the_moves_cover_every_class_and_the_knobs_name_only_classes():
    assert set(MOVES) == set(CLASSES)
    assert {name for knob in KNOBS for name in knob.verdicts} <= set(CLASSES)


def test_every_claim_named_exists_and_is_expected_to_hold():
    known = claims.every()
    chapters = "|".join(claims.CHAPTERS)
    for knob in KNOBS:
        named = set(re.findall(rf"\b(?:{chapters})\.[a-z0-9-]+", f"{knob.change} {knob.evidence}"))
        assert named == set(knob.claims), "claims are cited in full, and nothing but claims looks like one"
        for id in knob.claims:
            assert known[id].expect == "holds", id
        assert bool(knob.closed_form) == bool(knob.claims), knob.knob


def fields(package, *path):
    """Annotated names of every class in a module of an installed package, read without importing it."""
    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(f"needs {package}, of the extra llm")
    source = Path(found.submodule_search_locations[0]).joinpath(*path).read_text()
    return source, {n.target.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.AnnAssign)
                    and isinstance(n.target, ast.Name)}  # fmt: skip


def test_every_setting_named_is_one_of_trl():
    _, dpo = fields("trl", "trainer", "dpo_config.py")
    trainer, _ = fields("trl", "trainer", "dpo_trainer.py")
    _, arguments = fields("transformers", "training_args.py")
    advice = [item["change"] for kind in MOVES for item in diagnose(table(kind, has_step0=False)).advice]
    text = " ".join([*advice, *(knob.change for knob in KNOBS)])
    settings = set(re.findall(r"\b([a-z]+(?:_[a-z0-9]+)*)=", text)) | set(re.findall(r"\b[a-z0-9]+_[a-z_]+\b", text))
    settings -= {"requires_grad", "bco_pair", "apo_zero", "rpo_alpha", "ref_model", "eval_dataset"}
    assert {"learning_rate", "loss_weights", "eval_on_start", "max_grad_norm", "max_length"} <= settings
    assert not settings - dpo - arguments
    assert "rpo_alpha" not in dpo
    for loss in ("sigmoid", "sft", *self_limiting()):
        assert f'"{loss}"' in trainer
    assert "ref_model" in trainer


def test_self_limiting_losses_let_go_of_what_has_fallen_and_the_sigmoid_does_not():
    def push(name, fall):  # both answers have fallen alike: the margin is 0
        levels = [np.array([x]) for x in (-10.0 - fall, -10.0 - fall, -10.0, -10.0)]
        return float(objectives.get(f"trl.{name}").push(pair_batch(*levels)).rejected[0, 0])

    assert self_limiting() == ("bco_pair", "apo_zero")
    for name in self_limiting():
        assert push(name, 0.0) < 0
        assert abs(push(name, 200.0)) < 1e-6 * abs(push(name, 0.0)), name
    assert push("sigmoid", 200.0) == push("sigmoid", 0.0) < 0


def test_advice_is_ranked_by_evidence_with_the_run_itself_first():
    path = [0, -1, -2, -3, -2, -1, 0, 0.5, 0.7, 0.9, 1.0]  # chosen rises by 15 and ends 5 below its start
    items = diagnose(table("squeezing", path=path)).advice
    assert items[0]["evidence"].startswith("this run: ")
    order = [knob for knob in sorted(KNOBS, key=lambda k: k.rank) if "squeezing" in knob.verdicts]
    assert [item["knob"] for item in items[1:]] == [knob.knob for knob in order]
    both, proved, reports = (
        next(k.rank for k in KNOBS if k.knob == name and wanted(k))
        for name, wanted in (
            ("sft term", lambda k: k.published and k.closed_form),
            ("beta", lambda k: k.closed_form and not k.published),
            ("template", lambda k: not k.closed_form and not k.published),
        )
    )
    assert 0 < both < proved < reports
    assert next(k for k in KNOBS if k.weak).rank > proved, "mixed evidence counts less"


def test_stop_names_the_evaluation_where_chosen_was_highest_with_its_numbers():
    path = [0, -1, -2, -3, -2, -1, 0, 0.5, 0.7, 0.9, 1.0]
    run = table("squeezing", path=path)
    stop = diagnose(run).advice[0]
    chosen = run.logp.sel(probe="chosen").mean("example").values[0]
    assert (stop["knob"], int(np.argmax(chosen))) == ("steps", 3)
    assert "Stop after 300 updates" in stop["change"]
    assert f"{chosen[3] - chosen[0]:+.1f} nats since the start" in stop["evidence"]
    lost = float(re.search(r"lost ([\d.]+) nats", stop["evidence"])[1])
    assert lost == pytest.approx(chosen[3] - chosen[-1], abs=1.0)  # cross-fitted, so not to the digit


def test_nobody_is_sent_back_to_a_start_from_which_chosen_only_fell():
    assert "Stop" not in " ".join(item["change"] for item in diagnose(table("displacement")).advice)


def test_stop_at_the_last_good_evaluation_where_chosen_never_peaked():
    up, late = [0, -1, -2, -3, -4, -5], [-5.0] * 6
    run = table("squeezing", path=up + late)
    top = run.argmax_logp.values
    top[0, :6, 0] = top[0, 0, 0] + np.linspace(0.0, 2.0, 6)[:, None]  # first behind chosen, then ahead of it
    top[0, 6:, 0] = top[0, 0, 0] + np.linspace(40.0, 45.0, 6)[:, None]
    found = diagnose(run)
    assert found.verdict == "squeezing"
    assert "Stop after 500 updates" in found.advice[0]["change"]
    assert "no evaluation from 600 updates on reads well" in found.advice[0]["evidence"]


@pytest.mark.parametrize("objective", ["sft", '{"name": "trl.sft"}'])
def test_without_a_push_on_rejected_nobody_is_told_to_soften_it(objective):
    knobs = {item["knob"] for item in diagnose(table("squeezing", attrs={"objective": objective})).advice}
    assert knobs
    assert not knobs & {"loss", "beta", "extended SFT", "gate", "optimiser"}


def test_with_rejected_risen_nobody_is_told_to_soften_the_push_on_it(monkeypatch):
    monkeypatch.setitem(MOVES, "squeezing", (-5.0, 20.0, 30.0))
    knobs = {item["knob"] for item in diagnose(table("squeezing")).advice}
    assert "lr" in knobs
    assert not knobs & {"loss", "beta", "extended SFT", "gate", "optimiser"}


def test_what_the_run_has_already_is_not_advised_and_its_numbers_are_named():
    settings = {"name": "trl.bco_pair", "parameters": {"beta": 0.25}}
    rate = {"lr": np.linspace(5e-6, 0.0, 11)}
    items = {i["knob"]: i for i in diagnose(table("squeezing", attrs={"objective": settings}, by_step=rate)).advice}
    assert "loss" not in items
    assert "(this run's: 0.25)" in items["beta"]["change"]
    assert "(this run's highest: 5e-06)" in items["lr"]["change"]


def test_cannot_tell_names_the_one_command_that_measures_what_is_missing():
    items = diagnose(table("cannot-tell")).advice
    assert items[0]["knob"] == "probe"
    assert f'pip install -e ".[llm]" (in the clone), then {PROBE} && toyld diagnose RUN' in items[0]["change"]
    assert "the model before training goes first" in items[0]["change"]
    before, *others = PROBE.removeprefix("toyld probe --models ").partition(" --data ")[0].split()
    assert (before, len(others)) == ("MODEL_BEFORE_TRAINING", 2)
    assert "argmax" in items[0]["evidence"]
    assert not any("eval_on_start" in item["change"] for item in items)
    late = diagnose(table("cannot-tell", has_step0=False)).advice
    assert any("eval_on_start=True" in item["change"] for item in late)
    known = diagnose(table("cannot-tell", attrs={"noise_floor": 0.0})).advice
    assert "noise floor" in {item["knob"] for item in items} - {item["knob"] for item in known}
    others = diagnose(table("cannot-tell", world="published")).advice
    assert "noise floor" not in {item["knob"] for item in others}, "who did not score cannot score again"


def test_one_evaluation_needs_another_and_no_probe():
    items = diagnose(table("squeezing", path=[0.0])).advice
    assert items[0]["knob"] == "eval_steps"
    assert not any(item["knob"] == "probe" for item in items)


def test_what_hardly_matters_at_equal_margin_says_so():
    """Over nine pairs of β and η the figure's change of chosen moves far less at equal margin than at equal updates."""
    for kind in ("squeezing", "displacement"):
        items = diagnose(table(kind)).advice
        for name in ("lr", "beta"):
            said = [item["evidence"] for item in items if item["knob"] == name]
            assert said, (kind, name)
            assert all("at equal margin it changes little (figure when_dpo_squeezes, C)" in text for text in said)
        (centring,) = (item["evidence"] for item in items if item["knob"] == "centring")
        assert "centring.spares-chosen" in centring
        assert "undecided on real text" in centring
    file = Path(__file__).parents[1] / "figures/when_dpo_squeezes.csv"
    rows = [r for r in csv.DictReader(file.read_text(encoding="utf-8").splitlines()) if r["panel"] == "B"]
    for common in {row["common"] for row in rows if float(row["common"]) >= 0.2}:
        spread = [
            np.ptp([float(r["value"]) for r in rows if (r["name"], r["common"]) == (name, common)])
            for name in ("at_d_chosen", "d_chosen")
        ]
        assert spread[0] < 0.2 * spread[1], common
