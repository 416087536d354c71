"""The loop of policy gradients against plain torch, subsets and objectives that were not written for it."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch

from toyld import objectives
from toyld.checked import BadInput
from toyld.objectives import Batch, group_advantages
from toyld.tiny import Optimizer, Shape, Sizes, draw, start
from toyld.tiny.decoding import answers
from toyld.tiny.models import SAMPLED
from toyld.tiny.reinforce import REINFORCE, Practice, Round, State, learn, mean
from toyld.tiny.verifier import advantages, ask_models, passes, verify

SEEDS = (1000, 1001, 1002)
CLIP = objectives.PPO().clip


def shaken(models, seed, size=0.3):
    """The same models with every parameter away from where it was."""
    draws = torch.randn(models.flat.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return dataclasses.replace(models, flat=models.flat + size * draws)


@pytest.fixture(scope="module")
def language():
    return draw(Sizes(), SEEDS)


@pytest.fixture(scope="module")
def models():
    return shaken(start(Shape(39, 8, width=12, depth=2, heads=2), SEEDS, dtype=torch.float64), 0)


@pytest.fixture(scope="module")
def prompts():
    return np.array([[3, 8, 21], [0, 5, 30], [17, 2, 9]])


@pytest.fixture(scope="module")
def said(models, language, prompts):
    """Answers of which some count as right: rewards drawn, for these models are right by luck only."""
    found = ask_models(models, language, prompts, samples=6, draw=0)
    luck = np.random.default_rng(0).random(found.reward.shape) < 0.4
    luck[:, 0] = False  # a prompt without a right answer
    return dataclasses.replace(found, reward=luck.astype(float))


# ---- answers and rewards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("common", [None, (0.0, 1.0, 2.0)])
def test_decoding_with_memory_says_what_sampling_says(models, language, prompts, common):
    given = models.take(range(3), common=common)
    if common is not None:  # its weights are 0 at first, and what is not there cannot be left out
        given = shaken(given, 2)
        plain = dataclasses.replace(given, flat=given.flat[:, : given.shape.parameters], common=None)
    many = np.repeat(prompts, 40, axis=1)
    rngs = [np.random.default_rng([seed, 7, SAMPLED]) for seed in SEEDS]
    want = given.sample(language, many, seed=7, temperature=1.5)
    for asked, copies in ((prompts, 40), (np.repeat(prompts, 4, axis=1), 10), (many, 1)):
        got = answers(given, language, asked, [copy.deepcopy(one) for one in rngs], copies=copies, temperature=1.5)
        np.testing.assert_array_equal(got, want)
    if common is not None:
        without = plain.sample(language, many, seed=7, temperature=1.5)
        np.testing.assert_array_equal(got[0], without[0])  # of size 0
        assert (got[1:] != without[1:]).any()
    assert len(np.unique(got.reshape(-1, got.shape[-1]), axis=0)) > 50


def test_each_member_may_have_a_temperature_of_its_own(models, language, prompts):
    many, heat = np.repeat(prompts, 10, axis=1), (1.0, 0.3, 2.0)
    rngs = [[np.random.default_rng([seed, 7]) for seed in SEEDS] for _ in range(4)]
    got = answers(models, language, many, rngs[0], temperature=np.array(heat))
    for i, one in enumerate(heat):
        np.testing.assert_array_equal(got[i], answers(models, language, many, rngs[i + 1], temperature=one)[i])


def test_a_verifier_rewards_the_truth_and_parts_of_it(language, prompts):
    rngs = [np.random.default_rng(seed) for seed in SEEDS]
    facts = language.facts[np.arange(3)[:, None], prompts]
    truth = language.tell(facts, rngs)
    np.testing.assert_array_equal(verify(language, prompts, truth), 1.0)
    wrong = facts.copy()
    wrong[..., 0] = (wrong[..., 0] + 1) % 10
    text = language.tell(wrong, rngs)
    np.testing.assert_array_equal(verify(language, prompts, text), 0.0)
    np.testing.assert_allclose(verify(language, prompts, text, partial=True), 2.0 / 3.0)


def test_pass_at_k_is_the_mean_over_subsets():
    reward = np.random.default_rng(3).random((2, 3, 7)) < 0.3
    for k in (1, 3, 7):
        some = [reward[..., list(pick)].any(-1) for pick in itertools.combinations(range(7), k)]
        np.testing.assert_allclose(passes(reward.astype(float), k), np.mean(some, 0), rtol=1e-12, atol=1e-15)
    with pytest.raises(BadInput, match="k: expected 1 to 7"):
        passes(reward.astype(float), 8)


def test_advantages_by_hand(said):
    reward = said.reward
    for s, p in itertools.product(range(3), range(3)):
        own = reward[s, p]
        np.testing.assert_allclose(advantages(reward, "group")[s, p], group_advantages(own), atol=1e-12)
        for i in range(6):
            rest = np.delete(own, i).mean()
            np.testing.assert_allclose(advantages(reward, "baseline")[s, p, i], own[i] - rest, atol=1e-12)
    np.testing.assert_array_equal(advantages(reward, "signed"), np.where(reward > 0, 1.0, -1.0))
    # All rewards equal, and no number of the machine: nothing to push, whatever rounding makes of their mean.
    np.testing.assert_array_equal(advantages(np.full((1, 1, 6), 0.1), "group"), 0.0)


# ---- an update ----------------------------------------------------------------------------------------------------


def by_hand(old, now, language, said, member, given):
    """∂/∂θ of −mean over answers of Σ_t min(ρÂ, clip(ρ)Â), by torch, answer by answer, on one module."""
    module, before = now.module(member), old.module(member)
    total = 0.0
    text, prompt = said.text[member].reshape(-1, said.text.shape[-1]), said.prompt[member].reshape(-1)
    for j, (answer, one) in enumerate(zip(text, given[member].reshape(-1), strict=True)):
        label = torch.from_numpy(answer[answer >= 0])
        row = torch.cat([torch.from_numpy(language.ask(prompt[j])), label[:-1]])[None]
        at = torch.arange(len(label))
        logp = module(row)[0, 1:].log_softmax(-1)[at, label]
        with torch.no_grad():
            earlier = before(row)[0, 1:].log_softmax(-1)[at, label]
        ratio = (logp - earlier).exp()
        total = total - torch.minimum(ratio * one, ratio.clamp(1 - CLIP, 1 + CLIP) * one).sum()
    (total / len(text)).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])


@pytest.mark.parametrize(("how", "weights"), [("signed", (1.0, 1.0)), ("baseline", (0.1, 1.0)), ("group", (0.0, 2.0))])
def test_gradient_is_plain_torchs(models, language, said, how, weights):
    now = shaken(models, 1, 0.02)  # some tokens beyond the clip, most not
    one = Round(models, language, said, Practice(advantage=how, positive=weights[0], negative=weights[1]))
    given = advantages(said.reward, how)
    given = given * np.where(given > 0, *weights)
    got = one.gradient(now)
    for member in range(3):
        want = by_hand(models, now, language, said, member, given)
        np.testing.assert_allclose(got[member], want, rtol=1e-9, atol=1e-12)
    ratio = np.exp(one.tokens(one.read(now))["logp"] - one.tokens(one.logits)["logp"])
    assert 0.02 < np.mean(np.abs(ratio - 1)[np.isfinite(ratio)] > CLIP) < 0.9


def test_weights_split_the_gradient_and_are_a_members_own(models, language, said):
    plus, minus = np.array([1.0, 0.0, 0.5]), np.array([0.0, 1.0, 2.0])
    mixed = Round(models, language, said, Practice(positive=plus, negative=minus)).gradient(models)
    up, down = (
        Round(models, language, said, Practice(positive=p, negative=1.0 - p)).gradient(models) for p in (1.0, 0.0)
    )
    want = torch.from_numpy(plus)[:, None] * up + torch.from_numpy(minus)[:, None] * down
    torch.testing.assert_close(mixed, want, rtol=1e-10, atol=1e-12)
    assert (up.norm(dim=1) > 1e-3).all()
    assert (down.norm(dim=1) > 1e-3).all()


def test_ppo_on_group_advantages_by_length_is_grpo(models, language, said):
    now = shaken(models, 1, 0.02)
    one = Round(models, language, said, Practice(advantage="group", per_token=True))
    first, then = one.tokens(one.logits), one.tokens(one.read(now))
    for s in range(3):
        right = said.reward[s].reshape(-1) > 0
        lp, old = (np.nan_to_num(token["logp"][s]) for token in (then, first))
        mask = (said.text[s].reshape(18, -1) >= 0) & (one.sign[s] != 0)[:, None]
        batch = Batch(
            chosen=lp, rejected=lp, old_chosen=old, old_rejected=old, chosen_mask=mask & right[:, None],
            rejected_mask=mask & ~right[:, None], groups=np.repeat(np.arange(3), 6),
        )  # fmt: skip
        push = objectives.GRPO().push(batch)
        got = np.nan_to_num(then["push"][s])
        np.testing.assert_allclose(got, push.chosen + push.rejected, rtol=1e-8, atol=1e-10)


def test_at_the_first_inner_update_the_push_is_the_advantage_however_rare_the_token(models, language, said):
    hard = dataclasses.replace(models, flat=3.0 * models.flat)  # peaked: other models' answers are rare here
    one = Round(hard, language, said, Practice())
    token = one.tokens(one.logits)
    pushed = np.isfinite(token["push"])
    assert np.nanmin(token["logp"]) < -15.0
    # c = ⟨R, e⟩/‖e‖² and R = c e: exact but for rounding where ‖e‖ is not itself rounding
    known = pushed & (token["gap"] > 1e-6)
    sign = np.broadcast_to(one.sign[..., None], pushed.shape)
    np.testing.assert_allclose(token["push"][known], sign[known], rtol=1e-8)


def test_later_the_push_falls_with_the_ratio_and_ends_below_the_clip(models, language, said):
    one = Round(models, language, said, Practice(positive=0.0))
    first, then = one.tokens(one.logits), one.tokens(one.read(shaken(models, 1, 0.02)))
    ratio, push = np.exp(then["logp"] - first["logp"]), then["push"]
    alive, cut = ratio > 1 - CLIP + 1e-9, ratio < 1 - CLIP - 1e-9
    assert min(alive.sum(), cut.sum()) > 20
    np.testing.assert_allclose(push[alive], -ratio[alive], rtol=1e-8)
    np.testing.assert_array_equal(push[cut], 0.0)
    bare = Round(models, language, said, Practice(REINFORCE, positive=0.0))
    np.testing.assert_allclose(bare.tokens(bare.read(shaken(models, 1, 0.02)))["push"][cut], -1.0, rtol=1e-8)


def test_other_objectives_read_the_sides(models, language, said):
    """TOPR weighs wrong answers by min(1, π/µ) of the whole answer; NSR's push is −π(y)."""
    now = shaken(models, 1, 0.02)
    for name in ("topr", "nsr"):
        one = Round(models, language, said, Practice(objectives.get(name)))
        first, then = one.tokens(one.logits), one.tokens(one.read(now))
        total, old = np.nansum(then["logp"], -1), np.nansum(first["logp"], -1)
        down = np.minimum(1.0, np.exp(total - old)) if name == "topr" else np.exp(total)
        want = np.where(one.sign > 0, 1.0 if name == "topr" else 0.0, -down)[..., None]
        there = np.isfinite(then["push"])
        np.testing.assert_allclose(
            then["push"][there], np.broadcast_to(want, there.shape)[there], rtol=1e-8, atol=1e-14
        )


def test_losers_and_columns_by_hand(models, language, said):
    now = shaken(models, 1, 0.02)
    one = Round(models, language, said, Practice())
    before, after = one.logits, one.read(now)
    width = one.inputs.shape[-1]
    found, column = one.losers(before, after), one.seen(before)
    text, deep, gaps = said.text.reshape(3, 18, -1), [[], [], []], [[], [], []]
    for s, j, t in itertools.product(range(3), range(18), range(7)):
        if text[s, j, t] < 0:
            assert np.isnan(found[s, j, t])
            continue
        y, at = text[s, j, t], j * width + 1 + t
        p, q = (z[s, at].softmax(-1).numpy() for z in (before, after))
        np.testing.assert_allclose(found[s, j, t], np.mean(np.delete(q < p, y)), atol=1e-12)
        if one.sign[s, j] < 0:
            deep[s].append(np.log(p[y]) <= (p * np.log(p)).sum())
            gaps[s].append(np.linalg.norm(p - np.eye(39)[y]))
    np.testing.assert_allclose(column["valley"], [np.mean(x) for x in deep], atol=1e-12)
    np.testing.assert_allclose(column["gap"], [np.mean(x) for x in gaps], rtol=1e-10)
    np.testing.assert_allclose(column["reward"], said.reward.mean((1, 2)))
    assert np.isnan(mean(np.full((1, 2, 2), np.nan), np.array([[True, True]]))).all()


# ---- the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Optimizer(), Optimizer("rmsprop"), Optimizer("adamw")])
def test_a_run_goes_on_where_it_stood_bit_by_bit(models, language, prompts, rule):
    how = Practice(samples=3, inner=2, lr=1e-3, optimizer=rule, partial=True, advantage="baseline")
    begin = State.start(models, how)
    whole, columns = learn(begin, language, prompts, how, until=3)
    half, one = learn(begin, language, prompts, how, until=1)
    again, two = learn(half, language, prompts, how, until=3)
    assert torch.equal(whole.models.flat, again.models.flat)
    assert all(torch.equal(whole.memory[key], again.memory[key]) for key in whole.memory)
    assert (whole.iteration, again.iteration) == (3, 3)
    np.testing.assert_array_equal(columns["reward"], np.concatenate([one["reward"], two["reward"]]))
    assert not torch.equal(whole.models.flat, models.flat)


def test_a_member_does_not_depend_on_its_neighbours(models, language, prompts):
    how = Practice(samples=3, lr=np.array([0.1, 0.2, 0.3]), partial=True)
    every, _ = learn(State.start(models, how), language, prompts, how, until=2)
    some, how = models.take([2]), dataclasses.replace(how, lr=0.3)
    alone, _ = learn(State.start(some, how), language.take(np.array([2])), prompts[[2]], how, until=2)
    torch.testing.assert_close(every.models.flat[2], alone.models.flat[0], rtol=1e-9, atol=1e-11)


def test_inner_updates_keep_the_policy_that_sampled(models, language, prompts):
    """Two inner updates by hand: one sample, π_old fixed, the second gradient at the moved parameters."""
    how = Practice(samples=4, inner=2, lr=0.05, positive=0.0)
    got, _ = learn(State.start(models, how), language, prompts, how, until=1)
    said = ask_models(models, language, prompts, samples=4, draw=0)
    one, now = Round(models, language, said, how), models
    for _ in range(2):
        now = dataclasses.replace(now, flat=now.flat - 0.05 * one.gradient(now))
    torch.testing.assert_close(got.models.flat, now.flat, rtol=1e-12, atol=1e-14)


def test_a_frozen_behaviour_answers_throughout_and_is_the_old_policy(models, language, prompts):
    how = Practice(samples=4, lr=0.3, positive=0.0)
    state, _ = learn(State.start(models, how), language, prompts, how, until=1, behaviour=models)
    said = ask_models(models, language, prompts, samples=4, draw=1)
    want = state.models.flat - 0.3 * Round(models, language, said, how).gradient(state.models)
    got, _ = learn(state, language, prompts, how, until=2, behaviour=models)
    torch.testing.assert_close(got.models.flat, want, rtol=1e-12, atol=1e-14)
    own, _ = learn(state, language, prompts, how, until=2)
    assert (own.models.flat - want).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"advantage": "best"}, "advantage: expected one of signed, baseline, group"),
        ({"advantage": "group", "samples": 1}, "samples, inner: expected at least 2 and 1"),
        ({"inner": 0}, "samples, inner"),
        ({"negative": -1.0}, "positive, negative: expected weights of 0 or more"),
        ({"temperature": 0.0}, "temperature: expected more than 0"),
        ({"objective": objectives.GRPO()}, "objective: expected one that looks at one answer at a time, got grpo"),
    ],
)
def test_a_bad_practice_is_one_line(wrong, message):
    with pytest.raises(BadInput, match=message) as caught:
        Practice(**wrong)
    assert "\n" not in str(caught.value)


def test_bad_runs_are_one_line(models, language, prompts):
    how = Practice(samples=2)
    begin = State.start(models, how)
    with pytest.raises(BadInput, match="until: expected more than the 0 iterations"):
        learn(begin, language, prompts, how, until=0)
    with pytest.raises(BadInput, match="prompts: expected numbers"):
        learn(begin, language, prompts[:2], how, until=1)
    with pytest.raises(BadInput, match="memory: expected square"):
        learn(begin, language, prompts, dataclasses.replace(how, optimizer=Optimizer("rmsprop")), until=1)
    with pytest.raises(BadInput, match="seeds"):
        learn(begin, draw(Sizes(), (1, 2, 3)), prompts, how, until=1)
