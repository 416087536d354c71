"""Every command of README's sh blocks, and its whole script, as printed and in order, beside a clone's files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
SCRIPT = re.search(r"<!-- script -->\n```python\n(.*?)```", README, re.S).group(1)


def printed(line: str) -> str:
    """What is left to run of a line: installing and the whole test suite are not this test's work."""
    parts = [part.strip() for part in line.split("&&")]
    return " && ".join(part for part in parts if not part.startswith(("pip install", "pytest"))).replace(" --open", "")


def test_no_command_has_a_placeholder():
    assert len(COMMANDS) >= 15
    for line in COMMANDS:
        assert not re.search(r"…|<\w+>|\.\.\.", line.partition("#")[0]), line
        wanted = re.findall(r"(?:example|theory)/[\w./-]*", line)
        made = ("example/model", "example/pairs.jsonl", "example/held_out.jsonl", "example/dpo")
        assert all(path.startswith(made) or (ROOT / path).exists() for path in wanted), line


@pytest.mark.slow
def test_every_command_works_as_printed(tmp_path):
    for name in ("theory", "figures"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "train_dpo.py").write_text(SCRIPT, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    failed = []
    for line in filter(None, map(printed, COMMANDS)):
        line = line.replace("-m toyld.figures", "-m toyld.figures --size smoke")
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(f"{line}\n  exit {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    assert not failed, "\n".join(failed)
