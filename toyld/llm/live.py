"""What a run says while it goes on: keys for its own trackers, lines for its reader, rows it goes on from."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from toyld.diagnosis import Verdict
from toyld.probes import KINDS
from toyld.report.copying import copying
from toyld.trajectory import load

__all__ = ["closing", "kept", "keys", "logged", "mirror", "news", "to_stderr"]

_LOUD = ("squeezing", "displacement", "divergence", "wrong-reference")


def to_stderr(line: str, /) -> None:
    """One line on standard error; on a terminal below the progress bar that may stand there."""
    print(("\n" if sys.stderr.isatty() else "") + f"toyld: {line}", file=sys.stderr, flush=True)


def logged(state: Any, /) -> dict[str, Any]:
    """loss, lr and grad_norm as the trainer last logged them, by variable; the loss a mean since the row before.

    >>> from types import SimpleNamespace
    >>> logged(SimpleNamespace(log_history=[{"loss": 0.5, "learning_rate": 1e-6}, {"ld/noise_floor": 1e-6}]))
    {'loss': [[0.5]], 'lr': [[1e-06]]}
    """
    names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
    for row in reversed(state.log_history):
        if "loss" in row:
            return {short: [[float(row[name])]] for name, short in names.items() if name in row}
    return {}


def kept(folder: Path, /, *, before: int) -> dict[int, xr.Dataset]:
    """The evaluations of a run that goes on with update number `before` + 1: those of up to `before` updates.

    Later ones are made again: they are set aside under a hidden name. At 0 the run begins anew, so that all are.
    """
    out = {}
    for file in sorted(folder.glob("eval-*.nc")):
        ds = load(file)
        step = int(ds.step.values[0])
        if 0 < before >= step:
            out[step] = ds
        else:
            file.replace(file.with_name(f".superseded-{file.name}"))
    return out


def keys(ds: xr.Dataset, found: Verdict, /) -> dict[str, float]:
    """The last evaluation as numbers that a tracker can plot.

        ld/KIND_logp       of each kind of response, chosen and rejected among them: mean log π
        ld/argmax_logp     of the likeliest token at every position of the chosen response
        ld/greedy_gap      argmax − chosen, what the greedy path is ahead
        ld/others_logp     mean over the kinds that are other texts: not the pair, and no part of it
        ld/top1_prob       mean over positions of the chosen response of max π
        ld/entropy         mean entropy there, nats
        ld/rank_acc        share of the pairs with log π(chosen) ≥ log π(rejected)
        ld/frac_squeezed   share of the examples whose chosen fell while argmax rose
        ld/noise_floor     how much scores depend on the shape of a batch

    Log-probabilities are nats a token, a mean over examples of each response's own mean; with the suffix _sum nats a
    response. The noise floor is nats a token. Where answers were sampled (`toyld.llm.solved`), means over prompts:

        ld/accuracy        share of the policy's own answers that are right
        ld/copied          share of the prompts whose solution has a perplexity up to the threshold
        ld/premem          pre-memorisation accuracy, of all evaluations up to this one
        ld/test_accuracy   accuracy on held-out prompts, where there are any
    """
    now = ds.isel(step=-1, seed=0)
    kinds = [str(kind) for kind in now.probe.values]
    chosen, out = now.sel(probe="chosen"), {}

    def both(name: str, values: Any, tokens: Any) -> None:
        out[f"ld/{name}"] = float(np.nanmean(values / tokens))
        out[f"ld/{name}_sum"] = float(np.nanmean(values))

    for kind in kinds:
        both(f"{kind}_logp", now.logp.sel(probe=kind).values, now.n_tokens.sel(probe=kind).values)
    both("argmax_logp", chosen.argmax_logp.values, chosen.n_tokens.values)
    both("greedy_gap", (chosen.argmax_logp - chosen.logp).values, chosen.n_tokens.values)
    pair = {"chosen", "rejected", *(key for key, kind in KINDS.items() if kind.group in ("part", "path"))}
    if others := [kind for kind in kinds if kind not in pair]:
        for suffix in ("", "_sum"):
            out[f"ld/others_logp{suffix}"] = float(np.mean([out[f"ld/{kind}_logp{suffix}"] for kind in others]))
    out |= {"ld/top1_prob": float(np.nanmean(chosen.top1)), "ld/entropy": float(np.nanmean(chosen.entropy))}
    if "rejected" in kinds:
        ahead = (chosen.logp - now.logp.sel(probe="rejected")).values
        out["ld/rank_acc"] = float(np.mean(ahead[np.isfinite(ahead)] >= 0))
    if found.share is not None:
        out["ld/frac_squeezed"] = float(found.share["squeezing"])
    if (asked := copying(ds)) is not None and asked.step[-1] == ds.step.values[-1]:
        for name in ("accuracy", "copied", "premem"):
            out[f"ld/{name}"] = float(getattr(asked, name)[-1].mean())
        if asked.held_out is not None:
            out["ld/test_accuracy"] = float(asked.held_out[0][-1])
    return {**out, "ld/noise_floor": float(ds.attrs["noise_floor"])}


def mirror(trainer: Any, numbers: Mapping[str, float], /) -> None:
    """Log the numbers beside the trainer's own: by the plain Trainer, for TRL's empties its running metrics.

    Not while the trainer is about to log: logging says that nothing is left to log at this step.
    """
    from transformers import Trainer

    Trainer.log(trainer, dict(numbers))


def news(found: Verdict, said: set[str], /) -> list[str]:
    """Lines that were not said yet: the early warning, a class that calls for a look, where to stop."""
    step, out = found.history[-1]["step"], []

    def say(what: str, text: str) -> None:
        if what not in said:
            said.add(what)
            out.append(f"step {step}: {text}")

    if found.warning is not None and found.warning.get("step") is not None:
        say("warning", f"warning: {found.warning['text']}")
    if found.verdict in _LOUD:
        moves = {k.removeprefix("d_"): v for k, v in found.numbers.items() if k.startswith("d_") and v is not None}
        text = ", ".join(f"{k} {v:+.3g}" for k, v in moves.items())
        say(found.verdict, f"consistent with {found.verdict} ({text} nats a response since the first evaluation)")
    loud = bool(out)
    for i, tip in enumerate(found.advice):
        if tip["knob"] == "steps":
            say(tip["change"], f"{tip['change']} ({tip['evidence']})")
        elif loud and i < 2:
            say(tip["change"], f"to try: {tip['knob']}: {tip['change']}")
    return out


def closing(found: Verdict, folder: Path, /) -> str:
    """The verdict in one line."""
    sure = "" if found.confidence is None else f" (confidence {found.confidence:g})"
    return f"consistent with {found.verdict}{sure}; see {folder / 'report.html'} and verdict.json"
