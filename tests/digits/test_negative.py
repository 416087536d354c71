"""Negative steps on networks: against the package's A·K·G and real updates, against theorems and plain torch."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from toyld import influence
from toyld import softmax as sm
from toyld.digits.data import embedded
from toyld.digits.ensemble import Recipe
from toyld.digits.experiments import _pushes as pushes
from toyld.digits.experiments import negative
from toyld.digits.experiments._pushes import LABELS, STEPS
from toyld.influence.predict import normalised

SEEDS = (1000, 1001)
SHORT = Recipe(lr=0.3, images=600, epochs=4)
SETTINGS = {"MLP": negative.Setting("MLP", negative._small, SHORT), "LeNet": negative.Setting("LeNet", "lenet", SHORT)}


@pytest.fixture(scope="module", params=["MLP", "LeNet"])
def run(request):
    return negative.trained(SEEDS, SETTINGS[request.param], data=embedded())


@pytest.fixture(scope="module")
def pushed(run):
    return negative.pushed_at(run, run.marks[-1], SEEDS[1])


def network(run, seed=SEEDS[1]):
    """The trained module in float64, and the images of its pushes."""
    places, drawn = pushes.picked(run.data, seed)
    return run.module(None, seed).double(), run.data.test_images[places].double(), drawn


def test_images_and_labels_are_those_announced(run, pushed):
    classes, n = pushed.classes, pushes.IMAGES
    assert len(set(classes[:n].tolist())) == n
    assert (classes[:n] == classes[n:]).all()
    p = pushed.z[:n].softmax(-1)
    for i in range(n):
        true, likely, drawn, rare = pushed.y[i].tolist()
        wrong = [j for j in range(10) if j != classes[i]]
        assert true == classes[i]
        assert likely == max(wrong, key=lambda j: p[i, j])
        assert drawn in set(classes[:n].tolist()) - {true}
        assert rare == int(p[i].argmin())
        for y, star in zip(pushed.y[i].tolist(), pushed.star[i].tolist(), strict=True):
            assert star == int(sm.runner_up(pushed.z[i].numpy(), y))


def test_jacobians_are_those_of_influence(run):
    module, images, _ = network(run)
    model = influence.Model(module)
    theta = {name: value.detach() for name, value in module.named_parameters()}
    found = pushes.jacobian(run.architecture, theta, images[:3])
    for name, wanted in influence.jacobian(model, images[:3]).items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layers", ["all", "head"])
def test_a_push_is_one_step_of_gradient_descent_and_its_first_order(run, pushed, layers):
    module, images, _ = network(run)
    model = influence.Model(module, parameters=None if layers == "all" else "head.*")
    for i, label in ((0, 0), (2, 3)):
        y = pushed.y[i, label]
        for name, s in STEPS.items():
            lr = s / float(pushed.kappa[layers][i])
            step = influence.update(model, influence.teach(images[i : i + 1], y[None], weight=-1.0), lr=lr)
            done = pushed.log_ratio(pushed.after[layers, name])[i, label]
            torch.testing.assert_close(done, influence.actual(model, step, images), rtol=1e-7, atol=1e-11)
            first = influence.predict(model, step, images)
            d = s * pushed.linear[layers][i, label]
            torch.testing.assert_close(normalised(pushed.z, d), first, rtol=1e-7, atol=1e-12)


def test_parts_of_the_kernel_sum_to_it_and_the_heads_is_a_multiple_of_one(run, pushed):
    module, images, _ = network(run)
    whole = influence.kernel(influence.Model(module), images[:1], images[:1])[0, :, 0]
    torch.testing.assert_close(torch.stack([k[0] for k in pushed.K.values()]).sum(0), whole, rtol=1e-9, atol=1e-10)
    found = pushes.kernels(pushed)
    assert found["apart_head"].max() < 1e-7 < 0.1 < found["apart_body"].min()
    project = np.eye(10) - 0.1
    centred = project @ whole.numpy() @ project
    kappa = np.trace(centred) / 9
    assert float(pushed.kappa["all"][0]) == pytest.approx(kappa, rel=1e-10)
    wanted = np.linalg.norm(centred - kappa * project) / np.linalg.norm(centred)
    assert float(found["apart_all"][0]) == pytest.approx(wanted, rel=1e-9)
    head = pushed.K["head"][0].diagonal()
    assert float(found["head_share"][0]) == pytest.approx(float(head.mean()) / kappa, rel=1e-9)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("layers", ["all", "head"])
def test_measures_of_every_case_follow_their_definitions(pushed, layers, step):
    found = pushes.at_home(pushed, layers, step)
    for i, label in np.ndindex(*pushed.y.shape):
        wanted = by_definition(pushed, layers, step, i, label)
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            assert float(found[name][i, label]) == pytest.approx(float(value), abs=1e-12, nan_ok=True), (name, i, label)


def by_definition(pushed, layers, step, i, label):
    """What `at_home` measures of one case, one number at a time."""
    y, star, s = int(pushed.y[i, label]), int(pushed.star[i, label]), STEPS[step]
    z = pushed.z[i].numpy()
    d, after = (a[i, label, i].numpy() for a in (pushed.linear[layers], pushed.after[layers, step]))
    p, done = sm.softmax(z), sm.log_softmax(after) - sm.log_softmax(z)
    exact = sm.log_softmax(z + s * d) - sm.log_softmax(z)
    others = np.array([j for j in range(10) if j != y])
    rest = others[others != star]
    up = done > 0
    return {
        "falls": float(done[y] < 0) if s * (1 - p[y]) ** 2 >= 1e-12 else np.nan,
        "rises": up[star],
        "rises_told": up[star] == (exact[star] > 0),
        "told_falls": np.nan if up[star] else float(exact[star] <= 0),
        "told_rises": float(exact[star] > 0) if up[star] else np.nan,
        "kernel": np.mean(up[others] == (exact[others] > 0)),
        "first": np.mean(up[others] == (d[others] > p @ d)),
        "plain": np.mean(up[others] == sm.winners(z, y, s=s)[others]),
        "losers": np.mean(~up[rest]),
        "plain_losers": np.mean(~sm.winners(z, y, s=s)[rest]),
        "order": stats.spearmanr(done[others], p[others]).statistic,
        "top": others[done[others].argmax()] == star,
        "calmer": sm.entropy(after) < sm.entropy(z),
        "calmer_told": (sm.entropy(after) < sm.entropy(z)) == (sm.entropy(z + s * d) < sm.entropy(z)),
        "calmer_valley": float(sm.entropy(after) < sm.entropy(z)) if sm.valley_depth(z, y) >= 0 else np.nan,
    }


def replaced(pushed, fall, foretold):
    """The same with y* of image 0, label 0 brought to fall or rise, and foretold to, by one logit of y* alone."""
    star = int(pushed.star[0, 0])
    after, linear = pushed.after["all", "moderate"].clone(), pushed.linear["all"].clone()
    for values, base, down in ((after, pushed.z[0], fall), (linear, torch.zeros(10).double(), foretold)):
        values[0, 0, 0] = base
        values[0, 0, 0, star] += -1.0 if down else 1.0
    return dataclasses.replace(
        pushed, after={**pushed.after, ("all", "moderate"): after}, linear={**pushed.linear, "all": linear}
    )


@pytest.mark.parametrize("foretold", [True, False])
@pytest.mark.parametrize("fall", [True, False])
def test_what_k_tells_of_falls_and_of_rises_by_hand(pushed, fall, foretold):
    found = pushes.at_home(replaced(pushed, fall, foretold), "all", "moderate")
    falls, rises = (float(found[name][0, 0]) for name in ("told_falls", "told_rises"))
    assert (falls, rises) == pytest.approx(
        (float(foretold), np.nan) if fall else (np.nan, float(not foretold)), nan_ok=True
    )


@pytest.mark.parametrize(("step", "bar"), [("moderate", 1e-6), ("small", 1e-5)])
def test_a_saturated_label_neither_falls_nor_does_not(pushed, step, bar):
    falls = {}
    for times in (0.5, 2.0):
        left, residual = times * bar, pushed.residual.clone()
        residual[0, 0, pushed.y[0, 0]] = -left
        falls[times] = pushes.at_home(dataclasses.replace(pushed, residual=residual), "all", step)["falls"]
    assert falls[0.5][0, 0].isnan()
    assert not falls[0.5][1:].isnan().any()
    assert not falls[2.0].isnan().any()


def test_seeds_push_at_images_and_labels_of_their_own():
    found = [pushes.picked(embedded(), seed) for seed in (1000, 1001, 1002)]
    assert len({tuple(places.tolist()) for places, _ in found}) == 3
    assert len({tuple(drawn.tolist()) for _, drawn in found}) == 3


def test_other_images_are_told_apart_by_class(pushed):
    found = pushes.elsewhere(pushed, "all", "moderate")
    done = pushed.log_ratio(pushed.after["all", "moderate"])
    exact = pushed.log_ratio(pushed.z + pushed.linear["all"])
    for i, label in ((0, 0), (1, 1), (3, 2)):
        y, star, own = pushed.y[i, label], pushed.star[i, label], pushed.classes[i]
        who = {
            "mate": [j for j in range(8) if j != i and pushed.classes[j] == own],
            "label": [j for j in range(8) if pushed.classes[j] == y and y != own],
            "rest": [j for j in range(8) if pushed.classes[j] not in (y, own)],
        }
        for name, at in who.items():
            for kind, sign, c in (("falls", -1, y), ("rises", 1, star)):
                wanted = np.mean([float(sign * done[i, label, j, c] > 0) for j in at]) if at else np.nan
                assert float(found[f"{kind}_{name}"][i, label]) == pytest.approx(wanted, nan_ok=True), (name, kind)
        right = [(done[i, label, j, star] > 0) == (exact[i, label, j, star] > 0) for j in range(8) if j != i]
        assert float(found["elsewhere_told"][i, label]) == pytest.approx(np.mean(right))


def test_the_head_alone_keeps_what_the_closed_form_promises(pushed, run):
    for step in STEPS:
        home, away = pushes.at_home(pushed, "head", step), pushes.elsewhere(pushed, "head", step)
        for name in ("falls", "rises", "plain", "top"):
            assert (home[name] == 1).all(), name
        torch.testing.assert_close(home["order"], torch.ones_like(home["order"]))
        if any(isinstance(layer, nn.ReLU) for layer in run.architecture):
            # Features ≥ 0: ⟨h_o, h_u⟩ + 1 > 0, so y falls and y* rises at every image (network.favourite-spreads).
            assert all((away[f"{kind}_{who}"].nan_to_num(1.0) == 1).all() for kind in ("falls", "rises") for who in WHO)


WHO = ("mate", "label", "rest")


@pytest.mark.parametrize(("i", "image"), [(0, 0), (1, 0), (1, 1)])
def test_forgetting_is_plain_gradient_descent_on_the_label(run, i, image):
    kappa = torch.stack([negative.pushed_at(run, run.marks[-1], seed).kappa["all"][image] for seed in SEEDS])
    found = negative._forget(run, run.marks[-1], image, kappa)
    module, images, _ = network(run, SEEDS[i])
    images = images.roll(-image, 0)
    places, _ = pushes.picked(run.data, SEEDS[i])
    y = int(run.data.test_labels[places[image]])
    with torch.no_grad():
        before = module(images).log_softmax(-1)
    own = influence.kernel(influence.Model(module), images[:1], images[:1])[0, :, 0]
    lr = 9.0 / float(own.trace() - own.sum() / 10)
    repeats = 0
    while repeats < 50:
        loss = module(images[:1]).log_softmax(-1)[0, y]
        if float(loss.detach().exp()) <= 0.01:
            break
        grads = torch.autograd.grad(loss, list(module.parameters()))
        with torch.no_grad():
            for parameter, g in zip(module.parameters(), grads, strict=True):
                parameter -= lr * g
        repeats += 1
    with torch.no_grad():
        after = module(images).log_softmax(-1)
    star = int(sm.runner_up(before[0].numpy(), y))
    wanted = {
        "label_before": before[0, y].exp(), "label_after": after[0, y].exp(), "star_before": before[0, star].exp(),
        "star_after": after[0, star].exp(), "entropy_before": sm.entropy(before[0].numpy()),
        "entropy_after": sm.entropy(after[0].numpy()), "repeats": repeats, "forgotten": after[0, y].exp() <= 0.01,
        "spread": (after[1:, star] > before[1:, star]).double().mean(),
    }  # fmt: skip
    assert set(found) == {*wanted, "plain_after"}
    for name, value in wanted.items():
        assert float(found[name][i]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
    # The closed form goes just as far, and by negative steps alone.
    z, y, until = before[:1], torch.tensor([y]), after[:1, y].exp().flatten()
    plain = negative._by_closed_form(z, y, until)
    assert float(plain[0, y]) == pytest.approx(float(until), rel=1e-9)
    assert float(found["plain_after"][i]) == pytest.approx(float(plain[0, star]), rel=1e-5)


def test_the_closed_form_shares_equally_among_equals_and_feeds_the_largest():
    z, y = torch.zeros(2, 10).double(), torch.tensor([0, 3])
    z[1, 7] = 1.0
    until = torch.tensor([0.01, 0.002], dtype=torch.float64)
    found = negative._by_closed_form(z, y, until)
    np.testing.assert_allclose(found[0], [0.01] + 9 * [0.99 / 9], rtol=1e-12)
    start, rest = z[1].softmax(-1), [j for j in range(10) if j not in (3, 7)]
    assert found[1, 3].item() == pytest.approx(0.002, rel=1e-12)
    np.testing.assert_allclose(found[1, rest], np.full(8, found[1, 0]), rtol=1e-12)
    assert found[1, 7] / found[1, 0] > start[7] / start[0]


def test_tables_have_means_by_seed_whatever_the_company():
    setting = SETTINGS["MLP"]
    both, one = negative.tables(SEEDS, settings=[setting]), negative.tables(SEEDS[1:], settings=[setting])
    kinds = [f"{stage}, {kind}" for stage in negative.STAGES for kind in ("all", "head", "forget")]
    assert [name.removeprefix("negative: MLP, ") for name in both] == kinds[:2] + kinds[3:]
    for name, ds in one.items():
        assert (ds.attrs["experiment"], ds.attrs["network"]) == ("negative", "MLP")
        for variable, values in ds.data_vars.items():
            np.testing.assert_allclose(both[name][variable].sel(seed=[SEEDS[1]]), values, rtol=1e-4, atol=1e-6)
    run = negative.trained(SEEDS, setting, data=embedded())
    found = pushes.at_home(negative.pushed_at(run, run.marks[1], SEEDS[0]), "all", "small")["losers"].numpy()
    ds = both["negative: MLP, early, all"]
    for i, label in enumerate(LABELS):
        assert float(ds[f"eval_losers_{label}_small"][0, 0]) == pytest.approx(found[:, i].mean())
    assert float(ds["eval_losers_any_small"][0, 0]) == pytest.approx(found.mean())
