"""The command line: exit codes, JSON, and one line for bad input."""

import json

import pytest

from toyld import claims as registry
from toyld import cli


def run(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_claims_prints_the_board_and_writes_json(capsys, tmp_path):
    path = tmp_path / "out.json"
    code, out, err = run(capsys, "claims", "squeeze.p*", "--examples", 200, "--seed", 3, "--json", path)
    assert (code, err) == (0, "")
    assert "squeeze.penalised-falls" in out
    assert "proved (" in out
    board = json.loads(path.read_text())
    assert (board["schema"], board["seed"], board["examples"]) == (1, 3, 200)
    assert [c["id"] for c in board["claims"]] == [c.id for c in registry.select(["squeeze.p*"])]
    for c in board["claims"]:
        assert set(c) >= {"id", "statement", "source", "kind", "expect", "verdict", "cases", "instead", "cells"}
        assert c["verdict"] == c["expect"] == c["cells"]["softmax"]["verdict"]
        assert c["cases"] == c["cells"]["softmax"]["cases"] > 0


def test_the_same_seed_prints_the_same_board_and_random_names_its_seed(capsys):
    first = run(capsys, "claims", "squeeze.threshold-law", "--examples", 50)
    assert first == run(capsys, "claims", "squeeze.threshold-law", "--examples", 50)
    _, out, _ = run(capsys, "claims", "squeeze.threshold-law", "--examples", 50, "--seed", "random")
    assert int(out.split("seed ")[1].split(",")[0]) > 0


def test_an_unexpected_verdict_exits_1_and_names_the_claim(capsys, monkeypatch):
    from toyld import softmax

    whole = softmax.threshold_limit
    monkeypatch.setattr(softmax, "threshold_limit", lambda z, y: -whole(z, y))
    code, _, err = run(capsys, "claims", "squeeze.threshold-limit", "--examples", 100)
    assert code == 1
    assert "squeeze.threshold-limit: expected 'holds', got 'refuted'" in err
    assert "simplest case found: z = [" in err


BAD = {
    "unknown claim": (("claims", "nothing.*"), "expected a claim id or glob, got 'nothing.*'"),
    "unknown rung": (("claims", "--rung", "attic"), "expected a rung out of softmax, contexts"),
    "rung without claims": (("claims", "squeeze.*", "--rung", "llm"), "expected claims at rung 'llm', got none"),
    "no examples": (("claims", "--examples", 0), "--examples: expected at least 1, got 0"),
    "a folder for JSON": (("claims", "--json", "/"), "--json: expected a file in an existing folder, got /"),
    "an endless step": (
        ("step", "--logits", "0", "1", "--label", 0, "--s", "1e300", "--c", "-1e300"),
        "--s, --c: expected",
    ),
    "no such folder": (("claims", "--json", "/nowhere/at/all.json"), "--json: expected a file in an existing folder"),
    "NaN logits": (("step", "--logits", "nan", "1", "--label", 0), "--logits: expected finite logits, got nan at (0,)"),
    "negative probability": (("step", "--probs", "1.5", "-0.5", "--label", 0), "--probs: expected probabilities > 0"),
    "label out of range": (("step", "--logits", "0", "1", "--label", 2), "--label: expected a label in 0 … 1, got 2"),
    "one class": (("step", "--logits", "0", "--label", 0), "expected V ≥ 2 classes"),
    "no input": (("step", "--label", 0), "expected one of --logits and --probs, got neither"),
    "zero step": (("step", "--logits", "0", "1", "--label", 0, "--s", 0), "--s: expected a finite number > 0, got 0"),
    "no push": (("step", "--logits", "0", "1", "--label", 0, "--c", 0), "--c: expected a finite number other than 0"),
    "unknown figure": (("figures", "--only", "nothing", "--list"), "nothing"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_2(what, capsys):
    arguments, message = BAD[what]
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err


@pytest.mark.parametrize("logits", [("1000", "0", "0"), ("0", "800"), ("0", "0")])
def test_step_near_certainty_says_nothing_false(logits, capsys, recwarn):
    code, out, err = run(capsys, "step", "--logits", *logits, "--label", 0)
    assert (code, err, len(recwarn)) == (0, "", 0)
    assert "nan" not in out
    assert ("a valley" in out) == (logits != ("1000", "0", "0"))


def test_a_broken_check_is_undecided_and_the_board_still_prints(capsys, monkeypatch):
    from toyld import softmax

    def broken(*_, **__):
        raise IndexError("out of cheese")

    monkeypatch.setattr(softmax, "threshold_limit", broken)
    code, out, err = run(capsys, "claims", "squeeze.threshold-l*", "--examples", 50)
    assert code == 1
    assert "squeeze.threshold-law" in out
    assert "the check raised IndexError: out of cheese" in err


def test_objectives_compares_losses(capsys):
    code, out, err = run(capsys, "objectives", "dpo", "ipo")
    assert (code, err) == (0, "")
    assert "reverses beyond" in out
    assert "trl.sigmoid" not in out
    code, _, err = run(capsys, "objectives", "dop")
    assert (code, err.count("\n")) == (2, 1)
    assert "no objective 'dop'; known: sft" in err


def test_bad_arguments_are_the_parsers_own_message(capsys):
    code, _, err = run(capsys, "claims", "--examples", "many")
    assert code == 2
    assert "--examples" in err


def test_step_prints_the_golden_update(capsys):
    code, out, _ = run(capsys, "step", "--probs", 0.7, 0.2, 0.08, 0.02, "--label", 3)
    assert code == 0
    for number in ("0.8064", "0.1397", "0.0496", "0.0043", "τ = 0.5585"):
        assert number in out
    assert "a valley: entropy falls" in out
