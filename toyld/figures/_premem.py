"""The grid of recipes of the experiment `premem` in one table: what every run of every seed ended with.

It comes with the package (`toyld/evidence/tiny-premem.csv`), since the grid takes half an hour; its effects stand in
`tiny-premem.json`. Both are written by one command, into an empty folder:

    python -c "from toyld import scoreboard; from toyld.figures import _premem; scoreboard.record_experiments('tiny',
    'FOLDER', only=('premem',)); _premem.record('FOLDER/tiny-premem.csv')"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toyld.figures._table import Table, gathered, packaged, write_table
from toyld.files import write_whole
from toyld.premem import copied, of_table, perplexities

__all__ = ["THRESHOLDS", "collected", "column", "load", "record"]

THRESHOLDS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5)
DIGITS = 4  # significant, of what is written


def column(threshold: float, /) -> str:
    """The column of PreMem at a threshold.

    >>> column(1.35)
    'premem_1.35'
    """
    return f"premem_{threshold:.2f}"


def collected(tables: Mapping[str, Any], /) -> Table:
    """One row a recipe and seed: recipe, test accuracy before and after, PreMem by threshold, rivals, rewordings."""
    return gathered(row for ds in tables.values() for row in _rows(ds))


def _rows(ds: Any) -> Iterator[dict[str, Any]]:
    one = ds.transpose("seed", "step", "probe", "example")
    right = {str(probe): one.accuracy.sel(probe=probe).values[:, -1].mean(-1) for probe in one.probe.values}
    found = {
        "before": one.eval_test_accuracy.values[:, 0], "test": one.eval_test_accuracy.values[:, -1],
        "train": right["chosen"], "reordered": right["reordered"], "reframed": right["reframed"],
        "loss": one.loss.values[:, -1], "grad_norm": one.grad_norm.values[:, -1],
        "distance": one.eval_distance.values[:, -1],
        "copied": copied(perplexities(ds)[:, -1], threshold=float(ds.attrs["threshold"])).mean(-1),
    }  # fmt: skip
    found |= {column(p): of_table(ds, threshold=p)[:, -1].mean(-1) for p in THRESHOLDS}
    recipe = {name: ds.attrs[name] for name in ("wide", "count", "passes", "lr", "reorder", "threshold")}
    for i, seed in enumerate(one.seed.values):
        yield recipe | {"seed": int(seed)} | {name: float(f"{x[i]:.{DIGITS}g}") for name, x in found.items()}


def record(out: str | Path, /) -> None:
    """Write the grid at paper size, of the seeds of record."""
    from toyld.tiny.experiments import EXPERIMENTS

    write_whole(Path(out), write_table(collected(EXPERIMENTS.run("premem", size="paper"))).encode())


def load() -> Table:
    """The grid that comes with the package."""
    return packaged("tiny-premem.csv")
