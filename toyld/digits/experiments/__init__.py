"""Experiments on networks that read digits: a module of this folder with `tables(seeds, size)`, its runs as tables.

*smoke*: the embedded 8×8 digits. *paper*: MNIST from the folder mnist of the one that $TOYLD_DATA names.
"""

from __future__ import annotations

import hashlib

from toyld.digits.data import held
from toyld.trajectory.experiments import Experiments

__all__ = ["EXPERIMENTS", "RECORD", "data", "run", "tables"]

RECORD = {"smoke": tuple(range(32)), "paper": tuple(range(10))}  # the seeds of record, named before any run


def data(size: str, /) -> dict[str, str]:
    """What an experiment of a size reads that does not come with a package: name → sha256 of the unpacked file.

    Raises:
        BadInput: MNIST is not there, or not as published.

    >>> data("smoke")
    {}
    """
    if size == "smoke":
        return {}
    return {f"mnist/{name}": hashlib.sha256(content).hexdigest() for name, content in held()}


EXPERIMENTS = Experiments(__name__, RECORD, data)
run, tables = EXPERIMENTS.run, EXPERIMENTS.tables
