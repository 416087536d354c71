"""A chapter of the book as cells: read from its percent script, run cell by cell, with what each printed and drew."""

from __future__ import annotations

import contextlib
import io
import linecache
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toyld.checked import BadInput

__all__ = [
    "BOX",
    "ID",
    "LINES",
    "Broken",
    "Cell",
    "Chapter",
    "Namespace",
    "Shown",
    "box",
    "found",
    "ids",
    "read",
    "run",
]

BOX = "## What is proved, what is first order, what is measured"
LINES = ("Proved", "First order", "Measured", "Refuted or open")
ID = r"[a-z]+\.[a-z0-9-]+"  # the form of a claim's id
_NAMED = re.compile(r"\d\d_[a-z0-9_]+\.py")


@dataclass(frozen=True)
class Cell:
    """One cell of a percent script: its text, whether it is code, its first line in the file, its tags."""

    source: str
    code: bool
    line: int
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """A chapter: its file, its cells; `title` and `question` as its first cell has them."""

    path: Path
    cells: tuple[Cell, ...]

    @property
    def stem(self) -> str:
        """The name of the file without its ending, for example 03_trends."""
        return self.path.stem

    @property
    def number(self) -> int:
        """Its number in the book."""
        return int(self.stem[:2])

    @property
    def title(self) -> str:
        """The words of its first heading, without the number."""
        head = re.search(r"^# (?:\d+\.\s*)?(.+)$", self.cells[0].source, re.M)
        return head[1].strip() if head else self.stem

    @property
    def question(self) -> str:
        """The paragraph that starts with **Question.**, in one line."""
        asked = re.search(r"\*\*Question\.\*\*(.+?)(?:\n\s*\n|\Z)", self.cells[0].source, re.S)
        return " ".join(asked[1].split()) if asked else ""

    @property
    def minutes(self) -> int:
        """Minutes of reading: prose at 200 words a minute, code at 20 lines a minute, at least one."""
        words = sum(len(c.source.split()) for c in self.cells if not c.code)
        lines = sum(bool(line.strip()) for c in self.cells if c.code for line in c.source.splitlines())
        return max(1, round(words / 200 + lines / 20))


@dataclass
class Shown:
    """What one cell gave: its printed text, the pictures it left, what they show, and the traceback if it failed."""

    printed: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)
    failed: str = ""


class Broken(Exception):
    """A cell raised; `__cause__` is what it raised, `shown` what it gave before."""

    def __init__(self, shown: Shown, /) -> None:
        super().__init__(shown.failed)
        self.shown = shown


def found(folder: Path, /, only: Sequence[str] = ()) -> list[Path]:
    """The percent scripts NN_topic.py of a folder, in order; `only`: numbers or stems, such as 03 or 03_trends.

    Raises:
        BadInput: no folder, no chapters in it, or none of a number asked for.
    """
    if not folder.is_dir():
        msg = f"expected a folder of chapters, got {folder}: the book is not installed with toyld; clone the repository"
        raise BadInput(msg + " and name its folder theory/ by --source")
    paths = sorted(path for path in folder.iterdir() if _NAMED.fullmatch(path.name))
    if not paths:
        msg = f"expected chapters such as 01_one_step.py in {folder}, got none: name the folder theory/ by --source"
        raise BadInput(msg)
    chosen = []
    for word in only:
        fits = [p for p in paths if word in (p.stem, p.stem[:2], p.stem[:2].lstrip("0"))]
        if not fits:
            msg = f"expected a chapter out of {', '.join(p.stem for p in paths)}, got {word!r}"
            raise BadInput(msg)
        chosen += fits
    return sorted(set(chosen)) if only else paths


def read(path: Path, /) -> Chapter:
    """A percent script as cells.

    Raises:
        BadInput: it cannot be read, or has no cells.
    """
    import jupytext

    text = path.read_text(encoding="utf-8")
    cells, at = [], 0
    lines = text.splitlines()
    for cell in jupytext.reads(text, fmt="py:percent").cells:
        code = cell.cell_type == "code"
        if code and cell.source:
            first = cell.source.splitlines()
            at = next(i for i in range(at, len(lines)) if lines[i : i + len(first)] == first)
        elif not code:  # its own lines carry "# ": the marker before them is enough
            at = next(i for i in range(at, len(lines)) if lines[i].startswith("# %% [markdown]")) + 1
        cells.append(Cell(cell.source, code, at + 1, tuple(cell.metadata.get("tags", ()))))
    if not cells or cells[0].code:
        msg = f"expected {path.name} to start with a markdown cell ('# %% [markdown]'), got none"
        raise BadInput(msg)
    return Chapter(path, tuple(cells))


def box(chapter: Chapter, /) -> dict[str, str]:
    """The box of a chapter: each of its lines, by its name.

    Raises:
        BadInput: not exactly one box, or other lines than these four, in this order.
    """
    boxes = [c.source for c in chapter.cells if not c.code and BOX in c.source]
    if len(boxes) != 1 or not boxes[0].startswith(BOX):
        msg = f"{chapter.path.name}: expected one cell that starts with '{BOX}', got {len(boxes)}"
        raise BadInput(msg)
    parts = re.split(r"^- \*\*(.+?)\*\*:", boxes[0], flags=re.M)
    names = parts[1::2]
    if tuple(names) != LINES:
        msg = f"{chapter.path.name}: expected the lines {', '.join(LINES)} in the box, got {', '.join(names)}"
        raise BadInput(msg)
    return dict(zip(names, (" ".join(part.split()) for part in parts[2::2]), strict=True))


def ids(text: str, /, *, marks: str = '"`') -> list[str]:
    """What has the form of a claim's id in a text, between two of the marks, in order; no claim need have it.

    >>> ids('hold("pair.winner-rises")  # not `squeeze.of-nothing`')
    ['pair.winner-rises', 'squeeze.of-nothing']
    >>> ids('hold("pair.winner-rises")  # not `squeeze.of-nothing`', marks="`")
    ['squeeze.of-nothing']
    """
    return re.findall(f"[{marks}]({ID})[{marks}]", text)


class Namespace:
    """The module that the cells of one script share, in a folder of its own while they run.

    Pictures that a cell writes there are taken with it; matplotlib draws without a screen.
    """

    def __init__(self, path: Path, folder: Path, /) -> None:
        self.path, self.folder = path, folder
        self.module = types.ModuleType(f"_book_{path.stem}")
        self.module.__file__ = str(path)

    @contextlib.contextmanager
    def _here(self, told: dict[str, str]) -> Iterator[io.StringIO]:
        os.environ.setdefault("MPLBACKEND", "Agg")
        before, name = Path.cwd(), self.module.__name__
        printed = io.StringIO()
        sys.modules[name] = self.module  # dataclasses and pickles look their module up
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(printed), _drawn(told):
                yield printed
        finally:
            os.chdir(before)
            sys.modules.pop(name, None)

    def run(self, cell: Cell, /, source: str | None = None) -> Shown:
        """Run a code cell, or `source` in its place.

        Raises:
            Broken: the cell raised.
        """
        shown = Shown()
        text = cell.source if source is None else source
        # A name that no file has, so that tracebacks and inspect show these lines and no path of a machine.
        name = f"<{self.path.stem}, line {cell.line}>" if source is not None else self.path.name
        padded = "\n" * (cell.line - 1) + text if source is None else text
        linecache.cache[name] = (len(padded), None, padded.splitlines(keepends=True), name)
        with self._here(shown.told) as printed:
            try:
                exec(compile(padded, name, "exec"), self.module.__dict__)
            except Exception as error:
                shown.failed = _told(error, name)
                raise Broken(shown) from error
            finally:
                shown.printed = printed.getvalue()
                for left in sorted(self.folder.iterdir()):
                    shown.pictures[left.name] = left.read_bytes()
                    left.unlink()
        return shown

    def snapshot(self) -> dict[str, object]:
        """The names as they are now; `restore` brings them back."""
        return dict(self.module.__dict__)

    def restore(self, names: dict[str, object], /) -> None:
        """Names as they were, in the same module, so that its functions see them."""
        self.module.__dict__.clear()
        self.module.__dict__.update(names)


@contextlib.contextmanager
def _drawn(told: dict[str, str]) -> Iterator[None]:
    """While it lasts, figures are saved sharp enough for print, and what their axes say is kept by the file's name."""
    if "matplotlib" not in sys.modules:  # this cell at least draws nothing
        yield
        return
    from matplotlib.figure import Figure

    save = Figure.savefig

    def saved(self: Figure, name: Any, **options: Any) -> None:
        told[str(name)] = "; ".join(_axes(ax) for ax in self.axes)
        save(self, name, **{"dpi": 200, **options})

    Figure.savefig = saved  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Figure.savefig = save  # type: ignore[method-assign]


def _axes(ax: Any) -> str:
    """What one panel shows, in words: its title, its axes, its lines."""
    title, x, y = (" ".join(str(t).split()) for t in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()))
    lines = [name for name in ax.get_legend_handles_labels()[1] if not name.startswith("_")]
    axes = f"{y} over {x}" if x and y else x or y
    parts = [title, axes, f"lines: {', '.join(lines)}" if lines else ""]
    return ". ".join(part for part in parts if part)


def _told(error: BaseException, name: str, /) -> str:
    """A traceback from the script on, without the paths of this machine."""
    frames = traceback.TracebackException.from_exception(error)
    mine = [i for i, frame in enumerate(frames.stack) if frame.filename == name]
    frames.stack[:] = frames.stack[mine[0] :] if mine else []
    text = "".join(frames.format())
    return re.sub(r'File "[^"]*?[/\\]((?:[\w.-]+[/\\])?[\w.-]+\.py)"', r'File "\1"', text).rstrip()


def run(chapter: Chapter, folder: Path, /) -> list[Shown]:
    """Run a chapter from top to bottom in an empty folder: what each cell gave; it ends at the first that fails."""
    space, out = Namespace(chapter.path, folder), []
    for cell in chapter.cells:
        if not cell.code:
            out.append(Shown())
            continue
        try:
            out.append(space.run(cell))
        except Broken as broken:
            out.append(broken.shown)
            break
    return out + [Shown()] * (len(chapter.cells) - len(out))
