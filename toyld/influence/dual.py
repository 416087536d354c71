"""Forward mode, (f(θ), ∂f(θ)·d) in one pass of dual numbers: torch's own, with a rule for layers that are bilinear.

A linear or convolutional layer f(x, w) is linear in its input and in its weight, so that

    df = f(dx, w) + f(x, dw) + db,

two products, or one where the input carries no tangent; torch's rule fills a missing tangent with zeros and multiplies
them, too. On the CPU in float32 linear layers go to oneDNN, as torch's convolutions do: it has twice MKL's rate on
processors whose AVX-512 MKL does not use.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["LOCK", "directional", "linear"]

BILINEAR = {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d}  # f(input, weight, bias, …)
LOCK = threading.RLock()  # forward mode, the kinds of attention and a module's parameters are the whole process's
LARGE = 2**20  # multiplications: oneDNN takes 10 µs to be called and saves as much here


def directional(
    f: Callable[[dict[str, Tensor]], Tensor], at: Mapping[str, Tensor], along: Mapping[str, Tensor], /
) -> tuple[Tensor, Tensor | None]:
    """(f(θ), ∂f(θ)·d) of a function of named tensors; names without a direction are held.

    None for the derivative where f(θ) carries none: it does not depend on θ, or what f does loses it.

    >>> z, dz = directional(lambda p: p["a"] ** 2, {"a": torch.tensor(3.0)}, {"a": torch.tensor(1.0)})
    >>> float(z), float(dz)
    (9.0, 6.0)
    """
    forward_ad = _forward_mode()
    with LOCK, torch.no_grad(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(at[name], d) for name, d in along.items()}
        with _Bilinear():
            out = f(duals)
        return tuple(forward_ad.unpack_dual(out))


class _Bilinear(TorchFunctionMode):
    """Sends the layers of BILINEAR through the rule above; everything else goes its way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in BILINEAR and len(args) >= 2:
            return _product(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _product(func: Any, x: Tensor, w: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
    forward_ad = _forward_mode()
    (x0, dx), (w0, dw) = forward_ad.unpack_dual(x), forward_ad.unpack_dual(w)
    b0, db = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    if dw is None and db is not None:  # a bias that trains without its weight
        return func(x, w, bias, *rest, **more)
    apply = linear if func is functional.linear else func
    z = apply(x0, w0, b0, *rest, **more)
    dz = None if dw is None else apply(x0, dw, db, *rest, **more)
    if dx is not None:
        through = apply(dx, w0, None, *rest, **more)
        dz = through if dz is None else dz.add_(through)
    return z if dz is None else forward_ad.make_dual(z, dz)


def linear(x: Tensor, w: Tensor, b: Tensor | None, /) -> Tensor:
    """x wᵀ + b, by oneDNN where that is faster.

    >>> linear(torch.ones(1, 2), torch.tensor([[3.0, 4.0]]), None)
    tensor([[7.]])
    """
    if x.dtype == w.dtype == torch.float32 and x.is_cpu and x.numel() * len(w) >= LARGE and (fast := _onednn()):
        if not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
            return functional.linear(x, w, b)
        return fast(x, w, None if b is None else b.contiguous(), "none", [], "")  # a strided bias is misread
    return functional.linear(x, w, b)


@functools.cache
def _onednn() -> Any:
    """oneDNN's linear layer as torch.compile calls it, None in a build without it or where it does something else.

    It is no public operation of torch, so it is tried before it is trusted.
    """
    x, w, b = torch.arange(6.0).reshape(2, 3), torch.arange(-6.0, 6.0).reshape(4, 3), torch.arange(4.0)
    try:
        fast = torch.ops.mkldnn._linear_pointwise
        right = all(torch.equal(fast(x, w, c, "none", [], ""), functional.linear(x, w, c)) for c in (b, None))
    except Exception:  # whatever a build raises, torch's own product remains
        return None
    return fast if right else None


@functools.cache
def _forward_mode() -> Any:
    """torch.autograd.forward_ad, its first use done: that warns of torch's own use of torch.jit."""
    from torch.autograd import forward_ad

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
    return forward_ad
