"""Evidence of the rung `contexts` at paper size: recorded experiment by experiment, with the numbers of every seed.

One file an experiment, `contexts-EXPERIMENT.json`, with every trial of the run claims that speak of it. The numbers of
the seeds are rounded, and effects, intervals and p-values are those of the rounded numbers: what a file says follows
from the file, and `check` computes it once more. The trials of all files are one family of tests (`"family": "rung"`)
where every experiment is there, recorded from one commit; until then those of each file are (`"experiment"`).
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import pkgutil
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from toyld.checked import BadInput
from toyld.checkout import checkout
from toyld.claims.base import Claim
from toyld.claims.closed_form import RUNG, mine
from toyld.claims.effects import Effect, peaked, ranked, untested
from toyld.claims.runs import RunClaim, RunResult, Trial, decide, summary, try_on
from toyld.contexts import experiments
from toyld.files import write_whole

__all__ = ["COMMAND", "Recording", "check", "line", "make", "names", "packaged", "paper", "parse", "record"]

SCHEMA = 1
SIZE = "paper"
COMMAND = "python -c \"from toyld import scoreboard; scoreboard.record_contexts('toyld/evidence', only=('NAME',))\""
LARGEST = 195_000  # bytes of a file; a verdict that changes its word must not take it past 200 kB
DIGITS = 6  # significant, of effects, intervals and p-values
# Digits of the numbers by seed, and whether only those of the trial that speaks for a claim are kept: what fits first.
KEPT = ((6, False), (4, False), (6, True), (4, True))
NUMBERS = ("value", "low", "high", "n", "p", "p_below")


def names() -> tuple[str, ...]:
    """The experiments that have tables.

    >>> "stages" in names()
    True
    """
    found = sorted(module.name for module in pkgutil.iter_modules(experiments.__path__))
    return tuple(n for n in found if hasattr(importlib.import_module(f"{experiments.__name__}.{n}"), "tables"))


def _short(x: Any, digits: int = DIGITS) -> Any:
    """A number, or nested lists or an array of them, to so many significant digits; None for what is no number."""
    if isinstance(x, np.ndarray | list | tuple):
        return [_short(one, digits) for one in x]
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def _array(values: Any) -> np.ndarray:
    return np.array(values, dtype=float)  # None becomes NaN


def _again(parts: Sequence[np.ndarray], rank: int | None) -> Effect:
    return peaked(parts) if rank is None else ranked(parts, rank)


def _rounded(effect: Effect, digits: int) -> Effect:
    """The effect of its numbers by seed rounded to so many digits; an effect without them as it is."""
    if effect.parts is not None:
        effect = _again([_array(_short(part, digits)) for part in effect.parts], effect.rank)
    short = {name: math.nan if (x := _short(getattr(effect, name))) is None else x for name in NUMBERS if name != "n"}
    return replace(effect, **short | {"p_below": _short(effect.below) if effect.below == effect.below else math.nan})


@dataclass(frozen=True)
class Recording:
    """What one file says: how it was made, and the trials of each claim with their verdicts."""

    about: Mapping[str, Any]
    trials: Mapping[str, tuple[Trial, ...]]

    @property
    def source(self) -> dict[str, str]:
        """Where the numbers come from: date, hardware, command, commit."""
        return {name: self.about[name] for name in ("date", "hardware", "command", "commit")}

    def result(self, claim: RunClaim, /) -> RunResult:
        """What it says of one of its claims."""
        return RunResult(claim, self.trials[claim.id], self.source, RUNG)

    def payload(self) -> bytes:
        """The file: JSON, one trial a line."""
        results = {id: self._claim(id) for id in self.trials}
        return (_text({**self.about, "results": results}) + "\n").encode()

    def _claim(self, id: str) -> dict[str, Any]:
        trials = self.trials[id]
        at = _speaks(trials)
        effect = None if at is None else trials[at].effect
        told = {"verdict": summary(trials), **_numbers(effect, ("value", "low", "high", "n"))}
        if effect is None:
            return {**told, "why": trials[0].why, "trials": []}
        return {**told, "trials": [self._trial(trial) for trial in trials]}

    def _trial(self, trial: Trial) -> dict[str, Any]:
        assert trial.effect is not None
        parts, whole = trial.effect.parts, list(trial.runs) == list(self.about["tables"])
        return {
            "runs": "all" if whole else list(trial.runs),
            **_numbers(trial.effect, NUMBERS),
            "verdict": trial.verdict,
            "rank": trial.effect.rank,
            "per_seed": None if parts is None else _short(parts),
        }


def _numbers(effect: Effect | None, wanted: Iterable[str]) -> dict[str, Any]:
    found = {name: None if effect is None else getattr(effect, name) for name in wanted}
    return {"effect" if k == "value" else k: None if x is None or x != x else x for k, x in found.items()}


def _speaks(trials: Sequence[Trial]) -> int | None:
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
        whole = json.loads(payload)
        if whole.get("schema") != SCHEMA:
            raise ValueError(f"schema {whole['schema']}" if "schema" in whole else "no schema")
        about = {key: value for key, value in whole.items() if key != "results"}
        for key in ("date", "hardware", "command", "commit", "family", "experiment", "size"):
            if not isinstance(about[key], str):
                raise TypeError(f"{key} {about[key]!r}")
        trials = {id: tuple(_parsed(entry, about)) for id, entry in whole["results"].items()}
        if list(trials) != about["claims"]:
            raise ValueError("other claims than it names")
        found = Recording(about, trials)
        for id, entry in whole["results"].items():
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
        parts = None if one["per_seed"] is None else tuple(map(_array, one["per_seed"]))
        if parts is not None and {part.shape[-1] for part in parts} != {len(about["seeds"])}:
            raise ValueError(f"numbers of other than {len(about['seeds'])} seeds")
        told = {name: one["effect" if name == "value" else name] for name in NUMBERS}
        told = {name: math.nan if x is None else x for name, x in told.items()}
        if not all(isinstance(x, float | int) for x in told.values()):
            raise TypeError(f"{told}")
        effect = Effect(**told, parts=parts, rank=one["rank"])
        yield Trial(runs, effect, untested(effect), one["verdict"], recorded=True)


def make(name: str, /, *, commit: str | None, seeds: Sequence[int] = experiments.RECORD, size: str = SIZE) -> Recording:
    """Run one experiment and try every run claim that speaks of it, its trials as one family.

    Raises:
        BadInput: even the numbers of the trials that speak for the claims do not fit into a file.
    """
    import toyld

    started = time.process_time()
    tables = experiments.run(name, seeds, size)
    found: dict[str, list[Trial]] = {}
    for id, one in mine().items():
        try:
            tried = try_on(one, tables)
        except Exception as error:
            error.add_note(f"claim {id} on the tables of experiment {name}, size {size}")
            raise
        if applies := [trial for trial in tried if trial.effect is not None]:
            found[id] = applies
        elif one.experiment == name:
            found[id] = [Trial((), None, RunResult(one, tuple(tried)).why)]
    seconds = round(time.process_time() - started, 1)
    for digits, alone in KEPT:
        about = {
            "schema": SCHEMA,
            "experiment": name,
            "claims": list(found),
            "command": COMMAND.replace("NAME", name),
            "commit": commit,
            "dirty": False,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "device_seconds": seconds,
            "versions": {
                "toyld": toyld.__version__,
                "python": ".".join(map(str, sys.version_info[:3])),
                **{package: version(package) for package in ("numpy", "scipy", "xarray")},
            },
            "seeds": list(seeds),
            "size": size,
            "family": "experiment",
            "per_seed": f"{digits} digits; of the trial alone that speaks for a claim: more would make the file too large"
            if alone
            else f"{digits} digits; of every trial",
            "tables": list(tables),
        }
        rounded = {id: [_short_trial(trial, digits) for trial in trials] for id, trials in found.items()}
        made = Recording(about, {id: tuple(ts) for id, ts in decide(rounded).items()})
        if alone:
            made = Recording(about, {id: _thinned(ts) for id, ts in made.trials.items()})
        if len(made.payload()) <= LARGEST:
            return made
    msg = f"{name}: expected a recording below {LARGEST:,} bytes, got {len(made.payload()):,}; tell fewer trials"
    raise BadInput(msg)


def _short_trial(trial: Trial, digits: int) -> Trial:
    return trial if trial.effect is None else replace(trial, effect=_rounded(trial.effect, digits), recorded=True)


def _thinned(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
    """Without the numbers by seed of the trials that do not speak for the claim."""
    at = _speaks(trials)
    return tuple(
        t if i == at or t.effect is None else replace(t, effect=replace(t.effect, parts=None))
        for i, t in enumerate(trials)
    )


def check(found: Mapping[str, Recording], /) -> list[str]:
    """What does not follow from the numbers by seed, or from the p-values of the family, a line each; [] if all does.

    `found`: recordings by experiment; those that are one family with others must come with them.
    """
    out = []
    for family in _families(found):
        for name, id, trials in family:
            if {found[name].about["family"]} != {"rung" if len({n for n, *_ in family}) > 1 else "experiment"}:
                out.append(f"{name}: the family is not {found[name].about['family']}")
            at = _speaks(trials)
            if at is not None and trials[at].effect.parts is None:  # type: ignore[union-attr]
                out.append(f"{name}, {id}: no numbers by seed of the trial that speaks for it")
            for trial in trials:
                if trial.effect is not None and trial.effect.parts is not None:
                    out += [f"{name}, {id}, {' against '.join(trial.runs)[:80]}: {x}" for x in _differs(trial.effect)]
        decided = decide({f"{name}: {id}": trials for name, id, trials in family})
        for name, id, trials in family:
            if [t.verdict for t in trials] != [t.verdict for t in decided[f"{name}: {id}"]]:
                out.append(f"{name}, {id}: verdicts that do not follow from the p-values of its family")
    return list(dict.fromkeys(out))


def _differs(effect: Effect) -> Iterator[str]:
    """What the numbers by seed give otherwise than was recorded, beyond its rounding and that of the arithmetic."""
    assert effect.parts is not None
    again = _again(effect.parts, effect.rank)
    noise = 1e-12 * max((float(np.nanmax(np.abs(part), initial=0.0)) for part in effect.parts), default=0.0)
    for name in NUMBERS:
        told, got = getattr(effect, name), again.below if name == "p_below" else getattr(again, name)
        if not (math.isclose(told, got, rel_tol=10.0 ** (1 - DIGITS), abs_tol=noise) or (told != told and got != got)):
            yield f"{name} recorded {told:g}, from its seeds {got:g}"


def _families(found: Mapping[str, Recording]) -> list[list[tuple[str, str, tuple[Trial, ...]]]]:
    """(experiment, claim, trials) by family: all of them where all experiments are there, from one commit."""
    each = [[(name, id, trials) for id, trials in one.trials.items()] for name, one in found.items()]
    commits = {one.about["commit"] for one in found.values()}
    whole = set(found) >= set(names()) and len(commits) == 1
    return [[entry for one in each for entry in one]] if whole else each


def _settle(folder: Path) -> dict[str, Recording]:
    """Decide the trials of all files in a folder anew, and write those that change."""
    found = {p.stem.removeprefix(f"{RUNG}-"): (p, parse(p.read_bytes(), name=p.name)) for p in _paths(folder)}
    out = {}
    families = _families({name: one for name, (_, one) in found.items()})
    for family in families:
        decided = decide({f"{name}: {id}": trials for name, id, trials in family})
        kind = "rung" if len(families) == 1 and len(found) > 1 else "experiment"
        for name in dict.fromkeys(name for name, *_ in family):
            path, old = found[name]
            trials = {id: tuple(decided[f"{name}: {id}"]) for id in old.trials}
            out[name] = Recording({**old.about, "family": kind}, trials)
            if out[name].payload() != old.payload():
                write_whole(path, out[name].payload())
    return out


def _paths(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{RUNG}-*.json"))


def record(folder: str | Path, /, *, only: Iterable[str] = ()) -> None:
    """Write the evidence of the experiments (all by default) at paper size, one file as soon as it is computed.

    Raises:
        BadInput: not a folder, an unknown experiment, or tracked files that differ from their commit. Evidence that is
            recorded anew under its own name is such a file too: record into an empty folder, then move it.
    """
    from rich.console import Console

    folder, chosen, code = Path(folder), (only,) if isinstance(only, str) else tuple(only), checkout()
    if not folder.is_dir():
        msg = f"expected a folder that is there, got {folder}; make it"
        raise BadInput(msg)
    if unknown := [name for name in chosen if name not in names()]:
        msg = f"expected experiments out of {', '.join(names())}, got {', '.join(unknown)}; leave only= out for all"
        raise BadInput(msg)
    if code["dirty"] is not False:
        got = "no checkout" if code["dirty"] is None else "changes that are not committed"
        msg = f"expected the code of a commit for the record to name, got {got}; commit or stash them (git status)"
        raise BadInput(msg)
    console = Console(stderr=True, highlight=False)
    chosen = chosen or names()
    for i, name in enumerate(chosen, 1):
        with console.status(f"{name} ({i} of {len(chosen)})"):
            made = make(name, commit=code["commit"])
            if wrong := check({name: made}):
                msg = f"{name}: the recording does not follow from its numbers: {wrong[0]}"
                raise RuntimeError(msg)
            write_whole(folder / f"{RUNG}-{name}.json", made.payload())
        many = sum(len(trials) for trials in made.trials.values())
        console.print(f"{name}: {len(made.trials)} claims, {many} trials, {made.about['device_seconds']:g} s of CPU")
        _settle(folder)


@functools.cache
def packaged() -> dict[str, RunResult]:
    """What the evidence that comes with the package says, by claim; claims that are gone are left out.

    Raises:
        BadInput: a file is damaged.
    """
    found, claims = {}, mine()
    folder = files("toyld").joinpath("evidence")
    for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
        if path.name.startswith(f"{RUNG}-") and path.name.endswith(".json"):
            one = parse(path.read_bytes(), name=path.name)
            found |= {id: one.result(claims[id]) for id in one.trials if id in claims}
    return found


def paper(claim: Claim, /) -> RunResult | None:
    """What was recorded of a claim at paper size; None without a recording."""
    return packaged().get(claim.id)


def line(claim: Claim, /) -> list[str]:
    """The same in one line of words; [] without a recording."""
    found = paper(claim)
    if found is None or found.recorded is None:
        return []
    e, from_ = found.effect, found.recorded
    span = "" if e is None else f" ({e.value:+.4g} [{e.low:+.4g}, {e.high:+.4g}] {found.claim.unit}, n = {e.n})"
    many = f"{len(found.tested)} trial{'s' * (len(found.tested) != 1)}"
    made = f"recorded {from_['date'][:10]} at commit {from_['commit'][:12]}: {from_['command']}"
    return [f"at paper size: {found.summary}{span} in {many}, {made}"]
