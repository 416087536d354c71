"""TRL's trainers with a plan's settings, and one for the objectives that TRL does not have.

Where TRL has a loss (`dpo`, `trl.<loss_type>`) its own code computes it; any other objective of `toyld.objectives` on
pairs is computed from the same per-token log-probabilities, in the same trainer.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import disable_dropout_in_model

from toyld.llm.batches import Answers, PairsOfAnswers
from toyld.llm.plan import NATIVE, Plan, on_pairs
from toyld.objectives import Batch

__all__ = ["ObjectiveTrainer", "preferences", "supervised"]

OPTIMIZERS = {"adamw": "adamw_torch"}
SETTINGS = ("beta", "label_smoothing", "discopop_tau")  # of DPOConfig, that losses have as parameters
Rows = list[dict[str, Any]]


class ObjectiveTrainer(DPOTrainer):
    """DPOTrainer with an objective of `toyld.objectives` on pairs: mean of its loss over the rows of a batch.

    objective: to be set; sft_term: weight of the chosen answers' mean −log π a token, as TRL's list of losses adds it.
    """

    objective: Any = None
    sft_term: float = 0.0

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """As DPOTrainer's: loss, and the log-ratios and log-probabilities of both sides to the log."""
        mask = inputs["completion_mask"]
        asked = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        asked |= {"labels": inputs["input_ids"].masked_fill(mask == 0, -100), "fused_lm_head": True}
        reference: Any = self.ref_model
        outputs = model(**asked)
        with torch.no_grad():
            theirs = reference(**asked).log_probs
        told = _told(outputs.log_probs, theirs, mask[:, 1:])
        loss = self.objective.loss(told).mean()
        if self.sft_term:
            loss = loss - self.sft_term * told.total("chosen").sum() / told.length("chosen").sum()
        log = self._metrics["train" if model.training else "eval"]
        for side in ("chosen", "rejected"):
            for name, values in (("log_ratio", told.log_ratio(side)), ("logps", told.total(side))):
                log[f"{name}/{side}"].append(float(self.accelerator.gather(values.detach()).mean()))
        return (loss, outputs) if return_outputs else loss


def _told(mine: Any, reference: Any, mask: Any) -> Batch:
    """The chosen rows and the rejected ones behind them, (2B, T), as a batch of pairs."""
    sides: dict[str, Any] = {}
    for k, side in enumerate(("chosen", "rejected")):
        parts = [values.chunk(2)[k] for values in (mine, reference, mask.to(mine.dtype))]
        sides |= dict(zip((side, f"ref_{side}", f"{side}_mask"), parts, strict=True))
    return Batch(**sides)


def supervised(plan: Plan, model: Any, tokenizer: Any, rows: Rows, out: Path, /, **how: int) -> Any:
    """SFTTrainer on {"prompt", "completion"}: the loss is on the completion alone, dropout is off as in DPO.

    how: steps = updates, every = updates between two checkpoints.
    """
    disable_dropout_in_model(model)
    args = SFTConfig(**_common(plan, out, lr=plan.sft_lr, **how), completion_only_loss=True, packing=False)
    parts = _parts(plan, model, tokenizer, rows, Answers)
    return _quiet(SFTTrainer(args=args, **parts))


def preferences(plan: Plan, model: Any, reference: Any, tokenizer: Any, rows: Rows, out: Path, /, **how: int) -> Any:
    """DPOTrainer (or one with our objective) on {"prompt", "chosen", "rejected"}, the reference always given."""
    objective = on_pairs(plan.objective, **plan.parameters)
    native = plan.objective == "dpo" or plan.objective.startswith(NATIVE)
    options = _common(plan, out, lr=plan.lr, **how) | {"disable_dropout": True}
    parts = {**_parts(plan, model, tokenizer, rows, PairsOfAnswers), "ref_model": reference}
    if not native:
        ours = ObjectiveTrainer(args=DPOConfig(**options), **parts)
        ours.objective, ours.sft_term = objective, plan.sft_term
        return _quiet(ours)
    kind = "sigmoid" if plan.objective == "dpo" else plan.objective.removeprefix(NATIVE)
    options |= {name: value for name, value in asdict(objective).items() if name in SETTINGS}
    options |= {"loss_type": [kind]}
    if plan.sft_term:
        options |= {"loss_type": [kind, "sft"], "loss_weights": [1.0, plan.sft_term]}
    return _quiet(DPOTrainer(args=DPOConfig(**options), **parts))


def _parts(plan: Plan, model: Any, tokenizer: Any, rows: Rows, batches: Any) -> dict[str, Any]:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    collate = batches(plan.max_length, tokenizer.pad_token_id, tokenizer.bos_token_id)
    told = {"model": model, "processing_class": tokenizer, "peft_config": _lora(plan)}
    return {**told, "data_collator": collate, "train_dataset": Dataset.from_list(rows)}


def _common(plan: Plan, out: Path, *, lr: float, steps: int, every: int) -> dict[str, Any]:
    return {
        "output_dir": str(out), "max_steps": steps, "learning_rate": lr,
        "optim": OPTIMIZERS.get(plan.optimizer, plan.optimizer),
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": plan.warmup, "max_grad_norm": plan.clip,
        "per_device_train_batch_size": plan.batch // plan.processes, "gradient_accumulation_steps": plan.accumulation,
        "seed": plan.seed, "bf16": plan.bf16, "fp16": False, "weight_decay": 0.0,
        "max_length": None,  # the batches cut
        "gradient_checkpointing": plan.checkpointing, "use_cpu": plan.device == "cpu",
        "dataloader_pin_memory": plan.device != "cpu", "report_to": "none", "eval_strategy": "no",
        "save_strategy": "steps", "save_steps": every, "save_total_limit": 2,
        "logging_steps": every, "logging_nan_inf_filter": False, "disable_tqdm": True, "log_level": "error",
        "log_level_replica": "error",
    }  # fmt: skip


def _quiet(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)  # which prints every log to standard output
    return trainer


def _lora(plan: Plan) -> Any:
    if plan.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(r=plan.lora, lora_alpha=2 * plan.lora, target_modules="all-linear", task_type="CAUSAL_LM")
