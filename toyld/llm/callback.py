"""One line in a TRL script that records the learning dynamics of a real run and ends with a verdict.

    from toyld.llm import LearningDynamicsCallback, ProbeSet
    probes = ProbeSet.from_preference(eval_pairs, n=128, extra=["other_prompt", "permuted"], seed=0)
    trainer = DPOTrainer(model=model, ref_model=reference, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.add_callback(LearningDynamicsCallback(trainer, probes, every="eval", out="run/ld"))
    trainer.train()

Before the first update it measures policy and reference on the probes (a wrong reference ends the run there), then it
scores the probes at each evaluation or every so many updates, warns while the run goes on, and at the end writes
report.html beside the evaluations. It looks and does not touch: no random number is drawn, no gradient formed; mode,
flags and logs are those of the run without it. Nothing is stopped for its sake but a run with a wrong reference.

Where prompts have answers that are right or wrong, `solved=Solved(right)` samples the policy's own answers to the
probes' prompts as well, for pre-memorisation accuracy (`toyld.llm.solved`); a checker that fails ends the run, too.

All state is in the folder: after a kill, training that goes on from a checkpoint goes on there, and evaluations beyond
the checkpoint are made again. verdict.json is that of the last evaluation at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toyld.checked import BadInput
from toyld.diagnosis import Verdict, diagnose
from toyld.files import write_whole
from toyld.llm import live, policy, start
from toyld.llm.cells import Cells, cells
from toyld.llm.checkpoints import positions
from toyld.llm.solved import Exam, Solved, check_kept
from toyld.probes import ProbeSet
from toyld.report.command import runs_as_json
from toyld.report.copying import sentence
from toyld.report.page import html
from toyld.trajectory import RunFolder, concat, trajectory

__all__ = ["LearningDynamicsCallback", "WrongReference"]

NO_LIMIT = 2**20  # tokens, where neither trainer nor model has one


class WrongReference(BadInput):
    """The reference is another policy than the one that training starts from."""


@dataclass(frozen=True)
class _Once:
    """What is measured once: the reference along every probe, and how much scores depend on the shape of a batch."""

    reference: NDArray[np.float64] | None
    noise_floor: float


class LearningDynamicsCallback(TrainerCallback):
    """Probes a policy while `trainer` trains it; see the module's docstring, and `toyld.llm.live.keys` for ld/*.

    trainer: a DPOTrainer, an SFTTrainer, or any Trainer of a causal language model. probes: the prompts and responses,
    as texts or messages. every: "eval" (at each of the trainer's evaluations) or so many updates; before the first
    update and after the last it measures in any case. out: a folder of this run alone, or a `RunFolder`. stage, arm:
    names; the stage is told by the trainer where it is not given. max_length: tokens of prompt and response; the
    trainer's own by default. eos: whether EOS is scored behind plain text, as TRL trains it. wrong_reference: "raise"
    ends a run whose reference is not its policy before the first update; "warn" goes on (where that is meant).
    report: whether verdict.json and report.html are written. tell: hears one line at a time; by default they go to
    standard error. attrs: what else the tables are to record. solved: how the prompts are answered and answers judged;
    without it nothing is sampled.

    Raises:
        WrongReference: at the beginning of training, see there.
        BadInput: probes that do not fit; at the beginning of training, a folder with another run.
    """

    def __init__(
        self,
        trainer: Trainer,
        probes: ProbeSet,
        /,
        *,
        out: str | Path | RunFolder,
        every: int | Literal["eval"] = "eval",
        stage: str | None = None,
        arm: str = "baseline",
        batch_size: int = 8,
        max_length: int | None = None,
        eos: bool = True,
        wrong_reference: Literal["raise", "warn"] = "raise",
        report: bool = True,
        tell: Callable[[str], None] | None = None,
        attrs: Mapping[str, Any] | None = None,
        solved: Solved | None = None,
    ) -> None:
        if every != "eval" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise BadInput(f"every: expected 'eval' or a number of updates, got {every!r}")
        if every == "eval" and getattr(trainer.args.eval_strategy, "value", "no") == "no":
            raise BadInput("every: expected an evaluation strategy for 'eval', got none; set it, or every=50")
        if wrong_reference not in ("raise", "warn"):
            raise BadInput(f"wrong_reference: expected 'raise' or 'warn', got {wrong_reference!r}")
        if solved is not None and not isinstance(solved, Solved):
            raise BadInput(f"solved: expected Solved(right, ...), got {type(solved).__name__}; wrap your function so")
        self.trainer: Any = trainer
        self.probes, self.every, self.out = probes, every, out
        self.stage, self.arm = stage or policy.stage(trainer), arm
        self.batch_size, self.eos, self.wrong_reference, self.report = batch_size, eos, wrong_reference, report
        room = positions(getattr(trainer.model, "config", None)) or NO_LIMIT
        self.max_length = min(max_length or getattr(trainer.args, "max_length", None) or room, room)
        self._tell = tell or live.to_stderr
        self._attrs = dict(attrs or {})
        text = policy.tokenizer(trainer)
        self._cells: Cells = cells(text, probes, max_length=self.max_length, eos=eos)
        with policy.untouched(trainer):  # a checker, which is tried, may draw random numbers
            self._exam = None if solved is None else Exam(text, probes, solved, room=room)
        self._folder: RunFolder | None = None
        self._once: _Once | None = None
        self._table: xr.Dataset | None = None
        self._steps: set[int] = set()
        self._said: set[str] = set()
        self._training = self._due = False

    # What the trainer calls

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the folder; before the first update look for faults and measure policy and reference."""
        step = int(state.global_step)
        if self._training and self._steps == {0} == {step}:
            return  # the trainer begins again with a smaller batch (auto_find_batch_size)
        if self._steps and step == 0:
            raise BadInput("out: expected one training a folder, got a second train() from the beginning; name another")
        self._open(step)
        self._training, self._due = True, False
        if step == 0:
            with policy.untouched(self.trainer):  # a data set may draw random numbers when it is read
                found = list(start.faults(self.trainer, self.probes, self._cells))
            for line in (*found, *([self._exam.note] if self._exam and self._exam.note else [])):
                self._say(f"step 0: {line}")
        if not self._steps:
            self._measure(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure every so many updates."""
        if self.every != "eval" and state.global_step % self.every == 0:
            self._measure_with_loss(state, control)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure what waited for the loss of the same step."""
        if self._due:
            self._measure(state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure where the trainer evaluates."""
        if self._training and (self._due or self.every == "eval"):
            self._measure(state)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure what waited in vain, before the next update."""
        if self._due:
            self._measure(state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the last policy, which may not be the one that `load_best_model_at_end` leaves."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._measure_with_loss(state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say what the run is consistent with."""
        self._training = self._due = False
        if self._exam is not None:
            self._say("; ".join(filter(None, (sentence(self.table), self._exam.unended))))
        if policy.is_main(self.trainer) and self.report:
            self._finish()

    # What it does

    @property
    def table(self) -> xr.Dataset:
        """All evaluations so far, as one table.

        Raises:
            BadInput: none yet.
        """
        if self._table is None:
            raise BadInput("expected a training that has begun, got none yet; call trainer.train()")
        return self._table

    def _open(self, step: int) -> None:
        """The folder, and what of this run it holds already; a new one is made when there is something to write."""

        def rows() -> dict[int, xr.Dataset]:
            if not policy.is_main(self.trainer):
                return {}
            if isinstance(self.out, RunFolder):
                self._folder = self.out
            elif step > 0:
                self._folder = self._create(resume=True)
            elif (Path(self.out) / "run.json").exists():
                do = "remove it, name another, or go on with it by train(resume_from_checkpoint=True)"
                raise BadInput(f"out: expected a new folder, got {self.out} with a run in it; {do}")
            else:
                return {}
            return live.kept(self._folder.path / f"{self.stage}-{self.arm}", before=step)

        found = policy.everywhere(self.trainer, rows)[0]
        self._steps = set(found)
        self._table = concat(found.values()) if found else None
        check_kept(None if self._exam is None else self._exam.solved, found.values())
        if self._table is not None:
            first = self._table.isel(step=0)
            reference = self._table.ref_logp.values[0] if "ref_logp" in first else None
            self._once = _Once(reference, float(first.attrs["noise_floor"]))
            live.news(diagnose(self._table), self._said)  # was said when it was measured

    def _create(self, *, resume: bool) -> RunFolder:
        assert not isinstance(self.out, RunFolder)
        config: dict[str, Any] = {
            "probes": self.probes.sha256[:16], "tokens": self._cells.fingerprint, "kinds": list(self._cells.kinds),
            "examples": len(self.probes), "max_length": self.max_length, "eos": self.eos, "every": self.every,
            "stage": self.stage, "arm": self.arm, "seed": int(self.trainer.args.seed), **policy.told(self.trainer),
            **({} if self._exam is None else {"solved": self._exam.solved.told}),
        }  # fmt: skip
        command = "toyld.llm.LearningDynamicsCallback"
        return RunFolder.create(self.out, command=command, config=config, stages=[self.stage], resume=resume)

    def _measure_with_loss(self, state: TrainerState, control: TrainerControl) -> None:
        """Measure now, or as soon as the trainer has logged the loss of this step."""
        self._due = int(state.global_step) not in self._steps
        if not control.should_log:
            self._measure(state)

    def _measure(self, state: TrainerState) -> None:
        step, self._due = int(state.global_step), False
        if step in self._steps:  # `on_step_end` may come more than once, and the last update may be an evaluation
            return
        with policy.untouched(self.trainer):
            scores = policy.score(self.trainer, self._cells.items, self._cells.rows, batch_size=self.batch_size)
            if self._once is None:
                self._once = self._measure_once(scores)
            marks = {} if self._exam is None else self._exam.measure(self.trainer, step=step, kinds=self._cells.kinds)
        ds = trajectory(
            self._cells.table(scores, self._once.reference) | live.logged(state) | marks,
            step=[step],
            probe=self._cells.kinds,
            example=self._cells.examples,
            world="llm",
            stage=self.stage,
            arm=self.arm,
            has_step0=step == 0,
            attrs={
                "vocab_size": policy.vocabulary(self.trainer), "noise_floor": self._once.noise_floor,
                "probing_set": self.probes.sha256[:16], "max_length": self.max_length, "n_cut": self._cells.n_cut,
                **policy.told(self.trainer), **({} if self._exam is None else self._exam.attrs), **self._attrs,
            },
        )  # fmt: skip
        first = self._table is None
        self._table = ds if self._table is None else concat([self._table, ds])
        found = diagnose(self._table)
        if first:
            self._begin(found, step)
        policy.everywhere(self.trainer, lambda: self._write(ds, found))
        self._steps.add(step)
        for line in live.news(found, self._said):
            self._say(line)
        live.mirror(self.trainer, live.keys(self._table, found))

    def _measure_once(self, scores: Any) -> _Once:
        items, rows = self._cells.items, self._cells.rows
        with policy.reference(self.trainer) as model:
            mine = None
            if model is not None:
                mine = policy.score(self.trainer, items, rows, model=model, batch_size=self.batch_size).logp
        some = self._cells.of("chosen")[: 2 * self.batch_size]
        shown = [items[i] for i in some]
        floor = policy.noise(self.trainer, shown, scores.at(some), batch_size=self.batch_size)
        return _Once(None if mine is None else self._cells.spread(mine), floor)

    def _begin(self, found: Verdict, step: int) -> None:
        """Say what was found at the first evaluation; a wrong reference ends the run."""
        assert self._once is not None
        line = f"step {step}: {len(self._cells.examples)} prompts × {len(self._cells.kinds)} kinds"
        line += f" ({self._cells.n_cut} responses cut)" if self._cells.n_cut else ""
        noise = f"scoring noise {self._once.noise_floor:.1e} nats/token"
        if self._exam is not None:
            noise = "; ".join(filter(None, (noise, sentence(self.table), self._exam.unended)))
        if step > 0:
            self._say(f"{line}; {noise}; resumed in a new folder: changes count from here, not from the beginning")
            return
        told, wrong = start.reference(self.trainer, self.table, found, self._once.noise_floor)
        if wrong and self.wrong_reference == "raise":
            raise WrongReference(
                f"expected the policy as reference before the first update, got another: {wrong}, "
                "or pass wrong_reference='warn' if it is meant"
            )
        if wrong:
            self._said.add("wrong-reference")
            self._say(f"step 0: wrong reference: {wrong}")
        self._say("; ".join([line, *told, noise]))

    def _write(self, ds: xr.Dataset, found: Verdict) -> None:
        if not policy.is_main(self.trainer):
            return
        self._folder = self._folder or self._create(resume=False)
        self._folder.write(ds)
        if self.report:
            board = runs_as_json([(f"{self.stage}-{self.arm}", self.table, found)])
            text = json.dumps(board, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            write_whole(self._folder.path / "verdict.json", text.encode())

    def _finish(self) -> None:
        assert self._folder is not None
        found = diagnose(self.table)
        page = html([(f"{self.stage}-{self.arm}", self.table, found)])
        write_whole(self._folder.path / "report.html", page.encode())
        self._say(live.closing(found, self._folder.path))

    def _say(self, line: str) -> None:
        if policy.is_main(self.trainer):
            self._tell(line)
