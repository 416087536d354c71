"""python -m toyld.objectives: the table of every objective, computed from the code, as markdown."""

from . import table_markdown

print(table_markdown())
