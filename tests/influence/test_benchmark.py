"""benchmarks/influence.py: its lines, and that results which disagree fail it."""

import pytest


@pytest.fixture
def benchmark(script):
    return script("influence")


@pytest.fixture
def without_jax(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "_jax", lambda: None)  # takes longer than all the rest, to import and to compile


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, without_jax, compared):
    lines, table = compared(benchmark)
    assert {f"{line['benchmark']}/{line['against']}" for line in lines} == {
        "predict/tutorial-jacobian",
        "predict/tutorial-ntvp",
        "predict/torch-jvp",
        "kernel/tutorial-jacobian",
    }
    assert "predict/jax: left out" in table
    for line in lines:
        assert line["tolerance"] < 1e-4
        assert line["agree_float64"] <= line["tolerance_float64"] < 1e-12


@pytest.mark.parametrize("name", ["mlp", "decoder"])
def test_the_benchmark_compares_predictions_that_say_something(benchmark, name):
    task = benchmark.mlp((20, 16, 16, 5), 8) if name == "mlp" else benchmark.decoder(8, 6, 7, 2, 2, 8)
    assert benchmark.ours(task)().abs().max() > 1e-3  # nats


def test_the_benchmark_fails_when_results_disagree(benchmark, without_jax, monkeypatch, capsys):
    right = benchmark.Recipe.change
    monkeypatch.setattr(benchmark.Recipe, "change", lambda self, k, x: right(self, 1.001 * k, x))
    assert benchmark.main(["--size", "smoke"]) == 1
    assert capsys.readouterr().err.count("RESULTS DISAGREE") == 4  # all but the kernel itself
