"""`toyld scan` on the terminal: a progress bar while it reads, what it found in lines, and the file for programs."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

from toyld.checked import BadInput
from toyld.files import write_whole
from toyld.llm.scan import scan
from toyld.report.scanned import print_scan

__all__ = ["show"]


def show(data: str, model: str, /, *, json: Path | None = None, **options: Any) -> int:
    """Run `scan` with a bar on a terminal (none elsewhere), print what it found, write it to a file; 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if json is not None and (json.is_dir() or not json.absolute().parent.is_dir()):
        raise BadInput(f"--json: expected a file in an existing folder, got {json}")
    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        found = scan(data, model, tell=tell, **options).as_json()
    print_scan(found)
    if json is not None:
        write_whole(json, (dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return 0
