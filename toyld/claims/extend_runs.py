"""What SFT and pairs do to the DPO after them, beside fair controls: extended SFT (D7), negatives of the model's own.

Extended SFT teaches chosen and rejected answers alike, so that one pass over the chosen ones takes it twice the updates
of plain SFT. Fewer passes teach less, and what was taught less is squeezed less, whatever else was taught: what extend
does of itself shows only beside a control. Two are fair, each in its way: plain SFT of as many *updates* (twice the
passes over the chosen answers) and of as many *passes* over them (half the updates). Tables say how long SFT was by
attrs `sft_updates` and `sft_passes`. Where all rows are in every update, as in transformers (rung tiny), as many passes
means equal weight on the chosen answers, rate times weight summed over updates; it is not equal learning: there chosen
stands at −7.5 and −7.4 nats after extend and after plain SFT with RMSprop, at −7.4 and −6.6 under plain descent. Runs
that learn the preference at another pace are compared at equal margin, too. In runs of real language models (rung llm)
the negatives of the control are those of the data, and no probe holds the sampled ones: they are compared after as many
updates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.margins import alike, changes_at, reach
from toyld.claims.runs import run_claim
from toyld.claims.tables import ARGMAX, MODELS, STAGES, WORLDS, beside, needs, needs_pair, observed
from toyld.claims.tools import PAPER

__all__ = ["MARGIN", "fair", "others"]

MARGIN = 10.0  # nats: at β = .1 the chosen answer is preferred with probability σ(1) = .73 beyond the reference
D7 = f"{PAPER}, §4.3, Fig. 5 (D7), with a control"
B3 = f"{PAPER}, App. A.3 (B3: negatives that the model would say are safe)"


def others(ds: xr.Dataset, control: xr.Dataset, /) -> list[str]:
    """The responses other than the two of the pair that both runs measured; fresh samples are other texts in each."""
    apart = ("chosen", "rejected", "sampled")
    return [p for p in observed(ds) if p in observed(control) and p not in apart]


def fair(ds: xr.Dataset, control: xr.Dataset, clocks: Iterable[str], /) -> str | None:
    """None where the SFT before both was equally long by one of the clocks (`updates`, `passes`), else the reason."""
    known = {clock: [x.attrs.get(f"sft_{clock}") for x in (ds, control)] for clock in clocks}
    known = {clock: both for clock, both in known.items() if None not in both}
    if not known:
        return "how long SFT lasted before is not recorded (attrs sft_updates, sft_passes)"
    if any(a == b and a for a, b in known.values()):
        return None
    said = " or ".join(f"{a:g} and {b:g} {clock}" for clock, (a, b) in known.items())
    return f"the SFT before was not equally long: {said}"


def _on(arm: str, clock: str, source: str, *rungs: str) -> dict[str, Any]:
    """Where a claim is tried: DPO in this arm beside DPO after plain SFT on the given pairs, SFT equal by a clock."""
    run, control = (needs("dpo", "chosen", "rejected", argmax=True, arm=name) for name in (arm, "baseline"))
    premises = needs_pair(run, control, lambda ds, other: fair(ds, other, [clock]))
    return {
        "premises": premises, "source": source, "takes": "control", "rungs": rungs, "experiment": STAGES,
    }  # fmt: skip


UPDATES, PASSES = _on("extend", "updates", D7, *MODELS), _on("extend", "passes", D7, *MODELS)
AT_MARGIN = {**PASSES, "premises": reach(MARGIN, PASSES["premises"])}
OWN, SAMPLED = _on("on-policy", "updates", B3, *WORLDS), _on("on-policy", "updates", B3, "llm")
Check = Callable[[xr.Dataset, xr.Dataset], Effect]


def _spared(ds: xr.Dataset, control: xr.Dataset, names: Iterable[str], *, last: int = -1) -> Effect:
    """By how much less the run lowers that of these which gains least, from the first common evaluation."""
    pairs = beside(ds, control, [(name, name) for name in names])
    return ranked([a.between(0, last) - b.between(0, last) for a, b in pairs])


def _spared_at_margin(ds: xr.Dataset, control: xr.Dataset, names: Iterable[str]) -> Effect:
    """The same, each read where it has come to the margin; seeds that never do are left out."""
    return ranked([_apart_at_margin(ds, control, name) for name in names])


def _apart_at_margin(ds: xr.Dataset, control: xr.Dataset, name: str) -> Any:
    """Change of the run minus that of its control, by unit, each where it has come to the margin."""
    mine, theirs = (changes_at(x, MARGIN, name) for x in alike(ds, control))
    return mine - theirs  # type: ignore[operator]


def _slowed(ds: xr.Dataset, control: xr.Dataset, *, last: int = -1) -> Effect:
    """By how much less the argmax rises."""
    ((a, b),) = beside(ds, control, [(ARGMAX, ARGMAX)])
    return ranked([b.between(0, last) - a.between(0, last)])


@run_claim(
    "preference.extend-slows-others-at-equal-updates",
    "After extended SFT of as many updates as plain SFT, DPO lowers the responses other than chosen and rejected less.",
    **UPDATES,
    expect="holds",
    why="by .4 to 3.1 nats, the most with a large common part of the kernel",
    elsewhere={
        "tiny": (
            "open",
            "under plain descent by 2.6 nats for the one that gains least (p = 3e-4); with RMSprop nothing, −.4 ± 1.4",
        )
    },
)
def slows_others_at_equal_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """The response that gains least by extend."""
    return _spared(ds, control, others(ds, control))


@run_claim(
    "preference.extend-slows-others-at-equal-passes",
    "After extended SFT of as many passes over the chosen responses as plain SFT, DPO lowers the responses other than "
    "chosen and rejected less.",
    **PASSES,
    expect="holds",
    why="by .4, .6 and 2.0 nats for no, a small and a large common part of the kernel",
    elsewhere={
        "tiny": (
            "open",
            "under plain descent by 2.0 nats for the one that gains least (p = .002); with RMSprop nothing, −.5 ± 1.4",
        )
    },
)
def slows_others_at_equal_passes(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """The response that gains least by extend."""
    return _spared(ds, control, others(ds, control))


@run_claim(
    "preference.extend-slows-others-at-equal-margin",
    "After extended SFT of as many passes over the chosen responses as plain SFT, DPO has lowered the responses other "
    "than chosen and rejected less when it has learnt the preference equally well.",
    **AT_MARGIN,
    expect="holds",
    why="by .2, .3 and 1.2 nats for no, a small and a large common part of the kernel",
    elsewhere={
        "tiny": (
            "open",
            "under plain descent by 1.1 ± .6 nats (p = .001; 1.2, p = 3e-6 on 20 other seeds); with RMSprop "
            "nothing, 0 ± .7",
        )
    },
)
def slows_others_at_equal_margin(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """The response that gains least by extend, at a margin of 10 nats."""
    return _spared_at_margin(ds, control, others(ds, control))


@run_claim(
    "preference.extend-spares-chosen-at-equal-updates",
    "After extended SFT of as many updates as plain SFT, DPO lowers the chosen response less, or raises it more.",
    **UPDATES,
    expect="holds",
    why="by 1.3 to 3.1 nats; it starts lower, being taught half as much",
    elsewhere={"tiny": ("open", "by .4 ± .5 and .8 ± .7 nats")},
)
def spares_chosen_at_equal_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change after extend minus change of the control."""
    return _spared(ds, control, ["chosen"])


@run_claim(
    "preference.extend-spares-chosen-at-equal-passes",
    "After extended SFT of as many passes over the chosen responses as plain SFT, DPO lowers the chosen response less, "
    "or raises it more.",
    **PASSES,
    expect="holds",
    why="by .6, .8 and 2.0 nats for no, a small and a large common part of the kernel",
    elsewhere={"tiny": ("open", "under plain descent by 1.4 [.8, 2.0] nats, starting .8 lower; with RMSprop .2 ± .6")},
)
def spares_chosen_at_equal_passes(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change after extend minus change of the control."""
    return _spared(ds, control, ["chosen"])


@run_claim(
    "preference.extend-spares-chosen-at-equal-margin",
    "After extended SFT of as many passes over the chosen responses as plain SFT, DPO has lowered the chosen response "
    "less, or raised it more, when it has learnt the preference equally well.",
    **AT_MARGIN,
    expect="holds",
    why="by .6, .7 and 1.4 nats for no, a small and a large common part of the kernel",
    elsewhere={"tiny": ("open", "under plain descent by 1.2 [1.0, 1.5] nats; with RMSprop by .3 ± .2 (p = .03)")},
)
def spares_chosen_at_equal_margin(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change after extend minus change of the control, at a margin of 10 nats."""
    return _spared_at_margin(ds, control, ["chosen"])


@run_claim(
    "preference.extend-slows-argmax-early-at-equal-updates",
    "After extended SFT of as many updates as plain SFT, the argmax rises less in the first tenth of DPO.",
    **UPDATES,
    expect="open",
    why="by .4 nats in two of six pairs, undecided in the others: after 20 updates of either SFT it rises alike",
    elsewhere={"tiny": ("open", "no: within .3 nats of no difference")},
)
def slows_argmax_early_at_equal_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise of the control minus rise after extend, first to second common evaluation."""
    return _slowed(ds, control, last=1)


@run_claim(
    "preference.extend-slows-argmax-early-at-equal-passes",
    "After extended SFT of as many passes over the chosen responses as plain SFT, the argmax rises less in the first "
    "tenth of DPO.",
    **PASSES,
    expect="open",
    why="by .1 nats with little or no common part of the kernel; not sure (.2 ± .15) with a large one",
    elsewhere={"tiny": ("open", "by .1 ± .15 and .2 ± .25 nats")},
)
def slows_argmax_early_at_equal_passes(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise of the control minus rise after extend, first to second common evaluation."""
    return _slowed(ds, control, last=1)


@run_claim(
    "preference.extend-lowers-total-argmax-at-equal-updates",
    "After extended SFT of as many updates as plain SFT, the argmax rises less over the whole of DPO.",
    **UPDATES,
    expect="open",
    why="after 20 updates it rises by .8 to 1.1 nats more, after 10 alike",
    elsewhere={"tiny": ("open", "no: under plain descent it rises by 1.3 nats more, with RMSprop by .2 ± .3 more")},
)
def lowers_total_argmax_at_equal_updates(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise of the control minus rise after extend."""
    return _slowed(ds, control)


@run_claim(
    "preference.extend-lowers-total-argmax-at-equal-passes",
    "After extended SFT of as many passes over the chosen responses as plain SFT, the argmax rises less over the whole "
    "of DPO.",
    **PASSES,
    expect="open",
    why="it rises by .2 nats more, not all of it sure, and alike with a large common part of the kernel",
    elsewhere={"tiny": ("open", "by .1 ± .3 nats with RMSprop, −.2 ± .4 under plain descent")},
)
def lowers_total_argmax_at_equal_passes(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise of the control minus rise after extend."""
    return _slowed(ds, control)


@run_claim(
    "preference.own-answers-spare-chosen",
    "DPO against answers of the model that SFT made has lowered the chosen response less, or raised it more, than "
    "against answers of the model before SFT, when it has learnt the preference equally well.",
    **OWN,
    expect="open",
    why="0 ± .1 nats with little or no common part of the kernel, −.6 ± .5 with a large one; the two kinds of "
    "negatives differ little after 10 updates of SFT, by about a nat",
    elsewhere={
        "tiny": (
            "open",
            "rather the other way: it falls by .6 ± .3 nats more with RMSprop, by 2.1 ± 1.3 with plain descent (.1 "
            "± .25 and 2.1 ± .6 on 20 other seeds)",
        )
    },
)
def own_answers_spare_chosen(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change with own answers minus change of the control, at a margin of 10 nats."""
    return _spared_at_margin(ds, control, ["chosen"])


@run_claim(
    "preference.own-answers-spare-others",
    "DPO against answers of the model that SFT made has lowered the responses other than chosen and rejected less than "
    "against answers of the model before SFT, when it has learnt the preference equally well.",
    **OWN,
    expect="open",
    why="with a large common part of the kernel some other response falls by 1.6 nats more, with less the sign is the "
    "same and not sure",
    elsewhere={
        "tiny": (
            "open",
            "answers to untaught questions and unrelated text fall less, other prompts' taught answers more; not "
            "sure of each",
        )
    },
)
def own_answers_spare_others(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """The response that gains least by own answers, at a margin of 10 nats."""
    return _spared_at_margin(ds, control, others(ds, control))


@run_claim(
    "preference.own-answers-slow-argmax",
    "DPO against answers of the model that SFT made has raised the argmax less than against answers of the model "
    "before "
    "SFT, when it has learnt the preference equally well.",
    **OWN,
    expect="open",
    why="within .1 nats of no difference with little or no common part of the kernel, within .5 with a large one",
    elsewhere={"tiny": ("open", "by .2 ± .2 and .1 ± .3 nats")},
)
def own_answers_slow_argmax(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise of the control minus rise with own answers, at a margin of 10 nats."""
    return ranked([_apart_at_margin(control, ds, ARGMAX)])


@run_claim(
    "preference.sampled-negatives-spare-chosen",
    "DPO against answers that the model before it samples lowers the chosen response less, or raises it more, than DPO "
    "against the given rejected ones, in as many updates.",
    **SAMPLED,
    expect="open",
    why="no run of a real language model with both arms is recorded",
)
def sampled_negatives_spare_chosen(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Change with sampled negatives minus change of the control."""
    return _spared(ds, control, ["chosen"])


@run_claim(
    "preference.sampled-negatives-spare-others",
    "DPO against answers that the model before it samples lowers the responses other than chosen and rejected less "
    "than DPO against the given rejected ones, in as many updates.",
    **SAMPLED,
    expect="open",
    why="no run of a real language model with both arms is recorded",
)
def sampled_negatives_spare_others(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """The response that gains least by sampled negatives."""
    return _spared(ds, control, others(ds, control))


@run_claim(
    "preference.sampled-negatives-slow-argmax",
    "DPO against answers that the model before it samples raises the argmax less than DPO against the given rejected "
    "ones, in as many updates.",
    **SAMPLED,
    expect="open",
    why="no run of a real language model with both arms is recorded",
)
def sampled_negatives_slow_argmax(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise of the control minus rise with sampled negatives."""
    return _slowed(ds, control)
