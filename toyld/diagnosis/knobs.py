"""The knobs, as data: what to change for which verdict, and what is known for and against it, source by source.

Each names the claims of `toyld.claims` that back it, by id: closed forms of one softmax, or of many contexts under one
head that is trained alone. Published numbers are others' measurements; users' reports are threads of other projects,
told without anybody having checked them; `runs` are this project's own, in closed form, and say what they cannot tell.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from toyld.objectives import OBJECTIVES, row

__all__ = ["KNOBS", "Knob", "self_limiting"]


@dataclass(frozen=True)
class Knob:
    """One thing to change, for which verdicts, and what is known about it, source by source.

    `negative`: acts on the push on the rejected answer, so it needs one; `weak`: the published numbers are mixed;
    `trl`: a setting of TRL's. Braces are filled in from the run and from `toyld.objectives`.

    >>> KNOBS[0].knob, KNOBS[0].rank
    ('sft term', 1.0)
    """

    verdicts: tuple[str, ...]
    knob: str
    change: str
    closed_form: str = ""
    claims: tuple[str, ...] = ()
    published: str = ""
    reports: str = ""
    runs: str = ""
    negative: bool = False
    weak: bool = False
    trl: bool = True

    @property
    def rank(self) -> float:
        """Smaller is better backed: theory and measurement, theory, measurement, reports (the run itself is 0)."""
        two = bool(self.closed_form) and bool(self.published)
        backing = 1.0 if two else 2.0 if self.closed_form else 3.0 if self.published else 4.0
        return backing + 1.5 * self.weak + 2.0 * (not self.trl)

    @property
    def evidence(self) -> str:
        """Every source in one sentence, each with its kind."""
        proved = f"closed form ({', '.join(self.claims)}): {self.closed_form}" if self.closed_form else ""
        published = f"published: {self.published}" if self.published else ""
        reports = f"users' reports: {self.reports}" if self.reports else ""
        runs = f"heads trained alone: {self.runs}" if self.runs else ""
        return "; ".join(part for part in (proved, published, reports, runs) if part)


_AT_MARGIN = "at equal margin it changes little (figure when_dpo_squeezes, C); it buys an earlier stop"
_SQUEEZED, _DISPLACED, _DIVERGED = ("squeezing",), ("displacement",), ("divergence",)
KNOBS: tuple[Knob, ...] = (
    Knob(
        _SQUEEZED + _DISPLACED,
        "sft term",
        'Add an SFT term: loss_type=["sigmoid", "sft"] with loss_weights=[1.0, 1.0] (rpo_alpha is gone from TRL).',
        "its gradient raises the chosen answer and lowers the likeliest other one, the reverse of a negative push",
        ("sft.label-rises-runner-up-falls", "sft.mirror"),
        "chosen +20.2 and +28.6 nats with it, −59.2 and −48.1 without (Gemma-2B, Llama-3-8B; Razin et al. 2025)",
        "in one the model got worse with it (trl #800)",
    ),
    Knob(
        _DISPLACED,
        "pairs",
        "Train on pairs whose two answers are less alike to the model: drop those with the highest CHES score "
        "(overlap of hidden states).",
        "to first order chosen falls exactly if its gradient has a larger product with rejected's than with itself",
        ("pair.entanglement",),
        "chosen −45.7 and −27.7 nats on the pairs with the lowest CHES, −59.2 and −48.1 on all (Gemma-2B, Llama-3-8B; "
        "Razin et al. 2025); the sign of CHES alone decides nothing",
    ),
    Knob(
        _SQUEEZED,
        "lr",
        "Lower learning_rate{lr}.",
        "a larger negative step lifts the likeliest other answer more, and whatever loses at a step loses at every "
        "larger one",
        ("squeeze.runner-up-grows-with-step", "squeeze.threshold-rises"),
        reports="a lower rate or a larger beta is what SimPO's maintainers answer (SimPO #42, #80)",
        runs=_AT_MARGIN,
    ),
    Knob(
        _SQUEEZED + _DISPLACED,
        "loss",
        "Use a loss whose push on rejected fades as rejected itself falls: loss_type={losses}.",
        "DPO's push fades with the margin alone, so log π(y−) falls for ever; theirs stops with y−'s own log-ratio "
        "(computed by toyld.objectives)",
        ("residual.dpo-never-stops",),
        negative=True,
    ),
    Knob(
        _SQUEEZED + _DISPLACED,
        "beta",
        "Raise beta{beta}.",
        "past 1/β the margin h grows like (1/β) log n and the push fades as e^(−βh): a larger β ends at a smaller "
        "margin, though its first steps are no smaller",
        ("residual.dpo-never-stops", "residual.dpo-never-reverses", "residual.rmsprop-divides-out-beta"),
        reports="0.9 removed repetition and the loss oscillated (LLM-Dojo #27); 0.3 did not help (trl #1884)",
        runs=_AT_MARGIN,
        negative=True,
    ),
    Knob(
        _SQUEEZED,
        "pairs",
        "Sample the rejected answers from the model itself, and again as it moves.",
        "such negatives are valleys (log π(y−) ≤ −entropy, where a push sharpens the model) no more often than random "
        "ones, and their pushes cancel on average",
        ("entropy.valleys-are-rarer-on-policy", "entropy.on-policy-negatives-cancel"),
        reports="no cure by itself: one on-policy run degenerated in 5 steps (trl #1884)",
        negative=True,
    ),
    Knob(
        _SQUEEZED,
        "extended SFT",
        "Before DPO, run SFT on both answers of each pair; compare at equal passes over the chosen ones.",
        "after it a negative step, up to a stated size, lowers rejected alone; without it every answer but chosen",
        ("extend.own-path", "extend.without-it"),
        "argmax +2.0 instead of +9.4 nats in the first 1000 examples, but +18.8 instead of +14.7 in all "
        "(Qwen1.5-1.8B); win rate .65/.69/.67 after 2/4/6 epochs by GPT-3.5 (z 9.6/12.2/10.5), .52/.60/.54 by Claude "
        "(z 1.0/6.6/2.7, at 2 epochs not significant; Ren & Sutherland 2025, Table 1); it also halves the passes over "
        "chosen, which confounds both",
        negative=True,
        weak=True,
    ),
    Knob(
        _SQUEEZED + _DISPLACED,
        "gate",
        "Gate the rejected gradient by rejected's own probability (Gate-DPO; a loss of your own in TRL).",
        "a rare rejected answer is then pushed with a fixed fraction of the step, and the margin grows less",
        ("gate.rare-rejected", "gate.margin-shrinks"),
        "chosen +1.2 instead of −11.9 in 5 epochs of Pythia-410M (by its authors; Mouiche & Bahi 2026)",
        negative=True,
        trl=False,
    ),
    Knob(
        _SQUEEZED,
        "optimiser",
        "Train with logits-SAM, ρ = 1e-4 (an optimiser of your own in TRL).",
        "the likeliest other answer ends no higher than by the plain step, and still rises",
        ("sam.runner-up-rises-less", "sam.runner-up-still-rises"),
        "win rate on HH 70.5 → 72.3 % (by its authors; Luo et al. 2026)",
        negative=True,
        trl=False,
    ),
    Knob(
        _SQUEEZED + _DISPLACED,
        "centring",
        "Take the features' mean off in the update of the head (an optimiser of your own in TRL).",
        "where all contexts share a constant component, chosen and untrained answers stay higher at equal margin, for "
        "more updates; measured on heads trained alone, undecided on real text",
        ("centring.spares-chosen", "centring.spares-untrained", "centring.needs-more-updates"),
        negative=True,
        weak=True,
        trl=False,
    ),
    Knob(
        _DISPLACED,
        "lr",
        "Lower learning_rate{lr}.",
        reports="a lower rate or a larger beta is what SimPO's maintainers answer (SimPO #42, #80)",
        runs=_AT_MARGIN,
    ),
    Knob(
        _DIVERGED,
        "lr",
        "Lower learning_rate{lr}, with warmup_steps, and keep max_grad_norm.",
        "this is not squeezing: one softmax whose unlikely answers are pushed down gains at its top; first order is to "
        "be trusted only below a step of π/2 in the logits",
        ("squeeze.runner-up-rises", "step.safe-step"),
        reports="gibberish after DPO at 1e-4 with “no anomaly during training” (LLaMA-Factory #7734)",
    ),
    Knob(
        _DIVERGED,
        "template",
        "Print one pair as tokens and check chat template, BOS, EOS and where max_length cuts it.",
        reports="endless or broken answers by template, BOS or EOS (LLaMA-Factory #5593, SimPO #21, trl #2382)",
    ),
    Knob(
        _DIVERGED,
        "precision",
        "Score in float32 at one fixed batch shape, and see whether the fall is still there.",
        reports="in bfloat16, 37 % of Pythia-410M's tokens change their probability by over 10 % with the batch size, "
        "in float32 none (verl #6280)",
    ),
    Knob(
        ("not-learning",),
        "lr",
        "Raise learning_rate{lr} or train longer.",
        "from the reference DPO's plain step is β/2 of SFT's, at β = 0.1 20 times smaller; under RMSprop as large",
        ("residual.dpo-at-reference", "residual.rmsprop-divides-out-beta"),
    ),
    Knob(
        ("not-learning",),
        "ref_model",
        "Check that parameters train (requires_grad), that policy and ref_model are two models, and that beta > 0.",
        reports="rewards stuck at 0, loss at 0.6931 = log 2 (trl #1311, #1627)",
    ),
    Knob(
        ("not-learning",),
        "max_length",
        "Check that max_length leaves something of the completions: a long prompt can take all of it.",
        "the push on a response is one term for each of its tokens: no token, no push",
        ("residual.sft",),
    ),
    Knob(
        ("wrong-reference",),
        "ref_model",
        "Pass ref_model= the policy that training starts from (after SFT: that model, its adapter merged or as “ref”).",
        "at the reference every reward is 0 and the push on both answers β/2; elsewhere pairs start with other weights",
        ("residual.dpo-at-reference", "residual.dpo-never-reverses"),
        reports="the base model silently taken as reference of an SFT adapter (trl #1340, #6591)",
    ),
    Knob(
        ("wrong-reference",),
        "template",
        "If it is the right model: score policy and reference with the same template, precision, padding and dropout.",
        reports="padding alone changes logits (NeMo-Aligner #68), so does the batch size in bfloat16 (verl #6280)",
    ),
    Knob(
        ("rejection",),
        "watch",
        "Change nothing yet and watch argmax: so far only rejected has moved.",
        "DPO's push on rejected fades but never stops",
        ("residual.dpo-never-stops",),
        negative=True,
    ),
)


@functools.cache
def self_limiting() -> tuple[str, ...]:
    """TRL's pair losses whose push on y− fades with y−'s own log-ratio and that never push y+ down, computed.

    >>> self_limiting()
    ('bco_pair', 'apo_zero')
    """
    names = [name for name in OBJECTIVES if name.startswith("trl.")]
    rows = [row(name) for name in names]
    return tuple(r.name.removeprefix("trl.") for r in rows if r.fades.startswith("own ") and r.lowers_chosen == "no")
