"""toyld.contexts.kernels: every component of the mixture against a loop over pairs of contexts, and S ⪰ 0."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from toyld import contexts
from toyld.checked import BadInput
from toyld.contexts import Features, Gram, Mixture, centred, measured
from toyld.contexts.kernels import COMPONENTS

EPS = float(np.finfo(np.float64).eps)
CLOSE = {"rtol": 256 * EPS, "atol": 256 * EPS}
PROMPT, VOCAB = 2, 6


def make_mixture(seed: int = 0, *, worlds: int = 2, contexts: int = 9, weights: dict | None = None) -> Mixture:
    """Random token rows [2 of a prompt | 0 to 3 of a response], padded behind; a row may come twice."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(VOCAB, size=(worlds, contexts, PROMPT + 3))
    tokens[:, :, 0] %= 2  # few prompts, so that prefixes are shared
    tokens[:, :, 1] %= 2
    length = rng.integers(PROMPT, PROMPT + 4, (worlds, contexts, 1))
    tokens = np.where(np.arange(PROMPT + 3) < length, tokens, -1)
    tokens[:, -1] = tokens[:, 0]
    vectors = rng.normal(size=(worlds, VOCAB, 4))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    return Mixture(tokens, PROMPT, weights or dict.fromkeys(COMPONENTS, 0.5), vectors)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def by_loop(mixture: Mixture, b: int, i: int, j: int) -> dict[str, float]:
    """Every component of S[i, j], from its definition."""
    vectors = np.broadcast_to(mixture.vectors, (len(mixture.tokens), *mixture.vectors.shape[-2:]))[b]
    rows = [[t for t in mixture.tokens[b, k].tolist() if t >= 0] for k in (i, j)]
    common = 0
    while common < min(map(len, rows)) and rows[0][common] == rows[1][common]:
        common += 1
    recent = []
    for row in rows:
        lags = range(min(mixture.lags, mixture.tokens.shape[-1]))
        recent.append(
            np.concatenate(
                [mixture.decay ** (k / 2) * (vectors[row[-1 - k]] if k < len(row) else 0 * vectors[0]) for k in lags]
            )
        )
    prompts = [np.mean([vectors[t] for t in row[:PROMPT]], axis=0) for row in rows]
    return {
        "identity": float(i == j),
        "common": 1.0,
        "prompt": cosine(*prompts),
        "token": cosine(*recent),
        "prefix": common / np.sqrt(len(rows[0]) * len(rows[1])),
        "position": float(len(rows[0]) == len(rows[1])),
    }


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_is_its_definition(name):
    mixture = make_mixture(1, weights={name: 0.7})
    worlds, n = mixture.tokens.shape[:2]
    expected = [[[0.7 * by_loop(mixture, b, i, j)[name] for j in range(n)] for i in range(n)] for b in range(worlds)]
    assert_allclose(mixture.block(slice(0, n), slice(0, n)), expected, **CLOSE)


def test_a_mixture_is_the_weighted_sum_with_its_weights_on_the_diagonal():
    weights = {name: 0.1 * (k + 1) for k, name in enumerate(COMPONENTS)}
    mixture = make_mixture(2, weights=weights)
    n = mixture.tokens.shape[1]
    s = mixture.block(slice(0, n), slice(0, n))
    expected = [[sum(w * by_loop(mixture, 1, i, j)[k] for k, w in weights.items()) for j in range(n)] for i in range(n)]
    assert_allclose(s[1], expected, **CLOSE)
    assert_allclose(np.diagonal(s, axis1=1, axis2=2), sum(weights.values()), **CLOSE)
    assert_allclose(mixture.block(slice(2, 5), slice(4, 9)), s[:, 2:5, 4:9], **CLOSE)


@given(
    seed=st.integers(0, 10**6),
    weights=st.fixed_dictionaries({name: st.sampled_from([0.0, 0.3, 1.0]) for name in COMPONENTS}),
)
def test_every_mixture_is_symmetric_and_positive_semidefinite(seed, weights):
    mixture = make_mixture(seed, weights=weights)
    n = mixture.tokens.shape[1]
    s = mixture.block(slice(0, n), slice(0, n))
    assert_allclose(s, np.swapaxes(s, 1, 2), **CLOSE)
    # Rounding of an eigenvalue is at most n eps of the largest.
    assert np.linalg.eigvalsh(s).min() >= -64 * n * EPS * max(1.0, sum(weights.values()))


@pytest.mark.parametrize("without", ["prefix", "prefix identity"])
def test_features_and_diagonal_are_the_block(without):
    weights = {name: 0.4 for name in COMPONENTS if name not in without.split()}
    mixture = make_mixture(3, weights=weights)
    n = mixture.tokens.shape[1]
    s = mixture.features @ np.swapaxes(mixture.features, 1, 2)
    if mixture.diagonal is not None:
        s += mixture.diagonal[:, :, None] * np.eye(n)
    assert (mixture.diagonal is None) == ("identity" in without)
    assert_allclose(mixture.block(slice(0, n), slice(0, n)), s, **CLOSE)
    assert make_mixture(3).features is None


def test_weights_may_differ_between_worlds_and_follow_them():
    mixture = make_mixture(4, weights={"common": np.array([0.0, 2.0]), "prefix": np.array([1.0, 0.5])})
    n = mixture.tokens.shape[1]
    every = slice(0, n)
    taken = mixture.take(np.array([1, 0, 1])).block(every, every)
    for place, b in enumerate((1, 0, 1)):
        own = {"common": [0.0, 2.0][b], "prefix": [1.0, 0.5][b]}
        alone = replace(mixture, tokens=mixture.tokens[[b]], vectors=mixture.vectors[[b]], weights=own, _cache={})
        assert_allclose(taken[place], alone.block(every, every)[0], **CLOSE)


def test_gram_features_and_measured_agree_and_follow_their_worlds():
    rng = np.random.default_rng(5)
    phi, d = rng.normal(size=(3, 7, 4)), rng.uniform(size=(3, 7))
    s = np.einsum("bic,bjc->bij", phi, phi)
    whole = s + d[:, :, None] * np.eye(7)
    rows, cols, at = slice(1, 5), slice(3, 7), np.array([2, 2, 0])
    for kernel, matrix in ((Gram(whole), whole), (Features(phi, d), whole), (Features(phi), s), (measured(phi), s)):
        assert_allclose(kernel.block(rows, cols), matrix[:, rows, cols], **CLOSE)
        assert_allclose(kernel.block(slice(0, 2), slice(5, 7)), matrix[:, :2, 5:], **CLOSE)
        assert_allclose(kernel.take(at).block(rows, cols), matrix[at][:, rows, cols], **CLOSE)
    assert_array_equal(measured(phi[1]).features, phi[1:2])
    like = torch.zeros(1, dtype=torch.float64)
    assert_allclose(Features(torch.as_tensor(phi), torch.as_tensor(d)).block(rows, cols), whole[:, rows, cols], **CLOSE)
    mixture = make_mixture(6)
    there = replace(mixture, like=like, _cache={}).block(rows, cols)
    assert isinstance(there, torch.Tensor)
    assert_allclose(there.numpy(), mixture.block(rows, cols), **CLOSE)


def test_centring_is_taking_the_mean_off_the_features():
    rng = np.random.default_rng(7)
    phi, r, w = rng.normal(size=(2, 6, 3)), rng.normal(size=(2, 6, 5)), rng.dirichlet(np.ones(6), size=2)
    mean = np.einsum("bn,bnd->bd", w, phi)
    expected = np.einsum("bod,bud,buv->bov", phi, phi - mean[:, None], r)
    assert_allclose(np.einsum("bod,bud->bou", phi, phi) @ (centred(w) @ r), expected, **CLOSE)
    # 1ᵀP = 0: whatever all contexts share, c·11ᵀ in S, plays no part in an update by S P R.
    assert_allclose(np.ones((2, 1, 6)) @ centred(w), 0.0, **CLOSE)


def test_what_is_no_kernel_is_one_clear_line():
    with pytest.raises(BadInput, match=r"expected components among identity, .*, got hidden; rename them"):
        make_mixture(weights={"hidden": 1.0})
    for wrong in (-0.1, np.nan, np.array([0.1, np.inf])):
        with pytest.raises(BadInput, match="finite numbers >= 0"):
            make_mixture(weights={"common": wrong})
    with pytest.raises(BadInput, match=r"hidden: expected states \(C, D\) or \(B, C, D\), got shape \(3,\)"):
        measured(np.zeros(3))


def test_the_default_kernel_of_a_language_has_ones_on_its_diagonal():
    world = contexts.languages.facts(seeds=[1000], concepts=4, prompts=3, length=4)
    every = slice(0, world.size[1])
    assert_allclose(np.diagonal(world.kernel.block(every, every)[0]), 1.0, **CLOSE)
