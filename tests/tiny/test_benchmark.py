"""benchmarks/tiny.py: its lines, and that results which disagree fail it."""

import pytest
import torch


@pytest.fixture
def benchmark(script):
    return script("tiny")


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, compared):
    lines, table = compared(benchmark)
    assert [f"{line['benchmark']}/{line['against']}" for line in lines] == ["ensemble/one-by-one"] * 2
    assert all(line["ratio_float64"] > 0 for line in lines)
    assert table.count("no target") == 2  # none is stated for CPUs


def test_the_benchmark_compares_runs_that_learn_something(benchmark):
    size = benchmark.Size(2, 16, 1, 8, 4, 3)
    models, data = benchmark.make(size)
    moved = benchmark.together(size, models, data) - models.flat
    assert moved.abs().amax(1).min() > 1e-3
    assert torch.isfinite(moved).all()


def test_the_benchmark_fails_when_results_disagree(benchmark, monkeypatch, capsys):
    right = benchmark.one_by_one

    def wrong(size, models, data):
        found = right(size, models, data)
        return found + 1e-5 * (torch.arange(found.shape[1]) == 7)

    monkeypatch.setattr(benchmark, "one_by_one", wrong)
    assert benchmark.main(["--size", "smoke"]) == 1
    assert "RESULTS DISAGREE" in capsys.readouterr().err
