"""What a run teaches and what it asks: pairs as TRL's trainers take them, and the probes of them.

As in the paper the first rows of the data are trained on and the first of these are probed. Rows that are not trained
on give the answers that are never taught (irr_test, and shuffled random_nonhum).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from toyld.llm import checkpoints
from toyld.llm.cells import cells
from toyld.llm.data import read_probes
from toyld.llm.plan import Plan
from toyld.llm.sources import Pairs, pairs_for_training
from toyld.probes import Preferences, ProbeSet, Row, make

__all__ = ["Taught", "taught"]

KINDS = ("other_prompt", "permuted")  # beside those that the data carry
NEVER = ("irr_test", "random_nonhum")  # where there are rows that are not trained on


@dataclass(frozen=True)
class Taught:
    """pairs: those trained on. never: rows that are not. probes: what is asked, `tokenizer`: in which tokens.

    notes: what a reader should know: rows left out, kinds that could not be made, responses cut.
    """

    pairs: Pairs
    never: Preferences | None
    probes: ProbeSet
    tokenizer: Any
    notes: tuple[str, ...]

    def answered(self, plan: Plan, rejected: list[str], /) -> Taught:
        """The same with other rejected answers, one a pair; where one is empty or chosen's, the pair keeps its own.

        Probes of the pairs get them, too; those of data of their own stay as they are.
        """
        rows = [_with(row, text) for row, text in zip(self.pairs.train.rows, rejected, strict=True)]
        pairs = replace(self.pairs, train=Preferences.of(rows))
        probes = self.probes if plan.probe_data is not None else _probes(plan, pairs, self.never)
        return replace(self, pairs=pairs, probes=probes)


def taught(plan: Plan, /) -> Taught:
    """Read what a plan names.

    Raises:
        BadInput: data that cannot be read, too few rows, a tokenizer that does not fit, in one line.
    """
    read = pairs_for_training(plan.data, test=plan.held_out, seed=plan.seed)
    rows = read.train.rows
    first, rest = rows[: plan.pairs], () if read.test is None else read.test.rows
    rest = rest or rows[plan.pairs :]
    pairs = replace(read, train=Preferences.of(first), test=None)
    never = Preferences.of(rest) if rest else None
    probes = _probes(plan, pairs, never)
    tokenizer = checkpoints.load_tokenizer((plan.model,), chat=read.conversational)
    asked = cells(tokenizer, probes, max_length=plan.max_length)
    config = checkpoints.load_config(plan.model)
    fits = {"largest_id": max(max(item.ids) for item in asked.items), "longest": plan.max_length}
    checkpoints.check_fit(config, plan.model, size=None, **fits)
    return Taught(pairs, never, probes, tokenizer, tuple(_notes(plan, read, pairs, probes, asked.n_cut)))


def _probes(plan: Plan, pairs: Pairs, never: Preferences | None) -> ProbeSet:
    trained = pairs.train.rows
    if plan.probe_data is None:
        carried = {key for row in trained for key in row.extra}
        kinds = plan.kinds or (*KINDS, *carried, *(NEVER if never else ()))
        asked = Preferences.of(trained[: plan.probes])
        return make(asked, kinds, seed=plan.seed, train=pairs.train, test=never)
    known = {row.prompt for row in trained}
    options: dict[str, Any] = {"kinds": plan.kinds, "n": plan.probes, "seed": plan.seed}
    probes, _ = read_probes(plan.probe_data, **options)
    if known.isdisjoint(probes.prompts):
        probes, _ = read_probes(plan.probe_data, **options, held_out=True)
    return probes


def _with(row: Row, rejected: str) -> Row:
    """A row with another rejected answer, unless it is no answer or the chosen one."""
    if not rejected.strip() or rejected.split() == row.chosen.split():
        return row
    messages = row.messages
    if messages is not None:
        messages = {**messages, "rejected": ({"role": "assistant", "content": rejected},)}
    return replace(row, rejected=rejected, messages=messages)


def _notes(plan: Plan, read: Pairs, pairs: Pairs, probes: ProbeSet, cut: int) -> Iterator[str]:
    size = len(pairs.train)
    more = f", the first of {len(read.train)}" if len(read.train) > size else ""
    more = more or (f" (all there are, for --pairs {plan.pairs})" if size < plan.pairs else "")
    yield f"{size} pairs are trained on{more}" + (f"; {read.left_out}" if len(read.left_out) else "")
    known = {row.prompt for row in pairs.train.rows}
    inside = sum(prompt in known for prompt in probes.prompts)
    kinds = ", ".join(probes.responses)
    yield f"{len(probes)} prompts are probed, {inside} of them trained on, with {len(probes.responses)} kinds: {kinds}"
    for kind, why in probes.missing.items():
        yield f"not probed, {kind}: {why}"
    if cut:
        yield f"{cut} probed responses lost their end at --max-length {plan.max_length}"
