"""The probes of a run, measured after the fact from its saved checkpoints, into a run folder.

For every checkpoint, response kind and example: `toyld.llm.score`'s numbers of the kind's response behind the
example's prompt. One file an evaluation, written whole; what is there already is not measured again. The scoring noise
is measured once, on the first checkpoint's chosen responses.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.llm import checkpoints
from toyld.llm.cells import cells
from toyld.llm.data import LeftOut, read_probes
from toyld.llm.score import Scores, noise_floor, score_encoded
from toyld.trajectory import load, read_folder, trajectory
from toyld.trajectory.folder import RunFolder

__all__ = ["Report", "probe", "read_probes"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Report:
    """What `probe` did: steps measured and steps there already, how the steps are known, what was left out or cut."""

    measured: tuple[int, ...]
    skipped: tuple[int, ...]
    steps_from: str
    has_step0: bool
    kinds: tuple[str, ...]
    missing: dict[str, str]
    n_examples: int
    left_out: LeftOut
    n_responses: int
    n_cut: int
    noise_floor: float | None


def probe(
    models: Sequence[str],
    data: str | Path,
    out: str | Path,
    /,
    *,
    reference: str | None = None,
    steps: Sequence[int] | None = None,
    kinds: Sequence[str] = (),
    held_out: bool = False,
    n: int = 128,
    max_length: int = 512,
    eos: bool = True,
    batch_size: int = 8,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    stage: str = "dpo",
    arm: str = "baseline",
    tell: Callable[[str, int, int], object] | None = None,
) -> Report:
    """Measure every checkpoint that the run folder `out` does not hold yet.

    `models`: folders or Hub names in training order, the policy before training first; `steps`: see
    `checkpoints.course`; `reference`: a model whose log-probabilities are stored as ref_logp; `data`, `kinds`,
    `held_out`, `n`, `seed`: see `read_probes`; the rest: see `toyld.llm.score`. `tell` hears (what, done, total),
    counted in responses. With `resume` checkpoints may be added to a run; what is there must have been measured with
    the same weights, wherever they lie now. A new run of which nothing could be scored leaves no run.json behind.

    Raises:
        BadInput: models, tokenizer, data or folder that do not serve, in one line.
    """
    if batch_size < 1:
        raise BadInput(f"--batch-size: expected at least 1, got {batch_size}")
    with checkpoints.quiet(), _nothing_for_nothing(Path(out)):
        way = checkpoints.course(models, steps=steps)
        device = checkpoints.pick_device(device)
        every = (*way.models, *([] if reference is None else [reference]))
        configs = [checkpoints.load_config(model) for model in every]  # all of them, before anything takes long
        probes, left_out = read_probes(data, kinds=kinds, held_out=held_out, n=n, seed=seed)
        tokenizer = checkpoints.load_tokenizer(way.models, chat=probes.messages is not None)
        asked = cells(tokenizer, probes, max_length=max_length, eos=eos)
        names = list(asked.kinds)
        fits = {"largest_id": max(max(i.ids) for i in asked.items), "longest": max(len(i.ids) for i in asked.items)}
        size: int | None = None
        for model, described in zip(every, configs, strict=True):
            size = checkpoints.check_fit(described, model, size=size, **fits)
        prints = {"probes": probes.sha256[:16], "tokens": asked.fingerprint}
        known_as = {model: checkpoints.fingerprint(model) for model in every}
        weights = {"first": known_as[way.models[0]], "reference": None if reference is None else known_as[reference]}
        config: dict[str, Any] = {"weights": weights, "fingerprints": prints, "kinds": names}
        config |= {"examples": len(probes), "max_length": max_length, "eos": eos, "dtype": dtype, "arm": arm}
        config |= {"batch_size": batch_size, "seed": seed, "probes": dict(probes.provenance)}
        folder = RunFolder.create(out, command="toyld probe", config=config, stages=[stage], resume=resume)
        known = _known(folder, way, known_as, stage, arm)
        attrs: dict[str, Any] = {"vocab_size": size, "fingerprints": prints, "probing_set": prints["probes"]}
        attrs |= {"n_cut": asked.n_cut, "max_length": max_length, "dtype": dtype}
        attrs |= {} if reference is None else {"reference_model": reference}

        def measure(model: str, loaded: Any) -> Scores:
            done = 0

            def tick(count: int) -> None:
                nonlocal done
                done += count
                if tell is not None:
                    tell(Path(model).name or model, done, len(asked.items))

            try:
                return score_encoded(loaded, asked.items, batch_size=batch_size, tick=tick)
            except BadInput as bad:
                raise BadInput(f"{model}: {bad}") from None

        todo = [(model, step) for model, step in zip(way.models, way.steps, strict=True) if step not in known.steps]
        ref, floor = known.reference, known.noise_floor
        if todo and reference is not None and ref is None:
            ref = asked.spread(measure(reference, _load(reference, dtype, device, size, fits)).logp)
        for model, step in todo:
            loaded = _load(model, dtype, device, size, fits)
            scores = measure(model, loaded)
            if floor is None:
                of_chosen = asked.of("chosen")
                chosen = [asked.items[i] for i in of_chosen]
                floor = noise_floor(loaded, chosen, scores.at(of_chosen), batch_size=batch_size)
            ds = trajectory(
                asked.table(scores, ref),
                step=[step],
                probe=names,
                example=probes.ids,
                world="llm",
                stage=stage,
                arm=arm,
                has_step0=step == 0,
                attrs=attrs | {"noise_floor": floor, "checkpoint": model, "weights": known_as[model]},
            )
            folder.write(ds)
            del loaded
            gc.collect()  # before the next one is loaded: two need not fit
    return Report(
        measured=tuple(step for _, step in todo),
        skipped=tuple(step for step in way.steps if step in known.steps),
        steps_from=way.known_from,
        has_step0=way.has_step0,
        kinds=tuple(names),
        missing=dict(probes.missing),
        n_examples=len(probes),
        left_out=left_out,
        n_responses=len(asked.items),
        n_cut=asked.n_cut,
        noise_floor=floor,
    )


@contextlib.contextmanager
def _nothing_for_nothing(out: Path) -> Iterator[None]:
    """Takes run.json away again where it is all there is: what could not be scored at all needs no --resume."""
    existed = out.is_dir()
    fresh = not existed or not any(out.iterdir())
    try:
        yield
    except BaseException:
        if fresh and out.is_dir() and [file.name for file in out.iterdir()] == ["run.json"]:
            (out / "run.json").unlink()
            if not existed:
                out.rmdir()
        raise


def _load(model: str, dtype: str, device: str, size: int | None, fits: dict[str, int]) -> Any:
    loaded = checkpoints.load_model(model, dtype=dtype, device=device)
    checkpoints.check_fit(loaded.config, model, size=size, **fits)
    return loaded


@dataclass(frozen=True)
class _Known:
    """What a resumed run folder holds already."""

    steps: frozenset[int]
    noise_floor: float | None
    reference: Floats | None


def _known(folder: RunFolder, way: checkpoints.Course, weights: Mapping[str, str], stage: str, arm: str) -> _Known:
    steps = frozenset(folder.steps(stage, arm))
    if not steps:
        return _Known(steps, None, None)
    for model, step in zip(way.models, way.steps, strict=True):
        file = folder.path / f"{stage}-{arm}" / f"eval-{step:08d}.nc"
        there = load(file).attrs if file.is_file() else {}
        if there.get("weights", weights[model]) != weights[model]:
            msg = f"expected the weights that step {step} was measured with ({there.get('checkpoint')}), "
            raise BadInput(msg + f"got others in {model}; use another folder")
    ds = next(ds for ds in read_folder(folder.path) if (ds.attrs["stage"], ds.attrs["arm"]) == (stage, arm))
    reference = ds.ref_logp.values[0] if "ref_logp" in ds else None
    return _Known(steps, ds.attrs.get("noise_floor"), reference)
