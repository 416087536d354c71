"""Which browser the tests take, and what they do where none starts."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRIED = """
def test_in_a_browser(browser):
    assert browser.is_connected()
"""


def stub(folder: Path, name: str, text: str = "exit 1") -> Path:
    """A program of this name that does as told, by default fails."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tried(tmp_path: Path) -> str:
    """The last line of pytest on a test that needs a browser, where the browsers found do not start."""
    pytest.importorskip("playwright.sync_api", reason='needs Playwright: pip install "toyld[test]"')
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_one.py").write_text(TRIED)
    (tmp_path / "bin").mkdir()
    broken = stub(tmp_path / "bin", "chromium")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "test_one.py"]
    env = {**os.environ, "PATH": str(broken.parent), "TOYLD_CHROMIUM": str(tmp_path / "nosuch")}
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    return ran.stdout


def test_tests_skip_where_no_browser_starts(tried: str) -> None:
    assert "needs a Chromium that starts, got" in tried
    assert "nosuch" in tried
    assert tried.rstrip().splitlines()[-1].startswith("1 skipped")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash, for .ci/run")
@pytest.mark.parametrize("there", ["chromium", "chromium-browser", "google-chrome", "TOYLD_CHROMIUM", None])
def test_the_check_asks_apt_for_a_browser_only_where_there_is_none(there: str | None, tmp_path: Path) -> None:
    text = (ROOT / ".ci" / "run").read_text()
    part = re.search(r"^browser=.*?^fi\n", text, re.M | re.S)
    assert part
    stub(tmp_path, "id", "echo 0")
    stub(tmp_path, "timeout", f'echo "$@" >> "{tmp_path}/asked"')
    stub(tmp_path, "apt-get")
    env = {"PATH": str(tmp_path), "work": str(tmp_path)}
    if there == "TOYLD_CHROMIUM":
        env[there] = str(tmp_path / "apt-get")
    elif there:
        stub(tmp_path, there)
    bash = str(shutil.which("bash"))
    ran = subprocess.run(
        [bash, "-euo", "pipefail", "-c", part[0]], env=env, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    asked = tmp_path / "asked"
    assert asked.exists() == (there is None)
    if there is None:
        lines = asked.read_text().splitlines()
        assert [re.sub(r"\d+", "N", line.partition(" apt-get ")[0]) for line in lines] == ["-k N N", "-k N N"]
