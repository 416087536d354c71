"""The figures: found by their files, byte-stable, re-plotted from their data, and wrong data turns their checks red."""

from __future__ import annotations

import doctest
import functools
import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure

from toyld import claims, figures
from toyld import softmax as sm
from toyld.checked import BadInput
from toyld.figures import _look, _notebook, _render
from toyld.figures._registry import from_module
from toyld.figures._table import rows

FIGURES = figures.every()
# A figure that reads files is drawn only where they are; every other one is drawn everywhere.
NEEDS_NOTHING = [slug for slug, figure in FIGURES.items() if figure.reads is None]
PICTURED = {"learning_a_four", "rank_stability", "zigzag"}
# Networks are trained with gradients of their own, not by `softmax.residual`: other bugs are planted there.
DIGITS = {"learning_a_four", "rank_stability", "squeezing_in_networks", "zigzag"}
Drawn = Callable[[str], Path]
# Drawn from evidence that comes with the package.
RECORDED = {"premem_curation", "premem_over_recipes", "sft_and_dpo_in_a_language_model"}
TINY = {slug for slug, figure in FIGURES.items() if "tiny" in figure.tags} - RECORDED
TRAINED = DIGITS | TINY
QUICK = "threshold_and_winners"
# A module that is a figure.
WHOLE = (
    '"""Title\n\nOn `squeeze.threshold-law`."""\ndef data(size): pass\ndef draw(table): pass\ndef check(table): pass\n'
)


def test_an_interval_is_students_and_nan_where_seeds_are_too_few() -> None:
    from scipy.stats import ttest_1samp

    units = np.random.default_rng(0).normal(1.0, 2.0, 7)
    low, high = ttest_1samp(units, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(_look.interval(units), (units.mean(), low, high), rtol=1e-12)
    np.testing.assert_array_equal(_look.interval(units[:1]), (units[0], np.nan, np.nan))
    np.testing.assert_array_equal(_look.interval([]), (np.nan, np.nan, np.nan))
    assert doctest.testmod(_look) == (0, 1)


def available(slug: str) -> figures.Figure:
    figure = FIGURES[slug]
    try:
        figure.inputs()
    except figures.MissingInput as missing:
        pytest.skip(str(missing))
    return figure


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """The folder with a figure at smoke size, whose check held; each is drawn once, when it is first asked for."""
    out = tmp_path_factory.mktemp("figures")

    @functools.cache
    def draw(slug: str) -> Path:
        assert figures.render(only=(slug,), size="smoke", out=out, check=True) == 0
        return out

    return draw


# --- the numbers of the paper's notebook ----------------------------------------------------------------------------

# panel: rate, label, then (probability before, after) of the label and of y*, as published for seed 10086
NOTEBOOK = {
    "A": (0.5, 21, (".072", ".947"), None),
    "B": (0.3, 42, (".0233", ".00106"), None),
    "C": (0.5, 11, (".0293", "4.6e-6"), (".7627", ".9871")),
    "D": (0.5, 42, ("4.0e-10", "5.5e-14"), (".7627", ".9863")),
    "D pair": (0.5, 42, None, (".7627", ".7627")),
}


def rounds_to(value: float, digits: str) -> bool:
    """Whether `value` printed with as many significant digits is the published number."""
    places = len(digits.split("e")[0].replace(".", "").lstrip("0"))
    return float(f"{value:.{places - 1}e}") == float(digits)


@pytest.mark.parametrize("name", NOTEBOOK)
def test_panels_of_the_papers_notebook(name: str) -> None:
    rate, label, published_label, published_star = NOTEBOOK[name]
    panel = {p.name: p for p in _notebook.panels()}[name]
    before, after = sm.softmax(panel.z), sm.softmax(sm.step(panel.z, panel.residual, s=panel.s))
    star = int(sm.runner_up(panel.z, panel.label))
    assert panel.label == label
    assert round(panel.s / rate, 3) == 10.397  # ‖x‖²
    for i, published in ((label, published_label), (star, published_star)):
        if published is not None:
            assert [rounds_to(p[i], d) for p, d in zip((before, after), published, strict=True)] == [True, True], (
                f"{before[i]} → {after[i]}, published {published}"
            )


def test_counts_and_limits_of_the_papers_notebook() -> None:
    panel = {p.name: p for p in _notebook.panels()}
    fell = {}
    for name, one in panel.items():
        change = sm.log_softmax(sm.step(one.z, one.residual, s=one.s)) - sm.log_softmax(one.z)
        fell[name] = int((np.delete(change, one.label) < 0).sum())
    assert (fell["A"], fell["B"], fell["C"], fell["D"], fell["E"]) == (49, 0, 48, 48, 998)
    assert round(float(sm.threshold_limit(panel["B"].z, 42)), 4) == -0.0027
    assert round(-float(sm.valley_depth(panel["C"].z, 11)), 1) == -2.8
    one = panel["D"]
    entropies = sm.entropy(one.z), sm.entropy(sm.step(one.z, one.residual, s=one.s))
    assert [round(float(h), 3) for h in entropies] == [0.717, 0.078]


def test_the_notebook_leaves_numpys_global_generator_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    _notebook.panels()
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


# --- discovery --------------------------------------------------------------------------------------------------------


def test_a_file_is_the_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added_here.py").write_text(
        '"""A title\n\nA caption about `squeeze.threshold-law`."""\n'
        "def data(size): return {'x': [1.0]}\ndef draw(table): pass\ndef check(table): pass\n"
    )
    (tmp_path / "_a_tool.py").write_text("raise RuntimeError\n")
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path)])
    try:
        found = figures.every()
    finally:
        sys.modules.pop("toyld.figures.added_here", None)
        vars(figures).pop("added_here", None)
    assert found["added_here"].title == "A title"
    assert found["added_here"].claims == ("squeeze.threshold-law",)
    assert set(found) - {"added_here"} == set(FIGURES)
    modules = {p.stem for p in Path(figures.__file__).parent.glob("*.py") if not p.stem.startswith("_")}
    assert set(FIGURES) == modules


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('"""Title only."""', "one title line"),
        ('"""Title\n\nA caption without a claim."""', "names claims"),
        ('"""Title\n\nOn `squeeze.threshold-law`."""\ndef data(size): pass', "no draw, check"),
        (f"{WHOLE}PAPER = 'Fig. 4'\n", r"expected DIFFERS, .*\(Fig. 4\), got none"),
        (f"{WHOLE}COST = 'a week'\n", "expected COST to be one of seconds, half a minute, got 'a week'"),
    ],
)
def test_a_module_that_is_no_figure_is_refused(source: str, message: str) -> None:
    module = type(sys)("toyld.figures.bad")
    exec(source, vars(module))
    with pytest.raises(figures.FigureError, match=message):
        from_module(module)


@pytest.mark.parametrize("slug", FIGURES)
def test_every_claim_in_a_caption_is_in_the_registry(slug: str) -> None:
    known = claims.every()
    assert FIGURES[slug].claims
    assert [id for id in FIGURES[slug].claims if id not in known] == []


def test_globs_and_tags_select_and_a_wrong_one_lists_the_slugs() -> None:
    assert [f.slug for f in figures.select(["squeezing_p*"])] == ["squeezing_panels"]
    assert "rare_label" in [f.slug for f in figures.select(["squeezing"])]  # a tag
    with pytest.raises(figures.FigureError, match=f"got 'nonsense' .*{QUICK}"):
        figures.select(["nonsense"])


def test_importing_the_package_draws_nothing() -> None:
    code = "import sys, toyld.figures; sys.exit(any(m.split('.')[0] in ('matplotlib', 'torch') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", FIGURES)
def test_bytes_are_the_same_in_every_run(slug: str, drawn: Drawn, tmp_path: Path) -> None:
    available(slug)
    with mpl.rc_context({"font.size": 19.0, "svg.hashsalt": None, "axes.facecolor": "red"}):  # a user's own settings
        assert figures.render(only=(slug,), size="smoke", out=tmp_path) == 0
    for kind in ("png", "svg", "csv"):
        first, again = (folder / f"{slug}.{kind}" for folder in (drawn(slug), tmp_path))
        same = first.read_bytes() == again.read_bytes()  # not in the assert: pytest would spell out the difference
        if slug in TRAINED and kind != "csv":
            continue  # drawn from numbers that are the same to rounding
        if slug in TRAINED and not same:  # sums in float32 may depend on where in memory a process puts its numbers
            one, two = (figures.read_table(file.read_text()) for file in (first, again))
            same = all(
                np.allclose(one[n], two[n], rtol=1e-2, atol=1e-3, equal_nan=True)
                if one[n].dtype.kind == "f"
                else bool((one[n] == two[n]).all())
                for n in one
            )
        assert same, f"{slug}.{kind} changed between two runs"
    svg = (tmp_path / f"{slug}.svg").read_text()
    assert "<dc:date>" not in svg
    assert str(Path.cwd()) not in svg


@pytest.mark.parametrize("slug", FIGURES)
def test_from_data_is_the_same_picture(
    slug: str, drawn: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    available(slug)
    (tmp_path / f"{slug}.csv").write_bytes((drawn(slug) / f"{slug}.csv").read_bytes())
    monkeypatch.delenv("TOYLD_DATA", raising=False)  # no input is read
    module = importlib.import_module(f"toyld.figures.{slug}")
    monkeypatch.setattr(module, "data", lambda size: pytest.fail("computed"))
    assert figures.render(only=(slug,), out=tmp_path, from_data=True, check=True, format="png") == 0
    same = (tmp_path / f"{slug}.png").read_bytes() == (drawn(slug) / f"{slug}.png").read_bytes()
    assert same, f"{slug}.png from its CSV differs from the first drawing"


@pytest.fixture(scope="module")
def plotted(drawn: Drawn) -> Callable[[str], Any]:
    """A figure at smoke size as matplotlib's object; each is made once."""
    return functools.cache(
        lambda slug: figures.draw(slug, figures.read_table((drawn(slug) / f"{slug}.csv").read_text()))
    )


@pytest.mark.parametrize("slug", FIGURES)
def test_axes_are_labelled_and_finite(slug: str, plotted: Callable[[str], Any]) -> None:
    available(slug)
    fig = plotted(slug)
    assert round(fig.get_figwidth(), 2) == 5.5
    axes = fig.axes
    assert all(np.isfinite([*ax.get_xlim(), *ax.get_ylim()]).all() for ax in axes)
    titled = [bool(ax.get_title(loc="left")) for ax in axes]
    # Pictures of digits, bars below a titled picture, and colour bars carry no title of their own.
    assert all(titled) or (slug in PICTURED and titled.count(True) >= 4)
    assert [bool(ax.get_xlabel()) for ax in axes].count(True) >= 1
    assert [bool(ax.get_ylabel()) for ax in axes].count(True) >= 1
    fig.draw_without_rendering()
    words = [
        (text.get_text(), text.get_window_extent())
        for ax in axes
        for text in [*ax.texts, ax.xaxis.label, ax.yaxis.label, ax._left_title]
        if text.get_text()
    ]
    for text, box in words:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= fig.bbox.x1 and box.y1 <= fig.bbox.y1
        assert inside, f"{text!r} leaves the picture: {box}"
    for i, (text, box) in enumerate(words):
        assert [other for other, there in words[:i] if box.overlaps(there)] == [], text


# Linear RGB as a dichromat sees it (Machado, Oliveira & Fernandes 2009, severity 1).
SEEN = {
    "deuteranope": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanope": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "everybody": np.eye(3),
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
# Seen at a glance: steps of colour, and of lightness out of 100.
COLOUR, LIGHTNESS = 15.0, 10.0


def lab(color: Any, sight: str = "everybody") -> np.ndarray:
    """CIE L*a*b* of a colour (sRGB, D65) as it is seen."""
    rgb = np.array(colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = XYZ @ np.clip(SEEN[sight] @ linear, 0.0, 1.0) / XYZ.sum(1)
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def alike(ax: Any) -> list[tuple[Any, ...]]:
    """Pairs of curves of a panel that nothing but a colour tells apart which not everybody sees, or not on grey paper.

    Reference lines (thin, or in axes coordinates) and entries of the legend do not count.
    """
    curves = set()
    for line in ax.lines:
        marked = line.get_marker() not in ("None", "", None)
        thick = marked or line.get_linewidth() > 0.9
        if thick and len(line.get_xdata()) > 1 and line.get_transform() == ax.transData:
            look = str(line._unscaled_dash_pattern), str(line.get_marker()), str(line.get_markerfacecolor()) == "white"
            curves.add((look, colors.to_hex(line.get_color())))
    found = []
    for (look, one), (other_look, other) in itertools.combinations(sorted(curves), 2):
        if look == other_look:
            apart = {sight: float(np.linalg.norm(lab(one, sight) - lab(other, sight))) for sight in SEEN}
            grey = abs(lab(one)[0] - lab(other)[0])
            if min(apart.values()) < COLOUR or grey < LIGHTNESS:
                found.append((one, other, look, apart, grey))
    return found


@pytest.mark.parametrize("slug", FIGURES)
def test_curves_of_a_panel_are_told_apart_by_everybody_and_on_grey_paper(
    slug: str, plotted: Callable[[str], Any]
) -> None:
    available(slug)
    fig = plotted(slug)
    assert [pair for ax in fig.axes for pair in alike(ax)] == []


def test_the_measure_of_colours_is_cies_and_finds_what_is_alike() -> None:
    np.testing.assert_allclose(lab("white"), (100.0, 0.0, 0.0), atol=0.01)
    np.testing.assert_allclose(lab("#FF0000"), (53.24, 80.09, 67.20), atol=0.01)  # the published values of sRGB red
    for sight in SEEN:
        np.testing.assert_allclose(lab("#777777", sight)[1:], 0.0, atol=0.05)  # greys stay grey
    fig = Figure()
    green, grey, dashed = fig.subplots(1, 3)
    green.plot([0, 1], [0, 1], color="#00A000", lw=1.5)
    green.plot([0, 1], [1, 0], color="#C07000", lw=1.5)  # one colour to a deuteranope
    grey.plot([0, 1], [0, 1], color="#4C7A5D", lw=1.5)
    grey.plot([0, 1], [1, 0], color="#8C6BB1", lw=1.5)  # one on grey paper
    grey.axhline(0.0, color="#777777", lw=1.5)
    dashed.plot([0, 1], [0, 1], color="#4C7A5D", lw=1.5)
    dashed.plot([0, 1], [1, 0], color="#8C6BB1", lw=1.5, ls="--")
    (first,), (second,) = alike(green), alike(grey)
    assert first[3]["deuteranope"] < COLOUR < first[3]["everybody"]
    assert second[4] < LIGHTNESS < COLOUR < min(second[3].values())
    assert alike(dashed) == []


def test_style_leaves_no_trace() -> None:
    before = dict(mpl.rcParams)
    with _render.styled():
        assert mpl.rcParams["svg.hashsalt"] == "toyld"
    assert dict(mpl.rcParams) == before
    assert "matplotlib.pyplot" not in {m for f in FIGURES.values() for m in vars(sys.modules[f.data.__module__])}


# --- checks that can fail ---------------------------------------------------------------------------------------------

# Columns that place a row and claim nothing by themselves.
PLACES = {"rank", "class_index", "evaluation", "examples_in_log"}


@pytest.mark.parametrize("slug", FIGURES)
def test_wrong_data_turns_the_check_red(slug: str) -> None:
    """Shift every numeric column by 5 % of its spread, one at a time: the check has to notice."""
    figure = available(slug)
    table = figures.read_table(figures.write_table(figure.data("smoke")))
    figure.check(table)
    unnoticed = []
    for name, column in table.items():
        if column.dtype.kind != "f" or name in PLACES:
            continue
        finite = column[np.isfinite(column)]
        spread = np.ptp(finite) or 1.0
        message = ""
        try:
            with np.errstate(all="ignore"):
                figure.check({**table, name: column + 0.05 * spread})
        except AssertionError as failed:
            message = str(failed)
        if not any(c.isdigit() for c in message):
            unnoticed.append((name, message))
    assert unnoticed == []


@pytest.mark.parametrize("slug", [s for s in NEEDS_NOTHING if s not in {"loss_zoo", *TRAINED, *RECORDED}])
def test_a_planted_sign_error_turns_the_check_red(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = FIGURES[slug]
    right = sm.residual
    monkeypatch.setattr(sm, "residual", lambda z, y, *, c=1.0: right(z, y, c=-c))
    with pytest.raises((AssertionError, ValueError)):  # ValueError: no root where theory has one
        figure.check(figures.read_table(figures.write_table(figure.data("smoke"))))


def exchanged(name: str, one: str, other: str) -> Callable[[Any], Any]:
    """Evidence with two values of a column in each other's place."""

    def wrong(table: Any) -> Any:
        column = np.asarray(table[name])
        return table | {name: np.where(column == one, other, np.where(column == other, one, column))}

    return wrong


# Figure -> other evidence than what was recorded.
OTHER: dict[str, dict[str, Callable[[Any], Any]]] = {
    "sft_and_dpo_in_a_language_model": {
        "turned round": lambda t: t | {"mean": -t["mean"], "low": -t["high"], "high": -t["low"]},
        "stages exchanged": exchanged("stage", "sft", "dpo"),
    },
    "premem_over_recipes": {
        "training accuracy in its place": lambda t: t | {name: t["train"] for name in t if name.startswith("premem_")},
        "runs exchanged": lambda t: t | {"test": t["test"][::-1]},
        "as good as was reported": lambda t: t | {name: t["test"] for name in t if name.startswith("premem_")},
        "a rival as good": lambda t: t | {"distance": t["test"]},
    },
    "premem_curation": {
        "rules exchanged": exchanged("arm", "low", "high"),
        "sizes turned round": lambda t: t | {"test": 1.0 - t["test"]},
        "more than was reported": lambda t: t | {"test": t["test"] + 0.2 * (t["arm"] == "low")},
        "better than its rivals": lambda t: (
            t | {"test": t["test"] - 0.05 * np.isin(t["arm"], ["low-train", "low-before", "surprising"])}
        ),
    },
}


@pytest.mark.parametrize(("slug", "wrong"), [(slug, wrong) for slug in sorted(RECORDED) for wrong in OTHER[slug]])
def test_other_evidence_than_was_recorded_turns_the_check_red(
    slug: str, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure, module = FIGURES[slug], importlib.import_module(f"toyld.figures.{slug}")
    recorded = module.load()
    monkeypatch.setattr(module, "load", lambda: OTHER[slug][wrong](recorded))
    with pytest.raises(AssertionError, match=r"\d"):
        figure.check(figures.read_table(figures.write_table(figure.data("smoke"))))


@pytest.mark.parametrize("slug", sorted(TINY))
def test_fine_tuning_uphill_turns_the_check_red(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from toyld.contexts.rows import Rows
    from toyld.tiny.experiments import _worlds
    from toyld.trajectory import experiments

    def forget() -> None:
        """What was fine-tuned and is kept; models that are only pretrained stay."""
        experiments._run.cache_clear()
        for name, module in list(sys.modules.items()):
            if name.startswith("toyld.tiny.experiments"):
                for kept in vars(module).values():
                    if kept is not _worlds._world and hasattr(kept, "cache_clear"):
                        kept.cache_clear()

    figure, right = FIGURES[slug], Rows.residual
    monkeypatch.setattr(Rows, "residual", lambda *args, **options: -right(*args, **options))
    forget()
    try:
        with pytest.raises((AssertionError, ValueError)):  # ValueError: an ascent that comes apart
            figure.check(figures.read_table(figures.write_table(figure.data("smoke"))))
    finally:
        forget()


@pytest.mark.parametrize("slug", sorted(DIGITS))
def test_training_uphill_turns_the_check_red(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from toyld.digits import Recipe

    figure, right = FIGURES[slug], Recipe.rate
    monkeypatch.setattr(Recipe, "rate", lambda self, update, n: -right(self, update, n))
    with pytest.raises((AssertionError, ValueError)):  # ValueError: an ascent that comes apart
        figure.check(figures.read_table(figures.write_table(figure.data("smoke"))))


def test_a_planted_error_in_a_loss_turns_the_zoos_check_red(monkeypatch: pytest.MonkeyPatch) -> None:
    from toyld import objectives

    right = objectives.NPO.coefficients
    monkeypatch.setattr(objectives.NPO, "coefficients", lambda self, batch: tuple(2 * c for c in right(self, batch)))
    with pytest.raises(AssertionError, match="npo"):
        FIGURES["loss_zoo"].check(FIGURES["loss_zoo"].data("smoke"))


# --- the command ------------------------------------------------------------------------------------------------------


def fail_check(monkeypatch: pytest.MonkeyPatch, slug: str, error: Exception) -> None:
    def check(table: Any) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module(f"toyld.figures.{slug}"), "check", check)


def test_a_failed_check_exits_1_and_the_others_are_still_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_check(monkeypatch, "rare_label", AssertionError("expected 2,\n got 3"))
    run = {"only": ("rare_label", QUICK), "size": "smoke", "out": tmp_path, "format": "png"}
    assert figures.render(**run, check=True) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("rare_label")
    assert first.endswith("check failed: expected 2, got 3")
    assert second.startswith(QUICK)
    assert second.endswith("check holds")
    assert (tmp_path / f"{QUICK}.png").exists()
    assert json.loads((tmp_path / "rare_label.json").read_text())["check"] == "check failed: expected 2, got 3"
    assert figures.render(**run) == 0  # without --check nothing is asserted, and the line says so
    assert [line.endswith("not checked") for line in capsys.readouterr().out.splitlines()] == [True, True]


def test_a_figure_that_breaks_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: str) -> Any:
        raise TypeError("a bug")

    monkeypatch.setattr(importlib.import_module("toyld.figures.rare_label"), "data", broken)
    with pytest.raises(ExceptionGroup, match="rare_label") as caught:
        figures.render(only=("rare_label", QUICK), size="smoke", out=tmp_path, format="svg")
    assert [str(e) for e in caught.value.exceptions] == ["a bug"]
    made = {f"{QUICK}.{kind}" for kind in ("svg", "csv", "json")}
    assert {p.name for p in tmp_path.iterdir()} == {*made, "index.html", "manifest.json"}


def test_missing_input_is_skipped_with_the_line_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TOYLD_DATA", raising=False)
    assert figures.render(only=("published_runs",), out=tmp_path, check=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "skipped: TOYLD_DATA is not set; point it to a folder with runs/authors" in line
    monkeypatch.setenv("TOYLD_DATA", str(tmp_path))
    assert figures.render(only=("published_runs",), out=tmp_path, from_data=True) == 0
    assert "skipped: $TOYLD_DATA/runs/authors lacks pythia410_baseline_sft" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ("nonsense",)}, "matches none of"),
        ({"size": "huge"}, "expected smoke or paper"),
        ({"format": "png,jpg"}, "expected some of png, svg, pdf"),
        ({"out": Path(__file__)}, "expected a folder that can be written, got .*test_figures.py"),
        ({"out": Path(__file__) / "below"}, "expected a folder that can be written"),
        ({"out": Path(__file__), "from_data": True}, "expected a folder that can be written"),
        ({"out": Path("a\0b")}, "expected a folder that can be written"),
        pytest.param(
            {"out": Path("/proc/nope")},
            "expected a folder that can be written, got '/proc/nope'",
            marks=pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here"),
        ),
    ],
)
def test_a_bad_request_is_one_line_and_draws_nothing(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(figures.FigureError, match=message) as caught:
        figures.render(**{"out": tmp_path, **arguments})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_from_data_without_data_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.render(only=(QUICK,), out=tmp_path, from_data=True) == 2
    assert "run without --from-data" in capsys.readouterr().out
    (tmp_path / f"{QUICK}.csv").write_text("a,b\n1,2\n")
    assert figures.render(only=(QUICK,), out=tmp_path, from_data=True) == 2
    assert "expected the columns that this version writes" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["toyld.figures", "toyld.cli"])
def test_the_module_and_the_command_are_one(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from toyld import cli

    def by_module() -> None:
        runpy.run_module("toyld.figures", run_name="__main__")

    def run(*arguments: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["toyld.figures", *arguments])
        start = (lambda: cli.main(["figures", *arguments])) if command == "toyld.cli" else by_module
        with pytest.raises(SystemExit) as end:
            start()
        return end.value.code, "".join(capsys.readouterr())

    code, text = run("--list")
    assert code == 0
    assert all(f"{slug} " in text for slug in FIGURES)
    assert all(id in text for figure in FIGURES.values() for id in figure.claims)
    code, text = run("--only", "rare*", QUICK, "--size", "smoke", "--out", str(tmp_path), "--format", "svg", "--check")
    assert code == 0
    assert text.count("check holds") == 2
    for arguments, words in (
        (("--only", "nonsense", "--out", str(tmp_path)), QUICK),
        (("--only", QUICK, "--out", __file__), "expected a folder that can be written, got"),
    ):
        code, text = run(*arguments)
        assert code == 2
        assert len(text.splitlines()) == 1
        assert words in text


# --- the files --------------------------------------------------------------------------------------------------------


def test_provenance(drawn: Drawn) -> None:
    about = json.loads((drawn("squeezing_panels") / "squeezing_panels.json").read_text())
    assert about["seed"] == 10086
    assert about["size"] == "smoke"
    assert about["check"] == "check holds"
    assert about["command"] == "python -m toyld.figures --only squeezing_panels --format png,svg --size smoke --check"
    assert {c["id"]: c["expect"] for c in about["claims"]} == {
        id: claims.every()[id].expect for id in FIGURES["squeezing_panels"].claims
    }
    assert datetime.fromisoformat(about["date"]).utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(about["date"])) < timedelta(days=1)
    assert set(about) >= {"commit", "dirty", "versions", "seconds", "csv_sha256", "inputs_sha256", "paper", "caption"}


def test_the_date_honours_source_date_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"only": (QUICK,), "size": "smoke", "out": tmp_path, "format": "svg"}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert figures.render(**run) == 0
    assert json.loads((tmp_path / f"{QUICK}.json").read_text())["date"] == "1970-01-02T00:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(figures.FigureError, match="SOURCE_DATE_EPOCH: expected whole seconds since 1970"):
        figures.render(**run)


def test_bad_input_is_told_from_bugs() -> None:
    assert issubclass(figures.FigureError, BadInput)
    assert issubclass(figures.MissingInput, BadInput)


def test_provenance_names_the_files_that_were_read(drawn: Drawn) -> None:
    available("published_runs")
    about = json.loads((drawn("published_runs") / "published_runs.json").read_text())
    assert "prob_pythia410m_dpo/prob_train_metrics.json" in about["inputs_sha256"]
    assert os.environ["TOYLD_DATA"] not in json.dumps(about)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.csv"
    target.write_text("old")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        _render.write_whole(target, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert target.read_text() == "old"


def test_a_table_survives_csv_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal(50) * 10.0 ** rng.integers(-300, 300, 50)
    hard = np.concatenate([wide, [np.nan, np.inf, -0.0, 5e-324]])
    table = {"x": hard, "n": np.arange(54), "name": np.array([f'a,"{i}' for i in range(54)])}
    back = figures.read_table(figures.write_table(table))
    assert [c.dtype.kind for c in back.values()] == ["f", "i", "U"]
    assert (back["x"].view(np.int64) == hard.view(np.int64)).all()
    assert (back["name"] == table["name"]).all()
    assert (back["n"] == table["n"]).all()
    assert rows(back, n=3)["name"].tolist() == ['a,"3']


@pytest.mark.parametrize(
    "table",
    [
        {"x": np.zeros(2), "y": np.zeros(3)},
        {"x": np.zeros((2, 2))},
        {"x": np.zeros(0)},
        {"x": np.array(["1", "2"])},
        {"x": np.array([True])},
        {"x": np.array([None])},
    ],
    ids=["lengths", "matrix", "empty", "numbers as text", "booleans", "objects"],
)
def test_a_table_that_csv_would_change_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(figures.FigureError):
        figures.write_table(table)
