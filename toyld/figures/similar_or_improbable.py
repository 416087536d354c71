"""Similar or improbable? What an untrained response loses to a rejected one, by intervention

Many contexts, one kernel S, two languages: an untrained test response at the point of DPO where the margin has grown by
2 nats a token. The policy is held; at the contexts that y⁻ alone visits, only log π(y⁻) is moved (the other tokens keep
their proportions), and only their coupling to all other contexts is scaled by ρ. S = local part + c·11ᵀ, told by the
share a = c/(local + c) of what all contexts have in common. A and B, a = ½: the less probable y⁻ is, the *less* this
untrained response falls (`similarity.improbable-displaces-more` is refuted; the chosen one itself mostly ends lower,
`similarity.improbable-costs-chosen`), and beyond a token in 55 its fall changes no more
(`similarity.improbability-saturates`), since the push on y⁻ is (1 − π_y)(e_y − q)
(`similarity.probability-scales-the-push`); without the coupling most of its fall is gone
(`similarity.coupling-displaces`). C: the main effects of the 2 × 2 of coupling (1 against 0) and improbability (a token
in 300,000 against one in four), and their interaction, by a: the larger it is, the more the coupling costs an untrained
response (`similarity.common-amplifies-coupling`); where there is one, more than twice as much as the probability
changes (`similarity.coupling-outweighs-probability`). Bars: 95 % intervals over seeds, set side by side in A and B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from toyld import softmax as sm
from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, require, title
from toyld.figures._table import Table, rows

__all__ = ["SEED", "TAGS", "check", "data", "draw"]

TAGS = ("contexts", "dpo", "squeezing")
SEED = 0  # seeds count from here
SEEDS = {"smoke": 8, "paper": 32}
LIKELY, MIDDLE, RARE = 1.3, 4.0, 12.7
LEVELS = {"smoke": (LIKELY, MIDDLE, RARE), "paper": (0.3, LIKELY, MIDDLE, 8.0, RARE)}
COUPLINGS, SHARES = (0.0, 0.5, 1.0), (0.0, 0.2, 0.5)
STRONG = 0.5
NAMES = {"facts": "facts", "markov": "a chain"}
LINES = {0.0: (RISE, "^", "0"), 0.5: (SOFT, "s", "½"), 1.0: (FALL, "o", "1")}
ASIDE = 0.28  # nats a token from one value of ρ to the next, so that their bars do not cover each other
EPS = float(np.finfo(float).eps)
EFFECTS = {"coupling": (FALL, "o"), "improbability": (RISE, "D"), "interaction": (QUIET, "s")}


def data(size: str) -> Table:
    """One row per language, share, coupling, level and seed: the change of the mean test response at equal margin."""
    return _made(range(SEED, SEED + SEEDS[size]), size)


def _made(seeds: range, size: str) -> Table:
    from toyld.claims.similarity import change
    from toyld.contexts.experiments.similarity import LANGUAGES, SIZES, factorial, prepare

    plan = replace(SIZES["smoke"], levels=LEVELS[size], couplings=COUPLINGS, shares=SHARES)
    found: dict[str, list[Any]] = {}
    for language in LANGUAGES:
        start = prepare(language, seeds, prompts=plan.prompts)
        for ds in factorial(start, plan):
            moved = change(ds)
            columns = {
                "language": [language] * len(moved),
                "common_share": [ds.attrs["anisotropy"]] * len(moved),
                "coupling_rho": [ds.attrs["coupling"]] * len(moved),
                "level_nats_per_token": [ds.attrs["level"]] * len(moved),
                "seed": ds.seed.values.tolist(),
                "d_test_nats": np.round(moved, 6).tolist(),
            }
            for name, values in columns.items():
                found.setdefault(name, []).extend(values)
    return {name: np.array(values) for name, values in found.items()}


def _cell(table: Mapping[str, Any], language: str, share: float, rho: float, level: float) -> Any:
    """The changes of one cell, (seed,)."""
    at = {"language": language, "common_share": share, "coupling_rho": rho, "level_nats_per_token": level}
    return rows(table, **at)["d_test_nats"]


def _interval(units: Any) -> tuple[float, float]:
    """Mean and half of its 95 % interval, by Student's t over the seeds that reached the margin."""
    from scipy.special import stdtrit

    known = np.asarray(units)[np.isfinite(units)]
    half = float(stdtrit(len(known) - 1, 0.975)) * known.std(ddof=1) / len(known) ** 0.5
    return float(known.mean()), float(half)


def _effects(table: Mapping[str, Any], language: str, share: float) -> dict[str, Any]:
    """Main effects and interaction of coupling × improbability, (seed,) each (`toyld.claims.similarity.effects`)."""
    both, likely, rare, none = (
        _cell(table, language, share, rho, level)
        for rho, level in ((1.0, RARE), (1.0, LIKELY), (0.0, RARE), (0.0, LIKELY))
    )
    return {
        "coupling": (likely + both - none - rare) / 2.0,
        "improbability": (both + rare - likely - none) / 2.0,
        "interaction": (both - likely - rare + none) / 2.0,
    }


def draw(table: Mapping[str, Any]) -> Any:
    """Two languages at one strong common component, then all effects."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 3.0))
    left, middle, right = fig.subplots(1, 3, width_ratios=(1.0, 1.0, 1.15))
    levels = np.unique(table["level_nats_per_token"])
    middle.sharey(left)
    for ax, letter, language in ((left, "A", "facts"), (middle, "B", "markov")):
        for rho, (color, marker, name) in LINES.items():
            mean, half = np.array([_interval(_cell(table, language, STRONG, rho, level)) for level in levels]).T
            at = levels + ASIDE * 2.0 * (rho - 0.5)
            ax.errorbar(at, mean, half, color=color, marker=marker, ms=3.0, lw=1.4, capsize=1.5, label=name)
        ax.axhline(0.0, color=INK, lw=0.6, zorder=1)
        ax.set_xlabel("−log π(y⁻), nats a token")
        title(ax, letter, f"{NAMES[language]}, a = ½")
    middle.legend(title="coupling ρ of y⁻", loc="lower right", ncols=3, columnspacing=1.0, handlelength=1.2)
    left.set_ylabel("change of a test response, nats")
    middle.tick_params(labelleft=False)
    settings = [(language, share) for language in NAMES for share in np.unique(table["common_share"])]
    for i, (language, share) in enumerate(settings):
        for shift, (name, (color, marker)) in zip((-0.2, 0.0, 0.2), EFFECTS.items(), strict=True):
            mean, half = _interval(_effects(table, language, float(share))[name])
            label = name if i == 0 else None
            right.errorbar(mean, i + shift, xerr=half, color=color, marker=marker, ms=3.0, lw=1.2, ls="", label=label)
    right.axvline(0.0, color=INK, lw=0.6, zorder=1)
    right.set_yticks(
        range(len(settings)), [f"{NAMES[la]}\na = {f'{a:.1f}'.lstrip('0') if a else '0'}" for la, a in settings]
    )
    right.tick_params(axis="y", labelsize=6)
    right.invert_yaxis()
    right.set_xlabel("effect on a test response, nats")
    right.legend(loc="upper left", fontsize=6, frameon=False, handlelength=1.0, borderaxespad=0.1)
    title(right, "C", "Effects, all settings")
    return fig


def _check_push(levels: Any) -> None:
    """That a push on y⁻ is (1 − π_y)(e_y − q), at each level, with q of three other tokens."""
    q = np.array([0.0, 0.6, 0.3, 0.1])
    for level in levels:
        p = float(np.exp(-level))
        z = np.log(np.r_[p, (1.0 - p) * q[1:]])
        push = -sm.residual(z, 0, c=1.0)
        off = float(np.abs(push - (1.0 - p) * (np.eye(4)[0] - q)).max())
        require(off < 64 * EPS, f"at {level:g} nats a token the push is off (1 − π)(e − q) by {off:.3g}")


def check(table: Mapping[str, Any]) -> None:
    """The caption, and that a column is made anew as it stands in the table."""
    levels, shares, seeds = (np.unique(table[name]) for name in ("level_nats_per_token", "common_share", "seed"))
    size = "paper" if len(levels) == len(LEVELS["paper"]) else "smoke"
    for found, wanted in (
        (levels.tolist(), list(LEVELS[size])),
        (shares.tolist(), list(SHARES)),
        (np.unique(table["coupling_rho"]).tolist(), list(COUPLINGS)),
        (seeds.tolist(), list(range(SEED, SEED + SEEDS[size]))),
    ):
        require(found == wanted, f"expected the levels {wanted}, got {found}")
    _check_push(levels)
    for language in NAMES:
        for share in shares:
            where = f"{language}, a = {share:g}"
            found = {name: _interval(units) for name, units in _effects(table, language, float(share)).items()}
            mean, half = found["improbability"]
            require(mean - half > 0.0, f"{where}: a rare y⁻ spares by {mean:.3g} ± {half:.2g} nats")
            if share > 0.0:
                whole, error = found["coupling"]
                sure = error if share == STRONG else 0.0  # eight seeds are too few for the smaller effects
                require(whole + sure < 0.0, f"{where}: coupling costs {-whole:.3g} ± {error:.2g} nats")
                require(mean < -whole / 2.0, f"{where}: improbability {mean:.3g}, coupling {whole:.3g} nats")
        by_share = [_effects(table, language, float(share))["coupling"] for share in shares]
        for less, more in pairwise(by_share):
            added = _interval(less - more)[0]
            require(added > 0.0, f"{language}: a larger share adds {added:.3g} nats to what coupling costs")
        path = [_interval(_cell(table, language, STRONG, 1.0, level))[0] for level in levels]
        require((np.diff(path) > 0.0).all(), f"{language}: the fall does not shrink with improbability: {path}")
        late, end = (_interval(_cell(table, language, STRONG, 1.0, level))[0] for level in (MIDDLE, RARE))
        require(abs(end - late) < -end / 20.0, f"{language}: {late:.3g} at a token in 55, {end:.3g} at one in 300,000")
        spared = 1.0 - _interval(_cell(table, language, STRONG, 0.0, RARE))[0] / end
        require(spared > 0.5, f"{language}: without coupling {spared:.0%} of the fall is gone")
    known = np.isfinite(table["d_test_nats"]).mean()
    require(known > 0.9, f"{known:.1%} of the runs reach the margin")
    first = _made(range(int(seeds[0]), int(seeds[0]) + 1), "smoke")
    for i in range(len(first["seed"])):
        cell = {name: first[name][i] for name in first if name != "d_test_nats"}
        got = float(rows(table, **cell)["d_test_nats"][0])
        require(abs(got - first["d_test_nats"][i]) < 1e-5, f"{cell}: {got}, made anew {first['d_test_nats'][i]}")
