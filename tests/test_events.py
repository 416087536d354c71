"""Shapes, turning points and warnings: known curves come back, noise is not called a peak, nothing looks ahead."""

import json
from dataclasses import replace

import numpy as np
import pytest

from toyld.diagnosis import DEFAULT, diagnose, events, moves
from toyld.diagnosis.curves import curves
from toyld.diagnosis.events import SHAPES, collapse_at, early_warning, lead, turning_points
from toyld.trajectory import read, trajectory

T, N = 25, 200
FAST = replace(DEFAULT, resamples=300)
TIME = np.linspace(0, 1, T)


def make(moves, *, start=-150.0, names=None, **kwargs):
    """A run whose probes change as `moves`: probe or argmax -> [step, example], nats."""
    arrays = {p: np.asarray(m, float) for p, m in moves.items() if p != "argmax"}
    values = {"logp": start + np.stack(list(arrays.values()), axis=1)[None]}
    if "argmax" in moves:
        top = np.full_like(values["logp"], np.nan)
        top[:, :, list(arrays).index("chosen")] = start / 3 + moves["argmax"]
        values["argmax_logp"] = top
    steps, n = next(iter(arrays.values())).shape
    names = names or (["mean"] if n == 1 else [f"x{i}" for i in range(n)])
    return trajectory(values, step=np.arange(steps) * 100, probe=list(arrays), example=names, **kwargs)


def spread(mean, seed, *, deviation=8.0, jitter=0.0, n=N):
    """Examples around a mean curve [step]: a random walk for each, and a common shake of every evaluation."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(len(mean), n)).cumsum(0) * deviation / len(mean) ** 0.5
    walk[0] = 0
    shake = rng.normal(size=len(mean)) * jitter
    return np.asarray(mean)[:, None] + walk + (shake - shake[0])[:, None]


def turns(mean, seed=0, **kwargs):
    return turning_points(curves(make({"chosen": spread(mean, seed, **kwargs)})))["chosen"]


KNOWN = {
    "rises": 30 * TIME,
    "falls": -30 * TIME,
    "bell": 60 * TIME * (1 - TIME) - 5 * TIME,
    "valley": -60 * TIME * (1 - TIME) + 5 * TIME,
    "flat": 0 * TIME,
}


@pytest.mark.parametrize("shape", KNOWN)
def test_known_shapes_are_recognised(shape):
    """Ten seeds of each; the noise of a mean is 8/√200 = .6 nats at the end, floors 1.5."""
    found = [turns(KNOWN[shape], seed, deviation=3.0 if shape == "flat" else 8.0)["shape"] for seed in range(10)]
    assert found == [shape] * 10


def test_the_turning_point_is_where_it_is():
    found = turns(KNOWN["bell"], 1)
    best = KNOWN["bell"].argmax()
    assert abs(found["peak"]["step"] / 100 - best) <= 3
    assert found["peak"]["interior"] is True
    assert found["peak"]["value"] == pytest.approx(-150 + KNOWN["bell"].max(), abs=2.5)
    assert found["trough"]["interior"] is False
    assert found["start"] == {"step": 0, "value": -150.0}
    assert found["bell"] is True
    assert found["valley"] is False


def test_a_bell_is_a_bell_although_it_ends_far_above_or_below_its_start():
    up, down = (40 * TIME - 12 * TIME**8, 20 * TIME * (1 - TIME) - 30 * TIME**6)
    assert turns(up, 2, deviation=4.0)["shape"] == "bell"
    assert turns(down, 2, deviation=4.0)["shape"] == "bell"


def test_the_larger_excursion_gives_the_shape_of_a_wave():
    wave = 20 * np.sin(2 * np.pi * TIME)
    assert turns(wave * (1.5 - TIME), 3)["shape"] == "bell"
    assert turns(-wave * (1.5 - TIME), 3)["shape"] == "valley"


def naive(x, thresholds):
    """A peak picked and judged on the same examples."""
    mean = x.mean(1)
    best = int(mean.argmax())
    error = 1.96 * np.array([(x[best] - x[0]).std(), (x[best] - x[-1]).std()]) / x.shape[1] ** 0.5
    return bool(((mean[best] - mean[[0, -1]]) > error).all())


def test_noise_of_examples_is_not_called_a_peak():
    """Flat means, each value with noise of its own, floors set to 0: cross-fitting keeps what naive picking loses."""
    bare = replace(DEFAULT, material=0.0, difference=0.0, resamples=400)
    runs, fooled, false = 80, 0, 0
    for seed in range(runs):
        noise = np.random.default_rng(seed).normal(size=(300, 40)) * 5
        found = turning_points(curves(make({"chosen": noise})), thresholds=bare)["chosen"]
        false += found["bell"] is True
        fooled += naive(noise, bare)
    # each of two one-sided tests errs in 2.5 %, and a bell needs both
    assert false / runs < 0.025 + 4 * (0.025 * 0.975 / runs) ** 0.5
    assert fooled / runs > 0.2, "teeth: picked and judged on the same noise, flat curves have peaks"


def test_jitter_common_to_all_examples_is_not_called_a_peak(monkeypatch):
    """The largest of many shaken evaluations: with the quantile of one, flat curves have peaks or troughs."""
    bare = replace(DEFAULT, material=0.0, resamples=100)

    def alarms():
        found = (
            turning_points(
                curves(make({"chosen": spread(np.zeros(60), seed, deviation=0.1, jitter=4.0, n=20)})), thresholds=bare
            )["chosen"]
            for seed in range(60)
        )
        return sum(bool(f["bell"] or f["valley"]) for f in found)

    guarded = alarms()
    monkeypatch.setattr(events, "_of_many", lambda m, thresholds: 1.0)
    assert guarded <= 6
    assert alarms() > 2 * guarded


def test_the_interval_of_the_end_covers():
    runs, hits = 100, 0
    for seed in range(runs):
        found = turns([0.0, 5.0, 3.0], seed, n=80)
        hits += found["low"] <= 3.0 <= found["high"]
    assert abs(hits / runs - 0.945) < 4 * (0.05 * 0.95 / runs) ** 0.5


def test_means_alone_leave_a_bell_open():
    for name, shape in (("rises", "rises"), ("falls", "falls"), ("bell", "unclear"), ("flat", "flat")):
        found = turning_points(curves(make({"chosen": KNOWN[name][:, None]})))["chosen"]
        assert found["shape"] == shape
        assert (found["bell"], found["valley"], found["low"], found["high"]) == (None,) * 4


def test_every_probe_and_the_argmax_path_are_read():
    moves = {"chosen": spread(KNOWN["bell"], 0), "irr_hum": spread(KNOWN["falls"], 1), "argmax": spread(10 * TIME, 2)}
    found = turning_points(curves(make(moves)))
    assert {name: f["shape"] for name, f in found.items()} == {
        "chosen": "bell",
        "irr_hum": "falls",
        "argmax_logp": "rises",
    }
    json.dumps(found, allow_nan=False)


def test_holes_and_shortness_are_survived():
    x = spread(KNOWN["bell"], 4)
    x[:, ::7], x[3], x[10, :50] = np.nan, np.nan, np.nan
    late = spread(KNOWN["falls"], 5)
    late[0] = np.nan
    once = np.full((T, N), np.nan)
    once[2] = 0.0
    found = turning_points(curves(make({"chosen": spread(KNOWN["flat"], 6), "a": x, "b": late, "c": once})))
    assert (found["a"]["shape"], found["b"]["shape"], found["c"]["shape"]) == ("bell", "falls", "unclear")
    assert found["b"]["start"]["step"] == 100
    assert found["c"]["d"] is None
    json.dumps(found, allow_nan=False)
    for n in (1, 2, 3):
        short = turning_points(curves(make({"chosen": spread([0.0, 3.0], 0, n=n)})))["chosen"]
        assert short["shape"] in SHAPES
        assert short["bell"] is None


# --- warnings --------------------------------------------------------------------------------------------------------


def squeezed(seed, *, onset=8, jitter=0.6, n=60, steps=30):
    """Nothing happens, then chosen falls and argmax rises; every evaluation is shaken."""
    t = np.maximum(0, np.arange(steps) - onset)
    return {
        "chosen": spread(-2.0 * t, seed, deviation=3.0, jitter=jitter, n=n),
        "rejected": spread(-4.0 * t, seed + 1, deviation=3.0, jitter=jitter, n=n),
        "argmax": np.minimum(48.0, spread(1.5 * t, seed + 2, deviation=2.0, jitter=jitter / 2, n=n)),
    }


def classes(ds):
    """The class at each evaluation."""
    return [entry["verdict"] for entry in diagnose(ds, thresholds=FAST).history]


def warn(ds, **options):
    """The warning, as the verdict asks for it."""
    return early_warning(curves(ds), classes(ds), thresholds=FAST, **options)


def check_causal(ds):
    """A warning of the whole run is that of every beginning that reaches it, and shorter ones have none."""
    whole = warn(ds)
    fires = None if whole is None else whole["evaluation"]
    for stop in range(1, ds.sizes["step"] + 1):
        part = warn(ds.isel(step=slice(0, stop)))
        seen = None if part is None else part["evaluation"]
        expected = fires if fires is not None and stop > fires else None
        assert seen == expected, f"with {stop} evaluations: {seen}, with all of them: {fires}"
        if expected is not None:
            assert (part["step"], part["class"]) == (whole["step"], whole["class"])
    return fires


@pytest.mark.parametrize("seed", range(3))
def test_warnings_do_not_look_ahead(seed):
    fires = check_causal(make(squeezed(seed, steps=18)))
    assert fires is not None
    assert 8 < fires < 15


def test_a_floor_from_the_whole_run_would_look_ahead(monkeypatch):
    """Teeth: a run that is calm, squeezes, and shakes afterwards; with hindsight its floor hides the warning."""
    changes = squeezed(0, jitter=0.0, onset=4, steps=16, n=30)
    shake = np.where(np.arange(16) > 10, 30.0 * (-1.0) ** np.arange(16), 0.0)[:, None]
    ds = make({name: m + shake * (name != "argmax") for name, m in changes.items()})
    assert check_causal(ds) is not None
    real = moves.running_jitter
    monkeypatch.setattr(moves, "running_jitter", lambda x, **k: np.full(len(x), 40 * real(x, **k)[-1]))
    with pytest.raises(AssertionError, match="with all of them"):
        check_causal(ds)


def test_the_authors_runs_warn_without_looking_ahead(data):
    runs = [read(path) for path in sorted((data / "runs" / "authors").iterdir())]
    fires = [check_causal(ds[["logp", "argmax_logp"]].isel(step=slice(0, 14))) for ds in runs if "argmax_logp" in ds]
    assert len(fires) == 4
    assert sum(f is not None for f in fires) == 2, "two of the four read squeezing at their end, and they warn"


def test_history_is_what_every_beginning_of_the_run_would_have_read():
    for changes in (squeezed(0), {"chosen": spread(30 * TIME, 0), "argmax": spread(9 * TIME, 1)}):
        ds = make(changes)
        early = [classes(ds.isel(step=slice(0, stop)))[-1] for stop in range(2, ds.sizes["step"] + 1)]
        assert early == classes(ds)[1:]


def test_one_evaluation_is_no_warning():
    c = curves(make({"chosen": np.zeros((7, 40)), "argmax": np.zeros((7, 40))}))

    def found(*alarms):
        return early_warning(c, ["squeezing" if t in alarms else "not-learning" for t in range(7)])

    assert found(2) is None
    assert found(2, 4, 6) is None, "three, but never in a row"
    warning = found(2, 4, 5)
    assert (warning["evaluation"], warning["step"], warning["class"]) == (5, 500, "squeezing")


def test_divergence_warns_and_displacement_does_not():
    fall = spread(-40 * TIME, 0)
    found = warn(make({"chosen": fall, "argmax": fall / 2}))
    assert found["class"] == "divergence"
    assert warn(make({"chosen": fall, "argmax": fall / 20})) is None


def test_a_healthy_run_gives_no_warning():
    moves = {"chosen": 40 * TIME, "rejected": -9 * TIME, "argmax": 9 * TIME}
    for seed in range(5):
        assert warn(make({name: spread(mean, seed) for name, mean in moves.items()})) is None


def test_warnings_come_before_the_collapse():
    """Two fifths of the examples squeeze, so that half never do; the argmax path has lost 25 of 50 nats at t = 16."""
    t, two_fifths = np.maximum(0.0, np.arange(30) - 5), np.arange(60) < 24
    ds = make(
        {
            "chosen": spread(0 * t, 0, n=60, deviation=1.0) + t[:, None] * np.where(two_fifths, -4.0, 0.3),
            "argmax": spread(0 * t, 1, n=60, deviation=0.5) + t[:, None] * np.where(two_fifths, 1.9, 1.4),
        }
    )
    found = diagnose(ds, thresholds=FAST).warning
    assert found == warn(ds)
    assert found["class"] == "squeezing"
    assert found["collapse_step"] == 100 * (5 + 16)
    assert 100 * 6 <= found["step"] <= 100 * 9
    assert found["lead_steps"] == found["collapse_step"] - found["step"]
    assert found["lead_evaluations"] == found["lead_steps"] // 100
    assert "the argmax path has lost 50% of its surprise" in found["text"]


def test_a_collapse_is_half_of_the_surprise():
    half = make({"chosen": np.array([[0.0], [-5.0], [-9.0]]), "argmax": np.array([[0.0], [24.9], [25.0]])})
    assert collapse_at(curves(half)) == 2
    assert collapse_at(curves(half.isel(step=slice(0, 2)))) is None


def test_memorising_is_no_collapse():
    """Chosen rises by 140 of its 150 nats, the argmax path by 42 of its 50: it lost its surprise to chosen."""
    ds = make({"chosen": spread(140 * TIME, 0, deviation=0.5), "argmax": spread(42 * TIME, 1, deviation=0.5)})
    assert collapse_at(curves(ds)) is None
    assert warn(ds) is None


def test_a_collapse_without_a_warning_says_so():
    found = warn(make({"chosen": np.array([[0.0], [-20.0]]), "argmax": np.array([[0.0], [30.0]])}))
    assert (found["step"], found["collapse_step"], found["lead_evaluations"]) == (None, 100, None)
    assert found["text"].startswith("no warning before")


def test_a_collapse_seen_in_samples_gives_the_lead():
    ds = make(squeezed(4))
    found = warn(ds, collapse_step=2450)
    assert found["collapse_step"] == 2450
    assert found["lead_steps"] == 2450 - found["step"]
    assert found["lead_evaluations"] == 25 - found["evaluation"]
    late = warn(ds, collapse_step=0)
    assert late["lead_evaluations"] == -found["evaluation"]
    assert "after the collapse at step 0" in late["text"]


def test_lead_counts_evaluations_and_steps():
    steps = [0, 10, 30, 60]
    assert lead(10, 60, steps) == {"lead_evaluations": 2, "lead_steps": 50}
    assert lead(10, 31, steps) == {"lead_evaluations": 2, "lead_steps": 21}
    assert lead(30, 10, steps) == {"lead_evaluations": -1, "lead_steps": -20}


def test_without_argmax_there_is_no_warning():
    assert warn(make({"chosen": spread(-30 * TIME, 0)})) is None
