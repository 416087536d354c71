"""The reader of trainer states: whole logs are read to the digit, spoilt ones give one line, none a wrong table."""

import json
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from toyld.trajectory import TrajectoryError, notes, read, read_all, validate
from toyld.trajectory.trl import read_trl

BETA, REF = 0.1, {"chosen": -180.25, "rejected": -190.5}


# --- logs as TRL writes them -----------------------------------------------------------------------------------------


def train_row(step, seed=0):
    rng = np.random.default_rng([seed, step])
    chosen, rejected = -0.01 * step + 0.01 * rng.standard_normal(2)
    return {
        "epoch": step / 100,
        "grad_norm": float(rng.uniform(1, 2)),
        "learning_rate": 1e-6 * step,
        "logits/chosen": float(rng.normal()),
        "logps/chosen": float(-180 + rng.normal()),
        "logps/rejected": float(-190 + rng.normal()),
        "loss": round(float(math.log(2) - 0.001 * step), 4),
        "rewards/accuracies": float(rng.integers(9) / 8),
        "rewards/chosen": float(chosen),
        "rewards/margins": float(chosen - rejected),
        "rewards/rejected": float(rejected),
        "step": step,
    }


def eval_row(step, prefix="eval", examples=267, seed=0):
    """An evaluation; a named set has its name where the Trainer itself writes, and not where TRL does."""
    chosen, rejected = -0.01 * step, -0.02 * step
    runtime = 89.4 + np.random.default_rng([seed, step]).uniform()
    return {
        "epoch": step / 100,
        f"{prefix}_loss": 0.6 + seed,
        f"{prefix}_runtime": round(runtime, 4),
        f"{prefix}_samples_per_second": round(examples / runtime, 3),
        f"{prefix}_steps_per_second": round(examples / runtime, 3),
        "eval_logps/chosen": REF["chosen"] - seed + chosen / BETA,
        "eval_logps/rejected": REF["rejected"] - seed + rejected / BETA,
        "eval_rewards/chosen": chosen,
        "eval_rewards/rejected": rejected,
        "eval_rewards/margins": chosen - rejected,
        "eval_rewards/accuracies": 0.5,
        "step": step,
    }


def history(steps=(10, 20, 30, 40), every=20, start=True):
    rows = [eval_row(0)] if start else []
    for step in steps:
        rows.append(train_row(step))
        rows += [eval_row(step)] if step % every == 0 else []
    end = {"epoch": 0.4, "total_flos": 1e18, "train_loss": 0.64, "train_runtime": 12.5, "step": steps[-1]}
    return [*rows, end]


def state(rows, **rest):
    return {"best_metric": None, "global_step": 40, "max_steps": 40, "num_train_epochs": 1, **rest, "log_history": rows}


def write(folder, rows, name="trainer_state.json", **rest):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(state(rows, **rest)))
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def table(ds):
    """What must not depend on order, repeats or names: all values and coordinates, and the attributes but two."""
    return ds.assign_attrs({"notes": "", "fingerprints": ""})


def assert_same(a, b):
    xr.testing.assert_identical(table(a), table(b))


def assert_one_line(call, *parts):
    with pytest.raises(TrajectoryError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()
    assert "\n" not in text
    assert text.startswith("expected ")
    assert "Traceback" not in text
    for part in parts:
        assert part in text, (part, text)
    return text


def texts(ds, code):
    return [note["text"] for note in notes(ds) if note["code"] == code]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_every_logged_number_stands_under_its_name(folder):
    rows = history()
    ds = read_trl(write(folder, rows), stage="dpo", arm="baseline")
    assert ds.step.values.tolist() == [0, 10, 20, 30, 40]
    assert ds.step.dtype == np.int32
    assert (ds.attrs["stage"], ds.attrs["arm"], ds.attrs["world"]) == ("dpo", "baseline", "published")
    assert (ds.attrs["has_step0"], ds.attrs["n_examples"], ds.attrs["max_steps"], ds.attrs["epochs"]) == (1, 267, 40, 1)
    names = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm", "train_loss": "train_loss"}
    names |= {"logps/chosen": "train_logps_chosen", "eval_rewards/margins": "eval_rewards_margins"}
    names |= {"rewards/chosen": "train_rewards_chosen", "eval_runtime": "eval_runtime", "epoch": "train_epoch"}
    for key, name in names.items():
        logged = {row["step"]: row[key] for row in rows if key in row}
        found = ds[name].sel(seed=0).to_series().dropna().to_dict()
        assert found == logged, key
    for probe in ("chosen", "rejected"):
        logged = {row["step"]: row[f"eval_logps/{probe}"] for row in rows if f"eval_logps/{probe}" in row}
        found = ds.logp.sel(seed=0, probe=probe, example="mean").to_series().dropna().to_dict()
        assert found == logged
    assert "eval_logps_chosen" not in ds
    assert [note["code"] for note in notes(ds)] == ["means-only"]
    validate(ds)


def test_values_of_train_rows_are_never_logp(folder):
    ds = read_trl(write(folder, [train_row(10), train_row(20)]))
    assert "logp" not in ds
    assert np.isfinite(ds.train_logps_chosen).all()


def test_step_0_needs_an_evaluation_there(folder):
    assert read_trl(write(folder, history(start=False))).attrs["has_step0"] == 0
    assert read_trl(write(folder, [train_row(0), *history(start=False)])).attrs["has_step0"] == 0
    assert read_trl(write(folder, [eval_row(0)])).attrs["has_step0"] == 1


def test_steps_may_be_floats_and_rows_may_hold_both_kinds(folder):
    joined = [{**train_row(step), **eval_row(step), "step": float(step)} for step in (10, 20)]
    apart = [row for step in (10, 20) for row in (train_row(step), eval_row(step))]
    assert_same(read_trl(write(folder, joined)), read_trl(write(folder, apart)))


@pytest.mark.parametrize("examples", [1, 64, 267, 2000, 61966])
def test_the_size_of_the_evaluation_set_follows_from_duration_and_rate(folder, examples):
    ds = read_trl(write(folder, [eval_row(step, examples=examples) for step in range(0, 100, 10)]))
    assert ds.attrs.get("n_examples") in (examples, None)  # a rate of 3 decimals cannot tell large sets
    assert examples > 89 / 0.001 / 2 or ds.attrs["n_examples"] == examples


def test_no_size_is_claimed_where_the_numbers_leave_several_or_none(folder):
    rough = [{**eval_row(10), "eval_samples_per_second": 3.0, "eval_runtime": 89.0}]
    assert "n_examples" not in read_trl(write(folder, rough)).attrs
    other = [eval_row(10, examples=267), eval_row(20, examples=300)]
    assert "n_examples" not in read_trl(write(folder, other)).attrs
    none = [{key: v for key, v in eval_row(10).items() if "second" not in key}]
    assert "n_examples" not in read_trl(write(folder, none)).attrs


def test_named_evaluation_sets_stay_apart(folder):
    """TRL writes eval_logps/chosen for each of them; the row's own eval_NAME_loss says whose it is."""
    rows = [train_row(10), *(eval_row(s, prefix=f"eval_{n}", seed=i) for s in (0, 10) for i, n in enumerate("ab"))]
    ds = read_trl(write(folder, rows))
    assert "logp" not in ds
    assert "'a'" in texts(ds, "means-only")[1]
    assert ds.eval_a_logps_chosen.values.tolist() == [[-180.25, -181.25]]
    assert ds.eval_b_logps_chosen.values.tolist() == [[-181.25, -182.25]]
    assert not texts(ds, "duplicate-rows")
    for name, shift in (("a", 0), ("b", 1)):
        one = read_trl(write(folder, rows), evaluation=name)
        assert one.logp.sel(probe="chosen").values.ravel().tolist() == [-180.25 - shift, -181.25 - shift]
        assert (one.attrs["evaluation"], one.attrs["n_examples"]) == (name, 267)
    assert_one_line(lambda: read_trl(write(folder, rows), evaluation="c"), "['a', 'b']", "'c'")


def test_one_named_set_is_the_evaluation_set_and_a_test_set_is_not(folder):
    rows = [eval_row(s, prefix="eval_helpful") for s in (0, 10)]
    ds = read_trl(write(folder, rows))
    assert ds.attrs["evaluation"] == "helpful"
    assert ds.logp.sel(probe="chosen").values.ravel().tolist() == [-180.25, -181.25]
    with_test = [eval_row(0), eval_row(10), eval_row(10, prefix="test", seed=3)]
    ds = read_trl(write(folder, with_test))
    assert ds.logp.sel(probe="chosen").values.ravel().tolist() == [-180.25, -181.25]
    assert ds.eval_test_logps_chosen.values.tolist()[0][1] == -184.25
    assert not texts(ds, "duplicate-rows")


def test_means_per_token_are_kept_as_logged(folder):
    rows = [{"step": 10, "eval_logps/chosen": -1.25, "eval_rewards/chosen": -2.5}]
    assert float(read_trl(write(folder, rows)).logp.sel(probe="chosen").item()) == -1.25


# --- not finite, repeated, again -------------------------------------------------------------------------------------


def test_values_that_are_not_finite_go_and_the_rest_of_their_rows_stays(folder):
    rows = history()
    rows[1] |= {"rewards/chosen": math.nan, "logps/chosen": -math.inf}  # train, step 10
    rows[4] |= {"loss": math.inf}  # train, step 30
    rows[3] |= {"eval_logps/chosen": math.nan}  # evaluation, step 20
    assert [row["step"] for row in (rows[1], rows[4], rows[3])] == [10, 30, 20]
    ds = read_trl(write(folder, rows))
    (text,) = texts(ds, "non-finite-rows")
    assert "2 train row(s) (steps 10, 30)" in text
    assert "1 evaluation row(s) (steps 20)" in text
    assert math.isnan(ds.logp.sel(probe="chosen", step=20).item())
    assert ds.logp.sel(probe="rejected", step=20).item() == rows[3]["eval_logps/rejected"]
    assert ds.train_rewards_rejected.sel(step=10).item() == rows[1]["rewards/rejected"]
    assert math.isnan(ds.loss.sel(step=30).item())


def test_null_is_not_measured(folder):
    rows = [{**train_row(10), "eval_loss": None}, {**eval_row(10), "loss": None}]
    ds = read_trl(write(folder, rows))
    assert_same(ds, read_trl(write(folder, [train_row(10), eval_row(10)])))
    assert not texts(ds, "non-finite-rows")


def test_a_restart_that_logs_other_values_leaves_none_of_them(folder):
    clean = read_trl(write(folder, history()))
    again = [train_row(30, seed=1), {"step": 40, "loss": 0.5}, {**eval_row(40), "eval_runtime": 3.25}]
    ds = read_trl(write(folder, history() + again))
    (text,) = texts(ds, "duplicate-rows")
    assert "at 2 step(s) (30, 40)" in text
    assert "'eval_runtime'" in text
    assert math.isnan(ds.grad_norm.sel(step=30).item())
    assert math.isnan(ds.loss.sel(step=40).item())
    assert ds.grad_norm.sel(step=20).item() == clean.grad_norm.sel(step=20).item()
    assert ds.lr.sel(step=30).item() == clean.lr.sel(step=30).item()  # logged again, the same
    xr.testing.assert_identical(ds.logp, clean.logp)  # only the duration of that evaluation differs
    assert_same(ds, read_trl(write(folder, again + history())))


def test_a_value_that_was_once_not_finite_and_once_is_counts_as_two(folder):
    rows = [{"step": 10, "loss": math.nan, "lr": 1.0}, {"step": 10, "loss": 0.5, "lr": 1.0}, {"step": 20, "loss": 0.4}]
    ds = read_trl(write(folder, rows))
    assert math.isnan(ds.loss.sel(step=10).item())
    assert texts(ds, "duplicate-rows")
    assert not texts(ds, "non-finite-rows")


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), st.lists(st.integers(0, 10), max_size=5))
def test_reading_is_invariant_under_row_order_and_repeats(tmp_path_factory, random, repeats):
    folder = tmp_path_factory.mktemp("log")
    rows = history()
    rows[3] |= {"eval_rewards/chosen": math.nan}
    rows.append(train_row(30, seed=1))  # a clash
    clean = read_trl(write(folder, rows))
    mixed = rows + [rows[i % len(rows)] for i in repeats]
    random.shuffle(mixed)
    mixed = [dict(random.sample(list(row.items()), len(row))) for row in mixed]
    ds = read_trl(write(folder, mixed))
    assert_same(ds, clean)
    assert [n for n in notes(ds) if "exactly" not in n["text"]] == notes(clean)
    assert [n["text"] for n in notes(ds) if "exactly" in n["text"]] == (
        [f"{len(repeats)} row(s) repeat others exactly: counted once"] if repeats else []
    )


# --- folders ---------------------------------------------------------------------------------------------------------


def test_of_checkpoints_the_one_that_contains_the_others_is_read(folder):
    rows = history()
    write(folder, rows[:3], "checkpoint-9/trainer_state.json", global_step=20)
    write(folder, rows[:-1], "checkpoint-10/any.name", global_step=40)
    (folder / "checkpoint-10" / "adapter_config.json").write_text("{}")
    assert_same(read_trl(folder), read_trl(write(folder / "x", rows[:-1])))
    write(folder, rows, "trainer_state.json")
    assert_same(read_trl(folder), read_trl(write(folder / "x", rows)))
    assert_same(read(folder), read_trl(folder))


@pytest.mark.parametrize("later", ["a", "b"])
def test_of_checkpoints_with_the_same_rows_the_later_is_read(folder, later):
    """Nothing was logged between the two: their step tells, not their names."""
    for name in ("a", "b"):
        write(folder, history(), f"{name}/trainer_state.json", global_step=45 if name == later else 40)
    ds = read_trl(folder)
    assert ds.attrs["global_step"] == 45
    assert list(json.loads(ds.attrs["fingerprints"])) == [f"{later}/trainer_state.json"]


def test_checkpoints_of_different_runs_are_refused(folder):
    write(folder, history(), "a/trainer_state.json")
    write(folder, [train_row(10, seed=1)], "b/trainer_state.json")
    assert_one_line(lambda: read_trl(folder), "b/trainer_state.json", "steps 10", "a/trainer_state.json")


def test_a_folder_without_a_state_is_refused(folder):
    assert_one_line(lambda: read_trl(folder), "none")
    (folder / "trainer_state.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert_one_line(lambda: read_trl(folder), "Git-LFS")
    assert_one_line(lambda: read_trl(folder / "trainer_state.json"), "Git-LFS")
    assert_one_line(lambda: read_trl(folder / "nothing.json"), "nothing.json")


def test_names_change_nothing(folder):
    a = write(folder, history(), "sft-squeezed.json")
    b = write(folder, history(), "δ/b.bin")
    assert_same(read_trl(a), read_trl(b))
    assert notes(read_trl(a)) == notes(read_trl(b))
    assert_same(read_all(b)[0], read_all(a)[0])


# --- spoilt files ----------------------------------------------------------------------------------------------------

BAD_ROWS = {
    "no rows": [],
    "rows without numbers": [{"step": 10}, {"step": 20, "epoch": 0.2}],
    "nothing finite": [{"step": 10, "loss": math.nan}],
    "a row that is a list": [[1, 2]],
    "a row that is an empty list": [train_row(10), []],
    "a row that is null": [train_row(10), None],
    "no step": [{"loss": 0.5}],
    "step null": [{"step": None, "loss": 0.5}],
    "step true": [{"step": True, "loss": 0.5}],
    "step as text": [{"step": "10", "loss": 0.5}],
    "a negative step": [{"step": -1, "loss": 0.5}],
    "a fractional step": [{"step": 1.5, "loss": 0.5}],
    "a huge step": [{"step": 2**31, "loss": 0.5}],
    "a step that is not finite": [{"step": math.nan, "loss": 0.5}],
    "a step beyond float64": [{"step": 10**400, "loss": 0.5}],
    "a loss as text": [{"step": 10, "loss": "0.5"}],
    "a log-probability as text": [{"step": 10, "eval_logps/chosen": "-5", "eval_loss": 0.5}],
    "a reward that is true": [{"step": 10, "eval_rewards/chosen": True, "eval_loss": 0.5}],
    "a list among numbers": [{"step": 10, "x": 1.0}, {"step": 20, "x": [1.0]}],
    "an integer beyond float64": [{"step": 10, "loss": 10**400}],
    "log-probabilities above 0": [{"step": 10, "eval_logps/chosen": 2.5}],
    "two keys of one name": [{"step": 10, "eval_a/b": 1.0, "eval_a_b": 2.0}],
    "two sets in one row": [{"step": 1, "eval_a_loss": 1.0, "eval_b_loss": 1.0, "eval_logps/chosen": -1.0}],
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_give_one_line(folder, kind):
    line = assert_one_line(lambda: read_trl(write(folder, BAD_ROWS[kind])))
    assert ("0 to 2^31 - 1" in line) == ("step" in kind)


def test_log_probabilities_above_0_are_named(folder):
    rows = [{"step": 10, "eval_logps/rejected": -1.0}, {"step": 20, "eval_logps/rejected": 2.5}]
    assert_one_line(lambda: read_trl(write(folder, rows)), "'eval_logps/rejected'", "2.5 at step 20")


BAD_FILES = {
    "empty": b"",
    "not JSON": b"loss = 0.5",
    "JSON lines": b'{"log_history": []}\n{"log_history": []}\n',
    "a list": b"[]",
    "null": b"null",
    "no log_history": b"{}",
    "log_history null": b'{"log_history": null}',
    "log_history an object": b'{"log_history": {"step": 1, "loss": 1}}',
    "a key twice": b'{"log_history": [{"step": 1, "loss": 1, "loss": 2}]}',
    "not UTF-8": b'{"log_history": [{"step": 1, "loss": 1, "\xff": 1}]}',
    "deep": b'{"log_history": ' + b"[" * 100_000,
    "deep and whole": b'{"log_history": [{"step": 1, "loss": 1, "x": ' + b"[" * 9000 + b"]" * 9000 + b"}]}",
    "a number of 5000 digits": b'{"log_history": [{"step": 1, "loss": ' + b"9" * 5000 + b"}]}",
}


@pytest.mark.parametrize("payload", BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_give_one_line(folder, payload):
    (folder / "f").write_bytes(payload)
    assert_one_line(lambda: read_trl(folder / "f"))


def test_metrics_that_are_not_numbers_are_left_out_with_a_note(folder):
    rows = [{**eval_row(10), "eval_confusion": [[1, 2]], "eval_wörter": "gut", "eval_best": True}, eval_row(20)]
    ds = read_trl(write(folder, rows))
    assert_same(ds, read_trl(write(folder, [eval_row(10), eval_row(20)])))
    (text,) = texts(ds, "non-finite-rows")
    assert "'eval_confusion' (list)" in text
    assert "'eval_w\\xf6rter' (str)" in text


def test_unicode_keys_become_plain_names(folder):
    ds = read_trl(write(folder, [{"step": 1, "größe/α": 2.5, "": 1.0}]))
    assert ds["train_gr__e__"].item() == 2.5
    assert ds["train_"].item() == 1.0


def test_one_row_is_a_table(folder):
    ds = read_trl(write(folder, [{"step": 7, "loss": 0.5}]))
    assert (ds.step.values.tolist(), ds.loss.item()) == ([7], 0.5)


def test_a_byte_order_mark_and_white_space_are_no_harm(folder):
    path = write(folder, history())
    clean = read_trl(path)
    path.write_bytes(b"\xef\xbb\xbf \n" + path.read_bytes() + b"\n\n")
    assert_same(read_trl(path), clean)


def test_a_hundred_thousand_rows_are_read(folder):
    rng = np.random.default_rng(0)
    steps = rng.permutation(100_000)
    rows = [{"step": s, "loss": s / 7, "logps/chosen": -s / 3, "rewards/chosen": 0.5} for s in steps.tolist()]
    ds = read_trl(write(folder, rows))
    assert ds.sizes["step"] == 100_000
    assert np.array_equal(ds.loss.values[0], np.arange(100_000) / 7)


# --- fuzz: the clean table, or one line ------------------------------------------------------------------------------

CLEAN = json.dumps(state(history()), indent=1).encode()


def outcome(call):
    """(what the call returned, "") or (None, the line with which it refused)."""
    try:
        return call(), ""
    except TrajectoryError as error:
        return None, str(error)


def read_bytes(folder, payload):
    path = folder / "log"
    path.write_bytes(payload)
    return read_trl(path)


@settings(max_examples=150)
@given(st.integers(0, len(CLEAN)))
@example(len(CLEAN))
def test_a_file_cut_anywhere_is_whole_or_refused(tmp_path_factory, size):
    folder = tmp_path_factory.mktemp("cut")
    if size == len(CLEAN):
        assert_same(read_bytes(folder, CLEAN), read_bytes(folder, CLEAN + b" "))
        return
    assert_one_line(lambda: read_bytes(folder, CLEAN[:size]))


@settings(max_examples=100)
@given(st.integers(0, len(CLEAN) - 1), st.integers(0, 255))
def test_a_changed_byte_gives_a_valid_table_or_one_line(tmp_path_factory, at, byte):
    """A digit for a digit is another log; what is read is then a valid table with that one number changed."""
    folder = tmp_path_factory.mktemp("byte")
    ds, line = outcome(lambda: read_bytes(folder, CLEAN[:at] + bytes([byte]) + CLEAN[at + 1 :]))
    assert (ds is None) == bool(line)
    assert line.isprintable()
    if ds is not None:
        validate(ds)
        assert 5 <= ds.sizes["step"] <= 6  # a changed step is a step more, or two at one


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from([10**400, -(10**30), math.nan, math.inf, -math.inf, 1e308, "NaN", "0.5"]),
)


@settings(max_examples=100)
@given(st.data())
def test_a_spoilt_value_is_missing_or_refused_and_never_changes_another(tmp_path_factory, data):
    """One value replaced by something else, or one key dropped: all other values are as in the clean table."""
    folder = tmp_path_factory.mktemp("junk")
    rows, clean = history(), read_bytes(folder, CLEAN)
    i = data.draw(st.integers(0, len(rows) - 1), label="row")
    key = data.draw(st.sampled_from(sorted(rows[i])), label="key")
    step = rows[i]["step"]
    row = dict(rows[i])
    if data.draw(st.booleans(), label="drop"):
        del row[key]
        junk = None
    else:
        row[key] = junk = data.draw(JUNK, label="junk")
    spoilt = [*rows[:i], row, *rows[i + 1 :]]
    if data.draw(st.booleans(), label="reverse"):
        spoilt.reverse()
    ds, line = outcome(lambda: read_trl(write(folder, spoilt)))
    if ds is None:
        assert line.isprintable()
        assert key == "step" or junk is not None, line
        return
    validate(ds)
    assert key != "step" or junk == step
    changed = 0
    for name in set(clean.data_vars) | set(ds.data_vars):
        a = clean[name].values if name in clean else np.full_like(ds[name].values, np.nan)
        b = ds[name].values if name in ds else np.full_like(a, np.nan)
        differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        changed += int(differ.sum())
        places = np.argwhere(differ)
        assert all(int(clean.step[place[1]]) == step for place in places), (name, places)
        numeric = type(junk) in (int, float) and math.isfinite(junk)
        assert numeric or np.isnan(b[differ]).all(), name
    assert changed <= 1
    if type(junk) is float and not math.isfinite(junk):
        assert texts(ds, "non-finite-rows") or texts(ds, "duplicate-rows")


# --- the real logs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama2", "mamba", "tinyllama", "zephyr"])
def test_real_logs_are_read_to_the_digit(data, kind):
    """Every finite number of the file stands in the table; found by content, whatever the file is called."""
    (path,) = (data / "runs" / "trl").glob(f"{kind}*")
    rows = json.loads(path.read_text())["log_history"]
    ds = read(path)
    named = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad_norm"}
    count = 0
    for row in rows:
        for key, value in row.items():
            if key == "step":
                continue
            name = named.get(key, key.replace("/", "_"))
            name = name if key in named or key.startswith("eval_") else f"train_{name}"
            at = {"step": int(row["step"]), "seed": 0}
            if key.startswith("eval_logps/"):
                found = ds.logp.sel(at | {"probe": key.removeprefix("eval_logps/"), "example": "mean"}).item()
            else:
                found = ds[name].sel(at).item()
            assert found == value or (math.isnan(found) and not math.isfinite(value)), (key, at)
            count += math.isfinite(value)
    logged = sum(int(np.isfinite(ds[name]).sum()) for name in ds.data_vars)
    assert logged >= count - len(rows)  # epoch stands once where a train row and an evaluation share a step
    assert ds.attrs["has_step0"] == 0
    wrong = texts(ds, "non-finite-rows")
    if kind == "llama2":
        assert len(wrong) == 1
        assert "3 train row(s) (steps 390, 430, 680) and 1 evaluation row(s) (steps 600)" in wrong[0]
        assert ds.attrs["n_examples"] == 267
    else:
        assert not wrong
        assert "n_examples" not in ds.attrs
