"""What tiny models say, in few lines: facts right, repetition and KL at the start and the end of the last stage."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import xarray as xr

from toyld.report.sweeps import interval

__all__ = ["COLUMNS", "print_answers", "row"]

# heading → column of the table
COLUMNS = {
    "right": "eval_right_greedy",
    "sampled": "eval_right",
    "repeated": "eval_repetition",
    "KL(truth ‖ π)": "eval_kl_truth",
}


def row(ds: xr.Dataset, /) -> list[str]:
    """Every column as first → last and the change with its interval over seeds; no interval with one seed.

    >>> from toyld.trajectory import trajectory
    >>> table = {name: [[0.5, 0.25], [0.5, 0.125]] for name in COLUMNS.values()}
    >>> row(trajectory(table, step=[0, 9], probe=["chosen"], seed=[0, 1]))[0]
    '0.50 → 0.19 [−1.11, +0.48]'
    """
    out = []
    for name in COLUMNS.values():
        values = ds[name].transpose("seed", "step").values
        _, low, high = interval(values[:, -1] - values[:, 0])
        between = f" [{low:+.2f}, {high:+.2f}]" if np.isfinite(low) else ""
        out.append(f"{values[:, 0].mean():.2f} → {values[:, -1].mean():.2f}{between}".replace("-", "−"))
    return out


def print_answers(tables: Sequence[xr.Dataset], /) -> None:
    """A line an arm, of its last stage; tables as `read_folder` gives them, stage by stage."""
    from rich.console import Console
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    for name in ("what they say", *COLUMNS):
        out.add_column(name, justify="left" if name == "what they say" else "right", overflow="fold")
    last = tables[-1].attrs["stage"]
    for ds in tables:
        if ds.attrs["stage"] == last:
            out.add_row(f"{last}-{ds.attrs['arm']}", *row(ds))
    print()
    Console(width=None if sys.stdout.isatty() else 160).print(out)
    print(
        "Answers to the trained prompts, first → last evaluation, means over seeds, [95 % interval of the change over\n"
        "seeds]. right: greedy answers, well formed and true; sampled: the same at temperature 1; repeated: of the\n"
        "bigrams in greedy answers; KL: nats a response."
    )
