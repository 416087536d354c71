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
from toyld.trajectory.matched import at_margin, margin
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
    "at_margin",
    "below_label",
    "compare",
    "concat",
    "load",
    "locate",
    "margin",
    "notes",
    "read",
    "read_all",
    "read_authors",
    "read_folder",
    "read_run",
    "read_trl",
    "save",
    "to_csv",
    "trajectory",
    "validate",
]


def locate(path: str | Path, /) -> list[Path]:
    """The runs that a path holds, each as a path of its own: a folder of logs or of run folders holds several.

    The path itself where it is one run: a file, a run folder with all its stages, a folder with one log, the
    checkpoints of one run.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, step in (("a", 1), ("b", 2)):
    ...     _ = (folder / name).write_text(f'{{"log_history": [{{"step": {step}, "loss": 0.7}}]}}')
    >>> [run.name for run in locate(folder)]
    ['a', 'b']
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    kinds = find(path)
    own = {file.parent for file in (*kinds.get("run", ()), *kinds.get("netcdf", ()))}
    if path in own or not _several(path, kinds):
        return [kinds["authors"][0].parent] if "authors" in kinds else [path]  # its array lies beside it
    runs: list[Path] = []
    for child in sorted(path.iterdir()):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            runs += locate(child) if _LOGS & find(child).keys() else []
        elif child.is_file() and sniff(child) in _LOGS:
            runs.append(child)
    return runs


_LOGS = {"authors", "trl", "netcdf", "run"}


def _several(path: Path, kinds: dict[str, list[Path]]) -> bool:
    """Whether a folder holds more than one run."""
    worlds = [kind for kind in ("authors", "trl") if kind in kinds] + ["run"] * bool({"run", "netcdf"} & kinds.keys())
    if len(worlds) > 1 or len(kinds.get("authors", ())) > 1 or len(kinds.get("run", ())) > 1:
        return True
    if len(kinds.get("trl", ())) > 1:
        try:
            read_trl(path)
        except TrajectoryError:  # not the checkpoints of one run
            return True
    return False


def read_all(path: str | Path, /) -> list[xr.Dataset]:
    """Every run that a path holds: a table, a log, a run folder, a folder of any of these; recognised from content.

    Raises:
        TrajectoryError: nothing there that can be read without guessing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> [ds.loss.values.tolist() for ds in read_all(path)]
    [[[1.0]]]
    """
    return [ds for run in locate(path) for ds in read_run(run)]


def read_run(path: str | Path, /) -> list[xr.Dataset]:
    """Every stage of the one run that stands at a path, as `locate` gives it.

    Raises:
        TrajectoryError: no run there, or one that cannot be read without guessing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> len(read_run(path))
    1
    """
    path = Path(path)
    if path.is_dir():
        kinds = find(path)
        if "netcdf" in kinds or "run" in kinds:
            return read_folder(path)
        if "trl" in kinds:
            return [read_trl(path)]
        if not {"authors", "lfs"} & kinds.keys():
            got, do = f"none in {path.name or path}", "trainers write trainer_state.json into checkpoint-N/"
            fail("a trainer state, a run folder, a table or the authors' JSON lines", got, do)
        return [read_authors(path)]
    kind = sniff(path)
    if kind == "netcdf":
        return [load(path)]
    if kind == "trl":
        return [read_trl(path)]
    if kind == "authors":
        return [read_authors(path)]
    known = {"lfs": "a Git-LFS pointer (see `git lfs pull`)", "npy": "an array without column names"}
    got = f"{path.name}, {known.get(kind, 'neither')}"
    return fail("a NetCDF-3 table, a trainer state or the authors' JSON lines", got, "name such a file or its folder")


def read(path: str | Path, /) -> xr.Dataset:
    """The one run that a path holds; see `read_all` for folders with several stages.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> read(path).loss.values
    array([[1.]])
    """
    path = Path(path)
    places = locate(path)
    if len(places) != 1:
        names = ", ".join(str(place.relative_to(path)) for place in places) or "none"
        fail("a path with one run", f"{path.name} with {len(places)} ({names})", "name one of them, or use read_all")
    runs = read_run(places[0])
    if len(runs) != 1:
        names = ", ".join(f"{ds.attrs['stage']}-{ds.attrs['arm']}" for ds in runs)
        fail("a path with one stage of one arm", f"{path.name} with {len(runs)} ({names})", "use read_all")
    return runs[0]
