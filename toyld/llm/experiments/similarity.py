"""Similar or improbable: what of a rejected text harms untrained ones, on a pretrained language model (K8)?

All arms of a seed start from one policy, after a short SFT, and give DPO other y⁻, each as many tokens as its y⁺:

- *sampled*: y⁻ as it comes. What the policy writes itself (temperature 1), that at temperature 16 (nearly random
  tokens), how another story goes on, that with its words in another order, y⁺ with its words in another order, and y⁺
  with a third of its words exchanged for other stories'.
- *pool*: of 46 texts a prompt (what the policy writes at four temperatures; how other stories go on, as they are, in
  another order, with all words exchanged for those of others) one is picked for each of 2 × 2 cells: likely or rare
  under the policy × next tokens shared with real stories in like contexts, or not (`toyld.llm.negatives`: logp,
  labels), contexts being matched. eval_text_* of update 0 say what was measured of them, against 64 other stories, the
  test stories and the chosen ones: these three go together in real text, and are not told apart. Nor is where a text
  comes from. Of 96 texts a cell of record: likely and other, 88 of the policy's own and 8 real stories as they are;
  likely and shared, 26 and 70; rare and other, 86 of its own at temperatures 2 and 2.5; rare and shared, 95 of real
  stories' words in another order or exchanged. And 106 of 4,416 candidates are among the 64 stories compared with.

Settings: the head alone by plain descent, all layers by RMSprop. All cells of a setting have one rate and one number of
updates; read at attr `margin`, at equal preference learnt, or after equal updates.

Chosen on seeds from 1000 on, whose stories no seed of record has: a margin of 10 nats, a preference of σ(1) = .73 at
β = .1; rates at which every text is there within the updates; levels as far apart as the pool gives whatever the other.
A seed stands for its texts; the model is one, so intervals say nothing about other models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from toyld import objectives
from toyld.llm.encode import Encoded
from toyld.llm.experiments._loop import Rows, table, train
from toyld.llm.experiments._start import SPECIAL, own, taught
from toyld.llm.experiments._texts import Data, loaded
from toyld.llm.experiments.remedies import Setting
from toyld.llm.negatives import Language, exchanged, likeness, permuted, picked, sampled

__all__ = ["CELLS", "LEVELS", "MARGIN", "SETTINGS", "asis", "cells", "pool", "tables"]

NAME = "similarity"
MARGIN = 10.0
SETTINGS = (
    Setting("sgd", "hidden", 0.04, (0, 1, 2, 4, 6, 8, 11, 15, 20)),
    Setting("rmsprop", "layers", 2e-5, (0, 2, 3, 4, 5, 6, 8, 10)),
)
LEVELS: Mapping[str, tuple[str, str]] = {"probability": ("likely", "rare"), "labels": ("other", "shared")}
CELLS = tuple((p, q) for p in LEVELS["probability"] for q in LEVELS["labels"])
# Nats a token; standard deviations within a prompt's pool; and how far off is far.
TARGETS: Mapping[str, tuple[str, float, float]] = {
    "likely": ("logp", -2.2, 0.4), "rare": ("logp", -4.8, 0.4),
    "other": ("labels", -1.3, 0.25), "shared": ("labels", 1.3, 0.25),
}  # fmt: skip
MATCHED = ("contexts", 0.0, 0.5)
TEMPERATURES, EACH = (1.0, 1.5, 2.0, 2.5), 6
OTHERS = 64
Floats = np.ndarray[Any, np.dtype[np.float64]]


def asis(seed: int, /) -> dict[str, list[Encoded]]:
    """Rejected texts as they come, by name."""
    data, _ = taught(seed)
    tokenizer, rng = loaded()[1], np.random.default_rng([seed, 81])
    another = data.another(rng)
    return {
        "temperature 1": list(own(seed)),
        "temperature 16": list(own(seed, 16.0)),
        "another answer": another,
        "another permuted": [permuted(tokenizer, one, rng) for one in another],
        "permutation": [permuted(tokenizer, one, rng) for one in data.chosen],
        "exchanged": [exchanged(tokenizer, one, data.donors, rng) for one in data.chosen],
    }


def pool(seed: int, /) -> list[list[Encoded]]:
    """46 candidates for each prompt; none has y⁺'s words by design."""
    data, model = taught(seed)
    tokenizer, rng = loaded()[1], np.random.default_rng([seed, 82])
    out: list[list[Encoded]] = [[] for _ in data.chosen]
    for i, t in enumerate(TEMPERATURES):
        said = sampled(model, data.chosen, seed=10 * seed + i, temperature=t, each=EACH, without=SPECIAL)
        for mine, texts in zip(out, said, strict=True):
            mine += texts
    for k in range(8):
        for mine, one in zip(out, data.another(rng), strict=True):
            mine += [one, permuted(tokenizer, one, rng)]
            if k < EACH:
                mine.append(exchanged(tokenizer, one, data.donors, rng, share=1.0))
    return out


def _measured(model: Any, data: Data, texts: Sequence[Encoded]) -> dict[str, Floats]:
    """What is known of texts, (N,) each."""
    about = {"": data.donors[:OTHERS], "_test": data.test_chosen, "_chosen": data.chosen}
    out: dict[str, Floats] = {}
    every = likeness(model, texts, *(Language.of(model, others) for others in about.values()))
    for name, found in zip(about, every, strict=True):
        out |= {f"labels{name}": found.labels, f"contexts{name}": found.contexts, "logp": found.logp}
    return out


def cells(seed: int, /) -> dict[tuple[str, str], list[Encoded]]:
    """The texts of each cell, one a prompt."""
    data, model = taught(seed)
    every = pool(seed)
    found = _measured(model, data, [one for mine in every for one in mine])
    measures = {name: found[name].reshape(len(every), -1) for name in ("logp", "labels", "contexts")}
    for name in ("labels", "contexts"):
        off = measures[name] - measures[name].mean(1, keepdims=True)
        measures[name] = off / off.std()
    out = {}
    for cell in CELLS:
        told = [*(TARGETS[level] for level in cell), MATCHED]
        best = picked(measures, {name: (value, far) for name, value, far in told})
        out[cell] = [mine[i] for mine, i in zip(every, best, strict=True)]
    return out


def _tables(seeds: Sequence[int]) -> Iterator[tuple[str, xr.Dataset]]:
    texts: dict[int, dict[tuple[str, ...], list[Encoded]]] = {}
    told: dict[int, dict[tuple[str, ...], dict[str, float]]] = {}
    for seed in seeds:
        data, model = taught(seed)
        texts[seed] = {("sampled", name): mine for name, mine in asis(seed).items()}
        texts[seed] |= {("pool", *cell): mine for cell, mine in cells(seed).items()}
        told[seed] = {
            key: {name: float(x.mean()) for name, x in _measured(model, data, mine).items()}
            for key, mine in texts[seed].items()
        }
    for setting in SETTINGS:
        for key in texts[seeds[0]]:
            runs = {}
            for seed in seeds:
                data, model = taught(seed)
                runs[seed] = train(
                    Rows(model, setting.layers), objectives.get("dpo"), data.chosen, texts[seed][key],
                    optimizer=setting.optimizer, lr=setting.rate, steps=setting.at[-1], at=setting.at,
                    warmup=setting.warmup, probes={"test_chosen": data.test_chosen},
                )  # fmt: skip
            design, *rest = key
            attrs = {"text": rest[0]} if design == "sampled" else dict(zip(LEVELS, rest, strict=True))
            ds = table(
                runs, arm=" ".join(rest), experiment=NAME, model="stories260K", margin=MARGIN, language="stories",
                anisotropy=0.0, optimizer=setting.optimizer, layers=setting.layers, design=design, **attrs,
            )  # fmt: skip
            for name in told[seeds[0]][key]:
                value = np.full((len(seeds), ds.sizes["step"]), np.nan)
                value[:, 0] = [told[seed][key][name] for seed in seeds]
                ds[f"eval_text_{name}"] = (("seed", "step"), value)
            yield f"similarity {design}, {setting.optimizer}, {setting.layers}: {' '.join(rest)}", ds


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """All runs by name, "similarity DESIGN, RULE, LAYERS: TEXT"; the same at every size."""
    torch.set_num_threads(1)
    return dict(_tables(tuple(int(seed) for seed in seeds)))
