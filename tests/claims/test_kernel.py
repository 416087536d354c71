"""Many contexts, one kernel: whole runs, worked numbers, balls, and how sharp the constants are."""

from fractions import Fraction as F

import numpy as np
import pytest
from flint import arb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toyld import claims, contexts, objectives
from toyld.claims import kernel, kernel_cases, kernel_flow, kernel_margin
from toyld.claims.base import CERTAIN, rounding
from toyld.contexts import Gram, Responses, World, centred, train
from toyld.contexts.languages import markov

STEPS = 12


def texts(rng, prompts, length, vocab):
    """Chosen and rejected texts (1, P, T) that may begin alike, be cut short (−1) or be equal."""
    plus, minus = rng.integers(vocab, size=(2, 1, prompts, length))
    same = rng.integers(0, length + 1, size=(1, prompts, 1)) > np.arange(length)
    minus = np.where(same, plus, minus)
    cut = rng.integers(1, length + 1, size=(2, 1, prompts, 1)) > np.arange(length)
    return np.where(cut[0], plus, -1), np.where(cut[1], minus, -1)


def language(seed, prompts, length, vocab):
    """A world of pairs on prompts of their own, its logits, and the positions of y+ before the first difference."""
    rng = np.random.default_rng([seed, prompts, length, vocab])
    plus, minus = texts(rng, prompts, length, vocab)
    found = contexts.trie(
        {"chosen": np.arange(prompts)[None, :, None]}, {"chosen": plus, "rejected": minus}, train=("chosen", "rejected")
    )
    z = rng.normal(size=(1, found.tokens.shape[1], vocab)) * 10.0 ** rng.uniform(-1, 1)
    shared = np.cumprod((plus == minus) & (plus >= 0), axis=-1).astype(bool)
    own = 10.0 ** rng.uniform(-1, 1, size=found.tokens.shape[1])
    return World(z, Gram(np.diag(own)[None]), found.responses, found.trained, (seed,)), shared


def path(world, beta, lr):
    """log π of every token of y+ and y− along a run of DPO, (STEPS + 1, 1, P, T) each."""
    state, out = contexts.start(world), {"chosen": [], "rejected": []}
    for _ in range(STEPS + 1):
        for kind, tokens in out.items():
            tokens.append(kernel_cases.logp(state.logits, world.responses[kind]) * world.responses[kind].mask)
        options = {"lr": lr, "state": state, "reference": contexts.start(world), "rejected": "rejected"}
        state = train(world, objectives.get("dpo", beta=beta), steps=1, **options).state
    return {kind: np.stack(tokens) for kind, tokens in out.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.floats(-2, 1), st.floats(-2, 3)
)
def test_no_cross_talk_over_whole_runs(seed, prompts, length, vocab, beta, lr):
    world, shared = language(seed, prompts, length, vocab)
    run = path(world, 10.0**beta, 10.0**lr)
    size = float(rounding(length * (1.0 + np.abs(run["chosen"]).max() + np.abs(run["rejected"]).max())))
    assert np.diff(run["chosen"].sum(-1), axis=0).min() >= -size
    assert np.diff(run["rejected"].sum(-1), axis=0).max() <= size
    assert np.abs(np.diff(run["chosen"], axis=0))[:, shared].max(initial=0.0) == 0.0


def test_a_coupled_kernel_breaks_the_theorem_by_the_fall_of_the_winner():
    """The theorem also says that a shared beginning stays put; its teeth are not in that part alone."""
    claim = claims.every()["kernel.no-cross-talk"]
    for size, u in claim.without.premises.sample(np.random.default_rng(0), 400):
        case, _ = claim.without.premises.decode(u, size)
        margin = claim.check(**case)
        falls = (margin.value / margin.bound)[:, ::2]
        assert falls.min() < -CERTAIN


@pytest.mark.parametrize("what", ["off the diagonal", "one prompt for all"])
def test_the_premises_of_no_cross_talk_are_needed_over_whole_runs(what):
    """The same worlds with a coupled kernel, or with all pairs on one prompt: ℓ(y+) falls in many of them."""
    fell = []
    for seed in range(20):
        world, _ = language(seed, 3, 3, 4)
        if what == "off the diagonal":
            world = World(world.logits, Gram(world.kernel.matrix + 3.0), world.responses, world.trained, (seed,))
        else:
            rng = np.random.default_rng(seed)
            plus, minus = texts(rng, 3, 3, 4)
            kinds = {"chosen": plus, "rejected": minus}
            found = contexts.trie({"chosen": np.zeros((1, 3, 1), int)}, kinds, train=tuple(kinds))
            z = rng.normal(size=(1, found.tokens.shape[1], 4))
            gram = Gram(np.eye(found.tokens.shape[1])[None])
            world = World(z, gram, found.responses, found.trained, (seed,))
        fell.append(np.diff(path(world, 1.0, 1.0)["chosen"].sum(-1), axis=0).min() < -1e-6)
    assert 5 <= sum(fell) <= 20


@pytest.mark.parametrize(
    ("classes", "beta", "lr", "steps", "start", "end"),
    [(5, 0.5, 8.0, 150, -1.6, -10.0), (3, 1.0, 2.0, 15, -1.1, -2.74)],
)
def test_worked_numbers_of_conflicting_labels(classes, beta, lr, steps, start, end):
    """(a ≻ b), (c ≻ a) on one prompt: log π(a) −1.6 → −10.0; A ≻ B, B ≻ C: log π(B) changes by −1.64."""
    sides = kernel.CYCLE
    world = kernel_cases.world(np.zeros((1, 1, classes)), np.ones((1, 1, 1)), np.array([[0, 1, 2]]), sides)
    dpo = objectives.get("dpo", beta=beta)
    a = train(world, dpo, lr=lr, steps=steps, rejected="rejected").value("logp", "chosen")[:, 0, 0]
    np.testing.assert_allclose(a, [start, end], atol=0.051 if classes == 5 else 0.005)
    assert classes == 5 or a[1] - a[0] == pytest.approx(-1.64, abs=0.005)


def test_one_off_diagonal_entry_is_what_lowers_the_winner():
    """The counterexample has one pair of coupled contexts; without it the same step raises y+, in balls."""
    case = claims.every()["kernel.own-contexts-suffice"].counterexample.case
    f = np.array(case["phi"]).reshape(3, 3)
    gram = f @ f.T
    assert np.count_nonzero(np.triu(gram, 1)) == 1
    w = np.array(case["head"]).reshape(2, 3)
    z = [[arb(int(x)) for x in row] for row in f @ w.T]
    a, b, v, u = case["words"]
    tokens = [(0, a, F(1, 2)), (1, v, F(1, 2)), (0, b, F(-1, 2)), (2, u, F(-1, 2))]
    coupled = kernel_cases.exact_moves(z, gram.tolist(), tokens, case["s"])
    alone = kernel_cases.exact_moves(z, np.diag(np.diag(gram)).tolist(), tokens, case["s"])
    assert coupled[0] + coupled[1] < 0
    assert alone[0] > 0
    assert alone[1] > 0


def test_balls_agree_with_the_engine():
    rng = np.random.default_rng(3)
    z, f = rng.integers(-3, 4, size=(8, 3)), rng.integers(-2, 3, size=(8, 3))
    labels = rng.integers(0, 3, size=(1, 10))
    world = kernel_cases.world(z[None].astype(float), (f @ f.T)[None].astype(float), labels)
    new = kernel_cases.stepped(world, objectives.get("dpo", beta=1.0), world.logits, lr=0.25)
    tokens = []
    for kind, sign in (("chosen", 1), ("rejected", -1)):
        at, place = kernel_cases.PAIRS[kind]
        tokens += [(int(c), int(labels[0, k]), F(sign, 4)) for c, k in zip(at.ravel(), place.ravel(), strict=True)]
    exact = kernel_cases.exact_moves([[arb(int(x)) for x in row] for row in z], (f @ f.T).tolist(), tokens, F(1, 4))
    found = np.concatenate(
        [(kernel_cases.logp(new, r) - kernel_cases.logp(world.logits, r)).ravel() for r in world.responses.values()]
    )
    np.testing.assert_allclose(found, [float(a.mid()) for a in exact], atol=1e-13)


def test_one_step_sign_in_a_language_has_an_error_of_second_order():
    """Every kind of response, trained or not: the first-order change misses the true one by O(η²)."""
    world = markov(seeds=[1000], vocab=8, prompts=4, length=4)
    every = slice(0, world.size[1])
    gram = np.asarray(world.kernel.block(every, every))
    r = kernel_cases.push_back(world.logits, world, np.full((1, 4), 0.05))
    v = gram @ r
    error = []
    for lr in (1.0, 0.5, 0.25):
        run = train(world, objectives.get("dpo"), lr=lr, steps=1, rejected="rejected")
        change = run.values["logp"][1] - run.values["logp"][0]
        at = [np.arange(1)[:, None, None], None]
        first = [
            -lr * ((kernel_cases.pulls(world.logits, s) * v[at[0], s.context]).sum(-1) * s.mask).sum(-1)
            for s in world.responses.values()
        ]
        error.append(np.abs(change - np.stack(first, axis=1)))
    ratio = np.median(error[0] / error[1]), np.median(error[1] / error[2])
    np.testing.assert_allclose(ratio, 4.0, rtol=0.05)


def conflict(x, rate):
    """Loss of SFT on both labels of one context, z = (x, 0), before and after a step with ηλ = rate."""
    rows = Responses(np.zeros((1, 2, 1), int), np.array([[[0], [1]]]), np.ones((1, 2, 1), bool))
    world = World(np.array([[[x, 0.0]]]), Gram(np.ones((1, 1, 1))), {"chosen": rows}, 1, (1000,))
    return train(world, objectives.get("sft"), lr=rate, steps=1).loss[:, 0]


def test_the_constant_four_is_sharp():
    """λ = 2·1/2 = 1 here: at 4.01 the loss rises near its optimum, at 4 and 3.99 it falls from anywhere."""
    before, after = conflict(0.1, 4.01)
    assert after > before
    for x in (0.001, 0.1, 1.0, 10.0):
        for rate in (3.99, 4.0):
            before, after = conflict(x, rate)
            assert after <= before


def test_lambda_counts_every_token_of_a_context():
    """λ_max(√N S √N)/n is λ_max of Σ (N_c/n) φ_c φ_cᵀ."""
    rng = np.random.default_rng(0)
    f = rng.normal(size=(5, 3, 4))
    weight = kernel_flow.COUNT / 3.0
    direct = np.linalg.eigvalsh(np.einsum("c,ncd,nce->nde", weight, f, f))[:, -1]
    np.testing.assert_allclose(kernel_flow._top(f @ f.transpose(0, 2, 1)), direct, rtol=1e-12)
    counted = np.bincount(kernel_flow.ROWS[0].ravel())
    np.testing.assert_array_equal(counted, kernel_flow.COUNT)


def test_a_centred_step_of_dpo_can_raise_its_loss():
    """The counterexample run for real: a small centred step raises the loss that the plain step lowers."""
    case = claims.every()["kernel.centred-descends"].counterexample.floats()
    _, _, z, gram = kernel_cases.model(case["head"], case["phi"])
    sides = {"chosen": (np.array([[0]]), np.array([[0]])), "rejected": (np.array([[1]]), np.array([[1]]))}
    world = kernel_cases.world(z, gram, case["words"], sides)
    options = {"lr": 0.1, "steps": 1, "rejected": "rejected"}
    plain = train(world, objectives.get("dpo", beta=1.0), **options)
    other = train(world, objectives.get("dpo", beta=1.0), **options, precondition=centred(np.full((1, 2), 0.5)))
    assert plain.loss[1, 0] < plain.loss[0, 0]
    assert other.loss[1, 0] > other.loss[0, 0]
    rejected = other.value("logp", "rejected")[:, 0, 0]
    assert rejected[1] > rejected[0]


def test_in_a_language_the_plain_mean_guarantees_no_descent_and_the_nearest_mean_does():
    world = markov(seeds=[1000], vocab=8, prompts=4, length=4)
    n = slice(0, world.trained)
    s = np.asarray(world.kernel.block(n, n))[0]
    ones = np.ones(len(s))
    nearest = np.linalg.solve(s, ones)
    common = 1.0 / nearest.sum()
    p = centred((nearest * common)[None])[0]
    np.testing.assert_allclose(s @ p, s - common, atol=1e-10)
    assert np.linalg.eigvalsh(s - common).min() > -1e-10
    assert np.linalg.eigvalsh(s - 1.01 * common).min() < -1e-6 * common
    plain = s @ centred((ones / len(s))[None])[0]
    assert np.linalg.eigvalsh(plain + plain.T).min() < -1e-3


def test_a_common_component_is_not_monotone_at_a_finite_margin():
    """Δℓ(y+) at a margin of 10 nats rises with c to a top near 2 and falls behind it far below its value at c = 0."""
    case = claims.every()["kernel.common-share-at-a-margin"].counterexample.floats()
    z, gram = kernel_cases.model(case["head"], case["phi"])[2:]
    c = np.array([0.0, 1.0, 2.0, 4.0, 30.0, 100.0])
    many = [np.repeat(a, len(c), axis=0) for a in (z, gram, case["words"], case["target"])]
    many[1] = many[1] + c[:, None, None]
    plus, off, reached = kernel_margin._at_target(*many)
    assert reached.all()
    assert off.max() < 1e-6
    np.testing.assert_allclose(plus, [4.29, 5.41, 5.80, 5.31, 2.21, 1.00], atol=0.005)


def test_balls_and_engine_meet_the_same_margin():
    """The step that the balls enclose gives the change that the engine finds, with a common component and without."""
    case = claims.every()["kernel.common-share-at-a-margin"].counterexample.case
    start = np.ascontiguousarray(np.array(case["head"]).reshape(3, 3).T)
    balls = [[arb(int(x)) for x in row] for row in start]
    for c in (0, 30):
        gram = np.eye(3, dtype=int) + c
        exact = kernel_margin._exactly_at(balls, gram.tolist(), case["words"], F(10))
        assert exact.rad() < 1e-3
        floats = (start[None].astype(float), gram[None].astype(float), np.array([case["words"]]), np.array([10.0]))
        found, off, _ = kernel_margin._at_target(*floats)
        assert abs(found[0] - float(exact.mid())) < off[0] + float(exact.rad())
