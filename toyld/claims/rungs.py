"""Rungs with experiments: run claims tried on whole runs of a world, computed when first asked for.

The tables are those of the experiments of the rung (`toyld.trajectory.experiments`) at smoke size, the seeds of record
as units. All trials of all run claims of a rung are one family, so a cell does not depend on which claims were asked
for. What larger worlds gave, by the same claims, is recorded (`toyld.claims.recorded`).

Claims import no world that stands above them: `serve` hands its experiments over, and `toyld.scoreboard` does so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from toyld.checked import BadInput
from toyld.claims.base import Claim
from toyld.claims.runs import RunClaim, RunResult, Trial, decide, try_on
from toyld.contexts import experiments as contexts
from toyld.trajectory.experiments import Experiments

__all__ = ["current", "experiments", "mine", "outcomes", "serve", "served"]

# rung -> where its experiments come from, imported when they are asked for
_SERVED: dict[str, Callable[[], Experiments]] = {"contexts": lambda: contexts.EXPERIMENTS}


def serve(rung: str, load: Callable[[], Experiments], /) -> None:
    """Hand over the experiments of a rung; `load` is called when they are first needed."""
    _SERVED[rung] = load


def served() -> tuple[str, ...]:
    """The rungs whose experiments were handed over.

    >>> "contexts" in served()
    True
    """
    return tuple(_SERVED)


def experiments(rung: str, /) -> Experiments:
    """The experiments of a rung.

    Raises:
        BadInput: nobody handed them over.

    >>> experiments("softmax")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: rung 'softmax': expected one with experiments, got ...; import toyld.scoreboard for all
    """
    if rung not in _SERVED:
        msg = f"rung {rung!r}: expected one with experiments, got {', '.join(_SERVED)} so far; "
        raise BadInput(msg + "import toyld.scoreboard for all")
    return _SERVED[rung]()


def mine(rung: str, /) -> dict[str, RunClaim]:
    """The run claims that live on a rung, by id."""
    from toyld.claims import every

    return {id: one for id, one in every().items() if isinstance(one, RunClaim) and rung in one.rungs}


@functools.cache
def _family(rung: str) -> tuple[dict[str, RunResult], dict[str, Exception]]:
    """(results, checks that broke down): one broken check or experiment must not take the rest of the rung with it.

    A broken experiment breaks the claims about it, and those that speak of every experiment.
    """
    (runs, failed), claims = experiments(rung).tried(), mine(rung)
    family: dict[str, list[Trial]] = {}
    broken: dict[str, Exception] = {}
    for id, one in claims.items():
        try:
            for name, error in failed.items():
                if one.experiment in (None, name):
                    raise error
            family[id] = try_on(one, runs)
        except Exception as error:
            broken[id] = error
    return {id: RunResult(claims[id], tuple(ts), rung=rung) for id, ts in decide(family).items()}, broken


def outcomes(rung: str, /) -> dict[str, RunResult]:
    """Every run claim of a rung tried as one family."""
    return _family(rung)[0]


def current(claim: Claim, rung: str, /) -> RunResult:
    """What a rung says of one run claim; raises what its check or its experiment raised."""
    found, broken = _family(rung)
    if claim.id in broken:
        raise broken[claim.id]
    return found[claim.id]
