"""The output head of a causal language model: what turns its last hidden states into logits.

For hidden states h, with a scale s and a soft cap c from the config,

    z = c · tanh(s · (h Wᵀ + b) / c)     (without a cap z = s · (h Wᵀ + b))

by tiles of W in float32; float64 for a float64 model. A head that is no bare matrix (LoRA, quantised, split) is called
row by row. Whether this is what the model does is not taken on trust: see `toyld.llm.reader`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toyld.llm import statistics
from toyld.llm.wanted import Rows

__all__ = ["Head", "base_of", "is_matrix", "own_logits", "read_head"]

Tensor = Any
MEMORY = 2**24  # logits that a head that is no matrix may make at once


@dataclass(frozen=True)
class Head:
    """How logits come about: "tiles" of a matrix, "rows" through the head's module, or the model's own "logits"."""

    name: str
    why: str
    module: Any = None
    scale: float = 1.0
    cap: float | None = None

    def scan(self, features: Rows, rows: Tensor, labels: Tensor, /) -> Tensor:
        """`statistics.scan` of hidden states (N, d), or of the model's own logits (N, V)."""
        import torch

        if self.name == "tiles":
            return statistics.scan(features, self._tile, self.module.weight.shape[0], rows, labels)
        out = []
        step = max(1, MEMORY // self._classes(features))
        for start in range(0, len(features), step):
            begin, end = torch.searchsorted(rows, torch.tensor([start, start + step])).tolist()
            if end > begin:
                some = self.logits(features[start : start + step])
                out.append(statistics.scan(some, _part, some.shape[1], rows[begin:end] - start, labels[begin:end]))
        return torch.cat(out, 1)

    def logits(self, features: Tensor, /) -> Tensor:
        """(N, V) in float32 or float64."""
        if self.name == "tiles":
            return self._tile(features, 0, self.module.weight.shape[0])
        return self._finish(_wide(features if self.name == "logits" else self.module(features)))

    def _classes(self, features: Rows) -> int:
        return int(features.width if self.name == "logits" else getattr(self.module, "out_features", 2**18))

    def _tile(self, features: Tensor, a: int, b: int) -> Tensor:
        import torch

        weight, bias = self.module.weight[a:b], self.module.bias
        features = features.to(weight.device)
        with torch.autocast(features.device.type, enabled=False):
            if features.is_cuda and features.dtype == weight.dtype and features.dtype.itemsize == 2:
                z = torch.mm(features, weight.T, out_dtype=torch.float32)
            else:
                kind = torch.promote_types(torch.promote_types(features.dtype, weight.dtype), torch.float32)
                z = torch.mm(features.to(kind), weight.to(kind).T)
        return self._finish(z if bias is None else z.add_(bias[a:b]))

    def _finish(self, z: Tensor) -> Tensor:
        if self.name == "logits":
            return z
        z = z if self.scale == 1 else z * self.scale
        return z if self.cap is None else z.div_(self.cap).tanh_().mul_(self.cap)


def _wide(z: Tensor) -> Tensor:
    import torch

    return z.to(torch.promote_types(z.dtype, torch.float32))


def _part(z: Tensor, a: int, b: int) -> Tensor:
    return z[:, a:b].clone()


def base_of(model: Any, /) -> Any:
    """The model itself, without a PEFT wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def own_logits(why: str, /) -> Head:
    return Head("logits", why)


def read_head(model: Any, /) -> Head:
    """The head as the model and its config describe it; nothing is computed."""
    import torch

    base = base_of(model)
    try:
        module = base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        module = None
    if not isinstance(module, torch.nn.Module):
        return own_logits("the model names no output head")
    config: Any = getattr(base, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    cap = getattr(config, "final_logit_softcapping", None) or None
    return Head("tiles", "by tiles of the head's matrix", module, _scale(config), cap)


def _scale(config: Any) -> float:
    """What logits are multiplied by; Granite and its kin divide."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float):
            return float(value)
    value = getattr(config, "logits_scaling", None)
    if not isinstance(value, int | float) or not value:
        return 1.0
    return float(value) if config.model_type == "hyperclovax" else 1.0 / value


def is_matrix(module: Any) -> bool:
    """Whether h Wᵀ + b is what it does: a bare linear layer, its weights whole and here (no LoRA, not quantised)."""
    import torch

    return (
        type(module) is torch.nn.Linear
        and "forward" not in vars(module)
        and type(module.weight) in (torch.nn.Parameter, torch.Tensor)
        and module.weight.is_floating_point()
        and module.weight.device.type != "meta"
    )
