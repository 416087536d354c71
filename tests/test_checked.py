"""Bad input at the door: one line that says what was expected, what came and what to do."""

import array_api_strict
import numpy as np
import pytest
import torch

from toyld import softmax as sm
from toyld.checked import BadInput, checked, labels, logits, positive, probabilities

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
