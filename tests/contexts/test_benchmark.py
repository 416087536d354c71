"""benchmarks/contexts.py: its lines, and that results which disagree fail it."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[2] / "benchmarks"
KEYS = ["benchmark", "against", "size", "ratio", "target", "agree", "tolerance", "device", "threads", "repeats"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    spec = importlib.util.spec_from_file_location("benchmark_of_contexts", HERE / "contexts.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    threads = torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    sys.modules.pop("softmax", None)


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, capsys):
    assert benchmark.main(["--size", "smoke"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {"run/torch-autograd", "batch/loop"}
    for line in lines:
        assert list(line)[: len(KEYS)] == KEYS
        assert line["agree"] <= line["tolerance"]
        assert line["ratio"] > 0
        assert line["threads"] == 1


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
