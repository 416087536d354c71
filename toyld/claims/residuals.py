"""The residual of every loss (§3.1, App. B.2, and `COEFFICIENTS` below): G = c(π − e_y) on every token.

One claim per registered objective, `residual.<name>` with dots and underscores as hyphens; `add(name)` makes the same
claim for a loss of your own. A case is a batch of three prompts, each with a chosen and a rejected response of one or
two tokens and an anchor of one; every token has a softmax of its own. Notation: ℓ summed log-probability,
r = log π/π_ref, h = r_+ − r_−, a each loss's own sigmoid, |y| the number of tokens. c > 0 pulls up, c < 0 is a negative
gradient.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy.special import expit

from toyld import objectives
from toyld import softmax as sm
from toyld.claims.base import Claim, Field, Margin, Premises, claim, rounding
from toyld.claims.spaces import integers, label, logits, real
from toyld.claims.tools import PAPER

__all__ = ["ACROSS", "COEFFICIENTS", "add", "contexts", "name_of", "numbers", "summary", "words"]

Array = Any
ROWS = 3  # the fewest on which the rank of a row is not the row of a rank (AOT)
SLICES = {"chosen": slice(0, 2), "rejected": slice(2, 4), "anchor": slice(4, 5)}
TOKENS = 5
GROUPS = np.array([0, 0, 1])
ACROSS = frozenset(name for name in objectives.OBJECTIVES if objectives.looks_across(objectives.get(name)))
"""The losses whose push on a row depends on the other rows of the batch, by probing."""


def contexts(*shape: int) -> Field:
    """Logits (n, *shape, V), one softmax a token; 1 − π ≥ 1e-10, so that losses of 1 − π keep their digits."""
    one, count = logits(high=3.0), int(np.prod(shape, dtype=int))

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        return one.decode(u.reshape(len(u) * count, -1), size, case).reshape(len(u), *shape, size)

    return Field(lambda size: count * one.width(size), decode)


def words(*shape: int, of: str = "z") -> Field:
    """Labels (n, *shape) of such contexts, uniform over ranks."""
    one, count = label("z"), int(np.prod(shape, dtype=int))

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        return one.decode(u.reshape(-1, 1), size, {"z": case[of].reshape(-1, size)}).reshape(len(u), *shape)

    return Field(lambda size: count, decode)


def _many(one: Field, *shape: int) -> Field:
    """Independent copies (n, *shape) of a field of one coordinate."""

    def decode(u: np.ndarray, size: int, case: Mapping[str, Array]) -> Array:
        return one.decode(u.reshape(-1, 1), size, case).reshape(len(u), *shape)

    return Field(lambda size: int(np.prod(shape, dtype=int)), decode)


def _premises(shortest: int) -> Premises:
    """Batches of three prompts; `shortest` = 0 lets rejected responses be absent."""
    fields = {
        "z": contexts(ROWS, TOKENS),
        "y": words(ROWS, TOKENS),
        "reference": _many(real(-12.0, 0.0), ROWS, TOKENS),
        "ahead": _many(real(-0.6, 0.6), ROWS, TOKENS),  # log π/π_old: both sides of a clip at 0.2
        "reward": _many(real(-2.0, 2.0), ROWS, 2),
        "longer": _many(integers(0, 1), ROWS),
        "length": _many(integers(shortest, 2), ROWS),
    }
    return Premises(fields, sizes=(2, 4, 8))


def _batch(logp: Array, reference: Array, ahead: Array, reward: Array, longer: Array, length: Array) -> Any:
    """The Batch of rows (B, 5) of tokens."""
    given: dict[str, Any] = {"groups": GROUPS} if len(logp) == ROWS else {}
    for side, at in SLICES.items():
        given[side], given[f"ref_{side}"] = logp[:, at], reference[:, at]
    for i, side in enumerate(("chosen", "rejected")):
        given[f"old_{side}"] = given[side] - ahead[:, SLICES[side]]
        given[f"{side}_advantage"] = reward[:, i]
    given["chosen_mask"] = np.arange(2) < 1 + longer[:, None]
    given["rejected_mask"] = np.arange(2) < length[:, None]
    return objectives.Batch(**given)


def numbers(batch: Any) -> SimpleNamespace:
    """What the table's formulas are written in, each (B,) unless said, summed here and not by the batch itself."""
    n, mask, total = SimpleNamespace(groups=batch.groups), {}, {}
    for side, sign in (("chosen", "plus"), ("rejected", "minus"), ("anchor", "anchor")):
        given = getattr(batch, f"{side}_mask")
        mask[side] = np.ones(getattr(batch, side).shape, dtype=bool) if given is None else given
        for prefix in ("", "ref_", "old_"):
            tokens = getattr(batch, prefix + side, None)
            if tokens is not None:
                total[prefix + side] = np.where(mask[side], tokens, 0.0).sum(axis=1)
        setattr(n, f"here_{sign}", mask[side].any(axis=1))
        setattr(n, f"length_{sign}", np.maximum(mask[side].sum(axis=1), 1))
        setattr(n, f"l_{sign}", total[side])
        setattr(n, f"r_{sign}", total[side] - total[f"ref_{side}"])
        if side != "anchor":
            setattr(n, f"tokens_{sign}", getattr(batch, side))  # (B, T)
            setattr(n, f"ratio_{sign}", np.exp(getattr(batch, side) - getattr(batch, f"old_{side}")))  # (B, T)
            setattr(n, f"whole_ratio_{sign}", np.exp(total[side] - total[f"old_{side}"]))
            setattr(n, f"reward_{sign}", getattr(batch, f"{side}_advantage"))
    n.h = n.r_plus - n.r_minus
    return n


def _clipped(ratio: Array, advantage: Array, clip: float) -> Array:
    """PPO's Âρ, 0 where clipped, (B, T)."""
    cut = np.where(advantage[:, None] > 0, ratio > 1.0 + clip, ratio < 1.0 - clip)
    return np.where(cut, 0.0, advantage[:, None] * ratio)


def _grpo(o: Any, n: Any) -> tuple[Array, Array]:
    pushes = []
    for ratio, length, right in ((n.ratio_plus, n.length_plus, 1.0), (n.ratio_minus, n.length_minus, 0.0)):
        wins, losses = (np.array([here[n.groups == g].sum() for g in n.groups]) for here in (n.here_plus, n.here_minus))
        p = wins / (wins + losses)
        spread = np.sqrt(p * (1.0 - p))
        advantage = np.where(spread > 0.0, (right - p) / np.where(spread > 0.0, spread, 1.0), 0.0)
        pushes.append(_clipped(ratio, advantage, o.clip) / length[:, None])
    return pushes[0], pushes[1]


def _kto(o: Any, n: Any) -> tuple[Array, Array]:
    z0 = max(0.0, n.r_anchor.mean())
    slope = [expit(u) * expit(-u) for u in (o.beta * (n.r_plus - z0), o.beta * (z0 - n.r_minus))]
    return o.desirable * o.beta * slope[0], -o.undesirable * o.beta * slope[1]


def _dpop(o: Any, n: Any) -> tuple[Array, Array]:
    strength = o.beta * expit(-o.beta * (n.h - o.weight * np.maximum(0.0, -n.r_plus)))
    return strength * (1.0 + o.weight * (n.r_plus < 0.0)), -strength


def _simpo(o: Any, n: Any) -> tuple[Array, Array]:
    fading = expit(o.gamma - o.beta * (n.l_plus / n.length_plus - n.l_minus / n.length_minus))
    return o.beta / n.length_plus * fading, -o.beta / n.length_minus * fading


def _orpo(o: Any, n: Any) -> tuple[Array, Array]:
    mean = [n.l_plus / n.length_plus, n.l_minus / n.length_minus]
    rest = [-np.expm1(m) for m in mean]  # 1 − P
    fading = 1.0 / (1.0 + np.exp(mean[0] - mean[1]) * rest[1] / rest[0])  # 1 − σ(log OR)
    plus = (1.0 + o.weight * fading / rest[0]) / n.length_plus
    return plus, -o.weight * fading / rest[1] / n.length_minus


def _gate(o: Any, n: Any) -> tuple[Array, Array]:
    strength = o.beta * expit(-o.beta * n.h)
    return strength, -strength * expit(o.alpha * (np.exp(n.l_minus / n.length_minus) - o.tau))


def _opposite(strength: Array) -> tuple[Array, Array]:
    return strength, -strength


COEFFICIENTS: dict[str, Callable[[Any, Any], tuple[Array, Array]]] = {
    "sft": lambda o, n: (1.0, 0.0),
    "extend": lambda o, n: (1.0, 1.0),
    "ga": lambda o, n: (0.0, -1.0),
    "dpo": lambda o, n: _opposite(o.beta * expit(-o.beta * n.h)),
    "cdpo": lambda o, n: _opposite(o.beta * (1.0 - o.epsilon - expit(o.beta * n.h))),
    "ipo": lambda o, n: _opposite(-2.0 * (n.h - 0.5 / o.beta)),
    "slic": lambda o, n: _opposite((n.l_plus - n.l_minus < o.delta).astype(float)),
    "simpo": _simpo,
    "sppo": lambda o, n: (-2.0 * (n.r_plus - 0.5 * o.eta), -2.0 * (n.r_minus + 0.5 * o.eta)),
    "dpop": _dpop,
    "rpo": lambda o, n: (
        o.beta * expit(-o.beta * n.h) + o.alpha / n.length_plus,
        -o.beta * expit(-o.beta * n.h),
    ),
    "cpo": lambda o, n: (
        o.beta * expit(-o.beta * (n.l_plus - n.l_minus)) + o.weight,
        -o.beta * expit(-o.beta * (n.l_plus - n.l_minus)),
    ),
    "kto": _kto,
    "orpo": _orpo,
    "nca": lambda o, n: (
        o.beta * (expit(-o.beta * n.r_plus) - 0.5 * expit(o.beta * n.r_plus)),
        -0.5 * o.beta * expit(o.beta * n.r_minus),
    ),
    "npo": lambda o, n: (0.0, -2.0 * np.exp(o.beta * n.r_minus) / (1.0 + np.exp(o.beta * n.r_minus))),
    "unlikelihood": lambda o, n: (0.0, np.exp(n.tokens_minus) / np.expm1(n.tokens_minus)),
    "nsr": lambda o, n: (0.0, -np.exp(n.l_minus)),
    "ppo": lambda o, n: (
        _clipped(n.ratio_plus, n.reward_plus, o.clip),
        _clipped(n.ratio_minus, n.reward_minus, o.clip),
    ),
    "grpo": _grpo,
    "topr": lambda o, n: (1.0, -np.minimum(1.0, n.whole_ratio_minus)),
    "asymre": lambda o, n: (n.reward_plus - o.baseline, n.reward_minus - o.baseline),
    "gate-dpo": _gate,
}
"""(c_+, c_−) as each loss's paper has them, (B,) or (B, T), of (objective, numbers); apart from the objectives."""


def _rows(batch: Any, objective: Any, leaves: Mapping[str, Any], formula: Any) -> tuple[Array, Array]:
    """Push of a batch, rows (B, 5), and its distance from the formula (B, 5); adds the loss's gradient to `leaves`."""
    import torch

    loss = objective.loss(replace(objectives.convert(batch, torch.asarray), **leaves))
    if loss.requires_grad:
        loss.sum().backward(retain_graph=True)
    pushed = objective.push(batch)
    push = np.concatenate([getattr(pushed, side) for side in SLICES], axis=1)
    off = np.zeros_like(push)
    if formula is not None:
        for side, c in zip(("chosen", "rejected"), formula(objective, numbers(batch)), strict=True):
            c = np.asarray(c, dtype=float)
            mask = getattr(batch, f"{side}_mask")
            off[:, SLICES[side]] = push[:, SLICES[side]] - np.where(mask, c if c.ndim == 2 else c[..., None], 0.0)
    return push, off


def _check(objective: Any, formula: Any, across: bool) -> Callable[..., Margin]:
    """−∂loss/∂z by autograd against push·(e_y − π) at every token, and the push against the table's formula."""

    def check(z: Array, y: Array, **rest: Array) -> Margin:
        import torch

        count = len(z)
        leaf = torch.tensor(z, requires_grad=True)
        logp = torch.log_softmax(leaf, -1).gather(-1, torch.tensor(y)[..., None])[..., 0]
        values = {"logp": logp.detach().numpy(), **rest}
        # Where rows ignore each other all cases are one batch; else each case is a batch of its own.
        parts = [slice(i, i + 1) for i in range(count)] if across else [slice(0, count)]
        made = []
        for part in parts:
            flat = {name: a[part].reshape(-1, *a.shape[2:]) for name, a in values.items()}
            tensors = {side: logp[part].reshape(-1, TOKENS)[:, at] for side, at in SLICES.items()}
            made.append(_rows(_batch(**flat), objective, tensors, formula))
        push, off = (np.concatenate(a).reshape(count, ROWS, TOKENS) for a in zip(*made, strict=True))
        if leaf.grad is None and np.any(push):
            raise ValueError(
                f"{objective.name}: expected a loss that depends on log π, as its push does; got a constant"
            )
        got = np.zeros_like(z) if leaf.grad is None else -leaf.grad.numpy()
        error = got + sm.residual(z, y, c=push)
        # Both sides start from the same log-probabilities. Their sums carry ε Σ|log π|, and no coefficient here depends
        # on one with a slope above 4(1 + |c|)² (DPOP: (β(1 + λ))²/4, DiscoPOP: β²/τ², unlikelihood: c(1 + c)).
        size = 1.0 + sum(np.abs(a).reshape(count, -1).sum(axis=1) for n, a in values.items() if n != "length")
        steep = 4.0 * (1.0 + np.abs(push).reshape(count, -1).max(axis=1)) ** 2
        bound = rounding((size + np.abs(z).reshape(count, -1).max(axis=1)) * steep)[:, None]
        wrong = [error, got.sum(axis=-1), off]
        return Margin(bound - np.abs(np.concatenate([a.reshape(count, -1) for a in wrong], axis=1)), bound)

    return check


def _check_target(objective: Any) -> Callable[..., Margin]:
    """The same for a target distribution: G = (1 − λ)e_y + λq − π, with q the belief cut to its k likeliest."""

    def check(z: Array, y: Array, **_: Array) -> Margin:
        import torch

        count, flat, labels = len(z), z.reshape(-1, TOKENS, z.shape[-1]), y.reshape(-1, TOKENS)
        leaf = torch.tensor(flat, requires_grad=True)
        logp = torch.log_softmax(leaf, -1)
        loss = objective.loss(logp, torch.tensor(labels)).sum()
        if loss.requires_grad:
            loss.backward()
        if leaf.grad is None:
            raise ValueError(f"{objective.name}: expected a loss that depends on log π; got a constant")
        p = np.exp(logp.detach().numpy())
        belief = np.where(p >= np.sort(p, axis=-1)[..., -min(objective.k, p.shape[-1]), None], p, 0.0)
        belief /= belief.sum(axis=-1, keepdims=True)
        g = (1.0 - objective.weight) * sm.one_hot(flat, labels) + objective.weight * belief - p
        errors = [leaf.grad.numpy() - g, objective.residual(logp.detach().numpy(), labels) - g]
        bound = rounding(1.0 + np.abs(z).reshape(count, -1).max(axis=1))[:, None]
        return Margin(bound - np.abs(np.concatenate([e.reshape(count, -1) for e in errors], axis=1)), bound)

    return check


def name_of(objective: str, /) -> str:
    """The id of an objective's claim.

    >>> name_of("trl.nca_pair")
    'residual.trl-nca-pair'
    """
    return "residual." + objective.replace(".", "-").replace("_", "-")


def summary(objective: Any, /) -> str:
    """The loss and its coefficients in words, the first sentence of its class's docstring.

    >>> summary(objectives.get("nca")).split("; ")[1]
    'c_+ = β[1 − 3/2 σ(βr_+)], which reverses at βr_+ = ln 2'
    """
    paragraphs = [" ".join(part.split()) for part in inspect.getdoc(type(objective)).split("\n\n")]  # type: ignore[union-attr]
    # A claim's statement is one sentence: what follows a full stop and begins with a capital is left out.
    found = [re.split(r"(?<!i\.e)(?<!e\.g)\.\s+(?=\(?[A-Z])", paragraphs[0])[0].rstrip(".")]
    if len(paragraphs) > 1 and paragraphs[1].startswith("c_"):
        found.append(paragraphs[1].split(". ")[0].rstrip("."))
    return "; ".join(found)


def add(name: str, /, *, formula: Callable[[Any, Any], tuple[Array, Array]] | None = None) -> Claim:
    """Claim `residual.<name>` of a registered objective: its gradient in the logits is −push·(e_y − π), token by token.

    `formula(objective, numbers)` → (c_+, c_−) is compared with its push where given; `numbers` as in `COEFFICIENTS`.

    >>> from dataclasses import dataclass
    >>> from toyld.claims import hold
    >>> from toyld.claims.base import registry
    >>> @objectives.register
    ... @dataclass(frozen=True)
    ... class Square(objectives.MarginObjective):
    ...     name, source = "square", "an example"
    ...     def value(self, h):
    ...         return (h - 1.0) ** 2
    ...     def strength(self, h):
    ...         return 2.0 * (1.0 - h)
    >>> add("square", formula=lambda o, n: (2.0 * (1.0 - n.h), 2.0 * (n.h - 1.0))).id
    'residual.square'
    >>> hold("residual.square").verdict
    'holds'
    >>> del objectives.OBJECTIVES["square"], registry["residual.square"]
    """
    objective = objectives.get(name)
    target = objective.kind == "target"
    # A loss of somebody else's may look across the batch for all we know.
    across = name in ACROSS or name not in _OURS
    what = "with a target distribution t in place of e_y, G = ±(t − π)" if target else "G = c(π − e_y) on every token"
    return claim(
        name_of(name),
        f"{name}: {what}, its entries sum to 0; {summary(objective)}.",
        source=f"{objective.source}; {PAPER}, App. B.2",
        kind="identity",
        premises=_premises(0 if name == "grpo" else 1),
        proof="Chain rule: ∂ log π_y/∂z = e_y − π at each token, whose softmax enters the loss through log π_y alone; "
        "c = −∂loss/∂log π_y.",
        cost=21,
        hunt=False,  # an autograd graph a case, and some forty losses
    )(_check_target(objective) if target else _check(objective, formula, across))


_OURS = frozenset(objectives.OBJECTIVES)
for _name in objectives.OBJECTIVES:
    add(_name, formula=COEFFICIENTS.get(_name))
