"""Probes: the paper's response kinds (§4, App. D.1), how each is made from preference data, and checks of that data.

    from toyld.probes import ProbeSet
    probes = ProbeSet.from_preference(train_dataset, n=128, extra=["other_prompt", "permuted", "random"], seed=0)
    probes.to_jsonl("probes.jsonl")

What a probe is said to be is what was found wrong most often: a run's most likely tokens measured along another kind's
text, a "random" text that was a permutation of a natural one. So kinds are data (`KINDS`), everything is made by a
seed, and what is missing is said.
"""

from toyld.probes.cache import cached
from toyld.probes.checks import check_pairs
from toyld.probes.errors import PreferenceError
from toyld.probes.kinds import ALIASES, KINDS, ResponseKind, group, in_space, rephrases_of, resolve, table
from toyld.probes.making import make
from toyld.probes.models import rewriter_from_model, sampler_from_model
from toyld.probes.preference import Preferences, Row, extract_prompt, read_preference, render
from toyld.probes.probeset import Probe, ProbeSet
from toyld.probes.recipes import permute_words, random_words, truncate

__all__ = [
    "ALIASES",
    "KINDS",
    "PreferenceError",
    "Preferences",
    "Probe",
    "ProbeSet",
    "ResponseKind",
    "Row",
    "cached",
    "check_pairs",
    "extract_prompt",
    "group",
    "in_space",
    "make",
    "permute_words",
    "random_words",
    "read_preference",
    "render",
    "rephrases_of",
    "resolve",
    "rewriter_from_model",
    "sampler_from_model",
    "table",
    "truncate",
]
