"""The lab's arithmetic in a real browser: it gives what Python computes, and no constant of it could be another."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toyld.lab import ARITHMETIC, golden, source

JUDGE = (Path(__file__).parent / "golden.js").read_text(encoding="utf-8")
CASES = golden.cases()
TEXT = json.dumps(CASES, allow_nan=False)
# A change of these changes no result: what is skipped where, and why no golden case can tell.
NO_MATTER: dict[str, str] = {}


@pytest.fixture(scope="module")
def judge(browser: Any) -> Iterator[Any]:
    """A blank page that knows how to compare."""
    page = browser.new_page()
    page.evaluate(JUDGE)
    yield page
    page.close()


def pieces(changed: str = "", text: str = "") -> str:
    """JavaScript that evaluates the arithmetic pieces, one of them changed, and returns them."""
    names = [name for name in ARITHMETIC if source(name)]
    bodies = [text if name == changed else source(name) for name in names]
    return "\n".join(bodies) + f"\nreturn {{ {', '.join(names)} }};"


def test_the_page_computes_what_python_computes(opened: Any) -> None:
    page = opened("step")
    page.evaluate(JUDGE)
    assert len(CASES) > 500
    assert page.evaluate("text => judge(window.toyldLab, JSON.parse(text))", TEXT) == []
    assert {one["call"].split(".")[0] for one in CASES} == set(ARITHMETIC)


def test_other_inputs_than_those_of_record(judge: Any) -> None:
    fresh = golden.cases(1)
    assert fresh != CASES
    run = "([code, text]) => judge(new Function(code)(), JSON.parse(text))"
    assert judge.evaluate(run, [pieces(), json.dumps(fresh)]) == []


def code_only(text: str) -> str:
    """The source with comments and strings blanked, places kept."""
    return re.sub(r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"", lambda m: re.sub(r"[^\n]", " ", m.group()), text, flags=re.S)


def mutants(name: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the changed source): every number one more, every spaced operator the other one."""
    text = source(name)
    plain = code_only(text)
    other = {"+": "-", "-": "+", "*": "/", "/": "*", ">": "<", "<": ">"}
    for found in re.finditer(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])|(?<= )[-+*/<>](?= )", plain):
        old = found.group()
        new = other[old] if old in other else str(float(old) + 1.0)
        line = text.count("\n", 0, found.start()) + 1
        whole = text.splitlines()[line - 1].strip()
        yield f"{name}.js:{line} {old} → {new} in “{whole}”", text[: found.start()] + new + text[found.end() :]


@pytest.mark.parametrize("name", ARITHMETIC)
def test_every_changed_constant_and_operator_turns_the_golden_test_red(judge: Any, name: str) -> None:
    run = """([made, text]) => {
        const cases = JSON.parse(text);
        return made.map((code) => {
            try { return judge(new Function(code)(), cases, 1).length } catch { return 1 }
        });
    }"""
    changed = list(mutants(name))
    assert len(changed) > 5
    # Those that name this piece first: nearly every change is seen by one of the first cases.
    mine = sorted(CASES, key=lambda one: not one["call"].startswith(name))
    seen = judge.evaluate(run, [[pieces(name, text) for _, text in changed], json.dumps(mine)])
    survived = [what for (what, _), count in zip(changed, seen, strict=True) if not count]
    assert [what for what in survived if not any(key in what for key in NO_MATTER)] == [], len(changed)
