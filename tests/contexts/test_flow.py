"""Gradient flow against closed forms, against runs in small steps, and against itself cut in two."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts import Gram, Responses, World, centred, train
from toyld.contexts.flow import flow

SFT, DPO = objectives.get("sft"), objectives.get("dpo", beta=0.5)


def markov(seeds=range(1000, 1002)):
    return contexts.languages.markov(seeds=seeds, vocab=6, prompts=3, length=3)


def one_softmax(x, size=1.0):
    """One context with two classes, z = (x, 0), label 0."""
    row = Responses(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), np.ones((1, 1, 1), bool))
    return World(np.array([[[x, 0.0]]]), Gram(np.array([[[size]]])), {"chosen": row, "rejected": row}, 1, (1000,))


@pytest.mark.parametrize("x", [-3.0, 0.0, 2.0])
def test_one_softmax_follows_its_closed_form(x):
    """dx/dt = 2S(1 − σ(x)) gives x + e^x = x_0 + e^{x_0} + 2St."""
    run = flow(one_softmax(x, 0.7), SFT, lr=0.5, steps=30, at=[3, 30], rtol=1e-11, atol=1e-12)
    end = float(np.diff(run.state.logits[0, 0])[0]) * -1.0
    expected = brentq(lambda y: y + np.exp(y) - x - np.exp(x) - 2.0 * 0.7 * 15.0, -50.0, 50.0, xtol=1e-13)
    assert end == pytest.approx(expected, abs=1e-8)
    early = brentq(lambda y: y + np.exp(y) - x - np.exp(x) - 2.0 * 0.7 * 1.5, -50.0, 50.0, xtol=1e-13)
    assert run.value("logp", "chosen")[0, 0, 0] == pytest.approx(-np.log1p(np.exp(-early)), abs=1e-8)


def test_gradient_ascent_follows_its_closed_form():
    """dx/dt = −2(1 − σ(x)): x + e^x = x_0 + e^{x_0} − 2t."""
    run = flow(one_softmax(1.0), objectives.get("ga"), lr=1.0, steps=9, chosen=None, rejected="rejected", rtol=1e-11)
    expected = brentq(lambda y: y + np.exp(y) - 1.0 - np.e + 18.0, -50.0, 50.0, xtol=1e-13)
    assert run.state.logits[0, 0, 0] - run.state.logits[0, 0, 1] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("objective", "rejected", "lr"), [(SFT, None, 1.0), (DPO, "rejected", 4.0)])
def test_runs_reach_the_flow_with_order_one(objective, rejected, lr):
    """Half the step, half the distance, for every kind of response, untrained contexts too."""
    world = markov()
    limit = flow(world, objective, lr=lr, steps=8, rejected=rejected).values["logp"][-1]
    error = []
    for k in (16, 32, 64):
        run = train(world, objective, lr=lr / k, steps=8 * k, rejected=rejected)
        error.append(np.abs(run.values["logp"][-1] - limit).max())
    order = np.log2(np.divide(error[:-1], error[1:]))
    np.testing.assert_allclose(order, 1.0, atol=0.05)


def test_integrators_agree():
    world = markov([1000])
    runs = [
        flow(world, DPO, lr=4.0, steps=8, rejected="rejected", method=m).values["logp"][-1]
        for m in ("LSODA", "BDF", "Radau", "DOP853")
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(other, runs[0], atol=1e-5)


def test_a_stage_cut_in_two_is_the_stage_and_keeps_the_dual_form():
    world = markov()
    options = {"lr": 4.0, "rejected": "rejected"}
    whole = flow(world, DPO, steps=10, at=[4, 10], **options)
    first = flow(world, DPO, steps=4, **options)
    second = flow(world, DPO, steps=6, state=first.state, reference=contexts.start(world), **options)
    np.testing.assert_allclose(second.values["logp"][-1], whole.values["logp"][-1], atol=1e-6)
    np.testing.assert_allclose(first.values["logp"][-1], whole.values["logp"][0], atol=1e-6)
    np.testing.assert_allclose(second.reference, whole.reference, rtol=1e-12)
    n = slice(0, world.trained)
    table = world.logits[:, n] - world.kernel.block(n, n) @ second.state.dual
    np.testing.assert_allclose(second.state.logits, table, atol=1e-11)


def test_worlds_have_their_own_rate_and_parameters():
    world, beta, lr = markov(), np.array([0.2, 1.0]), np.array([2.0, 6.0])
    both = flow(world, objectives.get("dpo", beta=beta), lr=lr, steps=6, rejected="rejected")
    for b in (0, 1):
        dpo = objectives.get("dpo", beta=float(beta[b]))
        alone = flow(world.take([b]), dpo, lr=float(lr[b]), steps=6, rejected="rejected")
        np.testing.assert_allclose(both.values["logp"][:, b], alone.values["logp"][:, 0], rtol=1e-12)
        np.testing.assert_allclose(both.loss[:, b], alone.loss[:, 0], rtol=1e-12)


def test_a_common_component_is_invisible_to_the_centred_flow():
    """With any weights of the mean; and small centred steps reach that flow."""
    world = markov([1000])
    every, n = slice(0, world.size[1]), world.trained
    gram = np.asarray(world.kernel.block(every, every))
    share = np.arange(1.0, n + 1.0)[None] / np.arange(1.0, n + 1.0).sum()
    options = {"lr": 4.0, "rejected": "rejected"}
    runs = []
    for c in (0.0, 3.0):
        one = World(world.logits, Gram(gram + c), world.responses, n, world.seeds)
        runs.append(flow(one, DPO, steps=8, precondition=centred(share), **options).values["logp"][-1])
        assert np.abs(runs[-1] - flow(one, DPO, steps=8, **options).values["logp"][-1]).max() > 1e-2
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-6)
    error = []
    for k in (32, 64):
        small = train(world, DPO, lr=4.0 / k, steps=8 * k, rejected="rejected", precondition=centred(share))
        error.append(np.abs(small.values["logp"][-1] - runs[0]).max())
    assert error[0] / error[1] == pytest.approx(2.0, rel=0.05)


def test_every_world_has_its_own_preconditioner():
    world = markov()
    n = world.trained
    share = np.random.default_rng(0).dirichlet(np.ones(n), size=2)
    options = {"lr": 4.0, "steps": 8, "rejected": "rejected"}
    runs = flow(world, DPO, precondition=centred(share), **options)
    for b in range(2):
        one = flow(world.take([b]), DPO, precondition=centred(share[b : b + 1]), **options)
        np.testing.assert_allclose(runs.state.logits[b], one.state.logits[0], atol=1e-6)
    other = flow(world.take([1]), DPO, precondition=centred(share[:1]), **options)
    assert np.abs(runs.state.logits[1] - other.state.logits[0]).max() > 1e-2


def test_advantages_groups_and_anchors_reach_the_objective():
    """Rewards by world, GRPO within groups of which one lacks a rejected answer, SLiC beside its anchor."""
    world = markov()
    absent = world.responses["rejected"].mask.copy()
    absent[:, 0] = False
    fewer = {**world.responses, "rejected": world.responses["rejected"]._replace(mask=absent)}
    partial = replace(world, responses=fewer)
    own = {"chosen": np.array([[1.0, 0.5, 0.2], [0.1, 2.0, 1.0]]), "rejected": -0.5}
    groups = np.array([[0, 0, 1], [0, 1, 1]])
    cases = [
        (world, objectives.get("asymre"), {"advantages": own}),
        (partial, objectives.get("grpo"), {"groups": groups}),
        (partial, objectives.get("grpo"), {"groups": groups[0]}),
        (world, objectives.get("slic"), {"anchor": "chosen"}),
    ]
    ends = []
    for one, objective, options in cases:
        options = {"rejected": "rejected", "kinds": ("chosen",), **options}
        limit = flow(one, objective, lr=0.02, steps=4, **options).values["logp"]
        runs = [train(one, objective, lr=0.02 / k, steps=4 * k, **options).values["logp"][-1] for k in (8, 16)]
        ends.append(limit[-1])
        assert np.abs(limit[-1] - limit[0]).max() > 1e-3
        error = [np.abs(run - limit[-1]).max() for run in runs]
        assert error[0] / error[1] == pytest.approx(2.0, rel=0.1)
    assert np.abs(ends[1] - ends[2])[1].max() > 1e-4  # the second world has other groups


def test_the_loss_falls_along_the_flow():
    for objective, rejected in ((SFT, None), (DPO, "rejected")):
        loss = flow(markov(), objective, lr=4.0, steps=20, at=range(21), rejected=rejected).loss
        assert (np.diff(loss, axis=0) < 0.0).all()


def test_a_flow_gives_the_table_of_a_run_on_the_same_clock():
    world = markov()
    run = flow(world, SFT, lr=1.0, steps=8, at=[0, 2, 8])
    table = run.table("sft", "flow")
    assert table.step.values.tolist() == [0, 2, 8]
    assert table.attrs["has_step0"] == 1
    again = train(world, SFT, lr=1.0, steps=8, at=[0, 2, 8]).table("sft", "steps")
    assert table.sizes == again.sizes
    np.testing.assert_allclose(table.logp[:, 0], again.logp[:, 0], rtol=1e-12)
    assert flow(world, SFT, lr=1.0, steps=2, at=()).loss.shape == (0, 2)
    still = flow(world, SFT, lr=1.0, steps=0)
    np.testing.assert_array_equal(still.state.logits, contexts.start(world).logits)


def test_bad_input_is_one_line():
    world = markov([1000])
    with pytest.raises(BadInput, match="at: expected updates from 0 to 4, got 0 to 9"):
        flow(world, SFT, lr=1.0, steps=4, at=[0, 9])
    with pytest.raises(BadInput, match="expected rows on the"):
        flow(world, SFT, lr=1.0, steps=4, chosen="test_chosen")
    import torch

    with pytest.raises(BadInput, match="expected numpy arrays, got Tensor"):
        flow(world.to(torch.zeros(1, dtype=torch.float64)), SFT, lr=1.0, steps=4)
