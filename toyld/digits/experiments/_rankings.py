"""Numbers on the norms ‖K_uo‖ of many pairs: rankings over observers, class means, who couples with whom (App. C.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.digits.data import CLASSES
from toyld.influence.stability import standing

__all__ = [
    "alike",
    "apart",
    "at_equal_change",
    "by_class",
    "kept",
    "lead",
    "over_observers",
    "partners",
    "relative",
    "shared",
    "swapped",
]

Floats = NDArray[np.float64]


def relative(norms: Floats, own: Floats, /) -> Floats:
    """‖K_uo‖/√(‖K_uu‖‖K_oo‖) (…, O, U), 0 to 1; norms (…, O, U), own (…, O) with the taught ones first.

    >>> relative(np.array([[4.0], [3.0]]), np.array([4.0, 9.0])).tolist()
    [[1.0], [0.5]]
    """
    return norms / np.sqrt(own[..., :, None] * own[..., None, : norms.shape[-1]])


def by_class(norms: Floats, of: Any, taught: Any, /) -> Floats:
    """Class-by-class means (…, 10, 10) of norms (…, O, U) over observers of classes of, taught ones first; symmetrised.

    An image's norm with itself is left out.

    >>> m = by_class(np.array([[9.0, 2.0], [2.0, 9.0], [4.0, 1.0]]), [0, 1, 1], [0, 1])
    >>> m[:2, :2].tolist()                                             # (0, 1): mean of 2 and 4 one way, of 2 the other
    [[nan, 2.5], [2.5, 1.0]]
    """
    at, by = (np.eye(CLASSES)[np.asarray(c)] for c in (of, taught))
    known = 1.0 - np.eye(len(at), len(by))
    count = at.T @ known @ by
    with np.errstate(invalid="ignore"):
        mean = (at.T @ (norms * known) @ by) / count
    return (mean + np.swapaxes(mean, -1, -2)) / 2.0


def alike(matrix: Floats, a: int, b: int, /) -> Floats:
    """How much more two classes couple than they do with others: log M_ab − mean over k ≠ a, b of log M_ak and M_bk.

    >>> m = np.ones((10, 10)); m[4, 9] = m[9, 4] = np.e
    >>> float(alike(m, 4, 9)), round(float(alike(m, 4, 8)), 4)
    (1.0, -0.0625)
    """
    logs, others = np.log(matrix), [k for k in range(matrix.shape[-1]) if k not in (a, b)]
    return logs[..., a, b] - (logs[..., a, others].mean(-1) + logs[..., b, others].mean(-1)) / 2.0


def lead(matrix: Floats, a: int, b: int, /) -> Floats:
    """log M_ab − max over k ≠ a, b of log M_ak: positive where b is the class that couples with a most.

    >>> m = np.ones((10, 10)); m[4, 9] = np.e
    >>> float(lead(m, 4, 9)), float(lead(m, 4, 8))
    (1.0, -1.0)
    """
    logs, others = np.log(matrix), [k for k in range(matrix.shape[-1]) if k not in (a, b)]
    return logs[..., a, b] - logs[..., a, others].max(-1)


def partners(matrix: Floats, /) -> NDArray[np.int64]:
    """For every class the other class with the largest mean norm, (…, 10, 10) → (…, 10).

    >>> m = np.full((10, 10), 0.5); m[4, 4], m[4, 9], m[4, 7] = 9.0, 2.0, 1.0
    >>> int(partners(m)[4])
    9
    """
    return np.where(np.eye(matrix.shape[-1], dtype=bool), -np.inf, matrix).argmax(-1)


def over_observers(x: Floats, y: Floats, /) -> Floats:
    """Mean over u of the rank correlation over o, (…, O, U) twice → (…,).

    >>> x = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    >>> round(float(over_observers(x, x)), 6), round(float(over_observers(x, x[:, ::-1])), 6)
    (1.0, -1.0)
    """
    return (standing(np.swapaxes(x, -1, -2)) * standing(np.swapaxes(y, -1, -2))).sum(-1).mean(-1)


def apart(kernels: Floats, which: Any, /) -> tuple[Floats, Floats]:
    """How far kernels (T, O, V, U, V) are from each other, (T, T) twice, means over the pairs (O, U) that are True.

        E‖K − K'‖/√(k k'),   E‖K/k − K'/k'‖,   k, k': mean norms

    The second is the change of shape: a factor on all of a kernel, which can alter no ranking, does not enter.

    >>> k = np.arange(1.0, 9.0).reshape(2, 2, 1, 2)
    >>> [round(float(x[0, 1]), 6) for x in apart(np.stack([k, 4.0 * k]), np.ones((2, 1), dtype=bool))]
    [1.5, 0.0]
    """
    flat = kernels.transpose(1, 3, 0, 2, 4)[which].reshape(-1, len(kernels), kernels.shape[2] * kernels.shape[4])
    inner = flat @ flat.swapaxes(1, 2)  # (pairs, T, T)
    square = np.einsum("ptt->pt", inner)
    size = np.sqrt(square).mean(0)

    def between(scale: Floats) -> Floats:
        own = square / scale**2
        left = own[:, :, None] + own[:, None, :] - 2.0 * inner / np.outer(scale, scale)
        return np.sqrt(np.maximum(left, 0.0)).mean(0)

    return between(np.ones_like(size)) / np.sqrt(np.outer(size, size)), between(size)


def swapped(norms: Floats, taught: Any, /) -> Floats:
    """Mean over pairs u, u' of different classes of the rank correlation over o of their norms, (…, O, U) → (…,).

    >>> x = np.array([[1.0, 3.0, 9.0], [2.0, 2.0, 8.0], [3.0, 1.0, 7.0]])
    >>> round(float(swapped(x, [0, 1, 1])), 6)                          # the last two are of one class
    -1.0
    """
    rows = standing(np.swapaxes(norms, -1, -2))
    apart = np.not_equal.outer(np.asarray(taught), np.asarray(taught))
    return (rows @ np.swapaxes(rows, -1, -2))[..., apart].mean(-1)


def shared(norms: Floats, /) -> Floats:
    """Of the variance over o of log ‖K_uo‖, the share that is the same for all u, (…, O, U) → (…,).

    1 where one size of each observer says all; 1/U where every u has a ranking of its own, that of noise.

    >>> size, own = np.outer([1.0, 2.0, 5.0], [1.0, 3.0]), np.array([[1.0, 2.0], [2.0, 1.0]])
    >>> round(float(shared(size)), 6), round(float(shared(own)), 6)
    (1.0, 0.0)
    """
    logs = np.log(norms)
    logs = logs - logs.mean(-2, keepdims=True)
    return (logs.mean(-1) ** 2).mean(-1) / (logs**2).mean((-2, -1))


def kept(norms: Floats, which: Any, /) -> Floats:
    """The norms (…, O', U) of the observers kept, which (O, U) is True, as many for every u.

    >>> kept(np.array([[1.0, 2.0], [3.0, 4.0]]), ~np.eye(2, dtype=bool)).tolist()
    [[3.0, 2.0]]
    """
    mask = np.asarray(which).T
    at = np.nonzero(mask)[1].reshape(len(mask), -1).T
    return np.take_along_axis(norms, np.broadcast_to(at, (*norms.shape[:-2], *at.shape)), -2)


def at_equal_change(change: Floats, rank: Floats, wanted: float, /) -> float:
    """The rank correlation with the start where the kernel has changed by `wanted`, both (T,) along training.

    Linear between the last checkpoint before that and the first one after; NaN if it never changes so much.

    >>> at_equal_change(np.array([0.0, 0.2, 0.6]), np.array([1.0, 0.9, 0.5]), 0.3)
    0.8
    """
    there = np.flatnonzero(change >= wanted)
    if not len(there):
        return float("nan")
    k = int(there[0])
    if k == 0:
        return float(rank[0])
    part = (wanted - change[k - 1]) / (change[k] - change[k - 1])
    return float(rank[k - 1] + part * (rank[k] - rank[k - 1]))
