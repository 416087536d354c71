"""Run claims: a run where each must hold, one where it must be refuted, one of which it says nothing; statistics."""

import doctest
import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toyld import claims, scoreboard
from toyld.checked import BadInput
from toyld.claims import effects, preference, published, rungs
from toyld.claims.effects import DIFFERENCES_A_DEGREE, Curve, Effect, peaked, ranked
from toyld.claims.runs import ALPHA, RunClaim, RunResult, Trial, decide, evaluate_on, summary, try_on
from toyld.diagnosis.resample import jitter, p_value
from toyld.diagnosis.thresholds import DEFAULT
from toyld.trajectory import read_authors, trajectory
from toyld.trajectory.experiments import Experiments

# Those on the paper's stages; the other experiments' have their controls beside their own tests.
RUN_CLAIMS = {
    id: c
    for id, c in claims.every().items()
    if isinstance(c, RunClaim) and c.check.__module__.split(".")[-1] in ("supervised", "preference", "extend_runs")
}
ON_LOGS = {id: c for id, c in RUN_CLAIMS.items() if "published" in c.rungs}
N = 24


FILL = 4  # evaluations for each one given


def filled(curve):
    """Straight lines between the evaluations given, if they are fewer than the jitter needs."""
    given = np.arange(len(curve))
    return np.interp(np.arange(0, len(curve) - 0.9, 1 / FILL), given, curve) if len(curve) < 8 else curve


def table(stage, means, argmax=None, *, arm="unknown", seeds=1, n=N, times=None, names=None, noise=0.05, **attrs):
    """A run whose probes have these mean curves; examples differ in level, and by a little in their changes.

    A curve given by few evaluations is filled in by straight lines: so short a run has no known jitter.
    """
    rng = np.random.default_rng(7)
    means, argmax = {k: filled(curve) for k, curve in means.items()}, None if argmax is None else filled(argmax)
    steps = len(next(iter(means.values())))

    def spread(curve):
        level = rng.normal(0.0, 3.0, (seeds, 1, n))
        return np.asarray(curve, float)[None, :, None] + level + rng.normal(0.0, noise, (seeds, steps, n))

    logp = np.stack([spread(curve) for curve in means.values()], axis=2)
    variables = {"logp": logp}
    if argmax is not None:
        top = np.full_like(logp, np.nan)
        top[:, :, list(means).index("chosen")] = spread(argmax)
        variables["argmax_logp"] = top
    times = list(range(0, 1000 * steps, 1000)) if times is None else times
    return trajectory(
        variables, step=times, examples_seen=times, probe=list(means), seed=range(seeds), stage=stage, arm=arm,
        example=[f"e{i}" for i in range(n)] if names is None else names, attrs=attrs,
    )  # fmt: skip


UP, DOWN, FLAT = [-90.0, -85.0, -80.0, -75.0], [-90.0, -95.0, -100.0, -105.0], [-90.0] * 4
BELL, FAR = [-90.0, -80.0, -82.0, -95.0], [-90.0, -110.0, -130.0, -150.0]
TOP_UP, TOP_DOWN = [-50.0, -45.0, -40.0, -35.0], [-50.0, -52.0, -54.0, -56.0]


SLOW_UP = [-90.0, -88.0, -86.0, -84.0]


def after(updates, passes, *, arm="baseline", seeds=1, argmax=TOP_UP, **means):
    """DPO after SFT of so many updates and passes; the margin grows by 60 nats unless `rejected` says otherwise."""
    attrs = {"sft_updates": updates, "sft_passes": passes, "seeds": seeds}
    return dpo(argmax, arm=arm, attrs=attrs, **{"rejected": FAR, **means})


def sft(argmax=None, **means):
    return table("sft", {"chosen": UP, **means}, argmax)


def dpo(argmax=None, arm="unknown", attrs=None, **means):
    return table("dpo", {"chosen": FLAT, **means}, argmax, arm=arm, **(attrs or {}))


def sft_of(model, **means):
    return table("sft", {"chosen": UP, **means}, model=model)


OBSERVED = ("rejected", "chosen_initial", "irr_test", "irr_hum")
SAME = [-151.98] * 3


def at_the_checkpoint(first, last):
    """Units that mean exactly CHECKPOINT in chosen, and an argmax path from first to last."""
    ds = table("dpo", {"chosen": SAME}, np.linspace(first, last, 3), noise=0.01)
    ds["logp"] = ds.logp * 0 - 151.98
    return ds.assign(argmax_logp=ds.argmax_logp * 0 + np.linspace(first, last, ds.sizes["step"])[None, :, None, None])


# id -> (where it holds, where it is refuted, where it says nothing and a word of the reason)
CASES = {
    "supervised.chosen-rises": (
        [sft()],
        [table("sft", {"chosen": [-90.0, -80.0, -81.0, -70.0]})],
        ([dpo()], "a run of stage dpo"),
    ),
    "supervised.similar-bell": (
        [sft(rejected=BELL, chosen_gptformat=BELL)],
        [sft(rejected=BELL, chosen_gptformat=UP)],
        ([sft(irr_hum=BELL)], "none measured of chosen_initial"),
    ),
    "supervised.other-answers-rise": ([sft(irr_train=UP)], [sft(irr_train=DOWN)], ([sft()], "not measured: irr_train")),
    "supervised.other-answers-rise-early": (
        [sft(irr_train=BELL)],
        [sft(irr_train=DOWN)],
        ([sft()], "not measured: irr_train"),
    ),
    "supervised.chosen-rises-most": (
        [sft(**dict.fromkeys(OBSERVED, DOWN))],
        [sft(**{"rejected": [-90.0, -60.0, -40.0, -30.0], **dict.fromkeys(OBSERVED[1:], DOWN)})],
        ([sft(rejected=DOWN)], "2 response(s) measured, at least 4 needed"),
    ),
    "supervised.untaught-rise-less": (
        [sft(irr_train=UP, irr_test=FLAT)],
        [sft(irr_train=FLAT, irr_test=UP)],
        ([sft(irr_train=UP)], "not measured: irr_test"),
    ),
    "supervised.shuffled-fall": (
        [sft(random_permute=DOWN, random_nonhum=FAR)],
        [sft(random_permute=DOWN, random_nonhum=UP)],
        ([sft()], "none measured of random_permute"),
    ),
    "supervised.argmax-rises-too": ([sft(TOP_UP)], [sft(TOP_DOWN)], ([sft()], "argmax along the chosen contexts")),
    "supervised.extend-lifts-rejected": (
        [table("sft", {"chosen": UP, "rejected": UP}, arm="extend")],
        [table("sft", {"chosen": UP, "rejected": DOWN}, arm="extend")],
        ([sft(rejected=UP)], "its arm is not recorded"),
    ),
    "supervised.trends-everywhere": (
        [sft_of("a", irr_train=UP), sft_of("b", random_permute=DOWN), dpo()],
        [sft_of("a", irr_train=UP), sft_of("b", irr_train=DOWN)],
        ([sft_of("a"), sft_of("a")], "SFT runs of 1 known model"),
    ),
    "supervised.closer-rises-more": (
        [sft(chosen_gptsemantic=SLOW_UP, chosen_gptformat=FLAT)],
        [sft(chosen_gptsemantic=FLAT, chosen_gptformat=SLOW_UP)],
        ([sft(chosen_gptsemantic=UP)], "not measured: chosen_gptformat"),
    ),
    "supervised.form-twin-bell": (
        [sft(chosen_gptformat=BELL)],
        [sft(chosen_gptformat=UP)],
        ([sft(chosen_gptsemantic=BELL)], "not measured: chosen_gptformat"),
    ),
    "supervised.taught-words-outlast": (
        [sft(random_permute=UP, random_nonhum=FLAT)],
        [sft(random_permute=DOWN, random_nonhum=FLAT)],
        ([table("sft", {"random_permute": UP, "random_nonhum": FLAT}, arm="extend")], "its arm is extend"),
    ),
    "supervised.answers-everywhere": (
        [sft_of("a", irr_train=UP, random_permute=UP), sft_of("b", irr_train=UP, irr_test=FLAT), dpo()],
        [sft_of("a", irr_train=UP), sft_of("b", irr_train=SLOW_UP, irr_test=UP)],
        ([sft_of("a"), table("sft", {"chosen": UP}, arm="extend", model="b")], "SFT runs of 1 known model"),
    ),
    "preference.observed-fall": (
        [dpo(**dict.fromkeys(OBSERVED, DOWN))],  # chosen is the one that does not
        [dpo(**dict.fromkeys(OBSERVED, DOWN) | {"irr_test": UP, "rejected": UP})],
        ([dpo(rejected=DOWN)], "2 response(s) measured"),
    ),
    "preference.chosen-outlasts-rephrases": (
        [dpo(chosen_gptsemantic=DOWN, chosen_gptformat=FAR)],
        [dpo(chosen_gptsemantic=UP, chosen_gptformat=FAR)],
        ([dpo()], "none measured of chosen_selfr"),
    ),
    "preference.rejected-leads-rephrases": (
        [dpo(rejected=FAR, reject_gptsemantic=DOWN)],
        [dpo(rejected=DOWN, reject_gptsemantic=FAR)],
        ([dpo(reject_gptformat=DOWN)], "not measured: rejected"),
    ),
    "preference.margin-grows": ([dpo(rejected=DOWN)], [dpo(rejected=UP)], ([dpo()], "not measured: rejected")),
    "preference.argmax-rises": ([dpo(TOP_UP)], [dpo(TOP_DOWN)], ([dpo()], "argmax along the chosen contexts")),
    "preference.argmax-rises-faster-than-sft": (
        [dpo([-50.0, -40.0, -30.0, -20.0]), sft()],
        [dpo([-50.0, -49.0, -48.0, -47.0]), sft()],
        ([dpo(TOP_UP), table("sft", {"chosen": UP}, names=[f"x{i}" for i in range(N)])], "other examples"),
    ),
    "preference.chosen-falls": (
        [table("dpo", {"chosen": DOWN})],
        [table("dpo", {"chosen": UP})],
        ([table("unknown", {"chosen": DOWN})], "its stage is not recorded: state it"),
    ),
    "preference.gap-widens": (
        [table("dpo", {"chosen": DOWN}, TOP_DOWN)],
        [table("dpo", {"chosen": UP}, TOP_DOWN)],
        ([dpo(TOP_UP, arm="on-policy")], "its arm is on-policy; the claim is about baseline"),
    ),
    "preference.longer-sft-squeezes-more": (
        [dpo(TOP_UP, attrs={"sft_examples": 40000}), dpo(TOP_DOWN, attrs={"sft_examples": 10000})],
        [dpo(TOP_DOWN, attrs={"sft_examples": 40000}), dpo(TOP_UP, attrs={"sft_examples": 10000})],
        ([after(10, 10, argmax=TOP_UP), after(20, 20)], "the SFT before it was not the longer one"),
    ),
    "preference.extend-slows-others": (
        [dpo(arm="extend", rejected=FAR, irr_hum=DOWN), dpo(arm="baseline", rejected=DOWN, irr_hum=FAR)],
        [dpo(arm="extend", rejected=DOWN, irr_hum=FAR), dpo(arm="baseline", rejected=FAR, irr_hum=DOWN)],
        ([dpo(arm="extend", rejected=DOWN), dpo(arm="baseline", rejected=FAR)], "no other response measured"),
    ),
    "preference.extend-slows-argmax-early": (
        [dpo([-50.0, -49.0, -30.0, -10.0], arm="extend"), dpo(TOP_UP, arm="baseline")],
        [dpo([-50.0, -30.0, -40.0, -50.0], arm="extend"), dpo(TOP_UP, arm="baseline")],
        ([dpo(TOP_UP, arm="baseline"), dpo(TOP_UP, arm="extend")], "its arm is baseline"),
    ),
    "preference.extend-lowers-total-argmax": (
        [dpo([-50.0, -30.0, -35.0, -45.0], arm="extend"), dpo(TOP_UP, arm="baseline")],
        [dpo([-50.0, -49.0, -30.0, -10.0], arm="extend"), dpo(TOP_UP, arm="baseline")],
        (
            [dpo(TOP_UP, arm="extend", attrs={"model": "a"}), dpo(TOP_UP, arm="baseline", attrs={"model": "b"})],
            "models",
        ),
    ),
    **{
        f"preference.extend-slows-others-at-equal-{clock}": (
            [after(*long, arm="extend", irr_hum=DOWN), after(20, 20, irr_hum=FAR)],
            [after(*long, arm="extend", irr_hum=FAR), after(20, 20, irr_hum=DOWN)],
            (
                [after(*short, arm="extend", irr_hum=DOWN), after(20, 20, irr_hum=FAR)],
                f"not equally long: {why} {clock}",
            ),
        )
        for clock, long, short, why in (
            ("updates", (20, 10), (40, 20), "40 and 20"),
            ("passes", (40, 20), (20, 10), "10 and 20"),
        )
    },
    "preference.extend-slows-others-at-equal-margin": (
        [after(40, 20, arm="extend", seeds=N, irr_hum=DOWN), after(20, 20, seeds=N, irr_hum=FAR)],
        [after(40, 20, arm="extend", seeds=N, irr_hum=FAR), after(20, 20, seeds=N, irr_hum=DOWN)],
        ([after(20, 20, arm="on-policy"), after(20, 20)], "its arm is on-policy; the claim is about extend"),
    ),
    **{
        f"preference.extend-spares-chosen-at-equal-{clock}": (
            [after(*long, arm="extend", chosen=UP), after(20, 20, chosen=FLAT)],
            [after(*long, arm="extend", chosen=DOWN), after(20, 20, chosen=FLAT)],
            ([dpo(TOP_UP, arm="extend", rejected=FAR), after(20, 20)], "how long SFT lasted before is not recorded"),
        )
        for clock, long in (("updates", (20, 10)), ("passes", (40, 20)))
    },
    "preference.extend-spares-chosen-at-equal-margin": (
        [after(40, 20, arm="extend", seeds=N, chosen=UP), after(20, 20, seeds=N, chosen=FLAT)],
        [after(40, 20, arm="extend", seeds=N, chosen=DOWN), after(20, 20, seeds=N, chosen=FLAT)],
        ([after(40, 20, arm="extend"), after(40, 20, arm="extend")], "its arm is extend; the claim is about baseline"),
    ),
    **{
        f"preference.extend-slows-argmax-early-at-equal-{clock}": (
            [after(*long, arm="extend", argmax=[-50.0, -49.0, -30.0, -10.0]), after(20, 20)],
            [after(*long, arm="extend", argmax=[-50.0, -30.0, -40.0, -50.0]), after(20, 20)],
            ([after(*long, arm="extend"), after(30, 30)], "not equally long"),
        )
        for clock, long in (("updates", (20, 10)), ("passes", (40, 20)))
    },
    **{
        f"preference.extend-lowers-total-argmax-at-equal-{clock}": (
            [after(*long, arm="extend", argmax=[-50.0, -30.0, -35.0, -45.0]), after(20, 20)],
            [after(*long, arm="extend", argmax=[-50.0, -49.0, -30.0, -10.0]), after(20, 20)],
            (
                [after(*long, arm="extend", argmax=None), after(20, 20)],
                "not measured: argmax along the chosen contexts",
            ),
        )
        for clock, long in (("updates", (20, 10)), ("passes", (40, 20)))
    },
    "preference.own-answers-spare-chosen": (
        [after(20, 20, arm="on-policy", seeds=N, chosen=UP), after(20, 20, seeds=N)],
        [after(20, 20, arm="on-policy", seeds=N, chosen=DOWN), after(20, 20, seeds=N)],
        ([after(20, 20, arm="on-policy"), after(10, 10)], "not equally long: 20 and 10 updates"),
    ),
    "preference.own-answers-spare-others": (
        [after(20, 20, arm="on-policy", seeds=N, irr_hum=DOWN), after(20, 20, seeds=N, irr_hum=FAR)],
        [after(20, 20, arm="on-policy", seeds=N, irr_hum=FAR), after(20, 20, seeds=N, irr_hum=DOWN)],
        ([after(20, 20), after(20, 20)], "its arm is baseline; the claim is about on-policy"),
    ),
    "preference.own-answers-slow-argmax": (
        [after(20, 20, arm="on-policy", seeds=N, argmax=TOP_DOWN), after(20, 20, seeds=N)],
        [after(20, 20, arm="on-policy", seeds=N), after(20, 20, seeds=N, argmax=TOP_DOWN)],
        ([after(0, 0, arm="on-policy"), after(0, 0)], "not equally long: 0 and 0 updates"),
    ),
    "preference.sampled-negatives-spare-chosen": (
        [after(20, 20, arm="on-policy", chosen=UP), after(20, 20)],
        [after(20, 20, arm="on-policy", chosen=DOWN), after(20, 20)],
        ([after(20, 20, arm="on-policy"), after(10, 10)], "not equally long: 20 and 10 updates"),
    ),
    "preference.sampled-negatives-spare-others": (
        [after(20, 20, arm="on-policy", irr_hum=DOWN), after(20, 20, irr_hum=FAR)],
        [after(20, 20, arm="on-policy", irr_hum=FAR), after(20, 20, irr_hum=DOWN)],
        ([after(20, 20, arm="extend"), after(20, 20)], "its arm is extend; the claim is about on-policy"),
    ),
    "preference.sampled-negatives-slow-argmax": (
        [after(20, 20, arm="on-policy", argmax=TOP_DOWN), after(20, 20)],
        [after(20, 20, arm="on-policy"), after(20, 20, argmax=TOP_DOWN)],
        ([after(20, 20, arm="on-policy", argmax=None), after(20, 20)], "argmax along the chosen contexts"),
    ),
    "preference.argmax-as-published": (
        [at_the_checkpoint(-113.2, -62.8)],
        [at_the_checkpoint(-61.6, -41.2)],
        ([dpo(TOP_UP)], "another model than the one with −113"),
    ),
}


def effect(id, tables):
    one = RUN_CLAIMS[id]
    assert one.premises(*tables) is None, one.premises(*tables)
    return one.check(*tables)


def trial(e):
    """The verdict of one effect that is a family of its own."""
    return decide({"x": [Trial(("r",), e)]})["x"][0].verdict


@pytest.mark.parametrize("name", ["effects", "margins", "runs", "rungs", "tables", "published"])
def test_examples_of_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"toyld.claims.{name}"))
    assert (failed, tried > 0) == (0, True)


def test_every_run_claim_has_its_controls():
    assert set(CASES) == set(RUN_CLAIMS)


@pytest.mark.parametrize("id", CASES)
def test_holds_where_it_must(id):
    e = effect(id, CASES[id][0])
    assert trial(e) == "holds"
    assert 0.0 < e.low <= e.value <= e.high


@pytest.mark.parametrize("id", CASES)
def test_is_refuted_where_it_must_be(id):
    e = effect(id, CASES[id][1])
    assert trial(e) == "refuted"
    assert e.low <= e.value <= e.high < 0.0


@pytest.mark.parametrize("id", CASES)
def test_says_why_it_does_not_apply(id):
    tables, word = CASES[id][2]
    reason = RUN_CLAIMS[id].premises(*tables)
    assert word in (reason or "")
    assert "\n" not in reason
    result = evaluate_on(RUN_CLAIMS[id], {f"r{i}": ds for i, ds in enumerate(tables)})
    assert reason in [t.why for t in result.trials]


@pytest.mark.parametrize("id", CASES)
@pytest.mark.parametrize("where", [0, 1])
def test_the_order_of_examples_changes_nothing(id, where):
    tables = CASES[id][where]
    before = effect(id, tables)
    order = np.random.default_rng(3).permutation(N)
    after = effect(id, [tables[0].isel(example=order), *tables[1:]])  # of one run alone: pairs are matched by name
    for name in ("value", "low", "high", "p", "below"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-9, abs=1e-12), name
    assert after.n == before.n == N


@pytest.mark.parametrize("id", [id for id, c in RUN_CLAIMS.items() if c.takes == "run"])
def test_with_several_seeds_the_seeds_are_the_units(id):
    (ds,) = CASES[id][0]
    shifted = [ds.assign_coords(seed=np.array([s], np.int32)) for s in range(3)]
    import xarray as xr

    several = xr.concat(shifted, "seed", data_vars="minimal", coords="minimal", compat="override", join="exact")
    e = effect(id, [several])
    assert e.n == 3
    assert e.value == pytest.approx(effect(id, [ds]).value)


def test_a_mean_without_its_examples_is_shown_and_gives_no_verdict():
    ds = table("dpo", {"chosen": DOWN}, n=1, names=["mean"])
    (one,) = try_on(RUN_CLAIMS["preference.chosen-falls"], {"r": ds})
    assert one.effect.value == pytest.approx(15.0, abs=0.2)
    assert not one.tested
    assert "no interval" in one.why
    assert summary(decide({"x": [one]})["x"]) == "undecided"
    shown = scoreboard.words("trend", scoreboard.cell(RunResult(RUN_CLAIMS["preference.chosen-falls"], (one,))))
    assert shown == "undecided (means only)"


def test_probes_that_are_missing_or_partly_measured_are_left_out():
    whole = sft(rejected=BELL, chosen_gptformat=BELL)
    fewer = effect("supervised.similar-bell", [sft(rejected=BELL)])
    assert trial(fewer) == "holds"
    holes = whole.copy(deep=True)
    holes.logp[0, :, 1, :5] = np.nan  # five examples of one probe were never measured
    assert effect("supervised.similar-bell", [holes]).n == N - 5
    late = whole.copy(deep=True)
    late.logp[0, 2, 1] = np.nan  # one evaluation without that probe
    assert trial(effect("supervised.similar-bell", [late])) == "holds"


def test_parts_of_chosen_and_paths_are_no_observed_responses():
    means = dict.fromkeys(OBSERVED, DOWN)
    extra = dpo(**means, chosen_half=UP, chosen_quarter=UP, argmax=UP)
    assert effect("preference.observed-fall", [extra]).value == pytest.approx(15.0, abs=0.5)


def test_early_is_the_first_step_and_total_the_whole_run():
    pair = [dpo([-50.0, -49.0, -30.0, -10.0], arm="extend"), dpo(TOP_UP, arm="baseline")]
    assert effect("preference.extend-slows-argmax-early", pair).value == pytest.approx((5.0 - 1.0) / FILL, abs=0.1)
    assert effect("preference.extend-lowers-total-argmax", pair).value == pytest.approx(15.0 - 40.0, abs=0.1)
    others = [dpo(arm="extend", irr_hum=DOWN, chosen_half=FAR), dpo(arm="baseline", irr_hum=FAR, chosen_half=DOWN)]
    assert effect("preference.extend-slows-others", others).value == pytest.approx(60.0 - 15.0, abs=0.1)


def test_an_argmax_of_other_contexts_is_refused():
    reason = RUN_CLAIMS["preference.argmax-rises"].premises(dpo([-95.0, -80.0, -70.0, -60.0]))
    assert "measured along other contexts" in reason


def test_a_log_that_starts_late_is_refused():
    ds = dpo(rejected=DOWN).assign_attrs(has_step0=0)
    assert "after the first update" in RUN_CLAIMS["preference.margin-grows"].premises(ds)


def test_runs_are_compared_at_the_same_number_of_examples():
    slow = table("sft", {"chosen": np.linspace(-90.0, -75.0, 25)}, times=list(range(0, 12_500, 500)))
    # Both rise by 1.25 in 1,000 examples; evaluation by evaluation SFT would seem slower.
    e = effect("preference.argmax-rises-faster-than-sft", [dpo(TOP_UP), slow])
    assert abs(e.value) < 0.2
    apart = table("sft", {"chosen": UP}, times=[0, *range(1, 13)])  # but for the start
    assert "share no two evaluations" in RUN_CLAIMS["preference.argmax-rises-faster-than-sft"].premises(
        dpo(TOP_UP), apart
    )


# -- at equal margin


AT_MARGIN = [id for id in RUN_CLAIMS if id.startswith("preference.extend-") and id.endswith("-at-equal-margin")]


@pytest.mark.parametrize("id", AT_MARGIN)
def test_of_one_seed_the_examples_are_compared_where_their_mean_margin_gets_there(id):
    """The same curves as those of as many seeds with one example each: equal values, and the same verdicts."""
    long = {"arm": "extend", "irr_hum": DOWN, "chosen": UP}
    by_example = effect(id, [after(40, 20, **long), after(20, 20, irr_hum=FAR)])
    by_seed = effect(id, [after(40, 20, seeds=N, **long), after(20, 20, seeds=N, irr_hum=FAR)])
    assert by_example.n == by_seed.n == N
    assert by_example.value == pytest.approx(by_seed.value, rel=0.05)
    assert trial(by_example) == trial(by_seed) == "holds"
    idle = after(20, 20, rejected=FLAT, irr_hum=FAR)
    assert "its margin never grows by 10 nats: by 0." in RUN_CLAIMS[id].premises(after(40, 20, **long), idle)


def paced(rng, pace, jitter):
    """A run whose margin grows by 3 nats an evaluation times a pace, of single examples by 0 to 6; chosen falls by 2.

    Chosen falls alike in all examples: at equal margin its spread is that of the moment when the margin is reached.
    """
    t, n = np.arange(M)[:, None] * pace, N
    rate = rng.normal(3.0, 1.5, (1, n))

    def noise():
        return rng.normal(0.0, 0.3, (M, n)) + rng.normal(0.0, jitter, (M, 1))

    chosen = -90.0 - 2.0 * t + noise()
    rejected = chosen - 10.0 - t * rate + noise()
    logp = np.stack([chosen, rejected], 1)[None]
    return trajectory({"logp": logp}, step=range(M), probe=["chosen", "rejected"], example=[f"e{i}" for i in range(n)])


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_equal_margin_errs_as_rarely_as_stated(jitter):
    """Of two paces along the same way neither falls by more at equal margin; at equal times one does."""
    from toyld.claims.margins import changes_at

    rng, found, naive, n = np.random.default_rng(3), [], [], 200
    for _ in range(n):
        runs = [paced(rng, pace, jitter) for pace in (1.0, 0.7)]
        mine, theirs = (changes_at(ds, 10.0, "chosen") for ds in runs)
        found.append(ranked([mine - theirs]))
        fixed = [x.logp.values[0, -1, 0] - x.logp.values[0, 0, 0] for x in runs]
        naive.append(ranked([fixed[1] - fixed[0]]))
    slack = 3.0 * (0.025 * 0.975 / n) ** 0.5
    assert np.mean([e.p <= 0.025 for e in found]) <= 0.025 + slack
    assert np.mean([e.below <= 0.025 for e in found]) <= 0.025 + slack
    assert abs(np.mean([e.value for e in found])) < 0.2
    assert np.mean([e.p <= 0.025 for e in naive]) > 0.2


# -- the statistics


def normal(rng, *means, n=20):
    return [rng.normal(m, 1.0, n) for m in means]


def test_holm_keeps_the_error_of_a_family_of_nulls():
    """40 null cells, compound ones among them: at most 5 % of families may say holds or refuted anywhere."""
    rng, wrong, naive, families = np.random.default_rng(0), 0, 0, 200
    for _ in range(families):
        effects = [ranked(normal(rng, 0.0)) for _ in range(25)]
        effects += [ranked(normal(rng, 0.0, 5.0), 1) for _ in range(10)]
        effects += [ranked(normal(rng, -5.0, 0.0, 5.0), 2) for _ in range(5)]
        found = decide({str(i): [Trial((str(i),), e)] for i, e in enumerate(effects)})
        wrong += any(ts[0].verdict != "undecided" for ts in found.values())
        naive += any(e.two_sided <= ALPHA for e in effects)
    assert wrong / families <= 0.05 + 3.0 * (0.05 * 0.95 / families) ** 0.5
    assert naive / families > 0.5, "without the correction most families err: the bound above can fail"


def noisy_inside(rng):
    """Ends without noise: every inner evaluation is a test of its own, so the best of ten needs its correction."""
    x = rng.normal(0.0, 1.0, (12, 20))
    x[[0, -1]] = 0.0
    return x


NULLS = {  # statements that are just not true: the true value is 0
    "mean": lambda rng: ranked(normal(rng, 0.0)),
    "every of three": lambda rng: ranked(normal(rng, 0.0, 0.0, 0.0)),
    "every, one at 0": lambda rng: ranked(normal(rng, 0.0, 9.0, 9.0)),
    "all but one, one at 0": lambda rng: ranked(normal(rng, -9.0, 0.0, 9.0, 9.0), 2),
    "all but one, all at 0": lambda rng: ranked(normal(rng, 0.0, 0.0, 0.0, 0.0), 2),
    "flat curve": lambda rng: peaked([rng.normal(0.0, 1.0, (6, 20))]),
    "ten independent inner evaluations": lambda rng: peaked([noisy_inside(rng)]),
    "one inner evaluation below all": lambda rng: peaked(
        [rng.normal(0.0, 1.0, (4, 20)) + np.array([[0], [0], [-9], [0]])]
    ),
    "a rise and then a plateau": lambda rng: peaked([rng.normal(0.0, 1.0, (4, 20)) + np.array([[0], [9], [9], [9]])]),
}


@pytest.mark.parametrize("what", NULLS)
def test_p_values_and_intervals_err_as_rarely_as_stated(what):
    rng, n = np.random.default_rng(1), 400
    effects = [NULLS[what](rng) for _ in range(n)]
    slack = 3.0 * (0.025 * 0.975 / n) ** 0.5
    assert np.mean([e.p <= 0.025 for e in effects]) <= 0.025 + slack
    assert np.mean([e.below <= 0.025 for e in effects]) <= 0.025 + slack
    if "all but" in what or "every" in what or what == "mean":  # of a peak the value is ≥ 0 by the choice of the best
        assert np.mean([e.low <= 0.0 <= e.high for e in effects]) >= 0.95 - 3.0 * (0.05 * 0.95 / n) ** 0.5


def test_a_bell_is_refuted_by_the_better_of_two_ends_at_twice_its_p_value():
    """The opposite may be shown by either end, so that it takes Bonferroni's factor of two."""
    rng = np.random.default_rng(4)
    x = rng.normal(0.0, 1.0, (3, 20)) + np.array([[1.0], [0.0], [0.3]])
    ends = sorted(p_value(end - x[1]) for end in (x[0], x[-1]))
    assert ends[0] < 0.25 * ends[1]
    assert peaked([x]).below == pytest.approx(2.0 * ends[0], rel=1e-12)
    assert peaked([x, x]).below == pytest.approx(4.0 * ends[0], rel=1e-12)  # one of two curves is enough


# -- the jitter that all examples of an evaluation share

PROBES = ("chosen", *OBSERVED, "chosen_gptsemantic", "reject_gptsemantic", "irr_train", "random_permute")
M = 12  # evaluations


def idle(rng, shared, *, stage="dpo", arm="baseline", m=M, seeds=1):
    """A run in which nothing changes but by noise: of single examples, of an evaluation by probe, or of all probes."""

    def noise(probes):
        each = rng.normal(0.0, 0.5, (seeds, m, len(probes), N))
        if shared == "by probe":
            each += rng.normal(0.0, 1.0, (seeds, m, len(probes), 1))
        return each

    both = rng.normal(0.0, 1.0, (seeds, m, 1, 1)) if shared == "by all probes" else 0.0
    level = rng.normal(0.0, 3.0, (1, 1, len(PROBES), N))
    top = np.full((seeds, m, len(PROBES), N), np.nan)
    top[:, :, 0] = (-20.0 + noise(["argmax"]) + both)[:, :, 0]
    variables = {"logp": -90.0 + level + noise(PROBES) + both, "argmax_logp": top}
    return trajectory(
        variables, step=list(range(m)), examples_seen=list(range(m)), probe=list(PROBES), seed=range(seeds),
        stage=stage, arm=arm, example=[f"e{i}" for i in range(N)], attrs={"sft_updates": 9, "sft_passes": 9},
    )  # fmt: skip


def idle_runs(rng, shared):
    runs = {f"sft {arm}": idle(rng, shared, stage="sft", arm=arm) for arm in ("extend", "baseline")}
    return runs | {arm: idle(rng, shared, arm=arm) for arm in ("extend", "baseline", "unknown")}


@pytest.fixture(scope="module")
def applies():
    """Which claims apply to which of the idle runs: the same for all of them, and premises take long."""
    runs = idle_runs(np.random.default_rng(0), "not at all")
    trials = {id: try_on(one, runs) for id, one in ON_LOGS.items()}
    found = [(id, trial.runs) for id, ts in trials.items() for trial in ts if trial.tested]
    assert len(found) >= 20
    return found


def errs(applies, runs):
    """Whether the whole family says holds or refuted anywhere."""
    family = {}
    for id, names in applies:
        e = RUN_CLAIMS[id].check(*(runs[name] for name in names))
        family.setdefault(id, []).append(Trial(names, e))
    return any(t.verdict != "undecided" for trials in decide(family).values() for t in trials)


@pytest.mark.parametrize("shared", ["not at all", "by probe", "by all probes"])
def test_idle_runs_seldom_get_any_verdict(shared, applies):
    """At most 5 % of families say holds or refuted anywhere, whatever the examples of an evaluation share."""
    rng, families = np.random.default_rng(5), 40
    found = [errs(applies, idle_runs(rng, shared)) for _ in range(families)]
    assert np.mean(found) <= 0.05 + 3.0 * (0.05 * 0.95 / families) ** 0.5


@pytest.mark.parametrize("shared", ["by probe", "by all probes"])
def test_without_the_jitter_most_idle_runs_would_get_one(shared, applies, monkeypatch):
    monkeypatch.setattr(effects, "jitter", lambda path: 0.0)
    rng = np.random.default_rng(6)
    assert np.mean([errs(applies, idle_runs(rng, shared)) for _ in range(10)]) >= 0.7


@pytest.mark.parametrize("m", [8, 13, 40])
def test_degrees_of_freedom_of_the_jitter_are_not_too_many(m):
    """The change of white noise over its own jitter is no wider than Student's t with (m − 2)/3."""
    from scipy.special import stdtrit

    rng, n = np.random.default_rng(m), 6000
    curves = rng.normal(0.0, 1.0, (n, m))
    t = np.abs([(x[-1] - x[0]) / (2.0**0.5 * jitter(x)) for x in curves])
    for alpha in (0.05, 0.01, 0.002):
        bound = stdtrit((m - 2) / DIFFERENCES_A_DEGREE, 1.0 - alpha / 2.0)
        assert np.mean(t > bound) <= alpha + 3.0 * (alpha * (1.0 - alpha) / n) ** 0.5, alpha


def test_a_change_is_known_no_better_than_its_evaluations_jitter():
    """se² = s²/n + 2σ_j², by hand; t with Welch and Satterthwaite's degrees of freedom."""
    from scipy.special import stdtr, stdtrit

    ds = idle(np.random.default_rng(8), "by probe")
    chosen = ds.logp.sel(probe="chosen").values[0]
    units, sigma = chosen[-1] - chosen[0], jitter(chosen.mean(1))
    own, shared = units.var(ddof=1) / N, 2.0 * sigma**2
    assert shared > 5.0 * own > 0.0
    df = (own + shared) ** 2 / (own**2 / (N - 1) + shared**2 / ((M - 2) / DIFFERENCES_A_DEGREE))
    e, se = effect("preference.chosen-falls", [ds]), (own + shared) ** 0.5
    assert e.value == pytest.approx(-units.mean())
    assert (e.high - e.low) / 2.0 == pytest.approx(stdtrit(df, 0.975) * se)
    assert e.p == pytest.approx(stdtr(df, units.mean() / se))


def test_a_shift_that_both_probes_share_leaves_their_difference_as_sure_as_it_was():
    rng = np.random.default_rng(9)
    ds, shift = dpo(rejected=DOWN), rng.normal(0.0, 5.0, len(filled(FLAT)))[None, :, None, None]
    moved = ds.assign(logp=ds.logp + shift)
    before, after = (effect("preference.margin-grows", [x]) for x in (ds, moved))
    for name in ("value", "low", "high"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-9)
    wide, narrow = (effect("preference.chosen-falls", [x]) for x in (moved, ds))
    assert wide.high - wide.low > 20.0 * (narrow.high - narrow.low)


def test_examples_measured_now_and_then_are_no_jitter():
    """Holes change which examples a mean is of; examples differ by far more than they change."""
    rng = np.random.default_rng(10)
    ds = dpo(rejected=DOWN)
    holes = ds.copy(deep=True)
    holes.logp.values[0, 1:-1][rng.random(holes.logp.shape[1:])[1:-1] < 0.2] = np.nan
    before, after = (effect("preference.margin-grows", [x]) for x in (ds, holes))
    assert after.high - after.low < 3.0 * (before.high - before.low)


@pytest.mark.parametrize("id", ["preference.margin-grows", "supervised.similar-bell"])
def test_a_run_too_short_to_know_its_jitter_gets_no_verdict(id):
    short = int(DEFAULT.jitter_evaluations) - 1
    (ds,) = CASES[id][0]
    cut = ds.isel(step=np.unique(np.linspace(0, ds.sizes["step"] - 1, short).astype(int)))
    (one,) = evaluate_on(RUN_CLAIMS[id], {"r": cut}).trials
    assert one.effect.value > 1.0
    assert not one.tested
    assert one.verdict == "undecided"
    assert "jitter not known (under 8 evaluations" in one.why
    cell = scoreboard.cell(RunResult(RUN_CLAIMS[id], (one,)))
    assert scoreboard.words("trend", cell) == "undecided (no interval)"


def test_seeds_carry_their_jitter_themselves():
    rng = np.random.default_rng(11)
    short = idle(rng, "by probe", m=4, seeds=5)
    assert effect("preference.chosen-falls", [short]).n == 5
    chosen = short.logp.sel(probe="chosen").values.mean(-1)
    e = effect("preference.chosen-falls", [short])
    assert e.p == pytest.approx(p_value(chosen[:, 0] - chosen[:, -1]))
    (one,) = evaluate_on(RUN_CLAIMS["preference.chosen-falls"], {"r": short}).trials
    assert one.tested


def test_a_rise_counts_if_it_stands_out_of_the_jitter():
    """Steps of 1 nat: with a jitter of 0.05 every rise is sure, with one of 1 none is shown or refuted."""
    rng, line = np.random.default_rng(12), np.arange(16.0)

    def run(sigma):
        steady = np.tile(line[:, None], (1, N)) + rng.normal(0.0, 0.01, (16, N)) + rng.normal(0.0, sigma, (16, 1))
        return Curve(steady)

    found = [trial(ranked([c.between(k, k + 1) for k in range(len(c) - 1)])) for c in (run(0.05), run(1.0))]
    assert found == ["holds", "undecided"]


def test_parts_of_other_evaluations_have_no_difference():
    a, b = Curve(np.zeros((9, 3))), Curve(np.zeros((10, 3)))
    with pytest.raises(ValueError, match="expected two parts of the same units at the same evaluations"):
        a.between(0, -1) - b.between(0, -1)


def test_runs_are_compared_where_both_were_measured():
    """The control's probe was not measured at the last evaluation: what the run did after that does not count."""
    one = dpo(arm="extend", irr_hum=[-90.0, -90.0, -90.0, -50.0])
    other = dpo(arm="baseline", irr_hum=FLAT)
    other.logp[0, -3:, 1] = np.nan
    assert effect("preference.extend-slows-others", [one, other]).value == pytest.approx(40.0 / FILL, abs=0.2)


def test_an_interval_is_an_inverted_test():
    """low > 0 exactly if p < 2.5 %, high < 0 exactly if p_below < 2.5 %, also for compound statements."""
    rng, seen = np.random.default_rng(2), set()
    for _ in range(200):
        for rank, k in ((1, 1), (1, 3), (2, 4)):
            e = ranked(normal(rng, *rng.normal(0.0, 0.5, k), n=12), rank)
            assert (e.low > 0.0) == (e.p < 0.025), e
            assert (e.high < 0.0) == (e.below < 0.025), e
            seen.add((rank, k, e.low > 0.0, e.high < 0.0))
    assert len(seen) >= 7, seen


@settings(max_examples=25)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=6), min_size=1, max_size=4))
def test_all_but_one_is_never_harder_than_every(parts):
    arrays = [np.array(part) for part in parts]
    every = ranked(arrays)
    assert every.value == pytest.approx(min(a.mean() for a in arrays))
    if len(arrays) > 1:
        assert ranked(arrays, 2).value >= every.value


def test_a_rank_beyond_the_parts_is_refused():
    with pytest.raises(ValueError, match="expected a rank in 1 … 1, got 2"):
        ranked([np.array([1.0, 2.0])], 2)


SUMMARIES = [
    (["holds", "holds"], "holds"),
    (["refuted"], "refuted"),
    (["holds", "refuted", "undecided"], "conditional"),
    (["holds", "undecided"], "undecided"),
    (["refuted", "undecided"], "undecided"),
    ([], "not run"),
]


@pytest.mark.parametrize(("verdicts", "want"), SUMMARIES)
def test_one_verdict_over_runs(verdicts, want):
    e = Effect(1.0, 0.5, 1.5, 9, 0.01)
    trials = [Trial((str(i),), e, verdict=v) for i, v in enumerate(verdicts)]
    assert summary(trials) == want
    refused = Trial(("x",), None, "no argmax", "not applicable")
    if trials:
        assert summary([*trials, refused]) == want
    assert summary([refused]) == "not applicable"


def test_a_claim_is_tried_on_the_tables_of_its_experiment_and_on_logs():
    one = RUN_CLAIMS["preference.margin-grows"]
    runs = {"log": dpo(rejected=DOWN), "ours": dpo(rejected=DOWN, attrs={"experiment": "stages"})}
    runs["theirs"] = dpo(rejected=UP, attrs={"experiment": "remedies"})
    assert [t.runs for t in evaluate_on(one, runs).trials] == [("log",), ("ours",)]
    assert evaluate_on(replace(one, experiment=None), runs).summary == "conditional"
    assert evaluate_on(one, {"theirs": runs["theirs"]}).verdict == "not run"


def test_pairs_that_do_not_fit_are_refused_before_anything_is_read(monkeypatch):
    """Of thirty tables there are 870 ordered pairs."""

    def read(*args):
        raise RuntimeError

    monkeypatch.setattr("toyld.claims.tables.measured", read)
    monkeypatch.setattr("toyld.claims.tables.curves", read)
    pairs = {id: one for id, one in RUN_CLAIMS.items() if one.takes == "control"}
    assert len(pairs) >= 15
    for id, one in pairs.items():
        assert one.premises(sft(), dpo()) == "a run of stage sft; the claim is about dpo", id
    with pytest.raises(RuntimeError):
        RUN_CLAIMS["preference.extend-slows-others"].premises(after(9, 9, arm="extend", irr_hum=UP), after(9, 9))


def test_a_rung_with_experiments_is_one_family_and_survives_a_broken_check(monkeypatch):
    """Without the cache, which holds the real one."""
    broken, seen = "preference.chosen-falls", []

    def fails(*tables):
        raise ZeroDivisionError

    def family(trials):
        seen.append(set(trials))
        return decide(trials)

    runs = {"r": dpo(TOP_UP, rejected=DOWN, attrs={"seeds": 3})}
    monkeypatch.setattr(Experiments, "tried", lambda _: (runs, {}))
    monkeypatch.setattr(rungs, "decide", family)
    monkeypatch.setitem(claims.registry, broken, replace(RUN_CLAIMS[broken], check=fails))
    make = rungs._family.__wrapped__
    found, errors = make("contexts")
    whole = {id for id, c in claims.every().items() if isinstance(c, RunClaim) and "contexts" in c.rungs}
    assert seen == [whole - {broken}]
    assert {id for id, c in RUN_CLAIMS.items() if "contexts" in c.rungs} < whole
    assert {result.rung for result in found.values()} == {"contexts"}
    assert found["preference.margin-grows"].verdict == "holds"
    monkeypatch.setattr(rungs, "_family", lambda _: (found, errors))
    with pytest.raises(ZeroDivisionError):
        claims.evaluate(RUN_CLAIMS[broken], rung="contexts")
    (row,) = scoreboard.score([RUN_CLAIMS[broken]], rung="contexts")
    assert "ZeroDivisionError" in row["cells"]["contexts"]["why"]
    assert scoreboard.surprises(row) == [("contexts", "undecided")]


def test_something_else_may_be_expected_at_another_rung():
    one = RUN_CLAIMS["preference.argmax-rises"]
    assert (one.expect, one.expected("contexts"), one.expected("published"), one.expected(None)) == (
        "holds", "holds", "open", "holds",
    )  # fmt: skip
    assert "another, which jitters by 4" in one.because("published")
    assert one.because("contexts") == one.proof
    trials = tuple(evaluate_on(one, {"r": dpo([-50.0, -50.01, -50.0, -49.99])}).trials)
    assert [RunResult(one, trials, rung=at).as_expected for at in ("contexts", "published")] == [False, True]


def test_what_is_asserted_of_a_claim_is_what_its_lowest_rung_with_a_verdict_gives():
    for id, one in RUN_CLAIMS.items():
        assert set(one.elsewhere) <= set(one.rungs), id
        assert list(one.rungs) == sorted(one.rungs, key=scoreboard.RUNGS.index), id
        each = [one.expected(rung) for rung in one.rungs]
        assert one.expect == next((e for e in each if e != "open"), "open"), id
        assert all(len(why) > 10 for _, why in one.elsewhere.values()), id


def test_hold_raises_with_its_runs_and_numbers():
    with pytest.raises(AssertionError, match=r"expected 'holds', got 'refuted'") as raised:
        claims.hold("preference.margin-grows", runs={"mine": dpo(rejected=UP)})
    assert "mine: -15.01 nats" in str(raised.value)
    assert claims.hold("preference.margin-grows", runs={"mine": dpo(rejected=DOWN)}).verdict == "holds"
    two = {"mine": dpo(rejected=DOWN), "other": dpo(rejected=DOWN)}
    assert claims.hold("preference.own-answers-slow-argmax", runs=two).verdict == "open"
    with pytest.raises(AssertionError, match=r"got 'not run' \(neither the runs nor recorded"):
        claims.hold("preference.margin-grows", runs={})


# -- the released logs


@pytest.fixture
def fresh():
    """Outcomes are cached by folder; tests that change what lies there start and leave without."""
    published.outcomes.cache_clear()
    yield
    published.outcomes.cache_clear()


def verdicts(outcome):
    return {id: result.summary for id, result in outcome.items()}


def test_the_evidence_gives_the_verdicts_it_states(fresh):
    known = published.evidence()
    assert known["schema"] == 1
    assert known["claims"] == list(known["results"]) == [id for id in known["claims"] if id in RUN_CLAIMS]
    assert set(known["claims"]) == set(ON_LOGS)
    assert len(json.dumps(known)) < 200_000
    assert {d for one in published.RELEASED.values() for d in one.files} == set(known["data"].values())
    for key in ("command", "date", "hardware", "versions", "seeds", "size", "device_seconds", "commit", "dirty"):
        assert key in known
    outcome = published.outcomes(None)
    for id, one in known["results"].items():
        assert outcome[id].summary == one["verdict"], id
        assert outcome[id].recorded["date"] == known["date"]
        e = outcome[id].effect
        assert (one["effect"] is None) == (e is None)
        if e is not None:
            assert (e.value, e.n) == (one["effect"], one["n"])
        assert all(set(run) == {"runs", "value", "low", "high", "n", "p", "p_below"} for run in one["per_run"])


def test_the_released_logs_give_what_is_recorded(data, fresh):
    known, now = published.evidence(), published.outcomes(str(data))
    if missing := set(published.RELEASED) - set(published.find(str(data))):
        pytest.skip(f"not all released logs are there: {sorted(missing)}")
    for id, one in known["results"].items():
        assert now[id].recorded is None
        assert now[id].summary == one["verdict"], id
        computed = {t.runs: t.effect for t in now[id].trials if t.effect is not None}
        assert set(computed) == {tuple(run["runs"]) for run in one["per_run"]}, id
        for run in one["per_run"]:
            for name in ("value", "low", "high", "p"):
                got, want = getattr(computed[tuple(run["runs"])], name), run[name]
                if want is None:
                    assert np.isnan(got)
                else:
                    assert got == pytest.approx(want, rel=1e-6, abs=1e-300), (id, run["runs"], name)
        refused = {tuple(names) for arranged in one["not_applicable"].values() for names in arranged}
        assert refused == {t.runs for t in now[id].trials if t.effect is None}, id


def linked(data, folder, keep):
    """The logs of these names under names that say nothing."""
    for i, name in enumerate(keep):
        there = folder / "runs" / "authors" / f"x{i}"
        there.mkdir(parents=True)
        for j, file in enumerate(sorted((data / "runs" / "authors" / name).iterdir())):
            (there / f"{j}.dat").symlink_to(file)
    return str(folder)


def test_names_of_files_and_folders_change_nothing(data, tmp_path, fresh):
    if not set(published.find(str(data))) >= set(published.RELEASED):
        pytest.skip("not all released logs are there")
    renamed = published.outcomes(linked(data, tmp_path, reversed(published.RELEASED)))
    before = published.outcomes(str(data))
    assert verdicts(renamed) == verdicts(before)
    assert renamed["preference.margin-grows"].effect == before["preference.margin-grows"].effect


def test_what_is_not_there_is_taken_from_the_record(data, tmp_path, fresh):
    keep = "pythia410_baseline_sft_verify_argmax_bug"
    if keep not in published.find(str(data)):
        pytest.skip(f"{keep} is not there")
    part, none = published.outcomes(linked(data, tmp_path, [keep])), published.outcomes(None)
    assert verdicts(part) == verdicts(none)
    (one,) = [t for t in part["supervised.chosen-rises"].trials if t.effect is not None]
    assert not one.recorded
    assert part["preference.margin-grows"].recorded is not None


def test_another_content_is_no_released_log_whatever_its_name(tmp_path, fresh):
    there = tmp_path / "runs" / "authors" / "pythia410_baseline_dpo_checkbug"
    there.mkdir(parents=True)
    rows = [json.dumps({"logps_eval_prob_train/chosen": -100.0 + k}) for k in range(4)]
    (there / "prob_train_metrics.json").write_text("\n".join(rows) + "\n")
    assert published.find(str(tmp_path)) == {}
    assert verdicts(published.outcomes(str(tmp_path))) == verdicts(published.outcomes(None))


def test_without_logs_and_record_nothing_is_run(monkeypatch, fresh):
    monkeypatch.setattr(published, "EVIDENCE", "nothing.json")
    assert set(verdicts(published.outcomes(None)).values()) == {"not run"}


def test_a_record_with_a_gap_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("TOYLD_DATA", str(tmp_path))
    with pytest.raises(BadInput, match="expected all released logs under"):
        scoreboard.record(tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("dirty", "got"), [(True, "changes that are not committed"), (None, "no checkout")])
def test_a_record_of_code_that_no_commit_holds_is_refused(monkeypatch, tmp_path, dirty, got):
    monkeypatch.setattr(published, "find", lambda root: dict.fromkeys(published.RELEASED))
    monkeypatch.setattr(published, "checkout", lambda: {"commit": None, "dirty": dirty})
    with pytest.raises(BadInput, match=f"expected the code of a commit for the record to name, got {got}") as raised:
        scoreboard.record(tmp_path / "out.json")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out.json").exists()


def test_the_evidence_is_of_a_commit():
    known = published.evidence()
    assert known["dirty"] is False, f"record it again from a clean tree: {known['command']}"
    assert len(known["commit"]) == 40


def test_the_record_is_written_by_its_command(data, monkeypatch, tmp_path, fresh):
    if not set(published.find(str(data))) >= set(published.RELEASED):
        pytest.skip("not all released logs are there")
    monkeypatch.setenv("TOYLD_DATA", str(data))
    monkeypatch.setattr(published, "checkout", lambda: {"commit": "1" * 40, "dirty": False})
    scoreboard.record(tmp_path / "out.json")
    made, known = json.loads((tmp_path / "out.json").read_text()), published.evidence()
    assert (made["commit"], made["dirty"]) == ("1" * 40, False)
    assert {id: r["verdict"] for id, r in made["results"].items()} == {
        id: r["verdict"] for id, r in known["results"].items()
    }
    assert made["data"] == known["data"]


PUBLISHED = {  # run, claim -> value in nats, from the published tables of these logs
    ("pythia410_baseline_sft_verify_argmax_bug", "supervised.argmax-rises-too"): -44.5 + 61.6,
    ("pythia410m_baseline_dpo_checkbug_5e7", "preference.argmax-rises"): 20.4,
    ("prob_pythia410m_dpo", "preference.chosen-falls"): -152.0 + 146.3,
    ("prob_pythia410m_dpo", "preference.margin-grows"): (-146.3 + 197.6) - (-152.0 + 121.4),
    ("verifyargmax_pythia1b_dpo_ep10_chosen", "preference.margin-grows"): (-139.0 + 291.8) - (-132.3 + 103.6),
}


@pytest.mark.parametrize(("run", "id"), PUBLISHED)
def test_the_published_changes_are_reproduced(run, id, fresh):
    (one,) = [t for t in published.outcomes(None)[id].trials if t.runs == (run,)]
    assert one.effect.value == pytest.approx(PUBLISHED[run, id], abs=0.2)


def test_a_lurching_run_has_one_verdict_wherever_it_is_cut(data):
    """Its argmax swings by 10 nats between evaluations: where it stands at the end of 40 says little."""
    name, id = "pythia410_baseline_dpo_checkbug", "preference.argmax-rises"
    runs = published.find(str(data))
    if name not in runs:
        pytest.skip(f"{name} is not there")
    cut = [evaluate_on(RUN_CLAIMS[id], {name: runs[name].isel(step=slice(0, 40 - k))}).summary for k in range(6)]
    assert cut == ["undecided"] * 6


def test_the_published_argmax_is_that_of_other_contexts(data):
    """F1: −113 starts the log with the bug, −61.6 the same checkpoint's log without it."""
    folder = data / "runs" / "authors"
    wrong = read_authors(folder / "prob_pythia410m_dpo", stage="dpo", keep_buggy_argmax=True)
    right = read_authors(folder / "pythia410_baseline_dpo_checkbug_5e7", stage="dpo")
    first, last = preference.published_path(wrong, argmax="argmax_logp_as_logged")
    assert first == pytest.approx(-113.54, abs=0.005)
    assert abs(first - preference.PRINTED[0]) < preference.DIGIT
    assert last == pytest.approx(-72.3, abs=0.05)  # the log that ends at −63 was never released
    assert preference.published_path(right)[0] == pytest.approx(-61.56, abs=0.005)
    claim = RUN_CLAIMS["preference.argmax-as-published"]
    assert "argmax along the chosen contexts" in claim.premises(wrong)  # dropped by the reader: nothing to claim on
    assert trial(claim.check(right)) == "refuted"
