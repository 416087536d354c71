"""`toyld run tiny`, killed or stopped at any moment: what it goes on from, and that it ends with the same bytes."""

import hashlib
import os
import random
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from toyld.checked import TrajectoryError
from toyld.tiny import command
from toyld.tiny.plan import Plan
from toyld.trajectory import folder as folders
from toyld.trajectory.states import load_state, states

PLAN = Plan(
    language={"relations": 2, "entities": 4, "function_words": 3, "concepts": 4},
    model={"width": 8, "depth": 1, "heads": 2},
    seeds=(1000, 1001),
    pretrain_steps=40,
    prompts=4,
    batch=2,
    arms=("on-policy",),
    sft_steps=4,
    steps=4,
    evaluations=2,
    copies=1,
)
WIDER = replace(PLAN, arms=("extend-updates", "on-policy"))
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run


@pytest.fixture(autouse=True, scope="module")
def asked_once():
    """git is asked once."""
    origin = folders._origin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "_origin", lambda: origin)
        yield


def tree(path):
    """Every file with a sum of its bytes, but for what a killed writer leaves."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, asked_once):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert command.run(path, PLAN)
    return path


@forks
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(tmp_path, whole):
    moments, found = random.Random(6), []
    assert command.run(tmp_path / "wider", WIDER)
    for plan, wanted, pattern, count in (
        (PLAN, whole, "pretrain-*/state-*", 1),
        (PLAN, whole, "*/eval-*", moments.randrange(1, 5)),
        (WIDER, tmp_path / "wider", "*/eval-*", moments.randrange(6, 11)),
    ):
        path = tmp_path / pattern[:1] / str(count)
        pid = os.fork()
        if pid == 0:
            try:
                command.run(path, plan)
            finally:
                os._exit(0)
        until = time.monotonic() + 60
        while len(list(path.glob(pattern))) < count and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.02)
        os.kill(pid, 9)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9, "it ended before it could be killed"
        found.append(len(list(path.rglob("eval-*"))))
        assert command.run(path, plan, resume=True)
        assert tree(path) == tree(wanted), found
    assert found[0] < found[1] < found[2], "killed in pretraining, in SFT and later"


def test_killed_behind_the_last_state_of_a_stage_it_leaves_no_other(tmp_path, whole):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    for stage in ("pretrain-source", "sft-baseline"):
        (last,) = (path / stage).glob("state-*")
        shutil.copy(last, last.with_name("state-00000002.safetensors"))
    assert tree(path) != tree(whole)
    assert command.run(path, PLAN, resume=True)
    assert tree(path) == tree(whole)


@pytest.mark.parametrize(("call", "after"), [("write_state", 4), ("write", 3)])
def test_stopped_at_any_write_it_resumes_to_the_same_bytes(call, after, tmp_path, whole, monkeypatch):
    right, calls = getattr(folders.RunFolder, call), []

    def stop(self, *arguments, **options):
        calls.append(call)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return right(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(folders.RunFolder, call, stop)
        with pytest.raises(KeyboardInterrupt):
            command.run(tmp_path, PLAN)
    assert command.run(tmp_path, PLAN, resume=True)
    assert tree(tmp_path) == tree(whole)


def test_a_run_in_pieces_makes_one_a_call_at_least_and_ends_with_the_same_bytes(tmp_path, whole):
    told, calls = [], 0
    while not command.run(tmp_path, PLAN, resume=calls > 0, tell=lambda *now: told.append(now), stop=lambda: True):
        calls += 1
        assert told[-1] == (calls, 8), "what was there is passed over, and one piece made"
    assert (calls, told[-1]) == (7, (8, 8)), "two states of pretraining, twice three evaluations"
    assert tree(tmp_path) == tree(whole)


def test_a_resumed_run_trains_only_what_is_missing(tmp_path, whole, monkeypatch):
    path, ran = shutil.copytree(whole, tmp_path / "run"), []
    train, pretrain = command.train, command.pretrain
    monkeypatch.setattr(command, "train", lambda *a, **k: ran.append((k.get("done"), k["steps"])) or train(*a, **k))
    monkeypatch.setattr(command, "pretrain", lambda *a, **k: ran.append("pretraining") or pretrain(*a, **k))
    command.run(path, PLAN, resume=True)
    assert ran == [(None, 1)], "the trial of the objective alone"
    (path / "dpo-on-policy" / "eval-00000004.nc").unlink()
    command.run(path, PLAN, resume=True)
    assert ran[1:] == [(None, 1), (4, 0)], "the state after the last update was kept"
    (path / "sft-baseline" / "eval-00000002.nc").unlink()
    command.run(path, PLAN, resume=True)
    assert ran[3:] == [(None, 1), (0, 2), (2, 2)], "no state is as old: that stage is made anew"
    assert tree(path) == tree(whole)


def test_a_stage_keeps_its_models_at_its_end_and_what_it_goes_on_with_before(tmp_path, whole):
    ends = {"pretrain-source": 40, "sft-baseline": 4, "dpo-on-policy": 4}
    assert {name: list(states(whole / name)) for name in ends} == {name: [step] for name, step in ends.items()}
    assert load_state(states(whole / "sft-baseline")[4]).arrays.keys() == {"flat"}
    command.run(tmp_path, PLAN, stop=lambda: True)
    kept = load_state(states(tmp_path / "pretrain-source")[20])
    assert {name: array.dtype.name for name, array in kept.arrays.items()} == {
        "flat": "float32", "memory.mean": "float32", "memory.square": "float32", "memory.count": "int64",
    }  # fmt: skip
    assert kept.arrays["memory.count"].tolist() == [20]
    made = iter([False, False, True])  # the end of pretraining, two evaluations of SFT
    command.run(tmp_path, PLAN, resume=True, stop=lambda: next(made))
    assert list(states(tmp_path / "sft-baseline")) == [0, 2]
    kept = load_state(states(tmp_path / "sft-baseline")[2])
    assert kept.arrays.keys() == {"flat", "memory.square"}
    assert all(np.abs(array).max() > 0 for array in kept.arrays.values())


def test_a_state_of_another_run_is_named(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "run")
    kept = load_state(states(path / "sft-baseline")[4])
    (path / "sft-baseline" / "eval-00000004.nc").unlink()
    folder = folders.RunFolder(path, PLAN.stages)
    spoilt = {
        "a state of this run, got another": lambda array: array[1:],
        "a state of this run, got another ": lambda array: array.astype(np.float64),
        "a state of finite numbers, got NaN or inf": lambda array: (
            array / (np.arange(array.shape[1]) != 7).astype(np.float32)
        ),
    }
    for words, spoil in spoilt.items():
        with np.errstate(divide="ignore"):
            folder.write_state("sft", "baseline", 4, {name: spoil(array) for name, array in kept.arrays.items()})
        with pytest.raises(TrajectoryError, match=rf"expected {words.strip()} at update 4: remove it, and resume"):
            command.run(path, PLAN, resume=True)
    folder.write_state("sft", "baseline", 2, kept.arrays)  # the models alone, in the midst of the stage
    states(path / "sft-baseline")[4].unlink()
    with pytest.raises(TrajectoryError, match="expected a state of this run, got another at update 2"):
        command.run(path, PLAN, resume=True)
