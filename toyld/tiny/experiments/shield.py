"""B4: what protects models in the DPO stage, its smaller pushes (β/2 at the reference), and whether RMSprop keeps it.

At the reference a pair's gradient is β/2 times that of ℓ₋ − ℓ₊, whatever the rate. Each arm takes its first updates at
one rate per optimiser: SFT on the chosen answers, DPO at each β (at the first start at .1 alone). Two starts: the
pretrained models, whose own samples the rejected answers are, so that neither side has been learnt; and the models
after SFT, where DPO begins in practice.

Rates, fixed on seeds from 1000 on, are such that SFT's first update moves a chosen answer by a tenth of a nat (RMSprop
and AdamW, whose first updates have entries of equal size) or up to one (SGD): small enough for first order, large
enough for float32. No warm-up, which would make both stages small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.tiny.experiments._worlds import BETA, world
from toyld.tiny.experiments.remedies import taught
from toyld.tiny.models import Models
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.stage import Run, train
from toyld.tiny.texts import Texts

__all__ = ["BETAS", "RATES", "UPDATES", "tables"]

BETAS = (0.05, 0.1, 0.2, 0.5)
KINDS = ("chosen", "rejected", "test_chosen")
# RMSprop's first update is η/√(1 − α) = 10 η an entry, AdamW's η.
RATES = {"sgd": 0.03, "rmsprop": 3e-5, "adamw": 3e-4}
# Of AdamW the very first update is RMSprop's: η times the sign of the gradient.
UPDATES: Mapping[str, Mapping[str, int]] = {
    "sgd": {"pretrained": 1, "taught": 4}, "rmsprop": {"pretrained": 1, "taught": 4}, "adamw": {"taught": 4},
}  # fmt: skip


def _moved(models: Models, data: Texts, objective: Any, updates: int, **options: Any) -> Run:
    """Measured after no, one and all updates, with a column train_moved (evaluation, S): ‖θ − θ_0‖."""
    runs = [train(models, data, objective, steps=1, at=(0, 1), kinds=KINDS, **options)]
    moved = [np.zeros(len(models)), _distance(runs[0].models, models)]
    if updates > 1:
        more: dict[str, Any] = {"memory": runs[0].memory, "reference": models, "done": 1}
        more |= {"steps": updates - 1, "at": (updates - 1,)}
        runs.append(train(runs[0].models, data, objective, kinds=KINDS, **more, **options))
        moved.append(_distance(runs[1].models, models))
    values = {name: np.concatenate([run.values[name] for run in runs]) for name in runs[0].values}
    return replace(
        runs[-1], steps=(0, 1, updates)[: len(moved)], values=values, loss=np.concatenate([run.loss for run in runs]),
        extra={"train_moved": np.stack(moved)},
    )  # fmt: skip


def _distance(models: Models, start: Models) -> np.ndarray:
    return np.asarray((models.flat - start.flat).double().norm(dim=1).cpu())


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """A table by optimiser, start and arm, "shield OPTIMIZER START ARM", arms sft and "dpo BETA".

    Column train_moved: ‖θ − θ_0‖. Attrs: start, optimizer, rate, and beta where there is one.

    >>> sum(len(starts) for starts in UPDATES.values())
    5
    """
    seeds = tuple(int(seed) for seed in seeds)
    w, count, out = world(seeds, size), len(seeds), {}
    starts = {"pretrained": w.models, "taught": taught(seeds, size, extend=False)}
    for name, start in ((name, start) for name in RATES for start in starts):
        if start not in UPDATES[name]:
            continue
        rule, rate, updates, models = Optimizer(name), RATES[name], UPDATES[name][start], starts[start]  # type: ignore[arg-type]
        told: dict[str, Any] = {"experiment": "shield", "model": f"tiny {size}", "start": start}
        told |= {"optimizer": name, "rate": rate}
        run = _moved(models, w.data, objectives.get("sft"), updates, lr=rate, optimizer=rule)
        out[f"shield {name} {start} sft"] = run.table("first updates", "sft", **told)
        betas = BETAS if start == "taught" else (BETA,)
        every = list(range(count)) * len(betas)  # one stack: β by β, seed by seed
        beta = torch.tensor(np.repeat(betas, count), dtype=w.models.flat.dtype)
        run = _moved(
            models.take(every), w.data.take(every), objectives.get("dpo", beta=beta), updates, lr=rate, optimizer=rule,
            rejected="rejected",
        )  # fmt: skip
        for i, b in enumerate(betas):
            members = range(i * count, (i + 1) * count)
            table = run.table("first updates", f"dpo {b}", members=members, beta=b, **told)
            out[f"shield {name} {start} dpo {b}"] = table
    return out
