"""From preference rows to a ProbeSet: every kind read from the data or made, nothing dropped in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from toyld.probes.errors import PreferenceError, refuse, show
from toyld.probes.kinds import ALIASES, DEFAULT, KINDS, resolve
from toyld.probes.preference import Preferences, Row, read_preference
from toyld.probes.probeset import ProbeSet
from toyld.probes.recipes import Ring, draws, permute_words, random_words, truncate

__all__ = ["make"]

Rewriter = Callable[[str], str]
_PARTS = {"chosen_half": 0.5, "chosen_quarter": 0.25}
_REWRITTEN = tuple(key for key, kind in KINDS.items() if kind.needs == "rewriter")
_UNPARSED = "@@@"  # what separates the parts of an answer in the authors' own rephrases


class _Missing(Exception):
    """Why one response cannot be had; the same words for every example, so that they can be counted."""


def _same(a: str, b: str) -> bool:
    """Whether two texts have the same words in the same order."""
    return a.split() == b.split()


@dataclass
class _Maker:
    """What responses are made from; `response` makes one."""

    seed: int
    taught: Preferences | None
    test: Preferences | None
    pairs: Preferences
    rewriters: Mapping[str, Rewriter]
    sampler: Callable[[Any], str] | None
    use_given: bool
    _kept: dict[Any, Any] = field(default_factory=dict)

    def _once(self, key: Any, build: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = build()
        return self._kept[key]

    def response(self, key: str, row: Row) -> str:
        """One response of a kind; _Missing where there is none."""
        if key in ("chosen", "rejected"):
            return str(getattr(row, key))
        text = row.extra.get(key) if self.use_given else None
        if text is not None and not text.strip():
            raise _Missing("empty in the data")
        if text is not None and key == "chosen_selfr" and _UNPARSED in text:
            raise _Missing(f"unparsed in the data ({_UNPARSED})")
        made = text if text is not None else self._make(key, row)
        for other in dict.fromkeys(("chosen", KINDS[key].of or "chosen")):
            if _same(made, self._source(other, row)):
                raise _Missing(f"equal to {other}")
        return made

    def _source(self, key: str, row: Row) -> str:
        """What a response is compared with; empty where there is none, as no response is."""
        try:
            return self.response(key, row)
        except _Missing:
            return ""

    def _make(self, key: str, row: Row) -> str:
        if key in ("irr_train", "irr_test"):
            return self._borrowed(key, row)
        if key in _PARTS:
            if len(row.chosen.split()) * _PARTS[key] < 1:
                raise _Missing("truncated to nothing")
            return truncate(row.chosen, _PARTS[key])
        if key in ("random_permute", "random_nonhum"):
            source = self.response("chosen" if key == "random_permute" else "irr_test", row)
            if len(set(source.split())) < 2:
                raise _Missing("fewer than two different words to permute")
            return permute_words(source, seed=self.seed, key=(key, row.id))
        if key == "random_words":
            vocabulary = self._once("vocabulary", self._vocabulary)
            return random_words(row.chosen, vocabulary=vocabulary, seed=self.seed, key=(key, row.id))
        if key in _REWRITTEN:
            return self._rewritten(key, row)
        if key == "sampled" and self.sampler is not None:
            text = self._called(self.sampler, row.messages["prompt"] if row.messages else row.prompt, key, row)
            if not text.strip():
                raise _Missing("the sampler wrote nothing")
            return text
        if key == "test_chosen":
            raise _Missing("it stands behind its own prompt: probe the test rows apart, with held_out")
        raise _Missing("no sampler was given" if key == "sampled" else "the data hold none")

    def _vocabulary(self) -> list[str]:
        return sorted({word for row in self.pairs.rows for text in (row.chosen, row.rejected) for word in text.split()})

    def _borrowed(self, key: str, row: Row) -> str:
        data = self.taught if key == "irr_train" else self.test
        if data is None:
            name = "train" if key == "irr_train" else "test"
            raise _Missing(f"the data hold none and no {name} set was given ({name}=…)")
        ring = self._once(key, lambda: Ring(data.rows, seed=self.seed, kind=key))
        taught = self.taught.rows if key == "irr_test" and self.taught is not None else ()
        barred = self._once((key, "barred"), lambda: {other.chosen.strip() for other in taught})
        own = {row.chosen.strip(), row.rejected.strip()}

        def allowed(donor: Row) -> bool:
            text = donor.chosen.strip()
            return donor.prompt != row.prompt and text not in own and text not in barred

        donor = ring.next(row.id, allowed)
        if donor is None:
            raise _Missing("no other prompt with another answer" + (" that is never taught" if barred else ""))
        return str(donor.chosen)

    def _rewritten(self, key: str, row: Row) -> str:
        if key not in self.rewriters:
            raise _Missing("the data hold none and no rewriter for it was given")
        source = self.response(KINDS[key].of or "chosen", row)
        text = self._called(self.rewriters[key], source, key, row)
        if not text.strip():
            raise _Missing("the rewriter wrote nothing")
        return source[: len(source) - len(source.lstrip())] + text.strip()

    def _called(self, function: Callable[[Any], str], text: Any, key: str, row: Row) -> str:
        """One call of a rewriter or sampler per text."""
        try:
            out = self._once((id(function), repr(text)), lambda: function(text))
        except PreferenceError as error:  # this one text it cannot take
            raise _Missing(str(error).partition(", got ")[0]) from None
        except Exception as error:
            error.add_note(f"while making {key} of example {row.id}")
            raise
        if not isinstance(out, str):
            refuse(f"a text from the function that makes {key}", show(out), "return a string")
        return out.encode(errors="replace").decode()  # half of a pair of surrogates cannot be stored


def _rewriters(rewriter: Rewriter | Mapping[str, Rewriter] | None) -> Mapping[str, Rewriter]:
    """Rewriters by kind; one function alone keeps the meaning, so it serves the kinds that do."""
    if rewriter is None:
        return {}
    found = dict(rewriter) if isinstance(rewriter, Mapping) else dict.fromkeys(ALIASES["rephrase"], rewriter)
    for key, function in found.items():
        if key not in _REWRITTEN or not callable(function):
            expected = f"a function text → text, or a mapping of {', '.join(_REWRITTEN)} to such functions"
            refuse(expected, f"{show(key)}: {show(function)}", "pass functions by these keys")
    return found


def _is_held_out(pairs: Preferences, train: Preferences | None, said: bool | None) -> bool:
    """Whether the rows are kept out of training: as told, or as the training rows show."""
    if train is None:
        return bool(said)
    known = {(row.prompt, row.chosen, row.rejected) for row in train.rows}
    inside = sum((row.prompt, row.chosen, row.rejected) in known for row in pairs.rows)
    if inside not in (0, len(pairs)) or said not in (None, inside == 0):
        got = f"{inside} of {len(pairs)} rows in train" + ("" if said is None else f" and held_out={said}")
        refuse("rows that are all trained on, or all held out", got, "probe the two parts apart")
    return inside == 0


def make(
    rows: object,
    kinds: Iterable[str] | None = None,
    /,
    *,
    seed: int,
    n: int | None = None,
    train: object = None,
    test: object = None,
    held_out: bool | None = None,
    rewriter: Rewriter | Mapping[str, Rewriter] | None = None,
    sampler: Callable[[Any], str] | None = None,
    use_given: bool = True,
    on_bad: str = "raise",
    id_key: str | None = None,
    tell: Callable[[str, int, int], object] | None = None,
) -> ProbeSet:
    """Probes of preference rows: chosen, rejected and `kinds`, by keys of KINDS or short names (see `resolve`).

    rows: anything that `read_preference` reads (on_bad, id_key as there): pairs that the run trains on, unless held_out
    is True, or `train` is given and holds none of them. kinds: None is all that the rows carry and all that can be made
    from what is given. n: a random sample of n rows, where fewer rows are the first of more; None is all, in their
    order. train, test: the rows trained on where `rows` is not all of them, and rows never trained on; irr_train and
    irr_test are their chosen responses. rewriter: text → text, keeping the meaning, or such functions by kind; called
    once per text; the white space before the text is kept. sampler: prompt → response (a conversation comes as its
    messages). use_given: responses that the rows carry are used, not made. tell: hears (kind, done, of how many).

    What one example gets depends on the seed, its kind, its id and the data, not on n or on what else is asked for.
    What cannot be had is None, and `missing` says why and how often: empty, unparsed, nothing left of it, equal to
    chosen or to what it was made from, nothing to make it from, a text that its function refused by a PreferenceError.
    `sampled` and rewritten kinds are as deterministic as their functions.

    Raises:
        PreferenceError: the rows cannot be read; an unknown kind; n beyond the rows; rows partly in `train`; a function
            that returns no text. Other errors of the functions themselves pass, with a note which example it was.

    >>> pairs = [{"prompt": f"What is {a}?", "chosen": f"It is {a} of course.", "rejected": "No idea."} for a in "xyz"]
    >>> probes = make(pairs, ["other_prompt", "permuted", "irr_test"], seed=0)
    >>> probes.responses["irr_train"]
    ('It is z of course.', 'It is x of course.', 'It is y of course.')
    >>> probes.missing
    {'irr_test': '3 of 3: the data hold none and no test set was given (test=…)'}
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        refuse("a whole number as seed", show(seed), "pass an int")
    pairs = read_preference(rows, on_bad=on_bad, id_key=id_key)
    others = {
        name: None if data is None else read_preference(data, on_bad=on_bad)
        for name, data in (("train", train), ("test", test))
    }
    out = _is_held_out(pairs, others["train"], held_out)
    taught = others["train"] or (None if out else pairs)
    never = others["test"] or (pairs if out else None)
    maker = _Maker(seed, taught, never, pairs, _rewriters(rewriter), sampler, use_given)
    if kinds is None:
        carried = {key for row in pairs.rows for key in row.extra} if use_given else set()
        reachable = (("irr_train",) if taught else ()) + (("irr_test", "random_nonhum") if never else ())
        kinds = {*DEFAULT, *carried, *reachable, *maker.rewriters, *(("sampled",) if sampler else ())}
    keys = resolve({"chosen", "rejected", *([kinds] if isinstance(kinds, str) else kinds)}, held_out=out)
    picked = pairs.rows
    if n is not None:
        if isinstance(n, bool) or not isinstance(n, int) or not 0 < n <= len(pairs):
            refuse(f"n from 1 to {len(pairs)}, the rows there are", show(n), "ask for fewer, or None for all")
        picked = tuple(sorted(picked, key=lambda row: draws(seed, "sample", row.id, count=1)))[:n]
    responses: dict[str, tuple[str | None, ...]] = {}
    missing: dict[str, str] = {}
    given: dict[str, int] = {}
    for key in keys:
        texts: list[str | None] = []
        reasons: Counter[str] = Counter()
        for row in picked:
            try:
                if KINDS[key].group == "path":
                    raise _Missing(KINDS[key].made)
                texts.append(maker.response(key, row))
            except _Missing as reason:
                texts.append(None)
                reasons[str(reason)] += 1
            if tell is not None:
                tell(key, len(texts), len(picked))
        if any(text is not None for text in texts):
            responses[key] = tuple(texts)
            if use_given and key not in ("chosen", "rejected"):
                given[key] = sum(t is not None and key in row.extra for t, row in zip(texts, picked, strict=True))
        if reasons:
            ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            missing[key] = "; ".join(f"{count} of {len(picked)}: {reason}" for reason, count in ordered)
    provenance: dict[str, Any] = {"sha256": pairs.sha256, "rows": len(pairs), "refused": len(pairs.refused)}
    provenance |= {"held_out": out, "given": {key: count for key, count in given.items() if count}}
    provenance |= {name: data.sha256 for name, data in others.items() if data is not None}
    chats = [_chat(row) for row in picked]
    return ProbeSet(
        tuple(row.id for row in picked),
        tuple(row.prompt for row in picked),
        responses,
        missing,
        seed,
        provenance,
        tuple(chats) if any(chat is not None for chat in chats) else None,
    )


def _chat(row: Row) -> Any:
    """The prompt's messages where each response is one message of the assistant: any text can take its place."""
    if row.messages is None:
        return None
    replies = [row.messages[name] for name in ("chosen", "rejected")]
    alone = all(len(reply) == 1 and reply[0]["role"] == "assistant" for reply in replies)
    return row.messages["prompt"] if alone else None
