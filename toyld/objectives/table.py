"""The table of objectives, every column computed from loss and push by probing limits.

Nothing here knows a formula. Probes move one thing at a time and look at the push on y−, one-token responses, one
pair per batch:

- the *margin*: ℓ_+ rises (or π_ref(y+) falls) while everything about y− stays;
- its *own log-ratio*: π_ref(y−) rises, and π_ref(y+) with it so that the margin stays, while π stays;
- its *ratio to the old policy*: π_old(y−) rises;
- its *own probability*: π(y−) → 0 with all log-ratios and the margin fixed;
- *all of it together*: y− is pushed down and nothing else moves, as training does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .base import OBJECTIVES, get
from .batch import Batch, pair_batch

__all__ = ["Row", "looks_across", "row", "table", "table_markdown"]

Array = Any

# Log-probabilities start at −2000 where they must move up by 1500 and at −1 elsewhere; β = 0.1 then sees u = ±150, far
# past any sigmoid. Steps of 8 % from 0.01 nat on resolve DiscoPOP's window, a hinge, and a clip.
_LOW, _HIGH = -2000.0, -1.0
_DEPTH = np.concatenate([[0.0], np.geomspace(1e-2, 1500.0, 160)])
_BOTH = np.concatenate([-_DEPTH[:0:-1], _DEPTH])
_GONE = 1e-6  # of the largest push on the way: vanished


@dataclass(frozen=True)
class Row:
    """One objective with its default parameters; see the columns in `table_markdown`."""

    name: str
    source: str
    kind: str
    negative: str
    plus: float
    minus: float
    fades: str
    lowers_chosen: str
    bounded: str
    length: str
    across: str


def _batch(plus: Array, minus: Array, ref_plus: Array, ref_minus: Array, old_minus: Array | None = None) -> Batch:
    """One-token pairs from log-probabilities that broadcast; π_old = π unless given; the anchor at ratio 1."""
    levels = np.broadcast_arrays(
        *np.atleast_1d(plus, minus, ref_plus, ref_minus, minus if old_minus is None else old_minus)
    )
    calm = np.full_like(levels[0], -1.0)[:, None]
    given = {"anchor": calm, "ref_anchor": calm, "old_chosen": levels[0][:, None], "old_rejected": levels[4][:, None]}
    return pair_batch(*levels[:4], **given)


def _rows(batch: Batch) -> list[Batch]:
    given = {name: a for name, a in vars(batch).items() if a is not None}
    return [Batch(**{name: a[i : i + 1] for name, a in given.items()}) for i in range(len(batch.zeros()))]


class _Probe:
    """c_± of one objective along paths of one-pair batches."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.across = self._reads_other_rows()

    def _reads_other_rows(self) -> bool:
        """Whether the push on row 0 changes when row 1 does: in its numbers, or by losing its y−."""
        plus, minus, ref_plus, ref_minus = np.asarray([[-3.0, -2.0], [-4.0, -1.0], [-3.5, -1.0], [-3.0, -2.5]])
        half = np.asarray([[1], [0]])
        changes: list[dict[str, Array]] = [
            {},
            {"chosen": np.asarray([[-3.0], [-9.0]]), "ref_rejected": np.asarray([[-3.0], [-9.5]])},
            {"anchor": np.asarray([[-1.0], [-0.1]])},
            {"chosen_mask": half},
            {"rejected_mask": half},
        ]
        base = vars(_batch(plus, minus, ref_plus, ref_minus))
        # Row 1 loses a response in the last two, and some pair losses have no value without it: look at row 0 alone.
        with np.errstate(all="ignore"):
            pushes = [self.objective.push(Batch(**(base | change))) for change in changes]
        return len({(float(p.chosen[0, 0]), float(p.rejected[0, 0])) for p in pushes}) > 1

    def __call__(self, *levels: Array) -> tuple[Array, Array]:
        """(c_+, c_−) for arrays of (ℓ_+, ℓ_−, ref_+, ref_−[, old_−]); each pair a batch of its own."""
        batch = _batch(*levels)
        if self.across:
            pushes = [self.objective.push(one) for one in _rows(batch)]
            return np.concatenate([p.chosen[:, 0] for p in pushes]), np.concatenate([p.rejected[:, 0] for p in pushes])
        push = self.objective.push(batch)
        return push.chosen[:, 0], push.rejected[:, 0]

    def loss(self, *levels: Array) -> Array:
        return np.concatenate([self.objective.loss(one) for one in _rows(_batch(*levels))])


def _vanishes(path: Array) -> bool:
    most = np.abs(path).max()
    return bool(most > 0 and abs(path[-1]) < _GONE * most)


def _both_ways(path: Array) -> str:
    return ", both ways" if _vanishes(path) and _vanishes(path[::-1]) else ""


def _hard(path: Array) -> bool:
    """Falls from more than half of its largest value to exactly 0 in one step."""
    size = np.abs(path)
    return bool(np.any((size[:-1] > 0.5 * size.max()) & (size[1:] == 0)))


def _signs(path: Array) -> list[int]:
    """The signs met along a path, in order, numbers that are 0 to rounding left out."""
    signs = np.sign(path[np.abs(path) > 1e-12 * np.abs(path).max()]).astype(int)
    return [int(s) for i, s in enumerate(signs) if i == 0 or s != signs[i - 1]]


def _fades(minus: Any) -> str:
    """What makes the push on y− fade, in words."""
    margin = minus(_LOW + _BOTH, _LOW, _LOW, _LOW)  # h from −1500 to 1500
    ratio = minus(_LOW, _LOW, _LOW + _BOTH, _LOW + _BOTH)  # own log-ratio from 1500 to −1500 at margin 0
    margins = [margin, minus(_HIGH, _HIGH, _HIGH - _DEPTH, _HIGH)]
    falling = _HIGH - _DEPTH
    paths = {
        "margin": margins,
        "own log-ratio": [ratio],
        "ratio to the old policy": [minus(_HIGH, _LOW, _HIGH, _LOW, _LOW + _DEPTH)],
        "own probability": [minus(falling, falling, falling, falling)],
    }
    together = minus(_HIGH, falling, _HIGH, _HIGH, _HIGH)
    seen = np.concatenate([*margins, *paths["own log-ratio"], *paths["own probability"], together])
    if not np.any(seen):
        return "no push"
    if not np.any(seen < 0):
        return "pulls y− up"
    for name, path in (("margin", margin), ("own log-ratio", ratio)):
        signs = _signs(path)
        if signs == [-1, 1]:
            return f"target {name}, reverses beyond" + _both_ways(path)
        if signs == [-1, 1, -1]:
            return f"{name}, wrong sign in a window"
    found = []
    for name, some in paths.items():
        if any(_vanishes(path) for path in some):
            hard = ", hard off" if any(_hard(path) for path in some) else ""
            found.append(name + hard + "".join(_both_ways(path) for path in some))
    left = abs(paths["own probability"][0][-1]) / max(np.abs(paths["own probability"][0]).max(), np.finfo(float).tiny)
    if not found and _vanishes(together):
        found.append("margin and own log-ratio together")
    if found and _GONE < left < 0.5:
        found.append(f"own probability to {left:.0%}")
    return "; ".join(found) if found else f"never (least {np.abs(seen).min():.4g})"


def _bounded(probe: _Probe) -> str:
    """Whether the loss has a floor as ℓ_−, ℓ_+ or both go to −∞."""
    far, here = np.asarray([-1e3, -1e6]), np.asarray([-1.0, -1.0])
    losses = [probe.loss(*levels, here, here, here) for levels in ((here, far), (far, here), (far, far))]
    return "no" if any(last < first - 1.0 for first, last in losses) else "yes"


def _length(objective: Any) -> str:
    """Whether the push on one token halves when y− is twice as long at the same log-probability per token."""
    calm = np.asarray([[-4.0]])
    pushes = []
    for n in (1, 2):
        twice = np.full((1, n), -4.0)
        sides = {"rejected": twice, "ref_rejected": twice, "old_rejected": twice}
        pushes.append(objective.push(pair_batch(calm[0], calm[0], **sides)).rejected[0, 0])
    return "mean" if pushes[0] != 0 and abs(pushes[1] / pushes[0] - 0.5) < 1e-12 else "sum"


def _negative(at_start: float, path: Array) -> str:
    return "yes" if at_start < 0 else "later" if np.any(path < -1e-12 * np.abs(path).max()) else "no"


def _target_row(name: str, objective: Any) -> Row:
    """The row of an objective with a target distribution: its push on y is −G_y/(1 − π_y)."""
    # y is the last and rarest of 12 classes, p_y from 1e-75 to 1e-300, the others in fixed proportions.
    log_p = np.log(np.geomspace(1e-75, 1e-300, 200))
    rest = -0.5 * np.arange(11)
    rest = rest - np.log(np.exp(rest).sum()) + np.log1p(-np.exp(log_p))[:, None]
    logp = np.concatenate([rest, log_p[:, None]], axis=1)[:, None, :]
    labels = np.full((200, 1), 11)
    push = -objective.residual(logp, labels)[:, 0, 11] / -np.expm1(log_p)
    first, last = objective.loss(logp, labels)[[0, -1]]
    fades = "own probability" if _vanishes(push) else f"never (least {np.abs(push).min():.4g})"
    return Row(
        name=name, source=objective.source, kind=objective.kind, negative=_negative(push[0], push), plus=0.0,
        minus=float(push[-1]), fades=fades if np.any(push < 0) else "pulls y− up", lowers_chosen="no",
        bounded="no" if last < first - 1.0 else "yes", length="sum", across="row",
    )  # fmt: skip


def looks_across(objective: Any, /) -> bool:
    """Whether the push on one row of a batch depends on the other rows, found by changing them.

    Sees what depends on their log-probabilities and on which responses are there, not on their advantages or groups.

    >>> looks_across(get("kto")), looks_across(get("dpo"))
    (True, False)
    """
    return objective.kind != "target" and _Probe(objective).across


def row(name: str, /, **parameters: Any) -> Row:
    """The row of one objective, computed.

    >>> r = row("dpo")
    >>> r.negative, r.plus, r.minus, r.fades, r.bounded
    ('yes', 0.05, -0.05, 'margin', 'yes')
    """
    objective = get(name, **parameters)
    if objective.kind == "target":
        return _target_row(name, objective)
    probe = _Probe(objective)
    start = np.asarray([_HIGH])
    plus, minus = (float(c[0]) for c in probe(start, start, start, start))
    walks = [probe(_LOW + _BOTH, _LOW, _LOW, _LOW), probe(_LOW, _LOW, _LOW + _BOTH, _LOW + _BOTH),
             probe(_HIGH, _HIGH - _DEPTH, _HIGH, _HIGH), probe(_HIGH - _DEPTH, _HIGH, _HIGH, _HIGH)]  # fmt: skip
    return Row(
        name=name,
        source=objective.source,
        kind=objective.kind,
        negative=_negative(minus, np.concatenate([w[1] for w in walks])),
        plus=plus,
        minus=minus,
        fades=_fades(lambda *levels: probe(*levels)[1]),
        lowers_chosen=_negative(plus, np.concatenate([w[0] for w in walks])),
        bounded=_bounded(probe),
        length=_length(objective),
        across="batch" if probe.across else "row",
    )


def table() -> list[Row]:
    """A row per registered objective, in order of registration, with default parameters."""
    return [row(name) for name in OBJECTIVES]


def table_markdown(rows: list[Row] | None = None, /) -> str:
    """The table as markdown; `rows` where they are at hand already (computing them takes seconds).

    The columns: does the loss ever push y− down (`later`: not at π = π_ref, but somewhere); c_+ and c_− at π = π_ref,
    one token of −1 nat each, rewards ±1 (for a target distribution: −G_y/(1 − π_y) as π_y → 0); what makes the push on
    y− fade; is y+ ever pushed down; does the loss have a floor as log-probabilities go to −∞; is a response summed or
    averaged over its tokens; does a row's push depend on other rows.
    """
    head = (
        "| objective | negative gradient on y− | c₊ at π_ref | c₋ at π_ref | push on y− fades with "
        "| y+ ever pushed down | bounded below | length | looks at | source |\n" + "|---" * 10 + "|\n"
    )
    lines = [
        f"| `{r.name}` | {r.negative} | {r.plus:.4g} | {r.minus:.4g} | {r.fades} "
        f"| {r.lowers_chosen} | {r.bounded} | {r.length} | {r.across} | {r.source} |"
        for r in (table() if rows is None else rows)
    ]
    return head + "\n".join(lines)
