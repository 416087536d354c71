"""What DPO says of a population: published values, exact enumeration."""

from itertools import product

import numpy as np

from toyld.claims import population
from toyld.claims.base import registry


def test_the_published_misspecified_dpo():
    """φ = (0, 1, 3), r = (1, 0, 2): equal counts θ = .378, E r = 1.30; counts (20, 1, 1) θ = −.40, E r = .81 < 1."""
    phi, r = np.array([[0.0, 1.0, 3.0]] * 2), np.array([[1.0, 0.0, 2.0]] * 2)
    theta, _ = population.fitted(phi, r, np.array([[1.0, 1.0, 1.0], [20.0, 1.0, 1.0]]))
    np.testing.assert_allclose(theta, [0.378, -0.401], atol=5e-4)
    p = np.exp(theta[:, None] * phi)
    p /= p.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose((p * r).sum(axis=-1), [1.296, 0.8125], atol=5e-4)
    assert p[1, 0] > p[1, 2]
    assert population._reward_gain((0, 1, 3), (1, 0, 2), (1, 1, 1)) > 0
    assert population._reward_gain((0, 1, 3), (1, 0, 2), (20, 1, 1)) < 0


def test_equal_counts_do_not_save_a_misspecified_dpo():
    assert population._reward_gain((0, 1, 4), (0, 4, 1), (1, 1, 1)) < 0


def test_no_smaller_misspecified_case():
    """Whole numbers, φ and r starting at 0: none with entries ≤ 1, none with equal counts, none with a smaller sum."""
    case = registry["pair.exact-preferences-help"].counterexample.case
    least = sum(map(sum, case.values()))
    found = []
    for phi, r, counts in product(product(range(3), repeat=3), product(range(3), repeat=3), product((1, 2), repeat=3)):
        small = sum(phi) + sum(r) + sum(counts)
        if small <= least and min(phi) == min(r) == 0 and len(set(phi)) > 1:
            gain = population._reward_gain(phi, r, counts)
            if gain < 0:
                found.append((small, max(*phi, *r), counts))
    assert found
    assert min(found)[0] == least
    assert all(top == 2 and set(counts) == {1, 2} for _, top, counts in found)


def test_grpo_weights_of_a_quarter_right():
    margin = registry["pair.group-weights"].check(right=np.array([2]), wrong=np.array([6]))
    assert (margin.value > 0.0).all()
    weight = np.array([1.0] * 2 + [0.0] * 6)
    weight = (weight - weight.mean()) / weight.std()
    np.testing.assert_allclose(weight[[0, -1]], [3**0.5, -(3**-0.5)], rtol=1e-14)
