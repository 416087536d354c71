"""`toyld probe` on the terminal: a progress bar while it measures, and what it did in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toyld.llm.probe import probe

__all__ = ["show"]


def show(models: Sequence[str], data: Path, out: Path, /, **options: Any) -> int:
    """Run `probe` with a bar on a terminal (none elsewhere), then print its report; 0."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    errors = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        report = probe(models, data, out, tell=tell, **options)
    print(
        f"{report.n_examples} examples × {len(report.kinds)} kinds ({', '.join(report.kinds)}): "
        f"{report.n_responses} responses at steps {_list(report.measured) or 'none'}"
        + (f"; there already: {_list(report.skipped)}" if report.skipped else "")
    )
    print(f"steps {report.steps_from}" + ("" if report.has_step0 else "; the policy before training is not among them"))
    for kind, why in report.missing.items():
        print(f"not scored, {kind}: {why}")
    if report.left_out:
        print(report.left_out)
    if report.n_cut:
        print(f"{report.n_cut} responses lost their end at --max-length {options['max_length']}")
    if report.noise_floor is not None:
        print(f"scoring noise: {report.noise_floor:.1e} nats/token between batch shapes")
    print(f"next: toyld diagnose {out}")
    return 0


def _list(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
