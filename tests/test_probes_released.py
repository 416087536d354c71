"""What the released files hold, by content (F17 among it), and every fault planted in rows that have none."""

import random

import pytest

from toyld.probes import KINDS, PreferenceError, make, read_preference
from toyld.probes.released import OWN, audit, compare

SETS = ("train", "test")
# Facts of the released files: rows without a text, unparsed ones, permutations that kept the order, irr_train texts of
# other rows, different ones among them, pairs with one first word. Words are those of str.split.
FACTS = {
    "train": ({"chosen_initial": 21, "rejected": 1}, 376, (9, 6), 499, 306, 45),
    "test": ({"chosen_initial": 29, "chosen_selfr": 4, "rejected": 1}, 369, (10, 16), 500, 310, 42),
}
WORDS = {
    "chosen": 46.9,
    "rejected": 35.0,
    "chosen_gptsemantic": 36.8,
    "irr_train": 50.5,
    "irr_test": 40.1,
    "irr_hum": 43.9,
}


@pytest.fixture(scope="module")
def released(data):
    return {name: audit(data / f"preference/hh_probing_{name}.jsonl") for name in SETS}


def codes(found, *, beside=("leading-space",)):
    return [finding["code"] for finding in found.findings if finding["code"] not in beside]


@pytest.mark.parametrize("name", SETS)
def test_what_was_released_by_kind(released, name):
    """F17: y_rnd, "random English words", is every time the words of irr_test; and what else the files are."""
    found, (empty, unparsed, kept_order, lent, different, start) = released[name], FACTS[name]
    kinds = found.kinds
    assert found.rows == 500
    assert {key: kind.what for key, kind in kinds.items() if kind.what != OWN} == {
        "irr_train": "borrowed chosen",
        "random_permute": "permutation of chosen",
        "random_nonhum": "permutation of irr_test",
    }
    for made, source, kept in (
        ("random_permute", "chosen", kept_order[0]),
        ("random_nonhum", "irr_test", kept_order[1]),
    ):
        relations = kinds[made].relations
        assert len(relations["copy of", source]) == kept
        assert len(relations["permutation of", source]) == 500 - kept  # by words all of them
    assert len(kinds["irr_train"].relations["borrowed", "chosen"]) == lent
    assert kinds["irr_train"].distinct == different  # lent with replacement: 500 (1 − 1/e) = 316 are expected
    assert {key: len(kind.empty) for key, kind in kinds.items() if kind.empty} == empty
    assert {key: kind.unparsed for key, kind in kinds.items() if kind.unparsed} == {"chosen_selfr": unparsed}
    spaced = {key for key, kind in kinds.items() if 2 * kind.spaced > kind.texts}
    assert spaced == {"chosen", "chosen_initial", "rejected", "irr_train", "irr_test"}
    texts = {finding["code"]: finding["text"] for finding in found.findings}
    assert texts["shared-start"].startswith(f"chosen and rejected begin with the same word in {start} rows")
    assert texts["not-random-words"].startswith("random_nonhum is said to be random words")
    if name == "train":
        assert {key: round(kinds[key].words, 1) for key in WORDS} == WORDS
        assert kinds["rejected"].empty == (247,)


def test_the_two_released_sets_share_no_answers_and_lend_within_themselves(data):
    """In the test set irr_train comes from test prompts, too: nothing of it was taught."""
    rows = {
        name: list(read_preference(data / f"preference/hh_probing_{name}.jsonl", on_bad="skip").rows) for name in SETS
    }
    chosen = {name: {row.chosen for row in part} for name, part in rows.items()}
    assert not {row.prompt for row in rows["train"]} & {row.prompt for row in rows["test"]}
    for name, other in (SETS, SETS[::-1]):
        lent = [row.extra["irr_train"] for row in rows[name]]
        assert (
            sum(text in chosen[name] for text in lent) >= 497
        )  # of 499: rows without a rejected response are left out
        assert sum(text in chosen[other] and text not in chosen[name] for text in lent) == 0


def test_our_builder_makes_what_was_released_and_what_it_was_said_to_be(data, released):
    files = {name: data / f"preference/hh_probing_{name}.jsonl" for name in SETS}
    kinds = ["irr_train", "irr_test", "random_permute", "random_nonhum", "random_words"]
    probes = make(files["train"], kinds, seed=0, use_given=False, test=files["test"], on_bad="skip")
    ours = audit(probes)
    beside = {kind: (theirs, mine, same) for kind, theirs, mine, same in compare(released["train"], ours)}
    assert set(beside) == {"chosen", "rejected", *kinds} - {"random_words"}
    assert all(same for _, _, same in beside.values())
    # Where the builder is better: no order kept by chance, every answer lent once, nothing empty.
    for made, source in (("random_permute", "chosen"), ("random_nonhum", "irr_test")):
        assert ("copy of", source) not in ours.kinds[made].relations
    assert ours.kinds["irr_train"].distinct > 490 > 310 > released["train"].kinds["irr_train"].distinct
    assert not ours.kinds["rejected"].empty
    assert abs(ours.kinds["irr_train"].words - ours.kinds["chosen"].words) < 0.1  # theirs: 50.5 beside 46.9
    # Random words, as the paper says: of no other kind's words, and hardly of irr_test's.
    assert ours.kinds["random_words"].what == OWN
    assert "not-random-words" in codes(ours)
    part = [
        sum(word in source.split() for word in text.split()) / len(text.split())
        for text, source in zip(probes.responses["random_words"], probes.responses["irr_test"], strict=True)
    ]
    assert sum(part) / len(part) < 0.05


def plain(n=8):
    """Rows without a fault: every response of distinct words of its own."""
    return [
        {key: " ".join(f"{key}{i}w{j}" for j in range(5)) for key in KINDS if key not in ("argmax", "test_chosen")}
        for i in range(n)
    ]


def shuffled(text):
    words = text.split()
    return " ".join([words[-1], *words[:-1]])


def lend(rows, key, source):
    texts = [row[source] for row in rows]
    return [row | {key: text} for row, text in zip(rows, texts[1:] + texts[:1], strict=True)]


def each(change):
    return lambda rows: [row | change(row) for row in rows]


def one(at, change):
    return lambda rows: [row | (change(row) if i == at else {}) for i, row in enumerate(rows)]


FAULTS = {
    "permutation": (each(lambda r: {"random_permute": shuffled(r["chosen"])}), "random_permute", "chosen"),
    "not-random-words": (each(lambda r: {"random_nonhum": shuffled(r["irr_test"])}), "random_nonhum", "irr_test"),
    "borrowed": (lambda rows: lend(rows, "irr_train", "chosen"), "irr_train", "chosen"),
    "copies": (each(lambda r: {"irr_hum": r["rejected"].replace(" ", "\n") + " "}), "irr_hum", "rejected"),
    "beginning": (each(lambda r: {"chosen_half": " ".join(r["chosen"].split()[:2])}), "chosen_half", "chosen"),
    "unparsed": (one(0, lambda r: {"chosen_selfr": "1. @@@ so"}), "chosen_selfr", None),
    "empty": (one(7, lambda r: {"rejected": " "}), "rejected", None),
    "shared-start": (one(3, lambda r: {"rejected": r["chosen"].split()[0] + " x"}), "rejected", None),
    "leading-space": (each(lambda r: {"sampled": " " + r["sampled"]}), "sampled", None),
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(code):
    fault, kind, other = FAULTS[code]
    clean = audit(plain())
    assert clean.findings == ()
    assert {facts.what for facts in clean.kinds.values()} == {OWN}
    rows = fault(plain())
    found = audit(rows)
    expected = {"permutation", code} if code == "not-random-words" else {code}
    if code == "not-random-words":
        assert codes(found) == ["permutation", "not-random-words"]
    assert set(codes(found, beside=())) == expected
    relation = {"copies": "copy of", "borrowed": "borrowed", "beginning": "beginning of"}.get(code, "permutation of")
    assert found.kinds[kind].relation == (None if other is None else (relation, other))
    assert all(kind in finding["text"] for finding in found.findings)
    others = {key: facts for key, facts in found.kinds.items() if key != kind}
    assert {facts.what for facts in others.values()} == {OWN}
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    again = audit([rows[i] for i in order])
    assert {key: facts.what for key, facts in again.kinds.items()} == {
        key: facts.what for key, facts in found.kinds.items()
    }


def test_half_of_the_texts_decide_what_a_kind_is():
    def of(n):
        return audit([x | ({"irr_hum": shuffled(x["chosen"])} if i < n else {}) for i, x in enumerate(plain(8))]).kinds[
            "irr_hum"
        ]

    assert [of(n).what for n in (3, 4)] == [OWN, "permutation of chosen"]
    assert of(3).relations == {("permutation of", "chosen"): (0, 1, 2)}
    rows = [x | {"irr_hum": x["chosen"] if i < 6 else shuffled(x["chosen"])} for i, x in enumerate(plain(8))]
    assert audit(rows).kinds["irr_hum"].what == "copy of chosen"


def test_a_copy_is_not_borrowed_and_a_permutation_counts_its_words():
    facts = audit([row | {"irr_hum": row["rejected"]} for row in plain()]).kinds["irr_hum"]
    assert facts.relations == {("copy of", "rejected"): tuple(range(8))}
    more = audit([row | {"irr_hum": f"{row['chosen']} {row['chosen'].split()[0]}"} for row in plain()])
    assert more.kinds["irr_hum"].what == OWN


def test_conversations_and_probe_sets_are_audited_alike_and_bad_rows_named():
    rows = [x | {"prompt": f"p{i}"} for i, x in enumerate(plain())]
    chats = [{key: [{"role": "assistant", "content": text}] for key, text in x.items()} for x in plain()]
    assert audit(chats) == audit(rows)
    probes = make(rows, ["random_permute", "irr_hum"], seed=0)
    assert audit(probes).kinds["irr_hum"].words == 5
    for bad, line in (
        ([*rows, 3], r"^row 8: expected a row as a mapping"),
        ([{"chosen": 3}], r"^row 0: expected a string in chosen"),
        ([{"x": 1}], r"^expected rows with responses among "),
    ):
        with pytest.raises(PreferenceError, match=line):
            audit(bad)
