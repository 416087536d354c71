"""Recorded trials of run claims with the numbers of every unit: a file that says how it was made and can be checked.

The numbers of the units (`toyld.claims.numbers`) are rounded, and effects, intervals and p-values are those of the
rounded numbers: what a file says follows from the file, and `check` computes it once more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from toyld.checked import BadInput
from toyld.claims import numbers
from toyld.claims.effects import Effect, untested
from toyld.claims.runs import RunResult, Trial, Verdict, decide, summary

__all__ = ["SCHEMA", "Recording", "check", "families", "parse", "speaks", "whole"]

SCHEMA = 1
NUMBERS = ("value", "low", "high", "n", "p", "p_below")


@dataclass(frozen=True)
class Recording:
    """What one file says: how it was made, and the trials of each claim with their verdicts."""

    about: Mapping[str, Any]
    trials: Mapping[str, tuple[Trial, ...]]

    @property
    def source(self) -> dict[str, str]:
        """Where the numbers come from: date, hardware, command, commit."""
        return {name: self.about[name] for name in ("date", "hardware", "command", "commit")}

    def payload(self) -> bytes:
        """The file: JSON, one trial a line."""
        results = {id: self._claim(id) for id in self.trials}
        return (_text({**self.about, "results": results}) + "\n").encode()

    def _claim(self, id: str) -> dict[str, Any]:
        trials = self.trials[id]
        at = speaks(trials)
        effect = None if at is None else trials[at].effect
        told = {"verdict": summary(trials), **_numbers(effect, ("value", "low", "high", "n"))}
        if effect is None:
            return {**told, "why": trials[0].why, "trials": []}
        return {**told, "trials": [self._trial(trial) for trial in trials]}

    def _trial(self, trial: Trial) -> dict[str, Any]:
        assert trial.effect is not None
        every = list(trial.runs) == list(self.about["tables"])
        return {
            "runs": "all" if every else list(trial.runs),
            **_numbers(trial.effect, NUMBERS),
            "verdict": trial.verdict,
            "rank": trial.effect.rank,
            **numbers.plain(trial.effect),
        }


def _numbers(effect: Effect | None, wanted: Iterable[str]) -> dict[str, Any]:
    found = {name: None if effect is None else getattr(effect, name) for name in wanted}
    return {"effect" if k == "value" else k: None if x is None or x != x else x for k, x in found.items()}


def speaks(trials: Sequence[Trial]) -> int | None:
    """The place of the trial whose effect speaks for the claim; None without any."""
    effect = RunResult(None, tuple(trials)).effect  # type: ignore[arg-type]
    return next((i for i, trial in enumerate(trials) if effect is not None and trial.effect is effect), None)


def _text(value: Any, level: int = 0) -> str:
    """JSON with a line for each entry down to the trials."""
    items: list[str] = []
    if level < 4 and isinstance(value, dict):
        items = [f"{json.dumps(k)}: {_text(v, level + 1)}" for k, v in value.items()]
    elif level < 4 and isinstance(value, list) and value and isinstance(value[0], dict):
        items = [_text(v, level + 1) for v in value]
    if not items:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    inner = ",\n".join(" " * (level + 1) + item for item in items)
    return ("{{\n{}\n{}}}" if isinstance(value, dict) else "[\n{}\n{}]").format(inner, " " * level)


def parse(payload: bytes, /, *, name: str = "a recording") -> Recording:
    """What a file says, checked to be whole; `name`: of the file, for the message.

    Raises:
        BadInput: one line: not a recording of this schema, entries that are missing or of a wrong kind, a verdict that
            does not follow from those of the trials.

    >>> parse(b"{}", name="contexts-stages.json")
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: contexts-stages.json: expected a recording of schema 1, got no schema; record it again
    """
    try:
        read = json.loads(payload)
        if read.get("schema") != SCHEMA:
            raise ValueError(f"schema {read['schema']}" if "schema" in read else "no schema")
        about = {key: value for key, value in read.items() if key != "results"}
        for key in ("date", "hardware", "command", "commit", "family", "experiment", "size"):
            if not isinstance(about[key], str):
                raise TypeError(f"{key} {about[key]!r}")
        if strange := [f"data {k}: {v!r}" for k, v in about.get("data", {}).items() if not isinstance(v, str)]:
            raise TypeError(strange[0])
        trials = {id: tuple(_parsed(entry, about)) for id, entry in read["results"].items()}
        if list(trials) != about["claims"]:
            raise ValueError("other claims than it names")
        found = Recording(about, trials)
        for id, entry in read["results"].items():
            if found._claim(id) != entry:
                raise ValueError(f"numbers of {id} that its trials do not have")
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        got = "broken JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
        got = f"no {got}" if isinstance(error, KeyError) else got
        msg = f"{name}: expected a recording of schema {SCHEMA}, got {' '.join(got.split())[:200]}; record it again"
        raise BadInput(msg) from None
    return found


def _parsed(entry: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[Trial]:
    if not entry["trials"]:
        yield Trial((), None, entry["why"], "not applicable", recorded=True)
    for one in entry["trials"]:
        runs = tuple(about["tables"] if one["runs"] == "all" else one["runs"])
        if not set(runs) <= set(about["tables"]):
            raise ValueError(f"runs that it does not name: {', '.join(sorted(set(runs) - set(about['tables'])))}")
        # A dear design may have fewer than all seeds, the first of them, but no fewer than it says.
        units = {"seeds": len(about["seeds"]), "examples": about.get("examples", 0)}
        parts = numbers.read(one, one["rank"], least=one["n"], **units)
        if one["verdict"] not in get_args(Verdict):
            raise ValueError(f"verdict {one['verdict']}")
        if parts is not None and one["rank"] is not None and not 0 <= one["rank"] <= len(parts):
            raise ValueError(f"rank {one['rank']} of {len(parts)}")
        told = {name: one["effect" if name == "value" else name] for name in NUMBERS}
        told = {name: math.nan if x is None else x for name, x in told.items()}
        if not all(isinstance(x, float | int) for x in told.values()):
            raise TypeError(f"{told}")
        effect = Effect(**told, parts=parts, rank=one["rank"])
        yield Trial(runs, effect, untested(effect), one["verdict"], recorded=True)


def check(found: Mapping[str, Recording], names: Collection[str] | None, /) -> list[str]:
    """What does not follow from the numbers by unit, or from the p-values of the family, a line each; [] if all does.

    `found`: recordings of one rung by experiment; those that are one family with others must come with them.
    `names`: all experiments of the rung, None = whatever was recorded is one family.
    """
    out, kind = [], "rung" if whole(found, names) else "experiment"
    for name, one in found.items():
        told = {key: one.about[key] for key in ("experiment", "family")}
        if told != {"experiment": name, "family": kind}:
            out.append(f"{name}: expected its trials in the family of its {kind}, got {told}")
    for family in families(found, names):
        for name, id, trials in family:
            at = speaks(trials)
            if at is not None and trials[at].effect.parts is None:  # type: ignore[union-attr]
                out.append(f"{name}, {id}: no numbers by unit of the trial that speaks for it")
            for trial in trials:
                if trial.effect is not None and trial.effect.parts is not None:
                    out += [f"{name}, {id}, {' against '.join(trial.runs)[:80]}: {x}" for x in _differs(trial.effect)]
        decided = decide({f"{name}: {id}": trials for name, id, trials in family})
        for name, id, trials in family:
            if [t.verdict for t in trials] != [t.verdict for t in decided[f"{name}: {id}"]]:
                out.append(f"{name}, {id}: verdicts that do not follow from the p-values of its family")
    return out


def _differs(effect: Effect) -> Iterator[str]:
    """What the numbers by unit give otherwise than was recorded, beyond its rounding and that of the arithmetic."""
    again, most = numbers.again(effect), numbers.largest(effect)
    for name in NUMBERS:
        told, got = getattr(effect, name), again.below if name == "p_below" else getattr(again, name)
        noise = 1e-12 * most if name in ("value", "low", "high") else 0.0
        near = math.isclose(told, got, rel_tol=10.0 ** (1 - numbers.DIGITS), abs_tol=noise)
        if not (near or (told != told and got != got)):
            yield f"{name} recorded {told:g}, from its numbers {got:g}"


def whole(found: Mapping[str, Recording], names: Collection[str] | None, /) -> bool:
    """Whether every experiment is there, all recorded from one commit: then all their trials are one family."""
    if names is None:
        return True
    return set(found) >= set(names) and len({one.about["commit"] for one in found.values()}) == 1


def families(
    found: Mapping[str, Recording], names: Collection[str] | None, /
) -> list[list[tuple[str, str, tuple[Trial, ...]]]]:
    """(experiment, claim, trials) by family."""
    each = [[(name, id, trials) for id, trials in one.trials.items()] for name, one in found.items()]
    return [[entry for one in each for entry in one]] if whole(found, names) else each
