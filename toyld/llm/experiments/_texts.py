"""The stories that experiments train on and measure: prompts, how each goes on, a block of its own for every seed.

From $TOYLD_DATA: the model `models/stories260K` (260,032 parameters, pretrained on TinyStories) and 1,000 stories that
it may have seen. Half of the stories are for seeds of record, half for seeds from 1000 on, so that settings are never
chosen on texts that are reported on. Within a half each seed has stories of its own; so seeds are samples of texts, and
what is found is found of one model.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toyld.checked import BadInput
from toyld.llm.encode import Encoded
from toyld.llm.negatives import in_place_of
from toyld.llm.stories import stories

__all__ = ["BLOCKS", "PAIRS", "Data", "draw", "loaded"]

PAIRS = 8  # a seed's pairs that train, and as many stories that are measured and never trained on
BLOCKS = 24  # seeds of a half, at most
PROMPT, RESPONSE = 16, 18  # words, about; a token is about half of one
LONGEST = 48  # tokens of a response


@dataclass(frozen=True)
class Data:
    """One seed's: chosen and test_chosen are how PAIRS stories each go on; donors: the other stories of its half."""

    seed: int
    chosen: tuple[Encoded, ...]
    test_chosen: tuple[Encoded, ...]
    donors: tuple[Encoded, ...]

    def another(self, rng: np.random.Generator, /) -> list[Encoded]:
        """For each chosen response, how some donor's story goes on, as long as it; each donor once."""
        order, out = [int(i) for i in rng.permutation(len(self.donors))], []
        for one in self.chosen:
            length = len(one.ids) - one.start
            at = next(i for i in order if len(self.donors[i].ids) - self.donors[i].start >= length)
            order.remove(at)
            out.append(in_place_of(one, self.donors[at].ids[self.donors[at].start :]))
        return out


def _folder() -> Path:
    found = os.environ.get("TOYLD_DATA")
    if not found:
        raise BadInput("expected the folder of models and texts in TOYLD_DATA, got none; set it")
    return Path(found)


@functools.cache
def loaded() -> tuple[Any, Any]:
    """The model, in float32 and eval mode, and its tokenizer."""
    from toyld.llm.checkpoints import load_model, load_tokenizer

    name = str(_folder() / "models" / "stories260K")
    return load_model(name), load_tokenizer([name])


@functools.cache
def _half(record: bool) -> tuple[Encoded, ...]:
    """The stories of a half in an order of their own, as (prompt, how it goes on), without an end token."""
    from toyld.llm.encode import encode

    texts = json.loads((_folder() / "preference" / "tinystories_1000.json").read_bytes())
    order = np.random.default_rng(0).permutation(len(texts))
    half = len(texts) // 2
    rows = stories([texts[i] for i in (order[:half] if record else order[half:])], prompt=PROMPT, response=RESPONSE)
    found = encode(loaded()[1], [r["prompt"] for r in rows], [r["chosen"] for r in rows], eos=False)
    return tuple(
        Encoded(one.ids[: one.start + LONGEST], one.start) for one in found if len(one.ids) - one.start >= LONGEST // 3
    )


def draw(seed: int, /) -> Data:
    """A seed's stories: 0 to 23 are of record, 1000 to 1023 for choosing settings on.

    Raises:
        BadInput: another seed; no TOYLD_DATA.
    """
    block = seed % 1000
    if block >= BLOCKS or seed not in range(2000):
        raise BadInput(f"expected seeds 0 to {BLOCKS - 1}, or 1000 to {1000 + BLOCKS - 1}, got {seed}")
    every = _half(seed < 1000)
    first = block * 2 * PAIRS
    mine = every[first : first + 2 * PAIRS]
    return Data(seed, mine[:PAIRS], mine[PAIRS:], every[:first] + every[first + 2 * PAIRS :])
