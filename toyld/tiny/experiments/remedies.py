"""K6 and the other remedies in transformers at equal margin: what each spares of chosen, untrained and other answers.

All arms start from the same models, taught their chosen answers first; those of `extend` were taught the rejected ones
too, and to the same loss of the chosen. Then each has as many updates as the others of its setting. What cannot be seen
at a margin, as an arm does not get there, is a finding about that arm.

- *Kernels* say what trains: `hidden` the head alone, on the network's own hidden states; `common` the head alone with a
  constant feature beside them, as large as they are (c² = mean ‖h‖²), so that half of a feature's square is shared by
  all contexts; `layers` every layer. `without-component` of `common` is plain `hidden`.
- *Arms* of K6: the mean input μ, taken over the tokens of chosen and rejected, is subtracted (`centred`) or projected
  out (`projected`) of what the weights are told: of the head where only that trains, in every linear layer otherwise
  (`centred-head`: all layers train, the head alone is centred). `random-projected` takes out a random direction.
- *Remedies* at their published settings, all layers, RMSprop, the paper's optimiser; it divides the size of a push out,
  so one rate serves all of them.
- *Unlearning*: GA and NPO (its own β = .1, and 1) on the rejected answers alone, from the pretrained models, whose own
  answers these are; plain descent, all layers.

Settings, fixed on seeds from 1000 on, with reasons. SFT and extend stop at ln 2 a token on average, as in the closed
form. Rates: so that plain DPO has a margin of 10 nats, where the push of a pair has faded by half, after about half of
the updates, and every arm that gets there at all does; half or twice the rate changes little of what is found at equal
margin. Unlearning: so that GA lowers
y⁻ by several nats, which takes all answers with it, and does not end in overflow.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr

from toyld import objectives
from toyld.contexts.experiments import remedies as closed
from toyld.tiny.experiments._worlds import World, world
from toyld.tiny.models import Models
from toyld.tiny.optimizers import Optimizer
from toyld.tiny.stacks import Centre
from toyld.tiny.stage import Run, scene, train

__all__ = ["ARMS", "FORGETTING", "KINDS", "RATES", "Arm", "Setting", "moments", "tables", "taught", "with_common"]

KINDS = ("chosen", "rejected", "test_chosen", "irr_hum")
RMSPROP, SGD = Optimizer("rmsprop"), Optimizer("sgd")
WARMUP = 10  # of RMSprop, whose first updates are large without
MARKS = {"rmsprop": (0, 1, 2, 4, 6, 9, 12, 16), "sgd": (0, 1, 2, 4, 6, 9, 12), "head": (0, 1, 2, 4, 6, 9, 14, 19, 24)}
FORGET_MARKS = (0, 3, 6, 12, 18, 24)
# (optimiser, kernel) → η; SFT and unlearning beside them.
RATES: Mapping[str, Mapping[tuple[str, str], float]] = {
    "smoke": {
        ("rmsprop", "sft"): 6e-4, ("rmsprop", "layers"): 6e-4, ("rmsprop", "hidden"): 4e-3,
        ("sgd", "layers"): 0.2, ("sgd", "hidden"): 0.6, ("sgd", "common"): 0.6, ("sgd", "unlearning"): 0.004,
    },
    "paper": {
        ("rmsprop", "sft"): 4e-4, ("rmsprop", "layers"): 4e-4, ("rmsprop", "hidden"): 2.5e-3,
        ("sgd", "layers"): 0.2, ("sgd", "hidden"): 0.6, ("sgd", "common"): 0.6, ("sgd", "unlearning"): 0.003,
    },
}  # fmt: skip
TEACHING = {False: 50, True: 70}  # updates at most, of SFT and of extend


@dataclass(frozen=True)
class Setting:
    """What trains, and by which rule."""

    optimizer: str
    kernel: str

    @property
    def rule(self) -> Optimizer:
        """The optimiser."""
        return RMSPROP if self.optimizer == "rmsprop" else SGD

    @property
    def layers(self) -> str:
        """As `train` names it."""
        return "all" if self.kernel == "layers" else "head"


@dataclass(frozen=True)
class Arm:
    """One preference stage: its objective, what its updates leave of the inputs, what was taught before it."""

    objective: Any = closed.DPO
    how: Any = None  # as `Centre` names it
    extend: bool = False
    head: bool = False  # only the head is told of it

    def centre(self, setting: Setting, /) -> Centre | None:
        """What `train` is told."""
        if self.how is None:
            return None
        return Centre("head" if self.head or setting.layers == "head" else "all", self.how)


CENTRED: Mapping[str, Arm] = {"plain": Arm(), "centred": Arm(how="subtract"), "projected": Arm(how="project")}
RANDOM = {"random-projected": Arm(how="random")}
HEADED = {"centred-head": Arm(how="subtract", head=True)}
REMEDIES: Mapping[str, Arm] = {
    "extend": Arm(extend=True),
    "rpo": Arm(objectives.RPO()),
    "rpo-centred": Arm(objectives.RPO(), how="subtract"),
    "dpop": Arm(objectives.DPOP()),
    "gate-dpo": Arm(objectives.GateDPO()),
    "length-normalised": Arm(objectives.SigmoidNorm()),
    "ipo": Arm(objectives.IPO()),
    "simpo": Arm(objectives.SimPO()),
}
ARMS: Mapping[Setting, Mapping[str, Arm]] = {
    Setting("sgd", "hidden"): CENTRED,
    Setting("rmsprop", "hidden"): CENTRED,
    Setting("sgd", "common"): {**CENTRED, **RANDOM},
    Setting("sgd", "layers"): {**CENTRED, **RANDOM},
    Setting("rmsprop", "layers"): {**CENTRED, **RANDOM, **HEADED, **REMEDIES},
}
FORGETTING: Mapping[str, Any] = {
    "ga": objectives.GA(), "npo": objectives.NPO(), "npo-strong": objectives.NPO(beta=1.0)
}  # fmt: skip


@functools.cache
def taught(seeds: tuple[int, ...], size: str = "smoke", *, extend: bool = False) -> Models:
    """The models of these seeds after SFT on chosen (`extend`: and on rejected), chosen at ln 2 a token on average."""
    w = world(seeds, size)
    lengths = (w.data.texts["chosen"] >= 0).sum(-1).mean(-1)
    objective = closed.TaughtBoth() if extend else objectives.get("sft")
    run = train(
        w.models, w.data, objective, lr=RATES[size]["rmsprop", "sft"], steps=TEACHING[extend], optimizer=RMSPROP,
        warmup=WARMUP, rejected="rejected" if extend else None, until=closed.TAUGHT * lengths, at=(), kinds=("chosen",),
    )  # fmt: skip
    return run.models


def moments(w: World, models: Models, /) -> tuple[torch.Tensor, torch.Tensor]:
    """(‖mean h‖², mean ‖h‖²) (S,) of the last hidden states over the tokens of chosen and rejected."""
    of = scene(w.data, ("chosen", "rejected"), models)
    h = models.hidden(of.inputs).flatten(1, 2)
    read = torch.zeros_like(h[..., :1])
    for r in of.responses.values():
        read[..., 0].scatter_(1, r.context.flatten(1), r.mask.flatten(1).to(read))
    count = read.sum((1, 2))
    return (((h * read).sum(1) / count[:, None]) ** 2).sum(-1), (h**2 * read).sum((1, 2)) / count


def with_common(w: World, models: Models, /) -> Models:
    """The models with a constant feature beside their hidden states, c² = mean ‖h‖² over the trained tokens."""
    return models.take(range(len(models)), common=moments(w, models)[1].sqrt().tolist())


def _stage(w: World, models: Models, setting: Setting, arm: Arm, rate: float) -> Run:
    marks = MARKS["head" if setting.layers == "head" else setting.optimizer]
    return train(
        models, w.data, arm.objective, lr=rate, steps=marks[-1], optimizer=setting.rule, rejected="rejected",
        layers=setting.layers, centre=arm.centre(setting), warmup=WARMUP if setting.optimizer == "rmsprop" else 0,
        at=marks, kinds=KINDS,
    )  # fmt: skip


def tables(seeds: Sequence[int] = range(20), size: str = "smoke") -> dict[str, xr.Dataset]:
    """Every arm's table by name, "remedies OPTIMIZER KERNEL ARM"; attr `language` says "network OPTIMIZER".

    Column eval_mean_share where the head alone trains: ‖μ‖² over the mean square of the hidden states, which stay.

    >>> sum(len(arms) for arms in ARMS.values())
    27
    """
    seeds = tuple(int(seed) for seed in seeds)
    w, rates, out = world(seeds, size), RATES[size], {}
    starts = {extend: taught(seeds, size, extend=extend) for extend in (False, True)}

    mean, square = moments(w, starts[False])
    share = mean / square

    def keep(run: Run, setting: Setting, arm: str, **attrs: Any) -> None:
        told = {"kernel": setting.kernel, "language": f"network {setting.optimizer}", **attrs}
        stage = "unlearning" if arm in FORGETTING else "preference"
        name = f"remedies {setting.optimizer} {setting.kernel} {arm}"
        out[name] = run.table(stage, arm, experiment="remedies", model=f"tiny {size}", **told)

    for setting, arms in ARMS.items():
        rate = rates[setting.optimizer, setting.kernel]
        for name, arm in arms.items():
            models = starts[arm.extend]
            run = _stage(w, with_common(w, models) if setting.kernel == "common" else models, setting, arm, rate)
            if setting.kernel == "hidden":
                run = replace(run, extra={"eval_mean_share": share.expand(len(run.steps), -1).double().cpu().numpy()})
            keep(run, setting, name, objective=str(arm.objective), first_step=rate)
            if (setting, name) == (Setting("sgd", "hidden"), "plain"):
                # The head's kernel without the component; its rate is that of `common`.
                assert rate == rates["sgd", "common"]
                keep(run, Setting("sgd", "common"), "without-component", objective=str(arm.objective), first_step=rate)
    setting = Setting("sgd", "layers")
    for name, objective in FORGETTING.items():
        run = train(
            w.models, w.data, objective, lr=rates["sgd", "unlearning"], steps=FORGET_MARKS[-1], chosen=None,
            rejected="rejected", at=FORGET_MARKS, kinds=KINDS,
        )  # fmt: skip
        keep(run, setting, name, objective=str(objective), first_step=rates["sgd", "unlearning"])
    return out
