"""Scores of predictors: statistics against scipy, worlds against the engine, each claim where it holds and not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from toyld import contexts, objectives
from toyld.claims import foresight as claims_of
from toyld.claims.runs import RunClaim, decide, evaluate_on, try_on
from toyld.contexts import predict
from toyld.contexts.experiments import foresight
from toyld.trajectory import trajectory

TINY = foresight.Setting(
    sizes={"concepts": 3, "function_words": 3, "prompts": 5, "length": 5},
    kernels={"local": {"identity": 0.8, "token": 0.2}, "crowded": {"identity": 0.2, "common": 0.6, "prefix": 0.2}},
)
CLAIMS = {one.id: one for one in vars(claims_of).values() if isinstance(one, RunClaim)}


@pytest.fixture(scope="module")
def taught():
    world = foresight.worlds([1000, 1001, 1002], TINY)
    state = contexts.train(world, objectives.get("sft"), lr=1.5, steps=60, until=3.0, at=(), kinds=("chosen",)).state
    return world, state


def test_pairs_differ_in_what_the_scores_look_at(taught):
    world, state = taught
    lengths = {kind: world.responses[kind].mask.sum(-1) for kind in ("chosen", "rejected")}
    for kind, long in lengths.items():
        assert set(np.unique(long)) == {3, 4, 5}, kind
    distance = predict.edit_distance(world)
    assert 0 < distance.min() < 0.5 < distance.max()
    assert np.ptp(predict.likelihoods(world, state)["improbability"]) > 1
    again = foresight.worlds([1001], TINY)
    np.testing.assert_array_equal(again.responses["rejected"].token[0], world.responses["rejected"].token[1])


def test_a_pair_alone_runs_as_if_it_were_the_only_row(taught):
    world, state = taught
    dpo, steps = objectives.get("dpo"), 12
    single = foresight.alone(world, state)
    run = contexts.train(single, dpo, lr=4.0, steps=steps, rejected="rejected")
    for pair in range(5):
        order = np.full((steps, 1), pair)
        whole = contexts.train(world, dpo, lr=4.0, steps=steps, state=state, rejected="rejected", order=order)
        for kind in ("chosen", "rejected"):
            one = run.value("logp", kind).reshape(2, -1, 5)[:, :, pair]
            np.testing.assert_allclose(one, whole.value("logp", kind)[:, :, pair], rtol=1e-9, atol=1e-10)
    assert np.abs(run.value("logp", "rejected")[1] - run.value("logp", "rejected")[0]).min() > 0.1


def test_one_step_alone_is_the_pairs_own_terms(taught):
    world, state = taught
    own, alone = predict.terms(world, state), predict.terms(foresight.alone(world, state))
    both = 5 * (own["own"] + own["rejected"])
    np.testing.assert_allclose(alone["total"].reshape(both.shape), both, rtol=1e-9, atol=1e-12)


def test_scores_are_the_predictors_oriented_towards_a_fall(taught):
    world, state = taught
    found, step = foresight.scores(world, state), predict.terms(world, state)
    inner, text = predict.ches(world), predict.likelihoods(world, state)
    wanted = {
        "k3": -step["total"],
        "pair": -step["own"] - step["rejected"],
        "ches": inner["ches"],
        "ches_normalised": inner["normalised"],
        "overlap": 1 - predict.edit_distance(world),
        "improbability": text["improbability"],
        "margin": text["margin"],
        "ease": -text["surprise"],
    }
    assert set(found) == set(wanted) == set(foresight.SCORES) - {"foreseen", "even", "begun"}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


SMALL_LISTS = st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=2, max_size=8)


@settings(max_examples=40)
@given(SMALL_LISTS)
def test_spearman_and_auc_are_scipys_ties_included(pairs):
    score, fall = np.array(pairs, float).T
    found = foresight.spearman(score[None], fall[None])[0]
    if np.ptp(score) and np.ptp(fall):
        assert found == pytest.approx(stats.spearmanr(score, fall).statistic, abs=1e-12)
    else:
        assert np.isnan(found)
    fell = fall > 0
    area = foresight.auc(score[None], fell[None])[0]
    if 0 < fell.sum() < len(fell):
        u = stats.mannwhitneyu(score[fell], score[~fell]).statistic
        assert area == pytest.approx(u / (fell.sum() * (~fell).sum()), abs=1e-12)
    else:
        assert np.isnan(area)


def test_a_world_that_does_not_reach_the_margin_has_no_number():
    chosen = np.array([[[0.0, 0.0], [0.0, 0.0]], [[1.0, -3.0], [1.0, -3.0]], [[2.0, -9.0], [1.0, -4.0]]])
    rejected = chosen - np.array([0.0, 10.0, 30.0])[:, None, None] * [[1.0], [0.5]]
    found = foresight.fall_at(20.0, chosen, rejected)
    np.testing.assert_allclose(found[0], [-1.5, 6.0])
    assert np.isnan(found[1]).all()
    assert np.isnan(foresight.spearman(np.array([[1.0, 2.0], [1.0, 2.0]]), found)).tolist() == [False, True]


def taught_as_scored():
    """The worlds of TINY and the policy after the SFT of the experiment."""
    world = foresight.worlds([1000, 1001, 1002], TINY)
    until = foresight.TAUGHT * world.responses["chosen"].mask.sum(-1).mean(-1)
    sft = objectives.get("sft")
    return world, contexts.train(world, sft, lr=1.5, steps=200, until=until, at=(), kinds=("chosen",)).state


def test_tables_have_both_regimes_of_every_kernel_and_scores_as_defined():
    found = foresight.tables([1000, 1001, 1002], settings=[TINY])
    attrs = [(ds.attrs["kernel"], ds.attrs["regime"], ds.attrs["experiment"]) for ds in found.values()]
    assert attrs == [(k, r, "foresight") for r in ("many", "alone") for k in ("local", "crowded")]
    for ds in found.values():
        for name in foresight.SCORES:
            assert f"eval_rank_end_{name}" in ds
        assert float(ds.eval_rank_end_foreseen.mean()) > 0.8
    many, alone = (list(found.values())[i] for i in (1, 3))
    assert not np.allclose(many.eval_rank_end_k3, many.eval_rank_end_pair)
    np.testing.assert_array_equal(alone.eval_rank_end_k3, alone.eval_rank_end_pair)
    one = foresight.score([1000, 1001, 1002], TINY)[0]
    for name, growth in (("foreseen", 1.25), ("even", 1.0)):
        world, state = taught_as_scored()
        rate = foresight.RATE * 5
        dpo = objectives.get("dpo", beta=foresight.BETA)
        seen = predict.foresee(world, state, lr=rate, steps=foresight.UPDATES, updates=8, growth=growth, objective=dpo)
        np.testing.assert_allclose(one.scores["end"][name], -seen["chosen"][-1], rtol=1e-9, atol=1e-10)
        there = foresight.fall_at(foresight.MARGIN, seen["chosen"], seen["rejected"])
        reached = np.isfinite(there)
        assert reached.any()
        np.testing.assert_allclose(one.scores["margin"][name][reached], there[reached], rtol=1e-9, atol=1e-10)
    wanted = foresight.spearman(one.scores["end"]["ches"], one.falls["end"])
    np.testing.assert_array_equal(many.eval_rank_end_ches.values[:, 0], wanted[3:])


def table(regime="many", **ranks):
    """A table in which these scores have these mean rank correlations, at both targets, and some pairs fall."""
    rng, n = np.random.default_rng(11), 24
    columns = {f"eval_fell{x}": rng.normal(m, 0.05, (n, 1)) for x, m in (("_first", 0.1), ("", 0.5), ("_end", 0.6))}
    for name in foresight.SCORES:
        for end in ("", "_end"):
            columns[f"eval_rank{end}_{name}"] = rng.normal(ranks.get(name, 0.0), 0.1, (n, 1))
    attrs = {"experiment": "foresight", "regime": regime}
    return trajectory(columns, step=[0], probe=["chosen"], seed=range(n), stage="scores", arm=regime, attrs=attrs)


AS_STATED = {
    "foreseen": 0.9, "even": 0.7, "begun": 0.8, "k3": 0.6, "pair": 0.4, "ches": 0.3, "ches_normalised": 0.3,
    "overlap": 0.3, "improbability": 0.3, "margin": 0.3, "ease": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("id", CHECKED := sorted(set(CLAIMS) - {"foresight.first-update-is-too-hopeful"}))
def test_each_claim_holds_on_scores_as_stated_and_is_refuted_on_the_opposite(id):
    opposite = {name: -rank for name, rank in AS_STATED.items()}
    assert evaluate_on(CLAIMS[id], {"as stated": table(**AS_STATED)}).summary == "holds"
    assert evaluate_on(CLAIMS[id], {"opposite": table(**opposite)}).summary == "refuted"


@pytest.mark.parametrize("end", ["", "_end"])
@pytest.mark.parametrize("id", CHECKED)
def test_no_claim_holds_at_one_target_alone(id, end):
    ds = table(**AS_STATED)
    for name in foresight.SCORES:
        ds[f"eval_rank{end}_{name}"] = -ds[f"eval_rank{end}_{name}"]
    assert evaluate_on(CLAIMS[id], {"half": ds}).summary != "holds"


RIVALS = {
    "foresight.one-step-beats-ches": ("ches", "ches_normalised"),
    "foresight.one-step-beats-edit-distance": ("overlap",),
    "foresight.one-step-beats-likelihoods": ("improbability", "margin", "ease"),
    "foresight.other-pairs-matter": ("pair",),
    "foresight.few-updates-beat-one": ("k3",),
    "foresight.few-updates-beat-a-beginning": ("begun",),
    "foresight.growing-updates-beat-even-ones": ("even",),
}


@pytest.mark.parametrize(("id", "rival"), [(id, rival) for id, rivals in RIVALS.items() for rival in rivals])
def test_no_comparison_holds_where_one_of_the_rivals_is_better(id, rival):
    ds = table(**{**AS_STATED, rival: 0.95})
    assert evaluate_on(CLAIMS[id], {"one is better": ds}).summary != "holds"


def test_the_first_update_is_compared_with_what_falls():
    one = CLAIMS["foresight.first-update-is-too-hopeful"]
    ds = table()
    assert evaluate_on(one, {"many fall": ds}).summary == "holds"
    turned = ds.assign(eval_fell_first=ds.eval_fell_first + 0.9)
    assert evaluate_on(one, {"few fall": turned}).summary == "refuted"


@pytest.mark.parametrize(
    ("ds", "why"),
    [
        (table().assign_attrs(stage="dpo"), "a run of stage dpo; the claim is about scores of pairs"),
        (table().drop_vars("eval_rank_end_pair"), "not scored: pair"),
        (table("alone"), "pairs trained alone; the claim is about many"),
    ],
)
def test_premises_say_why_a_table_says_nothing(ds, why):
    (trial,) = try_on(CLAIMS["foresight.other-pairs-matter"], {"run": ds})
    assert (trial.effect, trial.why) == (None, why)


def test_every_claim_is_about_this_experiment_and_tried_on_its_tables():
    runs = foresight.tables(range(1000, 1006), settings=[TINY])
    assert len(CLAIMS) == 12
    for one in CLAIMS.values():
        assert (one.experiment, one.rungs, one.proof != "") == ("foresight", ("contexts", "tiny"), True), one.id
        trials = decide({one.id: try_on(one, runs)})[one.id]
        tested = {trial.runs[0].rsplit(", ", 1)[1] for trial in trials if trial.tested}
        assert tested == ({"many"} if one.id == "foresight.other-pairs-matter" else {"many", "alone"}), one.id


def test_a_seed_gives_the_same_scores_in_any_company():
    from toyld.contexts.experiments.foresight import tables

    together, alone = tables(range(1000, 1008), "smoke"), tables([1003], "smoke")
    assert together.keys() == alone.keys()
    for name, table in alone.items():
        for score, values in table.data_vars.items():
            np.testing.assert_allclose(
                together[name][score].sel(seed=[1003]).values, values.values, rtol=1e-6, atol=1e-9
            )
