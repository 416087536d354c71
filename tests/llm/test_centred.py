"""Centred updates: against the formula by autograd, against the stacks of rung tiny, in models of several kinds."""

import doctest

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld.checked import BadInput
from toyld.llm import centred as module
from toyld.llm.centred import Means, centred, linear, measure, padded
from toyld.llm.encode import Encoded
from toyld.tiny.stacks import Centre
from toyld.tiny.stacks import linear as stacked

SIZES = {"vocab_size": 37, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = [Encoded((1, 5, 9, 12, 30, 7), 2), Encoded((1, 4, 4, 8), 3), Encoded((2, 33, 6, 21, 9), 1)]
TOLERANCE = {"rtol": 1e-9, "atol": 1e-12}  # float64


def llama(tied=False, bias=False):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        **SIZES, intermediate_size=24, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied,
        attention_bias=bias, mlp_bias=bias,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():  # means that are not near 0
            p.add_(0.2 * torch.rand_like(p))
    return model


def given():
    ids, there, read = padded(TEXTS)
    labels = torch.full_like(ids, -100)
    labels[:, 1:] = torch.where(read[:, :-1], ids[:, 1:], -100)
    return {"input_ids": ids, "attention_mask": there, "labels": labels}, read


def gradients(model, **told):
    """Parameter → gradient of the loss, and what went in and out of each linear layer: (x, dL/dy)."""
    model.zero_grad()
    seen, handles = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D":

            def hook(layer, args, y, name=name):
                seen[name] = [args[0].detach(), None]
                y.register_hook(lambda g: seen[name].__setitem__(1, g))

            handles.append(layer.register_forward_hook(hook))
    inputs, _ = given()
    out = model(**inputs, **told)
    out.loss.backward()
    for handle in handles:
        handle.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, seen, out.logits


def formula(x, g, mu, how):
    """Σ g (x − μ)ᵀ or Σ g (x − μμᵀx/‖μ‖²)ᵀ."""
    x, g = x.flatten(0, -2), g.flatten(0, -2)
    told = x - mu if how == "subtract" else x - torch.outer(x @ mu, mu) / (mu @ mu)
    return g.T @ told


@pytest.mark.parametrize("how", ["subtract", "project"])
@pytest.mark.parametrize("fixed", [False, True])
def test_every_linear_layer_learns_by_the_formula_and_everything_else_as_ever(how, fixed):
    model = llama(bias=True)
    plain, seen, logits = gradients(model)
    means = measure(model, [Encoded((3, 17, 11, 25), 1)]) if fixed else None
    with centred(model, how=how, mean=means) as what:
        less, _, again = gradients(model)
    assert torch.equal(again, logits)
    _, read = given()
    layers = {f"{name}.weight" for name in what.layers}
    assert layers == {f"{name}.weight" for name in linear(model)}
    assert len(layers) == 15
    for name in what.layers:
        x, g = seen[name]
        mu = means.vectors[name] if fixed else x[read].mean(0)
        torch.testing.assert_close(less[f"{name}.weight"], formula(x, g, mu, how), **TOLERANCE)
        changed = (less[f"{name}.weight"] - plain[f"{name}.weight"]).norm()
        assert changed > 1e-6 * plain[f"{name}.weight"].norm()
    for name in plain.keys() - layers:  # biases, norms, the embedding: what flows back is what flowed
        torch.testing.assert_close(less[name], plain[name], **TOLERANCE)
    assert what.rest == ("model.embed_tokens.weight",)
    after, _, _ = gradients(model)
    assert all(torch.equal(after[name], plain[name]) for name in plain)


def test_the_embedding_keeps_its_part_where_the_head_is_tied_to_it():
    model, loose = llama(tied=True), llama(tied=False)
    loose.load_state_dict(model.state_dict())
    apart, _, _ = gradients(loose)
    with centred(loose, where="head"):
        head = gradients(loose)[0]["lm_head.weight"]
    with centred(model, where="head") as what:
        both = gradients(model)[0]["model.embed_tokens.weight"]
    assert what.layers == ("lm_head",)
    torch.testing.assert_close(both, apart["model.embed_tokens.weight"] + head, **TOLERANCE)
    assert (head - apart["lm_head.weight"]).norm() > 1e-3 * head.norm()


@pytest.mark.parametrize("how", ["subtract", "project"])
def test_one_layer_is_that_of_the_stacks_of_rung_tiny(how):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 5).double()
    x, back = torch.randn(7, 4, dtype=torch.float64, requires_grad=True), torch.randn(7, 5, dtype=torch.float64)
    weight = layer.weight.detach()[None].requires_grad_()
    (wanted,) = torch.autograd.grad(stacked(weight, None, x[None], Centre("all", how), None), weight, back[None])
    with centred(layer, how=how):
        found, through = torch.autograd.grad(layer(x), (layer.weight, x), back)
    torch.testing.assert_close(found, wanted[0], **TOLERANCE)
    torch.testing.assert_close(through, back @ layer.weight.detach(), **TOLERANCE)


def test_layers_of_gpt2_whose_weights_stand_the_other_way_learn_by_the_formula_too():
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=37, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=1)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    _, seen, _ = gradients(model)
    with centred(model) as what:
        less, _, _ = gradients(model)
    _, read = given()
    x, g = seen["transformer.h.0.mlp.c_fc"]
    wanted = formula(x, g, x[read].mean(0), "subtract").T
    torch.testing.assert_close(less["transformer.h.0.mlp.c_fc.weight"], wanted, **TOLERANCE)
    assert "transformer.wpe.weight" in what.rest


def test_recomputed_layers_learn_the_same_and_frozen_ones_nothing():
    model = llama()
    with centred(model):
        kept, _, _ = gradients(model)
        model.train().gradient_checkpointing_enable()
        model.zero_grad()
        inputs, _ = given()
        loss = model(**inputs).loss
        with torch.no_grad():  # a reference, between a pass and its gradient: its tokens are not asked about
            model(**{name: x[:1, :4] for name, x in inputs.items()})
        loss.backward()
        again = {name: p.grad for name, p in model.named_parameters()}
    for name in kept:
        torch.testing.assert_close(again[name], kept[name], **TOLERANCE)
    model.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.requires_grad_(True)
    assert list(linear(model)) == ["model.layers.0.mlp.up_proj"]


@pytest.mark.parametrize("how", ["subtract", "project"])
def test_a_loss_that_takes_the_heads_matrix_gets_the_same_gradient(how):
    """As TRL's do: body, then `head.weight` and `head.bias` in a product of their own."""
    model = llama()

    def fused(self, input_ids, attention_mask, labels, fused_lm_head=False, **kwargs):
        if not fused_lm_head:
            return own(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        h = self.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        head = self.get_output_embeddings()
        z = torch.nn.functional.linear(h, head.weight, head.bias)
        loss = torch.nn.functional.cross_entropy(
            z[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
        )  # in float32, as the model's own is
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=z)

    own = model.forward
    model.forward = fused.__get__(model)
    with centred(model, how=how):
        wanted, _, _ = gradients(model)
        found, _, _ = gradients(model, fused_lm_head=True)
        assert not {"weight", "bias"} & set(vars(model.lm_head))
    plain, _, _ = gradients(model)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **TOLERANCE)
    assert (found["lm_head.weight"] - plain["lm_head.weight"]).norm() > 1e-3 * plain["lm_head.weight"].norm()


def test_a_loss_that_hides_the_head_is_refused():
    model = llama()
    own = model.model.forward

    def hidden(input_ids, attention_mask, labels):
        h = own(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return transformers.modeling_outputs.CausalLMOutput(loss=(h @ model.lm_head.weight.T).mean())

    model.forward = hidden
    inputs, _ = given()
    with centred(model), pytest.raises(BadInput, match="use_liger_kernel=False"):
        model(**inputs)
    with centred(model), torch.no_grad():
        assert model(**inputs).loss is not None  # nothing learns: nothing is lost


def test_means_are_over_the_tokens_before_responses_and_components_are_none_of_them():
    model = llama()
    _, seen, _ = gradients(model)
    _, read = given()
    found, component = measure(model, TEXTS, batch_size=2), measure(model, TEXTS, component=True, batch_size=3)
    for name, (x, _) in seen.items():
        rows = x[read]
        torch.testing.assert_close(found.vectors[name], rows.mean(0), **TOLERANCE)
        assert found.share[name] == pytest.approx(float(rows.mean(0).square().sum() / rows.square().sum(1).mean()))
        v = component.vectors[name]
        spread = torch.linalg.svdvals(rows - rows.mean(0))[0] ** 2 / len(rows)
        assert float(v @ v) == pytest.approx(float(spread))
        off = rows - rows.mean(0)
        torch.testing.assert_close((off @ v).square().mean(), (v @ v) ** 2, rtol=1e-6, atol=0)
    turned = found.turned(4)
    assert all(turned.vectors[n].norm().item() == pytest.approx(v.norm().item()) for n, v in found.vectors.items())
    assert all(abs(float(turned.vectors[n] @ v)) < 0.9 * float(v @ v) for n, v in found.vectors.items())


def test_what_cannot_be_centred_is_named():
    model = llama()
    with pytest.raises(BadInput, match="expected subtract or project, got 'halve'"), centred(model, how="halve"):
        pass
    with pytest.raises(BadInput, match="got none of lm_head"), centred(model, where="head", mean=Means({}, {})):
        pass
    with centred(model), pytest.raises(BadInput, match="centred already"), centred(model):
        pass
    with pytest.raises(BadInput, match="expected linear layers that train, got none"):
        linear(model.requires_grad_(False))
    with pytest.raises(BadInput, match="at least one text"):
        measure(model, [])


def test_examples_in_docstrings_hold():
    assert doctest.testmod(module).failed == 0
