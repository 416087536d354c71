"""What was recorded of a claim on more or larger runs than a chapter makes: effects and verdicts from the evidence."""

from __future__ import annotations

from collections.abc import Mapping

from toyld.checked import BadInput
from toyld.claims import Effect, RunResult
from toyld.claims.runs import Trial

__all__ = ["recorded", "verdict"]


def _results(rung: str) -> Mapping[str, RunResult]:
    """By claim, from what comes with the package alone, whatever data are at hand."""
    from toyld.claims import published, real_runs
    from toyld.claims import recorded as experiments

    if rung == "published":
        return published.outcomes(None)
    return real_runs.outcomes() if rung == "llm" else experiments.packaged(rung)


def _trial(id: str, words: tuple[str, ...], rung: str) -> Trial:
    """The one trial of a claim in the names of whose runs all the words stand."""
    result = _result(id, rung)
    named = {" against ".join(trial.runs): trial for trial in result.trials if trial.effect is not None}
    mine = [trial for name, trial in named.items() if all(word in name for word in words)]
    if len(mine) != 1:
        msg = f"{id}: expected words that stand in the names of one of its trials, got {list(words)}, which stand in "
        raise BadInput(msg + f"{len(mine)}; it has {'; '.join(name[:100] for name in named)}")
    return mine[0]


def _result(id: str, rung: str) -> RunResult:
    found = _results(rung).get(id)
    if found is None or found.effect is None:
        msg = f"{id}: expected a claim with a recorded effect at rung {rung!r}, got none; `toyld claims {id}` says more"
        raise BadInput(msg)
    return found


def recorded(id: str, /, *words: str, rung: str) -> Effect:
    """The effect that was recorded of a run claim: value, low and high (95 %), n, p, parts, in the claim's unit.

    words: what stands in the names of the one run that is meant ("rmsprop", "after 30"; a run and its control are
    joined by " against "); without any the effect that speaks for the claim, which the scoreboard prints. rung:
    "contexts", "digits", "tiny" (at paper size all three), "llm" or "published". Nothing is computed, no data needed.

    >>> effect = recorded("preference.margin-grows", "rmsprop", "after 30", rung="tiny")
    >>> effect.value > 0, effect.n
    (True, 32)
    >>> recorded("preference.margin-grows", "adam", rung="tiny")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: preference.margin-grows: expected words that stand in the names of one of its trials, ...

    Raises:
        BadInput: nothing recorded, or words that fit none or several of its runs.
    """
    effect = _trial(id, words, rung).effect if words else _result(id, rung).effect
    assert effect is not None
    return effect


def verdict(id: str, /, *words: str, rung: str) -> str:
    """The verdict that was recorded: of one run, or without words of the claim (`holds`, `conditional`, …).

    >>> verdict("preference.chosen-falls", rung="tiny"), verdict("preference.chosen-falls", "sgd", "30", rung="tiny")
    ('undecided', 'holds')

    Raises:
        BadInput: nothing recorded, or words that fit none or several of its runs.
    """
    return _trial(id, words, rung).verdict if words else _result(id, rung).summary
