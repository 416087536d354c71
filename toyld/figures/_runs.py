"""Curves of runs in closed form for a figure: means over seeds with their intervals, model by model.

`by_hand` makes one of their numbers again from the definition, Z ← Z − η S R with R from `softmax.residual`: no batch,
no dual form, none of `contexts.train`. The checks of the figures compare with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from toyld.figures._by_hand import Texts, residual
from toyld.figures._look import require
from toyld.figures._table import Table, rows

__all__ = ["ARGMAX", "DASHES", "MAIN", "SEEDS", "by_hand", "collected", "paths", "starts_at_zero", "unit", "weight"]

Floats = NDArray[np.float64]
ARGMAX = "argmax"  # along the chosen contexts
SEEDS = {"smoke": 8, "paper": 32}
MAIN = "mixed"
DASHES = {"local": (0, (1.2, 1.5)), MAIN: "-", "anisotropic": (0, (5, 1.5))}


def paths(size: str, name: str, kind: str, /) -> tuple[list[int], Floats]:
    """(updates, change since the start (update, seed)) of one kind in one table of the experiment `stages`."""
    from toyld.contexts import experiments

    ds = experiments.run("stages", seeds=range(SEEDS[size]))[name]
    values = ds.argmax_logp.sel(probe="chosen") if kind == ARGMAX else ds.logp.sel(probe=kind)
    path = values.mean("example").transpose("step", "seed").values
    return [int(k) for k in ds.step.values], path - path[:1]


def collected(
    size: str,
    runs: Mapping[str, str],
    kinds: Iterable[str],
    /,
    *,
    minus: Mapping[str, str] | None = None,
    path_of: Callable[[str, str, str], tuple[list[int], Floats]] = paths,
) -> Table:
    """One row per run, kind and evaluation: name → what to call it; `minus`: name → the run to take off it.

    path_of: as `paths`, of another world.
    """
    from scipy.special import stdtrit

    columns: dict[str, list[object]] = {name: [] for name in ("run", "kind", "update", "seeds", "mean", "low", "high")}
    kinds = tuple(kinds)
    for name, called in runs.items():
        for kind in kinds:
            steps, path = path_of(size, name, kind)
            if minus is not None:
                path = path - path_of(size, minus[name], kind)[1]
            n, mean = path.shape[1], path.mean(1)
            half = stdtrit(n - 1, 0.975) * path.std(1, ddof=1) / n**0.5
            for k, step in enumerate(steps):
                row = (called, kind, step, n, mean[k], mean[k] - half[k], mean[k] + half[k])
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
    units = {"mean": "mean_nats", "low": "low_nats", "high": "high_nats"}
    return {units.get(name, name): np.array(values) for name, values in columns.items()}


def by_hand(seeds: int, model: str, /, *, sft: int, dpo: int) -> float:
    """Mean change of log π(y⁺) over seeds and prompts: over `dpo` updates behind `sft`, or over SFT where dpo = 0."""
    from toyld.contexts.experiments import stages

    kernel, changes = {model: stages.MODELS[model]}, []
    for seed in range(seeds):
        world = stages.pretrained([seed], models=kernel)
        n = slice(0, world.trained)
        z, gram = world.logits[0, n], np.asarray(world.kernel.block(n, n))[0]
        plus, minus = (Texts(*(a[0] for a in world.responses[kind][:2])) for kind in ("chosen", "rejected"))
        first = z
        for _ in range(sft):
            z = z - stages.STEP * gram @ residual(z, (plus, np.ones(len(plus.token))))
        if dpo:
            first = z
        for _ in range(dpo):
            gained = plus.logp(z) - plus.logp(first) - minus.logp(z) + minus.logp(first)
            c = 2.0 / (1.0 + np.exp(stages.BETA * gained))  # β(1 − a) at 2/β times the rate of SFT
            z = z - stages.STEP * gram @ residual(z, (plus, c), (minus, -c))
        changes.append((plus.logp(z) - plus.logp(first)).mean())
    return float(np.mean(changes))


def weight(model: str, /) -> str:
    """The weight c of the component common to all contexts, as the pictures write it: "c = .1"."""
    from toyld.contexts.experiments import stages

    return f"c = {stages.MODELS[model].get('common', 0.0):g}".replace("0.", ".")


def unit() -> None:
    """Require that the weights of every kernel sum to 1, so that c is also the common share c/(local + c)."""
    from toyld.contexts.experiments import stages

    for model, kernel in stages.MODELS.items():
        total = sum(kernel.values())
        require(abs(total - 1.0) < 1e-12, f"{model}: the weights of the kernel sum to {total:.12g}, expected 1")


def starts_at_zero(table: Mapping[str, np.ndarray], /) -> None:
    """Require that every curve begins with no change."""
    first = rows(table, update=0)
    worst = max(float(np.abs(first[name]).max()) for name in ("mean_nats", "low_nats", "high_nats"))
    require(worst == 0.0, f"a curve begins {worst:.3g} nats from where it began")
