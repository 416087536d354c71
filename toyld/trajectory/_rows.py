"""Which rows of the authors' log belong to the run: those the array per example has, or first occurrences.

Every step here takes time in proportion to the rows, repeats and restarts among them or not.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import fail
from toyld.trajectory._text import show

__all__ = ["align", "first_occurrences", "note_extra", "refuse_interleaved", "refuse_two_runs"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Notes = list[tuple[str, str]]

_APART, _TWINS = 0.5, 0.1  # see `_mixed`
_PROCESSES = 8  # at most so many that take turns are looked for: time goes with them


def first_occurrences(table: Floats, present: Bools) -> tuple[list[int], list[int]]:
    """(row numbers that are new, per row the place among them of its first occurrence); equal = to the last bit.

    Rows with other keys are compared on the keys that both have: per pair of layouts, the values there are looked up.
    """
    new: list[int] = []
    label: list[int] = []
    seen: dict[bytes, dict[bytes, dict[bytes, int]]] = {}  # layout of known rows → of the row → shared values → place
    for row, has in zip(table, present, strict=True):
        found: list[int] = []
        for layout, places in seen.items():
            shared = has & np.frombuffer(layout, np.bool_)
            if (among := places.get(has.tobytes())) is None:
                among = places[has.tobytes()] = {}
                for k in places[layout].values():
                    among.setdefault(table[new[k]][shared].tobytes(), k)
            if (at := among.get(row[shared].tobytes())) is not None:
                found.append(at)
        if not found:
            for other, among in seen.setdefault(has.tobytes(), {has.tobytes(): {}}).items():
                among.setdefault(row[has & np.frombuffer(other, np.bool_)].tobytes(), len(new))
            new.append(len(label))
        label.append(min(found, default=len(new) - 1))
    return new, label


def refuse_two_runs(new: list[int], label: list[int]) -> None:
    """A start that repeats row 0 but not row 1, with unknown rows behind it, may be another run."""
    starts, unknown = [i for i, k in enumerate(label) if k == 0 and i > 0] + [len(label)], set(new)
    for start, end in pairwise(starts):
        inside = range(start + 1, end)
        if len(new) > 1 and new[1] < start and not unknown.isdisjoint(inside) and 1 not in label[start + 1 : end]:
            got = f"row {start} starting again from row 0 and unknown rows behind it, its own or the first's"
            fail("one run per log", got, f"keep one run in the file or read a part with rows=slice({start}, None)")


def refuse_interleaved(label: list[int], new: list[int], curves: list[Floats], notes: Notes) -> None:
    """Where row 0 stands m > 1 times before row 1, and row 1 fewer times: killed starts, or m processes taking turns.

    Refused where the rows behind show turns, else a note; `curves`: chosen, and argmax where there is one.
    """
    second = new[1] if len(new) > 1 else 0
    starts = [i for i in range(second) if label[i] == 0]
    end = next((i for i in range(second, len(label)) if label[i] == 0), len(label))
    if len(starts) < 2 or label[second:end].count(1) >= len(starts):
        return
    behind = [curve[new[1:]] for curve in curves]
    reasons = (_mixed(n, behind) for n in range(2, min(len(starts), _PROCESSES) + 1))
    if reason := next(filter(None, reasons), ""):
        do = f"keep one run's rows; if they are known to be one run's, read rows=slice({starts[-1]}, None)"
        fail("one run per log", f"two runs interleaved: row 0 {len(starts)} times, not row 1; behind it {reason}", do)
    text = f"row 0 stands {len(starts)} times before row 1, which is not repeated: read as a start killed after row 0"
    notes.append(("duplicate-rows", f"{text}; a second process whose rows are among those behind cannot be excluded"))


def _mixed(n: int, curves: list[Floats]) -> str:
    """How the rows show n processes taking turns, or nothing; with d(k) = mean |x[t+k] - x[t]|, in each curve x.

    One curve has d(n) / d(1) from 1 (white noise, whose differences all have one size) to n (a trend). Two curves
    apart by D, each moving s a row, have s / D: below 1/2 where they are further apart than two of their own moves; one
    such x suffices. Twins (the same run but for rounding) have d(1) of two sizes, the one within a group and the other
    between groups, in every x; those of one curve at places 0, n, 2n, ... and 1, n + 1, ... are alike.
    """
    if any(len(x) < 2 * n for x in curves):  # too few rows to have moved
        return ""
    for x in curves:
        if np.abs(x[n:] - x[:-n]).mean() < _APART * np.abs(np.diff(x)).mean():
            return f"row t + {n} goes on from row t, row t + 1 does not"
    sizes = [[float(np.abs(np.diff(x))[k::n].mean()) for k in range(n)] for x in curves]
    if sizes and all(min(size) < _TWINS * max(size) for size in sizes):
        return "rows come in groups of nearly equal ones"
    return ""


def note_extra(label: list[int], extra: list[int], notes: Notes, proof: str) -> None:
    """Note the rows left out; they are interleaved where the run goes on behind them (label −1 = no row of it)."""
    first = next((i for i, k in enumerate(label) if k >= 0), len(label))
    if ahead := [i for i in extra if i < first]:
        why = "stand before the first row that the array has, as an earlier start leaves them"
        notes.append(("duplicate-rows", f"rows {show(ahead, 200)} of {len(label)} (counted from 0) {why}: left out"))
        extra = extra[len(ahead) :]
    before, foreign, inside = -1, False, False
    for k in label:
        if k < 0:
            foreign = before >= 0
        else:
            inside |= before >= 0 and (k > before + 1 or (foreign and k == before + 1))
            before, foreign = k, False
    code, why = "duplicate-rows", "come from other starts, repeated writing or a model that did not move"
    if inside:
        code, why = "interleaved-rows", "were written by another process between this run's own"
    if extra:
        notes.append((code, f"rows {show(extra, 200)} of {len(label)} (counted from 0) {why}: left out{proof}"))


def _range(mean: Floats, rounding: Floats, column: Floats) -> tuple[Any, Any]:
    """(first, end) in the sorted column of what may be each mean; of what is not finite, for a mean that is not."""
    column = np.sort(np.where(np.isfinite(column), column, np.inf))
    finite, known = np.isfinite(mean), int(np.searchsorted(column, np.inf))
    first = np.where(finite, np.searchsorted(column[:known], mean - 2 * rounding), known)
    return first, np.where(finite, np.searchsorted(column[:known], mean + 2 * rounding, "right"), len(column))


def _hits(means: Floats, rounding: Floats, rows: Floats) -> list[list[int]]:
    """Per row the checkpoints whose means it holds, within the rounding of their sums; not finite fits not finite."""
    pivot = int(np.isfinite(means).sum(0).argmax())
    order = np.argsort(np.where(np.isfinite(rows[:, pivot]), rows[:, pivot], np.inf), kind="stable")
    hits: list[list[int]] = [[] for _ in rows]
    for g, (first, end) in enumerate(zip(*_range(means[:, pivot], rounding[:, pivot], rows[:, pivot]), strict=True)):
        a, b = means[g], rows[order[first:end]]
        same = (np.abs(a - b) <= rounding[g]) | (~np.isfinite(a) & ~np.isfinite(b))
        for i in order[first:end][same.all(1)].tolist():
            hits[i].append(g)
    return hits


def align(array: NDArray[Any], table: Floats, present: Bools) -> tuple[list[int], list[int]] | None:
    """(the array's columns as columns of the table, per row of the table its checkpoint or −1), or None."""
    eps = max(np.finfo(array.dtype).eps, np.finfo(np.float64).eps)
    rounding = array.shape[2] * float(eps) * np.abs(array).mean(2, dtype=np.float64)
    both = np.stack([array.mean(2, dtype=np.float64), rounding], 1)
    both, group = np.unique(both, axis=0, return_inverse=True)  # a model that stands still repeats checkpoints
    means, rounding = both[:, 0], both[:, 1]
    members: list[list[int]] = [[] for _ in means]
    for t, g in enumerate(group.ravel().tolist()):
        members[g].append(t)
    layouts = [tuple(np.flatnonzero(p).tolist()) for p in present]
    for layout in sorted(set(layouts)):
        if len(layout) != array.shape[1]:
            continue
        rows = np.flatnonzero([other == layout for other in layouts])
        order = list(layout)
        own = table[rows][:, order]
        if not any(map(len, hits := _hits(means, rounding, own))):
            from scipy.optimize import linear_sum_assignment  # another program's order is the one that fits the numbers

            one = [(means[:, m], rounding[:, m]) for m in range(len(layout))]
            fits = [[int((np.subtract(*_range(a, r, table[rows, k])) < 0).sum()) for k in layout] for a, r in one]
            order = [layout[k] for k in linear_sum_assignment(fits, maximize=True)[1]]
            hits = _hits(means, rounding, table[rows][:, order])
        if {g for found in hits for g in found} >= set(range(len(means))) or all(hits):
            # every checkpoint has its row, or every row its checkpoint
            label, used = [-1] * len(table), [0] * len(members)
            for i, found in zip(rows.tolist(), hits, strict=True):
                if free := [(members[g][used[g]], g) for g in found if used[g] < len(members[g])]:
                    label[i], g = min(free)
                    used[g] += 1
                else:
                    label[i] = min((members[g][0] for g in found), default=-1)
            return order, label
    return None
