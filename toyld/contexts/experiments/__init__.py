"""Experiments on many worlds at once: a module of this folder with `tables(seeds, size)`, its runs by name, as tables.

Such a module joins by being there. Each table carries attr `experiment`, so that a claim is tried on the design that it
speaks of and on no other.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable

import xarray as xr

__all__ = ["RECORD", "run", "tables"]

RECORD = tuple(range(32))  # the seeds of record, named before any run


def tables(seeds: Iterable[int] = RECORD, size: str = "smoke") -> dict[str, xr.Dataset]:
    """The tables of all experiments by name; computed once in a process for each choice of seeds and size.

    Raises:
        ValueError: two experiments give a table of the same name.
    """
    seeds = tuple(seeds)
    out: dict[str, xr.Dataset] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        made = run(name, seeds, size)
        if twice := sorted(set(out) & set(made)):
            msg = f"experiment {name}: expected names of its own, got {', '.join(twice)} once more; rename them"
            raise ValueError(msg)
        out |= made
    return out


def run(name: str, seeds: Iterable[int] = RECORD, size: str = "smoke") -> dict[str, xr.Dataset]:
    """The tables of one experiment; none of a module that has no `tables`.

    >>> sorted(run("stages", seeds=[1000]))[0], run("stages", seeds=[1000]) is run("stages", seeds=(1000,))
    ('anisotropic dpo baseline after 0', True)
    """
    return _run(name, tuple(int(seed) for seed in seeds), size)


@functools.cache
def _run(name: str, seeds: tuple[int, ...], size: str) -> dict[str, xr.Dataset]:
    make = getattr(importlib.import_module(f"{__name__}.{name}"), "tables", None)
    return {} if make is None else make(seeds, size)
