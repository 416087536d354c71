"""What `toyld run llm` does: SFT → preferences of a Hugging Face model in TRL's trainers, probed, into a run folder.

    run.json, verdict.json           the plan; the verdict at the end
    sft-baseline/, dpo-baseline/, …  evaluations, a file each
    models/STAGE-ARM/                the model at the end of a stage (safetensors)
    checkpoints/STAGE-ARM/           the Trainer's own checkpoints, from which a killed run goes on

Every stage starts from saved weights and has its reference loaded from the same: nothing depends on what another stage
left in memory. A stage whose model is there is done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from toyld.llm import checkpoints
from toyld.llm.plan import ARMS, Plan
from toyld.llm.sources import Pairs, pairs_for_training
from toyld.probes import ProbeSet, make, sampler_from_model
from toyld.trajectory import RunFolder

__all__ = ["run"]

KINDS = ("other_prompt", "permuted")  # beside those that the data carry


def run(
    out: Path,
    plan: Plan,
    /,
    *,
    resume: bool = False,
    tell: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Write the run folder of a plan; with `resume` go on with the one that is there.

    Raises:
        BadInput: a model or data that cannot be read, a folder with another run, in one line.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=plan.device == "cpu")
    torch.set_num_threads(plan.threads)
    with checkpoints.quiet():
        checkpoints.load_config(plan.model)
        pairs = pairs_for_training(plan.data, seed=plan.seed)
        tokenizer = checkpoints.load_tokenizer((plan.model,), chat=pairs.conversational)
        rows = pairs.rows()[: plan.pairs]
        config = asdict(plan) | {"weights": checkpoints.fingerprint(plan.model), "sha256": pairs.train.sha256}
        folder = None
        if state.is_main_process:
            folder = RunFolder.create(out, command="toyld run llm", config=config, stages=plan.stages, resume=resume)
        state.wait_for_everyone()
        folder = folder or RunFolder(Path(out), plan.stages)
        probes = _probes(plan, pairs)
        for arm in plan.taught:
            both = ARMS[arm].both
            _stage(folder, plan, "sft", arm, plan.model, tokenizer, pairs.sft(both=both), rows, probes, tell, state)
        for arm in plan.arms:
            before = str(folder.path / "models" / f"sft-{ARMS[arm].sft}")
            _stage(folder, plan, plan.stages[1], arm, before, tokenizer, rows, rows, probes, tell, state)


def _probes(plan: Plan, pairs: Pairs) -> ProbeSet:
    carried = {key for row in pairs.train.rows for key in row.extra}
    n = min(plan.probes, len(pairs.train))
    return make(pairs.train, plan.kinds or (*KINDS, *carried), seed=plan.seed, n=n)


def _stage(
    folder: RunFolder,
    plan: Plan,
    stage: str,
    arm: str,
    before: str,
    tokenizer: Any,
    data: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    probes: ProbeSet,
    tell: Callable[[str, int, int], None],
    state: Any,
) -> None:
    """One stage of one arm from the weights in `before`; its model stands in models/STAGE-ARM afterwards."""
    from transformers.trainer_utils import get_last_checkpoint, set_seed

    from toyld.llm.callback import LearningDynamicsCallback
    from toyld.llm.trainers import preferences, supervised

    name = f"{stage}-{arm}"
    done, kept = folder.path / "models" / name, folder.path / "checkpoints" / name
    first, many = stage == "sft", len(rows)
    steps, every = plan.updates("sft" if first else "dpo", many, arm), plan.every("sft" if first else "dpo", many)
    if (done / "config.json").is_file():
        tell(name, steps, steps)
        return
    set_seed(plan.seed)
    policy = checkpoints.load_model(before, dtype=plan.dtype, device=plan.device)
    options = {"steps": steps, "save": every, "processes": state.num_processes}
    attrs: dict[str, Any] = {"experiment": "stages", "model": Path(plan.model).name, "seed_of_data": plan.seed}
    if first:
        trainer = supervised(plan, policy, tokenizer, data, kept, **options)
        attrs |= {"objective": "sft", "parameters": {}}
    else:
        reference = checkpoints.load_model(before, dtype=plan.dtype, device=plan.device)
        if arm == "on-policy":
            say = sampler_from_model(reference, tokenizer, seed=plan.seed)
            data = [{**row, "rejected": say(row["prompt"]) or row["rejected"]} for row in data]
        trainer = preferences(plan, policy, reference, tokenizer, data, kept, **options)
        attrs |= {"objective": plan.objective, "parameters": dict(plan.parameters), **plan.length(arm, many)}
    trainer.add_callback(
        LearningDynamicsCallback(
            trainer, probes, out=folder, every=every, stage=stage, arm=arm, max_length=plan.max_length, report=False,
            attrs=attrs, tell=lambda line: tell(f"{name}: {line}", -1, steps),
        )
    )  # fmt: skip
    trainer.add_callback(_progress(name, steps, tell))
    last = get_last_checkpoint(str(kept)) if kept.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    if state.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model = model.merge_and_unload() if plan.lora is not None else model
        part = done.with_name(f".{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.replace(done)
        shutil.rmtree(kept, ignore_errors=True)
    state.wait_for_everyone()


def _progress(name: str, steps: int, tell: Callable[[str, int, int], None]) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tell(name, state.global_step, steps)

    return Progress()
