"""Negative steps on single examples of one network, by every label, seen from other images; and what to ask of them.

To first order the logits at x_o move by d = s K(x_o, x_u)(π − e_y)/κ, with κ = tr(PKP)/(V − 1) of K = K(x_u, x_u) and
P = I − 11ᵀ/V, where the closed form has d = s (π − e_y): s = ηκ is its step. K and PKP do the same to a softmax
(`network.rows-and-columns-cancel`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toyld.digits.data import CLASSES, Digits
from toyld.digits.stacks import forward

__all__ = [
    "IMAGES", "LABELS", "LAYERS", "STEPS", "Pushed", "at_home", "elsewhere", "entropy", "isotropic", "jacobian",
    "kernels", "picked", "push",
]  # fmt: skip

LABELS = ("true", "likely", "random", "rare")
LAYERS = ("all", "head")
RESOLVED = 1e-12  # a label falls by about s(1 − π_y)² nats; float64 gives log π to about 1e-14
STEPS: Mapping[str, float] = {"small": 0.01, "moderate": 1.0}
IMAGES = 4
DRAWN = 91  # stream of random numbers: which images and labels

Theta = Mapping[str, Tensor]


def picked(data: Digits, seed: int, /) -> tuple[Tensor, Tensor]:
    """Places (2·IMAGES,) of held-out images, first those to be pushed, each of another class; drawn labels (IMAGES,).

    Image IMAGES + i is a second one of the class of image i; the drawn label is the class of another pushed image.

    >>> from toyld.digits.data import embedded
    >>> places, drawn = picked(embedded(), 1000)
    >>> classes = embedded().test_labels[places]
    >>> bool((classes[:4] == classes[4:]).all()), bool((drawn != classes[:4]).all())
    (True, True)
    """
    rng = np.random.default_rng([seed, DRAWN])
    labels = data.test_labels.numpy()
    classes = rng.permutation(CLASSES)[:IMAGES]
    pairs = np.stack([rng.choice(np.flatnonzero(labels == one), 2, replace=False) for one in classes])
    turned = (np.arange(IMAGES) + rng.integers(1, IMAGES, size=IMAGES)) % IMAGES
    return torch.from_numpy(pairs.T.ravel()), torch.from_numpy(classes[turned])


def jacobian(architecture: nn.Sequential, theta: Theta, images: Tensor, /) -> dict[str, Tensor]:
    """∂z/∂θ of one network by name, (N, V, *shape), at images (N, 1, H, W), from one backward pass through N·V rows."""
    n, kept = len(images), list[Any]()
    rows = images.repeat_interleave(CLASSES, 0)[None].requires_grad_()
    with torch.enable_grad():
        z = forward(architecture, {name: value[None] for name, value in theta.items()}, rows, keep=kept)
        layers = [one for one in kept if f"{one.name}.weight" in theta]
        slopes = torch.autograd.grad(z, [one.y for one in layers], torch.eye(CLASSES).to(z).repeat(n, 1)[None])
    out: dict[str, Tensor] = {}
    for one, (g,) in zip(layers, slopes, strict=True):
        x, bias = one.x[0].detach(), g
        if isinstance(one.layer, nn.Conv2d):
            patches = nn.functional.unfold(x, one.layer.kernel_size, padding=one.layer.padding)  # type: ignore[arg-type]
            weight, bias = g.flatten(2) @ patches.mT, g.sum((-2, -1))
        else:
            weight = g[:, :, None] * x[:, None]
        for end, value in (("weight", weight), ("bias", bias)):
            name = f"{one.name}.{end}"
            out[name] = value.reshape(n, CLASSES, *theta[name].shape)
    return out


@dataclass(frozen=True)
class Pushed:
    """Negative steps on `IMAGES` images T of one network, by label L, seen from N = 2T images; float64.

    z (N, V): logits before. y, star (T, L). residual (T, L, V): π − e_y at the image pushed. K: layer → (T, V, V), its
    part of K(x_u, x_u). kappa: layers that train → (T,). linear: layers that train → d at s = 1, (T, L, N, V). after:
    (layers that train, name of the step) → logits (T, L, N, V). classes (N,).
    """

    z: Tensor
    y: Tensor
    star: Tensor
    residual: Tensor
    K: Mapping[str, Tensor]
    kappa: Mapping[str, Tensor]
    linear: Mapping[str, Tensor]
    after: Mapping[tuple[str, str], Tensor]
    classes: Tensor

    def log_ratio(self, logits: Tensor, /) -> Tensor:
        """log π'/π (T, L, N, V) of logits after."""
        return logits.log_softmax(-1) - self.z.log_softmax(-1)


def isotropic(k: Tensor) -> Tensor:
    """κ = tr(PKP)/(V − 1), (…) of K (…, V, V): c if K = cI, whatever rows and columns of one number are added.

    >>> isotropic(3.0 * torch.eye(CLASSES) + torch.arange(CLASSES)).round(decimals=4)
    tensor(3.)
    """
    return (k.diagonal(dim1=-2, dim2=-1).sum(-1) - k.sum((-2, -1)) / CLASSES) / (CLASSES - 1)


def push(architecture: nn.Sequential, theta: Theta, images: Tensor, classes: Tensor, drawn: Tensor, /) -> Pushed:
    """Take all the steps on one network. images (2T, 1, H, W), classes (2T,), drawn (T,) as from `picked`."""
    theta, images, n = {name: value.double() for name, value in theta.items()}, images.double(), len(drawn)
    kept: list[Any] = []
    z = forward(architecture, {name: value[None] for name, value in theta.items()}, images[None], keep=kept)[0]
    h, p, rows = kept[-1].x[0], z[:n].softmax(-1), torch.arange(n)
    wrong = p.clone()
    wrong[rows, classes[:n]] = -1.0
    y = torch.stack([classes[:n], wrong.argmax(-1), drawn, p.argmin(-1)], 1)
    hit = nn.functional.one_hot(y, CLASSES)
    star = torch.where(hit == 1, -1.0, p[:, None]).argmax(-1)
    residual = p[:, None] - hit

    jacobians = jacobian(architecture, theta, images)
    parts: dict[str, Any] = {}
    for name, j in jacobians.items():
        flat, layer = j[:n].flatten(2), name.partition(".")[0]
        parts[layer] = parts.get(layer, 0.0) + flat @ flat.mT
    kappa = {"all": isotropic(torch.stack(list(parts.values())).sum(0)), "head": (h[:n] * h[:n]).sum(-1) + 1.0}
    unit = residual / kappa["all"][:, None, None]
    moves = {name: (unit @ j[:n].flatten(2)).flatten(0, 1) for name, j in jacobians.items()}  # (T·L, size)
    shape = (n, len(LABELS), len(images), CLASSES)
    linear = {
        "all": torch.stack([moves[name] @ j.flatten(2).flatten(0, 1).mT for name, j in jacobians.items()]).sum(0),
        "head": residual[:, :, None] * ((h[:n] @ h.mT + 1.0) / kappa["head"][:, None])[:, None, :, None],
    }
    linear = {name: d.view(shape) for name, d in linear.items()}
    after = {}
    for name, s in STEPS.items():
        moved = {key: value + s * moves[key].view(-1, *value.shape) for key, value in theta.items()}
        after["all", name] = forward(architecture, moved, images.expand(len(moves["head.bias"]), *images.shape)).view(
            shape
        )
        after["head", name] = z + s * linear["head"]
    return Pushed(z, y, star, residual, parts, kappa, linear, after, classes)


def _others(pushed: Pushed) -> Tensor:
    """Mask (T, L, V) of the classes but y."""
    return nn.functional.one_hot(pushed.y, CLASSES) == 0


def _own(values: Tensor) -> Tensor:
    """(T, L, V) at the image pushed, of (T, L, N, V)."""
    return values.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[: values.shape[0]]


def _at(values: Tensor, label: Tensor) -> Tensor:
    """values (T, L, …, V) at a label of each (T, L)."""
    index = label.view(*label.shape, *[1] * (values.ndim - 2)).expand(*values.shape[:-1], 1)
    return values.gather(-1, index)[..., 0]


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis of what the mask keeps; NaN where that is nothing."""
    return torch.where(mask, values.double(), 0.0).sum(-1) / mask.sum(-1)


def _rank(values: Tensor, of: Tensor, mask: Tensor) -> Tensor:
    """Spearman's correlation over the classes but y, (T, L)."""
    x, y = (
        torch.where(mask, v, torch.inf).argsort(-1).argsort(-1).double()[..., :] for v in (values, of.expand_as(values))
    )
    n = mask.sum(-1)
    middle = (n - 1.0)[..., None] / 2.0
    product = torch.where(mask, (x - middle) * (y - middle), 0.0).sum(-1)
    return product / (n**3 - n) * 12.0


def entropy(logits: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def at_home(pushed: Pushed, layers: str, step: str, /) -> dict[str, Tensor]:
    """What happens at the image pushed, (T, L) each; shares are over classes but y.

    falls: does log π_y fall (of those not saturated: s(1 − π_y)² ≥ 1e-12); rises: does log π_{y*} rise; rises_told: as
    exact K says (softmax of z + d); told_falls, told_rises: does K say so of those y* that fall, that rise. kernel,
    first, plain: share of classes with the sign that exact K says, exact K to first order, and K ∝ I (the threshold
    law). losers, plain_losers: share of classes but y* that fall, in truth and by K ∝ I. order: rank correlation of Δ
    log π with π. top: y* gains most in log π. calmer: entropy falls; calmer_told: it moves as K says; calmer_valley: it
    falls, of valleys (−log π_y ≥ H before). NaN where there is none.
    """
    s, home, other = STEPS[step], slice(len(pushed.y)), _others(pushed)
    z, p, d = pushed.z[home], pushed.z[home].softmax(-1)[:, None], _own(pushed.linear[layers])
    done = _own(pushed.log_ratio(pushed.after[layers, step]))
    before = z.log_softmax(-1)[:, None]
    exact = (z[:, None] + s * d).log_softmax(-1) - before
    plain = (z[:, None] + s * pushed.residual).log_softmax(-1) - before
    first = d - (p * d).sum(-1, keepdim=True)
    up, star = done > 0.0, _at(done, pushed.star)
    rest = other & (nn.functional.one_hot(pushed.star, CLASSES) == 0)
    before_h, after_h = entropy(z)[:, None], entropy(_own(pushed.after[layers, step]))
    calmer, rises, said = after_h < before_h, star > 0.0, _at(exact, pushed.star) > 0.0
    clear = s * _at(pushed.residual, pushed.y) ** 2 >= RESOLVED
    return {
        "falls": torch.where(clear, (_at(done, pushed.y) < 0.0).double(), torch.nan),
        "rises": rises,
        "rises_told": rises == said,
        "told_falls": torch.where(rises, torch.nan, (~said).double()),
        "told_rises": torch.where(rises, said.double(), torch.nan),
        "kernel": _mean(up == (exact > 0.0), other),
        "first": _mean(up == (first > 0.0), other),
        "plain": _mean(up == (plain > 0.0), other),
        "losers": _mean(~up, rest),
        "plain_losers": _mean(plain <= 0.0, rest),
        "order": _rank(done, p, other),
        "top": torch.where(other, done, -torch.inf).argmax(-1) == pushed.star,
        "calmer": calmer,
        "calmer_told": calmer == (entropy(z[:, None] + s * d) < before_h),
        "calmer_valley": torch.where(-_at(before.expand_as(done), pushed.y) >= before_h, calmer.double(), torch.nan),
    }


def elsewhere(pushed: Pushed, layers: str, step: str, /) -> dict[str, Tensor]:
    """What happens to y and to y* at images that only look on, (T, L), shares of images; NaN where there is none.

    WHO: mate = the other image of the class pushed at, label = images of class y, rest = neither. falls_WHO, rises_WHO:
    log π_y falls, log π_{y*} rises (y* of the image pushed). elsewhere_told: of all of them, Δ log π_{y*} has the sign
    that exact K(x_o, x_u) says.
    """
    n, labels = len(pushed.y), len(LABELS)
    done = pushed.log_ratio(pushed.after[layers, step])
    exact = pushed.log_ratio(pushed.z + STEPS[step] * pushed.linear[layers])
    fell, rose = _at(done, pushed.y) < 0.0, _at(done, pushed.star) > 0.0
    at = torch.arange(len(pushed.classes))
    own = (at == at[:n, None])[:, None].expand(n, labels, -1)
    mate = (pushed.classes == pushed.classes[:n, None])[:, None] & ~own
    label = (pushed.classes == pushed.y[..., None]) & ~own & ~mate
    out = {"elsewhere_told": _mean(rose == (_at(exact, pushed.star) > 0.0), ~own)}
    for who, mask in (("mate", mate), ("label", label), ("rest", ~(own | mate | label))):
        out |= {f"falls_{who}": _mean(fell, mask), f"rises_{who}": _mean(rose, mask)}
    return out


def kernels(pushed: Pushed, /) -> dict[str, Tensor]:
    """How far K(x_u, x_u) is from a multiple of I, (T,): ‖PKP − κP‖_F/‖PKP‖_F; 0 = ∝ I, at most √(1 − 1/(V − 1)).

    apart_NAME of all layers, of the body (all but the head), of each. head_share: of κ. near: share of labels for which
    K is near enough to κI for `network.near-isotropic-suffices` to promise that y* rises.
    """
    parts = dict(pushed.K)
    whole = torch.stack(list(parts.values())).sum(0)
    parts |= {"all": whole, "body": whole - parts["head"]}
    project = torch.eye(CLASSES, dtype=whole.dtype) - 1.0 / CLASSES
    out = {"head_share": isotropic(parts["head"]) / isotropic(whole)}
    for name, k in parts.items():
        centred = project @ k @ project
        off = centred - isotropic(k)[:, None, None] * project
        out[f"apart_{name}"] = torch.linalg.matrix_norm(off) / torch.linalg.matrix_norm(centred)
        if name == "all":
            size = torch.linalg.matrix_norm(off, ord=2) / isotropic(k)
    p = pushed.z[: len(pushed.y)].softmax(-1)[:, None].expand_as(pushed.residual)
    two = torch.where(_others(pushed), p, -1.0).topk(2, -1).values
    need = 2.0**0.5 * size[:, None] * torch.linalg.vector_norm(pushed.residual, dim=-1)
    return out | {"near": (need <= two[..., 0] - two[..., 1]).double().mean(-1)}
