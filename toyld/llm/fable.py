"""A made-up language in English words: what animals buy, mend or hide, asked and answered; every probability is known.

It is `toyld.tiny.language` spoken: a prompt is "What does the fox hide?", its fact three kinds of things, an answer
" often coins, maybe bread." tells two or three of them. Link words follow a chain, and each thing has two words, one
more usual in either style. The source tells the fact with probability κ and what is popular with that verb otherwise,
thing by thing. Unlike there, an animal has the same things with every verb: a small model learns forty facts fast,
not 320.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from toyld.tiny.language import Language, Sizes, draw

__all__ = ["Fable", "fable"]

Ints = NDArray[np.int64]
_WORDS = {
    "animals": """ant badger bat bear beaver camel cat cow crab crane crow deer dog dove duck eagle fox frog goose hare
        hawk hen horse lark lion lynx mole mouse otter owl pig raven seal sheep snail spider swan toad wolf wren""",
    "verbs": "buy carry hide make mend paint sell want",
    "links": "always also even maybe mostly often",
    "things": """blades/knives books/scrolls boots/shoes bread/rolls candles/lamps carts/wagons chairs/stools
        clothes/coats coins/pennies flowers/roses fruit/apples jars/pots""",
}
ANIMALS, VERBS, LINKS, THINGS = (tuple(words.split()) for words in _WORDS.values())
SPOKEN, OWNED = 71, 72  # streams of random numbers


@dataclass(frozen=True)
class Fable:
    """One language of `toyld.tiny`, the words of its tokens, and its prompts by number.

    >>> told = fable(seed=0, knowledge=0.5)
    >>> told.prompts, told.question(0)
    (320, 'What does the ant buy?')
    >>> text = told.answers([0, 319])[1]
    >>> told.heard(told.say(text)) == tuple(x for x in told.language.concepts(text).tolist() if x >= 0)
    True
    """

    language: Language

    @property
    def prompts(self) -> int:
        """Questions that can be asked."""
        return self.language.sizes.prompts

    def question(self, prompt: int, /) -> str:
        """A prompt by number, in words."""
        verb, animal = divmod(prompt, self.language.sizes.entities)
        return f"What does the {ANIMALS[animal]} {VERBS[verb]}?"

    def say(self, text: Ints, /) -> str:
        """An answer's tokens in words, a space before them, its end told by the full stop."""
        words, synonyms = [], self.language.sizes.synonyms
        for token in (int(t) for t in text if t > 0):
            if token < self.language.words:
                words.append(f" {LINKS[token - self.language.functions]}")
            else:
                thing, way = divmod(token - self.language.words, synonyms)
                words.append(f" {THINGS[thing].split('/')[way]},")
        return "".join(words).removesuffix(",") + "."

    def heard(self, answer: str, /) -> tuple[int, ...] | None:
        """The kinds of things that an answer names, in order; None if it is none of the language's sentences."""
        if not re.fullmatch(r"( [a-z]+ [a-z]+,)+ [a-z]+ [a-z]+\.", answer):
            return None
        words = re.findall("[a-z]+", answer)
        known = {way: thing for thing, ways in enumerate(THINGS) for way in ways.split("/")}
        sizes = self.language.sizes
        good = all(word in LINKS for word in words[::2]) and all(word in known for word in words[1::2])
        return tuple(known[word] for word in words[1::2]) if good and len(words) <= 2 * sizes.most else None

    def true(self, prompt: int, answer: str, /) -> bool:
        """Whether an answer is a sentence of the language that tells its prompt's fact, or the beginning of it."""
        said = self.heard(answer)
        return said is not None and said == tuple(self.language.facts[0, prompt][: len(said)].tolist())

    def answers(self, prompts: object, /, *, knowledge: float | None = None, stream: int = 0) -> Ints:
        """An answer of the source to each prompt by number, as rows of tokens; knowledge 1 = the truth."""
        rng = np.random.default_rng([*self.language.seeds, SPOKEN, stream])
        return self.language.sample(np.asarray(prompts)[None], [rng], knowledge=knowledge)[0]

    def surprise(self, prompts: object, texts: Ints, /) -> float:
        """Mean −log P of a prompt, all alike, and its answer under the source, nats: what no model can go below."""
        told = self.language.score(np.asarray(prompts)[None], texts[None])
        return float(np.log(self.prompts) - told.mean())


def fable(*, seed: int, knowledge: float, popular: float = 0.5) -> Fable:
    """The language of a seed: 8 verbs × 40 animals, 12 kinds of things, two words each; nothing is misspoken.

    knowledge: κ, how often the source tells the fact. popular: small = the animals do the same few things.
    """
    sizes = Sizes(
        relations=len(VERBS), entities=len(ANIMALS), function_words=len(LINKS), concepts=len(THINGS),
        knowledge=knowledge, concentration=popular, slip=0.0,
    )  # fmt: skip
    language = draw(sizes, [seed])
    own = np.random.default_rng([seed, OWNED]).integers(sizes.concepts, size=(sizes.entities, sizes.most))
    return Fable(replace(language, facts=np.tile(own, (1, sizes.relations, 1))))
