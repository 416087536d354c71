"""The verdict on real logs, to the published digits, and what must not change it: names, order, file layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from toyld.diagnosis import Move, Thresholds, Verdict, as_json, curves, diagnose, moves, verdict
from toyld.diagnosis.causes import CAUSES, make_run
from toyld.trajectory import concat, read, read_all, trajectory

# Run: verdict, evaluations, then change of chosen, of argmax, and the gap first and last, as published (nats).
AUTHORS: dict[str, tuple[str, int, tuple[str, str, str, str] | None]] = {
    "pythia410_baseline_sft_verify_argmax_bug": ("sft-normal", 40, ("59.6", "17.1", "90.4", "48.0")),
    "pythia410m_baseline_dpo_checkbug_5e7": ("squeezing", 137, ("-4.2", "20.4", "90.4", "115.1")),
    "pythia410_baseline_dpo_checkbug_5e7": ("squeezing", 40, ("3.4", "7.2", "90.4", "94.2")),
    "pythia410_baseline_dpo_checkbug": ("displacement", 40, ("-25.1", "0.0", "90.4", "115.6")),
    "prob_pythia410m_dpo": ("cannot-tell", 50, None),
    "verifyargmax_pythia1b_dpo_ep10_chosen": ("cannot-tell", 50, None),
}
FIXED = [name for name, (_, _, numbers) in AUTHORS.items() if numbers]
BUGGY = [name for name, (_, _, numbers) in AUTHORS.items() if not numbers]


@pytest.fixture(scope="module")
def found(data: Path) -> dict[str, Verdict]:
    """The verdict on each of the authors' released runs."""
    return {name: diagnose(read(data / "runs" / "authors" / name)) for name in AUTHORS}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_authors_runs_read_as_they_do(name: str, found: dict[str, Verdict]) -> None:
    kind, evaluations, _ = AUTHORS[name]
    assert (found[name].verdict, found[name].n_evaluations, found[name].n_examples) == (kind, evaluations, 500)


@pytest.mark.parametrize("name", FIXED)
def test_the_published_numbers_to_the_digit(name: str, found: dict[str, Verdict]) -> None:
    published, numbers = AUTHORS[name][2], found[name].numbers
    got = [numbers[key] for key in ("d_chosen", "d_argmax", "gap_first", "gap_last")]
    assert [f"{x:.1f}" for x in got if x is not None] == list(published or ())
    assert numbers["gap_last"] - numbers["gap_first"] == pytest.approx(
        numbers["d_argmax"] - numbers["d_chosen"], abs=4e-6
    )  # each rounded to six places


def test_shares_of_squeezed_examples_as_published(found: dict[str, Verdict]) -> None:
    end = {name: (found[name].share or {}).get("squeezing", 0.0) for name in FIXED}
    assert round(end["pythia410_baseline_dpo_checkbug_5e7"], 2) == 0.27
    assert round(end["pythia410_baseline_dpo_checkbug"], 2) == 0.40
    assert end["pythia410_baseline_sft_verify_argmax_bug"] == 0.0
    history = found["pythia410_baseline_dpo_checkbug"].history
    assert round(history[len(history) // 4]["share_squeezing"], 2) == 0.83
    assert found["pythia410m_baseline_dpo_checkbug_5e7"].share is None  # means only: no share, and no guess at one


@pytest.mark.parametrize("name", BUGGY)
def test_an_argmax_of_other_contexts_gives_no_verdict_but_what_can_be_said(
    name: str, found: dict[str, Verdict]
) -> None:
    one = found[name]
    (text,) = [finding["text"] for finding in one.findings if finding["code"] == "argmax-bug"]
    assert text
    assert "argmax_logp" in one.missing
    assert any("argmax" in reason for reason in one.reasons)
    assert (one.confidence, one.numbers["d_argmax"], one.numbers["gap_first"]) == (None, None, None)
    assert one.numbers["d_rejected"] is not None
    assert one.numbers["d_rejected"] < one.numbers["d_chosen"]


def test_interleaved_rows_are_dropped_and_said(data: Path, found: dict[str, Verdict]) -> None:
    name = "pythia410_baseline_dpo_checkbug"
    (text,) = [f["text"] for f in found[name].findings if f["code"] == "interleaved-rows"]
    assert all(str(row) in text for row in (32, 34, 36, 38, 40)), text
    run = read(data / "runs" / "authors" / name)
    array = np.load(data / "runs" / "authors" / name / "logp_npy_all_chosen.npy")
    chosen = run.logp.sel(probe="chosen", seed=0).values
    assert chosen.shape == (40, 500)
    assert any(np.array_equal(chosen, array[:, metric]) for metric in range(array.shape[1]))


@pytest.mark.parametrize("kind", ["authors", "trl"])
def test_renaming_every_file_and_folder_changes_no_verdict(kind: str, data: Path, tmp_path: Path) -> None:
    for i, source in enumerate(sorted((data / "runs" / kind).iterdir())):
        copy = tmp_path / f"{i} sft-healthy ünicode"
        if source.is_dir():
            copy.mkdir()
            for k, file in enumerate(sorted(source.iterdir(), reverse=True)):
                shutil.copy(file, copy / f"dpo-{k}.squeezing")
        else:
            shutil.copy(source, copy)
        before, after = ([as_json(diagnose(run), path="") for run in read_all(path)] for path in (source, copy))
        same = json.dumps(before, sort_keys=True).replace(source.name, copy.name)
        assert json.dumps(after, sort_keys=True) == same, source.name


def test_a_verdict_as_json_is_strict_json(found: dict[str, Verdict]) -> None:
    entry = as_json(found["pythia410_baseline_dpo_checkbug"], path="somewhere")
    again = json.loads(json.dumps(entry, allow_nan=False))
    assert again == entry
    assert again["path"] == "somewhere"
    assert set(again) > {
        "stage",
        "verdict",
        "confidence",
        "numbers",
        "intervals",
        "share",
        "n_examples",
        "n_evaluations",
    }
    assert set(again) > {"noise_floor", "history", "worst", "missing", "findings", "advice"}


# --- properties, on runs of known cause -------------------------------------------------------------------------------


def numbers_of(one: Verdict) -> tuple[Any, ...]:
    """All that no resample enters."""
    shares = [entry["share_squeezing"] for entry in one.history]
    return (one.verdict, one.numbers, one.share, shares, one.missing, one.findings)


@pytest.mark.parametrize("cause", CAUSES)
def test_the_order_of_the_examples_changes_nothing_but_the_bootstrap(cause: str) -> None:
    run = make_run(cause, seed=1)
    order = np.random.default_rng(0).permutation(run.sizes["example"])
    one, other = diagnose(run), diagnose(run.isel(example=order))
    assert one.numbers == pytest.approx(other.numbers, abs=2e-6, nan_ok=True)  # a sum in another order, rounded
    assert [one.verdict, one.share, one.worst, one.missing] == [other.verdict, other.share, other.worst, other.missing]
    for name, (low, high) in one.intervals.items():
        width = max(high - low, 1e-6)
        assert other.intervals[name] == pytest.approx((low, high), abs=0.25 * width), name


@pytest.mark.parametrize("seed", range(2))
def test_the_order_of_the_examples_of_a_real_run_too(seed: int, data: Path) -> None:
    run = read(data / "runs" / "authors" / "pythia410_baseline_dpo_checkbug")
    order = np.random.default_rng(seed).permutation(run.sizes["example"])
    one, other = diagnose(run), diagnose(run.isel(example=order))
    assert numbers_of(one) == numbers_of(other)
    # An evaluation whose interval ends at its floor may fall on either side of it.
    same = [a["verdict"] == b["verdict"] for a, b in zip(one.history, other.history, strict=True)]
    assert np.mean(same) >= 0.9, same


@pytest.mark.parametrize("cause", [c for c in CAUSES if c != "cannot-tell"])
def test_the_numbers_are_the_changes_of_the_table(cause: str) -> None:
    """Computed here a second time, from the table alone: a shifted or swapped column shows."""
    run = make_run(cause, seed=2)
    check_numbers(run)


def check_numbers(run: xr.Dataset) -> None:
    got = diagnose(run).numbers
    logp, top = run.logp.sel(seed=0), run.argmax_logp.sel(seed=0, probe="chosen")
    means = {f"d_{p}": float((logp.sel(probe=p)[-1] - logp.sel(probe=p)[0]).mean()) for p in run.probe.values}
    means["d_argmax"] = float((top[-1] - top[0]).mean())
    gap = (top - logp.sel(probe="chosen")).mean("example")
    means |= {"gap_first": float(gap[0]), "gap_last": float(gap[-1])}
    assert {key: got[key] for key in means} == pytest.approx(means, abs=1e-6)


@pytest.mark.parametrize("bug", ["shifted", "swapped"])
def test_a_planted_bug_in_the_curves_turns_the_numbers_red(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    def wrong(ds: xr.Dataset) -> curves.Curves:
        c = curves.curves(ds)
        if bug == "shifted":
            return replace(c, argmax=np.roll(c.argmax, 1, 0))
        return replace(c, logp={"chosen": c.logp["rejected"], "rejected": c.logp["chosen"]})

    run = make_run("squeezing", seed=0)
    check_numbers(run)
    monkeypatch.setattr(verdict, "curves", wrong)
    with pytest.raises(AssertionError):
        check_numbers(run)


def seeds(*runs: xr.Dataset) -> xr.Dataset:
    """One table of several runs, a seed each."""
    return concat([run.assign_coords(seed=np.array([i], np.int32)) for i, run in enumerate(runs)])


def test_seeds_are_averaged_so_that_copies_prove_nothing() -> None:
    one = make_run("squeezing", seed=0, n_examples=60)
    many = diagnose(seeds(one, one, one, one))
    alone = diagnose(one)
    assert (many.verdict, many.numbers, many.intervals, many.share) == (
        alone.verdict,
        alone.numbers,
        alone.intervals,
        alone.share,
    )


def test_intervals_of_several_seeds_cover_what_examples_vary() -> None:
    """Twenty examples whose true mean change is 0, five seeds that share them: 95 % intervals, not narrower ones."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        change = rng.normal(0.0, 3.0, 20)
        values = np.stack([np.full(20, -90.0), -90.0 + change])
        runs = [table(values + rng.normal(0.0, 0.01, values.shape), values / 2 + 1.0) for _ in range(5)]
        low, high = diagnose(seeds(*runs), thresholds=Thresholds(resamples=200)).intervals["d_chosen"]
        covered += low <= 0.0 <= high
    assert covered >= 84, "the percentile bootstrap of 20 covers .92; five standard errors below that"


def test_one_example_of_several_seeds_has_seeds_as_units() -> None:
    rng = np.random.default_rng(0)
    runs = [table([[-90.0], [-95.0 + rng.normal()]], [[-60.0], [-50.0 + rng.normal()]]) for _ in range(6)]
    found = diagnose(seeds(*runs))
    low, high = found.intervals["d_chosen"]
    assert found.verdict == "squeezing"
    assert low < found.numbers["d_chosen"] < high


def test_a_first_evaluation_that_is_missing_is_no_step_0() -> None:
    """Else a healthy run's first movement would read as a wrong reference."""
    for seed in range(5):
        run = make_run("healthy", seed=seed).copy(deep=True)
        run.logp[:, 0] = np.nan
        found = diagnose(run)
        assert found.verdict != "wrong-reference"
        assert "step 0" in found.missing


def test_argmax_from_a_later_evaluation_on_counts_from_there() -> None:
    chosen = np.linspace(-90.0, -96.0, 7)[:, None] + np.zeros(5)
    argmax = np.linspace(-60.0, -50.0, 7)[:, None] + np.zeros(5)
    argmax[0] = np.nan
    found = diagnose(table(chosen, argmax))
    assert found.verdict == "squeezing"
    assert found.numbers["d_chosen"] == pytest.approx(-5.0)
    assert "step 0" in found.missing
    argmax[0], argmax[-1] = -60.0, np.nan
    found = diagnose(table(chosen, argmax))
    assert (found.verdict, found.history[-2]["verdict"]) == ("cannot-tell", "squeezing")
    assert found.numbers["d_chosen"] == pytest.approx(-6.0)
    assert found.reasons == ["at the last evaluation chosen is known of 5 and argmax of 0 example(s)"]


def test_every_interval_has_the_level_asked_for() -> None:
    run = make_run("squeezing", seed=0)
    wide, narrow = (diagnose(run, thresholds=Thresholds(level=level)).intervals for level in (0.95, 0.5))
    assert wide.keys() == narrow.keys()
    for name in wide:
        assert wide[name][0] < narrow[name][0] < narrow[name][1] < wide[name][1], name


def test_means_near_a_boundary_are_less_sure() -> None:
    """Argmax up by 2.6 or by 9 nats where chosen falls by 10 and evaluations shake by half a nat."""
    rng, time = np.random.default_rng(0), np.linspace(0.0, 1.0, 20)[:, None]
    shake = 0.5 * rng.standard_normal((2, 20, 1)) * (time > 0) * (time < 1)
    near, far = (
        diagnose(table(-90.0 - 10.0 * time + shake[0], -60.0 + up * time + shake[1])).confidence for up in (2.6, 9.0)
    )
    assert near < 0.9 * far


def test_many_evaluations_of_examples_fit_into_memory() -> None:
    """Resampling all evaluations at once would take 30,000 × 600 × 8 bytes for each of three variables."""
    import tracemalloc

    time = np.linspace(0.0, 1.0, 30_000)[:, None]
    run = table(-90.0 - 10.0 * time * [1.0, 1.2], -60.0 + 9.0 * time * [1.0, 0.9])
    tracemalloc.start()
    found = diagnose(run, thresholds=Thresholds(resamples=600))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.verdict == "squeezing"
    assert peak < 3e8, f"{peak / 1e6:.0f} MB"


# --- what the curves leave out ----------------------------------------------------------------------------------------


def table(chosen: Any, argmax: Any = None, **rest: Any) -> xr.Dataset:
    """[evaluation, example] arrays as a table with the chosen probe alone."""
    values = {"logp": np.asarray(chosen, float)[None, :, None]}
    if argmax is not None:
        values["argmax_logp"] = np.asarray(argmax, float)[None, :, None]
    shape = values["logp"].shape
    names = [str(i) for i in range(shape[3])]
    return trajectory(values, step=np.arange(shape[1]), probe=["chosen"], example=names, **rest)


def test_one_impossible_cell_spoils_the_argmax() -> None:
    logp = np.full((3, 4), -9.0)
    top = np.full((3, 4), -5.0)
    assert curves.curves(table(logp, top)).argmax is not None
    top[1, 2] = -9.5
    c = curves.curves(table(logp, top))
    assert (c.argmax, c.mislabelled) == (None, pytest.approx(1 / 12))
    one = diagnose(table(logp, top))
    assert (one.verdict, one.findings[0]["code"]) == ("cannot-tell", "argmax-bug")


def test_evaluations_without_chosen_are_left_out_and_missing_examples_paired() -> None:
    logp = np.array([[-9.0, -5.0], [np.nan, np.nan], [-8.0, np.nan], [-6.0, -4.0]])
    top = np.array([[-4.0, -2.0], [-4.0, -2.0], [-4.0, np.nan], [-3.5, -1.5]])
    c = curves.curves(table(logp, top))
    assert c.step.tolist() == [0, 2, 3]
    one = diagnose(table(logp, top))
    assert one.numbers["d_chosen"] == 2.0  # mean of 3 and 1
    assert one.numbers["d_argmax"] == 0.5
    assert [entry["step"] for entry in one.history] == [0, 2, 3]


def test_noise_per_token_becomes_a_floor_per_response() -> None:
    values = {"logp": np.full((1, 2, 1, 2), -9.0), "n_tokens": np.array([[[10.0, 20.0]]])}
    run = trajectory(values, step=[0, 1], probe=["chosen"], example=["a", "b"], attrs={"noise_floor": 0.1})
    assert curves.curves(run).floor == pytest.approx([1.0, 2.0])


def test_what_is_missing_is_named_and_lowers_the_confidence() -> None:
    run = make_run("squeezing", seed=0)
    whole = diagnose(run)
    without = diagnose(run.sel(probe=["chosen"]))
    assert "rejected" in without.missing
    assert "rejected" not in whole.missing
    assert without.confidence < whole.confidence
    assert diagnose(run.drop_vars("argmax_logp")).verdict == "cannot-tell"


def test_where_means_and_examples_disagree_it_says_so_and_is_less_sure():
    """A fifth of the examples lose forty nats, argmax and all but little; the rest squeeze by two nats each."""
    few = np.arange(50) < 10
    chosen = np.stack([np.zeros(50), np.where(few, -40.0, -2.0)])
    argmax = np.stack([np.zeros(50), np.where(few, 0.5, 2.0)])
    values = {"logp": (-90.0 + chosen)[None, :, None], "argmax_logp": (-60.0 + argmax)[None, :, None]}
    names = [str(i) for i in range(50)]
    found = diagnose(trajectory(values, step=[0, 10], probe=["chosen"], example=names))
    assert found.verdict == "displacement"
    assert found.share["squeezing"] == 1.0
    assert found.reasons == [
        "means and examples disagree: 100% of the examples read squeezing by sign, while argmax counts as still in the "
        "means"
    ]
    alike = diagnose(trajectory({**values, "argmax_logp": values["argmax_logp"] * 0 - 60.0}, step=[0, 10],
                                probe=["chosen"], example=names))  # fmt: skip
    assert (alike.verdict, alike.reasons) == ("displacement", [])
    assert found.confidence < alike.confidence


@pytest.mark.parametrize("without", ["noise_floor", "n_tokens"])
def test_scoring_noise_of_unknown_size_is_no_wrong_reference(without: str) -> None:
    for seed in range(20):
        run = make_run("healthy", seed=seed)
        run = run.drop_vars("n_tokens") if without == "n_tokens" else run.drop_attrs().assign_attrs(
            {k: v for k, v in run.attrs.items() if k != "noise_floor"}
        )  # fmt: skip
        found = diagnose(run)
        assert found.verdict == "healthy"
        assert without in found.missing
        wrong = make_run("wrong-reference", seed=seed)
        wrong["ref_logp"] = wrong.ref_logp + 2.0  # another policy, in whose eyes all these responses are likelier
        assert diagnose(wrong).verdict == "wrong-reference"


def test_a_rejected_reference_alone_is_enough() -> None:
    run = make_run("healthy", seed=0).copy(deep=True)
    run.ref_logp.loc[{"probe": "rejected"}] = run.ref_logp.sel(probe="rejected") - 3.0
    assert diagnose(run).verdict == "wrong-reference"


def test_a_table_cut_at_its_beginning_has_no_step_0() -> None:
    for seed in range(5):
        found = diagnose(make_run("healthy", seed=seed).isel(step=slice(3, None)))
        assert found.verdict != "wrong-reference"
        assert "step 0" in found.missing


def test_what_is_nothing_for_chosen_is_nothing_for_argmax() -> None:
    """Chosen at −20 nats: its floor is .2; argmax at −.5 nats rises by .02, whatever the number of examples."""
    rng = np.random.default_rng(0)
    chosen = np.stack([np.full(40, -20.0), -20.0 + 0.01 * rng.standard_normal(40)])
    argmax = np.stack([np.full(40, -0.5), -0.48 + 0.001 * rng.standard_normal(40)])
    assert diagnose(table(chosen, argmax)).verdict == "not-learning"
    assert diagnose(table(chosen - 1.0, argmax - [[20.0], [0.0]])).verdict == "squeezing", "argmax from −20.5 to −.48"


def test_changes_of_chosen_and_argmax_are_of_the_same_examples() -> None:
    """Argmax is known of the first half, where chosen falls by 2; the others, where it rises by 30, do not count."""
    half = np.arange(20) < 10
    chosen = np.stack([np.full(20, -90.0), np.where(half, -92.0, -60.0)])
    argmax = np.stack([np.full(20, -60.0), np.full(20, -50.0)])
    argmax[:, ~half] = np.nan
    found = diagnose(table(chosen, argmax))
    assert (found.verdict, found.numbers["d_chosen"], found.numbers["d_argmax"]) == ("squeezing", -2.0, 10.0)
    assert found.numbers["gap_last"] - found.numbers["gap_first"] == 12.0
    assert (found.share["squeezing"], found.share["cannot-tell"]) == (0.5, 0.5)


def test_resamples_are_judged_with_the_interval_of_the_run() -> None:
    """An interval that reaches far up only; mirrored, it would call every one of these falls clear."""
    move = {
        "chosen": Move(*(np.array([0.0, x]) for x in (-10.0, -10.5, -0.5, 0.9))),
        "argmax": Move(*(np.array([0.0, x]) for x in (0.0, -0.1, 0.1, 0.9))),
        "gap": Move(*(np.array([0.0, x]) for x in (10.0, 0.5, 10.5, 0.9))),
    }
    drawn = {"chosen": np.linspace(-12.0, -9.0, 60), "argmax": np.zeros(60), "gap": np.full(60, 10.0)}
    run = moves.Moves({}, move, drawn, None)
    reaches = -0.9 - (-0.5 + 10.0)  # a mean below this keeps its whole interval below the floor
    assert moves.agreement(run, "displacement", 60.0) == np.mean(drawn["chosen"] < reaches)


def test_one_outlier_is_named_and_lowers_the_confidence() -> None:
    rng = np.random.default_rng(0)
    chosen = np.stack([np.full(40, -90.0), -110.0 + rng.standard_normal(40)])
    argmax = np.stack([np.full(40, -60.0), -40.0 + rng.standard_normal(40)])
    clear = diagnose(table(chosen, argmax))
    chosen[:, 0], argmax[:, 0] = (-600.0, -20.0), (-590.0, -15.0)
    odd = diagnose(table(chosen, argmax))
    assert (clear.verdict, clear.reasons) == ("squeezing", [])
    assert any("chosen changed by" in reason and "does not tell from 0" in reason for reason in odd.reasons)
    assert odd.confidence < 0.75 * clear.confidence


def test_an_interval_that_excludes_0_and_reaches_under_the_floor_is_told_as_that() -> None:
    move = {"chosen": Move(*(np.array([0.0, x]) for x in (-1.42, -1.99, -0.886, 1.1)))}
    (reason,) = verdict._unclear(moves.Moves({}, move, {}, None))
    assert reason.endswith("[-1.99, -0.886] does not tell from a change of under 1.1, which counts as still")
    move = {"chosen": Move(*(np.array([0.0, x]) for x in (-1.42, -1.99, 0.886, 1.1)))}
    (reason,) = verdict._unclear(moves.Moves({}, move, {}, None))
    assert reason.endswith("[-1.99, +0.886] does not tell from 0")


def test_few_evaluations_do_not_know_their_jitter_and_say_so() -> None:
    few, many = (diagnose(make_run("healthy", seed=0, n_evaluations=n)) for n in (7, 8))
    assert ("jitter" in few.missing, "jitter" in many.missing) == (True, False)
    assert few.confidence < many.confidence


def test_scoring_noise_averages_out_over_examples() -> None:
    """Half a nat a token on sixty tokens is thirty nats for one response, and three for a mean of a hundred."""
    rng = np.random.default_rng(0)
    values = {
        "logp": -90.0 + np.array([[0.0], [-20.0]]) + rng.standard_normal((2, 100)),
        "argmax_logp": -60.0 + np.array([[0.0], [20.0]]) + rng.standard_normal((2, 100)),
    }
    values = {name: a[None, :, None] for name, a in values.items()}
    names = [str(i) for i in range(100)]
    run = trajectory({**values, "n_tokens": np.full((1, 1, 100), 60.0)}, step=[0, 10], probe=["chosen"], example=names,
                     attrs={"noise_floor": 0.5})  # fmt: skip
    found = diagnose(run)
    assert found.verdict == "squeezing"
    assert found.share["not-learning"] == 1.0, "of single examples it tells nothing"
