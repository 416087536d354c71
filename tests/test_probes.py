"""Probes: the released files say what the kinds are; every format reads the same; every draw is the seed's alone."""

import doctest
import gzip
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from toyld.checked import BadInput
from toyld.probes import (
    KINDS,
    PreferenceError,
    ProbeSet,
    cached,
    check_pairs,
    extract_prompt,
    group,
    in_space,
    make,
    permute_words,
    random_words,
    read_preference,
    render,
    rephrases_of,
    resolve,
    rewriter_from_model,
    sampler_from_model,
    table,
    truncate,
)
from toyld.trajectory import trajectory

ROOT = Path(__file__).parents[1]
RELEASED = [
    "chosen",
    "chosen_initial",
    "chosen_selfr",
    "chosen_gptsemantic",
    "chosen_gptformat",
    "rejected",
    "reject_gptsemantic",
    "reject_gptformat",
    "irr_train",
    "irr_test",
    "irr_hum",
    "random_permute",
    "random_nonhum",
]
PAIRS = [
    {"prompt": "What is the sky?", "chosen": "It is blue, mostly.", "rejected": "I do not know."},
    {"prompt": "Who wrote Emma?", "chosen": "Jane Austen wrote it in 1815.", "rejected": "A book."},
    {"prompt": "Say hi", "chosen": "Hi", "rejected": "Go away!"},
    {"prompt": "Two and two?", "chosen": " Four, of\ncourse –  naturally.", "rejected": "5"},
]
TEST = [
    {"prompt": "Where is Rome?", "chosen": "It is in Italy, in Europe.", "rejected": "Ask a map."},
    {"prompt": "Best fruit?", "chosen": "Apples keep well in winter.", "rejected": "No."},
]
MODULES = ["errors", "kinds", "preference", "recipes", "models", "probeset", "making", "checks", "cache", "released"]


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def released(data):
    return read_lines(data / "preference/hh_probing_train.jsonl")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_the_docstrings_run(name):
    failed, tried = doctest.testmod(importlib.import_module(f"toyld.probes.{name}"))
    assert tried
    assert not failed


def test_loading_probes_loads_no_network_library():
    code = "import sys, toyld.probes; print(*{'torch', 'transformers', 'datasets', 'xarray'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []


# The kinds


def test_kinds_are_the_released_keys_then_ours():
    assert [key for key, kind in KINDS.items() if kind.released] == RELEASED
    assert list(KINDS)[: len(RELEASED)] == RELEASED
    assert [key for key, kind in KINDS.items() if not kind.released] == [
        "random_words", "chosen_half", "chosen_quarter", "sampled", "test_chosen", "argmax",
    ]  # fmt: skip
    symbols = [kind.symbol for kind in KINDS.values() if kind.symbol]
    assert len(symbols) == len(set(symbols)) == 14  # the paper's count
    for key, kind in KINDS.items():
        assert key == kind.key
        assert kind.meaning
        assert kind.made
        assert kind.of is None or kind.of in KINDS
        assert ("{text}" in kind.instruction) == (kind.needs == "rewriter")


def test_groups_partition_the_kinds_and_spell_the_sets_of_the_claims():
    groups = {kind.group for kind in KINDS.values()}
    assert sorted(key for name in groups for key in group(name)) == sorted(KINDS)
    assert sorted(key for space in ("IF", "non-IF", "non-hum") for key in in_space(space)) == sorted(KINDS)
    assert rephrases_of("chosen") == ("chosen_selfr", "chosen_gptsemantic", "chosen_gptformat")
    assert rephrases_of("rejected") == ("reject_gptsemantic", "reject_gptformat")
    assert set(group("similar")) == {
        "chosen_initial", "rejected", "sampled", *rephrases_of("chosen"), *rephrases_of("rejected"),
    }  # fmt: skip
    assert group("taught others") == ("irr_train",)
    assert group("untaught") == ("irr_test",)
    assert group("held out") == ("test_chosen",)
    assert group("shuffled") == ("random_permute", "random_nonhum")
    assert in_space("non-hum") == (*group("shuffled"), "random_words")


def test_unknown_names_are_refused_in_one_line():
    for call in (
        lambda: group("tall"),
        lambda: in_space("IFF"),
        lambda: rephrases_of("choosen"),
        lambda: resolve(["x"]),
        lambda: make(PAIRS, ["permutted"], seed=0),
    ):
        with pytest.raises(PreferenceError, match=r"^expected .*, got .*: .*$"):
            call()


def test_the_table_names_every_kind_once():
    lines = table().splitlines()
    assert len(lines) == 2 + len(KINDS)
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert [line.split("`")[1] for line in lines[2:]] == list(KINDS)


# The released files


def test_what_the_released_kinds_are(released):
    """F17 and the facts beside it: what was published as random words are words of a natural answer."""

    def words(text):
        return sorted(text.split())

    def single_spaced(text):
        return sorted(text.strip().split(" "))

    assert len(released) == 500
    assert set(released[0]) == {"prompt", *RELEASED}
    for made, source, exact in (("random_permute", "chosen", 474), ("random_nonhum", "irr_test", 477)):
        assert sum(words(row[made]) == words(row[source]) for row in released) == 500
        assert sum(single_spaced(row[made]) == single_spaced(row[source]) for row in released) == exact
    assert sum("@@@" in row["chosen_selfr"] for row in released) == 376
    chosen = {row["chosen"] for row in released}
    assert sum(row["irr_train"] in chosen for row in released) == 499
    assert not any(row["irr_train"] == row["chosen"] for row in released)


def test_released_rows_are_read_and_what_is_no_probe_is_said(data, released):
    path = data / "preference/hh_probing_train.jsonl"
    with pytest.raises(PreferenceError, match=r"^row 247: expected two responses, got an empty rejected ' ': "):
        ProbeSet.from_preference(path)
    probes = ProbeSet.from_preference(path, extra=RELEASED, on_bad="skip")
    assert len(probes) == 499
    assert list(probes.responses) == RELEASED
    assert "247" not in probes.ids
    for key in RELEASED:
        row_of = dict(zip(probes.ids, probes.responses[key], strict=True))
        assert all(text in (None, released[int(name)][key]) for name, text in row_of.items())
    gone = {key: sum(text is None for text in texts) for key, texts in probes.responses.items()}
    assert {key: count for key, count in gone.items() if count} == {
        "chosen_initial": 21, "chosen_selfr": 376, "irr_test": 1, "random_permute": 9, "random_nonhum": 6,
    }  # fmt: skip
    assert probes.missing["chosen_initial"] == "21 of 499: empty in the data"
    # row 247 itself is one of the 376; one parsed rephrase repeats chosen
    assert probes.missing["chosen_selfr"] == "375 of 499: unparsed in the data (@@@); 1 of 499: equal to chosen"
    assert probes.missing["random_nonhum"] == "6 of 499: equal to irr_test"
    assert set(probes.missing) == {key for key, count in gone.items() if count}


def test_our_permutations_of_the_released_answers_are_exact(released):
    rows = [{**row, "rejected": row["rejected"].strip() or "-"} for row in released]
    probes = make(rows, ["random_permute", "random_nonhum", "irr_train"], seed=0, use_given=False, test=rows[::-1])
    for i, text in enumerate(probes.responses["random_permute"]):
        if text is None:
            assert len(set(rows[i]["chosen"].split())) < 2
        else:
            assert Counter(text.split()) == Counter(rows[i]["chosen"].split())
            assert re.findall(r"\s+", text) == re.findall(r"\s+", rows[i]["chosen"])
            assert text != rows[i]["chosen"]
    assert probes.missing["random_permute"] == "2 of 500: fewer than two different words to permute"
    assert probes.missing["random_nonhum"].endswith("that is never taught")  # the "test" set is the training set
    donors = Counter(probes.responses["irr_train"])
    assert set(donors) <= {row["chosen"] for row in rows}
    assert len(donors) > 480  # a ring gives every donor about once; independent draws would use 63 % of them


def test_real_pairs_are_read_whole(data):
    pairs = read_preference(data / "preference/hh_pairs.jsonl")
    assert len(pairs) == 3306
    assert pairs.refused == ()
    judged = read_preference(data / "preference/alpaca_pairs_20k.jsonl.gz", on_bad="skip")
    assert len(judged) == 19_999
    ((number, reason),) = judged.refused
    assert number == 2516
    assert reason.startswith("expected two different responses, got chosen = rejected = 'Test' (white space aside)")
    assert [finding["code"] for finding in check_pairs(pairs)] == ["shared-start"]
    codes = {finding["code"]: finding["text"] for finding in check_pairs(judged)}
    assert codes["duplicate-pairs"].startswith("1 of 20000 rows repeat an earlier pair: 6628")
    probes = make(judged, seed=0, n=64)
    by_text = {row.chosen: row for row in judged.rows}
    own = {row.id: row for row in judged.rows}
    for name, text in zip(probes.ids, probes.responses["irr_train"], strict=True):
        assert by_text[text].chosen not in (own[name].chosen, own[name].rejected)
    assert len(set(probes.ids)) == 64
    assert min(map(int, probes.ids)) < 5000
    assert max(map(int, probes.ids)) > 15_000  # a sample, not the head of a file that may be sorted


# Formats


def conversational(row):
    ask, answer = {"role": "user", "content": row["prompt"]}, {"role": "assistant"}
    return {"prompt": [ask], **{side: [answer | {"content": row[side]}] for side in ("chosen", "rejected")}}


def implicit(row):
    if isinstance(row["prompt"], str):
        return {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
    return {side: [*row["prompt"], *row[side]] for side in ("chosen", "rejected")}


WORD = st.text(st.characters(categories=["L", "N"], max_codepoint=0x2FF), min_size=1, max_size=6)
TEXT = st.lists(WORD, min_size=1, max_size=6).map(" ".join)


@st.composite
def pair_rows(draw):
    """Rows whose responses begin with a space and differ in the first word, so that an implicit prompt is clear."""
    rows = draw(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5))
    assume(all(a.split()[0] != b.split()[0] for _, a, b in rows))
    return [{"prompt": p + ":", "chosen": " " + a, "rejected": " " + b} for p, a, b in rows]


def plain(source, **options):
    return [(row.prompt, row.chosen, row.rejected) for row in read_preference(source, **options).rows]


@given(pair_rows())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_format_gives_the_same_pairs(tmp_path, rows):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    files = {"a": lines, "b": gzip.compress(lines), "c": json.dumps(rows, indent=1).encode()}
    files |= {"d": gzip.compress(files["c"]), "e": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n") + b"\n\n"}
    wanted = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    assert plain(rows) == plain(iter(rows)) == wanted
    assert plain([implicit(row) for row in rows]) == wanted
    for name, payload in files.items():
        (tmp_path / name).write_bytes(payload)
        assert plain(tmp_path / name) == plain(str(tmp_path / name)) == wanted
        assert read_preference(tmp_path / name).sha256 == read_preference(rows).sha256
    chats = [conversational(row) for row in rows]
    shown = [(f"user:\n{p}\n\nassistant:\n", a, b) for p, a, b in wanted]
    assert plain(chats) == plain([implicit(chat) for chat in chats]) == shown
    text_prompt = [implicit(chat) | {"prompt": row["prompt"]} for chat, row in zip(chats, rows, strict=True)]
    assert plain(text_prompt) == shown  # a string prompt beside whole conversations, as in UltraFeedback


def test_only_a_line_feed_ends_a_json_line(tmp_path):
    row = {"prompt": "a\u2028b", "chosen": "c\x85d", "rejected": "e\u2029f"}
    (tmp_path / "x").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert plain(tmp_path / "x") == [tuple(row.values())]


def test_a_hugging_face_data_set_reads_like_its_rows():
    datasets = pytest.importorskip("datasets")
    rows = [{**row, "score": 1.0} for row in PAIRS]
    assert plain(datasets.Dataset.from_list(rows)) == plain(PAIRS)
    chats = [conversational(row) for row in PAIRS]
    assert plain(datasets.Dataset.from_list(chats)) == plain(chats)
    assert plain(datasets.Dataset.from_list(chats).to_iterable_dataset()) == plain(chats)
    with pytest.raises(PreferenceError, match="pass one split"):
        read_preference(datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}))


def test_a_conversation_is_kept_and_rendered():
    ask = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Sky?"}]
    reply = [{"role": "assistant", "content": "Blue."}]
    more = [*reply, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    other = [{"role": "assistant", "content": "Green."}]
    one, two = read_preference([{"chosen": ask + a, "rejected": ask + other} for a in (reply, more)]).rows
    assert one.prompt == "system:\nBe kind.\n\nuser:\nSky?\n\nassistant:\n"
    assert one.messages == {"prompt": tuple(ask), "chosen": tuple(reply), "rejected": tuple(other)}
    for row, answer in ((one, reply), (two, more)):
        assert row.prompt + row.chosen == render(ask + answer)
    probes = make([{"chosen": ask + a, "rejected": ask + other} for a in (reply, more)], (), seed=0)
    assert probes.messages == (tuple(ask), None)  # a response of several messages cannot be swapped for another text
    assert [probe.messages for probe in probes.items()][:2] == [tuple(ask), None]


def test_extra_kinds_come_with_the_rows_and_other_columns_do_not():
    row = {**PAIRS[0], "chosen_gptsemantic": "Blue it is.", "irr_hum": None, "score": 3.5, "argmax": 7, "src": "x"}
    chat = conversational(PAIRS[0]) | {"irr_test": [{"role": "assistant", "content": "In Italy."}]}
    first, second = read_preference([row, chat]).rows
    assert first.extra == {"chosen_gptsemantic": "Blue it is."}
    assert second.extra == {"irr_test": "In Italy."}


def test_named_examples():
    rows = [{**row, "name": f"q{i}"} for i, row in enumerate(PAIRS)]
    assert make(rows, (), seed=0, id_key="name").ids == ("q0", "q1", "q2", "q3")
    with pytest.raises(PreferenceError, match="'q1' twice"):
        read_preference([*rows, rows[1]], id_key="name")
    with pytest.raises(PreferenceError, match="row 0: expected a printable id in nome"):
        read_preference(rows, id_key="nome")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("Is it? Yes", "Is it? Yet", "Is it?"),  # never inside a word
        ("Q: hi A: yes", "Q: hi A: yes sir", "Q: hi A:"),  # one ends where the other goes on
        ("Q\n\nA:yes", "Q\n\nA:no", "Q\n\nA:"),
        ("a b", "ab c", ""),
        ("one", "one two", ""),
        ("x y  ", "x z", "x"),
        ("天空？蓝", "天空？绿", "天空？"),
    ],
)
def test_the_implicit_prompt_ends_at_a_sensible_place(chosen, rejected, prompt):
    for a, b in ((chosen, rejected), (rejected, chosen)):
        cut = extract_prompt(a, b)
        assert cut == (prompt, a[len(prompt) :], b[len(prompt) :])
        assert cut[1].strip()
        assert cut[2].strip()


def test_the_implicit_prompt_is_trls_where_no_word_is_cut(data):
    trl = pytest.importorskip("trl")
    compared = 0
    for row in read_lines(data / "preference/hh_pairs.jsonl"):
        whole = {side: row["prompt"] + row[side] for side in ("chosen", "rejected")}
        theirs = trl.extract_prompt(whole)
        ours = dict(zip(("prompt", "chosen", "rejected"), extract_prompt(*whole.values()), strict=True))
        around = (theirs["prompt"][-1:], theirs["chosen"][:1], theirs["rejected"][:1])
        if not (around[0].isalnum() and (around[1].isalnum() or around[2].isalnum())):
            assert ours == theirs
            compared += 1
        assert ours["prompt"].startswith(row["prompt"].rstrip())
        assert all(ours["prompt"] + ours[side] == whole[side] for side in whole)
    assert compared > 3000


# What is refused


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"chosen": ""}, "expected two responses, got an empty chosen ''"),
        ({"chosen": " ", "rejected": " "}, "expected two responses, got chosen = rejected = ' '"),
        ({"rejected": "\n\t"}, r"expected two responses, got an empty rejected '\n\t'"),
        ({"rejected": PAIRS[0]["chosen"] + " "}, "expected two different responses, got chosen = rejected = 'It is"),
        ({"prompt": " "}, "expected a prompt, got an empty one, ' '"),
        ({"prompt": None}, "expected a prompt, got none, and responses that share no first word"),
        ({"prompt": 7}, "expected the prompt as a string like the responses, got int 7"),
        ({"prompt": [{"role": "user", "content": "Sky?"}]}, "expected the prompt as a string like the responses, got"),
        ({"chosen": 3}, "expected chosen as a string or a list of messages, got int 3"),
        ({"chosen": None}, "expected chosen as a string or a list of messages, got NoneType None"),
        ({"chosen": b"x"}, "expected chosen as a string or a list of messages, got bytes"),
        ({"chosen": {"role": "assistant", "content": "x"}}, "expected chosen as a string or a list of messages, got d"),
        ({"chosen": [{"role": "assistant", "content": "x"}]}, "expected chosen and rejected both as strings or both"),
        ({"chosen": [], "rejected": []}, "expected messages in chosen, got an empty list"),
        ({"chosen": ["a"], "rejected": ["b"]}, "expected messages with role and content in chosen, got 'a'"),
        ({"chosen": "\ud800"}, r"expected text, got '\ud800' with a lone surrogate"),
        ({"irr_test": 3}, "expected a string in irr_test, got int 3"),
    ],
)
def test_a_malformed_row_gets_one_line_with_its_number(change, line):
    rows = [PAIRS[1], {**PAIRS[0], **change}]
    with pytest.raises(PreferenceError) as error:
        read_preference(rows)
    assert str(error.value).startswith(f"row 1: {line}")
    assert str(error.value).isprintable()
    assert isinstance(error.value, BadInput)
    kept = read_preference(rows, on_bad="skip")
    assert [row.id for row in kept.rows] == ["0"]
    assert [number for number, _ in kept.refused] == [1]


CHAT = conversational(PAIRS[0])


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({**CHAT, "chosen": [{"role": "assistant", "content": " "}]}, "expected a text in chosen, got ' ', empty"),
        ({**CHAT, "prompt": [{"role": "user", "content": ""}]}, "expected a text in prompt, got '', empty"),
        ({**CHAT, "rejected": CHAT["chosen"]}, "expected two different responses, got chosen = rejected = 'It is"),
        (CHAT | {"prompt": None}, "expected a prompt, got conversations that share no first message"),
        ({**CHAT, "prompt": 3}, "expected prompt as a list of messages, got int 3"),
        ({**CHAT, "chosen": [{"role": "assistant", "content": None}]}, "expected text as role and content in chosen"),
        ({**CHAT, "chosen": [{"from": "gpt", "value": "x"}]}, "expected messages with role and content in chosen"),
        ({"prompt": "a", "completion": "b", "label": True}, "expected prompt, chosen, rejected"),
        ({"messages": []}, "expected prompt, chosen, rejected"),
        ({}, "expected prompt, chosen, rejected"),
        ("train", "expected a row as a mapping of columns, got 'train'"),
    ],
)
def test_a_malformed_conversation_or_format_gets_one_line(row, line):
    with pytest.raises(PreferenceError) as error:
        read_preference([row])
    assert str(error.value).startswith(f"row 0: {line}")
    assert str(error.value).isprintable()
    if isinstance(row, dict) and "chosen" not in row:
        assert f"got the keys {', '.join(row) or 'none'}: " in str(error.value)


GOOD = json.dumps(PAIRS[0]).encode()


@pytest.mark.parametrize(
    ("payload", "line"),
    [
        (GOOD + b"\n" + GOOD[:-9], "row 1: expected one JSON object a line, got x: Unterminated string"),
        (b"[" + GOOD + b",", "expected a JSON list, got x: "),
        (GOOD + b'\n{"chosen": "\xff"}', "expected UTF-8, got x with byte 0xff in line 2"),
        (GOOD.decode().encode("utf-16"), "expected UTF-8, got x with byte 0xff in line 1"),
        (gzip.compress(GOOD, mtime=0)[:-9], "expected a whole gzip file, got x: "),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "expected JSON, got x, a Git-LFS pointer"),
        (b"PAR1\x00\x00", "expected JSON, got x, a Parquet file"),
        (b"", "expected at least one pair, got none"),
        (b"[]", "expected at least one pair, got none"),
        (b"3", "row 0: expected a row as a mapping of columns, got int 3"),
        (b"[" * 100_000, "expected a JSON list, got x: "),
        (b'{"a": ' + b"9" * 5000 + b"}", "row 0: expected one JSON object a line, got x: "),
    ],
)
def test_a_broken_file_gets_one_line(tmp_path, payload, line):
    path = tmp_path / "x"
    path.write_bytes(payload)
    with pytest.raises(PreferenceError) as error:
        read_preference(path)
    assert str(error.value).startswith(line)
    assert str(error.value).isprintable()


def test_other_sources_are_refused_in_one_line(tmp_path):
    for source in (3, None, b"x", {"train": PAIRS}, PAIRS[0], tmp_path, tmp_path / "none", "owner/dataset"):
        with pytest.raises(PreferenceError, match=r"^expected .*, got .*: .*$"):
            read_preference(source)
    with pytest.raises(PreferenceError, match="on_bad"):
        read_preference(PAIRS, on_bad="ignore")
    with pytest.raises(PreferenceError, match=r"expected at least one pair, got none \(expected two responses"):
        read_preference([{**PAIRS[0], "chosen": ""}], on_bad="skip")


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda b: GOOD[:60] + b))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_read_or_refused(tmp_path, payload):
    (tmp_path / "x").write_bytes(payload)
    rows, line = (), "?"
    try:
        rows = read_preference(tmp_path / "x").rows
    except PreferenceError as error:
        line = str(error)
    assert line.isprintable()
    assert bool(rows) == (line == "?")
    assert all(row.chosen.strip() and row.rejected.strip() and row.prompt.strip() for row in rows)


# Recipes

SPACED = st.lists(st.tuples(WORD, st.sampled_from([" ", "  ", "\n", "\t\n "])), min_size=1, max_size=8).map(
    lambda parts: "".join(word + space for word, space in parts)
)


@given(SPACED, st.integers(), st.text(max_size=3))
def test_a_permutation_keeps_words_and_white_space_and_changes_the_order(text, seed, name):
    if len(set(text.split())) < 2:
        with pytest.raises(PreferenceError, match="two different words"):
            permute_words(text, seed=seed, key=("k", name))
        return
    made = permute_words(text, seed=seed, key=("k", name))
    assert Counter(made.split()) == Counter(text.split())
    assert re.findall(r"\s+", made) == re.findall(r"\s+", text)
    assert made.split() != text.split()
    assert made == permute_words(text, seed=seed, key=("k", name))


def test_every_other_order_is_equally_likely():
    counts = Counter(permute_words("a b c", seed=seed, key=()) for seed in range(3000))
    assert len(counts) == 5
    assert max(abs(count - 600) for count in counts.values()) < 5 * 600**0.5 * 0.8**0.5  # 5 sd of a binomial


@given(SPACED, st.sampled_from([0.25, 0.5, 0.9]))
def test_a_truncation_is_a_prefix_of_whole_words(text, fraction):
    keep = int(fraction * len(text.split()))
    if keep == 0:
        with pytest.raises(PreferenceError, match="truncated to nothing"):
            truncate(text, fraction)
        return
    made = truncate(text, fraction)
    assert text.startswith(made)
    assert made.split() == text.split()[:keep]
    with pytest.raises(PreferenceError, match="nothing cut off"):
        truncate(text, 1.0)


def test_random_words_come_from_the_vocabulary_evenly():
    text = random_words("a " * 4000, vocabulary=["w", "x", "y", "z"], seed=0, key=())
    counts = Counter(text.split())
    assert set(counts) == {"w", "x", "y", "z"}
    assert max(abs(count - 1000) for count in counts.values()) < 5 * 750**0.5
    for vocabulary in ([], ["a"]):
        with pytest.raises(PreferenceError, match="a vocabulary"):
            random_words("a", vocabulary=vocabulary, seed=0, key=())
    assert {random_words("a", vocabulary=["a", "b"], seed=seed, key=()) for seed in range(9)} == {"b"}


# Making

ALL = [key for key in KINDS if key not in ("chosen_initial", "test_chosen", "argmax")]


def shout(text):
    return f"{text.strip().upper()} INDEED"


def full(rows=PAIRS, kinds=ALL, **options):
    options = {"seed": 0, "test": TEST, "sampler": lambda prompt: f"a sample of {prompt}", **options}
    rewriters = {
        key: lambda text, key=key: f"{key} of {text.strip()}" for key in KINDS if KINDS[key].needs == "rewriter"
    }
    return make(rows, kinds, rewriter=rewriters, **options)


def by_example(probes):
    return {(key, name): text for key, texts in probes.responses.items() for name, text in zip(probes.ids, texts)}  # noqa: B905


def test_every_kind_is_what_it_is_said_to_be():
    probes = full()
    got = probes.responses
    assert list(got) == ALL
    chosen, tests = [row["chosen"] for row in PAIRS], [row["chosen"] for row in TEST]
    assert got["chosen"] == tuple(chosen)
    assert got["rejected"] == tuple(row["rejected"] for row in PAIRS)
    assert sorted(got["irr_train"]) == sorted(chosen)
    assert all(a != b for a, b in zip(got["irr_train"], chosen, strict=True))
    assert set(got["irr_test"]) <= set(tests)
    for made, sources in (("random_permute", chosen), ("random_nonhum", got["irr_test"])):
        for text, source in zip(got[made], sources, strict=True):
            assert text is None or (sorted(text.split()) == sorted(source.split()) and text.split() != source.split())
    vocabulary = {word for row in PAIRS for side in ("chosen", "rejected") for word in row[side].split()}
    assert all(set(text.split()) <= vocabulary for text in got["random_words"])
    assert [len(text.split()) for text in got["random_words"]] == [len(text.split()) for text in chosen]
    assert got["chosen_half"] == ("It is", "Jane Austen wrote", None, " Four, of")
    assert got["chosen_quarter"] == ("It", "Jane", None, " Four,")
    assert got["chosen_gptformat"][3] == " chosen_gptformat of Four, of\ncourse –  naturally."
    assert got["reject_gptsemantic"][0] == "reject_gptsemantic of I do not know."
    assert got["sampled"][2] == "a sample of Say hi"
    assert probes.missing == {
        "random_permute": "1 of 4: fewer than two different words to permute",
        "chosen_half": "1 of 4: truncated to nothing",
        "chosen_quarter": "1 of 4: truncated to nothing",
    }


def test_what_cannot_be_had_is_listed_with_its_reason():
    probes = make(PAIRS, KINDS, seed=0)
    assert set(probes.responses) == {
        "chosen", "rejected", "irr_train", "random_permute", "random_words", "chosen_half", "chosen_quarter",
    }  # fmt: skip
    assert set(KINDS) - set(probes.responses) <= set(probes.missing)
    reasons = {key: probes.missing[key].removeprefix("4 of 4: ") for key in probes.missing}
    assert reasons["chosen_initial"] == "the data hold none"
    assert reasons["irr_test"] == reasons["random_nonhum"] == "the data hold none and no test set was given (test=…)"
    assert reasons["irr_hum"] == reasons["chosen_selfr"] == "the data hold none and no rewriter for it was given"
    assert reasons["sampled"] == "no sampler was given"
    assert reasons["argmax"].startswith("not a text")
    assert reasons["test_chosen"].startswith("it stands behind its own prompt")
    one = make(PAIRS[:1], ["irr_train"], seed=0)
    assert one.missing == {"irr_train": "1 of 1: no other prompt with another answer"}


def test_the_default_is_all_that_can_be_made():
    assert list(make(PAIRS, seed=0).responses) == [
        "chosen", "rejected", "irr_train", "random_permute", "random_words", "chosen_half", "chosen_quarter",
    ]  # fmt: skip
    rows = [{**PAIRS[0], "irr_hum": "The cat sat."}, *PAIRS[1:]]
    more = make(rows, seed=0, test=TEST, rewriter=shout, sampler=lambda prompt: "x")
    extra = {"irr_test", "random_nonhum", "chosen_gptsemantic", "reject_gptsemantic", "sampled", "irr_hum"}
    assert set(more.responses) - set(make(PAIRS, seed=0).responses) == extra
    assert more.provenance["given"] == {"irr_hum": 1}


@given(st.sets(st.sampled_from(ALL)), st.randoms(), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60)
def test_a_response_depends_neither_on_the_other_kinds_nor_on_n_nor_on_the_order(kinds, random, n, seed):
    whole = by_example(full(seed=seed))
    order = sorted(kinds)
    random.shuffle(order)
    part = full(kinds=order, n=n, seed=seed)
    assert set(part.responses) | set(part.missing) == kinds | {"chosen", "rejected"}
    assert by_example(part).items() <= whole.items()
    assert part.ids == full(n=4, seed=seed).take(n).ids
    rows = [{**row, "name": str(i)} for i, row in enumerate(PAIRS)]
    random.shuffle(rows)
    assert by_example(full(rows, seed=seed, id_key="name")) == whole


@given(st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from("abcd")), min_size=1, max_size=9), st.integers(0, 9))
def test_another_prompts_answer_is_never_ones_own(pairs, seed):
    rows = [{"prompt": prompt, "chosen": text, "rejected": "z"} for prompt, text in pairs]
    probes = make(rows, ["irr_train"], seed=seed)
    texts = probes.responses.get("irr_train", (None,) * len(rows))
    for text, (prompt, own) in zip(texts, pairs, strict=True):
        others = {t for p, t in pairs if p != prompt and t != own}
        assert text in others if others else text is None


@given(st.integers(2, 30), st.integers(0, 99))
def test_with_distinct_rows_every_answer_is_lent_once(size, seed):
    rows = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": "z"} for i in range(size)]
    lent = make(rows, ["irr_train"], seed=seed).responses["irr_train"]
    assert sorted(lent) == sorted(row["chosen"] for row in rows)
    assert all(text != row["chosen"] for text, row in zip(lent, rows, strict=True))
    grown = make([*rows, {"prompt": "new", "chosen": "new", "rejected": "z"}], ["irr_train"], seed=seed)
    assert sum(a != b for a, b in zip(lent, grown.responses["irr_train"], strict=False)) == 1


def test_untaught_means_no_training_row_holds_it():
    shared = {"prompt": "other", "chosen": PAIRS[1]["chosen"], "rejected": "z"}
    probes = make(PAIRS, ["irr_test"], seed=0, test=[shared, TEST[0]])
    assert set(probes.responses["irr_test"]) == {TEST[0]["chosen"]}
    none = make(PAIRS, ["irr_test"], seed=0, test=[shared])
    assert none.missing["irr_test"] == "4 of 4: no other prompt with another answer that is never taught"


def test_held_out_rows_lend_as_untaught():
    probes = make(TEST, ["other_prompt"], seed=0, held_out=True)
    assert probes.responses["irr_test"] == (TEST[1]["chosen"], TEST[0]["chosen"])
    assert "irr_train" not in probes.responses
    told = make(TEST, ["irr_train", "irr_test"], seed=0, train=PAIRS)  # seen from the rows
    assert told.provenance["held_out"] is True
    assert set(told.responses["irr_train"]) <= {row["chosen"] for row in PAIRS}
    assert told.responses["irr_test"] == probes.responses["irr_test"]
    part = make(PAIRS[:2], ["irr_train"], seed=0, train=PAIRS)
    assert part.provenance["held_out"] is False
    for rows, said in ((PAIRS[:1] + TEST, None), (PAIRS, True), (TEST, False)):
        with pytest.raises(PreferenceError, match="all trained on, or all held out"):
            make(rows, seed=0, train=PAIRS, held_out=said)


def test_given_responses_are_used_unless_asked_otherwise():
    rows = [{**row, "random_permute": f"given {i}", "irr_test": "given test text"} for i, row in enumerate(PAIRS)]
    kinds = ["random_permute", "random_nonhum"]
    probes = make(rows, kinds, seed=0)
    assert probes.responses["random_permute"] == tuple(f"given {i}" for i in range(4))
    assert all(sorted(text.split()) == ["given", "test", "text"] for text in probes.responses["random_nonhum"])
    assert probes.provenance["given"] == {"random_permute": 4}
    assert (
        make(rows, kinds, seed=0, use_given=False, test=TEST).responses
        == make(PAIRS, kinds, seed=0, test=TEST).responses
    )
    assert make(rows, kinds, seed=0, use_given=False, test=TEST).provenance["given"] == {}
    odd = [{**PAIRS[0], "irr_hum": " ", "random_permute": "It is blue, \n mostly.", "random_nonhum": "b a"}]
    assert make(odd, [*kinds, "irr_hum"], seed=0).missing == {
        "irr_hum": "1 of 1: empty in the data",
        "random_permute": "1 of 1: equal to chosen",
    }


def test_a_rewriter_is_asked_once_for_a_text_and_its_failures_are_said():
    asked = []

    def rewrite(text):
        asked.append(text)
        return {"Hi": "", "A book.": "A  book.\n"}.get(text, f"so: {text}")

    probes = make(PAIRS, ["rephrase"], seed=0, rewriter=rewrite)
    assert len(asked) == len(set(asked)) == 8
    make([*PAIRS, {**PAIRS[0], "prompt": "Again?"}], ["rephrase"], seed=0, rewriter=rewrite)
    assert Counter(Counter(asked).values()) == {2: 8}  # once in each call, though two rows share their texts
    assert probes.responses["chosen_gptsemantic"] == (
        "so: It is blue, mostly.", "so: Jane Austen wrote it in 1815.", None, " so:  Four, of\ncourse –  naturally.",
    )  # fmt: skip
    assert probes.missing == {
        "chosen_gptsemantic": "1 of 4: the rewriter wrote nothing",
        "reject_gptsemantic": "1 of 4: equal to rejected",
    }
    with pytest.raises(PreferenceError, match="a text from the function that makes chosen_gptsemantic, got NoneType"):
        make(PAIRS, ["rephrase"], seed=0, rewriter=lambda text: None)
    for bad in ({"chosen": shout}, {"irr_hum": 3}, 3):
        with pytest.raises(PreferenceError, match=r"^expected a function text → text, or a mapping"):
            make(PAIRS, seed=0, rewriter=bad if isinstance(bad, dict) else {"irr_hum": bad})
    with pytest.raises(ZeroDivisionError) as error:
        make(PAIRS, ["sampled"], seed=0, sampler=lambda prompt: 1 / 0)
    assert error.value.__notes__ == ["while making sampled of example 0"]


def test_bad_numbers_are_refused():
    for options in ({"n": 0}, {"n": 5}, {"n": True}, {"n": 2.0}, {"seed": "0"}, {"seed": True}):
        with pytest.raises(PreferenceError, match=r"^expected .*, got .*: "):
            make(PAIRS, **{"seed": 0, **options})


GOLDEN = "902db85268bc18097424144065765f0117af550bddcf3c9cc749ae7dfe18df4b"


def test_the_same_seed_gives_the_same_bytes_in_every_process():
    assert full().sha256 == GOLDEN
    assert full(seed=1).sha256 != GOLDEN
    code = "import tests.test_probes as t; print(t.full().sha256)"
    for salt in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": salt}
        out = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=ROOT
        )
        assert out.stdout.strip() == GOLDEN


# ProbeSet


def test_a_set_survives_its_file(tmp_path):
    chats = [conversational(row) for row in PAIRS]
    for rows in (PAIRS, chats, [*PAIRS, *chats]):
        probes = make(rows, seed=3, n=3, test=TEST)
        probes.to_jsonl(tmp_path / "p.jsonl")
        again = ProbeSet.from_jsonl(tmp_path / "p.jsonl")
        assert again == probes
        assert again.sha256 == probes.sha256 == hashlib.sha256((tmp_path / "p.jsonl").read_bytes()).hexdigest()
        lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [line["id"] for line in lines] == list(probes.ids)
        assert [line["random_permute"] for line in lines] == list(probes.responses["random_permute"])
        assert ["probe_set" in line for line in lines] == [True, False, False]
    assert plain(tmp_path / "p.jsonl") == [  # the paper's layout, so it reads as preference data too
        (p, probes.responses["chosen"][i], probes.responses["rejected"][i]) for i, p in enumerate(probes.prompts)
    ]


def test_a_file_that_is_no_set_is_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    make(PAIRS, seed=0).to_jsonl(path)
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = [b"".join(lines[:2]), b"".join(lines[1:]), b"", GOOD, b"3\n", b"".join(lines)[:-40]]
    spoilt += [b"".join(lines).replace(old, new, 1) for old, new in (
        (b'"schema": 1', b'"schema": 2'), (b'"chosen"', b'"chozen"'), (b'"missing": {', b'"misses": {'),
        (b'"Say hi"', b'null'), (b'"id": "1"', b'"id": "0"'), (b'"Hi"', b'" "'), (b'"chosen": "Hi"', b'"chose": "Hi"'),
    )]  # fmt: skip
    for payload in spoilt:
        path.write_bytes(payload)
        with pytest.raises(PreferenceError, match=r"expected .*, got .*: ") as error:
            ProbeSet.from_jsonl(path)
        assert str(error.value).isprintable()
    with pytest.raises(PreferenceError, match="expected to write"):
        make(PAIRS, seed=0).to_jsonl(tmp_path / "none" / "p.jsonl")


def test_a_set_keeps_its_shape():
    good = {"ids": ("0", "1"), "prompts": ("a", "b"), "responses": {"chosen": ("x", None)}}
    assert len(ProbeSet(**good)) == 2
    for change in (
        {"ids": ("0", "0")},
        {"ids": ("0", "1\n")},
        {"ids": ()},
        {"prompts": ("a",)},
        {"prompts": ("a", " ")},
        {"responses": {"chosen": ("x",)}},
        {"responses": {"chosen": ("x", "")}},
        {"responses": {"chosen": ("x", 3)}},
        {"responses": {"rejected": ("x", "y")}},
        {"responses": {"chosen": ("x", "y"), "other": ("x", "y")}},
        {"messages": (None,)},
    ):
        with pytest.raises(PreferenceError):
            ProbeSet(**{**good, **change})
    with pytest.raises(PreferenceError, match="from 1 to 2"):
        ProbeSet(**good).take(3)


def test_items_are_what_a_model_has_to_score():
    probes = full()
    items = list(probes.items())
    assert any(None in texts for texts in probes.responses.values())
    assert len(items) == sum(text is not None for texts in probes.responses.values() for text in texts)
    assert {(item.kind, item.example): item.response for item in items} == {
        where: text for where, text in by_example(probes).items() if text is not None
    }
    assert {(item.example, item.prompt) for item in items} == set(zip(probes.ids, probes.prompts, strict=True))
    kinds = list(probes.responses)
    ds = trajectory({"logp": [[[[-1.0] * len(probes)] * len(kinds)]]}, step=[0], probe=kinds, example=probes.ids)
    assert tuple(ds.probe.values) == tuple(kinds)


# Checks before training


def test_checks_name_what_is_wrong_and_are_silent_where_nothing_is():
    assert check_pairs(PAIRS) == []
    a, b = PAIRS[:2]
    turned = {"prompt": a["prompt"], "chosen": a["rejected"], "rejected": a["chosen"]}
    doubled = {"prompt": "Q", "chosen": "Q yes", "rejected": "Q no"}
    shared = {"prompt": "Q", "chosen": "It is so", "rejected": "It is not"}
    for rows, code, text in (
        ([a, b, {**a, "chosen": a["chosen"] + "\n"}], "duplicate-pairs", "1 of 3 rows repeat an earlier pair: 2"),
        ([a, b, turned], "contradictory-pairs", "2 of 3 rows also come with chosen and rejected exchanged: 0, 2"),
        ([a, shared], "shared-start", "1 of 2 rows begin both responses with the same word: 1"),
        ([a, {**a, "chosen": " "}], "refused-rows", "1 of 2 rows cannot be used: 1 (row 1: expected two responses"),
    ):
        (finding,) = check_pairs(rows)
        assert finding["code"] == code
        assert finding["text"].startswith(text)
    assert [finding["code"] for finding in check_pairs([doubled])] == ["prompt-repeated", "shared-start"]
    chat = conversational(a)
    twice = {"prompt": chat["prompt"], **{side: chat["prompt"] + chat[side] for side in ("chosen", "rejected")}}
    assert "prompt-repeated" in [finding["code"] for finding in check_pairs([twice])]
    assert check_pairs([chat]) == []


# A real model


@pytest.fixture(scope="module")
def stories(data):
    transformers = pytest.importorskip("transformers")
    folder = data / "models/stories260K"
    return transformers.AutoModelForCausalLM.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def test_a_rewriter_from_a_model_writes_greedily_and_leaves_the_model_as_it_was(stories):
    import torch

    model, tokenizer = stories
    model.train()
    state = torch.random.get_rng_state()
    tell = rewriter_from_model(model, tokenizer, instruction="Once upon {text}", room=24)
    assert tell("a time").startswith(", there was a little girl named Lily. She loved to play outside in the p")
    assert tell("a time") == tell("a time")
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    probes = make(PAIRS, ["rephrase"], seed=0, rewriter=rewriter_from_model(model, tokenizer, room=8))
    assert len(probes.responses["chosen_gptsemantic"]) == 4
    with pytest.raises(PreferenceError, match="shorter than the model's 512 tokens"):
        tell("a time " * 300)


def test_a_sampler_from_a_model_draws_by_seed_and_text(stories):
    import torch

    model, tokenizer = stories
    one, two = (sampler_from_model(model, tokenizer, seed=seed, room=24) for seed in (0, 1))
    model.eval()
    state = torch.random.get_rng_state()
    first = one("Once upon a time")
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    one("The dog")
    assert one("Once upon a time") == first
    assert two("Once upon a time") != first
    greedy = sampler_from_model(model, tokenizer, seed=None, room=24)
    assert greedy("Once upon a time").startswith(", there was a little girl named Lily.")
    with pytest.raises(PreferenceError, match="chat template"):
        one(CHAT["prompt"])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    try:
        asked = [{"role": "user", "content": "Once upon a time"}]
        assert greedy(asked).startswith(", there was a little girl named Lily.")
        told = rewriter_from_model(model, tokenizer, instruction="Once upon {text}", room=24)("a time")
        assert told.startswith(", there was a little girl named Lily.")
        probes = make([conversational({**PAIRS[0], "prompt": "Once upon a time"})], ["sampled"], seed=0, sampler=greedy)
        assert probes.responses["sampled"][0].startswith(", there was a little girl")
    finally:
        tokenizer.chat_template = None


def test_a_model_with_other_weights_words_or_wishes_is_asked_again(stories, tmp_path):
    import copy

    import torch

    model, tokenizer = copy.deepcopy(stories[0]), stories[1]
    file = tmp_path / "answers.sqlite"
    ask = cached(sampler_from_model(model, tokenizer, room=2), file)
    first = ask("Once upon a time")
    assert (ask("Once upon a time"), ask.asked) == (first, 1)
    for other in ({"room": 3}, {"room": 2, "seed": 1}):
        again = cached(sampler_from_model(model, tokenizer, **other), file)
        again("Once upon a time")
        assert again.asked == 1
    same = cached(sampler_from_model(copy.deepcopy(model), tokenizer, room=2), file)
    assert (same("Once upon a time"), same.asked) == (first, 0)  # another object, the same model
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 5] += 0.5  # as an optimiser's step: the sampler sees it at once
    ask("Once upon a time")
    assert ask.asked == 2
    names = {rewriter_from_model(model, tokenizer, instruction=words).name for words in ("Say: {text}", "{text}")}
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    try:
        names.add(rewriter_from_model(model, tokenizer, instruction="{text}").name)
    finally:
        tokenizer.chat_template = None
    names.add(rewriter_from_model(copy.deepcopy(model).bfloat16(), tokenizer, instruction="{text}").name)
    assert len(names) == 4


def test_a_large_parameter_is_known_by_its_pieces():
    import torch

    from toyld.probes.models import PIECE, identity

    class Words:
        eos_token_id, chat_template = 0, None

        def get_vocab(self):
            return {"a": 0}

    class Net(torch.nn.Linear):
        config = type("Config", (), {"to_dict": lambda self: {"size": 1}})()
        generation_config = type("Config", (), {"eos_token_id": 0})

    net = Net(PIECE, 4, bias=False)
    net.weight.data.zero_()
    known = {identity(net, Words())}
    for place in (0, 2 * PIECE, 4 * PIECE - 1):
        net.weight.data.view(-1)[place] = 1.0
        known.add(identity(net, Words()))
    assert len(known) == 4


def test_the_command_asks_models_once(stories, tmp_path, capsys, data):
    from toyld import cli

    def run(*words):
        with pytest.raises(SystemExit) as end:
            cli.main(["probes", *map(str, words)])
        return end.value.code, capsys.readouterr().out

    model = data / "models/stories260K"
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:2])))
    words = [tmp_path / "pairs.jsonl", "--rewriter", model, "--sampler", model, "--room", 12]
    words += ["--kinds", "reject_gptsemantic,sampled"]
    code, said = run(*words, "--out", tmp_path / "a.jsonl")
    assert code == 0
    assert "4 texts asked of models, 0 answers from the cache" in said
    code, said = run(*words, "--out", tmp_path / "b.jsonl", "--cache", tmp_path / "a.jsonl.answers.sqlite")
    assert "0 texts asked of models, 4 answers from the cache" in said
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert len(ProbeSet.from_jsonl(tmp_path / "a.jsonl").responses["sampled"]) == 2
