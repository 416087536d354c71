"""Matched controls: known effects come back, what is not matched is refused or said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from toyld.checked import TrajectoryError
from toyld.diagnosis import DEFAULT
from toyld.diagnosis.control import control_effects
from toyld.diagnosis.resample import holm
from toyld.trajectory import trajectory

N = 120


def make(moves, *, step=(0, 100, 200), seeds=1, names=None, argmax=None, start=None, **kwargs):
    """A run: probe -> changes [step, example] or [seed, step, example], from one common start."""
    arrays = {p: np.broadcast_to(m, (seeds, len(step), np.shape(m)[-1])) for p, m in moves.items()}
    n = next(iter(arrays.values())).shape[-1]
    base = np.linspace(-180, -120, n) if start is None else start
    values = {"logp": np.stack([base + m for m in arrays.values()], axis=2)}
    if argmax is not None:
        top = np.full_like(values["logp"], np.nan)
        top[:, :, list(arrays).index("chosen")] = base / 3 + argmax
        values["argmax_logp"] = top
    names = [f"x{i}" for i in range(n)] if names is None else names
    return trajectory(values, step=list(step), probe=list(arrays), example=names, seed=range(seeds), **kwargs)


def growth(end, spread, seed, steps=3, n=N):
    """Changes that grow in a line to `end` plus a normal deviate for each example."""
    at_end = end + spread * np.random.default_rng(seed).normal(size=n)
    return np.linspace(0, 1, steps)[:, None] * at_end


def test_a_known_effect_comes_back_paired():
    """Both runs share their examples' large deviates; the treatment adds 4 nats: only pairing sees them."""
    shared = growth(-10.0, 40.0, seed=0)
    found = control_effects(make({"chosen": shared + growth(4.0, 1.0, seed=1)}), make({"chosen": shared}))
    effect = found["effects"]["chosen"]
    assert effect["low"] < 4.0 < effect["high"]
    assert effect["high"] - effect["low"] < 1.0
    assert effect["direction"] == "up"
    assert effect["n"] == N
    assert effect["p"] == pytest.approx(stats.ttest_1samp(growth(4.0, 1.0, seed=1)[-1], 0.0).pvalue, rel=1e-6, abs=0)
    np.testing.assert_allclose(effect["series"], [0, effect["effect"] / 2, effect["effect"]], atol=2e-6)
    # teeth: with the pairing destroyed the same numbers say nothing
    order = np.random.default_rng(2).permutation(N)
    loose = control_effects(
        make({"chosen": shared + growth(4.0, 1.0, seed=1)}, start=np.full(N, -150.0)),
        make({"chosen": shared[:, order]}, start=np.full(N, -150.0)),
    )["effects"]["chosen"]
    assert loose["high"] - loose["low"] > 10


def test_examples_are_matched_by_name_whatever_their_order():
    run, control = make({"chosen": growth(5, 9, seed=3)}), make({"chosen": growth(0, 9, seed=4)})
    order = np.random.default_rng(5).permutation(N)
    once, again = control_effects(run, control), control_effects(run, control.isel(example=order))
    assert once["effects"] == again["effects"]


def test_only_shared_examples_count():
    run = make({"chosen": growth(5, 9, seed=3)})
    control = make({"chosen": growth(0, 9, seed=4)}).isel(example=slice(0, 50))
    assert control_effects(run, control)["effects"]["chosen"]["n"] == 50


def test_swapping_run_and_control_changes_the_sign():
    run, control = make({"chosen": growth(5, 9, seed=3)}), make({"chosen": growth(0, 9, seed=4)})
    one, two = (control_effects(*pair)["effects"]["chosen"] for pair in ((run, control), (control, run)))
    assert one["effect"] == -two["effect"]
    assert (one["low"], one["high"]) == pytest.approx((-two["high"], -two["low"]), abs=2e-6)
    assert one["p"] == pytest.approx(two["p"])


def test_every_probe_and_the_gap_are_compared_and_corrected_together():
    moves = {"chosen": growth(-8, 2, seed=6), "rejected": growth(0, 2, seed=7), "irr_test": growth(0.02, 2, seed=8)}
    run = make(moves, argmax=growth(6, 1, seed=9))
    control = make({p: growth(0, 2, seed=10) for p in moves}, argmax=growth(0, 1, seed=11))
    effects = control_effects(run, control)["effects"]
    assert set(effects) == {"chosen", "rejected", "irr_test", "argmax", "gap"}
    gap, top, chosen = (effects[name] for name in ("gap", "argmax", "chosen"))
    assert gap["effect"] == pytest.approx(top["effect"] - chosen["effect"], abs=2e-6)
    assert (chosen["direction"], top["direction"], gap["direction"]) == ("down", "up", "up")
    p = np.array([e["p"] for e in effects.values()])
    np.testing.assert_allclose([e["p_holm"] for e in effects.values()], holm(p))
    assert effects["irr_test"]["direction"] == "none"


def test_runs_that_do_not_differ_are_rarely_called_different():
    """Twelve probes of equal expectation, 60 comparisons: a false alarm in one family of twenty at most."""
    runs, alarms, uncorrected = 60, 0, 0
    for i in range(runs):
        rng = np.random.default_rng(100 + i)
        pair = [make({f"p{k}": rng.normal(size=(2, 20)) for k in range(12)}, step=(0, 1)) for _ in range(2)]
        effects = control_effects(*pair, thresholds=replace(DEFAULT, resamples=10))["effects"].values()
        alarms += min(e["p_holm"] for e in effects) <= 0.05
        uncorrected += min(e["p"] for e in effects) <= 0.05
    assert alarms / runs < 0.05 + 4 * (0.05 * 0.95 / runs) ** 0.5
    assert uncorrected / runs > 0.2, "teeth: one of twelve uncorrected tests is below 5 % in 46 % of families"


def test_several_seeds_are_averaged_before_examples_are_compared():
    rng = np.random.default_rng(12)
    noise = rng.normal(size=(3, 1, N)) * np.array([0.0, 0.5, 1.0])[None, :, None]
    run, control = make({"chosen": growth(5, 1, seed=13) + noise}, seeds=3), make({"chosen": 0 * noise}, seeds=3)
    found = control_effects(run, control)
    assert found["n_seeds"] == 3
    expected = (growth(5, 1, seed=13) + noise)[:, -1].mean()
    assert found["effects"]["chosen"]["effect"] == pytest.approx(expected, abs=1e-6)
    assert found["effects"]["chosen"]["n"] == N


# --- matching --------------------------------------------------------------------------------------------------------


def test_only_equal_steps_are_compared():
    """The run is evaluated at 0, 50, 100, the control at 0, 100, 400: the last common step is 100."""
    run = make({"chosen": growth(6, 1, seed=14)}, step=(0, 50, 100))
    control = make({"chosen": growth(-90, 1, seed=15)}, step=(0, 100, 400))
    found = control_effects(run, control)
    assert found["steps"] == [0, 100]
    assert found["effects"]["chosen"]["effect"] == pytest.approx(6 + 45, abs=1)
    assert any("goes on to step 400" in line for line in found["caveats"])


REFUSED = {
    "other steps": (lambda: make({"chosen": growth(0, 1, seed=0)}, step=(0, 7, 9)), "equal steps"),
    "other unit": (lambda: make({"chosen": growth(0, 1, seed=0)}, step_unit="examples"), "counts steps as the run"),
    "other examples": (
        lambda: make({"chosen": growth(0, 1, seed=0)}, names=[f"y{i}" for i in range(N)]),
        "examples that run and control share",
    ),
    "other probes": (lambda: make({"rejected": growth(0, 1, seed=0)}), "measured in run and control"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_matched_is_refused_in_one_line(case):
    control, line = REFUSED[case]
    with pytest.raises(TrajectoryError, match=line) as refusal:
        control_effects(make({"chosen": growth(0, 1, seed=1)}), control())
    assert "\n" not in str(refusal.value)


def test_other_starts_are_reported_and_flagged():
    moves = {"chosen": growth(3, 1, seed=16)}
    found = control_effects(make(moves), make(moves, start=np.linspace(-200, -140, N)))
    assert found["matched_start"] is False
    assert found["start_difference"]["chosen"] == pytest.approx(20)
    assert "starts are not matched: chosen differs by 20 nats" in found["text"]
    assert found["effects"]["chosen"]["effect"] == 0
    assert control_effects(make(moves), make(moves))["matched_start"] is True


def test_a_late_first_evaluation_is_no_matched_start():
    moves = {"chosen": growth(3, 1, seed=16)}
    for late in (make(moves, has_step0=False), make(moves).isel(step=slice(1, None)).assign_attrs(has_step0=0)):
        assert control_effects(make(moves), late)["matched_start"] is False


def test_unequal_numbers_of_examples_seen_are_said():
    moves = {"chosen": growth(3, 1, seed=16)}
    found = control_effects(make(moves, examples_seen=[0, 400, 800]), make(moves, examples_seen=[0, 800, 1600]))
    assert "at step 200 the run has seen 800 examples, the control 1600" in found["caveats"]


def test_an_argmax_of_other_contexts_is_left_out():
    good = {"chosen": growth(3, 1, seed=16)}
    found = control_effects(make(good, argmax=growth(1, 1, seed=1)), make(good, argmax=growth(-140, 1, seed=1)))
    assert set(found["effects"]) == {"chosen"}


# --- jitter, means, files --------------------------------------------------------------------------------------------


def test_an_effect_within_the_runs_jitter_is_no_effect():
    """All examples of an evaluation move together by ±5 nats: sure over examples, but evaluations disagree."""
    steps = tuple(range(12))
    shake = 5.0 * np.random.default_rng(17).normal(size=(12, 1)) * (np.arange(12) > 0)[:, None]
    shake[-1] = 6.0
    run = make({"chosen": shake + np.zeros((12, N))}, step=steps)
    control = make({"chosen": growth(0, 0.1, seed=18, steps=12)}, step=steps)
    effect = control_effects(run, control)["effects"]["chosen"]
    assert effect["p_holm"] < 1e-6
    assert effect["floor"] > 6
    assert effect["direction"] == "none"


def test_means_have_differences_without_intervals():
    run = make({"chosen": np.array([[0.0], [5.0], [9.0]])}, names=["mean"])
    control = make({"chosen": np.array([[0.0], [1.0], [2.0]])}, names=["mean"])
    found = control_effects(run, control)
    effect = found["effects"]["chosen"]
    assert effect["effect"] == 7.0
    assert (effect["low"], effect["p"], effect["p_holm"], effect["direction"]) == (None, None, None, None)
    assert found["means_only"] is True
    assert "without intervals" in found["text"]


def test_a_run_with_examples_meets_a_control_with_means():
    moves = growth(5, 3, seed=19)
    whole, base = make({"chosen": moves}), np.linspace(-180, -120, N).mean()
    means = make({"chosen": np.array([[0.0], [0.0], [0.0]])}, names=["mean"], start=np.array([base]))
    for pair, sign in (((whole, means), 1), ((means, whole), -1)):
        found = control_effects(*pair)
        assert found["means_only"] is True
        assert found["effects"]["chosen"]["effect"] == pytest.approx(sign * moves[-1].mean(), abs=1e-6)


def test_holes_are_left_out_and_all_can_be_written():
    moves = growth(5, 3, seed=20).copy()
    moves[2, :30] = np.nan
    moves[1] = np.nan
    found = control_effects(make({"chosen": moves}), make({"chosen": growth(0, 3, seed=21)}))
    json.dumps(found, allow_nan=False)
    assert found["effects"]["chosen"]["n"] == N - 30
    assert found["effects"]["chosen"]["series"][1] is None
