"""What models say on the way: KL to the source against long sums of log-ratios, the same random numbers every time."""

import numpy as np
import pytest
import torch

from toyld.tiny import Shape, Sizes, ask, draw, measures, start
from toyld.tiny.answers import SPOKEN, answers

SMALL = Sizes(relations=2, entities=4, function_words=3, concepts=4)


def test_the_whole_kl_is_that_of_long_sums_over_texts_of_the_source():
    """Σ_texts P(text) log P(text)/π(text): the mean of log P − log π over many texts, within five standard errors."""
    language = draw(SMALL, (1000,))
    models = start(Shape(language.sizes.classes, language.sizes.places, 8, 1, 2), (1000,), dtype=torch.float64)
    noise = torch.randn(models.flat.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    models.flat.add_(0.3 * noise)
    data = ask(language, prompts=4)
    for name, known in (("kl", None), ("kl_truth", 1.0)):
        found = answers(models, data, copies=60)
        prompt = np.tile(data.prompts["chosen"], 500)
        text = language.sample(prompt, [np.random.default_rng(3)], knowledge=known)
        logp = np.take_along_axis(measures.beliefs(models, language, prompt, text), np.maximum(text, 0)[..., None], -1)
        ratio = language.score(prompt, text, knowledge=known) - np.where(text >= 0, logp[..., 0], 0.0).sum(-1)
        assert found[name][0] == pytest.approx(ratio.mean(), abs=5 * ratio.std() / ratio.size**0.5), name
        few = np.tile(np.concatenate([data.prompts["chosen"], data.prompts["test_chosen"]], 1), 60)
        told = language.sample(few, [np.random.default_rng([1000, SPOKEN])], knowledge=known)
        each = measures.divergence(models, language, few, told, knowledge=known).reshape(60, 2, 4)
        assert [found[before + name][0] for before in ("", "test_")] == pytest.approx(each.mean((0, 2)), rel=1e-12)


def test_random_numbers_of_answers_are_the_same_at_every_call():
    language = draw(SMALL, (1000, 1001))
    models = start(Shape(language.sizes.classes, language.sizes.places, 8, 1, 2), (1000, 1001))
    data = ask(language, prompts=4)
    one, two = (answers(models, data) for _ in range(2))
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert {name.removeprefix("test_") for name in one} == {name for name in one if not name.startswith("test_")}
