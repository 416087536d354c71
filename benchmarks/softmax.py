"""One softmax: the closed form of `toyld.softmax` and `toyld.rollout` beside a torch autograd loop and a memory copy.

    python benchmarks/softmax.py [--size smoke|paper]

Prints one JSON line per comparison (keys: README.md beside this file) on standard output and a table on standard
error. Exits 1 when results disagree; a missed target of speed is only marked. One thread, CPU time, contestants
interleaved, medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from toyld import rollout, softmax

EPS = float(np.finfo(np.float32).eps)
STEP = 0.5  # s = η‖x‖², the paper's figure


@dataclass(frozen=True)
class Result:
    """One comparison: ratio = the other's time over ours, agree = largest difference over the largest logit."""

    benchmark: str
    against: str
    size: str
    ratio: float
    target: float
    agree: float
    tolerance: float
    device: str
    threads: int
    repeats: int
    extra: dict[str, float] = field(default_factory=dict)

    def line(self) -> str:
        return json.dumps({k: v for k, v in asdict(self).items() if k != "extra"} | self.extra)


@dataclass(frozen=True)
class Effort:
    """How often the contestants take turns, and how many seconds a turn lasts at least."""

    repeats: int
    at_least: float


def seconds(contestants: dict[str, Callable[[], Any]], how: Effort) -> dict[str, float]:
    """Median CPU seconds of one call of each, the contestants taking turns."""
    turns = {}
    for name, call in contestants.items():
        call()  # warm-up: compiles, fills caches
        start = time.process_time()
        call()
        turns[name] = max(1, round(how.at_least / max(time.process_time() - start, 1e-6)))
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(how.repeats):
        for name, call in contestants.items():
            start = time.process_time()
            for _ in range(turns[name]):
                call()
            taken[name].append((time.process_time() - start) / turns[name])
    return {name: statistics.median(times) for name, times in taken.items()}


def start(classes: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, V) of spread 2 in float32, and labels (B)."""
    draw = torch.Generator().manual_seed(classes + rows)
    return 2.0 * torch.randn(rows, classes, generator=draw), torch.randint(classes, (rows,), generator=draw)


def autograd(z: torch.Tensor, y: torch.Tensor, *, c: float, steps: int) -> torch.Tensor:
    """The user's alternative: logits as a leaf, c times the cross-entropy, backward, an in-place step."""
    for _ in range(steps):
        loss = c * torch.nn.functional.cross_entropy(z, y, reduction="sum")
        loss.backward()
        with torch.no_grad():
            z.add_(z.grad, alpha=-STEP)
        z.grad = None
    return z


def difference(ours: Any, theirs: Any) -> float:
    """Largest difference of two arrays of logits, relative to the largest logit."""
    a, b = (np.asarray(torch.as_tensor(x).detach(), dtype=float) for x in (ours, theirs))
    return float(np.abs(a - b).max() / np.abs(b).max())


def alternating(update: Callable[[float], Any]) -> Callable[[], Any]:
    """A contestant that updates its own state with c = −1, 1, −1, …: call after call the logits stay where they are."""
    signs = itertools.cycle([-1.0, 1.0])
    return lambda: update(next(signs))


def against_autograd(
    benchmark: str, ours: Callable[[], Any], state: Any, shape: tuple[int, int], steps: int, **rest: Any
) -> Result:
    """`ours`, which updates `state()`, beside the autograd loop from the same start."""
    z, y = start(*shape)
    theirs = z.clone().requires_grad_()
    contestants = {"ours": ours, "theirs": alternating(lambda c: autograd(theirs, y, c=c, steps=steps))}
    for call in contestants.values():
        call()
    agree = difference(state(), theirs)
    return result(benchmark, "torch-autograd", shape, contestants, agree, 4 * EPS * steps, **rest)


def bench_step(classes: int, rows: int, target: float, how: Effort) -> Result:
    """One update in place."""
    z, y = start(classes, rows)
    ours = alternating(lambda c: rollout.run(z, y, s=STEP, c=c, steps=1, out=z))
    return against_autograd("step", ours, lambda: z, (classes, rows), 1, target=target, how=how)


def bench_step_function(classes: int, how: Effort, *, one_label: bool) -> Result:
    """`softmax.step` of `softmax.residual` on a numpy row; its label an integer, or an array as in any library."""
    z, y = (a.numpy() for a in start(classes, 1))
    label = int(y[0]) if one_label else y
    state = [z]

    def update(c: float) -> None:
        state[0] = softmax.step(state[0], softmax.residual(state[0], label, c=c), s=STEP)

    note = " (softmax.step, integer label)" if one_label else " (softmax.step, array namespace)"
    ours = alternating(update)
    return against_autograd("step", ours, lambda: state[0], (classes, 1), 1, target=3.0, how=how, note=note)


def bench_run(classes: int, rows: int, steps: int, target: float, how: Effort) -> Result:
    """T fused updates in place."""
    z, y = start(classes, rows)
    ours = alternating(lambda c: rollout.run(z, y, s=STEP, c=c, steps=steps, out=z))
    note = f" T={steps}"
    return against_autograd("run", ours, lambda: z, (classes, rows), steps, target=target, how=how, note=note)


def bench_lumped(classes: int, cells: int, steps: int, how: Effort) -> Result:
    """Cells (y, y*, a plateau of V − 2) of a phase diagram against the closed form with all V classes, float64."""
    few, full_steps = 2, 3
    draw = np.random.default_rng(classes)
    z = np.stack([draw.uniform(-4, 0, cells), draw.uniform(0, 12, cells), np.zeros(cells)], axis=-1)
    count, y = np.array([1, 1, classes - 2]), np.zeros(cells, dtype=int)
    whole = np.repeat(z[:few], count, axis=-1)

    def full() -> Any:
        at = whole
        for _ in range(full_steps):
            at = softmax.step(at, softmax.residual(at, y[:few], c=-1.0), s=STEP)
        return at

    agree = difference(rollout.lumped(z[:few], count, y[:few], s=STEP, steps=full_steps), full()[:, :3])
    contestants = {
        "ours": lambda: rollout.lumped(z, count, y, s=STEP, steps=steps),
        "theirs": full,
        "fused": lambda: rollout.run(whole, y[:few], s=STEP, steps=full_steps),
    }
    work = {"ours": cells * steps, "theirs": few * full_steps, "fused": few * full_steps}
    return result(
        "lumped",
        "full-vocabulary",
        (classes, cells),
        contestants,
        agree,
        1e-12,
        target=1000.0,
        how=how,
        work=work,
        extra=lambda took: {"cell_steps_per_s": 1 / took["ours"], "ratio_to_fused_run": took["fused"] / took["ours"]},
    )


def bench_copy(classes: int, rows: int, target: float, how: Effort) -> Result:
    """One update in place against copying the logits: both read and write each once, the update takes exponentials.

    Those a second of the update, of ten fused updates and of torch.exp say how far they bind.
    """
    z, y = start(classes, rows)
    exact, into, ours, state = z.double().numpy(), torch.empty_like(z), z.clone(), z.clone()
    rollout.run(ours, y, s=STEP, steps=1, out=ours)
    agree = difference(ours, softmax.step(exact, softmax.residual(exact, y.numpy(), c=-1.0), s=STEP))
    contestants = {
        "ours": alternating(lambda c: rollout.run(ours, y, s=STEP, c=c, steps=1, out=ours)),
        "theirs": lambda: into.copy_(z),
        "fused": alternating(lambda c: rollout.run(state, y, s=STEP, c=c, steps=10, out=state)),
        "exp": lambda: torch.exp(z, out=into),
    }
    return result(
        "step",
        "copy",
        (classes, rows),
        contestants,
        agree,
        4 * EPS,
        target=target,
        how=how,
        extra=lambda took: {
            "bytes_per_s": 2 * z.nbytes / took["ours"],
            "copy_bytes_per_s": 2 * z.nbytes / took["theirs"],
            "exp_per_s": z.numel() / took["ours"],
            "fused_exp_per_s": 10 * z.numel() / took["fused"],
            "torch_exp_per_s": z.numel() / took["exp"],
        },
    )


def result(
    benchmark: str,
    against: str,
    shape: tuple[int, int],
    contestants: dict[str, Callable[[], Any]],
    agree: float,
    tolerance: float,
    *,
    target: float,
    how: Effort,
    note: str = "",
    work: dict[str, int] | None = None,
    extra: Callable[[dict[str, float]], dict[str, float]] = lambda _: {},
) -> Result:
    """Time the contestants, whose results were compared already; `work` is how many units one call of each does."""
    took = {name: t / (work or {}).get(name, 1) for name, t in seconds(contestants, how).items()}
    return Result(
        benchmark,
        against,
        f"V={shape[0]} B={shape[1]}{note}",
        took["theirs"] / took["ours"],
        target,
        agree,
        tolerance,
        f"cpu ({platform.machine()})",
        torch.get_num_threads(),
        how.repeats,
        extra(took),
    )


def comparisons(size: str) -> Iterator[Result]:
    """All comparisons of a size, one at a time."""
    torch.set_num_threads(1)
    if size == "smoke":
        how = Effort(repeats=1, at_least=0.0)
        yield bench_step_function(50, how, one_label=True)
        yield bench_step_function(50, how, one_label=False)
        yield bench_step(1000, 4, 1.0, how)
        for classes, rows, steps in [(50, 1, 20), (50, 64, 20), (1000, 2, 5)]:
            yield bench_run(classes, rows, steps, 5.0, how)
        yield bench_lumped(1000, 100, 10, how)
        yield bench_copy(5000, 2, 0.0, how)
        return
    how = Effort(repeats=11, at_least=0.02)
    small, large = [(50, 1), (50, 1024), (1000, 1), (1000, 1024)], [(50257, 1), (151936, 1), (151936, 16)]
    yield bench_step_function(50, how, one_label=True)
    yield bench_step_function(50, how, one_label=False)
    # One update in place has a target at large V alone: elsewhere 1 = not slower.
    for classes, rows in [*small, *large]:
        yield bench_step(classes, rows, 2.0 if classes > 50000 else 1.0, how)
    for (classes, rows), steps in zip([*small, *large], [1000, 100, 300, 10, 3, 3, 3], strict=True):
        yield bench_run(classes, rows, steps, 100.0 if rows * classes == 50 else 5.0, how)
    yield bench_lumped(50257, 16384, 100, how)
    # Against a copy the target is for large V: elsewhere 0 = none.
    for classes, rows in [*small, *large, (151936, 64)]:
        yield bench_copy(classes, rows, 0.5 if classes > 50000 else 0.0, how)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if any results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["smoke", "paper"], default="paper")
    wrong = 0
    for done in comparisons(parser.parse_args(arguments).size):
        print(done.line(), flush=True)
        bad = not done.agree <= done.tolerance  # also for nan
        wrong += bad
        reached = "reached" if done.ratio >= done.target else "missed"
        verdict = "RESULTS DISAGREE" if bad else reached if done.target else "no target"
        name = f"{done.benchmark}/{done.against}"
        row = f"{name:24} {done.size:28} {done.ratio:10.2f} × target {done.target:g}: {verdict}"
        print(row, file=sys.stderr)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
