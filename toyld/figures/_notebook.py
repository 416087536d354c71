"""The setting of the authors' notebook `squeeze_effect.ipynb` (App. E): logistic regression, K = ‖x‖² I.

One draw of numpy's legacy generator with seed 10086 makes everything, in this order: the features x (4), the weights
of panel A (4 × 50, standard normal), those of panel B (1 + normal/20), and a third normal matrix. Panels C and D start
from that one after a positive step of rate 1 towards the *sum* of the labels 5 … 12, i.e. with residual π − Σ e_y. The
large panel draws on: 50 features, weights normal/2, V = 1,000. So ‖x‖² = 10.397 and 56.208. Two versions of the
notebook are public; they differ in panel D alone, which in the later one pulls label 25 up while it pushes 42 down.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from toyld import softmax as sm

__all__ = ["PANELS", "SEED", "Panel", "panels"]

SEED = 10086


class Panel(NamedTuple):
    """Start z (V,), residual G (V,), label y, step s = rate·‖x‖², of one panel."""

    name: str
    z: Any
    residual: Any
    label: int
    s: float
    partner: int = -1  # the label that is pulled up at the same time; -1 for none


PANELS = ("A", "B", "C", "D", "D pair", "E")


def panels() -> list[Panel]:
    """A positive step; B negative on flat; C on 3 % of a peaked start; D in a valley; D with its pair; E large V."""
    normal = np.random.RandomState(SEED).randn  # legacy: the published numbers come from it
    x = normal(4, 1)[:, 0]
    sharp, flat, third = normal(4, 50), 1.0 + 0.05 * normal(4, 50), normal(4, 50)
    taught = np.isin(np.arange(50), np.arange(5, 13))
    z = x @ third
    z_peaked = sm.step(z, sm.softmax(z) - taught, s=x @ x)
    z_sharp, z_flat, norm2 = x @ sharp, x @ flat, float(x @ x)
    x_large = normal(50, 1)[:, 0]
    z_large = x_large @ (0.5 * normal(50, 1000))
    return [
        Panel("A", z_sharp, sm.residual(z_sharp, 21), 21, 0.5 * norm2),
        Panel("B", z_flat, sm.residual(z_flat, 42, c=-1.0), 42, 0.3 * norm2),
        Panel("C", z_peaked, sm.residual(z_peaked, 11, c=-1.0), 11, 0.5 * norm2),
        Panel("D", z_peaked, sm.residual(z_peaked, 42, c=-1.0), 42, 0.5 * norm2),
        Panel("D pair", z_peaked, sm.pair_residual(z_peaked, 25, 42), 42, 0.5 * norm2, 25),
        Panel("E", z_large, sm.residual(z_large, 100, c=-1.0), 100, float(x_large @ x_large)),
    ]
