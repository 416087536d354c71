"""The plan of `toyld run llm`: everything that determines a run's numbers, its arms, its recipes.

Arms are those of `toyld run tiny`: SFT on the chosen answers, then preferences (baseline); SFT on rejected answers as
rows of their own too, in as many updates (extend-updates) or in as many passes over the chosen answers, which is twice
the updates (extend-passes); and baseline's SFT followed by pairs whose rejected answer that model said itself
(on-policy; where it had not ended after half of max_length tokens, the pair keeps its own).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toyld import objectives
from toyld.checked import BadInput

__all__ = ["ARMS", "RECIPES", "Arm", "Plan", "on_pairs"]


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
# paper: RMSprop at 5e-7 in both stages, a warm-up of 150 updates and no decay, batch 4, β = .1, evaluations each 1000
# examples, as the released code has it, but for three things that are the Trainer's: SFT's loss is a mean over the
# tokens of a batch and not a sum (RMSprop's steps do not depend on the scale, the clip at norm 10 does), the warm-up
# begins with a rate of 0, and a row above 512 tokens keeps more than the last 256 of its prompt if its answer is short.
# small: the same for small models, whose rates must be larger. Chosen at seeds from 1000 on, so that in the first 400
# pairs of TinyStories a model of 260,000 parameters moves as the paper's models do: its SFT raises chosen by 34 nats a
# response, and DPO had raised the margin by 11 after 75 of its 100 updates, while chosen lost 1.6 (50 updates on 200
# pairs: 19.5 at 2e-5; 31 at 5e-5, after SFT at 2e-5). Probes and evaluations are as many as keep three arms
# at some 6 minutes of a CPU core.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "optimizer": "rmsprop", "sft_lr": 5e-7, "lr": 5e-7, "warmup": 150, "batch": 4, "clip": 10.0, "max_length": 512,
        "sft_epochs": 4.0, "epochs": 8.0, "pairs": 5000, "probes": 500, "every": 1000, "seed": 1024,
    },
    "small": {
        "optimizer": "rmsprop", "sft_lr": 5e-5, "lr": 1e-5, "warmup": 20, "batch": 8, "clip": 10.0, "max_length": 256,
        "sft_epochs": 2.0, "epochs": 2.0, "pairs": 400, "probes": 48, "evaluations": 10, "seed": 0,
    },
}  # fmt: skip
NATIVE = "trl."  # objectives that TRL computes itself


def on_pairs(name: str, /, **parameters: Any) -> Any:
    """The objective of that name, if it can be trained on pairs whose reference is the policy before training.

    Raises:
        BadInput: one that needs more than that: an old policy, rewards, a third answer, logits.

    >>> on_pairs("npo")
    NPO(beta=0.1)
    >>> on_pairs("ppo")
    Traceback (most recent call last):
    toyld.checked.BadInput: --objective: expected one that reads pairs and a reference alone, got ppo, which reads ...
    """
    objective = objectives.get(name, **parameters)
    rows = np.asarray([[-1.0, -2.0], [-3.0, -0.5]])
    try:
        objective.loss(objectives.Batch(chosen=rows, rejected=rows, ref_chosen=rows, ref_rejected=rows))
    except (BadInput, TypeError) as bad:
        lacks = re.search(r"batch\.(\w+)", str(bad))
        needs = lacks[1] if lacks else "a target distribution"
        msg = f"--objective: expected one that reads pairs and a reference alone, got {name}, which reads {needs}; "
        raise BadInput(msg + "use dpo or another (toyld objectives)") from None
    return objective


@dataclass(frozen=True)
class Plan:
    """One run, everything that determines its numbers.

    objective: of the stage after SFT, a name of `toyld objectives`; parameters: its own, β for one; sft_term: weight of
    the chosen answers' mean negative log-probability a token, added to it. pairs: rows trained on, the first of the
    data, at most; held_out: rows (or a share) of the data that are kept out of them; probes: prompts that are measured,
    the first of those trained on, or of `probe_data`. sft_epochs, epochs: passes over the pairs. evaluations: of each
    stage, after the one at its start; every: rows trained on between two, in the place of it. lora: rank of adapters,
    None = all weights. bf16: products in bfloat16, weights in float32. checkpointing: activations are computed again.
    """

    model: str
    data: str
    probe_data: str | None = None
    arms: tuple[str, ...] = ("baseline", "extend-updates", "extend-passes")
    objective: str = "dpo"
    parameters: Mapping[str, float] = field(default_factory=dict)
    sft_term: float = 0.0
    optimizer: str = "rmsprop"
    sft_lr: float = 5e-5
    lr: float = 1e-5
    warmup: int = 20
    batch: int = 8
    accumulation: int = 1
    clip: float = 10.0
    max_length: int = 256
    sft_epochs: float = 2.0
    epochs: float = 2.0
    pairs: int = 400
    held_out: float = 0
    probes: int = 48
    kinds: tuple[str, ...] = ()
    evaluations: int = 10
    every: int | None = None
    lora: int | None = None
    bf16: bool = False
    checkpointing: bool = False
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        above = ("sft_lr", "lr", "batch", "clip", "sft_epochs", "epochs", "pairs", "probes", "evaluations", "threads")
        for name in (*above, "accumulation", "max_length", "every", "lora"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise BadInput(f"--{name.replace('_', '-')}: expected a finite number > 0, got {value}")
        for name in ("sft_term", "warmup", "held_out", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"--{name.replace('_', '-')}: expected a finite number >= 0, got {getattr(self, name)}")
        if not self.arms or len(set(self.arms)) < len(self.arms) or set(self.arms) - set(ARMS):
            msg = f"--arms: expected some of {', '.join(ARMS)}, each once, got {', '.join(self.arms) or 'none'}"
            raise BadInput(msg)
        if self.batch % self.processes:
            raise BadInput(f"--batch: expected a multiple of the {self.processes} processes, got {self.batch}")
        on_pairs(self.objective, **self.parameters)

    @property
    def stages(self) -> tuple[str, str]:
        """Names of the two stages."""
        name = {"trl.sigmoid": "dpo", "sft": "sft_on_pairs"}.get(self.objective, self.objective)
        return "sft", name.replace(".", "_").replace("-", "_")

    @property
    def taught(self) -> tuple[str, ...]:
        """The arms whose SFT is made, each once."""
        return tuple(dict.fromkeys(ARMS[arm].sft for arm in self.arms))

    @property
    def rows(self) -> int:
        """Rows that an update sees."""
        return self.batch * self.accumulation

    def updates(self, stage: str, pairs: int, /, arm: str = "baseline") -> int:
        """How many updates a stage has, for so many pairs."""
        plain = max(1, round((self.sft_epochs if stage == "sft" else self.epochs) * pairs / self.rows))
        return plain * ARMS[arm].times if stage == "sft" else plain

    def between(self, stage: str, pairs: int, /) -> int:
        """Updates between two evaluations; for all SFT those of plain SFT, so that arms share them."""
        return max(1, self.every // self.rows if self.every else self.updates(stage, pairs) // self.evaluations)

    def length(self, arm: str, pairs: int, /) -> dict[str, float]:
        """sft_updates and sft_passes of an arm: updates, and those of plain SFT with as many passes over chosen."""
        kind, updates = ARMS[ARMS[arm].sft], self.updates("sft", pairs, ARMS[arm].sft)
        return {"sft_updates": float(updates), "sft_passes": updates / (2.0 if kind.both else 1.0)}

    def config(self) -> dict[str, Any]:
        """All fields, model and data by their names alone: a moved folder is the same run (see the fingerprints)."""
        paths = {name: getattr(self, name) for name in ("model", "data", "probe_data")}
        return vars(self) | {name: path if path is None else Path(path).name for name, path in paths.items()}
