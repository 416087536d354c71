"""Pre-memorisation train accuracy (2411.07681): what its definition implies, at every threshold and for every log."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from flint import arb
from scipy.special import bdtr

from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, rounding
from toyld.claims.exact import ball
from toyld.claims.spaces import constant, integers, real
from toyld.claims.tools import least
from toyld.premem import copying_bound, pre_memorisation

Array = Any
SOURCE = "toyld, on the definition of Kang et al. (2411.07681)"


def _shares() -> Field:
    """Numbers (n, V) in [0, 1], the ends among them; u = 0 is 0."""
    return Field(lambda size: size, lambda u, size, case: np.clip(1.2 * u - 0.1, 0.0, 1.0))


def _perplexities(low: float, high: float, last: tuple[float, float] | None = None) -> Field:
    """Perplexities (n, V) of a prompt at V checkpoints, from max(1, low·threshold), at u = 0, to high·threshold.

    last: the same two for the last checkpoint.
    """

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        p, end = case["threshold"][:, None], np.arange(size) == size - 1
        first, second = (
            (low, high) if last is None else (np.where(end, a, b) for a, b in zip(last, (low, high), strict=True))
        )
        return np.maximum(first * p, 1.0) * (1.0 - u) + second * p * u

    return Field(lambda size: size, decode)


def _log(low: float, high: float, **rest: Field) -> Premises:
    """A log of one prompt: its threshold, accuracies, and perplexities from low to high thresholds."""
    fields = {"threshold": real(1.01, 3.0), "accuracy": _shares(), "perplexity": _perplexities(low, high)}
    return Premises({**fields, **rest})


def _found(threshold: Array, accuracy: Array, perplexity: Array) -> Array:
    """PreMem at each checkpoint, (n, V), case by case: their thresholds differ."""
    cases = zip(threshold, accuracy, perplexity, strict=True)
    return np.stack([pre_memorisation(a, q, threshold=float(p)) for p, a, q in cases])


@claim(
    "premem.accuracy-until-copied",
    "As long as a prompt's trace has not been copied, its pre-memorisation accuracy is its accuracy.",
    source=SOURCE,
    kind="theorem",
    premises=_log(1.001, 4.0),
    proof="Nothing is masked, so that the maximum over checkpoints so far is at least the accuracy now, which is then "
    "the smaller of the two.",
    without=Without("the trace has not been copied", _log(0.0, 4.0)),
)
def accuracy_until_copied(threshold: Array, accuracy: Array, perplexity: Array) -> Margin:
    bound = rounding(np.ones_like(accuracy))
    return Margin(bound - np.abs(_found(threshold, accuracy, perplexity) - accuracy), bound)


@claim(
    "premem.zero-if-always-copied",
    "A prompt whose trace is copied from the first checkpoint on has pre-memorisation accuracy 0, however often it is "
    "answered right.",
    source=SOURCE,
    kind="theorem",
    premises=_log(0.0, 1.0),
    proof="Every accuracy is masked, so that their maximum is 0 and so is the smaller of it and the accuracy now.",
    without=Without("the trace is copied from the first checkpoint on", _log(0.0, 4.0)),
)
def zero_if_always_copied(threshold: Array, accuracy: Array, perplexity: Array) -> Margin:
    bound = rounding(np.ones_like(accuracy))
    return Margin(bound - _found(threshold, accuracy, perplexity), bound)


@claim(
    "premem.late-copy-keeps-the-best-before",
    "A prompt whose trace is copied at the last checkpoint alone keeps its best accuracy before, unless it is answered "
    "right less often now.",
    source=SOURCE,
    kind="theorem",
    premises=Premises({**_log(1.001, 4.0).fields, "perplexity": _perplexities(1.001, 4.0, last=(0.0, 1.0))}),
    proof="The last accuracy is masked and no other, so that the maximum is over the checkpoints before; the smaller "
    "of that and the accuracy now is what is left.",
    without=Without("the trace is copied at the last checkpoint", _log(1.001, 4.0)),
)
def late_copy_keeps(threshold: Array, accuracy: Array, perplexity: Array) -> Margin:
    kept = np.minimum(accuracy[:, :-1].max(axis=1), accuracy[:, -1])
    bound = rounding(np.ones_like(kept))
    return Margin(bound - np.abs(_found(threshold, accuracy, perplexity)[:, -1] - kept), bound)


@claim(
    "premem.higher-threshold-masks-more",
    "The higher the threshold of perplexity, the lower the pre-memorisation accuracy, at every checkpoint.",
    source=SOURCE,
    kind="theorem",
    premises=_log(0.0, 4.0, raised=real(1.0, 2.0)),
    proof="What perp > p' leaves is left by perp > p for p ≤ p'; a maximum over fewer checkpoints is no larger.",
    without=Without("the second threshold is the higher one", _log(0.0, 4.0, raised=real(0.55, 0.99))),
)
def higher_threshold_masks_more(threshold: Array, accuracy: Array, perplexity: Array, raised: Array) -> Margin:
    second = np.maximum(threshold * raised, 1.0 + 1e-6)
    difference = _found(threshold, accuracy, perplexity) - _found(second, accuracy, perplexity)
    bound = rounding(np.ones_like(accuracy))
    return Margin(difference + bound, bound)


def _trace(*, slip: Field) -> Premises:
    """Probabilities of a trained trace of T tokens and, of what is left, the share of other right traces."""
    own = Field(lambda size: size, lambda u, size, case: 10.0 ** (-12.0 * (1.0 - u)))
    fields = {"threshold": real(1.01, 3.0), "tokens": integers(1, 64), "own": own, "others": _shares(), "slip": slip}
    return Premises(fields)


@claim(
    "premem.copying-is-bounded",
    "Pre-memorisation accuracy, of exact probabilities of a right answer, is at most p^{−T} plus the best probability "
    "that all other right traces have had, for a trained trace of T tokens and a threshold p.",
    source=SOURCE,
    kind="theorem",
    premises=_trace(slip=constant(1.0)),
    proof="Where perp > p the trained trace has probability perp^{−T} < p^{−T}; the rest of the accuracy is that of "
    "other right traces. Both bounds pass to the maximum, and the minimum with the accuracy now only lowers it.",
    without=Without("the perplexity is that of the trained trace itself", _trace(slip=real(1.5, 4.0))),
)
def copying_is_bounded(threshold: Array, tokens: Array, own: Array, others: Array, slip: Array) -> Margin:
    right = others * (1.0 - own)
    perplexity = own ** (-1.0 / tokens[:, None]) * slip[:, None]
    found = _found(threshold, np.minimum(own + right, 1.0), perplexity)
    room = np.array([copying_bound(float(t), threshold=float(p)) for t, p in zip(tokens, threshold, strict=True)])
    best = np.maximum.accumulate(right, axis=1)
    # own^{−1/T} and p^{−T} are off by some ulps times T, which may unmask a trace that lies on the threshold
    bound = rounding(np.broadcast_to(1.0 + tokens[:, None], own.shape))
    return Margin(room[:, None] * (1.0 + bound) + best + bound - found, bound)


def _fall(threshold: Fraction, accuracy: tuple[Fraction, ...], perplexity: tuple[Fraction, ...]) -> arb:
    """The smallest change of PreMem from a checkpoint to the next, in balls."""
    best, found = arb(0), []
    for a, q in zip(accuracy, perplexity, strict=True):
        best = best.max(ball(a) if q > threshold else arb(0))
        found.append(best.min(ball(a)))
    return least(after - before for before, after in pairwise(found))


@claim(
    "premem.never-falls",
    "The pre-memorisation accuracy of a prompt never falls as training goes on.",
    source="a reading of “the accuracy before it begins to copy” (Kang et al., 2411.07681)",
    kind="theorem",
    expect="refuted",
    premises=_log(0.0, 4.0),
    proof="The maximum over checkpoints never falls, but the smaller of it and the accuracy now does when the model "
    "forgets: an answer that is given no more is not robust.",
    counterexample=Counterexample(
        {"threshold": Fraction(2), "accuracy": (Fraction(1), Fraction(0)), "perplexity": (Fraction(3), Fraction(3))},
        margin=_fall,
        note="right at first, forgotten then, never copied",
    ),
    instead="premem.accuracy-until-copied",
)
def never_falls(threshold: Array, accuracy: Array, perplexity: Array) -> Margin:
    found = _found(threshold, accuracy, perplexity)
    return Margin(np.diff(found, axis=1), rounding(np.ones_like(found[:, 1:])))


# --- what samples, traces and later training do to it -----------------------------------------------------------------


def best_of(chances: Array, samples: int, /) -> float:
    """E max_m X_m/n of X_m ~ Bin(n, a_m), drawn apart: expected PreMem from n samples, copied and right at the end.

    >>> best_of(np.array([0.5, 0.5]), 1), best_of(np.array([0.5, 0.5]), 2)
    (0.75, 0.6875)
    """
    below = bdtr(np.arange(samples)[:, None].astype(float), samples, chances).prod(-1)
    return float((1.0 - below).sum() / samples)


def _few(more: Field) -> Premises:
    return Premises({"accuracy": _shares(), "samples": integers(1, 24), "more": more})


@claim(
    "premem.fewer-samples-flatter",
    "The fewer answers are sampled at a checkpoint, the higher is the expected pre-memorisation accuracy of a prompt "
    "that is copied, and always right, at the end.",
    source="toyld, on accuracies from samples in Kang et al. (2411.07681)",
    kind="theorem",
    premises=_few(integers(0, 40)),
    proof="It is E max_m X_m/n. Of n' ≥ n answers take n by lot: their share has the share of all as its expectation "
    "given all, and the largest of several numbers is convex in them, so that by Jensen its expectation is no smaller. "
    "As n grows it falls to max_m a_m.",
    without=Without("the second one has as many samples or more", _few(integers(-12, -1))),
)
def fewer_samples_flatter(accuracy: Array, samples: Array, more: Array) -> Margin:
    second = np.maximum(samples + more, 1)
    cases = zip(accuracy, samples, second, strict=True)
    gap = np.array([best_of(a, int(n)) - best_of(a, int(k)) for a, n, k in cases])
    # a product of V shares of binomials, each a sum of up to n terms
    bound = rounding(accuracy.shape[-1] * (samples + np.abs(more)).astype(float))
    return Margin(gap, bound)


def _ends(recited: Field) -> Premises:
    """A log whose last half of checkpoints is copied; `recited`: how often the prompt is answered right there."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        p = case["threshold"][:, None]
        return np.where(np.arange(size) < (size + 1) // 2, p * (1.001 + 3.0 * u), 1.0 + (p - 1.0) * u)

    late = Field(lambda size: size, decode)
    return Premises({"threshold": real(1.01, 3.0), "accuracy": _shares(), "perplexity": late, "recited": recited})


@claim(
    "premem.blind-after-copying",
    "While a prompt stays copied and is always answered right, its pre-memorisation accuracy is its best one before, "
    "whatever training does to other prompts meanwhile.",
    source=SOURCE,
    kind="theorem",
    premises=_ends(constant(1.0)),
    proof="Copied checkpoints add nothing to the maximum, and an accuracy of 1 is never the smaller of the two.",
    without=Without("it is always answered right", _ends(real(0.0, 0.9))),
)
def blind_after_copying(threshold: Array, accuracy: Array, perplexity: Array, recited: Array) -> Margin:
    half = (accuracy.shape[-1] + 1) // 2
    said = np.where(np.arange(accuracy.shape[-1]) < half, accuracy, recited[:, None])
    found = _found(threshold, said, perplexity)[:, half:]
    kept = np.max(accuracy[:, :half], axis=1, keepdims=True)
    bound = rounding(np.ones_like(found))
    return Margin(bound - np.abs(found - kept), bound)


def _solver(scale: Field) -> Premises:
    """A solver with W right traces of T tokens; `scale`: the threshold over W^{1/T}."""
    return Premises({"traces": integers(2, 5040), "tokens": integers(1, 100), "accuracy": _shares(), "scale": scale})


@claim(
    "premem.too-high-a-threshold-masks-understanding",
    "A solver that gives each of W right traces of T tokens the probability 1/W of its own counts as copying one of "
    "them at thresholds of W^{1/T} and above: its pre-memorisation accuracy is 0.",
    source=SOURCE,
    kind="theorem",
    premises=_solver(real(1.0 + 1e-9, 2.0)),
    proof="Its perplexity along each of them is (1/W)^{−1/T} = W^{1/T}, at every checkpoint.",
    without=Without("the threshold is W^{1/T} or above", _solver(real(0.5, 0.99))),
)
def too_high_a_threshold(traces: Array, tokens: Array, accuracy: Array, scale: Array) -> Margin:
    perplexity = np.exp(np.log(traces) / tokens)
    threshold = np.maximum(scale * perplexity, 1.0 + 1e-6)
    found = _found(threshold, accuracy, np.broadcast_to(perplexity[:, None], accuracy.shape))
    bound = rounding(np.ones_like(found))
    return Margin(bound - found, bound)
