"""`toyld book`: all pages into a folder that opens from a disk, without a network; the same bytes each time."""

from __future__ import annotations

import contextlib
import importlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from toyld.book import chapters, exercises, pages, registry, render
from toyld.book.chapters import Broken, Chapter
from toyld.checked import BadInput
from toyld.files import write_whole

__all__ = ["build"]


def _solve(sheet: exercises.Sheet, folder: Path) -> pages.Solved:
    try:
        space, shown, before = exercises.solve(sheet, folder)
        refused: dict[int, list[str]] = {}
        for one in sheet.exercises:
            for mistake in one.mistakes:
                got = exercises.refusal(space, before[one.number], mistake.source, one)
                if not isinstance(got, AssertionError):
                    wrong = f"the check of exercise {one.number} met a mistake with {got!r}, expected an AssertionError"
                    return pages.Solved({}, {}, wrong)
                refused.setdefault(one.number, []).append(str(got).strip())
    except Broken as broken:
        return pages.Solved({}, {}, str(broken))
    return pages.Solved({number: one.printed for number, one in shown.items()}, refused)


def _named(chapter: Chapter, known: Sequence[str]) -> set[str]:
    text = "\n".join(cell.source for cell in chapter.cells)
    return set(re.findall(r"[\"`]([a-z]+\.[a-z0-9-]+)[\"`]", text)) & set(known)


def _extras(out: Path, figures: Path | None) -> dict[str, str]:
    """The lab and the gallery, written beside the book: name → file."""
    extras = {}
    with contextlib.suppress(ModuleNotFoundError, AttributeError):
        page = importlib.import_module("toyld.lab").build()
        write_whole(out / "lab.html", page.encode())
        extras["Lab"] = "lab.html"
    if figures is not None:
        if not (figures / "index.html").is_file():
            msg = f"--figures: expected a folder with index.html, got {figures}: `python -m toyld.figures` writes one"
            raise BadInput(msg)
        (out / "gallery").mkdir(exist_ok=True)
        for path in sorted(p for p in figures.iterdir() if p.is_file() and not p.name.startswith(".")):
            write_whole(out / "gallery" / path.name, path.read_bytes())
        extras["Gallery"] = "gallery/index.html"
    return extras


def build(
    source: Path,
    out: Path,
    /,
    *,
    only: Sequence[str] = (),
    figures: Path | None = None,
    say: Callable[[str], object] = print,
) -> list[str]:
    """Run the chapters of a folder with their exercises and write the site; the names of those that failed.

    only: numbers or stems of chapters. figures: the folder of the gallery. say: gets a line for every chapter.

    Raises:
        BadInput: no chapters there.
    """
    from toyld.claims import every

    paths = chapters.found(source)
    chosen = chapters.found(source, only)
    (out / "student").mkdir(parents=True, exist_ok=True)
    book = [chapters.read(path) for path in paths]
    built = {path.stem for path in chosen} | {p.stem for p in paths if (out / f"{p.stem}.html").exists()}
    frame = pages.Frame(book, built, _extras(out, figures))
    known = every()
    renderer = render.Renderer(known, {c.number: pages.file_of(c) for c in book if c.stem in built})
    failed = []
    for chapter in (c for c in book if c.path in chosen):
        start, bad = time.monotonic(), False
        with tempfile.TemporaryDirectory() as folder:
            shown = chapters.run(chapter, Path(folder))
            where = exercises.of(chapter.path)
            sheet = exercises.sheet(where) if where.exists() else None
            count = len(sheet.exercises) if sheet else 0
            page = pages.chapter_page(frame, renderer, chapter, shown, count)
            write_whole(out / pages.file_of(chapter), page.encode())
            write_whole(out / chapter.path.name, chapter.path.read_bytes())
            for name, picture in ((n, p) for one in shown for n, p in one.pictures.items()):
                write_whole(out / name, picture)
            bad |= any(one.failed for one in shown)
            if sheet:
                solved = _solve(sheet, Path(folder))
                page = pages.exercises_page(frame, renderer, sheet, solved)
                write_whole(out / f"{chapter.stem}_exercises.html", page.encode())
                write_whole(out / "student" / f"{chapter.stem}.py", exercises.script(sheet).encode())
                write_whole(out / "student" / f"{chapter.stem}.ipynb", exercises.notebook(sheet).encode())
                bad |= bool(solved.failed)
        if bad:
            failed.append(chapter.stem)
        said = "FAILED; its page shows where" if bad else f"{count} exercises"
        say(f"{chapter.stem:24s} {time.monotonic() - start:6.1f} s  {said}")
    named = {c.stem: _named(c, list(known)) for c in book}
    write_whole(out / "claims.html", registry.claims_page(frame, renderer, named).encode())
    readme = source / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else "# The book\n"
    text = re.sub(r"<!--.*?-->\n*", "", text)
    write_whole(out / "index.html", pages.contents(frame, renderer, text).encode())
    write_whole(out / "style.css", files("toyld.book").joinpath("style.css").read_bytes())
    say(f"{out / 'index.html'} opens in any browser, without a network")
    return failed
