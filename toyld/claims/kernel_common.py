"""Many contexts, one kernel: what a component common to all features does (K4), and negatives the policy itself says.

Notation as in `toyld.claims.kernel`; S = D + c·11ᵀ with c the common component and D any kernel, G = Σ g_c along a
response's path, so that 11ᵀ couples two responses by ⟨G, G'⟩.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.special import expit

from toyld import objectives
from toyld import softmax as sm
from toyld.claims.base import Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.kernel_cases import (
    AT,
    HEAD,
    MODEL,
    WIDTH,
    large,
    logp,
    model,
    push_back,
    rates,
    stacked,
    stepped,
    totals,
    words,
    world,
)
from toyld.claims.spaces import constant, real, step_size
from toyld.contexts import Gram, Responses, World

Array = Any
SMALL = (2, 3, 4, 8)


@claim(
    "kernel.common-slope",
    "A common component c·11ᵀ adds to the first-order change of any response, trained or not, ηc⟨G, Σ_p k_p(G_+^p "
    "− G_−^p)⟩/P: "
    "less log-probability if and only if G points away from what all pairs pull together.",
    source="toyld, K4",
    kind="identity",
    rungs=AT,
    premises=Premises({**MODEL, "other": HEAD, "c": step_size(1e-2, 1e2)}, sizes=SMALL),
    proof="11ᵀR is the total residual at every context. For one pair y+ loses iff ⟨G_+, G_−⟩ > ‖G_+‖², which "
    "holds wherever G_− "
    "is a multiple > 1 of G_+. At an optimum of SFT with a common component (or a bias) Σ_p G_+^p = 0, and the "
    "mean of "
    "y+ over equal k does not feel it to first order.",
    hunt=False,
)
def common_slope(head: Array, phi: Array, words: Array, other: Array, c: Array) -> Margin:
    import torch

    _, _, z, gram = model(head, phi)
    one, n = world(z, gram, words), len(z)
    table, here = torch.from_numpy(z.copy()).requires_grad_(), torch.arange(n)[:, None, None]

    def total(r: Responses) -> Any:
        at = table.log_softmax(-1)[here, torch.from_numpy(r.context.copy())]
        return at.gather(-1, torch.from_numpy(r.token)[..., None])[..., 0].sum(-1)

    plus, minus = (one.responses[kind] for kind in ("chosen", "rejected"))
    before = model(other, phi)[2]
    start = logp(before, plus).sum(-1) - logp(before, minus).sum(-1)
    gap = total(plus) - total(minus) - torch.from_numpy(start)
    loss = (-gap).exp().log1p().mean(-1).sum()
    slope = torch.autograd.grad(loss, table, retain_graph=True)[0].numpy()
    own = [
        torch.autograd.grad(a[:, i].sum(), table, retain_graph=True)[0].numpy()
        for a in map(total, (plus, minus))
        for i in (0, 1)
    ]
    both = gram + c[:, None, None]
    found = np.stack([-np.sum(g * (both @ slope - gram @ slope), axis=(1, 2)) for g in own], axis=1)
    g, k = totals(z, one), expit(-gap.detach().numpy())
    pull = np.einsum("np,npv->nv", k / 2.0, g[:, :2] - g[:, 2:])
    law = c[:, None] * np.einsum("nuv,nv->nu", g, pull)
    return identity(found, law, 36.0 * ((c + large(gram)) * large(z))[:, None])


COMMON = {**MODEL, "c": step_size(1e-2, 1e2), "more": real(1.1, 10.0)}


@claim(
    "kernel.common-share",
    "Per nat of margin that one pair gains at its first update, y+ changes to first order by (a + cb)/(m + cd), "
    "a and m the rates without c, b = ⟨G_+, G_+ − G_−⟩ and d = ‖G_+ − G_−‖²: monotone in c from a/m to b/d, so "
    "that there a common component takes from y+ if and only if b/d < a/m.",
    source="toyld, K4: the common component per nat of margin",
    kind="theorem",
    rungs=AT,
    premises=Premises({**COMMON, "second": constant(0.0)}, sizes=SMALL),
    proof="11ᵀ adds cb to the change of ℓ_+ and cd to that of the margin (kernel.common-slope); m = ‖∇ℓ_+ − "
    "∇ℓ_−‖² ≥ 0 in the "
    "kernel D, and a ratio of lines in c without a pole at c > 0 is monotone. Later a, b, m and d are others: "
    "kernel.common-share-at-a-margin.",
    without=Without("there is one pair", Premises({**COMMON, "second": constant(1.0)}, sizes=SMALL)),
)
def common_share(head: Array, phi: Array, words: Array, c: Array, more: Array, second: Array) -> Margin:
    _, _, z, gram = model(head, phi)
    one = world(z, gram, words)
    k = np.stack([np.ones(len(z)), second], axis=1)
    r, g = push_back(z, one, 2.0 * k), totals(z, one)
    change = [rates(z, gram + a[:, None, None], one, r) for a in (0.0 * c, c, c * more)]
    plus, margin = [x[:, 0] for x in change], [x[:, 0] - x[:, 2] for x in change]
    gap = g[:, 0] - g[:, 2]
    b, d = np.sum(g[:, 0] * gap, axis=-1), np.sum(gap * gap, axis=-1)
    size = 36.0 * (large(gram) + c * more) * large(z)
    visible = np.abs(np.stack(margin)).min(axis=0) > 1e-6 * size  # else there is no margin to divide by
    least = np.where(visible, np.abs(np.stack(margin)).min(axis=0), 1.0)
    share = [a / np.where(visible, m, 1.0) for a, m in zip(plus, margin, strict=True)]
    to = np.sign(b * margin[0] - plus[0] * d)
    monotone = np.where(visible, to * np.minimum(share[2] - share[1], share[1] - share[0]), np.inf)
    bound = rounding(size / least * (1.0 + np.abs(np.stack(share)).max(axis=0)))
    lines = [identity(x[1] - x[0], c * slope, size) for x, slope in ((plus, b), (margin, d))]
    # Never beyond b/d, times d: d may be 0, and then so is b.
    lines.append(Margin(np.where(visible, to * (b - share[2] * d), np.inf), bound * (1.0 + d)))
    law = stacked(*(Margin(np.where(second > 0.0, np.inf, m.value), m.bound) for m in lines))
    return stacked(Margin(monotone, bound), law)


# All answers of two tokens: context 0 before the first, 1 + u behind the first token u.
EVERY = (2, 3, 4)
TREE = Field(lambda size: 1 + WIDTH * (1 + size), lambda u, size, case: 0.1 * 30.0 ** u[:, :1] * (2.0 * u[:, 1:] - 1.0))
SAMPLED = {"head": HEAD, "phi": TREE, "words": words(2), "lr": step_size(1e-2, 10.0), "beta": step_size(1e-2, 5.0)}


def _path(tokens: Array) -> Responses:
    """One response of two tokens (n, 2) in the tree."""
    context = np.stack([np.zeros_like(tokens[:, 0]), 1 + tokens[:, 0]], axis=1)
    return Responses(context[:, None], tokens[:, None], np.ones((len(tokens), 1, 2), dtype=bool))


@claim(
    "kernel.on-policy-negatives-drop-out",
    "If y− is sampled from the policy itself, the first step of DPO moves every logit in expectation as a step of SFT "
    "on y+ with β/2 times the learning rate does, whatever the kernel: the negatives move no logit on average, "
    "while every log-probability lies on average below where that step puts it, or there.",
    source="toyld, K4: negatives that the model itself would say",
    kind="theorem",
    rungs=AT,
    premises=Premises({**SAMPLED, "temperature": constant(1.0)}, sizes=EVERY),
    proof="At the reference k = β/2 for every y−. E Σ_t φ(c_t)(e_{y_t} − π_{c_t})ᵀ = 0, because given its context "
    "each token's pull has "
    "mean zero, so y−'s part of S R vanishes. log π is concave in the logits (Jensen). Later k depends on "
    "y− and the policy has left the one that sampled it.",
    without=Without(
        "sampled from the policy itself", Premises({**SAMPLED, "temperature": real(1.5, 8.0)}, sizes=EVERY)
    ),
)
def on_policy_negatives_drop_out(
    head: Array, phi: Array, words: Array, lr: Array, beta: Array, temperature: Array
) -> Margin:
    _, _, z, gram = model(head, phi)
    n, size = len(z), z.shape[-1]
    said = np.stack(np.divmod(np.arange(size * size), size), axis=1)
    cool = sm.softmax(z / temperature[:, None, None])
    chance = (cool[:, 0, :, None] * cool[:, 1:]).reshape(n, -1)
    of = np.repeat(np.arange(n), size * size)
    plus, minus = _path(words.astype(np.int64)), _path(np.tile(said, (n, 1)))
    many = World(z, Gram(gram), {"chosen": plus}, z.shape[1], tuple(range(n))).take(of.tolist())
    many = replace(many, responses={**many.responses, "rejected": minus})
    new = stepped(many, objectives.get("dpo", beta=beta[of]), z[of], lr=lr[of]).reshape(n, size * size, *z.shape[1:])
    mean = np.einsum("ns,nscv->ncv", chance, new - z[:, None])
    one = World(z, Gram(gram), {"chosen": plus}, z.shape[1], tuple(range(n)))
    law = stepped(one, objectives.get("sft"), z, lr=0.5 * beta * lr) - z
    scale = large(z) + 8.0 * lr * beta * large(gram) * large(z)
    below = sm.log_softmax(z + mean) - np.einsum("ns,nscv->ncv", chance, sm.log_softmax(new))
    return stacked(identity(mean, law, scale[:, None, None]), Margin(below, rounding(4.0 * scale)[:, None, None]))
