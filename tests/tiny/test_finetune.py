"""Finetuning on worked solutions against torch's own loop on one module, and sampled accuracy against all texts."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from toyld.checked import BadInput
from toyld.tiny import Shape, finetune, start
from toyld.tiny.finetune import Lessons, teach
from toyld.tiny.sums import Sums, SumSizes

SEEDS = (1000, 1001, 1002)
SUMS = Sums(SumSizes(numbers=5, terms=3, frames=2, factors=(1, 3), shares=(0.5, 0.5)), SEEDS)
SHAPE = Shape(SUMS.sizes.classes, SUMS.sizes.places, width=8, depth=1, heads=2)
N, BATCH, UPDATES, WATCH = 6, 4, 9, 3  # 36 lessons are seen: six passes
RECIPE = {"lr": (0.02, 0.003, 0.02), "reorder": (False, False, True), "lot": (0, 3, 1)}
HOW = {"updates": UPDATES, "batch": BATCH, "watch": WATCH, "samples": 2, "checkpoints": 5}


def shaken(models, head=1.0):
    """The same models with every parameter away from where it was (an untrained one believes in all alike)."""
    draws = torch.randn(models.flat.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = models.flat + 0.5 * draws
    flat[:, models.shape.head :] *= head
    return dataclasses.replace(models, flat=flat)


MODELS = shaken(start(SHAPE, SEEDS, dtype=torch.float64), 0.5)
LESSONS = teach(SUMS, count=N)


@pytest.fixture(scope="module")
def course():
    return finetune.finetune(MODELS, LESSONS, **RECIPE, **HOW)


@pytest.fixture(scope="module")
def learned():
    """A hundred updates on four lessons."""
    four = LESSONS.take(range(3), count=4)
    return finetune.finetune(MODELS, four, lr=0.02, updates=100, batch=4, watch=4, samples=20, checkpoints=3)


def recorded(models, lessons, **how):
    """(lessons that every update saw, (problems, solutions) of shape (S, batch); the course)."""
    seen, whole = [], finetune._loss

    def spy(models, sums, prompt, solution, flat):
        if prompt.shape[1] == how["batch"]:  # a checkpoint asks for `watch` of them
            seen.append((prompt, solution))
        return whole(models, sums, prompt, solution, flat)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_loss", spy)
        course = finetune.finetune(models, lessons, **how)
    return seen, course


def surprise(module, sums, prompt, solution):
    """−log π(solution) (N,) of a module, summed over what stands behind the prompt."""
    rows, first = torch.from_numpy(np.concatenate([sums.ask(prompt), solution], -1)), sums.sizes.asked
    told = module(rows[:, :-1])[:, first - 1 :]
    return torch.nn.functional.cross_entropy(told.mT, rows[:, first:], reduction="none").sum(-1)


# ---- training -----------------------------------------------------------------------------------------------------


def gradient(module, prompt, solution):
    """(loss, norm of its gradient) of some lessons; the gradient stays with the parameters."""
    module.zero_grad()
    loss = surprise(module, SUMS, prompt, solution).mean()
    loss.backward()
    return loss.item(), math.sqrt(sum(float((p.grad**2).sum()) for p in module.parameters()))


def by_torch(module, steps, seen, member):
    """(parameters, (loss, gradient, distance) at checkpoints, norms before clipping) of torch's loop on a module."""
    begun = parameters_to_vector(module.parameters()).detach()
    optimizer = torch.optim.AdamW(module.parameters(), lr=RECIPE["lr"][member], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    watched, rows, norms = (LESSONS.prompt[member, :WATCH], LESSONS.solution[member, :WATCH]), [], []
    for k in range(UPDATES + 1):
        if k in steps:
            away = (parameters_to_vector(module.parameters()).detach() - begun).norm().item()
            rows.append([*gradient(module, *watched), away])
        if k < UPDATES:
            norms.append(gradient(module, seen[k][0][member], seen[k][1][member])[1])
            clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return parameters_to_vector(module.parameters()).detach(), rows, norms


@pytest.mark.parametrize("clipped", [True, False])
def test_a_course_is_torchs_own_loop(clipped, learned):
    """AdamW, clipping, cosine; loss, gradient and distance at the checkpoints, by autograd on the module."""
    models, lessons = (MODELS, LESSONS) if clipped else (learned.models, LESSONS.take(range(3), count=4))
    seen, course = recorded(models, lessons, **RECIPE, **HOW)
    assert len(seen) == UPDATES
    for member in range(2 if not clipped else 3):  # the third, whose problems are reordered, has something to learn
        after, rows, norms = by_torch(models.module(member), course.steps, seen, member)
        assert min(norms) > 1.0 if clipped else norms[0] < 1.0
        # AdamW divides by √(second moment): where a gradient is of rounding's size, so is its step, once over ε.
        torch.testing.assert_close(course.models.flat[member], after, rtol=0, atol=1e-8)
        told = np.stack([course.loss, course.grad_norm, course.distance], -1)[:, member]
        np.testing.assert_allclose(told, rows, rtol=1e-7, atol=1e-12)
        assert told[-1, 2] > 0.01


def test_a_member_alone_is_what_it_is_in_a_stack(course):
    for member in range(len(SEEDS)):
        own = {name: value[member] for name, value in RECIPE.items()}
        alone = finetune.finetune(MODELS.take([member]), LESSONS.take([member]), **own, **HOW)
        assert alone.steps == course.steps
        torch.testing.assert_close(alone.models.flat[0], course.models.flat[member], rtol=0, atol=1e-8)
        np.testing.assert_array_equal(alone.accuracy[:, 0], course.accuracy[:, member])
        for name in ("perplexity", "loss", "grad_norm", "distance"):
            np.testing.assert_allclose(
                getattr(alone, name)[:, 0], getattr(course, name)[:, member], rtol=1e-7, atol=1e-12
            )


def test_every_pass_sees_each_lesson_once_in_an_order_of_its_own():
    counts = np.array([N, N, 4])
    lessons = LESSONS.take(range(3), count=counts)
    seen, _ = recorded(MODELS, lessons, **RECIPE, **HOW)
    for s, count in enumerate(counts.tolist()):
        told = np.concatenate([solution[s] for _, solution in seen]).tolist()
        asked = np.concatenate([prompt[s] for prompt, _ in seen])
        taught = LESSONS.solution[s, :count].tolist()
        assert len({tuple(one) for one in taught}) == count
        orders = [[taught.index(one) for one in told[i : i + count]] for i in range(0, UPDATES * BATCH, count)]
        assert all(sorted(order) == list(range(count)) for order in orders)
        assert len({tuple(order) for order in orders}) > len(orders) // 2
        at = np.concatenate(orders)
        assert SUMS.right(asked, np.array(told)).all()
        if not RECIPE["reorder"][s]:
            np.testing.assert_array_equal(asked, LESSONS.prompt[s, at])


def test_reordering_changes_the_order_of_terms_and_nothing_else():
    seen, _ = recorded(MODELS, LESSONS, **RECIPE, **HOW)
    prompt, solution = (np.concatenate([one[i][2] for one in seen]) for i in (0, 1))
    taught = [tuple(one) for one in LESSONS.solution[2].tolist()]
    own = LESSONS.prompt[2, [taught.index(tuple(one)) for one in solution.tolist()]]
    (frame, kind, terms), (frames, kinds, turned) = SUMS.parts(own), SUMS.parts(prompt)
    np.testing.assert_array_equal((frame, kind), (frames, kinds))
    assert all(sorted(a) == sorted(b) for a, b in zip(terms.tolist(), turned.tolist(), strict=True))
    met = {
        one: len({p for p, o in zip(prompt.tolist(), own.tolist(), strict=True) if o == one}) for one in own.tolist()
    }
    assert min(met.values()) > 1, "another order at another pass"


def test_a_lot_draws_other_orders_and_other_samples():
    models, lessons = MODELS.take([0, 0, 0]), LESSONS.take([0, 0, 0])
    seen, course = recorded(models, lessons, lr=0.01, lot=(4, 4, 5), **(HOW | {"samples": 100}))
    orders = [np.concatenate([prompt[s] for prompt, _ in seen]).tolist() for s in range(3)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    torch.testing.assert_close(course.models.flat[0], course.models.flat[1], rtol=0, atol=1e-12)
    assert (course.models.flat[0] - course.models.flat[2]).abs().max() > 1e-3
    np.testing.assert_array_equal(course.accuracy[:, 0], course.accuracy[:, 1])
    assert (course.accuracy[0, 0] != course.accuracy[0, 2]).any(), "the same model, asked with other random numbers"


def test_lessons_are_learned(learned):
    """Each is copied, and its answers are right."""
    assert learned.perplexity[0].min() > 1.4
    assert learned.perplexity[-1].max() < 1.1
    assert learned.accuracy[-1].min() > 0.5
    assert learned.accuracy[0].mean() < 0.3


@pytest.mark.parametrize(("updates", "checkpoints"), [(1, 2), (1, 12), (9, 2), (9, 3), (6, 12), (64, 12)])
def test_checkpoints_are_at_even_distances_in_the_logarithm(updates, checkpoints):
    tiny = MODELS.take([0])
    found = finetune.finetune(
        tiny, LESSONS.take([0]), lr=1e-3, updates=updates, batch=1, watch=1, samples=1, checkpoints=checkpoints
    )
    last = max(checkpoints - 2, 1)
    wanted = {0, updates} | {round(updates ** (i / last)) for i in range(checkpoints - 1)}
    assert found.steps == tuple(sorted(wanted))
    assert found.steps[-1] == updates
    assert found.accuracy.shape == found.perplexity.shape == (len(wanted), 1, 1)
    assert found.loss.shape == found.grad_norm.shape == found.distance.shape == (len(wanted), 1)


# ---- what is watched ----------------------------------------------------------------------------------------------

FEW = Sums(SumSizes(numbers=3, terms=2, frames=1, factors=(1,), shares=(1.0,)), (1000, 1001))


@pytest.fixture(scope="module")
def taught():
    """Two models that know a little of all six problems (1, 2, 3, 5, 6, 7, the terms differ), whose answers differ."""
    models = start(
        Shape(FEW.sizes.classes, FEW.sizes.places, width=8, depth=1, heads=2), FEW.seeds, dtype=torch.float64
    )
    prompt = np.array([[1, 2, 3, 5, 6, 7]] * 2)
    lessons = Lessons(FEW, prompt, FEW.solve(prompt, np.random.default_rng(0)), np.array([6, 6]))
    return finetune.finetune(models, lessons, lr=0.02, updates=34, batch=6, watch=1, samples=1, checkpoints=2).models


def every_text(sums):
    return np.array(list(itertools.product(range(sums.sizes.classes), repeat=sums.sizes.length)))


def chance(module, sums, problem):
    """The probability that a model's answer is right: summed over all texts, what stands behind END summed out."""
    texts = every_text(sums)
    with torch.no_grad():
        p = np.exp(-surprise(module, sums, np.full(len(texts), problem), texts).numpy())
    _, _, a, b = sums.ask(np.array(problem)).tolist()
    wanted = 1 + (a + b - 2) % 3
    right = [0 in text and text.index(0) > 0 and text[text.index(0) - 1] == wanted for text in texts.tolist()]
    assert p.sum() == pytest.approx(1.0, abs=1e-9)
    return float(p[right].sum())


def test_accuracy_is_the_probability_of_all_right_texts(taught):
    """All 1,296 texts of four tokens, of three problems; 2,500 samples each, five binomial standard deviations."""
    n, prompts = 2_500, np.array([[1, 2, 5], [6, 5, 3]])
    rngs = [np.random.default_rng(seed) for seed in FEW.seeds]
    found = finetune.accuracy(taught, FEW, prompts, rngs, samples=n)
    wanted = np.array([[chance(taught.module(s), FEW, p) for p in prompts[s]] for s in range(2)])
    assert 0.3 < wanted.min() < wanted.max() < 0.98, "three answers, so that mixing problems up shows"
    np.testing.assert_array_less(np.abs(found - wanted), 5 * np.sqrt(wanted * (1 - wanted) / n))


def test_watched_accuracy_is_that_of_the_model_at_its_checkpoint(taught):
    prompt, n = np.array([[1, 2], [5, 6]]), 2_000
    lessons = Lessons(FEW, prompt, FEW.solve(prompt, np.random.default_rng(0)), np.array([2, 2]))
    course = finetune.finetune(taught, lessons, lr=0.02, updates=6, batch=2, watch=2, samples=n, checkpoints=3)
    for k, models in ((0, taught), (-1, course.models)):
        wanted = np.array([[chance(models.module(s), FEW, p) for p in prompt[s]] for s in range(2)])
        np.testing.assert_array_less(np.abs(course.accuracy[k] - wanted), 5 * np.sqrt(wanted * (1 - wanted) / n))
    assert np.abs(course.accuracy[0] - course.accuracy[-1]).max() > 0.1


def test_perplexity_is_the_root_of_the_probabilities_of_its_tokens(course):
    for models, told in ((MODELS, course.perplexity[0]), (course.models, course.perplexity[-1])):
        found = finetune.perplexity(models, SUMS, LESSONS.prompt, LESSONS.solution)
        for s in range(len(SEEDS)):
            with torch.no_grad():
                each = surprise(models.module(s), SUMS, LESSONS.prompt[s], LESSONS.solution[s]).numpy()
            np.testing.assert_allclose(found[s], np.exp(each / 6), rtol=1e-11)
            np.testing.assert_allclose(told[s], found[s, :WATCH], rtol=1e-11)
    assert finetune.perplexity(MODELS, SUMS, LESSONS.prompt, LESSONS.solution).min() > 1.0


# ---- lessons ------------------------------------------------------------------------------------------------------


def test_lessons_are_right_not_held_out_and_their_seed_and_lot_alone():
    for s, seed in enumerate(SEEDS):
        assert not SUMS.held(seed, LESSONS.prompt[s]).any()
        assert SUMS.right(LESSONS.prompt[s], LESSONS.solution[s]).all()
        alone = teach(Sums(SUMS.sizes, (seed,)), count=N)
        np.testing.assert_array_equal(alone.prompt[0], LESSONS.prompt[s])
        np.testing.assert_array_equal(alone.solution[0], LESSONS.solution[s])
    assert (LESSONS.prompt[0] != LESSONS.prompt[1]).any()
    assert (teach(SUMS, count=N, lot=1).prompt != LESSONS.prompt).any(1).all()


def test_some_lessons_of_some_members():
    mine = LESSONS.take([2, 0, 2], count=[1, 4, 6])
    assert mine.sums.seeds == (1002, 1000, 1002)
    np.testing.assert_array_equal(mine.solution, LESSONS.solution[[2, 0, 2]])
    assert mine.take([1]).count.tolist() == [4]
    prompt, solution = mine.watched(5)
    for s, own in enumerate((2, 0, 2)):
        at = [i % int(mine.count[s]) for i in range(5)]
        assert prompt[s].tolist() == [LESSONS.prompt[own, i] for i in at]
        assert solution[s].tolist() == [LESSONS.solution[own, i].tolist() for i in at]


def asked(**more):
    return lambda: finetune.finetune(MODELS, LESSONS, **({"lr": 0.1, "updates": 1} | more))


BAD = {
    "updates": (asked(updates=0), "updates, batch, .* ≥ 1, .* got 0, 32"),
    "batch": (asked(batch=0), "batch, watch .* ≥ 1, .* got 1, 0, 64"),
    "rate": (asked(lr=(0.1, 0.0, 0.1)), r"lr > 0, got .*0\.0, 0\.1\]"),
    "unknown rate": (asked(lr=np.nan), "lr > 0, got .*nan"),
    "watch": (asked(watch=0), "watch and samples ≥ 1.* 1, 32, 0"),
    "samples": (asked(samples=0), "samples ≥ 1.* 1, 32, 64, 0"),
    "checkpoints": (asked(checkpoints=1), "checkpoints ≥ 2.* 1 and"),
    "seeds": (lambda: finetune.finetune(MODELS.take([0]), LESSONS, lr=0.1, updates=1), "take the same members of both"),
    "nothing to teach": (lambda: teach(SUMS, count=0), "count: expected at least 1 lesson, got 0"),
    "more lessons": (lambda: LESSONS.take([0], count=7), r"count: expected 1 to 6 lessons, got \[7\]; give more"),
    "no lesson": (lambda: LESSONS.take([0, 1], count=(3, 0)), r"count: expected 1 to 6 lessons, got \[3, 0\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_taught_is_refused_in_one_line(name):
    make, says = BAD[name]
    with pytest.raises(BadInput, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- the test of the tests ----------------------------------------------------------------------------------------


def a_constant_rate(patch):
    class Constant:
        memory = finetune.RULE.memory

        def step(self, flat, g, memory, lr):
            self.first = getattr(self, "first", lr)
            whole.step(flat, g, memory, self.first)

    whole = finetune.RULE
    patch.setattr(finetune, "RULE", Constant())


def nothing_clipped(patch):
    patch.setattr(finetune, "RULE", dataclasses.replace(finetune.RULE, clip=None))


def one_order_for_all_passes(patch):
    def order(count, rngs, updates, batch):
        every = [np.resize(rng.permutation(int(n)), updates * batch) for n, rng in zip(count, rngs, strict=True)]
        return np.stack(every).reshape(len(count), updates, batch).swapaxes(0, 1)

    patch.setattr(finetune, "_order", order)


def lessons_drawn_with_replacement(patch):
    def order(count, rngs, updates, batch):
        every = [rng.integers(int(n), size=(updates, batch)) for n, rng in zip(count, rngs, strict=True)]
        return np.stack(every, 1)

    patch.setattr(finetune, "_order", order)


def reordered_into_another_problem(patch):
    """Its terms are drawn with replacement."""

    def turned(sums, prompt, rng):
        frame, kind, terms = sums.parts(prompt)
        return sums.number(frame, kind, rng.choice(terms[0], size=terms.shape))

    patch.setattr(finetune, "_turned", turned)


def answers_of_the_problem_beside(patch):
    whole = finetune.answers

    def answers(models, sums, prompt, rngs, *, copies):
        said = whole(models, sums, prompt, rngs, copies=copies).reshape(*prompt.shape, copies, -1)
        return said.swapaxes(1, 2).reshape(len(prompt), prompt.shape[1] * copies, -1)

    patch.setattr(finetune, "answers", answers)


def perplexity_with_the_prompt(patch):
    whole = finetune.perplexity

    def perplexity(models, sums, prompt, solution):
        return whole(models, sums, prompt, solution) ** (solution.shape[-1] / sums.sizes.places)

    patch.setattr(finetune, "perplexity", perplexity)


def loop(course, learned, taught):
    test_a_course_is_torchs_own_loop(True, learned)


def passes(course, learned, taught):
    test_every_pass_sees_each_lesson_once_in_an_order_of_its_own()


def reordering(course, learned, taught):
    test_reordering_changes_the_order_of_terms_and_nothing_else()


def chances(course, learned, taught):
    test_accuracy_is_the_probability_of_all_right_texts(taught)


def roots(course, learned, taught):
    test_perplexity_is_the_root_of_the_probabilities_of_its_tokens(course)


RED = {
    a_constant_rate: loop,
    nothing_clipped: loop,
    one_order_for_all_passes: passes,
    lessons_drawn_with_replacement: passes,
    reordered_into_another_problem: reordering,
    answers_of_the_problem_beside: chances,
    perplexity_with_the_prompt: roots,
}


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_them_red(bug, monkeypatch, course, learned, taught):
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        RED[bug](course, learned, taught)
