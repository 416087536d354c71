"""The plots of a run as inline SVG: byte-stable, nothing external, colours through the page's own variables.

matplotlib draws each line in one of a few marker colours; these become CSS variables, so that one picture serves the
light and the dark page. Lines differ in dash and marker too, areas in hatch, so that no colour has to be told apart.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.diagnosis import Verdict, classify_examples
from toyld.diagnosis.curves import Curves, curves
from toyld.diagnosis.resample import bootstrap_means, interval, known_mean
from toyld.report._words import nats, share, unit
from toyld.report.copying import NORMAL, copying

__all__ = ["SHADES", "Picture", "pictures"]

Floats = NDArray[np.float64]

MOST = 300  # evaluations drawn
# Drawn colour -> (variable, on light, on dark); what is drawn in it is also told apart by dash, marker or hatch.
SHADES: dict[str, tuple[str, str, str]] = {
    "#010101": ("ink", "#333333", "#dddddd"),
    "#020202": ("rule", "#b8b8b8", "#5a5a5a"),
    "#030303": ("gap", "#ececec", "#2c2c2c"),
    "#040404": ("chosen", "#0b3954", "#8cc8f0"),
    "#050505": ("argmax", "#d55e00", "#ff9a4d"),
    "#060606": ("rejected", "#6b6b6b", "#a8a8a8"),
    "#070707": ("c-squeezing", "#d55e00", "#d55e00"),
    "#080808": ("c-lagging", "#f0b27a", "#a85f1d"),
    "#090909": ("c-displacement", "#e6c200", "#b39700"),
    "#0a0a0a": ("c-divergence", "#0b3954", "#2d78a8"),
    "#0b0b0b": ("c-healthy", "#009e73", "#009e73"),
    "#0c0c0c": ("c-sft-normal", "#9ad0ec", "#4d8db0"),
    "#0d0d0d": ("c-rejection", "#cc79a7", "#a05a80"),
    "#0e0e0e": ("c-not-learning", "#dcdcdc", "#4a4a4a"),
    "#0f0f0f": ("c-cannot-tell", "#ffffff", "#1b1b1b"),
}
_INK, _RULE, _GAP, _CHOSEN, _ARGMAX, _REJECTED = list(SHADES)[:6]
_AREA = {name.removeprefix("c-"): drawn for drawn, (name, *_) in SHADES.items() if name.startswith("c-")}
_HATCH = {"squeezing": "//", "lagging": "..", "displacement": "\\\\", "divergence": "xx", "rejection": "--"}
_HATCH |= {"not-learning": "||", "cannot-tell": "oo", "sft-normal": "", "healthy": "++"}
_DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3)), (0, (3, 1)))
_MARKERS = "osD^vP*Xhd<>p"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "toyld",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "hatch.linewidth": 0.5,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}


class Picture(NamedTuple):
    """One plot: its title, what it shows in words (for those who cannot see it), and the SVG element."""

    title: str
    says: str
    svg: str


def _inline(fig: Any, says: str, key: str) -> str:
    """The figure as an SVG element for a page: no header, no outside names, ids of its own, colours by variable."""
    import html

    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = StringIO()
    # The pictures carry names from other people's files: a glyph that no font here has is the browser's business.
    with warnings.catch_warnings(), mpl.rc_context(_STYLE):
        warnings.simplefilter("ignore", UserWarning)
        FigureCanvasSVG(fig).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r"url\(#", f"url(#{key}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{key}-', body)
    for drawn, (name, *_) in SHADES.items():
        body = body.replace(drawn, f"var(--{name})")
    return f'<svg {box and box[0]} role="img" aria-label="{html.escape(says)}">{body}'


def _axes(height: float, right: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    fig = Figure(figsize=(5.2, height), facecolor="none")
    fig.subplots_adjust(left=0.135, right=right, top=0.97, bottom=0.45 / height)
    ax = fig.add_subplot(facecolor="none")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    return fig, ax


def _thin(n: int) -> NDArray[np.intp]:
    """The evaluations to draw: all, or MOST of them evenly, first and last included."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST)).round().astype(int))


def _every(n: int) -> int:
    return max(1, n // 8)


def _at_the_end(ax: Any, x: float, ends: list[tuple[float, str, str, str]]) -> None:
    """(height, name, colour, marker): names behind the ends of their lines, moved apart where they would overlap."""
    from matplotlib.transforms import ScaledTranslation

    low, high = ax.get_ylim()
    points = ax.get_position().height * ax.figure.get_figheight() * 72.0
    need = 10.5 * (high - low) / points
    beside = ax.transData + ScaledTranslation(8 / 72, 0, ax.figure.dpi_scale_trans)
    floor = low
    ends = sorted(ends)
    for i, (y, text, color, marker) in enumerate(ends):
        place = min(max(y, floor), high - need * (len(ends) - 1 - i))
        if marker:
            ax.plot([x], [place], marker, ms=3.4, color=color, transform=beside, clip_on=False)
        ax.annotate(text, (x, place), xytext=(13 if marker else 6, 0), textcoords="offset points", va="center",
                    color=color, fontsize=8.5, annotation_clip=False)  # fmt: skip
        floor = place + need
    ax.set_ylim(low, high)


def _lines(
    x: Floats,
    series: Mapping[str, tuple[Floats, Any, Any, str, str]],
    label: str,
    xlabel: str,
    *,
    height: float = 2.7,
    right: float = 0.79,
) -> tuple[Any, Any]:
    """Lines with bands: name -> (mean, low, high, colour, dash)."""
    fig, ax = _axes(height, right)
    for i, (mean, low, high, color, dash) in enumerate(series.values()):
        if low is not None:
            ax.fill_between(x, low, high, color=color, alpha=0.22, lw=0)
        ax.plot(x, mean, color=color, ls=dash, lw=1.5, marker=_MARKERS[i % len(_MARKERS)], ms=3.4,
                markevery=(i % _every(len(x)), _every(len(x))), mfc=color, mec=color)  # fmt: skip
    ax.set_xlabel(xlabel)
    ax.set_ylabel(label)
    if len(x) > 1:
        ax.set_xlim(x[0], x[-1])
    return fig, ax


def _ends(series: Mapping[str, tuple[Floats, Any, Any, str, str]]) -> list[tuple[float, str, str, str]]:
    out = []
    for i, (name, (mean, *_, color, _dash)) in enumerate(series.items()):
        known = mean[np.isfinite(mean)]
        if len(known):
            out.append((float(known[-1]), name, color, _MARKERS[i % len(_MARKERS)]))
    return out


def _summary(series: Mapping[str, tuple[Floats, Any, Any, str, str]]) -> str:
    parts = []
    for name, (mean, *_) in series.items():
        known = mean[np.isfinite(mean)]
        if len(known):
            parts.append(f"{name} {nats(float(known[0]), sign=False)} → {nats(float(known[-1]), sign=False)}")
    return ", ".join(parts)


def _paths(c: Curves, rows: NDArray[np.intp], xlabel: str, key: str) -> Iterator[Picture]:
    """Mean log-probability of chosen, argmax along its contexts, and rejected."""
    looks = {"argmax": (c.argmax, _ARGMAX, "--"), "chosen": (c.chosen, _CHOSEN, "-")}
    looks |= {"rejected": (c.rejected, _REJECTED, ":")}
    measured = {name: (a[rows], color, dash) for name, (a, color, dash) in looks.items() if a is not None}
    if not measured:
        return
    drawn = {}
    if not c.means_only:
        drawn = bootstrap_means({name: a - a[0] for name, (a, *_) in measured.items()})
    series = {}
    for name, (a, color, dash) in measured.items():
        mean, low, high = known_mean(a), None, None
        if name in drawn:
            low, high = (mean[0] + bound for bound in interval(drawn[name]))
        series[name] = (mean, low, high, color, dash)
    x = c.step[rows].astype(float)
    fig, ax = _lines(x, series, "log-probability, nats", xlabel)
    if {"argmax", "chosen"} <= set(series):
        ax.fill_between(x, series["chosen"][0], series["argmax"][0], color=_GAP, lw=0, zorder=0)
    _at_the_end(ax, x[-1], _ends(series))
    says = f"Mean log-probability per response, first to last: {_summary(series)}."
    if not c.means_only:
        says += " Bands: 95 % interval over examples of the change since the first evaluation."
    if {"argmax", "chosen"} <= set(series):
        says += " Shaded: the gap between argmax and chosen."
    yield Picture("Chosen, argmax and rejected", says, _inline(fig, says, f"{key}-paths"))


def _classes(c: Curves, rows: NDArray[np.intp], xlabel: str, key: str) -> Iterator[Picture]:
    """Share of the examples in each class, over evaluations."""
    if c.chosen is None or c.argmax is None or c.means_only or len(rows) < 2:
        return
    moved = [None if a is None else a[rows] - a[0] for a in (c.chosen, c.argmax, c.rejected)]
    if moved[0] is None or moved[1] is None:
        return
    kinds = classify_examples(moved[0], moved[1], moved[2], c.floor)
    order = [name for name in _HATCH if (kinds == name).any()]  # the worst at the bottom
    parts = np.stack([(kinds == name).mean(1) for name in order])
    x = c.step[rows].astype(float)
    fig, ax = _axes(2.4, 0.76)
    areas = ax.stackplot(x, 100 * parts, colors=[_AREA[name] for name in order])
    for area, name in zip(areas, order, strict=True):
        area.set_hatch(_HATCH[name] or None)
        area.set_edgecolor(_INK)
        area.set_linewidth(0.4)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(0, 100)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("examples, %")
    middle = 100 * (np.cumsum(parts, 0) - parts / 2)[:, -1]
    last = [
        (float(y), f"{name} {share(float(p))}", float(p))
        for y, name, p in zip(middle, order, parts[:, -1], strict=True)
    ]
    _at_the_end(ax, x[-1], [(y, text, _INK, "") for y, text, p in last if p > 0])
    says = "Share of the examples in each class, from the bottom; at the last evaluation: "
    says += ", ".join(text for _, text, _ in last) + "."
    yield Picture("What single examples do", says, _inline(fig, says, f"{key}-classes"))


def _others(c: Curves, rows: NDArray[np.intp], xlabel: str, key: str) -> Iterator[Picture]:
    """Change of the other probes."""
    others = {name: a for name, a in c.logp.items() if name not in ("chosen", "rejected")}
    if not others:
        return
    shown = {name: a for name, a in c.logp.items() if name in ("chosen", "rejected")} | others
    colors = {"chosen": _CHOSEN, "rejected": _REJECTED}
    series = {}
    for i, (name, a) in enumerate(shown.items()):
        change = known_mean(a[rows] - a[0])
        series[name] = (change, None, None, colors.get(name, _INK), _DASHES[i % len(_DASHES)])
    x = c.step[rows].astype(float)
    fig, ax = _lines(x, series, "change, nats", xlabel, height=max(2.7, 0.2 * len(series)), right=0.68)
    ax.axhline(0.0, color=_RULE, lw=0.8, zorder=0)
    _at_the_end(ax, x[-1], _ends(series))
    says = "Change of every probe's mean log-probability since the first evaluation: "
    says += ", ".join(f"{name} {nats(y)}" for y, name, *_ in sorted(_ends(series), reverse=True)) + "."
    yield Picture("Where the mass went: the other responses", says, _inline(fig, says, f"{key}-others"))


def _answers(ds: xr.Dataset, xlabel: str, key: str) -> Iterator[Picture]:
    """Accuracy of sampled answers, what of it stands without copying, and how many solutions are copied."""
    found = copying(ds)
    if found is None:
        return
    rows = _thin(len(found.step))
    bounds = found.intervals()
    series: dict[str, tuple[Floats, Any, Any, str, str]] = {}
    for label, name, color, dash in (("right", "accuracy", _CHOSEN, "-"), ("PreMem", "premem", _ARGMAX, "--")):
        low, high = (100 * bound[rows] for bound in bounds[name])
        series[label] = (100 * getattr(found, name)[rows].mean(1), low, high, color, dash)
    series["copied"] = (100 * found.copied[rows].mean(1), None, None, _REJECTED, ":")
    if found.held_out is not None:
        mean, error = (100 * values[rows] for values in found.held_out)
        low, high = (np.clip(mean + side * NORMAL * error, 0, 100) for side in (-1, 1))
        series["held out"] = (mean, low, high, _INK, "-.")
    x = found.step[rows].astype(float)
    fig, ax = _lines(x, series, "prompts, %", xlabel)
    ax.set_ylim(0, 100)
    _at_the_end(ax, x[-1], _ends(series))
    ends = ", ".join(f"{name} {share(y[0] / 100)} → {share(y[-1] / 100)}" for name, (y, *_) in series.items())
    says = f"First to last, means over {found.accuracy.shape[1]} prompts: {ends}. Right: sampled answers; copied: "
    says += f"solutions of perplexity up to {found.threshold:g}; PreMem: the best accuracy before copying, or the "
    says += "accuracy at this evaluation where that is less. Bands: 95 % interval over prompts."
    yield Picture("Right, and copied", says, _inline(fig, says, f"{key}-answers"))


def _rewards(ds: xr.Dataset, xlabel: str, key: str) -> Iterator[Picture]:
    """Rewards as logged."""
    for source in ("eval", "train"):
        names = {str(name) for name in ds.data_vars}
        found = {part: f"{source}_rewards_{part}" for part in ("chosen", "rejected", "margins")}
        found = {part: name for part, name in found.items() if name in names}
        if not found:
            continue
        values = {part: np.nanmean(ds[name].values, axis=0) for part, name in found.items()}
        kept = np.flatnonzero(np.any([np.isfinite(v) for v in values.values()], axis=0))
        kept = kept[_thin(len(kept))]
        looks = {"chosen": (_CHOSEN, "-"), "rejected": (_REJECTED, ":"), "margins": (_ARGMAX, "--")}
        series = {part: (v[kept], None, None, *looks[part]) for part, v in values.items()}
        x = ds.step.values[kept].astype(float)
        fig, ax = _lines(x, series, "reward, as logged", xlabel)
        ax.axhline(0.0, color=_RULE, lw=0.8, zorder=0)
        _at_the_end(ax, x[-1], _ends(series))
        what = "evaluation" if source == "eval" else "training batches"
        says = f"Implicit rewards β(log π − log π_ref) as logged, {what}, first to last: {_summary(series)}."
        yield Picture(f"Rewards ({what})", says, _inline(fig, says, f"{key}-{source}-rewards"))


def pictures(ds: xr.Dataset, verdict: Verdict, /, *, key: str) -> list[Picture]:
    """Every plot that the table has numbers for; `key` begins every id in them.

    >>> from toyld.diagnosis import diagnose
    >>> from toyld.trajectory import trajectory
    >>> ds = trajectory({"logp": [[[[-3.0]], [[-2.5]]]]}, step=[0, 10], probe=["chosen"])
    >>> [picture.title for picture in pictures(ds, diagnose(ds), key="a")]
    ['Chosen, argmax and rejected']
    """
    import matplotlib as mpl

    c, xlabel, out = curves(ds), unit(ds), []
    with warnings.catch_warnings(), mpl.rc_context(_STYLE):
        warnings.simplefilter("ignore", (UserWarning, RuntimeWarning))
        rows = _thin(len(c.step)) if c.logp and len(c.step) else np.zeros(0, int)
        if len(rows):
            for draw in (_paths, _classes, _others):
                out += list(draw(c, rows, xlabel, key))
        out += [*_answers(ds, xlabel, key), *_rewards(ds, xlabel, key)]
    return out
