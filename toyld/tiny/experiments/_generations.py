"""What models say when asked, judged by the language itself: which of two is right, which is likelier under the truth.

Answers are greedy or sampled at temperature 1, to the prompts that were trained on and to held-out ones. No judge: an
answer is right if `measures.right` says so, and likelier if its log-probability under the source with κ = 1 is higher.

How often a sampled answer is right is read without the noise of whole samples. An answer is led along its facts: where
a function word is due, π gives one of them, where a concept is due, one of the words for the true one; what π gives to
these words multiplies up, and at each END it adds to the chance. Its mean over led answers is the probability that an
answer of temperature 1 is right (Rao and Blackwell: each led answer stands for all that part from it by a wrong word).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.tiny.decoding import Decoder, answers
from toyld.tiny.language import Language
from toyld.tiny.measures import divergence, entropy, repetition, right
from toyld.tiny.models import Models
from toyld.tiny.texts import Texts

__all__ = [
    "JUDGES",
    "PLACES",
    "WAYS",
    "Said",
    "Spoken",
    "Told",
    "borrowed",
    "chance",
    "columns",
    "distances",
    "speak",
    "told",
    "wins",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ASKED_AGAIN, LED, TOLD = 49, 50, 51  # streams of random numbers
PLACES = {"trained": "chosen", "heldout": "test_chosen"}  # which prompts → the kind of responses behind them
HOWS = {"greedy": 1e-9, "sampled": 1.0}  # temperature; so cold that only the most probable token is left
WAYS = tuple(f"{place}_{how}" for place in PLACES for how in HOWS)
JUDGES = ("right", "likely")
TIE = 1e-9  # nats: above the rounding of a sum of seven logarithms


@dataclass(frozen=True)
class Said:
    """K answers to each of P prompts: prompt (S, P), text (S, P, K, T), and what each judge says of them (S, P, K).

    right: 1 or 0 of a greedy answer, of sampled ones the chance of being right. likely: log-probability, κ = 1, nats.
    """

    prompt: Ints
    text: Ints
    judged: Mapping[str, Floats]

    def take(self, members: slice, /) -> Said:
        """Some members."""
        judged = {name: value[members] for name, value in self.judged.items()}
        return Said(self.prompt[members], self.text[members], judged)

    def joined(self, *others: Said) -> Said:
        """Its members and those of others, one behind another."""
        every = (self, *others)
        judged = {name: np.concatenate([one.judged[name] for one in every]) for name in self.judged}
        return Said(np.concatenate([one.prompt for one in every]), np.concatenate([one.text for one in every]), judged)

    def flat(self) -> tuple[Ints, Ints]:
        """(prompt (S, P·K), text (S, P·K, T))."""
        s, p, k, t = self.text.shape
        return np.repeat(self.prompt, k, axis=1), self.text.reshape(s, p * k, t)


Spoken = Mapping[str, Said]  # by way


def speak(
    models: Models, data: Texts, /, *, samples: Mapping[str, int], ways: Sequence[str] = WAYS, seed: int = 0
) -> dict[str, Said]:
    """Answers of each way of asking; samples: place → K of temperature 1 (one is greedy).

    Members that share a seed share their random numbers, so that they differ by what they believe alone.
    """
    out, language = {}, data.language
    for way in ways:
        place, how = way.split("_")
        prompt, k = data.prompt(PLACES[place]), 1 if how == "greedy" else samples[place]
        rows = np.repeat(prompt, k, axis=1)
        rngs = [np.random.default_rng([own, seed, ASKED_AGAIN]) for own in models.seeds]
        text = answers(models, language, rows, rngs, temperature=HOWS[how])
        shape = *prompt.shape, k
        found = right(language, rows, text) if how == "greedy" else chance(models, language, rows, seed=seed)
        judged = {"right": found, "likely": language.score(rows, text, knowledge=1.0)}
        out[way] = Said(
            prompt, text.reshape(*shape, -1), {name: value.reshape(shape) for name, value in judged.items()}
        )
    return out


def chance(models: Models, language: Language, prompt: Ints, /, *, seed: int = 0) -> Floats:
    """P(an answer at temperature 1 is right) (S, N) to prompts (S, N), each from one answer led along its facts.

    Its expectation over seeds is exact; see the module.
    """
    prompt, sizes = np.asarray(prompt), language.sizes
    s, n = prompt.shape
    rngs = [np.random.default_rng([own, seed, LED]) for own in models.seeds]
    facts = language.facts[np.arange(s)[:, None], prompt]
    reader, device = Decoder(models, n), models.flat.device
    asked = language.ask(prompt)
    reader.read(torch.from_numpy(asked[..., 0]).to(device))
    last, weight, found = asked[..., 1], np.ones((s, n)), np.zeros((s, n))
    for t in range(sizes.length):
        p = reader.read(torch.from_numpy(last).to(device)).double().softmax(-1).cpu().numpy()
        if t % 2 == 0:
            if t // 2 >= sizes.least:
                found += weight * p[..., 0]
            begin = np.full((s, n), language.functions)
            here = p[..., language.functions : language.words]
        else:
            begin = language.words + facts[..., t // 2] * sizes.synonyms
            here = np.take_along_axis(p, begin[..., None] + np.arange(sizes.synonyms), -1)
        mass = here.cumsum(-1)
        weight = weight * mass[..., -1]
        u = np.stack([rng.random(n) for rng in rngs])[..., None] * mass[..., -1:]
        last = begin + (mass < u).sum(-1).clip(max=here.shape[-1] - 1)
    return found


def columns(models: Models, data: Texts, spoken: Spoken, given: Told, /) -> dict[str, Floats]:
    """Column → (S,): what judges say of answers, what they repeat and borrow, the entropy of π along them."""
    out: dict[str, Floats] = {}
    for way, said in spoken.items():
        prompt, text = said.flat()
        out |= {f"eval_{name}_{way}": value.mean((1, 2)) for name, value in said.judged.items()}
        out[f"eval_repeats_{way}"] = repetition(text).mean(1)
        if way.startswith("trained"):
            out[f"eval_entropy_{way}"] = entropy(models, data.language, prompt, text).mean(1)
        out[f"eval_borrowed_{way}"], out[f"eval_unborrowed_{way}"] = borrowed(given, said)
    return out


def wins(one: Said, other: Said, judge: str, /) -> Floats:
    """Share (S,) of pairs of answers to the same prompt that `one` wins by a judge, ties half.

    By *right* that is ½ + ½(P(one right) − P(other right)), for both are right or wrong on their own. By *likely*
    sampled answers are paired with all but the one made of the same random numbers.
    """
    a, b = one.judged[judge], other.judged[judge]
    if judge == "right":
        return np.asarray(0.5 + (a.mean((1, 2)) - b.mean((1, 2))) / 2.0)
    gap = a[..., :, None] - b[..., None, :]
    each = np.where(np.abs(gap) < TIE, 0.5, gap > 0.0)
    k = a.shape[-1]
    keep = ~np.eye(k, dtype=bool) if k > 1 else np.ones((1, 1), bool)
    return np.asarray(each[..., keep].mean((1, 2)))


# --- answers of other questions (S3) ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """An answer to every prompt of a language: what it says (S, Q, most), and which were taught (S, Q).

    The others were told in the same way and never trained on; those that say what a taught one says count nowhere.
    """

    language: Language
    says: Ints
    taught: NDArray[np.bool_]
    counted: NDArray[np.bool_]

    def take(self, members: Sequence[int], /) -> Told:
        """Some members."""
        at = np.asarray(members)
        return Told(self.language.take(at), self.says[at], self.taught[at], self.counted[at])


def told(data: Texts, /) -> Told:
    """What was taught, and one true answer to each other prompt."""
    language, asked = data.language, data.prompts["chosen"]
    every = np.broadcast_to(np.arange(language.sizes.prompts), (len(asked), language.sizes.prompts))
    text = language.sample(every, [np.random.default_rng([seed, TOLD]) for seed in language.seeds], knowledge=1.0)
    says = language.concepts(text)
    taught = np.zeros(every.shape, bool)
    np.put_along_axis(taught, asked, True, axis=1)
    np.put_along_axis(says, asked[..., None], language.concepts(data.texts["chosen"]), axis=1)
    same = (says[:, :, None] == says[:, None]).all(-1)
    known = (same & taught[:, None, :]).any(-1)
    return Told(language, says, taught, taught | ~known)


def borrowed(given: Told, said: Said, /) -> tuple[Floats, Floats]:
    """(taught, untaught) (S,): answers of other questions that a generation equals, in numbers a generation.

    For each prompt A and relation r: in how many of the n answers to other prompts of r that were taught and are wrong
    for A the generation says the same concepts; and n times the mean over those of r that were not taught. So the
    second is what as many answers of the same relations would give that nobody taught. A relation with no answer of
    either sort is left out of both.
    """
    language = given.language
    s, p = said.prompt.shape
    seed = np.arange(s)[:, None]
    truth = language.facts[seed, said.prompt][:, :, None]  # (S, P, 1, most)
    there = given.says[:, None] >= 0
    wrong = ((given.says[:, None] != truth) & there).any(-1)  # (S, P, Q)
    hit = (language.concepts(said.text)[:, :, :, None] == given.says[:, None, None]).all(-1).mean(2)  # (S, P, Q)
    relation = np.arange(language.sizes.prompts) // language.sizes.entities
    mine, theirs = np.zeros((s, p)), np.zeros((s, p))
    for r in range(language.sizes.relations):
        here = wrong & given.counted[:, None] & (relation == r)
        yes, no = here & given.taught[:, None], here & ~given.taught[:, None]
        n, m = yes.sum(-1), no.sum(-1)
        both = (n > 0) & (m > 0)
        mine += np.where(both, (hit * yes).sum(-1), 0.0)
        theirs += np.where(both, n * (hit * no).sum(-1) / np.maximum(m, 1), 0.0)
    return mine.mean(1), theirs.mean(1)


# --- distance from the language ---------------------------------------------------------------------------------------


def distances(models: Models, data: Texts, texts: Mapping[str, Ints], /) -> dict[str, Floats]:
    """Column → (S,): exact KL(language ‖ π) of a response, nats; texts: of the language, by {truth,source}_PLACE."""
    out = {}
    for name, text in texts.items():
        knows, place = name.split("_")
        prompt = data.prompt(PLACES[place])
        knowledge = 1.0 if knows == "truth" else None
        out[f"eval_kl_{name}"] = divergence(models, data.language, prompt, text, knowledge=knowledge).mean(1)
    return out
