"""The stacked optimisers against torch's own, each member with a rate of its own."""

import pytest
import torch

from toyld.checked import BadInput
from toyld.tiny import Optimizer

RATES = (0.1, 0.01, 0.003)
RULES = {
    "sgd": (Optimizer("sgd"), torch.optim.SGD, {}),
    "heavy ball": (Optimizer("sgd", momentum=0.9), torch.optim.SGD, {"momentum": 0.9}),
    "rmsprop": (Optimizer("rmsprop", alpha=0.9), torch.optim.RMSprop, {"alpha": 0.9}),
    "rmsprop's defaults": (Optimizer("rmsprop"), torch.optim.RMSprop, {}),
    "adamw": (
        Optimizer("adamw", betas=(0.8, 0.95), decay=0.1), torch.optim.AdamW,
        {"betas": (0.8, 0.95), "weight_decay": 0.1},
    ),
    "adamw's defaults": (Optimizer("adamw"), torch.optim.AdamW, {"weight_decay": 0.0}),
    "clipped": (Optimizer("adamw", clip=0.5), torch.optim.AdamW, {"weight_decay": 0.0, "clip": 0.5}),
    "clipped descent": (Optimizer("sgd", clip=0.5), torch.optim.SGD, {"clip": 0.5}),
}  # fmt: skip


def gradient(p, k):
    """Of a loss whose size changes from 0.01 to 10, so that clipping sets in and out."""
    return 10.0 ** (k % 4 - 2) * (torch.sin(p * 3.0) + 0.2 * p)


@pytest.mark.parametrize("name", RULES)
def test_twelve_updates_are_torchs_own(name):
    rule, theirs, options = RULES[name]
    first = torch.randn(3, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat, rates = first.clone(), torch.tensor(RATES, dtype=torch.float64)[:, None]
    memory = rule.memory(flat)
    for k in range(12):
        rule.step(flat, gradient(flat, k), memory, rates)
    clip = options.get("clip")
    for s, lr in enumerate(RATES):
        p = torch.nn.Parameter(first[s].clone())
        peer = theirs([p], lr=lr, **{key: value for key, value in options.items() if key != "clip"})
        for k in range(12):
            p.grad = gradient(p.detach(), k)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_([p], clip)
            peer.step()
        torch.testing.assert_close(flat[s], p.detach(), rtol=1e-12, atol=1e-12)
        assert (flat[s] - first[s]).abs().max() > 1e-3


def test_memory_is_taken_up_and_not_written_into():
    rule, flat = Optimizer("adamw"), torch.zeros(2, 5)
    memory = rule.memory(flat)
    mine = rule.resumed(flat, memory)
    rule.step(flat, torch.ones(2, 5), mine, torch.ones(2, 1))
    assert int(mine["count"]) == 1
    assert int(memory["count"]) == 0
    assert not memory["mean"].any()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Optimizer("adam"), "expected one of sgd, rmsprop, adamw, got 'adam'"),
        (lambda: Optimizer(clip=0.0), "expected a norm > 0, got 0.0"),
        (
            lambda: Optimizer("rmsprop").resumed(torch.zeros(2, 5), Optimizer("rmsprop").memory(torch.zeros(3, 5))),
            r"expected square \(2, 5\), got square \(3, 5\)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(make, says):
    with pytest.raises(BadInput, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)
