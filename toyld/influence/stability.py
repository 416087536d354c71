"""Whether influence keeps its order while a network trains: rank correlations of ‖K_uo‖ between checkpoints (App. C.1).

The paper assumes that the *relative* influence of x_u on different x_o is stable, that is the order of ‖K_uo‖_F over
observers o, not K itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toyld.checked import BadInput

__all__ = ["RankStability", "rank_stability", "standing"]


def standing(x: ArrayLike, /, *, axis: int = -1) -> NDArray[np.float64]:
    """Ranks along an axis, ties by their mean, centred, of length 1: Spearman's correlation is an inner product.

    NaN where all are equal.

    >>> round(float(standing([1.0, 2.0, 3.0]) @ standing([0.1, 0.5, 0.2])), 6)
    0.5
    """
    from scipy.stats import rankdata

    ranks = rankdata(x, axis=axis)
    ranks -= ranks.mean(axis, keepdims=True)
    size = np.sqrt((ranks * ranks).sum(axis, keepdims=True))
    return np.divide(ranks, size, out=np.full_like(ranks, np.nan), where=size > 0.0)


class RankStability(NamedTuple):
    """Spearman correlations over observers for every taught input, (C − 1, …, U); nan where all norms are equal.

    consecutive: row c compares checkpoint c + 1 with c; to_last: row c compares the last with c.
    """

    consecutive: NDArray[np.float64]
    to_last: NDArray[np.float64]


def rank_stability(norms: ArrayLike, /) -> RankStability:
    """Spearman's rank correlation of {‖K_uo‖}_o between checkpoints, from norms (C, …, O, U) as `frobenius` gives them.

    Further axes, such as seeds, stand between and are kept. Ties take their mean rank. Where x_u is among the
    observers, ‖K_uu‖ is nearly always the largest and adds agreement that is no finding: leave it out, or say so.

    Raises:
        BadInput: fewer than 2 checkpoints or 3 observers, norms that are not finite.

    >>> early, late = [[1.0], [2.0], [3.0]], [[1.0], [30.0], [2.0]]      # three observers, one taught input
    >>> found = rank_stability([early, late, late])
    >>> found.consecutive.ravel(), found.to_last.ravel()
    (array([0.5, 1. ]), array([0.5, 1. ]))
    """
    try:
        array = np.asarray(norms, float)
    except (TypeError, ValueError):
        msg = "norms: expected an array of numbers (C, …, O, U), got something else; stack the checkpoints' norms"
        raise BadInput(msg) from None
    if array.ndim < 3 or array.shape[0] < 2 or array.shape[-2] < 3:
        msg = f"norms: expected shape (C ≥ 2, …, O ≥ 3, U), got {array.shape}; stack the checkpoints' norms"
        raise BadInput(msg)
    if not np.isfinite(array).all():
        msg = f"norms: expected finite numbers, got {int((~np.isfinite(array)).sum())} others; look at the networks"
        raise BadInput(msg)
    unit = standing(array, axis=-2)
    return RankStability((unit[1:] * unit[:-1]).sum(-2), (unit[-1:] * unit[:-1]).sum(-2))
