"""`toyld run tiny`: what it computes, what it writes, what it says, what it refuses."""

import hashlib
import json

import numpy as np
import pytest
import torch

from toyld import cli, objectives, running
from toyld.checked import BadInput
from toyld.report.answers import COLUMNS
from toyld.running import tiny_plan
from toyld.tiny import (
    Models,
    Optimizer,
    Shape,
    Sizes,
    ask,
    command,
    draw,
    measures,
    pretrain,
    sequences,
    start,
    train,
    with_rejected,
)  # fmt: skip
from toyld.tiny.experiments import _worlds
from toyld.tiny.plan import ARMS, RECIPES, SIZES, Plan
from toyld.tiny.stage import _Order
from toyld.trajectory import folder as folders
from toyld.trajectory import read_folder
from toyld.trajectory.states import load_state, states

LANGUAGE = {"relations": 2, "entities": 4, "function_words": 3, "concepts": 4}
PLAN = Plan(
    language=LANGUAGE,
    model={"width": 8, "depth": 1, "heads": 2},
    seeds=(1000, 1001),
    pretrain_steps=40,
    prompts=4,
    temperature=2.0,
    shared=1,
    sft_lr=3e-2,
    sft_steps=6,
    lr=1e-3,
    steps=5,
    evaluations=2,
    copies=1,
)


@pytest.fixture(autouse=True, scope="module")
def asked_once():
    """git is asked once."""
    origin = folders._origin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "_origin", lambda: origin)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, asked_once):
    path = tmp_path_factory.mktemp("whole") / "run"
    assert command.run(path, PLAN)
    return path


@pytest.fixture(scope="module")
def tables(whole):
    return {(ds.attrs["stage"], ds.attrs["arm"]): ds for ds in read_folder(whole)}


def tree(path):
    """Every file with a sum of its bytes."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def end(whole, stage, arm):
    """Parameters after a stage."""
    ((_, file),) = states(whole / f"{stage}-{arm}").items()
    return torch.from_numpy(load_state(file).arrays["flat"])


def main(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld run tiny …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "tiny", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


# --- what is computed -----------------------------------------------------------------------------------------------


def test_every_arm_is_the_stages_one_after_the_other_bit_for_bit(whole):
    language = draw(Sizes(**LANGUAGE), PLAN.seeds)
    shape = Shape(language.sizes.classes, language.sizes.places, 8, 1, 2)
    source, _ = pretrain(start(shape, PLAN.seeds), language, steps=40, lr=PLAN.pretrain_lr)
    assert torch.equal(source.flat, end(whole, "pretrain", "source"))
    asked = ask(language, prompts=4)
    prompts = asked.prompts["chosen"]

    def against(models):
        said = models.sample(language, prompts, seed=0, temperature=2.0)
        return with_rejected(asked, said, shared=1, initial=source.sample(language, prompts, seed=1))

    def part(models, data, objective, lr, steps, **options):
        options = {"optimizer": Optimizer("rmsprop"), "warmup": 10, "at": [], "kinds": ["chosen"]} | options
        return train(models, data, objectives.get(objective), lr=lr, steps=steps, **options).models

    first = against(source)
    texts = np.concatenate([first.texts["chosen"], first.texts["rejected"]], 1)
    both = first.also({"both": texts}, both=np.tile(prompts, 2))
    taught = {
        "baseline": part(source, first, "sft", 3e-2, 6),
        "extend-updates": part(source, both, "sft", 3e-2, 6, chosen="both", batch=4),
        "extend-passes": part(source, both, "sft", 3e-2, 12, chosen="both", batch=4),
    }
    for arm, models in taught.items():
        assert torch.equal(models.flat, end(whole, "sft", arm)), arm
        preferred = part(models, first, "dpo", 1e-3, 5, rejected="rejected")
        assert torch.equal(preferred.flat, end(whole, "dpo", arm)), arm
    own = part(taught["baseline"], against(taught["baseline"]), "dpo", 1e-3, 5, rejected="rejected")
    assert torch.equal(own.flat, end(whole, "dpo", "on-policy"))
    ends = [end(whole, "dpo", arm) for arm in ARMS]
    assert all(not torch.equal(a, b) for i, a in enumerate(ends) for b in ends[:i])


def test_updates_and_passes_are_counted_as_they_are_made(tables):
    told = {arm: tables["dpo", arm].attrs for arm in ARMS}
    length = {arm: (attrs["sft_updates"], attrs["sft_passes"]) for arm, attrs in told.items()}
    assert length == {
        "baseline": (6, 6.0), "extend-updates": (6, 3.0), "extend-passes": (12, 6.0), "on-policy": (6, 6.0),
    }  # fmt: skip
    for plan in (PLAN, tiny_plan("smoke", batch=2)):
        for arm in ("extend-updates", "extend-passes"):
            updates, passes = plan.length(arm).values()
            order = _Order([0], 2 * plan.prompts, plan.rows)
            seen = np.concatenate([order.of(k)[0] for k in range(updates)])
            assert (seen < plan.prompts).sum() == passes * plan.prompts, "of chosen answers, the first half of the rows"


def test_the_probes_are_what_the_models_say_in_float64(whole, tables):
    language = draw(Sizes(**LANGUAGE), PLAN.seeds)
    source = Models(command._start(PLAN)[0].shape, PLAN.seeds, end(whole, "pretrain", "source"))
    asked = ask(language, prompts=4)
    said = source.sample(language, asked.prompts["chosen"], seed=0, temperature=2.0)
    texts = {kind: asked.texts[kind] for kind in ("chosen", "test_chosen", "irr_test")}
    texts["rejected"] = with_rejected(asked, said, shared=1).texts["rejected"]
    steps = {key: (found.step.values.tolist(), len(found.probe)) for key, found in tables.items()}
    assert steps == {
        **{("sft", arm): ([0, 3, 6], 14) for arm in ("baseline", "extend-updates")},
        ("sft", "extend-passes"): ([0, 6, 12], 14),
        **{("dpo", arm): ([0, 2, 5], 14) for arm in ARMS},
    }
    found = tables["dpo", "extend-passes"].isel(step=-1)
    models = Models(source.shape, PLAN.seeds, end(whole, "dpo", "extend-passes"))
    reference = Models(source.shape, PLAN.seeds, end(whole, "sft", "extend-passes"))
    for kind, text in texts.items():
        inputs, labels = sequences(language, asked.prompt(kind), text)
        for s in range(2):
            for name, of in (("logp", models), ("ref_logp", reference)):
                with torch.no_grad():
                    logp = of.module(s)(torch.from_numpy(inputs[s]))[:, 1:].log_softmax(-1).numpy()
                each = np.take_along_axis(logp, np.maximum(labels[s], 0)[..., None], -1)[..., 0]
                here, wanted = found[name].isel(seed=s).sel(probe=kind), np.where(labels[s] >= 0, each, 0.0).sum(-1)
                np.testing.assert_allclose(here, wanted, rtol=1e-11, err_msg=f"{name} {kind}")
    assert float(found.loss.isel(seed=0)) < np.log(2), "DPO's, which it has lowered"
    np.testing.assert_array_equal(
        tables["sft", "baseline"].logp.isel(step=0), tables["sft", "extend-updates"].logp.isel(step=0)
    )


def test_answers_are_measured_of_the_models_at_each_evaluation(whole, tables):
    language = draw(Sizes(**LANGUAGE), PLAN.seeds)
    asked, shape = ask(language, prompts=4), command._start(PLAN)[0].shape
    for stage, arm in (("sft", "baseline"), ("dpo", "on-policy")):
        models = Models(shape, PLAN.seeds, end(whole, stage, arm).double())
        found = tables[stage, arm].isel(step=-1)
        for before, kind in (("", "chosen"), ("test_", "test_chosen")):
            prompt = asked.prompt(kind)
            greedy = models.sample(language, prompt, seed=7, temperature=0.0)
            right = measures.right(language, prompt, greedy).mean(-1)
            np.testing.assert_array_equal(found[f"eval_{before}right_greedy"], right)
            np.testing.assert_allclose(found[f"eval_{before}repetition"], measures.repetition(greedy).mean(-1))
            for name, known in (("", None), ("_truth", 1.0)):
                along = measures.divergence(models, language, prompt, greedy, knowledge=known).mean(-1)
                np.testing.assert_allclose(found[f"eval_{before}kl_greedy{name}"], along, rtol=1e-9)


# --- the plan -------------------------------------------------------------------------------------------------------


def test_sizes_are_the_worlds_of_the_experiments_and_32_seeds():
    large, small = tiny_plan("paper"), tiny_plan("smoke")
    assert (len(large.seeds), len(small.seeds), large.arms) == (32, 8, tuple(ARMS))
    for size, plan in (("paper", large), ("smoke", small)):
        world = _worlds.SIZES[size]
        assert (plan.language, plan.model, plan.prompts) == (world["language"], world["model"], world["prompts"])
        assert (plan.pretrain_steps, plan.pretrain_lr) == (world["steps"], world["lr"])
    for name, recipe in RECIPES.items():
        plan = tiny_plan("smoke", optimizer=name)
        assert (plan.rule, plan.sft_lr, plan.lr, plan.warmup) == (
            recipe.optimizer,
            recipe.sft,
            recipe.dpo,
            recipe.warmup,
        )
    assert RECIPES.items() >= _worlds.RECIPES.items()


def test_on_policy_alone_makes_the_sft_it_follows(tmp_path):
    plan = Plan(**{**vars(PLAN), "arms": ("on-policy",), "evaluations": 1, "objective": "ld-dpo"})
    command.run(tmp_path, plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ld_dpo-on-policy", "pretrain-source", "run.json", "sft-baseline",
    ]  # fmt: skip


def test_options_reach_the_run(tmp_path, capsys, monkeypatch):
    plans = []
    monkeypatch.setattr(command, "run", lambda out, plan, **options: plans.append(plan) or False)
    options = ["--size", "smoke", "--seeds", 2, "--first-seed", 1000, "--arms", "on-policy", "baseline"]
    options += ["--objective", "ipo", "--beta", 0.3, "--optimizer", "adamw", "--lr", 5e-4, "--steps", 4, "--batch", 2]
    options += [
        "--sft-lr",
        0.01,
        "--sft-steps",
        3,
        "--prompts",
        6,
        "--temperature",
        4,
        "--shared",
        2,
        "--evaluations",
        7,
    ]
    options += ["--concentration", 0.2, "--knowledge", 0.6, "--width", 24, "--depth", 1, "--heads", 3]
    options += ["--pretrain-steps", 9, "--threads", 2, "--minutes", 3]
    code, out, err = main(capsys, "--out", tmp_path / "run", *options)
    assert (code, out, err) == (
        0,
        "3 minutes are over and the run is not: go on with the same command and --resume\n",
        "",
    )
    assert plans == [
        Plan(
            language={"concentration": 0.2, "knowledge": 0.6}, model={"width": 24, "depth": 1, "heads": 3},
            seeds=(1000, 1001), pretrain_steps=9, pretrain_lr=6e-3, prompts=6, temperature=4.0, shared=2,
            arms=("on-policy", "baseline"), objective="ipo", parameters={"beta": 0.3}, optimizer="adamw", batch=2,
            sft_lr=0.01, sft_steps=3, lr=5e-4, steps=4, evaluations=7, threads=2,
        )
    ]  # fmt: skip


# --- the command line -----------------------------------------------------------------------------------------------

FEW = ("--size", "smoke", "--seeds", 2, "--first-seed", 1000, "--width", 8, "--depth", 1, "--pretrain-steps", 4)
FEW += ("--sft-steps", 2, "--steps", 2, "--evaluations", 1, "--arms", "baseline")


def test_stopped_and_resumed_it_ends_with_its_diagnosis_and_what_models_say(tmp_path, capsys):
    path = tmp_path / "run"
    code, out, err = main(capsys, "--out", path, *FEW, "--minutes", 1e-9)
    assert (code, err) == (0, "")
    assert out == "1e-09 minutes are over and the run is not: go on with the same command and --resume\n"
    assert [file.name for file in path.rglob("*-0*")] == ["state-00000004.safetensors"]
    code, out, err = main(capsys, "--out", path, *FEW, "--resume")
    assert (code, err) == (0, "")
    mine = json.loads((path / "verdict.json").read_text())
    assert [(run["stage"], run["arm"]) for run in mine["runs"]] == [("sft", "baseline"), ("dpo", "baseline")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["diagnose", str(path), "--json", str(tmp_path / "again.json")])
    assert stop.value.code == 0
    assert json.loads((tmp_path / "again.json").read_text()) == mine
    dpo = read_folder(path)[1]
    (line,) = [line for line in out.splitlines() if line.startswith("dpo-baseline")]
    for name in COLUMNS.values():
        first, last = dpo[name].mean("seed").values[[0, -1]]
        assert f"{first:.2f} → {last:.2f}" in line
    run = json.loads((path / "run.json").read_text())
    assert (run["command"], run["stages"]) == ("toyld run tiny", ["pretrain", "sft", "dpo"])
    assert run["config"]["model"]["width"] == 8


BAD = {
    "no seeds": (("--seeds", 0), "--seeds, --first-seed: expected at least 1 seed"),
    "no updates": (("--steps", 0), "steps: expected a finite number > 0, got 0"),
    "no evaluation": (("--evaluations", 0), "evaluations: expected a finite number > 0, got 0"),
    "a cold sample": (("--temperature", 0), "temperature: expected a finite number > 0"),
    "an endless rate": (("--lr", "inf"), "lr: expected a finite number > 0, got inf"),
    "a rate out of range": (("--sft-lr", 1e9), "sft_lr: expected a rate up to 1e+06"),
    "an unknown objective": (("--objective", "dop"), "no objective 'dop'"),
    "an objective without β": (("--objective", "ga", "--beta", 0.1), "ga has no parameter beta"),
    "one with an anchor": (("--objective", "slic"), "objective: expected one that reads chosen and rejected alone"),
    "sft twice": (("--objective", "sft"), "objective: expected one on pairs"),
    "a β turned round": (("--beta", -1), "beta: expected a number > 0, up to 1e+06, got -1.0"),
    "an unknown arm": (
        ("--arms", "extend"),
        "arms: expected some of baseline, extend-updates, extend-passes, on-policy",
    ),
    "an arm twice": (("--arms", "baseline", "baseline"), "each once, got baseline, baseline"),
    "no arm": (("--arms",), "arms: expected some of baseline"),
    "half a pass": (("--batch", 3), "batch: expected a divisor of the 8 prompts"),
    "too many prompts": (("--prompts", 17), "prompts: expected 2 to 16, half of the language's, got 17"),
    "all shared": (("--shared", 4), "shared: expected 0 to 3 tokens"),
    "more than known": (("--knowledge", 1.5), "knowledge: expected a probability, got 1.5"),
    "no facts": (("--concentration", 0), "concentration: expected more than 0, got 0"),
    "odd heads": (("--heads", 5), "width: expected a multiple of the 5 heads, got 32"),
    "no time": (("--minutes", 0), "--minutes: expected more than 0, got 0"),
    "no thread": (("--threads", 0), "threads: expected a finite number > 0, got 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(what, tmp_path, capsys):
    arguments, message = BAD[what]
    code, _, err = main(capsys, "--out", tmp_path / "run", "--size", "smoke", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_cuda_is_refused(tmp_path, capsys):
    code, _, err = main(capsys, "--out", tmp_path / "run", "--device", "cuda")
    assert (code, err.count("\n")) == (2, 1)
    assert "device: expected a GPU that torch can use for cuda, got none; run it on the cpu" in err


def test_an_unknown_optimiser_or_device_is_refused_in_python_too():
    for name in ("optimizer", "device"):
        with pytest.raises(BadInput, match=rf"{name}: expected .* got '?toaster"):
            Plan(**{name: "toaster"})


def test_a_folder_with_a_run_is_left_alone(tmp_path, whole, capsys):
    before = tree(whole)
    for extra in ((), ("--resume",), ("--resume", "--knowledge", 0.2)):
        code, _, err = main(capsys, "--out", whole, "--size", "smoke", *extra)
        assert (code, err.count("\n")) == (2, 1), err
    assert tree(whole) == before


def test_a_descent_that_comes_apart_says_what_to_do(tmp_path, capsys):
    code, _, err = main(capsys, "--out", tmp_path / "run", *FEW, "--optimizer", "sgd", "--sft-lr", 1e6)
    assert (code, err.count("\n")) == (2, 1), err
    assert "expected a descent that stays finite, got parameters beyond 1e+06 in sft-baseline by update 2" in err
    assert "; lower --sft-lr, now 1e+06, and " in err
    assert f"name another folder, or remove {tmp_path / 'run'}" in err


def test_help_tells_what_is_taken_where_nothing_is_given(capsys):
    code, out, _ = main(capsys, "--help")
    text = " ".join(out.replace("│", " ").split())
    plans = [tiny_plan(size) for size in ("smoke", "paper")]
    assert code == 0

    def both(told):
        return "(" + " | ".join(f"{told(plan):g}" for plan in plans) + ")"

    shapes = {size: Shape(9, 9, **_worlds.SIZES[size]["model"]) for size in ("smoke", "paper")}
    sizes = [Sizes(**plan.language) for plan in plans]
    for told in (
        lambda plan: len(plan.seeds), lambda plan: plan.sft_steps, lambda plan: plan.steps, lambda plan: plan.prompts,
        lambda plan: plan.pretrain_steps, lambda plan: plan.evaluations,
    ):  # fmt: skip
        assert both(told) in text
    for name in ("width", "depth", "heads"):
        assert f"({' | '.join(str(getattr(shape, name)) for shape in shapes.values())})" in text
    for name in ("concentration", "knowledge"):
        assert f"({' | '.join(f'{getattr(of, name):g}' for of in sizes)})" in text
    for which in ("sft", "dpo"):
        assert f"({', '.join(f'{name} {getattr(recipe, which):.10g}' for name, recipe in RECIPES.items())})" in text
    for name in ARMS:
        assert name in text
    assert f"{objectives.get('dpo').beta:g} for dpo" in text
    assert SIZES.keys() == _worlds.SIZES.keys()
    assert running.tiny_plan("smoke").temperature == 1.0
