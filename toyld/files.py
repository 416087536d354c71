"""All of a file or nothing of it: the one place that writes, and what sweeps up after a run that was killed there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sweep", "write_whole"]


def write_whole(path: Path, payload: bytes, /) -> None:
    """Write under a temporary name beside `path`, flush to the disk, rename: a reader sees the old or the new file.

    Raises:
        OSError: the folder cannot be written; `path` is as it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_whole(path, b"all of it")
    >>> path.read_bytes(), len(list(path.parent.iterdir()))
    (b'all of it', 1)
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)


def sweep(stems: Iterable[str], folder: Path, /) -> None:
    """Remove what a killed run left half-written of files with these stems (`.NAME.PID.part`).

    A process that is still at it keeps its own. A folder that is not there holds none.
    """
    mine = set(stems)
    for path in folder.glob(".*.part"):
        found = re.fullmatch(r"\.([^.]+)\.\w+\.(\d+)\.part", path.name)
        if found and found[1] in mine and not _runs(int(found[2])):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    if os.name != "posix":
        return True  # elsewhere asking could end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()
