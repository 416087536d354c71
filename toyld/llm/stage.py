"""One stage of one arm of `toyld run llm`, by a trainer of TRL's: killed at any moment it goes on and ends the same.

It starts from saved weights, keeps the Trainer's own checkpoints beside what it measures, and ends in a saved model,
whose folder appears whole: where it is, the stage is done. A checkpoint counts once it is marked, which the Trainer's
writing does not do: a killed run may leave half of one.
"""

from __future__ import annotations

import errno
import gc
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from toyld.checked import BadInput
from toyld.llm import checkpoints
from toyld.llm.callback import LearningDynamicsCallback
from toyld.llm.plan import Plan
from toyld.llm.taught import Taught
from toyld.llm.trainers import preferences, supervised
from toyld.trajectory import RunFolder

__all__ = ["Stage"]

MARK = "whole"  # a file in a checkpoint that was written to its end
FULL = 2**16  # bytes: with fewer left on a disk, an error in writing is its


@dataclass(frozen=True)
class Stage:
    """What a stage trains: its names, the weights before it, its rows, how many updates, what its tables record.

    reference: whether it is of preferences, whose reference are the weights before it. every: updates between two
    evaluations, and checkpoints.
    """

    name: str
    arm: str
    before: str
    rows: list[dict[str, Any]]
    reference: bool
    steps: int
    every: int
    attrs: dict[str, Any]

    def train(
        self, folder: RunFolder, plan: Plan, taught: Taught, state: Any, tell: Callable[[str, int, int], None], /
    ) -> None:
        """Make models/NAME-ARM in the run's folder, unless it is there.

        Raises:
            BadInput: weights that are no longer finite, a full disk, in one line; what was measured stays.
        """
        title = f"{self.name}-{self.arm}"
        done, kept = folder.path / "models" / title, folder.path / "checkpoints" / title
        if not done.is_dir():
            last = _last(kept)
            if last is not None:
                tell(f"{title}: goes on after update {int(last.name.rpartition('-')[2])}", -1, self.steps)
            if plan.warmup >= self.steps:
                tell(f"{title}: {self.steps} updates, all of them in the warm-up of {plan.warmup}", -1, self.steps)
            with _one_line(self, plan, folder.path, state):
                trainer = self._trainer(plan, taught, kept)
                for callback in self._callbacks(trainer, folder, plan, taught, tell):
                    trainer.add_callback(callback)
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
                _save(trainer, plan, done)
            trainer.accelerator.free_memory()
            del trainer, callback
        state.wait_for_everyone()
        if state.is_main_process:
            shutil.rmtree(kept, ignore_errors=True)
        tell(title, self.steps, self.steps)
        gc.collect()  # models go in circles with their trainer: two stages' need not fit
        torch.cuda.empty_cache()

    def _trainer(self, plan: Plan, taught: Taught, kept: Path) -> Any:
        set_seed(plan.seed)
        policy = checkpoints.load_model(self.before)
        how = {"steps": self.steps, "every": self.every}
        if not self.reference:
            return supervised(plan, policy, taught.tokenizer, self.rows, kept, **how)
        reference = checkpoints.load_model(self.before)
        return preferences(plan, policy, reference, taught.tokenizer, self.rows, kept, **how)

    def _callbacks(
        self, trainer: Any, folder: RunFolder, plan: Plan, taught: Taught, tell: Callable[[str, int, int], None]
    ) -> Iterator[Any]:
        title = f"{self.name}-{self.arm}"
        yield _Finite(trainer)
        yield LearningDynamicsCallback(
            trainer, taught.probes, out=folder, every=self.every, stage=self.name, arm=self.arm, report=False,
            max_length=plan.max_length, attrs=self.attrs, tell=lambda line: tell(f"{title}: {line}", -1, self.steps),
        )  # fmt: skip
        yield _Progress(lambda step: tell(title, step, self.steps))
        yield _Mark(trainer)


class _Apart(Exception):
    """A descent came apart; every process sees it."""


class _Finite(TrainerCallback):
    """Looks at the weights before they are measured, at every process's part of them."""

    def __init__(self, trainer: Any) -> None:
        self.accelerator = trainer.accelerator

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        sums = [p.detach().float().sum() for p in model.parameters() if p.requires_grad]
        bad = (~torch.stack(sums).isfinite()).any().float()
        if float(self.accelerator.reduce(bad, "sum")) > 0:
            raise _Apart(f"weights that are not finite after update {state.global_step}")


class _Progress(TrainerCallback):
    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tell(state.global_step)


class _Mark(TrainerCallback):
    """Marks a checkpoint once every process has written its part."""

    def __init__(self, trainer: Any) -> None:
        self.accelerator = trainer.accelerator

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / MARK).touch()


def _last(kept: Path) -> Path | None:
    """The last checkpoint that is whole."""
    marked = [mark.parent for mark in kept.glob(f"checkpoint-*/{MARK}")]
    return max(marked, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _save(trainer: Any, plan: Plan, done: Path) -> None:
    """The trained model, adapters merged, and its tokenizer into a folder that appears whole."""
    part = done.with_name(f".{done.name}.part")
    main = trainer.accelerator.is_main_process
    if main:
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if plan.lora is None:
        trainer.save_model(str(part))  # all processes: each may hold a part
    elif main:
        trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(part)
        trainer.processing_class.save_pretrained(part)
    trainer.accelerator.wait_for_everyone()
    if main:
        (part / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody reads
        part.replace(done)


@contextmanager
def _one_line(stage: Stage, plan: Plan, path: Path, state: Any) -> Iterator[None]:
    """What ends a stage before its time, in words."""
    title = f"{stage.name}-{stage.arm}"
    try:
        yield
    except torch.OutOfMemoryError:
        got, do = (
            f"none for --batch {plan.batch} in {title}",
            "lower it and raise --accumulation, or use --checkpointing",
        )
        raise BadInput(f"expected room on the device, got {got}: {do}") from None
    except Exception as error:
        if isinstance(error, _Apart) or "expected finite log-probabilities" in str(error):
            if not state.is_main_process:  # which says it
                raise SystemExit(2) from None
            rate, name = (plan.lr, "--lr") if stage.reference else (plan.sft_lr, "--sft-lr")
            got = f"{error}" if isinstance(error, _Apart) else "log-probabilities that are not finite"
            do = f"lower {name}, {rate:g} now; what was measured before is kept"
            raise BadInput(f"expected a descent that holds together, got {got} in {title}: {do}") from None
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        if isinstance(error, BadInput) or not (full or shutil.disk_usage(path).free < FULL):
            raise
        msg = f"expected room on the disk of {path}, got none in {title}: free some and go on with --resume"
        raise BadInput(msg) from error
