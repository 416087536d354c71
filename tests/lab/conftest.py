"""The lab in a browser: the page as a file, opened at one panel, with whatever goes wrong written down."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SIZES = {"wide": (1280, 720), "phone": (390, 844)}


@pytest.fixture(scope="session")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab, written as `toyld lab` writes it."""
    from toyld.cli_teach import lab

    path = tmp_path_factory.mktemp("lab") / "lab.html"
    assert lab(out=path) == 0
    return path


@pytest.fixture
def opened(browser: Any, page_file: Path) -> Iterator[Callable[..., Any]]:
    """opened(panel, size=, scheme=, state=): a page whose `problems` and `requests` a test can read."""
    contexts = []

    def go(panel: str, size: str = "wide", scheme: str = "light", state: str = "", **options: Any) -> Any:
        width, height = SIZES[size]
        viewport = {"width": width, "height": height}
        context = browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=size == "phone", **options)
        contexts.append(context)
        page = context.new_page()
        page.problems, page.requests = [], []
        page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: page.problems.append(str(e)))
        page.on("request", lambda r: page.requests.append(r.url))
        page.goto(f"{page_file.as_uri()}#panel={panel}&{state}")
        return page

    yield go
    for context in contexts:
        context.close()
