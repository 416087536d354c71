"""The head of a model read inside its forward: adapters, patched forwards, odd heads, memory, nothing left behind."""

import copy
import functools
import types

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from toyld.checked import BadInput
from toyld.llm import head, reader, statistics
from toyld.llm.encode import Encoded
from toyld.llm.reader import Reader
from toyld.llm.score import score_encoded, score_tokens

VOCAB = 61


def tiny(dtype=torch.float64, vocab=VOCAB, dropout=0.0):
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.LlamaConfig(
        vocab_size=vocab, num_key_value_heads=2, attention_dropout=dropout, bos_token_id=1, eos_token_id=2, **sizes
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    return model.to(dtype).eval()


def examples(vocab=VOCAB, n=5):
    draw = np.random.default_rng(1)
    prompt = draw.integers(3, vocab, 20).tolist()
    return [Encoded((*prompt, *draw.integers(3, vocab, int(k)).tolist()), 20) for k in draw.integers(1, 15, n)]


def plainly(model, item):
    """(2, tokens): log π(y) and log max π from one forward of one response."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([item.ids])).logits[0, item.start - 1 - len(item.ids) : -1]
    log_pi = logits.double().log_softmax(1)
    labels = torch.tensor(item.ids[item.start :])
    return torch.stack([log_pi.gather(1, labels[:, None])[:, 0], log_pi.amax(1)]).numpy()


def check(model, given, atol=1e-11, **options):
    found = score_tokens(model, given, **options)
    for item, numbers in zip(given, found.numbers, strict=True):
        np.testing.assert_allclose(numbers[:2], plainly(model, item), rtol=0, atol=atol)
    return found.way


@pytest.mark.parametrize("where", [["q_proj"], ["q_proj", "lm_head"]])
def test_lora_on_the_body_and_on_the_head(where):
    peft = pytest.importorskip("peft")
    given = examples()
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=4, target_modules=where, init_lora_weights=False)).eval()
    with model.disable_adapter():
        base = score_encoded(model, given)
    way = check(model, given)
    assert (way.name, way.head) == ("cached", "rows" if "lm_head" in where else "tiles")
    assert way.head_why == ("row by row through Linear" if "lm_head" in where else "by tiles of the head's matrix")
    for other in ("packed", "padded"):
        check(model, given, way=other)
    assert abs(score_encoded(model, given).logp - base.logp).min() > 1e-3  # the adapter counts
    np.testing.assert_allclose(base.logp, [plainly(tiny(), item)[0].sum() for item in given], rtol=1e-12)


@pytest.mark.parametrize("adapted", [False, True])
def test_under_autocast_the_body_is_the_trainers_and_the_head_float32(adapted):
    model, given = tiny(torch.float32), examples()
    if adapted:
        peft = pytest.importorskip("peft")
        where = peft.LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
        model = peft.get_peft_model(model, where).eval()
    exact = score_tokens(model, given).numbers
    with torch.autocast("cpu", torch.bfloat16):
        for way in ("auto", "packed", "padded"):
            taken = check(model, given, 16 * torch.finfo(torch.bfloat16).eps, way=way)
            assert taken.head == ("rows" if adapted else "tiles"), taken.head_why
        rounded = score_tokens(model, given).numbers
    assert 1e-4 < max(abs(a - b).max() for a, b in zip(rounded, exact, strict=True)) < 0.2


def test_a_head_that_is_trained_beside_an_adapter_and_virtual_tokens():
    peft = pytest.importorskip("peft")
    given = examples()
    saved = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(tiny(), saved).eval()
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.5)
    assert check(model, given).head == "rows"
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(tiny(), prompt).eval()
    way = check(model, given)
    assert (way.name, way.head) == ("padded", "tiles")
    assert "its adapter puts tokens of its own before the prompt" in way.why


def test_a_forward_that_trl_has_patched():
    """TRL's trainers give the models that they train another forward."""
    utils = pytest.importorskip("trl.trainer.utils")
    model, given = tiny(), examples()
    before = score_tokens(model, given)
    utils.add_fused_lm_head(model)
    after = score_tokens(model, given)
    assert "forward" in vars(model)
    assert after.way == before.way
    assert all(np.array_equal(a, b) for a, b in zip(after.numbers, before.numbers, strict=True))
    assert check(model, given, way="packed").head == "tiles"


class Scaled(torch.nn.Module):
    """A model of one's own around a transformer, whose head is none that it names."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, input_ids, attention_mask=None):
        return types.SimpleNamespace(logits=2.0 * self.inner(input_ids=input_ids, attention_mask=attention_mask).logits)


def test_heads_that_are_not_what_they_seem_are_read_from_the_models_own_logits():
    given = examples()
    way = check(Scaled(tiny()), given)
    assert (way.name, way.head, way.head_why) == ("padded", "logits", "the model names no output head")
    assert way.why == "not cached: it is no model of transformers; not packed: it is no model of transformers"

    hidden = tiny()  # a head that is used without being called
    weight = hidden.lm_head.weight

    def forward(input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        options = {"position_ids": position_ids, "past_key_values": past_key_values, "use_cache": use_cache}
        out = hidden.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        logits = out.last_hidden_state @ weight.T - 1.0
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)

    hidden.forward = forward
    way = check(hidden, given)
    assert (way.name, way.head) == ("cached", "logits")
    assert way.head_why == "the model's own logits: its forward does not call its head as a module"

    masked, right = tiny(), type(hidden).forward  # tokens that it never says, which its config does not tell

    @functools.wraps(right)
    def never(self, *args, **options):
        output = right(self, *args, **options)
        output.logits[..., 55:] = -torch.inf
        return output

    masked.forward = types.MethodType(never, masked)
    way = check(masked, [Encoded(tuple(min(t, 50) for t in item.ids), item.start) for item in given])
    assert (way.name, way.head) == ("cached", "logits")
    assert way.head_why.endswith("those of its head as the config describes it are off by up to inf")


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, kinds, args=(), options=None):
        out = function(*args, **(options or {}))
        made = [x for x in (out if isinstance(out, list | tuple) else [out]) if isinstance(x, torch.Tensor)]
        views = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        self.numbers = max([self.numbers, *(x.numel() for x in made if x.untyped_storage().data_ptr() not in views)])
        return out


@pytest.mark.parametrize("way", ["cached", "packed", "padded"])
def test_logits_are_never_there_whole(way, monkeypatch):
    """The largest tensor is that of the few rows that go through the model's own head, once."""
    vocab, given = 5000, examples(5000, n=8)
    model = tiny(torch.float32, vocab)
    monkeypatch.setitem(statistics.TILES, "cpu", (16, 256))
    with Largest() as largest:
        score_tokens(model, given, way=way)
    rows = sum(len(item.ids) - item.start for item in given)
    assert 16 * 256 < largest.numbers <= 2 * reader.SHOWN * vocab < rows / 3 * vocab
    model.lm_head.forward = model.lm_head.forward  # may be anything: through the module, so many rows at a time
    monkeypatch.setattr(head, "MEMORY", 10 * vocab)
    with Largest() as largest:
        assert score_tokens(model, given, way=way).way.head == "rows"
    assert largest.numbers == 10 * vocab


def test_a_model_in_training_is_left_as_it_was():
    """Modes module by module, random states, gradients that wait for their step, config, caches; and it trains on."""
    model, given = tiny(torch.float32, dropout=0.3), examples()
    model.train()
    model.model.layers[0].eval()  # somebody froze it
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    model.lm_head.weight.requires_grad_(False)
    ids = torch.tensor([given[0].ids])
    twin = copy.deepcopy(model)

    def step(one, score):
        torch.manual_seed(0)
        one(input_ids=ids, labels=ids).loss.backward()
        if score:
            for way in ("auto", "cached", "packed", "padded"):
                score_tokens(one, given, way=way)
        one(input_ids=ids, labels=ids).loss.backward()  # dropout draws on, gradients add up
        return [p.grad for p in one.parameters()]

    modes, config = [m.training for m in model.modules()], copy.deepcopy(model.config.to_dict())
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()]
    mine, theirs = step(model, True), step(twin, False)
    assert [m.training for m in model.modules()] == modes
    assert sum(modes) not in (0, len(modes))
    assert model.config.to_dict() == config
    assert [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()] == hooks
    assert sum(g is None for g in mine) == 1
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert set(model.state_dict()) == set(twin.state_dict())


def test_an_error_in_the_middle_leaves_nothing_behind(monkeypatch):
    model, given = tiny().train(), examples()

    def fails(*_):
        raise KeyError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr("toyld.llm.wanted.Wanted.read", fails)
        with pytest.raises(KeyError, match="in the middle"):
            score_tokens(model, given, way="cached")
    assert model.training
    assert torch.is_grad_enabled()
    assert not model.lm_head._forward_pre_hooks
    check(model.eval(), given)


def test_what_cannot_be_asked_is_refused_in_one_line():
    model, given = tiny(), examples()
    with pytest.raises(BadInput, match="expected a way among auto, cached, packed, padded, got 'fast'"):
        score_tokens(model, given, way="fast")
    model.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0}
    with pytest.raises(BadInput, match="its positions depend on how long a sequence is \\(dynamic\\); use way='auto'"):
        score_tokens(model, given, way="cached")
    assert Reader(model).head.name == "tiles"
