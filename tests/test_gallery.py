"""The gallery beside the figures, and runs that go on where they were killed."""

from __future__ import annotations

import doctest
import functools
import importlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from toyld import figures
from toyld.figures import _alt, _gallery, _made, _paper, _render

# Quick ones, of two rungs; in alphabetical order.
LLM = "sft_and_dpo_in_a_language_model"
SLUGS = ("rare_label", LLM, "threshold_and_winners")
KINDS = ("csv", "json", "png", "svg")
PAGES = {"index.html", "manifest.json"}
RUN: dict[str, Any] = {"only": SLUGS, "size": "smoke", "check": True}
PAINTED: dict[Any, dict[str, bytes]] = {}
VOID = {"meta", "img", "input", "br", "wbr"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three figures at smoke size and their gallery; nobody changes it."""
    out = tmp_path_factory.mktemp("gallery") / "figures"
    assert figures.render(**RUN, out=out) == 0
    return out


@pytest.fixture
def painted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are painted once for each figure, formats and resolution, where a test is about files alone."""

    def saved(fig: Any, figure: figures.Figure, /, *, formats: tuple[str, ...], dpi: int) -> dict[str, bytes]:
        key = figure.slug, formats, dpi
        if key not in PAINTED:
            PAINTED[key] = right(fig, figure, formats=formats, dpi=dpi)
        return PAINTED[key]

    right = _render.saved
    monkeypatch.setattr(_render, "saved", saved)


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(drawn, tmp_path / "figures"))


class Page(HTMLParser):
    """Elements, text and addresses of a page; every tag that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if not self.open or self.open[-1] not in ("style", "script") else ""

    def all(self, tag: str, name: str) -> list[str]:
        """What attribute `name` of every `tag` says."""
        return [attrs[name] or "" for found, attrs in self.found if found == tag and name in attrs]


def page(out: Path) -> Page:
    return Page((out / "index.html").read_text())


def words(text: str) -> str:
    return " ".join(text.split())


# --- what it says -----------------------------------------------------------------------------------------------------


def test_the_page_tells_of_each_figure_what_its_files_tell(drawn: Path) -> None:
    shown = page(drawn)
    text = words(shown.text)
    assert {p.name for p in drawn.iterdir()} == {f"{s}.{kind}" for s in SLUGS for kind in KINDS} | PAGES
    for slug in SLUGS:
        about = json.loads((drawn / f"{slug}.json").read_text())
        caption = words(re.sub("`", "", about["caption"]))
        for said in (about["title"], caption, about["command"], f"{about['rows']} rows", about["check"]):
            assert said in text
        for claim in about["claims"]:
            assert f"{claim['id']}{words(claim['statement'])}{claim['expect']}" in text
        for column in about["columns"]:
            assert column in text
        if about["paper"]:
            assert f"{about['paper']}. {about['differs']}" in text
        assert about["alt"] in shown.all("img", "alt")
        assert about["versions"]["matplotlib"] in text
    commit = json.loads((drawn / "rare_label.json").read_text())["commit"]
    assert (commit or "not known")[:12] in text


def test_a_text_alternative_names_panels_and_axes() -> None:
    table = figures.every()["rare_label"].data("smoke")
    said = _alt.described(figures.draw("rare_label", table), "A title")
    assert said.startswith("A title. 3 panels. A: Losers lose more")
    assert said.count(" against p(y⁻) before the step") == 3
    assert doctest.testmod(_alt).failed == 0
    assert doctest.testmod(_gallery).failed == 0


def test_links_stay_in_the_folder_and_lead_to_what_is_there(drawn: Path) -> None:
    shown = page(drawn)
    ids = {attrs["id"] for _, attrs in shown.found if "id" in attrs}
    addresses = shown.all("a", "href") + shown.all("img", "src")
    assert len(addresses) > 5 * len(SLUGS)
    for address in addresses:
        if address.startswith("#"):
            assert address[1:] in ids
        else:
            assert re.fullmatch(r"\w+\.\w+", address), address
            assert (drawn / address).is_file()
    assert not shown.all("link", "href") + shown.all("script", "src")
    assert "url(" not in (drawn / "index.html").read_text()


def test_the_page_is_the_same_bytes_at_another_time_and_the_manifest_says_when(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, manifest = (folder / "index.html").read_bytes(), json.loads((folder / "manifest.json").read_text())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert figures.render(**RUN, out=folder) == 0
    assert (folder / "index.html").read_bytes() == before
    assert b"1970" not in before
    later = json.loads((folder / "manifest.json").read_text())
    assert [f["slug"] for f in later["figures"]] == [f["slug"] for f in manifest["figures"]]
    assert {f["date"] for f in later["figures"]} == {"1970-01-02T00:00:00+00:00"}
    for one in later["figures"]:
        about = json.loads((folder / f"{one['slug']}.json").read_text())
        assert about.items() <= one.items()
        assert set(one) == set(about) | {"rung", "files"}


def test_a_partial_run_shows_all_that_lies_there(folder: Path) -> None:
    assert figures.render(only=("loss_zoo",), size="smoke", out=folder, format="svg") == 0
    shown = page(folder)
    assert set(shown.all("article", "id")) == {*SLUGS, "loss_zoo"}
    assert "Show" in shown.text
    (folder / "rare_label.csv").write_text("p\n1\n")  # no longer what the pictures show
    (folder / "threshold_and_winners.json").write_text("{}")
    assert figures.render(only=("loss_zoo",), size="smoke", out=folder, from_data=True) == 0
    shown = page(folder)
    assert set(shown.all("article", "id")) == {LLM, "loss_zoo"}
    told = words(shown.text)
    assert "rare_label: Pushing down a rarer label" in told
    assert told.count("its files do not belong together") == 2
    assert "python -m toyld.figures --only published_runs draws it, where $TOYLD_DATA/runs/authors is there" in told


def test_data_redrawn_keep_their_size_and_an_older_picture_is_not_shown(folder: Path) -> None:
    assert figures.render(only=("rare_label",), out=folder, from_data=True, format="png") == 0
    about = json.loads((folder / "rare_label.json").read_text())
    assert about["size"] == "smoke"
    assert about["command"] == "python -m toyld.figures --only rare_label --format png --from-data"
    assert "rare_label.png" in page(folder).all("img", "src")
    assert "rare_label.svg" not in page(folder).all("a", "href")  # of another run
    (folder / "rare_label.png").write_bytes(b"another")
    _gallery.write(folder)
    assert "rare_label" not in page(folder).all("article", "id")


def test_files_of_an_earlier_version_are_shown_with_what_they_tell(folder: Path) -> None:
    path = folder / "rare_label.json"
    about = json.loads(path.read_text())
    for name in ("columns", "alt", "tags", "differs", "dpi", "aspect", "pictures_sha256", "code_sha256"):
        del about[name]
    path.write_text(json.dumps(about))
    other = folder / f"{LLM}.json"
    other.write_text(json.dumps(json.loads(other.read_text()) | {"paper": None, "seed": 3, "dirty": None}))
    _gallery.write(folder)
    shown = page(folder)
    assert about["title"] in shown.all("img", "alt")
    assert "The differences are not written down in this version's files" in shown.text
    assert shown.text.count("Paper and ours") == len(SLUGS) - 1
    assert "Seed3" in shown.text


def test_nothing_in_a_file_becomes_markup(folder: Path) -> None:
    path = folder / "rare_label.json"
    about = json.loads(path.read_text())
    wild = '"><script>alert(1)</script>&'
    for name in ("title", "caption", "command", "check", "alt", "paper", "differs", "size", "commit", "seed"):
        about[name] = wild
    about["claims"][0] = dict.fromkeys(("id", "statement", "expect"), wild)
    about["columns"], about["versions"], about["inputs_sha256"] = [wild], {wild: wild}, {wild: wild}
    about["pictures_sha256"][wild] = "0"
    path.write_text(json.dumps(about))
    _gallery.write(folder)
    shown = page(folder)
    assert [tag for tag, _ in shown.found].count("script") == 1
    assert "<script>alert" not in (folder / "index.html").read_text()
    assert wild in shown.all("img", "alt")
    assert shown.text.count(wild) >= 7


UNFIT: dict[str, Any] = {
    "aspect": ("x", -1, 0, float("nan"), 10**400),
    "rows": ("<b>7</b>", None, 1.5),
    "columns": (None, "p", [1]),
    "tags": ("softmax", [None]),
    "claims": (None, {}, ["x"], [{"id": "x", "statement": "y"}]),
    "title": (None, 7),
    "caption": (["x"],),
    "command": (None,),
    "alt": (7,),
    "check": (None,),
    "commit": (7, ["x"]),
    "dirty": ("yes", 2),
    "versions": (None, {"numpy": 1}),
    "inputs_sha256": (["x"], {"x": 1}),
    "pictures_sha256": (7, {"png": 1}),
    "size": (7, "\ud800"),
    "paper": (7,),
    "differs": ([],),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_figure_whose_file_has_another_form_is_left_out(folder: Path, name: str) -> None:
    path = folder / "rare_label.json"
    about = json.loads(path.read_text())
    for value in UNFIT[name]:
        path.write_text(json.dumps(about | {name: value}))
        _gallery.write(folder)
        shown = page(folder)
        assert set(shown.all("article", "id")) == set(SLUGS) - {"rare_label"}, value
        assert "its files do not belong together; python -m toyld.figures --only rare_label draws it" in shown.text


def test_no_figure_no_gallery(tmp_path: Path) -> None:
    _gallery.write(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- the paper --------------------------------------------------------------------------------------------------------


def test_every_figure_of_the_paper_has_a_line_and_every_figure_of_ours_its_place() -> None:
    numbers: set[int] = set()
    for row in _paper.FIGURES:
        first, last = (re.findall(r"\d+", row.where.partition("(")[0]) * 2)[:2] or (0, 0)
        if row.where.startswith("Figure"):
            numbers |= set(range(int(first), int(last) + 1))
        assert len(row.said) > 10
        assert [slug for slug in row.ours if slug not in figures.every()] == []
    assert numbers == set(range(1, 17))
    placed = {slug for row in _paper.FIGURES for slug in row.ours}
    named = {slug for slug, f in figures.every().items() if re.search(r"Fig|Table|App\. E", f.paper or "")}
    assert named - placed == set()


def test_what_differs_from_the_paper_is_said_in_words_of_its_own() -> None:
    differs = {slug: f.differs for slug, f in figures.every().items() if f.paper}
    assert len(set(differs.values())) == len(differs) > 20
    assert [slug for slug, said in differs.items() if said is None or len(said) < 80 or "  " in said] == []
    bug = {slug for slug, said in differs.items() if said and "argmax bug" in said}
    assert bug >= {"published_runs", "published_influence", "dpo_in_closed_form", "dpo_in_transformers"}


# --- going on ---------------------------------------------------------------------------------------------------------


def contents(out: Path) -> dict[str, Any]:
    """What every file holds, but for when it was made and how long that took."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in ("date", "seconds")}
        return [timeless(v) for v in value] if isinstance(value, list) else value

    names = sorted(p.name for p in out.iterdir())
    return {
        n: timeless(json.loads((out / n).read_text())) if n.endswith("json") else (out / n).read_bytes() for n in names
    }


def same(out: Path, other: Path) -> bool:
    return contents(out) == contents(other)


KILLED = """
import os, sys, time
from pathlib import Path
from toyld import figures
from toyld.figures import _render

right = _render.write_whole

def write_whole(path, payload):
    if path.name == sys.argv[2]:
        path.with_name(f".{path.name}.{os.getpid()}.part").write_bytes(payload[:99])
        print("half of it", flush=True)
        time.sleep(600)
    right(path, payload)

_render.write_whole = write_whole
figures.render(only=tuple(sys.argv[3:]), size="smoke", out=Path(sys.argv[1]), check=True, quiet=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system that can kill a process: POSIX")
def test_a_killed_run_goes_on_to_the_same_bytes(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(out), "threshold_and_winners.svg", *SLUGS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "half of it\n"
        run.kill()
    assert run.returncode == -signal.SIGKILL
    there = {p.name for p in out.iterdir()}
    assert there >= {"rare_label.json", "threshold_and_winners.csv", "threshold_and_winners.png"}
    assert there & {"threshold_and_winners.svg", "threshold_and_winners.json", *PAGES} == set()
    assert [name for name in there if name.endswith(".part")] != []
    untouched = (out / "rare_label.json").read_bytes()
    assert figures.render(**RUN, out=out, resume=True) == 0
    lines = [re.split(r"\d s  ", line)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["kept, check holds", "kept, check holds", "check holds"]
    assert (out / "rare_label.json").read_bytes() == untouched
    assert same(out, drawn)


@pytest.mark.usefixtures("painted_once")
def test_whichever_file_a_run_stops_at_it_goes_on_to_the_same_bytes(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = functools.cache(figures.every()["threshold_and_winners"].data)
    monkeypatch.setattr(importlib.import_module("toyld.figures.threshold_and_winners"), "data", made)
    right, slugs = _render.write_whole, ("threshold_and_winners",)
    whole = tmp_path / "whole"
    assert figures.render(only=slugs, size="smoke", out=whole) == 0
    for stop in range(5):  # csv, png, svg, json; then Ctrl-C before the gallery
        out, left = tmp_path / str(stop), iter(range(stop))

        def write(path: Path, payload: bytes, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            right(path, payload)

        with monkeypatch.context() as patch:
            patch.setattr(_render, "write_whole", write)
            patch.setattr(_gallery, "write_whole", write)
            with pytest.raises(KeyboardInterrupt):
                figures.render(only=slugs, size="smoke", out=out)
        assert figures.render(only=slugs, size="smoke", out=out, resume=True) == 0
        assert same(out, whole)


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _other_code(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_made, "made_by", lambda: {"code_sha256": "another", "versions": {}})


def _other_packages(folder: Path, patch: pytest.MonkeyPatch) -> None:
    made = _made.made_by()
    patch.setattr(_made, "made_by", lambda: {**made, "versions": {**made["versions"], "numpy": "99"}})


def _other_inputs(folder: Path, patch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("toyld.figures.rare_label")
    patch.setattr(module, "inputs", lambda: {"a file": Path(__file__)}, raising=False)


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], Any]] = {
    "another code": _other_code,
    "another package": _other_packages,
    "another input": _other_inputs,
    "data that were touched": lambda f, _: _longer(f / "rare_label.csv"),
    "a picture that was touched": lambda f, _: _longer(f / "rare_label.png"),
    "no picture": lambda f, _: (f / "rare_label.svg").unlink(),
    "no provenance": lambda f, _: (f / "rare_label.json").unlink(),
    "broken provenance": lambda f, _: (f / "rare_label.json").write_text("{"),
    "provenance of another": lambda f, _: shutil.copy(f / f"{LLM}.json", f / "rare_label.json"),
    "redrawn from its data": lambda f, _: figures.render(only=("rare_label",), out=f, from_data=True),
}


@pytest.mark.usefixtures("painted_once")
@pytest.mark.parametrize("change", [*CHANGES, "another size", "another resolution", "another format", "nothing"])
def test_only_what_would_come_out_the_same_is_kept(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if change in CHANGES:
        CHANGES[change](folder, monkeypatch)
    module = importlib.import_module("toyld.figures.rare_label")
    small = functools.partial(module.data, "smoke")
    monkeypatch.setattr(module, "data", lambda size: small())
    capsys.readouterr()
    other: dict[str, Any] = {
        "another size": {"size": "paper"},
        "another resolution": {"dpi": 60},
        "another format": {"format": "svg,pdf"},
    }.get(change, {})
    request = {"only": ("rare_label",), "size": "smoke", "out": folder, "resume": True} | other
    assert figures.render(**request) == 0
    assert capsys.readouterr().out.endswith("s  kept\n" if change == "nothing" else "s  not checked\n")
    assert figures.render(**request) == 0
    assert capsys.readouterr().out.endswith("s  kept\n")


def test_a_kept_figure_is_checked_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(table: Any) -> None:
        assert len(table) == 0, "expected none"

    monkeypatch.setattr(importlib.import_module("toyld.figures.rare_label"), "check", check)
    before = json.loads((folder / "rare_label.json").read_text())
    request = {"only": ("rare_label",), "size": "smoke", "out": folder, "resume": True}
    assert figures.render(**request, check=True) == 1
    assert "kept, check failed: expected none" in capsys.readouterr().out
    after = json.loads((folder / "rare_label.json").read_text())
    assert after["check"].startswith("check failed: expected none")
    assert {**after, "check": None} == {**before, "check": None}
    assert figures.render(**request, quiet=True) == 0
    assert capsys.readouterr().out == ""


def test_remains_of_a_run_that_still_runs_are_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        mine, gone, alien = (
            tmp_path / f".{name}.part" for name in (f"rare_label.csv.{other.pid}", "rare_label.csv.4194304", "a.csv.9")
        )
        for path in (mine, gone, alien):
            path.write_text("half")
        _made.sweep(["rare_label"], tmp_path)
        assert {p.name for p in tmp_path.iterdir()} == {mine.name, alien.name}
        assert other.stdin is not None
        other.stdin.write(b"\n")


def test_the_list_tells_cost_and_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.render(list=True, only=("rare_label", "confusion"), out=folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[1::3]] == [
        f"half a minute; not in {folder}; tags: diagnosis, softmax",
        f"seconds; in {folder} (smoke size, check holds); tags: softmax, squeezing",
    ]


# --- in a browser -----------------------------------------------------------------------------------------------------

SIZES = {"projector": (1280, 720), "large": (1920, 1080), "phone": (390, 844)}


def opened(browser: Any, address: str, size: str = "projector", scheme: str = "light", **options: Any) -> Any:
    """A page whose messages and requests are kept."""
    width, height = SIZES[size]
    tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    tab.messages, tab.requests = [], []
    tab.on("console", lambda message: tab.messages.append(message.text))
    tab.on("pageerror", lambda error: tab.messages.append(str(error)))
    tab.on("request", lambda request: tab.requests.append(request.url))
    tab.goto(address)
    return tab


@pytest.mark.parametrize(
    ("size", "scheme"), [(s, c) for s in SIZES for c in ("light", "dark") if (s, c) != ("large", "dark")]
)
def test_it_fits_everywhere_and_everybody_can_use_it(browser: Any, drawn: Path, size: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason='needs axe: pip install "toyld[test]"')
    tab = opened(browser, (drawn / "index.html").as_uri(), size, scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    wide = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    found = axe.Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    for image in tab.locator("img").all():
        image.scroll_into_view_if_needed()
        tab.wait_for_function("(image) => image.complete && image.naturalWidth > 0", arg=image.element_handle())
    assert tab.messages == []
    assert {url.rpartition("/")[0] for url in tab.requests} == {drawn.as_uri()}
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 384) == (scheme == "dark")
    tab.close()


def test_figures_are_chosen_by_keyboard_alone(browser: Any, drawn: Path) -> None:
    tab = opened(browser, (drawn / "index.html").as_uri())
    seen = lambda: tab.evaluate("[...document.querySelectorAll('article')].filter((a) => !a.hidden).map((a) => a.id)")  # noqa: E731
    every = seen()
    assert sorted(every) == sorted(SLUGS)
    for _ in range(6):  # past the link to the figures and that to the paper's
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.type") == "radio":
            break
    tab.keyboard.press("ArrowRight")
    chosen = tab.evaluate("document.activeElement.value")
    assert seen() == [s for s in every if _gallery.rung(list(figures.every()[s].tags)) == chosen]
    assert tab.inner_text("#shown") == f"{len(seen())} of {len(SLUGS)} figures"
    focus = "getComputedStyle(document.activeElement.nextElementSibling).outlineStyle"
    assert tab.evaluate(focus) == "solid"
    tab.keyboard.press("ArrowLeft")
    assert seen() == every
    tab.close()


def test_a_link_to_a_hidden_figure_shows_it(browser: Any, drawn: Path) -> None:
    tab = opened(browser, (drawn / "index.html").as_uri())
    tab.check("input[value=llm]", force=True)
    assert not tab.is_visible("#rare_label")
    tab.evaluate("location.hash = 'rare_label'")
    tab.wait_for_selector("#rare_label", state="visible")
    assert tab.is_checked("input[value=all]")
    tab.close()


@pytest.mark.parametrize("end", ["%", "%E0%A4%A", "nosuch"])
def test_an_address_that_names_no_figure_breaks_nothing(browser: Any, drawn: Path, end: str) -> None:
    tab = opened(browser, f"{(drawn / 'index.html').as_uri()}#{end}")
    assert tab.inner_text("#shown") == f"{len(SLUGS)} of {len(SLUGS)} figures"
    tab.check("input[value=llm]", force=True)
    tab.evaluate("location.hash = 'rare_label'")
    tab.wait_for_selector("#rare_label", state="visible")
    assert tab.messages == []
    tab.close()


def test_without_scripts_all_is_there(browser: Any, folder: Path) -> None:
    there = folder.rename(folder.with_name("moved elsewhere, with a space"))
    tab = opened(browser, (there / "index.html").as_uri(), java_script_enabled=False)
    assert [tab.is_visible(f"#{slug}") for slug in SLUGS] == [True] * len(SLUGS)
    assert not tab.is_visible("fieldset")
    assert tab.messages == []
    assert len(tab.requests) > 1
    tab.close()
