"""How far the closed form goes: a whole stage of fine-tuning all layers, foretold from what is measured before it.

Three foretellings of Δ log π of every kind of response, each from the models at the start of the stage alone:

- *gram*: the closed form Z ← Z − η S R(Z) (`toyld.contexts`) with S the Gram matrix of the last hidden states, which is
  head-only fine-tuning exactly (K1);
- *tangent*: Z ← Z − η K R(Z) with K the kernel ∇_θ z ∇_θ zᵀ of all layers at the start, V×V for each two contexts: the
  linearised network, run without ever forming K;
- *line*: the tangent's first update alone, drawn out: what one step of A·K·G says about a whole run.

gram lacks what the layers below the head do and so goes at another pace. Each foretelling is therefore read twice:
after as many updates as the network took, and *paced*, where it has come as far as the network by the stage's own
clock: the mean Δ log π of chosen in SFT, the growth of the margin in DPO. It is judged, seed by seed, by the share of
the variance of Δ log π over kinds and prompts that it explains, 1 − Σ(Δ − Δ̂)²/Σ(Δ − mean Δ)², by its squared
correlation with Δ (what is left of that when offset and size are forgiven), and by the signs that it says rightly.

Settings: plain descent, whose kernel needs no memory; SFT of 40 updates, which takes chosen to a third of its surprise;
40 of DPO at a third of the rate that others take, so that the first of them moves the margin by one nat and not by
three: what a kernel explains of that update depends on it. Closed forms run longer than the network, so that the slower
of them may get there; where one does not, paced columns are NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.attention import SDPBackend, sdpa_kernel

from toyld import contexts, objectives
from toyld.contexts.kernels import measured
from toyld.contexts.measure import measure
from toyld.contexts.rows import Rows
from toyld.tiny.experiments._worlds import BETA, RECIPES, world
from toyld.tiny.models import Models
from toyld.tiny.stage import Scene, probe, scene, train
from toyld.tiny.texts import Texts
from toyld.trajectory import trajectory

__all__ = ["FORETOLD", "MARKS", "foretell", "tables"]

FORETOLD = ("gram", "tangent", "line")
MARKS = {"sft": (1, 5, 10, 20, 40), "dpo": (1, 5, 10, 20, 40)}
GENTLE = 3  # of the rate of DPO that other experiments take
LONGER = {"gram": 3.0, "tangent": 1.3}  # than the network


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """A table a stage, `reach sft` and `reach dpo`; columns by foretelling f:

    eval_explained_f, eval_explained_f_paced: shares of the variance; eval_alike_f: squared correlations; eval_signs_f:
    share of the responses whose direction it says rightly; eval_pace_f: its clock over the network's. All but paced
    ones after as many updates. eval_exact: the largest
    |Δ̂ − Δ| of gram where the head alone trains, nats. eval_clock: how far the network has come, nats.
    """
    w, recipe = world(tuple(seeds), size), RECIPES["sgd"]
    out, models = {}, w.models
    for stage, objective, lr in (
        ("sft", objectives.get("sft"), recipe.sft),
        ("dpo", objectives.get("dpo", beta=BETA), recipe.dpo / GENTLE),
    ):
        asked: dict[str, Any] = {"rejected": None if stage == "sft" else "rejected"}
        marks = (0, *MARKS[stage])
        run, alone = (
            train(models, w.data, objective, lr=lr, steps=marks[-1], at=marks, layers=layers, **asked)
            for layers in ("all", "head")
        )
        found = foretell(models, w.data, objective, lr=lr, steps=marks[-1], sides=_sides(stage))
        out[f"reach {stage}"] = _table(
            stage, run.values["logp"], alone.values["logp"], found, marks, run.kinds, models.seeds
        )
        models = run.models
    return out


def _sides(stage: str, /) -> dict[str, str]:
    """Sides of a stage's rows."""
    return {"chosen": "chosen"} if stage == "sft" else {"chosen": "chosen", "rejected": "rejected"}


def foretell(
    models: Models, data: Texts, objective: Any, /, *, lr: float, steps: int, sides: dict[str, str]
) -> dict[str, np.ndarray]:
    """log π by foretelling, (update 0 …, S, kind, P), of a stage of plain descent that starts at `models`.

    Kinds in the order of `data.texts`.
    """
    kinds = tuple(data.texts)
    shown = scene(data, kinds, models)
    rows_of = scene(data, tuple(sides.values()), models)
    return {
        "gram": _gram(models, shown, objective, lr=lr, steps=round(LONGER["gram"] * steps), sides=sides),
        **_tangent(models, rows_of, shown, objective, lr=lr, steps=round(LONGER["tangent"] * steps), sides=sides),
    }


def _gram(
    models: Models, shown: Scene, objective: Any, /, *, lr: float, steps: int, sides: dict[str, str]
) -> np.ndarray:
    """The closed form from the last hidden states, in float64; every position of every row is a context."""
    z, phi = probe(models, shown, variables=False)[1], models.hidden(shown.inputs).double().flatten(1, 2)
    order = _first(shown, list(sides.values()))
    back = torch.argsort(order)
    responses = {kind: r._replace(context=back[r.context]) for kind, r in shown.responses.items()}
    trained = len(sides) * (shown.trained // len(responses))
    here = contexts.World(z[:, order], measured(phi[:, order]), responses, trained, models.seeds)
    at = _marks(steps)
    run = contexts.train(
        here, objective, lr=lr, steps=steps, rejected=sides.get("rejected"), at=at, kinds=tuple(responses)
    )
    return _between(np.array(at), run.values["logp"], np.arange(steps + 1))


def _marks(steps: int) -> list[int]:
    """When to look: at each of the first updates, then at every fifth."""
    return [k for k in range(steps + 1) if k <= 2 or k % 5 == 0 or k == steps]


def _first(shown: Scene, kinds: list[str]) -> torch.Tensor:
    """The positions of all rows, those of these kinds first."""
    each = torch.arange(shown.trained).chunk(len(shown.responses))
    places = dict(zip(shown.responses, each, strict=True))
    return torch.cat([*(places[kind] for kind in kinds), *(v for k, v in places.items() if k not in kinds)])


class _Linear:
    """z0 + J·δ and Jᵀ·R of some rows at parameters that stay where they are, by one graph each that is kept."""

    def __init__(self, models: Models, of: Scene) -> None:
        self.leaf = models.flat.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the one that can be differentiated twice
            self.z = models.logits(of.inputs, self.leaf).flatten(1, 2)
            self.dual = torch.zeros_like(self.z, requires_grad=True)
            (self.pulled,) = torch.autograd.grad(self.z, self.leaf, self.dual, create_graph=True)
        self.start = self.z.detach()

    def at(self, delta: torch.Tensor) -> torch.Tensor:
        """z0 + J·δ: Jᵀu is linear in u, so that its derivative along δ is J·δ."""
        return self.start + torch.autograd.grad(self.pulled, self.dual, delta, retain_graph=True)[0]

    def pull(self, r: torch.Tensor) -> torch.Tensor:
        """Jᵀ·R."""
        return torch.autograd.grad(self.z, self.leaf, r, retain_graph=True)[0]


def _tangent(
    models: Models, rows_of: Scene, shown: Scene, objective: Any, /, *, lr: float, steps: int, sides: dict[str, str]
) -> dict[str, np.ndarray]:
    """The linearised network, and its first update drawn out."""
    taught, seen = _Linear(models, rows_of), _Linear(models, shown)
    rows = Rows(rows_of, objective, sides, taught.start)
    delta = torch.zeros_like(taught.leaf)
    kinds = list(shown.responses)

    def logp(d: torch.Tensor) -> np.ndarray:
        return measure(seen.at(d).double(), shown.responses, kinds)["logp"].numpy()

    marks = _marks(steps)
    found, first = [], delta
    for k in range(steps + 1):
        if k in marks:
            found.append(logp(delta))
        if k < steps:
            delta = delta - lr * taught.pull(rows.residual(taught.at(delta)))
        first = delta if k == 0 else first
    each = np.arange(steps + 1)
    rate = logp(first) - found[0]
    line = found[0] + each[:, None, None, None] * rate
    return {"tangent": _between(np.array(marks), np.stack(found), each), "line": line}


def _between(marks: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values (mark, …) at other places, linear between marks."""
    right = np.clip(np.searchsorted(marks, at), 1, len(marks) - 1)
    share = ((at - marks[right - 1]) / (marks[right] - marks[right - 1])).reshape(-1, *[1] * (values.ndim - 1))
    return values[right - 1] + share * (values[right] - values[right - 1])


def _clock(stage: str, logp: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    """How far a stage has come (…, S): Δ log π of chosen, less that of rejected in DPO; means over prompts."""
    moved = (logp - logp[:1]).mean(-1)
    chosen = moved[..., kinds.index("chosen")]
    return chosen if stage == "sft" else chosen - moved[..., kinds.index("rejected")]


def _paced(clock: np.ndarray, values: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Values (update, S, …) where the clock (update, S) first comes to a goal (S,); NaN where it never does."""
    out = np.full(values.shape[1:], np.nan)
    for s, wanted in enumerate(goal):
        there = np.flatnonzero(clock[:, s] >= wanted)
        if len(there):
            k = max(int(there[0]), 1)
            share = (wanted - clock[k - 1, s]) / (clock[k, s] - clock[k - 1, s])
            out[s] = values[k - 1, s] + share * (values[k, s] - values[k - 1, s])
    return out


def _explained(real: np.ndarray, said: np.ndarray) -> np.ndarray:
    """1 − Σ(Δ − Δ̂)²/Σ(Δ − mean Δ)² over kinds and prompts, (S,)."""
    spread = ((real - real.mean((1, 2), keepdims=True)) ** 2).sum((1, 2))
    return 1.0 - ((real - said) ** 2).sum((1, 2)) / spread


def _alike(real: np.ndarray, said: np.ndarray) -> np.ndarray:
    """Squared correlation over kinds and prompts, (S,)."""
    return np.array([np.corrcoef(a.ravel(), b.ravel())[0, 1] ** 2 for a, b in zip(real, said, strict=True)])


def _table(
    stage: str, real: np.ndarray, alone: np.ndarray, found: dict[str, np.ndarray], marks: Sequence[int],
    kinds: Sequence[str], seeds: Sequence[int],
) -> xr.Dataset:  # fmt: skip
    """What the foretellings explain at each mark after the first; log π (…, S, kind, P)."""
    moved, clock = real - real[:1], _clock(stage, real, kinds)
    columns: dict[str, list[np.ndarray]] = {}

    def keep(name: str, value: np.ndarray) -> None:
        columns.setdefault(f"eval_{name}", []).append(value)

    for i, mark in list(enumerate(marks))[1:]:
        keep("clock", clock[i])
        keep("exact", np.abs(found["gram"][mark] - alone[i]).max((1, 2)))
        for name, path in found.items():
            said, own = path - path[:1], _clock(stage, path, kinds)
            paced = _paced(own, said, clock[i])
            keep(f"explained_{name}", _explained(moved[i], said[mark]))
            keep(f"explained_{name}_paced", _explained(moved[i], paced))
            keep(f"alike_{name}", _alike(moved[i], said[mark]))
            keep(f"signs_{name}", (np.sign(said[mark]) == np.sign(moved[i])).mean((1, 2)))
            keep(f"pace_{name}", own[mark] / clock[i])
    return trajectory(
        {name: np.stack(values, axis=1) for name, values in columns.items()},
        step=list(marks)[1:],
        probe=["chosen"],
        seed=seeds,
        world="tiny",
        stage="reach",
        arm=stage,
        attrs={"experiment": "reach", "model": "sgd"},
    )
