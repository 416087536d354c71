"""Paths of images with wrong labels: the parts of their forces, the students, and the measures are what they say."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

from toyld import influence
from toyld.digits import Recipe, picked, train
from toyld.digits.data import flipped
from toyld.digits.experiments import _soft, zigzag
from toyld.digits.networks import mlp

SEEDS = [1000, 1001]
RECIPE = Recipe(lr=0.05, momentum=0.5, weight_decay=0.0, batch=20, images=60, epochs=60, cosine=False)


def tiny(seed):
    return mlp(64, width=16, depth=2, seed=seed)


SETTING = zigzag.Setting("tiny", "embedded", tiny, RECIPE, 0.25)


@pytest.fixture(scope="module")
def found():
    return zigzag.run(SEEDS, SETTING)


@pytest.fixture(scope="module")
def tables():
    return zigzag.tables(SEEDS, settings=[SETTING])


@pytest.mark.parametrize("module", [zigzag, _soft])
def test_examples_of_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


def test_a_quarter_of_the_labels_is_wrong_and_is_what_is_taught(found):
    assert found.wrong.sum(1).tolist() == [15, 15]
    assert torch.equal(found.trained.labels, found.given)
    assert torch.equal(found.trained.data.labels[found.trained.index], found.true)
    assert found.trained.epochs == tuple(range(61))


def test_an_images_own_lesson_and_those_of_all_others(found):
    for s, seed in enumerate(SEEDS):
        model, images = influence.Model(found.trained.module(8, seed)), found.trained.images[s]
        terms = []
        for image, label in zip(images, found.given[s], strict=True):
            lesson = influence.teach(image[None], label[None])
            terms.append(influence.predict(model, influence.update(model, lesson, lr=1 / 60), images))
        by_lesson = torch.stack(terms)  # (lesson, image, class)
        for labels in (found.true, found.given):
            toward = by_lesson.gather(2, labels[s][None, :, None].expand(60, -1, 1))[..., 0]
            mine, every = zigzag.own(found, 8, labels)[s], zigzag.all_lessons(found, 8, labels)[s]
            torch.testing.assert_close(mine, toward.diagonal(), rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(every, toward.sum(0), rtol=1e-3, atol=1e-5)
    assert float(mine.abs().max()) > 1e-3


@pytest.mark.parametrize("weights", [None, torch.linspace(-0.2, 2.0, 60)], ids=["all alike", "weighted"])
def test_students_of_one_hot_targets_are_trained_as_ever(found, monkeypatch, weights):
    monkeypatch.setattr(_soft, "blocks", lambda seeds, _: [(seed,) for seed in seeds])  # one after another
    # The last batch of an epoch is a smaller one.
    data, recipe = found.trained.data, replace(RECIPE, epochs=4, batch=25, cosine=True, weight_decay=1e-3)
    q = torch.nn.functional.one_hot(found.given, 10).double()
    options = {"weights": weights, "dtype": torch.float64}
    z = _soft.students(data, tiny, SEEDS, recipe, q, **options)
    plain = train(data, network=tiny, seeds=SEEDS, recipe=recipe, labels=found.given, **options)
    torch.testing.assert_close(z, plain.logits(None, data.test_images), rtol=1e-11, atol=1e-12)


def test_a_step_on_soft_targets_is_that_of_autograd():
    recipe = Recipe(lr=0.1, momentum=0.0, weight_decay=0.0, batch=30, images=30, epochs=1, cosine=False)
    data = zigzag.embedded()
    q = torch.softmax(torch.randn(1, 30, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    z = _soft.students(data, tiny, [1000], recipe, q, dtype=torch.float64)
    net = tiny(1000).double()
    images = data.images[picked(data, recipe, [1000])[0]].double()
    loss = -(q[0] * net.requires_grad_(True)(images).log_softmax(-1)).sum(-1).mean()
    for parameter, slope in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
        parameter.data -= 0.1 * slope
    torch.testing.assert_close(z[0], net(data.test_images.double()).detach(), rtol=1e-10, atol=1e-12)


def test_filter_and_smoothing_are_what_they_say():
    path = torch.rand(4, 2, 3, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = np.array([0.95**3, 0.05 * 0.95**2, 0.05 * 0.95, 0.05])
    np.testing.assert_allclose(zigzag.filtered(path), np.tensordot(weights, path.numpy(), 1), rtol=1e-12)
    labels = torch.tensor([[3, 0], [9, 9]])
    q = zigzag.smoothed(labels, torch.tensor([0.7, 1.9], dtype=torch.float64))
    np.testing.assert_allclose(-(q * q.log()).sum(-1), [[0.7, 0.7], [1.9, 1.9]], rtol=1e-9)
    np.testing.assert_allclose(q.sum(-1), 1)
    assert torch.equal(q.argmax(-1), labels)


def test_a_straight_path_has_no_detour():
    ends = torch.rand(2, 5, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    straight = torch.stack([ends[0], 0.3 * ends[1] + 0.7 * ends[0], ends[1]])
    np.testing.assert_allclose(zigzag.detours(straight), 1)
    there_and_back = torch.stack([ends[0], ends[1], ends[0], ends[1]])
    np.testing.assert_allclose(zigzag.detours(there_and_back), 3)


def test_nobody_judges_an_image_that_he_was_taught(found, monkeypatch):
    seen = {}

    def spy(data, **options):
        seen.update(options)
        return train(data, **options)

    monkeypatch.setattr(zigzag, "train", spy)
    hard = zigzag._hard(found, SETTING)
    theirs = picked(found.trained.data, RECIPE, seen["seeds"])
    for mine, other, weight in zip(found.trained.index, theirs, seen["weights"], strict=True):
        assert not set(mine.tolist()) & set(other[weight > 0].tolist())
        assert float(weight.mean()) > 0.8
    assert hard.shape == (2, 60)
    assert set(seen["seeds"]).isdisjoint(SEEDS)
    # What networks taught rightly find hard is not which labels were flipped.
    assert abs(np.corrcoef(hard.flatten(), found.wrong.flatten())[0, 1]) < 0.3


def test_tables_hold_the_means_over_images_with_wrong_labels(found, tables):
    path, end = tables.values()
    assert [path.attrs["stage"], end.attrs["stage"], path.attrs["share"]] == ["path", "students", 0.25]
    k = zigzag.MARKS.index(14)
    for s, seed in enumerate(SEEDS):
        wrong = found.wrong[s]
        logs = found.trained.module(14, seed)(found.trained.images[s]).detach().double().log_softmax(-1)
        true, given = (logs.gather(1, y[s][:, None])[:, 0] for y in (found.true, found.given))
        want = {
            "log_true": true[wrong].mean(),
            "log_given": given[wrong].mean(),
            "log_clean": true[~wrong].mean(),
            "pi_true": true[wrong].exp().mean(),
            "pi_given": given[wrong].exp().mean(),
            "as_true": (logs.argmax(1) == found.true[s])[wrong].double().mean(),
            "as_given": (logs.argmax(1) == found.given[s])[wrong].double().mean(),
            "heldout": found.trained.accuracy(14)[s],
        }
        for name, value in want.items():
            assert path[f"eval_{name}"].values[s, k] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    whole = sum(path[f"eval_pi_{name}"] for name in ("true", "given", "rest"))
    np.testing.assert_allclose(whole, 1)
    change = path.eval_log_true - path.eval_log_true.isel(step=0)
    np.testing.assert_allclose(path.eval_own_true + path.eval_others_true, change, atol=1e-9)
    early = np.array(zigzag.MARKS) <= zigzag.RISE
    assert np.isfinite(path.eval_foretold_true.values).all(0).tolist() == early.tolist()
    every = torch.stack([found.logs(epoch) for epoch in zigzag.MARKS]).exp()
    bent = zigzag.detours(every)
    np.testing.assert_allclose(end.eval_detour_clean.values[:, 0], [bent[s][~found.wrong[s]].mean() for s in (0, 1)])


def test_what_first_order_foretells_of_the_others_is_what_happens_where_steps_are_small():
    slow = replace(SETTING, recipe=replace(RECIPE, lr=2e-3, batch=60), students=False)
    path = zigzag.tables(SEEDS, settings=[slow])["zigzag: tiny, path"]
    k = zigzag.MARKS.index(zigzag.RISE)
    foretold, happened = path.eval_foretold_true.values[:, k], path.eval_others_true.values[:, k]
    assert np.abs(happened).min() > 1e-5
    np.testing.assert_allclose(foretold, happened, rtol=0.02)


def test_one_half_of_the_held_out_images_chooses_by_noisy_labels_and_the_other_tells_by_true_ones(found):
    true = found.trained.data.test_labels
    noisy = np.stack([flipped(true[::2].numpy(), SETTING.share, seed=seed + zigzag.OTHER) for seed in SEEDS])
    answers = (true + 1).remainder(10).expand(len(zigzag.MARKS), 2, -1).clone()  # all wrong
    answers[3, 0, ::2] = torch.from_numpy(noisy[0])  # the choosing half says: mark 3 for the first seed
    answers[5, 0, ::2] = true[::2]  # it must not know the truth
    answers[3, 0, 1:9:2] = true[1:9:2]  # of the other half, four are right there
    answers[5, 0, 1::2] = true[1::2]  # what it must not look at
    answers[7, 1] = true
    answers[7, 1, ::2] = torch.from_numpy(noisy[1])
    out = zigzag._students(found, SETTING, answers)
    assert (noisy != true[::2].numpy()).mean(1) == pytest.approx([0.25, 0.25], abs=0.01)
    np.testing.assert_allclose(out["accuracy_stopped"], [4 / len(true[1::2]), 1.0])
    np.testing.assert_allclose(out["accuracy_given"], 0.0)


def test_a_seed_gives_the_same_in_any_company(tables):
    """Up to what float32 makes of other sizes of products over a run, which single images close to a border feel."""
    alone = zigzag.tables(SEEDS[1:], settings=[SETTING])
    for name, table in alone.items():
        for variable, values in table.data_vars.items():
            np.testing.assert_allclose(
                tables[name][variable].values[1:], values.values, rtol=0.02, atol=0.03, err_msg=variable
            )
