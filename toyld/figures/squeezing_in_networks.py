"""A negative step in real networks: the label falls, y* mostly rises, and K says who

Networks that read digits (scikit-learn's 8×8; MLP, LeNet), one step of gradient descent on log π(y|x_u) at a held-out
image, s = 1 in units of the closed form, 32 seeds (8 at smoke size), all trained on the same images: intervals are over
starts, orders and images pushed at. A, B: one image of a LeNet after one pass over the data, y the likeliest wrong
label; its classes before the step (circle) and after (triangle). Of all such images the one whose y* falls furthest. A,
the head alone takes the step: K = (‖h‖² + 1)I, this is the closed form itself, and y* must rise
(`squeeze.runner-up-rises`). B, all layers take it: y falls (`network.label-falls`), but so does y*, against the
guarantee (`network.runner-up-rises`, `network.runner-up-always-rises`), because K lifts other classes more
(`network.score-law`). C: share of the cases (four images a seed, four labels each) in which y* rises, by stage of
training; mean and 95 % interval over seeds, cut at 100 % (`network.runner-up-mostly-rises`); gray, the head alone:
always. D: all classes but y of LeNets after one pass, y the likeliest wrong label; what was foretold against what
happened, in the tinted corners with the wrong sign. The network's own K hits nearly every sign
(`network.kernel-tells-signs`), K ∝ I about three in four (`network.kernel-beats-isotropy`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, note, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "§3.3, in networks that read digits"
DIFFERS = (
    "The paper proves squeezing for logistic regression and shows it there; here one step is made in MLPs and "
    "LeNets on the embedded digits. The guarantee for y* does not carry over to all layers."
)
TAGS = ("digits", "squeezing", "kernel")
SEED = 0  # seeds count from here
SEEDS = 32
STEP, LABEL, SHOWN = "moderate", 1, ("LeNet", "early")
COLUMNS = (
    "panel", "network", "stage", "layers", "seeds", "seed", "image", "class_index", "role", "log_p_before_nats",
    "log_p_after_nats", "kernel_says_nats", "plain_says_nats", "mean", "low", "high",
)  # fmt: skip
COLOURS = {"MLP": FALL, "LeNet": RISE}


def data(size: str) -> Table:
    """Rows of three kinds: "share" of rises (C), "point": a class of every case of D, "case": of A and B."""
    from toyld.digits.data import embedded
    from toyld.digits.experiments import negative
    from toyld.digits.experiments._pushes import LAYERS, STEPS, at_home

    table: dict[str, list[Any]] = {name: [] for name in COLUMNS}

    def add(**row: Any) -> None:
        blank = dict.fromkeys(COLUMNS[9:], np.nan) | {"seed": -1, "image": -1, "class_index": -1, "role": "-"}
        for name, values in table.items():
            values.append({**blank, **row}[name])

    seeds = range(SEED, SEED + (8 if size == "smoke" else SEEDS))
    digits, s = embedded(), STEPS[STEP]
    for setting in negative.SETTINGS["smoke"]:
        run = negative.trained(seeds, setting, data=digits)
        for stage, update in zip(negative.STAGES, run.marks, strict=True):
            pushes = [negative.pushed_at(run, update, seed) for seed in seeds]
            about = {"network": setting.name, "stage": stage, "seeds": len(seeds)}
            for layers in LAYERS:
                rises = [float(at_home(pushed, layers, STEP)["rises"].double().mean()) for pushed in pushes]
                mean, low, high = interval(np.array(rises))
                add(panel="share", layers=layers, mean=mean, low=low, high=high, **about)
            if (setting.name, stage) != SHOWN:
                continue
            fall, home = np.inf, (-1, -1)
            for seed, pushed in zip(seeds, pushes, strict=True):
                for image, star in enumerate(pushed.star[:, LABEL].tolist()):
                    change = pushed.log_ratio(pushed.after["all", STEP])[image, LABEL, image, star]
                    fall, home = min((fall, home), (float(change), (seed, image)))
            for seed, pushed in zip(seeds, pushes, strict=True):
                for image in range(len(pushed.y)):
                    kinds = [("point", "all")] + [("case", name) for name in LAYERS] * (home == (seed, image))
                    for panel, layers in kinds:
                        for row in _classes(pushed, image, layers, s):
                            add(panel=panel, layers=layers, seed=seed, image=image, **row, **about)
    return {name: np.array(values) for name, values in table.items()}


def _classes(pushed: Any, image: int, layers: str, s: float) -> Iterator[dict[str, Any]]:
    """What happens to every class of one image pushed, and what was foretold."""
    y, star = int(pushed.y[image, LABEL]), int(pushed.star[image, LABEL])
    z = pushed.z[image]
    before, after = (x.log_softmax(-1) for x in (z, pushed.after[layers, STEP][image, LABEL, image]))
    kernel = (z + s * pushed.linear[layers][image, LABEL, image]).log_softmax(-1) - before
    plain = (z + s * pushed.residual[image, LABEL]).log_softmax(-1) - before
    for j in range(len(z)):
        yield {
            "class_index": j, "role": "label" if j == y else "y*" if j == star else "other",
            "log_p_before_nats": float(before[j]), "log_p_after_nats": float(after[j]),
            "kernel_says_nats": float(kernel[j]), "plain_says_nats": float(plain[j]),
        }  # fmt: skip


def _signs(table: Mapping[str, Any]) -> dict[str, float]:
    """Share of the changes of D whose sign each predictor hits."""
    points = rows(table, panel="point")
    keep = points["role"] != "label"
    happened = (points["log_p_after_nats"] - points["log_p_before_nats"])[keep]
    return {
        name: float(np.mean((points[f"{name}_says_nats"][keep] > 0.0) == (happened > 0.0)))
        for name in ("kernel", "plain")
    }


def _case(ax: Any, one: Mapping[str, Any]) -> None:
    """Classes by their probability before: circle before, triangle after."""
    order = np.argsort(-one["log_p_before_nats"], kind="stable")
    for rank, i in enumerate(order, 1):
        before, after = np.exp(one["log_p_before_nats"][i]), np.exp(one["log_p_after_nats"][i])
        up, role = after > before, one["role"][i]
        color, named = RISE if up else FALL, role != "other"
        ax.vlines(rank, before, after, color=color if named else QUIET, lw=2.0 if named else 1.0, zorder=1)
        ax.plot(rank, before, "o", ms=3.6, mfc="white", mec="#8C8C8C", mew=0.7, zorder=2)
        ax.plot(rank, after, "^" if up else "v", ms=6.5 if named else 4.6, mfc=color, mec="white", mew=0.5, zorder=3)
        if named:
            place = {"textcoords": "offset points", "ha": "center", "va": "bottom" if up else "top", "fontsize": 8}
            text = "y" if role == "label" else "y*"
            ax.annotate(text, (rank, after), xytext=(0, 5 if up else -5), color=INK, weight="bold", **place)
    ax.set_yscale("log")
    ax.set_xticks(range(1, len(order) + 1), one["class_index"][order])
    ax.set_xlim(0.4, len(order) + 0.9)
    ax.set_xlabel("digit, by its rank before the step")


def _shares(ax: Any, table: Mapping[str, Any]) -> None:
    from toyld.digits.experiments.negative import STAGES

    for k, (network, color) in enumerate(COLOURS.items()):
        one = [rows(table, panel="share", network=network, stage=stage, layers="all") for stage in STAGES]
        x = np.arange(len(STAGES)) + (k - 0.5) * 0.08
        mean, low, high = (np.array([row[name][0] for row in one]) for name in ("mean", "low", "high"))
        ax.vlines(x, low, np.minimum(high, 1.0), color=color, lw=1.6)  # a share is at most 1
        ax.plot(x, mean, "-o", color=color, lw=1.2, ms=5.0, mec="white", mew=0.7)
        ax.annotate(network, (x[-1], mean[-1]), xytext=(8, -6), textcoords="offset points", va="center", color=color,
                    weight="bold", fontsize=7)  # fmt: skip
    ax.axhline(1.0, color=QUIET, lw=1.2, zorder=0)
    ax.annotate("head alone", (0.5, 1.0), xytext=(0, 3), textcoords="offset points", ha="center", color="#777777",
                fontsize=6.8)  # fmt: skip
    ax.set_xticks(range(len(STAGES)), ("before\ntraining", "after\none pass", "at the\nend"))
    ax.set_xlim(-0.35, len(STAGES) - 0.35)
    ax.set_ylim(0.695, 1.03)
    ax.set_yticks((0.7, 0.8, 0.9, 1.0), ("70 %", "80 %", "90 %", "100 %"))
    ax.set_ylabel("cases in which y* rises")


def _scatter(ax: Any, table: Mapping[str, Any]) -> None:
    points = rows(table, panel="point")
    keep = points["role"] != "label"
    happened = (points["log_p_after_nats"] - points["log_p_before_nats"])[keep]
    said = {name: points[f"{name}_says_nats"][keep] for name in ("plain", "kernel")}
    edge = 1.05 * max(float(np.abs(x).max()) for x in (happened, *said.values()))
    for x, y in ((-edge, 0.0), (0.0, -edge)):
        ax.fill_between([x, x + edge], y, y + edge, color="#F6EDE4", lw=0, zorder=0)
    ax.plot([-edge, edge], [-edge, edge], color=QUIET, lw=0.8, zorder=1)
    share = _signs(table)
    for name, color, words in (("plain", SOFT, "K ∝ I"), ("kernel", RISE, "exact K")):
        ax.plot(said[name], happened, "o", ms=2.0, mfc=color, mec="none", alpha=0.55, zorder=2, rasterized=True)
        ax.plot([], [], "o", ms=4.0, mfc=color, mec="none", label=f"{words}  {100.0 * share[name]:.0f} %")
    ax.set_xlim(-edge, edge)
    ax.set_ylim(-edge, edge)
    ax.axhline(0.0, color=QUIET, lw=0.5, zorder=1)
    ax.axvline(0.0, color=QUIET, lw=0.5, zorder=1)
    ax.set_xlabel("Δ log π foretold (nats)")
    ax.set_ylabel("Δ log π that happened (nats)")
    ax.legend(loc="lower right", handletextpad=0.2, title="signs that are right", title_fontsize=6.8)


def draw(table: Mapping[str, Any]) -> Any:
    """Two cases above, shares and predictions below."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 5.3))
    axes = fig.subplots(2, 2)
    for ax, layers, letter, words in zip(
        axes[0], ("head", "all"), "AB", ("Head alone, K ∝ I: y* rises", "All layers: y* falls"), strict=True
    ):
        _case(ax, rows(table, panel="case", layers=layers))
        title(ax, letter, words)
    shown = np.exp(np.concatenate([rows(table, panel="case")[f"log_p_{when}_nats"] for when in ("before", "after")]))
    for ax in axes[0]:
        ax.set_ylim(
            shown.min() / (shown.max() / shown.min()) ** 0.16, shown.max() * (shown.max() / shown.min()) ** 0.16
        )
        ticks = [t for k in range(-6, 1) for t in (1 * 10**k, 2 * 10**k, 5 * 10**k)]
        ax.set_yticks([t for t in ticks if ax.get_ylim()[0] <= t <= ax.get_ylim()[1]])
        ax.set_yticks([], minor=True)
        ax.yaxis.set_major_formatter(lambda p, _: f"{p:g}".replace("0.", ".") if p < 1 else "1")
    axes[0, 0].set_ylabel("probability")
    note(axes[0, 0], 0.98, 0.97, "○ before   ▲▼ after", ha="right")
    _shares(axes[1, 0], table)
    title(axes[1, 0], "C", "How often the guarantee holds")
    _scatter(axes[1, 1], table)
    title(axes[1, 1], "D", "K says who gains, who loses")
    return fig


def _by_hand(seeds: int) -> Iterator[tuple[int, int, int, dict[str, Any]]]:
    """(seed, image, label, log π before and after) of every case of D's networks, by torch's autograd alone."""
    import torch

    from toyld.digits.data import embedded
    from toyld.digits.experiments import negative
    from toyld.digits.experiments._pushes import IMAGES, picked

    setting = next(one for one in negative.SETTINGS["smoke"] if one.name == SHOWN[0])
    digits = embedded()
    run = negative.trained(range(SEED, SEED + seeds), setting, data=digits)
    for seed in run.seeds:
        module = run.module(None, seed, update=run.marks[negative.STAGES.index(SHOWN[1])]).double()
        theta, head = list(module.parameters()), list(module.get_submodule("head").parameters())
        places, drawn = picked(digits, seed)
        for image in range(IMAGES):
            x, true = digits.test_images[places[image]][None].double(), int(digits.test_labels[places[image]])
            logits = module(x)[0]
            jacobian = torch.stack(
                [torch.cat([g.flatten() for g in torch.autograd.grad(z, theta, retain_graph=True)]) for z in logits]
            )
            k = jacobian @ jacobian.T
            kappa = {"all": float(k.trace() - k.mean() * len(k)) / (len(k) - 1)}
            before = logits.detach().log_softmax(-1)
            kappa["head"] = float(sum(j @ j for j in jacobian[:1, -sum(p.numel() for p in head) :]))
            wrong = before.clone()
            wrong[true] = -torch.inf
            for label, y in enumerate((true, int(wrong.argmax()), int(drawn[image]), int(before.argmin()))):
                logs: dict[str, Any] = {"before": before.numpy(), "y": y}
                for layers, part in (("all", theta), ("head", head)):
                    grads = torch.autograd.grad(module(x).log_softmax(-1)[0, y], part)
                    with torch.no_grad():
                        for sign in (-1.0, 1.0):
                            for p, g in zip(part, grads, strict=True):
                                p.add_(g, alpha=sign / kappa[layers])
                            if sign < 0.0:
                                logs[layers] = module(x)[0].log_softmax(-1).numpy()
                yield seed, image, label, logs


def check(table: Mapping[str, Any]) -> None:
    """What the caption says; LeNet's cases after one pass again with torch's autograd."""
    centred(table)
    shares = rows(table, panel="share")
    for network, stage, layers, mean in zip(*(shares[n] for n in ("network", "stage", "layers", "mean")), strict=True):
        require(
            mean == 1.0 if layers == "head" else 0.5 < mean <= 1.0, f"{network}, {stage}, {layers}: y* in {mean:.3f}"
        )
    shown = rows(shares, network=SHOWN[0], stage=SHOWN[1], layers="all")
    require(
        shown["high"][0] < 0.99, f"{SHOWN}: expected that y* does not always rise, got up to {shown['high'][0]:.3f}"
    )
    points, rises = rows(table, panel="point"), []
    for seed, image, label, logs in _by_hand(int(shown["seeds"][0])):
        change = logs["all"] - logs["before"]
        star = max((j for j in range(len(change)) if j != logs["y"]), key=lambda j: logs["before"][j])
        rises.append(change[star] > 0.0)
        if label != LABEL:
            continue
        for one, layers in (
            (points, "all"),
            *((rows(table, panel="case", layers=name), name) for name in ("all", "head")),
        ):
            mine = rows(one, seed=seed, image=image)
            if len(mine["seed"]):
                require(mine["class_index"][mine["role"] == "label"][0] == logs["y"], f"{seed}, {image}: another label")
                require(mine["class_index"][mine["role"] == "y*"][0] == star, f"{seed}, {image}: another y*")
                for when, logp in (("before", logs["before"]), ("after", logs[layers])):
                    off = float(np.abs(mine[f"log_p_{when}_nats"] - logp).max())
                    require(off < 1e-6, f"seed {seed}, image {image}, {layers}, {when}: off by {off:.2g} nats by hand")
    require(abs(np.mean(rises) - shown["mean"][0]) < 1e-9, f"{SHOWN}: {np.mean(rises)} rise by hand")
    change = points["log_p_after_nats"] - points["log_p_before_nats"]
    for layers, sign in (("head", 1.0), ("all", -1.0)):
        one = rows(table, panel="case", layers=layers)
        moved = one["log_p_after_nats"] - one["log_p_before_nats"]
        require(moved[one["role"] == "label"][0] < 0.0, f"{layers}: the label does not fall")
        require(
            sign * moved[one["role"] == "y*"][0] > 0.0, f"{layers}: y* moves by {moved[one['role'] == 'y*'][0]:.3g}"
        )
        least = change[points["role"] == "y*"].min()
        require(sign > 0.0 or moved[one["role"] == "y*"][0] == least, f"expected the furthest fall, {least:.3g}")
        plain = np.abs(one["plain_says_nats"] - moved).max()
        require((plain < 1e-9) == (layers == "head"), f"{layers}: off by {plain:.3g} nats from the closed form")
    share = _signs(table)
    require(share["kernel"] > 0.97, f"exact K: {share['kernel']:.3f} of the signs")
    require(0.65 < share["plain"] < 0.85, f"K ∝ I: {share['plain']:.3f} of the signs")
