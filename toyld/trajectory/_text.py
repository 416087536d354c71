"""What the readers of JSON share: values shown in messages, keys that must not repeat."""

from __future__ import annotations

from typing import Any

from toyld.checked import fail

__all__ = ["once", "show"]


def show(value: object, longest: int = 60) -> str:
    """What it is, in ASCII, cut to a length."""
    try:
        text = ascii(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= longest else text[: longest - 3] + "..."


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, each of whose keys stands there once; for `object_pairs_hook`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        fail("every key once in an object", f"a repeated key among {show([k for k, _ in pairs])}", "repair the log")
    return found
