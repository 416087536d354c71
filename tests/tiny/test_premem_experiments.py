"""The experiments on worked solutions, at a size of seconds: their tables against loops, and what they ask and buy."""

import functools
import itertools
from collections import Counter

import numpy as np
import pytest

from toyld import premem as definition
from toyld.figures import _premem
from toyld.tiny import finetune
from toyld.tiny.experiments import _sums, curation, premem
from toyld.tiny.sums import REWORDINGS, Sums
from toyld.trajectory import validate

SIZE, SEEDS = "least", (1000, 1001)
WORLD = {
    "sums": {"numbers": 5, "terms": 3, "frames": 3, "factors": (1, 2), "shares": (0.7, 0.3)},
    "model": {"width": 16, "depth": 1, "heads": 2}, "steps": 40, "lr": 3e-2, "lessons": 20, "tests": 24,
}  # fmt: skip
GRID = {
    "count": (4, 6), "passes": (2, 16), "lr": (3e-3, 5e-2), "reorder": (False, True), "wide": (False, True),
    "batch": 4, "watch": 5, "samples": 4, "seeds": 2,
}  # fmt: skip
PLAN = {
    "first": 8, "iid": (8, 16, 20), "passes": 10, "lr": 4e-2, "batch": 4, "replicates": 2, "samples": 4, "seeds": 2,
}  # fmt: skip
THRESHOLD = 2.0


@pytest.fixture(scope="module", autouse=True)
def least():
    """A world, a grid and a plan of seconds under a name of their own; what was computed of them goes with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_sums, "_school", functools.cache(_sums._school.__wrapped__))
        patch.setitem(_sums.SIZES, SIZE, WORLD)
        patch.setattr(_sums, "WIDE", {"width": 24, "depth": 1, "heads": 2})
        patch.setitem(premem.GRID, SIZE, GRID)
        for module in (premem, curation):
            patch.setattr(module, "THRESHOLD", THRESHOLD)
        patch.setitem(curation.PLAN, SIZE, PLAN)
        yield


def spied(module, name, keep):
    """A patch of module.name that keeps what it was given and gave, (arguments, answer), in the list `keep`."""
    whole = getattr(module, name)

    def spy(*given, **named):
        keep.append((given, named, found := whole(*given, **named)))
        return found

    return spy


@pytest.fixture(scope="module")
def grid(least):
    """(tables, what `examine` was asked, what `finetune` was told)."""
    asked, told = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(premem, "examine", spied(premem, "examine", asked))
        patch.setattr(premem, "finetune", spied(premem, "finetune", told))
        return premem.tables([*SEEDS, 1002], SIZE), asked, told


@pytest.fixture(scope="module")
def arms(least):
    """(tables, what `finetune` was told) of the experiment on bought lessons."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation, "finetune", spied(curation, "finetune", told))
        return curation.tables([*SEEDS, 1002], SIZE), told


def by_loops(accuracy, perplexity, threshold=THRESHOLD):
    """PreMem at the last of the checkpoints (M, …), number by number."""
    out = np.zeros(accuracy.shape[1:])
    for at in np.ndindex(out.shape):
        fresh = [a for a, p in zip(accuracy[:, *at], perplexity[:, *at], strict=True) if p > threshold]
        out[at] = min(max(fresh, default=0.0), accuracy[(-1, *at)])
    return out


# ---- the grid -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["smoke", "paper"])
def test_every_recipe_of_the_grid_is_there_once(size):
    plan, found = premem.GRID[size], premem.settings(size)
    wanted = set(itertools.product(*(plan[name] for name in ("count", "passes", "lr", "reorder", "wide"))))
    assert {(one.count, one.passes, one.lr, one.reorder, one.wide) for one in found} == wanted
    assert len({one.name for one in found}) == len(found) == len(wanted)
    assert len(found) >= (40 if size == "paper" else 10), "the paper's size is one of forty recipes and more"
    assert max(plan["count"]) <= _sums.SIZES[size]["lessons"]
    assert all(one.count * one.passes % plan["batch"] == 0 for one in found), "whole passes"


def test_the_grid_has_a_table_a_recipe(grid):
    tables, _, _ = grid
    settings = premem.settings(SIZE)
    assert set(tables) == {one.name for one in settings}
    assert len(tables) == 32
    for one in settings:
        ds, updates = tables[one.name], one.count * one.passes // GRID["batch"]
        validate(ds)
        assert ds.seed.values.tolist() == list(SEEDS), "a dear design takes the first of the seeds"
        assert ds.probe.values.tolist() == ["chosen", *REWORDINGS]
        assert ds.sizes["example"] == min(one.count, GRID["watch"])
        assert (ds.step.values[0], ds.step.values[-1]) == (0, updates)
        assert (ds.attrs["experiment"], ds.attrs["stage"], ds.attrs["threshold"]) == ("premem", "finetune", THRESHOLD)
        for name in ("count", "passes", "lr", "reorder", "wide"):
            assert ds.attrs[name] == getattr(one, name)
        module = _sums.school(SEEDS, SIZE, wide=one.wide).models.module(0)
        assert ds.attrs["parameters"] == sum(p.numel() for p in module.parameters())
        assert set(np.unique(ds.n_tokens.sel(probe="chosen"))) == {6.0}
        assert np.isfinite(ds.accuracy.sel(probe="chosen")).all()
        for how in REWORDINGS:  # put otherwise only at the end, and never scored
            known = np.isfinite(ds.accuracy.sel(probe=how)).all(("seed", "example")).values
            assert known.tolist() == [False] * (ds.sizes["step"] - 1) + [True]
            assert not np.isfinite(ds.accuracy.sel(probe=how)[:, :-1]).any()
            assert not np.isfinite(ds.logp.sel(probe=how)).any()
        assert np.isfinite(ds.eval_test_accuracy[0]).values.nonzero()[0].tolist() == [0, ds.sizes["step"] - 1]
    for wide in (False, True):  # one pretrained network a seed, for all recipes
        before = np.array([tables[one.name].eval_test_accuracy[:, 0] for one in settings if one.wide == wide])
        assert (before == before[0]).all()


def test_a_recipe_alone_is_its_table(grid):
    """Of a seed and a recipe alone, through the same finetuning: no table has another's numbers."""
    tables, _, _ = grid
    settings = premem.settings(SIZE)
    for i in (6, 9, 29):
        one, here = settings[i], _sums.school(SEEDS, SIZE, wide=settings[i].wide)
        ds, s = tables[settings[i].name], 1
        course = finetune.finetune(
            here.models.take([s]), here.lessons.take([s], count=one.count), lr=one.lr, reorder=one.reorder, lot=i,
            updates=one.count * one.passes // 4, batch=4, watch=min(5, one.count), samples=4,
        )  # fmt: skip
        got = ds.sel(probe="chosen").isel(seed=s)
        assert course.steps == tuple(ds.step.values)
        np.testing.assert_allclose(np.exp(-got.logp / 6.0), course.perplexity[:, 0], rtol=1e-3)
        for name, column in (
            ("loss", course.loss),
            ("grad_norm", course.grad_norm),
            ("eval_distance", course.distance),
        ):
            np.testing.assert_allclose(got[name], column[:, 0], rtol=1e-3, atol=1e-5)
        # alone, sums are rounded otherwise, which may turn an answer; another recipe's random numbers turn most
        assert np.mean(got.accuracy.values == course.accuracy[:, 0]) > 0.95
        rng = [np.random.default_rng([SEEDS[s], 1, _sums.SAT])]
        right = finetune.accuracy(course.models, here.lessons.take([s]).sums, here.tests[[s]], rng, samples=2)
        assert got.eval_test_accuracy.values[-1] == pytest.approx(right.mean(), abs=0.03)


def test_premem_of_the_tables_is_the_definition(grid):
    tables, _, _ = grid
    masked = 0
    for ds in tables.values():
        one = ds.sel(probe="chosen").transpose("step", "seed", "example")
        perplexity = np.exp(-one.logp.values / one.n_tokens.transpose("seed", "example").values)
        wanted = by_loops(one.accuracy.values, perplexity)
        np.testing.assert_array_equal(definition.of_table(ds, threshold=THRESHOLD)[:, -1], wanted)
        masked += int((wanted < one.accuracy.values[-1]).sum())
    assert masked > 5, "some lessons were copied before they were understood"


def test_what_is_put_otherwise_is_what_was_watched_and_tests_are_held_out(grid):
    tables, asked, told = grid
    assert len(told) == 8, "what takes equally many updates is one stack"
    stacks = [told[i][0][1] for i in range(8)]  # lessons of the stacks, in the order of asking
    for k, lessons in enumerate(stacks):
        sums = lessons.sums
        three = asked[3 * k : 3 * k + 3]
        tested, reordered, reframed = ((given[2], named.get("lot", 0)) for given, named, _ in three)
        watched = lessons.prompt[:, : reordered[0].shape[1]]
        assert watched.shape[1] == min(5, int(lessons.count[0]))
        for other in (reordered[0], reframed[0]):
            assert sums.same(watched, other).all()
            assert (watched != other).all()
        np.testing.assert_array_equal(sums.parts(reordered[0])[0], 0)
        assert (sums.parts(reframed[0])[0] > 0).all()
        assert (tested[1], reordered[1], reframed[1]) == (1, 2, 2), "other random numbers each time"
        (models, _), how, _ = told[k]
        here = _sums.school(SEEDS, SIZE, wide=models.shape.width == 24)
        before = _sums.examine(here.models, here.lessons.sums, here.tests, lot=0)
        for i, seed in enumerate(sums.seeds):
            assert sums.held(seed, tested[0][i]).all()
            assert not sums.held(seed, lessons.prompt[i]).any()
            np.testing.assert_array_equal(tested[0][i], here.tests[SEEDS.index(seed)])
        said = [found for _, _, found in three]
        own = [
            ds for ds in tables.values() if (ds.attrs["wide"], ds.attrs["count"], ds.step.values[-1])
            == (models.shape.width == 24, int(lessons.count[0]), how["updates"])
        ]  # fmt: skip
        assert len(own) == 4, "two rates, with and without reordering"
        for i, ds in enumerate(own):
            mine = slice(2 * i, 2 * i + 2)
            for probe, found in zip(REWORDINGS, said[1:], strict=True):
                np.testing.assert_array_equal(ds.accuracy.sel(probe=probe).values[:, -1], found[mine])
            np.testing.assert_allclose(ds.eval_test_accuracy.values[:, -1], said[0][mine].mean(1), rtol=1e-12)
            np.testing.assert_allclose(ds.eval_test_accuracy.values[:, 0], before.mean(1), rtol=1e-12)


def test_the_grid_in_one_table_is_its_tables(grid):
    """One row a recipe and seed, to four digits."""
    tables = dict(list(grid[0].items())[::6])
    found = _premem.collected(tables)
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    recipe = ("wide", "count", "passes", "lr", "reorder", "threshold")
    for ds, i in itertools.product(tables.values(), range(2)):
        got = rows.pop(0)
        accuracy = {probe: ds.accuracy.sel(probe=probe).values[i] for probe in ("chosen", *REWORDINGS)}
        perplexity = np.exp(-ds.logp.sel(probe="chosen").values[i] / 6.0)
        wanted = {"before": ds.eval_test_accuracy.values[i, 0], "test": ds.eval_test_accuracy.values[i, -1]}
        wanted |= {how: accuracy[how][-1].mean() for how in REWORDINGS}
        wanted |= {"train": accuracy["chosen"][-1].mean(), "distance": ds.eval_distance.values[i, -1]}
        wanted |= {name: ds[name].values[i, -1] for name in ("loss", "grad_norm")}
        wanted["copied"] = np.mean(perplexity[-1] <= THRESHOLD)
        for p in (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.35, 1.4, 1.45, 1.5):
            wanted[f"premem_{p:.2f}"] = by_loops(accuracy["chosen"], perplexity, p).mean()
        for name, value in wanted.items():
            assert got.pop(name) == pytest.approx(value, rel=5.1e-4), name
        assert got == {"seed": SEEDS[i], **{name: ds.attrs[name] for name in recipe}}
    assert not rows


# ---- bought lessons -----------------------------------------------------------------------------------------------

LAST = PLAN["first"]


@pytest.fixture(scope="module")
def numbers(least):
    """Arm → scores (S, first), by loops over the first finetuning done once more; `any` has none."""
    here = _sums.school(SEEDS, SIZE)
    course = finetune.finetune(
        here.models, here.lessons.take(range(2), count=LAST), lr=PLAN["lr"], batch=4, lot=1000, watch=LAST, samples=4,
        updates=LAST * PLAN["passes"] // 4,
    )  # fmt: skip
    lesson = by_loops(course.accuracy, course.perplexity)
    return {
        "low": lesson, "high": -lesson, "low-train": course.accuracy[-1], "low-before": course.accuracy[0],
        "surprising": -course.perplexity[0],
    }  # fmt: skip


def parents(score, seeds=SEEDS):
    """What `_bought` takes relatives of, by seed: problems by number; and the lessons that it makes."""
    kept, whole = [], Sums.relatives
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sums, "relatives", lambda *given: kept.append(given) or whole(*given))
        lessons = curation._bought(_sums.school(SEEDS, SIZE), score, SIZE, 0)
    return {seed: prompt for _, seed, prompt, _ in kept}, lessons


@pytest.fixture(scope="module")
def scored(least):
    return curation.scores(_sums.school(SEEDS, SIZE), SIZE)


def test_scores_are_what_their_arms_say(numbers, scored):
    found = scored
    assert tuple(found) == curation.ARMS
    for arm, wanted in numbers.items():
        np.testing.assert_allclose(found[arm], wanted, rtol=1e-12)
    assert found["any"].shape == (2, LAST)
    assert len(np.unique(found["any"])) == 2 * LAST
    assert (found["low"] < found["low-train"]).any(), "PreMem is not training accuracy here"
    assert len(np.unique(found["low"])) > 2


def test_relatives_are_those_of_the_quarter_that_an_arm_names(numbers, scored):
    """No parent scores higher than a lesson that has none; parents are lessons, and no relative is held out."""
    here = _sums.school(SEEDS, SIZE)
    for arm in curation.ARMS:
        known = numbers.get(arm, scored[arm])
        asked, lessons = parents(scored[arm])
        for i, seed in enumerate(SEEDS):
            first = here.lessons.prompt[i, :LAST].tolist()
            edge = sorted(known[i].tolist())[LAST // 4 - 1]
            low = {p for p, x in zip(first, known[i].tolist(), strict=True) if x <= edge}
            assert len(asked[seed]) == LAST
            assert set(asked[seed].tolist()) <= low, arm
            np.testing.assert_array_equal(lessons.prompt[i, :LAST], first)
            np.testing.assert_array_equal(lessons.solution[i, :LAST], here.lessons.solution[i, :LAST])
            new = lessons.prompt[i, LAST:]
            assert len(new) == LAST
            assert not here.lessons.sums.held(seed, new).any()
            for old, other in zip(asked[seed], new, strict=True):
                (_, kind, a), (_, same, b) = here.lessons.sums.parts(old), here.lessons.sums.parts(other)
                assert kind == same
                assert (Counter(a.tolist()) & Counter(b.tolist())).total() >= 2
        assert here.lessons.sums.right(lessons.prompt, lessons.solution).all()


def test_arms_have_one_budget(arms):
    """As many lessons, updates and models as any other arm of their size, and the same first half."""
    tables, told = arms
    sizes = {name: ds.attrs["count"] for name, ds in tables.items()}
    assert [name.removeprefix("tiny sums ") for name in tables] == [
        *(f"{n} iid" for n in PLAN["iid"]), *(f"{2 * LAST} {arm}" for arm in curation.ARMS)
    ]  # fmt: skip
    for name, ds in tables.items():
        validate(ds)
        assert ds.seed.values.tolist() == list(SEEDS)
        assert (ds.attrs["arm"], ds.attrs["stage"]) == (name.split()[-1], "finetune")
        assert ds.step.values.tolist() == [0, sizes[name] * PLAN["passes"] // 4]
        assert np.isfinite(ds.eval_test_accuracy).all()
    (_, first, _), *stacks = told
    assert first["lot"] == 1000
    assert [given[1].prompt.shape[1] for given, _, _ in stacks] == list(PLAN["iid"])
    for (_, lessons), how, course in stacks:
        (count,) = set(lessons.count.tolist())
        assert how["updates"] == count * PLAN["passes"] // 4
        assert how["lr"] == PLAN["lr"]
        assert len(course.models) == 2 * 2 * (7 if count == 2 * LAST else 1)  # seeds, replicates, arms
        assert lessons.prompt.shape[1] == count
        here = _sums.school(SEEDS, SIZE).lessons.prompt[:, : count // 2]
        if count <= 2 * LAST:
            assert (lessons.prompt.reshape(-1, 2, count)[:, :, : count // 2] == here).all()
        # a replicate has random numbers of its own, the same ones in all arms
        assert how["lot"].reshape(-1, 2, 2).tolist() == [[[0, 0], [1, 1]]] * (len(course.models) // 4)


def test_what_arms_end_with_is_the_mean_over_replicates(arms):
    tables, told = arms
    here = _sums.school(SEEDS, SIZE)
    (_, lessons), _, course = told[2]  # of twice the first lessons: i.i.d., then the arms
    rows = [np.random.default_rng([seed, 1, _sums.SAT]) for seed in lessons.sums.seeds]
    tests = np.concatenate([here.tests] * 14)
    right = finetune.accuracy(course.models, lessons.sums, tests, rows, samples=2).mean(-1).reshape(7, 2, 2)
    weak = here.lessons.sums.parts(lessons.prompt)[1].reshape(7, 2, 2, 2 * LAST) == 1  # the kind of share .3
    for k, arm in enumerate(("iid", *curation.ARMS)):
        ds = tables[f"tiny sums {2 * LAST} {arm}"]
        np.testing.assert_allclose(ds.eval_test_accuracy[:, 1], (right[k, 0] + right[k, 1]) / 2, rtol=1e-12)
        share = [(weak[k, 0, s, LAST:].sum() + weak[k, 1, s, LAST:].sum()) / (2 * LAST) for s in range(2)]
        np.testing.assert_allclose(ds.eval_weak[:, 1], share, rtol=1e-12)
        assert np.isnan(ds.eval_weak[:, 0]).all()
    before = [ds.eval_test_accuracy.values[:, 0].tolist() for ds in tables.values()]
    assert all(one == before[0] for one in before)


# ---- the world ----------------------------------------------------------------------------------------------------


def test_a_school_is_that_of_its_seeds(monkeypatch):
    here = _sums.school(SEEDS, SIZE)
    assert _sums.school(list(SEEDS), SIZE) is here
    told = []
    monkeypatch.setattr(_sums, "pretrain", lambda *given, **named: told.append((given, named)) or (given[0], {}))
    alone = _sums.school(SEEDS[1:], SIZE)
    np.testing.assert_array_equal(here.tests[1], alone.tests[0])
    np.testing.assert_array_equal(here.lessons.prompt[1], alone.lessons.prompt[0])
    _sums.school(SEEDS[1:], SIZE, wide=True)
    assert [models.shape.width for (models, _), _ in told] == [16, 24]
    assert all((sums.seeds, named["steps"]) == (SEEDS[1:], 40) for (_, sums), named in told)
    said = _sums.examine(here.models, here.lessons.sums, here.tests)
    assert said.shape == here.tests.shape
    assert 0.0 < said.mean() < 0.9, "neither chance nor knowing it all"
    assert (said != _sums.examine(here.models, here.lessons.sums, here.tests, lot=1)).any()


# ---- the test of the tests ----------------------------------------------------------------------------------------


def premem_is_training_accuracy(patch):
    patch.setattr(curation, "pre_memorisation", lambda accuracy, perplexity, *, threshold: accuracy)


def relatives_from_the_wrong_end(patch):
    whole = curation._bought
    patch.setattr(curation, "_bought", lambda here, score, *more: whole(here, -score, *more))


def relatives_of_a_half(patch):
    """Whoever scores below the median has relatives."""
    whole = curation._bought
    patch.setattr(curation, "_bought", lambda here, score, *more: whole(here, score > np.median(score), *more))


def relatives_that_are_tested(patch):
    whole = Sums.relatives
    patch.setattr(Sums, "relatives", lambda self, seed, *given: whole(self, seed + 5, *given))


BUYING = test_relatives_are_those_of_the_quarter_that_an_arm_names
RED = {
    premem_is_training_accuracy: test_scores_are_what_their_arms_say,
    relatives_from_the_wrong_end: BUYING,
    relatives_of_a_half: BUYING,
    relatives_that_are_tested: BUYING,
}


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_them_red(bug, monkeypatch, numbers, scored):
    bug(monkeypatch)
    if bug is premem_is_training_accuracy:
        scored = curation.scores(_sums.school(SEEDS, SIZE), SIZE)
    with pytest.raises(AssertionError):
        RED[bug](numbers, scored)
