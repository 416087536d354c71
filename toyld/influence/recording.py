"""Records the Jacobian of many inputs' logits while a module runs: activations, and factors propagated back.

Hooks on the layers that hold parameters keep a_s and add a zero to the output, whose gradient is B_s; all B of all
inputs come from as many backward passes as one input has logits, because inputs do not see each other. What the layers
show is compared with autograd's own gradient along random logits, so that a use that no layer shows, or inputs that do
see each other, are noticed; parameters so found go another way: one input at a time, then as rows of autograd's
Jacobian. Numbers of 16 bits are too coarse for the comparison, so that there all parameters go this way. Inputs whose
logits are others in company are refused.
"""

from __future__ import annotations

import functools
import math
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from toyld.checked import BadInput
from toyld.influence.factors import Factors, Outer
from toyld.influence.layers import Call, knows, pieces
from toyld.influence.model import Inputs, Model, count, plain_attention, split

__all__ = ["alone", "apart", "batched", "factors", "footprint", "rows_of"]

TOGETHER = "inputs see each other: expected logits of one input that do not depend on the others, got"
ALONE = "use fixed statistics, attend within an input"
CHECKED = 256.0  # of ε: above the rounding of two backward passes that group their sums differently


def factors(model: Model, inputs: Inputs, /) -> Factors:
    """The factors of all parameters of a model at some inputs, each exact to rounding.

    Raises:
        BadInput: inputs that see each other.

    >>> found = factors(Model(nn.Linear(2, 3)), torch.zeros(5, 2))
    >>> [(key, tuple(o.moving.shape), tuple(o.fixed.shape)) for key, o in found.outers.items()]
    [(('weight', 'bias'), (5, 3, 1, 3), (5, 1, 3))]
    """
    found, hidden = _recorded(model, inputs, set(model.theta))
    apart(model, inputs, found.z, every=bool(hidden))
    if hidden and count(inputs) > 1:  # one input alone has no neighbours to be mixed with
        singles = [_recorded(model, one, hidden) for one in split(inputs, 1)]
        still = set[str]().union(*(names for _, names in singles))
        parts: list[dict[str, Tensor]] = []
        for single, _ in singles:
            for outer in single.outers.values():
                single.add(outer.rows())
            parts.append(single.rows)
        for name in hidden - still:
            if known := [part[name] for part in parts if name in part]:
                zero = torch.zeros_like(known[0])
                found.rows[name] = torch.cat([part.get(name, zero) for part in parts])
        hidden = still
    if hidden:
        found.rows |= {name: j.flatten(2) for name, j in rows_of(model, inputs, sorted(hidden)).items()}
    return found


def alone(model: Model, one: Inputs, /) -> Tensor:
    """Logits of one input by itself; BadInput where the module takes several only.

    >>> alone(Model(nn.Linear(2, 3)), torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """
    try:
        with plain_attention():
            return model(one)
    except ValueError as bad:
        if isinstance(bad, BadInput) or "more than 1 value per channel" not in str(bad):
            raise
        raise BadInput(f"{TOGETHER} statistics of the batch; {ALONE}") from bad


def apart(model: Model, inputs: Inputs, z: Tensor, /, *, every: bool = False) -> None:
    """Refuse inputs whose logits z all together are not those that each (the first and the last) has by itself.

    A batch of another size rounds otherwise, by more the deeper the module: half the digits must agree.

    >>> model = Model(nn.Linear(2, 3))
    >>> apart(model, torch.eye(2), model(torch.eye(2)))
    """
    if count(inputs) == 1:
        return
    ones = list(split(inputs, 1))
    for i in range(len(ones)) if every else (0, len(ones) - 1):
        mine, among = alone(model, ones[i]), z[i : i + 1]
        if mine.shape != among.shape:
            raise BadInput(f"{TOGETHER} shape {tuple(among.shape)} beside {tuple(mine.shape)} alone; {ALONE}")
        error, size = float((mine - among).abs().max()), float(among.abs().max())
        if not error <= torch.finfo(z.dtype).eps ** 0.5 * size:
            raise BadInput(f"{TOGETHER} a change of {error:.1g} beside {size:.1g} with the inputs around; {ALONE}")


def rows_of(model: Model, inputs: Inputs, names: Sequence[str]) -> dict[str, Tensor]:
    """Autograd's Jacobian of the logits by name, (N, R, *shape of the parameter), one input at a time."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    parameters = model.theta
    for one in split(inputs, 1):
        with plain_attention():
            z = model.attached(one)
            parts = _backward(z, [model.parameters[name] for name in names])
        for name, part in zip(names, parts, strict=True):
            theta = parameters[name]
            found[name].append(theta.new_zeros((z.numel(), *theta.shape)) if part is None else part)
    return {name: torch.stack(js) for name, js in found.items()}


def _backward(z: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """∂(Σ_n z_{n,r})/∂wanted for every logit r of an input, (R, *shape) each."""
    size = math.prod(z.shape[1:])
    rows = torch.eye(size, dtype=z.dtype, device=z.device)[:, None].expand(size, len(z), size)
    return batched(z, wanted, rows.reshape(size, *z.shape))


def batched(z: Tensor, wanted: Sequence[Tensor], along: Tensor) -> list[Tensor | None]:
    """Gradients along many directions of the logits (R, *z.shape), (R, *shape) each: at once if torch can."""
    if not z.requires_grad:
        return [None] * len(wanted)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop")
            parts = torch.autograd.grad(z, wanted, along, is_grads_batched=True, allow_unused=True, retain_graph=True)
            return [_dense(part) for part in parts]
    except (RuntimeError, NotImplementedError):  # an operation that cannot be batched
        each = [torch.autograd.grad(z, wanted, row, allow_unused=True, retain_graph=True) for row in along]
        columns = [[_dense(part) for part in column] for column in zip(*each, strict=True)]
        return [None if column[0] is None else torch.stack(column) for column in columns]  # type: ignore[arg-type]


def _dense(gradient: Tensor | None) -> Tensor | None:
    """Embeddings may have sparse gradients."""
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def _recorded(model: Model, inputs: Inputs, names: set[str]) -> tuple[Factors, set[str]]:
    """Factors of the named parameters as far as the layers show them, and the names of those they do not."""
    model.accepts(inputs)  # before anything is heard: this may run the module
    calls: list[Call] = []
    with plain_attention():
        handles = [_listen(layer, own, calls) for layer, own in _layers(model, names)]
        try:
            z = model.attached(inputs)
        finally:
            for handle in handles:
                handle.remove()
    found = Factors(z.detach())
    with plain_attention():
        grads = _backward(z, [call.tap for call in calls]) if calls else []
        c = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=_generator(z.device))
        truth = torch.autograd.grad(z, [model.parameters[n] for n in sorted(names)], c, allow_unused=True)
    with torch.no_grad():
        _fill(found, calls, grads, len(z))
        told = found.along(c.reshape(len(z), -1))
        hidden = set()
        for name, right in zip(sorted(names), map(_dense, truth), strict=True):
            mine, size = told.get(name, (None, 0.0))
            if mine is None or right is None:
                wrong = right is not None or (mine is not None and bool(mine.any()))
            else:
                error = float(torch.linalg.vector_norm(mine - right.flatten()))
                wrong = not error <= CHECKED * torch.finfo(z.dtype).eps * size
            if wrong:
                hidden.add(name)
    for key in [key for key in found.outers if hidden & set(key)]:
        outer = found.outers.pop(key)
        hidden |= {name for name in outer.key if name is not None}
    found.rows = {name: row for name, row in found.rows.items() if name not in hidden}
    return found, hidden


def _fill(found: Factors, calls: list[Call], grads: list[Tensor | None], n: int) -> None:
    outers: list[Outer] = []
    for call, grad in zip(calls, grads, strict=True):
        if grad is not None and len(call.tap) % n == 0:  # else not one row of outputs, or several, for each input
            for piece in pieces(call, grad, n):
                if isinstance(piece, Outer):
                    outers.append(piece)
                else:
                    found.add(piece)
    kinds: dict[str, set[Any]] = {}
    for outer in outers:
        kinds.setdefault(outer.weight, set()).add((outer.bias, outer.turned, outer.onehot))
        if outer.bias is not None:
            kinds.setdefault(outer.bias, set()).add(outer.weight)
    grouped: dict[tuple[str, str | None], list[Outer]] = {}
    for outer in outers:
        grouped.setdefault(outer.key, []).append(outer)
    for key, uses in grouped.items():
        owned = [name for name in key if name is not None]
        if any(len(kinds[name]) > 1 or name in found.rows for name in owned):  # tied in two ways: cross terms
            for use in uses:
                found.add(use.rows())
            continue
        first = uses[0]
        moving = first.moving if len(uses) == 1 else torch.cat([u.moving for u in uses], 2)
        fixed = first.fixed if len(uses) == 1 else torch.cat([u.fixed for u in uses], 1)
        found.outers[key] = Outer(first.weight, first.bias, first.shape, first.turned, moving, fixed)


def _layers(model: Model, names: set[str]) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    if torch.finfo(model.dtype).bits < 32:  # CHECKED would be as large as what is checked
        return
    name_of = {id(p): name for name, p in model.parameters.items() if name in names}
    for layer in model.module.modules():
        mine = ((own, layer._parameters.get(own)) for own in ("weight", "bias"))
        own = {own: name_of[id(p)] for own, p in mine if id(p) in name_of}
        if own and knows(layer):
            yield layer, own


def _listen(layer: nn.Module, own: dict[str, str], calls: list[Call]) -> Any:
    thread = threading.get_ident()  # what other threads run meanwhile is not to be heard

    def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if threading.get_ident() != thread or not _heard(args, out):
            return None
        tap = torch.zeros_like(out, requires_grad=True)
        calls.append(Call(layer, own, args[0].detach(), tap))
        return out + tap

    return layer.register_forward_hook(hook)


def _heard(args: tuple[Any, ...], out: Any) -> bool:
    return len(args) == 1 and isinstance(args[0], Tensor) and isinstance(out, Tensor)


def _generator(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(0)


def footprint(model: Model, inputs: Inputs, /) -> tuple[int, int]:
    """Logits of one input, and about how many numbers its factors hold, from one forward pass of the first.

    >>> footprint(Model(nn.Linear(2, 3)), torch.zeros(5, 2))
    (3, 11)
    """
    sizes: list[tuple[int, int]] = []
    shown: set[str] = set()

    def measure(layer: nn.Module, args: tuple[Any, ...], out: Any, own: Iterable[str]) -> None:
        if threading.get_ident() == thread and _heard(args, out):
            window = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
            sizes.append((out.numel(), args[0].numel() * window))
            shown.update(own)

    one = next(split(inputs, 1))
    model.accepts(one)  # before anything is heard: this may run the module
    thread = threading.get_ident()
    handles = [
        layer.register_forward_hook(functools.partial(measure, own=own.values()))
        for layer, own in _layers(model, set(model.theta))
    ]
    try:
        logits = alone(model, one).numel()
    finally:
        for handle in handles:
            handle.remove()
    rest = sum(t.numel() for name, t in model.theta.items() if name not in shown)  # layers never called, or unknown
    return logits, max(1, logits * (sum(moving for moving, _ in sizes) + rest) + sum(fixed for _, fixed in sizes))
