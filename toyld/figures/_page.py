"""The page of the gallery: HTML without a network, a font or a library, the same bytes for the same figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from toyld.figures._paper import FIGURES

__all__ = ["LADDER", "page"]

_HERE = Path(__file__).parent
# Formats that a browser shows, the better first; others are linked.
_SHOWN = ("svg", "png")
# From the bottom of the ladder to its top: filter -> words.
LADDER = {
    "toy": "One softmax",
    "contexts": "Many contexts in closed form",
    "digits": "Networks on digits",
    "tiny": "Tiny transformers",
    "llm": "A language model",
    "published": "The paper's own logs",
}


def _code(text: str) -> str:
    """Escaped, with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _list(rows: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in rows if said) + "</dl>"


def _claims(claims: Iterable[Mapping[str, Any]]) -> str:
    lines = (
        f"<tr><th scope=row><code>{escape(c['id'])}</code></th><td>{escape(c['statement'])}</td>"
        f'<td class="v {escape(c["expect"])}">{escape(c["expect"])}</td></tr>'
        for c in claims
    )
    head = "<tr><th scope=col>claim</th><th scope=col>statement</th><th scope=col>expected</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def _picture(about: Mapping[str, Any]) -> str:
    kinds = [kind for kind in _SHOWN if kind in about["files"]]
    files = {kind: escape(name) for kind, name in about["files"].items()}
    links = " · ".join(f'<a href="{name}">{escape(kind.upper())}</a>' for kind, name in files.items() if kind != "csv")
    if not kinds:
        return f"<p>{links}</p>"
    name = files[kinds[0]]
    image = f'<img src="{name}" alt="{escape(about["alt"])}" width=1100 height={_height(about)} loading=lazy>'
    return f'<a class=picture href="{name}">{image}</a><p class=formats>Picture: {links}</p>'


def _height(about: Mapping[str, Any]) -> int:
    """Of a picture 1100 wide, so that the page does not jump when it comes."""
    return round(1100 * (about.get("aspect") or 0.6))


def _made(about: Mapping[str, Any]) -> str:
    commit = about.get("commit")
    clean = {True: ", and changes that are in no commit", False: "", None: ""}[about.get("dirty")]
    versions = ", ".join(f"{name} {version}" for name, version in about.get("versions", {}).items() if version)
    inputs = about.get("inputs_sha256") or {}
    return _list(
        (
            ("Size", escape(about.get("size") or "not known: redrawn from its data")),
            ("Seed", escape("none" if about.get("seed") is None else str(about["seed"]))),
            ("Check", _code(about.get("check", "not checked"))),
            ("Reads", escape(", ".join(inputs))),
            ("Commit", f"<code>{escape(commit[:12])}</code>{clean}" if commit else "not known"),
            ("Versions", escape(versions)),
        )
    )


def _figure(about: Mapping[str, Any]) -> str:
    slug, columns = about["slug"], about["columns"]
    data = (
        f'<p><a href="{about["files"]["csv"]}">{slug}.csv</a>: {about["rows"]} rows of {len(columns)} columns '
        f"({', '.join(f'<code>{escape(name)}</code>' for name in columns)}); how it was made: "
        f'<a href="{slug}.json">{slug}.json</a>.</p>'
    )
    beside = ""
    if about["paper"]:
        differs = about["differs"] or "The differences are not written down in this version's files; draw it anew."
        beside = f"<h3>Paper and ours</h3><p><b>{escape(about['paper'])}.</b> {_code(differs)}</p>"
    return (
        f'<article id="{slug}" data-rung="{about["rung"]}" aria-labelledby="{slug}-title">'
        f'<h2 id="{slug}-title"><a href="#{slug}">{escape(about["title"])}</a></h2>'
        f"<div class=see>{_picture(about)}</div>"
        f"<div class=read><p>{_code(about['caption'])}</p>{beside}"
        f"<h3>Data and command</h3>{data}<pre>{escape(about['command'])}</pre></div>"
        f"<details><summary>{len(about['claims'])} claims that it shows</summary>{_claims(about['claims'])}</details>"
        f"<details><summary>How it was made</summary>{_made(about)}</details></article>"
    )


def _ours(slugs: Iterable[str], shown: set[str]) -> str:
    names = {slug: slug.replace("_", "_<wbr>") for slug in slugs}
    links = (f'<a href="#{s}">{name}</a>' if s in shown else f"{name} (not here)" for s, name in names.items())
    return "<br>".join(links) or "none"


def _paper(shown: set[str]) -> str:
    lines = (
        f"<tr><th scope=row>{escape(row.where)}</th><td>{escape(row.shows)}</td><td>{_ours(row.ours, shown)}</td>"
        f"<td>{_code(row.said)}</td></tr>"
        for row in FIGURES
    )
    names = ("of the paper", "what it shows", "ours", "what is the same and what is not")
    head = "".join(f"<th scope=col>{name}</th>" for name in names)
    return f"<table class=paper><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _filter(counts: Mapping[str, int]) -> str:
    choices = {"all": "All", **{name: LADDER[name] for name in LADDER if counts.get(name)}}
    radios = "".join(
        f'<label><input type=radio name=rung value="{name}"{" checked" if name == "all" else ""}>'
        f"<span>{escape(words)} ({sum(counts.values()) if name == 'all' else counts[name]})</span></label>"
        for name, words in choices.items()
    )
    return f"<fieldset hidden><legend>Show</legend>{radios}</fieldset><p id=shown aria-live=polite></p>"


def _absent(absent: Mapping[str, str], titles: Mapping[str, str]) -> str:
    if not absent:
        return ""
    lines = "".join(
        f"<li><b>{slug}</b>: {escape(titles[slug])}. Not in this folder: {escape(why)}.</li>"
        for slug, why in absent.items()
    )
    return f"<section aria-labelledby=absent><h2 id=absent>Not in this folder</h2><ul>{lines}</ul></section>"


def page(shown: list[dict[str, Any]], /, *, absent: Mapping[str, str], titles: Mapping[str, str]) -> str:
    """The whole page: filter, table of contents, figures up the ladder, what is absent, the paper's figures."""
    counts = {name: sum(about["rung"] == name for about in shown) for name in LADDER}
    contents = "".join(
        f'<li data-rung="{about["rung"]}"><a href="#{about["slug"]}">{escape(about["title"])}</a></li>'
        for about in shown
    )
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("gallery.css", "gallery.js"))
    return f"""<!doctype html>
<html lang=en>
<head>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta name=color-scheme content="light dark">
<title>toyld: the figures</title>
<style>
{style}</style>
</head>
<body>
<a class=skip href="#figures">To the figures</a>
<header>
<h1>The figures</h1>
<p>Each picture with its caption, the claims that it shows, its data and the command that draws it again. An expected
verdict is what the claim's test demands: <i>holds</i>, <i>refuted</i>, <i>conditional</i> or <i>open</i>; of a figure
without a seed the numbers are not random or were recorded. <code>toyld claims ID</code> prints a claim in full.
<a href="#paper">The paper's figures, one by one</a>.</p>
{_filter(counts)}
</header>
<main id=figures tabindex=-1>
<nav aria-label="Contents"><details><summary>Contents</summary><ol>{contents}</ol></details></nav>
{"".join(_figure(about) for about in shown)}
{_absent(absent, titles)}
<section aria-labelledby=paper><h2 id=paper>The paper's figures, one by one</h2>
<p>Ren and Sutherland, <i>Learning Dynamics of LLM Finetuning</i>, arXiv 2407.10490.</p>
{_paper({about["slug"] for about in shown})}</section>
</main>
<script>
{script}</script>
</body>
</html>
"""
