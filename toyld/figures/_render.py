"""Drawing figures to files: SLUG.png, SLUG.svg, SLUG.csv, SLUG.json with how they were made, and the gallery of all.

Pictures and CSV hold no date, commit or duration, and are the same bytes in every run on one machine. Whatever says
when and how is in SLUG.json, which nothing compares; it is written last, with the digests of the others.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from toyld.figures import _gallery, _made
from toyld.figures._alt import described
from toyld.figures._registry import Figure, FigureError, MissingInput, every, select
from toyld.figures._table import read_table, write_table
from toyld.files import write_whole

__all__ = ["draw", "render", "saved", "styled"]

FORMATS = ("png", "svg", "pdf")
PLACES = 9  # of a panel's edges, as shares of the picture: a hundred-thousandth of a dot
DPI, COARSE, FINEST = 200, 50, 1200
FINE = ("check holds", "not checked", "kept", "kept, check holds")
_STYLE = Path(__file__).with_name("toyld.mplstyle")


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """matplotlib's own defaults and then toyld.mplstyle, whatever the user's settings; all restored afterwards."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def draw(figure: Figure | str, table: Mapping[str, Any], /) -> Any:
    """The matplotlib Figure of one table, in the house style (notebooks and chapters show it as it is)."""
    one = every()[figure] if isinstance(figure, str) else figure
    with styled():
        return one.draw(table)


def saved(fig: Any, figure: Figure, /, *, formats: tuple[str, ...], dpi: int = DPI) -> dict[str, bytes]:
    """A drawn picture in each format, as bytes that depend on its table alone."""
    from matplotlib import rc_context

    about = {"Title": figure.title, "Description": figure.caption}
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None, **about},
        "svg": {"Date": None, "Creator": "toyld", **about},
        "pdf": {"CreationDate": None, "Creator": "toyld", "Producer": None, "Title": figure.title},
    }
    out = {}
    with styled():
        engine = fig.get_layout_engine()
        if engine is not None:  # lay it out once, for all formats alike; otherwise each would draw twice
            engine.execute(fig)
            for ax in fig.axes:  # the solver's last bits differ between processes, and SVG hashes them into its ids
                place = ax.get_position(original=True)
                ax.set_position([round(x, PLACES) for x in place.bounds])
            with rc_context({"figure.constrained_layout.use": False}):
                fig.set_layout_engine(None)
        for kind in formats:
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=metadata[kind], dpi=dpi)
            out[kind] = buffer.getvalue()
    return out


def _writable(out: Path, *, make: bool) -> None:
    """Refuse a folder that cannot be made or written, before anything is computed for it."""
    try:
        if make:
            out.mkdir(parents=True, exist_ok=True)
        if make or out.exists():
            with tempfile.TemporaryFile(dir=out):
                pass
    except (OSError, ValueError) as bad:  # ValueError: a NUL in the name
        why = (bad.strerror if isinstance(bad, OSError) else None) or bad
        msg = f"--out: expected a folder that can be written, got {str(out)!r} ({why}); name another"
        raise FigureError(msg) from bad


def _known_claims(figures: list[Figure]) -> None:
    from toyld import claims

    known = claims.every()
    for figure in figures:
        unknown = [id for id in figure.claims if id not in known]
        if unknown:
            msg = f"{figure.slug}: expected claims of the registry in the caption, got {', '.join(unknown)}"
            raise FigureError(msg)


@dataclass(frozen=True)
class _How:
    """What was asked for, the same for every figure of a run."""

    size: str
    out: Path
    formats: tuple[str, ...]
    check: bool
    from_data: bool
    resume: bool
    dpi: int
    date: str

    def command(self, slug: str) -> str:
        """The line that makes one figure in this way."""
        words = ["python -m toyld.figures", f"--only {slug}", f"--format {','.join(self.formats)}"]
        words += ["--from-data" if self.from_data else f"--size {self.size}"]
        words += [] if self.dpi == DPI else [f"--dpi {self.dpi}"]
        return " ".join(words + (["--check"] if self.check else []))


def _checked(figure: Figure, table: Mapping[str, Any], how: _How) -> tuple[str, str | None]:
    """(verdict in words, why the check failed or None)."""
    if not how.check:
        return "not checked", None
    try:
        figure.check(table)
    except AssertionError as failed:
        return "check failed", " ".join(str(failed).split()) or "no message"
    return "check holds", None


def _said(verdict: str, why: str | None) -> str:
    return verdict if why is None else f"{verdict}: {why}"


def _kept(figure: Figure, how: _How, digests: Mapping[str, str]) -> tuple[str, str | None] | None:
    """The verdict on files that are already there as this run would write them, None if they are not."""
    same = {"size": how.size, "inputs_sha256": dict(digests), "dpi": how.dpi, **_made.made_by()}
    about = _made.is_made(figure.slug, how.out, formats=how.formats, **same)
    if about is None:
        return None
    if not how.check:
        return "kept", None
    verdict, why = _checked(figure, read_table((how.out / f"{figure.slug}.csv").read_text(encoding="utf-8")), how)
    if about["check"] != _said(verdict, why):
        write_whole(how.out / f"{figure.slug}.json", _made.text({**about, "check": _said(verdict, why)}))
    return f"kept, {verdict}", why


def _table(figure: Figure, how: _How) -> tuple[bytes, dict[str, str], dict[str, Any]]:
    """(the CSV that an earlier run left, its digest, what of its provenance still holds)."""
    target = how.out / f"{figure.slug}.csv"
    if not target.is_file():
        figure.inputs()  # without them there never was a CSV: skipped, not failed
        msg = f"{figure.slug}: expected data of an earlier run, got no file {target}; run without --from-data"
        raise FigureError(msg)
    csv = target.read_bytes()
    digest = _made.sha256(csv)
    earlier: dict[str, Any] = {}
    with contextlib.suppress(FigureError):
        earlier = _made.read(how.out / f"{figure.slug}.json")
    size = earlier.get("size") if earlier.get("csv_sha256") == digest else None
    # The data were made by other code than the picture may be: such a figure is never kept as it is.
    return csv, {target.name: digest}, {"size": size, **_made.made_by(), "code_sha256": None}


def _one(figure: Figure, how: _How) -> tuple[str, str | None]:
    """Make the files of one figure; returns its verdict in words and why its check failed (None if it did not)."""
    started = time.perf_counter()
    if how.from_data:
        csv, digests, made = _table(figure, how)
    else:
        digests = {name: _made.sha256(path) for name, path in figure.inputs().items()}
        kept = _kept(figure, how, digests) if how.resume else None
        if kept is not None:
            return kept
        csv = write_table(figure.data(how.size)).encode()
        made = {"size": how.size, **_made.made_by()}
    try:
        table = read_table(csv.decode())  # always what the file says, so that re-plotting is the same picture
        fig = draw(figure, table)
    except (KeyError, IndexError, UnicodeDecodeError, FigureError) as bad:
        if not how.from_data:
            raise
        msg = f"{figure.slug}: expected the columns that this version writes, got {bad!r} in {figure.slug}.csv"
        msg += "; run without --from-data"
        raise FigureError(msg) from bad
    pictures = saved(fig, figure, formats=how.formats, dpi=how.dpi)
    verdict, why = _checked(figure, table, how)
    made |= {
        "command": how.command(figure.slug),
        "dpi": how.dpi,
        "rows": len(next(iter(table.values()))),
        "columns": [*table],
        "aspect": round(fig.get_figheight() / fig.get_figwidth(), 4),
        "alt": described(fig, figure.title),
        "check": _said(verdict, why),
        "inputs_sha256": digests,
        "csv_sha256": _made.sha256(csv),
        "pictures_sha256": {kind: _made.sha256(content) for kind, content in pictures.items()},
        "date": how.date,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if not how.from_data:
        write_whole(how.out / f"{figure.slug}.csv", csv)
    for kind, content in pictures.items():
        write_whole(how.out / f"{figure.slug}.{kind}", content)
    write_whole(how.out / f"{figure.slug}.json", _made.text(_made.provenance(figure, **made)))
    return verdict, why


def _listing(figures: list[Figure], out: Path) -> str:
    lines = []
    wide = max(len(f.slug) for f in figures)
    for f in figures:
        about = f"{f.slug:<{wide}}  {f.title}"
        lines.append(about + (f" [paper: {f.paper}]" if f.paper else "") + (f" [reads {f.reads}]" if f.reads else ""))
        lines.append(f"{'':<{wide}}  {f.cost}; {_there(f, out)}; tags: {', '.join(f.tags)}")
        lines.append(f"{'':<{wide}}  {', '.join(f.claims)}")
    return "\n".join(lines)


def _there(figure: Figure, out: Path) -> str:
    try:
        about = _made.read(out / f"{figure.slug}.json")
    except FigureError:
        return f"not in {out}"
    return f"in {out} ({about.get('size') or 'unknown'} size, {about.get('check', 'not checked')})"


def render(
    *,
    list: bool = False,
    only: tuple[str, ...] = (),
    size: Literal["smoke", "paper"] = "paper",
    out: Path = Path("figures"),
    format: str = "png,svg",
    check: bool = False,
    from_data: bool = False,
    resume: bool = False,
    dpi: int = DPI,
    quiet: bool = False,
) -> int:
    """Draw the figures: SLUG.png, SLUG.svg, SLUG.csv (the data) and SLUG.json (how it was made), one line a figure.

    Last it writes index.html, a page of all figures that lie in the folder, and manifest.json with the same for
    programs. A figure whose input files are not here is skipped with the line that says how to get them. A figure whose
    check or data fail does not stop the others.

    Args:
        list: Only list them: slug, title, the paper's figure, what it reads, cost, whether it is there, tags, claims.
        only: Slugs, tags or globs of either (all figures by default).
        size: "smoke" is small and quick, "paper" the full size.
        out: Folder to write to; it is made if it is not there.
        format: Picture formats out of png, svg, pdf, separated by commas.
        check: Assert each caption's claim on the data; exit 1 if one fails.
        from_data: Redraw from the CSV files in the folder, computing nothing.
        resume: Keep a figure whose files are all there, whole, and were made by the same code and packages, from the
            same inputs, at the same size and resolution; go on with the others. Without it all are made anew.
        dpi: Dots an inch of PNG pictures.
        quiet: Print only what went wrong or was skipped.

    Returns:
        0 if all is drawn and every check held, 1 if a check failed, 2 if a figure's input could not be read.

    Raises:
        FigureError: unknown slug, size or format, or an output folder that cannot be written; nothing is drawn then.
        ExceptionGroup: figures that broke, after all others were drawn.
    """
    figures = select(only)
    _known_claims(figures)
    if list:
        print(_listing(figures, Path(out)))
        return 0
    if size not in ("smoke", "paper"):
        msg = f"--size: expected smoke or paper, got {size!r}"
        raise FigureError(msg)
    formats = tuple(dict.fromkeys(kind.strip() for kind in format.split(",")))
    if not formats or any(kind not in FORMATS for kind in formats):
        msg = f"--format: expected some of {', '.join(FORMATS)} separated by commas, got {format!r}"
        raise FigureError(msg)
    if not COARSE <= dpi <= FINEST:
        msg = f"--dpi: expected {COARSE} to {FINEST} dots an inch, got {dpi}"
        raise FigureError(msg)
    if resume and from_data:
        msg = "--resume: expected it without --from-data, which computes nothing that could be kept; leave one out"
        raise FigureError(msg)
    out = Path(out)
    how = _How(size, out, formats, check, from_data, resume, dpi, _made.date())
    _writable(out, make=not from_data)
    _made.sweep((f.slug for f in figures), out)

    from rich.console import Console
    from rich.progress import Progress

    errors = Console(stderr=True)
    # Lines go to stdout; only where both streams are the terminal may rich route them past its bar.
    progress = Progress(
        console=errors, disable=not errors.is_terminal, transient=True, redirect_stdout=sys.stdout.isatty()
    )
    status = 0
    broken: dict[str, Exception] = {}
    wide = max(len(f.slug) for f in figures)
    with progress:
        for figure in progress.track(figures, description="drawing"):
            started = time.perf_counter()
            try:
                verdict, why = _one(figure, how)
            except MissingInput as missing:
                verdict, why = f"skipped: {missing}", None
            except (FigureError, OSError) as bad:
                verdict, why, status = f"bad input: {' '.join(str(bad).split())}", None, max(status, 2)
            except Exception as bug:
                verdict, why = f"broke: {type(bug).__name__}: {bug}", None
                broken[figure.slug] = bug
            if why is not None:
                verdict, status = f"{verdict}: {why}", max(status, 1)
            if not (quiet and verdict in FINE):
                print(f"{figure.slug:<{wide}}  {time.perf_counter() - started:5.1f} s  {verdict}", flush=True)
    _gallery.write(out)
    if broken:
        msg = f"figures that broke: {', '.join(broken)}"
        raise ExceptionGroup(msg, [*broken.values()])
    return status
