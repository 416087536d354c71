"""The prediction is the sum of the exact blocks, and the tangent of the real update, for networks of every kind."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from toyld import influence, objectives
from toyld.influence import Model

_spec = importlib.util.spec_from_file_location("influence_networks", Path(__file__).parent / "networks.py")
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)
network, NAMES = networks.network, sorted(networks.MAKE)


def by_autograd(net, x):
    """Jacobian of the logits of one batch by torch's own functional Jacobian, (N·…·V, P), trained parameters flat."""
    names = [n for n, p in net.named_parameters() if p.requires_grad]
    values = tuple(p.detach() for p in net.parameters() if p.requires_grad)

    def z(*theta):
        return torch.func.functional_call(net, dict(zip(names, theta, strict=True)), (x,))

    parts = torch.autograd.functional.jacobian(z, values)
    rows = z(*values).numel()
    return torch.cat([p.reshape(rows, -1) for p in parts], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_the_sum_of_the_exact_blocks(name):
    net, observed, taught, labels = network(name)
    model = Model(net)
    step = influence.update(model, influence.teach(taught, labels), lr=0.3)
    predicted = influence.predict(model, step, observed)
    found = influence.blocks(model, step, observed)
    assert predicted.abs().max() > 1e-3
    torch.testing.assert_close(found.change, predicted, rtol=0, atol=1e-10)
    # ... and the blocks are those of torch's own Jacobian and of the definitions of A and G.
    z, size = net(observed), networks.V
    k = by_autograd(net, observed) @ by_autograd(net, taught).T
    torch.testing.assert_close(found.K.reshape(k.shape), k, rtol=0, atol=1e-10)
    pi = torch.softmax(net(taught), -1)
    taught_at = labels != -100
    target = nn.functional.one_hot(labels.clamp(min=0), size).double()
    g = (pi - target) * taught_at[..., None] / len(taught)
    torch.testing.assert_close(found.G, g, rtol=0, atol=1e-12)
    a = torch.eye(size, dtype=torch.float64) - torch.softmax(z, -1)[..., None, :]
    by_hand = -0.3 * (a.reshape(-1, size, size) @ (k @ g.reshape(-1)).reshape(-1, size, 1))[..., 0]
    torch.testing.assert_close(predicted.reshape(by_hand.shape), by_hand, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_the_limit_of_the_real_update(name):
    net, observed, taught, labels = network(name, seed=1)
    model, lesson = Model(net), influence.teach(taught, labels)
    first = influence.predict(model, influence.update(model, lesson, lr=1.0), observed)

    def really(lr):
        moved = copy.deepcopy(net)
        optimizer = torch.optim.SGD([p for p in moved.parameters() if p.requires_grad], lr=lr)
        lesson.value(moved(taught)).backward()
        optimizer.step()
        with torch.no_grad():
            return torch.log_softmax(moved(observed), -1) - torch.log_softmax(net(observed), -1)

    torch.testing.assert_close(
        influence.actual(model, influence.update(model, lesson, lr=0.01), observed), really(0.01), rtol=0, atol=1e-12
    )
    # Richardson's extrapolation leaves an error of third order; rounding is divided by η.
    eta = 1e-4
    limit = 2.0 * really(eta / 2) / (eta / 2) - really(eta) / eta
    assert (limit - first).abs().max() < 1e-5 * first.abs().max() + 1e-9


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.05),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "nesterov": lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, alpha=0.9),
    "rmsprop-all": lambda ps: torch.optim.RMSprop(
        ps, lr=0.01, alpha=0.9, momentum=0.5, centered=True, weight_decay=0.1
    ),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.1),
    "amsgrad": lambda ps: torch.optim.Adam(ps, lr=0.01, amsgrad=True),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
    "maximize": lambda ps: torch.optim.AdamW(ps, lr=0.01, maximize=True),
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_an_update_is_the_optimisers_own_step(name, before, clip):
    net, observed, taught, labels = network("mlp")
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    for k in range(before):  # other lessons fill the state
        optimizer.zero_grad()
        influence.teach(observed, (labels.sum() + torch.arange(3) + k) % networks.V).value(net(observed)).backward()
        optimizer.step()
    model, lesson = Model(net), influence.teach(taught, labels)
    step = influence.update(model, lesson, optimizer=optimizer, clip=clip)
    found = influence.blocks(model, step, observed)
    torch.testing.assert_close(found.change, influence.predict(model, step, observed), rtol=0, atol=1e-10)
    told = {n: p.detach() + step.displacement[n] for n, p in net.named_parameters()}
    optimizer.zero_grad()
    lesson.value(net(taught)).backward()
    if clip is not None:
        assert float(torch.nn.utils.clip_grad_norm_(net.parameters(), clip)) > clip
    optimizer.step()
    for n, p in net.named_parameters():
        torch.testing.assert_close(told[n], p.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["dpo", "ipo", "simpo", "npo", "sft", "grpo", "unlikelihood", "bs-t"])
def test_any_objective_teaches_its_own_residual(name):
    net, observed, taught, labels = network("attention")
    before, good = copy.deepcopy(net), (taught, labels)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)))
    bad = (observed[:2], torch.where(labels == -100, -100, (labels + 1) % networks.V))
    sides = {"sft": {"chosen": good}, "npo": {"rejected": bad}, "unlikelihood": {"rejected": bad}}.get(
        name, {"rejected": bad} if name == "bs-t" else {"chosen": good, "rejected": bad}
    )
    lesson = influence.from_objective(name, **sides, reference=before, old=before)
    z = net(lesson.inputs).detach()
    g = lesson.residual(z)
    assert g.sum(-1).abs().max() < 1e-12  # a loss of log-probabilities cannot see a shift of the logits
    if name != "bs-t":  # G = −push (e_y − π)/B at every token
        logp = influence.log_probs(z, torch.cat([y for _, y in sides.values()]))
        parts = dict(zip(sides, logp.split([len(y) for _, y in sides.values()]), strict=True))
        fixed = {}
        for side, (x, y) in sides.items():
            old = influence.log_probs(before(x).detach(), y)
            sign = torch.full((len(y),), 1.0 if side == "chosen" else -1.0, dtype=torch.float64)
            fixed |= {f"{side}_mask": y != -100, f"ref_{side}": old, f"old_{side}": old, f"{side}_advantage": sign}
        push = objectives.get(name).push(objectives.Batch(**parts, **fixed))
        target = nn.functional.one_hot(torch.cat([y for _, y in sides.values()]).clamp(min=0), networks.V)
        pushed = torch.cat([getattr(push, side) for side in sides])
        want = pushed[..., None] * (torch.softmax(z, -1) - target) / len(next(iter(parts.values())))
        torch.testing.assert_close(g, want, rtol=0, atol=1e-12)
    model = Model(net)
    step = influence.update(model, lesson, lr=0.1)
    predicted = influence.predict(model, step, observed)
    torch.testing.assert_close(influence.blocks(model, step, observed).change, predicted, rtol=0, atol=1e-10)


def test_the_token_matrix_adds_up_to_the_change_of_every_label():
    net, _, taught, labels = network("attention")
    model = Model(net)
    found = influence.blocks(model, influence.update(model, influence.teach(taught, labels), lr=0.1), taught)
    matrix = found.tokens(labels)
    assert matrix.shape == (2, networks.T, 2, networks.T)
    assert float(matrix[0, :2].abs().max()) == 0.0  # observed label −100
    assert float(matrix[:, :, 0, :2].abs().max()) == 0.0  # taught label −100
    picked = torch.where(labels == -100, 0.0, found.change.gather(-1, labels.clamp(min=0)[..., None])[..., 0])
    torch.testing.assert_close(matrix.sum((2, 3)), picked, rtol=0, atol=1e-12)


def test_the_order_of_the_error_is_two():
    net, observed, taught, labels = network("mlp")
    found = influence.errors(Model(net), influence.teach(taught, labels), observed, lrs=[1e-4, 1e-3, 1e-2])
    assert abs(found.order - 2.0) < 0.05
    assert (found.relative[:-1] < found.relative[1:]).all()


def test_a_finite_difference_predicts_where_forward_mode_cannot():
    net, observed, taught, labels = network("attention")
    model = Model(net)
    step = influence.update(model, influence.teach(taught, labels), lr=0.1)
    exact, rough = (influence.predict(model, step, observed, mode=m) for m in ("forward", "difference"))
    error = float((exact - rough).abs().max() / exact.abs().max())
    assert 1e-12 < error < 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-3), (torch.float64, 1e-4)])
def test_a_finite_difference_stays_where_the_logits_are_linear(dtype, bound):
    net, observed, taught, labels = network("attention")
    with torch.no_grad():
        net.head.weight.mul_(30.0)  # a steep network: ±.003 ‖θ‖ moves its logits by several nats
    model = Model(net.to(dtype))
    step = influence.update(model, influence.teach(taught, labels), lr=0.1)
    exact, rough = (influence.predict(model, step, observed, mode=m) for m in ("forward", "difference"))
    assert float((exact - rough).norm() / exact.norm()) < bound


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_rate_of_nought_gives_blocks_all_the_same(kind):
    net, observed, taught, labels = network("mlp")
    for rates in ((0.0, 0.0), (0.0, 0.1)):  # a schedule's first step, and with a group that has begun
        groups = [{"params": net[:1].parameters(), "lr": rates[0]}, {"params": net[1:].parameters(), "lr": rates[1]}]
        model = Model(net)
        step = influence.update(model, influence.teach(taught, labels), optimizer=kind(groups, lr=0.1))
        found, predicted = influence.blocks(model, step, observed), influence.predict(model, step, observed)
        assert bool(predicted.any()) == (rates[1] > 0.0)
        torch.testing.assert_close(found.change, predicted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_what_the_loss_does_not_reach_stays_as_it_does_in_torch(name):
    net, _, taught, labels = network("mlp")
    net.beside = nn.Parameter(torch.ones(3, dtype=torch.float64))
    net.forward = lambda x: nn.Sequential.forward(net[:], x)
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    model, lesson = Model(net), influence.teach(taught, labels)
    step = influence.update(model, lesson, optimizer=optimizer)
    told = {n: p.detach() + step.displacement[n] for n, p in net.named_parameters()}
    lesson.value(net(taught)).backward()
    optimizer.step()
    assert torch.equal(told["beside"], torch.ones(3, dtype=torch.float64))
    for n, p in net.named_parameters():
        torch.testing.assert_close(told[n], p.detach(), rtol=0, atol=1e-12)


def test_sparse_gradients_are_those_of_dense_ones():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    sparse, tokens, labels = copy.deepcopy(net), torch.tensor([[0, 1, 1], [2, 0, 4]]), torch.tensor([[0, 1, 2]] * 2)
    sparse[0].sparse = True
    changes = []
    for m in (Model(net), Model(sparse)):
        step = influence.update(m, influence.teach(tokens, labels), lr=0.1, clip=0.1)
        changes.append((influence.predict(m, step, tokens), influence.blocks(m, step, tokens).change))
    torch.testing.assert_close(changes[1], changes[0], rtol=0, atol=1e-14)
    assert changes[0][0].abs().max() > 1e-3


def test_advantages_are_one_for_chosen_and_minus_one_for_rejected():
    net, _, taught, labels = network("mlp")
    sides = {"chosen": (taught, labels), "rejected": (taught, (labels + 1) % networks.V)}
    one = torch.ones(2, dtype=torch.float64)
    z = net(torch.cat([taught, taught])).detach()
    plain, same, turned = (
        influence.from_objective("ppo", **sides, old=net, advantages=a).residual(z)
        for a in (None, {"chosen": one, "rejected": -one}, {"chosen": one, "rejected": one})
    )
    torch.testing.assert_close(plain, same, rtol=0, atol=0)
    torch.testing.assert_close(plain[2:], -turned[2:], rtol=0, atol=1e-14)
    picked = plain.gather(1, torch.cat([labels, (labels + 1) % networks.V])[:, None])
    assert (picked[:2] < 0.0).all()  # descent raises chosen …
    assert (picked[2:] > 0.0).all()  # … and lowers rejected


def test_the_safe_step_is_pi_over_the_spread_of_the_change_of_logits():
    net, observed, taught, labels = network("mlp")
    model = Model(net)
    step = influence.update(model, influence.teach(taught, labels), lr=0.1)
    moved = copy.deepcopy(net)
    eps = 1e-6
    with torch.no_grad():
        for n, p in moved.named_parameters():
            p.add_(eps * step.displacement[n])
        dz = (moved(observed) - net(observed)) / eps
    spread = dz.max(-1).values - dz.min(-1).values
    torch.testing.assert_close(influence.safe_step(model, step, observed), torch.pi / spread, rtol=1e-4, atol=0)
    # All logits move by 1 and one of them by 2: what moves alike is no change of π.
    table = nn.Linear(1, 3).double()
    up = influence.Update(
        influence.teach(torch.ones(1, 1, dtype=torch.float64), torch.tensor([0])), 1.0,
        {"bias": torch.tensor([-2.0, -1.0, -1.0], dtype=torch.float64)}, {"bias": 1.0}, {},
    )  # fmt: skip
    found = influence.safe_step(Model(table), up, torch.ones(2, 1, dtype=torch.float64))
    torch.testing.assert_close(found, torch.full((2,), torch.pi, dtype=torch.float64))
