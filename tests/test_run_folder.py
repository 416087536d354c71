"""The run folder: killed at any moment it opens, resumed it ends as if nothing had been, renamed it is the same."""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

from toyld.trajectory import RunFolder, TrajectoryError, _sniff, load, notes, read_all, read_folder, save, trajectory
from toyld.trajectory import folder as module
from toyld.trajectory._sniff import sniff

ABOUT = {"command": "toyld run digits", "config": {"lr": 0.1, "dpo": {"beta": 0.1}}, "stages": ["sft", "dpo"]}
PLAN = [("sft", "baseline", 0), ("sft", "baseline", 10), ("sft", "baseline", 20)]
PLAN += [("dpo", arm, step) for arm in ("baseline", "extend") for step in (0, 10)]
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run


def evaluation(stage, arm, step, seeds=(0, 1)):
    """What a world measures at a step: a function of its place alone, as in a run that is bit-identical."""
    values = [np.random.default_rng([s, step, len(stage), len(arm)]).exponential(5, (1, 2, 3)) for s in seeds]
    return trajectory(
        {"logp": -np.stack(values), "loss": np.full((len(seeds), 1), step / 7)},
        step=[step],
        probe=["chosen", "rejected"],
        example=["a", "b", "c"],
        seed=seeds,
        examples_seen=[4 * step],
        world="digits",
        stage=stage,
        arm=arm,
        has_step0=step == 0,
    )


def work(path, done=lambda: None, resume=False):
    run = RunFolder.create(path, **ABOUT, resume=resume)
    there = {pair: run.steps(*pair) if resume else [] for pair in dict.fromkeys(place[:2] for place in PLAN)}
    for stage, arm, step in PLAN:
        if step not in there[stage, arm]:
            run.write(evaluation(stage, arm, step))
            done()
    run.write_json("verdict.json", {"schema": 1, "runs": []})


def tree(path):
    """Every file with its bytes, but for what a killed writer leaves."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    work(path)
    return path


def assert_refused(match, action, *arguments, **options):
    with pytest.raises(TrajectoryError, match=match) as error:
        action(*arguments, **options)
    assert str(error.value).isprintable()


def assert_prefix(path, reported):
    """What is there is what was written first, bit by bit; all that was reported, and one more at most."""
    if not list(path.rglob("eval-*.nc")):
        assert reported == 0
        assert_refused(
            "no evaluation yet" if (path / "run.json").exists() else "got none in|No such file", read_all, path
        )
        return 0
    runs = read_all(path)
    there = [(ds.attrs["stage"], ds.attrs["arm"], step) for ds in runs for step in ds.step.values.tolist()]
    assert there == PLAN[: len(there)]
    assert reported <= len(there) <= reported + 1
    for ds in runs:
        for step in ds.step.values.tolist():
            wanted = evaluation(ds.attrs["stage"], ds.attrs["arm"], step)
            for name in ("logp", "loss"):
                np.testing.assert_array_equal(ds[name].sel(step=[step]).values, wanted[name].values)
    return len(there)


def forked(action):
    """A child process that does it and never comes back; its id, and the end of a pipe it may write to."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(out)
            action(lambda: os.write(into, b"."))
        finally:
            os._exit(0)
    os.close(into)
    return child, out


def ended(child, out):
    """(how it ended, how much it reported)"""
    with os.fdopen(out, "rb") as pipe:
        _, status = os.waitpid(child, 0)
        return status, len(pipe.read())


# --- killed ---------------------------------------------------------------------------------------------------------


@forks
def test_killed_at_50_random_moments_it_opens_and_resumes_to_the_same_bytes(tmp_path, whole, monkeypatch):
    origin = module._origin()
    monkeypatch.setattr(module, "_origin", lambda: origin)  # asking git takes longer than all the writing
    cpu = time.process_time()
    durations = []
    for i in range(5):  # as the children take it, not as this process does
        start = time.perf_counter()
        ended(*forked(lambda report, path=tmp_path / f"timed-{i}": work(path, report)))
        durations.append(time.perf_counter() - start)
    duration = sorted(durations)[2]
    wanted = read_folder(whole)
    moments = random.Random(0)
    found = []
    for i in range(50):
        path = tmp_path / f"run-{i}"
        child, out = forked(lambda report, path=path: work(path, report))
        time.sleep(moments.uniform(0, 1.1 * duration))
        os.kill(child, 9)
        status, reported = ended(child, out)
        found.append(assert_prefix(path, reported))
        assert os.WIFSIGNALED(status) or reported == len(PLAN), "the child ended by itself before the run was done"
        work(path, resume=True)
        assert tree(path) == tree(whole)
        for ours, theirs in zip(read_folder(path), wanted, strict=True):
            xr.testing.assert_identical(ours, theirs)
    assert len(set(found)) >= 4, f"the moments were not spread over the run: {found}"
    assert time.process_time() - cpu < 20, "other programs' time is not counted"


@forks
def test_killed_before_and_after_every_call_that_changes_the_disk(tmp_path, whole, monkeypatch):
    calls = itertools.count()
    fatal = [-1]

    def counted(function):
        def call(*arguments, **options):
            if next(calls) == fatal[0]:
                os.kill(os.getpid(), 9)
            return function(*arguments, **options)

        return call

    for owner, name in [(os, "fsync"), (type(tmp_path), "replace"), (type(tmp_path), "mkdir")]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    monkeypatch.setattr(module, "_origin", lambda: {"versions": {}})
    work(tmp_path / "counted")
    total = next(calls)
    assert total > 3 * len(PLAN)
    found = []
    for k in range(total):
        path = tmp_path / f"run-{k}"

        def die(report, path=path, k=k):
            fatal[0] = next(calls) + 1 + k
            work(path, report)

        status, reported = ended(*forked(die))
        assert os.WTERMSIG(status) == 9, k
        found.append(assert_prefix(path, reported))
    assert found == sorted(found)
    assert set(found) == set(range(len(PLAN) + 1))


@forks
def test_it_is_read_while_another_process_writes_it_and_removes_old_states(tmp_path):
    path = tmp_path / "run"

    def write(report):
        run = RunFolder.create(path, **ABOUT)
        for stage, arm, step in PLAN:
            run.write(evaluation(stage, arm, step))
            state = path / f"{stage}-{arm}" / f"state-{step}.safetensors"
            state.write_bytes(b"state")
            report()
            for old in sorted(state.parent.glob("state-*"))[:-1]:
                old.unlink()

    child, out = forked(write)
    seen = []
    while not seen or seen[-1] < len(PLAN):
        try:
            runs = read_all(path)
        except TrajectoryError:
            runs = []  # nothing yet, which the next line holds against what was seen before
        there = [(ds.attrs["stage"], ds.attrs["arm"], step) for ds in runs for step in ds.step.values.tolist()]
        assert there == PLAN[: len(there)]
        assert len(there) >= max(seen, default=0)
        seen.append(len(there))
        if os.waitpid(child, os.WNOHANG)[0]:
            break
    os.close(out)
    assert_prefix(path, len(PLAN))


def test_a_state_removed_while_the_folder_is_listed_is_passed_over(tmp_path, whole, monkeypatch):
    path = shutil.copytree(whole, tmp_path / "run")
    state = path / "sft-baseline" / "state-10.safetensors"
    state.write_bytes(b"state")

    def late(file):
        if file == state:
            state.unlink()
        return sniff(file)

    monkeypatch.setattr(_sniff, "sniff", late)
    for ours, theirs in zip(read_folder(path), read_folder(whole), strict=True):
        xr.testing.assert_identical(ours, theirs)
    assert not state.exists()


# --- writing and resuming -------------------------------------------------------------------------------------------


def test_the_layout_is_the_documented_one(whole):
    files = {f"{stage}-{arm}/eval-{step:08d}.nc" for stage, arm, step in PLAN} | {"run.json", "verdict.json"}
    assert set(tree(whole)) == files
    run = json.loads((whole / "run.json").read_text())
    assert {key: run[key] for key in ("schema", *ABOUT)} == {"schema": 1, **ABOUT}
    assert {"python", "numpy", "xarray"} <= set(run["versions"])
    assert run["versions"]["numpy"] == np.__version__
    for ds in read_folder(whole):
        assert ds.attrs["has_step0"] == 1
        assert ds.examples_seen.values.tolist() == [4 * step for step in ds.step.values.tolist()]


def test_the_commit_is_that_of_the_checkout_where_there_is_one(monkeypatch, tmp_path):
    here = os.path.dirname(module.__file__)

    def git(*arguments):
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True).stdout.strip()

    assert module._origin().get("commit") == (git("rev-parse", "HEAD") if git("ls-files", "__init__.py") else None)
    monkeypatch.setattr(sys.modules["toyld.checkout"], "__file__", str(tmp_path / "checkout.py"))
    assert "commit" not in module._origin()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "commit" not in module._origin()


def test_a_second_run_in_a_folder_needs_resume_and_the_same_config(tmp_path, whole):
    work(tmp_path / "run")
    before = tree(tmp_path / "run")
    assert_refused("a new folder, got run with a run in it: pass --resume", RunFolder.create, tmp_path / "run", **ABOUT)
    other = {
        "config.dpo.beta = 0.2, was 0.1": {"config": {"lr": 0.1, "dpo": {"beta": 0.2}}},
        "config.lr = not set, was 0.1; config.new = None, was not set": {"config": {"dpo": {"beta": 0.1}, "new": None}},
        "stages = \\['sft'\\]": {"stages": ["sft"]},
        "; and 3 more": {"config": {f"x{i}": i for i in range(4)}},
    }
    for match, changed in other.items():
        assert_refused(match, RunFolder.create, tmp_path / "run", **{**ABOUT, **changed}, resume=True)
    work(tmp_path / "run", resume=True)
    assert tree(tmp_path / "run") == before == tree(whole)


def test_resuming_what_is_not_there_starts_it(tmp_path, whole):
    work(tmp_path / "deep" / "run", resume=True)
    assert tree(tmp_path / "deep" / "run") == tree(whole)


def test_a_run_resumed_under_other_versions_says_so(tmp_path, monkeypatch):
    work(tmp_path)
    origin = module._origin()
    monkeypatch.setattr(module, "_origin", lambda: {**origin, "versions": {"python": "4.0"}})
    for _ in range(2):
        RunFolder.create(tmp_path, **{**ABOUT, "command": "toyld run digits --resume"}, resume=True)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["versions"] == origin["versions"]
    assert [(r["command"], r["versions"]) for r in run["resumed"]] == [
        ("toyld run digits --resume", {"python": "4.0"})
    ], "once, not at every start"
    monkeypatch.undo()
    RunFolder.create(tmp_path, **ABOUT, resume=True)
    assert len(json.loads((tmp_path / "run.json").read_text())["resumed"]) == 2


def test_other_seeds_and_probes_of_a_step_join_it_and_equal_ones_change_nothing(tmp_path):
    run = RunFolder.create(tmp_path, **ABOUT)
    full = evaluation("sft", "baseline", 10, seeds=(0, 1, 2))
    file = run.write(full.isel(seed=[1]))
    assert run.steps("sft", "baseline") == run.steps("sft", "baseline", seed=1) == [10]
    assert run.steps("sft", "baseline", seed=0) == run.steps("sft", "extend") == []
    assert run.write(full.isel(seed=[2, 0])) == file
    xr.testing.assert_identical(load(file), full)
    inode = file.stat().st_ino
    run.write(full.isel(seed=[0], probe=[1]))
    assert file.stat().st_ino == inode, "not written again"
    xr.testing.assert_identical(read_folder(tmp_path)[0], full)
    wrong = full.assign(logp=full.logp - 1e-9)
    assert_refused(
        "equal values of logp.*(sft-baseline/eval-00000010.nc.*the new|the new evaluation.*eval-00000010.nc)",
        run.write,
        wrong,
    )
    xr.testing.assert_identical(load(file), full)


def test_row_0_is_before_the_first_update_where_the_step_is_0(tmp_path):
    run = RunFolder.create(tmp_path, **ABOUT)
    for step in (0, 10):
        file = run.write(evaluation("sft", "baseline", step).assign_attrs(has_step0=1 - (step == 0)))
        assert load(file).attrs["has_step0"] == (step == 0)


def test_bad_arguments_are_refused_in_one_line(tmp_path, monkeypatch):
    for match, changed in {
        "a stage named in letters": {"stages": ["sft/.."]},
        "each once": {"stages": ["sft", "sft"]},
        "name at least one": {"stages": []},
        "got 'sft'": {"stages": "sft"},
        "JSON can hold": {"config": {"lr": float("nan")}},
        "values that JSON": {"config": {"lr": np.float32(1)}},
    }.items():
        assert_refused(match, RunFolder.create, tmp_path / "new", **{**ABOUT, **changed})
    assert not (tmp_path / "new").exists()
    run = RunFolder.create(tmp_path / "run", **ABOUT)
    one = evaluation("sft", "baseline", 0)
    assert_refused("one evaluation, got 2 steps", run.write, xr.concat([one, evaluation("sft", "baseline", 5)], "step"))
    assert_refused("a stage among sft, dpo, got 'grpo'", run.write, one.assign_attrs(stage="grpo"))
    for arm in ("../x", "", ".hidden", "a\nb", "a/b", "é"):
        assert_refused("an? arm named|printable", run.write, one.assign_attrs(arm=arm))
    assert_refused("an xarray.Dataset", run.write, {"logp": 1})
    for name in ("run.json", "../verdict.json", "verdict.txt", ".json", "a/b.json"):
        assert_refused("a name like verdict.json", run.write_json, name, {})
    assert_refused("JSON can hold", run.write_json, "verdict.json", {"x": float("inf")})
    assert sorted(os.listdir(tmp_path / "run")) == ["run.json"]
    (tmp_path / "file").write_text("")
    assert_refused("a folder to write in", RunFolder.create, tmp_path / "file", **ABOUT)
    (tmp_path / "run" / "sft-baseline").write_text("")
    assert_refused("a folder to write in", run.write, one)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert_refused("No space left", run.write, one.assign_attrs(arm="extend"))
    assert_refused("No space left", run.write_json, "verdict.json", {})
    assert_refused("No space left", RunFolder.create, tmp_path / "new", **ABOUT)


def test_tables_or_another_run_in_the_folder_are_not_mixed_with_a_new_run(tmp_path, whole):
    save(evaluation("sft", "baseline", 0), tmp_path / "old.nc")
    for resume in (False, True):
        assert_refused("tables without a run.json \\(old.nc\\)", RunFolder.create, tmp_path, **ABOUT, resume=resume)
    outer = tmp_path / "outer"
    shutil.copytree(whole, outer / "inner")
    assert_refused("with a run in it", RunFolder.create, outer, **ABOUT)
    assert_refused("with one inside \\(inner/run.json\\)", RunFolder.create, outer, **ABOUT, resume=True)


# --- reading --------------------------------------------------------------------------------------------------------


def renamed(source, target, seed):
    """The same files under other names, in other folders."""
    rng = random.Random(seed)
    for i, (_, payload) in enumerate(sorted(tree(source).items(), key=lambda _: rng.random())):
        folder = target / rng.choice(["", "ä b", "x/y", "verdict.json.d"])
        folder.mkdir(parents=True, exist_ok=True)
        name = rng.choice([f"{rng.random()}", f"run{i}.json", f"état {i}.nc", f"eval-{i}.txt"])
        if payload[:3] != b"CDF":
            name = name.removesuffix(".nc")  # a file named so must be one
        (folder / name).write_bytes(payload)
    return target


def test_renaming_every_file_and_folder_changes_nothing(tmp_path, whole):
    wanted = read_all(whole)
    assert [(ds.attrs["stage"], ds.attrs["arm"]) for ds in wanted] == [
        ("sft", "baseline"),
        ("dpo", "baseline"),
        ("dpo", "extend"),
    ], "the order of the stages is that of run.json"
    for seed in range(8):
        found = read_all(renamed(whole, tmp_path / f"{seed}", seed))
        for ours, theirs in zip(found, wanted, strict=True):
            xr.testing.assert_identical(ours, theirs)


def test_without_run_json_the_order_is_that_of_the_names_inside(tmp_path, whole):
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("*.json"))
    found = {(ds.attrs["stage"], ds.attrs["arm"]): ds for ds in read_folder(tmp_path / "run")}
    assert list(found) == [("dpo", "baseline"), ("dpo", "extend"), ("sft", "baseline")]
    for ds in read_folder(whole):
        xr.testing.assert_identical(found[ds.attrs["stage"], ds.attrs["arm"]], ds)


def test_copies_are_noted_and_kept_once_and_other_files_left_alone(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "run")
    shutil.copy(path / "sft-baseline" / "eval-00000010.nc", path / "copy of eval")
    (path / "sft-baseline" / ".eval-00000030.nc.123.part").write_bytes(b"CDF\x02 half")
    (path / "state-10.safetensors").write_bytes(b"{" * 100)
    (path / "run copy.json").write_bytes((path / "run.json").read_bytes())
    found, wanted = read_folder(path), read_folder(whole)
    assert [[note["code"] for note in notes(ds)] for ds in found] == [["duplicate-rows"], [], []]
    assert "steps [10]" in notes(found[0])[0]["text"]
    for ours, theirs in zip(found, wanted, strict=True):
        xr.testing.assert_identical(ours.drop_attrs(deep=False), theirs.drop_attrs(deep=False))


def test_evaluations_that_differ_are_refused_with_both_files(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "run")
    wrong = evaluation("sft", "baseline", 10)
    save(wrong.assign(logp=wrong.logp * (1 + 1e-12)), path / "again.nc")
    assert_refused("logp.*(sft-baseline/eval-00000010.nc.*again.nc|again.nc.*eval-00000010.nc)", read_folder, path)


@pytest.mark.parametrize("payload", [b"", b"\0" * 500, b"\x89HDF\r\n", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_damaged_evaluation_is_named_and_never_dropped(tmp_path, whole, payload):
    path = shutil.copytree(whole, tmp_path / "run")
    (path / "dpo-extend" / "eval-00000010.nc").write_bytes(payload)
    assert_refused("dpo-extend/eval-00000010.nc", read_folder, path)
    run = json.loads((path / "run.json").read_text())
    about = {key: run[key] for key in ABOUT}
    assert 10 not in RunFolder.create(path, **about, resume=True).steps("dpo", "extend")


def test_an_evaluation_cut_short_is_named(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "run")
    file = path / "dpo-extend" / "eval-00000010.nc"
    payload = file.read_bytes()
    for length in (4, 100, len(payload) // 2, len(payload) - 1):
        file.write_bytes(payload[:length])
        assert_refused("whole evaluations, got dpo-extend/eval-00000010.nc", read_folder, path)
        assert_refused("eval-00000010.nc", RunFolder.create(path, **ABOUT, resume=True).steps, "dpo", "extend")


def test_folders_that_hold_no_run_are_refused_in_one_line(tmp_path, whole):
    assert_refused("No such file", read_folder, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert_refused("without any evaluation", read_folder, tmp_path / "empty")
    RunFolder.create(tmp_path / "new", **ABOUT)
    assert_refused("run.json and no evaluation yet", read_folder, tmp_path / "new")
    assert_refused("run.json and no evaluation yet", read_all, tmp_path / "new")
    for name in ("one", "two"):
        shutil.copytree(whole, tmp_path / "both" / name)
    text = (tmp_path / "both" / "two" / "run.json").read_text()
    (tmp_path / "both" / "two" / "run.json").write_text(text.replace('"lr": 0.1', '"lr": 0.3'))
    assert_refused("one run in a folder, got 2 \\(one/run.json, two/run.json\\)", read_folder, tmp_path / "both")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda text: text[:-10], "a whole run.json"),
        (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 1.*schema 2"),
        (lambda text: text.replace('"schema": 1', '"schema": "' + "x\\u2028" * 50 + '"'), "schema 1"),
        (lambda text: text.replace('"sft",', "3,"), "stages a list"),
        (lambda text: text.replace('"config": {', '"config": 1, "other": {'), "config an object"),
    ],
)
def test_a_damaged_run_json_is_refused(tmp_path, whole, change, match):
    path = shutil.copytree(whole, tmp_path / "run")
    text = (path / "run.json").read_text()
    assert change(text) != text
    (path / "run.json").write_text(change(text))
    assert_refused(match, read_folder, path)
    assert_refused(match, RunFolder.create, path, **ABOUT, resume=True)
