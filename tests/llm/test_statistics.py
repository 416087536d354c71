"""One pass over tiles of the vocabulary: against mpmath near certainty, against float64 elsewhere, ties and −inf."""

import doctest
import importlib

import mpmath
import numpy as np
import pytest
import torch

from toyld.llm import statistics
from toyld.llm.statistics import merge, numbers, scan, sums
from toyld.llm.wanted import Rows, Wanted

EPS32 = float(np.finfo(np.float32).eps)


def plain(z, rows, labels):
    """The six numbers by the formulas as one would write them down, in float64."""
    log_pi = z.double().log_softmax(1)[rows]
    pi = log_pi.exp()
    label = log_pi.gather(1, labels[:, None])[:, 0]
    e = torch.nn.functional.one_hot(labels, z.shape[1])
    entropy = torch.special.entr(pi).sum(1)
    numbers = [label, log_pi.amax(1), entropy, pi.amax(1), pi.square().sum(1), (pi - e).norm(dim=1)]
    return torch.stack(numbers).numpy()


def scanned(z, rows, labels, width=None, n=None, monkeypatch=None):
    """`scan` of rows of logits as their own features, in tiles of `width`."""
    if monkeypatch is not None:
        monkeypatch.setitem(statistics.TILES, "cpu", (n, width))
    return scan(z, lambda some, a, b: some[:, a:b].clone(), z.shape[1], rows, labels).numpy()


@pytest.mark.parametrize(("n", "width"), [(100, 1000), (7, 64), (12, 9), (16, 256), (5, 333)])
@pytest.mark.parametrize("spread", [0.1, 4.0, 40.0])
def test_tiles_of_any_size_give_the_formulas_in_float64(n, width, spread, monkeypatch):
    draw = torch.Generator().manual_seed(3)
    z = spread * torch.randn(23, 700, generator=draw, dtype=torch.float64)
    rows = torch.randint(0, 23, (60,), generator=draw).sort()[0]
    labels = torch.randint(0, 700, (60,), generator=draw)
    labels[::3] = z[rows[::3]].argmax(1)
    labels[1::3] = z[rows[1::3], :width].argmax(1)  # of the first tile alone
    found = scanned(z, rows, labels, width, n, monkeypatch)
    np.testing.assert_allclose(found, plain(z, rows, labels), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("gap", [0.0, 1e-3, 1.0, 8.0, 18.5, 30.0, 43.0])
@pytest.mark.parametrize("width", [2, 3, 8])
def test_float32_keeps_its_digits_near_certainty(gap, width, monkeypatch):
    """Logits 0 and −gap, gap + 1, …: log π(y) = −1.9e-8 is not 0; the reference has 50 digits."""
    z = -gap - torch.arange(8.0)
    z[5] = 0.0
    found = scanned(z[None].repeat(2, 1), torch.tensor([0, 1]), torch.tensor([5, 2]), width, 1, monkeypatch)
    with mpmath.workdps(50):
        e = [mpmath.exp(mpmath.mpf(float(x))) for x in z]
        pi = [x / mpmath.fsum(e) for x in e]
        for k, y in enumerate((5, 2)):
            entropy = -mpmath.fsum(p * mpmath.log(p) for p in pi)
            residual = mpmath.sqrt(mpmath.fsum((p - (i == y)) ** 2 for i, p in enumerate(pi)))
            wanted = [mpmath.log(pi[y]), mpmath.log(max(pi)), entropy, max(pi), mpmath.fsum(p**2 for p in pi), residual]
            # a few roundings of a logit, and of e^z by gap · ε/2
            np.testing.assert_allclose(found[:, k], [float(x) for x in wanted], rtol=(8 + gap) * EPS32)
    assert found[0, 0] < 0
    assert (found[1] >= found[0]).all()


def test_the_argmax_is_never_below_the_label_and_ties_count_once(monkeypatch):
    z = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0, -2.0]])
    rows, labels = torch.zeros(6, dtype=torch.long), torch.arange(6)
    for width in (1, 2, 4, 6):
        found = scanned(z, rows, labels, width, 1, monkeypatch)
        np.testing.assert_allclose(found, plain(z, rows, labels), rtol=8 * EPS32)
        assert (found[1] >= found[0]).all()
        np.testing.assert_array_equal(found[0, [1, 2, 4]], found[1, 0])


@pytest.mark.parametrize("width", [1, 2, 5])
def test_tokens_that_cannot_occur_and_rows_that_are_not_numbers(width, monkeypatch):
    inf = float("inf")
    z = torch.tensor(
        [[0.0, -inf, -inf, -inf, -inf], [-inf, -inf, -inf, 2.0, 1.0], [-inf] * 5, [0, 1, float("nan"), 2, 3]]
    )
    found = scanned(z, torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 3, 2, 0]), width, 3, monkeypatch)
    assert found[:, 0].tolist() == [0, 0, 0, 1, 1, 0]
    assert found[0, 1] == -inf
    np.testing.assert_allclose(
        found[:, 2], plain(z[1:2, 3:], torch.tensor([0]), torch.tensor([0]))[:, 0], rtol=8 * EPS32
    )
    assert np.isnan(found[:, 3:]).all()


def test_merging_is_associative_and_loses_nothing():
    draw = torch.Generator().manual_seed(5)
    z = 5 * torch.randn(40, 96, generator=draw, dtype=torch.float64)
    a, b, c = (sums(part.clone(), first=first) for part, first in ((z[:, :10], 0), (z[:, 10:70], 10), (z[:, 70:], 70)))
    left, right, whole = merge(merge(a, b), c), merge(a, merge(b, c)), sums(z.clone())
    for name in ("top", "at", "others", "squares", "weighted"):
        torch.testing.assert_close(getattr(left, name), getattr(right, name), rtol=1e-13, atol=0)
        torch.testing.assert_close(getattr(left, name), getattr(whole, name), rtol=1e-12, atol=0)


def lost(a, b):
    """The smaller maximum of two tiles is forgotten."""
    right = merge(a, b)
    down = (torch.minimum(a.top, b.top) - right.top).exp()
    return statistics.Sums(right.top, right.at, right.others - down, right.squares, right.weighted)


def unscaled(a, b):
    """The sums of the lower tile are added as they are."""
    right = merge(a, b)
    return statistics.Sums(right.top, right.at, a.others + b.others + 1, right.squares, right.weighted)


def first_tile(a, b):
    """The argmax is that of the first tile."""
    right = merge(a, b)
    return statistics.Sums(right.top, a.at, right.others, right.squares, right.weighted)


@pytest.mark.parametrize("wrong", [lost, unscaled, first_tile])
def test_a_planted_bug_in_the_merge_is_seen(wrong, monkeypatch):
    test_tiles_of_any_size_give_the_formulas_in_float64(16, 256, 4.0, monkeypatch)
    monkeypatch.setattr(statistics, "merge", wrong)
    with pytest.raises(AssertionError):
        test_tiles_of_any_size_give_the_formulas_in_float64(16, 256, 4.0, monkeypatch)


def test_the_blocks_that_find_the_largest_are_an_argmax():
    draw = torch.Generator().manual_seed(1)
    for width in (64, 256, 320, 1000, 2048):
        z = torch.randint(0, 50, (30, width), generator=draw).float()  # many ties
        top, at = statistics._max(z)
        torch.testing.assert_close(top, z.amax(1))
        torch.testing.assert_close(z.gather(1, at[:, None])[:, 0], top)


def test_rows_are_read_where_they_lie_and_handed_back_in_order():
    """Two tensors behind each other; a row that stands before two labels is computed once."""
    draw = torch.Generator().manual_seed(2)
    z = torch.randn(9, 20, generator=draw)

    class Head:
        seen = 0

        def scan(self, features, rows, labels):
            self.seen += len(features)
            assert isinstance(features, Rows)
            return scan(features, lambda some, a, b: some[:, a:b].clone(), 20, rows, labels)

    wanted, head = Wanted(), Head()
    wanted.add([7, 0, 2], [3, 4, 5])
    wanted.add([2, 2], [5, 6])
    first, second = wanted.read(head, [z[:4], z[4:]])
    assert head.seen == 3
    np.testing.assert_allclose(first, plain(z, torch.tensor([7, 0, 2]), torch.tensor([3, 4, 5])), rtol=20 * EPS32)
    np.testing.assert_allclose(second, plain(z, torch.tensor([2, 2]), torch.tensor([5, 6])), rtol=20 * EPS32)
    assert numbers(sums(z.clone()), z[0, :1], torch.tensor([0]), torch.tensor([0])).shape == (6, 1)


@pytest.mark.parametrize("name", ["statistics", "shared"])
def test_examples_in_the_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"toyld.llm.{name}"))
    assert tried
    assert not failed
