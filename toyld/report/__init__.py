"""Verdicts for people: a table and paragraphs for the terminal, one self-contained page, and the file for programs.

An *entry* is one run that was read (label, table, verdict), or a path that could not be read (label, why).
"""

from __future__ import annotations

from toyld.report._words import Entry
from toyld.report.command import run, runs_as_json
from toyld.report.page import html
from toyld.report.terminal import printout

__all__ = ["Entry", "html", "printout", "run", "runs_as_json"]
