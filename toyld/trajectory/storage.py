"""One table, one file: NetCDF-3 to keep it, CSV to show it; written whole or not at all."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toyld.checked import TrajectoryError, fail
from toyld.files import write_whole
from toyld.trajectory._sniff import check_regular
from toyld.trajectory.table import DIMS, validate

__all__ = ["load", "save", "to_csv"]


def _write(path: Path, payload: bytes) -> None:
    try:
        write_whole(path, payload)
    except OSError as error:
        fail(f"to write {path.name}", str(error.strerror), "check the folder, its permissions and its space")


def save(ds: xr.Dataset, path: str | Path, /) -> None:
    """Write a valid table as NetCDF-3 (64-bit offsets), atomically; equal tables give equal bytes.

    >>> import tempfile
    >>> from toyld.trajectory import trajectory
    >>> path = Path(tempfile.mkdtemp()) / "run.nc"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> path.read_bytes()[:3]
    b'CDF'
    """
    validate(ds)
    data = {name: ds[name].variable for name in sorted(map(str, ds.data_vars))}
    coords = {name: ds[name].variable for name in (*DIMS, "examples_seen") if name in ds.coords}
    _write(Path(path), bytes(xr.Dataset(data, coords, ds.attrs).drop_encoding().to_netcdf(engine="scipy")))


def load(path: str | Path, /) -> xr.Dataset:
    """Read a table that `save` wrote; TrajectoryError for anything else.

    Attr `has_step0` becomes 0 where the first step is not 0, as in a file of a table cut by xarray.

    >>> import tempfile
    >>> from toyld.trajectory import trajectory
    >>> path = Path(tempfile.mkdtemp()) / "run.nc"
    >>> save(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> load(path).loss.values
    array([[1.]])
    """
    path = Path(path)
    try:
        check_regular(path)
        with xr.open_dataset(io.BytesIO(path.read_bytes()), engine="scipy", decode_times=False) as file:
            named: dict[Any, Any] = {}
            for name, array in file.variables.items():  # the format is big-endian and pads strings
                kind = np.dtype(np.str_) if array.dtype.kind in "OSU" else array.dtype.newbyteorder("=")
                named[name] = (array.dims, array.values.astype(kind), array.attrs)
            coords = {name: named.pop(name) for name in file.coords}
            attrs = {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}
        ds = xr.Dataset(named, coords, attrs)
    except OSError as error:
        fail("a readable NetCDF-3 file", f"{path.name}: {error.strerror}", "check the path")
    except TrajectoryError:
        raise
    except Exception as error:  # scipy and xarray raise many kinds on bad bytes
        fail("a whole NetCDF-3 file", f"{path.name} ({type(error).__name__})", "write it again with `save`")
    validate(ds)
    return ds if ds.step.values[0] == 0 else ds.assign_attrs(has_step0=0)


def to_csv(ds: xr.Dataset, path: str | Path, /) -> None:
    """Write a tidy CSV atomically, one row per measured value; a cell is empty where the variable lacks that dimension.

    Tables, and differences that `compare` made.
    Columns: seed, step, examples_seen (where known), probe, example, token (where used), variable, units, value.

    >>> import tempfile
    >>> from toyld.trajectory import trajectory
    >>> path = Path(tempfile.mkdtemp()) / "run.csv"
    >>> to_csv(trajectory({"loss": [[1.0]]}, step=[0], probe=["chosen"]), path)
    >>> path.read_text().splitlines()[1]
    '0,0,,,loss,as logged,1.0'
    """
    if "difference" not in ds.attrs:
        validate(ds)
    axes = {*ds.coords, *ds.dims}
    coords = [name for name in ("seed", "step", "examples_seen", "probe", "example", "token") if name in axes]
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow([*coords, "variable", "units", "value"])
    for name, array in ds.data_vars.items():
        for place in np.argwhere(~np.isnan(array.values)).tolist():
            at = dict(zip(map(str, array.dims), place, strict=True))
            at |= {"examples_seen": at["step"]} if "step" in at else {}
            cells = [(ds[c].values[at[c]] if c in ds.coords else at[c]) if c in at else "" for c in coords]
            table.writerow([*cells, name, array.attrs.get("units", ""), repr(float(array.values[tuple(place)]))])
    _write(Path(path), out.getvalue().encode())
