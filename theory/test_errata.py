"""The list of faulty statements in chapter 13: complete, each with a claim about it, shown where the list says."""

import re
from pathlib import Path

import pytest

from toyld import claims
from toyld.book import chapters

FOLDER = Path(__file__).parent
KNOWN = claims.every()
CHAPTER = chapters.read(FOLDER / "13_errata.py")
LABELS = ["F1", "F1b", *(f"F{n}" for n in range(2, 18))]
# Claims whose source speaks of the statement without its F-number.
BY_SUBJECT = {"F16": "Table 1"}


def listed(text):
    """The rows of the two tables: label → statement and correction, label → where and claim."""
    (cell,) = [c for c in text.split("# %%") if "## The list of the book" in c]
    rows = [[part.strip() for part in line[1:].strip().strip("|").split("|")] for line in cell.splitlines()]
    rows = [row for row in rows if re.fullmatch(r"F\d+b?", row[0])]
    half = len(rows) // 2
    return rows[:half], rows[half:]


def faults(text):
    """What is wrong with the list, a line each."""
    said, shown = listed(text)
    out = []
    for name, rows in (("statements", said), ("claims", shown)):
        if [row[0] for row in rows] != LABELS:
            out.append(f"{name}: expected F1, F1b to F17, got {[row[0] for row in rows]}")
        out += [f"{row[0]}: expected three cells with text, got {row}" for row in rows if len(row) != 3 or not all(row)]
    for label, where, claim in shown:
        ids = re.findall(r"`([^`]+)`", claim)
        if label == "F17":
            out += [f"F17: expected no claim, got {ids}"] if ids else []
            continue
        if len(ids) != 1 or ids[0] not in KNOWN:
            out.append(f"{label}: expected one claim, got {claim}")
            continue
        one = KNOWN[ids[0]]
        if not re.search(rf"\b{BY_SUBJECT.get(label, label)}\b", one.source):
            out.append(f"{label}: {one.id} is about {one.source}")
        if where != (expected := shown_in(one.id, label, text)):
            out.append(f"{label}: expected {expected!r}, where the chapters name {one.id}, got {where!r}")
    return out


def shown_in(id, label, text):
    """Where a claim is shown: the chapters that name it, and “here” if none does or the text here goes on about it."""
    others = [int(path.name[:2]) for path in FOLDER.glob("[01][0-9]_*.py") if path.name != CHAPTER.path.name]
    named = [str(n) for n in sorted(others) if id in next(FOLDER.glob(f"{n:02}_*.py")).read_text(encoding="utf-8")]
    here = not named or re.search(rf"\({label}\)|\b{label}, for example", text)
    chapter = [f"chapter{'s' * (len(named) > 1)} {', '.join(named)}"] * bool(named)
    return ", ".join([*chapter, *["here"] * bool(here)])


def test_every_faulty_statement_stands_in_the_list_with_its_claim():
    assert not faults(CHAPTER.path.read_text())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("# | F9 | App. A.3", "# | F8 | App. A.3"),
        ("`residual.printed-ipo` |", "`residual.printed-slic` |"),
        ("`residual.printed-ipo` |", "`residual.printed-ip` |"),
        ("| F13 | chapter 5 |", "| F13 | chapter 4 |"),
        ("| F13 | chapter 5 |", "| F13 | |"),
        ("| F11 | chapters 1, 7 |", "| F11 | chapter 7 |"),
        ("| F2 | here |", "| F2 | chapter 1 |"),
        ("| F8 | chapter 2, here |", "| F8 | chapter 2 |"),
        ("`alignment.extend-wins-at-equal-updates` |", "`alignment.dpo-repeats` |"),
        ("none; the files say so |", "`residual.printed-ipo` |"),
    ],
)
def test_a_wrong_list_turns_red(right, wrong):
    text = CHAPTER.path.read_text()
    assert text.count(right) == 1
    assert faults(text.replace(right, wrong))


def test_refuted_claims_about_one_softmax_are_in_the_list_or_printed_with_the_others():
    labelled = {c.id for c in KNOWN.values() if c.expect == "refuted" and re.search(r"\bF\d", c.source)}
    ids = set(re.findall(r"`([a-z]+\.[a-z0-9-]+)`", CHAPTER.path.read_text()))
    left = {id for id in labelled - ids if KNOWN[id].about == "run"}
    assert left <= {"supervised.shuffled-fall"}, "S5, of which F11 is a part: chapters 6 and 7"
    assert 'about == "step"' in CHAPTER.path.read_text(), "those of one softmax are listed from the registry"
