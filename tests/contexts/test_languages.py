"""Prompts of the languages: trained ones and test ones are different, and there are enough of them."""

import numpy as np
import pytest

from toyld.checked import BadInput
from toyld.contexts import languages

MAKE = {
    "markov": lambda seeds, **size: languages.markov(seeds=seeds, vocab=5, length=2, **size),
    "facts": lambda seeds, **size: languages.facts(seeds=seeds, concepts=5, synonyms=1, length=2, **size),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("prompts", [1, 6, 12])
def test_no_test_prompt_was_trained_on_and_none_repeats(name, prompts):
    """5 words make 25 prompts: at 12 for training and 12 for testing independent draws would repeat in every world."""
    given = MAKE[name](range(1000, 1300), prompts=prompts).language.prompts
    for ask, test in zip(given["chosen"].tolist(), given["test_chosen"].tolist(), strict=True):
        assert len(ask) == len(test) == prompts
        assert len({tuple(row) for row in (*ask, *test)}) == 2 * prompts


@pytest.mark.parametrize("name", MAKE)
def test_every_prompt_is_as_likely_in_either_place(name):
    given = MAKE[name](range(1000, 1600), prompts=6).language.prompts
    first = given["chosen"].min()
    for one in (given["chosen"], given["test_chosen"]):
        number = 5 * (one[..., 0] - first) + one[..., 1] - first
        counts = np.bincount(number.ravel(), minlength=25)
        # 600 worlds each hold a given prompt with probability 6/25: within 5 standard deviations.
        assert np.abs(counts - 600 * 6 / 25).max() < 5.0 * (600 * 6 / 25 * 19 / 25) ** 0.5


@pytest.mark.parametrize("name", MAKE)
def test_too_few_words_for_the_prompts_are_one_clear_line(name):
    with pytest.raises(BadInput, match=r"^expected 26 different prompts .* got 5 words, enough for 25; take fewer"):
        MAKE[name]([1000], prompts=13)


@pytest.mark.parametrize(
    ("make", "options", "named"),
    [
        (languages.facts, {"seeds": 3}, "seeds"),
        (languages.facts, {"seeds": []}, "seeds"),
        (languages.markov, {"seeds": [-1]}, "seeds"),
        (languages.markov, {"seeds": [0], "vocab": 0}, "vocab"),
        (languages.markov, {"seeds": [0], "temperature": 0.0}, "temperature"),
        (languages.facts, {"seeds": [0], "slip": 0.0}, "slip"),
        (languages.facts, {"seeds": [0], "knowledge": 2.0}, "knowledge"),
        (languages.facts, {"seeds": [0], "concepts": 2, "prompts": 40}, "prompts"),
    ],
)
def test_what_makes_no_language_is_one_clear_line(make, options, named):
    with pytest.raises(BadInput, match=named) as refused:
        make(**options)
    assert "\n" not in str(refused.value)
