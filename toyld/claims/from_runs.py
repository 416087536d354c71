"""Evidence of the rung `llm` from folders of real language models' runs: `llm-NAME.json` for each, with its numbers.

A real run takes from minutes to hours, so that no board computes it. `record` reads run folders of `toyld run llm`, or
folders of tables that an experiment wrote (`toyld.llm.experiments.write`), tries every run claim of the rung on them
and writes one file a folder; what speaks of several, two models or SFT of two lengths, goes into one more,
`llm-NAME+NAME.json`. All trials of all files are one family of tests (`"family": "rung"`), whenever they were recorded.
Units are the probed prompts, of experiments the seeds: each file holds the numbers of every unit, of prompts with what
their evaluations' jitter gives all of them alike; and where those would be too many the moments.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toyld.checked import BadInput
from toyld.checkout import checkout
from toyld.claims.numbers import count, rounded, summarised
from toyld.claims.recorded import LARGEST, thinned
from toyld.claims.recording import SCHEMA, Recording, check, parse
from toyld.claims.rungs import mine
from toyld.claims.runs import Trial, decide, try_on
from toyld.claims.tables import STAGES
from toyld.files import write_whole
from toyld.trajectory import load, read_folder

__all__ = ["COMMAND", "RUNG", "folder_of", "line", "make", "record", "run_of", "tables"]

RUNG = "llm"
WROTE = "python -c \"from toyld.llm.experiments import write; write('EXPERIMENT', 'FOLDER')\""
COMMAND = "python -c \"from toyld import scoreboard; scoreboard.record_llm(['FOLDER', …], 'toyld/evidence')\""
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
# Settings that are flags of the command as they stand; β is one, too, and kinds are one word.
_FLAGS = (
    "model", "data", "probe_data", "arms", "objective", "sft_term", "optimizer", "sft_lr", "lr", "warmup", "clip",
    "sft_epochs", "epochs", "batch", "accumulation", "pairs", "held_out", "probes", "evaluations", "every",
    "max_length", "lora", "bf16", "checkpointing", "seed", "device", "threads",
)  # fmt: skip
# Optimisers that divide the push out: their first updates have the size of the rate whatever the loss.
_SCALE_FREE = ("rmsprop", "adam", "lion")
Told = Mapping[str, Any]
Trials = Mapping[str, Sequence[Trial]]


def run_of(folder: str | Path, /) -> dict[str, Any]:
    """What run.json says of a run folder of `toyld run llm`; nothing ({}) of a folder of an experiment's tables.

    Raises:
        BadInput: neither, or a run of another command.
    """
    path = Path(folder)
    if not (path / "run.json").exists() and any(path.glob("*.nc")):
        return {}
    try:
        told = json.loads((path / "run.json").read_text(encoding="utf-8"))
        command, config = str(told["command"]), dict(told["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"expected a run folder with a run.json, got {path.name} ({type(error).__name__}); name one"
        raise BadInput(msg) from None
    if not command.startswith("toyld run llm"):
        msg = f"{path.name}: expected a run of toyld run llm, got one of {command}; its rung computes or records it"
        raise BadInput(msg)
    return {**told, "config": config}


def tables(folder: str | Path, /, *, name: str | None = None) -> dict[str, xr.Dataset]:
    """Every stage of every arm of a finished run, by `NAME stage arm`, as the claims on stages read them.

    Those of an experiment by `NAME FILE`, as they are. Both arms of extended SFT are arm `extend` to the claims: attrs
    `sft_updates` and `sft_passes` tell them apart. The plain stages of DPO get attr `first_push`, rate times the loss's
    first push on chosen (β/2 in DPO, 1 in SFT), or the rate alone where the optimiser divides the push out.

    Raises:
        BadInput: no such run, or one that is not finished.
    """
    path, told = Path(folder), run_of(folder)
    name = path.name if name is None else name
    if not told:
        return {f"{name} {file.stem}": load(file) for file in sorted(path.glob("*.nc"))}
    config = told["config"]
    found = [ds for ds in read_folder(path) if ds.attrs.get("experiment") == STAGES]
    last = told["stages"][-1]
    for arm in config.get("arms", []):
        if not (path / "models" / f"{last}-{arm}").is_dir():  # whole where it is there at all
            msg = f"{path.name}: expected a finished run, got none of models/{last}-{arm}; go on with it by --resume"
            raise BadInput(msg)
    by_label = {(str(ds.attrs["stage"]), str(ds.attrs["arm"])): ds for ds in found}
    out = {}
    for (stage, arm), ds in by_label.items():
        more: dict[str, Any] = {"arm": "extend" if arm.startswith("extend") else arm}
        push = _first_push(stage, config) if arm == "baseline" else None
        more |= {} if push is None else {"first_push": push}
        control = by_label.get((stage, "baseline"))
        if arm == "on-policy" and control is not None and _same_but_rejected(ds, control):
            more["probing_set"] = control.attrs["probing_set"]
        out[f"{name} {stage} {arm}"] = ds.assign_attrs(more)
    return out


def _first_push(stage: str, config: Told) -> float | None:
    if stage not in ("sft", "dpo") or not {"sft_lr", "lr", "optimizer"} <= set(config):
        return None
    rate = float(config["sft_lr" if stage == "sft" else "lr"])
    free = any(str(config["optimizer"]).startswith(one) for one in _SCALE_FREE)
    return rate if free or stage == "sft" else rate * config.get("parameters", {}).get("beta", 0.1) / 2.0


def _same_but_rejected(ds: xr.Dataset, control: xr.Dataset) -> bool:
    """Whether two runs from one policy were asked the same but for rejected answers: scores agree before any update."""
    kinds = [kind for kind in control.probe.values if kind != "rejected"]
    if [kind for kind in ds.probe.values if kind != "rejected"] != kinds or any(ds.example.values != control.example):
        return False
    first, other = (x.isel(step=0).sel(probe=kinds) for x in (ds, control))
    floor = max(float(x.attrs["noise_floor"]) for x in (ds, control))  # nats a token, of the chosen responses
    off = np.abs(first.logp.values - other.logp.values)
    near = 100.0 * max(floor, float(np.finfo(np.float32).eps)) * first.n_tokens.values
    both = np.isfinite(first.logp.values) == np.isfinite(other.logp.values)
    return bool(both.all() and not (off > near).any())


def line(config: Told, /) -> str:
    """The command that made a run, of its settings; model and data by the names that they were given without a path.

    >>> line({"model": "m", "arms": ["baseline"], "parameters": {"beta": 0.1}, "lr": 2e-5, "lora": None, "bf16": True})
    'toyld run llm --model m --arms baseline --lr 2e-05 --bf16 --beta 0.1'
    """
    known = {key: config.get(key) for key in _FLAGS} | {"beta": config.get("parameters", {}).get("beta")}
    known |= {
        "kinds": ",".join(config.get("kinds", [])),
        "evaluations": None if known["every"] else known["evaluations"],
    }
    words = ["toyld run llm"]
    for key, value in known.items():
        if value not in (None, [], False, ""):
            values = value if isinstance(value, list) else [] if value is True else [value]
            words += [f"--{key.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def _seconds(folder: Path) -> float | None:
    """From run.json to the last evaluation, by the files' times: pauses of a run that was resumed are in it."""
    if not (folder / "run.json").exists():
        return None  # tables are written at the end
    times = [file.stat().st_mtime for file in (folder / "run.json", *folder.glob("*/eval-*.nc"))]
    return round(max(times) - times[0], 1)


def _about(folder: Path, runs: Mapping[str, xr.Dataset], hardware: str | None, seconds: float | None) -> dict[str, Any]:
    """How a run was made, and what of it was read."""
    told = run_of(folder)
    config = dict(told.get("config", {}))
    prints = config.pop("fingerprints", {})
    names = sorted({str(ds.attrs.get("experiment")) for ds in runs.values()})
    return {
        "command": line(config) if told else "; ".join(WROTE.replace("EXPERIMENT", name) for name in names),
        "hardware": hardware or f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "device_seconds": _seconds(folder) if seconds is None else seconds,
        "versions": told.get("versions") or {one: version(one) for one in ("torch", "transformers", "xarray")},
        "seeds": sorted({int(seed) for ds in runs.values() for seed in ds.seed.values}),
        "examples": max(ds.sizes["example"] for ds in runs.values()),
        "model": {"name": config.get("model"), "weights": prints.get("weights")},
        "data": {
            str(config[key]): prints[of]
            for key, of in (("data", "rows"), ("probe_data", "probing_set"))
            if config.get(key) and prints.get(of)
        },
        "probing_set": prints.get("probing_set"),
        "settings": config,
        "made_at_commit": told.get("commit"),
        "noise_floor": max(float(ds.attrs.get("noise_floor", 0.0)) for ds in runs.values()),
        "tables": list(runs),
    }


def _together(abouts: Mapping[str, dict[str, Any]], names: Iterable[str]) -> dict[str, Any]:
    """The same of several runs."""
    several = [abouts[name] for name in names]
    unique = {key: list(dict.fromkeys(one[key] for one in several)) for key in ("command", "hardware")}
    return {
        **{key: "; ".join(values) for key, values in unique.items()},
        "device_seconds": round(sum(one["device_seconds"] or 0.0 for one in several), 1),
        "versions": several[0]["versions"],
        "seeds": sorted({seed for one in several for seed in one["seeds"]}),
        "examples": max(one["examples"] for one in several),
        "tables": [name for one in several for name in one["tables"]],
    }


def _tried(runs: Mapping[str, xr.Dataset]) -> dict[str, dict[str, list[Trial]]]:
    """Every claim of the rung on all tables, by the name of the run (or NAME+NAME) whose tables a trial is of."""
    out: dict[str, dict[str, list[Trial]]] = {folder_of([name]): {} for name in runs}
    for id, one in mine(RUNG).items():
        try:
            trials = try_on(one, runs)
        except Exception as error:
            error.add_note(f"claim {id}")
            raise
        split: dict[str, list[Trial]] = {}
        for trial in trials:
            split.setdefault(folder_of(trial.runs), []).append(trial)
        for name, mine_ in split.items():
            applies = [trial for trial in mine_ if trial.effect is not None]
            if applies or "+" not in name or one.takes == "all":
                out.setdefault(name, {})[id] = applies or [Trial((), None, _why(mine_))]
    return out


def _why(trials: Sequence[Trial]) -> str:
    """Why a claim says nothing of any table, but for those of other stages and arms than it is about."""
    every = list(dict.fromkeys(trial.why or "" for trial in trials))
    telling = [why for why in every if not why.startswith(("a run of stage", "its arm is"))]
    return "; ".join(telling or every)


def folder_of(tables: Iterable[str], /) -> str:
    """The file that a trial on these tables belongs to: NAME, or NAME+NAME of several.

    >>> folder_of(["a sft baseline", "b sft baseline", "a dpo baseline"])
    'a+b'
    """
    return "+".join(sorted({name.split(" ")[0] for name in tables}))


def _fitting(about: Told, trials: Trials) -> Recording:
    """With as many numbers of prompts as fit, the largest effects giving way to their moments first."""

    def kept(digits: int, limit: int | None) -> tuple[int, Recording]:
        told = f"{digits} digits; " + ("every number" if limit is None else f"moments of effects of over {limit}")
        short = {id: tuple(_short(one, digits, limit) for one in ts) for id, ts in trials.items()}
        if limit is not None:  # seeds are few: they are left out of the trials that cannot speak for their claim
            short = {id: thinned(ts) if all(_by_seed(one) for one in ts) else ts for id, ts in short.items()}
        made = Recording({**about, "numbers": told}, short)
        return len(made.payload()), made

    for digits in (6, 4):
        size, made = kept(digits, None)
        if size <= LARGEST:
            return made
    limits = sorted({0} | {count(t.effect) for ts in trials.values() for t in ts if t.effect is not None})
    size, made = kept(4, 0)
    if size > LARGEST:
        msg = f"{about['experiment']}: expected a recording below {LARGEST:,} bytes, got {size:,}; record fewer arms"
        raise BadInput(msg)
    fits, many = 0, len(limits)  # the place of a limit that fits, and of one that does not
    while many - fits > 1:
        middle = (fits + many) // 2
        size, other = kept(4, limits[middle])
        fits, many, made = (middle, many, other) if size <= LARGEST else (fits, middle, made)
    return made


def _by_seed(trial: Trial) -> bool:
    parts = None if trial.effect is None else trial.effect.parts
    return parts is not None and all(isinstance(part, np.ndarray) for part in parts)


def _short(trial: Trial, digits: int, limit: int | None) -> Trial:
    if trial.effect is None:
        return trial
    effect = summarised(trial.effect) if limit is not None and count(trial.effect) > limit else trial.effect
    return replace(trial, effect=rounded(effect, digits), recorded=True)


def _decided(found: Mapping[str, Recording]) -> dict[str, Recording]:
    """All trials of all files as one family."""
    done = decide({f"{name}: {id}": ts for name, one in found.items() for id, ts in one.trials.items()})
    return {
        name: Recording(one.about, {id: tuple(done[f"{name}: {id}"]) for id in one.trials})
        for name, one in found.items()
    }


def make(
    folders: Mapping[str, Path],
    /,
    *,
    commit: str,
    hardware: str | None = None,
    seconds: Mapping[str, float] | None = None,
    others: Mapping[str, Recording] | None = None,
) -> dict[str, Recording]:
    """The recordings of some run folders by name, one family with `others`, which come back with their new verdicts."""
    runs = {name: tables(path, name=name) for name, path in folders.items()}
    abouts = {name: _about(path, runs[name], hardware, (seconds or {}).get(name)) for name, path in folders.items()}
    found = dict(others or {})
    for name, trials in _tried({key: ds for each in runs.values() for key, ds in each.items()}).items():
        of = name.split("+")
        found[name] = _fitting(
            {
                "schema": SCHEMA,
                "experiment": name,
                "claims": list(trials),
                **(abouts[name] if name in abouts else _together(abouts, of)),
                "commit": commit,
                "dirty": False,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "size": "as run",
                "family": "rung",
            },
            trials,
        )
    return _decided(found)


def _there(out: Path, names: Iterable[str]) -> Iterator[tuple[str, Recording]]:
    """The recordings of other runs that lie in a folder."""
    for path in sorted(out.glob(f"{RUNG}-*.json")):
        name = path.stem.removeprefix(f"{RUNG}-")
        if stale := set(name.split("+")) & set(names):
            if name not in names and set(name.split("+")) - set(names):
                msg = f"expected {name.replace('+', ' and ')} recorded together, got {', '.join(sorted(stale))} alone"
                raise BadInput(f"{msg}; name the others, too, or remove {path.name}")
            continue
        yield name, parse(path.read_bytes(), name=path.name)


def record(
    folders: Iterable[str | Path],
    out: str | Path,
    /,
    *,
    hardware: str | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Recording]:
    """Write the evidence of some run folders into the folder `out`, under their names; what is written.

    Recordings of other runs that lie there stay and get their verdicts from the larger family. `hardware`: of the
    machine that made the runs, where it was another one; `seconds`: what they took, by name, instead of what the times
    of their files say.

    Raises:
        BadInput: not a run of `toyld run llm`, not finished, two of one name, no folder to write to, or tracked files
            that differ from their commit.
    """
    named: dict[str, Path] = {}
    for folder in (folders,) if isinstance(folders, str | Path) else tuple(folders):
        name = Path(folder).absolute().name
        if not re.fullmatch(_NAME, name) or name in named:
            msg = f"expected run folders of different names in letters, digits, . and -, got {name!r}; rename it"
            raise BadInput(msg)
        named[name] = Path(folder).absolute()
    out, code = Path(out), checkout()
    if not named:
        raise BadInput("expected at least one run folder, got none; name what toyld run llm wrote")
    if not out.is_dir():
        raise BadInput(f"expected a folder that is there, got {out}; make it")
    if code["dirty"] is not False or code["commit"] is None:
        got = "no checkout" if code["dirty"] is None else "changes that are not committed"
        msg = f"expected the code of a commit for the record to name, got {got}; commit or stash them (git status)"
        raise BadInput(msg)
    others = dict(_there(out, named))
    made = make(named, commit=code["commit"], hardware=hardware, seconds=seconds, others=others)
    if wrong := check(made, None):
        raise RuntimeError(f"the recording does not follow from its numbers: {wrong[0]}")
    for name, one in made.items():
        write_whole(out / f"{RUNG}-{name}.json", one.payload())
    return made
