"""Preference pairs: DPO at one shared context (T10), with trained features and in entangled contexts.

Notation: z logits, p = softmax(z), the pair is y+ (`plus`) over y− (`minus`). A pair loss gives the coefficients
c_+ = 1 and c_− = −k, and one step adds s(e_+ − k e_− + (k − 1)p) to z; DPO and every loss of the margin alone has
k = 1. "The rest" are the classes other than y+ and y−. With features, z = W h: W (V, d) may share its rows among
contexts, and where `plus` and `minus` are not given they are classes 0 and 1. ℓ' < 0 is the loss's slope in the margin.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from flint import arb
from scipy.special import expit, logsumexp

from toyld import softmax as sm
from toyld.claims import exact
from toyld.claims.base import Counterexample, Field, Margin, Premises, Without, claim, identity, rounding
from toyld.claims.spaces import constant, label, logits, other_label, real, reals, step_size
from toyld.claims.tools import PAPER, THREE_OR_MORE, agree, at, others, span

Array = Any
RAZIN, YUAN = "Razin et al. 2025", "Yuan et al. 2025"
WIDTH = 3  # features per class where a claim needs some
HEAD = Field(
    lambda size: 1 + WIDTH * size,
    lambda u, size, case: 0.1 * 30.0 ** u[:, :1] * (2.0 * u[:, 1:] - 1.0),
)
PAIR = {"z": logits(), "plus": label(), "minus": other_label("plus"), "s": step_size()}


def words(count: int) -> Field:
    """Token ids (n, count)."""
    return Field(lambda size: count, lambda u, size, case: np.minimum((u * size).astype(int), size - 1))


def moved(z: Array, plus: Array, minus: Array, s: Array, k: Any = 1.0) -> Array:
    """log p' − log p (n, V) of a pair step really taken."""
    return sm.log_softmax(sm.step(z, sm.pair_residual(z, plus, minus, c_minus=-k), s=s)) - sm.log_softmax(z)


def rates(values: Callable[..., Any], loss: Callable[..., Any], *params: Array) -> Array:
    """d values/dt (n, …) along the gradient flow d params/dt = −∇loss, by automatic differentiation."""
    import torch

    tensors = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in params)
    slopes = torch.func.grad(lambda q: loss(*q).sum())(tensors)
    return torch.autograd.functional.jvp(values, tensors, tuple(-g for g in slopes))[1].numpy()


@claim(
    "pair.shared-context",
    "DPO at one shared context, L = 1: p'_+/p_+ = e^s/Z, p'_−/p_− = e^{−s}/Z and 1/Z for all the rest, with "
    "Z = 1 + p_+(e^s − 1) + p_−(e^{−s} − 1).",
    source=f"toyld, T10; {RAZIN}, App. F",
    kind="identity",
    premises=Premises(PAIR),
    proof="With c_+ = −c_− the two p-terms of the residual cancel, Δz = s(e_+ − e_−); Z = Σ p_j e^{Δz_j}.",
)
def shared_context(z: Array, plus: Array, minus: Array, s: Array) -> Margin:
    done, logp = moved(z, plus, minus, s), sm.log_softmax(z)
    rest = logsumexp(np.where(others(z, plus, minus), logp, -np.inf), axis=-1)
    log_z = logsumexp(np.stack([at(logp, plus) + s, at(logp, minus) - s, rest]), axis=0)
    sign = sm.one_hot(z, plus).astype(float) - sm.one_hot(z, minus)
    return identity(done, s[:, None] * sign - log_z[:, None], span(z, s, done))


@claim(
    "pair.winner-rises",
    "At a shared context with c_− = −k c_+ and ½ ≤ k ≤ 2 (DPO: k = 1), y+ rises and y− falls for every p and every "
    "step; neither ½ nor 2 can be replaced.",
    source=f"toyld, T10, sharpened; k = 1 is {RAZIN}, App. F Prop.",
    kind="theorem",
    premises=Premises({**PAIR, "k": real(0.5, 2.0)}),
    proof="The exponents over s are 1 + (k − 1)p_+, −k + (k − 1)p_− and (k − 1)p_j. For ½ ≤ k ≤ 2 the first is the "
    "largest: (k − 1)p_j ≤ 1 if k ≥ 1, ≤ 0 otherwise; the second the smallest: it is ≤ −1 if k ≥ 1, and for k < 1 "
    "−k ≤ −(1 − k) ≤ −(1 − k)p_j. The largest rises, the smallest falls. Beyond: let p_{y*} → 1; to first order y+ "
    "changes by s(2 − k) and y− by s(1 − 2k).",
    without=Without("½ ≤ k ≤ 2", Premises({**PAIR, "k": real(0.0, 6.0)}, sizes=THREE_OR_MORE)),
)
def winner_rises(z: Array, plus: Array, minus: Array, s: Array, k: Array) -> Margin:
    done = moved(z, plus, minus, s, k)
    return Margin(np.stack([at(done, plus), -at(done, minus)], axis=-1), rounding(span(z, s, done)))


def pair_alphas(p: Any, plus: int, minus: int, s: Any, k: Any = 1) -> list[arb]:
    """log(p'_i/p_i) of a pair step as balls."""
    b, size, share = exact.balls(p), exact.ball(s), exact.ball(k)
    d = [size * ((i == plus) - share * (i == minus) + (share - 1) * a) for i, a in enumerate(b)]
    return [(after / a).log() for after, a in zip(exact.tilt(b, d), b, strict=True)]


@claim(
    "pair.rest-moves-together",
    "Under DPO at a shared context all the rest, y* too, change by one factor 1/Z: they rise iff p_− > p_+ e^s (y− "
    "still leads halfway through the step), and never by more than 1/(1 − (√p_− − √p_+)²).",
    source="toyld, T10 with its finite-step bound",
    kind="theorem",
    premises=Premises({**PAIR, "k": constant(1.0)}, sizes=THREE_OR_MORE),
    proof="Z − 1 = (e^s − 1)(p_+ − p_− e^{−s}). By AM-GM Z ≥ 1 − p_+ − p_− + 2√(p_+ p_−), met at e^{2s} = p_−/p_+.",
    without=Without("c_+ = −c_−", Premises({**PAIR, "k": real(0.0, 3.0)}, sizes=THREE_OR_MORE)),
)
def rest_moves_together(z: Array, plus: Array, minus: Array, s: Array, k: Array) -> Margin:
    done, logp, rest = moved(z, plus, minus, s, k), sm.log_softmax(z), others(z, plus, minus)
    bound = rounding(span(z, s, done))
    high, low = np.where(rest, done, -np.inf).max(axis=-1), np.where(rest, done, np.inf).min(axis=-1)
    a, b = at(logp, plus), at(logp, minus)
    least = np.logaddexp(logsumexp(np.where(rest, logp, -np.inf), axis=-1), np.log(2.0) + 0.5 * (a + b))
    return Margin(np.stack([bound[:, 0] - (high - low), agree(high, b - a - s), -least - high], axis=-1), bound)


@claim(
    "pair.squeezing-lowers-winner",
    "The squeezing effect acts within one DPO pair: where y− lies in a valley, a step at one shared context lowers "
    "π(y+), or at least feeds y*, the most likely of the rest.",
    source=f"{PAPER}, §3.3 and §4.2 read at a shared context (F10)",
    kind="theorem",
    expect="refuted",
    instead="pair.rest-moves-together",
    premises=Premises(PAIR, sizes=THREE_OR_MORE, where=lambda z, plus, minus, s: sm.valley_depth(z, minus) >= 0.0),
    proof="The negative gradient alone squeezes, but the positive one undoes it exactly: y+ always rises, and y* falls "
    "unless p_− > p_+ e^s.",
    counterexample=Counterexample(
        {"p": (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), "plus": 1, "minus": 2, "s": Fraction(1)},
        margin=lambda p, plus, minus, s: (-pair_alphas(p, plus, minus, s)[plus]).max(pair_alphas(p, plus, minus, s)[0]),
        note="class 0 is y*",
    ),
)
def squeezing_lowers_winner(z: Array, plus: Array, minus: Array, s: Array) -> Margin:
    done = moved(z, plus, minus, s)
    star = np.argmax(np.where(others(z, plus, minus), z, -np.inf), axis=-1)
    return Margin(np.maximum(-at(done, plus), at(done, star)), rounding(span(z, s, done))[:, 0])


def _logp(w: Any, h: Any) -> Any:
    """log softmax(W h) (n, V) in torch."""
    return (w @ h[..., None])[..., 0].log_softmax(-1)


def _loss(w: Any, h: Any) -> Any:
    """−log σ(z_+ − z_−) per case, in torch."""
    z = (w @ h[..., None])[..., 0]
    return (z[..., 1] - z[..., 0]).exp().log1p()


def _rows(head: Array, *h: Array) -> tuple[Array, ...]:
    """W (n, V, d) and the logits W h of each context h (n, d)."""
    w = head.reshape(len(head), -1, h[0].shape[-1])
    return (w, *(np.einsum("nvd,nd->nv", w, x) for x in h))


def _exact(head: Any, h: Any) -> tuple[Any, Any, Any]:
    """Rows of W, h and p = softmax(W h) as balls."""
    x, flat = [exact.ball(a) for a in h], [exact.ball(a) for a in head]
    w = [flat[i : i + len(x)] for i in range(0, len(flat), len(x))]
    return w, x, exact.tilt([arb(1)] * len(w), [_dot(row, x) for row in w])


def _dot(a: Any, b: Any) -> arb:
    return sum((x * y for x, y in zip(a, b, strict=True)), arb(0))


@claim(
    "pair.unconstrained-step",
    "If W and h both train, a gradient step of any size adds s⟨W_z, W_+ − W_−⟩ to z_z, and ±s{‖h‖² + s(z_+ − z_−)} to "
    "z_±: among the rest the winner is the row best aligned with W_+ − W_−.",
    source=f"{RAZIN}, Thm 5 at a finite step",
    kind="identity",
    premises=Premises({"head": HEAD, "h": reals(WIDTH), "s": step_size(1e-3, 10.0)}),
    proof="W' = W + s(e_+ − e_−)hᵀ and h' = h + s(W_+ − W_−), s = −ηℓ'; multiply out z' = W'h'.",
)
def unconstrained_step(head: Array, h: Array, s: Array) -> Margin:
    import torch

    w, z = _rows(head, h)
    gap, own = z[:, 0] - z[:, 1], np.zeros_like(z)
    eta = torch.from_numpy(s / expit(-gap))
    start = torch.from_numpy(w.copy()), torch.from_numpy(h.copy())
    slopes = torch.func.grad(lambda q: _loss(*q).sum())(start)
    done = _logp(start[0] - eta[:, None, None] * slopes[0], start[1] - eta[:, None] * slopes[1]) - _logp(*start)
    own[:, 0] = s * (np.sum(h * h, axis=-1) + s * gap)
    own[:, 1] = -own[:, 0]
    d = own + s[:, None] * np.einsum("nvd,nd->nv", w, w[:, 0] - w[:, 1])
    law = d - logsumexp(sm.log_softmax(z) + d, axis=-1)[:, None]
    size = 1.0 + np.abs(w).max(axis=(1, 2)) + np.abs(h).max(axis=-1)
    return identity(done.numpy(), law, (4.0 * WIDTH * (1.0 + s) ** 2 * size**3)[:, None])


@claim(
    "pair.unconstrained-flow",
    "If W and h both train, d log p_+/dt = −ℓ'{(1 − p_+)‖W_+‖² + p_−‖W_−‖² + (1 − p_+ + p_−)(‖h‖² − ⟨W_+, W_−⟩) − "
    "Σ_rest p_z⟨W_z, W_+ − W_−⟩}, and for all the rest d log p_z/dt = −ℓ'{⟨W_z, W_+ − W_−⟩ + c} with one c.",
    source=f"{RAZIN}, Thm 4 (its m made explicit) and Thm 5",
    kind="identity",
    premises=Premises({"head": HEAD, "h": reals(WIDTH)}),
    proof="dz/dt = −ℓ'{‖h‖²(e_+ − e_−) + W(W_+ − W_−)}, and d log p/dt is that less its p-mean; "
    "c = −⟨Σ p_k W_k, W_+ − W_−⟩ − ‖h‖²(p_+ − p_−).",
)
def unconstrained_flow(head: Array, h: Array) -> Margin:
    w, z = _rows(head, h)
    p, a, b, own = sm.softmax(z), w[:, 0], w[:, 1], np.sum(h * h, axis=-1)
    pull = np.einsum("nvd,nd->nv", w, a - b)
    first = (1.0 - p[:, 0]) * np.sum(a * a, axis=-1) + p[:, 1] * np.sum(b * b, axis=-1)
    first += (1.0 - p[:, 0] + p[:, 1]) * (own - np.sum(a * b, axis=-1)) - np.sum((p * pull)[:, 2:], axis=-1)
    c = -np.sum(p * pull, axis=-1) - own * (p[:, 0] - p[:, 1])
    law = np.concatenate([first[:, None], pull[:, 2:] + c[:, None]], axis=-1) * expit(z[:, 1:2] - z[:, :1])
    size = WIDTH * (1.0 + np.abs(w).max(axis=(1, 2)) + np.abs(h).max(axis=-1)) ** 2 * (1.0 + np.abs(z).max(axis=-1))
    return identity(np.delete(rates(_logp, _loss, w, h), 1, axis=-1), law, 4.0 * size[:, None])


def _argmax_lead(head: Any, h: Any) -> arb:
    """Lead of class 3 (the argmax of the rest) over class 2, in log-probability or in mass, whichever is larger."""
    w, _, p = _exact(head, h)
    pull = [_dot(row, w[0]) - _dot(row, w[1]) for row in w]
    own = _dot([exact.ball(a) for a in h], [exact.ball(a) for a in h])
    c = -_dot(p, pull) - own * (p[0] - p[1])
    return (pull[3] - pull[2]).max(p[3] * (pull[3] + c) - p[2] * (pull[2] + c))


@claim(
    "pair.displaced-to-argmax",
    "When W and h train and y+ falls, the winner among the rest is their argmax, in log-probability or else in mass.",
    source=f"{PAPER}, §3.3, read for trained features; against {RAZIN}, Thm 5",
    kind="theorem",
    expect="refuted",
    instead="pair.unconstrained-flow",
    premises=Premises({"head": HEAD, "h": reals(WIDTH)}, sizes=(4, 8)),
    proof="The winner is the class whose row aligns best with W_+ − W_−, whatever its probability.",
    counterexample=Counterexample(
        {"head": (0, 0, -2, -1, 2, 0, 0, 1), "h": (0, 1)}, margin=_argmax_lead, note="V = 4, d = 2"
    ),
)
def displaced_to_argmax(head: Array, h: Array) -> Margin:
    w, z = _rows(head, h)
    found, rest = rates(_logp, _loss, w, h), np.arange(z.shape[-1]) >= 2
    star = 2 + np.argmax(z[:, 2:], axis=-1)
    rivals = rest & ~sm.one_hot(z, star)
    lead = [at(a, star) - np.where(rivals, a, -np.inf).max(axis=-1) for a in (found, sm.softmax(z) * found)]
    size = (1.0 + np.abs(w).max(axis=(1, 2)) + np.abs(h).max(axis=-1)) ** 2 * (1.0 + np.abs(z).max(axis=-1))
    bound = rounding(4.0 * WIDTH * size)
    return Margin(np.where(found[:, 0] < -bound, np.maximum(*lead), np.inf), bound)


@claim(
    "pair.entanglement",
    "To first order a DPO step changes log π(y+) by C(‖g_+‖² − ⟨g_+, g_−⟩) and log π(y−) by C(⟨g_+, g_−⟩ − ‖g_−‖²), "
    "g_± = ∇_θ log π(y±) of any network; the margin by C‖g_+ − g_−‖² ≥ 0.",
    source=f"{YUAN}, Condition 1",
    kind="identity",
    premises=Premises({"head": HEAD, "below": reals(6), "x": reals(4), "words": words(2)}),
    proof="Chain rule with Δθ = C(g_+ − g_−), C = −ηℓ'; tried on W tanh(Bx) with two contexts, both layers training.",
)
def entanglement(head: Array, below: Array, x: Array, words: Array) -> Margin:
    import torch

    n = len(head)
    w, b, index = head.reshape(n, -1, WIDTH), below.reshape(n, WIDTH, 2), torch.from_numpy(words)[..., None]
    inputs = torch.from_numpy(x.reshape(n, 2, 2))

    def logs(w: Any, b: Any) -> Any:
        return ((inputs @ b.mT).tanh() @ w.mT).log_softmax(-1).gather(-1, index)[..., 0]

    def loss(w: Any, b: Any) -> Any:
        return (logs(w, b) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)).exp().log1p()

    at_start = torch.from_numpy(w.copy()), torch.from_numpy(b.copy())
    slopes = [torch.func.grad(lambda q, i=i: logs(*q)[:, i].sum())(at_start) for i in (0, 1)]
    g = np.stack([np.concatenate([a.reshape(n, -1).numpy() for a in both], axis=-1) for both in slopes], axis=1)
    gram, start = g @ g.transpose(0, 2, 1), logs(*at_start).numpy()
    law = gram[:, :, 0] - gram[:, :, 1]
    law = np.concatenate([law, np.sum((g[:, 0] - g[:, 1]) ** 2, axis=-1)[:, None]], axis=-1)
    size = 1.0 + np.abs(w).max(axis=(1, 2)) * (1.0 + np.abs(x).max(axis=-1))
    found = rates(logs, loss, w, b) / expit(start[:, 1:] - start[:, :1])
    found = np.concatenate([found, found[:, :1] - found[:, 1:]], axis=-1)
    return identity(found, law, (16.0 * WIDTH**2 * size**3)[:, None])


TWISTED = Field(lambda size: 7, lambda u, size, case: case["up"] * (4 * u[:, :1] - 2) + (2 * u[:, 1:2]) ** 8 * u[:, 2:])


@claim(
    "pair.never-both-wrong",
    "To first order no loss with c_+ > 0 > c_−, whatever its weights, both lowers log π(y+) and raises log π(y−).",
    source=f"{YUAN}: the three cases; the weights are ours",
    kind="theorem",
    premises=Premises({"up": reals(5), "down": TWISTED, "k": step_size(1e-3, 1e3)}, sizes=(2,)),
    proof="Both wrong means ‖g_+‖² < k⟨g_+, g_−⟩ and k‖g_−‖² < ⟨g_+, g_−⟩; the product contradicts Cauchy-Schwarz. A "
    "large step can do both: W = (1, −1, 0), h_+ = 2, h_− = ½, both labels class 0, s = 32.",
    without=Without("c_− < 0", Premises({"up": reals(5), "down": TWISTED, "k": real(-5.0, -0.1)}, sizes=(2,))),
)
def never_both_wrong(up: Array, down: Array, k: Array) -> Margin:
    a, b, cross = (np.sum(u * v, axis=-1) for u, v in ((up, up), (down, down), (up, down)))
    return Margin(np.maximum(a - k * cross, k * b - cross), rounding((1.0 + np.abs(k)) * (a + b)))


def _two_contexts(head: Array, up: Array, down: Array, words: Array, s: Array, train: Any = 0.0) -> tuple[Array, ...]:
    """Δlog π(y±) (n, 2) of a step really taken, its first-order value, and the bound (n, 1) of their rounding.

    One head W after features `up` (y+) and `down` (y−), which move `train` times as fast as W.
    """
    words, move = words.astype(np.int64), (s * train)[:, None]
    w, *z = _rows(head, up, down)
    r, q = (-sm.residual(a, y) for a, y in zip(z, words.T, strict=True))
    back = [np.einsum("nvd,nv->nd", w, a) for a in (r, q)]
    new = w + s[:, None, None] * (r[..., None] * up[:, None] - q[..., None] * down[:, None])
    features = up + move * back[0], down - move * back[1]
    pairs = zip(z, _rows(new.reshape(len(w), -1), *features)[1:], words.T, strict=True)
    change = np.stack([at(sm.log_softmax(b), y) - at(sm.log_softmax(a), y) for a, b, y in pairs], axis=-1)
    dots = ((r, r, up, up), (q, q, down, down), (r, q, up, down))
    a, b, cross = (np.sum(x * y, axis=-1) * np.sum(u * v, axis=-1) for x, y, u, v in dots)
    own = [train * np.sum(x * x, axis=-1) for x in back]
    first = s[:, None] * np.stack([a - cross + own[0], cross - b - own[1]], axis=-1)
    reach = [np.abs(x).max(axis=-1) for x in (up, down, *features)]
    size = up.shape[-1] * (np.abs(w) + np.abs(new)).max(axis=(1, 2)) * sum(reach)
    return change, first, rounding(1.0 + size + s * sum(reach) ** 2)[:, None]


TWO = {"head": HEAD, "up": reals(WIDTH), "down": reals(WIDTH), "words": words(2), "s": step_size(1e-4, 10.0)}


@claim(
    "pair.linear-head",
    "With a head alone training, Δlog π(y+) ≤ C(‖g_+‖² − ⟨g_+, g_−⟩) and Δlog π(y−) ≤ C(⟨g_+, g_−⟩ − ‖g_−‖²) at every "
    "step: a fall by Condition 1 is a fall at every step; ⟨g_+, g_−⟩ = ⟨e_{y+} − p, e_{y−} − q⟩⟨h_+, h_−⟩.",
    source=f"{YUAN}, Condition 1 at a finite step; {RAZIN}, Thm 6 for one token",
    kind="theorem",
    premises=Premises({**TWO, "train": constant(0.0)}),
    proof="log π is concave in W, so it lies below its tangent at the start; g_+ = (e_{y+} − p)h_+ᵀ, g_− likewise.",
    without=Without("the features stay", Premises({**TWO, "train": constant(1.0)})),
)
def linear_head(head: Array, up: Array, down: Array, words: Array, s: Array, train: Array) -> Margin:
    change, first, bound = _two_contexts(head, up, down, words, s, train)
    return Margin(first - change, bound)


def _exact_moves(head: Any, up: Any, down: Any, words: Any, s: Any) -> tuple[arb, arb]:
    """Δlog π(y+) of the step and its first-order value, as balls."""
    (_, x, p), (_, v, q) = _exact(head, up), _exact(head, down)
    r, t = ([(i == y) - a for i, a in enumerate(b)] for b, y in zip((p, q), words, strict=True))
    d = [exact.ball(s) * (a * _dot(x, x) - b * _dot(x, v)) for a, b in zip(r, t, strict=True)]
    y = words[0]
    return (exact.tilt(p, d)[y] / p[y]).log(), _dot(r, d)


@claim(
    "pair.dpo-raises-winner",
    "A step of DPO that widens the margin raises log π(y+).",
    source=f"the expectation that {YUAN} corrects",
    kind="theorem",
    expect="refuted",
    instead="pair.linear-head",
    premises=Premises(TWO),
    proof="Two contexts that share features: (‖g_+‖², ‖g_−‖², ⟨g_+, g_−⟩) = ½(1, 4, 2) gives changes C/2·(−1, −2).",
    counterexample=Counterexample(
        {"head": (0, 0), "up": (1,), "down": (2,), "words": (0, 0), "s": Fraction(1)},
        margin=lambda **case: _exact_moves(**case)[0],
    ),
)
def dpo_raises_winner(head: Array, up: Array, down: Array, words: Array, s: Array) -> Margin:
    change, _, bound = _two_contexts(head, up, down, words, s)
    return Margin(np.where(change[:, 0] > change[:, 1] + bound[:, 0], change[:, 0], np.inf), bound[:, 0])


@claim(
    "pair.ches-sign",
    "With a head alone training, y+ falls to first order if its CHES score ⟨h_+, h_−⟩ − ‖h_+‖² is positive.",
    source=f"{RAZIN}, Thm 6 for one token, with every coefficient set to 1",
    kind="theorem",
    expect="refuted",
    instead="pair.linear-head",
    premises=Premises(TWO),
    proof="⟨e_{y+} − p, e_{y−} − q⟩ is negative where y+ ≠ y− and each context leans to the other's label.",
    counterexample=Counterexample(
        {"head": (0, 0), "up": (1,), "down": (2,), "words": (0, 1), "s": Fraction(1)},
        margin=lambda **case: -_exact_moves(**case)[1],
    ),
)
def ches_sign(head: Array, up: Array, down: Array, words: Array, s: Array) -> Margin:
    _, first, bound = _two_contexts(head, up, down, words, s)
    ches = np.sum(up * down, axis=-1) - np.sum(up * up, axis=-1)
    return Margin(np.where(ches > bound[:, 0], -first[:, 0], np.inf), bound[:, 0])
