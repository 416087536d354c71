"""toyld.contexts.policy: beliefs at new contexts against the world's own, samples against their probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts import Optimizer, beliefs, languages, respond, with_texts
from toyld.contexts.measure import token_log_probs

KERNELS = [languages.KERNEL, {"identity": 0.3, "prefix": 0.5, "position": 0.2}]


def trained(kernel=languages.KERNEL, *, steps: int = 20, **knobs) -> tuple:
    """A small world after SFT and a few updates of DPO."""
    world = languages.facts(seeds=[1000, 1001], concepts=4, prompts=3, length=4, kernel=kernel, **knobs)
    sft = contexts.train(world, objectives.get("sft"), lr=3.0, steps=steps).state
    return world, contexts.train(
        world, objectives.get("dpo"), lr=20.0, steps=steps, state=sft, rejected="rejected"
    ).state


@pytest.mark.parametrize("kernel", KERNELS)
def test_beliefs_off_the_trie_are_those_on_it_where_both_know(kernel):
    world, state = trained(kernel)
    assert_allclose(beliefs(world, state, world.tokens), contexts.logits(world, state), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
def test_beliefs_at_new_contexts_are_those_of_a_world_that_had_them_all_along(kernel):
    """Train twice, once with a further kind as a probe: both then say the same of it."""
    world, state = trained(kernel)
    rng = np.random.default_rng(0)
    said = {"new": rng.integers(world.size[2], size=world.language.texts["chosen"].shape)}
    wider = replace(world.language, texts={**world.language.texts, **said}).world(world.seeds, {})
    sft = contexts.train(wider, objectives.get("sft"), lr=3.0, steps=20).state
    again = contexts.train(wider, objectives.get("dpo"), lr=20.0, steps=20, state=sft, rejected="rejected").state
    moved, carried = with_texts(world, state, said)
    ours, theirs = (contexts.train(w, objectives.get("sft"), lr=0.0, steps=0, state=s) for w, s in
                    ((moved, carried), (wider, again)))  # fmt: skip
    for kind in ("chosen", "rejected", "new"):
        assert_allclose(ours.value("logp", kind), theirs.value("logp", kind), rtol=1e-9, atol=1e-9)


def test_samples_have_the_probabilities_of_the_policy():
    """First tokens of 3,000 samples to one prompt, against softmax(Z/temperature): χ² within 5 standard deviations."""
    world, state = trained()
    z = contexts.logits(world, state)
    for temperature in (1.0, 2.0):
        draws = np.stack([respond(world, state, seed=s, temperature=temperature, length=1) for s in range(1000)])
        for b in range(2):
            for p in range(3):
                row = z[b, world.responses["chosen"].context[b, p, 0]] / temperature
                expected = 1000 * np.exp(row) / np.exp(row).sum()
                count = np.bincount(draws[:, b, p, 0], minlength=len(row))
                likely = expected >= 5
                rest = count[~likely].sum(), expected[~likely].sum()
                chi2 = ((count - expected)[likely] ** 2 / expected[likely]).sum() + (rest[0] - rest[1]) ** 2 / rest[1]
                free = likely.sum()
                assert chi2 < free + 5 * np.sqrt(2 * free) + 5


def test_samples_are_a_function_of_the_seed_and_follow_the_policy():
    world, state = trained()
    one = respond(world, state, seed=4)
    assert one.shape == (2, 3, 4)
    assert_array_equal(one, respond(world, state, seed=4))
    assert not np.array_equal(one, respond(world, state, seed=5))
    cold = respond(world, state, seed=4, temperature=1e-6)
    z = contexts.logits(world, state)
    first = np.take_along_axis(z, world.responses["chosen"].context[:, :, :1], axis=1).argmax(-1)
    assert_array_equal(cold[:, :, 0], first)
    tests = respond(world, state, seed=4, prompts="test_chosen")
    assert not np.array_equal(tests, one)


@pytest.mark.parametrize("own", [False, True], ids=["language's", "replaced"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_swapping_texts_keeps_the_policy(kernel, own):
    world = languages.facts(seeds=[1000, 1001], concepts=4, prompts=3, length=4, kernel=kernel)
    if own:  # weights that the language does not know, another one in each world
        weights = {"identity": np.array([0.3, 0.9]), "common": np.array([0.7, 0.1])}
        world = replace(world, kernel=replace(world.kernel, weights=weights, _cache={}))
    state = contexts.train(world, objectives.get("sft"), lr=3.0, steps=20).state
    said = respond(world, state, seed=1, temperature=3.0)
    new, carried = with_texts(world, state, {"rejected": said})
    assert_array_equal(new.responses["rejected"].token, said)
    both = (world, state), (new, carried)
    for kind in ("chosen", "test_chosen", "irr_hum"):
        before, after = (token_log_probs(contexts.logits(w, s), w.responses[kind]) for w, s in both)
        assert_allclose(after, before, rtol=1e-10, atol=1e-10)
    # And it can be trained on: at the start the policy is its own reference, and the margin then grows.
    run = contexts.train(new, objectives.get("dpo"), lr=20.0, steps=10, state=carried, rejected="rejected")
    assert_allclose(run.loss[0], np.log(2.0), rtol=1e-12)
    gap = run.value("logp", "chosen") - run.value("logp", "rejected")
    assert (gap[-1].mean(-1) > gap[0].mean(-1)).all()


def test_what_cannot_be_carried_over_is_one_clear_line():
    world, state = trained()
    with pytest.raises(BadInput, match=r"expected context \d+ of world 0 among those that may train"):
        with_texts(world, state, {"chosen": (world.language.texts["chosen"] + 1) % world.size[2]})
    bare = replace(world, language=None)
    with pytest.raises(BadInput, match="made from a language"):
        respond(bare, state, seed=0)
    plain = languages.facts(seeds=[1000], concepts=4, prompts=3, length=4, kernel={"token": 1.0})
    adam = contexts.train(plain, objectives.get("sft"), lr=0.1, steps=2, optimizer=Optimizer("adam")).state
    with pytest.raises(BadInput, match="plain or heavy-ball"):
        beliefs(plain, adam, plain.tokens)
