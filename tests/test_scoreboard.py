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


def run_cell(verdict, *runs, recorded=None, effect=None):
    first = runs[0] if runs else {}
    span = {k: first.get(k) for k in ("low", "high", "n")}
    return {"verdict": verdict, "effect": first.get("effect"), **span, "unit": "nats", "runs": list(runs),
            "recorded": recorded, "why": None}  # fmt: skip


SURE = {"verdict": "holds", "effect": 17.09, "low": 15.77, "high": 18.41, "n": 500, "p": 1e-9}
AGAINST, UNSURE = SURE | {"verdict": "refuted", "effect": -3.4}, SURE | {"verdict": "undecided", "effect": 0.1}
MEANS = {"verdict": "undecided", "effect": 20.4, "low": None, "high": None, "n": 1, "p": None}

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
    ("trend", run_cell("holds", SURE, MEANS), "holds (+17.1 [+15.8, +18.4] nats, n = 500, 1 run)"),
    (
        "trend",
        run_cell("holds", SURE, SURE, recorded={"date": "2026"}),
        "holds (+17.1 [+15.8, +18.4] nats, n = 500, 2 runs, recorded)",
    ),
    ("trend", run_cell("conditional", SURE, AGAINST, AGAINST), "conditional (1 holds, 2 refuted)"),
    ("trend", run_cell("undecided", SURE, UNSURE), "undecided (1 holds, 1 undecided)"),
    ("trend", run_cell("undecided", MEANS), "undecided (means only)"),
    ("trend", run_cell("undecided", MEANS, MEANS | {"n": 500}), "undecided (no interval)"),
    ("trend", run_cell("not applicable"), "not applicable"),
    ("trend", run_cell("not run"), "not run"),
]


@pytest.mark.parametrize(("kind", "cell", "want"), WORDS)
def test_words(kind, cell, want):
    assert scoreboard.words(kind, cell) == want


ROWS = [  # cells of a run claim -> its own verdict
    ({"published": "not applicable"}, "open"),
    ({"published": "undecided"}, "open"),
    ({"published": "conditional"}, "conditional"),
    ({"published": "not run"}, "not run"),
    ({"tiny": "undecided", "published": "refuted"}, "refuted"),
    ({"tiny": "holds", "published": "refuted"}, "holds"),
]


@pytest.mark.parametrize(("verdicts", "want"), ROWS)
def test_a_run_claims_verdict_is_that_of_the_lowest_rung_that_gives_one(verdicts, want):
    (one,) = claims.select(["preference.margin-grows"])
    row = scoreboard.row(one, {rung: run_cell(verdict) for rung, verdict in verdicts.items()})
    assert row["verdict"] == want
    assert row["cases"] is None


EXPECTED = [  # cells of a claim that holds in closed form and is open on the logs -> expect of the row, surprises
    ({"contexts": "holds", "published": "undecided"}, "holds", []),
    ({"contexts": "holds", "published": "not applicable"}, "holds", []),
    ({"contexts": "holds", "published": "not run"}, "holds", []),
    ({"contexts": "holds", "published": "holds"}, "holds", [("published", "holds")]),
    ({"contexts": "undecided", "published": "undecided"}, "holds", [("contexts", "open")]),
    ({"contexts": "refuted", "published": "undecided"}, "holds", [("contexts", "refuted")]),
    ({"published": "undecided"}, "open", []),
]


@pytest.mark.parametrize(("verdicts", "expect", "surprises"), EXPECTED)
def test_every_computed_cell_has_an_expectation_of_its_own(verdicts, expect, surprises):
    (one,) = claims.select(["preference.argmax-rises"])
    row = scoreboard.row(one, {rung: run_cell(verdict, SURE) for rung, verdict in verdicts.items()})
    assert {rung: cell["expect"] for rung, cell in row["cells"].items()} == {
        rung: {"contexts": "holds", "published": "open"}[rung] for rung in verdicts
    }
    assert row["expect"] == expect
    assert scoreboard.surprises(row) == surprises
    counted = f"{int(not surprises and row['verdict'] == expect)} as expected"
    assert counted in str(scoreboard.table([row]).title)


def test_the_board_fails_where_any_cell_surprises(monkeypatch, capsys):
    from toyld.cli import claims as command

    for cell, code in (("refuted", 1), ("undecided", 0)):
        for rung in ("contexts", "tiny", "llm"):
            verdict = "undecided" if rung == "llm" else "holds"
            monkeypatch.setitem(scoreboard.SERVES, rung, lambda *_, rung=rung, v=verdict: result(rung, v))
        monkeypatch.setitem(scoreboard.SERVES, "published", lambda *_, verdict=cell: result("published", verdict))
        monkeypatch.setattr(claims, "evaluate", lambda *_, rung, verdict=cell, **__: result(rung, verdict))
        assert command(("preference.argmax-rises",)) == code
        err = capsys.readouterr().err
        assert ("preference.argmax-rises: expected 'open', got 'refuted'" in err) == (code == 1)


def result(rung, verdict):
    (one,) = claims.select(["preference.argmax-rises"])
    effect = claims.Effect(1.0, 0.5, 1.5, 9, 0.01)
    return claims.RunResult(one, (claims.runs.Trial(("r",), effect, verdict=verdict),), rung=rung)


def test_run_claims_on_the_board_are_plain_json_and_do_not_depend_on_what_is_asked_for():
    every = list(scoreboard.score(claims.every().values(), rung="published"))
    assert len(every) >= 20
    assert json.loads(json.dumps(every, allow_nan=False)) == every
    assert {r["id"].split(".")[0] for r in every} == {"supervised", "preference"}
    assert [r["id"] for r in every if r["verdict"] != r["expect"] or scoreboard.surprises(r)] == []
    (alone,) = scoreboard.score(claims.select(["preference.chosen-falls"]), rung="published")
    assert alone in every
    for r in every:
        cell = r["cells"]["published"]
        assert set(cell) >= {"verdict", "effect", "low", "high", "n", "runs", "recorded"}
        assert cell["recorded"] is None or set(cell["recorded"]) == {"date", "hardware", "command", "commit"}
    assert "supervised.chosen-rises" in str(scoreboard.table(every).columns[0]._cells)


SHARED = [  # a test, and what goes to the same worker with it
    ("tests/claims/test_claims.py::test_on_runs[displacement.common-amplifies]", "contexts"),
    ("tests/claims/test_claims.py::test_on_runs[preference.argmax-rises]", "tiny"),
    ("theory/test_book.py::test_chapter[11_real_runs]", "tiny"),
    ("tests/claims/test_claims.py::test_a[sft.mirror]", "tests/claims/test_claims.py::test_a[sft.mirror]"),
    ("theory/test_book.py::test_chapter[01_one_step]", "theory/test_book.py::test_chapter[01_one_step]"),
    ("tests/test_house.py::test_a[toyld/cli.py]", "tests/test_house.py"),
    ("tests/test_house.py::test_b", "tests/test_house.py"),
    ("tests/test_figures.py::test_a[rare_label]", "tests/test_figures.py[rare_label]"),
    ("tests/test_figures.py::test_b", "tests/test_figures.py"),
]


@pytest.mark.parametrize(("nodeid", "want"), SHARED)
def test_what_a_rung_computes_once_goes_to_one_worker(request, nodeid, want):
    (conftest,) = (p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "pytest_xdist_make_scheduler")
                   and hasattr(p, "shared"))  # fmt: skip
    assert conftest.shared(nodeid) == want


@pytest.mark.parametrize("width", [80, 160])
def test_a_narrow_terminal_cuts_no_id(width):
    from rich.console import Console

    cells = {rung: run_cell("holds", SURE) for rung in ("contexts", "digits", "published")}
    id = "stability.an-id-as-long-as-the-longest-of-them-all"
    row = {"id": id, "kind": "trend", "verdict": "holds", "expect": "holds"}
    row["cells"] = {rung: cell | {"expect": "holds"} for rung, cell in cells.items()}
    console = Console(width=width)
    with console.capture() as shown:
        console.print(scoreboard.table([row]))
    assert id in shown.get()
