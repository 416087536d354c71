"""Numbers in the captions of the figures and in what differs from the paper: which are held, and how many are not.

A number is held by a phrase of `HELD`, whose values come from the figure's data or code; as a number of seeds, by the
data; or because it is a constant of the figure's module, a value of a column that has few, or in the statement of a
claim that the caption names, while no number a digit away is. The others are counted in `FREE`.
"""

import csv
import importlib
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toyld import claims, figures
from toyld.book import planted, prose
from toyld.book.says import numerals, says
from toyld.contexts.experiments import foresight, similarity
from toyld.diagnosis.causes import NOISE, make_run
from toyld.digits.experiments import lifts, zigzag
from toyld.figures import (
    _look,
    confusion,
    dpo_in_transformers,
    premem_curation,
    premem_over_recipes,
    rank_stability,
    squeezing_at_a_glance,
    verdict_map,
)
from toyld.figures import extend_in_transformers as extend
from toyld.llm.plan import RECIPES

ROOT = Path(__file__).parents[1]
SLUGS = sorted(figures.every())
FEW = 12  # values of a column that a caption may speak of
SEEDS = re.compile(r"(?<![\d,.])(\d+)(?= (?:seeds|languages and models|networks|MLPs)\b)")
LEVEL = re.compile(r"(\d+) %(?= intervals?\b)")

# What nothing here holds: readings of curves, durations of runs, other people's numbers, names of digits, formulas.
FREE = {
    "closed_form_and_network": 2,
    "confusion": 1,
    "dpo_in_closed_form": 2,
    "dpo_in_transformers": 4,
    "error_of_first_order": 1,
    "extend_spares_the_rest": 10,
    "foreseen": 1,
    "learning_a_four": 23,
    "loss_zoo": 2,
    "policy_gradients": 3,
    "published_influence": 3,
    "published_kinds": 2,
    "published_runs": 13,
    "published_shares": 10,
    "rank_stability": 17,
    "rare_label": 3,
    "remedies_at_margin": 2,
    "remedies_in_transformers": 6,
    "sft_and_dpo_in_a_language_model": 6,
    "similar_or_improbable_in_transformers": 25,
    "squeezing_by_position": 4,
    "squeezing_in_networks": 2,
    "squeezing_panels": 4,
    "threshold_and_winners": 2,
    "when_dpo_squeezes": 1,
    "wins_by_ground_truth": 22,
}


@cache
def table(slug: str) -> list[dict[str, str]]:
    """The rows of a figure's data; none of those that need the authors' logs and are not in the repository."""
    path = ROOT / "figures" / f"{slug}.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.is_file() else []


def rows(slug: str, **chosen: str) -> list[dict[str, str]]:
    found = [row for row in table(slug) if chosen.items() <= row.items()]
    assert found, f"{slug}.csv has no row with {chosen}"
    return found


def recipe(module: Any, size: str = "smoke") -> Any:
    """The recipe of an experiment on digits at a size."""
    return next(part for part in _parts(module.SIZES[size]) if hasattr(part, "images"))


def _parts(value: Any) -> Iterator[Any]:
    yield value
    inner = value if isinstance(value, list | tuple) else vars(value).values() if hasattr(value, "__dict__") else ()
    for one in inner:
        yield from _parts(one)


def _flat(value: Any) -> Iterator[float]:
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, Mapping):
        yield from _flat([*value, *value.values()])
    elif isinstance(value, list | tuple | range | np.ndarray):
        for one in value:
            yield from _flat(one)


def glance() -> dict[str, tuple[Any, ...]]:
    classes = len({row["rank"] for row in rows("squeezing_panels", panel="A")})
    return {
        "(s = 2)": (squeezing_at_a_glance.STEP,),
        "twelve classes instead of fifty": (squeezing_at_a_glance.CLASSES, classes),
    }


def panels() -> dict[str, tuple[Any, ...]]:
    fall = {}
    for p in "ACE":
        others = [row for row in rows("squeezing_panels", panel=p) if row["role"] != "label"]
        fall[p] = sum(float(row["log_p_after_nats"]) < float(row["log_p_before_nats"]) for row in others)
    first = {p: rows("squeezing_panels", panel=p) for p in "ABCE"}
    (label,) = rows("squeezing_panels", panel="C", role="label")
    (peak,) = rows("squeezing_panels", panel="E", role="y*")
    before, after = (float(np.exp(float(peak[name]))) for name in ("log_p_before_nats", "log_p_after_nats"))
    return {
        "V = 50": (len(first["A"]),),
        "and here all 49 others fall": (fall["A"],),
        "none of the 49 others does": (len(first["B"]) - 1,),
        "the other 48 fall": (fall["C"],),
        "its label holds 2.9 %": (np.exp(float(label["log_p_before_nats"])),),
        "log p_y + H = −2.8 < 0": (float(label["label_log_p_plus_entropy_nats"]), 0),
        "(V = 1,000, s = 56)": (len(first["E"]), float(peak["step_s"])),
        "from .51 to 1 − 5e-10": (before, 1, -np.expm1(float(peak["log_p_after_nats"])) if after < 1 else 0.0),
    }


def wins() -> dict[str, tuple[Any, ...]]:
    chosen = {"what": "wins", "of": "passes", "how": "greedy", "updates": "0"}
    starts = [rows("wins_by_ground_truth", model=model, **chosen)[0] for model in ("rmsprop", "sgd")]
    return {
        ".45 [.42, .49] and .42 [.38, .46];": [float(row[name]) for row in starts for name in ("mean", "low", "high")]
    }


def cases() -> dict[str, tuple[Any, ...]]:
    defaults = {name: one.default for name, one in inspect.signature(make_run).parameters.items()}
    least = min(float(r["share"]) for r in rows("confusion", panel="A") if r["cause"] == r["verdict"])
    assert least >= 0.95
    return {
        "A run is 40 examples": (defaults["n_examples"],),
        "seen in 8 evaluations": (defaults["n_evaluations"],),
        "a noise of .02 nats": (NOISE,),
        "B, three times that noise": (confusion.LOUD,),
    }


def curation() -> dict[str, tuple[Any, ...]]:
    ratio = {}
    for rule in ("low", "high", "any", "iid"):
        (one,) = rows("premem_curation", what="doublings", arm=rule)
        ratio[rule] = tuple(2.0 ** float(one[name]) for name in ("mean", "low", "high"))
    bought = {int(row["count"]) for row in rows("premem_curation", what="doublings")}
    return {
        "taught 192 first lessons": (premem_curation.FIRST,),
        "all at 384, are": tuple(bought),
        "come to 1.01 [.91, 1.10]:": ratio["low"],
        "come to .75 [.68, .83] (": ratio["high"],
        "by lot to .92 [.86, .98] (": ratio["any"],
        "line, to .97 [.93, 1.02].": ratio["iid"],
    }


def recipes() -> dict[str, tuple[Any, ...]]:
    def share(what: str, of: str) -> tuple[float, ...]:
        (one,) = rows("premem_over_recipes", what=what, of=of, model="both")
        return tuple(float(one[name]) for name in ("value", "low", "high"))

    return {
        "R² is −.66 [−.92, −.46]. B": share("itself", "train"),
        "Its R² is .78 [.73, .82],": share("itself", "premem"),
        "the .9 that was reported": (premem_over_recipes.REPORTED,),
        "): .80 [.74, .84] beside .48 [.44, .53] in": (*share("line", "premem"), *share("line", "train")),
    }


def trained() -> dict[str, tuple[Any, ...]]:
    text = (ROOT / "toyld" / "evidence" / "llm-hh.json").read_text(encoding="utf-8")
    command = json.loads(text)["command"]
    pairs, probes = (int(re.search(rf"--{name} (\d+)", command)[1]) for name in ("pairs", "probes"))
    return {
        "taught 240 prompts": (pairs,),
        "240 pairs and 64 probed": (pairs, probes),
        "5,000 pairs and 500 probes": [RECIPES["paper"][name] for name in ("pairs", "probes")],
    }


# Slug -> phrases of its caption or of its differences, and what their numbers come from.
HELD: dict[str, Callable[[], Mapping[str, Any]]] = {
    "squeezing_at_a_glance": glance,
    "squeezing_panels": panels,
    "wins_by_ground_truth": wins,
    "confusion": cases,
    "premem_curation": curation,
    "premem_over_recipes": recipes,
    "sft_and_dpo_in_a_language_model": trained,
    "verdict_map": lambda: {
        "a run of 40 examples": (inspect.signature(make_run).parameters["n_examples"].default,),
        "axes are linear within .1 nats": (verdict_map.LINEAR,),
    },
    "dpo_in_transformers": lambda: {"after SFT of 15 (left) and 30 updates": dpo_in_transformers.LENGTHS},
    "extend_in_transformers": lambda: {"at a margin of 10 nats": (extend.MARGIN,)},
    "rank_stability": lambda: {
        "an MLP (16 seeds) and a LeNet (8 seeds)": (rank_stability.SEEDS["MLP"], rank_stability.SEEDS["LeNet"])
    },
    "foreseen": lambda: {"where the margin reaches 20 nats": (foresight.MARGIN,)},
    "similar_or_improbable": lambda: {"has grown by 2 nats a token": (similarity.MARGIN,)},
    "zigzag": lambda: {
        "200 images each": (recipe(zigzag).images,),
        "An MLP on 200 of the": (recipe(zigzag).images,),
    },
    "learning_a_four": lambda: {
        "one image of a 4 (left)": (lifts.TAUGHT,),
        "a 4, a 6, a 9 and a 0": importlib.import_module("toyld.figures.learning_a_four").SEEN,
    },
}


def plain(text: str) -> str:
    """A text in one line, the matrix of ones without its number."""
    return " ".join(text.split()).replace("c·11ᵀ", "c·ones")


def texts(slug: str) -> str:
    one = figures.every()[slug]
    return plain(f"{one.title}. {one.caption} {one.differs or ''}")


@cache
def held(slug: str) -> Mapping[str, Any]:
    return {plain(phrase): values for phrase, values in HELD.get(slug, dict)().items()}


@cache
def known(slug: str) -> tuple[np.ndarray, frozenset[int]]:
    """The numbers that stand in a figure's code, columns and claims; the numbers of seeds that it has."""
    module, data = importlib.import_module(f"toyld.figures.{slug}"), table(slug)
    found = [x for name, value in vars(module).items() if name.lstrip("_").isupper() for x in _flat(value)]
    for name in data[0] if data else ():
        column = {row[name] for row in data}
        if len(column) <= FEW and all(re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell) for cell in column):
            found += map(float, column)
    for id in figures.every()[slug].claims:
        found += [number.value for number in numerals(claims.every()[id].statement)]
    seeds = {int(row["seeds"]) for row in data if "seeds" in row} | {
        int(x) for x in _flat(getattr(module, "SEEDS", ()))
    }
    return np.array(found), frozenset(seeds)


def _among(number: Any, values: np.ndarray) -> bool:
    slack = 1e-9 * abs(number.value)
    return bool(((values >= number.low - slack) & (values <= number.high + slack)).any())


def free(slug: str, text: str) -> list[str]:
    """The numbers of a text about a figure that nothing holds, each with what stands around it."""
    values, seeds = known(slug)
    for phrase in held(slug):
        text = text.replace(phrase, " ")
    left = []
    for form, right in ((LEVEL, {95}), (SEEDS, seeds)):
        left += [f"{m[0]} in “…{text[max(0, m.start() - 40) : m.end() + 30]}…”"
                 for m in form.finditer(text) if int(m[1]) not in right]  # fmt: skip
        text = form.sub(" ", text)
    text = prose.unnamed(text)
    for number in numerals(text):
        if number.text.lstrip("+−-") in ("0", "1") or not re.search(r"\d", number.text):
            continue
        near = [other for changed in planted.others(number.text) for other in numerals(changed)]
        if not _among(number, values) or any(_among(other, values) for other in near):
            left.append(f"{number.text} in “…{text[max(0, number.start - 40) : number.stop + 30]}…”")
    return left


@pytest.mark.parametrize("slug", SLUGS)
def test_phrases_of_a_caption_say_what_its_data_and_code_say(slug: str) -> None:
    text = texts(slug)
    for phrase, values in held(slug).items():
        assert phrase in text
        says(phrase, *values)


@pytest.mark.parametrize("slug", SLUGS)
def test_no_number_of_a_caption_comes_to_be_unheld(slug: str) -> None:
    left = free(slug, texts(slug))
    told = "\n".join(left)
    assert len(left) == FREE.get(slug, 0), f"hold it in HELD, or count it in FREE:\n{told}"


def test_a_wrong_number_in_a_caption_turns_red() -> None:
    tried, passed = 0, []
    for slug in SLUGS:
        text = texts(slug)
        unheld = [told.split(" in ")[0] for told in free(slug, text)]
        for told, changed in planted.wrong(text, prose.excused(text)):
            number = told.split(" → ")[0]
            if not re.search(r"\d", number) or number in unheld:
                continue
            tried += 1
            if len(free(slug, changed)) == len(unheld) and all(phrase in changed for phrase in held(slug)):
                passed.append(f"{slug}: {told}")
    assert tried >= 200
    assert not passed, "\n".join(passed)


def test_intervals_of_figures_are_those_of_95_per_cent() -> None:
    from scipy.special import stdtr

    mean, _, high = _look.interval([1.0, 2.0, 3.0])
    covered = 1 - 2 * float(stdtr(2, -(high - mean) * 3**0.5))
    assert abs(covered - 0.95) < 1e-9
