"""The quiz of the lab, "which of these runs is squeezing?": runs of four kinds of worlds, their verdicts, and why.

Every answer is what `toyld.diagnosis.diagnose` says of the run; a test makes all runs again. `python -m toyld.lab.quiz`
writes `toyld/lab/quiz.json`, from which the page is built. Worlds: synthetic runs of known cause, closed-form worlds of
many contexts, networks trained here on digits and on a language known exactly, and recorded runs of language models.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from toyld.checked import BadInput
from toyld.diagnosis import Verdict, diagnose
from toyld.diagnosis.causes import CAUSES, make_run
from toyld.diagnosis.classify import Move
from toyld.diagnosis.curves import curves
from toyld.diagnosis.moves import moves
from toyld.files import write_whole
from toyld.report._words import MEANING, nats, plain

__all__ = ["FOURS", "OPTIONS", "RUNS", "Quizzed", "answer", "data", "entry", "write"]

SEED = 0  # of everything that is made here: the first, not the fairest
OPTIONS = ("squeezing", "displacement", "healthy", "rejection", "sft-normal", "divergence", "cannot-tell")
LINES = ("chosen", "rejected", "argmax", "gap")
# Along the contexts of the chosen answer: where its mass went, or came from, as far as the curves show it.
WHERE = {
    "squeezing": "Mass came to what the model already found likeliest.",
    "displacement": "Mass left the chosen answer, and none of it came to the likeliest tokens.",
    "divergence": "Mass left the chosen answer and the likeliest tokens alike: it went to others.",
    "healthy": "Mass came to the chosen answer, and left the rejected one.",
    "sft-normal": "Mass came to the chosen answer.",
    "rejection": "Mass left the rejected answer; along the chosen one less moved than counts as a move.",
    "cannot-tell": "Whether the mass went to the likeliest tokens or to others is not known: both look like this.",
}


class Quizzed(NamedTuple):
    """A run of the quiz: the kind of world it is from, what was done there, and the function that makes its table."""

    world: str
    done: str
    make: Callable[[], xr.Dataset]


def _synthetic(cause: str) -> Quizzed:
    return Quizzed("synthetic", f"Small softmaxes with {CAUSES[cause]}.", lambda: make_run(cause, seed=SEED))


def _closed_form(name: str, done: str) -> Quizzed:
    def make() -> xr.Dataset:
        from toyld.contexts import experiments

        return experiments.run("stages", seeds=[SEED])[name]

    return Quizzed("closed form", done, make)


def _digits(noise: float, done: str) -> Quizzed:
    def make() -> xr.Dataset:
        from toyld.digits.command import SIZES, Plan, run
        from toyld.digits.data import embedded
        from toyld.digits.ensemble import Recipe
        from toyld.trajectory import read_folder

        small = SIZES["smoke"]
        plan = Plan("embedded", seeds=(SEED,), recipe=Recipe(**small["recipe"]), noise=noise, probes=small["probes"],
                    evaluations=small["evaluations"])  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder) / "run", plan, embedded())
            (ds,) = read_folder(Path(folder) / "run")
            return ds.load()

    return Quizzed("digits", done, make)


def _tiny(stage: str, done: str) -> Quizzed:
    def make() -> xr.Dataset:
        from toyld import objectives
        from toyld.tiny.experiments import stages
        from toyld.tiny.experiments._worlds import BETA, RECIPES, world
        from toyld.tiny.stage import train

        base, recipe = world((SEED,)), RECIPES["sgd"]
        teach: dict[str, Any] = {"lr": recipe.sft, "optimizer": recipe.optimizer}
        if stage == "sft":
            at = stages.SFT_AT["sgd"]
            sft = train(base.models, base.data, objectives.get("sft"), steps=at[-1], at=at, kinds=LINES[:2], **teach)
            return sft.table("sft", "baseline")
        first = train(base.models, base.data, objectives.get("sft"), steps=max(stages.SFT_UPDATES), at=[],
                      kinds=["chosen"], **teach)  # fmt: skip
        at = stages.DPO_AT["sgd"]
        pairs = train(first.models, base.data, objectives.get("dpo", beta=BETA), lr=recipe.dpo, steps=at[-1],
                      optimizer=recipe.optimizer, rejected="rejected", at=at, kinds=LINES[:2])  # fmt: skip
        return pairs.table("dpo", "baseline")

    return Quizzed("tiny transformer", done, make)


def _recorded(run: str, stage: str, done: str, *, argmax: bool = True) -> Quizzed:
    def make() -> xr.Dataset:
        from toyld.lab import recorded

        ds = recorded.load(run, stage, "baseline")
        return ds if argmax else ds.drop_vars("argmax_logp")

    return Quizzed("language model", done, make)


_HH = "A Llama of 5.9 million parameters on human preference pairs"
_STORIES = "A Llama of 260 thousand parameters on pairs made of children's stories"
RUNS: Mapping[str, Quizzed] = {
    "a": _closed_form("anisotropic dpo baseline after 10", "DPO after ten updates of SFT, in a world whose contexts "
                      "have much in common: what is pushed down in one is pushed down in all."),
    "b": _recorded("hh", "sft", f"{_HH}: SFT on the preferred answers."),
    "c": _synthetic("displacement"),
    "d": _recorded("stories", "dpo", f"{_STORIES}: DPO after SFT, logged as trainers do, without the argmax.",
                   argmax=False),
    "e": _digits(0.0, "A small network that learns to read digits."),
    "f": _recorded("hh", "dpo", f"{_HH}: DPO after SFT."),
    "g": _tiny("dpo", "DPO of a tiny transformer, after SFT, on a language known exactly: true answers against the "
               "model's own."),
    "h": _synthetic("divergence"),
    "i": _closed_form("local dpo baseline after 0", "DPO without SFT before it, in a world whose contexts have little "
                      "in common."),
    "j": _digits(0.4, "The network that reads digits, with two in five of the labels wrong: SFT alone, no negative "
                 "gradient."),
    "k": _recorded("stories", "dpo", f"{_STORIES}: DPO after SFT. The run without an argmax that was asked before, now "
                   "with it."),
    "l": _synthetic("rejection"),
    "m": _tiny("sft", "SFT of a tiny transformer on true answers; the rejected ones are its own of before."),
}  # fmt: skip
# Four runs, one of them squeezing; the first two are of four worlds.
FOURS = (("e", "a", "m", "f"), ("b", "e", "g", "i"), ("c", "h", "l", "a"))


def answer(verdict: Verdict, /) -> list[str]:
    """What counts as right: the verdict, and what most examples read where means and examples disagree.

    >>> answer(diagnose(make_run("squeezing", seed=0)))
    ['squeezing']
    """
    share = verdict.share or {}
    disagree = any(reason.startswith("means and examples disagree") for reason in verdict.reasons)
    largest = max(share, key=lambda name: share[name]) if share and disagree else verdict.verdict
    return list(dict.fromkeys([verdict.verdict, largest if largest in OPTIONS else verdict.verdict]))


def _short(x: float) -> float | None:
    return float(f"{x:.3g}") if math.isfinite(x) else None


def _reason(v: Verdict) -> str:
    """The verdict's reason in one sentence, with its numbers."""
    parts = []
    for name in LINES:
        if name == "gap":
            first, last = v.numbers["gap_first"], v.numbers["gap_last"]
            change = None if first is None or last is None else last - first
        else:
            change = v.numbers[f"d_{name}"]
        if change is not None:
            low, high = v.intervals[f"d_{name}"]
            words = "G" if name == "gap" else name
            parts.append(f"{words} {nats(change)} [{nats(low)}, {nats(high)}]")
    why = v.reasons[0] if v.verdict == "cannot-tell" and v.reasons else MEANING[v.verdict]
    return f"{why[0].upper()}{why[1:]}. In nats an answer: {', '.join(parts)}."


def _doubt(v: Verdict, moved: Mapping[str, Move]) -> str:
    """What lowers the confidence of the verdict beside what was not measured; empty where nothing does."""
    if v.verdict == "cannot-tell":
        return ""
    parts = []
    ends = {
        name: Move(*(part[-1:] for part in moved[name])) for name in ("chosen", "argmax", "rejected") if name in moved
    }
    small = [name for name, end in ends.items() if abs(end.value[0]) > end.floor[0] and not (end.up[0] or end.down[0])]
    if small:
        least = nats(float(ends[small[0]].floor[0]), sign=False)
        parts.append(f"{' and '.join(small)} moved, but what moves by less than {least} nats counts as still here, and "
                     "the interval reaches below that")  # fmt: skip
    parts += [reason for reason in v.reasons if reason.startswith("means and examples disagree")]
    return plain("; ".join(parts))


def entry(name: str, /) -> dict[str, Any]:
    """What the quiz holds of a run: curves of changes with their intervals, in nats an answer, and the answer.

    >>> found = entry("c")
    >>> found["verdict"], found["right"], len(found["curves"]["gap"]["mean"]) == len(found["updates"])
    ('displacement', ['displacement'], True)
    """
    if name not in RUNS:
        msg = f"run: expected one of {', '.join(RUNS)}, got {name!r}"
        raise BadInput(msg)
    world, done, make = RUNS[name]
    ds = make()
    measured, verdict = curves(ds), diagnose(ds)
    moved = moves(measured).move
    lines = {
        line: {part: [_short(float(x)) for x in getattr(moved[line], key)]
               for part, key in (("mean", "value"), ("low", "low"), ("high", "high"))}
        for line in LINES if line in moved
    }  # fmt: skip
    share = {kind: round(part, 3) for kind, part in (verdict.share or {}).items() if part}
    return {
        "id": name, "world": world, "done": done, "stage": verdict.stage, "examples": verdict.n_examples,
        "updates": [int(step) for step in measured.step], "curves": lines, "verdict": verdict.verdict,
        "right": answer(verdict), "confidence": verdict.confidence, "reason": _reason(verdict),
        "where": WHERE[verdict.verdict], "doubt": _doubt(verdict, moved), "share": share,
    }  # fmt: skip


def write(out: str | Path, /) -> None:
    """Make every run and write what the quiz holds of them."""
    about = {"options": list(OPTIONS), "fours": [list(four) for four in FOURS]}
    lines = ",\n".join(json.dumps(entry(name), ensure_ascii=False) for name in RUNS)
    text = json.dumps(about, ensure_ascii=False)[:-1] + f', "runs": [\n{lines}\n]}}\n'
    write_whole(Path(out), text.encode())


def data() -> dict[str, Any]:
    """What the panel shows: the runs as they were written.

    >>> len(data()["runs"]) == len(RUNS), data()["options"][0]
    (True, 'squeezing')
    """
    found: dict[str, Any] = json.loads(files("toyld.lab").joinpath("quiz.json").read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    write(Path(__file__).with_name("quiz.json"))
