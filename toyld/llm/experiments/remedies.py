"""K6 on a pretrained language model at equal margin: what centred updates spare of chosen and of untrained stories.

Pairs of real text: how a story goes on (chosen), and what the model itself writes there after a short SFT (rejected);
eight pairs a seed, all in each update, and eight stories that are measured and never trained on. Every arm starts from
the same policy. Kernel `hidden`: the head alone trains, untied from the embedding, on hidden states that stay;
`layers`: all layers do, embedding and head tied as they came. Rule: plain descent or RMSprop, the paper's.

Arms, what of the inputs the weights are told:

    plain              all (DPO, β = .1)
    centred            less μ, the mean over the tokens of chosen and rejected in this update
    projected          without the part along μ
    centred-fixed      `hidden`: less μ of 64 other stories, measured once, before the stage
    centred-head       `layers`: of the head alone, all other layers as ever
    random             `hidden`: less a random vector as long as μ
    random-projected   without the part along a random direction
    top-component      without the part along the first principal component of the inputs less μ: no mean, but 18 % of
                       the head's inputs' square (μ 22 %), 8 % of those of other layers (μ 17 %)
    slower             all, at half the rate (attr first_step): what slower updates alone do

Settings, chosen on seeds from 1000 on, whose stories no seed of record has: rates at which plain DPO takes three to
ten updates to a margin of 10 nats and every arm is beyond 10 before its updates end. Of 20, in the record, `slower`
falls short, and with all layers under plain descent `centred` and `projected` in 4 and 6 of 12 seeds: claims on these
arms read 5 and 10. A seed stands for its texts; the model is one, so intervals say nothing about others.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.llm.centred import Means, Where, centred, measure
from toyld.llm.experiments._loop import Rows, Run, table, train
from toyld.llm.experiments._start import own, taught

__all__ = ["ARMS", "SETTINGS", "Arm", "Setting", "shares", "tables"]

NAME = "remedies"
OTHERS = 64  # stories that fixed means are measured on


@dataclass(frozen=True)
class Setting:
    """What trains, by which rule, at which rate; when it is measured. The last of `at` is the number of updates."""

    optimizer: str
    kernel: str
    rate: float
    at: tuple[int, ...]

    @property
    def warmup(self) -> int:
        """RMSprop's first updates are ten times as large without."""
        return 5 if self.optimizer == "rmsprop" else 0

    @property
    def layers(self) -> str:
        """As `Rows` names it."""
        return "head" if self.kernel == "hidden" else "all"


SETTINGS = (
    Setting("sgd", "hidden", 0.04, (0, 1, 2, 4, 6, 8, 11, 15, 20, 26, 33, 40)),
    Setting("rmsprop", "hidden", 3e-4, (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 28)),
    Setting("sgd", "layers", 0.0025, (0, 1, 2, 3, 4, 5, 7, 9, 12, 16)),
    Setting("rmsprop", "layers", 2e-5, (0, 2, 3, 4, 5, 6, 7, 8, 10)),
)


@dataclass(frozen=True)
class Arm:
    """How inputs are centred (None: not), which means (None: the batch's), which layers, at which part of the rate."""

    how: Any = None
    mean: str | None = None  # "fixed", "random", "component": see `_means`
    head: bool = False
    pace: float = 1.0


ARMS: Mapping[str, Arm] = {
    "plain": Arm(),
    "centred": Arm("subtract"),
    "projected": Arm("project"),
    "random-projected": Arm("project", "random"),
    "top-component": Arm("project", "component"),
    "slower": Arm(pace=0.5),
}
ONLY: Mapping[str, Mapping[str, Arm]] = {
    "hidden": {"centred-fixed": Arm("subtract", "fixed"), "random": Arm("subtract", "random")},
    "layers": {"centred-head": Arm("subtract", head=True)},
}


@functools.cache
def _means(seed: int, layers: str, what: str) -> Means:
    """Before the stage: of the "pairs", of other stories ("fixed"), the first in "random" directions, a "component"."""
    data, model = taught(seed)
    if what == "random":
        return _means(seed, layers, "pairs").turned(seed)
    texts = data.donors[:OTHERS] if what == "fixed" else [*data.chosen, *own(seed)]
    return measure(Rows(model, layers), texts, component=what == "component")


def _stage(seed: int, setting: Setting, arm: Arm) -> Run:
    data, model = taught(seed)
    rows = Rows(model, setting.layers)
    told: Any = nullcontext()
    if arm.how is not None:
        where: Where = "head" if arm.head or setting.layers == "head" else "all"
        mean = None if arm.mean is None else _means(seed, setting.layers, arm.mean)
        told = centred(rows, where=where, how=arm.how, mean=mean)
    with told:
        return train(
            rows, objectives.get("dpo"), data.chosen, own(seed), optimizer=setting.optimizer,
            lr=setting.rate * arm.pace, steps=setting.at[-1], at=setting.at, warmup=setting.warmup,
            probes={"test_chosen": data.test_chosen},
        )  # fmt: skip


def shares(means: Means, /) -> dict[str, float]:
    """‖μ‖² over the mean square: mean_share of the head's inputs where it trains alone, else layer_share, the mean over
    all layers but the head.

    >>> shares(Means({}, {"head": 0.25})), shares(Means({}, {"body.a": 0.25, "body.b": 0.75, "head": 0.1}))
    ({'mean_share': 0.25}, {'layer_share': 0.5})
    """
    rest = [share for name, share in means.share.items() if name != "head"]
    return {"layer_share": float(np.mean(rest))} if rest else {"mean_share": means.share["head"]}


def _tables(seeds: Sequence[int]) -> Iterator[tuple[str, xr.Dataset]]:
    for setting in SETTINGS:
        for name, arm in {**ARMS, **ONLY[setting.kernel]}.items():
            ds = table(
                {seed: _stage(seed, setting, arm) for seed in seeds}, stage="preference", arm=name, experiment=NAME,
                model="stories260K", kernel=setting.kernel, language=f"network {setting.optimizer}", objective="dpo",
                first_step=setting.rate * arm.pace,
            )  # fmt: skip
            if name == "plain":
                found = [shares(_means(seed, setting.layers, "pairs")) for seed in seeds]
                for column in found[0]:
                    value = np.full((len(seeds), ds.sizes["step"]), np.nan)
                    value[:, 0] = [one[column] for one in found]
                    ds[f"eval_{column}"] = (("seed", "step"), value)
            yield f"remedies {setting.optimizer} {setting.kernel} {name}", ds


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """Every arm's table by name, "remedies RULE KERNEL ARM"; the same at every size.

    eval_mean_share or eval_layer_share of the plain arm at update 0: see `shares`; of the pairs' own means.
    """
    torch.set_num_threads(1)
    return dict(_tables(tuple(int(seed) for seed in seeds)))
