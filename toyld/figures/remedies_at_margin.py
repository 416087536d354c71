"""Taking the mean feature out of DPO's updates, against the other remedies at equal margin

The preference stage in closed form, 32 seeds, language `facts`: mean change since its start against the margin
m = Δ(ℓ₊ − ℓ₋), with 95 % intervals over seeds. Above: all contexts share a constant component (S = local part + c·11ᵀ,
c = 1); below: they share it unevenly, so that their mean feature μ is not all of it. A, D: plain DPO lowers the chosen
response; with μ taken off the features in its updates it rises instead (`centring.spares-chosen`), DPO+NLL lifts it at
least as far (`centring.chosen-above-remedies` is refuted). After SFT on both responses (extend) chosen stands above its
start at 5 nats, but at 20 less than a fifth of its fall is undone; it does more in other worlds (figures
dpo_in_closed_form and common_component). B, E: every arm lowers an untrained test response; without μ it falls least of
those shown, if the component is constant (`centring.spares-untrained`; of all remedies in two languages that is open:
`centring.untrained-above-remedies`), where to subtract μ (line hidden below the dark one) is to have no such component
at all (`kernel.common-component-cancels`). If it is uneven, subtracting μ undoes less than half of the fall
(`centring.undoes-any-component` is refuted), and projecting it out undoes it (`centring.projection-spares-more`,
`centring.projected-above-remedies`). A random vector as long as μ changes little (`centring.random-changes-nothing`).
C, F: the argmax along the chosen response rises in every arm. The price: two to three times as many updates
(`centring.needs-more-updates`). NPO+NLL is this project's own pair of losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._by_hand import Texts, residual
from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "§4.3 (the question of a remedy)"
DIFFERS = (
    "The paper proposes extend alone and compares win rates; here six remedies are compared at equal margin in "
    "closed-form worlds. Centred updates are this project's."
)
TAGS = ("contexts", "remedies", "squeezing")
SEED = 0  # seeds count from here
SEEDS = 32
KERNELS = ("common", "uneven")
# arm -> words, colour, dashes
LOOKS: dict[str, tuple[str, str, Any]] = {
    "plain": ("DPO", FALL, "-"),
    "random": ("random vector off", INK, (0, (1, 1.5))),
    "extend": ("extend before", SOFT, (0, (5, 1.5))),
    "rpo": ("DPO+NLL", "#009E73", (0, (4, 1, 1, 1))),
    "npo+nll": ("NPO+NLL", "#8A8A8A", (0, (3, 1))),
    "centred": ("μ subtracted (A to C: = projected out)", "#4C86A8", (0, (6, 1))),
    "projected": ("μ projected out", RISE, "-"),
}
MEASURES = {
    "chosen": ("chosen", "logp", "chosen"),
    "untrained": ("test_chosen", "logp", "untrained response"),
    "argmax": ("chosen", "argmax_logp", "argmax"),
}


SIZES: dict[str, dict[str, int]] = {
    "smoke": {"most": 240, "block": 24, "fine": 3},
    "paper": {"most": 600, "block": 40, "fine": 1},
}
GRID = {"smoke": 9, "paper": 21}
SHOWN = ("plain", "centred", "projected")  # made once more by hand


def _runs(size: str) -> dict[str, Any]:
    """Table by "kernel arm"."""
    from toyld.contexts.experiments import remedies as r

    seeds = range(SEED, SEED + SEEDS)
    base = r.world("facts", seeds, size)
    arms = {name: r.ARMS[name] for name in LOOKS}
    return {
        f"{kernel} {name}": ds
        for kernel in KERNELS
        for name, ds in r.stages(r.with_component(base, kernel), arms, kernel=kernel, **SIZES[size]).items()
    }


def data(size: str) -> Table:
    """One row per kernel, arm, measure and margin: mean over seeds, its interval, and how many seeds got there."""
    from toyld.contexts.experiments.remedies import MARGINS
    from toyld.trajectory.matched import at_margin

    grid = np.linspace(0.0, MARGINS[-1], GRID[size])
    columns: dict[str, list[Any]] = {}
    for key, ds in _runs(size).items():
        kernel, arm = key.split(" ")
        for measure, (probe, variable, _) in MEASURES.items():
            for m in grid:
                x = at_margin(ds, float(m), probe, variable=variable)
                first = float(x[0])
                x = x[np.isfinite(x)]
                made = {"kernel": kernel, "arm": arm, "measure": measure, "margin_nats": float(m), "seeds": len(x)}
                made |= dict(zip(("mean_nats", "low_nats", "high_nats"), interval(x), strict=True))
                made["first_seed_nats"] = first
                for name, value in made.items():
                    columns.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in columns.items()}


def _by_hand(size: str, kernel: str, arm: str) -> tuple[float, float]:
    """Change of chosen and of the untrained response of the first seed at the larger margin.

    Written out from the definition, Z ← Z − η Φ Φ̃ᵀ R with the changed features Φ̃ themselves and R from
    `softmax.residual`; none of `contexts.train`.
    """
    from toyld import contexts
    from toyld.contexts.experiments import remedies as r

    w = r.with_component(r.world("facts", [SEED], size), kernel)
    z = contexts.logits(w, r.start(w))[0]
    sides = {kind: Texts(*(a[0] for a in w.responses[kind])) for kind in r.KINDS}
    own = np.sqrt(np.asarray(w.kernel.diagonal)[0])
    phi = np.concatenate([np.asarray(w.kernel.features)[0], np.diag(own)], axis=1)
    used = np.concatenate([sides[kind].context[sides[kind].mask] for kind in ("chosen", "rejected")])
    mean = phi[used].mean(0)
    less = {"plain": phi, "centred": phi - mean, "projected": phi - np.outer(phi @ mean, mean) / (mean @ mean)}[arm]

    block, fine = SIZES[size]["block"], SIZES[size]["fine"]
    start = {kind: sides[kind].logp(z) for kind in r.KINDS}
    before = (0.0, 0.0, 0.0)
    for step in range(SIZES[size]["most"] + 1):
        if step:
            change = {kind: float((sides[kind].logp(z) - start[kind]).mean()) for kind in r.KINDS}
            margin = change["chosen"] - change["rejected"]
            every = fine if step <= block else 3 * fine
            if (step % block or block) % every == 0 or step % block == 0:
                now = (margin, change["chosen"], change["test_chosen"])
                if margin >= r.MARGINS[-1]:
                    share = (r.MARGINS[-1] - before[0]) / (now[0] - before[0])
                    a, b = (before[i] + share * (now[i] - before[i]) for i in (1, 2))
                    return a, b
                before = now
        gap = sides["chosen"].logp(z) - sides["rejected"].logp(z) - start["chosen"] + start["rejected"]
        c = 0.1 / (1.0 + np.exp(0.1 * gap))
        push = residual(z, (sides["chosen"], c), (sides["rejected"], -c)) / len(c)
        z = z - 20.0 * phi @ (less.T @ push)
    return np.nan, np.nan


def draw(table: Mapping[str, Any]) -> Any:
    """A row a kernel, a column a measure, a line an arm, bands of the intervals."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.2))
    axes = fig.subplots(2, 3, sharex=True, sharey="col")
    letters = iter("ABCDEF")
    names = {"common": "constant component", "uneven": "uneven component"}
    for line, kernel in zip(axes, KERNELS, strict=True):
        for ax, (measure, (_, _, words)) in zip(line, MEASURES.items(), strict=True):
            for arm, (label, color, dashes) in LOOKS.items():
                one = rows(table, kernel=kernel, arm=arm, measure=measure)
                x = one["margin_nats"]
                ax.fill_between(x, one["low_nats"], one["high_nats"], color=color, alpha=0.15, lw=0)
                ax.plot(x, one["mean_nats"], color=color, ls=dashes, lw=1.5, label=label)
            ax.axhline(0.0, color=QUIET, lw=0.6, zorder=0)
            ax.set_xlim(0.0, x.max())
            title(ax, next(letters), words if kernel == KERNELS[0] else "")
        line[0].set_ylabel(f"{names[kernel]}\nchange, nats")
    for ax in axes[1]:
        ax.set_xlabel("margin m, nats")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, handlelength=2.4)
    return fig


def check(table: Mapping[str, Any]) -> None:
    """What the caption says of the arms, and that a run is made anew as it stands in the table."""

    def end(kernel: str, arm: str, measure: str) -> dict[str, float]:
        one = rows(table, kernel=kernel, arm=arm, measure=measure)
        return {name: float(one[name][-1]) for name in ("mean_nats", "low_nats", "high_nats", "seeds")}

    grid = rows(table, kernel=KERNELS[0], arm="plain", measure="chosen")["margin_nats"]
    size = next((name for name, n in GRID.items() if n == len(grid)), "paper")
    ends = float(grid[0]), float(grid[-1])
    require(ends == (0.0, 20.0), f"margins from {ends[0]} to {ends[1]}, expected 0 to 20")
    for kernel in KERNELS:
        for arm in SHOWN:
            for measure, want in zip(("chosen", "untrained"), _by_hand(size, kernel, arm), strict=True):
                got = float(rows(table, kernel=kernel, arm=arm, measure=measure)["first_seed_nats"][-1])
                # η holds to 1e-8 (the chosen response is set just below its reference to find it)
                require(abs(got - want) < 1e-5, f"{kernel} {arm} {measure}: {got:.6f} nats, by hand {want:.6f}")
        for arm in LOOKS:
            for measure in MEASURES:
                one = rows(table, kernel=kernel, arm=arm, measure=measure)
                for name in ("mean_nats", "low_nats", "high_nats"):
                    require(one[name][0] == 0.0, f"{kernel} {arm} {measure}: {name} starts at {one[name][0]}, not 0")
                require(
                    one["seeds"].min() >= 0.9 * SEEDS, f"{kernel} {arm}: only {one['seeds'].min()} seeds at a margin"
                )
                inside = (one["low_nats"] <= one["mean_nats"]) & (one["mean_nats"] <= one["high_nats"])
                require(inside.all(), f"{kernel} {arm} {measure}: {(~inside).sum()} means outside their intervals")
            top = end(kernel, arm, "argmax")
            require(top["low_nats"] > 0.0, f"{kernel} {arm}: argmax {top['mean_nats']:+.2f} nats, not surely a rise")
        others = [arm for arm in LOOKS if arm not in ("centred", "projected")]
        best = max(end(kernel, arm, "untrained")["high_nats"] for arm in others)
        mine = end(kernel, "projected", "untrained")["low_nats"]
        require(mine > best, f"{kernel}: untrained {mine:+.2f} at least by projection, {best:+.2f} at most elsewhere")
        plain = end(kernel, "plain", "chosen")
        require(plain["high_nats"] < 0.0, f"{kernel}: plain DPO leaves chosen at {plain['mean_nats']:+.2f}")
        early = rows(table, kernel=kernel, arm="extend", measure="chosen", margin_nats=5.0)["low_nats"][0]
        require(early > 0.0, f"{kernel}: after extend chosen stands at {early:+.2f} at least at 5 nats, not above 0")
        fall, after = plain["mean_nats"], end(kernel, "extend", "chosen")["mean_nats"]
        require(fall < after < 0.8 * fall, f"{kernel}: chosen ends at {after:+.2f} after extend, {fall:+.2f} without")
        rise = end(kernel, "projected", "chosen")["low_nats"]
        require(rise > 0.0, f"{kernel}: chosen {rise:+.2f} at least by projection, not a rise")
    for measure in ("chosen", "untrained"):
        gap = [end("common", arm, measure)["mean_nats"] for arm in ("centred", "projected")]
        require(abs(gap[0] - gap[1]) < 0.5, f"common, {measure}: subtracted {gap[0]:+.2f}, projected {gap[1]:+.2f}")
        less, more = (end("uneven", arm, measure) for arm in ("centred", "projected"))
        require(
            less["high_nats"] < more["low_nats"],
            f"uneven, {measure}: subtracted {less['mean_nats']:+.2f}, projected {more['mean_nats']:+.2f}",
        )
        whole, left = (end("uneven", arm, measure)["mean_nats"] for arm in ("plain", "centred"))
        require(left < whole / 2.0, f"uneven, {measure}: subtracted {left:+.2f}, plain {whole:+.2f}: half undone")
        gap = [end("common", arm, measure)["mean_nats"] for arm in ("plain", "random")]
        require(abs(gap[0] - gap[1]) < 1.0, f"common, {measure}: plain {gap[0]:+.2f}, random {gap[1]:+.2f}")
