"""The transformer, held to torch's own encoder layer, and what its shape says of it."""

import pytest
import torch

from toyld.checked import BadInput
from toyld.tiny import Shape, Transformer

SHAPE = Shape(classes=11, places=7, width=12, depth=2, heads=3, expand=2)


@pytest.fixture(scope="module")
def model():
    """One with every parameter away from its start."""
    model = Transformer(SHAPE, seed=3).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return model


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(1))


def torchs(block):
    """torch's own pre-norm layer with the weights of one of our blocks."""
    layer = torch.nn.TransformerEncoderLayer(
        12,
        3,
        dim_feedforward=24,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    own = block.state_dict()
    names = {
        "self_attn.in_proj_": "qkv.", "self_attn.out_proj.": "out.", "linear1.": "up.", "linear2.": "down.",
        "norm1.": "before.", "norm2.": "middle.",
    }  # fmt: skip
    layer.load_state_dict({a + end: own[b + end] for a, b in names.items() for end in ("weight", "bias")})
    return layer


def test_the_model_is_torchs_encoder_with_a_causal_mask(model, tokens):
    x = model.tokens.weight[tokens] + model.places.weight[:7]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    for block in model.blocks:
        x = torchs(block)(x, src_mask=mask, is_causal=True)
    last = torch.nn.functional.layer_norm(x, (12,), model.last.weight, model.last.bias)
    torch.testing.assert_close(model(tokens), last @ model.head.weight.T, rtol=1e-12, atol=1e-12)


def test_no_token_sees_those_behind_it(model, tokens):
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 11
    assert torch.equal(model(tokens)[:, :4], model(other)[:, :4])
    assert (model(tokens)[:, 4:] - model(other)[:, 4:]).abs().amin(-1).max() > 0


def test_a_shape_knows_every_parameter_by_name_and_in_order():
    named = dict(Transformer(SHAPE).named_parameters())
    assert {name: tuple(p.shape) for name, p in named.items()} == SHAPE.sizes
    assert list(named) == list(SHAPE.sizes)
    assert sum(p.numel() for p in named.values()) == SHAPE.parameters
    assert list(named)[-1] == "head.weight"
    assert SHAPE.parameters - SHAPE.head == named["head.weight"].numel()


def test_an_untrained_model_believes_in_every_token_alike_and_its_seed_says_which_it_is(tokens):
    assert not Transformer(SHAPE, seed=0)(tokens).any()
    first, again, other = (Transformer(SHAPE, seed=seed).tokens.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 10}, "expected a multiple of the 3 heads, got 10"),
        ({"depth": 0}, "depth: expected at least 1, got 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused_in_one_line(wrong, says):
    with pytest.raises(BadInput, match=says) as caught:
        Shape(**{"classes": 11, "places": 7, "width": 12, "heads": 3} | wrong)
    assert "\n" not in str(caught.value)
