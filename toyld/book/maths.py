"""Maths of the prose, which is plain Unicode (π_y, e^{sx}, Σ_u), as HTML: variables, subscripts, set formulas."""

from __future__ import annotations

import ast
import html
import re

__all__ = ["display", "inline"]

# Marks of other modules travel through a text as characters of private use; they take no room here.
_MARK = "[\ue000-\uf8ff]"
_OPERATORS = {
    "arg",
    "argmax",
    "argmin",
    "cos",
    "exp",
    "inf",
    "KL",
    "lim",
    "log",
    "ln",
    "max",
    "min",
    "sup",
    "tr",
    "Cov",
}
_PRODUCTS = {"AG", "KG", "SR", "Wh", "Wx", "sAG", "sG"}
_TOKEN = re.compile(
    rf"""(?P<snake>[A-Za-z]{{2,}}(?:_[A-Za-z0-9]{{2,}})+)             # chosen_gptsemantic: a name, no subscript
    |(?P<word>[A-Za-zÀ-ÖØ-öø-ÿ]+)
    |(?P<greek>[α-ωϑϕϵℓ])
    |(?P<script>[_^](?:\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}|{_MARK}?[<−-]?(?:[A-Za-zα-ωχ]+|\d+){_MARK}?[*⁺⁻]?))
    |(?P<prime>['′](?![A-Za-z]{{1,2}}\b))
    |(?P<other>.)""",
    re.X | re.S,
)
_AFTER_A = re.compile(r"(?:says|subtracts|is|and|has|does|of|at|knows|d\b|K\b|G\b)\b")
_TAG = re.compile(r"\s{2,}(\((?:[^()]|\([^()]*\))*(?:\d\.\d|§|Eq|App|Fig|chapter)(?:[^()]|\([^()]*\))*\))[.,]?\s*$")


def _variable(text: str, found: re.Match[str]) -> bool:
    """Whether a letter that stands alone is a variable and not an article, a label, or a piece of a word."""
    letter = found.group()
    before, after = text[: found.start()], text[found.end() :]
    last, next_ = before[-1:], after[:1]
    if last in "'’" and letter in "stdm" and before[-2:-1].strip():  # it's, π's
        return False
    if last == "." and before[-2:-1].isalpha():  # e.g.
        return False
    if re.match(r"\.[A-Za-z0-9]", after) or (letter.isupper() and re.match(r"\d|\.\d", after)):  # App. C.2, T7
        return False
    if last.isdigit() and (letter in "KMBDk" or re.search(r"\b[A-Z]\d+$", before)):  # 410M, F1b
        return False
    if letter.isupper() and re.search(r"(?:[A-Z]-|\bApp\. )$", before):  # BS-T, App. B
        return False
    if text.strip() == letter.upper():  # **A**
        return True
    if letter in "aAI":
        mathy = re.match(rf"{_MARK}?\s?[=<>≤≥+−·/^_)|(‖′\],;]", after) or re.search(
            rf"(?:[=<>≤≥+−·/(|‖∈⟨\[]|[α-ω]){_MARK}?\s?$", before
        )
        return bool(mathy) or (letter == "A" and bool(_AFTER_A.match(after.lstrip())))
    return next_ != "’" or after[1:2] in ("s", "")


def inline(text: str, /) -> str:
    """A piece of prose with its maths set: single letters that are variables, sub- and superscripts; the rest escaped.

    >>> inline("y⁺ falls if π_{y*} > z, e^{−s} < 1")
    '<var>y</var>⁺ falls if <var>π</var><sub><var>y</var>*</sub> &gt; <var>z</var>, e<sup>−<var>s</var></sup> &lt; 1'
    >>> inline("a word's log π_ref, e.g. chosen_gptsemantic")
    'a word&#x27;s log <var>π</var><sub>ref</sub>, e.g. chosen_gptsemantic'
    """
    out: list[str] = []
    base = False  # whether what came last can carry a subscript
    for found in _TOKEN.finditer(text):
        kind, token = found.lastgroup, found.group()
        if kind == "script" and base:
            inner = token[1:].removeprefix("{").removesuffix("}") if token[1] == "{" else token[1:]
            tag = "sub" if token[0] == "_" else "sup"
            pair = re.fullmatch("[a-z]{2}", inner)  # two indices, S_uv
            out.append(f"<{tag}>{f'<var>{inner}</var>' if pair else inline(inner)}</{tag}>")
            continue
        if kind == "prime" and base:
            out.append("′")
            continue
        if kind == "greek":
            out.append(f"<var>{token}</var>")
        elif kind == "word" and len(token) == 1 and token == "e" and text[found.end() : found.end() + 1] == "^":
            out.append("e")  # the number
        elif kind == "word" and len(token) == 1 and _variable(text, found):
            out.append(f"<var>{token}</var>")
        elif token in _PRODUCTS:
            out.append("".join(f"<var>{letter}</var>" for letter in token))
        else:
            out.append(html.escape(token))
        carries = token in ")]}|‖⁺⁻²³ᵀ′*ΣΠΔΦ∇ℝ∂" or token.isdigit() or "\ue000" <= token <= "\uf8ff"
        base = kind in ("greek", "word") or (kind == "other" and carries)
    return "".join(out)


def _is_code(block: str) -> bool:
    first = block.split(maxsplit=1)[0]
    if first in ("toyld", "pip", "python", "pytest", ">>>", "git"):
        return True
    try:
        ast.parse(block)
    except SyntaxError:
        return False
    return block.isascii() and "(" in block


def _cells(line: str) -> list[tuple[int, int, str]]:
    """The parts of a line between wide gaps, with their places."""
    return [(m.start(), m.end(), m.group()) for m in re.finditer(r"\S+(?: \S+)*", line)]


def _under(formula: list[tuple[int, int, str]], words: list[tuple[int, int, str]]) -> list[str]:
    """For each part of a formula the words that stand below it."""
    below = [""] * len(formula)
    terms = [i for i, (_, _, text) in enumerate(formula) if any(c.isalpha() for c in text)]  # no lone signs
    for start, stop, word in words:
        middle = (start + stop) / 2
        nearest = min(terms, key=lambda i: max(formula[i][0] - middle, middle - formula[i][1], 0.0))
        below[nearest] = f"{below[nearest]} {word}".strip()
    return below


def display(block: str, /) -> str:
    """Indented lines as set formulas: tags such as (7.2) to the right, columns where lines have as many, or as code.

    >>> print(display("G = π      (§3.1)"))  # doctest: +NORMALIZE_WHITESPACE
    <div class="formula"><div class="row"><span class="body"><var>G</var> = <var>π</var></span><span
    class="tag">(§3.1)</span></div></div>
    """
    if _is_code(block):
        return f'<pre class="plain" tabindex="0">{html.escape(block.rstrip())}</pre>'
    rows: list[tuple[list[tuple[int, int, str]], str]] = []
    for line in block.rstrip("\n").splitlines():
        tag = _TAG.search(line)
        rows.append((_cells(line[: tag.start()] if tag else line), tag[1] if tag else ""))
    rows = [(cells, tag) for cells, tag in rows if cells]
    counts = {len(cells) for cells, _ in rows}
    if len(rows) > 1 and counts == {max(counts)} and max(counts) > 1 and not any(tag for _, tag in rows):
        cells = "".join(
            f"<span{' class=name' if i == 0 else ''}>{inline(text)}</span>"
            for row, _ in rows
            for i, (_, _, text) in enumerate(row)
        )
        return f'<div class="formula grid" style="--columns: {max(counts)}">{cells}</div>'
    out, at = [], 0
    while at < len(rows):
        parts, tag_ = rows[at]
        annotated = at + 1 < len(rows) and rows[at + 1][0][0][0] >= 4 and len(parts) > 1 and _words(rows[at + 1][0])
        if annotated:
            below = [f"<small>{html.escape(word)}</small>" if word else "" for word in _under(parts, rows[at + 1][0])]
            terms = [
                f"<span><span>{inline(text)}</span>{word}</span>"
                for (_, _, text), word in zip(parts, below, strict=True)
            ]
            body = f'<span class="body braced">{"".join(terms)}</span>'
        else:
            indent = ' style="padding-left: 2em"' if at and parts[0][0] >= 2 else ""
            gap = '<span class="gap"></span>'
            terms = [f'<span class="part">{inline(text)}</span>' for _, _, text in parts]
            body = f'<span class="body"{indent}>{gap.join(terms) if len(terms) > 1 else inline(parts[0][2])}</span>'
        told = f'<span class="tag">{inline(tag_)}</span>' if tag_ else ""
        out.append(f'<div class="row">{body}{told}</div>')
        at += 1 + bool(annotated)
    return f'<div class="formula">{"".join(out)}</div>'


def _words(cells: list[tuple[int, int, str]]) -> bool:
    """Whether a line is made of words alone, as stand under the parts of a formula."""
    return all(re.fullmatch(r"[A-Za-z][a-z]*(?: [a-z]+)*", text) for _, _, text in cells)
