"""One stage of fine-tuning: many models at once, any objective, probed on the way; its numbers as a Trajectory.

Positions of the rows of an update are contexts, so `toyld.contexts.rows` says what residual R = ∂L/∂z an objective
gives them, and autograd takes R through the networks. Minibatches are drawn from (seed, pass): the number of updates,
the parameters and the optimiser's memory say all about where training stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr

from toyld.checked import BadInput
from toyld.contexts.engine import check_stage, marked
from toyld.contexts.measure import measure
from toyld.contexts.rows import Rows
from toyld.contexts.world import Responses
from toyld.tiny.language import sequences
from toyld.tiny.models import Models
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.stacks import Centre
from toyld.tiny.texts import Texts
from toyld.trajectory import trajectory

__all__ = ["Run", "Scene", "probe", "scene", "train"]

ORDER = 48  # stream of random numbers
Memory = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Scene:
    """Rows of tokens as contexts: inputs (S, N, T), and where responses by kind lie among the N·T positions."""

    inputs: torch.Tensor
    responses: Mapping[str, Responses]
    classes: int
    like: torch.Tensor  # of the dtype and on the device of the models
    whole: ClassVar[bool] = True  # a residual has the size of the logits

    @property
    def logits(self) -> torch.Tensor:
        """A tensor of the library, dtype and device of the logits; its values mean nothing."""
        return self.like

    @property
    def trained(self) -> int:
        """Contexts that may train: all."""
        return int(self.inputs.shape[1] * self.inputs.shape[2])

    @property
    def size(self) -> tuple[int, int, int]:
        """(members S, contexts N·T, classes V)."""
        return int(self.inputs.shape[0]), self.trained, self.classes

    def rows(self, kinds: Iterable[str], /) -> list[int]:
        """Which of the N rows belong to these kinds, kind by kind."""
        sizes = [int(r.context.shape[1]) for r in self.responses.values()]
        own = {kind: range(sum(sizes[:i]), sum(sizes[: i + 1])) for i, kind in enumerate(self.responses)}
        return [row for kind in kinds for row in own[kind]]


def scene(data: Texts, kinds: Sequence[str], models: Models, /) -> Scene:
    """The rows of some kinds, kind by kind; a kind that is not there, or named twice, raises BadInput."""
    models.check(data.language)
    if len(set(kinds)) < len(kinds):
        msg = f"kinds: expected each once, got {', '.join(kinds)}; drop what is named twice"
        raise BadInput(msg)
    if missing := [kind for kind in kinds if kind not in data.texts]:
        msg = f"kinds: expected some of {', '.join(data.texts)}, got {', '.join(missing)}; make them first"
        raise BadInput(msg)
    both = [sequences(data.language, data.prompt(kind), data.texts[kind]) for kind in kinds]
    where = models.flat.device
    none = np.zeros((len(models), 0, 1), np.int64)  # where nothing is asked for
    inputs = torch.from_numpy(np.concatenate([one for one, _ in both] or [none], 1)).to(where)
    length, found, start = inputs.shape[-1], {}, 0
    for kind, (_, labels) in zip(kinds, both, strict=True):
        _, p, t = labels.shape
        place = (start + np.arange(p))[:, None] * length + length - t + np.arange(t)
        arrays = np.broadcast_to(place, labels.shape).copy(), np.maximum(labels, 0), labels >= 0
        found[kind] = Responses(*(torch.from_numpy(array).to(where) for array in arrays))
        start += p
    return Scene(inputs, found, data.language.sizes.classes, models.flat[:1, :1])


def probe(models: Models, of: Scene, /, *, variables: bool = True) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    """(variables by name (S, kind, P), logits (S, N·T, V) in float64) of all kinds of a scene."""
    z = _logits(models, of).double().flatten(1, 2)
    return _measured(z, of) if variables else {}, z


@dataclass(frozen=True)
class Run:
    """What one stage gave: the models after it, and what was measured on the way.

    values: variable → (evaluation, S, kind, P); loss (evaluation, S); reference: log π_ref (S, kind, P). memory: of the
    optimiser. extra: further columns (evaluation, S) whose names begin with train_ or eval_.
    """

    data: Texts
    models: Models
    memory: Memory
    steps: tuple[int, ...]
    kinds: tuple[str, ...]
    values: dict[str, np.ndarray]
    loss: np.ndarray
    reference: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    def value(self, variable: str, kind: str, /) -> np.ndarray:
        """One variable of one kind, (evaluation, S, P)."""
        if kind not in self.kinds or variable not in self.values:
            there = f"{', '.join(self.values) or 'nothing'} of {', '.join(self.kinds)}"
            raise BadInput(f"value: expected one of {there}, got {variable!r} of {kind!r}; name it in kinds=")
        return self.values[variable][:, :, self.kinds.index(kind)]

    def table(self, stage: str, arm: str, /, *, members: Sequence[int] | None = None, **attrs: Any) -> xr.Dataset:
        """The Trajectory of these members (all by default), which must be of different seeds."""
        at = list(range(len(self.models))) if members is None else list(members)
        columns = {name: np.moveaxis(value[:, at], 0, 1) for name, value in self.values.items()}
        texts = [self.data.texts[kind] for kind in self.kinds]
        columns["n_tokens"] = np.stack([(text >= 0).sum(-1)[at] for text in texts], axis=1).astype(float)
        columns["ref_logp"] = self.reference[at]
        columns["loss"] = self.loss[:, at].T
        columns |= {name: value[:, at].T for name, value in self.extra.items()}
        return trajectory(
            columns,
            step=self.steps,
            probe=self.kinds,
            example=[f"prompt {i}" for i in range(self.reference.shape[-1])],
            seed=[self.models.seeds[i] for i in at],
            world="tiny",
            stage=stage,
            arm=arm,
            attrs={"vocab_size": self.models.shape.classes, **self.data.attrs, **attrs},
        )


def train(
    models: Models,
    data: Texts,
    objective: Any,
    /,
    *,
    lr: Any,
    steps: int,
    optimizer: Optimizer | None = None,
    memory: Memory | None = None,
    reference: Models | None = None,
    chosen: str | None = "chosen",
    rejected: str | None = None,
    anchor: str | None = None,
    advantages: Mapping[str, Any] | None = None,
    groups: Any = None,
    layers: str = "all",
    centre: Centre | None = None,
    batch: int | None = None,
    until: Any = None,
    warmup: int = 0,
    done: int = 0,
    at: Iterable[int] | None = None,
    kinds: Sequence[str] | None = None,
) -> Run:
    """Train models on the mean of `objective` over the rows of their data, and measure on the way.

    Args:
        models, data: member by member; see `Models.take` and `Texts.take` for conditions that share a seed.
        objective: of `toyld.objectives` (its docstring says how to register one of your own); a parameter may be an
            array (S,), one value a member.
        lr: η, a number or one a member (S,).
        steps: updates.
        optimizer: plain descent by default; RMSprop is the paper's. memory: what it remembers, fresh by default.
        reference: π_ref and π_old; by default the models as they come in.
        chosen, rejected, anchor: kinds of the sides; None = the objective reads no such side.
        advantages: side → (P,), (S, P) or (S, P, T). groups: (P,) or (S, P), what GRPO compares within.
        layers: "all", or "head": the hidden states stay as they are.
        centre: weights of linear layers learn from centred inputs (K6).
        batch: rows an update; all by default. Each pass has an order of its own, and leaves out what does not fill a
            batch at its end.
        until: a member whose mean loss has come down to this stays as it is then.
        warmup: updates over which the rate rises linearly to its full size; RMSprop's first ones are large without.
        done: updates of this stage that the models have behind them already; then memory and reference are its own.
        at: updates (of this call) after which to measure; by default the first and the last.
        kinds: what to measure; by default everything.

    Raises:
        BadInput: models and data of different seeds or sizes, a kind or a side that is not there, numbers that are not
            one or one a member, the memory of another optimiser.

    >>> from toyld import objectives
    >>> from toyld.tiny import Shape, Sizes, ask, draw, start
    >>> data = ask(draw(Sizes(), range(2)), prompts=4)
    >>> run = train(start(Shape(39, 8), range(2)), data, objectives.get("sft"), lr=0.02, steps=9)
    >>> bool((run.value("logp", "chosen")[-1].mean(-1) > run.value("logp", "chosen")[0].mean(-1)).all())
    True
    """
    if layers not in ("all", "head"):
        raise BadInput(f"layers: expected all or head, got {layers!r}; correct it")
    if not isinstance(optimizer, Optimizer | None):
        raise BadInput(f"optimizer: expected an Optimizer, got {optimizer!r}; write tiny.Optimizer(NAME)")
    rule = Optimizer() if optimizer is None else optimizer
    marks, kinds = marked(at, steps), tuple(data.texts) if kinds is None else tuple(kinds)
    sides = {side: kind for side, kind in {"chosen": chosen, "rejected": rejected, "anchor": anchor}.items() if kind}
    rows_of, shown = scene(data, tuple(dict.fromkeys(sides.values())), models), scene(data, kinds, models)
    check_stage(rows_of, objective, {"lr": lr, "until": until})
    anew = models if reference is None else reference
    anew.check(data.language)
    before = _logits(anew, rows_of).flatten(1, 2)
    rows = Rows(rows_of, objective, sides, before, advantages=advantages, groups=groups)
    ref = probe(anew, shown)[0].get("logp", np.zeros((len(models), 0, 0)))
    flat = models.flat.clone()
    memory = rule.resumed(flat, memory)
    eta = torch.as_tensor(lr, dtype=flat.dtype, device=flat.device) + flat.new_zeros(len(models))
    goal = None if until is None else torch.as_tensor(until, dtype=flat.dtype, device=flat.device)
    order = _Order(models.seeds, rows.number, batch)
    frozen = models.hidden(rows_of.inputs) if layers == "head" else None
    part = flat if frozen is None else flat[:, models.shape.head :]  # views: what trains, and what is remembered of it
    past = {name: value[:, -part.shape[1] :] if value.ndim == 2 else value for name, value in memory.items()}
    own = shown.rows(rows_of.responses) if set(rows_of.responses) <= set(kinds) else None
    now, found = models, []
    for step in range(steps + 1):
        now = replace(models, flat=flat)
        if step in marks:
            z = _logits(now, shown)
            loss = rows.loss((_logits(now, rows_of) if own is None else z[:, own]).flatten(1, 2))
            found.append((_measured(z.double().flatten(1, 2), shown), loss.double().cpu().numpy()))
        if step == steps:
            break
        picked = order.of(done + step)
        g, loss = _gradient(now, rows_of, rows, picked, frozen=frozen, centre=centre, goal=goal is not None)
        if goal is not None and loss is not None:
            eta = torch.where(loss <= goal, 0.0, eta)
        rise = min(1.0, (done + step + 1) / warmup) if warmup else 1.0
        rule.step(part, g, past, rise * eta[:, None])
    names = list(found[0][0]) if found else []
    return Run(
        data,
        replace(models, flat=flat),
        memory,
        tuple(marks),
        kinds,
        {name: np.stack([values[name] for values, _ in found]) for name in names},
        np.stack([loss for _, loss in found]) if found else np.zeros((0, len(models))),
        ref,
    )


def _logits(models: Models, of: Scene) -> torch.Tensor:
    with torch.no_grad():
        return models.logits(of.inputs) if of.trained else of.like.new_zeros(*of.inputs.shape, of.classes)


def _measured(z: torch.Tensor, of: Scene) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in measure(z, of.responses, list(of.responses)).items()}


def _gradient(
    models: Models, of: Scene, rows: Rows, picked: np.ndarray | None, /, *, frozen: torch.Tensor | None,
    centre: Centre | None, goal: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """∂L/∂θ (S, P) of one update, of the head alone (S, …) with `frozen`; the mean loss (S,) before it for a goal."""
    flat, inputs = models.flat, of.inputs
    s, n, t = inputs.shape
    number, index = rows.number, None
    if picked is not None:  # rows of all sides of the pairs that were drawn; the others stay 0 and get no residual
        sides = np.arange(n // number)[None, :, None] * number
        index = torch.from_numpy((sides + picked[:, None]).reshape(s, -1)).to(inputs.device)
        inputs = inputs.gather(1, index[..., None].expand(-1, -1, t))
    mask = None
    if centre is not None:
        mask = _read(of, index)
    if frozen is None:
        leaf = flat.detach().requires_grad_()
        z = models.logits(inputs, leaf, centre=centre, mask=mask)
    else:
        leaf = flat[:, models.shape.head :].detach().requires_grad_()
        z = models.read_out(leaf, frozen if index is None else _gathered(frozen, index), centre=centre, mask=mask)
    whole = (z.detach() if index is None else _scattered(z.detach(), index, n)).flatten(1, 2)
    read, loss = rows.read(whole), None
    if goal:  # the loss of all rows; of a part it would stop a member whose draw is easy
        loss = rows.loss(whole, read=read) if index is None else rows.loss(_logits(models, of).flatten(1, 2))
    r = rows.residual(whole, order=picked, read=read).view(s, n, t, -1)
    r = r if index is None else _gathered(r, index)
    (g,) = torch.autograd.grad(z, leaf, r)
    return g, loss


def _read(of: Scene, index: torch.Tensor | None) -> torch.Tensor:
    """(S, N, T): true at the positions whose logits some response reads."""
    s, n, t = of.inputs.shape
    found = torch.zeros(s, n * t, dtype=torch.bool, device=of.inputs.device)
    for r in of.responses.values():
        found.scatter_(1, r.context.flatten(1), r.mask.flatten(1))  # no two rows share a position
    whole = found.view(s, n, t)
    return whole if index is None else _gathered(whole[..., None], index)[..., 0]


def _gathered(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values (S, N, T, k) at rows (S, m)."""
    return values.gather(1, index[..., None, None].expand(-1, -1, *values.shape[2:]))


def _scattered(values: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
    """(S, rows, T, k) with values (S, m, T, k) at rows (S, m), 0 elsewhere."""
    s, _, t, k = values.shape
    out = values.new_zeros(s, rows, t, k)
    return out.scatter_(1, index[..., None, None].expand_as(values), values)


class _Order:
    """Which rows (S, m) an update sees: passes over P rows, each in an order drawn from its seed and number."""

    def __init__(self, seeds: Sequence[int], rows: int, batch: int | None) -> None:
        if batch is not None and not 0 < batch <= rows:
            msg = f"batch: expected 1 to {rows} rows, got {batch}; or leave it out for all of them"
            raise BadInput(msg)
        self.seeds, self.rows, self.batch = seeds, rows, batch
        self._drawn: tuple[int, np.ndarray] = (-1, np.zeros(0))

    def of(self, update: int) -> np.ndarray | None:
        if self.batch is None or self.batch == self.rows:
            return None
        a_pass, k = divmod(update, self.rows // self.batch)
        if self._drawn[0] != a_pass:
            rngs = [np.random.default_rng([seed, a_pass, ORDER]) for seed in self.seeds]
            self._drawn = a_pass, np.stack([rng.permutation(self.rows) for rng in rngs])
        return self._drawn[1][:, k * self.batch : (k + 1) * self.batch]
