"""Exact log-probabilities of given responses under a causal language model, with what stands around each label.

For response tokens y_t behind a context x_t, with π_t = softmax of the model's logits at the position *before* y_t:

    logp = Σ_t log π_t(y_t),   argmax_logp = Σ_t log max π_t,   entropy = mean_t H(π_t),   top1 = mean_t max π_t,
    pi_norm2 = mean_t ‖π_t‖²,   residual_norm = mean_t ‖π_t − e_{y_t}‖.

The softmax is taken in float32 whatever the model computes in, sums over tokens in float64. Sequences are padded on
the right to a multiple of 64 (at most to the model's last position) and batches to a fixed number of rows, so the shape
in which a response is scored depends on its own length alone: the same at every checkpoint. Half-precision scores move
by more than 10 % in probability with the shape of the batch; `noise_floor` measures by how much here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.llm.checkpoints import positions
from toyld.llm.encode import Encoded, encode

__all__ = ["Scores", "noise_floor", "score", "score_encoded"]

Floats = NDArray[np.float64]
MULTIPLE = 64  # of the padded length
CHUNK = 2**24  # float32 numbers of one chunk of softmaxes: 64 MiB, times about six for what is computed from them


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
) -> Scores:
    """The module's formulas for each response behind its prompt; see `encode` for tokens and truncation.

    `model`: a causal language model (Hugging Face, PEFT, or any module called as model(input_ids=, attention_mask=)
    that returns `.logits` (B, T, V)), on its device; it is put into eval mode for the while. `tick` hears how many
    responses each batch has finished. Memory: the logits of one batch at once, in the model's dtype: batch_size × V ×
    the positions from the first response's beginning to the longest one's end (× the padded length, where the model
    takes no `logits_to_keep`); and one chunk in float32, at most 64 MiB a copy.

    Raises:
        BadInput: what `encode` refuses; more tokens than the model has positions; logits that are not finite.

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
    return score_encoded(model, encoded, batch_size=batch_size, tick=tick)


def score_encoded(
    model: Any,
    encoded: Sequence[Encoded],
    /,
    *,
    batch_size: int = 8,
    multiple: int = MULTIPLE,
    tick: Callable[[int], object] | None = None,
) -> Scores:
    """`score` of token ids; `multiple`: padded lengths are multiples of it, or the model's last position."""
    import torch

    if batch_size < 1:
        raise BadInput(f"--batch-size: expected at least 1, got {batch_size}")
    if not encoded:
        raise BadInput("expected at least one response to score, got none")
    room, longest = positions(getattr(model, "config", None)), max(len(item.ids) for item in encoded)
    if room is not None and longest > room:
        raise BadInput(f"--max-length: expected at most the model's {room} positions, got a sequence of {longest}")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    accepts = set(inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters)
    columns = [np.zeros(len(encoded)) for _ in fields(Scores)]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for rows, length in _batches(encoded, batch_size, multiple, room):
                tokens = _score_batch(model, [encoded[i] for i in rows], batch_size, length, device, accepts)
                for i, found in zip(rows, tokens, strict=True):
                    count = found.shape[1]
                    for column, values in zip(columns, _fold(found), strict=True):
                        column[i] = values
                    if count != len(encoded[i].ids) - encoded[i].start:
                        raise AssertionError("every response token is scored once")
                if tick is not None:
                    tick(len(rows))
    finally:
        model.train(training)
    out = Scores(*columns)
    bad = np.flatnonzero(~np.isfinite(np.stack(columns)).all(0))
    if bad.size:
        msg = f"expected finite log-probabilities, got {out.logp[bad[0]]} for response {bad[0]} ({bad.size} in all): "
        raise BadInput(msg + "the weights are not finite, or overflow in this dtype; try --dtype float32 or bfloat16")
    return out


def noise_floor(model: Any, encoded: Sequence[Encoded], first: Scores, /, *, batch_size: int = 8) -> float:
    """Largest change of log-probability per token, in nats, when the same tokens are scored in other batch shapes.

    `first` = score_encoded(model, encoded, batch_size=batch_size); here each response is scored alone (in pairs where
    it was alone before), not padded beyond its length. A repeat in the same shapes would show nothing: it is bit-equal.
    """
    again = score_encoded(model, encoded, batch_size=1 if batch_size > 1 else 2, multiple=1)
    off = np.maximum(abs(again.logp - first.logp), abs(again.argmax_logp - first.argmax_logp))
    return float((off / first.n_tokens).max())


def _batches(encoded: Sequence[Encoded], size: int, multiple: int, room: int | None) -> Iterator[tuple[list[int], int]]:
    """(rows, padded length): rows of one padded length, in order, `size` at a time; never longer than `room`."""
    by_length: dict[int, list[int]] = {}
    for i, item in enumerate(encoded):
        length = -(-len(item.ids) // multiple) * multiple
        by_length.setdefault(length if room is None else min(length, room), []).append(i)
    for length, rows in sorted(by_length.items()):
        for first in range(0, len(rows), size):
            yield rows[first : first + size], length


def _score_batch(
    model: Any, batch: list[Encoded], size: int, length: int, device: Any, accepts: set[str]
) -> list[Floats]:
    """Per response an array (6, tokens): log π(y), log max π, H, max π, ‖π‖², ‖π − e_y‖."""
    import torch

    ids = torch.zeros(size, length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for b in range(size):
        row = batch[min(b, len(batch) - 1)].ids  # a short batch repeats its last row: the shape stays
        ids[b, : len(row)] = torch.tensor(row)
        mask[b, : len(row)] = 1
    # The logits at position t predict the token at t + 1.
    first = min(item.start for item in batch) - 1
    last = max(len(item.ids) for item in batch) - 1
    wanted: dict[str, Any] = {"use_cache": False, "logits_to_keep": torch.arange(first, last, device=device)}
    options = {name: value for name, value in wanted.items() if name in accepts}
    offset = first if "logits_to_keep" in options else 0
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), **options).logits
    if logits.shape[1] != (last - first if "logits_to_keep" in options else length):
        raise AssertionError("one row of logits a position")
    where = [(b, t) for b, item in enumerate(batch) for t in range(item.start, len(item.ids))]
    found = []
    step = max(1, CHUNK // logits.shape[-1])
    for i in range(0, len(where), step):
        b, t = torch.tensor(where[i : i + step]).T
        labels = ids[b, t].to(device)
        found.append(_tokens(logits[b.to(device), (t - 1 - offset).to(device)], labels).cpu())
    values = np.asarray(torch.cat(found, 1).numpy(), np.float64)
    ends = np.cumsum([len(item.ids) - item.start for item in batch])
    return np.split(values, ends[:-1], axis=1)


def _tokens(logits: Any, labels: Any) -> Any:
    """(6, N) float32 from logits (N, V) and labels (N,)."""
    import torch

    log_pi = torch.log_softmax(logits.float(), dim=-1)
    log_label = log_pi.gather(1, labels[:, None])[:, 0]
    log_top = log_pi.amax(1)
    pi = log_pi.exp()
    entropy = torch.special.entr(pi).sum(1)
    # ‖π − e_y‖² = Σ_{i≠y} π_i² + (Σ_{i≠y} π_i)²: no difference that would lose its digits as π_y → 1.
    others = pi.scatter(1, labels[:, None], 0.0)
    squares = others.square().sum(1)
    norm2 = squares + log_label.exp().square()
    residual = (squares + others.sum(1).square()).sqrt()
    return torch.stack([log_label, log_top, entropy, log_top.exp(), norm2, residual])


def _fold(tokens: Floats) -> tuple[float, ...]:
    """Sums of the first two rows, the number of tokens, means of the rest: in the order of `Scores`."""
    label, top, *rest = tokens
    return (float(label.sum()), float(top.sum()), float(tokens.shape[1]), *(float(row.mean()) for row in rest))
