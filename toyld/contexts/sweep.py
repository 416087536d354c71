"""Sweeps: SFT → DPO over anisotropy × off-policy-ness × β × learning rate × length of SFT × seeds, many runs at once.

A `Grid` is a product of conditions. It is cut into chunks of runs that differ in nothing but numbers (the weight of the
common component, β, η, the state that SFT left), so that one `train` call makes hundreds of runs; the chunks may go to
any `concurrent.futures.Executor`, and how they are cut depends on the grid alone, so the numbers do not depend on who
computed them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld import objectives
from toyld.checked import LARGEST, BadInput
from toyld.contexts import languages
from toyld.contexts.engine import Run, State, train
from toyld.contexts.predict import terms
from toyld.contexts.world import World

__all__ = [
    "AXES",
    "CHUNK",
    "COLUMNS",
    "LANGUAGES",
    "OUTCOMES",
    "TERMS",
    "Chunk",
    "Grid",
    "outcomes",
    "run_chunk",
    "sweep",
]

Floats = NDArray[np.float64]
Table = dict[str, Any]
LANGUAGES: Mapping[str, Callable[..., World]] = {"facts": languages.facts, "markov": languages.markov}
AXES = ("temperature", "common", "sft", "beta", "lr", "seed")
KINDS = ("chosen", "rejected", "test_chosen")
CHUNK = 192  # runs at once: their logits stay in the cache of a core
STILL = 1e-6  # nats: a change below it counts as none; the arithmetic is exact to about 1e-12
OUTCOMES: Mapping[str, str] = {
    "start_chosen": "log π(y+) before DPO, nats per response",
    "start_argmax": "argmax along the chosen contexts before DPO",
    "start_rejected": "log π(y−) before DPO: how far off the policy it is",
    "d_chosen": "change of log π(y+)",
    "d_rejected": "change of log π(y−)",
    "d_argmax": "change of the argmax along the chosen contexts",
    "d_test": "change of the right answers to prompts that were never trained",
    "gap": "d_argmax − d_chosen",
    "margin": "d_chosen − d_rejected",
    "squeezed": "share of the prompts with chosen down and argmax up",
}
TERMS: Mapping[str, str] = {
    "term_own": "first-order change of chosen by its own push, nats per η of one update at β = .1 (`predict.terms`)",
    "term_rejected": "by the push on the rejected response to the same prompt",
    "term_other_chosen": "by the pushes on the other chosen responses",
    "term_other_rejected": "by those on the other rejected ones",
    "term_total": "all of it",
}

AT = tuple(f"at_{name}" for name in OUTCOMES if not name.startswith("start") and name != "margin")
COLUMNS = (*AXES, *OUTCOMES, *AT, "at_step", *TERMS)


@dataclass(frozen=True)
class Grid:
    """The product of conditions, and what they share.

    common: weight of the common component, added to `kernel`, whose other weights stay. temperature: at which y− is
    sampled from the model before training (1 = its own, larger = less probable). sft: updates of SFT. margin: also
    compare where the reward margin first reaches this many nats. marks: evaluations of a DPO run after its start.

    >>> Grid(common=(0.0, 1.0), beta=(0.1, 0.2), seeds=(0, 1, 2)).runs   # and two temperatures
    24
    """

    common: tuple[float, ...] = (0.0, 0.2, 0.8)
    temperature: tuple[float, ...] = (1.0, 8.0)
    beta: tuple[float, ...] = (0.1,)
    lr: tuple[float, ...] = (24.0,)
    sft: tuple[int, ...] = (40,)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    language: str = "facts"
    world: Mapping[str, Any] = field(default_factory=dict)
    kernel: Mapping[str, float] = field(default_factory=lambda: dict(languages.KERNEL))
    objective: str = "dpo"
    sft_lr: float = 1.2
    steps: int = 100
    marks: int = 25
    margin: float = 10.0

    def __post_init__(self) -> None:
        for name in ("common", "temperature", "beta", "lr", "sft", "seeds"):
            values = getattr(self, name)
            if not isinstance(values, Sequence | np.ndarray | range) or isinstance(values, str):
                msg = f"{name}: expected several values, got {values!r}; write ({values!r},)"
                raise BadInput(msg)
            if len(values) == 0 or len(set(values)) < len(values):
                msg = f"{name}: expected values, each once, got {list(values)}; name at least one"
                raise BadInput(msg)
        positive = {"temperature": self.temperature, "beta": self.beta, "lr": self.lr, "sft_lr": (self.sft_lr,)}
        positive |= {"margin": (self.margin,), "steps": (self.steps,), "marks": (self.marks,)}
        low = {name: values for name, values in positive.items() if not all(0 < v < np.inf for v in values)}
        low |= {name: getattr(self, name) for name in ("common", "sft", "seeds") if min(getattr(self, name)) < 0}
        if low:
            name, got = next(iter(low.items()))
            msg = f"{name}: expected finite numbers {'> 0' if name in positive else '>= 0'}, got {list(got)}"
            raise BadInput(msg)
        if max(*self.lr, self.sft_lr) > LARGEST:
            msg = f"lr, sft_lr: expected rates up to {LARGEST:.0e}, got {max(*self.lr, self.sft_lr):g}; lower it"
            raise BadInput(msg)
        if self.language not in LANGUAGES:
            msg = f"language: expected one of {', '.join(LANGUAGES)}, got {self.language!r}"
            raise BadInput(msg)

    @property
    def runs(self) -> int:
        """How many runs there are."""
        return int(np.prod([len(getattr(self, f"{a}s" if a == "seed" else a)) for a in AXES]))

    def chunks(self, size: int = CHUNK, /) -> list[Chunk]:
        """The grid in pieces of at most `size` runs; runs of one seed and one kernel lie together and share their SFT.

        >>> [len(chunk.conditions) for chunk in Grid(seeds=tuple(range(9))).chunks(8)]
        [8, 8, 8, 3, 8, 8, 8, 3]
        """
        out = []
        for temperature in self.temperature:
            product = itertools.product(self.seeds, self.common, self.sft, self.beta, self.lr)
            out += [Chunk(self, temperature, part) for part in _batched(product, size)]
        return out


def _batched(items: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    while part := tuple(itertools.islice(items, size)):
        yield part


@dataclass(frozen=True)
class Chunk:
    """Some runs of a grid that share everything but (seed, common, sft, β, η), the order of `conditions`."""

    grid: Grid
    temperature: float
    conditions: tuple[tuple[int, float, int, float, float], ...]

    def fits(self, table: Mapping[str, Any], /) -> bool:
        """Whether a table has the columns and the runs of this chunk."""
        rows = [(self.temperature, common, sft, beta, lr, seed) for seed, common, sft, beta, lr in self.conditions]
        return tuple(table) == COLUMNS and list(zip(*(table[name].tolist() for name in AXES), strict=True)) == rows

    def start(self) -> tuple[World, dict[tuple[int, float], int]]:
        """A world for every (seed, weight of the common component), with no more responses than are measured."""
        grid = self.grid
        pairs = list(dict.fromkeys((seed, common) for seed, common, *_ in self.conditions))
        seeds = list(dict.fromkeys(seed for seed, _ in pairs))
        made = LANGUAGES[grid.language](seeds=seeds, temperature=self.temperature, kernel=grid.kernel, **grid.world)
        language = made.language
        assert language is not None
        few = replace(language, texts={kind: language.texts[kind] for kind in KINDS}).world(seeds, made.attrs)
        world = few.take([seeds.index(seed) for seed, _ in pairs])
        weights = {**world.kernel.weights, "common": np.array([common for _, common in pairs])}  # type: ignore[attr-defined]
        kernel = replace(world.kernel, weights=weights, _cache={})  # type: ignore[type-var]
        return replace(world, kernel=kernel), {pair: i for i, pair in enumerate(pairs)}


def run_chunk(chunk: Chunk, /) -> Table:
    """Every run of a chunk, as columns: its condition, the outcomes, the same at the margin, the terms of one step.

    >>> grid = Grid(common=(0.0, 1.0), temperature=(2.0,), seeds=(0,), world={"prompts": 3, "length": 4}, steps=20)
    >>> table = run_chunk(grid.chunks()[0])
    >>> table["common"].tolist(), table["d_chosen"].shape
    ([0.0, 1.0], (2,))
    """
    grid = chunk.grid
    world, place = chunk.start()
    seed, common, sft, beta, lr = (np.array(column) for column in zip(*chunk.conditions, strict=True))
    at = np.array([place[pair] for pair in zip(seed.tolist(), common.tolist(), strict=True)])
    z, dual = (np.empty((len(at), world.trained, world.size[2])) for _ in range(2))
    state, done = None, 0
    for length in sorted(set(sft.tolist())):
        run = train(
            world, objectives.get("sft"), lr=grid.sft_lr, steps=length - done, state=state, at=[], kinds=KINDS[:1]
        )
        state, done = run.state, length
        mine = sft == length
        z[mine], dual[mine] = state.logits[at[mine]], state.dual[at[mine]]
    every, start = world.take(at.tolist()), State(z, dual)
    marks = np.unique(np.linspace(0, grid.steps, grid.marks + 1).round().astype(int))
    objective = objectives.get(grid.objective, beta=beta)
    with np.errstate(over="ignore", invalid="ignore"):  # a descent that diverges is told by its numbers
        run = train(every, objective, lr=lr, steps=grid.steps, state=start, rejected="rejected", at=marks, kinds=KINDS)
        found = outcomes(run, grid.margin)
    axes = {"temperature": np.full(len(at), chunk.temperature), "common": common, "sft": sft, "beta": beta, "lr": lr}
    first = {f"term_{name}": value.mean(-1) for name, value in terms(every, start).items()}
    columns = {**axes, "seed": seed, **found, **first}
    return {name: columns[name] for name in COLUMNS}


def outcomes(run: Run, margin: float, /) -> Table:
    """OUTCOMES of every world of a DPO run, (B,), at the end and, named `at_…`, where its margin first is `margin`.

    Values at the margin are taken per prompt, linear between the two evaluations around, NaN where it is not reached;
    `at_step` is the update.
    """
    path = {name: run.value("logp", name) for name in KINDS} | {"argmax": run.value("argmax_logp", "chosen")}
    last = {name: value[-1] - value[0] for name, value in path.items()}
    out = {f"start_{name}": path[name][0].mean(-1) for name in ("chosen", "argmax", "rejected")}
    out |= _summed(last)
    reached = (path["chosen"] - path["rejected"]).mean(-1)
    reached = reached - reached[:1]
    k = np.argmax(reached >= margin, axis=0)
    never = ~(reached >= margin).any(0)
    before, world = np.maximum(k - 1, 0), np.arange(len(k))
    share = (margin - reached[before, world]) / np.where(k > 0, reached[k, world] - reached[before, world], 1.0)
    share = np.where(never, np.nan, share)
    there = {}
    for name, value in path.items():
        low, high = value[before, world], value[k, world]
        there[name] = low + share[:, None] * (high - low) - value[0]
    steps = np.array(run.steps, float)
    found = {f"at_{name}": value for name, value in _summed(there).items() if name != "margin"}
    return {**out, **found, "at_step": steps[before] + share * (steps[k] - steps[before])}


def _summed(change: Mapping[str, Floats]) -> Table:
    """Means over prompts of changes (B, P), and the share of squeezed prompts."""
    squeezed = (change["chosen"] < -STILL) & (change["argmax"] > STILL)
    mean = {name: value.mean(-1) for name, value in change.items()}
    out = {f"d_{name}": mean[name] for name in ("chosen", "rejected", "argmax")} | {"d_test": mean["test_chosen"]}
    out |= {"gap": mean["argmax"] - mean["chosen"], "margin": mean["chosen"] - mean["rejected"]}
    return {**out, "squeezed": np.where(np.isnan(mean["chosen"]), np.nan, squeezed.mean(-1))}


def sweep(
    grid: Grid,
    /,
    *,
    executor: Executor | None = None,
    done: Mapping[int, Table] | None = None,
    keep: Callable[[int, Table], None] | None = None,
    size: int = CHUNK,
) -> Table:
    """All runs of a grid, one row each, in the order of its chunks.

    Args:
        grid: the conditions.
        executor: where the chunks are computed: a thread or process pool, `distributed.Client(...).get_executor()`, any
            `concurrent.futures.Executor`; by default here, one after the other. The numbers are the same.
        done: chunks that are there already, by number.
        keep: called with each new chunk as it comes (number, table), for example to write it to a file.
        size: runs at once. The numbers of another size agree to rounding.

    >>> grid = Grid(common=(0.0, 1.0), seeds=(0,), world={"prompts": 3, "length": 4}, steps=20)
    >>> sweep(grid)["temperature"].tolist()
    [1.0, 1.0, 8.0, 8.0]
    """
    chunks, found = grid.chunks(size), dict(done or {})
    todo = [i for i in range(len(chunks)) if i not in found]
    for i, table in _computed([(i, chunks[i]) for i in todo], executor):
        found[i] = table
        if keep is not None:
            keep(i, table)
    return {name: np.concatenate([found[i][name] for i in range(len(chunks))]) for name in found[0]}


def _computed(chunks: Sequence[tuple[int, Chunk]], executor: Executor | None) -> Iterator[tuple[int, Table]]:
    if executor is None:
        for i, chunk in chunks:
            yield i, run_chunk(chunk)
        return
    running = {executor.submit(run_chunk, chunk): i for i, chunk in chunks}
    try:
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        for future in running:
            future.cancel()
