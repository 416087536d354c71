"""What DPO does to every kind of response, in closed form: with a large common part the paper's Figure 4 appears

The paper's Figures 4 and 5 without a network: DPO after 10 updates of SFT, in worlds whose kernel is S = local part +
c·11ᵀ; its diagonal is 1, so that c, the weight of what all contexts have in common, is also its share, c/(local + c).
Changes of summed log-probabilities since DPO began, means over seeds with 95 % intervals. In all three the margin grows
(`preference.margin-grows`), y⁻ falls faster than the same in other words (`preference.rejected-leads-rephrases`), y⁺
stays above its own (`preference.chosen-outlasts-rephrases`) and the argmax along the contexts of y⁺ rises
(`preference.argmax-rises`). Only C displaces: y⁺ falls while the argmax rises, and the gap between them opens
(`preference.chosen-falls`, `preference.gap-widens`: it depends on the kernel). D-F: what it changes to teach y⁻, too,
before (“extend”, 20 updates), against plain SFT of as many passes over y⁺: y⁺ and a test prompt's answer fall less
(`preference.extend-spares-chosen-at-equal-passes`, `preference.extend-slows-others-at-equal-passes`), the most in F,
and more than half of that comes in the first 12 updates; the argmax rises a little later, but no less in all
(`preference.extend-lowers-total-argmax-at-equal-passes` is not borne out). How long it helps depends on the world: in a
long DPO against improbable answers the lead is lost if c is large (`displacement.extend-help-fades-with-common`, D of
the figure common_component), and at equal margin see the figure remedies_at_margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, GREEN, QUIET, RISE, SOFT, require, title
from toyld.figures._runs import ARGMAX, by_hand, collected, starts_at_zero, unit, weight
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§4.2 and §4.3, Fig. 4 and 5"
DIFFERS = (
    "No network and no RMSprop: only the head is trained, by plain descent, on made-up languages with 32 seeds, "
    "where the paper has single runs of Pythia and Qwen on Anthropic-HH and UltraFeedback. The argmax is measured "
    "along the contexts of y⁺; the published curve was measured along those of shuffled words (the argmax bug). "
    "In the paper y⁺ falls; here that depends on the common component."
)
TAGS = ("contexts", "dpo", "squeezing", "remedies")
MODELS = {"local": "", "mixed": "", "anisotropic": ": y⁺ falls"}
BROKEN = (0, (6, 1.5, 1, 1.5))
# Kind -> (words, colour, dashes).
LINES: dict[str, tuple[str, str, Any]] = {
    ARGMAX: ("argmax", SOFT, "-"),
    "chosen": ("y⁺", RISE, "-"),
    "chosen_gptsemantic": ("y⁺, other words", RISE, (0, (1.2, 1.5))),
    "irr_test": ("a test prompt's answer", GREEN, BROKEN),
    "reject_gptsemantic": ("y⁻, other words", FALL, (0, (1.2, 1.5))),
    "rejected": ("y⁻", FALL, "-"),
}
COMPARED = (ARGMAX, "chosen", "irr_test")


def data(size: str) -> Table:
    """One row per part, kernel, kind and evaluation: change since the start; in part "extend" less that after SFT."""
    plain = collected(size, {f"{model} dpo baseline after 10": model for model in MODELS}, LINES)
    extend = {f"{model} dpo extend after 20": model for model in MODELS}
    minus = {name: f"{model} dpo baseline after 10" for name, model in extend.items()}
    other = collected(size, extend, COMPARED, minus=minus)
    part = np.repeat(["plain", "extend"], [len(plain["run"]), len(other["run"])])
    return {"part": part, **{name: np.concatenate([plain[name], other[name]]) for name in plain}}


def draw(table: Mapping[str, Any]) -> Any:
    """Top: DPO for three kernels; bottom: extended less plain SFT before it."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.6))
    axes = fig.subplots(2, 3, sharex=True, sharey="row", height_ratios=(1.7, 1.0))
    for row, (part, kinds) in enumerate((("plain", tuple(LINES)), ("extend", COMPARED))):
        for i, model in enumerate(MODELS):
            ax = axes[row, i]
            ax.axhline(0.0, color=QUIET, lw=0.7, zorder=0)
            for kind in kinds:
                _, color, dashes = LINES[kind]
                one = rows(table, part=part, run=model, kind=kind)
                ax.plot(one["update"], one["mean_nats"], color=color, ls=dashes, lw=1.7)
                ax.fill_between(one["update"], one["low_nats"], one["high_nats"], color=color, alpha=0.15, lw=0)
            title(
                ax,
                "ABCDEF"[3 * row + i],
                weight(model) + MODELS[model] if row == 0 else "extend − plain SFT" if i == 0 else "",
            )
            ax.set_xlim(0, table["update"].max())
    axes[0, 0].set_ylabel("change of log-probability, nats")
    axes[1, 0].set_ylabel("after extend less\nafter plain SFT, nats")
    axes[1, 1].set_xlabel("updates of DPO")
    for words, color, dashes in LINES.values():
        axes[0, 0].plot([], [], color=color, ls=dashes, lw=1.7, label=words)
    axes[0, 0].legend(loc="lower left", frameon=False, fontsize=6.8, handlelength=1.7, labelspacing=0.35)
    return fig


def _end(table: Mapping[str, Any], part: str, model: str, kind: str) -> tuple[float, float, float]:
    one = rows(table, part=part, run=model, kind=kind)
    return float(one["mean_nats"][-1]), float(one["low_nats"][-1]), float(one["high_nats"][-1])


def check(table: Mapping[str, Any]) -> None:
    """What the caption says of each kernel, by intervals over the seeds; y⁺ in C from the definition."""
    starts_at_zero(table)
    unit()
    got, updates = _end(table, "plain", "anisotropic", "chosen")[0], int(table["update"].max())
    want = by_hand(int(table["seeds"][0]), "anisotropic", sft=10, dpo=updates)
    require(abs(got - want) < 1e-9 * abs(want), f"C: chosen gains {got:.12g} nats, by hand {want:.12g}")
    for model in MODELS:
        end = {kind: _end(table, "plain", model, kind) for kind in LINES}
        require(end["chosen"][1] > end["rejected"][2], f"{model}: the margin: {end['chosen']}, {end['rejected']}")
        for kind, other in (("chosen", "chosen_gptsemantic"), ("reject_gptsemantic", "rejected")):
            require(
                end[kind][0] > end[other][0], f"{model}: {kind} {end[kind]} does not end above {other} {end[other]}"
            )
        require(end[ARGMAX][1] > 0.0, f"{model}: the argmax ends at {end[ARGMAX]}")
        falls = end["chosen"][2] < 0.0
        require(falls == (model == "anisotropic"), f"{model}: chosen ends at {end['chosen']}")
        require(falls or end["chosen"][1] > 0.0, f"{model}: chosen neither falls nor rises: {end['chosen']}")
        spared = {kind: _end(table, "extend", model, kind) for kind in COMPARED}
        for kind in ("chosen", "irr_test"):
            require(spared[kind][1] > 0.0, f"{model}: extend spares {kind} by {spared[kind]}")
            lead = rows(table, part="extend", run=model, kind=kind)
            half = float(lead["mean_nats"][lead["update"] <= 12][-1])
            require(
                half > spared[kind][0] / 2.0, f"{model}: {kind} is spared {half:.3g} nats early, {spared[kind]} in all"
            )
            most = _end(table, "extend", "anisotropic", kind)
            require(
                model == "anisotropic" or most[1] > spared[kind][2],
                f"{kind} is spared {most}, {spared[kind]} in {model}",
            )
        early = rows(table, part="extend", run=model, kind=ARGMAX)["mean_nats"]
        require(early[1] < 0.0, f"{model}: the argmax is no later after extend: {early.round(3)}")
        require(spared[ARGMAX][2] > 0.0, f"{model}: the argmax rises less after extend, by {spared[ARGMAX]}")
