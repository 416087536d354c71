"""The figures: one a module, found by its file; `python -m toyld.figures` draws them all, and a page that shows them.

A figure is a module of this folder whose name is the figure's slug (names that begin with an underscore are tools):

- its docstring is the title, a blank line and the caption, which names the claims it shows by id in backticks;
- `data(size)` computes the table, `size` being "smoke" or "paper": pure, seeded, columns of one length, units in names;
- `draw(table)` draws a matplotlib `Figure` from that table and nothing else, so that a CSV re-plots;
- `check(table)` asserts what the caption says, with the numbers in the message;
- and where they apply `PAPER` (the paper's figure) with `DIFFERS` (what is known to be different here), `TAGS`,
  `SEED`, `COST` ("seconds" or "half a minute"), `INPUTS` (what it reads, in words) and `inputs()` (name -> path of each
  file read, or `MissingInput` with the line that says how to get it).

`toyld/figures/_paper.py` says of each figure of the paper which of ours stands for it, or why none can.

Nothing here imports matplotlib before a picture is drawn.
"""

from __future__ import annotations

from toyld.figures._registry import Figure, FigureError, MissingInput, every, select
from toyld.figures._render import draw, render
from toyld.figures._table import Table, read_table, write_table

__all__ = [
    "Figure",
    "FigureError",
    "MissingInput",
    "Table",
    "draw",
    "every",
    "main",
    "read_table",
    "render",
    "select",
    "write_table",
]

main = render  # what `toyld figures` runs
