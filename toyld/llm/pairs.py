"""What a model says of preference pairs before it is trained on them: K3, CHES, surprise. One run of it over the pairs.

With h the last hidden states (what the head reads) and r_t = e_{y_t} − π_t, training the head alone by plain gradient
descent changes the chosen response by, to first order and exactly so (K3),

    Δlog π(y⁺) = η Σ_{t ∈ y⁺} Σ_s push_s (⟨h_t, h_s⟩ + 1[bias]) ⟨r_t, r_s⟩          s: every token of every pair taught

In hand as D = Σ_s push_s r_s h_sᵀ it costs three products with the head and no gradient; V × V or token × token
matrices over all pairs are never formed (`toyld.contexts.predict.terms` is the same number by the Gram matrix). A head
that is scaled or soft-capped afterwards (Gemma, Cohere, Granite) has its derivative in r. Other layers train as well:
this is a stand-in for their part. CHES (Razin et al. 2025, 2410.08847) is

    ⟨Σ_t h_t⁺, Σ_s h_s⁻⟩ − ‖Σ_t h_t⁺‖²,   normalised: over |y⁺||y⁻| and |y⁺|², lengths without padding

and expects the more displacement the higher it is. *Surprise* is −log π a token, in nats; of what the model writes
itself it is the entropy on average, so that what exceeds it says how far a response is from the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toyld.checked import BadInput
from toyld.llm.encode import Encoded
from toyld.llm.head import Head
from toyld.llm.labels import batches, evaluating
from toyld.llm.lesson import Pairs, pushes
from toyld.llm.reader import Reader

__all__ = ["PairScores", "Side", "score_pairs"]

Floats = NDArray[np.float64]
CHUNK = 2**24  # float32 numbers of one chunk of softmaxes
WIDE = 2**27  # entries of the head beyond which the gradient is summed in float32


class Side(NamedTuple):
    """One side of P pairs, each (P,): log π in nats (sum); tokens; means a token of surprise and entropy in nats.

    off: by how many standard errors the surprise exceeds the entropy: about normal for the model's own samples.
    """

    logp: Floats
    tokens: Floats
    surprise: Floats
    entropy: Floats
    off: Floats


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs, (P,) each.

    own: Δlog π(y⁺) by an update on this pair alone; update: by one on `batch` pairs drawn from all that hold this one;
    both K3's, in nats per unit of learning rate of plain gradient descent. ches, ches_normalised: squared hidden units.
    """

    chosen: Side
    rejected: Side
    own: Floats
    update: Floats
    batch: int
    ches: Floats
    ches_normalised: Floats


class _Read(NamedTuple):
    """A response: the states that predict its tokens (T, d), the tokens, and (4, T): log π, H, Var log π, top 1."""

    states: Tensor
    labels: Tensor
    numbers: Floats


def score_pairs(
    model: nn.Module,
    chosen: Sequence[Encoded],
    rejected: Sequence[Encoded],
    /,
    *,
    objective: Any = None,
    batch: int = 32,
    batch_size: int = 8,
    tick: Callable[[int], object] | None = None,
) -> PairScores:
    """All scores of P pairs under a model; DPO's pushes at π = π_ref unless another objective is given.

    batch: pairs in an update (at most P count). batch_size: responses in one run of the model. tick hears how many
    responses have been read, 2P in all. Kept: all responses' last hidden states, in the model's dtype (tokens × d).

    Raises:
        BadInput: a model without a head that is linear up to scale and soft cap; what `Pairs` refuses.

    >>> from types import SimpleNamespace
    >>> class Bigram(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
    ...     def get_output_embeddings(self):
    ...         return self.head
    ...     def forward(self, input_ids, attention_mask):
    ...         return SimpleNamespace(logits=self.head(self.table(input_ids)))
    >>> found = score_pairs(Bigram(), [Encoded((1, 2), 1)], [Encoded((1, 3), 1)], batch=1)
    >>> bool(found.own[0] > 0), found.own.shape == found.ches.shape == (1,)          # one shared context: it rises
    (True, True)
    """
    lesson = Pairs(chosen, rejected, **({} if objective is None else {"objective": objective})).checked()
    if batch < 1:
        raise BadInput(f"--batch: expected at least 1 pair an update, got {batch}")
    count = len(chosen)
    with evaluating(model), torch.no_grad():
        read, head = _read(model, [*chosen, *rejected], batch_size, tick)
        push = pushes(lesson, [one.numbers[0] for one in read])
        own, gradient = np.zeros(count), head.zeros()
        for p in range(count):
            both = [head.residuals(read[i]) for i in (p, p + count)]
            weights = [torch.as_tensor(push[i]).to(both[0][1]) for i in (p, p + count)]
            for (h, r), w in zip(both, weights, strict=True):
                gradient += ((r * w[:, None]).T @ h).to(gradient)
                own[p] += float((((both[0][0] @ h.T) * (both[0][1] @ r.T)) @ w).double().sum())
        along = gradient.to(torch.promote_types(head.weight.dtype, torch.float32))
        total = np.zeros(count)
        for p in range(count):
            h, r = head.residuals(read[p])
            total[p] = float(((h @ along.T) * r).double().sum())
    sums = [one.states.double().sum(0).cpu().numpy() for one in read]
    plus, minus = np.stack(sums[:count]), np.stack(sums[count:])
    sides = _side(read[:count]), _side(read[count:])
    across, alone = (plus * minus).sum(1), (plus * plus).sum(1)
    # push is of the mean over all pairs: `own` and `total` hold 1/P
    size = min(batch, count)
    others = (total - own) * count / max(count - 1, 1)
    return PairScores(
        chosen=sides[0],
        rejected=sides[1],
        own=own * count,
        update=own * count / size + others * (1.0 - 1.0 / size),
        batch=size,
        ches=across - alone,
        ches_normalised=across / (sides[0].tokens * sides[1].tokens) - alone / sides[0].tokens ** 2,
    )


def _side(read: Sequence[_Read]) -> Side:
    length = np.array([one.numbers.shape[1] for one in read], np.float64)
    logp, entropy, variance = (np.array([one.numbers[i].sum() for one in read]) for i in range(3))
    off = (-logp - entropy) / np.sqrt(np.maximum(variance, 1e-12))
    return Side(logp, length, -logp / length, entropy / length, off)


class _Linear:
    """A head z = f(W h + b), f a scale or a soft cap, with the derivative of its logits."""

    def __init__(self, head: Head, /) -> None:
        self.head, self.weight, self.bias = head, head.module.weight, head.module.bias

    def zeros(self) -> Tensor:
        """Room for a gradient of the weight, its last column the bias's."""
        v, d = self.weight.shape
        kind = torch.float64 if v * d <= WIDE else torch.float32
        return torch.zeros(v, d + (self.bias is not None), dtype=kind, device=self.weight.device)

    def residuals(self, read: _Read) -> tuple[Tensor, Tensor]:
        """Features (T, d or d + 1) and f'(e_y − π) (T, V) of a response's tokens."""
        z = self.head.logits(read.states)
        slope = self.head.scale * (1.0 if self.head.cap is None else 1.0 - (z / self.head.cap) ** 2)
        r = -torch.softmax(z, -1)
        r[torch.arange(len(r)), read.labels] += 1.0
        h = read.states.to(r)
        return (h if self.bias is None else torch.cat([h, torch.ones_like(h[:, :1])], 1)), r * slope


def _read(model: nn.Module, items: Sequence[Encoded], size: int, tick: Any) -> tuple[list[_Read], _Linear]:
    """Every response's states and numbers."""
    reader = Reader(model)
    found: list[Any] = [None] * len(items)
    _linear(reader)
    for rows, inputs in batches(model, items, size):
        del inputs["asked"]
        width = inputs["input_ids"].shape[1]
        states, _ = reader.run(lambda _, features: features, keep=(0, width), use_cache=False, **inputs)
        head = _linear(reader)
        for b, i in enumerate(rows):
            start, end = items[i].start, len(items[i].ids)
            labels = inputs["input_ids"][b, start:end].clone()
            mine = states[b, start - 1 : end - 1].clone()
            found[i] = _Read(mine, labels, np.concatenate(list(_numbers(head, mine, labels)), 1))
        if tick is not None:
            tick(len(rows))
    bad = next((i for i, one in enumerate(found) if not np.isfinite(one.numbers).all()), None)
    if bad is not None:
        raise BadInput(f"expected finite log-probabilities, got others in response {bad}; try --dtype float32")
    return found, _Linear(reader.head)


def _linear(reader: Reader) -> Head:
    """The head, if it is a matrix, as it is described and, after the first run, as it was seen to be."""
    if reader.head.name != "tiles":
        raise BadInput(
            f"expected a model with a linear head (scaled, soft-capped), got {reader.head.why}; its pairs have no K3"
        )
    return reader.head


def _numbers(head: Head, states: Tensor, labels: Tensor) -> Iterator[Floats]:
    """(4, n) a chunk: log π(y), H, Var log π, max π."""
    step = max(1, CHUNK // head.module.weight.shape[0])
    for i in range(0, len(states), step):
        log_pi = torch.log_softmax(head.logits(states[i : i + step]), -1)
        pi = log_pi.exp()
        entropy = torch.special.entr(pi).sum(1)
        spread = (pi * (log_pi + entropy[:, None]).square()).nan_to_num().sum(1)
        mine = log_pi.gather(1, labels[i : i + step, None])[:, 0]
        yield torch.stack([mine, entropy, spread, pi.amax(1)]).double().cpu().numpy()
