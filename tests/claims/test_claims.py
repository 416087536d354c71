"""Every claim of the registry is tried: the executable theory. The test id is the claim's id.

Run claims are tried at each of their rungs: on the runs in closed form, on the released logs or on what is recorded of
them and of real language models; `test_runs.py` has their controls.
"""

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from toyld import claims, scoreboard
from toyld.claims import rungs
from toyld.claims.base import CERTAIN

EVERY = claims.every()
STEP = [c for c in EVERY.values() if c.about == "step"]
RUN = [c for c in EVERY.values() if c.about == "run"]
SURVIVE = [c for c in STEP if c.expect != "refuted" and c.premises.fields]
THEOREMS = [c for c in STEP if c.without is not None]
REFUTED = [c for c in STEP if c.expect == "refuted"]


def ids(c):
    return c.id


@pytest.mark.parametrize("claim", STEP, ids=ids)
def test_verdict_is_the_one_we_assert(claim, record_property):
    result = claims.evaluate(claim, examples=2000, seed=0)
    record_property("scoreboard_row", scoreboard.row(claim, {claim.rungs[0]: scoreboard.cell(result)}))
    assert result.as_expected, f"{result.verdict} {result.why}; worst {result.worst:.3g} bounds at {result.case}"


@pytest.mark.parametrize("claim", RUN, ids=ids)
def test_verdict_on_runs_is_the_one_we_assert(claim, record_property):
    found = {rung: claims.evaluate(claim, rung=rung) for rung in claim.rungs}
    record_property("scoreboard_row", scoreboard.row(claim, {at: scoreboard.cell(one) for at, one in found.items()}))
    for rung, result in found.items():
        unrecorded = rung == "llm" and not result.trials  # nothing is computed there
        assert result.as_expected or unrecorded, claims.surprise(result)


@pytest.mark.parametrize("claim", SURVIVE, ids=ids)
def test_no_counterexample_by_hypothesis(claim):
    @settings(
        max_examples=max(5, 40 // claim.cost),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=claim.premises.strategy())
    def survives(drawn):
        size, u = drawn
        case, keep = claim.premises.decode(np.asarray([u], dtype=float).reshape(1, -1), size)
        assume(keep[0])
        margin = claim.check(**case)
        assert margin.score()[0] >= -CERTAIN, f"{claim.statement}\nvalue {margin.value} bound {margin.bound} at {case}"

    survives()


@pytest.mark.parametrize("claim", THEOREMS, ids=ids)
def test_dropping_the_premise_breaks_it(claim):
    from toyld.claims.base import try_to_break

    attack = try_to_break(claim.check, claim.without.premises, examples=2000, seed=1, cost=claim.cost)
    assert attack.worst < -CERTAIN, f"no counterexample without {claim.without.dropped!r}: worst {attack.worst:.3g}"


@pytest.mark.parametrize("claim", REFUTED, ids=ids)
def test_counterexample_is_certified_in_exact_arithmetic(claim):
    counterexample = claim.counterexample
    assert counterexample.certified(), f"margin {counterexample.margin(**counterexample.case)} is not certainly < 0"
    for value in counterexample.case.values():
        flat = value if isinstance(value, tuple) else (value,)
        assert all(hasattr(x, "numerator") for x in flat), f"expected exact rationals, got {value!r}"
    score = claim.check(**counterexample.floats()).score()[0]
    assert score < -CERTAIN, f"the float check gives {score:.3g} bounds on the certified counterexample"


def test_the_registry_is_whole():
    assert len(EVERY) >= 45
    for c in EVERY.values():
        assert c.statement.endswith("."), c.id
        assert c.source, c.id
        assert all(r in scoreboard.RUNGS for r in c.rungs), c.id
        # What is said instead of a step claim is proved; what is said instead of a run claim is not refuted.
        sound = ("holds",) if c.about == "step" else ("holds", "conditional", "open")
        assert c.instead is None or EVERY[c.instead].expect in sound, f"{c.id}: {c.instead}"
        assert not re.search(r"\. [A-Z]", c.statement), f"{c.id}: a statement is one sentence"
        if c.about == "run":
            assert c.kind == "trend", c.id
            assert c.rungs, c.id
            assert set(c.rungs) <= {*rungs.served(), "llm", "published"}, c.id
            assert len(c.proof) > 20, f"{c.id}: a run claim says what its expectation rests on"
        if c.kind == "theorem" and c.expect == "holds":
            assert c.without is not None, f"{c.id}: a theorem names a premise that is needed"
        if c.kind == "theorem":
            assert len(c.proof) > 20, f"{c.id}: a theorem carries a proof"
        if c.expect == "refuted":
            assert c.proof, f"{c.id}: a refuted claim says why"
            assert c.instead, f"{c.id}: a refuted claim names the corrected one"
