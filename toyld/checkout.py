"""The checkout that this package runs from: its commit, and whether tracked files differ from it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TypedDict

__all__ = ["Checkout", "checkout"]


class Checkout(TypedDict):
    """`commit` and `dirty`; both None outside of a checkout."""

    commit: str | None
    dirty: bool | None


def checkout() -> Checkout:
    """Commit and dirty flag of the checkout this package is tracked in; None each outside of one.

    >>> sorted(checkout())
    ['commit', 'dirty']
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not one that merely surrounds an installed copy
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
