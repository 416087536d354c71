"""Where the teacher-forced argmax rises in DPO, and how much room SFT has left it (D5, D6)."""

from __future__ import annotations

import xarray as xr

from toyld.claims.effects import Effect, ranked
from toyld.claims.preference import longer_sft
from toyld.claims.runs import run_claim
from toyld.claims.tables import ARGMAX, PLAIN, STAGES, along, beside, measured, needs, needs_pair
from toyld.claims.tools import PAPER

__all__: list[str] = []
OFF = "random_nonhum"
_DPO = needs("dpo", "chosen", arm=PLAIN)
_WITH_ARGMAX = needs("dpo", "chosen", argmax=True, arm=PLAIN)


@run_claim(
    "preference.argmax-rises-off-the-answers",
    "DPO raises the argmax along contexts that answer nothing, the shuffled answer to a test prompt, too.",
    source="where the authors' logs before their fix measured argmax (F1)",
    premises=lambda ds: (
        _DPO(ds) or (None if OFF in measured(ds) and "argmax_logp" in ds else f"not measured: argmax along {OFF}")
    ),
    rungs=("tiny", "llm"),
    experiment=STAGES,
    expect="holds",
    why="by 1.4 to 3.5 nats, along the chosen contexts by .9 to 2.9: measured in the wrong place the argmax would "
    "tell much the same story here. With RMSprop p = 4e-5, on 20 other seeds 4e-8",
)
def argmax_rises_off_the_answers(ds: xr.Dataset) -> Effect:
    """Last minus first."""
    return ranked([along(ds, OFF).between(0, -1)])


@run_claim(
    "preference.longer-sft-leaves-less-to-argmax",
    "The longer the SFT before it, the less DPO raises the argmax along the chosen contexts.",
    source=f"{PAPER}, App. D (D6), the argmax alone",
    premises=needs_pair(_WITH_ARGMAX, _WITH_ARGMAX, longer_sft),
    rungs=("tiny", "llm"),
    experiment=STAGES,
    expect="open",
    why="under plain descent by 1.1 [.9, 1.4] nats; with RMSprop by .3 [.1, .4], not sure among all trials of the rung "
    "(p = 8e-4; .3, p = 4e-4 on 20 other seeds)",
    takes="control",
)
def longer_sft_leaves_less_to_argmax(ds: xr.Dataset, control: xr.Dataset) -> Effect:
    """Rise after the shorter SFT minus rise after the longer."""
    ((top, top_control),) = beside(ds, control, [(ARGMAX, ARGMAX)])
    return ranked([top_control.between(0, -1) - top.between(0, -1)])
