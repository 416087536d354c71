"""Claims on first order in networks: each where it holds and where not, stage by stage, and why a table is silent."""

import doctest

import numpy as np
import pytest

from toyld.claims import first_order, first_order_radius, registry
from toyld.claims.effects import never_below
from toyld.claims.numbers import rounded
from toyld.claims.runs import RunClaim, evaluate_on, try_on
from toyld.trajectory import trajectory

CLAIMS = {id: one for id, one in registry.items() if isinstance(one, RunClaim) and one.experiment == "first_order"}
# What every number would have to be for all that is stated; then what would refute it.
AS_STATED = {
    "slope_off": 0.0, "slope_off_above": 0.0, "second": 1.0, "relative_paper": 0.001, "observers": 1.0, "lessons": 1.0,
    "width": 0.0, "rank_kernel": 0.9, "rank_gradient": 0.9, "symmetric": 3.0, "positive": 3.0, "asymmetry": 2.0,
    "slope_off_rmsprop": 0.0, "slope_off_adam": 0.0, "plain_rmsprop": 0.3, "plain_adam": 0.3, "lbk": 1.0,
    "lbk_1": 1.0, "lbk_loose": 0.9, "lbk_rank": 0.9, "notebook_rank": 0.8,
    "lbk_rank_classes": 0.9, "relative_half_radius": 0.2, "turn": 1.0,
}  # fmt: skip
OPPOSITE = {
    "slope_off": 0.5, "slope_off_above": 0.5, "second": 0.1, "relative_paper": 0.1, "observers": 0.1, "lessons": 0.1,
    "width": 0.9, "rank_kernel": 0.1, "rank_gradient": 0.1, "symmetric": -3.0, "positive": -3.0, "asymmetry": 0.1,
    "slope_off_rmsprop": 0.5, "slope_off_adam": 0.5, "plain_rmsprop": 0.01, "plain_adam": 0.01, "lbk": -1.0,
    "lbk_1": -1.0, "lbk_loose": 1.2, "lbk_rank": 0.1, "notebook_rank": 0.1,
    "lbk_rank_classes": 0.05, "relative_half_radius": 0.9, "turn": -1.5,
}  # fmt: skip
# What one claim needs otherwise than the rest.
KINKED = {"slope_off_above": 0.5}
LOOSE = {"lbk_loose": 1.0}
# claim → the numbers that it reads, and the stages at which it reads them
READS = {
    "error-is-second-order": (("slope_off", "slope_off_above"), (0, 1, 2)),
    "error-is-second-order-below-kinks": (("second",), (0, 1, 2)),
    "kinks-break-second-order": (("slope_off_above",), (0, 1)),
    "first-order-at-the-papers-rate": (("relative_paper",), (0, 1, 2)),
    "constant-differs-over-observers": (("observers",), (2,)),
    "constant-differs-over-lessons": (("lessons",), (2,)),
    "constant-falls-in-training": (("constant",), (0, 2)),
    "constant-keeps-with-width": (("width",), (0,)),
    "kernel-norm-ranks-the-error": (("rank_kernel",), (0, 2)),
    "gradient-norm-ranks-the-error": (("rank_gradient",), (0, 2)),
    "gradient-norm-ranks-trained-errors": (("rank_gradient",), (2,)),
    "kernel-symmetric-psd": (("symmetric", "positive"), (0, 2)),
    "influence-is-not-symmetric": (("asymmetry",), (2,)),
    "preconditioned-kernel": (("slope_off_rmsprop", "slope_off_adam"), (0, 2)),
    "plain-kernel-stays-wrong": (("plain_rmsprop", "plain_adam"), (0, 2)),
    "lbk-is-a-lower-bound": (("lbk",), (0, 2)),
    "lbk-bounds-actual-changes": (("lbk_1",), (0, 2)),
    "lbk-is-within-v": (("lbk_loose",), (0, 2)),
    "lbk-is-loose": (("lbk_loose",), (0, 2)),
    "lbk-ranks-like-the-norm": (("lbk_rank",), (0, 2)),
    "notebook-ranks-like-the-norm": (("notebook_rank",), (0, 2)),
    "lbk-ranks-better-than-the-notebook": (("lbk_rank_classes",), (0, 2)),
    "first-order-within-half-the-radius": (("relative_half_radius",), (0, 1, 2)),
    "half-the-radius-lowers-the-loss": (("turn",), (0, 1, 2)),
    "loss-turns-beyond-the-radius": (("turn",), (0, 1, 2)),
    "radius-is-the-scale": (("turn",), (0, 1, 2)),
}
RELU = {"error-is-second-order-below-kinks", "kinks-break-second-order"}
WRONG = {  # where the opposite of the others says nothing
    "kinks-break-second-order": {"slope_off_above": 0.0},
    "lbk-is-loose": {"lbk_loose": 0.5},
    "radius-is-the-scale": {"turn": 3.9},
    "constant-falls-in-training": {"constant": 0.0},
}


def table(smooth=True, **numbers):
    """24 seeds whose numbers scatter by 5 % around those given; the constant falls by two decades."""
    rng, n = np.random.default_rng(5), 24
    columns = {f"eval_{name}": x * rng.normal(1.0, 0.05, (n, 3)) for name, x in (AS_STATED | numbers).items()}
    columns["eval_constant"] = np.linspace(0.0, -2.0, 3) + rng.normal(0.0, 0.1, (n, 3))
    attrs = {"experiment": "first_order", "smooth": smooth}
    return trajectory(columns, step=[0, 5, 50], probe=["observers"], seed=range(n), stage="one step", attrs=attrs)


def stated(name):
    numbers = KINKED if name == "kinks-break-second-order" else LOOSE if name == "lbk-is-loose" else {}
    return table(name not in RELU, **numbers)


def spoilt(name, ds, number, stages):
    """The same with one number the other way round in some stages."""
    wrong = WRONG.get(name, {}).get(number, OPPOSITE.get(number))
    rng = np.random.default_rng(6)
    values = ds[f"eval_{number}"].values.copy()
    for stage in stages:
        values[:, stage] = wrong * rng.normal(1.0, 0.05, len(values)) if wrong else rng.normal(0.0, 0.01, len(values))
    return ds.assign({f"eval_{number}": (("seed", "step"), values)})


def claim(name):
    return CLAIMS[f"akg.{name}"]


def test_every_claim_is_listed_here_and_about_this_experiment():
    assert {id.removeprefix("akg.") for id in CLAIMS} == set(READS)
    assert {(one.rungs, one.experiment) for one in CLAIMS.values()} == {(("digits",), "first_order")}
    for module in (first_order, first_order_radius):
        assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", READS)
def test_each_claim_holds_as_stated_and_is_refuted_on_the_opposite(name):
    ds, (numbers, stages) = stated(name), READS[name]
    assert evaluate_on(claim(name), {"as stated": ds}).summary == "holds"
    for number in numbers:
        ds = spoilt(name, ds, number, stages)
    assert evaluate_on(claim(name), {"opposite": ds}).summary == "refuted"


@pytest.mark.parametrize(
    ("name", "number", "stage"),
    [(name, number, stage) for name, (numbers, stages) in READS.items() for number in numbers for stage in stages],
)
def test_no_claim_holds_where_one_number_of_one_stage_speaks_against_it(name, number, stage):
    ds = spoilt(name, stated(name), number, (stage,))
    if name == "constant-falls-in-training":
        ds = ds.assign(eval_constant=ds.eval_constant * 0.0 + ds.eval_constant.isel(step=stage))
    assert evaluate_on(claim(name), {"one": ds}).summary != "holds"


@pytest.mark.parametrize("name", [n for n, (_, stages) in READS.items() if stages != (0, 1, 2)])
def test_a_claim_about_some_stages_reads_no_other(name):
    numbers, stages = READS[name]
    ds = stated(name)
    for number in numbers:
        ds = spoilt(name, ds, number, set(range(3)) - set(stages))
    assert claim(name).check(ds) == claim(name).check(stated(name))


def test_what_must_hold_in_every_unit_is_asked_of_each():
    fine, one_bad, two_bad = (np.array(x) for x in ([2.0, 3.0, 2.5], [2.0, -1.5, 2.5], [-2.0, -1.0, 2.5]))
    assert never_below([fine, fine + 1]).value == pytest.approx(2.5)
    assert (never_below([one_bad]).value, never_below([one_bad]).n) == (-0.5, 3)
    assert (never_below([fine, two_bad]).value, never_below([fine, two_bad]).n) == (-1.5, 2)
    for hidden in (np.nan, -np.inf):  # a violation beside a number that is not known; one without bound
        found = never_below([np.array([2.0, hidden, 2.5]), one_bad])
        assert (found.value < 0.0, found.p > 0.5, found.n) == (True, True, 3)


@pytest.mark.parametrize("violators", [1, 2, 3])
@pytest.mark.parametrize(
    "name",
    ["lbk-is-a-lower-bound", "lbk-bounds-actual-changes", "kernel-symmetric-psd", "half-the-radius-lowers-the-loss"],
)
def test_a_network_that_breaks_it_is_not_outvoted_by_another_table(name, violators):
    ds = stated(name)
    assert evaluate_on(claim(name), {"one": ds, "other": stated(name)}).summary == "holds"
    for size in (0.01, 5.0):
        broken = ds.copy(deep=True)
        for s in range(violators):
            broken[f"eval_{READS[name][0][0]}"].values[s, 2] = -1.0 - size * (1.0 + 0.1 * s)
        found = evaluate_on(claim(name), {"one": broken, "other": ds})
        assert found.summary in ("undecided", "conditional"), found.lines()
        trial = found.trials[0]
        assert trial.tested
        assert np.isfinite([trial.effect.low, trial.effect.high]).all()
        again = rounded(trial.effect, 12)  # as a recording keeps it
        assert again.p == pytest.approx(trial.effect.p, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "ds", "why"),
    [
        ("lbk-is-loose", table().assign_attrs(stage="dpo"), "a run of stage dpo; the claim is about single steps"),
        ("lbk-is-loose", table().drop_vars("eval_lbk_loose"), "not measured: lbk_loose"),
        ("lbk-is-loose", table().isel(step=[0, 1]), "2 stages; the claim is about 3"),
        ("error-is-second-order", table(smooth=False), "a network with kinks"),
        ("kinks-break-second-order", table(), "a network without kinks"),
    ],
)
def test_premises_say_why_a_table_says_nothing(name, ds, why):
    (trial,) = try_on(claim(name), {"run": ds})
    assert (trial.effect, trial.why) == (None, why)
