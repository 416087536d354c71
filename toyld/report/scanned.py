"""What `toyld scan` prints: findings, the model's view of the pairs, and those whose chosen response will fall most."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["print_scan"]

SHOWN = 5
_STYLE = {"fault": "bold red", "warning": "yellow", "note": "dim"}


def print_scan(scan: Mapping[str, Any], /) -> None:
    """Findings, faults first; surprise of both sides; the pairs that will fall most. `scan`: as `--json` writes it.

    >>> print_scan({"rows": 3, "findings": [], "summary": {}, "pairs": []})
    3 rows, no findings; scored by the model: 0
    """
    from rich.console import Console
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    for name in ("", "finding", "rows", "what", "first rows", "what to do"):
        out.add_column(name, justify="right" if name == "rows" else "left", overflow="fold")
    for one in scan["findings"]:
        rows = f"{len(one['rows'])} of {one['of']}" if one["rows"] else ""
        first = ", ".join(map(str, one["rows"][:SHOWN])) + (" …" if len(one["rows"]) > SHOWN else "")
        cells = [one["severity"], one["code"], rows, one["text"], first, one["do"]]
        out.add_row(*(cell.replace("[", r"\[") for cell in cells), style=_STYLE[one["severity"]])
    if scan["findings"]:
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(out)
    summary = scan["summary"]
    n = int(summary.get("scored", 0))
    print(f"{scan['rows']} rows, {len(scan['findings']) or 'no'} findings; scored by the model: {n}")
    if not n:
        return
    for side in ("chosen", "rejected"):
        surprise, entropy = summary[f"surprise_{side}"], summary[f"entropy_{side}"]
        print(f"{side}: {surprise:.2f} nats a token; what the model writes itself there would have {entropy:.2f}")
    print(f"chosen likelier than rejected in {summary['chosen_likelier']:.0%} of pairs (sums over tokens)")
    how = "predicted" if "predicted_falls" in summary else "k3_update"
    what = "through all layers" if how == "predicted" else "through the head alone (K3), per unit of learning rate"
    print(
        f"one update foreseen, {what}: chosen falls in {summary[how + '_falls']:.0%}, "
        f"mean change {_signed(summary[how + '_mean'])} nats"
    )
    falling = sorted((pair for pair in scan["pairs"] if pair[how] < 0), key=lambda pair: pair[how])
    for pair in falling[:SHOWN]:
        print(
            f"  row {pair['row']}: {_signed(pair[how])} nats; surprise {pair['surprise_chosen']:.2f} chosen, "
            f"{pair['surprise_rejected']:.2f} rejected; {pair['shared_start']:.0f} first tokens in common"
        )


def _signed(x: float) -> str:
    return f"{x:+.2e}".replace("-", "−")
