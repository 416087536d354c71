"""What `toyld run contexts` does: SFT → DPO, plain and extended, into a run folder; or a sweep into tables.

A run is made evaluation by evaluation, always, and after each its state is kept: so a run that was killed goes on with
the same calls on the same numbers, and ends with the same bytes. Extended SFT (arm `extend`) trains on y+ and y− alike,
at the learning rate of plain SFT: an update pulls each chosen answer as hard in both arms.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toyld import objectives
from toyld.checked import LARGEST, BadInput, fail
from toyld.contexts import languages
from toyld.contexts.engine import State, start, train
from toyld.contexts.sweep import CHUNK, LANGUAGES, Grid, Table, sweep
from toyld.contexts.world import World
from toyld.files import write_whole
from toyld.trajectory import RunFolder

__all__ = ["ARMS", "SIZES", "Plan", "read_csv", "run", "run_sweep", "to_csv"]

ARMS: Mapping[str, str] = {"baseline": "sft", "extend": "extend"}  # arm → objective of its first stage
ROUNDING = 1e-12  # nats a token: what float64 leaves of a log-probability
# Worlds and updates by size. An update of SFT moves a context's own logits by about a tenth of its residual (η = .1 a
# prompt, the loss being a mean over prompts): descent is stable up to η λ_max(S) = 4. SFT of 40 updates leaves chosen a
# fifth of its surprise: taught, with room above. DPO pushes as hard at its start, η 2/β times as large for β = .1.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "facts": {"concepts": 6, "prompts": 6, "length": 4},
        "markov": {"vocab": 24, "prompts": 6, "length": 4},
        "run": {"seeds": 4, "sft_lr": 0.6, "sft_steps": 40, "lr": 12.0, "steps": 60},
        "sweep": {
            "seeds": 4, "sft_lr": 0.6, "sft": (10, 40), "lr": (12.0,), "steps": 100, "temperature": (1.0, 8.0),
            "common": (0.0, 0.2, 1.6), "margin": 10.0,
        },
    },
    "paper": {
        "facts": {},
        "markov": {},
        "run": {"seeds": 32, "sft_lr": 1.2, "sft_steps": 40, "lr": 24.0, "steps": 60},
        "sweep": {
            "seeds": 32, "sft_lr": 1.2, "sft": (10, 20, 40), "lr": (12.0, 24.0, 48.0), "steps": 100,
            "temperature": (1.0, 2.0, 8.0), "common": (0.0, 0.1, 0.2, 0.4, 0.8, 1.6), "beta": (0.05, 0.1, 0.2),
            "margin": 10.0,
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One run, everything that determines its numbers; `world` holds the language's sizes (`toyld.contexts.languages`).

    kernel: weights of the components of `kernels.Mixture`. temperature: at which y− is sampled from the model before
    training. parameters: of the objective, β for one. evaluations: of each stage, after the one at its start.
    """

    language: str = "facts"
    world: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = tuple(range(4))
    kernel: Mapping[str, float] = field(default_factory=lambda: dict(languages.KERNEL))
    temperature: float = 1.0
    objective: str = "dpo"
    parameters: Mapping[str, float] = field(default_factory=dict)
    sft_lr: float = 1.2
    sft_steps: int = 40
    lr: float = 24.0
    steps: int = 60
    evaluations: int = 20

    def __post_init__(self) -> None:
        above = ("temperature", "sft_lr", "sft_steps", "lr", "steps", "evaluations")
        if bad := [name for name in above if not 0 < getattr(self, name) < np.inf]:
            msg = f"{bad[0]}: expected a finite number > 0, got {getattr(self, bad[0])}"
            raise BadInput(msg)
        if max(self.lr, self.sft_lr) > LARGEST:
            msg = f"lr, sft_lr: expected rates up to {LARGEST:.0e}, got {max(self.lr, self.sft_lr):g}; lower it"
            raise BadInput(msg)
        if not 0 < self.parameters.get("beta", 1.0) < np.inf:
            msg = f"beta: expected a finite number > 0, got {self.parameters['beta']}; β < 0 turns the preference round"
            raise BadInput(msg)
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            msg = f"seeds: expected at least one, from 0 to 2^31 − 1, got {list(self.seeds)[:5]}"
            raise BadInput(msg)

    @property
    def stages(self) -> tuple[str, str]:
        """Names of the two stages: sft, and the objective's."""
        return "sft", re.sub(r"\W", "_", self.objective)

    def start(self) -> World:
        """The worlds before any training, one a seed."""
        make = LANGUAGES[self.language]
        return make(seeds=self.seeds, temperature=self.temperature, kernel=self.kernel, **self.world)

    def marks(self, stage: str, /) -> list[int]:
        """Updates after which a stage is evaluated."""
        steps = self.sft_steps if stage == "sft" else self.steps
        return sorted({round(steps * k / self.evaluations) for k in range(self.evaluations + 1)})


def run(
    out: Path, plan: Plan, /, *, resume: bool = False, tell: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write the run folder of a plan: two stages of two arms, an evaluation at a time.

    out: a new folder, or with `resume` the one of a run that was stopped. tell: called with evaluations done and to do.

    Raises:
        BadInput: an objective that cannot be trained here, a folder with another run in it.
    """
    objective = objectives.get(plan.objective, **plan.parameters)
    world = plan.start()
    _try(world, objective)
    folder = RunFolder.create(out, command="toyld run contexts", config=asdict(plan), stages=plan.stages, resume=resume)
    total, done = len(ARMS) * sum(len(plan.marks(stage)) for stage in plan.stages), 0
    for arm, first in ARMS.items():
        state = start(world)
        for stage in plan.stages:
            taught = objectives.get(first) if stage == "sft" else objective
            for written in _stage(folder, plan, world, state, stage, arm, taught, resume=resume):
                state, done = written, done + 1
                tell(done, total)


def _stage(
    folder: RunFolder, plan: Plan, world: World, before: State, stage: str, arm: str, taught: Any, /, *, resume: bool
) -> Iterator[State]:
    """One stage from the policy `before` it, evaluation by evaluation; those that are there are passed over."""
    first, marks = stage == "sft", plan.marks(stage)
    there = set(folder.steps(stage, arm)) if resume else set()
    missing = [k for k in marks if k not in there]
    kept = folder.state(stage, arm, until=missing[0] if missing else marks[-1]) if resume else None
    at, state = (0, before) if kept is None else (kept.step, State(kept.arrays["logits"], kept.arrays["dual"]))
    told = {"objective": taught.name, "parameters": {} if first else dict(plan.parameters), "optimizer": "sgd"}
    if not first:
        told["sft_examples"] = plan.sft_steps * world.responses["chosen"].token.shape[1]
    for mark in marks:
        if mark > at or (mark == at and mark in missing):
            part = train(
                world,
                taught,
                lr=plan.sft_lr if first else plan.lr,
                steps=mark - at,
                at=[mark - at],
                state=state,
                reference=before,
                rejected=None if taught.name == "sft" else "rejected",
            )
            folder.write(replace(part, steps=(mark,)).table(stage, arm, noise_floor=ROUNDING, **told))
            at, state = mark, part.state
            folder.write_state(stage, arm, mark, {"logits": state.logits, "dual": state.dual})
        yield state


def _try(world: World, objective: Any) -> None:
    """Refuse an objective that cannot be trained on pairs before anything is written."""
    if objective.name == "sft":
        raise BadInput("objective: expected one on pairs, for the stage after SFT, got sft; see `toyld objectives`")
    try:
        train(world.take([0]), objective, lr=1.0, steps=1, rejected="rejected", kinds=["chosen"])
    except objectives.MissingSideError as bad:
        msg = f"objective: expected one that reads chosen and rejected alone, got {objective.name}: {bad}"
        raise BadInput(msg) from None


def to_csv(table: Mapping[str, Any], /) -> bytes:
    """A table of columns as CSV; numbers by `repr`, which reads back to the same float64.

    >>> to_csv({"seed": np.array([0, 1]), "d_chosen": np.array([0.5, -1.25])})
    b'seed,d_chosen\\n0,0.5\\n1,-1.25\\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    texts = [[v if isinstance(v, str) else repr(v) for v in np.asarray(column).tolist()] for column in table.values()]
    writer.writerows(zip(*texts, strict=True))
    return text.getvalue().encode()


def read_csv(file: Path, /) -> Table:
    """The columns of a file of numbers that `to_csv` made: whole numbers as integers, others as float64.

    Raises:
        TrajectoryError: another file, or a damaged one.
    """
    try:
        names, *lines = csv.reader(io.StringIO(file.read_text(encoding="utf-8")))
        columns = zip(*lines, strict=True)
        whole = {"seed", "sft"}
        return {n: np.array(c).astype(np.int64 if n in whole else float) for n, c in zip(names, columns, strict=True)}
    except (OSError, ValueError, csv.Error) as error:
        fail("a whole table", f"{file.name} ({type(error).__name__})", "remove it, and resume the sweep")


def run_sweep(
    out: Path,
    grid: Grid,
    /,
    *,
    resume: bool = False,
    executor: Executor | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Write a sweep: run.json, a table a chunk as it is done (`chunk-00000.csv`), all runs in `runs.csv`; the latter.

    With `resume` only chunks without a table are computed. tell: called with chunks done and to do.
    """
    if not hasattr(objectives.get(grid.objective), "beta"):
        msg = f"objective: expected one with β for a sweep, got {grid.objective}, which has none; make single runs"
        raise BadInput(msg)
    config, first = {"grid": asdict(grid), "chunk": CHUNK}, grid.chunks()[0]
    few = replace(first, conditions=first.conditions[:1])  # before anything is written: what cannot be made
    _try(few.start()[0], objectives.get(grid.objective, beta=grid.beta[0]))
    RunFolder.create(out, command="toyld run contexts --sweep", config=config, stages=("sft", "dpo"), resume=resume)
    chunks = grid.chunks()
    files = {i: out / f"chunk-{i:05d}.csv" for i in range(len(chunks))}
    there = {i: read_csv(file) for i, file in files.items() if file.exists()}
    for i, table in there.items():
        if not chunks[i].fits(table):
            fail(
                "the runs of this chunk", f"other rows or columns in {files[i].name}", "remove it, and resume the sweep"
            )
    done = len(there)

    def keep(i: int, table: Table) -> None:
        nonlocal done
        write_whole(files[i], to_csv(table))
        done += 1
        tell(done, len(chunks))

    whole = sweep(grid, executor=executor, done=there, keep=keep)
    write_whole(out / "runs.csv", to_csv(whole))
    return whole
