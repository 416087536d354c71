"""Training data in every format of TRL's, ready for its trainers: opened, read, split by prompts, bad rows named.

Sources: a path (JSON lines or a JSON list, gzipped or not, Parquet, a folder that `datasets` saved), a name on the Hub
(`owner/name` or `owner/name:split`, which needs a network once), a `datasets.Dataset`, any iterable of rows. Formats,
told from the keys and types of each row: preference pairs with an explicit or implicit prompt, prompt-completion,
`messages`, `text`, each as strings or conversations where TRL has both, and the paper's JSON lines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from toyld.checked import BadInput
from toyld.files import write_whole
from toyld.llm.data import LeftOut
from toyld.llm.opened import opened
from toyld.probes import PreferenceError, Preferences, Row, read_preference, render
from toyld.probes.preference import records
from toyld.probes.recipes import draws

__all__ = ["Pairs", "Texts", "pairs_for_training", "split", "texts_for_training", "write_rows"]

_TEXT = "rows with prompt and completion, messages, text, or chosen and rejected"
_SIDES = ("train", "test")


@dataclass(frozen=True)
class Pairs:
    """Preference pairs, split: `train` and `test` (None where nothing was to be held out) feed `toyld.probes.make`.

    left_out: the rows of no use, by number and reason; conversational: whether the rows are conversations.

    >>> row = {"prompt": "Sky?", "chosen": " Blue.", "rejected": " Red."}
    >>> pairs = pairs_for_training([row, row | {"prompt": "Sea?"}, row | {"rejected": ""}], test=1)
    >>> pairs.rows("test"), print(pairs.left_out)
    1 of 3 rows left out: row 2, rejected is empty (rows counted from 0)
    ([{'prompt': 'Sky?', 'chosen': ' Blue.', 'rejected': ' Red.'}], None)
    """

    train: Preferences
    test: Preferences | None
    left_out: LeftOut
    conversational: bool

    def rows(self, side: str = "train", /) -> list[dict[str, Any]]:
        """{"prompt", "chosen", "rejected"} of a side, as TRL's DPOTrainer takes them: strings, or lists of messages."""
        return [_pair(row) for row in self._side(side)]

    def sft(self, side: str = "train", /, *, both: bool = False) -> list[dict[str, Any]]:
        """{"prompt", "completion"} with the chosen responses; `both`: the rejected ones as rows of their own, too.

        >>> row = {"prompt": "Sky?", "chosen": " Blue.", "rejected": " Red."}
        >>> [one["completion"] for one in pairs_for_training([row]).sft(both=True)]
        [' Blue.', ' Red.']
        """
        names = ("chosen", "rejected") if both else ("chosen",)
        return [{"prompt": row["prompt"], "completion": row[name]} for row in self.rows(side) for name in names]

    def _side(self, side: str) -> tuple[Row, ...]:
        found = getattr(self, _one_of(side))
        return () if found is None else found.rows


@dataclass(frozen=True)
class Texts:
    """Rows for TRL's SFTTrainer, split; form: "prompt-completion", "messages" or "text"; the rest as in `Pairs`.

    >>> texts_for_training([{"text": "Once."}]).train
    ({'text': 'Once.'},)
    """

    train: tuple[dict[str, Any], ...]
    test: tuple[dict[str, Any], ...]
    left_out: LeftOut
    form: str
    conversational: bool
    sha256: str


def _one_of(side: str) -> str:
    if side not in _SIDES:
        raise BadInput(f"expected the side train or test, got {side!r}; use one of them")
    return side


def _pair(row: Row) -> dict[str, Any]:
    if row.messages is None:
        return {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
    return {name: [dict(message) for message in row.messages[name]] for name in ("prompt", "chosen", "rejected")}


def pairs_for_training(source: Any, /, *, test: float = 0, seed: int = 0, id_key: str | None = None) -> Pairs:
    """Preference pairs of any source and format, ready for TRL's DPOTrainer (see `Pairs.rows`).

    test: how many rows to hold out, a share below 1 or a number of rows, chosen by `seed`; see `split`. Implicit
    prompts are made explicit, since TRL's own cut may fall inside a word. A data set is of strings or of conversations:
    rows of the rarer form are left out, as are those of no use. Columns of no pair (tools, scores) are dropped.

    Raises:
        BadInput: the source cannot be read, no pair is left, nothing is left to train on.
    """
    read = read_preference(opened(source), on_bad="skip", id_key=id_key)
    chat = 2 * sum(row.messages is not None for row in read.rows) > len(read)
    size, refused = len(read) + len(read.refused), list(read.refused)
    gone = {number for number, _ in refused}
    numbers = [number for number in range(size) if number not in gone]
    other = "a conversation, unlike most other rows" if not chat else "no conversation, unlike most other rows"
    refused += [(at, other) for at, row in zip(numbers, read.rows, strict=True) if (row.messages is not None) != chat]
    rows = [row for row in read.rows if (row.messages is not None) == chat]
    train, held = split([row.prompt for row in rows], test=test, seed=seed)
    kept = Preferences.of(rows[i] for i in train)
    return Pairs(kept, Preferences.of(rows[i] for i in held) if held else None, LeftOut.named(refused, size), chat)


def texts_for_training(source: Any, /, *, test: float = 0, seed: int = 0) -> Texts:
    """Texts of any source and format, ready for TRL's SFTTrainer: each row as {"prompt", "completion"} or as it is.

    Pairs give their chosen responses; unpaired rows with a label (TRL's KTO) those whose label is true; a column
    `response` is a completion. All rows must be of one form: those of a rarer one are left out. `test`, `seed` as in
    `pairs_for_training`.

    >>> texts_for_training([{"prompt": "Sky?", "response": " Blue."}]).train
    ({'prompt': 'Sky?', 'completion': ' Blue.'},)
    """
    good: list[tuple[int, tuple[str, bool], dict[str, Any]]] = []
    bad: list[tuple[int, str]] = []
    size = 0
    for number, record in enumerate(records(opened(source))):
        size = number + 1
        try:
            if isinstance(record, PreferenceError):
                raise record
            good.append((number, *_text(record)))
        except BadInput as error:
            bad.append((number, str(error)))
    if not good:
        raise BadInput(f"expected {_TEXT}, got none ({bad[0][1] if bad else 'no rows'}); check the data")
    forms = [form for _, form, _ in good]
    form = max(dict.fromkeys(forms), key=forms.count)
    bad += [(i, f"of the form {_say(f)}, most other rows of {_say(form)}") for i, f, _ in good if f != form]
    rows = [row for _, f, row in good if f == form]
    train, held = split([_begins(row) for row in rows], test=test, seed=seed)
    sides = [tuple(rows[i] for i in part) for part in (train, held)]
    sha = hashlib.sha256("\n".join(json.dumps(row, sort_keys=True) for row in rows).encode()).hexdigest()
    return Texts(sides[0], sides[1], LeftOut.named(bad, size), *form, sha)


def _say(form: tuple[str, bool]) -> str:
    return f"{form[0]} ({'conversations' if form[1] else 'strings'})"


def _text(record: Any) -> tuple[tuple[str, bool], dict[str, Any]]:
    """((form, whether a conversation), the row) of one record; BadInput where it is of no use."""
    if not isinstance(record, Mapping):
        raise BadInput(f"expected a row as a mapping of columns, got {type(record).__name__}; pass one split")
    if "chosen" in record and "rejected" in record:
        pair = _pair(read_preference([record]).rows[0])
        row = {"prompt": pair["prompt"], "completion": pair["chosen"]}
        return ("prompt-completion", not isinstance(row["prompt"], str)), row
    if record.get("label", True) is not True:
        raise BadInput(f"expected a label that is true, got {record['label']!r}; it is not to be imitated")
    answer = next((key for key in ("completion", "response") if record.get(key) is not None), None)
    if record.get("prompt") is not None and answer is not None:
        row = {"prompt": _checked(record["prompt"], "prompt"), "completion": _checked(record[answer], answer)}
        if isinstance(row["prompt"], str) != isinstance(row["completion"], str):
            raise BadInput("expected prompt and completion both as strings or both as messages, got one of each")
        return ("prompt-completion", not isinstance(row["prompt"], str)), row
    for key in ("messages", "text"):
        if record.get(key) is not None:
            value = _checked(record[key], key)
            if isinstance(value, str) != (key == "text"):
                raise BadInput(f"expected {key} as {'a string' if key == 'text' else 'messages'}, got the other")
            return (key, key == "messages"), {key: value}
    raise BadInput(f"expected {_TEXT}, got the keys {', '.join(map(str, record)) or 'none'}; rename the columns")


def _checked(value: Any, name: str) -> str | list[dict[str, str]]:
    """A text, or messages with text in them; BadInput otherwise."""
    if isinstance(value, str):
        if not value.strip():
            raise BadInput(f"expected a text in {name}, got an empty one; drop the row")
        return value
    well = isinstance(value, Sequence) and not isinstance(value, bytes) and len(value) > 0
    if not well or not all(isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m for m in value):
        raise BadInput(f"expected {name} as a string or as messages with role and content, got {ascii(value)[:60]}")
    if not any(message["content"].strip() for message in value):
        raise BadInput(f"expected a text in {name}, got empty messages; drop the row")
    return [{"role": str(message["role"]), "content": message["content"]} for message in value]


def _begins(row: Mapping[str, Any]) -> str:
    """What must not stand on both sides: the prompt; of a conversation all but its last answer; else the text."""
    value = row.get("prompt", row.get("text"))
    if isinstance(value, str):
        return value
    if value is not None:
        return render(value)
    messages = row["messages"]
    last = messages[-1]["role"] == "assistant" and len(messages) > 1
    return render(messages[:-1] if last else messages)


def split(prompts: Sequence[str], /, *, test: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Numbers of the rows to train on and to hold out, each in order, by the seed and the prompts' words alone.

    Rows of one prompt stay together (white space and case aside), and so do prompts of which one begins with the words
    of the other, as the turns of one conversation do: what is held out was not seen. test: a share of the rows below 1,
    or a number of rows; as near to it as whole groups allow, without passing it.

    Raises:
        BadInput: `test` out of range; prompts that all belong together.

    >>> split(["Hi", "Sky?", "hi ", "Sea?", "Hi You"], test=2)
    ([0, 2, 4], [1, 3])
    """
    size = len(prompts)
    if isinstance(test, bool) or not 0 <= test < size or (test >= 1 and test != int(test)):
        raise BadInput(
            f"expected a share of the rows below 1, or a number below the {size} rows, to hold out, got {test}"
        )
    wanted = round(test * size) if test < 1 else int(test)
    if not wanted:
        return list(range(size)), []
    groups: list[list[int]] = []
    last: tuple[str, ...] = ()
    words = [tuple(prompt.casefold().split()) for prompt in prompts]
    for i in sorted(range(size), key=lambda i: (words[i], i)):
        if not groups or words[i][: len(last)] != last:  # sorted, a beginning stands before what begins with it
            groups.append([])
            last = words[i]
        groups[-1].append(i)
    order = sorted(groups, key=lambda group: draws(seed, "held out", *words[group[0]], count=1))
    held: list[int] = []
    for group in order:
        if len(held) + len(group) <= wanted:
            held += group
    if not held:
        msg = f"expected prompts that can be held apart, got {size} rows in {len(groups)} groups of one beginning; "
        raise BadInput(msg + "hold out more rows, or give a test set of its own")
    kept = sorted(set(range(size)) - set(held))
    return kept, sorted(held)


def write_rows(path: str | PathLike[str], rows: Iterable[Mapping[str, Any]], /) -> int:
    """Write rows as JSON lines, all or nothing; how many.

    >>> import tempfile
    >>> write_rows(Path(tempfile.mkdtemp()) / "rows.jsonl", [{"text": "Once."}])
    1
    """
    lines = [json.dumps(dict(row), ensure_ascii=False) for row in rows]
    write_whole(Path(path), ("\n".join(lines) + "\n").encode())
    return len(lines)
