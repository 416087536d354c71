"""Runs a causal language model and reads its head where it is used, in the model's own forward.

A hook on the head takes the hidden states that the forward hands to it, so that whatever stands before the head (PEFT,
a patched forward, weights that are gathered for the while) has its way. In the first forward the hook sends a few rows
on to the model's own head, as they are and enlarged, and what the model makes of them decides: if its logits are others
than ours, everything is read from the model's own logits instead, and `Head.why` says so.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from toyld.llm.head import Head, base_of, is_matrix, own_logits, read_head

__all__ = ["Reader"]

Tensor = Any
SHOWN = 4  # rows that go through the model's own head
ENLARGED = 64.0  # largest logit of the enlarged ones: no soft cap in use leaves that alone
ALWAYS = ("input_ids", "attention_mask")


class Reader:
    """Runs a model and reads its head. `head` says how, after the first run for certain."""

    def __init__(self, model: Any) -> None:
        import torch

        self.model, self.head, self._sure = model, read_head(model), False
        config: Any = getattr(model, "config", None)
        self.config: Any = config.get_text_config() if hasattr(config, "get_text_config") else None
        first = next(model.parameters(), torch.empty(0))
        self.device, self.dtype = first.device, first.dtype
        self.accepts = set(inspect.signature(base_of(model).forward).parameters)
        peft = getattr(model, "active_peft_config", None)
        self.virtual = bool(getattr(peft, "is_prompt_learning", False))  # tokens before the first

    @property
    def precision(self) -> str:
        """The dtype in which layers compute now: that of autocast where it is on (`bf16=True` of a trainer)."""
        import torch

        kind, device = self.dtype, self.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device).itemsize < kind.itemsize:
            kind = torch.get_autocast_dtype(device)
        return str(kind).removeprefix("torch.")

    def run(self, read: Callable[[Head, Tensor], Any], /, *, keep: tuple[int, int], **inputs: Any) -> tuple[Any, Any]:
        """(what `read` makes of the head and the features (B, last − first, ·) at positions `keep`, the output).

        Features are hidden states, or logits where the head is "logits". `read` is called inside the model's forward,
        where weights that are split over devices are whole.
        """
        inputs["output_router_logits"] = False  # mixtures of experts would balance them by a mask of another shape
        given = {name: value for name, value in inputs.items() if name in self.accepts or name in ALWAYS}
        if self.head.name != "logits":
            found = self._through_hook(read, keep, given)
            if found is not None:
                return found
        return self._own(read, keep, given)

    def _through_hook(self, read: Callable[[Head, Tensor], Any], keep: tuple[int, int], given: Any) -> Any:
        module, length, busy = self.head.module, given["input_ids"].shape[1], False
        seen: list[tuple[Any, Tensor, Tensor]] = []
        if self.head.name == "tiles" and not is_matrix(module):
            self.head = replace(self.head, name="rows", why=f"row by row through {type(module).__name__}")

        def hook(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            nonlocal busy
            if busy or seen:
                return None
            hidden = args[0] if args else next(iter(options.values()))
            if hidden.ndim != 3 or hidden.shape[1] < length:
                return None
            busy = True
            start = hidden.shape[1] - length  # tokens that a prompt-learning adapter put before ours
            features = hidden[:, start + keep[0] : start + keep[1]]
            shown = hidden[:1, : self.head.name == "rows"] if self._sure else _shown(self.head, features[0])
            ours = None if self._sure else self.head.logits(shown[0])
            seen.append((read(self.head, features), ours, hidden))
            busy = False
            return ((shown, *args[1:]), options) if args else ((), {**options, next(iter(options)): shown})

        handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            output = self.model(**given)
        finally:
            handle.remove()
        if not seen:
            self.head = own_logits("the model's own logits: its forward does not call its head as a module")
            return None
        value, ours, hidden = seen[0]
        if not self._sure:
            off = _differ(ours, output.logits, hidden.shape[2], _eps(module, hidden, output.logits))
            if off:
                self.head = own_logits(f"the model's own logits: {off}")
                return None
            self._sure = True
        return value, output

    def _own(self, read: Callable[[Head, Tensor], Any], keep: tuple[int, int], given: Any) -> tuple[Any, Any]:
        import torch

        first, last = keep
        length = given["input_ids"].shape[1]
        kept = "logits_to_keep" in self.accepts and not self.virtual
        if kept:
            given = given | {"logits_to_keep": torch.arange(first, last, device=given["input_ids"].device)}
        output = self.model(**given)
        logits = output.logits
        start = 0 if kept else logits.shape[1] - length + first
        if start < 0 or logits.shape[1] < start + last - first:
            raise AssertionError("one row of logits a position")
        return read(self.head, logits[:, start : start + last - first]), output


def _shown(head: Head, features: Tensor) -> Tensor:
    """(1, 2 n, d): n <= SHOWN rows of features (N, d), and the same enlarged by a power of two."""
    import torch

    where = torch.linspace(0, len(features) - 1, min(SHOWN, len(features)), device=features.device).long()
    rows = features[where]
    largest = float(replace(head, cap=None).logits(rows).abs().max())
    by = 2.0 ** round(min(max(math.log2(ENLARGED / max(largest, 1e-6)), 0.0), 12.0)) if math.isfinite(largest) else 1.0
    return torch.cat([rows, rows * by])[None]


def _differ(ours: Tensor, theirs: Tensor, width: int, eps: float) -> str:
    """Why the model's own logits are others than ours; "" if they are the same up to rounding.

    A logit of a row whose largest is m is off by some √width of float32's (or float64's) ε times m in either, since
    products are summed in that, and by a few roundings of the model's dtype (`eps`) times m.
    """
    import torch

    if theirs is None or theirs.shape != (1, *ours.shape):
        got = "none" if theirs is None else tuple(theirs.shape)
        return f"expected {(1, *ours.shape)} of them from its head, got {got}"
    theirs = theirs[0].to(ours)
    largest = torch.where(theirs.isfinite(), theirs.abs(), 0.0).amax(1, keepdim=True)  # an infinite bound excuses all
    bound = (4 * eps + 8 * width**0.5 * torch.finfo(ours.dtype).eps) * largest
    off = (ours - theirs).abs()
    same = (off <= bound) | (ours == theirs) | (ours.isnan() & theirs.isnan())
    wrong = ~same
    if not wrong.any():
        return ""
    return f"those of its head as the config describes it are off by up to {float(off[wrong].max()):.3g}"


def _eps(module: Any, *tensors: Tensor) -> float:
    """The coarsest ε among what a model's logits were made of."""
    import torch

    device = tensors[0].device.type
    kinds = {t.dtype for t in (*tensors, *module.parameters()) if t is not None and t.is_floating_point()}
    if torch.is_autocast_enabled(device):
        kinds.add(torch.get_autocast_dtype(device))
    coarse = 2.0**-10 if device == "cuda" and torch.backends.cuda.matmul.allow_tf32 else 0.0
    return float(max(coarse, *(torch.finfo(kind).eps for kind in kinds)))
