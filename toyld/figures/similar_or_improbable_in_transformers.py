"""Improbable, near, or saying what others say? What rejected texts do to untrained answers of transformers

Tiny transformers after SFT; DPO against rejected texts in which three things are set apart that go together otherwise:
how probable they are (rare: 5.7 times less a token), how near their contexts are to those of test answers (cosine of
hidden states up by 1.8 SD of the candidates; to their own y⁺, too, .156 → .250), how many next tokens they share with
test answers in like contexts (1.3 SD more). Changes of a mean test answer, never trained on, in eight settings: SGD or
RMSprop, the head or all layers, without or with (+) a feature common to all hidden states. A: main effects where the
margin has grown by 8 nats. Next tokens shared with test answers cost these, in each setting
(`similarity.shared-labels-displace`, `similarity.shared-labels-displace-everywhere`), and at these doses more than the
others change in either direction (`similarity.labels-outweigh-probability`, `similarity.labels-outweigh-nearness`).
What rarity and nearness do is open (`similarity.rare-texts-displace`, `similarity.near-contexts-displace`): over all
settings rare texts spare by .14 [−.09, .36] nats, on seeds 5000 to 5019 by .37 [.08, .67]; near ones cost .03
[−.27, .34], there .25 [.02, .49]. Overlap with *chosen* answers was not matched (.049 for likely, .036 for rare): given
it, shared next tokens go from −1.31 [−1.57, −1.04] to −.91 [−1.96, .14], so that sharing with test answers and with
chosen ones cannot be told apart. B: the same after eight updates at one learning rate
(`similarity.shared-labels-displace-per-update`); under SGD near ones may cost more
(`similarity.near-contexts-displace-under-descent`). C: rejected texts as they come, at that margin: the model's own
answers and right answers to other prompts do more harm than y⁺ in another order or nearly random text
(`similarity.own-answers-displace`). In this language, at these doses, it is worth more to choose rejected texts that
say little of what must stay than likely or unlikely ones. After one update rare texts do cost more in the head
(`similarity.rare-first-push`): with few updates, pushes that do not fade, or words of π near 1, improbability would
matter. Bars: 95 % intervals over seeds; a seed that does not reach the margin is left out, in C one of 20 at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["COST", "SEED", "TAGS", "check", "data", "draw"]

TAGS = ("tiny", "dpo", "squeezing")
COST = "half a minute"
SEED = 0  # seeds count from here
SEEDS = {"smoke": 5, "paper": 20}
AT, AFTER, ASIS = "at margin", "after updates", "as they come"
FACTORS = {"probability": (RISE, "D", "rare"), "contexts": (SOFT, "s", "near"), "labels": (FALL, "o", "shared words")}
TEXTS = {
    "temperature 1": "own", "another answer": "another's",
    "permutation": "y⁺ shuffled", "temperature 16": "random",
}  # fmt: skip
ARMS = {("sgd", "head", 0.0): (QUIET, "^", "SGD, head"), ("rmsprop", "all", 0.0): (INK, "v", "RMSprop, all")}
SHARES = (0.0, 0.5)


def data(size: str) -> Table:
    """One row per setting and factor (or text): mean over seeds with its interval, nats of a mean untrained answer."""
    from toyld.claims.similarity import change
    from toyld.claims.similarity_factorial import cleared, moved, settings
    from toyld.tiny.experiments import EXPERIMENTS

    tables = list(EXPERIMENTS.run("similarity", range(SEED, SEED + SEEDS[size])).values())
    found: list[tuple[str, str, str, float, str, np.ndarray]] = []
    for panel, read in ((AT, change), (AFTER, moved)):
        for where, runs in settings(tables).items():
            found += [(panel, *where, factor, units) for factor, units in cleared(runs, read).items()]
    for ds in tables:
        where = (ds.attrs["optimizer"], ds.attrs["layers"], ds.attrs["anisotropy"])
        if ds.attrs["design"] == "sampled" and where in ARMS:
            found.append((ASIS, *where, ds.attrs["text"], change(ds)))
    out: dict[str, list[Any]] = {}
    for panel, optimizer, layers, share, what, units in found:
        known = units[np.isfinite(units)]
        mean, low, high = interval(known)
        row = {
            "panel": panel, "optimizer": optimizer, "layers": layers, "common_share": share, "what": what,
            "mean": mean, "low": low, "high": high, "seeds": len(known),
        }  # fmt: skip
        for name, value in row.items():
            out.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in out.items()}


def _settings(table: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    part = rows(table, panel=AT, what="labels")
    return sorted(
        zip(part["optimizer"].tolist(), part["layers"].tolist(), part["common_share"].tolist(), strict=True),
        key=lambda where: (where[1] != "head", where[0] != "sgd", where[2]),
    )


def _one(table: Mapping[str, Any], panel: str, where: tuple[str, str, float], what: str) -> tuple[float, float, float]:
    """(mean, low, high) of a row."""
    optimizer, layers, share = where
    row = rows(table, panel=panel, optimizer=optimizer, layers=layers, common_share=share, what=what)
    require(len(row["mean"]) == 1, f"expected one row of {panel}, {where}, {what}, got {len(row['mean'])}")
    return tuple(float(row[name][0]) for name in ("mean", "low", "high"))  # type: ignore[return-value]


def draw(table: Mapping[str, Any]) -> Any:
    """Effects at the margin, after updates, and texts as they come."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 3.2))
    left, middle, right = fig.subplots(1, 3, width_ratios=(1.0, 1.0, 0.8))
    where = _settings(table)
    names = {"sgd": "SGD", "rmsprop": "RMSprop", "head": "head", "all": "all"}
    for ax, panel, letter, text in ((left, AT, "A", "At equal margin"), (middle, AFTER, "B", "After 8 updates")):
        for shift, (factor, (color, marker, name)) in zip((-0.22, 0.0, 0.22), FACTORS.items(), strict=True):
            mean, low, high = np.array([_one(table, panel, one, factor) for one in where]).T
            y = np.arange(len(where)) + shift
            ax.errorbar(
                mean, y, xerr=[mean - low, high - mean], color=color, marker=marker, ms=3.0, lw=1.2, ls="", label=name
            )
        ax.axvline(0.0, color=INK, lw=0.6, zorder=1)
        ax.set_yticks(range(len(where)), [f"{names[o]}, {names[la]}{' +' if share else ''}" for o, la, share in where])
        ax.tick_params(axis="y", labelsize=6)
        ax.set_ylim(len(where) - 0.4, -0.6)
        ax.set_xlabel("effect, nats")
        title(ax, letter, text)
    middle.tick_params(labelleft=False)
    left.set_ylabel("setting")
    for i, (arm, (color, marker, name)) in enumerate(ARMS.items()):
        mean, low, high = np.array([_one(table, ASIS, arm, text) for text in TEXTS]).T
        y = np.arange(len(TEXTS)) + (i - 0.5) * 0.25
        right.errorbar(
            mean, y, xerr=[mean - low, high - mean], color=color, marker=marker, ms=3.0, lw=1.2, ls="", label=name
        )
    right.axvline(0.0, color=INK, lw=0.6, zorder=1)
    right.set_yticks(range(len(TEXTS)), list(TEXTS.values()))
    right.tick_params(axis="y", labelsize=6)
    right.set_ylim(len(TEXTS) - 0.4, -0.6)
    right.set_xlabel("change, nats")
    right.set_ylabel("rejected text")
    title(right, "C", "As they come")
    handles, labels = left.get_legend_handles_labels()
    more, arms = right.get_legend_handles_labels()
    fig.legend([*handles, *more], [*labels, *arms], loc="outside lower center", ncols=5, fontsize=6.5, frameon=False)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The caption; every setting counts, and their mean."""
    seeds = int(np.max(table["seeds"]))
    require(seeds in SEEDS.values(), f"expected {SEEDS}, got {seeds} seeds")
    require(set(np.unique(table["common_share"]).tolist()) == set(SHARES), f"shares: expected {SHARES}")
    centred(table)
    where = _settings(table)
    require(len(where) == 8, f"expected eight settings, got {len(where)}")
    sure = seeds == SEEDS["paper"]
    for panel in (AT, AFTER):
        means = {factor: np.array([_one(table, panel, one, factor) for one in where]) for factor in FACTORS}
        whole = {factor: float(found[:, 0].mean()) for factor, found in means.items()}
        require(whole["labels"] < 0.0, f"{panel}: shared words cost {-whole['labels']:.3g} nats")
        most = max(abs(whole["probability"]), abs(whole["contexts"]))
        vague = panel == AFTER and not sure  # five seeds tell little of what nearness does after updates
        require(
            vague or most < -whole["labels"],
            f"{panel}: {most:.3g} nats by other factors, {-whole['labels']:.3g} by words",
        )
        if sure:
            require((means["labels"][:, 2] < 0.0).all(), f"{panel}: words do not surely cost in {means['labels']}")
        if sure and panel == AT:
            require((means["probability"][:, 2] > 0.0).all(), "rare texts surely cost more somewhere")
    few = int(np.min(table["seeds"]))
    require(not sure or few >= seeds - 1, f"only {few} of {seeds} seeds reach the margin somewhere")
    for arm in ARMS:
        found = {text: _one(table, ASIS, arm, text)[0] for text in TEXTS}
        worst, best = max(found["temperature 1"], found["another answer"]), min(
            found["permutation"], found["temperature 16"]
        )  # fmt: skip
        require(worst < best, f"{arm}: {found}")
