"""The scoreboard says what was computed, and in which words."""

import json

import pytest

from toyld import claims, scoreboard


def test_a_row_is_plain_json_and_its_verdict_is_its_lowest_rungs():
    (one,) = claims.select(["squeeze.penalised-falls"])
    cells = {"tiny": scoreboard.NOT_RUN, "softmax": scoreboard.cell(claims.evaluate(one, examples=50))}
    row = scoreboard.row(one, cells)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["verdict"], row["cases"]) == ("holds", cells["softmax"]["cases"])


def test_a_rung_that_nothing_serves_reads_not_run(monkeypatch):
    monkeypatch.delitem(scoreboard.SERVES, "softmax")
    (row,) = scoreboard.score(claims.select(["squeeze.penalised-falls"]))
    assert row["verdict"] == row["cells"]["softmax"]["verdict"] == "not run"


WORDS = [
    ("theorem", {"verdict": "holds", "cases": 1234}, "proved (1,234 cases survived)"),
    ("identity", {"verdict": "holds", "cases": 5}, "proved (5 cases survived)"),
    ("conjecture", {"verdict": "open", "cases": 7}, "open (7 cases survived)"),
    ("trend", {"verdict": "holds", "cases": 7}, "holds (7 cases survived)"),
    ("theorem", {"verdict": "refuted", "cases": 7, "why": None}, "refuted (7 cases, certified counterexample)"),
    ("theorem", {"verdict": "refuted", "cases": 7, "why": "a counterexample was found"}, "refuted (!)"),
    (
        "theorem",
        {"verdict": "undecided", "cases": 0, "why": "no case met the premise"},
        "undecided: no case met the premise",
    ),
    ("theorem", {"verdict": "not run", "cases": 0}, "not run"),
]


@pytest.mark.parametrize(("kind", "cell", "want"), WORDS)
def test_words(kind, cell, want):
    assert scoreboard.words(kind, cell) == want
