"""Finetuning on worked solutions, many recipes at once, watched as pre-memorisation accuracy asks (`toyld.premem`).

    from toyld.tiny import Shape, pretrain, start
    from toyld.tiny.sums import Sums, SumSizes

    sums = Sums(SumSizes(), seeds=(0, 1))
    shape = Shape(sums.sizes.classes, sums.sizes.places)
    models, _ = pretrain(start(shape, sums.seeds), sums, steps=1500)
    lessons = teach(sums, count=64)
    course = finetune(models, lessons, lr=1e-3, updates=128)
    pre_memorisation(course.accuracy, course.perplexity, threshold=1.3)     # (checkpoint, model, problem)

AdamW on the mean over a batch of −log π(solution), the rate falling to 0 along a cosine; every pass over the lessons
has an order of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from toyld.checked import BadInput
from toyld.tiny.decoding import answers
from toyld.tiny.models import Models
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.sums import Sums

__all__ = ["Course", "Lessons", "accuracy", "finetune", "perplexity", "teach"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
TAUGHT, ORDER, SAID = 65, 66, 67  # streams of random numbers
RULE = Optimizer("adamw", clip=1.0)


@dataclass(frozen=True)
class Lessons:
    """Problems by number (S, N) and a solution to each (S, N, T), of which member s is taught the first `count[s]`."""

    sums: Sums
    prompt: Ints
    solution: Ints
    count: Ints

    def take(self, members: Sequence[int], /, *, count: ArrayLike | None = None) -> Lessons:
        """The lessons of some members, in this order; count: fewer of them, one number or (S,)."""
        at = np.asarray(members)
        seeds = tuple(self.sums.seeds[int(i)] for i in at)
        many = np.broadcast_to(self.count[at] if count is None else np.asarray(count), at.shape)
        if not ((many >= 1) & (many <= self.prompt.shape[1])).all():
            raise BadInput(
                f"count: expected 1 to {self.prompt.shape[1]} lessons, got {many.tolist()}; give more problems"
            )
        return Lessons(Sums(self.sums.sizes, seeds), self.prompt[at], self.solution[at], many)

    def watched(self, most: int, /) -> tuple[Ints, Ints]:
        """The first `most` lessons of each member (S, most), from the first again where it has fewer."""
        at = np.arange(most) % self.count[:, None]
        return np.take_along_axis(self.prompt, at, 1), np.take_along_axis(self.solution, at[..., None], 1)


@dataclass(frozen=True)
class Course:
    """What S finetuned models did at the checkpoints M: (M, S, W) of the watched lessons, (M, S) of the whole.

    accuracy: share of right samples. perplexity: exp(−log π(solution)/T). loss: −log π(solution), mean over the watched
    lessons, before the update that follows; grad_norm: of its gradient; distance: ‖θ − θ_0‖.
    """

    models: Models
    steps: tuple[int, ...]
    accuracy: Floats
    perplexity: Floats
    loss: Floats
    grad_norm: Floats
    distance: Floats


def teach(sums: Sums, /, *, count: int, lot: int = 0) -> Lessons:
    """`count` problems for every seed with one right solution each, drawn from (seed, lot) alone.

    >>> from toyld.tiny.sums import SumSizes, Sums
    >>> lessons = teach(Sums(SumSizes(), (0, 1)), count=5)
    >>> lessons.prompt.shape, lessons.solution.shape, bool(lessons.sums.right(lessons.prompt, lessons.solution).all())
    ((2, 5), (2, 5, 8), True)
    """
    if count < 1:
        raise BadInput(f"count: expected at least 1 lesson, got {count}")
    rngs = [np.random.default_rng([seed, lot, TAUGHT]) for seed in sums.seeds]
    prompt = np.stack([sums.problems(seed, rng, count) for seed, rng in zip(sums.seeds, rngs, strict=True)])
    solution = np.stack([sums.solve(own, rng) for own, rng in zip(prompt, rngs, strict=True)])
    return Lessons(sums, prompt, solution, np.full(len(prompt), count))


def accuracy(
    models: Models, sums: Sums, prompt: Ints, rngs: Sequence[np.random.Generator], /, *, samples: int
) -> Floats:
    """Share of `samples` answers to each of the problems (S, N) that are right, (S, N)."""
    said = answers(models, sums, prompt, rngs, copies=samples)
    return sums.right(np.repeat(prompt, samples, axis=1), said).reshape(*prompt.shape, samples).mean(-1)


def perplexity(models: Models, sums: Sums, prompt: Ints, solution: Ints, /) -> Floats:
    """exp(−log π(solution | prompt)/T) of solutions (S, N, T) to problems (S, N), at least 1."""
    with torch.no_grad():
        surprise = -_logp(models, sums, prompt, solution, models.flat)
    return np.exp(surprise.clamp(min=0.0).double().cpu().numpy() / solution.shape[-1])


def _logp(models: Models, sums: Sums, prompt: Ints, solution: Ints, flat: torch.Tensor) -> torch.Tensor:
    """log π(solution | prompt), (S, N)."""
    rows = torch.from_numpy(np.concatenate([sums.ask(prompt), solution], -1)).to(flat.device)
    z = models.logits(rows[..., :-1], flat)[:, :, sums.sizes.asked - 1 :]
    return z.log_softmax(-1).gather(-1, rows[..., sums.sizes.asked :, None])[..., 0].sum(-1)


def _loss(models: Models, sums: Sums, prompt: Ints, solution: Ints, flat: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Mean loss of every member (S,) and its gradient (S, P)."""
    leaf = flat.detach().requires_grad_()
    loss = -_logp(models, sums, prompt, solution, leaf).mean(1)
    (g,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), g


def _order(count: Ints, rngs: Sequence[np.random.Generator], updates: int, batch: int) -> Ints:
    """Which lessons (updates, S, batch) an update sees: passes over all of a member's, each in an order of its own."""
    passes = [-(-updates * batch // int(n)) for n in count]
    every = [
        np.concatenate([rng.permutation(int(n)) for _ in range(many)])[: updates * batch]
        for n, rng, many in zip(count, rngs, passes, strict=True)
    ]
    return np.stack(every).reshape(len(count), updates, batch).swapaxes(0, 1)


def finetune(
    models: Models, lessons: Lessons, /, *, lr: ArrayLike, updates: int, batch: int = 32, reorder: ArrayLike = False,
    lot: ArrayLike = 0, watch: int = 64, samples: int = 8, checkpoints: int = 12,
) -> Course:  # fmt: skip
    """Finetune S models on their lessons and watch them do it.

    lr: peak rate, one or (S,). reorder: whether a problem's terms stand in another order at every pass (its solution
    stays), one or (S,). lot: what the random numbers of a member depend on beside its seed; another for every recipe.
    watch: problems that are watched; samples: answers to each at a checkpoint. Checkpoints: before the first update,
    after the last and at even distances in log(update) between. Answers are drawn until those of all members end, so
    that a model whose answers differ in length may say others in another stack.

    >>> from toyld.tiny import Shape, start
    >>> from toyld.tiny.sums import SumSizes, Sums
    >>> sums = Sums(SumSizes(), (0, 1))
    >>> models = start(Shape(sums.sizes.classes, sums.sizes.places, width=8, depth=1), sums.seeds)
    >>> course = finetune(models, teach(sums, count=8), lr=1e-3, updates=6, batch=4, watch=5, samples=2)
    >>> course.steps, course.accuracy.shape
    ((0, 1, 2, 3, 4, 5, 6), (7, 2, 5))
    """
    sums, s = lessons.sums, len(models)
    models.check(sums)
    rates, turned, lots = (np.broadcast_to(np.asarray(x), (s,)) for x in (lr, reorder, lot))
    if min(updates, batch, watch, samples) < 1 or checkpoints < 2 or not (rates > 0).all():
        msg = "expected updates, batch, watch and samples ≥ 1, checkpoints ≥ 2 and lr > 0, got "
        raise BadInput(f"{msg}{updates}, {batch}, {watch}, {samples}, {checkpoints} and {rates.tolist()}")
    rngs, talk = (
        [np.random.default_rng([seed, int(own), stream]) for seed, own in zip(sums.seeds, lots, strict=True)]
        for stream in (ORDER, SAID)
    )
    at = {0, updates, *np.round(np.geomspace(1, updates, checkpoints - 1)).astype(int).tolist()}
    rows, peak = np.arange(s)[:, None], models.flat.new_tensor(np.array(rates, float))[:, None]
    seen = lessons.watched(watch)
    begun, flat, memory = models.flat, models.flat.clone(), RULE.memory(models.flat)
    found: list[tuple[Any, ...]] = []
    for k, chosen in enumerate([*_order(lessons.count, rngs, updates, batch), None]):
        if k in at:
            now = replace(models, flat=flat)
            loss, g = _loss(models, sums, *seen, flat)
            says = accuracy(now, sums, seen[0], talk, samples=samples)
            away = (flat - begun).norm(dim=1)
            sizes = (x.double().cpu().numpy() for x in (loss, g.norm(dim=1), away))
            found.append((says, perplexity(now, sums, *seen), *sizes))
        if chosen is None:
            break
        prompt = lessons.prompt[rows, chosen]
        if turned.any():
            prompt = np.stack(
                [_turned(sums, p, rng) if t else p for p, t, rng in zip(prompt, turned, rngs, strict=True)]
            )
        _, g = _loss(models, sums, prompt, lessons.solution[rows, chosen], flat)
        RULE.step(flat, g, memory, peak * (1.0 + np.cos(np.pi * k / updates)) / 2.0)
    columns = [np.stack(column) for column in zip(*found, strict=True)]
    return Course(replace(models, flat=flat), tuple(sorted(at)), *columns)


def _turned(sums: Sums, prompt: Ints, rng: np.random.Generator) -> Ints:
    """The same problems with their terms in any order."""
    frame, kind, terms = sums.parts(prompt)
    return sums.number(frame, kind, rng.permuted(terms, axis=-1))
