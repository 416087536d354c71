"""Experiments on tiny transformers: a module of this folder with `tables(seeds, size)`, its runs as tables.

*smoke*: what the tests and the board compute, seconds. *paper*: larger models and languages, recorded.
"""

from __future__ import annotations

from toyld.trajectory.experiments import Experiments

__all__ = ["EXPERIMENTS", "RECORD", "run", "tables"]

RECORD = {"smoke": tuple(range(20)), "paper": tuple(range(32))}  # the seeds of record, named before any run
EXPERIMENTS = Experiments(__name__, RECORD)
run, tables = EXPERIMENTS.run, EXPERIMENTS.tables
