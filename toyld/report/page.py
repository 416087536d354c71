"""The page: one self-contained HTML file with the table, the plots and everything behind each verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Any

import xarray as xr

import toyld
from toyld.diagnosis import Verdict, reasons
from toyld.report._words import (
    COLUMNS,
    LEGEND,
    MEANING,
    Entry,
    clean,
    consistent,
    facts,
    headline,
    labels,
    missing,
    moves,
    plain,
    segments,
    share,
    sure,
    unit,
)
from toyld.report.pictures import SHADES, pictures

__all__ = ["html"]

_NUMERIC = set(COLUMNS[3:])
_RULES = """
:root{color-scheme:light dark;LIGHT;--paper:#fff;--soft:#f4f4f2;--link:#0b5394}
@media(prefers-color-scheme:dark){:root{DARK;--paper:#161616;--soft:#222;--link:#8cc8f0}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1rem}
h1{font-size:1.4rem}h2{font-size:1.2rem;margin:2.5rem 0 .3rem;border-top:1px solid var(--rule);padding-top:1rem;
overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
a{color:var(--link)}p,li,dd{overflow-wrap:anywhere}
.verdict{font-size:1.15rem;font-weight:600;margin:.2rem 0}
.small{font-size:.85rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}
th{font-weight:600}.n{text-align:right;white-space:nowrap}
.run{overflow-wrap:anywhere;min-width:9rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
figure{margin:0;background:var(--soft);padding:.5rem;border-radius:4px;break-inside:avoid}
figure svg{width:100%;height:auto;display:block}
figcaption{font-size:.85rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem;margin:.6rem 0}dt{font-weight:600}dd{margin:0}
.strip{display:flex;list-style:none;margin:.3rem 0;padding:0;height:2.1rem;border:1px solid var(--rule)}
.strip li{overflow:hidden;white-space:nowrap;font-size:.75rem;line-height:2rem;padding:0 .2rem;min-width:2px;
border-right:1px solid var(--paper);background:var(--soft)}
.strip .bad{font-weight:700;background:repeating-linear-gradient(45deg,var(--soft) 0 6px,var(--gap) 6px 12px)}
@media(max-width:34rem){dl{grid-template-columns:1fr}dd{margin-bottom:.4rem}}
@media print{:root{LIGHT;--paper:#fff;--soft:#fff;--link:#333}body{font-size:10pt}main{max-width:none}
h2,h3{break-after:avoid}section{break-inside:auto}}
"""
_SEVERE = {"squeezing", "displacement", "divergence", "wrong-reference"}


def _style() -> str:
    light = ";".join(f"--{name}:{on_light}" for name, on_light, _ in SHADES.values())
    dark = ";".join(f"--{name}:{on_dark}" for name, _, on_dark in SHADES.values())
    return _RULES.replace("LIGHT", light).replace("DARK", dark)


def _text(value: Any) -> str:
    return escape(clean(str(value)))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: set[str], label: str) -> str:
    """A table that scrolls in itself; cells are HTML already, the first one of a row is its header."""
    kind = ['class="n"' if name in numeric else 'class="run"' if name == "run" else "" for name in head]
    cells = "".join(f'<th scope="col" {k}>{escape(name)}</th>' for name, k in zip(head, kind, strict=True))
    body = ""
    for row in rows:
        first, *rest = row
        line = f'<th scope="row" {kind[0]}>{first}</th>'
        body += f"<tr>{line}{''.join(f'<td {k}>{c}</td>' for c, k in zip(rest, kind[1:], strict=True))}</tr>\n"
    region = f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">'
    return f"{region}<table><thead><tr>{cells}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"


def _strip(ds: xr.Dataset, v: Verdict) -> str:
    """The verdict at every evaluation, stretch by stretch, as wide as it is long; each says its name."""
    found = segments(v.history)
    if len(v.history) < 2:
        return ""
    out = "<h3>Verdict over time</h3>\n"
    items = ""
    for first, last, name, n in found[:200]:
        where = f"{name}: {first}" + (f" to {last}" if last > first else "") + f" {unit(ds)}"
        bad = ' class="bad"' if name in _SEVERE else ""
        items += f'<li{bad} style="flex:{n} {n} 0" title="{escape(where)}">{escape(name)}</li>'
    out += f'<ol class="strip" aria-label="Verdict at each of {len(v.history)} evaluations">{items}</ol>\n'
    many = f"; the first 200 of {len(found)} stretches" if len(found) > 200 else ""
    ends = f"{v.history[0]['step']} to {v.history[-1]['step']} {unit(ds)}, {len(v.history)} evaluations{many}"
    return out + f'<p class="small">{escape(ends)}; hatched and bold: the classes that ask for a change.</p>\n'


def _listed(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{line}</li>" for line in lines)
    return f"<h3>{escape(title)}</h3>\n<ul>{items}</ul>\n" if items else ""


def _read_from(ds: xr.Dataset) -> Iterator[tuple[str, str]]:
    """What was read: attributes of the table, file fingerprints one a line."""
    yield "table", escape(", ".join(f"{name} {size}" for name, size in ds.sizes.items()))
    yield "measured", _text(", ".join(str(name) for name in ds.data_vars))
    for name, value in ds.attrs.items():
        if name == "notes":
            continue
        if name == "fingerprints":
            try:
                files = json.loads(str(value))
                yield (
                    "SHA-256",
                    "<br>".join(f"{_text(file)}: <code>{_text(digest)}</code>" for file, digest in files.items()),
                )
                continue
            except (ValueError, AttributeError):
                pass
        text = str(value)
        yield _text(name), _text(text if len(text) <= 300 else text[:300] + " …")


def _section(number: int, name: str, entry: Entry) -> str:
    head = f'<section id="run-{number}" aria-labelledby="run-{number}-name">'
    head += f'<h2 id="run-{number}-name">{number}&ensp;{escape(name)}</h2>\n'
    if len(entry) == 2:
        return f'{head}<p class="verdict">Could not be read</p><p>{_text(entry[1])}</p></section>\n'
    _, ds, v = entry
    said = consistent(v.verdict)
    how = sure(v)
    how = f" {how[0].upper()}{how[1:]}." if how else ""
    out = f'{head}<p class="verdict">{escape(said[0].upper() + said[1:])}</p>\n'
    out += f"<p>{escape(MEANING[v.verdict][0].upper() + MEANING[v.verdict][1:])}.{escape(how)}</p>\n"
    rows = [tuple(map(escape, row)) for row in moves(v)]
    if rows:
        out += _table(("nats per response", "change [95 %]", "first → last"), rows, {"change [95 %]", "first → last"},
                      f"Changes of run {number}")  # fmt: skip
    if v.share is not None:
        ranked = sorted(((name, x) for name, x in v.share.items() if x > 0), key=lambda kv: -kv[1])
        cells = [(escape(k), escape(share(x))) for k, x in ranked]
        out += _table((f"class of {v.n_examples} examples", "share"), cells, {"share"}, f"Examples of run {number}")
    plots = "".join(
        f"<figure>{p.svg}<figcaption><strong>{escape(p.title)}.</strong> {escape(p.says)}</figcaption></figure>\n"
        for p in pictures(ds, v, key=f"r{number}")
    )
    out += f'<div class="plots">{plots}</div>\n' if plots else ""
    out += _strip(ds, v)
    shown = {"means", "numbers", "found", "missing", f"{v.n_examples} examples"}
    told = "".join(
        f"<dt>{escape(name)}</dt><dd>{'<br>'.join(map(escape, lines))}</dd>"
        for name, lines in facts(ds, v)
        if name not in shown
    )
    out += f"<dl>{told}</dl>\n" if told else ""
    out += _listed(
        "Found in the log", (f"<strong>{_text(n['code'])}</strong>: {escape(plain(n['text']))}" for n in v.findings)
    )
    out += _listed("Missing", map(escape, missing(v)))
    tips = ""
    for item in v.advice:
        change, knob, evidence = (_text(item[key]) for key in ("change", "knob", "evidence"))
        tips += f'<li><strong>{change}</strong> ({knob}) <span class="small">{evidence}</span></li>'
    out += f"<h3>What to try, best backed first</h3>\n<ol>{tips}</ol>\n" if tips else "<p>Nothing needs a change.</p>\n"
    rows_read = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in _read_from(ds))
    return out + f'<h3>What was read</h3>\n<dl class="small">{rows_read}</dl>\n</section>\n'


def html(entries: Sequence[Entry], /, *, watch: Callable[[Iterable[Any], str], Iterable[Any]] | None = None) -> str:
    """The page of these runs: one file, nothing external, the same bytes for the same runs.

    `watch(items, description)`: wraps the loop over the runs, to show progress.

    >>> page = html([("a/run", "expected a log, got nothing: look again")])
    >>> page.startswith("<!DOCTYPE html>"), "http" in page, "look again" in page
    (True, False, True)
    """
    pairs = ["-".join(str(e[1].attrs[k]) for k in ("stage", "arm")) if len(e) == 3 else "" for e in entries]
    common, names = labels([entry[0] for entry in entries], pairs)
    rows = []
    for number, (name, entry) in enumerate(zip(names, entries, strict=True), 1):
        label, *rest = map(escape, headline(name, entry[2] if len(entry) == 3 else None))
        rows.append((str(number), f'<a href="#run-{number}">{label}</a>', *rest))
    runs = "1 run" if len(entries) == 1 else f"{len(entries)} runs"
    loop = list(enumerate(zip(names, entries, strict=True), 1))
    sections = "".join(_section(n, name, e) for n, (name, e) in (watch(loop, "drawing") if watch else loop))
    why = [
        (escape(name.replace("_", " ")), f"{value:g}", escape(reason)) for name, (value, reason) in reasons().items()
    ]
    folder = f"<p>Runs below <code>{escape(common)}</code>.</p>\n" if common else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>toyld diagnose: {runs}</title>\n<style>{_style()}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>What {runs} {'is' if len(entries) == 1 else 'are'} consistent with</h1>\n{folder}"
        f'{_table(COLUMNS, rows, _NUMERIC, "All runs side by side")}<p class="small">{escape(LEGEND)}</p>\n'
        "<p>A verdict says what the numbers are consistent with, not what caused them: falling chosen responses have "
        "several causes, and some fall is to be expected where the reference was trained on them.</p>\n"
        f"{sections}<section><h2>Thresholds</h2>\n<p>What the verdicts depend on; none was fitted to a run.</p>\n"
        f"{_table(('threshold', 'value', 'why'), why, {'value'}, 'Thresholds')}</section>\n"
        f'<footer><p class="small">toyld {escape(toyld.__version__)}. “Closed form” names claims about one softmax; '
        "<code>toyld claims ID</code> prints one with its proof.</p></footer>\n</main>\n</body>\n</html>\n"
    )
