"""Rejected responses by design: as likely, and as like what else a model should say, as a question asks (K8).

A pair's y⁻ differs from y⁺ in many ways at once. Here are responses that differ in some: what the model itself writes
(any temperature), how another text goes on, a response's words in another order, a response with some words exchanged.
All are as long as the response that they stand beside, token by token, so that none has more tokens to push. Of any
response `likeness` says how likely it is and how like given others:

    logp      mean log π of its tokens,
    contexts  mean cosine of the last hidden states before its tokens and before all tokens of the others,
    labels    the mean of that cosine over the same pairs, counted where both have the same next token, else 0.

`picked` orders responses out of a pool of these by such measures, so that factors which go together can be set apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.llm.centred import padded
from toyld.llm.encode import Encoded

__all__ = ["Language", "Likeness", "exchanged", "in_place_of", "likeness", "permuted", "picked", "sampled", "words"]

Floats = NDArray[np.float64]
_SPACE = ("▁", "Ġ", " ")


def words(tokenizer: Any, ids: Sequence[int], /) -> list[tuple[int, ...]]:
    """Token ids by word: each begins where a token begins with a space.

    >>> class Letters:
    ...     def convert_ids_to_tokens(self, ids):
    ...         return [chr(i) for i in ids]
    >>> words(Letters(), [ord(c) for c in "ab cd"])
    [(97, 98), (32, 99, 100)]
    """
    out: list[list[int]] = []
    for i, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        if not out or token.startswith(_SPACE):
            out.append([])
        out[-1].append(int(i))
    return [tuple(word) for word in out]


def in_place_of(one: Encoded, ids: Sequence[int], /) -> Encoded:
    """These tokens as the response behind the prompt of `one`, cut to its length; BadInput where they are fewer.

    >>> in_place_of(Encoded((1, 5, 6), 1), (7, 8, 9))
    Encoded(ids=(1, 7, 8), start=1, cut=0)
    """
    length = len(one.ids) - one.start
    if len(ids) < length:
        raise BadInput(f"expected a response of at least {length} tokens, got {len(ids)}; give a longer one")
    return replace(one, ids=(*one.ids[: one.start], *(int(i) for i in ids[:length])), cut=0)


def permuted(tokenizer: Any, one: Encoded, rng: np.random.Generator, /) -> Encoded:
    """The response's words in another order; as it is where no order differs."""
    found = words(tokenizer, one.ids[one.start :])
    if len(set(found)) < 2:
        return one
    while True:
        ids = [i for k in rng.permutation(len(found)) for i in found[k]]
        if tuple(ids) != tuple(one.ids[one.start :]):
            return in_place_of(one, ids)


def exchanged(
    tokenizer: Any, one: Encoded, others: Sequence[Encoded], rng: np.random.Generator, /, *, share: float = 1 / 3
) -> Encoded:
    """The response with a share of its words (at least one) exchanged for words of others of as many tokens.

    Words for which there is no other one stay. 0 < share ≤ 1.
    """
    if not 0.0 < share <= 1.0:
        raise BadInput(f"share: expected one in (0, 1], got {share}")
    by_size: dict[int, list[tuple[int, ...]]] = {}
    for other in others:
        for word in words(tokenizer, other.ids[other.start :]):
            by_size.setdefault(len(word), []).append(word)
    found = words(tokenizer, one.ids[one.start :])
    for k in rng.permutation(len(found))[: max(1, round(share * len(found)))]:
        pool = [word for word in by_size.get(len(found[k]), []) if word != found[k]]
        if pool:
            found[k] = pool[int(rng.integers(len(pool)))]
    return in_place_of(one, [i for word in found for i in word])


def sampled(
    model: Any, given: Sequence[Encoded], /, *, seed: int, temperature: float = 1.0, each: int = 1,
    without: Sequence[int] = (),
) -> list[list[Encoded]]:  # fmt: skip
    """`each` responses of the model's own behind every prompt of `given`, as long as the responses given there.

    temperature: the logits are divided by it. without: tokens that are never drawn (the end of a text).
    """
    import torch

    longest, width = max(len(one.ids) - one.start for one in given), max(one.start for one in given)
    ids = torch.zeros(len(given), width, dtype=torch.long)
    there = torch.zeros_like(ids)
    for b, one in enumerate(given):  # padded on the left: all go on at the same place
        ids[b, width - one.start :] = torch.tensor(one.ids[: one.start])
        there[b, width - one.start :] = 1
    ids, there = (x.repeat_interleave(each, 0) for x in (ids, there))
    draw = torch.Generator().manual_seed(seed)
    places = (there.cumsum(1) - 1).clamp(min=0)
    said, past = [], None
    with torch.no_grad():
        for _ in range(longest):
            out = model(input_ids=ids, attention_mask=there, position_ids=places, past_key_values=past, use_cache=True)
            z = out.logits[:, -1].float() / temperature
            z[:, list(without)] = -torch.inf
            ids = torch.multinomial(z.softmax(-1), 1, generator=draw)
            said.append(ids)
            past, places = out.past_key_values, places[:, -1:] + 1
            there = torch.cat([there, torch.ones_like(ids)], 1)
    rows = torch.cat(said, 1).view(len(given), each, longest).tolist()
    return [[in_place_of(one, row) for row in mine] for one, mine in zip(given, rows, strict=True)]


@dataclass(frozen=True)
class Likeness:
    """One number a response, (N,): see the module."""

    logp: Floats
    contexts: Floats
    labels: Floats


@dataclass(frozen=True)
class Language:
    """What responses are compared with: mean state (d,) and, by next token, (V, d), over all tokens of some texts."""

    mean: Floats
    bag: Floats

    @classmethod
    def of(cls, model: Any, texts: Sequence[Encoded], /) -> Language:
        """Of the responses of these texts, as the model reads them."""
        states, labels, _, _ = _states(model, texts)
        bag = np.zeros((int(model.get_output_embeddings().weight.shape[0]), states.shape[1]))
        np.add.at(bag, labels, states / len(states))
        return cls(states.mean(0), bag)


def likeness(model: Any, responses: Sequence[Encoded], /, *others: Language) -> list[Likeness]:
    """How likely responses are, and how like each of the others. Memory: all their states, tokens × d in float64."""
    states, labels, logp, owner = _states(model, responses)
    count = np.bincount(owner, minlength=len(responses))

    def mean(values: Floats) -> Floats:
        return np.asarray(np.bincount(owner, values, minlength=len(responses)) / count)

    said = mean(logp)
    return [Likeness(said, mean(states @ one.mean), mean((states * one.bag[labels]).sum(1))) for one in others]


def _states(model: Any, texts: Sequence[Encoded]) -> tuple[Floats, NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Over response tokens: unit states before them (N, d), they, their log π, and whose response (N,)."""
    import torch

    found: list[list[Any]] = [[], [], [], []]
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    bent = [n for n in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(config, n, None)]
    if bent:
        raise BadInput(f"expected logits that are the head's product, got a model with {bent[0]}; use another model")
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    with torch.no_grad():
        for first in range(0, len(order), 32):
            some = order[first : first + 32]
            ids, there, read = padded([texts[i] for i in some])
            h = model.base_model(input_ids=ids, attention_mask=there, use_cache=False).last_hidden_state[read]
            label = ids[:, 1:][read[:, :-1]]
            logp = head(h).float().log_softmax(-1).gather(1, label[:, None])[:, 0]
            whose = torch.tensor(some)[:, None].expand_as(read)[read]
            unit = torch.nn.functional.normalize(h.double(), dim=-1)
            for values, x in zip(found, (unit, label, logp.double(), whose), strict=True):
                values.append(x.numpy())
    states, labels, logps, owner = (np.concatenate(values) for values in found)
    return states, labels, logps, owner


def picked(measures: Mapping[str, Floats], targets: Mapping[str, tuple[float, float]], /) -> NDArray[np.int64]:
    """The response of each pool that lies nearest to all targets at once, (P,).

    measures: name → (P, N), one number a response of P pools, NaN = none; targets: name → (value wanted, how far off is
    far), in the units of that measure.

    >>> picked({"logp": np.array([[-1.0, -4.0, -4.0]]), "labels": np.array([[0.0, 0.9, 0.1]])},
    ...        {"logp": (-4.0, 1.0), "labels": (0.0, 0.2)}).tolist()
    [2]
    """
    if unknown := [name for name in targets if name not in measures]:
        raise BadInput(f"targets: expected some of {', '.join(measures)}, got {unknown[0]}")
    off = [((measures[name] - value) / far) ** 2 for name, (value, far) in targets.items()]
    return np.asarray(np.nanargmin(np.sum(off, 0), -1))
