"""What a callback must know of a trainer: its policy, its reference, its processes, and what it trains on.

Trainers differ in where the reference is: a model of its own, the base model below an adapter, a second adapter named
"ref", or nowhere (SFT, or log-probabilities computed beforehand from the policy itself).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toyld.llm.encode import Encoded
from toyld.llm.score import Scores, noise_floor, score_encoded

__all__ = ["is_main", "noise", "reference", "remedy", "score", "stage", "tokenizer", "told", "vocabulary", "wait"]


def stage(trainer: Any, /) -> str:
    """The stage by the trainer's class: dpo, sft, or train."""
    names = [cls.__name__.lower() for cls in type(trainer).__mro__]
    return next((short for short in ("dpo", "sft") if f"{short}trainer" in names), "train")


def tokenizer(trainer: Any, /) -> Any:
    """The trainer's tokenizer, that of a processor where it has one."""
    found = getattr(trainer, "_tokenizer", None) or trainer.processing_class
    return getattr(found, "tokenizer", found)


def vocabulary(trainer: Any, /) -> int:
    """The size of the vocabulary."""
    return int(trainer.model.config.get_text_config().vocab_size)


def is_main(trainer: Any, /) -> bool:
    """Whether this process writes and speaks."""
    return bool(trainer.accelerator.is_main_process)


def wait(trainer: Any, /) -> None:
    """Until all processes are here."""
    trainer.accelerator.wait_for_everyone()


def told(trainer: Any, /) -> dict[str, Any]:
    """Objective, its parameters and the optimiser as the trainer's arguments say them."""
    args = trainer.args
    kinds = getattr(args, "loss_type", None)
    kinds = kinds if isinstance(kinds, list) else [kinds]
    name = "+".join(f"trl.{kind}" for kind in kinds if kind) if stage(trainer) == "dpo" else stage(trainer)
    beta = {"beta": float(args.beta)} if stage(trainer) == "dpo" else {}
    optimizer = str(getattr(args.optim, "value", args.optim))
    return {"objective": name, "parameters": beta, "optimizer": optimizer, "learning_rate": float(args.learning_rate)}


@contextlib.contextmanager
def reference(trainer: Any, /) -> Iterator[Any]:
    """The reference model while inside; None where the trainer has none of its own."""
    own = getattr(trainer, "ref_model", None)
    adapters = getattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config", None)
    if own is not None:
        yield own
    elif adapters and stage(trainer) == "dpo":
        from trl.trainer.utils import use_adapter

        model = trainer.accelerator.unwrap_model(trainer.model)
        with use_adapter(model, adapter_name="ref" if "ref" in adapters else None):
            yield model
    else:
        yield None


def remedy(trainer: Any, /) -> str:
    """What to do about a wrong reference."""
    if getattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config", None):
        return "merge the adapter into its base first, or load it a second time as adapter 'ref'"
    return "pass ref_model= a copy of the policy as it is now (without it TRL loads the model's path anew)"


def score(trainer: Any, items: Sequence[Encoded], /, *, model: Any = None, batch_size: int = 8) -> Scores:
    """The scores of all items, shared among the processes by example; the same on every one of them.

    Where parameters are sharded (FSDP, ZeRO-3) every process scores everything: each forward needs all of them.
    """
    own = trainer.accelerator.unwrap_model(trainer.model) if model is None else model
    many, mine = trainer.accelerator.num_processes, trainer.accelerator.process_index
    if many == 1:
        return score_encoded(own, items, batch_size=batch_size)
    if sharded(trainer):
        return score_encoded(trainer.model_wrapped if model is None else model, items, batch_size=batch_size)
    from accelerate.utils import gather_object

    rows = list(range(mine, len(items), many))
    part = score_encoded(own, [items[i] for i in rows], batch_size=batch_size) if rows else None
    columns = {} if part is None else vars(part)
    parts = gather_object([(rows, columns)])
    out = {name: np.zeros(len(items)) for name in Scores.__dataclass_fields__}
    for theirs, values in parts:
        for name, column in values.items():
            out[name][theirs] = column
    return Scores(**out)


def sharded(trainer: Any, /) -> bool:
    """Whether one process does not hold all parameters."""
    return bool(getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False))


def noise(trainer: Any, items: Sequence[Encoded], first: Scores, /, *, batch_size: int = 8) -> float:
    """`noise_floor` of the policy."""
    model = trainer.model_wrapped if sharded(trainer) else trainer.accelerator.unwrap_model(trainer.model)
    return noise_floor(model, list(items), first, batch_size=batch_size)
