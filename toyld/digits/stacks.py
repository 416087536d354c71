"""S networks of one architecture as one: stacked parameters, logits of all, gradients of all.

A stack keeps each parameter of S modules as one tensor (S, …). Matrices go through one batched product. Convolutions go
one by one: on one core of CPU that is 2-9 times as fast as a grouped convolution or a product of patches. Gradients
are written out layer by layer, without autograd; both are torch's own to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from toyld.checked import BadInput

__all__ = ["Kept", "backward", "forward", "stacked"]

Theta = Mapping[str, torch.Tensor]


def stacked(modules: Sequence[nn.Sequential], /) -> dict[str, torch.Tensor]:
    """Parameter name → (S, …), of S modules of one architecture.

    Raises BadInput for a module that no stack can be made of: see `forward`.

    >>> from toyld.digits.networks import mlp
    >>> stacked([mlp(4, width=3, depth=1, seed=s) for s in range(5)])["head.weight"].shape
    torch.Size([5, 10, 3])
    """
    if type(modules[0]).forward is not nn.Sequential.forward:
        msg = f"network: expected a torch.nn.Sequential, got {type(modules[0]).__name__}; train such a module by itself"
        raise BadInput(msg)
    met = set[nn.Parameter]()
    for name, layer in _layers(modules[0]):
        told = " ".join(f"{name} = {layer}".split())
        if not _fits(layer):
            known = ", ".join(kind.__name__ for kind in _FORWARD)
            msg = f"network: expected layers among {known}, with biases, strides 1, plain pools 2×2, got {told}"
            raise BadInput(f"{msg}; train such a module by itself")
        if not met.isdisjoint(layer.parameters()):
            msg = f"network: expected each parameter in one layer, got {told} with that of another; make it its own"
            raise BadInput(msg)
        met |= set(layer.parameters())
    columns: dict[str, list[torch.Tensor]] = {name: [] for name, _ in modules[0].named_parameters()}
    for module in modules:
        for name, parameter in module.named_parameters():
            columns[name].append(parameter.detach())
    return {name: torch.stack(values) for name, values in columns.items()}


class Kept(NamedTuple):
    """What `backward` needs of one layer: its name, itself, input and output."""

    name: str
    layer: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def forward(module: nn.Sequential, theta: Theta, images: torch.Tensor, /, *, keep: list[Kept] | None = None) -> Any:
    """Logits (S, N, classes) of S networks with parameters theta, name → (S, …), at images (S, N, 1, H, W).

    module: the architecture, a Sequential of Flatten, ReLU, Tanh, AvgPool2d(2), and of Linear and Conv2d with biases
    and strides of 1; no parameter in two places. keep: a list that takes what `backward` needs.

    >>> from toyld.digits.networks import mlp
    >>> one = mlp(4, width=3, depth=1)
    >>> images = torch.ones(1, 2, 1, 2, 2)
    >>> bool((forward(one, stacked([one]), images)[0] == one(images[0])).all())
    True
    """
    x = images
    for name, layer in _layers(module):
        y = _FORWARD[type(layer)](layer, theta.get(f"{name}.weight"), theta.get(f"{name}.bias"), x)
        if keep is not None:
            keep.append(Kept(name, layer, x, y))
        x = y
    return x


def backward(
    theta: Theta, kept: list[Kept], residual: torch.Tensor, into: Mapping[str, torch.Tensor], /, *, decay: float = 0.0
) -> None:
    """Add the gradients to `into`, name → (S, …), which is multiplied by `decay` before.

    residual: ∂loss/∂logits (S, N, classes), of the sum over networks. kept: of one `forward`; it is used up.
    """
    g, left = residual, len(into)
    while left:  # nothing lies before the first layer with parameters
        one = kept.pop()
        left -= sum(1 for _ in one.layer.parameters())
        weight, bias = (one.name + end for end in (".weight", ".bias"))
        g = _BACKWARD[type(one.layer)](one, theta.get(weight), g, into.get(weight), into.get(bias), decay, left > 0)


def _layers(module: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """Name and layer of every place; `named_children` leaves out a layer's second one."""
    return zip(module._modules, module, strict=True)


def _fits(layer: nn.Module) -> bool:
    """Whether the stack's formulas are those of the layer."""
    if type(layer) not in _FORWARD:  # a subclass may do otherwise
        return False
    if isinstance(layer, nn.Conv2d):
        plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        return plain and layer.bias is not None and not isinstance(layer.padding, str)
    if isinstance(layer, nn.AvgPool2d):
        given = layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.divisor_override
        return given == (2, 2, 0, False, None)
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return getattr(layer, "bias", 0) is not None


def _linear(layer: nn.Module, w: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(b[:, None], x, w.mT)


def _conv(layer: Any, w: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([nn.functional.conv2d(x[s], w[s], b[s], padding=layer.padding) for s in range(len(w))])


def _pool(layer: nn.Module, w: Any, b: Any, x: torch.Tensor) -> torch.Tensor:
    height, width = (size // 2 * 2 for size in x.shape[-2:])  # of an odd side the last row is left out
    rows = x[..., :height:2, :width] + x[..., 1:height:2, :width]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


_FORWARD: dict[type, Callable[..., torch.Tensor]] = {
    nn.Flatten: lambda layer, w, b, x: x.flatten(2),
    nn.ReLU: lambda layer, w, b, x: x.relu(),
    nn.Tanh: lambda layer, w, b, x: x.tanh(),
    nn.AvgPool2d: _pool,
    nn.Linear: _linear,
    nn.Conv2d: _conv,
}


def _linear_back(one: Kept, w: Any, g: torch.Tensor, dw: Any, db: Any, decay: float, on: bool) -> Any:
    dw.baddbmm_(g.mT, one.x, beta=decay)
    db.mul_(decay).add_(g.sum(1))
    return torch.bmm(g, w) if on else None


def _conv_back(one: Kept, w: Any, g: torch.Tensor, dw: Any, db: Any, decay: float, on: bool) -> Any:
    dx = torch.empty_like(one.x) if on else None
    padding: Any = one.layer.padding
    for s in range(len(w)):
        back = torch.ops.aten.convolution_backward(
            g[s], one.x[s], w[s], [w.shape[1]], [1, 1], padding, [1, 1], False, [0, 0], 1, [on, True, True]
        )
        dw[s].mul_(decay).add_(back[1])
        db[s].mul_(decay).add_(back[2])
        if dx is not None:
            dx[s] = back[0]
    return dx


def _pool_back(one: Kept, w: Any, g: torch.Tensor, *_: Any) -> torch.Tensor:
    dx = torch.zeros_like(one.x)
    quarter = g * 0.25
    height, width = (2 * size for size in g.shape[-2:])
    for i in (0, 1):
        for j in (0, 1):
            dx[..., i:height:2, j:width:2] = quarter
    return dx


_BACKWARD: dict[type, Callable[..., Any]] = {
    nn.Flatten: lambda one, w, g, *_: g.reshape(one.x.shape),
    nn.ReLU: lambda one, w, g, *_: torch.ops.aten.threshold_backward(g, one.y, 0),
    nn.Tanh: lambda one, w, g, *_: torch.ops.aten.tanh_backward(g, one.y),
    nn.AvgPool2d: _pool_back,
    nn.Linear: _linear_back,
    nn.Conv2d: _conv_back,
}
