"""`toyld example`: what it makes is real, whole, and the same by the same seed; killed it goes on; what it refuses."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")

import torch
import transformers

from toyld import cli
from toyld.checked import BadInput
from toyld.diagnosis import diagnose
from toyld.llm import example
from toyld.llm.fable import fable
from toyld.trajectory import read, read_folder

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run
SMOKE = example.Plan(**example.SIZES["smoke"])
CHECKPOINTS = [4, 8, 12]


def toyld(*words):
    """Exit code, what `toyld WORDS` printed, and its complaint."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    return stop.value.code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An example of smoke size, as the command makes it, and what it printed."""
    out = tmp_path_factory.mktemp("made") / "new" / "example"
    code, said, complaint = toyld("example", out, "--size", "smoke")
    assert code == 0, complaint
    return out, said


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def weights(out):
    """The bytes of every model and of the pairs, and the record."""
    files = [*out.rglob("*.safetensors"), *out.glob("*.json*"), *out.rglob("tokenizer.json")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def test_the_model_is_a_real_one_that_has_learnt_some_of_the_language(made):
    out, said = made
    known = json.loads((out / "example.json").read_text())["made"]["model"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    assert model.config.model_type == "llama"
    assert 1e5 < model.num_parameters() == known["parameters"] < 4e5
    text = "What does the fox hide? often coins, maybe bread."
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert max(ids) < len(tokenizer) == model.config.vocab_size
    begins = model(input_ids=torch.tensor([ids[:1]])).logits[0, -1].softmax(-1)
    assert begins[ids[1]].item() > 0.8, "behind one end token a line begins"
    assert abs(known["first_loss"] - np.log(len(tokenizer))) < 0.2, "untrained it knows nothing"
    assert known["entropy"] < known["held_out_loss"] < known["first_loss"] / 3
    assert f"{known['held_out_loss']:.2f} nats a token" in said
    assert not (out / "model" / "checkpoints").exists()


def test_the_pairs_prefer_the_truth_and_prompts_are_kept_apart(made):
    out, _ = made
    told = fable(seed=0, knowledge=SMOKE.knowledge)
    number = {told.question(p): p for p in range(told.prompts)}
    pairs, held_out = rows(out / "pairs.jsonl"), rows(out / "held_out.jsonl")
    asked = [row["prompt"] for row in pairs + held_out]
    assert (len(pairs), len(held_out), len(set(asked))) == (256, 64, 320)
    for row in pairs + held_out:
        p = number[row["prompt"]]
        assert told.true(p, row["chosen"])
        assert told.heard(row["chosen_gptsemantic"]) == told.heard(row["chosen"])
        assert told.heard(row["reject_gptsemantic"]) == told.heard(row["rejected"])
        said, facts = told.heard(row["rejected"]), told.language.facts[0, p].tolist()
        assert len(said) >= 2
        assert not any(x == fact for x, fact in zip(said, facts, strict=False)), "wrong throughout"


def test_dpo_is_trls_own_log_with_checkpoints_that_moved(made):
    out, said = made
    state = json.loads((out / "dpo" / "trainer_state.json").read_text())
    logged = [row for row in state["log_history"] if "eval_rewards/margins" in row]
    assert [row["step"] for row in logged] == [0, 2, 4, 6, 8, 10, 12]
    assert logged[0]["eval_rewards/margins"] == 0, "the reference is the model before it"
    assert logged[-1]["eval_rewards/margins"] > 0.005
    assert sorted(int(path.name[11:]) for path in (out / "dpo").glob("checkpoint-*")) == CHECKPOINTS
    assert all((out / "dpo" / f"checkpoint-{k}" / "trainer_state.json").is_file() for k in CHECKPOINTS)
    found = diagnose(read(out / "dpo"))
    assert found.verdict == "cannot-tell"
    assert "argmax_logp" in found.missing
    assert said.splitlines()[-1] == f"next: toyld diagnose {out / 'dpo'}"


def test_it_can_be_probed(made, tmp_path):
    out, _ = made
    models = [out / "model", *(out / "dpo" / f"checkpoint-{k}" for k in CHECKPOINTS)]
    code, said, _ = toyld(
        "probe",
        "--models",
        *models,
        "--data",
        out / "held_out.jsonl",
        "--held-out",
        "--n",
        16,
        "--out",
        tmp_path / "run",
    )
    assert code == 0
    assert "chosen_gptsemantic" in said
    (ds,) = read_folder(tmp_path / "run")
    assert ds.step.values.tolist() == [0, *CHECKPOINTS]
    start = (ds.logp / ds.n_tokens).isel(step=0, seed=0).mean("example")
    assert float(start.sel(probe="chosen")) > -2, "pairs are written as the lines that it learnt from"
    change = (ds.logp.isel(step=-1) - ds.logp.isel(step=0)).isel(seed=0).mean("example")
    assert float(change.sel(probe="chosen") - change.sel(probe="rejected")) > 0.01
    gap = (ds.argmax_logp - ds.logp).sel(probe="chosen")
    assert float(gap.min()) >= 0
    assert float(gap.max()) > 0


def test_a_finished_folder_stays_as_it_is_and_needs_nothing(made, monkeypatch):
    out, _ = made
    monkeypatch.setitem(sys.modules, "trl", None)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, said, _ = toyld("example", out, "--size", "smoke")
    assert (code, said.splitlines()[0]) == (0, f"{out} is finished, nothing to do (--force makes it anew)")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    code, _, complaint = toyld("example", out, "--size", "smoke", "--seed", 1)
    assert code == 2
    assert complaint.count("\n") == 1
    assert "--force" in complaint


@forks
def test_killed_in_each_stage_it_goes_on_and_ends_with_the_same_bytes(made, tmp_path):
    whole, _ = made
    out, left = tmp_path / "example", []
    for stage, update in (("pretraining", 3), ("DPO", 9)):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                example.make(out, SMOKE, tell=lambda what, done, _: (what, done) == (stage, update) and kill())  # noqa: B023
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, stage
        left.append(set(json.loads((out / "example.json").read_text())["made"]))
        assert not (out / "dpo").exists(), "a stage appears whole"
    assert left == [set(), {"model", "pairs"}]
    before = (out / "model" / "model.safetensors").stat().st_mtime_ns
    lines = []
    example.make(out, SMOKE, tell=lambda what, done, _: lines.append(what) if done < 0 else None)
    assert (out / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert not any("pretraining" in line for line in lines), "what is whole is not made again"
    assert weights(out) == weights(whole)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")], "nothing is left half-made"


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_stage_that_is_lost_is_made_again_and_all_that_rest_on_it(made, tmp_path, monkeypatch):
    out = tmp_path / "example"
    shutil.copytree(made[0], out)
    (out / "pairs.jsonl").unlink()
    again = []
    for name in ("_model", "_pairs", "_dpo"):
        monkeypatch.setattr(example, name, lambda *_, name=name: again.append(name) or {})
    example.make(out, SMOKE)
    assert again == ["_pairs", "_dpo"]
    example.make(out, SMOKE, force=True)
    assert again[2:] == ["_model", "_pairs", "_dpo"]
    assert not (out / "model").exists(), "it was cleared for the new one"


def test_bad_folders_are_told_in_one_line(tmp_path):
    file, other, strange = tmp_path / "file", tmp_path / "other", tmp_path / "strange"
    file.write_text("mine")
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    strange.mkdir()
    (strange / "example.json").write_text('{"schema": 1}')
    expected = {
        file: "which is a file; name another",
        other: "which holds other files; name another",
        strange: "expected the record of an example",
        file / "below": "Not a directory",
    }
    for path, words in expected.items():
        for more in ((), ("--force",)):
            code, said, complaint = toyld("example", path, *more)
            assert (code, said) == (2, ""), path
            assert complaint.count("\n") == 1
            assert words in complaint
    assert (file.read_text(), (other / "thesis.txt").read_text()) == ("mine", "mine")
    with pytest.raises(BadInput, match="--seed: expected a whole number from 0"):
        example.Plan(seed=-1)


@pytest.mark.parametrize("absent", ["trl", "transformers"])
def test_without_the_extra_one_line_says_how_to_get_it(absent, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    code, said, complaint = toyld("example", tmp_path / "example")
    assert (code, said) == (2, "")
    assert complaint.splitlines() == [
        f'toyld: expected the package {absent}, got none installed; in the clone of toyld: pip install -e ".[llm]"'
    ]
    assert not (tmp_path / "example").exists()


def test_the_language_knows_what_is_said_and_what_is_true():
    told = fable(seed=3, knowledge=0.5)
    asked = np.arange(told.prompts)
    sure = told.answers(asked, knowledge=1.0)
    assert all(told.true(int(p), told.say(text)) for p, text in zip(asked, sure, strict=True))
    half = told.answers(asked, knowledge=0.5)
    share = np.mean([told.true(int(p), told.say(text)) for p, text in zip(asked, half, strict=True)])
    assert 0.1 < share < 0.5, "two or three things, each told with probability one half or by luck"
    assert told.surprise(asked, half) > np.log(told.prompts)
    for other in (" often coins", "often coins.", " often coins, maybe.", " often fox.", " coins often.", ""):
        assert told.heard(other) is None


@pytest.mark.slow
def test_the_full_example_knows_much_of_its_language_and_can_be_diagnosed(tmp_path):
    out = tmp_path / "example"
    code, said, _ = toyld("example", out)
    assert code == 0
    assert len(said.splitlines()) == 7
    record = json.loads((out / "example.json").read_text())["made"]
    known = record["model"]
    assert known["held_out_loss"] < known["entropy"] + 0.2, "seeds 0 to 5: 0.07 to 0.14 above"
    assert known["true"] >= 4, "of 64 greedy answers: seeds 0 to 5, 8 to 53"
    models = [out / "model", *(out / "dpo" / f"checkpoint-{k}" for k in record["dpo"]["checkpoints"])]
    code, _, _ = toyld("probe", "--models", *models, "--data", out / "held_out.jsonl", "--out", tmp_path / "probed")
    assert code == 0
    (ds,) = read_folder(tmp_path / "probed")
    found = diagnose(ds)
    # Which, another processor's last digits decide as another seed would: see toyld.llm.example.Plan.
    assert found.verdict in ("squeezing", "rejection", "displacement", "healthy")
    assert found.numbers["d_rejected"] < -3
    assert found.numbers["d_chosen"] > found.numbers["d_rejected"] + 3
