"""Policy gradients with a verifier: signs split, PPO's inner updates, GRPO's lazy likelihoods, whose answers are used.

The models of `_worlds`, taught a little, answer the questions that they were taught, and a reward says which answers
are right (`toyld.tiny.reinforce`). Five designs, the seeds as units, each a table per arm (attrs `design`, `arm`):

- `signs`: 8 iterations of 8 answers a prompt. "signed +" pushes right answers up by 1, "signed −" wrong ones down by 1
  (PSR and NSR); "group", "group +", "group −" have GRPO's advantages, all or those of one sign. Matched in iterations,
  answers and rate, so that the two signs have one expected gradient (signed: `policy.psr-equals-nsr`) or one total
  weight (group: `policy.grpo-weights`). "signed −, small steps" has a quarter of the rate and four times the
  iterations: the sum of its rates is that of "signed −", its steps are as long as those of "signed +".
- `noise`: gradients of "signed +" and "signed −" at the start, of 8 independent samples of that size.
- `inner`: 6 updates on one sample with "group" advantages: "ppo", or "bare", without ratio and clip.
- `displacement`: one update on 16 answers a prompt: "group", and "group +" from the same answers; of models taught for
  as long (attr `taught` 40) or twice as long (80, nearly half of the answers right), at two rates. Of every prompt with
  right and wrong answers the mean change of log π of the right ones, and two numbers known beforehand: GWHES and
  −log π of the right ones, what anybody would guess from.
- `behaviour`: 6 iterations that only push wrong answers down: the models' "own"; "hot" ones, which they sample at
  temperature 2; those of the "frozen" models of the start; the same under "frozen, ppo". As many answers, updates each.

Settings, each with its reason, fixed on seeds from 1000 on:

- 40 updates of SFT at the recipe's rate leave an answer in nine right, and a right one among 16 at seven prompts in
  ten: something to reward at most prompts, and most answers wrong.
- Rates are for 8 prompts and grow with their number, for losses are means over prompts.
- Plain descent: the size of a push is what is asked about, and an optimiser that divides it out would hide it.
- signs: rates .1 (signed) and .07 (group, whose advantage of a right answer is 2.6 at that start) nearly double the
  share of right answers in 8 iterations; at three times these "signed −" destroys its models. The gradient of
  "signed −" is four times as long as that of "signed +": hence the rate .025 of its small steps.
- inner: the rate .05 takes a good half of the rare tokens that are pushed down below ρ = .8 within 6 updates.
- displacement: the rate of one iteration above, and .02; 16 answers, so that most prompts have some of both kinds.
- behaviour: the rate .03, at which the models' own wrong answers cost them little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from toyld import objectives
from toyld.diagnosis.resample import known_mean
from toyld.objectives import PPO
from toyld.tiny.experiments._displaced import gwhes, of_right, ranks
from toyld.tiny.experiments._worlds import RECIPES, World, world
from toyld.tiny.measures import entropy
from toyld.tiny.models import Models
from toyld.tiny.reinforce import REINFORCE, Practice, Round, State, learn, mean
from toyld.tiny.stage import probe, scene, train
from toyld.tiny.verifier import advantages, ask_models, passes
from toyld.trajectory import trajectory

__all__ = ["BEHAVIOURS", "SIGNS", "K", "begun", "behaviour", "displacement", "inner", "noise", "signs", "tables"]

Floats = NDArray[np.float64]
SFT_UPDATES = 40
SAMPLES, ITERATIONS = 8, 8
# Arm: how advantages are made, iterations; weights of both signs, rate.
SIGNS: Mapping[str, tuple[tuple[Any, int], tuple[float, float, float]]] = {
    "signed +": (("signed", ITERATIONS), (1.0, 0.0, 0.1)),
    "signed −": (("signed", ITERATIONS), (0.0, 1.0, 0.1)),
    "signed −, small steps": (("signed", 4 * ITERATIONS), (0.0, 1.0, 0.025)),
    "group": (("group", ITERATIONS), (1.0, 1.0, 0.07)),
    "group +": (("group", ITERATIONS), (1.0, 0.0, 0.07)),
    "group −": (("group", ITERATIONS), (0.0, 1.0, 0.07)),
}
# Arm: objective, temperature, whether the models of the start answer throughout.
BEHAVIOURS: Mapping[str, tuple[Any, float, bool]] = {
    "own": (REINFORCE, 1.0, False),
    "hot": (REINFORCE, 2.0, False),
    "frozen": (REINFORCE, 1.0, True),
    "frozen, ppo": (PPO(), 1.0, True),
}
TOLD, K = 32, 16  # answers a trained prompt in the end, k of pass@k
DRAWS, UPDATES, STEPS = 8, 6, 6  # of noise, inner, behaviour
INNER_RATE, BEHAVIOUR_RATE = 0.05, 0.03
LEVELS = ((1, 0.07), (2, 0.07), (2, 0.02))  # of displacement: how long taught, rate
LATER = 10**6  # draws beyond those of any run


def _rate(start: World, rate: Any, /) -> Any:
    """A rate for 8 prompts, for as many as there are."""
    return rate * start.data.prompts["chosen"].shape[1] / 8


def _taught(start: World, models: Models, done: int = 0, /) -> Models:
    """Models after (more) SFT."""
    recipe, sft = RECIPES["sgd"], objectives.get("sft")
    rate = _rate(start, recipe.sft)
    return train(models, start.data, sft, lr=rate, steps=SFT_UPDATES, done=done, kinds=("chosen",), at=()).models


def begun(seeds: tuple[int, ...], size: str = "smoke") -> tuple[World, Models]:
    """The shared world of these seeds, and its models after a little SFT."""
    start = world(seeds, size)
    return start, _taught(start, start.models)


def _table(
    columns: Mapping[str, Sequence[Floats]], steps: Sequence[int], models: Models, arm: str, design: str
) -> xr.Dataset:
    """Columns (step, S) as a table."""
    return trajectory(
        {f"eval_{name}": np.asarray(value).T for name, value in columns.items()},
        step=list(steps), probe=["answers"], seed=list(models.seeds), world="tiny", stage="rl", arm=arm,
        attrs={"experiment": "policy", "design": design, "model": "tiny", "vocab_size": models.shape.classes},
    )  # fmt: skip


def _answered(models: Models, start: World, members: Sequence[int]) -> dict[str, Floats]:
    """What models answer, (S,) each: right, pass (@K) and entropy; right_new on held-out prompts."""
    data, out = start.data.take(members), {}
    for kind, name, n in (("chosen", "", TOLD), ("test_chosen", "_new", K)):
        said = ask_models(models, data.language, data.prompts[kind], samples=n, draw=LATER)
        out[f"right{name}"] = said.reward.mean((1, 2))
        if not name:
            few = said.prompt[..., :SAMPLES].reshape(len(models), -1)
            text = said.text[:, :, :SAMPLES].reshape(*few.shape, -1)
            out |= {
                "pass": passes(said.reward, K).mean(1),
                "entropy": entropy(models, data.language, few, text).mean(1),
            }
    return out


def signs(start: World, models: Models) -> dict[str, xr.Dataset]:
    """reward: of the answers of an iteration, and in the end of all; the rest before the first and after the last."""
    n, first, out = len(models), _answered(models, start, range(len(models))), {}
    for kind, iterations in dict.fromkeys(how for how, _ in SIGNS.values()):
        arms = {name: given for name, (how, given) in SIGNS.items() if how == (kind, iterations)}
        members, at = list(range(n)) * len(arms), 0
        plus, minus, rate = (np.repeat(value, n) for value in zip(*arms.values(), strict=True))
        how = Practice(samples=SAMPLES, advantage=kind, lr=_rate(start, rate), positive=plus, negative=minus)
        data = start.data.take(members)
        state = State.start(models.take(members), how)
        state, seen = learn(state, data.language, data.prompts["chosen"], how, until=iterations)
        last = _answered(state.models, start, members)
        for name in arms:
            own, at = slice(at, at + n), at + n
            between = [np.full(n, np.nan)] * (iterations - 1)
            columns = {key: [first[key], *between, last[key][own]] for key in first}
            columns["reward"] = [*seen["reward"][:, own], last["right"][own]]
            out[f"policy, signs, {name}"] = _table(columns, range(iterations + 1), models, name, "signs")
    return out


def noise(start: World, models: Models) -> dict[str, xr.Dataset]:
    """Cosines of gradients: of one sign from two samples (draws), of both signs from one (signs) and from all (all)."""
    prompts = start.data.prompts["chosen"]
    found: dict[str, list[torch.Tensor]] = {"signed +": [], "signed −": []}
    for draw in range(DRAWS):
        said = ask_models(models, start.language, prompts, samples=SAMPLES, draw=LATER + 1 + draw)
        for arm, kept in found.items():
            plus, minus, _ = SIGNS[arm][1]
            how = Practice(samples=SAMPLES, positive=plus, negative=minus)
            kept.append(Round(models, start.language, said, how).gradient(models))

    def cosine(a: torch.Tensor, b: torch.Tensor) -> Floats:
        return torch.nn.functional.cosine_similarity(a, b, dim=-1).double().cpu().numpy()

    every, out = {arm: torch.stack(kept) for arm, kept in found.items()}, {}
    both = list(every.values())
    across = {"signs": cosine(*both).mean(0), "all": cosine(*(g.sum(0) for g in both))}
    for arm, g in every.items():
        pairs = [cosine(g[i], g[j]) for i in range(DRAWS) for j in range(i)]
        columns = {"draws": np.mean(pairs, 0), "norm": g.norm(dim=-1).mean(0).double().cpu().numpy()} | across
        out[f"policy, noise, {arm}"] = _table(
            {key: [value] for key, value in columns.items()}, [0], models, arm, "noise"
        )
    return out


def inner(start: World, models: Models) -> dict[str, xr.Dataset]:
    """By updates made, of tokens pushed down that lay in a valley before the first one, or not.

    push: over Â. force: ‖c(π − e_y)‖ over |Â|. fall: of log π, nats. cut: share with ρ < 1 − ε.
    """
    said = ask_models(models, start.language, start.data.prompts["chosen"], samples=SAMPLES, draw=LATER)
    out = {}
    for arm, objective in (("ppo", PPO()), ("bare", REINFORCE)):
        one = Round(models, start.language, said, Practice(objective, SAMPLES, UPDATES, advantage="group"))
        first, now, seen = one.tokens(one.logits), models, []
        down = np.broadcast_to((one.sign < 0)[..., None], first["logp"].shape)
        deep = first["logp"] <= -first["entropy"]
        for update in range(UPDATES + 1):
            token = one.tokens(one.logits if update == 0 else one.read(now))
            push = token["push"] / first["push"]  # at ρ = 1 the push is Â
            fall = first["logp"] - token["logp"]
            cut = np.where(np.isnan(fall), np.nan, fall > -np.log1p(-PPO().clip))
            each = {"push": push, "force": np.abs(push) * token["gap"], "fall": fall, "cut": cut}
            where = {"valley": down & deep, "rest": down & ~deep}
            seen.append({f"{name}_{at}": mean(v, mask) for name, v in each.items() for at, mask in where.items()})
            if update < UPDATES:
                now = replace(now, flat=now.flat - _rate(start, INNER_RATE) * one.gradient(now))
        columns = {key: [row[key] for row in seen] for key in seen[0]}
        out[f"policy, inner, {arm}"] = _table(columns, range(UPDATES + 1), models, arm, "inner")
    return out


def displacement(start: World, models: Models) -> dict[str, xr.Dataset]:
    """Over prompts with both kinds of answers, after one update: gain of log π of the right ones, share that fell.

    right: share of right answers before. foretold: rank correlation of −GWHES with the gain; surprise: of −log π of the
    right answers before. loss_foretold: of the part of GWHES that wrong answers make with how much less the gain is
    than under the positive half.
    """
    more, out = _taught(start, models, SFT_UPDATES), {}
    for level in (1, 2):
        now = (models, more)[level - 1]
        said = ask_models(now, start.language, start.data.prompts["chosen"], samples=K, draw=LATER)
        how = Practice(samples=K, advantage="group")
        one, part = (Round(now, start.language, said, replace(how, negative=w)) for w in (1.0, 0.0))
        step = {"group": one.gradient(now), "group +": part.gradient(now)}
        given = advantages(said.reward, "group")
        score = {"group": gwhes(one, now, given), "group +": gwhes(one, now, np.maximum(given, 0.0))}
        before = one.errors(one.logits)[1]

        def of_rights(token: torch.Tensor, one: Round = one, given: Floats = given) -> Floats:
            total = torch.where(one.mask, token, 0.0).sum(-1).double().cpu().numpy()
            return of_right(total.reshape(given.shape), one.said.reward)

        for rate in (rate for at, rate in LEVELS if at == level):
            gain = {}
            for arm, g in step.items():
                after = one.errors(one.read(replace(now, flat=now.flat - _rate(start, rate) * g)))[1]
                gain[arm] = of_rights(after - before)
            for arm in gain:
                taught = level * SFT_UPDATES
                model = f"taught {taught}, rate {rate:g}"
                columns = {
                    "right": said.reward.mean((1, 2)),
                    "gain": known_mean(gain[arm]),
                    "fell": known_mean(np.where(np.isnan(gain[arm]), np.nan, gain[arm] < 0)),
                    "foretold": ranks(-score[arm], gain[arm]),
                    "surprise": ranks(-of_rights(before), gain[arm]),
                    "loss_foretold": ranks(score["group"] - score["group +"], gain["group +"] - gain["group"]),
                }
                ds = _table({key: [value] for key, value in columns.items()}, [1], models, arm, "displacement")
                out[f"policy, displacement, {model}, {arm}"] = ds.assign_attrs(model=model, taught=taught, rate=rate)
    return out


def behaviour(start: World, models: Models) -> dict[str, xr.Dataset]:
    """Columns of `learn` by iteration; log π of taught (chosen) and held-out (new) right answers at both ends."""
    kinds = {"chosen": "chosen", "test_chosen": "new"}
    prompts, shown, out = start.data.prompts["chosen"], scene(start.data, tuple(kinds), models), {}

    def probed(of: Models) -> dict[str, Floats]:
        found, _ = probe(of, shown)
        return {f"{v}_{name}": found[v][:, i].mean(1) for v in ("logp", "argmax_logp", "entropy")
                for i, name in enumerate(kinds.values())}  # fmt: skip

    first = probed(models)
    for arm, (objective, temperature, frozen) in BEHAVIOURS.items():
        how = Practice(objective, SAMPLES, lr=_rate(start, BEHAVIOUR_RATE), positive=0.0, temperature=temperature)
        who = models if frozen else None
        state = State.start(models, how)
        state, once = learn(state, start.language, prompts, how, until=1, behaviour=who, losers=True)
        state, seen = learn(state, start.language, prompts, how, until=STEPS, behaviour=who)
        nothing, last = np.full(len(models), np.nan), probed(state.models)
        columns = {key: [*once[key], *seen[key], nothing] for key in ("valley", "gap", "reward")}
        columns["losers"] = [once["losers"][0], *[nothing] * STEPS]
        columns |= {key: [first[key], *[nothing] * (STEPS - 1), last[key]] for key in first}
        out[f"policy, behaviour, {arm}"] = _table(columns, range(STEPS + 1), models, arm, "behaviour")
    return out


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """The tables of every design and arm, by name; attrs experiment, design, arm."""
    given = begun(tuple(int(seed) for seed in seeds), size)
    designs = (signs, noise, inner, displacement, behaviour)
    return {name: table for design in designs for name, table in design(*given).items()}
