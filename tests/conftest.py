"""Shared set-up: offline, deterministic under CI, and the scoreboard at the end of the run."""

import io
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", derandomize=True, database=None, deadline=None, print_blob=True)
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

ROW = "scoreboard_row"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real inputs that $TOYLD_DATA names; tests that need it skip without it."""
    folder = os.environ.get("TOYLD_DATA")
    if not folder:
        pytest.skip("needs real inputs: set TOYLD_DATA to the folder that holds runs/, preference/ and models/")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the scoreboard of the claims that this run has tried."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = [value for r in reports if r.when == "call" for name, value in r.user_properties if name == ROW]
    if not rows:
        return
    from rich.console import Console

    from toyld import scoreboard

    text = io.StringIO()
    Console(file=text, width=160).print(scoreboard.table(sorted(rows, key=lambda row: row["id"])))
    terminalreporter.section("scoreboard")
    terminalreporter.write_line(text.getvalue())
