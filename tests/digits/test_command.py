"""`toyld run digits`: what it computes, what it writes, and that a killed run ends with the same bytes."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import cli, digits, running
from toyld.checked import TrajectoryError
from toyld.digits import Recipe, command
from toyld.digits.command import SIZES, Plan
from toyld.digits.data import draw
from toyld.running import digits_plan
from toyld.trajectory import folder as folders
from toyld.trajectory import read_folder
from toyld.trajectory.states import load_state, states

DATA = digits.embedded()
PLAN = Plan(
    DATA.source,
    seeds=(1000, 1001, 1002),
    recipe=Recipe(lr=0.1, images=200, epochs=4),
    noise=0.2,
    probes=20,
    evaluations=4,
)
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run


@pytest.fixture(autouse=True, scope="module")
def in_two_groups():
    """Seeds in two groups, so that putting them together is part of every test; git is asked once."""
    origin = folders._origin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("toyld.digits.training._CACHED", 2 * 60_000)
        patch.setattr(folders, "_origin", lambda: origin)
        yield


def tree(path):
    """Every file with a sum of its bytes (a difference of the bytes themselves takes minutes to print)."""
    files = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, in_two_groups):
    path = tmp_path_factory.mktemp("whole") / "run"
    command.run(path, PLAN, DATA)
    return path


def main(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld run digits …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "digits", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


# --- what is computed -----------------------------------------------------------------------------------------------


def test_the_table_is_what_the_trained_networks_say(whole):
    (found,) = read_folder(whole)
    places = draw(DATA.labels.numpy(), 200, seed=1000)  # all by the first seed
    taught = DATA.subset(200, seed=1000)
    labels = torch.from_numpy(digits.flipped(taught.labels.numpy(), 0.2, seed=1000))
    assert (labels != taught.labels).sum() == 40
    own = draw(taught.labels.numpy(), 20, seed=1000, stream=command.PROBED)
    held = draw(DATA.test_labels.numpy(), 20, seed=1000, stream=command.HELD_OUT)
    run = digits.train(taught, seeds=PLAN.seeds, recipe=replace(PLAN.recipe, images=None), labels=labels, at=[1, 2, 3])
    assert found.step.values.tolist() == list(run.marks) == [0, 4, 8, 12, 16]
    assert found.examples_seen.values.tolist() == [0, 200, 400, 600, 800]
    assert found.seed.values.tolist() == list(PLAN.seeds)
    assert found.probe.values.tolist() == ["chosen", "test_chosen"]
    for s, seed in enumerate(PLAN.seeds):
        for k, mark in enumerate(run.marks):
            module = run.module(seed=seed, update=mark).double()
            here = found.isel(seed=s, step=k)
            asked = {
                "chosen": (DATA.images[places[own]], labels[own]),
                "test_chosen": (DATA.test_images[held], DATA.test_labels[held]),
            }
            for kind, (images, y) in asked.items():
                with torch.no_grad():
                    logp = module(images.double()).log_softmax(-1)
                p, at = logp.exp(), here.sel(probe=kind)
                onehot = torch.nn.functional.one_hot(y, 10)
                wanted = {
                    "logp": logp[torch.arange(20), y], "argmax_logp": logp.amax(-1), "entropy": -(p * logp).sum(-1),
                    "top1": p.amax(-1), "pi_norm2": p.square().sum(-1), "n_tokens": torch.ones(20),
                    "residual_norm": (p - onehot).square().sum(-1).sqrt(),
                }  # fmt: skip
                assert set(wanted) <= set(found.data_vars)
                for name, value in wanted.items():
                    np.testing.assert_allclose(at[name].values, value.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
            assert here.eval_accuracy == run.accuracy(update=mark)[s]
            assert here.train_accuracy == run.accuracy(None, run.images, run.labels, update=mark)[s]
            z = run.logits(None, run.images, update=mark)[s].double()
            assert float(here.loss) == pytest.approx(torch.nn.functional.cross_entropy(z, labels).item(), rel=1e-5)
    assert found.lr.values[0].tolist() == [PLAN.recipe.rate(mark, 200) for mark in run.marks[:-1]] + [0]


def test_the_run_says_what_it_was(whole):
    run = json.loads((whole / "run.json").read_text())
    assert (run["command"], run["stages"]) == ("toyld run digits", ["sft"])
    assert run["config"]["recipe"]["momentum"] == 0.9
    assert run["config"]["source"] == DATA.source
    (found,) = read_folder(whole)
    told = {name: found.attrs[name] for name in ("world", "stage", "arm", "vocab_size", "network", "data", "noise")}
    assert told == {
        "world": "digits", "stage": "sft", "arm": "noisy", "vocab_size": 10, "network": "mlp", "data": "embedded",
        "noise": 0.2,
    }  # fmt: skip


def test_without_noise_the_labels_are_the_true_ones():
    plan = replace(PLAN, noise=0.0)
    assert (plan.arm, PLAN.arm) == ("baseline", "noisy")
    for part in command._start(plan, command._shared(plan, DATA)):
        assert torch.equal(part.labels, part.data.labels[part.index])


def test_an_example_is_one_image_with_one_label_for_every_seed(whole, monkeypatch):
    taught, right = {}, digits.Ensemble.run

    def run(self, until):
        for s, seed in enumerate(self.seeds):
            taught[seed] = self.data.images[self.index[s]], self.labels[s], self.flat.clone()
        right(self, until)

    monkeypatch.setattr(digits.Ensemble, "run", run)
    shared = command._shared(PLAN, DATA)
    for part in command._start(PLAN, shared):
        part.run(0)
    assert sorted(taught) == list(PLAN.seeds)
    for images, labels, _ in taught.values():
        assert torch.equal(images, taught[1000][0])
        assert torch.equal(labels, taught[1000][1])
        assert (labels != shared.data.labels).sum() == 40
    (found,) = read_folder(whole)
    last, places = found.isel(step=-1), []
    for i, name in enumerate(found.example.values.tolist()):
        own, held = (int(part.split()[1]) for part in name.split(", "))
        assert name == f"train {own}, test {held}"
        (at,) = torch.nonzero((taught[1000][0] == DATA.images[own]).flatten(1).all(1)).flatten().tolist()
        assert torch.equal(shared.images[i], DATA.images[own])
        assert shared.with_[i] == taught[1000][1][at]
        assert torch.equal(shared.images[20 + i], DATA.test_images[held])
        assert shared.with_[20 + i] == DATA.test_labels[held]
        places.append(own)
    assert len(set(places)) == 20
    logp = last.logp.sel(probe="chosen").values
    assert not np.array_equal(logp[0], logp[1]), "weights and orders are each seed's own"


def test_a_folder_from_when_each_seed_drew_its_own_images_is_left_alone(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "run")
    told = json.loads((path / "run.json").read_text())
    del told["config"]["images_by"]
    (path / "run.json").write_text(json.dumps(told))
    before = tree(path)
    with pytest.raises(TrajectoryError, match=r"^expected the run that is there, got config.images_by.*another folder"):
        command.run(path, PLAN, DATA, resume=True)
    assert tree(path) == before


# --- killed and resumed ---------------------------------------------------------------------------------------------


@forks
def test_killed_while_it_trains_it_resumes_to_the_same_bytes(tmp_path, whole):
    pid = os.fork()
    if pid == 0:
        try:
            command.run(tmp_path, PLAN, DATA)
        finally:
            os._exit(0)
    there, until = [], time.monotonic() + 60
    while len(there) < 2 and time.monotonic() < until:  # of five
        time.sleep(0.002)
        there = list(tmp_path.rglob("eval-*.nc"))
    os.kill(pid, 9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9, "it ended before it could be killed"
    assert len(there) >= 2
    command.run(tmp_path, PLAN, DATA, resume=True)
    assert tree(tmp_path) == tree(whole)


@pytest.mark.parametrize("after", [0, 2, 4])  # of five: no state yet, two, two and older ones removed
@pytest.mark.parametrize("call", ["write", "write_state"])
def test_stopped_at_any_write_it_resumes_to_the_same_bytes(tmp_path, whole, monkeypatch, after, call):
    right, calls = getattr(folders.RunFolder, call), []

    def stop(self, *arguments, **options):
        calls.append(call)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return right(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(folders.RunFolder, call, stop)
        with pytest.raises(KeyboardInterrupt):
            command.run(tmp_path, PLAN, DATA)
    command.run(tmp_path, PLAN, DATA, resume=True)
    assert tree(tmp_path) == tree(whole)


def test_a_resumed_run_trains_only_what_is_missing(tmp_path, whole, monkeypatch):
    path, ran, told = shutil.copytree(whole, tmp_path / "run"), [], []
    right = digits.Ensemble.run

    def run(self, until):
        ran.append((self.update, until))
        right(self, until)

    monkeypatch.setattr(digits.Ensemble, "run", run)
    command.run(path, PLAN, DATA, resume=True)
    assert ran == []
    (path / "sft-noisy" / "eval-00000016.nc").unlink()
    command.run(path, PLAN, DATA, resume=True, tell=lambda *now: told.append(now))
    assert ran == [(16, 16), (16, 16)], "the state after the last update was kept"
    assert told == [(9, 10), (10, 10)]
    (path / "sft-noisy" / "eval-00000012.nc").unlink()
    command.run(path, PLAN, DATA, resume=True)
    assert ran[2:] == [(12, 12), (12, 12), (12, 16), (12, 16)]
    (path / "sft-noisy" / "eval-00000004.nc").unlink()
    command.run(path, PLAN, DATA, resume=True)
    assert [step for step, _ in ran[6::2]] == [0, 0, 4, 8, 12], "no state is as old: it is made anew"
    assert tree(path) == tree(whole)


def test_states_hold_weights_memory_and_the_place_in_the_data(whole):
    there = states(whole / "sft-noisy")
    assert list(there) == [12, 16]
    kept = load_state(there[12])
    assert kept.beside == {"update": 12, "epoch": 3, "batch": 0}
    assert {name: array.dtype.name for name, array in kept.arrays.items()} == dict.fromkeys(
        ("flat.0", "flat.1", "memory.0", "memory.1"), "float32"
    )
    assert all(np.abs(array).max() > 0 for array in kept.arrays.values())


def test_a_state_of_another_run_is_named(tmp_path, whole):
    path = shutil.copytree(whole, tmp_path / "run")
    (path / "sft-noisy" / "eval-00000016.nc").unlink()
    kept = load_state(path / "sft-noisy" / "state-00000016.safetensors")
    folder = folders.RunFolder(path, ("sft",))
    spoilt = {
        "a state of this run, got another": lambda array: array[1:],
        "a state of this run, got another ": lambda array: array.astype(np.float64),
        "a state of finite numbers, got NaN or inf": lambda array: np.where(np.arange(len(array)) == 7, np.inf, array),
    }
    for words, spoil in spoilt.items():
        folder.write_state("sft", "noisy", 16, {name: spoil(array) for name, array in kept.arrays.items()})
        with pytest.raises(TrajectoryError, match=rf"expected {words.strip()} at update 16: remove it, and resume"):
            command.run(path, PLAN, DATA, resume=True)


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "noise", "verdict"),
    [("mlp", 0, "sft-normal"), ("lenet", 0, "sft-normal"), ("mlp", 0.6, "squeezing")],  # the last as the help says
)
def test_a_run_ends_with_its_diagnosis(network, noise, verdict, tmp_path, capsys):
    options = ["--size", "smoke", "--network", network, "--seeds", 1, "--first-seed", 1000, "--evaluations", 3]
    code, out, err = main(capsys, "--out", tmp_path / "run", *options, "--noise", noise)
    assert (code, err) == (0, "")
    assert verdict in out
    mine = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert [run["verdict"] for run in mine["runs"]] == [verdict]
    with pytest.raises(SystemExit):
        cli.main(["diagnose", str(tmp_path / "run"), "--json", str(tmp_path / "again.json")])
    assert json.loads((tmp_path / "again.json").read_text()) == mine


def test_options_reach_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(running, "diagnose", lambda paths, json_file: len(paths))  # 1: as if a check had failed
    options = ["--data", "embedded", "--seeds", 2, "--first-seed", 1000, "--epochs", 2.5, "--images", 70]
    options += ["--lr", 0.2, "--batch", 32, "--noise", 0.1, "--probes", 9, "--evaluations", 2, "--network", "lenet"]
    code, out, err = main(capsys, "--out", tmp_path / "run", *options)
    assert (code, out, err) == (1, "", "")
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    recipe = {
        "lr": 0.2,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "batch": 32,
        "images": 70,
        "epochs": 2.5,
        "cosine": True,
    }
    assert config == {
        "source": DATA.source, "network": "lenet", "seeds": [1000, 1001], "recipe": recipe, "noise": 0.1, "probes": 9,
        "evaluations": 2, "images_by": 1000,
    }  # fmt: skip
    (found,) = read_folder(tmp_path / "run")
    assert found.step.values.tolist() == [0, 4, 8]
    assert found.sizes["example"] == 9


def test_sizes_are_the_recipe_on_mnist_and_less_of_it_on_the_embedded_digits():
    large, small = digits_plan("paper", DATA), digits_plan("smoke", DATA)
    assert large.recipe == Recipe()
    assert (len(large.seeds), SIZES["paper"]["data"]) == (10, "mnist")
    assert small.recipe.updates(len(DATA.labels)) == 230
    assert digits_plan("paper", DATA, images="all").recipe.images is None


def test_a_plan_of_mnist_runs_at_paper_size(real, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "mnist", lambda: real)  # the one of $TOYLD_DATA, read once
    options = ["--seeds", 1, "--first-seed", 1000, "--epochs", 0.1, "--probes", 5, "--evaluations", 1]
    code, _, err = main(capsys, "--out", tmp_path / "run", *options)
    assert (code, err) == (0, "")
    (found,) = read_folder(tmp_path / "run")
    assert (found.attrs["data"], found.attrs["source"]) == ("mnist", real.source)
    assert found.step.values.tolist() == [0, 3]


BAD = {
    "no images": (("--images", 0), "images: expected 1 to 1442, got 0"),
    "more than there are": (("--images", 2000), "images: expected 1 to 1442, got 2000; ask for as many, or for all"),
    "a share above one": (("--noise", 2), "noise: expected a share from 0 to 1"),
    "no rate": (("--lr", 0), "lr: expected a finite number > 0, got 0"),
    "endless epochs": (("--epochs", "inf"), "epochs: expected a finite number > 0, got inf"),
    "no update": (("--epochs", 0.001), "epochs: expected at least one update of 64 images"),
    "no batch": (("--batch", 0), "batch: expected a finite number > 0"),
    "no seeds": (("--seeds", 0), "--seeds, --first-seed: expected at least 1 seed"),
    "no evaluation": (("--evaluations", 0), "evaluations: expected at least 1, got 0"),
    "no probes": (("--probes", -1), "probes: expected at least 1, got -1"),
    "no such folder": (("--data", "/nowhere/mnist"), "expected train-images-idx3-ubyte or its .gz in /nowhere/mnist"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(what, tmp_path, capsys):
    arguments, message = BAD[what]
    code, _, err = main(capsys, "--out", tmp_path / "run", "--size", "smoke", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


def test_a_descent_that_comes_apart_says_what_to_do(tmp_path, capsys):
    options = ["--size", "smoke", "--seeds", 1, "--images", 100, "--evaluations", 1, "--lr", 1e5]
    code, _, err = main(capsys, "--out", tmp_path / "run", *options)
    assert (code, err.count("\n")) == (2, 1)
    assert "expected a descent that stays finite, got NaN or inf by update 20; lower --lr, now 100000, " in err
    assert f"and name another folder, or remove {tmp_path / 'run'}" in err


def test_a_folder_with_a_run_is_left_alone(tmp_path, whole, capsys):
    before = tree(whole)
    for extra in ((), ("--resume",), ("--resume", "--noise", 0.2)):
        code, _, err = main(capsys, "--out", whole, "--size", "smoke", *extra)
        assert (code, err.count("\n")) == (2, 1), err
    assert tree(whole) == before


def test_help_tells_what_is_taken_where_nothing_is_given(capsys):
    code, out, _ = main(capsys, "--help")
    text = " ".join(out.replace("│", " ").split())
    plans = [digits_plan(size, DATA) for size in ("smoke", "paper")]
    assert code == 0

    def both(told):
        return "(" + " | ".join(str(told(plan)) for plan in plans) + ")"

    for told in (
        lambda plan: len(plan.seeds),
        lambda plan: "all" if plan.recipe.images is None else plan.recipe.images,
        lambda plan: f"{plan.recipe.epochs:g}",
        lambda plan: plan.recipe.lr,
        lambda plan: plan.recipe.batch,
        lambda plan: plan.probes,
        lambda plan: plan.evaluations,
    ):
        assert both(told) in text
    assert f"({SIZES['smoke']['data']} | the folder mnist in $TOYLD_DATA)" in text
