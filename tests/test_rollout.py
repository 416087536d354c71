"""`toyld.rollout` against repeated `softmax.step`, in every kernel, dtype and extreme."""

import inspect
import subprocess
import sys
import types
from pathlib import Path

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from toyld import rollout, softmax
from toyld.checked import BadInput

ROOT = Path(__file__).parents[1]
EPS = {np.dtype(t): float(np.finfo(t).eps) for t in (np.float32, np.float64)}
# (V, B) that reach every kernel: rows of any length, lanes alone and in several blocks, the last of them part full.
SHAPES = [(2, 1), (3, 1), (5, 3), (63, 2), (64, 1), (65, 40), (129, 40), (4097, 2), (3, 32), (2, 64), (50, 130)]


def draw(classes, rows, seed=0, *, dtype=np.float64, spread=3.0):
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(rows, classes)) * spread).astype(dtype)
    y = rng.integers(0, classes, rows)
    return z, y, (y + rng.integers(1, classes, rows)) % classes, rng.uniform(0.05, 0.5, rows), rng


def repeated(z, y, *, s, c, steps, other=None):
    """The definition, in float64; c is (c₊, c₋) when there is another label."""
    z = np.asarray(z, dtype=float)
    for _ in range(steps):
        if other is None:
            g = softmax.residual(z, y, c=c)
        else:
            g = softmax.pair_residual(z, y, other, c_plus=c[0], c_minus=c[1])
        z = softmax.step(z, g, s=s)
    return z


def bound(z, steps, push):
    """Relative error of log π: rounding of 8 ε of the logits' spread in every update, driven apart by e^{|sc|/2}."""
    z = np.asarray(z)
    spread = 1.0 + float(np.ptp(z, axis=-1).max()) + steps * push
    return 8.0 * (steps + 1) * EPS[z.dtype] * spread * np.exp(steps * push / 2.0)


def assert_same_beliefs(got, want, rtol):
    """log π of two arrays of logits agree relatively: near certainty in the digits of 1 − π."""
    a, b = softmax.log_softmax(np.asarray(got, dtype=float)), softmax.log_softmax(np.asarray(want, dtype=float))
    # Below 1e-300 log π of the certain class is a float64 that has lost its digits.
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("classes", "rows"), SHAPES)
@pytest.mark.parametrize("steps", [0, 1, 2, 12])
def test_run_is_the_repeated_step(classes, rows, steps, dtype):
    z, y, _, s, rng = draw(classes, rows, dtype=dtype)
    c = rng.choice([-1.0, 1.0, 0.3], rows)
    got = rollout.run(z, y, s=s, c=c, steps=steps)
    assert got.dtype == dtype
    assert_same_beliefs(got, repeated(z, y, s=s, c=c, steps=steps), bound(z, steps, 0.5))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("classes", "rows"), SHAPES)
@pytest.mark.parametrize("steps", [1, 9])
def test_run_pair_is_the_repeated_step(classes, rows, steps, dtype):
    z, y, other, s, rng = draw(classes, rows, dtype=dtype)
    c = rng.uniform(-1, 1, (2, rows))
    c[1, ::3] = -c[0, ::3]
    got = rollout.run_pair(z, y, other, s=s, c_plus=c[0], c_minus=c[1], steps=steps)
    assert_same_beliefs(got, repeated(z, y, s=s, c=c, steps=steps, other=other), bound(z, steps, 1.0))


@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("c", [-1.0, 1.0])
def test_a_hundred_moderate_updates_agree_with_mpmath_to_1e12(rows, c):
    z, y, *_ = draw(20, 1, seed=3)
    with mpmath.workdps(50):
        exact = [mpmath.mpf(a) for a in z[0]]
        for _ in range(100):
            w = [mpmath.exp(a) for a in exact]
            total = mpmath.fsum(w)
            exact = [a - c * (p / total - (i == y[0])) / 2 for i, (a, p) in enumerate(zip(exact, w, strict=True))]
        w = [mpmath.exp(a) for a in exact]
        want = [float(mpmath.log(p / mpmath.fsum(w))) for p in w]
    got = rollout.run(np.repeat(z, rows, axis=0), np.repeat(y, rows), s=0.5, c=c, steps=100)
    np.testing.assert_allclose(softmax.log_softmax(got)[-1], want, rtol=1e-12)  # the stated error of float64


logits = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 40), st.integers(2, 9)), elements=st.floats(-30, 30, allow_subnormal=False)
)


@settings(max_examples=60)
@given(z=logits, y=st.integers(0, 8), s=st.floats(1e-6, 1.0), c=st.floats(-1.0, 1.0), steps=st.integers(0, 12))
def test_any_run_is_the_repeated_step(z, y, s, c, steps):
    y = np.full(len(z), y % z.shape[1])
    assert_same_beliefs(
        rollout.run(z, y, s=s, c=c, steps=steps), repeated(z, y, s=s, c=c, steps=steps), bound(z, steps, s * abs(c))
    )


@settings(max_examples=40)
@given(z=logits, y=st.integers(0, 8), s=st.floats(1e-3, 1.0), c=st.floats(-1.0, 1.0), data=st.data())
def test_the_order_of_the_classes_does_not_matter(z, y, s, c, data):
    y %= z.shape[1]
    order = np.array(data.draw(st.permutations(range(z.shape[1]))))
    moved = rollout.run(z[:, order], np.full(len(z), int(np.argmax(order == y))), s=s, c=c, steps=7)
    assert_same_beliefs(moved, rollout.run(z, np.full(len(z), y), s=s, c=c, steps=7)[:, order], bound(z, 7, s * abs(c)))


@settings(max_examples=40)
@given(
    z=hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 5)), elements=st.floats(-20, 20)),
    s=st.floats(1e-3, 1.0),
    steps=st.integers(1, 8),
    data=st.data(),
)
def test_lumped_is_the_whole_vocabulary(z, s, steps, data):
    groups = z.shape[1]
    count = np.array([1, *data.draw(st.lists(st.integers(1, 30), min_size=groups - 1, max_size=groups - 1))])
    whole, y = np.repeat(z, count, axis=-1), np.zeros(len(z), dtype=int)
    few = np.repeat(rollout.lumped(z, count, y, s=s, steps=steps), count, axis=-1)
    assert_same_beliefs(few, repeated(whole, y, s=s, c=-1.0, steps=steps), bound(z, steps, s))
    if count[1] == 1:
        pair = rollout.lumped_pair(z, count, 0, 1, s=s, c_plus=0.7, c_minus=-1.0, steps=steps)
        full = repeated(whole, 0, s=s, c=(0.7, -1.0), steps=steps, other=1)
        assert_same_beliefs(np.repeat(pair, count, axis=-1), full, bound(z, steps, 1.7 * s))


def test_lumped_keeps_the_classes_of_a_group_equal_and_counts_them():
    z, count = np.array([0.5, 2.0, -1.0]), [1, 1, 998]
    few, logp = rollout.lumped(z, count, 0, s=0.5, steps=40, trace=[0, 1, 2], every=10)
    full = repeated(np.repeat(z, count), 0, s=0.5, c=-1.0, steps=40)
    assert np.ptp(full[2:]) == 0.0
    np.testing.assert_allclose(few, full[:3], rtol=bound(z, 40, 0.5))
    assert logp.shape == (5, 3)
    np.testing.assert_allclose(np.exp(logp) @ count, 1.0, rtol=1e-13)
    np.testing.assert_allclose(logp[-1], softmax.log_softmax(full)[:3], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("z", [[1e4, -1e4, 0.0], [0.0, -690.0, -1.0], [1e4, 1e4, 9999.0], [40.0, 0.0, 1.0]], ids=str)
@pytest.mark.parametrize("s", [1e-9, 1.0, 1e4])
@pytest.mark.parametrize("c", [-1.0, 1.0])
def test_huge_steps_and_logits_stay_finite_with_the_right_signs(z, s, c, rows, dtype):
    z = np.tile(np.array(z, dtype=dtype), (rows, 1))
    for y in range(3):
        one, many = (rollout.run(z, np.full(rows, y), s=s, c=c, steps=n) for n in (1, 5))
        assert np.isfinite(one).all()
        assert np.isfinite(many).all()
        want = repeated(z, y, s=s, c=c, steps=1)
        scale = max(np.abs(want).max(), np.abs(z).max())
        np.testing.assert_allclose(one, want, rtol=0, atol=4 * EPS[np.dtype(dtype)] * scale)
        moved = one.astype(float) - z
        assert (moved[:, y] * c >= 0).all(), "the label goes where c pushes it"
        assert (np.delete(moved, y, axis=1) * c <= 4 * EPS[np.dtype(dtype)] * scale).all(), "the others the other way"


@pytest.mark.parametrize(("classes", "rows"), [(50, 2), (50, 40), (5000, 1)])
def test_long_negative_runs_in_float32_stay_finite_where_plain_weights_do_not(classes, rows):
    z, y, *_ = draw(classes, rows, dtype=np.float32)
    got = rollout.run(z, y, s=0.5, steps=2000)
    assert np.isfinite(got).all()
    assert_same_beliefs_far(got, repeated(z, y, s=0.5, c=-1.0, steps=2000))
    w = np.exp(z - z.max(axis=-1, keepdims=True))
    at = np.arange(rows)
    with np.errstate(all="ignore"):
        for _ in range(2000):
            move = np.float32(0.5) * w / w.sum(axis=-1, keepdims=True)
            move[at, y] -= np.float32(0.5)
            w *= np.exp(move)
        assert not np.isfinite(np.log(w)).all(), "the weight form was expected to fail here"


def assert_same_beliefs_far(got, want):
    """log π after thousands of nats of movement: within the spacing of float32 at the logits that are stored."""
    a, b = softmax.log_softmax(got.astype(float)), softmax.log_softmax(want)
    np.testing.assert_allclose(a, b, rtol=0, atol=8 * EPS[np.dtype(np.float32)] * np.abs(want).max())


def take_over(rows, scale):
    """The label climbs from far below; on the way the two tops fall under a class whose weight had underflowed."""
    z = np.tile([-4.0 * scale, 0.0, 0.0, -0.8 * scale], (rows, 1))
    return z, {"s": 3.0, "c": 1.0, "steps": int(0.9 * scale)}


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1000.0), (np.float32, 125.0)])
def test_a_class_whose_weight_had_underflowed_comes_back(rows, dtype, scale):
    z, how = take_over(rows, scale)
    want = repeated(z, 0, **how)
    assert (want[:, 3] < z[:, 3] - 0.1 * scale).all(), "the premise: the third class was moved, so it held something"
    got = rollout.run(z.astype(dtype), np.zeros(rows, dtype=int), **how)
    np.testing.assert_allclose(got, want, rtol=0, atol=how["steps"] * EPS[np.dtype(dtype)] * 4 * scale)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("classes", "rows"), [(5, 2), (5, 70), (300, 2)])
@pytest.mark.parametrize("every", [1, 3])
def test_trace_records_the_beliefs_on_the_way(classes, rows, every, dtype):
    z, y, other, s, _ = draw(classes, rows, dtype=dtype)
    chosen = np.stack([y, other, z.argmax(axis=-1)], axis=-1)
    end, logp = rollout.run(z, y, s=s, steps=7, trace=chosen, every=every)
    assert logp.shape == (7 // every + 1, rows, 3)
    assert logp.dtype == dtype
    assert_same_beliefs(end, rollout.run(z, y, s=s, steps=7), bound(z, 7, 0.5))
    for i, row in enumerate(logp):
        want = softmax.log_softmax(repeated(z, y, s=s, c=-1.0, steps=i * every))
        np.testing.assert_allclose(row, np.take_along_axis(want, chosen, axis=-1), rtol=bound(z, i * every + 1, 0.5))


@pytest.mark.parametrize("rows", [1, 40])
def test_trace_keeps_the_digits_of_near_certainty(rows):
    z = np.tile([30.0, 0.0, -1.0], (rows, 1))
    _, logp = rollout.run(z, np.full(rows, 2), s=1e-9, steps=1, trace=[0])
    want = -np.log1p(np.exp(-30.0) + np.exp(-31.0))  # plain log π loses all but 3 digits of 1.3e-13
    np.testing.assert_allclose(logp[0, :, 0], want, rtol=1e-13)
    _, of_label = rollout.run(z, np.full(rows, 0), s=1e-9, steps=0, trace=[0])
    np.testing.assert_allclose(of_label[0, :, 0], want, rtol=1e-13)


def test_an_untraced_class_that_holds_nothing_keeps_its_bits_in_one_update():
    z = np.array([0.1, 0.2, -800.0, 7e-5])
    assert rollout.run(z, 0, s=0.5, steps=1)[2] == z[2]


def test_a_balanced_pair_moves_its_two_labels_only():
    z, y, other, s, _ = draw(1000, 3, spread=1.0)
    got = rollout.run_pair(z, y, other, s=s, c_plus=0.3, c_minus=-0.3, steps=50)
    assert np.count_nonzero(got != z) == 6
    at = np.arange(3)
    np.testing.assert_allclose(got[at, y] - z[at, y], 15 * s, rtol=1e-13)
    np.testing.assert_allclose(got[at, other] - z[at, other], -15 * s, rtol=1e-13)


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("given_reference", [False, True])
def test_run_dpo_descends_the_dpo_loss(rows, given_reference):
    z, y, other, s, rng = draw(30, rows)
    beta, at = rng.uniform(0.05, 2.0, rows), np.arange(rows)
    reference = rng.normal(size=rows) if given_reference else None
    anchor = torch.tensor(z[at, y] - z[at, other] if reference is None else reference)
    leaf = torch.tensor(z, requires_grad=True)
    for _ in range(6):
        logp = torch.log_softmax(leaf, dim=-1)
        margin = logp[at, y] - logp[at, other] - anchor
        loss = -torch.nn.functional.logsigmoid(torch.tensor(beta) * margin).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        leaf = (leaf - torch.tensor(s)[:, None] * grad).detach().requires_grad_()
    got, logp = rollout.run_dpo(z, y, other, s=s, beta=beta, reference=reference, steps=6, trace=[4], every=6)
    np.testing.assert_allclose(got, leaf.detach().numpy(), rtol=0, atol=bound(z, 6, 1.0))
    np.testing.assert_allclose(logp[1, :, 0], torch.log_softmax(leaf, -1)[:, 4].detach().numpy(), rtol=1e-12)


class TestWhatGoesInComesOut:
    def test_a_tensor_is_updated_where_it_lies(self):
        z = torch.zeros(2, 5)
        where = z.data_ptr()
        got = rollout.run(z, torch.tensor([1, 2]), s=1.0, steps=1, out=z)
        assert got is z
        assert z.data_ptr() == where
        np.testing.assert_allclose(z[0].numpy(), [0.2, -0.8, 0.2, 0.2, 0.2], rtol=4 * EPS[np.dtype(np.float32)])

    def test_a_tensor_comes_back_as_a_tensor_and_the_start_is_left_alone(self):
        z = torch.zeros(5, dtype=torch.float64)
        got, logp = rollout.run(z, 1, s=1.0, steps=3, trace=[1])
        assert isinstance(got, torch.Tensor)
        assert isinstance(logp, torch.Tensor)
        assert got.dtype == logp.dtype == torch.float64
        assert not z.any()
        assert float(logp[-1, 0]) == pytest.approx(float(torch.log_softmax(got, 0)[1]), rel=1e-13)

    @pytest.mark.parametrize("rows", [1, 40])
    def test_out_takes_the_result(self, rows):
        z, y, _, s, _ = draw(20, rows)
        before, into = z.copy(), np.empty_like(z)
        assert rollout.run(z, y, s=s, steps=3, out=into) is into
        np.testing.assert_array_equal(z, before)
        np.testing.assert_array_equal(into, rollout.run(z, y, s=s, steps=3))

    def test_leading_axes_are_a_batch(self):
        z, y, _, s, _ = draw(7, 6)
        got, logp = rollout.run(z.reshape(2, 3, 7), y.reshape(2, 3), s=s.reshape(2, 3), steps=2, trace=[0, 1])
        want, _ = rollout.run(z, y, s=s, steps=2, trace=[0])
        np.testing.assert_array_equal(got.reshape(6, 7), want)
        assert logp.shape == (3, 2, 3, 2)

    def test_views_are_read_through_their_strides(self):
        z, y, _, s, _ = draw(7, 6)
        np.testing.assert_array_equal(
            rollout.run(np.asfortranarray(z), y, s=s, steps=2), rollout.run(z, y, s=s, steps=2)
        )

    def test_no_update_changes_nothing(self):
        z, y, _, s, _ = draw(7, 40)
        got, logp = rollout.run(z, y, s=s, steps=0, trace=[3])
        np.testing.assert_array_equal(got, z)
        np.testing.assert_allclose(logp[0, :, 0], softmax.log_softmax(z)[:, 3], rtol=1e-13)

    def test_an_empty_batch_is_empty(self):
        got, logp = rollout.run(np.zeros((0, 4)), np.zeros(0, dtype=int), s=1.0, steps=2, trace=[1, 2])
        assert got.shape == (0, 4)
        assert logp.shape == (3, 0, 2)

    def test_nan_stays_in_its_row(self):
        z = np.zeros((40, 3))
        z[7, 0] = np.nan
        for rows in (z, z[:9]):  # both kernels
            got = rollout.run(rows, np.full(len(rows), 1), s=1.0, steps=3)
            assert np.isnan(got[7]).any()
            assert np.isfinite(np.delete(got, 7, axis=0)).all()


Z = np.zeros((2, 3))
BAD = {
    "lists": (lambda: rollout.run([[0.0, 1.0]], 0, s=1.0, steps=1), "z: expected a numpy array"),
    "integers": (lambda: rollout.run(np.zeros(3, dtype=int), 0, s=1.0, steps=1), "z: expected float32 or float64"),
    "half": (lambda: rollout.run(torch.zeros(3).half(), 0, s=1.0, steps=1), "z: expected float32 or float64"),
    "device": (
        lambda: rollout.run(torch.zeros(3, device="meta"), 0, s=1.0, steps=1),
        "z: expected a tensor on the CPU",
    ),
    "gradient": (lambda: rollout.run(torch.zeros(3, requires_grad=True), 0, s=1.0, steps=1), "without gradient"),
    "one class": (lambda: rollout.run(np.zeros((4, 1)), 0, s=1.0, steps=1), "over V ≥ 2 classes"),
    "label": (lambda: rollout.run(Z, 3, s=1.0, steps=1), "y: expected integers in 0 … 2, got 3"),
    "negative label": (lambda: rollout.run(Z, np.array([0, -1]), s=1.0, steps=1), "got -1"),
    "float label": (lambda: rollout.run(Z, 1.0, s=1.0, steps=1), "y: expected integers"),
    "label shape": (lambda: rollout.run(Z, np.zeros(3, dtype=int), s=1.0, steps=1), "y: expected a number or an array"),
    "step shape": (lambda: rollout.run(Z, 0, s=np.ones(3), steps=1), "s: expected a number or an array"),
    "steps": (lambda: rollout.run(Z, 0, s=1.0, steps=-1), "expected steps ≥ 0"),
    "trace": (lambda: rollout.run(Z, 0, s=1.0, steps=1, trace=[5]), "trace: expected integers in 0 … 2, got 5"),
    "out shape": (lambda: rollout.run(Z, 0, s=1.0, steps=1, out=np.zeros((3, 2))), "out: expected a contiguous"),
    "out dtype": (lambda: rollout.run(Z, 0, s=1.0, steps=1, out=np.zeros((2, 3), np.float32)), "out: expected"),
    "out library": (lambda: rollout.run(Z, 0, s=1.0, steps=1, out=torch.zeros(2, 3)), "out: expected"),
    "equal pair": (lambda: rollout.run_pair(Z, 1, 1, s=1.0, steps=1), "two different classes"),
    "count": (lambda: rollout.lumped(Z, [1, 0, 1], 0, s=1.0, steps=1), "count: expected class counts"),
    "label's count": (lambda: rollout.lumped(Z, [2, 1, 1], 0, s=1.0, steps=1), "1 in the group of a label"),
    "labels' count": (lambda: rollout.lumped_pair(Z, [1, 2, 1], 0, 1, s=1.0, steps=1), "1 in the group of a label"),
}


@pytest.mark.parametrize(("call", "line"), BAD.values(), ids=BAD)
def test_bad_input_gives_one_line(call, line):
    with pytest.raises(BadInput) as caught:
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_the_module_imports_neither_numba_nor_torch():
    code = "import sys, toyld.rollout; print(*{'numba', 'torch', 'scipy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == []


# --- The tests tested: bugs planted in the kernels' source, which then runs in plain Python ---


def interpreted(*changes):
    """The kernels as a module of plain Python, each (old, new) replaced in the source."""
    from toyld import _fused

    text = inspect.getsource(_fused)
    for old, new in changes:
        if text.count(old) != 1:  # not an AssertionError, which would pass for a bug that was seen
            raise LookupError(old)
        text = text.replace(old, new)
    text = text.replace("from numba import njit, types\n", "").replace("from numba.extending import overload\n", "")
    plain = types.ModuleType("kernels in plain Python")
    keep = lambda **_: lambda function: function  # noqa: E731
    vars(plain).update(njit=keep, overload=lambda *_, **__: lambda function: function, types=types)
    exec(compile(text, "kernels in plain Python", "exec"), vars(plain))
    plain._exp = lambda x: np.exp(np.clip(x, -700.0, 700.0))
    return plain


def assert_survives(monkeypatch, *changes):
    """Small runs of every kernel pass; plain Python takes a second."""
    plain = interpreted(*changes)
    monkeypatch.setattr(rollout, "_kernels", lambda: plain)
    z, y, other, s, _ = draw(4, 33, spread=2.0)
    z, y, other, s = (np.concatenate([a[:2], a[:31]]) for a in (z, y, other, s))
    for rows in (2, 33):
        at = z[:rows], y[:rows], s[:rows]
        got = rollout.run(at[0], at[1], s=at[2], steps=3)
        assert_same_beliefs(got, repeated(at[0], at[1], s=at[2], c=-1.0, steps=3), bound(z, 3, 0.5))
        got = rollout.run_pair(at[0], at[1], other[:rows], s=at[2], c_plus=0.4, steps=2)
        assert_same_beliefs(
            got, repeated(at[0], at[1], s=at[2], c=(0.4, -1.0), steps=2, other=other[:rows]), bound(z, 2, 1.0)
        )
    one = rollout.run(z[:2], y[:2], s=s[:2], steps=1)
    assert_same_beliefs(one, repeated(z[:2], y[:2], s=s[:2], c=-1.0, steps=1), bound(z, 1, 0.5))
    far, how = take_over(1, 1000.0)
    np.testing.assert_allclose(rollout.run(far, 0, **how), repeated(far, 0, **how), rtol=1e-12)
    many = np.array([[0.5, 2.0, -1.0]])
    few = rollout.lumped(many, [1, 1, 40], 0, s=0.5, steps=2)
    full = repeated(np.repeat(many, [1, 1, 40], axis=-1), np.array([0]), s=0.5, c=-1.0, steps=2)
    np.testing.assert_allclose(few, full[:, :3], rtol=1e-13)
    _, logp = rollout.run(np.array([30.0, 0.0, -1.0]), 2, s=1e-9, steps=1, trace=[0])
    np.testing.assert_allclose(logp[0, 0], -np.log1p(np.exp(-30.0) + np.exp(-31.0)), rtol=1e-13)


PLANTED = {
    "renormalisation dropped": ("return not ((total >= 1.0 / _DRIFT) & (total <= _DRIFT * most))", "return False"),
    "one update too few": ("for t in range(steps + traced):", "for t in range(steps - 1 + traced):"),
    "one pass too few, lanes": ("if t == steps and not traced:", "if t >= steps - 1 and not traced:"),
    "multiplicity forgotten": ("part[i] += n[j, i] * e if n.shape[1] else e", "part[i] += e"),
    "sign of the others flipped": (
        "moved = (x[0, j] - k * w[0, j]) - drift",
        "moved = (x[0, j] + k * w[0, j]) - drift",
    ),
    "label left out of the normaliser": ("k = step * em / (total * em + ea)", "k = step * em / (total * em)"),
    "label left in the others' sum": ("z[b, a] = z[b, o if o >= 0 else a] = _GONE", "pass"),
    "the other label's share forgotten": ("scale * (ca * (rest + eb) - cb * ea)", "scale * (ca * rest - cb * ea)"),
    "reference moved without its logits": (
        "                m += drift\n                k, drift",
        "                k, drift",
    ),
    "near certainty from the rounded logarithm": ("if lp[i] > -0.7:", "if lp[i] > 0.7:"),
    "last update applied twice": ("z[b, j] -= k * w[0, j]", "z[b, j] -= 2 * k * w[0, j]"),
}


def test_the_kernels_in_plain_python_survive(monkeypatch):
    assert_survives(monkeypatch)


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_turns_red(monkeypatch, change):
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        assert_survives(monkeypatch, change)


# --- The benchmark ---


@pytest.fixture
def benchmark(script):
    return script("softmax")


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, compared):
    lines, _ = compared(benchmark)
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {
        "step/torch-autograd",
        "run/torch-autograd",
        "lumped/full-vocabulary",
        "step/copy",
    }
    assert all(isinstance(line["size"], str) for line in lines)


def test_the_benchmark_fails_when_results_disagree(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "STEP", 0.5)
    right = benchmark.autograd
    monkeypatch.setattr(benchmark, "autograd", lambda z, y, *, c, steps: right(z, y, c=1.01 * c, steps=steps))
    assert benchmark.main(["--size", "smoke"]) == 1
    assert "RESULTS DISAGREE" in capsys.readouterr().err
