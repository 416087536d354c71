"""Sweeps: the same numbers whoever computes them, and those of single runs."""

import re
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from scipy import stats

from toyld import contexts, objectives
from toyld.checked import BadInput, TrajectoryError
from toyld.contexts import command, languages, predict
from toyld.contexts import sweep as module
from toyld.contexts.sweep import AXES, OUTCOMES, TERMS, Grid, outcomes, run_chunk, sweep
from toyld.report.sweeps import print_summary, summary
from toyld.trajectory import at_margin

SMALL = {"concepts": 4, "prompts": 3, "length": 4, "function_words": 3}
GRID = Grid(
    common=(0.0, 1.5), temperature=(1.0, 8.0), beta=(0.1, 0.2), lr=(6.0, 9.0), sft=(3, 8), seeds=(1000, 1001),
    world=SMALL, sft_lr=0.3, steps=12, marks=6, margin=8.0,
)  # fmt: skip
SIZE = 9  # chunks that cut through the runs of a seed


@pytest.fixture(scope="module")
def table():
    return sweep(GRID, size=SIZE)


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, column in ours.items():
        np.testing.assert_array_equal(column, theirs[name], err_msg=name)


# --- executors ------------------------------------------------------------------------------------------------------


def test_threads_give_the_same_bits(table):
    with ThreadPoolExecutor(3) as pool:
        assert_same(sweep(GRID, executor=pool, size=SIZE), table)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run
def test_processes_give_the_same_bits(table):
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert_same(sweep(GRID, executor=pool, size=SIZE), table)


def test_a_cluster_gives_the_same_bits(table):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None) as client,
        client.get_executor() as pool,
    ):
        assert_same(sweep(GRID, executor=pool, size=SIZE), table)


class Backwards(Executor):
    """Computes nothing before it has everything, then the last first; remembers what it was given."""

    def __init__(self, wanted):
        self.wanted, self.held = wanted, []

    def submit(self, function, /, *arguments):
        self.held.append((function, arguments, Future()))
        if len(self.held) == self.wanted:
            for function_, arguments_, future in reversed(self.held):
                future.set_result(function_(*arguments_))
        return self.held[-1][2]


def test_rows_come_in_the_grids_order_whatever_comes_first(table):
    chunks = GRID.chunks(SIZE)
    pool, kept = Backwards(len(chunks)), []
    assert_same(sweep(GRID, executor=pool, size=SIZE, keep=lambda i, _: kept.append(i)), table)
    assert sorted(kept) == list(range(len(chunks)))
    rows = [
        (c.temperature, common, sft, beta, lr, seed) for c in chunks for seed, common, sft, beta, lr in c.conditions
    ]
    assert rows == list(zip(*(table[name].tolist() for name in AXES), strict=True))
    assert len(set(rows)) == len(rows) == GRID.runs == 64


def test_a_chunk_that_fails_stops_the_sweep(monkeypatch):
    calls = []

    def broken(chunk):
        time.sleep(0.02 * len(calls))
        calls.append(chunk)
        raise ArithmeticError(chunk.temperature)

    monkeypatch.setattr(module, "run_chunk", broken)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ArithmeticError, match=r"1\.0"):
        sweep(GRID, executor=pool, size=1)
    assert len(calls) < GRID.runs / 2, "the others were not called off"


# --- numbers --------------------------------------------------------------------------------------------------------


def one_by_one(temperature, common, sft, beta, lr, seed):
    """A run by itself: (world, policy before DPO, DPO)."""
    kernel = {**languages.KERNEL, "common": common}
    world = languages.facts(seeds=[seed], temperature=temperature, kernel=kernel, **SMALL)
    start = contexts.train(world, objectives.get("sft"), lr=GRID.sft_lr, steps=sft).state
    marks = np.linspace(0, 12, 7).round().astype(int)
    dpo = objectives.get("dpo", beta=beta)
    return world, start, contexts.train(world, dpo, lr=lr, steps=12, state=start, rejected="rejected", at=marks)


def test_every_run_is_that_run_alone(table):
    for i in range(0, GRID.runs, 7):
        world, start, run = one_by_one(*(table[name][i] for name in AXES))
        ds = run.table("dpo", "baseline")
        change = {
            kind: float((ds.logp.sel(probe=kind)[0, -1] - ds.logp.sel(probe=kind)[0, 0]).mean())
            for kind in module.KINDS
        }
        top = ds.argmax_logp.sel(probe="chosen")[0]
        expected = {"d_chosen": change["chosen"], "d_rejected": change["rejected"], "d_test": change["test_chosen"]}
        expected["d_argmax"] = float((top[-1] - top[0]).mean())
        expected["gap"] = expected["d_argmax"] - change["chosen"]
        expected["margin"] = change["chosen"] - change["rejected"]
        fell = (ds.logp.sel(probe="chosen")[0, -1] < ds.logp.sel(probe="chosen")[0, 0]).values & (
            top[-1] > top[0]
        ).values
        expected["squeezed"] = float(fell.mean())
        expected["at_d_chosen"] = float(at_margin(ds, GRID.margin)[0])
        expected["at_d_test"] = float(at_margin(ds, GRID.margin, "test_chosen")[0])
        expected["at_d_argmax"] = float(at_margin(ds, GRID.margin, variable="argmax_logp")[0])
        expected |= {f"term_{name}": float(v.mean()) for name, v in predict.terms(world, start).items()}
        for name, value in expected.items():
            assert table[name][i] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), (name, i)


def test_the_columns_are_the_documented_ones(table):
    at = {f"at_{name}" for name in OUTCOMES if not name.startswith("start") and name != "margin"} | {"at_step"}
    assert set(table) == set(AXES) | set(OUTCOMES) | at | set(TERMS)
    reached = np.isfinite(table["at_step"])
    assert 0 < reached.sum() < GRID.runs, "some runs reach the margin and some do not"
    np.testing.assert_array_equal(reached, table["margin"] >= GRID.margin)  # here margins grow to the end
    for name in at:
        np.testing.assert_array_equal(np.isfinite(table[name]), reached, err_msg=name)
    np.testing.assert_allclose((table["at_d_chosen"] - table["at_d_rejected"])[reached], GRID.margin, rtol=1e-12)


def test_more_common_component_more_fall(table):
    low, high = (table["d_chosen"][table["common"] == c].mean() for c in GRID.common)
    assert high < low - 1.0


def test_a_chunk_runs_nothing_twice(monkeypatch):
    """SFT of every (seed, kernel) once, going on from the shorter to the longer, and one DPO of all."""
    calls, train = [], module.train
    monkeypatch.setattr(
        module, "train", lambda w, o, **k: calls.append((o.name, w.size[0], k["steps"])) or train(w, o, **k)
    )
    run_chunk(replace(GRID, temperature=(1.0,)).chunks(32)[0])
    assert calls == [("sft", 4, 3), ("sft", 4, 5), ("dpo", 32, 12)]


def test_outcomes_interpolate_between_evaluations():
    """Chosen −1 → −3 → −2, rejected −1 → −13 → −42: margin 10 at the second mark, 20 after a third of the way on."""
    logp = np.array([[[-1.0], [-1.0], [-5.0]], [[-3.0], [-13.0], [-5.0]], [[-2.0], [-42.0], [-5.0]]]).repeat(2, -1)
    top = np.array([[-0.9, -0.5], [-0.5, -0.7], [-0.8, -0.6]])  # of two prompts: one rises, one falls
    values = {"logp": logp[:, None], "argmax_logp": np.broadcast_to(top[:, None, None], (3, 1, 3, 2))}
    run = contexts.Run(None, None, (0, 10, 40), module.KINDS, values, np.zeros((3, 1)), logp[:1])
    at10, at20, at99 = (outcomes(run, margin) for margin in (10.0, 20.0, 99.0))
    assert (at10["at_d_chosen"].item(), at10["at_step"].item()) == (-2.0, 10.0)
    assert at20["at_d_chosen"].item() == pytest.approx(-2.0 + 1.0 / 3.0)
    assert at20["at_step"].item() == pytest.approx(20.0)
    assert at20["at_d_argmax"].item() == pytest.approx((0.3 - 0.5 / 3.0) / 2.0)
    assert (at20["at_squeezed"].item(), at20["squeezed"].item()) == (0.5, 0.5)
    assert np.isnan(at99["at_d_chosen"]).all()
    assert np.isnan(at99["at_squeezed"]).all()
    assert at99["d_chosen"].item() == -1.0


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(command, "CHUNK", SIZE)
    monkeypatch.setattr(Grid.chunks, "__defaults__", (SIZE,))
    monkeypatch.setattr(sweep, "__kwdefaults__", {**sweep.__kwdefaults__, "size": SIZE})


def test_a_stopped_sweep_goes_on_with_what_is_missing(tmp_path, table, small_chunks, monkeypatch):
    whole = command.run_sweep(tmp_path / "whole", GRID)
    assert_same(whole, table)
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert files == [*(f"chunk-{i:05d}.csv" for i in range(8)), "run.json", "runs.csv"]

    def stop(done, total):
        assert total == 8
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command.run_sweep(tmp_path / "stopped", GRID, tell=stop)
    assert len(list((tmp_path / "stopped").glob("chunk-*"))) == 3
    with pytest.raises(TrajectoryError, match="pass --resume"):
        command.run_sweep(tmp_path / "stopped", GRID)
    other = replace(GRID, margin=4.0)
    with pytest.raises(TrajectoryError, match=r"config\.grid\.margin = 4\.0, was 8\.0"):
        command.run_sweep(tmp_path / "stopped", other, resume=True)
    computed, run = [], module.run_chunk
    monkeypatch.setattr(module, "run_chunk", lambda chunk: computed.append(1) or run(chunk))
    assert_same(command.run_sweep(tmp_path / "stopped", GRID, resume=True), table)
    assert len(computed) == 5
    for file in files:
        if file != "run.json":
            assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("payload", ["seed,lr\n1", "seed,lr\n1,x\n", "seed,sft\n1,1\n"])
def test_a_damaged_chunk_is_named(payload, tmp_path, small_chunks):
    grid = replace(GRID, temperature=(1.0,), seeds=(1000,))
    command.run_sweep(tmp_path / "sweep", grid)
    (tmp_path / "sweep" / "chunk-00001.csv").write_text(payload)
    with pytest.raises(TrajectoryError, match="chunk-00001"):
        command.run_sweep(tmp_path / "sweep", grid, resume=True)


def test_the_summary_is_of_seeds(table):
    rows = summary(table)
    assert rows["seeds"].tolist() == [2] * 32
    one = {"common": 1.5, "sft": 8, "beta": 0.1, "lr": 9.0, "temperature": 1.0}
    here, mine = (np.logical_and.reduce([t[name] == value for name, value in one.items()]) for t in (rows, table))
    (i,) = np.flatnonzero(here)
    values = table["d_chosen"][mine]
    low, high = stats.t.interval(0.95, 1, values.mean(), stats.sem(values))
    assert [rows[f"d_chosen{end}"][i] for end in ("", "_low", "_high")] == pytest.approx([values.mean(), low, high])


def test_verdicts_are_of_means_and_intervals_over_seeds():
    def verdict(chosen, argmax, rejected=-20.0, spread=0.1):
        seeds = np.arange(8)
        off = spread * (seeds - 3.5)
        columns = {name: np.full(8, 1.0) for name in AXES} | {"seed": seeds}
        columns |= {
            "start_chosen": np.full(8, -5.0),
            "start_argmax": np.full(8, -4.0),
            "start_rejected": np.full(8, -9.0),
        }
        change = {
            "d_chosen": chosen + off,
            "d_argmax": argmax + off,
            "d_rejected": rejected + off,
            "gap": argmax - chosen + 0 * off,
        }
        rest = {"margin": off, "squeezed": off, "d_test": off}
        columns |= change | rest | {f"at_{name}": value for name, value in (change | rest).items()} | {"at_step": off}
        return str(summary(columns)["verdict"][0])

    assert verdict(-3.0, 1.0) == "squeezing"
    assert verdict(-3.0, -2.0) == "divergence"
    assert verdict(-3.0, 0.1) == "displacement"
    assert verdict(2.0, 2.0) == "healthy"
    assert verdict(2.0, 2.0, rejected=0.0) == "sft-normal"
    assert verdict(-0.03, 0.03, spread=0.001) == "rejection", "less than a hundredth of where they start"
    assert verdict(-0.1, 0.3, spread=1.0) == "rejection", "nothing that the seeds tell from 0"
    assert verdict(-7e18, 4.0, spread=1e19) == "divergence", "the descent came apart, however wide the interval"
    assert verdict(np.nan, 4.0) == "divergence"
    assert verdict(-9e5, 1.0) == "squeezing"


def test_what_came_apart_is_written_short_and_the_rule_for_still_stands_below(capsys):
    grid = replace(GRID, objective="ipo", lr=(12.0,), common=(0.0,), temperature=(1.0,), sft=(8,), beta=(0.1,))
    rows = summary(sweep(grid))
    assert abs(rows["d_chosen"][0]) > 1e9
    print_summary(rows)
    out, _ = capsys.readouterr()
    assert rows["verdict"].tolist() == ["divergence"]
    assert re.search(r"-\de\+\d+ .*divergence", out)
    assert "…" not in out
    assert "interval over seeds includes 0" in out


BAD = {
    "common": ({"common": ()}, "common: expected values, each once"),
    "seeds": ({"seeds": (1, 1)}, "seeds: expected values, each once"),
    "temperature": ({"temperature": (0.0,)}, r"temperature: expected finite numbers > 0, got \[0\.0\]"),
    "sft": ({"sft": (-1,)}, "sft: expected finite numbers >= 0"),
    "margin": ({"margin": float("nan")}, "margin: expected finite numbers > 0"),
    "language": ({"language": "esperanto"}, "language: expected one of facts, markov"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_grids_are_refused_in_one_line(what):
    fields, message = BAD[what]
    with pytest.raises(BadInput, match=message):
        Grid(**fields)
