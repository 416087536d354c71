"""Many contexts, one kernel: the dual form (K1), no cross-talk (K2), the sign of one step (K3), tied features.

Notation: contexts c with features φ_c, one trained head W, logits Z = ΦWᵀ, kernel S_cc' = ⟨φ_c, φ_c'⟩; a gradient
step is Z ← Z − η S R(Z), R_c = Σ_{tokens trained at c} c_± (π_c − e_y). g_c = e_y − π_c is a token's own pull, ℓ a
response's log-probability. The runs and steps that the claims speak of are those of `toyld.contexts.train`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb
from scipy.special import expit

from toyld import contexts, objectives
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.kernel_cases import (
    AT,
    FORK,
    HEAD,
    MODEL,
    PAIRS,
    WIDTH,
    cross,
    exact_moves,
    gradients,
    large,
    logp,
    model,
    pulls,
    push_back,
    sizes,
    stacked,
    stepped,
    tables,
    vectors,
    words,
    world,
)
from toyld.claims.spaces import constant, integers, logits, real, step_size
from toyld.claims.tools import THREE_OR_MORE
from toyld.contexts import Responses, World

Array = Any
YUAN, RAZIN = "Yuan et al. 2025", "Razin et al. 2025"
STEPS = 3


def _by_gradient(w: Array, phi: Array, bias: Array, one: World, lr: Array, beta: Array | None) -> Array:
    """Z after STEPS of gradient descent on W and b by automatic differentiation: SFT, or DPO with its β."""
    import torch

    weights = [torch.from_numpy(a.copy()).requires_grad_() for a in (w, np.zeros(w.shape[:2]))]
    f, on, eta = (torch.from_numpy(np.ascontiguousarray(a)) for a in (phi, bias, lr))
    plus, minus = (one.responses[kind] for kind in ("chosen", "rejected"))
    here = torch.arange(len(w))[:, None, None]

    def table() -> Any:
        return f @ weights[0].mT + on[:, None, None] * weights[1][:, None, :]

    def total(r: Responses) -> Any:
        at = table().log_softmax(-1)[here, torch.from_numpy(r.context.copy())]
        return at.gather(-1, torch.from_numpy(r.token)[..., None])[..., 0].sum(-1)

    start = (total(plus) - total(minus)).detach()
    for _ in range(STEPS):
        if beta is None:
            loss = -total(plus)
        else:
            loss = (torch.from_numpy(-beta)[:, None] * (total(plus) - total(minus) - start)).exp().log1p()
        for a, g in zip(weights, torch.autograd.grad(loss.mean(-1).sum(), weights), strict=True):
            a.data -= eta.reshape(-1, *[1] * (a.ndim - 1)) * g
    return table().detach().numpy()


@claim(
    "kernel.dual-form",
    "Every gradient step on a head W is Z ← Z − η S R(Z) with S = ΦΦᵀ, and any number of them Z_t = Z0 − S A with "
    "A = η Σ R; a bias makes S into S + 11ᵀ.",
    source="toyld, K1",
    kind="identity",
    rungs=AT,
    premises=Premises({**MODEL, "bias": integers(0, 1), "rate": real(0.0, 1.0), "beta": step_size(0.01, 2.0)}),
    proof="∇_W L = RᵀΦ for every loss of the responses' log-probabilities, ∇_b L = Rᵀ1; Z = ΦWᵀ + 1bᵀ. "
    "Tried on SFT and DPO.",
    hunt=False,
    cost=4,
)
def dual_form(head: Array, phi: Array, words: Array, bias: Array, rate: Array, beta: Array) -> Margin:
    w, f, z, gram = model(head, phi)
    gram = gram + bias[:, None, None]
    lr = rate / np.trace(gram, axis1=1, axis2=2)
    one, margins = world(z, gram, words), []
    for objective, rejected in ((objectives.get("sft"), None), (objectives.get("dpo", beta=beta), "rejected")):
        run = contexts.train(one, objective, lr=lr, steps=STEPS, rejected=rejected, at=(), form="kernel").state
        law = _by_gradient(w, f, bias.astype(float), one, lr, beta if rejected else None)
        # A step stretches an error by at most 1 + η tr(S) max |∂R| ≤ 1 + 20·rate: β ≤ 2, twelve pulls of at most √2.
        scale = (large(w, law) * (1.0 + 20.0 * rate) ** STEPS)[:, None, None]
        margins += [identity(run.logits, law, scale), identity(z - gram @ run.dual, law, scale)]
    return stacked(*margins)


LONG = 4
OWN = {
    "z": tables(8),
    "own": sizes(8),
    "phi": vectors(8),
    "words": words(10, (1, 2), (6, 7)),
    "lr": step_size(1e-3, 1e3),
    "beta": step_size(1e-2, 10.0),
}


@claim(
    "kernel.no-cross-talk",
    "If S is diagonal and every context belongs to one pair, DPO never lowers ℓ(y+) of any pair, at any step size "
    "and "
    "any step of the run, and what stands before the first difference does not move at all.",
    source="toyld, K2",
    kind="theorem",
    rungs=AT,
    premises=Premises({**OWN, "mix": constant(0.0)}, sizes=(2, 3, 4, 8)),
    proof="Before the first difference the pushes k(π − e_y) and −k(π − e_y) cancel. There R = k(e_− − e_+), and y+ "
    "rises by "
    "T10 (pair.winner-rises). Behind it R = k(π − e_y): log(π_y/π'_y) = log Σ_j π_j e^{−s(1 − π_y + π_j) 1[j≠y]} ≤ "
    "0 for "
    "every s = η S_cc k > 0. None of this asks for more than k > 0, so it holds again at the next step.",
    without=Without("S is diagonal", Premises({**OWN, "mix": real(0.0, 1.0)}, sizes=(2, 3, 4, 8))),
    cost=4,
)
def no_cross_talk(z: Array, own: Array, phi: Array, words: Array, lr: Array, beta: Array, mix: Array) -> Margin:
    z = z.reshape(len(z), 8, -1)
    f = phi.reshape(len(phi), 8, WIDTH)
    gram = own[:, :, None] * np.eye(8) + mix[:, None, None] * (f @ f.transpose(0, 2, 1))
    one, objective = world(z, gram, words), objectives.get("dpo", beta=beta)
    value, bound, now = [], [], z
    for _ in range(LONG):
        new = stepped(one, objective, now, lr=lr, reference=z)
        change = logp(new, one.responses["chosen"]) - logp(now, one.responses["chosen"])
        still = rounding(large(now))[:, None]
        value += [change[..., 1:].sum(-1), still - np.abs(change[..., 0])]
        bound += [rounding(2.0 * large(now, new))[:, None] * np.ones((1, 2)), still * np.ones((1, 2))]
        now = new
    return Margin(np.stack(value, axis=1), np.stack(bound, axis=1))


ONE_PROMPT = {
    "chosen": (np.array([[0], [0]]), np.array([[0], [2]])),
    "rejected": (np.array([[0], [0]]), np.array([[1], [3]])),
}


def _one_prompt(p: Any, words: Any, s: Any) -> list[arb]:
    k = Fraction(1, 4)  # β σ(0) of the mean over two rows, β = 1
    tokens = [(0, words[0], k), (0, words[2], k), (0, words[1], -k), (0, words[3], -k)]
    return exact_moves([[exact.ball(a).log() for a in p]], [[1]], tokens, s)


@claim(
    "kernel.diagonal-suffices",
    "If S is diagonal, DPO never lowers ℓ(y+).",
    source="toyld, K2 without its second premise",
    kind="theorem",
    rungs=AT,
    expect="refuted",
    instead="kernel.no-cross-talk",
    premises=Premises({"z": logits(high=30.0), "words": words(4, (0, 1), (2, 3)), "s": step_size(1e-2, 1e2)}),
    proof="One prompt with a ≻ b and c ≻ a: the pushes on a cancel, c rises, and the normaliser takes it from a.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 3),) * 3, "words": (0, 1, 2, 0), "s": Fraction(1)},
        margin=lambda p, words, s: min(_one_prompt(p, words, s)[:2], key=lambda a: float(a.mid())),
        note="a ≻ b and c ≻ a on one prompt",
    ),
)
def diagonal_suffices(z: Array, words: Array, s: Array) -> Margin:
    one = world(z[:, None, :], np.ones((len(z), 1, 1)), words, ONE_PROMPT)
    new = stepped(one, objectives.get("dpo", beta=1.0), z[:, None, :], lr=s)
    change = (logp(new, one.responses["chosen"]) - logp(z[:, None, :], one.responses["chosen"]))[..., 0]
    return Margin(change, rounding(large(z, new))[:, None])


def _one_pair(head: Any, phi: Any, words: Any, s: Any) -> arb:
    w, f = ([a[i : i + WIDTH] for i in range(0, len(a), WIDTH)] for a in (head, phi))
    z = [[exact.ball(sum(a * b for a, b in zip(x, row, strict=True))) for row in w] for x in f]
    gram = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in f] for x in f]
    k = Fraction(1, 2)
    tokens = [(0, words[0], k), (1, words[2], k), (0, words[1], -k), (2, words[3], -k)]
    return sum(exact_moves(z, gram, tokens, s)[:2], arb(0))


@claim(
    "kernel.own-contexts-suffice",
    "If every context belongs to one pair, DPO never lowers ℓ(y+), whatever the kernel.",
    source="toyld, K2 without its first premise",
    kind="theorem",
    rungs=AT,
    expect="refuted",
    instead="kernel.no-cross-talk",
    premises=Premises({"head": HEAD, "phi": vectors(3), "words": words(4, (0, 1)), "s": step_size(1e-3, 10.0)}),
    proof="One off-diagonal entry is enough: φ of y−'s second context is twice that of y+'s, both have the label 0, "
    "and the "
    "push on y− reaches y+ twice as strongly as its own.",
    counterexample=Counterexample(
        {"head": (0, -1, 0, 0, 0, 0), "phi": (1, 0, 0, 0, 1, 0, 0, 2, 0), "words": (0, 1, 0, 0), "s": Fraction(1)},
        margin=_one_pair,
        note="a ≻ b at a first context of its own",
    ),
)
def own_contexts_suffice(head: Array, phi: Array, words: Array, s: Array) -> Margin:
    _, _, z, gram = model(head, phi)
    one = world(z, gram, words, FORK)
    new = stepped(one, objectives.get("dpo", beta=1.0), z, lr=s)
    change = (logp(new, one.responses["chosen"]) - logp(z, one.responses["chosen"])).sum(-1)
    return Margin(change, rounding(2.0 * large(z, new) + s * large(gram))[:, None])


THREE_LABELS = Field(lambda size: size, lambda u, size, case: np.argsort(u, axis=-1, kind="stable")[:, :3])
CYCLE = {
    "chosen": (np.array([[0], [0]]), np.array([[0], [2]])),
    "rejected": (np.array([[0], [0]]), np.array([[1], [0]])),
}


@claim(
    "kernel.conflicting-labels",
    "From a uniform policy DPO on a ≻ b and c ≻ a at one context gives log π(a) = −log(V − 2 + 2 cosh x) with "
    "x ← x + ½ η β S σ(−βx) from 0, so that log π(a) falls without end.",
    source="toyld, K2: one prompt whose labels conflict",
    kind="identity",
    rungs=AT,
    premises=Premises(
        {
            "z": Field(lambda size: 0, lambda u, size, case: np.zeros((len(u), size))),
            "words": THREE_LABELS,
            "own": real(0.1, 2.0),
            "lr": step_size(1e-2, 10.0),
            "beta": step_size(1e-2, 2.0),
        },
        sizes=THREE_OR_MORE,
    ),
    proof="By symmetry both margins are x: z_a never moves, z_c = x, z_b = −x and all others stay at 0; x grows "
    "without "
    "end because σ(−βx) > 0.",
    hunt=False,
)
def conflicting_labels(z: Array, words: Array, own: Array, lr: Array, beta: Array) -> Margin:
    start = now = z[:, None, :]
    one, objective = world(start, own[:, None, None], words, CYCLE), objectives.get("dpo", beta=beta)
    x, margins = np.zeros(len(z)), []
    for step in range(LONG):
        now = stepped(one, objective, now, lr=lr, reference=start)
        x = x + 0.5 * lr * beta * own * expit(-beta * x)
        law = -np.logaddexp(np.log(z.shape[-1] - 2.0), np.logaddexp(x, -x))
        # A step stretches an error in x by at most 1 + ηβ²S/8.
        scale = large(now) * (1.0 + lr * beta**2 * own / 8.0) ** (step + 1)
        margins.append(identity(logp(now, one.responses["chosen"])[:, 0, 0], law, scale))
    return stacked(*margins)


@claim(
    "kernel.one-step",
    "One DPO step changes the log-probability of any response, trained or not, by ηd − ρ with "
    "d = −Σ_{c on its path} Σ_{c'} S_cc' ⟨g_c, R_c'⟩ and 0 ≤ ρ ≤ η²/8 Σ_c (max v_c − min v_c)², v = S R; of y+ d is "
    "its "
    "own tokens', plus the other y+ tokens', less the y− tokens'.",
    source="toyld, K3, with the remainder at every step size",
    kind="theorem",
    rungs=AT,
    premises=Premises(
        {**MODEL, "other": HEAD, "lr": step_size(1e-4, 10.0), "train": constant(0.0)}, sizes=(2, 3, 4, 8)
    ),
    proof="Z moves by −ηv, and along it log π_y at c has the slope −⟨g_c, v_c⟩ and the second derivative "
    "−Var_π(v_c), which "
    "lies between −¼(max v_c − min v_c)² and 0.",
    without=Without(
        "the features stay",
        Premises({**MODEL, "other": HEAD, "lr": step_size(1e-4, 10.0), "train": constant(1.0)}, sizes=(2, 3, 4, 8)),
    ),
    cost=2,
)
def one_step(head: Array, phi: Array, words: Array, other: Array, lr: Array, train: Array) -> Margin:
    w, f, z, gram = model(head, phi)
    one, before = world(z, gram, words), model(other, phi)[2]
    new = stepped(one, objectives.get("dpo", beta=1.0), z, lr=lr, reference=before)
    ratio = [logp(a, one.responses[kind]).sum(-1) for kind in PAIRS for a in (z, before)]
    k = expit(ratio[1] - ratio[0] + ratio[2] - ratio[3])
    r = push_back(z, one, k)
    v = gram @ r
    if train.any():  # features that move as fast as W
        after = w - lr[:, None, None] * r.transpose(0, 2, 1) @ f
        new = new - (lr * train)[:, None, None] * (r @ w) @ after.transpose(0, 2, 1)
    value = []
    for side in one.responses.values():
        here = v[np.arange(len(z))[:, None, None], side.context]
        first = -lr[:, None] * (pulls(z, side) * here).sum((-1, -2))
        rest = first - (logp(new, side) - logp(z, side)).sum(-1)
        most = lr[:, None] ** 2 / 8.0 * ((here.max(-1) - here.min(-1)) ** 2).sum(-1)
        value += [rest, most - rest]
        if side is one.responses["chosen"]:
            own, others, against = _terms(gram, z, one, k / 2.0)
            split = np.abs(first - lr[:, None] * (own + others - against))
    bound = rounding(3.0 * large(z, new) + (lr + lr**2) * large(v) ** 2 * 8.0)[:, None]
    value.append(rounding(36.0 * lr * large(f) ** 2 * WIDTH)[:, None] - split)
    return Margin(np.concatenate(value, axis=1), bound)


def _terms(gram: Array, z: Array, one: World, k: Array) -> tuple[Array, Array, Array]:
    """What y+ gets from its own tokens, from all other tokens of y+ and from those of y−, each (n, P)."""
    plus, minus = (one.responses[kind] for kind in ("chosen", "rejected"))
    with_plus, with_minus = (k[:, None, None, :, None] * cross(gram, z, plus, r) for r in (plus, minus))
    own = np.einsum("nptpt->np", with_plus)
    return own, with_plus.sum((2, 3, 4)) - own, with_minus.sum((2, 3, 4))


@claim(
    "kernel.entanglement",
    "With a head alone training ⟨∇ℓ_u, ∇ℓ_v⟩ = ΣΣ S_cc' ⟨g_c, g_c'⟩ over the paths of u and v, so that the kernel "
    "gives "
    "Condition 1 without a gradient; with every ⟨g_c, g_c'⟩ set to 1 it gives CHES.",
    source=f"toyld, K3; {YUAN}, Condition 1; {RAZIN}, Def. 2",
    kind="identity",
    rungs=AT,
    premises=Premises(MODEL, sizes=(2, 3, 4, 8)),
    proof="∇_W ℓ = Σ_c g_c φ_cᵀ, and ⟨g φᵀ, g' φ'ᵀ⟩ = ⟨g, g'⟩⟨φ, φ'⟩. ℓ_+ changes by C(‖∇ℓ_+‖² − ⟨∇ℓ_+, ∇ℓ_−⟩) to "
    "first order. CHES "
    "is ⟨Σ_− φ, Σ_+ φ⟩ − ‖Σ_+ φ‖².",
    hunt=False,
)
def entanglement(head: Array, phi: Array, words: Array) -> Margin:
    w, f, z, gram = model(head, phi)
    one = world(z, gram, words)
    sides = tuple(one.responses.values())
    g = gradients(w, f, one)
    found = np.concatenate([np.concatenate([cross(gram, z, a, b).sum((2, 4)) for b in sides], 2) for a in sides], 1)
    plus, minus = (f[:, r.context[0, 0]].sum(1) for r in sides)
    alike = [cross(gram, z, sides[0], b, ones=True)[:, 0, :, 0].sum((1, 2)) for b in sides]
    ches = np.sum((minus - plus) * plus, axis=-1) - (alike[1] - alike[0])
    scale = 36.0 * WIDTH * large(f) ** 2
    return stacked(identity(found, g @ g.transpose(0, 2, 1), scale[:, None, None]), identity(ches, 0.0, scale))


# Two tokens on either side; contexts 0, 2 and 1, 3 have the same features: what the kernel says is one context.
TIED = {"chosen": (np.array([[0, 1]]), np.array([[0, 1]])), "rejected": (np.array([[2, 3]]), np.array([[2, 3]]))}
GROUPS = {"z": tables(2), "own": sizes(2), "words": words(4), "lr": step_size(1e-3, 1e3)}


@claim(
    "kernel.tied-features",
    "If contexts with equal features, orthogonal to all others, hold at most one token of y+ and one of y− of one "
    "pair, DPO "
    "never lowers ℓ(y+), at any step size.",
    source=f"toyld: T10 and {RAZIN}, App. F for tied features",
    kind="theorem",
    rungs=AT,
    premises=Premises({**GROUPS, "tie": constant(1.0)}),
    proof="Equal features have equal logits and move together: by k(e_u − e_v), u of y+ and v of y−, which is T10, "
    "or not at all if "
    "u = v; alone, y+ rises (kernel.no-cross-talk). Two tokens of y− tied to one of y+ with the same label push it "
    "down.",
    without=Without("at most one token of y−", Premises({**GROUPS, "tie": integers(0, 1)})),
    cost=2,
)
def tied_features(z: Array, own: Array, words: Array, lr: Array, tie: Array) -> Margin:
    n = len(z)
    of = np.stack([np.zeros(n), np.ones(n), np.zeros(n), tie], axis=1).astype(int)  # the group of every context
    f = np.eye(2)[of] * np.sqrt(np.take_along_axis(own, of, axis=1))[..., None]
    now = np.take_along_axis(z.reshape(n, 2, -1), of[..., None], axis=1)
    one, start, value, bound = world(now, f @ f.transpose(0, 2, 1), words, TIED), now, [], []
    for _ in range(LONG):
        new = stepped(one, objectives.get("dpo", beta=1.0), now, lr=lr, reference=start)
        value.append((logp(new, one.responses["chosen"]) - logp(now, one.responses["chosen"])).sum(-1)[:, 0])
        bound.append(rounding(2.0 * large(now, new) + lr * own.max(axis=1)))
        now = new
    return Margin(np.stack(value, axis=1), np.stack(bound, axis=1))
