"""Pre-memorisation train accuracy (2411.07681): what its definition implies, at every threshold and for every log."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from flint import arb

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
