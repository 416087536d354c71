"""`toyld run` on the terminal: options to a plan, a bar while it runs, and the verdict at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toyld import objectives
from toyld.checked import BadInput
from toyld.contexts import command, languages
from toyld.contexts.command import SIZES, Plan
from toyld.contexts.sweep import Grid
from toyld.files import write_whole
from toyld.report.command import run as diagnose
from toyld.report.sweeps import diverged, print_summary, summary
from toyld.trajectory import read_folder

if TYPE_CHECKING:  # torch is loaded when networks are run
    from toyld.digits import Digits
    from toyld.digits.command import Plan as DigitsPlan
    from toyld.llm.plan import Plan as LlmPlan
    from toyld.tiny.plan import Plan as TinyPlan

__all__ = ["contexts", "digits", "digits_plan", "grid_of", "llm", "llm_plan", "plan_of", "tiny", "tiny_plan"]

_AXES = {"beta": "beta", "lr": "lr", "sft_steps": "sft", "temperature": "temperature", "common": "common"}


def _seeds(given: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[int, ...]:
    count = settings["seeds"] if given.get("seeds") is None else given["seeds"]
    first = given.get("first_seed", 0)
    if count < 1 or first < 0 or first + count > 2**31:
        msg = f"--seeds, --first-seed: expected at least 1 seed from 0 on, got {count} from {first}"
        raise BadInput(msg)
    return tuple(range(first, first + count))


def _kernel(given: Mapping[str, Any]) -> dict[str, float]:
    return {**languages.KERNEL, **given.get("kernel", {})}


def plan_of(size: str, /, **given: Any) -> Plan:
    """The plan of a size with what is given instead of its settings; an axis takes one value.

    >>> plan_of("smoke", lr=(10.0,), seeds=2).lr
    10.0
    """
    settings = SIZES[size]["run"]
    for name in _AXES:
        if len(given.get(name, ())) > 1:
            msg = f"--{name.replace('_', '-')}: expected one value, got {len(given[name])}; several need --sweep"
            raise BadInput(msg)
    if given.get("common") and "common" in given.get("kernel", {}):
        raise BadInput("--common, --kernel common=…: expected one of them, got both; drop one")
    one = {name: given[name][0] for name in ("lr", "sft_steps", "temperature") if given.get(name)}
    one |= {name: given[name] for name in ("steps", "sft_lr") if given.get(name) is not None}
    one |= {name: given[name] for name in ("language", "objective", "evaluations") if name in given}
    kernel = _kernel(given) | ({"common": given["common"][0]} if given.get("common") else {})
    parameters = {"beta": given["beta"][0]} if given.get("beta") else {}
    world = SIZES[size][given.get("language", "facts")]
    fixed = {"seeds": _seeds(given, settings), "kernel": kernel, "parameters": parameters, "world": world}
    return Plan(**{**settings, **one, **fixed})


def grid_of(size: str, /, **given: Any) -> Grid:
    """The grid of a size with what is given instead of its settings.

    >>> grid_of("smoke", common=(0.0, 1.0), seeds=2).common
    (0.0, 1.0)
    """
    settings = SIZES[size]["sweep"]
    if "common" in given.get("kernel", {}):
        raise BadInput(
            "--kernel: expected components beside common for a sweep, got common; give its weights by --common"
        )
    own = {_AXES[name]: tuple(given[name]) for name in _AXES if given.get(name)}
    own |= {name: given[name] for name in ("steps", "sft_lr", "margin") if given.get(name) is not None}
    own |= {name: given[name] for name in ("language", "objective") if name in given}
    own |= {"marks": given["evaluations"]} if "evaluations" in given else {}
    world = SIZES[size][given.get("language", "facts")]
    return Grid(**{**settings, **own, "seeds": _seeds(given, settings), "kernel": _kernel(given), "world": world})


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that moves a bar on a terminal, none elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def contexts(out: Path, /, *, size: str, resume: bool, sweep: bool, given: Mapping[str, Any]) -> int:
    """Do what `toyld run contexts` was asked to; its exit code."""
    if sweep:
        return _sweep(out, grid_of(size, **given), resume, int(given["workers"]))
    plan = plan_of(size, **given)
    if given["margin"] is not None or given["workers"] != 1:
        raise BadInput("--margin, --workers: expected only with --sweep, got them for one run; add --sweep")
    with _bar("running") as tell, np.errstate(over="ignore", invalid="ignore"):  # told in words below
        command.run(out, plan, resume=resume, tell=tell)
    with np.errstate(over="ignore", invalid="ignore"):
        code = diagnose((str(out),), json_file=out / "verdict.json")
    apart = [ds for ds in read_folder(out) if diverged(ds.logp.values)]
    if apart:
        names = ", ".join(f"{ds.attrs['stage']}-{ds.attrs['arm']}" for ds in apart)
        print(f"\n{names}: the descent came apart, whatever the verdict says; {_lower(plan.objective)}")
    return code


def _digits(size: str, data: str | None) -> Digits:
    """The digits that --data names, or those of the size."""
    from toyld.digits import download, embedded, mnist
    from toyld.digits.command import SIZES as OF

    if data is None:
        return {"embedded": embedded, "mnist": mnist}[OF[size]["data"]]()
    makers = {"embedded": embedded, "download": download}
    return makers[data]() if data in makers else mnist(data)


def digits_plan(size: str, data: Digits, /, **given: Any) -> DigitsPlan:
    """The plan of a size for these digits, with what is given instead of its settings.

    >>> from toyld.digits import embedded
    >>> digits_plan("smoke", embedded(), lr=0.05, seeds=2).recipe.lr
    0.05
    """
    from toyld.digits import Recipe
    from toyld.digits.command import SIZES as OF
    from toyld.digits.command import Plan as Made

    settings = OF[size]
    recipe = {**settings["recipe"]}
    recipe |= {name: given[name] for name in ("epochs", "lr", "batch") if given.get(name) is not None}
    if given.get("images") is not None:
        recipe["images"] = None if given["images"] == "all" else given["images"]
    own = {name: settings[name] if given.get(name) is None else given[name] for name in ("probes", "evaluations")}
    own |= {name: given[name] for name in ("network", "noise") if name in given}
    return Made(data.source, seeds=_seeds(given, settings), recipe=Recipe(**recipe), **own)


def digits(out: Path, /, *, size: str, resume: bool, data: str | None, given: Mapping[str, Any]) -> int:
    """Do what `toyld run digits` was asked to; its exit code."""
    from toyld.digits.command import run

    found = _digits(size, data)
    plan = digits_plan(size, found, **given)
    with _bar("training") as tell:
        run(out, plan, found, resume=resume, tell=tell)
    return diagnose((str(out),), json_file=out / "verdict.json")


def tiny_plan(size: str, /, **given: Any) -> TinyPlan:
    """The plan of a size with what is given instead of its settings; rates are those of the optimiser.

    >>> tiny_plan("smoke", optimizer="sgd", knowledge=0.5, seeds=2).sft_lr
    0.03
    """
    from toyld.tiny.experiments import _worlds
    from toyld.tiny.plan import RECIPES, SIZES, Plan

    known = {name: value for name, value in given.items() if value is not None}
    if known.get("optimizer", "rmsprop") not in RECIPES:
        msg = f"--optimizer: expected one of {', '.join(RECIPES)}, got {known['optimizer']!r}"
        raise BadInput(msg)
    world, recipe = _worlds.SIZES[size], RECIPES[known.get("optimizer", "rmsprop")]
    own = {"pretrain_steps": world["steps"], "pretrain_lr": world["lr"], "prompts": world["prompts"]}
    own |= {"sft_lr": recipe.sft, "lr": recipe.dpo, "warmup": recipe.warmup, **SIZES[size]}
    inside = {"language": ("concentration", "knowledge"), "model": ("width", "depth", "heads")}
    for part, names in inside.items():
        own[part] = {**world[part], **{name: known.pop(name) for name in names if name in known}}
    parameters = {"beta": known.pop("beta")} if "beta" in known else {}
    known.pop("first_seed", None)
    return Plan(**{**own, **known, "seeds": _seeds(given, SIZES[size]), "parameters": parameters})


def tiny(out: Path, /, *, size: str, resume: bool, minutes: float | None, given: Mapping[str, Any]) -> int:
    """Do what `toyld run tiny` was asked to; its exit code."""
    from toyld.report.answers import print_answers
    from toyld.tiny.command import run

    plan, begun = tiny_plan(size, **given), time.monotonic()
    if minutes is not None and not minutes > 0:
        msg = f"--minutes: expected more than 0, got {minutes:g}; leave it out to go on to the end"
        raise BadInput(msg)
    with _bar("training") as tell, np.errstate(over="ignore", invalid="ignore"):  # told in words below
        whole = run(
            out,
            plan,
            resume=resume,
            tell=tell,
            stop=lambda: minutes is not None and time.monotonic() - begun > 60.0 * minutes,
        )
    if not whole:
        print(f"{minutes:g} minutes are over and the run is not: go on with the same command and --resume")
        return 0
    code = diagnose((str(out),), json_file=out / "verdict.json")
    print_answers(read_folder(out))
    return code


def _lower(objective: str) -> str:
    """What to do where a descent came apart."""
    by = objectives.row(objective).plus / objectives.row("dpo").plus
    harder = f" ({objective}'s first push is {by:.0f} times dpo's, at their defaults: toyld objectives)"
    return "lower --lr or --sft-lr" + harder * (by > 1.5)


def _sweep(out: Path, grid: Grid, resume: bool, workers: int) -> int:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    if workers < 1:
        msg = f"--workers: expected at least 1, got {workers}"
        raise BadInput(msg)
    # Spawned, not forked: a fork copies threads' locks.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None
    with pool or contextlib.nullcontext(), _bar("sweeping") as tell:
        table = command.run_sweep(out, grid, resume=resume, executor=pool, tell=tell)
    rows = summary(table)
    write_whole(out / "summary.csv", command.to_csv(rows))
    print_summary(rows)
    if apart := sum(diverged(change) for change in np.nan_to_num(table["d_chosen"], nan=np.inf)):
        print(f"{apart} of {grid.runs} runs came apart in the descent itself; {_lower(grid.objective)}")
    return 0


def llm_plan(recipe: str, /, **given: Any) -> LlmPlan:
    """The plan of a recipe with what is given instead of its settings.

    >>> plan = llm_plan("paper", model="M", data="D", sft_lr=1e-6, beta=0.2)
    >>> plan.sft_lr, plan.lr, plan.parameters, plan.updates("dpo", plan.pairs)
    (1e-06, 5e-07, {'beta': 0.2}, 10000)
    """
    from toyld.llm.checkpoints import pick_device
    from toyld.llm.plan import RECIPES, Plan

    known = {name: value for name, value in given.items() if value is not None}
    parameters = {"beta": known.pop("beta")} if "beta" in known else {}
    if "device" in known:
        known["device"] = pick_device(known["device"])
    if "evaluations" in known and "every" not in known:
        known["every"] = None  # in the place of the recipe's
    return Plan(**{**RECIPES[recipe], **known, "parameters": parameters})


def llm(out: Path, /, *, resume: bool, recipe: str, given: Mapping[str, Any]) -> int:
    """Do what `toyld run llm` was asked to; its exit code."""
    from toyld.llm.command import run

    plan = llm_plan(recipe, **given)
    with _stages() as tell:
        speaks = run(out, plan, resume=resume, tell=tell)
    if not speaks:
        return 0
    return diagnose((str(out),), json_file=out / "verdict.json", html_file=out / "report.html")


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str, int, int], None]]:
    """A function (stage, done, total) with a bar a stage on a terminal; done = −1: a line to say."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if done < 0:
                bar.console.print(what, markup=False, soft_wrap=True)  # a line stays a line
                return
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell
