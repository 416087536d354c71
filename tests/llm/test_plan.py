"""Plans of `toyld run llm`: recipes as stated, arms as long as they say, what cannot be is refused."""

import re

import pytest

from toyld import cli_run, objectives
from toyld.checked import BadInput
from toyld.llm.plan import ARMS, RECIPES, Plan, on_pairs
from toyld.running import llm_plan


def test_the_papers_recipe_is_the_papers():
    plan = llm_plan("paper", model="M", data="D")
    wanted = {"optimizer": "rmsprop", "sft_lr": 5e-7, "lr": 5e-7, "warmup": 150, "batch": 4, "clip": 10.0}
    wanted |= {"max_length": 512, "pairs": 5000, "probes": 500, "seed": 1024, "epochs": 8.0, "bf16": False}
    assert {name: getattr(plan, name) for name in wanted} == wanted
    assert on_pairs(plan.objective, **plan.parameters).beta == 0.1
    assert plan.between("sft", 5000) == plan.between("dpo", 5000) == 250, "an evaluation each 1000 examples"
    assert (plan.updates("sft", 5000), plan.updates("dpo", 5000)) == (5000, 10000)
    assert llm_plan("paper", model="M", data="D", evaluations=10).between("dpo", 5000) == 1000


def test_the_help_says_the_recipes_numbers():
    words = re.sub(r"\s+", " ", cli_run.llm.__doc__)
    names = "sft_lr lr warmup clip sft_epochs epochs batch pairs probes max_length seed"
    for name in names.split():
        small, paper = (RECIPES[recipe][name] for recipe in ("small", "paper"))
        assert re.search(rf" {name}: ((?! \w+: ).)*\({small:g} \| {paper:g}\)", words), name
    assert f"({RECIPES['small']['evaluations']}; the paper's" in words
    assert f"evaluations; {RECIPES['paper']['every']})" in words


def test_arms_are_as_long_as_they_say():
    plan = Plan("M", "D", arms=tuple(ARMS), batch=8, accumulation=2, sft_epochs=2, pairs=320, probes=1)
    updates = {arm: plan.updates("sft", 320, ARMS[arm].sft) for arm in ARMS}
    assert updates == {"baseline": 40, "extend-updates": 40, "extend-passes": 80, "on-policy": 40}
    lengths = {arm: tuple(plan.length(arm, 320).values()) for arm in ARMS}
    assert lengths["extend-updates"] == (lengths["baseline"][0], lengths["baseline"][1] / 2)
    assert lengths["extend-passes"] == (2 * lengths["baseline"][0], lengths["baseline"][1])
    assert plan.taught == ("baseline", "extend-updates", "extend-passes"), "on-policy follows baseline's"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": 0.0}, "--lr: expected a finite number > 0, got 0.0"),
        ({"lr": float("nan")}, "--lr: expected a finite number > 0, got nan"),
        ({"sft_term": -1.0}, "--sft-term: expected a finite number >= 0, got -1.0"),
        ({"arms": ("baseline", "plain")}, "--arms: expected some of baseline, .*, got baseline, plain"),
        ({"batch": 3, "processes": 2}, "--batch: expected a multiple of the 2 processes, got 3"),
        (
            {"objective": "ppo"},
            "--objective: expected one that reads pairs .*, got ppo, which reads chosen_advantage; use",
        ),
        ({"objective": "bs-t"}, "got bs-t, which reads a target distribution; use"),
        ({"objective": "dop"}, "no objective 'dop'; known: sft, "),
        ({"objective": "sft", "parameters": {"beta": 1.0}}, "sft has no parameter beta"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_in_one_line(given, words):
    with pytest.raises(BadInput, match=words) as bad:
        Plan("M", "D", **given)
    assert "\n" not in str(bad.value)


def test_all_objectives_of_pairs_can_be_trained_and_no_other():
    able = set()
    for name in objectives.OBJECTIVES:
        try:
            able.add(on_pairs(name).name)
        except BadInput:
            continue
    assert set(objectives.OBJECTIVES) - able == {"topr", "asymre", "slic", "ppo", "grpo", "topr-token", "bs-t"}
