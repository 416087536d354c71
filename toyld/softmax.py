"""One softmax, one update: the closed forms behind Δlog π = −η·A·K·G when K = ‖x‖² I.

Logits z have shape (..., V) and any leading axes are a batch; a label y is an integer or an integer array of shape
(...); a step s = η‖x‖² is a number or an array of shape (...). A coefficient c scales the residual, c > 0 pulls the
label up (SFT has c = 1) and c < 0 pushes it down (the *negative gradient*, c = −1):

    z' = z − s c (π − e_y),        π = softmax(z).

Everything is a pure function on arrays of the caller's own library (numpy, torch with gradients, any array-API
namespace) and works in log space: probabilities of 1e-300 and logits of ±1e4 give finite, correctly signed answers
to 1e-12 relative in float64, except where a docstring says that the quantity itself is ill-conditioned. Input is
assumed valid; `toyld.checked` validates at the door. Lemma and claim numbers refer to Ren & Sutherland, *Learning
Dynamics of LLM Finetuning* (ICLR 2025), T-numbers to the theorems of `toyld.claims.squeeze`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from toyld._stable import cgf as _cgf
from toyld._stable import col as _col
from toyld._stable import logsumexp as _logsumexp
from toyld._stable import parts as _parts
from toyld._stable import pick as _pick

__all__ = [
    "alpha",
    "break_even",
    "displacement",
    "entropy",
    "entropy_rate",
    "jacobian",
    "log_alpha",
    "log_not",
    "log_softmax",
    "one_hot",
    "pair_residual",
    "residual",
    "runner_up",
    "safe_step",
    "sam_step",
    "softmax",
    "squeezing_ratio",
    "step",
    "taylor_radius",
    "threshold",
    "threshold_limit",
    "valley_depth",
    "water_filling",
    "winners",
]

Array = Any


def one_hot(z: Array, y: Any, /) -> Array:
    """Boolean mask (..., V) of the label: e_y.

    >>> import numpy as np
    >>> one_hot(np.zeros(3), 1)
    array([False,  True, False])
    """
    xp = array_namespace(z)
    classes = xp.arange(z.shape[-1], device=device(z))
    return classes == _col(y)


def log_softmax(z: Array, /) -> Array:
    """log π (..., V) in nats; exact to rounding also for the near-certain class.

    >>> import numpy as np
    >>> float(log_softmax(np.array([40.0, 0.0]))[0])  # not 0
    -4.248354255291589e-18
    """
    xp = array_namespace(z)
    _, _, shifted, rest = _parts(xp, z)
    return shifted - xp.log1p(rest)


def softmax(z: Array, /) -> Array:
    """π = softmax(z), shape (..., V).

    >>> import numpy as np
    >>> softmax(np.zeros(2))
    array([0.5, 0.5])
    """
    xp = array_namespace(z)
    w = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return w / xp.sum(w, axis=-1, keepdims=True)


def log_not(z: Array, y: Any, /) -> Array:
    """log(1 − π_y), shape (...), in nats: the log of what the *other* classes hold.

    >>> import numpy as np
    >>> float(log_not(np.array([800.0, 0.0]), 0))
    -800.0
    """
    xp = array_namespace(z)
    top, _, shifted, rest = _parts(xp, z)
    label = one_hot(z, y)
    p_y = xp.sum(xp.where(label & ~top, xp.exp(shifted), xp.zeros_like(z)), axis=-1) / (1.0 + rest[..., 0])
    # In log space, since the other classes may hold less than the smallest float; exactly one class is left out.
    second = _logsumexp(xp, xp.where(top, xp.full_like(z, -xp.inf), shifted))
    return xp.where(xp.any(label & top, axis=-1), second - xp.log1p(rest[..., 0]), xp.log1p(-p_y))


def jacobian(z: Array, /) -> Array:
    """A = ∂log π/∂z = I − 1πᵀ, shape (..., V, V) (§2, Eq. 3).

    A is the projection that removes the π-weighted mean: A² = A, A1 = 0, πᵀA = 0.

    >>> import numpy as np
    >>> jacobian(np.zeros(2))
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    xp = array_namespace(z)
    size = z.shape[-1]
    return xp.eye(size, dtype=z.dtype, device=device(z)) - softmax(z)[..., None, :]


def _numpy_residual(z: Array, y: int) -> Array:
    """`residual` with c = 1 for the commonest call, half of whose time would go into choosing the array library."""
    w = np.exp(z - np.maximum.reduce(z, axis=-1, keepdims=True))
    own = w[..., y, None].copy()
    w[..., y] = 0.0
    others = np.add.reduce(w, axis=-1, keepdims=True)
    own += others
    w /= own
    w[..., y, None] = -others / own
    return w


def residual(z: Array, y: Any, /, *, c: Any = 1.0) -> Array:
    """G = c (π − e_y), shape (..., V): the gradient of −c log π_y in z (§3.1, Eq. 5).

    The label's own entry is −c(1 − π_y) without cancellation.

    >>> import numpy as np
    >>> residual(np.zeros(4), 0)
    array([-0.75,  0.25,  0.25,  0.25])
    """
    if isinstance(z, np.ndarray) and isinstance(y, int):
        return _col(c) * _numpy_residual(z, y)
    xp = array_namespace(z)
    label = one_hot(z, y)
    w = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    others = xp.sum(xp.where(label, xp.zeros_like(w), w), axis=-1, keepdims=True)
    return _col(c) * xp.where(label, -others, w) / xp.sum(w, axis=-1, keepdims=True)


def pair_residual(z: Array, y_plus: Any, y_minus: Any, /, *, c_plus: Any = 1.0, c_minus: Any = -1.0) -> Array:
    """c₊(π − e₊) + c₋(π − e₋), shape (..., V): a preference pair at one shared context.

    With c₊ = −c₋ (DPO) the two π-terms cancel exactly and only the two labels move (theorem T10).

    >>> import numpy as np
    >>> pair_residual(np.zeros(3), 0, 2)
    array([-1.,  0.,  1.])
    """
    xp = array_namespace(z)
    zero = xp.zeros_like(z)
    plus = xp.where(one_hot(z, y_plus), zero + _col(c_plus), zero)
    minus = xp.where(one_hot(z, y_minus), zero + _col(c_minus), zero)
    return _col(c_plus + c_minus) * softmax(z) - plus - minus


def step(z: Array, g: Array, /, *, s: Any) -> Array:
    """One update z' = z − s g, for a residual g (..., V) and a step s = η‖x‖².

    >>> import numpy as np
    >>> z = np.log([0.70, 0.20, 0.08, 0.02])
    >>> softmax(step(z, residual(z, 3, c=-1.0), s=1.0)).round(4)
    array([0.8064, 0.1397, 0.0496, 0.0043])
    """
    return z - _col(s) * g


def displacement(z: Array, y: Any, /, *, s: Any, c: Any = -1.0) -> Array:
    """Δz = −s c (π − e_y), shape (..., V); by default the negative gradient.

    >>> import numpy as np
    >>> displacement(np.zeros(2), 0, s=1.0)
    array([-0.5,  0.5])
    """
    return -_col(s) * residual(z, y, c=c)


def runner_up(z: Array, y: Any, /) -> Array:
    """y* = argmax_{j ≠ y} π_j, shape (...): where the squeezed mass goes (Claim 2).

    >>> import numpy as np
    >>> int(runner_up(np.array([2.0, 1.0, 0.0]), 0))
    1
    """
    xp = array_namespace(z)
    return xp.argmax(xp.where(one_hot(z, y), xp.full_like(z, -xp.inf), z), axis=-1)


def log_alpha(z: Array, y: Any, /, *, s: Any, c: Any = -1.0) -> Array:
    """log α_i = log(π'_i/π_i), shape (..., V), nats (Lemma 1): α_i = 1/Σ_j π_j e^{Δz_j − Δz_i}.

    The entries of y and of y* are computed against themselves, where every term of the sum has one sign, so their
    sign is exact (Claims 1, 2). The others change sign at the threshold τ(s) and are ill-conditioned there.

    >>> import numpy as np
    >>> log_alpha(np.log([0.70, 0.20, 0.08, 0.02]), 3, s=1.0).round(4)
    array([ 0.1415, -0.3585, -0.4785, -1.5385])
    """
    xp = array_namespace(z)
    logp, d = log_softmax(z), displacement(z, y, s=s, c=c)
    out = d - _cgf(xp, logp, d)[..., None]
    label, star = one_hot(z, y), one_hot(z, runner_up(z, y))
    out = xp.where(label, -_cgf(xp, logp, d - _pick(xp, label, d))[..., None], out)
    # π_j − π_{y*} = π_{y*}(e^{z_j − z_{y*}} − 1) keeps its digits at near ties, where the difference would lose them.
    gap = xp.exp(_pick(xp, star, logp)) * xp.expm1(xp.where(label, xp.zeros_like(z), z - _pick(xp, star, z)))
    gap = xp.where(label, d - _pick(xp, star, d), -_col(s) * _col(c) * gap)
    return xp.where(star, -_cgf(xp, logp, gap)[..., None], out)


def alpha(z: Array, y: Any, /, *, s: Any, c: Any = -1.0) -> Array:
    """α_i = π'_i/π_i, shape (..., V) (Lemma 1). Prefer `log_alpha` for signs: float64 rounds α_{y*} to 1.

    >>> import numpy as np
    >>> alpha(np.log([0.70, 0.20, 0.08, 0.02]), 3, s=1.0).round(2)
    array([1.15, 0.7 , 0.62, 0.21])
    """
    xp = array_namespace(z)
    return xp.exp(log_alpha(z, y, s=s, c=c))


def threshold(z: Array, y: Any, /, *, s: Any) -> Array:
    """τ(s) = (1/s) log Σ_j π_j e^{s(π_j − 1[j=y])}, shape (...), for s > 0 (T1).

    After a negative step on y the classes i ≠ y above τ(s) gain and those below it lose. Cancels where it is near 0.

    >>> import numpy as np
    >>> float(threshold(np.log([0.70, 0.20, 0.08, 0.02]), 3, s=1.0).round(4))
    0.5585
    """
    xp = array_namespace(z)
    return _cgf(xp, log_softmax(z), displacement(z, y, s=s)) / s


def threshold_limit(z: Array, y: Any, /) -> Array:
    """τ(0+) = ‖π‖² − π_y, shape (...) (T2): above it a class gains to first order. Cancels where it is near 0.

    >>> import numpy as np
    >>> round(float(threshold_limit(np.log([0.70, 0.20, 0.08, 0.02]), 3)), 4)
    0.5168
    """
    xp = array_namespace(z)
    return xp.sum(softmax(z) * residual(z, y), axis=-1)


def winners(z: Array, y: Any, /, *, s: Any, c: Any = -1.0) -> Array:
    """Boolean (..., V): the classes with α_i > 1.

    >>> import numpy as np
    >>> winners(np.log([0.70, 0.20, 0.08, 0.02]), 3, s=1.0)
    array([ True, False, False, False])
    """
    return log_alpha(z, y, s=s, c=c) > 0.0


def break_even(z: Array, q: Array, /) -> Array:
    """E_{y∼q}[τ(0+)] = ‖π‖² − ⟨q, π⟩, shape (...) (T7): 0 on-policy, ‖π‖² − 1/V for uniform labels.

    >>> import numpy as np
    >>> float(break_even(np.zeros(4), softmax(np.zeros(4))))
    0.0
    """
    xp = array_namespace(z)
    p = softmax(z)
    return xp.sum(p * (p - q), axis=-1)


def entropy(z: Array, /) -> Array:
    """H(π) = −Σ π log π, shape (...), nats.

    >>> import numpy as np
    >>> round(float(entropy(np.zeros(4))), 4)  # log 4
    1.3863
    """
    xp = array_namespace(z)
    logp = log_softmax(z)
    p = xp.exp(logp)
    return -xp.sum(p * xp.where(p > 0.0, logp, xp.zeros_like(logp)), axis=-1)


def entropy_rate(z: Array, v: Array, /) -> Array:
    """dH/dε at z + εv: −Cov_π(log π, v), shape (...) (T6; Cui et al. 2025). v has the shape of z.

    >>> import numpy as np
    >>> z = np.array([1.0, 0.0])
    >>> float(entropy_rate(z, z)) < 0  # sharpening lowers it
    True
    """
    xp = array_namespace(z)
    logp = log_softmax(z)
    p = xp.exp(logp)
    centred = xp.where(p > 0.0, logp, xp.zeros_like(logp)) + entropy(z)[..., None]
    return -xp.sum(p * centred * (v - xp.sum(p * v, axis=-1, keepdims=True)), axis=-1)


def valley_depth(z: Array, y: Any, /) -> Array:
    """−log π_y − H(π), shape (...), nats (T6). At 0 or above, y is a *valley* and pushing it down lowers H.

    Where π_y rounds to 1 both terms vanish and the depth reads 0: the top class is no valley, unless all are equal.

    >>> import numpy as np
    >>> round(float(valley_depth(np.log([0.70, 0.20, 0.08, 0.02]), 3)), 2)
    3.06
    """
    xp = array_namespace(z)
    return -_pick(xp, one_hot(z, y), log_softmax(z))[..., 0] - entropy(z)


def squeezing_ratio(z: Array, y: Any, /, *, s: Any) -> Array:
    """ρ = Δπ_{y*}/|Δπ_y| after a negative step on y, shape (...) (T12): the mass y* gets per unit taken from y.

    NaN where (1 − π_y)² underflows (1 − π_y below about 1e-154).

    >>> import numpy as np
    >>> q = np.array([0.7, 0.2, 0.1])
    >>> [round(float(squeezing_ratio(np.log([*((1 - p) * q), p]), 3, s=0.5)), 2) for p in (0.001, 0.05, 0.4)]
    [98.42, 2.63, 0.92]
    """
    xp = array_namespace(z)
    logp, change = log_softmax(z), log_alpha(z, y, s=s)
    own, star = one_hot(z, y), one_hot(z, runner_up(z, y))
    odds = xp.exp(_pick(xp, star, logp) - _pick(xp, own, logp))
    return (odds * xp.expm1(_pick(xp, star, change)) / -xp.expm1(_pick(xp, own, change)))[..., 0]


def taylor_radius(v: Array, /) -> Array:
    """π/(max v − min v), shape (...): log Σ e^{z + εv} is analytic for |ε| below it, at every z.

    A lower bound of the radius of convergence: first order need not be good there (Sao 2026, 2603.13552; T11).

    >>> import numpy as np
    >>> float(taylor_radius(np.array([1.0, 0.0]))) == np.pi
    True
    """
    xp = array_namespace(v)
    return math.pi / (xp.max(v, axis=-1) - xp.min(v, axis=-1))


def safe_step(z: Array, y: Any, /) -> Array:
    """π/(1 + π_{y*} − π_y), shape (...): the Taylor radius of a negative step on y (T11), never below π/2.

    >>> import numpy as np
    >>> float(safe_step(np.zeros(2), 0)) == np.pi
    True
    """
    return taylor_radius(residual(z, y))


def sam_step(z: Array, y: Any, /, *, s: Any, rho: Any, c: Any = -1.0) -> Array:
    """One logits-SAM update, shape (..., V): the residual taken at z̃ = z + ρ G/‖G‖, G = c(π − e_y).

    ρ > 0 always climbs the loss that the step descends (Luo et al., ICLR 2026, arXiv 2603.18258, with ‖x‖ = 1).

    >>> import numpy as np
    >>> softmax(sam_step(np.log([0.70, 0.20, 0.08, 0.02]), 3, s=1.0, rho=0.5)).round(3)  # plain: 0.806 at the top
    array([0.794, 0.149, 0.052, 0.005])
    """
    xp = array_namespace(z)
    g = residual(z, y, c=c)
    g = g / xp.max(xp.abs(g), axis=-1, keepdims=True)  # g² would underflow near certainty
    unit = g / xp.sqrt(xp.sum(g * g, axis=-1, keepdims=True))
    return step(z, residual(z + _col(rho) * unit, y, c=c), s=s)


def water_filling(mu: Array, reward: Array, /, *, baseline: Any) -> Array:
    """AsymRE's limit law, shape (..., V): [μ(r − b) − λ]₊/(E_μ r − b), for b < E_μ r (2506.20520, Thm 4.2).

    The gradient flow of Σ μ(y)(r(y) − b) log π(y) ends there from every start; λ normalises.

    >>> import numpy as np
    >>> water_filling(np.full(4, 0.25), np.array([1.0, 0.0, 0.0, 0.0]), baseline=0.0)
    array([1., 0., 0., 0.])
    """
    xp = array_namespace(mu, reward)
    w = mu * (reward - _col(baseline))
    total = xp.sum(w, axis=-1, keepdims=True)
    falling = xp.flip(xp.sort(w, axis=-1), axis=-1)
    count = xp.astype(xp.arange(1, w.shape[-1] + 1, device=device(w)), w.dtype)
    level = (xp.cumulative_sum(falling, axis=-1) - total) / count
    inside = xp.sum(xp.astype(falling > level, w.dtype), axis=-1, keepdims=True)
    lam = xp.sum(xp.where(count == inside, level, xp.zeros_like(level)), axis=-1, keepdims=True)
    return xp.where(w > lam, (w - lam) / total, xp.zeros_like(w))
