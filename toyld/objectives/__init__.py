"""Every fine-tuning loss and its push on each token's log-probability (§3.1, App. B.2 of the paper).

An objective is written once and serves closed forms (numpy, array-api-strict) and training (torch, with gradient):

    loss(batch) → (B,)          push(batch) → per side (B, T), −∂(Σ_b loss_b)/∂log π_t, > 0 pulls the token up.

For a *sequence* objective f(ℓ_+, ℓ_−) the push is constant along the response and equals c_± = −∂f/∂ℓ_±, from
`coefficients(batch)`; c_− < 0 is a negative gradient. On one softmax coefficient c on label y has residual
G = c (π − e_y), and a step of size s is z' = z − s G. *Token* objectives (`ppo`, `grpo`, `topr-token`,
`unlikelihood`, `ld-dpo`) differ along the response; `trl.aot`, `trl.aot_unpaired`, `trl.sft`, `kto` and `grpo` look
across the batch; the one *target* objective (`bs-t`) gives a residual from a target distribution. `kind` says which.

>>> import numpy as np
>>> from toyld import objectives
>>> batch = objectives.pair_batch(np.asarray([-3.0]), np.asarray([-5.0]))   # π = π_ref
>>> objectives.get("dpo", beta=0.1).coefficients(batch)                     # ±β/2
(array([0.05]), array([-0.05]))

Names without a prefix are the papers' losses; `trl.<loss_type>` are the 15 of TRL's DPOTrainer as its code computes
them, which is not always the same function (`trl.ipo` divides by |y|, `ipo` does not). `python -m toyld.objectives`
prints the table of them all, computed from the code.

**Adding a loss** takes a frozen dataclass with `loss` and `coefficients` (or `push`), and `@register`:

>>> from dataclasses import dataclass
>>> from typing import ClassVar
>>> @objectives.register
... @dataclass(frozen=True)
... class Cubic(objectives.SequenceObjective):
...     name: ClassVar[str] = "cubic"
...     source: ClassVar[str] = "an example"
...     beta: float = 0.1
...     def loss(self, batch):
...         return -self.beta * (batch.log_ratio("chosen") - batch.log_ratio("rejected")) ** 3
...     def coefficients(self, batch):
...         c = 3 * self.beta * (batch.log_ratio("chosen") - batch.log_ratio("rejected")) ** 2
...         return c, -c
>>> objectives.check(objectives.get("cubic")) < 1       # push = −autograd(loss), as the generated tests check it
True
>>> objectives.row("cubic").fades, objectives.row("cubic").bounded
('never (least 0)', 'no')
>>> del objectives.OBJECTIVES["cubic"]

From then on it stands in the table and in every generated test. A loss of the margin alone is shorter still: subclass
`MarginObjective` and give `value(h)` and `strength(h)` = −value'(h).
"""

# The order of these five is the order of OBJECTIVES and of the table.
from . import single, pairs, tokens, target, trl  # noqa: F401, I001
from .base import (
    OBJECTIVES,
    MarginObjective,
    Objective,
    SequenceObjective,
    UnknownObjectiveError,
    get,
    register,
)
from .batch import Batch, MissingSideError, ObjectiveError, Push, pair_batch
from .check import PushError, check, convert, random_batch, random_contexts
from .pairs import CDPO, CPO, CWDPO, DPO, DPOP, IPO, NCA, ORPO, RPO, SPPO, DPOShift, GateDPO, SimPO, SLiC
from .single import GA, KTO, NPO, NSR, SFT, TOPR, AsymRE, Extend
from .stable import detach
from .table import Row, looks_across, row, table, table_markdown
from .target import BST, TargetObjective
from .tokens import GRPO, LDDPO, PPO, TOPRToken, Unlikelihood, group_advantages
from .trl import (
    AOT,
    AOTUnpaired,
    APODown,
    APOZero,
    BCOPair,
    DiscoPOP,
    EXOPair,
    Hinge,
    Mix,
    NCAPair,
    Robust,
    Sigmoid,
    SigmoidNorm,
    SPPOHard,
    TokenMeanIPO,
    TokenMeanSFT,
)

__all__ = [
    "AOT",
    "BST",
    "CDPO",
    "CPO",
    "CWDPO",
    "DPO",
    "DPOP",
    "GA",
    "GRPO",
    "IPO",
    "KTO",
    "LDDPO",
    "NCA",
    "NPO",
    "NSR",
    "OBJECTIVES",
    "ORPO",
    "PPO",
    "RPO",
    "SFT",
    "SPPO",
    "TOPR",
    "AOTUnpaired",
    "APODown",
    "APOZero",
    "AsymRE",
    "BCOPair",
    "Batch",
    "DPOShift",
    "DiscoPOP",
    "EXOPair",
    "Extend",
    "GateDPO",
    "Hinge",
    "MarginObjective",
    "MissingSideError",
    "Mix",
    "NCAPair",
    "Objective",
    "ObjectiveError",
    "Push",
    "PushError",
    "Robust",
    "Row",
    "SLiC",
    "SPPOHard",
    "SequenceObjective",
    "Sigmoid",
    "SigmoidNorm",
    "SimPO",
    "TOPRToken",
    "TargetObjective",
    "TokenMeanIPO",
    "TokenMeanSFT",
    "UnknownObjectiveError",
    "Unlikelihood",
    "check",
    "convert",
    "detach",
    "get",
    "group_advantages",
    "looks_across",
    "pair_batch",
    "random_batch",
    "random_contexts",
    "register",
    "row",
    "table",
    "table_markdown",
]
