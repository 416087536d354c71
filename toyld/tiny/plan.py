"""The plan of `toyld run tiny`: everything that determines a run's numbers, its arms, its sizes.

Arms:

    baseline        SFT on the chosen answers, then the preference stage
    extend-updates  SFT on chosen and rejected answers as rows of their own, as many updates as baseline:
                    half the passes over the chosen answers
    extend-passes   the same until it has made as many passes over the chosen answers as baseline: twice the updates
    on-policy       after the SFT of baseline, against answers of the model that this SFT made

An update sees as many rows in every arm, and pretrained models are shared, so arms differ in what is told here alone.

Size paper is a CPU profile: 32 models of width 64 and depth 3 on languages of 48 questions, 13 minutes on one
thread. It is the same on a GPU.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from toyld.checked import LARGEST, BadInput
from toyld.tiny.experiments import _worlds
from toyld.tiny.language import Sizes
from toyld.tiny.optimizers import Optimizer

__all__ = ["ARMS", "RECIPES", "SIZES", "Arm", "Plan"]


class Arm(NamedTuple):
    """sft: the arm whose SFT it follows. both: rejected answers are taught, too. times: as many updates of SFT."""

    sft: str
    both: bool = False
    times: int = 1


ARMS: Mapping[str, Arm] = {
    "baseline": Arm("baseline"),
    "extend-updates": Arm("extend-updates", both=True),
    "extend-passes": Arm("extend-passes", both=True, times=2),
    "on-policy": Arm("baseline"),
}
# Those of the experiments; AdamW's steps are bounded by its rate where RMSprop's first ones are up to ten times as
# large, so that three times the rate teaches as fast.
RECIPES: Mapping[str, _worlds.Recipe] = {
    **_worlds.RECIPES, "adamw": _worlds.Recipe(Optimizer("adamw"), sft=1e-3, dpo=5e-4, warmup=10),
}  # fmt: skip
# Worlds as the experiments have them. SFT by RMSprop ends where chosen has kept .3 of its surprise, the preference
# stage where the margin has grown by 1.5 to 3 times what SFT left (seeds from 1000 on).
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {"seeds": 8, "sft_steps": 80, "steps": 60, "evaluations": 10},
    "paper": {"seeds": 32, "sft_steps": 40, "steps": 60, "evaluations": 20},
}


@dataclass(frozen=True)
class Plan:
    """One run, everything that determines its numbers.

    language: of `Sizes`, concentration and knowledge for two. model: width, depth, heads. temperature: at which the
    model says y−. shared: first tokens that y− takes over from y+. parameters: of the objective, β for one. batch: rows
    an update, `prompts` by default. warmup: updates over which the rates of both stages rise. evaluations: of each
    stage, after the one at its start. copies: sampled answers to a prompt at each.
    """

    language: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, int] = field(default_factory=dict)
    seeds: tuple[int, ...] = tuple(range(4))
    pretrain_steps: int = 300
    pretrain_lr: float = 6e-3
    prompts: int = 8
    temperature: float = 1.0
    shared: int = 0
    arms: tuple[str, ...] = tuple(ARMS)
    objective: str = "dpo"
    parameters: Mapping[str, float] = field(default_factory=dict)
    optimizer: str = "rmsprop"
    warmup: int = 10
    batch: int | None = None
    sft_lr: float = 3e-4
    sft_steps: int = 80
    lr: float = 2e-4
    steps: int = 60
    evaluations: int = 10
    copies: int = 2
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        above = ("pretrain_steps", "pretrain_lr", "temperature", "sft_lr", "sft_steps", "lr", "steps", "evaluations")
        if bad := [name for name in (*above, "copies", "threads") if not 0 < getattr(self, name) < np.inf]:
            msg = f"{bad[0]}: expected a finite number > 0, got {getattr(self, bad[0])}"
            raise BadInput(msg)
        for name in ("lr", "sft_lr", "pretrain_lr"):
            if getattr(self, name) > LARGEST:
                msg = f"{name}: expected a rate up to {LARGEST:.0e}, got {getattr(self, name):g}; lower it"
                raise BadInput(msg)
        if self.threads > (most := os.cpu_count() or 1):
            msg = f"threads: expected at most the {most} of this machine, got {self.threads}; lower it"
            raise BadInput(msg)
        if not 0 < self.parameters.get("beta", 1.0) <= LARGEST:
            got = self.parameters["beta"]
            msg = f"beta: expected a number > 0, up to {LARGEST:.0e}, got {got}; β < 0 turns the preference round"
            raise BadInput(msg)
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            msg = f"seeds: expected at least one, from 0 to 2^31 − 1, got {list(self.seeds)[:5]}"
            raise BadInput(msg)
        if not self.arms or len(set(self.arms)) < len(self.arms) or set(self.arms) - set(ARMS):
            msg = f"arms: expected some of {', '.join(ARMS)}, each once, got {', '.join(self.arms) or 'none'}"
            raise BadInput(msg)
        if self.batch is not None and (self.batch < 1 or self.prompts % self.batch):
            msg = f"batch: expected a divisor of the {self.prompts} prompts, so that passes are whole, got {self.batch}"
            raise BadInput(msg)
        last = 2 * Sizes(**self.language).least - 1  # the last place that every answer has a word at
        if not 0 <= self.shared <= last:
            msg = f"shared: expected 0 to {last} tokens, so that answers can differ behind them, got {self.shared}"
            raise BadInput(msg)
        Optimizer(self.optimizer)  # type: ignore[arg-type]  # it says what it expects
        if self.device not in ("cpu", "cuda"):
            msg = f"device: expected cpu or cuda, got {self.device}"
            raise BadInput(msg)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("device: expected a GPU that torch can use for cuda, got none; run it on the cpu")

    @property
    def stages(self) -> tuple[str, str, str]:
        """Names of the stages: pretrain, of which states are kept alone, sft, and the objective's."""
        return "pretrain", "sft", re.sub(r"\W", "_", self.objective)

    @property
    def rule(self) -> Optimizer:
        """Of both stages; pretraining has its own."""
        return RECIPES[self.optimizer].optimizer

    def marks(self, steps: int, /) -> list[int]:
        """Updates after which a stage of so many is evaluated."""
        return sorted({round(steps * k / self.evaluations) for k in range(self.evaluations + 1)})

    @property
    def rows(self) -> int:
        """Rows an update."""
        return self.prompts if self.batch is None else self.batch

    @property
    def taught(self) -> tuple[str, ...]:
        """The arms whose SFT is made, in order."""
        return tuple(dict.fromkeys(ARMS[arm].sft for arm in self.arms))

    def length(self, arm: str, /) -> dict[str, float]:
        """How long the SFT of an arm is: updates, and passes over the chosen answers.

        >>> Plan().length("extend-updates"), Plan().length("extend-passes")
        ({'sft_updates': 80, 'sft_passes': 40.0}, {'sft_updates': 160, 'sft_passes': 80.0})
        """
        updates = self.sft_steps * ARMS[arm].times
        return {"sft_updates": updates, "sft_passes": updates * self.rows / (self.prompts * (1 + ARMS[arm].both))}
