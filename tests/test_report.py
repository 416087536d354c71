"""Reports: the printout and the page say the same, survive hostile names, and need no colour and no network."""

import io
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from toyld.diagnosis import CLASSES, EXAMPLE_CLASSES, diagnose, reasons
from toyld.report import _words, html, pictures, printout
from toyld.trajectory import add_note, trajectory

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too' [bold red]x[/bold red] $\\alpha$ ünï 漢 \x1b[31m\nb"


def run(name="a/run", *, chosen=-5.0, argmax=20.0, n=30, probes=("irr_test", "random_permute"), evaluations=12):
    rng = np.random.default_rng(3)
    t = np.linspace(0, 1, evaluations)[:, None, None]
    starts = np.array([-150.0, -120.0, *(-200.0,) * len(probes)])[:, None] * rng.uniform(0.8, 1.2, n)
    moved = np.array([chosen, -60.0, *(-40.0,) * len(probes)])[:, None] * rng.uniform(0.5, 1.5, n)
    top = np.full((evaluations, len(starts), n), np.nan)
    top[:, 0] = starts[0] * 0.4 + argmax * t[:, :, 0]
    values = {"logp": (starts + t * moved)[None], "argmax_logp": top[None]}
    names = ["chosen", "rejected", *probes]
    ds = trajectory(values, step=100 * np.arange(evaluations), probe=names, example=[f"e{i}" for i in range(n)])
    return name, ds, diagnose(ds)


def rewards(name="trl"):
    """A log of rewards: means only, no argmax."""
    n = 9
    values = {"logp": np.linspace(-250, -300, n).reshape(1, n, 1, 1)}
    values |= {
        f"eval_rewards_{k}": np.linspace(0, x, n)[None] for k, x in (("chosen", -4), ("rejected", -8), ("margins", 4))
    }
    ds = trajectory(values, step=np.arange(1, 1 + n), probe=["chosen"], has_step0=False)
    return name, ds, diagnose(ds)


@pytest.fixture(scope="module")
def entries():
    name, ds, _ = run(HOSTILE, probes=("irr_test", "p$_$ <b> & 漢"))
    ds = add_note(ds, "means-only", "note with <b>markup</b> & [red]tags[/red]")
    return [run(), (name, ds, diagnose(ds)), rewards(), ("gone", "expected a <log>, got [b]nothing[/b]: look")]


@pytest.fixture(scope="module")
def page(entries):
    return html(entries)


class Check(HTMLParser):
    """Balanced tags, ids, references and attributes of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.errors, self.tags, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        self.errors += [f"never closed: {tag}" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        names = [k for k, _ in attrs]
        if len(set(names)) < len(names):
            self.errors.append(f"an attribute twice: {tag}")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"closed out of order: {tag}")

    def handle_data(self, data):
        self.text += data


def test_the_page_is_balanced_and_its_ids_are_its_own(page):
    seen = Check(page)
    assert seen.errors == []
    ids = [a["id"] for _, a in seen.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    inside = [a["href"] for _, a in seen.tags if "href" in a] + re.findall(r"url\((#[^)]*)\)", page)
    assert inside
    assert {ref[1:] for ref in inside if ref.startswith("#")} <= set(ids)


def test_the_page_needs_nothing_from_outside(page):
    seen = Check(page)
    assert all(a["href"].startswith("#") for _, a in seen.tags if "href" in a)
    assert "http" not in page
    assert not any(
        name in a for _, a in seen.tags for name in ("src", "srcset", "xlink:href", "xmlns", "action", "data")
    )
    assert not {tag for tag, _ in seen.tags} & {"script", "iframe", "link", "object", "embed", "img", "base"}
    assert all(ref.startswith("#") for ref in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page


def test_the_page_escapes_names_notes_and_errors(page):
    assert "<script>" not in page
    assert escape(_words.clean(HOSTILE)) in page
    assert "note with &lt;b&gt;markup&lt;/b&gt;" in page
    assert "expected a &lt;log&gt;" in page
    assert "p$_$ &lt;b&gt; &amp; 漢" in page
    assert "\x1b" not in page


def test_the_page_is_the_same_bytes_for_the_same_runs(entries, page):
    assert html(entries) == page


def test_the_page_has_what_is_behind_each_verdict(entries, page):
    text = " ".join(Check(page).text.split())
    for entry in entries:
        if len(entry) == 3:
            _, ds, v = entry
            for _, change, path in _words.moves(v):
                assert change in text
                assert path in text
            for item in v.advice:
                assert " ".join(_words.clean(item["evidence"]).split()) in text
            for name, lines in _words.facts(ds, v):
                assert name in ("numbers", "found", "missing", "means", "30 examples") or all(
                    " ".join(line.split()) in text for line in lines
                ), name
            assert all(f"{note['code']}: {_words.plain(note['text'])}" in text for note in v.findings)
            assert all(name in text for name in _words.missing(v))
    for value, why in reasons().values():
        assert why in text
        assert f"{value:g}" in text
    for title in (
        "Chosen, argmax and rejected",
        "What single examples do",
        "Where the mass went",
        "Rewards (evaluation)",
    ):
        assert title in text
    assert "Could not be read" in text


def test_every_picture_says_in_words_what_it_shows(page):
    seen = [a for tag, a in Check(page).tags if tag == "svg"]
    assert len(seen) == 3 + 3 + 2
    assert all(a["role"] == "img" and len(a["aria-label"]) > 40 and "viewbox" in a for a in seen)
    assert re.search(r"argmax −[\d.]+ → −[\d.]+, chosen −[\d.]+ → −[\d.]+, rejected", seen[0]["aria-label"])


def luminance(color):
    rgb = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in rgb)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_lines_stand_out_from_the_ground_in_light_and_dark(page):
    for name, light, dark in pictures.SHADES.values():
        if name in ("chosen", "argmax", "rejected", "ink"):  # WCAG 2.2: 3 for graphics, 4.5 for text
            need = 4.5 if name == "ink" else 3.0
            assert contrast(light, "#f4f4f2") >= need, name
            assert contrast(dark, "#222222") >= need, name
    assert "--soft:#f4f4f2" in page
    assert "--soft:#222" in page
    assert not set(pictures.SHADES) & set(re.findall(r"#[0-9a-f]{6}", page)), "a colour that no variable replaced"


def test_no_two_classes_differ_by_colour_alone():
    from toyld.report.pictures import _AREA, _HATCH

    assert set(_HATCH) == set(_AREA) == {*EXAMPLE_CLASSES, "cannot-tell"}
    assert len(set(_HATCH.values())) == len(_HATCH)


def test_pictures_show_the_numbers_of_the_table(monkeypatch):
    drawn, lines = [], pictures._lines

    def watched(x, series, *arguments, **options):
        drawn.append((x, series))
        return lines(x, series, *arguments, **options)

    monkeypatch.setattr(pictures, "_lines", watched)
    _, ds, v = run()
    pictures.pictures(ds, v, key="k")
    (x, paths), (_, others) = drawn
    assert x.tolist() == ds.step.values.tolist()
    means = ds.mean("example").isel(seed=0)
    np.testing.assert_allclose(paths["chosen"][0], means.logp.sel(probe="chosen"), rtol=1e-12)
    np.testing.assert_allclose(paths["rejected"][0], means.logp.sel(probe="rejected"), rtol=1e-12)
    np.testing.assert_allclose(paths["argmax"][0], means.argmax_logp.sel(probe="chosen"), rtol=1e-12)
    start = float(paths["chosen"][0][0])
    band = float(paths["chosen"][1][-1]) - start, float(paths["chosen"][2][-1]) - start
    np.testing.assert_allclose(band, v.intervals["d_chosen"], atol=2e-6)
    change = (means.logp - means.logp.isel(step=0)).sel(probe="irr_test")
    np.testing.assert_allclose(others["irr_test"][0], change, rtol=1e-9, atol=1e-9)


def test_long_runs_are_thinned_and_keep_their_ends():
    rows = pictures._thin(100_000)
    assert (len(rows), rows[0], rows[-1]) == (pictures.MOST, 0, 99_999)
    assert pictures._thin(5).tolist() == [0, 1, 2, 3, 4]
    ds = trajectory({"logp": -np.ones((1, 5000, 1, 1))}, step=np.arange(5000), probe=["chosen"])
    assert len(html([("long", ds, diagnose(ds))])) < 300_000


def text(entries, width, **options):
    out = io.StringIO()
    printout(entries, Console(file=out, width=width, **options))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_the_printout_fits_is_plain_and_says_everything(entries, width):
    from rich.cells import cell_len

    plain = text(entries, width)
    assert max(map(cell_len, plain.splitlines())) <= width
    assert not re.search(r"\x1b|[ \t]$", plain, re.MULTILINE)
    flat = " ".join(plain.split())
    for entry in entries:
        name = " ".join(_words.clean(entry[0]).split())
        assert name in flat
        if len(entry) == 3:
            assert _words.consistent(entry[2].verdict) in flat
    assert "[red]tags[/red]" in flat
    assert "(unreadable)" in flat
    assert "[b]nothing[/b]" not in flat, "told on stderr, once"
    numbers = [_words.nats(entries[0][2].numbers[k]) for k in ("d_chosen", "d_rejected", "d_argmax")]
    row = next(line for line in plain.splitlines() if line.split()[:1] == ["1"] and "squeezing" in line)
    places = [row.index(number) for number in numbers]  # in the order of the columns
    assert places == sorted(places)


def test_a_terminal_adds_emphasis_and_no_information(entries):
    colourful = text(entries, 120, force_terminal=True, color_system="truecolor")
    assert "\x1b[" in colourful
    bare = re.sub(r"\x1b\[[0-9;]*m", "", colourful)
    assert [line.rstrip() for line in bare.splitlines()] == text(entries, 120).splitlines()
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|38|48|9[0-7])m", colourful), "no colours at all"


def test_a_terminal_without_unicode_gets_question_marks_and_no_traceback(entries):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    printout(entries, Console(file=out, width=120))
    out.flush()
    assert b"squeezing" in raw.getvalue()


def test_evidence_is_told_once(entries):
    both = text([run("one"), run("two")], 160)
    assert both.count("published: chosen +20.2 and +28.6 nats") == 1
    assert both.count("(evidence: see run 1)") >= 2


def test_counter_evidence_and_what_is_missing_are_said():
    said = " ".join(text([rewards()], 160).split())
    assert "cannot tell" in said
    assert "why not no argmax along the chosen contexts" in said
    assert "toyld probe --models" in said
    assert "nats per response" in said
    assert "expected if chosen reads like what the policy at the first evaluation writes itself" in said
    assert "an evaluation before the first update" in said
    assert "noise_floor" not in said


def test_every_class_has_its_meaning():
    assert set(_words.MEANING) == set(CLASSES)


def test_labels_drop_the_common_folder_and_tell_the_runs_of_one_path_apart():
    assert _words.labels(["/d/r", "/d/r"], ["sft-baseline", "dpo-extend"]) == (
        "",
        ["/d/r · sft-baseline", "/d/r · dpo-extend"],
    )
    assert _words.labels(["/d/a", "/d/b/c", "/d/a"], ["x", "y", "z"]) == ("/d", ["a · x", "b/c", "a · z"])
    assert _words.labels(["/d/a", "e"], ["", ""]) == ("", ["/d/a", "e"])
    assert _words.labels(["/a/r1", "/ab/r2"], ["", ""]) == ("", ["/a/r1", "/ab/r2"])
