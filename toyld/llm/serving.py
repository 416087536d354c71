"""Which ways of sharing a context a model can serve, as far as its class and config tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from toyld.llm.head import base_of
from toyld.llm.reader import Reader

__all__ = ["refusal"]

SHARED = ("full_attention", "sliding_attention")  # layers whose past is keys and values


def refusal(reader: Reader, way: str, longest: int, /) -> str:
    """Why a model cannot serve the way "cached" or "packed" for sequences of `longest` tokens; "" if it can."""
    if reader.config is None:
        return "it is no model of transformers"
    return _no_sharing(reader) or (_no_cache(reader) if way == "cached" else _no_mask(reader, longest))


def _no_sharing(reader: Reader) -> str:
    base, config = base_of(reader.model), reader.config
    if reader.virtual:
        return "its adapter puts tokens of its own before the prompt"
    if getattr(base, "_is_stateful", False):
        return "it is recurrent"
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        return "its attention is not causal"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(SHARED))
    if other:
        return f"it has layers of {', '.join(other)}"
    ropes = sorted({rope for rope in _ropes(config) if rope in ("dynamic", "longrope")})
    return f"its positions depend on how long a sequence is ({', '.join(ropes)})" if ropes else ""


def _no_cache(reader: Reader) -> str:
    if not {"past_key_values", "use_cache"} <= reader.accepts:
        return "it takes no key-value cache"
    return "its layers share their keys" if getattr(reader.config, "num_kv_shared_layers", 0) else ""


def _no_mask(reader: Reader, longest: int) -> str:
    config = reader.config
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its attention counts distances in the row (ALiBi)"
    if "position_ids" not in reader.accepts:
        return "it takes no positions"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention is {config._attn_implementation}, which takes no mask of this kind"
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    window = getattr(config, "sliding_window", None)
    if "sliding_attention" in kinds and window is not None and window < longest:
        return f"its window of {window} tokens is shorter than a sequence of {longest}"
    return "its layers look at windows" if "local" in str(getattr(config, "attention_types", "")) else ""


def _ropes(config: Any) -> Iterator[str]:
    """Every kind of rotary position that a config names."""
    for name in ("rope_parameters", "rope_scaling"):
        todo = [getattr(config, name, None)]
        while todo:
            one = todo.pop()
            if isinstance(one, dict):
                todo += one.values()
                yield from (str(one[key]) for key in ("rope_type", "type") if isinstance(one.get(key), str))
