"""A policy off its own trie: beliefs at any new context, samples from it, and a world with other responses in it.

Negatives that the trained model itself would say ("on-policy" at the start of DPO) need contexts that nobody has seen:
Z there is the language's Z0 − S A, with the kernel between the new contexts and the trained ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from toyld.checked import BadInput
from toyld.contexts.engine import State
from toyld.contexts.kernels import Mixture
from toyld.contexts.languages import sample
from toyld.contexts.world import Language, World, on_host

__all__ = ["beliefs", "respond", "with_texts"]


def _language(world: World) -> tuple[Language, Mixture, np.ndarray]:
    if world.language is None or world.tokens is None or not isinstance(world.kernel, Mixture):
        msg = "expected a world made from a language with a mixture kernel, got one without; make it with `languages`"
        raise BadInput(msg)
    return world.language, world.kernel, world.tokens


def _dual_alone(state: State) -> None:
    if state.weights is not None:
        msg = "expected a policy trained by plain or heavy-ball descent, got one with weights: they are the old trie's"
        raise BadInput(msg)


def beliefs(world: World, state: State, rows: np.ndarray, /) -> np.ndarray:
    """Z (B, N, V) of the policy at any contexts, token rows (B, N, L) padded with −1 behind."""
    language, kernel, tokens = _language(world)
    _dual_alone(state)
    rows, n = np.asarray(rows), world.trained
    width = max(rows.shape[-1], tokens.shape[-1])
    both = [np.pad(r, ((0, 0), (0, 0), (0, width - r.shape[-1])), constant_values=-1) for r in (tokens[:, :n], rows)]
    joined = np.concatenate(both, axis=1)
    # The identity component compares numbers of contexts, and the joined rows have numbers of their own.
    mixed = replace(kernel, tokens=joined, like=None, _cache={})
    coupling = mixed.block(slice(n, joined.shape[1]), slice(0, n))
    same = (both[1][:, :, None, :] == both[0][:, None, :, :]).all(-1)
    coupling = coupling + mixed._weight("identity")[:, None, None] * same
    return language.logits(rows) - coupling @ on_host(state.dual)


def respond(
    world: World, state: State, /, *, seed: int, temperature: float = 1.0, prompts: str = "chosen", length: int = 0
) -> np.ndarray:
    """Responses of the policy to the prompts of a kind, (B, P, T), sampled token by token.

    `length`: tokens, by default as many as chosen has. Deterministic in `seed` and the worlds' own seeds.

    >>> from toyld import contexts
    >>> world = contexts.languages.markov(seeds=[0], vocab=8, prompts=3, length=4)
    >>> respond(world, contexts.start(world), seed=0).shape
    (1, 3, 4)
    """
    language, _, _ = _language(world)
    rngs = [np.random.default_rng([s, seed, 37]) for s in world.seeds]
    asked, tokens = np.asarray(language.prompts[prompts]), length or language.texts["chosen"].shape[-1]
    return sample(rngs, lambda rows: beliefs(world, state, rows), asked, tokens, temperature)


def with_texts(world: World, state: State, texts: Mapping[str, np.ndarray], /) -> tuple[World, State]:
    """The same world and policy with other (or further) responses: a new trie, the dual carried over.

    Raises BadInput where a context that has been trained on is no longer among those that may train, and for a policy
    of RMSprop or Adam.

    >>> from toyld import contexts, objectives
    >>> world = contexts.languages.markov(seeds=[0], vocab=8, prompts=3, length=4)
    >>> sft = contexts.train(world, objectives.get("sft"), lr=1.0, steps=9).state
    >>> world, sft = with_texts(world, sft, {"rejected": respond(world, sft, seed=1)})
    >>> sft.dual.shape[1] == world.trained
    True
    """
    language, kernel, old = _language(world)
    _dual_alone(state)
    fresh = replace(language, texts={**language.texts, **texts})
    new = fresh.world(world.seeds, world.attrs)
    tokens = _language(new)[2]
    new = replace(new, kernel=replace(kernel, tokens=tokens, like=None, _cache={}))
    carried = on_host(state.dual)
    dual = np.zeros((*new.logits.shape[:1], new.trained, new.logits.shape[2]))
    for b in range(len(dual)):
        place = {tuple(row): i for i, row in reversed(list(enumerate(tokens[b, : new.trained].tolist())))}
        width = tokens.shape[-1]
        for i in np.flatnonzero(carried[b].any(-1)):
            row = old[b, i].tolist()
            key = tuple((row + [-1] * width)[:width])
            if key not in place:
                msg = f"expected context {i} of world {b} among those that may train, got texts without it; keep it"
                raise BadInput(msg)
            dual[b, place[key]] = carried[b, i]
    n = slice(0, new.trained)
    return new, State(new.logits[:, n] - new.kernel.block(n, n) @ dual, dual, None)
