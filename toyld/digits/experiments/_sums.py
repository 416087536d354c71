"""First-order changes summed over a run of SGD with momentum, from rates measured at some of its updates.

    m_t = μ m_{t−1} + r_t,   change = Σ_t η_t m_t

r_t = −A K G is the change of log π per unit of the rate, at update t; between the measured ones it is interpolated
linearly. What is linear in the rates is a matrix, so that one matrix serves all seeds, classes and images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toyld.digits.ensemble import Recipe

__all__ = ["summed"]


def summed(recipe: Recipe, n: int, at: Sequence[int], /) -> NDArray[np.float64]:
    """W (K, K): the change up to update at[a] is Σ_b W_ab r_b, with r_b the rates at the updates `at`, from 0 on.

    >>> summed(Recipe(lr=1.0, momentum=0.5, batch=1, epochs=3, cosine=False), 1, [0, 1, 3])
    array([[0.  , 0.  , 0.  ],
           [1.  , 0.  , 0.  ],
           [1.75, 2.  , 0.5 ]])
    """
    every = np.arange(at[-1])
    rates = np.stack([np.interp(every, at, one) for one in np.eye(len(at))], 1)  # (update, K)
    memory, change, out = np.zeros(len(at)), np.zeros(len(at)), [np.zeros(len(at))]
    for update in every:
        memory = recipe.momentum * memory + rates[update]
        change = change + recipe.rate(int(update), n) * memory
        if update + 1 in at:
            out.append(change)
    return np.stack(out)
