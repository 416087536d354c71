"""A sweep in few lines: for every condition the means over seeds with intervals, and the verdict on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats

from toyld.checked import LARGEST
from toyld.contexts.sweep import AXES
from toyld.diagnosis import DEFAULT, Move, classify

__all__ = ["SHOWN", "conditions", "diverged", "interval", "print_summary", "summary"]

SHOWN: tuple[str, ...] = (
    "start_chosen",
    "start_rejected",
    "d_chosen",
    "d_argmax",
    "d_rejected",
    "d_test",
    "gap",
    "margin",
    "squeezed",
)
SHOWN += ("at_d_chosen", "at_d_argmax", "at_d_test", "at_gap", "at_squeezed")


def conditions(table: Mapping[str, Any], /) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The conditions (columns of the axes but the seed), and the number of each run's."""
    axes = AXES[:-1]
    found, index = np.unique(np.stack([table[name] for name in axes], 1), axis=0, return_inverse=True)
    return dict(zip(axes, found.T, strict=True)), index.reshape(-1)


def interval(values: np.ndarray, /) -> tuple[float, float, float]:
    """Mean, and Student's 95 % interval over what is known; NaN where that is under two values."""
    known = values[np.isfinite(values)]
    if len(known) < 2:
        return (float(known[0]), np.nan, np.nan) if len(known) else (np.nan, np.nan, np.nan)
    with np.errstate(over="ignore"):  # of a descent that diverged: the interval is endless
        half = float(stats.t.ppf(0.5 + DEFAULT.level / 2, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5)
    return float(known.mean()), float(known.mean()) - half, float(known.mean()) + half


def summary(table: Mapping[str, Any], /) -> dict[str, np.ndarray]:
    """One row a condition: its values on the axes, `seeds`, and of every outcome mean, `…_low` and `…_high`.

    verdict and at_verdict: the class (`toyld.diagnosis.classify`) of the means over seeds, at the end and at the
    margin; a mean counts as moved where its interval lies beyond a hundredth of where it started, as for any run.
    A condition reads divergence, too, where one of its runs has (`diverged`): the means are then of nothing.
    """
    axes, index = conditions(table)
    rows = [np.flatnonzero(index == i) for i in range(index.max() + 1)]
    out: dict[str, Any] = {**axes, "seeds": np.array([len(at) for at in rows])}
    out["at_seeds"] = np.array([int(np.isfinite(table["at_step"][at]).sum()) for at in rows])
    for name in SHOWN:
        mean, low, high = np.array([interval(table[name][at]) for at in rows]).T
        out |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    for at in ("", "at_"):
        out[f"{at}verdict"] = np.array([_verdict(table, rows_, at) for rows_ in rows])
    return out


def diverged(changes: np.ndarray, /) -> bool:
    """Whether a descent has left ±1e6 nats, where logits lose their digits: it came apart, whatever the classes say.

    >>> diverged(np.array([-300.0, np.nan])), diverged(np.array([-300.0, -7e18]))
    (False, True)
    """
    return bool(np.any(np.abs(changes) > LARGEST))


def _verdict(table: Mapping[str, Any], rows: np.ndarray, at: str) -> str:
    """The class of one condition."""
    path = np.array([table[f"{at}{name}"][rows] for name in ("d_chosen", "d_argmax", "d_rejected")])
    if diverged(path if at else np.nan_to_num(path, nan=np.inf)):  # NaN at the margin: not reached
        return "divergence"
    chosen, argmax = (float(table[f"start_{name}"][rows].mean()) for name in ("chosen", "argmax"))
    floor = {"chosen": chosen, "argmax": argmax, "gap": argmax, "rejected": float(table["start_rejected"][rows].mean())}

    def move(name: str, column: str) -> Move:
        mean, low, high = interval(table[at + column][rows])
        return Move(*(np.array([x]) for x in (mean, low, high, -DEFAULT.material * floor[name])))

    moved = move("chosen", "d_chosen"), move("argmax", "d_argmax"), move("gap", "gap")
    return str(classify(*moved, move("rejected", "d_rejected"), -argmax)[0])


def print_summary(rows: Mapping[str, Any], /, *, most: int = 30) -> None:
    """How many conditions have which verdict, and the conditions themselves where they are few enough to read."""
    from rich.console import Console
    from rich.table import Table

    n = len(rows["verdict"])
    count = ", ".join(f"{name} {number}" for name, number in Counter(rows["verdict"].tolist()).most_common())
    if n <= most:
        out = Table(box=None, pad_edge=False)
        for name in (*AXES[:-1], "seeds", "Δchosen", "Δargmax", "Δtest", "squeezed", "verdict"):
            out.add_column(name, justify="left" if name == "verdict" else "right")
        for i in range(n):
            numbers = [f"{rows[name][i]:g}" for name in (*AXES[:-1], "seeds")]
            changes = [_signed(rows[name][i]) for name in ("d_chosen", "d_argmax", "d_test")]
            out.add_row(*numbers, *changes, f"{rows['squeezed'][i]:.0%}", str(rows["verdict"][i]))
        Console(width=120).print(out)
    print(f"{n} conditions, {int(rows['seeds'].sum())} runs: {count}")
    print(
        "Δ: change over DPO, nats a response, mean over seeds. A change whose 95 % interval over seeds includes 0,\n"
        "or comes within 1 % of where it started, counts as still: with few seeds many do (intervals: summary.csv)."
    )


def _signed(x: float) -> str:
    return f"{x:+.2f}" if abs(x) < 1e5 else f"{x:+.0e}"
