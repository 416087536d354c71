"""The next update foreseen: against finite differences, real optimisers' steps, LoRA, and a pretrained model."""

import copy
import json
from itertools import pairwise

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld import objectives
from toyld.checked import BadInput
from toyld.llm.encode import Encoded
from toyld.llm.foresee import Foresight, Pairs, foresee
from toyld.llm.labels import padded
from toyld.llm.score import score_encoded

VOCAB = 37
RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=3e-5),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.1),
}


def tiny(kind="llama", dtype=torch.float64, dropout=0.0):
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    if kind == "llama":
        config = transformers.LlamaConfig(vocab_size=VOCAB, intermediate_size=24, num_key_value_heads=1, **sizes)
    else:  # tied, learned positions, matrices that are no torch layers
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        sizes = {names.get(name, "n_positions"): value for name, value in sizes.items()}
        drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        config = transformers.GPT2Config(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, **sizes, **drops)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)  # far from even
    return model


def some(n, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(6, 20, n)
    return [Encoded(tuple(rng.integers(0, VOCAB, size).tolist()), int(rng.integers(2, size - 1))) for size in sizes]


CHOSEN, REJECTED, PROBES = some(5, 0), some(5, 1), some(9, 2)


def totals(model, items):
    """Σ log π of every response, with a graph: written apart from what is tested."""
    given = padded(items)
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[:, :-1]
    logp = torch.log_softmax(logits, -1).gather(2, given["input_ids"][:, 1:, None])[..., 0]
    return (logp * given["asked"][:, 1:]).sum(1)


def dpo(model, reference, chosen=CHOSEN, rejected=REJECTED, beta=0.1):
    ratio = totals(model, [*chosen, *rejected]) - reference
    return -torch.nn.functional.logsigmoid(beta * (ratio[: len(chosen)] - ratio[len(chosen) :])).mean()


def reference(model, seed=5):
    """The policy's own log-probabilities, moved: π ≠ π_ref."""
    with torch.no_grad():
        own = totals(model, [*CHOSEN, *REJECTED])
    return own + 10.0 * torch.randn(10, generator=torch.Generator().manual_seed(seed), dtype=own.dtype)


def lesson(ref):
    return Pairs(CHOSEN, REJECTED, ref[:5].numpy(), ref[5:].numpy())


def stepped(model, optimizer, ref, clip=None):
    """The real change by one step of the real optimiser."""
    with torch.no_grad():
        before = totals(model, PROBES)
    optimizer.zero_grad()
    dpo(model, ref).backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    with torch.no_grad():
        return (totals(model, PROBES) - before).numpy()


@pytest.mark.parametrize(("kind", "rule"), [("llama", "sgd"), ("llama", "rmsprop"), ("gpt2", "adamw")])
def test_it_is_the_real_step_to_first_order(kind, rule):
    errors = []
    for factor in (1.0, 0.1):
        model = tiny(kind)
        optimizer = RULES[rule](model.parameters())
        ref = reference(model)
        stepped(model, optimizer, ref, clip=0.5)  # the state is not empty
        for group in optimizer.param_groups:
            group["lr"] *= factor
        seen = foresee(model, lesson(ref), PROBES, optimizer=optimizer, clip=0.5, batch_size=4)
        real = stepped(model, optimizer, ref, clip=0.5)
        errors.append(np.linalg.norm(seen.predicted - real) / factor)
    assert errors[1] / np.linalg.norm(real / factor) < 0.02
    assert errors[1] < 0.2 * errors[0]  # what is left falls with the rate: 0.1 to first order


def test_gradients_of_training_give_the_same_as_the_pairs_do():
    model = tiny()
    ref = reference(model)
    dpo(model, ref).backward()
    left = foresee(model, None, PROBES, lr=0.1)
    for size in (1, 3, 64):
        seen = foresee(model, lesson(ref), PROBES, lr=0.1, batch_size=size)
        np.testing.assert_allclose(seen.predicted, left.predicted, rtol=1e-9)
        assert seen.grad_norm == pytest.approx(left.grad_norm, rel=1e-9)
    with torch.no_grad():
        np.testing.assert_allclose(left.logp, totals(model, PROBES).numpy(), rtol=1e-9)


def test_what_has_no_gradient_stays():
    model = tiny()
    with torch.no_grad():
        before = totals(model, PROBES)
    dpo(model, reference(model)).backward()
    model.lm_head.weight.grad = None  # torch skips it, weight decay and all
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=50.0)
    seen = foresee(model, None, PROBES, optimizer=optimizer)
    optimizer.step()
    with torch.no_grad():
        assert seen.agreement((totals(model, PROBES) - before).numpy()).error < 0.05


def test_other_losses_read_what_they_need():
    model = tiny()
    sft = foresee(model, Pairs(CHOSEN, objective=objectives.get("sft")), PROBES, lr=0.1)
    (-totals(model, CHOSEN).mean()).backward()
    np.testing.assert_allclose(sft.predicted, foresee(model, None, PROBES, lr=0.1).predicted, rtol=1e-9)
    model.zero_grad()
    ref = reference(model)
    seen = foresee(
        model, Pairs(CHOSEN, REJECTED, ref[:5].numpy(), ref[5:].numpy(), objectives.get("trl.ipo")), PROBES, lr=0.1
    )
    lengths = torch.tensor([len(item.ids) - item.start for item in [*CHOSEN, *REJECTED]])
    mean = (totals(model, [*CHOSEN, *REJECTED]) - ref) / lengths
    (mean[:5] - mean[5:] - 1 / 0.2).square().mean().backward()
    np.testing.assert_allclose(seen.predicted, foresee(model, None, PROBES, lr=0.1).predicted, rtol=1e-9)


def test_adapters_alone_move():
    peft = pytest.importorskip("peft")
    plain = tiny()
    ref = reference(plain)
    model = peft.get_peft_model(
        plain, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4)
    seen = foresee(model, lesson(ref), PROBES, optimizer=optimizer)
    real = stepped(model, optimizer, ref)
    assert seen.agreement(real).error < 1e-3
    assert len(trained) == 8


def test_adapters_in_float32_on_a_base_in_bfloat16():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny(dtype=torch.bfloat16), config)
    assert len({p.dtype for p in model.parameters()}) == 2
    exact = copy.deepcopy(model).double()
    seen = foresee(model, Pairs(CHOSEN, REJECTED), PROBES, lr=0.1)
    true = foresee(exact, Pairs(CHOSEN, REJECTED), PROBES, lr=0.1)
    assert seen.agreement(true.predicted).error < 0.2  # eight bits a number
    assert seen.agreement(true.predicted).rank > 0.9


def test_a_difference_stands_in_where_there_is_no_forward_mode():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g

    model = tiny(dtype=torch.float32).eval()
    pairs = Pairs(CHOSEN, REJECTED)
    exact = foresee(model, pairs, PROBES, lr=0.1, mode="forward")
    assert exact.mode == "forward"
    near = foresee(model, pairs, PROBES, lr=0.1, mode="difference")
    model.model.norm.register_forward_hook(lambda _, __, out: Opaque.apply(out))
    seen = foresee(model, pairs, PROBES, lr=0.1)
    assert (near.mode, seen.mode) == ("difference", "difference")
    for other in (near, seen):  # truncation and rounding of a step of ε^⅓: a few of its squares, ε^⅔ = 2e-5, a token
        np.testing.assert_allclose(other.predicted, exact.predicted, atol=5e-3 * abs(exact.predicted).max())
    with pytest.raises(BadInput, match=r"expected .* forward mode, got .*mode='difference'"):
        foresee(model, pairs, PROBES, lr=0.1, mode="forward")


def test_the_model_is_as_it_was():
    model = tiny("gpt2", torch.float32, dropout=0.3).train()
    model.transformer.h[0].eval()
    modes = [layer.training for layer in model.modules()]
    weights = {name: p.detach().clone() for name, p in model.state_dict().items()}
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    for mode in ("forward", "difference"):
        foresee(model, Pairs(CHOSEN, REJECTED), PROBES, lr=0.1, mode=mode)
    assert torch.equal(torch.rand(3), wanted)  # dropout drew nothing
    assert [layer.training for layer in model.modules()] == modes
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_what_cannot_be_foreseen_is_said_in_one_line():
    model = tiny()
    pairs = Pairs(CHOSEN, REJECTED)
    other = torch.optim.SGD(tiny("gpt2").parameters(), lr=0.1)
    for given, options, words in (
        (pairs, {}, "expected lr= or optimizer="),
        (None, {"lr": 0.1}, "call foresee after backward"),
        (pairs, {"optimizer": other}, "got other parameters"),
        (pairs, {"optimizer": torch.optim.Adagrad(model.parameters())}, "use lr= for plain descent"),
        (Pairs(CHOSEN, REJECTED[:2]), {"lr": 0.1}, "as many chosen as rejected"),
        (Pairs(CHOSEN, REJECTED, np.zeros(3)), {"lr": 0.1}, "expected one a response, 5, got 3"),
        (Pairs(CHOSEN, REJECTED, np.zeros(5), None, objectives.get("ld-dpo")), {"lr": 0.1}, "one number a token"),
        (Pairs(CHOSEN, REJECTED, objective=objectives.get("bs-t")), {"lr": 0.1}, "a push on every token"),
        (pairs, {"lr": 0.1, "mode": "backward"}, "expected auto, forward or difference"),
    ):
        with pytest.raises(BadInput, match=words):
            foresee(model, given, PROBES, **options)
    with pytest.raises(BadInput, match="64 positions, got a sequence of 80"):
        foresee(model, pairs, [Encoded((1,) * 80, 3)], lr=0.1)


def test_agreement_counts_what_is_above_the_noise():
    seen = Foresight(np.array([1.0, -2.0, 3.0, 0.1]), np.zeros(4), np.ones(4), 0.1, 1.0, "forward")
    found = seen.agreement([1.0, -2.0, -3.0, -1e-6], noise=1e-3)
    assert (found.share, found.n, found.of) == (2 / 3, 3, 4)
    assert found.low == pytest.approx(0.2077, abs=1e-4)  # Wilson 1927: 2 of 3
    assert found.high == pytest.approx(0.9385, abs=1e-4)
    assert np.isnan(seen.agreement([0.0] * 4, noise=1.0).share)
    with pytest.raises(BadInput, match="expected 4 finite changes"):
        seen.agreement([1.0])


def test_signs_on_a_pretrained_model_at_usual_rates(data):
    folder = data / "models" / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = json.loads((data / "preference" / "tinystories_1000.json").read_text())[:25]
    texts = [text if isinstance(text, str) else text["text"] for text in texts]
    ids = [tokenizer(text[:600])["input_ids"][:56] for text in texts]
    chosen = [Encoded(tuple(row), 28) for row in ids[:-1]]
    rejected = [Encoded(tuple(row[:28] + other[28:]), 28) for row, other in pairwise(ids)]
    before = score_encoded(model, chosen)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    with torch.no_grad():
        ref = totals(model, [*chosen[:8], *rejected[:8]])
    for _ in range(2):  # the second from the first one's state
        seen = foresee(
            model, Pairs(chosen[:8], rejected[:8], ref[:8].numpy(), ref[8:].numpy()), chosen, optimizer=optimizer
        )
        optimizer.zero_grad()
        dpo(model, ref, chosen[:8], rejected[:8]).backward()
        optimizer.step()
        after = score_encoded(model, chosen)
        found = seen.agreement(after.logp - before.logp, noise=1e-4)
        assert found.n >= 20
        assert found.share >= 0.9
        assert found.error < 0.1
        before = after
