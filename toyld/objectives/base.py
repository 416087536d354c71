"""What an objective is: loss, push, and the registry that finds every one by name.

A *sequence* objective is a loss f(ℓ_+, ℓ_−) of summed log-probabilities; its push is constant along the response and
equals c_± = −∂f/∂ℓ_±. A *token* objective gives every token its own push. A *target* objective has a
target distribution instead of a label and gives a residual (`toyld.objectives.target`).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from .batch import Batch, ObjectiveError, Push

__all__ = [
    "OBJECTIVES",
    "MarginObjective",
    "Objective",
    "SequenceObjective",
    "UnknownObjectiveError",
    "get",
    "register",
]

Array = Any
Kind = Literal["sequence", "token", "target"]


class UnknownObjectiveError(ObjectiveError):
    """No objective of that name, or no such parameter."""


@dataclass(frozen=True)
class Objective(ABC):
    """A fine-tuning loss and its push. Parameters are the fields of the (frozen) dataclass.

    `name` is the registry's key; `source` the paper and equation. Training minimises the mean of `loss` over rows;
    `push` belongs to the *sum* over rows, so the gradient of the mean is −push/B.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    kind: ClassVar[Kind]

    @abstractmethod
    def loss(self, batch: Batch, /) -> Array:
        """Loss of each row, (B,)."""

    @abstractmethod
    def push(self, batch: Batch, /) -> Push:
        """−∂(Σ_b loss_b)/∂log π_t on every side of the batch, (B, T) each; 0 on masked positions, > 0 pulls up."""


@dataclass(frozen=True)
class SequenceObjective(Objective):
    """f(ℓ_+, ℓ_−): one coefficient per response.

    On one softmax the residual of coefficient c on label y is G = c (π − e_y) and one step of size s is
    z' = z − s G: c > 0 pulls y up, c < 0 is a negative gradient.
    """

    kind: ClassVar[Kind] = "sequence"

    @abstractmethod
    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        """(c_+, c_−) = −∂(Σ_b loss_b)/∂ℓ_±, each (B,); 0 for a side the loss does not read."""

    def push(self, batch: Batch, /) -> Push:
        plus, minus = self.coefficients(batch)
        zero = batch.zeros()
        return Push(batch.spread(plus, "chosen"), batch.spread(minus, "rejected"), batch.spread(zero, "anchor"))


@dataclass(frozen=True)
class MarginObjective(SequenceObjective):
    """value(h) of the margin h = r_+ − r_−, r = log π/π_ref (divided by |y| where `normalised`).

    Hence c_+ = −value'(h) and c_− = +value'(h), each over its own |y| where `normalised`.
    """

    normalised: ClassVar[bool] = False

    @abstractmethod
    def value(self, h: Array, /) -> Array:
        """The loss as a function of the margin."""

    @abstractmethod
    def strength(self, h: Array, /) -> Array:
        """−value'(h): how hard the margin is pulled up."""

    def margin(self, batch: Batch, /) -> Array:
        """h, (B,)."""
        plus, minus = self._lengths(batch)
        return batch.log_ratio("chosen") / plus - batch.log_ratio("rejected") / minus

    def loss(self, batch: Batch, /) -> Array:
        return self.value(self.margin(batch))

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        strength = self.strength(self.margin(batch))
        plus, minus = self._lengths(batch)
        return strength / plus, -strength / minus

    def _lengths(self, batch: Batch) -> tuple[Any, Any]:
        return (batch.length("chosen"), batch.length("rejected")) if self.normalised else (1.0, 1.0)


OBJECTIVES: dict[str, type[Any]] = {}
"""Every registered objective by name, in order of registration."""

_T = TypeVar("_T", bound=type[Any])


def register(cls: _T, /) -> _T:
    """Class decorator: puts an objective into OBJECTIVES, and so into every generated test and into the table.

    The class must be a frozen dataclass whose fields all have defaults, with `name` and `source`.
    """
    name = getattr(cls, "name", None)
    if not name or not getattr(cls, "source", None):
        raise ObjectiveError(f"{cls.__name__}: expected class attributes name and source; give it both")
    if name in OBJECTIVES:
        raise ObjectiveError(
            f"{cls.__name__}: the name {name!r} is taken by {OBJECTIVES[name].__name__}; choose another"
        )
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ObjectiveError(
            f"{cls.__name__}: expected a frozen dataclass; put @dataclass(frozen=True) below @register"
        )
    cls()  # every field needs a default: the table and the tests take the objective as it comes
    OBJECTIVES[name] = cls
    return cls


def get(name: str, /, **parameters: Any) -> Any:
    """The objective of that name, with these parameters.

    >>> get("dpo", beta=0.3)
    DPO(beta=0.3)
    >>> get("dop")
    Traceback (most recent call last):
        ...
    toyld.objectives.base.UnknownObjectiveError: no objective 'dop'; ...
    """
    if name not in OBJECTIVES:
        raise UnknownObjectiveError(f"no objective {name!r}; known: {', '.join(OBJECTIVES)}")
    cls = OBJECTIVES[name]
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(parameters) - set(fields))
    if unknown:
        has = ", ".join(fields) if fields else "none"
        raise UnknownObjectiveError(f"{name} has no parameter {', '.join(unknown)}; it has: {has}")
    return cls(**parameters)
