"""Every statement of the theory as a value: id, sentence, source, premises, check, proof or counterexample.

One module a chapter; a module in this folder that calls `claim(...)` or `run_claim(...)` joins by being there.
`hold(id)` tries one claim and raises with its numbers if it does not come out as we assert.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from toyld.checked import BadInput
from toyld.claims.base import (
    Claim,
    Counterexample,
    Field,
    Margin,
    Premises,
    Result,
    Without,
    claim,
    registry,
    shrink,
)
from toyld.claims.base import evaluate as _evaluate_step
from toyld.claims.runs import Effect, RunClaim, RunResult, evaluate_on, run_claim

__all__ = [
    "CHAPTERS",
    "Claim",
    "Counterexample",
    "Effect",
    "Field",
    "Margin",
    "Premises",
    "Result",
    "RunClaim",
    "RunResult",
    "Without",
    "claim",
    "describe",
    "evaluate",
    "every",
    "hold",
    "run_claim",
    "select",
    "surprise",
]

_TOOLS = {
    "base",
    "counted",
    "effects",
    "exact",
    "from_runs",
    "margins",
    "numbers",
    "published",
    "real_runs",
    "recorded",
    "recording",
    "rungs",
    "runs",
    "spaces",
    "tables",
    "tools",
}
# The chapters in the order of the story; the word before the dot of a claim's id.
CHAPTERS = {
    "decomposition": "A, K, G and the remainder of first order",
    "squeeze": "who gains and who loses by one negative gradient",
    "trends": "rarer labels, peakier models, measure by measure",
    "entropy": "when a push makes the model more certain",
    "sft": "the positive gradient and its mirror",
    "extend": "training on the rejected answer first",
    "step": "how far first order can be trusted",
    "residual": "what each loss really pushes, and its limits",
    "pair": "preference pairs, displacement, populations",
    "sam": "logits-SAM against squeezing",
    "gate": "gated rejected gradients",
    "policy": "PPO, GRPO, negative samples, TOPR, AsymRE",
    "unlearning": "GA, NPO, unlikelihood, BS-T",
    "kernel": "many contexts, one kernel: cross-talk, centring, stability",
    "displacement": "a component that all features share, and how far extended SFT helps",
    "similarity": "what drives the damage: coupling of contexts or improbable answers",
    "centring": "updates without the common component, beside the other remedies",
    "foresight": "which pairs will be displaced, said before training",
    "tokens": "token by token in whole networks: the divergence, valleys, entangled gradients",
    "akg": "A·K·G in networks: the error of first order, its constant, its proxies, its radius",
    "supervised": "what SFT does to each kind of response, run by run",
    "preference": "what DPO does to each kind of response, run by run",
    "reinforcement": "policy gradients with a verifier: signs, PPO's ratio, displacement, whose answers",
    "alignment": "what models say after DPO, with the language as the judge: does extend improve it",
    "remedy": "centred updates beside the other remedies in transformers, at equal margin",
    "shield": "whether DPO's small pushes protect, and what RMSprop makes of them",
    "network": "squeezing where all layers train: what of it K decides",
    "lifts": "what learning one digit does to the beliefs about others",
    "zigzag": "images with wrong labels: the truth first, then the label",
    "reach": "how far the closed form of many contexts goes towards networks that train every layer",
    "premem": "accuracy before the lesson is copied: what its definition implies, and what it foretells",
    "stability": "whether the kernel's ranking of whom a lesson reaches stays, on digits",
}


def every() -> dict[str, Claim]:
    """All claims by id, chapter by chapter."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        if module not in _TOOLS:
            importlib.import_module(f"{__name__}.{module}")
    order = list(CHAPTERS)

    def place(id: str) -> int:
        chapter = id.split(".")[0]
        return order.index(chapter) if chapter in CHAPTERS else len(order)

    return {id: registry[id] for id in sorted(registry, key=place)}


def select(globs: Iterable[str] = ()) -> list[Claim]:
    """The claims whose id matches one of the globs, or whose chapter is named (all of them without globs).

    Raises:
        BadInput: a glob that matches nothing.
    """
    claims = every()
    patterns = [f"{glob}.*" if glob in CHAPTERS else glob for glob in globs] or ["*"]
    for pattern in patterns:
        if not fnmatch.filter(claims, pattern):
            chapters = ", ".join(sorted({id.split(".")[0] + ".*" for id in claims}))
            msg = f"expected a claim id or glob, got {pattern!r} which matches none; chapters: {chapters}"
            raise BadInput(msg)
    return [c for c in claims.values() if any(fnmatch.fnmatchcase(c.id, p) for p in patterns)]


def evaluate(
    claim: Claim,
    /,
    *,
    examples: int = 2000,
    seed: int = 0,
    runs: Mapping[str, Any] | None = None,
    rung: str | None = None,
) -> Result | RunResult:
    """Try a claim: a step claim on about `examples` sampled cases (`toyld.claims.base.evaluate`), a run claim on runs.

    `runs`: tables by name for a run claim; without them those of `rung`, its lowest by default, as one family with all
    other run claims there: of its experiments, or the released logs under $TOYLD_DATA (what is recorded of them), or
    what was recorded of real language models.
    """
    if not isinstance(claim, RunClaim):
        return _evaluate_step(claim, examples=examples, seed=seed)
    if runs is not None:
        return evaluate_on(claim, runs)
    from toyld.claims import published, real_runs, rungs

    at = rung or claim.rungs[0]
    told = {"published": published.current, "llm": real_runs.current}  # what was logged or recorded
    return told[at](claim) if at in told else rungs.current(claim, at)


def hold(id: str, *, examples: int = 500, seed: int = 0, runs: Mapping[str, Any] | None = None) -> Result | RunResult:
    """Try the claim `id` and return the result; raise AssertionError with its numbers unless it is as expected.

    >>> hold("squeeze.penalised-falls").verdict
    'holds'
    """
    (one,) = select([id])
    result = evaluate(one, examples=examples, seed=seed, runs=runs)
    if not result.as_expected:
        raise AssertionError(surprise(result))
    return result


def describe(one: Claim, /) -> str:
    """A claim in full: statement, source, proof, what it needs, and for a refuted one its counterexample.

    >>> print(describe(every()["squeeze.mass-goes-to-the-top"]).splitlines()[0])
    squeeze.mass-goes-to-the-top (theorem, expected: refuted)
    """
    lines = [f"{one.id} ({one.kind}, expected: {one.expect})", f"  {one.statement}", f"  source: {one.source}"]
    if one.proof and one.about == "step":
        lines.append(f"  {'why' if one.expect == 'refuted' else 'proof'}: {one.proof}")
    if one.without is not None:
        lines.append(f"  fails without: {one.without.dropped}")
    if one.counterexample is not None:
        lines.append(f"  counterexample: {one.counterexample}")
    if one.instead is not None:
        lines.append(f"  instead: {one.instead}: {registry[one.instead].statement}")
    if isinstance(one, RunClaim):
        for rung in one.rungs:
            lines.append(f"  at rung {rung}, expected {one.expected(rung)}: {one.because(rung)}")
            try:
                lines += [f"    {line}" for line in evaluate(one, rung=rung).lines()]  # type: ignore[union-attr]
            except Exception as broken:  # the board says so, too
                lines.append(f"    the check raised {type(broken).__name__}: {broken}")
                continue
            if rung != "published":
                from toyld.claims import real_runs, recorded

                told = real_runs.line(one) if rung == "llm" else recorded.line(one, rung)
                lines += [f"    {line}" for line in told]
    return "\n".join(lines)


def surprise(result: Result | RunResult, /) -> str:
    """Why a claim did not come out as asserted: its numbers and, if it broke, the simplest case that breaks it."""
    one = result.claim
    if isinstance(result, RunResult):
        wanted = one.expected(result.rung) if isinstance(one, RunClaim) else one.expect
        head = f"{one.id}: expected {wanted!r}, got {result.verdict!r} ({result.why})"
        return "\n".join([head, f"  {one.statement}", *(f"  {line}" for line in result.lines())])
    lines = [
        f"{one.id}: expected {one.expect!r}, got {result.verdict!r} ({result.why})",
        f"  {one.statement}",
        f"  {result.cases} cases, worst margin {result.worst:.3g} error bounds",
    ]
    if result.verdict == "refuted" and one.premises.fields and (simplest := shrink(one.check, one.premises)):
        case = ", ".join(f"{name} = {np.asarray(a)[0].tolist()}" for name, a in simplest.items())
        lines.append(f"  simplest case found: {case}")
    return "\n".join(lines)
