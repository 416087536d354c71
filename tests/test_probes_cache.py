"""The cache of answers: nothing is asked twice, kill -9 loses nothing, several processes share a file, bad files."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from toyld.checked import BadInput
from toyld.probes import cached, make

ROOT = Path(__file__).parents[1]
PAIRS = [{"prompt": f"What is {i}?", "chosen": f"It is number {i}.", "rejected": f"Not {i}."} for i in range(20)]
# A rewriter that writes down what it is asked, each on a line of its own, then takes its time.
SLOW = """
import os, sys, time
from toyld.probes import cached, make
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def rewrite(text):
    os.write(log, (text + "\\n").encode())
    time.sleep(float(sys.argv[3]))
    return "so: " + text
pairs = [{"prompt": f"What is {i}?", "chosen": f"It is number {i}.", "rejected": f"Not {i}."} for i in range(20)]
print(make(pairs, ["rephrase"], seed=0, rewriter=cached(rewrite, sys.argv[1], name="slow")).sha256)
"""


def start(file, log, seconds=0.0):
    command = [sys.executable, "-c", SLOW, str(file), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def rows(file):
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute("SELECT name, text, answer FROM answers").fetchall()


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path):
    file, log = tmp_path / "answers.sqlite", tmp_path / "asked"
    whole = make(PAIRS, ["rephrase"], seed=0, rewriter=lambda text: "so: " + text)
    run = start(file, log, 0.02)
    while len(lines(log)) < 7:
        assert run.poll() is None
        time.sleep(0.005)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    before = lines(log)
    kept = {text for _, text, _ in rows(file)}
    assert 6 <= len(kept) <= len(before) < 40
    assert set(before) - kept <= {before[-1]}  # at most the one that was being answered
    again = start(file, log)
    assert again.communicate()[0].strip() == whole.sha256
    asked = lines(log)
    assert not set(asked[len(before) :]) & kept
    assert len(asked) == 40 + len(set(before) - kept)
    third = start(file, log)
    assert third.communicate()[0].strip() == whole.sha256
    assert lines(log) == asked


def test_two_processes_share_a_file(tmp_path):
    file = tmp_path / "answers.sqlite"
    runs = [start(file, tmp_path / name, 0.002) for name in "ab"]
    whole = make(PAIRS, ["rephrase"], seed=0, rewriter=lambda text: "so: " + text)
    assert [run.communicate()[0].strip() for run in runs] == [whole.sha256] * 2
    assert sorted(text for _, text, _ in rows(file)) == sorted(
        row[side] for row in PAIRS for side in row if side != "prompt"
    )


def test_the_answer_kept_first_is_everybodys(tmp_path):
    file = tmp_path / "answers.sqlite"

    def slow(text):  # while it thinks, another one answers
        assert cached(lambda text: "first", file, name="n")(text) == "first"
        return "second"

    assert cached(slow, file, name="n")("a") == "first"
    assert rows(file) == [("n", "a", "first")]


def test_names_texts_and_messages_are_told_apart(tmp_path):
    file = tmp_path / "answers.sqlite"
    asked = []

    def note(value):
        asked.append(value)
        return f"{len(asked)}: {value}"

    chat = [{"role": "user", "content": "a"}]
    values = ["a", "a ", "a\0b", "\n", "ä", chat, chat[:0]]
    one, two = (cached(note, file, name=name) for name in ("one", "two"))
    first = [one(value) for value in values]
    assert [one(value) for value in values] == first
    assert asked == values
    assert (one.asked, one.kept) == (7, 7)
    assert two("a") == "8: a"
    assert [cached(note, file, name="one")(value) for value in values] == first
    assert cached(lambda text: "\ud800!", file, name="half a pair")("x") == "?!"
    assert cached(note, file, name="half a pair")("x") == "?!"


def test_what_a_function_raises_is_not_kept(tmp_path):
    file = tmp_path / "answers.sqlite"
    with pytest.raises(ZeroDivisionError):
        cached(lambda text: 1 / 0, file, name="n")("a")
    with pytest.raises(BadInput, match=r"^expected a text from the function n, got NoneType None: return a string$"):
        cached(lambda text: None, file, name="n")("a")
    assert rows(file) == []
    assert cached(str.upper, file, name="n")("a") == "A"


def test_bad_files_and_names_get_one_line(tmp_path):
    text = tmp_path / "pairs.jsonl"
    text.write_text(json.dumps(PAIRS[0]) * 40)
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as db:
        db.execute("PRAGMA user_version = 7")
    for file, got in (
        (text, "file is not a database"),
        (tmp_path / "none" / "x", "unable to open database file"),
        (other, "schema 7"),
    ):
        with pytest.raises(BadInput, match=rf"^expected a cache of answers .*, got: {got}; name another file") as error:
            cached(str.upper, file, name="n")
        assert "\n" not in str(error.value)
    assert text.read_text() == json.dumps(PAIRS[0]) * 40
    torn = tmp_path / "torn.sqlite"
    ask = cached(lambda text: text * 2000, torn, name="n")
    for i in range(12):
        ask(f"{i} text")
    payload = torn.read_bytes()
    torn.write_bytes(payload[: len(payload) // 2])
    with pytest.raises(BadInput, match="malformed"):
        [ask(f"{i} text") for i in range(12)]
    with pytest.raises(BadInput, match=r"^expected a name for the function <lambda>, got none"):
        cached(lambda text: text, tmp_path / "a.sqlite")


def test_a_text_that_its_function_refuses_is_missing_and_a_broken_cache_is_an_error(tmp_path):
    from toyld.probes.errors import refuse

    def rewrite(text):
        if text.endswith("7."):
            refuse("a short text", f"{len(text)} letters", "leave it out")
        return "so: " + text

    probes = make(PAIRS, ["rephrase"], seed=0, rewriter=cached(rewrite, tmp_path / "a.sqlite", name="n"))
    assert probes.missing["chosen_gptsemantic"] == "2 of 20: expected a short text"
    assert probes.responses["chosen_gptsemantic"][6:8] == ("so: It is number 6.", None)
    broken = cached(rewrite, tmp_path / "b.sqlite", name="n")
    (tmp_path / "b.sqlite").write_text("gone")
    with pytest.raises(BadInput, match="file is not a database") as error:
        make(PAIRS, ["rephrase"], seed=0, rewriter=broken)
    assert error.value.__notes__ == ["while making chosen_gptsemantic of example 0"]


def test_progress_is_told_for_every_kind():
    heard = []
    probes = make(PAIRS, ["permuted"], seed=0, n=3, tell=lambda *said: heard.append(said))
    assert heard == [(kind, done, 3) for kind in probes.responses for done in (1, 2, 3)]
