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


def _pictures(about: dict[str, Any], out: Path) -> dict[str, str]:
    """Format -> file, of the pictures that belong to this provenance (an older one beside them does not)."""
    known = about.get("pictures_sha256")
    files = {kind: f"{about['slug']}.{kind}" for kind in (known or ("svg", "png", "pdf"))}
    there = {kind: name for kind, name in files.items() if (out / name).is_file()}
    return {kind: name for kind, name in there.items() if not known or _made.sha256(out / name) == known[kind]}


def entries(out: Path, /) -> list[dict[str, Any]]:
    """Every figure of this version that lies whole in the folder: its provenance, `rung`, `files`; up the ladder."""
    found = []
    for slug in every():
        try:
            about = _made.read(out / f"{slug}.json")
        except FigureError:
            continue
        csv = out / f"{slug}.csv"
        pictures = _pictures(about, out)
        if not pictures or not csv.is_file() or _made.sha256(csv) != about.get("csv_sha256"):
            continue
        columns = csv.read_text(encoding="utf-8").partition("\n")[0].split(",")
        about = {"columns": columns, "tags": [], "differs": None, "alt": about["title"], "dpi": None} | about
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
