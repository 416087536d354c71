"""What all features have in common makes DPO displace at equal preference learnt, and takes extend's lead in a long run

Whole runs in closed form: SFT to one loss (1 nat a token), then DPO on six pairs, with the kernel S = S_local + c·11ᵀ,
A to C read where every seed has learnt the same preference (margin 20 nats, 2 in units of β). Lines: means over seeds
with 95 % intervals; in A to C the rejected response is the trained model's own answer (orange) or random words (navy).
A: without a common component the chosen response rises (`displacement.chosen-falls-without-common` is refuted); each
increase of c takes from it (`displacement.common-amplifies`). Where c is four times the local kernel, on-policy
negatives displace it more than random words (`displacement.on-policy-displaces-more-if-common`); at smaller c it
depends on c and on how long SFT was which displaces more (`displacement.on-policy-displaces-more` is conditional). B:
the argmax along the chosen contexts does not rise the more for it (`displacement.common-raises-argmax` is refuted);
what widens is the gap (`displacement.common-widens-gap`). C: the answer to a prompt never trained on falls by more than
ten nats at c = 4 (`displacement.common-amplifies-untaught`). At c = 0 it moves by less than a nat; that it falls there
is open (`displacement.untaught-falls-without-common`) and depends on the local kernel and on the number of pairs. D:
how much higher chosen stands after SFT on both responses (extend) than after plain SFT of as many updates, along a long
DPO against improbable answers: without a common component the lead stays (`displacement.extend-helps-without-common`),
with c = 1 it is lost (`displacement.extend-help-fades-with-common`); that it ends as a deficit is open
(`displacement.extend-hurts-with-common`) and depends on the length of SFT. The figures dpo_in_closed_form and
remedies_at_margin show extend in other worlds, over fewer updates and at equal margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from toyld.contexts import experiments
from toyld.contexts.experiments import common
from toyld.figures._by_hand import Texts, residual
from toyld.figures._look import FALL, INK, RISE, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "by_hand", "check", "data", "draw"]

PAPER = "§4.2 and §4.3 (chosen falls, argmax rises, extend)"
DIFFERS = (
    "No network: only the head is trained, so that runs are exact, in a world of six pairs with plain descent. A "
    "common component of the features is this project's explanation; the paper has none. Extend is compared with "
    "as many updates, not with as many passes."
)
TAGS = ("contexts", "squeezing", "displacement")
SEED = 0
MARGIN = 20.0
READ = ("chosen", "argmax", "gap", "test_chosen")
SEEDS = {"smoke": 12}


def by_hand(seeds: Iterable[int], /, *, c: float) -> float:
    """Change of chosen over all updates against random words, from Z ← Z − η S R and `softmax.residual` alone."""
    changes = []
    for seed in seeds:
        design = common.Design(common=(c,))
        language = design.language_of([seed])
        world = replace(language, texts={**language.texts, "rejected": language.texts["random_words"]}).world(
            [seed], {}
        )
        every = slice(0, world.trained)
        z, gram = world.logits[0, every], np.asarray(world.kernel.block(every, every))[0]
        plus, minus = (Texts(*(a[0] for a in world.responses[kind][:2])) for kind in ("chosen", "rejected"))
        one = np.ones(design.prompts)
        for _ in range(common.SFT_UPDATES["equal loss"]):
            if -plus.logp(z).mean() <= common.TAUGHT * design.length:
                break
            z = z - common.SFT_RATE * gram @ residual(z, (plus, one))
        first = z
        for _ in range(common.DPO_UPDATES["uniform"]):
            gained = plus.logp(z) - plus.logp(first) - minus.logp(z) + minus.logp(first)
            push = common.BETA / (1.0 + np.exp(common.BETA * gained))
            z = z - common.DPO_RATE / (1.0 + c) * gram @ residual(z, (plus, push), (minus, -push))
        changes.append(float((plus.logp(z) - plus.logp(first)).mean()))
    return float(np.mean(changes))


def data(size: str) -> Table:
    """One row per condition and reading: change at the margin (`update` −1), or extend's lead after an update."""
    found = experiments.run("common", range(SEED, SEED + SEEDS.get(size, 32)))
    out: dict[str, list[Any]] = {}

    def add(reading: str, negatives: str, c: float, update: int, units: np.ndarray) -> None:
        known = units[np.isfinite(units)]
        made = {"reading": reading, "rejected": negatives, "c": c, "update": update}
        made |= dict(zip(("mean_nats", "low_nats", "high_nats"), interval(known), strict=True)) | {"seeds": len(known)}
        for name, value in made.items():
            out.setdefault(name, []).append(value)

    level: dict[tuple[str, float], np.ndarray] = {}
    for ds in found.values():
        about = ds.attrs
        if about["design"] == "equal loss" and about["halve"] == 1 and about["taught"] == common.TAUGHT:
            for reading in READ:
                add(reading, about["negatives"], about["common"], -1, common.gain(ds, MARGIN, reading))
            add("whole run", about["negatives"], about["common"], -1, common.gain(ds, None))
        elif about["design"] == "equal updates":
            path = ds.logp.sel(probe="chosen").mean("example").transpose("step", "seed").values
            level[about["arm"], about["common"]] = path
            steps = ds.step.values
    for c in sorted({c for _, c in level}):
        for k, step in enumerate(steps):
            add("lead", "hot", c, int(step), level["extend", c][k] - level["baseline", c][k])
    return {name: np.array(values) for name, values in out.items()}


PANELS = {
    "chosen": ("A", "Chosen"),
    "argmax": ("B", "Argmax along chosen"),
    "test_chosen": ("C", "A prompt never trained on"),
}
NEGATIVES = {"model": ("the model's own", FALL), "uniform": ("random words", RISE)}
SHADES = ("#9A9A9A", INK)  # not the colours of A to C, which stand for what is rejected


def draw(table: Mapping[str, Any]) -> Any:
    """Changes at the margin against c, and extend's lead against updates."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.3))
    axes = fig.subplots(2, 2).ravel()
    for ax, (reading, (letter, words)) in zip(axes, PANELS.items(), strict=False):
        for name, (label, color) in NEGATIVES.items():
            one = rows(table, reading=reading, rejected=name)
            place = np.arange(len(one["c"]))
            ax.fill_between(place, one["low_nats"], one["high_nats"], color=color, alpha=0.25, lw=0)
            ax.plot(place, one["mean_nats"], color=color, marker="o" if name == "model" else "s", ms=3.5, label=label)
        ax.axhline(0.0, color=INK, lw=0.6)
        ax.set_xticks(place, [f"{c:g}" for c in one["c"]])
        ax.set_xlabel("common component c")
        title(ax, letter, words)
    axes[0].legend(title="rejected:", fontsize=7, title_fontsize=7, frameon=False, loc="lower left")
    for ax in (axes[0], axes[2]):
        ax.set_ylabel("change by DPO (nats)")
    axes[1].set_ylim(bottom=min(0.0, float(rows(table, reading="argmax")["low_nats"].min())))
    last = axes[3]
    for c, color in zip(np.unique(rows(table, reading="lead")["c"]), SHADES, strict=True):
        one = rows(table, reading="lead", c=c)
        x = one["update"] / one["update"].max()
        last.fill_between(x, one["low_nats"], one["high_nats"], color=color, alpha=0.25, lw=0)
        last.plot(x, one["mean_nats"], color=color)
        last.text(1.02, float(one["mean_nats"][-1]), f"c = {c:g}", color=INK, fontsize=7, va="center")
    last.axhline(0.0, color=INK, lw=0.6)
    last.set_xlim(0.0, 1.25)
    last.set_xticks([0.0, 0.5, 1.0])
    last.set_xlabel("share of DPO's updates")
    last.set_ylabel("chosen, extend − plain (nats)")
    title(last, "D", "Extend's lead in a long DPO")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The signs and the order that the caption states, and one condition made again by hand."""
    middle = 0.5 * (table["low_nats"] + table["high_nats"])
    off = float(np.abs(middle - table["mean_nats"]).max())
    require(off < 1e-9, f"a mean {off:.3g} nats from the middle of its interval")
    require(table["seeds"].min() >= 8, f"a condition with {table['seeds'].min()} seeds only at the margin")
    for name in NEGATIVES:
        read = {reading: rows(table, reading=reading, rejected=name) for reading in READ}
        places = read["chosen"]["c"].tolist()
        require(places == list(common.COMMON), f"{name}: c = {places}, expected {common.COMMON}")
        chosen, test, gap = (read[reading]["mean_nats"] for reading in ("chosen", "test_chosen", "gap"))
        require(read["chosen"]["low_nats"][0] > 0.0, f"{name}: chosen does not rise at c = 0: {chosen[0]:.3g}")
        require((np.diff(chosen) < 0.0).all(), f"{name}: chosen does not fall with every c: {chosen}")
        require((np.diff(test) < 0.0).all(), f"{name}: the untaught answer does not fall with every c: {test}")
        require((np.diff(gap) > 0.0).all(), f"{name}: the gap does not widen with every c: {gap}")
        top = read["argmax"]["mean_nats"]
        require(top[1] < top[0], f"{name}: the argmax rises more at c = {read['argmax']['c'][1]:g} than at 0: {top}")
        require(abs(test[0]) < 1.0, f"{name}: untaught moves by {test[0]:.3g} nats at c = 0, caption: by less than one")
        require(test[-1] < -10.0, f"{name}: untaught falls by {-test[-1]:.3g} nats at c = 4, caption: more than ten")
    own, random = (rows(table, reading="chosen", rejected=name) for name in NEGATIVES)
    large = own["c"] >= 4.0
    more = random["mean_nats"][large] - own["mean_nats"][large]
    require((more > 0.0).all(), f"on-policy negatives displace chosen by {more} nats more at c >= 4")
    for c in np.unique(rows(table, reading="lead")["c"]):
        one = rows(table, reading="lead", c=c)
        if c == 0.0:
            require(one["low_nats"][-1] > 0.0, f"c = 0: extend's lead ends at {one['mean_nats'][-1]:.3g}")
        if c >= 1.0:
            last = one["mean_nats"][-1]
            require(one["mean_nats"].max() - 1.0 > 0.0 > last, f"c = {c:g}: lead {one['mean_nats']}, caption: lost")
    made = by_hand(range(SEED, SEED + int(table["seeds"].max())), c=1.0)
    shown = float(rows(table, reading="whole run", rejected="uniform", c=1.0)["mean_nats"][0])
    require(abs(shown - made) < 1e-8 * abs(made), f"uniform, c = 1: chosen changes by {shown}, by hand {made}")
