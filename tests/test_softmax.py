"""The closed forms of one softmax against mpmath, autograd, published numbers and three array libraries."""

import doctest
import importlib
import pkgutil

import array_api_strict
import mpmath
import numpy as np
import pytest
import torch

import toyld
from toyld import softmax as sm
from toyld.rollout import flow

mpmath.mp.dps = 400  # 1 − p is formed directly, also for p = 1e-300
RTOL = 1e-12  # the stated relative error in float64 (CONTRIBUTING.md, Style 5)

PEAKY_VALLEY = np.log([0.70, 0.20, 0.08, 0.02])
LOGITS = [
    np.array([2.0, 1.0, 0.0, -1.0, -2.0]),
    np.zeros(4),
    np.array([3.0, 3.0, -1.0]),  # tied tops
    np.array([1e4, -1e4, 0.0]),
    np.array([0.0, -690.0, -1.0, -2.5]),  # a probability of 1e-300
    np.array([40.0, 0.0, 1.0]),  # π within 1e-17 of one
    np.array([1e-9, 0.0]),
    np.random.default_rng(7).normal(0, 30, 12),
]
STEPS = [1e-9, 0.5, 3.0, 200.0]


def mp_softmax(z):
    w = [mpmath.exp(mpmath.mpf(float(a))) for a in z]
    total = mpmath.fsum(w)
    return [a / total for a in w]


def mp_direction(p, y, c):
    return [-c * (a - (1 if i == y else 0)) for i, a in enumerate(p)]


def mp_cgf(p, d, s):
    return mpmath.log(mpmath.fsum(a * mpmath.exp(s * b) for a, b in zip(p, d, strict=True)))


def assert_close(got, want, *, atol=0.0):
    want = np.array([float(w) for w in np.atleast_1d(np.array(want, dtype=object))])
    np.testing.assert_allclose(np.atleast_1d(got), want, rtol=RTOL, atol=atol)


@pytest.mark.parametrize("z", LOGITS, ids=str)
class TestAgainstMpmath:
    def test_log_softmax(self, z):
        assert_close(sm.log_softmax(z), [mpmath.log(p) for p in mp_softmax(z)])

    def test_softmax(self, z):
        assert_close(sm.softmax(z), mp_softmax(z))

    def test_log_not(self, z):
        for y in range(len(z)):
            p = mp_softmax(z)
            assert_close(sm.log_not(z, y), mpmath.log(mpmath.fsum(a for i, a in enumerate(p) if i != y)))

    def test_residual(self, z):
        for y in range(len(z)):
            p = mp_softmax(z)
            rest = mpmath.fsum(a for i, a in enumerate(p) if i != y)
            assert_close(sm.residual(z, y), [-rest if i == y else a for i, a in enumerate(p)])

    def test_entropy(self, z):
        assert_close(sm.entropy(z), -mpmath.fsum(p * mpmath.log(p) for p in mp_softmax(z)))

    def test_safe_step(self, z):
        for y in range(len(z)):
            p = mp_softmax(z)
            star = max(a for i, a in enumerate(p) if i != y)
            if star < 1e-300:
                continue  # π_y rounds to one and the radius to infinity
            assert_close(sm.safe_step(z, y), mpmath.pi / (1 + star - p[y]))

    @pytest.mark.parametrize("s", STEPS)
    @pytest.mark.parametrize("c", [-1.0, 1.0, 0.3])
    def test_log_alpha(self, z, s, c):
        """The label itself to 1e-12 relative; a class that may sit at the threshold to 1e-12 of the step."""
        for y in range(len(z)):
            p = mp_softmax(z)
            d = mp_direction(p, y, c)
            k = mp_cgf(p, d, mpmath.mpf(s))
            want = [mpmath.mpf(s) * a - k for a in d]
            got = sm.log_alpha(z, y, s=s, c=c)
            assert_close(got[y], want[y], atol=5e-324)
            assert_close(got, want, atol=RTOL * s)
            star = int(sm.runner_up(z, y))
            if abs(want[star]) > 1e-300:
                assert np.sign(got[star]) == mpmath.sign(want[star])

    @pytest.mark.parametrize("s", STEPS)
    def test_threshold(self, z, s):
        for y in range(len(z)):
            p = mp_softmax(z)
            want = mp_cgf(p, mp_direction(p, y, -1), mpmath.mpf(s)) / s
            assert_close(sm.threshold(z, y, s=s), want, atol=RTOL)

    def test_threshold_limit(self, z):
        for y in range(len(z)):
            p = mp_softmax(z)
            assert_close(sm.threshold_limit(z, y), mpmath.fsum(a * a for a in p) - p[y], atol=1e-15)

    def test_valley_depth(self, z):
        for y in range(len(z)):
            p = mp_softmax(z)
            want = -mpmath.log(p[y]) + mpmath.fsum(a * mpmath.log(a) for a in p)
            assert_close(sm.valley_depth(z, y), want, atol=1e-15)


@pytest.mark.parametrize("p_y", [1e-300, 1e-12, 0.01, 0.4])
@pytest.mark.parametrize("s", [1e-6, 0.5, 20.0])
def test_squeezing_ratio_down_to_1e_300(p_y, s):
    q = np.array([0.7, 0.2, 0.1])
    z = np.concatenate([np.log(q) + np.log1p(-p_y), [np.log(p_y)]])
    p = mp_softmax(z)
    d = mp_direction(p, 3, -1)
    after = [a * mpmath.exp(mpmath.mpf(s) * b) for a, b in zip(p, d, strict=True)]
    after = [a / mpmath.fsum(after) for a in after]
    assert_close(sm.squeezing_ratio(z, 3, s=s), (after[0] - p[0]) / (p[3] - after[3]))


@pytest.mark.parametrize("gap", [1e-10, 1e-5, 0.0])
def test_near_ties_keep_their_digits(gap):
    z = np.array([gap, 0.0, -690.0])
    p = mp_softmax(z)
    d = mp_direction(p, 2, -1)
    after = [a * mpmath.exp(mpmath.mpf(0.5) * b) for a, b in zip(p, d, strict=True)]
    after = [a / mpmath.fsum(after) for a in after]
    assert_close(sm.squeezing_ratio(z, 2, s=0.5), (after[0] - p[0]) / (p[2] - after[2]))


# Golden values, to four decimals.
GOLDEN = [
    (PEAKY_VALLEY, 3, 1.0, -1.0, (0.8064, 0.1397, 0.0496, 0.0043)),
    (PEAKY_VALLEY, 3, 3.0, -1.0, (0.9244, 0.0589, 0.0164, 0.0002)),
    (LOGITS[0], 0, 0.5, -1.0, (0.5720, 0.2837, 0.0969, 0.0347, 0.0126)),
    (LOGITS[0], 3, 0.5, -1.0, (0.6948, 0.2090, 0.0714, 0.0155, 0.0093)),
]
ENTROPY = [(0, -1.0, 0.0751), (3, -1.0, -0.1231), (0, 1.0, -0.0883), (3, 1.0, 0.1363)]


@pytest.mark.parametrize(("z", "y", "s", "c", "want"), GOLDEN)
def test_golden_probabilities_to_four_decimals(z, y, s, c, want):
    np.testing.assert_array_equal(sm.softmax(sm.step(z, sm.residual(z, y, c=c), s=s)).round(4), want)


@pytest.mark.parametrize(("y", "c", "want"), ENTROPY)
def test_golden_entropy_changes_to_four_decimals(y, c, want):
    z = LOGITS[0]
    change = sm.entropy(sm.step(z, sm.residual(z, y, c=c), s=0.5)) - sm.entropy(z)
    assert round(float(change), 4) == want


def test_golden_squeezing_ratios():
    q = np.array([0.7, 0.2, 0.1])
    for p_y, want, digits in ((0.001, 98.4, 1), (0.01, 10.4, 1), (0.05, 2.63, 2), (0.2, 1.16, 2), (0.4, 0.92, 2)):
        z = np.log([*((1 - p_y) * q), p_y])
        assert round(float(sm.squeezing_ratio(z, 3, s=0.5)), digits) == want


def test_residual_is_the_gradient_of_cross_entropy():
    z = torch.tensor(np.random.default_rng(0).normal(0, 3, (5, 7)), requires_grad=True)
    y = torch.tensor([0, 6, 3, 3, 1])
    torch.nn.functional.cross_entropy(z, y, reduction="sum").backward()
    torch.testing.assert_close(sm.residual(z.detach(), y), z.grad, rtol=RTOL, atol=1e-15)


def test_jacobian_is_autograds():
    z = torch.tensor(LOGITS[0])
    want = torch.autograd.functional.jacobian(lambda t: torch.log_softmax(t, -1), z)
    torch.testing.assert_close(sm.jacobian(z), want, rtol=RTOL, atol=1e-15)


@pytest.mark.parametrize(
    "function",
    [
        lambda z: sm.log_softmax(z).sum() * 0.5 + sm.log_softmax(z)[..., 0].sum(),
        lambda z: sm.log_not(z, 1).sum(),
        lambda z: sm.log_alpha(z, torch.tensor([2, 0]), s=0.7)[..., 1].sum(),
        lambda z: sm.threshold(z, 0, s=5.0).sum(),
        lambda z: sm.entropy(z).sum(),
        lambda z: sm.squeezing_ratio(z, torch.tensor([2, 0]), s=0.5).sum(),
    ],
    ids=["log_softmax", "log_not", "log_alpha", "threshold", "entropy", "squeezing_ratio"],
)
def test_torch_gradients_match_finite_differences_also_at_ties(function):
    z = torch.tensor([[0.3, -1.0, 0.2, 2.0], [1.0, 1.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    # At the second row's tie only the choice of y* is not smooth: there the label is one of the tied classes.
    assert torch.autograd.gradcheck(function, (z,), eps=1e-6, atol=1e-7)


CALLS = {
    "log_softmax": lambda z, y: sm.log_softmax(z),
    "softmax": lambda z, y: sm.softmax(z),
    "log_not": sm.log_not,
    "jacobian": lambda z, y: sm.jacobian(z),
    "residual": sm.residual,
    "pair_residual": lambda z, y: sm.pair_residual(z, y, 0),
    "step": lambda z, y: sm.step(z, sm.residual(z, y), s=0.5),
    "displacement": lambda z, y: sm.displacement(z, y, s=0.5),
    "runner_up": sm.runner_up,
    "log_alpha": lambda z, y: sm.log_alpha(z, y, s=0.5),
    "alpha": lambda z, y: sm.alpha(z, y, s=0.5),
    "threshold": lambda z, y: sm.threshold(z, y, s=0.5),
    "threshold_limit": sm.threshold_limit,
    "winners": lambda z, y: sm.winners(z, y, s=0.5),
    "break_even": lambda z, y: sm.break_even(z, sm.softmax(z)),
    "entropy": lambda z, y: sm.entropy(z),
    "entropy_rate": lambda z, y: sm.entropy_rate(z, sm.residual(z, y)),
    "valley_depth": sm.valley_depth,
    "squeezing_ratio": lambda z, y: sm.squeezing_ratio(z, y, s=0.5),
    "taylor_radius": lambda z, y: sm.taylor_radius(z),
    "safe_step": sm.safe_step,
    "sam_step": lambda z, y: sm.sam_step(z, y, s=0.5, rho=0.05),
    "one_hot": sm.one_hot,
    "water_filling": lambda z, y: sm.water_filling(sm.softmax(z), z, baseline=-9.0),
}


def test_every_array_function_is_tried_on_every_library():
    assert set(CALLS) == set(sm.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_numpy_torch_and_strict_agree_and_keep_their_type(name):
    call = CALLS[name]
    z = np.random.default_rng(3).normal(0, 2, (2, 3, 5))
    y = np.array([[0, 1, 2], [3, 4, 0]])
    z.flags.writeable = False
    want = call(z, y)
    assert isinstance(want, np.ndarray)
    t = torch.tensor(z, requires_grad=True)
    got = call(t, torch.tensor(y))
    assert isinstance(got, torch.Tensor)
    assert not got.dtype.is_floating_point or got.dtype is torch.float64
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=RTOL, atol=1e-15)
    device = array_api_strict.Device("device1")  # not numpy's: a stray np.… fails here
    strict = call(array_api_strict.asarray(z, device=device), array_api_strict.asarray(y, device=device))
    assert strict.device == device
    np.testing.assert_allclose(
        np.asarray(strict.to_device(array_api_strict.Device("CPU_DEVICE"))), want, rtol=RTOL, atol=1e-15
    )
    one = call(z[1, 2], 0)
    np.testing.assert_allclose(np.asarray(one), want[1, 2], rtol=RTOL, atol=1e-15)


def test_float32_stays_float32():
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert sm.log_alpha(z, 1, s=0.5).dtype is torch.float32


def test_lives_under_vmap_and_jacrev():
    z = torch.tensor(LOGITS[0]).repeat(3, 1)
    torch.testing.assert_close(
        torch.func.vmap(lambda row: sm.threshold(row, 1, s=2.0))(z), sm.threshold(z, torch.tensor([1, 1, 1]), s=2.0)
    )
    torch.testing.assert_close(torch.func.jacrev(sm.log_softmax)(z[0]), sm.jacobian(z[0]))


@pytest.mark.parametrize("size", [50_257, 151_936])
def test_large_vocabularies(size):
    z = np.random.default_rng(0).normal(0, 3, (2, size))
    y = np.array([1, size - 1])
    change = sm.log_alpha(z, y, s=1.0)
    assert (change[[0, 1], y] < 0).all()
    assert (change[[0, 1], sm.runner_up(z, y)] > 0).all()
    after = sm.softmax(z) * np.exp(change)
    np.testing.assert_allclose(after.sum(axis=-1), 1.0, rtol=1e-12)


def test_flow_is_the_limit_of_small_steps_and_conserves_the_sum_of_logits():
    z = LOGITS[0]
    end = flow(z, 3, times=[1.0], c=-1.0)[0]
    euler = z
    for _ in range(4000):
        euler = sm.step(euler, sm.residual(euler, 3, c=-1.0), s=1.0 / 4000)
    np.testing.assert_allclose(end, euler, atol=1e-3)
    assert end.sum() == pytest.approx(z.sum(), abs=1e-8)


def test_water_filling_is_where_the_gradient_flow_ends():
    """AsymRE, Thm 4.2: follow dz/dt = w − π Σw from a random start."""
    rng = np.random.default_rng(5)
    mu, reward = rng.dirichlet(np.ones(6)), rng.normal(size=6)
    for gap in (2.0, 0.5, 0.1):
        baseline = mu @ reward - gap
        w = mu * (reward - baseline)
        z = rng.normal(size=6)
        for _ in range(20_000):
            z = z + 0.2 * (w - np.exp(sm.log_softmax(z)) * w.sum()) / gap
        want = sm.water_filling(mu, reward, baseline=baseline)
        assert want.sum() == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(sm.softmax(z), want, atol=2e-3)


def test_sam_step_with_tiny_radius_is_a_plain_step():
    z = LOGITS[0]
    np.testing.assert_allclose(
        sm.sam_step(z, 3, s=0.5, rho=1e-12), sm.step(z, sm.residual(z, 3, c=-1.0), s=0.5), atol=1e-11
    )


def test_public_names_are_listed_and_documented():
    public = {
        name
        for name, value in vars(sm).items()
        if callable(value) and getattr(value, "__module__", "") == sm.__name__ and not name.startswith("_")
    }
    assert public == set(sm.__all__)
    for name in sm.__all__:
        assert getattr(sm, name).__doc__, name


MODULES = [m.name for m in pkgutil.walk_packages(toyld.__path__, "toyld.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert failed == 0
