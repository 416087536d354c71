"""`toyld diagnose`: exit codes, the file for programs, one line for bad input, the published runs."""

import json
import os
import re
import time

import numpy as np
import pytest

from toyld import cli, report
from toyld.diagnosis import CLASSES, as_json, diagnose
from toyld.report import command
from toyld.trajectory import save, trajectory


def toyld(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld diagnose …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["diagnose", *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def table(path, *, chosen=-5.0, argmax=20.0):
    n = 6
    moved = np.linspace(0, 1, n)
    values = {
        "logp": (-90 + chosen * moved).reshape(1, n, 1, 1),
        "argmax_logp": (-50 + argmax * moved).reshape(1, n, 1, 1),
    }
    save(trajectory(values, step=100 * np.arange(n), probe=["chosen"]), path)
    return path


@pytest.fixture
def runs(tmp_path):
    """A squeezed run, a run of plain SFT, a file that holds no run."""
    bad = tmp_path / "bad.bin"
    bad.write_text("nothing")
    return table(tmp_path / "one.nc"), table(tmp_path / "two.nc", chosen=40.0, argmax=10.0), bad


def test_verdicts_stand_in_the_order_of_the_arguments_and_exit_is_0(capsys, tmp_path, runs):
    path = tmp_path / "out.json"
    code, out, err = toyld(capsys, runs[1], runs[0], "--json", path)
    assert (code, err) == (0, "")
    board = json.loads(path.read_text())
    assert board["schema"] == 1
    assert [(r["path"], r["verdict"], r["error"]) for r in board["runs"]] == [
        (str(runs[1]), "sft-normal", None),
        (str(runs[0]), "squeezing", None),
    ]
    assert "consistent with squeezing" in out


def test_a_path_that_cannot_be_read_exits_2_and_the_others_are_written(capsys, tmp_path, runs):
    path = tmp_path / "out.json"
    page = tmp_path / "out.html"
    code, out, err = toyld(capsys, runs[2], tmp_path / "gone", runs[0], "--json", path, "--html", page)
    assert code == 2
    bad, gone, good = json.loads(path.read_text())["runs"]
    assert (bad["verdict"], gone["verdict"], good["verdict"]) == (None, None, "squeezing")
    assert "expected" in bad["error"]
    assert "\n" not in bad["error"] + gone["error"]
    lines = err.splitlines()
    assert len(lines) == 2
    assert lines[0] == f"toyld: {runs[2]}: {bad['error']}"
    assert out.count("(unreadable)") == 2
    assert bad["error"] not in out, "told once, on stderr"
    assert "Could not be read" in page.read_text()


def test_where_nothing_could_be_read_there_is_no_table(capsys, tmp_path):
    path = tmp_path / "out.json"
    code, out, err = toyld(capsys, tmp_path / "gone", "--json", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert json.loads(path.read_text())["runs"][0]["error"] in err


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_without_a_log_is_told_what_is_looked_for(capsys, tmp_path, content):
    folder = tmp_path / "EMPTY"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    code, out, err = toyld(capsys, folder)
    assert (code, out) == (2, "")
    assert "expected a trainer state, a run folder, a table or the authors' JSON lines, got none in EMPTY: " in err
    assert "trainers write trainer_state.json into checkpoint-N/" in err


def test_the_same_path_twice_is_said_and_both_are_written(capsys, tmp_path, runs, monkeypatch):
    path = tmp_path / "out.json"
    monkeypatch.chdir(tmp_path)  # a long path would be cut in the table
    code, out, _ = toyld(capsys, runs[0].name, runs[0].name, "--json", path)
    assert code == 0
    assert out.count("one.nc (again)") == 2  # in the table and above its paragraph
    first, second = json.loads(path.read_text())["runs"]
    assert first == second


def log(path, rows):
    path.write_text(json.dumps({"log_history": rows}))
    return path


def trained(n=12, **more):
    """Train rows of DPO: rewards of other batches every time."""
    return [
        {"step": 10 * i, "loss": 0.69 - 0.02 * i, "rewards/chosen": -0.08 * i, "rewards/rejected": -0.25 * i}
        | {"rewards/accuracies": 0.75, "rewards/margins": 0.17 * i}
        | more
        for i in range(1, n + 1)
    ]


def test_train_rows_alone_show_their_rewards_and_how_to_read_them(capsys, tmp_path):
    path, out_file = log(tmp_path / "state.json", trained()), tmp_path / "out.json"
    code, out, err = toyld(capsys, path, "--json", out_file)
    said = " ".join(out.split())
    assert (code, err) == (0, "")
    assert "rewards/chosen −0.08 → −0.96, rewards/rejected −0.25 → −3" in said
    assert "accuracy 0.75" in said
    assert "the batches differ from row to row" in said
    assert "add --beta 0.1, your DPOConfig.beta" in said
    (run,) = json.loads(out_file.read_text())["runs"]
    assert run["n_evaluations"] == 0
    assert 'eval_dataset=…, eval_strategy="steps", eval_on_start=True' in run["advice"][0]["change"]
    row = next(line for line in out.splitlines() if line.startswith("1 "))
    assert row.split()[-2:] == ["–", "–"], "no evaluation, no example"
    _, out, _ = toyld(capsys, path, "--beta", "0.1")
    assert "chosen −9.6 nats, rejected −30 nats: the margin grew by 20.4" in " ".join(out.split())


def test_a_log_of_sft_is_said_to_be_one(capsys, tmp_path):
    rows = [{"step": i, "loss": 2.48 - 0.06 * i, "mean_token_accuracy": 0.5} for i in range(14)]
    out_file = tmp_path / "out.json"
    code, out, _ = toyld(capsys, log(tmp_path / "state.json", rows), "--json", out_file)
    assert code == 0
    said = " ".join(out.split())
    assert "no rewards and no log-probabilities of pairs: this looks like the log of SFT; loss 2.48 → 1.7" in said
    (run,) = json.loads(out_file.read_text())["runs"]
    assert not [item for item in run["advice"] if item["knob"] in ("eval_dataset", "eval_on_start")]
    bare = [{key: x for key, x in row.items() if key != "mean_token_accuracy"} for row in rows]
    _, out, _ = toyld(capsys, log(tmp_path / "bare.json", bare))
    assert "looks like the log of SFT" not in " ".join(out.split()), "a loss alone may be anything"


def test_one_kind_of_minus_and_steps_in_their_unit(capsys, data):
    _, out, _ = toyld(capsys, *data.glob("runs/trl/*"), *data.glob("runs/authors/pythia410_baseline_dpo_checkbug*"))
    shown = [line for line in out.splitlines() if "LLM-Dojo" not in line]
    assert not [line for line in shown if re.search(r"(?<![\w.)#])-\.?\d", line)]
    assert "at step 6000" not in out
    assert "at 6000 examples" in out
    assert "underflows" not in out
    assert "lowered by what is missing and by means and examples that disagree" in " ".join(out.split())


def test_a_run_that_was_not_read_has_every_key_of_one_that_was(tmp_path, runs):
    good = as_json(diagnose(trajectory({"logp": [[[[-3.0]], [[-2.5]]]]}, step=[0, 10], probe=["chosen"])), path="p")
    entry, empty = report.runs_as_json([("p", "why")])["runs"][0], {**good, "error": None}
    assert list(entry) == list(empty)
    assert set(entry["numbers"]) == set(good["numbers"])
    assert set(entry["worst"]) == set(good["worst"])
    for key, value in entry.items():
        assert key in ("path", "error") or not value or set(value.values()) == {None}


def test_fail_on_exits_1_for_its_classes_alone_and_2_wins(capsys, runs):
    assert toyld(capsys, *runs[:2], "--fail-on", "divergence,displacement")[0] == 0
    code, _, err = toyld(capsys, *runs[:2], "--fail-on", "divergence, squeezing")
    assert code == 1
    assert err == f"toyld: {runs[0]}: squeezing, which --fail-on names\n"
    assert toyld(capsys, *runs, "--fail-on", "squeezing")[0] == 2


def test_fail_on_says_where_it_could_not_be_tested(capsys, tmp_path, runs):
    path = log(tmp_path / "state.json", trained())
    code, _, err = toyld(capsys, path, runs[1], "--fail-on", "squeezing")
    assert code == 0
    assert err == f"toyld: {path}: cannot tell, so that --fail-on was not tested (add cannot-tell to fail on that)\n"
    code, _, err = toyld(capsys, path, "--fail-on", "squeezing,cannot-tell")
    assert (code, err) == (1, f"toyld: {path}: cannot-tell, which --fail-on names\n")
    assert toyld(capsys, path)[2] == ""


def test_exit_2_still_wins(capsys, runs):
    assert toyld(capsys, runs[2], runs[0], "--fail-on", "squeezing")[0] == 2


BAD = {
    "no path": ((), "expected at least one path"),
    "an unknown class": (("ONE", "--fail-on", "squeezing,sqeezing"), f"expected classes out of {', '.join(CLASSES)}"),
    "no class": (("ONE", "--fail-on", ","), "with commas between, got nothing"),
    "a folder for JSON": (("ONE", "--json", "/"), "--json: expected a file in an existing folder"),
    "no folder for the page": (
        ("ONE", "--html", "/nowhere/at/all.html"),
        "--html: expected a file in an existing folder",
    ),
    "one file twice": (("ONE", "--json", "x.out", "--html", "x.out"), "--json and --html: expected two files"),
    "a negative beta": (("ONE", "--beta", "-0.1"), "--beta: expected a finite number > 0, got -0.1"),
    "a beta that is no number": (("ONE", "--beta", "x"), "--beta: expected a finite number > 0, got 'x'"),
    "an endless beta": (("ONE", "--beta", "inf"), "--beta: expected a finite number > 0"),
    "no control": (("ONE", "--control", "/nowhere"), "expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_one_line_before_any_work(capsys, monkeypatch, runs, name):
    def work(path):
        pytest.fail("read before the arguments were checked")

    monkeypatch.setattr(command, "read_run", work)
    arguments, expected = BAD[name]
    code, out, err = toyld(capsys, *(runs[0] if a == "ONE" else a for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("toyld: ")
    assert expected in err
    assert err.count("\n") == 1


def test_a_disk_that_fills_up_at_the_end_still_shows_the_verdicts(capsys, monkeypatch, tmp_path, runs):
    def full(path, payload):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(command, "write_whole", full)
    code, out, err = toyld(capsys, runs[0], "--json", tmp_path / "out.json")
    assert code == 2
    assert "consistent with squeezing" in out
    assert "No space left on device" in err


def test_names_are_data(capsys, tmp_path):
    folder = tmp_path / "[bold]ünï ☃[red] $x$ %s {0}"
    folder.mkdir()
    raw = os.fsencode(folder) + b"/a\xff\n.nc"
    table(folder / "plain").rename(os.fsdecode(raw))
    path, page = tmp_path / "out.json", tmp_path / "out.html"
    code, out, err = toyld(capsys, os.fsdecode(raw), "--json", path, "--html", page)
    assert (code, err) == (0, "")
    assert json.loads(path.read_text())["runs"][0]["path"].endswith("[bold]ünï ☃[red] $x$ %s {0}/a\\udcff\\n.nc")
    assert "[bold]ünï ☃[red] $x$ %s {0}/a\\udcff\\n.nc" in out
    assert "a\\udcff\\n.nc" in page.read_text()


def test_renaming_changes_no_verdict(tmp_path, runs):
    other = tmp_path / "healthy-not-squeezing-at-all"
    other.write_bytes(runs[0].read_bytes())
    one, two = (report.runs_as_json(command._read(str(p)))["runs"][0] for p in (runs[0], other))
    assert {**one, "path": ""} == {**two, "path": ""}


def test_a_control_is_read_once_and_compared(capsys, tmp_path, runs):
    path = tmp_path / "out.json"
    code, _, err = toyld(capsys, runs[0], "--control", runs[1], "--json", path)
    assert (code, err) == (0, "")
    assert json.loads(path.read_text())["runs"][0]["control"] is not None


def test_a_control_that_does_not_go_with_a_run_costs_the_comparison_alone(capsys, tmp_path, runs):
    values = {"logp": -np.ones((1, 3, 1, 1)), "argmax_logp": -0.5 * np.ones((1, 3, 1, 1))}
    other = tmp_path / "examples.nc"
    save(trajectory(values, step=[0, 1, 2], probe=["chosen"], step_unit="examples"), other)
    code, out, err = toyld(capsys, runs[0], "--control", other)
    assert (code, err) == (0, "")
    assert "consistent with squeezing" in out
    assert "not compared: expected a control that counts steps as the run does" in " ".join(out.split())


# Changes, gap first and last, and share squeezed as published elsewhere, to the digits given there.
PUBLISHED = {
    "pythia410_baseline_sft_verify_argmax_bug": ("sft-normal", "+59.6", "+17.1", "90.4 → 48.0", 0.00),
    "pythia410m_baseline_dpo_checkbug_5e7": ("squeezing", "−4.2", "+20.4", "90.4 → 115.1", None),
    "pythia410_baseline_dpo_checkbug_5e7": ("squeezing", "+3.4", "+7.2", "90.4 → 94.2", 0.27),
    "pythia410_baseline_dpo_checkbug": ("displacement", "−25.1", "+0.0", "90.4 → 115.6", 0.40),
}


def test_published_runs_side_by_side(capsys, data, tmp_path):
    paths = sorted([*data.glob("runs/authors/*"), *data.glob("runs/trl/*")])
    path = tmp_path / "out.json"
    start = time.perf_counter()
    code, out, err = toyld(capsys, *paths, "--json", path)
    assert time.perf_counter() - start < 20
    assert (code, err) == (0, "")
    found = {os.path.basename(r["path"]): r for r in json.loads(path.read_text())["runs"]}
    assert list(found) == [p.name for p in paths]
    assert all(r["verdict"] in CLASSES and (r["verdict"] != "cannot-tell" or r["reasons"]) for r in found.values())
    for name, (verdict, chosen, argmax, gap, share) in PUBLISHED.items():
        run = found[name]
        numbers = {k: f"{x:+.1f}".replace("-", "−") for k, x in run["numbers"].items() if x is not None}
        assert (run["verdict"], numbers["d_chosen"], numbers["d_argmax"]) == (verdict, chosen, argmax), name
        assert f"{numbers['gap_first'][1:]} → {numbers['gap_last'][1:]}" == gap
        assert gap in out
        if share is not None:
            assert round(run["share"].get("squeezing", 0.0), 2) == share
    for name, run in found.items():
        if run["verdict"] == "cannot-tell":
            assert any("toyld probe --models" in item["change"] for item in run["advice"]), name


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_no_log_is_written_over(tmp_path, capsys, option):
    log = tmp_path / "trainer_state.json"
    log.write_text(json.dumps({"log_history": [{"step": 1, "eval_logps/chosen": -7.0}]}))
    before = log.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["diagnose", str(log), option, str(log)])
    assert stopped.value.code == 2
    assert "a log or table: name another" in capsys.readouterr().err
    assert log.read_bytes() == before
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["diagnose", str(log), option, str(fifo)])
    assert stopped.value.code == 2
    assert fifo.is_fifo()


def test_its_own_files_are_written_again(tmp_path):
    log, out, page = (tmp_path / name for name in ("log", "out.json", "page.html"))
    log.write_text(json.dumps({"log_history": [{"step": 1, "eval_logps/chosen": -7.0}]}))
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["diagnose", str(log), "--json", str(out), "--html", str(page)])
        assert stopped.value.code == 0
    assert json.loads(out.read_text())["runs"][0]["verdict"] == "cannot-tell"
