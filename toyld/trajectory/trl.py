"""The reader of the trainer state that TRL and Hugging Face's Trainer write (`trainer_state.json`, `log_history`).

Each row of `log_history` is what was logged at one `step` (updates done): train rows (means over the batches since the
last row), evaluations (keys `eval_*`, means over one evaluation set), a summary at the end; transcribed logs join them.
Rows come in any order here: a value is known by its step and key. Where one step has a key twice with different values
(a restart that logged again), the order alone could tell which counts, and it is not trusted: the value is left out.

| logged | in the table |
|---|---|
| `eval_logps/chosen`, `eval_logps/rejected` | `logp` of these probes |
| `loss`, `learning_rate`, `grad_norm` | `loss`, `lr`, `grad_norm` |
| another `eval_KEY` or `train_KEY` | that name, characters other than letters, digits and _ as _ |
| another `KEY` of train rows, such as `logps/chosen` (different batches in every row) | `train_KEY`, as above |

**Named evaluation sets** (a dictionary as `eval_dataset`): the Trainer prefixes its own keys (`eval_NAME_loss`,
`eval_NAME_runtime`), TRL does not (`eval_logps/chosen` in the same row), so several sets would share one key. The row's
own prefixed keys tell them apart: all become `eval_NAME_KEY`. Nothing in the file says whether log-probabilities are
sums over the response (DPO) or means over its tokens (SimPO, ORPO, IPO in older versions): they are kept as logged.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.checked import TrajectoryError, fail
from toyld.trajectory._sniff import check_regular, find
from toyld.trajectory._text import once, show
from toyld.trajectory.table import trajectory

__all__ = ["read_trl"]

Floats = NDArray[np.float64]
# What only the Trainer writes, with the set's prefix.
_EVALUATION = re.compile(r"(.+)_samples_per_second|(eval|eval_.+)_(?:runtime|steps_per_second|loss)", re.DOTALL)
_METRIC = re.compile(r"(?:eval_)?(?:(?:logps|logits|rewards)/.*|loss)", re.DOTALL)  # never anything but numbers
_LOGPS = re.compile(r"(eval|eval_.+)_logps/(?:chosen|rejected)", re.DOTALL)
_NAMED = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
_ATTRS = {"global_step": "global_step", "max_steps": "max_steps", "epochs": "num_train_epochs"}
_PAIR = ("chosen", "rejected")


class _State(NamedTuple):
    """One file: content -> row, exact repeats once; how many there were; the other entries of the state."""

    name: str
    digest: str
    rows: dict[frozenset[tuple[str, Any]], dict[str, Any]]
    repeats: int
    rest: dict[str, Any]


def _few(items: Iterable[Any], most: int = 6) -> str:
    listed = sorted(items)
    more = f", ... ({len(listed)} in all)" if len(listed) > most else ""
    return ", ".join(map(str, listed[:most])) + more


def _content(row: dict[str, Any]) -> frozenset[tuple[str, Any]]:
    """What a row says, comparable: NaN equals NaN, 10 equals 10.0, True is not 1, lists and objects by their text."""
    return frozenset((k, v if type(v) is int or (type(v) is float and v == v) else repr(v)) for k, v in row.items())


def _state(path: Path, name: str) -> _State:
    do = "name a whole trainer_state.json, or the folder with the run's checkpoints"
    try:
        check_regular(path)
        payload = path.read_bytes()
    except OSError as error:
        fail("a readable file", f"{name}: {error.strerror}", "check the path")
    if payload.startswith(b"version https://git-lfs"):
        fail("a trainer state", f"{name}, a Git-LFS pointer", "fetch the content with `git lfs pull`")
    try:
        state = json.loads(payload.decode("utf-8-sig"), object_pairs_hook=once)
        history = state.get("log_history") if isinstance(state, dict) else None
        if not isinstance(history, list):
            got = f"{type(state).__name__} with {type(history).__name__}" if state != {} else "an empty object"
            fail("an object with a list log_history", f"{got} in {name}", do)
        for row in history:
            if not isinstance(row, dict):
                fail("an object in each place of log_history", f"{show(row)} in {name}", "repair or remove it")
        rows = {_content(row): row for row in history}
    except TrajectoryError:
        raise
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, cut, numbers of thousands of digits, too deep
        fail("one whole JSON object", f"{name} ({show(str(error) or type(error).__name__, 70)})", do)
    rest = {key: value for key, value in state.items() if key != "log_history"}
    return _State(name, hashlib.sha256(payload).hexdigest(), rows, len(history) - len(rows), rest)


def _newest(path: Path) -> _State:
    """The file's state, or of a folder the one whose rows contain those of every other."""
    if not path.is_dir():
        return _state(path, path.name)
    kinds = find(path)
    if "trl" not in kinds:
        pointers = ", ".join(file.name for file in kinds.get("lfs", []))
        got = f"Git-LFS pointers ({pointers})" if pointers else "none"
        fail("a trainer state in the folder", f"{got} in {path.name}", "name a trainer_state.json or its folder")
    states = [_state(file, file.relative_to(path).as_posix()) for file in kinds["trl"]]
    newest = max(states, key=lambda s: (len(s.rows), _whole(s.rest.get("global_step")) or 0))
    for other in states:
        if unknown := other.rows.keys() - newest.rows.keys():
            steps = _few({_step(other.rows[content], other.name) for content in unknown})
            got = f"{other.name}, whose rows at steps {steps} are not in {newest.name}"
            fail("checkpoints of one run, the newest with all rows of the others", got, "name one of the files")
    return newest


def _whole(value: Any) -> int | None:
    """A whole number that fits int32, or None."""
    good = type(value) in (int, float) and abs(value) < 2**31 and value == int(value)
    return int(value) if good else None


def _step(row: dict[str, Any], name: str) -> int:
    step = _whole(row.get("step"))
    if step is None or step < 0:
        got = show(row["step"]) if "step" in row else f"none in {show(row)}"
        fail("a step in every row, a whole number from 0 to 2^31 - 1", f"{got} in {name}", "repair or remove the row")
    return step


def _own(row: dict[str, Any], name: str) -> dict[str, Any]:
    """The row; keys of an evaluation set that its own prefixed keys name, as `eval_NAME_KEY`."""
    sets = {match[1] or match[2] for key in row if (match := _EVALUATION.fullmatch(key))} - {"train"}
    if not sets or "eval" in sets:
        return row
    prefixes = sorted(sets, key=len, reverse=True)
    out: dict[str, Any] = {}
    for key, value in row.items():
        prefix = next((p for p in prefixes if key.startswith(f"{p}_")), "eval" if key.startswith("eval_") else "")
        if prefix == "eval" and len(sets) > 1:
            got = f"{show(key)} beside those of {show(sorted(sets))} in {name}"
            fail("rows of one evaluation set each", got, "split the row, or prefix its keys with the set's name")
        own = prefixes[0] if prefix == "eval" else prefix
        to = f"eval_{own.removeprefix('eval_')}_{key[len(prefix) + 1 :]}" if prefix else key
        if to in out:
            fail("keys that stay apart", f"{show(key)} and another as {show(to)} in {name}", "rename one")
        out[to] = value
    return out


class _Log(NamedTuple):
    """Steps in order, key -> value at each of them (NaN = not measured), what was left out, sizes of the sets."""

    step: NDArray[np.int64]
    values: dict[str, Floats]
    notes: list[tuple[str, str]]
    examples: dict[str, int]


def _log(state: _State) -> _Log:
    """All rows by step and key, whatever their order."""
    logged: dict[str, tuple[list[int], list[float]]] = {}
    other: dict[str, set[str]] = {}
    for row in state.rows.values():
        step = _step(row, state.name)
        for key, value in _own(row, state.name).items():
            if key == "step" or value is None:  # null: not measured
                continue
            if type(value) not in (int, float):
                other.setdefault(key, set()).add(type(value).__name__)
                continue
            steps, values = logged.setdefault(key, ([], []))
            try:
                values.append(float(value))
            except OverflowError:
                fail(f"numbers within float64 for {show(key)}", f"{show(value)} at step {step}", "repair the file")
            steps.append(step)
    for key, kinds in sorted(other.items()):
        if key in logged or key in _NAMED or key == "epoch" or _METRIC.fullmatch(key):
            fail(f"numbers for {show(key)}", f"{_few(kinds)} in {state.name}", "repair the file")
    notes = []
    if other:
        listed = _few(f"{show(key)} ({_few(kinds)})" for key, kinds in other.items())
        notes.append(("non-finite-rows", f"left out, not numbers: {listed}"))
    at = {key: (np.array(steps, np.int64), np.array(values)) for key, (steps, values) in logged.items()}
    measured = [steps for key, (steps, _) in at.items() if key != "epoch"]
    if not measured:
        fail("rows with numbers in log_history", f"none in {state.name}", "name the state of a run that has logged")
    grid = np.unique(np.concatenate(measured))
    columns: dict[str, Floats] = {}
    gone: dict[str, set[int]] = {"train": set(), "evaluation": set()}
    clashes: dict[str, list[int]] = {}
    for key, (where, what) in at.items():
        if key == "epoch":  # rows that hold nothing else are none
            where, what = (values[np.isin(where, grid)] for values in (where, what))
        columns[key], wrong, clash = _column(where, what, grid)
        gone["evaluation" if key.startswith("eval_") else "train"].update(wrong)
        if clash:
            clashes[key] = clash
    if any(gone.values()):
        rows = " and ".join(f"{len(s)} {kind} row(s) (steps {_few(s)})" for kind, s in gone.items() if s)
        notes.append(("non-finite-rows", f"values not finite in {rows}: left out, the rest of these rows stands"))
    if state.repeats:
        notes.append(("duplicate-rows", f"{state.repeats} row(s) repeat others exactly: counted once"))
    if clashes:
        count, again = sum(map(len, clashes.values())), {step for clash in clashes.values() for step in clash}
        text = (
            f"{count} value(s) at {len(again)} step(s) ({_few(again)}) were logged again with another value, as a "
            f"restart or a second evaluation does; which one counts is not recorded, so they are left out "
            f"({_few(map(show, clashes))})"
        )
        notes.append(("duplicate-rows", text))
    return _Log(grid, columns, notes, _examples(logged))


def _column(
    steps: NDArray[np.int64], values: Floats, grid: NDArray[np.int64], /
) -> tuple[Floats, list[int], list[int]]:
    """(values on the grid, steps where they are not finite, steps with two different values)."""
    order = np.argsort(steps, kind="stable")  # two different values at a step make two neighbours that differ
    steps, values = steps[order], values[order]
    same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    clash = np.unique(steps[1:][(steps[1:] == steps[:-1]) & ~same])
    wrong = np.setdiff1d(steps[~np.isfinite(values)], clash)
    column = np.full(grid.shape, np.nan)
    column[np.searchsorted(grid, steps)] = values
    column[np.searchsorted(grid, np.concatenate([wrong, clash]))] = np.nan
    return column, wrong.tolist(), clash.tolist()


def _examples(logged: dict[str, tuple[list[int], list[float]]]) -> dict[str, int]:
    """prefix -> size of its evaluation set, where duration × rate of all its evaluations leaves one whole number.

    The Trainer rounds durations to 4 decimals and rates to 3; a transcription may hold fewer.
    """
    found = {}
    for key, (steps, durations) in logged.items():
        prefix = key.removesuffix("_runtime")
        other = logged.get(f"{prefix}_samples_per_second")
        if prefix in (key, "train") or other is None or other[0] != steps:
            continue
        t, rate = np.array(durations), np.array(other[1])
        known = np.isfinite(t) & np.isfinite(rate) & (t > 0) & (t < 1e9) & (rate > 0) & (rate < 1e9)
        if known.any():
            t, rate = t[known], rate[known]
            dt, dr = (0.5 * 10.0 ** -min(most, _decimals(a)) for most, a in ((4, t), (3, rate)))
            low = math.ceil(float(((t - dt) * (rate - dr)).max()))
            if 0 < low < 2**31 and low == math.floor(float(((t + dt) * (rate + dr)).min())):
                found[prefix] = low
    return found


def _decimals(values: Floats) -> int:
    """Decimals of the most precise of them."""
    few = np.unique(values)[:1000]
    return max(len(np.format_float_positional(x, trim="-").partition(".")[2]) for x in few)


def _plain(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", key)


def _table(values: dict[str, Floats]) -> dict[str, Floats]:
    """Logged keys as names of the table; one line where two become one."""
    out: dict[str, Floats] = {}
    for key in sorted(values):
        plain = _plain(key)
        name = _NAMED.get(key, plain if plain.startswith(("eval_", "train_")) else f"train_{plain}")
        if name in out:
            fail("keys that differ in letters, digits or _", f"{show(key)} and another as {name}", "rename one")
        out[name] = values[key]
    return out


def _set(values: dict[str, Floats], named: str | None) -> tuple[str | None, list[str]]:
    """(prefix of the evaluation set whose log-probabilities are the table's `logp`, names of those that have some)."""
    found = {match[1] for key in values if (match := _LOGPS.fullmatch(key))}
    names = sorted(prefix.removeprefix("eval").removeprefix("_") for prefix in found)
    wanted = "eval" if named is None else f"eval_{named}"
    if wanted in found:
        return wanted, names
    if named is not None:
        fail(f"an evaluation set among {show(names)}", show(named), "name one of them")
    return (found.pop() if len(found) == 1 else None), names


def read_trl(
    path: str | Path, /, *, stage: str = "unknown", arm: str = "unknown", evaluation: str | None = None
) -> xr.Dataset:
    """One run from its trainer state: the file, by whatever name, or the folder that holds it or its checkpoints.

    Log-probabilities are nats per response as logged, means over the evaluation set; `step` counts updates; `has_step0`
    says whether there is an evaluation at step 0 (`eval_on_start=True`). `evaluation` names the set where several were
    logged by name and none without; left out, none of them is `logp`. Attr `n_examples` is there where duration × rate
    of the evaluations leaves one number. Of several checkpoints the one that contains the others is read.
    Raises TrajectoryError for what cannot be read without guessing: cut or foreign files, rows without a step, text
    where numbers belong, log-probabilities above 0, checkpoints of different runs.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "any.name"
    >>> rows = [{"step": 10, "eval_logps/chosen": -3.0}, {"step": 0, "eval_logps/chosen": -2.5}]
    >>> _ = path.write_text(json.dumps({"log_history": rows}))
    >>> ds = read_trl(path, stage="dpo")
    >>> ds.step.values.tolist(), ds.logp.sel(probe="chosen").values.ravel().tolist(), ds.attrs["has_step0"]
    ([0, 10], [-2.5, -3.0], 1)
    """
    state = _newest(Path(path))
    log = _log(state)
    values = {key: column for key, column in log.values.items() if np.isfinite(column).any()}
    if not values.keys() - {"epoch"}:
        fail("a finite number in log_history", f"none in {state.name}", "name the state of a run that trained")
    prefix, names = _set(values, evaluation)
    logp = np.full((1, log.step.size, len(_PAIR), 1), np.nan)
    for i, side in enumerate(_PAIR):
        key = f"{prefix}_logps/{side}"
        if prefix is not None and key in values:
            logp[0, :, i, 0] = column = values.pop(key)
            if (above := np.flatnonzero(column > 0)).size:
                got = f"{column[above[0]]:.6g} at step {log.step[above[0]]} of {state.name}"
                do = "these are other numbers (logits, rewards, a loss?): rename the key"
                fail(f"log-probabilities, never above 0, as {show(key)}", got, do)
    notes = [("means-only", "each value is a mean over an evaluation set or over the batches of some updates")]
    if prefix is None and names:
        text = f"evaluation sets {_few(map(show, names))} were logged by name: none is taken as logp (evaluation=)"
        notes.append(("means-only", text))
    whole = {name: _whole(state.rest.get(key)) for name, key in _ATTRS.items()}
    return trajectory(
        {"logp": logp, **{name: column[None] for name, column in _table(values).items()}},
        step=log.step,
        probe=_PAIR,
        world="published",
        stage=stage,
        arm=arm,
        has_step0=bool(np.isfinite(logp[0, log.step == 0]).any()),
        notes=notes + log.notes,
        attrs={
            **whole,
            "n_examples": log.examples.get(prefix or "eval"),
            "evaluation": None if prefix in (None, "eval") else _plain(str(prefix)).removeprefix("eval_"),
            "fingerprints": {state.name: state.digest},
        },
    )
