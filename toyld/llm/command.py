"""What `toyld run llm` does: SFT → preferences of a Hugging Face model in TRL's trainers, probed, into a run folder.

    run.json, verdict.json           the plan; the verdict at the end
    sft-baseline/, dpo-baseline/, …  evaluations, a file each
    on-policy.jsonl                  what the model said itself, where an arm is trained on it
    models/STAGE-ARM/                the model at the end of a stage (safetensors)
    checkpoints/STAGE-ARM/           the Trainer's own checkpoints of the stage under way, read from here alone

Every stage starts from saved weights and has its reference loaded from the same: nothing depends on what another stage
left in memory. Any number of processes may run it (accelerate launch, torchrun): one writes and speaks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from toyld.llm import checkpoints
from toyld.llm.plan import ARMS, Plan
from toyld.llm.sources import write_rows
from toyld.llm.taught import Taught, taught
from toyld.probes import PreferenceError, cached, sampler_from_model
from toyld.trajectory import RunFolder

__all__ = ["hushed", "run"]

Tell = Callable[[str, int, int], None]
LIBRARIES = ("trl", "peft", "accelerate", "datasets", "huggingface_hub", "torch.distributed")


def run(out: Path, plan: Plan, /, *, resume: bool = False, tell: Tell = lambda what, done, total: None) -> bool:
    """Write the run folder of a plan; with `resume` go on with the one that is there. Whether this process speaks.

    tell: hears (stage, updates done, updates in all), and (line, −1, 0) for a line to show.

    Raises:
        BadInput: a model or data that cannot be read, a folder with another run, a descent that came apart, a full
            disk, in one line.
    """
    import torch

    with hushed():
        from accelerate import PartialState

        state = PartialState(cpu=plan.device == "cpu")
        plan = replace(plan, processes=state.num_processes)
        torch.set_num_threads(plan.threads)
        tell = tell if state.is_main_process else lambda what, done, total: None
        data, folder = _first(state, lambda: _create(out, plan, resume)), RunFolder(Path(out), plan.stages)
        for line in data.notes:
            tell(line, -1, 0)
        (folder.path / "models").mkdir(exist_ok=True)
        for stage, given in _stages(folder, plan, data, state, tell):
            stage.train(folder, plan, given, state, tell)
    return bool(state.is_main_process)


def _create(out: Path, plan: Plan, resume: bool) -> Taught:
    """Everything that may be refused, then the folder; what is taught."""
    checkpoints.load_config(plan.model)
    data = taught(plan)
    prints = {
        "weights": checkpoints.fingerprint(plan.model),
        "rows": data.pairs.train.sha256,
        "probing_set": data.probes.sha256,
    }
    config = {**plan.config(), "fingerprints": prints}
    RunFolder.create(out, command="toyld run llm", config=config, stages=plan.stages, resume=resume)
    return data


def _stages(folder: RunFolder, plan: Plan, data: Taught, state: Any, tell: Tell) -> Iterator[tuple[Any, Taught]]:
    """Every stage in order with what it teaches; a stage's weights are there when the one after it is asked for."""
    from toyld.llm.stage import Stage

    many, second = len(data.pairs.train), plan.stages[1]
    common = {"experiment": "stages", "model": Path(plan.model).name, "seed": plan.seed, "batch": plan.rows}

    def stage(name: str, arm: str, before: str, rows: list[dict[str, Any]], **attrs: Any) -> Stage:
        steps, every = plan.updates(name, many, arm), plan.between(name, many)
        return Stage(name, arm, before, rows, name != "sft", steps, every, {**common, **attrs})

    for arm in plan.taught:
        rows = data.pairs.sft(both=ARMS[arm].both)
        yield stage("sft", arm, plan.model, rows, objective="sft", parameters={}), data
    attrs = {"objective": plan.objective, "parameters": dict(plan.parameters), "sft_term": plan.sft_term}
    for arm in plan.arms:
        before = str(folder.path / "models" / f"sft-{ARMS[arm].sft}")
        given = data.answered(plan, _own(folder, plan, data, before, state, tell)) if arm == "on-policy" else data
        yield stage(second, arm, before, given.pairs.rows(), **attrs, **plan.length(arm, many)), given


def _own(folder: RunFolder, plan: Plan, data: Taught, model: str, state: Any, tell: Tell) -> list[str]:
    """What a model answers to every prompt: one process asks and keeps it, the others are told."""
    file, cache = folder.path / "on-policy.jsonl", folder.path / "checkpoints" / "on-policy.sqlite"
    prompts = [row["prompt"] for row in data.pairs.rows()]

    def answers() -> list[str]:
        if not file.is_file():
            cache.parent.mkdir(exist_ok=True)
            loaded, room = checkpoints.load_model(model, device=str(state.device)), plan.max_length // 2
            said = cached(sampler_from_model(loaded, data.tokenizer, seed=plan.seed, room=room), cache)
            rows = []
            for prompt in prompts:
                try:
                    answer = said(prompt)
                except PreferenceError:  # it fills the context
                    answer = ""
                # What the model had not ended: EOS behind it would be a token that the model never said.
                if len(data.tokenizer(answer, add_special_tokens=False)["input_ids"]) >= room - 1:
                    answer = ""
                rows.append({"prompt": prompt, "response": answer})
                tell("on-policy answers", len(rows), len(prompts))
            write_rows(file, rows)
        cache.unlink(missing_ok=True)
        return [json.loads(line)["response"] for line in file.read_text(encoding="utf-8").splitlines()]

    return list(_first(state, answers))


def _first(state: Any, do: Callable[[], Any]) -> Any:
    """What the main process makes, on all; where it refuses, the others end without a word."""
    if state.num_processes == 1:
        return do()
    from accelerate.utils import broadcast_object_list

    made: list[Any] = [None, False]
    refused: Exception | None = None
    if state.is_main_process:
        try:
            made = [do(), True]
        except Exception as error:  # a full disk, no memory: the others would wait for ever
            refused = error
    broadcast_object_list(made)
    if not made[1]:
        raise refused or SystemExit(2)
    return made[0]


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """The libraries' progress bars, advice and warnings of what will change off for the while."""
    with checkpoints.quiet(), warnings.catch_warnings():
        import datasets

        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        loggers = [logging.getLogger(name) for name in LIBRARIES]
        levels, bars = [logger.level for logger in loggers], datasets.is_progress_bar_enabled()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                datasets.enable_progress_bars()
