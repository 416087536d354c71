"""K4 and K5: S = S_local + c·11ᵀ, everything else equal: what a direction common to all features does to DPO.

Three designs, each a table per condition with the seeds as units:

- `equal loss` (in `tables`): S_local fixed; SFT until one loss for every c; the rejected response is the trained
  model's own answer ("model": on-policy) or random words ("uniform": improbable); DPO past the larger margin.
- `equal updates` (in `tables`): what SFT on both responses (extend) changes. Rejected are the untrained model's own
  answers at temperature 1 ("base") or 2 ("hot"). As many updates of SFT for both arms, each pushing every chosen
  response in full; as many of DPO. "extend, half" halves the rate of SFT on both: the mean over 2P rows, as in §4.3.
- `confounded`: S = (1 − a) S_local + a·11ᵀ at equal updates. A larger a is also a smaller local kernel, a higher loss
  after SFT and another margin.

Settings, each with its reason, fixed on other seeds than those of the record:

- S_local is that of `languages` without its common part: half a context's own, the rest shared by prompts and tokens;
  the control gives the same diagonal to every context alone.
- SFT until 1 nat a token (a chosen token has probability .37 on average; untrained chains have 1.9): taught, and the
  model's own answers still differ from the chosen ones. How long SFT was changes what on-policy answers do, so the
  smaller sizes have half a nat and one and a half beside it. By updates: 75 (3 at full rate per prompt), which leave .6
  to 1.3 nats a token.
- Margins m = Δ(ℓ₊ − ℓ₋) of 10 and 20 nats: at β = .1 a reward margin of 1 and 2, preference σ(1) = .73 and σ(2) = .88.
- DPO: 66 and 32 updates take all but one seed in 32 or none past the larger margin, against the model's own answers
  and random words, and a longer SFT needs twice as many; 80 updates (`equal updates`) lead to margins of 30 to 45.
- Rates are per prompt, for the loss is a mean over prompts: SFT .04; DPO 5/(1 + c), so that the largest eigenvalue of
  ηS grows little with c. A control takes half the rates and twice the updates.
- `confounded`: the sizes and updates of the table it repeats; rates .8 for SFT (the loss after it, 5 to 12 nats, is
  in the range of that table) and ten times as much for DPO, whose push is β/2 or less. The signs are those of that
  table but for Δchosen at a = .2, which is above 0 here and below 0 at twice these rates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld import objectives
from toyld.contexts import languages
from toyld.contexts.engine import Run, State, train
from toyld.contexts.policy import respond, with_texts
from toyld.contexts.world import Language, World
from toyld.trajectory.matched import at_margin, margin

__all__ = [
    "COMMON",
    "LEVELS",
    "LOCAL",
    "MARGINS",
    "SHARES",
    "SIZES",
    "Design",
    "boundary",
    "confounded",
    "gain",
    "sixth",
    "table_confounded",
    "table_k4",
    "table_k5",
    "tables",
]

Floats = NDArray[np.float64]
COMMON = (0.0, 0.25, 1.0, 4.0)
WIDE = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
SHARES = (0.0, 0.05, 0.2, 0.5, 0.8)
TEMPERATURES = (1.0, 2.0, 8.0)
MARGINS = (10.0, 20.0)
_OWN = {name: w for name, w in languages.KERNEL.items() if name != "common"}
LOCAL: Mapping[str, Mapping[str, float]] = {"mixture": _OWN, "identity": {"identity": sum(_OWN.values())}}
KINDS = ("chosen", "rejected", "test_chosen")
BETA = 0.1
SFT_RATE, DPO_RATE = 0.04, 5.0
TAUGHT = 1.0  # nats a token
LEVELS = (1.5, TAUGHT, 0.5)
SFT_UPDATES = {"equal loss": 130, "equal updates": 75}
DPO_UPDATES = {"model": 66, "uniform": 32, "base": 80, "hot": 80}
EVALUATIONS = 16  # at geometric distances, for margins grow fast at first
# Arm, objective, share of the rate of SFT.
ARMS = {"baseline": ("sft", 1.0), "extend": ("extend", 1.0), "extend, half": ("extend", 0.5)}


@dataclass(frozen=True)
class Design:
    """One setting: a language, a local kernel, sizes, the values of c, what is rejected, arms, and the step size.

    negatives, arms: of the designs `equal loss` and `equal updates`; temperature: of the untrained model's answers;
    taught: the loss of `equal loss`, nats a token; halve: 2 = half the rates and twice the updates.
    """

    language: str = "markov"
    local: str = "mixture"
    vocab: int = 24
    prompts: int = 6
    length: int = 6
    common: tuple[float, ...] = COMMON
    negatives: tuple[str, ...] = ("model", "uniform")
    arms: tuple[str, ...] = ()
    temperature: float = 1.0
    taught: float = TAUGHT
    halve: int = 1

    @property
    def setting(self) -> str:
        """In words, without c and the step."""
        vocab = f" V={self.vocab}" if self.language == "markov" else ""
        return f"{self.language}, {self.local}, P={self.prompts} T={self.length}{vocab}"

    @property
    def slower(self) -> int:
        """How many times as many updates it takes: half the rates, and pairs that already differ by more."""
        return self.halve * (2 if self.taught < TAUGHT else 1)

    def language_of(self, seeds: Sequence[int], /) -> Language:
        """The language of all worlds, c by c, each with all the seeds: same seeds, same texts."""
        kernel: dict[str, Any] = {**LOCAL[self.local], "common": np.repeat(self.common, len(seeds))}
        size: dict[str, Any] = {"prompts": self.prompts, "length": self.length, "temperature": self.temperature}
        if self.language == "markov":
            size["vocab"] = self.vocab
        world = getattr(languages, self.language)(seeds=list(seeds) * len(self.common), kernel=kernel, **size)
        assert world.language is not None
        return world.language

    def world(self, language: Language, seeds: Sequence[int], /) -> World:
        """Its worlds with the responses that are read, and no others."""
        texts = {kind: language.texts[kind] for kind in KINDS}
        attrs = {"language": self.language, "local": self.local, "setting": self.setting, "halve": self.halve}
        return replace(language, texts=texts).world(list(seeds) * len(self.common), attrs)

    def teach(self, world: World, design: str, arm: str = "baseline", /) -> Run:
        """SFT of one arm, to a loss or for a number of updates."""
        objective, share = ARMS[arm]
        until = self.taught * self.length if design == "equal loss" else None
        return train(
            world,
            objectives.get(objective),
            lr=SFT_RATE * self.prompts * share / self.halve,
            steps=SFT_UPDATES[design] * (self.halve if until is None else self.slower),
            until=until,
            rejected=None if objective == "sft" else "rejected",
            kinds=("chosen",),
        )

    def prefer(self, world: World, state: State, negatives: str, /) -> Run:
        """DPO from this policy on."""
        c = np.repeat(self.common, len(world.seeds) // len(self.common))
        steps = DPO_UPDATES[negatives] * self.slower
        marks = np.unique(np.round(np.geomspace(1, steps // self.halve, EVALUATIONS)).astype(int)) * self.halve
        return train(
            world,
            objectives.get("dpo", beta=BETA),
            lr=DPO_RATE * self.prompts / (1.0 + c) / self.halve,
            steps=steps,
            state=state,
            rejected="rejected",
            kinds=KINDS,
            at=[0, *marks.tolist()],
        )

    def tables(
        self, taught: Run, run: Run, design: str, negatives: str, arm: str = "baseline", /
    ) -> Iterator[tuple[str, xr.Dataset]]:
        """The tables of DPO, one for each c."""
        seeds = len(run.world.seeds) // len(self.common)
        for i, c in enumerate(self.common):
            at = slice(i * seeds, (i + 1) * seeds)
            step = f", 1/{self.halve} step" if self.halve > 1 else ""
            level = f" {self.taught:g}" if design == "equal loss" else ""
            model = f"{self.setting}{step}, c={c:g}, {design}{level}, {negatives}"
            attrs = {"experiment": "common", "design": design, "common": c, "negatives": negatives, "model": model}
            attrs["sft_loss"] = float(-taught.value("logp", "chosen")[-1, at].mean())
            attrs |= {"taught": self.taught} if level else {}
            attrs["sft_passes"] = SFT_UPDATES[design] * ARMS[arm][1]
            table = run.table("dpo", arm.split(",")[0], worlds=range(at.start, at.stop), **attrs)
            yield f"{model}, {arm}", table


_TWO: dict[str, Any] = {"halve": 2, "common": (0.0, 4.0), "negatives": ("model",)}
_EXTEND: dict[str, Any] = {"length": 8, "negatives": (), "arms": ("baseline", "extend"), "temperature": 2.0}
SIZES: Mapping[str, tuple[Design, ...]] = {
    "smoke": (
        Design(),
        *(Design(taught=level, common=(0.0, 1.0, 4.0)) for level in LEVELS if level != TAUGHT),
        Design(**_TWO),
        Design(prompts=12, common=(0.0, 1.0), **_EXTEND),
    ),
    "paper": (
        Design(vocab=100, prompts=24),
        Design(vocab=100, prompts=24, **_TWO),
        Design(local="identity", vocab=50, prompts=12),
        Design(language="facts", prompts=12),
        Design(vocab=100, prompts=24, common=WIDE, **{**_EXTEND, "arms": tuple(ARMS)}),
        Design(vocab=100, prompts=24, common=WIDE, **{**_EXTEND, "temperature": 1.0}),
        Design(local="identity", vocab=50, prompts=12, **_EXTEND),
        Design(language="facts", prompts=12, **_EXTEND),
    ),
}


def tables(
    seeds: Sequence[int] = range(32), size: str = "smoke", designs: Sequence[Design] | None = None
) -> dict[str, xr.Dataset]:
    """The stages of DPO of every condition, by name, with the seeds as units.

    Attributes: experiment "common", setting, design, common (c), negatives, arm, local, halve, taught (nats a token, of
    the design `equal loss` alone), sft_loss (−ℓ₊ after SFT, nats a response).

    >>> small = Design(vocab=8, prompts=2, length=3, common=(0.0, 1.0), negatives=("model",), arms=())
    >>> found = tables(seeds=range(2), designs=[small])
    >>> [(ds.attrs["common"], ds.sizes["seed"]) for ds in found.values()]
    [(0.0, 2), (1.0, 2)]
    """
    out: dict[str, xr.Dataset] = {}
    for one in SIZES[size] if designs is None else designs:
        language = one.language_of(seeds)
        world = one.world(language, seeds)
        if one.negatives:
            taught = one.teach(world, "equal loss")
            for name in one.negatives:
                text = respond(world, taught.state, seed=0) if name == "model" else language.texts["random_words"]
                mine, state = with_texts(world, taught.state, {"rejected": text})
                out.update(one.tables(taught, one.prefer(mine, state, name), "equal loss", name))
        for arm in one.arms:
            taught = one.teach(world, "equal updates", arm)
            name = "base" if one.temperature == 1.0 else "hot"
            run = one.prefer(world, taught.state, name)
            out.update(one.tables(taught, run, "equal updates", name, arm))
    return out


# What the confounded table varies and holds, by size.
CONFOUNDED: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"temperatures": (1.0,), "vocab": 24, "prompts": 6, "length": 6},
    "paper": {"temperatures": TEMPERATURES, "vocab": 100, "prompts": 24, "length": 6},
}


def confounded(seeds: Sequence[int] = range(32), size: str = "smoke") -> dict[str, xr.Dataset]:
    """DPO where S = (1 − a) S_local + a·11ᵀ, after equal updates of SFT: attr share (a), temperature, sft_loss.

    S_local is `LOCAL["mixture"]` scaled to a diagonal of 1; 120 updates of SFT, 300 of DPO, β = .1, Markov chains.

    >>> sorted({ds.attrs["share"] for ds in confounded(seeds=range(2)).values()})
    [0.0, 0.05, 0.2, 0.5, 0.8]
    """
    given = {**CONFOUNDED[size]}
    out: dict[str, xr.Dataset] = {}
    a = np.repeat(SHARES, len(seeds))
    kernel = {name: w / sum(_OWN.values()) * (1.0 - a) for name, w in _OWN.items()} | {"common": a}
    rate = 0.8 / 24 * given["prompts"]
    for temperature in given.pop("temperatures"):
        full = languages.markov(seeds=list(seeds) * len(SHARES), kernel=kernel, temperature=temperature, **given)
        assert full.language is not None
        texts = {kind: full.language.texts[kind] for kind in KINDS}
        world = replace(full.language, texts=texts).world(full.seeds, {"language": "markov", "local": "mixture"})
        taught = train(world, objectives.get("sft"), lr=rate, steps=120, kinds=("chosen",))
        dpo = objectives.get("dpo", beta=BETA)
        run = train(world, dpo, lr=10.0 * rate, steps=300, state=taught.state, rejected="rejected", kinds=KINDS)
        for i, share in enumerate(SHARES):
            at = slice(i * len(seeds), (i + 1) * len(seeds))
            model = f"confounded, a={share:g}, temperature {temperature:g}"
            attrs = {"experiment": "common", "design": "confounded", "share": share, "temperature": temperature}
            attrs |= {"model": model, "sft_loss": float(taught.loss[-1, at].mean())}
            out[model] = run.table("dpo", "baseline", worlds=range(at.start, at.stop), **attrs)
    return out


def gain(ds: xr.Dataset, m: float | None, name: str = "chosen", /) -> Floats:
    """Change over DPO by seed, in nats: at margin m (NaN where a seed does not get there), or to the end (m = None).

    name: a probe, "argmax" along the chosen contexts, or "gap" = argmax − chosen.
    """
    if name == "gap":
        return gain(ds, m, "argmax") - gain(ds, m, "chosen")
    probe, variable = ("chosen", "argmax_logp") if name == "argmax" else (name, "logp")
    if m is not None:
        return at_margin(ds, m, probe, variable=variable)
    path = ds[variable].sel(probe=probe).mean("example").transpose("step", "seed").values
    return np.asarray(path[-1] - path[0], float)


def sixth(ds: xr.Dataset, /) -> int:
    """The evaluation nearest to a sixth of all updates."""
    return int(np.abs(ds.step.values - ds.step.values[-1] / 6).argmin())


def boundary(found: Mapping[str, xr.Dataset], /, *, share: float = 1.0, draws: int = 2000) -> tuple[float, ...]:
    """The c from which on extend no longer leaves chosen higher: estimate and 95 % interval over seeds.

    Level of chosen after this share of DPO's updates, extend minus baseline, mean over seeds: where it first falls
    through 0, linear in c between those measured; ∞ where it stays above 0, the smallest c where it starts below.
    Bootstrap over seeds. `found`: tables of one setting of the design `equal updates`.
    """
    level: dict[str, dict[float, Floats]] = {"baseline": {}, "extend": {}}
    for name, ds in found.items():
        if ds.attrs.get("design") == "equal updates" and not name.endswith("half"):
            k = int(np.abs(ds.step.values - share * ds.step.values[-1]).argmin())
            level[ds.attrs["arm"]][ds.attrs["common"]] = ds.logp.sel(probe="chosen")[:, k].mean("example").values
    c = np.array(sorted(level["baseline"]))
    lead = np.stack([level["extend"][k] - level["baseline"][k] for k in c])
    rng = np.random.default_rng(0)
    drawn = lead[:, rng.integers(lead.shape[1], size=(draws, lead.shape[1]))].mean(-1)
    low, high = np.quantile([_through(c, one) for one in drawn.T], [0.025, 0.975], method="inverted_cdf")
    return _through(c, lead.mean(-1)), float(low), float(high)


def _through(x: Floats, y: Floats) -> float:
    """Where y first falls through 0."""
    below = np.flatnonzero(y <= 0.0)
    if not below.size:
        return float("inf")
    k = int(below[0])
    return float(x[0]) if k == 0 else float(x[k - 1] + y[k - 1] / (y[k - 1] - y[k]) * (x[k] - x[k - 1]))


def _shown(units: Floats) -> str:
    """Mean ± half width of the 95 % interval over seeds."""
    from scipy.special import stdtrit

    known = units[np.isfinite(units)]
    wide = stdtrit(len(known) - 1, 0.975) * known.std(ddof=1) / len(known) ** 0.5
    return f"{known.mean():+7.2f} ±{wide:5.2f}"


def table_k4(found: Mapping[str, xr.Dataset], /) -> str:
    """Text: what DPO changes at each margin by c and negatives, mean ± half width of the 95 % interval over seeds."""
    mine = [ds for ds in found.values() if ds.attrs.get("design") == "equal loss"]
    lines = []
    names = ("setting", "halve", "taught")
    for key in dict.fromkeys(tuple(ds.attrs[name] for name in names) for ds in mine):
        for m in MARGINS:
            step = f", 1/{key[1]} of the step" if key[1] > 1 else ""
            lines += [
                f"{key[0]}{step}; after SFT to {key[2]:g} nats a token, change in nats at margin {m:g}",
                f"{'rejected':9}{'c':>5}  {_HEAD}  short of it",
            ]
            for ds in mine:
                if tuple(ds.attrs[name] for name in names) == key:
                    missed = int((margin(ds)[-1] < m).sum())
                    values = "  ".join(_shown(gain(ds, m, name)) for name in _COLUMNS)
                    lines.append(f"{ds.attrs['negatives']:9}{ds.attrs['common']:5g}  {values}  {missed}")
    return "\n".join(lines)


_COLUMNS = ("chosen", "argmax", "gap", "test_chosen")
_HEAD = "  ".join(f"{name:>14}" for name in _COLUMNS)


def table_k5(found: Mapping[str, xr.Dataset], /) -> str:
    """Text: extend against baseline by c: the change of chosen at each margin, and its level after equal updates."""
    lines, base = [], {}
    for name, ds in found.items():
        if ds.attrs.get("design") != "equal updates":
            continue
        key = (f"{ds.attrs['setting']}, {ds.attrs['negatives']}", ds.attrs["common"])
        arm = name.rpartition(f"{ds.attrs['negatives']}, ")[2]
        if arm == "baseline":
            base[key] = ds
            continue
        other = base[key]
        parts = [_shown(gain(ds, m) - gain(other, m)) for m in MARGINS]
        end = [x.logp.sel(probe="chosen").mean("example").values for x in (ds, other)]
        parts += [_shown(end[0][:, k] - end[1][:, k]) for k in (0, sixth(ds), -1)]
        lines.append(f"{key[0]:38} {arm:13}{key[1]:5g}  " + "  ".join(parts))
    head = f"{'extend − baseline':38} {'arm':13}{'c':>5}  " + "  ".join(
        f"{x:>14}" for x in (*(f"Δ at m = {m:g}" for m in MARGINS), "level before", "after a sixth", "after all")
    )
    return "\n".join([head, *lines])


def table_confounded(found: Mapping[str, xr.Dataset], /) -> str:
    """Text: what DPO changes by a and temperature, after equal updates, with the loss after SFT and the margin."""
    head = "  ".join(f"{name:>14}" for name in ("chosen", "argmax", "test_chosen", "margin"))
    lines = [f"{'y- at':6}{'a':>5}{'SFT loss':>10}  {head}"]
    for ds in found.values():
        values = [_shown(gain(ds, None, name)) for name in ("chosen", "argmax", "test_chosen")]
        about = f"{ds.attrs['temperature']:<6g}{ds.attrs['share']:5g}{ds.attrs['sft_loss']:10.2f}"
        lines.append("  ".join([about, *values, _shown(margin(ds)[-1])]))
    return "\n".join(lines)
