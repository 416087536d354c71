"""Fine-tuning by all pairs at once in a plain loop: what TRL's trainers compute of equal batches, without their cost.

Each update sees every pair. Log-probabilities are taken at response tokens alone; with the head alone training, hidden
states are computed once. A test holds the losses and gradients to DPOTrainer's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from toyld.checked import BadInput
from toyld.llm.centred import padded
from toyld.llm.encode import Encoded
from toyld.objectives import Batch
from toyld.trajectory import trajectory

__all__ = ["Rows", "Run", "Texts", "table", "train"]

Floats = NDArray[np.float64]


class Rows(nn.Module):
    """A causal language model that gives logits (N, V) at the tokens before those that `labels` (not −100) name.

    layers: "all"; or "head": a copy of the head, of its own where it was tied, on hidden states that are kept.
    """

    def __init__(self, model: Any, layers: str = "all") -> None:
        super().__init__()
        self.layers = layers
        own = copy.deepcopy(model)
        self.body, self.head = own.base_model, own.get_output_embeddings()
        self._whole = (own,)  # in a tuple: not a part of this one
        if layers == "head":
            self.head = copy.deepcopy(self.head)
            self.body.requires_grad_(False)
        self._kept: dict[bytes, Tensor] = {}

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def whole(self) -> Any:
        """The model as Hugging Face has it, with these weights; not for a head of its own."""
        if self.layers == "head":
            raise BadInput("expected a model all of whose layers train, got one with a head of its own")
        return self._whole[0]

    def states(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Last hidden states (N, d) at the tokens that are read."""
        key = input_ids.numpy().tobytes() + labels.numpy().tobytes()
        if self.layers == "head" and key in self._kept:
            return self._kept[key]
        h = self.body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows = h[:, :-1][labels[:, 1:] != -100]
        if self.layers == "head":
            self._kept[key] = rows
        return rows

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """Logits (N, V)."""
        return self.head(self.states(input_ids, attention_mask, labels))


@dataclass(frozen=True)
class Texts:
    """Responses as padded tensors: what `Rows` takes, and where its rows go."""

    given: Mapping[str, Tensor]
    tokens: Tensor  # (N,)
    mask: Tensor  # (P, T)

    @classmethod
    def of(cls, encoded: Sequence[Encoded], /) -> Texts:
        """Of P responses of up to T tokens."""
        ids, there, read = padded(encoded)
        labels = torch.full_like(ids, -100)
        labels[:, 1:][read[:, :-1]] = ids[:, 1:][read[:, :-1]]
        counts = read.sum(1)
        mask = torch.arange(int(counts.max())) < counts[:, None]
        given = {"input_ids": ids, "attention_mask": there, "labels": labels}
        return cls(given, labels[labels != -100], mask)

    def logp(self, model: Rows, /) -> tuple[Tensor, Tensor]:
        """log π of each token and log max π there, (P, T), 0 behind the end."""
        z = model(**self.given)
        norm = z.logsumexp(-1)
        mine = z.gather(1, self.tokens[:, None])[:, 0] - norm
        top = z.detach().amax(1) - norm.detach()
        empty = torch.zeros(self.mask.shape, dtype=z.dtype)
        return empty.masked_scatter(self.mask, mine), empty.masked_scatter(self.mask, top)


@dataclass(frozen=True)
class Run:
    """values: variable → kind → (evaluation, response); loss: of the updates' objective, (evaluation,)."""

    steps: tuple[int, ...]
    values: Mapping[str, Mapping[str, Floats]]
    loss: Floats


def train(
    model: Rows,
    objective: Any,
    chosen: Sequence[Encoded],
    rejected: Sequence[Encoded] | None = None,
    /,
    *,
    optimizer: str,
    lr: float,
    steps: int,
    at: Sequence[int] = (),
    warmup: int = 0,
    probes: Mapping[str, Sequence[Encoded]] | None = None,
    until: float | None = None,
) -> Run:
    """Updates of `model`, in place, by an objective of `toyld.objectives`; the reference is the model as it comes.

    optimizer: "sgd" or "rmsprop" with torch's settings; warmup: updates over which the rate rises. at: when chosen,
    rejected and probes are measured. until: ends once the loss is as low.
    """
    sides = {"chosen": chosen} | ({} if rejected is None else {"rejected": rejected})
    both = Texts.of([one for side in sides.values() for one in side])
    others = {kind: Texts.of(encoded) for kind, encoded in (probes or {}).items()}
    part = [p for p in model.parameters() if p.requires_grad]
    rule: Any = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop}[optimizer](part, lr=lr)
    model.eval()  # nothing is dropped out, as in these models' configs
    seen: dict[str, dict[str, list[Floats]]] = {"logp": {}, "argmax_logp": {}}
    marks, losses, reference = [], [], None
    for step in range(steps + 1):
        last = step == steps
        with torch.set_grad_enabled(not last):
            mine, top = both.logp(model)
            if reference is None:
                reference = mine.detach()
            loss = objective.loss(_batch(mine, reference, both.mask, list(sides))).mean()
        now = float(loss.detach())
        done = until is not None and now <= until
        if step in at or ((done or last) and at):
            marks.append(step)
            losses.append(now)
            for name, x in (("logp", mine), ("argmax_logp", top)):
                for kind, values in zip(sides, x.detach().sum(1).split(len(chosen)), strict=True):
                    seen[name].setdefault(kind, []).append(values.double().numpy())
            for kind, texts in others.items():
                with torch.no_grad():
                    for name, x in zip(seen, texts.logp(model), strict=True):
                        seen[name].setdefault(kind, []).append(x.sum(1).double().numpy())
        if last or done:
            break
        rule.zero_grad()
        loss.backward()
        for group in rule.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup) if warmup else lr
        rule.step()
    values = {name: {kind: np.stack(x) for kind, x in kinds.items()} for name, kinds in seen.items()}
    return Run(tuple(marks), values, np.array(losses))


def _batch(mine: Tensor, reference: Tensor, mask: Tensor, sides: Sequence[str]) -> Batch:
    n = len(mine) // len(sides)
    fields: dict[str, Any] = {}
    for i, side in enumerate(sides):
        at = slice(i * n, (i + 1) * n)
        fields |= {side: mine[at], f"ref_{side}": reference[at], f"{side}_mask": mask[at].to(mine)}
    return Batch(**fields)


def table(runs: Mapping[int, Run], /, *, arm: str, stage: str = "dpo", **attrs: Any) -> xr.Dataset:
    """One table of runs of several seeds, evaluated at the same steps; those that ended sooner go on as NaN."""
    every = sorted({step for run in runs.values() for step in run.steps})
    kinds = list(next(iter(runs.values())).values["logp"])
    n = next(iter(next(iter(runs.values())).values["logp"].values())).shape[1]
    out = {name: np.full((len(runs), len(every), len(kinds), n), np.nan) for name in ("logp", "argmax_logp")}
    loss = np.full((len(runs), len(every)), np.nan)
    for s, run in enumerate(runs.values()):
        where = [every.index(step) for step in run.steps]
        loss[s, where] = run.loss
        for name, values in run.values.items():
            for k, kind in enumerate(kinds):
                out[name][s, where, k] = values[kind]
    examples = [str(i) for i in range(n)]
    return trajectory(
        {**out, "loss": loss}, step=every, probe=kinds, example=examples, seed=list(runs), world="llm", stage=stage,
        arm=arm, attrs=attrs,
    )  # fmt: skip
