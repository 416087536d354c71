"""What is measured on every response of a world: the variables of the one table, per prompt.

Statistics belong to contexts, so one pass over the logits serves all kinds of responses that share them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from array_api_compat import array_namespace, device

from toyld.contexts.world import Responses

__all__ = ["VARIABLES", "Statistics", "blocks", "flat", "gathered", "measure", "reach", "statistics", "token_log_probs"]

Array = Any
VARIABLES = ("logp", "argmax_logp", "entropy", "top1", "pi_norm2", "residual_norm")
_CACHED = 2**16  # numbers in a block of rows that goes through several passes while it stays in the cache


def blocks(rows: Array, /) -> Iterator[slice]:
    """Slices of the rows (N, V) that fit into the cache; on an accelerator, all rows at once.

    >>> import numpy as np
    >>> [piece.stop for piece in blocks(np.zeros((3, 50_000)))]
    [1, 2, 3]
    """
    n, classes = rows.shape
    size = max(1, _CACHED // classes)
    if size >= n or not str(device(rows)).startswith("cpu"):
        return iter([slice(0, n)])
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def gathered(values: Array, context: Array, /) -> Array:
    """values[b, context[b, ...]]: (B, C) or (B, C, k) at indices (B, P, T)."""
    worlds, contexts = values.shape[:2]
    return values.reshape(worlds * contexts, *values.shape[2:])[flat(context, contexts)]


def flat(context: Array, contexts: int, /) -> Array:
    """context (B, P, T) of each world as a place among the contexts of all worlds."""
    xp = array_namespace(context)
    first = xp.arange(context.shape[0], dtype=context.dtype, device=device(context)) * contexts
    return context + first[:, None, None]


def reach(responses: Responses, /) -> int:
    """Contexts beyond which no token of the responses lies."""
    xp = array_namespace(responses.context)
    return 1 + int(xp.max(xp.where(responses.mask, responses.context, xp.zeros_like(responses.context))))


class Statistics(NamedTuple):
    """Of every context, (B, C), m the largest logit, all sums without it: what keeps its digits near certainty."""

    top: Array  # m
    rest: Array  # Σ' e^{z − m}
    squares: Array  # Σ' e^{2(z − m)}
    weighted: Array  # Σ' (z − m) e^{z − m}


def statistics(logits: Array, /) -> Statistics:
    """The sums of every context of logits (B, C, V), in one pass of rows that stay in the cache."""
    xp, shape = array_namespace(logits), logits.shape
    rows = xp.reshape(logits, (-1, shape[-1]))
    parts = []
    for piece in blocks(rows):
        z = rows[piece]
        at = xp.arange(z.shape[0], device=device(z)) * shape[-1] + xp.argmax(z, axis=-1)
        top = z.reshape(-1)[at]
        z = z - top[:, None]
        mass = xp.exp(z)
        mass.reshape(-1)[at] = 0.0  # the largest class itself; others that are as large stay in
        parts.append((top, xp.sum(mass, axis=-1), xp.vecdot(mass, mass), xp.vecdot(mass, z)))
    return Statistics(*(xp.reshape(xp.concat(each), shape[:-1]) for each in zip(*parts, strict=True)))


def _label(logits: Array, of: Statistics, responses: Responses) -> tuple[Array, Array]:
    """(z_y − m, places among all contexts) of every token."""
    xp, context = array_namespace(logits), responses.context
    at = flat(xp.where(responses.mask, context, xp.zeros_like(context)), logits.shape[1])
    z = logits.reshape(-1)[at * logits.shape[-1] + responses.token]
    return z - of.top.reshape(-1)[at], at


def token_log_probs(logits: Array, responses: Responses, /, *, of: Statistics | None = None) -> Array:
    """log π of every token (B, P, T), exactly 0 on masked positions; relative accuracy kept near certainty.

    `of`: the statistics of these logits, where they are at hand.
    """
    xp, of = array_namespace(logits), statistics(logits) if of is None else of
    z, at = _label(logits, of, responses)
    logp = z - xp.log1p(of.rest).reshape(-1)[at]
    return xp.where(responses.mask, logp, xp.zeros_like(logp))


def _tokens(logits: Array, of: Statistics, responses: Responses) -> dict[str, Array]:
    """Every variable of every token, (B, P, T)."""
    xp = array_namespace(logits)
    z, at = _label(logits, of, responses)
    rest, squares, weighted = (one.reshape(-1)[at] for one in of[1:])
    norm, log_norm = 1.0 + rest, xp.log1p(rest)
    logp, pi2 = z - log_norm, (1.0 + squares) / (1.0 + rest) ** 2
    # ||π − e||² where the label is the largest class, without 1 − π_y; elsewhere π_y ≤ 1/2 and nothing cancels. Squares
    # below the smallest number of the dtype are 0: in float64 ||π − e|| < 1e-154 is.
    gap = xp.where(z == 0, (rest**2 + squares) / norm**2, pi2 - 2.0 * xp.exp(logp) + 1.0)
    out = {
        "logp": logp,
        "argmax_logp": -log_norm,
        "entropy": log_norm - weighted / norm,
        "top1": 1.0 / norm,
        "pi_norm2": pi2,
        "residual_norm": xp.sqrt(gap),
    }
    return {name: xp.where(responses.mask, value, xp.zeros_like(value)) for name, value in out.items()}


def measure(
    logits: Array, responses: Mapping[str, Responses], kinds: Iterable[str], /, *, of: Statistics | None = None
) -> dict[str, Array]:
    """Variable → (B, kind, P): sums over the tokens for logp and argmax_logp, else their means; NaN without tokens.

    `of`: the statistics of these logits, where they are at hand.

    >>> import numpy as np
    >>> one = Responses(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), np.ones((1, 1, 1), bool))
    >>> found = measure(np.log([[[0.5, 0.25, 0.25]]]), {"chosen": one}, ["chosen"])
    >>> {name: round(value.item(), 4) for name, value in found.items() if name in ("logp", "entropy", "pi_norm2")}
    {'logp': -0.6931, 'entropy': 1.0397, 'pi_norm2': 0.375}
    """
    xp, of = array_namespace(logits), statistics(logits) if of is None else of
    found: dict[str, list[Array]] = {name: [] for name in VARIABLES}
    for kind in kinds:
        tokens = _tokens(logits, of, responses[kind])
        count = xp.sum(xp.astype(responses[kind].mask, logits.dtype), axis=-1)
        count = xp.where(count > 0, count, xp.full_like(count, xp.nan))
        for name, value in tokens.items():
            total = xp.sum(value, axis=-1)
            found[name].append(total + 0.0 * count if name in ("logp", "argmax_logp") else total / count)
    return {name: xp.stack(values, axis=1) for name, values in found.items() if values}
