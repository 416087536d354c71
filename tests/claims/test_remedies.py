"""Remedies against oracles: mpmath, and a hunt where a theorem is tight."""

import mpmath
import numpy as np
import pytest

from toyld.claims import remedies
from toyld.claims.base import Premises, registry, try_to_break
from toyld.claims.spaces import real


def climbed(q, radius):
    w = q * np.exp(-radius * q)
    return w / w.sum(axis=-1, keepdims=True)


def top_sums(q):
    return np.cumsum(-np.sort(-q, axis=-1), axis=-1)


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_a_climb_of_radius_four_is_majorised(size):
    """The lemma behind `sam.label-falls-less`: the k largest of q̃ ∝ q e^{−Rq} hold no more than the k largest of q."""
    rng = np.random.default_rng(size)
    q = rng.dirichlet(np.full(size, 2.0), size=20_000)
    for radius in (0.5, 2.0, 4.0):
        assert (top_sums(climbed(q, radius)) <= top_sums(q) + 1e-14).all()


def test_beyond_radius_four_it_is_not():
    q = np.array([0.55, 0.45])
    assert climbed(q, 4.1).max() > q.max()
    assert climbed(q, 4.0).max() < q.max()


def test_no_counterexample_where_the_sam_theorem_is_tight():
    """Rare y, large steps, R just below 4: where the theorem would break first, and where it does break above 4."""
    near = {**remedies.FAR, "rho": real(3.0, 5.6)}
    check = registry["sam.label-falls-less"].check
    inside = Premises(near, sizes=(3, 4), where=remedies.within(4.0))
    outside = Premises(near, sizes=(3, 4), where=lambda **case: ~remedies.within(4.0)(**case))
    assert try_to_break(check, inside, examples=20_000, seed=0).worst > -1.0
    assert try_to_break(check, outside, examples=20_000, seed=0).worst < -10.0


def test_gate_leaves_a_floor_of_squeezing():
    """q = (.7, .2, .1), s = 1: α_{y*} of a vanishing y− under the gate, against 50 digits; 1 only as ατ → ∞."""
    q, p_y = ("0.7", "0.2", "0.1"), 1e-13
    z = np.log([[*((1.0 - p_y) * np.array([float(x) for x in q])), p_y]])
    found = []
    for alpha_tau in (0.0, 1.0, 5.0, 20.0):
        with mpmath.workdps(50):
            small = 1 / (1 + mpmath.exp(alpha_tau))
            floor = -mpmath.log(
                mpmath.fsum(mpmath.mpf(x) * mpmath.exp(-small * (mpmath.mpf(q[0]) - mpmath.mpf(x))) for x in q)
            )
        s = remedies.gate(z, np.array([3]), np.array([10.0 * alpha_tau]), np.array([0.1]))
        found.append(float(remedies.sm.log_alpha(z, np.array([3]), s=s)[0, 0]))
        assert found[-1] == pytest.approx(float(floor), rel=1e-9)
    assert found[0] > 0.07
    assert found == sorted(found, reverse=True)
    assert 0.0 < found[-1] < 1e-9
