"""The callback in two processes: the same probes as in one, the same numbers in both, and none waits for the other."""

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")

from toyld.checked import BadInput
from toyld.llm import checkpoints
from toyld.trajectory import read

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run


def run(model, stories, out, *, batch):
    """A DPO run of two updates with probes at each, from real weights; what each process saw in rank-N.npz."""
    import transformers
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from toyld.llm import LearningDynamicsCallback, ProbeSet, Solved

    words = [story.split() for story in json.loads(Path(stories).read_text())]
    rows = [
        {"prompt": " ".join(a[:8]), "chosen": " " + " ".join(a[8:32]), "rejected": " " + " ".join(b[8:24])}
        for a, b in zip(words[:16], words[20:], strict=False)
    ]
    probes = ProbeSet.from_preference(rows[12:15], extra=["permuted"], seed=0)

    def trainer():
        args = DPOConfig(
            output_dir=str(out / "out"), per_device_train_batch_size=batch, max_steps=2, learning_rate=1e-3, bf16=False,
            logging_steps=1, report_to="none", use_cpu=True, gradient_checkpointing=False, save_strategy="no", seed=1,
            disable_tqdm=True,
        )  # fmt: skip
        return DPOTrainer(
            model=transformers.AutoModelForCausalLM.from_pretrained(model),
            ref_model=transformers.AutoModelForCausalLM.from_pretrained(model),
            args=args,
            train_dataset=Dataset.from_list(rows[:12]),
            processing_class=transformers.AutoTokenizer.from_pretrained(model),
        )

    first = trainer()
    # A share that tells one answer from another; 0 for none of the responses at hand.
    solved = Solved(
        lambda prompt, answer, solution: 1 / (1 + len(answer)), samples=2, max_new_tokens=6, held_out=probes
    )
    quiet = {"every": 1, "tell": lambda line: None, "report": False}
    callback = LearningDynamicsCallback(first, probes, out=out / "ld", solved=solved, **quiet)
    first.add_callback(callback)
    first.train()
    rank, many = first.accelerator.process_index, first.accelerator.num_processes
    ds = callback.table
    found = {"logp": ds.logp, "argmax": ds.argmax_logp, "ref": ds.ref_logp, "n": ds.n_tokens}
    found |= {"accuracy": ds.accuracy.sel(probe="chosen"), "held_out": ds.eval_accuracy}
    np.savez(out / f"rank-{rank}.npz", many=many, **found)
    second = trainer()
    second.add_callback(LearningDynamicsCallback(second, probes, every=1, out=out / "ld", tell=lambda line: None))
    try:
        second.train()
    except BadInput as refused:
        (out / f"refused-{rank}.txt").write_text(str(refused))
    if many > 1:
        np.save(out / f"sharded-{rank}.npy", sharded(second, callback, model))


def sharded(trainer, callback, model):
    """Policy and reference scored with their parameters split between the processes, as FSDP has them.

    Accelerate offers FSDP on accelerators alone, so the models are split by torch itself.
    """
    import transformers
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from toyld.llm import policy

    mesh = init_device_mesh("cpu", (2,))
    policies = [transformers.AutoModelForCausalLM.from_pretrained(model) for _ in range(2)]
    assert not policy.sharded(trainer)
    for each in policies:
        for layer in each.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(each, mesh=mesh)
    trainer.model = trainer.model_wrapped = policies[0]
    trainer.ref_model = policies[1]
    assert policy.sharded(trainer)
    items, rows = callback._cells.items, callback._cells.rows
    with policy.untouched(trainer), policy.reference(trainer) as reference:
        found = [policy.score(trainer, items, rows, model=each).logp for each in (None, reference)]
        marks = callback._exam.measure(trainer, step=0, kinds=callback._cells.kinds)
    np.testing.assert_array_equal(marks["accuracy"], callback.table.accuracy.values[:, :1])
    return [callback._cells.spread(logp) for logp in found]


def child(rank, port, *arguments, **options):
    """Process number `rank` of two, as a launcher would start it."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    run(*arguments, **options)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_two(*arguments, **options):
    """Two processes made from this one, which has imported trl already."""
    port, pids = free_port(), []
    for rank in (0, 1):
        pid = os.fork()
        if not pid:  # pragma: no cover
            try:
                child(rank, port, *arguments, **options)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]


def compare(one, two):
    """What two processes saw is the same in both, and what one process sees."""
    alone, first, second = (np.load(file) for file in (one / "rank-0.npz", two / "rank-0.npz", two / "rank-1.npz"))
    assert (alone["many"], first["many"]) == (1, 2)
    for name in alone.files:
        np.testing.assert_array_equal(first[name], second[name])
    n = alone["n"]
    for name in ("logp", "argmax"):
        off = np.abs(first[name] - alone[name]) / n
        assert np.nanmax(off[:, 0]) <= 1e-6
        assert np.nanmax(off[:, -1]) <= 1e-3
    np.testing.assert_allclose(first["ref"] / n, alone["ref"] / n, rtol=0, atol=1e-6)
    assert np.nanmax(np.abs(alone["logp"][:, -1] - alone["logp"][:, 0]) / n) > 0.01, "it trained"
    np.testing.assert_array_equal(read(two / "ld").logp.values, first["logp"])
    np.testing.assert_array_equal(first["accuracy"][:, 0], alone["accuracy"][:, 0])
    assert len(np.unique(first["accuracy"])) > 3
    np.testing.assert_allclose(first["held_out"], first["accuracy"].mean(-1), rtol=1e-15)
    for rank in (0, 1):
        for split in np.load(two / f"sharded-{rank}.npy"):
            np.testing.assert_allclose(split / n[0], alone["logp"][0, 0] / n[0], rtol=0, atol=1e-6)
    texts = [(two / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert texts[0] == texts[1], "what one process refuses, all refuse"
    assert texts[0].startswith("out: expected a new folder, got ")


@forks
def test_two_processes_measure_what_one_does(data, tmp_path):
    model, stories = str(data / "models" / "stories260K"), str(data / "preference" / "tinystories_1000.json")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    with checkpoints.quiet():
        run(model, stories, one, batch=4)
        in_two(model, stories, two, batch=2)
    compare(one, two)


@pytest.mark.slow
def test_accelerate_launch_measures_what_one_process_does(data, tmp_path):
    model, stories = str(data / "models" / "stories260K"), str(data / "preference" / "tinystories_1000.json")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        f"import importlib.util, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('distributed', {__file__!r})\n"
        f"module = importlib.util.module_from_spec(spec)\n"
        f"spec.loader.exec_module(module)\n"
        f"module.run({model!r}, {stories!r}, pathlib.Path({str(two)!r}), batch=2)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]  # no GPU: both on the CPU
    launch += ["--main_process_port", str(free_port()), str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    with checkpoints.quiet():
        run(model, stories, one, batch=4)
    compare(one, two)
