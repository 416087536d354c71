"""The page of all claims: the scoreboard, then each claim with statement, source, proof, and what is expected of it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from toyld.book import render
from toyld.book.pages import Frame, file_of
from toyld.book.render import Renderer
from toyld.claims import CHAPTERS, Claim, RunClaim

__all__ = ["claims_page", "column"]

_COLUMNS = ("proved", "holds", "conditional", "refuted", "open")


def column(claim: Claim, /) -> str:
    """Where a claim counts on the scoreboard: a theorem or identity that holds is proved."""
    return "proved" if claim.expect == "holds" and claim.kind in ("theorem", "identity") else claim.expect


def _board(claims: Sequence[Claim]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows, totals = [], dict.fromkeys(_COLUMNS, 0)
    for chapter, about in CHAPTERS.items():
        mine = [column(c) for c in claims if c.id.split(".")[0] == chapter]
        counts = {name: mine.count(name) for name in _COLUMNS}
        for name in _COLUMNS:
            totals[name] += counts[name]
        cells = "".join(f"<td>{counts[name] or ''}</td>" for name in _COLUMNS)
        rows.append(
            f'<tr><th scope="row"><a href="#{chapter}">{chapter}</a></th><td>{render.inline(about)}</td>{cells}</tr>'
        )
    cells = "".join(f"<td>{totals[name]}</td>" for name in _COLUMNS)
    foot = f'<tr><th scope="row">all</th><td>{len(claims)} claims</td>{cells}</tr>'
    return (
        f'<div class="scroll" tabindex="0"><table class="board"><thead><tr><th scope="col">chapter</th>'
        f'<th scope="col">about</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def _claim(renderer: Renderer, one: Claim, told_in: str) -> str:
    facts = [("source", render.inline(one.source))]
    if isinstance(one, RunClaim):
        for rung in one.rungs:
            facts.append((f"expected at rung {rung}", f"{one.expected(rung)}: {render.inline(one.because(rung))}"))
    elif one.proof:
        facts.append(("why" if one.expect == "refuted" else "proof", render.inline(one.proof)))
    if one.without is not None:
        facts.append(("fails without", render.inline(one.without.dropped)))
    if one.counterexample is not None:
        facts.append(("counterexample", render.inline(str(one.counterexample))))
    if one.instead is not None:
        facts.append(("instead", renderer.claim(one.instead)))
    if told_in:
        facts.append(("in the book", told_in))
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts)
    verdict = column(one)
    return (
        f'<section class="one" id="{one.id}">'
        f'<h3><code>{one.id}</code> <span class="verdict {verdict}">{verdict}</span></h3>'
        f"<p>{render.inline(one.statement)}</p><dl>{listed}</dl></section>"
    )


def claims_page(frame: Frame, renderer: Renderer, named: Mapping[str, set[str]], /) -> str:
    """All claims; `named`: stem of a chapter of the book → the claims that it names."""
    claims = list(renderer.known.values())
    parts = [
        "<h1>All claims</h1>",
        "<p>What the theory states, each claim once. <em>Proved</em> are theorems and identities that hold, "
        "<em>holds</em> is said of trends in runs; <em>conditional</em> are those that hold in some runs and fail in "
        "others; the <em>refuted</em> stay, with a counterexample; the <em>open</em> could not be decided on what is "
        "at hand. Verdicts are those that the tests demand; <code>toyld claims ID</code> tries one and prints its "
        "numbers.</p>",
        _board(claims),
    ]
    chapters = {one.stem: one for one in frame.chapters}
    for chapter, about in CHAPTERS.items():
        mine = [c for c in claims if c.id.split(".")[0] == chapter]
        if mine:
            parts.append(f'<h2 id="{chapter}"><code>{chapter}.*</code> {html.escape(about)}</h2>')
        for one in mine:
            there = [chapters[stem] for stem, ids in named.items() if one.id in ids and stem in frame.built]
            links = ", ".join(f'<a href="{file_of(c)}">chapter {c.number}</a>' for c in there)
            parts.append(_claim(renderer, one, links))
    aside = "".join(f'<li><a href="#{chapter}"><code>{chapter}</code></a></li>' for chapter in CHAPTERS)
    body = f'<article class="claims">{"".join(parts)}</article>'
    return frame.page("All claims", body, "", f"<h2>On this page</h2><ul>{aside}</ul>")
