"""A world: responses as paths through a trie of contexts, the logits there before training, the kernel between them.

A *context* is one teacher-forced prefix [prompt | response so far]; two responses that begin alike share contexts up to
the first token in which they differ. Everything carries a leading axis B: worlds (seeds, conditions) that are run at
once and never touch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from toyld.checked import BadInput
from toyld.contexts.kernels import Features, Gram, Kernel, Mixture
from toyld.objectives import detach

__all__ = ["Language", "Responses", "Trie", "World", "in_rows", "on_host", "trie"]

Array = Any


def on_host(array: Any, /) -> np.ndarray:
    """An array of any library and device, or a number, as numpy's."""
    array = detach(array)
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def in_rows(array: Any, /) -> Any:
    """The same array with its last axis contiguous in memory: updates are written through flat views.

    >>> in_rows(np.ones((2, 3)).T).flags.c_contiguous
    True
    """
    return array.contiguous() if hasattr(array, "contiguous") else np.ascontiguousarray(array)


class Responses(NamedTuple):
    """One response to each of P prompts: contexts, labels and mask of its tokens, each (B, P, T)."""

    context: Any
    token: Any
    mask: Any


@dataclass(frozen=True)
class World:
    """Z0 (B, C, V), the kernel on the C contexts, and the responses of every kind; contexts below `trained` may train.

    >>> from toyld.contexts import languages
    >>> world = languages.markov(seeds=range(2), vocab=8, prompts=3, length=4)
    >>> world.logits.shape[0], sorted(world.responses)[:3]
    (2, ['chosen', 'chosen_initial', 'irr_test'])
    """

    logits: Array
    kernel: Kernel
    responses: Mapping[str, Responses]
    trained: int
    seeds: tuple[int, ...]
    tokens: np.ndarray | None = None  # contexts as token rows (B, C, L), where they come from a language
    language: Language | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        worlds, contexts, _ = self.logits.shape
        if len(self.seeds) != worlds or not 0 < self.trained <= contexts:
            msg = f"expected {worlds} seeds and 1 to {contexts} trained contexts, got {len(self.seeds)}, {self.trained}"
            raise BadInput(msg)
        object.__setattr__(self, "logits", in_rows(self.logits))

    @property
    def size(self) -> tuple[int, int, int]:
        """(worlds B, contexts C, classes V)."""
        worlds, contexts, classes = self.logits.shape
        return int(worlds), int(contexts), int(classes)

    def take(self, worlds: Sequence[int], /) -> World:
        """Some of the worlds, in this order; repeats are how several conditions share one world."""
        at = np.asarray(worlds)
        xp = array_namespace(self.logits)
        index = xp.asarray(at, device=device(self.logits))
        return replace(
            self,
            logits=self.logits[index],
            kernel=self.kernel.take(at if isinstance(self.kernel, Mixture) else index),
            responses={kind: Responses(*(a[index] for a in r)) for kind, r in self.responses.items()},
            seeds=tuple(self.seeds[i] for i in at),
            tokens=None if self.tokens is None else self.tokens[at],
            language=None if self.language is None else self.language.take(at),
        )

    def to(self, like: Array, /) -> World:
        """The same world on the library, dtype and device of another array (a torch tensor on a GPU, say)."""
        xp, where = array_namespace(like), device(like)

        def move(a: Any, dtype: Any = None) -> Any:
            return xp.asarray(on_host(a), dtype=dtype, device=where)

        kernel: Kernel = self.kernel
        if isinstance(kernel, Mixture):
            kernel = replace(kernel, like=like, _cache={})
        elif isinstance(kernel, Gram):
            kernel = Gram(move(kernel.matrix, like.dtype))
        elif isinstance(kernel, Features):
            diagonal = None if kernel.diagonal is None else move(kernel.diagonal, like.dtype)
            kernel = Features(move(kernel.features, like.dtype), diagonal)
        responses = {kind: Responses(*(move(a) for a in r)) for kind, r in self.responses.items()}
        return replace(self, logits=move(self.logits, like.dtype), kernel=kernel, responses=responses)


@dataclass(frozen=True)
class Language:
    """What a world was made from: beliefs at any context, token vectors, the prompts and texts of every kind.

    logits: contexts as token rows (B, C, L), padded with −1 → (B, C, V).
    """

    logits: Callable[[np.ndarray], np.ndarray]
    vectors: np.ndarray
    prompts: Mapping[str, np.ndarray]
    texts: Mapping[str, np.ndarray]
    kernel: Mapping[str, Any]
    train: Sequence[str]

    def world(self, seeds: Sequence[int], attrs: Mapping[str, Any], /) -> World:
        """The trie of the texts, the beliefs there, and the kernel."""
        found = trie(self.prompts, self.texts, train=self.train)
        kernel = Mixture(found.tokens, self.prompts["chosen"].shape[-1], self.kernel, self.vectors)
        names = tuple(int(s) for s in seeds)
        z = self.logits(found.tokens)
        return World(z, kernel, found.responses, found.trained, names, found.tokens, self, attrs)

    def take(self, worlds: np.ndarray, /) -> Language:
        """The language of some of the worlds: it can no longer be asked for new contexts unless these are all."""
        every = np.array_equal(worlds, np.arange(len(self.vectors)))
        return self if every else replace(self, logits=_closed)


def _closed(rows: np.ndarray) -> np.ndarray:
    msg = "expected the worlds as they were made, got a choice of them; sample before `take`"
    raise BadInput(msg)


class Trie(NamedTuple):
    """Contexts of responses: token rows (B, C, L), how many come first because they may train, and the responses."""

    tokens: np.ndarray
    trained: int
    responses: dict[str, Responses]


def trie(
    prompts: Mapping[str, np.ndarray], texts: Mapping[str, np.ndarray], /, *, train: Sequence[str] = ("chosen",)
) -> Trie:
    """The trie of contexts of token rows: texts[kind] (B, P, T), behind prompts[kind] or prompts["chosen"] (B, P, L).

    A text shorter than T is padded with −1. Contexts are numbered in order of appearance, kinds in `train` first: the
    contexts of train[0] come before those that only train[1] has. Worlds with fewer contexts repeat their last one.

    >>> found = trie({"chosen": np.array([[[9]]])}, {"chosen": np.array([[[1, 2]]]), "rejected": np.array([[[1, 3]]])})
    >>> found.tokens[0].tolist(), found.responses["rejected"].context.tolist()   # one shared context, then its child
    ([[9, -1], [9, 1]], [[[0, 1]]])
    """
    kinds = [*train, *(kind for kind in texts if kind not in train)]
    rows, shapes = [], {}
    for kind in kinds:
        text, prompt = np.asarray(texts[kind]), np.asarray(prompts.get(kind, prompts["chosen"]))
        worlds, n, length = text.shape
        shapes[kind] = text.shape
        so_far = np.where(np.arange(length)[:, None] > np.arange(length)[None], text[:, :, None, :], -1)
        lead = np.broadcast_to(prompt[:, :, None, :], (worlds, n, length, prompt.shape[-1]))
        rows.append(np.concatenate([lead, so_far], -1).reshape(worlds, n * length, -1))
    width = max(r.shape[-1] for r in rows)
    flat = np.concatenate([np.pad(r, ((0, 0), (0, 0), (0, width - r.shape[-1])), constant_values=-1) for r in rows], 1)
    # Behind the end of a short text stands one context more, [prompt | whole text]: masked, and counted all the same.
    numbered = [_first_seen(one) for one in flat]
    total = max(len(seen) for seen, _ in numbered)
    tokens = np.stack([np.concatenate([s, np.repeat(s[-1:], total - len(s), 0)]) for s, _ in numbered])
    index = np.stack([number for _, number in numbered])
    responses, start = {}, 0
    trained = 0
    for kind in kinds:
        worlds, n, length = shapes[kind]
        context = index[:, start : start + n * length].reshape(worlds, n, length)
        start += n * length
        text = np.asarray(texts[kind])
        responses[kind] = Responses(context, np.where(text >= 0, text, 0), text >= 0)
        if kind in train:
            trained = max(trained, int(context.max()) + 1)
    return Trie(tokens[:, :, : width - 1], trained, responses)


def _first_seen(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows in order of appearance, and the number of each row's."""
    seen, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return seen[order], rank[inverse.reshape(-1)]
