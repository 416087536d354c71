"""What README says is run: its Python as doctests, its numbers and its list of claims against the registry."""

import doctest
import re
from pathlib import Path

from toyld import claims

README = Path(__file__).parents[1] / "README.md"


def board() -> str:
    """The table of README: claims by chapter and by what we assert of them (each tested to come out so)."""
    every = claims.every().values()
    lines = ["| chapter | about | proved | holds | conditional | refuted | open |", "|---|---|--:|--:|--:|--:|--:|"]
    totals = [0] * 5
    for chapter, about in claims.CHAPTERS.items():
        mine = [c for c in every if c.id.split(".")[0] == chapter]
        counts = [
            sum(c.expect == "holds" and c.kind in ("theorem", "identity") for c in mine),
            sum(c.expect == "holds" and c.kind == "trend" for c in mine),
            sum(c.expect == "conditional" for c in mine),
            sum(c.expect == "refuted" for c in mine),
            sum(c.expect == "open" for c in mine),
        ]
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        lines.append(f"| `{chapter}.*` | {about} | " + " | ".join(str(n) if n else "" for n in counts) + " |")
    lines.append(f"| **{sum(totals)} claims** | | " + " | ".join(f"**{n}**" for n in totals) + " |")
    assert sum(totals) == len(every), "a chapter is missing from CHAPTERS, or a kind has no column yet"
    return "\n".join(lines)


def totals() -> str:
    """The last line of the board, as the first screen shows it."""
    head = ["", "proved", "hold", "conditional", "refuted", "open"]
    cells = [cell.strip() for cell in board().splitlines()[-1].strip("|").split("|")]
    lines = [head, ["---", *["--:"] * 5], [cells[0], *cells[2:]]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def test_the_totals_on_the_first_screen_are_the_boards():
    written = re.search(r"<!-- totals -->\n(.*?)\n?<!-- /totals -->", README.read_text(), re.S).group(1)
    assert written == totals(), f"README has other totals; the registry's are:\n{totals()}"


def test_the_scoreboard_in_the_readme_is_the_registrys():
    written = re.search(r"<!-- scoreboard -->\n(.*?)\n?<!-- /scoreboard -->", README.read_text(), re.S).group(1)
    assert written == board(), f"README has another board; the registry's is:\n{board()}"


def test_readme_examples_run():
    failed, tried = doctest.testfile(str(README), module_relative=False)
    assert failed == 0
    assert tried >= 6


def test_readme_names_claims_and_files_that_exist():
    text = README.read_text()
    every = claims.every()
    chapters = {id.split(".")[0] for id in every}
    named = [id for id in re.findall(r"`([a-z]+\.[a-z0-9*-]+)`", text) if id.split(".")[0] in chapters]
    assert len(named) >= 5
    for id in named:
        assert claims.select([id]), id
    for path in re.findall(r"\]\(([^)h#][^)]*)\)", text) + re.findall(r"^\| `([a-z]+/[^`,]*)`", text, re.M):
        assert (README.parent / path).exists(), path
