"""Similar or improbable: what of a rejected response y⁻ harms untrained ones? Interventions on (Z, S) (K8).

After SFT to a known point the policy is held: its logits Z are where every run starts, whatever kernel the run has. The
contexts that y⁻ alone visits (its *own*: behind the first token in which it differs from y⁺) are then changed in one
factor at a time, and DPO runs to one margin:

- *level*: y⁻'s labels get log π = −level at its own contexts, the other tokens keep their proportions;
- *power*: those proportions are raised to a power (0 = all equally likely, 3 = sharp) while π(y⁻) stays;
- *coupling* ρ: S[c, c'] between an own and any other context is multiplied by ρ. That is S ∘ M with M = ρ 11ᵀ +
  (1 − ρ) 1[same side], a Gram matrix, so it is PSD (Schur's product theorem), with the diagonal of S;
- *anisotropy* a: a/(1 − a) of the diagonal is added to all of S, so that a of every diagonal entry is common to all;
- *bag*, *order*: the labels at the own contexts become y⁺'s tokens or another sample's, in order or shuffled.

In the design *sampled* nothing is intervened: y⁻ is what the policy says at a temperature, or y⁺ shuffled, so that
probability, coupling and labels move together; *pairs* ranks its single pairs by what each has of the three.

A run's learning rate gives the margin the same rise in the first update, `Size.pace`, in every world and condition, so
that all of them are integrated equally finely. Each table holds the exact rates at its first update, eval_rate_*, in
nats per unit of learning rate (K3). Sizes, levels and margin were fixed on other seeds than those of the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from toyld import objectives
from toyld.checked import BadInput
from toyld.contexts import languages
from toyld.contexts.engine import State, logits, train
from toyld.contexts.kernels import Gram, Mixture
from toyld.contexts.policy import respond, with_texts
from toyld.contexts.predict import couplings
from toyld.contexts.world import Responses, World
from toyld.trajectory import trajectory

__all__ = [
    "LANGUAGES",
    "MARGIN",
    "SIZES",
    "Size",
    "Start",
    "coupled",
    "factorial",
    "moves",
    "own",
    "prepare",
    "relabelled",
    "run",
    "shuffled",
    "tables",
    "unlikely",
]

KINDS = ("chosen", "rejected", "test_chosen")
LANGUAGES: Mapping[str, Callable[..., World]] = {"facts": languages.facts, "markov": languages.markov}
# The house kernel without its common component; in its place, something else that contexts may share.
LOCAL: Mapping[str, float] = {"identity": 0.5, "prompt": 0.2, "token": 0.2}
PREFIX: Mapping[str, float] = {"identity": 0.5, "prefix": 0.2, "position": 0.2}
HALF_KNOWN = float(np.log(2.0))  # nats a token at which SFT ends: as likely as not, so there is room to both sides
MARGIN = 2.0  # nats a token at which runs are compared: about where the pilot on a small language model was read
MIDDLE = 4.0  # level at which peak and bag are varied: a token in 55


@dataclass(frozen=True)
class Size:
    """How much is run. Shares: of the common component, by design; `variants`: of the factorial, beside the plain one.

    pace: nats by which the margin rises in the first update; every: updates between evaluations; alone: whether single
    pairs are trained to the margin, too.
    """

    prompts: int
    shares: tuple[float, ...] = (0.0, 0.2, 0.5)
    couplings: tuple[float, ...] = (0.0, 1.0)
    levels: tuple[float, ...] = (1.3, 12.7)
    powers: tuple[float, ...] = (0.0, 1.0)
    peak_shares: tuple[float, ...] = (0.2,)
    orders: tuple[str, ...] = ("ordered",)
    bag_shares: tuple[float, ...] = (0.2, 0.5)
    temperatures: tuple[float, ...] = (1.0, 16.0)
    sampled_shares: tuple[float, ...] = (0.5,)
    variants: tuple[str, ...] = ()
    pace: float = 2.0
    steps: int = 14
    every: int = 2
    alone: bool = False


# Levels: a token in four, as a policy's own words are, and one in 300,000, a uniform guess from the largest
# vocabularies. Shares: none; about the mean cosine of the hidden states of a small language model (.24); a strong one.
ALL = (0.0, 0.2, 0.5)
SIZES = {
    "smoke": Size(8),
    "paper": Size(
        12, ALL, (0.0, 0.25, 0.5, 1.0), (0.3, 1.3, 4.0, 8.0, 12.7), (0.0, 1.0, 3.0), ALL, ("ordered", "shuffled"), ALL,
        (1.0, 2.0, 4.0, 16.0), ALL, ("prefix kernel", "longer SFT", "half the rate"), pace=1.0, steps=40, alone=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Worlds before SFT, the policy after it, and all texts of their language."""

    before: World
    state: State
    texts: Mapping[str, np.ndarray]

    @property
    def world(self) -> World:
        """The worlds with the policy's Z at every context."""
        return replace(self.before, logits=logits(self.before, self.state))


def prepare(
    language: str, seeds: Sequence[int], /, *, prompts: int = 12, length: int = 6, known: float = HALF_KNOWN
) -> Start:
    """Worlds of three kinds of responses, and the policy after SFT to `known` nats per token of chosen.

    >>> start = prepare("markov", [1000], prompts=3, length=3)
    >>> sorted(start.before.responses), start.texts["chosen"].shape
    (['chosen', 'rejected', 'test_chosen'], (1, 3, 3))
    """
    spoken = LANGUAGES[language](seeds=seeds, prompts=prompts, length=length)
    if spoken.language is None:
        msg = f"expected a world that knows its language, got none from {language}"
        raise BadInput(msg)
    texts = spoken.language.texts
    before = replace(spoken.language, texts={kind: texts[kind] for kind in KINDS}).world(seeds, spoken.attrs)
    steps, lr = 150 if known >= HALF_KNOWN else 600, prompts / 3.0  # the loss is a mean over prompts
    done = train(before, objectives.get("sft"), lr=lr, steps=steps, until=known * length, at=(), kinds=KINDS)
    return Start(before, done.state, texts)


def own(world: World, /) -> np.ndarray:
    """Which tokens of rejected (B, P, T) stand at a context that nothing else visits."""
    count = np.zeros(world.size[:2], int)
    here = np.arange(len(count))[:, None, None]
    for r in world.responses.values():
        np.add.at(count, (np.broadcast_to(here, r.context.shape)[r.mask], r.context[r.mask]), 1)
    r = world.responses["rejected"]
    return (count[here, r.context] == 1) & r.mask


def _log_norm(z: np.ndarray) -> np.ndarray:
    top = z.max(-1, keepdims=True)
    return top + np.log(np.exp(z - top).sum(-1, keepdims=True))


def unlikely(world: World, at: np.ndarray, level: float, /, *, power: float = 1.0) -> World:
    """log π = −level for the tokens `at` of rejected, the other classes ∝ their probabilities to a power."""
    r = world.responses["rejected"]
    b, p, t = np.nonzero(at)
    place, label, row = (b, r.context[b, p, t]), r.token[b, p, t], np.arange(len(b))
    others = power * world.logits[place]
    others[row, label] = -np.inf
    fresh = others - _log_norm(others) + np.log(-np.expm1(-level))
    fresh[row, label] = -level
    z = world.logits.copy()
    z[place] = fresh
    return replace(world, logits=z)


def coupled(world: World, at: np.ndarray, rho: float, share: float, /, *, local: Mapping[str, float] = LOCAL) -> World:
    """S = local kernel + a common component, `share` of the diagonal; ρ times it between `at` and all other contexts.

    Raises BadInput for a world whose kernel is not a mixture.
    """
    if not isinstance(world.kernel, Mixture):
        msg = f"expected a world with a mixture kernel, got {type(world.kernel).__name__}; couple it once"
        raise BadInput(msg)
    every = slice(0, world.size[1])
    weights = {**local, "common": sum(local.values()) * share / (1.0 - share)}
    s = replace(world.kernel, weights=weights, _cache={}).block(every, every)
    side = np.zeros(world.size[:2], bool)
    b, p, t = np.nonzero(at)
    side[b, world.responses["rejected"].context[b, p, t]] = True
    return replace(world, kernel=Gram(s * np.where(side[:, :, None] == side[:, None, :], 1.0, rho)))


def relabelled(world: World, at: np.ndarray, labels: np.ndarray, /) -> World:
    """Other labels (B, P, T) for rejected at the same contexts, where `at`."""
    r = world.responses["rejected"]
    fresh = Responses(r.context, np.where(at, labels, r.token), r.mask)
    return replace(world, responses={**world.responses, "rejected": fresh})


def shuffled(at: np.ndarray, labels: np.ndarray, seeds: Sequence[int], /) -> np.ndarray:
    """The labels (B, P, T) where `at`, in random order within each response."""
    out = labels.copy()
    for b, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 41])
        for p in range(out.shape[1]):
            (i,) = np.nonzero(at[b, p])
            out[b, p, i] = labels[b, p, rng.permutation(i)]
    return out


def moves(world: World, /) -> dict[str, np.ndarray]:
    """How fast pair j alone moves response i of every kind at the start of DPO, dℓ_i/dη, (B, P, P) = [b, i, j].

    Σ_c Σ_c' S_cc' ⟨e_{y_c} − π_c, ±β/2 (e_{y_c'} − π_c')⟩ over the contexts of i and of both sides of j (K3).

    >>> found = moves(prepare("markov", [1000], prompts=3, length=3).world)
    >>> found["test_chosen"].shape, bool((np.diagonal((found["chosen"] - found["rejected"])[0]) > 0).all())
    ((1, 3, 3), True)
    """
    half = objectives.get("dpo").beta / 2.0
    return {k: half * (couplings(world, None, k, "chosen") - couplings(world, None, k, "rejected")) for k in KINDS}


def run(world: World, arm: str, size: Size, /, **attrs: Any) -> xr.Dataset:
    """DPO on all pairs at the size's pace, as a table, with the rates of its first update."""
    first = {kind: rate.sum(2).mean(1) / rate.shape[2] for kind, rate in moves(world).items()}
    rise = first["chosen"] - first["rejected"]
    at = range(0, size.steps + 1, size.every)
    done = train(world, objectives.get("dpo"), lr=size.pace / rise, steps=size.steps, rejected="rejected", at=at)
    target = MARGIN * world.responses["chosen"].token.shape[-1]
    ds = done.table("dpo", arm, experiment="similarity", margin=target, **attrs)
    later = np.full((len(rise), ds.sizes["step"] - 1), np.nan)
    for kind, rate in {**first, "margin": rise}.items():
        ds[f"eval_rate_{kind}"] = (("seed", "step"), np.concatenate([rate[:, None], later], 1))
    return ds


def factorial(start: Start, size: Size, *, variant: str = "plain") -> Iterator[xr.Dataset]:
    """Probability × coupling × common component, everything else held: a table a cell."""
    local = PREFIX if variant == "prefix kernel" else LOCAL
    world = start.world
    at = own(world)
    for share in size.shares:
        for rho in size.couplings:
            for level in size.levels:
                one = coupled(unlikely(world, at, level), at, rho, share, local=local)
                levels = {"anisotropy": share, "coupling": rho, "level": level, "variant": variant}
                yield run(one, f"coupling {rho:g} level {level:g}", size, design="factorial", **levels)


def _others(start: Start, size: Size) -> Iterator[xr.Dataset]:
    """Peak of the beliefs around y⁻, and whose tokens its labels are, at fixed probability and full coupling."""
    world = start.world
    at = own(world)
    for share in size.peak_shares:
        for power in size.powers:
            one = coupled(unlikely(world, at, MIDDLE, power=power), at, 1.0, share)
            yield run(one, f"power {power:g}", size, design="peak", anisotropy=share, level=MIDDLE, power=power)
    for share in size.bag_shares:
        for bag, kind in (("own", "chosen"), ("other", "chosen_initial")):
            for order in size.orders:
                text = start.texts[kind]
                labels = text if order == "ordered" else shuffled(at, text, world.seeds)
                one = coupled(unlikely(relabelled(world, at, labels), at, MIDDLE), at, 1.0, share)
                levels = {"anisotropy": share, "level": MIDDLE, "bag": bag, "order": order}
                yield run(one, f"{bag} bag {order}", size, design="bag", **levels)


def _sampled(start: Start, size: Size, language: str) -> Iterator[xr.Dataset]:
    """Rejected responses as they come: what the policy says at a temperature, or y⁺ with its tokens shuffled."""
    said = {f"temperature {t:g}": respond(start.before, start.state, seed=3, temperature=t) for t in size.temperatures}
    found: dict[float, list[dict[str, np.ndarray]]] = {share: [] for share in size.sampled_shares}
    for arm, text in {**said, "permutation": start.texts["random_permute"]}.items():
        world, state = with_texts(start.before, start.state, {"rejected": text})
        world = replace(world, logits=logits(world, state))
        nowhere = np.zeros(text.shape, bool)
        for share, pairs in found.items():
            one = coupled(world, nowhere, 1.0, share)
            yield run(one, arm, size, design="sampled", anisotropy=share, text=arm)
            if arm in said:
                pairs.append(_pairs(one, size))
    for share, each in found.items():
        whole = {name: np.concatenate([one[name] for one in each], 1) for name in each[0]}
        yield _ranked(whole, start.before.seeds, {"language": language, "anisotropy": share})


def _pairs(world: World, size: Size) -> dict[str, np.ndarray]:
    """By pair (B, P): what y⁻ has of each factor, and by how much test responses fall per nat of the pair's own margin.

    logp: mean log π a token; kernel: mean S between the contexts of y⁻ and of the test responses; label: the same over
    equal labels only. A pair whose two responses are alike has no margin: NaN.
    """
    r, test = world.responses["rejected"], world.responses["test_chosen"]
    here = np.arange(len(r.context))[:, None, None]
    s = world.kernel.block(slice(0, world.size[1]), slice(0, world.size[1]))
    near = s[here[..., None], r.context[..., None], test.context.reshape(len(s), 1, 1, -1)]
    same = r.token[..., None] == test.token.reshape(len(s), 1, 1, -1)
    logp = (world.logits - _log_norm(world.logits))[here, r.context, r.token].mean(-1)
    out = {"logp": logp, "kernel": near.mean((2, 3)), "label": (near * same).mean((2, 3))}
    found = moves(world)
    differ = (world.responses["chosen"].token != r.token).any(-1)
    rise = np.where(differ, np.diagonal(found["chosen"] - found["rejected"], axis1=1, axis2=2), np.nan)
    out["first"] = -found["test_chosen"].mean(1) / rise
    if size.alone:
        lr = np.where(differ, size.pace / rise, 0.0)
        out["margin"] = np.stack([_alone(world, p, lr[:, p], size) for p in range(lr.shape[1])], 1)
    return out


def _alone(world: World, p: int, lr: np.ndarray, size: Size) -> np.ndarray:
    """Fall of the mean test response (B,) where the margin of pair p, trained alone, first reaches the target."""
    at, order = range(0, size.steps + 1, size.every), np.full((size.steps, 1), p)
    done = train(world, objectives.get("dpo"), lr=lr, steps=size.steps, rejected="rejected", at=at, order=order)
    gap = (done.value("logp", "chosen") - done.value("logp", "rejected"))[:, :, p]
    rising = np.maximum.accumulate(gap - gap[0], axis=0)
    test = done.value("logp", "test_chosen").mean(-1)
    target = MARGIN * world.responses["chosen"].token.shape[-1]
    there = rising[-1] >= target
    fall = [test[0, b] - np.interp(target, rising[:, b], test[:, b]) for b in range(len(lr))]
    return np.where(there, fall, np.nan)


def _ranked(pairs: Mapping[str, np.ndarray], seeds: Sequence[int], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Spearman's correlation of the falls with each factor by seed: plain, and given the two other factors."""
    factors = ("logp", "kernel", "label")
    values: dict[str, np.ndarray] = {}
    for fall in ("first", "margin"):
        if fall not in pairs:
            continue
        known = np.isfinite(pairs[fall])
        values[f"eval_{fall}_pairs"] = known.sum(1, keepdims=True)
        both = np.stack([
            np.corrcoef([_rank(pairs[name][b, known[b]]) for name in (fall, *factors)]) for b in range(len(seeds))
        ])  # fmt: skip
        inverse = np.linalg.inv(both)
        for i, factor in enumerate(factors, 1):
            values[f"eval_{fall}_{factor}"] = both[:, 0, i, None]
            given = -inverse[:, 0, i] / np.sqrt(inverse[:, 0, 0] * inverse[:, i, i])
            values[f"eval_{fall}_{factor}_given_rest"] = given[:, None]
    attrs = {"experiment": "similarity", "design": "pairs", **attrs}
    return trajectory(
        values,
        step=[0],
        probe=["test_chosen"],
        seed=list(seeds),
        world="contexts",
        stage="first update",
        arm="pairs",
        attrs=attrs,
    )


def _rank(x: np.ndarray) -> np.ndarray:
    """Ranks, ties at their mean."""
    _, inverse, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[inverse]


def tables(
    seeds: Sequence[int], /, size: str = "smoke", *, which: Iterable[str] = tuple(LANGUAGES)
) -> dict[str, xr.Dataset]:
    """All runs by name, in both languages; `size`: a key of `SIZES`.

    >>> found = tables([1000], "smoke", which=["markov"])
    >>> sorted({ds.attrs["design"] for ds in found.values()})
    ['bag', 'factorial', 'pairs', 'peak', 'sampled']
    """
    chosen, out = SIZES[size], {}
    for language in which:
        start = prepare(language, seeds, prompts=chosen.prompts)
        for part in (factorial(start, chosen), _others(start, chosen), _sampled(start, chosen, language)):
            for ds in part:
                out[f"similarity {language} a={ds.attrs['anisotropy']:g} {ds.attrs['arm']}"] = ds
        corners = replace(chosen, couplings=(0.0, 1.0), levels=(1.3, 12.7))
        for variant in chosen.variants:
            other = (
                prepare(language, seeds, prompts=chosen.prompts, known=HALF_KNOWN / 4)
                if variant == "longer SFT"
                else start
            )
            slow = variant == "half the rate"
            pace, steps = (chosen.pace / 2, 2 * chosen.steps) if slow else (chosen.pace, chosen.steps)
            for ds in factorial(other, replace(corners, pace=pace, steps=steps), variant=variant):
                out[f"similarity {language}, {variant}, a={ds.attrs['anisotropy']:g} {ds.attrs['arm']}"] = ds
    return out
