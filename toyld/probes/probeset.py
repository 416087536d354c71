"""A fixed set of prompts with one response of every kind: made once before training, scored at every evaluation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from toyld.files import write_whole
from toyld.probes.errors import PreferenceError, refuse, show
from toyld.probes.kinds import KINDS
from toyld.probes.preference import records

__all__ = ["Probe", "ProbeSet"]

SCHEMA = 1
_HEAD = "probe_set"  # in the first line: what is not said per example
Messages = tuple[Mapping[str, str], ...]


class Probe(NamedTuple):
    """One response to score: its kind and example, the prompt, and the prompt's messages where it is a conversation."""

    kind: str
    example: str
    prompt: str
    response: str
    messages: Messages | None


@dataclass(frozen=True, repr=False)
class ProbeSet:
    """Prompts and their responses by kind; see `toyld.probes.make`, which builds one.

    ids: names of the examples, the tables' `example`; prompts: plain text; responses: kind → one text per example, None
    where there is none; missing: kind → why responses (some or all) are missing; seed: all randomness; provenance: what
    it was made from ("sha256" of the pairs' content, number of "rows" and "refused", "held_out", "given" = responses
    read from the data by kind, sha256 of "train" and "test" where there were such); messages: the prompt's messages
    per example, where the response is one message of the assistant.

    >>> probes = ProbeSet(("0",), ("Sky?",), {"chosen": ("Blue.",), "rejected": ("Green.",)})
    >>> probes, len(probes)
    (ProbeSet(1 example: chosen 1, rejected 1), 1)
    >>> [(probe.kind, probe.response) for probe in probes.items()]
    [('chosen', 'Blue.'), ('rejected', 'Green.')]
    """

    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    responses: Mapping[str, tuple[str | None, ...]]
    missing: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Messages | None, ...] | None = None

    def __post_init__(self) -> None:
        size = len(self.ids)
        if not size or len(set(self.ids)) < size:
            refuse("at least one example, names without repeats", f"{size} with {len(set(self.ids))} names", "rename")
        for name in self.ids:
            if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
                refuse("printable names of examples", show(name), "rename it")
        columns: dict[str, Sized] = {"prompts": self.prompts, **self.responses, "messages": self.messages or self.ids}
        if wrong := [name for name, column in columns.items() if len(column) != size]:
            refuse(f"{size} entries in {wrong[0]}", str(len(columns[wrong[0]])), "give None where there is no text")
        for name in ("chosen", *self.responses, *self.missing):
            if name not in KINDS or name not in (*self.responses, *self.missing):
                refuse(f"chosen, and kinds among {', '.join(KINDS)}", name, "rename or add it")
        for name, texts in (("prompt", self.prompts), *self.responses.items()):
            bad = [text for text in texts if not (isinstance(text, str) and text.strip())]
            if bad and (name == "prompt" or any(text is not None for text in bad)):
                refuse(f"a text in {name}", show(bad[0]), "a prompt is needed; a missing response is None")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        counts = ", ".join(f"{key} {sum(t is not None for t in texts)}" for key, texts in self.responses.items())
        absent = [key for key in self.missing if key not in self.responses]
        end = f"; missing {', '.join(absent)}" if absent else ""
        return f"ProbeSet({len(self)} example{'s' * (len(self) != 1)}: {counts}{end})"

    def items(self) -> Iterator[Probe]:
        """Every response there is, kind by kind: what a model has to score."""
        messages = self.messages or (None,) * len(self)
        for kind, texts in self.responses.items():
            for example, prompt, text, chat in zip(self.ids, self.prompts, texts, messages, strict=True):
                if text is not None:
                    yield Probe(kind, example, prompt, text, chat)

    def take(self, n: int, /) -> ProbeSet:
        """The first n examples; `missing` goes on speaking of the whole set.

        >>> ProbeSet(("0", "1"), ("a", "b"), {"chosen": ("x", "y")}).take(1).ids
        ('0',)
        """
        if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= len(self):
            refuse(f"a number of examples from 1 to {len(self)}", show(n), "take as many as there are")
        cut = {key: texts[:n] for key, texts in self.responses.items()}
        chats = None if self.messages is None else self.messages[:n]
        return replace(self, ids=self.ids[:n], prompts=self.prompts[:n], responses=cut, messages=chats)

    def _payload(self) -> bytes:
        head: dict[str, Any] = {"schema": SCHEMA, "examples": len(self), "seed": self.seed}
        head |= {"missing": dict(self.missing), "provenance": dict(self.provenance)}
        lines = []
        for i, (name, prompt) in enumerate(zip(self.ids, self.prompts, strict=True)):
            row: dict[str, Any] = {"id": name, "prompt": prompt}
            row |= {key: texts[i] for key, texts in self.responses.items()}
            row |= {"messages": self.messages[i]} if self.messages is not None else {}
            lines.append(json.dumps(row | ({_HEAD: head} if i == 0 else {}), ensure_ascii=False))
        return ("\n".join(lines) + "\n").encode()

    @property
    def sha256(self) -> str:
        """Fingerprint of everything the set holds."""
        return hashlib.sha256(self._payload()).hexdigest()

    def to_jsonl(self, path: str | PathLike[str], /) -> None:
        """Write the paper's layout, one JSON line per example with the kinds as keys, whole or not at all.

        The first line carries one more key, "probe_set", with the seed, what is missing and the provenance.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "probes.jsonl"
        >>> ProbeSet(("0",), ("Sky?",), {"chosen": ("Blue.",)}).to_jsonl(path)
        >>> path.read_text()[:48]
        '{"id": "0", "prompt": "Sky?", "chosen": "Blue.",'
        """
        try:
            write_whole(Path(path), self._payload())
        except OSError as error:
            refuse(f"to write {Path(path).name}", str(error.strerror), "check the folder and its space")

    @classmethod
    def from_jsonl(cls, path: str | PathLike[str], /) -> ProbeSet:
        """Read what `to_jsonl` wrote; PreferenceError for anything else, as a file that lost its last lines.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "probes.jsonl"
        >>> one = ProbeSet(("0",), ("Sky?",), {"chosen": ("Blue.",)})
        >>> one.to_jsonl(path)
        >>> ProbeSet.from_jsonl(path) == one
        True
        """
        rows = list(records(path))
        for number, row in enumerate(rows):
            if isinstance(row, PreferenceError):
                raise row
            if not isinstance(row, Mapping) or not isinstance(row.get("id"), str) or "prompt" not in row:
                refuse(f"id and prompt in row {number}", show(row), "write the file again with to_jsonl")
        head = rows[0].get(_HEAD) if rows else None
        if not isinstance(head, Mapping) or head.get("schema") != SCHEMA:
            refuse(f"{_HEAD} of schema {SCHEMA} in the first line", show(head), "read other data with from_preference")
        if head.get("examples") != len(rows):
            refuse(f"{head.get('examples')} lines", str(len(rows)), "write the file again, whole")
        keys = [key for key in rows[0] if key not in ("id", "prompt", "messages", _HEAD)]
        for number, row in enumerate(rows):
            if set(row) - {_HEAD} != set(rows[0]) - {_HEAD}:
                refuse(f"the keys of the first line in row {number}", ", ".join(row), "write the file again")
        chats = None
        try:
            if "messages" in rows[0]:
                chats = tuple(None if row["messages"] is None else tuple(row["messages"]) for row in rows)
            return cls(
                tuple(row["id"] for row in rows),
                tuple(row["prompt"] for row in rows),
                {key: tuple(row[key] for row in rows) for key in keys},
                dict(head["missing"]),
                head["seed"],
                dict(head["provenance"]),
                chats,
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, PreferenceError):
                raise
            return refuse(f"missing, seed and provenance in {_HEAD}", type(error).__name__, "write the file again")

    @classmethod
    def from_preference(
        cls, source: object, /, *, n: int | None = None, extra: Iterable[str] | None = None, seed: int = 0, **more: Any
    ) -> ProbeSet:
        """Probes of a preference data set: its pairs, and the `extra` kinds; `more` as in `toyld.probes.make`.

        >>> pairs = [{"prompt": "Sky?", "chosen": "It is blue.", "rejected": "Green."}]
        >>> ProbeSet.from_preference(pairs, extra=["permuted"])
        ProbeSet(1 example: chosen 1, rejected 1, random_permute 1)
        """
        from toyld.probes.making import make

        return make(source, extra, n=n, seed=seed, **more)
