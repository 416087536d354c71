"""The run folder: run.json, then one NetCDF file an evaluation, so that a run can be read while it goes on and resumed.

    run.json                            schema, command, stages, versions, commit, config; written first
    <stage>-<arm>/eval-<step>.nc        one evaluation, all its seeds; the step in 8 digits
    <stage>-<arm>/state-<step>.safetensors    what a resumed run goes on from (`toyld.trajectory.states`)
    verdict.json, ...                   whatever is written at the end

Every file is written whole or not at all, so a killed run loses at most the evaluation under way, and what it leaves is
a hidden temporary file that nobody reads. Reading goes by content: stage, arm, seed and step stand inside the files,
and folders and files may be renamed. One process writes a folder at a time; any number may read it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xarray as xr

from toyld.checked import TrajectoryError, fail
from toyld.checkout import checkout
from toyld.trajectory._sniff import find
from toyld.trajectory.combine import _join, _note_repeats, concat
from toyld.trajectory.states import SavedState, load_state, save_state, states
from toyld.trajectory.storage import _write, load, save
from toyld.trajectory.table import validate

__all__ = ["RunFolder", "read_folder"]

SCHEMA = 1
_PACKAGES = ("toyld", "numpy", "scipy", "xarray", "torch", "transformers", "trl", "peft")
_KEYS = ("schema", "command", "stages", "config")


@dataclass(frozen=True)
class RunFolder:
    """A run being written; open it with `RunFolder.create`.

    >>> import tempfile
    >>> from toyld.trajectory import trajectory
    >>> path = Path(tempfile.mkdtemp()) / "out"
    >>> run = RunFolder.create(path, command="toyld run digits", config={"lr": 0.1}, stages=["sft"])
    >>> for step in (0, 100):
    ...     table = {"logp": [[[[-3.0 + step / 100]]]]}
    ...     file = run.write(trajectory(table, step=[step], probe=["chosen"], stage="sft", arm="baseline"))
    >>> file.relative_to(path).as_posix(), run.steps("sft", "baseline")
    ('sft-baseline/eval-00000100.nc', [0, 100])
    >>> [ds.logp.values.ravel().tolist() for ds in read_folder(path)]
    [[-3.0, -2.0]]
    """

    path: Path
    stages: tuple[str, ...]

    @classmethod
    def create(
        cls,
        path: str | Path,
        /,
        *,
        command: str,
        config: Mapping[str, Any],
        stages: Sequence[str],
        resume: bool = False,
    ) -> RunFolder:
        """Start a run in a new folder, or with `resume` go on with the one that is there: its config must be the same.

        `config`: whatever determines the result, as JSON. `stages`: their names in order. A resumed run under other
        versions or another commit is noted in run.json under `resumed`.
        Raises TrajectoryError: a run is there and `resume` is not set; another config; evaluations without run.json.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp())
        >>> _ = RunFolder.create(path, command="toyld run digits", config={"lr": 1}, stages=["sft"])
        >>> _ = RunFolder.create(path, command="toyld run digits", config={"lr": 2}, stages=["sft"], resume=True)
        Traceback (most recent call last):
        toyld.checked.TrajectoryError: expected the run that is there, got config.lr = 2, was 1: name another folder
        """
        path = Path(path)
        if isinstance(stages, str) or not stages or len(set(stages)) < len(stages):
            fail("the names of the stages, each once", ascii(stages)[:60], "name at least one")
        for stage in stages:
            _plain("stage", stage)
        text = _json({"schema": SCHEMA, "command": command, "stages": list(stages), **_origin(), "config": config})
        mine = json.loads(text)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail("a folder to write in", f"{path.name}: {error.strerror}", "name another")
        found = find(path)
        there = _run_json(path, found)
        if there is None and "netcdf" in found:
            files = ", ".join(str(f.relative_to(path)) for f in found["netcdf"][:3])
            fail("an empty folder or a run folder", f"tables without a run.json ({files})", "name another folder")
        if there is None:
            _write(path / "run.json", text)
            return cls(path, tuple(stages))
        file, old = there
        if not resume:
            fail("a new folder", f"{path.name} with a run in it", "pass --resume to go on with it, or name another")
        if file.parent != path:
            fail("a run folder", f"{path.name} with one inside ({file.relative_to(path)})", "name that one or another")
        _same_run(old, mine)
        origin = {key: mine.get(key) for key in ("versions", "commit")}
        resumed = old["resumed"] if isinstance(old.get("resumed"), list) else []
        last = resumed[-1] if resumed else old
        if not isinstance(last, dict) or {key: last.get(key) for key in origin} != origin:
            _write(file, _json({**old, "resumed": [*resumed, {"command": command, **origin}]}))
        return cls(path, tuple(stages))

    def write(self, ds: xr.Dataset, /) -> Path:
        """Write one evaluation (one step, of the stage and arm in its attributes); its file.

        `has_step0` is set by the step: 1 where it is 0. Where the step is there already, other seeds (or probes) join
        it; equal values are left as they are, and TrajectoryError is raised for values that differ.
        """
        validate(ds)
        if ds.sizes["step"] != 1:
            fail("one evaluation", f"{ds.sizes['step']} steps", "write each step by itself, ds.isel(step=[i])")
        stage, arm, step = str(ds.attrs["stage"]), str(ds.attrs["arm"]), int(ds.step.values[0])
        if stage not in self.stages:
            fail(f"a stage among {', '.join(self.stages)}", ascii(stage)[:60], "name it when the run is created")
        _plain("arm", arm)
        ds = ds.assign_attrs(has_step0=int(step == 0))
        path = self.path / f"{stage}-{arm}" / f"eval-{step:08d}.nc"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            fail("a folder to write in", f"{path.parent.name}: {error.strerror}", "check its permissions and its space")
        if path.exists():
            old = load(path)
            ds = _join([old, ds], [f"{path.parent.name}/{path.name}", "the new evaluation"])[0]
            if ds.drop_attrs().identical(concat([old]).drop_attrs()):
                return path
        save(ds, path)
        return path

    def steps(self, stage: str, arm: str, /, *, seed: int | None = None) -> list[int]:
        """The steps that are there (for a seed, where one is given): what a resumed run need not do again."""
        done: set[int] = set()
        for file in find(self.path).get("netcdf", []):
            ds = _load(self.path, file)
            if (ds.attrs["stage"], ds.attrs["arm"]) == (stage, arm) and (seed is None or seed in ds.seed.values):
                done.update(ds.step.values.tolist())
        return sorted(done)

    def write_state(self, stage: str, arm: str, step: int, arrays: Mapping[str, Any], /, *, beside: Any = None) -> Path:
        """Write what a resumed run needs to go on after `step` updates; the last two states are kept. Its file.

        Write it after the evaluation of the same step: then no state is ahead of what was measured.
        """
        if stage not in self.stages:
            fail(f"a stage among {', '.join(self.stages)}", ascii(stage)[:60], "name it when the run is created")
        _plain("arm", arm)
        return save_state(self.path / f"{stage}-{arm}", step, arrays, beside=beside)

    def state(self, stage: str, arm: str, /, *, until: int) -> SavedState | None:
        """The last state of at most `until` updates, None where there is none: the stage starts anew then."""
        there = [file for step, file in states(self.path / f"{stage}-{arm}").items() if step <= until]
        return load_state(there[-1]) if there else None

    def write_json(self, name: str, value: Any, /) -> Path:
        """Write a JSON file beside run.json, verdict.json for one, whole or not at all; its path."""
        if not re.fullmatch(r"\w[\w.-]*\.json", name) or name == "run.json":
            fail("a name like verdict.json", ascii(name)[:60], "use letters, digits, _ and - before .json")
        _write(self.path / name, _json(value))
        return self.path / name


def read_folder(path: str | Path, /) -> list[xr.Dataset]:
    """Every stage of every arm in a run folder, one table each, in order of run.json's stages, then of arms.

    The evaluations of each are joined as `concat` does it. A folder without run.json is read too. Hidden files, which
    a killed writer may leave, are passed over; any other file named .nc must be whole.
    Raises TrajectoryError: no evaluation yet, a damaged one, two that contradict each other, two runs.

    >>> import tempfile
    >>> from toyld.trajectory import trajectory
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (0, 10):
    ...     save(trajectory({"loss": [[1.0]]}, step=[step], probe=["chosen"]), folder / f"any.name.{step}")
    >>> [ds.step.values.tolist() for ds in read_folder(folder)]
    [[0, 10]]
    """
    path = Path(path)
    found = find(path)
    run = _run_json(path, found)
    for kind in found.keys() - {"netcdf"}:
        if damaged := [file for file in found[kind] if file.suffix == ".nc"]:
            why = "a Git-LFS pointer" if kind == "lfs" else "damaged or another format"
            got = f"{damaged[0].relative_to(path)}, {why}"
            do = "fetch it with `git lfs pull`" if kind == "lfs" else "remove it, and resume the run to write it again"
            fail("NetCDF-3 in every file named .nc", got, do)
    files = found.get("netcdf", [])
    if not files and run is not None:
        do = "wait for the first one (a sweep has none: it is told in its summary.csv)"
        fail("a run with an evaluation", f"{path.name} with run.json and no evaluation yet", do)
    if not files:
        fail("a run folder", f"{path.name} without any evaluation", "name the folder that holds run.json")
    groups: dict[tuple[str, str], list[tuple[xr.Dataset, str]]] = {}
    for file in files:
        ds = _load(path, file)
        groups.setdefault((ds.attrs["stage"], ds.attrs["arm"]), []).append((ds, str(file.relative_to(path))))
    stages = run[1]["stages"] if run else []
    order = sorted(groups, key=lambda g: (stages.index(g[0]) if g[0] in stages else len(stages), g))
    out = []
    for group in order:
        parts, names = zip(*groups[group], strict=True)
        out.append(_note_repeats(*_join(list(parts), list(names))))
    return out


def _load(folder: Path, file: Path) -> xr.Dataset:
    """A table, its place in the folder named where it cannot be read."""
    try:
        return load(file)
    except TrajectoryError as error:
        fail("whole evaluations", f"{file.relative_to(folder)} ({error})", "remove it, and resume the run")


def _run_json(folder: Path, found: dict[str, list[Path]]) -> tuple[Path, dict[str, Any]] | None:
    """The folder's run.json, known by its keys whatever its name, or None."""
    runs: list[tuple[Path, dict[str, Any]]] = []
    for file in found.get("run", []):
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            got = f"{file.relative_to(folder)} ({type(error).__name__})"
            fail("a whole run.json", got, "restore it; without it the evaluations can still be read")
        if not isinstance(value, dict) or any(key not in value for key in _KEYS):
            continue
        stages, config = value["stages"], value["config"]
        names = isinstance(stages, list) and all(isinstance(stage, str) for stage in stages)
        if value["schema"] != SCHEMA or not names or not isinstance(config, dict):
            got = f"{file.relative_to(folder)} with schema {ascii(value['schema'])[:20]}"
            fail(f"run.json of schema {SCHEMA}, stages a list, config an object", got, "use the version that wrote it")
        if value not in [run for _, run in runs]:
            runs.append((file, value))
    if len(runs) > 1:
        names_ = ", ".join(str(file.relative_to(folder)) for file, _ in runs[:3])
        fail("one run in a folder", f"{len(runs)} ({names_})", "name one of their folders")
    return runs[0] if runs else None


def _plain(what: str, name: str) -> None:
    """Names become parts of a path: <stage>-<arm>, told apart by the first dash."""
    pattern = r"[A-Za-z0-9_]+" if what == "stage" else r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    if not isinstance(name, str) or not re.fullmatch(pattern, name):
        fail(f"a {what} named in letters, digits and _", ascii(name)[:60], "rename it")


def _json(value: Any) -> bytes:
    try:
        return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        fail("values that JSON can hold", str(error)[:80], "convert them: strings, finite numbers, lists, mappings")


def _same_run(old: dict[str, Any], new: dict[str, Any]) -> None:
    """One line with the first keys that differ, unless stages and config are the same."""
    was, now = (_flat({key: run[key] for key in ("stages", "config")}) for run in (old, new))
    if differ := sorted(key for key in {**was, **now} if was.get(key, ...) != now.get(key, ...)):
        shown = [f"{key} = {_show(now, key)}, was {_show(was, key)}" for key in differ[:3]]
        more = f"; and {len(differ) - 3} more" if len(differ) > 3 else ""
        fail("the run that is there", "; ".join(shown) + more, "name another folder")


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys, so that a difference is named where it is."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        out |= _flat(value, f"{before}{key}.") if isinstance(value, dict) and value else {f"{before}{key}": value}
    return out


def _show(config: dict[str, Any], key: str) -> str:
    return ascii(config[key])[:40] if key in config else "not set"


def _origin() -> dict[str, Any]:
    """Versions of what computes, and the commit where the package lies in a checkout."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = checkout()["commit"]
    return {"versions": versions} if commit is None else {"versions": versions, "commit": commit}
