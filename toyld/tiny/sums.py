"""A made-up arithmetic whose problems have worked solutions, many of them right: what a model can copy or understand.

A problem is a frame (how it is worded), a kind with its factor c, and k numbers a_1 … a_k below m; its answer is
c·(a_1 + … + a_k) mod m. A worked solution takes the numbers one by one, in any order i_1, i_2, …:

    prompt      frame  kind  a_1 … a_k
    solution    a_{i1}  a_{i2} s_2  a_{i3} s_3 … a_{ik} s_k  END         s_j = c·(a_{i1} + … + a_{ij}) mod m

k! orders of different numbers are as many right solutions, of 2k tokens. A model that understands without copying one
of them has perplexity (k!)^{1/2k} along it (k = 4: 1.49); one that copies it has 1. An answer is right if the token
before END is the problem's answer, however it was found.

What a model is pretrained on has slips (s_j replaced by any number, with probability `slip`), numbers and kinds of
unequal frequency; what it is finetuned on and tested with has none, and all kinds and numbers alike: some of it the
model knows beforehand, some not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.tiny.language import PAD

__all__ = ["REWORDINGS", "Rewording", "SumSizes", "Sums"]

Ints = NDArray[np.int64]
Rewording = Literal["reordered", "reframed"]
REWORDINGS: tuple[Rewording, ...] = get_args(Rewording)
CORPUS, HELD = 61, 62  # streams of random numbers
SHARE = 0.2  # of problems that are held out
ROUNDS = 1000  # of drawing; so many without enough mean that there are none


@dataclass(frozen=True)
class SumSizes:
    """How large an arithmetic is: m = numbers, k = terms, frames, a factor a kind; and what its corpus is like.

    shares: how frequent the kinds are in the corpus. skew: number a is as frequent there as (a + 1)^−skew.

    >>> SumSizes().classes, SumSizes().asked, SumSizes().length, SumSizes().places
    (16, 6, 8, 13)
    """

    numbers: int = 9
    terms: int = 4
    frames: int = 4
    factors: tuple[int, ...] = (1, 2)
    shares: tuple[float, ...] = (0.85, 0.15)
    slip: float = 0.2
    skew: float = 0.5

    def __post_init__(self) -> None:
        if min(self.terms, self.numbers) < 2 or self.frames < 1:
            msg = f"expected terms and numbers ≥ 2 and frames ≥ 1, got {self.terms}, {self.numbers} and {self.frames}"
            raise BadInput(f"{msg}; correct them")
        if not self.factors or len(self.shares) != len(self.factors) or abs(sum(self.shares) - 1.0) > 1e-9:
            raise BadInput(f"expected a share for each factor, 1 in all, got {self.shares} for {self.factors}")
        if any(np.gcd(factor, self.numbers) != 1 for factor in self.factors):
            msg = f"factors: expected some prime to {self.numbers}, got {self.factors}"
            raise BadInput(f"{msg}; with others several sums have one answer")
        if not 0 <= self.slip <= 1 or not np.isfinite(self.skew) or min(self.shares) < 0:
            msg = (
                f"slip and shares in [0, 1] and a finite skew expected, got {self.slip}, {self.shares} and {self.skew}"
            )
            raise BadInput(f"{msg}; correct them")

    @property
    def classes(self) -> int:
        """Tokens: END, numbers, frames, kinds."""
        return 1 + self.numbers + self.frames + len(self.factors)

    @property
    def asked(self) -> int:
        """Tokens of a prompt."""
        return 2 + self.terms

    @property
    def length(self) -> int:
        """Tokens of a solution, END included."""
        return 2 * self.terms

    @property
    def places(self) -> int:
        """Positions that a model needs: prompt and solution but its last token."""
        return self.asked + self.length - 1


@dataclass(frozen=True)
class Sums:
    """The arithmetic of some seeds: one for all, of whom each draws problems of its own.

    Problems go by number, (frame, kind, a_1 … a_k) read as digits, so that this stands wherever `pretrain` and
    `toyld.tiny.decoding.answers` want a source.
    """

    sizes: SumSizes
    seeds: tuple[int, ...]

    def number(self, frame: Ints, kind: Ints, terms: Ints, /) -> Ints:
        """Problems by number (…) from frames and kinds (…) and terms (…, k)."""
        out = np.asarray(frame) * len(self.sizes.factors) + kind
        for i in range(self.sizes.terms):
            out = out * self.sizes.numbers + terms[..., i]
        return out

    def parts(self, prompt: Ints, /) -> tuple[Ints, Ints, Ints]:
        """Frames and kinds (…), terms (…, k) of problems by number: the inverse of `number`.

        >>> sums = Sums(SumSizes(), (0,))
        >>> [part.tolist() for part in sums.parts(sums.number(np.array(3), np.array(1), np.array([8, 0, 2, 7])))]
        [3, 1, [8, 0, 2, 7]]
        """
        rest, terms = np.asarray(prompt), []
        for _ in range(self.sizes.terms):
            rest, digit = np.divmod(rest, self.sizes.numbers)
            terms.append(digit)
        frame, kind = np.divmod(rest, len(self.sizes.factors))
        return frame, kind, np.stack(terms[::-1], -1)

    def ask(self, prompt: Ints, /) -> Ints:
        """Prompts by number → token rows (…, 2 + k)."""
        frame, kind, terms = self.parts(prompt)
        first = 1 + self.sizes.numbers
        return np.concatenate([np.stack([first + frame, first + self.sizes.frames + kind], -1), 1 + terms], -1)

    def solve(self, prompt: Ints, rng: np.random.Generator, /, *, slip: float = 0.0) -> Ints:
        """A worked solution (…, 2k) to each problem, its order drawn; `slip`: how often a result is any number instead.

        >>> sums = Sums(SumSizes(), (0,))
        >>> problem = sums.number(np.array(0), np.array(1), np.array([8, 0, 2, 7]))   # 2·(8 + 0 + 2 + 7) = 34 = 7 mod 9
        >>> (sums.solve(problem, np.random.default_rng(1)) - 1).tolist()              # tokens are numbers + 1, END 0
        [8, 0, 7, 2, 2, 7, 7, -1]
        """
        _, kind, terms = self.parts(prompt)
        m, factor = self.sizes.numbers, np.asarray(self.sizes.factors)[kind]
        taken = rng.permuted(terms, axis=-1)
        total, out = factor * taken[..., 0], [taken[..., 0]]
        for i in range(1, self.sizes.terms):
            total = (total + factor * taken[..., i]) % m
            wrong = rng.random(total.shape) < slip
            total = np.where(wrong, rng.integers(m, size=total.shape), total)
            out += [taken[..., i], total]
        end = np.zeros((*total.shape, 1), np.int64)
        return np.concatenate([1 + np.stack(out, -1), end], -1)

    def right(self, prompt: Ints, text: Ints, /) -> NDArray[np.bool_]:
        """Whether the token before the END of each text (…, T) is the answer to its problem (…)."""
        _, kind, terms = self.parts(prompt)
        want = 1 + np.asarray(self.sizes.factors)[kind] * terms.sum(-1) % self.sizes.numbers
        end = (text == 0).argmax(-1)
        last = np.take_along_axis(text, np.maximum(end - 1, 0)[..., None], -1)[..., 0]
        return (end > 0) & (last == want)

    def held(self, seed: int, prompt: Ints, /) -> NDArray[np.bool_]:
        """Whether problems (…) are kept from the finetuning of this seed, a fifth of all, however worded."""
        _, kind, terms = self.parts(prompt)
        every = len(self.sizes.factors) * self.sizes.numbers**self.sizes.terms
        drawn = np.random.default_rng([seed, HELD]).random(every) < SHARE
        return drawn[self.number(np.zeros_like(kind), kind, np.sort(terms, -1))]

    def problems(self, seed: int, rng: np.random.Generator, count: int, /, *, held: bool = False) -> Ints:
        """`count` problems of the first frame, all kinds and numbers alike, from those to train on or those held out.

        >>> sums, rng = Sums(SumSizes(), (0,)), np.random.default_rng(0)
        >>> [bool((sums.held(0, sums.problems(0, rng, 100, held=held)) == held).all()) for held in (False, True)]
        [True, True]
        """
        out = np.zeros(0, np.int64)
        for _ in range(ROUNDS):
            if len(out) >= count:
                return out[:count]
            kind = rng.integers(len(self.sizes.factors), size=2 * count)
            drawn = self.number(np.zeros_like(kind), kind, self._terms(rng, 2 * count, 0.0))
            out = np.concatenate([out, drawn[self.held(seed, drawn) == held]])
        raise BadInput(f"problems: expected {count} of this split, got {len(out)}; make an arithmetic of more numbers")

    def _terms(self, rng: np.random.Generator, count: int, skew: float) -> Ints:
        """(count, k) numbers in proportion to (a + 1)^−skew, not all equal: the last one is drawn until it differs."""
        weight = (1.0 + np.arange(self.sizes.numbers)) ** -skew
        terms = rng.choice(self.sizes.numbers, size=(count, self.sizes.terms), p=weight / weight.sum())
        while (same := (terms == terms[:, :1]).all(-1)).any():
            terms[same, -1] = rng.choice(self.sizes.numbers, size=int(same.sum()), p=weight / weight.sum())
        return terms

    def batch(self, seeds: Sequence[int], update: int, size: int, /) -> tuple[Ints, Ints]:
        """(inputs, labels) (S, size, places) of one update of pretraining, drawn from (seed, update) alone."""
        rows = []
        for seed in seeds:
            rng = np.random.default_rng([seed, update, CORPUS])
            kind = rng.choice(len(self.sizes.factors), size=size, p=self.sizes.shares)
            frame = rng.integers(self.sizes.frames, size=size)
            prompt = self.number(frame, kind, self._terms(rng, size, self.sizes.skew))
            rows.append(np.concatenate([self.ask(prompt), self.solve(prompt, rng, slip=self.sizes.slip)], -1))
        text = np.stack(rows)
        labels = text[..., 1:].copy()
        labels[..., : self.sizes.asked - 1] = PAD
        return text[..., :-1], labels

    def reworded(self, prompt: Ints, how: Rewording, rng: np.random.Generator, /) -> Ints:
        """The same problems put otherwise: their terms in another order, or in a frame that training does not use.

        >>> sums, rng = Sums(SumSizes(), (0,)), np.random.default_rng(0)
        >>> first = sums.problems(0, rng, 100)
        >>> both = [sums.reworded(first, how, rng) for how in REWORDINGS]
        >>> [bool((other != first).all()) for other in both], [bool(sums.same(first, other).all()) for other in both]
        ([True, True], [True, True])
        """
        frame, kind, terms = self.parts(prompt)
        if how == "reframed":
            if self.sizes.frames < 2:
                raise BadInput("reframed: expected frames ≥ 2, got 1; make an arithmetic with more")
            return self.number(rng.integers(1, self.sizes.frames, size=frame.shape), kind, terms)
        turned = np.stack([np.roll(terms, turn, -1) for turn in range(1, self.sizes.terms)])
        lot = rng.random(turned.shape[:-1]) * (turned != terms).any(-1)  # 0 where a turn changes nothing
        taken = np.take_along_axis(turned, lot.argmax(0)[None, ..., None], 0)[0]
        return self.number(frame, kind, taken)

    def same(self, first: Ints, second: Ints, /) -> NDArray[np.bool_]:
        """Whether two problems ask for the same: one kind, the same numbers in any order."""
        (_, kind, terms), (_, other, theirs) = self.parts(first), self.parts(second)
        return (kind == other) & (np.sort(terms, -1) == np.sort(theirs, -1)).all(-1)

    def relatives(self, seed: int, prompt: Ints, rng: np.random.Generator, /) -> Ints:
        """A problem to train on for each (n,): frame and kind kept, half of its numbers drawn anew, in any order.

        By chance they may be the same again.

        >>> sums, rng = Sums(SumSizes(), (0,)), np.random.default_rng(0)
        >>> first = sums.problems(0, rng, 100)
        >>> other = sums.relatives(0, first, rng)
        >>> bool(sums.held(0, other).any()), bool((sums.parts(first)[1] == sums.parts(other)[1]).all())
        (False, True)
        """
        frame, kind, terms = self.parts(prompt)
        out = np.array(prompt)
        left = np.arange(len(out))
        for _ in range(ROUNDS):
            if not len(left):
                return out
            new = rng.permuted(terms[left], axis=-1)
            some = max(1, self.sizes.terms // 2)
            new[:, :some] = rng.integers(self.sizes.numbers, size=(len(left), some))
            out[left] = self.number(frame[left], kind[left], rng.permuted(new, axis=-1))
            left = left[self.held(seed, out[left]) | (new == new[:, :1]).all(-1)]
        raise BadInput(f"relatives: expected one of each lesson, got none of {len(left)}; make more numbers")
