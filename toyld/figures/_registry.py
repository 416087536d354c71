"""Which figures there are: modules found by their file, with what their docstrings say about them."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from toyld.checked import BadInput

__all__ = ["Figure", "FigureError", "MissingInput", "every", "from_module", "select"]

# How long one takes at full size on one core of 2020, the slowest first start of just-in-time compilers included.
COSTS = ("seconds", "half a minute")
_CLAIM = re.compile(r"`([a-z][a-z0-9-]*\.[a-z][a-z0-9-]*)`")


class FigureError(BadInput):
    """A figure, a table or a request that does not fit; one line: expected, got, what to do."""


class MissingInput(FigureError):
    """The figure reads files that are not here; one line that says how to get them. The figure is skipped."""


@dataclass(frozen=True)
class Figure:
    """One figure: its slug and title, what its caption claims, and its three functions."""

    slug: str
    title: str
    caption: str
    claims: tuple[str, ...]
    data: Callable[[str], Mapping[str, Any]]
    draw: Callable[[Mapping[str, Any]], Any]
    check: Callable[[Mapping[str, Any]], None]
    inputs: Callable[[], Mapping[str, Path]]
    paper: str | None = None
    differs: str | None = None
    tags: tuple[str, ...] = ()
    seed: int | None = None
    reads: str | None = None
    cost: str = COSTS[0]


def from_module(module: ModuleType, /) -> Figure:
    """The figure that a module defines.

    Raises:
        FigureError: no title, no caption, no claim named in it, one of data, draw, check is missing, or a figure of the
            paper is named without what is different here.
    """
    slug = module.__name__.rpartition(".")[2]
    title, _, caption = (module.__doc__ or "").strip().partition("\n\n")
    claims = tuple(dict.fromkeys(_CLAIM.findall(caption)))
    if not title or "\n" in title or not caption:
        msg = f"{slug}: expected a docstring of one title line, a blank line and a caption, got {title[:60]!r}"
        raise FigureError(msg)
    if not claims:
        msg = f"{slug}: expected a caption that names claims as `chapter.name`, got none; name what the picture shows"
        raise FigureError(msg)
    missing = [name for name in ("data", "draw", "check") if not callable(getattr(module, name, None))]
    if missing:
        msg = f"{slug}: expected functions data(size), draw(table) and check(table), got no {', '.join(missing)}"
        raise FigureError(msg)
    paper, differs = getattr(module, "PAPER", None), getattr(module, "DIFFERS", None)
    if paper and not differs:
        msg = f"{slug}: expected DIFFERS, what is known to be different from the paper's ({paper}), got none; write it"
        raise FigureError(msg)
    cost = getattr(module, "COST", COSTS[0])
    if cost not in COSTS:
        msg = f"{slug}: expected COST to be one of {', '.join(COSTS)}, got {cost!r}"
        raise FigureError(msg)
    return Figure(
        slug=slug,
        title=title.rstrip("."),
        caption=" ".join(caption.split()),
        claims=claims,
        data=module.data,
        draw=module.draw,
        check=module.check,
        inputs=getattr(module, "inputs", dict),
        paper=paper,
        differs=" ".join(differs.split()) if differs else None,
        tags=tuple(getattr(module, "TAGS", ())),
        seed=getattr(module, "SEED", None),
        reads=getattr(module, "INPUTS", None),
        cost=cost,
    )


def every() -> dict[str, Figure]:
    """All figures by slug, in alphabetical order."""
    package = importlib.import_module("toyld.figures")
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))
    return {name: from_module(importlib.import_module(f"toyld.figures.{name}")) for name in names}


def select(globs: Iterable[str] = (), /) -> list[Figure]:
    """The figures whose slug or a tag matches one of the globs (all of them without globs).

    Raises:
        FigureError: a glob that matches nothing, with the list of slugs.
    """
    figures = every()
    chosen: dict[str, Figure] = {}
    for pattern in list(globs) or ["*"]:
        hits = [f for f in figures.values() if any(fnmatch.fnmatchcase(name, pattern) for name in (f.slug, *f.tags))]
        if not hits:
            msg = (
                f"expected a figure's slug, tag or a glob, got {pattern!r} which matches none of: {', '.join(figures)}"
            )
            raise FigureError(msg)
        chosen |= {f.slug: f for f in hits}
    return [f for f in figures.values() if f.slug in chosen]
