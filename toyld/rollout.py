"""Many updates of one softmax, z_{t+1} = z_t − s c (π(z_t) − e_y): `toyld.softmax.step` repeated, in compiled code.

Logits z have shape (..., V) and every leading axis is a batch of independent softmaxes; labels, steps s = η‖x‖² and
coefficients c are numbers or arrays of shape (...). A row stays in its cache over all its updates and costs one
exponential per class and update. numpy arrays and torch tensors on the CPU, float32 or float64, go in and come back as
they were (a tensor is worked on where it lies); gradients are not recorded: under autograd or on another device
repeat `softmax.step`.

Everything is in log space and stays finite: the label is kept beside its row in float64, so 1 − π_y never cancels,
and the others' weights e^{z − m} are renewed from the logits in every update, so none is lost when it underflows.

Accuracy: rounding moves a logit by a few ε max|z − max z| an update (ε = 2.2e-16 or 1.2e-7, by dtype), and a push-down
with |sc| drives neighbours apart by up to e^{|sc|/2} an update, whoever computes it. Measured against 80-bit arithmetic
(19,200 softmaxes, V from 2 to 1,000, logits of spread 1 to 8, |sc| = ½, 100 updates): log π is within 3e-14 relative in
99 % of them in float64, within 2e-5 in float32; the worst, near a tie for the top, is off by 1.3e-11 and 9e-4. Repeated
`softmax.step` in the same dtype is within 7e-14 and 5e-5, at worst off by 2.4e-11 and 2.4e-3. A class that holds less
than e^-80 (float32) or e^-700 (float64) of the largest is moved as if it held that much.
"""

from __future__ import annotations

import functools
import threading
from types import ModuleType
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from toyld.checked import BadInput
from toyld.softmax import residual

__all__ = ["flow", "lumped", "lumped_pair", "run", "run_dpo", "run_pair"]

Array = Any

# Up to this many classes (one update, several) and from this many rows on, a SIMD lane per row wins (measured).
_LANE_CLASSES, _LANE_ROWS = (64, 128), 32
_NOTHING = np.empty((0, 0), np.int64), np.empty((0, 0, 0))


def run(
    z: Array, y: Any, /, *, s: Any, c: Any = -1.0, steps: int, out: Any = None, trace: Any = None, every: int = 1
) -> Any:
    """z after `steps` updates z ← z − s c (π − e_y), shape (..., V); by default the negative gradient, c = −1.

    Args:
        z: logits (..., V), float32 or float64, V ≥ 2. Not changed, unless `out` is z.
        y: label, an integer or integers (...).
        s: step η‖x‖², a number or (...).
        c: coefficient, a number or (...); c > 0 pulls the label up.
        steps: number of updates, ≥ 0.
        out: where to write the result: contiguous, of z's kind, shape and dtype; `out=z` updates in place.
        trace: classes whose log π to record, integers (n) or (..., n).
        every: record before updates 0, every, 2 every, … (and after the last where it divides `steps`).

    Returns:
        z' (..., V); with `trace` a pair (z', log π in nats, shape (steps // every + 1, ..., n)).

    Raises:
        BadInput: an array of another library, device or dtype, a tensor that wants gradients, wrong shapes or labels.

    >>> import numpy as np
    >>> from toyld.softmax import softmax
    >>> z = np.log([0.70, 0.20, 0.08, 0.02])
    >>> softmax(run(z, 3, s=1.0, steps=1)).round(4)  # as in `softmax.step`
    array([0.8064, 0.1397, 0.0496, 0.0043])
    >>> z, logp = run(z, 3, s=1.0, steps=4, trace=[0, 3], every=2)
    >>> logp.round(2)  # the top gains, the label falls
    array([[ -0.36,  -3.91],
           [ -0.11,  -7.15],
           [ -0.02, -10.9 ]])
    """
    return _run(z, y, None, (s, c, 0.0), steps, out, trace, every)


def run_pair(
    z: Array,
    y_plus: Any,
    y_minus: Any,
    /,
    *,
    s: Any,
    c_plus: Any = 1.0,
    c_minus: Any = -1.0,
    steps: int,
    out: Any = None,
    trace: Any = None,
    every: int = 1,
) -> Any:
    """z after `steps` updates z ← z − s [c₊(π − e₊) + c₋(π − e₋)], shape (..., V): a pair at one shared context.

    With c₊ = −c₋ the two π-terms cancel (theorem T10): only the two labels move, at O(1) a step whatever V is. The
    other arguments are `run`'s.

    Raises:
        BadInput: as `run`; or y₊ = y₋ in some row.

    >>> import numpy as np
    >>> run_pair(np.zeros(3), 0, 2, s=0.5, steps=4)
    array([ 2.,  0., -2.])
    """
    return _run(z, y_plus, y_minus, (s, c_plus, c_minus), steps, out, trace, every)


def run_dpo(
    z: Array,
    y_plus: Any,
    y_minus: Any,
    /,
    *,
    s: Any,
    beta: Any = 0.1,
    reference: Any = None,
    steps: int,
    out: Any = None,
    trace: Any = None,
    every: int = 1,
) -> Any:
    """z after `steps` gradient steps on the DPO loss of one pair at one shared context, shape (..., V).

    The coefficient c₊ = −c₋ = β σ(−β(δ − δ_ref)), δ = z₊ − z₋, is renewed at every step; O(1) a step. The other
    arguments are `run`'s.

    Args:
        beta: β > 0, a number or (...).
        reference: δ_ref = log π_ref(y₊) − log π_ref(y₋) in nats, a number or (...); by default that of z.

    >>> import numpy as np
    >>> run_dpo(np.zeros(3), 0, 2, s=1.0, beta=1.0, steps=1)
    array([ 0.5,  0. , -0.5])
    """
    if reference is None:
        whole = _view(z, "z")
        at = [
            _integers(y, name, whole.shape[-1], whole.shape[:-1])
            for y, name in ((y_plus, "y_plus"), (y_minus, "y_minus"))
        ]
        ends = [np.take_along_axis(whole, i[..., None], -1)[..., 0].astype(float) for i in at]
        reference = ends[0] - ends[1]
    return _run(z, y_plus, y_minus, (s, 0.0, 0.0, beta, reference), steps, out, trace, every)


def lumped(
    z: Array, count: Any, y: Any, /, *, s: Any, c: Any = -1.0, steps: int, trace: Any = None, every: int = 1
) -> Any:
    """`run` on groups of classes that share a logit: z (..., K) for Σ count classes, at a cost that follows K, not V.

    Proof: the update of an unlabelled z_i depends on i through z_i alone, so equal logits stay equal. A cell of a
    phase diagram (y, y*, a plateau of V − 2) is three numbers for any V, exact to rounding.

    Args:
        z: the logit of every group, (..., K).
        count: classes in every group, (K) or (..., K), ≥ 1; the label's group has 1.
        y: the label's group, an integer or (...).

    Returns, raises and the other arguments: as `run`, `trace` names groups and records log π of *one* class of each.

    >>> import numpy as np
    >>> few = lumped(np.array([0.0, 2.0, -1.0]), [1, 1, 50_255], 0, s=0.5, steps=10)
    >>> full = run(np.array([0.0, 2.0] + 50_255 * [-1.0]), 0, s=0.5, steps=10)
    >>> bool(np.allclose(few, full[:3], rtol=1e-13, atol=0))
    True
    """
    return _run(z, y, None, (s, c, 0.0), steps, None, trace, every, count=count)


def lumped_pair(
    z: Array,
    count: Any,
    y_plus: Any,
    y_minus: Any,
    /,
    *,
    s: Any,
    c_plus: Any = 1.0,
    c_minus: Any = -1.0,
    steps: int,
    trace: Any = None,
    every: int = 1,
) -> Any:
    """`run_pair` on groups of classes that share a logit, as `lumped`: (y₊, y₋, y*, a plateau of V − 3) is K = 4.

    >>> import numpy as np
    >>> lumped_pair(np.zeros(3), [1, 1, 2], 0, 1, s=1.0, c_plus=0.5, c_minus=-1.0, steps=1)
    array([ 0.625, -0.875,  0.125])
    """
    return _run(z, y_plus, y_minus, (s, c_plus, c_minus), steps, None, trace, every, count=count)


def flow(z: Any, y: int, /, *, times: Any, c: float = -1.0, rtol: float = 1e-10) -> Any:
    """Gradient flow dz/dt = −c(π − e_y) from one start z (V,), numpy only; returns z(t), shape (T, V).

    The limit of many small steps: `times` rises from ≥ 0, in units of s. scipy's LSODA with local error `rtol`; Σz is
    conserved.

    Raises:
        BadInput: times that do not rise from ≥ 0.
        RuntimeError: the solver gave up (its own message).

    >>> import numpy as np
    >>> from toyld.softmax import softmax
    >>> softmax(flow(np.log([0.70, 0.20, 0.08, 0.02]), 3, times=[1.0], c=-1.0))[0].round(3)
    array([0.82 , 0.129, 0.047, 0.004])
    """
    from scipy.integrate import solve_ivp

    times = np.asarray(times, dtype=float)
    if (
        times.ndim != 1
        or not len(times)
        or not (np.isfinite(times).all() and times[0] >= 0 and (np.diff(times) >= 0).all())
    ):
        msg = f"times: expected numbers that rise from ≥ 0, got {times.tolist()}"
        raise BadInput(msg)
    run = solve_ivp(
        lambda _, at: -residual(at, y, c=c),
        (0.0, float(times[-1])),
        np.asarray(z, dtype=float),
        method="LSODA",
        t_eval=times,
        rtol=rtol,
        atol=rtol,
    )
    if not run.success:
        raise RuntimeError(run.message)
    return run.y.T


@functools.cache
def _kernels() -> ModuleType:
    from toyld import _fused  # imports numba

    return _fused


def _view(a: Any, name: str) -> np.ndarray:
    """The numpy array behind a, without a copy; one clear line if there is none."""
    if is_torch_array(a):
        if a.device.type != "cpu":
            msg = f"{name}: expected a tensor on the CPU, got one on {a.device}; move it, or repeat softmax.step there"
            raise BadInput(msg)
        if a.requires_grad:
            msg = f"{name}: expected a tensor without gradient, got requires_grad=True; pass {name}.detach()"
            raise BadInput(msg)
        if str(a.dtype) not in ("torch.float32", "torch.float64"):
            msg = f"{name}: expected float32 or float64, got {a.dtype}; convert with to"
            raise BadInput(msg)
        return a.numpy()
    if not isinstance(a, np.ndarray):
        msg = f"{name}: expected a numpy array or a torch tensor on the CPU, got {type(a).__name__}; convert it"
        raise BadInput(msg)
    if a.dtype not in (np.float32, np.float64):
        msg = f"{name}: expected float32 or float64, got dtype {a.dtype}; convert with astype"
        raise BadInput(msg)
    return a


def _integers(a: Any, name: str, size: int, shape: tuple[int, ...]) -> np.ndarray:
    """Class numbers of a shape, int64. Out of range they would write outside of the row: always checked."""
    a = np.asarray(a)
    if a.dtype.kind not in "iu" and a.size:
        msg = f"{name}: expected integers in 0 … {size - 1}, got dtype {a.dtype}"
        raise BadInput(msg)
    a = a.astype(np.int64, copy=False)
    # As unsigned numbers the negative ones are the largest: one pass checks both ends.
    if a.size and a.view(np.uint64).max() >= size:
        worst = int(a.min()) if a.min() < 0 else int(a.max())
        msg = f"{name}: expected integers in 0 … {size - 1}, got {worst}; classes count from 0"
        raise BadInput(msg)
    return np.ascontiguousarray(_spread(a, name, shape)).reshape(shape)  # which makes 0-d 1-d


def _spread(a: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    a = np.asarray(a)
    if a.shape == shape:
        return a
    try:
        return np.broadcast_to(a, shape)
    except ValueError:
        msg = f"{name}: expected a number or an array that broadcasts to {shape}, got shape {a.shape}"
        raise BadInput(msg) from None


def _target(out: Any, z: Any, whole: np.ndarray) -> np.ndarray:
    """out as an array that holds z."""
    if out is None:
        return np.array(whole, order="C")
    into = whole if out is z else _view(out, "out")
    if type(out) is not type(z) or into.shape != whole.shape or into.dtype != whole.dtype or not into.flags.carray:
        msg = (
            f"out: expected a contiguous {type(z).__name__} of shape {whole.shape} and dtype {whole.dtype}, "
            f"got {type(out).__name__}, {into.shape}, {into.dtype}; leave it out to get a new one"
        )
        raise BadInput(msg)
    if out is not z:
        into[...] = whole
    return into


def _run(
    z: Any,
    y: Any,
    other: Any,
    push: tuple[Any, ...],
    steps: int,
    out: Any,
    trace: Any,
    every: int,
    count: Any = None,
) -> Any:
    """The door of all five: look at the input, choose a kernel, give back what came in."""
    kernels = _kernels()
    whole = _view(z, "z")
    if whole.ndim == 0 or whole.shape[-1] < 2:
        msg = f"z: expected at least one axis, the last over V ≥ 2 classes, got shape {whole.shape}"
        raise BadInput(msg)
    if steps < 0 or every < 1:
        msg = f"steps, every: expected steps ≥ 0 and every ≥ 1, got {steps} and {every}"
        raise BadInput(msg)
    batch, size = whole.shape[:-1], whole.shape[-1]
    ya = _integers(y, "y" if other is None else "y_plus", size, batch)
    if other is None:
        yb = ~ya  # negative: there is none
    else:
        yb = _integers(other, "y_minus", size, batch)
        if np.any(ya == yb):
            msg = "y_plus, y_minus: expected two different classes, got equal ones; use run with c = c_plus + c_minus"
            raise BadInput(msg)
    coef = np.zeros((5, ya.size))
    for i, (name, value) in enumerate(zip(("s", "c", "c", "beta", "reference"), push, strict=False)):
        coef[i] = value if isinstance(value, int | float) else _spread(value, name, batch).reshape(-1)
    many = np.empty((size, 0), whole.dtype) if count is None else _counts(count, whole, ya, yb)
    chosen, records = _NOTHING
    if trace is not None:
        n = np.shape(trace)[-1] if np.ndim(trace) else 1
        chosen = _integers(trace, "trace", size, (*batch, n)).reshape(-1, n)
        records = np.empty((steps // every + 1, ya.size, n))
    into = _target(out, z, whole)
    rows = into.reshape(-1, size)
    if other is not None and size == 2:
        # Two labels and nothing else: a third class that holds nothing keeps the kernels' sums from being empty.
        rows = np.append(rows, np.full((len(rows), 1), -1e30, rows.dtype), axis=1)
        many = np.append(many, np.ones((1, many.shape[1]), many.dtype), axis=0)
    elif not steps:
        rows = rows.copy()  # only to be looked at
    rest = ya.reshape(-1), yb.reshape(-1), coef, steps, chosen, every, records
    if not len(rows) or not (steps or records.size):
        pass
    elif count is not None or (rows.shape[1] <= _LANE_CLASSES[steps > 1] and len(rows) >= _LANE_ROWS):
        kernels.lanes(rows, many, *rest)
    else:
        kernels.rows(rows, _workspace(rows.dtype, -(-rows.shape[1] // kernels.LANE) * kernels.LANE), *rest)
    if rows.shape[1] != size and steps:
        into[...] = rows[:, :2].reshape(into.shape)
    if trace is None and out is not None:
        return out
    asarray = array_namespace(z).asarray
    result = asarray(into) if out is None else out
    if trace is None:
        return result
    return result, asarray(records.astype(into.dtype, copy=False).reshape(len(records), *batch, n))


_kept = threading.local()


def _workspace(dtype: np.dtype, width: int) -> np.ndarray:
    """Memory for two rows on a cache line's boundary, kept by each thread: fresh pages would cost as much as a step."""
    kept = _kept.__dict__.get(dtype.char)
    if kept is None or kept.size < 2 * width:
        raw = np.empty(2 * width + 64, dtype)
        skip = -raw.ctypes.data % 64 // raw.itemsize
        kept = raw[skip : skip + 2 * width]
        _kept.__dict__[dtype.char] = kept
    return kept[: 2 * width]


def _counts(count: Any, z: np.ndarray, ya: np.ndarray, yb: np.ndarray) -> np.ndarray:
    """Multiplicities (K, B) for the kernel, checked."""
    many = _spread(count, "count", z.shape)
    labels = [np.take_along_axis(many, y[..., None], -1) for y in (ya, yb) if np.all(y >= 0)]
    if not np.all(many >= 1) or any(np.any(n != 1) for n in labels):
        msg = "count: expected class counts ≥ 1, and 1 in the group of a label; split the label's class off"
        raise BadInput(msg)
    return np.ascontiguousarray(many.reshape(-1, z.shape[-1]).T, z.dtype)
