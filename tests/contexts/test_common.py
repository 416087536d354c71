"""The common component, one thing at a time: what differs between conditions, what does not, and the readings."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

from toyld import contexts
from toyld.contexts.experiments import common
from toyld.contexts.measure import token_log_probs
from toyld.trajectory import trajectory
from toyld.trajectory.matched import margin

SEEDS = range(1000, 1032)
SMALL = common.Design(vocab=12, prompts=3, length=4, common=(0.0, 1.0), arms=("baseline", "extend", "extend, half"))


@pytest.fixture(scope="module")
def found():
    return common.tables(range(1000, 1003), designs=[SMALL])


def test_examples_of_docstrings_run():
    failed, tried = doctest.testmod(common)
    assert (failed, tried > 3) == (0, True)


def test_worlds_of_other_c_differ_in_c_alone():
    language = SMALL.language_of(SEEDS)
    world = SMALL.world(language, SEEDS)
    half, everything = len(SEEDS), slice(0, world.size[1])
    np.testing.assert_array_equal(world.tokens[:half], world.tokens[half:])
    np.testing.assert_array_equal(world.logits[:half], world.logits[half:])
    gram = world.kernel.block(everything, everything)
    # Sums of some tens of products of numbers below 1.
    np.testing.assert_allclose(gram[half:] - gram[:half], 1.0, atol=64 * np.finfo(float).eps)
    assert world.seeds == (*SEEDS, *SEEDS)


@pytest.mark.parametrize("level", common.LEVELS)
def test_every_c_is_taught_to_one_loss(level):
    design = common.Design(taught=level, common=(0.0, 1.0, 4.0))
    taught = design.teach(design.world(design.language_of(SEEDS), SEEDS), "equal loss")
    target = level * design.length
    assert (taught.loss[0] > target).all()
    assert (taught.loss[-1] <= target).all()
    # A seed stops at the first update below the target, so what is left to differ is one update's worth.
    means = taught.loss[-1].reshape(len(design.common), -1).mean(1)
    assert (means > 0.98 * target).all()
    assert np.ptp(means) < (0.01 if level <= common.TAUGHT else 0.02) * target  # early updates are larger


@pytest.mark.parametrize("negatives", ["model", "uniform", "base"])
def test_on_policy_negatives_are_the_taught_models_own(negatives):
    """log π(y) + Σ entropy along y has the expectation 0 if y was sampled from π, and only then."""
    named = {"negatives": (), "arms": ("baseline",)} if negatives == "base" else {"negatives": (negatives,)}
    design = common.Design(common=(0.0, 4.0), **named)
    for ds in common.tables(SEEDS, designs=[design]).values():
        first = ds.sel(probe="rejected").isel(step=0)
        off = (first.logp + design.length * first.entropy).mean("example").values
        error = off.std(ddof=1) / len(off) ** 0.5
        assert (abs(off.mean()) < 4.0 * error) == (negatives == "model")


def test_names_and_attributes(found):
    assert len(found) == 2 * (2 + 3)
    ds = found["markov, mixture, P=3 T=4 V=12, c=1, equal loss 1, uniform, baseline"]
    about = {"experiment": "common", "design": "equal loss", "common": 1.0, "negatives": "uniform", "halve": 1}
    assert {name: ds.attrs[name] for name in about} == about
    assert (ds.attrs["stage"], ds.attrs["arm"], ds.sizes["seed"]) == ("dpo", "baseline", 3)
    half = found["markov, mixture, P=3 T=4 V=12, c=1, equal updates, base, extend, half"]
    assert (half.attrs["arm"], half.attrs["sft_passes"]) == ("extend", 37.5)
    assert (ds.attrs["taught"], half.attrs.get("taught")) == (1.0, None)
    for one in found.values():
        before = -one.logp.sel(probe="chosen").isel(step=0).mean().item()
        np.testing.assert_allclose(one.attrs["sft_loss"], before, rtol=1e-12)


def test_a_condition_run_alone_is_the_same_run(found):
    alone = common.tables(range(1000, 1003), designs=[replace(SMALL, common=(1.0,), arms=())])
    assert len(alone) == 2
    for name, ds in alone.items():
        np.testing.assert_allclose(ds.logp.values, found[name].logp.values, rtol=1e-10)


def test_extend_pushes_chosen_as_hard_as_plain_sft():
    """With nothing shared, what only the chosen response passes moves exactly as under plain SFT; by half, less."""
    design = replace(SMALL, local="identity", common=(0.0,), negatives=())
    world = design.world(design.language_of([1000, 1001]), [1000, 1001])
    chosen, rejected = world.responses["chosen"], world.responses["rejected"]
    own = np.stack([~np.isin(chosen.context[b], rejected.context[b]) for b in range(2)])
    assert 0 < own.sum() < own.size  # the first context of a pair is shared

    def after(arm):
        state = design.teach(world, "equal updates", arm).state
        return token_log_probs(contexts.logits(world, state), chosen)

    plain, both, half = (after(arm) for arm in ("baseline", "extend", "extend, half"))
    np.testing.assert_array_equal(both[own], plain[own])
    assert (half[own] < plain[own]).all()
    assert (both[~own] < plain[~own]).any()


def test_half_the_step_is_the_same_flow():
    one = common.Design(vocab=12, prompts=3, length=4, common=(0.0, 4.0), negatives=("uniform",))
    full, half = (common.tables(range(1000, 1008), designs=[replace(one, halve=k)]) for k in (1, 2))
    assert all(b.step.values[-1] == 2 * a.step.values[-1] for a, b in zip(full.values(), half.values(), strict=True))
    for a, b in zip(full.values(), half.values(), strict=True):
        assert len(a.step) == len(b.step)
        np.testing.assert_allclose(margin(b)[5:], margin(a)[5:], rtol=0.1)
        moved = common.gain(b, 10.0) - common.gain(a, 10.0)
        assert abs(moved.mean()) < 0.05 * (1.0 + abs(common.gain(a, 10.0).mean()))


def made(chosen, rejected, **attrs):
    """A table of one prompt: paths (seed, step) of chosen and of rejected."""
    logp = np.stack([np.asarray(chosen, float), np.asarray(rejected, float)], axis=2)[..., None]
    top = np.full_like(logp, np.nan)
    top[:, :, 0] = 0.5 * logp[:, :, 0]
    about = {"design": "equal updates", "negatives": "hot", "setting": "made", **attrs}
    return trajectory(
        {"logp": logp, "argmax_logp": top}, step=range(0, 10 * logp.shape[1], 10), probe=["chosen", "rejected"],
        seed=range(len(logp)), stage="dpo", arm=attrs.get("arm", "baseline"), attrs=about,
    )  # fmt: skip


def test_gain_reads_at_the_margin_and_at_the_end():
    ds = made([[-9.0, -11.0, -13.0], [-9.0, -9.0, -9.0]], [[-9.0, -19.0, -33.0], [-9.0, -13.0, -14.0]])
    # Seed 0: margins 0, 8, 20; seed 1 never comes to 10.
    np.testing.assert_allclose(common.gain(ds, 10.0), [-2.0 - 2.0 * 2.0 / 12.0, np.nan])
    np.testing.assert_allclose(common.gain(ds, None), [-4.0, 0.0])
    np.testing.assert_allclose(common.gain(ds, None, "argmax"), [-2.0, 0.0])
    np.testing.assert_allclose(common.gain(ds, 8.0, "gap"), [1.0, np.nan])


def lead(values):
    """Tables of extend and baseline by c, whose chosen ends this much higher (by seed) after extend."""
    out = {}
    for c, by_seed in values.items():
        for arm, more in (("baseline", 0.0), ("extend", 1.0)):
            end = -20.0 + more * np.asarray(by_seed, float)
            path = np.stack([np.full_like(end, -20.0), end], 1)
            out[f"made, c={c:g}, hot, {arm}"] = made(path, path - 30.0, arm=arm, common=c)
    return out


def test_boundary_is_where_the_lead_falls_through_zero():
    value, low, high = common.boundary(lead({0.0: [1.0, 1.0], 1.0: [1.0, 3.0], 2.0: [-6.0, -6.0]}))
    assert value == pytest.approx(1.25)
    assert (low, high) == (pytest.approx(1.0 + 1.0 / 7.0), pytest.approx(1.0 + 3.0 / 9.0))
    assert common.boundary(lead({0.0: [1.0, 1.0], 1.0: [2.0, 2.0]})) == (np.inf,) * 3
    assert common.boundary(lead({0.5: [-1.0, -1.0], 1.0: [2.0, 2.0]})) == (0.5,) * 3


def test_tables_of_text_say_what_was_measured(found):
    text = common.table_k4(found)
    ds = found["markov, mixture, P=3 T=4 V=12, c=1, equal loss 1, model, baseline"]
    units = common.gain(ds, 10.0)
    row = next(line for line in text.splitlines() if line.startswith("model        1"))
    assert f"{units.mean():+7.2f}" in row
    wide = 4.302653 * units.std(ddof=1) / 3**0.5  # Student's t, 2 degrees of freedom
    assert f"±{wide:5.2f}" in row
    assert row.endswith(str(int((margin(ds)[-1] < 10.0).sum())))
    k5 = common.table_k5(found).splitlines()
    assert len(k5) == 1 + 2 * 2
    assert sum("extend, half" in line for line in k5) == 2


def test_confounded_changes_three_things_at_once():
    out = list(common.confounded(SEEDS[:6]).values())
    assert [ds.attrs["share"] for ds in out] == list(common.SHARES)
    losses = [ds.attrs["sft_loss"] for ds in out]
    assert losses == sorted(losses)
    assert losses[-1] > 1.5 * losses[0]
    text = common.table_confounded({str(i): ds for i, ds in enumerate(out)})
    assert f"{losses[-1]:.2f}" in text
    falls = [common.gain(ds, None).mean() for ds in out]
    assert falls[0] > 0.0 > falls[-1]
