"""The book in a browser: fits every screen, reads well for everybody, needs no network, works by keyboard."""

import pytest

PAGES = ("index.html", "01_halves.html", "01_halves_exercises.html", "02_squeezing_exercises.html", "claims.html")
SIZES = {"projector": (1280, 720), "phone": (390, 844)}


@pytest.fixture(scope="module")
def site(tmp_path_factory, small):
    """The small book and the real exercises to chapter 2 as a site."""
    import shutil
    from pathlib import Path

    from toyld.book.site import build

    theory, path = Path(__file__).parents[2] / "theory", tmp_path_factory.mktemp("seen")
    small.write(path)
    shutil.copy(theory / "solutions" / "02_squeezing.py", path / "solutions")
    shutil.copy(theory / "README.md", path)
    (path / "02_squeezing.py").write_text("# %% [markdown]\n# # 2. Wide\n\n# %%\nprint('x' * 300)\nx = 1 / 0\n")
    assert build(path, path / "site", say=lambda line: None) == ["02_squeezing"]
    return path / "site"


@pytest.fixture
def visit(browser, site):
    """Open a page: the tab, and what it asked for beyond files and complained of."""
    contexts = []

    def opened(name, size="projector", scheme="light", **options):
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True, **options
        )
        contexts.append(context)
        tab, said = context.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else said.append(r.url))
        tab.goto((site / name).as_uri())
        return tab, said

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_and_is_open_to_everybody(name, visit):
    from axe_playwright_python.sync_playwright import Axe

    for size in SIZES:
        for scheme in ("light", "dark"):
            tab, said = visit(name, size, scheme)
            tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
            wide = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide == 0, f"{name}, {size}: scrolls sideways by {wide} px"
            assert said == []
            if (size == "phone") == (scheme == "dark"):
                # Of hundreds of claims, entries of one form, some will do.
                tab.evaluate("document.querySelectorAll('.one').forEach((one, i) => { if (i % 40) one.remove() })")
                found = Axe().run(tab)
                assert found.violations_count == 0, found.generate_report()


def test_a_page_is_read_by_keyboard(visit):
    tab, _ = visit("01_halves_exercises.html")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "to the text"
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#text")
    answer = tab.locator("details.answer").first
    answer.locator("summary").first.focus()
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    tab.keyboard.press("Enter")
    assert answer.evaluate("one => one.open")
    assert tab.locator("text=it is 2.5 for five").is_visible()
    tab.keyboard.press("Tab")
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid" or outline == "solid"


def test_without_stylesheet_or_script_the_text_is_there(visit):
    tab, said = visit("01_halves.html", java_script_enabled=False)
    assert tab.locator("h1").inner_text() == "1. Halves"
    assert tab.locator(".held").first.get_attribute("title") == "held to the code: half (line 24)"
    assert said == []


def test_light_and_dark_differ_and_the_contents_stand_beside_the_text_on_a_wide_screen(visit):
    papers = set()
    for scheme in ("light", "dark"):
        tab, _ = visit("01_halves.html", "projector", scheme)
        papers.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert tab.locator("nav.contents").bounding_box()["x"] < tab.locator("main").bounding_box()["x"]
        assert tab.evaluate("parseFloat(getComputedStyle(document.body).fontSize)") >= 18
    assert len(papers) == 2
    tab, _ = visit("01_halves.html", "phone")
    assert tab.locator("nav.contents").bounding_box()["y"] > tab.locator("main").bounding_box()["y"]
