"""How far first order carries in networks that read digits: Proposition 1, one step on one image, seen by twenty.

Of every seed a network, MLP (ReLU) or LeNet (tanh), at its initialisation, after an epoch, and at the end of training
on the seed's own images. Lessons: four of those, of different classes, each with its own label and a step of its own.
Observers: two held-out images a class, drawn anew for every seed. All that is measured is computed in float64. So an
interval over seeds is over starts, training images, lessons and observers, all drawn from the images of one data set:
it says nothing about other images, networks or recipes.

A step is measured by the largest change of log π that first order foretells at an observer, in nats: what η that takes
differs by orders of magnitude between a network at its start and one that is sure of the lesson; what it does to
rounding and to higher orders does not. ‖·‖ of a change is over all observers and classes.

- *Order*: the slope of log error against log η from 10^-5.5 to 10^-3.5 nats, the lowest two decades in which rounding,
  some 1e-16 ‖log π‖, stays below a hundredth of the error in all stages; and over the next two, to 10^-1.5, where third
  order is still below 1 % of a smooth network's error. ReLUs have kinks: second order ends where one of them switches.
- *Where it breaks*: error over change at the paper's η = 1e-3 and at a step of 1 nat, and the step at which it passes
  one half, looked for up to 10 nats.
- *Radius*: a step on a batch of the seed's images; r = 1 is where the spread of the change of logits is π at the image
  that it moves most (T11). Looked at for r from 1/4 to 16.
- *Constant*: C = error/η² at the lowest step, the limit of η → 0.

At the start and the end alone, since they cost most:

- *Kernel*: A, K and G themselves, of the lessons with lessons and observers.
- *Optimisers*: RMSprop and Adam as torch has them, after the gradients of 4 batches. The plain kernel may choose the
  best of all step sizes, and is not charged for Adam's momentum of earlier batches.
- *LBK* (Eq. 26) ‖Δ log π‖²/(‖A‖²_F ‖G‖²), and what the released notebook computes: ‖Δ log π(label)‖ over the images of
  a group, here a class, over √(mean ‖A‖_F) and the mean of ‖π − e‖.

Sizes. *smoke*: 8×8 digits; an MLP of 4×64, half the paper's width; 256 images a seed in batches of 16, at rates that
train both networks to 80 to 90 % in 160 and 96 updates. *paper*: MNIST; the paper's MLP and LeNet, 2,000 images, batch,
momentum and decay; 20 epochs at ten and thirty times its rate, since 100 epochs at 1e-3 cost five times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from toyld import influence
from toyld.contexts.experiments.foresight import spearman
from toyld.digits import networks
from toyld.digits.data import CLASSES, embedded, mnist
from toyld.digits.ensemble import Recipe
from toyld.digits.experiments._paths import LESSONS, Path, Scene, reached, scene, size
from toyld.digits.experiments._stack import Stack
from toyld.digits.stacks import stacked
from toyld.digits.training import Trained, train
from toyld.trajectory import trajectory

__all__ = ["HIGH", "LOW", "MIDDLE", "OPTIMIZERS", "RADII", "SIZES", "Setting", "tables", "warmed"]

Floats = NDArray[np.float64]
LOW, MIDDLE, HIGH = 10**-5.5, 10**-3.5, 10**-1.5  # nats
FAR = (10**-0.5, 1.0, 10**0.5, 10.0)
DECADES = 2.0
CLOSE = 0.1  # a slope of 2 ± .1
PAPER = 1e-3  # the learning rate of the paper's recipe
WARM = 4
RADII = (0.25, 0.5, 2**-0.5, 1.0, 2**0.5, 2.0, 4.0, 8.0, 16.0)
WIDTHS = (16, 45, 128)
EPS = float(np.finfo(float).eps)
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Setting:
    """One network and how it is trained; early: the epoch of the second stage; widths: of networks never trained."""

    name: str
    network: str | networks.Make
    recipe: Recipe
    early: float = 1.0
    widths: Sequence[int] = ()


def _narrow(seed: int) -> nn.Sequential:
    return networks.mlp(64, width=64, seed=seed)


SIZES: Mapping[str, tuple[Setting, ...]] = {
    "smoke": (
        Setting("mlp", _narrow, Recipe(lr=0.1, batch=16, images=256, epochs=10), widths=WIDTHS),
        Setting("lenet", "lenet", Recipe(lr=0.2, batch=16, images=256, epochs=6)),
    ),
    "paper": (
        Setting("mlp", "mlp", Recipe(lr=0.01, epochs=20), widths=WIDTHS),
        Setting("lenet", "lenet", Recipe(lr=0.03, epochs=20)),
    ),
}


def _slope(errors: Sequence[Floats]) -> Floats:
    return np.asarray(np.log10(errors[-1] / errors[0]) / DECADES)


def _plain(at: Scene) -> tuple[dict[str, Floats], list[Path], Floats]:
    """(columns, the path of every lesson, C (S, U)) of gradient descent."""
    paths, slopes, constants, spread = [], [], [], []
    for u in range(LESSONS):
        path = Path(at.model, influence.update(at.model, at.lesson(u), lr=1.0), at.observers)
        found = [path.off(nats) for nats in (LOW, MIDDLE)]
        slopes.append(_slope([size(error) for _, _, error in found]))
        eta, _, error = found[0]
        constants.append(size(error) / np.asarray(eta) ** 2)
        each = np.asarray(torch.linalg.vector_norm(error, dim=2))
        spread.append(np.log10(np.quantile(each, 0.9, axis=0) / np.quantile(each, 0.1, axis=0)))
        paths.append(path)
    first = paths[0]
    above = _slope([size(first.off(nats)[2]) for nats in (MIDDLE, HIGH)])
    far = [first.off(nats) for nats in FAR]
    relative = np.array([size(error) / size(change) for _, change, error in far])
    change = first.at(torch.full_like(first.top, PAPER))
    low = np.abs(np.array(slopes) - 2.0)
    columns = {
        "slope": np.median(slopes, 0),
        "slope_off": np.median(low, 0),
        "second": (low <= CLOSE).mean(0),
        "slope_above": above,
        "slope_off_above": np.abs(above - 2.0),
        "relative_nat": relative[FAR.index(1.0)],
        "reach": reached(0.5, FAR, relative),
        "relative_paper": size(change - PAPER * first.first) / size(change),
        "observers": np.median(spread, 0),
    }
    return columns, paths, np.array(constants).T


def _optimized(at: Scene, plain: Path) -> dict[str, Floats]:
    """RMSprop and Adam, their own kernel with drift and the plain one, on the first lesson."""
    gradients = [influence.update(at.model, at.taught(k), lr=1.0).gradient for k in range(WARM)]
    columns: dict[str, Floats] = {}
    for name, kind in OPTIMIZERS.items():
        path = Path(
            at.model, influence.update(at.model, at.lesson(0), optimizer=warmed(at, kind, gradients)), at.observers
        )
        drift = torch.zeros_like(path.first)
        if path.step.drift:
            drift = influence.normalised(*at.model.tangent(at.observers, path.step.drift))
        error, own, others = [], [], []
        for nats in (LOW, MIDDLE):
            eta, change, off = path.off(nats)
            error.append(size(off))
            own.append(size(off) / size(change))
            lesson = change - drift * eta[:, None]
            best = (lesson * plain.first).sum((0, 2)) / (plain.first**2).sum((0, 2))
            others.append(size(lesson - plain.first * best[:, None]) / size(lesson))
        slope, tail = _slope(error), 1.0 + _slope(others)
        columns |= {
            f"slope_{name}": slope, f"slope_off_{name}": np.abs(slope - 2.0), f"own_{name}": own[0],
            f"plain_{name}": others[0], f"slope_plain_{name}": tail,
        }  # fmt: skip
    return columns


def warmed(at: Scene, kind: Callable[..., torch.optim.Optimizer], gradients: Sequence[Mapping[str, Tensor]]) -> Any:
    """An optimiser of rate 1 that has seen these gradients, and moved nothing."""
    optimizer = kind(list(at.model.parameters.values()), lr=0.0)
    for one in gradients:
        for name, p in at.model.parameters.items():
            p.grad = one[name]
        optimizer.step()
    optimizer.zero_grad()
    optimizer.param_groups[0]["lr"] = 1.0
    return optimizer


def _kernels(at: Scene, trained: Trained, update: int) -> Tensor:
    """K(x_u, x) (S, U, V, U + O, V) of the lessons with lessons and observers, network by network."""
    found = []
    for s, seed in enumerate(trained.seeds):
        one = influence.Model(trained.module(None, seed, update=update).double())
        own = at.lessons[:, s]
        found.append(influence.kernel(one, own, torch.cat([own, at.observers[:, s]])))
    return torch.stack(found)


def _square(x: Tensor, *dims: int) -> Floats:
    return np.asarray((x * x).sum(dims))


def _blocks(at: Scene, kernel: Tensor, paths: Sequence[Path], constants: Floats, size: int) -> dict[str, Floats]:
    """Symmetry, LBK and the constant, from A, K, G themselves; size: number of parameters of a network."""
    u = slice(0, LESSONS)
    z = at.model(torch.cat([at.lessons, at.observers])).transpose(0, 1)  # (S, N, V)
    labels = torch.cat([at.labels, at.classes]).T
    pi = torch.softmax(z, -1)
    g = pi - nn.functional.one_hot(labels, CLASSES)
    forth = -(kernel * g[:, u, :, None, None]).sum(2)  # K(x_o, x_u) G(x_u) by K(x_u, x_o)ᵀ, (S, U, N, V)
    forth = forth - (pi[:, None] * forth).sum(-1, keepdim=True)
    back = -torch.einsum("subod,sod->suob", kernel, g)
    back = back - (pi[:, u, None] * back).sum(-1, keepdim=True)
    norm = _square(kernel, 2, 4)  # ‖K_uo‖²_F (S, U, N)
    a2, g2 = np.asarray(CLASSES - 2.0 + CLASSES * (pi * pi).sum(-1)), _square(g, -1)  # ‖A‖²_F, ‖G‖²
    ours, theirs = _square(forth, -1), _square(back, -1)
    proxy = ours / (a2[:, None] * g2[:, u, None])
    seen = slice(LESSONS, None)
    # Matrix-free, forward mode along the gradient at x_u, against the transposed block of backward passes.
    other = torch.stack([path.first for path in paths]).permute(2, 0, 1, 3)
    apart = np.asarray((forth[:, :, seen] - other).abs().amax((1, 2, 3)) / other.abs().amax((1, 2, 3)))
    own = kernel[:, :, :, u].flatten(1, 2).flatten(2, 3)
    values = np.linalg.eigvalsh(np.asarray(own))
    itself = torch.stack([kernel[:, i, :, i] for i in range(LESSONS)], 1)  # K(x_u, x_u), (S, U, V, V)
    largest = np.linalg.eigvalsh(np.asarray(itself))[..., -1]  # ‖∇_θ z(x_u)‖²_op
    slope = np.asarray(torch.einsum("sua,suab,sub->su", g[:, u], itself, g[:, u]))  # ‖∇_θ L(x_u)‖²
    factor = np.abs(np.log(ours / theirs))[:, ~np.eye(LESSONS, z.shape[1], dtype=bool)]
    return {
        "symmetric": -np.log10(np.maximum(apart, EPS) / (size * EPS)),
        "positive": _decades(values[:, 0] / (len(values[0]) * EPS * values[:, -1])),
        "asymmetry": np.median(factor, -1) / 2.0,
        "lbk": np.log10((norm / proxy).min((1, 2))),
        "lbk_loose": np.median(np.log10((norm / proxy)[..., seen]), (1, 2)) / 2.0,
        "lbk_rank": _ranks(proxy[..., seen], norm[..., seen]),
        **_bounds(paths[0], norm[:, 0, seen], a2[:, seen], g2[:, 0]),
        **_classes(at, paths, proxy[..., seen], norm[..., seen], a2[:, seen], g2[:, seen]),
        "constant": np.log10(constants / largest).mean(-1),
        "lessons": np.ptp(np.log10(constants / largest), axis=-1),
        "rank_kernel": _ranks(largest, constants),
        "rank_gradient": _ranks(slope, constants),
    }


def _decades(x: Floats) -> Floats:
    """How far x is above −1, in decades: log10(1 + x); below −1 with a minus sign."""
    return np.asarray(np.sign(x + 1.0) * np.log10(1.0 + np.abs(x + 1.0)))


def _ranks(x: Floats, y: Floats) -> Floats:
    """Rank correlation over the last axis, averaged over those between it and the seeds."""
    found = spearman(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
    return np.asarray(found.reshape(len(x), -1).mean(-1))


def _bounds(path: Path, norm: Floats, a2: Floats, g2: Floats) -> dict[str, Floats]:
    """Decades of η² ‖A‖² ‖K‖² ‖G‖² above ‖Δ‖² of the *actual* change, least of the observers, at 1 and 10 nats."""
    out = {}
    for nats in (1, 10):
        eta, change, _ = path.off(float(nats))
        bound = np.asarray(eta)[:, None] ** 2 * a2 * norm * g2[:, None]
        out[f"lbk_{nats}"] = np.log10(bound / _square(change, -1).T).min(-1)
    return out


def _classes(
    at: Scene, paths: Sequence[Path], proxy: Floats, norm: Floats, a2: Floats, g2: Floats
) -> dict[str, Floats]:
    """How LBK and the notebook's quantity rank the classes of observers beside their mean ‖K‖²; first-order changes."""
    index = at.classes[..., None]
    moved = np.stack([np.asarray(path.first.gather(-1, index)[..., 0]).T for path in paths], 1)  # (S, U, O)
    member = np.asarray(at.classes.T[:, None] == torch.arange(CLASSES)[:, None])  # (S, class, O)
    share = member / member.sum(-1, keepdims=True)

    def mean(x: Floats) -> Floats:
        return np.asarray(np.einsum("sco,suo->suc", share, x))

    scale = np.sqrt(mean(np.sqrt(a2)[:, None])) * mean(np.sqrt(g2)[:, None])
    notebook = np.sqrt(mean(moved**2)) / scale
    return {"lbk_rank_classes": _ranks(mean(proxy), mean(norm)), "notebook_rank": _ranks(notebook, mean(norm))}


def _radius(at: Scene) -> dict[str, Floats]:
    """A step on a batch, of so many radii: how far off first order is there, and where the batch's loss turns."""
    lesson = at.taught(0)
    path = Path(at.model, influence.update(at.model, lesson, lr=1.0), lesson.inputs)
    safe = torch.pi / path.spread.amax(0)  # `influence.safe_step` at the image with the least
    index = at.marked[: at.batch, :, None]
    change, relative = [], []
    for r in RADII:
        moved = path.at(r * safe)
        relative.append(size(moved - path.first * (r * safe)[:, None]) / size(moved))
        change.append(-np.asarray(moved.gather(-1, index)[..., 0].mean(0)))
    return {
        "relative_half_radius": relative[RADII.index(0.5)],
        "relative_radius": relative[RADII.index(1.0)],
        "safe": np.asarray(safe.log10()),
        "turn": np.log2(reached(0.0, RADII, np.array(change))),
    }


def _width(at: Scene, seeds: Sequence[int], widths: Sequence[int]) -> Floats:
    """Exponent of C/‖∇_θ L(x_u)‖² in the width of MLPs at their initialisation, median of three lessons, (S,)."""
    pixels, found = at.observers[0, 0].numel(), []
    for width in widths:
        nets = [networks.mlp(pixels, width=width, seed=seed, dtype=torch.float64) for seed in seeds]
        model = influence.Model(Stack(nets[0], stacked(nets)))
        for u in range(3):
            path = Path(model, influence.update(model, at.lesson(u), lr=1.0), at.observers)
            eta, _, error = path.off(LOW)
            each = np.median(torch.linalg.vector_norm(error, dim=2), 0)  # a kink at an observer cannot carry it
            squared = sum(_square(g.flatten(1), 1) for g in path.step.gradient.values())
            found.append(np.log(each / np.asarray(eta) ** 2 / squared))
    middle = np.median(np.reshape(found, (len(widths), 3, -1)), 1)
    return np.asarray(np.polyfit(np.log(widths), middle, 1)[0])


def tables(
    seeds: Sequence[int] = range(32), size: str = "smoke", settings: Sequence[Setting] | None = None
) -> dict[str, xr.Dataset]:
    """One table a network, seeds as units, its steps the updates after which it was asked: 0, an epoch, the last.

    >>> small = Setting("mlp", _narrow, Recipe(lr=0.1, batch=8, images=64, epochs=1), early=0.5)
    >>> (found,) = tables([1000, 1001], settings=[small]).values()
    >>> found.sizes["step"], bool((found.eval_symmetric[:, -1] > 0).all())
    (3, True)
    """
    data, out = embedded() if size == "smoke" else mnist(), {}
    for setting in SIZES[size] if settings is None else settings:
        trained = train(data, network=setting.network, seeds=seeds, recipe=setting.recipe, at=[setting.early])
        count = sum(p.numel() for p in trained.architecture.parameters())
        rows: list[dict[str, Floats]] = []
        for update in trained.marks:
            at = scene(trained, update)
            columns, paths, constants = _plain(at)
            columns |= _radius(at)
            if update in (trained.marks[0], trained.marks[-1]):
                columns |= _optimized(at, paths[0])
                columns |= _blocks(at, _kernels(at, trained, update), paths, constants, count)
            rows.append(columns | {"accuracy": np.asarray(trained.accuracy(update=update))})
        unknown = np.full(len(seeds), np.nan)
        values = {f"eval_{name}": np.stack([row.get(name, unknown) for row in rows], 1) for name in rows[0]}
        if setting.widths:
            never = np.full((len(seeds), len(rows) - 1), np.nan)
            values["eval_width"] = np.concatenate([_width(scene(trained, 0), seeds, setting.widths)[:, None], never], 1)
        smooth = not any(isinstance(layer, nn.ReLU) for layer in trained.architecture.children())
        attrs = {"experiment": "first_order", "network": setting.name, "smooth": smooth}
        out[f"first order: {setting.name}"] = trajectory(
            values, step=list(trained.marks), probe=["observers"], seed=list(seeds), world="digits", stage="one step",
            arm=setting.name, attrs=attrs,
        )  # fmt: skip
    return out
