"""The structured kernel is that of torch's own Jacobian, whatever the layers do with their parameters."""

import functools
import importlib
import importlib.util
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from toyld.checked import BadInput
from toyld.influence import Model, blocks, estimated, frobenius, jacobian, kernel, teach, update

_spec = importlib.util.spec_from_file_location("influence_networks", Path(__file__).parent / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)
network, NAMES, V = networks.network, sorted(networks.MAKE), networks.V
recording = importlib.import_module("toyld.influence.recording")
contraction = importlib.import_module("toyld.influence.kernel")
BEYOND = {"attention": {"place"}, "tied": {"place"}, "lora": {"3.lora_A", "3.lora_B"}}  # parameters no layer shows


def rows(net, x):
    """Jacobian of all logits by torch's own functional Jacobian, one input at a time, (N·R, entries) by name."""
    names = [n for n, p in net.named_parameters() if p.requires_grad]
    values = tuple(p.detach() for p in net.parameters() if p.requires_grad)
    found = []
    for i in range(len(x)):

        def z(*theta, one=x[i : i + 1]):
            return torch.func.functional_call(net, dict(zip(names, theta, strict=True)), (one,))

        parts = torch.autograd.functional.jacobian(z, values)
        found.append([p.reshape(z(*values).numel(), -1) for p in parts])
    return dict(zip(names, map(torch.cat, zip(*found, strict=True)), strict=True))


@functools.cache
def known(name):
    """A network, its inputs, and the Jacobians at both."""
    net, observed, taught, labels = network(name)
    return net, observed, taught, labels, rows(net, observed), rows(net, taught)


def assert_kernel(found, left, right, metric=None, tol=1e-12):
    metric = metric or dict.fromkeys(left, 1.0)
    scale = {n: d.flatten() if isinstance(d, torch.Tensor) else d for n, d in metric.items()}
    want = sum((left[n] * scale[n]) @ right[n].T for n in left)
    assert want.abs().max() > 1e-2
    torch.testing.assert_close(found.reshape(want.shape), want, rtol=0, atol=tol * max(1.0, float(want.abs().max())))


def beyond(monkeypatch):
    """Names for which autograd's Jacobian is called."""
    names, original = set(), recording.rows_of
    monkeypatch.setattr(recording, "rows_of", lambda m, x, asked: names.update(asked) or original(m, x, asked))
    return names


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_that_of_the_jacobian(name, monkeypatch):
    net, observed, taught, _, left, right = known(name)
    seen = beyond(monkeypatch)
    assert_kernel(kernel(Model(net), observed, taught), left, right)
    assert seen == BEYOND.get(name, set())
    metric = {n: torch.rand_like(p) for n, p in Model(net).theta.items()}
    assert_kernel(kernel(Model(net), observed, taught, metric=metric), left, right, metric)
    numbers = {n: 0.5 + i for i, n in enumerate(metric)}
    assert_kernel(kernel(Model(net), observed, taught, metric=numbers), left, right, numbers)
    for n, j in jacobian(Model(net), observed).items():
        torch.testing.assert_close(j.reshape(left[n].shape), left[n], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cost", [0.0, float("inf")])
@pytest.mark.parametrize("name", ["lenet", "tied", "attention", "mlp"])
def test_products_of_factors_and_products_of_rows_agree(name, cost, monkeypatch):
    net, observed, taught, _, left, right = known(name)
    monkeypatch.setattr(contraction, "ROWS", cost)  # of rows: 0 = always, ∞ = never
    used = []
    original = contraction._ghost
    monkeypatch.setattr(contraction, "_ghost", lambda *args: used.append(args[1].key) or original(*args))
    assert_kernel(kernel(Model(net), observed, taught), left, right)
    metric = {n: torch.rand_like(p) for n, p in net.named_parameters()}
    assert_kernel(kernel(Model(net), observed, taught, metric=metric), left, right, metric)
    same = dict.fromkeys(metric, 2.5)
    assert_kernel(kernel(Model(net), observed, taught, metric=same), left, right, same)
    assert bool(used) == (cost > 0.0)


@pytest.mark.parametrize("room", [8, 20_000])
@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_little_room_changes_nothing(name, room, monkeypatch):
    net, observed, taught, _, left, right = known(name)
    monkeypatch.setattr(contraction, "ROOM", room)
    pieces = list(contraction.pairs(Model(net), observed, taught))
    assert len(pieces) == (1 if (name, room) == ("mlp", 20_000) else 6)
    assert_kernel(kernel(Model(net), observed, taught), left, right)


def test_blocks_are_smaller_than_what_factors_are_made_of(monkeypatch):
    net, observed, taught, _, left, right = known("mlp")
    monkeypatch.setattr(contraction, "ROOM", 8 * 160)  # all factors of the last layer at once, K pair by pair
    model = Model(net, parameters="5.*")
    assert len(list(contraction.pairs(model, observed, taught))) == 6
    part = [{n: j for n, j in side.items() if n in model.theta} for side in (left, right)]
    assert_kernel(kernel(model, observed, taught), *part)


class Does(nn.Module):
    """A module of some layers that a function combines."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.does = forward

    def forward(self, x):
        return self.does(self, x)


def _attend(m, x):
    return m.head(m.attend(x, x, x, need_weights=False)[0].mean(1))


def _mixing(m, x):  # the sequence stands first inside
    return m.b(torch.tanh(m.a(x.transpose(0, 1)))).transpose(0, 1)


def _share(first, second, name):
    setattr(second, name, getattr(first, name))
    return second


def _normalised(layer):
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        return nn.utils.weight_norm(layer)


def _two(m, x):
    return m.b(torch.tanh(m.a(x)))


def _three(m, x):
    return m.c(torch.tanh(m.b(torch.tanh(m.a(x)))))


# What the module does, the shape of one input (None: tokens), and the parameters that no layer shows.
STRANGE = {
    "a layer called twice": (lambda: Does(lambda m, x: m.b(torch.tanh(m.a(torch.tanh(m.a(x))))),
                                          a=nn.Linear(7, 7), b=nn.Linear(7, V)), (7,), set()),
    "a weight used again outside its layer": (lambda: Does(lambda m, x: m.b(torch.tanh(m.a(x)) @ m.a.weight),
                                              a=nn.Linear(7, 7), b=nn.Linear(7, V)), (7,), {"a.weight", "a.bias"}),
    "in place": (lambda: nn.Sequential(nn.Linear(7, 9), nn.ReLU(inplace=True), nn.Linear(9, V)), (7,), set()),
    "one bias of two layers": (lambda: Does(_three, a=(a := nn.Linear(7, 7)),
                               b=_share(a, nn.Linear(7, 7), "bias"), c=nn.Linear(7, V)), (7,), set()),
    "one weight of two layers": (lambda: Does(_three, a=(a := nn.Linear(7, 7)),
                                 b=_share(a, nn.Linear(7, 7, bias=False), "weight"), c=nn.Linear(7, V)), (7,), set()),
    "torch's attention": (lambda: Does(_attend, attend=nn.MultiheadAttention(6, 2, batch_first=True),
                          head=nn.Linear(6, V)), (4, 6), {"attend.in_proj_weight", "attend.in_proj_bias",
                                                          "attend.out_proj.weight", "attend.out_proj.bias"}),
    "positions": (lambda: Does(lambda m, x: m.head(torch.tanh(m.words(x) + m.places(torch.arange(4)))),
                  words=nn.Embedding(V, 6), places=nn.Embedding(4, 6), head=nn.Linear(6, V)), None, set()),
    "padding": (lambda: Does(lambda m, x: m.head(torch.tanh(m.words(x).sum(1))),
                words=nn.Embedding(V, 6, padding_idx=0), head=nn.Linear(6, V)), None, set()),
    "the sequence first": (lambda: Does(_mixing, a=nn.Linear(3, 6), b=nn.Linear(6, V)), (4, 3), set()),
    "frozen weight": (lambda: Does(_two,
                                   a=nn.Linear(7, 7), b=nn.Linear(7, V)), (7,), set()),
    "convolutions": (lambda: nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.Tanh(),
        nn.Conv1d(4, 4, 2, dilation=2, bias=False), nn.Flatten(), nn.Linear(12, V)), (2, 9), set()),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, V)),
                            (2, 4, 4), {"0.weight", "0.bias"}),
    "norms": (lambda: nn.Sequential(nn.Linear(7, 8), nn.RMSNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh(),
                                    nn.Linear(8, V)), (7,), set()),
    "a recurrent layer": (lambda: Does(lambda m, x: m.head(m.cell(x)[0]), cell=nn.RNN(3, 4, batch_first=True),
                          head=nn.Linear(4, V)), (4, 3), {f"cell.{n}_l0" for n in
                                                          ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}),
    "a parameter without use": (lambda: Does(lambda m, x: m.b(x), a=nn.Linear(7, 7), b=nn.Linear(7, V)), (7,), set()),
    "normalised weights": (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(7, 6)), nn.Tanh(),
                           nn.Linear(6, V)), (7,), {f"0.parametrizations.weight.original{i}" for i in (0, 1)}),
    "weights normalised before every call": (lambda: nn.Sequential(_normalised(nn.Linear(7, 6)), nn.Tanh(),
                                             nn.Linear(6, V)), (7,), {"0.weight_g", "0.weight_v"}),
    "a layer used without a call": (lambda: Does(lambda m, x: nn.functional.linear(x, m.a.weight, m.a.bias),
                                    a=nn.Linear(7, V)), (7,), {"a.weight", "a.bias"}),
    "sparse gradients": (lambda: Does(lambda m, x: m.head(torch.tanh(m.words(x))),
                         words=nn.Embedding(V, 6, sparse=True), head=nn.Linear(6, V)), None, set()),
    "sparse gradients of a weight with two uses": (
        lambda: Does(lambda m, x: m.head(torch.tanh(m.words(x))) * m.words.weight[0, 0],
                     words=nn.Embedding(V, 6, sparse=True), head=nn.Linear(6, V)), None, {"words.weight"}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(STRANGE))
def test_no_use_of_a_parameter_is_overlooked(name, monkeypatch):
    make, shape, hidden = STRANGE[name]
    torch.manual_seed(0)
    net = make().double()
    if name == "frozen weight":
        net.a.weight.requires_grad_(False)
    x = torch.randint(V, (4, 4)) if shape is None else torch.randn(4, *shape, dtype=torch.float64)
    if name == "padding":
        x[:, 0] = 0
    seen = beyond(monkeypatch)
    found = kernel(Model(net), x[:2], x[1:])
    for layer in net.modules():
        if isinstance(layer, nn.Embedding):
            layer.sparse = False  # torch's functional Jacobian cannot do with them
    assert_kernel(found, rows(net, x[:2]), rows(net, x[1:]))
    assert seen == hidden


def _later(m, x):  # the second of three inputs sees the first
    h = m.a(x)
    return m.b(torch.tanh(torch.cat([h[:1], h[1:2] + h[:1], h[2:]])))


MIXED = {
    "their mean": (lambda m, x: m.b(torch.tanh(m.a(x) - m.a(x).mean(0))), "a change of .* beside"),
    "attention": (lambda m, x: m.b(torch.softmax(m.a(x) @ m.a(x).T, -1) @ x), "a change of .* beside"),
    "a mean without gradient": (lambda m, x: m.b(m.a(x) - m.a(x).mean(0).detach()), "a change of .* beside"),
    "one of three": (_later, "a change of .* beside"),
    "statistics": (lambda m, x: m.b(nn.functional.batch_norm(m.a(x), None, None, training=True)), "statistics of the"),
    "all in one": (
        lambda m, x: m.b(m.a(x)).unsqueeze(1).expand(-1, len(x), -1),
        r"got shape \(1, 3, 5\) beside \(1, 1",
    ),
}


@pytest.mark.parametrize("call", [kernel, frobenius, estimated])
@pytest.mark.parametrize("how", sorted(MIXED))
def test_inputs_that_see_each_other_are_refused(how, call):
    does, line = MIXED[how]
    torch.manual_seed(0)
    net = Does(does, a=nn.Linear(7, 7), b=nn.Linear(7, V))
    model = Model(net.double().eval(), parameters=["a.*", "b.*"])
    x = torch.randn(3, 7, dtype=torch.float64)
    with pytest.raises(BadInput, match="inputs see each other: expected logits of one input .*" + line) as caught:
        call(model, x, x)
    assert "\n" not in str(caught.value)


def test_frozen_layers_may_not_mix_inputs_either():
    net = Does(MIXED["their mean"][0], a=nn.Linear(7, 7).requires_grad_(False), b=nn.Linear(7, V)).double()
    x = torch.randn(3, 7, dtype=torch.float64)
    with pytest.raises(BadInput, match="inputs see each other"):
        kernel(Model(net), x[:1], x[1:])
    assert estimated(Model(net), x[:1], x[1:2], projections=2).value.isfinite().all()  # each by itself


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hidden_use_is_noticed_where_it_is_above_rounding(dtype, monkeypatch):
    """z = (1 + h) W x, h of it where no layer shows: h is the error relative to the sum of the terms' sizes."""
    torch.manual_seed(0)
    x, layer, seen = torch.randn(1, 7, dtype=dtype), nn.Linear(7, V, bias=False).to(dtype), beyond(monkeypatch)
    for h, noticed in ((128.0, set()), (512.0, {"a.weight"})):
        part = h * torch.finfo(dtype).eps
        net = Does(lambda m, x, part=part: m.a(x) + part * nn.functional.linear(x, m.a.weight), a=layer)
        found = kernel(Model(net), x, x)[0, 0, 0, 0]
        assert seen == noticed
        assert float(found) == pytest.approx(float(x @ x.T), rel=600 * 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_overlooks_no_use_either(dtype):
    torch.manual_seed(0)
    hidden = Does(lambda m, x: m.a(x) + nn.functional.linear(torch.tanh(3 * x), m.a.weight), a=nn.Linear(6, V))
    apart = Does(_two, a=nn.Linear(6, 6), b=nn.Linear(6, V))
    x = torch.randn(3, 6).to(dtype)
    for net in (hidden.to(dtype), apart.to(dtype)):
        found = kernel(Model(net), x, x).double()
        net.double()
        left = rows(net, x.double())
        want = sum(j @ j.T for j in left.values()).reshape(found.shape)
        assert (found - want).abs().max() < 8 * torch.finfo(dtype).eps * want.abs().max()  # some roundings in a row


def test_room_counts_what_no_layer_shows():
    """Rows of the Jacobian are as large as the parameter, of a layer that is never called as of any other."""
    torch.manual_seed(0)
    net = Does(_attend, attend=nn.MultiheadAttention(16, 2, batch_first=True), head=nn.Linear(16, V)).double()
    model, x = Model(net), torch.randn(2, 4, 16, dtype=torch.float64)
    logits, numbers = recording.footprint(model, x)
    made = recording.factors(model, x)
    held = sum(r[0].numel() for r in made.rows.values())
    held += sum(o.moving[0].numel() + o.fixed[0].numel() for o in made.outers.values())
    assert logits == V
    assert abs(numbers - held) <= 1  # the head's column of ones
    out = Model(net, parameters="attend.out_proj.*")
    assert recording.footprint(out, x)[1] == V * sum(t.numel() for t in out.theta.values())
    assert kernel(out, x, x).shape == (2, V, 2, V)


def test_a_recording_does_not_hear_other_threads():
    torch.manual_seed(0)
    net = Does(_two, a=nn.Linear(7, 7), b=nn.Linear(7, V)).double()
    x, model = torch.randn(3, 7, dtype=torch.float64), Model(net)
    want = kernel(model, x, x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: kernel(model, x, x), range(24)))
    assert all(torch.equal(k, want) for k in found)
    assert not net.a._forward_hooks


def test_observers_may_be_longer_than_what_is_taught():
    net, observed, taught, _, left, _ = known("tied")
    found = kernel(Model(net), observed, taught[:, :4])
    assert found.shape == (3, networks.T, V, 2, 4, V)
    assert_kernel(found, left, rows(net, taught[:, :4]))


def test_a_subset_of_parameters_is_a_part_of_the_kernel():
    net, observed, taught, _ = network("mlp")
    parts = [kernel(Model(net, parameters=p), observed, taught) for p in ("5.*", "[03].*")]
    torch.testing.assert_close(sum(parts), kernel(Model(net), observed, taught), rtol=0, atol=1e-12)
    trunk = net[:-1]
    alike = trunk(observed) @ trunk(taught).T + 1.0  # the head alone: (⟨h_o, h_u⟩ + 1) I
    want = torch.einsum("ou,vw->ovuw", alike, torch.eye(V, dtype=alike.dtype))
    torch.testing.assert_close(parts[0], want.detach(), rtol=0, atol=1e-12)


def test_the_kernel_of_adam_is_structured_too():
    net, observed, taught, labels, left, right = known("attention")
    step = update(Model(net), teach(taught, labels), optimizer=torch.optim.Adam(net.parameters(), lr=0.01))
    metric = {name: scale / step.lr for name, scale in step.scale.items()}
    assert_kernel(blocks(Model(net), step, observed).K, left, right, metric)


def test_float32_needs_no_other_way(monkeypatch):
    torch.manual_seed(1)
    net = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(64, 64), nn.ReLU())], nn.Linear(64, 10))
    x, seen = torch.randn(32, 64), beyond(monkeypatch)
    found = kernel(Model(net), x, x)
    exact = kernel(Model(net.double()), x.double(), x.double())
    assert not seen
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_language_models_of_hugging_face(family, monkeypatch):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(family, **sizes, intermediate_size=16, max_position_embeddings=8)
    if family == "gpt2":
        config.n_inner = 16
    dtype = torch.float32 if family == "llama" else torch.float64  # whose norms compute in float32 whatever comes
    net = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    tokens, seen = torch.randint(11, (2, 3)), beyond(monkeypatch)
    model = Model(net)
    found = kernel(model, {"input_ids": tokens}, {"input_ids": tokens[1:]})
    assert all("norm" in name for name in seen)  # Llama's are not torch's
    left = {n: j.reshape(66, -1) for n, j in jacobian(model, {"input_ids": tokens}).items()}
    assert_kernel(found, left, {n: j[33:] for n, j in left.items()}, tol=100 * torch.finfo(dtype).eps)


NET = nn.Linear(2, 3)
X = torch.zeros(1, 2)
BAD = {
    "a metric of another model": (lambda: kernel(Model(NET), X, X, metric={"w": 1.0}), "among weight, bias, got 'w'"),
    "a metric of another shape": (
        lambda: kernel(Model(NET), X, X, metric={"weight": torch.ones(2, 3)}),
        r"for weight a number or shape \(3, 2\), got shape \(2, 3\)",
    ),
    "a large Jacobian": (
        lambda: jacobian(Model(nn.Linear(1000, 1000, bias=False)), torch.zeros(1, 1000)),
        "the Jacobian: expected at most 2 GiB, got 3.7",
    ),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_gets_one_clear_line(case):
    call, line = BAD[case]
    with pytest.raises(BadInput, match=line) as caught:
        call()
    assert "\n" not in str(caught.value)
