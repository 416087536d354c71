"""Preference data in the language: prompts that are trained on and held out, and a response of every kind to each.

chosen tells the facts (the truth: κ = 1); rejected is what the model itself says, or something else that a knob asks
for. The other kinds are those of `toyld.probes`, made exactly: a rephrase by meaning says the same concepts in words
and a style of its own, a rephrase by form keeps the function words and says other concepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.tiny.language import PAD, Language

__all__ = ["Texts", "ask", "rephrase", "shuffled", "with_rejected"]

Ints = NDArray[np.int64]
ASKED, TOLD, REJECTED = 45, 46, 47  # streams of random numbers


@dataclass(frozen=True)
class Texts:
    """Responses by kind, (S, P, T) padded with −1, each behind its prompt: prompts[kind] or prompts["chosen"] (S, P).

    language: of every member, in their order (`Language.take` repeats it where conditions share one); a `Language`, or
    what stands for one, such as a `toyld.tiny.reading.Reading`.
    """

    language: Any
    prompts: Mapping[str, Ints]
    texts: Mapping[str, Ints]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, kind: str, /) -> Ints:
        """Numbers of the prompts (S, P) that responses of a kind stand behind."""
        return self.prompts.get(kind, self.prompts["chosen"])

    def take(self, members: Sequence[int], /) -> Texts:
        """The data of some members, in this order; repeats are how several conditions share one language."""
        at = np.asarray(members)
        return replace(
            self,
            language=self.language.take(at),
            prompts={kind: value[at] for kind, value in self.prompts.items()},
            texts={kind: value[at] for kind, value in self.texts.items()},
        )

    def also(self, texts: Mapping[str, Ints], /, **prompts: Ints) -> Texts:
        """The same with further (or other) responses."""
        for kind, text in texts.items():
            wanted = (*self.prompts["chosen"].shape, self.language.sizes.length)
            if np.shape(text) != wanted and kind not in prompts:
                msg = f"{kind}: expected texts {wanted}, seed × prompt × token, got {np.shape(text)}; pad with −1"
                raise BadInput(msg)
            given, classes = np.asarray(text), self.language.sizes.classes
            if given.dtype.kind not in "iu" or given.min() < PAD or given.max() >= classes:
                got = f"{given.dtype} from {given.min()} to {given.max()}"
                raise BadInput(f"{kind}: expected token ids from 0 to {classes - 1} and {PAD} behind an end, got {got}")
        return replace(self, texts={**self.texts, **texts}, prompts={**self.prompts, **prompts})


def _rngs(language: Language, stream: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, stream]) for seed in language.seeds]


def ask(language: Language, /, *, prompts: int = 8) -> Texts:
    """Data without negatives: so many prompts to train on, as many others to test, and what needs no model.

    Kinds: chosen, chosen_gptsemantic, chosen_gptformat, test_chosen, irr_train, irr_test, irr_hum, random_permute,
    random_nonhum, random_words.

    >>> from toyld.tiny.language import Sizes, draw
    >>> data = ask(draw(Sizes(), range(2)), prompts=4)
    >>> len(data.texts), data.texts["chosen"].shape
    (10, (2, 4, 7))
    """
    if not 2 <= prompts <= language.sizes.prompts // 2:
        msg = f"prompts: expected 2 to {language.sizes.prompts // 2}, half of the language's, got {prompts}"
        raise BadInput(msg)
    asked = np.stack([rng.permutation(language.sizes.prompts)[: 2 * prompts] for rng in _rngs(language, ASKED)])
    train, test = asked[:, :prompts], asked[:, prompts:]
    rngs = _rngs(language, TOLD)
    where = {"chosen": train, "test_chosen": test}
    texts = {kind: language.sample(prompt, rngs, knowledge=1.0) for kind, prompt in where.items()}
    texts |= rephrase(language, "chosen", texts["chosen"], rngs)
    texts["irr_train"], texts["irr_test"] = np.roll(texts["chosen"], 1, axis=1), texts["test_chosen"]
    texts["irr_hum"] = language.tell(_unrelated(language, texts["chosen"], rngs), rngs)
    texts["random_permute"] = shuffled(texts["chosen"], rngs)
    texts["random_nonhum"] = shuffled(texts["irr_test"], rngs)
    size = *train.shape[1:], language.sizes.length
    words = np.stack([rng.integers(language.functions, language.sizes.classes, size=size) for rng in rngs])
    texts["random_words"] = np.where(texts["chosen"] > 0, words, texts["chosen"])
    return Texts(language, where, texts)


def rephrase(language: Language, kind: str, text: Ints, rngs: Sequence[np.random.Generator], /) -> dict[str, Ints]:
    """KIND_gptsemantic and KIND_gptformat of texts (S, P, T): same concepts, other words; same function words only."""
    name = {"rejected": "reject"}.get(kind, kind)
    said, spoken, odd = language.concepts(text), _spoken(language, text), slice(1, 2 * language.sizes.most, 2)
    meaning = language.tell(np.where(spoken, np.maximum(said, 0), PAD), rngs)
    # A slip where a concept should be means nothing that could be said otherwise.
    meaning[..., odd] = np.where(spoken & (said == PAD), text[..., odd], meaning[..., odd])
    return {
        f"{name}_gptsemantic": meaning,
        f"{name}_gptformat": language.tell(_unrelated(language, text, rngs), rngs, like=text),
    }


def _spoken(language: Language, text: Ints) -> NDArray[np.bool_]:
    """(S, P, most): whether a text has a word at each odd slot."""
    slots = text[..., 1 : 2 * language.sizes.most : 2]
    return slots > 0


def _unrelated(language: Language, text: Ints, rngs: Sequence[np.random.Generator]) -> Ints:
    """As many concepts as each text has, none of them at the place where the text says it."""
    said, count = language.concepts(text), language.sizes.concepts
    shift = np.stack([rng.integers(1, count, size=said.shape[1:]) for rng in rngs])
    return np.where(_spoken(language, text), (np.maximum(said, 0) + shift) % count, PAD)


def shuffled(text: Ints, rngs: Sequence[np.random.Generator], /) -> Ints:
    """The words of texts (S, P, T) in random order; END stays last."""
    keys = np.stack([rng.random(text.shape[1:]) for rng in rngs])
    order = np.argsort(np.where(text > 0, keys, 1.0 + np.arange(text.shape[-1])), axis=-1)
    return np.take_along_axis(text, order, -1)


def with_rejected(data: Texts, rejected: Ints, /, *, shared: int = 0, initial: Ints | None = None) -> Texts:
    """The data with negatives (S, P, T), their two rephrases, and the model's own first answers `chosen_initial`.

    shared: so many first tokens are replaced by those of chosen, so that contexts differ only after them.
    """
    text, length = np.array(rejected), data.language.sizes.length
    if text.ndim != 3 or not 0 <= shared < length:
        msg = f"expected negatives (S, P, {length}) and shared from 0 to {length - 1}, got {text.shape} and {shared}"
        raise BadInput(msg)
    text[..., :shared] = data.texts["chosen"][..., :shared]
    ended = (text[..., :shared] == 0).any(-1)
    text[..., shared:][ended] = PAD
    text[..., shared] = np.where(~ended & (text[..., shared] == PAD), 0, text[..., shared])  # it was shorter: it ends
    rngs = _rngs(data.language, REJECTED)
    more = {"rejected": text}
    if isinstance(data.language, Language):  # elsewhere nobody knows what a text means
        more |= rephrase(data.language, "rejected", text, rngs)
    return data.also(more if initial is None else more | {"chosen_initial": initial})
