"""toyld.contexts.measure: every variable against mpmath and against plain formulas, also next to certainty."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from toyld.contexts import Responses
from toyld.contexts.measure import VARIABLES, gathered, measure, reach, statistics, token_log_probs

EPS = float(np.finfo(np.float64).eps)
ROWS = {
    "spread": [0.3, -1.2, 2.0, 0.5, -4.0],
    "certain": [40.0, 0.0, -3.0, 1.0, -8.0],
    "very certain": [340.0, 0.0, -3.0, 1.0, -8.0],
    "nearly certain, near-ties below": [12.0, -24.0, -24.0 + 1e-9, -25.0, -300.0],
    "tie": [1.5, 1.5, -2.0, 0.0, 1.0],
    "all tied": [2.0] * 5,
    "far apart": [-900.0, 900.0, 0.0, 1.0, -1.0],
    "large offset": [1e6, 1e6 - 1.0, 1e6 - 2.0, 1e6 - 40.0, 1e6 - 3.0],
}


def exact(z: list[float], y: int) -> dict[str, mpmath.mpf]:
    """The variables of one token, in 900 digits."""
    with mpmath.workdps(900):
        mass = [mpmath.exp(mpmath.mpf(v) - mpmath.mpf(max(z))) for v in z]
        pi = [m / mpmath.fsum(mass) for m in mass]
        return {
            "logp": mpmath.log(pi[y]),
            "argmax_logp": mpmath.log(max(pi)),
            "entropy": -mpmath.fsum(p * mpmath.log(p) for p in pi),
            "top1": max(pi),
            "pi_norm2": mpmath.fsum(p * p for p in pi),
            "residual_norm": mpmath.sqrt(mpmath.fsum((p - (i == y)) ** 2 for i, p in enumerate(pi))),
        }


def one_token(z: list[float], y: int, convert=np.asarray) -> dict[str, float]:
    one = Responses(*(convert(np.array([[[v]]])) for v in (0, y, True)))
    return {name: float(v[0, 0, 0]) for name, v in measure(convert(np.array([[z]])), {"a": one}, ["a"]).items()}


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("label", range(5))
@pytest.mark.parametrize("row", ROWS)
def test_every_variable_of_one_token_in_many_digits(row, label, library):
    """Relative 1e-14 however near certainty is; but a label's log-probability inherits the rounding of z_y − max z."""
    found = one_token(ROWS[row], label, np.asarray if library == "numpy" else torch.as_tensor)
    for name, value in exact(ROWS[row], label).items():
        size = max(abs(v) for v in ROWS[row]) if name == "logp" and label != int(np.argmax(ROWS[row])) else 0.0
        assert found[name] == pytest.approx(float(value), rel=1e-14, abs=4 * EPS * size), name


def test_the_smallest_numbers_are_not_rounded_away():
    """What 1 − π or log π would print as 0."""
    found = one_token([80.0, 0.0, 0.0, -1.0, -2.0], 0)
    assert -1e-30 < found["logp"] < 0.0
    assert 0.0 < found["residual_norm"] < 1e-30
    assert 0.0 < found["entropy"] < 1e-30
    assert found["logp"] == found["argmax_logp"]


def random_case(seed: int = 0, *, worlds: int = 3, contexts: int = 7, classes: int = 5) -> tuple:
    rng = np.random.default_rng(seed)
    z = 3.0 * rng.normal(size=(worlds, contexts, classes))
    mask = np.arange(4) < rng.integers(1, 5, (worlds, 6, 1))
    return z, Responses(rng.integers(contexts, size=mask.shape), rng.integers(classes, size=mask.shape), mask)


def naive(z: np.ndarray, r: Responses) -> dict[str, np.ndarray]:
    """Token by token, from the definitions."""
    out = {name: np.zeros(r.mask.shape[:2]) for name in VARIABLES}
    for b, p in np.ndindex(*r.mask.shape[:2]):
        each = []
        for c, y in zip(r.context[b, p][r.mask[b, p]], r.token[b, p][r.mask[b, p]], strict=True):
            pi = np.exp(z[b, c]) / np.exp(z[b, c]).sum()
            each.append(
                [np.log(pi[y]), np.log(pi.max()), -(pi * np.log(pi)).sum(), pi.max(), (pi**2).sum(),
                 np.linalg.norm(pi - np.eye(len(pi))[y])]
            )  # fmt: skip
        total = np.sum(each, axis=0)
        for k, name in enumerate(VARIABLES):
            out[name][b, p] = total[k] if name in ("logp", "argmax_logp") else total[k] / len(each)
    return out


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_responses_are_summed_and_averaged_over_their_own_tokens(library):
    z, r = random_case()
    convert = np.asarray if library == "numpy" else torch.as_tensor
    again = Responses(*(convert(a) for a in r))
    found = measure(convert(z), {"a": again, "b": again}, ["b", "a"])
    for name, expected in naive(z, r).items():
        assert tuple(found[name].shape) == (3, 2, 6)
        assert_allclose(np.asarray(found[name])[:, 0], expected, rtol=1e-12)
        assert_array_equal(np.asarray(found[name])[:, 1], np.asarray(found[name])[:, 0])


def test_log_probabilities_of_tokens_and_what_is_behind_the_end():
    z, r = random_case(1)
    found = token_log_probs(z, r)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    for b, p, t in np.ndindex(*r.mask.shape):
        expected = logp[b, r.context[b, p, t], r.token[b, p, t]] if r.mask[b, p, t] else 0.0
        assert found[b, p, t] == pytest.approx(expected, rel=1e-12)
    assert_array_equal(found[~r.mask], 0.0)
    # What stands behind the end of a response is never looked at, not even where it is no context at all.
    r.context[~r.mask], r.token[~r.mask] = 99, 0
    assert_array_equal(token_log_probs(z, r), found)
    assert_allclose(measure(z, {"a": r}, ["a"])["logp"][:, 0], found.sum(-1), rtol=1e-14)
    assert reach(r) == int(r.context[r.mask].max()) + 1


def test_rows_are_independent_of_the_blocks_they_are_read_in(monkeypatch):
    import toyld.contexts.measure as module

    z, _ = random_case(2, contexts=40)
    whole = statistics(z)
    monkeypatch.setattr(module, "_CACHED", 7)  # one row at a time
    for a, b in zip(whole, statistics(z), strict=True):
        assert_array_equal(a, b)
    assert [s.stop - s.start for s in module.blocks(np.zeros((5, 3)))] == [2, 2, 1]


def test_gathering_picks_every_worlds_own_context():
    z, r = random_case(3)
    found = gathered(z, r.context)
    for b, p, t in np.ndindex(*r.mask.shape):
        assert_array_equal(found[b, p, t], z[b, r.context[b, p, t]])
    assert_array_equal(gathered(z[..., 0], r.context), found[..., 0])
