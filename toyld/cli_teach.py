"""`toyld book` and `toyld lab`: the teaching material, written to files that open without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

__all__ = ["book", "lab"]

_Chapters = Annotated[tuple[str, ...], arg(metavar="[NN…]", help_behavior_hint="")]
_Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]


def book(
    *,
    source: Path = Path("theory"),
    out: Path = Path("site"),
    only: _Chapters = (),
    figures: _Folder = None,
) -> int:
    """Run the chapters of the book and write them as a site that opens in any browser, without a network.

    Prose, formulas, code, what it prints and draws, exercises with their solutions folded, students' files, all claims
    and the lab. Exit 1 if a chapter or an exercise fails: its page shows where, all others are written.

    Args:
        source: The folder of chapters, theory/ in a clone of the repository.
        out: Folder to write to; it is made if it is not there.
        only: Only these chapters, by number or name, for example 03.
        figures: Folder of drawn figures with its index.html, to be taken along as the gallery.
    """
    from toyld.book.site import build

    failed = build(source, out, only=only, figures=figures)
    for name in failed:
        print(f"toyld: {name} failed", file=sys.stderr)
    return 1 if failed else 0


def lab(*, out: Path = Path("lab.html"), open: bool = False) -> int:
    """Write the lab: one page to play with, which opens by double click and needs neither network nor server.

    One softmax whose logits are dragged, two coupled contexts under DPO, the zoo of losses, and a quiz on runs.

    Args:
        out: File to write.
        open: Open it in the browser, too.
    """
    import webbrowser

    from toyld.checked import BadInput
    from toyld.files import write_whole
    from toyld.lab import build

    if out.is_dir() or not out.absolute().parent.is_dir():
        msg = f"--out: expected a file in an existing folder, got {out}; name one, for example lab.html"
        raise BadInput(msg)
    page = build().encode()
    write_whole(out, page)
    print(f"{out} ({len(page) / 1000:.0f} kB): open it in a browser, by double click or as {out.absolute().as_uri()}")
    if open and not webbrowser.open(out.absolute().as_uri()):
        print("toyld: no browser was found to open it with", file=sys.stderr)
    return 0
