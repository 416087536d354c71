"""Many seeds of one network trained on digits, and what there is to ask of them afterwards: `train` → `Trained`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from toyld.checked import BadInput
from toyld.digits.data import Digits
from toyld.digits.ensemble import Ensemble, Recipe, logits, per_image
from toyld.digits.networks import Make, make

__all__ = ["Trained", "blocks", "train"]

_CACHED = 2**19  # parameters that are trained together: with their memory, what a core keeps near


@dataclass(frozen=True, eq=False)
class Trained:
    """S seeds after training, with their parameters at the marks asked for.

    index (S, n): the images that each was trained on, as places in data.images; labels (S, n): as taught; losses
    (updates, S): of each batch, before the update; marks: updates whose parameters are kept.
    """

    data: Digits
    recipe: Recipe
    seeds: tuple[int, ...]
    index: torch.Tensor
    labels: torch.Tensor
    losses: torch.Tensor
    architecture: nn.Sequential
    kept: Mapping[int, Mapping[str, torch.Tensor]]

    @property
    def images(self) -> torch.Tensor:
        """The images (S, n, 1, H, W) that each seed was trained on; a copy."""
        return self.data.images[self.index]

    @property
    def marks(self) -> tuple[int, ...]:
        """Updates after which the parameters are kept."""
        return tuple(sorted(self.kept))

    @property
    def epochs(self) -> tuple[float, ...]:
        """The marks in epochs."""
        return tuple(mark / self.recipe.per_epoch(self.index.shape[1]) for mark in self.marks)

    def parameters(self, epoch: float | None = None, /, *, update: int | None = None) -> Mapping[str, torch.Tensor]:
        """Name → (S, …) at a mark: an epoch, or a number of updates; the last by default.

        Raises BadInput for one that was not asked for.
        """
        n = self.index.shape[1]
        wanted = self.marks[-1] if epoch is None else self.recipe.updates(n, epoch)
        wanted = wanted if update is None else update
        if wanted not in self.kept:
            there = ", ".join(map(str, self.marks[:12]))
            msg = f"expected a mark among updates {there}, got {wanted}; name it to train(at=…) in epochs"
            raise BadInput(msg)
        return self.kept[wanted]

    def module(self, epoch: float | None = None, /, seed: int | None = None, *, update: int | None = None) -> nn.Module:
        """One seed's network at a mark (the first seed, the last mark by default): a copy, in eval mode."""
        theta = self.parameters(epoch, update=update)
        seed = self.seeds[0] if seed is None else seed
        if seed not in self.seeds:
            msg = f"seed: expected one of {', '.join(map(str, self.seeds[:12]))}, got {seed}; train it too"
            raise BadInput(msg)
        at, one = self.seeds.index(seed), deepcopy(self.architecture)
        one = one.to(next(iter(theta.values())).dtype).requires_grad_(True)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                parameter.copy_(theta[name][at])
        return one.eval()

    def logits(self, epoch: float | None, images: torch.Tensor, /, *, update: int | None = None) -> torch.Tensor:
        """(S, N, 10) at a mark, at images (N, 1, H, W), or (S, N, 1, H, W) where each seed has its own."""
        return logits(self.architecture, self.parameters(epoch, update=update), images)

    def accuracy(
        self,
        epoch: float | None = None,
        /,
        images: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        update: int | None = None,
    ) -> torch.Tensor:
        """Share (S,) of images whose most likely class is their label; of the held-out images by default."""
        images = self.data.test_images if images is None else images
        labels = self.data.test_labels if labels is None else labels
        return (self.logits(epoch, images, update=update).argmax(-1) == labels).double().mean(-1)


def blocks(seeds: Iterable[int], build: Make, /) -> list[tuple[int, ...]]:
    """The seeds in groups that are trained together: as many as stay in the cache, evenly filled.

    >>> from toyld.digits.networks import make
    >>> [len(block) for block in blocks(range(20), make("mlp", 8))]
    [7, 7, 6]
    """
    seeds = tuple(seeds)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        msg = f"seeds: expected at least one whole number ≥ 0, each once, got {seeds[:5]}"
        raise BadInput(msg)
    size = sum(parameter.numel() for parameter in build(seeds[0]).parameters())
    count = -(-len(seeds) // max(1, _CACHED // size))
    edges = [-(-len(seeds) * k // count) for k in range(count + 1)]
    return [seeds[a:b] for a, b in pairwise(edges)]


def train(
    data: Digits,
    /,
    *,
    network: str | Make = "mlp",
    seeds: Iterable[int] = range(32),
    recipe: Recipe | None = None,
    at: Iterable[float] = (),
    labels: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    start: Mapping[str, torch.Tensor] | None = None,
    watch: Callable[[Ensemble], None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """Train all seeds by a recipe; keep their parameters at the epochs `at` (may be fractional), first and last.

    network: "mlp", "lenet", or a function seed → Sequential. labels, weights (S, n) or (n,): taught labels and weights
    of the losses, for the images in the order of `picked`. start: parameters (S, …) to begin with. watch: called at
    every mark with an `Ensemble` of some of the seeds. dtype: of all that is computed.

    Raises BadInput: no such network, shapes that do not fit, a mark behind the end, a descent that came apart.

    >>> from toyld.digits import Recipe, embedded
    >>> trained = train(embedded(), seeds=[0, 1], recipe=Recipe(lr=0.05, images=200, epochs=5), at=[1])
    >>> trained.marks, tuple(trained.parameters(1)["head.weight"].shape), trained.logits(5, trained.images).shape
    ((0, 4, 20), (2, 10, 128), torch.Size([2, 200, 10]))
    """
    recipe, seeds, build = recipe or Recipe(), tuple(seeds), make(network, data.side)
    n = len(data.labels) if recipe.images is None else recipe.images
    last = recipe.updates(n)
    marks = sorted({0, *(recipe.updates(n, epoch) for epoch in at), last})
    if marks[0] < 0 or marks[-1] > last:
        msg = f"at: expected epochs from 0 to {recipe.epochs:g}, got {list(at)}; train for longer"
        raise BadInput(msg)
    labels, weights = (
        None if values is None else per_image(name, values, (len(seeds), n))
        for name, values in (("labels", labels), ("weights", weights))
    )
    if start is not None and any(len(value) != len(seeds) for value in start.values()):
        msg = f"start: expected parameters of {len(seeds)} seeds, got {[len(v) for v in start.values()]}; one a seed"
        raise BadInput(msg)
    done: list[Ensemble] = []
    kept: list[dict[int, dict[str, torch.Tensor]]] = []
    first = 0
    for block in blocks(seeds, build):
        rows = slice(first, first := first + len(block))
        own = [None if x is None else x[rows] for x in (labels, weights)]
        begin = None if start is None else {name: value[rows] for name, value in start.items()}
        some = Ensemble(data, build, block, recipe, labels=own[0], weights=own[1], start=begin, dtype=dtype)
        there = {}
        for mark in marks:
            some.run(mark)
            there[mark] = some.views(some.flat.clone())
            if watch is not None:
                watch(some)
        if not some.flat.isfinite().all():
            msg = f"expected a descent that stays finite, got NaN or inf for seeds {block}; lower lr = {recipe.lr:g}"
            raise BadInput(msg)
        done.append(some)
        kept.append(there)
    parameters = {
        mark: {name: torch.cat([there[mark][name] for there in kept]) for name in done[0].theta} for mark in marks
    }
    index, taught = (torch.cat([getattr(some, name) for some in done]) for name in ("index", "labels"))
    losses = torch.cat([torch.stack(some.losses) for some in done], 1)
    return Trained(data, recipe, seeds, index, taught, losses, done[0].module, parameters)
