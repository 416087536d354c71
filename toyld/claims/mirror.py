"""SFT as the mirror of a negative gradient (T8, F11) and "extend", SFT on both responses, in closed form (T9).

Notation: a = p − e_y, K(s) = log Σ_j p_j e^{sa_j}, y* the most likely class other than y, Δ = 1 + p_{y*} − p_y the
range of a. A negative step gives log(p'_i/p_i) = sa_i − K(s), an SFT step of the same size −sa_i − K(−s).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import constant, label, logits, negative_step, other_label, real, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, at, least, others, realised, span

Array = Any
START = {"z": logits(), "y": label(), "s": step_size()}
SAME = constant(1.0)
BACKWARDS = Premises({"z": logits(), "y": label(), "s": real(-5.0, -0.1)})


def _reach(z: Array, y: Array) -> Array:
    return np.pi / sm.safe_step(z, y)


def _sft_threshold(z: Array, y: Array, s: Array) -> Array:
    """τ(−s) = −(1/s) log Σ_j p_j e^{−sa_j}: under SFT the others below it rise."""
    return sm.threshold(z, y, s=-s)


def _least_other(changes: list[Any], *labels: int) -> Any:
    """The smallest ball among the classes that are none of the labels."""
    return least(x for i, x in enumerate(changes) if i not in labels)


@claim(
    "sft.mirror",
    "An SFT step and a negative step of the same size nearly cancel: log α_i(SFT, s) + log α_i(negative, s) = "
    "−(K(s) + K(−s)), the same for every class and between −s²Δ²/4 and 0.",
    source="toyld, T8, exactly",
    kind="theorem",
    premises=Premises({**START, "ratio": SAME}),
    proof="Add the two closed forms: ±sa_i cancel. K(0) = 0 and 0 ≤ K'' ≤ Δ²/4 (Popoviciu), so "
    "0 ≤ K(s) + K(−s) ≤ 2·s²Δ²/8.",
    without=Without("both steps have the same size", Premises({**START, "ratio": real(0.2, 0.9)})),
)
def mirror(z: Array, y: Array, s: Array, ratio: Array) -> Margin:
    up, down = realised(z, y, s, c=1.0), realised(z, y, s * ratio, c=-1.0)
    both = up + down
    bound = rounding(span(z, s, up, down))
    high, low = both.max(axis=-1), both.min(axis=-1)
    cap = (s * _reach(z, y)) ** 2 / 4.0
    return Margin(np.stack([bound[:, 0] - (high - low), -high, low + cap], axis=-1), bound)


@claim(
    "sft.label-rises-runner-up-falls",
    "Under SFT the label always rises and the most likely other class always falls, by the largest factor of all.",
    source="toyld, T8, the mirror of Claims 1 and 2",
    kind="theorem",
    premises=negative_step(),
    proof="log(p_y/p'_y) = log Σ_j p_j e^{−s(a_j − a_y)} with a_j ≥ a_y, and log(p_{y*}/p'_{y*}) = "
    "log Σ_j p_j e^{s(a_{y*} − a_j)} with a_{y*} ≥ a_j; log α_i = −sa_i − K(−s) is least where a_i is largest.",
    without=Without("the gradient is positive (s > 0)", BACKWARDS),
)
def label_rises_runner_up_falls(z: Array, y: Array, s: Array) -> Margin:
    change, star = sm.log_alpha(z, y, s=s, c=1.0), sm.runner_up(z, y)
    up, down = at(change, y), at(change, star)
    rounded = 1.0 + np.abs(s)
    bound = np.stack([rounding(np.abs(up)), rounding(np.abs(down)), rounding(rounded)], axis=-1)
    return Margin(np.stack([up, -down, change.min(axis=-1) - down], axis=-1), bound)


@claim(
    "sft.threshold",
    "Under SFT on y a class j ≠ y rises exactly if p_j < −K(−s)/s: log(p'_j/p_j) = s(−K(−s)/s − p_j).",
    source="toyld, T8; corrects F11",
    kind="identity",
    premises=negative_step(),
    proof="log α_j = −sp_j − K(−s) for j ≠ y. This is T1's threshold τ at −s.",
)
def threshold(z: Array, y: Array, s: Array) -> Margin:
    done = realised(z, y, s, c=1.0)
    margin = identity(done, s[:, None] * (_sft_threshold(z, y, s)[:, None] - sm.softmax(z)), span(z, s, done))
    return Margin(np.where(others(z, y), margin.value, np.inf), margin.bound)


@claim(
    "sft.threshold-falls",
    "SFT's threshold starts at ‖p‖² − p_y, is below it by at most sΔ²/8 and only falls as the step grows: the set of "
    "other classes that rise shrinks.",
    source="toyld, T8 with T4",
    kind="theorem",
    premises=Premises({**START, "more": real(1.0, 10.0)}),
    proof="It is the chord slope K(−s)/(−s) of the convex K with K(0) = 0, which increases with −s and tends to "
    "K'(0) = ‖p‖² − p_y; K'' ≤ Δ²/4.",
    without=Without("the second step is the larger one", Premises({**START, "more": real(0.1, 1.0)})),
)
def threshold_falls(z: Array, y: Array, s: Array, more: Array) -> Margin:
    tau = _sft_threshold(z, y, s)
    gap = sm.threshold_limit(z, y) - tau
    value = [gap, s * _reach(z, y) ** 2 / 8.0 - gap, tau - _sft_threshold(z, y, s * more)]
    return Margin(np.stack(value, axis=-1), rounding(1.0 + s)[:, None])


@claim(
    "sft.likely-label-lowers-the-rest",
    "If p_y ≥ ‖p‖², SFT on y lowers every other class, at every step.",
    source="toyld, T8; the true part of F11",
    kind="theorem",
    premises=negative_step(where=lambda z, y, s: sm.threshold_limit(z, y) <= 0.0),
    proof="The threshold is at most ‖p‖² − p_y ≤ 0 (sft.threshold-falls), below every p_j. In particular once p_y is "
    "the largest probability: ‖p‖² ≤ max p.",
    without=Without("p_y ≥ ‖p‖²", negative_step()),
)
def likely_label_lowers_the_rest(z: Array, y: Array, s: Array) -> Margin:
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s, c=1.0), -np.inf).max(axis=-1)
    return Margin(-change, rounding(1.0 + s))


@claim(
    "sft.lowers-everything-else",
    "SFT on y pushes every other class down.",
    source=f"{PAPER}, “only push-down” for what SFT never teaches (F11, S5)",
    kind="theorem",
    expect="refuted",
    instead="sft.threshold",
    premises=negative_step(),
    proof="True of the logits, not of the probabilities: mass taken from y* is shared out by the normalisation and "
    "every class with p_j < ‖p‖² − p_y rises at first. With two classes it is true.",
    counterexample=Counterexample(
        {"p": (Fraction(3, 5), Fraction(1, 5), Fraction(1, 5)), "y": 1, "s": Fraction(1, 4)},
        margin=lambda p, y, s: _least_other([-x for x in exact.log_alphas(p, y, s, 1)], y),
        note="class 3 rises with the label",
    ),
)
def lowers_everything_else(z: Array, y: Array, s: Array) -> Margin:
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s, c=1.0), -np.inf).max(axis=-1)
    return Margin(-change, rounding(1.0 + s))


TRAINED = {"z": logits(), "plus": label(), "sft": step_size(), "y": other_label("plus"), "s": step_size()}


def _fitted(z: Array, plus: Array, sft: Array) -> Array:
    return sm.step(z, sm.residual(z, plus), s=sft)


def _chosen_at_peak(z: Array, plus: Array, sft: Array, y: Array, s: Array) -> Array:
    return at(sm.softmax(_fitted(z, plus, sft)), plus) >= 3**-0.5


@claim(
    "extend.without-it",
    "Once SFT on y+ alone has brought p_+ to 1/√3 or more, a negative step of any size on any y− lowers every class "
    "but y+.",
    source=f"toyld, T9 with squeeze.peak-takes-all; {PAPER}, §4.3",
    kind="theorem",
    premises=Premises(TRAINED, where=_chosen_at_peak, sizes=THREE_OR_MORE),
    proof="y+ is then the top class and not the penalised one: squeeze.peak-takes-all. With p_+ = 1 − ε the threshold "
    "is at least (1 − ε)² − p_−(1 − p_−), and more at a finite step.",
    without=Without("SFT has brought p_+ to 1/√3", Premises(TRAINED, sizes=THREE_OR_MORE)),
)
def without_it(z: Array, plus: Array, sft: Array, y: Array, s: Array) -> Margin:
    z = _fitted(z, plus, sft)
    return Margin(np.where(others(z, plus), -sm.log_alpha(z, y, s=s), np.inf), rounding(1.0 + s)[:, None])


def _epsilon(high: float) -> Field:
    """ε (n,), log-uniform from 1e-5 up to and including `high`; u = 0 is `high`."""
    return Field(lambda size: 1, lambda u, size, case: high * (1e-5 / high) ** u[:, 0])


def _filled(*, labels: int) -> Field:
    """Logits (n, V): 1 − ε shared equally by the first `labels` classes, ε by the rest as `rest` says."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        shape, eps = logits(high=20.0), case["eps"][:, None]
        rest = np.log(eps) + sm.log_softmax(shape.decode(u, size - labels, case))
        return np.concatenate([np.tile(np.log1p(-eps) - np.log(labels), (1, labels)), rest], axis=-1)

    return Field(lambda size: logits().width(size - labels), decode)


OWN_PATH = {"eps": _epsilon(0.499), "z": _filled(labels=1)}


def _own_path_range(eps: Array) -> Array:
    return np.log1p(-eps) / eps - np.log(eps) / eps


@claim(
    "extend.own-path",
    "On y−'s own path after extend, p_− = 1 − ε with ε < 1/2, a negative step lowers y− alone, for every "
    "s ≤ log((1 − ε)/ε)/ε, however the rest is distributed.",
    source=f"toyld, T9 with its exact range; {PAPER}, §4.3",
    kind="theorem",
    premises=Premises({**OWN_PATH, "share": real(0.0, 1.0)}),
    proof="Σ_{others} p_j e^{sp_j} ≤ εe^{sε} (convexity: all of ε on one class is worst), so e^{K(s)} ≤ (1 − ε)/u + εu "
    "for u = e^{sε} after p_−e^{−sε}; that is ≤ 1 iff εu² − u + 1 − ε ≤ 0 iff 1 ≤ u ≤ (1 − ε)/ε. Then "
    "τ(s) ≤ 0 < p_i. Sharp: with all of ε on one class a further class of vanishing mass loses just beyond.",
    without=Without(
        "s ≤ log((1 − ε)/ε)/ε", Premises({**OWN_PATH, "share": real(1.0, 3.0)}, sizes=THREE_OR_MORE)
    ),
)  # fmt: skip
def own_path(eps: Array, z: Array, share: Array) -> Margin:
    y, s = np.zeros(len(z), dtype=int), np.maximum(share, 1e-6) * _own_path_range(eps)
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s), np.inf).min(axis=-1)
    # s·p_i ≤ s·ε ≤ 3 log(1/ε), each p_i good to ε_machine|log p_i|.
    return Margin(change, rounding((1.0 + s * eps) * (1.0 + np.abs(z).max(axis=-1))))


@claim(
    "extend.own-path-any-step",
    "On y−'s own path after extend, p_− > 1/2, a negative step of any size lowers y− alone.",
    source="toyld, T9, “nobody is squeezed”, read at a finite step",
    kind="theorem",
    expect="refuted",
    instead="extend.own-path",
    premises=negative_step(where=lambda z, y, s: at(sm.softmax(z), y) > 0.5, sizes=THREE_OR_MORE),
    proof="True to first order, ‖p‖² − p_− ≤ −ε(1 − 2ε), and up to the step of extend.own-path; but τ(s) → p_{y*} "
    "(T4). It stays true if all others are equal.",
    counterexample=Counterexample(
        {"p": (Fraction(4, 7), Fraction(2, 7), Fraction(1, 7)), "y": 0, "s": Fraction(8)},
        margin=lambda p, y, s: _least_other(exact.log_alphas(p, y, s), y),
    ),
)
def own_path_any_step(z: Array, y: Array, s: Array) -> Margin:
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s), np.inf).min(axis=-1)
    return Margin(change, rounding(1.0 + s))


SHARED = {"eps": _epsilon(1.0 / 3.0), "z": _filled(labels=2)}


def _shared(z: Array) -> tuple[Array, Array, Array]:
    """(label of y−, smallest probability of the rest, Σ over the rest of p²)."""
    rest = sm.softmax(z)[:, 2:]
    return np.ones(len(z), dtype=int), rest.min(axis=-1), np.sum(rest**2, axis=-1)


@claim(
    "extend.shared-context",
    "At a shared context p_+ = p_− = (1 − ε)/2, a negative step lowers y− alone for every "
    "s ≤ 4ε(1 − ε) + 8(m − r), m the least and r the sum of squares of the rest; for ε < 1/3 this is above 4ε(1 − 3ε).",
    source="toyld, T9 with its range",
    kind="theorem",
    premises=Premises({**SHARED, "share": real(1e-3, 1.0)}, sizes=THREE_OR_MORE),
    proof="τ(0+) = ‖p‖² − p_− = −ε(1 − ε)/2 + r and Δ = 1, so τ(s) ≤ r − ε(1 − ε)/2 + s/8 (T2), which is ≤ m in this "
    "range. r ≤ ε² and m > 0. To first order alone: nobody loses for ε < 1/3.",
    without=Without(
        "s ≤ 4ε(1 − ε) + 8(m − r)", Premises({**SHARED, "share": real(1.0, 30.0)}, sizes=THREE_OR_MORE)
    ),
)  # fmt: skip
def shared_context(eps: Array, z: Array, share: Array) -> Margin:
    y, least, square = _shared(z)
    reach = 4.0 * eps * (1.0 - eps) + 8.0 * (least - square)
    s = np.maximum(share * reach, 1e-12)
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s), np.inf).min(axis=-1)
    range_ = reach - 4.0 * eps * (1.0 - 3.0 * eps)
    first = -eps * (1.0 - 3.0 * eps) / 2.0 - sm.threshold_limit(z, y)
    return Margin(np.stack([change, range_, first], axis=-1), rounding(1.0 + s)[:, None])


@claim(
    "extend.shared-context-first-loser",
    "At a shared context p_+ = p_− = (1 − ε)/2 the least likely class, of probability m, loses at every "
    "s ≥ 2 artanh(2ε + 4m/(1 − ε)): small ε puts the first loser between 4ε and 12ε.",
    source="toyld, T9, “first loser at s ≈ .04-.12 for ε = .01”",
    kind="theorem",
    premises=Premises(
        {**SHARED, "share": real(1.0, 10.0)},
        where=lambda eps, z, share: 2.0 * eps + 4.0 * _shared(z)[1] / (1.0 - eps) < 0.99,
        sizes=THREE_OR_MORE,
    ),
    proof="Exponents of the rest are ≥ 0, so K(s) ≥ log[(1 − ε)X + ε] ≥ (1 − ε) log X, X = e^{−sε/2}cosh(s/2), by "
    "concavity. log cosh u ≥ (u/2) tanh u (tanh is concave), so K(s)/s − m ≥ (1 − ε)[tanh(s/2)/4 − ε/2] − m ≥ 0. "
    "With m ≤ ε and extend.shared-context the first loser comes between 4ε(1 − 3ε) and 2 artanh(2ε + 4ε/(1 − ε)).",
    without=Without(
        "s ≥ 2 artanh(2ε + 4m/(1 − ε))",
        Premises(
            {**SHARED, "share": real(0.05, 0.9)},
            where=lambda eps, z, share: 2.0 * eps + 4.0 * _shared(z)[1] / (1.0 - eps) < 0.99,
            sizes=THREE_OR_MORE,
        ),
    ),
)
def shared_context_first_loser(eps: Array, z: Array, share: Array) -> Margin:
    y, least, _ = _shared(z)
    s = share * 2.0 * np.arctanh(2.0 * eps + 4.0 * least / (1.0 - eps))
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s), np.inf).min(axis=-1)
    return Margin(-change, rounding(1.0 + s))


@claim(
    "extend.shared-context-any-step",
    "At a shared context p_+ = p_− = (1 − ε)/2 with ε < 1/3 a negative step of any size lowers y− alone.",
    source="toyld, T9 without “to first order only”",
    kind="theorem",
    expect="refuted",
    instead="extend.shared-context",
    premises=Premises({**SHARED, "y": Field(lambda size: 0, lambda u, size, case: np.ones(len(u), dtype=int)),
                       "s": step_size()}, sizes=THREE_OR_MORE),
    proof="τ(s) → p_+ (T4). Under DPO the pair cancels at a shared context anyway (T10).",
    counterexample=Counterexample(
        {"p": (Fraction(2, 5), Fraction(2, 5), Fraction(1, 5)), "y": 1, "s": Fraction(4)},
        margin=lambda p, y, s: _least_other(exact.log_alphas(p, y, s), y),
    ),
)  # fmt: skip
def shared_context_any_step(z: Array, y: Array, s: Array, eps: Array | None = None) -> Margin:
    change = np.where(others(z, y), sm.log_alpha(z, y, s=s), np.inf).min(axis=-1)
    return Margin(change, rounding(1.0 + s))
