"""What is wrong with a run before its first update, in lines that say what to do while it can still be done.

Nothing here changes a trainer: its loss on a real batch is taken in eval mode, beside its running metrics.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from toyld import objectives
from toyld.diagnosis import Verdict
from toyld.diagnosis.thresholds import DEFAULT
from toyld.llm import policy
from toyld.llm.cells import Cells
from toyld.llm.encode import Encoded
from toyld.probes import ProbeSet

__all__ = ["Loss", "check_loss", "faults", "reference"]

LOOKED = 1000  # rows of a data set whose lengths and tokens are looked at
PAIRS = 4  # of the batch whose loss is taken


def faults(trainer: Any, probes: ProbeSet, cells: Cells, /) -> Iterator[str]:
    """One line for each thing that keeps the run from learning, or the probes from measuring what it learns."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    args, own = trainer.args, getattr(trainer, "ref_model", None)
    if not trained:
        yield "nothing trains: no parameter requires a gradient; load the adapter with is_trainable=True, or unfreeze"
    if float(args.learning_rate) == 0:
        yield "nothing trains: the learning rate is 0; set learning_rate"
    if policy.stage(trainer) == "dpo" and float(args.beta) == 0 and "sft" not in args.loss_type:
        yield "nothing trains: beta is 0, so the loss does not depend on the policy; set beta, 0.1 for one"
    if own is not None and {id(p) for p in trained} & {id(p) for p in own.parameters()}:
        yield (
            "the reference trains along with the policy: ref_model holds the same parameters, so rewards stay 0; "
            "load it a second time (get_peft_model puts its adapter into the very model that it is given)"
        )
    if getattr(args, "sync_ref_model", False):
        yield "sync_ref_model moves the reference as training goes on: ref_logp here is that of the beginning"
    if (p := _dropout(trainer)) > 0:
        yield (
            f"the reference draws dropout of {p:g}, so its log-probabilities are random numbers; "
            "set disable_dropout=True in the DPOConfig, or call ref_model.eval()"
        )
    yield from _cut(trainer)
    yield from _other_tokens(trainer, probes, cells)


def _dropout(trainer: Any) -> float:
    """The largest dropout that the reference will draw while the policy trains; 0 where it has none."""
    own, model = getattr(trainer, "ref_model", None), policy.bare(trainer)
    if own is None and (policy.stage(trainer) not in ("dpo", "kto") or not getattr(model, "peft_config", None)):
        return 0.0
    found = 0.0
    for name, layer in (model if own is None else own).named_modules():
        if own is None and "lora_dropout" in name:  # off with the adapter
            continue
        if own is None or layer.training:
            names = ("p",) if "dropout" in type(layer).__name__.lower() else ("attention_dropout", "attn_dropout")
            values = [getattr(layer, n, 0.0) for n in names]
            found = max([found, *(float(v) for v in values if isinstance(v, int | float))])
    return found


# What it trains on


class _Row(NamedTuple):
    """A response as the trainer has it: whole, and what max_length leaves of it."""

    ids: list[int]
    start: int
    kept: list[int]
    kept_start: int


def _datasets(trainer: Any) -> Iterator[Any]:
    """Those with rows by number, held-out ones first: probes are mostly theirs."""
    evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
    for data in (*evaluated.values(), trainer.train_dataset):
        if hasattr(data, "column_names") and hasattr(data, "select"):
            yield data


def _rows(trainer: Any, data: Any) -> Iterator[tuple[Any, Any, _Row]]:
    """(prompt, response, tokens) of TRL's prepared rows; nothing where the columns are others."""
    longest, side = getattr(trainer.args, "max_length", None), getattr(trainer.args, "truncation_mode", "keep_start")
    columns, cut = set(data.column_names), getattr(trainer.data_collator, "cut", None)

    def left(ids: list[int], start: int) -> _Row:
        if cut is not None:  # a collator of ours cuts as the probes are cut
            kept = cut(ids, start)
            return _Row(ids, start, list(kept.ids), kept.start)
        first = max(0, len(ids) - longest) if longest and side == "keep_end" else 0
        return _Row(ids, start, ids[first : first + (longest or len(ids))], start - first)

    for row in data.select(range(min(LOOKED, len(data)))):
        if {"prompt_ids", "chosen_ids", "rejected_ids"} <= columns:
            for kind in ("chosen", "rejected"):
                ids = [*row["prompt_ids"], *row[f"{kind}_ids"]]
                yield row.get("prompt"), row.get(kind), left(ids, len(row["prompt_ids"]))
        elif {"prompt", "completion", "input_ids", "labels"} <= columns:
            ids = row["input_ids"]
            start = next((i for i, label in enumerate(row["labels"]) if label != -100), len(ids))
            yield row["prompt"], row["completion"], _Row(ids, start, ids, start) if cut is None else left(ids, start)
        else:
            return


def _cut(trainer: Any) -> Iterator[str]:
    data = trainer.train_dataset
    if not hasattr(data, "select"):
        return
    rows = [row for _, _, row in _rows(trainer, data)]
    eaten = sum(row.kept_start >= len(row.kept) for row in rows)
    cut = sum(len(row.kept) - max(row.kept_start, 0) < len(row.ids) - row.start for row in rows)
    longest = getattr(trainer.data_collator, "longest", getattr(trainer.args, "max_length", None))
    where = f"of the first {len(rows)} responses at max_length={longest}" if eaten or cut else ""
    if eaten:
        yield f"truncation leaves nothing of {eaten} {where}: they teach nothing; raise max_length"
    if cut > eaten:
        yield f"truncation cuts {cut - eaten} {where}; without its end a response teaches no EOS"


def _key(text: Any, eos: str) -> str:
    """Of a prompt or a response, as text or as messages."""
    if isinstance(text, list | tuple):
        return json.dumps([[m.get("role"), m.get("content")] for m in text])
    return str(text).removesuffix(eos)


def _other_tokens(trainer: Any, probes: ProbeSet, cells: Cells) -> Iterator[str]:
    """Where a probe is among the trainer's own rows and has other tokens there."""
    eos = getattr(policy.tokenizer(trainer), "eos_token", None) or ""
    theirs: dict[tuple[str, str], _Row] = {}
    for data in _datasets(trainer):
        for prompt, response, row in _rows(trainer, data):
            theirs.setdefault((_key(prompt, ""), _key(response, eos)), row)
    found, differ = 0, []
    for one, mine in zip(probes.items(), cells.items, strict=True):
        if one.kind not in ("chosen", "rejected") or not theirs:
            continue
        if one.messages is None:
            key = (one.prompt, one.response.removesuffix(eos))
        else:
            key = (_key(one.messages, ""), _key([{"role": "assistant", "content": one.response}], ""))
        there = theirs.get(key)
        if there is None:
            continue
        found += 1
        if (list(mine.ids), mine.start) != (there.kept, there.kept_start):
            differ.append(f"{one.kind} of example {one.example}: {_difference(mine, there)}")
    if differ:
        yield f"{len(differ)} of {found} probes found in the trainer's data have other tokens there, {differ[0]}"


def _difference(mine: Encoded, row: _Row) -> str:
    ids = list(mine.ids)
    if ids == row.kept:
        return f"the response begins at token {mine.start} here and at {row.kept_start} there"
    if ids[:-1] == row.kept and not mine.cut:
        return "EOS is scored here and not trained there; pass eos=False"
    if row.kept[:-1] == ids:
        return "EOS is trained there and not scored here; pass eos=True"
    if mine.cut or len(row.kept) < len(row.ids):
        return f"cut to {len(ids)} tokens here and to {len(row.kept)} there; raise max_length, or probe shorter ones"
    at = next((i for i, (a, b) in enumerate(zip(ids, row.kept, strict=False)) if a != b), min(len(ids), len(row.kept)))
    return f"from token {at} on; is it the same tokenizer with the same chat template?"


# Its reference


def reference(trainer: Any, table: xr.Dataset, found: Verdict, noise: float, /) -> tuple[list[str], str]:
    """What policy and reference are to each other before the first update; and why the reference is wrong, or "".

    A loss alone does not make it so, since it may have another cause, unless nothing else tells of the reference.
    """
    loss, texts, told = check_loss(trainer, noise), [], []
    if "ref_logp" in table:
        off = np.abs(table.logp.values[0, 0] - table.ref_logp.values[0]) / table.n_tokens.values[0]
        told.append(f"policy and reference differ by at most {np.nanmax(off):.1e} nats/token")
    else:
        told.append("no reference model")
    if isinstance(loss, Loss):
        against = (
            f"({loss.constant:.4g} at equal policies)" if loss.same else f"not {loss.constant:.4g}, as at equal ones"
        )
        told.append(f"loss {loss.value:.4g} {against}")
    if found.verdict == "wrong-reference":
        texts += [f["text"] for f in found.findings if f["code"] == "reference-suspect"]
    if isinstance(loss, Loss) and not loss.same and (texts or "ref_logp" not in table):
        texts.append(f"the loss is {loss.value:.4g}, not {loss.constant:.4g}, as at equal policies")
    return told, "; ".join([*texts, policy.remedy(trainer)]) if texts else ""


# Its loss


class Loss(NamedTuple):
    """The trainer's loss on its first pairs, what equal policies give, and whether the two are the same."""

    value: float
    constant: float
    same: bool


def check_loss(trainer: Any, noise: float, /) -> Loss | str:
    """The loss of a DPOTrainer before the first update beside that of its objective at equal policies; or why not.

    −log σ(0) = ln 2 for DPO. The same: apart by less than a hundredth, or than what `noise` (nats a token, of
    either policy) moves the loss by to first order.
    """
    args, data = trainer.args, trainer.train_dataset
    if policy.stage(trainer) != "dpo":
        return "its loss has no constant"
    if not type(trainer)._compute_loss.__module__.startswith("trl."):
        return f"{type(trainer).__name__} has a loss of its own"
    if getattr(trainer, "use_weighting", False) or getattr(trainer, "aux_loss_enabled", False):
        return "weights or an auxiliary loss enter its loss"
    if not hasattr(data, "select") or "chosen_ids" not in data.column_names:
        return "its data cannot be read twice"
    rows = [data[i] for i in range(min(PAIRS, len(data)))]
    tokens = [row for _, _, row in islice(_rows(trainer, data), 2 * len(rows))]
    if any(row.kept_start >= len(row.kept) or row.kept_start < 1 for row in tokens):
        return "truncation leaves nothing of its first responses"
    items = [Encoded(tuple(row.kept), row.kept_start) for row in tokens]
    with policy.untouched(trainer):
        scores = policy.score(trainer, items, [i // 2 for i in range(len(items))])
        value, rounding = _loss(trainer, rows)
    objective, batch = _objective(args), _equal(scores.logp, scores.n_tokens)
    constant = float(np.mean(objective.loss(batch)))
    push = objective.push(batch)
    shake = sum(np.abs(side).sum() for side in (push.chosen, push.rejected) if side is not None) / len(rows) * noise
    apart = max(DEFAULT.material * abs(constant), DEFAULT.difference * float(shake), rounding * abs(constant))
    return Loss(value, constant, bool(abs(value - constant) <= apart))


def _loss(trainer: Any, rows: list[Mapping[str, Any]]) -> tuple[float, float]:
    """The trainer's loss of these rows and the rounding of its dtype, beside its running metrics."""
    import torch

    model = trainer.model_wrapped if policy.sharded(trainer) else trainer.model
    kept, trainer._metrics = trainer._metrics, {"train": defaultdict(list), "eval": defaultdict(list)}
    try:
        with trainer.compute_loss_context_manager():
            found = trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))
    finally:
        trainer._metrics = kept
    return float(found.detach()), float(torch.finfo(found.dtype).eps)


def _objective(args: Any) -> Any:
    """The loss of a DPOConfig as toyld has it: one, or a weighted sum."""
    parts = []
    for kind in args.loss_type:
        made = objectives.OBJECTIVES[f"trl.{kind}"]
        names = {f.name for f in fields(made)} & {"beta", "label_smoothing", "discopop_tau"}
        parts.append(made(**{name: getattr(args, name) for name in names}))
    weights = args.loss_weights or [1.0] * len(parts)
    return objectives.Mix(tuple(parts), tuple(float(w) for w in weights))


def _equal(logp: Any, count: Any) -> objectives.Batch:
    """Chosen and rejected in turn, (2B,), as a batch whose reference is the policy; a response's tokens count alike."""
    width = int(count.max())
    mask = np.arange(width) < count[:, None]
    tokens = np.where(mask, (logp / count)[:, None], 0.0)
    sides: dict[str, Any] = {}
    for k, side in enumerate(("chosen", "rejected")):
        sides |= {side: tokens[k::2], f"ref_{side}": tokens[k::2], f"{side}_mask": mask[k::2]}
    return objectives.Batch(**sides)
