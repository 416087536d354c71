"""Numbers held to code, and what lets a wrong one pass: each fault planted in a small chapter is told."""

import doctest
import importlib

import pytest

import toyld.book
from toyld import claims
from toyld.book import chapters, formula, planted, prose, says
from toyld.book.says import another, numerals

MODULES = ("says", "prose", "maths", "exercises", "render", "chapters", "planted", "recorded", "readme")


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(f"toyld.book.{name}")).failed == 0


def test_a_chapter_whose_numbers_are_held(tmp_path, small):
    path = small.write(tmp_path)
    assert prose.unheld(path) == []
    assert planted.copied(path) == []
    assert planted.misplaced(chapters.read(path), claims.every()) == []


UNHELD = {
    "another number in the text": ("It is 0.50 of it, as", "It is 0.51 of it, as", "a phrase that the prose does not"),
    "one more number": ("** What is half", "** What is 4 halves", "nothing holds 4"),
    "a share in words": ("** What is half of", "** What is one in nine of", "nothing holds one in nine"),
    "a part in words": ("** What is half of", "** What are four fifths of", "nothing holds four fifths"),
    "a multiple in words": ("# It is 0.50", "# Twice as much. It is 0.50", "nothing holds Twice"),
    "a large number in words": ("# It is 0.50", "# Ten thousand times. It is 0.50", "nothing holds Ten thousand times"),
    "a cardinal above ten": ("# It is 0.50", "# Seventeen. It is 0.50", "nothing holds Seventeen"),
    "a power of ten": ("** What is half of", "** What is 1e-9 of", "nothing holds 1e-9"),
    "zero in an inequality": ("#     y = x/2 + 3 ", "#     y = x/2 + 3, x ≥ 0 ", "nothing holds 0"),
    "one in an inequality": ("#     y = x/2 + 3 ", "#     −1 ≤ x, y = x/2 + 3 ", "nothing holds −1"),
    "a number in a table": ("# | 0.5 | 0.25 |", "# | 0.5 | 0.26 |", "nothing holds 0.26"),
    "a number in a formula": ("#     y = x/2 + 3 ", "#     y = x/2 + 4 ", "nothing holds 4"),
    "a formula whose code has another constant": ("x / 2 + 3)", "x / 2 + 4)", "its sides [2.0, 4.0]"),
    "a phrase that nobody reads": ("or 1/2 in π", "or one half in π", "a phrase that the prose does not"),
}


@pytest.mark.parametrize("what", UNHELD)
def test_unheld_tells(what, tmp_path, small):
    before, after, told = UNHELD[what]
    faults = prose.unheld(small.write(tmp_path, small.swapped(small.CHAPTER, before, after)))
    if "sides" in told:
        assert any("has [2.0, 3.0]" in fault for fault in faults)
    else:
        assert any(told in fault for fault in faults), faults


@pytest.mark.parametrize(
    "words", ["one of two softmaxes", "the third class", "a third token", "first and second", "ten answers", "at once"]
)
def test_words_that_count_or_name_are_no_numbers(words):
    assert numerals(words) == []


STANDS_FOR = {
    "one in nine": (0.1056, 0.1174),
    "Nine in ten": (0.851, 0.949),
    "two times in three": (0.51, 0.83),
    "nine of ten": (0.851, 0.949),
    "once in four": (0.23, 0.28),
    "a third": (0.29, 0.39),
    "four fifths": (0.71, 0.89),
    "a ten-thousandth": (0.951e-4, 1.049e-4),
    "one half": (0.41, 0.66),
    "by half": (0.41, 0.66),
    "twice as": (1.51, 2.49),
    "four times": (3.51, 4.49),
    "ten thousand": (9501, 10499),
    "six million": (5.71e6, 6.29e6),
    "Seventeen": (16.51, 17.49),
    "twenty-five": (24.51, 25.49),
}


@pytest.mark.parametrize("words", STANDS_FOR)
def test_words_stand_for_what_rounds_to_them(words):
    low, high = STANDS_FOR[words]
    for value in (low, high):
        says(words, value)
    for value in (low - 0.05 * low, high + 0.05 * high):
        with pytest.raises(AssertionError, match="is printed where the code gives"):
            says(words, value)
    (number,) = numerals(words)
    with pytest.raises(AssertionError):
        says(words.replace(number.text, another(number.text)), number.value)


def test_an_inequality_holds_as_printed():
    x = [0.0, 0.5, 1.0]
    formula("0 ≤ x² ≤ x", 0, [0.0, 0.25, 1.0], x)
    for wrong in ("0 ≥ x² ≥ x", "0 < x² ≤ x", "0 ≤ x² < x"):
        with pytest.raises(AssertionError, match="does not hold in"):
            formula(wrong, 0, [0.0, 0.25, 1.0], x)


def test_every_number_of_a_text_is_planted(tmp_path, small):
    text = prose.Text(small.write(tmp_path))
    told = [what for what, _ in planted.wrong(text.text, text.excused())]
    assert {what.split(" → ")[0] for what in told} == {"half", "0.50", "1/2", "7²", "49", "2", "3", "0.5", "0.25"}
    assert all(text.faults(changed) for _, changed in planted.wrong(text.text, text.excused()))


def test_a_wrong_number_in_text_and_phrase_stops_the_chapter(tmp_path, small):
    both = small.swapped(small.CHAPTER, "It is 0.50 of it", "It is 0.52 of it")
    path = small.write(tmp_path, both)
    assert prose.unheld(path) == []
    failed = [one.failed for one in chapters.run(chapters.read(path), tmp_path / "solutions") if one.failed]
    assert "0.52 is printed where the code gives 0.5" in failed[0]


def watched(tmp_path, monkeypatch, small, text):
    tried = planted.watch(monkeypatch, toyld.book)
    (tmp_path / "run").mkdir()
    shown = chapters.run(chapters.read(small.write(tmp_path, text)), tmp_path / "run")
    assert not [one.failed for one in shown if one.failed]
    return [line for lines in tried.values() for line in lines], set(tried)


def test_watching_tries_wrong_numbers_where_the_code_runs(tmp_path, monkeypatch, small):
    text = small.swapped(small.CHAPTER, "49 + half - half", "49 + 5 * (half - half)")
    passed, seen = watched(tmp_path, monkeypatch, small, text)
    assert seen == {"What is half of", "It is 0.50 of it", "or 1/2 in", "y = x/2 + 3", "7² = 49", "| 0.5 | 0.25 |"}
    assert passed == ["“7² = 49”: its constant number 4, 5, could be one more"]


def test_watching_tells_what_would_pass(monkeypatch):
    tried = planted.watch(monkeypatch, toyld.book)
    monkeypatch.setattr(planted, "others", lambda number: iter([number]))  # a planted number that is no fault
    toyld.book.says("it is 0.5", 0.5)
    assert tried == {"it is 0.5": ["“it is 0.5”: 0.5 could be 0.5"]}


COPIED = {
    "a number": ('says("It is 0.50 of it", half)', 'says("It is 0.50 of it", 0.5)'),
    "a sum of numbers": ('says("It is 0.50 of it", half)', 'says("It is 0.50 of it", 0.25 + 1 / 4)'),
    "a name for a number": ('says("It is 0.50 of it", half)', 'typed = 0.5\nsays("It is 0.50 of it", typed)'),
    "one of two": ('0.25 |", half, half**2)', '0.25 |", half, 0.25)'),
    "a formula of numbers": ("7**2, 49 + half - half)", "7**2, 49)"),
}


@pytest.mark.parametrize("what", COPIED)
def test_a_second_copy_is_no_hold(what, tmp_path, small):
    before, after = COPIED[what]
    (fault,) = planted.copied(small.write(tmp_path, small.swapped(small.CHAPTER, before, after)))
    assert "typed in, not" in fault


BOXES = {
    "missing": ("`squeeze.penalised-falls`.\n# - **F", "nothing.\n# - **F", "expected in exactly one line"),
    "wrong line": ("order**: nothing here", "order**: `squeeze.larger-step-amplifies-all`", "expected: refuted"),
    "twice": ("**Measured**: nothing here", "**Measured**: `squeeze.penalised-falls`", "expected in exactly one line"),
    "no such claim": ("**Measured**: nothing here", "**Measured**: `squeeze.of-nothing`", "no claim has the id"),
    "an empty line": ("**Measured**: nothing here", "**Measured**: well", "expected claims, or the word"),
}


@pytest.mark.parametrize("what", BOXES)
def test_a_wrong_box_is_told(what, tmp_path, small):
    before, after, told = BOXES[what]
    chapter = chapters.read(small.write(tmp_path, small.swapped(small.CHAPTER, before, after)))
    faults = planted.misplaced(chapter, claims.every())
    assert any(told in fault for fault in faults), faults


def test_where_a_claim_may_stand():
    every = claims.every()
    lines = {id: [line for line in chapters.LINES if planted.fits(every[id], line)] for id in every}
    assert all(lines.values()), "every claim has a line"
    assert lines["squeeze.penalised-falls"] == ["Proved"]
    assert lines["trends.scaled-turning-point"] == ["First order"]
    assert lines["squeeze.larger-step-amplifies-all"] == ["Refuted or open"]
    assert lines["preference.margin-grows"] == ["Measured"]
    assert not [id for id, one in every.items() if one.about == "run" and set(lines[id]) & {"Proved", "First order"}]
    assert not [id for id, one in every.items() if one.expect == "refuted" and "Proved" in lines[id]]
