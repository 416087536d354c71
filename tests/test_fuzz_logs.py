"""Whatever a file holds, reading it gives a table that keeps the schema or one line that says what to do."""

import io
import itertools
import json
import pickle
import re
import time
import zipfile

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from toyld.trajectory import RunFolder, TrajectoryError, locate, notes, read, read_all, save, trajectory, validate

CHOSEN, REJECTED = "logps_eval_prob_train/chosen", "logps_eval_prob_train/rejected"
KEYS = (CHOSEN, REJECTED, "chosen_A_o", "loss/other")
REPEATS = {"duplicate-rows", "interleaved-rows"}
FUZZ = settings(max_examples=50)


def outcome(path):
    """The tables, each checked, or None after one printable line; anything else is a failure of the test."""
    try:
        found = read_all(path)
    except TrajectoryError as error:
        line = str(error)
        assert line.isprintable()
        assert line.startswith("expected ")
        assert ", got " in line
        assert len(line) < 1000, line
        return None
    assert found
    for ds in found:
        validate(ds)
    return found


def refused(path):
    assert outcome(path) is None
    return True


def bare(ds):
    return ds.drop_attrs(deep=False)


def codes(ds):
    return {note["code"] for note in notes(ds)}


# --- the authors' logs ----------------------------------------------------------------------------------------------


def log(steps, examples=3, seed=0):
    """(rows of means, the array they are means of), each row different from all others."""
    rng = np.random.default_rng(seed)
    array = -rng.exponential(50, (steps, len(KEYS), examples))
    array[:, 2] = 220 + 5 * rng.random((steps, examples))
    means = [[sum(values) / examples for values in step] for step in array.tolist()]
    return [dict(zip(KEYS, step, strict=True)) for step in means], array


def write(folder, rows, array=None, text=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log").write_text("".join(json.dumps(row) + "\n" for row in rows) if text is None else text)
    if array is not None:
        np.save(folder / "array.npy", array)
    return folder


ROWS, ARRAY = log(7)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    return read_all(write(path / "alone", ROWS))[0], read_all(write(path / "array", ROWS, ARRAY))[0]


@FUZZ
@given(data=st.data())
def test_with_the_array_no_order_repeat_restart_or_foreign_row_changes_the_table(tmp_path_factory, plain, data):
    rows = data.draw(st.permutations(ROWS + data.draw(st.lists(st.sampled_from(ROWS + log(3, seed=9)[0]), max_size=6))))
    (found,) = outcome(write(tmp_path_factory.mktemp("log"), rows, ARRAY))
    xr.testing.assert_identical(bare(found), bare(plain[1]))
    assert bool(codes(found) & REPEATS) == (len(rows) > len(ROWS))


@FUZZ
@given(data=st.data())
def test_without_the_array_restarts_that_repeat_the_beginning_change_nothing(tmp_path_factory, plain, data):
    ends = [*sorted(data.draw(st.lists(st.integers(1, len(ROWS)), max_size=4))), len(ROWS)]
    rows = [row for end in ends for row in ROWS[:end]]
    rows += data.draw(st.lists(st.sampled_from(ROWS), max_size=3))
    found = outcome(write(tmp_path_factory.mktemp("log"), rows))
    if found is None:  # a start that wrote row 0 alone, and then unknown rows: it may be another run
        assert any(a == 1 < b for a, b in itertools.pairwise(ends[1:]))
        return
    xr.testing.assert_identical(bare(found[0]), bare(plain[0]))
    assert bool(codes(found[0]) & REPEATS) == (len(rows) > len(ROWS))


@FUZZ
@given(order=st.permutations(range(len(ROWS))))
def test_without_the_array_the_order_of_the_rows_is_their_only_clock(tmp_path_factory, plain, order):
    (found,) = outcome(write(tmp_path_factory.mktemp("log"), [ROWS[i] for i in order]))
    np.testing.assert_array_equal(found.logp.values, plain[0].logp.values[:, order])
    assert found.step.values.tolist() == plain[0].step.values.tolist()
    assert "means-only" in codes(found)


@FUZZ
@given(cut=st.integers(0, len("".join(json.dumps(row) + "\n" for row in ROWS))), data=st.data())
def test_a_log_cut_anywhere_gives_its_whole_rows_and_with_the_array_all_of_them(tmp_path_factory, plain, cut, data):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)[:cut]
    whole = text.count("}")
    folder = tmp_path_factory.mktemp("log")
    found = outcome(write(folder, [], text=text))
    if whole == 0:
        assert found is None
        return
    np.testing.assert_array_equal(found[0].logp.values, plain[0].logp.values[:, :whole])
    assert ("non-finite-rows" in codes(found[0])) == bool(text[text.rfind("}") + 1 :].strip())
    (found,) = outcome(write(folder, [], ARRAY, text=text))
    xr.testing.assert_identical(bare(found), bare(plain[1]))


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
JUNK = st.one_of(
    st.sampled_from(
        ["{", "}", "[", "]", ",", '"', ":", "\\", "NaN", "-Infinity", "null", "1e999", "9" * 5000, "\n", "\0"]
    ),
    st.sampled_from([f'"{CHOSEN}"', "{}", "[1]", '{"a":', "\ufeff", "\u2028", "×", "\ud800"]),
    st.text(max_size=5),
)


@settings(max_examples=120)
@given(data=st.data())
def test_damaged_logs_never_give_values_that_no_row_holds(tmp_path_factory, data):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.sampled_from([0, 0, 1, 7, 300]))
        text = text[:at] + data.draw(JUNK) + text[at + gone :]
    folder = tmp_path_factory.mktemp("log")
    (folder / "any").write_bytes(text.encode("utf-8", "surrogatepass"))
    found = outcome(folder)
    if found is not None:
        logp = found[0].logp.values
        assert {float(number) for number in NUMBER.findall(text)} >= set(logp[~np.isnan(logp)].tolist())


def alone(tmp_path, **values):
    return write(tmp_path, [row | values for row in ROWS])


@pytest.mark.parametrize(
    "value", ["text", None, True, [1.0], {"a": 1}, 10**400, "\u2028", "ünï", "-1.0"], ids=lambda v: repr(v)[:12]
)
def test_a_value_of_a_wrong_type_is_refused(tmp_path, value):
    assert refused(alone(tmp_path / "chosen", **{CHOSEN: value}))
    assert refused(alone(tmp_path / "other", other=value))


def test_a_log_probability_that_cannot_be_is_refused_and_one_that_is_not_finite_is_not_measured(tmp_path):
    for i, value in enumerate([0.5, 1e30]):
        assert refused(alone(tmp_path / str(i), **{CHOSEN: value}))
    for i, value in enumerate([-1e400, float("nan")], 2):
        (found,) = outcome(alone(tmp_path / str(i), **{CHOSEN: value}))
        assert np.isnan(found.logp.sel(probe="chosen")).all()
        assert "non-finite-rows" in codes(found)


def test_missing_keys_are_refused_or_not_measured(tmp_path):
    without = [{key: v for key, v in row.items() if key != CHOSEN} for row in ROWS]
    assert refused(write(tmp_path / "chosen", without))
    assert refused(write(tmp_path / "once", ROWS[:3] + without[3:4] + ROWS[4:]))
    other = [row if i != 3 else {key: v for key, v in row.items() if key != REJECTED} for i, row in enumerate(ROWS)]
    (found,) = outcome(write(tmp_path / "rejected", other))
    assert np.isnan(found.logp.sel(probe="rejected").values).ravel().tolist() == [i == 3 for i in range(7)]
    assert "non-finite-rows" in codes(found)
    assert refused(write(tmp_path / "sets", [*ROWS, {"logps_eval_prob_test/chosen": -1.0}]))


def test_unicode_keys_are_probes_if_they_can_be_shown(tmp_path):
    rows = [row | {"logps_eval_prob_train/ünï × 中": -1.0 - i} for i, row in enumerate(ROWS)]
    (found,) = outcome(write(tmp_path / "fine", rows))
    assert found.logp.sel(probe="ünï × 中").values.ravel().tolist() == [-1.0 - i for i in range(7)]
    for i, key in enumerate(["\u2028", "a\nb", "\u202e", "\ud800", " chosen", "chosen\u0000"]):
        found = outcome(alone(tmp_path / str(i), **{f"logps_eval_prob_train/{key}": -2.0}))
        assert found is None, key


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_logs_of_few_rows(tmp_path, rows):
    alone = outcome(write(tmp_path / "alone", ROWS[:rows]))
    array = outcome(write(tmp_path / "array", ROWS[:rows], ARRAY[:rows]))
    if rows == 0:
        assert alone is array is None
        return
    assert alone[0].sizes["step"] == array[0].sizes["step"] == rows
    assert array[0].sizes["example"] == 3


def npy(array, version=(1, 0), **options):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version, **options)
    return out.getvalue()


class Boom:
    """Unpickling it would be seen."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    "payload",
    [
        npy(np.array([[[Boom()]]]), allow_pickle=True),
        pickle.dumps(Boom()),
        npy(ARRAY.astype(np.int64)),
        npy(ARRAY.astype(complex)),
        npy(ARRAY.astype("U20")),
        npy(ARRAY.astype([("x", float)])),
        npy(ARRAY[0]),
        npy(ARRAY[:, :, :0]),
        npy(ARRAY + 1),
        npy(ARRAY[:, :3]),
        npy(ARRAY)[:-5],
        npy(ARRAY)[:60],
        npy(ARRAY).replace(b"(7, 4, 3)", b"(7000000000, 4, 3)"),
        npy(ARRAY).replace(b"(7, 4, 3)", b"(-7, 4, 3)"),
        npy(ARRAY).replace(b"'<f8'", b"'|O'"),
        b"\x93NUMPY\x09\x09" + npy(ARRAY)[8:],
        b"",
    ],
    ids=lambda payload: repr(payload[10:40]),
)
def test_an_array_that_is_none_or_another_is_refused_and_never_unpickled(tmp_path, payload):
    write(tmp_path, ROWS)
    (tmp_path / "array.npy").write_bytes(payload)
    assert refused(tmp_path)


def test_an_archive_in_place_of_the_array_is_refused(tmp_path):
    write(tmp_path, ROWS)
    with zipfile.ZipFile(tmp_path / "array.npy", "w") as archive:
        archive.writestr("a.npy", npy(ARRAY))
    assert refused(tmp_path)


@FUZZ
@given(data=st.data())
def test_an_array_with_damaged_bytes_is_refused_or_still_has_these_means(tmp_path_factory, plain, data):
    payload = bytearray(npy(ARRAY))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    folder = write(tmp_path_factory.mktemp("log"), ROWS)
    (folder / "array.npy").write_bytes(payload[: data.draw(st.sampled_from([len(payload)] * 3 + [len(payload) // 2]))])
    found = outcome(folder)
    if found is not None:
        rounding = 16 * np.finfo(float).eps
        np.testing.assert_allclose(found[0].logp.mean("example").values, plain[0].logp.values[..., 0], rounding)


MANY = 100_000


@pytest.fixture(scope="module")
def many():
    return log(MANY, examples=1)


def timed(path, limit=20):
    """Tables, read in time that grows with the rows: in proportion it is a few seconds, squared it is many minutes."""
    start = time.process_time()
    found = outcome(path)
    assert time.process_time() - start < limit
    return found


def test_a_hundred_thousand_rows_are_read_in_seconds(tmp_path, many):
    rows, array = many
    logp = [row[CHOSEN] for row in rows]
    (found,) = timed(write(tmp_path / "alone", rows))
    assert found.logp.sel(probe="chosen").values.ravel().tolist() == logp
    order = np.random.default_rng(0).permutation(MANY)
    (found,) = timed(write(tmp_path / "array", [rows[i] for i in order], array))
    assert found.logp.sel(probe="chosen").values.ravel().tolist() == array[:, 0, 0].tolist()


@pytest.mark.parametrize(
    "kind", ["one line", "still", "repeated", "restarts", "own keys", "broken", "broken, one line"]
)
def test_many_rows_of_every_bad_kind_take_seconds_too(tmp_path, many, kind):
    n = MANY // 5
    rows = many[0][:n]
    lines = [json.dumps({CHOSEN: row[CHOSEN], "loss": row["loss/other"]}) for row in rows]
    steps = None  # refused
    if kind == "one line":
        text, steps = "".join(lines), n
    elif kind == "still":  # the chosen value never moves
        text, steps = "\n".join(json.dumps({CHOSEN: -1.0, "loss": row["loss/other"]}) for row in rows), n
    elif kind == "repeated":
        text, steps = "\n".join(lines[:2] + lines[:1] * (n - 2)), 2
    elif kind == "restarts":  # each repeats two rows and adds one
        text, steps = "\n".join("\n".join([*lines[:2], line]) for line in lines[2 : n // 3]), n // 3
    elif kind == "own keys":
        text = "\n".join(json.dumps({CHOSEN: -1.0, f"key {i}": 1.0}) for i in range(n))
    else:
        text = ("\n" if kind == "broken" else "").join(f'{line}{{"logps' for line in lines)
    found = timed(write(tmp_path, [], text=text))
    assert (found and found[0].sizes["step"]) == steps


# --- NetCDF ---------------------------------------------------------------------------------------------------------


def table(steps=(0, 10, 20), **about):
    rng = np.random.default_rng(0)
    shape = (2, len(steps), 2, 3)
    variables = {"logp": -rng.exponential(5, shape), "loss": rng.random(shape[:2]), "n_tokens": np.full((2, 2, 3), 4)}
    about = {"world": "digits", "stage": "sft", "arm": "baseline", "examples_seen": [4 * s for s in steps]} | about
    return trajectory(
        variables, step=steps, probe=["chosen", "rejected"], example=["a", "b", "ünï"], seed=(0, 1), **about
    )


WHOLE = table()


@pytest.fixture(scope="module")
def payload(tmp_path_factory):
    path = tmp_path_factory.mktemp("netcdf") / "table"
    save(WHOLE, path)
    return path.read_bytes()


def test_a_table_cut_at_any_byte_is_refused(tmp_path, payload):
    for length in [*range(0, len(payload), 17), len(payload) - 1]:
        (tmp_path / "any").write_bytes(payload[:length])
        assert refused(tmp_path / "any"), length


@settings(max_examples=120)
@given(data=st.data())
def test_a_table_with_damaged_bytes_is_refused_or_keeps_the_schema(tmp_path_factory, payload, data):
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.mktemp("netcdf") / "any"
    path.write_bytes(damaged)
    found = outcome(path)
    assert found is None or len(found) == 1


def raw(path, ds):
    path.write_bytes(bytes(ds.drop_encoding().to_netcdf(engine="scipy")))
    return path


def steps(values, kind=np.int32):
    return WHOLE.drop_vars("examples_seen").assign_coords(step=np.array(values, kind))


@pytest.mark.parametrize(
    "ds",
    [
        steps([20, 10, 0]),
        steps([0, 20, 10]),
        steps([0, 10, 10]),
        steps([-10, 0, 10]),
        steps([0, 10, 20], np.float64),
        steps(["0", "10", "20"], np.str_),
        WHOLE.assign_coords(examples_seen=("step", np.array([0, 80, 40], np.int32))),
        WHOLE.assign_coords(seed=np.array([1, 1], np.int32)),
        WHOLE.assign_coords(probe=["chosen", "chosen"]),
        WHOLE.assign_coords(example=["a", "b", ""]),
        WHOLE.drop_vars("step"),
        WHOLE.drop_vars("probe"),
        WHOLE.drop_vars(["logp", "loss", "n_tokens"]),
        WHOLE.isel(step=slice(0)),
        WHOLE.isel(example=slice(0)),
        WHOLE.assign(logp=WHOLE.logp.astype(np.float32)),
        WHOLE.assign(logp=WHOLE.logp.astype(np.int32)),
        WHOLE.assign(logp=WHOLE.logp.astype(str)),
        WHOLE.assign(logp=-WHOLE.logp),
        WHOLE.assign(logp=WHOLE.logp * np.inf),
        WHOLE.assign(logp=WHOLE.logp * np.nan),
        WHOLE.assign(logp=WHOLE.logp.transpose()),
        WHOLE.assign(logp=WHOLE.logp.mean("example")),
        WHOLE.assign(entropie=WHOLE.loss),
        WHOLE.assign_coords(extra=1.0),
        WHOLE.assign_attrs(schema=2),
        WHOLE.assign_attrs(step_unit="epochs"),
        WHOLE.assign_attrs(notes="[{}]"),
        WHOLE.assign_attrs(notes="[" * 5000),
        WHOLE.assign_attrs(stage=1),
        WHOLE.assign_attrs(arm="a\nb"),
        WHOLE.assign_attrs(has_step0=2),
        WHOLE.assign_attrs(vocab_size=[1, 2]),
        WHOLE.drop_attrs(deep=False),
        xr.Dataset({"temperature": (("time", "lat"), np.zeros((2, 2)))}, {"time": ("time", [0.0, 1.0])}),
        xr.Dataset(),
    ],
    ids=str,
)
def test_a_table_written_by_other_means_keeps_the_schema_or_is_refused(tmp_path, ds):
    assert refused(raw(tmp_path / "any", ds))
    (tmp_path / "run").mkdir()
    raw(tmp_path / "run" / "one", ds)
    save(table(steps=(30,), has_step0=False), tmp_path / "run" / "two")
    assert refused(tmp_path / "run"), "one bad evaluation is not dropped in silence"


def test_tables_of_one_row_and_of_many(tmp_path):
    save(table(steps=(7,), has_step0=False), tmp_path / "one")
    assert outcome(tmp_path / "one")[0].step.values.tolist() == [7]
    size = 100_000
    ds = trajectory({"loss": np.arange(float(size))[None]}, step=range(size), probe=["chosen"])
    save(ds, tmp_path / "many")
    xr.testing.assert_identical(timed(tmp_path / "many")[0], ds)


# --- run folders ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run folder as (names, bytes), and what it reads as."""
    path = tmp_path_factory.mktemp("run") / "run"
    run = RunFolder.create(path, command="toyld run digits", config={"lr": 0.1}, stages=["sft", "dpo"])
    for stage, arm in (("sft", "baseline"), ("dpo", "baseline"), ("dpo", "extend")):
        for step in (0, 10, 20):
            run.write(table(steps=(step,), stage=stage, arm=arm))
    run.write_json("verdict.json", {"schema": 1, "runs": []})
    everything = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return everything, read_all(path)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: not name.startswith(".") and not name.endswith(".nc")
)


@settings(max_examples=15)
@given(data=st.data())
def test_run_folders_renamed_at_will_are_the_same_run(tmp_path_factory, files, data):
    everything, wanted = files
    path = tmp_path_factory.mktemp("run")
    folders = [path, *(path / f"d{i} {name}" for i, name in enumerate(data.draw(st.lists(NAMES, max_size=2))))]
    for i, content in enumerate(data.draw(st.permutations(sorted(everything.values())))):
        folder = data.draw(st.sampled_from(folders))
        folder.mkdir(exist_ok=True)
        (folder / f"f{i} {data.draw(NAMES)}").write_bytes(content)
    found = outcome(path)
    for ours, theirs in zip(found, wanted, strict=True):
        xr.testing.assert_identical(ours, theirs)


@settings(max_examples=30)
@given(data=st.data())
def test_run_folders_with_damaged_files_are_refused_or_hold_what_is_whole(tmp_path_factory, files, data):
    everything, wanted = files
    path = tmp_path_factory.mktemp("run")
    victim = data.draw(st.sampled_from(sorted(everything)))
    how = data.draw(st.sampled_from(["cut", "gone", "zeros", "flip"]))
    for name, content in everything.items():
        if name == victim:
            at = data.draw(st.integers(0, len(content) - 1))
            flipped = content[:at] + bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))]) + content[at + 1 :]
            content = {"cut": content[:at], "zeros": bytes(len(content)), "flip": flipped, "gone": None}[how]
        if content is not None:
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_bytes(content)
    found = outcome(path)
    if victim.endswith(".nc") and how in ("cut", "zeros"):
        assert found is None
    elif how == "gone":
        steps = {(ds.attrs["stage"], ds.attrs["arm"]): set(ds.step.values.tolist()) for ds in found}
        lost = {(*victim.split("/")[0].split("-"), int(victim[-11:-3]))} if victim.endswith(".nc") else set()
        whole = {(stage, arm, step) for stage, arm in (("sft", "baseline"), ("dpo", "baseline"), ("dpo", "extend"))
                 for step in (0, 10, 20)}  # fmt: skip
        assert {(*pair, step) for pair, have in steps.items() for step in have} == whole - lost
    elif not victim.endswith(".nc") and found is not None:
        pairs = {(ds.attrs["stage"], ds.attrs["arm"]): ds for ds in found}
        for ds in wanted:
            xr.testing.assert_identical(pairs[ds.attrs["stage"], ds.attrs["arm"]], ds)


def test_a_folder_of_runs_holds_them_all(tmp_path):
    """Logs of every kind side by side, checkpoints of one run as one, temporary files passed over."""
    for name, drift in (("authors/a", 0.5), ("authors/b", 1.0)):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = [{"logps_eval_prob_train/chosen": -90.0 - drift * t} for t in range(3)]
        (folder / "log").write_text("\n".join(map(json.dumps, rows)))
    for at in (10, 20):
        folder = tmp_path / "trainer" / f"checkpoint-{at}"
        folder.mkdir(parents=True)
        rows = [{"step": step, "eval_logps/chosen": -80.0 - step} for step in range(0, at + 1, 5)]
        (folder / "state").write_text(json.dumps({"global_step": at, "log_history": rows}))
    (tmp_path / "alone").write_text(json.dumps({"log_history": [{"step": 1, "eval_logps/chosen": -7.0}]}))
    (tmp_path / ".hidden").write_text(json.dumps({"log_history": [{"step": 1, "eval_logps/chosen": -7.0}]}))
    places = [str(place.relative_to(tmp_path)) for place in locate(tmp_path)]
    assert places == ["alone", "authors/a", "authors/b", "trainer"]
    assert [ds.sizes["step"] for ds in read_all(tmp_path)] == [1, 3, 3, 5]
    assert locate(tmp_path / "authors" / "a" / "..") == [tmp_path / "authors" / "a" / ".." / name for name in "ab"]
    (outer := tmp_path / "outer").mkdir()
    (tmp_path / "authors" / "b").rename(outer / "inner")
    assert (locate(outer), read(outer).sizes["step"]) == ([outer / "inner"], 3)
    (outer / "inner").rename(tmp_path / "authors" / "b")
    with pytest.raises(TrajectoryError, match=r"with 4 .*authors/b"):
        read(tmp_path)
