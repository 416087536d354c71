"""While digits are learnt kernels grow thirty- to a hundredfold; whom a lesson reaches is settled soon after

‖K_uo‖ between 8×8 digits while an MLP (16 seeds) and a LeNet (8 seeds) learn them at a constant rate, 16 epochs; u is
taught, o held out; means and 95 % intervals over seeds, which share their 1,442 training images: over starts and
orders, given these. Epochs on a root scale. A: the mean norm k, relative to its start. B: how far the kernel's shape
moves in a tenth of the run, E‖K/k − K′/k′‖; from half-way to the end by .14 and .47 (`stability.kernel-moves-on`:
LeNet's moves on, the MLP's mostly grows). C: rank correlation over o of ‖K_uo‖ with a tenth of the run before (full),
and with the end (dashed); grey: .9. Late, the ranking stays (`stability.late-ranking-stays`), also within other classes
and divided by the inputs' own sizes (`stability.ranking-is-more-than-size`); the first tenths are messier
(`stability.early-is-messier`). Dotted: with the rankings of lessons of other classes at the same time
(`stability.lessons-rank-differently`). D: who couples with whom in the MLP at the end: log of the mean ‖K_uo‖ of two
classes, sizes divided out, minus the mean over the pairs of either with others. Framed, the pairs that are similar on
MNIST (full) and those that are not (dashed): here 6-7 are apart, in LeNet too (`stability.apart-6-7`); 3-5 a pair in
the MLP, not surely in LeNet (`stability.pair-3-5`); 5-8, 7-9 and 2-5 not surely so in the MLP (`stability.pair-5-8`,
`stability.pair-7-9`, `stability.apart-2-5`); 4 and 9 are no pair in it (`stability.pair-4-9`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "App. C.1 (relative stability of the kernel), on 8×8 digits"
DIFFERS = (
    "8×8 digits, an MLP and a LeNet, 16 epochs at a constant rate, several seeds with intervals, where the paper "
    "shows one network on MNIST over 1,000 epochs. Ranks are compared by their correlation, and the inputs' own "
    "sizes are divided out; the pairs of classes are other ones at 8×8 pixels."
)
TAGS = ("digits", "kernel")
SEED = 0  # seeds count from here
SEEDS = {"MLP": 16, "LeNet": 8}
SHARES = (0.0, 0.02, 0.05, *(k / 10 for k in range(1, 11)))
COLOURS = {"MLP": RISE, "LeNet": FALL}
READ = {
    "norm": "norm",
    "moved": "shape_before",
    "before": "rank_before_new",
    "end": "rank_last_new",
    "relative": "rank_before_relative",
    "others": "rank_before_others",
    "lessons": "rank_swapped",
}


def _settings() -> dict[str, Any]:
    """The experiment's two settings with more checkpoints and without sums."""
    from dataclasses import replace

    from toyld.digits.experiments import stability

    found = {one.name.split(",")[0]: one for one in stability.SIZES["smoke"]}
    return {name: replace(one, shares=SHARES, summed=0) for name, one in found.items()}


def data(size: str) -> Table:
    """One row per network, what is read, and epoch or pair of classes; `seed`: rows of the first seed alone."""
    from toyld import digits
    from toyld.digits.experiments import stability
    from toyld.digits.experiments._rankings import alike

    columns: dict[str, list[Any]] = {name: [] for name in ("network", "what", "epoch", "a", "b", "mean", "low", "high")}

    def add(*values: Any) -> None:
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)

    for network, setting in _settings().items():
        seeds = range(SEED, SEED + (4 if size == "smoke" else SEEDS[network]))
        found = stability.observe(digits.embedded(), seeds, setting)
        for what, variable in READ.items():
            for i, epoch in enumerate(found.trained.epochs):
                units = found.columns[f"eval_{variable}"][:, i]
                units = units / found.columns["eval_norm"][:, 0] if what == "norm" else units
                if np.isfinite(units).all():
                    add(network, what, epoch, -1, -1, *interval(units))
        for a in range(10):
            for b in range(a):
                add(network, "alike", found.trained.epochs[-1], a, b, *interval(alike(found.relative[:, -1], a, b)))
        for what in ("norm", "rank_first_new"):
            first = float(found.columns[f"eval_{what}"][0, -1])
            add(network, f"first seed, {what}", found.trained.epochs[-1], -1, -1, first, first, first)
    return {name: np.array(values) for name, values in columns.items()}


def _curve(ax: Any, table: Mapping[str, Any], network: str, what: str, **look: Any) -> None:
    one, color = rows(table, network=network, what=what), COLOURS[network]
    ax.plot(one["epoch"], one["mean"], color=color, **({"lw": 1.2} | look))
    ax.fill_between(one["epoch"], one["low"], one["high"], color=color, alpha=0.16, lw=0)


def draw(table: Mapping[str, Any]) -> Any:
    """Three panels of curves, one of classes."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from toyld.digits.experiments.stability import DIFFERENT, SIMILAR

    fig = Figure(figsize=(5.5, 4.7))
    axes = fig.subplots(2, 2).ravel()
    last = float(np.max(table["epoch"]))
    for network in COLOURS:
        _curve(axes[0], table, network, "norm", label=network)
        _curve(axes[1], table, network, "moved", marker="o", ms=2.6, clip_on=False)
        _curve(axes[2], table, network, "before", marker="o", ms=2.6, clip_on=False)
        _curve(axes[2], table, network, "end", ls=(0, (3, 1.5)), lw=0.9)
        _curve(axes[2], table, network, "lessons", ls=(0, (1, 1.2)), lw=0.9)
    for ax, log in zip(axes[:3], (True, True, False), strict=True):
        if log:
            ax.set_yscale("log")
        ax.set_xscale("function", functions=(np.sqrt, np.square))
        ax.set_xlim(0.0, last * 1.01)
        ax.set_xticks([0, 1, 2, 4, 8, 12, 16])
        ax.set_xlabel("epoch")
    axes[0].set_ylabel("E‖K‖ relative to its start")
    axes[0].legend(loc="upper left")
    axes[1].set_ylabel("E‖K/k − K′/k′‖, k = E‖K‖")
    axes[2].set_ylabel("rank correlation")
    axes[2].set_ylim(0.0, 1.02)
    axes[2].axhline(0.9, color=QUIET, lw=0.6, zorder=0)
    for label, ls in (("a tenth before", "-"), ("the end", (0, (3, 1.5))), ("other lessons", (0, (1, 1.2)))):
        axes[2].plot([], [], color=INK, ls=ls, lw=1.0, label=label)
    axes[2].legend(loc="center right", bbox_to_anchor=(1.0, 0.47), title="with", title_fontsize=6.8, alignment="left")
    title(axes[0], "A", "Norms grow")
    title(axes[1], "B", "Their shape moves on")
    title(axes[2], "C", "Their ranking stays")
    pairs = rows(table, network="MLP", what="alike")
    grid = np.full((10, 10), np.nan)
    grid[pairs["a"], pairs["b"]] = grid[pairs["b"], pairs["a"]] = pairs["mean"]
    ax, most = axes[3], float(np.abs(pairs["mean"]).max())
    for a in range(10):
        ax.text(a, a, str(a), ha="center", va="center", fontsize=6.8, fontweight="bold", color=INK)
    image = ax.imshow(grid, cmap="RdBu_r", vmin=-most, vmax=most)
    for some, ls in ((SIMILAR, "-"), (DIFFERENT, (0, (2, 1.2)))):
        for a, b in (pair[::way] for pair in some for way in (1, -1)):
            ax.add_patch(Rectangle((a - 0.5, b - 0.5), 1, 1, fill=False, ec=INK, lw=1.0, ls=ls))
    ax.set_xticks(range(10))
    ax.set_yticks(range(10))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = fig.colorbar(image, ax=ax, shrink=0.85, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_label("couple more than with others (log)", fontsize=6.8)
    title(ax, "D", "Who couples with whom")
    return fig


def _jacobian(module: Any, image: Any) -> Any:
    """∂z/∂θ of one image, (10, parameters), by torch.autograd.functional.jacobian."""
    import torch

    names, theta = zip(*module.named_parameters(), strict=True)

    def logits(*parts: torch.Tensor) -> Any:
        return torch.func.functional_call(module, dict(zip(names, parts, strict=True)), (image[None],))[0]

    found = torch.autograd.functional.jacobian(logits, tuple(p.detach() for p in theta))
    return torch.cat([part.reshape(10, -1) for part in found], 1).double()


def _by_hand(network: str) -> dict[str, float]:
    """Mean norm at the end and rank correlation with the start, of the first seed, from autograd's Jacobians."""
    import torch
    from scipy.stats import spearmanr

    from toyld import digits
    from toyld.digits.experiments._couplings import pictures

    setting = _settings()[network]
    trained = digits.train(digits.embedded(), network=setting.network, seeds=[SEED], recipe=setting.recipe)
    images, _ = pictures(digits.embedded(), trained.index, [SEED], setting.images)
    half, norms = len(images[0]) // 2, []
    for mark in (trained.marks[0], trained.marks[-1]):
        module = trained.module(None, SEED, update=mark)
        flat = [_jacobian(module, image) for image in images[0]]
        grid = [[float(torch.linalg.matrix_norm(o @ u.T)) for u in flat[:half]] for o in flat]
        norms.append(np.array(grid))
    other = ~np.eye(len(flat), half, dtype=bool)
    ranks = [spearmanr(norms[0][half:, u], norms[1][half:, u]).statistic for u in range(half)]
    return {"norm": float(norms[1][other].mean()), "rank_first_new": float(np.mean(ranks))}


def check(table: Mapping[str, Any]) -> None:
    """What the caption tells of the curves and classes; one seed of each network from Jacobians, by hand."""
    centred(table)
    last = float(np.nanmax(table["epoch"]))
    require(last == 16.0 and np.nanmin(table["epoch"]) == 0.0, f"expected epochs 0 to 16, got up to {last:g}")
    for network in COLOURS:
        for what, want in _by_hand(network).items():
            found = float(rows(table, network=network, what=f"first seed, {what}")["mean"][0])
            # float32 kernels; a rank correlation moves by a swap of two neighbours of 20
            slack = 1e-4 * want if what == "norm" else 0.01
            require(abs(found - want) < slack, f"{network}: {what} of the first seed {found:.5g}, by hand {want:.5g}")
        mean = {what: rows(table, network=network, what=what)["mean"] for what in READ}
        require(mean["norm"][-1] > 20, f"{network}: expected norms grown twentyfold, got {mean['norm'][-1]:.1f}")
        require(len(mean["before"]) == 10, f"{network}: expected ten tenths, got {len(mean['before'])}")
        late, early = mean["before"][-2:].min(), mean["before"][:2].mean()
        require(late > 0.9 > early, f"{network}: expected a ranking messy early, stable late, got {early}, {late}")
        require(mean["moved"][-1] > 0.04, f"{network}: expected the kernel to move on, got {mean['moved'][-1]:.3f}")
        for what in ("relative", "others"):
            require(mean[what][-2:].min() > 0.9, f"{network}: expected .9 late of {what}, got {mean[what][-2:]}")
        require(mean["lessons"][-1] < 0.5, f"{network}: expected lessons to differ, got {mean['lessons'][-1]:.2f}")
        require(abs(mean["end"][-1] - 1.0) < 1e-9, f"{network}: expected 1 with itself, got {mean['end'][-1]}")

    def pair(a: int, b: int) -> float:
        return float(rows(table, network="MLP", what="alike", a=max(a, b), b=min(a, b))["mean"][0])

    require(pair(3, 5) > 0 > pair(6, 7), f"MLP: expected 3-5 similar, 6-7 not, got {pair(3, 5)}, {pair(6, 7)}")
    require(pair(4, 9) < 0, f"MLP: expected 4-9 to be no pair, got {pair(4, 9):.2f}")
