"""toyld.objectives: push = −gradient of loss, one definition on every array library, and what each loss does."""

from __future__ import annotations

import doctest
import importlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import array_api_strict
import mpmath
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from toyld import objectives
from toyld.objectives import Batch, ObjectiveError, pair_batch, stable

NAMES = list(objectives.OBJECTIVES)
PUSHING = [name for name in NAMES if objectives.get(name).kind != "target"]
# Parameters away from the defaults, where a default hides a term (β = 1, ε = 0, α = 1, no quantile, …).
VARIANTS: list[Any] = [objectives.get(name) for name in NAMES] + [
    objectives.DPO(beta=2.0),
    objectives.CDPO(beta=0.5, epsilon=0.0),
    objectives.IPO(beta=0.3),
    objectives.SLiC(delta=30.0, weight=0.0),
    objectives.SimPO(beta=10.0, gamma=3.0),
    objectives.DPOP(beta=0.1, weight=0.5),
    objectives.RPO(beta=0.3, alpha=0.2),
    objectives.KTO(beta=0.5, desirable=1.3, undesirable=0.7),
    objectives.NPO(beta=2.0),
    objectives.ORPO(weight=2.0),
    objectives.AsymRE(baseline=0.4),
    objectives.GateDPO(quantile=0.1),
    objectives.GateDPO(alpha=3.0, tau=0.5, quantile=0.5),
    objectives.CWDPO(floor=-1.0, tau=0.2),
    objectives.LDDPO(alpha=0.0),
    objectives.LDDPO(alpha=1.0),
    objectives.PPO(clip=0.05),
    objectives.GRPO(per_token_mean=False),
    objectives.AOT(label_smoothing=0.2),
    objectives.AOTUnpaired(beta=1.0, label_smoothing=0.2),
    objectives.Robust(label_smoothing=0.0),
    objectives.EXOPair(label_smoothing=0.3),
    objectives.DiscoPOP(beta=1.0, discopop_tau=0.5),
    objectives.BST(weight=0.0),
    objectives.BST(weight=1.0, k=2),
    objectives.Mix(parts=(objectives.KTO(), objectives.LDDPO()), weights=(0.5, 2.0)),
]
EPS = np.finfo(np.float64).eps


def pairs(plus: Any, minus: Any, ref_plus: Any = None, ref_minus: Any = None, **sides: Any) -> Batch:
    given = [
        None if a is None else np.atleast_1d(np.asarray(a, dtype=float)) for a in (plus, minus, ref_plus, ref_minus)
    ]
    return pair_batch(*given, **sides)


def one_line(error: BaseException, *words: str) -> None:
    assert isinstance(error, ValueError)
    assert "\n" not in str(error)
    assert all(word in str(error) for word in words), str(error)


# ---------------------------------------------------------------------------- generated over the registry


@pytest.mark.parametrize("objective", VARIANTS, ids=repr)
def test_push_is_minus_the_gradient_of_the_loss(objective):
    assert objectives.check(objective) < 1.0


@pytest.mark.parametrize("name", PUSHING)
def test_smallest_batch_has_a_finite_loss_and_push(name):
    objective, batch = objectives.get(name), objectives.random_batch(3, size=1, tokens=1)
    assert objective.loss(batch).shape == (1,)
    assert np.isfinite(objective.loss(batch)).all()
    assert objective.push(batch).rejected.shape == (1, 1)


@pytest.mark.parametrize("name", PUSHING)
@pytest.mark.parametrize("margin", [-1e4, 1e4])
def test_margins_of_ten_thousand_nats_are_finite(name, margin):
    low = -1.0 - abs(margin)
    levels = (-1.0, low, low, -1.0) if margin > 0 else (low, -1.0, -1.0, low)
    objective, batch = objectives.get(name), pairs(*levels)
    numbers = [objective.loss(batch), *(side for side in objective.push(batch) if side is not None)]
    assert all(np.isfinite(n).all() for n in numbers)


@pytest.mark.parametrize("name", PUSHING)
@pytest.mark.parametrize("library", [torch, array_api_strict], ids=["torch", "array_api_strict"])
def test_one_definition_on_every_library(name, library):
    objective = objectives.get(name)
    for seed in range(4):
        batch = objectives.random_batch(seed, spread=1e4 if seed == 2 else 1.0)
        other = objectives.convert(batch, library.asarray)
        ours, theirs = objective.loss(batch), objective.loss(other)
        assert type(theirs) is type(library.asarray([0.0]))
        # exp and log differ by an ulp between libraries, and a loss sums a few of them.
        size = 1.0 + sum(
            np.abs(batch.total(side)).max() for side in ("chosen", "rejected", "ref_chosen", "ref_rejected")
        )
        assert_allclose(np.asarray(theirs), ours, rtol=64 * EPS * size, atol=64 * EPS)
        for mine, its in zip(objective.push(batch), objective.push(other), strict=True):
            assert_allclose(np.asarray(its), mine, rtol=64 * EPS * size, atol=64 * EPS)


@pytest.mark.parametrize("name", PUSHING)
def test_single_precision_stays_single(name):
    batch = objectives.random_batch(1)
    single = objectives.convert(batch, lambda a: a.astype(np.float32) if a.dtype == np.float64 else a)
    objective = objectives.get(name)
    assert objective.loss(single).dtype == np.float32
    assert objective.push(single).rejected.dtype == np.float32
    assert_allclose(objective.loss(single), objective.loss(batch), rtol=1e3 * np.finfo(np.float32).eps, atol=1e-6)


@pytest.mark.parametrize("name", PUSHING)
def test_residual_is_the_push_times_pi_minus_y_with_no_spread_over_the_vocabulary(name):
    objective, rng = objectives.get(name), np.random.default_rng(7)
    batch = objectives.random_batch(7)
    logits, labels, leaves = {}, {}, {}
    for side in ("chosen", "rejected", "anchor"):
        shape = getattr(batch, side).shape
        logits[side] = torch.asarray(rng.normal(size=(*shape, 8))).requires_grad_()
        labels[side] = torch.asarray(rng.integers(0, 8, shape))
        leaves[side] = torch.log_softmax(logits[side], -1).gather(-1, labels[side][..., None])[..., 0]
    on_torch = replace(objectives.convert(batch, torch.asarray), **leaves)
    objective.loss(on_torch).sum().backward()
    push = objective.push(on_torch)
    for side, leaf in logits.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        one_hot = torch.nn.functional.one_hot(labels[side], 8)
        expected = getattr(push, side)[..., None] * (torch.softmax(leaf, -1) - one_hot)
        assert_allclose(gradient.numpy(), expected.detach().numpy(), rtol=1e4 * EPS, atol=1e4 * EPS)
        assert_allclose(gradient.sum(-1).numpy(), 0.0, atol=1e4 * EPS)  # P1c: the residual sums to zero


@pytest.mark.parametrize("name", PUSHING)
def test_second_derivatives_are_finite_far_out(name):
    objective, batch = objectives.get(name), objectives.convert(objectives.random_batch(2, spread=1e4), torch.asarray)
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    moved = replace(batch, chosen=batch.chosen + shift, rejected=batch.rejected - shift)
    (slope,) = torch.autograd.grad(objective.loss(moved).sum(), shift, create_graph=True)
    assert torch.isfinite(slope)
    if slope.requires_grad:
        assert torch.isfinite(torch.autograd.grad(slope, shift)[0])


def test_curvature_of_dpo_at_the_reference_is_a_quarter_of_beta_squared():
    level = torch.full((1,), -3.0, dtype=torch.float64)
    leaf = level.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objectives.DPO(0.2).loss(pair_batch(leaf, level, level)), leaf, create_graph=True)
    assert_allclose(torch.autograd.grad(slope, leaf)[0], 0.01, rtol=8 * EPS)


@pytest.mark.parametrize("name", [n for n in PUSHING if objectives.get(n).kind == "sequence"])
def test_sequence_push_is_the_coefficient_on_every_token(name):
    objective, batch = objectives.get(name), objectives.random_batch(5)
    push = objective.push(batch)
    for side, c in zip(("chosen", "rejected"), objective.coefficients(batch), strict=True):
        assert c.shape == (4,)
        assert_array_equal(getattr(push, side), np.where(batch.mask(side), c[:, None], 0.0))


@pytest.mark.parametrize("name", PUSHING)
def test_lives_under_vmap(name):
    objective = objectives.get(name)
    shape = {"size": 3, "tokens": 1}
    batches = [objectives.convert(objectives.random_batch(seed, **shape), torch.asarray) for seed in (1, 2)]
    fields = {k: torch.stack([getattr(b, k) for b in batches]) for k, v in vars(batches[0]).items() if v is not None}
    names = list(fields)
    together = torch.func.vmap(lambda *a: objective.loss(Batch(**dict(zip(names, a, strict=True)))))(*fields.values())
    apart = torch.stack([objective.loss(b) for b in batches])
    assert_allclose(together.numpy(), apart.numpy(), rtol=64 * EPS)


def reads(objective: Any, twin: str) -> bool:
    """Whether the loss changes with this array of the batch, on a few random batches."""
    for seed in range(6):
        batch, rng = objectives.random_batch(seed), np.random.default_rng(seed)
        array = getattr(batch, twin)
        moved = replace(batch, **{twin: array + rng.choice([-2.0, 2.0], size=array.shape)})
        if not np.array_equal(objective.loss(batch), objective.loss(moved)):
            return True
    return False


@pytest.mark.parametrize("name", PUSHING)
def test_a_missing_side_is_one_clear_line(name):
    """What the loss reads it asks for, and it asks for nothing else."""
    objective, batch = objectives.get(name), objectives.random_batch(2)
    for field in ("chosen", "rejected", "anchor"):
        for twin in (f"ref_{field}", f"old_{field}", f"{field}_advantage"):
            if getattr(batch, twin, None) is None:
                continue
            without = replace(batch, **{twin: None})
            if reads(objective, twin):
                with pytest.raises(objectives.MissingSideError) as missing:
                    objective.loss(without)
                one_line(missing.value, f"batch.{twin}, which is None: pass {twin}=")
            else:
                assert_array_equal(objective.loss(without), objective.loss(batch))


@pytest.mark.parametrize("x", [-1e4, -745.0, -40.0, -1.0, -0.7, -0.6, -1e-3, -1e-9, -1e-300])
def test_elementary_functions_are_good_to_rounding(x):
    with mpmath.workdps(400):
        at = mpmath.mpf(x)
        exact = {stable.log1mexp: mpmath.log(-mpmath.expm1(at)), stable.softplus: mpmath.log1p(mpmath.exp(at)),
                 stable.sigmoid: 1 / (1 + mpmath.exp(-at))}  # fmt: skip
        for function, value in exact.items():
            # e^x rounds x to eps |x| first; below 5e-324 the answer is 0.
            assert_allclose(float(function(np.asarray(x))), float(value), rtol=8 * EPS * (1 + abs(x)), atol=5e-324)
        assert_allclose(float(stable.softplus(np.asarray(-x))), float(mpmath.log1p(mpmath.exp(-at))), rtol=8 * EPS)


# ---------------------------------------------------------------------------- the table of coefficients, row by row


def sig(x: float) -> float:
    return 1.0 / (1.0 + np.exp(-x))


# (ℓ_+, ℓ_−, ref_+, ref_−) and lengths 2 and 3; every formula as its paper gives it.
LP, LM, RP, RM, NP, NM = -3.0, -5.0, -4.5, -4.0, 2, 3
H, DW, DL = (LP - LM) - (RP - RM), LP - RP, LM - RM
B = 0.3
A = sig(B * H)
PP, PM = np.exp(LP / NP), np.exp(LM / NM)
OR = np.log(PP / (1 - PP)) - np.log(PM / (1 - PM))
A_SIMPO = sig(B * LP / NP - B * LM / NM - 0.5)
A_DPOP = sig(B * (H - 5.0 * max(0.0, -DW)))
ROWS: dict[str, tuple[Any, float, float]] = {
    "sft": (objectives.SFT(), 1, 0),
    "extend": (objectives.Extend(), 1, 1),
    "ga": (objectives.GA(), 0, -1),
    "dpo": (objectives.DPO(B), B * (1 - A), -B * (1 - A)),
    "cdpo": (objectives.CDPO(B, 0.2), B * (0.8 * (1 - A) - 0.2 * A), -B * (1 - 0.2 - A)),
    "ipo": (objectives.IPO(B), -2 * (H - 1 / (2 * B)), 2 * (H - 1 / (2 * B))),
    "slic": (objectives.SLiC(delta=2.5), 1, -1),
    "slic off": (objectives.SLiC(delta=1.5), 0, 0),
    "simpo": (objectives.SimPO(B, 0.5), B / NP * (1 - A_SIMPO), -B / NM * (1 - A_SIMPO)),
    "sppo": (objectives.SPPO(4.0), -2 * (DW - 2.0), -2 * (DL + 2.0)),
    "dpop": (objectives.DPOP(B, 5.0), B * (1 - A_DPOP), -B * (1 - A_DPOP)),
    "rpo": (objectives.RPO(B, 0.7), B * (1 - A) + 0.7 / NP, -B * (1 - A)),
    "cpo": (objectives.CPO(B, 0.7), B * sig(-B * (LP - LM)) + 0.7, -B * sig(-B * (LP - LM))),
    "kto": (
        objectives.KTO(B, 1.2, 0.8),
        1.2 * B * sig(B * (DW - 0.25)) * sig(-B * (DW - 0.25)),
        -0.8 * B * sig(B * (0.25 - DL)) * sig(-B * (0.25 - DL)),
    ),
    "orpo": (
        objectives.ORPO(0.7),
        1 / NP + 0.7 * (1 - sig(OR)) / (NP * (1 - PP)),
        -0.7 * (1 - sig(OR)) / (NM * (1 - PM)),
    ),
    "nca": (objectives.NCA(B), B * ((1 - sig(B * DW)) - 0.5 * sig(B * DW)), -0.5 * B * sig(B * DL)),
    "npo": (objectives.NPO(B), 0, -2 * np.exp(DL) ** B / (1 + np.exp(DL) ** B)),
    "nsr": (objectives.NSR(), 0, -np.exp(LM)),
    "topr": (objectives.TOPR(), 1, -min(1.0, np.exp(LM + 4.4))),
    "asymre": (objectives.AsymRE(0.4), 1 - 0.4, -1 - 0.4),
    "gate-dpo": (objectives.GateDPO(B, 5.0, 0.2), B * (1 - A), -sig(5.0 * (PM - 0.2)) * B * (1 - A)),
    "cw-dpo": (
        objectives.CWDPO(B, -2.0, 0.5),
        B * sig(-B * (DW - sig((LM / NM + 2.0) / 0.5) * DL)),
        -sig((LM / NM + 2.0) / 0.5) * B * sig(-B * (DW - sig((LM / NM + 2.0) / 0.5) * DL)),
    ),
    "dpo-shift": (objectives.DPOShift(B, 0.6), B * sig(-B * (DW - 0.6 * DL)), -0.6 * B * sig(-B * (DW - 0.6 * DL))),
}


@pytest.mark.parametrize("name", ROWS)
def test_coefficients_are_those_of_the_table_of_residuals(name):
    objective, plus, minus = ROWS[name]
    tokens = {"chosen": (LP, NP), "rejected": (LM, NM), "ref_chosen": (RP, NP), "ref_rejected": (RM, NM),
              "old_rejected": (-4.4, NM), "anchor": (-1.0, 1), "ref_anchor": (-1.25, 1)}  # fmt: skip
    batch = Batch(
        **{key: np.full((1, n), total / n) for key, (total, n) in tokens.items()},
        chosen_advantage=np.ones(1),
        rejected_advantage=-np.ones(1),
    )
    c = objective.coefficients(batch)
    assert_allclose([c[0][0], c[1][0]], [plus, minus], rtol=1e2 * EPS, atol=1e2 * EPS)
    assert len(ROWS) >= 22


def test_dpop_pulls_a_fallen_chosen_response_up_harder():
    fallen, a = pairs(-4.0, -5.0, -3.0, -5.0), sig(0.3 * (-1.0 - 5.0))
    plus, minus = objectives.DPOP(0.3, 5.0).coefficients(fallen)
    assert_allclose([plus[0], minus[0]], [0.3 * (1 - a) * 6.0, -0.3 * (1 - a)], rtol=1e2 * EPS)


def test_dpo_starts_at_half_beta():
    plus, minus = objectives.DPO(beta=0.1).coefficients(pairs([-3.0, -300.0], [-5.0, -1.0]))
    assert_array_equal(plus, 0.05)
    assert_array_equal(minus, -0.05)


def test_a_reference_left_out_is_the_policy_without_its_gradient():
    leaf = torch.full((1,), -3.0, dtype=torch.float64, requires_grad=True)
    objectives.DPO(beta=0.1).loss(pair_batch(leaf, leaf - 1.0)).sum().backward()
    assert_allclose(leaf.grad, 0.0, atol=EPS)  # +β/2 − β/2: chosen and rejected move together
    other = torch.full((1,), -3.0, dtype=torch.float64, requires_grad=True)
    objectives.DPO(beta=0.1).loss(pair_batch(other, leaf.detach())).sum().backward()
    assert_allclose(other.grad, -0.05, rtol=8 * EPS)


def test_sppo_starts_by_pushing_the_rejected_down_as_hard_as_it_pulls_the_chosen_up():
    plus, minus = objectives.SPPO(eta=3.0).coefficients(pairs(-3.0, -5.0))
    assert plus[0] == 3.0
    assert minus[0] == -3.0


# ---------------------------------------------------------------------------- the paper's misprints (F3-F5)


def slope(objective: Any, side: str, *levels: float) -> float:
    """Central finite difference of the loss in ℓ of one side; exact to its rounding for quadratics and lines."""
    step, at = 2.0**-10, {"chosen": 0, "rejected": 1}[side]
    up, down = list(levels), list(levels)
    up[at] += step
    down[at] -= step
    return float((objective.loss(pairs(*up)) - objective.loss(pairs(*down)))[0] / (2 * step))


@pytest.mark.parametrize("h", [-4.0, 0.0, 0.39, 1.5, 1 / 0.6, 1 / 0.6 + 1, 6.0])
def test_ipo_coefficient_is_minus_two_h_minus_target_not_the_printed_one(h):
    beta, levels = 0.3, (h - 7.0, -7.0, -7.0, -7.0)
    true = -slope(objectives.IPO(beta), "chosen", *levels)
    beyond = h - 1 / (2 * beta)
    assert_allclose(true, -2 * beyond, rtol=1e-9, atol=1e-9)
    assert_allclose(slope(objectives.IPO(beta), "rejected", *levels), true, rtol=1e-9, atol=1e-9)
    printed = beta * (1 - beyond)  # Eq. 17: β at the target, where the truth is 0, and 0 one nat later
    assert_allclose(printed - true, beta + (2 - beta) * beyond, rtol=1e-9, atol=1e-9)
    assert (abs(printed - true) < 1e-9) == (beyond == -beta / (2 - beta))


def test_ipo_golden_value_of_errata_f3():
    """F3: true 2.54, printed .68. Both hold at β = 0.3 and h = 1/2β − 1.27 = 0.397."""
    beta, h = 0.3, 1 / 0.6 - 1.27
    c, _ = objectives.IPO(beta).coefficients(pairs(h - 7.0, -7.0, -7.0, -7.0))
    assert round(float(c[0]), 2) == 2.54
    assert round(beta * (1 - (h - 1 / (2 * beta))), 2) == 0.68


def test_ipo_reverses_at_its_target_and_dpo_never_does():
    beta = 0.25
    target = 1 / (2 * beta)
    h = target + np.asarray([-1e-6, 0.0, 1e-6])
    batch = pairs(h - 7.0, [-7.0] * 3, [-7.0] * 3, [-7.0] * 3)
    plus, minus = objectives.IPO(beta).coefficients(batch)
    assert_array_equal(np.sign(plus), [1, 0, -1])
    assert_array_equal(np.sign(minus), [-1, 0, 1])
    wide = pairs(np.linspace(-2000, -1, 99), [-1000.0] * 99, [-1000.0] * 99, [-1000.0] * 99)
    assert (objectives.DPO(beta).coefficients(wide)[0] > 0).all()


@pytest.mark.parametrize(("gap", "expected"), [(-3.0, 1.0), (0.9, 1.0), (1.1, 0.0), (5.0, 0.0)])
def test_slic_coefficient_is_the_indicator_and_the_anchor_has_its_own_term(gap, expected):
    levels = (-9.0 + gap, -9.0, -9.0, -9.0)
    assert_allclose(-slope(objectives.SLiC(), "chosen", *levels), expected, atol=1e-9)
    assert_allclose(slope(objectives.SLiC(), "rejected", *levels), expected, atol=1e-9)
    assert objectives.SLiC(weight=0.25).push(pairs(*levels)).anchor[0, 0] == 0.25


@pytest.mark.parametrize("ratio", [-9.0, -2.0, 0.0, 3.0])
def test_sppo_has_a_negative_gradient_until_its_target(ratio):
    levels = (-5.0, -5.0 + ratio, -5.0, -5.0)
    c_minus = -slope(objectives.SPPO(eta=4.0), "rejected", *levels)
    assert_allclose(c_minus, -2 * (ratio + 2.0), rtol=1e-9, atol=1e-9)
    assert (c_minus < 0) == (ratio > -2.0)
    printed = 2 * (ratio + 2.0)  # Eq. 22: the overall sign reversed
    assert np.sign(printed) != np.sign(c_minus) or c_minus == 0 == round(printed, 9)


# ---------------------------------------------------------------------------- TRL's losses


def test_nca_push_on_the_chosen_reverses_at_ln_two():
    ratio = np.log(2.0) / 0.1 + np.asarray([-1e-3, 1e-3])
    plus, _ = objectives.NCA(0.1).coefficients(pairs(ratio - 50.0, [-50.0] * 2, [-50.0] * 2, [-50.0] * 2))
    assert plus[0] > 0 > plus[1]


def test_robust_dpo_never_lets_go_and_has_no_floor():
    deep = pairs(-1.0, -1e4, -1.0, -1.0)
    assert_allclose(objectives.Robust().coefficients(deep)[1], -0.1 * 0.1 / 0.8, rtol=1e2 * EPS)
    assert objectives.Robust().loss(deep)[0] < -100.0


def test_exo_reverses_at_its_target_and_lets_badly_wrong_pairs_go():
    h = np.log(0.999 / 0.001) / 0.1 + np.asarray([-1e-3, 1e-3, -1e4])
    plus, _ = objectives.EXOPair().coefficients(pairs(h - 2e4, [-2e4] * 3, [-2e4] * 3, [-2e4] * 3))
    assert plus[0] > 0 > plus[1]
    assert plus[2] == 0.0


def test_discopop_pulls_the_wrong_way_in_a_window_whose_lower_edge_attracts():
    u = np.linspace(-0.3, 0.3, 60_001)
    strength = objectives.DiscoPOP(beta=1.0).strength(u)
    edges = u[1:][np.diff(np.sign(strength)) != 0]
    assert_allclose(edges, [-0.119, 0.072], atol=5e-4)
    at = 0.0
    for _ in range(20_000):  # gradient descent on the margin from π_ref
        at += 1e-3 * float(objectives.DiscoPOP(beta=1.0).strength(np.asarray(at)))
    assert_allclose(at, edges[0], atol=1e-4)


def test_apo_down_pushes_the_chosen_down_too():
    rejected_behind = pairs(-10.0, -60.0, -10.0, -10.0)
    plus, minus = objectives.APODown().coefficients(rejected_behind)
    assert plus[0] < 0
    assert minus[0] < 0


def test_length_normalised_twins_differ_from_the_papers_losses_only_by_length():
    equal = pairs([-3.0, -8.0], [-5.0, -2.0], [-4.0, -4.0], [-4.0, -4.0])
    for paper, trl in ((objectives.IPO(), objectives.TokenMeanIPO()), (objectives.DPO(), objectives.SigmoidNorm())):
        assert_array_equal(paper.loss(equal), trl.loss(equal))
        ragged = objectives.random_batch(4)
        assert not np.allclose(paper.loss(ragged), trl.loss(ragged))


# ---------------------------------------------------------------------------- tokens, groups, targets


def test_ppo_damps_a_negative_linearly_and_then_drops_it():
    ratio = np.asarray([1.3, 1.0, 0.9, 0.81, 0.79, 0.1])
    old = np.full(6, np.log(1e-6))
    minus = objectives.PPO().push(pairs(old, np.log(ratio) + old, old_rejected=old[:, None])).rejected[:, 0]
    assert_allclose(minus, [-1.3, -1.0, -0.9, -0.81, 0.0, 0.0], rtol=1e2 * EPS)
    # F9: at ρ = 1 the push is full, though π = 1e-6.


def test_ppo_stops_pulling_above_the_clip():
    ratio, old = np.asarray([0.1, 1.0, 1.19, 1.21, 9.0]), np.full(5, -20.0)
    plus = objectives.PPO().push(pairs(np.log(ratio) + old, old, old_chosen=old[:, None])).chosen[:, 0]
    assert_allclose(plus, [0.1, 1.0, 1.19, 0.0, 0.0], rtol=1e2 * EPS)


@pytest.mark.parametrize(("right", "wrong"), [(1, 3), (3, 1), (2, 2), (1, 7), (5, 3)])
def test_grpo_weights_of_right_and_wrong_answers_cancel(right, wrong):
    """Lemma 4.2: A = (1−p)/√(p(1−p)) and −p/√(p(1−p)), so N⁺p⁺ = N⁻p⁻."""
    size = max(right, wrong)
    here = [(np.arange(size) < n)[:, None] & np.ones((size, 2), dtype=bool) for n in (right, wrong)]
    calm = np.full((size, 2), -1.5)
    batch = Batch(
        chosen=calm, rejected=calm, old_chosen=calm, old_rejected=calm, chosen_mask=here[0], rejected_mask=here[1]
    )
    push = objectives.GRPO(per_token_mean=False).push(batch)
    p = right / (right + wrong)
    assert_allclose(push.chosen[0, 0], (1 - p) / np.sqrt(p * (1 - p)), rtol=1e2 * EPS)
    assert_allclose(push.rejected[0, 0], -p / np.sqrt(p * (1 - p)), rtol=1e2 * EPS)
    assert_allclose(push.chosen.sum(), -push.rejected.sum(), rtol=1e2 * EPS)
    assert not push.chosen[right:].any()


def test_grpo_normalises_within_its_groups_and_all_right_teaches_nothing():
    rewards = np.asarray([1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    groups = np.asarray([5, 5, 8, 8, 9, 9, 5])
    advantages = objectives.group_advantages(rewards, groups=groups)
    first = np.asarray([1.0, 0.0, 0.0])
    assert_allclose(advantages[[0, 1, 6]], (first - first.mean()) / first.std(), rtol=1e2 * EPS)
    assert_array_equal(advantages[2:6], 0.0)


def test_topr_truncates_the_ratio_of_the_whole_response_or_of_each_token():
    tokens, old = np.asarray([[-3.0, -1.0]]), np.asarray([[-1.0, -2.0]])
    batch = Batch(chosen=tokens, rejected=tokens, old_rejected=old)
    assert_allclose(objectives.TOPR().push(batch).rejected, [[-np.exp(-1.0)] * 2], rtol=1e2 * EPS)
    assert_allclose(objectives.TOPRToken().push(batch).rejected, [[-np.exp(-2.0), -1.0]], rtol=1e2 * EPS)


def test_unlikelihood_pushes_by_the_odds():
    push = objectives.Unlikelihood().push(pairs(-1.0, np.log(0.8))).rejected
    assert_allclose(push, [[-4.0]], rtol=1e2 * EPS)


def test_ld_dpo_weights_only_the_tokens_beyond_the_shorter_response():
    batch = Batch(
        chosen=np.full((1, 2), -1.0), rejected=np.full((1, 4), -1.0),
        ref_chosen=np.full((1, 2), -1.0), ref_rejected=np.full((1, 4), -1.0),
    )  # fmt: skip
    push = objectives.LDDPO(beta=0.1, alpha=0.25).push(batch)
    assert_allclose(push.rejected, [[-0.05, -0.05, -0.0125, -0.0125]], rtol=1e2 * EPS)
    assert_allclose(push.chosen, [[0.05, 0.05]], rtol=1e2 * EPS)
    ragged = objectives.random_batch(8)
    assert_allclose(objectives.LDDPO(alpha=1.0).loss(ragged), objectives.DPO().loss(ragged), rtol=1e2 * EPS)


def test_npo_fades_with_the_log_ratio_as_published():
    """Zhang et al. 2024 (2404.05868): W at π/π_ref = 1, .1, .01."""
    batch = pairs([-1.0] * 3, np.log([1.0, 0.1, 0.01]) - 5.0, [-1.0] * 3, [-5.0] * 3)
    assert_allclose(-objectives.NPO(1.0).coefficients(batch)[1], [1.0, 0.182, 0.0198], atol=5e-4)
    assert_allclose(-objectives.NPO(0.1).coefficients(batch)[1], [1.0, 0.885, 0.774], atol=5e-4)


def test_the_gate_leaves_sigma_of_minus_alpha_tau_of_the_push():
    plus, minus = objectives.GateDPO(alpha=10.0, tau=0.3).coefficients(pairs(-1.0, -800.0))
    assert_allclose(minus[0] / plus[0], -sig(-3.0), rtol=1e2 * EPS)


@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_gates_quantile_is_that_of_the_response_not_of_its_padding(q):
    batch = objectives.random_batch(11, size=5, tokens=7)
    gates = objectives.GateDPO(alpha=1.0, tau=0.0, quantile=q).gate(batch)
    expected = [
        np.quantile(np.exp(row[keep]), q) for row, keep in zip(batch.rejected, batch.mask("rejected"), strict=True)
    ]
    assert_allclose(gates, sig(np.asarray(expected)), rtol=1e2 * EPS)


def test_kto_takes_z0_from_the_anchor_and_never_below_zero():
    sides = {"anchor": np.asarray([[-1.0]]), "ref_anchor": np.asarray([[-3.0]])}
    high = objectives.KTO().coefficients(pairs(-1.0, -2.0, -3.0, -2.0, **sides))
    assert_allclose(high[0], 0.1 * 0.25, rtol=1e2 * EPS)  # r_+ = z0 = 2
    sides = {"anchor": np.asarray([[-3.0]]), "ref_anchor": np.asarray([[-1.0]])}
    low = objectives.KTO().coefficients(pairs(-2.0, -2.0, -2.0, -2.0, **sides))
    assert_allclose(low[0], 0.1 * 0.25, rtol=1e2 * EPS)  # z0 = max(0, −2)
    own = objectives.KTO().coefficients(pairs(-1.0, -2.0, -5.0, -2.0, anchor=None, ref_anchor=None))
    assert_allclose(own[0], 0.1 * sig(0.2) * sig(-0.2), rtol=1e2 * EPS)  # z0 = mean(4, 0) = 2


def test_bst_residual_is_gradient_ascent_plus_the_models_own_favourites():
    logits, labels, _ = objectives.random_contexts(3)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    bst, ga = objectives.BST(weight=0.4, k=3), objectives.BST(weight=0.0)
    one_hot = np.arange(9) == labels[..., None]
    assert_allclose(ga.residual(logp, labels), one_hot - np.exp(logp), atol=1e2 * EPS)
    difference = np.where(one_hot, 0.0, bst.residual(logp, labels) - ga.residual(logp, labels))
    top = np.sort(logits, -1)[..., -3:-2] <= logits
    belief = np.where(top, np.exp(logp), 0.0)
    belief /= belief.sum(-1, keepdims=True)
    assert_allclose(difference, np.where(one_hot, 0.0, 0.4 * belief), atol=1e2 * EPS)
    assert_allclose(bst.residual(logp, labels).sum(-1), 0.0, atol=1e2 * EPS)
    printed = np.exp(logp) - 0.6 * one_hot + 0.4 * belief  # Theorem 5.2 as printed: not a residual at all (F12)
    assert np.abs(printed.sum(-1)).min() > 0.5


# ---------------------------------------------------------------------------- the table

# What each loss's formula says, in the table's words.
DOCUMENTED = {
    "trl.sigmoid": "margin",
    "trl.hinge": "margin, hard off",
    "trl.ipo": "target margin, reverses beyond",
    "trl.exo_pair": "target margin, reverses beyond, both ways",
    "trl.nca_pair": "own log-ratio",
    "trl.robust": "never (least 0.0125)",
    "trl.bco_pair": "own log-ratio",
    "trl.sppo_hard": "target own log-ratio, reverses beyond",
    "trl.aot": "margin",
    "trl.aot_unpaired": "margin",
    "trl.apo_zero": "own log-ratio, both ways",
    "trl.apo_down": "margin, both ways",
    "trl.discopop": "margin, wrong sign in a window",
    "trl.sft": "no push",
    "trl.sigmoid_norm": "margin",
    "sft": "no push",
    "extend": "pulls y− up",
    "ga": "never (least 1)",
    "ipo": "target margin, reverses beyond",
    "sppo": "target own log-ratio, reverses beyond",
    "kto": "own log-ratio, both ways",
    "npo": "own log-ratio",
    "nsr": "own probability",
    "unlikelihood": "own probability",
    "ppo": "ratio to the old policy, hard off",
    "topr": "ratio to the old policy",
    "cw-dpo": "margin; own probability",
}
UNBOUNDED = {"ga", "asymre", "bs-t", "trl.robust"}
NO_NEGATIVE = {"sft", "extend", "trl.sft"}
CHOSEN_FALLS = {"cdpo", "ipo", "sppo", "nca", "trl.ipo", "trl.exo_pair", "trl.nca_pair", "trl.sppo_hard",
                "trl.apo_down", "trl.discopop"}  # fmt: skip
LENGTH_NORMALISED = {"simpo", "orpo", "grpo", "trl.ipo", "trl.sigmoid_norm"}
LOOKS_ACROSS = {"kto", "grpo", "mpo", "trl.sft", "trl.aot", "trl.aot_unpaired"}


@pytest.fixture(scope="module")
def rows():
    return {r.name: r for r in objectives.table()}


def test_the_table_has_a_row_for_every_objective(rows):
    assert list(rows) == NAMES
    assert [line.split("`")[1] for line in objectives.table_markdown(list(rows.values())).splitlines()[2:]] == NAMES


@pytest.mark.parametrize("name", DOCUMENTED)
def test_computed_words_are_the_documented_ones(rows, name):
    assert rows[name].fades == DOCUMENTED[name]


def test_computed_signs_are_those_of_the_sign_table(rows):
    assert {n for n, r in rows.items() if r.negative == "no"} == NO_NEGATIVE
    assert {n for n, r in rows.items() if r.negative == "later"} == {"trl.discopop"}
    assert {n for n, r in rows.items() if r.bounded == "no"} == UNBOUNDED
    assert {n for n, r in rows.items() if r.lowers_chosen != "no"} == CHOSEN_FALLS
    assert {n for n, r in rows.items() if r.length == "mean"} == LENGTH_NORMALISED
    assert {n for n, r in rows.items() if r.across == "batch"} == LOOKS_ACROSS


def test_the_table_follows_its_parameters():
    assert objectives.row("trl.robust", label_smoothing=0.0).fades == "margin"
    assert objectives.row("trl.robust", label_smoothing=0.3).fades == "never (least 0.075)"
    assert objectives.row("gate-dpo", alpha=1e3, tau=0.1).fades == "margin; own probability"
    only_favourites = objectives.row("bs-t", weight=1.0)  # y itself is outside the top k and rises
    assert (only_favourites.fades, only_favourites.negative) == ("pulls y− up", "no")


# ---------------------------------------------------------------------------- registry and errors


MODULES = ["", ".base", ".batch", ".check", ".pairs", ".single", ".stable", ".table", ".target", ".tokens", ".trl"]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module):
    name = f"toyld.objectives{module}"
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
    assert result.attempted > 0 or module in (".pairs", ".single", ".trl")


def test_parameters_are_visible():
    assert repr(objectives.get("dpo", beta=0.3)) == "DPO(beta=0.3)"
    assert objectives.get("dpo", beta=0.3) == objectives.DPO(beta=0.3)


def test_unknown_names_and_parameters_list_the_known_ones():
    with pytest.raises(objectives.UnknownObjectiveError) as unknown:
        objectives.get("dop")
    one_line(unknown.value, "no objective 'dop'", "dpo", "trl.sigmoid_norm")
    with pytest.raises(objectives.UnknownObjectiveError) as parameter:
        objectives.get("dpo", bta=0.1)
    one_line(parameter.value, "dpo has no parameter bta", "beta")


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        ({}, ("at least one side", "no side at all")),
        ({"chosen": np.zeros(3)}, ("chosen", "(B, T)", "(3,)")),
        ({"chosen": np.zeros((2, 3)), "rejected": np.zeros((3, 3))}, ("one B", "[2, 3]")),
        ({"chosen": np.zeros((2, 3)), "ref_chosen": np.zeros((2, 1))}, ("ref_chosen", "(2, 3)", "(2, 1)")),
        ({"chosen": np.zeros((2, 3)), "chosen_mask": np.zeros((2, 4))}, ("chosen_mask", "(2, 3)", "(2, 4)")),
        ({"chosen": np.zeros((2, 3)), "ref_rejected": np.zeros((2, 3))}, ("ref_rejected", "without rejected")),
        ({"chosen": np.zeros((2, 3)), "chosen_advantage": np.zeros(3)}, ("chosen_advantage", "(B,)", "(3,)")),
        ({"chosen": np.zeros((2, 3)), "groups": np.zeros(3)}, ("groups", "(2,)", "(3,)")),
    ],
)
def test_shapes_that_disagree_are_one_clear_line(sides, words):
    with pytest.raises(ObjectiveError) as error:
        Batch(**sides)
    one_line(error.value, *words)


def test_bad_parameters_are_one_clear_line():
    with pytest.raises(ObjectiveError) as smoothing:
        objectives.EXOPair(label_smoothing=0.0)
    one_line(smoothing.value, "0 < label_smoothing < 1", "0.0")
    with pytest.raises(ObjectiveError) as weights:
        objectives.Mix(parts=(objectives.DPO(),), weights=(1.0, 2.0))
    one_line(weights.value, "one weight per part", "1 parts", "2 weights")
    two = np.full((1, 2), -1.0)
    with pytest.raises(ObjectiveError) as reward:
        objectives.AsymRE().loss(Batch(chosen=two, rejected=two, chosen_advantage=two, rejected_advantage=two))
    one_line(reward.value, "one reward per response")


def test_registering_demands_a_name_of_its_own_and_frozen_defaults():
    @dataclass(frozen=True)
    class Again(objectives.DPO):
        name: ClassVar[str] = "dpo"

    @dataclass(frozen=True)
    class Nameless(objectives.DPO):
        name: ClassVar[str] = ""

    class Plain:
        name, source = "plain", "nowhere"

    for cls, words in ((Again, ("'dpo' is taken",)), (Nameless, ("name and source",)), (Plain, ("frozen dataclass",))):
        with pytest.raises(ObjectiveError) as error:
            objectives.register(cls)
        one_line(error.value, *words)
    assert list(objectives.OBJECTIVES) == NAMES


def test_a_side_the_batch_does_not_have_gets_no_push():
    only = Batch(rejected=np.full((2, 3), -1.0))
    push = objectives.GA().push(only)
    assert push.chosen is None
    assert push.anchor is None
    assert_array_equal(push.rejected, -1.0)


@pytest.mark.parametrize("other", ["rejected", "ref_chosen", "old_chosen", "chosen_mask", "chosen_advantage", "groups"])
def test_mixed_libraries_are_refused(other):
    shape = (1,) if other in ("chosen_advantage", "groups") else (1, 1)
    with pytest.raises(ObjectiveError) as error:
        Batch(chosen=torch.zeros((1, 1)), **{other: np.zeros(shape)})
    one_line(error.value, "one library", "chosen torch", f"{other} numpy", "convert")


@pytest.mark.parametrize("wrong", [[[-1.0]], -1.0, "dpo"])
@pytest.mark.parametrize("side", ["chosen", "ref_chosen"])
def test_what_is_no_array_is_refused(side, wrong):
    with pytest.raises(ObjectiveError) as error:
        Batch(**({"chosen": np.zeros((1, 1))} | {side: wrong}))
    one_line(error.value, f"{side}: expected an array", type(wrong).__name__, f"numpy.asarray({side})")


def test_pair_batch_refuses_lists_and_mixed_libraries_in_one_line():
    one = np.asarray([-1.0])
    with pytest.raises(ObjectiveError) as listed:
        pair_batch(one, [-2.0])
    one_line(listed.value, "rejected: expected an array", "list")
    with pytest.raises(ObjectiveError) as mixed:
        pair_batch(torch.asarray(one), torch.asarray(one), one)
    one_line(mixed.value, "one library", "chosen torch", "ref_chosen numpy")
    with pytest.raises(ObjectiveError) as side:
        pair_batch(one, one, old_rejected=torch.asarray([[-1.0]]))
    one_line(side.value, "one library", "chosen numpy", "old_rejected torch")


# ---------------------------------------------------------------------------- tests of the tests: planted bugs


def test_a_dropped_beta_one_minus_a_is_caught(monkeypatch):
    monkeypatch.setattr(objectives.DPO, "strength", lambda self, h: self.beta + 0.0 * h)
    with pytest.raises(objectives.PushError, match="dpo: expected push"):
        objectives.check(objectives.DPO())


def pushed_sides(name: str) -> list[int]:
    """Which of (c_+, c_−) are not always 0."""
    objective = objectives.get(name)
    if objective.kind != "sequence":
        return []
    pushes = [objective.coefficients(objectives.random_batch(seed)) for seed in range(12)]
    return [side for side in (0, 1) if any(np.any(push[side]) for push in pushes)]


@pytest.mark.parametrize(("name", "side"), [(name, side) for name in PUSHING for side in pushed_sides(name)])
def test_a_flipped_sign_is_caught(monkeypatch, name, side):
    cls = objectives.OBJECTIVES[name]
    right = cls.coefficients

    def wrong(self: Any, batch: Batch) -> Any:
        c = list(right(self, batch))
        c[side] = -c[side]
        return tuple(c)

    monkeypatch.setattr(cls, "coefficients", wrong)
    with pytest.raises(objectives.PushError):
        objectives.check(cls())


def test_every_sequence_loss_has_a_side_to_flip():
    assert [n for n in PUSHING if objectives.get(n).kind == "sequence" and not pushed_sides(n)] == []
    assert pushed_sides("sft") == [0]
    assert pushed_sides("ga") == [1]
    assert pushed_sides("dpo") == [0, 1]


@pytest.mark.parametrize("name", ["simpo", "orpo", "rpo", "trl.ipo", "trl.sigmoid_norm", "grpo"])
def test_a_missing_length_normalisation_is_caught(monkeypatch, name):
    """The push forgets 1/|y|, the loss has it."""
    cls = objectives.OBJECTIVES[name]
    right = cls.push

    def forgetful(self: Any, batch: Batch) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "length", lambda self, side: self.zeros() + 1.0)
            return right(self, batch)

    monkeypatch.setattr(cls, "push", forgetful)
    with pytest.raises(objectives.PushError):
        objectives.check(cls())


@pytest.mark.parametrize("name", ["topr", "topr-token", "gate-dpo", "cw-dpo", "kto"])
def test_a_weight_that_is_not_detached_is_caught(monkeypatch, name):
    module = __import__(objectives.OBJECTIVES[name].__module__, fromlist=["detach"])
    monkeypatch.setattr(module, "detach", lambda x: x)
    with pytest.raises(objectives.PushError):
        objectives.check(objectives.get(name))


def test_a_mask_that_is_not_applied_is_caught(monkeypatch):
    monkeypatch.setattr(Batch, "spread", lambda self, values, side: values[:, None] + 0.0 * self.tokens(side))
    with pytest.raises(objectives.PushError, match="no push on masked positions"):
        objectives.check(objectives.DPO())


def test_a_naive_sigmoid_is_caught(monkeypatch):
    import toyld.objectives.pairs as pairs_module

    monkeypatch.setattr(pairs_module, "softplus", lambda x: torch.log1p(torch.exp(torch.as_tensor(x))))
    with pytest.raises(objectives.PushError, match="expected finite numbers"):
        objectives.check(objectives.DPO(beta=1.0))


def test_a_missing_row_sort_in_aot_is_caught(monkeypatch):
    right = objectives.AOT._delta
    monkeypatch.setattr(objectives.AOT, "_delta", lambda self, b: (right(self, b)[0], b.xp.flip(right(self, b)[1])))
    with pytest.raises(objectives.PushError):
        objectives.check(objectives.AOT())
