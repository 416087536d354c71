"""Rejected texts by design: lengths and words, samples that follow the model, likeness by hand; the plain loop."""

import doctest

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld import objectives
from toyld.checked import BadInput
from toyld.llm import negatives as module
from toyld.llm.encode import Encoded
from toyld.llm.experiments import _loop, _texts, remedies, similarity
from toyld.llm.experiments._loop import Rows, Texts, table, train
from toyld.llm.negatives import Language, exchanged, in_place_of, likeness, permuted, sampled, words
from toyld.llm.score import score_encoded

VOCAB = 29


class Letters:
    """Token i is a letter, and begins a word where i is even."""

    def convert_ids_to_tokens(self, ids):
        return [("▁" if i % 2 == 0 else "") + chr(97 + i) for i in ids]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        made.lm_head.weight.mul_(30.0)
    return made


ONE = Encoded((1, 3, 4, 5, 6, 8, 9, 9), 2)  # words 4 5 | 6 | 8 9 9


def test_permuted_and_exchanged_texts_keep_length_and_words():
    rng = np.random.default_rng(0)
    assert words(Letters(), ONE.ids[2:]) == [(4, 5), (6,), (8, 9, 9)]
    other = permuted(Letters(), ONE, rng)
    assert sorted(words(Letters(), other.ids[2:])) == sorted(words(Letters(), ONE.ids[2:]))
    assert other.ids != ONE.ids
    assert other.ids[:2] == ONE.ids[:2]
    donors = [Encoded((1, 10, 11, 12, 14, 15, 15), 1)]  # 10 11 | 12 | 14 15 15
    assert exchanged(Letters(), ONE, donors, rng, share=1.0).ids == (1, 3, 10, 11, 12, 14, 15, 15)
    some = exchanged(Letters(), ONE, donors, rng, share=0.34)
    assert sum(a != b for a, b in zip(some.ids, ONE.ids, strict=True)) in (1, 2, 3)
    assert permuted(Letters(), Encoded((1, 4, 4), 1), rng).ids == (1, 4, 4)
    with pytest.raises(BadInput, match="at least 6 tokens, got 2"):
        in_place_of(ONE, (1, 2))
    with pytest.raises(BadInput, match="share"):
        exchanged(Letters(), ONE, donors, rng, share=0.0)


def gpt2():
    """With learned positions, which must begin at 0 behind any padding."""
    torch.manual_seed(6)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    made = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        made.transformer.wpe.weight.mul_(40.0)
        made.lm_head.weight.mul_(20.0)
    return made


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_samples_follow_the_models_probabilities_at_every_place_and_temperature(model, kind):
    """Of many samples behind two prompts of different lengths, frequencies of the second token given the first."""
    model = model if kind == "llama" else gpt2()
    given, n = [Encoded((1, 7, 3, 0, 0), 3), Encoded((5, 0, 0), 1)], 1500
    found = sampled(model, given, seed=1, temperature=2.0, each=n, without=(0, 1))
    for one, mine in zip(given, found, strict=True):
        said = np.array([x.ids[one.start :] for x in mine])
        assert said.shape == (n, 2)
        assert all(x.ids[: one.start] == one.ids[: one.start] for x in mine)
        first = np.bincount(said[:, 0]).argmax()
        for prefix, tokens in (((), said[:, 0]), ((int(first),), said[said[:, 0] == first, 1])):
            with torch.no_grad():
                z = model(input_ids=torch.tensor([[*one.ids[: one.start], *prefix]])).logits[0, -1] / 2.0
            z[:2] = -torch.inf
            p = z.softmax(-1).numpy()
            share = np.bincount(tokens, minlength=VOCAB) / len(tokens)
            assert np.abs(share - p).max() < 5.0 * np.sqrt(0.25 / len(tokens))  # five standard errors at most
            assert share[:2].sum() == 0.0
    again = sampled(model, given, seed=1, temperature=2.0, each=n, without=(0, 1))
    assert again == found


def test_likeness_is_the_mean_over_pairs_of_tokens(model):
    texts, others = [ONE, Encoded((2, 6, 8, 9), 1)], [Encoded((4, 4, 6, 9, 8), 2), Encoded((7, 9, 9), 1)]

    def read(item):
        with torch.no_grad():
            out = model(input_ids=torch.tensor([item.ids]), output_hidden_states=True)
        at = slice(item.start - 1, len(item.ids) - 1)
        h = out.hidden_states[-1][0, at]
        return (h / h.norm(dim=1, keepdim=True)).numpy(), item.ids[item.start :], out.logits[0, at].log_softmax(-1)

    (found,) = likeness(model, texts, Language.of(model, others))
    theirs = [(h, y) for item in others for h, y in zip(*read(item)[:2], strict=True)]
    for i, item in enumerate(texts):
        h, labels, logp = read(item)
        pairs = [(float(a @ b), y == z) for a, y in zip(h, labels, strict=True) for b, z in theirs]
        assert found.contexts[i] == pytest.approx(np.mean([c for c, _ in pairs]))
        assert found.labels[i] == pytest.approx(np.mean([c * same for c, same in pairs]))
        assert found.logp[i] == pytest.approx(float(logp[range(len(labels)), labels].mean()), rel=1e-6)
    assert found.labels[0] != 0.0


CHOSEN = [ONE, Encoded((1, 5, 6, 7), 1), Encoded((2, 4, 4, 4, 11), 3)]
REJECTED = [permuted(Letters(), ONE, np.random.default_rng(2)), Encoded((1, 8, 8, 8), 1), Encoded((2, 4, 4, 20, 21), 3)]


def test_the_plain_loop_sees_the_log_probabilities_that_scoring_sees(model):
    scores = score_encoded(model, [*CHOSEN, *REJECTED])
    for layers in ("all", "head"):
        mine, top = Texts.of([*CHOSEN, *REJECTED]).logp(Rows(model, layers))
        np.testing.assert_allclose(mine.detach().sum(1), scores.logp, rtol=1e-5)  # scoring's softmax is in float32
        np.testing.assert_allclose(top.sum(1), scores.argmax_logp, rtol=1e-5)


@pytest.mark.parametrize(("layers", "optimizer"), [("all", "rmsprop"), ("head", "sgd")])
def test_the_plain_loop_takes_the_steps_of_dpo_by_hand(model, layers, optimizer):
    rows = Rows(model, layers)
    probes = {"test_chosen": CHOSEN[::-1]}
    run = train(
        rows, objectives.get("dpo", beta=0.3), CHOSEN, REJECTED, optimizer=optimizer, lr=0.02, steps=2, warmup=2,
        at=(0, 1, 2), probes=probes,
    )  # fmt: skip
    hand = transformers.LlamaForCausalLM(model.config).double().eval()
    hand.load_state_dict(model.state_dict())
    if layers == "head":
        hand.lm_head.weight = torch.nn.Parameter(hand.lm_head.weight.detach().clone())
    part = [hand.lm_head.weight] if layers == "head" else list(hand.parameters())
    rule = {"rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}[optimizer](part, lr=0.02)

    def logp(item):
        z = hand(input_ids=torch.tensor([item.ids])).logits[0, item.start - 1 : -1].log_softmax(-1)
        return z[range(len(item.ids) - item.start), list(item.ids[item.start :])].sum()

    before = None
    for step in range(3):
        gaps = torch.stack([logp(c) - logp(r) for c, r in zip(CHOSEN, REJECTED, strict=True)])
        before = gaps.detach() if before is None else before
        loss = torch.nn.functional.softplus(-0.3 * (gaps - before)).mean()
        found = run.values["logp"]
        np.testing.assert_allclose(found["chosen"][step] - found["rejected"][step], gaps.detach(), rtol=1e-8)
        np.testing.assert_allclose(found["test_chosen"][step][0], logp(CHOSEN[-1]).detach(), rtol=1e-8)
        assert run.loss[step] == pytest.approx(float(loss.detach()), rel=1e-8)
        rule.zero_grad()
        loss.backward()
        rule.param_groups[0]["lr"] = 0.02 * min(1.0, (step + 1) / 2)
        rule.step()
    assert abs(run.loss[2] - np.log(2.0)) > 1e-3


def test_a_stage_ends_where_it_is_told_and_its_table_says_so(model):
    run = train(
        Rows(model), objectives.get("sft"), CHOSEN, optimizer="rmsprop", lr=1e-3, steps=50, at=(0,), until=10.0,
        probes={"test_chosen": CHOSEN},
    )  # fmt: skip
    assert run.loss[-1] <= 10.0 < run.loss[0]
    assert 0 < run.steps[-1] < 50
    ds = table({3: run, 9: run}, arm="plain", stage="sft", experiment="remedies")
    assert ds.sizes == {"seed": 2, "step": 2, "probe": 2, "example": 3}
    assert ds.attrs["world"] == "llm"
    np.testing.assert_array_equal(ds.logp.sel(probe="chosen").values[1], run.values["logp"]["chosen"])


def test_seeds_of_record_and_for_settings_share_no_story(data):
    drawn = {seed: _texts.draw(seed) for seed in (0, 1, 1000, 1001)}
    own = {seed: {one.ids for one in (*d.chosen, *d.test_chosen)} for seed, d in drawn.items()}
    assert all(len(texts) == 16 for texts in own.values())
    assert len(set().union(*own.values())) == 64
    assert not own[0] & {one.ids for one in drawn[0].donors}
    assert own[1] <= {one.ids for one in drawn[0].donors}
    assert not {one.ids for one in drawn[0].donors} & {one.ids for one in drawn[1000].donors}
    for one, other in zip(drawn[0].chosen, drawn[0].another(np.random.default_rng(0)), strict=True):
        assert len(other.ids) == len(one.ids)
        assert other.ids[: one.start] == one.ids[: one.start]
        assert other.ids != one.ids
    with pytest.raises(BadInput, match="seeds 0 to 23, or 1000 to 1023, got 24"):
        _texts.draw(24)


@pytest.mark.slow
def test_arms_of_a_seed_start_from_one_policy_and_go_their_ways(data, monkeypatch):
    short = [remedies.Setting("sgd", "hidden", 0.04, (0, 1, 2)), remedies.Setting("sgd", "layers", 0.0025, (0, 1))]
    monkeypatch.setattr(remedies, "SETTINGS", short)
    found = remedies.tables([1000])
    assert len(found) == 15
    starts = np.stack([ds.logp.values[0, 0] for ds in found.values()])
    np.testing.assert_allclose(starts, np.broadcast_to(starts[0], starts.shape), atol=2e-4)  # float32, other shapes
    ends = {ds.attrs["kernel"] + ds.attrs["arm"]: ds.logp.values[0, -1] for ds in found.values()}
    assert len({x.tobytes() for x in ends.values()}) == 15
    share = found["remedies sgd hidden plain"].eval_mean_share.values[0, 0]
    assert 0.1 < share < 0.4
    monkeypatch.setattr(similarity, "SETTINGS", short[:1])
    told = similarity.tables([1000])
    assert {ds.attrs["arm"] for ds in told.values()} == {
        *similarity.asis(1000),
        *(" ".join(c) for c in similarity.CELLS),
    }
    logp = {ds.attrs["arm"]: float(ds.eval_text_logp.values[0, 0]) for ds in told.values()}
    assert logp["temperature 1"] > logp["another answer"] > logp["permutation"] > logp["temperature 16"]
    assert logp["rare shared"] < logp["likely shared"] - 2.0
    first = told["similarity sampled, sgd, head: temperature 1"]
    lengths = [len(one.ids) - one.start for one in _texts.draw(1000).chosen]
    mean = first.logp.sel(probe="rejected").values[0, 0] / lengths  # at update 0, what was measured of the texts
    assert logp["temperature 1"] == pytest.approx(float(mean.mean()), rel=1e-4)


def test_examples_in_docstrings_hold():
    assert sum(doctest.testmod(one).failed for one in (module, _loop, remedies)) == 0
    assert doctest.testmod(module).attempted == 4
