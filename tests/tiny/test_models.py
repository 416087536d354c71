"""Models as members of a stack: pretraining against torch's own loop, samples against their probabilities."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from toyld.checked import BadInput
from toyld.tiny import Models, Shape, Sizes, draw, pretrain, start
from toyld.tiny.measures import divergence

SEEDS = (1000, 1001)
SHAPE = Shape(39, 8, width=12, depth=1, heads=2)


@pytest.fixture(scope="module")
def language():
    return draw(Sizes(), SEEDS)


@pytest.fixture(scope="module")
def models():
    """Two with every parameter away from its start."""
    first = start(SHAPE, SEEDS, dtype=torch.float64)
    draws = torch.randn(first.flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return dataclasses.replace(first, flat=first.flat + 0.5 * draws)


def test_pretraining_is_torchs_own_loop(language):
    models = start(SHAPE, SEEDS, dtype=torch.float64)
    found, _ = pretrain(models, language, steps=6, batch=5, lr=0.01)
    for s in range(2):
        module = models.module(s)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        for k in range(6):
            inputs, labels = (torch.from_numpy(a[s]) for a in language.batch(SEEDS, k, 5))
            optimizer.zero_grad()
            z = module(inputs)[:, 1:]
            (torch.nn.functional.cross_entropy(z.mT, labels, ignore_index=-1, reduction="sum") / 5).backward()
            optimizer.step()
            schedule.step()
        wanted = parameters_to_vector(module.parameters()).detach()
        # AdamW divides by √(second moment): where a gradient is of rounding's size, so is its step, once over ε.
        torch.testing.assert_close(found.flat[s], wanted, rtol=0, atol=1e-8)
        assert (found.flat[s] - models.flat[s]).abs().max() > 0.01


def test_pretraining_in_pieces_alone_or_stacked_is_the_same(language):
    models = start(SHAPE, SEEDS)
    whole, end = pretrain(models, language, steps=6, batch=4)
    first, memory = pretrain(models, language, steps=6, batch=4, until=2)
    kept = {name: value.clone() for name, value in memory.items()}
    second, last = pretrain(first, language, steps=6, batch=4, done=2, memory=memory)
    assert torch.equal(second.flat, whole.flat)
    assert all(torch.equal(last[name], end[name]) for name in end)
    assert all(torch.equal(memory[name], kept[name]) for name in kept)
    exact = start(SHAPE, SEEDS, dtype=torch.float64)
    both, _ = pretrain(exact, language, steps=6, batch=4)
    alone, _ = pretrain(exact.take([1]), language.take(np.array([1])), steps=6, batch=4)
    torch.testing.assert_close(alone.flat[0], both.flat[1], rtol=0, atol=1e-10)


def test_pretraining_comes_closer_to_the_source(language):
    models = start(Shape(39, 8), SEEDS)
    prompt = np.tile(np.arange(32), (2, 1))
    text = language.sample(prompt, [np.random.default_rng(i) for i in range(2)])
    trained, _ = pretrain(models, language, steps=60, lr=6e-3)
    before, after = (divergence(m, language, prompt, text).mean(1) for m in (models, trained))
    assert (after < 0.4 * before).all()


def test_members_are_taken_with_their_seeds(models):
    mine = models.take([1, 0, 1])
    assert mine.seeds == (1001, 1000, 1001)
    assert torch.equal(mine.flat[2], models.flat[1])
    held = models.take([1, 0], common=[2.0, 3.0]).take([1])
    assert held.common.tolist() == [3.0]
    assert held.flat.shape == (1, SHAPE.parameters + 39)


def test_a_common_feature_adds_nothing_before_training_and_its_square_to_the_kernel(models):
    tokens = torch.randint(39, (2, 3, 5), generator=torch.Generator().manual_seed(1))
    mine = models.take([0, 1], common=[2.0, 3.0])
    torch.testing.assert_close(mine.logits(tokens), models.logits(tokens), rtol=1e-12, atol=1e-12)
    h, plain = mine.hidden(tokens).flatten(1, 2), models.hidden(tokens).flatten(1, 2)
    size = torch.tensor([4.0, 9.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(h @ h.mT, plain @ plain.mT + size, rtol=1e-12, atol=1e-12)
    moved = mine.flat.clone()
    moved[:, SHAPE.parameters + 7] += 0.5
    gap = mine.logits(tokens, moved) - mine.logits(tokens)
    torch.testing.assert_close(gap[0, ..., 7], torch.full((3, 5), 1.0, dtype=torch.float64))
    torch.testing.assert_close(gap[1, ..., 7], torch.full((3, 5), 1.5, dtype=torch.float64))
    assert gap[..., :7].abs().max() < 1e-12


def test_greedy_answers_are_the_likeliest_token_each_time(models, language):
    prompt = np.array([[3, 9, 30], [0, 1, 2]])
    text = models.sample(language, prompt, seed=0, temperature=0.0)
    for s in range(2):
        module = models.module(s)
        for p, row in zip(prompt[s], text[s], strict=True):
            said = []
            for token in row[row >= 0]:
                z = module(torch.tensor([[*language.ask(p), *said]]))[0, -1]
                assert int(z.argmax()) == token
                said.append(int(token))
            assert len(said) == 7 or said[-1] == 0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_come_as_often_as_the_model_says(models, language, temperature):
    n = 4_000
    text = models.sample(language, np.full((2, n), 11), seed=5, temperature=temperature)
    for s in range(2):
        z = models.module(s)(torch.from_numpy(language.ask(np.array([11]))))[0, -1] / temperature
        often = np.bincount(text[s, :, 0], minlength=39) / n
        bound = math.sqrt(math.log(2 * 39 / 1e-6) / (2 * n))  # Hoeffding, all tokens at once but for 1e-6
        assert np.abs(often - z.softmax(-1).detach().numpy()).max() < bound
        first = 1 + int(often[1:].argmax())
        rows = text[s][text[s, :, 0] == first]
        z = models.module(s)(torch.tensor([[*language.ask(11), first]]))[0, -1] / temperature
        often = np.bincount(rows[:, 1], minlength=39) / len(rows)
        bound = math.sqrt(math.log(2 * 39 / 1e-6) / (2 * len(rows)))
        assert np.abs(often - z.softmax(-1).detach().numpy()).max() < bound < 0.25
    ends = (text == 0).cumsum(-1) - (text == 0) > 0
    np.testing.assert_array_equal(text == -1, ends)


def test_samples_are_their_seeds_alone_and_go_on_from_a_prefix(models, language):
    prompt = np.array([[3, 9, 30], [0, 1, 2]])
    text = models.sample(language, prompt, seed=4)
    np.testing.assert_array_equal(models.take([1]).sample(language, prompt[1:], seed=4)[0], text[1])
    assert not np.array_equal(models.sample(language, prompt, seed=5), text)
    prefix = np.full((2, 3, 2), 17)
    prefix[0, 0] = [14, 0]
    more = models.sample(language, prompt, seed=4, prefix=prefix)
    np.testing.assert_array_equal(more[..., :2], prefix)
    assert (more[0, 0, 2:] == -1).all()
    assert (more[1, :, 2] >= 0).all()


BAD = {
    "places": (lambda m, x: start(Shape(39, 7), SEEDS).check(x), r"Shape\(39, 8\) or more places, got Shape\(39, 7\)"),
    "seeds": (lambda m, x: pretrain(m.take([0]), x, steps=1), "seeds 1000, got 1000, 1001; take the same members"),
    "many": (lambda m, x: m.take([0] * 9).check(x), r"seeds 1000, 1000 … 1000 \(9\), got 1000, 1001;"),
    "prompts": (lambda m, x: m.sample(x, np.zeros((3, 4), int), seed=0), r"expected prompts \(2, N\) .* got \(3, 4\)"),
    "cold": (lambda m, x: m.sample(x, np.zeros((2, 4), int), seed=0, temperature=-1.0), "temperature ≥ 0, got .* -1.0"),
    "twice": (lambda m, x: m.take([0], common=[1.0]).take([0], common=[1.0]), "common: expected models without such"),
    "module": (lambda m, x: m.take([0], common=[1.0]).module(0), "module: expected models without a common feature"),
    "memory": (lambda m, x: pretrain(m, x, steps=2, done=1, memory={}), "memory: expected mean .* got nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(models, language, name):
    make, says = BAD[name]
    assert isinstance(models, Models)
    with pytest.raises(BadInput, match=says) as caught:
        make(models, language)
    assert "\n" not in str(caught.value)
