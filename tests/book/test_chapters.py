"""A chapter run cell by cell: what it prints and draws, how it fails, which chapters there are."""

import re

import pytest

from toyld.book import chapters
from toyld.checked import BadInput


@pytest.fixture
def run(tmp_path, small):
    """Run the text of a chapter in an empty folder."""

    def ran(text):
        (tmp_path / "run").mkdir(exist_ok=True)
        return chapters.run(chapters.read(small.write(tmp_path, text)), tmp_path / "run")

    return ran


def test_what_a_chapter_says_of_itself(tmp_path, small):
    path = small.write(tmp_path)
    one = chapters.read(path)
    assert (one.number, one.title, one.question) == (1, "Halves", "What is half of a thing? And of π_y?")
    lines = path.read_text().splitlines()
    for cell in one.cells:
        first = cell.source.splitlines()[0]
        assert lines[cell.line - 1] == (first if cell.code else f"# {first}")
    assert one.minutes == 1


def test_cells_print_and_draw_in_one_namespace(run):
    shown = run('# %% [markdown]\n# # 1. A\n\n# %%\na = 1\n\n# %%\nprint(a + 1)\n\n# %%\nprint("b")\n')
    assert [one.printed for one in shown] == ["", "", "2\n", "b\n"]


def test_a_picture_comes_with_what_it_shows(run, small, tmp_path):
    shown = run(small.CHAPTER)
    (drawn,) = [one for one in shown if one.pictures]
    assert drawn.pictures["01_halves.png"].startswith(b"\x89PNG")
    assert drawn.told == {"01_halves.png": "A line. y over x. lines: half"}
    assert list((tmp_path / "run").iterdir()) == []
    assert [one.pictures for one in run(small.CHAPTER)] == [one.pictures for one in shown], "the same bytes each time"


def test_a_cell_that_fails_ends_the_chapter_and_names_its_line_and_no_folder(run, small, tmp_path):
    before = "x = np.arange(3.0)\n"
    text = small.swapped(small.CHAPTER, before, f"{before}np.testing.assert_allclose(x, 7)\n")
    shown = run(text)
    failed = [one.failed for one in shown]
    assert [bool(one) for one in failed] == [False, True, *[False] * (len(shown) - 2)]
    line = 1 + text.splitlines().index("np.testing.assert_allclose(x, 7)")
    assert f'File "01_halves.py", line {line}' in failed[1]
    assert "np.testing.assert_allclose(x, 7)" in failed[1]
    assert "AssertionError" in failed[1]
    assert str(tmp_path) not in failed[1]
    assert not re.search(r'File "/', failed[1])
    assert shown[1].printed == "half: 0.5\n", "what it printed before is kept"


@pytest.mark.parametrize("path", ["/home/me/toyld/softmax.py", r"C:\\Users\\me\\toyld\\softmax.py"])
def test_a_traceback_names_no_folder_on_any_system(path, run):
    inner = f'exec(compile("1 / 0", "{path}", "exec"))'
    (_, shown) = run(f"# %% [markdown]\n# # 1. A\n\n# %%\n{inner}\n")
    assert re.search(r'File "toyld[/\\]softmax\.py", line 1', shown.failed)
    assert "me" not in re.findall(r"\w+", "".join(re.findall('File "(.*)"', shown.failed)))


def test_a_cell_that_is_no_python_is_told(run):
    (_, shown) = run("# %% [markdown]\n# # 1. A\n\n# %%\nx = = 1\n")
    assert "SyntaxError" in shown.failed


def test_dataclasses_and_pictures_work_as_in_a_module(run):
    code = "from dataclasses import dataclass\n\n\n@dataclass\nclass A:\n    x: 'int'\n\n\nprint(A(1))"
    assert run(f"# %% [markdown]\n# # 1. A\n\n# %%\n{code}\n")[1].printed == "A(x=1)\n"


def test_which_chapters_there_are(tmp_path, small):
    small.write(tmp_path)
    (tmp_path / "10_more.py").write_text("# %% [markdown]\n# # 10. More\n")
    (tmp_path / "test_book.py").write_text("")
    assert [p.stem for p in chapters.found(tmp_path)] == ["01_halves", "10_more"]
    for word in ("10", "10_more"):
        assert [p.stem for p in chapters.found(tmp_path, [word])] == ["10_more"]
    assert [p.stem for p in chapters.found(tmp_path, ["10", "1"])] == ["01_halves", "10_more"]
    for folder, only, told in (
        (tmp_path, ["7"], "expected a chapter out of 01_halves, 10_more, got '7'"),
        (tmp_path / "none", [], "clone the repository"),
        (tmp_path / "solutions" / "..", ["x"], "got 'x'"),
    ):
        with pytest.raises(BadInput, match="expected") as bad:
            chapters.found(folder, only)
        assert told in str(bad.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="got none"):
        chapters.found(tmp_path / "empty")


def test_a_file_without_cells_is_told(tmp_path):
    (tmp_path / "01_a.py").write_text("x = 1\n")
    with pytest.raises(BadInput, match=r"expected 01_a\.py to start with a markdown cell"):
        chapters.read(tmp_path / "01_a.py")


def test_a_box_of_another_form_is_told(tmp_path, small):
    for before, after in (("**Measured**", "**Seen**"), ("## What is proved, what is", "## What is")):
        with pytest.raises(BadInput, match=r"01_halves\.py: expected"):
            chapters.box(chapters.read(small.write(tmp_path, small.swapped(small.CHAPTER, before, after))))
