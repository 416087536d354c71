"""States of a run folder: `<stage>-<arm>/state-<step, 8 digits>.safetensors`, what a killed run goes on from.

A state holds named arrays (weights, the optimiser's memory, the state of random generators as arrays of integers) and
a JSON value beside them (the position in the data, say). The last two of each stage and arm are kept: whatever happens
while one is written, the one before it is there and whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toyld.checked import fail
from toyld.trajectory.storage import _write

__all__ = ["KEPT", "SavedState", "load_state", "save_state", "states"]

KEPT = 2
_NAME = re.compile(r"state-(\d{8,})\.safetensors")


class SavedState(NamedTuple):
    """A state as it was written: after how many updates, its arrays, and what stood beside them."""

    step: int
    arrays: dict[str, np.ndarray]
    beside: Any


def states(folder: Path, /) -> dict[int, Path]:
    """Step -> file of every state in the folder of one stage and arm, in order."""
    names = ((_NAME.fullmatch(file.name), file) for file in folder.glob("state-*.safetensors"))
    return dict(sorted((int(name[1]), file) for name, file in names if name))


def save_state(folder: Path, step: int, arrays: Mapping[str, np.ndarray], /, *, beside: Any = None) -> Path:
    """Write a state, whole or not at all, beside the last one of the others; its file. Equal states give equal bytes.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (10, 20, 30):
    ...     file = save_state(folder, step, {"head": np.full(2, step / 3)}, beside={"row": step})
    >>> list(states(folder)), load_state(file).arrays["head"].tolist(), load_state(file).beside
    ([20, 30], [10.0, 10.0], {'row': 30})
    """
    from safetensors.numpy import save

    plain = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    # One key: the format's writer puts several in no fixed order.
    about = {"toyld": json.dumps({"step": step, "beside": beside}, sort_keys=True, allow_nan=False)}
    file = folder / f"state-{step:08d}.safetensors"
    try:
        folder.mkdir(exist_ok=True)
        # First the removal: a writer killed between the two leaves one too few, which the resumed run makes again.
        for old in [other for other in states(folder).values() if other != file][: 1 - KEPT]:
            old.unlink(missing_ok=True)
        _write(file, save(plain, metadata=about))
    except OSError as error:
        fail("a folder to write in", f"{folder.name}: {error.strerror}", "check its permissions and its space")
    return file


def load_state(file: Path, /) -> SavedState:
    """The state in a file of `save_state`.

    Raises:
        TrajectoryError: another file, or a damaged one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as held:
            about = json.loads((held.metadata() or {})["toyld"])
            arrays = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
        return SavedState(int(about["step"]), arrays, about["beside"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        fail("a whole state", f"{file.parent.name}/{file.name} ({type(error).__name__})", "remove it, and resume")
