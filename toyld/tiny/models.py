"""S models at some point of their training: parameters, what an optimiser remembers, beliefs, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.tiny.language import PAD, drawn, sequences
from toyld.tiny.network import Shape, Transformer
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.stacks import Centre, begin, forward, linear, views

__all__ = ["Models", "pretrain", "sequences", "start"]

Ints = NDArray[np.int64]
SAMPLED = 43  # stream of random numbers


@dataclass(frozen=True)
class Models:
    """S models of one shape; `seeds` say whose language each was pretrained on.

    flat: parameters (S, P), or (S, P + V) where each has a feature common to all hidden states, of size common (S,),
    whose weights are the last V: it adds common²·11ᵀ to the kernel of the head under plain descent, and nothing to the
    logits before training.
    """

    shape: Shape
    seeds: tuple[int, ...]
    flat: torch.Tensor
    common: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, members: Sequence[int], /, *, common: Sequence[float] | None = None) -> Models:
        """Some of the models, in this order; repeats are how several conditions share one model.

        common: gives each a feature that all hidden states share, of this size.
        """
        index = torch.as_tensor(np.asarray(members), device=self.flat.device)
        seeds = tuple(self.seeds[int(i)] for i in members)
        flat = self.flat[index]
        if common is None:
            held = None if self.common is None else self.common[index]
            return Models(self.shape, seeds, flat, held)
        if self.common is not None:
            raise BadInput("common: expected models without such a feature, got some with one; take these as they are")
        extra = flat.new_zeros(len(seeds), self.shape.classes)
        return Models(self.shape, seeds, torch.cat([flat, extra], 1), flat.new_tensor(list(common)))

    def logits(
        self, tokens: torch.Tensor, /, flat: torch.Tensor | None = None, *, centre: Centre | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits (S, N, T, V) at tokens (S, N, T); flat: other parameters than its own."""
        flat = self.flat if flat is None else flat
        own = views(self.shape, flat[:, : self.shape.parameters])
        if self.common is None:
            return forward(self.shape, own, tokens, centre=centre, mask=mask)
        h = self._with_common(forward(self.shape, own, tokens, centre=centre, mask=mask, hidden=True))
        return self.read_out(flat[:, self.shape.head :], h, centre=centre, mask=mask)

    def hidden(self, tokens: torch.Tensor, /) -> torch.Tensor:
        """Last hidden states (S, N, T, d), the common feature (of size `common`) behind them where there is one."""
        with torch.no_grad():
            own = views(self.shape, self.flat[:, : self.shape.parameters])
            return self._with_common(forward(self.shape, own, tokens, hidden=True))

    def read_out(
        self, head: torch.Tensor, hidden: torch.Tensor, /, *, centre: Centre | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits (S, N, T, V) of states as `hidden` gives them, under the columns of `flat` from `shape.head` on."""
        s, n, t, _ = hidden.shape
        size = self.shape.parameters - self.shape.head
        weight = head[:, :size].unflatten(1, (-1, self.shape.width))
        if self.common is not None:
            weight = torch.cat([weight, head[:, size:, None]], -1)
        rows = None if mask is None else mask.reshape(s, n * t, 1)
        return linear(weight, None, hidden.flatten(1, 2), centre, rows).view(s, n, t, -1)

    def _with_common(self, h: torch.Tensor) -> torch.Tensor:
        if self.common is None:
            return h
        return torch.cat([h, self.common[:, None, None, None].expand(*h.shape[:-1], 1)], -1)

    def check(self, language: Any, /, *, seeds: bool = True) -> None:
        """BadInput unless these models can read that language, member by member the same seed."""
        sizes, shape = language.sizes, self.shape
        if (shape.classes, shape.places) != (sizes.classes, max(shape.places, sizes.places)):
            msg = f"Shape({sizes.classes}, {sizes.places}) or more places, got Shape({shape.classes}, {shape.places})"
            raise BadInput(f"models: expected {msg}; make them for this language")
        if seeds and self.seeds != language.seeds:
            msg = f"expected the language of each model, seeds {_some(self.seeds)}, got {_some(language.seeds)}"
            raise BadInput(f"{msg}; take the same members of both")

    def module(self, member: int, /, dtype: torch.dtype = torch.float64) -> Transformer:
        """One of them as a torch module, for `toyld.influence`; a copy."""
        if self.common is not None:
            raise BadInput("module: expected models without a common feature, got some with one; train without it")
        one = Transformer(self.shape).to(dtype)
        with torch.no_grad():
            for parameter, value in zip(one.parameters(), views(self.shape, self.flat).values(), strict=True):
                parameter.copy_(value[member])
        return one

    def sample(
        self, language: Any, prompt: Ints, /, *, seed: int, temperature: float = 1.0, prefix: Ints | None = None
    ) -> Ints:
        """Answers (S, N, T) to prompts by number (S, N), padded with −1 behind END; greedy at temperature 0.

        Deterministic in `seed` and the models' own seeds. prefix: tokens (S, N, k) that an answer starts with.
        """
        self.check(language, seeds=False)
        prompt = np.asarray(prompt)
        if prompt.ndim != 2 or len(prompt) != len(self) or not temperature >= 0:
            msg = f"expected prompts ({len(self)}, N) and a temperature ≥ 0, got {prompt.shape} and {temperature}"
            raise BadInput(f"{msg}; a row of prompts a model")
        rngs = [np.random.default_rng([own, seed, SAMPLED]) for own in self.seeds]
        text = np.full((*prompt.shape, language.sizes.length), PAD)
        done = np.zeros(prompt.shape, bool)
        begun = 0 if prefix is None else prefix.shape[-1]
        if prefix is not None:
            text[..., :begun] = prefix
            done = (np.asarray(prefix) == 0).any(-1) | (np.asarray(prefix) == PAD).any(-1)
        asked = language.ask(prompt)
        for t in range(begun, language.sizes.length):
            rows = np.concatenate([asked, np.maximum(text[..., :t], 0)], -1)
            with torch.no_grad():
                z = self.logits(torch.from_numpy(rows).to(self.flat.device))[:, :, -1].double().cpu().numpy()
            if temperature == 0:
                token = z.argmax(-1)
            else:
                p = np.exp((z - z.max(-1, keepdims=True)) / temperature)
                u = np.stack([rng.random(prompt.shape[1]) for rng in rngs])[..., None] * p.sum(-1, keepdims=True)
                token = drawn(p, u)
            text[..., t] = np.where(done, PAD, token)
            done |= token == 0
        return text


def _some(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) if len(seeds) < 5 else f"{seeds[0]}, {seeds[1]} … {seeds[-1]} ({len(seeds)})"


def start(shape: Shape, seeds: Sequence[int], /, *, dtype: torch.dtype = torch.float32) -> Models:
    """Untrained models, one a seed."""
    return Models(shape, tuple(int(s) for s in seeds), begin(shape, list(seeds)).to(dtype))


def pretrain(
    models: Models, source: Any, /, *, steps: int, batch: int = 32, lr: float = 3e-3, done: int = 0,
    memory: dict[str, torch.Tensor] | None = None, until: int | None = None,
) -> tuple[Models, dict[str, torch.Tensor]]:  # fmt: skip
    """Teach models the source: AdamW on the mean over rows of −log π of their tokens, cosine to 0 over `steps` updates.

    source: a `Language`, or what has its `seeds`, `sizes` (classes, places) and `batch`, such as `toyld.tiny.reading`.
    The batch of an update is drawn from (seed, update) alone, so that `done` updates, the parameters and the memory say
    all about where training stands. Returns the models after `until` updates (all by default), and the memory.

    >>> from toyld.tiny.language import Sizes, draw
    >>> language = draw(Sizes(), range(2))
    >>> models, _ = pretrain(start(Shape(39, 8), range(2)), language, steps=2)
    >>> len(models)
    2
    """
    models.check(source)
    if not 0 <= done <= (last := steps if until is None else until) <= steps:
        msg = f"done, until: expected 0 ≤ done ≤ until ≤ {steps} updates, got {done} and {last}; see `steps`"
        raise BadInput(msg)
    rule, flat = Optimizer("adamw"), models.flat.clone()
    memory = rule.resumed(flat, memory)
    for k in range(done, last):
        inputs, labels = (torch.from_numpy(a).to(flat.device) for a in source.batch(models.seeds, k, batch))
        leaf = flat.requires_grad_()
        z = models.logits(inputs, leaf)[:, :, -labels.shape[-1] :]
        logp = z.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        loss = -torch.where(labels >= 0, logp, 0.0).sum() / batch
        (g,) = torch.autograd.grad(loss, leaf)
        flat = flat.detach()
        eta = lr * (1.0 + np.cos(np.pi * k / steps)) / 2.0
        rule.step(flat, g, memory, flat.new_full((len(models), 1), eta))
    return replace(models, flat=flat.detach()), memory
