"""From a Trajectory to a verdict, per example and per run: what the numbers are consistent with, and what to try."""

from __future__ import annotations

from toyld.diagnosis.classify import CLASSES, EXAMPLE_CLASSES, SEVERITY, Move, classify, classify_examples
from toyld.diagnosis.thresholds import DEFAULT, Thresholds, reasons
from toyld.diagnosis.verdict import SCHEMA, Verdict, as_json, diagnose

__all__ = [
    "CLASSES",
    "DEFAULT",
    "EXAMPLE_CLASSES",
    "SCHEMA",
    "SEVERITY",
    "Move",
    "Thresholds",
    "Verdict",
    "as_json",
    "classify",
    "classify_examples",
    "diagnose",
    "reasons",
]
