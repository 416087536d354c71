"""First order errs by η², but for kinks, other optimisers, and steps beyond the Taylor radius

One step on one image of a network that reads 8×8 digits, seen by twenty others, and its prediction by Proposition 1;
MLP (ReLU) and LeNet (tanh), untrained and trained; medians over 6 seeds (2 at smoke size), with their range. Steps are
measured in Taylor radii: at r = 1 the logits of the image that moves most spread by π. A, plain gradient descent: the
change (grey) grows with η, the error of first order with η² (`akg.error-is-second-order`). B, trained LeNets by RMSprop
or Adam: the optimiser's own kernel ∇z D ∇zᵀ errs by η² again (`akg.preconditioned-kernel`); the plain one, with the
best of all step sizes, errs in proportion to η: it is wrong to first order (`akg.plain-kernel-stays-wrong`). C, the
errors of A over change and step, every seed a thin line: ReLUs have kinks, which an untrained MLP meets far below the
radius (`akg.kinks-break-second-order`), and the constant depends on network and training
(`akg.constant-falls-in-training`). D, a step on a batch: its loss over that before. Half the radius lowers it always
(`akg.half-the-radius-lowers-the-loss`); where it turns differs, within a factor of eight in the mean
(`akg.radius-is-the-scale`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, note, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "§2, Proposition 1"
DIFFERS = (
    "The paper states the order of the error and shows no picture of it. MLP and LeNet on the embedded 8×8 "
    "digits, in float64."
)
TAGS = ("digits", "influence")
SEED = 0  # seeds count from here
SEEDS = {"smoke": 2, "paper": 6}
STEPS = tuple(float(f"{r:.4g}") for r in 10.0 ** (np.arange(-24, 4) / 4.0))  # radii
TURNS = tuple(float(f"{r:.4g}") for r in 2.0 ** (np.arange(-8, 9) / 2.0))
COLOURS = {"mlp": FALL, "lenet": RISE}
NAMES = {"mlp": "MLP", "lenet": "LeNet"}
DASHES = {"untrained": (0, (2.5, 1.2)), "trained": "-"}
OPTIMIZERS = {"rmsprop": RISE, "adam": SOFT}
WORDS = {"rmsprop": "RMSprop", "adam": "Adam"}
KERNELS = ("own kernel", "plain kernel")
Row = tuple[str, str, str, str, str, int, float, float]
COLUMNS = ("panel", "network", "stage", "optimizer", "line", "seed", "radii", "value")


def _networks(seeds: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """The networks of the experiment at smoke size, trained."""
    from toyld.digits import embedded, train
    from toyld.digits.experiments import first_order

    for setting in first_order.SIZES["smoke"]:
        yield setting.name, train(embedded(), network=setting.network, seeds=seeds, recipe=setting.recipe)


def data(size: str) -> Table:
    """One row per panel, network, stage, optimiser, line, seed and length of the step in radii: nats, in C a ratio."""
    from toyld.digits.experiments._paths import scene

    seeds = list(range(SEED, SEED + SEEDS[size]))
    found: list[Row] = []
    for network, trained in _networks(seeds):
        for stage, update in zip(("untrained", "trained"), (0, trained.marks[-1]), strict=True):
            at = scene(trained, update)
            made = [*_plain(at), *_batch(at), *(_optimized(at) if (network, stage) == ("lenet", "trained") else ())]
            for panel, optimizer, line, r, values in made:
                each = zip(seeds, values, strict=True)
                found += [(panel, network, stage, optimizer, line, s, r, float(f"{x:.6g}")) for s, x in each]
    return {name: np.array(column) for name, column in zip(COLUMNS, zip(*found, strict=True), strict=True)}


def _rms(x: Any) -> Any:
    """(O, S, V) → (S,)."""
    return (x * x).mean((0, 2)).sqrt().numpy()


def _plain(at: Any) -> Iterator[tuple[str, str, str, float, Any]]:
    import torch

    from toyld import influence
    from toyld.digits.experiments._paths import Path

    path = Path(at.model, influence.update(at.model, at.lesson(0), lr=1.0), at.observers)
    for r in STEPS:
        eta = r * torch.pi / path.spread.amax(0)
        change = path.at(eta)
        yield "A", "sgd", "change", r, _rms(change)
        yield "A", "sgd", "error", r, _rms(change - eta[:, None] * path.first)


def _optimized(at: Any) -> Iterator[tuple[str, str, str, float, Any]]:
    import torch

    from toyld import influence
    from toyld.digits.experiments import first_order
    from toyld.digits.experiments._paths import Path

    gradients = [influence.update(at.model, at.taught(k), lr=1.0).gradient for k in range(first_order.WARM)]
    plain = influence.predict(at.model, influence.update(at.model, at.lesson(0), lr=1.0), at.observers)
    for name, kind in first_order.OPTIMIZERS.items():
        optimizer = first_order.warmed(at, kind, gradients)
        path = Path(at.model, influence.update(at.model, at.lesson(0), optimizer=optimizer), at.observers)
        drift = torch.zeros_like(path.first)
        if path.step.drift:
            drift = influence.normalised(*at.model.tangent(at.observers, path.step.drift))
        for r in STEPS:
            eta = (r * torch.pi / path.spread.amax(0))[:, None]
            change = path.at(eta[:, 0])
            lesson = change - eta * drift
            best = (lesson * plain).sum((0, 2)) / (plain * plain).sum((0, 2))
            yield "B", name, "own kernel", r, _rms(change - eta * path.first)
            yield "B", name, "plain kernel", r, _rms(lesson - best[:, None] * plain)


def _batch(at: Any) -> Iterator[tuple[str, str, str, float, Any]]:
    import torch

    from toyld import influence
    from toyld.digits.experiments._paths import Path

    lesson, labels = at.taught(0), at.marked[: at.batch, :, None]
    path = Path(at.model, influence.update(at.model, lesson, lr=1.0), lesson.inputs)
    before = path.before.gather(-1, labels)[..., 0].mean(0)
    for r in TURNS:
        moved = path.at(r * torch.pi / path.spread.amax(0)).gather(-1, labels)[..., 0].mean(0)
        yield "D", "sgd", "loss", r, ((before + moved) / before).numpy()


def _median(table: Mapping[str, Any], **which: Any) -> tuple[Any, Any, Any, Any]:
    """(radii, median, least, greatest over seeds)."""
    one = rows(table, **which)
    radii = np.unique(one["radii"])
    values = np.array([one["value"][one["radii"] == r] for r in radii])
    return radii, np.median(values, 1), values.min(1), values.max(1)


def _triangle(ax: Any, x: float, y: float, slope: int) -> None:
    """One decade to the right, `slope` decades up."""
    ax.plot([x, 10 * x, 10 * x, x], [y, y, y * 10.0**slope, y], color=INK, lw=0.6, solid_joinstyle="miter")
    ax.text(13 * x, y * 10.0 ** (slope / 2), f"{slope}", fontsize=6.5, color=INK, va="center")


def draw(table: Mapping[str, Any]) -> Any:
    """Error against the step, by plain descent and by two optimisers; over its order; the loss of a batch."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.6))
    axes = fig.subplots(2, 2).ravel()
    for network, color in COLOURS.items():
        for stage, dashes in DASHES.items():
            which = {"network": network, "stage": stage}
            r, middle, _, _ = _median(table, panel="A", line="change", **which)
            axes[0].plot(r, middle, color=QUIET, ls=dashes, lw=0.9, zorder=1)
            label = f"{NAMES[network]}, {stage}"
            _band(axes[0], _median(table, panel="A", line="error", **which), color, dashes, label)
            one = _compensated(rows(table, **which))
            for seed in np.unique(one["seed"]):
                alone = rows(one, seed=seed)
                axes[2].plot(alone["radii"], alone["value"], color=color, ls=dashes, lw=0.5, alpha=0.45, zorder=2)
            r, middle, _, _ = _median(one)
            axes[2].plot(r, middle, color=color, ls=dashes, lw=1.8, zorder=3)
            _band(axes[3], _median(table, panel="D", line="loss", **which), color, dashes)
    for optimizer, color in OPTIMIZERS.items():
        for line in KERNELS:
            called = f"{WORDS[optimizer]} (B)" if line == "own kernel" else None
            width = 2.6 if optimizer == "rmsprop" else 1.2  # the two lie on each other
            dashes = (0, (4, 2)) if optimizer == "adam" else "-"  # kernels are told by slope and note
            _band(axes[1], _median(table, panel="B", optimizer=optimizer, line=line), color, dashes, called, width)
    for ax in axes:
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(STEPS[0], STEPS[-1])
        ax.set_xticks([1e-6, 1e-4, 1e-2, 1.0])
        ax.set_xlabel("step, in Taylor radii")
        ax.axvline(1.0, color=INK, lw=0.7, ls=(0, (1, 1.5)), zorder=0)
    for ax in axes[:2]:
        ax.set_ylim(1e-14, 1e3)
        ax.set_yticks([1e-12, 1e-8, 1e-4, 1.0])
        ax.set_ylabel("root mean square, nats")
        _triangle(ax, 6e-3, 3e-10, 2)
    _triangle(axes[1], 3e-4, 3e-1, 1)
    note(axes[0], 0.04, 0.70, "change ∝ η", color="#777777")
    note(axes[0], 0.45, 0.20, "error ∝ η²")
    note(axes[1], 0.04, 0.82, "plain kernel:\nerror ∝ η")
    note(axes[1], 0.40, 0.20, "own kernel: error ∝ η²")
    axes[2].set_ylabel("(error/change)/r")
    axes[2].set_ylim(0.02, 30.0)
    axes[2].set_yticks([0.1, 1.0, 10.0], ["0.1", "1", "10"])
    note(axes[2], 0.04, 0.97, "level: second order;\njump: a kink of a ReLU")
    axes[3].set_xscale("log", base=2)
    axes[3].set_xlim(TURNS[0], TURNS[-1])
    axes[3].set_ylim(0.25, 20.0)
    axes[3].set_xticks([0.0625, 0.25, 1.0, 4.0, 16.0], ["1/16", "1/4", "1", "4", "16"])
    axes[3].set_yticks([0.5, 1.0, 2.0, 5.0, 10.0], ["0.5", "1", "2", "5", "10"])
    axes[3].axhline(1.0, color=QUIET, lw=0.6, zorder=0)
    note(axes[3], 0.515, 0.98, "r = 1")
    axes[3].set_ylabel("loss of a batch: after/before")
    for ax in axes:
        ax.minorticks_off()
    words = ("Plain descent", "RMSprop and Adam", "Plain descent: the constant", "Where the loss turns")
    for ax, letter, text in zip(axes, "ABCD", words, strict=True):
        title(ax, letter, text)
    fig.legend(loc="outside lower center", ncols=3, handletextpad=0.5, columnspacing=1.5)
    return fig


def _band(
    ax: Any, path: tuple[Any, Any, Any, Any], color: str, dashes: Any, label: str | None = None, width: float = 1.4
) -> None:
    r, middle, low, high = path
    ax.fill_between(r, low, high, color=color, alpha=0.13, lw=0, zorder=2)
    ax.plot(r, middle, color=color, ls=dashes, lw=width, label=label, zorder=3)


def _compensated(table: Mapping[str, Any]) -> Table:
    """Panel C: error over change over radii, from the rows of panel A."""
    error, change = (rows(table, panel="A", line=line) for line in ("error", "change"))
    return error | {"value": error["value"] / change["value"] / error["radii"]}


def _by_hand(network: str, stage: str) -> Iterator[tuple[dict[str, str], list[float]]]:
    """What the first seed's rows of one network are, line by line: backward passes, and parameters written in place.

    None of `toyld.influence`; the residual is `softmax.residual`.
    """
    import torch

    from toyld import softmax
    from toyld.digits.experiments._paths import scene

    trained = dict(_networks([SEED]))[network]
    update = 0 if stage == "untrained" else trained.marks[-1]
    at, net = scene(trained, update), trained.module(None, SEED, update=update).double()
    parameters = list(net.parameters())
    start = [p.detach().clone() for p in parameters]

    def gradient(images: Any, labels: Any) -> list[Any]:
        z = net(images)
        pull = np.stack([softmax.residual(row, int(y)) for row, y in zip(z.detach().numpy(), labels, strict=True)])
        return list(torch.autograd.grad(z, parameters, torch.from_numpy(pull) / len(labels)))

    def along(images: Any, d: list[Any]) -> Any:
        """J d by two backward passes: the derivative of v ↦ ⟨Jᵀv, d⟩."""
        z = net(images)
        v = torch.zeros_like(z, requires_grad=True)
        pulled = torch.autograd.grad(z, parameters, v, create_graph=True)
        return torch.autograd.grad(sum((a * b).sum() for a, b in zip(pulled, d, strict=True)), v)[0]

    def logp(images: Any, d: list[Any], eta: float) -> Any:
        with torch.no_grad():
            for p, first, move in zip(parameters, start, d, strict=True):
                p.copy_(first + eta * move)
            out = torch.log_softmax(net(images), -1)
            for p, first in zip(parameters, start, strict=True):
                p.copy_(first)
        return out

    def walked(images: Any, d: list[Any], steps: Sequence[float]) -> tuple[Any, Any, list[tuple[float, Any]]]:
        """(log π before, its derivative along d, the change after each step)."""
        dz, before = along(images, d), logp(images, d, 0.0)
        first = dz - (before.exp() * dz).sum(-1, keepdim=True)
        radius = np.pi / float((dz.amax(-1) - dz.amin(-1)).max())
        return before, first, [(r * radius, logp(images, d, r * radius) - before) for r in steps]

    def rms(x: Any) -> float:
        return float((x * x).mean().sqrt())

    seen = at.observers[:, 0]
    step = [-g for g in gradient(at.lessons[:1, 0], at.labels[:1, 0])]
    _, plain, path = walked(seen, step, STEPS)
    yield {"panel": "A", "line": "change"}, [rms(change) for _, change in path]
    yield {"panel": "A", "line": "error"}, [rms(change - eta * plain) for eta, change in path]
    images, labels = at.images[: at.batch, 0], at.marked[: at.batch, 0]
    before, _, path = walked(images, [-g for g in gradient(images, labels)], TURNS)
    own = torch.arange(len(labels)), labels
    yield {"panel": "D"}, [float((before + change)[own].mean() / before[own].mean()) for _, change in path]
    if (network, stage) == ("lenet", "trained"):
        mean = [torch.zeros_like(p) for p in parameters]
        batches = [slice(k * at.batch, (k + 1) * at.batch) for k in range(4)]
        past = [gradient(at.images[rows_, 0], at.marked[rows_, 0]) for rows_ in batches]
        for g in [*past, [-d for d in step]]:
            mean = [0.99 * v + 0.01 * one**2 for v, one in zip(mean, g, strict=True)]
        rescaled = [d / (v.sqrt() + 1e-8) for d, v in zip(step, mean, strict=True)]
        _, first, path = walked(seen, rescaled, STEPS)
        best = [float((change * plain).sum() / (plain * plain).sum()) for _, change in path]
        which = {"panel": "B", "optimizer": "rmsprop"}
        yield which | {"line": "own kernel"}, [rms(change - eta * first) for eta, change in path]
        yield which | {"line": "plain kernel"}, [rms(c - b * plain) for b, (_, c) in zip(best, path, strict=True)]


def check(table: Mapping[str, Any]) -> None:
    """One seed's rows by hand; slopes, kinks, the plain kernel, and where losses turn, in every seed."""
    for network, stage in (("lenet", "trained"), ("mlp", "untrained")):
        for which, values in _by_hand(network, stage):
            one = rows(table, network=network, stage=stage, seed=SEED, **which)
            steps = TURNS if which["panel"] == "D" else STEPS
            where = f"{NAMES[network]}, {stage}, {', '.join(which.values())}"
            require(len(one["radii"]) == len(steps), f"{where}: expected {len(steps)} steps, got {len(one['radii'])}")
            apart = np.abs(one["radii"] / steps - 1.0).max()
            require(apart < 1e-9, f"{where}: steps that are off by {apart:.1e}")
            apart = np.abs(one["value"] - values) - 1e-2 * np.abs(values)
            require(
                apart.max() < 1e-14, f"{where}: off by {apart.max():.1e} at {one['radii'][apart.argmax()]:.1e} radii"
            )
    for seed in np.unique(table["seed"]):
        for network in COLOURS:
            for stage in DASHES:
                which = {"network": network, "stage": stage, "seed": seed}
                where = f"{NAMES[network]}, {stage}, seed {seed}"
                turned = rows(table, panel="D", **which)
                half = float(turned["value"][turned["radii"] == 0.5][0])
                require(half < 1.0, f"{where}: expected a lower loss after half the radius, got {half:.3f} of it")
                if network == "lenet":
                    error, change = (rows(table, panel="A", line=line, **which) for line in ("error", "change"))
                    _order(error, 2.0, where)
                    _order(change, 1.0, where)
        for optimizer in OPTIMIZERS:
            for line, order in zip(KERNELS, (2.0, 1.0), strict=True):
                one = rows(table, panel="B", optimizer=optimizer, line=line, seed=seed)
                _order(one, order, f"{WORDS[optimizer]}, {line}, seed {seed}")
    kinked = _compensated(rows(table, network="mlp", stage="untrained"))
    most = max(float(np.ptp(np.log10(alone["value"][alone["radii"] < 0.1]))) for alone in _seeds(kinked))
    smooth = _compensated(rows(table, network="lenet", stage="untrained"))
    least = max(float(np.ptp(np.log10(alone["value"][alone["radii"] < 0.1]))) for alone in _seeds(smooth))
    require(most > 0.1 > least, f"expected kinks of the MLP alone, got {most:.2f} and {least:.2f} decades below r = .1")
    for network in COLOURS:
        level = {}
        for stage in DASHES:
            one = _compensated(rows(table, network=network, stage=stage))
            level[stage] = float(np.median(one["value"][one["radii"] <= 1e-5]))
        fell = level["trained"] < level["untrained"]
        require(fell, f"{NAMES[network]}: expected a constant that training lowers, got {level}")


def _order(one: Mapping[str, Any], order: float, where: str) -> None:
    """The slope of a line below a hundredth of the radius, above rounding."""
    low = (one["radii"] >= 1e-5) & (one["radii"] <= 1e-2)
    slope = float(np.polyfit(np.log(one["radii"][low]), np.log(np.abs(one["value"][low])), 1)[0])
    require(abs(slope - order) < 0.1, f"{where}: expected slope {order:g}, got {slope:.3f}")


def _seeds(table: Mapping[str, Any]) -> Iterator[Table]:
    for seed in np.unique(table["seed"]):
        yield rows(table, seed=seed)
