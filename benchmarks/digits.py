"""Many small networks trained at once by `toyld.digits` beside one after another by torch, and beside torch.func.

    python benchmarks/digits.py [--size smoke|paper]

Prints one JSON line per comparison (keys: README.md beside this file) on standard output and a table on standard
error. Exits 1 when results disagree; a missed target of speed is only marked. One thread, CPU time, contestants
interleaved, medians. Times are of float32; results are compared in float64, since two float32 runs part by themselves.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

for _library in ("OMP", "OPENBLAS", "MKL"):  # read when numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import torch  # noqa: E402
from softmax import Effort, Result, seconds  # noqa: E402
from torch import nn  # noqa: E402

from toyld.digits import Digits, Ensemble, Recipe, lenet, mlp  # noqa: E402

IMAGES = 1024


@dataclass(frozen=True)
class Size:
    """S networks that `build` makes by seed, on so many images of so many pixels, and updates of 64 images."""

    name: str
    build: Callable[[int], nn.Sequential]
    side: int
    seeds: int
    steps: int

    def __str__(self) -> str:
        return f"S={self.seeds} {self.name} T={self.steps}"


def make(size: Size) -> Digits:
    """Random images with labels that a random direction gives them: what they are does not matter for time."""
    draw = torch.Generator().manual_seed(size.side)
    images = torch.randn(IMAGES, 1, size.side, size.side, generator=draw)
    labels = (images.flatten(1) @ torch.randn(size.side**2, 10, generator=draw)).argmax(-1)
    return Digits(images, labels, images[:1], labels[:1], "random", "random", 0.0, 1.0)


def recipe_of(size: Size) -> Recipe:
    """A rate at which something is learnt in a few updates; all other numbers are the paper's."""
    return Recipe(lr=0.05, images=None, epochs=size.steps / (IMAGES // 64))


def together(size: Size, data: Digits, dtype: torch.dtype) -> torch.Tensor:
    """All seeds at once: their parameters, (S, P)."""
    ensemble = Ensemble(data, size.build, range(size.seeds), recipe_of(size), dtype=dtype)
    ensemble.run(size.steps)
    return torch.cat([value.flatten(1) for value in ensemble.theta.values()], 1)


def orders(size: Size, data: Digits) -> list[list[torch.Tensor]]:
    """The batches of every seed, as the ensemble draws them."""
    ensemble = Ensemble(data, size.build, range(size.seeds), recipe_of(size))
    batches = []
    for update in range(size.steps):
        ensemble.update = update
        batches.append(ensemble._batch())
    return [[batch[s] for batch in batches] for s in range(size.seeds)]


def one_by_one(
    size: Size, data: Digits, batches: list[list[torch.Tensor]], dtype: torch.dtype, *, fused: bool = True
) -> torch.Tensor:
    """The user's alternative: for each seed a module, cross-entropy, backward, torch's SGD, fused unless told."""
    images, recipe, found = data.images.to(dtype), recipe_of(size), []
    for seed in range(size.seeds):
        module = size.build(seed).to(dtype)
        options = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "fused": fused}
        sgd = torch.optim.SGD(module.parameters(), lr=recipe.lr, **options)
        for update, at in enumerate(batches[seed]):
            sgd.param_groups[0]["lr"] = recipe.rate(update, IMAGES)
            sgd.zero_grad()
            nn.functional.cross_entropy(module(images[at]), data.labels[at]).backward()
            sgd.step()
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    return torch.stack(found)


def vmapped(size: Size, data: Digits, batches: list[list[torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """torch.func's way: parameters stacked, vmap of the gradient of a functional call, the same SGD."""
    modules = [size.build(seed).to(dtype) for seed in range(size.seeds)]
    theta, _ = torch.func.stack_module_state(modules)
    theta = {name: value.detach() for name, value in theta.items()}
    memory = {name: torch.zeros_like(value) for name, value in theta.items()}
    images, recipe = data.images.to(dtype), recipe_of(size)

    def loss(own: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(modules[0], own, (x,)), y)

    gradient = torch.func.vmap(torch.func.grad(loss))
    for update in range(size.steps):
        at = torch.stack([batches[s][update] for s in range(size.seeds)])
        found = gradient(theta, images[at], data.labels[at])
        for name, value in theta.items():
            memory[name].mul_(recipe.momentum).add_(found[name]).add_(value, alpha=recipe.weight_decay)
            value.sub_(memory[name], alpha=recipe.rate(update, IMAGES))
    return torch.cat([value.flatten(1) for value in theta.values()], 1)


OTHERS = {"one-by-one": one_by_one, "vmap": vmapped}


def compare(size: Size, against: str, target: float, how: Effort) -> Result:
    """The ensemble beside one of OTHERS."""
    data = make(size)
    batches, other = orders(size, data), OTHERS[against]
    exact = together(size, data, torch.float64), other(size, data, batches, torch.float64)
    agree = float((exact[0] - exact[1]).abs().max() / exact[1].abs().max())
    contestants = {
        "ours": lambda: together(size, data, torch.float32),
        "theirs": lambda: other(size, data, batches, torch.float32),
    }
    if against == "one-by-one":
        contestants["default"] = lambda: one_by_one(size, data, batches, torch.float32, fused=False)
    took = seconds(contestants, how)
    # Sums of up to 784 numbers in other orders, T times over; so few updates do not spread them.
    tolerance = 784 * torch.finfo(torch.float64).eps * size.steps
    ratio, where = took["theirs"] / took["ours"], f"cpu ({platform.machine()})"
    extra = {"ratio_to_default_sgd": took["default"] / took["ours"]} if "default" in took else {}
    extra |= {"us_per_update_of_one": 1e6 * took["ours"] / size.seeds / size.steps}
    threads = torch.get_num_threads()
    return Result("ensemble", against, str(size), ratio, target, agree, tolerance, where, threads, how.repeats, extra)


def comparisons(size: str) -> Iterator[Result]:
    """All comparisons of a size, one at a time."""
    torch.set_num_threads(1)
    small = "MLP 64-64-64-10", lambda seed: mlp(64, width=64, depth=2, seed=seed), 8
    if size == "smoke":
        how = Effort(repeats=1, at_least=0.0)
        yield compare(Size(*small, 4, 5), "one-by-one", 4.0, how)
        yield compare(Size(*small, 4, 5), "vmap", 1.0, how)
        yield compare(Size("LeNet 8×8", lambda seed: lenet(8, seed=seed), 8, 2, 3), "one-by-one", 1.0, how)
        return
    how = Effort(repeats=7, at_least=0.0)
    for against, target in (("one-by-one", 4.0), ("vmap", 1.0)):
        yield compare(Size(*small, 32, 100), against, target, how)
    few = Effort(repeats=3, at_least=0.0)
    papers = "MLP 64-4×128-10", lambda seed: mlp(64, seed=seed), 8
    wide = "MLP 784-128-128-10", lambda seed: mlp(784, depth=2, seed=seed), 28
    for network, seeds in ((papers, 8), (wide, 4)):
        yield compare(Size(*network, seeds, 50), "one-by-one", 1.0, few)
    for side, seeds, steps in ((8, 8, 50), (28, 2, 20)):
        conv = Size(f"LeNet {side}×{side}", lambda seed, side=side: lenet(side, seed=seed), side, seeds, steps)
        for against in OTHERS:
            yield compare(conv, against, 1.0, few)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if any results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["smoke", "paper"], default="paper")
    given, wrong = parser.parse_args(arguments), 0
    for done in comparisons(given.size):
        print(done.line(), flush=True)
        bad = not done.agree <= done.tolerance  # also for nan
        wrong += bad
        verdict = "RESULTS DISAGREE" if bad else "reached" if done.ratio >= done.target else "missed"
        name = f"{done.benchmark}/{done.against}"
        print(f"{name:24} {done.size:40} {done.ratio:8.2f} × target {done.target:g}: {verdict}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
