"""Preference data in one plain form: prompt, chosen, rejected, and further responses by kind.

Formats, told from each row's keys and types: TRL's preference format with an explicit prompt (strings), an implicit one
(both responses begin with it), conversational (lists of {"role", "content"}, explicit or implicit), and the paper's
JSON lines (prompt and 13 kinds). Sources: any iterable of mappings (a list of dicts, a `datasets.Dataset`), or the path
of a file of JSON lines or of a JSON list, plain or gzipped; told by content, never by name.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from toyld.probes.errors import PreferenceError, refuse, show
from toyld.probes.kinds import KINDS

__all__ = ["Preferences", "Row", "extract_prompt", "plain_text", "read_preference", "records", "render"]

Message = Mapping[str, str]
_FORMATS = (
    "prompt, chosen, rejected (TRL's preference format or the paper's) or chosen, rejected with the prompt inside"
)
_EXTRA = tuple(key for key, kind in KINDS.items() if key not in ("chosen", "rejected") and kind.group != "path")
_OTHER_FORMATS = {
    "label": "unpaired rows (prompt, completion, label) hold no pairs: pair them, or use the paired data set",
    "messages": "one conversation is no pair: use the preference data set",
    "conversations": "rename from/value to role/content, and keep two conversations: chosen and rejected",
    "completion": "one completion is no pair: use the preference data set",
    "text": "a text is no pair: use the preference data set",
}


@dataclass(frozen=True)
class Row:
    """One pair in plain text; `extra` holds other kinds by key, `messages` the conversation where there was one.

    >>> row = read_preference([{"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}]).rows[0]
    >>> row.id, row.prompt, row.chosen, row.extra, row.messages
    ('0', 'Sky?', 'Blue.', {}, None)
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    extra: Mapping[str, str] = field(default_factory=dict)
    messages: Mapping[str, tuple[Message, ...]] | None = None


@dataclass(frozen=True)
class Preferences:
    """Rows in order, the rows refused as (row, reason), and sha256 of the rows' content (whatever their format was)."""

    rows: tuple[Row, ...]
    refused: tuple[tuple[int, str], ...]
    sha256: str

    @classmethod
    def of(cls, rows: Iterable[Row], refused: Iterable[tuple[int, str]] = (), /) -> Preferences:
        """From rows, with the fingerprint of their content."""
        rows = tuple(rows)
        content = hashlib.sha256()
        for row in rows:
            parts = [row.id, row.prompt, row.chosen, row.rejected, row.extra]
            content.update(json.dumps(parts, sort_keys=True).encode() + b"\n")
        return cls(rows, tuple(refused), content.hexdigest())

    def __len__(self) -> int:
        return len(self.rows)


def render(messages: Sequence[Message], /) -> str:
    """A conversation as plain text: every message as its role, a colon, a new line, its content; blank lines between.

    A prompt is rendered so, followed by the role of the response's first message; the response is what follows. This
    is for reading and for models without a chat template; where there is one, it is applied to the messages.

    >>> render([{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}])
    'user:\\nSky?\\n\\nassistant:\\nBlue.'
    """
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)


def extract_prompt(chosen: Any, rejected: Any, /) -> tuple[Any, Any, Any]:
    """(prompt, chosen, rejected) where both responses begin with the prompt: two strings, or two lists of messages.

    As TRL's function of this name: the longest common beginning; of strings, the space before the responses goes to
    them. Different from TRL's: the cut never falls inside a word, and both responses keep at least a word or a message.
    As there, words that both responses begin with count as prompt: a data set with explicit prompts is better.

    >>> extract_prompt("The sky is blue.", "The sky is green.")
    ('The sky is', ' blue.', ' green.')
    >>> extract_prompt("Is it? Yes", "Is it? Yet")  # TRL: 'Is it? Ye'
    ('Is it?', ' Yes', ' Yet')
    """
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    cut = min(len(chosen), len(rejected)) if same is None else same
    if isinstance(chosen, str):
        cut = max(0, min(cut, len(chosen.rstrip()) - 1, len(rejected.rstrip()) - 1))
        while cut and chosen[cut - 1].isalnum() and (chosen[cut].isalnum() or rejected[cut].isalnum()):
            cut -= 1
        cut -= cut > 0 and chosen[cut - 1] == " "
    else:
        cut = max(0, min(cut, len(chosen) - 1, len(rejected) - 1))
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _messages(value: object, name: str) -> tuple[Message, ...] | None:
    """A list of messages with text contents; None where the value is no list."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return None
    if not value:
        refuse(f"messages in {name}", "an empty list", "add them, or drop the row")
    for message in value:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            refuse(f"messages with role and content in {name}", show(message), "rename the keys")
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            refuse(f"text as role and content in {name}", show(message), "keep the text parts only, joined")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _bare(message: Message) -> tuple[str, str]:
    return message["role"], message["content"].strip()


def _conversation(record: Mapping[str, Any]) -> tuple[str, str, str, dict[str, tuple[Message, ...]]]:
    chosen, rejected = (_messages(record[name], name) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None:
        got = f"{type(record['chosen']).__name__} and {type(record['rejected']).__name__}"
        refuse("chosen and rejected both as strings or both as lists of messages", got, "convert them")
    prompt = _messages(record.get("prompt"), "prompt")
    if [_bare(message) for message in chosen] == [_bare(message) for message in rejected]:
        refuse("two different responses", f"chosen = rejected = {show(chosen[-1]['content'])}", "drop the row")
    if prompt is None:  # as TRL: a prompt that is a string repeats what the conversations hold
        if not isinstance(record.get("prompt", ""), str | None):
            refuse("prompt as a list of messages", show(record["prompt"]), "convert it")
        prompt, chosen, rejected = extract_prompt(chosen, rejected)
        if not prompt:
            refuse("a prompt", "conversations that share no first message", "add the prompt")
    for name, response in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if not any(message["content"].strip() for message in response):
            refuse(f"a text in {name}", f"{show(response[0]['content'])}, empty", "add it, or drop the row")
    opening = render([*prompt, {"role": chosen[0]["role"], "content": ""}])
    texts = [render(response)[len(f"{response[0]['role']}:\n") :] for response in (chosen, rejected)]
    return opening, texts[0], texts[1], {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def plain_text(value: object, name: str, /) -> str:
    """A response as a string, whether it is one or a list of messages; PreferenceError for anything else.

    >>> plain_text([{"role": "assistant", "content": "Blue."}], "irr_hum")
    'Blue.'
    """
    if isinstance(value, str):
        return value
    messages = _messages(value, name)
    if messages is None:
        refuse(f"a string in {name}", show(value), "convert it, or drop the column")
    return render(messages)[len(f"{messages[0]['role']}:\n") :]


def _row(record: object, number: int, id_key: str | None) -> Row:
    """One row in plain form; PreferenceError without the row's number where it cannot be."""
    if not isinstance(record, Mapping):
        refuse("a row as a mapping of columns", show(record), "pass one split, as a list of dicts or a data set")
    if not {"chosen", "rejected"} <= set(record):
        do = next((do for key, do in _OTHER_FORMATS.items() if key in record), "rename the columns")
        refuse(_FORMATS, f"the keys {', '.join(map(str, record)) or 'none'}", do)
    messages = None
    prompt, chosen, rejected = (record.get(name) for name in ("prompt", "chosen", "rejected"))
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if value is None or isinstance(value, bool | int | float | bytes | Mapping):
            refuse(f"{name} as a string or a list of messages", show(value), "convert it, or drop the row")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        prompt, chosen, rejected, messages = _conversation(record)
    else:
        if not chosen.strip() or not rejected.strip():
            side, blank = ("chosen", chosen) if not chosen.strip() else ("rejected", rejected)
            side = "chosen = rejected =" if chosen == rejected else f"an empty {side}"
            refuse("two responses", f"{side} {show(blank)}", "drop the row")
        if chosen.strip() == rejected.strip():
            refuse("two different responses", f"chosen = rejected = {show(chosen)} (white space aside)", "drop the row")
        if prompt is None:
            prompt, chosen, rejected = extract_prompt(chosen, rejected)
            if not prompt.strip():
                refuse("a prompt", "none, and responses that share no first word", "add a column prompt")
        elif not isinstance(prompt, str):
            refuse("the prompt as a string like the responses", show(prompt), "convert it")
        elif not prompt.strip():
            refuse("a prompt", f"an empty one, {show(prompt)}", "add it, or drop the row")
    extra = {key: plain_text(record[key], key) for key in _EXTRA if record.get(key) is not None}
    name = str(number) if id_key is None else str(record.get(id_key, ""))
    if not name or name != name.strip() or not name.isprintable():
        refuse(f"a printable id in {id_key}", show(record.get(id_key or "")), "name another column, or none")
    for text in (name, prompt, chosen, rejected, *extra.values()):
        try:
            text.encode()
        except UnicodeEncodeError:
            refuse("text", f"{show(text)} with a lone surrogate", "repair the encoding")
    return Row(name, prompt, chosen, rejected, extra, messages)


def records(source: Any, /) -> Iterator[Any]:
    """The raw rows of a source; a JSON line that cannot be parsed comes as its PreferenceError, not raised.

    >>> list(records([{"chosen": "a"}]))
    [{'chosen': 'a'}]
    """
    if isinstance(source, str | PathLike):
        yield from _file(Path(source))
    elif isinstance(source, Mapping):
        refuse("one data set", f"a mapping of {', '.join(map(str, source))}", "pass one split, or a list with the row")
    elif isinstance(source, bytes) or not isinstance(source, Iterable):
        refuse("rows, or the path of a .json or .jsonl file", show(source), "pass a list of dicts or a data set")
    else:
        yield from source


def _file(path: Path) -> Iterator[object]:
    """The rows of a JSON list or of JSON lines, gzipped or not."""
    try:
        payload = path.read_bytes()
        payload = gzip.decompress(payload) if payload[:2] == b"\x1f\x8b" else payload
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        refuse("a whole gzip file", f"{path.name}: {error}", "copy it again")
    except OSError as error:
        refuse("a readable file", f"{path.name}: {error.strerror}", "check the path, or pass datasets.load_dataset(…)")
    if payload[:4] == b"PAR1":
        refuse("JSON", f"{path.name}, a Parquet file", "read it with datasets.load_dataset and pass the data set")
    if payload.startswith(b"version https://git-lfs"):
        refuse("JSON", f"{path.name}, a Git-LFS pointer", "fetch the file itself with git lfs pull")
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = payload[: error.start].count(b"\n") + 1
        refuse("UTF-8", f"{path.name} with byte 0x{payload[error.start]:02x} in line {line}", "convert its encoding")
    whole = text.lstrip().startswith("[")
    for number, part in enumerate([text] if whole else text.split("\n"), 1):
        if not part.strip():
            continue
        try:
            found = json.loads(part)
        except (ValueError, RecursionError) as error:
            kind, where = ("a JSON list", "") if whole else ("one JSON object a line", f" in line {number}")
            what = f"{getattr(error, 'msg', type(error).__name__)}{where}"
            broken = PreferenceError(f"expected {kind}, got {path.name}: {what}: write it again, whole")
            if whole:
                raise broken from None
            yield broken
        else:
            yield from found if whole else [found]


def read_preference(source: object, /, *, on_bad: str = "raise", id_key: str | None = None) -> Preferences:
    """Preference data in any known format as rows of plain text.

    source: rows, or the path of a file (module docstring), or Preferences, returned as they are. on_bad: "raise"
    refuses the data at the first bad row, "skip" leaves bad rows out and lists them in `refused`. id_key: the column
    that names the examples; without it the row's number does, from 0.

    Raises:
        PreferenceError: a response is empty, or both are the same (white space aside); a prompt is missing; a type or
            format is unknown; the file cannot be read; no row is left.

    >>> rows = [{"chosen": "Sky? Blue.", "rejected": "Sky? Green."}, {"prompt": "Sky?", "chosen": "x", "rejected": ""}]
    >>> data = read_preference(rows, on_bad="skip")
    >>> data.rows[0].prompt, data.refused
    ('Sky?', ((1, "expected two responses, got an empty rejected '': drop the row"),))
    >>> read_preference(rows)
    Traceback (most recent call last):
    toyld.probes.errors.PreferenceError: row 1: expected two responses, got an empty rejected '': drop the row
    """
    if on_bad not in ("raise", "skip"):
        refuse("on_bad 'raise' or 'skip'", show(on_bad), "use one of them")
    if isinstance(source, Preferences):
        return source
    rows: list[Row] = []
    refused: list[tuple[int, str]] = []
    for number, record in enumerate(records(source)):
        try:
            if isinstance(record, PreferenceError):
                raise record
            rows.append(_row(record, number, id_key))
        except PreferenceError as error:
            if on_bad == "raise":
                raise PreferenceError(f"row {number}: {error}") from None
            refused.append((number, str(error)))
    if not rows:
        refuse("at least one pair", f"none ({refused[0][1]})" if refused else "none", "check the data")
    for one, other in pairwise(sorted(row.id for row in rows)):
        if one == other:
            refuse(f"an id for every row in {id_key}", f"{show(one)} twice", "name another column, or none")
    return Preferences.of(rows, refused)
