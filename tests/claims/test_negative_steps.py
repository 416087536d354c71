"""Negative steps with K ≠ I: smallest counterexamples, planted bugs; run claims where they hold, and where not."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from toyld import softmax as sm
from toyld.claims import exact, negative_forgetting, negative_isotropic, negative_kernels, negative_steps
from toyld.claims.base import evaluate
from toyld.claims.runs import RunClaim, evaluate_on, try_on
from toyld.trajectory import trajectory

HALF = {"p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), "y": 1, "s": 1}
CLAIMS = {
    one.id: one
    for home in (negative_steps, negative_forgetting)
    for one in vars(home).values()
    if isinstance(one, RunClaim)
}
STAGES = ("initial", "early", "late")


def diagonals(size: int, *values: int) -> list[tuple[int, ...]]:
    """Diagonal K row by row, small entries first."""
    on = sorted(product(values, repeat=size), key=sum)
    return [tuple(t[i] if i == j else 0 for i in range(size) for j in range(size)) for t in on]


def one_star(p: Any, y: int, **_: Any) -> bool:
    rest = sorted((x for i, x in enumerate(p) if i != y), reverse=True)
    return len(rest) == 1 or rest[0] > rest[1]


def star_rises(p: Any, y: int, s: Any, k: Any) -> Any:
    return negative_kernels.alphas(p, y, s, k)[negative_kernels.favourite(p, y)]


def test_the_counterexamples_to_the_rise_of_the_runner_up_are_the_smallest():
    found = exact.smallest(star_rises, where=one_star, k=lambda p, y, s: diagonals(len(p), 0, 1))
    assert found == negative_kernels.runner_up_rises.counterexample.case == {**HALF, "k": (0,) * 8 + (1,)}
    for most in (2, 3, 4):
        assert exact.smallest(star_rises, where=one_star, k=lambda p, y, s, n=most: diagonals(3, 1, n), **SMALL) is None
    found = exact.smallest(star_rises, where=one_star, k=lambda p, y, s: diagonals(3, 1, 5), **SMALL)
    assert found == negative_isotropic.diagonal_dominance_suffices.counterexample.case


SMALL = {"classes": [3], "denominators": [3, 4], "s": (Fraction(1),)}


def test_flipping_head_and_feature_needs_six_times_the_step():
    falls = negative_kernels.penalised_falls_at_every_step.counterexample
    assert falls is not None
    assert all(falls.margin(**{**falls.case, "s": s}) > 0 for s in range(1, 6))
    assert falls.certified()


SCORES, MOVED = negative_kernels.scores, negative_kernels.moved


def generous(z: Any, y: Any, k: Any) -> Any:
    return 1.001 * SCORES(z, y, k)


def second_order(z: Any, d: Any, s: Any) -> Any:
    return MOVED(z, d + 1e-3 * s[:, None] * d**2, s)


def turned(z: Any, d: Any, s: Any) -> Any:
    return MOVED(z, -d, s)


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("scores", generous, "two_layers"),
        ("moved", second_order, "score_law"),
        ("moved", turned, "penalised_falls"),
        ("moved", turned, "top_score_rises"),
        ("moved", turned, "near_isotropic_suffices"),
        ("moved", turned, "favourite_spreads"),
        ("moved", second_order, "rows_and_columns_cancel"),
    ],
)
def test_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, claim: str) -> None:
    home = negative_kernels if hasattr(negative_kernels, claim) else negative_isotropic
    monkeypatch.setattr(home, name, wrong)
    assert evaluate(getattr(home, claim), examples=500).verdict == "refuted"


def test_near_isotropy_needs_kappa_above_0() -> None:
    z, y, s = np.log([[0.4, 0.4, 0.2]]), np.array([2]), np.ones(1)
    found = [
        negative_isotropic.near_isotropic_suffices.check(z, y, s, np.array([kappa]), kappa * np.eye(3).reshape(1, 9))
        for kappa in (1.0, -1.0)
    ]
    assert (found[0].value[0, 0], found[1].value[0, 0]) == (
        pytest.approx(0.1505, abs=1e-4),
        pytest.approx(-0.3812, abs=1e-4),
    )
    for one in (negative_isotropic.near_isotropic_suffices, negative_isotropic.rows_and_columns_cancel):
        kappas = one.premises.fields["kappa"].decode(np.linspace(0.0, 1.0, 9)[:, None], 3, {})
        assert 0.0 < kappas.min() < 1.0 < kappas.max()
        assert "κ > 0" in one.statement


def test_a_step_that_forgets_kappa_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(negative_isotropic.rows_and_columns_cancel, examples=500).verdict == "holds"
    log_alpha = sm.log_alpha
    monkeypatch.setattr(sm, "log_alpha", lambda z, y, *, s: log_alpha(z, y, s=s / s.mean()))
    assert evaluate(negative_isotropic.rows_and_columns_cancel, examples=500).verdict == "refuted"


# -- run claims


def noisy(level: float, seed: int, seeds: int = 24) -> np.ndarray:
    return level + np.random.default_rng(seed).normal(0.0, 0.003, (seeds, 1))


# What is measured where every claim holds as stated; those that say "always" are asserted to be refuted.
LEVELS = {
    "falls": 1.0, "rises": 0.999, "kernel": 0.9, "first": 0.99, "plain": 0.7, "told_falls": 0.9, "told_rises": 0.95,
    "order": 0.4, "top": 0.8, "losers": 0.7, "rises_rest": 0.8, "elsewhere_told": 0.99, "falls_mate": 0.9,
    "falls_rest": 0.8, "falls_label": 0.4, "calmer_valley": 0.999,
}  # fmt: skip
FORGOTTEN = {
    "label_before": 0.9, "label_after": 0.1, "star_before": 0.05, "star_after": 0.6, "plain_after": 0.8, "spread": 0.7,
}  # fmt: skip


def shares(level: float, seed: int) -> np.ndarray:
    """Noisy shares, 1 in every seed where the level is 1."""
    return noisy(level, seed) if level < 1.0 else np.ones((24, 1))


def tables(network: str = "LeNet", **changed: float) -> dict[str, Any]:
    """Tables of one network whose measures have LEVELS and FORGOTTEN, but those named; NAME_LABEL changes one label."""
    out = {}
    for i, when in enumerate(STAGES):
        columns = {"apart_all": noisy(changed.get("apart_all", 0.2) * (1 + i), i)}
        for j, (name, level) in enumerate(LEVELS.items()):
            for k, label in enumerate((*negative_steps.LABELS, "any")):
                at = changed.get(f"{name}_{label}", changed.get(name, level))
                growth = changed.get(f"growth_{label}", changed.get("growth", 1.0))
                at = at - 0.3 * (name == "losers") * (2 - i) * growth
                for step in ("small", "moderate"):
                    columns[f"{name}_{label}_{step}"] = shares(at, 100 * j + 10 * k + i)
        out[when] = made(columns, "negative", "all", network, when)
    columns = {name: noisy(changed.get(name, level), i) for i, (name, level) in enumerate(FORGOTTEN.items())}
    out["forget"] = made(columns, "forget", "forget", network, "late")
    return out


def made(columns: dict[str, np.ndarray], stage: str, arm: str, network: str, when: str) -> Any:
    attrs = {"experiment": "negative", "network": network, "when": when, "layers": arm}
    values = {f"eval_{name}": value for name, value in columns.items()}
    return trajectory(values, step=[0], probe=["chosen"], seed=range(24), stage=stage, arm=arm, attrs=attrs)


OPPOSITE = {
    "network.label-falls": {"falls": 0.9},
    "network.runner-up-always-rises": {"rises": 0.9},
    "network.runner-up-mostly-rises": {"rises": 0.4},
    "network.kernel-tells-signs": {"first": 0.9},
    "network.kernel-beats-isotropy": {"kernel": 0.6},
    "network.kernel-sees-failures": {"told_falls": 0.5},
    "network.rich-get-richer": {"order": -0.1},
    "network.runner-up-gains-most": {"top": 0.4},
    "network.training-squeezes": {"growth": -1.0},
    "network.training-bends-kernel": {"apart_all": -0.2},
    "network.favourite-spreads-mostly": {"rises_rest": 0.4},
    "network.kernel-tells-elsewhere": {"elsewhere_told": 0.9},
    "network.own-class-follows": {"falls_mate": 0.7},
    "network.pushed-class-resists": {"falls_label": 0.9},
    "network.valley-always-calms": {"calmer_valley": 0.9},
    "network.valley-mostly-calms": {"calmer_valley": 0.4},
    "network.forgetting-feeds-runner-up": {"star_after": 0.3},
    "network.forgetting-feeds-runner-up-less": {"plain_after": 0.5},
    "network.forgetting-spreads": {"spread": 0.4},
}


@pytest.mark.parametrize("id", sorted(CLAIMS))
def test_each_claim_holds_on_tables_as_stated_and_is_refuted_on_the_opposite(id):
    assert evaluate_on(CLAIMS[id], tables()).summary == "holds"
    assert evaluate_on(CLAIMS[id], tables(**OPPOSITE[id])).summary == "refuted"


EACH_LABEL = {
    "network.label-falls": "falls",
    "network.runner-up-mostly-rises": "rises",
    "network.kernel-tells-signs": "first",
    "network.rich-get-richer": "order",
    "network.runner-up-gains-most": "top",
    "network.kernel-tells-elsewhere": "elsewhere_told",
}


@pytest.mark.parametrize("label", negative_steps.LABELS)
@pytest.mark.parametrize("id", sorted(EACH_LABEL))
def test_no_claim_about_each_label_holds_where_one_of_them_is_otherwise(id, label):
    (wrong,) = OPPOSITE[id].values()
    assert evaluate_on(CLAIMS[id], tables(**{f"{EACH_LABEL[id]}_{label}": wrong})).summary == "refuted"


@pytest.mark.parametrize("label", negative_steps.LABELS)
def test_training_squeezes_by_every_wrong_label_and_says_nothing_of_the_true_one(label):
    found = evaluate_on(CLAIMS["network.training-squeezes"], tables(**{f"growth_{label}": -1.0}))
    assert found.summary == ("holds" if label == "true" else "refuted")


@pytest.mark.parametrize(
    ("id", "network", "table", "why"),
    [
        (
            "network.label-falls",
            "MLP",
            "forget",
            "a run of stage forget (forget); the claim is about steps of all layers",
        ),
        ("network.rich-get-richer", "MLP", "initial", "steps of an initial network; the claim is about late"),
        ("network.own-class-follows", "MLP", "late", "steps of an MLP; the claim is about LeNet"),
        ("network.forgetting-spreads", "MLP", "late", "a run of stage negative; the claim is about forgetting"),
    ],
)
def test_premises_say_why_a_table_says_nothing(id, network, table, why):
    (trial,) = try_on(CLAIMS[id], {"one": tables(network)[table]})
    assert (trial.effect, trial.why) == (None, why)


def test_claims_about_training_compare_one_network_with_itself():
    runs = {"LeNet": tables()["initial"], "MLP": tables("MLP")["late"]}
    reasons = {trial.why for trial in try_on(CLAIMS["network.training-squeezes"], runs)}
    assert reasons == {
        "two networks; the claim is about one, after and before training",
        "steps of an initial network; the claim is about late",
    }


@pytest.mark.parametrize(
    ("falls", "rises"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.7, 0.7)], ids=["always", "never", "coin", "hardly"]
)
def test_who_does_not_look_at_the_case_sees_no_failures(falls, rises):
    runs = tables(told_falls=falls, told_rises=rises)
    assert evaluate_on(CLAIMS["network.kernel-sees-failures"], runs).summary == "refuted"


ONE_AND_ALL = [("label-falls", "falls"), ("kernel-tells-signs", "first"), ("kernel-tells-elsewhere", "elsewhere_told")]


@pytest.mark.parametrize("failed", [0, 1, 9, 12, 22, 24])
@pytest.mark.parametrize(("id", "name"), ONE_AND_ALL)
def test_most_networks_is_counted_and_its_bounds_are_those_of_the_binomial(id, name, failed):
    ds = tables(**{name: 1.0})["late"]
    for at, label in enumerate(negative_steps.LABELS):
        for step in ("small", "moderate"):
            ds[f"eval_{name}_{label}_{step}"][: failed if at == 2 else 0] = 0.9
    (trial,) = try_on(CLAIMS[f"network.{id}"], {"late": ds})
    effect, exact = trial.effect, stats.binomtest(24 - failed, 24, alternative="greater")
    assert (effect.value, effect.n) == (pytest.approx((24 - failed) / 24 - 0.5), 24)
    assert effect.p == pytest.approx(exact.pvalue)
    assert effect.below == pytest.approx(min(1.0, 4 * stats.binomtest(24 - failed, 24, alternative="less").pvalue))
    assert effect.low == pytest.approx(stats.binomtest(24 - failed, 24).proportion_ci(0.95).low - 0.5)
    assert effect.high == pytest.approx(stats.binomtest(24 - failed, 24).proportion_ci(1 - 0.05 / 4).high - 0.5)


def test_one_network_is_no_evidence_of_most():
    ds = tables()["late"].isel(seed=slice(1))
    (trial,) = try_on(CLAIMS["network.label-falls"], {"late": ds})
    assert not trial.tested


def test_a_case_that_never_occurs_is_no_evidence():
    runs = tables()
    for when in STAGES:
        runs[when] = runs[when].drop_vars("eval_told_falls_any_moderate")
    (trial,) = try_on(CLAIMS["network.kernel-sees-failures"], runs)
    assert not trial.tested
    assert set(OPPOSITE) == set(CLAIMS)
