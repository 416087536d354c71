"""Prose, code and printed output as HTML: markdown with maths, links to claims and chapters, code with colours."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toyld.book.chapters import ID
from toyld.book.maths import display, inline
from toyld.checked import BadInput
from toyld.claims import CHAPTERS, Claim

__all__ = ["Renderer", "code", "printed", "slug"]


def slug(heading: str, /) -> str:
    """The id of a heading.

    >>> slug("Rarer, first reading: π_y")
    'rarer-first-reading-πy'
    """
    return "-".join(re.sub(r"[^\w\s-]|_", "", heading.lower()).split()) or "section"


@functools.cache
def _highlight(source: str, language: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return str(highlight(source, get_lexer_by_name(language), HtmlFormatter(nowrap=True)))


@dataclass
class Renderer:
    """What links need: the claims by id, and the page of each chapter by its number.

    `headings` collects (level, id, HTML) of the last text rendered.
    """

    known: Mapping[str, Claim]
    pages: Mapping[int, str] = field(default_factory=dict)
    headings: list[tuple[int, str, str]] = field(default_factory=list)

    def claim(self, id: str, /, shown: str | None = None) -> str:
        """A claim's id as link to it; what is no claim, as code."""
        text = f"<code>{html.escape(shown or id)}</code>"
        if id in self.known:
            return (
                f'<a class="claim" href="claims.html#{id}" title="{html.escape(self.known[id].statement)}">{text}</a>'
            )
        if (page := self._href(id)) != id:
            return f'<a href="{page}">{text}</a>'
        chapter = id.removesuffix(".*")
        return f'<a class="claim" href="claims.html#{chapter}">{text}</a>' if chapter in CHAPTERS else text

    def _text(self, text: str) -> str:
        def linked(found: re.Match[str]) -> str:
            page = self.pages.get(int(found[1]))
            return f'<a href="{page}">{found[0]}</a>' if page else found[0]

        return re.sub(r"\b[Cc]hapter (\d+)\b", linked, inline(text))

    def _href(self, href: str) -> str:
        """Links between the files of the book as links between its pages."""
        found = re.fullmatch(r"(?:\.\./|theory/|\./)*(solutions/)?(\d\d_\w+)\.py", href)
        if found and f"{found[2]}.html" in self.pages.values():
            return f"{found[2]}{'_exercises' if found[1] else ''}.html"
        return href

    def markdown(self, text: str, /, level: int = 0) -> str:
        """Markdown as HTML, its headings `level` deeper.

        Raises:
            BadInput: emphasis by underscores, as which an index was read.
        """
        from markdown_it import MarkdownIt

        md = MarkdownIt("commonmark", {"html": False}).enable("table")
        self.headings = []

        def rule(name: str) -> Any:
            def register(function: Any) -> None:
                md.renderer.rules[name] = function  # type: ignore[attr-defined, unused-ignore]

            return register

        @rule("text")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            inside = env.get("heading") or (at and tokens[at - 1].type == "link_open")
            return inline(tokens[at].content) if inside else self._text(tokens[at].content)

        @rule("code_inline")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            linked = at and tokens[at - 1].type == "link_open"
            content = tokens[at].content
            return f"<code>{html.escape(content)}</code>" if linked else self.claim(content)

        @rule("code_block")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            return display(tokens[at].content) + "\n"

        @rule("fence")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            language = {"sh": "bash", "python": "python"}.get(tokens[at].info.strip(), "text")
            source = tokens[at].content
            if ">>>" in source:
                language = "pycon"
            return f'<pre class="code" tabindex="0"><code>{_highlight(source, language)}</code></pre>\n'

        @rule("table_open")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            return '<div class="scroll" tabindex="0"><table>\n'

        @rule("table_close")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            return "</table></div>\n"

        @rule("th_open")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            if not tokens[at + 1].content:  # a header that says nothing is none
                tokens[at].tag = tokens[at + 2].tag = "td"
            style = tokens[at].attrs.get("style")
            return f"<{tokens[at].tag}" + (f' style="{style}">' if style else ">")

        @rule("link_open")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            return f'<a href="{html.escape(self._href(str(tokens[at].attrs["href"])))}">'

        @rule("heading_open")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            depth = int(tokens[at].tag[1:]) + level
            words = tokens[at + 1].content
            plain = slug(re.sub("[\ue000-\uf8ff]", "", words))
            tokens[at + 2].tag = f"h{depth}"
            env["heading"] = True  # no links inside
            self.headings.append((depth, plain, md.renderInline(words, {"heading": True})))
            return f'<h{depth} id="{plain}">'

        @rule("heading_close")
        def _(tokens: Sequence[Any], at: int, options: Any, env: Any) -> str:
            env["heading"] = False
            return f"</{tokens[at].tag}>\n"

        tokens = md.parse(text)
        marked = [t.markup for one in tokens for t in one.children or () if t.type == "em_open"]
        if "_" in marked:  # an index would be lost
            msg = f"expected emphasis by asterisks, got underscores in {text[:60]!r}…: put the formula in backticks"
            raise BadInput(msg)
        return str(md.renderer.render(tokens, md.options, {}))

    def code(self, source: str, /) -> str:
        """Python with colours; ids of claims in it are links."""
        coloured = _highlight(source, "python")

        def linked(found: re.Match[str]) -> str:
            return (
                self.claim(found[2], "\0").replace("<code>\0</code>", found[0]) if found[2] in self.known else found[0]
            )

        return re.sub(rf'<span class="s2">(&quot;|")({ID})(?:&quot;|")</span>', linked, coloured)


def code(renderer: Renderer, source: str, label: str, /) -> str:
    """A block of code, folded."""
    return (
        f'<details class="code"><summary>{html.escape(label)}</summary>'
        f'<pre class="code" tabindex="0"><code>{renderer.code(source)}</code></pre></details>'
    )


def printed(text: str, /, label: str = "printed by the code above") -> str:
    """What code printed; nothing if it printed nothing."""
    if not text.strip():
        return ""
    return f'<pre class="printed" tabindex="0" role="group" aria-label="{label}">{html.escape(text.rstrip())}</pre>'
