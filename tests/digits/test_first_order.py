"""The experiment on first order: its stacks against single networks, its numbers against their definitions."""

import doctest
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from toyld import digits, influence
from toyld.digits.experiments import _paths, first_order
from toyld.digits.experiments._paths import Path, scaled, scene
from toyld.influence import proxies

SEEDS = (1000, 1001, 1002)


def bent(seed):
    """A small smooth network of three layers: with one hidden layer alone every block of K would be symmetric."""
    torch.manual_seed(seed)
    sizes, layers = (64, 12, 11, 10), [("flat", nn.Flatten())]
    for k in range(3):
        layers += [(f"full{k}", nn.Linear(sizes[k], sizes[k + 1])), (f"tanh{k}", nn.Tanh())]
    return nn.Sequential(OrderedDict(layers[:-1]))


TINY = first_order.Setting("bent", bent, digits.Recipe(lr=0.1, batch=16, images=64, epochs=6), early=0.5)


@pytest.fixture(scope="module")
def trained():
    return digits.train(digits.embedded(), network=bent, seeds=SEEDS, recipe=TINY.recipe, at=[TINY.early])


@pytest.fixture(scope="module")
def at(trained):
    return scene(trained, trained.marks[-1])


@pytest.fixture(scope="module")
def plain(at):
    return first_order._plain(at)


def alone(trained, s, update=None):
    return influence.Model(trained.module(None, SEEDS[s], update=update or trained.marks[-1]).double())


def test_examples_of_docstrings_run():
    for module in (first_order, _paths):
        failed, tried = doctest.testmod(module)
        assert (failed, tried > 0) == (0, True)


def test_lessons_are_the_seeds_own_and_observers_are_held_out(trained, at):
    held_out = trained.data.test_images.double()
    for s in range(len(SEEDS)):
        own, labels = trained.images[s].double(), trained.labels[s]
        assert len(set(at.labels[:, s].tolist())) == 4
        for image, label in zip(at.lessons[:, s], at.labels[:, s], strict=True):
            places = torch.flatten((own == image).flatten(1).all(1).nonzero())
            assert label in labels[places]
        assert at.classes[:, s].bincount().tolist() == [2] * 10
        assert all((held_out == image).flatten(1).all(1).any() for image in at.observers[:, s])
    assert not torch.equal(at.observers[:, 0], at.observers[:, 1])
    before = scene(trained, 0)
    assert torch.equal(before.lessons, at.lessons)
    assert torch.equal(before.observers, at.observers)


def test_a_path_of_the_stack_is_that_of_each_network(trained, at):
    step = influence.update(at.model, at.lesson(1), lr=1.0)
    path, eta = Path(at.model, step, at.observers), torch.tensor([1e-3, 0.5, 2.0], dtype=torch.float64)
    moved = path.at(eta)
    for s in range(len(SEEDS)):
        model, seen = alone(trained, s), at.observers[:, s]
        lesson = influence.teach(at.lessons[1:2, s], at.labels[1:2, s])
        one = influence.update(model, lesson, lr=float(eta[s]))
        torch.testing.assert_close(moved[:, s], influence.actual(model, one, seen), rtol=1e-9, atol=1e-13)
        first = influence.predict(model, one, seen)
        torch.testing.assert_close(eta[s] * path.first[:, s], first, rtol=1e-9, atol=1e-15)
        safe = influence.safe_step(model, one, seen)
        torch.testing.assert_close(torch.pi / path.spread[:, s] / eta[s], safe, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(path.top[s] * eta[s], first.abs().max(), rtol=1e-9, atol=0.0)
    there, change, error = path.off(1e-2)
    torch.testing.assert_close(there * path.top, torch.full((3,), 1e-2, dtype=torch.float64))
    torch.testing.assert_close(change - error, path.first * there[:, None])


def test_drift_is_scaled_with_the_step(at):
    momentum = torch.optim.SGD(at.model.parameters.values(), lr=1.0, momentum=0.9)
    first = influence.update(at.model, at.taught(0), lr=1.0).gradient
    for name, p in at.model.parameters.items():
        momentum.state[p]["momentum_buffer"] = first[name].clone()
    step = influence.update(at.model, at.lesson(0), optimizer=momentum)
    half = scaled(step, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)).displacement
    assert step.drift
    for name, whole in step.displacement.items():
        for s, share in enumerate((0.5, 1.0, 2.0)):
            torch.testing.assert_close(half[name][s], share * whole[s])


def test_the_constant_is_half_the_second_derivative_along_the_step(trained, at, plain):
    columns, paths, constants = plain
    for s in range(len(SEEDS)):
        module = trained.module(None, SEEDS[s], update=trained.marks[-1]).double()
        theta = {name: p.detach() for name, p in module.named_parameters()}
        for u in (0, 3):
            d = {name.replace("__", "."): step[s] for name, step in paths[u].step.displacement.items()}

            def logp(t, d=d, module=module, theta=theta, s=s):
                moved = {name: (p + t * d[name]) for name, p in theta.items()}
                return torch.log_softmax(torch.func.functional_call(module, moved, (at.observers[:, s],)), -1)

            zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
            slope = torch.func.jvp(logp, (zero,), (one,))[1]

            def rate(t, f=logp, one=one):
                return torch.func.jvp(f, (t,), (one,))[1]

            bend = torch.func.jvp(rate, (zero,), (one,))[1]
            torch.testing.assert_close(paths[u].first[:, s], slope.detach(), rtol=1e-9, atol=1e-14)
            assert constants[s, u] == pytest.approx(0.5 * float(torch.linalg.vector_norm(bend)), rel=0.02)
    assert (columns["slope_off"] < 1e-2).all()
    assert (columns["second"] == 1).all()
    assert (columns["slope_off_above"] < 0.1).all()


def test_where_first_order_breaks(at, plain):
    columns, paths, _ = plain
    path = paths[0]
    off, whole = path.at(torch.full((3,), 1e-3, dtype=torch.float64)), path.first * 1e-3
    wanted = torch.linalg.vector_norm(off - whole, dim=(0, 2)) / torch.linalg.vector_norm(off, dim=(0, 2))
    np.testing.assert_allclose(columns["relative_paper"], wanted, rtol=1e-9)
    relative = []
    for nats in first_order.FAR:
        _, change, error = path.off(nats)
        relative.append(torch.linalg.vector_norm(error, dim=(0, 2)) / torch.linalg.vector_norm(change, dim=(0, 2)))
    np.testing.assert_allclose(columns["relative_nat"], relative[1], rtol=1e-9)
    for s, reach in enumerate(columns["reach"]):
        for nats, share in zip(first_order.FAR, relative, strict=True):
            assert (share[s] > 0.5) == (nats > reach) or nats == reach


def test_optimisers_are_torchs_own_and_the_plain_kernel_gets_its_best_step(trained, at, plain):
    _, paths, _ = plain
    found = first_order._optimized(at, paths[0])
    for name, kind in first_order.OPTIMIZERS.items():
        for s in range(len(SEEDS)):
            module = trained.module(None, SEEDS[s], update=trained.marks[-1]).double()
            real = kind(module.parameters(), lr=0.0)
            for k in range(first_order.WARM):
                real.zero_grad()
                rows = slice(16 * k, 16 * k + 16)
                z = module(trained.images[s, rows].double())
                nn.functional.cross_entropy(z, trained.labels[s, rows]).backward()
                real.step()
            real.zero_grad()
            with torch.no_grad():
                before = torch.log_softmax(module(at.observers[:, s]), -1)
            nn.functional.cross_entropy(module(at.lessons[:1, s]), at.labels[:1, s]).backward()
            real.param_groups[0]["lr"] = 1e-7
            first = paths[0].first[:, s]
            if name == "adam":  # what earlier batches left is no part of the lesson's
                model = alone(trained, s)
                for p, q in zip(real.param_groups[0]["params"], model.parameters.values(), strict=True):
                    real.state[q] = real.state.pop(p)
                real.param_groups[0]["params"] = list(model.parameters.values())
                lesson = influence.teach(at.lessons[:1, s], at.labels[:1, s])
                step = influence.update(model, lesson, optimizer=real)
                moved = influence.predict(model, step, at.observers[:, s])
                moved = moved - influence.normalised(*model.tangent(at.observers[:, s], step.drift))
            else:
                real.step()
                with torch.no_grad():
                    moved = torch.log_softmax(module(at.observers[:, s]), -1) - before
            x, y = first.flatten().numpy(), moved.flatten().numpy()
            best = x * (x @ y) / (x @ x)
            left = np.linalg.norm(y - best) / np.linalg.norm(y)
            assert found[f"plain_{name}"][s] == pytest.approx(left, rel=1e-3), (name, s)
        assert (found[f"slope_off_{name}"] < 0.01).all()
        assert (found[f"own_{name}"] < 1e-4 * found[f"plain_{name}"]).all()
        np.testing.assert_allclose(found[f"slope_plain_{name}"], 1.0, atol=0.01)
    assert all(p.grad is None for p in at.model.parameters.values())


def test_plain_descent_as_an_optimiser_leaves_nothing_to_the_plain_kernel(at, plain, monkeypatch):
    monkeypatch.setattr(first_order, "OPTIMIZERS", {"sgd": torch.optim.SGD})
    found = first_order._optimized(at, plain[1][0])
    assert (found["plain_sgd"] <= found["own_sgd"] * 1.001).all()
    assert (found["own_sgd"] < 1e-4).all()


def test_blocks_are_those_of_each_network(trained, at, plain):
    _, paths, constants = plain
    size = sum(p.numel() for p in trained.architecture.parameters())
    kernel = first_order._kernels(at, trained, trained.marks[-1])
    found = first_order._blocks(at, kernel, paths, constants, size)
    for s in range(len(SEEDS)):
        model, seen = alone(trained, s), at.observers[:, s]
        every, labels = torch.cat([at.lessons[:, s], seen]), torch.cat([at.labels[:, s], at.classes[:, s]])
        pi = torch.softmax(model(every), -1)
        steps = [
            influence.update(model, influence.teach(x[None], y[None]), lr=1.0)
            for x, y in zip(every, labels, strict=True)
        ]
        change = torch.stack([influence.predict(model, step, every) for step in steps])  # (of, on, V)
        size_of = torch.linalg.vector_norm(change, dim=-1)
        norms = influence.frobenius(model, every, at.lessons[:, s]).numpy()  # (N, U)
        low, rank, above, by_class, notebook = [], [], [], [], []
        for u in range(4):
            residual = pi[u] - nn.functional.one_hot(labels[u], 10)
            proxy = proxies.lbk(change[u], pi, residual).numpy()
            low.append(norms[:, u] ** 2 / proxy)
            above.append(np.log10(norms[4:, u] ** 2 / proxy[4:]))
            rank.append(spearman(proxy[4:], norms[4:, u]))
            member = [labels[4:].numpy() == c for c in range(10)]
            groups = [(norms[4:, u][m] ** 2).mean() for m in member]
            by_class.append(spearman([proxy[4:][m].mean() for m in member], groups))
            released = []
            for m in member:
                moved = change[u, 4:][m, labels[4:][m]].numpy()
                a = np.sqrt(proxies.normaliser_norm2(pi[4:][m].numpy()))
                e = np.linalg.norm((pi[4:][m] - nn.functional.one_hot(labels[4:][m], 10)).numpy(), axis=-1)
                path = np.stack([np.zeros_like(moved), moved])
                released.append(proxies.lbk_as_released(path, np.stack([a, a]), np.stack([e, e]))[0])
            notebook.append(spearman(released, groups))
        assert found["lbk"][s] == pytest.approx(np.log10(np.min(low)), rel=1e-6)
        assert found["lbk_loose"][s] == pytest.approx(np.median(above) / 2, rel=1e-6)
        assert found["lbk_rank"][s] == pytest.approx(np.mean(rank), abs=1e-9)
        assert found["lbk_rank_classes"][s] == pytest.approx(np.mean(by_class), abs=1e-9)
        assert found["notebook_rank"][s] == pytest.approx(np.mean(notebook), abs=1e-9)
        pairs = [(u, o) for u in range(4) for o in range(24) if u != o]
        factors = [abs(float(torch.log(size_of[u, o] / size_of[o, u]))) for u, o in pairs]
        assert found["asymmetry"][s] == pytest.approx(np.median(factors), rel=1e-6)
        own = influence.kernel(model, at.lessons[:, s], at.lessons[:, s])
        largest = np.array([np.linalg.eigvalsh(own[u, :, u].numpy())[-1] for u in range(4)])
        squared = [float(sum((g**2).sum() for g in step.gradient.values())) for step in steps[:4]]
        ratio = np.log10(constants[s] / largest)
        assert found["constant"][s] == pytest.approx(ratio.mean(), rel=1e-9)
        assert found["lessons"][s] == pytest.approx(np.ptp(ratio), rel=1e-9)
        assert found["rank_kernel"][s] == pytest.approx(spearman(largest, constants[s]), abs=1e-9)
        assert found["rank_gradient"][s] == pytest.approx(spearman(squared, constants[s]), abs=1e-9)
        eta = 10.0 / float(paths[0].top[s])
        step = influence.update(model, influence.teach(every[:1], labels[:1]), lr=eta)
        real = proxies.lbk(influence.actual(model, step, seen), pi[4:], pi[0] - nn.functional.one_hot(labels[0], 10))
        assert found["lbk_10"][s] == pytest.approx(np.log10(eta**2 * norms[4:, 0] ** 2 / real.numpy()).min(), rel=1e-6)
    assert (found["symmetric"] > 1).all()
    assert (found["positive"] > 1).all()


def spearman(x, y):
    from scipy.stats import spearmanr

    return spearmanr(x, y).statistic


def test_a_kernel_that_is_not_symmetric_or_not_positive_is_seen(trained, at, plain):
    _, paths, constants = plain
    kernel = first_order._kernels(at, trained, trained.marks[-1])
    size = sum(p.numel() for p in trained.architecture.parameters())
    bent_off = kernel.clone()
    bent_off[1, 0, 2, 7, 3] += 1e-6 * kernel.abs().max()
    seen = first_order._blocks(at, bent_off, paths, constants, size)["symmetric"]
    assert (seen > 0).tolist() == [True, False, True]
    coupled = kernel.clone()  # more between two lessons than each has of its own
    for u, other in ((0, 1), (1, 0)):
        coupled[2, u, :, other] *= 10.0
    seen = first_order._blocks(at, coupled, paths, constants, size)["positive"]
    assert (seen > 0).tolist() == [True, True, False]


def test_the_loss_turns_between_two_radii(trained, at):
    found = first_order._radius(at)
    for s in range(len(SEEDS)):
        images, labels = trained.images[s, :16].double(), trained.labels[s, :16]
        model = alone(trained, s)
        unit = influence.update(model, influence.teach(images, labels), lr=1.0)
        safe = float(influence.safe_step(model, unit, images).min())

        def rise(r, model=model, images=images, labels=labels, safe=safe):
            step = influence.update(model, influence.teach(images, labels), lr=r * safe)
            change = influence.actual(model, step, images)
            return (
                -float(change[torch.arange(16), labels].mean()),
                change - influence.predict(model, step, images),
                change,
            )

        turn = 2.0 ** found["turn"][s]
        below = max((r for r in first_order.RADII if r < turn), default=None)
        after = min((r for r in first_order.RADII if r >= turn), default=None)
        assert below is None or rise(below)[0] <= 0
        assert rise(after)[0] > 0 or turn == first_order.RADII[-1]
        for name, r in (("relative_half_radius", 0.5), ("relative_radius", 1.0)):
            _, error, change = rise(r)
            share = float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(change))
            assert found[name][s] == pytest.approx(share, rel=1e-8)


def test_tables_have_three_stages_and_a_seed_the_same_numbers_in_any_company():
    (together,) = first_order.tables(SEEDS, settings=[TINY]).values()
    (single,) = first_order.tables(SEEDS[1:2], settings=[TINY]).values()
    attrs = ("world", "stage", "arm", "experiment", "smooth")
    assert [together.attrs[name] for name in attrs] == ["digits", "one step", "bent", "first_order", 1]
    assert together.step.values.tolist() == [0, 2, 24]
    blocks = {name for name in together if np.isnan(together[name].values[:, 1]).all()}
    assert {"eval_lbk", "eval_symmetric", "eval_plain_adam", "eval_constant"} <= blocks
    assert {"eval_slope", "eval_turn", "eval_reach", "eval_observers", "eval_relative_paper"}.isdisjoint(blocks)
    assert float(together.eval_accuracy[:, -1].mean()) > 0.5
    exact = {"eval_symmetric", "eval_positive", "eval_slope_off"} | {f"eval_slope_off_{x}" for x in ("rmsprop", "adam")}
    for name in set(together) - exact:  # those are made of rounding
        one = together[name].sel(seed=[SEEDS[1]]).values
        np.testing.assert_allclose(one, single[name].values, rtol=2e-3, atol=1e-6, err_msg=name)


def test_a_network_of_relus_has_kinks_and_widths():
    small = first_order.Setting(
        "mlp", lambda seed: digits.mlp(64, width=8, depth=1, seed=seed), TINY.recipe, 0.5, (4, 8)
    )
    (found,) = first_order.tables(SEEDS[:2], settings=[small]).values()
    assert found.attrs["smooth"] == 0
    assert np.isfinite(found.eval_width.values[:, 0]).all()
    assert np.isnan(found.eval_width.values[:, 1:]).all()
