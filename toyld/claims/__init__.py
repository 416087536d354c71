"""Every statement of the theory as a value: id, sentence, source, premises, check, proof or counterexample.

One module a chapter; a module in this folder that calls `claim(...)` joins by being there. `hold(id)` tries one claim
and raises with its numbers if it does not come out as we assert.
"""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Iterable

from toyld.claims.base import Claim, Counterexample, Field, Margin, Premises, Result, Without, claim, evaluate, registry

__all__ = [
    "Claim",
    "Counterexample",
    "Field",
    "Margin",
    "Premises",
    "Result",
    "Without",
    "claim",
    "evaluate",
    "every",
    "hold",
    "select",
]

_TOOLS = {"base", "exact", "spaces", "tools"}


def every() -> dict[str, Claim]:
    """All claims by id, in the order of their chapters' file names."""
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        if module not in _TOOLS:
            importlib.import_module(f"{__name__}.{module}")
    return registry


def select(globs: Iterable[str] = ()) -> list[Claim]:
    """The claims whose id matches one of the globs (all of them without globs).

    Raises:
        ValueError: a glob that matches nothing.
    """
    claims = every()
    patterns = list(globs) or ["*"]
    for pattern in patterns:
        if not fnmatch.filter(claims, pattern):
            chapters = ", ".join(sorted({id.split(".")[0] + ".*" for id in claims}))
            msg = f"expected a claim id or glob, got {pattern!r} which matches none; chapters: {chapters}"
            raise ValueError(msg)
    return [c for c in claims.values() if any(fnmatch.fnmatchcase(c.id, p) for p in patterns)]


def hold(id: str, *, examples: int = 500, seed: int = 0) -> Result:
    """Try the claim `id` and return the result; raise AssertionError with its numbers unless it is as expected.

    >>> hold("squeeze.penalised-falls").verdict
    'holds'
    """
    (one,) = select([id])
    result = evaluate(one, examples=examples, seed=seed)
    if not result.as_expected:
        msg = (
            f"{id}: expected {one.expect!r}, got {result.verdict!r} {result.why}\n  {one.statement}\n"
            f"  {result.cases} cases, worst margin {result.worst:.3g} bounds, at {result.case}"
        )
        raise AssertionError(msg)
    return result
