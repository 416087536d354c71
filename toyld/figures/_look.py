"""What the figures share: colours that differ in lightness too, panel titles, and the one way a check complains."""

from __future__ import annotations

from typing import Any

__all__ = ["FALL", "INK", "QUIET", "RISE", "SOFT", "note", "require", "title"]

RISE = "#0B3954"  # navy, L* = 22
FALL = "#D55E00"  # vermilion, L* = 53
SOFT = "#E69F00"  # orange, L* = 71
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
