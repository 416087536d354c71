"""The authors' released logs, below $TOYLD_DATA: where they lie and what they hold, or how to get them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toyld.figures._registry import FigureError, MissingInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["INPUTS", "files", "folders", "read"]

INPUTS = "$TOYLD_DATA/runs/authors"


def folders(names: Mapping[str, str], /) -> dict[str, Path]:
    """Panel -> folder of the run of that name.

    Raises:
        MissingInput: TOYLD_DATA is not set or lacks one of them.
    """
    root = os.environ.get("TOYLD_DATA")
    found = {panel: Path(root or "", "runs", "authors", name) for panel, name in names.items()}
    missing = [folder.name for folder in found.values() if not folder.is_dir()]
    if not root or missing:
        got = "TOYLD_DATA is not set" if not root else f"{INPUTS} lacks {', '.join(missing)}"
        msg = (
            f"{got}; point it to a folder with runs/authors/RUN/, the result folders of the authors' repository "
            "(Joshua-Ren/Learning_dynamics_LLM on GitHub)"
        )
        raise MissingInput(msg)
    return found


def files(names: Mapping[str, str], /) -> dict[str, Path]:
    """Every file of these run folders; raises as `folders`."""
    found = [path for folder in folders(names).values() for path in sorted(folder.iterdir()) if path.is_file()]
    return {f"{path.parent.name}/{path.name}": path for path in found}


def read(folder: Path, /, **options: Any) -> xr.Dataset:
    """The log in one of these folders as a trajectory; options: those of `read_authors`.

    Raises:
        FigureError: it cannot be read as one; the line starts with the folder's name.
    """
    from toyld.trajectory import TrajectoryError, read_authors

    try:
        return read_authors(folder, **options)
    except TrajectoryError as bad:
        raise FigureError(f"{folder.name}: {bad}") from bad
