"""The test of the tests: plant a bug in the theory's code, and the claims that it breaks must turn red.

Each bug is a one-line mistake that somebody could really make. A bug that stays green is a hole in the suite.
"""

import numpy as np
import pytest

from toyld import claims
from toyld import softmax as sm

WHOLE = {name: getattr(sm, name) for name in (*sm.__all__, "_cgf", "_parts")}


def sign_of_the_update_flipped(patch):
    patch.setattr(sm, "step", lambda z, g, /, *, s: z + sm._col(s) * g)


def sign_of_the_residual_flipped(patch):
    patch.setattr(sm, "residual", lambda z, y, /, *, c=1.0: -WHOLE["residual"](z, y, c=c))


def residual_without_its_softmax(patch):
    patch.setattr(sm, "residual", lambda z, y, /, *, c=1.0: -sm._col(c) * WHOLE["one_hot"](z, y).astype(float))


def jacobian_without_its_projection(patch):
    """A = I instead of I − 1πᵀ."""
    patch.setattr(sm, "jacobian", lambda z, /: np.broadcast_to(np.eye(z.shape[-1]), (*z.shape, z.shape[-1])).copy())


def label_off_by_one(patch):
    patch.setattr(sm, "residual", lambda z, y, /, *, c=1.0: WHOLE["residual"](z, (y + 1) % z.shape[-1], c=c))


def coefficient_ignored(patch):
    patch.setattr(sm, "residual", lambda z, y, /, *, c=1.0: WHOLE["residual"](z, y, c=np.sign(c)))


def threshold_forgets_the_penalised_class(patch):
    patch.setattr(
        sm, "threshold", lambda z, y, /, *, s: WHOLE["_cgf"](np, sm.log_softmax(z), sm._col(s) * sm.softmax(z)) / s
    )


def threshold_not_divided_by_the_step(patch):
    patch.setattr(sm, "threshold", lambda z, y, /, *, s: s * WHOLE["threshold"](z, y, s=s))


def threshold_limit_without_the_label(patch):
    patch.setattr(sm, "threshold_limit", lambda z, y, /: (sm.softmax(z) ** 2).sum(-1))


def runner_up_may_be_the_label_itself(patch):
    patch.setattr(sm, "runner_up", lambda z, y, /: np.argmax(z, axis=-1))


def entropy_of_the_wrong_sign(patch):
    patch.setattr(sm, "entropy", lambda z, /: -WHOLE["entropy"](z))


def entropy_rate_not_centred(patch):
    patch.setattr(sm, "entropy_rate", lambda z, v, /: -(sm.softmax(z) * sm.log_softmax(z) * v).sum(-1))


def valley_measured_against_log_v(patch):
    patch.setattr(
        sm,
        "valley_depth",
        lambda z, y, /: WHOLE["valley_depth"](z, y) + WHOLE["entropy"](z) - 0.5 * np.log(z.shape[-1]),
    )


def pair_terms_do_not_cancel(patch):
    """One π-term too many, as if the two labels had contexts of their own."""
    whole = WHOLE["pair_residual"]
    patch.setattr(
        sm,
        "pair_residual",
        lambda z, a, b, /, *, c_plus=1.0, c_minus=-1.0: whole(z, a, b, c_plus=c_plus, c_minus=c_minus) + sm.softmax(z),
    )


def safe_step_without_the_runner_up(patch):
    patch.setattr(sm, "safe_step", lambda z, y, /: np.pi / np.exp(sm.log_not(z, y)))


def taylor_radius_twice_too_large(patch):
    patch.setattr(sm, "taylor_radius", lambda v, /: 2.0 * WHOLE["taylor_radius"](v))


def squeezing_ratio_upside_down(patch):
    patch.setattr(sm, "squeezing_ratio", lambda z, y, /, *, s: 1.0 / WHOLE["squeezing_ratio"](z, y, s=s))


def sam_descends_instead_of_climbing(patch):
    patch.setattr(
        sm, "sam_step", lambda z, y, /, *, s, rho, c=-1.0: WHOLE["sam_step"](z, y, s=s, rho=-np.asarray(rho), c=c)
    )


def water_level_at_zero(patch):
    """The limit law without its λ."""

    def law(mu, reward, /, *, baseline):
        w = np.maximum(mu * (reward - sm._col(baseline)), 0.0)
        return w / w.sum(-1, keepdims=True)

    patch.setattr(sm, "water_filling", law)


def alphas_by_plain_subtraction(patch):
    """No care for cancellation: y* no longer always rises in floating point, nor y falls."""

    def log_alpha(z, y, /, *, s, c=-1.0):
        d = sm.displacement(z, y, s=s, c=c)
        return d - np.log(np.sum(sm.softmax(z) * np.exp(d), axis=-1, keepdims=True))

    patch.setattr(sm, "log_alpha", log_alpha)


RED = {
    sign_of_the_update_flipped: ["squeeze.lemma-1", "squeeze.threshold-law", "entropy.valley"],
    sign_of_the_residual_flipped: ["squeeze.penalised-falls", "squeeze.runner-up-rises", "squeeze.lemma-1"],
    residual_without_its_softmax: ["decomposition.residual-sums-to-zero", "entropy.first-order-law"],
    jacobian_without_its_projection: ["decomposition.projection", "decomposition.frobenius"],
    label_off_by_one: ["entropy.valley", "entropy.break-even", "sft.label-rises-runner-up-falls"],
    coefficient_ignored: ["squeeze.lemma-1", "policy.ppo-push", "unlearning.npo-push"],
    threshold_forgets_the_penalised_class: ["squeeze.threshold-law", "squeeze.threshold-ceiling"],
    threshold_not_divided_by_the_step: ["squeeze.threshold-law", "squeeze.threshold-limit"],
    threshold_limit_without_the_label: ["squeeze.threshold-limit", "entropy.break-even"],
    runner_up_may_be_the_label_itself: ["squeeze.runner-up-rises", "squeeze.runner-up-share"],
    entropy_of_the_wrong_sign: ["entropy.valley", "entropy.first-order-law"],
    entropy_rate_not_centred: ["entropy.covariance-law"],
    valley_measured_against_log_v: ["entropy.valley", "entropy.valley-is-absorbing"],
    pair_terms_do_not_cancel: ["pair.shared-context", "pair.rest-moves-together"],
    safe_step_without_the_runner_up: ["squeeze.threshold-limit", "step.safe-step"],
    taylor_radius_twice_too_large: ["step.taylor-radius", "sft.mirror"],
    squeezing_ratio_upside_down: ["trends.share-falls-with-label"],
    sam_descends_instead_of_climbing: ["sam.label-falls-less"],
    water_level_at_zero: ["policy.asymre-water-filling", "policy.asymre-support"],
    alphas_by_plain_subtraction: ["squeeze.penalised-falls", "squeeze.runner-up-rises"],
}


def red(claim):
    """Whether a claim comes out other than asserted. A crash does not count: the verdict itself must turn."""
    with np.errstate(all="ignore"):
        return not claims.evaluate(claim, examples=500).as_expected


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_the_claims_red(bug, monkeypatch):
    suspects = claims.select(RED[bug])
    assert not [c.id for c in suspects if red(c)], "green before the bug is planted"
    bug(monkeypatch)
    green = [c.id for c in suspects if not red(c)]
    assert not green, f"still green with the bug: {green}"


def test_there_are_at_least_ten_of_them():
    assert len(RED) >= 10
