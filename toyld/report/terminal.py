"""The printout: all runs side by side in one table, then a short paragraph for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toyld.diagnosis import Verdict
from toyld.report._words import COLUMNS, LEGEND, Entry, clean, consistent, facts, headline, labels, sure

__all__ = ["TOP", "printout"]

TOP = 3  # pieces of advice printed; the file and the page have all
_WIDE = 116  # columns of the terminal from which on the table has room for the paths
_LAST = (
    f"The {TOP} best-backed changes of each run are shown; --json and --html have all. Closed forms are of one "
    "softmax, or of many contexts under one head (kernel.*, centring.*): toyld claims ID prints what one rests on."
)
_NARROW = {name: name.replace("Δ ", "Δ\n") for name in COLUMNS} | {
    "consistent with": "consistent\nwith",
    "confidence": "confi-\ndence",
    "squeezed": "squee-\nzed",
    "evaluations": "evalu-\nations",
    "examples": "exam-\nples",
}
_RIGHT = {"#", *COLUMNS[3:]}


def _name(entry: Entry) -> str:
    if len(entry) == 2:
        return ""
    return "-".join(str(entry[1].attrs[key]) for key in ("stage", "arm"))


def _table(rows: Sequence[tuple[str, ...]], wide: bool) -> Any:
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for column in COLUMNS:
        if wide or column != "run":
            head = column if wide else _NARROW.get(column, column)
            out.add_column(Text(head), justify="right" if column in _RIGHT else "left", vertical="bottom",
                           overflow="fold", no_wrap=wide and column != "run")  # fmt: skip
    for number, row in enumerate(rows, 1):
        cells = row if wide else row[1:]
        out.add_row(*(Text(cell) for cell in (str(number), *cells)))
    return out


def _paragraph(entry: tuple[str, Any, Verdict], number: int, seen: dict[str, int]) -> Any:
    """Facts, then the best advice; evidence that an earlier run has shown already is not repeated."""
    from rich.table import Table
    from rich.text import Text

    out = Table.grid(padding=(0, 2, 0, 0))
    out.add_column(no_wrap=True)
    out.add_column(overflow="fold")
    _, ds, v = entry
    for name, lines in facts(ds, v):
        for i, line in enumerate(lines):
            out.add_row(Text(f"  {name}" if i == 0 else ""), Text(line))
    for i, item in enumerate(v.advice[:TOP]):
        first = seen.setdefault(item["change"] + item["evidence"], number)
        evidence = clean(item["evidence"]) if first == number else f"(evidence: see run {first})"
        if item["evidence"] == "this run: " + "; ".join(v.reasons):  # stands above
            evidence = ""
        text = Text(f"{i + 1}. ").append(clean(item["change"]), style="bold").append(f" {evidence}" * bool(evidence))
        out.add_row(Text("  try" if i == 0 else ""), text)
    if not v.advice and v.verdict != "cannot-tell":
        out.add_row(Text("  try"), Text("nothing needs a change"))
    return out


def printout(entries: Sequence[Entry], console: Any, /) -> None:
    """Print everything on a `rich` console; plain text where it is no terminal.

    Why a path could not be read is left to who called: beside the table it would be told twice.

    >>> from rich.console import Console
    >>> printout([("a/run", "expected a log, got nothing: look again")], Console(width=80))  # doctest: +ELLIPSIS
    1  a/run
    ...
    """
    from rich.text import Text

    wide = console.width >= _WIDE
    common, names = labels([entry[0] for entry in entries], [_name(entry) for entry in entries])
    verdicts = [None if len(entry) == 2 else entry[2] for entry in entries]
    seen: dict[str, int] = {}
    with console.capture() as captured:
        if not wide:
            for number, name in enumerate(names, 1):
                console.print(Text(f"{number}  {name}"))
            console.print()
        console.print(_table([headline(name, v) for name, v in zip(names, verdicts, strict=True)], wide))
        console.print()
        console.print(Text((f"in {common}. " if common else "") + LEGEND))
        for number, (entry, name) in enumerate(zip(entries, names, strict=True), 1):
            if len(entry) == 2:
                continue
            v = entry[2]
            head = f"{number}  {name}: {consistent(v.verdict)}" + (f" ({sure(v)})" if v.confidence is not None else "")
            console.print()
            console.print(Text(head, style="bold"))
            console.print(_paragraph(entry, number, seen))
        if any(v is not None and len(v.advice) > TOP for v in verdicts):
            console.print()
            console.print(Text(_LAST))
    text = "\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n"
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    console.file.write(text.encode(encoding, "replace").decode(encoding))
    console.file.flush()
