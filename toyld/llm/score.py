"""Exact log-probabilities of given responses under a causal language model, with what stands around each label.

For response tokens y_t behind a context x_t, with π_t = softmax of the model's logits at the position *before* y_t:

    logp = Σ_t log π_t(y_t),   argmax_logp = Σ_t log max π_t,   entropy = mean_t H(π_t),   top1 = mean_t max π_t,
    pi_norm2 = mean_t ‖π_t‖²,   residual_norm = mean_t ‖π_t − e_{y_t}‖.

The numbers come from hidden states and the head's matrix by tiles of the vocabulary (`toyld.llm.statistics`), in
float32 whatever the model computes in (float64 for a float64 model); sums over tokens are in float64. Responses of the
same prompt share its computation where the model can serve that: by a key-value cache or by a mask (`Way`).
Half-precision scores move by more than 10 % in probability with the shape of the batch. Which shapes there are depends
on the responses alone, so that they are the same at every checkpoint; `noise_floor` measures how much shapes matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.llm import cached, packed, padded, serving
from toyld.llm.checkpoints import positions
from toyld.llm.encode import Encoded, encode
from toyld.llm.reader import Reader
from toyld.llm.shared import Group, groups, saving

__all__ = ["Scores", "Tokens", "Way", "noise_floor", "score", "score_encoded", "score_tokens"]

Floats = NDArray[np.float64]
Name = Literal["auto", "cached", "packed", "padded"]
MULTIPLE = 64  # of the padded length
WORTH = 0.1  # of all tokens that sharing must save
# Root mean square over tokens of what sharing may change in log π, relative to 1 + that of log π itself: rounding of a
# deep model stays below, a token that sees what it should not does not.
OFF = {"float64": 1e-6, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Scores:
    """One number a response, (N,) float64 each: sums over its tokens in nats (logp, argmax_logp), else means."""

    logp: Floats
    argmax_logp: Floats
    n_tokens: Floats
    entropy: Floats
    top1: Floats
    pi_norm2: Floats
    residual_norm: Floats

    def at(self, rows: Sequence[int], /) -> Scores:
        """The scores of these responses."""
        return Scores(*(values[list(rows)] for values in vars(self).values()))


@dataclass(frozen=True)
class Way:
    """How responses were scored, and why so: `name` cached, packed or padded; `head` tiles, rows or logits."""

    name: str
    why: str
    head: str = ""
    head_why: str = ""


@dataclass(frozen=True)
class Tokens:
    """Per response an array (6, tokens): log π(y), log max π, H, max π, ‖π‖², ‖π − e_y‖ (`statistics.NAMES`)."""

    numbers: list[Floats]
    way: Way = field(default=Way("padded", ""))

    def fold(self) -> Scores:
        """Sums of the first two rows, the number of tokens, means of the rest."""
        rows = [(a[0].sum(), a[1].sum(), a.shape[1], *a[2:].mean(1)) for a in self.numbers]
        return Scores(*np.array(rows, np.float64).T)


def score(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    responses: Sequence[Any],
    /,
    *,
    max_length: int = 512,
    batch_size: int = 8,
    eos: bool = True,
    tick: Callable[[int], object] | None = None,
    way: Name = "auto",
) -> Scores:
    """The module's formulas for each response behind its prompt; see `encode` for tokens and truncation.

    `model`: a causal language model (Hugging Face, PEFT, or any module called as model(input_ids=, attention_mask=)
    that returns `.logits` (B, T, V)), on its device; see `score_tokens` for what happens to it, for `way` and memory.
    `tick` hears how many responses each batch has finished.

    Raises:
        BadInput: what `encode` and `score_tokens` refuse.

    >>> import torch
    >>> from types import SimpleNamespace
    >>> class Even(torch.nn.Module):
    ...     def forward(self, input_ids, attention_mask):
    ...         return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 4))
    >>> class Digits:
    ...     eos_token_id = 0
    ...     def __call__(self, text, add_special_tokens):
    ...         return {"input_ids": [int(c) for c in text]}
    >>> found = score(Even(), Digits(), ["12"], ["31"])
    >>> found.n_tokens, (found.logp / np.log(4)).round(6), found.top1, found.pi_norm2
    (array([3.]), array([-3.]), array([0.25]), array([0.25]))
    """
    encoded = encode(tokenizer, prompts, responses, max_length=max_length, eos=eos)
    return score_encoded(model, encoded, batch_size=batch_size, tick=tick, way=way)


def score_encoded(
    model: Any,
    encoded: Sequence[Encoded],
    /,
    *,
    batch_size: int = 8,
    multiple: int = MULTIPLE,
    tick: Callable[[int], object] | None = None,
    way: Name = "auto",
) -> Scores:
    """`score` of token ids: the fold of `score_tokens`."""
    return score_tokens(model, encoded, batch_size=batch_size, multiple=multiple, tick=tick, way=way).fold()


def score_tokens(
    model: Any,
    encoded: Sequence[Encoded],
    /,
    *,
    batch_size: int = 8,
    multiple: int = MULTIPLE,
    tick: Callable[[int], object] | None = None,
    way: Name = "auto",
) -> Tokens:
    """The numbers of every token, and the way they were found.

    `way`: "cached" (a prompt once, its key-value cache read by all its responses), "packed" (a prompt and its responses
    in one row, kept apart by a mask), "padded" (each response with its prompt in a row of its own), or "auto": the
    first of these that serves, and padded where responses share little. Whether one serves is told by the model's class
    and config and, once for a model, by two responses of a first batch scored both ways; `Way.why` says it.

    `batch_size`: responses in a forward. `multiple`: lengths of padded rows are multiples of it, or the model's last
    position. Memory: a forward's hidden states and two tiles of logits (2 MiB each on a CPU); where the head is no
    matrix, 64 MiB of logits more; where the model's own logits are read (`Way.head` "logits"), all those of a batch.

    The model is put into eval mode for the while, without gradients; afterwards modes and random states are what they
    were. Parameters, gradients, config and buffers are not touched.

    Raises:
        BadInput: more tokens than the model has positions; a way that the model cannot serve; numbers not finite.
    """
    if batch_size < 1:
        raise BadInput(f"--batch-size: expected at least 1, got {batch_size}")
    if not encoded:
        raise BadInput("expected at least one response to score, got none")
    if way not in get_args(Name):
        raise BadInput(f"expected a way among {', '.join(get_args(Name))}, got {way!r}")
    room, longest = positions(getattr(model, "config", None)), max(len(item.ids) for item in encoded)
    if room is not None and longest > room:
        raise BadInput(f"--max-length: expected at most the model's {room} positions, got a sequence of {longest}")
    job = _Job(Reader(model), encoded, batch_size, multiple, room)
    with _undisturbed(model):
        taken = job.choose(way)
        found: dict[int, Floats] = {}
        for batch in job.run(taken):
            found |= dict(batch)
            if tick is not None:
                tick(len(batch))
    out = [found[i] for i in range(len(encoded))]
    if any(numbers.shape[1] != len(item.ids) - item.start for numbers, item in zip(out, encoded, strict=True)):
        raise AssertionError("every response token is scored once")
    bad = [i for i, numbers in enumerate(out) if not np.isfinite(numbers).all()]
    if bad:
        got = out[bad[0]][0].sum()
        msg = f"expected finite log-probabilities, got {got} for response {bad[0]} ({len(bad)} in all): "
        raise BadInput(msg + "the weights are not finite, or overflow in this dtype; try --dtype float32 or bfloat16")
    head = job.reader.head
    return Tokens(out, dataclasses.replace(taken, head=head.name, head_why=head.why))


def noise_floor(model: Any, encoded: Sequence[Encoded], first: Scores, /, *, batch_size: int = 8) -> float:
    """Largest change of log-probability per token, in nats, when the same tokens are scored in other batch shapes.

    `first` = score_encoded(model, encoded, batch_size=batch_size); here each response is scored alone (in pairs where
    it was alone before), with its prompt, not padded beyond its length. A repeat in the same shapes would show nothing:
    it is bit-equal.
    """
    again = score_encoded(model, encoded, batch_size=1 if batch_size > 1 else 2, multiple=1, way="padded")
    off = np.maximum(abs(again.logp - first.logp), abs(again.argmax_logp - first.argmax_logp))
    return float((off / first.n_tokens).max())


# What a check on real inputs found, by model: "" or why sharing is wrong there.
_CHECKED: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], str]] = weakref.WeakKeyDictionary()


@dataclass
class _Job:
    """Responses to score, and by which forwards."""

    reader: Reader
    encoded: Sequence[Encoded]
    size: int
    multiple: int
    room: int | None

    def choose(self, way: Name) -> Way:
        longest = max(len(item.ids) for item in self.encoded)
        if way == "padded":
            return Way("padded", "as asked")
        if way != "auto":
            why = serving.refusal(self.reader, way, longest)
            if why:
                msg = (
                    f"expected a model that can serve the way {way!r}, got {type(self.reader.model).__name__}: {why}; "
                )
                raise BadInput(msg + "use way='auto'")
            return Way(way, "as asked")
        found = groups(self.encoded)
        if saving(found, self.encoded) < WORTH:
            return Way("padded", "the responses share too little of their prompts")
        whys: list[str] = []
        for name in ("cached", "packed"):
            why = serving.refusal(self.reader, name, longest) or self._check(name, found)
            if not why:
                return Way(name, "; ".join([*whys, f"{name}: checked against plain forwards"]))
            whys.append(f"not {name}: {why}")
        return Way("padded", "; ".join(whys))

    def run(self, way: Way) -> Iterator[padded.Found]:
        if way.name == "padded":
            yield from self._padded(range(len(self.encoded)))
            return
        found = groups(self.encoded)
        # Where it was not asked for, who shares with nobody is better off in a row of its own.
        alone = [] if way.why == "as asked" else [group.rows[0] for group in found if len(group.rows) == 1]
        yield from self._shared(way.name, [group for group in found if group.rows[0] not in alone])
        yield from self._padded(alone)

    def _shared(self, way: str, found: list[Group]) -> Iterator[padded.Found]:
        return (cached if way == "cached" else packed).run(self.reader, self.encoded, found, size=self.size)

    def _padded(self, rows: Sequence[int]) -> Iterator[padded.Found]:
        sizes: dict[str, Any] = {"size": self.size, "multiple": self.multiple, "room": self.room}
        return padded.run(self.reader, self.encoded, rows, **sizes)

    def _check(self, way: str, found: list[Group]) -> str:
        """Why two responses of a first batch differ by more than rounding when they share their prompt; "" if not."""
        known = _CHECKED.setdefault(self.reader.model, {})
        key = (way, str(self.reader.config._attn_implementation), self.reader.precision)
        if key not in known:
            known[key] = self._compare(way, found)
        return known[key]

    def _compare(self, way: str, found: list[Group]) -> str:
        shared = [group for group in found if len(group.rows) > 1]
        try:
            mine = dict(next(self._shared(way, shared)))
        except cached.Unfit as unfit:
            return str(unfit)
        except Exception as error:  # models fail in many ways at a cache that they do not expect
            return f"{type(error).__name__} {(str(error).strip().splitlines() or [''])[0][:160]}"
        two = [min(mine), max(mine)]
        plain = dict(pair for batch in self._padded(two) for pair in batch)
        a, b = (np.concatenate([rows[i][:2] for i in two], 1) for rows in (mine, plain))
        off = np.sqrt(np.mean((a - b) ** 2)) / (1 + np.sqrt(np.mean(b**2)))
        most = OFF.get(self.reader.precision, OFF["bfloat16"])
        if off <= most or not np.isfinite(b).all():
            return ""
        return f"it changes log-probabilities by {off:.2g} of their size"


@contextlib.contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Eval mode without gradients; afterwards the mode of every module and the random states are what they were."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    # No inference mode: what a model keeps for itself in a forward must serve in training afterwards.
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training
