"""K6: the preference stage with centred features in the update, its controls and the other remedies, at equal margin.

Every world is taught its chosen responses first, to the same loss; then each arm runs until every seed has reached the
margin where it ends (or its updates are used up: a seed that does not get there has no number at that margin). The
other remedies are `REMEDIES`, at their published settings; but NPO with NLL is this project's own (`Fading`).

What was chosen, and why, before any result was looked at:
- *Responses* have between half the longest length and all of it, so that normalising by length changes something.
- *SFT* stops at ln 2 a token on average: every token of a chosen response about as likely as not. Taught, with room.
- *Margins* m = Δ(ℓ₊ − ℓ₋) of 5 and 20 nats: at β = .1 reward margins of .5, early in a run, and of 2, where a pair's
  push has faded to σ(−2) = 12 % of its strength. IPO pulls the margin to 1/(2β) = 5 and never goes beyond: it is
  compared halfway there (`HALFWAY`). DPOP and SimPO are far from the larger one after 600 updates: they end at the
  smaller.
- *Rates*: the first update pushes a token of the rejected response equally hard in every arm (`STEP`; plain DPO at
  η = 20), but a token of the chosen one at most `MOST` times as hard, or NLL and DPOP's penalty overshoot. Updates on
  changed features have the plain arm's rate.
- *Kernels*: the local part (identity, prompts, last tokens) always as in `languages.KERNEL`, and one component on top,
  of weight 1, so that half of a feature's square is shared: by all (`common`), by all but not alike (`uneven`), within
  four groups of last tokens (`clusters`), within a place (`position`), within a prompt (`prompt`); `slight` is the
  common one at .3, a mean cosine of .25, as in the last layer of a small language model. `local` has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import xarray as xr

from toyld import objectives
from toyld.checked import BadInput
from toyld.contexts import engine, kernels, languages
from toyld.contexts.engine import Run, State
from toyld.contexts.experiments._updates import UPDATES, preconditioner
from toyld.contexts.kernels import Features
from toyld.contexts.measure import token_log_probs
from toyld.contexts.world import World, trie
from toyld.objectives import Batch

__all__ = [
    "ARMS",
    "HALFWAY",
    "HALVED",
    "KERNELS",
    "MARGINS",
    "MEASURED",
    "REMEDIES",
    "SMOKE",
    "SWEEPS",
    "TAUGHT",
    "TUNED",
    "Arm",
    "Fading",
    "TaughtBoth",
    "measured",
    "stages",
    "start",
    "tables",
    "train_arm",
    "with_component",
    "world",
]

Array = Any
MARGINS = (5.0, 20.0)
HALFWAY = 0.25 / objectives.IPO().beta  # of IPO's target 1/(2β)
STEP = 1.0
MOST = 6.0
SFT_RATE = 2.0
TAUGHT = float(np.log(2.0))
LOCAL: Mapping[str, float] = {k: w for k, w in languages.KERNEL.items() if k != "common"}
KINDS = ("chosen", "rejected", "test_chosen")
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "smoke": {
        "facts": {"concepts": 6, "synonyms": 2, "function_words": 4, "prompts": 6, "length": 4},
        "markov": {"vocab": 16, "prompts": 6, "length": 4},
    },
    "paper": {"facts": {}, "markov": {}},
}
LONGEST = {"smoke": 4, "paper": 6}


@dataclass(frozen=True)
class Fading(objectives.SequenceObjective):
    """NPO on the rejected response and NLL on the chosen one: c = (1, −2ρ^β/(1 + ρ^β)), balanced at the start.

    A combination of this project, with no published settings: β is NPO's, the weight of the NLL 1.
    """

    name: ClassVar[str] = "npo+nll"
    source: ClassVar[str] = "toyld; NPO (Zhang et al. 2024, 2404.05868) with its retain loss on the chosen responses"
    beta: float = 0.1

    def loss(self, batch: Batch, /) -> Array:
        """NPO's loss − ℓ₊, (B,)."""
        return objectives.NPO(self.beta).loss(batch) - batch.total("chosen")

    def coefficients(self, batch: Batch, /) -> tuple[Array, Array]:
        """(1, NPO's), (B,) each."""
        return batch.zeros() + 1.0, objectives.NPO(self.beta).coefficients(batch)[1]


@dataclass(frozen=True)
class TaughtBoth(objectives.Extend):
    """Extend, whose loss is the chosen side's alone: what it says only ends the stage, where plain SFT's does."""

    def loss(self, batch: Batch, /) -> Array:
        return -batch.total("chosen")


DPO = objectives.get("dpo")


@dataclass(frozen=True)
class Arm:
    """One preference stage: its objective, what its update takes off the features, what was taught before it."""

    objective: Any = DPO
    update: str = "plain"
    extend: bool = False
    step: float = STEP
    published: bool = True  # the published settings; False: the best of a sweep
    to: float = MARGINS[-1]  # it ends where every seed has this margin


ARMS: dict[str, Arm] = {
    "plain": Arm(),
    **{update: Arm(update=update) for update in UPDATES},
    "without-component": Arm(update="without-component"),
    "extend": Arm(extend=True),
    "rpo": Arm(objectives.RPO()),
    "rpo-centred": Arm(objectives.RPO(), update="centred"),
    "dpop": Arm(objectives.DPOP(), to=MARGINS[0]),
    "gate-dpo": Arm(objectives.GateDPO()),
    "length-normalised": Arm(objectives.SigmoidNorm()),
    "ipo": Arm(objectives.IPO(), to=HALFWAY),
    "npo+nll": Arm(Fading(), published=False),
    "simpo": Arm(objectives.SimPO(), to=MARGINS[0]),
}
REMEDIES = ("extend", "rpo", "dpop", "gate-dpo", "length-normalised", "ipo", "npo+nll", "simpo")
# One knob of each remedy, published value included.
SWEEPS: dict[str, tuple[Any, ...]] = {
    "rpo": tuple(objectives.RPO(alpha=a) for a in (0.05, 0.2, 1.0, 5.0)),
    "dpop": tuple(objectives.DPOP(beta=b, weight=w) for b, w in ((0.3, 50.0), (0.1, 50.0), (0.1, 5.0), (0.1, 0.5))),
    "gate-dpo": tuple(objectives.GateDPO(tau=t) for t in (0.03, 0.1, 0.3, 0.6)),
    "length-normalised": tuple(objectives.SigmoidNorm(beta=b) for b in (0.1, 0.4, 2.0)),
    "ipo": tuple(objectives.IPO(beta=b) for b in (0.01, 0.02, 0.1)),
    "npo+nll": tuple(Fading(b) for b in (0.1, 0.5, 2.0)),
    "simpo": tuple(objectives.SimPO(beta=b) for b in (2.0, 10.0)),
}


# The setting of each sweep with the largest Δchosen + Δuntrained at the larger margin over facts and markov (`common`,
# paper size, seeds 1000 to 1015), of those that reach it; of NPO with NLL only the first does, of SimPO none.
TUNED: dict[str, Arm] = {
    "rpo-tuned": Arm(objectives.RPO(alpha=5.0), published=False),
    "dpop-tuned": Arm(objectives.DPOP(beta=0.1, weight=5.0), published=False),
    "gate-dpo-tuned": Arm(objectives.GateDPO(tau=0.3), published=False),
    "length-normalised-tuned": Arm(objectives.SigmoidNorm(beta=0.4), published=False),
    "ipo-tuned": Arm(objectives.IPO(beta=0.02), published=False),
}
HALVED: dict[str, Arm] = {"plain-half": Arm(step=0.5), "centred-half": Arm(update="centred", step=0.5)}


def world(language: str, seeds: Sequence[int], size: str, /) -> World:
    """A world of the three kinds that this experiment reads, its responses cut to random lengths; the local kernel.

    >>> int(world("facts", [0, 1], "smoke").responses["chosen"].mask.sum(-1).min()) >= 2
    True
    """
    make: Callable[..., World] = getattr(languages, language)
    whole = make(seeds=seeds, kernel=LOCAL, **SIZES[size][language])
    assert whole.language is not None
    rngs = [np.random.default_rng([seed, 61]) for seed in seeds]
    texts = {}
    for kind in KINDS:
        text = np.array(whole.language.texts[kind])
        longest = text.shape[-1]
        ends = np.stack([rng.integers((longest + 1) // 2, longest + 1, size=text.shape[1]) for rng in rngs])
        texts[kind] = np.where(np.arange(longest) < ends[..., None], text, -1)
    return replace(whole.language, texts=texts).world(seeds, {**whole.attrs, "language": language})


def _columns(kernel: str, w: World) -> np.ndarray | None:
    """Features (B, C, k) of the component on top of the local part, each of mean square about 1."""
    tokens = w.tokens
    assert tokens is not None
    worlds, contexts = tokens.shape[:2]
    size = (tokens >= 0).sum(-1)
    rngs = [np.random.default_rng([seed, 67]) for seed in w.seeds]
    if kernel in ("common", "slight"):
        return np.ones((worlds, contexts, 1))
    if kernel == "uneven":  # E u² = 1
        return np.stack([rng.normal(1.0, 0.5, (contexts, 1)) for rng in rngs]) / np.sqrt(1.25)
    if kernel == "clusters":
        last = np.take_along_axis(tokens, (size - 1)[..., None], axis=-1)[..., 0]
        group = np.stack([rng.integers(4, size=w.size[2]) for rng in rngs])
        return np.eye(4)[np.take_along_axis(group, last, axis=1)]
    if kernel == "position":
        return np.eye(tokens.shape[-1])[size - 2]
    if kernel == "prompt":
        pairs = tokens[..., 0] * w.size[2] + tokens[..., 1]
        return np.stack([np.eye(contexts)[np.unique(one, return_inverse=True)[1]] for one in pairs])
    return None


KERNELS: dict[str, float] = {
    "local": 0.0, "slight": 0.3, "common": 1.0, "uneven": 1.0, "clusters": 1.0, "position": 1.0, "prompt": 1.0,
}  # fmt: skip


def with_component(w: World, kernel: str, /) -> World:
    """The world with a component of `KERNELS` added to its kernel."""
    extra = _columns(kernel, w)
    if extra is None:
        return w
    phi = np.concatenate([np.asarray(w.kernel.features), KERNELS[kernel] ** 0.5 * extra], -1)
    return replace(w, kernel=Features(phi, w.kernel.diagonal))


def start(w: World, /, *, extend: bool = False) -> State:
    """The policy after SFT on the chosen responses (`extend`: on the rejected ones too), all at the same loss."""
    longest = w.responses["chosen"].mask.shape[-1]
    until = TAUGHT * ((longest + 1) // 2 + longest) / 2.0
    objective, rejected = (TaughtBoth(), "rejected") if extend else (objectives.get("sft"), None)
    state = engine.start(w)
    for _ in range(40):
        run = engine.train(
            w, objective, lr=SFT_RATE, steps=10, state=state, rejected=rejected, at=(10,), kinds=("chosen",),
            until=until,
        )  # fmt: skip
        state = run.state
        if (run.loss <= until).all():
            break
    return state


def _rate(w: World, state: State, arm: Arm) -> np.ndarray:
    """η (B,): the step over the mean push on a token of the rejected response, or over 1/`MOST` of that on the chosen.

    Both at the start, with the chosen response just below its reference, where DPOP pushes it 1 + λ times as hard.
    """
    z = engine.logits(w, state)
    sides = {kind: token_log_probs(z, w.responses[kind]) for kind in ("chosen", "rejected")}
    out = []
    for b in range(w.size[0]):
        fields: dict[str, Any] = {}
        for kind, logp in sides.items():
            mask = w.responses[kind].mask[b]
            fields |= {kind: logp[b], f"ref_{kind}": logp[b] + 1e-9 * (kind == "chosen") * mask, f"{kind}_mask": mask}
        push = arm.objective.push(Batch(**fields))
        plus, minus = (np.abs(p).sum() / fields[f"{kind}_mask"].sum() for kind, p in zip(sides, push, strict=False))
        out.append(arm.step / max(minus, plus / MOST))
    return np.array(out)


def train_arm(w: World, arm: Arm, state: State, /, *, most: int = 240, block: int = 24, fine: int = 3) -> Run:
    """The preference stage of one arm: blocks of updates until every world has reached the margin where it ends.

    most: updates at most; fine: updates between two measurements in the first block (but for the first two, each of
    which is measured: IPO is halfway to its target after three), thrice as many in later ones.
    """
    lr = _rate(w, state, arm)
    if arm.update == "without-component":
        bare = kernels.Mixture(w.tokens, 2, LOCAL, w.language.vectors)  # type: ignore[union-attr]
        w = replace(w, logits=engine.logits(w, state), kernel=bare)
        state = engine.start(w)
    p, before, done = preconditioner(arm.update, w), state, 0
    runs: list[Run] = []
    while done < most:
        every = fine if not runs else 3 * fine
        marks = sorted({*((0, 1, 2) if not runs else ()), *range(every, block + 1, every), block})
        run = engine.train(
            w, arm.objective, lr=lr, steps=block, state=state, reference=before, rejected="rejected", at=marks,
            kinds=KINDS, precondition=p,
        )  # fmt: skip
        runs.append(run)
        state, done = run.state, done + block
        gap = run.value("logp", "chosen") - run.value("logp", "rejected")
        first = runs[0].value("logp", "chosen")[0] - runs[0].value("logp", "rejected")[0]
        if ((gap - first).mean(-1).max(0) >= arm.to).all():
            break
    steps = [k * block + step for k, run in enumerate(runs) for step in run.steps]
    values = {name: np.concatenate([run.values[name] for run in runs]) for name in runs[0].values}
    return replace(runs[-1], steps=tuple(steps), values=values, loss=np.concatenate([run.loss for run in runs]))


def measured(ids: np.ndarray, read: Callable[[np.ndarray], tuple[Array, Array]], seeds: Sequence[int], /) -> World:
    """Head-only fine-tuning of a causal language model on real text: its logits, and S of its last hidden states.

    ids: (B, 24, 36), the first 36 tokens of 24 texts a world: 8 prompts of 24 tokens with their own next 6 to 12
    (chosen) and another text's (rejected), 8 more prompts to test on. read: token rows (N, L) → logits (N, L, V) and
    last hidden states (N, L, D). Features are scaled to a mean square of 1.

    Raises:
        BadInput: ids of another shape.
    """
    if ids.shape != (len(seeds), 24, 36):
        msg = f"ids: expected ({len(seeds)}, 24, 36), the beginnings of 24 texts a seed, got {ids.shape}; cut them"
        raise BadInput(msg)
    asked, told = ids[..., :24], ids[..., 24:]
    rngs = [np.random.default_rng([seed, 61]) for seed in seeds]
    cut = [np.arange(12) < np.stack([r.integers(6, 13, size=8) for r in rngs])[..., None] for _ in KINDS]
    answers = {"chosen": told[:, :8], "rejected": told[:, 16:], "test_chosen": told[:, 8:16]}
    answers = {kind: np.where(keep, text, -1) for (kind, text), keep in zip(answers.items(), cut, strict=True)}
    found = trie({"chosen": asked[:, :8], "test_chosen": asked[:, 8:16]}, answers, train=("chosen", "rejected"))
    worlds, contexts, longest = found.tokens.shape
    flat = found.tokens.reshape(-1, longest)
    # Causal: what stands behind the last real token changes nothing there.
    here, last = np.arange(len(flat)), (flat >= 0).sum(-1) - 1
    z, phi = (a[here, last].reshape(worlds, contexts, -1) for a in read(np.where(flat >= 0, flat, 0)))
    phi = phi / np.sqrt((phi**2).sum(-1).mean(-1))[:, None, None]
    names = tuple(int(seed) for seed in seeds)
    return World(z, Features(phi), found.responses, found.trained, names, found.tokens, attrs={"language": "text"})


def stages(w: World, names: Mapping[str, Arm], /, *, kernel: str, **options: int) -> dict[str, xr.Dataset]:
    """The preference stage of each of these arms in one world, after SFT: a table an arm; options are `train_arm`'s."""
    states = {extend: start(w, extend=extend) for extend in {arm.extend for arm in names.values()}}
    out = {}
    for name, arm in names.items():
        run = train_arm(w, arm, states[arm.extend], **options)
        out[name] = run.table(
            "preference", name, experiment="remedies", kernel=kernel, update=arm.update,
            objective=str(arm.objective), published=arm.published, first_step=arm.step,
        )  # fmt: skip
    return out


# There is no component to leave out of a measured kernel.
MEASURED = {name: arm for name, arm in ARMS.items() if name != "without-component"}
# What the default test-suite has time for: every remedy where a claim compares them all, the centred updates elsewhere.
SLOW = ("dpop", "ipo", "simpo")
FEW = ("plain", "centred", "projected", "without-component")
SMOKE: dict[tuple[str, str], tuple[str, ...]] = {
    ("facts", "common"): tuple(name for name in ARMS if name not in ("centred-uniform", "top-direction")),
    ("facts", "local"): FEW[:2],
    ("facts", "uneven"): (*FEW, *REMEDIES),
    ("facts", "clusters"): FEW,
    ("facts", "prompt"): FEW[:2],
    ("markov", "common"): (*FEW, "random", *REMEDIES),
}


def _plan(size: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """(language, kernel) → arms."""
    if size == "smoke":
        return SMOKE
    fast = tuple(name for name in ARMS if name not in SLOW)
    most = {k: tuple(ARMS) if k in ("common", "uneven") else fast for k in KERNELS}
    most["common"] += (*TUNED, *HALVED)
    return {(language, kernel): arms for language in SIZES[size] for kernel, arms in most.items()}


def tables(seeds: Sequence[int], size: str = "smoke") -> dict[str, xr.Dataset]:
    """Every arm's table by name, "remedies LANGUAGE KERNEL ARM".

    smoke: `SMOKE`, small worlds, seconds. paper: both languages, every kernel, every arm, minutes; the remedies that
    take hundreds of updates on the common and the uneven component, the best of each sweep and halved steps on the
    common one.

    >>> found = tables([0, 1, 2])
    >>> found["remedies facts common centred"].sizes["seed"]
    3
    """
    every = {**ARMS, **TUNED, **HALVED}
    options = {"most": 480} if size == "smoke" else {"most": 600, "block": 40, "fine": 1}
    out: dict[str, xr.Dataset] = {}
    for language in SIZES[size]:
        w = world(language, seeds, size)
        for (one, kernel), names in _plan(size).items():
            if one == language:
                found = stages(with_component(w, kernel), {n: every[n] for n in names}, kernel=kernel, **options)
                out |= {f"remedies {language} {kernel} {name}": ds for name, ds in found.items()}
    return out
