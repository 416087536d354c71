"""Centred updates (K6) of a Hugging Face model: linear layers learn from inputs less what all inputs share.

    with centred(model):
        trainer.train()             # DPOTrainer, SFTTrainer, any loop: forward pass and input gradients stay

A linear layer y = W x + b has the weight gradient Σ_t g_t x_tᵀ over its tokens, g_t the gradient at y_t. Inside

    subtract:  Σ_t g_t (x_t − μ)ᵀ          project:  Σ_t g_t (x_t − μ μᵀx_t / ‖μ‖²)ᵀ

stands in its place; biases, norms, embeddings learn as ever. μ is the layer's mean input

- of the batch (by default): over the tokens of one forward pass whose next token is trained on, as `labels` say; over
  those of `attention_mask` where there are no labels; over all where there is neither. A layer that sees other rows
  than batch × positions (an expert, a head that is asked for some positions) has the mean over all rows that it sees.
- or of fixed texts, `mean=measure(model, texts)`: as the model was when it was measured. `Means.turned` has the same
  lengths in random directions, the control.

How: y is returned less (W − W°) μ, W° = W without gradient: 0 in value, −Σ g_t μᵀ in gradient. So each part of a
gradient is rounded in W's dtype before they are added. Where the head is tied to the embedding, the embedding's own
part of the shared gradient stays as it is. TRL's losses multiply by the head's matrix without calling the head; there
the same zero is handed over as the head's bias for the while of a forward pass. Layers whose weight is frozen (below
LoRA) need nothing; LoRA's own two are linear layers like others. Not for parameters that FSDP or ZeRO-3 split.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from toyld.checked import BadInput
from toyld.llm.encode import Encoded
from toyld.llm.head import base_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Centring", "How", "Means", "Where", "centred", "linear", "mean_of", "measure", "padded"]

Where = Literal["head", "all"]
How = Literal["subtract", "project"]
_BUSY: weakref.WeakSet[Any] = weakref.WeakSet()


@dataclass(frozen=True)
class Means:
    """Layer name → its mean input μ (d,), and the share ‖μ‖² / mean ‖x‖² of the square that is common to all inputs."""

    vectors: Mapping[str, Tensor]
    share: Mapping[str, float]

    def turned(self, seed: int, /) -> Means:
        """As long, each in a random direction.

        >>> import torch
        >>> Means({"head": torch.tensor([3.0, 4.0])}, {"head": 0.5}).turned(0).vectors["head"].norm().round(decimals=4)
        tensor(5.)
        """
        import torch

        draw = torch.Generator().manual_seed(seed)
        out = {}
        for name, mu in self.vectors.items():
            one = torch.randn(len(mu), generator=draw, dtype=torch.float64)
            out[name] = (one / one.norm()).to(mu) * mu.norm()
        return Means(out, dict(self.share))


@dataclass
class Centring:
    """What is centred: names of layers. rest: trained matrices that are not (the embedding; fused experts)."""

    layers: tuple[str, ...]
    rest: tuple[str, ...]
    how: How
    mean: Means | None
    mask: Tensor | None = None  # (B, T), of the forward pass that is under way
    fused: bool = False
    met: set[str] = field(default_factory=set)

    def part(self, name: str, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(v (d,), s (…, 1) or None): what is taken off inputs x (…, d) is s v, or v."""
        from torch.nn import functional

        mu = mean_of(x, self.mask) if self.mean is None else self.mean.vectors[name].to(x)
        if self.how == "subtract":
            return mu, None
        unit = functional.normalize(mu, dim=0)
        return unit, (x @ unit)[..., None]


def mean_of(x: Tensor, mask: Tensor | None, /) -> Tensor:
    """Mean (d,) of x (…, d), of the rows of `mask` (B, T) where x has those rows."""
    flat = x.reshape(-1, x.shape[-1])
    if mask is None or mask.numel() != len(flat) or not bool(mask.any()):
        return flat.mean(0)
    return flat[mask.reshape(-1).to(flat.device)].mean(0)


def _read(labels: Tensor | None, attention: Tensor | None) -> Tensor | None:
    """(B, T): true where the next token is trained on, or else where there is a token."""
    import torch

    if labels is not None:
        return torch.cat([labels[:, 1:] != -100, torch.zeros_like(labels[:, :1], dtype=torch.bool)], 1)
    return attention.bool() if attention is not None and attention.ndim == 2 else None


def linear(model: nn.Module, /, *, where: Where = "all") -> dict[str, nn.Module]:
    """Name → layer with a two-dimensional weight that trains: torch's Linear, GPT-2's Conv1D; `where` head: that alone.

    Raises:
        BadInput: there is no such layer.

    >>> from torch import nn
    >>> list(linear(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1).requires_grad_(False))))
    ['0']
    """
    from torch import nn

    if where not in get_args(Where):
        raise BadInput(f"where: expected {' or '.join(get_args(Where))}, got {where!r}; correct it")
    head = _head(model)
    out = {}
    for name, module in model.named_modules():
        one = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        weight = getattr(module, "weight", None) if one else None
        if weight is not None and weight.requires_grad and weight.ndim == 2 and (where == "all" or module is head):
            out[name] = module
    if not out:
        what = "linear layers that train" if where == "all" else "a linear head that trains"
        raise BadInput(f"expected {what}, got none; unfreeze some")
    return out


def _head(model: Any) -> Any:
    try:
        return base_of(model).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _rest(model: nn.Module, layers: Mapping[str, nn.Module]) -> tuple[str, ...]:
    mine = {id(one.weight) for one in layers.values()}
    return tuple(name for name, p in model.named_parameters() if p.requires_grad and p.ndim > 1 and id(p) not in mine)


@contextlib.contextmanager
def centred(
    model: Any, /, *, where: Where = "all", how: How = "subtract", mean: Means | None = None
) -> Iterator[Centring]:
    """While inside, the linear layers of a model (its head alone) have centred weight gradients; see the module.

    Forward passes give what they gave. `mean`: fixed means; the batch's where left out.

    Raises:
        BadInput: no such layers, means that lack one, a model that is centred already; in a forward pass: a loss that
            uses the head's matrix in a way that is not known.

    >>> import torch
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> with centred(layer):
    ...     layer(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).mul(torch.tensor([[1.0], [2.0]])).sum().backward()
    >>> layer.weight.grad                                         # 1·(−1, 0) + 2·(1, 0)
    tensor([[1., 0.]])
    """
    if how not in get_args(How):
        raise BadInput(f"how: expected {' or '.join(get_args(How))}, got {how!r}; correct it")
    layers = linear(model, where=where)
    if mean is not None and (missing := [name for name in layers if name not in mean.vectors]):
        raise BadInput(f"mean: expected one of every layer, got none of {missing[0]}; measure this model")
    if model in _BUSY:
        raise BadInput("expected a model that is not centred already, got one that is; leave the other block first")
    what = Centring(tuple(layers), _rest(model, layers), how, mean)
    head = _head(model)
    number = next((name for name, one in layers.items() if one is head), None)
    handles = [one.register_forward_hook(_hook(what, name)) for name, one in layers.items()]
    handles.append(model.register_forward_pre_hook(_begin(what), with_kwargs=True, prepend=True))
    if number is not None and head is not model:
        handles.append(model.register_forward_hook(_end(what, number, head), always_call=True))
        backbone = getattr(base_of(model), "base_model", None)
        if backbone is not None and backbone is not base_of(model):
            handles.append(backbone.register_forward_hook(_hand_over(what, number, head)))
    _BUSY.add(model)
    try:
        yield what
    finally:
        _BUSY.discard(model)
        for handle in handles:
            handle.remove()


def _learns(layer: Any) -> bool:
    import torch

    return torch.is_grad_enabled() and bool(layer.weight.requires_grad)


def _begin(what: Centring) -> Any:
    """Reads what a forward pass is asked for."""

    def begin(model: Any, args: Any, given: dict[str, Any]) -> None:
        import torch

        if torch.is_grad_enabled():  # a pass without gradients between two others leaves their tokens alone
            what.mask = _read(given.get("labels"), given.get("attention_mask"))
        what.fused = bool(given.get("fused_lm_head"))
        what.met.clear()

    return begin


def _hook(what: Centring, name: str) -> Any:
    def hook(layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        what.met.add(name)
        if not _learns(layer):
            return None
        v, s = what.part(name, args[0].detach())
        zero = layer.weight - layer.weight.detach()
        zero = zero if type(layer).__name__ != "Conv1D" else zero.T
        off = (zero @ v.to(zero.dtype)).to(output.dtype)
        return output - (off if s is None else s.to(output.dtype) * off)

    return hook


def _hand_over(what: Centring, name: str, head: Any) -> Any:
    """For a loss that multiplies by the head's matrix itself: its bias, or matrix, with the zero in it."""

    def hook(backbone: Any, args: Any, output: Any) -> None:
        if not (what.fused and _learns(head)):
            return
        h = output.last_hidden_state.detach()
        v, s = what.part(name, h)
        weight, v = head.weight, v.to(head.weight.dtype)
        zero = (weight - weight.detach()) @ v
        if s is None:
            head.__dict__["bias"] = -zero if head.bias is None else head.bias - zero
        else:
            head.__dict__["weight"] = weight - zero[:, None] * v
        what.met.add(name)

    return hook


def _end(what: Centring, name: str, head: Any) -> Any:
    def end(model: Any, args: Any, output: Any) -> None:
        for shadow in ("bias", "weight"):
            head.__dict__.pop(shadow, None)
        if output is not None and name not in what.met and _learns(head):
            msg = "expected a forward pass that calls the model's head, got one that does not (a fused loss); "
            raise BadInput(msg + "switch that off (use_liger_kernel=False), or centre without the head")

    return end


def measure(
    model: Any, encoded: Sequence[Encoded], /, *, where: Where = "all", component: bool = False, batch_size: int = 8
) -> Means:
    """Mean input of each linear layer that trains, over the tokens before every response token, and its share.

    component: the first principal component of the inputs less their mean instead, √λ₁ long, of share λ₁ / mean ‖x‖²:
    a control that is no mean, but about as much of the inputs. Memory: d² numbers a layer for that, else d.

    Raises:
        BadInput: no texts; no such layers.
    """
    import torch

    if not encoded:
        raise BadInput("expected at least one text to measure means on, got none")
    layers, mask = linear(model, where=where), torch.zeros(0)
    sums: dict[str, list[Any]] = {name: [0.0, 0.0, 0, 0.0] for name in layers}

    def hook(name: str) -> Any:
        def add(layer: Any, args: tuple[Any, ...], output: Any) -> None:
            x = args[0].detach().reshape(-1, args[0].shape[-1])
            x = (x[mask.reshape(-1).to(x.device)] if mask.numel() == len(x) else x).double()
            parts = (x.sum(0), float(x.square().sum()), len(x), x.T @ x if component else 0.0)
            sums[name] = [old + new for old, new in zip(sums[name], parts, strict=True)]

        return add

    handles = [one.register_forward_hook(hook(name)) for name, one in layers.items()]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            for i in range(0, len(encoded), batch_size):
                ids, there, mask = padded(encoded[i : i + batch_size])
                labels = torch.full_like(ids, -100)
                labels[:, 1:] = torch.where(mask[:, :-1], ids[:, 1:], -100)
                model(input_ids=ids.to(device), attention_mask=there.to(device), labels=labels.to(device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    vectors, share = {}, {}
    for name, (total, square, n, products) in sums.items():
        v = total / n
        if component:
            size, along = torch.linalg.eigh(products / n - torch.outer(v, v))
            v = along[:, -1] * size[-1].clamp(min=0.0).sqrt()
        share[name] = float(v.square().sum()) / (square / n)
        vectors[name] = v.to(layers[name].weight.dtype)
    return Means(vectors, share)


def padded(encoded: Sequence[Encoded], /, *, length: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, attention mask (B, T) int64, read (B, T) bool): padded on the right; read = before a response token.

    >>> [x.tolist() for x in padded([Encoded((5, 6, 7), 2), Encoded((5, 6), 1)])]
    [[[5, 6, 7], [5, 6, 0]], [[1, 1, 1], [1, 1, 0]], [[False, True, False], [True, False, False]]]
    """
    from toyld.llm import labels

    batch = labels.padded(encoded, length=length)
    return batch["input_ids"], batch["attention_mask"], batch["asked"].roll(-1, 1)  # no response starts at token 0
