"""Which way chosen and argmax moved: the plane of the verdict, and runs whose cause is known

Each point is a run of 40 examples of many small softmaxes moved by one mechanism (`toyld.diagnosis.causes`), placed by
the change of its means from the first to the last evaluation: of the chosen response, and of the argmax along the same
contexts. The shades are the classes of the rule at the median start and noise of these runs; axes are linear within .1
nats and logarithmic beyond. A pull on the label moves a run right, and its argmax up, too, once the label is the top
(`sft.label-rises-runner-up-falls`): argmax up alone is no squeezing. A push on rare classes at contexts like the chosen
ones lifts the argmax above what chosen gains (`squeeze.runner-up-rises`). A conflicting pair leaves the top nearly
where it is while chosen falls (`pair.rest-moves-together`): chosen down alone is no squeezing either. Labels without
information lower both. A hollow point is a run whose verdict is another class than its cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, RISE, SOFT, require, title
from toyld.figures._table import Table, rows

__all__ = ["SEED", "TAGS", "check", "data", "draw"]

TAGS = ("diagnosis", "softmax", "squeezing")
SEED = 0  # seeds count from here
RUNS = {"smoke": 5, "paper": 30}
LINEAR = 0.1
LIMITS = ((-15.0, 15.0), (-6.0, 6.0))
GREY = "#7A7A7A"
# Cause -> colour, marker; the plane tells the classes of one colour of region apart by `rejected` alone.
LOOKS = {
    "squeezing": (FALL, "^"),
    "displacement": (GREY, "s"),
    "divergence": (INK, "v"),
    "sft-normal": (RISE, "o"),
    "healthy": ("#4C86A8", "D"),
    "rejection": (SOFT, "<"),
    "not-learning": ("#B8B8B8", "o"),
}
# Names of the regions, in axes coordinates.
PLACES = {(0.27, 0.93): "squeezing", (0.24, 0.5): "displacement", (0.25, 0.16): "divergence"}
PLACES |= {(0.8, 0.06): "sft-normal, or healthy\nif rejected falls"}
PLACES |= {(0.5, 0.18): "not-learning,\nor rejection if\nrejected falls"}
SHADES = {"squeezing": "#FBE3D3", "displacement": "#E6E6E6", "divergence": "#C9C9C9", "sft-normal": "#DCE6EE"}
SHADES |= {"not-learning": "#FFFFFF"}


def data(size: str) -> Table:
    """One row per run, seven causes."""
    made = [_row(cause, seed) for cause in LOOKS for seed in range(RUNS[size])]
    return {name: np.array([row[name] for row in made]) for name in made[0]}


def _row(cause: str, seed: int) -> dict[str, Any]:
    from toyld.diagnosis import diagnose
    from toyld.diagnosis.causes import make_run

    run = make_run(cause, seed=seed)
    found = diagnose(run)
    start = float(run.logp.sel(probe="chosen").values[:, 0].mean())
    noise = run.attrs["noise_floor"] * float(run.n_tokens.sel(probe="chosen").mean())
    row = {"cause": cause, "seed": seed, "verdict": found.verdict}
    row |= {"start_chosen_logp_nats": round(start, 6), "noise_nats": round(noise, 6)}
    return row | {f"{key}_nats": number for key, number in found.numbers.items() if key != "d_rejected"}


def _regions(table: Mapping[str, Any], x: Any, y: Any) -> Any:
    """Class of each point of the plane (rejected unknown) for a run that starts where the median run does."""
    from toyld.diagnosis import DEFAULT, Move, classify

    chosen = float(np.median(table["start_chosen_logp_nats"]))
    argmax = chosen + float(np.median(table["gap_first_nats"]))
    noise = float(np.median(table["noise_nats"]))
    still = max(noise, DEFAULT.material * -chosen)
    calm = max(noise, DEFAULT.material * -argmax)
    return classify(Move.of(x, still), Move.of(y, calm), Move.of(y - x, calm), None, -argmax)


def _edges(low: float, high: float) -> Any:
    """Points as dense as the axis: linear within LINEAR, logarithmic beyond."""
    first, last = (float(np.sign(x) * (1.0 + np.log10(abs(x) / LINEAR))) for x in (low, high))
    at = np.linspace(first, last, 401)
    return np.sign(at) * LINEAR * np.where(np.abs(at) < 1.0, np.abs(at), 10.0 ** (np.abs(at) - 1.0))


def draw(table: Mapping[str, Any]) -> Any:
    """Regions below, runs above, the regions' names inside them."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    fig = Figure(figsize=(5.5, 3.6))
    ax = fig.subplots()
    x, y = (_edges(*limits) for limits in LIMITS)
    kind = _regions(table, *np.meshgrid((x[1:] + x[:-1]) / 2, (y[1:] + y[:-1]) / 2))
    index = np.select([kind == name for name in SHADES], range(len(SHADES)), -1)
    shades = ListedColormap(list(SHADES.values()))
    ax.pcolormesh(x, y, index, cmap=shades, vmin=-0.5, vmax=len(SHADES) - 0.5, rasterized=True, zorder=0)
    for cause, (color, marker) in LOOKS.items():
        one = rows(table, cause=cause)
        right = one["verdict"] == cause
        for mask, fill, label in ((right, color, cause), (~right, "none", None)):
            at = one["d_chosen_nats"][mask], one["d_argmax_nats"][mask]
            ax.scatter(*at, s=12, marker=marker, lw=0.6, facecolors=fill, edgecolors=color, label=label, zorder=3)
    for ticks, limits, axis in (
        ((-10, -1, -0.1, 0, 0.1, 1, 10), LIMITS[0], "x"),
        ((-1, -0.1, 0, 0.1, 1), LIMITS[1], "y"),
    ):
        getattr(ax, f"set_{axis}scale")("symlog", linthresh=LINEAR)
        getattr(ax, f"set_{axis}lim")(*limits)
        getattr(ax, f"set_{axis}ticks")(ticks, [f"{t:+g}".replace("-", "−") if t else "0" for t in ticks])
        getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())
    for at, name in PLACES.items():
        ax.text(*at, name, transform=ax.transAxes, ha="center", va="center", fontsize=7, weight="bold", color=INK)
    ax.set_xlabel("change of the chosen response, nats")
    ax.set_ylabel("change of the argmax, nats")
    ax.legend(title="cause", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, alignment="left")
    title(ax, "", "Where a run goes, by its cause")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """Where the runs of each cause lie, and that a run is made anew as it stands in the table."""
    chosen, argmax = table["d_chosen_nats"], table["d_argmax_nats"]
    off = np.abs(table["gap_last_nats"] - table["gap_first_nats"] - argmax + chosen).max()
    require(off < 4e-6, f"the gap does not change by Δargmax − Δchosen: off by {off:.3g} nats")  # rounded to 1e-6 each
    called = float((table["verdict"] == table["cause"]).mean())
    require(called >= 0.95, f"{called:.1%} of the runs are called what they are")
    side = {
        "sft-normal": (chosen > 0.0) & (argmax > 0.0) & (argmax < chosen),
        "healthy": (chosen > 0.0) & (argmax < chosen),
        "squeezing": (argmax > 0.0) & (argmax > chosen),
        "displacement": (chosen < 0.0) & (np.abs(argmax) < -chosen / 4),
        "divergence": (chosen < 0.0) & (argmax < 0.0),
        "rejection": np.hypot(chosen, argmax) < LINEAR,
        "not-learning": np.hypot(chosen, argmax) < LINEAR,
    }
    for cause, there in side.items():
        mine = table["cause"] == cause
        share = float(there[mine].mean())
        require(
            mine.any() and share >= 0.95,
            f"{cause}: {share:.1%} of {mine.sum()} runs lie where its mechanism sends them",
        )
        made = _row(cause, int(table["seed"][mine][0]))
        for name, value in made.items():
            got = table[name][mine][0]
            require(got == value or abs(got - value) < 1e-5, f"{cause}: {name} = {got}, made anew {value}")
