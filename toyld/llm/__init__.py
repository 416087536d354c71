"""Language models as Hugging Face stores and trains them: the same probes, in TRL's own trainers and afterwards.

    from toyld.llm import LearningDynamicsCallback, ProbeSet

`LearningDynamicsCallback` is loaded when it is asked for, and transformers with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toyld.probes import ProbeSet

if TYPE_CHECKING:
    from toyld.llm.callback import LearningDynamicsCallback, WrongReference

__all__ = ["LearningDynamicsCallback", "ProbeSet", "WrongReference"]


def __getattr__(name: str) -> Any:
    if name in ("LearningDynamicsCallback", "WrongReference"):
        from toyld.llm import callback

        return getattr(callback, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
