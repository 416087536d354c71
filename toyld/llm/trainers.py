"""TRL's trainers with our plan's settings, and one for the objectives that TRL does not have.

Where TRL has a loss (`dpo`, `trl.<loss_type>`) its own code computes it; any other objective of `toyld.objectives` on
pairs is computed from the same per-token log-probabilities, in the same trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from toyld import objectives
from toyld.llm.plan import Plan
from toyld.objectives import Batch

__all__ = ["ObjectiveTrainer", "preferences", "supervised"]

NATIVE = "trl."
Rows = list[dict[str, Any]]


class ObjectiveTrainer(DPOTrainer):
    """DPOTrainer with an objective of `toyld.objectives` on pairs: mean of its loss over the rows of a batch."""

    objective: Any = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As DPOTrainer's, from the same per-token log-probabilities."""
        import torch

        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        names = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        outputs = model(**names, labels=labels, fused_lm_head=True)
        with torch.no_grad():
            reference = self.ref_model(**names, labels=labels, fused_lm_head=True).log_probs
        sides = zip(outputs.log_probs.chunk(2), reference.chunk(2), mask[:, 1:].chunk(2), strict=True)
        batch: dict[str, Any] = {}
        for side, (mine, theirs, which) in zip(("chosen", "rejected"), sides, strict=True):
            batch |= {side: mine, f"ref_{side}": theirs, f"{side}_mask": which.to(mine.dtype)}
        told = Batch(**batch)
        loss = self.objective.loss(told).mean()
        mode = "train" if model.training else "eval"
        for side in ("chosen", "rejected"):
            ratio = told.log_ratio(side).detach().mean()
            self._metrics[mode][f"log_ratio/{side}"].append(float(self.accelerator.gather(ratio).mean()))
        return (loss, outputs) if return_outputs else loss


def _common(plan: Plan, out: Path, *, lr: float, steps: int, save: int, processes: int = 1) -> dict[str, Any]:
    if plan.batch % processes:
        from toyld.checked import BadInput

        raise BadInput(f"--batch: expected a multiple of the {processes} processes, got {plan.batch}")
    return {
        "output_dir": str(out), "max_steps": steps, "learning_rate": lr,
        "optim": _OPTIMIZERS.get(plan.optimizer, plan.optimizer),
        "lr_scheduler_type": "constant_with_warmup", "warmup_steps": plan.warmup, "max_grad_norm": plan.clip,
        "per_device_train_batch_size": plan.batch // processes, "gradient_accumulation_steps": plan.accumulation,
        "seed": plan.seed, "max_length": plan.max_length, "bf16": False, "fp16": False, "weight_decay": 0.0,
        "gradient_checkpointing": plan.checkpointing, "use_cpu": plan.device == "cpu", "report_to": "none",
        "save_strategy": "steps", "save_steps": save, "save_total_limit": 2, "logging_steps": max(1, save // 2),
        "eval_strategy": "no", "disable_tqdm": True, "log_level": "error",
    }  # fmt: skip


_OPTIMIZERS = {"adamw": "adamw_torch"}


def supervised(
    plan: Plan,
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    out: Path,
    /,
    **how: int,
) -> Any:
    """SFTTrainer on {"prompt", "completion"}: the loss is on the completion alone."""
    options = _common(plan, out, lr=plan.sft_lr, **how)
    args = SFTConfig(**options, completion_only_loss=True, packing=False)
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=_lora(plan),
    )


def preferences(
    plan: Plan,
    model: Any,
    reference: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    out: Path,
    /,
    **how: int,
) -> Any:
    """DPOTrainer (or one with our objective) on {"prompt", "chosen", "rejected"}, the reference always given."""
    options = _common(plan, out, lr=plan.lr, **how)
    name = "trl.sigmoid" if plan.objective == "dpo" else plan.objective
    native = name.startswith(NATIVE)
    if native:
        options |= {"loss_type": [name.removeprefix(NATIVE)], **dict(plan.parameters)}
    trainer = (DPOTrainer if native else ObjectiveTrainer)(
        model=model, ref_model=reference, args=DPOConfig(**options), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, peft_config=_lora(plan),
    )  # fmt: skip
    if not native:
        trainer.objective = objectives.get(plan.objective, **plan.parameters)
    return trainer


def _lora(plan: Plan) -> Any:
    if plan.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(r=plan.lora, lora_alpha=2 * plan.lora, target_modules="all-linear", task_type="CAUSAL_LM")
