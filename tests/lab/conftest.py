"""The lab in a browser: the page as a file, opened at one panel, with whatever goes wrong written down."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SIZES = {"wide": (1280, 720), "phone": (390, 844), "narrow": (320, 640), "projector": (1920, 1080)}


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab, written as `toyld lab` writes it."""
    from toyld.cli_teach import lab

    path = tmp_path_factory.mktemp("lab") / "lab.html"
    assert lab(out=path) == 0
    return path


@pytest.fixture(scope="session")
def idle(browser: Any) -> Iterator[dict[str, list[Any]]]:
    """Pages that no test uses just now, by how they were made: a new one costs as much as a short test."""
    pages: dict[str, list[Any]] = {}
    yield pages
    for page in itertools.chain(*pages.values()):
        page.context.close()


def fresh(browser: Any, touch: bool, options: dict[str, Any]) -> Any:
    """A page that writes down what goes wrong."""
    page = browser.new_context(has_touch=touch, **options).new_page()
    page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.problems.append(str(e)))
    page.on("request", lambda r: page.requests.append(r.url))
    return page


@pytest.fixture
def opened(browser: Any, idle: dict[str, list[Any]], page_file: Path) -> Iterator[Callable[..., Any]]:
    """opened(panel, size=, scheme=, state=): the lab, loaded anew; a test can read its `problems` and `requests`."""
    taken = []

    def go(panel: str, size: str = "wide", scheme: str = "light", state: str = "", **options: Any) -> Any:
        kind = f"{size == 'phone'} {options}"
        page = idle[kind].pop() if idle.get(kind) else fresh(browser, size == "phone", options)
        taken.append((kind, page))
        page.problems, page.requests = [], []
        width, height = SIZES[size]
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        page.mouse.move(0, 0)
        page.goto(f"{page_file.as_uri()}#panel={panel}&{state}")
        return page

    yield go
    for kind, page in taken:
        page.goto("about:blank")  # so that the next address is loaded and not only its end changed
        idle.setdefault(kind, []).append(page)
