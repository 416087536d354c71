"""Rewriters and samplers from any causal language model in Hugging Face's form: greedy, or drawn by a seed.

A rewriter is any function text → text, a sampler any function prompt → response; these two make one from a model and
its tokenizer (of a pipeline: `pipe.model, pipe.tokenizer`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toyld.probes.errors import refuse, show
from toyld.probes.kinds import KINDS
from toyld.probes.preference import render
from toyld.probes.recipes import draws

__all__ = ["Rewriter", "Sampler", "identity", "rewriter_from_model", "sampler_from_model"]

Prompt = str | Sequence[Mapping[str, str]]
PIECE = 2**14  # bytes of a parameter's beginning, middle and end that count, where it is larger than the three
_FROM = ("_name_or_path", "transformers_version")  # settings that say where from, not what


def identity(model: Any, tokenizer: Any, /) -> str:
    """16 hexadecimal digits of what a model writes by: settings, number type, tokens, chat template, weights.

    Of each parameter above 48 KiB three pieces count: training moves every one, but a change that misses every piece
    is not noticed. Neither the path nor the device counts.
    """
    digest = hashlib.sha256()
    settings = {key: value for key, value in model.config.to_dict().items() if key not in _FROM}
    ends = [model.generation_config.eos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None)]
    digest.update(json.dumps([settings, ends, tokenizer.get_vocab()], sort_keys=True, default=str).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat, size = tensor.detach().reshape(-1), max(1, PIECE // tensor.element_size())
        whole, half = flat.numel() <= 3 * size, (flat.numel() - size) // 2
        for piece in [flat] if whole else [flat[:size], flat[half : half + size], flat[-size:]]:
            digest.update(_bytes(piece))
    return digest.hexdigest()[:16]


def _bytes(values: Any) -> bytes:
    import torch

    return bytes(values.cpu().contiguous().view(torch.uint8).numpy())


@dataclass
class _Model:
    """A model with its tokenizer that knows itself again until its weights change."""

    model: Any
    tokenizer: Any
    room: int
    _known: tuple[Any, str] | None = field(default=None, repr=False)

    @property
    def _identity(self) -> str:
        # An optimiser's step and load_state_dict count a tensor's version up.
        state = [(p.data_ptr(), p._version) for p in (*self.model.parameters(), *self.model.buffers())]
        state.append((id(self.tokenizer), getattr(self.tokenizer, "chat_template", None)))
        if self._known is None or self._known[0] != state:
            self._known = (state, identity(self.model, self.tokenizer))
        return self._known[1]


@dataclass
class Rewriter(_Model):
    """What `rewriter_from_model` returns: text → text."""

    instruction: str = ""

    @property
    def name(self) -> str:
        """Instruction, room and model: all that an answer depends on beside the text."""
        return f"rewriter {self._identity} room {self.room}: {self.instruction}"

    def __call__(self, text: str, /) -> str:
        prompt: Prompt = self.instruction.replace("{text}", text)
        if getattr(self.tokenizer, "chat_template", None):
            prompt = [{"role": "user", "content": str(prompt)}]
        return _continue(self.model, self.tokenizer, prompt, room=self.room, seed=None)


@dataclass
class Sampler(_Model):
    """What `sampler_from_model` returns: prompt → response."""

    seed: int | None = 0

    @property
    def name(self) -> str:
        """Seed, room and model: all that a sample depends on beside the prompt."""
        return f"sampler {self._identity} room {self.room} seed {self.seed}"

    def __call__(self, prompt: Prompt, /) -> str:
        return _continue(self.model, self.tokenizer, prompt, room=self.room, seed=self.seed)


def _continue(model: Any, tokenizer: Any, prompt: Prompt, *, room: int, seed: int | None) -> str:
    """What the model writes after a prompt: raw text, or messages through the tokenizer's chat template."""
    import torch

    if isinstance(prompt, str):
        encoded = tokenizer(prompt, return_tensors="pt")
    elif not getattr(tokenizer, "chat_template", None):
        return refuse("a tokenizer with a chat template for messages", "none", "pass prompts as plain text")
    else:
        chat = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        encoded = tokenizer.apply_chat_template([dict(message) for message in prompt], **chat)
    ids, mask = (encoded[name].to(model.device) for name in ("input_ids", "attention_mask"))
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and ids.shape[1] >= limit:
        refuse(f"a text shorter than the model's {limit} tokens", f"{ids.shape[1]} tokens", "leave this kind out")
    room = room if limit is None else min(room, limit - ids.shape[1])
    # The policy itself: what a model's generation_config adds for the reader's sake is taken out again.
    how: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}
    how |= {"do_sample": False} if seed is None else {"do_sample": True, "top_k": 0}
    end = model.generation_config.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    training, devices = model.training, [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        if seed is not None:
            text = prompt if isinstance(prompt, str) else render(prompt)
            torch.manual_seed(draws(seed, text, count=1)[0] >> 1)
        model.eval()
        try:
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=room,
                pad_token_id=pad,
                eos_token_id=end if end is not None else tokenizer.eos_token_id,
                **how,
            )
        finally:
            model.train(training)
    whole, given = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (out[0], ids[0]))
    if whole.startswith(given):  # some tokenizers drop the space before the first token that they decode
        return str(whole[len(given) :])
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def rewriter_from_model(
    model: Any, tokenizer: Any, /, *, instruction: str = KINDS["chosen_gptsemantic"].instruction, room: int = 512
) -> Rewriter:
    """A function text → text: the model's greedy answer to `instruction`, in which {text} stands for the text.

    Goes through the tokenizer's chat template where it has one. room: tokens that it may write, fewer where the model's
    context is full. The instructions of the other kinds stand in `KINDS[key].instruction`. Deterministic up to the
    rounding of the device; training mode and the global random state are left as they were. It has a `name`, so that
    `toyld.probes.cached` can keep its answers. Raises PreferenceError for an instruction without {text} and for a text
    that fills the context.

        rewriters = {key: cached(rewriter_from_model(model, tokenizer, instruction=KINDS[key].instruction), file)
                     for key in (*rephrases_of("chosen"), *rephrases_of("rejected"))}

    >>> rewriter_from_model(None, None, instruction="Rewrite it.")
    Traceback (most recent call last):
    toyld.probes.errors.PreferenceError: expected an instruction with {text}, got 'Rewrite it.': say where the text goes
    """
    if "{text}" not in instruction:
        refuse("an instruction with {text}", show(instruction), "say where the text goes")
    return Rewriter(model, tokenizer, room, instruction=instruction)


def sampler_from_model(model: Any, tokenizer: Any, /, *, seed: int | None = 0, room: int = 128) -> Sampler:
    """A function prompt → response: one sample of the policy at temperature 1, or its greedy answer (seed None).

    A prompt of plain text is continued as it stands; messages go through the chat template. Each prompt has its own
    random stream, by seed and text, so that one example's sample does not depend on which others are drawn. room:
    tokens at most. It has a `name`, as `rewriter_from_model`'s. Raises PreferenceError for a prompt that fills the
    context.

    >>> callable(sampler_from_model(None, None))
    True
    """
    return Sampler(model, tokenizer, room, seed=seed)
