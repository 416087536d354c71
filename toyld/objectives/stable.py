"""Elementary functions that stay finite at margins of ±1e4 and log-probabilities of −1e4, on any array library.

Only what the losses need; each takes one floating array of any shape and returns one of the same
shape, is differentiable in torch, and is written in log space so that neither value nor derivative overflows.
"""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

__all__ = ["detach", "exp_saturating", "log1mexp", "positive_part", "sigmoid", "softplus"]

Array = Any


def softplus(x: Array, /) -> Array:
    """log(1 + eˣ) = −log σ(−x), exact to rounding for every x.

    >>> import numpy as np
    >>> softplus(np.asarray([-1e4, 0.0, 1e4])).round(4).tolist()
    [0.0, 0.6931, 10000.0]
    """
    xp = array_namespace(x)
    # One branch at a time, x ≤ 0 written as log1p(eˣ) and x > 0 as x + log1p(e⁻ˣ): derivatives of every order are right
    # on both sides and at 0 (where |x| would lose the second) and finite far out (where logaddexp's second is nan).
    above = x > 0
    return xp.where(above, x, xp.zeros_like(x)) + xp.log1p(xp.exp(xp.where(above, -x, x)))


def sigmoid(x: Array, /) -> Array:
    """σ(x) = exp(−softplus(−x)): no overflow on either side, and full relative precision for x → −∞.

    >>> import numpy as np
    >>> sigmoid(np.asarray([-1e4, 0.0, 1e4])).round(4).tolist()
    [0.0, 0.5, 1.0]
    """
    return array_namespace(x).exp(-softplus(-x))


def positive_part(x: Array, /) -> Array:
    """max(x, 0), with derivative 0 at the kink (as torch.relu has it).

    >>> import numpy as np
    >>> positive_part(np.asarray([-2.0, 0.0, 3.0])).tolist()
    [0.0, 0.0, 3.0]
    """
    xp = array_namespace(x)
    return xp.where(x > 0, x, xp.zeros_like(x))


def log1mexp(x: Array, /) -> Array:
    """log(1 − eˣ) for x < 0, the log-probability of the complement; −inf at x = 0.

    Switches at −log 2 between log(−expm1 x) and log1p(−eˣ), each precise on its side.

    >>> import numpy as np
    >>> bool(np.isclose(log1mexp(np.asarray(-50.0)), -np.exp(-50.0), rtol=1e-12, atol=0))
    True
    """
    xp = array_namespace(x)
    near = x > -math.log(2.0)
    # Each branch is fed a harmless number where it is not used: a nan in an unused branch would reach the gradient.
    safe = xp.full_like(x, -1.0)
    return xp.where(near, xp.log(-xp.expm1(xp.where(near, x, safe))), xp.log1p(-xp.exp(xp.where(near, safe, x))))


def exp_saturating(x: Array, /) -> tuple[Array, Array]:
    """eˣ and its derivative, continued by its tangent beyond 85 % of the dtype's largest exponent.

    e^x for x ≤ cap, e^cap (1 + x − cap) beyond: importance ratios of a token the old policy gave e^−1e4 keep a finite
    value and a derivative of the right sign. cap = 603 in float64, 75 in float32; below it this is exactly exp.

    >>> import numpy as np
    >>> value, slope = exp_saturating(np.asarray([0.0, 1e4]))
    >>> float(value[0]), float(slope[0]), bool(np.isfinite(value[1])), bool(slope[1] > 0)
    (1.0, 1.0, True, True)
    """
    xp = array_namespace(x)
    cap = 0.85 * math.log(xp.finfo(x.dtype).max)
    below = x < cap
    slope = xp.exp(xp.where(below, x, xp.full_like(x, cap)))
    return slope * (1.0 + xp.where(below, xp.zeros_like(x), x - cap)), slope


def detach(x: Array, /) -> Array:
    """x, cut off from the gradient where the array library has one (torch); x itself elsewhere.

    >>> import numpy as np
    >>> detach(np.asarray(2.0)).item()
    2.0
    """
    return x.detach() if hasattr(x, "detach") else x
