"""The paper's stages in closed form: what the arms are, that the controls are fair, that the design is as stated."""

import doctest

import numpy as np
import pytest

from toyld import objectives
from toyld.contexts import experiments, respond, start, train, with_texts
from toyld.contexts.experiments import stages
from toyld.trajectory import at_margin, validate
from toyld.trajectory.experiments import Experiments

SEEDS = range(1000, 1003)


@pytest.fixture(scope="module")
def found():
    return stages.tables(SEEDS)


@pytest.fixture(scope="module")
def record():
    """The seeds of record; the scoreboard computes the same tables, and only once."""
    return experiments.run("stages")


def test_its_examples_run():
    for module in (stages, experiments):
        failed, tried = doctest.testmod(module)
        assert (failed, tried > 0) == (0, True)


def test_every_table_says_what_it_is(found):
    assert len(found) == 3 * (2 + 4 + 1 + 2)
    for name, ds in found.items():
        validate(ds)
        assert name.startswith(f"{ds.attrs['model']} {ds.attrs['stage']} {ds.attrs['arm']}"), name
        assert (ds.attrs["experiment"], ds.attrs["world"]) == ("stages", "contexts")
        assert ds.seed.values.tolist() == list(SEEDS)
        assert int(ds.step[0]) == 0
    lengths = {
        (ds.attrs["arm"], ds.attrs["sft_updates"], ds.attrs["sft_passes"]) for n, ds in found.items() if "dpo" in n
    }
    assert lengths == {
        *(("baseline", k, float(k)) for k in (0, 10, 20, 40)), ("on-policy", 10, 10.0),
        ("extend", 10, 5.0), ("extend", 20, 10.0),
    }  # fmt: skip


def test_the_same_seeds_give_the_same_numbers_whoever_runs_beside_them(found):
    alone = stages.tables([1001])
    for name, ds in alone.items():
        np.testing.assert_allclose(ds.logp.values[0], found[name].logp.values[1], rtol=1e-10, err_msg=name)


def test_every_dpo_starts_where_its_sft_was(found):
    for model in stages.MODELS:
        for arm, lengths in (("baseline", (0, 10, 20, 40)), ("extend", (10, 20))):
            sft = found[f"{model} sft {arm}"]
            for n in lengths:
                start = found[f"{model} dpo {arm} after {n}"].isel(step=0)
                np.testing.assert_allclose(start.logp.values, sft.logp.sel(step=n).values, rtol=1e-10)
                np.testing.assert_allclose(start.logp.values, start.ref_logp.values, rtol=1e-12)


def test_extend_is_the_mean_over_rows_of_both_kinds():
    """Half the rate on the sum of a pair's two losses is the full rate on the mean over 2P rows, by hand."""
    world = stages.pretrained([1000], models={"mixed": stages.MODELS["mixed"]})
    one = stages._extend(world, 1, at=[0, 1])
    prompts = world.responses["chosen"].token.shape[1]
    z, residual = np.array(world.logits[:, : world.trained]), np.zeros((1, world.trained, world.size[2]))
    for kind in ("chosen", "rejected"):
        at = world.responses[kind]
        for c, y in zip(at.context[0].ravel(), at.token[0].ravel(), strict=True):
            p = np.exp(z[0, c] - z[0, c].max())
            residual[0, c] += p / p.sum()
            residual[0, c, y] -= 1.0
    own = slice(0, world.trained)
    z -= stages.STEP * prompts * world.kernel.block(own, own) @ residual / (2 * prompts)
    np.testing.assert_allclose(one.state.logits, z, rtol=1e-10, atol=1e-12)
    plain = stages._sft(world, 1, at=[0, 1])
    # Half of plain SFT's push on every chosen answer, plus as much on the rejected ones.
    rest = train(world, objectives.get("sft"), lr=stages.STEP * prompts / 2, steps=1, chosen="rejected", at=[0, 1])
    moved = [run.state.logits - world.logits[:, own] for run in (plain, rest)]
    np.testing.assert_allclose(one.state.logits - world.logits[:, own], moved[0] / 2 + moved[1], atol=1e-12)


def test_own_negatives_are_samples_of_the_trained_policy(found):
    """Not of the untrained one; and rephrases of other answers are left out."""
    world = stages.pretrained(SEEDS)
    state = stages._sft(world, 10, at=[]).state
    texts = respond(world, state, seed=0)
    assert (texts != respond(world, start(world), seed=0)).any((1, 2)).all()
    other, carried = with_texts(world, state, {"rejected": texts})
    at_start = train(other, objectives.get("sft"), lr=0.0, steps=0, state=carried, kinds=["chosen", "rejected"])
    for i, model in enumerate(stages.MODELS):
        own, given = (found[f"{model} dpo {arm} after 10"].isel(step=0) for arm in ("on-policy", "baseline"))
        assert not set(stages.STALE) & set(own.probe.values)
        for kind in at_start.kinds:
            want = at_start.value("logp", kind)[0, i * len(SEEDS) : (i + 1) * len(SEEDS)]
            np.testing.assert_allclose(own.logp.sel(probe=kind).values, want, rtol=1e-10)
        np.testing.assert_allclose(own.logp.sel(probe="chosen"), given.logp.sel(probe="chosen"), rtol=1e-10)


def test_the_settings_are_what_their_reasons_say(record):
    """Shares of the first loss left by SFT, growth of the margin, stability: the sentences of the module."""
    found = record
    for model, shares in (("local", (0.6, 0.4, 0.2)), ("mixed", (0.6, 0.4, 0.2)), ("anisotropic", (0.65, 0.5, 0.35))):
        chosen = found[f"{model} sft baseline"].logp.sel(probe="chosen").mean(("seed", "example"))
        for updates, share in zip(stages.SFT_UPDATES, shares, strict=True):
            assert float(chosen.sel(step=updates) / chosen[0]) == pytest.approx(share, abs=0.05)
        for name, ds in found.items():
            if name.startswith(f"{model} dpo"):
                assert np.isfinite(at_margin(ds, 10.0)).all(), name
            if name.startswith(f"{model} dpo baseline"):
                gap = (ds.logp.sel(probe="chosen") - ds.logp.sel(probe="rejected")).mean(("seed", "example"))
                assert 1.3 <= float(gap[-1] - gap[0]) / -float(chosen[0]) <= 1.7, name
    world = stages.pretrained(range(4))
    taught = world.responses["chosen"].context.max() + 1
    gram = world.kernel.block(slice(0, taught), slice(0, taught))
    assert stages.STEP * np.linalg.eigvalsh(gram)[:, -1].max() < 4.0


def test_all_experiments_are_joined_by_name(monkeypatch):
    made = {"stages": {"a": 1}, "common": {"b": 2}}
    monkeypatch.setattr(Experiments, "run", lambda self, name, seeds, size: made.get(name, {}))
    assert experiments.tables([3]) == {"a": 1, "b": 2}
    made["common"]["a"] = 3
    with pytest.raises(ValueError, match="expected names of its own, got a once more"):
        experiments.tables([3])


def test_the_record_is_of_seeds_named_beforehand():
    assert [*range(32)] == list(experiments.RECORD)
