"""The world of a model of one's own: its last hidden states as features, so that head-only fine-tuning is exact (K1).

A token at position t is predicted by the hidden state at t − 1, so contexts are hidden states; sequences that begin
with the same tokens share theirs. The head must be linear and a parameter of its own: where it is tied to the
embedding, copy it first and train the copy. With a Hugging Face model in float64 and lists of texts:

    def states(prompts, responses):                     # hidden states, token ids (P, L), mask true on the response
        asked = [tokenizer(text).input_ids for text in prompts]
        said = [tokenizer(text, add_special_tokens=False).input_ids for text in responses]
        length = max(len(a) + len(s) for a, s in zip(asked, said))
        ids, mask = torch.zeros(len(asked), length, dtype=torch.long), torch.zeros(len(asked), length, dtype=torch.bool)
        for p, (a, s) in enumerate(zip(asked, said)):   # padded right: no token of the text sees what is behind it
            ids[p, : len(a) + len(s)] = torch.tensor(a + s)
            mask[p, len(a) : len(a) + len(s)] = True
        with torch.no_grad():
            return model.model(ids).last_hidden_state, ids, mask

    head = model.get_output_embeddings()
    pairs = {"chosen": states(prompts, chosen), "rejected": states(prompts, rejected)}
    world = contexts.from_hidden(pairs, weight=head.weight)
    run = contexts.train(world, objectives.get("dpo"), lr=0.1, steps=100, rejected="rejected")
    change = contexts.head(world, run.state)[0].T       # (V, D): what 100 updates of SGD add to head.weight
    run.table("dpo", "baseline")                        # the curves
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from toyld.checked import BadInput
from toyld.contexts.kernels import measured
from toyld.contexts.world import Responses, World, on_host
from toyld.objectives import detach

__all__ = ["from_hidden"]

Array = Any


def from_hidden(
    sequences: Mapping[str, Sequence[Array]],
    /,
    *,
    weight: Array,
    bias: Array | None = None,
    train: Sequence[str] = ("chosen", "rejected"),
    seed: int = 0,
    attrs: Mapping[str, Any] | None = None,
) -> World:
    """One world from hidden states, tokens and a head: contexts in order of appearance, kinds in `train` first.

    Args:
        sequences: kind → (hidden (P, L, D), tokens (P, L) or (P, L + 1)) or these with a mask like tokens: prompts with
            their responses, token ids all of them (no labels of −100). hidden[:, t − 1] predicts tokens[:, t]. Pad
            right, or pass the model its attention_mask: else what it saw of the padding is in the states. The mask
            is true on the tokens of the response; left out, on all but the first.
        weight, bias: the head, (V, D) and (V,). A bias is one more feature that is always 1: S + 11ᵀ, and one more
            row of `head`.
        train: kinds that may be trained on; those that are not there are passed over.
        seed, attrs: what tables call the world, and what else they carry.

    Raises:
        BadInput: shapes that do not fit, tokens that are no ids of the head, states that are not finite, a response at
            position 0, or nothing that may be trained.

    >>> hidden, tokens = np.eye(4)[None], np.array([[3, 1, 0, 2]])     # one sequence, D = 4, V = 5
    >>> world = from_hidden({"chosen": (hidden, tokens)}, weight=np.ones((5, 4)))
    >>> world.size, world.responses["chosen"].token.tolist()
    ((1, 3, 5), [[[1, 0, 2]]])
    """
    kinds = [*(kind for kind in train if kind in sequences), *(kind for kind in sequences if kind not in train)]
    if not kinds or kinds[0] not in train:
        msg = f"expected a kind among {', '.join(train)}, got {', '.join(sequences) or 'none'}; name one in train="
        raise BadInput(msg)
    weight = detach(weight)
    xp, where = array_namespace(weight), device(weight)
    place: dict[bytes, int] = {}  # the tokens so far → number of the context
    states, found, trained = [], {}, 0
    for kind in kinds:
        hidden, ids, mask = _checked(kind, tuple(weight.shape), *sequences[kind])
        context, token, known = (np.zeros((1, len(ids), mask.sum(1).max()), t) for t in (int, int, bool))
        fresh = []  # places of the hidden states that no sequence before this one has
        for p, row in enumerate(ids):
            for j, t in enumerate(np.flatnonzero(mask[p])):
                so_far = row[:t].tobytes()
                if so_far not in place:
                    place[so_far] = len(place)
                    fresh.append(p * hidden.shape[1] + t - 1)
                context[0, p, j], token[0, p, j], known[0, p, j] = place[so_far], row[t], True
        at = xp.asarray(np.asarray(fresh, dtype=int), device=where)
        states.append(detach(hidden).reshape(-1, hidden.shape[-1])[at])
        if not bool(xp.all(xp.isfinite(states[-1]))):  # of these alone: what stands on padding is never read
            msg = f"{kind}: expected finite hidden states, got others; look for rows that attend to nothing"
            raise BadInput(msg)
        found[kind] = Responses(*(xp.asarray(array, device=where) for array in (context, token, known)))
        trained = len(place) if kind in train else trained
    phi = xp.concat(states, axis=0)
    z = phi @ xp.matrix_transpose(weight)
    if bias is not None:
        z = z + detach(bias)
        phi = xp.concat([phi, xp.ones_like(phi[:, :1])], axis=1)
    return World(z[None], measured(phi), found, trained, (seed,), attrs={} if attrs is None else attrs)


def _checked(kind: str, head: tuple[int, ...], hidden: Array, tokens: Array, mask: Array | None = None) -> Any:
    """Hidden states as they came, token ids and mask as numpy arrays; `head`: (V, D)."""
    (classes, width), given = head, on_host(tokens)
    if given.dtype.kind not in "iu":
        msg = f"{kind}: expected token ids as integers, got dtype {given.dtype}"
        raise BadInput(msg)
    ids = np.ascontiguousarray(given, dtype=np.int64)
    known = np.arange(ids.shape[-1]) > np.zeros((len(ids), 1)) if mask is None else on_host(mask).astype(bool)
    fits = ids.ndim == 2 and hidden.ndim == 3 and known.shape == ids.shape and hidden.shape[0] == ids.shape[0]
    if not fits or hidden.shape[-1] != width or ids.shape[1] - hidden.shape[1] not in (0, 1):
        got = " and ".join(str(tuple(a.shape)) for a in (hidden, ids, known))
        msg = f"{kind}: expected hidden states (P, L, {width}), tokens and mask (P, L) or (P, L + 1), got {got}"
        raise BadInput(f"{msg}; take the states before the head, one a token")
    if ids.size and not 0 <= ids.min() <= ids.max() < classes:
        got = ids.min() if ids.min() < 0 else ids.max()
        msg = f"{kind}: expected token ids from 0 to {classes - 1}, got {got}; pass ids and a mask, not labels"
        raise BadInput(msg)
    if known[:, 0].any() or not known.any(1).all():
        msg = f"{kind}: expected responses of at least one token, behind at least one other, got a mask without"
        raise BadInput(f"{msg}; begin every sequence with its prompt")
    return hidden, ids, known
