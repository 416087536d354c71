"""Experiments on many worlds at once: a module of this folder with `tables(seeds, size)`, its runs by name, as tables.

>>> sorted(run("stages", seeds=[1000]))[0], run("stages", seeds=[1000]) is run("stages", seeds=(1000,))
('anisotropic dpo baseline after 0', True)
"""

from __future__ import annotations

from toyld.trajectory.experiments import Experiments

__all__ = ["EXPERIMENTS", "RECORD", "run", "tables"]

RECORD = tuple(range(32))  # the seeds of record at every size, named before any run
EXPERIMENTS = Experiments(__name__, {"smoke": RECORD, "paper": RECORD})
run, tables = EXPERIMENTS.run, EXPERIMENTS.tables
