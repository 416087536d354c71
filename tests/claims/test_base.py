"""The machine that tries claims must itself be able to say no."""

import numpy as np
import pytest

from toyld.claims import Claim, Counterexample, Margin, Premises, Without, evaluate, hold, select
from toyld.claims.base import each, identity, rounding, shrink
from toyld.claims.spaces import label, logits, real, step_size

LINE = Premises({"x": real(0.0, 1.0)}, sizes=(2,))


def make(check, premises=LINE, **rest):
    return Claim("test.one", "A statement.", "nowhere", rest.pop("kind", "theorem"), check, premises, **rest)


def margin(value):
    return Margin(value, np.full(np.shape(value), 1e-12))


def test_a_false_statement_is_refuted_by_sampling():
    assert evaluate(make(lambda x: margin(0.5 - x))).verdict == "refuted"


def test_the_optimiser_finds_what_sampling_misses():
    """A violation on a set of measure 1e-6: 1,000 samples have one chance in a thousand of meeting it."""
    result = evaluate(make(lambda x: margin(np.abs(x - 0.3141) - 5e-7)), examples=1000)
    assert result.verdict == "refuted"
    assert result.case["x"] == pytest.approx(0.3141, abs=1e-6)


def test_nan_is_a_failure_not_a_pass():
    result = evaluate(make(lambda x: margin(np.where(x > 0.9, np.nan, 1.0))))
    assert result.verdict == "undecided"
    assert "a margin is not a number" in result.why


def test_an_empty_premise_is_undecided_not_proved():
    empty = Premises({"x": real(0.0, 1.0)}, sizes=(2,), where=lambda x: x > 2.0)
    assert evaluate(make(lambda x: margin(x), empty)).why == "no case met the premise"


def test_within_the_rounding_bound_is_not_a_counterexample():
    assert evaluate(make(lambda x: Margin(np.full_like(x, -5.0), np.ones_like(x)))).verdict == "undecided"
    assert evaluate(make(lambda x: Margin(np.full_like(x, -0.5), np.ones_like(x)))).verdict == "holds"


def test_a_premise_that_can_be_dropped_has_no_teeth():
    toothless = make(lambda x: margin(1.0 + x), without=Without("nothing at all", LINE))
    assert "no teeth" in evaluate(toothless).why
    biting = make(lambda x: margin(x + 0.1), without=Without("x ≥ 0", Premises({"x": real(-1.0, 1.0)}, sizes=(2,))))
    assert evaluate(biting).verdict == "holds"


def test_a_refutation_needs_a_certificate_that_the_float_check_sees_too():
    def check(x):
        return margin(0.5 - x)

    assert evaluate(make(check, expect="refuted")).why == "no certified counterexample"

    def refuted(case, exact):
        return evaluate(make(check, expect="refuted", counterexample=Counterexample(case, exact)))

    from flint import arb

    assert refuted({"x": 1}, lambda x: arb("0.5") - x).verdict == "refuted"
    assert refuted({"x": 1}, lambda x: arb("0.5 +/- 1") - x).why == "no certified counterexample"
    assert "does not see" in refuted({"x": 0}, lambda x: arb(-1)).why


def test_a_counterexample_must_satisfy_the_premise():
    from flint import arb

    inside = Premises({"x": real(0.0, 1.0)}, sizes=(2,), where=lambda x: x < 0.5)
    claim = make(
        lambda x: margin(0.5 - x),
        inside,
        expect="refuted",
        counterexample=Counterexample({"x": 1}, lambda x: arb("0.5") - x),
    )
    assert evaluate(claim).why == "the counterexample breaks the premise"


@pytest.mark.parametrize("bound", [np.inf, -1.0, 0.0, np.nan])
def test_a_bound_that_is_none_is_a_failure(bound):
    assert evaluate(make(lambda x: Margin(1.0 + x, np.full_like(x, bound)))).verdict == "undecided"


def test_a_violation_beyond_any_float_is_a_refutation():
    assert evaluate(make(lambda x: Margin(np.full_like(x, -1e300), np.full_like(x, 1e-16)))).verdict == "refuted"


def test_cases_that_say_nothing_do_not_count():
    silent = make(lambda x: margin(np.full_like(x, np.inf)))
    assert (evaluate(silent).verdict, evaluate(silent).cases) == ("undecided", 0)
    half = evaluate(make(lambda x: margin(np.where(x < 0.5, np.inf, 1.0)), hunt=False), examples=1000)
    assert 400 < half.cases < 600


def test_an_identity_beside_an_inequality_does_not_blind_the_optimiser():
    def both(x):
        rare = np.abs(x - 0.3141) - 5e-7
        return Margin(np.stack([np.full_like(x, 1e-13), rare], axis=-1), np.full((len(x), 2), 1e-12))

    assert evaluate(make(both), examples=1000).verdict == "refuted"
    assert evaluate(make(both, hunt=False), examples=1000).verdict == "holds"


def test_an_open_conjecture_stays_open_until_broken():
    assert evaluate(make(lambda x: margin(x + 1.0), kind="conjecture", expect="open")).verdict == "open"
    assert evaluate(make(lambda x: margin(x - 0.5), kind="conjecture", expect="open")).verdict == "refuted"


def test_shrinking_gives_the_simplest_counterexample():
    premises = Premises({"z": logits(), "y": label(), "s": step_size()})
    simplest = shrink(lambda z, y, s: margin(np.where(z.shape[-1] >= 3, -1.0, 1.0) * s), premises)
    assert simplest["z"].shape == (1, 3)
    assert simplest["s"][0] == pytest.approx(1e-6)
    assert shrink(lambda z, y, s: margin(s), premises) is None


def test_the_same_seed_gives_the_same_cases_and_another_seed_others():
    seen = []
    probe = make(lambda x: (seen.append(x.copy()), margin(x + 1.0))[1])
    for seed in (1, 1, 2):
        evaluate(probe, examples=10, seed=seed)
    calls = len(seen) // 3
    np.testing.assert_array_equal(seen[0], seen[calls])
    assert not np.array_equal(seen[0], seen[2 * calls])


def test_each_and_batched_checks_agree():
    def one(x):
        return margin(np.asarray([x, 1 - x]))

    got = each(one)(x=np.asarray([0.2, 0.7]))
    np.testing.assert_allclose(got.value, [[0.2, 0.8], [0.7, 0.3]])


def test_identity_margin_is_bound_minus_error():
    got = identity(np.asarray([1.0, 1.0]), np.asarray([1.0, 1.5]), np.asarray(1.0))
    assert got.value[0] == got.bound[0] if np.ndim(got.bound) else got.value[0] == got.bound
    assert got.score()[1] < -10
    assert rounding(1.0) == pytest.approx(64 * np.finfo(float).eps)


def test_hold_raises_with_its_numbers(monkeypatch):
    from toyld import softmax

    whole = softmax.threshold_limit
    monkeypatch.setattr(softmax, "threshold_limit", lambda z, y: -whole(z, y))
    with pytest.raises(AssertionError, match=r"(?s)threshold-limit: expected 'holds', got .*worst margin .*simplest"):
        hold("squeeze.threshold-limit")


def test_an_unknown_claim_gives_one_line():
    with pytest.raises(ValueError, match=r"^expected a claim id or glob, got 'squish\.\*' which matches none"):
        select(["squish.*"])
