"""Compiled kernels of `toyld.rollout`: many updates z ← z − s(Cπ − Σ_l c_l e_l) of one softmax, C = Σ_l c_l.

Importing this module imports numba, so `rollout` does it when a run starts. What every kernel relies on:

- A label is a float64 number beside its row, never an entry of the row's sums: the *others* keep weights
  w_j = e^{z_j − m} and their sum S, so 1 − π_y = S/(S + e^{z_y − m}) has no cancellation however certain the label is.
- The logits x = z − m are carried, not only the weights, so a weight that underflowed comes back exactly. The
  reference m only keeps S away from the ends of the number range; it moves along with a later pass once S drifts off.
- One update is one pass, x_j −= k w_j and w_j = e^{x_j} together: one exponential per class and update.

The exponential is e^x = 2^n e^r with a polynomial for e^r (relative minimax on |r| ≤ ½ log 2: 3e-9 for float32, 4e-18
for float64, before rounding), since numba has no vectorised one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

__all__ = ["LANE", "lanes", "rows"]

_DRIFT = 50.0  # a sum of weights outside [1/_DRIFT, _DRIFT V] moves the reference
_LEAST, _MOST = 1e-20, 1e30  # within these no weight that matters has met a clamp of `_exp`, in either dtype
_GUESS = 16  # classes looked at for the first reference
_CHUNK = 4096  # classes summed in the row's own dtype before float64 takes over
LANE = 64  # rows are padded to this many classes: four AVX-512 registers of float32
_CELLS = 64  # softmaxes that `lanes` moves side by side
_GONE = -1e30  # the logit at labels and padding: the clamped weight is e^-80 (float32), e^-700 (float64)

# n log 2 is exact with these leading parts for every n that occurs.
_LOG2E, _HI, _LO = 1.4426950408889634, 0.693147180601954460144, -4.2009150726810847e-11
_LOG2E_32, _HI_32, _LO_32 = np.float32(_LOG2E), np.float32(0.693359375), np.float32(-2.1219444005469058e-4)
# Adding this rounds to an integer and leaves n + (exponent bias) in the lowest bits.
_ROUND, _ROUND_32 = 1.5 * 2.0**52 + 1023.0, np.float32(1.5 * 2.0**23 + 127.0)
_FLOOR_32, _CEIL_32, _ONE_32 = np.float32(-80.0), np.float32(80.0), np.float32(1.0)
_P2, _P3, _P4 = 0.50000000000000106688, 0.16666666666666411508, 0.041666666666529728218
_P5, _P6, _P7 = 0.0083333333334949772613, 0.0013888888943759965395, 0.00019841269505773775103
_P8, _P9, _P10, _P11 = 2.480149294963386917e-5, 2.755758680389532448e-6, 2.763030625029360005e-7, 2.5000018833187373e-8
_Q2, _Q3, _Q4 = np.float32(0.49999993432129290236), np.float32(0.16666520399042530069), np.float32(0.04166839078354791)
_Q5, _Q6 = np.float32(0.0083687451089425906506), np.float32(0.0013814540176801306354)

# Reassociation lets sums use all lanes. It must not reach `_exp`, whose rounding trick it would cancel.
_SUMS, _EXACT = {"reassoc", "contract", "nsz"}, {"contract"}


def _jit(flags: set[str]) -> Any:
    """njit with these floating-point liberties; a division by zero gives ±inf as in numpy."""
    return njit(fastmath=flags, nogil=True, error_model="numpy")


def _kernel(function: Any) -> Any:
    """An entry point: its machine code is kept in `__pycache__`, where a place can be written.

    numba looks at this file alone to see whether that code is old, so all that kernels call stands in it.
    """
    try:
        return njit(fastmath=_EXACT, nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return _jit(_EXACT)(function)


def _exp(x: Any) -> Any:
    """e^x in the dtype of x, clamped to ±80 (float32) or ±700 (float64)."""
    raise NotImplementedError  # pragma: no cover - `overload` below provides the compiled ones


@overload(_exp, jit_options={"fastmath": _EXACT})
def _exp_of(x: Any) -> Any:
    if x == types.float32:

        def single(x: Any) -> Any:
            x = min(max(x, _FLOOR_32), _CEIL_32)
            shifted = x * _LOG2E_32 + _ROUND_32
            n = shifted - _ROUND_32
            r = (x - n * _HI_32) - n * _LO_32
            p = ((((_Q6 * r + _Q5) * r + _Q4) * r + _Q3) * r + _Q2) * r + _ONE_32
            power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23))
            return (p * r + _ONE_32) * np.int32(power).view(np.float32)

        return single

    def double(x: Any) -> Any:
        x = min(max(x, -700.0), 700.0)
        shifted = x * _LOG2E + _ROUND
        n = shifted - _ROUND
        r = (x - n * _HI) - n * _LO
        p = ((((_P11 * r + _P10) * r + _P9) * r + _P8) * r + _P7) * r + _P6
        p = ((((p * r + _P5) * r + _P4) * r + _P3) * r + _P2) * r + 1.0
        power = np.int64(np.float64(shifted).view(np.int64) << np.int64(52))
        return (p * r + 1.0) * np.int64(power).view(np.float64)

    return double


@_jit(_EXACT)
def _span(low: int, high: int) -> Any:
    """range(low, high) of unsigned numbers: such an index needs no wrap-around, so the loop vectorises."""
    return range(np.uint64(low), np.uint64(high))


@_jit(_EXACT)
def _scratch(like: Any, many: int, size: int) -> Any:
    """Memory (many, size) in the dtype of `like` on a cache line's boundary: else sums kept there run 5× slower."""
    raw = np.empty(many * size + 64, like.dtype)
    skip = (-raw.ctypes.data % 64) // raw.itemsize
    return raw[skip : skip + many * size].reshape(many, size)


@_jit(_EXACT)
def _move_one(total: float, m: float, za: float, step: float) -> Any:
    """(k, z_a'): one update with step = s c moves the others by z_j −= k w_j and the label by s c (1 − π_a).

    Both weights are against the larger of m and z_a, so nothing overflows: 1 − π_a = S e^{m−t}/Z.
    """
    e = _exp(-abs(za - m))
    em, ea = (e, 1.0) if za > m else (1.0, e)
    k = step * em / (total * em + ea)
    return k, za + k * total


@_jit(_EXACT)
def _move(total: float, m: float, za: float, zb: float, coef: Any, b: int) -> Any:
    """(k, z_a', z_b') of row b with two labels; 1 − π_a = (S e^{m−t} + e^{z_b−t})/Z, t the largest of m, z_a, z_b.

    Where c_a + c_b = 0 the two π-terms cancel exactly (T10): nothing else moves and the normaliser drops out. With
    β > 0 the push is DPO's: c = β σ(−β(z_a − z_b − δ_ref)) on a and −c on b.
    """
    s, ca, cb, beta = coef[0, b], coef[1, b], coef[2, b], coef[3, b]
    push = beta / (1.0 + _exp(beta * (za - zb - coef[4, b])))
    ca, cb = (push, -push) if beta != 0.0 else (ca, cb)
    t = max(m, max(za, zb))
    em, ea, eb = _exp(m - t), _exp(za - t), _exp(zb - t)
    rest, both = total * em, ca + cb
    scale = s / (rest + ea + eb)
    up = s * ca if both == 0.0 else scale * (ca * (rest + eb) - cb * ea)
    down = s * cb if both == 0.0 else scale * (cb * (rest + ea) - ca * eb)
    return scale * both * em, za + up, zb + down


@_jit(_SUMS)
def _rest(w: Any, n: Any, i: int) -> float:
    """Σ n w over the classes other than one class of i; n (V) are multiplicities, or none (0)."""
    total = 0.0
    for j in _span(0, w.size):
        many = np.float64(n[j]) if n.size else 1.0
        total += np.float64(w[j]) * (many - 1.0 if j == i else many)
    return total


@_jit(_EXACT)
def _record(
    lp: Any, chosen: Any, x: Any, w: Any, n: Any, total: float, m: float, ya: int, yb: int, za: float, zb: float
) -> None:
    """log π of the chosen classes; a near-certain one from the sum over the others, as in `softmax.log_softmax`."""
    t = max(m, max(za, zb))
    em, ea, eb = math.exp(m - t), math.exp(za - t), math.exp(zb - t)
    whole = math.log(total * em + ea + eb)
    for i in range(chosen.size):
        j = chosen[i]
        own = za - t if j == ya else zb - t if j == yb else x[j] + (m - t)
        lp[i] = own - whole
        if lp[i] > -0.7:
            others = total if j in (ya, yb) else _rest(w, n, j)
            rest = others * em + (0.0 if j == ya else ea) + (0.0 if j == yb else eb)
            lp[i] = -math.log1p(rest * math.exp(-own))


@_jit(_EXACT)
def _top(z: Any, b: int, size: int) -> Any:
    """Largest of the first `size` classes of row b."""
    best = z[b, 0]
    for j in _span(1, size):
        best = max(best, z[b, j])
    return best


@_jit(_EXACT)
def _off(total: float, most: float) -> bool:
    """Whether the sum says that the reference should move."""
    return not ((total >= 1.0 / _DRIFT) & (total <= _DRIFT * most))


@_jit(_SUMS)
def _weigh(z: Any, b: int, m: Any, w: Any) -> Any:
    """w_j = e^{z_j − m} for row b; returns their sum."""
    total = 0.0
    for low in range(0, z.shape[1], _CHUNK):
        part = z.dtype.type(0)
        for j in _span(low, min(low + _CHUNK, z.shape[1])):
            e = _exp(z[b, j] - m)
            w[0, j] = e
            part += e
        total += part
    return total


@_jit(_EXACT)
def _first(z: Any, b: int, w: Any) -> Any:
    """(m, S): a reference in the dtype of z and the sum of the weights against it; the weights go to w (1, ≥ V)."""
    size = z.shape[1]
    m = _top(z, b, min(_GUESS, size))
    total = _weigh(z, b, m, w)
    if _off(total, size):
        m = m + z.dtype.type(math.log(total)) if _LEAST <= total <= _MOST else _top(z, b, size)
        total = _weigh(z, b, m, w)
    return m, total


@_jit(_SUMS)
def _depart(z: Any, b: int, m: Any, x: Any, w: Any, k: Any) -> Any:
    """The first `_advance` of row b, which loads it: x_j = z_j − m − k w_j and w_j ← e^{x_j}; returns the sum."""
    total = 0.0
    for low in range(0, z.shape[1], _CHUNK):
        part = x.dtype.type(0)
        for j in _span(low, min(low + _CHUNK, z.shape[1])):
            moved = (z[b, j] - m) - k * w[0, j]
            e = _exp(moved)
            x[0, j] = moved
            w[0, j] = e
            part += e
        total += part
    return total


@_jit(_SUMS)
def _advance(x: Any, w: Any, k: Any, drift: Any) -> Any:
    """x_j ← x_j − k w_j − drift and w_j ← e^{x_j} in one pass; returns the new sum."""
    total = 0.0
    for low in range(0, x.shape[1], _CHUNK):
        part = x.dtype.type(0)
        for j in _span(low, min(low + _CHUNK, x.shape[1])):
            moved = (x[0, j] - k * w[0, j]) - drift
            e = _exp(moved)
            x[0, j] = moved
            w[0, j] = e
            part += e
        total += part
    return total


@_jit(_SUMS)
def _store(x: Any, w: Any, k: Any, m: Any, z: Any, b: int) -> None:
    """The last update of a row that was loaded, and back to where it came from."""
    for j in _span(0, z.shape[1]):
        z[b, j] = (x[0, j] - k * w[0, j]) + m


@_jit(_SUMS)
def _finish(z: Any, b: int, w: Any, k: Any) -> None:
    """The only update of a row that was not loaded: classes that do not move keep their bits."""
    for j in _span(0, z.shape[1]):
        z[b, j] -= k * w[0, j]


@_kernel
def rows(z: Any, work: Any, ya: Any, yb: Any, coef: Any, steps: int, chosen: Any, every: int, trace: Any) -> None:
    """`steps` ≥ 1 updates of every row of z (B, V), in place; a row stays in its cache over all its steps.

    work is aligned memory for two rows of V padded to `LANE`. coef (5, B) holds s, c_a, c_b, β, δ_ref; y_b = −1 means
    one label. V ≥ 2, or 3 with two labels. chosen (B, n) are the classes whose log π goes to trace (records, B, n),
    before update 0, every, 2 every, …
    """
    size, traced, width, none = z.shape[1], trace.shape[0] > 0, work.size // 2, np.empty(0, z.dtype)
    x, w = work[:width].reshape(1, width), work[width:].reshape(1, width)
    for b in range(z.shape[0]):
        a, o = ya[b], yb[b]
        x[0, size:], w[0, size:] = _GONE, 0
        za, zb = np.float64(z[b, a]), np.float64(z[b, o]) if o >= 0 else -np.inf
        z[b, a] = z[b, o if o >= 0 else a] = _GONE
        first, total = _first(z, b, w)
        m, k, drift, loaded = np.float64(first), 0.0, z.dtype.type(0), False
        for t in range(steps + traced):
            if traced and not loaded:
                total, loaded = _depart(z, b, first, x, w, z.dtype.type(0)), True
            if traced and t % every == 0:
                _record(trace[t // every, b], chosen[b], x[0], w[0], none, total, m, a, o, za, zb)
            if t == steps:
                break
            if o < 0:
                k, za = _move_one(total, m, za, coef[0, b] * coef[1, b])
            else:
                k, za, zb = _move(total, m, za, zb, coef, b)
            if k == 0.0 or (t == steps - 1 and not traced):
                continue
            for _ in range(2):
                by = z.dtype.type(k)
                total = _advance(x, w, by, drift) if loaded else _depart(z, b, first, x, w, by)
                m += drift
                k, drift, loaded = 0.0, z.dtype.type(0), True
                if not _off(total, size):
                    break
                if _LEAST <= total <= _MOST:
                    drift = z.dtype.type(math.log(total))  # the next pass moves the reference along the way
                    break
                drift = _top(x, 0, size)  # a clamp was met: once more, now
        if loaded:
            _store(x, w, z.dtype.type(k), z.dtype.type(m), z, b)
        elif k != 0.0:
            _finish(z, b, w, z.dtype.type(k))
        z[b, a] = za
        if o >= 0:
            z[b, o] = zb


@_jit(_SUMS)
def _advance_lanes(x: Any, w: Any, n: Any, k: Any, drift: Any, part: Any, total: Any) -> None:
    """`_advance` for `_CELLS` softmaxes, class by class; n (V, cells) are multiplicities, (V, 0) none."""
    total[:] = 0.0
    for low in range(0, x.shape[0], 32):
        part[:] = 0
        for j in _span(low, min(low + 32, x.shape[0])):
            for i in _span(0, _CELLS):
                moved = (x[j, i] - k[i] * w[j, i]) - drift[i]
                e = _exp(moved)
                x[j, i] = moved
                w[j, i] = e
                part[i] += n[j, i] * e if n.shape[1] else e
        for i in _span(0, _CELLS):
            total[i] += part[i]


@_kernel
def lanes(z: Any, n: Any, ya: Any, yb: Any, coef: Any, steps: int, chosen: Any, every: int, trace: Any) -> None:
    """`rows` for many softmaxes of few classes; n (V, B) are multiplicities (a label's is 1), (V, 0) none.

    Either all rows have two labels or none has.
    """
    size, traced, counted, pair = z.shape[1], trace.shape[0] > 0, n.shape[1] > 0, yb[0] >= 0
    x, w, many = _scratch(z, size, _CELLS), _scratch(z, size, _CELLS), _scratch(z, size, _CELLS if counted else 0)
    singles, none = _scratch(z, 3, _CELLS), np.empty(0, z.dtype)
    k, drift, part = singles[0], singles[1], singles[2]
    doubles = _scratch(coef, 10, _CELLS)
    many[:], singles[:], doubles[:] = 0, 0, 0.0
    m, za, zb, total, most, own = doubles[0], doubles[1], doubles[2], doubles[3], doubles[4], doubles[5:]
    for start in range(0, z.shape[0], _CELLS):
        live = min(_CELLS, z.shape[0] - start)
        x[:] = 0
        own[:, :live], own[:, live:] = coef[:, start : start + live], 0.0
        for i in _span(0, live):
            for j in _span(0, size):
                x[j, i] = z[start + i, j]
        for i in range(live):
            b = start + i
            za[i], zb[i], most[i] = z[b, ya[b]], z[b, yb[b]] if pair else -np.inf, size
            x[ya[b], i] = x[yb[b] if pair else ya[b], i] = _GONE
            if counted:
                many[:, i] = n[:, b]
                most[i] = many[:, i].sum()
        w[:], k[:], drift[:], m[:] = 0, 0, _GONE, 0.0
        for j in _span(0, size):
            for i in _span(0, _CELLS):
                drift[i] = max(drift[i], x[j, i])
        for t in range(steps + 1):
            for _ in range(2):
                if t == steps and not traced:
                    break
                _advance_lanes(x, w, many, k, drift, part, total)
                clamped, off = False, 0
                for i in _span(0, _CELLS):
                    m[i] += drift[i]
                    drift[i], k[i] = 0, 0
                    off += _off(total[i], most[i])
                for i in range(live if off else 0):
                    if _off(total[i], most[i]):
                        safe = _LEAST <= total[i] <= _MOST
                        drift[i] = math.log(total[i]) if safe else x[:, i].max()
                        clamped |= not safe
                if not clamped:
                    break
            if traced and t % every == 0:
                for i in range(live):
                    b = start + i
                    lp, mult = trace[t // every, b], many[:, i] if counted else none
                    _record(lp, chosen[b], x[:, i], w[:, i], mult, total[i], m[i], ya[b], yb[b], za[i], zb[i])
            if t == steps:
                break
            if pair:
                for i in _span(0, _CELLS):
                    k[i], za[i], zb[i] = _move(total[i], m[i], za[i], zb[i], own, i)
            else:
                for i in _span(0, _CELLS):
                    k[i], za[i] = _move_one(total[i], m[i], za[i], own[0, i] * own[1, i])
        for j in _span(0, size):
            for i in _span(0, _CELLS):
                x[j, i] = (x[j, i] - k[i] * w[j, i]) + z.dtype.type(m[i])
        for i in _span(0, live):
            for j in _span(0, size):
                z[start + i, j] = x[j, i]
        for i in range(live):
            b = start + i
            z[b, ya[b]] = za[i]
            if pair:
                z[b, yb[b]] = zb[i]
