"""What is said of texts and models, counted again by hand."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from toyld.checked import BadInput
from toyld.tiny import Shape, Sizes, ask, draw, start
from toyld.tiny.measures import divergence, entropy, repetition, right, says

SMALL = Sizes(relations=1, entities=2, function_words=2, concepts=2, least=1, most=1, slip=0.05, knowledge=0.6)


@pytest.fixture(scope="module")
def small():
    return draw(SMALL, [1000])


@pytest.fixture(scope="module")
def model():
    """One that reads the small language, with every parameter away from its start."""
    first = start(Shape(SMALL.classes, SMALL.places, width=8, depth=1), [1000], dtype=torch.float64)
    draws = torch.randn(first.flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return dataclasses.replace(first, flat=first.flat + 0.5 * draws)


@pytest.fixture(scope="module")
def texts():
    """Every text of the small language (1, N, 3): closed by an END, or as long as one can be."""
    found = []
    for tokens in itertools.product(range(SMALL.classes), repeat=3):
        end = tokens.index(0) + 1 if 0 in tokens else 3
        if not any(tokens[end:]):
            found.append(tokens[:end] + (-1,) * (3 - end))
    return np.array([found])


def own_log_probs(model, language, prompt, text):
    """log π (T, V) along one text by the plain module."""
    rows = torch.tensor([[*language.ask(prompt), *[max(token, 0) for token in text[:-1]]]])
    return model.module(0)(rows)[0, 1:].log_softmax(-1).detach().numpy()


@pytest.mark.parametrize("knowledge", [None, 1.0])
def test_the_mean_divergence_is_the_kl_of_whole_responses(small, model, texts, knowledge):
    prompt = np.ones((1, texts.shape[1]), int)
    score = small.score(prompt, texts, knowledge=knowledge)[0]
    asked = np.broadcast_to(small.ask(1), (texts.shape[1], 2))
    rows = torch.from_numpy(np.concatenate([asked, np.maximum(texts[0, :, :-1], 0)], 1))
    along = model.module(0)(rows)[:, 1:].log_softmax(-1).detach().numpy()
    said = np.take_along_axis(along, np.maximum(texts[0], 0)[..., None], -1)[..., 0]
    logp = np.where(texts[0] >= 0, said, 0.0).sum(-1)
    assert abs(np.exp(logp).sum() - 1.0) < 1e-12
    wanted = (np.exp(score) * (score - logp)).sum()
    mean = (np.exp(score) * divergence(model, small, prompt, texts, knowledge=knowledge)[0]).sum()
    assert wanted > 0.5
    assert abs(mean - wanted) < 1e-12 * 10


def test_divergence_is_zero_where_the_model_is_the_source_and_where_the_source_is_sure(small, model):
    alike = draw(dataclasses.replace(SMALL, slip=1.0), [1000])
    flat = dataclasses.replace(model, flat=start(model.shape, [1000], dtype=torch.float64).flat)
    text = np.array([[[4, 5, 0], [8, 0, -1]]])
    prompt = np.zeros((1, 2), int)
    np.testing.assert_allclose(divergence(flat, alike, prompt, text), 0.0, atol=1e-14)
    np.testing.assert_allclose(entropy(flat, alike, prompt, text), np.log(SMALL.classes), rtol=1e-14)
    sure = draw(dataclasses.replace(SMALL, slip=0.0), [1000])  # END is certain behind the one concept
    last = divergence(model, sure, prompt[:, :1], text[:, :1]) - divergence(
        model, sure, prompt[:, :1], np.array([[[4, 5, -1]]])
    )
    assert abs(last[0, 0] + own_log_probs(model, sure, 0, [4, 5, 0])[2, 0]) < 1e-12


def test_entropy_is_a_mean_over_tokens(small, model):
    text = np.array([[[4, 5, 0], [8, 0, -1]]])
    found = entropy(model, small, np.array([[0, 1]]), text)
    for n, count in ((0, 3), (1, 2)):
        log_pi = own_log_probs(model, small, n, text[0, n])[:count]
        assert abs(found[0, n] + (np.exp(log_pi) * log_pi).sum(-1).mean()) < 1e-13


@pytest.mark.parametrize("n", [1, 2, 3])
def test_repetition_counts_what_stood_before(n):
    rng = np.random.default_rng(0)
    text = rng.integers(0, 4, size=(3, 40, 7))
    text[(text == 0).cumsum(-1) - (text == 0) > 0] = -1
    for row, found in zip(text.reshape(-1, 7), repetition(text, n=n).ravel(), strict=True):
        words = [int(token) for token in row if token > 0]
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        again = sum(gram in grams[:i] for i, gram in enumerate(grams))
        assert found == (again / len(grams) if grams else 0.0)


def whether_right(language, s, prompt, text):
    """Every slot as the definition has it: function word, true concept, …, END."""
    words = [int(token) for token in text]
    if 0 not in words:
        return False
    words = words[: words.index(0)]
    if len(words) % 2 or not language.sizes.least <= len(words) // 2:
        return False
    for t, token in enumerate(words):
        if t % 2 == 0 and not language.functions <= token < language.words:
            return False
        if t % 2:
            concept = (token - language.words) // language.sizes.synonyms
            if token < language.words or concept != language.facts[s, prompt, t // 2]:
                return False
    return True


def test_right_is_the_facts_in_the_languages_form(small, texts):
    prompt = np.ones((1, texts.shape[1]), int)
    wanted = [whether_right(small, 0, 1, text) for text in texts[0]]
    np.testing.assert_array_equal(right(small, prompt, texts)[0], wanted)
    assert sum(wanted) == 2 * 2  # one of two function words, one of two synonyms


def test_right_holds_of_longer_answers_with_slips(texts):
    language = draw(Sizes(slip=0.15, knowledge=0.9), [1000, 1001])
    prompt = np.tile(np.arange(32), (2, 20))
    text = language.sample(prompt, [np.random.default_rng(i) for i in range(2)])
    wanted = [[whether_right(language, s, prompt[s, n], text[s, n]) for n in range(640)] for s in range(2)]
    np.testing.assert_array_equal(right(language, prompt, text), wanted)
    assert 0.1 < np.mean(wanted) < 0.9


def test_what_a_text_says_is_a_share_of_its_concepts():
    language = draw(Sizes(), [1000])
    word = language.words + 2 * np.arange(10)
    text = np.array(
        [[[13, word[4], 14, word[7], 0, -1, -1], [13, word[4], 14, 13, 15, word[2], 0], [13, 0] + [-1] * 5]]
    )
    facts = np.array([[[4, 6, 1], [4, 6, 2], [4, 6, 2]]])
    np.testing.assert_allclose(says(language, text, facts), [[1 / 2, 2 / 3, 0.0]])


def test_measures_refuse_a_language_of_other_members():
    language = draw(Sizes(), [1000, 1001])
    data = ask(language, prompts=4)
    with pytest.raises(BadInput, match="expected texts of 2 members, one a language, got 1; take the same members"):
        right(language, data.prompts["chosen"][:1], data.texts["chosen"][:1])
    models = start(Shape(39, 8), [1000])
    with pytest.raises(BadInput, match="expected the language of each model"):
        divergence(models, language, data.prompts["chosen"], data.texts["chosen"])
