"""The rung `llm`: what was recorded of runs of real language models (`toyld.claims.from_runs`), read from the package.

Nothing is computed here: a claim of which nothing was recorded reads *not run*.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files

from toyld.claims.base import Claim
from toyld.claims.from_runs import RUNG
from toyld.claims.recording import Recording, parse
from toyld.claims.rungs import mine
from toyld.claims.runs import RunClaim, RunResult, Trial

__all__ = ["current", "evidence", "expectations", "line", "outcomes"]


@functools.cache
def evidence() -> dict[str, Recording]:
    """The recordings of this rung that come with the package, by name.

    Raises:
        BadInput: a file is damaged.
    """
    folder = files("toyld").joinpath("evidence")
    paths = sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ()
    return {
        path.name.removeprefix(f"{RUNG}-").removesuffix(".json"): parse(path.read_bytes(), name=path.name)
        for path in paths
        if path.name.startswith(f"{RUNG}-") and path.name.endswith(".json")
    }


def _source(recordings: list[Recording]) -> dict[str, str] | None:
    """Where the numbers of some recordings come from; of several the last date, and each of the rest once."""
    if not recordings:
        return None
    each = [one.source for one in recordings]
    joined = {key: "; ".join(dict.fromkeys(one[key] for one in each)) for key in ("hardware", "command", "commit")}
    return {"date": max(one["date"] for one in each), **joined}


def outcomes(found: Mapping[str, Recording] | None = None, /) -> dict[str, RunResult]:
    """Every run claim of the rung, with the trials of all recordings (those of the package by default)."""
    found = evidence() if found is None else found
    out = {}
    for id, one in mine(RUNG).items():
        mine_ = [each for each in found.values() if id in each.trials]
        trials: list[Trial] = [trial for each in mine_ for trial in each.trials[id]]
        out[id] = RunResult(one, tuple(trials), _source(mine_), RUNG)
    return out


def current(claim: Claim, /) -> RunResult:
    """What this rung says of one run claim."""
    return outcomes()[claim.id]


def line(claim: Claim, /) -> list[str]:
    """Where that comes from, in one line of words; [] without a recording."""
    source = current(claim).recorded
    if source is None:
        return ["nothing recorded of a real language model"]
    return [f"recorded {source['date'][:10]} at commit {source['commit']}: {source['command']}"]


def expectations(found: Mapping[str, Recording] | None = None, /) -> str:
    """What the recordings say of each claim, in the words of `elsewhere`, and whether that is what is expected.

    python -c "from toyld.claims import real_runs; print(real_runs.expectations())"
    """
    out = []
    for id, result in outcomes(found).items():
        if not result.trials:
            continue
        one, mark = result.claim, "" if result.as_expected else f"  <- expected {result.claim.expected(RUNG)}"
        out.append(f"{id}: {result.verdict}{mark}")
        out += [f"    {told}" for told in result.lines()]
        words = "; ".join(_said(trial) for trial in result.trials if trial.effect is not None) or result.why
        out.append(f'    "{RUNG}": ("{result.verdict}", "{words}"),')
        if (verdict := _first(one, result.verdict)) != one.expect:
            out.append(f"    expect={verdict!r}: this is the lowest rung with a verdict; its why goes to `why`")
    return "\n".join(out) or "nothing recorded"


def _first(one: RunClaim, here: str) -> str:
    """The verdict of the lowest rung with one, if it is this at this rung."""
    each = [here if rung == RUNG else one.expected(rung) for rung in one.rungs]
    return next((verdict for verdict in each if verdict != "open"), "open")


def _said(trial: Trial) -> str:
    e = trial.effect
    assert e is not None
    span = f" [{e.low:.2g}, {e.high:.2g}]" if trial.tested else " (no interval)"
    return f"{e.value:+.2g}{span} in {' against '.join(trial.runs) if len(trial.runs) < 3 else 'all runs'}"
