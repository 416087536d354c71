"""A made-up language whose next-token distributions are known exactly: questions about facts, answered in two styles.

A prompt is (relation r, entity e); its fact is a sequence of concepts (c_1, …, c_m). An answer is a sequence of slots:
even ones hold a function word, odd ones a word for a concept, and END closes it.

    style s ∈ {formal, casual}, hidden, for a whole answer            P(s) = ½
    function word f_k                                                 chain_s(f_k | f_{k−1})
    concept j of the answer                                           κ·1[c = c_j] + (1 − κ)·popular_r(c)
    word for a concept                                                word_s(w | c): synonyms, each style its own
    END                                                               after `least` concepts with probability ½, after m
    a slip                                                            any token, with probability `slip`, at each slot

κ is how well the source knows the facts: what a model is pretrained on has κ < 1, the truth has κ = 1. Two answers with
the same concepts mean the same; two with the same function words and other concepts have the same form. The next-token
distribution given a prefix is a mixture over styles by Bayes' rule, so log π has a ground truth at every context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput

__all__ = ["PAD", "STYLES", "Language", "Sizes", "draw", "drawn", "sequences"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
PAD = -1  # behind the end of a text
STYLES = 2
STREAM, DRAWN = 41, 44  # of random numbers


@dataclass(frozen=True)
class Sizes:
    """How large a language is, and its knobs.

    concepts in an answer: from `least` to `most`. concentration: of the Dirichlet that says how popular concepts are
    within a relation; small = prompts of a relation share their facts. accent: probability of a style's own synonym.

    >>> Sizes().classes, Sizes().places, Sizes().prompts
    (39, 8, 32)
    """

    relations: int = 4
    entities: int = 8
    function_words: int = 6
    concepts: int = 10
    synonyms: int = 2
    least: int = 2
    most: int = 3
    knowledge: float = 0.3
    slip: float = 0.01
    concentration: float = 1.0
    accent: float = 0.8

    def __post_init__(self) -> None:
        for name in ("relations", "entities", "function_words", "concepts", "least"):
            if getattr(self, name) < 1:
                msg = f"{name}: expected at least 1, got {getattr(self, name)}; correct it"
                raise BadInput(msg)
        if self.concepts < 2:
            msg = "concepts: expected at least 2, got 1: an answer could not be wrong; raise it"
            raise BadInput(msg)
        if self.synonyms < STYLES or self.most < self.least:
            msg = f"synonyms ≥ {STYLES} and most ≥ least expected, got {self.synonyms}, {self.most} and {self.least}"
            raise BadInput(msg)
        if not self.concentration > 0:
            msg = f"concentration: expected more than 0, got {self.concentration}; small = few popular concepts"
            raise BadInput(msg)
        for name in ("knowledge", "slip", "accent"):
            if not 0 <= getattr(self, name) <= 1:
                msg = f"{name}: expected a probability, got {getattr(self, name)}; correct it"
                raise BadInput(msg)

    @property
    def classes(self) -> int:
        """Tokens: END, relations, entities, function words, words."""
        return 1 + self.relations + self.entities + self.function_words + self.concepts * self.synonyms

    @property
    def prompts(self) -> int:
        """Questions that can be asked."""
        return self.relations * self.entities

    @property
    def length(self) -> int:
        """Tokens of the longest answer, END included."""
        return 2 * self.most + 1

    @property
    def places(self) -> int:
        """Positions that a model needs: prompt and answer but its last token."""
        return 2 + self.length - 1


@dataclass(frozen=True)
class Language:
    """S languages of one size, one a seed. Arrays: chain (S, style, 1 + F, F), word (S, style, concept, synonym),
    popular (S, relation, concept), facts (S, prompt, most).

    Token ids: END 0, then relations, entities, function words, words (concept by concept).
    """

    sizes: Sizes
    seeds: tuple[int, ...]
    chain: Floats
    word: Floats
    popular: Floats
    facts: Ints

    def take(self, members: NDArray[np.int64], /) -> Language:
        """The languages of some seeds, in this order; repeats are how several conditions share one."""
        at, own = np.asarray(members), tuple(self.seeds[int(i)] for i in members)
        return Language(self.sizes, own, self.chain[at], self.word[at], self.popular[at], self.facts[at])

    @property
    def functions(self) -> int:
        """Id of the first function word."""
        return 1 + self.sizes.relations + self.sizes.entities

    @property
    def words(self) -> int:
        """Id of the first word of a concept."""
        return self.functions + self.sizes.function_words

    def ask(self, prompt: Ints, /) -> Ints:
        """Prompts by number → token rows (…, 2): relation, entity."""
        relation, entity = np.divmod(np.asarray(prompt), self.sizes.entities)
        return np.stack([1 + relation, 1 + self.sizes.relations + entity], -1)

    def concepts(self, text: Ints, /) -> Ints:
        """What texts (…, T) say: the concept at each odd slot (…, most); −1 where another word or none stands."""
        slots = text[..., 1 : 2 * self.sizes.most : 2]
        inside = slots >= self.words
        said = np.where(inside, (slots - self.words) // self.sizes.synonyms, PAD)
        room = self.sizes.most - said.shape[-1]
        return np.concatenate([said, np.full((*said.shape[:-1], room), PAD)], -1)

    def log_probs(self, prompt: Ints, text: Ints, /, *, knowledge: float | None = None) -> Floats:
        """Next-token log-probabilities (S, N, T, V) along texts (S, N, T) behind prompts by number (S, N); exact.

        Behind the end of a text the rows mean nothing. knowledge: κ, the source's own by default, 1 = the truth.
        """
        with np.errstate(divide="ignore"):  # without slips some tokens are impossible
            return np.log(self._along(np.asarray(prompt), np.asarray(text), self._known(knowledge)))

    def score(self, prompt: Ints, text: Ints, /, *, knowledge: float | None = None) -> Floats:
        """log P(text | prompt) (S, N) of the source, END included where the text has it."""
        text = np.asarray(text)
        logp = np.take_along_axis(
            self.log_probs(prompt, text, knowledge=knowledge), np.maximum(text, 0)[..., None], -1
        )[..., 0]
        return np.where(text != PAD, logp, 0.0).sum(-1)

    def sample(self, prompt: Ints, rngs: Sequence[np.random.Generator], /, *, knowledge: float | None = None) -> Ints:
        """Answers (S, N, T) of the source to prompts by number (S, N), padded with −1 behind END."""
        return self._speak(np.asarray(prompt), rngs, self._known(knowledge))

    def batch(self, seeds: Sequence[int], update: int, size: int, /) -> tuple[Ints, Ints]:
        """(inputs (S, size, …), labels (S, size, …) of their last positions) of one update of `pretrain`.

        Fresh answers to prompts of all kinds, drawn from (seed, update) alone.
        """
        rngs = [np.random.default_rng([seed, update, DRAWN]) for seed in seeds]
        prompt = np.stack([rng.integers(self.sizes.prompts, size=size) for rng in rngs])
        return sequences(self, prompt, self.sample(prompt, rngs))

    def tell(self, said: Ints, rngs: Sequence[np.random.Generator], /, *, like: Ints | None = None) -> Ints:
        """Texts (S, N, T) that say these concepts (S, N, most), −1 = an END before; in a style of their own.

        like: texts whose function words they take over, so far as those have some.
        """
        said = np.asarray(said)
        said = np.where((said == PAD).cumsum(-1) > 0, PAD, said)  # nothing behind an end
        s, n, _ = said.shape
        text = np.full((s, n, self.sizes.length), PAD)
        for i, rng in enumerate(rngs):
            style, last = rng.integers(STYLES, size=n), np.full(n, self.sizes.function_words)
            for t in range(self.sizes.length):
                k, u = t // 2, rng.random((n, 1))
                there = said[i, :, k] != PAD if k < self.sizes.most else np.zeros(n, bool)
                before = text[i, :, t - 1] > 0 if t else np.ones(n, bool)
                if t % 2 == 0:
                    fresh = drawn(self.chain[i, style, last], u)
                    given = fresh if like is None else np.asarray(like)[i, :, t] - self.functions
                    known = (given >= 0) & (given < self.sizes.function_words)
                    last = np.where(known, given, fresh)
                    token, ends = self.functions + last, 0
                else:
                    own = self.word[i, style, np.maximum(said[i, :, k], 0)]
                    way = drawn(own, u)
                    token, ends = self.words + said[i, :, k] * self.sizes.synonyms + way, PAD
                text[i, :, t] = np.where(there, token, np.where(before, ends, PAD))
        return text

    def _known(self, knowledge: float | None) -> float:
        if knowledge is not None and not 0 <= knowledge <= 1:
            msg = f"knowledge: expected a probability, 1 = the truth, got {knowledge}; correct it"
            raise BadInput(msg)
        return self.sizes.knowledge if knowledge is None else knowledge

    def _speak(self, prompt: Ints, rngs: Sequence[np.random.Generator], knowledge: float) -> Ints:
        s, n = prompt.shape
        text = np.full((s, n, self.sizes.length), PAD)
        open_ = np.ones((s, n), bool)
        belief = np.full((s, n, STYLES), 1.0 / STYLES)
        last = np.full((s, n), self.sizes.function_words)
        for t in range(self.sizes.length):
            each = self._slot(prompt, t, last, knowledge)
            p = (belief[..., None] * each).sum(2)
            u = np.stack([rng.random(n) for rng in rngs])[..., None] * p.sum(-1, keepdims=True)
            token = drawn(p, u)
            text[..., t] = np.where(open_, token, PAD)
            belief, last = self._heard(belief, each, last, token)
            open_ &= token != 0
        return text

    def _along(self, prompt: Ints, text: Ints, knowledge: float) -> Floats:
        s, n, length = text.shape
        out = np.empty((s, n, length, self.sizes.classes))
        belief = np.full((s, n, STYLES), 1.0 / STYLES)
        last = np.full((s, n), self.sizes.function_words)
        for t in range(length):
            each = self._slot(prompt, t, last, knowledge)
            out[:, :, t] = (belief[..., None] * each).sum(2)
            belief, last = self._heard(belief, each, last, np.maximum(text[..., t], 0))
        return out

    def _slot(self, prompt: Ints, t: int, last: Ints, knowledge: float) -> Floats:
        """P(token | style, prefix) (S, N, style, V) of slot t, the last function word being `last` (F = none yet)."""
        sizes, (s, n) = self.sizes, prompt.shape
        seed = np.arange(s)[:, None]
        out = np.full((s, n, STYLES, sizes.classes), sizes.slip / sizes.classes)
        rest = 1.0 - sizes.slip
        said = t // 2  # concepts before this slot
        if t % 2 == 0:
            stop = 0.0 if said < sizes.least else 1.0 if said >= sizes.most else 0.5
            out[..., 0] += rest * stop
            words = self.chain[seed, :, last]  # (S, N, style, F)
            out[..., self.functions : self.words] += rest * (1.0 - stop) * words
        else:
            relation = prompt // sizes.entities
            belief: Floats = (1.0 - knowledge) * self.popular[seed, relation]
            true = self.facts[seed, prompt, min(said, sizes.most - 1)][..., None]
            belief = belief + knowledge * (np.arange(sizes.concepts) == true)
            spoken = belief[:, :, None, :, None] * self.word[:, None]  # (S, N, style, concept, synonym)
            out[..., self.words :] += rest * spoken.reshape(s, n, STYLES, -1)
        return out

    def _heard(self, belief: Floats, each: Floats, last: Ints, token: Ints) -> tuple[Floats, Ints]:
        """(P(style | prefix), last function word) after one more token."""
        like = np.take_along_axis(each, token[:, :, None, None], -1)[..., 0]
        belief = belief * like
        place = token - self.functions
        inside = (place >= 0) & (place < self.sizes.function_words)
        total = belief.sum(-1, keepdims=True)
        # Behind what no style can say, or an end, nothing is known: without slips 0/0.
        belief = np.where(total > 0, belief / np.where(total > 0, total, 1.0), 1.0 / STYLES)
        return belief, np.where(inside, place, last)


def drawn(p: Floats, u: Floats, /) -> Ints:
    """The class (…) at which weights p (…, V), added up, come to u (…, 1).

    >>> drawn(np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]]), np.array([[0.1], [0.9]])).tolist()
    [0, 2]
    """
    return np.asarray((p.cumsum(-1) < u).sum(-1).clip(max=p.shape[-1] - 1))


def draw(sizes: Sizes, seeds: Sequence[int], /) -> Language:
    """A language a seed: chains, synonyms, popularity, facts.

    >>> language = draw(Sizes(), range(2))
    >>> rngs = [np.random.default_rng(seed) for seed in range(2)]
    >>> prompt = np.tile(np.arange(5), (2, 1))
    >>> text = language.sample(prompt, rngs, knowledge=1.0)
    >>> text.shape, language.log_probs(prompt, text).shape
    ((2, 5, 7), (2, 5, 7, 39))
    """
    rngs = [np.random.default_rng([seed, STREAM]) for seed in seeds]
    f, c = sizes.function_words, sizes.concepts
    chain = np.stack([rng.dirichlet(np.full(f, 0.5), size=(STYLES, f + 1)) for rng in rngs])
    popular = np.stack([rng.dirichlet(np.full(c, sizes.concentration), size=sizes.relations) for rng in rngs])
    word = np.full((len(rngs), STYLES, c, sizes.synonyms), (1.0 - sizes.accent) / (sizes.synonyms - 1))
    for style in range(STYLES):
        word[:, style, :, style] = sizes.accent
    facts = np.stack(
        [
            np.stack([rng.choice(c, p=popular[i, p // sizes.entities], size=sizes.most) for p in range(sizes.prompts)])
            for i, rng in enumerate(rngs)
        ]
    )
    return Language(sizes, tuple(int(seed) for seed in seeds), chain, word, popular, facts)


def sequences(language: Any, prompt: Ints, text: Ints, /) -> tuple[Ints, Ints]:
    """(inputs (S, N, A + T − 1), labels (S, N, T)): prompts of A tokens and all but the last token of their texts.

    The label of slot t is predicted at position A − 1 + t; −1 where there is none.

    >>> language = draw(Sizes(), [0])
    >>> inputs, labels = sequences(language, np.array([[3]]), np.array([[[13, 19, 14, 21, 0, -1, -1]]]))
    >>> inputs.tolist(), labels.tolist()
    ([[[1, 8, 13, 19, 14, 21, 0, 0]]], [[[13, 19, 14, 21, 0, -1, -1]]])
    """
    asked = language.ask(prompt)
    asked = np.broadcast_to(asked, (*text.shape[:-1], asked.shape[-1]))
    return np.concatenate([asked, np.maximum(text[..., :-1], 0)], -1), text
