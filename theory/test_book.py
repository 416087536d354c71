"""Every chapter and every exercise runs, from top to bottom; the test id is the chapter's file name."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from toyld import claims

CHAPTERS = sorted(Path(__file__).parent.glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(chapter, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(chapter))
    assert capsys.readouterr().out, "a chapter shows its numbers"
    left = [path.name for path in tmp_path.iterdir()]
    assert left == [f"{chapter.stem}.png"], "a chapter draws one picture, named like itself, and leaves nothing else"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_has_its_parts(chapter):
    text = chapter.read_text()
    assert len(text.splitlines()) <= 300
    for part in ("# # ", "**Question.**", "## Picture", "## Exercise", "**Solution.**"):
        assert part in text, part
    called = {ast.unparse(n.func).split(".")[-1] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)}
    assert "hold" in called, "a chapter holds its statements by claim id"
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert)], (
        "use numpy.testing: a bare assert fails without its numbers"
    )


def test_every_chapter_of_the_house_is_found_and_numbered_once():
    numbers = [path.name[:2] for path in CHAPTERS]
    assert len(numbers) == len(set(numbers)) >= 5


def test_chapters_name_claims_that_exist():
    known = set(claims.every())
    for chapter in CHAPTERS:
        named = set(re.findall(r'"([a-z]+\.[a-z0-9-]+)"', chapter.read_text()))
        assert named <= known, f"{chapter.name}: {named - known}"
