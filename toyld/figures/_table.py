"""A figure's data: columns of equal length, written as CSV without losing a bit.

Numbers are written by `repr`, the shortest text that reads back to the same float64, so drawing from the CSV gives the
same picture, byte for byte. Integers, floats and strings only; the type of a column is read off its text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from toyld.figures._registry import FigureError

__all__ = ["Table", "gathered", "packaged", "read_table", "rows", "write_table"]

Table = dict[str, np.ndarray]


def _parse(texts: list[str]) -> np.ndarray:
    try:
        return np.array([int(t) for t in texts], dtype=np.int64)
    except ValueError:
        pass
    try:
        return np.array([float(t) for t in texts], dtype=np.float64)
    except ValueError:
        return np.array(texts, dtype=str)


def write_table(table: Mapping[str, Any], /) -> str:
    """The table as CSV text.

    >>> write_table({"step": [0, 1], "logp_nats": [-0.1, -2.0]})
    'step,logp_nats\\n0,-0.1\\n1,-2.0\\n'

    Raises:
        FigureError: no columns or rows, columns of unequal length or more than one dimension, values of another type,
            or strings that would read back as numbers.
    """
    texts: dict[str, list[str]] = {}
    for name, values in table.items():
        column = np.asarray(values)
        if column.ndim != 1 or column.size == 0 or column.dtype.kind not in "iufU":
            msg = f"column {name!r}: expected numbers or strings in one dimension, got {column.dtype} {column.shape}"
            raise FigureError(msg)
        texts[name] = [str(v) if column.dtype.kind == "U" else repr(v) for v in column.tolist()]
        if column.dtype.kind == "U" and _parse(texts[name]).dtype.kind != "U":
            msg = f"column {name!r}: expected strings that no CSV reader takes for numbers, got {texts[name][:3]}"
            raise FigureError(msg)
    lengths = {name: len(column) for name, column in texts.items()}
    if len(set(lengths.values())) != 1:
        msg = f"expected columns of one length, got {lengths}"
        raise FigureError(msg)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(texts)
    writer.writerows(zip(*texts.values(), strict=True))
    return out.getvalue()


def read_table(text: str, /) -> Table:
    """The table of a CSV text: int64, float64 or string columns.

    >>> read_table("kind,step,p\\na,1,0.5\\nb,2,1e-300\\n")["p"].tolist()
    [0.5, 1e-300]

    Raises:
        FigureError: no rows, or a row of the wrong length.
    """
    lines = list(csv.reader(io.StringIO(text)))
    if len(lines) < 2 or any(len(line) != len(lines[0]) for line in lines):
        lengths = sorted({len(line) for line in lines})
        msg = f"expected a header and rows of one length, got {len(lines)} lines of {lengths} fields; make it anew"
        raise FigureError(msg)
    return {name: _parse(list(column)) for name, *column in zip(*lines, strict=True)}


def rows(table: Mapping[str, Any], /, **equal: Any) -> Table:
    """The rows in which each named column has the given value.

    >>> rows({"panel": np.array(["A", "B"]), "p": np.array([0.1, 0.2])}, panel="B")["p"]
    array([0.2])
    """
    keep = np.ones(len(next(iter(table.values()))), dtype=bool)
    for name, value in equal.items():
        keep &= np.asarray(table[name]) == value
    return {name: np.asarray(column)[keep] for name, column in table.items()}


def gathered(every: Iterable[Mapping[str, Any]], /) -> Table:
    """Rows with the same names as columns.

    >>> gathered([{"seed": 0, "test": 0.5}, {"seed": 1, "test": 0.25}])["test"].tolist()
    [0.5, 0.25]
    """
    told = list(every)
    return {name: np.array([row[name] for row in told]) for name in told[0]}


def packaged(name: str, /) -> Table:
    """A table of the evidence that comes with the package."""
    return read_table(files("toyld").joinpath("evidence", name).read_text(encoding="utf-8"))
