"""A prompt and a response as token ids with an explicit boundary: which tokens are the response, given which context.

Both are tokenised *together*, as TRL's DPO trainer does it, so the tokens are those that were trained on: the response
is what follows the longest common prefix with the prompt's own tokens (tokenising the response alone would give
SentencePiece another first token). Plain text gets the tokenizer's own beginning (BOS where it has one, never twice),
and EOS behind the response unless told not to. Messages go through the tokenizer's chat template, which places both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toyld.checked import BadInput

__all__ = ["Encoded", "encode"]


@dataclass(frozen=True)
class Encoded:
    """Token ids of context and response; the response is `ids[start:]`, and ids[t] is predicted at position t − 1."""

    ids: tuple[int, ...]
    start: int
    cut: int = 0  # response tokens lost to max_length

    def __post_init__(self) -> None:
        if not 1 <= self.start < len(self.ids):
            msg = f"expected a context and a response, got {len(self.ids)} tokens, {self.start} of them context: "
            raise BadInput(msg + "give every response at least one token, and one before it")


def encode(
    tokenizer: Any, prompts: Sequence[Any], responses: Sequence[Any], /, *, max_length: int = 512, eos: bool = True
) -> list[Encoded]:
    """Token ids of each prompt with its response, at most `max_length` of them.

    Prompts and responses: strings, or lists of {"role", "content"} (a string behind such a prompt is the assistant's
    message). What is too long loses the beginning of its prompt first (BOS stays), then the end of its response, which
    never leaves the prompt less than half. `eos` belongs to plain text.

    Raises:
        BadInput: an empty response, no context, no chat template, no EOS; the row is named, counted from 0.

    >>> class Letters:
    ...     bos_token, bos_token_id, eos_token_id = "^", 94, 36
    ...     def __call__(self, text, add_special_tokens=True):
    ...         return {"input_ids": [94] * add_special_tokens + [ord(c) for c in text]}
    >>> encode(Letters(), ["abc"], ["de"])
    [Encoded(ids=(94, 97, 98, 99, 100, 101, 36), start=4, cut=0)]
    >>> encode(Letters(), ["abcdef"], ["gh"], max_length=6)
    [Encoded(ids=(94, 101, 102, 103, 104, 36), start=3, cut=0)]
    """
    if max_length < 2:
        msg = f"--max-length: expected at least 2, got {max_length}; a response needs one token before it"
        raise BadInput(msg)
    if len(prompts) != len(responses):
        msg = f"expected one response a prompt, got {len(prompts)} prompts and {len(responses)} responses"
        raise BadInput(msg)
    end: Any = getattr(tokenizer, "eos_token_id", None)
    if eos and end is None and any(isinstance(prompt, str) for prompt in prompts):
        msg = "expected a tokenizer with an EOS token, got one without; use --no-eos"
        raise BadInput(msg)
    out = []
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        if isinstance(prompt, str) and isinstance(response, str):
            if not response.strip():
                raise BadInput(f"row {row}: expected a response, got {response!r}; remove the row")
            context, ids = _text(tokenizer, prompt), _text(tokenizer, prompt + response)
            if eos and ids[-1:] != [end]:
                ids = [*ids, end]
        else:
            context, ids = _messages(tokenizer, prompt, response, row)
        start = 0
        while start < min(len(context), len(ids)) and context[start] == ids[start]:
            start += 1
        if start == len(ids) or start == 0:
            lacks = "a response, got none behind the prompt's tokens" if start else "a context, got an empty prompt"
            raise BadInput(f"row {row}: expected {lacks}; a response needs tokens, and one token before it")
        out.append(_cut(ids, start, max_length, getattr(tokenizer, "bos_token_id", None)))
    return out


def _text(tokenizer: Any, text: str) -> list[int]:
    bos = getattr(tokenizer, "bos_token", None)  # text of a chat template brings its own
    return list(tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"])


def _messages(tokenizer: Any, prompt: Any, response: Any, row: int) -> tuple[list[int], list[int]]:
    if isinstance(response, str):
        response = [{"role": "assistant", "content": response}]
    if isinstance(prompt, str) or not (_are_messages(prompt) and _are_messages(response)):
        got = f"{type(prompt).__name__} and {type(response).__name__}"
        raise BadInput(f"row {row}: expected strings, or lists of messages with role and content, got {got}")
    if not any(str(message["content"]).strip() for message in response):
        raise BadInput(f"row {row}: expected a response, got messages without content; remove the row")
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("expected a tokenizer with a chat template, got none; use the one training used, or plain text")

    def ids(messages: list[dict[str, Any]], ask: bool) -> list[int]:
        found = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=ask, return_dict=True)
        return list(found["input_ids"])

    return ids(list(prompt), True), ids([*prompt, *response], False)


def _are_messages(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in value
    )


def _cut(ids: list[int], start: int, longest: int, bos: int | None) -> Encoded:
    if len(ids) <= longest:
        return Encoded(tuple(ids), start)
    keep = max(longest - (len(ids) - start), min(start, longest // 2), 1)  # tokens of context
    head = ids[:1] if ids[0] == bos and 1 < keep < start else []
    context = head + ids[start - keep + len(head) : start]
    response = ids[start : start + longest - keep]
    return Encoded(tuple(context + response), keep, len(ids) - start - len(response))
