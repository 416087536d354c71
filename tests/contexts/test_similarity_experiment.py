"""The interventions on (Z, S): each changes its factor and nothing else; the exact rates; runs and ranks."""

import numpy as np
import pytest
from scipy.stats import rankdata

from toyld import objectives
from toyld.checked import BadInput
from toyld.contexts import train
from toyld.contexts.experiments import similarity as sim
from toyld.contexts.measure import token_log_probs
from toyld.trajectory.matched import at_margin, margin

SEEDS = range(2000, 2003)
TINY = sim.Size(4, pace=1.0, steps=30, every=1)
EPS = float(np.finfo(float).eps)


@pytest.fixture(scope="module", params=["facts", "markov"])
def world(request):
    return sim.prepare(request.param, SEEDS, prompts=4, length=4).world


def everything(world):
    return world.kernel.block(slice(0, world.size[1]), slice(0, world.size[1]))


def own_contexts(world):
    """Contexts on a path of rejected and on no other, visited once: by counting visits one by one."""
    out = []
    for b in range(world.size[0]):
        visits = [c for r in world.responses.values() for c in r.context[b].ravel().tolist()]
        mine = set(world.responses["rejected"].context[b].ravel().tolist())
        out.append({c for c in mine if visits.count(c) == 1})
    return out


def test_sft_ends_half_known():
    start = sim.prepare("facts", SEEDS, prompts=4, length=4)
    per_token = token_log_probs(start.world.logits, start.world.responses["chosen"]).mean((1, 2))
    assert (-per_token <= sim.HALF_KNOWN).all()
    assert (-per_token > 0.8 * sim.HALF_KNOWN).all()  # it stops there: the last update does not overshoot by much


def test_own_contexts_are_those_of_rejected_alone(world):
    at = sim.own(world)
    context = world.responses["rejected"].context
    for b, wanted in enumerate(own_contexts(world)):
        assert set(context[b][at[b]].tolist()) == wanted
    assert at.mean() > 0.5  # most of a rejected response stands behind its first own token


@pytest.mark.parametrize("level", [0.3, 4.0, 12.7])
@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_unlikely_sets_the_label_and_keeps_the_rest(world, level, power):
    at = sim.own(world)
    fresh = sim.unlikely(world, at, level, power=power)
    r = world.responses["rejected"]
    assert token_log_probs(fresh.logits, r)[at] == pytest.approx(-level, rel=1e-12)
    touched = np.zeros(world.size[:2], bool)
    for b, p, t in zip(*np.nonzero(at), strict=True):
        touched[b, r.context[b, p, t]] = True
        z, before = fresh.logits[b, r.context[b, p, t]], world.logits[b, r.context[b, p, t]]
        others = np.arange(len(z)) != r.token[b, p, t]
        ratios, old = np.diff(z[others]), np.diff(before[others])
        assert ratios == pytest.approx(power * old, abs=1e3 * EPS * (1 + np.abs(before).max()))
    assert (fresh.logits[~touched] == world.logits[~touched]).all()
    for kind in ("chosen", "test_chosen"):
        same = token_log_probs(fresh.logits, world.responses[kind]) == token_log_probs(
            world.logits, world.responses[kind]
        )
        assert same.all()


@pytest.mark.parametrize("rho", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("local", [sim.LOCAL, sim.PREFIX])
def test_coupling_scales_the_cross_blocks_alone(world, rho, share, local):
    at = sim.own(world)
    whole, s = (everything(sim.coupled(world, at, r, share, local=local)) for r in (1.0, rho))
    for b, mine in enumerate(own_contexts(world)):
        side = np.isin(np.arange(world.size[1]), list(mine))
        across = side[:, None] != side[None]
        assert s[b][across] == pytest.approx(rho * whole[b][across], abs=EPS)
        assert (s[b][~across] == whole[b][~across]).all()
        assert (np.diag(s[b]) == np.diag(whole[b])).all()
        lowest = np.linalg.eigvalsh(s[b])[0]
        assert lowest > -world.size[1] * EPS * np.trace(s[b])


def test_the_common_component_is_its_share_of_the_diagonal(world):
    at = sim.own(world)
    plain, shared = (everything(sim.coupled(world, at, 1.0, share)) for share in (0.0, 0.2))
    added = shared - plain
    assert added == pytest.approx(added.flat[0], rel=1e-12)
    assert added[:, 0, 0] / shared[:, 0, 0] == pytest.approx(0.2, rel=1e-12)


def test_a_kernel_is_coupled_once(world):
    at = sim.own(world)
    with pytest.raises(BadInput, match="expected a world with a mixture kernel, got Gram"):
        sim.coupled(sim.coupled(world, at, 0.5, 0.2), at, 0.5, 0.2)


def test_labels_move_and_contexts_stand(world):
    at = sim.own(world)
    chosen = world.responses["chosen"].token
    mixed = sim.shuffled(at, chosen, world.seeds)
    fresh = sim.relabelled(world, at, mixed).responses["rejected"]
    old = world.responses["rejected"]
    assert (fresh.context == old.context).all()
    assert (fresh.token[~at] == old.token[~at]).all()
    for b in range(at.shape[0]):
        for p in range(at.shape[1]):
            assert sorted(fresh.token[b, p, at[b, p]]) == sorted(chosen[b, p, at[b, p]])
    assert (mixed != chosen)[at].any()


def test_rates_are_those_of_a_small_update(world):
    """Central differences of the engine's own update, so that the second order cancels."""
    at = sim.own(world)
    one = sim.coupled(sim.unlikely(world, at, 2.0), at, 0.5, 0.2)
    found = sim.moves(one)

    def change(lr, order):
        done = train(one, objectives.get("dpo"), lr=lr, steps=1, rejected="rejected", order=order)
        return {kind: done.value("logp", kind)[1] - done.value("logp", kind)[0] for kind in sim.KINDS}

    h = 1e-3
    for order, wanted in (
        (None, {kind: rate.mean(2) for kind, rate in found.items()}),
        (np.array([[2]]), {kind: rate[:, :, 2] for kind, rate in found.items()}),
    ):
        up, down = change(h, order), change(-h, order)
        for kind in sim.KINDS:
            slope = (up[kind] - down[kind]) / (2 * h)
            assert slope == pytest.approx(wanted[kind], abs=1e-6)
    assert max(np.abs(rate).max() for rate in found.values()) > 1e-3  # what is compared is far above the tolerance


def test_probability_scales_the_push_of_rejected(world):
    """Rates of all others are linear in 1 − π_y: e_y − π = (1 − π_y)(e_y − q)."""
    at = sim.own(world)
    levels = (0.3, 1.3, 12.7)
    found = [sim.moves(sim.coupled(sim.unlikely(world, at, level), at, 1.0, 0.2)) for level in levels]
    a, b, c = -np.expm1(-np.array(levels))
    for kind in ("chosen", "test_chosen"):
        x, y, z = (rates[kind] for rates in found)
        assert (y - x) * (c - a) == pytest.approx((z - x) * (b - a), abs=1e3 * EPS)
        assert np.abs(z - x).max() > 1e-4


def test_a_run_rises_at_its_pace_and_reaches_the_margin(world):
    at = sim.own(world)
    one = sim.coupled(sim.unlikely(world, at, 1.3), at, 1.0, 0.2)
    ds = sim.run(one, "x", TINY, design="factorial")
    assert ds.attrs["margin"] == 2.0 * 4
    path = margin(ds)
    assert (path.max(0) >= ds.attrs["margin"]).all()
    slow = sim.run(one, "x", sim.Size(4, pace=1e-3, steps=2, every=1))
    assert margin(slow)[1] == pytest.approx(1e-3, rel=1e-2)
    first = {kind: rate.mean(2).mean(1) for kind, rate in sim.moves(one).items()}
    for kind, rate in first.items():
        assert ds[f"eval_rate_{kind}"].values[:, 0] == pytest.approx(rate, rel=1e-12)
        assert np.isnan(ds[f"eval_rate_{kind}"].values[:, 1:]).all()
    assert ds.eval_rate_margin.values[:, 0] == pytest.approx(first["chosen"] - first["rejected"], rel=1e-12)


def test_half_the_pace_gives_the_same_changes(world):
    at = sim.own(world)
    one = sim.coupled(sim.unlikely(world, at, 1.3), at, 1.0, 0.2)
    whole = sim.run(one, "x", sim.Size(4, pace=1.0, steps=30, every=1))
    half = sim.run(one, "x", sim.Size(4, pace=0.5, steps=60, every=1))
    for probe in ("chosen", "test_chosen"):
        assert at_margin(half, 8.0, probe) == pytest.approx(at_margin(whole, 8.0, probe), abs=0.1)


def test_a_single_pair_trained_alone_is_a_run_of_one_pair():
    world = sim.prepare("markov", SEEDS, prompts=1, length=4).world
    one = sim.coupled(world, np.zeros_like(sim.own(world)), 1.0, 0.2)
    found = sim._pairs(one, sim.Size(1, pace=1.0, steps=30, every=1, alone=True))
    ds = sim.run(one, "x", sim.Size(1, pace=1.0, steps=30, every=1))
    assert found["margin"][:, 0] == pytest.approx(-at_margin(ds, ds.attrs["margin"], "test_chosen"), rel=1e-9)
    ratio = -ds.eval_rate_test_chosen.values[:, 0] / ds.eval_rate_margin.values[:, 0]
    assert found["first"][:, 0] == pytest.approx(ratio, rel=1e-9)


def test_pairs_hold_what_they_say_they_hold(world):
    one = sim.coupled(world, np.zeros_like(sim.own(world)), 1.0, 0.2)
    found = sim._pairs(one, TINY)
    s, r, test = everything(one), one.responses["rejected"], one.responses["test_chosen"]
    b, p = 1, 2
    near = [
        (s[b, c, d], y == x)
        for c, y in zip(r.context[b, p], r.token[b, p], strict=True)
        for d, x in zip(test.context[b].ravel(), test.token[b].ravel(), strict=True)
    ]
    assert found["kernel"][b, p] == pytest.approx(np.mean([k for k, _ in near]), rel=1e-12)
    assert found["label"][b, p] == pytest.approx(np.mean([k * same for k, same in near]), rel=1e-12)
    assert found["logp"][b, p] == pytest.approx(token_log_probs(one.logits, r)[b, p].mean(), rel=1e-12)


def test_a_pair_of_two_equal_responses_has_no_margin():
    world = sim.prepare("markov", SEEDS, prompts=3, length=3).world
    chosen, rejected = world.responses["chosen"], world.responses["rejected"]
    equal = type(rejected)(*(np.concatenate([c[:, :1], r[:, 1:]], 1) for c, r in zip(chosen, rejected, strict=True)))
    from dataclasses import replace

    one = replace(world, responses={**world.responses, "rejected": equal})
    one = sim.coupled(one, np.zeros_like(sim.own(one)), 1.0, 0.2)
    found = sim._pairs(one, sim.Size(3, pace=1.0, steps=30, every=1, alone=True))
    for fall in ("first", "margin"):
        assert np.isnan(found[fall][:, 0]).all()
        assert np.isfinite(found[fall][:, 1:]).all()


def test_rank_correlations_against_scipy_and_regression():
    rng = np.random.default_rng(3)
    pairs = {name: np.round(rng.normal(size=(2, 30)), 1) for name in ("logp", "kernel", "label")}
    pairs["first"] = pairs["label"] - 0.5 * pairs["logp"] + rng.normal(size=(2, 30))
    pairs["first"][0, :3] = np.nan
    ds = sim._ranked(pairs, [5, 6], {"language": "facts", "anisotropy": 0.2})
    assert ds.eval_first_pairs.values.ravel().tolist() == [27.0, 30.0]
    for b in range(2):
        known = np.isfinite(pairs["first"][b])
        y, *x = (rankdata(pairs[name][b, known]) for name in ("first", "logp", "kernel", "label"))
        for i, factor in enumerate(("logp", "kernel", "label")):
            plain = np.corrcoef(y, x[i])[0, 1]
            assert ds[f"eval_first_{factor}"].values[b, 0] == pytest.approx(plain, rel=1e-9)
            rest = np.stack([np.ones_like(y), *(x[j] for j in range(3) if j != i)], 1)
            left, right = (v - rest @ np.linalg.lstsq(rest, v, rcond=None)[0] for v in (y, x[i]))
            partial = left @ right / np.sqrt((left @ left) * (right @ right))
            assert ds[f"eval_first_{factor}_given_rest"].values[b, 0] == pytest.approx(partial, rel=1e-6)


def test_tables_name_every_factor_once():
    found = sim.tables(SEEDS, which=["markov"])
    again = sim.tables(SEEDS, which=["markov"])
    for name, ds in found.items():
        assert ds.identical(again[name]), name
        assert ds.attrs["experiment"] == "similarity"
        assert ds.attrs["language"] == "markov"
        assert ds.seed.values.tolist() == list(SEEDS)
    designs = [ds.attrs["design"] for ds in found.values()]
    wanted = {"factorial": 12, "peak": 2, "bag": 4, "sampled": 3, "pairs": 1}
    assert {design: designs.count(design) for design in designs} == wanted


@pytest.mark.slow
def test_the_full_size_has_every_design_and_variant():
    found = sim.tables(SEEDS, "paper", which=["markov"])
    variants = [ds.attrs.get("variant") for ds in found.values()]
    assert variants.count("plain") == 3 * 4 * 5
    for variant in ("prefix kernel", "longer SFT", "half the rate"):
        assert variants.count(variant) == 3 * 2 * 2
    trained = [ds for ds in found.values() if ds.attrs["design"] == "pairs"]
    assert len(trained) == 3
    assert all((ds.eval_margin_pairs.values > 40).all() for ds in trained)
