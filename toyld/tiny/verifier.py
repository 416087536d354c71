"""Answers that models sample, verified by the facts: rewards, GRPO's and other advantages, pass@k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.tiny.decoding import answers
from toyld.tiny.language import Language
from toyld.tiny.measures import right, says
from toyld.tiny.models import Models

__all__ = ["HOW", "Answers", "How", "advantages", "ask_models", "passes", "verify"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
How = Literal["signed", "baseline", "group"]
HOW: tuple[How, ...] = get_args(How)
SPOKEN = 53  # stream of random numbers


@dataclass(frozen=True)
class Answers:
    """What was sampled: prompts by number and rewards (S, P, G), texts (S, P, G, T)."""

    prompt: Ints
    text: Ints
    reward: Floats


def verify(language: Language, prompt: Ints, text: Ints, /, *, partial: bool = False) -> Floats:
    """Rewards (S, N) of texts (S, N, T): 1 if `right`, else 0; `partial`: the share of their concepts that are true.

    >>> from toyld.tiny import Sizes, draw
    >>> language, prompt = draw(Sizes(slip=0.0), [0]), np.arange(5)[None]
    >>> float(verify(language, prompt, language.sample(prompt, [np.random.default_rng(0)], knowledge=1.0)).mean())
    1.0
    """
    if not partial:
        return right(language, prompt, text)
    return says(language, text, language.facts[np.arange(len(text))[:, None], prompt])


def ask_models(
    models: Models, language: Language, prompts: Ints, /, *, samples: int, draw: int, temperature: Any = 1.0,
    partial: bool = False,
) -> Answers:  # fmt: skip
    """`samples` answers to each of the prompts (S, P), verified; which ones depends on the seeds and on `draw` alone.

    >>> from toyld.tiny import Shape, Sizes, draw, start
    >>> language = draw(Sizes(), range(2))
    >>> ask_models(start(Shape(39, 8), range(2)), language, np.zeros((2, 3), int), samples=4, draw=0).text.shape
    (2, 3, 4, 7)
    """
    models.check(language)
    prompts = np.asarray(prompts)
    if prompts.ndim != 2 or len(prompts) != len(models):
        msg = f"prompts: expected numbers ({len(models)}, P), a row a model, got {prompts.shape}; repeat them"
        raise BadInput(msg)
    rngs = [np.random.default_rng([seed, draw, SPOKEN]) for seed in models.seeds]
    prompt = np.repeat(prompts, samples, axis=1)
    text = answers(models, language, prompts, rngs, copies=samples, temperature=temperature)
    reward = verify(language, prompt, text, partial=partial)
    size = (*prompts.shape, samples)
    return Answers(prompt.reshape(size), text.reshape(*size, -1), reward.reshape(size))


def passes(reward: Floats, k: int, /) -> Floats:
    """pass@k (S, P) of rewards (S, P, n), right = above 0: 1 − C(n − c, k)/C(n, k), c of n right; unbiased.

    Raises BadInput where k is not in 1 … n. Source: Chen et al. 2021 (2107.03374), Eq. 1.

    >>> passes(np.array([[[1.0, 0.0, 0.0, 0.0]]]), 2).tolist()
    [[0.5]]
    """
    n = reward.shape[-1]
    if not 1 <= k <= n:
        msg = f"k: expected 1 to {n}, the answers to a prompt, got {k}; sample more"
        raise BadInput(msg)
    wrong = n - (reward > 0.0).sum(-1)
    none = np.prod([np.maximum(wrong - i, 0) / (n - i) for i in range(k)], axis=0)
    return np.asarray(1.0 - none)


def advantages(reward: Floats, how: How, /) -> Floats:
    """Â (S, P, G) of rewards (S, P, G).

    signed: 2r − 1. baseline: r minus the mean of the prompt's other answers. group: (r − mean)/std over the prompt's
    answers, GRPO's, 0 where all rewards are equal.

    >>> advantages(np.array([[[1.0, 0.0, 0.0, 0.0]]]), "group").round(4).tolist()
    [[[1.7321, -0.5774, -0.5774, -0.5774]]]
    """
    if how not in HOW:
        msg = f"advantage: expected one of {', '.join(HOW)}, got {how!r}; correct it"
        raise BadInput(msg)
    if how == "signed":
        return 2.0 * reward - 1.0
    off, n = reward - reward.mean(-1, keepdims=True), reward.shape[-1]
    if how == "baseline":
        return off * n / (n - 1)
    spread = reward.std(-1, keepdims=True)
    varied = np.ptp(reward, axis=-1, keepdims=True) > 0.0  # a spread of equal numbers may be rounding
    return np.where(varied, off / np.where(varied, spread, 1.0), 0.0)
