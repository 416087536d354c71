"""The made-up arithmetic against a reader that spells its tokens out, counts of its problems, and exact frequencies."""

import dataclasses
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from toyld.checked import BadInput
from toyld.tiny.finetune import teach
from toyld.tiny.language import PAD
from toyld.tiny.sums import REWORDINGS, Sums, SumSizes

SEEDS = (1000, 1001)
WHOLE = Sums(SumSizes(), SEEDS)
SMALL = Sums(SumSizes(numbers=5, terms=3, frames=2, factors=(1, 3), shares=(0.7, 0.3), slip=0.4, skew=1.0), SEEDS)
RARE = 1e-7  # how rarely a test of frequencies may fail by chance


def spelt(sizes):
    """Token → what it stands for, in the order that `SumSizes.classes` names."""
    names = [("end", 0)] + [("number", i) for i in range(sizes.numbers)]
    return names + [("frame", i) for i in range(sizes.frames)] + [("kind", i) for i in range(len(sizes.factors))]


def every(sizes):
    """All problems (frame, kind, *terms), written out in the order of their numbers."""
    digits = [range(sizes.numbers)] * sizes.terms
    return list(itertools.product(range(sizes.frames), range(len(sizes.factors)), *digits))


def answer(sizes, kind, terms):
    return sizes.factors[kind] * sum(terms) % sizes.numbers


def said(sizes, problem, text):
    """Whether a text is right, read token by token: the number that stands right before the first END."""
    before, names = None, spelt(sizes)
    for token in text:
        if token == PAD:
            before = None
        elif names[token][0] == "end":
            return before == ("number", answer(sizes, problem[1], problem[2:]))
        else:
            before = names[token]
    return False


def asked(sums, prompts):
    """(frame, kind, *terms) of problems, read off their tokens alone."""
    names = spelt(sums.sizes)
    return [tuple(names[token][1] for token in row) for row in sums.ask(np.asarray(prompts)).tolist()]


def meant(problem):
    """What a problem asks for, however it is put: its kind and how often each number stands in it."""
    return problem[1], *sorted(problem[2:])


# ---- problems by number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sums", [SMALL, WHOLE], ids=["small", "whole"])
def test_problems_are_numbered_as_written_out(sums):
    written, numbers = every(sums.sizes), np.arange(len(every(sums.sizes)))
    frame, kind, terms = sums.parts(numbers)
    np.testing.assert_array_equal(np.column_stack([frame, kind, terms]), written)
    np.testing.assert_array_equal(sums.number(frame, kind, terms), numbers)
    np.testing.assert_array_equal(sums.number(*(part[None, :, None] for part in (frame, kind)), terms[None, :, None]),
                                  numbers[None, :, None])  # fmt: skip


def test_a_prompt_says_frame_kind_and_terms_in_tokens_of_their_own():
    sizes, names = SMALL.sizes, spelt(SMALL.sizes)
    assert len(names) == sizes.classes
    rows = SMALL.ask(np.arange(len(every(sizes))))
    assert rows.shape[-1] == sizes.asked
    kinds = ["frame", "kind", *["number"] * sizes.terms]
    for row, problem in zip(rows.tolist(), every(sizes), strict=True):
        assert [names[token] for token in row] == list(zip(kinds, problem, strict=True))


# ---- worked solutions ---------------------------------------------------------------------------------------------


def steps(sizes, kind, text):
    """(terms in the order taken, what each result should be, what it is) of one solution, the last token END."""
    numbers = [spelt(sizes)[token][1] for token in text[:-1]]
    assert len(text) == sizes.length
    assert text[-1] == 0
    assert all(spelt(sizes)[token][0] == "number" for token in text[:-1])
    taken, results = [numbers[0], *numbers[1::2]], numbers[2::2]
    before = [sizes.factors[kind] * taken[0], *results]  # a step goes on from what was written, right or wrong
    wanted = [(b + sizes.factors[kind] * a) % sizes.numbers for b, a in zip(before, taken[1:], strict=False)]
    return taken, wanted, results


def test_every_solution_is_right_step_by_step():
    rng = np.random.default_rng(0)
    for sums, prompts in ((SMALL, np.arange(500)), (WHOLE, rng.integers(len(every(WHOLE.sizes)), size=400))):
        problems = every(sums.sizes)
        for number, text in zip(prompts.tolist(), sums.solve(prompts, rng).tolist(), strict=True):
            _, kind, *terms = problems[number]
            taken, wanted, results = steps(sums.sizes, kind, text)
            assert results == wanted
            assert sorted(taken) == sorted(terms)
            assert results[-1] == answer(sums.sizes, kind, terms)
            assert said(sums.sizes, problems[number], text)


def test_every_order_is_as_likely():
    """4! orders of different numbers, 9,600 solutions: a chi-square with 23 degrees of freedom."""
    problem = WHOLE.number(np.array(2), np.array(1), np.array([8, 0, 2, 7]))
    told = WHOLE.solve(np.full(9_600, problem), np.random.default_rng(1))
    orders = Counter(tuple(steps(WHOLE.sizes, 1, text)[0]) for text in told.tolist())
    assert set(orders) == set(itertools.permutations((8, 0, 2, 7)))
    assert stats.chisquare(list(orders.values())).pvalue > RARE


def test_a_slip_is_any_number_and_what_follows_goes_on_from_it():
    """A slip of probability .4 hits the right number in one of five: .32 of the results are wrong, each by itself."""
    n, slip, m = 4_000, 0.4, SMALL.sizes.numbers
    rng = np.random.default_rng(2)
    prompts = rng.integers(len(every(SMALL.sizes)), size=n)
    kinds = [every(SMALL.sizes)[p][1] for p in prompts]
    told = SMALL.solve(prompts, rng, slip=slip).tolist()
    off = np.array([[(r - w) % m for w, r in zip(*steps(SMALL.sizes, kind, text)[1:], strict=True)]
                    for kind, text in zip(kinds, told, strict=True)])  # fmt: skip
    assert off.shape == (n, SMALL.sizes.terms - 1)
    for place in off.T:
        wanted = np.where(np.arange(m) == 0, 1.0 - slip + slip / m, slip / m)
        assert stats.chisquare(np.bincount(place, minlength=m), n * wanted).pvalue > RARE
    both = np.bincount(2 * (off[:, 0] > 0) + (off[:, 1] > 0), minlength=4)
    p = slip * (1 - 1 / m)
    assert stats.chisquare(both, n * np.array([(1 - p) ** 2, p * (1 - p), p * (1 - p), p**2])).pvalue > RARE


# 2·(8 + 0 + 2 + 7) = 34 = 7 mod 9 is token 8; END is 0; 10 … 13 are frames, 14 and 15 kinds
TEXTS = {
    "worked": ([9, 1, 8, 3, 3, 8, 8, 0], True),
    "the answer alone": ([8, 0, PAD, PAD, PAD, PAD, PAD, PAD], True),
    "wrong steps, right answer": ([1, 1, 1, 1, 8, 0, PAD, PAD], True),
    "junk behind END": ([9, 1, 8, 0, 3, 15, 5, 5], True),
    "a second END behind a wrong number": ([8, 0, 3, 0, PAD, PAD, PAD, PAD], True),
    "END first": ([0, 9, 1, 8, 3, 3, 8, 8], False),
    "END first, then right": ([0, 8, 0, PAD, PAD, PAD, PAD, PAD], False),
    "no END": ([9, 1, 8, 3, 3, 8, 8, 8], False),
    "wrong last number": ([9, 1, 8, 3, 3, 8, 7, 0], False),
    "right first number, wrong last": ([8, 1, 8, 3, 3, 8, 5, 0], False),
    "right number, END later": ([9, 1, 8, 3, 8, 3, 0, PAD], False),
    "right before a second END": ([3, 0, 8, 0, PAD, PAD, PAD, PAD], False),
    "the answer of the other kind": ([9, 1, 9, 0, PAD, PAD, PAD, PAD], False),
    "a frame before END": ([8, 10, 0, PAD, PAD, PAD, PAD, PAD], False),
}


def test_texts_made_by_hand():
    problem = WHOLE.number(np.array(2), np.array(1), np.array([8, 0, 2, 7]))
    found = WHOLE.right(np.full(len(TEXTS), problem), np.array([text for text, _ in TEXTS.values()]))
    assert dict(zip(TEXTS, found.tolist(), strict=True)) == {name: wanted for name, (_, wanted) in TEXTS.items()}


def test_right_is_what_a_reader_of_tokens_finds():
    """All texts of three tokens, of five problems; among them are END first, no END, and END before junk."""
    sizes, prompts = SMALL.sizes, np.array([7, 130, 256, 388, 499])
    texts = np.array(list(itertools.product(range(sizes.classes), repeat=3)))
    found = SMALL.right(prompts[:, None], np.broadcast_to(texts, (5, *texts.shape)))
    wanted = [[said(sizes, every(sizes)[p], text) for text in texts.tolist()] for p in prompts]
    np.testing.assert_array_equal(found, wanted)
    # the answer then END, in the first two places, or behind one token that is not END
    assert np.sum(wanted, 1).tolist() == [sizes.classes + sizes.classes - 1] * 5


# ---- how frequent what is -----------------------------------------------------------------------------------------


def drawn(sizes, skew):
    """Tuples of terms → probability: in proportion to (a + 1)^−skew, the last drawn until not all are equal."""
    weight = [(a + 1.0) ** -skew for a in range(sizes.numbers)]
    weight = [w / math.fsum(weight) for w in weight]
    out = {}
    for terms in itertools.product(range(sizes.numbers), repeat=sizes.terms):
        *first, last = terms
        p, same = math.prod(weight[a] for a in first), len(set(first)) == 1
        out[terms] = 0.0 if same and last == first[0] else p * weight[last] / (1.0 - weight[first[0]] * same)
    return out


def close(counts, probabilities):
    """A chi-square of counts, with what is expected fewer than five times put together."""
    keys = [key for key, p in probabilities.items() if p > 0]
    n = sum(counts.values())
    assert set(counts) <= set(keys)
    got, want = (np.array([x[key] for key in keys], float) for x in (counts, probabilities))
    seldom = n * want < 5
    if seldom.any():
        got, want = (np.append(x[~seldom], x[seldom].sum()) for x in (got, want))
    return stats.chisquare(got, n * want).pvalue > RARE


def test_the_corpus_has_kinds_numbers_frames_and_slips_as_often_as_it_says():
    sizes, n = SMALL.sizes, 6_000
    inputs, labels = SMALL.batch((1000,), 3, n)
    rows = np.concatenate([inputs[0], labels[0, :, -1:]], -1)
    problems = [tuple(spelt(sizes)[token][1] for token in row[: sizes.asked]) for row in rows.tolist()]
    assert close(Counter(p[0] for p in problems), dict.fromkeys(range(sizes.frames), 1 / sizes.frames))
    assert close(Counter(p[1] for p in problems), dict(enumerate(sizes.shares)))
    assert close(Counter(p[2:] for p in problems), drawn(sizes, sizes.skew))
    wrong = sum(
        r != w
        for p, row in zip(problems, rows.tolist(), strict=True)
        for w, r in zip(*steps(sizes, p[1], row[sizes.asked :])[1:], strict=True)
    )
    results = n * (sizes.terms - 1)
    assert stats.binomtest(wrong, results, sizes.slip * (1 - 1 / sizes.numbers)).pvalue > RARE


@pytest.mark.parametrize("held", [False, True])
def test_what_is_taught_and_tested_has_all_kinds_and_numbers_alike(held):
    """The distribution without skew, both kinds alike, given that a problem is (not) held out."""
    sizes, all_of_them = SMALL.sizes, every(SMALL.sizes)
    kept = {p for p, out in zip(all_of_them, SMALL.held(1000, np.arange(len(all_of_them))), strict=True) if out == held}
    likely = {(0, kind, *terms): p for kind in range(2) for terms, p in drawn(sizes, 0.0).items()}
    likely = {problem: p for problem, p in likely.items() if problem in kept}
    total = math.fsum(likely.values())
    found = SMALL.problems(1000, np.random.default_rng(5), 6_000, held=held)
    assert close(Counter(asked(SMALL, found)), {problem: p / total for problem, p in likely.items()})


# ---- what is held out ---------------------------------------------------------------------------------------------


def test_a_fifth_is_held_out_by_what_it_asks_for_alone():
    problems, numbers = every(WHOLE.sizes), np.arange(len(every(WHOLE.sizes)))
    splits = []
    for seed in SEEDS:
        found = {}
        for problem, out in zip(problems, WHOLE.held(seed, numbers).tolist(), strict=True):
            assert found.setdefault(meant(problem), out) == out, "one question, put two ways, on both sides"
        assert len(found) == 2 * math.comb(9 + 3, 4)
        assert stats.binomtest(sum(found.values()), len(found), 0.2).pvalue > RARE
        splits.append(found)
    apart = sum(splits[0][key] != splits[1][key] for key in splits[0])
    assert stats.binomtest(apart, len(splits[0]), 2 * 0.2 * 0.8).pvalue > RARE, "every seed has a split of its own"


def test_nothing_that_is_tested_is_taught_however_it_is_put():
    rng = np.random.default_rng(6)
    for i, seed in enumerate(SEEDS):
        tests = WHOLE.problems(seed, rng, 500, held=True)
        lessons = teach(WHOLE, count=500).prompt[i]
        bought = WHOLE.relatives(seed, lessons, rng)
        closed, opened = (
            [own, *(WHOLE.reworded(own, how, rng) for how in REWORDINGS)] for own in (tests, np.append(lessons, bought))
        )
        known, new = ({meant(p) for own in side for p in asked(WHOLE, own)} for side in (opened, closed))
        assert len(known) > 300
        assert len(new) > 100
        assert not known & new


# ---- put otherwise, and relatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sums", [SMALL, WHOLE], ids=["small", "whole"])
def test_a_rewording_changes_the_words_and_not_the_question(sums):
    rng = np.random.default_rng(7)
    first = sums.problems(1000, rng, 2_000)
    for how in REWORDINGS:
        other = sums.reworded(first, how, rng)
        assert sums.same(first, other).all()
        for old, new in zip(asked(sums, first), asked(sums, other), strict=True):
            assert meant(old) == meant(new)
            if how == "reordered":
                assert old[0] == new[0]
                turns = [old[2 + i :] + old[2:][:i] for i in range(1, sums.sizes.terms)]
                assert new[2:] in turns
                assert new[2:] != old[2:]
            else:
                assert new[0] in range(1, sums.sizes.frames), "the first frame is the one that training uses"
                assert old[2:] == new[2:]
    # every turn of different numbers, and every other frame, as often
    one = np.full(3_000, sums.number(np.array(0), np.array(1), np.arange(1, 1 + sums.sizes.terms)))
    for how, many in zip(REWORDINGS, (sums.sizes.terms - 1, sums.sizes.frames - 1), strict=True):
        often = list(Counter(sums.reworded(one, how, rng).tolist()).values())
        assert len(often) == many
        assert many == 1 or stats.chisquare(often).pvalue > RARE


def test_same_is_equality_of_kinds_and_counts():
    rng = np.random.default_rng(8)
    a, b = rng.integers(len(every(SMALL.sizes)), size=(2, 3_000))
    b[:1_000] = SMALL.reworded(SMALL.problems(1000, rng, 1_000), "reordered", rng)
    wanted = [meant(x) == meant(y) for x, y in zip(asked(SMALL, a), asked(SMALL, b), strict=True)]
    np.testing.assert_array_equal(SMALL.same(a, b), wanted)
    assert 0 < sum(wanted) < 1_000


@pytest.mark.parametrize("sums", [SMALL, WHOLE], ids=["small", "whole"])
def test_a_relative_shares_half_of_the_numbers(sums):
    rng = np.random.default_rng(9)
    first = sums.problems(1001, rng, 1_000)
    first = np.where(np.arange(1_000) % 2, first, sums.reworded(first, "reframed", rng))
    kept, shares = sums.sizes.terms - max(1, sums.sizes.terms // 2), []
    new = sums.relatives(1001, first, rng)
    for old, other in zip(asked(sums, first), asked(sums, new), strict=True):
        assert old[:2] == other[:2]
        shares.append((Counter(old[2:]) & Counter(other[2:])).total())
        assert len(set(other[2:])) > 1
    assert min(shares) == kept
    assert np.mean(np.array(shares) == kept) > 0.3, "the others are drawn anew"


# ---- pretraining's batches ----------------------------------------------------------------------------------------


def test_a_batch_is_its_seed_and_update_alone():
    whole, labels = SMALL.batch((1003, 1001), 7, 16)
    for i, seed in enumerate((1003, 1001)):
        mine = Sums(SMALL.sizes, (5,)).batch((seed,), 7, 16)
        np.testing.assert_array_equal(mine[0][0], whole[i])
        np.testing.assert_array_equal(mine[1][0], labels[i])
    assert not np.array_equal(whole[0], whole[1])
    assert not np.array_equal(SMALL.batch((1003,), 8, 16)[0][0], whole[0])


def test_labels_are_the_next_token_of_the_solution_and_nothing_of_the_prompt():
    inputs, labels = WHOLE.batch(SEEDS, 0, 50)
    assert inputs.shape == labels.shape == (2, 50, WHOLE.sizes.places)
    begins = WHOLE.sizes.asked - 1  # where the prompt's last token is read and the solution's first one is told
    assert (labels[..., :begins] == PAD).all()
    np.testing.assert_array_equal(labels[..., begins:-1], inputs[..., begins + 1 :])
    assert (labels[..., -1] == 0).all()
    assert (labels[..., begins:-1] > 0).all()


# ---- what is refused ----------------------------------------------------------------------------------------------

BAD = {
    "numbers": ({"numbers": 1}, "terms and numbers ≥ 2 .* got 4, 1 and 4"),
    "terms": ({"terms": 1}, "terms and numbers ≥ 2 .* got 1, 9 and 4"),
    "frames": ({"frames": 0}, "frames ≥ 1, got 4, 9 and 0"),
    "share missing": ({"shares": (1.0,)}, r"a share for each factor, 1 in all, got \(1.0,\) for \(1, 2\)"),
    "shares too small": ({"shares": (0.5, 0.4)}, "a share for each factor, 1 in all"),
    "no factor": ({"factors": (), "shares": ()}, "a share for each factor"),
    "no inverse": ({"factors": (1, 3)}, r"prime to 9, got \(1, 3\); with others several sums have one answer"),
    "slip": ({"slip": 1.5}, "slip and shares in .* got 1.5,"),
    "slip below": ({"slip": -0.1}, "slip and shares in .* got -0.1,"),
    "slip unknown": ({"slip": float("nan")}, "slip and shares in .* got nan,"),
}


@pytest.mark.parametrize("name", BAD)
def test_sizes_that_make_no_arithmetic_are_refused_in_one_line(name):
    given, says = BAD[name]
    with pytest.raises(BadInput, match=says) as caught:
        SumSizes(**given)
    assert "\n" not in str(caught.value)


def test_a_frame_alone_cannot_be_changed():
    one = Sums(dataclasses.replace(SMALL.sizes, frames=1), SEEDS)
    rng = np.random.default_rng(0)
    first = one.problems(1000, rng, 5)
    with pytest.raises(BadInput, match="reframed: expected frames ≥ 2, got 1") as caught:
        one.reworded(first, "reframed", rng)
    assert "\n" not in str(caught.value)
    assert one.same(first, one.reworded(first, "reordered", rng)).all()


# ---- the test of the tests ----------------------------------------------------------------------------------------


def right_at_the_first_number(patch):
    def right(self, prompt, text):
        _, kind, terms = self.parts(prompt)
        return text[..., 0] == 1 + np.asarray(self.sizes.factors)[kind] * terms.sum(-1) % self.sizes.numbers

    patch.setattr(Sums, "right", right)


def right_at_any_end(patch):
    def right(self, prompt, text):
        _, kind, terms = self.parts(prompt)
        want = 1 + np.asarray(self.sizes.factors)[kind] * terms.sum(-1) % self.sizes.numbers
        return ((text[..., 1:] == 0) & (text[..., :-1] == np.asarray(want)[..., None])).any(-1)

    patch.setattr(Sums, "right", right)


def held_by_its_wording(patch):
    def held(self, seed, prompt):
        return np.random.default_rng([seed, 62]).random(len(every(self.sizes)))[np.asarray(prompt)] < 0.2

    patch.setattr(Sums, "held", held)


def held_is_ignored(patch):
    whole = Sums.problems

    def problems(self, seed, rng, count, /, *, held=False):
        drawn = [whole(self, seed, rng, count, held=side) for side in (False, True)]
        return np.where(rng.random(count) < 0.2, drawn[1], drawn[0])

    patch.setattr(Sums, "problems", problems)


def relatives_of_any_split(patch):
    whole = Sums.relatives

    def relatives(self, seed, prompt, rng):
        return whole(self, seed + 1, prompt, rng)

    patch.setattr(Sums, "relatives", relatives)


def a_slip_that_is_forgotten(patch):
    """The results after a slip are right again."""

    def solve(self, prompt, rng, /, *, slip=0.0):
        _, kind, terms = self.parts(prompt)
        taken, factor = rng.permuted(terms, axis=-1), np.asarray(self.sizes.factors)[kind][..., None]
        total = (factor * taken).cumsum(-1) % self.sizes.numbers
        told = np.where(rng.random(total.shape) < slip, rng.integers(self.sizes.numbers, size=total.shape), total)
        rows = [taken[..., 0], *(x for i in range(1, self.sizes.terms) for x in (taken[..., i], told[..., i]))]
        return np.concatenate([1 + np.stack(rows, -1), np.zeros((*taken.shape[:-1], 1), int)], -1)

    patch.setattr(Sums, "solve", solve)


RED = {
    right_at_the_first_number: [test_texts_made_by_hand, test_right_is_what_a_reader_of_tokens_finds],
    right_at_any_end: [test_texts_made_by_hand, test_right_is_what_a_reader_of_tokens_finds],
    held_by_its_wording: [test_a_fifth_is_held_out_by_what_it_asks_for_alone],
    held_is_ignored: [test_nothing_that_is_tested_is_taught_however_it_is_put],
    relatives_of_any_split: [test_nothing_that_is_tested_is_taught_however_it_is_put],
    a_slip_that_is_forgotten: [test_a_slip_is_any_number_and_what_follows_goes_on_from_it],
}


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_them_red(bug, monkeypatch):
    bug(monkeypatch)
    for one in RED[bug]:
        with pytest.raises(AssertionError):
            one()


def test_a_split_without_problems_says_so():
    """Two numbers and two terms are one problem, and it is taught or held out: nobody waits for the other."""
    sums = Sums(SumSizes(numbers=2, terms=2, factors=(1,), shares=(1.0,)), (1,))
    rng = np.random.default_rng(0)
    known = sums.problems(1, rng, 4, held=bool(sums.held(1, sums.number(np.array(0), np.array(0), np.array([0, 1])))))
    with pytest.raises(BadInput, match="expected 4 of this split, got 0; make an arithmetic of more numbers"):
        sums.problems(1, rng, 4, held=not bool(sums.held(1, known).any()))


@pytest.mark.parametrize("wrong", [{"shares": (1.5, -0.5)}, {"skew": float("nan")}, {"slip": 1.5}])
def test_a_corpus_that_cannot_be_drawn_is_refused(wrong):
    with pytest.raises(BadInput, match=r"slip and shares in .* correct them"):
        SumSizes(**wrong)
