"""Drawing figures to files: SLUG.png, SLUG.svg, SLUG.csv, and SLUG.json with how they were made.

Pictures and CSV hold no date, commit or duration, and are the same bytes in every run on one machine. Whatever says
when and how is in SLUG.json, which nothing compares.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from toyld.checkout import checkout
from toyld.figures._registry import Figure, FigureError, MissingInput, every, select
from toyld.figures._table import read_table, write_table
from toyld.files import write_whole

__all__ = ["draw", "picture", "render", "styled"]

SCHEMA = 1
FORMATS = ("png", "svg", "pdf")
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


def picture(figure: Figure, table: Mapping[str, Any], /, *, formats: tuple[str, ...]) -> dict[str, bytes]:
    """The picture in each format, as bytes that depend on the table alone."""
    from matplotlib import rc_context

    about = {"Title": figure.title, "Description": figure.caption}
    metadata: dict[str, dict[str, Any]] = {
        "png": {"Software": None, **about},
        "svg": {"Date": None, "Creator": "toyld", **about},
        "pdf": {"CreationDate": None, "Creator": "toyld", "Producer": None, "Title": figure.title},
    }
    out = {}
    with styled():
        fig = figure.draw(table)
        engine = fig.get_layout_engine()
        if engine is not None:  # lay it out once, for all formats alike; otherwise each would draw twice
            engine.execute(fig)
            with rc_context({"figure.constrained_layout.use": False}):
                fig.set_layout_engine(None)
        for kind in formats:
            buffer = io.BytesIO()
            fig.savefig(buffer, format=kind, metadata=metadata[kind])
            out[kind] = buffer.getvalue()
    return out


def _date() -> str:
    """Now, or what SOURCE_DATE_EPOCH says (seconds since 1970), as ISO 8601 in UTC."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as bad:
        msg = f"SOURCE_DATE_EPOCH: expected whole seconds since 1970, got {epoch!r}; correct or unset it"
        raise FigureError(msg) from bad
    return moment.isoformat(timespec="seconds")


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


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import toyld

    packages = {name: version(name) for name in ("numpy", "scipy", "matplotlib")}
    return {"toyld": toyld.__version__, "python": ".".join(map(str, sys.version_info[:3])), **packages}


def _provenance(figure: Figure, **made: Any) -> bytes:
    from toyld import claims

    known = claims.every()
    about = {
        "schema": SCHEMA,
        "slug": figure.slug,
        "title": figure.title,
        "caption": figure.caption,
        "paper": figure.paper,
        "claims": [
            {"id": id, "expect": known[id].expect, "statement": known[id].statement, "source": known[id].source}
            for id in figure.claims
        ],
        "seed": figure.seed,
        **made,
        "versions": _versions(),
        **checkout(),
    }
    return (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()


def _known_claims(figures: list[Figure]) -> None:
    from toyld import claims

    known = claims.every()
    for figure in figures:
        unknown = [id for id in figure.claims if id not in known]
        if unknown:
            msg = f"{figure.slug}: expected claims of the registry in the caption, got {', '.join(unknown)}"
            raise FigureError(msg)


def _one(
    figure: Figure, *, size: str, out: Path, formats: tuple[str, ...], check: bool, from_data: bool, date: str
) -> tuple[str, str | None]:
    """Make the files of one figure; returns its verdict in words and why its check failed (None if it did not)."""
    started = time.perf_counter()
    target = out / f"{figure.slug}.csv"
    if from_data:
        if not target.is_file():
            figure.inputs()  # without them there never was a CSV: skipped, not failed
            msg = f"{figure.slug}: expected data of an earlier run, got no file {target}; run without --from-data"
            raise FigureError(msg)
        csv = target.read_bytes()
        digests = {target.name: hashlib.sha256(csv).hexdigest()}
    else:
        paths = figure.inputs()
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
        csv = write_table(figure.data(size)).encode()
    try:
        table = read_table(csv.decode())  # always what the file says, so that re-plotting is the same picture
        pictures = picture(figure, table, formats=formats)
    except (KeyError, IndexError, UnicodeDecodeError, FigureError) as bad:
        if not from_data:
            raise
        msg = f"{figure.slug}: expected the columns that this version writes, got {bad!r} in {target}"
        msg += "; run without --from-data"
        raise FigureError(msg) from bad
    why: str | None = None
    if check:
        try:
            figure.check(table)
        except AssertionError as failed:
            why = " ".join(str(failed).split()) or "no message"
    verdict = "not checked" if not check else "check failed" if why is not None else "check holds"
    command = f"python -m toyld.figures --only {figure.slug} --format {','.join(formats)}"
    command += " --from-data" if from_data else f" --size {size}"
    made = {
        "command": command + (" --check" if check else ""),
        "size": None if from_data else size,
        "rows": len(next(iter(table.values()))),
        "check": verdict if why is None else f"{verdict}: {why}",
        "inputs_sha256": digests,
        "csv_sha256": hashlib.sha256(csv).hexdigest(),
        "date": date,
        "seconds": round(time.perf_counter() - started, 3),
    }
    if not from_data:
        write_whole(target, csv)
    for kind, content in pictures.items():
        write_whole(out / f"{figure.slug}.{kind}", content)
    write_whole(out / f"{figure.slug}.json", _provenance(figure, **made))
    return verdict, why


def _listing(figures: list[Figure]) -> str:
    lines = []
    wide = max(len(f.slug) for f in figures)
    for f in figures:
        about = f"{f.slug:<{wide}}  {f.title}"
        lines.append(about + (f" [paper: {f.paper}]" if f.paper else "") + (f" [reads {f.reads}]" if f.reads else ""))
        lines.append(f"{'':<{wide}}  {', '.join(f.claims)}")
    return "\n".join(lines)


def render(
    *,
    list: bool = False,
    only: tuple[str, ...] = (),
    size: Literal["smoke", "paper"] = "paper",
    out: Path = Path("figures"),
    format: str = "png,svg",
    check: bool = False,
    from_data: bool = False,
) -> int:
    """Draw the figures: SLUG.png, SLUG.svg, SLUG.csv (the data) and SLUG.json (how it was made), one line a figure.

    A figure whose input files are not here is skipped with the line that says how to get them. A figure whose check or
    data fail does not stop the others.

    Args:
        list: Only list them: slug, title, the paper's figure, what it reads, claims.
        only: Slugs, tags or globs of either (all figures by default).
        size: "smoke" is small and quick, "paper" the full size.
        out: Folder to write to; it is made if it is not there.
        format: Picture formats out of png, svg, pdf, separated by commas.
        check: Assert each caption's claim on the data; exit 1 if one fails.
        from_data: Redraw from the CSV files in the folder, computing nothing.

    Returns:
        0 if all is drawn and every check held, 1 if a check failed, 2 if a figure's input could not be read.

    Raises:
        FigureError: unknown slug, size or format, or an output folder that cannot be written; nothing is drawn then.
        ExceptionGroup: figures that broke, after all others were drawn.
    """
    figures = select(only)
    _known_claims(figures)
    if list:
        print(_listing(figures))
        return 0
    if size not in ("smoke", "paper"):
        msg = f"--size: expected smoke or paper, got {size!r}"
        raise FigureError(msg)
    formats = tuple(dict.fromkeys(kind.strip() for kind in format.split(",")))
    if not formats or any(kind not in FORMATS for kind in formats):
        msg = f"--format: expected some of {', '.join(FORMATS)} separated by commas, got {format!r}"
        raise FigureError(msg)
    date = _date()
    out = Path(out)
    _writable(out, make=not from_data)

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
                verdict, why = _one(
                    figure, size=size, out=out, formats=formats, check=check, from_data=from_data, date=date
                )
            except MissingInput as missing:
                verdict, why = f"skipped: {missing}", None
            except (FigureError, OSError) as bad:
                verdict, why, status = f"bad input: {' '.join(str(bad).split())}", None, max(status, 2)
            except Exception as bug:
                verdict, why = f"broke: {type(bug).__name__}: {bug}", None
                broken[figure.slug] = bug
            if why is not None:
                verdict, status = f"{verdict}: {why}", max(status, 1)
            print(f"{figure.slug:<{wide}}  {time.perf_counter() - started:5.1f} s  {verdict}", flush=True)
    if broken:
        msg = f"figures that broke: {', '.join(broken)}"
        raise ExceptionGroup(msg, [*broken.values()])
    return status
