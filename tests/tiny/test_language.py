"""The language against its own definition, written again as sums over styles, and against what it samples."""

import itertools
import math
import warnings

import numpy as np
import pytest

from toyld.checked import BadInput
from toyld.tiny import Sizes, draw, sequences

SMALL = Sizes(relations=1, entities=1, function_words=2, concepts=2, least=1, most=1, slip=0.05, knowledge=0.6)
# END 0, relation 1, entity 2, function words 3 and 4, words 5 and 6 of concept 0, 7 and 8 of concept 1


@pytest.fixture(scope="module")
def language():
    return draw(Sizes(slip=0.02, knowledge=0.4), [1003, 1005])


@pytest.fixture(scope="module")
def small():
    return draw(SMALL, [1000])


def every_text(length=3, classes=9):
    """All texts of the small language: closed by an END, or as long as one can be."""
    for tokens in itertools.product(range(classes), repeat=length):
        end = tokens.index(0) + 1 if 0 in tokens else length
        if not any(tokens[end:]):
            yield tokens[:end] + (-1,) * (length - end)


def slot(language, s, prompt, style, t, last, token, knowledge):
    """P(token | style, prefix) at slot t, last = the function word before, F = none: the definition, token by token."""
    z, v = language.sizes, language.sizes.classes
    said, p = t // 2, 0.0
    if t % 2 == 0:
        stop = 0.0 if said < z.least else 1.0 if said >= z.most else 0.5
        if token == 0:
            p = stop
        elif language.functions <= token < language.words:
            p = (1.0 - stop) * language.chain[s, style, last, token - language.functions]
    elif token >= language.words:
        concept, way = divmod(token - language.words, z.synonyms)
        known = knowledge * (language.facts[s, prompt, min(said, z.most - 1)] == concept)
        p = (known + (1.0 - knowledge) * language.popular[s, prompt // z.entities, concept]) * language.word[
            s, style, concept, way
        ]
    return (1.0 - z.slip) * p + z.slip / v


def probability(language, s, prompt, text, knowledge):
    """P(text | prompt): the mean over styles of the product over slots."""
    total = 0.0
    for style in range(2):
        p, last = 0.5, language.sizes.function_words
        for t, token in enumerate(x for x in text if x >= 0):
            p *= slot(language, s, prompt, style, t, last, token, knowledge)
            if language.functions <= token < language.words:
                last = token - language.functions
        total += p
    return total


@pytest.mark.parametrize("knowledge", [None, 1.0, 0.0])
def test_scores_are_sums_over_styles_written_out(language, knowledge):
    rngs = [np.random.default_rng(i) for i in range(2)]
    prompt = np.stack([rng.permutation(32)[:6] for rng in rngs])
    text = language.sample(prompt, rngs, knowledge=knowledge)
    text[0, 0, :3] = [30, 14, 0]  # a slip at each of the first slots, and an END at an odd one's successor
    text[0, 0, 3:] = -1
    score = language.score(prompt, text, knowledge=knowledge)
    kappa = 0.4 if knowledge is None else knowledge
    for s, n in itertools.product(range(2), range(6)):
        wanted = math.log(probability(language, s, prompt[s, n], text[s, n], kappa))
        assert abs(score[s, n] - wanted) < 1e-12 * (1 + abs(wanted))


def test_next_token_probabilities_are_ratios_of_whole_probabilities(language):
    prompt, text = np.array([[5], [20]]), np.array([[[13, 19, 14, 21, 0, -1, -1]], [[15, 30, 16, 33, 17, 22, 0]]])
    log_probs = language.log_probs(prompt, text)
    for s, t in itertools.product(range(2), range(5)):
        before = probability(language, s, prompt[s, 0], text[s, 0, :t], 0.4)
        after = [probability(language, s, prompt[s, 0], [*text[s, 0, :t], token], 0.4) for token in range(39)]
        np.testing.assert_allclose(np.exp(log_probs[s, 0, t]), np.array(after) / before, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1)[:, :, :5], 1.0, rtol=1e-14)


def test_all_texts_together_have_probability_one(small):
    texts = np.array(list(every_text()))
    score = small.score(np.zeros((1, len(texts)), int), texts[None])
    assert abs(np.exp(score).sum() - 1.0) < 1e-12


@pytest.mark.parametrize("knowledge", [None, 1.0])
def test_samples_come_as_often_as_the_language_says(small, knowledge):
    texts, n = np.array(list(every_text())), 40_000
    p = np.exp(small.score(np.zeros((1, len(texts)), int), texts[None], knowledge=knowledge))[0]
    said = small.sample(np.zeros((1, n), int), [np.random.default_rng(7)], knowledge=knowledge)[0]
    numbers = (said + 1) @ 10 ** np.arange(3)
    often = np.array([(numbers == (text + 1) @ 10 ** np.arange(3)).mean() for text in texts])
    assert abs(often.sum() - 1.0) < 1e-12
    # Bernstein for each of K texts: |often − p| ≤ √(2 p L/n) + L/(3n) with L = ln(2K/δ), all at once but for δ = 1e-6.
    log = math.log(2 * len(texts) / 1e-6)
    assert np.all(np.abs(often - p) <= np.sqrt(2 * p * log / n) + log / (3 * n))
    assert p.max() > 0.1


def test_the_truth_is_told_without_slips(language):
    true = draw(Sizes(slip=0.0), [1000])
    prompt = np.arange(32)[None]
    said = true.concepts(true.sample(prompt, [np.random.default_rng(0)], knowledge=1.0))
    assert np.all((said == true.facts[0, prompt[0]]) | (said == -1))
    assert np.all(said[..., : true.sizes.least] >= 0)
    assert {2, 3} == set((said >= 0).sum(-1).ravel().tolist())


def test_without_slips_the_impossible_has_no_probability_and_with_nothing_else_all_is_alike():
    prompt, text = np.zeros((1, 1), int), np.array([[[13, 0, -1, -1, -1, -1, -1]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        strict = draw(Sizes(slip=0.0), [1000])
        assert strict.score(prompt, text)[0, 0] == -np.inf
        assert np.isfinite(strict.score(prompt, strict.sample(prompt, [np.random.default_rng(0)]))).all()
    noise = draw(Sizes(slip=1.0), [1000])
    np.testing.assert_allclose(noise.log_probs(prompt, text), -math.log(39), rtol=1e-14)


def test_what_is_told_is_what_is_said(language):
    rngs = [np.random.default_rng(i) for i in range(2)]
    said = np.stack([rng.integers(10, size=(20, 3)) for rng in rngs])
    said[:, ::2, 2] = -1
    text = language.tell(said, rngs)
    np.testing.assert_array_equal(language.concepts(text), said)
    assert np.isfinite(language.score(np.zeros((2, 20), int), text)).all()
    ends = (text == 0).argmax(-1)
    np.testing.assert_array_equal(ends, 2 * (said >= 0).sum(-1))
    again = language.tell(np.roll(said, 2, 1), rngs, like=np.roll(text, 2, 1))
    words = np.roll(text, 2, 1)[..., ::2]
    np.testing.assert_array_equal(again[..., ::2], words)


def test_nothing_is_told_behind_an_end(language):
    text = language.tell(np.array([[[4, -1, 5]], [[-1, 1, 1]]]), [np.random.default_rng(i) for i in range(2)])
    assert language.concepts(text).tolist() == [[[4, -1, -1]], [[-1, -1, -1]]]
    assert (text[0, 0, 3:] == -1).all()


def test_a_language_is_its_seeds_alone_and_may_be_taken_apart():
    two, one = draw(Sizes(), [3, 1005]), draw(Sizes(), [1005])
    for mine in (two.take(np.array([1])), two.take(np.array([0, 1, 1])).take(np.array([2]))):
        assert mine.seeds == one.seeds
        for name in ("chain", "word", "popular", "facts"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(one, name))
    assert not np.array_equal(two.facts[0], two.facts[1])


def test_a_batch_is_its_seed_and_update_alone(language):
    inputs, labels = language.batch([4, 9], 3, 5)
    again, _ = language.batch([4, 9], 3, 5)
    assert inputs.shape == (2, 5, language.sizes.places)
    np.testing.assert_array_equal(inputs, again)
    assert not np.array_equal(inputs, language.batch([4, 9], 4, 5)[0])
    assert not np.array_equal(inputs, language.batch([4, 8], 3, 5)[0])
    np.testing.assert_array_equal(inputs[..., 2:], np.maximum(labels[..., :-1], 0))
    prompt = (inputs[..., 0] - 1) * 8 + inputs[..., 1] - 5
    np.testing.assert_array_equal(sequences(language, prompt, labels)[0], inputs)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sizes(knowledge=1.5), "knowledge: expected a probability, got 1.5"),
        (lambda: Sizes(synonyms=1), "synonyms ≥ 2 and most ≥ least expected, got 1"),
        (lambda: Sizes(least=4), "most ≥ least expected, got 2, 3 and 4"),
        (lambda: Sizes(entities=0), "entities: expected at least 1, got 0"),
        (lambda: Sizes(concentration=0.0), "concentration: expected more than 0, got 0.0"),
        (
            lambda: draw(Sizes(), [0]).sample(np.zeros((1, 1), int), [np.random.default_rng(0)], knowledge=2.0),
            "knowledge: expected a probability, 1 = the truth, got 2.0",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(make, says):
    with pytest.raises(BadInput, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
