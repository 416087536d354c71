"""What `toyld run digits` does: supervised training on digits into a run folder, evaluation by evaluation.

A digit is a prompt and its label a response of one token. Probes: `chosen`, training images with the label they are
taught; `test_chosen`, held-out images with their own. For images whose label was flipped no kind of `toyld.probes`
means the true label, which is neither rejected nor a rephrase, so the run has none for it.

All seeds of a run are taught the same images with the same labels, flipped ones too, and probed with the same: drawn
once, by the first seed. Seeds differ in their initial weights and in the order of the images. So an example, named
`train 137, test 12` by its places in the two parts of the digits, is one image of each kind for every seed.

After each evaluation the weights, the optimiser's memory and the place in the data are kept; the order of an epoch is
drawn from seed and epoch alone, so a run that was killed goes on with the same numbers and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from toyld.checked import BadInput, fail
from toyld.contexts.measure import measure
from toyld.contexts.world import Responses
from toyld.digits.data import CLASSES, Digits, draw, flipped
from toyld.digits.ensemble import Ensemble, Recipe, logits, picked
from toyld.digits.networks import make
from toyld.digits.training import blocks
from toyld.trajectory import RunFolder, trajectory

__all__ = ["KINDS", "SIZES", "Plan", "run"]

KINDS = ("chosen", "test_chosen")
ROUNDING = 1e-12  # nats: what float64 leaves of a log-probability; probes are measured in it
PROBED, HELD_OUT = 5, 6  # streams of random numbers
# Paper: the recipe as it is, 3,200 updates. Smoke: 230 updates, a fourteenth; an update moves logits by η‖x‖² and more,
# and 64 pixels of spread 1 have a twelfth of the ‖x‖² of 784: so a hundred times the rate.
SIZES: Mapping[str, Mapping[str, Any]] = {
    "smoke": {
        "data": "embedded", "seeds": 4, "recipe": {"lr": 0.1, "images": None, "epochs": 10}, "probes": 50,
        "evaluations": 10,
    },
    "paper": {"data": "mnist", "seeds": 10, "recipe": {}, "probes": 200, "evaluations": 20},
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One run, everything that determines its numbers beside the digits themselves, which `source` names.

    seeds: of initial weights and orders; the first also draws what all of them share. noise: share of the training
    labels that are flipped. probes: images of each kind that are measured. evaluations: after the one at the start,
    evenly spaced.
    """

    source: str
    network: str = "mlp"
    seeds: tuple[int, ...] = (0,)
    recipe: Recipe = field(default_factory=Recipe)
    noise: float = 0.0
    probes: int = 200
    evaluations: int = 20

    def __post_init__(self) -> None:
        if bad := [name for name in ("probes", "evaluations") if getattr(self, name) < 1]:
            msg = f"{bad[0]}: expected at least 1, got {getattr(self, bad[0])}; correct it"
            raise BadInput(msg)
        if not self.seeds or min(self.seeds) < 0 or max(self.seeds) >= 2**31:
            msg = f"seeds: expected at least one, from 0 to 2^31 − 1, got {list(self.seeds)[:5]}"
            raise BadInput(msg)

    @property
    def arm(self) -> str:
        """baseline, or noisy where labels are flipped."""
        return "noisy" if self.noise else "baseline"

    def marks(self, n: int, /) -> list[int]:
        """Updates after which a run of n images is evaluated."""
        last = self.recipe.updates(n)
        return sorted({round(last * k / self.evaluations) for k in range(self.evaluations + 1)})


class _Shared(NamedTuple):
    """What all seeds of a run have in common.

    data: with the images that are taught alone. labels (n,): what is taught. images (2E, 1, H, W): of both kinds, and
    the labels they are probed `with_` (2E,). example (E,): their names.
    """

    data: Digits
    labels: torch.Tensor
    images: torch.Tensor
    with_: torch.Tensor
    example: list[str]


def run(
    out: Path,
    plan: Plan,
    data: Digits,
    /,
    *,
    resume: bool = False,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the run folder of a plan: one stage, sft.

    out: a new folder, or with `resume` the one of a run that was stopped. tell: called with pieces of work done and to
    do. Raises BadInput for what cannot be trained, a descent that comes apart, a folder with another run in it.
    """
    shared = _shared(plan, data)
    parts = _start(plan, shared)
    # Who drew the images: folders from when each seed drew its own do not say, and are not gone on with.
    config = asdict(plan) | {"images_by": plan.seeds[0]}
    folder = RunFolder.create(out, command="toyld run digits", config=config, stages=["sft"], resume=resume)
    marks = plan.marks(parts[0].n)
    there = set(folder.steps("sft", plan.arm)) if resume else set()
    missing = [mark for mark in marks if mark not in there]
    at = _restore(folder, plan, parts, until=missing[0] if missing else marks[-1]) if resume else -1
    done, total = len(parts) * sum(mark <= at and mark not in missing for mark in marks), len(parts) * len(marks)
    for mark in marks:
        if mark < at or (mark == at and mark not in missing):
            continue
        columns: list[dict[str, np.ndarray]] = []
        for part in parts:
            part.run(mark)
            if not part.flat.isfinite().all():
                got = f"NaN or inf by update {mark}"
                do = f"lower --lr, now {plan.recipe.lr:g}, and name another folder, or remove {out}"
                msg = f"expected a descent that stays finite, got {got}; {do}"
                raise BadInput(msg)
            columns.append(_measured(part, shared))
            tell(done := done + 1, total)
        folder.write(_table(plan, shared, mark, parts[0], columns))
        folder.write_state("sft", plan.arm, mark, _state(parts), beside=_place(plan, parts[0]))


def _shared(plan: Plan, data: Digits) -> _Shared:
    """Images, labels and probes of all seeds, drawn by the first one."""
    seed = plan.seeds[0]
    (places,) = picked(data, plan.recipe, [seed])
    taught = replace(data, images=data.images[places], labels=data.labels[places])
    true, test = taught.labels.numpy(), data.test_labels
    labels = torch.from_numpy(flipped(true, plan.noise, seed=seed))
    count = min(plan.probes, len(places), len(test))
    own = draw(true, count, seed=seed, stream=PROBED)
    held = draw(test.numpy(), count, seed=seed, stream=HELD_OUT)
    images, with_ = torch.cat([taught.images[own], data.test_images[held]]), torch.cat([labels[own], test[held]])
    names = [f"train {i}, test {j}" for i, j in zip(places[own].tolist(), held.tolist(), strict=True)]
    return _Shared(taught, labels, images, with_, names)


def _start(plan: Plan, shared: _Shared) -> list[Ensemble]:
    """The networks before any training, in the groups that are trained together."""
    build, recipe = make(plan.network, shared.data.side), replace(plan.recipe, images=None)
    blocked = blocks(plan.seeds, build)
    return [Ensemble(shared.data, build, block, recipe, labels=shared.labels) for block in blocked]


def _measured(part: Ensemble, shared: _Shared) -> dict[str, np.ndarray]:
    """Every variable of the table: (S, kind, E), or (S,)."""
    theta = {name: value.double() for name, value in part.theta.items()}
    z = logits(part.module, theta, shared.images).numpy()
    labels = shared.with_.expand(len(part.seeds), -1)
    place = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
    kinds = {}
    for kind, rows in zip(KINDS, np.split(np.arange(labels.shape[1]), len(KINDS)), strict=True):
        token = labels.numpy()[:, rows, None]
        kinds[kind] = Responses(place[:, rows, None], token, np.ones(token.shape, bool))
    found = measure(z, kinds, KINDS)
    found["n_tokens"] = np.ones(found["logp"].shape)
    own, held = _scores(part, None), _scores(part, (part.data.test_images, part.data.test_labels))
    return found | {"loss": own[0], "train_accuracy": own[1], "eval_loss": held[0], "eval_accuracy": held[1]}


def _scores(part: Ensemble, of: tuple[torch.Tensor, torch.Tensor] | None) -> tuple[np.ndarray, np.ndarray]:
    """(mean −log π(label), share whose argmax is the label), (S,) each; of the images taught, as taught, by default."""
    out = []
    for s in range(len(part.seeds)):  # seed by seed: the images of all seeds at once would fill the memory
        images, labels = (part.data.images[part.index[s]], part.labels[s]) if of is None else of
        one = {name: value[s : s + 1] for name, value in part.theta.items()}
        z = logits(part.module, one, images)[0].double()
        right = (z.argmax(-1) == labels).double().mean()
        out.append([torch.nn.functional.cross_entropy(z, labels).item(), right.item()])
    loss, share = np.array(out).T
    return loss, share


def _table(plan: Plan, shared: _Shared, mark: int, part: Ensemble, columns: list[dict[str, np.ndarray]]) -> Any:
    """One evaluation of all seeds as a Trajectory."""
    variables = {name: np.concatenate([one[name] for one in columns]) for name in columns[0]}
    variables = {name: value if name == "n_tokens" else value[:, None] for name, value in variables.items()}
    last = mark >= plan.recipe.updates(part.n)
    variables["lr"] = np.full((len(plan.seeds), 1), 0.0 if last else plan.recipe.rate(mark, part.n))
    epoch, k = divmod(mark, plan.recipe.per_epoch(part.n))
    return trajectory(
        variables,
        step=[mark],
        examples_seen=[epoch * part.n + k * plan.recipe.batch],
        probe=KINDS,
        example=shared.example,
        seed=plan.seeds,
        world="digits",
        stage="sft",
        arm=plan.arm,
        attrs={
            "vocab_size": CLASSES, "network": plan.network, "data": shared.data.name,
            "source": shared.data.source,
            "noise": float(plan.noise), "objective": "sft", "optimizer": "sgd", "noise_floor": ROUNDING,
        },
    )  # fmt: skip


def _state(parts: list[Ensemble]) -> dict[str, np.ndarray]:
    """θ and m of every group of seeds."""
    return {f"{what}.{i}": getattr(part, what).numpy() for i, part in enumerate(parts) for what in ("flat", "memory")}


def _place(plan: Plan, part: Ensemble) -> dict[str, Any]:
    """The place in the data; no random generator has a state: each order is drawn from its seed and epoch."""
    epoch, batch = divmod(part.update, plan.recipe.per_epoch(part.n))
    return {"update": part.update, "epoch": epoch, "batch": batch}


def _restore(folder: RunFolder, plan: Plan, parts: list[Ensemble], *, until: int) -> int:
    """Put the networks where the last state of at most `until` updates left them; that update, −1 without any."""
    kept = folder.state("sft", plan.arm, until=until)
    if kept is None:
        return -1
    for i, part in enumerate(parts):
        for what in ("flat", "memory"):
            mine, array = getattr(part, what), kept.arrays.get(f"{what}.{i}")
            if array is None or array.shape != mine.shape or array.dtype != mine.numpy().dtype:
                fail("a state of this run", f"another at update {kept.step}", "remove it, and resume")
            if not np.isfinite(array).all():
                fail("a state of finite numbers", f"NaN or inf at update {kept.step}", "remove it, and resume")
            mine.copy_(torch.from_numpy(array))
        part.update = kept.step
    return kept.step
