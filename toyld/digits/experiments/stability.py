"""Is the kernel's ranking stable? ‖K_uo^t‖_F between digits along training, and what it says of influence (App. C.1).

A few images of each class are *taught* (u, out of the training images); the same (*seen*) and as many held-out ones
(*new*) observe (o). Each seed has its own weights, order of the data, and choice of images. At checkpoints, dense at
first, the kernels between all of them are exact. Rankings are over the observers o of one u, without u itself;
correlations are Spearman's, means over all u. Units are seeds.

Two questions need a fair comparison. *When is it messy?* Checkpoints are compared over a tenth of the run, as many
updates early as late, at a constant rate: a rate that falls would freeze the ranking with everything else. And at equal
change: from the start to where the kernel's shape has changed as much as from half-way to the end (`matched`). Shape:
E‖K/k − K'/k'‖, k and k' the mean norms; a factor on all of K, which alters no ranking, is left out. *Is it more than
size?* ‖K_uo‖ divided by √(‖K_uu‖‖K_oo‖), a cosine of two Gram matrices; observers of other classes alone; the rankings
that two lessons of different classes give at one time; how much of the spread of log ‖K_uo‖ over o is the same for all
u.

Two further: does ‖K_uo‖ rank by how far one update on u alone, at the recipe's rate, moves log π(·|x_o)? And do the
first-order changes A J Δθ of all updates add up to the change of log π over the whole run (R² over observers and
classes)? Summed over every update, and over 20 of them, evenly spread, each standing for its twentieth.

Settings, each with its reason, fixed on seeds from 1000 on:

- *smoke*, 8×8 digits, all 1,442 for every seed, 16 epochs at a constant rate: an MLP of two hidden layers of 64 (it
  fits the time) at rate .03, to a training loss of about .02; LeNet at rate .1 (it starts on a plateau), to about .04.
  For the time, 16 of the seeds and 8 of them (LeNet takes a third of a second each); sums for 8. Stopped at 12 epochs
  for more time, LeNet's half-way partners, what its norm foretells, and 6-7 are not sure with 8 seeds.
- *paper*, MNIST: 2,000 images, rate .001, momentum .9, decay 5e-4, batch 64, cosine, 100 epochs; MLP and LeNet; and
  the MLP at a constant rate, which alone lets early be compared with late. First order is summed for 5 of its seeds;
  LeNet is trained for 6 of the seeds, as it takes a quarter of a minute each.
- *Images*: two a class and side, so 20 taught, 20 new observers.

Beyond the record, the MLP of *paper* at a constant rate for 1,000 epochs (32,000 updates), seeds 1000 and 1001: from
epoch 30 on E‖K‖ grows thirteenfold, and the ranking of epoch 30 has a correlation of .91 with the end's, that of epoch
10 .75, the untrained one .57; from epoch 800 on it is .997.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from toyld import digits
from toyld.digits.experiments._couplings import couplings, first_order, moved, pictures, summed
from toyld.digits.experiments._rankings import (
    alike,
    apart,
    at_equal_change,
    by_class,
    kept,
    lead,
    over_observers,
    partners,
    relative,
    shared,
    swapped,
)
from toyld.digits.networks import Make
from toyld.influence.stability import standing
from toyld.trajectory import trajectory

__all__ = ["DIFFERENT", "SAMPLES", "SIMILAR", "SIZES", "Observed", "Setting", "observe", "tables"]

Floats = NDArray[np.float64]
SIMILAR = ((4, 9), (5, 8), (3, 5), (7, 9))
DIFFERENT = ((6, 7), (2, 5))
SAMPLES = 20
HELD_OUT = 1000  # images for the accuracy, at most twice as many
TENTHS = tuple(k / 10 for k in range(1, 11))


@dataclass(frozen=True)
class Setting:
    """One network and recipe. shares: checkpoints as shares of the run; images: of each class, taught and new each.

    seeds: how many of those asked for, at most; summed: of how many first order is summed along training.
    """

    name: str
    network: str | Make = "mlp"
    recipe: digits.Recipe = field(default_factory=digits.Recipe)
    shares: tuple[float, ...] = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0)
    images: int = 2
    seeds: int = 1000
    summed: int = 0

    def marks(self, n: int, /) -> tuple[int, ...]:
        """Checkpoints in updates, with n training images."""
        last = self.recipe.updates(n)
        return tuple(sorted({round(share * last) for share in self.shares}))


def _small(seed: int) -> Any:
    return digits.mlp(64, width=64, depth=2, seed=seed)


_EMBEDDED = partial(digits.Recipe, images=None, cosine=False)
_DENSE = (0.0, 0.005, 0.01, 0.02, 0.05, *TENTHS)
SIZES: Mapping[str, tuple[Setting, ...]] = {
    "smoke": (
        Setting("MLP, constant rate", _small, _EMBEDDED(lr=0.03, epochs=16), seeds=16, summed=8),
        Setting("LeNet, constant rate", "lenet", _EMBEDDED(lr=0.1, epochs=16), seeds=8),
    ),
    "paper": (
        Setting("MLP, cosine", "mlp", shares=_DENSE),
        Setting("MLP, constant rate", "mlp", digits.Recipe(cosine=False), shares=_DENSE, summed=5),
        Setting("LeNet, cosine", "lenet", shares=_DENSE, seeds=6),
    ),
}


@dataclass(frozen=True, eq=False)
class Observed:
    """What was measured of S seeds at T checkpoints.

    columns: name → (S, T). matrices: (S, T, 10, 10), the mean ‖K‖ by class; relative: that of the relative norms.
    """

    trained: digits.Trained
    columns: Mapping[str, Floats]
    matrices: Floats
    relative: Floats


def observe(data: digits.Digits, seeds: Iterable[int], setting: Setting, /) -> Observed:
    """Train by a setting, take the kernels at the checkpoints, and all numbers from them."""
    seeds = tuple(seeds)[: setting.seeds]
    n = len(data.labels) if setting.recipe.images is None else setting.recipe.images
    at = [mark / setting.recipe.per_epoch(n) for mark in setting.marks(n)]
    trained = digits.train(data, network=setting.network, seeds=seeds, recipe=setting.recipe, at=at)
    images, labels = pictures(data, trained.index, seeds, setting.images)
    found = [_seed(trained, s, images[s], labels) for s in range(len(seeds))]
    columns = {name: np.stack([one.columns[name] for one in found]) for name in found[0].columns}
    matrices, shares = (np.stack([getattr(one, name) for one in found]) for name in ("matrix", "relative"))
    for kind, matrix in (("", matrices), ("_relative", shares)):
        nearest = partners(matrix)
        columns[f"eval_partners{kind}"] = (nearest == nearest[:, -1:]).mean(-1)
    for a, b in SIMILAR + DIFFERENT:
        for kind, matrix in (("", matrices), ("relative_", shares)):
            columns[f"eval_alike_{kind}{a}_{b}"] = alike(matrix, a, b)
            columns[f"eval_lead_{kind}{a}_{b}"] = lead(matrix, a, b)
            columns[f"eval_lead_{kind}{b}_{a}"] = lead(matrix, b, a)
    epoch = setting.recipe.per_epoch(n)
    losses = [trained.losses[max(0, mark - epoch) : mark].mean(0) for mark in trained.marks]
    columns["eval_loss"] = torch.stack(losses, 1).double().numpy()
    columns["eval_accuracy"] = np.full(columns["eval_loss"].shape, np.nan)
    some = slice(None, None, max(1, len(data.test_labels) // HELD_OUT))
    columns["eval_accuracy"][:, -1] = trained.accuracy(None, data.test_images[some], data.test_labels[some])
    if setting.summed:
        columns |= _sums(data, setting, trained, images[: setting.summed, len(labels) // 2 :])
    return Observed(trained, columns, matrices, shares)


def tables(
    seeds: Sequence[int] = range(32), size: str = "smoke", settings: Sequence[Setting] | None = None
) -> dict[str, xr.Dataset]:
    """One table a setting, the seeds as units, the checkpoints as steps.

    eval_rank_{first, last, before}_{seen, new, relative, others}: rank correlation of ‖K_uo‖ with that at the start, at
    the end, a tenth of the run before (NaN where there is none); relative: of the relative norms, others: over classes
    other than u's, both over new observers. eval_rank_matched_{seen, new}, at the last step: with the start, where the
    kernel's shape has changed as much as from half-way to the end. eval_change_{first, last, before}: mean ‖K − K'‖
    over the root of both mean norms; eval_shape_{…}: of its shape, mean ‖K/k − K'/k'‖. eval_norm: mean ‖K_uo‖.
    eval_rank_swapped, eval_shared: see `_rankings`. eval_rank_pixels: with |⟨x_o, x_u⟩|. eval_foretold_by_{norm,
    first}: rank correlation of ‖K_uo‖, and of ‖A K G‖, with how far one update on u moves o. eval_asymmetry: mean |log|
    of the ratio of ‖A K G‖ of u on o and of o on u. eval_alike_a_b, eval_lead_a_b (and relative): see `_rankings`.
    eval_partners (and relative): share of classes whose nearest other class is that of the end. eval_sum_fit,
    eval_sampled_fit: R² of first-order changes added up over all updates, and over 20. eval_loss (training),
    eval_accuracy (held out).

    >>> tiny = Setting("tiny", _small, _EMBEDDED(images=200, lr=0.1, epochs=5), shares=(0.0, 0.5, 0.9, 1.0))
    >>> found = tables([1000, 1001], settings=[tiny])["stability: tiny"]
    >>> found.step.values.tolist(), found.eval_rank_last_new.shape
    ([0, 10, 18, 20], (2, 4))
    """
    data = digits.mnist() if size == "paper" else digits.embedded()
    out: dict[str, xr.Dataset] = {}
    for setting in SIZES[size] if settings is None else settings:
        found = observe(data, seeds, setting)
        rate = "cosine" if setting.recipe.cosine else "constant"
        attrs = {"experiment": "stability", "setting": setting.name, "data": data.name, "rate": rate}
        out[f"stability: {setting.name}"] = trajectory(
            found.columns,
            step=found.trained.marks, probe=["digits"], seed=list(found.trained.seeds), world="digits",
            stage="kernels", arm=setting.name, attrs=attrs,
        )  # fmt: skip
    return out


@dataclass(frozen=True, eq=False)
class _Seed:
    """One seed: name → (T,), and (T, 10, 10) twice."""

    columns: Mapping[str, Floats]
    matrix: Floats
    relative: Floats


def _seed(trained: digits.Trained, s: int, images: torch.Tensor, labels: NDArray[np.int64]) -> _Seed:
    taught, marks = len(labels) // 2, trained.marks
    half = int(np.argmin(np.abs(np.array(marks) - marks[-1] / 2)))
    kernels, sizes, firsts, moves = [], [], [], {}
    for i, (mark, z, k) in enumerate(couplings(trained, s, images)):
        sizes.append(torch.linalg.vector_norm(torch.einsum("nvnw->nvw", k), dim=(1, 2)))
        kernels.append(k[:, :, :taught].clone())
        firsts.append(first_order(z.double(), kernels[-1].double(), labels[:taught]))
        if i in (0, half, len(marks) - 1):
            moves[i] = moved(trained, mark, s, images, labels[:taught])[taught:].numpy()
    norms = torch.stack([torch.linalg.vector_norm(k, dim=(1, 3)) for k in kernels]).double().numpy()
    divided = relative(norms, torch.stack(sizes).double().numpy())
    first = torch.stack(firsts).numpy()
    other = ~np.eye(len(labels), taught, dtype=bool)

    new = norms[:, taught:]
    elsewhere = np.not_equal.outer(labels[taught:], labels[:taught])
    kinds = {"seen": kept(norms[:, :taught], other[:taught]), "new": new}
    kinds |= {"relative": divided[:, taught:], "others": kept(new, elsewhere)}
    stands = {kind: standing(x.swapaxes(1, 2)) for kind, x in kinds.items()}
    far = dict(zip(("change", "shape"), apart(torch.stack(kernels).double().numpy(), other), strict=True))
    columns: dict[str, list[float]] = {}
    for i in range(len(marks)):
        for name, j in {"first": 0, "last": len(marks) - 1, "before": _tenth_before(marks, i)}.items():
            for kind, x in far.items():
                columns.setdefault(f"eval_{kind}_{name}", []).append(np.nan if j is None else float(x[i, j]))
            for kind, x in stands.items():
                value = np.nan if j is None else float((x[i] * x[j]).sum(-1).mean())
                columns.setdefault(f"eval_rank_{name}_{kind}", []).append(value)
    out = {name: np.array(values) for name, values in columns.items()}
    for kind in ("seen", "new"):
        path, wanted = out[f"eval_rank_first_{kind}"], out["eval_shape_last"][half]
        matched = at_equal_change(out["eval_shape_first"], path, wanted)
        out[f"eval_rank_matched_{kind}"] = np.append(np.full(len(marks) - 1, np.nan), matched)
    flat = images.flatten(1).double().numpy()
    pixels = np.abs(flat[taught:] @ flat[:taught].T)
    back = np.log(first[:, :taught][:, other[:taught]]) - np.log(first[:, :taught].swapaxes(1, 2)[:, other[:taught]])
    out |= {
        "eval_norm": norms[:, other].mean(-1),
        "eval_rank_swapped": swapped(new, labels[:taught]),
        "eval_shared": shared(new),
        "eval_rank_pixels": over_observers(new, np.broadcast_to(pixels, new.shape)),
        "eval_asymmetry": np.abs(back).mean(-1),
    }
    for name, by in (("norm", new), ("first", first[:, taught:])):
        out[f"eval_foretold_by_{name}"] = np.full(len(marks), np.nan)
        for i, move in moves.items():
            out[f"eval_foretold_by_{name}"][i] = over_observers(by[i], move)
    return _Seed(out, by_class(norms, labels, labels[:taught]), by_class(divided, labels, labels[:taught]))


def _tenth_before(marks: Sequence[int], i: int) -> int | None:
    """Which mark lies a tenth of the run before, each being off by half an update at most; None if there is none."""
    away = np.abs(np.array(marks) - (marks[i] - marks[-1] / 10))
    k = int(np.argmin(away))
    return k if away[k] < 1.0 and k < i else None


def _sums(data: digits.Digits, setting: Setting, trained: digits.Trained, images: torch.Tensor) -> dict[str, Floats]:
    """R² of the sums with the changes, NaN for the seeds of which none is taken."""
    seeds, marks = trained.seeds[: len(images)], trained.marks
    total, change, few = summed(data, setting.network, setting.recipe, seeds, images, marks, SAMPLES)
    out = {name: np.full((len(trained.seeds), len(marks)), np.nan) for name in ("eval_sum_fit", "eval_sampled_fit")}
    out["eval_sum_fit"][: len(seeds), 1:] = _fit(total[:, 1:], change[:, 1:])
    out["eval_sampled_fit"][: len(seeds), -1] = _fit(few, change[:, -1])
    return out


def _fit(guess: Floats, truth: Floats) -> Floats:
    """R² over observers and classes, the last two axes."""
    spread = truth - truth.mean((-2, -1), keepdims=True)
    return 1.0 - ((guess - truth) ** 2).sum((-2, -1)) / (spread**2).sum((-2, -1))
