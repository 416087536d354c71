"""What is measured on every response of a world: the variables of the one table, per prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from array_api_compat import array_namespace

from toyld._stable import parts
from toyld.contexts.world import Responses

__all__ = ["VARIABLES", "gathered", "measure", "token_log_probs"]

Array = Any
VARIABLES = ("logp", "argmax_logp", "entropy", "top1", "pi_norm2", "residual_norm")


def gathered(values: Array, context: Array, /) -> Array:
    """values[b, context[b, ...]]: (B, C) or (B, C, k) at indices (B, P, T)."""
    xp = array_namespace(values)
    worlds, contexts = values.shape[:2]
    offset = xp.reshape(xp.arange(worlds, dtype=context.dtype, device=context.device) * contexts, (-1, 1, 1))
    flat = xp.reshape(values, (worlds * contexts, *values.shape[2:]))
    return flat[context + offset]


def token_log_probs(logits: Array, responses: Responses, /) -> Array:
    """log π of every token (B, P, T), exactly 0 on masked positions; relative accuracy kept near certainty."""
    return _tokens(logits, responses)["logp"]


def _tokens(logits: Array, responses: Responses) -> dict[str, Array]:
    """Per-token statistics (B, P, T) from one pass over the contexts (B, C, V), the largest class left out of sums."""
    xp = array_namespace(logits)
    _, _, shifted, rest = parts(xp, logits)
    mass = xp.exp(shifted)
    zero = xp.zeros_like(mass)
    others = xp.where(shifted == 0, zero, mass)  # ties with the largest are counted in `rest` below
    log_norm = xp.log1p(rest)[..., 0]
    norm = 1.0 + rest[..., 0]
    squares = xp.sum(mass * mass, axis=-1)
    weighted = xp.sum(others * xp.where(shifted == 0, zero, shifted), axis=-1)
    context = responses.context
    # The label's logit, one number a token: flat (B·C·V) positions.
    worlds, contexts, classes = logits.shape
    offset = xp.reshape(xp.arange(worlds, dtype=context.dtype, device=context.device) * contexts, (-1, 1, 1))
    z = xp.reshape(shifted, (-1,))[(context + offset) * classes + responses.token]
    at = {name: gathered(value, context) for name, value in (("rest", rest[..., 0]), ("norm", norm))}
    log_norm_at, squares_at = gathered(log_norm, context), gathered(squares, context)
    label = z - log_norm_at
    pi2 = squares_at / at["norm"] ** 2
    p = xp.exp(label)
    # ||π − e||² where the label is the largest class: (rest² + Σ_others e²)/Z², which does not cancel.
    near = (at["rest"] ** 2 + squares_at - 1.0) / at["norm"] ** 2
    far = pi2 - 2.0 * p + 1.0
    gap = xp.where(z == 0, near, far)
    out = {
        "logp": label,
        "argmax_logp": -log_norm_at,
        "entropy": log_norm_at - gathered(weighted, context) / at["norm"],
        "top1": 1.0 / at["norm"],
        "pi_norm2": pi2,
        "residual_norm": xp.sqrt(xp.where(gap > 0, gap, xp.zeros_like(gap))),
    }
    return {name: xp.where(responses.mask, value, xp.zeros_like(value)) for name, value in out.items()}


def measure(logits: Array, responses: Mapping[str, Responses], kinds: Iterable[str], /) -> dict[str, Array]:
    """Variable → (B, kind, P): sums over the tokens for logp and argmax_logp, else their means."""
    found: dict[str, list[Array]] = {name: [] for name in VARIABLES}
    xp = array_namespace(logits)
    for kind in kinds:
        tokens = _tokens(logits, responses[kind])
        count = xp.sum(xp.astype(responses[kind].mask, logits.dtype), axis=-1)
        for name, value in tokens.items():
            total = xp.sum(value, axis=-1)
            found[name].append(total if name in ("logp", "argmax_logp") else total / count)
    return {name: xp.stack(values, axis=1) for name, values in found.items()}
