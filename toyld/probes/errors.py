"""One clear line for preference data that cannot be used: expected, got, what to do."""

from __future__ import annotations

from typing import NoReturn

from toyld.checked import BadInput

__all__ = ["PreferenceError", "refuse", "show"]


class PreferenceError(BadInput):
    """Preference data or a response that cannot be used; one line: expected, got, what to do."""


def show(value: object, /) -> str:
    """A value in at most 60 printable ASCII characters, a text with its type left out.

    >>> show("a\\nb"), show(3)
    ("'a\\\\nb'", 'int 3')
    """
    text = ascii(value)
    short = text if len(text) <= 60 else f"{text[:57]}..."
    return short if isinstance(value, str) else f"{type(value).__name__} {short}"


def refuse(expected: str, got: str, do: str) -> NoReturn:
    """Raise a PreferenceError in one printable line.

    >>> refuse("a prompt", "none", "add one")
    Traceback (most recent call last):
    toyld.probes.errors.PreferenceError: expected a prompt, got none: add one
    """
    line = f"expected {expected}, got {got}: {do}"
    raise PreferenceError("".join(c if c.isprintable() else " " for c in line))
