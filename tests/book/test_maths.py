"""Maths of the prose as HTML: what is a variable, what a subscript; nothing of the text is lost."""

import html
import re
from pathlib import Path

import pytest

from toyld.book import chapters
from toyld.book.maths import display, inline

CHAPTERS = chapters.found(Path(__file__).parents[2] / "theory")

SET = {
    "π_y": "<var>π</var><sub><var>y</var></sub>",
    "π_{y*}": "<var>π</var><sub><var>y</var>*</sub>",
    "e^{sx}": "e<sup>sx</sup>",
    "π_ref": "<var>π</var><sub>ref</sub>",
    "S_uv": "<var>S</var><sub><var>uv</var></sub>",
    "max_v x": "max<sub><var>v</var></sub> <var>x</var>",
    "z_y^{t+1}": "<var>z</var><sub><var>y</var></sub><sup><var>t</var>+1</sup>",
    "y_<t": "<var>y</var><sub>&lt;<var>t</var></sub>",
    "π'_i": "<var>π</var>′<sub><var>i</var></sub>",
    "10^{−3}": "10<sup>−3</sup>",
    "chosen_gptsemantic": "chosen_gptsemantic",
    "A mean of a run": "A mean of a run",
    "A says": "<var>A</var> says",
    "(1 − a)": "(1 − <var>a</var>)",
    "it's y's, e.g. App. C.2, T7": "it&#x27;s <var>y</var>&#x27;s, e.g. App. C.2, T7",
    "a < b & c": "<var>a</var> &lt; <var>b</var> &amp; <var>c</var>",
}


@pytest.mark.parametrize("text", SET)
def test_maths_in_a_line(text):
    assert inline(text) == SET[text].replace("<sup>sx</sup>", "<sup><var>sx</var></sup>")


def plain(page):
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def spelled(text):
    return re.sub(r"[_^{}\s]", "", text).replace("'", "′")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_character_of_a_chapter_is_lost(path):
    for cell in chapters.read(path).cells:
        if not cell.code:
            assert spelled(plain(inline(cell.source))) == spelled(cell.source)
            for block in re.findall(r"(?:^    .*\n?)+", cell.source, re.M):
                assert sorted(spelled(plain(display(block)))) == sorted(spelled(block)), (
                    "words under a formula may move"
                )


def test_tags_columns_and_words_below():
    tagged = display("    G = π − e_y          (§3.1, Eq. 5)")
    assert '<span class="tag">(§3.1, Eq. 5)</span>' in tagged
    assert "gap" not in tagged
    assert display("    a = f(x)    (1 − x)").count("tag") == 0, "a bracket without a number is no tag"
    grid = display("    mass    Δπ\n    factor  α")
    assert 'class="formula grid" style="--columns: 2"' in grid
    assert plain(grid) == "massΔπfactorα"
    below = display("    a Σ_u b  −  c\n          taught    down")
    assert "<small>taught</small>" in below
    assert plain(below).index("taught") < plain(below).index("−") < plain(below).index("down")
    assert display("    S = 1,      R = 2").count('class="gap"') == 1


def test_code_is_not_set_as_maths():
    assert display("toyld diagnose RUN").startswith("<pre")
    assert display("trainer.add_callback(f(x))") == '<pre class="plain" tabindex="0">trainer.add_callback(f(x))</pre>'
    assert display("z = f(x) − s").startswith('<div class="formula"')
