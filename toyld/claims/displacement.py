"""What a direction common to all features does to preferred and untrained responses under DPO, seed by seed.

The tables are those of `toyld.contexts.experiments.common` (attr experiment "common"): whole runs in closed form with
the kernel S = S_local + c·11ᵀ. A unit is a seed, a world of its own; worlds of different c share their language and
texts, those of different negatives their model. A change is of a mean summed log-probability over DPO, read where the
margin m = Δ(ℓ₊ − ℓ₋) first reaches 10 and 20 nats, so that what is compared has learnt the same preference. A claim
speaks of every setting (language, local kernel, sizes, length of SFT) at hand at once; the one on on-policy answers
alone is tried condition by condition. What c adds to one step is exact: see `kernel.common-slope`,
`kernel.common-share`.
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

__all__ = ["MARGINS", "RUNGS", "chosen", "needs", "of"]
Floats = NDArray[np.float64]
Reading = Callable[[xr.Dataset, float], Floats]
MARGINS = (10.0, 20.0)
FOURFOLD = 4.0  # a common part four times as large as all of S_local, whose diagonal is .9
SHARE = 0.05
SOURCE = "the common component amplifies squeezing (K4, one seed); here with seeds, one thing changed at a time"
ON_POLICY = "K4, one seed (“about twice as much”)"
RUNGS = ("contexts",)


def chosen(ds: xr.Dataset, m: float) -> Floats:
    """Change of the chosen response where the margin first reaches m."""
    return at_margin(ds, m)


def _argmax(ds: xr.Dataset, m: float) -> Floats:
    return at_margin(ds, m, variable="argmax_logp")


def _gap(ds: xr.Dataset, m: float) -> Floats:
    return _argmax(ds, m) - chosen(ds, m)


def _test(ds: xr.Dataset, m: float) -> Floats:
    return at_margin(ds, m, "test_chosen")


def of(tables: Iterable[xr.Dataset], **attrs: object) -> list[xr.Dataset]:
    """The tables of the experiment with these attributes, in the order of c."""
    mine = [ds for ds in tables if ds.attrs.get("experiment") == "common"]
    mine = [ds for ds in mine if all(ds.attrs.get(name) == value for name, value in attrs.items())]
    return sorted(mine, key=lambda ds: ds.attrs.get("common", np.nan))


def _sweeps(tables: Sequence[xr.Dataset], **attrs: object) -> Iterator[list[xr.Dataset]]:
    """Tables that differ in c alone, by c, wherever there are two or more; full steps only."""
    mine = [ds for ds in of(tables, **attrs) if ds.attrs.get("halve") == 1]
    for key in dict.fromkeys(_key(ds) for ds in mine):
        one = [ds for ds in mine if _key(ds) == key]
        if len(one) > 1:
            yield one


def _key(ds: xr.Dataset) -> tuple[object, ...]:
    return tuple(ds.attrs.get(name) for name in ("setting", "design", "negatives", "arm", "sft_passes", "taught"))


def needs(find: Callable[[Sequence[xr.Dataset]], Iterable[object]], what: str) -> Callable[..., str | None]:
    """Premises: the tables have what `find` finds."""

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


_SWEEP = needs(lambda tables: _sweeps(tables, design="equal loss"), "runs over c from one SFT loss")


@run_claim(
    "displacement.common-amplifies",
    "From one SFT loss and at one margin, DPO lowers the chosen response more (or raises it less) with every increase "
    "of the component that all features have in common.",
    source=SOURCE,
    premises=_SWEEP,
    expect="holds",
    why="smallest step from one c to the next +0.56 [0.46, 0.68] nats over SFT to 1.5, 1 and half a nat a token; at "
    "1 nat and m = 20 against the model's own answers +3.2, +1.8, −5.0, −20.9 nats for c = 0, 1/4, 1, 4, "
    "against random words +3.1, +1.8, −2.4, −8.0. Larger worlds, another local kernel and another language "
    "agree (smallest step +0.49 [0.43, 0.58])",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def common_amplifies(*tables: xr.Dataset) -> Effect:
    """The smallest loss from one c to the next, over margins, negatives and settings."""
    return _amplified(tables, chosen)


@run_claim(
    "displacement.common-amplifies-untaught",
    "From one SFT loss and at one margin, DPO on several pairs lowers the response to a prompt that was never trained "
    "on more with every increase of the common component.",
    source=SOURCE,
    premises=_SWEEP,
    expect="holds",
    why="smallest step +0.68 [0.51, 0.96] nats with six pairs, over three lengths of SFT; at 1 nat a token and m = "
    "20 −0.6 ± 0.2 at c = 0 and −24.1 ± 2.1 at c = 4 (own answers). Larger worlds, another local kernel and "
    "another language agree (+0.51 [0.42, 0.68]). With a single pair the smallest step is not decided",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def common_amplifies_untaught(*tables: xr.Dataset) -> Effect:
    """The smallest loss from one c to the next."""
    return _amplified(tables, _test)


@run_claim(
    "displacement.common-widens-gap",
    "From one SFT loss and at one margin, DPO on several pairs widens the gap between the argmax along the chosen "
    "contexts and the chosen response more with every increase of the common component.",
    source=SOURCE,
    premises=_SWEEP,
    expect="holds",
    why="only just: smallest step +0.27 [0.14, 0.48] nats with six pairs, over three lengths of SFT (p = .00015; on "
    "32 further seeds +0.33 [0.20, 0.53], p = 7e-6); at 1 nat a token and m = 20 −0.9 at c = 0 and +23.7 at c = "
    "4 (own answers). Between c = 0 and 1/4 little is left after a long SFT (+0.09 ± 0.05 at half a nat and m = "
    "10, other seeds; not among the runs here) and in worlds of 12 pairs with an unshared local kernel (+0.08 "
    "[0.03, 0.15]); with a single pair it is not decided",
    takes="all",
    rungs=RUNGS,
    experiment="common",
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
    why="at 1 nat a token the argmax rises by 0.2 to 0.6 nats less at c = 1/4 than at 0, at half a nat by 1.1 less "
    "at c = 1 than at 0 (m = 10); at c = 4 and m = 20 it rises by 2.8 ± 0.3, at c = 0 by 2.3 ± 0.1. The "
    "confounded table compares different margins and losses after SFT",
    takes="all",
    instead="displacement.common-widens-gap",
    rungs=RUNGS,
    experiment="common",
)
def common_raises_argmax(*tables: xr.Dataset) -> Effect:
    """The smallest further rise from one c to the next."""
    return _amplified(tables, lambda ds, m: -_argmax(ds, m))


def _without(tables: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return of(tables, design="equal loss", common=0.0, halve=1)


@run_claim(
    "displacement.chosen-falls-without-common",
    "Without a common component, too, DPO lowers the chosen response.",
    source="K4, one seed: −1 nat at a margin of 20 against the model's own answers",
    premises=needs(_without, "runs at c = 0"),
    expect="refuted",
    why="it rises at every length of SFT: at m = 20 by 5.1 and 4.6 nats after SFT to 1.5 nats a token, 3.3 and 3.1 "
    "after 1, 0.9 ± 0.2 and 1.4 after half a nat (own answers, random words); so it does in larger worlds, with "
    "another local kernel and in another language",
    takes="all",
    instead="displacement.common-amplifies",
    rungs=RUNGS,
    experiment="common",
)
def chosen_falls_without_common(*tables: xr.Dataset) -> Effect:
    """The smallest fall of chosen at c = 0."""
    return ranked([-chosen(ds, m) for ds in _without(tables) for m in MARGINS])


def _without_but_shared(tables: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    return [ds for ds in _without(tables) if ds.attrs["local"] != "identity"]


@run_claim(
    "displacement.untaught-falls-without-common",
    "A common component is not necessary: where contexts share half of their features, by prompts and tokens alone, "
    "DPO on six pairs or more lowers the response to a prompt that was never trained on, after a short SFT and a long.",
    source="K4, one seed: −11.9 nats at c = 0",
    premises=needs(_without_but_shared, "runs at c = 0 with a local kernel that contexts share"),
    expect="open",
    why="smallest fall 0.12 [0.06, 0.19] nats (m = 10), at m = 20 against the model's own answers 0.6 ± 0.2, where "
    "at c = 4 it falls by 24: too small for a verdict among all trials of the rung (p = .001; on 32 further "
    "seeds 0.09, p = .0002; in larger worlds 0.14 [0.09, 0.18], p = .0001). It depends on the design: on other "
    "seeds nothing at all with a single pair (+0.02 ± 0.05 at m = 10), −0.2 with 6, −0.5 with 24; −0.8 to −1.4 "
    "where contexts share most of their features, exactly 0 where they share none",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def untaught_falls_without_common(*tables: xr.Dataset) -> Effect:
    """The smallest fall of the untaught response at c = 0."""
    return ranked([-_test(ds, m) for ds in _without_but_shared(tables) for m in MARGINS])


def _beside(own: xr.Dataset, random: xr.Dataset) -> str | None:
    """Premises: DPO from one policy against on-policy answers and against random words."""
    for ds, negatives in ((own, "model"), (random, "uniform")):
        if any(ds.attrs.get(k) != v for k, v in {"negatives": negatives, "halve": 1, "design": "equal loss"}.items()):
            return "no runs against on-policy answers and against random words"
    same = ("setting", "common", "taught")
    return None if all(own.attrs[k] == random.attrs[k] for k in same) else "no runs from one policy"


def _more(own: xr.Dataset, random: xr.Dataset) -> list[Floats]:
    """Change of chosen against random words minus that against on-policy answers, at each margin."""
    return [chosen(random, m) - chosen(own, m) for m in MARGINS]


def _negatives(tables: Sequence[xr.Dataset], least: float = 0.0) -> list[tuple[xr.Dataset, xr.Dataset]]:
    mine = [ds for ds in of(tables) if ds.attrs.get("common", 0.0) >= least]
    return [(own, random) for own in mine for random in mine if _beside(own, random) is None]


@run_claim(
    "displacement.on-policy-displaces-more",
    "At one margin, rejected responses that the model itself would give lower the chosen response more than random "
    "words do.",
    source=ON_POLICY + "; the opposite of: improbable negatives squeeze most",
    premises=_beside,
    expect="conditional",
    why="it depends on the common component and on the length of SFT. Smaller change than against random words at c "
    "= 0 after SFT to 1.5 and 1 nat a token (by 0.62 [0.52, 0.72] and 0.37 [0.28, 0.45] nats) and at c = 1/4 "
    "(0.36 [0.18, 0.52]; only just: on 32 further seeds 0.19, p = .05); undecided at c = 0 after half a nat and "
    "at c = 1 after 1.5 and 1 (−0.15 [−0.51, 0.28], +0.51 [0.14, 0.93]); larger at c = 1 after half a nat (2.2 "
    "[1.7, 2.7]) and at c = 4 after any (2.7 to 6.5). Larger worlds, another local kernel and another language "
    "agree; on other seeds, where contexts of a prompt share eight ninths of their features, it is larger at c "
    "= 0 too (+0.8 ± 0.2)",
    takes="control",
    rungs=RUNGS,
    experiment="common",
)
def on_policy_displaces_more(own: xr.Dataset, random: xr.Dataset) -> Effect:
    """Change of chosen against random words minus that against on-policy answers, at the margin where it is least."""
    return ranked(_more(own, random))


@run_claim(
    "displacement.on-policy-displaces-more-if-common",
    "At one margin, rejected responses that the model itself would give lower the chosen response more than random "
    "words do where the common component is four times the local kernel (c ≥ 4), after a short SFT and a long.",
    source=ON_POLICY,
    premises=needs(lambda tables: _negatives(tables, FOURFOLD), "runs against both negatives with c ≥ 4"),
    expect="holds",
    why="smallest difference 2.7 [1.8, 4.0] nats (after 1.5 nats a token, m = 10); after 1 nat, at m = 20, −20.9 "
    "against −8.0 nats. In larger worlds −26.4 against −11.3, in `facts` −26.4 against −9.0. With a single pair "
    "not decided (+0.6 ± 0.6 at m = 10, other seeds)",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def on_policy_displaces_more_if_common(*tables: xr.Dataset) -> Effect:
    """Change of chosen against random words minus that against on-policy answers, at its smallest."""
    return ranked([part for own, random in _negatives(tables, FOURFOLD) for part in _more(own, random)])


Pair = tuple[xr.Dataset, xr.Dataset]


def _longer(tables: Sequence[xr.Dataset]) -> list[tuple[Pair, Pair]]:
    """Both negatives after the shortest SFT, beside both after the longest, everything else equal."""
    found: dict[tuple[object, ...], list[Pair]] = {}
    for one in _negatives(tables):
        found.setdefault((one[0].attrs["setting"], one[0].attrs["common"]), []).append(one)
    ordered = [sorted(same, key=lambda pair: -pair[0].attrs["taught"]) for same in found.values() if len(same) > 1]
    return [(same[0], same[-1]) for same in ordered]


@run_claim(
    "displacement.on-policy-displaces-more-the-longer-sft",
    "At one margin, rejected responses that the model itself would give lower the chosen response more beside random "
    "words after a long SFT (to half a nat a token) than after a short one (1.5), with and without a common component.",
    source=ON_POLICY + "; here with SFT of several lengths",
    premises=needs(_longer, "runs against both negatives after SFT of several lengths"),
    expect="holds",
    why="smallest difference 0.66 [0.57, 0.78] nats (c = 0, m = 10), at c = 4 and m = 20 about 7 (p = 3e-5; on 32 "
    "further seeds 7e-5, only just enough for a verdict among all trials of the rung)",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def on_policy_displaces_more_the_longer_sft(*tables: xr.Dataset) -> Effect:
    """What on-policy answers displace beyond random words, after longer minus after shorter SFT, at its smallest."""
    return ranked(
        [
            after - before
            for shorter, longer in _longer(tables)
            for before, after in zip(_more(*shorter), _more(*longer), strict=True)
        ]
    )


def _halved(tables: Sequence[xr.Dataset]) -> Iterator[tuple[xr.Dataset, xr.Dataset, xr.Dataset, xr.Dataset]]:
    """At full and at half rates: the run at the smallest c and that at the largest which both have."""
    for full in _sweeps(tables, design="equal loss"):
        same = {name: full[0].attrs.get(name) for name in ("setting", "negatives", "taught")}
        half = of(tables, design="equal loss", halve=2, **same)
        by_c = {ds.attrs["common"]: ds for ds in full}
        both = [(by_c[ds.attrs["common"]], ds) for ds in half if ds.attrs["common"] in by_c]
        if len(both) > 1:
            yield (*both[0], *both[-1])


@run_claim(
    "displacement.not-the-step-size",
    "The fall of chosen that the common component causes is no artefact of the step: at half the rates of SFT and DPO "
    "and twice the updates it differs by less than 5 %.",
    source="K4 (“not a step-size artefact”)",
    premises=needs(_halved, "runs at full and at half rates"),
    expect="holds",
    why="only just: the margin to 5 % is 0.39 [0.20, 0.65] nats (p = .0003; the model's own answers differ in two "
    "seeds; on 32 further seeds 0.38 [0.32, 0.47], p = 4e-13). −20.92 and −20.84 nats at c = 4 and m = 20; in "
    "larger worlds −26.37 and −26.55",
    takes="all",
    rungs=RUNGS,
    experiment="common",
)
def not_the_step_size(*tables: xr.Dataset) -> Effect:
    """5 % of the fall less what halving changes of it, either way."""
    parts = []
    for less, less_half, more, more_half in _halved(tables):
        for m in MARGINS:
            fall = chosen(less, m) - chosen(more, m)
            moved = chosen(less_half, m) - chosen(more_half, m) - fall
            parts += [SHARE * fall - moved, SHARE * fall + moved]
    return ranked(parts)
