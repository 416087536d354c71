"""SFT, then DPO, of a small language model on human preference pairs: every kind of response, in TRL's own trainers

A Llama of 5.9 million parameters, pretrained on 40 thousand real answers, taught 240 prompts of Anthropic-HH in two
passes (A), then DPO on their pairs in two more (B; β = .1, RMSprop). Changes of summed log-probabilities since the
stage began, means over 64 of the prompts with 95 % intervals over prompts. A: y⁺ rises most
(`supervised.chosen-rises-most`, open over both runs of this rung); what other prompts are taught rises with it, and
so do y⁻ and shuffled words; a sentence on another subject falls. B: the margin grows (`preference.margin-grows`): y⁻
falls, and with it answers that nobody trained on; y⁺ goes on rising. The argmax along its contexts hardly moves
(`preference.argmax-rises` holds in the other run alone): at this dose the run is no squeezing. One run of one model:
intervals say how sure the means over its prompts are, and nothing about other models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._llm import end, load
from toyld.figures._look import FALL, GREEN, INK, QUIET, RISE, SOFT, centred, require, title
from toyld.figures._runs import ARGMAX
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§4, Fig. 3 and Fig. 4"
DIFFERS = (
    "A Llama of 5.9 million parameters pretrained here, 240 pairs and 64 probed prompts of the authors' "
    "Anthropic-HH set, where the paper has Pythia and Qwen of .4 to 2.8 billion parameters, 5,000 pairs and 500 "
    "probes. Two passes instead of four to ten, learning rates for a small model. The argmax is measured along "
    "the contexts of y⁺. y⁺ does not fall here."
)
TAGS = ("llm", "dpo", "sft")
RUN = "hh"
GREY, DOTS, BROKEN = "#777777", (0, (1.2, 1.5)), (0, (6, 1.5, 1, 1.5))
# Kind -> (words, colour, dashes).
LINES: dict[str, tuple[str, str, Any]] = {
    ARGMAX: ("argmax along y⁺", SOFT, "-"),
    "chosen": ("y⁺", RISE, "-"),
    "chosen_gptsemantic": ("y⁺, other words", RISE, DOTS),
    "rejected": ("y⁻", FALL, "-"),
    "irr_train": ("taught to another prompt", GREEN, BROKEN),
    "irr_test": ("never taught", GREEN, (0, (3, 1))),
    "irr_hum": ("another subject", GREY, (0, (6, 1.2))),
    "random_permute": ("y⁺, shuffled", GREY, DOTS),
}


def data(size: str) -> Table:
    """One row per stage, kind and evaluation: change since the stage began; the same at both sizes."""
    table = load()
    keep = np.array([
        run == RUN and arm == "baseline" and kind in LINES
        for run, arm, kind in zip(table["run"], table["arm"], table["kind"], strict=True)
    ])  # fmt: skip
    return {name: np.asarray(values)[keep] for name, values in table.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """SFT on the left, DPO on the right."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 3.3))
    axes = fig.subplots(1, 2)
    for ax, letter, (stage, words) in zip(axes, "AB", (("sft", "SFT on y⁺"), ("dpo", "DPO after it")), strict=True):
        ax.axhline(0.0, color=QUIET, lw=0.7, zorder=0)
        for kind, (name, color, dashes) in LINES.items():
            one = rows(table, stage=stage, kind=kind)
            ax.plot(one["update"], one["mean"], color=color, ls=dashes, lw=1.5, label=name)
            ax.fill_between(one["update"], one["low"], one["high"], color=color, alpha=0.13, lw=0)
        ax.set_xlim(0, one["update"].max())
        ax.set_xlabel("updates")
        title(ax, letter, words)
    axes[0].set_ylabel("change, nats a response")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=6.8, handlelength=2.0, labelcolor=INK)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption says of each stage, by intervals over the prompts."""
    centred(table)
    began = np.asarray(table["mean"])[np.asarray(table["update"]) == 0]
    require((began == 0.0).all(), f"changes begin at {began}")
    ends = {(stage, kind): end(table, stage=stage, kind=kind) for stage in ("sft", "dpo") for kind in LINES}
    for kind in ("chosen", "chosen_gptsemantic", "rejected", "irr_train", "irr_test", "random_permute"):
        require(ends["sft", kind][1] > 0.0, f"SFT: {kind} ends at {ends['sft', kind]}")
        require(ends["sft", kind][0] <= ends["sft", "chosen"][0], f"SFT: {kind} rises more than chosen")
    require(ends["sft", "irr_hum"][2] < 0.0, f"SFT: irr_hum ends at {ends['sft', 'irr_hum']}")
    for kind in ("rejected", "irr_test", "random_permute"):
        require(ends["dpo", kind][2] < 0.0, f"DPO: {kind} ends at {ends['dpo', kind]}")
    require(ends["dpo", "chosen"][1] > 0.0, f"DPO: chosen ends at {ends['dpo', 'chosen']}")
    require(abs(ends["dpo", ARGMAX][0]) < 1.5, f"DPO: the argmax ends at {ends['dpo', ARGMAX]}")
