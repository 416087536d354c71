"""The rung `llm`: what is recorded of run folders follows from its numbers and is what the board says."""

import doctest
import inspect
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from toyld import claims, scoreboard
from toyld.checked import BadInput
from toyld.claims import from_runs, numbers, real_runs, recording, rungs
from toyld.claims.effects import Sample, peaked, ranked
from toyld.claims.runs import Trial, evaluate_on
from toyld.diagnosis.resample import holm
from toyld.llm.plan import RECIPES, Plan
from toyld.trajectory import RunFolder, save, trajectory

COMMIT, SMALL = "0" * 40, RECIPES["small"]
N, M = 24, 11
KINDS = ("chosen", "rejected", "chosen_gptsemantic", "reject_gptsemantic", "irr_train", "random_permute")
UPDATES = {"baseline": 40, "extend-updates": 40, "extend-passes": 80, "on-policy": 40}
# Changes over a stage, nats, in the order of KINDS and of the argmax.
MOVES = {
    "sft": ((30, 12, 8, 4, 5, 7), 9),
    "dpo": ((-4, -30, -9, -12, -5, -8), 6),
}


def table(rng, stage, arm, model, seed=7):
    """One stage of one arm as `toyld run llm` writes it: one seed, prompts as examples, jittering evaluations."""
    moves, top = MOVES[stage]
    moves = np.array(moves, float) * (0.8 if arm == "extend-passes" else 1.0)
    if stage == "sft" and arm.startswith("extend"):
        moves[1] = 25.0
    share = np.linspace(0.0, 1.0, M)[None, :, None, None]

    def noise(kinds):
        some = rng.normal(0.0, 1.0, (1, M, kinds, N)) + rng.normal(0.0, 0.1, (1, M, kinds, 1))
        return np.concatenate([np.zeros_like(some[:, :1]), some[:, 1:]], 1)  # arms of one model start alike

    level = np.random.default_rng(9).normal(-150.0, 20.0, (1, 1, len(KINDS), N))
    if arm == "on-policy":
        level[:, :, 1] += 5.0  # other texts
    spread = moves[None, None, :, None] * rng.normal(1.0, 0.2, (1, 1, len(KINDS), N))
    logp = level + share * spread + noise(len(KINDS))
    argmax = np.full_like(logp, np.nan)
    argmax[:, :, 0] = -25.0 + share[:, :, 0] * top + noise(1)[:, :, 0] * 0.2
    asked = ("f" if arm == "on-policy" else "e") * 16
    attrs = {"experiment": "stages", "model": model, "probing_set": asked, "noise_floor": 1e-7}
    attrs |= {} if stage == "sft" else {"sft_updates": UPDATES[arm], "objective": "dpo"}
    attrs |= {} if stage == "sft" else {"sft_passes": UPDATES[arm] / (2.0 if arm.startswith("extend") else 1.0)}
    measured = {"logp": logp, "argmax_logp": argmax, "n_tokens": np.full((1, len(KINDS), N), 60.0)}
    return trajectory(
        measured, step=range(0, 4 * M, 4), probe=KINDS, seed=[seed], stage=stage, arm=arm,
        example=[f"e{i}" for i in range(N)], world="llm", attrs=attrs,
    )  # fmt: skip


def folder(path, *, model="stories", arms=tuple(UPDATES), seed=0, recipe="small"):
    """A run folder of `toyld run llm` with the tables of some arms, each in one file."""
    rng = np.random.default_rng(seed)
    plan = Plan(str(path.parent / model), str(path.parent / "pairs.jsonl"), arms=arms,
                kinds=KINDS, **{**RECIPES[recipe], "seed": 7})  # fmt: skip
    prints = {"weights": "7c0d4dff40d1aaba", "rows": "6" * 64, "probing_set": "e" * 64}
    config = plan.config() | {"fingerprints": prints}
    RunFolder.create(path, command="toyld run llm", config=config, stages=plan.stages)
    for stage, names in (("sft", plan.taught), ("dpo", arms)):
        for arm in names:
            (path / f"{stage}-{arm}").mkdir()
            (path / "models" / f"{stage}-{arm}").mkdir(parents=True)
            save(table(rng, stage, arm, model), path / f"{stage}-{arm}" / "eval-00000000.nc")
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two finished runs, of two models."""
    root = tmp_path_factory.mktemp("runs")
    return {"a": folder(root / "a"), "b": folder(root / "b", model="base", arms=("baseline", "extend-passes"), seed=1)}


@pytest.fixture(scope="module")
def made(folders):
    """Their recordings."""
    return from_runs.make(folders, commit=COMMIT)


@pytest.fixture
def evidence(monkeypatch, tmp_path):
    """A package whose evidence lies in a temporary folder."""
    (tmp_path / "evidence").mkdir()
    monkeypatch.setattr(real_runs, "files", lambda _: tmp_path)
    real_runs.evidence.cache_clear()
    yield tmp_path / "evidence"
    real_runs.evidence.cache_clear()


@pytest.fixture
def clean(monkeypatch):
    """As if the tree were clean."""
    monkeypatch.setattr(from_runs, "checkout", lambda: {"commit": COMMIT, "dirty": False})


def written(made, folder):
    for name, one in made.items():
        (folder / f"llm-{name}.json").write_bytes(one.payload())


def entries(found):
    return [(name, id, t) for name, one in found.items() for id, ts in one.trials.items() for t in ts]


@pytest.mark.parametrize("module", [from_runs, real_runs])
def test_examples_of_docstrings_run(module):
    failed, tried = doctest.testmod(module)
    assert failed == 0
    assert tried or module is real_runs


# -- from folders


def test_the_arms_of_extended_sft_are_one_arm_to_the_claims(folders):
    found = from_runs.tables(folders["a"])
    assert len(found) == 3 + 4
    both = [found[f"a dpo extend-{clock}"].attrs for clock in ("updates", "passes")]
    assert [(x["arm"], x["sft_updates"], x["sft_passes"]) for x in both] == [("extend", 40, 20), ("extend", 80, 40)]
    # Its probes differ in the rejected answers alone, so that the others can be compared prompt by prompt.
    assert found["a dpo on-policy"].attrs["probing_set"] == found["a dpo baseline"].attrs["probing_set"] == "e" * 16
    other = found["a dpo on-policy"].assign_attrs(probing_set="f" * 16)
    assert from_runs._same_but_rejected(other, found["a dpo baseline"])
    other["logp"] = other.logp + 0.01 * (other.probe == "chosen")
    assert not from_runs._same_but_rejected(other, found["a dpo baseline"])
    assert SMALL["optimizer"] == "rmsprop"  # which divides the push out
    pushes = {name: ds.attrs["first_push"] for name, ds in found.items() if "first_push" in ds.attrs}
    assert pushes == {"a sft baseline": SMALL["sft_lr"], "a dpo baseline": SMALL["lr"]}
    assert from_runs._first_push(
        "dpo", {"sft_lr": 1.0, "lr": 0.4, "optimizer": "sgd", "parameters": {}}
    ) == pytest.approx(0.02)


def test_stages_that_do_not_push_alike_are_not_compared(folders, tmp_path):
    one = rungs.mine("llm")["preference.argmax-rises-faster-than-sft"]
    small = evaluate_on(one, from_runs.tables(folders["a"]))
    assert f"the stages do not push alike: {SMALL['lr']:g} and {SMALL['sft_lr']:g} at first" in small.why
    paper = evaluate_on(one, from_runs.tables(folder(tmp_path / "p", recipe="paper", arms=("baseline",))))
    (trial,) = [t for t in paper.trials if t.effect is not None]
    assert trial.effect.value == pytest.approx(6.0 - 30.0, abs=2.0)


def test_every_claim_of_the_rung_is_tried_on_every_run_by_the_claims_own_means(folders, made):
    assert set(made) == {"a", "b", "a+b"}
    every = {name: from_runs.tables(path) for name, path in folders.items()}
    ids = {id for id, one in rungs.mine("llm").items() if one.experiment == "stages"}
    assert {id for id in ids if id in made["a"].trials or id in made["a+b"].trials} == ids
    for id in ("supervised.chosen-rises", "preference.observed-fall", "preference.extend-slows-others-at-equal-passes"):
        now = [t for t in evaluate_on(rungs.mine("llm")[id], every["a"]).trials if t.effect is not None]
        for trial, kept in zip(now, made["a"].trials[id], strict=True):
            assert trial.runs == kept.runs
            for name in ("value", "low", "high"):
                assert getattr(kept.effect, name) == pytest.approx(getattr(trial.effect, name), rel=1e-3), (id, name)
    (all_of_them,) = made["a+b"].trials["supervised.answers-everywhere"]
    assert set(all_of_them.runs) == {*every["a"], *every["b"]}
    pairs = [t.runs for t in made["a"].trials["preference.sampled-negatives-spare-chosen"]]
    assert pairs == [("a dpo on-policy", "a dpo baseline")]


def test_what_speaks_of_two_runs_has_a_file_of_its_own(tmp_path):
    """SFT of two lengths, in two folders, of one model on one probing set."""
    two = {name: folder(tmp_path / name, arms=("baseline",), seed=i) for i, name in enumerate(("long", "short"))}
    for stage in ("sft", "dpo"):
        path = two["long"] / f"{stage}-baseline" / "eval-00000000.nc"
        longer = table(np.random.default_rng(0), stage, "baseline", "stories").assign_attrs(sft_updates=80)
        save(longer, path)
    found = from_runs.make(two, commit=COMMIT)
    (trial,) = found["long+short"].trials["preference.longer-sft-squeezes-more"]
    assert trial.runs == ("long dpo baseline", "short dpo baseline")
    assert trial.effect.n == N
    assert found["long"].trials["preference.longer-sft-squeezes-more"][0].effect is None


def test_a_recording_says_how_its_run_was_made(folders, made):
    about = json.loads(made["a"].payload())
    for key in ("command", "commit", "date", "hardware", "device_seconds", "versions", "settings", "noise_floor"):
        assert about[key] is not None, key
    assert about["data"] == {"pairs.jsonl": "6" * 64}
    assert about["model"] == {"name": "stories", "weights": "7c0d4dff40d1aaba"}
    assert (about["seeds"], about["examples"], about["dirty"]) == ([7], N, False)
    assert about["settings"]["warmup"] == RECIPES["small"]["warmup"]
    flags = set(re.findall(r"--([a-z-]+)", about["command"]))
    from toyld.cli_run import llm

    known = {name.replace("_", "-") for name in inspect.signature(llm).parameters}
    assert {"model", "data", "arms", "sft-lr", "seed"} <= flags <= known, "the command must be one that runs"
    assert str(folders["a"].parent) not in made["a"].payload().decode()
    assert made["a+b"].about["command"].count("toyld run llm") == 2


def test_an_experiments_tables_are_recorded_by_seed(tmp_path, made, monkeypatch):
    """As `toyld.llm.experiments.write` leaves them: a file a table, seeds as units, no run.json."""
    rng, path = np.random.default_rng(2), tmp_path / "made_up"
    path.mkdir()
    for arm, spared in (("plain", 0.0), ("centred", 4.0), ("plain-half", 0.0)):
        share = np.linspace(0.0, 1.0, 6)[None, :, None, None]
        fall = np.array([-6.0, -36.0, -8.0 + spared])[None, None, :, None]
        logp = -90.0 + share * fall + rng.normal(0.0, 0.3, (9, 6, 3, 2))
        ds = trajectory(
            {"logp": logp, "argmax_logp": logp / 3.0}, step=range(6), probe=["chosen", "rejected", "test_chosen"],
            seed=range(9), stage="preference", arm=arm, example=["a", "b"], world="llm",
            attrs={"experiment": "made_up", "kernel": "layers", "language": "network sgd", "model": "stories"},
        )  # fmt: skip
        save(ds, path / f"made-up-sgd-layers-{arm}.nc")
    one = "test.spares-untrained"

    def spares(ds, control):
        return ranked([(x := a - b)[:, -1] - x[:, 0] for a, b in [(means(ds), means(control))]])

    def means(ds):
        return ds.logp.sel(probe="test_chosen").mean("example").values

    def premises(ds, control):
        return None if (ds.attrs["arm"], control.attrs["arm"]) == ("centred", "plain") else "other arms"

    like = rungs.mine("llm")["preference.longer-sft-squeezes-more"]
    ours = replace(like, id=one, premises=premises, check=spares, experiment="made_up", rungs=("llm",))
    monkeypatch.setitem(claims.registry, one, ours)
    found = from_runs.make({"made_up": path}, commit=COMMIT, others=made)
    assert set(found) == {"a", "b", "a+b", "made_up"}
    about, (trial,) = found["made_up"].about, found["made_up"].trials[one]
    assert trial.runs == ("made_up made-up-sgd-layers-centred", "made_up made-up-sgd-layers-plain")
    assert (trial.effect.n, trial.verdict, about["seeds"]) == (9, "holds", list(range(9)))
    assert "write('made_up', 'FOLDER')" in about["command"]
    assert not {id for id, c in rungs.mine("llm").items() if c.experiment == "stages"} & set(found["made_up"].trials)
    (written,) = json.loads(found["made_up"].payload())["results"][one]["trials"]
    assert ranked([np.array(x) for x in written["per_seed"]]).p == pytest.approx(written["p"], rel=1e-5)
    assert recording.check(found, None) == []
    assert recording.parse(found["made_up"].payload()).payload() == found["made_up"].payload()


# -- the numbers of a file


def test_a_file_is_read_as_it_was_written_and_follows_from_its_numbers(made):
    for name, one in made.items():
        payload = one.payload()
        assert len(payload) < 200_000
        assert recording.parse(payload).payload() == payload, name
    assert recording.check(made, None) == []


def test_effects_can_be_computed_again_from_a_file_by_hand(made):
    """Student's t of the examples' mean with the evaluations' jitter; the compound ones with `ranked` and `peaked`."""
    whole, seen = json.loads(made["a"].payload()), set()
    for id, result in whole["results"].items():
        for trial in result["trials"]:
            if trial["rank"] is None:
                again = peaked([claims.effects.Curve(np.array(x, float)) for x in trial["per_example"]])
            else:
                parts = [np.array(part, float) for part in trial["per_example"]]
                shared = [(sd**2, df) for sd, df in trial["shared"]]
                again = ranked([Sample(x, *s) for x, s in zip(parts, shared, strict=True)], trial["rank"])
            for name, key in (("value", "effect"), ("low", "low"), ("high", "high"), ("p", "p"), ("below", "p_below")):
                assert trial[key] == pytest.approx(getattr(again, name), rel=1e-5, abs=1e-12), (id, key)
            seen.add((trial["rank"], len(trial["per_example"]) > 1))
            if trial["rank"] == 1 and len(parts) == 1:
                (x,), ((variance, df),) = parts, shared
                own = x.var(ddof=1) / len(x)
                t, nu = x.mean() / (own + variance) ** 0.5, (own + variance) ** 2
                nu /= own**2 / (len(x) - 1) + variance**2 / df
                assert trial["p"] == pytest.approx(stats.t.sf(t, nu), rel=1e-4)
    assert seen >= {(1, False), (1, True), (2, True), (None, True)}


def test_verdicts_are_holms_over_all_files(made):
    found = entries(made)
    p = np.array([np.nan if t.effect is None else t.effect.two_sided for _, _, t in found])
    sure = holm(p) <= 0.05
    for (name, id, trial), certain in zip(found, sure, strict=True):
        if trial.effect is not None:
            assert (trial.verdict in ("holds", "refuted")) == certain, (name, id)
    assert {t.verdict for _, _, t in found} == {"holds", "refuted", "undecided", "not applicable"}


def test_a_recording_beside_others_is_of_a_larger_family():
    sure, rest = (claims.Effect(1.0, 0.5, 1.5, 9, p) for p in (0.004, 0.4))
    trials = {f"c{i}": (Trial(("r",), rest if i else sure, verdict="holds"),) for i in range(5)}
    alone, both = (from_runs._decided(dict.fromkeys(names, recording.Recording({}, trials))) for names in ("a", "ab"))
    assert (alone["a"].trials["c0"][0].verdict, both["a"].trials["c0"][0].verdict) == ("holds", "undecided")


@pytest.mark.parametrize("share", [0.9, 0.75, 0.6])
def test_where_numbers_are_too_many_the_largest_effects_keep_their_moments(made, monkeypatch, share):
    monkeypatch.setattr(from_runs, "LARGEST", int(share * len(made["a"].payload())))
    less = from_runs._decided({"a": from_runs._fitting(made["a"].about, made["a"].trials)})
    assert recording.check(less, None) == []
    payload = less["a"].payload()
    assert 0.85 * from_runs.LARGEST < len(payload) <= from_runs.LARGEST
    assert recording.parse(payload).payload() == payload
    few, said = {}, less["a"].about["numbers"]
    assert said.startswith("4 digits")
    for id, trials in less["a"].trials.items():
        for trial, full in zip(trials, made["a"].trials.get(id, []), strict=False):
            if trial.effect is None or trial.runs != full.runs:
                continue
            few.setdefault(numbers.count(trial.effect) == 0, []).append(numbers.count(full.effect))
            for name in ("value", "low", "high"):
                assert getattr(trial.effect, name) == pytest.approx(getattr(full.effect, name), rel=5e-3, abs=2e-3), id
    if share < 0.9:
        assert min(few[True]) > max(few.get(False, [0])), "the largest go first"


def test_a_recording_that_cannot_fit_is_refused(made, monkeypatch):
    monkeypatch.setattr(from_runs, "LARGEST", 1000)
    with pytest.raises(BadInput, match=r"expected a recording below 1,000 bytes, got .*; record fewer arms"):
        from_runs._fitting(made["b"].about, made["b"].trials)


WRONG = [
    ("a number of an example", "margin-grows, .* from its numbers"),
    ("a shared deviation", "margin-grows, .*: low recorded"),
    ("degrees of freedom", "margin-grows, .*: low recorded"),
    ("a verdict", "margin-grows: verdicts that do not follow"),
    ("a family", "expected its trials in the family of its rung"),
]


@pytest.mark.parametrize(("what", "word"), WRONG)
def test_what_does_not_follow_is_found(made, what, word):
    whole = json.loads(made["a"].payload())
    result = whole["results"]["preference.margin-grows"]
    (trial,) = result["trials"]
    if what == "a number of an example":
        trial["per_example"][0][3] += 0.5
    elif what == "a shared deviation":
        trial["shared"][0][0] = numbers.short(1.5 * trial["shared"][0][0])
    elif what == "degrees of freedom":
        trial["shared"][0][1] = numbers.short(0.2 * trial["shared"][0][1])
    elif what == "a verdict":
        trial["verdict"] = result["verdict"] = "undecided"
    else:
        whole["family"] = "experiment"
    found = recording.check({**made, "a": recording.parse(json.dumps(whole).encode())}, None)
    assert any(re.search(word, line) for line in found), found


def test_numbers_of_other_prompts_than_were_probed_are_refused(made):
    whole = json.loads(made["a"].payload())
    whole["examples"] = N - 1
    with pytest.raises(BadInput, match=f"llm-a.json: .* got numbers of other than {N - 1} examples; record it again"):
        recording.parse(json.dumps(whole).encode(), name="llm-a.json")


# -- writing it


def test_recordings_are_written_beside_others_and_all_are_one_family(folders, clean, tmp_path):
    scoreboard.record_llm([folders["a"], folders["b"]], tmp_path, hardware="one abacus", seconds={"a": 12.5})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llm-a+b.json", "llm-a.json", "llm-b.json"]
    first = {p.stem[4:]: recording.parse(p.read_bytes()) for p in tmp_path.iterdir()}
    assert (first["a"].about["hardware"], first["a"].about["device_seconds"]) == ("one abacus", 12.5)
    third = tmp_path / "third" / "c"
    third.parent.mkdir()
    scoreboard.record_llm(folder(third, arms=("baseline",), seed=3), tmp_path)
    found = {p.stem[4:]: recording.parse(p.read_bytes()) for p in tmp_path.glob("llm-*.json")}
    assert set(found) == {"a", "b", "a+b", "c"}
    assert recording.check(found, None) == []
    assert found["a"].about == first["a"].about
    with pytest.raises(BadInput, match=r"expected a and b recorded together, got a alone; .* remove llm-a\+b.json"):
        scoreboard.record_llm([folders["a"]], tmp_path)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("dirty", "expected the code of a commit for the record to name, got changes that are not committed"),
        (
            "unfinished",
            "u: expected a finished run, got none of models/dpo-baseline; go on with it by --resume",
        ),
        ("no folder", "expected a folder that is there"),
        ("no run", "expected a run folder with a run.json, got nothing"),
        ("another command", "toyld run tiny"),
        ("two of one name", "expected run folders of different names"),
        ("none", "expected at least one run folder, got none"),
    ],
)
def test_what_cannot_be_recorded_is_one_clear_line(folders, clean, monkeypatch, tmp_path, what, line):
    these, out = [folders["b"]], tmp_path / "out"
    if what != "no folder":
        out.mkdir()
    if what == "dirty":
        monkeypatch.setattr(from_runs, "checkout", lambda: {"commit": COMMIT, "dirty": True})
    elif what == "unfinished":
        these = [folder(tmp_path / "u", arms=("baseline",))]
        (these[0] / "models" / "dpo-baseline").rmdir()
    elif what == "no run":
        these = [tmp_path / "nothing"]
    elif what == "another command":
        RunFolder.create(tmp_path / "t", command="toyld run tiny", config={}, stages=["sft"])
        these = [tmp_path / "t"]
    elif what == "two of one name":
        these = these * 2
    elif what == "none":
        these = []
    with pytest.raises(BadInput) as bad:
        scoreboard.record_llm(these, out)
    assert line in str(bad.value)
    assert str(bad.value).isprintable()
    assert what == "no folder" or list(out.iterdir()) == []


# -- the rung


def test_the_board_has_the_recorded_cells(made, evidence):
    written(made, evidence)
    rows = list(scoreboard.score(claims.every().values(), rung="llm"))
    assert {row["id"] for row in rows} == set(rungs.mine("llm"))
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    cells = {row["id"]: row["cells"]["llm"] for row in rows}
    one = cells["preference.margin-grows"]
    assert (one["verdict"], len(one["runs"]), one["n"]) == ("holds", 2, N)
    assert set(one["recorded"]) == {"date", "hardware", "command", "commit"}
    assert "paper" not in one
    assert scoreboard.words("trend", one).endswith("n = 24, 2 runs, recorded)")
    assert cells["supervised.untaught-rise-less"]["verdict"] == "not applicable"
    assert cells["supervised.untaught-rise-less"]["why"] == "not measured: irr_test (2)"
    shown = claims.describe(replace(rungs.mine("llm")["preference.margin-grows"], rungs=("llm",)))
    assert "a dpo baseline: +2" in shown
    assert f"at commit {COMMIT}: toyld run llm --model" in shown


def test_a_claim_that_does_not_come_out_as_expected_is_a_surprise(made, evidence, monkeypatch, capsys):
    from toyld.cli import claims as command

    written(made, evidence)
    id = "preference.margin-grows"
    for expect, code in (("holds", 0), ("refuted", 1)):
        why = {"llm": (expect, "as these made-up runs must")}
        other = replace(rungs.mine("llm")[id], elsewhere=why, rungs=("llm",))
        monkeypatch.setitem(claims.registry, id, other)
        assert command((id,), rung="llm") == code
    assert f"{id} at rung llm: expected refuted, got holds" in capsys.readouterr().err


def test_without_recordings_nothing_is_run_and_nothing_is_red(evidence):
    from toyld.cli import claims as command

    assert command(("supervised", "preference"), rung="llm") == 0
    rows = list(scoreboard.score(claims.every().values(), rung="llm"))
    assert {row["cells"]["llm"]["verdict"] for row in rows} == {"not run"}
    assert {line.style for line in scoreboard.table(rows).rows} == {None}
    assert real_runs.expectations() == "nothing recorded"
    shown = claims.describe(replace(rungs.mine("llm")["preference.margin-grows"], rungs=("llm",)))
    assert "nothing recorded of a real language model" in shown


def test_a_damaged_file_is_one_clear_line(made, evidence, capsys):
    from toyld.cli import claims as command
    from toyld.cli import guard

    (evidence / "llm-a.json").write_bytes(made["a"].payload()[:4000])
    assert guard(lambda: command(("supervised",), rung="llm")) == 2
    err = capsys.readouterr().err
    assert err == "toyld: llm-a.json: expected a recording of schema 1, got broken JSON; record it again\n"


def test_expectations_are_told_in_the_words_of_elsewhere(made):
    told = real_runs.expectations(made)
    every = real_runs.outcomes(made)
    assert all((f"\n{id}: " in f"\n{told}") == bool(result.trials) for id, result in every.items())
    for id, result in every.items():
        if not result.trials:
            continue
        assert f"{id}: {result.verdict}" in told
        assert f'"llm": ("{result.verdict}", "' in told
        assert (f"{id}: {result.verdict}  <- expected" in told) == (not result.as_expected)
    line = next(line for line in told.splitlines() if "in a dpo on-policy against a dpo baseline" in line)
    assert eval(f"{{{line.strip()}}}")["llm"][0] == "open"
    # Open in both worlds below: here the verdict would be the claim's own.
    holds = real_runs._first(rungs.mine("llm")["preference.extend-slows-argmax-early"], "holds")
    assert holds == "holds"


def test_the_recordings_that_come_with_the_package_follow_from_their_numbers():
    found = real_runs.evidence()
    if not found:
        pytest.skip("no run of a real language model is recorded yet")
    assert recording.check(found, None) == []
    for name, one in found.items():
        assert len(one.payload()) < 200_000, name
        assert one.about["dirty"] is False
        assert len(one.about["commit"]) == 40
        assert set(one.trials) <= set(rungs.mine("llm")), name
        assert all(len(sha) == 64 for sha in one.about.get("data", {}).values())
        assert all(t.effect is None or math.isfinite(t.effect.value) for ts in one.trials.values() for t in ts), name
