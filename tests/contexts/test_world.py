"""toyld.contexts.world: the trie of contexts against a dictionary of prefixes; worlds taken, repeated, moved."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts import World, languages, trie


def texts(seed: int, *, worlds: int = 2, prompts: int = 4, length: int = 4, vocab: int = 3) -> tuple[dict, dict]:
    """Few tokens, so that prefixes are shared; ragged chosen responses; a test prompt of its own."""
    rng = np.random.default_rng(seed)
    asked = {kind: low + rng.integers(2, size=(worlds, prompts, 2)) for kind, low in (("chosen", 0), ("test", 2))}
    said = {kind: rng.integers(vocab, size=(worlds, prompts, length)) for kind in ("test", "rejected", "chosen")}
    said["chosen"][np.arange(length) >= rng.integers(1, length + 1, (worlds, prompts, 1))] = -1
    return asked, said


@given(seed=st.integers(0, 10**6))
def test_a_trie_is_a_dictionary_of_prefixes(seed):
    asked, said = texts(seed)
    found = trie(asked, said, train=("chosen", "rejected"))
    for b in range(2):
        number: dict[tuple, int] = {}
        for kind, r in found.responses.items():
            for p, row in enumerate(said[kind][b]):
                prompt = tuple(asked.get(kind, asked["chosen"])[b, p])
                for t, token in enumerate(row):
                    assert bool(r.mask[b, p, t]) == (token >= 0)
                    if token < 0:
                        continue
                    prefix = (*prompt, *row[:t])
                    assert number.setdefault(prefix, int(r.context[b, p, t])) == r.context[b, p, t]
                    assert r.token[b, p, t] == token
                    stored = found.tokens[b, r.context[b, p, t]]
                    assert tuple(stored[stored >= 0]) == prefix
        assert len(set(number.values())) == len(number), "two prefixes share a context"


def test_contexts_that_train_come_first():
    asked, said = texts(0)
    found = trie(asked, said, train=("chosen", "rejected"))
    used = {kind: set(r.context[r.mask].tolist()) for kind, r in found.responses.items()}
    assert max(used["chosen"] | used["rejected"]) < found.trained
    first = trie(asked, said, train=("chosen",))
    assert first.trained < found.trained
    # A test prompt shares nothing with the others.
    for b in range(2):
        own = {kind: set(r.context[b][r.mask[b]].tolist()) for kind, r in found.responses.items()}
        assert not own["test"] & (own["chosen"] | own["rejected"])


def test_taken_worlds_are_the_same_worlds_in_another_order():
    world = languages.facts(seeds=[1000, 1001, 1002], concepts=4, prompts=3, length=4)
    sft, options = objectives.get("sft"), {"lr": 2.0, "steps": 5}
    whole = contexts.train(world, sft, **options)
    part = contexts.train(world.take([2, 0, 2]), sft, **options)
    assert part.world.seeds == (1002, 1000, 1002)
    for name, values in part.values.items():
        assert_allclose(values, whole.values[name][:, [2, 0, 2]], rtol=1e-12, atol=1e-12)
    with pytest.raises(BadInput, match="sample before `take`"):
        contexts.respond(part.world, part.state, seed=0)


@pytest.mark.parametrize("kernel", [{"identity": 0.5, "token": 0.5}, {"prefix": 1.0}])
def test_a_world_moved_to_torch_gives_the_same_run(kernel):
    world = languages.facts(seeds=[1000, 1001], concepts=4, prompts=3, length=4, kernel=kernel)
    there = world.to(torch.zeros(1, dtype=torch.float64))
    dpo, options = objectives.get("dpo"), {"lr": 20.0, "steps": 10, "rejected": "rejected", "at": [0, 5, 10]}
    ours, moved = contexts.train(world, dpo, **options), contexts.train(there, dpo, **options)
    assert moved.state.logits.dtype == torch.float64
    for name, values in moved.values.items():
        loose = 1e-7 if name == "residual_norm" else 1e-11
        assert_allclose(values, ours.values[name], rtol=loose, atol=loose)
    small = world.to(torch.zeros(1))
    assert small.kernel.block(slice(0, 2), slice(0, 2)).dtype == torch.float32


def test_sizes_that_disagree_are_one_clear_line():
    world = languages.markov(seeds=[1000], vocab=5, prompts=2, length=2)
    for seeds, trained in (((1, 2), world.trained), ((1,), 0), ((1,), world.size[1] + 1)):
        with pytest.raises(BadInput, match=r"expected 1 seeds and 1 to \d+ trained contexts, got"):
            World(world.logits, world.kernel, world.responses, trained, seeds)


@pytest.mark.parametrize("make", [languages.facts, languages.markov])
def test_a_language_knows_its_own_beliefs(make):
    """Z0 at every context is a log-distribution, the same for the same seed and another for another."""
    one, two = make(seeds=[1000, 1001], prompts=3), make(seeds=[1001], prompts=3)
    assert_allclose(np.exp(one.logits).sum(-1), 1.0, rtol=1e-12)
    assert_array_equal(one.responses["rejected"].token[1], two.responses["rejected"].token[0])
    assert not np.array_equal(one.responses["rejected"].token[0], one.responses["rejected"].token[1])
    n = two.size[1]
    assert_array_equal(one.logits[1, :n], two.logits[0])


def test_the_knobs_of_the_pairs_do_what_they_say():
    for make in (languages.markov, languages.facts):
        near = make(seeds=range(1000, 1008), temperature=1.0, shared=2)
        far = make(seeds=range(1000, 1008), temperature=8.0)
        runs = [contexts.train(w, objectives.get("sft"), lr=0.0, steps=0) for w in (near, far)]
        start = [run.value("logp", "rejected").mean() for run in runs]
        assert start[0] > start[1] + 1.0, "a hot sample is less probable"
        pair = near.responses["chosen"], near.responses["rejected"]
        assert_array_equal(pair[0].token[..., :2], pair[1].token[..., :2])
        assert_array_equal(pair[0].context[..., :3], pair[1].context[..., :3])
        assert (pair[0].token[..., 2:] != pair[1].token[..., 2:]).any()
