"""What can be said of texts and models because the language is known: facts right, the source's own score, repetition.

No judge: a text is right if its concepts are the prompt's; the source says how probable it is; KL is exact.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.tiny.language import PAD, Language, sequences
from toyld.tiny.models import Models

__all__ = ["beliefs", "divergence", "entropy", "repetition", "right", "says"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def says(language: Language, text: Ints, facts: Ints, /) -> Floats:
    """Share (S, N) of the concepts of texts (S, N, T) that are those of `facts` (S, N, most), place by place.

    Where a text has no concept at all: 0.
    """
    said = language.concepts(text)
    there = _slots(language, text)
    agree = (said == facts[..., : said.shape[-1]]) & there
    return agree.sum(-1) / np.maximum(there.sum(-1), 1)


def right(language: Language, prompt: Ints, text: Ints, /) -> Floats:
    """1 where a text (S, N, T) answers its prompt (S, N): well formed, ended, every concept true; else 0.

    >>> from toyld.tiny.language import Sizes, draw
    >>> language = draw(Sizes(slip=0.0), [0])
    >>> prompt = np.arange(5)[None]
    >>> right(language, prompt, language.sample(prompt, [np.random.default_rng(0)], knowledge=1.0)).tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    if not len(text) == len(prompt) == len(language.seeds):
        msg = f"expected texts of {len(language.seeds)} members, one a language, got {len(text)}"
        raise BadInput(f"{msg}; take the same members of both")
    facts = language.facts[np.arange(len(text))[:, None], prompt]
    there = _slots(language, text)
    functions = text[..., ::2]
    form = (functions >= language.functions) & (functions < language.words) | (functions <= 0)
    ended = (text == 0).any(-1) & (there.sum(-1) >= language.sizes.least)
    true = ((language.concepts(text) == facts) | ~there).all(-1)
    even = ((text == 0).argmax(-1) % 2 == 0) & form.all(-1)
    return (true & ended & even).astype(float)


def repetition(text: Ints, /, *, n: int = 2) -> Floats:
    """Share (S, N) of the n-grams of texts (S, N, T) that stood earlier in the same text; END and padding left out.

    0 where a text is too short to repeat one.

    >>> repetition(np.array([[[5, 6, 5, 6, 5, 0, -1]]])).tolist()
    [[0.5]]
    """
    length = text.shape[-1]
    grams = np.stack([text[..., i : length - n + 1 + i] for i in range(n)], -1)
    there = np.all(grams > 0, axis=-1)
    same = (grams[..., :, None, :] == grams[..., None, :, :]).all(-1)
    before = np.tril(np.ones(same.shape[-2:], bool), -1)
    again = (same & before & there[..., None, :]).any(-1) & there
    return again.sum(-1) / np.maximum(there.sum(-1), 1)


def entropy(models: Models, language: Language, prompt: Ints, text: Ints, /, *, of: Floats | None = None) -> Floats:
    """Mean over the tokens of texts (S, N, T) of the entropy of π, nats a token, (S, N). of: their `beliefs`."""
    logp, mask = beliefs(models, language, prompt, text) if of is None else of, text != PAD
    h = -(np.exp(logp) * logp).sum(-1)
    return np.where(mask, h, 0.0).sum(-1) / np.maximum(mask.sum(-1), 1)


def divergence(
    models: Models, language: Language, prompt: Ints, text: Ints, /, *, knowledge: float | None = None,
    of: Floats | None = None,
) -> Floats:  # fmt: skip
    """Exact KL(source ‖ π) of the next token, summed along texts (S, N, T), nats a response, (S, N).

    Its mean over texts that the source samples is the KL of whole responses. knowledge: κ of the source, 1 = the truth.
    of: the `beliefs` of the models along these texts, where they are at hand.
    """
    logp, mask = beliefs(models, language, prompt, text) if of is None else of, text != PAD
    source = language.log_probs(prompt, text, knowledge=knowledge)
    p = np.exp(source)
    kl = np.where(p > 0, p * (np.where(p > 0, source, 0.0) - logp), 0.0).sum(-1)
    return np.where(mask, kl, 0.0).sum(-1)


def _slots(language: Language, text: Ints) -> NDArray[np.bool_]:
    """(S, N, most): whether a text has a token, not END, at each odd slot."""
    return text[..., 1 : 2 * language.sizes.most : 2] > 0


def beliefs(models: Models, language: Language, prompt: Ints, text: Ints, /) -> Floats:
    """log π (S, N, T, V) of the next token along texts (S, N, T) behind prompts (S, N), in float64."""
    models.check(language)
    inputs, labels = sequences(language, prompt, text)
    with torch.no_grad():
        z = models.logits(torch.from_numpy(inputs).to(models.flat.device))[:, :, -labels.shape[-1] :]
    return z.double().log_softmax(-1).cpu().numpy()
