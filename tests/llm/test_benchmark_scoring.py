"""benchmarks/scoring.py: its lines, what it measures memory by, and that results which disagree fail it."""

import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch


@pytest.fixture
def benchmark(script):
    return script("scoring")


def test_the_benchmark_prints_one_line_a_comparison_and_the_results_agree(benchmark, compared):
    lines, table = compared(benchmark)
    assert [f"{line['benchmark']}/{line['against']}" for line in lines] == ["score/released", "score/padded"] * 2
    assert [line["size"].split()[0] for line in lines] == ["GPT-NeoX"] * 2 + ["Qwen2"] * 2
    assert all(line["memory_ratio"] == line["peak_bytes_theirs"] / line["peak_bytes"] > 1 for line in lines)
    assert all(0 < line["agree"] < line["tolerance"] for line in lines)  # other roundings, the same numbers
    assert all(0 < line["off_float64"] < line["tolerance"] for line in lines)
    assert table.count("no target") == 4  # the sizes of the tests are too small for one


def test_the_peak_is_what_is_held_at_once(benchmark):
    def call():
        a = torch.ones(1000, 1000)  # 4 MB
        del a
        return torch.ones(500, 1000) + torch.ones(500, 1000)  # 2 + 2 + 2 MB

    most, returned = benchmark.peak(call)
    assert 6e6 <= most < 6.1e6
    assert returned.shape == (500, 1000)


def test_the_benchmark_fails_when_results_disagree(benchmark, monkeypatch, capsys):
    right = benchmark.released

    def wrong(model, given):
        found = right(model, given)
        found[1][1, 3] += 1e-4
        return found

    monkeypatch.setattr(benchmark, "released", wrong)
    assert benchmark.main(["--size", "smoke"]) == 1
    assert capsys.readouterr().err.count("RESULTS DISAGREE") == 2  # one a model; the padded batch agrees


@pytest.mark.parametrize("number", range(6))
def test_any_of_our_numbers_that_is_off_is_seen(benchmark, number):
    model, given = benchmark.Size(300, 32, 2, 4, 16, 4, 8).make("Qwen2")
    right, exact = benchmark.ours(model, given), benchmark.exactly(model, given)
    assert benchmark.differ(right, exact) < benchmark.TOLERANCE
    right[2][number, 5] += 3e-4
    assert benchmark.differ(right, exact) > benchmark.TOLERANCE
