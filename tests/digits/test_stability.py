"""Rankings of ‖K_uo‖ along training: numbers against scipy and loops, couplings against autograd, tables by hand."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from toyld import digits, influence
from toyld.digits.experiments import _couplings as couplings_of
from toyld.digits.experiments import _rankings as rankings
from toyld.digits.experiments import stability
from toyld.influence.stability import standing

EPS = float(np.finfo(np.float32).eps)
SEEDS = (1000, 1001)


def tiny(seed):
    return digits.mlp(64, width=12, depth=1, seed=seed)


RECIPE = digits.Recipe(lr=0.1, images=200, epochs=5, cosine=False)
TINY = stability.Setting("tiny", tiny, RECIPE, shares=(0.0, 0.05, 0.1, 0.5, 0.9, 1.0), images=1, summed=1)


@pytest.fixture(scope="module")
def seen():
    """The experiment on a network of 890 parameters, with its images."""
    found = stability.observe(digits.embedded(), SEEDS, TINY)
    images, labels = couplings_of.pictures(digits.embedded(), found.trained.index, SEEDS, TINY.images)
    return found, images, labels


def norms_of(trained, mark, place, images):
    """‖K‖ (O, O) from autograd's own Jacobians of all logits."""
    module = trained.module(None, trained.seeds[place], update=mark).double()
    rows = []
    for image in images.double():
        z = module(image[None])[0]
        grads = [torch.autograd.grad(one, list(module.parameters()), retain_graph=True) for one in z]
        rows.append(torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads]))
    return np.array([[float(torch.linalg.matrix_norm(a @ b.T)) for b in rows] for a in rows])


# --- numbers


def test_standing_gives_spearmans_correlation_ties_included():
    rng = np.random.default_rng(0)
    for levels in (3, 100):
        x, y = rng.integers(levels, size=(2, 9)).astype(float)
        found = float(standing(x) @ standing(y))
        assert found == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert np.isnan(standing(np.ones(4))).all()


def test_means_over_lessons_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    x, y, labels = rng.random((7, 4)), rng.random((7, 4)), np.array([0, 1, 1, 2])
    loop = [spearmanr(x[:, u], y[:, u]).statistic for u in range(4)]
    assert float(rankings.over_observers(x, y)) == pytest.approx(np.mean(loop))
    pairs = [(a, b) for a in range(4) for b in range(4) if labels[a] != labels[b]]
    loop = [spearmanr(x[:, a], x[:, b]).statistic for a, b in pairs]
    assert len(pairs) == 10
    assert float(rankings.swapped(x, labels)) == pytest.approx(np.mean(loop))


def test_shared_tells_sizes_from_rankings_of_their_own():
    rng = np.random.default_rng(2)
    size, own = np.exp(rng.normal(size=400)), np.exp(rng.normal(size=(400, 50)))
    assert float(rankings.shared(size[:, None] * np.exp(rng.normal(size=50)))) == pytest.approx(1.0)
    assert float(rankings.shared(own)) == pytest.approx(1 / 50, abs=0.01)
    assert float(rankings.shared(size[:, None] * own)) == pytest.approx(0.5 + 0.5 / 50, abs=0.06)


def test_class_means_are_those_of_a_loop_and_symmetric():
    rng = np.random.default_rng(3)
    taught, of = np.arange(10), np.tile(np.arange(10), 2)
    norms = rng.random((20, 10))
    matrix = rankings.by_class(norms, of, taught)

    def way(a, b):
        return np.mean([norms[o, u] for o in range(20) for u in range(10) if of[o] == a and taught[u] == b and o != u])

    for a, b in ((4, 9), (9, 4), (3, 3)):
        assert matrix[a, b] == pytest.approx((way(a, b) + way(b, a)) / 2), (a, b)


def test_alike_and_lead_are_defined_by_logs():
    matrix = np.exp(np.random.default_rng(4).normal(size=(10, 10)))
    matrix = (matrix + matrix.T) / 2
    others = [k for k in range(10) if k not in (4, 9)]
    want = np.log(matrix[4, 9]) - np.mean([np.log(matrix[c, k]) for c in (4, 9) for k in others])
    assert float(rankings.alike(matrix, 4, 9)) == pytest.approx(want)
    assert float(rankings.alike(1e3 * matrix, 4, 9)) == pytest.approx(want)
    best = max(others, key=lambda k: matrix[4, k])
    assert float(rankings.lead(matrix, 4, 9)) == pytest.approx(np.log(matrix[4, 9] / matrix[4, best]))
    assert float(rankings.lead(matrix, 4, best)) > 0 or matrix[4, 9] > matrix[4, best]


def test_a_factor_on_a_kernel_is_no_change_of_shape():
    rng = np.random.default_rng(6)
    k, other = rng.normal(size=(5, 3, 2, 3)), ~np.eye(5, 2, dtype=bool)
    total, shape = rankings.apart(np.stack([k, 3.0 * k, -k]), other)
    assert total[0, 1] == pytest.approx(2.0 / 3.0**0.5)
    np.testing.assert_allclose(shape, [[0.0, 0.0, 2.0], [0.0, 0.0, 2.0], [2.0, 2.0, 0.0]], atol=1e-7)


def test_partners_leave_out_the_class_itself():
    matrix = np.random.default_rng(5).random((3, 10, 10)) + 2 * np.eye(10)
    found = rankings.partners(matrix)
    for t in range(3):
        for a in range(10):
            assert found[t, a] == max((b for b in range(10) if b != a), key=lambda b, a=a, t=t: matrix[t, a, b])


def test_equal_change_is_read_between_checkpoints_and_nan_where_never_reached():
    change, rank = np.array([0.0, 0.5, 0.4, 2.0]), np.array([1.0, 0.8, 0.7, 0.2])
    assert rankings.at_equal_change(change, rank, 0.25) == pytest.approx(0.9)
    assert rankings.at_equal_change(change, rank, 1.2) == pytest.approx(0.45)
    assert rankings.at_equal_change(change, rank, 0.0) == 1.0
    assert np.isnan(rankings.at_equal_change(change, rank, 2.1))


# --- couplings


def test_taught_digits_are_trained_ones_observers_are_held_out(seen):
    found, images, labels = seen
    data = digits.embedded()
    assert labels.tolist() == [*range(10), *range(10)]
    for s in range(2):
        own = data.images[found.trained.index[s]].flatten(1)
        taught, new = images[s, :10].flatten(1), images[s, 10:].flatten(1)
        for c in range(10):
            at = (own == taught[c]).all(1).nonzero()[:, 0]
            assert data.labels[found.trained.index[s]][at].tolist().count(c) >= 1
            held = (data.test_images.flatten(1) == new[c]).all(1).nonzero()[:, 0]
            assert data.test_labels[held].tolist().count(c) >= 1


def test_seeds_pick_different_images_out_of_the_same_ones():
    data = digits.embedded()
    images, _ = couplings_of.pictures(data, np.tile(np.arange(len(data.labels)), (2, 1)), SEEDS, 2)
    for half in (images[:, :20], images[:, 20:]):
        same = [int((half[0, i] == half[1]).flatten(1).all(1).sum()) for i in range(20)]
        assert sum(same) < 5, same  # of 36 or more a class two each: about one of 20 in common by chance


def test_first_order_is_that_of_influence_and_one_update_is_the_real_one(seen):
    found, images, labels = seen
    trained, s = found.trained, 1
    mark = trained.marks[-1]
    _, z, k = list(couplings_of.couplings(trained, s, images[s]))[-1]
    first = couplings_of.first_order(z, k[:, :, :10], labels[:10])
    moved = couplings_of.moved(trained, mark, s, images[s], labels[:10])
    model = influence.Model(trained.module(None, SEEDS[s], update=mark))
    for u in (0, 7):
        lesson = influence.teach(images[s, u : u + 1], torch.tensor([labels[u]]))
        step = influence.update(model, lesson, lr=RECIPE.lr)
        told = influence.predict(model, step, images[s]).norm(dim=-1)
        torch.testing.assert_close(RECIPE.lr * first[:, u], told, rtol=1e-3, atol=1e-5)
        happened = influence.actual(model, step, images[s]).norm(dim=-1).double()
        torch.testing.assert_close(moved[:, u], happened, rtol=1e-3, atol=1e-5)


def test_first_order_is_exact_where_the_lesson_is_all_but_learnt():
    z = torch.tensor([[40.0, 0.0, -1.0]], dtype=torch.float64)
    k = torch.eye(3, dtype=torch.float64).reshape(1, 3, 1, 3)
    g = np.exp([-40.0, -41.0])
    want = np.sqrt(g.sum() ** 2 + (g**2).sum())  # ⟨π, G⟩ is of second order
    assert float(couplings_of.first_order(z, k, [0])) == pytest.approx(want, rel=1e-9)


def test_sums_are_those_of_all_updates_one_by_one():
    data, seeds = digits.embedded(), [1003, 1004]
    recipe = digits.Recipe(lr=0.05, images=100, epochs=4, cosine=False)
    last = recipe.updates(100)
    every = digits.train(
        data, network=tiny, seeds=seeds, recipe=recipe, at=[k / recipe.per_epoch(100) for k in range(last)]
    )
    images, _ = couplings_of.pictures(data, every.index, seeds, 1)
    total, change, few = couplings_of.summed(data, tiny, recipe, seeds, images, (0, 3, last), 4)
    assert total.shape == change.shape == (2, 3, 20, 10)
    assert not total[:, 0].any()
    assert not change[:, 0].any()
    for s, seed in enumerate(seeds):
        terms = []
        for k in range(last):
            model = influence.Model(every.module(None, seed, update=k))
            after = every.parameters(update=k + 1)
            step = {name: after[name][s] - p for name, p in model.theta.items()}
            terms.append(influence.normalised(*model.tangent(images[s], step)).double().numpy())
        scale = np.abs(terms).sum(0).max()
        for i, upto in enumerate((3, last), 1):
            np.testing.assert_allclose(total[s, i], np.sum(terms[:upto], 0), atol=50 * EPS * scale)
        chosen = [int((k + 0.5) * last / 4) for k in range(4)]
        np.testing.assert_allclose(few[s], last / 4 * np.sum([terms[k] for k in chosen], 0), atol=200 * EPS * scale)
        before, now = (every.logits(None, images, update=k).log_softmax(-1)[s] for k in (0, last))
        np.testing.assert_allclose(change[s, -1], (now - before).numpy(), atol=1e-4)


# --- the table


def test_columns_are_as_defined_from_autograds_jacobians(seen):
    found, images, labels = seen
    columns, marks = found.columns, found.trained.marks
    assert marks == (0, 1, 2, 10, 18, 20)
    s = 1
    full = np.array([norms_of(found.trained, mark, s, images[s]) for mark in marks])  # (T, 20, 20)
    norms, other = full[:, :, :10], ~np.eye(20, 10, dtype=bool)
    np.testing.assert_allclose(columns["eval_norm"][s], norms[:, other].mean(-1), rtol=1e-4)
    own = full[:, np.arange(20), np.arange(20)]
    divided = norms / np.sqrt(own[:, :, None] * own[:, None, :10])

    def agreement(x, i, j, rows_of):
        return np.mean([spearmanr(x[i, rows_of(u), u], x[j, rows_of(u), u]).statistic for u in range(10)])

    new = np.arange(10, 20)
    kinds = {
        "seen": (norms, lambda u: np.setdiff1d(np.arange(10), [u])),
        "new": (norms, lambda u: new),
        "relative": (divided, lambda u: new),
        "others": (norms, lambda u: new[labels[new] != labels[u]]),
    }
    before = {0: None, 1: None, 2: 0, 3: None, 4: None, 5: 4}  # a tenth before: updates 2 ← 0 and 20 ← 18 alone
    for kind, (x, rows_of) in kinds.items():
        for i in range(6):
            assert columns[f"eval_rank_first_{kind}"][s, i] == pytest.approx(agreement(x, 0, i, rows_of), abs=2e-2)
            assert columns[f"eval_rank_last_{kind}"][s, i] == pytest.approx(agreement(x, 5, i, rows_of), abs=2e-2)
        for i, j in before.items():
            value = columns[f"eval_rank_before_{kind}"][s, i]
            assert np.isnan(value) if j is None else value == pytest.approx(agreement(x, i, j, rows_of), abs=2e-2)
    np.testing.assert_allclose(columns["eval_rank_last_new"][:, -1], 1.0)
    assert (columns["eval_rank_first_new"][:, -1] < 1.0).all()
    matrix = rankings.by_class(norms[-1], labels, labels[:10])
    assert columns["eval_alike_4_9"][s, -1] == pytest.approx(float(rankings.alike(matrix, 4, 9)), abs=1e-4)
    shares = rankings.by_class(divided[-1], labels, labels[:10])
    assert columns["eval_lead_relative_9_4"][s, -1] == pytest.approx(float(rankings.lead(shares, 9, 4)), abs=1e-4)
    flat = images[s].flatten(1).double().numpy()
    pixels = np.abs(flat @ flat.T)
    want = np.mean([spearmanr(norms[3, new, u], pixels[new, u]).statistic for u in range(10)])
    assert columns["eval_rank_pixels"][s, 3] == pytest.approx(want, abs=2e-2)


def test_change_is_of_the_kernels_themselves(seen):
    found, images, _ = seen
    kernels = [k[:, :, :10].double().numpy() for _, _, k in couplings_of.couplings(found.trained, 0, images[0])]
    other = ~np.eye(20, 10, dtype=bool)

    def size(k):
        return np.sqrt((k**2).sum((1, 3)))[other].mean()

    for i in range(6):
        want = size(kernels[i] - kernels[-1]) / np.sqrt(size(kernels[i]) * size(kernels[-1]))
        assert found.columns["eval_change_last"][0, i] == pytest.approx(want, rel=1e-4, abs=1e-6), i
        of_size = [k / size(k) for k in (kernels[i], kernels[-1])]
        assert found.columns["eval_shape_last"][0, i] == pytest.approx(
            size(of_size[0] - of_size[1]), rel=1e-4, abs=1e-7
        )
    half = found.columns["eval_shape_last"][0, 3]
    path = [found.columns[f"eval_{name}"][0] for name in ("shape_first", "rank_first_seen")]
    want = rankings.at_equal_change(*path, half)
    np.testing.assert_equal(found.columns["eval_rank_matched_seen"][0], [np.nan] * 5 + [want])


def test_sums_fit_only_the_seeds_asked_for_and_foretelling_is_measured_thrice(seen):
    found, _, _ = seen
    assert np.isnan(found.columns["eval_sum_fit"][1]).all()
    assert np.isfinite(found.columns["eval_sum_fit"][0, 1:]).all()
    assert found.columns["eval_sum_fit"][0, 1] > 0.95  # one small update
    for name in ("norm", "first"):
        np.testing.assert_array_equal(
            np.isfinite(found.columns[f"eval_foretold_by_{name}"][0]), [True, False, False, True, False, True]
        )


def test_a_seed_does_not_depend_on_those_beside_it(seen):
    alone = stability.tables([SEEDS[1]], settings=[TINY])["stability: tiny"]
    assert alone.attrs["experiment"] == "stability"
    assert (alone.attrs["rate"], alone.attrs["data"]) == ("constant", "embedded")
    columns = {name: value for name, value in seen[0].columns.items() if "fit" not in name}
    for name, value in columns.items():
        loose = {"rtol": 1e-3, "atol": 2e-2 if "rank" in name or "foretold" in name else 1e-4}
        np.testing.assert_allclose(alone[name].values[0], value[1], **loose, err_msg=name)


def test_settings_are_those_stated():
    small, large = stability.SIZES["smoke"], stability.SIZES["paper"]
    assert [one.recipe.cosine for one in (*small, *large)] == [False, False, True, False, True]
    for one in large:
        recipe = one.recipe
        assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch) == (1e-3, 0.9, 5e-4, 64)
        assert (recipe.images, recipe.epochs) == (2000, 100)
        assert set(one.shares) >= {0.0, *(k / 10 for k in range(1, 11))}
    assert all(one.recipe.images is None and one.recipe.epochs == 16 for one in small)


def test_further_columns_are_those_of_their_functions(seen):
    found, images, labels = seen
    trained, s, columns = found.trained, 0, found.columns
    every = list(couplings_of.couplings(trained, s, images[s]))
    norms = np.array([torch.linalg.vector_norm(k, dim=(1, 3)).double().numpy() for _, _, k in every])
    new, taught = norms[:, 10:, :10], labels[:10]
    for name, want in (("rank_swapped", rankings.swapped(new, taught)), ("shared", rankings.shared(new))):
        np.testing.assert_allclose(columns[f"eval_{name}"][s], want, rtol=1e-5, err_msg=name)
    nearest = rankings.partners(found.matrices[s])
    want = [np.mean([nearest[t, c] == nearest[-1, c] for c in range(10)]) for t in range(6)]
    assert columns["eval_partners"][s].tolist() == want
    assert want[0] < 1.0 == want[-1]
    mark, z, k = every[-1]
    first = couplings_of.first_order(z.double(), k[:, :, :10].double(), taught).numpy()
    move = couplings_of.moved(trained, mark, s, images[s], taught).numpy()
    for name, by in (("norm", new[-1]), ("first", first[10:])):
        want = np.mean([spearmanr(by[:, u], move[10:, u]).statistic for u in range(10)])
        assert columns[f"eval_foretold_by_{name}"][s, -1] == pytest.approx(want, abs=1e-6), name
    pairs = [(a, b) for a in range(10) for b in range(10) if a != b]
    want = np.mean([abs(np.log(first[a, b] / first[b, a])) for a, b in pairs])
    assert columns["eval_asymmetry"][s, -1] == pytest.approx(want, rel=1e-6)
