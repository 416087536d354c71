"""Joining tables loses nothing and invents nothing, whatever their order; differences pair what is the same."""

import csv
import itertools
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from toyld.trajectory import TrajectoryError, compare, concat, notes, to_csv, trajectory, validate

PROBES = ["chosen", "rejected", "irr_test"]
EXAMPLES = ["a", "b", "ünï ×"]


def run(seed=0, steps=(0, 10, 20, 30), seeds=(0, 1), **given_):
    """A whole run: every kind of layout, some values not measured."""
    rng = np.random.default_rng(seed)
    s, t, p, e = len(seeds), len(steps), len(PROBES), len(EXAMPLES)
    logp = -rng.exponential(5, (s, t, p, e))
    logp[:, :, 1, 2] = np.nan
    token = -rng.exponential(1, (s, t, p, e, 4))
    token[..., 3] = np.nan
    variables = {
        "logp": logp,
        "logp_token": token,
        "ref_logp": -rng.exponential(5, (s, p, e)),
        "n_tokens": np.full((s, p, e), 3.0),
        "loss": rng.standard_normal((s, t)),
    }
    about = {"world": "contexts", "stage": "dpo", "arm": "baseline", "has_step0": steps[0] == 0} | given_
    about.setdefault("examples_seen", [4 * step for step in steps])
    return trajectory(variables, step=steps, probe=PROBES, example=EXAMPLES, seed=seeds, **about)


WHOLE = run(attrs={"vocab_size": 50, "objective": "dpo"})


def pieces(ds):
    """Its evaluations, seed by seed."""
    cut = [ds.isel(seed=[i], step=[j]) for i in range(ds.sizes["seed"]) for j in range(ds.sizes["step"])]
    return [piece.assign_attrs(has_step0=int(piece.step.values[0] == 0)) for piece in cut]


def bare(ds):
    return ds.drop_attrs(deep=False)


def codes(ds):
    return [note["code"] for note in notes(ds)]


def assert_refused(match, *parts):
    with pytest.raises(TrajectoryError, match=match) as error:
        concat(parts)
    assert str(error.value).isprintable()


@settings(max_examples=40)
@given(st.data())
def test_pieces_in_any_order_some_repeated_are_the_whole(data):
    parts = pieces(WHOLE)
    repeats = data.draw(st.lists(st.sampled_from(parts), max_size=3))
    found = concat(data.draw(st.permutations(parts + repeats)))
    xr.testing.assert_identical(bare(found), bare(WHOLE))
    assert codes(found) == (["duplicate-rows"] if repeats else [])
    assert {k: v for k, v in found.attrs.items() if k != "notes"} == {
        k: v for k, v in WHOLE.attrs.items() if k != "notes"
    }
    if repeats:
        steps = sorted({int(part.step.values[0]) for part in repeats})
        assert str(steps) in notes(found)[0]["text"]


def test_one_table_joined_with_nothing_or_itself_is_itself():
    xr.testing.assert_identical(concat([WHOLE]), WHOLE)
    xr.testing.assert_identical(bare(concat([WHOLE, WHOLE])), bare(WHOLE))
    twice = concat([WHOLE, WHOLE])
    xr.testing.assert_identical(concat([twice, twice]), twice)
    assert_refused("at least one table")


def test_what_only_some_measured_is_nan_elsewhere_and_every_order_gives_the_same_bytes():
    first = trajectory({"logp": [[[[-3.0], [-4.0]]]]}, step=[0], probe=["chosen", "rejected"], example=["a"])
    later = trajectory(
        {"logp": [[[[-2.0, -2.5]]]], "entropy": [[[[1.0, 1.5]]]], "n_tokens": [[[3, 4]]]},
        step=[10],
        probe=["chosen"],
        example=["a", "b"],
        has_step0=False,
    )
    seed = trajectory({"loss": [[0.5]], "logp": [[[[-9.0]]]]}, step=[10], probe=["new"], example=["c"], seed=[7])
    whole = concat([first, later, seed])
    validate(whole)
    assert whole.sizes == {"seed": 2, "step": 2, "probe": 3, "example": 3}
    assert whole.probe.values.tolist() == ["chosen", "rejected", "new"]
    assert whole.attrs["has_step0"] == 1
    for variable, measured in {"logp": 2 + 2 + 1, "entropy": 2, "n_tokens": 2, "loss": 1}.items():
        assert int(whole[variable].notnull().sum()) == measured, variable
    assert float(whole.logp.sel(seed=0, step=10, probe="chosen", example="b")) == -2.5
    assert float(whole.loss.sel(seed=7, step=10)) == 0.5
    for order in itertools.permutations([first, later, seed]):
        xr.testing.assert_identical(concat(order), whole)


def test_a_reference_that_moves_in_one_part_and_is_still_in_another():
    still = trajectory({"ref_logp": [[[-3.0]]], "loss": [[1.0, 2.0]]}, step=[0, 5], probe=["chosen"])
    moves = trajectory({"ref_logp": [[[[-4.0]], [[-5.0]]]]}, step=[10, 15], probe=["chosen"], has_step0=False)
    assert concat([moves, still]).ref_logp.values.ravel().tolist() == [-3.0, -3.0, -4.0, -5.0]
    moved = still.assign(ref_logp=still.ref_logp - 1)
    assert_refused("equal values of ref_logp", still, moved)


def test_tokens_of_longer_responses_are_padded():
    short = trajectory({"logp_token": [[[[[-1.0, -2.0]]]]]}, step=[0], probe=["chosen"])
    long = trajectory({"logp_token": [[[[[-1.0, -2.0, -3.0]]]]]}, step=[5], probe=["chosen"], has_step0=False)
    found = concat([long, short]).logp_token.values[0, :, 0, 0]
    np.testing.assert_array_equal(found, [[-1, -2, np.nan], [-1, -2, -3]])


def test_values_that_contradict_each_other_are_refused_with_their_place():
    parts = pieces(WHOLE)
    for name, place in {"logp": "seed 1, step 20, probe rejected, example b", "loss": "seed 1, step 20"}.items():
        wrong = parts[6].copy(deep=True)
        at = (0, 0, 1, 1) if name == "logp" else (0, 0)
        wrong[name].values[at] = np.nextafter(wrong[name].values[at], -np.inf)
        assert_refused(f"equal values of {name}.*part [67].*{place}", *parts, wrong)
    longer = parts[6].assign(n_tokens=parts[6].n_tokens + 1)
    assert_refused("equal values of n_tokens.*seed 1, probe chosen, example a", *parts[:6], longer)


def test_evaluations_that_measured_different_things_at_one_step_join():
    whole = WHOLE.isel(step=[0]).drop_vars("loss")
    halves = [whole.isel(probe=[0]), whole.isel(probe=[1, 2])]
    found = concat(halves[::-1])
    assert "duplicate-rows" not in codes(found)
    xr.testing.assert_identical(bare(found.sel(probe=PROBES)), bare(whole))


@pytest.mark.parametrize(
    ("attrs", "match"),
    [
        ({"world": "digits"}, "one world"),
        ({"stage": "sft"}, "one stage"),
        ({"arm": "extend"}, "one arm"),
        ({"step_unit": "examples"}, "one step_unit"),
        ({"vocab_size": 51}, "one vocab_size"),
        ({"noise_floor": "high"}, "noise_floor"),
    ],
)
def test_tables_of_different_runs_are_refused(attrs, match):
    first, later = WHOLE.isel(step=[0, 1]), WHOLE.isel(step=[2, 3])
    assert_refused(match, first.assign_attrs(noise_floor=0.1), later.assign_attrs(attrs))


def test_other_contradictions_are_refused():
    first, later = WHOLE.isel(step=[0, 1]), WHOLE.isel(step=[1, 2, 3])
    seen = later.assign_coords(examples_seen=("step", np.array([41, 80, 120], np.int32)))
    assert_refused("examples seen at step 10.*40 and 41", first, seen)
    bits = later.copy()
    bits["logp"] = bits.logp.assign_attrs(units="bits")
    assert_refused("one unit of logp.*bits and nats", first, bits)
    means = trajectory(
        {"logp": [[[[-3.0]]]]}, step=[40], probe=["chosen"], world="contexts", stage="dpo", arm="baseline"
    )
    assert_refused("means beside single examples", WHOLE, means)
    huge = [
        trajectory({"loss": np.ones((1, n)), "logp": np.full((1, n, 1, m), -1.0)}, step=range(n), probe=["chosen"],
                   example=[f"{n} {i}" for i in range(m)])
        for n, m in ((40_000, 2), (2, 40_000))
    ]  # fmt: skip
    assert_refused("at most 536870912 values.*1.6e\\+09 of logp", *huge)
    assert_refused("an xarray.Dataset", WHOLE, {"logp": 1})


def test_step_0_is_a_matter_of_the_parts_that_have_the_smallest_step():
    first, later = WHOLE.isel(step=[0]), WHOLE.isel(step=[1, 2])
    assert later.attrs["has_step0"] == 1, "as xarray cuts it"
    late = first.assign_attrs(has_step0=0)
    for order in itertools.permutations([late, later]):
        assert concat(order).attrs["has_step0"] == 0
    seeds = [first.isel(seed=[0]), late.isel(seed=[1]), later.assign_attrs(has_step0=0)]
    assert concat(seeds).attrs["has_step0"] == 0, "known for all seeds, or not known"
    assert concat([first, later.assign_attrs(has_step0=0)]).attrs["has_step0"] == 1
    assert concat([later, WHOLE.isel(step=[3])]).attrs["has_step0"] == 0, "no step 0, whatever they say"


def test_attributes_follow_their_rules():
    first = WHOLE.isel(step=[0]).assign_attrs(
        noise_floor=0.25,
        optimiser="sgd",
        commit="a",
        fingerprints=json.dumps({"x": "1", "y": "2"}),
        notes=json.dumps([{"code": "means-only", "text": "one"}, {"code": "lfs-pointer", "text": "two"}]),
    )
    later = WHOLE.isel(step=[1]).assign_attrs(
        optimiser="sgd",
        commit="b",
        has_step0=0,
        fingerprints=json.dumps({"x": "1", "y": "3", "z": "4"}),
        notes=json.dumps([{"code": "lfs-pointer", "text": "two"}, {"code": "means-only", "text": "three"}]),
    )
    found = concat([later, first])
    assert found.attrs["noise_floor"] == 0.25
    assert found.attrs["optimiser"] == "sgd"
    assert found.attrs["vocab_size"] == 50
    assert "commit" not in found.attrs
    assert found.attrs["has_step0"] == 1
    assert concat([first.assign_attrs(has_step0=0), later]).attrs["has_step0"] == 0
    assert json.loads(found.attrs["fingerprints"]) == {"x": "1", "y": ["2", "3"], "z": "4"}
    assert [note["text"] for note in notes(found)] == ["one", "two", "three"]
    third = later.assign_attrs(noise_floor=0.5, fingerprints=json.dumps({"y": "5"}))
    assert (
        concat([found, third.drop_vars("examples_seen").assign_coords(step=np.array([40], np.int32))]).attrs[
            "noise_floor"
        ]
        == 0.5
    )
    assert "fingerprints" not in concat([first, later.assign_attrs(fingerprints="of another kind")]).attrs
    without = WHOLE.isel(step=[2]).drop_vars("examples_seen")
    assert "examples_seen" not in concat([first, without]).coords


# --- differences ----------------------------------------------------------------------------------------------------


def test_the_difference_is_taken_cell_by_cell_and_exported(tmp_path):
    a, b = WHOLE, run(1, arm="extend")
    found = compare(a, b)
    for name in ("logp", "logp_token", "ref_logp", "n_tokens", "loss"):
        np.testing.assert_array_equal(found[name].values, b[name].values - a[name].values)
        assert found[name].dims == a[name].dims
        assert found[name].attrs["units"] == a[name].attrs["units"]
    assert found.attrs["difference"] == "dpo-extend - dpo-baseline"
    assert (found.attrs["only_a"], found.attrs["only_b"]) == ("{}", "{}")
    assert (found.logp > 0).any(), "or the test shows nothing: a run could not hold it"
    xr.testing.assert_allclose(compare(b, a), -found)
    to_csv(found, tmp_path / "difference.csv")
    with (tmp_path / "difference.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["variable"] == "loss"]
    assert [float(row["value"]) for row in rows] == found.loss.values.ravel().tolist()


def test_only_what_both_have_is_compared_and_the_rest_is_named():
    a = WHOLE.sel(probe=["rejected", "chosen"], example=["b", "a"])
    b = run(1, seeds=(1, 2)).drop_vars("loss").sel(probe=["irr_test", "chosen"])
    found = compare(a, b)
    assert found.sizes == {"seed": 1, "step": 4, "probe": 1, "example": 2, "token": 4}
    assert "loss" not in found
    at = {"seed": 1, "probe": "chosen", "example": "a"}
    np.testing.assert_array_equal(found.logp.sel(at), b.logp.sel(at) - a.logp.sel(at))
    assert json.loads(found.attrs["only_a"]) == {"seed": [0], "probe": ["rejected"], "variable": ["loss"]}
    assert json.loads(found.attrs["only_b"]) == {"seed": [2], "probe": ["irr_test"], "example": ["ünï ×"]}


def test_a_moving_reference_and_longer_tokens_are_compared_where_both_are_known():
    still = trajectory({"ref_logp": [[[-3.0]]], "logp_token": [[[[[-1.0, -2.0]]]] * 2]}, step=[0, 5], probe=["chosen"])
    moves = trajectory(
        {"ref_logp": [[[[-4.0]], [[-5.0]]]], "logp_token": [[[[[-1.0, -3.0, -9.0]]]] * 2]},
        step=[0, 5],
        probe=["chosen"],
    )
    for a, b, sign in ((still, moves, 1), (moves, still, -1)):
        found = compare(a, b)
        assert found.ref_logp.dims == ("seed", "step", "probe", "example")
        assert (sign * found.ref_logp.values.ravel()).tolist() == [-1.0, -2.0]
        assert (sign * found.logp_token.values[0, 0, 0, 0]).tolist() == [0, -1]


def test_runs_that_do_not_match_are_not_compared():
    bits = WHOLE.copy()
    bits["logp"] = bits.logp.assign_attrs(units="bits")
    cases = {
        "2 steps that only one of them has \\(10, 15\\)": run(steps=(0, 15, 20, 30)),
        "one step_unit": WHOLE.assign_attrs(step_unit="examples"),
        "one unit of logp.*nats and bits": bits,
        "at least one seed that both have": run(seeds=(5, 6)),
        "at least one probe that both have": WHOLE.assign_coords(probe=["x", "y", "z"]),
        "at least one example that both have": WHOLE.assign_coords(example=["x", "y", "z"]),
        "at least one variable that both have": trajectory(
            {"lr": np.ones((1, 4))}, step=[0, 10, 20, 30], probe=PROBES, example=EXAMPLES
        ),
        "one probing_set": WHOLE.assign_attrs(probing_set="prob_test"),
        "an xarray.Dataset": None,
    }
    for match, other in cases.items():
        with pytest.raises(TrajectoryError, match=match) as error:
            compare(WHOLE.assign_attrs(probing_set="prob_train"), other)
        assert str(error.value).isprintable()
