"""Preference pairs before training on them: which will displace, which are not the model's own, which are faulty.

Texts and tokens of all rows are checked (`toyld.llm.faults`); the model reads a sample of them. Of every pair in it:
Δlog π of the chosen response by one update on the whole sample, to first order through all layers
(`toyld.llm.foresee`), K3 and CHES from the last hidden states, and how surprised the model is by both responses beside
its entropy, which is its surprise at what it writes itself (`toyld.llm.pairs`).

What the rankings are worth: rank correlation with the real Δlog π(y⁺) of 64 pairs after 12 updates of DPO (AdamW, rate
1e-4, batch 16, β = .1) on a pretrained Llama of 260,032 parameters, mean over 10 samples of pairs [95 %]. Rejected is
another story's continuation, the model's own sample, or real preference data far from what the model knows:

                                    another's          its own             real pairs
    one update, all layers          .78 [.71, .85]     .96 [.95, .97]      .96 [.92, .99]
      its sign                      .76 [.71, .81]     .98 [.97, .99]      .97 [.93, 1.0]
    K3 on all pairs (head alone)    .08 [−.02, .19]    .58 [.52, .64]      .58 [.40, .76]
    CHES, falling                   .05 [−.03, .12]    −.12 [−.22, −.02]   .49 [.41, .56]
    CHES by lengths, falling        .05 [−.03, .12]    −.12 [−.22, −.02]   −.19 [−.30, −.07]

The first ran with AdamW from a fresh state; with plain descent's gradient it is .69, .94, .93. Lengths are equal in the
first two columns; in the third a response's length alone gives −.76. So K3 and CHES, which see the head or its inputs
alone, are in the file for comparison, and what is reported is the update through all layers. Larger models have not
been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toyld import objectives
from toyld.checked import BadInput
from toyld.llm import checkpoints
from toyld.llm.encode import Encoded, encode
from toyld.llm.faults import Finding, TokenPair, find
from toyld.llm.sampled import OPTIMIZERS, read
from toyld.probes import Preferences, Row, read_preference

__all__ = ["SCHEMA", "UNITS", "Scan", "scan"]

SCHEMA = 1
TRL_LENGTH = 1024  # DPOConfig.max_length
UNITS = {
    "logp_chosen, logp_rejected": "log π of the response, a sum over its tokens, nats",
    "surprise_…, entropy_…": "mean −log π and mean entropy, nats a token",
    "off_…": "how many standard errors the surprise exceeds the entropy (about ±1 for the model's own samples)",
    "predicted": "Δlog π of the chosen response by one update on all scored pairs, first order, all layers, nats",
    "k3_own, k3_update": "the same by the head alone, for an update on this pair and on a batch, nats per unit of lr",
    "ches, ches_normalised": "squared hidden units; a higher one is said to displace more",
    "shared_start, tokens_…, cut_…": "tokens (cut: of the response's end, in what was scored)",
}
Through = Literal["layers", "head", "none"]
Tell = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Scan:
    """Findings, faults first; a mapping of numbers a scored pair (`UNITS`), in the order of the rows; the summary."""

    model: str
    data: str
    rows: int
    findings: tuple[Finding, ...]
    pairs: tuple[dict[str, Any], ...]
    summary: dict[str, float]
    settings: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """{"schema": 1, "findings": […], "pairs": […], …}; rows are numbers from 0, units stand under "units"."""
        findings = [vars(one) | {"rows": list(one.rows)} for one in self.findings]
        whole: dict[str, Any] = {
            "schema": SCHEMA,
            "model": self.model,
            "data": self.data,
            "rows": self.rows,
            "units": UNITS,
        }
        whole |= {"settings": self.settings, "summary": self.summary}
        return whole | {"findings": findings, "pairs": list(self.pairs)}


def scan(
    data: str | Path,
    model: str,
    /,
    *,
    n: int = 128,
    max_length: int | None = None,
    through: Through = "layers",
    objective: str = "dpo",
    optimizer: str = "adamw",
    lr: float = 1e-6,
    batch: int = 32,
    eos: bool = True,
    batch_size: int = 8,
    dtype: str = "float32",
    device: str = "auto",
    seed: int = 0,
    tell: Tell | None = None,
) -> Scan:
    """Check every pair's text and tokens, and score `n` of them, a random sample, with the model.

    max_length: as training will cut; by default TRL's 1024, or the model's positions. through: "layers" takes the
    gradient of all layers (memory as for training without an optimiser's state), "head" stays with K3, "none" loads no
    weights at all. objective: of `toyld.objectives`; optimizer, lr: adamw, rmsprop or sgd from a fresh state.
    batch: pairs in an update, for `k3_update`. tell hears (what, done, total).

    Raises:
        BadInput: data, model or settings that do not serve, in one line.
    """
    for name, value in (("--n", n), ("--batch", batch), ("--batch-size", batch_size)):
        if value < 1:
            raise BadInput(f"{name}: expected at least 1, got {value}")
    if optimizer not in OPTIMIZERS:
        raise BadInput(f"--optimizer: expected one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    if not 0.0 < lr < float("inf"):
        raise BadInput(f"--lr: expected a finite number > 0, got {lr}")
    loss = objectives.get(objective)
    with checkpoints.quiet():
        device = checkpoints.pick_device(device)
        config = checkpoints.load_config(model)
        room = checkpoints.positions(config)
        longest = min(TRL_LENGTH, room or TRL_LENGTH) if max_length is None else max_length
        if longest < 2 or (room is not None and longest > room):
            limit = "" if room is None else f", and at most the {room} positions of {model}"
            raise BadInput(f"--max-length: expected at least 2{limit}, got {longest}")
        rows = read_preference(data, on_bad="skip")
        chat = any(row.messages is not None for row in rows.rows)
        tokenizer = checkpoints.load_tokenizer([model], chat=chat)
        pairs, extra = _tokens(rows, tokenizer, eos=eos, tell=tell)
        findings = [*extra, *find(rows, pairs, tokenizer, max_length=longest)]
        usable = [p for p in pairs if len(p.prompt) < longest]
        of = len(rows) + len(rows.refused)
        settings: dict[str, Any] = {
            "n": n,
            "max_length": longest,
            "through": through,
            "objective": objective,
            "seed": seed,
        }
        settings |= {"optimizer": optimizer, "lr": lr, "batch": batch, "eos": eos, "dtype": dtype}
        if through == "none" or not usable:
            return Scan(model, str(data), of, _ordered(findings), (), {}, settings)
        order = np.random.default_rng(seed).permutation(len(usable))[:n]
        sample = [usable[i] for i in sorted(order)]
        cut = [_cut(pair, longest) for pair in sample]
        largest = max(max(side.ids) for both in cut for side in both)
        size = max(len(side.ids) for both in cut for side in both)
        checkpoints.check_fit(config, model, size=None, largest_id=largest, longest=size)
        loaded = checkpoints.load_model(model, dtype=dtype, device=device)
        table, more, summary = read(loaded, sample, cut, loss, settings, batch_size=batch_size, tell=tell)
    flags: dict[int, list[str]] = {}
    for finding in (*findings, *more):
        for row in finding.rows:
            flags.setdefault(row, []).append(finding.code)
    found = tuple(entry | {"flags": flags.get(entry["row"], [])} for entry in table)
    return Scan(model, str(data), of, _ordered([*findings, *more]), found, summary, settings)


_ORDER = ("fault", "warning", "note")


def _ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda one: _ORDER.index(one.severity)))


def _tokens(
    data: Preferences, tokenizer: Any, *, eos: bool, tell: Tell | None
) -> tuple[list[TokenPair], list[Finding]]:
    """All rows as tokens, uncut; those that cannot be are a finding, and so is a chat without a template."""
    found: list[TokenPair] = []
    findings: list[Finding] = []
    rows = list(data.rows)
    of = len(rows) + len(data.refused)
    chats = tuple(int(row.id) for row in rows if row.messages is not None)
    if chats and not getattr(tokenizer, "chat_template", None):
        what, do = "are conversations, and the tokenizer has no chat template", "give it the one that training will use"
        findings.append(
            Finding("no-chat-template", "fault", chats, of, what, do + "; here they are read as plain text")
        )
        rows = [replace(row, messages=None) for row in rows]
    eos = eos and getattr(tokenizer, "eos_token_id", None) is not None
    bad: list[tuple[int, str]] = []
    for i, row in enumerate(rows):
        try:
            found.append(_token_pair(row, tokenizer, eos))
        except BadInput as error:
            bad.append((int(row.id), str(error).removeprefix("row 0: ")))
        if tell is not None and (i % 64 == 63 or i + 1 == len(rows)):
            tell("reading", i + 1, len(rows))
    if bad:
        what = f"have no tokens to teach ({bad[0][1]})"
        findings.append(Finding("no-tokens", "fault", tuple(n for n, _ in bad), of, what, "drop or repair them"))
    return found, findings


_WHOLE = 2**30  # tokens: nothing is as long


def _token_pair(row: Row, tokenizer: Any, eos: bool) -> TokenPair:
    if row.messages is None:
        prompt: Any = row.prompt
        own = tokenizer(prompt)["input_ids"]
        sides: list[Any] = [row.chosen, row.rejected]
    else:
        prompt, *sides = (list(row.messages[name]) for name in ("prompt", "chosen", "rejected"))
        asked = tokenizer.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True, return_dict=True)
        own = asked["input_ids"]
    chosen, rejected = encode(tokenizer, [prompt] * 2, sides, max_length=_WHOLE, eos=eos)
    return TokenPair(row, tuple(own), chosen, rejected)


def _cut(pair: TokenPair, longest: int) -> tuple[Encoded, Encoded]:
    """Both responses as TRL cuts them: the end goes (keep_start)."""
    return tuple(  # type: ignore[return-value]
        side if len(side.ids) <= longest else Encoded(side.ids[:longest], side.start, len(side.ids) - longest)
        for side in (pair.chosen, pair.rejected)
    )
