"""One line in a TRL script that records the learning dynamics of a real run and ends with a verdict.

    from toyld.llm import LearningDynamicsCallback, ProbeSet
    probes = ProbeSet.from_preference(eval_pairs, n=128, extra=["other_prompt", "permuted"], seed=0)
    trainer = DPOTrainer(model=model, ref_model=reference, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.add_callback(LearningDynamicsCallback(trainer, probes, every="eval", out="run/ld"))
    trainer.train()

Before the first update it measures policy and reference on the probes (a wrong reference ends the run there), then it
scores the probes at each evaluation or every so many updates, warns while the run goes on, and at the end writes
verdict.json and report.html beside the evaluations. It looks and does not touch: no random number is drawn, no gradient
formed, mode and logs are those of the run without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from toyld.checked import BadInput
from toyld.diagnosis import diagnose
from toyld.files import write_whole
from toyld.llm import live, policy
from toyld.llm.cells import Cells, cells
from toyld.llm.checkpoints import positions
from toyld.probes import ProbeSet
from toyld.report.command import runs_as_json
from toyld.report.page import html
from toyld.trajectory import RunFolder, concat, trajectory

__all__ = ["LearningDynamicsCallback", "WrongReference"]


class WrongReference(BadInput):
    """The reference is another policy than the one that training starts from."""


@dataclass
class _Row0:
    """What is measured once: the reference along every probe, and how much scores depend on the shape of a batch."""

    reference: np.ndarray | None
    noise_floor: float


class LearningDynamicsCallback(TrainerCallback):
    """Probes a policy while `trainer` trains it; see the module's docstring.

    trainer: a DPOTrainer, an SFTTrainer, or any Trainer of a causal language model. probes: the prompts and responses,
    as texts or messages. every: "eval" (at each of the trainer's evaluations) or so many updates; before the first
    update and after the last it measures in any case. out: a folder of this run alone, or a `RunFolder`. stage, arm:
    names; the stage is told by the trainer where it is not given. max_length: tokens of prompt and response; the
    trainer's own by default. eos: whether EOS is scored behind plain text, as TRL trains it. wrong_reference: "raise"
    ends a run whose reference is not its policy before the first update; "warn" goes on (where that is meant).
    tell: hears one line at a time; by default they go to standard error.

    Raises:
        WrongReference: at the beginning of training, see there.
        BadInput: probes that do not fit, a folder with another run, in one line.
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
    ) -> None:
        if every != "eval" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise BadInput(f"every: expected 'eval' or a number of updates, got {every!r}")
        if every == "eval" and getattr(trainer.args.eval_strategy, "value", "no") == "no":
            raise BadInput("every: expected an evaluation strategy for 'eval', got none; set it, or every=50")
        if wrong_reference not in ("raise", "warn"):
            raise BadInput(f"wrong_reference: expected 'raise' or 'warn', got {wrong_reference!r}")
        self.trainer, self.probes, self.every, self.out = trainer, probes, every, out
        self.stage, self.arm = stage or policy.stage(trainer), arm
        self.batch_size, self.eos, self.wrong_reference, self.report = batch_size, eos, wrong_reference, report
        room = positions(trainer.model.config)
        wanted = max_length or getattr(trainer.args, "max_length", None) or 512
        self.max_length = wanted if room is None else min(wanted, room)
        self._tell = tell or live.to_stderr
        self._attrs = dict(attrs or {})
        self._cells: Cells = cells(policy.tokenizer(trainer), probes, max_length=self.max_length, eos=eos)
        self._folder: RunFolder | None = None
        self._once: _Row0 | None = None
        self._rows: dict[int, xr.Dataset] = {}

    # What the trainer calls

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the folder; before the first update measure policy and reference."""
        self._open(resumed=state.global_step > 0)
        if state.global_step not in self._rows:
            self._measure(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure every so many updates."""
        if self.every != "eval" and state.global_step % self.every == 0:
            self._measure(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure where the trainer evaluates."""
        if self.every == "eval":
            self._measure(state, control)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure the last policy and say what the run is consistent with."""
        self._measure(state, control)
        if policy.is_main(self.trainer) and self.report:
            self._finish()

    # What it does

    @property
    def table(self) -> xr.Dataset:
        """All evaluations so far, as one table."""
        return concat([self._rows[step] for step in sorted(self._rows)])

    def _open(self, *, resumed: bool) -> None:
        config: dict[str, Any] = {
            "probes": self.probes.sha256[:16], "tokens": self._cells.fingerprint, "kinds": list(self._cells.kinds),
            "examples": len(self.probes), "max_length": self.max_length, "eos": self.eos, "every": self.every,
            "stage": self.stage, "arm": self.arm, **policy.told(self.trainer),
        }  # fmt: skip
        if isinstance(self.out, RunFolder):
            self._folder = self.out
        elif policy.is_main(self.trainer):
            command = "toyld.llm.LearningDynamicsCallback"
            self._folder = RunFolder.create(
                self.out, command=command, config=config, stages=[self.stage], resume=resumed
            )
        path = Path(self.out.path if isinstance(self.out, RunFolder) else self.out)
        stage, now = path / f"{self.stage}-{self.arm}", self.trainer.state.global_step
        self._rows = live.kept(stage, until=now, move=policy.is_main(self.trainer))
        policy.wait(self.trainer)
        if self._rows:
            first = self._rows[min(self._rows)]
            reference = first.ref_logp.values[0] if "ref_logp" in first else None
            self._once = _Row0(reference, float(first.attrs["noise_floor"]))

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        step = int(state.global_step)
        if step in self._rows:  # `on_step_end` may come more than once, and the last update may be an evaluation
            return
        scores = policy.score(self.trainer, self._cells.items, batch_size=self.batch_size)
        if self._once is None:
            with policy.reference(self.trainer) as model:
                mine = (
                    None
                    if model is None
                    else policy.score(self.trainer, self._cells.items, model=model, batch_size=self.batch_size).logp
                )
            some = self._cells.of("chosen")[: 2 * self.batch_size]
            items = [self._cells.items[i] for i in some]
            floor = policy.noise(self.trainer, items, scores.at(some), batch_size=self.batch_size)
            self._once = _Row0(None if mine is None else self._cells.spread(mine), floor)
        table = self._cells.table(scores, self._once.reference)
        table |= live.logged(state)
        ds = trajectory(
            table,
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
                **policy.told(self.trainer), **self._attrs,
            },
        )  # fmt: skip
        self._rows[step] = ds
        if self._folder is not None and policy.is_main(self.trainer):
            self._folder.write(ds)
        found = diagnose(self.table)
        if step == 0:
            self._first(found)
        else:
            for line in live.news(found, self._said):
                self._say(line)
        live.mirror(self.trainer, control, live.keys(self.table, found))

    _said: set[str]

    def _first(self, found: Any) -> None:
        """Say what was found before the first update; a wrong reference ends the run."""
        self._said = set()
        assert self._once is not None
        if found.verdict == "wrong-reference":
            text = next(f["text"] for f in found.findings if f["code"] == "reference-suspect")
            line = f"wrong reference: {text}; {policy.remedy(self.trainer)}"
            if self.wrong_reference == "raise":
                raise WrongReference(
                    f"expected a reference equal to the policy before the first update, got another: {text}; "
                    f"{policy.remedy(self.trainer)}, or pass wrong_reference='warn' if it is meant"
                )
            self._say(line)
        self._say(live.opening(self.table, self._once.reference, self._once.noise_floor))

    def _say(self, line: str) -> None:
        if policy.is_main(self.trainer):
            self._tell(line)

    def _finish(self) -> None:
        assert self._folder is not None
        ds = self.table
        found = diagnose(ds)
        name = f"{self.stage}-{self.arm}"
        entry = (name, ds, found)
        text = json.dumps(runs_as_json([entry]), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(self._folder.path / "verdict.json", text.encode())
        write_whole(self._folder.path / "report.html", html([entry]).encode())
        self._say(live.closing(found, self._folder.path))
