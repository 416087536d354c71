"""Teaching y⁻ first (“extend”) takes the squeeze out of pushing it down later

The paper's remedy in closed form (§4.3). SFT leaves 1 − ε on what it was taught; the other 50 classes share ε as
1/rank. Then y⁻ is pushed down by one step of size s. A: the first-order threshold τ(0+) = ‖p‖² − p(y⁻)
(`squeeze.threshold-limit`); below 0 nobody else loses to first order. B: after SFT on y⁺ alone, y⁻ is improbable and
every class but y⁺ loses, at every step, once y⁺ holds .577 (`extend.without-it`). C: after SFT on both, at a context
on y⁻'s own path y⁻ holds 1 − ε and for ε ≤ .1 nobody else loses up to s = 166, certainly not below the dotted line
log((1 − ε)/ε)/ε (`extend.own-path`); not at any step, though (`extend.own-path-any-step` is refuted). D: at a context
that both share, p₊ = p₋ = (1 − ε)/2, the relief holds for small steps only: surely below the dotted line 4ε(1 − ε) +
8(m − r), m the least and r the sum of squares of the rest (`extend.shared-context`); for ε ≤ .1 the first loser comes
at 4.0ε, within the bound 2 artanh(2ε + 4m/(1 − ε)) (`extend.shared-context-first-loser`). Pushing y⁺ up at the same
time, as DPO does there, cancels the relief anyway (`pair.rest-moves-together`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.figures._look import FALL, INK, RISE, SOFT, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§4.3, Fig. 5 (the idea behind it)"
DIFFERS = (
    "The paper shows runs of a language model; this is the mechanism alone, one softmax and one step, in closed "
    "form. Only the negative half of DPO is drawn, since at a shared context the positive one cancels the relief."
)
TAGS = ("softmax", "squeezing", "remedies")
CONTEXTS = ("plus only", "own path", "shared")
OTHERS = 50
S_RANGE = (1e-2, 1e3)
SMALL = 0.1  # the ε up to which the caption states numbers
EPS = float(np.finfo(float).eps)


def _start(context: str, epsilon: float) -> tuple[np.ndarray, int]:
    """Probabilities after SFT and the index of y⁻."""
    rest = 1.0 / np.arange(1, OTHERS + 1)
    rest = epsilon * rest / rest.sum()
    if context == "plus only":  # y⁻ is one of the rest, in the middle
        return np.r_[1.0 - epsilon, rest], OTHERS // 2
    if context == "own path":
        return np.r_[1.0 - epsilon, rest], 0
    return np.r_[0.5 - epsilon / 2, 0.5 - epsilon / 2, rest], 1


def _reaches(p: np.ndarray, y: int, level: float) -> float:
    """The step at which τ(s) = level: 0 where it starts above, inf where it stays below; τ never falls (T4)."""
    from scipy.optimize import brentq

    z = np.log(p)

    def gap(log_s: float) -> float:
        return float(sm.threshold(z, y, s=float(np.exp(log_s)))) - level

    low, high = np.log(1e-9), np.log(1e9)
    if float(sm.threshold_limit(z, y)) >= level:
        return 0.0
    return float(np.exp(brentq(gap, low, high, xtol=1e-10))) if gap(high) > 0.0 else np.inf


def _guaranteed(context: str, p: np.ndarray, epsilon: float) -> float:
    """The step up to which theory promises that nobody else loses (extend.own-path, extend.shared-context)."""
    if context == "own path":
        return float(np.log((1.0 - epsilon) / epsilon) / epsilon)
    if context == "shared":
        rest = p[2:]
        return float(4.0 * epsilon * (1.0 - epsilon) + 8.0 * (rest.min() - rest @ rest))
    return 0.0


def data(size: str) -> Table:
    """One row per context and ε: the threshold's start, the step of the first loser, and that of the last winner."""
    epsilons = np.union1d(np.geomspace(1e-3, 0.5, 13 if size == "smoke" else 97), [SMALL])
    columns: dict[str, list[Any]] = {}
    for context in CONTEXTS:
        for epsilon in epsilons:
            p, y = _start(context, float(epsilon))
            falling = np.sort(np.delete(p, y))[::-1]
            made = {
                "context": context,
                "epsilon": float(epsilon),
                "threshold_limit": float(sm.threshold_limit(np.log(p), y)),
                "first_loser_step_s": _reaches(p, y, float(falling[-1])),
                "guaranteed_step_s": _guaranteed(context, p, float(epsilon)),
                "only_winner_step_s": _reaches(p, y, float(falling[1])),
            }
            for name, value in made.items():
                columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


# Words, colour, dashes, and where the words stand: (ε, τ, alignment).
LINES: dict[str, tuple[str, str, Any, tuple[float, float, str]]] = {
    "plus only": ("SFT on y⁺ only", FALL, "-", (0.03, 0.86, "right")),
    "shared": ("extend, shared context", SOFT, (0, (5, 1.5)), (0.0013, 0.05, "left")),
    "own path": ("extend, y⁻’s own path", RISE, "-", (0.0013, -0.12, "left")),
}
PANELS = {
    "plus only": ("B", "SFT on y⁺ only: squeezed"),
    "own path": ("C", "Extend, y⁻’s own path: spared"),
    "shared": ("D", "Extend, shared: small steps"),
}
# Where the words stand in the panels: (ε, s, words, colour).
WORDS = {
    "plus only": [(0.02, 3.0, "all others lose,\nexcept y⁺", "white")],
    "own path": [(0.008, 3.0, "nobody else loses", INK), (0.2, 400.0, "all but y*\nlose", "white")],
    "shared": [(0.12, 0.03, "nobody\nelse loses", INK), (0.01, 30.0, "all others lose,\nexcept y⁺", "white")],
}


def draw(table: Mapping[str, Any]) -> Any:
    """The first-order threshold, and who loses over (ε, s) in three contexts."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.5))
    axes = fig.subplots(2, 2, sharex=True).ravel()
    first = axes[0]
    for context, (words, color, dashes, (left, height, side)) in LINES.items():
        one = rows(table, context=context)
        first.plot(one["epsilon"], one["threshold_limit"], color=color, ls=dashes, lw=2.0)
        first.text(left, height, words, color=INK if color == SOFT else color, fontsize=7, ha=side, weight="bold")
    first.axhline(0.0, color=INK, lw=0.6)
    first.set_ylabel("τ(0+) = ‖p‖² − p(y⁻)")
    title(first, "A", "Below 0 nobody else loses")
    for ax, (context, name) in zip(axes[1:], PANELS.items(), strict=True):
        one = rows(table, context=context)
        x = one["epsilon"]
        low, high = (np.clip(one[f"{c}_step_s"], *S_RANGE) for c in ("first_loser", "only_winner"))
        ax.fill_between(x, S_RANGE[0], low, color="white", lw=0)
        ax.fill_between(x, low, high, color="#F3C9AB", lw=0)
        ax.fill_between(x, high, S_RANGE[1], color=FALL, lw=0)
        ax.plot(x, low, color=INK, lw=0.8)
        if context != "plus only":
            ax.plot(x, one["guaranteed_step_s"], color=INK, lw=0.9, ls=(0, (1.2, 1.5)))
        if context == "own path":
            ax.text(0.0013, 0.014, "below the dots: guaranteed", fontsize=6.5, color=INK)
        for at, step, words, color in WORDS[context]:
            ax.text(at, step, words, color=color, fontsize=7.5, weight="bold", ha="center", va="center")
        ax.set_yscale("log")
        ax.set_ylim(*S_RANGE)
        title(ax, *name)
    for ax in axes:
        ax.set_xscale("log")
        ax.set_xlim(table["epsilon"].min(), table["epsilon"].max())
    for ax in axes[2:]:
        ax.set_xlabel("ε, what SFT leaves to all the rest")
        ax.set_ylabel("step  s = η‖x‖²")
    axes[1].set_ylabel("step  s = η‖x‖²")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """Closed forms of τ(0+), and who loses on either side of the lines."""
    w2 = float(np.sum((1.0 / np.arange(1, OTHERS + 1)) ** 2) / np.sum(1.0 / np.arange(1, OTHERS + 1)) ** 2)
    for context in CONTEXTS:
        one = rows(table, context=context)
        names = ("epsilon", "threshold_limit", "first_loser_step_s", "guaranteed_step_s", "only_winner_step_s")
        for e, limit, first, promised, only in zip(*(one[name] for name in names), strict=True):
            p, y = _start(context, e)
            require(promised == _guaranteed(context, p, e), f"{context}, ε = {e:.3g}: not guaranteed: {promised:.4g}")
            require(promised <= first, f"{context}, ε = {e:.3g}: first loser at {first:.4g}, guaranteed {promised:.4g}")
            closed = {
                "plus only": (1 - e) ** 2 + e**2 * w2 - p[y],
                "own path": -e * (1 - e) + e**2 * w2,
                "shared": -e * (1 - e) / 2 + e**2 * w2,
            }[context]
            require(abs(limit - closed) < 64 * EPS, f"{context}, ε = {e:.3g}: τ(0+) = {limit}, closed form {closed}")
            for s, losers in ((first, 0), (only, len(p) - 2)):
                for factor in (0.999, 1.001):
                    change = np.delete(sm.log_alpha(np.log(p), y, s=max(s * factor, 1e-9)), y)
                    fell = int((change < 0).sum())
                    beyond = factor > 1 or s == 0.0
                    fits = (fell > 0) == beyond if losers == 0 else (fell == losers) == beyond
                    require(fits, f"{context}, ε = {e:.3g}, s = {s * factor:.4g}: {fell} of {len(p) - 1} others lose")
        small = one["epsilon"] <= SMALL
        require(one["epsilon"][small].max() == SMALL, f"{context}: no row at ε = {SMALL}")
        if context == "plus only":
            held = 1 - one["epsilon"] >= 3**-0.5
            worst = one["only_winner_step_s"][held].max()
            require(worst == 0.0, f"SFT on y⁺ only: somebody but y⁺ gains up to s = {worst:.3g}")
        else:
            worst = one["threshold_limit"][small].max()
            require(worst < 0.0, f"{context}: τ(0+) = {worst:.3g} is not below 0 although ε ≤ .1")
            latest = one["first_loser_step_s"].max()
            require(np.isfinite(latest), f"{context}: nobody else ever loses (first loser at {latest})")
    own, shared = (rows(table, context=c)["first_loser_step_s"] for c in ("own path", "shared"))
    ratio = float((own[small] / shared[small]).min())
    require(
        ratio > 100.0,
        f"ε ≤ .1: the first loser on y⁻'s own path comes only {ratio:.3g} times as late as at the shared context",
    )
    earliest = float(own[small].min())
    require(round(earliest) == 166, f"own path, ε ≤ .1: first loser at s = {earliest:.4g}, the caption says 166")
    epsilon = rows(table, context="shared")["epsilon"]
    multiple = shared[small] / epsilon[small]
    require(
        (np.round(multiple, 1) == 4.0).all(),
        f"shared: first loser at {multiple.min():.3g}ε to {multiple.max():.3g}ε, the caption says 4.0ε",
    )
    least = np.array([_start("shared", e)[0].min() for e in epsilon[small]])
    bound = 2.0 * np.arctanh(2.0 * epsilon[small] + 4.0 * least / (1.0 - epsilon[small]))
    late = float((shared[small] / bound).max())
    require(late <= 1.0, f"shared: first loser at {late:.4g} times the bound 2 artanh(2ε + 4m/(1 − ε))")
