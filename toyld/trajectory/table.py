"""The one table every world and every reader produces: an `xarray.Dataset` of one stage of one arm.

Dimensions `seed, step, probe, example`, always in this order and always all four; `n_tokens` has no `step`, `ref_logp`
has none where the reference is fixed, `NAME_token` has `token` behind them, and `loss, lr, grad_norm, train_*, eval_*`
have `seed, step` alone. Values are float64; NaN = not measured here; a variable measured nowhere is left out; nothing
missing is ever 0. `step` counts updates, or training examples where attr `step_unit` is "examples". Row 0 is the policy
before the first update where attr `has_step0` is 1 and its step is 0: a table cut by xarray keeps the attribute and is
valid all the same; `load` and `concat` set it to 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from toyld.checked import fail

__all__ = [
    "DIMS",
    "NOTE_CODES",
    "ROUNDING32",
    "SCHEMA",
    "VARIABLES",
    "Variable",
    "add_note",
    "below_label",
    "notes",
    "trajectory",
    "validate",
]

SCHEMA = 1
DIMS = ("seed", "step", "probe", "example")
NOTE_CODES: tuple[str, ...] = ("argmax-bug", "interleaved-rows", "duplicate-rows", "non-finite-rows")
NOTE_CODES += ("reward-mismatch", "reference-suspect", "lfs-pointer", "means-only")
# What rounding may do to a comparison of two sums in float32, relative to them: a sum over 2^8 tokens in pairs is 8
# additions deep, each off by eps/2 at most, so 4 eps for each of the two.
ROUNDING32 = 8 * float(np.finfo(np.float32).eps)


class Variable(NamedTuple):
    """Units, allowed range and meaning of one variable."""

    units: str
    low: float
    high: float
    meaning: str


VARIABLES: dict[str, Variable] = {
    "logp": Variable("nats", -np.inf, 0, "sum of log pi(label) over the response"),
    "argmax_logp": Variable("nats", -np.inf, 0, "sum of log max pi along the same contexts as logp"),
    "ref_logp": Variable("nats", -np.inf, 0, "logp under the reference"),
    "n_tokens": Variable("tokens", 0, np.inf, "length of the response"),
    "entropy": Variable("nats/token", 0, np.inf, "mean over the response of the entropy of pi"),
    "top1": Variable("1", 0, 1, "mean over the response of max pi"),
    "pi_norm2": Variable("1", 0, 1, "mean over the response of ||pi||^2; ||A||_F^2 = V - 2 + V ||pi||^2"),
    "residual_norm": Variable("1", 0, 2**0.5, "mean over the response of ||pi - e_label||"),
    "accuracy": Variable("1", 0, 1, "share of the policy's own sampled answers to the prompt that are right"),
    # the authors' logs only
    "pi_norm": Variable("1", 0, 1, "mean over the response of ||pi||; its square is at most pi_norm2"),
    "a_norm_logged": Variable("1", 0, np.inf, "sqrt(V (mean ||pi||)^2 + V - 2) as logged: at most the rms of ||A||_F"),
    "label_gap": Variable("1", 0, 1, "mean over the response of 1 - pi(label)"),
    "argmax_logp_as_logged": Variable("nats", -np.inf, 0, "known-wrong argmax_logp, measured along another probe"),
}
_BY_STEP = Variable("as logged", -np.inf, np.inf, "one number per step")


def _layout(name: str) -> tuple[Variable, tuple[tuple[str, ...], ...]]:
    """(meaning, allowed dimensions) of a variable's name."""
    base = name.removesuffix("_token")
    writable = name.isascii() and name.isidentifier()  # the file format's names
    if writable and (name in ("loss", "lr", "grad_norm") or name.startswith(("train_", "eval_"))):
        return _BY_STEP, (DIMS[:2],)
    if base not in VARIABLES:
        known = f"one of {', '.join(VARIABLES)}, NAME_token, loss, lr, grad_norm, train_*, eval_*"
        fail(f"a variable named as {known}, in letters, digits and _", repr(name), "rename it, or use train_*, eval_*")
    if base != name:
        return VARIABLES[base], ((*DIMS, "token"),)
    still = (DIMS[0], *DIMS[2:])
    return VARIABLES[name], {"n_tokens": (still,), "ref_logp": (still, DIMS)}.get(name, (DIMS,))


def trajectory(
    variables: Mapping[str, ArrayLike],
    /,
    *,
    step: ArrayLike,
    probe: Sequence[str],
    example: Sequence[str] = ("mean",),
    seed: ArrayLike = (0,),
    examples_seen: ArrayLike | None = None,
    world: str = "unknown",
    stage: str = "unknown",
    arm: str = "unknown",
    step_unit: str = "updates",
    has_step0: bool | None = None,
    notes: Iterable[tuple[str, str]] = (),
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """A valid table from plain arrays.

    `variables`: arrays shaped as their dimensions say (module docstring), `logp` as (seed, step, probe, example);
    those that are NaN throughout are left out. `attrs`: further attributes; None is left out, mappings and lists become
    JSON, booleans 0 or 1. `has_step0`: left out, whether the first step is 0; False where the row of step 0 may be of a
    policy that had trained. Raises TrajectoryError where `validate` would, and for has_step0 without a step 0.

    >>> ds = trajectory({"logp": [[[[-3.0]], [[-2.5]]]]}, step=[0, 10], probe=["chosen"], world="contexts")
    >>> ds.logp.dims, ds.logp.attrs["units"], ds.attrs["has_step0"]
    (('seed', 'step', 'probe', 'example'), 'nats', 1)
    """
    names = {"probe": list(probe), "example": list(example)}
    coords: dict[str, Any] = {dim: (dim, _integers(dim, values)) for dim, values in (("seed", seed), ("step", step))}
    coords |= {dim: (dim, np.array(values, dtype=np.str_)) for dim, values in names.items()}
    if examples_seen is not None:
        coords["examples_seen"] = ("step", _integers("examples_seen", examples_seen))
    size = {name: len(coords[name][1]) for name in DIMS}
    data: dict[str, Any] = {}
    for name, values in variables.items():
        meaning, allowed = _layout(name)
        try:
            array = np.array(values, np.float64)
        except (TypeError, ValueError):
            fail(f"numbers for {name}", repr(values)[:60], "pass an array of floats")
        wanted = [tuple(size.get(dim, array.shape[-1] if array.ndim else 0) for dim in dims) for dims in allowed]
        if array.shape not in wanted:
            fail(f"{name} of shape {wanted[-1]} = {allowed[-1]}", str(array.shape), "reshape it (every size >= 1)")
        if not np.isnan(array).all():
            dims = allowed[wanted.index(array.shape)]
            data[name] = (dims, array, {"units": meaning.units, "long_name": meaning.meaning})
    given: dict[str, Any] = {"schema": SCHEMA, "world": world, "stage": stage, "arm": arm, "step_unit": step_unit}
    begins = int(coords["step"][1][0])
    if has_step0 and begins != 0:
        fail("step 0 first where has_step0 is True", f"step {begins}", "leave has_step0 out, or correct the steps")
    given["has_step0"] = begins == 0 if has_step0 is None else has_step0
    given["notes"] = [{"code": code, "text": text} for code, text in notes]
    named = {key: _attribute(key, value) for key, value in (given | dict(attrs or {})).items() if value is not None}
    ds = xr.Dataset(data, coords, named)
    validate(ds)
    return ds


def _integers(name: str, values: ArrayLike) -> np.ndarray[Any, np.dtype[np.int32]]:
    try:
        array = np.array(values)
        exact = array.astype(np.int32)
    except (TypeError, ValueError, OverflowError):
        fail(f"whole numbers for {name}", repr(values)[:60], "pass integers")
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf" or (exact != array).any():
        fail(f"a non-empty list of int32 for {name}", repr(values)[:60], "pass integers below 2^31")
    return exact


def _attribute(key: str, value: Any) -> str | int | float:
    if isinstance(value, bool | np.bool_):
        return int(value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, sort_keys=True)
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) >= 2**31):
        fail(f"a string, an int32 or a float for attribute {key}", repr(value)[:60], "pass a string")
    return value


def validate(ds: xr.Dataset) -> None:
    """Raise TrajectoryError with one line unless `ds` keeps the schema (module docstring).

    >>> validate(xr.Dataset({"logp": ("step", [1.0])}))
    Traceback (most recent call last):
    toyld.checked.TrajectoryError: expected coordinate seed, got none: build the table with toyld.trajectory.trajectory
    """
    build = "build the table with toyld.trajectory.trajectory"
    if not isinstance(ds, xr.Dataset):
        fail("an xarray.Dataset", type(ds).__name__, build)
    for name in DIMS:
        if name not in ds.coords or ds[name].dims != (name,):
            fail(f"coordinate {name}", "none", build)
        values, wanted = ds[name].values, "iiUU"[DIMS.index(name)]
        if values.size == 0 or len(set(values.tolist())) < values.size:
            fail(f"a non-empty coordinate {name} without repeats", repr(values.tolist())[:60], build)
        if values.dtype.kind != wanted or (wanted == "i" and values.dtype != np.int32):
            fail(f"{name} as {'int32' if wanted == 'i' else 'strings'}", str(values.dtype), build)
        if wanted == "U" and not all(text and text.isprintable() and text == text.strip() for text in values.tolist()):
            fail(f"printable, non-empty names in {name}", ascii(values.tolist())[:60], "rename them")
    counters = [name for name in ("step", "examples_seen") if name in ds.coords]
    for name in counters:
        values = ds[name].values
        if ds[name].dims != ("step",) or values.dtype != np.int32 or values[0] < 0 or (np.diff(values) <= 0).any():
            fail(f"{name} int32 along step, >= 0 and increasing", repr(values.tolist())[:60], "sort it, drop repeats")
    if extra := sorted(map(str, (set(ds.coords) - {*DIMS, "examples_seen"}) | (set(ds.dims) - {*DIMS, "token"}))):
        fail(f"coordinates {', '.join(DIMS)}, examples_seen", ", ".join(extra), "drop the others")
    if not ds.data_vars:
        fail("at least one measured variable", "none (all NaN?)", "measure logp of chosen at least")
    for key, array in ds.data_vars.items():
        meaning, allowed = _layout(str(key))
        if array.dims not in allowed:
            fail(f"{key} along {allowed[-1]}", str(array.dims), build)
        if array.dtype != np.float64 or np.isnan(array.values).all():
            got = str(array.dtype) if array.dtype != np.float64 else "NaN throughout"
            fail(f"measured float64 values of {key}", got, "convert it, or leave the variable out")
        low, high = float(np.nanmin(array.values)), float(np.nanmax(array.values))
        inside = meaning.low - ROUNDING32 <= low and high <= meaning.high + ROUNDING32  # means of float32 values
        if not (np.isfinite([low, high]).all() and inside):
            bounds = f"[{meaning.low:.6g}, {meaning.high:.6g}]"
            fail(f"finite {key} in {bounds} ({meaning.meaning})", f"{low:.6g} to {high:.6g}", "NaN = not measured")
    for name, value in ds.attrs.items():
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            fail(f"a string or number as attribute {name}", type(value).__name__, "store a JSON string or 0/1")
        if not str(name).isascii() or not str(name).isidentifier() or not str(value).isprintable():
            fail(f"an ASCII name and printable text as attribute {name}", ascii(value)[:60], "remove other characters")
    wrong = [name for name in ("world", "stage", "arm", "notes") if not isinstance(ds.attrs.get(name), str)]
    if wrong or ds.attrs.get("schema") != SCHEMA or ds.attrs.get("has_step0") not in (0, 1):
        fail(f"attributes schema={SCHEMA}, world, stage, arm, has_step0, notes", str(sorted(ds.attrs)), build)
    if ds.attrs.get("step_unit") not in ("updates", "examples"):
        fail("step_unit updates or examples", repr(ds.attrs.get("step_unit")), build)
    n_examples, floor = ds.attrs.get("n_examples", 1), ds.attrs.get("noise_floor", 0.0)
    if not isinstance(n_examples, int) or n_examples < 1:
        fail("a whole number >= 1 as attribute n_examples", ascii(n_examples)[:60], "correct it, or leave it out")
    if isinstance(floor, str) or not 0 <= floor < np.inf:
        fail("a finite number >= 0 as attribute noise_floor", ascii(floor)[:60], "correct it, or leave it out")
    notes(ds)


def notes(ds: xr.Dataset) -> list[dict[str, str]]:
    """The table's notes, [{"code", "text"}, ...].

    >>> ds = trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"], notes=[("means-only", "no array")])
    >>> notes(ds)
    [{'code': 'means-only', 'text': 'no array'}]
    """
    try:
        found = json.loads(ds.attrs.get("notes", "[]"))
        if not all(set(note) == {"code", "text"} and note["code"] in NOTE_CODES for note in found):
            raise ValueError
    except (TypeError, ValueError, AttributeError, RecursionError):
        got = ascii(ds.attrs.get("notes"))[:60]
        fail(f"notes as a JSON list of {{code, text}}, codes {', '.join(NOTE_CODES)}", got, "use add_note")
    return list(found)


def add_note(ds: xr.Dataset, code: str, text: str) -> xr.Dataset:
    """A copy of the table with one more note; `code` is one of NOTE_CODES.

    >>> ds = trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"])
    >>> [note["code"] for note in notes(add_note(ds, "means-only", "no array"))]
    ['means-only']
    """
    if code not in NOTE_CODES:
        fail(f"a note code among {', '.join(NOTE_CODES)}", repr(code), "use one of them")
    return ds.assign_attrs(notes=json.dumps([*notes(ds), {"code": code, "text": text}]))


def below_label(ds: xr.Dataset) -> xr.DataArray:
    """Where `argmax_logp` < `logp` beyond float32 rounding: impossible on the same contexts (the argmax bug).

    >>> ds = trajectory({"logp": [[[[-3.0]]]], "argmax_logp": [[[[-4.0]]]]}, step=[0], probe=["chosen"])
    >>> bool(below_label(ds).all())
    True
    """
    if not {"logp", "argmax_logp"} <= set(ds.data_vars):
        fail("a table with logp and argmax_logp", ", ".join(map(str, ds.data_vars)), "measure both")
    return ds.argmax_logp < ds.logp - ROUNDING32 * abs(ds.logp)
