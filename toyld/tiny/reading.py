"""A given text as a source: models are pretrained on windows of its tokens, pairs set its continuations beside theirs.

Nothing is known here but the text: no facts, no concepts, and log π has no ground truth; a response counts as chosen
because the text goes on like that. `Reading` stands wherever `pretrain`, `Models.sample`, `train` and `repetition` want
a language; what asks for probabilities or concepts of the source (`divergence`, `right`, rephrases) needs a `Language`.

    source = read(Path("book.txt").read_text(), range(4))                       # bytes
    encoder = tokenizers.Tokenizer.from_file("tokenizer.json")                  # or tokens of one's own
    source = read(text, range(4), encode=lambda text: encoder.encode(text).ids)
    models, _ = pretrain(start(source.shape(), source.seeds), source, steps=300)
    data = continuations(source, prompts=8)
    data = with_rejected(data, models.sample(source, data.prompts["chosen"], seed=0))
    run = train(models, data, objectives.get("dpo"), lr=…, steps=…, rejected="rejected")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.tiny.language import PAD
from toyld.tiny.network import Shape
from toyld.tiny.texts import Texts, shuffled

__all__ = ["Reading", "Window", "continuations", "read"]

Ints = NDArray[np.int64]
OPENED, CUT = 49, 50  # streams of random numbers


@dataclass(frozen=True)
class Window:
    """Sizes of what is read at once: a prompt of `asked` tokens, a response of up to `length`, V = classes."""

    classes: int
    asked: int
    length: int

    @property
    def places(self) -> int:
        """Positions that a model needs: prompt and response but its last token."""
        return self.asked + self.length - 1


@dataclass(frozen=True)
class Reading:
    """Tokens (n,) of texts one after another, END = 0 behind each; all seeds read the same, in orders of their own.

    known: id of the encoder → token is its place here plus 1; tokens that do not occur have no place. The part from
    token `held` on is kept from training. A prompt's number is the token at which it begins.
    """

    sizes: Window
    seeds: tuple[int, ...]
    tokens: Ints
    known: Ints
    held: int

    def take(self, members: Sequence[int] | Ints, /) -> Reading:
        """The readers of some seeds, in this order."""
        own = tuple(self.seeds[int(i)] for i in members)
        return Reading(self.sizes, own, self.tokens, self.known, self.held)

    def shape(self, *, width: int = 64, depth: int = 2, heads: int = 4) -> Shape:
        """A model for these tokens and windows."""
        return Shape(self.sizes.classes, self.sizes.places, width=width, depth=depth, heads=heads)

    def ask(self, prompt: Ints, /) -> Ints:
        """Prompts by number → token rows (…, asked)."""
        return self.tokens[np.asarray(prompt)[..., None] + np.arange(self.sizes.asked)]

    def follow(self, prompt: Ints, /) -> Ints:
        """How the text goes on: (…, length), padded with −1 behind its END."""
        text = self.tokens[np.asarray(prompt)[..., None] + self.sizes.asked + np.arange(self.sizes.length)]
        return np.where((text == 0).cumsum(-1) - (text == 0) > 0, PAD, text)

    def batch(self, seeds: Sequence[int], update: int, size: int, /) -> tuple[Ints, Ints]:
        """(inputs, labels) (S, size, places) of one update: windows drawn from (seed, update) alone."""
        length = self.sizes.places
        rngs = [np.random.default_rng([seed, update, OPENED]) for seed in seeds]
        first = np.stack([rng.integers(self.held - length, size=size) for rng in rngs])
        rows = self.tokens[first[..., None] + np.arange(length + 1)]
        return rows[..., :-1], rows[..., 1:]

    def ids(self, text: Ints, /) -> list[int]:
        """One text (T,) as ids of the encoder, END and padding left out; `bytes(ids).decode()` where it was bytes."""
        text = np.asarray(text)
        return self.known[text[text > 0] - 1].tolist()


def read(
    text: str | Sequence[str], seeds: Sequence[int], /, *, asked: int = 16, length: int = 32,
    encode: Callable[[str], Sequence[int]] | None = None, held: float = 0.1,
) -> Reading:  # fmt: skip
    """A source made of one text, or of several with an END behind each.

    encode: text → token ids, UTF-8 bytes by default. asked, length: tokens of a prompt and of a response. held: the
    share of the tokens, at the end, that is kept from training. Raises BadInput where the text is too short.

    >>> source = read("to be or not to be, that is the question", range(2), asked=3, length=4)
    >>> source.sizes.classes, bytes(source.ids(source.follow(np.array(6)))).decode()
    (15, 'not ')
    """
    texts = [text] if isinstance(text, str) else list(text)
    ids = [np.asarray(list(one.encode() if encode is None else encode(one)), dtype=np.int64) for one in texts]
    known = np.unique(np.concatenate([*ids, np.zeros(0, np.int64)]))
    tokens = np.concatenate([np.append(np.searchsorted(known, one) + 1, 0) for one in ids] or [known])
    if not 0 <= held < 1 or asked < 1 or length < 1:
        msg = f"expected asked and length ≥ 1 and a share held in [0, 1), got {asked}, {length} and {held}"
        raise BadInput(msg)
    last = round(len(tokens) * (1.0 - held))
    if last < asked + length:
        msg = f"text: expected {asked + length} tokens or more to train on, got {last}; give more text"
        raise BadInput(f"{msg}, or shorter windows")
    window = Window(len(known) + 1, asked, length)
    return Reading(window, tuple(int(seed) for seed in seeds), tokens, known, last)


def continuations(source: Reading, /, *, prompts: int = 8) -> Texts:
    """Data without negatives: prompts from the trained part and from the rest, no two of which share a token.

    Kinds: chosen, test_chosen (how the text goes on), irr_train, irr_test, random_permute, random_nonhum,
    random_words, as `toyld.tiny.ask` has them.

    >>> data = continuations(read("to be or not to be, that is " * 9, range(2), asked=3, length=4, held=0.5), prompts=4)
    >>> data.texts["chosen"].shape
    (2, 4, 4)
    """
    sizes, whole = source.sizes, source.sizes.asked + source.sizes.length
    rngs = [np.random.default_rng([seed, CUT]) for seed in source.seeds]
    where = {"chosen": (0, source.held), "test_chosen": (source.held, len(source.tokens))}
    asked = {}
    for kind, (first, last) in where.items():
        starts = np.arange(first, last - whole + 1, whole)
        if not 2 <= prompts <= len(starts):
            part = "held out" if first else "trained on"
            msg = f"prompts: expected 2 to {len(starts)}, windows of {whole} in the part {part}, got {prompts}"
            raise BadInput(f"{msg}; give more text, or hold out another share")
        asked[kind] = np.stack([rng.permutation(starts)[:prompts] for rng in rngs])
    texts = {kind: source.follow(prompt) for kind, prompt in asked.items()}
    texts["irr_train"], texts["irr_test"] = np.roll(texts["chosen"], 1, axis=1), texts["test_chosen"]
    texts["random_permute"] = shuffled(texts["chosen"], rngs)
    texts["random_nonhum"] = shuffled(texts["irr_test"], rngs)
    words = np.stack([rng.integers(1, sizes.classes, size=texts["chosen"].shape[1:]) for rng in rngs])
    texts["random_words"] = np.where(texts["chosen"] > 0, words, texts["chosen"])
    return Texts(source, asked, texts)
