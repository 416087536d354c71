"""Language models as Hugging Face stores and trains them: the same probes, in TRL's own trainers and afterwards.

    from toyld.llm import LearningDynamicsCallback, ProbeSet

`LearningDynamicsCallback` is loaded when it is asked for, and transformers with it; so are `Solved` and `accuracies`,
for samples of the policy's own answers (`toyld.llm.solved`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toyld.probes import ProbeSet

if TYPE_CHECKING:
    from toyld.llm.callback import LearningDynamicsCallback, WrongReference
    from toyld.llm.solved import Solved, accuracies

__all__ = ["LearningDynamicsCallback", "ProbeSet", "Solved", "WrongReference", "accuracies"]


def __getattr__(name: str) -> Any:
    if name in ("LearningDynamicsCallback", "WrongReference"):
        from toyld.llm import callback

        return getattr(callback, name)
    if name in ("Solved", "accuracies"):
        from toyld.llm import solved

        return getattr(solved, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
