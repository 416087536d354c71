"""Training data: every format TRL has, every source, split without leaks, stories, and the probe set's command."""

import doctest
import gzip
import importlib
import json
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toyld import cli
from toyld.checked import BadInput
from toyld.llm.data import read_probes
from toyld.llm.opened import opened
from toyld.llm.sources import pairs_for_training, split, texts_for_training, write_rows
from toyld.llm.stories import sentences, stories
from toyld.probes import ProbeSet, make

PAIRS = [
    {"prompt": f"What is {name}?", "chosen": f" It is {name}, of course.", "rejected": f" No {name} here."}
    for name in ("the sky", "a cow", "this", "rain", "Rome", "an inch")
]


def chat(row):
    ask, say = {"role": "user", "content": row["prompt"]}, {"role": "assistant"}
    return {
        "prompt": [ask],
        "chosen": [say | {"content": row["chosen"]}],
        "rejected": [say | {"content": row["rejected"]}],
    }


CHATS = [chat(row) for row in PAIRS]
IMPLICIT = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in PAIRS]
IMPLICIT_CHATS = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in CHATS]
COMPLETIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
RESPONSES = [{"prompt": row["prompt"], "response": row["chosen"], "model": "m"} for row in PAIRS]
LABELLED = [row | {"label": True} for row in COMPLETIONS]
MESSAGES = [{"messages": row["chosen"]} for row in IMPLICIT_CHATS]
TEXTS = [{"text": row["chosen"]} for row in IMPLICIT]
CHAT_COMPLETIONS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in CHATS]


@pytest.mark.parametrize("name", ["sources", "stories", "opened", "data"])
def test_examples_in_the_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"toyld.llm.{name}"))
    assert tried
    assert not failed


def test_loading_the_readers_loads_no_network_library():
    code = (
        "import sys, toyld.llm.making, toyld.llm.stories; print(*{'transformers', 'datasets', 'rich'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


# Formats


@pytest.mark.parametrize(("rows", "same"), [(PAIRS, PAIRS), (IMPLICIT, PAIRS), (CHATS, CHATS), (IMPLICIT_CHATS, CHATS)])
def test_pairs_of_every_format_are_ready_for_dpo_and_sft(rows, same):
    more = [row | {"score_chosen": 9.0, "source": "x"} for row in rows]
    pairs = pairs_for_training(more)
    assert pairs.rows() == same
    assert pairs.rows("test") == []
    assert pairs.test is None
    assert pairs.conversational == (same is CHATS)
    assert pairs.sft() == [{"prompt": row["prompt"], "completion": row["chosen"]} for row in same]
    both = pairs.sft(both=True)
    assert both[::2] == pairs.sft()
    assert both[1::2] == [{"prompt": row["prompt"], "completion": row["rejected"]} for row in same]
    assert list(texts_for_training(more).train) == pairs.sft()
    assert make(pairs.train, ["irr_train"], seed=0).responses["chosen"] == tuple(row["chosen"] for row in PAIRS)
    with pytest.raises(BadInput, match="the side train or test, got 'all'"):
        pairs.rows("all")


@pytest.mark.parametrize(
    ("rows", "form", "conversational", "same"),
    [
        (COMPLETIONS, "prompt-completion", False, COMPLETIONS),
        (RESPONSES, "prompt-completion", False, COMPLETIONS),
        (LABELLED, "prompt-completion", False, COMPLETIONS),
        (CHAT_COMPLETIONS, "prompt-completion", True, CHAT_COMPLETIONS),
        (MESSAGES, "messages", True, MESSAGES),
        ([row | {"id": 3} for row in TEXTS], "text", False, TEXTS),
    ],
)
def test_texts_of_every_format_are_ready_for_sft(rows, form, conversational, same):
    texts = texts_for_training(rows)
    assert list(texts.train) == same
    assert (texts.form, texts.conversational, texts.test, len(texts.left_out)) == (form, conversational, (), 0)


def test_rows_of_no_use_are_named_and_rarer_forms_left_out():
    rows = [*PAIRS, PAIRS[0] | {"rejected": " "}, CHATS[0], {"prompt": "Q"}]
    pairs = pairs_for_training(rows)
    assert pairs.rows() == PAIRS
    assert pairs.left_out.rows[:2] == ((6, "rejected is empty"), (7, "a conversation, unlike most other rows"))
    assert pairs.left_out.rows[2][0] == 8
    assert pairs.left_out.of == 9
    turned = pairs_for_training([*CHATS, {}, PAIRS[0]])
    assert turned.rows() == CHATS
    assert turned.left_out.rows[1] == (7, "no conversation, unlike most other rows")
    mixed = [
        *COMPLETIONS,
        {"text": "a"},
        {"text": " "},
        3,
        COMPLETIONS[0] | {"label": False},
        {"prompt": "a", "completion": CHATS[0]["chosen"]},
    ]
    texts = texts_for_training(mixed)
    assert list(texts.train) == COMPLETIONS
    assert [number for number, _ in texts.left_out.rows] == [6, 7, 8, 9, 10]
    assert texts.left_out.rows[0][1] == "of the form text (strings), most other rows of prompt-completion (strings)"
    for bad in (
        {"messages": "a"},
        {"text": CHATS[0]["prompt"]},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"x": 1},
        {"label": False, "prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": ""}]},
    ):
        with pytest.raises(
            BadInput, match=r"^expected rows with prompt and completion, .*, got none \(expected .*\); check the data$"
        ) as error:
            texts_for_training([bad])
        assert "\n" not in str(error.value)
    with pytest.raises(BadInput, match="got none"):
        texts_for_training([])


# Splits


TURNS = st.lists(
    st.lists(st.sampled_from(["a", "B", "c"]), min_size=1, max_size=3).map(" ".join), min_size=2, max_size=12
)


@given(TURNS, st.integers(2, 6), st.integers(0, 5))
@settings(max_examples=60)
def test_no_prompt_nor_beginning_of_one_is_on_both_sides(prompts, test, seed):
    prompts = [*prompts, "z", "Z  y"]  # two rows that can always be held out
    train, held = split(prompts, test=min(test, len(prompts) - 1), seed=seed)
    assert sorted([*train, *held]) == list(range(len(prompts)))
    assert train
    assert 1 <= len(held) <= test
    words = [tuple(prompt.casefold().split()) for prompt in prompts]
    for i in train:
        for j in held:
            short, long = sorted((words[i], words[j]), key=len)
            assert long[: len(short)] != short


def test_a_split_is_the_seeds_and_hardly_moves_with_new_rows():
    prompts = [f"prompt {i}" for i in range(200)]
    train, held = split(prompts, test=0.1, seed=0)
    assert (len(train), len(held)) == (180, 20)
    assert split(prompts, test=20, seed=0) == (train, held)
    assert split(prompts, test=20, seed=1)[1] != held
    grown = split([*prompts, "one more"], test=20, seed=0)[1]
    assert len(set(grown) & set(held)) >= 19
    assert split(prompts, test=0)[0] == list(range(200))
    for bad in (-0.1, 200, 1.5, True):
        with pytest.raises(BadInput, match="to hold out, got"):
            split(prompts, test=bad)
    with pytest.raises(BadInput, match=r"got 3 rows in 1 groups of one beginning"):
        split(["a", "a b", "A"], test=1)


def test_real_pairs_are_split_by_conversation(data):
    pairs = pairs_for_training(data / "preference/hh_pairs.jsonl", test=0.1)
    assert (len(pairs.train) + len(pairs.test), len(pairs.left_out)) == (3306, 0)
    assert 325 <= len(pairs.test) <= 331
    held = {row.prompt for row in pairs.test.rows}
    assert not any(row.prompt.startswith(tuple(held)) for row in pairs.train.rows)
    assert not any(row.prompt.startswith(tuple(row.prompt for row in pairs.train.rows)) for row in pairs.test.rows)
    probes = make(pairs.test, ["irr_train", "irr_test"], seed=0, n=20, train=pairs.train)
    assert probes.provenance["held_out"] is True
    assert set(probes.responses["irr_train"]) <= {row.chosen for row in pairs.train.rows}
    paper = pairs_for_training(data / "preference/hh_probing_train.jsonl")
    assert str(paper.left_out) == "1 of 500 rows left out: row 247, rejected is empty (rows counted from 0)"
    assert set(paper.rows()[0]) == {"prompt", "chosen", "rejected"}


# Sources


def test_every_source_gives_the_same_rows(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs datasets: pip install -e .[llm]")
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(PAIRS)
    assert write_rows(tmp_path / "rows.jsonl", PAIRS) == 6
    (tmp_path / "rows.gz").write_bytes(gzip.compress(json.dumps(PAIRS).encode()))
    made.to_parquet(tmp_path / "no_suffix")
    made.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=made).save_to_disk(tmp_path / "parts")
    for name in ("rows.jsonl", "rows.gz", "no_suffix", "saved", "parts"):
        assert pairs_for_training(str(tmp_path / name)).rows() == PAIRS
    assert pairs_for_training(made).rows() == PAIRS
    assert read_probes(tmp_path / "no_suffix")[0] == read_probes(tmp_path / "rows.jsonl")[0]
    whole = datasets.Dataset.from_list(pairs_for_training(datasets.Dataset.from_list(CHATS)).rows())
    assert list(whole) == CHATS
    (tmp_path / "torn").write_bytes((tmp_path / "no_suffix").read_bytes()[:-20])
    with pytest.raises(BadInput, match=r"^expected a data set, got the Parquet file torn \(.*\); copy it again$"):
        pairs_for_training(tmp_path / "torn")


def test_a_name_on_the_hub_without_a_network_gets_one_line(tmp_path, monkeypatch):
    pytest.importorskip("datasets", reason="needs datasets: pip install -e .[llm]")
    for name in ("nobody/nothing-at-all", "nobody/nothing-at-all:test[:10]"):
        with pytest.raises(BadInput) as error:
            pairs_for_training(name)
        assert str(error.value).startswith("expected a data set, got nobody/nothing-at-all, which is no file here and")
        assert str(error.value).endswith(
            "run datasets.load_dataset('nobody/nothing-at-all') once with a network, or give a file"
        )
        assert "\n" not in str(error.value)
    for path in ("no/such.jsonl", "nothing", "a/b/c"):
        with pytest.raises(BadInput, match="expected a readable file"):
            pairs_for_training(path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"expected the package datasets for nobody/.* pip install"):
        opened("nobody/nothing-at-all")


# Stories


def test_sentences_end_where_they_end():
    text = 'Mrs. Fox ran... "Stop!" he cried. Really? Yes. 3 cats.\n\n“Well,” she said.” no end'
    ends = sentences(text)
    assert [text[a:b].strip() for a, b in zip([0, *ends[:-1]], ends, strict=True)] == [
        "Mrs. Fox ran...", '"Stop!" he cried.', "Really?", "Yes.", "3 cats.",
    ]  # fmt: skip


def test_stories_are_cut_into_pairs(data):
    path = data / "preference/tinystories_1000.json"
    texts = json.loads(path.read_text())
    rows = stories(path)
    assert len(rows) == 999
    assert rows == stories(texts)
    assert rows == stories([{"text": text} for text in texts])
    lent = Counter(row["rejected"].strip() for row in rows)
    assert max(lent.values()) == 1
    assert set(lent) == {row["chosen"].strip() for row in rows}
    for row in rows:
        text = texts[int(row["id"])]
        assert text.startswith(row["prompt"] + row["chosen"])
        assert row["rejected"].strip() not in text
        space = len(row["chosen"]) - len(row["chosen"].lstrip())
        assert row["rejected"][:space] == row["chosen"][:space]
        assert row["rejected"][space:] == row["rejected"].lstrip()
        assert row["prompt"][-1] in ".!?\"'"
        assert 13 <= len(row["prompt"].split()) <= 40
        assert 20 <= len(row["chosen"].split()) <= 60
    few = stories(path, n=50, seed=3)
    assert few == stories(path, n=50, seed=3)
    assert few != stories(path, n=50, seed=4)
    more = {(row["id"], row["prompt"], row["chosen"]) for row in stories(path, n=80, seed=3)}
    assert {(row["id"], row["prompt"], row["chosen"]) for row in few} <= more
    assert len(pairs_for_training(rows, test=0.1).test) == 100


def test_a_sampler_writes_the_rejected_continuation():
    told = [f"{name} ran home fast. {name} slept well there. The end came." for name in ("Ann", "Bob", "Cid", "Dan")]
    said = {"Ann": " No way. She sang. Yes", "Bob": " Bob slept well there.", "Cid": "", "Dan": " and on"}
    rows = stories(told, prompt=4, response=4, sampler=lambda prompt: said[prompt.split()[0]])
    assert [(row["id"], row["rejected"]) for row in rows] == [("0", " No way. She sang."), ("3", " and on")]
    short = ["Eve ran home fast. So. Ann", "Fay ran home fast and", "Gus ran home fast.", ""]
    assert [row["id"] for row in stories([*told, *short], prompt=4, response=4)] == ["0", "1", "2", "3"]
    twice = stories([*told, told[0]], prompt=4, response=4)
    assert [row["id"] for row in twice] == ["0", "1", "2", "3"]
    for call, line in (
        (lambda: stories(told, n=5), "n: expected at most the"),
        (lambda: stories(told, n=0), "n: expected a whole number"),
        (lambda: stories([3]), "text 0: expected a string"),
        (lambda: stories(told[:1], prompt=4, response=4), "at least two different texts"),
        (lambda: stories("none.json"), "readable file"),
    ):
        with pytest.raises(BadInput, match=line):
            call()


# The command


def run(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(["probes", *map(str, words)])
    return end.value.code, *capsys.readouterr()


def test_the_command_makes_a_probe_set_and_says_what_is_missing(tmp_path, capsys):
    write_rows(tmp_path / "pairs.jsonl", [*PAIRS, PAIRS[0] | {"rejected": ""}])
    write_rows(
        tmp_path / "test.jsonl", [row | {"prompt": "Or " + row["prompt"], "chosen": " Perhaps it is."} for row in PAIRS]
    )
    out = tmp_path / "probes.jsonl"
    code, said, _ = run(capsys, tmp_path / "pairs.jsonl", "--out", out, "--test", tmp_path / "test.jsonl", "--n", 4)
    assert code == 0
    probes = ProbeSet.from_jsonl(out)
    assert len(probes) == 4
    assert set(probes.responses["irr_test"]) == {" Perhaps it is."}
    assert read_probes(out)[0] == probes
    assert "1 of 7 rows left out: row 6, rejected is empty" in said
    assert all(kind in said for kind in probes.responses)
    assert "mind: random_nonhum is said to be random words, and its words are those of irr_test" in said
    assert not (tmp_path / "probes.jsonl.answers.sqlite").exists()
    fresh = tmp_path / "new.jsonl"
    for words, line in (
        (["--out", out], "expected a file that is not there yet"),
        (["--out", tmp_path / "none" / "x"], "an existing folder"),
        (["--out", fresh, "--n", 0], "--n: expected at least 1"),
        (
            ["--out", fresh, "--kinds", "irr_test"],
            "expected responses of kind irr_test, got none (6 of 6: the data hold none",
        ),
        (["--out", fresh, "--kinds", "rephrase"], "no rewriter for it was given"),
        (["--out", fresh, "--kinds", "rephrases"], "expected kinds among"),
    ):
        code, said, error = run(capsys, tmp_path / "pairs.jsonl", *words)
        assert (code, said, error.count("\n")) == (2, "", 1)
        assert line in error
    assert not fresh.exists()
