"""Evidence of a rung with experiments at paper size: one experiment after the other, with the numbers of every seed.

One file an experiment, `RUNG-EXPERIMENT.json`, with every trial of the run claims that speak of it. All trials of
all files are one family of tests (`"family": "rung"`) where every experiment is there, recorded from one commit; until
then those of each file are (`"experiment"`). Where an experiment reads data, the file says which (`"data"`: sha256).
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np

from toyld.checked import BadInput
from toyld.checkout import checkout
from toyld.claims.base import Claim
from toyld.claims.numbers import rounded
from toyld.claims.recording import SCHEMA, Recording, check, families, parse, whole
from toyld.claims.rungs import experiments, mine
from toyld.claims.runs import RunResult, Trial, decide, try_on
from toyld.files import write_whole

__all__ = ["COMMAND", "LARGEST", "line", "make", "packaged", "paper", "record", "thinned"]

SIZE = "paper"
ALONE = "of the least, the greatest and the smallest effect of a claim alone: more would make the file too large"
WRITES = "scoreboard.record_experiments('RUNG', 'toyld/evidence', only=('NAME',))"
COMMAND = f'python -c "from toyld import scoreboard; {WRITES}"'
LARGEST = 195_000  # bytes of a file; a verdict that changes its word must not take it past 200 kB
# Digits of the numbers by seed, and whether only those of the trial that speaks for a claim are kept: what fits first.
KEPT = ((6, False), (4, False), (6, True), (4, True))


def make(rung: str, name: str, /, *, commit: str, seeds: Sequence[int] | None = None, size: str = SIZE) -> Recording:
    """Run one experiment (of the seeds of record) and try every run claim that speaks of it, its trials as one family.

    Raises:
        BadInput: even the numbers of the trials that speak for the claims do not fit into a file.
    """
    import toyld

    started = time.process_time()
    these = experiments(rung)
    seeds, data = these.seeds(size) if seeds is None else seeds, dict(these.data(size))
    tables = these.run(name, seeds, size)
    found: dict[str, list[Trial]] = {}
    for id, one in mine(rung).items():
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
            "command": COMMAND.replace("RUNG", rung).replace("NAME", name),
            "commit": commit,
            "dirty": False,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
            "device_seconds": seconds,
            "versions": {
                "toyld": toyld.__version__,
                "python": ".".join(map(str, sys.version_info[:3])),
                **{package: version(package) for package in ("numpy", "scipy", "torch", "xarray")},
            },
            "seeds": list(seeds),
            "size": size,
            **({"data": data} if data else {}),
            "family": "experiment",
            "per_seed": f"{digits} digits; " + (ALONE if alone else "of every trial"),
            "tables": list(tables),
        }
        short = {id: [_short(trial, digits) for trial in trials] for id, trials in found.items()}
        made = Recording(about, {id: tuple(trials) for id, trials in decide(short).items()})
        if alone:
            made = Recording(about, {id: thinned(ts) for id, ts in made.trials.items()})
        if len(made.payload()) <= LARGEST:
            return made
    msg = f"{name}: expected a recording below {LARGEST:,} bytes, got {len(made.payload()):,}; tell fewer trials"
    raise BadInput(msg)


def _short(trial: Trial, digits: int) -> Trial:
    return trial if trial.effect is None else replace(trial, effect=rounded(trial.effect, digits), recorded=True)


def thinned(trials: Sequence[Trial], /) -> tuple[Trial, ...]:
    """Numbers by unit only of those that may speak for the claim, whatever its verdict in a larger family."""
    values = [np.inf if t.effect is None or not t.tested else t.effect.value for t in trials]
    known = np.ma.masked_invalid(values)
    keep = {int(known.argmin()), int(known.argmax()), int(np.abs(known).argmin())}
    return tuple(
        t if i in keep or t.effect is None else replace(t, effect=replace(t.effect, parts=None))
        for i, t in enumerate(trials)
    )


def _settle(rung: str, folder: Path) -> None:
    """Decide the trials of all files of a rung in a folder anew, and write those that change."""
    names = experiments(rung).names()
    paths = {path.stem.removeprefix(f"{rung}-"): path for path in sorted(folder.glob(f"{rung}-*.json"))}
    found = {name: parse(path.read_bytes(), name=path.name) for name, path in paths.items()}
    kind = "rung" if whole(found, names) else "experiment"
    decided: dict[str, list[Trial]] = {}
    for family in families(found, names):
        decided |= decide({f"{name}: {id}": trials for name, id, trials in family})
    for name, old in found.items():
        new = Recording({**old.about, "family": kind}, {id: tuple(decided[f"{name}: {id}"]) for id in old.trials})
        if new.payload() != old.payload():
            write_whole(paths[name], new.payload())


def record(rung: str, folder: str | Path, /, *, only: Iterable[str] = ()) -> None:
    """Write the evidence of a rung's experiments (all by default) at paper size, one file as soon as it is computed.

    Raises:
        BadInput: a rung without experiments, not a folder, an unknown experiment, data that is not at hand, or tracked
            files that differ from their commit. Evidence that is recorded anew under its own name is such a file too:
            record into an empty folder, then move it.
    """
    from rich.console import Console

    folder, chosen, code = Path(folder), (only,) if isinstance(only, str) else tuple(only), checkout()
    names = experiments(rung).names()
    if not folder.is_dir():
        msg = f"expected a folder that is there, got {folder}; make it"
        raise BadInput(msg)
    if unknown := [name for name in chosen if name not in names]:
        msg = f"expected experiments out of {', '.join(names)}, got {', '.join(unknown)}; leave only= out for all"
        raise BadInput(msg)
    if code["dirty"] is not False or code["commit"] is None:
        got = "no checkout" if code["dirty"] is None else "changes that are not committed"
        msg = f"expected the code of a commit for the record to name, got {got}; commit or stash them (git status)"
        raise BadInput(msg)
    console = Console(stderr=True, highlight=False)
    chosen = chosen or names
    for i, name in enumerate(chosen, 1):
        with console.status(f"{name} ({i} of {len(chosen)})"):
            made = make(rung, name, commit=code["commit"])
            if wrong := check({name: made}, names):
                msg = f"{name}: the recording does not follow from its numbers: {wrong[0]}"
                raise RuntimeError(msg)
            write_whole(folder / f"{rung}-{name}.json", made.payload())
        many = sum(len(trials) for trials in made.trials.values())
        console.print(f"{name}: {len(made.trials)} claims, {many} trials, {made.about['device_seconds']:g} s of CPU")
        _settle(rung, folder)


@functools.cache
def packaged(rung: str, /) -> dict[str, RunResult]:
    """What the evidence of a rung that comes with the package says, by claim; claims that are gone are left out.

    Raises:
        BadInput: a file is damaged.
    """
    found: dict[str, RunResult] = {}
    claims = mine(rung)
    folder = files("toyld").joinpath("evidence")
    for path in sorted(folder.iterdir(), key=lambda p: p.name) if folder.is_dir() else ():
        if path.name.startswith(f"{rung}-") and path.name.endswith(".json"):
            one = parse(path.read_bytes(), name=path.name)
            found |= {
                id: RunResult(claims[id], trials, one.source, rung) for id, trials in one.trials.items() if id in claims
            }
    return found


def paper(claim: Claim, rung: str, /) -> RunResult | None:
    """What was recorded of a claim at paper size; None without a recording."""
    return packaged(rung).get(claim.id)


def line(claim: Claim, rung: str, /) -> list[str]:
    """The same in one line of words; [] without a recording."""
    found = paper(claim, rung)
    if found is None or found.recorded is None:
        return []
    e, from_ = found.effect, found.recorded
    many = ", ".join(f"{n} {verdict}" for verdict, n in Counter(trial.verdict for trial in found.trials).most_common())
    span = "" if e is None else f"{e.value:+.4g} [{e.low:+.4g}, {e.high:+.4g}] {found.claim.unit}, n = {e.n}; "
    made = f"recorded {from_['date'][:10]} at commit {from_['commit'][:12]}: {from_['command']}"
    return [f"at paper size: {found.summary} ({span}{many}), {made}"]
