"""Many contexts, one kernel: whole SFT and DPO runs in closed form, Z ← Z − η S R(Z), without any network.

A `World` is a set of responses as paths through a trie of contexts, with the logits Z0 there and a kernel S between the
contexts; `train` runs any objective on its head exactly, many worlds at once; a `Run` gives the one table.
`from_hidden` makes the world of a model of one's own from its hidden states. `predict.terms` and `predict.foresee` say
before training which pairs will be displaced. `sweep.sweep` makes hundreds of runs over a `sweep.Grid` of conditions.

>>> from toyld import contexts, objectives
>>> world = contexts.languages.facts(seeds=range(4), concepts=5, prompts=4, length=4)
>>> sft = contexts.train(world, objectives.get("sft"), lr=2.0, steps=60)
>>> dpo = contexts.train(world, objectives.get("dpo"), lr=20.0, steps=60, state=sft.state, rejected="rejected")
>>> dpo.table("dpo", "baseline").sizes["seed"]
4
"""

from . import kernels, languages, predict, sweep
from .engine import Run, State, head, logits, start, train
from .hidden import from_hidden
from .kernels import Features, Gram, Kernel, Mixture, centred, measured
from .optimizers import Optimizer
from .policy import beliefs, respond, with_texts
from .world import Language, Responses, Trie, World, trie

__all__ = [
    "Features",
    "Gram",
    "Kernel",
    "Language",
    "Mixture",
    "Optimizer",
    "Responses",
    "Run",
    "State",
    "Trie",
    "World",
    "beliefs",
    "centred",
    "from_hidden",
    "head",
    "kernels",
    "languages",
    "logits",
    "measured",
    "predict",
    "respond",
    "start",
    "sweep",
    "train",
    "trie",
    "with_texts",
]
