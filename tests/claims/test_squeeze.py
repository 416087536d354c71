"""What the generated tests of `squeeze.*` do not see: planted bugs in the functions that the claims are about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toyld import softmax as sm
from toyld.claims import squeeze
from toyld.claims.base import evaluate

LOG_ALPHA = sm.log_alpha


def inverted(z: Any, y: Any, *, s: Any) -> Any:
    return np.exp(np.minimum(-LOG_ALPHA(z, y, s=s), 600.0))


def flipped(z: Any, y: Any, *, s: Any) -> Any:
    return LOG_ALPHA(z, y, s=s) <= 0.0


def clearly(z: Any, y: Any, *, s: Any) -> Any:
    """A winner only above rounding errors that are far too wide."""
    return LOG_ALPHA(z, y, s=s) > 1e-9


def generous(z: Any, y: Any, *, s: Any) -> Any:
    """Every gain a thousandth too large: the bound 1/(V − 1) still holds, equality for tied classes does not."""
    change = LOG_ALPHA(z, y, s=s)
    return np.where(change > 0.0, 1.001 * change, change)


@pytest.mark.parametrize(
    ("name", "wrong", "claim"),
    [
        ("alpha", inverted, "threshold_law"),
        ("winners", flipped, "threshold_law"),
        ("winners", clearly, "threshold_law"),
        ("log_alpha", generous, "runner_up_share"),
    ],
)
def test_planted_bug_is_seen(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, claim: str) -> None:
    monkeypatch.setattr(sm, name, wrong)
    assert evaluate(getattr(squeeze, claim), examples=500).verdict == "refuted"
