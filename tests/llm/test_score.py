"""Exact scores of given responses: against a loop over tokens, at any batch shape, with boundaries that show."""

import doctest
import functools
import importlib
import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld.checked import BadInput
from toyld.llm import statistics
from toyld.llm.encode import Encoded, encode
from toyld.llm.reader import Reader
from toyld.llm.score import Scores, noise_floor, score, score_encoded
from toyld.llm.wanted import Wanted

EPS32 = float(np.finfo(np.float32).eps)
VOCAB = 61


def tiny(kind="llama", dtype=torch.float32, dropout=0.0, positions=256):
    """A small model with random weights, peaky enough that labels, maxima and means differ much."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": positions}
    if kind == "llama":
        config = transformers.LlamaConfig(vocab_size=VOCAB, intermediate_size=48, num_key_value_heads=2, **sizes)
    else:  # learned positions and dropout
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        sizes = {names.get(name, "n_positions"): value for name, value in sizes.items()}
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        config = transformers.GPT2Config(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, **sizes, **drops)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40.0)
    return model.to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


def items(n=11, seed=3, longest=150):
    """Token sequences of many lengths; some share a padded length, some do not."""
    rng = np.random.default_rng(seed)
    sizes = [int(size) for size in rng.integers(3, longest, n)]
    return [Encoded(tuple(rng.integers(0, VOCAB, size).tolist()), int(rng.integers(1, size))) for size in sizes]


def naive(model, item):
    """The formulas by a loop over tokens in float64: one forward pass of the bare prefix for each."""
    rows = []
    for t in range(item.start, len(item.ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([item.ids[:t]])).logits[0, -1].double()
        pi = torch.softmax(logits, 0)
        e = torch.zeros_like(pi)
        e[item.ids[t]] = 1.0
        label, top, entropy = torch.log(pi[item.ids[t]]), torch.log(pi.max()), -(pi * torch.log(pi)).sum()
        rows.append([float(x) for x in (label, top, entropy, pi.max(), (pi**2).sum(), torch.dist(pi, e))])
    a = np.array(rows)
    return [a[:, 0].sum(), a[:, 1].sum(), len(rows), *a[:, 2:].mean(0)]


def table(scores):
    """(response, quantity)."""
    return np.stack(list(vars(scores).values()), 1)


def largest(model, items):
    """max |logit|: float32 rounds a logit by half an eps of it, its log-probability by about twice that."""
    with torch.no_grad():
        return max(float(model(input_ids=torch.tensor([i.ids])).logits.abs().max()) for i in items)


@functools.cache
def looped(kind):
    """A float64 model, responses, and what the loop over tokens says of them: once for all tests that compare."""
    model, given = tiny(kind, torch.float64), items(6)
    return model, given, np.array([naive(model, item) for item in given])


def check_exact(model, given, wanted=None):
    """The scores of a float64 model are those of the loop over tokens."""
    found = table(score_encoded(model, list(given), batch_size=4))
    wanted = np.array([naive(model, item) for item in given]) if wanted is None else wanted
    token = 4 * EPS32 * largest(model, given)
    np.testing.assert_array_equal(found[:, 2], wanted[:, 2])
    np.testing.assert_array_less(abs(found - wanted)[:, 0], token * wanted[:, 2])
    np.testing.assert_array_less(abs(found - wanted)[:, 1], token * wanted[:, 2])
    # |dH| <= Σ |dπ| (1 + |log π|) and |dπ| <= π token: at most token (1 + H); the others are at most 2 token
    np.testing.assert_array_less(abs(found - wanted)[:, 3:], 2 * token * (1 + np.log(VOCAB)))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_equal_a_naive_loop_over_tokens_in_float64(kind):
    check_exact(*looped(kind))


def test_the_mean_is_the_models_own_loss(model):
    for item in items(5, seed=5):
        labels = torch.tensor([(-100,) * item.start + item.ids[item.start :]])
        with torch.no_grad():
            loss = float(model(input_ids=torch.tensor([item.ids]), labels=labels).loss)
        found = score_encoded(model, [item])
        bound = 4 * EPS32 * largest(model, [item]) + 8 * EPS32 * abs(loss) * len(item.ids)
        np.testing.assert_allclose(-found.logp[0] / found.n_tokens[0], loss, rtol=0, atol=bound)


def shifted(monkeypatch):
    """The label of a position is the token at it, not the next one."""
    right = Wanted.add
    monkeypatch.setattr(Wanted, "add", lambda self, at, labels: right(self, at, [0, *labels[:-1]]))


def off_by_one(monkeypatch):
    """A token is predicted by what stands at it."""
    right = Wanted.add
    monkeypatch.setattr(Wanted, "add", lambda self, at, labels: right(self, [*at[1:], at[-1]], labels))


def another_argmax(monkeypatch):
    """The argmax of the batch's first response stands for all of them."""
    right = Wanted.read

    def mixed(self, head, tensors):
        found = right(self, head, tensors)
        for values in found[1:]:
            values[1] = found[0][1].mean()
        return found

    monkeypatch.setattr(Wanted, "read", mixed)


def counted_twice(monkeypatch):
    """The first token of a response counts for the second, too."""
    right = Wanted.read

    def doubled(self, head, tensors):
        return [
            values[:, [0, 0, *range(2, values.shape[1])][: values.shape[1]]] for values in right(self, head, tensors)
        ]

    monkeypatch.setattr(Wanted, "read", doubled)


def next_in_batch(monkeypatch):
    """A row of the batch is read for the one before it."""
    right = Reader.run

    def turned(self, read, /, **inputs):
        return right(self, lambda head, features: read(head, features.roll(1, 0)), **inputs)

    monkeypatch.setattr(Reader, "run", turned)


@pytest.mark.parametrize("plant", [shifted, off_by_one, another_argmax, counted_twice, next_in_batch])
def test_a_planted_bug_does_not_survive_the_naive_loop(plant, monkeypatch):
    check_exact(*looped("llama"))
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_exact(*looped("llama"))


def test_no_batch_shape_matters_beyond_rounding_and_the_noise_floor_tells_how_much(model):
    given = items(12)
    first = score_encoded(model, given, batch_size=8)
    bound = 4 * EPS32 * largest(model, given)
    for size in (1, 3, 12):
        again = score_encoded(model, given, batch_size=size)
        for name in ("logp", "argmax_logp"):
            off = abs(getattr(again, name) - getattr(first, name)) / first.n_tokens
            assert off.max() < bound, (size, name)
    floor = noise_floor(model, given, first, batch_size=8)
    assert 0 < floor < bound
    coarse = tiny(dtype=torch.bfloat16)
    theirs = noise_floor(coarse, given, score_encoded(coarse, given, batch_size=8), batch_size=8)
    assert theirs > 100 * floor, "bfloat16 rounds 65,536 times as coarsely as float32"
    alone = score_encoded(model, given, batch_size=1)
    assert noise_floor(model, given, alone, batch_size=1) < bound


def test_a_score_does_not_depend_on_what_else_is_scored(model):
    """The model sees a response in a shape of its own; beside others only the products of the head may round."""
    given, seen = items(12), []
    model.register_forward_pre_hook(lambda _, args, options: seen.append(options["input_ids"].shape), with_kwargs=True)
    every = table(score_encoded(model, given, batch_size=4, way="padded"))
    shapes, bound = set(seen), 4 * EPS32 * largest(model, given)
    for some in ([0, 5], [11, 3, 7]):
        seen.clear()
        found = table(score_encoded(model, [given[i] for i in some], batch_size=4, way="padded"))
        assert set(seen) <= shapes
        np.testing.assert_array_less(abs(found - every[some]), bound * (1 + every[some][:, 2:3] + abs(every[some])))


@pytest.mark.parametrize("positions", [40, 100])
def test_padding_ends_with_the_models_positions(positions):
    """GPT-2 has no position beyond its table: a padded length of 64 or 128 would be no index of it."""
    model = tiny("gpt2", torch.float64, positions=positions)
    given = [*items(5, longest=positions), Encoded(tuple(range(40)) * (positions // 40), 5)]
    given.append(Encoded((*range(50), *range(50))[:positions], positions - 20))  # all positions there are
    check_exact(model, given)
    seen = set()
    watch = model.register_forward_pre_hook
    watch(lambda _, args, options: seen.add(tuple(options["input_ids"].shape)), with_kwargs=True)
    score_encoded(model, given, batch_size=4)
    assert seen == {(4, min(64, positions)), (4, positions)}, "shapes by each response's own length"
    longer = Encoded((*given[6].ids, 1), 5)
    message = f"--max-length: expected at most the model's {positions} positions, got a sequence of {positions + 1}"
    with pytest.raises(BadInput, match=message):
        score_encoded(model, [longer])


def test_tiles_of_the_vocabulary_change_nothing(model, monkeypatch):
    whole, bound = table(score_encoded(model, items(4))), 4 * EPS32 * largest(model, items(4))
    monkeypatch.setitem(statistics.TILES, "cpu", (5, 7))
    found = table(score_encoded(model, items(4)))
    np.testing.assert_array_less(abs(found - whole), bound * (1 + whole[:, 2:3] + abs(whole)))


def test_argmax_is_never_below_the_label_and_equals_it_along_a_greedy_answer(model):
    found = score_encoded(model, items(30, seed=9))
    assert (found.argmax_logp >= found.logp).all()
    assert (found.argmax_logp > found.logp + 1).any()
    ids = [1, 5, 8]
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    greedy = score_encoded(model, [Encoded(tuple(ids), 3)])
    np.testing.assert_array_equal(greedy.argmax_logp, greedy.logp)


def test_dropout_is_off_while_scoring_and_the_mode_comes_back():
    model = tiny("gpt2", dropout=0.5).train()
    first = table(score_encoded(model, items(4)))
    assert model.training
    np.testing.assert_array_equal(first, table(score_encoded(model, items(4))))
    np.testing.assert_array_equal(first, table(score_encoded(model.eval(), items(4))))
    assert not model.training


def test_weights_that_are_not_finite_are_refused():
    model = tiny()
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(BadInput, match=r"expected finite log-probabilities, got nan for response 0 \(4 in all\)"):
        score_encoded(model, items(4))
    assert np.isfinite(table(score_encoded(tiny(), items(4)))).all()


class Letters:
    """A tokenizer of single letters with BOS 1 and EOS 2, as a tokenizer of the Hub is called; `merge` is one token."""

    bos_token, bos_token_id, eos_token_id, chat_template = "^", 1, 2, None

    def __init__(self, merge="", own_eos=False):
        self.merge, self.own_eos = merge, own_eos

    def __call__(self, text, add_special_tokens=True):
        ids, i = [1] * add_special_tokens, 0
        while i < len(text):
            joined = self.merge and text.startswith(self.merge, i)
            ids.append(60 if joined else {"^": 1, "$": 2}.get(text[i], ord(text[i]) - 94))
            i += len(self.merge) if joined else 1
        return {"input_ids": ids + [2] * (self.own_eos and add_special_tokens)}


class Chat(Letters):
    """The same with a template: u:TEXT; for the user, a:TEXT; for the assistant."""

    chat_template = "yes"

    def apply_chat_template(self, messages, *, tokenize, add_generation_prompt, return_dict):
        assert tokenize
        assert return_dict
        text = "^" + "".join(f"{m['role'][0]}{m['content']}$" for m in messages) + "a" * add_generation_prompt
        return {"input_ids": self(text, add_special_tokens=False)["input_ids"]}


def letters(text):
    return tuple({"^": 1, "$": 2}.get(c, ord(c) - 94) for c in text)


def test_the_boundary_is_where_the_response_begins_bos_once_and_eos_behind():
    one = encode(Letters(), ["abc"], ["de"])[0]
    assert (one.ids, one.start, one.cut) == (letters("^abcde$"), 4, 0)
    assert encode(Letters(), ["abc"], ["de"], eos=False)[0].ids == letters("^abcde")
    assert encode(Letters(own_eos=True), ["abc"], ["de"])[0] == one, "its own EOS is not doubled, nor in the context"
    assert encode(Letters(), ["abc"], ["de$"])[0] == one, "nor one in the text"
    assert encode(Letters(), ["^abc"], ["de"])[0] == one, "a BOS in the text is the only one"
    assert encode(Letters(), [""], ["de"])[0] == Encoded(letters("^de$"), 1)
    merged = encode(Letters(merge="cd"), ["abc"], ["de"])[0]  # a token across the boundary belongs to the response
    assert (merged.ids, merged.start) == ((1, 3, 4, 60, 7, 2), 3)


def test_messages_go_through_the_chat_template():
    prompt = [{"role": "user", "content": "hm"}]
    one = encode(Chat(), [prompt], ["yes"])[0]
    assert (one.ids, one.start) == (letters("^uhm$ayes$"), 6)
    assert encode(Chat(), [prompt], [[{"role": "assistant", "content": "yes"}]])[0] == one
    with pytest.raises(BadInput, match="expected a tokenizer with a chat template, got none"):
        encode(Letters(), [prompt], ["yes"])


@pytest.mark.parametrize("longest", [9, 8, 7, 6, 5, 4, 3, 2])
def test_what_is_too_long_loses_the_prompts_beginning_first(longest):
    one = encode(Letters(), ["abcd"], ["xyz"], max_length=longest)[0]
    whole = letters("^abcdxyz$")
    context, response = one.ids[: one.start], one.ids[one.start :]
    assert len(one.ids) == longest
    assert response == whole[5 : 5 + len(response)], "a response keeps its beginning"
    assert one.cut == 4 - len(response)
    body = context[1:] if context[0] == 1 and len(context) > 1 else context
    assert body == whole[5 - len(body) : 5], "a prompt keeps its end, behind BOS"
    assert len(context) == max(longest - 4, longest // 2), "and half the room, if the response is long"


def test_a_response_without_tokens_or_context_is_refused():
    class NoBos(Letters):
        def __call__(self, text, add_special_tokens=True):
            return super().__call__(text, add_special_tokens=False)

    class NoEos(Letters):
        eos_token_id = None

    bad = [
        (Letters(), ["ab", "ab"], ["cd", " "], {}, "row 1: expected a response, got ' '"),
        (NoBos(), [""], ["cd"], {}, "row 0: expected a context, got an empty prompt"),
        (NoEos(), ["ab"], ["cd"], {}, "expected a tokenizer with an EOS token, got one without; use --no-eos"),
        (Letters(), ["ab"], ["cd"], {"max_length": 1}, "--max-length: expected at least 2, got 1"),
        (Letters(), ["ab"], [3], {}, "row 0: expected strings, or lists of messages"),
        (Letters(), ["ab", "c"], ["d"], {}, "expected one response a prompt, got 2 prompts and 1 responses"),
    ]
    for tokenizer, prompts, responses, options, message in bad:
        with pytest.raises(BadInput) as refused:
            encode(tokenizer, prompts, responses, **options)
        assert message in str(refused.value)
    assert encode(NoEos(), ["ab"], ["cd"], eos=False)[0].ids == letters("^abcd")


@pytest.mark.parametrize("name", ["data", "encode", "score", "weights"])
def test_examples_in_the_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"toyld.llm.{name}"))
    assert tried
    assert not failed


def test_score_is_score_encoded_behind_encode(model):
    prompts, responses = ["abc", "de"], ["fg", "hijk"]
    found = score(model, Letters(), prompts, responses)
    np.testing.assert_array_equal(found.n_tokens, [3, 5])
    np.testing.assert_array_equal(table(found), table(score_encoded(model, encode(Letters(), prompts, responses))))
    assert list(vars(found)) == list(Scores.__dataclass_fields__)


@pytest.mark.parametrize("name", ["stories", "pythia"])
def test_real_tokenizers_keep_boundary_bos_and_eos(data, name):
    """What is tokenised together decodes to the text; the response begins where it should on every pair."""
    if name == "stories":
        tokenizer = transformers.AutoTokenizer.from_pretrained(data / "models/stories260K")
    else:
        file = str(data / "tokenizers/pythia_neox.json")
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>")
    with (data / "preference/hh_pairs.jsonl").open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(40), strict=False)]
    rows = [row for row in rows if row["chosen"].strip()]
    encoded = encode(tokenizer, [r["prompt"] for r in rows], [r["chosen"] for r in rows], max_length=10**6)
    assert len(encoded) > 30
    for item, row in zip(encoded, rows, strict=True):
        assert item.ids[-1] == tokenizer.eos_token_id
        assert item.ids.count(tokenizer.eos_token_id) == 1
        if name == "stories":
            assert item.ids[0] == 1
            assert item.ids.count(1) == 1
        answer = tokenizer.decode(item.ids[item.start : -1])
        assert (
            answer.strip() == tokenizer.decode(tokenizer(row["chosen"])["input_ids"], skip_special_tokens=True).strip()
        )
