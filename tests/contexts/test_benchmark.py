"""benchmarks/contexts.py: its lines, and that results which disagree fail it."""

from dataclasses import replace

import pytest
import torch


@pytest.fixture
def benchmark(script):
    return script("contexts")


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, compared):
    lines, _ = compared(benchmark)
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {"run/torch-autograd", "batch/loop"}


def test_the_benchmark_compares_runs_that_learn_something(benchmark):
    size = benchmark.Size(4, 3, 30, 8, 10, 0.5)
    head, world = benchmark.make(size)
    moved = benchmark.Autograd(head, world, size, "cpu").train() - torch.as_tensor(head)
    assert moved.abs().max() > 100 * 8 * torch.finfo(torch.float32).eps * size.steps * abs(head).max()


def test_the_benchmark_fails_when_results_disagree(benchmark, monkeypatch, capsys):
    right = benchmark.stage

    def stage(world, size):
        return right(world, replace(size, lr=1.01 * size.lr))

    monkeypatch.setattr(benchmark, "stage", stage)
    assert benchmark.main(["--size", "smoke"]) == 1
    assert "RESULTS DISAGREE" in capsys.readouterr().err
