"""benchmarks/digits.py: its lines, and that results which disagree fail it."""

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
    spec = importlib.util.spec_from_file_location("benchmark_of_digits", HERE / "digits.py")
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
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {"ensemble/one-by-one", "ensemble/vmap"}
    for line in lines:
        assert list(line)[: len(KEYS)] == KEYS
        assert line["agree"] <= line["tolerance"]
        assert line["ratio"] > 0
        assert line["threads"] == 1


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
