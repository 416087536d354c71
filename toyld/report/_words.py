"""What is said about a run, in plain words: shared by the terminal and the page, so that they cannot disagree."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from toyld.diagnosis import Verdict
from toyld.probes import KINDS

__all__ = [
    "COLUMNS",
    "LEGEND",
    "MEANING",
    "Entry",
    "clean",
    "consistent",
    "facts",
    "headline",
    "labels",
    "missing",
    "moves",
    "nats",
    "plain",
    "segments",
    "share",
    "sure",
    "unit",
]

Entry = tuple[str, xr.Dataset, Verdict] | tuple[str, str]

MEANING = {
    "healthy": "chosen up, rejected down, argmax not ahead of chosen",
    "sft-normal": "chosen up, argmax not ahead of it, rejected not down or not measured",
    "rejection": "rejected down, chosen and argmax where they were",
    "not-learning": "nothing moved beyond its noise",
    "squeezing": "mass goes to what the model already found likeliest: argmax up, chosen down, still or lagging",
    "displacement": "chosen down, argmax about where it was",
    "divergence": "chosen down and argmax down: the model believes less in everything there",
    "wrong-reference": "policy and reference differ before the first update",
    "cannot-tell": "what would tell the classes apart was not measured",
}
COLUMNS: tuple[str, ...] = ("#", "run", "consistent with", "confidence", "Δ chosen", "Δ rejected", "Δ argmax", "gap")
COLUMNS += ("squeezed", "evaluations", "examples")
LEGEND = (
    "Δ: change since the first evaluation, nats per response, mean over the examples; [low, high]: its 95 % interval "
    "over examples. argmax: the likeliest token at every place of chosen; gap: argmax − chosen, first → last. "
    "squeezed: share of the examples with chosen down and argmax up; lagging: chosen not down, argmax up by more. "
    "confidence orders verdicts by what was measured and how stable they are; it is no probability. –: not measured."
)
# Names of `missing` in words.
_MISSING = {
    "argmax_logp": "argmax along chosen",
    "noise_floor": "scoring noise",
    "step 0": "an evaluation before the first update",
    "other probes": "responses other than chosen and rejected",
}
# Groups of `toyld.probes.KINDS` (and what a kind is made from) in words.
_GROUPS = {
    ("similar", "chosen"): "variants of chosen",
    ("similar", "rejected"): "variants of rejected",
    ("similar", None): "a model's own answers",
    ("taught others", None): "another prompt's answer",
    ("untaught", None): "an untrained prompt's answer",
    ("unrelated", None): "unrelated text",
    ("shuffled", None): "shuffled words",
    ("random", None): "random words",
    ("part", None): "beginnings of chosen",
}
_KNOWN = ("reward-change", "no-pairs")  # findings that say in one line what a log of rewards tells
_DETAIL = ("reward-consistent", "step-zero", "reward-accuracy")  # what that line rests on: in the file and the page
_LAST = ("means-only", "non-finite-rows")


def clean(text: str, /) -> str:
    """Printable text in one line; bytes that are no UTF-8 and control characters as escapes.

    >>> clean("a\\x1b[31m\\nb")
    'a\\\\x1b[31m\\\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nats(x: float | None, /, *, sign: bool = True) -> str:
    """A number of nats: one decimal, more where it is small, a true minus.

    >>> nats(20.398), nats(-4.2374), nats(0.0336), nats(None), nats(115.057, sign=False)
    ('+20.4', '−4.2', '+0.03', '–', '115.1')
    """
    if x is None or not math.isfinite(x):
        return "–"
    size = abs(x)
    form = ".1f" if size >= 1 else ".2f" if size >= 0.01 or x == 0 else ".1e"
    return format(x, f"{'+' if sign else ''}{form}").replace("-", "−")


def share(x: float | None, /) -> str:
    """A share as per cent, without rounding something to nothing or to all.

    >>> share(0.268), share(0.001), share(0.999), share(1.0)
    ('27 %', '<1 %', '>99 %', '100 %')
    """
    if x is None:
        return "–"
    return "<1 %" if 0 < x < 0.005 else ">99 %" if 0.995 <= x < 1 else f"{x:.0%}".replace("%", " %")


def plain(text: str, /) -> str:
    """One line with one kind of minus before numbers.

    >>> plain("rewards are -0.5 and -1e-05, steps 1-3")
    'rewards are −0.5 and −1e−05, steps 1-3'
    """
    return re.sub(r"(?<![\w.)])-(?=\.?\d)|(?<=\de)-(?=\d)", "−", clean(text))


def consistent(verdict: str | None, /) -> str:
    """The verdict in words that claim no more than the numbers do.

    >>> consistent("squeezing"), consistent("cannot-tell"), consistent(None)
    ('consistent with squeezing', 'cannot tell', 'could not be read')
    """
    if verdict is None:
        return "could not be read"
    return "cannot tell" if verdict == "cannot-tell" else f"consistent with {verdict}"


def labels(paths: Sequence[str], runs: Sequence[str], /) -> tuple[str, list[str]]:
    """(common folder or "", what is left of each path); `runs` tells apart the runs of one path.

    >>> labels(["a/b/x", "a/c/y"], ["", ""])
    ('a', ['b/x', 'c/y'])
    >>> labels(["a/x", "a/x"], ["sft", "sft"])
    ('', ['a/x', 'a/x (again)'])
    """
    common = ""
    if len(set(paths)) > 1 and len({os.path.isabs(p) for p in paths}) == 1:
        parts = [p.split(os.sep)[:-1] for p in paths]
        same = itertools.takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
        common = os.sep.join(level[0] for level in same)
    short = [p.removeprefix(common + os.sep) if common else p for p in paths]
    several = {
        p for p, r in zip(paths, runs, strict=True) for q, s in zip(paths, runs, strict=True) if p == q and r != s
    }
    named = [f"{s} · {r}" if p in several and r else s for p, s, r in zip(paths, short, runs, strict=True)]
    again = [" (again)" * (name in named[:i]) for i, name in enumerate(named)]
    return clean(common), [clean(name) + more for name, more in zip(named, again, strict=True)]


def unit(ds: xr.Dataset, /) -> str:
    """What steps count: updates or examples."""
    return "updates" if ds.attrs["step_unit"] == "updates" else "examples"


def _between(v: Verdict, name: str, form: Any = nats) -> str:
    if name not in v.intervals:
        return ""
    low, high = v.intervals[name]
    return f" [{form(low)}, {form(high)}]"


def moves(v: Verdict, /) -> list[tuple[str, str, str]]:
    """(what, change with its interval, from → to) of all that was measured."""
    first, last = v.numbers["gap_first"], v.numbers["gap_last"]
    rows = []
    for name in ("chosen", "argmax", "rejected"):
        change = v.numbers[f"d_{name}"]
        if change is not None:
            ends = v.probes.get("argmax_logp" if name == "argmax" else name, {})
            start, end = (ends.get(key, {}).get("value") for key in ("start", "end"))
            known = start is not None and end is not None
            path = f"{nats(start, sign=False)} → {nats(end, sign=False)}" if known else ""
            rows.append((name, nats(change) + _between(v, f"d_{name}"), path))
    if first is not None and last is not None:
        path = f"{nats(first, sign=False)} → {nats(last, sign=False)}"
        rows.append(("gap", nats(last - first) + _between(v, "d_gap"), path))
    return rows


def headline(label: str, v: Verdict | None, /) -> tuple[str, ...]:
    """One row of the table, COLUMNS without the number."""
    if v is None:
        return (label, "(unreadable)", *("–",) * 8)
    n, gaps = v.numbers, [v.numbers["gap_first"], v.numbers["gap_last"]]
    gap = "–" if None in gaps else " → ".join(nats(g, sign=False) for g in gaps)
    squeezed = None if v.share is None else v.share.get("squeezing", 0.0)
    verdict = "(cannot tell)" if v.verdict == "cannot-tell" else v.verdict
    confidence = "–" if v.confidence is None else f"{v.confidence:.2f}"
    deltas = (nats(n[f"d_{name}"]) for name in ("chosen", "rejected", "argmax"))
    examples = "–" if v.n_examples is None else str(v.n_examples)
    return (label, verdict, confidence, *deltas, gap, share(squeezed), str(v.n_evaluations or "–"), examples)


def sure(v: Verdict, /) -> str:
    """The confidence with what lowers it; "" where there is none.

    >>> from toyld.diagnosis import diagnose
    >>> from toyld.trajectory import trajectory
    >>> sure(diagnose(trajectory({"logp": [[[[-3.0]], [[-2.5]]]]}, step=[0, 10], probe=["chosen"])))
    ''
    """
    if v.confidence is None:
        return ""
    split = any(reason.startswith("means and examples disagree") for reason in v.reasons)
    lowers = ["what is missing"] * bool(v.missing) + ["means and examples that disagree"] * split
    return f"confidence {v.confidence:.2f}" + (f", lowered by {' and by '.join(lowers)}" if lowers else "")


def segments(history: Sequence[Mapping[str, Any]], /) -> list[tuple[int, int, str, int]]:
    """Stretches of one verdict: (first step, last step, verdict, evaluations).

    >>> segments([{"step": 0, "verdict": "a"}, {"step": 5, "verdict": "b"}, {"step": 9, "verdict": "b"}])
    [(0, 0, 'a', 1), (5, 9, 'b', 2)]
    """
    out = []
    for name, group in itertools.groupby(history, key=lambda e: str(e["verdict"])):
        steps = [int(e["step"]) for e in group]
        out.append((steps[0], steps[-1], name, len(steps)))
    return out


def _over_time(ds: xr.Dataset, v: Verdict) -> str:
    found = segments(v.history)
    if len(found) == 1:
        return f"{found[0][2]} at every evaluation"
    if len(found) <= 5:
        text = ", ".join(f"{name} {a}-{b}" if b > a else f"{name} {a}" for a, b, name, _ in found)
    else:
        count: dict[str, int] = {}
        for _, _, name, n in found:
            count[name] = count.get(name, 0) + n
        text = ", ".join(f"{name} {n}×" for name, n in sorted(count.items(), key=lambda kv: -kv[1]))
        text += f", changing {len(found) - 1} times"
        text += f"; {v.worst['verdict']} first at {v.worst['step']}"
    return f"{text} {unit(ds)}"


def _told(found: Mapping[str, Any]) -> str:
    """A part of a verdict in words: its own text, or else its numbers by name."""
    if found.get("text"):
        return str(found["text"])
    plain = {k: x for k, x in found.items() if isinstance(x, str | int | float) and not isinstance(x, bool)}
    return ", ".join(f"{k.replace('_', ' ')} {nats(x) if isinstance(x, float) else x}" for k, x in plain.items())


def _elsewhere(v: Verdict) -> str:
    """The probes other than chosen and rejected, by what they are: change, and where it turned."""
    groups: dict[str, list[str]] = {}
    for name, found in v.probes.items():
        if name in ("chosen", "rejected", "argmax_logp") or found.get("d") is None:
            continue
        kind = KINDS.get(name)
        made = kind.of if kind is not None and kind.group == "similar" else None
        words = "others" if kind is None else _GROUPS.get((kind.group, made), kind.group)
        turned = {"bell": ", after a peak", "valley": ", after a low"}.get(str(found.get("shape")), "")
        groups.setdefault(words, []).append(f"{name} {nats(found['d'])}{turned}")
    return "; ".join(f"{words} ({', '.join(parts)})" for words, parts in groups.items())


def _warned(ds: xr.Dataset, v: Verdict) -> str:
    """The early warning, its steps in the unit of the table."""
    return re.sub(r"\bat step (\d+)", rf"at \1 {unit(ds)}", _told(v.warning or {}))


def _found(v: Verdict) -> list[str]:
    """Findings that ask for a look, what was merely left out last and without its reason."""
    lines = []
    for note in sorted(v.findings, key=lambda n: _LAST.index(n["code"]) if n["code"] in _LAST else -1):
        if note["code"] not in (*_KNOWN, *_DETAIL):
            head = note["text"].partition(": ")[0]
            short = head if note["code"] == "non-finite-rows" and head.endswith(" left out") else note["text"]
            lines.append(f"{note['code']}: {short}")
    return lines


def facts(ds: xr.Dataset, v: Verdict, /) -> list[tuple[str, list[str]]]:
    """(heading, lines) in the order to be read; what was not found is left out."""
    from toyld.report.copying import sentence  # which words numbers as this module does

    open_, known = v.verdict == "cannot-tell", [note["text"] for note in v.findings if note["code"] in _KNOWN]
    out: list[tuple[str, list[str]]] = [("known", known)] if open_ else [("means", [MEANING[v.verdict]])]
    out += [] if open_ else [("also", v.reasons)]
    told = [f"{name} {change}" + (f" ({path})" if path else "") for name, change, path in moves(v)]
    out.append(("numbers", [", ".join(told)] if told else []))
    out += [("why not", v.reasons)] if open_ else [("rewards", known)]
    change = v.numbers["d_chosen"]
    fell = change is not None and v.intervals.get("d_chosen", (change, change))[1] < 0
    if v.null_model is not None and fell:
        out.append(("expected", [_told(v.null_model)]))
    if v.share is not None:
        ranked = sorted(((name, x) for name, x in v.share.items() if x > 0), key=lambda kv: -kv[1])
        parts = (f"{name} {share(x)}{_between(v, f'share_{name}', share)}" for name, x in ranked)
        out.append((f"{v.n_examples} examples", [", ".join(parts)]))
    if not open_:
        out.append(("over time", [_over_time(ds, v)]))
    turned = v.probes.get("chosen", {})
    if turned.get("shape") in ("bell", "valley"):
        at = turned["peak" if turned["shape"] == "bell" else "trough"]
        name = "highest" if turned["shape"] == "bell" else "lowest"
        out.append(("turning", [f"chosen {name} at {at['step']} {unit(ds)}: {nats(at['value'], sign=False)}"]))
    sampled = sentence(ds)
    out.append(("samples", [f"{sampled} (no part of the verdict)"] if sampled else []))
    if v.warning is not None:
        out.append(("warning", [_warned(ds, v)]))
    if v.control is not None:
        out.append(("control", [_told(v.control)]))
    elsewhere = _elsewhere(v)
    out.append(("elsewhere", [elsewhere] if elsewhere else []))
    out.append(("missing", [", ".join(missing(v))] if v.missing else []))
    out.append(("found", _found(v)))
    return [(name, [plain(line) for line in lines if line]) for name, lines in out if any(lines)]


def missing(v: Verdict, /) -> list[str]:
    """What was not measured, in words."""
    return [_MISSING.get(name, name) for name in v.missing]
