"""What SFT does to every kind of response, in tiny transformers: the paper's Figure 3, two optimisers, with intervals

Twenty languages that are known exactly, a transformer pretrained on each, SFT on the chosen answers y⁺ to 8 questions
of each until they have kept a quarter of their loss. Changes of summed log-probabilities since the start, means over
seeds with 95 % intervals; above RMSprop, the paper's optimiser, below plain descent (other scales). A, D: y⁺ rises
throughout (`supervised.chosen-rises`) and by more than any other (`supervised.chosen-rises-most`); the same in other
words and the same form with another meaning end far below it; that they rise first is not sure (`supervised.similar-
bell` is open). B, E: the model's own answers fall, the rejected one y⁻ among them (`supervised.own-answers-fall`): in
expectation samples of the starting policy must, whatever is taught; only how far is news. C, F: the taught answer to
another question rises, though wrong here (`supervised.other-answers-rise-early`); in the end it is past its height, and
under plain descent no longer surely up (`supervised.other-answers-rise` is open); an untaught question's falls
(`supervised.untaught-rise-less`). The words of y⁺ in random order rise with RMSprop; under plain descent they have come
down in the end, not surely enough for a verdict (`supervised.shuffled-fall` is open). G, H: where a model's wrong
answers come from. Of the chances to name another question's fact of the same relation, the share taken: of a taught
question's more than before, asked a taught question (`supervised.borrows-taught-facts`) or an untaught one
(`supervised.borrows-when-untaught`); of an untaught question's as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows
from toyld.figures._tiny import NAMES, begins_at_zero, changes, end, stages

__all__ = ["COST", "DIFFERS", "PAPER", "TAGS", "check", "data", "draw"]

PAPER = "§4.1, Fig. 3"
DIFFERS = (
    "Tiny transformers on made-up languages, 20 seeds with intervals, where the paper has single runs of Pythia "
    "and Qwen. y⁻ is the pretrained model's own answer and falls. Plain descent is shown beside RMSprop. G and H, "
    "where wrong answers come from, have no counterpart in the paper: there a text is not known to be right or "
    "wrong."
)
TAGS = ("tiny", "sft")
COST = "half a minute"
# Column of panels -> (title, kind -> (words, colour, dashes)).
COLUMNS: tuple[tuple[str, Mapping[str, tuple[str, str, Any]]], ...] = (
    (
        "y⁺ and rephrases",
        {
            "chosen": ("y⁺", RISE, "-"),
            "chosen_gptsemantic": ("other words", SOFT, "-"),
            "chosen_gptformat": ("other meaning", FALL, "-"),
        },
    ),
    (
        "Own answers",
        {
            "chosen_initial": ("first answer", RISE, "-"),
            "reject_gptsemantic": ("y⁻, other words", SOFT, "-"),
            "rejected": ("y⁻", FALL, "-"),
        },
    ),
    (
        "Others",
        {
            "irr_train": ("taught elsewhere", RISE, "-"),
            "random_permute": ("y⁺, shuffled", SOFT, "-"),
            "irr_test": ("never taught", FALL, "-"),
        },
    ),
)
KINDS = tuple(kind for _, lines in COLUMNS for kind in lines)
ASKED = {"": "asked a taught question", "test_": "asked an untaught one"}
SAID = {"borrowed": ("a taught fact", RISE), "guessed": ("an untaught fact", FALL)}


def data(size: str) -> Table:
    """One row per recipe, kind and evaluation: change in nats; of `said …` kinds the share before and after."""
    curves = changes(size, {f"{model} sft baseline": model for model in NAMES}, KINDS)
    columns: dict[str, list[Any]] = {"panel": ["curve"] * len(curves["run"])}
    columns |= {name: list(values) for name, values in curves.items()}
    for model in NAMES:
        ds = stages(size)[f"tiny {model} sft baseline"]
        chosen = ds.logp.sel(probe="chosen").mean("example").transpose("seed", "step").values
        shares = {("left", "left", -1): chosen[:, -1] / chosen[:, 0]}  # of the loss of chosen
        for asked in ASKED:
            for what in SAID:
                counted = ds[f"eval_{asked}{what}"].values
                shares |= {("said", f"said {asked}{what}", k): counted[:, k] for k in (0, -1)}
        for (panel, kind, k), values in shares.items():
            row = (panel, model, kind, int(ds.step.values[k]), len(values), *interval(values))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return {name: np.array(values) for name, values in columns.items()}


def draw(table: Mapping[str, Any]) -> Any:
    """Two rows of three panels of curves, and two of what models say."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 6.2))
    grid = fig.add_gridspec(3, 6)
    for r, model in enumerate(NAMES):
        axes = [fig.add_subplot(grid[r, 2 * c : 2 * c + 2]) for c in range(3)]
        low = min(rows(table, run=model, kind=kind)["low"].min() for kind in KINDS)
        high = max(rows(table, run=model, kind=kind)["high"].max() for kind in KINDS)
        for c, (ax, (words, lines)) in enumerate(zip(axes, COLUMNS, strict=True)):
            ax.axhline(0.0, color=QUIET, lw=0.7, zorder=0)
            for kind, (name, color, dashes) in lines.items():
                one = rows(table, run=model, kind=kind)
                ax.plot(one["update"], one["mean"], color=color, ls=dashes, lw=1.6, label=name)
                ax.fill_between(one["update"], one["low"], one["high"], color=color, alpha=0.18, lw=0)
            ax.set_xlim(0, one["update"].max())
            ax.set_ylim(low - 0.05 * (high - low), high + (0.45 if r == 0 else 0.05) * (high - low))
            title(ax, "ABCDEF"[3 * r + c], words)
            if c:
                ax.set_yticklabels([])
            if r == 0:
                ax.legend(loc="upper left", fontsize=6.3, handlelength=1.2, labelspacing=0.2, borderaxespad=0.1)
        axes[0].set_ylabel(f"{NAMES[model]}: change, nats")
        axes[1].set_xlabel("updates of SFT")
    lower = [fig.add_subplot(grid[2, 3 * c : 3 * c + 3]) for c in range(2)]
    top = max(rows(table, kind=f"said {asked}{what}")["high"].max() for asked in ASKED for what in SAID)
    for c, (ax, (asked, words)) in enumerate(zip(lower, ASKED.items(), strict=True)):
        for i, (what, (name, color)) in enumerate(SAID.items()):
            for k, (model, marker) in enumerate(zip(NAMES, ("o", "s"), strict=True)):
                one = rows(table, run=model, kind=f"said {asked}{what}")
                x = np.array([0.0, 1.0 + k]) + 0.08 * (i - 0.5)
                error = one["high"] - one["mean"]
                label = name if k == 0 else None
                ax.errorbar(x, one["mean"], error, color=color, marker=marker, ms=4, lw=1.2, label=label)
        ax.set_xticks([0, 1, 2], ["before", *(f"after, {name}" for name in ("RMSprop", "descent"))], fontsize=6.8)
        ax.set_xlim(-0.3, 2.35)
        ax.set_ylim(0.0, 1.15 * top)
        title(ax, "GH"[c], words)
    lower[0].set_ylabel("share of chances")
    lower[0].legend(loc="upper left", fontsize=6.8, title="wrong answers that name", title_fontsize=6.8, labelcolor=INK)
    lower[1].set_yticklabels([])
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption says of both optimisers, by intervals over the seeds."""
    begins_at_zero(rows(table, panel="curve"))
    centred(table)
    for model in NAMES:
        chosen = rows(table, run=model, kind="chosen")
        rises = np.diff(chosen["mean"])
        require((rises > 0.0).all(), f"{model}: chosen does not rise throughout, {chosen['mean'].round(2)}")
        for kind in KINDS[1:]:
            got, other = end(table, model, "chosen"), end(table, model, kind)
            require(got[1] > other[2], f"{model}: chosen ends at {got}, {kind} at {other}")
        for kind in COLUMNS[1][1]:
            one = rows(table, run=model, kind=kind)
            require((one["low"] <= 0.0).all(), f"{model}: {kind} rises first, {one['mean'].round(2)}")
            require(end(table, model, kind)[2] < 0.0, f"{model}: {kind} ends at {end(table, model, kind)}")
        taught = rows(table, run=model, kind="irr_train")
        half = int((taught["update"] <= taught["update"][-1] / 2).sum()) - 1
        require(taught["mean"][half] > 1.0, f"{model}: taught elsewhere gains {taught['mean'][half]:.3g} nats")
        require(
            end(table, model, "irr_test")[2] < 0.0, f"{model}: never taught ends at {end(table, model, 'irr_test')}"
        )
        for asked in ASKED:
            borrowed, guessed = (rows(table, run=model, kind=f"said {asked}{what}")["mean"] for what in SAID)
            gain, rest = borrowed[1] - borrowed[0], guessed[1] - guessed[0]
            require(gain > max(0.0, rest), f"{model}, {asked}: borrowed grows by {gain:.3g}, guessed by {rest:.3g}")
    shuffled = {model: end(table, model, "random_permute") for model in NAMES}
    require(shuffled["rmsprop"][1] > 0.0, f"shuffled words end at {shuffled['rmsprop']} under RMSprop")
    require(shuffled["sgd"][2] < 0.0, f"shuffled words end at {shuffled['sgd']} under plain descent")
    for model in NAMES:  # past its height; the evaluations are few
        back = rows(table, run=model, kind="irr_train")["mean"]
        require(
            0.0 < back[-1] < 0.95 * back.max(), f"{model}: taught elsewhere ends at {back[-1]:.3g} of {back.max():.3g}"
        )
        left = rows(table, run=model, kind="left")["mean"][-1]
        require(abs(left - 0.24) < 0.04, f"{model}: chosen has kept {left:.3g} of its loss")
