"""Every kind of response is what its name says, by the language's own account."""

import numpy as np
import pytest

from toyld.checked import BadInput
from toyld.tiny import Sizes, Texts, ask, draw, rephrase, shuffled, with_rejected

SEEDS = (1000, 1001, 1002)


@pytest.fixture(scope="module")
def data():
    return ask(draw(Sizes(slip=0.0), SEEDS), prompts=8)


@pytest.fixture(scope="module")
def negatives(data):
    """Other answers of the source to the same prompts."""
    rngs = [np.random.default_rng(i) for i in range(3)]
    return data.language.sample(data.prompts["chosen"], rngs, knowledge=0.0)


def facts(data, kind):
    return data.language.facts[np.arange(3)[:, None], data.prompt(kind)]


def sorted_words(text):
    return [sorted(row[row > 0].tolist()) for row in text.reshape(-1, text.shape[-1])]


def test_chosen_tells_the_facts_of_its_prompts_and_tests_are_others(data):
    for kind in ("chosen", "test_chosen"):
        said = data.language.concepts(data.texts[kind])
        assert np.all((said == facts(data, kind)) | (said == -1))
    for train, test in zip(data.prompt("chosen"), data.prompt("test_chosen"), strict=True):
        assert len(set(train) | set(test)) == 16
    assert data.prompt("irr_hum") is data.prompt("chosen")


def test_a_rephrase_by_meaning_says_the_same_and_one_by_form_sounds_the_same(data):
    chosen, other, form = (data.texts[f"chosen{end}"] for end in ("", "_gptsemantic", "_gptformat"))
    said = data.language.concepts(chosen)
    np.testing.assert_array_equal(data.language.concepts(other), said)
    assert (other != chosen).mean() > 0.2
    np.testing.assert_array_equal(form[..., ::2], chosen[..., ::2])
    assert not ((data.language.concepts(form) == said) & (said >= 0)).any()
    np.testing.assert_array_equal(form == -1, chosen == -1)


def test_a_slip_keeps_its_place_in_a_rephrase(data):
    slipped = data.texts["chosen"].copy()
    slipped[:, :, 1] = 2  # a relation where a concept should be
    found = rephrase(data.language, "chosen", slipped, [np.random.default_rng(i) for i in range(3)])
    assert (found["chosen_gptsemantic"][:, :, 1] == 2).all()
    said = data.language.concepts(slipped)
    np.testing.assert_array_equal(data.language.concepts(found["chosen_gptsemantic"]), said)
    assert (data.language.concepts(found["chosen_gptformat"])[..., 0] >= 0).all()


def test_irrelevant_answers_belong_to_other_prompts(data):
    np.testing.assert_array_equal(data.texts["irr_train"][:, 1:], data.texts["chosen"][:, :-1])
    np.testing.assert_array_equal(data.texts["irr_test"], data.texts["test_chosen"])
    unrelated, said = data.language.concepts(data.texts["irr_hum"]), data.language.concepts(data.texts["chosen"])
    assert not ((unrelated == said) & (said >= 0)).any()
    np.testing.assert_array_equal(unrelated >= 0, said >= 0)


def test_random_answers_have_the_words_or_the_length_of_what_they_replace(data):
    for kind, of in {"random_permute": "chosen", "random_nonhum": "irr_test"}.items():
        text, whole = data.texts[kind], data.texts[of]
        assert sorted_words(text) == sorted_words(whole)
        np.testing.assert_array_equal(text <= 0, whole <= 0)
        assert (text != whole).any(-1).mean() > 0.9
    words, chosen = data.texts["random_words"], data.texts["chosen"]
    np.testing.assert_array_equal(np.where(words > 0, 1, words), np.where(chosen > 0, 1, chosen))
    assert words.max() < 39
    assert words[words > 0].min() >= data.language.functions


def test_every_order_of_words_is_as_likely_as_any_other():
    text = np.tile(np.array([5, 6, 7, 0, -1]), (1, 6000, 1))
    got = shuffled(text, [np.random.default_rng(0)])[0]
    _, often = np.unique(got[:, :3] @ [100, 10, 1], return_counts=True)
    assert len(often) == 6
    assert abs(often / 6000 - 1 / 6).max() < np.sqrt(np.log(2 * 6 / 1e-6) / (2 * 6000))  # Hoeffding, all six at once


@pytest.mark.parametrize("shared", [0, 3, 6])
def test_negatives_share_so_many_tokens_and_still_end(data, negatives, shared):
    found = with_rejected(data, negatives, shared=shared, initial=negatives)
    text, chosen = found.texts["rejected"], data.texts["chosen"]
    np.testing.assert_array_equal(text[..., :shared], chosen[..., :shared])
    ended = (chosen[..., :shared] == 0).any(-1)
    assert (text[ended][:, shared:] == -1).all()
    assert ((text == 0).sum(-1) == 1).all()  # each one ends, and once
    assert not ((text != -1) & ((text == 0).cumsum(-1) - (text == 0) > 0)).any()
    longer = ~ended & (negatives[..., shared] != -1)
    np.testing.assert_array_equal(text[longer][:, shared:], negatives[longer][:, shared:])
    assert shared != 3 or longer.any()
    assert found.texts["chosen_initial"] is negatives
    assert {"reject_gptsemantic", "reject_gptformat"} <= set(found.texts)
    np.testing.assert_array_equal(
        data.language.concepts(found.texts["reject_gptsemantic"]), data.language.concepts(text)
    )


def test_members_are_taken_with_all_they_have(data, negatives):
    mine = with_rejected(data, negatives).take([2, 0, 2])
    alone = with_rejected(ask(draw(Sizes(slip=0.0), [SEEDS[2]]), prompts=8), negatives[2:])
    assert mine.language.seeds == (1002, 1000, 1002)
    for kind, text in alone.texts.items():
        np.testing.assert_array_equal(mine.texts[kind][0], text[0])
        np.testing.assert_array_equal(mine.texts[kind][2], text[0])
    np.testing.assert_array_equal(mine.prompt("test_chosen")[0], alone.prompt("test_chosen")[0])


BAD = {
    "few": (lambda d: ask(d.language, prompts=1), "prompts: expected 2 to 16, half of the language's, got 1"),
    "many": (lambda d: ask(d.language, prompts=17), "prompts: expected 2 to 16"),
    "shape": (
        lambda d: d.also({"mine": np.zeros((3, 8, 4), int)}),
        r"mine: expected texts \(3, 8, 7\), .* pad with −1",
    ),
    "ids": (
        lambda d: d.also({"mine": np.full((3, 8, 7), 39)}),
        "mine: expected token ids from 0 to 38 .* from 39 to 39",
    ),
    "floats": (lambda d: d.also({"mine": np.zeros((3, 8, 7))}), "mine: expected token ids .* got float64"),
    "shared": (lambda d: with_rejected(d, d.texts["chosen"], shared=7), "shared from 0 to 6, got .* and 7"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_line(data, name):
    make, says = BAD[name]
    assert isinstance(data, Texts)
    with pytest.raises(BadInput, match=says) as caught:
        make(data)
    assert "\n" not in str(caught.value)
