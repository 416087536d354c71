"""Numbers in README's prose: each is held to what the package, its figures' data or its evidence give, or excused."""

import csv
import dataclasses
import inspect
import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toyld import claims, objectives, tiny
from toyld.book import chapters, planted, prose
from toyld.book.says import numerals, says
from toyld.claims import premem_runs
from toyld.contexts import experiments as contexts_experiments
from toyld.contexts import languages, predict
from toyld.contexts.experiments import stages
from toyld.diagnosis import DEFAULT
from toyld.digits import experiments as digits_experiments
from toyld.digits.experiments import stability
from toyld.figures import _look
from toyld.lab import golden, quiz
from toyld.llm.plan import RECIPES
from toyld.tiny import experiments as tiny_experiments
from toyld.tiny import plan
from toyld.tiny.experiments import _worlds, premem

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COUNTS = dict(zip(WORDS, range(2, 11), strict=True))
PARTS = "thirds|fifths|tenths|hundred|thousand|million"

# What no code gives in seconds: durations, hardware, advice, names of things and turns of speech.
EXCUSED = {
    "Two CPU cores are enough": "hardware",
    "why two answers in one context cannot show displacement and in two contexts can": "names a set-up of the lab",
    "without a GPU starts two": "what another program does",
    "One step on a 4, seen by a 4, a 6, a 9 and a 0": "names of digits",
    "one step on a 4 raises class 4 everywhere, on a 6 most": "names of digits; the figure's check holds the order",
    "a 6 looks like a 4": "names of digits",
    "did to a 4 over the run": "names a digit",
    "the 4's partner is the 9": "names of digits",
    "small enough to repeat a hundred times": "a turn of speech",
    "and, on two CPU cores, about a quarter of an hour": "a duration",
    "of models of less than a million parameters": "models that stand in no file of this repository",
    "which should grow by some ten nats": "advice",
    "a Llama of a hundred thousand parameters": "the model that `toyld example` makes in a minute",
    "3 read squeezing, one rejection": "of runs that take minutes each",
    "A Llama of 5.9 million parameters": "a model that stands in no file of this repository",
    "in about four minutes": "a duration",
    "for one model and two answers": "names the set-up of a claim",
    "one prompt with two lessons": "names the set-up of a claim",
    "On MNIST 4 and 9 couple": "names of digits",
    "9 is the likeliest wrong class for a 4": "names of digits",
    "compares two": "two names on a command line",
}


def digits(text: str) -> str:
    """A text in one line with small counts as digits: two → 2; a power of ten as e−9, so that it is no name."""
    text = re.sub(
        rf"\b({'|'.join(COUNTS)})\b(?!\s(?:{PARTS})\b)", lambda m: str(COUNTS[m[0].lower()]), text, flags=re.I
    )
    return " ".join(re.sub(r"(?<=\d)e-(?=\d)", "e−", text).split())


def readme(text: str) -> str:
    """README's prose: without code blocks and the tables that are generated, its links without their addresses."""
    text = re.sub(r"```.*?```|<!-- (\w+) -->.*?<!-- /\1 -->", " ", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "`…`", text))


def table(slug: str, **chosen: str) -> list[dict[str, str]]:
    """The rows of a figure's CSV that have these values."""
    with (ROOT / "figures" / f"{slug}.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if chosen.items() <= row.items()]
    assert rows, f"{slug}.csv has no row with {chosen}"
    return rows


def evidence(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "toyld" / "evidence" / f"{name}.json").read_text(encoding="utf-8"))


def seeds(slug: str) -> int:
    """How many seeds the intervals of a figure are over."""
    (count,) = {int(row["seeds"]) for row in table(slug)} - {0}
    return count


def level() -> float:
    """Of the figures' intervals: how often Student's interval of three numbers covers their mean."""
    from scipy.special import stdtr

    mean, _, high = _look.interval([1.0, 2.0, 3.0])
    return 1 - 2 * float(stdtr(2, -(high - mean) * 3**0.5))


def falls() -> int:
    """How many answers fall in the first figure, beside the one that is pushed."""
    before, after = (
        [float(row["mean"]) for row in table("squeezing_at_a_glance", part="step", line=line)]
        for line in ("before", "after")
    )
    ratio = np.array(after) / np.array(before)
    return int((ratio < 1).sum()) - 1


def missed(panel: str) -> float:
    rows = table("confusion", panel=panel, cause="squeezing")
    return sum(float(row["share"]) for row in rows if row["verdict"] != "squeezing")


def noise(panel: str) -> float:
    (value,) = {float(row["noise_nats_per_token"]) for row in table("confusion", panel=panel)}
    return value


def asked() -> float:
    """The probability of the class that the command under "One update, by hand" pushes down."""
    command = re.search(r"toyld step --probs ([\d. ]+) --label (\d)", README.read_text(encoding="utf-8"))
    return [float(p) for p in command[1].split()][int(command[2])]


def equal_policies() -> float:
    """x of DPO's loss ln x where policy and reference are equal."""
    one = np.array([[-1.0, -2.0]])
    sides = {"chosen": one, "rejected": one, "ref_chosen": one, "ref_rejected": one}
    masks = dict.fromkeys(("chosen_mask", "rejected_mask"), np.ones((1, 2), bool))
    return math.exp(float(np.mean(objectives.get("dpo").loss(objectives.Batch(**sides, **masks)))))


def lines() -> int:
    """How many lines of the script that README shows are there for the callback, beside the import."""
    (script,) = re.findall(r"<!-- script -->\n(.*?)<!-- /script -->", README.read_text(encoding="utf-8"), re.S)
    return len([line for line in script.splitlines() if re.search(r"ProbeSet\.|LearningDynamicsCallback\(", line)])


def processes() -> list[float]:
    """What the test in two processes has: how many, and how far the first and the last probes may be off."""
    text = (ROOT / "tests" / "llm" / "test_distributed.py").read_text(encoding="utf-8")
    patterns = (r'"WORLD_SIZE": (\d)', r"off\[:, 0\]\) <= (\S+)", r"off\[:, -1\]\) <= (\S+)")
    return [float(re.search(pattern, text)[1]) for pattern in patterns]


def plans(heading: str) -> float:
    """The number in a heading of theory/README.md."""
    text = (ROOT / "theory" / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## ({heading}) minutes$", text, re.M | re.I)
    (number,) = numerals(digits(found))
    return number.value


def peak() -> float:
    (constant,) = re.findall(r"√3 ≈ (\.\d+)", claims.every()["squeeze.peak-takes-all"].statement)
    return float(constant)


def nines() -> list[int]:
    """Of a 4 on MNIST: seeds whose likeliest wrong class is 9, seeds, designs; the same in each design."""
    trials = evidence("digits-lifts")["results"]["lifts.top-partner-of-four"]["trials"]
    least = {min(sum(x > 0 for x in measure) for measure in trial["per_seed"]) for trial in trials}
    return [*least, trials[0]["n"], len({trial["runs"][0] for trial in trials})]


def wins() -> list[float]:
    """How often greedy answers after extended SFT win beside plain SFT of as many passes: before DPO, at best."""
    rows = [row for m in ("rmsprop", "sgd") for row in table("wins_by_ground_truth", model=m, what="wins", of="passes")]
    greedy = [row for row in rows if row["how"] == "greedy"]
    before = next(row for row in greedy if row["model"] == "rmsprop" and row["updates"] == "0")
    return [float(before["mean"]), max(float(row["mean"]) for row in greedy)]


def foretold(number: str) -> float:
    """R² of a number itself for test accuracy, over all recipes and seeds of the recorded grid."""
    (row,) = table("premem_over_recipes", what="itself", of=number, model="both")
    return float(row["value"])


def explained() -> float:
    """The least share of SFT of all layers that the closed form explains."""
    rows = table("closed_form_and_network", stage="sft", by="gram", what="explained")
    return 1 - max(10 ** float(row["mean"]) for row in rows)


def default(function: Callable[..., Any], name: str) -> float:
    return inspect.signature(function).parameters[name].default


def held() -> dict[str, tuple[Any, ...]]:
    """The phrases of README, and what the numbers in each come from, in order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    shape = {field.name: field.default for field in dataclasses.fields(tiny.Shape)}
    small, large = (_worlds.SIZES[size] for size in ("smoke", "paper"))
    fewer = {setting.seeds for setting in stability.SIZES["smoke"] if setting.seeds}
    published = evidence("published-authors")
    told = [t for r in published["results"].values() for t in r.get("per_run", ()) if t.get("n")]
    llm = [path.stem for path in (ROOT / "toyld" / "evidence").glob("llm-*.json") if evidence(path.stem).get("model")]
    recorded = [name for name in llm if "supervised.chosen-rises" in evidence(name)["results"]]
    tiny_seeds = len(tiny_experiments.RECORD["smoke"])
    common = {name: stages.MODELS[name].get("common", 0.0) for name in ("local", "mixed", "anisotropic")}
    assert len({contexts_experiments.RECORD, digits_experiments.RECORD["smoke"]}) == 1
    assert common["local"] == 0.0
    assert common["anisotropic"] > 0.5
    return {
        "ten answers that nobody mentioned fall": (falls(),),
        "Python 3.11 or later": (project["requires-python"].removeprefix(">="),),
        "say of thirteen runs": (len(quiz.RUNS),),
        "checked against the package's to 1e-9": (golden.RTOL,),
        "thirteen chapters": (len(chapters.found(ROOT / "theory")),),
        "paths for ten minutes, for fifty, and": (plans("ten"), plans("fifty")),
        "its 95 % interval over examples": (DEFAULT.level,),
        "on 200 synthetic runs": ({int(row["runs"]) for row in table("confusion")}.pop(),),
        "missed in 4 % of its runs, in 8 % at three times the noise": (
            missed("A"),
            missed("B"),
            noise("B") / noise("A"),
        ),
        "Two lines more in a script": (lines(),),
        "(RMSprop 5e-7, 5000 pairs, 500 probes)": tuple(RECIPES["paper"][name] for name in ("lr", "pairs", "probes")),
        "(ln 2 for DPO)": (equal_policies(),),
        "(tested in two processes on gloo: the first probes within 1e-6 nats a token of one process, the last ones "
        "within 1e-3)": tuple(processes()),
        "a class of probability 2 %": (asked(),),
        "share nothing, a tenth, and more than half of their": (common["mixed"], common["anisotropic"]),
        "means and 95 % intervals over 32 seeds": (level(), seeds("dpo_in_closed_form")),
        "embedded digits, 32 networks": (seeds("learning_a_four"),),
        "over 20 languages and models": (seeds("dpo_in_transformers"),),
        "takes 32 seeds": (plan.SIZES["paper"]["seeds"],),
        "Two such runs are recorded": (len(recorded),),
        "rest on 32 seeds each (16 or 8": (
            len(contexts_experiments.RECORD),
            *sorted(fewer, reverse=True),
        ),
        "(20 seeds)": (tiny_seeds,),
        "A peak of 1/√3 takes all**: once the top class holds .577": (1, peak() ** -2, peak()),
        "by eight large ones": (default(predict.foresee, "updates"),),
        "in 10 of 10 seeds of each of four designs": tuple(nines()),
        "(20 languages and models;": (tiny_seeds,),
        ".45 before DPO, .52 at its best": tuple(wins()),
        "so far as 20 seeds can tell": (tiny_seeds,),
        "108 recipes of finetuning with an R² of .78, training accuracy with −.66": (
            len(premem.settings("paper")),
            foretold("premem"),
            foretold("train"),
        ),
        "that the .9 that was reported": (premem_runs.REPORTED,),
        "two thirds or more of SFT": (explained(),),
        "(two layers of width 32, eight prompts,": (shape["depth"], shape["width"], small["prompts"]),
        "three layers of 64": (large["model"]["depth"], large["model"]["width"]),
        "two small runs are recorded": (len(recorded),),
        "in two small made-up languages": (len({"facts", "markov"} & set(languages.__all__)),),
        "six logs of two Pythia models": (
            len(published["runs"]),
            len({r["model"] for r in published["runs"].values()}),
        ),
        "over 500 examples": (max(trial["n"] for trial in told),),
        "fewer than eight evaluations": (DEFAULT.jitter_evaluations,),
    }


def faults(text: str, phrases: list[str]) -> list[str]:
    """The numbers of a text that stand in none of the phrases, and phrases that it does not have."""
    text, found = digits(text), []
    for phrase in map(digits, phrases):
        if phrase not in text:
            found.append(f"README does not say “{phrase}”")
        text = text.replace(phrase, " ")
    left = prose.unnamed(text)
    return found + [f"nothing holds {n.text} in “…{left[max(0, n.start - 40) : n.stop + 30]}…”"
                    for n in numerals(left) if n.text.lstrip("+−-") not in ("0", "1")]  # fmt: skip


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[Any, ...]]:
    return held()


def test_the_numbers_of_readme_are_those_of_the_code(known):
    tried = [says(digits(phrase), *values) for phrase, values in known.items()]  # raises where one is not printed
    assert len(tried) >= 30


def test_nothing_in_readme_has_a_number_that_is_not_held(known):
    told = faults(readme(README.read_text(encoding="utf-8")), [*known, *EXCUSED])
    assert told == [], "\n".join(told)


def test_a_wrong_number_in_readme_turns_red(known):
    text, tried = digits(readme(README.read_text(encoding="utf-8"))), 0
    for phrase in map(digits, known):
        for told, changed in planted.wrong(phrase, ()):
            tried += 1
            assert faults(text.replace(phrase, changed), [*known, *EXCUSED]), told
            with pytest.raises(AssertionError, match=r"is printed where|expected a value for each"):
                says(changed, *known_values(known, phrase))
    assert tried >= 60


def known_values(known: dict[str, tuple[Any, ...]], phrase: str) -> tuple[Any, ...]:
    return next(values for one, values in known.items() if digits(one) == phrase)
