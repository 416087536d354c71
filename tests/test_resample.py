"""Intervals, p-values and jitter: coverage and calibration against the exact normal case, with fixed seeds."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from toyld.diagnosis import DEFAULT, resample
from toyld.diagnosis.resample import bootstrap_means, holm, interval, jitter, known_mean, p_value, running_jitter


def four_errors(p, n):
    """Four standard errors of a share seen in n independent trials."""
    return 4 * (p * (1 - p) / n) ** 0.5


# --- the bootstrap ------------------------------------------------------------------------------------------------


def coverage(n, runs, make_interval, seed=3):
    """Share of `runs` normal samples of n examples whose interval holds the true mean; each sample is a step."""
    x = np.random.default_rng(seed).normal(size=(runs, n)) + 7.0
    low, high = make_interval(x)
    return np.mean((low <= 7.0) & (high >= 7.0))


@pytest.mark.parametrize("n", [20, 100])
def test_intervals_cover_as_often_as_student_says(n):
    """The bootstrap mean has deviation s √((n−1)/n)/√n, so that the coverage is P(|t_{n−1}| ≤ z √((n−1)/n))."""
    runs, many = 1500, replace(DEFAULT, resamples=4000)
    expected = 1 - 2 * stats.t.sf(stats.norm.ppf(0.975) * ((n - 1) / n) ** 0.5, n - 1)
    # the two quantiles of 4000 shared resamples are themselves uncertain: √(.025 · .975/4000) each
    slack = four_errors(0.95, runs) + 4 * 2**0.5 * (0.025 * 0.975 / 4000) ** 0.5
    seen = coverage(n, runs, lambda x: interval(bootstrap_means({"x": x}, thresholds=many)["x"]))
    assert abs(seen - expected) < slack
    # teeth: an interval of one tail less, or for the spread of single examples, is seen as wrong
    narrow = coverage(
        n, runs, lambda x: interval(bootstrap_means({"x": x})["x"], thresholds=replace(DEFAULT, level=0.9))
    )
    assert abs(narrow - expected) > slack
    assert abs(coverage(n, runs, lambda x: np.quantile(x, [0.025, 0.975], axis=1)) - expected) > slack


def test_intervals_follow_the_level():
    means = np.random.default_rng(0).normal(size=(1000, 3))
    for level in (0.5, 0.9):
        low, high = interval(means, thresholds=replace(DEFAULT, level=level))
        inside = ((means >= low) & (means <= high)).mean(0)
        np.testing.assert_allclose(inside, level, atol=2 / 1000)


def test_differences_keep_their_pairing():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 50)) * 100
    means = bootstrap_means({"x": x, "y": x + np.array([[1.0], [2.0], [3.0], [4.0]])})
    gaps = means["y"] - means["x"]
    np.testing.assert_allclose(gaps, np.broadcast_to([1.0, 2.0, 3.0, 4.0], gaps.shape), atol=1e-11)
    # teeth: with resamples of their own, the same differences spread by tens of nats
    apart = bootstrap_means({"x": x}, seed=0)["x"] - bootstrap_means({"x": x}, seed=1)["x"]
    assert apart.std() > 10


def test_steps_are_paired_too():
    x = np.random.default_rng(2).normal(size=30) * 50
    means = bootstrap_means({"x": np.stack([x, x + 1.0])})["x"]
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 1.0, atol=1e-11)


def test_resampling_is_by_seed_and_not_by_block(monkeypatch):
    x = np.random.default_rng(5).normal(size=(3, 20))
    whole = bootstrap_means({"x": x}, seed=4)["x"]
    monkeypatch.setattr(resample, "_BLOCK", 20 * 7)
    np.testing.assert_array_equal(bootstrap_means({"x": x}, seed=4)["x"], whole)
    assert (bootstrap_means({"x": x}, seed=5)["x"] != whole).any()


def test_unknown_values_are_left_out_of_their_means():
    rng = np.random.default_rng(6)
    x = rng.normal(size=(1, 40)) + 5
    holes = np.concatenate([x, np.full((1, 40), np.nan)], axis=1)
    low, high = interval(bootstrap_means({"x": holes})["x"])
    full = interval(bootstrap_means({"x": x})["x"])
    # the number of known examples varies between resamples, by a share 1/√n of the width at most
    np.testing.assert_allclose((low[0], high[0]), (full[0][0], full[1][0]), atol=(full[1] - full[0])[0] * 3 / 40**0.5)
    assert low[0] < x.mean() < high[0]


def test_one_known_example_has_no_interval_and_two_have_one():
    x = np.full((3, 10), np.nan)
    x[1, 3], x[2, :2] = 1.0, (1.0, 2.0)
    low, high = interval(bootstrap_means({"x": x})["x"])
    assert np.isnan(low[:2]).all()
    assert np.isnan(high[:2]).all()
    assert (low[2], high[2]) == (1.0, 2.0)


def test_known_mean_is_nan_where_nothing_is_known():
    np.testing.assert_array_equal(known_mean(np.array([[np.nan, np.nan], [np.nan, 4.0], [1.0, 2.0]])), [np.nan, 4, 1.5])


# --- jitter --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 3.0])
def test_jitter_of_white_noise_is_its_deviation(sigma):
    n = 20_000
    noise = np.random.default_rng(7).normal(size=n) * sigma + np.linspace(0, 50 * sigma, n)
    # a median of n absolute normals has relative error 1.17/√n; second differences are dependent over 5, at most √5
    assert abs(jitter(noise) / sigma - 1) < 4 * 1.17 * 5**0.5 / n**0.5


def test_jitter_of_a_line_is_nothing_and_of_a_parabola_its_bend():
    assert jitter(np.arange(50.0) * 3 - 7) == 0.0
    assert jitter(np.arange(50.0) ** 2) == pytest.approx(2 / (stats.norm.ppf(0.75) * 6**0.5))


def test_too_few_evaluations_have_no_jitter():
    saw = np.array([0.0, 5.0] * 10)
    enough = int(DEFAULT.jitter_evaluations)
    assert jitter(saw[: enough - 1]) == 0.0
    assert jitter(saw[:enough]) > 5.0
    assert jitter(np.where(np.arange(20) < 13, np.nan, saw)) == 0.0


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(np.nan)), max_size=40))
def test_running_jitter_is_the_jitter_of_each_beginning(values):
    series = np.array(values, float)
    expected = [jitter(series[: t + 1]) for t in range(len(series))]
    np.testing.assert_array_equal(running_jitter(series), expected)


# --- p-values --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_p_is_students(units):
    x = np.array(units)
    if x.std(ddof=1) <= 1e-9 * np.abs(x).max():
        return
    expected = stats.ttest_1samp(x, 0.0, alternative="greater").pvalue
    assert p_value(x) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("n", [3, 10, 500])
def test_p_is_uniform_where_the_mean_is_zero(n):
    runs = 2000
    x = np.random.default_rng(8).normal(size=(runs, n))
    p = np.array([p_value(row) for row in x])
    for level in (0.01, 0.05, 0.5):
        assert abs(np.mean(p <= level) - level) < four_errors(level, runs)


def test_p_is_one_sided_and_leaves_the_unknown_out():
    x = np.array([1.0, 2.0, 4.0])
    assert p_value(x) < 0.1
    assert p_value(x) + p_value(-x) == pytest.approx(1.0)
    assert p_value(np.array([np.nan, *x, np.nan])) == p_value(x)


def test_p_of_units_without_spread_is_that_of_their_signs():
    assert p_value(np.full(10, 0.1)) == 2.0**-10
    assert p_value(np.full(10, -0.1)) == 1.0
    assert p_value(np.zeros(10)) == 1.0
    assert np.isnan(p_value(np.array([1.0])))
    assert np.isnan(p_value(np.array([np.nan, np.nan])))


# --- Holm ------------------------------------------------------------------------------------------------------------


def closed_testing(p):
    """Holm by its definition: i is rejected if Bonferroni rejects every set of hypotheses that holds i."""
    m = len(p)
    sets = [s for k in range(1, m + 1) for s in itertools.combinations(range(m), k)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(m)]


def test_holm_by_hand():
    # sorted .005, .01, .03, .04: × 4, 3, 2, 1 = .02, .03, .06, .04, and .04 may not be below .06
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02], rtol=1e-15)
    assert holm(np.array([])).size == 0
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p):
    np.testing.assert_allclose(holm(np.array(p)), closed_testing(p), rtol=1e-14)


def test_holm_leaves_what_was_not_tested_out_of_the_family():
    got = holm(np.array([np.nan, 0.01, np.nan, 0.02]))
    np.testing.assert_allclose(got, [np.nan, 0.02, np.nan, 0.02])


def test_holm_keeps_the_error_of_the_family():
    """Five true nulls, three of them one and the same: at most one family in twenty has a rejection."""
    runs = 4000
    u = np.random.default_rng(9).uniform(size=(runs, 3))
    families = np.concatenate([u, u[:, :1], u[:, :1]], axis=1)
    wrong = np.mean([holm(row).min() <= 0.05 for row in families])
    assert wrong < 0.05 + four_errors(0.05, runs)
    assert np.mean(families.min(1) <= 0.05) > 0.05 + four_errors(0.05, runs), "uncorrected, it would not"
