"""`toyld example`: a small language model, preference pairs and a DPO run, real and made here, to try every command on.

    example.json                the plan, and what came of it; written whole after each stage
    model/                      a Llama of a hundred thousand parameters and its tokenizer, taught `toyld.llm.fable`
    pairs.jsonl, held_out.jsonl pairs to train on, pairs to keep out: true answers, and wrong ones
    dpo/                        TRL's own DPOTrainer on the pairs: trainer_state.json and three checkpoints

No network, no data but the language's, one CPU core. A stage appears whole or not at all; a killed run goes on with the
stage that it was at. The same seed gives the same bytes where the same versions of torch and TRL run on the same CPU.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from toyld.checked import BadInput
from toyld.files import write_whole
from toyld.llm.fable import Fable, fable
from toyld.llm.sources import write_rows
from toyld.tiny.texts import rephrase

__all__ = ["SIZES", "Plan", "make", "show"]

SCHEMA = 1
NEEDS = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "trl")
STREAMS = {"asked": 81, "kept out": 82, "wrong": 83}  # of random numbers
RECORD, PAIRS, HELD_OUT, MODEL, DPO = "example.json", "pairs.jsonl", "held_out.jsonl", "model", "dpo"
MADE = {"model": (MODEL,), "pairs": (PAIRS, HELD_OUT), "dpo": (DPO,)}  # what each stage leaves
ROOM = 24  # tokens of the longest answer, with some to spare

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """Everything that determines an example.

    knowledge: how often the language tells its facts. rows, passes, pretrain_lr, shape: of pretraining, `unseen` rows
    are kept out of it. held_out: prompts of the 320 that get no pair to train on. updates, every, batch, lr, beta: of
    DPO, a checkpoint every so many updates.

    The rate of DPO is chosen so that there is something to diagnose. Of seeds 0 to 5, probed at the start and at the
    three checkpoints on held-out pairs, 0, 1 and 5 read squeezing, 2 rejection, 3 displacement, and 4 healthy: there
    pretraining had learnt most of the facts.
    """

    seed: int = 0
    knowledge: float = 0.5
    rows: int = 32000
    unseen: int = 200
    passes: float = 2.5
    pretrain_lr: float = 1e-2
    hidden: int = 64
    layers: int = 2
    held_out: int = 64
    updates: int = 120
    every: int = 40
    batch: int = 16
    lr: float = 2e-4
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed: expected a whole number from 0 to {2**32 - 1}, got {self.seed}")


SIZES: dict[str, dict[str, Any]] = {"full": {}, "smoke": {"rows": 6000, "passes": 1.0, "updates": 12, "every": 4}}


def make(
    out: str | Path, plan: Plan, /, *, force: bool = False, tell: Tell = lambda what, done, total: None
) -> dict[str, Any]:
    """Make what is missing of an example in the folder `out`; what came of each stage, as in `out/example.json`.

    force: make everything anew. tell: hears (stage, done, in all), and (line, −1, 0) for a line to show.

    Raises:
        BadInput: a folder that holds something else, or an example of another plan; packages that are missing.
    """
    out = Path(out)
    made = _known(out, plan, force)
    if _finished(out, made):
        return made
    if absent := [name for name in NEEDS if find_spec(name) is None]:
        msg = f"expected the package {absent[0]}, got none installed; in the clone of toyld: "
        raise BadInput(msg + 'pip install -e ".[llm]"')
    from toyld.llm.command import hushed

    out.mkdir(parents=True, exist_ok=True)
    told = fable(seed=plan.seed, knowledge=plan.knowledge)
    stages = {"model": _model, "pairs": _pairs, "dpo": _dpo}
    with hushed(), _one_thread():
        for name, stage in stages.items():
            if name in made and all((out / file).exists() for file in MADE[name]):
                continue
            made = {stage: made[stage] for stage in list(stages)[: list(stages).index(name)]}  # later ones build on it
            write_whole(out / RECORD, _record(plan, made))
            _clear(out, *list(stages)[len(made) :])
            made[name] = stage(out, plan, told, tell)
            write_whole(out / RECORD, _record(plan, made))
    return made


def _record(plan: Plan, made: dict[str, Any]) -> bytes:
    value = {"schema": SCHEMA, "command": "toyld example", "plan": asdict(plan), "made": made}
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _known(out: Path, plan: Plan, force: bool) -> dict[str, Any]:
    """What the folder holds of this plan already."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"expected a folder to write to, got {out}, which is a file; name another")
    record = out / RECORD
    if not record.is_file():
        if out.is_dir() and any(not file.name.startswith(f".{RECORD}") for file in out.iterdir()):
            raise BadInput(f"expected a new or empty folder, got {out}, which holds other files; name another")
        return {}
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        if known["schema"] != SCHEMA or known["command"] != "toyld example":
            raise ValueError
        made, same = dict(known["made"]), known["plan"] == asdict(plan)
    except (ValueError, KeyError, TypeError):
        raise BadInput(f"expected the record of an example, got {record}; name another folder") from None
    if not same and not force:
        raise BadInput(f"expected an example of this size and seed, got another in {out}; --force makes it anew")
    return {} if force else made


def _finished(out: Path, made: dict[str, Any]) -> bool:
    return set(made) == set(MADE) and all((out / file).exists() for files in MADE.values() for file in files)


def _clear(out: Path, *stages: str) -> None:
    """Takes away what stages left, whole or in part."""
    for name in (file for stage in stages for file in MADE[stage]):
        for path in (out / name, out / f".{name}.part", *out.glob(f".{name}.*.part")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread, which is as fast for so small a model, and sums in the same order everywhere."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _rng(plan: Plan, stream: str) -> np.random.Generator:
    return np.random.default_rng([plan.seed, STREAMS[stream]])


def _model(out: Path, plan: Plan, told: Fable, tell: Tell) -> dict[str, Any]:
    """Pretraining on answers of the source; what the model knows then."""
    from toyld.llm.checkpoints import load_model, load_tokenizer
    from toyld.llm.pretrain import pretrain
    from toyld.probes import sampler_from_model

    asked = _rng(plan, "asked").integers(told.prompts, size=plan.rows)
    texts = told.answers(asked)
    rows = [{"prompt": told.question(int(p)), "response": told.say(t)} for p, t in zip(asked, texts, strict=True)]
    tell(f"pretraining on {plan.rows - plan.unseen} lines like “{rows[0]['prompt']}{rows[0]['response']}”", -1, 0)
    part = out / f".{MODEL}.part"
    part.mkdir()
    write_rows(part / "rows.jsonl", rows)
    shape = {"hidden_size": plan.hidden, "intermediate_size": 2 * plan.hidden}
    shape |= {"num_hidden_layers": plan.layers, "num_attention_heads": 4}
    found = pretrain(
        part / "rows.jsonl", part, vocabulary=512, length=64, room=256, batch=16, epochs=plan.passes,
        lr=plan.pretrain_lr, seed=plan.seed, bf16=False, held_out=plan.unseen, shape=shape, form="{prompt} {response}",
        begin=True, cpu=True, tell=lambda done, total: tell("pretraining", done, total),
    )  # fmt: skip
    shutil.rmtree(part / "checkpoints")
    for name in ("rows.jsonl", "report.json"):
        (part / name).unlink()
    model, tokenizer = load_model(str(part)), load_tokenizer([str(part)])
    lengths = [len(tokenizer(row["prompt"] + row["response"])["input_ids"]) for row in rows[-plan.unseen :]]
    floor = told.surprise(asked[-plan.unseen :], texts[-plan.unseen :]) / float(np.mean(lengths))
    greedy, kept = sampler_from_model(model, tokenizer, seed=None, room=ROOM), _kept_out(plan, told)
    right = sum(told.true(p, greedy(told.question(p))) for p in kept)
    part.replace(out / MODEL)
    names = ("parameters", "vocabulary", "updates", "tokens", "first_loss", "held_out_loss")
    known = {name: found[name] for name in names} | {"entropy": floor, "asked": len(kept), "true": right}
    tell(
        f"{out / MODEL}: a Llama of {known['parameters']:,} parameters; on lines it never saw its loss is "
        f"{known['held_out_loss']:.2f} nats a token, {known['first_loss']:.2f} before training, {floor:.2f} for the "
        f"language itself; {right} of {len(kept)} greedy answers are true", -1, 0,
    )  # fmt: skip
    return known


def _kept_out(plan: Plan, told: Fable) -> list[int]:
    """Prompts without a pair to train on."""
    return sorted(_rng(plan, "kept out").permutation(told.prompts)[: plan.held_out].tolist())


def _pairs(out: Path, plan: Plan, told: Fable, tell: Tell) -> dict[str, Any]:
    """To each prompt the truth, and as many things that are wrong throughout; each again in other words.

    Every answer has a style of its own. What the other words say is what the answer says: the language knows.
    """
    language, rngs = told.language, [_rng(plan, "wrong")]
    every, kept = list(range(told.prompts)), set(_kept_out(plan, told))
    true = told.answers(every, knowledge=1.0, stream=1)[None]
    others = rephrase(language, "chosen", true, rngs)
    wrong = language.tell(language.concepts(others["chosen_gptformat"]), rngs)
    texts = {"chosen": true, "rejected": wrong, "chosen_gptsemantic": others["chosen_gptsemantic"]}
    texts["reject_gptsemantic"] = rephrase(language, "rejected", wrong, rngs)["reject_gptsemantic"]
    rows = [{"prompt": told.question(p)} | {kind: told.say(text[0, p]) for kind, text in texts.items()} for p in every]
    order = _rng(plan, "kept out").permutation(every).tolist()  # data in the order of the alphabet would be odd data
    many = write_rows(out / PAIRS, [rows[p] for p in order if p not in kept])
    few = write_rows(out / HELD_OUT, [rows[p] for p in order if p in kept])
    tell(f"{out / PAIRS}: {many} pairs; {out / HELD_OUT}: {few} on other prompts", -1, 0)
    return {"pairs": many, "held_out": few}


def _dpo(out: Path, plan: Plan, told: Fable, tell: Tell) -> dict[str, Any]:
    """TRL's own trainer; its log, and its checkpoints' numbers."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from toyld.llm.checkpoints import load_model, load_tokenizer

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell("DPO", state.global_step, state.max_steps)

    tell(f"DPO, {plan.updates} updates of {plan.batch} pairs at a rate of {plan.lr:g}, by TRL", -1, 0)
    part, model = out / f".{DPO}.part", str(out / MODEL)
    data = {
        name: Dataset.from_list([json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()])
        for name in (PAIRS, HELD_OUT)
    }
    args = DPOConfig(
        output_dir=str(part), max_steps=plan.updates, per_device_train_batch_size=plan.batch, learning_rate=plan.lr,
        lr_scheduler_type="constant_with_warmup", warmup_steps=5, beta=plan.beta, seed=plan.seed, bf16=False,
        use_cpu=True, gradient_checkpointing=False, save_steps=plan.every, save_only_model=True,
        logging_steps=plan.every // 4, eval_strategy="steps", eval_steps=plan.every // 2, eval_on_start=True,
        per_device_eval_batch_size=plan.batch, report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=load_model(model), ref_model=load_model(model), args=args, train_dataset=data[PAIRS],
        eval_dataset=data[HELD_OUT], processing_class=load_tokenizer([model]),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Told())
    trainer.train()
    trainer.save_state()
    (part / "README.md").unlink(missing_ok=True)  # TRL's model card, for the Hub
    part.replace(out / DPO)
    last = [row for row in trainer.state.log_history if "eval_rewards/margins" in row][-1]
    steps = sorted(int(folder.name.rpartition("-")[2]) for folder in (out / DPO).glob("checkpoint-*"))
    margin = float(last["eval_rewards/margins"]) / plan.beta
    tell(
        f"{out / DPO}: checkpoints {', '.join(map(str, steps))}; the margin between chosen and rejected grew by "
        f"{margin:.1f} nats on held-out pairs", -1, 0,
    )  # fmt: skip
    return {"checkpoints": steps, "held_out_margin": margin}


def show(out: Path, /, *, seed: int, size: str, force: bool) -> int:
    """Make an example with a bar on a terminal (lines alone elsewhere), and say what to do next; 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    plan, begun, said = Plan(seed=seed, **SIZES[size]), time.monotonic(), []
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if done < 0:
                said.append(what)
                print(what, flush=True)
                return
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        make(out, plan, force=force, tell=tell)
    if not said:
        print(f"{out} is finished, nothing to do (--force makes it anew)")
    else:
        print(f"done in {time.monotonic() - begun:.0f} s")
    print(f"next: toyld diagnose {out / DPO}")
    return 0
