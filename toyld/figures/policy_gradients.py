"""Policy gradients: rare tokens get the full push first, and PPO's ratio damps what follows

Tiny transformers that answer questions of a language whose facts are known, a verifier, plain descent; means and 95 %
intervals over 20 seeds (B: 18, for two gave no right answer and GRPO pushes nothing there); "not sure" marks what
Holm's correction over all claims leaves open. A: right answers while they practise. GRPO doubles them
(`reinforcement.raises-trained`); at one rate (.1), wrong answers pushed down by 1 gain less than right ones pushed up
by 1, not sure (`reinforcement.positives-gain-more`), though both have one expected gradient
(`reinforcement.signs-share-a-gradient`): the wrong ones are the many, and the noise
(`reinforcement.negatives-are-noisier`). In steps of a quarter of the rate, four for one of the axis (dotted), they lose
less of pass@16 (`reinforcement.small-steps-spare-pass`). B: the residual per unit of advantage on the tokens of wrong
answers, by updates made on one sample: before the first, tokens in a valley (log π ≤ −H) get twice that of the others
(`reinforcement.first-update-hits-valleys`); then PPO's ratio damps it (full), and without it nothing does (dashed;
`reinforcement.clip-stops-rare-tokens`, `reinforcement.ppo-damps-inner-updates`). C: prompts whose right answers lose by
one update: in models that know nearly half of the answers GRPO makes half of them lose, its positive half one in nine
(`reinforcement.displaces-the-taught`), and fewer at a smaller rate (`reinforcement.displacement-is-large-steps`); in
those that know one in nine neither does (`reinforcement.displaces-the-untaught`). D: the residual ‖π − e‖ on wrong
answers that are pushed down and nothing else: those sampled at temperature 2 begin higher, as more of their tokens lie
in valleys (`reinforcement.own-answers-avoid-valleys`); in the mean the models' own stay within .06 of where they were,
and those of the models at the start grow, more improbable each time, but not with PPO's ratio; neither is sure
(`reinforcement.frozen-answers-spiral`, `reinforcement.ratio-ends-the-spiral`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["COST", "DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "App. A.3 (benign negative gradients), tried in networks"
DIFFERS = (
    "The paper argues in words that PPO and on-policy negatives are benign; here it is tried, in tiny "
    "transformers with an exact verifier. The ratio damps only what follows the first update on a sample, a "
    "condition that the paper leaves out."
)
TAGS = ("tiny", "policy")
COST = "half a minute"
SEED = 0  # seeds count from here
SEEDS = {"smoke": 4, "paper": 20}
DASHED, DOTTED = (0, (3, 1.5)), (0, (1, 1.2))
SIGNS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "group": ("GRPO", {"color": RISE}),
    "signed +": ("right ones up", {"color": SOFT}),
    "signed −": ("wrong ones down", {"color": FALL}),
    "signed −, small steps": ("in small steps", {"color": FALL, "ls": DOTTED}),
}
SMALL = 4  # small steps for one
INNER: Mapping[tuple[str, str], dict[str, Any]] = {
    ("ppo", "force_valley"): {"color": FALL, "ls": "-"},
    ("bare", "force_valley"): {"color": FALL, "ls": DASHED},
    ("ppo", "force_rest"): {"color": RISE, "ls": "-"},
    ("bare", "force_rest"): {"color": RISE, "ls": DASHED},
}
LEVELS = {
    "taught 40, rate 0.07": "know 1/9",
    "taught 80, rate 0.07": "know half",
    "taught 80, rate 0.02": "know half,\nsmall rate",
}
BEHAVIOURS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "frozen": ("of the start", {"color": FALL}),
    "hot": ("temperature 2", {"color": SOFT}),
    "frozen, ppo": ("of the start, PPO", {"color": RISE, "ls": DOTTED}),
    "own": ("their own", {"color": RISE}),
}


def data(size: str) -> Table:
    """One row per panel, arm, what is read (in C the setting), and iteration or update."""
    from toyld.tiny.experiments import EXPERIMENTS

    found = list(EXPERIMENTS.run("policy", range(SEED, SEED + SEEDS[size])).values())
    columns: dict[str, list[Any]] = {name: [] for name in ("panel", "arm", "what", "at", "mean", "low", "high")}

    def add(panel: str, design: str, arm: str, name: str, what: str, model: str = "tiny") -> None:
        wanted = (design, arm, model)
        (ds,) = (one for one in found if (one.attrs["design"], one.attrs["arm"], one.attrs["model"]) == wanted)
        for i, at in enumerate(ds.step.values):
            units = ds[f"eval_{name}"].values[:, i]
            units = units[np.isfinite(units)]
            if len(units):
                values = panel, arm, what, int(at), *interval(units)
                for column, value in zip(columns, values, strict=True):
                    columns[column].append(value)

    for arm in SIGNS:
        add("A", "signs", arm, "reward", "right")
    for arm, name in INNER:
        add("B", "inner", arm, name, name)
    for model in LEVELS:
        for arm in ("group", "group +"):
            add("C", "displacement", arm, "fell", model, model)
    for arm in BEHAVIOURS:
        add("D", "behaviour", arm, "gap", "gap")
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Three panels of curves, one of shares."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.5))
    axes = fig.subplots(2, 2).ravel()

    def curve(ax: Any, panel: str, arm: str, what: str, look: Mapping[str, Any], **label: Any) -> None:
        one = rows(table, panel=panel, arm=arm, what=what)
        if arm == "signed −, small steps":
            one = {name: column[::SMALL] for name, column in one.items()}
        at = np.arange(len(one["at"]))
        ax.plot(at, one["mean"], marker="o", ms=2.4, lw=1.2, **look, **label)
        ax.fill_between(at, one["low"], one["high"], color=look["color"], alpha=0.14, lw=0)

    for arm, (label, look) in SIGNS.items():
        curve(axes[0], "A", arm, "right", look, label=label)
    for (arm, what), look in INNER.items():
        curve(axes[1], "B", arm, what, look)
    for i, model in enumerate(LEVELS):
        for k, (arm, colour) in enumerate((("group", FALL), ("group +", RISE))):
            one = rows(table, panel="C", arm=arm, what=model)
            x = [i + 0.36 * (k - 0.5)]
            axes[2].bar(x, one["mean"], width=0.32, color=colour, label=None if i else ("GRPO", "positive half")[k])
            bar = one["mean"] - np.maximum(one["low"], 0.0), one["high"] - one["mean"]
            axes[2].errorbar(x, one["mean"], yerr=bar, color=INK, lw=0.8, capsize=1.5)
    for arm, (label, look) in BEHAVIOURS.items():
        curve(axes[3], "D", arm, "gap", look, label=label)
    axes[0].set_xlabel("iterations (small steps: of 4)")
    axes[0].set_ylabel("share of right answers")
    axes[0].legend(loc="upper left")
    for label, colour, ls in (("in valleys", FALL, "-"), ("others", RISE, "-"), ("without ratio", QUIET, DASHED)):
        axes[1].plot([], [], lw=1.2, label=label, color=colour, ls=ls)
    axes[1].legend(loc="upper left")
    axes[1].set_xlabel("updates on one sample")
    axes[1].set_ylabel("residual over |Â|")
    axes[1].set_ylim(0.0, 2.0)
    axes[2].set_xticks(range(len(LEVELS)), LEVELS.values(), fontsize=6.5)
    axes[2].set_xlabel("models")
    axes[2].set_ylabel("prompts whose right answers fell")
    axes[2].legend(loc="upper right")
    axes[3].set_xlabel("iterations")
    axes[3].set_ylabel("‖π − e‖ of what is pushed")
    axes[3].legend(loc="upper left")
    axes[3].set_ylim(0.4, 1.3)
    for ax, letter, text in zip(
        axes,
        "ABCD",
        ("Practice", "PPO's inner updates", "Displaced by one update", "Whose answers (not sure)"),
        strict=True,
    ):
        title(ax, letter, text)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption tells of means; PPO and bare pushes begin alike, as ρ = 1."""
    centred(table)

    def read(panel: str, arm: str, what: str) -> Any:
        return rows(table, panel=panel, arm=arm, what=what)["mean"]

    right = {arm: read("A", arm, "right") for arm in SIGNS}
    require(right["group"][-1] > 1.4 * right["group"][0], f"expected practice to help GRPO, got {right['group']}")
    begin = [curve[0] for curve in right.values()]
    require(np.ptp(begin) < 1e-6, f"expected all arms to begin with the same answers, got {begin}")
    force = {key: read("B", *key) for key in INNER}
    for what in ("force_valley", "force_rest"):
        first = [force[arm, what][0] for arm in ("ppo", "bare")]
        require(abs(first[0] - first[1]) < 1e-6, f"{what}: expected one first update, got {first}")
        require(force["ppo", what][-1] < force["bare", what][-1], f"{what}: expected a damped push, got {force}")
    valley, rest = force["ppo", "force_valley"], force["ppo", "force_rest"]
    require(1.0 < valley[0] < 2**0.5, f"expected ‖π − e‖ of rare tokens between 1 and √2, got {valley[0]:.3f}")
    require(valley[0] > 1.7 * rest[0], f"expected twice the residual in valleys, got {valley[0]:.2f}, {rest[0]:.2f}")
    require(valley[-1] < 0.7 * valley[0], f"expected PPO to damp it, got {valley}")
    fell = {(model, arm): read("C", arm, model)[0] for model in LEVELS for arm in ("group", "group +")}
    little, much, small = LEVELS
    require(fell[much, "group"] > fell[much, "group +"] + 0.1, f"expected GRPO to displace, got {fell}")
    require(fell[much, "group"] > fell[small, "group"] + 0.05, f"expected less at a small rate, got {fell}")
    require(max(fell[little, arm] for arm in ("group", "group +")) < 0.2, f"expected little displaced, got {fell}")
    gap = {arm: read("D", arm, "gap") for arm in BEHAVIOURS}
    grown = {arm: curve[-1] - curve[0] for arm, curve in gap.items()}
    require(grown["frozen"] > max(0.0, grown["frozen, ppo"]), f"expected the start's answers to grow, got {grown}")
    require(abs(grown["own"]) < 0.06, f"expected the models' own to stay, got {grown}")
    require(gap["hot"][0] > gap["own"][0] + 0.1, f"expected hot ones above, got {gap['hot'][0]}, {gap['own'][0]}")
