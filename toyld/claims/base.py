"""What a claim is, and how one is tried: sampled, hunted by an optimiser, refuted in exact arithmetic.

A premise is a map from the unit cube: u ∈ [0, 1]^k ↦ case. One definition then serves numpy sampling, Hypothesis
(which shrinks u towards 0, the simplest case) and scipy's global optimiser, which hunts counterexamples by minimising
the margin over u.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = [
    "Claim",
    "Counterexample",
    "Field",
    "Margin",
    "Premises",
    "Result",
    "Without",
    "as_floats",
    "claim",
    "each",
    "evaluate",
    "identity",
    "registry",
    "rounding",
    "shrink",
    "try_to_break",
]

Array = Any
Kind = Literal["theorem", "identity", "trend", "conjecture"]
Expect = Literal["holds", "refuted", "conditional", "open"]
EPS = float(np.finfo(np.float64).eps)
# Beyond ten bounds a negative margin is a counterexample; between one and ten the arithmetic cannot tell.
CERTAIN = 10.0


@dataclass(frozen=True)
class Margin:
    """How far a statement holds: `value` > 0 with room, `bound` > 0 the rounding or sampling error derived for it.

    Arrays of shape (n, ...): the leading axis is the cases; a statement about every class has one entry per class
    (+inf where it says nothing).
    """

    value: Array
    bound: Array

    def entries(self) -> np.ndarray:
        """Each value in units of its bound, shape (n, k). A NaN or a bound that is not positive and finite is −inf."""
        value = np.asarray(self.value, dtype=float)
        bound = np.broadcast_to(np.asarray(self.bound, dtype=float), value.shape)
        silent = np.isposinf(value)
        sound = (bound > 0.0) & np.isfinite(bound)
        with np.errstate(over="ignore"):
            ratio = np.where(silent, np.inf, np.clip(value / np.where(sound, bound, 1.0), -1e308, 1e308))
        ratio = np.where(np.isnan(ratio) | ~(sound | silent), -np.inf, ratio)
        return ratio.reshape(len(ratio), -1)

    def score(self) -> np.ndarray:
        """The worst entry of each case, shape (n,); +inf for a case of which the statement says nothing."""
        return self.entries().min(axis=1)


def rounding(scale: Array, /) -> Array:
    """A bound of float64 rounding for a result whose intermediate terms are at most `scale`: 64 ε·scale.

    64: some thirty correctly rounded operations (exp, log1p, a pairwise sum) of half an ulp each, doubled twice.
    """
    return 64.0 * EPS * np.asarray(scale) + np.finfo(np.float64).tiny


def identity(lhs: Array, rhs: Array, scale: Array, /) -> Margin:
    """lhs = rhs up to rounding of terms of size `scale`: value = bound − |lhs − rhs|."""
    bound = rounding(scale)
    return Margin(bound - np.abs(np.asarray(lhs) - np.asarray(rhs)), bound)


@dataclass(frozen=True)
class Field:
    """One named input of a check: how many unit coordinates it takes at V classes, and its value from them.

    `decode(u, V, case)` gets u of shape (n, width(V)) and the fields decoded before it.
    """

    width: Callable[[int], int]
    decode: Callable[[np.ndarray, int, Mapping[str, Array]], Array]


@dataclass(frozen=True)
class Premises:
    """Named fields, the vocabulary sizes to try, and `where`: the premise as a mask over cases."""

    fields: Mapping[str, Field] = field(default_factory=dict)
    sizes: tuple[int, ...] = (2, 3, 4, 8, 50)
    where: Callable[..., Array] | None = None

    def width(self, size: int) -> int:
        """Number of unit coordinates of a case with `size` classes."""
        return sum(f.width(size) for f in self.fields.values())

    def decode(self, u: np.ndarray, size: int) -> tuple[dict[str, Array], np.ndarray]:
        """Cases from unit coordinates (n, width): the arguments of the check, and which satisfy the premise."""
        case: dict[str, Array] = {}
        start = 0
        for name, f in self.fields.items():
            stop = start + f.width(size)
            case[name] = f.decode(u[:, start:stop], size, case)
            start = stop
        keep = np.ones(len(u), dtype=bool) if self.where is None else np.asarray(self.where(**case))
        return case, keep

    def sample(self, rng: np.random.Generator, n: int) -> Iterator[tuple[int, np.ndarray]]:
        """(size, unit coordinates) batches, about n cases in all; one coordinate in fifty sits on an edge."""
        for size in self.sizes:
            u = rng.random((max(1, n // len(self.sizes)), self.width(size)))
            edge = rng.random(u.shape)
            u = np.where(edge < 0.01, 0.0, np.where(edge > 0.99, 1.0, u))
            yield size, u

    def strategy(self) -> Any:
        """Hypothesis strategy of (size, u); it shrinks to few classes and to u = 0."""
        from hypothesis import strategies as st

        def coordinates(size: int) -> Any:
            k = self.width(size)
            return st.tuples(st.just(size), st.lists(st.floats(0.0, 1.0), min_size=k, max_size=k))

        return st.sampled_from(self.sizes).flatmap(coordinates)


@dataclass(frozen=True)
class Without:
    """The same check with one premise dropped: a counterexample must turn up, or the check has no teeth."""

    dropped: str
    premises: Premises


def as_floats(cases: Sequence[Mapping[str, Any]], /) -> dict[str, Array]:
    """Exact cases of one shape as a batch for the float check; a probability vector `p` becomes logits `z`."""
    out: dict[str, Array] = {}
    for name, first in cases[0].items():
        a = np.asarray([[float(x) for x in c[name]] if isinstance(first, tuple) else c[name] for c in cases])
        a = a if a.dtype.kind in "iu" else a.astype(float)
        out["z" if name == "p" else name] = np.log(a) if name == "p" else a
    return out


@dataclass(frozen=True)
class Counterexample:
    """A refutation in exact rationals. `margin` evaluates it in ball arithmetic: an arb that is certainly < 0."""

    case: Mapping[str, Any]
    margin: Callable[..., Any]
    note: str = ""

    def __str__(self) -> str:
        """The case in one line, for example p = (1/2, 1/4, 1/4), y = 1, s = 1."""
        parts = (
            f"{name} = ({', '.join(map(str, value))})" if isinstance(value, tuple) else f"{name} = {value}"
            for name, value in self.case.items()
        )
        return ", ".join(parts) + (f" ({self.note})" if self.note else "")

    def certified(self) -> bool:
        """True if the ball of the margin lies wholly below zero."""
        return bool(self.margin(**self.case) < 0)

    def floats(self) -> dict[str, Array]:
        """The same case as a batch of one for the float check."""
        return as_floats([self.case])


@dataclass(frozen=True)
class Claim:
    """One statement of the theory, with everything needed to try it (see CONTRIBUTING.md)."""

    id: str
    statement: str
    source: str
    kind: Kind
    check: Callable[..., Any]  # → Margin; of a run claim → Effect (see `toyld.claims.runs`)
    premises: Any  # Premises; of a run claim a function of tables → None or why it does not apply
    expect: Expect = "holds"
    about: Literal["step", "run"] = "step"
    rungs: tuple[str, ...] = ("softmax",)
    proof: str = ""
    without: Without | None = None
    counterexample: Counterexample | None = None
    instead: str | None = None
    cost: int = 1  # a dear check gets examples // cost cases
    hunt: bool = True  # whether an optimiser hunts after sampling


registry: dict[str, Claim] = {}


def claim(id: str, statement: str, *, source: str, kind: Kind, premises: Premises, **rest: Any) -> Callable[..., Claim]:
    """Decorator: the function below is the check of this claim; the claim joins the registry.

    The check gets the fields of `premises` by name, batched over a leading axis, and returns a `Margin`.
    """

    def register(check: Callable[..., Margin]) -> Claim:
        if id in registry:
            msg = f"claim id {id!r} is taken; expected a new one"
            raise ValueError(msg)
        registry[id] = Claim(id, statement, source, kind, check, premises, **rest)
        return registry[id]

    return register


def each(check: Callable[..., Margin]) -> Callable[..., Margin]:
    """A check written for a single case, run case by case (ODEs, autograd)."""

    def batched(**case: Array) -> Margin:
        n = len(next(iter(case.values())))
        margins = [check(**{name: a[i] for name, a in case.items()}) for i in range(n)]
        value = np.stack([np.asarray(m.value, dtype=float).ravel() for m in margins])
        bound = np.stack(
            [np.broadcast_to(np.asarray(m.bound, dtype=float), np.shape(m.value)).ravel() for m in margins]
        )
        return Margin(value, bound)

    return batched


@dataclass(frozen=True)
class Result:
    """What trying a claim gave: `verdict` in its `expect`'s words or `undecided`, and the worst case met."""

    claim: Claim
    verdict: Literal["holds", "refuted", "open", "undecided"]
    cases: int
    worst: float
    case: dict[str, Any] | None
    why: str = ""

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the one that we assert."""
        return self.verdict == self.claim.expect


@dataclass(frozen=True)
class _Attack:
    cases: int
    worst: float
    size: int
    u: np.ndarray | None


def _entries(check: Callable[..., Margin], premises: Premises, u: np.ndarray, size: int) -> np.ndarray:
    """Scores (n, k) of unit coordinates, entry by entry; +inf where the premise does not hold."""
    case, keep = premises.decode(u, size)
    if not keep.any():
        return np.full((len(u), 1), np.inf)
    inside = check(**{name: a[keep] for name, a in case.items()}).entries()
    out = np.full((len(u), inside.shape[1]), np.inf)
    out[keep] = inside
    return out


def try_to_break(
    check: Callable[..., Margin], premises: Premises, *, examples: int, seed: int, cost: int = 1, hunt: bool = True
) -> _Attack:
    """Look for the smallest score: by sampling, then by differential evolution at the three smallest sizes.

    Returns the number of cases that met the premise and said something, the worst score and its coordinates. Entries
    that never exceed their bound in the sample (identities) would hide the slope of the others: they count, unhunted.
    """
    from scipy.optimize import differential_evolution

    rng = np.random.default_rng(seed)
    cases, worst, at, where = 0, np.inf, None, premises.sizes[0]
    sloped: dict[int, np.ndarray] = {}

    def note(u: np.ndarray, size: int) -> np.ndarray:
        nonlocal cases, worst, at, where
        entries = _entries(check, premises, u, size)
        scores = entries.min(axis=1)
        cases += int(np.sum(scores < np.inf))
        i = int(np.argmin(scores))
        if scores[i] < worst:
            worst, at, where = float(scores[i]), u[i], size
        return entries

    if not premises.fields:  # a statement about one fixed case
        scores = check().score()
        return _Attack(len(scores), float(scores.min()), 0, None)
    for size, u in premises.sample(rng, max(1, examples // cost)):
        for part in np.array_split(u, len(u) * (size + 8) // 2_000_000 + 1):
            entries = note(part, size)
            over = np.any((entries > 1.0) & np.isfinite(entries), axis=0)
            # A part without any case inside the premise has one column whatever the check has.
            sloped[size] = over | sloped[size] if size in sloped and len(sloped[size]) == len(over) else over
    for size in premises.sizes[:3] if hunt else ():
        if worst < -CERTAIN:
            break

        def objective(x: np.ndarray, size: int = size) -> np.ndarray:
            entries = note(np.clip(np.atleast_2d(x.T), 0.0, 1.0), size)
            if sloped[size].any() and len(sloped[size]) == entries.shape[1]:
                entries = entries[:, sloped[size]]
            scores = np.clip(entries.min(axis=1), -1e300, 1e300)
            return np.sign(scores) * np.log1p(np.abs(scores))  # margins span twenty decades

        k = premises.width(size)
        differential_evolution(
            objective,
            [(0.0, 1.0)] * k,
            maxiter=max(4, 60 // cost),
            popsize=max(2, 40 // k),
            tol=0.0,
            vectorized=True,
            updating="deferred",
            polish=False,
            rng=rng,
            callback=lambda intermediate_result: worst < -CERTAIN,
        )
    return _Attack(cases, worst, where, at)


def shrink(check: Callable[..., Margin], premises: Premises, /) -> dict[str, Any] | None:
    """The simplest counterexample Hypothesis can find and shrink to, as the arguments of the check; None if none."""
    from hypothesis import HealthCheck, Phase, find, settings
    from hypothesis.errors import NoSuchExample

    def breaks(drawn: Any) -> bool:
        size, u = drawn
        return bool(_entries(check, premises, np.asarray([u], dtype=float).reshape(1, -1), size).min() < -CERTAIN)

    rules = settings(
        max_examples=2000,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    try:
        size, u = find(premises.strategy(), breaks, settings=rules)
    except NoSuchExample:
        return None
    return premises.decode(np.asarray([u], dtype=float).reshape(1, -1), size)[0]


def evaluate(claim: Claim, /, *, examples: int = 2000, seed: int = 0) -> Result:
    """Try a step claim on about `examples` sampled cases, then hunt; refuted claims must show their certificate.

    Verdicts: *holds* if every case has value ≥ −bound; *refuted* if one has value < −10·bound and, for a claim we
    assert to be refuted, its stored counterexample is certified; *open* for a survived claim whose truth is not
    known; *undecided* in between, when no case met the premise, when a margin is not a number, or when a dropped
    premise made no difference.
    """

    def attacked(premises: Premises, what: str) -> _Attack:
        start = zlib.crc32(f"{claim.id}/{what}/{seed}".encode())
        return try_to_break(claim.check, premises, examples=examples, seed=start, cost=claim.cost, hunt=claim.hunt)

    attack = attacked(claim.premises, "try")
    case = None
    if attack.u is not None:
        decoded, _ = claim.premises.decode(attack.u[None], attack.size)
        case = {name: np.asarray(a)[0].tolist() for name, a in decoded.items()}

    def result(verdict: Any, why: str = "") -> Result:
        return Result(claim, verdict, attack.cases, attack.worst, case, why)

    if claim.expect == "refuted":
        stored = claim.counterexample
        if stored is None or not stored.certified():
            return result("undecided", "no certified counterexample")
        floats = stored.floats()
        if claim.premises.where is not None and not np.all(claim.premises.where(**floats)):
            return result("undecided", "the counterexample breaks the premise")
        if claim.check(**floats).score()[0] >= -CERTAIN:
            return result("undecided", "the float check does not see the certified counterexample")
        return result("refuted")
    if attack.cases == 0:
        return result("undecided", "no case met the premise")
    if attack.worst == -np.inf:
        return result("undecided", f"a margin is not a number, or its bound is none, at {case}")
    if attack.worst < -CERTAIN:
        return result("refuted", "a counterexample was found")
    if attack.worst < -1.0:
        return result("undecided", "a case within ten error bounds of failing")
    if claim.without is not None:
        teeth = attacked(claim.without.premises, "without")
        if teeth.worst >= -CERTAIN:
            return result("undecided", f"no teeth: it also survives without {claim.without.dropped!r}")
    return result("open" if claim.expect == "open" else "holds")
