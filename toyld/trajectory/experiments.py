"""Experiments: the modules of a package that have `tables(seeds, size)`, and their runs by name, as tables.

Such a module joins its package by being there. Each table carries attr `experiment`, the name of the module, so that a
claim is tried on the design that it speaks of and on no other. The seeds of record are named before any run.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from toyld.checked import BadInput

__all__ = ["Experiments"]

Tables = dict[str, xr.Dataset]


def _nothing(size: str) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Experiments:
    """The experiments of one package.

    package: its `__name__`. record: size → the seeds of record. data: size → what was read for it, name → sha256.

    >>> "stages" in Experiments("toyld.contexts.experiments", {"smoke": range(2)}).names()
    True
    """

    package: str
    record: Mapping[str, Sequence[int]]
    data: Callable[[str], Mapping[str, str]] = _nothing

    def _modules(self) -> list[str]:
        """Those that are not private."""
        found = (one.name for one in pkgutil.iter_modules(importlib.import_module(self.package).__path__))
        return sorted(name for name in found if not name.startswith("_"))

    def names(self) -> tuple[str, ...]:
        """The modules that have tables."""
        found = ((name, importlib.import_module(f"{self.package}.{name}")) for name in self._modules())
        return tuple(name for name, module in found if hasattr(module, "tables"))

    def seeds(self, size: str) -> tuple[int, ...]:
        """The seeds of record of a size.

        Raises:
            BadInput: a size that has none.
        """
        if size not in self.record:
            msg = f"expected a size out of {', '.join(self.record)}, got {size!r}; or name the seeds"
            raise BadInput(msg)
        return tuple(self.record[size])

    def run(self, name: str, seeds: Iterable[int] | None = None, size: str = "smoke") -> Tables:
        """The tables of one experiment, of the seeds of record by default; none of a module that has no `tables`.

        Computed once in a process for each choice of seeds and size.
        """
        seeds = self.seeds(size) if seeds is None else seeds
        return _run(f"{self.package}.{name}", tuple(int(seed) for seed in seeds), size)

    def tried(self, seeds: Iterable[int] | None = None, size: str = "smoke") -> tuple[Tables, dict[str, Exception]]:
        """The tables of all experiments by name, and what those raised that broke down, by experiment.

        An experiment that gives a table of a name that is taken counts as broken: ValueError.
        """
        seeds = self.seeds(size) if seeds is None else tuple(seeds)
        out: Tables = {}
        broken: dict[str, Exception] = {}
        for name in self._modules():
            try:
                made = self.run(name, seeds, size)
                if twice := sorted(set(out) & set(made)):
                    msg = f"experiment {name}: expected names of its own, got {', '.join(twice)} once more; rename them"
                    raise ValueError(msg)
            except Exception as error:
                broken[name] = error
            else:
                out |= made
        return out, broken

    def tables(self, seeds: Iterable[int] | None = None, size: str = "smoke") -> Tables:
        """The tables of all experiments by name; raises what the first that breaks down raised."""
        out, broken = self.tried(seeds, size)
        for error in broken.values():
            raise error
        return out


@functools.cache
def _run(module: str, seeds: tuple[int, ...], size: str) -> Tables:
    make = getattr(importlib.import_module(module), "tables", None)
    return {} if make is None else make(seeds, size)
