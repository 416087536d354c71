"""The rung `contexts`: run claims tried on whole fine-tuning runs in closed form, computed when first asked for.

The tables are those of `toyld.contexts.experiments`, the seeds of record 0 to 31 as units. All trials of all run claims
of this rung are one family, so a cell does not depend on which claims were asked for. What larger worlds gave, by the
same claims and seeds, is recorded (`toyld.claims.recorded`).
"""

from __future__ import annotations

import functools

from toyld.claims.base import Claim
from toyld.claims.runs import RunClaim, RunResult, Trial, decide, try_on
from toyld.contexts import experiments

__all__ = ["RUNG", "current", "mine", "outcomes"]

RUNG = "contexts"


def mine() -> dict[str, RunClaim]:
    """The run claims that live on this rung, by id."""
    from toyld.claims import every

    return {id: one for id, one in every().items() if isinstance(one, RunClaim) and RUNG in one.rungs}


@functools.cache
def _family() -> tuple[dict[str, RunResult], dict[str, Exception]]:
    """(results, checks that broke down): one broken check must not take the rest of the rung with it."""
    runs, claims = experiments.tables(), mine()
    family: dict[str, list[Trial]] = {}
    broken: dict[str, Exception] = {}
    for id, one in claims.items():
        try:
            family[id] = try_on(one, runs)
        except Exception as error:
            broken[id] = error
    return {id: RunResult(claims[id], tuple(ts), rung=RUNG) for id, ts in decide(family).items()}, broken


def outcomes() -> dict[str, RunResult]:
    """Every run claim of this rung tried as one family."""
    return _family()[0]


def current(claim: Claim, /) -> RunResult:
    """What this rung says of one run claim; raises what its check raised."""
    found, broken = _family()
    if claim.id in broken:
        raise broken[claim.id]
    return found[claim.id]
