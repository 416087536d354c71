"""benchmarks/digits.py: its lines, and that results which disagree fail it."""

from dataclasses import replace

import pytest
import torch


@pytest.fixture
def benchmark(script):
    return script("digits")


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, compared):
    lines, _ = compared(benchmark)
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {"ensemble/one-by-one", "ensemble/vmap"}


def test_the_benchmark_compares_runs_that_learn_something(benchmark):
    size = benchmark.Size("small", lambda seed: benchmark.mlp(64, width=8, depth=1, seed=seed), 8, 2, 5)
    data = benchmark.make(size)
    first = [torch.cat([p.flatten() for p in size.build(seed).parameters()]) for seed in range(2)]
    moved = benchmark.together(size, data, torch.float64) - torch.stack(first).detach()
    assert moved.abs().max() > 1e6 * 784 * torch.finfo(torch.float64).eps * size.steps


def test_the_benchmark_fails_when_results_disagree(benchmark, monkeypatch, capsys):
    right = benchmark.one_by_one

    def wrong(size, data, batches, dtype, **options):
        return right(replace(size, steps=size.steps + 1), data, batches, dtype, **options)

    monkeypatch.setitem(benchmark.OTHERS, "one-by-one", wrong)
    assert benchmark.main(["--size", "smoke"]) == 1
    assert "RESULTS DISAGREE" in capsys.readouterr().err
