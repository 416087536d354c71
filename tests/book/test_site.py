"""The site of the book: every link arrives, every held number tells its code, a failure spoils one page alone."""

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from toyld import claims, cli
from toyld.book import chapters, pages, prose, render
from toyld.book.maths import inline
from toyld.book.says import numerals

ROOT = Path(__file__).parents[2]
CHAPTERS = chapters.found(ROOT / "theory")
KNOWN = claims.every()


def run(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


BROKEN = "# %% [markdown]\n# # 2. Broken\n#\n# See chapter 1.\n\n# %%\nprint(6)\nx = 1 / 0\n\n# %%\nprint(7)\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small):
    """A book of two chapters, of which the second fails, with a README and a gallery."""
    path = tmp_path_factory.mktemp("book")
    small.write(path)
    (path / "02_broken.py").write_text(BROKEN)
    (path / "README.md").write_text(
        "# The book\n\n<!-- a -->\n\n[Halves](01_halves.py), `toyld step`\n\n## Read\n\n```python\n>>> 1\n1\n\n```\n"
    )
    (path / "figures").mkdir()
    (path / "figures" / "index.html").write_text("<title>g</title>")
    return path


@pytest.fixture(scope="module")
def site(folder):
    """That book as a site, what it said on the way, and which chapters failed."""
    from toyld.book.site import build

    said = []
    failed = build(folder, folder / "site", figures=folder / "figures", say=said.append)
    return folder / "site", said, failed


class Page(HTMLParser):
    """The ids, links and sources of a page; a tag that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.open, self.text = [], [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.loaded += [attrs[name] for name in ("src", "href") if tag != "a" and name in attrs]
        if tag not in ("meta", "link", "img", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_every_link_arrives_and_nothing_comes_from_elsewhere(site):
    out, _, _ = site
    read = {path.name: Page(path.read_text()) for path in out.glob("*.html") if path.name != "lab.html"}
    assert set(read) == {"index.html", "01_halves.html", "01_halves_exercises.html", "02_broken.html", "claims.html"}
    for name, page in read.items():
        assert len(page.ids) == len(set(page.ids)), f"{name}: an id twice"
        for link in page.links:
            file, _, anchor = link.partition("#")
            assert (out / (file or name)).is_file(), f"{name} → {link}"
            assert not anchor or anchor in read[file or name].ids, f"{name} → {link}"
        for source in page.loaded:
            assert source == "data:," or (out / source).is_file(), f"{name} loads {source}"
    assert "<script" not in "".join((out / name).read_text() for name in read)
    assert "url(" not in (out / "style.css").read_text()
    assert {"#text", "claims.html", "gallery/index.html", "lab.html"} <= set(read["index.html"].links)


def test_a_chapter_that_fails_shows_where_and_stops_nothing(site, folder, capsys):
    out, said, failed = site
    assert failed == ["02_broken"]
    page = Page((out / "02_broken.html").read_text())
    assert 'File "02_broken.py", line 8' in page.text
    assert "ZeroDivisionError: division by zero" in page.text
    assert ">6</pre>" in (out / "02_broken.html").read_text(), "what it printed before is kept"
    assert [re.sub(r"\s+[\d.]+ s\s+", " | ", line) for line in said] == [
        "01_halves | 1 exercises",
        "02_broken | FAILED; its page shows where",
        f"{out / 'index.html'} opens in any browser, without a network",
    ]
    code, _, err = run(capsys, "book", "--source", folder, "--out", folder / "again", "--only", "2")
    assert (code, err) == (1, "toyld: 02_broken failed\n")


def test_the_same_bytes_each_time(site, folder, capsys):
    out, _, _ = site
    assert run(capsys, "book", "--source", folder, "--out", folder / "second", "--figures", folder / "figures")[0] == 1
    first = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    second = {p.relative_to(folder / "second"): p.read_bytes() for p in (folder / "second").rglob("*") if p.is_file()}
    assert first == second
    assert str(folder) not in "".join(b.decode() for name, b in first.items() if name.suffix in (".html", ".ipynb"))


def test_a_chapters_page(site):
    text = (site[0] / "01_halves.html").read_text()
    assert text.count('<span class="held" title="held to the code: half (line 23)">0.50</span>') == 1
    assert "<strong>Measured</strong>: nothing here" in text
    assert (
        '<li class="proved"><strong>Proved</strong>: <a class="claim" href="claims.html#squeeze.penalised-falls"'
        in text
    )
    assert '<img src="01_halves.png" alt="A line. y over x. lines: half" width="640" height="480">' in text
    assert (
        '<pre class="printed" tabindex="0" role="group" aria-label="printed by the code above">half: 0.5</pre>' in text
    )
    assert '<a href="01_halves_exercises.html">1 exercises</a>' in text
    assert '<span class="tag">(1.1)</span>' in text
    assert '<tr>\n<td></td>\n<th style="text-align:right">half</th>' in text, "a header without a word is none"
    assert 'rel="next" class="next" href="02_broken.html"' in text
    coloured = render.Renderer(KNOWN).code('hold("squeeze.penalised-falls")')
    assert '<a class="claim" href="claims.html#squeeze.penalised-falls"' in coloured
    assert "squeeze.penalised-falls</a>" not in render.Renderer(KNOWN).code('f("squeeze.of-nothing")')


def test_an_exercises_page_and_the_students_files(site):
    out, _, _ = site
    page = Page((out / "01_halves_exercises.html").read_text())
    for told in (
        "Solution",
        "A common mistake",
        "Twice instead of half.",
        "Not equal to tolerance",
        "half of five: 2.5",
    ):
        assert told in page.text
    student = (out / "student" / "01_halves.py").read_text()
    assert "NotImplementedError" in student
    assert "x / 2" not in student
    assert json.loads((out / "student" / "01_halves.ipynb").read_text())["nbformat"] == 4


def test_the_page_of_claims_has_them_all(site):
    page = Page((site[0] / "claims.html").read_text())
    assert set(KNOWN) <= set(page.ids)
    assert f"{len(KNOWN)} claims" in page.text
    for one in KNOWN.values():
        assert Page(f"<p>{inline(one.statement)}</p>").text in page.text
    where = page.text.index("squeeze.penalised-falls proved")
    assert "in the bookchapter 1" in page.text[where : where + 800]


BAD = {
    "no folder": (["--source", "nowhere"], "expected a folder of chapters, got nowhere"),
    "no chapters": (["--source", "."], "expected chapters such as 01_one_step.py in ., got none"),
    "no such chapter": (["--source", str(ROOT / "theory"), "--only", "77"], "expected a chapter out of 01_one_step"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_2(what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, told = BAD[what]
    code, _, err = run(capsys, "book", *arguments)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_gallery_without_a_page_is_told(folder, capsys):
    code, _, err = run(
        capsys, "book", "--source", folder, "--only", "2", "--out", folder / "third", "--figures", folder / "solutions"
    )
    assert code == 2
    assert "--figures: expected a folder with index.html" in err


def test_nothing_is_written_where_something_does_not_go_together(small, capsys, tmp_path):
    small.write(tmp_path / "theory")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "index.html").write_text("<title>g</title>")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    theory, site, drawn = tmp_path / "theory", tmp_path / "site", tmp_path / "figures"
    for out, figures, told in (
        (site, tmp_path / "nosuch", "--figures: expected a folder with index.html"),
        (theory, drawn, "would replace files of"),
        (theory / "solutions", drawn, "would replace files of"),
        (drawn, drawn, "would replace files of"),
        (theory / ".." / "theory", drawn, "would replace files of"),
    ):
        code, _, err = run(capsys, "book", "--source", theory, "--out", out, "--figures", figures)
        assert code == 2
        assert told in err
        assert err.count("\n") == 1
    (theory / "README.md").write_text("# The book\n\nOf _words_.\n")
    code, _, err = run(capsys, "book", "--source", theory, "--out", site)
    assert (code, "emphasis by asterisks" in err) == (2, True)
    (theory / "README.md").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("package", ["jupytext", "markdown_it", "pygments"])
def test_a_package_of_the_extra_that_is_missing_is_told(package, small, capsys, tmp_path, monkeypatch):
    small.write(tmp_path / "theory")
    monkeypatch.setitem(sys.modules, package, None)  # importing it raises ModuleNotFoundError
    code, _, err = run(capsys, "book", "--source", tmp_path / "theory", "--out", tmp_path / "site")
    assert code == 2
    assert f"got no {package}" in err
    assert 'pip install -e ".[book]"' in err
    assert not (tmp_path / "site").exists()


def test_a_bug_of_the_lab_is_not_hidden(small, tmp_path, monkeypatch):
    from toyld import lab
    from toyld.book.site import build

    def broken():
        raise AttributeError("a bug")

    small.write(tmp_path / "theory")
    monkeypatch.setattr(lab, "build", broken)
    with pytest.raises(AttributeError, match="a bug"):
        build(tmp_path / "theory", tmp_path / "site", say=lambda line: None)


@pytest.fixture
def quick(monkeypatch):
    """Without what a site has beside its chapters, where a test is about these alone."""
    from toyld import lab
    from toyld.book import registry

    monkeypatch.setattr(lab, "build", lambda: "")
    monkeypatch.setattr(registry, "claims_page", lambda *_: "")


SPOILT = {
    "a sheet of another form": ("solutions/01_halves.py", "**Solution.**", "Well.", "01_halves_exercises.html"),
    "a sheet that is no Python": (
        "solutions/01_halves.py",
        "return 2 * x",
        "return return",
        "01_halves_exercises.html",
    ),
    "emphasis that eats an index": ("01_halves.py", "half of a thing", "_half_ of a thing", "01_halves.html"),
    "a chapter that is no Python": ("01_halves.py", "half = np.ones(4)", "half = = np.ones(4)", "01_halves.html"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("what", SPOILT)
def test_a_chapter_that_cannot_be_rendered_spoils_one_page_alone(what, small, tmp_path):
    from toyld.book.site import build

    file, before, after, spoilt = SPOILT[what]
    theory, out = tmp_path / "theory", tmp_path / "site"
    small.write(theory)
    (theory / file).write_text(small.swapped((theory / file).read_text(), before, after))
    (theory / "02_more.py").write_text("# %% [markdown]\n# # 2. More\n\n# %%\nprint(2)\n")
    said = []
    assert build(theory, out, say=said.append) == ["01_halves"]
    assert "FAILED" in said[0]
    assert said[1].endswith("0 exercises")
    read = {path.name: Page(path.read_text()) for path in out.glob("*.html") if path.name != "lab.html"}
    assert set(read) == {f"{n}.html" for n in ("index", "claims", "01_halves", "01_halves_exercises", "02_more")}
    assert "This code failed." in read[spoilt].text or "This page could not be made." in read[spoilt].text
    for name, page in read.items():
        for link in page.links:
            file = link.partition("#")[0]
            assert (out / (file or name)).is_file(), f"{name} → {link}"
    assert "01_halves_exercises.html" in read["01_halves.html"].links or spoilt == "01_halves.html"


@pytest.mark.usefixtures("quick")
def test_a_gallery_stays_linked_and_remains_of_a_killed_run_go(small, tmp_path):
    from toyld.book.site import build

    theory, out, drawn = small.write(tmp_path / "theory").parent, tmp_path / "site", tmp_path / "figures"
    drawn.mkdir()
    (drawn / "index.html").write_text("<title>g</title>")
    build(theory, out, figures=drawn, say=lambda line: None)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    remains = [".01_halves.html", ".01_halves_exercises.html", ".index.html", "student/.01_halves.ipynb"]
    for name in [*remains, "gallery/.index.html"]:
        (out / f"{name}.4194304.part").write_text("half")  # above any process's number
    (out / ".mine.html.4194304.part").write_text("another's")
    build(theory, out, only=["1"], say=lambda line: None)
    left = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.name.endswith(".part")}
    assert left == before
    assert "gallery/index.html" in Page((out / "index.html").read_text()).links
    parts = {path.relative_to(out).as_posix() for path in out.rglob("*.part")}
    assert parts == {".mine.html.4194304.part", "gallery/.index.html.4194304.part"}
    build(theory, out, only=["1"], figures=drawn, say=lambda line: None)
    assert [path.name for path in out.rglob("*.part")] == [".mine.html.4194304.part"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_number_of_a_real_chapter_tells_its_code(path):
    chapter = chapters.read(path)
    book = [chapters.read(one) for one in CHAPTERS]
    frame = pages.Frame(book, {one.stem for one in CHAPTERS})
    renderer = render.Renderer(KNOWN, {c.number: pages.file_of(c) for c in book})
    text = pages.chapter_page(frame, renderer, chapter, [chapters.Shown()] * len(chapter.cells), 3)
    page = Page(text)
    assert not re.search("[\ue000-\uf8ff]", text), "a mark is left"
    numbers = [n for _, phrase, _ in prose.calls(path) for n in numerals(phrase)]
    assert text.count('class="held"') >= len({n.text for n in numbers})
    for title in re.findall(r'class="held" title="([^"]*)"', text):
        line = int(re.search(r"line (\d+)", title)[1])
        named = re.search(r"held to the code: (.*) \(line", html.unescape(title))
        assert any(call.lineno == line for _, _, call in prose.calls(path))
        assert named or "its sides agree" in title
    main = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.S)
    left = re.findall(r"\w*[\wα-ω)][_^][A-Za-zα-ω{]\S*", html.unescape(re.sub("<[^>]*>", "", main)))
    assert not [word for word in left if not re.fullmatch(r"[A-Za-z]{2,}(_[A-Za-z0-9]{2,})+\W*", word)], "maths is left"
    assert page.ids
