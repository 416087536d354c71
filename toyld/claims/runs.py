"""What a run claim is, and how one is tried: premises, effect with its interval, one family of tests per rung.

A run claim says something about tables (`toyld.trajectory`): about one run (S1: chosen rises), about a run beside its
control (D7: extend against baseline) or about all runs together (S6). Its premises are a function of the tables that
returns None, or the reason why the claim says nothing about them. Its check returns an `Effect`, positive = as stated.

The units of a run are its examples, or its seeds where it has several: Student's t over them, with what the evaluations
of the run jitter (`toyld.claims.effects`), says how sure the sign is for this one run, and nothing about other models.
A mean without its examples has no interval and enters no verdict; nor do examples of a run too short for its jitter.

Tables may carry attr `experiment`, the name of the design that they are part of. A claim with `experiment` is tried on
those of that name and on those that name none (logs); so no claim is tried on the arms of somebody else's design.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, Literal

import numpy as np
import xarray as xr

from toyld.claims.base import Claim, Expect, registry
from toyld.claims.effects import Effect, untested
from toyld.claims.expected_of_runs import EXPECTED
from toyld.diagnosis.resample import holm
from toyld.diagnosis.thresholds import DEFAULT

__all__ = [
    "ALPHA",
    "Effect",
    "RunClaim",
    "RunResult",
    "Trial",
    "arrangements",
    "decide",
    "evaluate_on",
    "run_claim",
    "summary",
    "try_on",
]

Verdict = Literal["holds", "refuted", "conditional", "undecided", "not applicable", "not run"]
ALPHA = round(1.0 - DEFAULT.level, 12)


@dataclass(frozen=True)
class RunClaim(Claim):
    """A claim about tables: `premises(*tables)` is None or a reason, `check(*tables)` an `Effect` in `unit`.

    `expect` and `proof` are about the claim's own verdict, that of its lowest rung with one; `elsewhere` has the rungs
    at which something else is expected, each with its own why. `experiment`: tried on its tables alone.
    """

    takes: Literal["run", "control", "all"] = "run"  # one run; a run and its control; all runs at once
    unit: str = "nats"
    experiment: str | None = None
    elsewhere: Mapping[str, tuple[Expect, str]] = field(default_factory=dict)

    def expected(self, rung: str | None, /) -> Expect:
        """What we assert of this claim at a rung; None = of its own verdict."""
        return self.elsewhere.get(rung or "", (self.expect, self.proof))[0]

    def because(self, rung: str | None, /) -> str:
        """What that rests on."""
        return self.elsewhere.get(rung or "", (self.expect, self.proof))[1]

    def speaks_of(self, ds: xr.Dataset, /) -> bool:
        """Whether a table is of this claim's experiment, or of none."""
        return self.experiment is None or ds.attrs.get("experiment", self.experiment) == self.experiment


def run_claim(
    id: str,
    statement: str,
    /,
    *,
    source: str,
    premises: Callable[..., str | None],
    expect: Expect,
    why: str,
    takes: Literal["run", "control", "all"] = "run",
    instead: str | None = None,
    rungs: tuple[str, ...] = ("published",),
    experiment: str | None = None,
    elsewhere: Mapping[str, tuple[Expect, str]] | None = None,
    unit: str = "nats",
) -> Callable[[Callable[..., Effect]], RunClaim]:
    """Decorator: the function below is the check of this run claim; `why` says what `expect` rests on.

    unit: of the effect. rungs: lowest first. elsewhere: rung → (expect, why), where it is not the same as for the claim
    as a whole.
    """

    def register(check: Callable[..., Effect]) -> RunClaim:
        if id in registry:
            msg = f"claim id {id!r} is taken; expected a new one"
            raise ValueError(msg)
        real = {"llm": EXPECTED[id]} if "llm" in rungs and id in EXPECTED else {}
        one = RunClaim(
            id, statement, source, "trend", check, premises, expect, "run", rungs, why, instead=instead,
            takes=takes, experiment=experiment, elsewhere={**real, **(elsewhere or {})}, unit=unit,
        )  # fmt: skip
        registry[id] = one
        return one

    return register


@dataclass(frozen=True)
class Trial:
    """One claim on one run (or run and control, or all runs): its effect, or why it does not apply."""

    runs: tuple[str, ...]
    effect: Effect | None
    why: str | None = None
    verdict: Verdict = "undecided"
    recorded: bool = False

    @property
    def tested(self) -> bool:
        """Whether there is a p-value: more than a mean."""
        return self.effect is not None and not np.isnan(self.effect.two_sided)


def arrangements(claim: RunClaim, runs: Mapping[str, xr.Dataset], /) -> list[tuple[str, ...]]:
    """The ways to hand the runs that it speaks of to a claim: each; each ordered pair of two; all of them."""
    names = [name for name, ds in runs.items() if claim.speaks_of(ds)]
    if claim.takes == "all":
        return [tuple(names)] if names else []
    return list(permutations(names, 2 if claim.takes == "control" else 1))


def try_on(claim: RunClaim, runs: Mapping[str, xr.Dataset], /) -> list[Trial]:
    """The claim on every arrangement of the runs, without verdicts (`decide` gives them to a whole family)."""
    out = []
    for names in arrangements(claim, runs):
        tables = [runs[name] for name in names]
        reason = claim.premises(*tables)
        effect = claim.check(*tables) if reason is None else None
        out.append(Trial(names, effect, reason if effect is None else untested(effect)))
    return out


def decide(family: Mapping[str, Sequence[Trial]], /) -> dict[str, list[Trial]]:
    """Every trial of a family with its verdict: holds or refuted if two-sided significant after Holm at 5 %.

    All trials of all claims of one rung are one family, so that a false *holds* or *refuted* anywhere in it has a
    probability of at most 5 %.
    """
    p = [trial.effect.two_sided if trial.effect is not None else np.nan for ts in family.values() for trial in ts]
    adjusted = iter(holm(np.array(p, float)).tolist())

    def one(trial: Trial) -> Trial:
        sure = next(adjusted) <= ALPHA
        if trial.effect is None:
            return replace(trial, verdict="not applicable")
        sign: Verdict = "holds" if trial.effect.p < trial.effect.below else "refuted"
        return replace(trial, verdict=sign if sure else "undecided")

    return {id: [one(trial) for trial in trials] for id, trials in family.items()}


def summary(trials: Sequence[Trial], /) -> Verdict:
    """One verdict over runs: holds or refuted if in every run tested, conditional if both occur, else undecided.

    >>> summary([])
    'not run'
    """
    if not trials:
        return "not run"
    if all(trial.effect is None for trial in trials):
        return "not applicable"
    found = {trial.verdict for trial in trials if trial.tested}
    if found in ({"holds"}, {"refuted"}):
        return found.pop()
    return "conditional" if {"holds", "refuted"} <= found else "undecided"


@dataclass(frozen=True)
class RunResult:
    """What trying a run claim gave, run by run; `recorded`: where the numbers come from if not computed now."""

    claim: RunClaim
    trials: tuple[Trial, ...]
    recorded: Mapping[str, Any] | None = None
    rung: str | None = None  # where; None = on tables that somebody handed in

    @property
    def summary(self) -> Verdict:
        """The verdict over all runs."""
        return summary(self.trials)

    @property
    def verdict(self) -> str:
        """The verdict in the words of `expect`: undecided and not applicable are both *open*."""
        return "open" if self.summary in ("undecided", "not applicable") else self.summary

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the one that we assert at this rung."""
        return self.verdict == self.claim.expected(self.rung)

    @property
    def tested(self) -> list[Trial]:
        """The trials with a p-value."""
        return [trial for trial in self.trials if trial.tested]

    @property
    def effect(self) -> Effect | None:
        """The effect that speaks least for the verdict; where there is none, the one nearest to 0; means come last."""
        pick = {"holds": lambda e: e.value, "refuted": lambda e: -e.value}.get(self.summary, lambda e: abs(e.value))
        known = [t.effect for t in self.tested or self.trials if t.effect is not None]
        return min(known, key=pick, default=None)

    @property
    def why(self) -> str:
        """Why there is no clear verdict: reasons of the runs to which the claim does not apply, or the counts."""
        if self.summary == "not run":
            return "neither the runs nor recorded effects are there"
        if self.summary == "not applicable":
            reasons = Counter(trial.why or "" for trial in self.trials)
            return "; ".join(f"{reason} ({n})" for reason, n in reasons.most_common())
        counts = Counter(trial.verdict for trial in self.tested)
        if self.summary in ("conditional", "undecided"):
            shown = ", ".join(f"{verdict} in {n}" for verdict, n in counts.items()) or "no interval in any run"
            return f"{shown} of the runs tested" if counts else shown
        return ""

    def lines(self) -> list[str]:
        """Run by run in words, those to which the claim does not apply by reason."""
        unit, out = self.claim.unit, []
        for trial in self.trials:
            if trial.effect is not None:
                many = self.claim.takes == "all" and len(trial.runs) > 2
                e, which = trial.effect, f"{len(trial.runs)} runs" if many else " against ".join(trial.runs)
                span = (
                    f"[{e.low:+.4g}, {e.high:+.4g}], n = {e.n}: {trial.verdict}" if trial.tested else f"({trial.why})"
                )
                out.append(f"{which}: {e.value:+.4g} {unit} {span}{', recorded' if trial.recorded else ''}")
        reasons = Counter(trial.why or "" for trial in self.trials if trial.effect is None)
        return out + [f"not applicable to {n}: {reason}" for reason, n in reasons.most_common()]


def evaluate_on(claim: RunClaim, runs: Mapping[str, xr.Dataset], /) -> RunResult:
    """Try one run claim on tables by name; its trials are the whole family."""
    return RunResult(claim, tuple(decide({claim.id: try_on(claim, runs)})[claim.id]))
