"""A rung of networks on the board: its experiments are found, tried as one family, recorded with the data they read."""

import doctest
import functools
import gzip
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from toyld import claims, scoreboard
from toyld.checked import BadInput
from toyld.claims import recorded, recording, rungs
from toyld.claims.base import registry
from toyld.claims.effects import ranked
from toyld.claims.runs import run_claim
from toyld.cli import claims as command
from toyld.cli import guard
from toyld.digits import data as files
from toyld.digits import experiments
from toyld.trajectory import experiments as found_by_file
from toyld.trajectory.experiments import Experiments

RECORD = {"smoke": tuple(range(12)), "paper": tuple(range(6))}
DIGESTS = {"mnist/images": "0" * 64}
LEVELS = {"smoke": 1.0, "paper": 0.0}  # what is sure in small worlds is not in large ones
MODULE = """
import numpy as np
import xarray as xr

{first}

def tables(seeds, size):
    level = {levels}[size]
    noise = [np.random.default_rng(seed).normal() / 4 for seed in seeds]
    data = {{"y": ("seed", level + np.array(noise))}}
    return {{"{name}: a": xr.Dataset(data, {{"seed": list(seeds)}}, {{"experiment": "{name}"}})}}
"""


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Two experiments and a helper without tables, written to a folder; `write` adds or changes one."""
    name = f"networks_{tmp_path.name}"  # a name of its own: what has run is kept for the process
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(module, first=""):
        (folder / f"{module}.py").write_text(MODULE.format(name=module, levels=LEVELS, first=first))

    for file in ("__init__", "_helper"):
        (folder / f"{file}.py").write_text("")
    write("lift")
    write("paths")
    return Experiments(name, RECORD, lambda size: DIGESTS if size == "paper" else {}), write


def made(id, experiment, expect="holds", offset=0.0, rung="digits"):
    @run_claim(
        id,
        "The value is positive.",
        source="this test",
        premises=lambda ds: None,
        expect=expect,
        why="what the module above writes",
        rungs=(rung,),
        experiment=experiment,
        unit="units",
    )
    def one(ds):
        return ranked([ds.y.values + offset])

    return one


@pytest.fixture
def board(monkeypatch, tmp_path, package):
    """The package in place of the rung's own, with claims about it alone, and nothing recorded."""
    these, write = package
    monkeypatch.setitem(rungs._SERVED, "digits", lambda: these)
    monkeypatch.setattr(rungs, "_family", functools.cache(rungs._family.__wrapped__))
    fakes = {
        "digits.lifts": made("digits.lifts", "lift"),
        "digits.paths-bend": made("digits.paths-bend", "paths"),
        "digits.falls": made("digits.falls", "lift", "refuted", offset=-2.0),
        "digits.anywhere": made("digits.anywhere", None),
        "digits.elsewhere": made("digits.elsewhere", None, rung="softmax"),
    }
    for id in fakes:
        del registry[id]
    monkeypatch.setattr(claims, "every", lambda: fakes)
    (tmp_path / "evidence").mkdir()
    monkeypatch.setattr(recorded, "files", lambda _: tmp_path)
    monkeypatch.setattr(recorded, "packaged", functools.cache(recorded.packaged.__wrapped__))
    monkeypatch.setattr(recorded, "checkout", lambda: {"commit": "0" * 40, "dirty": False})
    return these, write, tmp_path / "evidence"


def test_examples_of_docstrings_run():
    for module in (experiments, found_by_file):
        failed, tried = doctest.testmod(module)
        assert (failed, tried > 0) == (0, True)


# -- experiments of a package


def test_experiments_are_found_by_file_and_run_once(package):
    these, write = package
    assert these.names() == ("lift", "paths")
    assert list(these.tables()) == ["lift: a", "paths: a"]
    assert these.tables()["lift: a"].sizes == {"seed": 12}
    assert these.run("lift", size="paper")["lift: a"].sizes == {"seed": 6}
    assert these.run("lift") is these.run("lift", seeds=range(12), size="smoke")
    assert these.run("_helper") == {}
    with pytest.raises(BadInput, match="expected a size out of smoke, paper, got 'huge'; or name the seeds"):
        these.tables(size="huge")
    write("zeta")
    assert these.names() == ("lift", "paths", "zeta")


def test_a_broken_experiment_is_named_and_the_others_run(package):
    these, write = package
    write("middle", "1 / 0")
    found, broken = these.tried()
    assert list(found) == ["lift: a", "paths: a"]
    assert [(name, type(error)) for name, error in broken.items()] == [("middle", ZeroDivisionError)]
    with pytest.raises(ZeroDivisionError):
        these.tables()


def test_the_seeds_of_record_were_named_beforehand():
    assert {size: [*seeds] for size, seeds in experiments.RECORD.items()} == {
        "smoke": [*range(32)],
        "paper": [*range(10)],
    }
    assert rungs.experiments("digits") is experiments.EXPERIMENTS
    assert experiments.EXPERIMENTS.package == experiments.__name__ == "toyld.digits.experiments"


def test_no_network_is_imported_before_its_rung_is_asked_for():
    code = """import sys
from toyld import scoreboard
from toyld.claims import rungs
assert "digits" in rungs.served() and not {"toyld.digits", "torch"} & set(sys.modules)"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_rung_that_nobody_serves_is_one_clear_line(tmp_path):
    line = r"rung 'llm': expected one with experiments, got contexts, digits.* so far; import toyld.scoreboard for all"
    with pytest.raises(BadInput, match=line):
        scoreboard.record_experiments("llm", tmp_path)


def test_the_record_names_the_digits_it_read(data, monkeypatch, tmp_path):
    name, few = "t10k-labels-idx1-ubyte", {file: of for file, of in files.FILES.items() if "labels" in file}
    assert [len(files.FILES), len(few)] == [4, 2]
    plain = gzip.decompress((data / "mnist" / f"{name}.gz").read_bytes())
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / name).write_bytes(plain)
    monkeypatch.setenv("TOYLD_DATA", str(tmp_path))
    with pytest.raises(BadInput, match=r"expected train-images-idx3-ubyte or its \.gz in"):
        experiments.data("paper")
    monkeypatch.setattr(files, "FILES", few)
    monkeypatch.setenv("TOYLD_DATA", str(data))
    got = experiments.data("paper")
    assert all(re.fullmatch(r"mnist/\S+-labels-\S+ [0-9a-f]{64}", f"{file} {digest}") for file, digest in got.items())
    assert (len(got), got[f"mnist/{name}"]) == (2, hashlib.sha256(plain).hexdigest())
    monkeypatch.setenv("TOYLD_DATA", str(tmp_path))
    monkeypatch.setattr(files, "FILES", {name: few[name]})
    assert experiments.data("paper") == {f"mnist/{name}": got[f"mnist/{name}"]}  # packed or not
    (tmp_path / "mnist" / name).write_bytes(plain[:-1] + bytes([plain[-1] ^ 1]))
    with pytest.raises(BadInput, match=rf"expected 10008 bytes with md5 {few[name].md5} in {name}, got 10008 bytes"):
        experiments.data("paper")


# -- on the board


def test_the_rung_is_one_family_computed_when_asked_for(board, monkeypatch, capsys):
    seen = []
    decide = rungs.decide
    monkeypatch.setattr(rungs, "decide", lambda family: seen.append(set(family)) or decide(family))
    assert command(("digits.lifts",), rung="digits") == 0
    assert command((), rung="digits") == 0
    assert seen == [{"digits.lifts", "digits.paths-bend", "digits.falls", "digits.anywhere"}]
    out = capsys.readouterr().out
    assert re.search(r"digits.lifts +trend +holds \(\+\S+ \[\S+, \S+\] units, n = 12, 1 run\)", out)
    assert "paper size" not in out
    rows = {row["id"]: row for row in scoreboard.score(claims.select(), rung="digits")}
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert {id: row["verdict"] for id, row in rows.items()} == {
        "digits.lifts": "holds", "digits.paths-bend": "holds", "digits.falls": "refuted", "digits.anywhere": "holds",
    }  # fmt: skip
    told = {id: [trial["runs"] for trial in row["cells"]["digits"]["runs"]] for id, row in rows.items()}
    assert told["digits.lifts"] == [["lift: a"]]
    assert told["digits.anywhere"] == [["lift: a"], ["paths: a"]]


def test_a_broken_experiment_breaks_what_is_said_of_it_and_nothing_else(board, capsys):
    _, write, _ = board
    write("paths", "1 / 0")
    rows = {row["id"]: row["cells"]["digits"] for row in scoreboard.score(claims.select(), rung="digits")}
    assert {id for id, cell in rows.items() if "ZeroDivisionError" in (cell["why"] or "")} == {
        "digits.paths-bend", "digits.anywhere",
    }  # fmt: skip
    assert (rows["digits.lifts"]["verdict"], rows["digits.falls"]["verdict"]) == ("holds", "refuted")
    capsys.readouterr()
    assert command((), rung="digits") == 1
    assert capsys.readouterr().out.count("    the check raised ZeroDivisionError: ") == 2  # each in full


def test_a_recording_stands_beside_what_is_computed_now(board, capsys):
    these, _, evidence = board
    scoreboard.record_experiments("digits", evidence)
    assert sorted(path.name for path in evidence.iterdir()) == ["digits-lift.json", "digits-paths.json"]
    found = {name: recording.parse((evidence / f"digits-{name}.json").read_bytes()) for name in these.names()}
    assert recording.check(found, these.names()) == []
    for name, one in found.items():
        assert one.about["data"] == DIGESTS
        assert one.about["family"] == "rung"
        assert (one.about["size"], one.about["seeds"]) == ("paper", [0, 1, 2, 3, 4, 5])
        assert f"record_experiments('digits', 'toyld/evidence', only=('{name}',))" in one.about["command"]
        compile(one.about["command"].removeprefix('python -c "').removesuffix('"'), name, "exec")
        for trials in one.trials.values():
            for trial in trials:
                again = ranked(trial.effect.parts, trial.effect.rank)
                assert (again.value, again.p) == pytest.approx((trial.effect.value, trial.effect.p), rel=1e-5)
    capsys.readouterr()
    assert command(("digits.lifts",), rung="digits") == 0
    out = capsys.readouterr().out
    assert "(paper size: undecided)" in out
    assert re.search(r"at paper size: undecided \(\S+ \[\S+, \S+\] units, n = 6; 1 undecided\), recorded ", out)
    assert command(("digits.falls",), rung="digits") == 0
    assert "(paper size" not in capsys.readouterr().out  # as computed now


@pytest.mark.parametrize("bad", [{"mnist/images": 7}, ["mnist"], "mnist"])
def test_data_that_nobody_can_read_is_refused(board, bad, capsys):
    *_, evidence = board
    scoreboard.record_experiments("digits", evidence, only="lift")
    path = evidence / "digits-lift.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "data": bad}))
    capsys.readouterr()
    with pytest.raises(BadInput, match=r"digits-lift.json: expected a recording"):
        scoreboard.score(claims.select(), rung="digits")  # before anything is tried
    assert guard(lambda: command((), rung="digits")) == 2
    assert re.fullmatch(r"toyld: digits-lift.json: expected a recording .*; record it again\n", capsys.readouterr().err)


def test_tables_are_told_apart_by_their_experiment():
    one = made("digits.told-apart", "lift")
    del registry["digits.told-apart"]
    table = xr.Dataset({"y": ("seed", np.ones(3))})
    runs = {name: table.assign_attrs(experiment=name) for name in ("lift", "paths")}
    assert claims.runs.arrangements(one, runs) == [("lift",)]
