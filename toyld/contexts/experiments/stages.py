"""The paper's own stages in closed form: SFT, then DPO, of `facts` worlds, beside extended SFT and fair controls.

Every table is one stage of one arm of one *model*: a kernel. The units are seeds, each a world of its own. Arms:

- `baseline`: SFT on the chosen answers for `sft_updates` updates (0 = DPO alone), then DPO on the pairs;
- `extend`: SFT on chosen and rejected answers as rows of their own (the paper's §4.3), then the same DPO;
- `on-policy`: SFT as `baseline`, then DPO against answers that the trained policy itself gives.

Extended SFT is the mean over 2P rows. The objective `extend` is minus the sum of both log-probabilities of a pair, its
mean over P pairs twice the mean over the 2P rows: half the learning rate makes one update of it one of the latter, in
which each chosen answer gets half the push that it gets in plain SFT. So extend is compared at matched *updates*, where
it has made half the passes over the chosen answers (attr `sft_passes`; a pass is the full push on every chosen answer),
and at matched *passes*, where it has made twice the updates.

Settings, each with its reason, fixed on other seeds than those of the record:

- Kernels: that of `languages`, the same without its common part, and half of it beside a common part of one half, for
  what language models' hidden states have in common differs widely from model to model.
- Learning rate of SFT .1 per prompt: an update moves a context's own logits by .1 of its residual, and .1 λ_max(S) over
  the contexts of SFT is below 4 for each kernel, so that descent is stable (K7).
- SFT of 10, 20, 40 updates brings the loss of the chosen answer to 60, 40 and 20 % of its start, with the large common
  part to 65, 50 and 35; released logs of the paper's models end at 61 and 66 %, a reproduction of another at 46 %.
- Learning rate of DPO 2/β times that of SFT: its push at the reference is β/2, and RMSprop, with which the paper
  trained, divides such a factor out.
- DPO of 30 updates lets the margin grow by 1.3 to 1.7 times the first loss of the chosen answer; 1.3 is what the
  reproduction's DPO after SFT reached.
- Negatives are the untrained model's own answers at temperature 1. An on-policy one that happens to equal the chosen
  answer stays: both sides of such a pair cancel, and throwing it away would change the number of pairs.

What the claims say to hold or to be refuted kept its sign with half the rates and twice the updates, with negatives at
temperature 4 or with two first tokens of the chosen answer, with a model that knows .4 of the answers, and with twice
the prompts (16 other seeds each).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from toyld import objectives
from toyld.contexts import languages
from toyld.contexts.engine import Run, State, train
from toyld.contexts.policy import respond, with_texts
from toyld.contexts.world import World

__all__ = ["DPO_UPDATES", "MODELS", "SFT_UPDATES", "SIZES", "pretrained", "tables"]

EXPERIMENT = "stages"
MODELS: Mapping[str, Mapping[str, float]] = {
    "local": {"identity": 0.5, "prompt": 0.25, "token": 0.25},
    "mixed": languages.KERNEL,
    "anisotropic": {"identity": 0.25, "common": 0.55, "prompt": 0.1, "token": 0.1},
}
SIZES: Mapping[str, Mapping[str, int]] = {
    "smoke": {"prompts": 8, "concepts": 8},
    "paper": {"prompts": 24, "concepts": 24},
}
STEP = 0.1  # η of SFT per prompt
BETA = 0.1
SFT_UPDATES = (10, 20, 40)
SFT_AT = (0, 1, 2, 4, 7, 10, 15, 20, 30, 40)
DPO_UPDATES = 30
DPO_AT = (0, 3, 6, 12, 18, 24, 30)
# Rephrases of a rejected answer say nothing of other negatives.
STALE = ("reject_gptsemantic", "reject_gptformat")


def pretrained(
    seeds: Sequence[int], size: str = "smoke", models: Mapping[str, Mapping[str, float]] = MODELS, **options: Any
) -> World:
    """The worlds of all models before any training: model by model, each with all the seeds."""
    names = sorted({name for kernel in models.values() for name in kernel})
    kernel = {name: np.repeat([k.get(name, 0.0) for k in models.values()], len(seeds)) for name in names}
    return languages.facts(seeds=list(seeds) * len(models), kernel=kernel, **{**SIZES[size], **options})


def _sft(world: World, updates: int, **options: Any) -> Run:
    prompts = world.responses["chosen"].token.shape[1]
    return train(world, objectives.get("sft"), lr=STEP * prompts, steps=updates, **options)


def _extend(world: World, updates: int, **options: Any) -> Run:
    """The mean over 2P rows: half the learning rate of the mean over P pairs."""
    prompts, both = world.responses["chosen"].token.shape[1], objectives.get("extend")
    return train(world, both, lr=STEP * prompts / 2.0, steps=updates, rejected="rejected", **options)


def _dpo(world: World, state: State, **options: Any) -> Run:
    prompts, dpo = world.responses["chosen"].token.shape[1], objectives.get("dpo", beta=BETA)
    rate = STEP * prompts * 2.0 / BETA
    options = {"at": DPO_AT, **options}
    return train(world, dpo, lr=rate, steps=DPO_UPDATES, state=state, rejected="rejected", **options)


def tables(seeds: Sequence[int] = range(32), size: str = "smoke") -> dict[str, xr.Dataset]:
    """Every stage of every arm of every model, by name, with the seeds as units.

    Attributes: experiment "stages", model (the kernel), stage, arm, and of a DPO stage `sft_updates` and `sft_passes`
    before it; extended SFT makes half a pass in an update.

    >>> found = tables(seeds=range(2))
    >>> found["mixed dpo extend after 20"].attrs["sft_passes"], found["mixed sft baseline"].sizes["seed"]
    (10.0, 2)
    """
    return _tables(pretrained(seeds, size), tuple(MODELS), len(seeds))


def _tables(world: World, models: Sequence[str], seeds: int) -> dict[str, xr.Dataset]:
    out: dict[str, xr.Dataset] = {}

    def keep(run: Run, stage: str, arm: str, **attrs: Any) -> None:
        for i, model in enumerate(models):
            after = f" after {attrs['sft_updates']}" if "sft_updates" in attrs else ""
            at = range(i * seeds, (i + 1) * seeds)
            named = {"experiment": EXPERIMENT, "model": model, **attrs}
            out[f"{model} {stage} {arm}{after}"] = run.table(stage, arm, worlds=at, **named)

    keep(_sft(world, SFT_UPDATES[-1], at=SFT_AT), "sft", "baseline")
    keep(_extend(world, SFT_UPDATES[1], at=[k for k in SFT_AT if k <= SFT_UPDATES[1]]), "sft", "extend")
    state, done = None, 0
    for updates in (0, *SFT_UPDATES):
        # A stage that goes on where the last one stopped is the longer stage, bit for bit.
        state = _sft(world, updates - done, state=state, at=[]).state
        done = updates
        told = {"sft_updates": updates, "sft_passes": float(updates)}
        keep(_dpo(world, state), "dpo", "baseline", **told)
        if updates == SFT_UPDATES[0]:
            own = {"rejected": respond(world, state, seed=0)}
            other, carried = with_texts(world, state, own)
            kinds = [kind for kind in other.responses if kind not in STALE]
            keep(_dpo(other, carried, kinds=kinds), "dpo", "on-policy", **told)
    state, done = None, 0
    for updates in SFT_UPDATES[:2]:
        state = _extend(world, updates - done, state=state, at=[]).state
        done = updates
        told = {"sft_updates": updates, "sft_passes": updates / 2.0}
        keep(_dpo(world, state), "dpo", "extend", **told)
    return out
