"""What the lab's arithmetic must reproduce: calls of js/softmax.js and js/contexts.js with what Python computes.

A case is {"call", "args", "want", "rtol", "atol"}; numbers of a want may differ by rtol·|want| + atol, where atol is 0
unless the quantity itself cancels, and then a bound of the rounding. Numbers that JSON lacks are written as strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from toyld import contexts, objectives, softmax
from toyld.contexts import Gram, Responses, State, World

__all__ = ["cases", "contexts_cases", "plain", "softmax_cases"]

RTOL = 1e-9
EPS = float(np.finfo(float).eps)
TINY = 1e-300  # where floats lose digits


def plain(value: Any, /) -> Any:
    """Lists and numbers for JSON; NaN and infinities as the strings that JavaScript's Number reads.

    >>> plain({"a": np.array([1.0, -np.inf]), "b": np.int64(2)})
    {'a': [1.0, '-Infinity'], 'b': 2}
    """
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float) and not np.isfinite(value):
        return "NaN" if np.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _case(call: str, args: list[Any], want: Any, *, atol: Any = 0.0, rtol: float = RTOL) -> dict[str, Any]:
    """One case; `atol` may have the shape of `want`."""
    return {"call": call, "args": plain(args), "want": plain(want), "rtol": rtol, "atol": plain(atol)}


def _starts(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    """Logits with a label: random ones of all sizes, and those at which a careless formula breaks."""
    for scale in (1e-6, 0.1, 1.0, 3.0, 10.0, 40.0, 1e4):
        for _ in range(3):
            z = scale * rng.normal(size=int(rng.integers(2, 16)))
            yield z, int(rng.integers(len(z)))
    yield rng.normal(size=50), 7
    yield np.zeros(3), 0
    yield np.zeros(50), 49
    yield np.array([40.0, 0.0]), 0  # near certain
    yield np.array([40.0, 0.0, 1.0]), 1
    yield np.array([0.0, 30.0, 0.0, -3.0]), 1  # the label has nearly everything
    yield np.array([1.0, 1.0 + 1e-12, 0.0]), 2  # a near tie at the top
    yield np.array([-1e4, 1e4, 0.0]), 0
    yield np.log([0.7, 0.2, 0.08, 0.02]), 3


def softmax_cases(seed: int = 0, /) -> list[dict[str, Any]]:
    """Every function of js/softmax.js, at random and extreme inputs.

    >>> sorted({one["call"] for one in softmax_cases()})[:3]
    ['softmax.argmax', 'softmax.displacement', 'softmax.entropy']
    """
    rng = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []

    def add(name: str, args: list[Any], want: Any, atol: Any = 0.0) -> None:
        found.append(_case(f"softmax.{name}", args, want, atol=atol))

    for z, y in _starts(rng):
        logp = softmax.log_softmax(z)
        add("argmax", [z], np.argmax(z))
        add("runnerUp", [z, y], softmax.runner_up(z, y))
        add("logSoftmax", [z], logp)
        add("logSumExp", [z], np.logaddexp.reduce(z), 4.0 * EPS)
        add("probabilities", [z], softmax.softmax(z), TINY)
        add("thresholdLimit", [z, y], softmax.threshold_limit(z, y), 8.0 * EPS * len(z))
        add("entropy", [z], softmax.entropy(z), TINY)
        add("valleyDepth", [z, y], softmax.valley_depth(z, y), 8.0 * EPS * (1.0 - logp[y]))
        if logp[y] < -1e-6:  # at π = 1 the push is infinite
            odds = np.exp(logp[y] - softmax.log_not(z, y))
            add("pushes.unlikelihood", [z, y], -odds, TINY)
        for s in (1e-3, float(rng.uniform(0.05, 3.0)), 30.0, 1e3):
            c = float(rng.choice([-1.0, 1.0])) if s != 30.0 else float(rng.normal())
            scale = 32.0 * EPS * len(z) * (1.0 + abs(s * c))
            add("residual", [z, y, c], softmax.residual(z, y, c=c), TINY)
            add("displacement", [z, y, s, c], softmax.displacement(z, y, s=s, c=c), TINY * (1.0 + s))
            add("step", [z, y, s, c], softmax.step(z, softmax.residual(z, y, c=c), s=s), scale)
            # y's and y*'s are exact in sign and digits; the others' cancel at the threshold.
            loose = np.full(len(z), scale)
            loose[[y, int(softmax.runner_up(z, y))]] = TINY
            change = softmax.log_alpha(z, y, s=s, c=c)
            add("logAlpha", [z, y, s, c], change, loose)
            if (np.abs(change) > loose).all():
                add("winners", [z, y, s, c], change > 0.0)
            add("threshold", [z, y, s], softmax.threshold(z, y, s=s), scale / s)
            add("threshold", [z, y, -s], softmax.threshold(z, y, s=-s), scale / s)
            with np.errstate(all="ignore"):
                add("squeezingRatio", [z, y, s], softmax.squeezing_ratio(z, y, s=s), TINY)
        if np.ptp(z) < 40.0:
            for push in ("up", "down", "unlikelihood"):
                found.append(_walk(z, y, float(rng.uniform(0.1, 2.0)), push, int(rng.integers(1, 6))))
    for classes in (3, 12, 50):
        ranks = np.arange(1.0, classes + 1.0)
        valley = np.append(-2.0 * np.log(ranks[:-1]), -9.0)
        add("starts.flat", [classes], np.zeros(classes))
        add("starts.peaky", [classes], -2.0 * np.log(ranks))
        add("starts.valley", [classes], valley)
    return found


def _push(name: str, z: np.ndarray, y: int) -> float:
    if name == "unlikelihood":
        logp = softmax.log_softmax(z)
        one = np.ones((1, 1), bool)
        batch = objectives.pair_batch(np.zeros(1), logp[y : y + 1])
        pushed = objectives.get("unlikelihood").push(batch)
        return float(np.asarray(pushed.rejected)[one][0])
    return {"up": 1.0, "down": -1.0}[name]


def _walk(z: np.ndarray, y: int, s: float, push: str, count: int) -> dict[str, Any]:
    """Several steps of one loss."""
    now, change = z, np.zeros(len(z))
    for _ in range(count):
        c = _push(push, now, y)
        change = change + softmax.log_alpha(now, y, s=s, c=c)
        now = softmax.step(now, softmax.residual(now, y, c=c), s=s)
    # A step stretches an error by at most 1 + 2 s, and the coefficient of unlikelihood by its own curvature.
    scale = 64.0 * EPS * len(z) * (1.0 + np.abs(z).max() + s * count) * (1.0 + 2.0 * s) ** count
    return _case("softmax.walk", [z, y, s, push, count], {"logits": now, "change": change}, atol=scale)


def _read(run: Any, name: str, kind: str) -> np.ndarray:
    """(pair, update) of the only world."""
    return run.value(name, kind)[:, 0].T


def _run(
    rng: np.random.Generator, classes: int, pairs: int, length: int, scale: float, steps: int
) -> list[dict[str, Any]]:
    """A run of DPO on random pairs of answers in random contexts under a random kernel, and its first residual."""
    places = int(rng.integers(1, 5))
    phi = rng.normal(size=(places, 3))
    gram = phi @ phi.T + float(rng.uniform(0.0, 2.0)) * np.ones((places, places))
    z = scale * rng.normal(size=(places, classes))
    at = {kind: rng.integers(places, size=(1, pairs, length)) for kind in ("chosen", "rejected")}
    labels = {kind: rng.integers(classes, size=(1, pairs, length)) for kind in at}
    beta, lr = float(rng.uniform(0.05, 1.0)), float(rng.uniform(0.1, 4.0)) / float(np.trace(gram))
    responses = {kind: Responses(at[kind], labels[kind], np.ones((1, pairs, length), bool)) for kind in at}
    world = World(z[None], Gram(gram[None]), responses, places, (0,))
    dpo = objectives.get("dpo", beta=beta)
    run = contexts.train(world, dpo, lr=lr, steps=steps, rejected="rejected", at=range(steps + 1))
    start = state = contexts.start(world)
    tables = [z]
    for _ in range(steps):
        one = contexts.train(world, dpo, lr=lr, steps=1, state=state, reference=start, rejected="rejected", at=())
        state = State(one.state.logits, one.state.dual)
        tables.append(one.state.logits[0])
        if len(tables) == 2:
            residual = one.state.dual[0] / lr
    tokens = {kind: np.stack([at[kind][0], labels[kind][0]], axis=-1) for kind in at}
    argument = {
        "logits": z, "gram": gram, "beta": beta, "lr": lr, "steps": steps,
        "pairs": [{"plus": a, "minus": b} for a, b in zip(tokens["chosen"], tokens["rejected"], strict=True)],
    }  # fmt: skip
    want = {
        "chosen": _read(run, "logp", "chosen"),
        "rejected": _read(run, "logp", "rejected"),
        "argmax": _read(run, "argmax_logp", "chosen"),
        "tables": softmax.log_softmax(np.stack(tables)),
    }
    # R is Lipschitz in Z: curvature of the softmax plus that of the loss, a pull of at most √2 a token, rate lr·tr S.
    stretch = (1.0 + lr * float(np.trace(gram)) * length * (1.0 + beta)) ** min(steps, 8)
    atol = 64.0 * EPS * classes * length * (1.0 + np.abs(z).max() + lr * steps) * stretch
    margins = [want["chosen"][i][0] - want["rejected"][i][0] for i in range(pairs)]
    return [
        _case("contexts.train", [argument], want, atol=atol),
        _case("contexts.residual", [want["tables"][0], argument["pairs"], margins, beta], residual, atol=atol),
    ]


def _needed(rng: np.random.Generator, scale: float, classes: int) -> dict[str, Any]:
    z, w = scale * rng.normal(size=(2, classes))
    y, v = (int(x) for x in rng.integers(classes, size=2))
    own, other = softmax.residual(z, y), softmax.residual(w, v)
    return _case("contexts.needed", [z, y, w, v], own @ own / (own @ other), rtol=RTOL * _condition(own, other))


def _condition(own: np.ndarray, other: np.ndarray) -> float:
    """By how much ⟨g, h⟩ loses digits to cancellation, at most 1e3 here for the tolerance to mean something."""
    return float(np.clip(np.abs(own) @ np.abs(other) / abs(own @ other) / 1e6, 1.0, 1e3))


def contexts_cases(seed: int = 0, /) -> list[dict[str, Any]]:
    """Runs of DPO under random kernels, and what the panel builds from its sliders.

    >>> sorted({one["call"] for one in contexts_cases()})
    ['contexts.belief', 'contexts.coupled', 'contexts.needed', 'contexts.residual', 'contexts.train']
    """
    rng = np.random.default_rng([seed, 1])
    found = [
        one
        for classes, pairs, length, scale, steps in (
            (2, 1, 1, 1.0, 12), (4, 1, 1, 0.1, 12), (5, 2, 1, 2.0, 8), (7, 2, 2, 1.0, 8), (12, 3, 2, 5.0, 6),
            (50, 1, 1, 3.0, 6), (6, 2, 3, 300.0, 6), (3, 1, 1, 0.0, 12),
        )
        for one in _run(rng, classes, pairs, length, scale, steps)
    ]  # fmt: skip
    found += [_needed(rng, scale, classes) for scale in (0.1, 1.0, 5.0) for classes in (2, 4, 11)]
    for k, c in rng.uniform(0.0, 3.0, size=(3, 2)):
        apart = np.array([[1.0, k, 0.0], [k, 1.0, 0.0], [0.0, 0.0, 1.0]])
        found.append(_case("contexts.coupled", [k, c], apart + c))
    for classes, odds, favourite, share in (
        (4, {0: 0.5}, 2, 0.6),
        (10, {0: 2.0, 1: 0.1}, 2, 0.3),
        (5, {1: 3.0}, 4, 0.9),
    ):
        weights = np.full(classes, (1.0 - share) / (classes - len(odds) - 1))
        weights[favourite] = share
        for y, o in odds.items():
            weights[y] = o
        found.append(_case("contexts.belief", [classes, odds, favourite, share], np.log(weights)))
    return found


def cases(seed: int = 0, /) -> list[dict[str, Any]]:
    """All of them, with those of the other arithmetic pieces of the page."""
    from toyld.lab import zoo

    parts: tuple[Callable[[int], list[dict[str, Any]]], ...] = (softmax_cases, contexts_cases, zoo.cases)
    return [one for part in parts for one in part(seed)]
