"""Pushing down a rarer label: losers lose more; y* rises no more, yet gains more per unit taken

Trend 3 of §3.3 says: the smaller π(y⁻), the more the others fall and the more y* rises. One negative step (s = .5) on
y⁻ against its probability p_y, four classes, the three others in fixed proportions q (one line each, named by the
share q* of y* among them). A: the rarest of the others, where it falls, falls by a larger factor the rarer y⁻ is: true
of losers (`trends.scaled-losers-fall-more`), though not of all others (`trends.scaled-others-fall-more` is refuted).
B: below p_y = .25 the rise of y* (in mass) does not grow as p_y gets smaller, it shrinks: refuted as worded
(`trends.scaled-rarer-lifts-top-more`), and for s ≤ 1 the contrary is a theorem, in mass for p_y ≤ 1/12 and in the
factor p′/p of y* up to .396 at least (`trends.scaled-rarer-lifts-top-less`); above .4 it does grow. C: what y* gets
for each unit of probability taken from y⁻, ρ = Δp_{y*}/|Δp_y|, does grow (`trends.share-falls-with-label`), like 1/p_y
(`trends.share-law`), unless the others are equal (ρ = 1/3, `squeeze.runner-up-share`): the measure in which the trend
is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§3.3 trend 3, App. E Claim 4"
DIFFERS = (
    "The paper states the trend and shows it in an example; here it is tested measure by measure. Half of it is "
    "wrong as worded: y* does not rise more when a rarer label is pushed down."
)
TAGS = ("softmax", "squeezing")
STEP = 0.5
SHARES = {
    "peaked": (0.95, 0.04, 0.01),
    "mixed": (0.7, 0.2, 0.1),
    "flat": (0.4, 0.33, 0.27),
    "equal": (1 / 3, 1 / 3, 1 / 3),
}
EPS = float(np.finfo(float).eps)


def data(size: str) -> Table:
    """One row per proportions q and probability of the label."""
    grid = np.geomspace(1e-4, 0.9, 25 if size == "smoke" else 161)
    grid = np.unique(np.concatenate([grid, [0.001, 0.01, 0.05, 0.2, 0.4]]))
    columns: dict[str, list[Any]] = {}
    for name, q in SHARES.items():
        z = np.log(np.column_stack([np.outer(1.0 - grid, q), grid]))
        label = np.full(len(grid), 3)
        change = sm.log_alpha(z, label, s=STEP)
        moved = sm.softmax(z) * np.expm1(change)
        made = {
            "others": np.full(len(grid), name),
            "share_of_runner_up": np.full(len(grid), q[0]),
            "p_label": grid,
            "ratio_rarest_other": np.exp(change[:, 2]),
            "gain_runner_up": moved[:, 0],
            "loss_label": -moved[:, 3],
            "gain_per_loss": sm.squeezing_ratio(z, label, s=STEP),
        }
        for column, values in made.items():
            columns.setdefault(column, []).append(values)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


LOOKS: dict[str, dict[str, Any]] = {
    "peaked": {"color": RISE, "ls": "-"},
    "mixed": {"color": FALL, "ls": "-"},
    "flat": {"color": SOFT, "ls": (0, (5, 1.5))},
    "equal": {"color": QUIET, "ls": (0, (1.2, 1.2))},
}


def draw(table: Mapping[str, Any]) -> Any:
    """Three measures of one step, side by side."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 2.5))
    axes = fig.subplots(1, 3)
    for name, look in LOOKS.items():
        one = rows(table, others=name)
        x = one["p_label"]
        share = f"{float(one['share_of_runner_up'][0]):.2f}".lstrip("0").rstrip("0")
        for ax, column in zip(axes, ("ratio_rarest_other", "gain_runner_up", "gain_per_loss"), strict=True):
            ax.plot(x, one[column], lw=1.8, **look)
        start = (x[0], one["ratio_rarest_other"][0])
        place = {"xytext": (3, -6 if name == "flat" else 5), "textcoords": "offset points", "va": "center"}
        axes[0].annotate(f"q* = {share}", start, fontsize=6.5, color=INK, **place)
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xlim(table["p_label"].min(), 1.0)
        ax.set_xlabel("p(y⁻) before the step")
    axes[0].axhline(1.0, color=INK, lw=0.5)
    axes[0].set_ylabel("p′/p of the rarest other")
    axes[1].set_ylabel("Δp of y*")
    axes[1].set_ylim(0.0, None)
    axes[2].set_yscale("log")
    axes[2].set_ylabel("ρ = Δp(y*) / |Δp(y⁻)|")
    title(axes[0], "A", "Losers lose more ✓")
    title(axes[1], "B", "y* rises more ✗")
    title(axes[2], "C", "… per unit taken ✓")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """Monotone where the caption says so, and the published values."""
    gainers = []
    for name, q in SHARES.items():
        one = rows(table, others=name)
        p, rest, gain, rho = (one[c] for c in ("p_label", "ratio_rarest_other", "gain_runner_up", "gain_per_loss"))
        z = np.log(np.column_stack([np.outer(1.0 - p, q), p]))
        after = sm.softmax(sm.step(z, sm.residual(z, np.full(len(p), 3), c=-1.0), s=STEP))
        off = np.abs(gain - (after[:, 0] - (1 - p) * q[0])).max()
        require(off < 64 * EPS, f"{name}: Δp of y* is off the update really taken by {off:.3g}")
        off = np.abs(one["loss_label"] - (p - after[:, 3])).max()
        require(off < 64 * EPS, f"{name}: the loss of y⁻ is off by {off:.3g}")
        off = np.abs(rho * one["loss_label"] - gain).max()
        require(off < 64 * EPS, f"{name}: ρ·|Δp_y| is off Δp_y* by {off:.3g}")
        off = np.abs(rest - after[:, 2] / ((1 - p) * q[2])).max()
        require(off < 64 * EPS / q[2], f"{name}: p′/p of the rarest other is off by {off:.3g}")
        off = np.abs(one["share_of_runner_up"] - q[0]).max()
        require(off == 0.0, f"{name}: the share q* = {q[0]} is off by {off:.3g}")
        least = min(gain.min(), one["loss_label"].min())
        require(least > 0, f"{name}: the gain of y* or the loss of y⁻ is {least:.3g} somewhere")
        falls = np.diff(rest[rest < 1.0])
        least = falls.min(initial=np.inf)
        require(least > 0, f"{name}: where it loses, p′/p of the rarest other changes with p_y by {least:.3g}")
        gainers.append(np.diff(rest[rest >= 1.0]).min(initial=np.inf))
        # In mass: the theorem's range p_y ≤ 1/12 and on to .25. As a factor: the theorem's range.
        factor = gain / ((1.0 - p) * q[0])
        for what, values, high in (("Δp", gain, 0.25), ("p′/p", factor, 0.396)):
            rises = np.diff(values[p <= high])
            require((rises > 0).all(), f"{name}: up to p_y = {high}, {what} of y* falls with p_y by {-rises.min():.3g}")
        falls = np.diff(gain[p >= 0.4])
        require((falls < 0).all(), f"{name}: from p_y = .4, Δp of y* rises with p_y by {falls.max():.3g}")
        if name == "equal":
            off = np.abs(rho - 1 / 3).max()
            require(off < 1e-9, f"equal others: ρ differs from 1/3 by {off:.3g}")
        else:
            require((np.diff(rho) < 0).all(), f"{name}: ρ is not decreasing in p_y")
            require(rho[0] > 100, f"{name}: ρ = {rho[0]:.3g} at p_y = {p[0]:.3g}")
            scaled = (rho * p)[p <= 1e-3]
            change = float(np.ptp(scaled) / scaled[0])
            require(change < 0.05, f"{name}: ρ·p_y changes by {change:.1%} below p_y = .001, so ρ is not like 1/p_y")
    least = min(gainers)
    require(least < 0, f"an other that gains never gains more the rarer y⁻ is (least change {least:.3g})")
    mixed = rows(table, others="mixed")
    golden = {0.001: (98.4, 0.053), 0.01: (10.4, 0.056), 0.05: (2.63, 0.067), 0.2: (1.16, 0.095), 0.4: (0.92, None)}
    for p_label, (rho_there, gain_there) in golden.items():
        at = int(np.flatnonzero(mixed["p_label"] == p_label)[0])
        got = float(mixed["gain_per_loss"][at]), float(mixed["gain_runner_up"][at])
        near = abs(got[0] - rho_there) <= (0.05 if rho_there > 9 else 0.005)
        require(near, f"q = (.7, .2, .1), p_y = {p_label}: ρ = {got[0]:.4g}, published {rho_there}")
        near = gain_there is None or abs(got[1] - gain_there) <= 0.0005
        require(near, f"q = (.7, .2, .1), p_y = {p_label}: Δp of y* = {got[1]:.4g}, published {gain_there}")
