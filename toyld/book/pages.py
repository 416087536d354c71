"""The pages of the book: a chapter, its exercises, the contents."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from toyld.book import render
from toyld.book.chapters import BOX, Cell, Chapter, Shown
from toyld.book.exercises import Exercise, Sheet
from toyld.book.marks import Marks
from toyld.book.render import Renderer

__all__ = ["Frame", "Solved", "chapter_page", "contents", "exercises_page", "failed_page", "file_of"]


def file_of(chapter: Chapter, /) -> str:
    """The name of a chapter's page."""
    return f"{chapter.stem}.html"


@dataclass
class Frame:
    """What is around every page: the chapters of the book, which of them have pages, and what else the site has."""

    chapters: Sequence[Chapter]
    built: set[str]
    extras: dict[str, str] = field(default_factory=dict)  # name → file: lab, gallery

    def links(self, here: str, inside: str) -> str:
        """The list of all chapters; the one at hand is marked, with what is inside it."""
        rows = []
        for one in self.chapters:
            name = f'<span class="number">{one.number}</span> <span>{render.inline(one.title)}</span>'
            if one.stem not in self.built:
                rows.append(f"<li>{name}</li>")
            elif one.stem == here:
                rows.append(f'<li><a href="{file_of(one)}" aria-current="page">{name}</a>{inside}</li>')
            else:
                rows.append(f'<li><a href="{file_of(one)}">{name}</a></li>')
        return "".join(rows)

    def page(self, title: str, body: str, /, here: str = "", aside: str = "") -> str:
        """A whole page: head, bar, article, contents."""
        places = {"Contents": "index.html", "Claims": "claims.html", **self.extras}
        bar = "".join(f'<a href="{href}">{name}</a>' for name, href in places.items())
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{html.escape(re.sub("<[^>]+>", "", title))}</title>
<link rel="stylesheet" href="style.css">
<link rel="icon" href="data:,">
</head>
<body>
<a class="skip" href="#text">to the text</a>
<header><a class="home" href="index.html">toyld <span>the book</span></a><nav aria-label="the site">{bar}</nav></header>
<div class="sheet">
<main id="text">
{body}
</main>
<nav class="contents" aria-label="contents" id="contents">
<h2>Chapters</h2>
<ol>{self.links(here, aside if here else "")}</ol>
{"" if here else aside}
</nav>
</div>
</body>
</html>
"""

    def neighbours(self, chapter: Chapter) -> str:
        """Links to the chapters before and after."""
        numbers = [one.stem for one in self.chapters]
        at = numbers.index(chapter.stem)
        links = []
        for place, word, mark in ((at - 1, "prev", "← {}"), (at + 1, "next", "{} →")):
            if 0 <= place < len(numbers) and numbers[place] in self.built:
                other = self.chapters[place]
                words = mark.format(f"{other.number}. {render.inline(other.title)}")
                links.append(f'<a rel="{word}" class="{word}" href="{file_of(other)}">{words}</a>')
        return f'<nav class="turn" aria-label="chapters before and after">{"".join(links)}</nav>' if links else ""


def _size(png: bytes) -> str:
    """Width and height of a picture as it is shown, half its pixels, as attributes."""
    width, height = (int.from_bytes(png[at : at + 4]) for at in (16, 20))
    return f'width="{width // 2}" height="{height // 2}"'


def _lines(cell: Cell) -> str:
    count = len(cell.source.splitlines())
    return f"line {cell.line}" if count == 1 else f"lines {cell.line} to {cell.line + count - 1}"


def _failed(text: str, what: str = "This code failed.") -> str:
    told = f'<pre tabindex="0">{html.escape(text)}</pre>'
    return f'<div class="failed" role="note"><strong>{what}</strong>{told}</div>'


def _box(rendered: str) -> str:
    """The box: its list's items get the names of their lines as classes."""
    for name in ("Proved", "First order", "Measured", "Refuted or open"):
        rendered = rendered.replace(f"<li><strong>{name}", f'<li class="{render.slug(name)}"><strong>{name}')
    return f'<section class="box" aria-label="what is proved and what is not">{rendered}</section>'


def _cell(renderer: Renderer, marks: Marks, cell: Cell, shown: Shown, headings: list[tuple[int, str, str]]) -> str:
    if not cell.code:
        rendered = renderer.markdown(marks.mark(cell.source))
        headings += renderer.headings
        return _box(rendered) if cell.source.startswith(BOX) else rendered
    if not cell.source.strip():
        return ""
    parts = [render.code(renderer, cell.source, f"code, {_lines(cell)}"), render.printed(shown.printed)]
    for name, picture in shown.pictures.items():
        told = html.escape(shown.told.get(name, ""))
        parts.append(f'<figure><a href="{name}"><img src="{name}" alt="{told}" {_size(picture)}></a></figure>')
    if shown.failed:
        parts.append(_failed(shown.failed))
    return "\n".join(part for part in parts if part)


def _aside(headings: Sequence[tuple[int, str, str]], marks: Marks) -> str:
    rows = "".join(f'<li><a href="#{id}">{words}</a></li>' for depth, id, words in headings if depth == 2)
    return f'<ul class="inside">{marks.spans(rows)}</ul>' if rows else ""


def chapter_page(frame: Frame, renderer: Renderer, chapter: Chapter, shown: Sequence[Shown], exercises: int, /) -> str:
    """A chapter as a page; `exercises`: how many it has, negative if they could not be read."""
    marks = Marks(chapter.path)
    headings: list[tuple[int, str, str]] = []
    parts = [_cell(renderer, marks, c, s, headings) for c, s in zip(chapter.cells, shown, strict=True)]
    held, count = len(marks.titles), exercises if exercises > 0 else "its"
    facts = [
        f"{chapter.minutes} minutes",
        f'<a href="{chapter.stem}_exercises.html">{count} exercises</a>' if exercises else "",
        f'<a href="{chapter.path.name}" download>the script</a>',
        f"{held} numbers in the text, held to the code" if held else "",
    ]
    facts_ = f'<p class="facts">{" · ".join(fact for fact in facts if fact)}</p>'
    body = marks.spans("\n".join(part for part in parts if part))
    body = body.replace("</h1>", f"</h1>\n{facts_}", 1)
    body = f'<article class="chapter">{body}</article>\n{frame.neighbours(chapter)}'
    return frame.page(f"{chapter.number}. {chapter.title}", body, chapter.stem, _aside(headings, marks))


def failed_page(frame: Frame, chapter: Chapter, title: str, told: str, /) -> str:
    """The page of a chapter, or of its exercises, that could not be rendered: why."""
    failed = _failed(told, "This page could not be made.")
    body = f'<article class="chapter"><h1>{html.escape(title)}</h1>{failed}</article>'
    return frame.page(title, f"{body}\n{frame.neighbours(chapter)}", chapter.stem)


@dataclass(frozen=True)
class Solved:
    """What running a sheet gave: what each check printed, and how it refused each mistake; or why it failed."""

    printed: dict[int, str]
    refused: dict[int, list[str]]
    failed: str = ""


def _exercise(renderer: Renderer, marks: Marks, one: Exercise, solved: Solved) -> str:
    answer = [
        renderer.markdown(marks.mark(one.derivation.source), 1),
        render.code(renderer, one.solution.source, "the answer in code"),
        render.code(renderer, one.check.source, "the check"),
        render.printed(solved.printed.get(one.number, ""), "printed by the check"),
    ]
    parts = [
        f'<section class="exercise">{renderer.markdown(marks.mark(one.question.source))}',
        f'<details class="answer"><summary>Solution</summary>{"".join(answer)}</details>',
    ]
    for mistake, refusal in zip(one.mistakes, solved.refused.get(one.number, []), strict=False):
        comment, rest = _comment(mistake.source)
        parts.append(
            f'<details class="answer mistake"><summary>A common mistake</summary><p>{render.inline(comment)}</p>'
            f'<pre class="code" tabindex="0"><code>{renderer.code(rest)}</code></pre>'
            f"<p>The check refuses it:</p>{render.printed(refusal, 'what the check says')}</details>"
        )
    return "\n".join(parts) + "</section>"


def _comment(source: str) -> tuple[str, str]:
    """The comment that a mistake starts with, and the code after it."""
    lines = source.splitlines()
    stop = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.lstrip("# ") for line in lines[:stop]), "\n".join(lines[stop:]).strip()


def exercises_page(frame: Frame, renderer: Renderer, sheet: Sheet, solved: Solved, /) -> str:
    """The exercises to a chapter as a page: questions; solutions and mistakes folded; the students' files."""
    marks, stem = Marks(sheet.chapter.path), sheet.chapter.stem
    parts = []
    for cell in sheet.setup:
        if cell.code:
            parts.append(render.code(renderer, cell.source, "what all of them use"))
            continue
        parts.append(renderer.markdown(marks.mark(cell.source)))
    parts[0] = parts[0].replace(
        "</h1>",
        f'</h1>\n<p class="facts"><a href="{stem}.html">the chapter</a> · to work on: '
        f'<a href="student/{stem}.py" download>script</a>, <a href="student/{stem}.ipynb" download>notebook</a>; '
        "the check below each blank tells whether an answer is right</p>",
        1,
    )
    if solved.failed:
        parts.append(_failed(solved.failed))
    headings = [
        (2, render.slug(f"Exercise {e.number}: {e.title}"), render.inline(f"{e.number}. {e.title}"))
        for e in sheet.exercises
    ]
    parts += [_exercise(renderer, marks, one, solved) for one in sheet.exercises]
    body = f'<article class="chapter">{marks.spans(chr(10).join(parts))}</article>'
    return frame.page(f"Exercises to chapter {sheet.chapter.number}", body, stem, _aside(headings, marks))


def contents(frame: Frame, renderer: Renderer, readme: str, /) -> str:
    """The first page: theory/README.md."""
    body = renderer.markdown(readme)
    aside = "<h2>On this page</h2>" + _aside(renderer.headings, Marks(frame.chapters[0].path))
    return frame.page(
        "The executable theory of fine-tuning: the book", f'<article class="chapter">{body}</article>', "", aside
    )
