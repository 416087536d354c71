"""Exercises: the form of their files, what students get, what a check refuses."""

import json

import pytest

from toyld.book import chapters, exercises
from toyld.book.chapters import Broken
from toyld.checked import BadInput


@pytest.fixture
def sheet(tmp_path, small):
    """The small book's exercises, or those of another text."""

    def read(text=small.SOLUTION):
        return exercises.sheet(exercises.of(small.write(tmp_path, solution=text)))

    return read


FORM = {
    "no exercise": ("## Exercise 1: a half", "## Task 1: a half", "expected a markdown cell '## Exercise 1"),
    "number": ("## Exercise 1:", "## Exercise 2:", "expected '## Exercise 1: a title'"),
    "no check": ("# %%\nnp.testing", '# %% tags=["solution"]\nnp.testing', "expected the check: untagged code"),
    "untagged": ('# %% tags=["solution"]\ndef', "# %%\ndef", "expected the solution: code tagged solution"),
    "no derivation": ('# %% [markdown] tags=["solution"]', "# %% [markdown]", "expected the derivation"),
    "no mistake": ('# %% tags=["mistake"]', "# %%", "expected a mistake: code tagged mistake"),
    "no word of solution": ("**Solution.**", "Well.", "expected '**Solution.**'"),
}


@pytest.mark.parametrize("what", FORM)
def test_a_file_of_another_form_is_told(what, sheet, small):
    before, after, told = FORM[what]
    with pytest.raises(BadInput, match=r"01_halves\.py:") as bad:
        sheet(small.swapped(small.SOLUTION, before, after))
    assert told in str(bad.value)


def test_checks_take_solutions_and_refuse_mistakes_and_blanks(sheet, tmp_path):
    one = sheet()
    (tmp_path / "run").mkdir()
    space, shown, before = exercises.solve(one, tmp_path / "run")
    assert shown[1].printed == "half of five: 2.5\n"
    (exercise,) = one.exercises
    assert exercises.refusal(space, before[1], exercise.solution.source, exercise) is None
    assert type(exercises.refusal(space, before[1], exercise.mistakes[0].source, exercise)) is AssertionError
    blanked = exercises.refusal(space, before[1], exercises.blank(exercise.solution.source), exercise)
    assert isinstance(blanked, NotImplementedError)
    with pytest.raises(Broken, match="ZeroDivisionError"):
        exercises.refusal(space, before[1], "half = 1 / 0", exercise)
    with pytest.raises(NameError):
        raise exercises.refusal(space, before[1], "third = 2", exercise)  # the solution's own half is gone


def test_students_get_questions_blanks_and_checks(sheet, tmp_path):
    one = sheet()
    text = exercises.script(one)
    assert "Write `half(x)` and `third`" in text
    assert 'def half(x):\n    """Half of x."""\n    raise NotImplementedError("your answer")\n' in text
    assert "third = ...  # your answer" in text
    for told in ("x / 2", "divide", "6 / 3", "Divide", "2 * x", "2.5"):
        assert told not in text
    assert "np.testing.assert_allclose(third, 2.0)" in text
    (tmp_path / "student.py").write_text(text)
    compile(text, "student.py", "exec")
    assert [c.code for c in chapters.read(tmp_path / "student.py").cells] == [False, True, False, True, True]


def test_the_notebook_is_the_script_and_the_same_each_time(sheet, tmp_path):
    one = sheet()
    made = exercises.notebook(one)
    assert made == exercises.notebook(one)
    book = json.loads(made)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert [cell["cell_type"] for cell in book["cells"]] == ["markdown", "code", "markdown", "code", "code"]
    assert len({cell["id"] for cell in book["cells"]}) == 5
    assert "NotImplementedError" in "".join(book["cells"][3]["source"])


BLANKS = {
    "def f(x): return x": 'def f(x):\n    raise NotImplementedError("your answer")',
    "def f(\n    x,\n    y=2,\n):\n    # how\n    return x": (
        'def f(\n    x,\n    y=2,\n):\n    raise NotImplementedError("your answer")'
    ),
    "a, b = 1, 2": "a = ...  # your answer\nb = ...  # your answer",
    "a: float = 3.0": "a = ...  # your answer",
    "import math\na = math.pi": "import math\na = ...  # your answer",
    "def f():\n    '''What.'''\n\n\ndef g():\n    return 1": (
        "def f():\n    '''What.'''\n    raise NotImplementedError(\"your answer\")\n\n\n"
        'def g():\n    raise NotImplementedError("your answer")'
    ),
}


@pytest.mark.parametrize("source", BLANKS)
def test_blank(source):
    assert exercises.blank(source) == BLANKS[source]
    compile(exercises.blank(source), "blank", "exec")


@pytest.mark.parametrize("source", ["print(1)", "for i in range(3):\n    a = i", "x[0] = 1", "class A:\n    b = 1"])
def test_a_solution_is_functions_and_names(source):
    with pytest.raises(BadInput, match="expected"):
        exercises.blank(source)
