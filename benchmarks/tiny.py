"""Stages of `toyld.tiny`, many transformers at once, beside the same models trained one after another by torch.

    python benchmarks/tiny.py [--size smoke|paper] [--device cpu|cuda]

DPO by RMSprop on pairs of the made-up language, every layer, the reference included. Prints one JSON line per
comparison (keys: README.md beside this file) on standard output and a table on standard error. Exits 1 when results
disagree; a missed target of speed is only marked. One thread, CPU time, contestants interleaved, medians; on an
accelerator wall time between synchronisations. Times are of float32 and of float64, results are compared in float64.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

for _library in ("OMP", "OPENBLAS", "MKL"):  # read when numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import torch  # noqa: E402
from contexts import name_of, seconds  # noqa: E402
from softmax import Effort, Result  # noqa: E402
from torch import nn  # noqa: E402

from toyld import objectives  # noqa: E402
from toyld.tiny import (  # noqa: E402
    Models,
    Optimizer,
    Shape,
    Sizes,
    Texts,
    ask,
    draw,
    sequences,
    start,
    train,
    with_rejected,
)

BETA, LR, ALPHA = 0.1, 1e-3, 0.9


@dataclass(frozen=True)
class Size:
    """S models of width d and L blocks, T positions, so many pairs an update."""

    seeds: int
    width: int
    depth: int
    places: int
    pairs: int
    steps: int
    heads: int = 2

    def __str__(self) -> str:
        return f"S={self.seeds} d={self.width} L={self.depth} T={self.places} pairs={self.pairs} updates={self.steps}"


def make(size: Size, device: str = "cpu") -> tuple[Models, Texts]:
    """Models whose head is not 0, in float64, and pairs of answers of full length."""
    most = size.places // 2 - 1
    language = draw(Sizes(least=most, most=most), range(size.seeds))
    shape = Shape(language.sizes.classes, size.places, size.width, size.depth, size.heads)
    models = start(shape, language.seeds, dtype=torch.float64)
    spread = torch.randn(models.flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = replace(models, flat=(models.flat + 0.05 * spread).to(device))
    data = ask(language, prompts=size.pairs)
    return models, with_rejected(data, data.texts["irr_hum"])


def together(size: Size, models: Models, data: Texts) -> torch.Tensor:
    """All models at once: their parameters (S, P) after the stage."""
    dpo, rule = objectives.get("dpo", beta=BETA), Optimizer("rmsprop", alpha=ALPHA)
    run = train(models, data, dpo, lr=LR, steps=size.steps, optimizer=rule, rejected="rejected", at=[], kinds=[])
    return run.models.flat


def one_by_one(size: Size, models: Models, data: Texts) -> torch.Tensor:
    """The user's alternative: for each model a module, both sides in one forward pass, backward, torch's RMSprop."""
    both = [sequences(data.language, data.prompt(kind), data.texts[kind]) for kind in ("chosen", "rejected")]
    given = [torch.cat([torch.from_numpy(pair[i]) for pair in both], 1).to(models.flat.device) for i in (0, 1)]
    found = []
    for s in range(len(models)):
        module, inputs, labels = models.module(s, models.flat.dtype).to(models.flat.device), given[0][s], given[1][s]

        def log_probs(module: nn.Module = module, inputs: torch.Tensor = inputs, labels: torch.Tensor = labels):
            z = module(inputs)[:, 1:].mT
            return -nn.functional.cross_entropy(z, labels, ignore_index=-1, reduction="none").sum(-1)

        with torch.no_grad():
            before = log_probs()
        optimizer = torch.optim.RMSprop(module.parameters(), lr=LR, alpha=ALPHA, foreach=True)
        for _ in range(size.steps):
            optimizer.zero_grad()
            chosen, rejected = (log_probs() - before).chunk(2)
            (-nn.functional.logsigmoid(BETA * (chosen - rejected))).mean().backward()
            optimizer.step()
        found.append(nn.utils.parameters_to_vector(module.parameters()).detach())
    return torch.stack(found)


def compare(size: Size, target: float, how: Effort, device: str = "cpu") -> Result:
    """The ensemble beside the same models one by one."""
    models, data = make(size, device)
    exact = together(size, models, data), one_by_one(size, models, data)
    agree = float((exact[0] - exact[1]).abs().max() / exact[1].abs().max())
    # RMSprop divides by |g| + ε: where a gradient is of the size of its rounding, ε of the dtype times the terms of a
    # sum, the update carries that rounding over 1e-8, times the rate.
    terms = 4 * size.width + 2 * size.pairs * size.places
    tolerance = size.steps * LR * terms * torch.finfo(torch.float64).eps / 1e-8
    took = {}
    for dtype in (torch.float32, torch.float64):
        mine = replace(models, flat=models.flat.to(dtype))
        contestants = {
            "ours": lambda mine=mine: together(size, mine, data),
            "theirs": lambda mine=mine: one_by_one(size, mine, data),
        }
        took[dtype] = seconds(contestants, how, device)
    ratio, exactly = (took[dtype]["theirs"] / took[dtype]["ours"] for dtype in (torch.float32, torch.float64))
    each = 1e3 * took[torch.float32]["ours"] / size.seeds / size.steps
    extra = {"ratio_float64": exactly, "ms_per_update_of_one": each}
    where = name_of(device), torch.get_num_threads(), how.repeats
    return Result("ensemble", "one-by-one", str(size), ratio, target, agree, tolerance, *where, extra)


def comparisons(size: str, device: str) -> Iterator[Result]:
    """All comparisons of a size, one at a time; targets are stated for accelerators alone."""
    torch.set_num_threads(1)
    if size == "smoke":
        how = Effort(repeats=1, at_least=0.0)
        yield compare(Size(4, 16, 2, 8, 4, 3), 0.0, how, device)
        yield compare(Size(2, 32, 1, 16, 4, 2), 0.0, how, device)
        return
    on_cpu = device == "cpu"
    yield compare(Size(32, 32, 2, 8, 8, 10), 0.0, Effort(5, 0.0), device)  # what the experiments train
    yield compare(Size(32, 32, 2, 32, 8, 4), 0.0, Effort(5, 0.0), device)
    yield compare(Size(32, 64, 3, 10, 12, 4, heads=4), 0.0, Effort(5, 0.0), device)
    large = Size(4 if on_cpu else 32, 128, 4, 64, 4 if on_cpu else 8, 2, heads=4)
    yield compare(large, 0.0 if on_cpu else 20.0, Effort(3, 0.0), device)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if any results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["smoke", "paper"], default="paper")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given, wrong = parser.parse_args(arguments), 0
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected an accelerator that torch sees, got none; leave --device out")
    for done in comparisons(given.size, given.device):
        print(done.line(), flush=True)
        bad = not done.agree <= done.tolerance  # also for nan
        wrong += bad
        verdict = "no target" if not done.target else "reached" if done.ratio >= done.target else "missed"
        name, doubled = f"{done.benchmark}/{done.against}", f"float64 {done.extra['ratio_float64']:.2f}"
        verdict = "RESULTS DISAGREE" if bad else verdict
        print(
            f"{name:22} {done.size:46} {done.ratio:6.2f} × {doubled} target {done.target:g}: {verdict}", file=sys.stderr
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
