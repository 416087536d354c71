"""Paths of images whose label is wrong: towards the truth first, then to the label as memorised (zig-zag).

A share of the training labels is flipped to another class, drawn by seed and without a look at the image, so that the
images left alone are their fair comparison. *path*: mean probabilities of the true class, of the class as given and of
the rest on the flipped images over the run, and what drives them. Every image's own lesson moves its log π(true) by a
term of A K G that is known in closed form; summed over the run it is what its own lessons did, and the change that
happened less it is what the lessons of all the others did (with what is not of first order). The terms are taken after
whole epochs and interpolated, as if an image were taught a little at every update: summed update by update, with the
batches as they fall, its own lessons come to a quarter more over the run. In the first epochs, where
networks still bend so little that sums of all lessons make sense, that is compared with what first order foretells.
*students*: how straight the paths are, whether hard images go further round, and what networks trained on filtered
labels are worth (Filter-KD: the targets are the average of the predictions over the path, q ← q + α(π − q) after every
epoch, α = .05) beside the same labels as they are, smoothed to the same entropy, or training that is stopped.

Settings. A network memorises if it may: no weight decay, a rate that does not fall, batches of one size, and 60 epochs;
by then 99 of 100 wrong labels are given back. *smoke*: the embedded digits, 200 images, two hidden layers of 64, rate
.03, what 32 seeds have time for. *paper*: MNIST, 1,000 images, four hidden layers of 128.
How hard an image is: −log π(true|x) of a network with other weights, trained on the true labels of other images.
Stopping is by the accuracy on every other held-out image, whose labels are as often wrong as those that are taught: a
share of them is flipped as theirs is, by seed, so that stopping knows no truth that filtering does not. All accuracies
are on the images between, by their true labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from toyld import influence
from toyld.digits.data import CLASSES, Digits, embedded, flipped, mnist
from toyld.digits.ensemble import Recipe, picked
from toyld.digits.experiments import _soft, _stack
from toyld.digits.experiments._sums import summed
from toyld.digits.networks import Make, make, mlp
from toyld.digits.stacks import forward
from toyld.digits.training import Trained, train
from toyld.trajectory import trajectory

__all__ = [
    "MARKS",
    "RISE",
    "SIZES",
    "Run",
    "Setting",
    "all_lessons",
    "detours",
    "filtered",
    "own",
    "run",
    "small",
    "smoothed",
    "tables",
]

Floats = NDArray[np.float64]
MARKS = (0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 23, 29, 36, 44, 52, 60)  # epochs
RISE = 3  # epochs: up to there the lessons of all are summed to first order
ALPHA = 0.05  # of the average over the path
OTHER = 10_000  # seeds of the networks that say how hard an image is, and of the flips by which a run is stopped


def small(seed: int, /) -> torch.nn.Sequential:
    """Two hidden layers of 64.

    >>> small(0).head.in_features
    64
    """
    return mlp(64, width=64, depth=2, seed=seed)


@dataclass(frozen=True)
class Setting:
    """One design: digits, network, recipe of MARKS[-1] epochs, share of wrong labels; whether students are trained."""

    name: str
    data: str
    network: str | Make
    recipe: Recipe
    share: float
    students: bool = True


_SMALL = Recipe(lr=0.03, weight_decay=0.0, batch=50, images=200, epochs=MARKS[-1], cosine=False)
_LARGE = Recipe(lr=0.03, weight_decay=0.0, batch=50, images=1000, epochs=MARKS[-1], cosine=False)
SIZES = {
    "smoke": (
        Setting("embedded, 20 %", "embedded", small, _SMALL, 0.2),
        Setting("embedded, 40 %", "embedded", small, _SMALL, 0.4, students=False),
    ),
    "paper": (
        Setting("MNIST, 20 %", "mnist", "mlp", _LARGE, 0.2),
        Setting("MNIST, 40 %", "mnist", "mlp", _LARGE, 0.4),
    ),
}


@dataclass(frozen=True, eq=False)
class Run:
    """Networks trained on labels (S, n) as given, some of them wrong, with their parameters after every epoch."""

    trained: Trained
    true: torch.Tensor
    given: torch.Tensor

    @property
    def wrong(self) -> torch.Tensor:
        """Which images (S, n) have a wrong label."""
        return self.true != self.given

    def logs(self, epoch: float) -> torch.Tensor:
        """log π (S, n, classes) of each seed's own images after an epoch."""
        return self.trained.logits(epoch, self.trained.images).double().log_softmax(-1)


def run(seeds: Sequence[int], setting: Setting, /) -> Run:
    """Train on labels of which a share is wrong.

    >>> setting = Setting("tiny", "embedded", small, Recipe(lr=0.03, images=40, epochs=2), 0.25)
    >>> run([1000, 1001], setting).wrong.sum(1).tolist()
    [10, 10]
    """
    data = embedded() if setting.data == "embedded" else mnist()
    true = data.labels[picked(data, setting.recipe, seeds)]
    rows = [flipped(one.numpy(), setting.share, seed=seed) for one, seed in zip(true, seeds, strict=True)]
    given = torch.from_numpy(np.stack(rows))
    every = range(1 + round(setting.recipe.epochs))
    return Run(
        train(data, network=setting.network, seeds=seeds, recipe=setting.recipe, labels=given, at=every), true, given
    )


def _of(logs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logs.gather(-1, labels[..., None])[..., 0]


def _mean(values: torch.Tensor, where: torch.Tensor) -> Floats:
    """Mean over the images (S, n) of a kind, by seed."""
    return np.asarray(((values * where).sum(1) / where.sum(1)).double().numpy())


def own(found: Run, epoch: float, labels: torch.Tensor, /) -> torch.Tensor:
    """What its own lesson does to log π(label) of each image, (S, n): d log π/dη of one update on all n.

        −(1/n) aᵀ K(x, x) G = −(1/n) Σ_layers (‖input‖² + 1) ⟨δ(a), δ(G)⟩,   a = e_label − π,  G = π − e_given

    δ(v): v sent back to the layer's output. Only Linear layers may have parameters.
    """
    images, theta = found.trained.images, found.trained.parameters(epoch)
    kept: list = []
    with torch.enable_grad():
        alive = {name: value.detach().requires_grad_() for name, value in theta.items()}
        z = forward(found.trained.architecture, alive, images, keep=kept)
        layers = [one for one in kept if isinstance(one.layer, torch.nn.Linear)]
        pi, one_hot = z.detach().softmax(-1), torch.nn.functional.one_hot
        ends = [one.y for one in layers]
        a, g = (
            torch.autograd.grad(z, ends, v, retain_graph=True)
            for v in (one_hot(labels, CLASSES) - pi, pi - one_hot(found.given, CLASSES))
        )
    size = [(one.x.detach() ** 2).sum(-1) + 1 for one in layers]
    return -sum(s * (x * y).sum(-1) for s, x, y in zip(size, a, g, strict=True)) / images.shape[1]


def all_lessons(found: Run, epoch: float, labels: torch.Tensor, /) -> torch.Tensor:
    """What the lessons of all images do to log π(label) of each, (S, n): d log π/dη of one update on all n."""
    inputs, trained = found.trained.images.transpose(0, 1), found.trained
    model = _stack.at(trained, trained.recipe.updates(len(inputs), epoch))
    step = influence.update(model, influence.teach(inputs, found.given.T), lr=1.0)
    return _of(influence.predict(model, step, inputs).transpose(0, 1), labels)


def detours(probabilities: torch.Tensor, /) -> torch.Tensor:
    """Length of a path (steps, …, classes) over the distance of its ends, (…): 1 = straight.

    >>> corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    >>> round(float(detours(corner)), 6)
    1.4
    """
    length = torch.linalg.vector_norm(probabilities.diff(dim=0), dim=-1).sum(0)
    return length / torch.linalg.vector_norm(probabilities[-1] - probabilities[0], dim=-1)


def filtered(path: torch.Tensor, /, *, alpha: float = ALPHA) -> torch.Tensor:
    """q ← q + α(π − q) along a path (steps, …), from its first.

    >>> filtered(torch.tensor([0.0, 1.0, 1.0]), alpha=0.5)
    tensor(0.7500)
    """
    q = path[0]
    for pi in path[1:]:
        q = q + alpha * (pi - q)
    return q


def smoothed(labels: torch.Tensor, entropy: torch.Tensor, /) -> torch.Tensor:
    """(1 − ε) e_label + ε/V for labels (S, n) with ε by seed, so that every target has this entropy (S,), nats.

    >>> q = smoothed(torch.zeros(1, 1, dtype=torch.long), torch.tensor([1.0], dtype=torch.float64))
    >>> round(float(-(q * q.log()).sum()), 6)
    1.0
    """
    low, high = torch.zeros_like(entropy), torch.ones_like(entropy)
    for _ in range(60):  # the entropy grows with ε
        mid = (low + high) / 2
        rest, top = mid / CLASSES, 1 - mid + mid / CLASSES
        less = -(CLASSES - 1) * torch.special.xlogy(rest, rest) - torch.special.xlogy(top, top) < entropy
        low, high = torch.where(less, mid, low), torch.where(less, high, mid)
    epsilon = low[:, None, None]
    return (1 - epsilon) * torch.nn.functional.one_hot(labels, CLASSES) + epsilon / CLASSES


def tables(
    seeds: Sequence[int] = range(32), size: str = "smoke", settings: Sequence[Setting] | None = None
) -> dict[str, xr.Dataset]:
    """Two tables a setting, the seeds as units.

    *path*, over MARKS: on the flipped images mean π and mean log π of the true class, the given one and the rest
    (eval_pi_true, …, eval_log_true, eval_log_given), the shares whose likeliest class is either (eval_as_true,
    eval_as_given); on those left alone eval_log_clean; eval_heldout, the accuracy; what happened to log π(true) since
    the start by the images' own lessons, eval_own_true, and by those of all others, eval_others_true; up to RISE,
    eval_foretold_true, what first order foretells of the latter (NaN later). *students*: eval_detour_flipped and
    eval_detour_clean, means of `detours`; and where students are trained, eval_harder: rank correlation of how hard a
    rightly labelled image is with its detour, eval_harder_flipped: with the height of log π(true) on the flipped ones;
    accuracies eval_accuracy_NAME: given, filtered, smoothed, stopped.

    >>> setting = Setting("tiny", "embedded", small, Recipe(lr=0.03, images=60, epochs=60), 0.2, students=False)
    >>> [(ds.attrs["stage"], ds.sizes["step"]) for ds in tables([1000, 1001], settings=[setting]).values()]
    [('path', 16), ('students', 1)]
    """
    out: dict[str, xr.Dataset] = {}
    for setting in SIZES[size] if settings is None else settings:
        found = run(seeds, setting)
        updates = [setting.recipe.updates(found.true.shape[1], epoch) for epoch in MARKS]
        answers = torch.stack([_answers(found.trained, epoch) for epoch in MARKS])
        right = (answers == found.trained.data.test_labels).double()
        columns = _paths(found) | {"heldout": right.mean(-1).numpy().T}
        end = _bends(found) | (_students(found, setting, answers) if setting.students else {})
        for stage, step, made in (("path", updates, columns), ("students", [0], end)):
            out[f"zigzag: {setting.name}, {stage}"] = trajectory(
                {f"eval_{name}": value.reshape(len(seeds), len(step)) for name, value in made.items()},
                step=step, probe=["chosen"], seed=list(seeds), world="digits", stage=stage, arm=setting.name,
                attrs={"experiment": "zigzag", "setting": setting.name, "share": setting.share},
            )  # fmt: skip
    return out


def _paths(found: Run) -> dict[str, Floats]:
    """Name → (S, MARKS)."""
    trained, wrong, n = found.trained, found.wrong, found.true.shape[1]
    columns: dict[str, list[Floats]] = {}
    for epoch in MARKS:
        logs = found.logs(epoch)
        true, given, top = _of(logs, found.true), _of(logs, found.given), logs.argmax(-1)
        row = {
            "log_true": _mean(true, wrong),
            "log_given": _mean(given, wrong),
            "log_clean": _mean(true, ~wrong),
            "pi_true": _mean(true.exp(), wrong),
            "pi_given": _mean(given.exp(), wrong),
            "as_true": _mean((top == found.true).double(), wrong),
            "as_given": _mean((top == found.given).double(), wrong),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    out = {name: np.stack(values, -1) for name, values in columns.items()}
    updates = [trained.recipe.updates(n, epoch) for epoch in MARKS]
    mine = np.stack([_mean(own(found, epoch, found.true), wrong) for epoch in MARKS], -1)
    early = [epoch for epoch in MARKS if epoch <= RISE]
    every = np.stack([_mean(all_lessons(found, epoch, found.true), wrong) for epoch in early], -1)
    rise = (every - mine[:, : len(early)]) @ summed(trained.recipe, n, updates[: len(early)]).T
    moved = mine @ summed(trained.recipe, n, updates).T
    unknown = np.full((len(rise), len(MARKS) - len(early)), np.nan)
    return out | {
        "pi_rest": 1 - out["pi_true"] - out["pi_given"],
        "own_true": moved,
        "others_true": out["log_true"] - out["log_true"][:, :1] - moved,
        "foretold_true": np.concatenate([rise, unknown], 1),
    }


def _bends(found: Run) -> dict[str, Floats]:
    """How straight the paths are: name → (S,)."""
    bent = detours(torch.stack([found.logs(epoch) for epoch in MARKS]).exp())
    return {"detour_flipped": _mean(bent, found.wrong), "detour_clean": _mean(bent, ~found.wrong)}


def _students(found: Run, setting: Setting, answers: torch.Tensor) -> dict[str, Floats]:
    """What is learnt of hard images, and from other labels: name → (S,). answers: held-out classes, (MARKS, S, N)."""
    trained, wrong, hard = found.trained, found.wrong, _hard(found, setting)
    every = torch.stack([found.logs(epoch) for epoch in trained.epochs])
    path = every[[trained.epochs.index(epoch) for epoch in MARKS]]
    height = torch.stack([_of(one, found.true) for one in path]).amax(0)
    q = filtered(every.exp())
    targets = {"filtered": q, "smoothed": smoothed(found.given, -torch.special.xlogy(q, q).sum(-1).mean(1))}
    build = make(setting.network, trained.data.side)
    out = {"harder": _rank(hard, detours(path.exp()), ~wrong), "harder_flipped": _rank(hard, height, wrong)}
    for name, q in targets.items():
        z = _soft.students(trained.data, build, trained.seeds, setting.recipe, q)
        out[f"accuracy_{name}"] = (z.argmax(-1) == trained.data.test_labels)[:, 1::2].double().mean(-1).numpy()
    true = trained.data.test_labels
    noisy = np.stack([flipped(true[::2].numpy(), setting.share, seed=seed + OTHER) for seed in trained.seeds])
    to_choose = (answers[..., ::2] == torch.from_numpy(noisy)).double().mean(-1)
    to_tell = (answers[..., 1::2] == true[1::2]).double().mean(-1)
    stopped = torch.take_along_dim(to_tell, to_choose.argmax(0, keepdim=True), 0)[0]
    return out | {"accuracy_given": to_tell[-1].numpy(), "accuracy_stopped": stopped.numpy()}


def _answers(trained: Trained, epoch: float) -> torch.Tensor:
    """The class that each held-out image is taken for, (S, N)."""
    return trained.logits(epoch, trained.data.test_images).argmax(-1)


def _hard(found: Run, setting: Setting) -> torch.Tensor:
    """−log π(true|x) (S, n) of networks with other weights, trained on the true labels of other images for a third."""
    trained, seeds = found.trained, [seed + OTHER for seed in found.trained.seeds]
    data: Digits = trained.data
    third = replace(setting.recipe, epochs=setting.recipe.epochs / 3)
    theirs = picked(data, third, seeds)
    seen = [torch.isin(a, b) for a, b in zip(theirs, trained.index, strict=True)]
    judges = train(data, network=setting.network, seeds=seeds, recipe=third, weights=(~torch.stack(seen)).float())
    return -_of(judges.logits(None, trained.images).double().log_softmax(-1), found.true)


def _rank(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> Floats:
    """Spearman's rank correlation over the images of a kind, by seed."""
    from scipy.stats import spearmanr

    return np.array([spearmanr(x[w], y[w]).statistic for x, y, w in zip(a, b, where.numpy(), strict=True)])
