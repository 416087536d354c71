"""The gallery: index.html and manifest.json beside the figures of a folder, from what lies in it and nothing else.

A partial run leaves the others' entries as they are, since each is read from its own SLUG.json. Dates and durations
stand in manifest.json alone, so that index.html is the same bytes as long as the figures are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toyld.figures import _made, _page
from toyld.figures._paper import FIGURES
from toyld.figures._registry import FigureError, every
from toyld.files import write_whole

__all__ = ["PAGE", "entries", "missing", "rung", "write"]

PAGE = "index.html"
MANIFEST = "manifest.json"
OVERVIEW = "squeezing_at_a_glance"  # leads its rung
# Tag -> step of the ladder; the first that a figure has counts.
RUNGS = {"softmax": "toy", "objectives": "toy", "contexts": "contexts", "digits": "digits", "tiny": "tiny"}
RUNGS |= {"published": "published", "llm": "llm"}


def rung(tags: list[str], /) -> str:
    """The step of the ladder that a figure stands on: the first of toy, contexts, … that its tags tell.

    >>> rung(["softmax", "squeezing"]), rung(["llm", "published"])
    ('toy', 'published')
    """
    return next((name for tag, name in RUNGS.items() if tag in tags), "toy")


# What the page shows of a SLUG.json; None is what is not there.
_SHAPE: dict[str, Any] = {
    **dict.fromkeys(("title", "caption", "command", "alt", "check", "csv_sha256"), str),
    **dict.fromkeys(("paper", "differs", "size", "commit"), str | None),
    "columns": [str],
    "tags": [str],
    "inputs_sha256": {str: str},
    "pictures_sha256": {str: str},
    "versions": {str: str | None},
    "claims": [{"id": str, "statement": str, "expect": str}],
    "rows": int,
    "dirty": bool | None,
    "aspect": int | float | None,
}
# Of those that earlier versions did not write.
_EARLIER: dict[str, Any] = {"columns": [], "tags": [], "differs": None, "alt": None, "dpi": None}
TALLEST = 100  # height of a picture by its width
_KINDS = ("svg", "png", "pdf")


def _is(value: Any, shape: Any) -> bool:
    if isinstance(shape, list):
        return isinstance(value, list) and all(_is(one, shape[0]) for one in value)
    if isinstance(shape, dict) and str in shape:
        return isinstance(value, dict) and all(_is(one, shape[str]) for one in value.values())
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_is(value.get(name), one) for name, one in shape.items())
    return isinstance(value, shape)


def _read(path: Path) -> dict[str, Any]:
    """A provenance in the form that the page shows.

    Raises:
        FigureError: there is none, or another hand has changed it to another form.
    """
    about = _made.read(path)
    about = _EARLIER | {"alt": about.get("title")} | about
    for name in ("versions", "inputs_sha256", "pictures_sha256"):
        about.setdefault(name, {})
    about.setdefault("check", "not checked")
    fits = _is(about, _SHAPE) and 0 < (1 if about.get("aspect") is None else about["aspect"]) < TALLEST
    try:
        _made.text(about)
    except UnicodeEncodeError:  # half of a character
        fits = False
    if not fits:
        msg = f"{path.name}: expected what this version or an earlier one writes, got another form; draw it anew"
        raise FigureError(msg)
    return about


def _pictures(about: dict[str, Any], out: Path) -> dict[str, str]:
    """Format -> file, of the pictures that belong to this provenance (an older one beside them does not)."""
    known = about["pictures_sha256"]
    files = {kind: f"{about['slug']}.{kind}" for kind in (known or _KINDS) if kind in _KINDS}
    there = {kind: name for kind, name in files.items() if (out / name).is_file()}
    return {kind: name for kind, name in there.items() if not known or _made.sha256(out / name) == known[kind]}


def entries(out: Path, /) -> list[dict[str, Any]]:
    """Every figure of this version that lies whole in the folder: its provenance, `rung`, `files`; up the ladder."""
    found = []
    for slug in every():
        try:
            about = _read(out / f"{slug}.json")
        except FigureError:
            continue
        csv = out / f"{slug}.csv"
        pictures = _pictures(about, out)
        if not pictures or not csv.is_file() or _made.sha256(csv) != about.get("csv_sha256"):
            continue
        columns = csv.read_text(encoding="utf-8").partition("\n")[0].split(",")
        about["columns"] = about["columns"] or columns
        found.append(about | {"rung": rung(about["tags"]), "files": {"csv": csv.name, **pictures}})
    order = [*_page.LADDER]
    return sorted(found, key=lambda about: (order.index(about["rung"]), about["slug"] != OVERVIEW, about["slug"]))


def missing(out: Path, shown: list[dict[str, Any]], /) -> dict[str, str]:
    """Slug -> why, of the figures of this version that the page cannot show."""
    there = {about["slug"] for about in shown}
    reasons = {}
    for slug, figure in every().items():
        if slug in there:
            continue
        why = f"python -m toyld.figures --only {slug} draws it"
        if figure.reads:
            why += f", where {figure.reads} is there"
        if (out / f"{slug}.json").exists():
            why = f"its files do not belong together; {why}"
        reasons[slug] = why
    return reasons


def write(out: Path, /) -> None:
    """Write both files; nothing where no figure lies.

    Raises:
        OSError: the folder cannot be written.
    """
    shown = entries(out)
    if not shown:
        return
    absent = missing(out, shown)
    manifest = {
        "schema": _made.SCHEMA,
        "figures": shown,
        "not_here": absent,
        "paper": [row._asdict() for row in FIGURES],
    }
    write_whole(out / MANIFEST, _made.text(manifest))
    titles = {slug: figure.title for slug, figure in every().items()}
    write_whole(out / PAGE, _page.page(shown, absent=absent, titles=titles).encode())
