"""Several tables into one (`concat`), and the difference of two (`compare`); neither guesses.

`concat` is an outer join along seed, step, probe and example: what one table measured and another did not is NaN where
it was not measured. It does not depend on the order of its parts: they are put in order of step, seed and content.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.checked import fail
from toyld.trajectory.table import DIMS, notes, trajectory, validate

__all__ = ["compare", "concat"]

Floats = NDArray[np.float64]

_LARGEST = 2**29  # float64 values of one variable: NetCDF-3 with 64-bit offsets holds 4 GiB of it
_SAME = ("schema", "world", "stage", "arm", "step_unit", "vocab_size", "probing_set")
_OWN = ("has_step0", "notes", "noise_floor", "fingerprints")  # attributes with a rule of their own


def concat(parts: Iterable[xr.Dataset], /) -> xr.Dataset:
    """One table of several of one stage and arm: its evaluations, a run and its continuation, other seeds.

    What was measured twice must be equal and is kept once, with a note. Attributes: those that all parts share are
    kept; `has_step0` is that of the smallest step, 0 unless that is 0; notes are united; `noise_floor` is the largest
    one stated; `fingerprints` are merged. `examples_seen` stays where every part has it.
    Raises TrajectoryError: values that contradict each other; another stage, arm, world, vocabulary, probing set or
    unit; means beside single examples.

    >>> first = trajectory({"logp": [[[[-3.0]]]]}, step=[0], probe=["chosen"])
    >>> later = trajectory({"logp": [[[[-2.5]]]]}, step=[10], probe=["chosen"], has_step0=False)
    >>> concat([later, first]).logp.values.ravel()
    array([-3. , -2.5])
    """
    parts = list(parts)
    ds, repeated = _join(parts, [f"part {i}" for i in range(len(parts))])
    return _note_repeats(ds, repeated)


def _note_repeats(ds: xr.Dataset, repeated: Sequence[int]) -> xr.Dataset:
    if not repeated:
        return ds
    steps = ascii(list(repeated)) if len(repeated) < 20 else f"{ascii(list(repeated[:20]))[:-1]}, ...]"
    note = {"code": "duplicate-rows", "text": f"steps {steps} are there more than once, equal: kept once"}
    return ds if note in notes(ds) else ds.assign_attrs(notes=json.dumps([*notes(ds), note]))


def _key(ds: xr.Dataset) -> tuple[int, int, int, str]:
    """What puts the parts in order: step, seed, the fuller first, content; so no order of theirs shows in the result.

    Probes and examples of the whole stand in the order in which the parts, so sorted, have them.
    """
    digest = hashlib.sha256(json.dumps({k: str(v) for k, v in ds.attrs.items()}, sort_keys=True).encode())
    for name in sorted(map(str, ds.variables)):
        values = ds[name].values
        text = json.dumps(values.tolist()).encode() if values.dtype.kind == "U" else values.tobytes()
        digest.update(f"{name}{values.shape}".encode() + text)
    return int(ds.step.values[0]), int(ds.seed.values.min()), -math.prod(ds.sizes.values()), digest.hexdigest()


def _stated(parts: list[xr.Dataset], key: str) -> list[Any]:
    """The different values of an attribute, in order of the parts, where it is stated."""
    return list(dict.fromkeys(ds.attrs[key] for ds in parts if key in ds.attrs))


def _shared(all_attrs: list[dict[Any, Any]]) -> dict[Any, Any]:
    """Attributes that all have, with equal values."""
    first, *others = all_attrs
    return {key: v for key, v in first.items() if all(key in a and a[key] == v for a in others)}


def _fingerprints(texts: list[Any]) -> str | None:
    """Mappings name → digest, merged; a name with several digests keeps them all."""
    merged: dict[str, list[str]] = {}
    try:
        for text in texts:
            for name, digests in json.loads(text).items():
                merged.setdefault(name, []).extend([digests] if isinstance(digests, str) else digests)
        one = {name: sorted(set(digests)) for name, digests in merged.items()}
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None  # not ours: treated as any attribute that differs
    return json.dumps({name: d[0] if len(d) == 1 else d for name, d in one.items()}, sort_keys=True)


def _attributes(parts: list[xr.Dataset]) -> dict[str, Any]:
    """Attributes of the whole, parts in order; see `concat`."""
    for key in _SAME:
        if len(found := _stated(parts, key)) > 1:
            fail(f"one {key}", ascii(found)[:80], "join tables of one run only")
    attrs = {str(k): v for k, v in _shared([ds.attrs for ds in parts]).items() if k not in _OWN}
    attrs |= {key: found[0] for key in _SAME if (found := _stated(parts, key))}
    start = min(int(ds.step.values[0]) for ds in parts)
    known = min(ds.attrs["has_step0"] for ds in parts if ds.step.values[0] == start)
    attrs["has_step0"] = known if start == 0 else 0  # a part cut by xarray may say otherwise
    every = [(note["code"], note["text"]) for ds in parts for note in notes(ds)]
    attrs["notes"] = json.dumps([{"code": code, "text": text} for code, text in dict.fromkeys(every)])
    if floors := _stated(parts, "noise_floor"):
        attrs["noise_floor"] = max(floors)
    if prints := _stated(parts, "fingerprints"):
        merged = prints[0] if len(prints) == 1 else _fingerprints(prints)
        attrs |= {"fingerprints": merged} if merged is not None else {}
    return attrs


def _examples_seen(parts: list[xr.Dataset], steps: list[int]) -> list[int] | None:
    if not all("examples_seen" in ds.coords for ds in parts):
        return None
    seen: dict[int, int] = {}
    for ds in parts:
        for step, count in zip(ds.step.values.tolist(), ds.examples_seen.values.tolist(), strict=True):
            if seen.setdefault(step, count) != count:
                got = f"{seen[step]} and {count}"
                fail(f"one number of examples seen at step {step}", got, "join tables of one run only")
    return [seen[step] for step in steps]


def _join(parts: list[xr.Dataset], names: list[str]) -> tuple[xr.Dataset, list[int]]:
    """(the whole, the steps of which something was measured twice); `names` of the parts are for messages."""
    if not parts:
        fail("at least one table", "none", "pass the tables to join")
    for ds in parts:
        validate(ds)
    order = sorted(range(len(parts)), key=lambda i: _key(parts[i]))
    parts, names = [parts[i] for i in order], [names[i] for i in order]
    attrs = _attributes(parts)
    if len({tuple(ds.example.values.tolist()) == ("mean",) for ds in parts}) > 1:
        fail("the same examples in every table", "means beside single examples", "join the one or the other")
    axes: dict[str, list[Any]] = {}
    for dim in DIMS:
        union = list(dict.fromkeys(value for ds in parts for value in ds[dim].values.tolist()))
        axes[dim] = sorted(union) if dim in ("seed", "step") else union
    variables: dict[str, Floats] = {}
    about: dict[str, dict[Any, Any]] = {}
    repeated: set[int] = set()
    for name in dict.fromkeys(str(name) for ds in parts for name in ds.data_vars):
        those = [(ds, label) for ds, label in zip(parts, names, strict=True) if name in ds]
        if len(units := {str(ds[name].attrs.get("units")) for ds, _ in those}) > 1:
            fail(f"one unit of {name}", " and ".join(sorted(units)), "convert one of the tables")
        variables[name], twice = _joined(name, those, axes)
        about[name] = _shared([ds[name].attrs for ds, _ in those])
        repeated |= twice
    whole = trajectory(
        variables,
        step=axes["step"],
        probe=axes["probe"],
        example=axes["example"],
        seed=axes["seed"],
        examples_seen=_examples_seen(parts, axes["step"]),
        attrs=attrs,
        **{key: attrs.pop(key) for key in ("world", "stage", "arm", "step_unit")},
    )
    for name in variables:
        whole[name].attrs = about[name]
    return whole, sorted(repeated)


def _joined(name: str, parts: list[tuple[xr.Dataset, str]], axes: dict[str, list[Any]]) -> tuple[Floats, set[int]]:
    """(one variable on all axes, the steps of which it was measured twice)."""
    dims = max((tuple(map(str, ds[name].dims)) for ds, _ in parts), key=len)  # a reference may move or be still
    place = {dim: {value: i for i, value in enumerate(values)} for dim, values in axes.items()}
    tokens = max(ds.sizes.get("token", 0) for ds, _ in parts)
    shape = [tokens if dim == "token" else len(axes[dim]) for dim in dims]
    if math.prod(shape) > _LARGEST:
        got = f"{math.prod(shape):.3g} of {name}, most of them not measured"
        fail(f"at most {_LARGEST} values of a variable", got, "join fewer tables, or those that share examples")
    whole = np.full(shape, np.nan)
    owner = np.zeros(shape, np.int32)  # which part it came from
    repeated: set[int] = set()
    for number, (ds, label) in enumerate(parts):
        values = ds[name].values
        if values.ndim < len(dims):  # still: the same at each of its steps
            values = np.repeat(np.expand_dims(values, dims.index("step")), ds.sizes["step"], dims.index("step"))
        at = {dim: [place[dim][value] for value in ds[dim].values.tolist()] for dim in DIMS}
        at["token"] = list(range(ds.sizes.get("token", 0)))
        where = np.ix_(*(at[dim] for dim in dims))
        before = whole[where]
        known = ~np.isnan(before)
        twice = known & ~np.isnan(values)
        if (clash := twice & (before != values)).any():
            cell = tuple(np.argwhere(clash)[0].tolist())
            spot = [f"{dim} {axes[dim][at[dim][i]]}" for dim, i in zip(dims, cell, strict=True) if dim in axes]
            other = parts[int(owner[where][cell])][1]
            got = f"{float(before[cell])!r} in {other} and {float(values[cell])!r} in {label} ({', '.join(spot)})"
            fail(f"equal values of {name} where two tables overlap", got, "keep one of the two")
        if "step" in dims and twice.any():
            others = tuple(i for i, dim in enumerate(dims) if dim != "step")
            repeated.update(ds.step.values[twice.any(others)].tolist())
        whole[where] = np.where(known, before, values)
        owner[where] = np.where(known, owner[where], number)
    return whole, repeated


def compare(a: xr.Dataset, b: xr.Dataset, /) -> xr.Dataset:
    """The differences b − a of every variable that both have, at the seeds, probes and examples that both have.

    Steps, and what they count, must be the same. NaN where either has none. The result is no run: log-probabilities
    may differ by either sign. Attributes `difference`, `only_a`, `only_b` say what was compared and what was not.
    Raises TrajectoryError: other steps, other units, another probing set, nothing shared.

    >>> a = trajectory({"logp": [[[[-3.0]]]]}, step=[0], probe=["chosen"], stage="dpo", arm="baseline")
    >>> b = trajectory({"logp": [[[[-2.5]]]]}, step=[0], probe=["chosen"], stage="dpo", arm="extend")
    >>> difference = compare(a, b)
    >>> difference.logp.values.ravel(), difference.attrs["difference"]
    (array([0.5]), 'dpo-extend - dpo-baseline')
    """
    for ds in (a, b):
        validate(ds)
    for key in ("step_unit", "probing_set"):
        if len(found := _stated([a, b], key)) > 1:
            fail(f"one {key}", " and ".join(map(ascii, found)), "compare runs that were measured alike")
    if a.step.values.tolist() != b.step.values.tolist():
        odd = sorted(set(a.step.values.tolist()) ^ set(b.step.values.tolist()))
        got = f"{len(odd)} steps that only one of them has ({ascii(odd[:3])[1:-1]}{', ...' if len(odd) > 3 else ''})"
        fail("the same steps in both", got, "select shared steps with .sel(step=[...])")
    axes: dict[str, list[Any]] = {}
    only: tuple[dict[str, list[Any]], dict[str, list[Any]]] = ({}, {})
    for dim in ("seed", "probe", "example", "variable"):
        have = [list(map(str, ds.data_vars)) if dim == "variable" else ds[dim].values.tolist() for ds in (a, b)]
        axes[dim] = [value for value in have[0] if value in set(have[1])]
        for left, mine, theirs in zip(only, have, have[::-1], strict=True):
            if rest := [value for value in mine if value not in set(theirs)]:
                left[dim] = rest
        if not axes[dim]:
            got = f"{have[0][:3]!a} and {have[1][:3]!a}"
            fail(f"at least one {dim} that both have", got, "compare runs that share one")
    variables = axes.pop("variable")
    out = {}
    for name in variables:
        units = [str(ds[name].attrs.get("units")) for ds in (a, b)]
        if units[0] != units[1]:
            fail(f"one unit of {name}", " and ".join(units), "convert one of them")
        pair = [ds[name].sel({dim: values for dim, values in axes.items() if dim in ds[name].dims}) for ds in (a, b)]
        if "token" in pair[0].dims:  # padded with NaN: beyond the shorter there is nothing to compare
            pair = [array.isel(token=slice(min(p.sizes["token"] for p in pair))) for array in pair]
        difference = (pair[1] - pair[0]).transpose(*DIMS, "token", missing_dims="ignore")
        difference.attrs = {"units": units[0], "long_name": f"difference of {name}"}
        out[name] = difference.drop_vars("examples_seen", errors="ignore")
    which = " - ".join(f"{ds.attrs['stage']}-{ds.attrs['arm']}" for ds in (b, a))
    attrs = {"difference": which, "step_unit": a.attrs["step_unit"]}
    attrs |= {key: json.dumps(left) for key, left in zip(("only_a", "only_b"), only, strict=True)}
    return xr.Dataset(out, attrs=attrs)
