"""Claims × rungs: which world serves which rung, what came out, and how well it was tested.

`SERVES` is the only table from rung to world; a world is imported when its rung is asked for. A claim on a rung that
nothing serves yet reads *not run*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from toyld.claims import Claim, Result

__all__ = ["RUNGS", "SCHEMA", "SERVES", "cell", "row", "score", "table", "words"]

SCHEMA = 1
RUNGS = ("softmax", "contexts", "digits", "tiny", "llm", "published")
NOT_RUN = {"verdict": "not run", "cases": 0, "recorded": None}


def _softmax(claim: Claim, examples: int, seed: int) -> Result:
    from toyld.claims import evaluate

    return evaluate(claim, examples=examples, seed=seed)


# rung -> (claim, examples, seed) -> Result
SERVES: dict[str, Callable[[Any, int, int], Any]] = {"softmax": _softmax}


def cell(result: Result, /) -> dict[str, Any]:
    """One cell of the board from a step claim's result, as plain JSON values."""
    # A margin worse than any float (a NaN, a proved violation at rounding zero) has no JSON number.
    worst = result.worst if abs(result.worst) < float("inf") else None
    return {
        "verdict": result.verdict,
        "cases": result.cases,
        "worst_margin_in_bounds": worst,
        "why": result.why or None,
        "recorded": None,
    }


def row(claim: Claim, cells: dict[str, dict[str, Any]], /) -> dict[str, Any]:
    """One claim with its cells; its own verdict and cases are those of its lowest rung."""
    lowest = cells[min(cells, key=RUNGS.index)]
    return {
        "id": claim.id,
        "statement": claim.statement,
        "source": claim.source,
        "kind": claim.kind,
        "expect": claim.expect,
        "verdict": lowest["verdict"],
        "cases": lowest["cases"],
        "instead": claim.instead,
        "cells": cells,
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

    if rung is not None and rung not in RUNGS:
        msg = f"expected a rung out of {', '.join(RUNGS)}, got {rung!r}"
        raise BadInput(msg)
    chosen = [c for c in claims if rung is None or rung in c.rungs]
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
    """A cell in words: *proved (n cases survived)* for theorems and identities, else verdict and cases."""
    verdict, cases = cell["verdict"], f"{cell['cases']:,}"
    if verdict == "not run":
        return verdict
    if verdict == "holds" and kind in ("theorem", "identity"):
        return f"proved ({cases} cases survived)"
    if verdict == "refuted":
        return f"refuted ({cases} cases, certified counterexample)" if not cell.get("why") else "refuted (!)"
    return f"{verdict} ({cases} cases survived)" if verdict in ("holds", "open") else f"{verdict}: {cell.get('why')}"


def table(rows: Iterable[dict[str, Any]], /) -> Table:
    """The board for a terminal: one line a claim, unexpected verdicts in red."""
    from rich.markup import escape
    from rich.table import Table

    rows = list(rows)
    rungs = [r for r in RUNGS if any(r in one["cells"] for one in rows)]
    good = sum(one["verdict"] == one["expect"] for one in rows)
    counts = {v: sum(one["verdict"] == v for one in rows) for v in ("holds", "refuted", "open", "undecided", "not run")}
    out = Table(
        title=f"{len(rows)} claims, {good} as expected: "
        + ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    out.add_column("claim", no_wrap=True)
    out.add_column("kind", no_wrap=True)
    for r in rungs:
        out.add_column(r, no_wrap=True)
    for one in rows:
        style = None if one["verdict"] == one["expect"] else "bold red"
        cells = [words(one["kind"], one["cells"][r]) if r in one["cells"] else "" for r in rungs]
        out.add_row(escape(one["id"]), one["kind"], *map(escape, cells), style=style)
    return out
