"""What SFT does to every kind of response, in closed form

The paper's Figure 3 without a network: three worlds of prompts, answers and synonyms, each with another kernel between
contexts; only the head trains, so the runs are exact. Changes of summed log-probabilities since the start, means over
seeds with 95 % intervals, as SFT on the chosen answers (y⁺) goes on. A: y⁺ rises (`supervised.chosen-rises`), the same
in other words rises less, another meaning in the same form rises and falls (`supervised.form-twin-bell`,
`supervised.closer-rises-more`). B: the rejected answer, its rephrase and the untrained model's answer fall and never
rise; that they rise first, too, is refuted here (`supervised.similar-bell`). C: the answer to another training prompt
rises, though wrong here; a test prompt's own, never taught, ends where it began (`supervised.other-answers-rise`,
`supervised.untaught-rise-less`). D: the words of y⁺ rise in whatever order (`supervised.shuffled-fall` is refuted),
unlike those of a test prompt's answer (`supervised.taught-words-outlast`). The kernels differ in c, the weight of what
all contexts have in common: S = local part + c·11ᵀ, with diagonal 1, so that c is also its share, c/(local + c).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, require, title
from toyld.figures._runs import DASHES, MAIN, by_hand, collected, starts_at_zero, unit, weight
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§4.1, Fig. 3"
DIFFERS = (
    "No network: only the head is trained, by plain descent, on made-up languages with 32 seeds, where the paper "
    "has single runs of Pythia and Qwen. Rejected answers fall from the start and are not bell-shaped; the "
    "shuffled words of y⁺ rise, where the paper's fall."
)
TAGS = ("contexts", "sft")
# Panel -> (title, kind -> (words, colour, place of the words: update and nats, None: a legend, for the lines meet)).
PANELS: dict[str, tuple[str, dict[str, tuple[str, str, tuple[float, float] | None]]]] = {
    "A": (
        "The closer, the higher",
        {
            "chosen": ("y⁺", RISE, (19, 7.9)),
            "chosen_gptsemantic": ("other words", SOFT, (27, 4.4)),
            "chosen_gptformat": ("other meaning,\nsame form", FALL, (29, 1.75)),
        },
    ),
    "B": (
        "Rejected ones fall",
        {
            "chosen_initial": ("the model's first answer", RISE, None),
            "reject_gptsemantic": ("y⁻ in other words", SOFT, None),
            "rejected": ("y⁻", FALL, None),
        },
    ),
    "C": (
        "Other prompts' answers",
        {
            "irr_train": ("taught elsewhere", RISE, (28, 1.15)),
            "irr_test": ("never taught", FALL, (13, -0.35)),
        },
    ),
    "D": (
        "Shuffled words",
        {
            "random_permute": ("of y⁺", RISE, (28, 1.7)),
            "random_nonhum": ("of a test answer", FALL, (11.5, -0.42)),
        },
    ),
}
KINDS = tuple(kind for _, lines in PANELS.values() for kind in lines)


def data(size: str) -> Table:
    """One row per kernel, kind and evaluation: mean change since the start and its interval over seeds."""
    return collected(size, {f"{model} sft baseline": model for model in DASHES}, KINDS)


def draw(table: Mapping[str, Any]) -> Any:
    """Four panels, kinds by colour, kernels by dashes."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    fig = Figure(figsize=(5.5, 4.6))
    axes = fig.subplots(2, 2, sharex=True).ravel()
    for ax, (panel, (words, lines)) in zip(axes, PANELS.items(), strict=True):
        ax.axhline(0.0, color=QUIET, lw=0.7, zorder=0)
        for kind, (name, color, place) in lines.items():
            for model, dashes in DASHES.items():
                one = rows(table, run=model, kind=kind)
                main = model == MAIN
                label = name if main and place is None else None
                ax.plot(one["update"], one["mean_nats"], color=color, ls=dashes, lw=1.9 if main else 0.9, label=label)
                if main:
                    ax.fill_between(one["update"], one["low_nats"], one["high_nats"], color=color, alpha=0.15, lw=0)
            if place is not None:
                words_color = INK if color == SOFT else color
                ax.text(*place, name, color=words_color, fontsize=7, weight="bold", ha="center", va="center")
        ax.set_xlim(0, table["update"].max())
        title(ax, panel, words)
    for ax in axes[::2]:
        ax.set_ylabel("change of log-probability, nats")
    for ax in axes[2:]:
        ax.set_xlabel("updates of SFT")
    axes[1].set_ylim(bottom=1.3 * axes[1].get_ylim()[0])  # room for the words
    axes[1].legend(loc="lower left", handlelength=1.4, labelspacing=0.3, borderaxespad=0.2)
    kernels = [Line2D([], [], color=INK, ls=DASHES[m], lw=1.9 if m == MAIN else 0.9, label=weight(m)) for m in DASHES]
    fig.legend(handles=kernels, loc="outside lower center", ncols=3, handlelength=2.6)
    return fig


def _end(table: Mapping[str, Any], model: str, kind: str) -> tuple[float, float, float]:
    one = rows(table, run=model, kind=kind)
    return float(one["mean_nats"][-1]), float(one["low_nats"][-1]), float(one["high_nats"][-1])


def check(table: Mapping[str, Any]) -> None:
    """What the caption says, for every kernel, by intervals over the seeds; y⁺ from the definition."""
    starts_at_zero(table)
    unit()
    got, updates = _end(table, MAIN, "chosen")[0], int(table["update"].max())
    want = by_hand(int(table["seeds"][0]), MAIN, sft=updates, dpo=0)
    require(abs(got - want) < 1e-9 * abs(want), f"chosen gains {got:.12g} nats, by hand {want:.12g}")
    for model in DASHES:
        chosen = rows(table, run=model, kind="chosen")["mean_nats"]
        require((np.diff(chosen) > 0.0).all(), f"{model}: chosen does not rise throughout: {chosen.round(2)}")
        twin = rows(table, run=model, kind="chosen_gptformat")
        top = int(twin["mean_nats"].argmax())
        require(
            0 < top < len(twin["update"]) - 1,
            f"{model}: the same form with another meaning is highest at update {twin['update'][top]}",
        )
        order = [_end(table, model, kind) for kind in ("chosen", "chosen_gptsemantic", "chosen_gptformat")]
        for (_, low, _), (_, _, high) in pairwise(order):
            require(low > high, f"{model}: chosen, other words, other meaning end at {order}")
        for kind in ("rejected", "reject_gptsemantic", "chosen_initial"):
            fall = rows(table, run=model, kind=kind)
            require((fall["low_nats"] <= 0.0).all(), f"{model}: {kind} rises first: {fall['mean_nats'].round(3)}")
            require(_end(table, model, kind)[2] < 0.0, f"{model}: {kind} ends at {_end(table, model, kind)}")
        taught, untaught = (_end(table, model, kind) for kind in ("irr_train", "irr_test"))
        require(taught[1] > 0.0, f"{model}: another prompt's answer ends at {taught}")
        require(untaught[1] < 0.0, f"{model}: a test prompt's answer rises, to {untaught}")
        require(taught[1] > untaught[2], f"{model}: taught elsewhere {taught}, never taught {untaught}")
        own, other = (_end(table, model, kind) for kind in ("random_permute", "random_nonhum"))
        require(own[1] > 0.0, f"{model}: the shuffled chosen answer ends at {own}")
        require(own[1] > other[2], f"{model}: shuffled, the chosen answer ends at {own}, a test answer at {other}")
