"""Rungs with experiments: what was recorded at paper size follows from its numbers and stands beside the computed."""

import doctest
import functools
import json
import math
import re
from dataclasses import replace
from importlib.resources import files
from itertools import chain

import numpy as np
import pytest

from toyld import claims, scoreboard
from toyld.checked import BadInput
from toyld.claims import numbers, recorded, recording, rungs
from toyld.claims.effects import Curve, Effect, peaked, ranked
from toyld.claims.runs import RunResult, decide
from toyld.contexts.experiments import EXPERIMENTS
from toyld.trajectory.experiments import Experiments

COMMIT = "0" * 40
SEEDS = tuple(range(1000, 1006))
SURE = "preference.margin-grows"  # of so few seeds


NAMES = EXPERIMENTS.names()
make = functools.cache(recorded.make)


def small(name, commit=COMMIT):
    """A recording of a real experiment, but of few seeds and small worlds."""
    one = make("contexts", name, commit=COMMIT, seeds=SEEDS, size="smoke")
    return replace(one, about={**one.about, "commit": commit})


@pytest.fixture
def made():
    """One with claims on one run, on two and on all, and with peaks."""
    return small("stages")


@pytest.fixture
def clean(monkeypatch):
    """As if the tree were clean; small worlds of few seeds in place of those at paper size."""
    monkeypatch.setattr(recorded, "checkout", lambda: {"commit": COMMIT, "dirty": False})
    monkeypatch.setattr(recorded, "make", lambda rung, name, commit: small(name, commit))


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """A package whose evidence lies in a temporary folder."""
    (tmp_path / "evidence").mkdir()
    monkeypatch.setattr(recorded, "files", lambda _: tmp_path)
    recorded.packaged.cache_clear()
    yield tmp_path / "evidence"
    recorded.packaged.cache_clear()


def entries(one):
    return list(chain.from_iterable(one.trials.values()))


@pytest.mark.parametrize("module", [recorded, recording, numbers])
def test_examples_of_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried or module is recorded


# -- an effect knows what it was computed from


def test_an_effect_keeps_the_numbers_of_its_units_where_they_are_all():
    rng = np.random.default_rng(0)
    parts = [rng.normal(1.0, 1.0, 9) for _ in range(3)]
    curve = Curve(rng.normal(0.0, 1.0, (9, 7)), seeds=True)
    for effect, rank in ((ranked(parts, 2), 2), (ranked([curve.between(0, -1)]), 1)):
        assert effect.rank == rank
        assert ranked(effect.parts, effect.rank) == effect
    assert peaked([curve]).rank is None
    assert peaked(peaked([curve]).parts) == peaked([curve])
    examples = Curve(curve.values)  # they share the jitter of the whole curve
    for effect in (ranked([examples.between(0, -1), examples.between(1, -1)], 2), peaked([examples])):
        same = numbers.again(effect)
        assert (same.value, same.low, same.high) == pytest.approx((effect.value, effect.low, effect.high), rel=1e-12)
        less = numbers.summarised(effect)
        assert numbers.count(effect) > numbers.count(less) == 0
        for name in ("value", "low", "high", "p", "below"):
            assert getattr(numbers.again(less), name) == pytest.approx(getattr(effect, name), rel=1e-9), name
        assert numbers.again(effect).p > (ranked if effect.rank else peaked)([numbers._values(effect.parts[0])]).p


def test_what_an_effect_keeps_changes_neither_equality_nor_words():
    bare = Effect(1.0, 0.5, 1.5, 9, 0.01)
    kept = replace(bare, parts=(np.ones(9),), rank=1)
    assert kept == bare
    assert repr(kept) == repr(bare)
    assert hash(kept) == hash(bare)


# -- a recording follows from its numbers


def test_a_recording_can_be_computed_again_from_its_seeds(made):
    """From the JSON alone, with `ranked` and `peaked`: effects, intervals, p-values and verdicts."""
    whole = json.loads(made.payload())
    assert recording.check({"stages": made}, NAMES) == []
    kinds = set()
    for id, result in whole["results"].items():
        for trial in result["trials"]:
            if trial["per_seed"] is None:
                continue
            parts = [np.array(part, float) for part in trial["per_seed"]]
            assert all(part.shape[-1] == len(SEEDS) for part in parts)
            again = peaked(parts) if trial["rank"] is None else ranked(parts, trial["rank"])
            for name, key in (("value", "effect"), ("low", "low"), ("high", "high"), ("p", "p"), ("below", "p_below")):
                assert trial[key] == pytest.approx(getattr(again, name), rel=1e-5, abs=1e-12), (id, key)
            assert trial["n"] == again.n
            kinds.add((trial["rank"], trial["runs"] == "all"))
        told = {key: result[key] for key in ("effect", "low", "high", "n")}
        assert any(told == {key: t[key] for key in told} and t["per_seed"] for t in result["trials"]), id
    assert kinds == {(None, False), (1, False), (1, True), (2, False)}
    alone = decide({id: list(trials) for id, trials in made.trials.items()})
    assert {id: [t.verdict for t in ts] for id, ts in alone.items()} == {
        id: [t["verdict"] for t in whole["results"][id]["trials"]] for id in alone
    }


def test_rounding_moves_no_effect_by_more_than_its_last_digit(made):
    now = rungs.mine("contexts")
    tables = EXPERIMENTS.run("stages", SEEDS, "smoke")
    id = SURE
    exact = claims.evaluate(now[id], runs=tables)
    for trial, kept in zip([t for t in exact.trials if t.effect is not None], made.trials[id], strict=True):
        assert trial.runs == kept.runs
        for name in ("value", "low", "high"):
            assert getattr(kept.effect, name) == pytest.approx(getattr(trial.effect, name), rel=1e-4), name


def test_a_recording_says_how_it_was_made_and_is_read_as_it_was_written(made):
    about = json.loads(made.payload())
    assert about["claims"] == list(about["results"])
    assert set(about["claims"]) == {id for id, one in rungs.mine("contexts").items() if one.experiment == "stages"}
    assert (about["seeds"], about["size"], about["commit"], about["dirty"]) == (list(SEEDS), "smoke", COMMIT, False)
    assert about["command"] == recorded.COMMAND.replace("RUNG", "contexts").replace("NAME", "stages")
    assert set(about) >= {"date", "hardware", "device_seconds", "versions", "family", "per_seed", "tables"}
    assert recording.parse(made.payload()).payload() == made.payload()


@pytest.mark.parametrize("place", range(4))
def test_a_large_recording_keeps_what_fits_and_says_so(monkeypatch, place):
    def foresight():
        return recorded.make("contexts", "foresight", commit=COMMIT, seeds=range(1000, 1012), size="smoke")

    with monkeypatch.context() as alone:
        alone.setattr(recorded, "KEPT", recorded.KEPT[place : place + 1])
        alone.setattr(recorded, "LARGEST", 10**9)
        size = len(foresight().payload())
    monkeypatch.setattr(recorded, "LARGEST", size + 20)  # the time it took may have another digit
    one, (digits, few) = foresight(), recorded.KEPT[place]
    assert len(one.payload()) <= size + 20
    assert one.about["per_seed"].startswith(f"{digits} digits; {'of the least' if few else 'of every trial'}")
    assert any(t.effect.parts is None for t in entries(one)) == few
    numbers = [x for t in entries(one) for part in t.effect.parts or () for x in part if x == x]
    assert max(len(f"{abs(x):.12g}".replace(".", "").strip("0")) for x in numbers) == digits
    assert recording.check({"foresight": one}, NAMES) == []  # whatever was left out, what speaks has its numbers


def test_a_recording_that_cannot_fit_is_refused(monkeypatch):
    monkeypatch.setattr(recorded, "LARGEST", 1000)
    with pytest.raises(BadInput, match="expected a recording below 1,000 bytes, got"):
        recorded.make("contexts", "foresight", commit=COMMIT, seeds=SEEDS, size="smoke")


def changed(made, what):
    """The same file with one thing wrong that a reader cannot see: check must."""
    whole = json.loads(made.payload())
    id = SURE
    first = next(trial for trial in whole["results"][id]["trials"] if trial["per_seed"])
    if what == "a number of a seed":
        first["per_seed"][0][0] += 0.01
    elif what == "a p-value":
        first["p"] *= 1.001
    elif what == "another rank":
        whole["results"]["preference.observed-fall"]["trials"][0]["rank"] = 1
    elif what == "a family":
        whole["family"] = "rung"
    elif what == "no numbers by seed":
        for trial in whole["results"][id]["trials"]:
            trial["per_seed"] = None
    elif what == "verdicts":
        for trial in whole["results"][id]["trials"]:
            trial["verdict"] = "undecided"
        result = whole["results"][id]
        speaks = min(result["trials"], key=lambda t: abs(t["effect"]))
        result.update(verdict="undecided", **{k: speaks[k] for k in ("effect", "low", "high", "n")})
    return recording.parse(json.dumps(whole).encode())


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("a number of a seed", "margin-grows, .* from its numbers"),
        ("a p-value", "margin-grows, .*p recorded"),
        ("another rank", "observed-fall, .*: value recorded"),
        ("a family", "expected its trials in the family of its experiment"),
        ("no numbers by seed", "margin-grows: no numbers by unit"),
        ("verdicts", "margin-grows: verdicts that do not follow"),
    ],
)
def test_what_does_not_follow_is_found(made, what, word):
    found = recording.check({"stages": changed(made, what)}, NAMES)
    assert found
    assert any(re.search(word, line) for line in found), found


def damaged(made, how):
    whole = json.loads(made.payload())
    result = whole["results"]["supervised.chosen-rises"]
    if how == "cut":
        return made.payload()[:5000]
    if how == "bytes":
        return b"\xff\xfe" + made.payload()
    if how == "list":
        return b"[]"
    if how == "schema":
        whole["schema"] = 2
    elif how == "date":
        del whole["date"]
    elif how == "claim":
        whole["claims"].pop()
    elif how == "verdict":
        result["verdict"] = "refuted"
    elif how == "trial verdict":
        result["trials"][0]["verdict"] = "sure"
    elif how == "effect":
        result["trials"][0]["effect"] = "much"
    elif how == "seed":
        result["trials"][0]["per_seed"][0].pop()
    elif how == "runs":
        result["trials"][0]["runs"] = ["elsewhere"]
    elif how == "rank":
        result["trials"][0]["rank"] = 99
    return json.dumps(whole).encode()


DAMAGES = {
    "cut": "broken JSON", "bytes": "broken JSON", "list": "", "schema": "schema 2", "date": "no 'date'",
    "claim": "other claims than it names", "verdict": "numbers of supervised.chosen-rises that its trials do not have",
    "trial verdict": "verdict sure", "effect": "much", "seed": f"numbers of other than {len(SEEDS)} seeds",
    "runs": "runs that it does not name: elsewhere", "rank": "rank 99 of",
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_is_one_clear_line(made, how, evidence, capsys):
    from toyld.cli import claims as command
    from toyld.cli import guard

    with pytest.raises(BadInput) as bad:
        recording.parse(damaged(made, how), name="contexts-stages.json")
    line = str(bad.value)
    assert line.startswith("contexts-stages.json: expected a recording of schema 1, got ")
    assert DAMAGES[how] in line
    assert line.endswith("record it again")
    assert line.isprintable()
    (evidence / "contexts-stages.json").write_bytes(damaged(made, how))
    assert guard(lambda: command(("supervised",), rung="contexts")) == 2  # too many to print in full
    assert capsys.readouterr().err == f"toyld: {line}\n"


# -- writing it


@pytest.mark.parametrize(("dirty", "got"), [(True, "changes that are not committed"), (None, "no checkout")])
def test_only_the_code_of_a_commit_is_recorded(monkeypatch, tmp_path, dirty, got):
    monkeypatch.setattr(recorded, "checkout", lambda: {"commit": None if dirty is None else COMMIT, "dirty": dirty})
    monkeypatch.setattr(recorded, "make", lambda rung, name, commit: small(name, commit))
    with pytest.raises(BadInput, match=f"expected the code of a commit for the record to name, got {got}"):
        scoreboard.record_contexts(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments_are_refused_before_anything_runs(clean, tmp_path):
    with pytest.raises(BadInput, match="expected a folder that is there"):
        scoreboard.record_contexts(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"expected experiments out of .*stages, got nothing"):
        scoreboard.record_contexts(tmp_path, only=("stages", "nothing"))
    assert list(tmp_path.iterdir()) == []


def test_recording_is_of_the_seeds_of_record_at_paper_size(monkeypatch, tmp_path):
    asked = []

    def run(self, name, seeds, size):
        asked.append((name, tuple(seeds), size))
        return {}

    monkeypatch.setattr(recorded, "checkout", lambda: {"commit": COMMIT, "dirty": False})
    monkeypatch.setattr(Experiments, "run", run)
    scoreboard.record_contexts(tmp_path, only="foresight")
    assert asked == [("foresight", tuple(range(32)), "paper")]
    one = recording.parse((tmp_path / "contexts-foresight.json").read_bytes())
    assert {recording.summary(trials) for trials in one.trials.values()} == {"not applicable"}
    assert [trial.effect for trial in entries(one)] == [None] * len(one.about["claims"])


def test_one_experiment_after_the_other_and_one_family_once_all_are_there(monkeypatch, clean, tmp_path, capsys):
    two = ("foresight", "stages")
    monkeypatch.setattr(Experiments, "names", lambda _: two)
    scoreboard.record_contexts(tmp_path, only=("stages",))
    (path,) = tmp_path.iterdir()
    assert path.name == "contexts-stages.json"
    assert json.loads(path.read_bytes())["family"] == "experiment"
    scoreboard.record_contexts(tmp_path, only="foresight")
    one = small("foresight")
    assert f"foresight: {len(one.trials)} claims, {len(entries(one))} trials" in capsys.readouterr().err
    found = {name: recording.parse((tmp_path / f"contexts-{name}.json").read_bytes()) for name in two}
    assert [one.about["family"] for one in found.values()] == ["rung", "rung"]
    assert recording.check(found, two) == []
    rung = decide({id: trials for one in found.values() for id, trials in one.trials.items()})
    for one in found.values():
        assert {id: [t.verdict for t in ts] for id, ts in one.trials.items()} == {
            id: [t.verdict for t in rung[id]] for id in one.trials
        }
    sure = {name: sum(t.verdict == "undecided" for t in entries(one)) for name, one in found.items()}
    alone = {name: decide(one.trials) for name, one in found.items()}
    fewer = {n: sum(t.verdict == "undecided" for ts in one.values() for t in ts) for n, one in alone.items()}
    assert sum(sure.values()) > sum(fewer.values()), "the larger family must be the stricter one somewhere"
    # From another commit one of them is recorded anew: two families again.
    monkeypatch.setattr(recorded, "checkout", lambda: {"commit": "1" * 40, "dirty": False})
    scoreboard.record_contexts(tmp_path, only="foresight")
    found = {name: recording.parse((tmp_path / f"contexts-{name}.json").read_bytes()) for name in two}
    assert [one.about["family"] for one in found.values()] == ["experiment", "experiment"]
    assert recording.check(found, two) == []


def test_a_killed_recording_loses_one_experiment_at_most(monkeypatch, clean, tmp_path):
    def killed(rung, name, commit):
        if name == "stages":
            raise KeyboardInterrupt
        return small(name, commit)

    monkeypatch.setattr(recorded, "make", killed)
    with pytest.raises(KeyboardInterrupt):
        scoreboard.record_contexts(tmp_path, only=("foresight", "stages"))
    assert [path.name for path in tmp_path.iterdir()] == ["contexts-foresight.json"]
    assert recording.parse((tmp_path / "contexts-foresight.json").read_bytes()).about["family"] == "experiment"


# -- beside what is computed now


def test_a_cell_carries_what_was_recorded_and_marks_disagreement(made, evidence, monkeypatch, capsys):
    from toyld.cli import claims as command

    id = SURE
    (one,) = claims.select([id])
    now = RunResult(one, made.trials[id], rung="contexts")
    assert "paper" not in scoreboard.cell(now)
    assert recorded.line(one, "contexts") == []
    (evidence / "contexts-stages.json").write_bytes(made.payload())
    recorded.packaged.cache_clear()
    cell = scoreboard.cell(now)
    assert json.loads(json.dumps(cell, allow_nan=False)) == cell
    told = json.loads(made.payload())["results"][id]
    assert told["verdict"] == "holds"
    assert {k: cell["paper"][k] for k in ("verdict", "effect", "low", "high", "n")} == {
        k: told[k] for k in ("verdict", "effect", "low", "high", "n")
    }
    assert set(cell["paper"]["recorded"]) == {"date", "hardware", "command", "commit"}
    assert cell["recorded"] is None  # itself it is computed now
    assert "paper size" not in scoreboard.words("trend", cell)
    other = replace(now, trials=tuple(replace(t, verdict="undecided") for t in now.trials))
    assert scoreboard.words("trend", scoreboard.cell(other)).endswith(f"undecided) (paper size: {told['verdict']})")
    assert "paper" not in scoreboard.cell(replace(now, rung="published"))
    monkeypatch.setattr(rungs, "current", lambda *_: now)
    command((id,), rung="contexts")
    (line,) = [line.strip() for line in capsys.readouterr().out.splitlines() if "at paper size" in line]
    assert line.startswith(f"at paper size: {told['verdict']} ({told['effect']:+.4g} [{told['low']:+.4g}, ")
    assert f"n = {told['n']}; {len(told['trials'])} holds), recorded " in line
    assert recorded.COMMAND.replace("RUNG", "contexts").replace("NAME", "stages") in line


def test_evidence_of_a_claim_that_is_gone_is_left_out(made, evidence):
    text = made.payload().decode().replace("supervised.chosen-rises", "supervised.gone")
    (evidence / "contexts-stages.json").write_text(text, encoding="utf-8")
    assert "supervised.gone" not in recorded.packaged("contexts")
    assert "supervised.other-answers-rise" in recorded.packaged("contexts")


@pytest.mark.parametrize("rung", rungs.served())
def test_every_recording_that_comes_with_the_package_follows_from_its_numbers(rung):
    these, folder = rungs.experiments(rung), files("toyld").joinpath("evidence")
    paths = {p.name.removeprefix(f"{rung}-").removesuffix(".json"): p for p in folder.iterdir()}
    paths = {name: p for name, p in paths.items() if p.name == f"{rung}-{name}.json"}
    found = {name: recording.parse(p.read_bytes(), name=p.name) for name, p in paths.items()}
    assert recording.check(found, these.names()) == []
    ids = [id for one in found.values() for id in one.trials]
    assert len(ids) == len(set(ids)), "a claim that two experiments speak of: name its experiment"
    assert set(ids) <= set(rungs.mine(rung))
    for name, one in found.items():
        assert len(paths[name].read_bytes()) < 200_000
        assert (one.about["size"], one.about["seeds"], one.about["dirty"]) == (
            "paper",
            list(these.seeds("paper")),
            False,
        )
        assert ("data" in one.about) == (rung == "digits"), "what is made up reads no data"
        assert len(one.about["commit"]) == 40
        assert all(math.isfinite(t.effect.value) for t in entries(one) if t.effect is not None), name
