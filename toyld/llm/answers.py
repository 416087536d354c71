"""What a policy itself answers: samples behind prompts, each drawn by random numbers of its own.

    token t of answer k  =  the first token v with  Σ_{w ≤ v} softmax(logits / temperature)_w  >  u_t

The u_t, uniform on [0, 1), are named by (seed, step, k, the prompt's tokens) and are no generator's: an answer depends
neither on what else is asked for nor on how many share a batch or a process, up to the rounding that the shape of a
batch brings, and no random number of anybody else is drawn. What a model's `generation_config` adds for its reader's
sake (top-k, penalties) is left out: this is the policy that was trained, at a temperature.

`generate` of transformers does the rest: caches, positions behind padding on the left, adapters. A model that reads its
padding would answer otherwise beside longer prompts; batch_size=1 has none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from toyld.checked import BadInput
from toyld.llm.checkpoints import positions
from toyld.llm.score import _undisturbed
from toyld.probes.recipes import draws

__all__ = ["answers"]

Tensor = Any
Ids = tuple[int, ...]


class _Drawn:
    """Leaves of each row's scores only the token that the row's own number picks."""

    def __init__(self, uniform: Tensor, temperature: float) -> None:
        self.uniform, self.temperature, self.t = uniform, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import torch

        wide = torch.float32 if scores.device.type == "mps" else torch.float64  # which has no float64
        below = (scores.to(wide) / self.temperature).softmax(-1).cumsum(-1)
        if not bool(below[:, -1].isfinite().all()):
            msg = (
                f"expected finite scores at temperature {self.temperature:g}, got others; the policy may have diverged"
            )
            raise BadInput(msg)
        level = self.uniform[:, self.t, None].to(wide).to(scores.device) * below[:, -1:]
        self.t += 1
        token = torch.searchsorted(below, level, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def answers(
    model: Any,
    prompts: Sequence[Ids],
    /,
    *,
    longest: int,
    ends: Sequence[int],
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    step: int = 0,
    batch_size: int = 32,
    together: bool = False,
) -> list[list[Ids]]:
    """`samples` answers to every prompt (token ids in, token ids out), each up to and with its end or `longest` tokens.

    model: a causal language model of transformers, or an adapter of PEFT on one; it is in eval mode for the while, and
    afterwards modes, settings and random states are what they were. ends: tokens that end an answer, beside those of
    its generation_config. temperature: 0 is the likeliest token each time, so that all samples are the same. together:
    several processes call this with the same prompts, each holding a part of the parameters.

    Raises:
        BadInput: a model that cannot generate; prompts that leave no room for `longest` tokens, by number.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=32, **size))
    >>> alone = answers(model, [(1, 5)], longest=6, ends=[2], samples=2)
    >>> beside = answers(model, [(4,), (1, 5)], longest=6, ends=[2], samples=2)
    >>> alone[0] == beside[1], len(alone[0])
    (True, 2)
    """
    if not callable(getattr(model, "generate", None)):
        raise BadInput(f"expected a causal language model that generates, got {type(model).__name__}; pass another")
    room = positions(getattr(model, "config", None))
    for number, ids in enumerate(prompts):
        if room is not None and len(ids) + longest > room:
            msg = f"prompt {number}: expected room for an answer of {longest} tokens, got a prompt of {len(ids)} and a "
            raise BadInput(msg + f"model of {room} positions; lower max_new_tokens, or leave the prompt out")
    each = 1 if temperature == 0 else samples
    rows = [(i, k) for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])) for k in range(each)]
    out: list[list[Ids]] = [[()] * each for _ in prompts]
    with _undisturbed(model), _plain(model, ends, longest) as settings:
        for first in range(0, len(rows), batch_size):
            some = rows[first : first + batch_size]
            draw = [_uniform(seed, step, k, prompts[i], longest) for i, k in some] if temperature else None
            found = _generate(model, [prompts[i] for i, _ in some], draw, temperature, settings, together)
            for (i, k), ids in zip(some, found, strict=True):
                out[i][k] = ids
    return [mine * (samples // each) for mine in out]


def _uniform(seed: int, step: int, k: int, ids: Ids, count: int) -> list[float]:
    named = draws(seed, "answer", step, k, " ".join(map(str, ids)), count=count)
    return [(number >> 11) * 2.0**-53 for number in named]  # below 1: a double has 53 bits


def _generate(
    model: Any, asked: list[Ids], draw: Any, temperature: float, settings: Any, together: bool
) -> Iterator[Ids]:
    """The answers of one batch, without what stands behind their end."""
    import torch

    width, ends = max(map(len, asked)), settings.eos_token_id or []
    ids = torch.full((len(asked), width), settings.pad_token_id, dtype=torch.long)
    there = torch.zeros_like(ids)
    for row, prompt in enumerate(asked):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        there[row, width - len(prompt) :] = 1
    said = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=there.to(model.device),
        generation_config=settings,
        logits_processor=[] if draw is None else [_Drawn(torch.tensor(draw, dtype=torch.float64), temperature)],
        synced_gpus=together,
    )
    for row in said[:, width:].tolist():
        end = next((t + 1 for t, token in enumerate(row) if token in ends), len(row))
        yield tuple(row[:end])


@contextlib.contextmanager
def _plain(model: Any, ends: Sequence[int], longest: int) -> Iterator[Any]:
    """Settings that leave the policy as it is, with every token that ends an answer; the model's own are set aside."""
    from transformers import GenerationConfig

    owners = [part for part in model.modules() if "generation_config" in vars(part)]
    were = [part.generation_config for part in owners]
    stop = {int(end) for end in ends}
    for own in were:
        theirs = own.eos_token_id
        stop |= set(theirs if isinstance(theirs, list | tuple) else [] if theirs is None else [theirs])
    settings = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=longest, eos_token_id=sorted(stop) or None,
        pad_token_id=min(stop, default=0),
    )  # fmt: skip
    try:
        for part in owners:
            part.generation_config = GenerationConfig()
        yield settings
    finally:
        for part, own in zip(owners, were, strict=True):
            part.generation_config = own
