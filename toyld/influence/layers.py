"""How each layer of torch.nn makes its share of the Jacobian: an outer product, or rows, from one recorded call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from toyld.influence.factors import Outer

__all__ = ["Call", "Piece", "knows", "pieces"]


@dataclass
class Call:
    """One call of a layer that owns chosen parameters: its input, and a zero added to its output."""

    layer: nn.Module
    names: dict[str, str]  # of its own parameters: "weight" → name in the model
    x: Tensor
    tap: Tensor


Piece = Outer | dict[str, Tensor]


def knows(layer: nn.Module, /) -> bool:
    """Whether the Jacobian of a layer's parameters can be made here.

    >>> knows(nn.Linear(2, 3)), knows(nn.GRU(2, 3))
    (True, False)
    """
    return _kind(layer) is not None


def _kind(layer: nn.Module) -> Callable[[Call, Tensor, int], Iterator[Piece]] | None:
    """How a layer's Jacobian is made; None for a layer this module does not know, or one with its own forward."""
    for known, make in _KINDS:
        if isinstance(layer, known) and type(layer).forward is known.forward:
            return make
    kind = type(layer)
    return _turned if kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils" else None


def pieces(call: Call, grad: Tensor, n: int, /) -> Iterator[Piece]:
    """What one call adds to the Jacobian of n inputs, from ∂z/∂(its output) for each of R logits (R, *output)."""
    make = _kind(call.layer)
    assert make is not None
    return make(call, grad, n)


def _affine(call: Call, moving: Tensor, fixed: Tensor, *, turned: bool = False) -> Iterator[Piece]:
    weight, bias = call.names.get("weight"), call.names.get("bias")
    if weight is None:
        assert bias is not None
        yield {bias: moving.sum(2)}
        return
    if bias is not None:
        wide = fixed.transpose(1, 2) if fixed.stride(1) == 1 else fixed  # patches stand last: no strided copy
        if wide is fixed:
            fixed = torch.cat([fixed, fixed.new_ones(*fixed.shape[:2], 1)], 2)
        else:
            fixed = torch.cat([wide, wide.new_ones(len(wide), 1, wide.shape[2])], 1).transpose(1, 2)
    yield Outer(weight, bias, tuple(call.layer._parameters["weight"].shape), turned, moving, fixed)  # type: ignore[union-attr]


def _linear(call: Call, grad: Tensor, n: int) -> Iterator[Piece]:
    return _affine(call, _examples(grad, n), call.x.reshape(n, -1, call.x.shape[-1]))


def _examples(grad: Tensor, n: int) -> Tensor:
    """(R, N·…, q) → (N, R, S, q)."""
    return grad.reshape(len(grad), n, -1, grad.shape[-1]).transpose(0, 1)


def _turned(call: Call, grad: Tensor, n: int) -> Iterator[Piece]:
    return _affine(call, _examples(grad, n), call.x.reshape(n, -1, call.x.shape[-1]), turned=True)


def _embedding(call: Call, grad: Tensor, n: int) -> Iterator[Piece]:
    layer = call.layer
    assert isinstance(layer, nn.Embedding)
    moving, ids = _examples(grad, n), call.x.reshape(n, -1).long()
    if layer.padding_idx is not None:
        moving = moving * (ids != layer.padding_idx)[:, None, :, None]
    return _affine(call, moving, ids, turned=True)


def _convolution(call: Call, grad: Tensor, n: int) -> Iterator[Piece]:
    layer, x = call.layer, call.x
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if layer.groups != 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str) or len(x) != n:
        return iter(())
    sizes = [(1, *k) if len(k) == 1 else k for k in (layer.kernel_size, layer.dilation, layer.stride)]
    padding = (0, *layer.padding) if len(layer.padding) == 1 else layer.padding
    wide = x.unsqueeze(2) if isinstance(layer, nn.Conv1d) else x
    patches = nn.functional.unfold(wide, sizes[0], sizes[1], padding, sizes[2])
    moving = grad.reshape(len(grad), n, layer.out_channels, -1).permute(1, 0, 3, 2)
    return _affine(call, moving, patches.transpose(1, 2))


def _norm(call: Call, grad: Tensor, n: int) -> Iterator[Piece]:
    layer = call.layer
    own = {name: p for name, p in layer._parameters.items() if p is not None}
    plain = {name: torch.ones_like(p) if name == "weight" else torch.zeros_like(p) for name, p in own.items()}
    x_hat = torch.func.functional_call(layer, plain, (call.x,))
    for name, full in call.names.items():
        size = own[name].numel()
        moved = grad * x_hat if name == "weight" else grad
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            rows = moved.reshape(len(grad), n, -1, size).sum(2)
        else:  # channels stand second
            rows = moved.reshape(len(grad), n, size, -1).sum(3)
        yield {full: rows.transpose(0, 1)}


_KINDS: tuple[tuple[type[nn.Module], Callable[[Call, Tensor, int], Iterator[Piece]]], ...] = (
    (nn.Linear, _linear),
    (nn.Embedding, _embedding),
    (nn.Conv1d, _convolution),
    (nn.Conv2d, _convolution),
    (nn.LayerNorm, _norm),
    (nn.RMSNorm, _norm),
    (nn.GroupNorm, _norm),
    (nn.modules.batchnorm._BatchNorm, _norm),
)
