"""Many contexts as cases: features, heads, labels from the unit cube, as worlds of `toyld.contexts`, and in balls.

For chapter `kernel`: contexts c with features φ_c, one trained head W, logits Z = ΦWᵀ, kernel S = ΦΦᵀ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flint import arb

from toyld import contexts
from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Field, Margin
from toyld.claims.spaces import logits
from toyld.contexts import Gram, Responses, State, World

__all__ = [
    "AT",
    "FORK",
    "HEAD",
    "MODEL",
    "PAIRS",
    "WIDTH",
    "cross",
    "exact_moves",
    "exact_step",
    "gradients",
    "large",
    "logp",
    "model",
    "pulls",
    "push_back",
    "rates",
    "sizes",
    "stacked",
    "stepped",
    "tables",
    "totals",
    "vectors",
    "words",
    "world",
]

Array = Any
AT = ("contexts",)
WIDTH = 3
# Two pairs: kind → contexts of its tokens and the places of their labels in `words`; a shared token, the first
# difference, and one token behind it on either side.
PAIRS = {
    "chosen": (np.array([[0, 1, 2], [4, 5, 6]]), np.array([[0, 1, 3], [5, 6, 8]])),
    "rejected": (np.array([[0, 1, 3], [4, 5, 7]]), np.array([[0, 2, 4], [5, 7, 9]])),
}
# One pair: a first token at one context, a second token on either side behind it.
FORK = {"chosen": (np.array([[0, 1]]), np.array([[0, 2]])), "rejected": (np.array([[0, 2]]), np.array([[1, 3]]))}


def vectors(count: int, *, low: float = 0.1, high: float = 3.0) -> Field:
    """`count` vectors (n, count·WIDTH) of a log-uniform size."""
    width = 1 + WIDTH * count
    return Field(lambda size: width, lambda u, size, case: low * (high / low) ** u[:, :1] * (2.0 * u[:, 1:] - 1.0))


def words(count: int, *different: tuple[int, int]) -> Field:
    """Labels (n, count); of every named couple the second differs from the first."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        y = np.minimum((u * size).astype(int), size - 1)
        for a, b in different:
            y[:, b] = (y[:, a] + 1 + np.minimum((u[:, b] * (size - 1)).astype(int), size - 2)) % size
        return y

    return Field(lambda size: count, decode)


HEAD = Field(lambda size: 1 + WIDTH * size, lambda u, size, case: 0.1 * 30.0 ** u[:, :1] * (2.0 * u[:, 1:] - 1.0))
MODEL = {"head": HEAD, "phi": vectors(8), "words": words(10)}


def sizes(count: int, *, low: float = 0.1, high: float = 10.0) -> Field:
    """`count` positive numbers (n, count), log-uniform in [low, high]."""
    return Field(lambda size: count, lambda u, size, case: low * (high / low) ** u)


def tables(count: int) -> Field:
    """Logits of `count` contexts, flat (n, count·V), every context of its own kind."""
    one = logits(high=30.0)

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        return np.concatenate([one.decode(part, size, case) for part in np.split(u, count, axis=1)], axis=1)

    return Field(lambda size: count * one.width(size), decode)


def model(head: Array, phi: Array) -> tuple[Array, Array, Array, Array]:
    """W (n, V, d), Φ (n, C, d), Z = ΦWᵀ and S = ΦΦᵀ."""
    n = len(head)
    w, f = head.reshape(n, -1, WIDTH), phi.reshape(n, -1, WIDTH)
    return w, f, f @ w.transpose(0, 2, 1), f @ f.transpose(0, 2, 1)


def world(z: Array, gram: Array, labels: Array, kinds: Mapping[str, tuple[Array, Array]] = PAIRS, /) -> World:
    """Cases as worlds: logits (n, C, V), a kernel, and the responses whose labels stand in `labels` (n, k)."""
    responses = {}
    for kind, (context, place) in kinds.items():
        y = labels[:, place].astype(np.int64)
        responses[kind] = Responses(np.broadcast_to(context, y.shape), y, np.ones(y.shape, dtype=bool))
    return World(z, Gram(gram), responses, z.shape[1], tuple(range(len(z))))


def stepped(one: World, objective: Any, z: Array, *, lr: Array, reference: Array | None = None, **rest: Any) -> Array:
    """Z after one update of `toyld.contexts.train` from the logits z (n, C, V); `rest` goes to it."""
    options: dict[str, Any] = {"steps": 1, "at": (), "kinds": tuple(one.responses)[:1], "form": "kernel"}
    options["rejected"] = "rejected" if "rejected" in one.responses else None
    options["state"], nothing = State(z, np.zeros_like(z)), np.zeros_like(z)
    options["reference"] = None if reference is None else State(reference, nothing)
    return contexts.train(one, objective, lr=lr, **{**options, **rest}).state.logits


def logp(z: Array, r: Responses) -> Array:
    """log π of every token, (n, P, T)."""
    at = sm.log_softmax(z)[np.arange(len(z))[:, None, None], r.context]
    return np.take_along_axis(at, r.token[..., None], axis=-1)[..., 0]


def pulls(z: Array, r: Responses) -> Array:
    """g = e_y − π of every token, (n, P, T, V)."""
    at = z[np.arange(len(z))[:, None, None], r.context]
    return -sm.residual(at.reshape(-1, z.shape[-1]), r.token.reshape(-1)).reshape(at.shape)


def cross(gram: Array, z: Array, a: Responses, b: Responses, *, ones: bool = False) -> Array:
    """S_cc' ⟨g_c, g_c'⟩ of every token of a against every token of b, (n, P, T, P', T'); `ones`: S_cc' alone."""
    n = np.arange(len(z))[:, None, None, None, None]
    s = gram[n, a.context[:, :, :, None, None], b.context[:, None, None]]
    return s if ones else s * np.einsum("nptv,nquv->nptqu", pulls(z, a), pulls(z, b))


def large(*arrays: Array) -> Array:
    """1 + the largest size among all entries of each case, (n,)."""
    return 1.0 + sum(np.abs(a).reshape(len(a), -1).max(axis=1) for a in arrays)


def gradients(w: Array, f: Array, one: World) -> Array:
    """∇_W ℓ of every response, chosen first, by automatic differentiation, (n, 2P, V·d)."""
    import torch

    head, here = torch.from_numpy(w.copy()).requires_grad_(), torch.arange(len(w))[:, None, None]
    at = (torch.from_numpy(f.copy()) @ head.mT).log_softmax(-1)
    out = []
    for r in one.responses.values():
        tokens = at[here, torch.from_numpy(r.context.copy())].gather(-1, torch.from_numpy(r.token)[..., None])
        each = tokens[..., 0].sum(-1)
        out += [torch.autograd.grad(each[:, i].sum(), head, retain_graph=True)[0] for i in range(each.shape[1])]
    return torch.stack(out, dim=1).reshape(len(w), len(out), -1).numpy()


def exact_step(
    z: Sequence[Sequence[arb]], gram: Any, tokens: Sequence[tuple[int, int, Any]], s: Any
) -> list[list[arb]]:
    """Z − s S R with R_c = Σ c (π_c − e_y) over the tokens (context, label, c), in balls.

    z: log-probabilities or logits as balls, a list a context; gram: rationals; s: a rational or a ball.
    """
    p = [exact.tilt([arb(1)] * len(row), row) for row in z]
    size, step = len(p[0]), s if isinstance(s, arb) else exact.ball(s)
    r = [[arb(0)] * size for _ in p]
    for context, label, c in tokens:
        r[context] = [
            x + exact.ball(c) * (a - (i == label)) for i, (x, a) in enumerate(zip(r[context], p[context], strict=True))
        ]
    return [
        [
            now - step * sum((exact.ball(k) * other[i] for k, other in zip(row, r, strict=True)), arb(0))
            for i, now in enumerate(at)
        ]
        for at, row in zip(z, gram, strict=True)
    ]


def exact_moves(z: Sequence[Sequence[arb]], gram: Any, tokens: Sequence[tuple[int, int, Any]], s: Any) -> list[arb]:
    """Δ log π of every token (context, label, c) after `exact_step`, in balls."""
    old, new = ([exact.tilt([arb(1)] * len(row), row) for row in a] for a in (z, exact_step(z, gram, tokens, s)))
    return [(new[context][label] / old[context][label]).log() for context, label, _ in tokens]


def push_back(z: Array, one: World, k: Array) -> Array:
    """R (n, C, V) of pairs with coefficients c_± = ±k (n, P), mean over the pairs."""
    n, r = np.arange(len(z))[:, None, None], np.zeros_like(z)
    for kind, sign in (("chosen", -1.0), ("rejected", 1.0)):
        side = one.responses[kind]
        np.add.at(r, (n, side.context), sign * (k / k.shape[1])[:, :, None, None] * pulls(z, side))
    return r


def rates(z: Array, gram: Array, one: World, r: Array) -> Array:
    """First-order change of every response at η = 1, (n, 2P): chosen, then rejected."""
    v, n = gram @ r, np.arange(len(z))[:, None, None]
    return np.concatenate([-(pulls(z, s) * v[n, s.context]).sum((-1, -2)) for s in one.responses.values()], axis=1)


def totals(z: Array, one: World) -> Array:
    """G of every response, (n, 2P, V)."""
    return np.concatenate([pulls(z, s).sum(2) for s in one.responses.values()], axis=1)


def stacked(*margins: Margin) -> Margin:
    """Several margins of the same cases as one."""
    flat = [(m.value.reshape(len(m.value), -1), np.broadcast_to(m.bound, np.shape(m.value))) for m in margins]
    return Margin(
        *(np.concatenate([np.reshape(a, (len(a), -1)) for a in part], axis=1) for part in zip(*flat, strict=True))
    )
