"""What to try, ranked by evidence: the run itself, the closed form, published numbers, what users report.

The knobs stand in `toyld.diagnosis.knobs`. None of this predicts how far a knob would move the run at hand; it says
what is known about it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from toyld.diagnosis._logged import evaluations, without_pairs
from toyld.diagnosis.curves import Curves, curves
from toyld.diagnosis.knobs import KNOBS, self_limiting
from toyld.diagnosis.resample import known_mean
from toyld.objectives import OBJECTIVES, row

if TYPE_CHECKING:
    from toyld.diagnosis.verdict import Verdict

__all__ = ["PROBE", "advise"]

PROBE = "toyld probe --models MODEL_BEFORE_TRAINING checkpoint-100 checkpoint-200 --data pairs.jsonl --out RUN"
_INSTALL = 'pip install -e ".[llm]" (in the clone)'
_BAD = ("divergence", "squeezing", "displacement")
_GOOD = ("healthy", "sft-normal", "rejection")


def _signed(x: float) -> str:
    return f"{x:+.1f}".replace("-", "−")


def _objective(ds: xr.Dataset) -> tuple[str, dict[str, Any]]:
    """Name and parameters of the loss, where the table records them."""
    found = str(ds.attrs.get("objective", ""))
    try:
        given = json.loads(found)
    except (ValueError, RecursionError):
        return found, {}
    if not isinstance(given, dict):
        return str(given), {}
    inner = given.get("parameters")
    return str(given.get("name", "")), given | (inner if isinstance(inner, dict) else {})


def _pushes_down(reading: Verdict, name: str) -> bool:
    """Whether the run may hold a push on rejected: its loss has one, and rejected has not clearly risen."""
    rejected, between = reading.numbers.get("d_rejected"), reading.intervals.get("d_rejected")
    if rejected is not None and (rejected if between is None else between[0]) > 0:
        return False
    return not (name in OBJECTIVES and row(name).negative == "no")


def _stop(reading: Verdict, c: Curves, unit: str) -> Iterator[dict[str, str]]:
    """An earlier evaluation to go back to: where chosen peaked, the last that read well, or where the warning fired."""
    steps = [int(entry["step"]) for entry in reading.history]
    if c.chosen is None or steps != c.step.tolist():
        return
    kinds = [str(entry["verdict"]) for entry in reading.history]
    shares = [entry.get("share_squeezing") for entry in reading.history]
    mean, turns = known_mean(c.chosen), reading.probes.get("chosen", {})
    peak = turns.get("peak", {})
    lost = peak.get("to_end")
    sure = peak.get("to_end_low", lost)  # cross-fitted, with its interval where there are examples
    turned = len(kinds)
    while turned and kinds[turned - 1] in _BAD:
        turned -= 1
    if peak.get("interior") and sure is not None and sure > turns["floor_of_peaks"]:
        at = steps.index(peak["step"])
        text = f"chosen was highest there ({_signed(mean[at] - mean[0])} nats since the start) and has "
        text += f"lost {lost:.1f} nats since; it read {kinds[at]} there"
        text += " already" * (kinds[at] == reading.verdict)
    elif 1 < turned < len(kinds) and kinds[turned - 1] in _GOOD:
        at = turned - 1
        text = f"it read {kinds[at]} there, with chosen at {_signed(mean[at] - mean[0])} nats since the start, and no "
        text += f"evaluation from {steps[turned]} {unit} on reads well"
    elif reading.warning is not None and reading.warning.get("step") is not None:
        change = f"Read samples of the checkpoint nearest to {reading.warning['step']} {unit} before training further."
        seen = str(reading.warning["text"]).replace(
            f"at step {reading.warning['step']}", f"at {reading.warning['step']} {unit}"
        )
        yield {"knob": "steps", "change": change, "evidence": f"this run: {seen}"}
        return
    else:
        return
    if c.argmax is not None:
        moved = known_mean(c.argmax - c.argmax[0])
        text += f"; argmax {_signed(moved[at])} there, {_signed(moved[-1])} at the end"
    if shares[at] is not None and shares[-1] is not None:
        text += f"; squeezed {shares[at]:.0%} of the examples there, {shares[-1]:.0%} at the end"
    change = f"Stop after {steps[at]} {unit}, or take the checkpoint nearest to it."
    yield {"knob": "steps", "change": change, "evidence": f"this run: {text}"}


def _measure(reading: Verdict, c: Curves, ds: xr.Dataset) -> Iterator[dict[str, str]]:
    """What to measure where the numbers cannot tell."""
    why = "; ".join(reading.reasons) or "the numbers at hand do not tell"
    sft = without_pairs(ds)
    none = not sft and evaluations(ds) == 0
    if none:
        change = 'Log on a fixed set too: eval_dataset=…, eval_strategy="steps", eval_on_start=True.'
        text = "train rows hold other examples every time, so that they show no change of any one answer"
        yield {"knob": "eval_dataset", "change": change, "evidence": f"this run: {text}"}
    if c.argmax is None or c.chosen is None:
        change = f"Measure it on saved checkpoints: {_INSTALL}, then {PROBE} && toyld diagnose RUN "
        change += "(the model before training goes first)."
        yield {"knob": "probe", "change": change, "evidence": f"this run: {why}"}
    if len(c.step) < 2 and c.argmax is not None:
        change = 'Evaluate more often: eval_strategy="steps" with a smaller eval_steps.'
        yield {"knob": "eval_steps", "change": change, "evidence": f"this run: {why}"}
    if not c.has_step0 and not none and not sft:
        change = "Evaluate before the first update too: eval_on_start=True."
        text = "nothing was measured before the first update, so changes count from a policy that has moved already"
        yield {"knob": "eval_on_start", "change": change, "evidence": f"this run: {text}"}
    if c.noise_floor is None and not c.means_only and ds.attrs["world"] != "published":  # else nobody can score again
        change = "Score one checkpoint twice, in float32, to know the noise floor."
        yield {"knob": "noise floor", "change": change, "evidence": "this run: the scoring noise was not measured"}


def advise(reading: Verdict, ds: xr.Dataset, /) -> list[dict[str, str]]:
    """What to try for this verdict, best backed first: [{"knob", "change", "evidence"}, ...]; [] if nothing is wrong.

    >>> from toyld.diagnosis.verdict import diagnose
    >>> from toyld.trajectory import trajectory
    >>> run = {"logp": [[[[-90.0]], [[-95.0]]]], "argmax_logp": [[[[-60.0]], [[-45.0]]]]}
    >>> [item["knob"] for item in diagnose(trajectory(run, step=[0, 9], probe=["chosen"])).advice][:3]
    ['sft term', 'lr', 'loss']
    """
    c = curves(ds)
    if reading.verdict == "cannot-tell":
        return list(_measure(reading, c, ds))
    name, parameters = _objective(ds)
    unit = "updates" if ds.attrs["step_unit"] == "updates" else "examples"
    rate = float(np.nanmax(ds["lr"].values)) if "lr" in ds else float("nan")
    fill = {
        "lr": f" (this run's highest: {rate:.2g})" if np.isfinite(rate) else "",
        "beta": f" (this run's: {parameters['beta']:g})" if isinstance(parameters.get("beta"), int | float) else "",
    }
    down = _pushes_down(reading, name)
    losses = [loss for loss in self_limiting() if loss != name.removeprefix("trl.")]
    items = list(_stop(reading, c, unit)) if reading.verdict in (*_BAD, "sft-normal") else []
    for knob in sorted(KNOBS, key=lambda k: k.rank):
        if reading.verdict not in knob.verdicts or (knob.negative and not down):
            continue
        if "{losses}" in knob.change and len(losses) < len(self_limiting()):
            continue  # the run has such a loss already
        change = knob.change
        for key, text in (fill | {"losses": " or ".join(f'"{loss}"' for loss in losses)}).items():
            change = change.replace("{" + key + "}", text)
        items.append({"knob": knob.knob, "change": change, "evidence": knob.evidence})
    return items
