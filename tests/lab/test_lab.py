"""The lab as a file: whole, small, alone, and without a number that nothing computed."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from toyld.claims import every
from toyld.cli import guard
from toyld.cli_teach import lab
from toyld.lab import SCRIPTS, build, claims, source

HERE = Path(build.__code__.co_filename).parent
# Names with a digit in them: a namespace, elements, a comma as addresses write it.
NAMES = {"http://www.w3.org/2000/svg", "h2", "h3", "%2C"}


def test_the_page_is_one_small_file_that_asks_for_nothing() -> None:
    page = build()
    assert len(page.encode()) < 200_000
    assert page == build()
    assert set(re.findall(r"https?://[^\s\"'`<)]+", re.sub(r"\b(arXiv|doi)\S*", "", page))) <= {
        "http://www.w3.org/2000/svg"
    }
    for asks in (
        "fetch(",
        "XMLHttpRequest",
        "import(",
        "@import",
        "localStorage",
        "sessionStorage",
        "indexedDB",
        "src=",
    ):
        assert asks not in page
    assert "document.cookie" not in page


def test_the_order_of_the_pieces_names_every_file() -> None:
    assert {path.stem for path in (HERE / "js").glob("*.js")} == set(SCRIPTS)
    script = "\n".join(map(source, SCRIPTS))
    assert "Math.random" not in script
    assert "Date" not in script


def strings(text: str) -> list[str]:
    """The string literals and the fixed parts of the templates of a script, comments left out."""
    found: list[str] = []
    i, depth = 0, [0]  # depth of braces inside each open placeholder
    inside: list[str] = []  # what is open: a template

    def template(start: int) -> int:
        """Read a template's fixed part from `start`; to behind its end or behind the brace of a placeholder."""
        at = start
        while text[at] != "`" and not text.startswith("${", at):
            at += 2 if text[at] == "\\" else 1
        found.append(text[start:at])
        if text[at] == "`":
            inside.pop()
            depth.pop()
            return at + 1
        depth[-1] = 0
        return at + 2

    while i < len(text):
        if text.startswith("//", i):
            i = text.find("\n", i) if "\n" in text[i:] else len(text)
        elif text.startswith("/*", i):
            i = text.index("*/", i) + 2
        elif text[i] in "\"'":
            end = i + 1
            while text[end] != text[i]:
                end += 2 if text[end] == "\\" else 1
            found.append(text[i + 1 : end])
            i = end + 1
        elif text[i] == "`":
            inside.append("`")
            depth.append(0)
            i = template(i + 1)
        elif inside and text[i] == "{":
            depth[-1] += 1
            i += 1
        elif inside and text[i] == "}":
            if depth[-1] == 0:
                i = template(i + 1)
            else:
                depth[-1] -= 1
                i += 1
        else:
            i += 1
    return found


def test_the_reader_of_strings_finds_what_is_shown() -> None:
    text = 'say("a 1", `b ${f({x: `c2 ${y}`})} d3`); // "4"\n/* `5` */ 6;'
    assert strings(text) == ["a 1", "b ", "c2 ", "", " d3"]


# A placeholder that is a number, or writes one.
PLANTED = re.compile(r"\$\{\s*(?:(?:fmt|brief|signed|nats|part|per)\(\s*)?-?[\d.e]+\s*[,)}]")


def numbers_in(text: str) -> list[str]:
    """Strings of a script with a digit in them that are neither names, ids of claims nor the outline of a shape."""
    outline = re.compile(r"[MLHVAZmlhvaz ,\d-]*[MLHVAZmlhvaz,][MLHVAZmlhvaz ,\d-]*")
    digits = [one for one in strings(text) if re.search(r"\d", one)]
    return [one for one in digits if one not in {*NAMES, *every()} and not outline.fullmatch(one)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_text_of_the_scripts_has_a_number_in_it(name: str) -> None:
    assert numbers_in(source(name)) == []
    assert PLANTED.findall(source(name)) == []
    assert len(PLANTED.findall("`${7} ${ -3} ${fmt(7, 1)} ${signed(-0.2)} ${fmt(x7, 1)} ${fmt(0.5 * x)}`")) == 4
    assert numbers_in(source(name) + 'finding("class 3 gained 0.11");') == ["class 3 gained 0.11"]


def test_no_text_of_the_page_has_a_number_in_it() -> None:
    texts: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            texts.append(data)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            texts.extend(value or "" for name, value in attrs if name in ("title", "alt", "aria-label", "placeholder"))

    page = (HERE / "page.html").read_text(encoding="utf-8")
    Reader().feed(page)
    assert "toyld lab" in " ".join(texts)
    assert [text for text in texts if re.search(r"\d", text)] == []
    assert set(re.findall(r"{{(\w+)}}", page)) == {"style", "script"}


def test_claims_of_the_panels_are_claims() -> None:
    script = "\n".join(map(source, SCRIPTS))
    listed = re.findall(r"claims: \[(.*?)\]", script, flags=re.S)
    named = [id for text in listed for id in re.findall(r'"([^"]+)"', text)]
    assert len(named) >= 10
    assert [id for id in named if id not in every()] == []
    shown = claims(script)
    assert set(shown) >= set(named)
    assert shown["pair.winner-rises"]["verdict"] == "proved"
    assert shown["kernel.diagonal-suffices"]["verdict"] == "refuted"
    assert shown["displacement.common-amplifies"]["verdict"] == "measured: holds"
    assert shown["pair.winner-rises"]["statement"] == every()["pair.winner-rises"].statement


def test_the_command_writes_the_page_and_says_how_to_open_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(asked.append(url)) or True)
    path = tmp_path / "lab.html"
    assert lab(out=path) == 0
    assert path.read_text(encoding="utf-8") == build()
    told = capsys.readouterr().out
    assert str(path) in told
    assert f"{len(path.read_bytes()) / 1000:.0f} kB" in told
    assert path.as_uri() in told
    assert asked == []
    assert lab(out=path, open=True) == 0
    assert asked == [path.as_uri()]
    assert [one.name for one in tmp_path.iterdir()] == ["lab.html"]


def test_a_place_that_cannot_be_written_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(lambda: lab(out=tmp_path / "none" / "lab.html")) == 2
    assert guard(lambda: lab(out=tmp_path)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("toyld: --out: expected a file in an existing folder, got ") for line in lines)
