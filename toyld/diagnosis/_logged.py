"""Rewards as a trainer logs them, of one evaluation set or of the train rows, with their log-probabilities."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.diagnosis._line import FLOAT32, Points, half_unit
from toyld.diagnosis.thresholds import Thresholds

__all__ = ["PAIR", "Logged", "evaluations", "logged", "without_pairs"]

Floats = NDArray[np.float64]
PAIR = ("chosen", "rejected")
_REWARDS = re.compile(r"(train|eval|eval_.+)_rewards_(?:chosen|rejected)")


@dataclass(frozen=True)
class Logged:
    """Arrays [step], NaN where not measured; of what was not logged at all, none."""

    name: str
    train: bool
    step: NDArray[np.int32]
    reward: dict[str, Floats]
    logp: dict[str, Floats]
    margin: Floats | None = None
    accuracy: Floats | None = None
    loss: Floats | None = None

    @property
    def where(self) -> str:
        """For sentences."""
        return "train rows" if self.train else f"evaluations of {self.name}" if self.name else "evaluations"

    @property
    def level(self) -> float:
        """Typical size of a log-probability in nats; NaN where none was logged."""
        known = [np.abs(a[np.isfinite(a)]) for a in self.logp.values()]
        return float(np.median(np.concatenate(known))) if known else float("nan")

    def rows(self) -> NDArray[np.int64]:
        """Rows with a reward of every side."""
        return np.flatnonzero(np.logical_and.reduce([np.isfinite(a) for a in self.reward.values()]))

    def rounding(self, side: str, beta: float | None = None, *, thresholds: Thresholds) -> float:
        """What digits and float32 leave of a reward."""
        level = self.level
        return min(half_unit(self.reward[side]), thresholds.printed) + FLOAT32 * (level if level == level else 1.0) * (
            beta or 1.0
        )

    def points(self) -> Points:
        """Rewards and log-probabilities where both are known."""
        found = []
        for i, side in enumerate(PAIR):
            if side in self.reward and side in self.logp:
                x, y = self.reward[side], self.logp[side]
                known = np.isfinite(x) & np.isfinite(y)
                one, dy = np.ones(int(known.sum())), half_unit(y) + FLOAT32 * np.abs(y[known])
                found.append((x[known], y[known], i * one, self.step[known], half_unit(x) * one, dy))
        x, y, side_of, step, dx, dy = (
            (np.concatenate([[], *parts]) for parts in zip(*found, strict=True))
            if found
            else (np.zeros(0) for _ in range(6))
        )
        return Points(x, y, side_of.astype(np.int64), step.astype(np.int64), dx, dy)


def evaluations(ds: xr.Dataset, /) -> int:
    """How many steps have something measured on a fixed set of examples; train rows hold others every time.

    >>> from toyld.trajectory import trajectory
    >>> evaluations(trajectory({"loss": [[0.7, 0.6]], "eval_loss": [[np.nan, 0.5]]}, step=[1, 2], probe=["chosen"]))
    1
    """
    names = [name for name in ds.data_vars if name == "logp" or str(name).startswith("eval_")]
    known = np.zeros(ds.sizes["step"], bool)
    for name in names:
        known |= np.isfinite(ds[name].transpose("step", ...).values.reshape(len(known), -1)).any(1)
    return int(known.sum())


def without_pairs(ds: xr.Dataset, /) -> bool:
    """Whether a log has a loss and nothing of pairs: no rewards and no log-probabilities of answers.

    >>> from toyld.trajectory import trajectory
    >>> without_pairs(trajectory({"loss": [[2.5, 1.7]]}, step=[1, 2], probe=["chosen"]))
    True
    """
    kept = [str(name) for name in ds.data_vars if np.isfinite(ds[name].values).any()]
    pairs = any(name in ("logp", "argmax_logp") or re.search(r"_(?:rewards|logps)_", name) for name in kept)
    return not pairs and bool({"loss", "eval_loss"} & set(kept))


def logged(ds: xr.Dataset, /) -> list[Logged]:
    """Evaluation sets, then the train rows, of a table's first seed; those with rewards.

    >>> from toyld.trajectory import trajectory
    >>> values = {"eval_rewards_chosen": [[0.1]], "logp": [[[[-3.0]]]]}
    >>> [(log.where, list(log.logp)) for log in logged(trajectory(values, step=[10], probe=["chosen"]))]
    [('evaluations', ['chosen'])]
    """
    names = sorted({match[1] for key in ds.data_vars if (match := _REWARDS.fullmatch(str(key)))})
    named = str(ds.attrs.get("evaluation", ""))
    own = f"eval_{named}" if named else "eval"
    means = "logp" in ds and ds.example.values.tolist() == ["mean"]  # else logp is of other examples than eval_*

    def by_step(name: str) -> Floats | None:
        values = np.asarray(ds[name].values[0], float) if name in ds else np.zeros(0)
        return values if np.isfinite(values).any() else None

    found = []
    for prefix in sorted(names, key=lambda name: name == "train"):
        reward, logp = ({s: by_step(f"{prefix}_{kind}_{s}") for s in PAIR} for kind in ("rewards", "logps"))
        for side in PAIR:
            if logp[side] is None and prefix == own and means and side in ds.probe.values:
                values = np.asarray(ds.logp.sel(probe=side).values[0, :, 0], float)
                logp[side] = values if np.isfinite(values).any() else None
        found.append(
            Logged(
                name=prefix.removeprefix("eval").removeprefix("_"),
                train=prefix == "train",
                step=ds.step.values,
                reward={side: a for side, a in reward.items() if a is not None},
                logp={side: a for side, a in logp.items() if a is not None},
                margin=by_step(f"{prefix}_rewards_margins"),
                accuracy=by_step(f"{prefix}_rewards_accuracies"),
                loss=by_step("loss" if prefix == "train" else f"{prefix}_loss"),
            )
        )
    return [log for log in found if log.reward and log.rows().size]
