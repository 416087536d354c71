"""Experiments on a small pretrained language model and real stories: each a module with `tables(seeds, size)`.

    python -c "from toyld.llm.experiments import write; write('remedies', 'FOLDER')"

They need a model and texts ($TOYLD_DATA) and minutes, so that their tables are kept as files. Seeds of record are 0 to
11; settings were chosen on seeds from 1000 on.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["RECORD", "write"]

RECORD = range(12)


def write(name: str, folder: str | Path, /, seeds: Sequence[int] = RECORD) -> list[Path]:
    """Run one experiment and save its tables in a folder, a NetCDF file each; the paths."""
    from toyld.trajectory import save

    out = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for title, ds in importlib.import_module(f"{__name__}.{name}").tables(tuple(seeds), "paper").items():
        out.append(Path(folder) / f"{title.replace(':', '').replace(',', '').replace(' ', '-')}.nc")
        save(ds, out[-1])
    return out
