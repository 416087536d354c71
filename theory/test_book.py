"""The book: every chapter and every exercise runs, its numbers are held, its box agrees with the registry.

The test id is the chapter's file name: `pytest theory -k 03` tries all there is about chapter 3.
"""

import ast
import doctest
import re
from pathlib import Path

import pytest

import toyld.book
from toyld import claims
from toyld import softmax as sm
from toyld.book import chapters, exercises, planted, prose, readme
from toyld.book.says import numerals

FOLDER = Path(__file__).parent
CHAPTERS = chapters.found(FOLDER)
KNOWN = claims.every()
NUMBERS = range(1, 14)

each_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)


@each_chapter
def test_chapter_runs_and_draws_one_picture(chapter, tmp_path, monkeypatch):
    tried = planted.watch(monkeypatch, toyld.book)
    cells = chapters.read(chapter)
    shown = chapters.run(cells, tmp_path)
    assert not [one.failed for one in shown if one.failed], "\n".join(one.failed for one in shown)
    assert "".join(one.printed for one in shown), "a chapter shows its numbers"
    pictures = [name for one in shown for name in one.pictures]
    assert pictures == [f"{chapter.stem}.png"], (
        "a chapter draws one picture, named like itself, and leaves nothing else"
    )
    held = [phrase for _, phrase, _ in prose.calls(chapter)]
    assert set(tried) == set(held), f"never reached: {set(held) - set(tried)}"
    assert not [line for lines in tried.values() for line in lines], "a wrong number in prose and phrase would pass"


@each_chapter
def test_chapter_has_its_parts(chapter):
    text = chapter.read_text()
    assert len(text.splitlines()) <= 300
    for part in ("# # ", "**Question.**", f"# {chapters.BOX}", "## Picture", f"theory/solutions/{chapter.name}"):
        assert part in text, part
    for part in ("## Exercise", "**Solution.**"):
        assert part not in text, f"{part}: exercises stand in theory/solutions/"
    assert chapters.read(chapter).title
    assert chapters.read(chapter).question
    called = {ast.unparse(n.func).split(".")[-1] for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)}
    assert "hold" in called, "a chapter holds its statements by claim id"
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert)], (
        "use numpy.testing: a bare assert fails without its numbers"
    )


@each_chapter
def test_code_holds_every_number_of_the_prose(chapter):
    assert not prose.unheld(chapter)


@each_chapter
def test_a_wrong_number_in_the_prose_turns_red(chapter):
    text = prose.Text(chapter)
    wrong = list(planted.wrong(text.text, text.excused()))
    assert len(wrong) >= 4, "a chapter has numbers"
    assert not [told for told, changed in wrong if not text.faults(changed)]


@each_chapter
def test_values_come_from_code_and_not_from_a_second_copy(chapter):
    assert not planted.copied(chapter)


@each_chapter
def test_box_agrees_with_the_registry(chapter):
    assert not planted.misplaced(chapters.read(chapter), KNOWN)


def test_a_claim_in_the_wrong_line_of_the_box_turns_red():
    for chapter in map(chapters.read, CHAPTERS):
        placed = planted.placed(chapter, KNOWN)
        assert placed, chapter.stem
        for id, line in placed.items():
            for other in chapters.LINES:
                moved = planted.moved(chapter, id, other)
                if other != line and planted.fits(KNOWN[id], other):  # a run claim that holds here and not there
                    assert not [m for m in planted.misplaced(moved, KNOWN) if "exactly one" in m]
                elif other != line:
                    assert planted.misplaced(moved, KNOWN), f"{chapter.stem}: {id} passes under {other}"


def test_the_chapters_are_numbered_without_a_gap():
    assert [int(path.name[:2]) for path in CHAPTERS] == list(NUMBERS)


def test_chapters_name_claims_that_exist():
    words = {id.split(".")[0] for id in KNOWN}
    for path in [*CHAPTERS, *(exercises.of(path) for path in CHAPTERS if exercises.of(path).exists())]:
        named = set(chapters.ids(path.read_text()))
        # Some ids are put together: "….equal-" + "margin".
        missing = {id for id in named if id.split(".")[0] in words and not any(one.startswith(id) for one in KNOWN)}
        assert not missing, path.name


@each_chapter
def test_exercises_are_complete_and_held(chapter):
    sheet = exercises.sheet(exercises.of(chapter))
    assert 2 <= len(sheet.exercises) <= 3
    assert sheet.setup[0].source.startswith(f"# Exercises to chapter {int(chapter.name[:2])}")
    for one in sheet.exercises:
        answers = exercises.names(one.solution.source)
        assert answers, f"exercise {one.number} has nothing to answer"
        for mistake in one.mistakes:
            assert mistake.source.startswith("#"), "a mistake says in a comment what went wrong in the thinking"
            assert exercises.names(mistake.source) == answers
        question = one.question.source + "".join(c.source for c in sheet.setup)
        assert all(re.search(rf"\b{name}\b", question) for name in answers), "the question tells the names to write"
    assert not prose.unheld(exercises.of(chapter))
    assert not planted.copied(exercises.of(chapter))


@each_chapter
def test_exercises_run_and_refuse_blanks_and_mistakes(chapter, tmp_path, monkeypatch):
    tried = planted.watch(monkeypatch, toyld.book)
    sheet = exercises.sheet(exercises.of(chapter))
    space, shown, before = exercises.solve(sheet, tmp_path)
    held = [phrase for _, phrase, _ in prose.calls(sheet.chapter.path)]
    assert set(tried) == set(held)
    assert not [line for lines in tried.values() for line in lines]
    for one in sheet.exercises:
        assert shown[one.number].printed.strip(), "a check prints what came out"
        assert not shown[one.number].pictures
        for mistake in one.mistakes:
            refused = exercises.refusal(space, before[one.number], mistake.source, one)
            assert type(refused) is AssertionError, f"exercise {one.number}: its check met a mistake with {refused!r}"
        blanked = exercises.refusal(space, before[one.number], exercises.blank(one.solution.source), one)
        assert blanked is not None, f"exercise {one.number}: its check is content without an answer"


@each_chapter
def test_the_students_version_asks_and_does_not_tell(chapter, tmp_path):
    sheet = exercises.sheet(exercises.of(chapter))
    text = exercises.script(sheet)
    (tmp_path / chapter.name).write_text(text)
    left = chapters.read(tmp_path / chapter.name)
    assert [c.source for c in left.cells if not c.code] == [
        *(c.source for c in sheet.setup if not c.code),
        *(one.question.source for one in sheet.exercises),
    ]
    told = "\n".join(c.source for c in left.cells)
    for one in sheet.exercises:
        assert one.derivation.source not in told
        assert exercises.blank(one.solution.source) in told
        assert not [m for m in one.mistakes if m.source in told]
    result = chapters.run(left, tmp_path)
    assert [one for one in result if one.failed], "the students' version is not solved"
    assert exercises.notebook(sheet) == exercises.notebook(sheet)


README = FOLDER / "README.md"


def test_the_tables_of_the_readme_are_those_of_the_chapters():
    text = README.read_text()
    made = readme.filled(text, readme.tables(FOLDER))
    assert text == made, "renew them: python -m toyld.book.readme"
    assert all(f"<!-- {name} -->" in text for name in readme.tables(FOLDER))


def test_the_examples_of_the_readme_run_and_hold_its_numbers():
    text = README.read_text()
    names = {}
    test = doctest.DocTestParser().get_doctest(text, names, "README", str(README), 0)
    runner = doctest.DocTestRunner()
    runner.run(test, clear_globs=False)
    assert runner.failures == 0
    assert runner.tries >= 12
    names = test.globs
    p, moved = sm.softmax(names["z"]), names["moved"]
    plan = re.search(r"\| minutes \| what \|.*?\n\n", text, re.S)[0]
    held = {
        "probabilities .70, .20, .08 and .02, and one step": tuple(p),
        "Four answers with .70, .20, .08 and .02, the last": tuple(p),
        "whoever stands above τ, which is .56 here": (names["tau"],),
        "The step takes .016 from the label": (-moved[3],),
        "and the first gains .106:": (moved[0],),
        "four answers with 1/4 each": (sm.softmax(names["flat"])[0],),
        "The usual wrong answer is 3:": (len(p) - 1,),
        "in thirteen short chapters": (len(CHAPTERS),),
        "Fifty minutes": (sum(int(n) for n in re.findall(r"^\| (\d+) \|", plan, re.M)),),
    }
    for phrase, values in held.items():
        toyld.book.says(phrase, *values)
    left = re.sub(
        r"```.*?```|<!-- (\w+) -->.*?<!-- /\1 -->|^\| minutes \|.*?\n\n|\*\*\d\.\*\*", "", text, flags=re.S | re.M
    )
    left = prose.unnamed(" ".join(re.sub(r"\]\([^)]*\)", "]", left).split()))
    for phrase in held:
        assert phrase in left, phrase
        left = left.replace(phrase, "")
    assert not [n.text for n in numerals(left) if n.text not in ("0", "1")]
    assert sum(int(n) for n in re.findall(r"^\| (\d+) \|", plan, re.M)) == 50


def test_the_readme_and_the_book_agree_on_the_number_of_chapters():
    words = ["ten", "eleven", "twelve", "thirteen", "fourteen"]
    assert f"in {words[len(CHAPTERS) - 10]} short chapters" in README.read_text()


@each_chapter
def test_a_chapter_takes_a_quarter_of_an_hour(chapter):
    assert 5 <= chapters.read(chapter).minutes <= 15
