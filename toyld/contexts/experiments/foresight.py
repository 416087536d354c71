"""Which pairs will be displaced? Predictors that know the world before DPO, scored against the DPO that follows.

Of every world: SFT on the chosen responses, then every score of every pair (`SCORES`, each oriented so that higher =
the chosen response falls more), then DPO. Two regimes: *many*, all pairs trained together, and *alone*, every pair
trained by itself from the same policy at the same push a pair. Two targets: the fall of log π(y⁺) of each pair where
the world's mean margin reaches `MARGIN`, and at the end. A score gets, in each world, Spearman's rank correlation with
the fall over the pairs, and the AUC of "falls at all": how often a pair that falls stands above one that does not (a
world where all fall, or none, has no AUC: NaN). The units are seeds.

Scores: k3 (minus the total of `predict.terms`), pair (its two terms of the pair's own: entanglement), foreseen
(`predict.foresee` of the run, 8 growing updates instead of 100), even (the same with 8 equal ones), begun (the fall in
the first 8 of the run's own 100 updates, what as much work buys without foresight), ches and ches_normalised, overlap
(1 − edit distance), improbability of y⁻, margin log π(y⁺) − log π(y⁻), ease log π(y⁺)/|y⁺| (what is likely already can
hardly rise). Alone, k3 is pair.

Held out: how fast the 8 updates of `foresee` grow was chosen on `markov` worlds of seeds from 1000 on with the kernels
of `DEVELOPED` and one half of which is common, without SFT and after two lengths of it, 12 and 24 pairs, both regimes:
the growth among 1, 1.25, 1.5, 2 with the largest least rank correlation (`predict.foresee`). Scored are worlds of
`facts` with kernels of other components and other weights, seeds 0 to 31. A first choice, 2, had been scored on them
before, and other seeds of theirs had shown it too fast where contexts share much.

Settings, each with its reason, fixed on other seeds than those of the record:

- *Pairs* differ in all that the scores look at: y⁻ is y⁺ with 1 to T of its tokens replaced by others, drawn from the
  untrained model at temperature 1, 2 or 8; both are cut to random lengths between half and all of T.
- *SFT* until ln 2 a token: taught, and with room.
- *Margin* 20 nats: at β = .1 a reward margin of 2, where a pair's push has faded to 12 % of its strength. The end is at
  100 updates (a reward margin of about 4, 2 % of the push).
- *Rate* 5 per pair: the first update moves a context's own logits by .25 of its residual.

In the larger size (12 pairs of up to 6 tokens, 42 words; also without SFT, after longer SFT, on `markov`, at half the
rate, with 24 pairs) the scores keep their order, with two exceptions. CHES is best before any SFT (.6 to .7 alone) and
at 0 after long SFT. Overlap is as good as k3 for pairs alone after long SFT (.66 to .70 against .54 to .73). foreseen
is at .95 or more everywhere; under `crowded`, at the margin, where the equal updates do worse than the run's first
eight in all sizes (with 24 pairs .72 against .93), that is its least.

Between worlds of different kernels, whose mean fall differs (96 worlds of the record, pairs together, at the margin),
normalised CHES does as well as K3: rank correlations of the worlds' means .82 [.77, .88] against .74 [.63, .85], 1.00
foreseen, .42 for CHES; it tells which kernel displaces, not which pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld import objectives
from toyld.contexts import languages, predict
from toyld.contexts.engine import State, logits, start, train
from toyld.contexts.kernels import Gram
from toyld.contexts.world import Responses, World
from toyld.trajectory import trajectory

__all__ = [
    "DEVELOPED",
    "HELD_OUT",
    "SCORES",
    "SIZES",
    "TARGETS",
    "Scored",
    "Setting",
    "alone",
    "auc",
    "fall_at",
    "score",
    "scores",
    "spearman",
    "tables",
    "worlds",
]

Floats = NDArray[np.float64]
DEVELOPED: Mapping[str, Mapping[str, float]] = {
    "mixed": languages.KERNEL,
    "own": {"identity": 0.8, "common": 0.05, "token": 0.15},
    "anisotropic": {"identity": 0.3, "common": 0.4, "prompt": 0.3},
}
HELD_OUT: Mapping[str, Mapping[str, float]] = {
    "prefixes": {"identity": 0.3, "prefix": 0.5, "token": 0.2},
    "places": {"identity": 0.4, "position": 0.3, "prompt": 0.3},
    "crowded": {"identity": 0.2, "common": 0.5, "position": 0.1, "token": 0.2},
}
SCORES = (
    "foreseen", "even", "begun", "k3", "pair", "ches", "ches_normalised", "overlap", "improbability", "margin", "ease",
)  # fmt: skip
TARGETS = ("margin", "end")
TAUGHT = float(np.log(2.0))  # nats a token
TEMPERATURES = (1.0, 2.0, 8.0)
BETA, RATE, UPDATES, MARGIN = 0.1, 5.0, 100, 20.0
AT = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 18, 22, 26, 30, 35, 40, 50, 60, 80, 100)


@dataclass(frozen=True)
class Setting:
    """One design: a language with its sizes, the kernels, how far SFT goes (nats a token; infinite = none at all)."""

    language: str = "facts"
    sizes: Mapping[str, int] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: HELD_OUT)
    taught: float = TAUGHT
    rate: float = RATE
    updates: int = UPDATES

    @property
    def name(self) -> str:
        """In words, without the kernel."""
        taught = "untaught" if np.isinf(self.taught) else f"taught to {self.taught:.2g}"
        return f"{self.language} P={self.sizes.get('prompts', 12)}, {taught}, {self.updates} updates at {self.rate:g}"


SMALL = {"concepts": 6, "synonyms": 2, "function_words": 4, "prompts": 10}
SIZES: Mapping[str, tuple[Setting, ...]] = {
    "smoke": (Setting(sizes=SMALL),),
    "paper": (
        Setting(),
        Setting(taught=float("inf")),
        Setting(taught=0.1),
        Setting(kernels=DEVELOPED),
        Setting(language="markov"),
        Setting(rate=RATE / 2, updates=2 * UPDATES),
        Setting(sizes={"prompts": 24, "concepts": 24}),
    ),
}


def worlds(seeds: Sequence[int], setting: Setting, /) -> World:
    """The worlds of all kernels, one after the other, each with all the seeds; chosen and rejected as said above.

    >>> small = Setting(sizes={"prompts": 3, "concepts": 3}, kernels={"own": {"identity": 1.0}})
    >>> world = worlds([1000], small)
    >>> bool((predict.edit_distance(world) > 0).all()), sorted(world.responses)
    (True, ['chosen', 'rejected'])
    """
    kernels = setting.kernels
    names = sorted({name for kernel in kernels.values() for name in kernel})
    weights = {name: np.repeat([k.get(name, 0.0) for k in kernels.values()], len(seeds)) for name in names}
    make: Any = getattr(languages, setting.language)
    whole = make(seeds=list(seeds) * len(kernels), kernel=weights, **setting.sizes)
    assert whole.language is not None
    rngs = [np.random.default_rng([seed, 83]) for seed in whole.seeds]
    ask, chosen = whole.language.prompts["chosen"], whole.language.texts["chosen"]
    prompts, longest = chosen.shape[1:]
    half = (longest + 1) // 2
    # One token at least is replaced in the first half, which no cut takes away.
    first = np.stack([rng.integers(half, size=prompts) for rng in rngs])
    order = np.stack([rng.random((prompts, longest)) for rng in rngs])
    np.put_along_axis(order, first[..., None], -1.0, -1)
    number = np.stack([rng.integers(1, longest + 1, size=prompts) for rng in rngs])
    replaced = order.argsort(-1).argsort(-1) < number[..., None]
    heat = np.stack([rng.choice(TEMPERATURES, size=prompts) for rng in rngs])
    rows = ask
    for t in range(longest):
        noise = np.stack([rng.gumbel(size=(prompts, whole.size[2])) for rng in rngs])
        z = whole.language.logits(rows) / heat[..., None] + noise
        np.put_along_axis(z, chosen[..., t, None], -np.inf, -1)
        rows = np.concatenate([rows, np.where(replaced[..., t], z.argmax(-1), chosen[..., t])[..., None]], -1)
    texts = {}
    for kind, text in (("chosen", chosen), ("rejected", rows[..., ask.shape[-1] :])):
        ends = np.stack([rng.integers(half, longest + 1, size=prompts) for rng in rngs])
        texts[kind] = np.where(np.arange(longest) < ends[..., None], text, -1)
    return replace(whole.language, texts=texts).world(whole.seeds, {**whole.attrs, "language": setting.language})


def alone(world: World, state: State, /) -> World:
    """Every pair as a world of its own, B·P worlds that start at this policy; every token has a context of its own.

    Two contexts that are one have equal rows in S, so that they stay equal: the numbers are those of shared contexts.
    """
    z, sides = np.asarray(logits(world, state)), [world.responses[kind] for kind in ("chosen", "rejected")]
    worlds, prompts, longest = sides[0].context.shape
    at = np.concatenate([r.context for r in sides], -1).reshape(worlds * prompts, -1)
    own, here = np.repeat(np.arange(worlds), prompts), slice(0, int(at.max()) + 1)
    block = np.asarray(world.kernel.block(here, here))
    gram = block[own[:, None, None], at[:, :, None], at[:, None, :]]
    responses = {}
    for i, (kind, r) in enumerate(zip(("chosen", "rejected"), sides, strict=True)):
        place = np.broadcast_to(i * longest + np.arange(longest), (len(own), 1, longest))
        responses[kind] = Responses(place, r.token.reshape(len(own), 1, -1), r.mask.reshape(len(own), 1, -1))
    return World(z[own[:, None], at], Gram(gram), responses, at.shape[1], tuple(range(len(own))))


def scores(world: World, state: State, /) -> dict[str, Floats]:
    """The scores of every pair (B, P) that need no further updates, higher = the chosen response is to fall more."""
    step = predict.terms(world, state, objective=objectives.get("dpo", beta=BETA))
    inner, text = predict.ches(world), predict.likelihoods(world, state)
    return {
        "k3": -step["total"],
        "pair": -(step["own"] + step["rejected"]),
        "ches": inner["ches"],
        "ches_normalised": inner["normalised"],
        "overlap": 1.0 - predict.edit_distance(world),
        "improbability": text["improbability"],
        "margin": text["margin"],
        "ease": -text["surprise"],
    }


def fall_at(target: float, chosen: Floats, rejected: Floats, /) -> Floats:
    """−Δ of each chosen response (B, P) where the mean margin reaches the target, from changes (evaluation, B, P).

    Linear between two evaluations; NaN in a world that does not get there.

    >>> fall_at(2.0, np.array([[[0.0]], [[-1.0]]]), np.array([[[0.0]], [[-5.0]]])).tolist()
    [[0.5]]
    """
    margin = (chosen - rejected).mean(-1)
    out = np.full(chosen.shape[1:], np.nan)
    for b in np.flatnonzero((margin >= target).any(0)):
        k = int(np.argmax(margin[:, b] >= target))
        share = (target - margin[k - 1, b]) / (margin[k, b] - margin[k - 1, b])
        out[b] = -((1.0 - share) * chosen[k - 1, b] + share * chosen[k, b])
    return out


def spearman(score: Floats, fall: Floats, /) -> Floats:
    """Rank correlation over the pairs of each world, (B, P) twice → (B,); NaN where one of them is constant or NaN.

    >>> spearman(np.array([[1.0, 2.0, 3.0]]), np.array([[0.1, 0.5, 0.2]])).tolist()
    [0.5]
    """
    from scipy.stats import rankdata

    x, y = (rankdata(a, axis=-1) for a in (score, fall))
    x, y = (a - a.mean(-1, keepdims=True) for a in (x, y))
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    known = np.isfinite(score).all(-1) & np.isfinite(fall).all(-1) & (size > 0)
    return np.where(known, (x * y).sum(-1) / np.where(known, size, 1.0), np.nan)


def auc(score: Floats, fell: NDArray[np.bool_], /) -> Floats:
    """How often a pair that fell scores above one that did not, ties counted half, (B, P) twice → (B,).

    NaN where all fell, or none.

    >>> auc(np.array([[1.0, 2.0, 2.0]]), np.array([[False, False, True]])).tolist()
    [0.75]
    """
    above = np.sign(score[:, :, None] - score[:, None, :]) / 2.0 + 0.5
    both = fell[:, :, None] & ~fell[:, None, :]
    count = both.sum((1, 2))
    return np.where(count > 0, (above * both).sum((1, 2)) / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class Scored:
    """All worlds of a setting in one regime: the falls by target, the scores by target and name, each (B, P)."""

    setting: Setting
    regime: str
    falls: Mapping[str, Floats]
    scores: Mapping[str, Mapping[str, Floats]]


def score(seeds: Sequence[int], setting: Setting, /) -> list[Scored]:
    """Both regimes of a setting: its worlds are made, taught, scored, trained."""
    world = worlds(seeds, setting)
    state, shape = start(world), world.responses["chosen"].mask.shape[:2]
    if np.isfinite(setting.taught):
        until = setting.taught * world.responses["chosen"].mask.sum(-1).mean(-1)  # each world by its own lengths
        sft = objectives.get("sft")
        state = train(world, sft, lr=0.3 * shape[1], steps=200, until=until, at=(), kinds=("chosen",)).state
    known, single, out = scores(world, state), alone(world, state), []
    for regime, where, begin, rate in (
        ("many", world, state, setting.rate * shape[1]),
        ("alone", single, start(single), setting.rate),
    ):
        mine = {**known, "k3": known["k3" if regime == "many" else "pair"]}
        real, found = _train(where, begin, rate, setting.updates)
        falls = {target: fall.reshape(shape) for target, fall in real.items()}
        trained = {
            target: {name: value.reshape(shape) for name, value in found[target].items()} | mine for target in TARGETS
        }
        out.append(Scored(setting, regime, falls, trained))
    return out


def _train(
    world: World, state: State, rate: float, updates: int
) -> tuple[dict[str, Floats], dict[str, dict[str, Floats]]]:
    """Falls (B, P) under DPO by target, and by target and score those of eight updates: `foreseen`, even, begun."""
    dpo, kinds = objectives.get("dpo", beta=BETA), ("chosen", "rejected")
    at = [k * updates // UPDATES for k in AT]
    run = train(world, dpo, lr=rate, steps=updates, state=state, rejected="rejected", at=at, kinds=kinds)
    real = {kind: run.value("logp", kind) - run.value("logp", kind)[:1] for kind in kinds}
    falls = {"margin": fall_at(MARGIN, real["chosen"], real["rejected"]), "end": -real["chosen"][-1]}
    begun = -real["chosen"][AT.index(8)]
    found: dict[str, dict[str, Floats]] = {target: {"begun": begun} for target in TARGETS}
    few: dict[str, Any] = {"lr": rate, "steps": updates, "objective": dpo}
    for name, seen in (
        ("foreseen", predict.foresee(world, state, **few)),
        ("even", predict.foresee(world, state, growth=1.0, **few)),
    ):
        there, end = fall_at(MARGIN, seen["chosen"], seen["rejected"]), -seen["chosen"][-1]
        # Where the few large updates do not get to the margin, their end is the best guess.
        found["margin"][name], found["end"][name] = np.where(np.isnan(there), end, there), end
    return falls, found


def tables(
    seeds: Sequence[int] = range(32), size: str = "smoke", settings: Sequence[Setting] | None = None
) -> dict[str, xr.Dataset]:
    """One table a setting, kernel and regime, the seeds as units: at its only step 0 what each score is worth.

    eval_rank_NAME, eval_auc_NAME: Spearman and AUC where the margin is reached; eval_rank_end_NAME, eval_auc_end_NAME:
    at the end. eval_fell, eval_fell_end: share of pairs that fall; eval_fell_first: that the first update lowers (to
    first order). NaN where a world has no such number.

    >>> small = Setting(sizes={"prompts": 4, "concepts": 3}, kernels={"own": {"identity": 0.8, "common": 0.2}})
    >>> found = tables([1000, 1001], settings=[small])
    >>> [(ds.attrs["regime"], ds.sizes["seed"], "eval_rank_k3" in ds) for ds in found.values()]
    [('many', 2, True), ('alone', 2, True)]
    """
    out: dict[str, xr.Dataset] = {}
    for setting in SIZES[size] if settings is None else settings:
        for one in score(seeds, setting):
            columns = _columns(one)
            for i, kernel in enumerate(setting.kernels):
                at = slice(i * len(seeds), (i + 1) * len(seeds))
                attrs = {"experiment": "foresight", "regime": one.regime, "kernel": kernel, "setting": setting.name}
                out[f"foresight: {setting.name}, {kernel}, {one.regime}"] = trajectory(
                    {name: value[at, None] for name, value in columns.items()},
                    step=[0], probe=["chosen"], seed=list(seeds), world="contexts", stage="scores", arm=one.regime,
                    attrs=attrs,
                )  # fmt: skip
    return out


def _columns(one: Scored) -> dict[str, Floats]:
    """Name → (B,)."""
    columns: dict[str, Floats] = {"eval_fell_first": (one.scores["end"]["k3"] > 0).mean(-1)}
    for target, fall in one.falls.items():
        end = "_end" if target == "end" else ""
        fell = fall > 0
        columns[f"eval_fell{end}"] = np.where(np.isfinite(fall).all(-1), fell.mean(-1), np.nan)
        for name, value in one.scores[target].items():
            columns[f"eval_rank{end}_{name}"] = spearman(value, fall)
            columns[f"eval_auc{end}_{name}"] = np.where(np.isfinite(fall).all(-1), auc(value, fell), np.nan)
    return columns
