"""How a figure was made: what SLUG.json tells, and whether its files are still what the same command would write."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toyld.checkout import checkout
from toyld.figures._registry import Figure, FigureError
from toyld.files import sweep as _sweep

__all__ = ["date", "is_made", "made_by", "provenance", "read", "sha256", "sweep", "text"]

SCHEMA = 1
# What the numbers and the pictures depend on beside this package.
PACKAGES = ("numpy", "scipy", "matplotlib", "torch", "numba", "xarray", "scikit-learn")
_SOURCES = (".py", ".mplstyle", ".csv", ".json")


def date() -> str:
    """Now, or what SOURCE_DATE_EPOCH says (seconds since 1970), as ISO 8601 in UTC."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as bad:
        msg = f"SOURCE_DATE_EPOCH: expected whole seconds since 1970, got {epoch!r}; correct or unset it"
        raise FigureError(msg) from bad
    return moment.isoformat(timespec="seconds")


def sha256(content: bytes | Path, /) -> str:
    """Digest of bytes, or of a file."""
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@functools.cache
def _versions() -> dict[str, str | None]:
    import toyld

    python = ".".join(map(str, sys.version_info[:3]))
    return {"toyld": toyld.__version__, "python": python, **{name: _installed(name) for name in PACKAGES}}


@functools.cache
def made_by() -> dict[str, Any]:
    """The code that draws: a digest of this package's sources and of the data in it, and versions of what it uses."""
    root = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in _SOURCES and "__pycache__" not in p.parts):
        whole.update(f"{path.relative_to(root).as_posix()}\0{sha256(path)}\n".encode())
    return {"code_sha256": whole.hexdigest(), "versions": dict(_versions())}


def provenance(figure: Figure, /, **made: Any) -> dict[str, Any]:
    """What SLUG.json holds: the figure's own words, its claims, and how, when and by what it was made."""
    from toyld import claims

    known = claims.every()
    return {
        "schema": SCHEMA,
        "slug": figure.slug,
        "title": figure.title,
        "caption": figure.caption,
        "paper": figure.paper,
        "differs": figure.differs,
        "tags": list(figure.tags),
        "reads": figure.reads,
        "claims": [
            {"id": id, "expect": known[id].expect, "statement": known[id].statement, "source": known[id].source}
            for id in figure.claims
        ],
        "seed": figure.seed,
        **made,
        **checkout(),
    }


def text(about: Mapping[str, Any], /) -> bytes:
    """A JSON file's bytes."""
    return (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode()


def read(path: Path, /) -> dict[str, Any]:
    """What a SLUG.json tells.

    Raises:
        FigureError: there is none, or it is no provenance of a figure.
    """
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as bad:
        msg = f"{path.name}: expected how the figure was made, as JSON, got {bad}; draw it anew"
        raise FigureError(msg) from bad
    if not isinstance(about, dict) or about.get("schema") != SCHEMA or about.get("slug") != path.stem:
        got = sorted(about)[:4] if isinstance(about, dict) else type(about).__name__
        msg = f"{path.name}: expected schema {SCHEMA} and slug {path.stem}, got {got}; draw it anew"
        raise FigureError(msg)
    return about


def is_made(slug: str, out: Path, /, *, formats: Iterable[str], **same: Any) -> dict[str, Any] | None:
    """What SLUG.json tells if all files of the figure are there, whole, and were made in the `same` way, else None."""
    try:
        about = read(out / f"{slug}.json")
        files = {f"{slug}.csv": about["csv_sha256"]}
        files |= {f"{slug}.{kind}": about["pictures_sha256"][kind] for kind in formats}
        whole = all(sha256(out / name) == digest for name, digest in files.items())
    except (FigureError, OSError, KeyError, TypeError):
        return None
    return about if whole and all(about.get(name) == value for name, value in same.items()) else None


def sweep(slugs: Iterable[str], out: Path, /) -> None:
    """Remove what a killed run left half-written of these figures and of the gallery."""
    _sweep([*slugs, "index", "manifest"], out)
