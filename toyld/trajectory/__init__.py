"""Runs as one table: its schema, its files, the run folder, and the readers of other people's logs.

A *Trajectory* is an `xarray.Dataset` of one stage of one arm (`toyld.trajectory.table` has the schema). One reader =
one function path → table, or list of tables where a folder holds several stages; `read` and `read_all` pick it by
content, never by names. Readers drop what they know to be wrong, and say so in attr `notes`, a JSON list of
{code, text}.
"""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from toyld.checked import TrajectoryError, fail
from toyld.trajectory._sniff import find, sniff
from toyld.trajectory.authors import read_authors
from toyld.trajectory.combine import compare, concat
from toyld.trajectory.folder import RunFolder, read_folder
from toyld.trajectory.storage import load, save, to_csv
from toyld.trajectory.table import (
    DIMS,
    NOTE_CODES,
    SCHEMA,
    VARIABLES,
    Variable,
    add_note,
    below_label,
    notes,
    trajectory,
    validate,
)
from toyld.trajectory.trl import read_trl

__all__ = [
    "DIMS",
    "NOTE_CODES",
    "SCHEMA",
    "VARIABLES",
    "RunFolder",
    "TrajectoryError",
    "Variable",
    "add_note",
    "below_label",
    "compare",
    "concat",
    "load",
    "notes",
    "read",
    "read_all",
    "read_authors",
    "read_folder",
    "read_trl",
    "save",
    "to_csv",
    "trajectory",
    "validate",
]


def read_all(path: str | Path, /) -> list[xr.Dataset]:
    """Every run that a path holds: a table, a log, a run folder, a folder with a log; recognised from content.

    Raises:
        TrajectoryError: nothing there that can be read without guessing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> [ds.loss.values.tolist() for ds in read_all(path)]
    [[[1.0]]]
    """
    path = Path(path)
    if path.is_dir():
        kinds = find(path)
        if "netcdf" in kinds or "run" in kinds:
            return read_folder(path)
        return [read_trl(path) if "trl" in kinds and "authors" not in kinds else read_authors(path)]
    kind = sniff(path)
    if kind == "netcdf":
        return [load(path)]
    if kind == "trl":
        return [read_trl(path)]
    if kind == "authors":
        return [read_authors(path)]
    got = {"lfs": "a Git-LFS pointer (see `git lfs pull`)", "npy": "an array without column names"}.get(kind, "neither")
    do = "name such a file or its folder"
    return fail("a NetCDF-3 table, a trainer state or the authors' JSON lines", f"{path.name}, {got}", do)


def read(path: str | Path, /) -> xr.Dataset:
    """The one run that a path holds; see `read_all` for folders with several stages.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> read(path).loss.values
    array([[1.]])
    """
    runs = read_all(path)
    if len(runs) != 1:
        names = ", ".join(f"{ds.attrs['stage']}-{ds.attrs['arm']}" for ds in runs)
        fail("a path with one run", f"{Path(path).name} with {len(runs)} ({names})", "use read_all, or name one file")
    return runs[0]
