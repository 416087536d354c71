"""What a callback must know of a trainer: its policy, its reference, its processes, and how to leave them as they were.

Trainers differ in where the reference is: a model of its own, the base model below an adapter, a second adapter named
"ref", or nowhere (SFT, or log-probabilities computed beforehand from the policy itself).
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from toyld.checked import BadInput
from toyld.llm.encode import Encoded
from toyld.llm.labels import evaluating
from toyld.llm.score import Scores, noise_floor, score_encoded

__all__ = [
    "bare", "everywhere", "is_main", "noise", "reference", "remedy", "score", "sharded", "stage", "tokenizer", "told",
    "untouched", "vocabulary",
]  # fmt: skip

T = TypeVar("T")
STAGES = ("dpo", "sft", "kto", "grpo", "rloo", "orpo", "cpo")


def stage(trainer: Any, /) -> str:
    """The stage by the class of the trainer or one that it is made from: dpo for a DPOTrainer, train for a Trainer."""
    names = [cls.__name__.lower() for cls in type(trainer).__mro__]
    return next((short for short in STAGES if f"{short}trainer" in names), "train")


def tokenizer(trainer: Any, /) -> Any:
    """The trainer's tokenizer, that of a processor where it has one."""
    found = getattr(trainer, "_tokenizer", None) or trainer.processing_class
    if found is None:
        raise BadInput(
            "expected a trainer with its tokenizer, got none; pass processing_class=tokenizer to the trainer"
        )
    return getattr(found, "tokenizer", found)


def vocabulary(trainer: Any, /) -> int:
    """The size of the vocabulary."""
    return int(trainer.model.config.get_text_config().vocab_size)


def told(trainer: Any, /) -> dict[str, Any]:
    """Objective, its parameters and the optimiser as the trainer's arguments say them."""
    args, parameters, name = trainer.args, {}, stage(trainer)
    if name == "dpo":
        kinds = args.loss_type if isinstance(args.loss_type, list) else [args.loss_type]
        name, parameters = "+".join(f"trl.{kind}" for kind in kinds), {"beta": float(args.beta)}
    optimizer = str(getattr(args.optim, "value", args.optim))
    rate = float(args.learning_rate)
    return {"objective": name, "parameters": parameters, "optimizer": optimizer, "learning_rate": rate}


# Processes


def is_main(trainer: Any, /) -> bool:
    """Whether this process writes and speaks."""
    return bool(trainer.accelerator.is_main_process)


def everywhere(trainer: Any, part: Callable[[], T], /) -> list[T]:
    """`part()` of every process in their order, on all of them; where one fails, all do, so that none waits."""
    if trainer.accelerator.num_processes == 1:
        return [part()]
    from accelerate.utils import gather_object

    mine: Any
    own: Exception | None = None
    try:
        mine = (part(), None)
    except Exception as error:  # a full disk, no memory: who waits for this process would wait for ever
        said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        own, mine = error, (None, said)
    found = gather_object([mine])
    if own is not None:
        raise own
    for _, refusal in found:
        if refusal is not None:
            raise BadInput(refusal)
    return [value for value, _ in found]


def sharded(trainer: Any, /) -> bool:
    """Whether no process holds all parameters (FSDP, ZeRO-3, tensor parallel): each forward then needs all of them."""
    plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    if getattr(trainer, "is_fsdp_enabled", False) or (plugin is not None and plugin.zero_stage == 3):
        return True
    return any(hasattr(p, "device_mesh") for p in trainer.model.parameters())


# Models


def bare(trainer: Any, /) -> Any:
    """The policy without the wrapper of DDP or the compiler."""
    return trainer.accelerator.unwrap_model(trainer.model)


def _callable(trainer: Any) -> Any:
    return trainer.model_wrapped if sharded(trainer) else bare(trainer)


@contextlib.contextmanager
def reference(trainer: Any, /) -> Iterator[Any]:
    """What to call for the reference while inside; None where the trainer has none of its own."""
    own, model = getattr(trainer, "ref_model", None), bare(trainer)
    adapters = getattr(model, "peft_config", None)
    if own is not None:
        yield own
    elif adapters and stage(trainer) in ("dpo", "kto"):
        from trl.trainer.utils import use_adapter

        with use_adapter(model, adapter_name="ref" if "ref" in adapters else None):
            yield _callable(trainer)
    else:
        yield None


def remedy(trainer: Any, /) -> str:
    """What to do about a wrong reference."""
    if getattr(bare(trainer), "peft_config", None):
        return "merge the adapter into its base before, or load it a second time as adapter 'ref'"
    return "pass ref_model= a copy of the policy as it is now (without it TRL loads the model anew from its path)"


@contextlib.contextmanager
def untouched(trainer: Any, /) -> Iterator[None]:
    """Policy and reference in eval mode and in the trainer's precision; afterwards all is as before.

    All: the mode of each layer, whether each parameter is trained, `use_cache`, the padding side, and every generator
    of random numbers, for an adapter may set the second, and a model may draw the last even in eval mode.
    """
    import torch

    models = [m for m in (trainer.model, getattr(trainer, "ref_model", None)) if isinstance(m, torch.nn.Module)]
    trained = [(p, p.requires_grad) for m in models for p in m.parameters()]
    settings = [(m.config, "use_cache") for m in models if hasattr(getattr(m, "config", None), "use_cache")]
    settings += [(t, "padding_side") for t in [tokenizer(trainer)] if hasattr(t, "padding_side")]
    were = [(thing, name, getattr(thing, name)) for thing, name in settings]
    python, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    device = trainer.accelerator.device
    with contextlib.ExitStack() as stack:
        devices = [device] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(trainer.accelerator.autocast())
        stack.enter_context(torch.no_grad())
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpys)  # noqa: NPY002
            for thing, name, value in were:
                setattr(thing, name, value)
            for parameter, value in trained:
                if parameter.requires_grad != value:
                    parameter.requires_grad_(value)


def score(
    trainer: Any,
    items: Sequence[Encoded],
    examples: Sequence[int],
    /,
    *,
    model: Any = None,
    batch_size: int = 8,
) -> Scores:
    """The scores of all items, the same on every process: examples are dealt to the processes in turn.

    The responses of one example stay together, for they share a prompt. `model`: the policy, or the reference. Where
    parameters are sharded every process scores everything.
    """
    model = _callable(trainer) if model is None else model
    many, mine = trainer.accelerator.num_processes, trainer.accelerator.process_index
    if many == 1 or sharded(trainer):
        return everywhere(trainer, lambda: score_encoded(model, items, batch_size=batch_size))[0]
    rows = [i for i, example in enumerate(examples) if example % many == mine]

    def part() -> tuple[list[int], dict[str, Any]]:
        return rows, vars(score_encoded(model, [items[i] for i in rows], batch_size=batch_size)) if rows else {}

    out = {name: np.zeros(len(items)) for name in Scores.__dataclass_fields__}
    for theirs, columns in everywhere(trainer, part):
        for name, column in columns.items():
            out[name][theirs] = column
    return Scores(**out)


def noise(trainer: Any, items: Sequence[Encoded], first: Scores, /, *, batch_size: int = 8) -> float:
    """`noise_floor` of the policy: the largest of all processes."""
    model = _callable(trainer)
    return max(everywhere(trainer, lambda: noise_floor(model, list(items), first, batch_size=batch_size)))
