"""What a slow function of texts has answered, kept in a file: a killed run goes on, and no text is asked twice.

The file is an SQLite database with one table `answers` (key, name, text, answer), so that any tool can read it. Every
answer is committed, flushed to the disk, before the next text is asked; SQLite itself rolls back what a killed process
left half written, and keeps several processes apart. Network file systems without locks are no place for it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from toyld.checked import BadInput
from toyld.probes.errors import show

__all__ = ["Cached", "cached"]

Input = TypeVar("Input")
SCHEMA = 1
PATIENCE = 60.0  # seconds to wait for another process that writes: a commit takes milliseconds
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL, "
    "answer TEXT NOT NULL)"
)


class Cached(Generic[Input]):
    """A function with a memory on disk; `asked` counts the calls that reached the function, `kept` the other ones."""

    def __init__(self, function: Callable[[Input], str], file: Path, name: str | None) -> None:
        self._function, self._file, self._name = function, file, name
        self.asked = self.kept = 0
        with self._open() as db, db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version not in (0, SCHEMA):
                self._refuse(f"schema {version}")
            db.execute(_TABLE)
            db.execute(f"PRAGMA user_version = {SCHEMA}")

    @property
    def name(self) -> str:
        """What its answers are kept under."""
        return self._name if self._name is not None else str(self._function.name)  # type: ignore[attr-defined]

    def __call__(self, value: Input, /) -> str:
        """The answer kept for this value under this name; else the function's, which is kept."""
        name, text = self.name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        key = hashlib.sha256(json.dumps([name, text]).encode()).hexdigest()
        find = "SELECT answer FROM answers WHERE key = ?"
        with self._open() as db:
            if found := db.execute(find, (key,)).fetchone():
                self.kept += 1
                return str(found[0])
        answer = self._function(value)
        self.asked += 1
        if not isinstance(answer, str):
            raise BadInput(f"expected a text from the function {name[:60]}, got {show(answer)}: return a string")
        row = [part.encode(errors="replace").decode() for part in (key, name, text, answer)]
        with self._open() as db, db:
            db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", row)
            return str(db.execute(find, (key,)).fetchone()[0])  # another process may have been first

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One connection for one look: nothing is shared between threads or carried into a forked process."""
        try:
            with closing(sqlite3.connect(self._file, timeout=PATIENCE)) as db:
                yield db
        except sqlite3.Error as error:
            self._refuse(str(error))

    def _refuse(self, got: str) -> NoReturn:
        msg = f"expected a cache of answers that can be read and written in {self._file}, got: {got}; "
        raise BadInput(msg + "name another file, or move this one away")


def cached(function: Callable[[Input], str], file: str | PathLike[str], /, *, name: str | None = None) -> Cached[Input]:
    """The function with its answers kept in `file`, which is made if it is not there.

    function: text → text, or prompt → response (messages are kept as JSON). name: who answers, with all that the answer
    depends on beside the text, such as the instruction and the model's weights; those of `rewriter_from_model` and
    `sampler_from_model` name themselves, at every call, so that a model that has been trained further is another one.
    Functions of other names share a file. Two processes that ask the same text at the same moment may both compute it;
    both return the answer that was kept first. What a function raises is not kept.

    Raises:
        BadInput: no name; a file that is no such cache or cannot be written; an answer that is no text.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "answers.sqlite"
    >>> shout = cached(str.upper, file, name="upper case")
    >>> shout("so"), shout("so"), shout.asked, shout.kept
    ('SO', 'SO', 1, 1)
    >>> cached(str.lower, file, name="upper case")("so")  # the name decides
    'SO'
    """
    if name is None and not isinstance(getattr(function, "name", None), str):
        got = getattr(function, "__name__", type(function).__name__)
        raise BadInput(f"expected a name for the function {got}, got none: pass name=…, with all that it depends on")
    return Cached(function, Path(file), name)
