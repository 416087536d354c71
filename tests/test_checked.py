"""Bad input at the door: one line that says what was expected, what came and what to do."""

import array_api_strict
import numpy as np
import pytest
import torch

from toyld import softmax as sm
from toyld.checked import BadInput, checked, finite, labels, logits, positive, probabilities

Z = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
Y = np.array([0, 2])

BAD = {
    "NaN logits": (lambda: logits(np.array([[0.0, 1.0], [np.nan, 0.0]])), "expected finite logits, got nan at (1, 0)"),
    "infinite logits": (lambda: logits(torch.tensor([0.0, -torch.inf])), "expected finite logits, got -inf at (1,)"),
    "integer logits": (lambda: logits(np.array([1, 2])), "expected floats, got dtype int64"),
    "a list": (lambda: logits([0.0, 1.0]), "expected an array of floats (…, V), got list"),
    "empty vocabulary": (lambda: logits(np.zeros((3, 0))), "the last over V ≥ 2 classes, got shape (3, 0)"),
    "a scalar": (lambda: logits(np.array(1.0)), "got shape ()"),
    "one class": (lambda: logits(np.zeros((3, 1))), "expected V ≥ 2 classes in the last axis, got 1"),
    "negative probability": (lambda: probabilities(np.array([1.2, -0.2])), "expected probabilities > 0, got -0.2"),
    "NaN probability": (lambda: probabilities(np.array([np.nan, 1.0])), "expected probabilities > 0, got nan"),
    "probabilities that do not sum to 1": (lambda: probabilities(np.array([0.5, 0.4])), "got a sum of 0.9"),
    "label too large": (lambda: labels(3, Z), "expected a label in 0 … 2, got 3"),
    "negative label": (lambda: labels(np.array([0, -1]), Z), "expected a label in 0 … 2, got -1"),
    "float label": (lambda: labels(1.0, Z), "expected an integer label, got float 1.0"),
    "float labels": (lambda: labels(np.array([0.0, 1.0]), Z), "expected integer labels, got dtype float64"),
    "boolean label": (lambda: labels(True, Z), "expected an integer label, got bool"),
    "labels of another shape": (lambda: labels(np.array([0, 1, 2]), Z), "expected labels of shape (2,)"),
    "labels of another library": (
        lambda: labels(torch.tensor([0, 1]), Z),
        "expected ndarray labels like z, got Tensor",
    ),
    "zero step": (lambda: positive(0.0), "expected a finite number > 0, got 0.0"),
    "infinite step": (lambda: positive(np.array([1.0, np.inf])), "expected a finite number > 0"),
    "mixed libraries": (
        lambda: checked(sm.break_even)(Z, torch.ones(2, 3)),
        "expected arrays of one library, got z: numpy",
    ),
    "wrapped: NaN": (lambda: checked(sm.log_alpha)(Z * np.nan, Y, s=1.0), "z: expected finite logits"),
    "wrapped: label": (lambda: checked(sm.pair_residual)(Z, 0, 7), "y_minus: expected a label in 0 … 2, got 7"),
    "wrapped: step": (lambda: checked(sm.threshold)(Z, Y, s=-1.0), "s: expected a finite number > 0, got -1.0"),
    "logits far outside of the domain": (
        lambda: logits(np.array([0.0, -1e8])),
        "z: expected logits within ±1e+06, got -1e+08 at (1,)",
    ),
    "NaN logits with gradients": (
        lambda: logits(torch.nn.Parameter(torch.tensor([0.0, torch.nan]))),
        "got nan at (1,)",
    ),
    "infinite direction": (lambda: finite(np.array([0.0, np.inf])), "v: expected finite numbers, got inf at (1,)"),
    "true as a step": (lambda: positive(True), "expected a finite number > 0, got bool True"),
    "boolean steps": (lambda: positive(np.array([True])), "expected a finite number > 0, got dtype bool"),
    "many bad steps": (lambda: positive(np.full((50, 50), np.nan)), "expected a finite number > 0, got nan at (0, 0)"),
    "a step beyond floats": (lambda: positive(10**400), "expected a finite number > 0, got int 1000"),
    "wrapped: no array": (lambda: checked(sm.threshold)([0.0, 1.0], 0, s=1.0), "z: expected an array of floats"),
    "wrapped: c text": (lambda: checked(sm.residual)(Z, 0, c="1"), "c: expected a finite number, got str '1'"),
    "wrapped: c NaN": (
        lambda: checked(sm.residual)(Z, 0, c=np.array([1.0, np.nan])),
        "c: expected a finite number, got",
    ),
    "wrapped: c shape": (
        lambda: checked(sm.residual)(Z, 0, c=np.ones(3)),
        "c: expected a number or an array of shape (2,)",
    ),
    "wrapped: c_minus": (
        lambda: checked(sm.pair_residual)(Z, 0, 1, c_minus=np.inf),
        "c_minus: expected a finite number",
    ),
    "wrapped: s shape": (
        lambda: checked(sm.threshold)(Z, 0, s=np.ones(3)),
        "s: expected a number or an array of shape",
    ),
    "wrapped: rho shape": (
        lambda: checked(sm.sam_step)(Z, 0, s=1.0, rho=np.ones((2, 1))),
        "rho: expected a number or an array of shape (2,) (one per softmax), got (2, 1)",
    ),
    "wrapped: v shape": (lambda: checked(sm.entropy_rate)(Z, np.ones(2)), "v: expected shape (2, 3) like z"),
    "wrapped: g shape": (lambda: checked(sm.step)(Z, np.ones((3, 3)), s=1.0), "g: expected shape (2, 3) like z"),
    "wrapped: g NaN": (lambda: checked(sm.step)(Z, Z * np.nan, s=1.0), "g: expected finite numbers, got nan"),
    "wrapped: q shape": (lambda: checked(sm.break_even)(Z, np.full(2, 0.5)), "q: expected shape (2, 3) like z"),
    "wrapped: reward shape": (
        lambda: checked(sm.water_filling)(np.full(2, 0.5), np.ones(3), baseline=0.0),
        "reward: expected shape (2,) like mu",
    ),
    "wrapped: same labels": (lambda: checked(sm.pair_residual)(Z, 1, 1), "y_plus, y_minus: expected two different"),
    "wrapped: same labels in a row": (
        lambda: checked(sm.pair_residual)(Z, Y, np.array([1, 2])),
        "y_plus, y_minus: expected two different classes",
    ),
    "wrapped: baseline NaN": (
        lambda: checked(sm.water_filling)(np.full(2, 0.5), np.ones(2), baseline=np.nan),
        "baseline: expected a finite number, got nan",
    ),
    "wrapped: baseline at the mean": (
        lambda: checked(sm.water_filling)(np.full(2, 0.5), np.ones(2), baseline=1.0),
        "baseline: expected E_μ r − baseline > 0, got 0",
    ),
    "wrapped: baseline above one row's mean": (
        lambda: checked(sm.water_filling)(np.full((2, 2), 0.5), np.ones((2, 2)), baseline=np.array([0.0, 3.0])),
        "got -2 at (1,)",
    ),
    "wrapped: distribution": (lambda: checked(sm.break_even)(Z, Z), "q: expected probabilities > 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_one_clear_line(what):
    call, message = BAD[what]
    with pytest.raises(BadInput) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, array_api_strict.asarray], ids=["numpy", "torch", "strict"])
def test_good_input_passes_through_unchanged(make):
    z, y = make(Z), make(Y)
    assert logits(z) is z
    assert labels(y, z) is y
    got = checked(sm.log_alpha)(z, y, s=0.5)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(sm.log_alpha(z, y, s=0.5)))


def test_a_checked_function_keeps_its_name_and_docstring():
    assert checked(sm.threshold).__name__ == "threshold"
    assert checked(sm.threshold).__doc__ == sm.threshold.__doc__


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, array_api_strict.asarray], ids=["numpy", "torch", "strict"])
@pytest.mark.parametrize("zero_d", [lambda a: a, np.asarray], ids=["scalar", "0-d"])
def test_numbers_of_numpy_go_with_every_library(make, zero_d):
    z, y, s = make(Z), zero_d(np.int64(2)), zero_d(np.float64(0.5))
    assert labels(y, z) is y
    got = checked(sm.log_alpha)(z, y, s=s)
    np.testing.assert_array_equal(np.asarray(got), np.asarray(sm.log_alpha(z, 2, s=0.5)))
    got = checked(sm.pair_residual)(z, y, make(np.array([0, 1])), c_plus=s)
    assert type(got) is type(z)


def test_a_parameter_takes_labels_that_are_a_tensor():
    z = torch.nn.Parameter(torch.tensor(Z))
    y = torch.tensor(Y)
    assert labels(y, z) is y
    checked(sm.log_alpha)(z, y, s=torch.tensor(0.5)).sum().backward()
    assert z.grad is not None


def test_arrays_that_go_together_pass():
    each = np.array([0.5, 1.0])
    np.testing.assert_array_equal(checked(sm.sam_step)(Z, Y, s=each, rho=each), sm.sam_step(Z, Y, s=each, rho=each))
    v, q = np.array([1.0, 0.0, -1.0]), np.array([0.5, 0.25, 0.25])
    np.testing.assert_array_equal(checked(sm.entropy_rate)(Z, v), sm.entropy_rate(Z, v))
    np.testing.assert_array_equal(checked(sm.break_even)(Z, q), sm.break_even(Z, q))
    got = checked(sm.water_filling)(q, Z, baseline=-each)
    np.testing.assert_array_equal(got, sm.water_filling(q, Z, baseline=-each))
    assert logits(np.array([1e6, -1e6])).shape == (2,)
