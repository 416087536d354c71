"""Rejected answers to order: as probable, as near in their contexts, as alike in their words as a factor asks for (K8).

For each prompt a pool of texts that do not begin like y⁺ and are as long: what the model says at several temperatures
behind another first word, words of its own behind a random one, the words that other prompts' answers have at each
slot, true and false concepts in rare words, y⁺ in another order, random words. Of each text

    logp     mean log π of its tokens,
    test     mean cosine of the hidden states at its contexts (those behind its first word) and at those of all test
             answers,
    plus     the same beside the contexts of its own y⁺,
    labels   the mean of that cosine over the same pairs of contexts as in `test`, counted where both have the same next
             token, else 0: its words there are theirs

is measured, and a text of every combination of levels picked, the one that lies nearest to all targets at once. So the
factors, which go together in texts as they come (what is probable has the words of other answers), are set apart.

What a text shares of next tokens with *chosen* answers is not measured, and so not matched: in the measure of `labels`
it is .049 for likely and .036 for rare texts, .81 standard deviations of a pool. And `test` takes `plus` along: near
texts have cosines of .250 to their own y⁺, far ones .156.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.tiny.language import PAD, Language, sequences
from toyld.tiny.models import Models
from toyld.tiny.texts import Texts, shuffled

__all__ = ["CELLS", "FACTORS", "MEASURES", "Cell", "measured", "picked", "pool"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
STREAM = 71  # of random numbers
FACTORS = {"probability": ("likely", "rare"), "contexts": ("far", "near"), "labels": ("other", "shared")}
Cell = tuple[str, str, str]
CELLS: tuple[Cell, ...] = tuple(product(*FACTORS.values()))  # type: ignore[arg-type]
MEASURES = ("logp", "test", "plus", "labels")
# Nats a token; then standard deviations within a prompt's pool. As far apart as texts can be had whatever the others.
LEVELS = {"likely": -2.2, "rare": -4.6, "far": -1.3, "near": 1.3, "other": -0.75, "shared": 0.75}
# How far from a target is far, in the same units; least for labels, which probability would carry along.
CLOSE = {"logp": 0.5, "test": 0.5, "plus": 0.7, "labels": 0.25}


def pool(models: Models, data: Texts, /, *, each: int) -> Ints:
    """Candidates (S, P, N, T) for every prompt that is trained on, N = 12 · each, padded; a text of −1 is none.

    >>> from toyld.tiny import Shape, Sizes, ask, draw, start
    >>> language = draw(Sizes(), range(2))
    >>> pool(start(Shape(39, 8), range(2)), ask(language, prompts=4), each=2).shape
    (2, 4, 24, 7)
    """
    language, sizes = data.language, data.language.sizes
    rngs = [np.random.default_rng([seed, STREAM]) for seed in models.seeds]
    prompt, right = (np.repeat(x, each, 1) for x in (data.prompts["chosen"], data.texts["chosen"]))
    even = np.arange(sizes.length) % 2 == 0
    words = language.words, sizes.classes

    def drawn(low: int, high: int) -> Ints:
        return np.stack([rng.integers(low, high, size=right.shape[1:]) for rng in rngs])

    def other() -> Ints:
        """A function word that is not the first of y⁺."""
        away = drawn(1, sizes.function_words)[..., :1]
        return language.functions + (right[..., :1] - language.functions + away) % sizes.function_words

    def told() -> Ints:
        """At each slot a word that some test answer has there."""
        at = np.stack([rng.integers(data.texts["test_chosen"].shape[1], size=right.shape[1:]) for rng in rngs])
        theirs = np.take_along_axis(data.texts["test_chosen"], at, 1)
        return np.where(theirs > 0, theirs, np.where(even, drawn(language.functions, words[0]), drawn(*words)))

    odd = drawn(language.functions, sizes.classes)[..., :1]
    found = [
        *(
            models.sample(language, prompt, seed=i, temperature=t, prefix=other())
            for i, t in enumerate((0.7, 1.0, 2.0))
        ),
        models.sample(language, prompt, seed=4, temperature=4.0, prefix=other()),
        models.sample(language, prompt, seed=5, temperature=0.7, prefix=odd),
        *(told() for _ in range(2)),
        *(np.where(even, drawn(language.functions, words[0]), drawn(*words)) for _ in range(2)),
        *(shuffled(right, rngs) for _ in range(2)),
        drawn(language.functions, sizes.classes),
    ]
    s, p = data.prompts["chosen"].shape
    return np.concatenate([_like(text, right).reshape(s, p, each, -1) for text in found], 2)


def _like(text: Ints, right: Ints) -> Ints:
    """The texts (S, N, T) cut and ended where `right` ends; −1 where one ends before, or begins alike."""
    last = (right >= 0).sum(-1, keepdims=True) - 1
    slot = np.arange(text.shape[-1])
    same = (text[..., :1] == right[..., :1]) | ((text <= 0) & (slot < last)).any(-1, keepdims=True)
    return np.where(same, PAD, np.where(slot < last, text, np.where(slot == last, 0, PAD)))


def measured(models: Models, data: Texts, texts: Ints, /) -> dict[str, Floats]:
    """Each of `MEASURES` of texts (S, P, N, T) behind the trained prompts, (S, P, N); NaN where there is none."""
    language = data.language
    s, p, n, t = texts.shape
    unit, labels, logp = _read(models, language, np.repeat(data.prompts["chosen"], n, 1), texts.reshape(s, p * n, t))
    theirs, told, _ = _read(models, language, data.prompts["test_chosen"], data.texts["test_chosen"])
    right, said, _ = _read(models, language, data.prompts["chosen"], data.texts["chosen"])
    there, here = told >= 0, labels >= 0
    own = here & (np.arange(t) > 0)  # a context that y⁺ does not have
    # Cosines are inner products, so that means over the others' contexts can be taken first.
    total = there.sum((1, 2))
    mean = (theirs * there[..., None]).sum((1, 2)) / total[:, None]
    bag = np.zeros((s, language.sizes.classes, unit.shape[-1]))
    seed, _, _ = where = np.nonzero(there)
    np.add.at(bag, (seed, told[where]), theirs[where] / total[seed, None])
    beside = (right * (said >= 0)[..., None]).sum(2) / (said >= 0).sum(2)[..., None]
    cosines = {
        "test": np.einsum("sntd,sd->snt", unit, mean),
        "plus": np.einsum("spxd,spd->spx", unit.reshape(s, p, n * t, -1), beside).reshape(s, p * n, t),
        "labels": (unit * bag[np.arange(s)[:, None, None], np.maximum(labels, 0)]).sum(-1),
    }
    with np.errstate(invalid="ignore"):  # 0/0: no text
        found = {"logp": (logp * here).sum(-1) / here.sum(-1)}
        found |= {name: (cosine * own).sum(-1) / own.sum(-1) for name, cosine in cosines.items()}
    return {name: found[name].reshape(s, p, n) for name in MEASURES}


def _read(models: Models, language: Language, prompt: Ints, text: Ints) -> tuple[Floats, Ints, Floats]:
    """(hidden states of unit length (S, N, T, d), labels (S, N, T), log π of these) at the contexts of texts."""
    inputs, labels = sequences(language, prompt, text)
    h = models.hidden(torch.from_numpy(inputs))[:, :, -labels.shape[-1] :]
    with torch.no_grad():
        z = models.read_out(models.flat[:, models.shape.head :], h).log_softmax(-1)
    logp = z.gather(-1, torch.from_numpy(np.maximum(labels, 0))[..., None])[..., 0]
    return torch.nn.functional.normalize(h, dim=-1).double().numpy(), labels, logp.double().numpy()


def picked(found: Mapping[str, Floats], /, cells: Sequence[Cell] = CELLS) -> Ints:
    """Which candidate of each prompt is a cell's, (cell, S, P): the nearest to its targets in all measures at once.

    >>> rng = np.random.default_rng(0)
    >>> found = {name: rng.normal(-3.0 if name == "logp" else 0.0, 1.0, (1, 1, 9000)) for name in MEASURES}
    >>> best = picked(found, [("rare", "near", "shared"), ("rare", "far", "other")])
    >>> [[round(float(found[name][0, 0, i]), 1) for name in ("test", "labels")] for i in best[:, 0, 0]]
    [[1.3, 0.6], [-1.3, -0.7]]
    """
    own = {name: x - np.nanmean(x, -1, keepdims=True) for name, x in found.items()}
    score = {name: x / np.nanstd(x, axis=(1, 2), keepdims=True) for name, x in own.items()} | {"logp": found["logp"]}
    out = []
    for probability, contexts, labels in cells:
        targets = {"logp": probability, "test": contexts, "plus": contexts, "labels": labels}
        off = [((score[name] - LEVELS[level]) / CLOSE[name]) ** 2 for name, level in targets.items()]
        out.append(np.nanargmin(np.sum(off, 0), -1))
    return np.stack(out)
