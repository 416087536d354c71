"""`toyld run contexts`: what it computes, what it writes, and that a killed run ends with the same bytes."""

import itertools
import json
import os
import random
import time

import numpy as np
import pytest

from toyld import cli, contexts, objectives, running
from toyld.checked import TrajectoryError
from toyld.contexts import command
from toyld.contexts.command import SIZES, Plan, read_csv, to_csv
from toyld.contexts.kernels import COMPONENTS
from toyld.contexts.languages import KERNEL
from toyld.contexts.sweep import Grid
from toyld.diagnosis import CLASSES
from toyld.running import grid_of, plan_of
from toyld.trajectory import folder as folders
from toyld.trajectory import read_folder
from toyld.trajectory.states import KEPT, load_state, save_state, states

SMALL = {"concepts": 4, "prompts": 3, "length": 2, "function_words": 3}
PLAN = Plan(world=SMALL, seeds=(1000, 1001), sft_lr=0.3, sft_steps=8, lr=6.0, steps=12, evaluations=3)
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run


def tree(path):
    """Every file with its bytes, but for what a killed writer leaves."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    command.run(path, PLAN)
    return path


def main(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld run contexts …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "contexts", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


# --- what is computed -----------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_whole_stages_bit_for_bit(whole):
    world = contexts.languages.facts(seeds=PLAN.seeds, **SMALL)
    wanted = {}
    for arm, first, side in (("baseline", "sft", None), ("extend", "extend", "rejected")):
        sft = contexts.train(world, objectives.get(first), lr=0.3, steps=8, rejected=side, at=PLAN.marks("sft"))
        dpo = contexts.train(
            world, objectives.get("dpo"), lr=6.0, steps=12, state=sft.state, rejected="rejected", at=PLAN.marks("dpo")
        )
        wanted |= {("sft", arm): sft, ("dpo", arm): dpo}
    found = {(ds.attrs["stage"], ds.attrs["arm"]): ds for ds in read_folder(whole)}
    assert list(found) == [("sft", "baseline"), ("sft", "extend"), ("dpo", "baseline"), ("dpo", "extend")]
    for key, run in wanted.items():
        expected = run.table(*key)
        assert found[key].step.values.tolist() == list(run.steps)
        assert found[key].seed.values.tolist() == list(PLAN.seeds)
        for name in expected.data_vars:
            order = found[key][name].sel(probe=expected.probe) if "probe" in expected[name].dims else found[key][name]
            order = order.sel(example=expected.example) if "example" in order.dims else order
            np.testing.assert_array_equal(
                order.values.squeeze(), expected[name].values.squeeze(), err_msg=f"{key} {name}"
            )


def test_the_run_says_what_it_was(whole):
    run = json.loads((whole / "run.json").read_text())
    assert (run["command"], run["stages"]) == ("toyld run contexts", ["sft", "dpo"])
    assert run["config"]["kernel"] == dict(contexts.languages.KERNEL)
    dpo = read_folder(whole)[2]
    assert dpo.attrs["objective"] == "dpo"
    assert dpo.attrs["sft_examples"] == 8 * 3
    assert dpo.attrs["temperature"] == 1.0


@pytest.mark.parametrize("language", ["facts", "markov"])
def test_options_reach_the_run(language, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "diagnose", lambda paths, json_file: len(paths))  # 1: as if a check had failed
    options = ["--language", language, "--seeds", 2, "--first-seed", 1000, "--objective", "ipo", "--beta", 0.3]
    options += ["--lr", 5, "--steps", 4, "--sft-lr", 0.2, "--sft-steps", 3, "--temperature", 4, "--evaluations", 2]
    options += ["--kernel", "common=0.3", "identity=0.6", "--size", "smoke"]
    code, out, err = main(capsys, "--out", tmp_path / "run", *options)
    assert (code, out, err) == (1, "", "")
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["kernel"] == {"identity": 0.6, "common": 0.3, "prompt": 0.2, "token": 0.2}
    assert config["parameters"] == {"beta": 0.3}
    assert (config["seeds"], config["lr"], config["temperature"]) == ([1000, 1001], 5.0, 4.0)
    ipo = read_folder(tmp_path / "run")[2]
    assert ipo.attrs["stage"] == "ipo"
    assert ipo.step.values.tolist() == [0, 2, 4]
    assert json.loads(ipo.attrs["parameters"]) == {"beta": 0.3}


def test_sizes_differ_in_numbers_alone():
    small, large = plan_of("smoke"), plan_of("paper")
    assert len(small.seeds) < len(large.seeds) == 32
    assert small.sft_lr / small.world["prompts"] == pytest.approx(large.sft_lr / 12)
    assert grid_of("smoke").runs < grid_of("paper").runs
    assert plan_of("smoke", common=(0.7,)).kernel["common"] == 0.7


def test_the_verdict_is_what_diagnose_says(tmp_path, capsys):
    code, out, _ = main(capsys, "--out", tmp_path / "run", "--size", "smoke", "--seeds", 1, "--evaluations", 2)
    assert code == 0
    assert "dpo-extend" in out
    mine = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert [run["verdict"] in CLASSES for run in mine["runs"]] == [True] * 4
    with pytest.raises(SystemExit):
        cli.main(["diagnose", str(tmp_path / "run"), "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == mine


# --- killed and resumed ---------------------------------------------------------------------------------------------


@forks
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(tmp_path, whole, monkeypatch):
    origin = folders._origin()
    monkeypatch.setattr(folders, "_origin", lambda: origin)  # asking git takes longer than an evaluation

    def child(path):
        pid = os.fork()
        if pid == 0:
            try:
                command.run(path, PLAN)
            finally:
                os._exit(0)
        return pid

    start = time.perf_counter()
    os.waitpid(child(tmp_path / "timed"), 0)
    duration = time.perf_counter() - start
    moments, found = random.Random(0), []
    for i in range(5):
        path = tmp_path / f"run-{i}"
        pid = child(path)
        time.sleep(duration * (i + moments.random()) / 5)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        found.append(len(list(path.rglob("eval-*.nc"))))
        command.run(path, PLAN, resume=True)
        assert tree(path) == tree(whole)
    assert len(set(found)) >= 3, f"the moments were not spread over the run: {found}"


def test_a_resumed_run_computes_only_what_is_missing(tmp_path, whole, monkeypatch):
    import shutil

    path, calls = shutil.copytree(whole, tmp_path / "run"), []
    train = command.train
    monkeypatch.setattr(command, "train", lambda *a, **k: calls.append(k["steps"]) or train(*a, **k))
    command.run(path, PLAN, resume=True)
    assert calls == [1], "the trial of the objective alone"
    (path / "dpo-extend" / "eval-00000012.nc").unlink()
    command.run(path, PLAN, resume=True)
    assert calls == [1, 1, 0], "the state after the last update was kept"
    (path / "sft-baseline" / "eval-00000003.nc").unlink()
    command.run(path, PLAN, resume=True)
    assert calls[3:] == [1, 3, 2, 3], "no state is as old: that stage is made anew"
    assert tree(path) == tree(whole)


def test_the_last_two_states_are_kept_and_a_damaged_one_is_named(tmp_path, whole):
    for stage, arm, last in (("sft", "baseline", [5, 8]), ("dpo", "extend", [8, 12])):
        assert list(states(whole / f"{stage}-{arm}")) == last
    for step in range(5):
        file = save_state(tmp_path, step, {"b": np.arange(3.0), "a": np.eye(2)}, beside={"row": step})
    assert len(states(tmp_path)) == KEPT == 2
    assert load_state(file).beside == {"row": 4}
    np.testing.assert_array_equal(load_state(file).arrays["a"], np.eye(2))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(TrajectoryError, match=r"expected a whole state, got .*state-00000004"):
        load_state(file)


def test_a_writer_of_states_stopped_at_any_call_leaves_one_and_ends_with_the_same(tmp_path, monkeypatch):
    calls, fatal = itertools.count(), [-1]

    def counted(function):
        def call(*arguments, **options):
            if next(calls) == fatal[0]:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    def write(folder, start):
        for step in range(start, 5):
            save_state(folder, step, {"a": np.full(2, float(step))})

    for name in ("replace", "unlink"):
        monkeypatch.setattr(type(tmp_path), name, counted(getattr(type(tmp_path), name)))
    write(tmp_path / "whole", 0)
    total, found = next(calls), []
    for k in range(total):
        folder = tmp_path / str(k)
        fatal[0] = next(calls) + 1 + k
        with pytest.raises(KeyboardInterrupt):
            write(folder, 0)
        there = states(folder)
        assert len(there) <= KEPT
        found.append(max(there, default=-1))
        for step, file in there.items():
            assert load_state(file).arrays["a"].tolist() == [step, step]
        write(folder, found[-1] + 1)
        assert tree(folder) == tree(tmp_path / "whole")
    assert (found, sorted(set(found))) == (sorted(found), [-1, 0, 1, 2, 3, 4])


# --- refused --------------------------------------------------------------------------------------------------------

BAD = {
    "several values": (("--lr", 1, 2), "--lr: expected one value, got 2; several need --sweep"),
    "no seeds": (("--seeds", 0), "--seeds, --first-seed: expected at least 1 seed"),
    "no updates": (("--steps", 0), "steps: expected a finite number > 0, got 0"),
    "a cold sample": (("--temperature", 0), "temperature: expected a finite number > 0"),
    "an endless rate": (("--lr", "inf"), "lr: expected a finite number > 0, got inf"),
    "an unknown objective": (("--objective", "dop"), "no objective 'dop'"),
    "no such parameter": (("--objective", "cpo", "--beta", 0.1, "--seeds", -1), "--seeds"),
    "an objective without β": (("--objective", "ga", "--beta", 0.1), "ga has no parameter beta"),
    "one with an anchor": (("--objective", "slic"), "objective: expected one that reads chosen and rejected alone"),
    "sft twice": (("--objective", "sft"), "objective: expected one on pairs"),
    "an unknown component": (("--kernel", "sparkle=1"), "weights: expected components among identity, common"),
    "a negative weight": (("--common", -1), "weights: expected finite numbers >= 0"),
    "workers of one run": (("--workers", 2), "--margin, --workers: expected only with --sweep"),
    "a sweep without workers": (("--sweep", "--workers", 0), "--workers: expected at least 1"),
    "a sweep without β": (
        ("--sweep", "--objective", "orpo"),
        "expected one with β for a sweep, got orpo",
    ),
    "a sweep of SFT": (("--sweep", "--objective", "sft"), "objective: expected one"),
    "a sweep of nothing known": (("--sweep", "--objective", "dop"), "no objective 'dop'"),
    "a sweep with a component of its own": (("--sweep", "--kernel", "sparkle=1"), "weights: expected components among"),
    "a sweep with two weights": (("--sweep", "--kernel", "common=9"), "--kernel: expected components beside common"),
    "two weights": (("--common", 1, "--kernel", "common=2"), "--common, --kernel common=…: expected one of them"),
    "a weight twice": (
        ("--kernel", "identity=1", "identity=2"),
        "--kernel: expected each component once",
    ),
    "a weight without its number": (
        ("--kernel", "identity"),
        "--kernel: expected NAME=NUMBER, for example",
    ),
    "a word for a weight": (("--kernel", "common=much"), "--kernel: expected NAME=NUMBER"),
    "an axis without values": (("--sweep", "--common"), "--common: expected at least one value behind it, got none"),
    "a β turned round": (("--beta", -1), "beta: expected a finite number > 0, got -1.0"),
    "no β": (("--beta", 0), "beta: expected a finite number > 0"),
    "an endless β": (("--beta", "inf"), "beta: expected a finite number > 0"),
    "a rate out of all range": (("--lr", 1e308), "lr, sft_lr: expected rates up to 1e+06"),
    "a rate of SFT out of range": (("--sweep", "--sft-lr", 1e9), "lr, sft_lr: expected rates up to 1e+06"),
    "a value twice": (("--sweep", "--lr", 1, 1), "lr: expected values, each once"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(what, tmp_path, capsys):
    arguments, message = BAD[what]
    code, _, err = main(capsys, "--out", tmp_path / "run", "--size", "smoke", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_left_alone(tmp_path, whole, capsys):
    before = tree(whole)
    for extra in ((), ("--resume",), ("--sweep", "--resume")):
        code, _, err = main(capsys, "--out", whole, "--size", "smoke", *extra)
        assert (code, err.count("\n")) == (2, 1), err
    assert tree(whole) == before


def words(values):
    return " ".join(f"{value:g}" for value in (values if isinstance(values, tuple) else (values,)))


def test_help_tells_what_is_taken_where_nothing_is_given(capsys):
    code, out, _ = main(capsys, "--help")
    text = " ".join(out.replace("│", " ").split())
    sizes = {name: {size: SIZES[size][name] for size in ("smoke", "paper")} for name in ("run", "sweep")}

    def both(what, key, otherwise=None):
        return " | ".join(words(sizes[what][size].get(key, otherwise)) for size in ("smoke", "paper"))

    assert code == 0
    assert f"({both('run', 'seeds')})" in text
    assert f"({both('run', 'lr')}; sweep: {both('sweep', 'lr')})" in text
    assert f"({both('run', 'steps')}; sweep: {both('sweep', 'steps')})" in text
    assert f"({both('run', 'sft_lr')})" in text
    assert sizes["run"]["paper"]["sft_lr"] == sizes["sweep"]["paper"]["sft_lr"]
    assert f"({both('run', 'sft_steps')}; sweep: {both('sweep', 'sft')})" in text
    assert f"{Plan.temperature:g}; sweep: {both('sweep', 'temperature')})" in text
    assert f"{KERNEL['common']:g}; sweep: {both('sweep', 'common')})" in text
    assert f"{objectives.get('dpo').beta:g} for dpo; sweep: {both('sweep', 'beta', Grid().beta)})" in text
    assert f"({both('sweep', 'margin')})" in text
    assert f"({' '.join(f'{name}={weight:g}' for name, weight in KERNEL.items())})" in text
    assert ", ".join(COMPONENTS) in text


def test_a_descent_that_comes_apart_is_called_so(tmp_path, capsys):
    options = ["--size", "smoke", "--seeds", 2, "--first-seed", 1000, "--objective", "ipo", "--evaluations", 2]
    code, out, err = main(capsys, "--out", tmp_path / "far", *options)
    assert code == 0
    assert "ipo-baseline, ipo-extend: the descent came apart, whatever the verdict says; lower --lr" in out
    assert "ipo's first push is 200 times dpo's" in out
    assert "Warning" not in err
    _, out, _ = main(capsys, "--out", tmp_path / "near", *options, "--lr", 0.1)
    assert "came apart" not in out


def test_a_damaged_table_with_an_endless_field_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("seed,lr\n1," + "1" * 140_000 + "\n")
    with pytest.raises(TrajectoryError, match=r"expected a whole table, got t.csv"):
        read_csv(tmp_path / "t.csv")


def test_states_are_in_the_order_of_their_steps(tmp_path):
    for step in (99_999_998, 99_999_999, 100_000_000):
        save_state(tmp_path, step, {"a": np.zeros(1)})
    assert list(states(tmp_path)) == [99_999_999, 100_000_000]


def test_csv_reads_back_to_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    table = {"seed": np.arange(5), "lr": rng.normal(size=5) * 10.0 ** rng.integers(-300, 300, 5)}
    table["lr"][2] = np.nan
    (tmp_path / "t.csv").write_bytes(to_csv(table))
    found = read_csv(tmp_path / "t.csv")
    assert found["seed"].dtype.kind == "i"
    np.testing.assert_array_equal(found["lr"], table["lr"])
