"""Claims × rungs: which world serves which rung, what came out, and how well it was tested.

`SERVES` is the only table from rung to world; a world is imported when its rung is asked for. A claim on a rung that
nothing serves yet reads *not run*. All run claims of a rung are one family of tests (`toyld.claims.runs.decide`), so a
cell does not depend on which claims were asked for. A run claim may be expected to come out differently from rung to
rung; the board is as expected where every cell that was computed is. A cell of a rung with experiments (`contexts`,
`digits`, `tiny`) is computed now, in small worlds, and carries what was recorded of larger ones (`paper`), which
decides nothing. A cell of the rung `llm` is what was recorded of runs of real language models: none is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toyld.claims import rungs

if TYPE_CHECKING:
    from rich.table import Table

    from toyld.claims import Claim, Result, RunResult
    from toyld.trajectory.experiments import Experiments

__all__ = [
    "RUNGS",
    "SCHEMA",
    "SERVES",
    "cell",
    "record",
    "record_contexts",
    "record_experiments",
    "record_llm",
    "row",
    "score",
    "surprises",
    "table",
    "words",
]

SCHEMA = 1
RUNGS = ("softmax", "contexts", "digits", "tiny", "llm", "published")
NOT_RUN = {"verdict": "not run", "cases": 0, "recorded": None}


def _digits() -> Experiments:
    from toyld.digits.experiments import EXPERIMENTS

    return EXPERIMENTS


def _tiny() -> Experiments:
    from toyld.tiny.experiments import EXPERIMENTS

    return EXPERIMENTS


rungs.serve("digits", _digits)  # claims import no network
rungs.serve("tiny", _tiny)


def _evaluate(rung: str, claim: Claim, examples: int, seed: int) -> Result | RunResult:
    from toyld.claims import evaluate

    return evaluate(claim, examples=examples, seed=seed, rung=rung)


# rung -> (claim, examples, seed) -> Result, or RunResult (runs have seeds of their own, logs and recordings draw
# nothing: examples and seed do not count there)
SERVES: dict[str, Callable[[Any, int, int], Any]] = {rung: functools.partial(_evaluate, rung) for rung in RUNGS}


def _number(x: float | None) -> float | None:
    return None if x is None or x != x or abs(x) == float("inf") else x


def _run_cell(result: RunResult) -> dict[str, Any]:
    """Verdict over the runs, the effect that speaks least for it, every run's own, and where the numbers come from."""
    e = result.effect
    runs = [
        {
            "runs": list(t.runs),
            "verdict": t.verdict,
            "effect": _number(t.effect.value),
            **{name: _number(getattr(t.effect, name)) for name in ("low", "high", "n", "p")},
            "why": t.why,
            "recorded": t.recorded,
        }
        for t in result.trials
        if t.effect is not None
    ]
    return {
        "verdict": result.summary,
        "effect": None if e is None else _number(e.value),
        **{name: None if e is None else _number(getattr(e, name)) for name in ("low", "high", "n")},
        "unit": result.claim.unit,
        "runs": runs,
        "why": result.why or None,
        "recorded": None if result.recorded is None else dict(result.recorded),
        **(_paper(result.claim, result.rung) if result.rung in rungs.served() else {}),
    }


def _paper(claim: Claim, rung: str) -> dict[str, Any]:
    """What was recorded of a claim at paper size; nothing where nothing was."""
    from toyld.claims import recorded

    found = recorded.paper(claim, rung)
    if found is None or found.recorded is None:
        return {}
    e = found.effect
    span = {name: None if e is None else _number(getattr(e, name)) for name in ("value", "low", "high", "n")}
    told = {"verdict": found.summary, "effect": span.pop("value"), **span, "recorded": dict(found.recorded)}
    return {"paper": told}


def cell(result: Result | RunResult, /) -> dict[str, Any]:
    """One cell of the board from a claim's result, as plain JSON values."""
    from toyld.claims import RunResult

    if isinstance(result, RunResult):
        return _run_cell(result)
    # A margin worse than any float (a NaN, a proved violation at rounding zero) has no JSON number.
    worst = result.worst if abs(result.worst) < float("inf") else None
    return {
        "verdict": result.verdict,
        "cases": result.cases,
        "worst_margin_in_bounds": worst,
        "why": result.why or None,
        "recorded": None,
    }


def _own(cells: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The rung that speaks for a claim, and its verdict in the words of `expect`.

    A step claim: its lowest rung. A run claim: the lowest rung with a verdict; where none has one, the lowest that was
    tried, with *open* (undecided and not applicable are both open), else *not run*.
    """
    order = sorted(cells, key=RUNGS.index)
    if not any("runs" in cell for cell in cells.values()):
        return order[0], cells[order[0]]["verdict"]
    for rung in order:
        if cells[rung]["verdict"] in ("holds", "refuted", "conditional"):
            return rung, cells[rung]["verdict"]
    tried = [rung for rung in order if cells[rung]["verdict"] != "not run"]
    return (tried[0], "open") if tried else (order[0], "not run")


def surprises(row: dict[str, Any], /) -> list[tuple[str, str]]:
    """(rung, verdict in the words of `expect`) of every cell that was computed and is not as expected.

    >>> found = {"verdict": "undecided", "runs": [], "expect": "holds"}
    >>> surprises({"cells": {"contexts": found, "llm": NOT_RUN | {"expect": "open"}}})
    [('contexts', 'open')]
    """
    found = []
    for rung, one in row["cells"].items():
        got = "open" if "runs" in one and one["verdict"] in ("undecided", "not applicable") else one["verdict"]
        if got not in (one["expect"], "not run"):
            found.append((rung, got))
    return found


def row(claim: Claim, cells: dict[str, dict[str, Any]], /) -> dict[str, Any]:
    """One claim with its cells; its own verdict and cases are those of its lowest rung (that gives a verdict).

    `expect` of the row is about that verdict, `expect` of a cell about that cell.
    """
    from toyld.claims import RunClaim

    speaks, verdict = _own(cells)
    wanted = {at: claim.expected(at) if isinstance(claim, RunClaim) else claim.expect for at in cells}
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "kind": claim.kind,
        "expect": wanted[speaks],
        "verdict": verdict,
        "cases": cells[speaks].get("cases"),
        "instead": claim.instead,
        "cells": {at: {**one, "expect": wanted[at]} for at, one in cells.items()},
    }


def score(
    claims: Iterable[Claim], /, *, rung: str | None = None, examples: int = 2000, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """One row after the other, as they are computed; with `rung`, only claims that live there.

    A claim whose check breaks down reads *undecided* with the error as its reason; the others are still tried.

    Raises:
        BadInput: an unknown rung, or no claim that lives there.
    """
    from toyld.checked import BadInput
    from toyld.claims import RunClaim, real_runs, recorded

    if rung is not None and rung not in RUNGS:
        msg = f"expected a rung out of {', '.join(RUNGS)}, got {rung!r}"
        raise BadInput(msg)
    chosen = [c for c in claims if rung is None or rung in c.rungs]
    for at in (*rungs.served(), "llm"):
        if rung in (None, at) and any(isinstance(c, RunClaim) and at in c.rungs for c in chosen):
            # A damaged file is bad input, not a broken check.
            real_runs.evidence() if at == "llm" else recorded.packaged(at)
    if not chosen:
        msg = f"expected claims at rung {rung!r}, got none of those chosen; leave --rung out to see where they live"
        raise BadInput(msg)

    def rows() -> Iterator[dict[str, Any]]:
        for claim in chosen:
            cells = {}
            for at in claim.rungs if rung is None else [rung]:
                try:
                    cells[at] = cell(SERVES[at](claim, examples, seed)) if at in SERVES else NOT_RUN
                except Exception as broken:  # one broken check must not hide the rest of the board
                    why = f"the check raised {type(broken).__name__}: {broken}"
                    cells[at] = {"verdict": "undecided", "cases": 0, "why": why, "recorded": None}
            yield row(claim, cells)

    return rows()


def words(kind: str, cell: dict[str, Any], /) -> str:
    """A cell in words: *proved (n cases survived)* for theorems and identities, else verdict and cases or effect."""
    verdict = cell["verdict"]
    if verdict == "not run":
        return verdict
    if "runs" in cell:
        other = cell.get("paper", cell)["verdict"]
        return _run_words(cell) + (f" (paper size: {other})" if other != verdict else "")
    cases = f"{cell['cases']:,}"
    if verdict == "holds" and kind in ("theorem", "identity"):
        return f"proved ({cases} cases survived)"
    if verdict == "refuted":
        return f"refuted ({cases} cases, certified counterexample)" if not cell.get("why") else "refuted (!)"
    return f"{verdict} ({cases} cases survived)" if verdict in ("holds", "open") else f"{verdict}: {cell.get('why')}"


def _run_words(cell: dict[str, Any]) -> str:
    """Verdict, effect of the weakest run with its interval and units, and how many runs; nothing on other models."""
    verdict, tested = cell["verdict"], [run for run in cell["runs"] if run["p"] is not None]
    old = ", recorded" if cell["recorded"] is not None else ""
    if verdict in ("holds", "refuted"):
        span = f"{cell['effect']:+.3g} [{cell['low']:+.3g}, {cell['high']:+.3g}] {cell['unit']}"
        many = f"{len(tested)} run{'s' * (len(tested) > 1)}"
        return f"{verdict} ({span}, n = {cell['n']}, {many}{old})"
    if not tested:
        only = "means only" if all(run["n"] < 2 for run in cell["runs"]) else "no interval"
        return verdict + (f" ({only}{old})" if cell["runs"] else "")
    counts = ", ".join(
        f"{sum(run['verdict'] == v for run in tested)} {v}"
        for v in ("holds", "refuted", "undecided")
        if any(run["verdict"] == v for run in tested)
    )
    return f"{verdict} ({counts}{old})"


def record(path: str | Path, /) -> None:
    """Write the effects of the released logs under $TOYLD_DATA as the evidence that comes with the package.

    Raises:
        BadInput: a released log is not there, or tracked files differ from their commit.
    """
    from toyld.claims import published

    published.record(path)


def record_experiments(rung: str, folder: str | Path, /, *, only: Iterable[str] = ()) -> None:
    """Write the run claims' evidence at paper size, `RUNG-EXPERIMENT.json` for each experiment (all by default).

    Raises:
        BadInput: a rung without experiments, not a folder, an unknown experiment, or tracked files that differ from
            their commit.
    """
    from toyld.claims import recorded

    recorded.record(rung, folder, only=only)


def record_contexts(folder: str | Path, /, *, only: Iterable[str] = ()) -> None:
    """The same for the rung `contexts`."""
    record_experiments("contexts", folder, only=only)


def record_llm(
    folders: Iterable[str | Path],
    out: str | Path,
    /,
    *,
    hardware: str | None = None,
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Write the run claims' evidence from run folders of `toyld run llm`, `llm-NAME.json` for each, into a folder.

    `hardware`, `seconds` (by folder name): of the runs, where this machine and the files' times do not tell. Recordings
    that lie in `out` stay, and all are one family.

    Raises:
        BadInput: not a finished run of `toyld run llm`, not a folder, or tracked files that differ from their commit.
    """
    from toyld.claims import from_runs

    from_runs.record(folders, out, hardware=hardware, seconds=seconds)


def table(rows: Iterable[dict[str, Any]], /) -> Table:
    """The board for a terminal: one line a claim, unexpected verdicts in red; what nothing was tried on has none."""
    from rich.markup import escape
    from rich.table import Table

    rows = list(rows)
    rungs = [r for r in RUNGS if any(r in one["cells"] for one in rows)]
    good = sum(one["verdict"] == one["expect"] and not surprises(one) for one in rows)
    verdicts = ("holds", "conditional", "refuted", "open", "undecided", "not run")
    counts = {v: sum(one["verdict"] == v for one in rows) for v in verdicts}
    out = Table(
        title=f"{len(rows)} claims, {good} as expected: "
        + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    longest = max((len(one["id"]) for one in rows), default=None)
    out.add_column("claim", no_wrap=True, min_width=longest)  # an id is what the next command needs: never cut
    out.add_column("kind", no_wrap=True)
    for r in rungs:
        out.add_column(r, no_wrap=True)
    for one in rows:
        good = one["verdict"] in (one["expect"], "not run") and not surprises(one)
        style = None if good else "bold red"
        cells = [words(one["kind"], one["cells"][r]) if r in one["cells"] else "" for r in rungs]
        out.add_row(escape(one["id"]), one["kind"], *map(escape, cells), style=style)
    return out
