"""LBK below η²‖K‖² as Eq. 26 has it, the released notebook's numbers beside it, and rank correlations."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from toyld import influence
from toyld.checked import BadInput
from toyld.influence import (
    Model,
    frobenius,
    lbk,
    lbk_as_released,
    rank_stability,
    sign_delta,
    sign_delta_as_released,
)
from toyld.influence.proxies import normaliser_norm2

_spec = importlib.util.spec_from_file_location("influence_networks", Path(__file__).parent / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["mlp", "lenet", "attention", "tied"])
def test_lbk_is_below_the_kernel_at_first_order(name):
    net, observed, taught, labels = networks.network(name)
    model, lr = Model(net), 0.1
    step = influence.update(model, influence.teach(taught, labels), lr=lr)
    change, pi = influence.predict(model, step, observed), torch.softmax(model(observed), -1)
    g = step.lesson.residual(model(taught))
    found = lbk(change, pi, g)
    bound = lr**2 * frobenius(model, observed, taught).square().sum(1)
    assert found.shape == (3,)
    assert (found > 0.0).all()
    assert (found <= bound).all()
    # By hand: the norms of the blocks themselves, summed over positions.
    blocks = influence.blocks(model, step, observed)
    rest = tuple(range(1, change.ndim))
    by_hand = change.square().sum(rest) / (blocks.A.square().sum((*rest, change.ndim)) * blocks.G.square().sum())
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=0)
    # The tighter form of the docstring, with the largest ‖A_m‖_op² = V‖π_m‖².
    op2 = networks.V * pi.square().sum(-1).reshape(3, -1).amax(1)
    torch.testing.assert_close(torch.linalg.matrix_norm(blocks.A, 2).square().reshape(3, -1).amax(1), op2)
    assert (change.square().sum(rest) <= op2 * bound * g.square().sum()).all()
    assert (change.square().sum(rest) > 1e-3 * op2 * bound * g.square().sum()).any()


def test_the_bound_is_met_where_all_matrices_have_rank_one():
    """V = 2, K = a aᵀ, G along a, observed at a flat π: what is lost is ‖A‖_F only."""
    a = np.array([1.0, -1.0])
    pi, k = np.full((1, 2), 0.5), np.outer(a, a)
    change = -0.1 * (np.eye(2) - pi) @ k @ a
    assert float(lbk(change[None], pi, a)[0]) == pytest.approx(0.1**2 * np.sum(k**2), rel=1e-12)


def test_proxies_are_the_same_for_every_array_library():
    change, z, g = RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 4, 5)), RNG.normal(size=(2, 4, 5))
    pi = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    found = lbk(change, pi, g)
    assert isinstance(found, np.ndarray)
    theirs = lbk(*map(torch.from_numpy, (change, pi, g)))
    np.testing.assert_allclose(found, theirs.numpy(), rtol=1e-12)
    np.testing.assert_allclose(sign_delta(change), sign_delta(torch.from_numpy(change)).numpy(), rtol=1e-12)
    np.testing.assert_allclose(sign_delta(change), [np.mean(row) for row in change], rtol=1e-12)
    a = np.eye(5) - pi[..., None, :]
    np.testing.assert_allclose(normaliser_norm2(pi), (a**2).sum((-2, -1)), rtol=1e-12)


def test_sign_delta_is_minus_the_covariance_of_probability_and_push():
    net, observed, taught, labels = networks.network("mlp")
    model = Model(net)
    step = influence.update(model, influence.teach(taught, labels, weight=-1.0), lr=0.1)
    z, dz = model.tangent(observed, step.displacement)
    pi = torch.softmax(z, -1)
    want = -((pi - pi.mean(-1, keepdim=True)) * (dz - dz.mean(-1, keepdim=True))).sum(-1)
    torch.testing.assert_close(sign_delta(influence.predict(model, step, observed)), want, rtol=0, atol=1e-12)


def _fixed_run(data):
    """One released run: evaluations of each column, which are the keys of its log in order."""
    folder = data / "runs" / "authors" / "prob_pythia410m_dpo"
    if not (folder / "logp_npy_all_chosen.npy").is_file():
        pytest.skip("needs runs/authors/prob_pythia410m_dpo with its array per example under TOYLD_DATA")
    array = np.load(folder / "logp_npy_all_chosen.npy").astype(float)
    with (folder / "prob_train_metrics.json").open() as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    keys = [key.removeprefix("logps_eval_prob_train/") for key in rows[0]]
    for t, row in enumerate(rows):
        for k, key in enumerate(row):
            if math.isfinite(row[key]):
                assert math.fsum(array[t, k]) / 500 == pytest.approx(row[key], rel=1e-5)
    return array, keys


def test_the_notebooks_numbers_come_out_of_the_released_log(data):
    array, keys = _fixed_run(data)
    assert array.shape == (50, 17, 500)
    a_norm, residual_norm = (array[:, keys.index(key)] for key in ("A_o", "p_e"))
    curves = {}
    for probe in ("chosen", "rejected", "random_nonhum"):
        logp = array[:, keys.index(probe)]
        curves[probe] = lbk_as_released(logp, a_norm, residual_norm)
        signs = sign_delta_as_released(logp, a_norm, residual_norm)
        for t in range(49):  # number by number, with exact sums
            delta = [float(b - a) for a, b in zip(logp[t], logp[t + 1], strict=True)]
            size = math.sqrt(math.fsum(a_norm[t + 1]) / 500) * (math.fsum(residual_norm[t + 1]) / 500)
            assert curves[probe][t] == pytest.approx(math.hypot(*delta) / size, rel=1e-12)
            assert signs[t] == pytest.approx(math.fsum(delta) / 500 / size, rel=1e-9, abs=1e-12)
    # p_e and A_o are those of the probe evaluated last, whatever response is plotted: ‖π − e‖ of random words stays
    # near 1 all run, and the root of ‖A_o‖ hardly moves. So the curve of the chosen response has the shape of ‖Δlogp‖.
    assert float(np.abs(residual_norm.mean(1) - 1.0).max()) < 0.1
    moved = np.linalg.norm(np.diff(array[:, keys.index("chosen")], axis=0), axis=1)
    assert float(np.corrcoef(np.log(moved), np.log(curves["chosen"]))[0, 1]) > 0.99


NORMS = RNG.uniform(size=(4, 2, 7, 3))


def test_rank_correlations_are_spearmans():
    found = rank_stability(NORMS)
    assert found.consecutive.shape == found.to_last.shape == (3, 2, 3)
    for c in range(3):
        for seed in range(2):
            for u in range(3):
                one, last = NORMS[c, seed, :, u], NORMS[-1, seed, :, u]
                next_ = NORMS[c + 1, seed, :, u]
                assert found.consecutive[c, seed, u] == pytest.approx(stats.spearmanr(one, next_)[0], abs=1e-12)
                assert found.to_last[c, seed, u] == pytest.approx(stats.spearmanr(one, last)[0], abs=1e-12)


def test_ties_share_their_rank_and_equal_norms_have_no_order():
    norms = np.array(
        [[[1.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0]], [[0.0, 1.0], [4.0, 2.0], [5.0, 3.0], [5.0, 4.0]]]
    )
    found = rank_stability(norms).consecutive
    assert found[0, 0] == pytest.approx(stats.spearmanr(norms[0, :, 0], norms[1, :, 0])[0], abs=1e-12)
    assert math.isnan(found[0, 1])


FLAT, G = np.full((1, 4), 0.25), np.array([0.5, -0.5, 0.0, 0.0])
LOG = np.zeros((3, 5))
BAD = {
    "log-probabilities": (lambda: lbk(FLAT, np.log(FLAT), G), "rows that sum to 1 .* got others; take the softmax"),
    "other classes": (lambda: lbk(FLAT, FLAT, G[:3]), r"got \(1, 4\), \(1, 4\), \(3,\); stack"),
    "one observer without its axis": (lambda: lbk(FLAT[0], FLAT[0], G), r"\(4,\), \(4,\), \(4,\); stack the observed"),
    "nothing taught": (lambda: lbk(FLAT, FLAT, 0.0 * G), "residual: expected one that is not 0 everywhere"),
    "one change": (lambda: sign_delta(G), r"expected shape \(O, …, V\), got \(4,\)"),
    "one evaluation": (lambda: lbk_as_released(LOG[:1], LOG[:1], LOG[:1]), r"evaluations ≥ 2.*got \(1, 5\)"),
    "means": (lambda: sign_delta_as_released(LOG, LOG.mean(1), LOG), r"one shape, got \(3, 5\), \(3,\), \(3, 5\)"),
    "one checkpoint": (lambda: rank_stability(NORMS[:1]), r"C ≥ 2.*got \(1, 2, 7, 3\)"),
    "two observers": (lambda: rank_stability(NORMS[:, :, :2]), "O ≥ 3"),
    "ragged": (lambda: rank_stability([[1.0], [1.0, 2.0]]), "an array of numbers"),
    "not finite": (lambda: rank_stability(np.log(NORMS * 0.0 - 1.0)), "finite numbers, got 168 others"),
}


@pytest.mark.filterwarnings("ignore:invalid value encountered in log")
@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_gets_one_clear_line(case):
    call, line = BAD[case]
    with pytest.raises(BadInput, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
