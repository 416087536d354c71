"""Many contexts, one kernel: what a common component does (K4) at an equal finite margin, which no first update says.

Notation as in `toyld.claims.kernel_common`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb

from toyld import objectives
from toyld.claims import exact
from toyld.claims.base import Counterexample, Margin, Premises, claim, rounding
from toyld.claims.kernel_cases import (
    AT,
    FORK,
    HEAD,
    WIDTH,
    exact_step,
    large,
    logp,
    model,
    push_back,
    rates,
    stepped,
    totals,
    vectors,
    words,
    world,
)
from toyld.claims.spaces import real, step_size

Array = Any
MANY, BETA = 16, Fraction(1, 10)
GRID, ROUNDS = 33, 6


def _after(z: Array, gram: Array, words: Array, lr: Array) -> tuple[Array, Array]:
    """Δℓ_+ and the margin Δ(ℓ_+ − ℓ_−), (n,) each, after MANY steps of DPO of size lr."""
    one = world(z, gram, words, FORK)
    new = stepped(one, objectives.get("dpo", beta=float(BETA)), z, lr=lr, steps=MANY)
    plus, minus = ((logp(new, r) - logp(z, r)).sum((-1, -2)) for r in one.responses.values())
    return plus, plus - minus


def _at_target(z: Array, gram: Array, words: Array, target: Array) -> tuple[Array, Array, Array]:
    """Δℓ_+ where the margin reaches the target, how far off it may be, and whether it is reached, (n,) each.

    The step is looked for on a grid over ten decades, and ROUNDS − 1 times again between two neighbours, whose
    difference at the end, at steps 2e-8 apart, is far above what rounding does.
    """
    n, of = len(z), np.repeat(np.arange(len(z)), GRID)
    scale = 1.0 / (float(BETA) * np.trace(gram, axis1=1, axis2=2))
    low, high, reached = 1e-5 * scale, 1e5 * scale, np.ones(n, dtype=bool)
    for _ in range(ROUNDS):
        lr = low[:, None] * (high / low)[:, None] ** np.linspace(0.0, 1.0, GRID)
        plus, margin = (a.reshape(n, GRID) for a in _after(z[of], gram[of], words[of], lr.ravel()))
        over = margin >= target[:, None]
        over[:, 0] = False  # of the neighbours the lower one is below the target
        reached &= over.any(axis=1)
        i = np.maximum(over.argmax(axis=1), 1)
        (low, high), (before, after) = (
            [np.take_along_axis(a, (i + k)[:, None], axis=1)[:, 0] for k in (-1, 0)] for a in (lr, plus)
        )
    return after, np.abs(after - before), reached


def _exactly_at(z: Any, gram: Any, words: Any, target: Any) -> arb:
    """A ball around Δℓ_+ at some step with which the margin after MANY steps is exactly the target.

    The margin is continuous in the step: where it is certainly below the target at one step and above it at another, a
    step between the two meets it, and the ball of all those between holds its Δℓ_+.
    """
    tokens = [(0, words[0], 1), (1, words[2], 1), (0, words[1], -1), (2, words[3], -1)]
    beta, goal = exact.ball(BETA), exact.ball(target)

    def total(now: Any) -> tuple[arb, arb]:
        p = [exact.tilt([arb(1)] * len(row), row) for row in now]
        at = [p[context][label].log() for context, label, _ in tokens]
        return at[0] + at[1], at[0] + at[1] - at[2] - at[3]

    start = total(z)

    def after(lr: arb) -> tuple[arb, arb]:
        now = z
        for _ in range(MANY):
            k = beta / (1 + (beta * (total(now)[1] - start[1])).exp())
            now = exact_step(now, gram, tokens, lr * k)
        done = total(now)
        return done[0] - start[0], done[1] - start[1]

    low, high = Fraction(0), Fraction(1)
    while not after(exact.ball(high))[1] > goal and high < 2**40:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if after(exact.ball(middle))[1] > goal else (middle, high)
    ends = [exact.ball(x) for x in (low, high)]
    if not (after(ends[0])[1] < goal < after(ends[1])[1]):
        return arb(0, 1e9)  # nothing is certain
    return after(ends[0].union(ends[1]))[0]


def _less_than_alone(head: Any, phi: Any, words: Any, c: Any, target: Any) -> arb:
    """Δℓ_+ with c less Δℓ_+ without at the same margin, with the sign that b/d − a/m has, in balls."""
    w, f = ([a[i : i + WIDTH] for i in range(0, len(a), WIDTH)] for a in (head, phi))
    z = [[exact.ball(sum(a * b for a, b in zip(x, row, strict=True))) for row in w] for x in f]
    gram = [[Fraction(sum(a * b for a, b in zip(x, y, strict=True))) for y in f] for x in f]
    p = [exact.tilt([arb(1)] * len(row), row) for row in z]
    g = [
        [(i == label) - x for i, x in enumerate(p[context])]
        for context, label in ((0, words[0]), (1, words[2]), (0, words[1]), (2, words[3]))
    ]
    at, sign = (0, 1, 0, 2), (1, 1, -1, -1)

    def gains(s: Any) -> tuple[arb, arb]:
        """What y+ and the margin gain in the kernel s at η k = 1."""
        dot = [
            [
                exact.ball(s[at[i]][at[j]]) * sum((x * y for x, y in zip(g[i], g[j], strict=True)), arb(0))
                for j in range(4)
            ]
            for i in range(4)
        ]
        gain = [sum((sign[j] * x for j, x in enumerate(row)), arb(0)) for row in dot]
        return gain[0] + gain[1], sum((sign[i] * x for i, x in enumerate(gain)), arb(0))

    (a, m), (b, d) = gains(gram), gains([[1] * 3] * 3)
    plain, both = (_exactly_at(z, [[x + k for x in row] for row in gram], words, target) for k in (0, c))
    return (both - plain) * (b * m - a * d)


@claim(
    "kernel.common-share-at-a-margin",
    f"At an equal finite margin, reached by {MANY} steps of DPO, a common component takes from y+ if and only if "
    "b/d < a/m at the first update.",
    source="toyld, K4: kernel.common-share read beyond the first update",
    kind="theorem",
    rungs=AT,
    expect="refuted",
    instead="kernel.common-share",
    premises=Premises(
        {
            "head": HEAD,
            "phi": vectors(3),
            "words": words(4, (0, 1)),
            "c": step_size(1e-2, 1e2),
            "target": real(0.5, 10.0),
        },
        sizes=(2, 3, 4),
    ),
    proof="The first update raises y+ by 0.54 nats per nat of margin without c and by 1.59 with c = 30. Where the "
    "margin is 10, y+ has risen by 4.3 without c and by 2.1 with c = 30; the most, 5.8, is at c ≈ 2: not even "
    "monotone. Smaller steps change the sizes, not the order: 64 steps give the same to 0.1.",
    counterexample=Counterexample(
        {
            "head": (3, 0, -1, 3, -3, 2, 3, 3, 2),
            "phi": (1, 0, 0, 0, 1, 0, 0, 0, 1),
            "words": (0, 1, 1, 0),
            "c": Fraction(30),
            "target": Fraction(10),
        },
        margin=_less_than_alone,
        note="b/d > a/m",
    ),
    hunt=False,
    cost=10,
)
def common_share_at_a_margin(head: Array, phi: Array, words: Array, c: Array, target: Array) -> Margin:
    _, _, z, gram = model(head, phi)
    one = world(z, gram, words, FORK)
    both, r, g = gram + c[:, None, None], push_back(z, one, np.ones((len(z), 1))), totals(z, one)
    (a, other), gap = rates(z, gram, one, r).T, g[:, 0] - g[:, 1]
    m, b, d = a - other, np.sum(g[:, 0] * gap, axis=-1), np.sum(gap * gap, axis=-1)
    size = 16.0 * large(gram) * large(z)
    visible = np.abs(b * m - a * d) > 1e-6 * size * (1.0 + np.abs(b) + d)
    found = [_at_target(z, s, words, target) for s in (gram, both)]
    (plain, off, there), (more, beside, here) = found
    value = np.where(visible & there & here, np.sign(b * m - a * d) * (more - plain), np.inf)
    return Margin(value, off + beside + rounding(size + large(both)))
