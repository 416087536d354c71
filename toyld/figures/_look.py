"""What the figures share: colours that differ in lightness too, panel titles, and the one way a check complains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["FALL", "GREEN", "INK", "QUIET", "RISE", "SOFT", "centred", "interval", "note", "require", "title"]

RISE = "#0B3954"  # navy, L* = 22
FALL = "#D55E00"  # vermilion, L* = 53
SOFT = "#E69F00"  # orange, L* = 71
GREEN = "#4C7A5D"  # moss, L* = 47
QUIET = "#B8B8B8"
INK = "#333333"


def title(ax: Any, letter: str, text: str, /) -> None:
    """A panel's letter and its message."""
    ax.set_title(f"{letter}  {text}" if letter else text)


def note(ax: Any, x: float, y: float, text: str, /, **options: Any) -> Any:
    """A remark inside a panel, in axes coordinates, on a white ground so that it stays legible."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
    settings = {"fontsize": 6.5, "color": INK, "va": "top", "bbox": box, "linespacing": 1.35} | options
    return ax.text(x, y, text, transform=ax.transAxes, **settings)


def require(condition: Any, message: str, /) -> None:
    """Raise AssertionError with the message unless the condition holds (also under python -O)."""
    if not bool(condition):
        raise AssertionError(message)


def interval(units: Any, /) -> tuple[float, float, float]:
    """Mean over seeds, units (n,), and the ends of its 95 % interval by Student's t; nan where there are too few.

    >>> [round(x, 3) for x in interval([1.0, 2.0, 3.0])]
    [2.0, -0.484, 4.484]
    """
    from scipy.special import stdtrit

    x = np.asarray(units)
    mean = float(x.mean()) if len(x) else float("nan")
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else float("nan")
    return mean, mean - half, mean + half


def centred(table: Mapping[str, Any], /, *, mean: str = "mean") -> None:
    """Require that every interval (columns low, high) lies evenly about its mean, as Student's does."""
    x, low, high = (np.asarray(table[name], float) for name in (mean, "low", "high"))
    off = np.abs(low + high - 2.0 * x)
    worst = float(np.nanmax(off, initial=0.0))
    require(worst < 1e-6 * max(1.0, float(np.nanmax(np.abs(x)))), f"an interval lies {worst:.3g} aside of its mean")
