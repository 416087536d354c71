"""A given text as a source: its windows, its continuations, and models that are pretrained and tuned on it."""

import json

import numpy as np
import pytest
import torch

from toyld import objectives
from toyld.checked import BadInput
from toyld.tiny import pretrain, sequences, start, train, with_rejected
from toyld.tiny.measures import repetition
from toyld.tiny.reading import continuations, read

WORDS = "the cat sat on the mat and the dog ran after the ball until it was gone. "


@pytest.fixture(scope="module")
def source():
    return read(
        [WORDS * 6, "a second text, as short as it is odd. " * 4], range(1000, 1002), asked=5, length=8, held=0.3
    )


def plain(source, tokens):
    return bytes(source.ids(np.asarray(tokens))).decode()


def test_tokens_are_the_text_with_an_end_behind_each(source):
    ends = np.flatnonzero(source.tokens == 0)
    assert len(ends) == 2
    assert plain(source, source.tokens[: ends[0]]) == WORDS * 6
    assert plain(source, source.tokens[ends[0] :]) == "a second text, as short as it is odd. " * 4
    assert source.sizes.classes == 1 + len(set(WORDS + "a second text, as short as it is odd. "))
    assert set(source.tokens.tolist()) == set(range(source.sizes.classes))


def test_prompts_and_what_follows_are_the_text(source):
    prompt = np.array([[3, 20]])
    assert plain(source, source.ask(prompt)[0, 1]) == WORDS[20:25]
    assert plain(source, source.follow(prompt)[0, 1]) == WORDS[25:33]
    end = int(np.flatnonzero(source.tokens == 0)[0])
    cut = source.follow(np.array(end - 9))
    assert cut[4] == 0
    assert (cut[5:] == -1).all()
    inputs, labels = sequences(source, prompt, source.follow(prompt))
    np.testing.assert_array_equal(inputs[..., source.sizes.asked :], labels[..., :-1])


def test_batches_are_windows_of_the_trained_part_by_seed_and_update(source):
    inputs, labels = source.batch([4, 9], 3, 2000)
    np.testing.assert_array_equal(inputs[..., 1:], labels[..., :-1])
    assert inputs.shape == (2, 2000, source.sizes.places)
    text = source.tokens[: source.held].tolist()
    windows = {tuple(text[i : i + 13]) for i in range(len(text) - 12)}
    seen = {(*a, b) for a, b in zip(map(tuple, inputs[0].tolist()), labels[0, :, -1].tolist(), strict=True)}
    assert seen == windows  # each of them, and none that reaches into what is held out
    np.testing.assert_array_equal(source.batch([4, 9], 3, 2000)[0], inputs)
    assert not np.array_equal(source.batch([4, 9], 4, 2000)[0], inputs)
    assert not np.array_equal(inputs[0], inputs[1])


def test_tokens_of_an_encoder_of_ones_own_come_back():
    vocabulary = {word: 7 * i for i, word in enumerate(sorted(set(WORDS.split())))}
    source = read(WORDS * 4, [0], asked=3, length=4, encode=lambda text: [vocabulary[word] for word in text.split()])
    assert source.sizes.classes == len(vocabulary) + 1
    names = {number: word for word, number in vocabulary.items()}
    assert [names[i] for i in source.ids(source.follow(np.array(0)))] == WORDS.split()[3:7]


def test_pairs_set_the_text_beside_what_a_model_says(source):
    models, _ = pretrain(start(source.shape(width=16, depth=1, heads=2), source.seeds), source, steps=60, lr=0.01)
    data = continuations(source, prompts=4)
    chosen = data.prompts["chosen"]
    for kind, (first, last) in {"chosen": (0, source.held), "test_chosen": (source.held, len(source.tokens))}.items():
        starts = np.sort(data.prompt(kind))
        assert (np.diff(starts) >= 13).all()
        assert first <= starts.min()
        assert starts.max() + 13 <= last
    data = with_rejected(data, models.sample(source, chosen, seed=0), shared=1)
    np.testing.assert_array_equal(data.texts["rejected"][..., 0], data.texts["chosen"][..., 0])
    options = {"lr": 0.05, "steps": 30, "rejected": "rejected"}
    run = train(models, data, objectives.get("dpo"), **options)
    margin = run.value("logp", "chosen") - run.value("logp", "rejected")
    assert (margin[-1].mean(-1) > margin[0].mean(-1) + 1.0).all()
    assert run.kinds == tuple(data.texts)
    greedy = run.models.sample(source, chosen, seed=0, temperature=0.0)
    assert repetition(greedy).shape == (2, 4)


def test_a_model_learns_real_stories(data):
    stories = json.loads((data / "preference" / "tinystories_1000.json").read_text())[:200]
    source = read(stories, range(1000, 1002), asked=8, length=16)
    assert np.count_nonzero(source.tokens == 0) == 200
    assert plain(source, source.tokens[:80]) == stories[0].encode()[:80].decode()
    models = start(source.shape(width=16, depth=1, heads=2), source.seeds)
    trained, _ = pretrain(models, source, steps=80, batch=16, lr=0.01)
    held = continuations(source, prompts=8)
    inputs, labels = (
        torch.from_numpy(a) for a in sequences(source, held.prompt("test_chosen"), held.texts["test_chosen"])
    )
    z = trained.logits(inputs)[:, :, 7:].log_softmax(-1)
    nats = -z.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels >= 0].mean()
    often = np.bincount(source.tokens[: source.held], minlength=source.sizes.classes) / source.held
    alone = -np.log(np.maximum(often, 1e-9))[labels[labels >= 0].numpy()].mean()
    assert nats < alone - 0.2  # better than how often each letter occurs: it has read what stands before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: read("short", [0]), "text: expected 48 tokens or more to train on, got 5; give more text"),
        (lambda: read(WORDS, [0], held=1.0), r"a share held in \[0, 1\), got 16, 32 and 1.0"),
        (lambda: read(WORDS, [0], asked=0), "asked and length ≥ 1"),
        (
            lambda: continuations(read(WORDS * 3, [0], asked=5, length=8)),
            "prompts: expected 2 to 1, windows of 13 in the part held out, got 8",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(make, says):
    with pytest.raises(BadInput, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
