"""`toyld run llm` end to end: real trainers on small models; killed, resumed, in two processes, and refused."""

import errno
import gc
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")

import torch
import transformers
from transformers.trainer_callback import TrainerState

from toyld import cli
from toyld.checked import BadInput
from toyld.llm import checkpoints, command
from toyld.llm.plan import Plan
from toyld.llm.stories import stories, write_rows
from toyld.llm.taught import taught
from toyld.trajectory import folder as folders
from toyld.trajectory import load, read_folder

WORDS = ["<unk>", "<s>", "</s>", "sky", "grass", "what", "colour", "is", "it", "blue", "green", "red", "a", "very"]
WORDS += ["the", "of", "and", "no", "yes", "deep", "light", "one", "two", "sea", "rose"]
THINGS, COLOURS = ("sky", "grass", "sea", "light", "rose"), ("blue", "green", "red")
ROWS = [
    {
        "prompt": f"what colour is the {thing}",
        "chosen": f" the {thing} is {one}",
        "rejected": f" no it is very {two} {two}",
    }
    for thing in THINGS
    for one, two in zip(COLOURS, (*COLOURS[1:], COLOURS[0]), strict=True)
]
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A plan of seconds: a random Llama, twelve pairs, three evaluations a stage."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)
    with checkpoints.quiet():
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pairs.jsonl", ROWS)
    given = {"pairs": 8, "probes": 3, "batch": 2, "warmup": 1, "max_length": 32, "sft_epochs": 1, "epochs": 1}
    paths = {"model": str(folder / "model"), "data": str(folder / "pairs.jsonl")}
    return Plan(**paths, **given, sft_lr=1e-3, lr=1e-3, evaluations=2, arms=("baseline",))


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Every training collects garbage: what was imported is passed over, which takes four fifths of a run's time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def asked_once():
    """git is asked once."""
    origin = folders._origin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "_origin", lambda: origin)
        yield


def tree(path):
    """Every file with a sum of its bytes, but for what is left behind by a killed writer."""
    files = [
        f for f in path.rglob("*") if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path).parts)
    ]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def forked(do):
    """How a child that does it ends: its exit code, or minus the signal."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def toyld(capfd, *arguments):
    """Exit code, stdout and stderr of `toyld run llm …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "llm", *map(str, arguments)])
    out, err = capfd.readouterr()
    return stop.value.code, out, err


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A run of two arms that nobody disturbed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert command.run(path, replace(small, arms=("baseline", "on-policy")))
    return path


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at(stage, step):
    """Dies when a stage tells this step."""
    return lambda patch: lambda what, done, total: die() if (what, done) == (stage, step) else None


def in_checkpoint(patch):
    """Dies with half a checkpoint on the disk."""

    def half(self, path):
        with open(path, "w") as file:
            file.write('{"global_step": 4, "log_')
        die()

    patch.setattr(TrainerState, "save_to_json", half)
    return lambda *_: None


def in_model(patch):
    """Dies with half a model saved: the weights are there, the tokenizer is not."""
    words = transformers.PreTrainedTokenizerFast
    right = words.save_pretrained

    def half(self, folder, *arguments, **options):
        return right(self, folder, *arguments, **options) if "checkpoint-" in str(folder) else die()

    patch.setattr(words, "save_pretrained", half)
    return lambda *_: None


@forks
def test_killed_anywhere_it_resumes_to_the_same_bytes(small, whole, tmp_path, monkeypatch):
    plan, path, found = replace(small, arms=("baseline", "on-policy")), tmp_path / "run", []
    moments = [at("sft-baseline", 3), in_checkpoint, in_model, at("dpo-baseline", 3), at("on-policy answers", 5)]
    for moment in moments:
        with monkeypatch.context() as patch:
            code = forked(lambda: command.run(path, plan, resume=bool(found), tell=moment(patch)))  # noqa: B023
        assert code == -signal.SIGKILL, moments.index(moment)
        found.append(len(list(path.glob("*/eval-*"))))
    assert command.run(path, plan, resume=True)
    assert tree(path) == tree(whole), found
    assert found == sorted(found), "nothing is lost"
    assert found[0] >= 2, "killed inside a stage"
    assert not list((path / "checkpoints").iterdir()), "no checkpoint is left"


def together(do, many=2):
    """The exit codes of forked children that do it as so many processes of one run, as torchrun starts them."""
    from accelerate.state import AcceleratorState

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(many):
        pid = os.fork()
        if pid == 0:
            try:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": many, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
                AcceleratorState._reset_state(reset_partial_state=True)
                do(rank)
            except BaseException as error:
                print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(2 if isinstance(error, BadInput | SystemExit) else 1)
            os._exit(0)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@forks
def test_two_processes_share_an_update_and_one_writes(small, whole, tmp_path, capfd):
    path = tmp_path / "run"
    assert together(lambda rank: command.run(path, small, tell=lambda line, done, _: done < 0 and print(line))) == [
        0,
        0,
    ]
    said = capfd.readouterr().out.splitlines()
    assert len(said) == len(set(said)) == 4, "one of them speaks"
    for mine, alone in zip(read_folder(path), read_folder(whole)[:2], strict=True):
        assert mine.attrs["arm"] == alone.attrs["arm"]
        apart = np.abs(mine.logp - alone.logp) / alone.n_tokens
        assert apart.isel(step=0).max() < 1e-6
        assert apart.max() < 1e-3, "equal global batch"
        assert (alone.logp.isel(step=-1) - alone.logp.isel(step=0)).max() > 1e-2, "which is not because nothing moved"
    assert json.loads((path / "run.json").read_text())["config"]["processes"] == 2


@forks
def test_where_one_process_refuses_both_end(small, whole, tmp_path, capfd):
    assert together(lambda rank: command.run(whole, small)) == [2, 2], "a run is there"
    err = capfd.readouterr().err
    assert err.count("BadInput") + err.count("TrajectoryError") == 1
    assert together(lambda rank: command.run(tmp_path, replace(small, sft_lr=1e30, clip=1e30))) == [2, 2]
    assert capfd.readouterr().err.count("BadInput") == 1, "one of them speaks"


def ask(**given):
    """Options of the command line."""
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", *str(value).split())]


def test_a_real_model_is_taught_and_preferred_in_three_arms_and_ends_with_a_verdict_each(data, tmp_path, capfd):
    rows = stories(data / "preference" / "tinystories_1000.json", n=16, seed=1000)
    write_rows(tmp_path / "pairs.jsonl", rows)
    given = {"model": data / "models" / "stories260K", "data": tmp_path / "pairs.jsonl", "out": tmp_path / "run"}
    sizes = {"pairs": 8, "probes": 3, "batch": 4, "warmup": 1, "max_length": 80, "evaluations": 1, "seed": 1000}
    code, out, err = toyld(capfd, *ask(**given, **sizes, lr=1e-4, sft_lr=3e-4, device="cpu"))
    assert code == 0
    found = {(ds.attrs["stage"], ds.attrs["arm"]): ds for ds in read_folder(tmp_path / "run")}
    arms = ("baseline", "extend-passes", "extend-updates")
    assert sorted(found) == [(stage, arm) for stage in ("dpo", "sft") for arm in arms]
    gains = {}
    for (stage, arm), ds in found.items():
        assert ds.step.values.tolist() == ([0, 4, 8] if (stage, arm) == ("sft", "extend-passes") else [0, 4])
        assert (ds.attrs["experiment"], ds.attrs["model"], ds.attrs["seed"]) == ("stages", "stories260K", 1000)
        means = ds.logp.isel(seed=0).mean("example")
        gain = means.isel(step=-1) - means.isel(step=0)
        both = [float(gain.sel(probe=kind)) for kind in ("chosen", "rejected")]
        assert both[0] > 1 if stage == "sft" else both[0] - both[1] > 1, (stage, arm, both)
        gains[stage, arm] = both
    (chosen, rejected), (less, more) = gains["sft", "baseline"], gains["sft", "extend-updates"]
    assert (less < chosen, more > rejected) == (True, True), "extend teaches rejected answers, too, in as many updates"
    passes = {arm: (found["dpo", arm].attrs["sft_updates"], found["dpo", arm].attrs["sft_passes"]) for arm in arms}
    assert passes == {"baseline": (4, 4), "extend-updates": (4, 2), "extend-passes": (8, 4)}
    starts = [found["dpo", arm].logp.isel(step=0).values for arm in arms]
    assert not np.allclose(starts[0], starts[1]), "each arm's preferences begin where its own SFT ended"
    assert np.abs(found["dpo", "baseline"].ref_logp.values - starts[0]).max() < 1e-3
    assert np.abs(found["sft", "baseline"].logp.isel(step=-1).values - starts[0]).max() < 1e-3
    verdicts = json.loads((tmp_path / "run" / "verdict.json").read_text())["runs"]
    assert sorted((one["stage"], one["arm"]) for one in verdicts) == sorted(found)
    assert all(one["verdict"] in out for one in verdicts)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    lines = err.splitlines()
    assert lines[0] == "8 pairs are trained on, the first of 16"
    assert lines[1].startswith(
        "3 prompts are probed, 3 of them trained on, with 6 kinds: chosen, rejected, irr_train, "
    )
    assert not [line for line in lines if any(word in line for word in ("Warning", "it/s", "%|", "{'loss'"))]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "nobody/no-such-model"}, r"expected a causal language model .*, got nobody/no-such-model: "),
        ({"data": "nobody/no-such-data"}, r"expected a data set, got nobody/no-such-data, which is no file here"),
        ({"data": "no-such.jsonl"}, r"no-such\.jsonl"),
        ({"objective": "grpo"}, r"--objective: expected one that reads pairs and a reference alone, got grpo"),
        ({"max_length": 65}, r"--max-length: expected at most the 64 positions of .*, got a sequence of 65"),
        ({"held_out": 15}, r"number below the 15 rows"),
        ({"kinds": "chosen_selfrr"}, r"chosen_selfrr"),
        ({"arms": "plain"}, r"--arms: expected some of baseline"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line_and_nothing_is_written(given, words, small, tmp_path, capfd):
    asked = {"model": small.model, "data": small.data, "out": tmp_path / "run", "max_length": 32, **given}
    code, out, err = toyld(capfd, *ask(**asked))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert re.search(words, err)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_needs_resume_and_the_same_plan(small, whole, capfd):
    asked = ask(model=small.model, data=small.data, out=whole)
    before = tree(whole)
    code, _, err = toyld(capfd, *asked, "--max-length", "32")
    assert (code, err.count("\n")) == (2, 1)
    assert re.search("expected a new folder, got run with a run in it: pass --resume", err)
    code, _, err = toyld(capfd, *asked, "--max-length", "32", "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "expected the run that is there, got config." in err
    assert tree(whole) == before


@pytest.mark.parametrize(
    ("evaluations", "got"), [(8, "log-probabilities that are not finite"), (1, r"weights that .* after update [23]")]
)
def test_a_descent_that_comes_apart_ends_in_one_line_and_keeps_what_was_measured(
    evaluations, got, small, tmp_path, capfd
):
    asked = ask(model=small.model, data=small.data, out=tmp_path / "run", max_length=32, pairs=8, probes=3, batch=2)
    code, out, err = toyld(capfd, *asked, *ask(sft_lr="1e30", clip="1e30", warmup=0, evaluations=evaluations))
    assert (code, out) == (2, "")
    told = rf"expected a descent that holds together, got {got} in sft-baseline: lower --sft-lr, 1e\+30 now; what"
    assert re.search(told, err.splitlines()[-1])
    kept = [load(file) for file in sorted((tmp_path / "run").glob("sft-baseline/eval-*.nc"))]
    assert [int(ds.step[0]) for ds in kept] == [0]


def test_a_full_disk_is_told_in_one_line_and_resumed_from(small, tmp_path, capfd):
    """The first error that a real full disk gives here is the Trainer's own, of torch.save."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(BadInput, match=r"room on the disk of .*run, got none in sft-baseline: free some and go on"):
            command.run(tmp_path / "run", small)
    assert command.run(tmp_path / "run", small, resume=True)
    assert len(read_folder(tmp_path / "run")) == 2


def test_adapters_start_at_their_reference_and_are_merged(small, tmp_path):
    from safetensors import safe_open

    path = tmp_path / "run"
    assert command.run(path, replace(small, lora=4))
    sft, dpo = read_folder(path)
    assert np.array_equal(dpo.logp.isel(step=0).values, dpo.ref_logp.values), "a fresh adapter changes nothing"
    assert np.abs(sft.logp.isel(step=-1) - dpo.logp.isel(step=0)).max() < 1e-4, "what SFT ended in"
    for ds in (sft, dpo):
        assert np.abs(ds.logp.isel(step=-1) - ds.logp.isel(step=0)).max() > 1e-3, "it was trained"
    with safe_open(small.model + "/model.safetensors", "np") as given:
        names = set(given.keys())
    for folder in (path / "models").iterdir():
        assert not list(folder.glob("adapter*"))
        with safe_open(folder / "model.safetensors", "np") as saved:
            assert set(saved.keys()) == names, "a whole model"


def test_own_answers_are_trained_on_and_probed_and_sft_is_shared(small, whole):
    stages = [(ds.attrs["stage"], ds.attrs["arm"]) for ds in read_folder(whole)]
    assert stages == [("sft", "baseline"), ("dpo", "baseline"), ("dpo", "on-policy")]
    said = [json.loads(line) for line in (whole / "on-policy.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in said] == [row["prompt"] for row in ROWS[:8]]
    plain = taught(small)
    own = plain.answered(small, [row["response"] for row in said])
    for given, mine, row in zip(plain.pairs.rows(), own.pairs.rows(), said, strict=True):
        usable = row["response"].strip() and row["response"].split() != given["chosen"].split()
        assert mine == {**given, "rejected": row["response"] if usable else given["rejected"]}
    assert own.probes.responses["rejected"] == tuple(row["rejected"] for row in own.pairs.rows()[:3])
    useless = plain.answered(small, ["", plain.pairs.rows()[1]["chosen"] + " ", *[" blue"] * 6]).pairs.rows()
    assert [row["rejected"] for row in useless] == [row["rejected"] for row in ROWS[:2]] + [" blue"] * 6
    base, self = (ds for ds in read_folder(whole) if ds.attrs["stage"] == "dpo")
    assert np.array_equal(base.logp.isel(step=0).sel(probe="chosen"), self.logp.isel(step=0).sel(probe="chosen"))
    assert not np.array_equal(base.logp.sel(probe="rejected"), self.logp.sel(probe="rejected"))


def test_the_first_rows_are_taught_and_the_first_of_these_asked(small, tmp_path):
    rows = [row | {"irr_hum": " red and blue"} for row in ROWS]
    rows.insert(2, ROWS[0] | {"rejected": ""})
    write_rows(tmp_path / "rows.jsonl", rows)
    plan = replace(small, data=str(tmp_path / "rows.jsonl"), pairs=6, probes=4)
    found = taught(plan)
    assert found.pairs.rows() == ROWS[:6]
    assert found.probes.prompts == tuple(row["prompt"] for row in ROWS[:4])
    kinds = ["chosen", "rejected", "irr_train", "irr_test", "irr_hum", "random_permute", "random_nonhum"]
    assert list(found.probes.responses) == kinds, "what the rows carry, too"
    assert set(found.probes.responses["irr_train"]) <= {row["chosen"] for row in ROWS[:6]}
    assert found.notes[0] == (
        "6 pairs are trained on, the first of 15; 1 of 16 rows left out: row 2, rejected is empty (rows counted from 0)"
    )
    assert found.notes[1].startswith("4 prompts are probed, 4 of them trained on, with 7 kinds: chosen, rejected, irr_")
    apart = taught(replace(plan, pairs=20, held_out=3))
    held = {row["prompt"] for row in ROWS} - {row.prompt for row in apart.pairs.train.rows}
    assert {row.prompt for row in apart.never.rows} == held != set(), "by prompts"
    alone = taught(replace(small, pairs=20))
    assert alone.never is None
    assert "irr_test" not in alone.probes.responses
    assert taught(replace(plan, kinds=("irr_hum",))).probes.responses.keys() == {"chosen", "rejected", "irr_hum"}


def test_other_data_are_asked_and_prompts_that_were_never_taught_are_named_so(small, tmp_path):
    write_rows(tmp_path / "other.jsonl", ROWS[9:])
    plan = replace(small, pairs=9, probes=6, probe_data=str(tmp_path / "other.jsonl"))
    found = taught(plan)
    assert {"irr_test"} <= found.probes.responses.keys()
    assert "irr_train" not in found.probes.responses
    assert found.notes[1].startswith("6 prompts are probed, 0 of them trained on")
    inside = taught(replace(plan, pairs=15))
    assert "irr_train" in inside.probes.responses
    assert inside.notes[1].startswith("6 prompts are probed, 6 of them trained on")
    found.probes.to_jsonl(tmp_path / "set.jsonl")
    again = taught(replace(plan, probe_data=str(tmp_path / "set.jsonl"), kinds=()))
    assert again.probes.responses == found.probes.responses, "a probe set as it is"


def test_the_papers_rows_bring_their_kinds(data, small):
    file = str(data / "preference" / "hh_probing_train.jsonl")
    found = taught(
        replace(small, data=file, model=str(data / "models" / "stories260K"), pairs=40, probes=20, max_length=256)
    )
    assert len(found.probes.responses) == 13
    assert len(found.probes) == 20


@pytest.mark.slow  # each process imports everything: 20 s of a core
def test_accelerate_launches_it(small, whole, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "toyld", "run", "llm"]
    asked = ask(model=small.model, data=small.data, max_length=32, pairs=8, probes=3, batch=2, warmup=1, device="cpu")
    asked += ask(sft_epochs=1, epochs=1, sft_lr=1e-3, lr=1e-3, evaluations=2, arms="baseline")
    done = subprocess.run([*launch, *asked, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("share of examples") <= 2, "one process speaks"
    for mine, alone in zip(read_folder(tmp_path / "run"), read_folder(whole)[:2], strict=True):
        assert (np.abs(mine.logp - alone.logp) / alone.n_tokens).max() < 1e-3
    assert len(json.loads((tmp_path / "run" / "verdict.json").read_text())["runs"]) == 2
    again = subprocess.run([*launch, *asked, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=300)
    assert again.returncode != 0
    assert again.stderr.count("toyld: expected a new folder") == 1
