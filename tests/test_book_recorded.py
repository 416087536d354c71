"""What chapters quote of the recorded evidence is what the files of the package say, whatever data are at hand."""

import json
from importlib.resources import files

import pytest

from toyld.book import recorded, verdict
from toyld.checked import BadInput
from toyld.claims import published

FOLDER = files("toyld").joinpath("evidence")


def _trials(name, id):
    return json.loads(FOLDER.joinpath(name).read_text(encoding="utf-8"))["results"][id]


@pytest.mark.parametrize(("rung", "name"), [("tiny", "tiny-stages.json"), ("contexts", "contexts-stages.json")])
@pytest.mark.parametrize("id", ["preference.margin-grows", "preference.chosen-falls"])
def test_every_trial_is_found_by_its_name_and_says_what_the_file_says(rung, name, id):
    one = _trials(name, id)
    assert verdict(id, rung=rung) == one["verdict"]
    assert recorded(id, rung=rung).value == one["effect"]
    for trial in one["trials"]:
        (run,) = trial["runs"]
        effect = recorded(id, run, rung=rung)
        assert (effect.value, effect.low, effect.high, effect.n) == tuple(
            trial[k] for k in ("effect", "low", "high", "n")
        )
        assert verdict(id, run, rung=rung) == trial["verdict"]


def test_words_must_all_stand_in_the_names_of_run_and_control():
    id, words = "preference.extend-slows-others", ("sgd", "extend", "baseline after 15")
    wanted = [t for t in _trials("tiny-stages.json", id)["trials"] if all(w in " ".join(t["runs"]) for w in words)]
    assert [t["effect"] for t in wanted] == [recorded(id, *words, rung="tiny").value]


def test_released_logs_are_quoted_from_the_package_alone(monkeypatch):
    asked, outcomes = [], published.outcomes
    monkeypatch.setattr(published, "outcomes", lambda root: asked.append(root) or outcomes(root))
    told = recorded("preference.margin-grows", rung="published")
    assert asked == [None], "what lies under $TOYLD_DATA must not change a chapter"
    assert told.value == _trials("published-authors.json", "preference.margin-grows")["effect"]


def test_real_language_models_are_quoted_too():
    one = _trials("llm-stories.json", "preference.margin-grows")["trials"][0]
    assert recorded("preference.margin-grows", *one["runs"], rung="llm").value == one["effect"]


@pytest.mark.parametrize("quote", [recorded, verdict])
@pytest.mark.parametrize(
    ("id", "words", "said"),
    [
        ("preference.margin-grows", ("adam",), "which stand in 0"),
        ("preference.margin-grows", ("rmsprop",), "which stand in 2"),
        ("preference.margin-shrinks", (), "expected a claim with a recorded effect"),
        ("similarity.flat-beliefs-spare", (), "expected a claim with a recorded effect"),
        ("squeeze.penalised-falls", ("sgd",), "expected a claim with a recorded effect"),
    ],
)
def test_what_is_not_recorded_is_refused_in_one_line(quote, id, words, said):
    with pytest.raises(BadInput, match=said) as refused:
        quote(id, *words, rung="tiny")
    assert "\n" not in str(refused.value)
