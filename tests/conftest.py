"""Shared set-up: offline, deterministic under CI, benchmarks as modules, and the scoreboard at the end of the run."""

import contextlib
import functools
import importlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("ci", derandomize=True, database=None, deadline=None, print_blob=True)
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "here")

ROW = "scoreboard_row"
ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # those that .ci/run knows, too
LINE = ["benchmark", "against", "size", "ratio", "target", "agree", "tolerance", "device", "threads", "repeats"]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real inputs that $TOYLD_DATA names; tests that need it skip without it."""
    folder = os.environ.get("TOYLD_DATA")
    if not folder:
        pytest.skip("needs real inputs: set TOYLD_DATA to the folder that holds runs/, preference/ and models/")
    return Path(folder)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """A script of benchmarks/ as a module, by its name; afterwards it and what it imported from beside it are gone."""
    import torch

    folder, threads = ROOT / "benchmarks", torch.get_num_threads()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("XLA_FLAGS", "")  # benchmarks/influence.py sets it

    yield importlib.import_module
    torch.set_num_threads(threads)
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Callable[[ModuleType], tuple[list[dict[str, Any]], str]]:
    """A benchmark's lines at smoke size, each of the form that all have and within its tolerance, and its table."""

    def run(benchmark: ModuleType) -> tuple[list[dict[str, Any]], str]:
        assert benchmark.main(["--size", "smoke"]) == 0
        printed = capsys.readouterr()
        lines = [json.loads(line) for line in printed.out.splitlines()]
        for line in lines:
            assert list(line)[: len(LINE)] == LINE
            assert line["agree"] <= line["tolerance"]
            assert line["ratio"] > 0
            assert line["threads"] == 1
        return lines, printed.err

    return run


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless, one for all tests of a worker; the tests that need it skip where none starts."""
    found = [path for path in (os.environ.get("TOYLD_CHROMIUM"), *map(shutil.which, BROWSERS)) if path]
    get = "apt-get install chromium, or set TOYLD_CHROMIUM to a browser of yours"
    if not found:
        pytest.skip(f"needs Chromium: {get}")
    api = pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install "toyld[test]"')
    quiet = ["background-networking", "component-update", "quic", "sync", "gpu"]
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with api.sync_playwright() as driver:
        running = None
        for path in found:
            with contextlib.suppress(api.Error):  # it is there and does not start: perhaps the next does
                running = driver.chromium.launch(executable_path=path, args=flags)
                break
        if running is None:
            pytest.skip(f"needs a Chromium that starts, got {', '.join(found)}: {get}")
        yield running
        running.close()


@functools.cache
def chapters() -> dict[str, list[str]]:
    """The claims that each chapter of the book names, with its exercises."""
    from toyld.book.chapters import ids

    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "theory").rglob("[0-9]*.py")):
        found[path.stem] = found.get(path.stem, []) + ids(path.read_text(), marks='"')
    return found


def shared(nodeid: str) -> str:
    """Which tests one worker of pytest-xdist should run: those of the claims of a rung, else those of a file.

    A rung computes its experiments once in a process, for all of its claims and the chapters that hold them. A
    figure is drawn once for all of its tests. Step claims share nothing: each goes to whoever is idle.
    """
    from toyld import scoreboard
    from toyld.claims import every

    file, _, name = nodeid.partition("::")
    case = name.partition("[")[2].removesuffix("]")
    ids = chapters().get(case, [case])
    rungs = {rung for id in ids if id in every() and every()[id].about == "run" for rung in every()[id].rungs}
    alone = file.endswith(("test_claims.py", "test_book.py"))
    if file.endswith("test_figures.py") and case:  # a figure is drawn once for all its tests
        return f"{file}[{case}]"
    # The highest with experiments is the dearest to compute twice; what was logged or recorded is read fast.
    order = sorted(scoreboard.RUNGS, key=lambda rung: rung not in ("published", "llm"))
    return max(rungs, key=order.index, default=nodeid if alone else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Several workers (-n) share the tests by `shared`, unless --dist says otherwise."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shared(nodeid)

    return Scheduling(config, log) if config.option.dist == "load" else None


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
