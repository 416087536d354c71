"""`toyld book`: all pages into a folder that opens from a disk, without a network; the same bytes each time."""

from __future__ import annotations

import importlib
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from toyld import lab
from toyld.book import chapters, exercises, pages, registry, render
from toyld.book.chapters import Broken, Chapter
from toyld.checked import BadInput
from toyld.files import sweep, write_whole

__all__ = ["build"]

_NEEDS = ("jupytext", "markdown_it", "pygments")  # of the extra `book`
_FORM = (ValueError, SyntaxError)  # a file that cannot be read as what it should be


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
    return {id for cell in chapter.cells for id in chapters.ids(cell.source)} & set(known)


def _refuse(source: Path, out: Path, figures: Path | None) -> None:
    """Refuse what cannot work, before anything is written."""
    missing = []
    for name in _NEEDS:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing.append(str(error.name))
    if missing:
        msg = f"expected the packages that render the book, got no {', '.join(missing)}: "
        raise BadInput(msg + 'pip install -e ".[book]" in a clone of the repository installs them')
    if figures is not None and not (figures / "index.html").is_file():
        msg = f"--figures: expected a folder with index.html, got {figures}: `python -m toyld.figures` writes one"
        raise BadInput(msg)
    read = [source, source / "solutions", *([figures] if figures is not None else [])]
    written = {folder.resolve() for folder in (out, out / "student")}
    for folder in read:
        if folder.resolve() in written:
            msg = f"--out: expected a folder of its own, got {out}, whose pages would replace files of {folder}"
            raise BadInput(f"{msg}; name another, for example site")


def _clear(out: Path, stems: Sequence[str], figures: Path | None) -> None:
    """Make the folders, and sweep up what a killed run left half-written there."""
    (out / "student").mkdir(parents=True, exist_ok=True)
    sweep([*stems, *(f"{stem}_exercises" for stem in stems), "index", "claims", "style", "lab"], out)
    sweep(stems, out / "student")
    if figures is not None:
        sweep({path.stem for path in figures.iterdir()}, out / "gallery")


def _extras(out: Path, figures: Path | None) -> dict[str, str]:
    """The lab and the gallery, written beside the book: name → file; a gallery of an earlier run stays."""
    write_whole(out / "lab.html", lab.build().encode())
    extras = {"Lab": "lab.html"}
    if figures is not None:
        (out / "gallery").mkdir(exist_ok=True)
        for path in sorted(p for p in figures.iterdir() if p.is_file() and not p.name.startswith(".")):
            write_whole(out / "gallery" / path.name, path.read_bytes())
    if (out / "gallery" / "index.html").is_file():
        extras["Gallery"] = "gallery/index.html"
    return extras


def _exercises(frame: pages.Frame, renderer: render.Renderer, path: Path, out: Path, folder: Path) -> tuple[int, bool]:
    """Run the exercises to a chapter and write their page and the students' files; how many, and whether all held.

    Raises:
        ValueError, SyntaxError: the file has another form; nothing is written then.
    """
    sheet = exercises.sheet(path)
    solved = _solve(sheet, folder)
    made = {
        f"{path.stem}_exercises.html": pages.exercises_page(frame, renderer, sheet, solved),
        f"student/{path.stem}.py": exercises.script(sheet),
        f"student/{path.stem}.ipynb": exercises.notebook(sheet),
    }
    for name, text in made.items():
        write_whole(out / name, text.encode())
    return len(sheet.exercises), not solved.failed


def _chapter(frame: pages.Frame, renderer: render.Renderer, chapter: Chapter, out: Path) -> str:
    """Run a chapter with its exercises and write their pages; how many exercises, or empty if something failed."""
    where, count, good = exercises.of(chapter.path), 0, True
    with tempfile.TemporaryDirectory() as folder:
        if where.exists():
            try:
                count, good = _exercises(frame, renderer, where, out, Path(folder))
            except _FORM as error:
                page = pages.failed_page(frame, chapter, f"Exercises to chapter {chapter.number}", str(error))
                write_whole(out / f"{chapter.stem}_exercises.html", page.encode())
                count, good = -1, False
        shown = chapters.run(chapter, Path(folder))
    why = next((one.failed for one in shown if one.failed), "")
    try:
        page = pages.chapter_page(frame, renderer, chapter, shown, count)
    except _FORM as error:
        why = why or str(error)
        page = pages.failed_page(frame, chapter, f"{chapter.number}. {chapter.title}", why)
    write_whole(out / pages.file_of(chapter), page.encode())
    write_whole(out / chapter.path.name, chapter.path.read_bytes())
    for name, picture in ((n, p) for one in shown for n, p in one.pictures.items()):
        write_whole(out / name, picture)
    return f"{count} exercises" if good and not why else ""


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
        BadInput: no chapters there, a package that is missing, or folders that do not go together; nothing is written.
    """
    from toyld.claims import every

    paths = chapters.found(source)
    chosen = chapters.found(source, only)
    _refuse(source, out, figures)
    book = [chapters.read(path) for path in paths]
    known = every()
    readme = source / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else "# The book\n"
    text = re.sub(r"<!--.*?-->\n*", "", text)
    render.Renderer(known).markdown(text)  # refused now rather than after all chapters
    _clear(out, [path.stem for path in paths], figures)
    built = {path.stem for path in chosen} | {p.stem for p in paths if (out / f"{p.stem}.html").exists()}
    frame = pages.Frame(book, built, _extras(out, figures))
    renderer = render.Renderer(known, {c.number: pages.file_of(c) for c in book if c.stem in built})
    failed = []
    for chapter in (c for c in book if c.path in chosen):
        start = time.monotonic()
        held = _chapter(frame, renderer, chapter, out)
        if not held:
            failed.append(chapter.stem)
        say(f"{chapter.stem:24s} {time.monotonic() - start:6.1f} s  {held or 'FAILED; its page shows where'}")
    named = {c.stem: _named(c, list(known)) for c in book}
    write_whole(out / "claims.html", registry.claims_page(frame, renderer, named).encode())
    write_whole(out / "index.html", pages.contents(frame, renderer, text).encode())
    write_whole(out / "style.css", files("toyld.book").joinpath("style.css").read_bytes())
    say(f"{out / 'index.html'} opens in any browser, without a network")
    return failed
