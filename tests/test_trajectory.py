"""The one table, its files, and the reader of the authors' logs: sound logs pass, planted faults are found."""

import csv
import doctest
import inspect
import itertools
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import xarray as xr
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toyld import trajectory
from toyld.checked import BadInput
from toyld.diagnosis.curves import curves
from toyld.trajectory import (
    TrajectoryError,
    _authors,
    below_label,
    load,
    notes,
    read,
    read_authors,
    save,
    to_csv,
    validate,
)

JSON, NPY = "prob_train_metrics.json", "logp_npy_all_chosen.npy"
PROBES = ("chosen", "rejected", "random_nonhum")
LAYOUTS = ("fixed", "per-probe", "bare-A", "argmax-only")


# --- logs as the released program writes them, from a model that is known -------------------------------------------


def statistics(probs, labels):
    """What the released program computes on probs (..., L, V) and labels (..., L), in float32."""
    p = np.take_along_axis(probs, labels[..., None], -1)[..., 0]
    norm = np.linalg.norm(probs, axis=-1)
    size = probs.shape[-1]
    values = {
        "logp": np.log(p).sum(-1),
        "argmax": np.log(probs.max(-1)).sum(-1),
        "A_o": np.sqrt(size * norm.mean(-1) ** 2 + size - 2),
        "p_e": np.sqrt(norm**2 + 1 - 2 * p).mean(-1),
        "energy": (1 - p).mean(-1),
    }
    return {name: value.astype(np.float32).astype(np.float64) for name, value in values.items()}


def measured(seed=0, steps=6, examples=20, length=5, size=64, drift=0.3, unlikely=False):
    """Statistics [step, example] by probe: peaked contexts for the pair, flat ones for the random words.

    `unlikely`: labels at random everywhere, so that the mean argmax of no probe is below the mean chosen label.
    """
    rng = np.random.default_rng(seed)
    peak = {"chosen": 3.0, "rejected": 2.5, "random_nonhum": 0.5}
    out = {}
    for probe in PROBES:
        z = peak[probe] * rng.standard_normal((examples, length, size))
        walk = drift * rng.standard_normal((steps, 1, 1, size))
        walk[0] = 0
        z = z + np.cumsum(walk, 0)
        probs = np.exp(z - z.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        if probe == "random_nonhum" or unlikely:
            labels = rng.integers(size, size=(examples, length))
        else:
            labels = (z[0] + rng.gumbel(size=z[0].shape)).argmax(-1)
        out[probe] = statistics(probs, np.broadcast_to(labels, probs.shape[:-1]))
    return out


def logged(stats, layout="fixed", source="chosen"):
    """Columns as logged, key → [step, example]; `source` is the probe that argmax, p_e and energy were measured on."""
    few = {
        "argmax_prob_logits": stats[source]["argmax"],
        "except_argmax_prob_logits": np.full_like(stats[source]["argmax"], np.nan),
        "p_e": stats[source]["p_e"],
        "energy": stats[source]["energy"],
    }
    columns = {}
    for probe in PROBES:
        if layout != "argmax-only" and layout != "bare-A":
            columns[f"{probe}_A_o"] = stats[probe]["A_o"]
        if layout != "fixed" or probe == "chosen":
            columns[f"logps_eval_prob_train/{probe}"] = stats[probe]["logp"]
        if probe == "chosen":
            columns |= {"argmax_prob_logits": few["argmax_prob_logits"]} if layout == "argmax-only" else few
            if layout == "bare-A":
                columns["A_o"] = stats[source]["A_o"]
    return columns


def rows_of(columns):
    """The means, one dict per step, summed as Python does."""
    steps = len(next(iter(columns.values())))
    return [{key: sum(v[t].tolist()) / v.shape[1] for key, v in columns.items()} for t in range(steps)]


def write(folder, rows, columns=None, order=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if columns is not None:
        stack = np.stack([columns[key] for key in (order or columns)], axis=1)
        np.save(folder / NPY, stack)
    return folder


def codes(ds):
    return [note["code"] for note in notes(ds)]


def text_of(ds, code):
    return next(note["text"] for note in notes(ds) if note["code"] == code)


def numbers(ds):
    """The table without what may depend on how the log was written."""
    return ds.drop_attrs(deep=False)


def cell(ds, name, probe="chosen"):
    return ds[name].sel(probe=probe).values[0]


STATS = measured()
UNLIKELY = measured(unlikely=True)


# --- the table ------------------------------------------------------------------------------------------------------


def table(**changes):
    given_ = {
        "variables": {"logp": -np.ones((1, 2, 2, 3))},
        "step": [0, 5],
        "probe": ["chosen", "rejected"],
        "example": ["a", "b", "c"],
    } | changes
    return trajectory.trajectory(given_.pop("variables"), **given_)


def test_a_variable_measured_nowhere_is_left_out_and_missing_is_nan():
    half = np.full((1, 2, 2, 3), np.nan)
    half[0, :, 0] = -2.0
    ds = table(variables={"logp": half, "argmax_logp": np.full((1, 2, 2, 3), np.nan), "loss": [[0.7, 0.6]]})
    assert set(ds.data_vars) == {"logp", "loss"}
    assert np.isnan(ds.logp.sel(probe="rejected")).all()
    assert ds.logp.dims == trajectory.DIMS
    assert ds.loss.dims == ("seed", "step")
    assert ds.step.dtype == ds.seed.dtype == np.int32
    assert (ds.attrs["schema"], ds.attrs["has_step0"], ds.attrs["step_unit"]) == (1, 1, "updates")


def test_every_documented_variable_has_units_a_place_and_a_range():
    shape = {"full": (1, 2, 2, 3), "still": (1, 2, 3), "token": (1, 2, 2, 3, 4)}
    for name, variable in trajectory.VARIABLES.items():
        inside = min(max(variable.low, -1.0), variable.high)
        here = shape["still"] if name == "n_tokens" else shape["full"]
        ds = table(variables={name: np.full(here, inside)})
        assert ds[name].attrs["units"] == variable.units
        for bad in {variable.low - 1, variable.high + 1} - {-np.inf, np.inf}:
            with pytest.raises(TrajectoryError, match=name):
                table(variables={name: np.full(here, bad)})
        assert table(variables={f"{name}_token": np.full(shape["token"], inside)})[f"{name}_token"].dims[-1] == "token"
    assert table(variables={"ref_logp": -np.ones(shape["still"])}).ref_logp.dims == ("seed", "probe", "example")


BAD_TABLES = {
    "shape": ({"variables": {"logp": -np.ones((2, 2, 3))}}, r"shape \(1, 2, 2, 3\)"),
    "name no file takes": ({"variables": {"train_rewards/chosen": [[1.0, 2.0]]}}, "letters, digits and _"),
    "attribute no file takes": ({"attrs": {"a/b": 1}}, "an ASCII name"),
    "unknown name": ({"variables": {"logps": -np.ones((1, 2, 2, 3))}}, "variable named as"),
    "text": ({"variables": {"logp": [[["a"]]]}}, "numbers for logp"),
    "ragged": ({"variables": {"logp": [[[1.0], [1.0, 2.0]]]}}, "numbers for logp"),
    "infinite": ({"variables": {"logp": np.full((1, 2, 2, 3), -np.inf)}}, "finite logp"),
    "positive": ({"variables": {"logp": np.ones((1, 2, 2, 3))}}, "finite logp"),
    "only NaN": ({"variables": {"logp": np.full((1, 2, 2, 3), np.nan)}}, "at least one measured variable"),
    "no variable": ({"variables": {}}, "at least one measured variable"),
    "steps fall": ({"step": [5, 0]}, "step int32 along step"),
    "steps repeat": ({"step": [5, 5]}, "coordinate step without repeats"),
    "steps negative": ({"step": [-1, 5]}, "step int32 along step"),
    "steps fractional": ({"step": [0.5, 5]}, "int32 for step"),
    "steps too long": ({"step": [0, 2**31]}, "for step"),
    "steps missing": ({"step": []}, "for step"),
    "steps true": ({"step": [False, True]}, "int32 for step"),
    "probes repeat": ({"probe": ["chosen", "chosen"]}, "coordinate probe without repeats"),
    "probe empty": ({"probe": ["chosen", ""]}, "printable"),
    "probe with control": ({"probe": ["chosen", "a\nb"]}, "printable"),
    "example surrogate": ({"example": ["a", "b", "\ud800"]}, "printable"),
    "note code": ({"notes": [("nonsense", "x")]}, "notes as a JSON list"),
    "step unit": ({"step_unit": "epochs"}, "step_unit"),
    "attribute": ({"attrs": {"x": object()}}, "attribute x"),
    "long attribute": ({"attrs": {"x": 2**40}}, "attribute x"),
    "examples fall": ({"examples_seen": [10, 0]}, "examples_seen"),
    "step 0 that is not there": (
        {"step": [5, 9], "has_step0": True},
        "step 0 first where has_step0 is True, got step 5",
    ),
    "examples none": ({"attrs": {"n_examples": 0}}, "n_examples, got 0"),
    "examples below": ({"attrs": {"n_examples": -5}}, "n_examples, got -5"),
    "examples unknown": ({"attrs": {"n_examples": float("nan")}}, "n_examples, got nan"),
    "examples half": ({"attrs": {"n_examples": 2.5}}, r"n_examples, got 2\.5"),
    "examples in words": ({"attrs": {"n_examples": "500"}}, "n_examples, got '500'"),
    "noise unknown": ({"attrs": {"noise_floor": float("nan")}}, "noise_floor, got nan"),
    "noise endless": ({"attrs": {"noise_floor": float("inf")}}, "noise_floor, got inf"),
    "noise below": ({"attrs": {"noise_floor": -0.1}}, r"noise_floor, got -0\.1"),
    "noise in words": ({"attrs": {"noise_floor": "0.02"}}, r"noise_floor, got '0\.02'"),
}


@pytest.mark.parametrize(("changes", "match"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_refused_in_one_line(changes, match):
    with pytest.raises(TrajectoryError, match=match) as caught:
        table(**changes)
    one_line(caught)


def one_line(caught):
    text = str(caught.value)
    assert text.startswith("expected ")
    assert ", got " in text
    assert text.isprintable()
    assert caught.type is TrajectoryError


def test_step_0_is_where_the_steps_say_and_never_before_them(tmp_path):
    assert table().attrs["has_step0"] == 1
    assert table(has_step0=False).attrs["has_step0"] == 0
    assert table(step=[5, 9]).attrs["has_step0"] == 0
    cut = table().isel(step=[1])
    assert cut.attrs["has_step0"] == 1
    validate(cut)
    save(cut, tmp_path / "cut.nc")
    xr.testing.assert_identical(load(tmp_path / "cut.nc"), cut.assign_attrs(has_step0=0))
    save(table(has_step0=False), tmp_path / "late.nc")
    assert load(tmp_path / "late.nc").attrs["has_step0"] == 0


def test_attributes_that_are_numbers_are_kept():
    attrs = {"n_examples": 1, "noise_floor": 0}
    assert attrs.items() <= table(attrs=attrs).attrs.items()
    assert table(attrs={"noise_floor": 1e-3}).attrs["noise_floor"] == 1e-3


def test_validate_finds_what_xarray_lets_through():
    ds = table(variables={"logp": -np.ones((1, 2, 2, 3)), "loss": [[1.0, 2.0]]})
    validate(ds)
    broken = {
        "coordinate seed": ds.isel(seed=0),
        "float64": ds.astype(np.float32),
        "along": ds.assign(logp=ds.logp.transpose("step", "seed", "probe", "example")),
        "int32": ds.assign_coords(step=ds.step.astype(np.int64)),
        "NaN throughout": ds.assign(logp=ds.logp * np.nan),
        "coordinates": ds.assign_coords(colour=("step", [1, 2])),
        "attributes": ds.assign_attrs(schema=2),
        "has_step0": ds.assign_attrs(has_step0=2),
        "string or number": ds.assign_attrs(extra=[1, 2]),
        "printable text": ds.assign_attrs(extra="a\x00b"),
        "notes": ds.assign_attrs(notes="[1]"),
        "xarray.Dataset": 3,
    }
    for match, bad in broken.items():
        with pytest.raises(TrajectoryError, match=match) as caught:
            validate(bad)
        one_line(caught)


def test_a_note_is_added_to_a_copy():
    ds = table()
    more = trajectory.add_note(ds, "means-only", "naïve «τ»")
    assert notes(ds) == []
    assert notes(more) == [{"code": "means-only", "text": "naïve «τ»"}]
    with pytest.raises(TrajectoryError, match="note code"):
        trajectory.add_note(ds, "other", "x")


def test_argmax_below_its_label_is_shown_cell_by_cell():
    label = -np.arange(1.0, 13).reshape(1, 2, 2, 3)
    argmax = label / 2
    argmax[0, 1, 0, 2] = label[0, 1, 0, 2] - 1
    ds = table(variables={"logp": label, "argmax_logp": argmax})
    assert np.argwhere(below_label(ds).values).tolist() == [[0, 1, 0, 2]]
    eps = float(np.finfo(np.float32).eps)
    for slack, below in ((7.5, False), (8.5, True)):
        rounded = table(variables={"logp": label, "argmax_logp": label * (1 + slack * eps)})
        assert below_label(rounded).all() == below_label(rounded).any() == below, "sums in float32 round"
        assert (curves(rounded).mislabelled == 0) == (not below), "the verdict draws the same line"
    with pytest.raises(TrajectoryError, match="argmax_logp"):
        below_label(table())


# --- its files ------------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=6)


@st.composite
def tables(draw):
    sizes = [draw(st.integers(1, 3)) for _ in range(4)]
    probe, example = (draw(st.lists(NAMES, min_size=n, max_size=n, unique=True)) for n in sizes[2:])
    step = sorted(draw(st.sets(st.integers(0, 2**31 - 1), min_size=sizes[1], max_size=sizes[1])))
    values = hnp.arrays(np.float64, sizes, elements=st.floats(-1e300, 0) | st.just(np.nan))
    variables = {"logp": draw(values), "argmax_logp": draw(values), "loss": np.ones(sizes[:2])}
    variables["entropy_token"] = np.arange(np.prod(sizes) * 2.0).reshape(*sizes, 2)
    return trajectory.trajectory(
        variables,
        seed=range(sizes[0]),
        step=step,
        probe=probe,
        example=example,
        examples_seen=step if draw(st.booleans()) else None,
        world=draw(NAMES),
        notes=draw(st.lists(st.tuples(st.sampled_from(trajectory.NOTE_CODES), st.text()), max_size=2)),
        attrs={"objective": {"β": draw(st.floats(0, 1))}, "noise_floor": draw(st.floats(0, 1)), "empty": ""},
    )


@given(ds=tables())
@settings(max_examples=30)
def test_a_saved_table_comes_back_identical(tmp_path_factory, ds):
    path = tmp_path_factory.getbasetemp() / "table.nc"
    save(ds, path)
    xr.testing.assert_identical(load(path), ds)
    xr.testing.assert_identical(read(path), ds)
    first = path.read_bytes()
    save(load(path), path)
    assert path.read_bytes() == first, "same table, same bytes"


def test_a_cut_file_is_refused_and_never_a_shorter_table(tmp_path):
    path = tmp_path / "table.nc"
    save(table(), path)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(TrajectoryError) as caught:
            load(path)
        one_line(caught)


@given(data=st.data())
def test_a_damaged_file_is_refused_or_keeps_the_schema(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.nc"
    save(table(), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    check_refused_or_valid(load, path)


def check_refused_or_valid(reader, path):
    """Damage ends in one line or in a table that keeps the schema; any other exception fails the test."""
    try:
        ds = reader(path)
    except TrajectoryError as refused:
        lines_of = str(refused).splitlines()
    else:
        validate(ds)
        lines_of = ["read"]
    assert len(lines_of) == 1


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "table.nc"
    save(table(), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with path.open("rb") as reader:
        save(table(step=[0, 7]), path)
        assert reader.read() == before, "who had the old file open keeps it whole"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrajectoryError, match="No space left") as caught:
            save(table(step=[0, 9]), path)
    one_line(caught)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["table.nc"], "no temporary file stays"
    with pytest.raises(TrajectoryError, match="No such file"):
        save(table(), tmp_path / "missing" / "table.nc")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run
def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.nc"
    save(table(), path)
    child = os.fork()
    if child == 0:  # dies between writing and renaming
        try:
            os.fsync = lambda descriptor: os.kill(os.getpid(), 9)
            save(table(step=[0, 9]), path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9
    assert len(list(tmp_path.iterdir())) == 2, "the temporary file is what the kill left"
    assert load(path).step.values.tolist() == [0, 5]


def test_csv_is_tidy_and_holds_every_measured_value(tmp_path):
    values = -np.arange(1.0, 13).reshape(1, 2, 2, 3) / 3
    values[0, 0, 1, 2] = np.nan
    length = np.ones((1, 2, 3))
    given_ = {"logp": values, "n_tokens": length, "loss": [[0.1, np.nan]]}
    ds = table(variables=given_, examples_seen=[0, 20], example=["a", "b", "c,d"])
    to_csv(ds, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 + 6 + 1
    for row in rows:
        at = {dim: row[dim] for dim in ("probe", "example") if row[dim]}
        at |= {dim: int(row[dim]) for dim in ("seed", "step") if row[dim]}
        assert float(row["value"]) == float(ds[row["variable"]].sel(at)), row
        assert row["examples_seen"] == ({"0": "0", "5": "20"}[row["step"]] if row["step"] else "")
        assert row["units"] == ds[row["variable"]].attrs["units"]


# --- the authors' logs: sound ones ----------------------------------------------------------------------------------


def test_a_sound_log_becomes_the_table_it_was_written_from(tmp_path):
    columns = logged(STATS)
    ds = read_authors(write(tmp_path, rows_of(columns), columns), stage="dpo", arm="baseline")
    assert ds.sizes == {"seed": 1, "step": 6, "probe": 3, "example": 20}
    assert ds.step.values.tolist() == ds.examples_seen.values.tolist() == [0, 1000, 2000, 3000, 4000, 5000]
    assert codes(ds) == ["non-finite-rows"], "the column that underflows"
    names = {"logp": "logp", "argmax_logp": "argmax", "residual_norm": "p_e", "label_gap": "energy"}
    for name, logged_name in names.items():
        np.testing.assert_array_equal(cell(ds, name), STATS["chosen"][logged_name])
    for probe in PROBES:
        np.testing.assert_array_equal(cell(ds, "a_norm_logged", probe), STATS[probe]["A_o"])
    assert np.isnan(ds.logp.sel(probe="rejected")).all(), "this layout has no other log-probability"
    wanted = {"world": "published", "stage": "dpo", "arm": "baseline", "n_examples": 20, "step_unit": "examples"}
    assert wanted.items() <= ds.attrs.items()
    assert set(json.loads(ds.attrs["fingerprints"])) == {JSON, NPY}


def test_means_only_logs_have_one_example_named_mean(tmp_path):
    columns = logged(STATS)
    ds = read_authors(write(tmp_path, rows_of(columns)), n_examples=20)
    assert ds.example.values.tolist() == ["mean"]
    assert ds.attrs["n_examples"] == 20
    assert text_of(ds, "means-only").endswith("the order of evaluations is that of the file")
    np.testing.assert_allclose(cell(ds, "logp")[:, 0], STATS["chosen"]["logp"].mean(1), rtol=20 * np.finfo(float).eps)


def test_updates_are_counted_where_the_batch_size_is_known(tmp_path):
    folder = write(tmp_path, rows_of(logged(STATS)))
    ds = read_authors(folder, batch_size=4, eval_every=100, has_step0=False)
    assert ds.step.values.tolist() == [25, 50, 75, 100, 125, 150]
    assert ds.examples_seen.values.tolist() == [100, 200, 300, 400, 500, 600]
    assert (ds.attrs["step_unit"], ds.attrs["has_step0"]) == ("updates", 0)
    for bad in ({"batch_size": 3}, {"batch_size": -1}, {"eval_every": 0}, {"n_examples": 0}, {"eval_every": 2**31}):
        with pytest.raises(TrajectoryError):
            read_authors(folder, **bad)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"rows": slice(None, None, 2)}, "every row between"),
        ({"rows": slice(None, None, -1)}, "every row between"),
        ({"rows": 3}, "every row between"),
        ({"vocab_size": "x"}, "whole number vocab_size"),
        ({"vocab_size": 0}, "whole number vocab_size"),
        ({"batch_size": 0}, "whole number batch_size"),
        ({"eval_every": None}, "whole number eval_every"),
        ({"n_examples": 1.5}, "whole number n_examples"),
    ],
)
def test_options_that_would_mislabel_are_refused_in_one_line(tmp_path, bad, match):
    folder = write(tmp_path, rows_of(logged(STATS)))
    with pytest.raises(TrajectoryError, match=match) as caught:
        read_authors(folder, **bad)
    one_line(caught)
    assert read_authors(folder, rows=slice(1, 4, 1)).sizes["step"] == 3


def test_peakiness_comes_back_where_the_vocabulary_is_given(tmp_path):
    columns = logged(STATS)
    folder = write(tmp_path, rows_of(columns), columns)
    ds = read_authors(folder, vocab_size=64)
    a = STATS["chosen"]["A_o"]
    np.testing.assert_allclose(64 * cell(ds, "pi_norm") ** 2 + 62, a**2, rtol=1e-12)
    assert "pi_norm2" not in ds, "a mean of squares cannot be had from a squared mean"
    assert "pi_norm" not in read_authors(folder)
    for impossible in (32, 128):
        with pytest.raises(TrajectoryError, match="vocab_size within") as caught:
            read_authors(folder, vocab_size=impossible)
        one_line(caught)
    (folder / NPY).unlink()
    assert "pi_norm" not in read_authors(folder, vocab_size=64), "the mean of A_o cannot be inverted"


@given(order=st.permutations(range(8)))
@settings(max_examples=40)
def test_columns_are_found_by_their_numbers(tmp_path_factory, order):
    columns = logged(STATS)
    keys = [list(columns)[k] for k in order]
    base = tmp_path_factory.getbasetemp()
    plain = read_authors(write(base / "plain", rows_of(columns), columns))
    mixed = read_authors(write(base / "mixed", rows_of(columns), columns, keys))
    xr.testing.assert_identical(numbers(mixed), numbers(plain))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_match_within_the_rounding_of_their_sums_and_no_further(tmp_path, dtype):
    noise = np.random.default_rng(0)
    columns = {key: values * (1 + 1e-3 * noise.random(values.shape)) for key, values in logged(STATS).items()}
    folder = write(tmp_path, rows_of(columns))
    stack = np.stack(list(columns.values()), 1)
    np.save(folder / NPY, stack.astype(dtype))
    assert read_authors(folder).sizes["example"] == 20
    np.save(folder / NPY, (stack * (1 + 100 * np.finfo(dtype).eps)).astype(dtype))
    with pytest.raises(TrajectoryError, match="fit no columns"):
        read_authors(folder)


# --- rows that do not belong ----------------------------------------------------------------------------------------


@st.composite
def rewritten(draw, n, foreign=0):
    """A file order of a run's n rows (0..n−1) with restarts, interleaved replays, repeats, and foreign rows (−1…)."""
    order = []
    replay = []  # rows that another process is still going to write
    for row in range(n):
        for _ in range(draw(st.integers(0, 2)) if row else 0):
            if replay:
                order.append(replay.pop(0))
            elif row > 1 and draw(st.booleans()):
                replay = list(range(draw(st.integers(2, row))))
            elif order[-1] or row == 1:
                order.append(order[-1])
        if replay and replay[0] < 2:  # a start that never wrote, or its second row, which tells it from another run
            replay, first = ([], []) if replay[0] == 0 else (replay[1:], replay[:1])
            order += first
        order.append(row)
    for k in range(foreign):
        order.insert(draw(st.integers(0, len(order))), -1 - k)
    return order + draw(st.sampled_from([[], order, [order[-1]]]))


@given(order=rewritten(6))
def test_restarts_replays_and_repeats_change_nothing_even_without_the_array(tmp_path_factory, order):
    rows = rows_of(logged(STATS))
    base = tmp_path_factory.getbasetemp()
    plain = read_authors(write(base / "plain-json", rows))
    again = read_authors(write(base / "again-json", [rows[k] for k in order]))
    xr.testing.assert_identical(numbers(again), numbers(plain))
    extra = {"duplicate-rows", "interleaved-rows"} & set(codes(again))
    assert bool(extra) == (len(order) > 6)


@given(order=rewritten(6, foreign=3), data=st.data())
@settings(max_examples=60)
def test_with_the_array_any_order_and_another_run_change_nothing(tmp_path_factory, order, data):
    columns = logged(STATS)
    rows, other = rows_of(columns), rows_of(logged(measured(seed=9)))
    base = tmp_path_factory.getbasetemp()
    plain = read_authors(write(base / "plain-npy", rows, columns))
    order = data.draw(st.permutations(order)) if data.draw(st.booleans()) else order
    again = read_authors(write(base / "again-npy", [rows[k] if k >= 0 else other[-k] for k in order], columns))
    xr.testing.assert_identical(numbers(again), numbers(plain))
    assert {"duplicate-rows", "interleaved-rows"} & set(codes(again))


def test_planted_an_interleaved_process_is_found_and_named(tmp_path):
    columns = logged(STATS)
    rows = rows_of(columns)
    order = [0, 1, 2, 3, 0, 4, 1, 5]
    for array in (None, columns):
        ds = read_authors(write(tmp_path / str(array is None), [rows[k] for k in order], array))
        assert ds.sizes["step"] == 6
        assert "rows [4, 6] of 8" in text_of(ds, "interleaved-rows")
        assert "duplicate-rows" not in codes(ds)


def test_rows_that_share_the_chosen_value_alone_are_different_rows(tmp_path):
    rows = [row | {"logps_eval_prob_train/chosen": -12.5} for row in rows_of(logged(STATS))]
    ds = read_authors(write(tmp_path, rows))
    assert ds.sizes["step"] == 6
    assert "duplicate-rows" not in codes(ds)


def test_a_restart_is_no_interleaved_process(tmp_path):
    rows = rows_of(logged(STATS))
    for order in ([0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3, 4, 5]):
        ds = read_authors(write(tmp_path, [rows[k] for k in order]))
        assert ds.sizes["step"] == 6
        assert "duplicate-rows" in codes(ds)
        assert "interleaved-rows" not in codes(ds)


def test_two_runs_in_one_log_are_refused_unless_the_array_tells_them_apart(tmp_path):
    columns = logged(STATS)
    rows, other = rows_of(columns), rows_of(logged(measured(seed=0, drift=0.6)))
    assert json.dumps(rows[0]) == json.dumps(other[0]), "the same model before training"
    assert json.dumps(rows[1]) != json.dumps(other[1]), "another run after it"
    both = rows + other
    with pytest.raises(TrajectoryError, match=r"row 6 starting again .* rows=slice\(6, None\)") as caught:
        read_authors(write(tmp_path / "a", both))
    one_line(caught)
    second = read_authors(tmp_path / "a", rows=slice(6, None))
    xr.testing.assert_identical(numbers(second), numbers(read_authors(write(tmp_path / "b", other))))
    with pytest.raises(TrajectoryError, match="starting again"):  # the second run between the first's rows
        read_authors(write(tmp_path / "c", rows[:4] + other[:1] + rows[4:5] + other[1:2] + rows[5:]))
    for mine in (rows, other):
        array = columns if mine is rows else logged(measured(seed=0, drift=0.6))
        ds = read_authors(write(tmp_path / "d", both, array))
        np.testing.assert_array_equal(cell(ds, "logp"), array["logps_eval_prob_train/chosen"])
        assert "rows [" in text_of(ds, "duplicate-rows")


def runs(n, *arguments, noise=0.0, start=-150.0):
    """Rows of runs that share row 0, chosen and argmax by a drift a row and an offset that comes with row 1."""
    rng = np.random.default_rng(n)
    for drift, offset in arguments:
        moves = drift * np.arange(n) + offset * (np.arange(n) > 0) + noise * rng.standard_normal(n) * (np.arange(n) > 0)
        keys = ("logps_eval_prob_train/chosen", "argmax_prob_logits")
        yield [dict(zip(keys, (start + move, start / 2 + move / 3), strict=True)) for move in moves.tolist()]


def turns(*processes):
    return [row for rows in zip(*processes, strict=True) for row in rows]


@pytest.mark.parametrize("n", [4, 9, 20])
@pytest.mark.parametrize("offsets", [(0, 9), (0, -9), (0, 9, 18), (0, 1e-9), (0, 1e-9, 2e-9)], ids=str)
def test_planted_processes_that_take_turns_from_row_0_on_are_refused(tmp_path, n, offsets):
    """Apart by more than their own moves, or twins that only rounding keeps apart: both start with the same row 0."""
    with pytest.raises(
        TrajectoryError, match=r"two runs interleaved: row 0 [23] times.* keep one run's rows"
    ) as caught:
        read_authors(write(tmp_path, turns(*runs(n, *((1.0, offset) for offset in offsets)))))
    one_line(caught)


@pytest.mark.parametrize("noise", [0.0, 0.3, 30.0], ids=["trend", "noisy", "noise alone"])
@pytest.mark.parametrize("again", [1, 2, 7])
def test_a_start_killed_after_row_0_is_read_with_a_note(tmp_path, noise, again):
    (rows,) = runs(30, (1.0, 0.0), noise=noise)
    plain = read_authors(write(tmp_path, rows))
    ds = read_authors(write(tmp_path, rows[:1] * again + rows))
    xr.testing.assert_identical(numbers(ds), numbers(plain))
    text = " ".join(note["text"] for note in notes(ds))
    assert f"row 0 stands {again + 1} times before row 1" in text
    assert "a second process whose rows are among those behind cannot be excluded" in text
    assert "cannot be excluded" not in " ".join(note["text"] for note in notes(plain))
    twice = read_authors(write(tmp_path, turns(*[rows] * (again + 1))))
    xr.testing.assert_identical(numbers(twice), numbers(plain))
    assert "cannot be excluded" not in " ".join(note["text"] for note in notes(twice)), "row 1 repeats too: one run"


def test_two_rows_of_each_are_too_few_to_tell(tmp_path):
    one, other = runs(3, (1.0, 0.0), (1.0, 9.0))
    for rows in (turns(one[:2], other[:2]), turns(one, other)[:-1]):
        ds = read_authors(write(tmp_path, rows))
        assert any("cannot be excluded" in note["text"] for note in notes(ds))
    with pytest.raises(TrajectoryError, match="interleaved"):
        read_authors(write(tmp_path, turns(one, other)))


@pytest.mark.parametrize(("slack", "kept"), [(7.5, True), (8.5, False)])
def test_one_cell_that_rounding_puts_below_its_label_takes_no_argmax_away(tmp_path, slack, kept):
    columns = {key: values.copy() for key, values in logged(STATS, "argmax-only").items()}
    label = columns["logps_eval_prob_train/chosen"][3, 4]
    columns["argmax_prob_logits"][3, 4] = label * (1 + slack * float(np.finfo(np.float32).eps))
    ds = read_authors(write(tmp_path, rows_of(columns), columns))
    assert ("argmax_logp" in ds) == kept


def test_the_array_of_a_program_started_again_is_not_known_to_begin_with_step_0(tmp_path):
    columns = logged(STATS)
    rows = rows_of(columns)
    late = {key: values[2:] for key, values in columns.items()}
    plain = read_authors(write(tmp_path / "plain", rows[2:], late))
    ds = read_authors(write(tmp_path / "late", rows, late))
    xr.testing.assert_identical(numbers(ds), numbers(plain))
    assert (plain.attrs["has_step0"], ds.attrs["has_step0"]) == (1, 0)
    texts = [note["text"] for note in notes(ds)]
    assert any("rows [0, 1] of 6" in text and "before the first row that the array has" in text for text in texts)
    assert any("first checkpoint is not known to be the start" in text for text in texts)
    assert not any("by another process" in text for text in texts)
    xr.testing.assert_identical(numbers(read_authors(tmp_path / "late", rows=slice(2, None))), numbers(plain))
    assert read_authors(tmp_path / "late", rows=slice(2, None)).attrs["has_step0"] == 1
    assert read_authors(write(tmp_path / "whole", rows[::-1], columns)).attrs["has_step0"] == 1, "in any order"
    foreign = rows_of(logged(measured(seed=9)))
    inside = read_authors(write(tmp_path / "inside", [foreign[1], *rows[:3], foreign[2], *rows[3:]], columns))
    assert "rows [4] of 8" in text_of(inside, "interleaved-rows"), "row 0 stands before all of the run's"


# --- the argmax bug -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_example", [True, False], ids=["array", "means"])
def test_planted_argmax_of_another_probe_is_dropped_with_the_reason(tmp_path, layout, per_example):
    columns = logged(STATS, layout, source="random_nonhum")
    folder = write(tmp_path, rows_of(columns), columns if per_example else None)
    ds = read_authors(folder)
    assert "argmax-bug" in codes(ds)
    assert not {"argmax_logp", "residual_norm", "label_gap"} & set(ds.data_vars)
    assert ("a_norm_logged" in ds) == (layout in ("fixed", "per-probe")), "an unprefixed A_o goes with the rest"
    if per_example and layout != "fixed":
        assert "never below the label of random_nonhum" in text_of(ds, "argmax-bug")
    kept = read_authors(folder, keep_buggy_argmax=True)
    as_logged = columns["argmax_prob_logits"] if per_example else columns["argmax_prob_logits"].mean(1, keepdims=True)
    np.testing.assert_allclose(cell(kept, "argmax_logp_as_logged"), as_logged, rtol=1e-12)
    xr.testing.assert_identical(numbers(kept.drop_vars("argmax_logp_as_logged")), numbers(ds))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("per_example", [True, False], ids=["array", "means"])
def test_a_right_argmax_is_kept_where_it_can_be_checked(tmp_path, layout, per_example):
    columns = logged(STATS, layout)
    ds = read_authors(write(tmp_path, rows_of(columns), columns if per_example else None), keep_buggy_argmax=True)
    checkable = per_example or layout in ("fixed", "per-probe")
    assert ("argmax_logp" in ds) == checkable
    if checkable:
        assert "argmax-bug" not in codes(ds)
        assert "argmax_logp_as_logged" not in ds
        assert not below_label(ds).any()
        assert ("a_norm_logged" in ds) == (layout != "argmax-only")
        if layout == "bare-A":
            np.testing.assert_array_equal(cell(ds, "a_norm_logged"), STATS["chosen"]["A_o"])
    else:
        assert "cannot be checked" in text_of(ds, "argmax-bug")


@pytest.mark.parametrize("layout", ["fixed", "per-probe"])
def test_planted_overwriting_shows_in_means_even_where_argmax_is_above_chosen(tmp_path, layout):
    """As in the published 1B run: only p_e and energy beside chosen_A_o give it away, without the vocabulary's size."""
    wrong = logged(UNLIKELY, layout, source="random_nonhum")
    assert (wrong["argmax_prob_logits"].mean(1) > wrong["logps_eval_prob_train/chosen"].mean(1)).all()
    reason = text_of(read_authors(write(tmp_path / "wrong", rows_of(wrong))), "argmax-bug")
    assert "impossible beside chosen_A_o in 100.0% of evaluations" in reason
    assert "they fit the A_o of random_nonhum" in reason
    right = read_authors(write(tmp_path / "right", rows_of(logged(UNLIKELY, layout))))
    assert {"argmax_logp", "residual_norm", "label_gap"} <= set(right.data_vars)


def test_p_e_and_energy_that_contradict_each_other_are_dropped_with_argmax(tmp_path):
    columns = logged(STATS)
    columns["p_e"], columns["energy"] = columns["energy"], columns["p_e"]
    ds = read_authors(write(tmp_path / "swapped", rows_of(columns), columns))
    assert "contradict each other" in text_of(ds, "argmax-bug")
    columns["energy"], columns["p_e"] = columns["p_e"], 1.5 * columns["p_e"]
    ds = read_authors(write(tmp_path / "long", rows_of(columns), columns))
    assert "contradict each other" in text_of(ds, "argmax-bug")
    assert not {"argmax_logp", "residual_norm", "label_gap"} & set(ds.data_vars)


def test_the_other_overwritten_columns_are_tested_without_argmax_too(tmp_path):
    wrong = logged(UNLIKELY, source="random_nonhum")
    del wrong["argmax_prob_logits"]
    ds = read_authors(write(tmp_path, rows_of(wrong)), keep_buggy_argmax=True)
    assert set(ds.data_vars) == {"logp", "a_norm_logged"}
    assert "left out: p_e, energy" in text_of(ds, "argmax-bug")


def test_a_nearly_certain_model_is_not_mistaken_for_the_bug(tmp_path):
    """There p_e and energy are float32 rounding, below the slack of the inequalities between them."""
    z = np.zeros((3, 4, 5, 64), np.float32)
    z[..., 7] = 17 + np.arange(3, dtype=np.float32)[:, None, None]
    probs = np.exp(z - z.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True, dtype=np.float32)
    certain = statistics(probs, np.full((3, 4, 5), 7))
    columns = logged(dict.fromkeys(PROBES, certain))
    for array in (None, columns):
        ds = read_authors(write(tmp_path / str(array is None), rows_of(columns), array))
        assert {"argmax_logp", "residual_norm", "label_gap"} <= set(ds.data_vars)


def test_an_unprefixed_norm_equal_to_another_probes_gives_the_source_away(tmp_path):
    columns = logged(STATS) | {"A_o": STATS["rejected"]["A_o"]}
    assert "is that of rejected" in text_of(read_authors(write(tmp_path / "a", rows_of(columns))), "argmax-bug")
    columns = logged(STATS) | {"A_o": STATS["chosen"]["A_o"]}
    assert "argmax_logp" in read_authors(write(tmp_path / "b", rows_of(columns)))


def test_what_means_cannot_show_an_argmax_alone_overwritten_by_a_likelier_probe(tmp_path):
    """A known limit, stated in the docstring: in the mean only argmax < chosen is impossible."""
    columns = logged(STATS) | {"argmax_prob_logits": STATS["random_nonhum"]["argmax"]}
    below = columns["argmax_prob_logits"].mean(1) < columns["logps_eval_prob_train/chosen"].mean(1)
    assert below.all(), "here it is impossible in the mean"
    assert "argmax_logp" not in read_authors(write(tmp_path / "a", rows_of(columns)))
    columns["argmax_prob_logits"] = columns["argmax_prob_logits"] + 2 * columns["argmax_prob_logits"].min() * -1
    columns["argmax_prob_logits"] = np.minimum(columns["argmax_prob_logits"], -0.5)
    assert "argmax_logp" in read_authors(write(tmp_path / "b", rows_of(columns))), "here nothing contradicts it"


def random_tokens(draw):
    size, length = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    logits = draw(hnp.arrays(np.float64, (length, size), elements=st.floats(-40, 40)))
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    labels = draw(hnp.arrays(np.int64, (length,), elements=st.integers(0, size - 1)))
    return probs / probs.sum(-1, keepdims=True), labels


def room(probs, labels, factor):
    """p_e + factor (1 − energy) − √((A_o² + 2)/V) in float64, on (L, V)."""
    p = np.take_along_axis(probs, labels[:, None], -1)[:, 0]
    norm = np.linalg.norm(probs, axis=-1)
    return (
        np.linalg.norm(probs - np.eye(probs.shape[1])[labels], axis=-1).mean()
        + factor * p.mean()
        - np.hypot(norm.mean(), 1)
    )


@given(data=st.data())
@settings(max_examples=300)
def test_the_entailed_inequality_holds_on_every_simplex(data):
    probs, labels = random_tokens(data.draw)
    assert room(probs, labels, np.sqrt(2)) >= -8 * np.finfo(float).eps
    size = probs.shape[1]
    assert size * np.linalg.norm(probs, axis=-1).mean() ** 2 >= 1 - 8 * np.finfo(float).eps, "V <= A_o^2 + 1"


def test_the_inequality_needs_its_square_root_of_two():
    @st.composite
    def tokens(draw):
        return random_tokens(draw)

    probs, labels = find(tokens(), lambda case: room(*case, 1.2) < -1e-6)
    assert room(probs, labels, 1.2) < -1e-6 < room(probs, labels, np.sqrt(2))


# --- bad files ------------------------------------------------------------------------------------------------------


def lines(rows):
    return [json.dumps(row).encode() for row in rows]


def test_a_last_row_cut_off_is_left_out_with_a_note(tmp_path):
    columns = logged(STATS)
    rows = rows_of(columns)
    whole = b"\n".join(lines(rows)) + b"\n"
    for cut in range(len(lines(rows)[-1]) // 9, len(lines(rows)[-1]), 40):
        write(tmp_path, rows)
        (tmp_path / JSON).write_bytes(whole[: -cut - 1])
        short = read_authors(tmp_path)
        assert short.sizes["step"] == 5
        assert any("incomplete" in note["text"] for note in notes(short))
    np.save(tmp_path / NPY, np.stack(list(columns.values()), 1))
    full = read_authors(tmp_path)
    assert full.sizes["step"] == 6, "the array has the last checkpoint"
    assert any("checkpoints [5] have no complete JSON row" in note["text"] for note in notes(full))


def test_a_piece_that_a_killed_program_left_is_passed_over(tmp_path):
    rows = rows_of(logged(STATS))
    plain = read_authors(write(tmp_path, rows))
    (tmp_path / JSON).write_bytes(b"\n".join(lines(rows[:3])) + b"\n" + lines(rows)[3][:77] + b"\n".join(lines(rows)))
    again = read_authors(tmp_path)
    xr.testing.assert_identical(numbers(again), numbers(plain))
    assert "duplicate-rows" in codes(again)


def test_a_row_lost_inside_the_run_is_refused_without_the_array(tmp_path):
    columns = logged(STATS)
    rows = lines(rows_of(columns))
    damages = [[*rows[:k], piece, *rows[k + 1 :]] for k in (0, 2) for piece in (rows[k][:50], b"\xff\xfe", b"NaN,")]
    damages += [[*rows[:2], rows[2][50:], *rows[3:]], [*rows[:2], rows[2][:50] + rows[3], *rows[4:]]]
    damages += [[rows[0][:50] + b'"?' + rows[0][50:] + rows[1], *rows[2:]]]
    for k, broken in enumerate(damages):
        write(tmp_path, rows_of(columns))
        (tmp_path / JSON).write_bytes(b"\n".join(broken))
        with pytest.raises(TrajectoryError, match="JSON") as caught:
            read_authors(tmp_path)
        one_line(caught)
        if broken[0].startswith(b"{"):
            np.save(tmp_path / NPY, np.stack(list(columns.values()), 1))
            assert read_authors(tmp_path).sizes["step"] == 6, k
            (tmp_path / NPY).unlink()


def test_line_ends_marks_blank_lines_and_unicode_keys_are_harmless(tmp_path):
    rows = rows_of(logged(STATS))
    plain = read_authors(write(tmp_path, rows))
    (tmp_path / JSON).write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines(rows)))
    xr.testing.assert_identical(numbers(read_authors(tmp_path)), numbers(plain))
    (tmp_path / JSON).write_bytes(b"".join(lines(rows)))
    xr.testing.assert_identical(numbers(read_authors(tmp_path)), numbers(plain))
    named = [row | {"logps_eval_prob_train/čosen_τ": -3.0, "perte/β": 1.0} for row in rows]
    (tmp_path / JSON).write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in named), encoding="utf-8")
    ds = read_authors(tmp_path)
    assert (ds.logp.sel(probe="čosen_τ") == -3).all()
    assert (ds["eval_perte__"] == 1).all()
    save(ds, tmp_path / "table.nc")
    xr.testing.assert_identical(load(tmp_path / "table.nc"), ds)


def edit(row, **changes):
    return {**row, **changes}


BAD_ROWS = {
    "text": (lambda r: [edit(r[0], p_e="0.5")], "numbers .* got row 0, key 'p_e' = '0.5'"),
    "null": (lambda r: [edit(r[0], p_e=None)], "key 'p_e' = None"),
    "boolean": (lambda r: [edit(r[0], p_e=True)], "key 'p_e' = True"),
    "nested": (lambda r: [edit(r[0], p_e={"a": 1})], "key 'p_e'"),
    "too long": (lambda r: [edit(r[0], p_e=10**400)], "double precision"),
    "no chosen": (
        lambda r: [{k: v for k, v in r[0].items() if "logps" not in k}, r[1]],
        r"logps_eval_\S*chosen in every row",
    ),
    "chosen in some": (lambda r: [r[0], edit({k: v for k, v in r[1].items() if "logps" not in k})], "none in rows"),
    "two sets": (lambda r: [edit(r[0], **{"logps_eval_prob_test/chosen": -1.0})], "one probing set"),
    "positive": (
        lambda r: [edit(r[0], **{"logps_eval_prob_train/chosen": 3.0, "argmax_prob_logits": 4.0})],
        "finite .*logp",
    ),
    "same letters": (lambda r: [edit(r[0], **{"a/b": 1, "a_b": 2})], "keys that differ"),
    "control": (lambda r: [edit(r[0], **{"logps_eval_prob_train/a\u0007b": -1.0})], "printable"),
    "surrogate": (lambda r: [edit(r[0], **{"logps_eval_prob_train/\ud800": -1.0})], "printable"),
}


@pytest.mark.parametrize(("change", "match"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_are_refused_in_one_line(tmp_path, change, match):
    with pytest.raises(TrajectoryError, match=match) as caught:
        read_authors(write(tmp_path, change(rows_of(logged(STATS)))))
    one_line(caught)


BAD_TEXTS = {
    "empty": b"",
    "blank": b" \n\n",
    "array of rows": b'[{"logps_eval_prob_train/chosen": -1}]',
    "number": b"12\n",
    "binary": bytes(range(256)),
    "utf-16": '{"logps_eval_prob_train/chosen": -1}'.encode("utf-16"),
    "not the log": b'{"loss": 1}\n',
    "deep": b'{"logps_eval_prob_train/chosen": ' + b"[" * 100_000,
    "repeated key": b'{"logps_eval_prob_train/chosen": -1, "logps_eval_prob_train/chosen": -2}',
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
}


@pytest.mark.parametrize("content", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / JSON).write_bytes(content)
    for path, reader in itertools.product((tmp_path, tmp_path / JSON), (read, read_authors)):
        with pytest.raises(TrajectoryError) as caught:
            reader(path)
        one_line(caught)


def test_missing_paths_are_refused_in_one_line(tmp_path):
    for path, reader in itertools.product((tmp_path, tmp_path / "no", tmp_path / "no" / "no"), (read, read_authors)):
        with pytest.raises(TrajectoryError) as caught:
            reader(path)
        one_line(caught)
    with pytest.raises(TrajectoryError, match="No such file"):
        load(tmp_path / "no.nc")


def test_a_pipe_is_refused_and_passed_over_in_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reader in itertools.product((tmp_path / "pipe",), (read, trajectory.read_all, load, trajectory.read_trl)):
        with pytest.raises(TrajectoryError, match="a file or folder, got pipe, a pipe, socket or device") as caught:
            reader(path)
        one_line(caught)
    with pytest.raises(TrajectoryError) as caught:
        read_authors(tmp_path / "pipe")
    one_line(caught)
    with pytest.raises(TrajectoryError, match=r"got none in .*: trainers write trainer_state.json into checkpoint-N/"):
        read(tmp_path)
    rows = rows_of(logged(STATS))
    for name in ("a", "b"):
        write(tmp_path, rows)
        (tmp_path / JSON).rename(tmp_path / name)
    assert [run.name for run in trajectory.locate(tmp_path)] == ["a", "b"]
    assert len(trajectory.read_all(tmp_path)) == 2


def test_some_missing_and_non_finite_values_are_nan_with_a_note(tmp_path):
    rows = rows_of(logged(STATS))
    rows[2] = edit(rows[2], p_e=float("nan"), energy=float("-inf"))
    rows[3] = {key: value for key, value in rows[3].items() if key != "argmax_prob_logits"}
    ds = read_authors(write(tmp_path, rows))
    gaps = {name: np.flatnonzero(np.isnan(cell(ds, name)[:, 0])).tolist() for name in ds.data_vars}
    assert gaps == {"logp": [], "argmax_logp": [3], "residual_norm": [2], "label_gap": [2], "a_norm_logged": []}
    assert sum("not finite or missing" in note["text"] for note in notes(ds)) == 3


def test_one_row_is_a_table(tmp_path):
    assert read_authors(write(tmp_path, rows_of(logged(STATS))[:1])).sizes["step"] == 1


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the array was unpickled",))


def bad_arrays(good):
    yield "objects", lambda path: np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    yield "pickle", lambda path: path.write_bytes(pickle.dumps(Bomb()))
    yield "archive", lambda path: shutil.move(f"{np.savez(f'{path}.z', good) or path}.z.npz", path)
    yield "integers", lambda path: np.save(path, np.nan_to_num(good).astype(np.int64))
    yield "complex", lambda path: np.save(path, good + 1j)
    yield "two dimensions", lambda path: np.save(path, good[0])
    yield "no example", lambda path: np.save(path, good[:, :, :0])
    yield "fewer columns", lambda path: np.save(path, good[:, 1:])
    yield "another run", lambda path: np.save(path, good * 1.01)
    yield "another run, same start", lambda path: np.save(path, np.concatenate([good[:1], good[1:] * 1.01]))
    yield "cut", lambda path: path.write_bytes(path.read_bytes()[:-9])
    yield "header alone", lambda path: path.write_bytes(path.read_bytes()[:60])
    yield "empty", lambda path: path.write_bytes(b"")


@pytest.mark.parametrize("case", range(13))
def test_a_wrong_array_is_refused_and_never_unpickled(tmp_path, case):
    columns = logged(STATS)
    write(tmp_path, rows_of(columns), columns)
    good = np.stack(list(columns.values()), 1)
    cases = list(bad_arrays(good))
    assert len(cases) == 13
    name, damage = cases[case]
    damage(tmp_path / NPY)
    with pytest.raises(TrajectoryError, match="an array per example that belongs to the JSON") as caught:
        read_authors(tmp_path)
    one_line(caught)
    assert NPY in str(caught.value), name


def test_a_pointer_in_place_of_the_array_is_named_and_skipped(tmp_path):
    write(tmp_path, rows_of(logged(STATS)))
    (tmp_path / NPY).write_bytes(BAD_TEXTS["pointer"])
    ds = read_authors(tmp_path)
    assert ds.example.values.tolist() == ["mean"]
    assert NPY in text_of(ds, "lfs-pointer")


def test_kinds_are_recognised_from_content_not_from_names(tmp_path):
    columns = logged(STATS)
    folder = write(tmp_path / "sound_run", rows_of(columns), columns)
    plain = read(folder)
    (folder / JSON).rename(folder / "table.nc")
    (folder / NPY).rename(folder / "metrics.json")
    (folder / "argmax_tokens").write_bytes(b"anything")
    xr.testing.assert_identical(numbers(read(folder)), numbers(plain))
    xr.testing.assert_identical(numbers(read(folder / "table.nc")), numbers(plain))
    save(plain, tmp_path / "run.json")
    xr.testing.assert_identical(read(tmp_path / "run.json"), plain)
    shutil.copy(folder / "table.nc", folder / "another")
    with pytest.raises(TrajectoryError, match=r"another, .*table\.nc"):
        read(folder)
    xr.testing.assert_identical(numbers(read(folder / "another")), numbers(plain))


@given(data=st.data())
@settings(max_examples=150)
def test_damaged_logs_are_refused_in_one_line_or_keep_the_schema(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    columns = logged(STATS, data.draw(st.sampled_from(LAYOUTS)))
    write(folder, rows_of(columns), columns)
    if data.draw(st.booleans()):
        (folder / NPY).unlink()
    for file in sorted(folder.iterdir()):
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            what = data.draw(
                st.binary(max_size=3) | st.sampled_from([b"\n", b"{", b"}", b'"', b"e99", b",", b"NaN", b"-"])
            )
            content[at : at + data.draw(st.integers(0, 5))] = what
        file.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, len(content) - 1]))])
    check_refused_or_valid(read, folder)


# --- the published runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(data):
    folder = data / "runs" / "authors"
    return {path.name: read_authors(path, keep_buggy_argmax=True) for path in sorted(folder.iterdir())}


SFT, OTHER = "pythia410_baseline_sft_verify_argmax_bug", "pythia410_baseline_dpo_checkbug"
SHORT, LONG = "pythia410_baseline_dpo_checkbug_5e7", "pythia410m_baseline_dpo_checkbug_5e7"
BUGGY, BUGGY_1B = "prob_pythia410m_dpo", "verifyargmax_pythia1b_dpo_ep10_chosen"


def mean(ds, name, probe="chosen"):
    return cell(ds, name, probe).mean(1)


def shares(ds):
    """Fraction of examples with chosen below and argmax above their first values, per evaluation."""
    chosen, argmax = cell(ds, "logp"), cell(ds, "argmax_logp")
    return ((chosen < chosen[0]) & (argmax > argmax[0])).mean(1)


def test_published_all_six_runs_are_read(published):
    assert set(published) == {SFT, OTHER, SHORT, LONG, BUGGY, BUGGY_1B}
    sizes = {name: (ds.sizes["step"], ds.sizes["probe"], ds.sizes["example"]) for name, ds in published.items()}
    fixed = {SFT: (40, 12, 500), OTHER: (40, 12, 500), SHORT: (40, 12, 500), LONG: (137, 12, 1)}
    assert sizes == fixed | {BUGGY: (50, 12, 500), BUGGY_1B: (50, 12, 1)}
    for ds in published.values():
        assert ds.attrs["n_examples"] == 500
        assert ds.attrs["step_unit"] == "examples"


@pytest.mark.parametrize(
    ("run", "chosen", "argmax", "first", "last"),
    [
        (SFT, 59.6, 17.1, 90.4, 48.0),
        (LONG, -4.2, 20.4, 90.4, 115.1),
        (SHORT, 3.4, 7.2, 90.4, 94.2),
        (OTHER, -25.1, 0.0, 90.4, 115.6),
    ],
)
def test_published_changes_and_gaps(published, run, chosen, argmax, first, last):
    label, top = mean(published[run], "logp"), mean(published[run], "argmax_logp")
    got = [label[-1] - label[0], top[-1] - top[0], (top - label)[0], (top - label)[-1]]
    assert [round(float(x), 1) for x in got] == [chosen, argmax, first, last]


def test_published_shares_of_chosen_down_and_argmax_up(published):
    assert shares(published[SFT])[-1] == 0
    assert round(shares(published[SHORT])[-1], 2) == 0.27
    other = shares(published[OTHER])
    assert round(other[len(other) // 4], 2) == 0.83
    assert round(other[-1], 2) == 0.40
    label = mean(published[OTHER], "logp")
    assert round(label.min() - label[0]) == -53


TABLE_410M = {
    "chosen": (-152.0, -146.3),
    "rejected": (-121.4, -197.6),
    "chosen_gptsemantic": (-155.9, -187.9),
    "chosen_initial": (-151.7, -197.5),
    "irr_train": (-193.4, -223.0),
    "irr_test": (-161.2, -210.1),
    "irr_hum": (-187.9, -222.6),
    "random_permute": (-401.3, -491.5),
}


def test_published_trajectories_of_the_other_responses(published):
    for probe, ends in TABLE_410M.items():
        values = mean(published[BUGGY], "logp", probe)
        assert tuple(round(float(v), 1) for v in values[[0, -1]]) == ends, probe
    one_b = {"chosen": (-132.3, -139.0), "rejected": (-103.6, -291.8), "irr_hum": (-167.9, -254.8)}
    for probe, ends in one_b.items():
        values = mean(published[BUGGY_1B], "logp", probe)
        assert tuple(round(float(v), 1) for v in values[[0, -1]]) == ends, probe


def test_published_the_two_buggy_runs_lose_their_argmax_for_a_reason_in_the_data(published):
    for name, ds in published.items():
        buggy = name in (BUGGY, BUGGY_1B)
        assert ("argmax-bug" in codes(ds)) == buggy, name
        assert ("argmax_logp" in ds) == ("residual_norm" in ds) == (not buggy), name
        assert ("argmax_logp_as_logged" in ds) == buggy, name
        if not buggy:
            assert not below_label(ds).any(), name
    first = text_of(published[BUGGY], "argmax-bug")
    assert "29.6% of (checkpoint, example); it is never below the label of random_nonhum;" in first
    assert "A_o" in first.split("left out")[1]
    second = text_of(published[BUGGY_1B], "argmax-bug")
    assert "impossible beside chosen_A_o in 100.0% of evaluations" in second
    assert "they fit the A_o of random_permute, random_nonhum" in second
    as_logged = {BUGGY: (-113.5, -72.3), BUGGY_1B: (-110.3, -82.5)}
    for name, ends in as_logged.items():
        values = mean(published[name], "argmax_logp_as_logged")
        assert tuple(round(float(v), 1) for v in values[[0, -1]]) == ends


def test_published_the_bug_is_named_random_nonhum_by_the_norm_at_the_same_checkpoint(data, published):
    """F1: the old log's unprefixed A_o is the fixed log's random_nonhum_A_o, not its chosen_A_o (one model, step 0)."""
    with (data / "runs" / "authors" / BUGGY / JSON).open() as file:
        old = json.loads(file.readline())["A_o"]
    new = mean(published[SFT], "a_norm_logged", "random_nonhum")[0]
    assert abs(old - new) < 16 * np.finfo(np.float32).eps * new
    assert mean(published[SFT], "a_norm_logged")[0] > old + 19


def test_published_interleaved_rows_are_found_and_the_cleaned_json_equals_the_array(data, published, tmp_path):
    assert "rows [32, 34, 36, 38, 40] of 45" in text_of(published[OTHER], "interleaved-rows")
    for name in (SFT, SHORT, LONG, BUGGY, BUGGY_1B):
        assert not {"interleaved-rows", "duplicate-rows"} & set(codes(published[name])), name
    for name in (OTHER, SHORT, SFT):
        shutil.copy(data / "runs" / "authors" / name / JSON, tmp_path / JSON)
        alone = read_authors(tmp_path)
        for variable in ("logp", "argmax_logp", "residual_norm", "label_gap", "a_norm_logged"):
            both = mean(alone, variable), mean(published[name], variable)
            np.testing.assert_array_equal(*both, err_msg=f"{name} {variable}")


def test_published_runs_that_took_turns_are_refused(data, tmp_path):
    """Cut from two published runs: rows of one, rows of the other; row 0 of both is one model's."""
    first, second = ((data / "runs" / "authors" / name / JSON).read_text().splitlines()[:20] for name in (LONG, OTHER))
    assert first[0] == second[0]
    assert first[1] != second[1]
    for pair in ((first, second), (second, first)):
        (tmp_path / JSON).write_text("\n".join(turns(*pair)))
        with pytest.raises(TrajectoryError, match="two runs interleaved") as caught:
            read(tmp_path)
        one_line(caught)


def test_published_runs_started_again_after_row_0_are_read(data, published, tmp_path):
    for name in published:
        rows = (data / "runs" / "authors" / name / JSON).read_text().splitlines()[:32]
        (tmp_path / JSON).write_text("\n".join(rows[:1] + rows))
        ds = read_authors(tmp_path)
        assert ds.sizes["step"] == 32
        assert any("cannot be excluded" in note["text"] for note in notes(ds)), name


def test_published_runs_are_invariant_under_row_order_and_repeats(data, published, tmp_path):
    source = data / "runs" / "authors" / OTHER
    shutil.copy(source / NPY, tmp_path / NPY)
    rows = (source / JSON).read_text().splitlines()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows)).tolist()
        (tmp_path / JSON).write_text("\n".join(rows[k] for k in order + order[:7]))
        xr.testing.assert_identical(numbers(read_authors(tmp_path)), numbers(published[OTHER]))


def test_published_mean_peakiness_of_pythia(data):
    """The published figures: .509 → .630 (SFT), from the mean A_o; the mean over examples is lower (Jensen)."""
    ds = read_authors(data / "runs" / "authors" / SFT, vocab_size=50304)
    peaks = mean(ds, "pi_norm")
    inverted = np.sqrt((mean(ds, "a_norm_logged") ** 2 + 2) / 50304 - 1)
    assert [round(float(x), 3) for x in inverted[[0, -1]]] == [0.509, 0.630]
    assert (peaks < inverted).all()
    assert [round(float(x), 3) for x in peaks[[0, -1]]] == [0.505, 0.627]


def test_published_a_planted_overwrite_of_the_sound_runs_is_found(data, tmp_path):
    """The means of the long DPO run, with p_e and energy of the buggy run in their place, are impossible."""
    with (data / "runs" / "authors" / LONG / JSON).open() as file:
        rows = [json.loads(line) for line in file]
    with (data / "runs" / "authors" / BUGGY / JSON).open() as file:
        other = json.loads(file.readline())
    wrong = {key: other[key] for key in ("argmax_prob_logits", "p_e", "energy")}
    ds = read_authors(write(tmp_path, [row | wrong for row in rows]))
    assert "100.0% of evaluations" in text_of(ds, "argmax-bug")


def test_the_examples_in_the_docstrings_run():
    outcome = doctest.testmod(trajectory)
    assert outcome.attempted > 5
    assert outcome.failed == 0


def test_the_two_modules_share_one_error():
    assert _authors.TrajectoryError is TrajectoryError
    assert issubclass(TrajectoryError, BadInput)
    assert issubclass(BadInput, ValueError)


def test_every_public_function_shows_an_example():
    functions = [getattr(trajectory, name) for name in trajectory.__all__]
    lacking = [f.__name__ for f in functions if inspect.isfunction(f) and ">>>" not in (f.__doc__ or "")]
    assert not lacking
