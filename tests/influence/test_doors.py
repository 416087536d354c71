"""Bad input gets one clear line: expected, got, what to do."""

import warnings

import pytest
import torch
from torch import nn

from toyld import influence
from toyld.checked import BadInput
from toyld.influence import Model, teach, update

NET = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
X, Y = torch.zeros(2, 4), torch.tensor([0, 2])


class Returns(nn.Module):
    """A module whose output is what a function makes of the logits."""

    def __init__(self, make):
        super().__init__()
        self.net, self.make = NET, make

    def forward(self, x):
        return self.make(self.net(x))


class Own(torch.optim.SGD):
    """An optimiser whose step is not torch's."""

    def step(self, closure=None):
        super().step(closure)
        return super().step(closure)


class Cube(torch.autograd.Function):
    """An operation without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0] ** 2 * g


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(nn.Linear(2, 2))


def seen(net):
    """The first-order change of one update, by forward mode."""
    model = Model(net)
    return influence.predict(model, update(model, teach(X + 1.0, Y), lr=0.1), X + 1.0)


def later(change, use=lambda model, step: influence.predict(model, step, X)):
    """What a model does whose module was changed after it was made."""
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)).eval()
    model = Model(net)
    step = update(model, teach(X + 1.0, Y), lr=0.1)
    change(net)
    return use(model, step)


def with_advantages(name, advantages):
    sides = {"chosen": (X, Y), "rejected": (X, 2 - Y)}
    return influence.from_objective(name, **sides, reference=NET, old=NET, advantages=advantages)


def clipped(clip):
    return update(Model(NET), teach(X, Y), lr=0.1, clip=clip)


def other():
    return update(Model(nn.Linear(4, 3)), teach(X, Y), lr=0.1)


def rates(lrs):
    return influence.errors(Model(NET), teach(X, Y), X, lrs=lrs)


CASES = {
    "script": (lambda: Model(scripted()), "RecursiveScriptModule '', which is compiled; pass"),
    "rescaling": (
        lambda: Model(nn.Sequential(nn.Embedding(3, 2, max_norm=1.0), nn.Linear(2, 2))),
        "stand still, got Embedding '0' with max_norm",
    ),
    "scaled gradients": (
        lambda: Model(nn.EmbeddingBag(3, 2, scale_grad_by_freq=True)),
        "derivatives, got EmbeddingBag '' with scale_grad_by_freq",
    ),
    "batch statistics": (
        lambda: Model(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 2)).eval()),
        "got BatchNorm1d '0' without running statistics",
    ),
    "attention's dropout": (
        lambda: Model(nn.MultiheadAttention(2, 1, dropout=0.1)),
        "got MultiheadAttention '' in training mode, which makes them random",
    ),
    "recurrent dropout": (lambda: Model(nn.LSTM(2, 2, 2, dropout=0.1)), "got LSTM '' in training mode"),
    "random slopes": (lambda: Model(nn.Sequential(nn.Linear(2, 2), nn.RReLU())), "got RReLU '1' in training mode"),
    "functional dropout": (
        lambda: Model(Returns(nn.functional.dropout))(X),
        "logits that repeat, got others from the same inputs in training mode; call module.eval",
    ),
    "trained since": (lambda: later(nn.Module.train), "got Dropout '1' in training mode"),
    "a parameter replaced since": (
        lambda: later(lambda net: setattr(net[2], "bias", nn.Parameter(torch.zeros(3)))),
        "the parameters it had, got 2.bias replaced since; make a new Model",
    ),
    "a state assigned since": (
        lambda: later(lambda net: net.load_state_dict(net.state_dict(), assign=True)),
        "got 0.weight replaced since",
    ),
    "parametrized since": (
        lambda: later(lambda net: nn.utils.parametrizations.orthogonal(net[0])),
        "got 0.weight replaced since",
    ),
    "a layer replaced since, at other parameters": (
        lambda: later(lambda net: net.__setitem__(2, nn.Linear(8, 3)), lambda model, step: model.at({}, X)),
        "the layers it had, got 2 replaced since",
    ),
    "a layer replaced since": (
        lambda: later(lambda net: net.__setitem__(2, nn.Linear(8, 3))),
        "the layers it had, got 2 replaced since; make a new Model",
    ),
    "no forward mode": (lambda: seen(Returns(Cube.apply)), "with forward mode, got .*jvp.*mode='difference'"),
    "a derivative lost": (
        lambda: seen(Returns(lambda z: torch.autograd.forward_ad.unpack_dual(z).primal)),
        "a derivative along net.0.weight, got none in forward mode.*mode='difference'",
    ),
    "inference mode": (
        lambda: torch.inference_mode()(lambda: update(Model(NET), teach(X, Y), lr=0.1))(),
        "drop no_grad, inference_mode and detach",
    ),
    "an optimiser's own step": (
        lambda: update(Model(NET), teach(X, Y), optimizer=Own(NET.parameters(), lr=0.1)),
        "torch's own step, got Own, which has another; use lr=",
    ),
    "an advantage of no side": (
        lambda: with_advantages("ppo", {"typo": torch.ones(2)}),
        "advantages: expected sides among chosen, rejected, got 'typo'",
    ),
    "an advantage unread": (
        lambda: with_advantages("dpo", {"chosen": torch.ones(2)}),
        "advantages: expected none, got some for dpo, which does not read them; drop them",
    ),
    "an advantage overridden": (
        lambda: with_advantages("grpo", {"chosen": torch.zeros(2), "rejected": torch.ones(2)}),
        "got some for grpo",
    ),
    "an advantage of a target": (
        lambda: influence.from_objective("bs-t", rejected=(X, Y), advantages={"rejected": torch.ones(2)}),
        "advantages: expected none",
    ),
    "not a module": (lambda: Model(lambda x: x), "expected a torch.nn.Module, got function"),
    "nothing trains": (
        lambda: Model(nn.Linear(2, 2).requires_grad_(False)),
        "parameters that require grad, got none of 2; call requires_grad_",
    ),
    "frozen by name": (
        lambda: Model(nn.Linear(2, 2).requires_grad_(False), parameters="weight"),
        "those that require grad, got weight frozen; unfreeze",
    ),
    "unknown name": (lambda: Model(NET, parameters=["head.*"]), "names among 0.weight, .*got 'head"),
    "mixed devices": (
        lambda: Model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))),
        "one device, got cpu, meta; move",
    ),
    "mixed dtypes": (
        lambda: Model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())),
        "one dtype, got torch.float32, torch.float64",
    ),
    "dropout": (lambda: Model(nn.Sequential(nn.Dropout(0.1), nn.Linear(2, 2))), "repeat, got Dropout '0' in training"),
    "batch norm": (
        lambda: Model(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))),
        "got BatchNorm1d '0' in training mode, which makes them dependent on the batch",
    ),
    "inputs elsewhere": (lambda: Model(NET)(X.to("meta")), "on the module's device cpu, got meta; move"),
    "inputs of another dtype": (lambda: Model(NET)(X.double()), "dtype torch.float32, got torch.float64; convert"),
    "inputs no tensor": (lambda: Model(NET)([[0.0] * 4]), "a tensor, .* got list; convert"),
    "no examples": (lambda: Model(NET)(X[:0]), r"at least one example .* got shape \(0, 4\)"),
    "probabilities": (
        lambda: Model(Returns(lambda z: z.softmax(-1)))(X),
        "expected logits, got probabilities .*rows sum to 1.*; return what softmax",
    ),
    "classes": (lambda: Model(Returns(lambda z: z.argmax(-1, keepdim=True).repeat(1, 3)))(X), "got torch.int64"),
    "one score": (lambda: Model(Returns(lambda z: z[:, :1]))(X), r"got shape \(2, 1\); return all classes"),
    "a pair": (lambda: Model(Returns(lambda z: (z, z)))(X), "output with .logits.*got tuple; wrap"),
    "nan": (lambda: Model(Returns(lambda z: z * float("nan")))(X), "finite logits"),
    "detached": (
        lambda: update(Model(Returns(lambda z: z.detach())), teach(X, Y), lr=0.1),
        "logits that depend on the parameters.*drop no_grad",
    ),
    "labels too large": (lambda: update(Model(NET), teach(X, Y + 1), lr=0.1), r"labels: expected 0 … 2.*got 3"),
    "labels of another shape": (lambda: update(Model(NET), teach(X, Y[:1]), lr=0.1), r"shape \(2,\).*got \(1,\)"),
    "float labels": (lambda: update(Model(NET), teach(X, Y.float()), lr=0.1), "integers, got torch.float32"),
    "labels elsewhere": (lambda: update(Model(NET), teach(X, Y.to("meta")), lr=0.1), "device of the logits, cpu, got"),
    "no reference": (
        lambda: influence.from_objective("dpo", chosen=(X, Y), rejected=(X, 2 - Y)),
        r"dpo: this objective reads batch.ref_chosen, which is None; pass reference= \(the module before training\)",
    ),
    "no rejected": (lambda: influence.from_objective("simpo", chosen=(X, Y)), "simpo: .*batch.rejected.*; pass"),
    "no old policy": (lambda: influence.from_objective("ppo", chosen=(X, Y)), "ppo: .*old_chosen.*; pass old="),
    "no side": (lambda: influence.from_objective("sft"), "expected chosen=.*got neither"),
    "ragged sides": (
        lambda: influence.from_objective("simpo", chosen=(X, Y), rejected=(X[:, :3], Y)),
        r"sides of one shape .*\(2, 4\), \(2, 3\); pad",
    ),
    "a loss with axes": (lambda: update(Model(NET), influence.Lesson(X, lambda z: z), lr=0.1), "one number.*mean"),
    "a constant loss": (
        lambda: update(Model(NET), influence.Lesson(X, lambda z: z.detach().sum()), lr=0.1),
        "function of the logits, got a constant",
    ),
    "no rate": (lambda: update(Model(NET), teach(X, Y)), "lr= or optimizer=, got neither"),
    "a bad rate": (lambda: update(Model(NET), teach(X, Y), lr=-1.0), r"lr: expected a finite number > 0, got -1"),
    "strange optimiser": (
        lambda: update(Model(NET), teach(X, Y), optimizer=torch.optim.Adagrad(NET.parameters())),
        "SGD, RMSprop, Adam, got Adagrad",
    ),
    "another's optimiser": (
        lambda: update(Model(NET), teach(X, Y), optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)),
        "one of the module's parameters",
    ),
    "observed labels of another shape": (
        lambda: influence.blocks(Model(NET), update(Model(NET), teach(X, Y), lr=0.1), X).tokens(Y[:1]),
        r"shape \(2,\), one per observed row, got \(1,\)",
    ),
    "a kernel too large": (
        lambda: influence.kernel(Model(nn.Linear(1, 3000)), torch.zeros(9, 1), torch.zeros(9, 1)),
        "K: expected at most 2 GiB, got 2.7; take fewer",
    ),
    "a negative clip": (lambda: clipped(-1.0), r"clip: expected a finite number > 0, got -1\.0; leave"),
    "a clip of nan": (lambda: clipped(float("nan")), "clip: expected a finite number > 0, got nan"),
    "a clip that is no number": (lambda: clipped("x"), "clip: expected a finite number > 0, got 'x'"),
    "a list of labels": (lambda: teach(X, [0, 2]), "labels: expected a tensor of integers, got list; convert"),
    "a list of labels in a pair": (
        lambda: influence.from_objective("sft", chosen=(X, [0, 2])),
        "labels: expected a tensor of integers, got list",
    ),
    "nothing taught": (lambda: teach(X, torch.full((2,), -100)), "labels: expected some that are taught, got −100"),
    "weights of another length": (
        lambda: teach(X, Y, weight=torch.ones(3)),
        r"weight: expected a number or a tensor of shape \(2,\), one per example, got shape \(3,\)",
    ),
    "a list of weights": (lambda: teach(X, Y, weight=[1.0, 1.0]), r"weight: .* got list"),
    "predict another's step": (
        lambda: influence.predict(Model(NET), other(), X),
        r"step: expected an update of this model, got one of weight \(3, 4\) where the model has no such",
    ),
    "another's step of other shapes": (
        lambda: influence.actual(Model(nn.Linear(4, 5)), other(), X),
        r"got one of weight \(3, 4\) where the model has shape \(5, 4\); make it with update",
    ),
    "blocks of another's step": (lambda: influence.blocks(Model(NET), other(), X), "step: expected an update of this"),
    "blocks of a part's step": (
        lambda: influence.blocks(Model(NET), update(Model(NET, parameters="2.*"), teach(X, Y), lr=0.1), X),
        "step: expected an update of all parameters of the model, got one without 0.bias",
    ),
    "the safe step of another's": (lambda: influence.safe_step(Model(NET), other(), X), "step: expected an update"),
    "one rate": (lambda: rates([0.1]), r"lrs: expected at least two different finite rates > 0, got \[0.1\]"),
    "one rate twice": (lambda: rates([0.1, 0.1]), "lrs: expected at least two different"),
    "a rate of nought": (lambda: rates([0.0, 0.1]), "lrs: expected at least two different"),
    "a rate that is no list": (lambda: rates(0.1), "lrs: expected at least two different finite rates > 0, got 0.1"),
    "unknown mode": (
        lambda: influence.predict(Model(NET), update(Model(NET), teach(X, Y), lr=0.1), X, mode="jvp"),
        "'forward' or 'difference', got 'jvp'",
    ),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_bad_input_gets_one_clear_line(case):
    call, line = CASES[case]
    with pytest.raises(BadInput, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_holds_tensors_is_shown_in_one_line():
    lesson = teach(X, Y)
    step = update(Model(NET), lesson, lr=0.1)
    assert repr(lesson) == "Lesson(inputs (2, 4))"
    assert repr(teach({"ids": X, "mask": X[:, 0]}, Y)) == "Lesson(inputs (2, 4), (2,))"
    assert repr(step) == "Update(lr=0.1, 4 parameters)"
    assert repr(influence.blocks(Model(NET), step, X)) == "Blocks(A (2, 3, 3), K (2, 3, 2, 3), G (2, 3))"
