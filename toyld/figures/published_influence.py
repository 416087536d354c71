"""The paper's proxies of influence from its own logs: under DPO y⁺ alone is pushed up, and all contexts grow peaked

Released runs of Pythia-410M on Anthropic-HH, 500 training prompts. A, B: a DPO run, by the formulas of the authors'
notebook, which stand behind the last row of the paper's Figure 8. A: its LBK, the size of the changes between two
evaluations, smoothed as in the notebook (a tenth of each new value). It bounds nothing (`tokens.lbk-is-a-lower-bound`
speaks of Eq. 26), since A_o and p_e were logged along another response (the argmax bug) and hardly move: the curves
are sizes of changes, and follow the gradient more than the kernel. Who is moved most: y⁻, y⁺, the y⁺ of other prompts
and shuffled words; from half-way to the end the ranking of the twelve kinds stays (rank correlation .97;
`tokens.ranking-stays` asks it of tiny transformers, by Eq. 26). B: its SignDelta, summed over the run: negative for
every kind but y⁺, as the paper says (`tokens.signdelta-is-negative`, `tokens.signdelta-of-chosen-is-positive`: open
where all classes are counted, as Eq. 26 has it); here Δlog π of the response itself is counted. Bars: 95 % intervals
over prompts, most of them too small to be seen. C: how peaked π is, mean ‖π‖ along a response, from the mended logs;
full SFT, dashed DPO. It grows along every kind, along shuffled words nobody taught as much as along y⁺, and DPO adds
less than SFT.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toyld.figures._look import FALL, INK, QUIET, RISE, SOFT, interval, require, title
from toyld.figures._published import INPUTS, files, folders, read
from toyld.figures._registry import FigureError
from toyld.figures._table import Table, rows

__all__ = ["DIFFERS", "INPUTS", "PAPER", "TAGS", "check", "data", "draw", "inputs"]

PAPER = "Fig. 8, last row (DPO); Fig. 9 in part"
DIFFERS = (
    "The row of DPO alone: logs per example with every kind were not released for SFT. Whether the paper's row shows "
    "this very run is not said; its text has about .5 for the one positive bar, here it is .40. A and B are as the "
    "notebook computes them, with A_o and p_e of the response that was logged last (the argmax bug), without the "
    "squares of Eq. 26, and with Δlog π of the response in place of all V × L changes. C is from mended logs, and "
    "takes the mean of norms along a response that the logged A_o contains."
)
TAGS = ("llm", "published", "influence")
FOLDERS = {
    "influence": "prob_pythia410m_dpo",
    "sft": "pythia410_baseline_sft_verify_argmax_bug",
    "dpo": "pythia410_baseline_dpo_checkbug_5e7",
}
VOCABULARY = 50304  # width of Pythia's logits
SMOOTH = 0.9
WORDS = {
    "chosen": "y⁺",
    "chosen_gptsemantic": "y⁺, other words",
    "chosen_gptformat": "y⁺, other form",
    "chosen_initial": "untrained answer",
    "rejected": "y⁻",
    "reject_gptsemantic": "y⁻, other words",
    "reject_gptformat": "y⁻, other form",
    "irr_train": "y⁺ of another",
    "irr_test": "y⁺ of a test one",
    "irr_hum": "another subject",
    "random_permute": "y⁺ shuffled",
    "random_nonhum": "test y⁺ shuffled",
}
# Kinds that are drawn as curves: colour, dashes of panel A.
LOOKS: dict[str, tuple[str, Any]] = {
    "chosen": (RISE, "-"),
    "irr_train": ("#0072B2", (0, (6, 1.5, 1, 1.5))),
    "rejected": (FALL, (0, (4, 1.5))),
    "irr_hum": (SOFT, (0, (2, 1))),
    "random_permute": (INK, (0, (1, 1.2))),
}
PEAKED = {"chosen": RISE, "irr_test": FALL, "random_nonhum": SOFT}
inputs = partial(files, FOLDERS)


def _columns(folder: Path) -> dict[str, np.ndarray]:
    """Key of the log -> (evaluation, example), as logged: the names are those of the JSON's rows, in their order."""
    try:
        with (folder / "prob_train_metrics.json").open(encoding="utf-8") as lines:
            keys = [key.removeprefix("logps_eval_prob_train/") for key in json.loads(lines.readline())]
        array = np.load(folder / "logp_npy_all_chosen.npy", allow_pickle=False)
    except (OSError, ValueError) as bad:
        raise FigureError(f"{folder.name}: expected a log and its array, got {bad}; fetch both with git lfs") from bad
    if array.ndim != 3 or array.shape[1] != len(keys):
        raise FigureError(f"{folder.name}: expected {len(keys)} columns, got an array {array.shape}; fetch it anew")
    return {key: array[:, i].astype(np.float64) for i, key in enumerate(keys)}


def data(size: str) -> Table:
    """One row per panel, kind and evaluation; the same at both sizes."""
    from toyld.influence import lbk_as_released, sign_delta_as_released

    names = ("panel", "run", "kind", "evaluation", "mean", "low", "high")
    columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(*values: Any) -> None:
        for name, value in zip(names, values, strict=True):
            columns[name].append(value)

    where = folders(FOLDERS)
    log = _columns(where["influence"])
    name = where["influence"].name
    for kind in WORDS:
        lbk = lbk_as_released(log[kind], log["A_o"], log["p_e"])
        for i, value in enumerate(lbk):
            add("lbk", name, kind, i + 1, value, np.nan, np.nan)
        # Of every prompt alone: what all of them share divides each.
        divisor = np.sqrt(log["A_o"][1:].mean(1)) * log["p_e"][1:].mean(1)
        _, low, high = interval((np.diff(log[kind], axis=0) / divisor[:, None]).sum(0))
        signs = sign_delta_as_released(log[kind], log["A_o"], log["p_e"])
        add("signdelta", name, kind, len(lbk), float(signs.sum()), low, high)
    for stage in ("sft", "dpo"):
        run = read(where[stage], vocab_size=VOCABULARY).isel(seed=0)
        if "pi_norm" not in run:
            raise FigureError(f"{where[stage].name}: expected A_o per example; fetch its .npy with git lfs pull")
        for kind in WORDS:
            for i, units in enumerate(run.pi_norm.sel(probe=kind).transpose("step", "example").values):
                add(stage, where[stage].name, kind, i, *interval(units))
    return {name: np.array(values) for name, values in columns.items()}


def _smooth(values: Any) -> Any:
    out = np.array(values, dtype=np.float64)
    for i in range(1, len(out)):
        out[i] = SMOOTH * out[i - 1] + (1.0 - SMOOTH) * out[i]
    return out


def draw(table: Mapping[str, Any]) -> Any:
    """Curves of LBK, bars of SignDelta, curves of peakiness."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(5.5, 2.9))
    lbk, bars, peaked = fig.subplots(1, 3, width_ratios=(1.0, 0.85, 1.0))
    for kind, (color, dashes) in LOOKS.items():
        one = rows(table, panel="lbk", kind=kind)
        lbk.plot(one["evaluation"], _smooth(one["mean"]), color=color, ls=dashes, label=WORDS[kind])
    lbk.set_xlim(0, None)
    lbk.set_ylim(0, None)
    lbk.set_xlabel("evaluation")
    lbk.set_ylabel("LBK of the notebook")
    lbk.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=2.6, borderaxespad=0)
    title(lbk, "A", "DPO: how far")
    total = [rows(table, panel="signdelta", kind=kind) for kind in WORDS]
    at = np.arange(len(WORDS))
    mean = np.array([one["mean"][0] for one in total])
    ends = np.array([[mean[i] - one["low"][0], one["high"][0] - mean[i]] for i, one in enumerate(total)]).T
    bars.barh(at, mean, height=0.7, color=[RISE if x > 0 else FALL for x in mean])
    bars.errorbar(mean, at, xerr=ends, fmt="none", ecolor=INK, elinewidth=0.8)
    bars.set_yticks(at, WORDS.values(), fontsize=6)
    bars.invert_yaxis()
    bars.tick_params(axis="y", length=0)
    bars.axvline(0.0, color=QUIET, lw=0.6)
    bars.set_xlabel("SignDelta of the\nnotebook, sum")
    title(bars, "B", "DPO: which way")
    for stage, dashes in (("sft", "-"), ("dpo", (0, (3, 1.2)))):
        for kind, color in PEAKED.items():
            one = rows(table, panel=stage, kind=kind)
            peaked.plot(one["evaluation"], one["mean"], color=color, ls=dashes)
            peaked.fill_between(one["evaluation"], one["low"], one["high"], color=color, alpha=0.16, lw=0)
    for kind, color in PEAKED.items():
        peaked.plot([], [], color=color, label=WORDS[kind])
    peaked.plot([], [], color=QUIET, label="SFT")
    peaked.plot([], [], color=QUIET, ls=(0, (3, 1.2)), label="DPO")
    peaked.set_xlim(0, rows(table, panel="sft")["evaluation"].max())
    peaked.set_ylim(0.2, 0.7)
    peaked.set_xlabel("evaluation")
    peaked.set_ylabel("mean ‖π‖")
    peaked.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), handlelength=2.6, borderaxespad=0)
    title(peaked, "C", "How peaked")
    return fig


def check(table: Mapping[str, Any]) -> None:
    """The caption's numbers: who is moved, the one sign, the order that stays, and the growth of ‖π‖."""
    from scipy.stats import spearmanr

    lbk = {kind: rows(table, panel="lbk", kind=kind)["mean"] for kind in WORDS}
    require(
        {len(x) for x in lbk.values()} == {49}, f"LBK: {[len(x) for x in lbk.values()]} intervals, expected 49 each"
    )
    smooth = np.array([_smooth(x) for x in lbk.values()])
    half = spearmanr(smooth[:, 24], smooth[:, -1]).statistic
    require(round(float(half), 2) == 0.97, f"rank correlation of half-way and the end {half:.3f}, expected .97")
    mean = {kind: float(x.mean()) for kind, x in lbk.items()}
    most = sorted(mean, key=mean.__getitem__)[-5:]
    expected = {"rejected", "random_permute", "chosen", "irr_train", "random_nonhum"}
    require(set(most) == expected, f"moved most, {mean}: expected {sorted(expected)}")
    require(round(mean["rejected"], 2) == 4.22, f"LBK of y⁻ {mean['rejected']:.3f}, expected 4.22")
    for kind in WORDS:
        one = rows(table, panel="signdelta", kind=kind)
        value, low, high = (float(one[name][0]) for name in ("mean", "low", "high"))
        require((value > 0.0) == (kind == "chosen"), f"SignDelta of {kind}: {value:+.3f}, y⁺ alone may be positive")
        require(low < value < high and abs(low + high - 2 * value) < 1e-6, f"{kind}: {value} in [{low}, {high}]")
    y = float(rows(table, panel="signdelta", kind="chosen")["mean"][0])
    require(round(y, 2) == 0.40, f"SignDelta of y⁺ {y:.3f}, expected .40")
    grown = {}
    for stage in ("sft", "dpo"):
        for kind in WORDS:
            one = rows(table, panel=stage, kind=kind)
            off = float(np.abs(one["low"] + one["high"] - 2 * one["mean"]).max())
            require(off < 1e-9, f"{stage}, {kind}: an interval lies {off:.3g} aside of its mean")
            require(bool((one["low"] > 0).all() and (one["high"] < 1).all()), f"{stage}, {kind}: ‖π‖ beyond 0 … 1")
            grown[stage, kind] = float(one["mean"][-1] - one["mean"][0])
        require(min(grown[stage, kind] for kind in WORDS) > 0.0, f"{stage}: ‖π‖ falls somewhere, {grown}")
    begin = float(rows(table, panel="sft", kind="chosen")["mean"][0])
    require(round(begin, 4) == 0.5055, f"‖π‖ along y⁺ starts at {begin:.5f}, expected .5055")
    got = [round(grown["sft", kind], 2) for kind in ("chosen", "random_nonhum")]
    require(got == [0.12, 0.13], f"SFT: ‖π‖ grows by {got} along y⁺ and shuffled words, expected .12 and .13")
    require(all(grown["dpo", kind] < grown["sft", kind] for kind in WORDS), f"DPO adds no less than SFT: {grown}")
