"""Prompts shared by a cache or a mask: the numbers of a plain forward of each response, over architectures and bugs."""

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld.checked import BadInput
from toyld.llm import cached, packed
from toyld.llm import score as scoring
from toyld.llm.encode import Encoded, encode
from toyld.llm.head import Head
from toyld.llm.reader import Reader
from toyld.llm.score import noise_floor, score_encoded, score_tokens
from toyld.llm.shared import Group, groups, saving
from toyld.llm.wanted import Wanted

VOCAB, ROOM, WINDOW = 61, 96, 8
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SIZES | {"intermediate_size": 48, "max_position_embeddings": ROOM}
GROUPED = WIDE | {"num_key_value_heads": 2}
SLIDING = {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}
OWN = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": ROOM}
CONFIGS = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", GROUPED | {"head_dim": 8}),
    "gpt_neox": ("GPTNeoXConfig", WIDE),
    "gpt2": ("GPT2Config", OWN),
    "gemma": ("GemmaConfig", WIDE | {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("Gemma2Config", GROUPED | SLIDING | {"final_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3TextConfig", GROUPED | SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("MistralConfig", GROUPED | {"sliding_window": WINDOW}),
    "cohere": ("CohereConfig", GROUPED | {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", GROUPED | {"logits_scaling": 3.0}),
    "phi": ("PhiConfig", WIDE),  # a head with a bias
    "bloom": ("BloomConfig", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4}),  # ALiBi
    "mamba": ("MambaConfig", {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
MASKED = ("llama", "qwen2", "qwen3", "gpt_neox", "gpt2", "gemma", "cohere", "granite", "phi")  # that a mask can serve
CACHED = (*MASKED, "gemma2", "gemma3", "mistral", "bloom")
# A float64 model is that in all its parts but these, whose attention, positions or recurrence are in float32.
COARSE = ("gemma2", "bloom", "mamba")


def tiny(kind, dtype=torch.float64, **more):
    """Random weights, large enough that every token's past shows in what follows."""
    torch.manual_seed(7)
    name, sizes = CONFIGS[kind]
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, name)(**sizes, **tokens)
    model = transformers.AutoModelForCausalLM.from_config(config, **more)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.ndim > 1 else 1.0)
            weight.add_(0.1 * torch.randn_like(weight) if weight.ndim == 1 else 0.0)  # biases count, too
    return model.to(dtype).eval()


def examples(seed=0, sizes=(5, 1, 3, 4, 2), longest=30):
    """Responses of several lengths behind prompts of several lengths; some begin a (merged) token earlier."""
    draw = np.random.default_rng(seed)
    out = []
    for n in sizes:
        prompt = draw.integers(3, VOCAB, int(draw.integers(10, longest))).tolist()
        for k in range(n):
            start = len(prompt) - (k == 1)
            answer = draw.integers(3, VOCAB, 1 if k == 2 else int(draw.integers(2, 20))).tolist()
            out.append(Encoded((*prompt[:start], *answer), start))
    order = draw.permutation(len(out))
    return [out[i] for i in order]


def plainly(model, item):
    """(6, tokens) from one forward of one response and the formulas as one would write them down, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([item.ids])).logits[0, item.start - 1 : -1].double()
    labels = torch.tensor(item.ids[item.start :])
    log_pi = logits.log_softmax(1)
    pi = log_pi.exp()
    off = pi - torch.nn.functional.one_hot(labels, pi.shape[1])
    label = log_pi.gather(1, labels[:, None])[:, 0]
    parts = [label, log_pi.amax(1), -(pi * log_pi).sum(1), pi.amax(1), pi.square().sum(1), off.norm(dim=1)]
    return torch.stack(parts).numpy()


def check(model, given, atol, **options):
    """What was found by a way is what plain forwards give, token by token; returns the way."""
    found = score_tokens(model, given, **{"batch_size": 4} | options)
    for item, numbers in zip(given, found.numbers, strict=True):
        wanted = plainly(model, item)
        np.testing.assert_array_less(abs(numbers - wanted), atol * (1 + abs(wanted)))
    return found.way


def exact(kind):
    return 1e-6 if kind in COARSE else 1e-11


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_way_gives_the_numbers_of_plain_forwards(kind):
    model, given = tiny(kind), examples()
    check(model, given, exact(kind), way="padded")
    for way, serves in (("cached", CACHED), ("packed", MASKED)):
        if kind in serves:
            for size in (4, 16):  # groups cut in pieces, several groups in a batch
                check(model, given, exact(kind), way=way, batch_size=size)
        else:
            with pytest.raises(
                BadInput, match=f"expected a model that can serve the way '{way}', got .*use way='auto'"
            ):
                score_tokens(model, given, way=way)
    way = check(model, given, exact(kind))
    assert way.head == "tiles", way.head_why
    assert way.name == ("padded" if kind == "mamba" else "cached"), way.why
    if kind == "mamba":
        assert way.why == "not cached: it is recurrent; not packed: it is recurrent"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_attention_written_out_and_in_one_kernel(kind):
    given = examples(1)
    for attention, atol in (("eager", 1e-6), ("sdpa", 1e-11)):  # written out, its softmax is in float32 always
        model = tiny(kind, attn_implementation=attention)
        assert model.config._attn_implementation == attention
        for way in ("cached", "packed") if kind in MASKED else ("cached",):
            check(model, given, atol, way=way, batch_size=16)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_float32_stays_within_1e_5_a_token(kind):
    model, given = tiny(kind, torch.float32), examples(2)
    for way in ("padded", "cached", "packed") if kind in MASKED else ("padded", "cached"):
        check(model, given, 1e-5, way=way)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_moves_by_its_rounding_and_the_noise_floor_covers_that(dtype):
    """Hidden states are rounded to ε, another batch shape rounds others; the head multiplies in float32."""
    model, given = tiny("llama", dtype), examples(3)
    eps = torch.finfo(dtype).eps
    plain = [plainly(model, item)[0].sum() for item in given]
    for way in ("padded", "cached", "packed"):
        found = score_encoded(model, given, way=way)
        off = abs(found.logp - plain) / found.n_tokens
        assert off.max() < 16 * eps
        assert noise_floor(model, given, found) < 16 * eps
    assert check(model, given, 1.0).name == "cached"


def test_under_autocast_sharing_is_judged_by_its_precision():
    """As in a trainer with bf16=True: float32 weights, layers in bfloat16, whose rounding is no reason not to share."""
    model, given = tiny("llama", torch.float32), examples(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert check(model, given, 1.0).name == "cached"
        assert Reader(model).precision == "bfloat16"
    assert Reader(model).precision == "float32"
    half = tiny("llama", torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Reader(half).precision == "float16"


def test_a_window_shorter_than_the_prompt_is_cached_and_not_packed():
    for kind in ("mistral", "gemma3"):
        model = tiny(kind)
        given = examples(4, sizes=(3, 3), longest=40)
        assert min(group.common for group in groups(given)) > WINDOW
        check(model, given, 1e-11, way="cached")
        with pytest.raises(BadInput, match=f"its window of {WINDOW} tokens is shorter than a sequence of"):
            score_tokens(model, given, way="packed")
        short = [Encoded((1, 5, 6, *answer), 3) for answer in ((7, 8), (9,), (4, 3, 6))]
        check(model, short, 1e-11, way="packed")


def test_positions_end_with_the_model():
    """Padding behind the longest response has no position; a packed row is longer than the model has positions."""
    model, draw = tiny("gpt2"), np.random.default_rng(5)
    prompt = tuple(draw.integers(3, VOCAB, 60).tolist())
    given = [Encoded((*prompt, *draw.integers(3, VOCAB, n).tolist()), 60) for n in (ROOM - 60, 3, 20, ROOM - 61)]
    for way in ("padded", "cached", "packed", "auto"):
        check(model, given, 1e-11, way=way)


def test_what_shares_nothing_is_padded_and_says_so():
    model = tiny("llama")
    given = [Encoded((k, *range(3, 9 + k)), 4) for k in range(3, 9)]
    assert check(model, given, 1e-11).why == "the responses share too little of their prompts"
    mixed = [*examples(6, sizes=(4,)), *given]
    assert check(model, mixed, 1e-11).name == "cached"


def test_the_same_responses_are_scored_bit_by_bit_the_same():
    model, given = tiny("llama", torch.float32), examples(7)
    first, second = (score_tokens(model, given, way="auto") for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first.numbers, second.numbers, strict=True))


def test_real_weights_on_real_text(data):
    """stories260K: every way within 1e-5 of a float64 forward of the same weights, on greedy-like and odd answers."""
    folder = data / "models/stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = ["Once upon a time, there was a little girl named Lily. She", "Tom had a red ball. One day, he"]
    answers = [
        " loved to play outside.",
        " was very sad.",
        " quantum zebra!",
        " went to the park with her mom.",
        " ran.",
    ]
    given = encode(tokenizer, [p for p in prompts for _ in answers], answers * 2)
    assert len(groups(given)) == 2
    exactly = model.double()
    wanted = [plainly(exactly, item) for item in given]
    model = model.float()
    for way in ("padded", "cached", "packed", "auto"):
        found = score_tokens(model, given, way=way)
        for a, b in zip(found.numbers, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * (1 + abs(b).max()))
    assert found.way.name == "cached"


def test_groups_share_what_they_say_and_a_merged_token_ends_it():
    given = examples(8, sizes=(6, 1, 2, 5, 1, 1))
    found = groups(given)
    assert sorted(i for group in found for i in group.rows) == list(range(len(given)))
    for group in found:
        contexts = {given[i].ids[: given[i].start][: group.common] for i in group.rows}
        assert len(contexts) == 1
        assert group.common <= min(given[i].start for i in group.rows)
        assert [len(given[i].ids) for i in group.rows] == sorted(len(given[i].ids) for i in group.rows)
    assert sorted(len(group.rows) for group in found) == [1, 1, 1, 2, 5, 6]
    spent = sum(group.common + sum(len(given[i].ids) - group.common for i in group.rows) for group in found)
    assert spent == round((1 - saving(found, given)) * sum(len(item.ids) for item in given))
    prefix = tuple(range(3, 23))
    merged = [Encoded((*prefix, 30, 31), 20), Encoded((*prefix[:-1], 40, 41), 19), Encoded((*prefix, 32), 20)]
    assert groups(merged) == [Group((1, 2, 0), 19)]


def test_a_long_common_instruction_does_not_hide_the_prompts_behind_it():
    """Prompts of their own behind one instruction: by prompt where each has many responses, else by the instruction."""
    instruction, draw = tuple(range(3, 43)), np.random.default_rng(9)

    def behind(prompts, responses):
        asked = [(*instruction, *draw.integers(3, VOCAB, 30).tolist()) for _ in range(prompts)]
        return [Encoded((*ids, *draw.integers(3, VOCAB, 5).tolist()), 70) for ids in asked for _ in range(responses)]

    assert sorted(group.common for group in groups(behind(2, 6))) == [70, 70]
    assert [group.common for group in groups(behind(8, 1))] == [40]


def late(monkeypatch):
    """Positions behind the prompt are one too far."""
    right = Reader.run

    def wrong(self, read, /, **inputs):
        if inputs.get("past_key_values") is not None or inputs["attention_mask"].ndim == 4:
            ids = inputs["position_ids"]
            common = 0 if inputs["attention_mask"].ndim == 2 else 9
            inputs["position_ids"] = ids + (ids > common)
        return right(self, read, **inputs)

    monkeypatch.setattr(Reader, "run", wrong)


def seen(monkeypatch):
    """The second response of a row sees the first."""
    right = packed._mask
    monkeypatch.setattr(packed, "_mask", lambda reader, part: right(reader, part.clamp(min=0) * 0))


def unhidden(monkeypatch):
    """The padding before a shorter prompt is seen."""
    right = Reader.run

    def wrong(self, read, /, **inputs):
        return right(self, read, **inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])})

    monkeypatch.setattr(Reader, "run", wrong)


def another_prompt(monkeypatch):
    """Responses read the cache of the next prompt."""
    right = cached._lent
    turned = lambda cache, which, n: right(cache, which if which is None else which.flip(0), n)  # noqa: E731
    monkeypatch.setattr(cached, "_lent", turned)


def next_row(monkeypatch):
    """The first token of a response is predicted by itself, not by the prompt's last position."""
    right = Wanted.add
    monkeypatch.setattr(Wanted, "add", lambda self, at, labels: right(self, [*at[1:2], *at[1:]] or at, labels))


def grown(monkeypatch):
    """The cache keeps what the first responses wrote."""

    def lent(layer, which, n):
        def update(keys, values, *rest, **options):
            old = layer.keys, layer.values
            layer.keys, layer.values = (x[:1].expand(n, *x.shape[1:]) for x in old)
            return type(layer).update(layer, keys, values, *rest, **options)

        kept = type(layer).__new__(type(layer))
        vars(kept).update(vars(layer))
        kept.update = update
        return kept

    monkeypatch.setattr(cached, "_lent_layer", lent)


@pytest.mark.parametrize(
    ("plant", "way", "kind"),
    [
        (late, "cached", "llama"),
        (late, "cached", "gpt2"),
        (late, "packed", "gpt_neox"),
        (seen, "packed", "llama"),
        (unhidden, "cached", "llama"),
        (another_prompt, "cached", "qwen2"),
        (next_row, "cached", "llama"),
        (next_row, "packed", "gpt2"),
        (grown, "cached", "llama"),
    ],
)
def test_a_planted_bug_is_seen_and_auto_does_not_take_that_way(plant, way, kind, monkeypatch):
    size = 2 if plant is grown else 16
    given = examples(10, sizes=(5,)) if plant is grown else examples(10)
    check(tiny(kind), given, 1e-11, way=way, batch_size=size)
    plant(monkeypatch)
    model = tiny(kind)
    with pytest.raises((AssertionError, BadInput, RuntimeError)):
        check(model, given, 1e-4, way=way, batch_size=size)
    if plant is not next_row and plant is not grown:  # a forward of the check alone, or one that comes later
        taken = score_tokens(tiny(kind), given, batch_size=size).way
        assert taken.name != way
        if way == "cached":
            assert taken.why.startswith("not cached: it changes log-probabilities by")


def test_a_cap_that_is_forgotten_or_a_scale_that_is_wrong_is_noticed(monkeypatch):
    """Where the config does not say what the model does, its own logits are read: slower, and right."""
    given = examples(11)
    for kind, wrong in (("gemma2", {"cap": None}), ("granite", {"scale": 1.0}), ("cohere", {"scale": 0.5})):
        model = tiny(kind)
        assert check(model, given, exact(kind)).head == "tiles"
        right = scoring.Reader.__init__

        def forgets(self, model, right=right, wrong=wrong):
            right(self, model)
            self.head = Head(**vars(self.head) | wrong)

        with monkeypatch.context() as patch:
            patch.setattr(Reader, "__init__", forgets)
            way = check(tiny(kind), given, exact(kind))
            assert way.head == "logits"
            assert way.head_why.startswith(
                "the model's own logits: those of its head as the config describes it are off"
            )
            patch.setattr("toyld.llm.reader._differ", lambda *_: "")
            with pytest.raises(AssertionError):
                check(tiny(kind), given, exact(kind))
