"""What is wrong with preference pairs before any model sees them: templates, BOS and EOS, boundaries, lengths, copies.

Every check reads texts and token ids alone, and is about what TRL's DPO trainer would make of them: prompt and response
tokenised together, EOS behind plain text, the end cut at max_length. `fault`: the pair teaches something that nobody
wants. `warning`: worth a look. `note`: good to know; nothing need be done.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property
from statistics import median
from typing import Any, Literal

from toyld.llm.encode import Encoded
from toyld.probes import Preferences, Row
from toyld.probes.checks import faults as faults_of_text

__all__ = ["Finding", "TokenPair", "find", "shared_start"]

Severity = Literal["fault", "warning", "note"]
ALIKE = 0.9  # of two responses' tokens in common, in order: near-duplicates
LONGER = 1.5  # median ratio of lengths that a loss of sums can exploit
# Control tokens of the common chat formats, as text.
MARKUP = re.compile(
    r"<\|[A-Za-z_0-9 ]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
)
_TURN = re.compile(r"^[A-Z][A-Za-z ]{0,20}:", re.MULTILINE)
_TEXT: dict[str, tuple[Severity, str]] = {
    "refused-rows": ("fault", "drop or repair them"),
    "duplicate-pairs": ("warning", "keep one of each: copies weigh more, and leak into held-out splits"),
    "contradictory-pairs": ("fault", "drop both, or decide: their pushes cancel"),
    "prompt-repeated": ("fault", "take the prompt off the responses"),
}


@dataclass(frozen=True)
class Finding:
    """What (`code`, `text`), which rows (numbers from 0; empty: it is about the whole), of how many, what to do."""

    code: str
    severity: Severity
    rows: tuple[int, ...]
    of: int
    text: str
    do: str

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.rows[:5])) + (", …" if len(self.rows) > 5 else "")
        how_many = f"{len(self.rows)} of {self.of} rows {self.text}: {shown}" if self.rows else self.text
        return f"{how_many}; {self.do}"


@dataclass(frozen=True)
class TokenPair:
    """A row with its tokens, whole: nothing is cut. prompt: the prompt's own tokens, as the tokenizer gives them."""

    row: Row
    prompt: tuple[int, ...]
    chosen: Encoded
    rejected: Encoded

    @property
    def number(self) -> int:
        return int(self.row.id)

    @property
    def sides(self) -> tuple[tuple[str, Encoded], tuple[str, Encoded]]:
        return (self.row.chosen, self.chosen), (self.row.rejected, self.rejected)

    @cached_property
    def responses(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of both responses."""
        return self.chosen.ids[self.chosen.start :], self.rejected.ids[self.rejected.start :]


def shared_start(pair: TokenPair, /) -> int:
    """How many tokens both responses begin with in common: contexts where chosen and rejected are pushed alike.

    >>> row = Row("0", "?", "a b", "a c")
    >>> shared_start(TokenPair(row, (7,), Encoded((7, 1, 2), 1), Encoded((7, 1, 3), 1)))
    1
    """
    a, b = pair.responses
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def find(data: Preferences, pairs: Sequence[TokenPair], tokenizer: Any, /, *, max_length: int) -> list[Finding]:
    """All findings on data whose usable rows are `pairs`, faults first; `max_length` as in training, in tokens."""
    of = len(data) + len(data.refused)
    found = [
        Finding(code, _TEXT[code][0], tuple(map(int, rows)), of, what, _TEXT[code][1])
        for code, rows, what in faults_of_text(data)
        if code in _TEXT
    ]
    if data.refused:
        found[0] = replace(found[0], text=f"cannot be used ({data.refused[0][1]})")

    def rows(code: str, severity: Severity, what: str, do: str, holds: Callable[[TokenPair], bool]) -> None:
        if hit := tuple(pair.number for pair in pairs if holds(pair)):
            found.append(Finding(code, severity, hit, of, what, do))

    for check in (_labels, _special, _boundary, _lengths, _copies):
        check(pairs, tokenizer, rows, max_length)
    found += _whole(pairs, tokenizer, of)
    return sorted(found, key=lambda one: ("fault", "warning", "note").index(one.severity))


def _labels(pairs: Sequence[TokenPair], _: Any, rows: Any, __: int) -> None:
    """One text that is chosen in one pair and rejected in another of the same prompt."""
    wins, losses = defaultdict(set), defaultdict(set)
    for pair in pairs:
        wins[pair.row.prompt.strip()].add(pair.row.chosen.strip())
        losses[pair.row.prompt.strip()].add(pair.row.rejected.strip())
    exchanged = {(p.row.prompt.strip(), p.row.rejected.strip(), p.row.chosen.strip()) for p in pairs}

    def both(pair: TokenPair) -> bool:
        prompt, a, b = (x.strip() for x in (pair.row.prompt, pair.row.chosen, pair.row.rejected))
        return (prompt, a, b) not in exchanged and (a in losses[prompt] or b in wins[prompt])

    rows(
        "chosen-and-rejected",
        "note",
        "hold a response that is chosen in one pair of its prompt and rejected in another",
        "rankings have such; its log-probability gets both pushes and may fall far",
        both,
    )


def _special(pairs: Sequence[TokenPair], tokenizer: Any, rows: Any, _: int) -> None:
    eos, bos = (str(getattr(tokenizer, f"{name}_token", None) or "") for name in ("eos", "bos"))
    known = {str(t) for t in getattr(tokenizer, "all_special_tokens", [])}
    known |= {t.content for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special}
    known -= {getattr(tokenizer, "unk_token", None)}
    unk = getattr(tokenizer, "unk_token_id", None)
    begins = getattr(tokenizer, "bos_token_id", None)

    def messages(pair: TokenPair, *sides: str) -> Iterator[str]:
        for side in sides:
            if pair.row.messages is None:
                yield getattr(pair.row, side)
            else:
                yield from (message["content"] for message in pair.row.messages[side])

    def eos_inside(pair: TokenPair) -> bool:
        # Plain text may end with EOS: a trainer then adds none.
        ends = [(text.removesuffix(eos) if pair.row.messages is None else text) for text in messages(pair, *BOTH)]
        return any(eos in text for text in ends)

    def others(pair: TokenPair) -> bool:
        return any(token in text for text in messages(pair, *BOTH) for token in known - {eos})

    def unheard(pair: TokenPair) -> bool:
        texts = messages(pair, "prompt", *BOTH)
        return any(mark not in known and not _one(tokenizer, mark) for text in texts for mark in MARKUP.findall(text))

    if eos:
        do = "take it out: text behind it teaches the model to go on where it should stop"
        rows("eos-inside", "fault", f"have EOS ({eos}) inside a response", do, eos_inside)
    what = "have special tokens as text in a response, which become control tokens"
    rows("special-in-response", "fault", what, "take them out, or escape them", others)
    do = "use the template of this tokenizer; to it they are many ordinary tokens"
    rows("unknown-markup", "warning", "hold chat markup that is no token of this tokenizer", do, unheard)
    if begins is not None and bos:
        what = f"begin with BOS ({bos}) twice: once in the text, once from the tokenizer"
        rows("doubled-bos", "fault", what, "take it off the text", lambda pair: pair.prompt[:2] == (begins, begins))
    if unk is not None:
        what = "hold characters that the tokenizer does not know (unk)"
        rows("unknown-tokens", "warning", what, "clean them, or use another tokenizer", lambda pair: _holds(pair, unk))


BOTH = ("chosen", "rejected")


def _holds(pair: TokenPair, token: int) -> bool:
    return token in pair.chosen.ids or token in pair.rejected.ids


def _one(tokenizer: Any, text: str) -> bool:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1


def _boundary(pairs: Sequence[TokenPair], tokenizer: Any, rows: Any, _: int) -> None:
    eos, bos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "bos"))
    closes = _closes(tokenizer)

    def merges(pair: TokenPair) -> bool:
        own = pair.prompt[:-1] if pair.prompt[-1:] == (eos,) and closes else pair.prompt
        own = own[1:] if len(own) > 1 and own[0] == own[1] == bos else own
        return any(side.ids[: len(own)] != own for _, side in pair.sides)

    def glued(pair: TokenPair) -> bool:
        if pair.row.messages is not None:
            return False
        return pair.row.prompt[-1:].isalnum() and any(text[:1].isalnum() for text, _ in pair.sides)

    def repeats(pair: TokenPair) -> bool:
        prompt = pair.row.prompt.strip()
        starts = [text.strip().startswith(prompt) for text, _ in pair.sides]
        return pair.row.messages is None and len(prompt.split()) >= 5 and any(starts) and not all(starts)

    def turns(pair: TokenPair) -> bool:
        lines = pair.row.prompt.strip().split("\n")
        if pair.row.messages is not None or not _TURN.fullmatch(lines[-1].strip()):
            return False
        marks = {f"\n{mark}" for line in (lines[0], lines[-1]) for mark in _TURN.findall(line)}
        return any(mark in text for text, _ in pair.sides for mark in marks)

    do = "let the prompt end, and the response begin, at white space in the same way everywhere"
    rows("boundary-merged", "warning", "have a token across prompt and response (TRL warns of a mismatch)", do, merges)
    do = "put white space between them"
    rows("words-glued", "fault", "run the last word of the prompt and the first of a response together", do, glued)
    rows("prompt-in-one-response", "fault", "repeat the prompt in one response only", "take it off", repeats)
    do = "cut the response before it"
    rows("turn-in-response", "fault", "go on into another turn of the dialogue inside a response", do, turns)


def _closes(tokenizer: Any) -> bool:
    """Whether the tokenizer puts EOS behind any text by itself."""
    return list(tokenizer("a")["input_ids"])[-1:] == [getattr(tokenizer, "eos_token_id", None)]


def _lengths(pairs: Sequence[TokenPair], _: Any, rows: Any, longest: int) -> None:
    do = f"raise max_length above {longest}, or shorten them: TRL drops such pairs, and what is left is another sample"
    rows(
        "prompt-too-long",
        "warning",
        f"have prompts of {longest} tokens or more",
        do,
        lambda p: len(p.prompt) >= longest,
    )
    do = f"raise max_length above {longest}, or shorten prompts: a cut response is taught as if it ended nowhere"

    def cut(pair: TokenPair) -> bool:
        return len(pair.prompt) < longest < max(len(side.ids) for _, side in pair.sides)

    rows("truncated", "warning", f"lose the end of a response, and EOS, at {longest} tokens", do, cut)


def _copies(pairs: Sequence[TokenPair], _: Any, rows: Any, __: int) -> None:
    do = "their pushes nearly cancel; drop them, or take a loss that knows (DPOP, edit the pair)"
    rows("near-duplicates", "warning", f"have responses with {ALIKE:.0%} of their tokens in common", do, _alike)

    def starts(pair: TokenPair) -> bool:
        return shared_start(pair) >= max(4, 0.25 * min(map(len, pair.responses))) and not _alike(pair)

    do = "along it the two pushes cancel; only what follows is taught"
    rows("shared-start", "note", "share a quarter or more of their beginning", do, starts)


def _alike(pair: TokenPair) -> bool:
    a, b = pair.responses
    common = sum((Counter(a) & Counter(b)).values())  # at least as many as in order, and quick to count
    if 2.0 * common < ALIKE * (len(a) + len(b)):
        return False
    return SequenceMatcher(None, a, b, autojunk=False).ratio() >= ALIKE


def _whole(pairs: Sequence[TokenPair], tokenizer: Any, of: int) -> Iterator[Finding]:
    """What is true of the tokenizer or of the data as a whole."""
    eos, pad = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "pad"))
    chats = [pair for pair in pairs if pair.row.messages is not None]
    if eos is None:
        yield Finding("no-eos", "fault", (), of, "the tokenizer has no EOS token", "set one: nothing teaches to stop")
    elif missing := [p.number for p in chats if any(eos not in side.ids[-4:] for _, side in p.sides)]:
        what = f"end without EOS ({tokenizer.eos_token}) as the chat template writes them"
        do = "let the template, or eos_token, be the one that generation stops at"
        yield Finding("template-without-eos", "fault", tuple(missing), of, what, do)
    if eos is not None and _closes(tokenizer):
        what = "the tokenizer puts EOS behind every text, prompts too"
        yield Finding("eos-after-prompt", "fault", (), of, what, "set add_eos_token = False")
    if eos is not None and pad == eos:
        what = "the padding token is EOS"
        do = "fine where padding is masked by length (TRL's DPO); a collator that masks by id never teaches EOS"
        yield Finding("pad-is-eos", "note", (), of, what, do)
    ratios = [len(p.responses[0]) / len(p.responses[1]) for p in pairs]
    if len(ratios) >= 20 and not 1 / LONGER < (middle := median(ratios)) < LONGER:
        what = f"chosen responses are {middle:.2g} times as long as rejected ones (median)"
        do = "sums of log-probabilities can be told apart by length alone; compare with a length-normalised loss"
        yield Finding("length-imbalance", "warning", (), of, what, do)
