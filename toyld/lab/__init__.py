"""The lab: one page that computes one softmax, coupled contexts and losses live, to teach with and to play with.

`build` makes it of the files beside this module and of what Python computes for it; the page needs no network and
stores nothing. Its arithmetic is that of `toyld.softmax`, `toyld.contexts` and `toyld.objectives`, written again in
`js/softmax.js`, `js/contexts.js` and `js/losses.js`; `toyld.lab.golden` holds what a browser has to reproduce.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["ARITHMETIC", "SCRIPTS", "build", "claims", "source"]

HERE = Path(__file__).parent
ARITHMETIC = ("softmax", "contexts", "losses")
# In this order: each piece sees those before it. Panels stand on the page in theirs.
SCRIPTS = (
    *ARITHMETIC,
    *("dom", "store", "ui", "plot", "drag", "shell"),
    *("panel_step", "panel_contexts", "panel_zoo", "panel_quiz", "start"),
)
_DATA = ("zoo", "quiz")  # modules that compute something for the page: `data()`


def source(name: str, /) -> str:
    """One piece of the page's script, empty if there is none of that name.

    >>> "const softmax" in source("softmax")
    True
    """
    path = HERE / "js" / f"{name}.js"
    return path.read_text(encoding="utf-8") if path.exists() else ""


@cache
def claims(script: str, /) -> dict[str, dict[str, str]]:
    """The claims that a script names as strings: id → statement and verdict.

    >>> claims('["pair.winner-rises"]')["pair.winner-rises"]["verdict"]
    'proved'
    """
    from toyld.claims import every

    known = every()
    named = [id for id in re.findall(r'"([a-z]+\.[a-z0-9-]+)"', script) if id in known]
    return {
        id: {"statement": known[id].statement, "verdict": _verdict(known[id].kind, known[id].expect)}
        for id in dict.fromkeys(named)
    }


def _verdict(kind: str, expect: str) -> str:
    """As the board has it: a theorem or an identity that holds is proved."""
    if kind in ("theorem", "identity"):
        return "proved" if expect == "holds" else expect
    return f"measured: {expect}"


def build() -> str:
    """The page, whole.

    >>> page = build()
    >>> page.startswith("<!doctype html>"), "{{" in page, len(page.encode()) < 200_000
    (True, False, True)
    """
    pieces = {name: source(name) for name in SCRIPTS}
    data: dict[str, Any] = {"claims": claims("\n".join(pieces.values()))}
    for name in _DATA:
        if pieces[f"panel_{name}"]:
            data[name] = import_module(f"{__name__}.{name}").data()
    exports = ", ".join(name for name in ARITHMETIC if pieces[name])
    script = "\n".join(
        [
            "(() => {",
            '"use strict";',
            # "</" would end the script.
            f"const data = {json.dumps(data, ensure_ascii=False, allow_nan=False)};".replace("</", "<\\/"),
            *(text for name, text in pieces.items() if name != "start"),
            f"const arithmetic = () => ({{ {exports} }});",
            pieces["start"],
            "})();",
        ]
    )
    page = (HERE / "page.html").read_text(encoding="utf-8")
    style = (HERE / "style.css").read_text(encoding="utf-8")
    return page.replace("{{style}}", style.strip()).replace("{{script}}", script)
