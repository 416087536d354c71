"""Synthetic runs whose cause is known: many small softmaxes moved by one mechanism, measured with noise.

A response is a handful of tokens, each a softmax of its own (its context); a residual π − e of `toyld.softmax` moves
its logits, arriving from the context itself or through shared features from another one:

    Δz_chosen   = η [ pull (e₊ − π) + push (π' − e₋) + conflict (e_c − e₊) + scatter (e_r − π) ]
    Δz_rejected = η [ reject (π' − e₋) + scatter (e_r − π') ]

with π' the softmax of the rejected response's context, e₋ its token, e_c a competitor, e_r a random token. A cause is a
choice of these five numbers (`CAUSES`); starts, lengths, speeds and strengths are drawn for every run and every
example, alike for all causes. Nothing here looks at a verdict or its thresholds: a run of a cause is whatever its
mechanism makes of it. It models mechanisms, not a language model: an example is moved by itself and its pair alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld import softmax as sm
from toyld.checked import BadInput
from toyld.diagnosis.thresholds import DEFAULT, Thresholds
from toyld.diagnosis.verdict import diagnose
from toyld.trajectory import trajectory

__all__ = ["CAUSES", "DIVERGING", "JITTER", "NOISE", "PULL", "STRENGTH", "as_text", "confusion", "make_run"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

CAUSES: dict[str, str] = {
    "sft-normal": "a pull on the label at the chosen contexts; the rejected response, logged or not, shares its format",
    "healthy": "a pair: chosen is pulled up, rejected pushed down in contexts that share nothing with chosen's",
    "rejection": "a push on the rejected response alone, in contexts that share nothing with chosen's",
    "squeezing": "a push on rare classes at contexts like the chosen ones, arriving at least eight times as hard as "
    "the pull on the label, or without any pull",
    "displacement": "a conflicting pair at the chosen contexts: a class of the less likely half is preferred to the "
    "label, while the top is not addressed",
    "divergence": "labels without information, 1 to 2 nats of logit an update: the logits diffuse, every path flattens",
    "not-learning": "no step at all (β = 0, a frozen adapter): evaluations differ by their noise alone",
    "wrong-reference": "a healthy, rejected-only, squeezed or idle run whose reference is another policy",
    "cannot-tell": "a run of any class above, without its argmax or with one along another probe's contexts",
}
# Total step of the median example, Σ η over the run, nats of logit under a full residual; drawn log-uniformly. Of
# squeezing at ¼ to ½ nats half goes unseen below the noise; beyond 4 a competitor may become the top itself, and what
# began as displacement then is squeezing.
STRENGTH = (1.0, 4.0)
NOISE = 0.02  # deviation of one measurement of a response, nats per token of it
JITTER = 0.25  # deviation of the shift that all examples of one evaluation share, in units of the noise
# Step of one update, nats: from one that multiplies odds by e. Above log V = 3.5 the label of the last update alone
# would fill the softmax, and argmax rise; at half a nat argmax has lost 2 nats in some runs before chosen moves at all.
DIVERGING = (1.0, 2.0)
# A push beats a pull, label against top, where push (π_top − π_label) > pull (1 + π_top − π_label): with an eighth
# of the push this is wherever the top leads by a seventh.
PULL = 1.0 / 8.0

_CLASSES = 32
_TOKENS = (2, 7)  # of a response: 2 … 6
_UPDATES = 2  # between two evaluations
_BETA = 0.1


@dataclass(frozen=True)
class _Push:
    """The coefficients of one run (module docstring); `similar`: rejected contexts are noisy copies of chosen ones."""

    pull: float = 0.0
    push: float = 0.0
    conflict: float = 0.0
    scatter: float = 0.0
    reject: float = 0.0
    similar: bool = False


def _push(cause: str, rng: np.random.Generator) -> _Push:
    if cause == "sft-normal":  # a negative push is a pull: tokens of the format are common to both responses
        return _Push(pull=1.0, reject=-rng.uniform(0.2, 0.8))
    if cause == "healthy":
        return _Push(pull=1.0, reject=rng.uniform(0.5, 2.0))
    if cause == "rejection":
        return _Push(reject=1.0)
    if cause == "squeezing":
        return _Push(push=1.0, reject=1.0, pull=float(rng.choice([0.0, rng.uniform(0.0, PULL)])), similar=True)
    if cause == "displacement":
        return _Push(conflict=1.0, reject=rng.uniform(0.5, 2.0))
    return _Push(scatter=1.0) if cause == "divergence" else _Push()


@dataclass(frozen=True)
class _Side:
    """The tokens of all responses of one kind, example after example."""

    z: Floats  # (tokens, classes)
    label: Ints
    owner: Ints  # example of each token
    start: Ints  # first token of each example
    length: Ints

    def logp(self, z: Floats) -> tuple[Floats, Floats]:
        """Log-probability of every response, and of the argmax along its contexts."""
        logp = sm.log_softmax(z)
        label = logp[np.arange(len(z)), self.label]
        return np.add.reduceat(label, self.start), np.add.reduceat(logp.max(-1), self.start)


def _contexts(rng: np.random.Generator, tokens: int, sharpness: float) -> Floats:
    """Logits: some contexts leave one class, some many."""
    return np.asarray(rng.standard_normal((tokens, _CLASSES)) * sharpness * rng.lognormal(0.0, 0.4, (tokens, 1)))


def _others(z: Floats) -> Floats:
    """Logits without the top class."""
    return np.where(sm.one_hot(z, z.argmax(-1)), -np.inf, z)


def _side(rng: np.random.Generator, z: Floats, length: Ints, on_top: float) -> _Side:
    """Labels: the top class with a probability that differs by example (mean `on_top`), else drawn from the rest."""
    owner = np.repeat(np.arange(len(length)), length)
    drawn = (_others(z) + rng.gumbel(size=z.shape)).argmax(-1)
    likes = rng.beta(6.0 * on_top, 6.0 * (1.0 - on_top), len(length))[owner]
    label = np.where(rng.random(len(z)) < likes, z.argmax(-1), drawn)
    return _Side(z, label, owner, np.cumsum(length) - length, length)


def _start(rng: np.random.Generator, n_examples: int, similar: bool) -> tuple[_Side, _Side, Ints]:
    """Chosen, rejected, and for each chosen token the rejected token whose push arrives at its context."""
    sharpness, on_top = rng.uniform(2.0, 3.0), rng.uniform(0.45, 0.65)
    lengths = rng.integers(*_TOKENS, (2, n_examples))
    a, b = (_side(rng, _contexts(rng, n.sum(), sharpness), n, on_top) for n in lengths)
    place = np.arange(len(a.z)) - a.start[a.owner]
    partner = b.start[a.owner] + place % b.length[a.owner]
    if similar:
        place = np.arange(len(b.z)) - b.start[b.owner]
        z = a.z[a.start[b.owner] + place % a.length[b.owner]] + 0.2 * b.z
        rare = rng.integers(0, _CLASSES // 4, len(z))  # one of the rarest quarter
        b = _Side(z, np.argsort(z, -1)[np.arange(len(z)), rare], b.owner, b.start, b.length)
    return a, b, partner


def _rates(rng: np.random.Generator, how: _Push, updates: int, strength: tuple[float, float]) -> Floats:
    """The step of every update: a short warm-up, then constant or falling to zero."""
    low, high = np.log(DIVERGING if how.scatter else strength)
    size, warm, decay = np.exp(rng.uniform(low, high)), rng.uniform(0.01, 0.2), rng.integers(0, 2)
    at = (np.arange(updates) + 0.5) / max(1, updates)
    rate = np.minimum(1.0, at / warm) * (1.0 - decay * at)
    return np.asarray(np.full(updates, size) if how.scatter else size * rate / max(rate.sum(), 1e-9))


def _paths(
    rng: np.random.Generator, how: _Push, a: _Side, b: _Side, partner: Ints, rates: Floats, n_evaluations: int
) -> Floats:
    """Chosen, argmax along chosen, rejected, without measurement noise: (3, evaluation, example)."""
    n, z, label = len(a.z), np.concatenate([a.z, b.z]), np.concatenate([a.label, b.label])
    speed = rng.lognormal(0.0, 0.5, len(a.start))
    # Where the label is likely the competitor says the label too: there the pair does not conflict.
    rival = np.argsort(a.z, -1)[np.arange(n), rng.integers(0, _CLASSES // 2, n)]
    differs = (rng.random(n) > sm.softmax(a.z)[np.arange(n), a.label]) & (rival != a.label)
    conflict = (sm.one_hot(a.z, rival) * 1.0 - sm.one_hot(a.z, a.label)) * differs[:, None]
    owner = np.concatenate([a.owner, b.owner])
    out = np.empty((3, n_evaluations, len(speed)))
    for t in range(n_evaluations):
        (out[0, t], out[1, t]), out[2, t] = a.logp(z[:n]), b.logp(z[n:])[0]
        if t + 1 == n_evaluations or not any((how.pull, how.reject, how.scatter)):
            continue
        # A pair's coefficient fades with its margin, 2 σ(−β margin): 1 at the reference.
        margin = (out[0, t] - out[0, 0]) - (out[2, t] - out[2, 0])
        eta = speed * (2.0 / (1.0 + np.exp(_BETA * margin)) if how.reject > 0 else 1.0)
        for rate in rates[t * _UPDATES : (t + 1) * _UPDATES]:
            if how.scatter:
                move = -how.scatter * sm.residual(z, rng.integers(0, _CLASSES, len(z)))
            else:
                g = sm.residual(z, label)
                to_chosen = how.push * g[n:][partner] - how.pull * g[:n] + how.conflict * conflict
                move = np.concatenate([to_chosen, how.reject * g[n:]])
            z = z + rate * eta[owner, None] * move
    return out


def _measured(rng: np.random.Generator, paths: Floats, lengths: Ints, noise: float) -> Floats:
    """What an evaluation logs: deviation `noise` nats per token, and `JITTER` of it common to all examples.

    Label and argmax come from one forward pass, so that argmax is never below the label, nor above 0: the noise is put
    on the argmax's surprise and on the gap, and reflected at 0.
    """
    _, n_evaluations, n = paths.shape
    scale = noise * np.stack([lengths[0] * 0.5**0.5, lengths[0] * 0.5**0.5, lengths[1]])[:, None]
    shared = JITTER * rng.standard_normal((3, n_evaluations, 1))
    chosen, argmax, rejected = paths
    exact = np.stack([-argmax, argmax - chosen, -rejected])
    surprise = np.abs(exact + scale * (rng.standard_normal((3, n_evaluations, n)) + shared))
    return np.stack([-surprise[0] - surprise[1], -surprise[0], -surprise[2]])


def _other_policy(rng: np.random.Generator, z: Floats) -> Floats:
    """Another policy at the same contexts: its logits differ by ½ to 1½ nats each, and in sharpness."""
    return np.asarray(z * rng.uniform(0.7, 1.0) + rng.uniform(0.5, 1.5) * rng.standard_normal(z.shape))


def make_run(
    cause: str,
    /,
    *,
    seed: int,
    n_examples: int = 40,
    n_evaluations: int = 8,
    noise: float = NOISE,
    strength: tuple[float, float] = STRENGTH,
) -> xr.Dataset:
    """One run of a known cause as the table that a real run gives: chosen, rejected, argmax, reference, lengths.

    `cause` is one of CAUSES; `noise` in nats per token, also the run's attr noise_floor; `strength` the range of the
    total step, nats. One seed gives one run, whatever was drawn before. Raises BadInput for an unknown cause.

    >>> run = make_run("squeezing", seed=0)
    >>> run.logp.shape, run.attrs["noise_floor"]
    ((1, 8, 2, 40), 0.02)
    """
    if cause not in CAUSES:
        msg = f"cause: expected one of {', '.join(CAUSES)}, got {cause!r}"
        raise BadInput(msg)
    rng = np.random.default_rng([list(CAUSES).index(cause), seed])
    acts = cause
    if cause == "wrong-reference":
        acts = str(rng.choice(["healthy", "rejection", "squeezing", "not-learning"]))
    if cause == "cannot-tell":
        acts = str(rng.choice(list(CAUSES)[:7]))
    how = _push(acts, rng)
    a, b, partner = _start(rng, n_examples, how.similar)
    rates = _rates(rng, how, _UPDATES * (n_evaluations - 1), strength)
    paths = _paths(rng, how, a, b, partner, rates, n_evaluations)
    lengths = np.stack([a.length, b.length])
    chosen, argmax, rejected = _measured(rng, paths, lengths, noise)
    reference = paths[:, :1]
    if cause == "wrong-reference":
        reference = np.stack([*a.logp(_other_policy(rng, a.z)), b.logp(_other_policy(rng, b.z))[0]])[:, None]
    ref = _measured(rng, reference, lengths, noise)[[0, 2], 0]
    if cause == "cannot-tell":
        elsewhere, *_ = _start(rng, n_examples, similar=False)
        buggy = np.broadcast_to(elsewhere.logp(elsewhere.z)[1], argmax.shape)
        argmax = np.full(argmax.shape, np.nan) if rng.random() < 0.5 else np.minimum(buggy + argmax - argmax[0], -1e-6)
    logged = slice(0, 1) if acts == "sft-normal" and rng.random() < 0.5 else slice(0, 2)
    variables: dict[str, Any] = {
        "logp": np.stack([chosen, rejected], 1)[None],
        "argmax_logp": np.stack([argmax, np.full(argmax.shape, np.nan)], 1)[None],
        "ref_logp": ref[None],
        "n_tokens": lengths[None],
    }
    return trajectory(
        {name: values[..., logged, :] for name, values in variables.items()},
        step=np.arange(n_evaluations) * _UPDATES,
        probe=["chosen", "rejected"][logged],
        example=[f"{i}" for i in range(n_examples)],
        world="contexts",
        stage="sft" if acts == "sft-normal" else "dpo",
        arm="synthetic",
        attrs={"noise_floor": noise, "cause": CAUSES[cause]},
    )


def confusion(
    *,
    runs: int,
    causes: Iterable[str] = tuple(CAUSES),
    noise: float = NOISE,
    strength: tuple[float, float] = STRENGTH,
    thresholds: Thresholds = DEFAULT,
) -> dict[str, dict[str, int]]:
    """Cause -> verdict -> count, over seeds 0 … runs − 1 of each cause.

    >>> confusion(runs=2, causes=["healthy", "cannot-tell"])
    {'healthy': {'healthy': 2}, 'cannot-tell': {'cannot-tell': 2}}
    """
    out = {}
    for cause in causes:
        made = (make_run(cause, seed=seed, noise=noise, strength=strength) for seed in range(runs))
        out[cause] = dict(Counter(diagnose(run, thresholds=thresholds).verdict for run in made))
    return out


def as_text(matrix: Mapping[str, Mapping[str, int]], /) -> str:
    """The matrix as a table: a row per cause, a column per verdict, counts.

    >>> print(as_text({"healthy": {"healthy": 9, "squeezing": 1}}))
    cause / verdict  healthy  squeezing
    healthy                9          1
    """
    verdicts = [name for name in CAUSES if any(name in row for row in matrix.values())]
    first = "cause / verdict"
    wide = max(len(first), *map(len, matrix))
    lines = ["  ".join([first.ljust(wide), *verdicts])]
    for cause, row in matrix.items():
        lines.append("  ".join([cause.ljust(wide), *(str(row.get(v, 0)).rjust(len(v)) for v in verdicts)]))
    return "\n".join(lines)
