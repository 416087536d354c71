"""Wrong labels: the network finds the truth first, then it learns the label

The embedded 8×8 digits, 32 networks of two hidden layers, 200 images each, a fifth of them with a wrong label; four of
those above. A: paths of π through the simplex of the true class, the class as given and the eight others; thin: twelve
images with a wrong label in one network, thick: their mean over networks, epochs written beside it, navy: mean of the
images left alone (whose label is the true class), which go straighter (`zigzag.true-labels-go-straighter`). B: mean log
π of the images with a wrong label, with 95 % intervals: the true class rises first and falls then
(`zigzag.truth-first`); for a time most are given their true class (`zigzag.corrects-the-labels`), in the end their
label (`zigzag.memorises`). C: what moved log π(true), summed: an image's own lessons push it down, those of all the
others, which look like it and are rightly labelled, pull it up, before the turn and after
(`zigzag.others-pull-to-the-truth`); interpolated between epochs, both are about a fifth too small late, their sum is
exact. Intervals are over networks, each with images and flips of its own; held-out images are the same for all. D:
held-out accuracy at the end of training on the labels as given, on them smoothed to the entropy of the filtered ones,
on predictions filtered along the path (Filter-KD), and of the first run stopped by other held-out images with as noisy
labels, bars: 95 % intervals over networks, of each student alone; the claims' tests are paired, network by network:
filtering beats labels (`zigzag.filter-beats-labels`) and, by little, smoothing (`zigzag.filter-beats-smoothing`), not
stopping in time (`zigzag.filter-beats-stopping`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, centred, interval, require, title
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "PAPER", "SEED", "TAGS", "check", "data", "draw"]

PAPER = "thesis of the paper's first author (zig-zag paths)"
DIFFERS = (
    "An MLP on 200 of the embedded 8×8 digits with a fifth of the labels wrong, 32 seeds; the original trains "
    "larger networks on other data."
)
TAGS = ("digits", "influence", "noise")
SEED = 0  # seeds count from here
SEEDS = {"smoke": 8, "paper": 32}
PATHS = 12  # of single images
SHOWN = 4  # pictures
NAMES = {"given": "as given", "smoothed": "smoothed", "filtered": "filtered", "stopped": "stopped"}
CURVES = ("log_true", "log_given", "log_clean", "own_true", "others_true", "as_true", "as_given")
MEANS = (*CURVES, "pi_true", "pi_given", "pi_clean_true", "pi_clean_given")
HAND = 14  # epochs that are trained again by hand: later, float32 alone drives runs apart


def data(size: str) -> Table:
    """One row per number: panel, what, image or −1, epoch (or pixel), mean over seeds, 95 % interval, first seed's."""
    from toyld.digits.experiments import zigzag

    columns: dict[str, list[Any]] = {
        name: [] for name in ("panel", "what", "image", "epoch", "value", "low", "high", "first", "seeds")
    }

    def add(panel: str, what: str, image: int, epoch: int, value: tuple[float, float, float], first: float) -> None:
        for column, one in zip(columns.values(), (panel, what, image, epoch, *value, first, seeds), strict=True):
            column.append(one)

    setting, seeds = zigzag.SIZES["smoke"][0], SEEDS[size]
    path, end = zigzag.tables(range(SEED, SEED + seeds), settings=[setting]).values()
    found = zigzag.run(range(SEED, SEED + seeds), setting)
    clean = _left_alone(found)
    for k, epoch in enumerate(zigzag.MARKS):
        for what in MEANS:
            units = clean[what][:, k] if what in clean else path[f"eval_{what}"].values[:, k]
            add("mean", what, -1, epoch, interval(units), float(units[0]))
    # The first images of the first seed whose label is wrong: nothing else chooses them.
    chosen = found.wrong[0].nonzero()[:PATHS, 0]
    for epoch in zigzag.MARKS:
        pi = found.logs(epoch)[0].exp()
        for n, i in enumerate(chosen.tolist()):
            for what, label in (("true", found.true[0, i]), ("given", found.given[0, i])):
                value = float(pi[i, label])
                add("one", what, n, epoch, (value, value, value), value)
    for n, i in enumerate(chosen[:SHOWN].tolist()):
        labels = f"{found.true[0, i]}, labelled {found.given[0, i]}"
        pixels = found.trained.data.pixels(found.trained.images[0, i, 0]).double().flatten()
        for at, value in enumerate(pixels.tolist()):
            add("pixels", labels, n, at, (value, value, value), value)
    for what in ("given", "smoothed", "filtered", "stopped"):
        units = end[f"eval_accuracy_{what}"].values[:, 0]
        add("student", what, -1, 60, interval(units), float(units[0]))
    for what in ("detour_flipped", "detour_clean"):
        units = end[f"eval_{what}"].values[:, 0]
        add("bends", what, -1, 60, interval(units), float(units[0]))
    return {name: np.array(values) for name, values in columns.items()}


def _left_alone(found: Any) -> dict[str, Any]:
    """Of the images whose label is right: mean π of it and of another class as the flips draw one, (S, MARKS)."""
    from toyld.digits.experiments import zigzag

    right = (~found.wrong).double()
    true = [found.logs(epoch).exp().gather(-1, found.true[..., None])[..., 0] for epoch in zigzag.MARKS]
    mean = np.stack([((x * right).sum(1) / right.sum(1)).numpy() for x in true], 1)
    return {"pi_clean_true": mean, "pi_clean_given": (1 - mean) / 9}


def _corner(true: Any, given: Any) -> tuple[Any, Any]:
    """Place in the triangle: true on top, given to the right, the eight others to the left."""
    return given + true / 2, true * 3**0.5 / 2


def _triangle(ax: Any, table: Mapping[str, Any]) -> None:
    ax.fill([0, 1, 0.5], [0, 0, 3**0.5 / 2], facecolor="#F7F7F7", edgecolor=QUIET, lw=0.8, zorder=0)
    for share in (0.25, 0.5, 0.75):
        sides = ((share, 0), (share, 1 - share)), ((0, share), (1 - share, share)), ((1 - share, 0), (0, 1 - share))
        for ends in sides:
            ax.plot(*zip(*(_corner(*end) for end in ends), strict=True), color="white", lw=0.8, zorder=1)
    for n in range(PATHS):
        one = [rows(table, panel="one", what=what, image=n)["value"] for what in ("true", "given")]
        ax.plot(*_corner(*one), color=FALL, lw=0.6, alpha=0.4, zorder=2)
    for names, color in ((("pi_clean_true", "pi_clean_given"), RISE), (("pi_true", "pi_given"), FALL)):
        true, given = (rows(table, panel="mean", what=name) for name in names)
        x, y = _corner(true["value"], given["value"])
        ax.plot(x, y, color=color, lw=2.2, zorder=4, solid_joinstyle="round")
        ax.plot(x, y, "o", color=color, ms=2.4, zorder=5)
        if color == FALL:
            for epoch, dx, dy in ((0, -4, -9), (8, -11, -1), (14, -2, 5), (29, 4, 3), (60, 3, 4)):
                k = int(np.flatnonzero(true["epoch"] == epoch)[0])
                place = {"xytext": (dx, dy), "textcoords": "offset points", "zorder": 6}
                ax.annotate(str(epoch), (x[k], y[k]), fontsize=6.5, color=FALL, weight="bold", **place)
    ax.text(0.5, 0.89, "true class", ha="center", color=INK)
    ax.text(1.02, -0.03, "label\nas given", ha="center", va="top", color=INK)
    ax.text(-0.02, -0.03, "the eight\nothers", ha="center", va="top", color=INK)
    ax.set_aspect("equal")
    ax.set_xlim(-0.12, 1.12)
    ax.set_ylim(-0.16, 0.95)
    ax.axis("off")


def draw(table: Mapping[str, Any]) -> Any:
    """Digits, the triangle; the path of log π; what moved it; the students."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 4.1))
    grid = fig.add_gridspec(5, 2, width_ratios=(1.25, 1.0), height_ratios=(0.8, 1.0, 1.0, 1.0, 1.0))
    strip = grid[0, 0].subgridspec(1, SHOWN)
    for n in range(SHOWN):
        one, ax = rows(table, panel="pixels", image=n), fig.add_subplot(strip[0, n])
        side = round(len(one["value"]) ** 0.5)
        ax.imshow(one["value"].reshape(side, side), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set(visible=True, color=QUIET)
        ax.set_xlabel(one["what"][0], fontsize=6.2, labelpad=2)
    a = fig.add_subplot(grid[1:, 0])
    _triangle(a, table)
    title(a, "A", "Towards the truth, then to the label")
    right = grid[:, 1].subgridspec(3, 1, height_ratios=(1.15, 1.15, 0.75))
    b, c, d = (fig.add_subplot(right[k, 0]) for k in range(3))
    for ax, what, color, words, place in (
        (b, "log_true", FALL, "true class", (27, -3.6)), (b, "log_given", SOFT, "as given", (1, -3.75)),
        (b, "log_clean", RISE, "left alone", (16, 0.15)), (c, "others_true", RISE, "lessons of all others", (6, 22)),
        (c, "own_true", FALL, "its own lessons", (6, -25)),
    ):  # fmt: skip
        one = rows(table, panel="mean", what=what)
        ax.fill_between(one["epoch"], one["low"], one["high"], color=color, alpha=0.2, lw=0)
        ax.plot(one["epoch"], one["value"], color=color)
        ax.text(place[0], place[1], words, color=color, fontsize=6.8)
    net = rows(table, panel="mean", what="log_true")
    c.plot(net["epoch"], net["value"] - net["value"][0], color=INK, lw=1.0, ls=(0, (3, 1.5)))
    c.text(42, 2.5, "both", color=INK, fontsize=6.8)
    b.set_ylim(top=0.9)  # room for a label above the line
    b.set_ylabel("mean log π, nats")
    c.set_ylabel("Δlog π(true), nats")
    c.set_xlabel("epoch")
    title(b, "B", "Wrongly labelled images")
    title(c, "C", "A tug of war")
    for y, what in enumerate(NAMES):
        one = rows(table, panel="student", what=what)
        color = SOFT if what == "given" else INK  # the colour of B
        d.hlines(y, one["low"], one["high"], color=color, lw=1.4)
        d.plot(one["value"], [y], "o", color=color, ms=4)
        d.text(one["high"][0] + 0.004, y, f"{one['value'][0]:.3f}".lstrip("0"), va="center", fontsize=6.5)
    d.set_yticks(range(len(NAMES)), NAMES.values())
    d.set_ylim(len(NAMES) - 0.4, -0.6)
    d.set_xlim(0.75, 0.89)
    d.set_xticks([0.75, 0.8, 0.85])
    d.set_xlabel("held-out accuracy")
    title(d, "D", "Students")
    return fig


def _by_hand() -> tuple[dict[int, float], dict[int, float]]:
    """The first seed once more by torch.optim, image by image: mean log π(true), and what own lessons did, by epoch.

    An image's own lesson moves log π(true) by −η ⟨∇ log π(true), ∇ loss⟩/n at each update of an epoch's mean.
    """
    import torch

    from toyld.digits.ensemble import ORDER
    from toyld.digits.experiments import zigzag

    setting = zigzag.SIZES["smoke"][0]
    found, recipe = zigzag.run([SEED], setting), setting.recipe
    images, given, true = found.trained.images[0], found.given[0], found.true[0]
    net: Any = found.trained.module(0, SEED)
    parameters, n, wrong = list(net.parameters()), len(images), found.wrong[0].nonzero()[:, 0].tolist()
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum)

    def mine() -> float:
        total = 0.0
        for i in wrong:
            logs = net(images[i : i + 1]).log_softmax(-1)[0]
            slopes = [torch.autograd.grad(logs[y], parameters, retain_graph=True) for y in (true[i], given[i])]
            total += sum(float((p * q).sum()) for p, q in zip(*slopes, strict=True)) / n  # loss is −log π(given)
        return total / len(wrong)

    def belief() -> float:
        with torch.no_grad():
            return float(net(images).double().log_softmax(-1)[wrong, true[wrong]].mean())

    rates, beliefs = {0: mine()}, {0: belief()}
    for epoch in range(HAND):
        order = np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(ORDER, epoch))).permutation(n)
        for at in torch.from_numpy(order).split(recipe.batch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[at]), given[at]).backward()
            optimizer.step()
        if epoch + 1 in zigzag.MARKS:
            rates[epoch + 1], beliefs[epoch + 1] = mine(), belief()
    memory = moved = 0.0
    per, sums = n // recipe.batch, {0: 0.0}
    for update in range(HAND * per):
        rate = float(np.interp(update / per, list(rates), list(rates.values())))
        memory = recipe.momentum * memory + rate
        moved += recipe.lr * memory
        if (update + 1) % per == 0:
            sums[(update + 1) // per] = moved
    return beliefs, {epoch: sums[epoch] for epoch in rates}


def check(table: Mapping[str, Any]) -> None:
    """What the caption says; the first seed's path and its own lessons once more, by hand."""
    centred(table, mean="value")
    beliefs, sums = _by_hand()
    for what, hand in (("log_true", beliefs), ("own_true", sums)):
        one = rows(table, panel="mean", what=what)
        for epoch, value in hand.items():
            got = float(one["first"][one["epoch"] == epoch][0])
            off = abs(got - value) / max(1.0, abs(value))
            require(off < 2e-2, f"{what} of the first seed after {epoch} epochs: {got:.4f}, by hand {value:.4f}")
    path = {what: rows(table, panel="mean", what=what)["value"] for what in MEANS}
    top = int(path["log_true"].argmax())
    require(0 < top < len(path["log_true"]) - 1, "expected log π(true) to rise first and to fall then")
    require(path["as_true"].max() > 0.5, f"expected most corrected for a time, got {path['as_true'].max():.2f}")
    require(path["as_given"][-1] > 0.9, f"expected the labels learnt in the end, got {path['as_given'][-1]:.2f}")
    for what, sign in (("own_true", -1), ("others_true", 1)):
        x = sign * path[what]
        require(x[0] < x[top] < x[-1], f"expected {what} to go one way before and after the turn")
    bends = {what: rows(table, panel="bends", what=what)["value"][0] for what in ("detour_flipped", "detour_clean")}
    require(bends["detour_flipped"] > bends["detour_clean"], f"expected wrongly labelled images to bend, got {bends}")
    score = {what: rows(table, panel="student", what=what)["value"][0] for what in NAMES}
    require(score["filtered"] > score["given"], f"expected filtering to beat the labels, got {score}")
