"""What `toyld diagnose` does: read, diagnose, write, print, and the exit code."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from toyld.checked import BadInput
from toyld.diagnosis import CLASSES, SCHEMA, Verdict, as_json, diagnose
from toyld.files import write_whole
from toyld.report._words import Entry, clean
from toyld.report.page import html
from toyld.report.terminal import printout
from toyld.trajectory import locate, read, read_run
from toyld.trajectory._sniff import sniff

__all__ = ["EMPTY", "run", "runs_as_json"]

_NUMBERS = ("d_chosen", "d_rejected", "d_argmax", "gap_first", "gap_last")
# What an unreadable path has in the file: every key of a run that was read, so that a reader needs no special case.
EMPTY: dict[str, Any] = {
    "stage": None,
    "arm": None,
    "verdict": None,
    "confidence": None,
    "numbers": dict.fromkeys(_NUMBERS),
    "intervals": {},
    "share": None,
    "n_examples": None,
    "n_evaluations": None,
    "noise_floor": None,
    "history": [],
    "worst": {"step": None, "verdict": None},
    "missing": [],
    "findings": [],
    "advice": [],
    "reasons": [],
    "warning": None,
    "probes": {},
    "null_model": None,
    "control": None,
}


def runs_as_json(entries: Sequence[Entry], /) -> dict[str, Any]:
    """The file for programs: {"schema", "runs": [...]}, a run with its error or null, in the order of the entries.

    >>> board = runs_as_json([("a/run", "expected a log, got nothing: look again")])
    >>> board["runs"][0]["verdict"], board["runs"][0]["error"]
    (None, 'expected a log, got nothing: look again')
    """
    runs = []
    for entry in entries:
        path = clean(entry[0])
        if len(entry) == 2:
            runs.append({"path": path, **EMPTY, "error": clean(entry[1])})
        else:
            runs.append({**as_json(entry[2], path=path), "error": None})
    return {"schema": SCHEMA, "runs": runs}


def _writable(option: str, path: Path | None) -> None:
    """Refuse now, not after the work, what cannot be written."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        msg = f"{option}: expected a file in an existing folder that can be written, got {clean(str(path))}"
        raise BadInput(msg)
    if path.exists() and (not path.is_file() or sniff(path) != "other"):
        what = "a log or table" if path.is_file() else "what is no file"
        msg = f"{option}: expected a new file or one to write over, got {clean(str(path))}, {what}: name another"
        raise BadInput(msg)


def _classes(names: str) -> set[str]:
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = sorted(wanted - set(CLASSES))
    if unknown or not wanted:
        got = clean(", ".join(unknown)) if unknown else "nothing"
        msg = f"--fail-on: expected classes out of {', '.join(CLASSES)}, with commas between, got {got}"
        raise BadInput(msg)
    return wanted


def _diagnose(ds: xr.Dataset, control: xr.Dataset | None, beta: float | None) -> Verdict:
    """The verdict; a control that does not go with this run costs the comparison, not the verdict."""
    if control is not None:
        try:
            return diagnose(ds, control=control, beta=beta)
        except BadInput as bad:
            alone = diagnose(ds, beta=beta)
            return dataclasses.replace(alone, control={"text": f"not compared: {bad}"})
    return diagnose(ds, beta=beta)


def _read(path: str, control: xr.Dataset | None = None, beta: float | None = None) -> list[Entry]:
    """Every run of one path with its verdict, or the one line why not."""
    entries: list[Entry] = []
    try:
        runs = locate(path)
    except (BadInput, OSError) as bad:
        return [(path, _line(bad))]
    for run in runs:
        name = path if len(runs) == 1 else str(run)
        try:
            entries += [(name, ds, _diagnose(ds, control, beta)) for ds in read_run(run)]
        except (BadInput, OSError) as bad:
            entries.append((name, _line(bad)))
    return entries


def _line(bad: Exception) -> str:
    if isinstance(bad, OSError):
        return f"expected a file or folder that can be read, got {bad.strerror}: check the path"
    return " ".join(str(bad).split())


def run(
    paths: Sequence[str],
    /,
    *,
    json_file: Path | None = None,
    html_file: Path | None = None,
    fail_on: str | None = None,
    control: Path | None = None,
    beta: float | None = None,
) -> int:
    """Diagnose every run of every path: write the files, print, and return the exit code.

    0 whatever the verdicts; 1 if one of them is in `fail_on` (classes with commas between); 2 if a path could not be
    read, the others being written all the same.

    Raises:
        BadInput: no path, an unknown class, a file that cannot be written, a control that cannot be read.
    """
    from rich.console import Console
    from rich.progress import track

    if not paths:
        raise BadInput("expected at least one path: a run folder, a trainer_state.json, a folder of logs; got none")
    failing = set() if fail_on is None else _classes(fail_on)
    if beta is not None and not (math.isfinite(beta) and beta > 0):
        raise BadInput(f"--beta: expected a finite number > 0, got {beta:g}")
    _writable("--json", json_file)
    _writable("--html", html_file)
    if json_file is not None and html_file is not None and json_file.absolute() == html_file.absolute():
        raise BadInput(f"--json and --html: expected two files, got {clean(str(json_file))} twice")
    matched = None if control is None else read(control)
    errors = Console(stderr=True)

    def watch(items: Iterable[Any], description: str) -> Iterable[Any]:
        quiet = not errors.is_terminal
        return track(list(items), description=description, console=errors, disable=quiet, transient=True)

    entries = [e for path in watch(paths, "diagnosing") for e in _read(path, matched, beta)]
    try:
        if json_file is not None:
            board = json.dumps(runs_as_json(entries), indent=1, ensure_ascii=False, allow_nan=False)
            write_whole(json_file, (board + "\n").encode())
        if html_file is not None:
            write_whole(html_file, html(entries, watch=watch).encode())
    finally:  # whatever became of the files, the work is done: show it
        if any(len(entry) == 3 for entry in entries):
            printout(entries, Console(width=None if sys.stdout.isatty() else 160))
    return _exit(entries, failing)


def _exit(entries: Sequence[Entry], failing: set[str]) -> int:
    code = 0
    for entry in entries:
        if len(entry) == 3 and entry[2].verdict in failing:
            print(f"toyld: {clean(entry[0])}: {entry[2].verdict}, which --fail-on names", file=sys.stderr)
            code = max(code, 1)
        elif len(entry) == 3 and entry[2].verdict == "cannot-tell" and failing:
            line = "cannot tell, so that --fail-on was not tested (add cannot-tell to fail on that)"
            print(f"toyld: {clean(entry[0])}: {line}", file=sys.stderr)
        elif len(entry) == 2:
            print(f"toyld: {clean(entry[0])}: {clean(entry[1])}", file=sys.stderr)
            code = 2
    return code
