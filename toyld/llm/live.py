"""What a run says while it goes on: keys for its own trackers, lines for its reader, rows it goes on from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toyld.diagnosis import Verdict
from toyld.trajectory import load

__all__ = ["closing", "kept", "keys", "logged", "mirror", "news", "opening", "to_stderr"]

_LOUD = ("squeezing", "displacement", "divergence", "wrong-reference")


def to_stderr(line: str, /) -> None:
    """One line on standard error, above a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(f"toyld: {line}", file=sys.stderr)


def logged(state: Any, /) -> dict[str, Any]:
    """loss, lr and grad_norm as the trainer last logged them, by variable."""
    names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
    for row in reversed(state.log_history):
        if "loss" in row:
            return {short: [[float(row[name])]] for name, short in names.items() if name in row}
    return {}


def kept(folder: Path, /, *, until: int, move: bool) -> dict[int, xr.Dataset]:
    """The evaluations of at most `until` updates; later ones, made again, are set aside (hidden)."""
    out = {}
    for file in sorted(folder.glob("eval-*.nc")):
        ds = load(file)
        step = int(ds.step.values[0])
        if step <= until:
            out[step] = ds
        elif move:
            file.replace(file.with_name(f".superseded-{file.name}"))
    return out


def keys(ds: xr.Dataset, found: Verdict, /) -> dict[str, float]:
    """The last evaluation as numbers a tracker can plot: nats a token, and nats a response with the suffix _sum."""
    now = ds.isel(step=-1, seed=0)
    out: dict[str, float] = {}

    def both(name: str, values: Any, tokens: Any) -> None:
        out[f"ld/{name}_logp"] = float(np.nanmean(values / tokens))
        out[f"ld/{name}_logp_sum"] = float(np.nanmean(values))

    for kind in [str(k) for k in now.probe.values]:
        both(kind, now.logp.sel(probe=kind).values, now.n_tokens.sel(probe=kind).values)
    chosen = now.sel(probe="chosen")
    both("argmax", chosen.argmax_logp.values, chosen.n_tokens.values)
    out["ld/greedy_gap"] = out["ld/argmax_logp"] - out["ld/chosen_logp"]
    out |= {"ld/top1_prob": float(chosen.top1.mean()), "ld/entropy": float(chosen.entropy.mean())}
    if "rejected" in now.probe.values:
        better = now.logp.sel(probe="chosen").values >= now.logp.sel(probe="rejected").values
        out["ld/rank_acc"] = float(np.mean(better))
    if found.share is not None:
        out["ld/frac_squeezed"] = float(found.share["squeezing"])
    return {**out, "ld/noise_floor": float(ds.attrs["noise_floor"])}


def mirror(trainer: Any, control: Any, numbers: Mapping[str, float], /) -> None:
    """Log the numbers beside the trainer's own: through the plain Trainer, for TRL's would flush its metrics early."""
    from transformers import Trainer

    before = dict(vars(control))  # what is still to be done at this step: logging says that it is not
    Trainer.log(trainer, dict(numbers))
    vars(control).update(before)
    vars(trainer.control).update(before)


def opening(ds: xr.Dataset, reference: Any, floor: float, /) -> str:
    """What was measured before the first update, in one line."""
    probes = f"{ds.sizes['example']} prompts × {ds.sizes['probe']} kinds"
    if reference is None:
        told = "no reference model"
    else:
        off = np.nanmax(np.abs(ds.logp.values[0, -1] - reference) / ds.n_tokens.values[0])
        told = f"policy and reference differ by at most {off:.1e} nats/token"
    return f"step 0: {probes}; {told}; scoring noise {floor:.1e} nats/token"


def news(found: Verdict, said: set[str], /) -> list[str]:
    """Lines that were not said yet: the early warning, and a class that calls for a look."""
    step, out = found.history[-1]["step"], []
    if found.warning is not None and found.warning.get("step") is not None and "warning" not in said:
        said.add("warning")
        knobs = "; ".join(f"{tip['knob']}: {tip['change']}" for tip in found.advice[:2])
        out.append(f"step {step}: warning: {found.warning['text']}" + (f". To try: {knobs}" if knobs else ""))
    if found.verdict in _LOUD and found.verdict not in said:
        said.add(found.verdict)
        numbers = {k.removeprefix("d_"): v for k, v in found.numbers.items() if k.startswith("d_") and v is not None}
        moves = ", ".join(f"{k} {v:+.3g}" for k, v in numbers.items())
        out.append(f"step {step}: consistent with {found.verdict} ({moves} nats since step 0)")
    return out


def closing(found: Verdict, folder: Path, /) -> str:
    """The verdict in one line."""
    sure = "" if found.confidence is None else f" (confidence {found.confidence:g})"
    return f"consistent with {found.verdict}{sure}; see {folder / 'report.html'} and verdict.json"
