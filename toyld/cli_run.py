"""`toyld run WORLD`: fine-tuning runs of the worlds of this package, into a folder that `toyld diagnose` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

__all__ = ["contexts"]


def _weight(words: list[str]) -> tuple[str, float]:
    name, _, number = words[0].partition("=")
    return name, float(number)


_WEIGHT = PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="NAME=NUMBER",
    instance_from_str=_weight,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [f"{value[0]}={value[1]}"],
)
_Weight = Annotated[Any, _WEIGHT]
_Weights = Annotated[tuple[_Weight, ...], arg(metavar="NAME=NUMBER…", help_behavior_hint="")]
_Numbers = Annotated[tuple[float, ...], arg(metavar="NUMBER…", help_behavior_hint="")]
_Counts = Annotated[tuple[int, ...], arg(metavar="N…", help_behavior_hint="")]
_Number = Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="")]
_Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]


def contexts(
    *,
    out: Path,
    size: Literal["smoke", "paper"] = "paper",
    resume: bool = False,
    sweep: bool = False,
    language: Literal["facts", "markov"] = "facts",
    seeds: _Count = None,
    first_seed: int = 0,
    objective: str = "dpo",
    beta: _Numbers = (),
    lr: _Numbers = (),
    steps: _Count = None,
    sft_lr: _Number = None,
    sft_steps: _Counts = (),
    temperature: _Numbers = (),
    common: _Numbers = (),
    kernel: _Weights = (),
    evaluations: int = 20,
    margin: _Number = None,
    workers: int = 1,
) -> int:
    """SFT, then DPO, of many contexts coupled by one kernel, in closed form; after plain and after extended SFT.

    With --sweep: all products of the values of beta, lr, sft-steps, temperature and common, after plain SFT, as tables.

    Args:
        out: Folder to write: a run folder, or with --sweep chunk-*.csv, runs.csv (a row a run) and summary.csv.
        size: Of the worlds, and how many seeds, updates and conditions where they are not given.
        resume: Go on with the run or sweep that is there.
        sweep: Many conditions instead of one run.
        language: facts: questions with one right answer, told in synonyms; markov: a chain of tokens.
        seeds: How many worlds: seeds first-seed, first-seed + 1, …
        first_seed: The first of them.
        objective: Of the stage after SFT; see `toyld objectives`.
        beta: β of the objective.
        lr: Learning rate of the stage after SFT, for the mean over pairs.
        steps: Its updates.
        sft_lr: Learning rate of SFT.
        sft_steps: Updates of SFT.
        temperature: At which y− is sampled from the model before training: 1 = its own answers, 8 = nearly uniform.
        common: Weight of the feature that all contexts share (anisotropy).
        kernel: Weights of other components, for example identity=0.5 token=0.2; the rest stay as they are.
        evaluations: Of each stage, evenly spaced.
        margin: Sweeps also compare where the margin has grown by this many nats.
        workers: Processes that compute a sweep.
    """
    given = {
        "language": language, "seeds": seeds, "first_seed": first_seed, "objective": objective, "beta": beta, "lr": lr,
        "steps": steps, "sft_lr": sft_lr, "sft_steps": sft_steps, "temperature": temperature, "common": common,
        "kernel": dict(kernel), "evaluations": evaluations, "margin": margin, "workers": workers,
    }  # fmt: skip
    from toyld.report.running import contexts as show

    return show(out, size=size, resume=resume, sweep=sweep, given=given)
