"""Validation at the door: the functions of `toyld.softmax` with their input checked first.

The core assumes valid input, since a branch on values cannot live under vmap or compile. Where input comes from
outside (the command line, a notebook, a file), wrap: `checked(softmax.log_alpha)(z, y, s=0.5)`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_numpy_namespace, is_torch_array

from toyld._stable import col

__all__ = ["BadInput", "TrajectoryError", "checked", "fail", "finite", "labels", "logits", "positive", "probabilities"]

Array = Any
LARGEST = 1e6  # of |z|; the answers are documented for ±1e4, and float64 leaves differences of 1e6 ten digits


class BadInput(ValueError):
    """One line: what was expected, what came, what to do."""


class TrajectoryError(BadInput):
    """A file or table that cannot be read or trusted; one line: expected, got, what to do."""


def fail(expected: str, got: str, do: str) -> NoReturn:
    """Raise a TrajectoryError in one printable line: for `toyld.trajectory` and its readers."""
    line = f"expected {expected}, got {got}: {do}"
    raise TrajectoryError("".join(c if c.isprintable() else " " for c in line))


def _show(value: Any) -> str:
    return f"{type(value).__name__} {' '.join(ascii(value).split())[:60]}"


def _array(name: str, a: Any) -> Any:
    if not is_array_api_obj(a):
        msg = (
            f"{name}: expected an array of floats (…, V), got {type(a).__name__}; wrap it, for example numpy.asarray(…)"
        )
        raise BadInput(msg)
    xp = array_namespace(a)
    if not xp.isdtype(a.dtype, "real floating"):
        msg = f"{name}: expected floats, got dtype {a.dtype}; convert with astype"
        raise BadInput(msg)
    if a.ndim == 0 or a.shape[-1] == 0:
        msg = f"{name}: expected at least one axis, the last over V ≥ 2 classes, got shape {tuple(a.shape)}"
        raise BadInput(msg)
    if a.shape[-1] == 1:
        msg = f"{name}: expected V ≥ 2 classes in the last axis, got 1; a single class has no dynamics"
        raise BadInput(msg)
    return xp


def _refuse_where(xp: Any, bad: Any, a: Any, name: str, expected: str, do: str, got: str = "") -> None:
    """One line with the first value where `bad` is True, and its index; nothing where it is True nowhere."""
    if not bool(xp.any(bad)):
        return
    where = int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int8)))
    value = float(xp.reshape(a.detach() if is_torch_array(a) else a, (-1,))[where])
    index: list[int] = []
    for size in reversed(bad.shape):
        where, i = divmod(where, size)
        index.insert(0, i)
    at = f" at {tuple(index)}" if index else ""
    msg = f"{name}: expected {expected}, got {got}{value:.6g}{at}; {do}"
    raise BadInput(msg)


def finite(v: Array, /, *, name: str = "v") -> Array:
    """Finite floats (..., V), V ≥ 2: a direction, a residual, a reward; returned as they came.

    >>> import numpy as np
    >>> finite(np.array([0.0, np.inf]), name="reward")
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: reward: expected finite numbers, got inf at (1,); remove or replace it
    """
    xp = _array(name, v)
    _refuse_where(xp, ~xp.isfinite(v), v, name, "finite numbers", "remove or replace it")
    return v


def logits(z: Array, /, *, name: str = "z") -> Array:
    """Finite float logits (..., V), V ≥ 2, |z| ≤ 1e6; returned as they came.

    >>> import numpy as np
    >>> logits(np.array([0.0, np.nan]))
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: z: expected finite logits, got nan at (1,); for a class that cannot occur use -1e4
    """
    xp = _array(name, z)
    _refuse_where(xp, ~xp.isfinite(z), z, name, "finite logits", "for a class that cannot occur use -1e4")
    far = "subtract the largest: differences lose their digits far beyond the documented ±1e4"
    _refuse_where(xp, xp.abs(z) > LARGEST, z, name, f"logits within ±{LARGEST:.0e}", far)
    return z


def probabilities(p: Array, /, *, name: str = "p") -> Array:
    """Probabilities (..., V), V ≥ 2: positive, summing to 1 within rounding; returned as they came.

    >>> import numpy as np
    >>> probabilities(np.array([1.5, -0.5]))
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: p: expected probabilities > 0, got -0.5 at (1,); drop classes that cannot occur
    """
    xp = _array(name, p)
    _refuse_where(xp, ~(p > 0), p, name, "probabilities > 0", "drop classes that cannot occur")
    total = xp.sum(p, axis=-1)
    tolerance = 4.0 * float(xp.finfo(p.dtype).eps) * p.shape[-1] + 1e-6
    off = xp.abs(total - 1.0) > tolerance
    _refuse_where(xp, off, total, name, "probabilities that sum to 1", "divide by it", got="a sum of ")
    return p


def labels(y: Any, z: Array, /, *, name: str = "y") -> Any:
    """Integer labels in 0 … V − 1, a number or shape (...) of z; returned as they came.

    >>> import numpy as np
    >>> labels(3, np.zeros(3))
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: y: expected a label in 0 … 2, got 3; labels count from 0
    """
    size = z.shape[-1]
    if is_array_api_obj(y):
        xp = array_namespace(y)
        if not _scalar(y) and xp is not array_namespace(z):
            msg = f"{name}: expected {type(z).__name__} labels like z, got {type(y).__name__}; use one library"
            raise BadInput(msg)
        if not xp.isdtype(y.dtype, "integral"):
            msg = f"{name}: expected integer labels, got dtype {y.dtype}; convert with astype"
            raise BadInput(msg)
        if y.ndim and tuple(y.shape) != tuple(z.shape[:-1]):
            want = tuple(z.shape[:-1])
            msg = f"{name}: expected labels of shape {want} (z without its last axis), got {tuple(y.shape)}"
            raise BadInput(msg)
        if 0 in y.shape:
            return y
        low, high = int(xp.min(y)), int(xp.max(y))
    elif isinstance(y, int) and not isinstance(y, bool):
        low = high = y
    else:
        msg = f"{name}: expected an integer label, got {_show(y)}"
        raise BadInput(msg)
    if low < 0 or high >= size:
        msg = f"{name}: expected a label in 0 … {size - 1}, got {low if low < 0 else high}; labels count from 0"
        raise BadInput(msg)
    return y


def _number(a: Any, name: str, shape: tuple[int, ...] | None, above: float, do: str) -> None:
    """One line unless a is a finite number > above, or an array of them, of this shape where one is given."""
    expected = "a finite number" if above < 0 else f"a finite number > {above:.0f}"
    if not is_array_api_obj(a):
        good = isinstance(a, int | float) and not isinstance(a, bool) and abs(a) <= sys.float_info.max
        if not good or a <= above:
            msg = f"{name}: expected {expected}, got {a if isinstance(a, float) else _show(a)}; {do}"
            raise BadInput(msg)
        return
    xp = array_namespace(a)
    if not xp.isdtype(a.dtype, ("integral", "real floating")):
        msg = f"{name}: expected {expected}, got dtype {a.dtype}; convert with astype"
        raise BadInput(msg)
    if shape is not None and a.ndim and tuple(a.shape) != shape:
        msg = f"{name}: expected a number or an array of shape {shape} (one per softmax), got {tuple(a.shape)}"
        raise BadInput(msg)
    _refuse_where(xp, ~(xp.isfinite(a) & (a > above)), a, name, expected, do)


def positive(s: Any, /, *, name: str = "s") -> Any:
    """A finite step > 0, a number or an array; returned as it came.

    >>> positive(0.5)
    0.5
    """
    _number(s, name, None, 0.0, "the sign of the push is c's")
    return s


def _scalar(a: Any) -> bool:
    """A 0-d number of numpy's, which goes with any library."""
    return isinstance(a, np.generic) or (isinstance(a, np.ndarray) and a.ndim == 0)


def _one_library(arrays: dict[str, Any]) -> Any:
    """The arrays' namespace; None where there is no array."""
    if not arrays:
        return None
    try:
        return array_namespace(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"{name}: {type(a).__module__.split('.')[0]}" for name, a in arrays.items())
        msg = f"expected arrays of one library, got {kinds}; convert one of them"
        raise BadInput(msg) from None


_ROWS = {"z": logits, "mu": probabilities, "q": probabilities, "v": finite, "g": finite, "reward": finite}
_NUMBERS = dict.fromkeys(("s", "rho"), (0.0, "the sign of the push is c's"))
_NUMBERS |= dict.fromkeys(("c", "c_plus", "c_minus", "baseline"), (-float("inf"), "pass a float"))


def _rows(given: dict[str, Any]) -> tuple[int, ...] | None:
    """Check the arrays over classes and that their shapes go together; the shape of the batch, if there is one."""
    rows = {name: check(given[name], name=name) for name, check in _ROWS.items() if name in given}
    longest: tuple[int, ...] = ()
    for name, a in rows.items():
        short, longest = sorted((tuple(a.shape), longest), key=len)
        if short != longest[len(longest) - len(short) :]:
            first = next(iter(rows))
            msg = f"{name}: expected shape {tuple(rows[first].shape)} like {first}, or its last axes, got "
            raise BadInput(msg + f"{tuple(a.shape)}; reshape it")
    return longest[:-1] if rows else None


def checked(function: Callable[..., Any], /) -> Callable[..., Any]:
    """The same function of `toyld.softmax`, its arguments checked by their names, one clear line if bad.

    z: `logits`; mu, q: `probabilities`; v, g, reward: `finite`, shaped as z or mu or as its last axes; y, y_plus,
    y_minus: `labels`, the last two different; s, rho > 0 and c, c_plus, c_minus, baseline finite, numbers or one per
    softmax, baseline below E_μ r. A 0-d number of numpy's goes with arrays of any library.

    >>> import numpy as np
    >>> from toyld.softmax import threshold
    >>> checked(threshold)(np.zeros(3), 0, s=-1.0)
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: s: expected a finite number > 0, got -1.0; the sign of the push is c's
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        xp = _one_library({name: a for name, a in given.items() if is_array_api_obj(a) and not _scalar(a)})
        batch = _rows(given)
        for name, (above, do) in _NUMBERS.items():
            if name in given:
                _number(given[name], name, batch, above, do)
        for name in ("y", "y_plus", "y_minus"):
            if name in given and "z" in given:
                labels(given[name], given["z"], name=name)
        if xp is not None and not is_numpy_namespace(xp):
            given |= {name: a.item() for name, a in given.items() if _scalar(a)}
        if {"y_plus", "y_minus"} <= set(given):
            same = given["y_plus"] == given["y_minus"]
            if same if isinstance(same, bool) else bool(xp.any(same)):
                msg = "y_plus, y_minus: expected two different classes, got equal ones; use residual with c₊ + c₋"
                raise BadInput(msg)
        if "baseline" in given:
            gap = xp.sum(given["mu"] * (given["reward"] - col(given["baseline"])), axis=-1)
            _refuse_where(xp, ~(gap > 0), gap, "baseline", "E_μ r − baseline > 0", "lower the baseline")
        return function(*bound.args, **bound.kwargs)

    return guarded
