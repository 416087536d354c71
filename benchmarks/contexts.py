"""Many contexts: whole DPO stages of `toyld.contexts` beside the same head under torch autograd; a batch beside a loop.

    python benchmarks/contexts.py [--size smoke|paper] [--device cpu|cuda]

Prints one JSON line per comparison (keys: README.md beside this file) on standard output and a table on standard
error. Exits 1 when results disagree; a missed target of speed is only marked. One thread, CPU time, contestants
interleaved, medians; on an accelerator wall time between synchronisations, and a further comparison with the bare
matrix product.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL"):  # read when numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from softmax import Effort, Result  # noqa: E402

from toyld import contexts, objectives  # noqa: E402
from toyld.contexts import Features, Responses, World  # noqa: E402

BETA = 0.1


@dataclass(frozen=True)
class Size:
    """P pairs of T tokens, V classes, features of width D, so many updates; every pair begins at a shared context."""

    pairs: int
    tokens: int
    classes: int
    width: int
    steps: int
    lr: float
    dtype: str = "float32"

    @property
    def contexts(self) -> int:
        return self.pairs * (2 * self.tokens - 1)

    def __str__(self) -> str:
        note = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"C={self.contexts} V={self.classes} D={self.width} T={self.steps}{note}"


def make(size: Size) -> tuple[np.ndarray, World]:
    """A head (V, D) and the world of its pairs: unit features, the logits that the head gives them."""
    rng = np.random.default_rng(size.classes + size.width)
    phi = rng.normal(size=(size.contexts, size.width)) / np.sqrt(size.width)
    head = 2.0 * rng.normal(size=(size.classes, size.width))
    number = np.arange(size.contexts).reshape(size.pairs, 2 * size.tokens - 1)
    mask = np.ones((1, size.pairs, size.tokens), bool)
    responses = {}
    for kind, at in (("chosen", slice(1, size.tokens)), ("rejected", slice(size.tokens, None))):
        context = np.concatenate([number[:, :1], number[:, at]], axis=1)[None]
        responses[kind] = Responses(context, rng.integers(size.classes, size=context.shape), mask)
    phi, head = phi.astype(size.dtype), head.astype(size.dtype)
    return head, World((phi @ head.T)[None], Features(phi[None]), responses, size.contexts, (0,))


class Autograd:
    """The user's alternative: hidden states of both responses of every pair, one linear head, DPO, backward, a step.

    One call on all rows, the fused cross-entropy, an in-place step: nothing that a good loop would not do.
    """

    def __init__(self, head: np.ndarray, world: World, size: Size, device: str) -> None:
        rows = [world.responses[kind] for kind in ("chosen", "rejected")]
        context = np.concatenate([r.context[0] for r in rows]).reshape(-1)
        self.phi = torch.as_tensor(world.kernel.features[0][context]).to(device)
        self.label = torch.as_tensor(np.concatenate([r.token[0] for r in rows]).reshape(-1)).to(device)
        self.size, self.start = size, torch.as_tensor(head).to(device)

    def totals(self, head: torch.Tensor) -> torch.Tensor:
        """log π of every response, chosen ones first."""
        nll = torch.nn.functional.cross_entropy(self.phi @ head.T, self.label, reduction="none")
        return -nll.reshape(-1, self.size.tokens).sum(-1)

    def train(self) -> torch.Tensor:
        head = self.start.clone().requires_grad_()
        with torch.no_grad():
            reference = self.totals(head)
        for _ in range(self.size.steps):
            gain = self.totals(head) - reference
            plus, minus = gain[: self.size.pairs], gain[self.size.pairs :]
            loss = -torch.nn.functional.logsigmoid(BETA * (plus - minus)).mean()
            loss.backward()
            with torch.no_grad():
                head.add_(head.grad, alpha=-self.size.lr)
            head.grad = None
        return head.detach()


def stage(world: World, size: Size) -> Any:
    """The same stage in closed form."""
    dpo = objectives.get("dpo", beta=BETA)
    return contexts.train(world, dpo, lr=size.lr, steps=size.steps, rejected="rejected", at=[], kinds=[]).state


def seconds(contestants: dict[str, Callable[[], Any]], how: Effort, device: str) -> dict[str, float]:
    """Median seconds of one call of each, the contestants taking turns; the first, a warm-up, does not count."""

    def clock() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    turns: dict[str, int] = {}
    for name, call in contestants.items():
        call()
        start = clock()
        call()
        turns[name] = max(1, round(how.at_least / max(clock() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(how.repeats):
        for name, call in contestants.items():
            start = clock()
            for _ in range(turns[name]):
                call()
            taken[name].append((clock() - start) / turns[name])
    return {name: statistics.median(times) for name, times in taken.items()}


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference of two arrays, relative to the largest number."""
    a, b = (torch.as_tensor(x).detach().cpu().double() for x in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())


def name_of(device: str) -> str:
    return f"cpu ({platform.machine()})" if device == "cpu" else torch.cuda.get_device_name()


def against_autograd(size: Size, target: float, how: Effort, device: str) -> Result:
    """One stage on numpy (on an accelerator: on torch); its time on torch is a further number."""
    head, world = make(size)
    loop, on_torch = Autograd(head, world, size, device), world.to(torch.as_tensor(head[:1]).to(device))
    mine = world if device == "cpu" else on_torch
    theirs = loop.start.new_tensor(world.kernel.features[0]) @ loop.train().T
    agree = max(relative(stage(w, size).logits[0], theirs) for w in {id(w): w for w in (mine, on_torch)}.values())
    contestants = {"ours": lambda: stage(mine, size), "theirs": loop.train}
    if device == "cpu":
        contestants["torch"] = lambda: stage(on_torch, size)
    took = seconds(contestants, how, device)
    # Every update rounds every logit once or twice, and the errors add up at worst.
    tolerance = 8 * float(np.finfo(size.dtype).eps) * size.steps
    extra = {"ratio_on_torch": took["theirs"] / took["torch"]} if device == "cpu" else {}
    extra["ms_per_update"] = 1e3 * took["ours"] / size.steps
    ratio = took["theirs"] / took["ours"]
    where = name_of(device), torch.get_num_threads(), how.repeats
    return Result("run", "torch-autograd", str(size), ratio, target, agree, tolerance, *where, extra)


def batch_against_loop(worlds: int, alone: int, steps: int, target: float, how: Effort, *, vocab: int = 20) -> Result:
    """A sweep of small runs at once, each with its own β, beside a loop of runs, of which `alone` are timed."""
    world = contexts.languages.markov(seeds=range(worlds), vocab=vocab, prompts=4, length=3)
    beta = np.geomspace(0.05, 0.5, worlds)
    some = np.linspace(0, worlds - 1, alone).round().astype(int)
    singles = [world.take([i]) for i in some]
    options: dict[str, Any] = {"lr": 20.0, "steps": steps, "rejected": "rejected", "kinds": ["chosen", "rejected"]}

    def together() -> Any:
        return contexts.train(world, objectives.get("dpo", beta=beta), **options).values["logp"]

    def one_by_one() -> Any:
        pairs = zip(singles, beta[some], strict=True)
        return [contexts.train(one, objectives.get("dpo", beta=float(b)), **options).values["logp"] for one, b in pairs]

    agree = relative(together()[:, some], np.concatenate(one_by_one(), axis=1))
    took = seconds({"ours": together, "theirs": one_by_one}, how, "cpu")
    ratio = took["theirs"] / alone / (took["ours"] / worlds)
    note = f"{worlds} runs, C={world.trained} V={vocab} T={steps} float64"
    extra = {"us_per_update_of_one": 1e6 * took["ours"] / worlds / steps}
    where = name_of("cpu"), torch.get_num_threads(), how.repeats
    return Result("batch", "loop", note, ratio, target, agree, 8 * float(np.finfo(float).eps) * steps, *where, extra)


def against_gemm(size: Size, how: Effort, device: str) -> Result:
    """One update beside the bare product S R: the share of the device's rate that is left after everything else."""
    head, world = make(size)
    on_torch = world.to(torch.as_tensor(head[:1]).to(device))
    gram = on_torch.kernel.block(slice(0, size.contexts), slice(0, size.contexts))
    r, out = torch.zeros_like(on_torch.logits), torch.empty_like(on_torch.logits)
    dpo = objectives.get("dpo", beta=BETA)

    def train() -> Any:
        options: dict[str, Any] = {"rejected": "rejected", "at": [], "kinds": [], "form": "kernel"}
        return contexts.train(on_torch, dpo, lr=size.lr, steps=size.steps, **options).state.logits[0]

    def product() -> None:
        for _ in range(size.steps):
            torch.matmul(gram, r, out=out)

    theirs = torch.as_tensor(stage(world, size).logits[0])
    took = seconds({"ours": train, "theirs": product}, how, device)
    extra = {"flop_per_s": 2.0 * size.contexts**2 * size.classes * size.steps / took["ours"]}
    tolerance = 8 * float(np.finfo(size.dtype).eps) * size.steps
    where = name_of(device), torch.get_num_threads(), how.repeats
    ratio, agree = took["theirs"] / took["ours"], relative(train(), theirs)
    return Result("run", "gemm", str(size), ratio, 0.6, agree, tolerance, *where, extra)


def comparisons(size: str, device: str) -> Iterator[Result]:
    """All comparisons of a size, one at a time."""
    torch.set_num_threads(1)
    if size == "smoke":
        how = Effort(repeats=1, at_least=0.0)
        yield against_autograd(Size(4, 3, 30, 8, 10, 0.5), 1.5, how, device)
        yield against_autograd(Size(4, 3, 500, 8, 3, 0.5, "float64"), 1.5, how, device)
        yield batch_against_loop(50, 5, 10, 20.0, how)
        return
    how = Effort(repeats=7, at_least=0.1)
    yield against_autograd(Size(24, 6, 100, 192, 300, 20.0), 1.5, how, device)
    yield against_autograd(Size(24, 6, 100, 192, 300, 20.0, "float64"), 1.5, how, device)
    yield against_autograd(Size(9, 4, 1000, 64, 50, 20.0), 1.5, how, device)
    yield against_autograd(Size(36, 4, 1000, 16, 50, 20.0), 1.5, how, device)
    few = Effort(repeats=3, at_least=0.0)
    yield against_autograd(Size(9, 4, 50257, 64, 3, 20.0), 1.3, few, device)
    yield against_autograd(Size(45, 6, 50257, 64, 3, 20.0), 1.3, few, device)
    yield against_autograd(Size(45, 6, 50257, 768, 3, 20.0), 1.3, few, device)
    yield batch_against_loop(2000, 40, 50, 20.0, few)
    if device != "cpu":
        yield against_gemm(Size(364, 6, 50257, 4096, 3, 20.0), few, device)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if any results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["smoke", "paper"], default="paper")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given, wrong = parser.parse_args(arguments), 0
    for done in comparisons(given.size, given.device):
        print(done.line(), flush=True)
        bad = not done.agree <= done.tolerance  # also for nan
        wrong += bad
        verdict = "RESULTS DISAGREE" if bad else "reached" if done.ratio >= done.target else "missed"
        name = f"{done.benchmark}/{done.against}"
        print(f"{name:24} {done.size:40} {done.ratio:8.2f} × target {done.target:g}: {verdict}", file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
