"""Validation at the door: the functions of `toyld.softmax` with their input checked first.

The core assumes valid input, since a branch on values cannot live under vmap or compile. Where input comes from
outside (the command line, a notebook, a file), wrap: `checked(softmax.log_alpha)(z, y, s=0.5)`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace, is_array_api_obj

__all__ = ["BadInput", "checked", "labels", "logits", "positive", "probabilities"]

Array = Any


class BadInput(ValueError):
    """One line: what was expected, what came, what to do."""


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


def _first_bad(xp: Any, bad: Any) -> str:
    """Index of the first True, for the message."""
    flat = xp.reshape(bad, (-1,))
    where = int(xp.argmax(xp.astype(flat, xp.int8)))
    index = []
    for size in reversed(bad.shape):
        where, i = divmod(where, size)
        index.append(i)
    return str(tuple(reversed(index)))


def logits(z: Array, /, *, name: str = "z") -> Array:
    """Finite float logits (..., V), V ≥ 2; returned as they came.

    >>> import numpy as np
    >>> logits(np.array([0.0, np.nan]))
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: z: expected finite logits, got nan at (1,); for a class that cannot occur use -1e4
    """
    xp = _array(name, z)
    bad = ~xp.isfinite(z)
    if bool(xp.any(bad)):
        at = _first_bad(xp, bad)
        value = float(xp.reshape(z, (-1,))[int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int8)))])
        msg = f"{name}: expected finite logits, got {value} at {at}; for a class that cannot occur use -1e4"
        raise BadInput(msg)
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
    bad = ~(p > 0)
    if bool(xp.any(bad)):
        value = float(xp.reshape(p, (-1,))[int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int8)))])
        msg = (
            f"{name}: expected probabilities > 0, got {value} at {_first_bad(xp, bad)}; drop classes that cannot occur"
        )
        raise BadInput(msg)
    total = xp.sum(p, axis=-1)
    tolerance = 4.0 * float(xp.finfo(p.dtype).eps) * p.shape[-1] + 1e-6
    off = xp.abs(total - 1.0) > tolerance
    if bool(xp.any(off)):
        value = float(xp.reshape(total, (-1,))[int(xp.argmax(xp.astype(xp.reshape(off, (-1,)), xp.int8)))])
        msg = f"{name}: expected probabilities that sum to 1, got a sum of {value:.6g}; divide by it"
        raise BadInput(msg)
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
        if type(y) is not type(z) and y.ndim:
            msg = f"{name}: expected {type(z).__name__} labels like z, got {type(y).__name__}; use one library"
            raise BadInput(msg)
        xp = array_namespace(y)
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
        msg = f"{name}: expected an integer label, got {type(y).__name__} {y!r}"
        raise BadInput(msg)
    if low < 0 or high >= size:
        msg = f"{name}: expected a label in 0 … {size - 1}, got {low if low < 0 else high}; labels count from 0"
        raise BadInput(msg)
    return y


def positive(s: Any, /, *, name: str = "s") -> Any:
    """A finite step > 0, a number or an array; returned as it came."""
    if is_array_api_obj(s):
        xp = array_namespace(s)
        good = bool(xp.all(xp.isfinite(s) & (s > 0)))
    else:
        good = isinstance(s, int | float) and 0 < s < float("inf")
    if not good:
        msg = f"{name}: expected a finite number > 0, got {s!r}; the sign of the push is c's"
        raise BadInput(msg)
    return s


def _one_library(arrays: dict[str, Any]) -> None:
    try:
        array_namespace(*arrays.values())
    except TypeError:
        kinds = ", ".join(f"{name}: {type(a).__module__.split('.')[0]}" for name, a in arrays.items())
        msg = f"expected arrays of one library, got {kinds}; convert one of them"
        raise BadInput(msg) from None


def checked(function: Callable[..., Any], /) -> Callable[..., Any]:
    """The same function, its arguments checked by their names (z, p, mu, y…, i, s, rho), one clear line if bad.

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
        given = signature.bind(*args, **kwargs).arguments
        _one_library({name: a for name, a in given.items() if is_array_api_obj(a)})
        for name, value in given.items():
            if name in ("z", "v", "g", "reward"):
                logits(value, name=name)
            elif name in ("p", "q", "mu"):
                probabilities(value, name=name)
            elif name in ("s", "rho"):
                positive(value, name=name)
        for name, value in given.items():
            if name in ("y", "y_plus", "y_minus", "i"):
                labels(value, given["z"], name=name)
        return function(*args, **kwargs)

    return guarded
