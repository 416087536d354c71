"""Proxies of ‖K‖_F that need no gradients: LBK and SignDelta as App. C.2 prints them, and as its notebook has them.

The two are different quantities and have different names here. Eq. 26 divides the change of *all* log-probabilities of
one response (V × L numbers) by ‖A_o‖_F ‖G_u‖_F, squared: `lbk`. The released notebook divides the change of the *summed
log-probability of the response*, one number for each of N = 500 probed examples, by √(mean A_o) · mean p_e, not
squared, where A_o is the logged norm (so its root enters) and p_e = ‖π − e‖ was logged from another response than the
chosen one (the argmax bug): `lbk_as_released`. It is a curve with a shape, but bounds nothing.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from toyld.checked import BadInput

__all__ = ["lbk", "lbk_as_released", "normaliser_norm2", "sign_delta", "sign_delta_as_released"]

Array = Any


def normaliser_norm2(probabilities: Array, /) -> Array:
    """‖A‖_F² = V − 2 + V‖π‖² at every position, (…,) from π (…, V) (Eq. 27-31); between V − 1 and 2V − 2.

    >>> import numpy as np
    >>> normaliser_norm2(np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]]))
    array([3., 6.])
    """
    xp = array_namespace(probabilities)
    size = probabilities.shape[-1]
    if probabilities.ndim == 0 or size < 2 or not bool(xp.all(xp.abs(xp.sum(probabilities, axis=-1) - 1.0) < 1e-3)):
        msg = "probabilities: expected rows that sum to 1 over V ≥ 2 classes, got others; "
        raise BadInput(msg + "take the softmax of logits, exp of log-probabilities")
    return size - 2.0 + size * xp.sum(probabilities * probabilities, axis=-1)


def lbk(change: Array, probabilities: Array, residual: Array, /) -> Array:
    """LBK_ou = ‖Δlog π‖_F² / (‖A_o‖_F² ‖G_u‖_F²), (O,): to first order at most η²‖K_ou‖_F² (Eq. 26).

    change: Δlog π (O, …, V) of one update, nats. probabilities: π(·|x_o) before it, in the same shape. residual: G of
    all that the update taught, (U, …, V) or (V,). Positions and taught inputs are summed: ‖Δ‖_F² = Σ_m ‖Δ_m‖²,
    ‖A_o‖_F² = Σ_m ‖A_m‖_F², ‖G‖_F² = Σ_l ‖G_l‖². Eq. 23-26 write G_o where the taught G_u stands.

    Proof. Stacked over positions Δ = −η diag(A_m) 𝐊 G, 𝐊 the matrix of all blocks K_{m,l} and diag(A_m) block-diagonal,
    G one column. Frobenius norms are submultiplicative, so ‖Δ‖ ≤ η ‖diag(A_m)‖_F ‖𝐊‖_F ‖G‖, and the squares of the two
    matrices are Σ_m ‖A_m‖_F² and Σ_{m,l} ‖K_{m,l}‖_F² = Σ_u ‖K_ou‖_F² (`frobenius`, squared). □ It is loose: operator
    norms would do, and A is a projection (A² = A), of ‖A‖_op = ‖I − A‖_op = ‖1πᵀ‖ = √V ‖π‖. So the largest V‖π_m‖²
    could stand for Σ_m ‖A_m‖_F², V − 1 times less at a flat π, and over L positions L times less again.

    Raises:
        BadInput: shapes that differ, rows that do not sum to 1, a residual that is 0.

    >>> import numpy as np
    >>> p, g = np.full((1, 4), 0.25), np.array([[0.25, 0.25, 0.25, -0.75]])
    >>> change = -0.1 * (g - (p * g).sum())                     # η = .1, K = I: of norm √V
    >>> bool(lbk(change, p, g)[0] <= 0.1**2 * 4), lbk(change, p, g).round(6)
    (True, array([0.003333]))
    """
    xp = array_namespace(change, probabilities, residual)
    if change.shape != probabilities.shape or change.ndim < 2 or residual.shape[-1:] != change.shape[-1:]:
        got = ", ".join(str(tuple(a.shape)) for a in (change, probabilities, residual))
        msg = f"expected change and probabilities (O, …, V) of one shape and a residual (…, V), got {got}; "
        raise BadInput(msg + "stack the observed inputs along a first axis")
    pushed = xp.sum(residual * residual)
    if not bool(pushed > 0.0):
        msg = f"residual: expected one that is not 0 everywhere, got ‖G‖² = {float(pushed)}; teach something"
        raise BadInput(msg)
    rest = tuple(range(1, change.ndim))
    norm2 = normaliser_norm2(probabilities)
    if len(rest) > 1:
        norm2 = xp.sum(norm2, axis=rest[:-1])
    return xp.sum(change * change, axis=rest) / (norm2 * pushed)


def sign_delta(change: Array, /) -> Array:
    """SignDelta_ou = E_{v,l}[log π^{t+1} − log π^t], (O,) nats: the mean of Δlog π (O, …, V) of an input.

    All classes weigh alike, the improbable ones too. To first order it is −V Cov_v(π, Δz) (mean over positions), with
    Cov over classes of equal weight: negative where the likelier classes are pushed up.

    >>> import numpy as np
    >>> sign_delta(np.array([[0.5, -0.25, -0.25, -1.0]]))
    array([-0.25])
    """
    xp = array_namespace(change)
    if change.ndim < 2:
        msg = f"change: expected shape (O, …, V), got {tuple(change.shape)}; stack observed inputs along a first axis"
        raise BadInput(msg)
    return xp.mean(change, axis=tuple(range(1, change.ndim)))


def lbk_as_released(logp: Array, a_norm: Array, residual_norm: Array, /) -> Array:
    """√(Σ_n (Δ logp_n)²) / √(mean_n A_o) / mean_n p_e between evaluations, (T − 1,): what the released notebook plots.

    logp: (T, N), the *summed* log-probability of each of N probed responses at T evaluations, in nats; a_norm: (T, N),
    the logged ‖A_o‖_F itself; residual_norm: (T, N), the logged p_e. The last two are taken at the later of the two
    evaluations. The numerator is summed over the N examples, so it grows like √N; nothing here is squared as in Eq. 26,
    Δ has one entry per example where Eq. 26 has V × L, and in logs with the argmax bug p_e (and an A_o without prefix)
    are those of the probe that was evaluated last, whatever response is plotted.

    >>> import numpy as np
    >>> logp = np.array([[-10.0, -20.0], [-7.0, -16.0]])
    >>> lbk_as_released(logp, np.full((2, 2), 25.0), np.full((2, 2), 0.5))    # √(9 + 16)/√25/.5
    array([2.])
    """
    xp, delta, size = _released(logp, a_norm, residual_norm)
    return xp.sqrt(xp.sum(delta * delta, axis=-1)) / size


def sign_delta_as_released(logp: Array, a_norm: Array, residual_norm: Array, /) -> Array:
    """mean_n Δ logp_n / √(mean_n A_o) / mean_n p_e between evaluations, (T − 1,): SignDelta as the notebook has it.

    Arguments as in `lbk_as_released`. App. C.2 divides by nothing and averages over V × L log-probabilities.

    >>> import numpy as np
    >>> logp = np.array([[-10.0, -20.0], [-7.0, -16.0]])
    >>> sign_delta_as_released(logp, np.full((2, 2), 25.0), np.full((2, 2), 0.5))
    array([1.4])
    """
    xp, delta, size = _released(logp, a_norm, residual_norm)
    return xp.mean(delta, axis=-1) / size


def _released(logp: Array, a_norm: Array, residual_norm: Array) -> tuple[Any, Array, Array]:
    xp = array_namespace(logp, a_norm, residual_norm)
    if logp.ndim != 2 or logp.shape[0] < 2 or logp.shape != a_norm.shape or logp.shape != residual_norm.shape:
        got = ", ".join(str(tuple(a.shape)) for a in (logp, a_norm, residual_norm))
        msg = f"expected three arrays (evaluations ≥ 2, examples) of one shape, got {got}; take one probe's columns"
        raise BadInput(msg)
    size = xp.sqrt(xp.mean(a_norm[1:, :], axis=-1)) * xp.mean(residual_norm[1:, :], axis=-1)
    return xp, logp[1:, :] - logp[:-1, :], size
