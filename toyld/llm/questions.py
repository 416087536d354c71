"""Prompts with their worked solutions, as text and as tokens: what a policy is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from toyld.checked import BadInput
from toyld.llm.encode import encode
from toyld.probes import ProbeSet

__all__ = ["Question", "questions"]

UNCUT = 2**30  # tokens


@dataclass(frozen=True)
class Question:
    """A prompt as text or messages and as token ids, its solution, and how many tokens that has.

    end: the special token that a chat template puts behind the solution, None where there is none.
    """

    example: str
    prompt: Any
    solution: str
    ids: tuple[int, ...]
    tokens: int
    end: int | None


def questions(tokenizer: Any, probes: ProbeSet, /) -> list[Question]:
    """The examples of a probe set that have a solution, which is their "chosen"; nothing is cut.

    Raises:
        BadInput: no solutions, or what `toyld.llm.encode` refuses.

    >>> class Letters:
    ...     def __call__(self, text, add_special_tokens=True):
    ...         return {"input_ids": [ord(c) for c in text]}
    >>> questions(Letters(), ProbeSet(("a",), ("1+1",), {"chosen": ("=2",)}))
    [Question(example='a', prompt='1+1', solution='=2', ids=(49, 43, 49), tokens=2, end=None)]
    """
    out = []
    for one in probes.items():
        if one.kind != "chosen":
            continue
        prompt: Any = one.prompt if one.messages is None else [dict(message) for message in one.messages]
        try:
            (found,) = encode(tokenizer, [prompt], [one.response], max_length=UNCUT, eos=False)
        except BadInput as bad:
            raise BadInput(f"chosen of example {one.example}, {bad}") from None
        ids, solution = found.ids[: found.start], found.ids[found.start :]
        out.append(Question(one.example, prompt, one.response, ids, len(solution), _end(tokenizer, solution)))
    if not out:
        raise BadInput("expected probes with a worked solution each as kind 'chosen', got none; add them")
    return out


def _end(tokenizer: Any, solution: tuple[int, ...]) -> int | None:
    """The special token behind a text, where nothing but white space follows it."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for i in reversed(solution if special else ()):
        if i in special:
            return i
        if tokenizer.decode([i]).strip():
            break
    return None
