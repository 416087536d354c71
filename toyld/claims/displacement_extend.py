"""Where SFT on both responses (extend) helps and where it harms the preferred one: the common component, seed by seed.

The tables are those of the design `equal updates` of `toyld.contexts.experiments.common`: extended beside plain SFT of
75 updates, each of which pushes every chosen response in full, and a DPO of 80 updates that takes both to margins of 30
to 45 nats. See `toyld.claims.displacement` for units, margins and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.displacement import MARGINS, RUNGS, chosen, needs, of
from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim

__all__: list[str] = []
Floats = NDArray[np.float64]
LARGE = 1.0  # a common part larger than all of S_local, whose diagonal is .9
RANGE = "extend has a range (K5, one seed); here with seeds"


def _pairs(
    tables: Sequence[xr.Dataset], first: dict[str, object], second: dict[str, object], *same: str
) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """Tables with the first attributes, each beside the one with the second and the same other attributes."""
    for ds in of(tables, **first):
        shared = {name: ds.attrs.get(name) for name in ("setting", "halve", "common", *same)}
        yield from ((ds, other) for other in of(tables, **shared, **second))


def _extended(
    tables: Sequence[xr.Dataset], keep: Callable[[float], bool] = lambda c: True
) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Extended SFT beside plain SFT with the same number of full pushes on every chosen response."""
    equal = {"design": "equal updates"}
    found = _pairs(tables, {"arm": "extend", **equal}, {"arm": "baseline", **equal}, "negatives", "sft_passes")
    return [(run, control) for run, control in found if keep(run.attrs["common"])]


@run_claim(
    "displacement.extend-spares-at-margin",
    "At one margin, DPO lowers the chosen response less (or raises it more) after extended than after plain SFT of 75 "
    "updates, with and without a common component.",
    source=RANGE,
    premises=needs(_extended, "runs after extended beside plain SFT"),
    expect="open",
    why="+1.2 and +1.5 nats at m = 10 and 20 for c = 0; for c = 1 +1.3 ± 0.1 at m = 10, +0.8 ± 0.4 at m = 20 (p = "
    ".0007; on 32 further seeds 1.1 [0.7, 1.2], p = 2e-5): on the edge of a verdict among all trials of the "
    "rung. It depends on the length of SFT: on other seeds, at c = 1 and m = 20, +1.4 ± 0.5 after 40 updates, "
    "−1.2 ± 0.6 after 150. In larger worlds it holds after 75 updates at both margins for every c up to 4 "
    "(+0.75 [0.73, 0.78] or more)",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def extend_spares_at_margin(*tables: xr.Dataset) -> Effect:
    """Change of chosen after extended minus after plain SFT, at its smallest."""
    return ranked([chosen(run, m) - chosen(control, m) for run, control in _extended(tables) for m in MARGINS])


def _higher(pair: tuple[xr.Dataset, xr.Dataset], share: float = 1.0) -> Floats:
    """Level of chosen after extended minus after plain SFT, after this share of the updates of DPO."""
    step = pair[0].step.values
    k = int(np.abs(step - share * step[-1]).argmin())
    levels = [ds.logp.sel(probe="chosen").mean("example").transpose("seed", "step").values[:, k] for ds in pair]
    return np.asarray(levels[0] - levels[1], float)


def _no_common(tables: Sequence[xr.Dataset]) -> list[tuple[xr.Dataset, xr.Dataset]]:
    return _extended(tables, lambda c: c == 0.0)


def _large(tables: Sequence[xr.Dataset]) -> list[tuple[xr.Dataset, xr.Dataset]]:
    found = _extended(tables, lambda c: c >= LARGE)
    return [pair for pair in found if pair[0].attrs.get("language") == "markov"]


@run_claim(
    "displacement.extend-helps-without-common",
    "Without a common component chosen stays higher after extended than after plain SFT, after 75 updates of SFT and a "
    "long DPO.",
    source=RANGE,
    premises=needs(_no_common, "runs after extended beside plain SFT at c = 0"),
    expect="holds",
    why="+0.69 [0.64, 0.74] nats after 80 updates of DPO; after 40 and 150 updates of SFT +0.69 ± 0.04 and +0.41 ± "
    "0.07 (other seeds); in larger worlds, with other kernels and languages, +0.3 to +0.7",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def extend_helps_without_common(*tables: xr.Dataset) -> Effect:
    """Level after extended minus after plain SFT, at its smallest."""
    return ranked([_higher(pair) for pair in _no_common(tables)])


@run_claim(
    "displacement.extend-help-fades-with-common",
    "In Markov chains with a large common component (c ≥ 1) the lead in chosen that extended SFT of 75 updates gives "
    "is smaller after a long DPO than after a sixth of its updates.",
    source=RANGE,
    premises=needs(_large, "runs after extended beside plain SFT with c ≥ 1"),
    expect="holds",
    why="+0.4 ± 0.7 after a sixth, −2.4 ± 1.3 after all (c = 1): smaller by 2.8 [2.0, 3.6] nats; after 40 and 150 "
    "updates of SFT by 2.1 ± 0.8 and 5.2 ± 1.5 (other seeds). In larger worlds and with another local kernel by "
    "4.0 [2.3, 5.9] or more; in `facts`, at c = 4, undecided",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def extend_help_fades_with_common(*tables: xr.Dataset) -> Effect:
    """Lead after a sixth of the updates minus lead after all, at its smallest."""
    return ranked([_higher(pair, 1 / 6) - _higher(pair) for pair in _large(tables)])


def _large_hot(tables: Sequence[xr.Dataset]) -> list[tuple[xr.Dataset, xr.Dataset]]:
    return [pair for pair in _large(tables) if pair[0].attrs["negatives"] == "hot"]


@run_claim(
    "displacement.extend-hurts-with-common",
    "In Markov chains with a large common component (c ≥ 1) and improbable rejected responses (the untrained model's "
    "at temperature 2) chosen ends lower after extended than after plain SFT, after 75 updates of SFT, which leave .7 "
    "nats a token, and a long DPO.",
    source=RANGE + " (−70 against −62 nats at c = 2.25)",
    premises=needs(_large_hot, "runs after extended beside plain SFT with c ≥ 1, rejected at temperature 2"),
    expect="open",
    why="−2.4 [−3.6, −1.1] nats at c = 1: too little for a verdict among all trials of the rung (p = .0006; on 32 "
    "further seeds −2.6 [−4.1, −1.1], p = .0015). It depends on the length of SFT: −1.2 ± 1.2 after 40 updates, "
    "−4.7 ± 2.0 after 150 (other seeds). In larger worlds −3.2 ± 1.2, −4.0 ± 1.6, −4.2 ± 1.8 for c = 1, 2, 4 (p "
    "= 3e-5; the sign changes at c = 0.34 [0.28, 0.42] after 80 updates of DPO, at 1.0 [0.8, 1.8] after 27); "
    "undecided there with an unshared local kernel, in `facts`, and against answers at temperature 1",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def extend_hurts_with_common(*tables: xr.Dataset) -> Effect:
    """Level after plain minus after extended SFT, at its smallest."""
    return ranked([-_higher(pair) for pair in _large_hot(tables)])
