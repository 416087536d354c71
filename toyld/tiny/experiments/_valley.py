"""One negative step on one token of y⁻, and one DPO step on one pair: signs foretold from π, from K, from gradients.

*valley*: tokens of the rejected responses of `PROMPTS` prompts are pushed down, each alone, by one step of plain
descent on log π(y⁻_t), in the head or in all layers. Its size is s = η‖g‖²/‖π − e_y‖², so that in the head Δz =
−s(e_y − π) at its own context, the premise K ∝ I of T6; in all layers K is what it is. ΔH: change of entropy there.
s is *tiny* (1e-4: what it changes is first order) or *moderate* (1). Tables hold, by s,

- eval_law_S: share of tokens where sign ΔH is that of −{Cov_π(log π, π) − π_y(log π_y + H)}, read off π alone;
- eval_valley_S, eval_outside_S: how many fall of the tokens with log π_y ≤ −H, which T6 says fall for K ∝ I, and of the
  others; eval_falls_S: of all; eval_depth: the share of tokens with log π_y ≤ −H;
- eval_kernel_moderate: share where the sign is that of the tiny step, the first order with the network's own K.

*step*: the same at all tokens of y⁻ behind the divergence after one DPO update on all pairs, at the recipe's rate.

*entanglement* (Condition 1 of Yuan et al. 2024): log π(y⁺) rises iff ⟨g₊, g₋⟩ < ‖g₊‖², log π(y⁻) falls iff ⟨g₊, g₋⟩ <
‖g₋‖², with gradients of whole responses through all layers. Of pairs that share three tokens, after SFT, and after DPO
of other pairs by plain descent: there it fails for a quarter of them, of unrelated responses after SFT for hardly one.
eval_SIDE_WHEN: share of pairs where the sign is so, after a DPO update on that pair alone that moves its margin by
`SMALL` nats to first order (*small*), by `LARGE` (*large*), and after one on all pairs as small (*batch*);
eval_SIDE_meant_WHEN: the share that rises (chosen) or falls (rejected); eval_SIDE_sum_batch: share where the sign is
that of the sum over all pairs; eval_SIDE_said: the share of which Condition 1 says so. In float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.tiny.experiments._pairs import apart, beliefs, double, gradients, heads, members, scored
from toyld.tiny.experiments._worlds import BETA, RECIPES
from toyld.tiny.models import Models
from toyld.tiny.stage import scene, train
from toyld.tiny.texts import PAD, Texts

__all__ = ["PROMPTS", "SIZES", "SMALL", "law", "tables"]

PROMPTS, SMALL, LARGE = 3, 1e-3, 5.0
SIDES = ("chosen", "rejected")
SIZES = {"tiny": 1e-4, "moderate": 1.0}
Floats = np.ndarray[Any, np.dtype[np.float64]]


def law(logp: Floats, label: np.ndarray[Any, Any], /) -> Floats:
    """dH/ds of one negative step on a label, K ∝ I: −{Cov_π(log π, π) − π_y(log π_y + H)} (T6), (…,) from (…, V).

    >>> logp = np.log([[0.7, 0.2, 0.08, 0.02]])
    >>> law(logp, np.array([3])).round(3), law(logp, np.array([0])).round(3)
    (array([-0.262]), array([0.146]))
    """
    p = np.exp(logp)
    h = -(p * logp).sum(-1)
    own = np.take_along_axis(logp, label[..., None], -1)[..., 0]
    cov = (p * p * logp).sum(-1) + h * (p * p).sum(-1)
    return -(cov - np.exp(own) * (own + h))


def _entropy(logp: Any) -> Any:
    return -(np.exp(logp) * logp).sum(-1)


def tables(models: Models, moved: Models, data: Texts, pairs: Texts, /) -> dict[str, xr.Dataset]:
    """valley and step of the data; entanglement of `pairs` there and at `moved`, the models after DPO."""
    exact, out = double(models), {}
    for layers, columns in _valley(exact, data).items():
        out[f"valley, {layers}"] = scored(columns, models.seeds, stage="valley", arm=layers, layers=layers)
    for recipe, layers in (("sgd", "head"), ("sgd", "all"), ("rmsprop", "all")):
        columns = _step(models, data, recipe, layers)
        out[f"step, {recipe}, {layers}"] = scored(
            columns, models.seeds, stage="step", arm=f"{recipe}, {layers}", layers=layers, optimizer=recipe
        )
    for policy, one in (("sft", exact), ("dpo", double(moved))):
        out[f"entanglement after {policy}"] = scored(
            _entangled(one, pairs), models.seeds, stage="entanglement", arm=policy, policy=policy
        )
    return out


def _valley(models: Models, data: Texts) -> dict[str, dict[str, Floats]]:
    """Layers → the columns; prompt by prompt, with a member for every token."""
    seeds, _, length = data.texts["rejected"].shape
    found: dict[str, list[Any]] = {layers: [] for layers in ("head", "all")}
    for p in range(PROMPTS):
        one = replace(
            data,
            prompts={"chosen": data.prompts["chosen"][:, p : p + 1]},
            texts={"rejected": data.texts["rejected"][:, p : p + 1]},
        ).take(members(seeds, length))
        many = models.take(members(seeds, length))
        of = scene(one, ("rejected",), many)
        here, place = np.arange(seeds * length), np.tile(np.arange(length), seeds)
        text = one.texts["rejected"][:, 0]
        label, there = np.maximum(text, 0)[here, place], text[here, place] != PAD
        leaf = many.flat.detach().requires_grad_()
        z = many.logits(of.inputs, leaf)[torch.as_tensor(here), 0, torch.as_tensor(place + 1)]
        log_probs = z.log_softmax(-1)
        (g,) = torch.autograd.grad(log_probs[torch.as_tensor(here), torch.as_tensor(label)].sum(), leaf)
        logp = log_probs.detach().numpy()
        residual = np.exp(logp)
        residual[here, label] -= 1.0
        norm2 = torch.as_tensor((residual**2).sum(-1))

        def entropy(eta: Any, along: torch.Tensor, many: Models = many, of: Any = of, at: Any = (here, place)) -> Any:
            with torch.no_grad():
                moved = many.logits(of.inputs, many.flat - eta[:, None] * along)
            return _entropy(moved[torch.as_tensor(at[0]), 0, torch.as_tensor(at[1] + 1)].log_softmax(-1).numpy())

        own = np.take_along_axis(logp, label[:, None], -1)[:, 0]
        h = _entropy(logp)
        for layers, rows in found.items():
            along = g if layers == "all" else heads(many, g)
            eta = norm2 / along.square().sum(1)
            change = {s: entropy(size * eta, along) - h for s, size in SIZES.items()}
            numbers = {"law": law(logp, label), "deep": np.where(own <= -h, 1.0, 0.0), **change}
            rows.append({k: np.where(there, v, np.nan).reshape(seeds, length) for k, v in numbers.items()})
    out = {}
    for layers, rows in found.items():
        every = {name: np.concatenate([row[name] for row in rows], 1) for name in rows[0]}
        known, deep = np.isfinite(every["law"]), every["deep"] == 1.0
        columns = {"depth": _share(deep, known)}
        for s in SIZES:
            down = every[s] < 0
            columns |= {
                f"law_{s}": _share(down == (every["law"] < 0), known),
                f"valley_{s}": _share(down, known & deep),
                f"outside_{s}": _share(down, known & ~deep),
                f"falls_{s}": _share(down, known),
            }
        columns["kernel_moderate"] = _share((every["moderate"] < 0) == (every["tiny"] < 0), known)
        out[layers] = columns
    return out


def _share(right: Any, among: Any) -> Floats:
    """Share (S,) of the tokens in question; NaN where there is none."""
    count = among.sum(1)
    return np.where(count > 0, (right & among).sum(1) / np.maximum(count, 1), np.nan)


def _step(models: Models, data: Texts, recipe: str, layers: str) -> dict[str, Floats]:
    """Signs at the tokens of y⁻ behind the divergence, one DPO update on all pairs of the recipe's full size."""
    way, text = RECIPES[recipe], data.texts["rejected"]
    run = train(
        models, data, objectives.get("dpo", beta=BETA), lr=way.dpo, steps=1, optimizer=way.optimizer,
        rejected="rejected", layers=layers, kinds=("rejected",), at=(),
    )  # fmt: skip
    before, after = (beliefs(one, data, ("rejected",))["rejected"] for one in (models, run.models))
    differ = data.texts["chosen"] != text
    behind = (np.cumsum(differ, -1) - differ > 0) & (text != PAD)
    seeds = len(text)
    label, down = np.maximum(text, 0), _entropy(after) < _entropy(before)
    own = np.take_along_axis(before, label[..., None], -1)[..., 0]
    deep = own <= -_entropy(before)
    known, right = behind.reshape(seeds, -1), (down == (law(before, label) < 0)).reshape(seeds, -1)
    down, deep = down.reshape(seeds, -1), deep.reshape(seeds, -1)
    return {"law": _share(right, known), "falls": _share(down, known), "valley": _share(down, known & deep),
            "outside": _share(down, known & ~deep), "depth": _share(deep, known)}  # fmt: skip


def _entangled(models: Models, data: Texts) -> dict[str, Floats]:
    """Condition 1 against what happens; pairs of two equal responses do not count."""
    shape = data.prompts["chosen"].shape
    plus, minus = (gradients(models, data, kind) for kind in SIDES)
    push = plus - minus
    known = (data.texts["chosen"] != data.texts["rejected"]).any(-1)
    own = {"chosen": (plus * push).sum(-1), "rejected": -(minus * push).sum(-1)}
    whole = {"chosen": (plus @ push.mT).sum(-1), "rejected": -(minus @ push.mT).sum(-1)}
    said, summed = ({kind: value.numpy() > 0 for kind, value in each.items()} for each in (own, whole))
    apace = BETA / 2.0 * push.square().sum(-1)  # of a pair's margin alone, per unit of η
    single, one = models.take(members(*shape)), apart(data)
    out = {f"{kind}_said": _share(value, known) for kind, value in said.items()}
    out["neither"] = _share(~said["chosen"] & ~said["rejected"], known)
    for when, size in (("small", SMALL), ("large", LARGE), ("batch", SMALL)):
        if alone := when != "batch":
            lr = torch.where(torch.as_tensor(known), size / apace, 0.0).flatten()
        else:
            lr = shape[1] * size / apace.mean(1)
        run = train(
            single if alone else models, one if alone else data, objectives.get("dpo", beta=BETA), lr=lr, steps=1,
            rejected="rejected", kinds=SIDES,
        )  # fmt: skip
        moved = {kind: np.diff(run.value("logp", kind).reshape(2, *shape), axis=0)[0] for kind in SIDES}
        for kind, sign in (("chosen", 1.0), ("rejected", -1.0)):
            as_meant = sign * moved[kind] > 0
            out[f"{kind}_{when}"] = _share(as_meant == said[kind], known)
            out[f"{kind}_meant_{when}"] = _share(as_meant, known)
            if not alone:
                out[f"{kind}_sum_batch"] = _share(as_meant == summed[kind], known)
        out[f"margin_{when}"] = _share(moved["chosen"] > moved["rejected"], known)
    return out
