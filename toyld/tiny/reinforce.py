"""Policy gradients with a verifier: sample answers, push the right ones up and the wrong ones down, and again.

One iteration, of many models at once:

    G answers to every prompt, sampled from π at temperature 1; r = 1 where the facts are right (`toyld.tiny.verifier`)
    Â = 2r − 1 ("signed") | r − mean of the prompt's other answers ("baseline") | (r − mean)/std ("group")
    times `positive` where Â > 0, `negative` where Â < 0: (1, 0) is PSR, (0, 1) NSR, (.1, 1) weighted REINFORCE
    `inner` updates of θ on the mean of an objective over all answers, π_old = the policy that sampled

Answers with Â > 0 are the objective's chosen side, those with Â < 0 its rejected side; others push nothing. PPO reads Â
as it is: with "group" it is GRPO (divided by |y| where `per_token`); at the first inner update ρ = 1, and it is
REINFORCE. `REINFORCE` has the push Â at every inner update, without a ratio. TOPR, NSR, … read no Â: a weight of 0
drops a side, other weights mean nothing to them.

What is drawn depends on (seed, iteration) alone, so that number, parameters and the optimiser's memory say all.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.checked import BadInput
from toyld.contexts.rows import Rows
from toyld.contexts.world import Responses
from toyld.objectives import PPO, AsymRE, looks_across
from toyld.tiny.language import Language, sequences
from toyld.tiny.models import Models
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.stage import Scene
from toyld.tiny.verifier import HOW, Answers, How, advantages, ask_models

__all__ = ["REINFORCE", "Practice", "Round", "State", "learn", "mean"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
REINFORCE = AsymRE(baseline=0.0)  # −Σ Â ℓ


@dataclass(frozen=True)
class Practice:
    """What one iteration does; numbers marked (S,) may be arrays, one a member.

    objective: reads log-probabilities, those of π_old = π_ref, advantages. samples: G. inner: updates on the same
    answers. lr (S,): of the mean over all answers, those that push nothing included. advantage, positive (S,),
    negative (S,): see the module. per_token: Â is divided by the answer's length. temperature (S,): of sampling; π_old
    is that of temperature 1. partial: the reward is the share of true concepts.

    Raises BadInput for an objective that looks at other rows (GRPO's: its rows here are masked by sign; use PPO).
    """

    objective: Any = field(default_factory=PPO)
    samples: int = 8
    inner: int = 1
    lr: Any = 0.1
    optimizer: Optimizer = field(default_factory=Optimizer)
    advantage: How = "signed"
    positive: Any = 1.0
    negative: Any = 1.0
    per_token: bool = False
    temperature: Any = 1.0
    partial: bool = False

    def __post_init__(self) -> None:
        if self.advantage not in HOW:
            msg = f"advantage: expected one of {', '.join(HOW)}, got {self.advantage!r}; correct it"
            raise BadInput(msg)
        least = 1 if self.advantage == "signed" else 2
        if self.samples < least or self.inner < 1:
            msg = f"samples, inner: expected at least {least} and 1, got {self.samples} and {self.inner}; correct them"
            raise BadInput(msg)
        if np.any(np.asarray(self.positive) < 0) or np.any(np.asarray(self.negative) < 0):
            msg = f"positive, negative: expected weights of 0 or more, got {self.positive} and {self.negative}"
            raise BadInput(f"{msg}; 0 leaves a sign out")
        if not np.all(np.asarray(self.temperature) > 0):
            raise BadInput(f"temperature: expected more than 0, got {self.temperature}; correct it")
        if looks_across(self.objective):
            msg = f"objective: expected one that looks at one answer at a time, got {self.objective.name}"
            raise BadInput(msg + '; for GRPO use PPO() with advantage="group"')


@dataclass(frozen=True)
class State:
    """Where a run stands: the models, what the optimiser remembers, iterations behind it."""

    models: Models
    memory: dict[str, torch.Tensor]
    iteration: int = 0

    @classmethod
    def start(cls, models: Models, practice: Practice, /) -> State:
        """Before the first iteration."""
        return cls(models, practice.optimizer.memory(models.flat))


class Round:
    """Answers as rows of an objective: what an inner update needs, and what can be read off it.

    said: what was sampled. sign (S, P·G): 1 on the chosen side, −1 on the rejected side, 0 on neither. logits: of
    `old`, which is π_old and π_ref.
    """

    def __init__(self, old: Models, language: Language, said: Answers, practice: Practice, /) -> None:
        s, p, n = said.reward.shape
        prompt, text = said.prompt.reshape(s, p * n), said.text.reshape(s, p * n, -1)
        given = advantages(said.reward, practice.advantage).reshape(s, p * n)
        given = np.where(given > 0.0, _column(practice.positive), _column(practice.negative)) * given
        self.said, self.sign = said, np.sign(given)
        if practice.per_token:
            given = given / np.maximum((text >= 0).sum(-1), 1)
        inputs, labels = sequences(language, prompt, text)
        where, length, width = old.flat.device, text.shape[-1], inputs.shape[-1]
        self.inputs = torch.from_numpy(inputs).to(where)
        self.label = torch.from_numpy(np.maximum(labels, 0)).to(where)
        self.mask = torch.from_numpy((labels >= 0) & (self.sign != 0)[..., None]).to(where)
        place = np.arange(p * n)[:, None] * width + width - length + np.arange(length)
        context = torch.from_numpy(np.broadcast_to(place, labels.shape).copy()).to(where)
        up = torch.from_numpy(self.sign > 0).to(where)[..., None]
        # Both sides lie on the same rows of tokens, so that no answer is read twice.
        sides = {
            "chosen": Responses(context, self.label, self.mask & up),
            "rejected": Responses(context, self.label, self.mask & ~up),
        }
        scene = Scene(self.inputs, sides, language.sizes.classes, old.flat[:1, :1])
        self._graph: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = (old.flat, *self._forward(old))
        self.logits = self._graph[2].detach().flatten(1, 2)
        own = dict.fromkeys(sides, given)
        self.rows = Rows(scene, practice.objective, {side: side for side in sides}, self.logits, advantages=own)

    def gradient(self, models: Models, /) -> torch.Tensor:
        """∂L/∂θ (S, parameters) of the mean loss over all answers."""
        # The first update is one of the models that sampled: their logits are at hand.
        known, self._graph = self._graph, None
        leaf, z = known[1:] if known is not None and known[0] is models.flat else self._forward(models)
        r = self.rows.residual(z.detach().flatten(1, 2))
        (g,) = torch.autograd.grad(z, leaf, r.view(z.shape))
        return g

    def read(self, models: Models, /) -> torch.Tensor:
        """Logits (S, contexts, V) at the answers."""
        with torch.no_grad():
            return models.logits(self.inputs).flatten(1, 2)

    def errors(self, z: torch.Tensor, /) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """π − e_y (S, P·G, T, V), log π_y and the entropy of π (S, P·G, T), at logits of `read`."""
        log_pi, label = self._own(z).log_softmax(-1), self.label[..., None]
        pi = log_pi.exp()
        logp, entropy = log_pi.gather(-1, label)[..., 0], -(pi * log_pi).sum(-1)
        return pi.scatter_add(-1, label, -torch.ones_like(pi[..., :1])), logp, entropy

    def tokens(self, z: torch.Tensor, /) -> dict[str, Floats]:
        """Of every token (S, P·G, T) at logits of `read`: logp, entropy of π, gap = ‖π − e_y‖, push; NaN = not pushed.

        push: the coefficient c that the objective gives it, read off the residual c(π − e_y) itself.
        """
        error, logp, entropy = self.errors(z)
        gap = error.norm(dim=-1)
        r = self._own(self.rows.residual(z.clone())) * self.rows.number
        push = (r * error).sum(-1) / gap.square().clamp(min=torch.finfo(gap.dtype).tiny)
        return self._pushed({"logp": logp, "entropy": entropy, "gap": gap, "push": push})

    def losers(self, before: torch.Tensor, after: torch.Tensor, /) -> Floats:
        """Share (S, P·G, T) of the other tokens whose log π fell between two logits of `read`; NaN = not pushed."""
        fell = self._own(after).log_softmax(-1) < self._own(before).log_softmax(-1)
        count = fell.sum(-1) - fell.gather(-1, self.label[..., None])[..., 0].long()
        return self._pushed({"losers": count / (fell.shape[-1] - 1)})["losers"]

    def seen(self, z: torch.Tensor, /) -> dict[str, Floats]:
        """The columns of `learn` (S,) at logits of `read`."""
        error, logp, entropy = self.errors(z)
        token = self._pushed({"entropy": entropy, "gap": error.norm(dim=-1), "deep": (logp <= -entropy).to(logp.dtype)})
        reward, down = self.said.reward, self.sign < 0
        return {
            "reward": reward.mean((1, 2)),
            "pass": (reward > 0.0).any(-1).mean(-1),
            "entropy": mean(token["entropy"], self.sign != 0),
            "valley": mean(token["deep"], down),
            "gap": mean(token["gap"], down),
        }

    def _forward(self, models: Models) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = models.flat.detach().requires_grad_()
        return leaf, models.logits(self.inputs, leaf)

    def _own(self, z: torch.Tensor) -> torch.Tensor:
        """(S, P·G, T, V): at the contexts that the answers' tokens were drawn in."""
        return z.view(*self.inputs.shape, -1)[:, :, self.inputs.shape[-1] - self.label.shape[-1] :]

    def _pushed(self, found: dict[str, torch.Tensor]) -> dict[str, Floats]:
        mask = self.mask.cpu().numpy()
        return {name: np.where(mask, value.double().cpu().numpy(), np.nan) for name, value in found.items()}


def _column(value: Any) -> Floats:
    """A number, or one a member, as (1, 1) or (S, 1)."""
    return np.asarray(value, float).reshape(-1, 1)


def mean(token: Floats, where: NDArray[np.bool_], /) -> Floats:
    """Mean (S,) over tokens (S, N, T) of marked rows (S, N) or tokens; NaN = no token, and where there is none.

    >>> mean(np.array([[[1.0, np.nan], [5.0, 6.0]]]), np.array([[True, False]])).tolist()
    [1.0]
    """
    there = (where if where.ndim == 3 else where[..., None]) & ~np.isnan(token)
    count = there.sum((1, 2))
    return np.where(count > 0, np.where(there, token, 0.0).sum((1, 2)) / np.maximum(count, 1), np.nan)


def learn(
    state: State, language: Language, prompts: Ints, practice: Practice, /, *, until: int,
    behaviour: Models | None = None, losers: bool = False,
) -> tuple[State, dict[str, Floats]]:  # fmt: skip
    """Run iterations up to number `until` on prompts (S, P): the state after them, and columns (iteration, S).

    behaviour: who answers, fixed; by default the models themselves, as they are. It is π_old and π_ref, too.

    Columns, of the answers of an iteration, before its updates: reward; pass, the share of prompts with a right one;
    entropy of π at the tokens that are pushed, nats; of those that are pushed down valley, the share with
    log π ≤ −H(π), gap, the mean of ‖π − e_y‖, and with `losers` the share of the other tokens whose log π then falls.

    >>> from toyld.tiny import Shape, Sizes, draw, start
    >>> language, prompts = draw(Sizes(), range(2)), np.zeros((2, 3), int)
    >>> practice, models = Practice(samples=4), start(Shape(39, 8), range(2))
    >>> state, found = learn(State.start(models, practice), language, prompts, practice, until=2)
    >>> state.iteration, found["reward"].shape
    (2, (2, 2))
    """
    if until <= state.iteration:
        raise BadInput(f"until: expected more than the {state.iteration} iterations behind, got {until}; correct it")
    models, memory = state.models, practice.optimizer.resumed(state.models.flat, state.memory)
    eta = torch.as_tensor(practice.lr, dtype=models.flat.dtype, device=models.flat.device)
    eta = (eta + models.flat.new_zeros(len(models)))[:, None]
    how = {"samples": practice.samples, "temperature": practice.temperature, "partial": practice.partial}
    columns: dict[str, list[Floats]] = {}
    for number in range(state.iteration, until):
        old = models if behaviour is None else behaviour
        one = Round(old, language, ask_models(old, language, prompts, draw=number, **how), practice)
        before = one.logits if behaviour is None else one.read(models)
        now = models
        for _ in range(practice.inner):
            flat = now.flat.clone()
            practice.optimizer.step(flat, one.gradient(now), memory, eta)
            now = replace(models, flat=flat)
        seen = one.seen(before)
        if losers:
            seen["losers"] = mean(one.losers(before, one.read(now)), one.sign < 0)
        models = now
        for name, value in seen.items():
            columns.setdefault(name, []).append(value)
    return State(models, memory, until), {name: np.stack(values) for name, values in columns.items()}
