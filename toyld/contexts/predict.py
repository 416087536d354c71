"""What preference training will do to each response, before any training: K3, from S, Z0 and the pairs alone.

With fixed features and a trained head every gradient is a sum over contexts, ∇ℓ = Σ_c φ_c (e_{y_c} − π_c)ᵀ, so that
the inner product of the gradients of two responses takes no gradient:

    ⟨∇ℓ_i, ∇ℓ_j⟩ = Σ_{c ∈ path(i)} Σ_{c' ∈ path(j)} S_{cc'} ⟨e_{y_c} − π_c, e_{y_c'} − π_c'⟩            (`couplings`)

and one update of size η changes ℓ_i by η Σ_j push_j ⟨∇ℓ_i, ∇ℓ_j⟩/P to first order (`terms`): by the pair's own chosen
response, by its own rejected one, and by those of all other pairs. `foresee` goes on for a whole stage in a few large
updates. Heuristics that look at one pair alone stand beside them: `ches`, `entanglement`, `edit_distance`,
`likelihoods`. All results are (B, P): worlds, pairs. How well each predicts is scored by the claims `foresight.*`.

**On a model of your own.** Run it once over the pairs, keep the last hidden states (what the head reads) and the head;
`from_hidden` makes a world of them, whose kernel is *measured*: the Gram matrix of the hidden states. Here random
numbers stand for `model(ids, output_hidden_states=True).hidden_states[-1]` and `model.lm_head.weight`:

>>> from toyld.contexts import from_hidden
>>> rng = np.random.default_rng(0)
>>> head = rng.normal(size=(30, 16))                                    # (V, D)
>>> prompt = rng.integers(30, size=(5, 4))                              # five pairs: 4 tokens of prompt, 6 of response
>>> def run_model(response):                                            # (tokens, hidden states, where the response is)
...     ids = np.concatenate([prompt, response], axis=1)
...     table = np.random.default_rng(1).normal(size=(30, 16))          # the mean of the tokens so far, as a network
...     hidden = np.cumsum(table[ids], axis=1) / np.arange(1, 11)[:, None] ** 0.5
...     return hidden, ids, np.broadcast_to(np.arange(10) >= 4, ids.shape)
>>> pairs = {side: run_model(rng.integers(30, size=(5, 6))) for side in ("chosen", "rejected")}
>>> world = from_hidden(pairs, weight=head)
>>> found = terms(world)                                                # per unit of learning rate
>>> worst = np.argsort(found["total"][0])[:2]                           # the two pairs whose chosen response falls most
>>> foresee(world, lr=0.5, steps=200)["chosen"][-1].shape               # nats, after 200 updates of the head
(1, 5)

`terms` is exact to first order, and `foresee` an approximation, for training the head alone by plain gradient descent.
For tiny transformers that train all layers, by plain descent or RMSprop, claims `foresight.*` at rung tiny measure how
they rank pairs: `terms` less than .2 of rank correlation worse than the exact gradients of all layers
(`foresight.head-stands-in`), `foresee` not seen to be better (`foresight.few-updates-beat-one`: open). Neither has been
measured with Adam, or in large models. Softmax rows of all contexts are kept, C × V numbers, and S between them, C × C:
some ten thousand tokens at a time. Beyond that take a sample of the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from toyld import objectives
from toyld.contexts.engine import State, logits, start
from toyld.contexts.measure import gathered, measure, token_log_probs
from toyld.contexts.rows import Rows
from toyld.contexts.world import Responses, World

__all__ = ["TERMS", "ches", "couplings", "edit_distance", "entanglement", "foresee", "likelihoods", "terms"]

Array = Any
Along = Literal["label", "argmax"]
TERMS = ("own", "rejected", "other_chosen", "other_rejected")


def terms(
    world: World,
    state: State | None = None,
    /,
    *,
    objective: Any = None,
    reference: State | None = None,
    probe: str = "chosen",
    along: Along = "label",
    chosen: str = "chosen",
    rejected: str = "rejected",
) -> dict[str, Array]:
    """First-order change of log π of every response of a kind, per unit of learning rate, by what causes it (K3).

    own, rejected: the chosen and the rejected response of the same prompt. other_chosen, other_rejected: those of all
    other prompts. total: their sum. Each (B, P), in nats per unit of lr, of one update on all pairs (mean loss).

    Args:
        world: where; both sides of the pairs must be among what may train.
        state: the policy now; by default the one before any training.
        objective: of `toyld.objectives`, with a push; DPO with its default β by default.
        reference: π_ref; by default the policy now.
        probe: whose log-probability; one response a pair, in the order of the pairs.
        along: "argmax" = log π of the likeliest token at each of the probe's contexts instead of its label.
        chosen, rejected: the kinds of the pair.

    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=range(2), vocab=8, prompts=3, length=4)
    >>> found = terms(world)
    >>> found["total"].shape, bool(np.allclose(found["total"], sum(found[name] for name in TERMS)))
    ((2, 3), True)
    """
    state = start(world) if state is None else state
    xp = array_namespace(world.logits)
    z = logits(world, state)
    sides = {"chosen": chosen, "rejected": rejected}
    rows = _rows(world, objective, sides, z if reference is None else logits(world, reference))
    push = rows._push(rows.sides, rows.read(z[:, : rows.active]).logp, rows.number)
    found = {}
    for side, kind in sides.items():
        matrix = _couplings(world, z, probe, kind, along, push[side] / rows.number)
        own = xp.linalg.diagonal(matrix)
        found["own" if side == "chosen" else "rejected"] = own
        found[f"other_{side}"] = xp.sum(matrix, axis=-1) - own
    return {name: found[name] for name in TERMS} | {"total": sum(found[name] for name in TERMS)}


def foresee(
    world: World,
    state: State | None = None,
    /,
    *,
    lr: Any,
    steps: int,
    updates: int = 8,
    growth: float = 1.25,
    objective: Any = None,
    reference: State | None = None,
    kinds: Sequence[str] = ("chosen", "rejected"),
    variable: str = "logp",
    chosen: str = "chosen",
    rejected: str = "rejected",
) -> dict[str, Array]:
    """A whole stage in a few large updates: kind → change so far, (updates + 1, B, P); row 0 is 0, the last the end.

    The time lr · steps is cut into `updates` steps, each `growth` times the last: the margin of a pair grows like the
    logarithm of time (DPO's push fades as it grows), so that steps of equal use grow. It costs `updates` updates of the
    head instead of `steps`.

    How fast they may grow is set by the kernel: where many tokens share a large common component, the last of eight
    doubling steps overshoots. Over development worlds of 12 and 24 pairs, with up to half of every feature common, the
    least mean rank correlation of what was foreseen with a run of 100 updates was .81, .95, .90, .73 for growths 1,
    1.25, 1.5, 2; with 12 and 16 updates of growth 1.25 .98 and .99, of growth 2 no better than with 8. So take more
    updates, not faster growth, until the answer stays. Steps within the softmax's bound of stability, step · λ_max of S
    weighted by the pushes ≤ 4, are no way out: the common component alone makes λ_max so large that they take as long
    as the run, whose own updates are up to seven times beyond it and do well.

    Args:
        world, state, objective, reference, chosen, rejected: as for `terms`.
        lr, steps: of the run that is to be foreseen; lr a number or one a world (B,).
        updates, growth: how many large steps, and by what factor they grow.
        kinds, variable: of which responses what is foreseen; `variable` as in the one table, "logp" or "argmax_logp".

    >>> from toyld import contexts
    >>> world = contexts.languages.markov(seeds=range(2), vocab=8, prompts=3, length=4)
    >>> found = foresee(world, lr=20.0, steps=100)["chosen"][-1]
    >>> run = contexts.train(world, objectives.get("dpo"), lr=20.0, steps=100, rejected="rejected")
    >>> real = run.value("logp", "chosen")[-1] - run.value("logp", "chosen")[0]
    >>> bool(np.corrcoef(found.ravel(), real.ravel())[0, 1] > 0.95)
    True
    """
    state = start(world) if state is None else state
    xp = array_namespace(world.logits)
    before = logits(world, state if reference is None else reference)
    rows = _rows(world, objective, {"chosen": chosen, "rejected": rejected}, before)
    gram = world.kernel.block(slice(0, world.trained), slice(0, rows.active))
    time = xp.reshape(lr, (-1, 1, 1)) * steps if getattr(lr, "ndim", 0) else lr * steps
    share = growth ** np.arange(updates)
    seen = [measure(logits(world, state), world.responses, kinds)[variable]]
    for part in (share / share.sum()).tolist():
        r = part * time * rows.residual(state.logits[:, : rows.active])
        dual = xp.concat([state.dual[:, : rows.active] + r, state.dual[:, rows.active :]], axis=1)
        state = State(state.logits - gram @ r, dual, state.weights)
        seen.append(measure(logits(world, state), world.responses, kinds)[variable])
    path = xp.stack(seen)
    return {kind: path[:, :, i] - path[:1, :, i] for i, kind in enumerate(kinds)}


def couplings(world: World, state: State | None, kind: str, other: str, /, *, along: Along = "label") -> Array:
    """⟨∇ℓ_i, ∇ℓ_j⟩ over the head, response i of `kind` and j of `other`, (B, P, P): who moves whom.

    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=[0], vocab=8, prompts=3, length=4)
    >>> gram = couplings(world, None, "chosen", "chosen")
    >>> gram.shape, bool((np.linalg.eigvalsh(gram) > 0).all())
    ((1, 3, 3), True)
    """
    return _couplings(world, logits(world, start(world) if state is None else state), kind, other, along, None)


def _rows(world: World, objective: Any, sides: dict[str, str], before: Array) -> Rows:
    return Rows(world, objectives.get("dpo") if objective is None else objective, sides, before)


def _pull(z: Array, r: Responses, along: Along) -> Array:
    """e_y − π at every token, (B, P·T, V), 0 where masked."""
    xp = array_namespace(z)
    mass = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    pi = gathered(mass / xp.sum(mass, axis=-1, keepdims=True), r.context)
    label = r.token if along == "label" else gathered(xp.argmax(z, axis=-1)[..., None], r.context)[..., 0]
    hot = label[..., None] == xp.arange(z.shape[-1], dtype=label.dtype, device=label.device)
    pull = (xp.astype(hot, z.dtype) - pi) * xp.astype(r.mask, z.dtype)[..., None]
    return xp.reshape(pull, (z.shape[0], -1, z.shape[-1]))


def _couplings(world: World, z: Array, kind: str, other: str, along: Along, push: Array | None) -> Array:
    """Σ S ⟨pull, push · pull⟩ over the tokens of each two responses."""
    xp = array_namespace(z)
    one, two = world.responses[kind], world.responses[other]
    a, b = _pull(z, one, along), _pull(z, two, "label")
    if push is not None:
        b = b * xp.reshape(push, (z.shape[0], -1))[..., None]
    return _by_response(_gram(world, one, two) * (a @ xp.matrix_transpose(b)), one, two)


def _gram(world: World, one: Responses, two: Responses) -> Array:
    """S between the tokens of two kinds, (B, P·T, P·T); of no meaning where a token is masked."""
    xp = array_namespace(world.logits)
    rows, cols = (xp.reshape(r.context, (r.context.shape[0], -1)) for r in (one, two))
    block = world.kernel.block(slice(0, int(xp.max(rows)) + 1), slice(0, int(xp.max(cols)) + 1))
    here = xp.arange(block.shape[0], device=rows.device)[:, None, None]
    return block[here, rows[:, :, None], cols[:, None, :]]


def _by_response(tokens: Array, one: Responses, two: Responses) -> Array:
    """Sums over the tokens of each two responses, (B, P·T, P·T) → (B, P, P)."""
    xp = array_namespace(tokens)
    return xp.sum(xp.reshape(tokens, (*one.context.shape, *two.context.shape[1:])), axis=(2, 4))


def entanglement(
    world: World, state: State | None = None, /, *, chosen: str = "chosen", rejected: str = "rejected"
) -> Array:
    """⟨g₊, g₋⟩ − ‖g₊‖² of each pair, (B, P): above 0, a small DPO update on this pair alone lowers its chosen response.

    Condition 1 of Yuan et al. 2024 (2410.13828), with the exact gradients of the head. β/2 times this is minus
    `own + rejected` of `terms` at π = π_ref, times P.

    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=[0], vocab=8, prompts=3, length=4)
    >>> pair = terms(world)["own"] + terms(world)["rejected"]           # β = .1
    >>> bool(np.allclose(entanglement(world), -3 * pair / 0.05))
    True
    """
    xp = array_namespace(world.logits)
    across, own = (couplings(world, state, chosen, kind) for kind in (rejected, chosen))
    return xp.linalg.diagonal(across) - xp.linalg.diagonal(own)


def ches(world: World, /, *, chosen: str = "chosen", rejected: str = "rejected") -> dict[str, Array]:
    """CHES of each pair and its length-normalised form, (B, P): the higher, the more displacement is to be expected.

    ches = ⟨Σ h₊, Σ h₋⟩ − ‖Σ h₊‖², sums over the hidden states that predict the tokens of y⁺ and of y⁻, whose inner
    products are S; normalised = ⟨Σ h₊, Σ h₋⟩/(|y⁺||y⁻|) − ‖Σ h₊‖²/|y⁺|². Lengths are the responses' own, and no padded
    position enters a sum. It is `entanglement` with every ⟨e_y − π, e_y' − π'⟩ set to 1. Where the head has a bias S
    counts its constant feature, which hidden states do not have.

    Source: Razin et al. 2025 (2410.08847), Def. 2 and §5; their code divides by padded lengths.

    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=[0], vocab=8, prompts=3, length=4)
    >>> found = ches(world)
    >>> bool(np.allclose(found["ches"] / 16, found["normalised"]))       # both sides have four tokens
    True
    """
    xp = array_namespace(world.logits)
    plus, minus = world.responses[chosen], world.responses[rejected]
    known = [xp.reshape(xp.astype(r.mask, world.logits.dtype), (r.mask.shape[0], -1)) for r in (plus, minus)]
    inner = [
        xp.linalg.diagonal(
            _by_response(_gram(world, plus, other) * known[0][:, :, None] * mask[:, None, :], plus, other)
        )
        for other, mask in zip((plus, minus), known, strict=True)
    ]
    long = [_lengths(r, world.logits) for r in (plus, minus)]
    return {
        "ches": inner[1] - inner[0],
        "normalised": inner[1] / (long[0] * long[1]) - inner[0] / long[0] ** 2,
    }


def _lengths(r: Responses, like: Array) -> Array:
    """Tokens of every response, (B, P)."""
    xp = array_namespace(like)
    return xp.sum(xp.astype(r.mask, like.dtype), axis=-1)


def edit_distance(world: World, /, *, chosen: str = "chosen", rejected: str = "rejected") -> np.ndarray:
    """Levenshtein distance of the tokens of y⁺ and y⁻ over the longer length, (B, P) in [0, 1].

    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=[0], vocab=8, prompts=3, length=4, shared=2)
    >>> bool((edit_distance(world) <= 0.5).all())
    True
    """
    sides = [world.responses[kind] for kind in (chosen, rejected)]
    (a, own), (b, other) = [tuple(_host(x) for x in (r.token, r.mask)) for r in sides]
    out = np.empty(a.shape[:2])
    for at in np.ndindex(*out.shape):
        one, two = a[at][own[at]].tolist(), b[at][other[at]].tolist()
        out[at] = _levenshtein(one, two) / max(len(one), len(two), 1)
    return out


def _levenshtein(one: Sequence[int], two: Sequence[int]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other."""
    last = list(range(len(two) + 1))
    for i, x in enumerate(one, 1):
        row = [i]
        for j, y in enumerate(two, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
        last = row
    return last[-1]


def likelihoods(
    world: World, state: State | None = None, /, *, chosen: str = "chosen", rejected: str = "rejected"
) -> dict[str, Array]:
    """What log-probabilities alone say of each pair, (B, P).

    improbability: −log π(y⁻)/|y⁻|, nats a token (how off-policy the rejected response is). surprise: −log π(y⁺)/|y⁺|.
    margin: log π(y⁺) − log π(y⁻), nats.

    >>> from toyld.contexts import languages
    >>> found = likelihoods(languages.markov(seeds=[0], vocab=8, prompts=3, length=4))
    >>> bool(np.allclose(found["margin"], 4 * (found["improbability"] - found["surprise"])))
    True
    """
    xp = array_namespace(world.logits)
    z = logits(world, start(world) if state is None else state)
    plus, minus = (world.responses[kind] for kind in (chosen, rejected))
    total = [xp.sum(token_log_probs(z, r), axis=-1) for r in (plus, minus)]
    return {
        "improbability": -total[1] / _lengths(minus, z),
        "surprise": -total[0] / _lengths(plus, z),
        "margin": total[0] - total[1],
    }


def _host(a: Array) -> np.ndarray:
    return np.asarray(a.cpu() if hasattr(a, "cpu") else a)
