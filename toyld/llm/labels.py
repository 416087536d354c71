"""log π of given responses' tokens under a causal language model, as a function of its parameters.

The model as `toyld.influence.Model` wants it: what comes out is not logits but log π(y_t | x, y_{<t}) of the responses'
own tokens, row by row, so that gradients and tangents never hold the logits of positions that nobody asked for.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toyld.checked import BadInput
from toyld.llm.checkpoints import positions
from toyld.llm.encode import Encoded

__all__ = ["Labels", "accepted", "batches", "evaluating", "padded"]


class Labels(nn.Module):
    """A language model whose output is log π of every response token of a batch, flat, rows behind each other.

    >>> from types import SimpleNamespace
    >>> class Even(nn.Module):
    ...     def forward(self, input_ids, attention_mask):
    ...         return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))
    >>> Labels(Even())(**padded([Encoded((1, 2, 3), 1), Encoded((1, 3), 1)])) / torch.tensor(4.0).log()
    tensor([-1., -1., -1.])
    """

    def __init__(self, model: nn.Module, /) -> None:
        super().__init__()
        self.model: nn.Module = model
        self._accepts = accepted(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, asked: Tensor) -> Tensor:
        """`asked` (B, T): true on the tokens whose log-probability is wanted; the logits at t − 1 predict token t."""
        columns = torch.nonzero(asked.any(0))[:, 0]
        first, last = int(columns[0]) - 1, int(columns[-1])
        at = torch.arange(first, last, device=input_ids.device)
        wanted: dict[str, Any] = {"use_cache": False, "logits_to_keep": at}
        options = {name: value for name, value in wanted.items() if name in self._accepts}
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, **options).logits
        if "logits_to_keep" not in options:
            logits = logits[:, first:last]
        here = asked[:, first + 1 : last + 1]
        rows = logits[here]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        labels = input_ids[:, first + 1 : last + 1][here]
        return rows.gather(1, labels[:, None])[:, 0] - torch.logsumexp(rows, -1)


def accepted(model: nn.Module, /) -> set[str]:
    """Names of the arguments that a model's forward takes, beneath PEFT's wrapper."""
    return set(inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters)


def padded(items: Sequence[Encoded], /, *, length: int | None = None, device: Any = "cpu") -> dict[str, Tensor]:
    """Token ids, attention mask and what is asked, each (B, T): padded right to a length, the longest by default."""
    length = max(len(item.ids) for item in items) if length is None else length
    ids = torch.zeros(len(items), length, dtype=torch.long)
    mask, asked = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for b, item in enumerate(items):
        ids[b, : len(item.ids)] = torch.tensor(item.ids)
        mask[b, : len(item.ids)] = 1
        asked[b, item.start : len(item.ids)] = True
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "asked": asked.to(device)}


def batches(model: nn.Module, items: Sequence[Encoded], size: int, /) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(which responses, the model's inputs), `size` at a time, responses of about one length together.

    Raises:
        BadInput: a size below 1, no responses, more tokens than the model has positions.
    """
    if size < 1:
        raise BadInput(f"--batch-size: expected at least 1, got {size}")
    if not items:
        raise BadInput("expected at least one response, got none")
    room, longest = positions(getattr(model, "config", None)), max(len(item.ids) for item in items)
    if room is not None and longest > room:
        raise BadInput(f"expected at most the model's {room} positions, got a sequence of {longest}; cut it")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    order = sorted(range(len(items)), key=lambda i: -len(items[i].ids))  # the dearest first: it fails at once, or never
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        yield rows, padded([items[i] for i in rows], device=device)


@contextlib.contextmanager
def evaluating(module: nn.Module, /) -> Iterator[None]:
    """Every layer in eval mode for the while, each back in its own afterwards.

    >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(net):
    ...     print([layer.training for layer in net])
    [False, False]
    >>> [layer.training for layer in net]
    [True, False]
    """
    were = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in were:
            layer.training = training
