"""benchmarks/influence.py: its lines, and that results which disagree fail it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[2] / "benchmarks"
KEYS = ["benchmark", "against", "size", "ratio", "target", "agree", "tolerance", "device", "threads", "repeats"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("XLA_FLAGS", "")  # the script sets it
    spec = importlib.util.spec_from_file_location("benchmark_of_influence", HERE / "influence.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    threads = torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    for name in ("contexts", "softmax"):
        sys.modules.pop(name, None)


@pytest.fixture
def without_jax(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "_jax", lambda: None)  # takes longer than all the rest, to import and to compile


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, without_jax, capsys):
    assert benchmark.main(["--size", "smoke"]) == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {
        "predict/tutorial-jacobian",
        "predict/tutorial-ntvp",
        "predict/torch-jvp",
        "kernel/tutorial-jacobian",
    }
    assert "predict/jax: left out" in printed.err
    for line in lines:
        assert list(line)[: len(KEYS)] == KEYS
        assert line["agree"] <= line["tolerance"] < 1e-4
        assert line["agree_float64"] <= line["tolerance_float64"] < 1e-12
        assert line["ratio"] > 0
        assert line["threads"] == 1


@pytest.mark.parametrize("name", ["mlp", "decoder"])
def test_the_benchmark_compares_predictions_that_say_something(benchmark, name):
    task = benchmark.mlp((20, 16, 16, 5), 8) if name == "mlp" else benchmark.decoder(8, 6, 7, 2, 2, 8)
    assert benchmark.ours(task)().abs().max() > 1e-3  # nats


def test_the_benchmark_fails_when_results_disagree(benchmark, without_jax, monkeypatch, capsys):
    right = benchmark.Recipe.change
    monkeypatch.setattr(benchmark.Recipe, "change", lambda self, k, x: right(self, 1.001 * k, x))
    assert benchmark.main(["--size", "smoke"]) == 1
    assert capsys.readouterr().err.count("RESULTS DISAGREE") == 4  # all but the kernel itself
