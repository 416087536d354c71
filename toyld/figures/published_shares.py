"""The paper's own runs, example by example: a mean hides a mixture, and one evaluation is not a run

Three released runs of Pythia-410M on Anthropic-HH from one checkpoint, the same 500 training prompts at every
evaluation; the share of prompts in each class since the first, by the signs of two changes, of the chosen response and
of the argmax along its contexts. A, SFT: both rise in every prompt at the end (`supervised.chosen-rises`,
`supervised.argmax-rises-too`). B, DPO: the mean of chosen ends 3 nats higher, yet in 27 % of the prompts it has fallen
while the argmax rose, and in 34 % the argmax rose by more. C, another DPO run: 83 % are squeezed after a quarter of it
and 40 % at the end, where the mean of the argmax is back at its start (`preference.argmax-rises`,
`preference.chosen-falls`); but it lurches, from 14 to 83 % between evaluations 10 and 12, so that no single evaluation
speaks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, RISE, SOFT, require, title
from toyld.figures._published import INPUTS, files, folders, read
from toyld.figures._registry import FigureError
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "INPUTS", "PAPER", "TAGS", "check", "data", "draw", "inputs"]

PAPER = "Fig. 4, last panel"
DIFFERS = (
    "The paper shows means; here the same released logs are read example by example. The argmax is that of the "
    "mended logs. Where C lurches, the log does not say why."
)
TAGS = ("llm", "published", "diagnosis")
FOLDERS = {
    "A": "pythia410_baseline_sft_verify_argmax_bug",
    "B": "pythia410_baseline_dpo_checkbug_5e7",
    "C": "pythia410_baseline_dpo_checkbug",
}
TITLES = {"A": "SFT", "B": "DPO", "C": "Another DPO run"}
# From the bottom: class -> colour, and words for it.
LOOKS = {
    "squeezing": (FALL, "chosen down, argmax up"),
    "lagging": (SOFT, "argmax up more than chosen"),
    "displacement": ("#8A8A8A", "chosen down, argmax flat"),
    "divergence": (INK, "both down"),
    "not-learning": ("#F2F2F2", "neither"),
    "sft-normal": (RISE, "chosen up"),
}
inputs = partial(files, FOLDERS)


def data(size: str) -> Table:
    """One row per run and evaluation; the same at both sizes."""
    from toyld.diagnosis import DEFAULT, classify_examples
    from toyld.diagnosis.curves import curves

    columns: dict[str, list[np.ndarray]] = {}
    for panel, folder in folders(FOLDERS).items():
        c = curves(read(folder))
        if c.chosen is None or c.argmax is None:
            raise FigureError(
                f"{folder.name}: expected chosen and argmax per example; fetch its .npy with git lfs pull"
            )
        chosen, argmax = c.chosen - c.chosen[0], c.argmax - c.argmax[0]
        kind = classify_examples(chosen, argmax, None, DEFAULT.difference * c.floor)
        n = len(chosen)
        made = {"panel": np.full(n, panel), "run": np.full(n, folder.name), "evaluation": np.arange(n)}
        made |= {f"share_{name}": (kind == name).mean(1) for name in LOOKS}
        made |= {"d_chosen_nats": chosen.mean(1), "d_argmax_nats": argmax.mean(1)}
        for name, values in made.items():
            columns.setdefault(name, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Stacked shares, one panel a run."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 2.8))
    axes = fig.subplots(1, 3, sharey=True)
    for ax, panel in zip(axes, FOLDERS, strict=True):
        one = rows(table, panel=panel)
        x = one["evaluation"]
        shares = [100.0 * one[f"share_{name}"] for name in LOOKS]
        areas = ax.stackplot(x, shares, colors=[color for color, _ in LOOKS.values()], lw=0)
        ax.set_xlim(0, len(x) - 1)
        ax.set_ylim(0, 100)
        ax.set_xlabel("evaluation")
        title(ax, panel, TITLES[panel])
    axes[0].set_ylabel("share of the 500 prompts, %")
    words = [words for _, words in LOOKS.values()]
    fig.legend(areas, words, loc="outside lower center", ncols=3, frameon=False, handlelength=1.2)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The published shares and changes, to the digits given."""
    total = np.sum([table[f"share_{name}"] for name in LOOKS], axis=0)
    require(np.abs(total - 1.0).max() < 1e-12, f"shares add up to {total.min():.4f} … {total.max():.4f}, expected 1")
    for name in LOOKS:
        share = table[f"share_{name}"]
        require((share >= 0.0).all() and (share <= 1.0).all(), f"{name}: shares from {share.min():.4f}")
        off = np.abs(500.0 * share - np.round(500.0 * share)).max()
        require(off < 1e-9, f"{name}: {off:.3f} of a prompt, expected whole ones of 500")
    ends = {"A": (59.56, 17.09), "B": (3.40, 7.16), "C": (-25.10, 0.03)}
    for panel, expected in ends.items():
        one = rows(table, panel=panel)
        got = one["d_chosen_nats"][-1], one["d_argmax_nats"][-1]
        require(np.allclose(got, expected, atol=0.0051), f"{panel}: changes {np.round(got, 3)}, expected {expected}")
        begin = one["share_not-learning"][0], one["d_chosen_nats"][0], one["d_argmax_nats"][0]
        require(begin == (1.0, 0.0, 0.0), f"{panel}: expected no change at evaluation 0, got {begin}")
    last = {panel: {name: float(rows(table, panel=panel)[f"share_{name}"][-1]) for name in LOOKS} for panel in "ABC"}
    require(last["A"]["sft-normal"] == 1.0, f"A: {last['A']['sft-normal']:.3f} of the prompts rise, expected all")
    for panel, name, said in (("B", "squeezing", 0.27), ("B", "lagging", 0.34), ("C", "squeezing", 0.40)):
        share = last[panel][name]
        require(round(share, 2) == said, f"{panel}: {share:.3f} {name} at the end, expected {said}")
    early = rows(table, panel="C")["share_squeezing"]
    quarter = float(early[len(early) // 4])
    require(round(quarter, 2) == 0.83, f"C: {quarter:.3f} squeezed after a quarter, expected .83")
    lurch = early[10], early[12]
    require(
        tuple(np.round(lurch, 2)) == (0.83, 0.14), f"C: from {lurch[0]:.3f} to {lurch[1]:.3f}, expected .83 and .14"
    )
