"""What models say on the way, held against the language: facts right, repetition, entropy, KL to the source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from toyld.tiny.measures import beliefs, divergence, entropy, repetition, right
from toyld.tiny.models import Models
from toyld.tiny.texts import Texts

__all__ = ["answers"]

Floats = NDArray[np.float64]
# Samples are drawn by a seed of their own, beside those that make data, and the source's texts from a stream of theirs.
SAMPLES, SPOKEN = 2, 61
KNOWN = {"": None, "_truth": 1.0}  # κ of the source as it taught, and of the truth


def answers(models: Models, data: Texts, /, *, copies: int = 2) -> dict[str, Floats]:
    """Means over the answers to the trained prompts, (S,) each; with test_ before the name, to the held-out ones.

    right, right_greedy: share of the answers at temperature 1, and of the greedy ones, that are well formed and true.
    repetition: share of repeated bigrams in greedy answers. entropy, entropy_greedy: of π along them, nats a token.
    kl, kl_truth: KL(source ‖ π) of whole responses, nats; the source as it taught, and with κ = 1: the next-token KL,
    exact, summed along texts of that source. kl_own, kl_own_truth, kl_greedy, kl_greedy_truth: the same sum along what
    the models say at temperature 1 and greedily, where the source itself may seldom come.

    copies: answers to a prompt, but for greedy ones. All random numbers are the same at every call, so that two
    evaluations differ by the models alone.

    >>> from toyld.tiny import Shape, Sizes, ask, draw, start
    >>> found = answers(start(Shape(39, 8), range(2)), ask(draw(Sizes(), range(2)), prompts=4))
    >>> found["right"].shape, bool((found["kl_truth"] > found["kl"]).all())
    ((2,), True)
    """
    language = data.language
    asked = np.concatenate([data.prompt("chosen"), data.prompt("test_chosen")], 1)
    many = np.tile(asked, (1, copies))
    own = models.sample(language, many, seed=SAMPLES)
    greedy = models.sample(language, asked, seed=SAMPLES, temperature=0.0)
    each = {"right": right(language, many, own), "right_greedy": right(language, asked, greedy)}
    each["repetition"] = repetition(greedy)
    for where, prompt, text in (("own", many, own), ("greedy", asked, greedy)):
        of = beliefs(models, language, prompt, text)
        each["entropy" if where == "own" else "entropy_greedy"] = entropy(models, language, prompt, text, of=of)
        for what, known in KNOWN.items():
            each[f"kl_{where}{what}"] = divergence(models, language, prompt, text, knowledge=known, of=of)
    for what, known in KNOWN.items():
        rngs = [np.random.default_rng([seed, SPOKEN]) for seed in language.seeds]
        text = language.sample(many, rngs, knowledge=known)
        each[f"kl{what}"] = divergence(models, language, many, text, knowledge=known)
    trained, found = data.prompt("chosen").shape[1], dict[str, Floats]()
    for before, part in {"": np.s_[:trained], "test_": np.s_[trained:]}.items():
        for name, value in each.items():
            found[before + name] = value.reshape(len(value), -1, asked.shape[1])[..., part].mean((1, 2))
    return found
