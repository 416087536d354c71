"""What a direction common to all features does to preferred, untrained and extended responses under DPO, seed by seed.

The tables are those of `toyld.contexts.experiments.common` (attr experiment "common"): whole runs in closed form with
the kernel S = S_local + c·11ᵀ. A unit is a seed, a world of its own; worlds of different c share their language and
texts, those of different negatives their model. A change is of a mean summed log-probability over DPO, read where the
margin m = Δ(ℓ₊ − ℓ₋) first reaches 10 and 20 nats, so that what is compared has learnt the same preference. A claim
speaks of every setting (language, local kernel, sizes) at hand at once. What c adds to one step is exact: see
`kernel.common-slope` and `kernel.common-share`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.claims.effects import Effect, ranked
from toyld.claims.runs import run_claim
from toyld.trajectory.matched import at_margin

__all__: list[str] = []
Floats = NDArray[np.float64]
Reading = Callable[[xr.Dataset, float], Floats]
MARGINS = (10.0, 20.0)
LARGE = 1.0  # a common part larger than all of S_local, whose diagonal is .9
SHARE = 0.05
SOURCE = "the common component amplifies squeezing (K4, one seed); here with seeds, one thing changed at a time"
RANGE = "extend has a range (K5, one seed); here with seeds"
RUNGS = ("contexts",)


def _chosen(ds: xr.Dataset, m: float) -> Floats:
    return at_margin(ds, m)


def _argmax(ds: xr.Dataset, m: float) -> Floats:
    return at_margin(ds, m, variable="argmax_logp")


def _gap(ds: xr.Dataset, m: float) -> Floats:
    return _argmax(ds, m) - _chosen(ds, m)


def _test(ds: xr.Dataset, m: float) -> Floats:
    return at_margin(ds, m, "test_chosen")


def _of(tables: Iterable[xr.Dataset], **attrs: object) -> list[xr.Dataset]:
    """The tables of the experiment with these attributes, in the order of c."""
    mine = [ds for ds in tables if ds.attrs.get("experiment") == "common"]
    mine = [ds for ds in mine if all(ds.attrs.get(name) == value for name, value in attrs.items())]
    return sorted(mine, key=lambda ds: ds.attrs.get("common", np.nan))


def _sweeps(tables: Sequence[xr.Dataset], **attrs: object) -> Iterator[list[xr.Dataset]]:
    """Tables that differ in c alone, by c, wherever there are two or more; full steps only."""
    mine = [ds for ds in _of(tables, **attrs) if ds.attrs.get("halve") == 1]
    for key in dict.fromkeys(_key(ds) for ds in mine):
        one = [ds for ds in mine if _key(ds) == key]
        if len(one) > 1:
            yield one


def _key(ds: xr.Dataset) -> tuple[object, ...]:
    return tuple(ds.attrs.get(name) for name in ("setting", "design", "negatives", "arm", "sft_passes"))


def _pairs(
    tables: Sequence[xr.Dataset], first: dict[str, object], second: dict[str, object], *same: str
) -> Iterator[tuple[xr.Dataset, xr.Dataset]]:
    """Tables with the first attributes, each beside the one with the second and the same other attributes."""
    for ds in _of(tables, **first):
        shared = {name: ds.attrs.get(name) for name in ("setting", "halve", "common", *same)}
        yield from ((ds, other) for other in _of(tables, **shared, **second))


def _needs(find: Callable[[Sequence[xr.Dataset]], Iterable[object]], what: str) -> Callable[..., str | None]:
    def reason(*tables: xr.Dataset) -> str | None:
        return None if any(True for _ in find(tables)) else f"no {what} among the tables"

    return reason


def _amplified(tables: Sequence[xr.Dataset], reading: Reading) -> Effect:
    """Reading at the smaller c minus reading at the next larger one, everywhere."""
    return ranked(
        [
            reading(less, m) - reading(more, m)
            for sweep in _sweeps(tables, design="equal loss")
            for less, more in pairwise(sweep)
            for m in MARGINS
        ]
    )


_SWEEP = _needs(lambda tables: _sweeps(tables, design="equal loss"), "runs over c from one SFT loss")


@run_claim(
    "displacement.common-amplifies",
    "From one SFT loss and at one margin, DPO lowers the chosen response more (or raises it less) with every increase "
    "of the component that all features have in common.",
    source=SOURCE,
    premises=_SWEEP,
    expect="holds",
    why="smallest step from one c to the next +0.54 [0.46, 0.66] nats; at m = 20 against the model's own answers +3.1, "
    "+1.4, −6.1, −18.6 nats for c = 0, 1/4, 1, 4, against random words +3.1, +1.8, −2.0, −7.2. Larger worlds, "
    "another local kernel and another language agree (smallest step +0.49 [0.44, 0.56])",
    takes="all",
    rungs=RUNGS,
)
def common_amplifies(*tables: xr.Dataset) -> Effect:
    """The smallest loss from one c to the next, over margins, negatives and settings."""
    return _amplified(tables, _chosen)


@run_claim(
    "displacement.common-amplifies-untaught",
    "From one SFT loss and at one margin, DPO lowers the response to a prompt that was never trained on more with "
    "every increase of the common component.",
    source=SOURCE,
    premises=_SWEEP,
    expect="holds",
    why="smallest step +0.52 [0.31, 0.83] nats; at m = 20 −0.6 ± 0.2 at c = 0 and −20.1 ± 2.5 at c = 4 (own answers). "
    "Larger worlds, another local kernel and another language agree",
    takes="all",
    rungs=RUNGS,
)
def common_amplifies_untaught(*tables: xr.Dataset) -> Effect:
    """The smallest loss from one c to the next."""
    return _amplified(tables, _test)


@run_claim(
    "displacement.common-widens-gap",
    "From one SFT loss and at one margin, DPO widens the gap between the argmax along the chosen contexts and the "
    "chosen response more with every increase of the common component.",
    source=SOURCE,
    premises=_SWEEP,
    expect="holds",
    why="smallest step +0.37 [0.23, 0.53] nats; at m = 20 −0.7 at c = 0 and +21.0 at c = 4 (own answers). Larger "
    "worlds, another local kernel and another language agree",
    takes="all",
    rungs=RUNGS,
)
def common_widens_gap(*tables: xr.Dataset) -> Effect:
    """The smallest widening from one c to the next."""
    return _amplified(tables, lambda ds, m: -_gap(ds, m))


@run_claim(
    "displacement.common-raises-argmax",
    "From one SFT loss and at one margin, the argmax along the chosen contexts rises more with every increase of the "
    "common component.",
    source=SOURCE + "; the confounded table has Δargmax growing with its share",
    premises=_SWEEP,
    expect="refuted",
    why="from c = 0 to 1/4 the argmax rises by 0.2 to 0.6 nats less; at c = 4 it rises by 2.4 ± 0.4 at m = 20, as at c "
    "= 0. The confounded table compares different margins and losses after SFT",
    takes="all",
    instead="displacement.common-widens-gap",
    rungs=RUNGS,
)
def common_raises_argmax(*tables: xr.Dataset) -> Effect:
    """The smallest further rise from one c to the next."""
    return _amplified(tables, lambda ds, m: -_argmax(ds, m))


def _without(tables: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return _of(tables, design="equal loss", common=0.0, halve=1)


@run_claim(
    "displacement.chosen-falls-without-common",
    "Without a common component, too, DPO lowers the chosen response.",
    source="K4, one seed: −1 nat at a margin of 20 against the model's own answers",
    premises=_needs(_without, "runs at c = 0"),
    expect="refuted",
    why="it rises: by 2.3 and 1.9 nats at m = 10, by 3.1 at m = 20; so it does in larger worlds, with another local "
    "kernel and in another language",
    takes="all",
    instead="displacement.common-amplifies",
    rungs=RUNGS,
)
def chosen_falls_without_common(*tables: xr.Dataset) -> Effect:
    """The smallest fall of chosen at c = 0."""
    return ranked([-_chosen(ds, m) for ds in _without(tables) for m in MARGINS])


def _without_but_shared(tables: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return [ds for ds in _without(tables) if ds.attrs["local"] != "identity"]


@run_claim(
    "displacement.untaught-falls-without-common",
    "A common component is not necessary: where contexts share prompts and tokens alone, DPO lowers the response to a "
    "prompt that was never trained on.",
    source="K4, one seed: −11.9 nats at c = 0",
    premises=_needs(_without_but_shared, "runs at c = 0 with a local kernel that contexts share"),
    expect="open",
    why="it falls by 0.15 [0.07, 0.25] nats at m = 10 against random words and by 0.6 ± 0.2 at m = 20 against the "
    "model's own answers, where at c = 4 it falls by 20: too small a fall for a verdict among all "
    "trials of the rung (p = .0007); in larger worlds 0.13 to 0.8 (p = .0001)",
    takes="all",
    rungs=RUNGS,
)
def untaught_falls_without_common(*tables: xr.Dataset) -> Effect:
    """The smallest fall of the untaught response at c = 0."""
    return ranked([-_test(ds, m) for ds in _without_but_shared(tables) for m in MARGINS])


def _negatives(tables: Sequence[xr.Dataset], least: float = 0.0) -> list[tuple[xr.Dataset, xr.Dataset]]:
    found = _pairs(tables, {"negatives": "model", "halve": 1}, {"negatives": "uniform"}, "design")
    return [(own, random) for own, random in found if own.attrs["common"] >= least]


@run_claim(
    "displacement.on-policy-displaces-more",
    "At one margin, rejected responses that the model itself would give lower the chosen response more than random "
    "words do, whatever the common component.",
    source="K4, one seed (“about twice as much”); the opposite of: improbable negatives squeeze most",
    premises=_needs(_negatives, "runs against on-policy beside random negatives"),
    expect="refuted",
    why="at c = 0 chosen rises by 0.39 [0.29, 0.46] nats more against the model's own answers (m = 10), at "
    "c = 1/4 by 0.25",
    takes="all",
    instead="displacement.on-policy-displaces-more-if-common",
    rungs=RUNGS,
)
def on_policy_displaces_more(*tables: xr.Dataset) -> Effect:
    """Change of chosen against random words minus that against on-policy answers, at its smallest."""
    return ranked([_chosen(random, m) - _chosen(own, m) for own, random in _negatives(tables) for m in MARGINS])


@run_claim(
    "displacement.on-policy-displaces-more-if-common",
    "At one margin, rejected responses that the model itself would give lower the chosen response more than random "
    "words do where the common component is larger than the local kernel (c ≥ 1).",
    source="K4, one seed (“about twice as much”)",
    premises=_needs(lambda tables: _negatives(tables, LARGE), "runs against both negatives with c ≥ 1"),
    expect="holds",
    why="smallest difference 1.1 [0.7, 1.6] nats (c = 1, m = 10); at c = 4 and m = 20 −18.6 against −7.2 nats. In "
    "larger worlds −24.1 against −11.9, in `facts` −26.4 against −9.0",
    takes="all",
    rungs=RUNGS,
)
def on_policy_displaces_more_if_common(*tables: xr.Dataset) -> Effect:
    """Change of chosen against random words minus that against on-policy answers, at its smallest."""
    return ranked([_chosen(random, m) - _chosen(own, m) for own, random in _negatives(tables, LARGE) for m in MARGINS])


def _halved(tables: Sequence[xr.Dataset]) -> Iterator[tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset]]:
    """At full and at half rates: the run at the smallest c and that at the largest which both have."""
    for full in _sweeps(tables, design="equal loss"):
        setting, negatives = full[0].attrs["setting"], full[0].attrs["negatives"]
        half = _of(tables, design="equal loss", negatives=negatives, setting=setting, halve=2)
        by_c = {ds.attrs["common"]: ds for ds in full}
        both = [(by_c[ds.attrs["common"]], ds) for ds in half if ds.attrs["common"] in by_c]
        if len(both) > 1:
            yield (*both[0], *both[-1])


@run_claim(
    "displacement.not-the-step-size",
    "The fall of chosen that the common component causes is no artefact of the step: at half the rates of SFT and DPO "
    "and twice the updates it differs by less than 5 %.",
    source="K4 (“not a step-size artefact”)",
    premises=_needs(_halved, "runs at full and at half rates"),
    expect="holds",
    why="it differs by less than 1 %: −18.59 and −18.50 nats at c = 4 and m = 20",
    takes="all",
    rungs=RUNGS,
)
def not_the_step_size(*tables: xr.Dataset) -> Effect:
    """5 % of the fall less what halving changes of it, either way."""
    parts = []
    for less, less_half, more, more_half in _halved(tables):
        for m in MARGINS:
            fall = _chosen(less, m) - _chosen(more, m)
            moved = _chosen(less_half, m) - _chosen(more_half, m) - fall
            parts += [SHARE * fall - moved, SHARE * fall + moved]
    return ranked(parts)


def _extended(
    tables: Sequence[xr.Dataset], keep: Callable[[float], bool] = lambda c: True
) -> list[tuple[xr.Dataset, xr.Dataset]]:
    """Extended SFT beside plain SFT with the same number of full pushes on every chosen response."""
    equal = {"design": "equal updates"}
    found = _pairs(tables, {"arm": "extend", **equal}, {"arm": "baseline", **equal}, "negatives", "sft_passes")
    return [(run, control) for run, control in found if keep(run.attrs["common"])]


@run_claim(
    "displacement.extend-spares-at-margin",
    "At one margin, DPO lowers the chosen response less (or raises it more) after extended than after plain SFT, with "
    "and without a common component.",
    source=RANGE,
    premises=_needs(_extended, "runs after extended beside plain SFT"),
    expect="open",
    why="+1.2 to +1.5 nats at m = 10 and +1.5 to +1.7 at m = 20 for c ≤ 1/4; for c = 1 +1.4 ± 0.1 at m = 10, but "
    "+0.7 ± 0.6 at m = 20 (p = .02), too little for a verdict among all trials of the rung. In larger worlds it holds "
    "at both margins for every c up to 4 (+0.8 nats or more)",
    takes="all",
    rungs=RUNGS,
)
def extend_spares_at_margin(*tables: xr.Dataset) -> Effect:
    """Change of chosen after extended minus after plain SFT, at its smallest."""
    return ranked([_chosen(run, m) - _chosen(control, m) for run, control in _extended(tables) for m in MARGINS])


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
    "Without a common component chosen stays higher after extended than after plain SFT, after equally many updates of "
    "SFT and a long DPO.",
    source=RANGE,
    premises=_needs(_no_common, "runs after extended beside plain SFT at c = 0"),
    expect="holds",
    why="+0.72 [0.64, 0.80] nats after 80 updates; in larger worlds, with other kernels and languages, +0.3 to +0.7",
    takes="all",
    rungs=RUNGS,
)
def extend_helps_without_common(*tables: xr.Dataset) -> Effect:
    """Level after extended minus after plain SFT, at its smallest."""
    return ranked([_higher(pair) for pair in _no_common(tables)])


@run_claim(
    "displacement.extend-help-fades-with-common",
    "In Markov chains with a large common component (c ≥ 1) the lead in chosen that extended SFT gives is smaller "
    "after a long DPO than after a sixth of its updates.",
    source=RANGE,
    premises=_needs(_large, "runs after extended beside plain SFT with c ≥ 1"),
    expect="holds",
    why="+0.4 ± 0.8 after a sixth, −3.8 ± 1.7 after all (c = 1): smaller by 4.2 [2.9, 5.4] nats. In larger worlds and "
    "with another local kernel by 3.7 [2.6, 5.4] or more; in `facts`, at c = 4, undecided",
    takes="all",
    rungs=RUNGS,
)
def extend_help_fades_with_common(*tables: xr.Dataset) -> Effect:
    """Lead after a sixth of the updates minus lead after all, at its smallest."""
    return ranked([_higher(pair, 1 / 6) - _higher(pair) for pair in _large(tables)])


def _large_hot(tables: Sequence[xr.Dataset]) -> list[tuple[xr.Dataset, xr.Dataset]]:
    return [pair for pair in _large(tables) if pair[0].attrs["negatives"] == "hot"]


@run_claim(
    "displacement.extend-hurts-with-common",
    "In Markov chains with a large common component (c ≥ 1) and improbable rejected responses (the untrained model's "
    "at temperature 2) chosen ends lower after extended than after plain SFT, after equally many updates of SFT and a "
    "long DPO.",
    source=RANGE + " (−70 against −62 nats at c = 2.25)",
    premises=_needs(_large_hot, "runs after extended beside plain SFT with c ≥ 1, rejected at temperature 2"),
    expect="holds",
    why="−3.8 [−5.5, −2.1] nats at c = 1; the sign changes at c = 0.13 [0.09, 0.19] after 80 updates, at 0.52 [0.40, "
    "0.78] after 27. In larger worlds −2.6 ± 1.3, −4.2 ± 1.9, −4.8 ± 2.4 for c = 1, 2, 4 (sign change at 0.38 "
    "[0.29, 0.57]); undecided there with an unshared local kernel, in `facts`, and against answers at temperature 1",
    takes="all",
    rungs=RUNGS,
)
def extend_hurts_with_common(*tables: xr.Dataset) -> Effect:
    """Level after plain minus after extended SFT, at its smallest."""
    return ranked([-_higher(pair) for pair in _large_hot(tables)])
