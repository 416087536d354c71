"""What one lesson does to other images' beliefs, and what all lessons of a run add up to (in the manner of Figure 1).

*steps*: at three times of a run, one step of plain descent on one image of a 4, labelled 4, as the held-out images of
every class see it: its change of log π and of π, and the first-order prediction −η A K G. *lessons*: the predictions
summed over the whole run, apart by the class c of the lesson, the class i of the images that look on, and the class j
whose log π changes; and the matrices of mean π(j) and mean log π(j) on images of class i at the end.

The sum takes the gradients of all images of a class at ten times of the run, interpolates between them, and goes
through the optimiser's momentum and falling rate. It leaves out the noise of batches and all that steps are too long
for; how well it adds up is measured (*unexplained*). It is taken in every setting, also where it adds up to nothing.

The images that look on are the first held-out ones of every class, the same for all seeds: intervals over seeds are
over initial weights, orders, and the images drawn for training where some are drawn, given these ten classes and these
images. How much of a likeness between classes hangs on which classes there are says a jackknife over the classes.

Settings. *smoke*: the embedded digits; the paper's recipe with 500 images, 60 epochs and three times its rate, which
comes as far as its 3,200 updates allow in 480; two hidden layers of 64. *paper*: MNIST; the paper's networks by its
recipe on 2,000 images, and both on all images at a rate of .05, as far as some minutes
of one core let ten seeds go in all four.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from toyld import influence
from toyld.digits.data import CLASSES, Digits, embedded, mnist
from toyld.digits.ensemble import Recipe
from toyld.digits.experiments import _stack
from toyld.digits.experiments._sums import summed
from toyld.digits.networks import Make, mlp
from toyld.digits.training import Trained, train
from toyld.trajectory import trajectory

__all__ = [
    "SIZES",
    "TAUGHT",
    "Setting",
    "alike",
    "interaction",
    "jackknife",
    "lessons",
    "matrices",
    "prepared",
    "small",
    "steps",
    "tables",
]

Floats = NDArray[np.float64]
TAUGHT = 4  # the class of the single lessons
SINGLE = 4  # single lessons a seed
NAMES = ("lift", "first", "gain", "moved", "pushed")  # of what a step does on images of every class
CURVE = 9  # times of a run at which the lessons of all classes are taken, beside the start


def small(seed: int, /) -> torch.nn.Sequential:
    """Two hidden layers of 64: half of the paper's network in each direction.

    >>> sum(p.numel() for p in small(0).parameters())
    8970
    """
    return mlp(64, width=64, depth=2, seed=seed)


@dataclass(frozen=True)
class Setting:
    """One design: digits, network, recipe; epochs that are neither first nor last at which single steps are taken.

    Single steps have the recipe's rate. looking: held-out images a class that look on. taught: at most so many images a
    class in the lessons that are summed over the run.
    """

    name: str
    data: str
    network: str | Make
    recipe: Recipe
    early: float
    looking: int
    taught: int = 200


_FULL = Recipe(lr=0.05, images=None, epochs=2)
SIZES = {
    "smoke": (Setting("embedded", "embedded", small, Recipe(lr=3e-3, images=500, epochs=60), early=4, looking=10),),
    "paper": (
        Setting("MNIST 2,000, mlp", "mnist", "mlp", Recipe(), early=10, looking=20),
        Setting("MNIST 2,000, lenet", "mnist", "lenet", Recipe(), early=10, looking=10, taught=50),
        Setting("MNIST, mlp", "mnist", "mlp", _FULL, early=0.1, looking=20),
        Setting("MNIST, lenet", "mnist", "lenet", replace(_FULL, epochs=0.5), early=0.1, looking=10, taught=50),
    ),
}


def prepared(seeds: Sequence[int], setting: Setting, /) -> tuple[Digits, Trained, tuple[int, ...], tuple[int, ...]]:
    """The digits, the trained networks, the updates at which the curve is taken and those of the single steps."""
    data = embedded() if setting.data == "embedded" else mnist()
    recipe = setting.recipe
    n = len(data.labels) if recipe.images is None else recipe.images
    last, few = recipe.updates(n), (0, recipe.updates(n, setting.early), recipe.updates(n))
    curve = tuple(sorted({0, last, *(round(float(x)) for x in np.geomspace(1, last, CURVE))}))
    at = [update / recipe.per_epoch(n) for update in {*few, *curve}]
    return data, train(data, network=setting.network, seeds=seeds, recipe=recipe, at=at), curve, few


def _looking(data: Digits, setting: Setting, seeds: int) -> torch.Tensor:
    """The first held-out images of each class, class by class, (classes · looking, S, 1, H, W)."""
    of = [torch.nonzero(data.test_labels == i)[: setting.looking, 0] for i in range(CLASSES)]
    return data.test_images[torch.cat(of)][:, None].expand(-1, seeds, -1, -1, -1)


def _not_looking(data: Digits, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """The other held-out images and their labels: what is chosen on these is not chosen by what looks on."""
    left = torch.cat([torch.nonzero(data.test_labels == i)[setting.looking :, 0] for i in range(CLASSES)])
    return data.test_images[left], data.test_labels[left]


def _by_class(values: torch.Tensor) -> Floats:
    """Mean over the images that look on of each class: (classes · looking, …) → (classes, …)."""
    return values.double().reshape(CLASSES, -1, *values.shape[1:]).mean(1).numpy()


def _of_class(trained: Trained, c: int, at_most: int) -> tuple[torch.Tensor, float]:
    """The first images (U, S, 1, H, W) of a class among those of each seed, and the class's share of all."""
    there = [torch.nonzero(labels == c)[:, 0] for labels in trained.labels]
    k = min(at_most, *(len(rows) for rows in there))
    index = torch.stack([own[rows[:k]] for own, rows in zip(trained.index, there, strict=True)], 1)
    return trained.data.images[index], sum(len(rows) for rows in there) / trained.labels.numel()


def steps(trained: Trained, setting: Setting, update: int, /) -> dict[str, Floats]:
    """One step on a 4: means over lessons and held-out images, by the class i of these; name → (i, S).

    lift: of log π(4), nats; first: its first-order prediction; gain: of π(4); moved: half of Σ|Δπ|; pushed: mean of
    Δlog π over the nine other classes but the image's own. (i, S, j): real and predicted Δlog π(j). (S,): error =
    ‖Δlog π − predicted‖/‖Δlog π‖ over everything.
    """
    model, seeds = _stack.at(trained, update), len(trained.seeds)
    images, _ = _of_class(trained, TAUGHT, SINGLE)
    looking = _looking(trained.data, setting, seeds)
    before = model(looking).log_softmax(-1)
    label, own = torch.full((1, seeds), TAUGHT), torch.arange(CLASSES).repeat_interleave(setting.looking)
    others = torch.ones(len(own), 1, CLASSES).scatter_(2, own[:, None, None], 0.0)
    others[..., TAUGHT] = 0.0
    found: dict[str, list[Floats]] = {name: [] for name in ("real", "predicted", *NAMES)}
    missed, whole = torch.zeros(seeds), torch.zeros(seeds)
    for image in images:
        lesson = influence.teach(image[None], label)
        step = influence.update(model, lesson, lr=setting.recipe.lr)
        first, real = influence.predict(model, step, looking), influence.actual(model, step, looking)
        change = (before + real).exp() - before.exp()
        found["real"].append(_by_class(real))
        found["predicted"].append(_by_class(first))
        found["lift"].append(_by_class(real[..., TAUGHT]))
        found["first"].append(_by_class(first[..., TAUGHT]))
        found["gain"].append(_by_class(change[..., TAUGHT]))
        found["moved"].append(_by_class(change.abs().sum(-1) / 2))
        found["pushed"].append(_by_class((real * others).sum(-1) / others.sum(-1)))
        missed, whole = missed + ((real - first) ** 2).sum((0, 2)), whole + (real**2).sum((0, 2))
    out = {name: np.mean(values, 0) for name, values in found.items()}
    return out | {"error": (missed / whole).sqrt().double().numpy()}


def lessons(trained: Trained, setting: Setting, curve: Sequence[int], /) -> tuple[Floats, Floats]:
    """First-order Δlog π by class of the lesson, of the images and of the label, (c, i, j, S), nats: (rate, total).

    rate: before the first update, per unit of η; total: over the run up to the last update of `curve`.
    """
    looking = _looking(trained.data, setting, len(trained.seeds))
    taught = [_of_class(trained, c, setting.taught) for c in range(CLASSES)]
    rates = []
    for update in curve:
        model = _stack.at(trained, update)
        row = []
        for c, (images, share) in enumerate(taught):
            lesson = influence.teach(images, torch.full(images.shape[:2], c))
            row.append(_by_class(influence.predict(model, influence.update(model, lesson, lr=share), looking)))
        rates.append(np.moveaxis(np.stack(row), 2, 3))
    return rates[0], np.tensordot(summed(trained.recipe, trained.index.shape[1], curve)[-1], np.stack(rates), 1)


def matrices(trained: Trained, images: torch.Tensor, labels: torch.Tensor, update: int, /) -> tuple[Floats, Floats]:
    """(mean π(j), mean log π(j)) over images of class i, each (i, j, S)."""
    logs = trained.logits(None, images, update=update).double().log_softmax(-1)
    found = [[f(logs)[:, labels == i].mean(1) for i in range(CLASSES)] for f in (torch.exp, lambda x: x)]
    return tuple(np.moveaxis(torch.stack(one).numpy(), 1, 2) for one in found)  # type: ignore[return-value]


def interaction(matrix: Floats, /) -> Floats:
    """What rows and columns do not explain of the entries off the diagonal, (n, n, …) → (n(n − 1), …).

    The residual of least squares of x_ij on a number for each row and one for each column: what is left of a matrix of
    mean log π when how hard class i is and how popular label j is are taken off.

    >>> a = np.arange(4.0)
    >>> bool(np.abs(interaction(a[:, None] + 3 * a)).max() < 1e-12)
    True
    """
    n = len(matrix)
    i, j = np.nonzero(~np.eye(n, dtype=bool))
    design = np.concatenate([np.eye(n)[i], np.eye(n)[j]], 1)
    x = matrix[i, j]
    return x - design @ (np.linalg.pinv(design) @ x.reshape(len(x), -1)).reshape(2 * n, *x.shape[1:])


def alike(a: Floats, b: Floats, /) -> Floats:
    """Correlation of the interactions of two matrices (n, n, S), by seed.

    >>> x = np.random.default_rng(0).normal(size=(5, 5, 2))
    >>> alike(x, 2 * x + 1).round(6).tolist()
    [1.0, 1.0]
    """
    x, y = interaction(a), interaction(b)
    return (x * y).sum(0) / np.sqrt((x * x).sum(0) * (y * y).sum(0))


def jackknife(a: Floats, b: Floats, /) -> Floats:
    """Standard error of `alike` over the classes, which are left out one at a time, by seed.

    >>> x = np.random.default_rng(0).normal(size=(5, 5, 2))
    >>> jackknife(x, 2 * x + 1).round(6).tolist()
    [0.0, 0.0]
    """
    n = len(a)
    kept = [np.delete(np.arange(n), i) for i in range(n)]
    without = np.stack([alike(a[np.ix_(k, k)], b[np.ix_(k, k)]) for k in kept])
    return np.sqrt((n - 1) * without.var(0))


def tables(
    seeds: Sequence[int] = range(32), size: str = "smoke", settings: Sequence[Setting] | None = None
) -> dict[str, xr.Dataset]:
    """Two tables a setting, the seeds as units.

    *steps*, at three updates: eval_lift_i, eval_first_i, eval_gain_i, eval_moved_i, eval_pushed_i on images of class i,
    eval_error (see `steps`), and eval_partner_lift, eval_partner_gain: lift and gain on images of the class that is
    taken for a 4 most in the end (by mean log π on the held-out images that do not look on), less the mean of the eight
    others'. *lessons*, at the end: eval_pi_i_j and eval_logpi_i_j, the final matrices; eval_alike_first: correlation of
    the interaction of the final mean log π with that of the lifts before the first update, eval_alike: with that of all
    lifts, eval_alike_first_se, eval_alike_se: their `jackknife`; eval_lifted_i_j: what the lessons of class j did to
    log π(j) on images of class i, eval_on_four_c_j: what those of class c did to log π(j) on images of a 4,
    eval_unexplained: ‖real change − sum‖/‖real change‖ over i, j.

    >>> tiny = Setting("tiny", "embedded", small, Recipe(lr=3e-3, images=60, epochs=2), early=1, looking=2)
    >>> found = tables([1000, 1001], settings=[tiny])
    >>> [(name, ds.sizes["step"], ds.sizes["seed"]) for name, ds in found.items()]
    [('lifts: tiny, steps', 3, 2), ('lifts: tiny, lessons', 1, 2)]
    """
    out: dict[str, xr.Dataset] = {}
    for setting in SIZES[size] if settings is None else settings:
        data, trained, curve, few = prepared(seeds, setting)
        found = [steps(trained, setting, update) for update in few]
        final = _final(data, trained, setting, curve)
        columns: dict[str, Floats] = {"error": np.stack([one["error"] for one in found], -1)}
        taken = matrices(trained, *_not_looking(data, setting), few[-1])[1][:, TAUGHT]
        for name in ("lift", "gain"):
            columns[f"partner_{name}"] = np.stack([_partner(one[name], taken) for one in found], -1)
        for name in NAMES:
            columns |= {f"{name}_{i}": np.stack([one[name][i] for one in found], -1) for i in range(CLASSES)}
        out[f"lifts: {setting.name}, steps"] = _table(columns, seeds, few, "steps", setting)
        out[f"lifts: {setting.name}, lessons"] = _table(
            {name: value[:, None] for name, value in final.items()}, seeds, few[-1:], "lessons", setting
        )
    return out


def _partner(values: Floats, taken: Floats) -> Floats:
    """Of values (classes, S): at the class that is taken for a 4 most, less the mean of the eight others, (S,)."""
    others = np.delete(np.arange(CLASSES), TAUGHT)
    x, top = values[others], taken[others].argmax(0)
    at = x[top, np.arange(x.shape[1])]
    return at - (x.sum(0) - at) / (len(others) - 1)


def _final(data: Digits, trained: Trained, setting: Setting, curve: Sequence[int]) -> dict[str, Floats]:
    pi, logpi = matrices(trained, data.test_images, data.test_labels, trained.marks[-1])
    first, total = lessons(trained, setting, curve)
    looking = _looking(data, setting, 1)[:, 0]
    labels = torch.arange(CLASSES).repeat_interleave(setting.looking)
    before, after = (matrices(trained, looking, labels, update)[1] for update in (0, trained.marks[-1]))
    size = [np.sqrt((x * x).sum((0, 1))) for x in (after - before - total.sum(0), after - before)]
    out = {"accuracy": trained.accuracy().numpy(), "unexplained": size[0] / size[1]}
    for name, lifted in (("alike_first", _lifts(first)), ("alike", _lifts(total))):
        out |= {name: alike(lifted, logpi), f"{name}_se": jackknife(lifted, logpi)}
    matrix = {"pi": pi, "logpi": logpi, "lifted": _lifts(total), "on_four": total[:, TAUGHT]}
    return out | {f"{name}_{i}_{j}": x[i, j] for name, x in matrix.items() for i, j in np.ndindex(x.shape[:2])}


def _lifts(lessons: Floats) -> Floats:
    """What the lessons of class j do to log π(j) on images of class i: (c, i, j, S) → (i, j, S)."""
    return np.stack([lessons[j, :, j] for j in range(CLASSES)], 1)


def _table(
    columns: dict[str, Floats], seeds: Sequence[int], step: Sequence[int], stage: str, one: Setting
) -> xr.Dataset:
    return trajectory(
        {f"eval_{name}": value for name, value in columns.items()},
        step=list(step), probe=["chosen"], seed=list(seeds), world="digits", stage=stage, arm=one.name,
        attrs={"experiment": "lifts", "setting": one.name, "data": one.data},
    )  # fmt: skip
