"""What the generated tests do not cover: the tables are whole and agree, golden numbers, planted bugs, `add`."""

import doctest
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from toyld import claims, objectives
from toyld.claims import exact, residuals, residuals_pairs, residuals_zoo
from toyld.claims.base import registry

NAMES = list(objectives.OBJECTIVES)
PUSHING = [name for name in NAMES if objectives.get(name).kind != "target"]
# The losses whose coefficients the claims write down a second time.
TABLE = (
    "sft extend ga dpo cdpo ipo slic simpo sppo dpop rpo cpo kto orpo nca npo unlikelihood nsr ppo grpo topr asymre "
    "gate-dpo"
)


def test_every_objective_has_its_claim_and_says_its_coefficients():
    every = claims.every()
    for name in NAMES:
        statement = every[residuals.name_of(name)].statement
        assert statement.startswith(f"{name}: ")
        assert residuals.summary(objectives.get(name)) in statement
    assert set(residuals.COEFFICIENTS) == set(TABLE.split())


@pytest.mark.parametrize("id", [id for id in claims.every() if id.startswith("residual.")])
def test_a_statement_is_one_short_sentence(id):
    statement = claims.every()[id].statement
    assert not re.search(r"[.!?]\)? +\(?[A-Z]", statement)
    assert len(statement) < 280


def test_a_summary_is_the_first_sentence_of_a_docstring():
    @dataclass(frozen=True)
    class Two(objectives.DPO):
        """−log σ(βh), i.e. DPO. (Also Bradley-Terry.)"""

    assert residuals.summary(Two()) == "−log σ(βh), i.e. DPO"


def test_a_loss_without_a_gradient_is_one_clear_line():
    @dataclass(frozen=True)
    class Constant(objectives.DPO):
        def loss(self, batch, /):
            return batch.zeros()

    with pytest.raises(ValueError, match="chosen response; got a constant"):
        residuals_pairs.pull(Constant(), "chosen", np.zeros((1, 2)), np.array([0]), np.zeros(1))


def test_the_table_of_signs_names_every_loss_with_a_push():
    assert set(residuals_zoo.SIGNS) == set(PUSHING)
    assert set(residuals_zoo.FLOORS) | set(residuals_zoo.NO_FLOOR) == set(PUSHING)


@pytest.mark.parametrize("name", PUSHING)
def test_the_tables_agree_with_the_one_computed_by_probing_limits(name):
    row = objectives.row(name)
    negative = "no" if name in residuals_zoo.NEVER else "later" if name == "trl.discopop" else "yes"
    assert row.negative == negative
    assert row.bounded == ("no" if name in residuals_zoo.NO_FLOOR else "yes")
    if name in residuals_zoo.BALANCED:
        assert row.plus == -row.minus
    if name in residuals_zoo.NO_FLOOR:
        least = residuals_zoo.NO_FLOOR[name](objectives.get(name))
        assert row.fades == f"never (least {least:.4g})"


def test_the_errata_in_numbers():
    """F3's example: true 2.54, printed .68; F5: (+η, −η) at π_ref; β/2 at π_ref."""
    beta, gap = 0.3, -1.27
    calm = np.asarray([-1.0])
    batch = objectives.pair_batch(calm, calm, calm - (0.5 / beta + gap), calm)
    assert_allclose(objectives.get("ipo", beta=beta).coefficients(batch), [[2.54], [-2.54]], rtol=1e-12)
    assert round(beta * (1.0 - gap), 2) == 0.68
    here = objectives.pair_batch(calm, calm)
    assert_array_equal(objectives.get("sppo", eta=7.0).coefficients(here), [[7.0], [-7.0]])
    assert_array_equal(objectives.get("dpo", beta=0.1).coefficients(here), [[0.05], [-0.05]])


@pytest.mark.parametrize(
    ("id", "more"),
    [
        ("residual.printed-ipo", {"h": [0, 1, -1, 2, -2]}),
        ("residual.printed-slic", {"h": [0, 1, -1, 2, -2]}),
        ("residual.sppo-has-no-negative-gradient", {"h": [0, 1, -1, 2, -2]}),
        ("residual.printed-minus", {}),
    ],
)
def test_the_counterexample_is_the_smallest(id, more):
    stored = registry[id].counterexample
    assert exact.smallest(stored.margin, s=None, beta=exact.STEPS, **more) == dict(stored.case)


def test_the_gradient_is_that_of_the_context_it_belongs_to():
    """IPO's pull on a softmax by hand: π = (1/2, 1/2), h = 0, β = 1: c_+ = 1, so −∂loss/∂z = (1/2, −1/2)."""
    z, zero = np.zeros((1, 2)), np.zeros(1)
    ipo = residuals_pairs.tuned("ipo", beta=np.ones(1))
    assert_array_equal(residuals_pairs.pull(ipo, "chosen", z, np.array([0]), zero), [[0.5, -0.5]])
    assert_array_equal(residuals_pairs.pull(ipo, "rejected", z, np.array([0]), zero), [[-0.5, 0.5]])


# ------------------------------------------------------------------------------------------------ planted bugs


def dpo_without_its_sigmoid(patch):
    patch.setattr(objectives.DPO, "strength", lambda self, h: self.beta + 0.0 * h)


def dpo_pushed_the_wrong_way(patch):
    whole = objectives.DPO.strength
    patch.setattr(objectives.DPO, "strength", lambda self, h: -whole(self, h))


def ipo_as_printed(patch):
    patch.setattr(objectives.IPO, "strength", lambda self, h: self.beta * (1.0 - (h - 0.5 / self.beta)))


def slic_as_printed(patch):
    def coefficients(self, batch):
        active = (self._gap(batch) > 0) * 0.05
        return active, -active

    patch.setattr(objectives.SLiC, "coefficients", coefficients)


def sppo_as_printed(patch):
    """Two positive vectors."""
    whole = objectives.SPPO.coefficients
    patch.setattr(objectives.SPPO, "coefficients", lambda self, batch: tuple(np.abs(c) for c in whole(self, batch)))


def simpo_not_divided_by_the_length(patch):
    def coefficients(self, batch):
        strength = self.beta * objectives.stable.sigmoid(-self._logit(batch))
        return strength, -strength

    patch.setattr(objectives.SimPO, "coefficients", coefficients)


def npo_twice_too_weak_in_loss_and_push(patch):
    """Loss and push agree with each other and not with the theory: only the table's formula can tell."""
    loss, push = objectives.NPO.loss, objectives.NPO.coefficients
    patch.setattr(objectives.NPO, "loss", lambda self, batch: 0.5 * loss(self, batch))
    patch.setattr(objectives.NPO, "coefficients", lambda self, batch: tuple(0.5 * c for c in push(self, batch)))


def kto_with_a_baseline_per_row(patch):
    def values(self, batch):
        z0 = objectives.stable.positive_part(objectives.detach(batch.log_ratio("anchor")))
        return self.beta * (batch.log_ratio("chosen") - z0), self.beta * (z0 - batch.log_ratio("rejected"))

    patch.setattr(objectives.KTO, "_values", values)


def kto_with_a_gradient_through_the_baseline(patch):
    patch.setattr("toyld.objectives.single.detach", lambda x: x)


def ppo_clipped_on_both_sides(patch):
    from toyld.objectives import tokens

    def clipped(batch, side, advantage, clip):
        xp = batch.xp
        ratio = xp.exp(batch.tokens(side) - batch.tokens(f"old_{side}"))
        inside = (ratio > 1.0 - clip) & (ratio < 1.0 + clip)
        bound = xp.where(ratio < 1.0, xp.full_like(ratio, 1.0 - clip), xp.full_like(ratio, 1.0 + clip))
        advantage = advantage + xp.zeros_like(ratio)
        value = -advantage * xp.where(inside, ratio, bound)
        return value, xp.where(inside, advantage * ratio, xp.zeros_like(ratio))

    patch.setattr(tokens, "_clipped", clipped)


def rank_for_row_in_aot(patch):
    def coefficients(self, batch):
        strength = self._pair().strength(self._delta(batch)[0])
        return strength, -strength

    patch.setattr(objectives.AOT, "coefficients", coefficients)


def masked_tokens_pushed_too(patch):
    def spread(self, values, side):
        tokens = getattr(self, side)
        return None if tokens is None else (values if values.ndim == 2 else values[:, None]) + 0.0 * tokens

    patch.setattr(objectives.Batch, "spread", spread)


def the_belief_of_bst_not_renormalised(patch):
    whole = objectives.BST.target
    patch.setattr(objectives.BST, "target", lambda self, logp, labels: 0.9 * whole(self, logp, labels))


RED = {
    dpo_without_its_sigmoid: ["residual.dpo", "residual.dpo-never-reverses", "residual.dpo-never-stops"],
    dpo_pushed_the_wrong_way: ["residual.dpo", "residual.dpo-never-reverses", "residual.sign-table"],
    ipo_as_printed: ["residual.ipo", "residual.ipo-stops-at-target", "residual.sign-table"],
    slic_as_printed: ["residual.slic"],
    sppo_as_printed: ["residual.sppo", "residual.sppo-stops-at-target", "residual.sign-table"],
    simpo_not_divided_by_the_length: ["residual.simpo"],
    npo_twice_too_weak_in_loss_and_push: ["residual.npo"],
    kto_with_a_baseline_per_row: ["residual.kto"],
    kto_with_a_gradient_through_the_baseline: ["residual.kto"],
    ppo_clipped_on_both_sides: ["residual.ppo", "residual.grpo"],
    rank_for_row_in_aot: ["residual.trl-aot"],
    masked_tokens_pushed_too: ["residual.dpo", "residual.simpo", "residual.grpo"],
    the_belief_of_bst_not_renormalised: ["residual.bs-t"],
}


def red(id):
    """Whether a claim no longer comes out as asserted (a check that crashes is red too)."""
    with np.errstate(all="ignore"):
        try:
            return not claims.evaluate(claims.every()[id], examples=500).as_expected
        except (ArithmeticError, ValueError, RuntimeError):
            return True


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_the_claims_red(bug, monkeypatch):
    assert not [id for id in RED[bug] if red(id)], "green before the bug is planted"
    bug(monkeypatch)
    assert [id for id in RED[bug] if not red(id)] == []


# ------------------------------------------------------------------------------------------------ a loss of your own


@pytest.fixture
def twice():
    """2·DPO, registered for one test."""

    @objectives.register
    @dataclass(frozen=True)
    class Twice(objectives.DPO):
        """−2 log σ(βh): c = ±2β(1 − a)."""

        name: ClassVar[str] = "twice"
        source: ClassVar[str] = "an example"

        def value(self, h, /):
            return 2.0 * super().value(h)

        def strength(self, h, /):
            return 2.0 * super().strength(h)

    yield Twice
    del objectives.OBJECTIVES["twice"]
    registry.pop("residual.twice", None)


def test_a_loss_of_your_own_gets_the_same_claim(twice):
    made = residuals.add("twice", formula=lambda o, n: (2.0 * c for c in residuals.COEFFICIENTS["dpo"](o, n)))
    assert made.id == "residual.twice"
    assert made.statement.endswith("−2 log σ(βh): c = ±2β(1 − a).")
    assert claims.evaluate(made, examples=500).verdict == "holds"


def test_a_wrong_formula_is_refuted(twice):
    made = residuals.add("twice", formula=residuals.COEFFICIENTS["dpo"])
    assert claims.evaluate(made, examples=500).verdict == "refuted"


def test_an_unknown_name_gives_one_line():
    with pytest.raises(objectives.UnknownObjectiveError, match="no objective 'dop'"):
        residuals.add("dop")


def test_examples_in_docstrings():
    result = doctest.testmod(residuals)
    assert result.attempted > 0
    assert result.failed == 0
