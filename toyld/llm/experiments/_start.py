"""The policy that every arm of a seed starts from: the pretrained model after a short SFT on the seed's own stories.

SFT ends at .9 nats a token of chosen (1.3 to 2.0 before): taught, with room to rise and to fall. Its rate is small, so
that it takes ten updates or more. Unseen stories lose .4 to 3.5 nats each in it (1.5 on average over seeds of record).
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from toyld import objectives
from toyld.llm.experiments._loop import Rows, train
from toyld.llm.experiments._texts import Data, draw, loaded
from toyld.llm.negatives import sampled

__all__ = ["SPECIAL", "own", "taught"]

TAUGHT, RATE, WARMUP, MOST = 0.9, 2e-5, 10, 80
SPECIAL = (0, 1, 2)  # unknown, begin, end: the model is never made to say them


@functools.cache
def taught(seed: int) -> tuple[Data, Any]:
    """A seed's texts, and the model after SFT on its chosen ones; kept for the process, not to be changed."""
    torch.set_num_threads(1)
    data = draw(seed)
    rows = Rows(loaded()[0])
    length = sum(len(one.ids) - one.start for one in data.chosen) / len(data.chosen)
    train(
        rows, objectives.get("sft"), data.chosen, optimizer="rmsprop", lr=RATE, steps=MOST, warmup=WARMUP,
        until=TAUGHT * length,
    )  # fmt: skip
    return data, rows.whole()


@functools.cache
def own(seed: int, temperature: float = 1.0) -> tuple[Any, ...]:
    """What that policy itself writes behind the seed's prompts, as long as chosen: one response each."""
    data, model = taught(seed)
    said = sampled(model, data.chosen, seed=seed, temperature=temperature, without=SPECIAL)
    return tuple(one[0] for one in said)
