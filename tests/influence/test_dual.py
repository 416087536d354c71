"""The rule for bilinear layers is torch's own derivative, and oneDNN's products are torch's."""

import copy
import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

from toyld import influence
from toyld.checked import BadInput
from toyld.influence import Model, dual
from toyld.influence.model import plain_attention

SHAPES = {  # input, weight, bias, options
    functional.linear: ((2, 3, 7), (5, 7), {}),
    functional.conv1d: ((2, 4, 9), (6, 2, 3), {"stride": 2, "groups": 2}),
    functional.conv2d: ((2, 3, 6, 5), (4, 3, 3, 2), {"padding": 1, "dilation": 2}),
    functional.conv3d: ((1, 2, 4, 4, 4), (3, 2, 2, 2, 2), {}),
}


def rand(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


@pytest.mark.parametrize("func", SHAPES, ids=[f.__name__ for f in SHAPES])
def test_a_bilinear_layer_has_torchs_own_derivative_whatever_carries_a_tangent(func, monkeypatch):
    x_shape, w_shape, options = SHAPES[func]
    held = {"x": rand(*x_shape), "w": rand(*w_shape), "b": rand(w_shape[0])}
    ways = []
    right = dual._product
    monkeypatch.setattr(dual, "_product", lambda *args, **more: ways.append(args[0]) or right(*args, **more))
    for n in (1, 2, 3):
        for names in itertools.combinations(held, n):
            along = {name: rand(*held[name].shape, seed=1) for name in names}

            def f(moved):
                return func(*(held | moved).values(), **options)

            z, dz = dual.directional(f, held, along)
            want = torch.func.jvp(f, ({name: held[name] for name in names},), (along,))
            assert dz.abs().max() > 0.1
            torch.testing.assert_close((z, dz), want, rtol=0, atol=1e-12)
    assert ways == [func] * 7


def test_a_layer_without_bias_or_without_tangents_goes_through():
    x, w = rand(3, 7), rand(5, 7)
    z, dz = dual.directional(lambda p: functional.linear(x, w) * p["s"], {"s": x[0, :1]}, {"s": x[1, :1]})
    torch.testing.assert_close((z, dz), (x @ w.T * x[0, 0], x @ w.T * x[1, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("there", [True, False])
def test_large_products_in_float32_are_torchs_to_rounding(there, monkeypatch):
    x, w, b = rand(64, 256).float(), rand(256, 128).float().T, rand(1).float().expand(128)  # strided weight and bias
    if not there:
        monkeypatch.setattr(dual, "_onednn", lambda: None)
    elif dual._onednn() is None:
        pytest.skip("this torch is built without oneDNN")
    assert x.numel() * len(w) >= dual.LARGE
    want = functional.linear(x.double(), w.double(), b.double())
    error = (dual.linear(x, w, b).double() - want).abs().max()
    assert error < 256 * torch.finfo(torch.float32).eps * want.abs().max()
    assert torch.equal(dual.linear(x[:0], w, b), x.new_zeros(0, 128))


def test_oneDNN_is_asked_for_large_float32_products_alone(monkeypatch):
    asked = []
    fast = lambda x, w, *rest: asked.append(x.dtype) or x @ w.T  # noqa: E731
    monkeypatch.setattr(dual, "_onednn", lambda: fast)
    for dtype, rows in ((torch.float32, 64), (torch.float32, 2), (torch.float64, 64), (torch.bfloat16, 64)):
        dual.linear(rand(rows, 256).to(dtype), rand(128, 256).to(dtype), None)
    assert asked == [torch.float32]


def test_observers_in_batches_get_the_same_prediction():
    net = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    model, x = Model(net), rand(5, 7)
    step = influence.update(model, influence.teach(x[:1], torch.tensor([2])), lr=0.1)
    sizes = []
    net.register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    for mode in ("forward", "difference"):
        whole = influence.predict(model, step, x, mode=mode)
        sizes.clear()
        torch.testing.assert_close(influence.predict(model, step, x, mode=mode, batch=2), whole, rtol=0, atol=1e-9)
        assert sizes[:3] == [2, 2, 1]
    with pytest.raises(BadInput, match="batch: expected a number of observers ≥ 1, got 0; leave it out"):
        influence.predict(model, step, x, batch=0)


class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)
        self.other.weight = self.one.weight  # tied

    def forward(self, x):
        if len(x) > 3:
            raise ZeroDivisionError
        return self.other(self.one(x))


def test_other_parameters_stand_in_all_places_of_a_tied_weight_and_leave_no_trace():
    net = Breaks()
    model, before = Model(net), [id(p) for p in net.parameters()]
    moved = {name: t + 1.0 for name, t in model.theta.items()}
    with torch.no_grad():
        torch.testing.assert_close(model.at(moved, torch.eye(3)), torch.func.functional_call(net, moved, torch.eye(3)))
    with pytest.raises(ZeroDivisionError):
        model.at(moved, torch.eye(4, 3))
    assert [id(p) for p in net.parameters()] == before
    assert net.one.weight is net.other.weight


def test_plain_attention_leaves_the_settings_as_they_were():
    sdp = torch.backends.cuda
    sdp.enable_mem_efficient_sdp(False)
    try:
        with plain_attention():
            assert (sdp.math_sdp_enabled(), sdp.flash_sdp_enabled()) == (True, False)
            assert not torch.backends.mha.get_fastpath_enabled()
        assert torch.backends.mha.get_fastpath_enabled()
        assert (sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled()) == (True, False)
    finally:
        sdp.enable_mem_efficient_sdp(True)


def test_the_direction_of_plain_descent_is_its_gradient():
    net = nn.Linear(3, 2)
    model, lesson = Model(net), influence.teach(torch.ones(1, 3), torch.tensor([1]))
    plain = influence.update(model, lesson, lr=0.5)
    adam = influence.update(model, lesson, optimizer=torch.optim.Adam(net.parameters(), lr=0.5))
    decayed = influence.update(model, lesson, optimizer=torch.optim.SGD(net.parameters(), lr=0.5, weight_decay=0.1))
    for step, computes in ((plain, False), (adam, True), (decayed, True)):
        direction, size = step.direction
        assert (direction is not step.gradient) == computes
        for name, moved in step.displacement.items():
            torch.testing.assert_close(size * direction[name], moved)


def test_logits_whose_sum_is_beyond_the_dtype_are_logits():
    huge = torch.full((2, 3), 3e38)
    assert Model(nn.Linear(1, 2)).checked(huge) is huge


class Table(nn.Module):
    """The same logits everywhere, which are parameters themselves."""

    def __init__(self):
        super().__init__()
        self.z = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.z.expand(len(x), 4)


def test_a_prediction_leaves_the_gradient_alone_where_it_is_the_tangent():
    model = Model(Table())
    step = influence.update(model, influence.teach(torch.zeros(1, 1), torch.tensor([1])), lr=0.5)
    want = torch.tensor([-0.125, 0.375, -0.125, -0.125]).expand(3, 4)  # η (e_y − π), centred already
    for _ in range(2):
        torch.testing.assert_close(influence.predict(model, step, torch.zeros(3, 1)), want)


def tanh_net():
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4)).double()


def test_threads_see_their_own_parameters_and_leave_the_modules():
    net, x = tanh_net(), rand(5, 7)
    model, before = Model(net), [id(p) for p in net.parameters()]
    step = influence.update(model, influence.teach(x[:1], torch.tensor([2])), lr=0.1)
    ways = (influence.predict, influence.actual, influence.safe_step)
    want = [way(model, step, x) for way in ways]
    net[1].register_forward_hook(lambda *_: time.sleep(1e-4))  # lets the others in, with the module half-way
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: ways[k % 3](model, step, x), range(60)))
    assert all(torch.equal(change, want[k % 3]) for k, change in enumerate(found))
    assert [id(p) for p in net.parameters()] == before


@pytest.mark.parametrize("load", ["vector", "data", "state"])
def test_a_model_follows_its_module_to_other_storage(load):
    net, other, x = tanh_net(), tanh_net(), rand(5, 7)
    model, lesson = Model(net), influence.teach(x[:1], torch.tensor([2]))
    influence.predict(model, influence.update(model, lesson, lr=0.1), x)
    if load == "vector":
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(other.parameters()), net.parameters())
    elif load == "data":
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            p.data = q.data.clone()
    else:
        net.load_state_dict(other.state_dict())
    for way in (influence.predict, influence.actual):
        mine, right = (way(m, influence.update(m, lesson, lr=0.1), x) for m in (model, Model(other)))
        torch.testing.assert_close(mine, right, rtol=0, atol=0)


@pytest.mark.parametrize("how", ["module", "method", "layer"])
def test_a_compiled_module_keeps_its_derivative(how):
    net, x = tanh_net(), rand(5, 7)
    done = copy.deepcopy(net)
    if how == "module":
        done = torch.compile(done, backend="aot_eager")
    elif how == "method":
        done.compile(backend="aot_eager")
    else:
        done[0].compile(backend="aot_eager")
    model, lesson = Model(done), influence.teach(x[:1], torch.tensor([2]))
    assert list(model.theta) == [name for name, _ in net.named_parameters()]
    for way in (influence.predict, influence.actual):
        mine, right = (way(m, influence.update(m, lesson, lr=0.1), x) for m in (model, Model(net)))
        assert right.abs().max() > 1e-3
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-12)


def test_what_the_logits_do_not_depend_on_changes_nothing():
    net, x = tanh_net(), rand(5, 7)
    net.unused = nn.Parameter(x[0].clone())
    net.forward = lambda x: net[2](net[1](net[0](x)))
    assert torch.equal(Model(net).tangent(x, {"unused": x[1]})[1], torch.zeros(5, 4, dtype=torch.float64))


def test_oneDNN_is_left_where_it_errs_or_is_switched_off(monkeypatch):
    x, w = rand(64, 256).float(), rand(128, 256).float()
    if dual._onednn() is None:
        pytest.skip("this torch is built without oneDNN")
    asked = []
    fast = lambda x, w, *rest: asked.append(x) or x @ w.T  # noqa: E731
    with monkeypatch.context() as here:
        here.setattr(dual, "_onednn", lambda: fast)
        here.setattr(torch.backends.mkldnn, "enabled", False)
        dual.linear(x, w, None)
        assert not asked
    with torch.autocast("cpu", torch.bfloat16):
        assert dual.linear(x, w, None).dtype == torch.bfloat16

    class Errs:
        _linear_pointwise = staticmethod(lambda x, w, b, *rest: functional.linear(x, w, b) + 1.0)

    class Gone:
        pass

    for other in (Errs, Gone):
        monkeypatch.setattr(torch.ops, "mkldnn", other)
        assert dual._onednn.__wrapped__() is None
