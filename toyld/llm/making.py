"""`toyld probes`: the probe set's file of any preference data, with rephrases and samples written by local models.

What models write is kept in a file beside it (`toyld.probes.cached`) as soon as it is written: a killed run goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toyld.checked import BadInput
from toyld.llm import checkpoints
from toyld.llm.data import LeftOut, read_pairs
from toyld.probes import KINDS, ProbeSet, cached, check_pairs, make, resolve, rewriter_from_model, sampler_from_model
from toyld.probes.cache import Cached
from toyld.probes.released import audit

__all__ = ["Built", "build", "show_built"]

# Findings that a probe set's user should know; what is missing or made from what is said anyway.
_ODD = (
    "duplicate-pairs",
    "contradictory-pairs",
    "prompt-repeated",
    "shared-start",
    "not-random-words",
    "leading-space",
)
# What a rewriter makes unless kinds are named: chosen_selfr asks the same as chosen_gptsemantic, of the policy itself.
_REWRITTEN = tuple(key for key, kind in KINDS.items() if kind.needs == "rewriter" and key != "chosen_selfr")


@dataclass(frozen=True)
class Built:
    """What `build` made: the probes, the rows left out, what is odd about pairs and probes, answers asked and kept."""

    probes: ProbeSet
    left_out: LeftOut
    findings: tuple[str, ...]
    asked: int
    kept: int


def build(
    data: Any,
    out: str | Path,
    /,
    *,
    n: int | None = None,
    kinds: Sequence[str] = (),
    rewriter: str | None = None,
    sampler: str | None = None,
    test: Any = None,
    train: Any = None,
    held_out: bool = False,
    room: int = 256,
    cache: str | Path | None = None,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    tell: Callable[[str, int, int], object] | None = None,
) -> Built:
    """Make the probes of `data` (see `toyld.probes.make`) and write them to the file `out`, whole or not at all.

    data, test, train: see `toyld.llm.opened`; n: at most; rewriter, sampler: model folders or Hub names; kinds: by
    default all that can be made; room: tokens that a model may write; cache: where answers are kept, by default `out`
    with .answers.sqlite behind it.

    Raises:
        BadInput: what cannot be read, loaded or written; a file `out` that is there already; a kind asked for by name
            that can be had for no example, said before a model is asked anything.
    """
    out = Path(out)
    if out.exists():
        raise BadInput(f"--out: expected a file that is not there yet, got {out}; remove it, or name another")
    if not out.absolute().parent.is_dir():
        raise BadInput(f"--out: expected a file in an existing folder, got {out}; make the folder first")
    for name, value in (("--n", n), ("--room", room)):
        if value is not None and value < 1:
            raise BadInput(f"{name}: expected at least 1, got {value}")
    wanted = resolve(kinds, held_out=held_out)
    pairs, left_out = read_pairs(data)
    options: dict[str, Any] = {"seed": seed, "n": None if n is None else min(n, len(pairs))}
    options |= {
        name: None if rows is None else read_pairs(rows)[0] for name, rows in (("test", test), ("train", train))
    }
    options |= {"held_out": True} if held_out else {}
    rewritten = tuple(key for key in wanted if KINDS[key].needs == "rewriter") if wanted else _REWRITTEN
    by_models = {*(rewritten if rewriter else ()), *(("sampled",) if sampler else ())}
    dry = make(pairs, [key for key in wanted if key not in by_models], **options)
    for key in wanted:
        if key not in by_models and key not in dry.responses:
            raise BadInput(f"--kinds: expected responses of kind {key}, got none ({dry.missing[key]}); leave it out")
    writers: list[Cached[Any]] = []

    def kept(writer: Any) -> Cached[Any]:
        writers.append(cached(writer, f"{out}.answers.sqlite" if cache is None else cache))
        return writers[-1]

    models = {name: _load(name, dtype, device) for name in (rewriter, sampler) if name is not None}
    if rewriter is not None:
        instructions = {key: KINDS[key].instruction for key in rewritten}
        options["rewriter"] = {
            key: kept(rewriter_from_model(*models[rewriter], instruction=words, room=room))
            for key, words in instructions.items()
        }
    if sampler is not None:
        options["sampler"] = kept(sampler_from_model(*models[sampler], seed=seed, room=room))
    with checkpoints.quiet() if models else contextlib.nullcontext():
        probes = make(pairs, wanted or None, tell=tell, **options)
    probes.to_jsonl(out)
    found = [*check_pairs(pairs), *(one for one in audit(probes).findings if one["code"] != "shared-start")]
    odd = tuple(one["text"] for one in found if one["code"] in _ODD)
    return Built(probes, left_out, odd, sum(w.asked for w in writers), sum(w.kept for w in writers))


def _load(model: str, dtype: str, device: str) -> tuple[Any, Any]:
    with checkpoints.quiet():
        loaded = checkpoints.load_model(model, dtype=dtype, device=checkpoints.pick_device(device))
        return loaded, checkpoints.load_tokenizer([model])


def show_built(data: Any, out: Path, /, **options: Any) -> int:
    """Run `build` with a bar on a terminal (none elsewhere), then print what was made and what is missing; 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        built = build(data, out, tell=tell, **options)
    probes = built.probes
    given = probes.provenance["given"]
    print(f"{out}: {len(probes)} examples; responses of each kind, mean words:")
    for key, facts in audit(probes).kinds.items():
        origin = "from the data" if key in ("chosen", "rejected") else f"{given.get(key, 0)} from the data"
        print(f"  {key:20}{facts.texts:>6}{facts.words:>8.1f}  {origin}")
    for key, why in probes.missing.items():
        print(f"missing, {key}: {why}")
    if built.left_out:
        print(built.left_out)
    for line in built.findings:
        print(f"mind: {line}")
    if built.asked + built.kept:
        print(f"{built.asked} texts asked of models, {built.kept} answers from the cache")
    print(f"next: toyld probe --models MODEL… --data {out} --out RUN")
    return 0
