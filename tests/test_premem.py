"""Pre-memorisation accuracy on logs made by hand, against loops, and at the ends of its definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toyld.checked import BadInput
from toyld.premem import copied, copying_bound, pre_memorisation

# accuracy, perplexity, threshold → PreMem at each checkpoint, worked out by hand
LOGS = {
    "never copied: the accuracy": ([0.2, 0.6, 0.4], [9, 4, 3], 1.5, [0.2, 0.6, 0.4]),
    "copied from the start: nothing": ([0.9, 1.0, 1.0], [1.1, 1.0, 1.0], 1.5, [0, 0, 0]),
    "copied at the end: what it was before": ([0.2, 0.6, 1.0], [9, 4, 1.1], 1.5, [0.2, 0.6, 0.6]),
    "copied, then worse: what it is now": ([0.2, 0.6, 0.3], [9, 4, 1.1], 1.5, [0.2, 0.6, 0.3]),
    "a pause in copying counts": ([0.2, 1.0, 0.8], [9, 1.1, 2.0], 1.5, [0.2, 0.2, 0.8]),
    "on the threshold it is copied": ([0.7, 0.7], [1.5, 1.5000001], 1.5, [0, 0.7]),
    "one checkpoint": ([0.7], [2.0], 1.5, [0.7]),
    "never right": ([0.0, 0.0], [2.0, 1.0], 1.5, [0, 0]),
}


@pytest.mark.parametrize("name", LOGS)
def test_logs_made_by_hand(name):
    accuracy, perplexity, threshold, expected = LOGS[name]
    found = pre_memorisation(np.array(accuracy), np.array(perplexity, float), threshold=threshold)
    np.testing.assert_array_equal(found, expected)


def by_loops(accuracy, perplexity, threshold):
    out = np.zeros_like(accuracy)
    for i in range(accuracy.shape[1]):
        for m in range(len(accuracy)):
            seen = [accuracy[k, i] for k in range(m + 1) if perplexity[k, i] > threshold]
            out[m, i] = min(max(seen, default=0.0), accuracy[m, i])
    return out


@given(st.integers(0, 2**31), st.floats(1.01, 4.0))
def test_it_is_the_definition_prompt_by_prompt_on_numpy_and_torch(seed, threshold):
    rng = np.random.default_rng(seed)
    accuracy, perplexity = rng.random((6, 4)), 1.0 + 3.0 * rng.random((6, 4))
    expected = by_loops(accuracy, perplexity, threshold)
    accuracy.flags.writeable = perplexity.flags.writeable = False
    np.testing.assert_array_equal(pre_memorisation(accuracy, perplexity, threshold=threshold), expected)
    found = pre_memorisation(torch.tensor(accuracy), torch.tensor(perplexity), threshold=threshold)
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("accuracy", "perplexity", "threshold", "words"),
    [
        ([[0.5]], [[2.0]], 1.0, "perplexity above 1, got 1.0"),
        ([[0.5]], [[2.0]], float("nan"), "perplexity above 1"),
        ([[0.5]], [[2.0]], float("inf"), "perplexity above 1"),
        ([[1.5]], [[2.0]], 1.5, "between 0 and 1"),
        ([[float("nan")]], [[2.0]], 1.5, "between 0 and 1"),
        ([[0.5]], [[0.5]], 1.5, "1 and more"),
        ([[0.5]], [[float("nan")]], 1.5, "1 and more"),
        ([[0.5, 0.5]], [[2.0]], 1.5, "one shape"),
        (np.zeros((0, 2)), np.zeros((0, 2)), 1.5, "one shape"),
    ],
)
def test_bad_logs_are_one_clear_line(accuracy, perplexity, threshold, words):
    with pytest.raises(BadInput, match=words) as caught:
        pre_memorisation(np.asarray(accuracy, float), np.asarray(perplexity, float), threshold=threshold)
    assert "\n" not in str(caught.value)


def test_an_infinite_perplexity_is_not_copied_and_rounding_below_one_is():
    perplexity = np.array([[np.inf, 1.0 - 2**-53]])
    np.testing.assert_array_equal(pre_memorisation(np.array([[0.5, 0.5]]), perplexity, threshold=1.5), [[0.5, 0.0]])


def test_the_bound_of_copying_is_the_probability_of_a_trace_on_the_threshold():
    for tokens in (1, 7, 100):
        logp = -tokens * np.log(1.1)  # perplexity 1.1 a token
        assert copying_bound(tokens, threshold=1.1) == pytest.approx(np.exp(logp), rel=1e-12)
    assert copied(1.1, threshold=1.1)
