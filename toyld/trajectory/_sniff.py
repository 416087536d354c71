"""What a path holds, recognised by content, never by names."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from toyld.checked import TrajectoryError, fail

__all__ = ["check_regular", "find", "sniff"]

_HEAD = 1 << 16
_MAGIC = {b"version https://git-lfs": "lfs", b"\x93NUMPY": "npy", b"CDF\x01": "netcdf", b"CDF\x02": "netcdf"}
_RUN = (b'"schema"', b'"command"', b'"stages"')  # in the head of a run.json; its config, which may be long, comes last
_DEPTH = 3  # folders below the one named: a run folder has one level, a trainer's checkpoints one or two


def check_regular(path: Path, /) -> None:
    """One line for a pipe, socket or device, which opening may wait on for ever; OSError where nothing is.

    >>> check_regular(Path("/dev/null"))
    Traceback (most recent call last):
    toyld.checked.TrajectoryError: expected a file or folder, got null, a pipe, socket or device: name a file
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        fail("a file or folder", f"{path.name}, a pipe, socket or device", "name a file")


def sniff(path: Path, /) -> str:
    """Kind of a file by its bytes: authors, trl, run (a run.json), netcdf, npy, lfs or other.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> _ = path.write_text('{"log_history": []}')
    >>> sniff(path)
    'trl'
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_HEAD)
            for start, kind in _MAGIC.items():
                if head.startswith(start):
                    return kind
            text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
            if text.startswith(b"{") and all(key in text for key in _RUN):
                return "run"
            if text.startswith(b"{") and re.search(rb'"logps_eval_[^"/]+/', text):
                return "authors"
            if not text.startswith(b"{") or b"\0" in text:  # weights, perhaps: not to be read to their end
                return "other"
            if b'"log_history"' in text + file.read():  # keys may come in any order
                return "trl"
    except OSError as error:
        fail("a readable file", f"{path.name}: {error.strerror}", "check the path")
    return "other"


def find(folder: Path, /, *, depth: int = _DEPTH) -> dict[str, list[Path]]:
    """Kind -> files of it in the folder and `depth` levels below, hidden ones (a writer's temporary files) left out.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "any.name").write_text('{"log_history": []}')
    >>> [(kind, len(files)) for kind, files in find(folder).items()]
    [('trl', 1)]
    """
    found: dict[str, list[Path]] = {}
    try:
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                for kind, files in find(path, depth=depth - 1).items() if depth else ():
                    found.setdefault(kind, []).extend(files)
            elif path.is_file():
                try:
                    kind = sniff(path)
                except TrajectoryError:
                    if path.exists():
                        raise
                    continue  # a run that goes on has removed an old state
                found.setdefault(kind, []).append(path)
    except OSError as error:
        fail("a readable folder", f"{folder.name}: {error.strerror}", "check the path")
    return found
