"""A functional view of a torch module that maps inputs to logits: θ ↦ z(x; θ), and its derivative along a direction.

Nothing is copied: `Model.theta` shares storage with the module. While other parameters are tried they stand where the
module's own did, which come back whatever happens; `LOCK` lets one thread at a time do so, or run a module through its
`Model`. A thread that trains the module, or calls it directly, must wait by itself. Examples must not see each other
(no batch statistics), or a kernel between two inputs has no meaning; so a module whose dropout or batch normalisation
is in training mode is refused.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from toyld.checked import BadInput
from toyld.influence.dual import LOCK, directional

__all__ = ["LOCK", "Model", "count", "frozen", "plain_attention", "split", "stack"]

Inputs = Any  # a tensor, or a tuple or dict of tensors, whose first axis is the examples


class Model:
    """A module's logits z(x; θ) as a function of the parameters that train.

    module: maps inputs to logits (…, V), or to an object or dict with `logits` (Hugging Face). Inputs are a tensor, a
    tuple (positional) or a dict (keyword arguments) of tensors, the first axis being the examples. parameters: names or
    patterns ("head.*", "*lora*") of those that train; by default all that require grad. A tied weight counts once.
    mixed: parameters may be of several dtypes, as adapters in float32 on a base in bfloat16; the module casts.

    Raises:
        BadInput: no such parameter, one that does not require grad, several devices or dtypes, a module in training
            mode whose logits are random or depend on the batch, a module that changes its parameters when called. In
            use: parameters or layers replaced since.

    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> model = Model(net, parameters="2.*")
    >>> list(model.theta), model(torch.zeros(5, 3)).shape
    (['2.weight', '2.bias'], torch.Size([5, 2]))
    """

    def __init__(
        self, module: nn.Module, /, *, parameters: str | Iterable[str] | None = None, mixed: bool = False
    ) -> None:
        if not isinstance(module, nn.Module):
            msg = f"module: expected a torch.nn.Module, got {type(module).__name__}; wrap the function in one"
            raise BadInput(msg)
        module = getattr(module, "_orig_mod", module)  # what torch.compile wraps: compiled code has no forward mode
        self._view(module, _chosen(module, parameters), mixed=mixed)

    def _view(self, module: nn.Module, parameters: dict[str, Tensor], mixed: bool = False) -> None:
        self.module, self.parameters = module, parameters
        self._restless, self._sure = _still(module), False
        self._places = _places(module)
        self._layers = [(m._modules, key, layer) for m in module.modules() for key, layer in m._modules.items()]
        everything = [*module.parameters(), *module.buffers()]
        if len(devices := sorted({str(t.device) for t in everything})) > 1:
            msg = f"module: expected all parameters on one device, got {', '.join(devices)}; move it with module.to(…)"
            raise BadInput(msg)
        if len(dtypes := sorted({str(p.dtype) for p in module.parameters()})) > 1 and not mixed:
            msg = f"module: expected parameters of one dtype, got {', '.join(dtypes)}; convert it, for example .float()"
            raise BadInput(msg)
        if not everything:
            msg = "module: expected parameters, got none; wrap the function that needs none in a module with a buffer"
            raise BadInput(msg)
        first = next(iter([*parameters.values(), *everything]))
        self.device, self.dtype = first.device, first.dtype

    @property
    def theta(self) -> dict[str, Tensor]:
        """The parameters that train, name → tensor without grad: as they stand in the module now, in its storage."""
        with LOCK:
            self._unchanged()
            return {name: p.detach() for name, p in self.parameters.items()}

    def moved(self, direction: Mapping[str, Tensor], /, *, by: float = 1.0) -> dict[str, Tensor]:
        """θ + by·d along a direction d, name → tensor of those that it names, as `at` takes them; the module stays.

        >>> model = Model(torch.nn.Linear(3, 2, bias=False))
        >>> there = model.moved({"weight": torch.ones(2, 3)}, by=-0.5)
        >>> torch.equal(there["weight"], model.theta["weight"] - 0.5)
        True
        """
        theta = self.theta  # once: it checks them all
        return {name: theta[name] + by * d for name, d in direction.items()}

    def _unchanged(self) -> None:
        """Raise BadInput where the module holds other parameters or layers than it did."""
        for name, p in self.parameters.items():
            for owner, key in self._places[name]:
                if owner.get(key) is not p:
                    msg = f"module: expected the parameters it had, got {name} replaced since; make a new Model"
                    raise BadInput(msg)
        for owner, key, layer in self._layers:
            if owner.get(key) is not layer:
                msg = f"module: expected the layers it had, got {key} replaced since; make a new Model"
                raise BadInput(msg)
        for part, line in self._restless:
            if part.training:
                raise BadInput(line)

    def __call__(self, inputs: Inputs, /) -> Tensor:
        """Logits z (N, …, V), without gradient, checked to be logits."""
        with torch.no_grad():
            return self.checked(self._run(inputs))

    def attached(self, inputs: Inputs, /) -> Tensor:
        """Logits with a graph to `parameters`, whatever the caller's grad mode."""
        with torch.enable_grad():
            return self._run(inputs)

    def at(self, theta: Mapping[str, Tensor], inputs: Inputs, /) -> Tensor:
        """z(x; θ) at parameters `theta` (name → tensor); those not named stay as they are."""
        args, kwargs = _call(inputs)
        places = [(*place, value) for name, value in theta.items() for place in self._places[name]]
        with LOCK, _eager():
            self._unchanged()
            held = [(owner, key, owner[key]) for owner, key, _ in places]
            try:  # as torch.func.functional_call, whose search for tied weights would take as long as a small module
                for owner, key, value in places:
                    owner[key] = value
                return _logits(self.module(*args, **kwargs))
            finally:
                for owner, key, value in held:
                    owner[key] = value

    def tangent(self, inputs: Inputs, direction: Mapping[str, Tensor], /) -> tuple[Tensor, Tensor]:
        """(z, J d): the logits (N, …, V) and their derivative along a direction d (name → tensor), by forward mode.

        One pass, no Jacobian. Fused attention has no forward mode: the attention inside runs as plain matrix products.
        Nor has compiled code, which runs as it was before.

        Raises:
            BadInput: inputs or outputs of the wrong kind, an operation without forward mode, a derivative that is lost.
        """
        self.accepts(inputs)
        try:
            with plain_attention():
                z, dz = directional(lambda theta: self.at(theta, inputs), self.theta, direction)
        except NotImplementedError as error:
            what = str(error).strip().split("\n")[0] or type(error).__name__
            msg = f"module: expected operations with forward mode, got {what!r}; predict has mode='difference' for such"
            raise BadInput(msg) from error
        return self.checked(z), self._nothing(z, inputs, direction) if dz is None else dz

    def _nothing(self, z: Tensor, inputs: Inputs, direction: Mapping[str, Tensor]) -> Tensor:
        """The derivative 0, where the logits do not depend on what moves."""
        attached = self.attached(inputs)
        if attached.requires_grad:
            wanted = [self.parameters[name] for name in direction]
            for name, g in zip(direction, torch.autograd.grad(attached.sum(), wanted, allow_unused=True), strict=True):
                if g is not None:
                    msg = f"module: expected a derivative along {name}, got none in forward mode, which something in "
                    raise BadInput(msg + "forward() loses; predict has mode='difference' for such")
        return torch.zeros_like(z)

    def accepts(self, inputs: Inputs, /) -> None:
        """Raise BadInput unless the inputs are tensors with examples, on the module's device."""
        leaves = list(_leaves(inputs))
        if not leaves or not all(isinstance(x, Tensor) for x in leaves):
            got = ", ".join(sorted({type(x).__name__ for x in leaves})) or "nothing"
            msg = f"inputs: expected a tensor, or a tuple or dict of tensors, got {got}; convert with torch.as_tensor"
            raise BadInput(msg)
        for x in leaves:
            if x.device != self.device:
                msg = f"inputs: expected them on the module's device {self.device}, got {x.device}; move one of the two"
                raise BadInput(msg)
            if x.is_floating_point() and x.dtype != self.dtype:
                msg = f"inputs: expected the module's dtype {self.dtype}, got {x.dtype}; convert one of the two"
                raise BadInput(msg)
            if x.ndim == 0 or len(x) == 0:
                msg = f"inputs: expected at least one example along the first axis, got shape {tuple(x.shape)}"
                raise BadInput(msg)
        if not self._sure:
            self._repeats(inputs)

    def _repeats(self, inputs: Inputs) -> None:
        """Once, at the first inputs: layers not of torch may be random in training mode without saying so."""
        self._sure = True
        if any(m.training and not type(m).__module__.startswith("torch.nn.") for m in self.module.modules()):
            with torch.no_grad():
                one, other = self._run(inputs), self._run(inputs)
            near = torch.finfo(self.dtype).eps ** 0.5
            if one.shape != other.shape or not torch.allclose(one, other, rtol=near, atol=near, equal_nan=True):
                self._sure = False
                msg = "module: expected logits that repeat, got others from the same inputs in training mode; "
                raise BadInput(msg + "call module.eval()")

    def checked(self, z: Tensor, /) -> Tensor:
        """The same logits; BadInput if they cannot be logits (shape, dtype, not finite, probabilities)."""
        if z.ndim < 2 or z.shape[-1] < 2:
            msg = f"module: expected logits (N, …, V), V ≥ 2, got shape {tuple(z.shape)}; return all classes"
            raise BadInput(msg)
        if not z.is_floating_point():
            msg = f"module: expected logits, got {z.dtype}; return scores before argmax"
            raise BadInput(msg)
        rows, total = z.numel() // z.shape[-1], float(z.sum())  # one pass for sound logits
        if not math.isfinite(total) and not bool(torch.isfinite(z).all()):
            msg = "module: expected finite logits, got some that are not; look for nan in inputs or parameters"
            raise BadInput(msg)
        if abs(total - rows) < 1e-3 * rows and float(z.min()) >= 0.0 and float((z.sum(-1) - 1.0).abs().max()) < 1e-3:
            msg = "module: expected logits, got probabilities (≥ 0, rows sum to 1); return what softmax is applied to"
            raise BadInput(msg)
        return z

    def _run(self, inputs: Inputs) -> Tensor:
        self.accepts(inputs)
        args, kwargs = _call(inputs)
        with LOCK:
            self._unchanged()
            return _logits(self.module(*args, **kwargs))


def frozen(module: nn.Module, /) -> Model:
    """A model of which nothing trains, whether or not its parameters require grad: a reference.

    >>> frozen(torch.nn.Linear(2, 3).requires_grad_(False))(torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """
    model = object.__new__(Model)
    model._view(getattr(module, "_orig_mod", module), {})
    return model


def _chosen(module: nn.Module, wanted: str | Iterable[str] | None) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(module.named_parameters())
    if wanted is None:
        if chosen := {name: p for name, p in named.items() if p.requires_grad}:
            return chosen
        msg = f"module: expected parameters that require grad, got none of {len(named)}; call requires_grad_(True)"
        raise BadInput(msg)
    patterns = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            names = ", ".join(list(named)[:6]) + (", …" if len(named) > 6 else "")
            msg = f"parameters: expected names among {names}, got {pattern!r}; patterns as in '*.bias'"
            raise BadInput(msg)
    chosen = {name: p for name, p in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not chosen:
        msg = "parameters: expected at least one name, got none; leave it out for all that require grad"
        raise BadInput(msg)
    if frozen := [name for name, p in chosen.items() if not p.requires_grad]:
        more = f" and {len(frozen) - 1} more" if len(frozen) > 1 else ""
        msg = f"parameters: expected those that require grad, got {frozen[0]}{more} frozen; unfreeze or drop it"
        raise BadInput(msg)
    return chosen


def _places(module: nn.Module) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """Where every parameter stands, by each of its names: all places of a tied weight."""
    of: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for part in module.modules():
        for key, p in part._parameters.items():
            of.setdefault(id(p), []).append((part._parameters, key))
    return {name: of[id(p)] for name, p in module.named_parameters(remove_duplicate=False)}


def _still(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The layers whose logits do not repeat in training mode, each with what to say then; refuse what never repeats."""
    restless = []
    for name, part in module.named_modules():
        got = f"got {type(part).__name__} {name!r}"
        if isinstance(part, torch.jit.ScriptModule):
            msg = f"module: expected parameters that can be exchanged, {got}, which is compiled; pass the module itself"
            raise BadInput(msg)
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.max_norm is not None:
            msg = f"module: expected parameters that stand still, {got} with max_norm, which rescales them when called"
            raise BadInput(msg + "; set max_norm = None")
        if isinstance(part, nn.Embedding | nn.EmbeddingBag) and part.scale_grad_by_freq:
            msg = f"module: expected gradients that are derivatives, {got} with scale_grad_by_freq, which divides them"
            raise BadInput(msg + "; set scale_grad_by_freq = False")
        batch = isinstance(part, nn.modules.batchnorm._BatchNorm)
        if batch and part.running_mean is None:
            msg = f"module: expected logits that repeat, {got} without running statistics, which makes them dependent "
            raise BadInput(msg + "on the batch; use track_running_stats=True")
        random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0.0
        random |= isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0.0
        if batch or random or isinstance(part, nn.RReLU):
            what = "dependent on the batch" if batch else "random"
            msg = f"module: expected logits that repeat, {got} in training mode, which "
            restless.append((part, msg + f"makes them {what}; call module.eval()"))
    for part, line in restless:
        if part.training:
            raise BadInput(line)
    return restless


def _call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _logits(out: Any) -> Tensor:
    found = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", out)
    if not isinstance(found, Tensor):
        msg = (
            f"module: expected logits (a tensor, or an output with .logits), got {type(out).__name__}; wrap the module"
        )
        raise BadInput(msg)
    return found


def _leaves(inputs: Inputs) -> Iterator[Any]:
    if isinstance(inputs, Mapping):
        yield from inputs.values()
    elif isinstance(inputs, tuple | list):
        yield from inputs
    else:
        yield inputs


def count(inputs: Inputs, /) -> int:
    """Number of examples of inputs.

    >>> count({"input_ids": torch.zeros(3, 5), "attention_mask": torch.ones(3, 5)})
    3
    """
    return len(next(_leaves(inputs)))


def _each(inputs: Inputs, do: Any) -> Inputs:
    if isinstance(inputs, Mapping):
        return {name: do(name, x) for name, x in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(do(i, x) for i, x in enumerate(inputs))
    return do(None, inputs)


def split(inputs: Inputs, size: int, /) -> Iterator[Inputs]:
    """Inputs in chunks of at most `size` examples.

    >>> [part.shape[0] for part in split(torch.zeros(5, 2), 2)]
    [2, 2, 1]
    """
    for start in range(0, count(inputs), size):
        yield _each(inputs, lambda _, x, start=start: x[start : start + size])


def stack(first: Inputs, *others: Inputs) -> Inputs:
    """Inputs of one form behind each other along the examples.

    >>> stack(torch.zeros(2, 3), torch.ones(1, 3)).shape
    torch.Size([3, 3])
    """

    def joined(key: Any, x: Tensor) -> Tensor:
        rest = [other if key is None else other[key] for other in others]
        if any(r.shape[1:] != x.shape[1:] for r in rest):
            shapes = ", ".join(str(tuple(r.shape)) for r in (x, *rest))
            msg = f"inputs: expected sides of one shape behind the first axis, got {shapes}; pad them to one length"
            raise BadInput(msg)
        return torch.cat([x, *rest])

    return _each(first, joined)


def _eager() -> contextlib.AbstractContextManager[Any]:
    """Compiled functions as they were before: with forward mode, and not compiled anew for other parameters."""
    loaded = "torch._dynamo" in sys.modules  # else nothing is compiled, and to load it takes seconds
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as plain matrix products, `LOCK` held: fused kernels know neither forward mode nor vmap."""
    with LOCK:
        fast, sdp = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda
        was = sdp.math_sdp_enabled(), sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), sdp.cudnn_sdp_enabled()

        def use(math: bool, flash: bool, mem_efficient: bool, cudnn: bool) -> None:
            sdp.enable_math_sdp(math)
            sdp.enable_flash_sdp(flash)
            sdp.enable_mem_efficient_sdp(mem_efficient)
            sdp.enable_cudnn_sdp(cudnn)

        try:
            torch.backends.mha.set_fastpath_enabled(False)
            use(math=True, flash=False, mem_efficient=False, cudnn=False)
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            use(*was)
