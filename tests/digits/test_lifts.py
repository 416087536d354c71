"""One step on a 4 and all lessons of a run: what the tables hold is what a plain torch loop gives."""

import copy
import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import influence
from toyld.digits import Recipe, train
from toyld.digits.experiments import _stack, _sums, lifts
from toyld.digits.networks import lenet, mlp

SEEDS = [1000, 1001]
RECIPE = Recipe(lr=2e-3, momentum=0.5, weight_decay=0.0, batch=80, images=80, epochs=12, cosine=True)


def tiny(seed):
    return mlp(64, width=12, depth=2, seed=seed)


SETTING = lifts.Setting("tiny", "embedded", tiny, RECIPE, early=3, looking=2)


@pytest.fixture(scope="module")
def trained():
    return lifts.prepared(SEEDS, SETTING)


def looking(data):
    return torch.cat([data.test_images[torch.nonzero(data.test_labels == i)[:2, 0]] for i in range(10)])


@pytest.mark.parametrize("module", [lifts, _stack, _sums])
def test_examples_of_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("network", [tiny, lambda seed: lenet(8, seed=seed)])
def test_a_stack_predicts_what_each_of_its_networks_predicts(network):
    data = lifts.embedded()
    run = train(data, network=network, seeds=SEEDS, recipe=replace(RECIPE, epochs=3), dtype=torch.float64)
    images = data.images[torch.tensor([[3, 8], [70, 4]])].double()  # (U, S, …): another image for each seed
    labels, seen = torch.tensor([[1, 2], [3, 4]]), data.test_images[:7].double()
    model = _stack.at(run, 3)
    step = influence.update(model, influence.teach(images, labels), lr=0.1)
    found = influence.predict(model, step, seen[:, None].expand(-1, 2, -1, -1, -1))
    for s, seed in enumerate(SEEDS):
        one = influence.Model(run.module(None, seed))
        alone = influence.update(one, influence.teach(images[:, s], labels[:, s]), lr=0.1)
        torch.testing.assert_close(found[:, s], influence.predict(one, alone, seen), rtol=1e-9, atol=1e-12)
    assert float(found.abs().max()) > 1e-3


def test_a_step_is_that_of_a_plain_loop(trained):
    data, run, _, few = trained
    found = lifts.steps(run, SETTING, few[1])
    x = looking(data)
    for s, seed in enumerate(SEEDS):
        fours = run.images[s][run.labels[s] == 4][: lifts.SINGLE]
        means = {name: [] for name in ("lift", "gain", "moved", "pushed")}
        for image in fours:
            net = copy.deepcopy(run.module(3, seed))
            before = net(x).log_softmax(-1).detach()
            optimizer = torch.optim.SGD(net.parameters(), lr=RECIPE.lr)
            torch.nn.functional.cross_entropy(net(image[None]), torch.tensor([4])).backward()
            optimizer.step()
            after = net(x).log_softmax(-1).detach()
            log, pi = (after - before).reshape(10, 2, 10), (after.exp() - before.exp()).reshape(10, 2, 10)
            means["lift"].append(log[..., 4].mean(1))
            means["gain"].append(pi[..., 4].mean(1))
            means["moved"].append(pi.abs().sum(-1).mean(1) / 2)
            others = [[j for j in range(10) if j not in (4, i)] for i in range(10)]
            means["pushed"].append(torch.stack([log[i][:, js].mean() for i, js in enumerate(others)]))
        for name, values in means.items():
            want = torch.stack(values).mean(0).numpy()
            np.testing.assert_allclose(found[name][:, s], want, rtol=2e-3, atol=2e-7, err_msg=name)
    assert np.abs(found["lift"] - found["first"]).max() < 0.05 * np.abs(found["lift"]).max()
    assert (found["error"] < 0.05).all()
    assert (found["error"] > 0).all()


def test_lessons_of_all_classes_are_the_whole_gradient(trained):
    data, run, curve, _ = trained
    rate, total = lifts.lessons(run, SETTING, curve)
    assert rate.shape == total.shape == (10, 10, 10, 2)
    for s, seed in enumerate(SEEDS):
        model = influence.Model(run.module(0, seed))
        step = influence.update(model, influence.teach(run.images[s], run.labels[s]), lr=1.0)
        want = influence.predict(model, step, looking(data)).reshape(10, 2, 10).mean(1)
        np.testing.assert_allclose(rate.sum(0)[..., s], want, rtol=1e-3, atol=1e-5)
        nines = run.labels[s] == 9
        step = influence.update(model, influence.teach(run.images[s][nines], run.labels[s][nines]), lr=1.0)
        part = influence.predict(model, step, looking(data)).reshape(10, 2, 10).mean(1) * nines.float().mean()
        np.testing.assert_allclose(rate[9, ..., s], part, rtol=1e-3, atol=1e-5)


def test_sums_over_a_run_are_what_happened_where_steps_are_small(trained):
    """Whole batches, so that nothing but second order and interpolation is left out."""
    data, run, curve, _ = trained
    _, total = lifts.lessons(run, SETTING, curve)
    x, labels = looking(data), torch.arange(10).repeat_interleave(2)
    change = lifts.matrices(run, x, labels, curve[-1])[1] - lifts.matrices(run, x, labels, 0)[1]
    assert np.abs(change).max() > 0.01
    np.testing.assert_allclose(total.sum(0), change, atol=0.02 * np.abs(change).max())


def test_sums_go_through_momentum_and_a_falling_rate():
    recipe, at = Recipe(lr=0.3, momentum=0.8, batch=10, epochs=5, cosine=True), [0, 2, 5, 10]
    rates, memory, change, want = lambda t: 3.0 - 0.2 * t, 0.0, 0.0, {0: 0.0}
    for t in range(10):  # linear, so that interpolation is exact
        memory = 0.8 * memory + rates(t)
        change += recipe.rate(t, 20) * memory
        want[t + 1] = change
    found = _sums.summed(recipe, 20, at) @ np.array([rates(t) for t in at])
    np.testing.assert_allclose(found, [want[t] for t in at], rtol=1e-12)


def test_interaction_is_what_rows_and_columns_do_not_explain():
    rng = np.random.default_rng(0)
    x, rows, columns = rng.normal(size=(6, 6, 3)), rng.normal(size=(6, 1, 3)), rng.normal(size=(1, 6, 3))
    np.testing.assert_allclose(lifts.interaction(x + rows + columns), lifts.interaction(x), atol=1e-12)
    off = np.zeros((6, 6, 3))
    off[~np.eye(6, dtype=bool)] = lifts.interaction(x)
    np.testing.assert_allclose([off.sum(0), off.sum(1)], 0, atol=1e-12)
    spoilt = x.copy()
    spoilt[range(6), range(6)] = 1e9  # the diagonal does not count
    np.testing.assert_allclose(lifts.alike(spoilt, -2 * x + rows), -1, atol=1e-12)


def test_the_partner_is_the_class_taken_for_a_four_most():
    taken = np.full((10, 2), -9.0)
    taken[[6, 4, 9], [0, 0, 1]] = -1.0, 0.0, -1.0  # 4 itself does not count
    values = np.zeros((10, 2))
    values[[6, 4], 0], values[[8, 9], 1] = (5.0, 99.0), (8.0, 1.0)
    np.testing.assert_allclose(lifts._partner(values, taken), [5.0, 1.0 - 8.0 / 8])


def test_matrices_are_means_over_images_of_a_class(trained):
    data, run, _, few = trained
    pi, logpi = lifts.matrices(run, data.test_images, data.test_labels, few[-1])
    nines = data.test_images[data.test_labels == 9]
    one = run.module(None, SEEDS[1])(nines).detach().double().log_softmax(-1)
    np.testing.assert_allclose(pi[9, :, 1], one.exp().mean(0), rtol=1e-5)
    np.testing.assert_allclose(logpi[9, :, 1], one.mean(0), rtol=1e-5)


def test_tables_hold_what_the_functions_give(trained):
    data, run, curve, few = trained
    steps, end = lifts.tables(SEEDS, settings=[SETTING]).values()
    assert [int(x) for x in steps.step] == list(few)
    late = lifts.steps(run, SETTING, few[2])
    np.testing.assert_allclose(steps.eval_moved_3.values[:, 2], late["moved"][3])
    np.testing.assert_allclose(steps.eval_error.values[:, 2], late["error"])
    _, total = lifts.lessons(run, SETTING, curve)
    np.testing.assert_allclose(end.eval_on_four_2_7.values[:, 0], total[2, 4, 7])
    np.testing.assert_allclose(end.eval_lifted_3_5.values[:, 0], total[5, 3, 5])
    _, logpi = lifts.matrices(run, data.test_images, data.test_labels, few[2])
    np.testing.assert_allclose(end.eval_logpi_3_5.values[:, 0], logpi[3, 5])
    there = [torch.nonzero(data.test_labels == i)[2:, 0] for i in range(10)]  # two a class look on
    logs = [run.logits(None, data.test_images[one]).double().log_softmax(-1)[..., 4].mean(1) for one in there]
    taken = torch.stack([logs[i] for i in range(10) if i != 4]).argmax(0).numpy()
    partner = np.array([i for i in range(10) if i != 4])[taken]
    lift = late["lift"]
    others = [np.delete(lift[:, s], [4, partner[s]]).mean() for s in range(2)]
    np.testing.assert_allclose(steps.eval_partner_lift.values[:, 2], lift[partner, range(2)] - others)
    assert (end.eval_unexplained.values < 0.1).all()
    lifted = np.stack([total[j, :, j] for j in range(10)], 1)
    np.testing.assert_allclose(end.eval_alike_se.values[:, 0], lifts.jackknife(lifted, logpi))


def test_the_partner_is_not_chosen_on_the_images_that_look_on():
    data = lifts.embedded()
    rest, labels = lifts._not_looking(data, SETTING)
    both = torch.cat([rest.flatten(1), looking(data).flatten(1)])
    assert (len(rest), len(both)) == (len(data.test_labels) - 20, len(data.test_labels))
    assert not (rest.flatten(1)[:, None] == looking(data).flatten(1)).all(-1).any()
    assert torch.equal(labels.bincount(), data.test_labels.bincount() - 2)


@pytest.mark.parametrize("setting", [one for size in lifts.SIZES.values() for one in size], ids=lambda one: one.name)
def test_every_setting_sums_the_lessons_of_its_run(setting, monkeypatch):
    """Also those in which the sum is far off: leaving them out would be a choice by the outcome."""
    monkeypatch.setattr(lifts, "mnist", lifts.embedded)
    network = setting.network if setting.data == "embedded" else tiny
    short = replace(setting, network=network, recipe=replace(setting.recipe, images=200, epochs=2), early=1, looking=2)
    end = lifts.tables(SEEDS, settings=[short])[f"lifts: {setting.name}, lessons"]
    for name in ("unexplained", "alike", "on_four_9_9", "lifted_4_9"):
        assert np.isfinite(end[f"eval_{name}"].values).all(), name


def test_a_jackknife_over_classes_is_that_of_the_textbook():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 6, 6, 3))
    without = []
    for i in range(6):
        k = [j for j in range(6) if j != i]
        without.append(lifts.alike(a[k][:, k], b[k][:, k]))
    off = np.array(without) - np.mean(without, 0)
    np.testing.assert_allclose(lifts.jackknife(a, b), np.sqrt(5 / 6 * (off**2).sum(0)))


def test_a_seed_gives_the_same_in_any_company():
    together, alone = lifts.tables(SEEDS, settings=[SETTING]), lifts.tables(SEEDS[1:], settings=[SETTING])
    for name, table in alone.items():
        for variable, values in table.data_vars.items():
            np.testing.assert_allclose(
                together[name][variable].values[1:], values.values, rtol=2e-2, atol=1e-6, err_msg=variable
            )


def test_the_first_design_on_mnist_is_the_papers():
    first, *others = lifts.SIZES["paper"]
    assert (first.network, first.recipe) == ("mlp", Recipe(1e-3, 0.9, 5e-4, 64, 2000, 100))
    assert {one.data for one in (first, *others)} == {"mnist"}
