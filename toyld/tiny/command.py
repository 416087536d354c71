"""What `toyld run tiny` does: pretraining → SFT → preferences of many tiny transformers at once, into a run folder.

Every seed has a language, a model pretrained on it, and pairs whose rejected side the model said itself; arms and sizes
stand in `toyld.tiny.plan`. Parameters are trained in float32; probes and answers are computed from them in float64.

A stage is made from one evaluation to the next and its state is kept there, in pretraining too: a run that was killed
goes on with the same calls on the same numbers, and on one thread of a CPU ends with the same bytes. On a GPU sums are
not in a fixed order, and the bytes are not the same. The last state of a stage is its models alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from toyld import objectives
from toyld.checked import LARGEST, BadInput, fail
from toyld.tiny.answers import answers
from toyld.tiny.language import Sizes, draw
from toyld.tiny.models import Models, pretrain, start
from toyld.tiny.network import Shape
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.plan import ARMS, Plan
from toyld.tiny.stage import Run, probe, scene, train
from toyld.tiny.texts import Texts, ask, with_rejected
from toyld.trajectory import RunFolder
from toyld.trajectory.states import SavedState, states

__all__ = ["run"]

ROUNDING = 1e-12  # nats a token: what float64 leaves of a log-probability
SOURCE, TAUGHT = "source", "taught"  # what pretraining teaches; rows of chosen and of rejected answers
Memory = dict[str, torch.Tensor]
Pieces = Generator[bool, None, Models]  # of a stage: true where one was made, false where it was there; what it ends in


class _Stage(NamedTuple):
    """A stage of one arm: names, what is probed and asked, options of `train`, attributes of its tables."""

    name: str
    arm: str
    data: Texts
    objective: Any
    steps: int
    options: dict[str, Any]
    attrs: dict[str, Any]

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is probed: every response, but not the rows that are made of them."""
        return tuple(kind for kind in self.data.texts if kind != TAUGHT)


def run(
    out: Path,
    plan: Plan,
    /,
    *,
    resume: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Write the run folder of a plan, a piece of work at a time; whether all of it is there.

    out: a new folder, or with `resume` the one of a run that was stopped. tell: called with pieces done and to do.
    stop: asked after each piece that was made; True ends the call there, and another with `resume` goes on.

    Raises:
        BadInput: an objective that cannot be trained here, a descent that comes apart, a folder with another run in it.
    """
    torch.set_num_threads(plan.threads)
    models, asked = _start(plan)
    objective = objectives.get(plan.objective, **plan.parameters)
    _try(models, asked, objective)
    folder = RunFolder.create(out, command="toyld run tiny", config=asdict(plan), stages=plan.stages, resume=resume)
    stages = [plan.sft_steps * ARMS[arm].times for arm in plan.taught] + [plan.steps] * len(plan.arms)
    total = len(plan.marks(plan.pretrain_steps)) - 1 + sum(len(plan.marks(steps)) for steps in stages)
    for done, made in enumerate(_pieces(folder, plan, models, asked, objective, resume), 1):
        tell(done, total)
        if made and done < total and stop():
            return False
    return True


def _start(plan: Plan) -> tuple[Models, Texts]:
    """Untrained models, one a seed, and what the language tells without them."""
    language = draw(Sizes(**plan.language), plan.seeds)
    models = start(Shape(language.sizes.classes, language.sizes.places, **plan.model), plan.seeds)
    return replace(models, flat=models.flat.to(plan.device)), ask(language, prompts=plan.prompts)


def _pieces(
    folder: RunFolder, plan: Plan, models: Models, asked: Texts, objective: Any, resume: bool
) -> Generator[bool]:
    """Every piece of the run in order."""
    source = yield from _pretrained(folder, plan, models, asked, resume)
    first = source.sample(asked.language, asked.prompt("chosen"), seed=1)
    data = _against(plan, source, asked, first)
    for sft in plan.taught:
        taught = yield from _stage(folder, plan, _sft(plan, sft, data), source, resume)
        options = {"lr": plan.lr, "batch": plan.batch, "rejected": "rejected"}
        attrs = {"objective": plan.objective, "parameters": dict(plan.parameters), **plan.length(sft)}
        for arm in [arm for arm in plan.arms if ARMS[arm].sft == sft]:
            pairs = _against(plan, taught, asked, first) if arm == "on-policy" else data
            stage = _Stage(plan.stages[-1], arm, pairs, objective, plan.steps, options, attrs)
            yield from _stage(folder, plan, stage, taught, resume)


def _against(plan: Plan, models: Models, asked: Texts, first: np.ndarray) -> Texts:
    """The data with negatives that these models say."""
    own = models.sample(asked.language, asked.prompt("chosen"), seed=0, temperature=plan.temperature)
    return with_rejected(asked, own, shared=plan.shared, initial=first)


def _sft(plan: Plan, arm: str, data: Texts) -> _Stage:
    """SFT on the chosen answers, or on both answers as rows of their own."""
    options: dict[str, Any] = {"lr": plan.sft_lr, "batch": plan.batch}
    if ARMS[arm].both:
        sides = "chosen", "rejected"
        texts, prompts = (np.concatenate([of(side) for side in sides], 1) for of in (data.texts.get, data.prompt))
        data = data.also({TAUGHT: texts}, **{TAUGHT: prompts})
        options |= {"chosen": TAUGHT, "batch": plan.rows}
    attrs = {"objective": "sft", "parameters": {}}
    return _Stage("sft", arm, data, objectives.get("sft"), plan.sft_steps * ARMS[arm].times, options, attrs)


def _pretrained(folder: RunFolder, plan: Plan, models: Models, asked: Texts, resume: bool) -> Pieces:
    """Pretraining, state by state; nothing is measured: the first evaluation of SFT is of what it made."""
    _, *marks = plan.marks(plan.pretrain_steps)
    kept = folder.state("pretrain", SOURCE, until=marks[-1]) if resume else None
    at, models, memory = _restored(kept, models, Optimizer("adamw"), last=marks[-1])
    for mark in marks:
        if made := mark > at:
            models, memory = pretrain(
                models, asked.language, steps=marks[-1], lr=plan.pretrain_lr, done=at, memory=memory, until=mark
            )
            _finite(models, f"pretraining by update {mark}", "its rate", plan.pretrain_lr, folder.path)
            _keep(folder, "pretrain", SOURCE, models, memory, mark, last=marks[-1])
            at = mark
        yield made
    _alone(folder, "pretrain", SOURCE, marks[-1])  # killed behind the last state a run has others, too
    return models


def _stage(folder: RunFolder, plan: Plan, stage: _Stage, before: Models, resume: bool) -> Pieces:
    """One stage from the models `before` it, evaluation by evaluation; those that are there are passed over."""
    marks, reference = plan.marks(stage.steps), None
    there = set(folder.steps(stage.name, stage.arm)) if resume else set()
    missing = [mark for mark in marks if mark not in there]
    kept = folder.state(stage.name, stage.arm, until=missing[0] if missing else marks[-1]) if resume else None
    at, models, memory = _restored(kept, before, plan.rule, last=marks[-1])
    for mark in marks:
        if made := mark > at or (mark == at and mark in missing):
            part = train(
                models, stage.data, stage.objective, steps=mark - at, done=at, memory=memory,
                reference=before, optimizer=plan.rule, warmup=plan.warmup, at=[mark - at], kinds=["chosen"],
                **stage.options,
            )  # fmt: skip
            models, memory, at = part.models, part.memory, mark
            option, when = "--sft-lr" if stage.name == "sft" else "--lr", f"{stage.name}-{stage.arm} by update {mark}"
            _finite(models, when, option, stage.options["lr"], folder.path)
            reference = _measured(before, stage)[1]["logp"] if reference is None else reference
            folder.write(_table(plan, stage, mark, part, reference))
            _keep(folder, stage.name, stage.arm, models, memory, mark, last=marks[-1])
        yield made
    _alone(folder, stage.name, stage.arm, marks[-1])
    return models


def _measured(models: Models, stage: _Stage) -> tuple[Models, dict[str, np.ndarray]]:
    """The models in float64, and what is measured of them: variable → (S, kind, P)."""
    double = replace(models, flat=models.flat.double())
    return double, probe(double, scene(stage.data, stage.kinds, double))[0]


def _table(plan: Plan, stage: _Stage, mark: int, part: Run, reference: np.ndarray) -> Any:
    """One evaluation as a Trajectory."""
    now, values = _measured(part.models, stage)
    said = answers(now, stage.data, copies=plan.copies)
    measured = replace(
        part,
        steps=(mark,),
        kinds=stage.kinds,
        values={name: value[None] for name, value in values.items()},
        reference=reference,
        extra={f"eval_{name}": value[None] for name, value in said.items()},
    )
    sizes, shape = stage.data.language.sizes, now.shape
    told = {name: getattr(sizes, name) for name in ("relations", "entities", "concepts", "concentration", "knowledge")}
    told |= {name: getattr(shape, name) for name in ("width", "depth", "heads")}
    told |= {name: getattr(plan, name) for name in ("temperature", "shared", "prompts", "optimizer")}
    told |= {"lr": stage.options["lr"], "batch": plan.rows, "noise_floor": ROUNDING}
    return measured.table(stage.name, stage.arm, **told, **stage.attrs)


def _keep(folder: RunFolder, stage: str, arm: str, models: Models, memory: Memory, step: int, /, *, last: int) -> None:
    """Write what a resumed run goes on from; at the end of a stage its models alone, and no other state stays."""
    arrays = {"flat": models.flat} | ({} if step == last else {f"memory.{k}": v for k, v in memory.items()})
    folder.write_state(stage, arm, step, {name: value.cpu().numpy() for name, value in arrays.items()})
    if step == last:
        _alone(folder, stage, arm, step)


def _alone(folder: RunFolder, stage: str, arm: str, step: int) -> None:
    """Remove the states of a stage but the one at a step."""
    for at, file in states(folder.path / f"{stage}-{arm}").items():
        if at != step:
            file.unlink()


def _restored(
    kept: SavedState | None, models: Models, rule: Optimizer, /, *, last: int
) -> tuple[int, Models, Memory | None]:
    """(updates, models, memory) of a state; (0, what is given, None) where there is none."""
    if kept is None:
        return 0, models, None
    memory = {} if kept.step == last else {f"memory.{name}": value for name, value in rule.memory(models.flat).items()}
    found: Memory = {}
    for name, mine in {"flat": models.flat, **memory}.items():
        array = kept.arrays.get(name)
        if array is None or array.shape != tuple(mine.shape) or array.dtype != mine.cpu().numpy().dtype:
            fail("a state of this run", f"another at update {kept.step}", "remove it, and resume")
        if not np.isfinite(array).all():
            fail("a state of finite numbers", f"NaN or inf at update {kept.step}", "remove it, and resume")
        found[name.removeprefix("memory.")] = torch.from_numpy(array).to(mine.device)
    return kept.step, replace(models, flat=found.pop("flat")), found or None


def _finite(models: Models, when: str, option: str, rate: float, out: Path) -> None:
    if not (models.flat.abs() <= LARGEST).all():  # false for NaN, too
        do = f"lower {option}, now {rate:g}, and name another folder, or remove {out}"
        msg = f"expected a descent that stays finite, got parameters beyond {LARGEST:.0e} in {when}; {do}"
        raise BadInput(msg)


def _try(models: Models, asked: Texts, objective: Any) -> None:
    """Refuse an objective that cannot be trained on pairs, before anything is written."""
    if objective.name == "sft":
        raise BadInput("objective: expected one on pairs, for the stage after SFT, got sft; see `toyld objectives`")
    one, pairs = models.take([0]), asked.take([0])
    pairs = with_rejected(pairs, pairs.texts["irr_train"])
    try:
        train(one, pairs, objective, lr=1e-6, steps=1, rejected="rejected", kinds=["chosen"])
    except objectives.MissingSideError as bad:
        msg = f"objective: expected one that reads chosen and rejected alone, got {objective.name}: {bad}"
        raise BadInput(msg) from None
