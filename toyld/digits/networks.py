"""The paper's networks for digits: `mlp`, four hidden layers of 128 and ReLU, and `lenet`, with tanh and 60-42-10.

Of LeNet the paper's notebook tells tanh, average pooling and the widths 60-42-10. LeNet-5 (LeCun et al. 1998) has tanh,
average pooling and 120-84-10 behind its convolutions: so its convolutions are taken, and its last layers half as wide.
Both are plain `torch.nn.Sequential`s with named layers; weights and biases are uniform in ±1/√fan-in, as torch draws
them, from a generator of their own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from toyld.checked import BadInput

__all__ = ["NETWORKS", "Make", "lenet", "make", "mlp"]

WEIGHTS = 3  # stream of random numbers
Make = Callable[[int], nn.Sequential]  # seed → module


def mlp(
    inputs: int, /, *, classes: int = 10, width: int = 128, depth: int = 4, seed: int = 0, dtype: Any = torch.float32
) -> nn.Sequential:
    """inputs → width → … (depth hidden layers, ReLU) → classes; images (N, 1, H, W) or (N, inputs) to logits.

    >>> network = mlp(64)
    >>> [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    [(128, 64), (128, 128), (128, 128), (128, 128), (10, 128)]
    """
    layers: list[tuple[str, nn.Module]] = [("flat", nn.Flatten())]
    for k in range(depth):
        layers.append((f"hidden{k + 1}", _layer(nn.Linear, inputs if k == 0 else width, width)))
        layers.append((f"relu{k + 1}", nn.ReLU()))
    layers.append(("head", _layer(nn.Linear, width if depth else inputs, classes)))
    return _drawn(layers, seed, dtype)


def lenet(side: int = 28, /, *, classes: int = 10, seed: int = 0, dtype: Any = torch.float32) -> nn.Sequential:
    """LeNet for images (N, 1, 28, 28) or (N, 1, 8, 8): two convolutions, tanh and 2×2 average pooling each, 60-42-10.

    28: 6 maps 5×5 (padding 2) → 14×14, 16 maps 5×5 → 5×5, 400 numbers → 60. 8: 6 maps 3×3
    (padding 1) → 4×4, 16 maps 3×3 (padding 1) → 2×2, 64 numbers → 60.

    >>> lenet()(torch.zeros(2, 1, 28, 28)).shape, lenet(8)(torch.zeros(2, 1, 8, 8)).shape
    (torch.Size([2, 10]), torch.Size([2, 10]))
    """
    if side not in (8, 28):
        msg = f"side: expected images of 8×8 or 28×28 pixels for LeNet, got {side}×{side}; take mlp, or scale them"
        raise BadInput(msg)
    size, padding, flat = (5, (2, 0), 400) if side == 28 else (3, (1, 1), 64)
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", _layer(nn.Conv2d, 1, 6, size, padding=padding[0])),
        ("tanh1", nn.Tanh()),
        ("pool1", nn.AvgPool2d(2)),
        ("conv2", _layer(nn.Conv2d, 6, 16, size, padding=padding[1])),
        ("tanh2", nn.Tanh()),
        ("pool2", nn.AvgPool2d(2)),
        ("flat", nn.Flatten()),
        ("full1", _layer(nn.Linear, flat, 60)),
        ("tanh3", nn.Tanh()),
        ("full2", _layer(nn.Linear, 60, 42)),
        ("tanh4", nn.Tanh()),
        ("head", _layer(nn.Linear, 42, classes)),
    ]
    return _drawn(layers, seed, dtype)


NETWORKS: Mapping[str, Callable[..., nn.Sequential]] = {
    "mlp": lambda side, **options: mlp(side * side, **options),
    "lenet": lambda side, **options: lenet(side, **options),
}


def make(network: str | Make, side: int, /) -> Make:
    """seed → module, from a name in NETWORKS; what is no name is taken as it is.

    >>> make("mlp", 8)(3).head.out_features
    10
    """
    if not isinstance(network, str):
        return network
    if network not in NETWORKS:
        msg = f"network: expected one of {', '.join(NETWORKS)}, got {network!r}; or pass a function seed → module"
        raise BadInput(msg)
    return lambda seed: NETWORKS[network](side, seed=seed)


def _layer(layer: Callable[..., nn.Module], *sizes: Any, **options: Any) -> nn.Module:
    """A layer whose own start does not move the generator that everybody shares; `_drawn` gives it another."""
    with torch.random.fork_rng(devices=[]):
        return layer(*sizes, **options)


def _drawn(layers: Sequence[tuple[str, nn.Module]], seed: int, dtype: Any) -> nn.Sequential:
    """Uniform in ±1/√fan-in, drawn in float64, so that every dtype starts from the same numbers."""
    words = np.random.SeedSequence(seed, spawn_key=(WEIGHTS,)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(words[0] >> 1))
    module = nn.Sequential(OrderedDict(layers)).to(dtype)
    with torch.no_grad():
        for layer in module.children():
            bound = 1 / math.sqrt(next((p[0].numel() for p in layer.parameters()), 1))  # the weight stands first
            for parameter in layer.parameters():
                drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_((2 * drawn - 1) * bound)
    return module
