"""Preference pairs against oracles: mpmath, automatic differentiation, exact enumeration, golden values."""

from fractions import Fraction as F

import mpmath
import numpy as np
import pytest
from flint import arb

from toyld import claims
from toyld.claims import exact, pairs

TWO_LABELS = {
    "plus": lambda p, **_: range(len(p)),
    "minus": lambda p, plus, **_: [i for i in range(len(p)) if i != plus],
}


def test_shared_context_factors_agree_with_mpmath():
    p, s = ("0.7", "0.2", "0.08", "0.02"), mpmath.mpf("0.3")
    with mpmath.workdps(50):
        w = [mpmath.mpf(x) * mpmath.exp(d) for x, d in zip(p, (0, s, 0, -s), strict=True)]
        expected = [float(mpmath.log(a / mpmath.fsum(w) / mpmath.mpf(x))) for a, x in zip(w, p, strict=True)]
    found = pairs.moved(np.log([[float(x) for x in p]]), np.array([1]), np.array([3]), np.array([0.3]))[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_the_rest_gains_most_when_the_two_labels_meet():
    """The bound 1/(1 − (√p_− − √p_+)²) is met at e^{2s} = p_−/p_+, here s = log 2."""
    p = (F(1, 10), F(4, 10), F(1, 2))
    third = exact.tilt(exact.balls(p), [arb(2).log(), -arb(2).log(), arb(0)])[2] / exact.ball(p[2])
    least = 1 - (exact.ball(p[1]).sqrt() - exact.ball(p[0]).sqrt()) ** 2
    assert (third * least - 1).contains(0)
    assert float((third * least - 1).rad()) < 1e-40


@pytest.mark.parametrize(
    ("k", "label", "sign"), [(F(21, 10), 1, -1), (F(2), 1, 1), (F(49, 100), 2, 1), (F(1, 2), 2, -1)]
)
def test_the_range_of_k_is_sharp(k, label, sign):
    """Just beyond ½ ≤ k ≤ 2 a peaked p breaks the guarantee for y+ (class 1) or y− (class 2); at its ends it holds."""
    p = (F(998, 1000), F(1, 1000), F(1, 1000))
    assert sign * pairs.pair_alphas(p, 1, 2, F(1, 100), k)[label] > 0


def test_smallest_case_where_dpop_raises_the_rejected():
    claim = claims.every()["gate.contrast-lowers-loser"]
    found = exact.smallest(claim.counterexample.margin, y=None, classes=(2, 3), k=[F(1, 51)], **TWO_LABELS)
    assert found == claim.counterexample.case


def test_smallest_case_where_a_dpo_pair_does_not_squeeze():
    claim = claims.every()["pair.squeezing-lowers-winner"]

    def valley(p, plus, minus, s):
        return bool(exact.ball(p[minus]).log() < -exact.entropy(p))

    def last_two(p, plus, minus, s):
        rest = [i for i in range(len(p)) if i not in (plus, minus)]
        a = pairs.pair_alphas(p, plus, minus, s)
        return (-a[plus]).max(a[max(rest, key=lambda i: p[i])])

    found = exact.smallest(last_two, where=valley, y=None, classes=(3,), **TWO_LABELS)
    assert found["p"] == claim.counterexample.case["p"]
    assert valley(**claim.counterexample.case)


def test_fixed_features_give_the_rate_of_razins_proposition():
    """App. F: with W alone training, d log p_+/dt = −ℓ'‖h‖²(1 − p_+ + p_−) > 0."""
    rng = np.random.default_rng(0)
    w, h = rng.normal(size=(50, 6, 3)), rng.normal(size=(50, 3))
    import torch

    fixed = torch.from_numpy(h)
    found = pairs.rates(lambda w: pairs._logp(w, fixed), lambda w: pairs._loss(w, fixed), w)[:, 0]
    z = np.einsum("nvd,nd->nv", w, h)
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    law = (h * h).sum(axis=-1) * (1.0 - p[:, 0] + p[:, 1]) / (1.0 + np.exp(z[:, 0] - z[:, 1]))
    np.testing.assert_allclose(found, law, rtol=1e-12)
    assert (found > 0.0).all()


def test_in_the_argmax_counterexample_the_winner_really_falls():
    case = claims.every()["pair.displaced-to-argmax"].counterexample.case
    w, h, p = pairs._exact(**case)
    pull = [pairs._dot(row, w[0]) - pairs._dot(row, w[1]) for row in w]
    assert pull[0] - pairs._dot(p, pull) + pairs._dot(h, h) * (1 - p[0] + p[1]) < 0
    assert p[3] > p[2]
    assert pull[3] < pull[2]


def test_worked_example_of_entanglement():
    """(‖g_+‖², ‖g_−‖², ⟨g_+, g_−⟩) ∝ (1, 4, 2): both fall, y− twice as fast."""
    case = claims.every()["pair.dpo-raises-winner"].counterexample.floats() | {"s": np.array([1e-6])}
    change, first, _ = pairs._two_contexts(**case)
    np.testing.assert_allclose(first[0] / 5e-7, [-1.0, -2.0], rtol=1e-12)
    np.testing.assert_allclose(change[0], first[0], rtol=1e-5)


def test_a_large_step_can_move_both_labels_the_wrong_way():
    """What `pair.never-both-wrong` excludes to first order: W = (1, −1, 0), h = 2 and ½, label 0 twice, s = 32."""
    case = {"head": (1, -1, 0), "words": (0, 0), "s": F(32)}
    up, first = pairs._exact_moves(up=(2,), down=(F(1, 2),), **case)
    (_, x, p), (_, v, q) = pairs._exact(case["head"], (2,)), pairs._exact(case["head"], (F(1, 2),))
    r, t = ([(i == 0) - a for i, a in enumerate(b)] for b in (p, q))
    d = [32 * (a * pairs._dot(x, v) - b * pairs._dot(v, v)) for a, b in zip(r, t, strict=True)]
    down = (exact.tilt(q, d)[0] / q[0]).log()
    assert first > 0
    assert up < 0 < down


def test_ches_coefficients_of_whole_responses():
    """d log π(y+)/dt = −ℓ'{Σ α⁺⟨h, h⟩ − Σ α⁻⟨h, h⟩} for two tokens against three, W alone training (Razin, Thm 6)."""
    import torch

    rng = np.random.default_rng(1)
    w, h, y = rng.normal(size=(20, 4, 3)), rng.normal(size=(20, 5, 3)), rng.integers(0, 4, size=(20, 5))
    inputs, index = torch.from_numpy(h), torch.from_numpy(y)[..., None]

    def logs(w):
        each = (inputs @ w.mT).log_softmax(-1).gather(-1, index)[..., 0]
        return torch.stack([each[:, :2].sum(-1), each[:, 2:].sum(-1)], dim=-1)

    def loss(w):
        plus, minus = logs(w).unbind(-1)
        return (minus - plus).exp().log1p()

    found = pairs.rates(logs, loss, w)[:, 0]
    z = h @ w.transpose(0, 2, 1)
    g = np.eye(4)[y] - np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    alpha = g @ g.transpose(0, 2, 1)
    sign = np.array([1.0, 1.0, -1.0, -1.0, -1.0])
    start = logs(torch.from_numpy(w)).numpy()
    law = (sign * alpha * (h @ h.transpose(0, 2, 1)))[:, :2].sum(axis=(1, 2)) / (
        1.0 + np.exp(start[:, 0] - start[:, 1])
    )
    np.testing.assert_allclose(found, law, rtol=0, atol=1e-12)
    assert np.abs(alpha).max() <= 2.0
