"""The plan of `toyld run llm`: everything that determines a run's numbers, its arms, its recipes.

Arms are those of `toyld run tiny`: SFT on the chosen answers, then preferences (baseline); SFT on rejected answers as
rows of their own too, in as many updates (extend-updates) or in as many passes over the chosen answers, which is twice
the updates (extend-passes); and baseline's SFT followed by pairs whose rejected answer that model said itself
(on-policy).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from toyld import objectives
from toyld.checked import BadInput

__all__ = ["ARMS", "RECIPES", "Arm", "Plan"]


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
# paper: as the released code has it (RMSprop, both stages at one rate, β = .1, 150 updates of warm-up, no decay).
# small: the same for models of a few million parameters, whose rates are larger, and for an hour of a CPU.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "optimizer": "rmsprop", "sft_lr": 5e-7, "lr": 5e-7, "warmup": 150, "batch": 4, "clip": 10.0, "max_length": 512,
        "sft_epochs": 4.0, "epochs": 8.0, "pairs": 5000, "probes": 500, "evaluations": 20, "seed": 1024,
    },
    "small": {
        "optimizer": "rmsprop", "sft_lr": 2e-5, "lr": 1e-5, "warmup": 20, "batch": 8, "clip": 10.0, "max_length": 256,
        "sft_epochs": 2.0, "epochs": 2.0, "pairs": 400, "probes": 64, "evaluations": 10, "seed": 0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One run, everything that determines its numbers.

    objective: of the stage after SFT, a name of `toyld objectives`; parameters: its own, β for one. pairs: rows trained
    on, at most. probes: prompts that are measured, of those trained on (`held_out` of them are not). sft_epochs,
    epochs: passes over the pairs. lora: rank of the adapters, None = all weights. steps (sft_steps): updates in the
    place of epochs. evaluations: of each stage, after the one at its start.
    """

    model: str
    data: str
    arms: tuple[str, ...] = ("baseline", "extend-updates", "extend-passes")
    objective: str = "dpo"
    parameters: Mapping[str, float] = field(default_factory=dict)
    optimizer: str = "rmsprop"
    sft_lr: float = 2e-5
    lr: float = 1e-5
    warmup: int = 20
    batch: int = 8
    accumulation: int = 1
    clip: float = 10.0
    max_length: int = 256
    sft_epochs: float = 2.0
    epochs: float = 2.0
    sft_steps: int | None = None
    steps: int | None = None
    pairs: int = 400
    probes: int = 64
    kinds: tuple[str, ...] = ()
    evaluations: int = 10
    lora: int | None = None
    dtype: str = "float32"
    checkpointing: bool = False
    seed: int = 0
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        above = ("sft_lr", "lr", "batch", "clip", "sft_epochs", "epochs", "pairs", "probes", "evaluations")
        for name in (*above, "accumulation", "threads", "max_length"):
            if not 0 < getattr(self, name) < math.inf:
                msg = f"--{name.replace('_', '-')}: expected a finite number > 0, got {getattr(self, name)}"
                raise BadInput(msg)
        if not self.arms or len(set(self.arms)) < len(self.arms) or set(self.arms) - set(ARMS):
            msg = f"--arms: expected some of {', '.join(ARMS)}, each once, got {', '.join(self.arms) or 'none'}"
            raise BadInput(msg)
        if self.probes > self.pairs:
            msg = f"--probes: expected at most the {self.pairs} pairs that are trained on, got {self.probes}"
            raise BadInput(msg)
        objectives.get(self.objective, **self.parameters)

    @property
    def stages(self) -> tuple[str, str]:
        """Names of the two stages."""
        return "sft", "dpo" if self.objective in ("dpo", "trl.sigmoid") else self.objective.replace(".", "_").replace(
            "-", "_"
        )

    @property
    def taught(self) -> tuple[str, ...]:
        """The arms whose SFT is made, each once."""
        return tuple(dict.fromkeys(ARMS[arm].sft for arm in self.arms))

    def updates(self, stage: str, pairs: int, /, arm: str = "baseline") -> int:
        """How many updates a stage has, for so many pairs."""
        given, epochs = (self.sft_steps, self.sft_epochs) if stage == "sft" else (self.steps, self.epochs)
        plain = given or max(1, round(epochs * pairs / (self.batch * self.accumulation)))
        return plain * ARMS[arm].times if stage == "sft" else plain

    def every(self, stage: str, pairs: int, /) -> int:
        """Updates between two evaluations: those of plain SFT for all SFT, so that arms share them."""
        return max(1, self.updates(stage, pairs) // self.evaluations)

    def length(self, arm: str, pairs: int, /) -> dict[str, float]:
        """sft_updates and sft_passes of an arm: updates, and those of plain SFT with as many passes over chosen."""
        kind, updates = ARMS[ARMS[arm].sft], self.updates("sft", pairs, ARMS[arm].sft)
        return {"sft_updates": float(updates), "sft_passes": updates / (2.0 if kind.both else 1.0)}
