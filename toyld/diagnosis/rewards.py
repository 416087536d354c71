"""What a log of rewards still tells, r = β (log π − log π_ref) of chosen and rejected: β, the reference, its start.

Means keep the line, so on one fixed evaluation set log π_t = ref + r_t / β (`toyld.diagnosis._line`). Without any
argmax follow β and the reference; rows that cannot belong, or a reference that moves; how far each side went; and
whether the reference is the policy that training started from (`toyld.diagnosis._start`). Train rows hold other
examples every time: no line there, but rewards that start at 0.
"""

from __future__ import annotations

import math

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld.checked import fail
from toyld.diagnosis._line import FLOAT32, Points, Recovered, half_unit, proportional, recover
from toyld.diagnosis._logged import PAIR, Logged, logged, without_pairs
from toyld.diagnosis._start import start
from toyld.diagnosis.thresholds import DEFAULT, Thresholds
from toyld.trajectory import NOTE_CODES

__all__ = ["FINDING_CODES", "reward_findings"]

FINDING_CODES: tuple[str, ...] = (*NOTE_CODES, "reward-consistent", "reward-change", "reward-accuracy")
FINDING_CODES += ("reference-free", "step-zero", "stuck-rewards", "no-pairs")

Floats = NDArray[np.float64]
Findings = list[dict[str, str]]
_LN2 = math.log(2.0)
_HALF_PRECISION = 2.0**-8  # relative rounding of bfloat16


def _finding(code: str, text: str) -> Findings:
    return [{"code": code, "text": text}]


def _steps(steps: NDArray[np.integer]) -> str:
    listed = sorted({int(s) for s in steps})
    return ", ".join(map(str, listed[:6])) + (f", ... ({len(listed)} in all)" if len(listed) > 6 else "")


def _margins(log: Logged) -> Findings:
    """margins = chosen − rejected, row by row."""
    if log.margin is None or set(log.reward) != set(PAIR):
        return []
    chosen, rejected = (log.reward[side] for side in PAIR)
    off = np.abs(log.margin - (chosen - rejected))
    size = np.abs(chosen) + np.abs(rejected)
    allowed = sum(half_unit(a) for a in (log.margin, chosen, rejected)) + FLOAT32 * size
    wrong = np.flatnonzero(off > allowed)
    if not wrong.size:
        return []
    worst = wrong[np.argmax((off / allowed)[wrong])]
    text = (
        f"{log.where}: rewards/margins is not chosen - rejected in {wrong.size} row(s) (steps {_steps(log.step[wrong])}"
        f"); worst at step {log.step[worst]}: {log.margin[worst]:.6g} against {chosen[worst] - rejected[worst]:.6g}"
    )
    if (off <= allowed + _HALF_PRECISION * size)[wrong].all():
        text += "; rewards kept in half precision would explain it"
    return _finding("reward-mismatch", text)


def _stuck(log: Logged, beta: float | None, thresholds: Thresholds) -> Findings:
    """Rewards that never leave 0: policy and reference give the same log-probabilities, or β is 0."""
    rows = [row for row in log.rows() if log.step[row] > int(log.train)]
    values = {side: np.abs(a[rows]) for side, a in log.reward.items()}
    if len(rows) < 2:
        return []
    zero = all((a <= log.rounding(side, beta, thresholds=thresholds)).all() for side, a in values.items())
    loss = log.loss[rows] if log.loss is not None else np.zeros(0)
    loss = loss[np.isfinite(loss)]
    off = 2 * thresholds.printed  # the rounding of the log and that of the loss within the run
    level = loss.size > 1 and bool((np.abs(loss - _LN2) <= off).all())
    if not zero and not (level and all((a <= thresholds.material).all() for a in values.values())):
        return []
    moved = [np.ptp(a[np.isfinite(a)]) > 2 * FLOAT32 * log.level + 2 * half_unit(a) for a in log.logp.values()]
    text = f"{log.where}: rewards stay at 0 in all {len(rows)} rows"
    text += f" and the loss at {_LN2:.4f} = ln 2" if level else ""
    if log.train or not moved:
        why = "policy and reference are the same model, beta is 0, or nothing is trained (frozen adapter, lr 0)"
    elif any(moved):
        why = "log-probabilities move, so the reference moves with the policy (one model as both), or beta is 0"
    else:
        why = "log-probabilities do not move either, so nothing is trained (frozen adapter, lr 0)"
    return _finding("stuck-rewards", f"{text}: {why}")


def _mismatch(log: Logged, p: Points, found: Recovered) -> str:
    worst = int(np.argmax(found.excess))
    wrong = p.step[found.off]
    nats = abs(float(found.residual[worst]))
    at = f"worst: {PAIR[p.side[worst]]} at step {p.step[worst]}, {nats:.3g} nats off, {found.excess[worst]:.3g} times"
    allows = f"{at} what the printed digits allow"
    if found.beta is None:
        return (
            f"{log.where}: no single beta and reference fit rewards = beta (log-probability - reference); {allows}. A "
            f"reference that moves (sync_ref_model, TR-DPO) or rows of other runs do this" + _half(nats, log)
        )
    rows = f"{len(set(wrong.tolist()))} of {len(set(p.step.tolist()))} rows (steps {_steps(wrong)})"
    return (
        f"{log.where}: {rows} do not fit the beta {found.beta:.5g} and the reference of the others; {allows}. Rows of "
        f"another run, or a reference that was changed" + _half(nats, log)
    )


def _half(nats: float, log: Logged) -> str:
    small = nats <= 2 * _HALF_PRECISION * log.level
    return "; log-probabilities kept in half precision would explain a difference of this size" if small else ""


def _pm(value: float, half: float) -> str:
    """Value ± half width, with the digits that the half width leaves."""
    digits = min(12, max(0, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else 6
    return f"{value:.{digits}f} ± {half:.2g}"


def _identity(
    log: Logged, given: float | None, thresholds: Thresholds
) -> tuple[float | None, Findings, Recovered | None]:
    """(β, findings, the line) of one evaluation set."""
    p = log.points()
    found = recover(p, thresholds=thresholds)
    if found is None:
        return given, [], None
    findings: Findings = []
    if found.off.any() or found.beta is None:
        findings += _finding("reward-mismatch", _mismatch(log, p, found))
    if found.beta is None:
        return given, findings, None
    own = _pm(found.beta, (found.high - found.low) / 2)
    outside = given is not None and not found.low <= given <= found.high
    if given is not None and outside and abs(given / found.beta - 1) > thresholds.material:
        text = f"{log.where}: beta given as {given:.6g}, but the rewards say {own}"
        findings += _finding("reward-mismatch", text)
    if not found.off.any():
        refs = ", ".join(f"{_pm(a, half)} ({PAIR[s]})" for s, (a, half) in found.ref.items())
        worst = float(np.abs(found.residual).max())
        check = f"; all {p.x.size} values fit within {worst:.2g} nats, as their digits allow" if found.checked else ""
        text = (
            f"{log.where}: rewards = beta (log-probability - reference) with beta {own} and "
            f"reference log-probabilities {refs} nats{check}"
        )
        findings += _finding("reward-consistent", text)
    return found.beta, findings, found


def _as_logged(log: Logged) -> str:
    """The rewards themselves, first to last, where beta is not known."""
    first, last = (int(log.rows()[i]) for i in (0, -1))
    several = first < last
    parts = (
        f"rewards/{side} {a[first]:.3g}" + (f" → {a[last]:.3g}" if several else "") for side, a in log.reward.items()
    )
    steps = f"step {log.step[first]}" + (f" → {log.step[last]}" if several else "")
    why = "the batches differ from row to row" if log.train else "these evaluations do not tell it"
    return (
        f"{log.where}, {steps}: {', '.join(parts)}{_last_accuracy(log)}; beta cannot be recovered ({why}): add --beta "
        f"0.1, your DPOConfig.beta, to read these in nats"
    )


def _last_accuracy(log: Logged) -> str:
    if log.accuracy is None:
        return ""
    share = log.accuracy[np.isfinite(log.accuracy)][-1]
    return f"; accuracy {share:.3g} (pairs whose margin grew)"


def _change(
    log: Logged, beta: float | None, found: Recovered | None, suspect: bool | None, thresholds: Thresholds
) -> Findings:
    """In one line: how far each side stands from the reference, and what of the log fits."""
    if beta is None:
        return _finding("reward-change", _as_logged(log))
    last = int(log.rows()[-1])
    parts, change = [], {}
    for i, side in enumerate(PAIR):
        if side in log.reward:
            change[side] = float(log.reward[side][last]) / beta
            ref = found.ref[i][0] if found is not None and i in found.ref else None
            share = f" ({change[side] / abs(ref):+.1%})" if ref else ""
            parts.append(f"{side} {change[side]:+.4g} nats{share}")
    where = "the batches of the last train row" if log.train else f"the last of the {log.where}"
    text = f"{where} (step {log.step[last]}) against the reference: {', '.join(parts)}"
    if len(change) == len(PAIR):
        margin = change["chosen"] - change["rejected"]
        text += f": the margin {'grew' if margin >= 0 else 'shrank'} by {abs(margin):.4g}"
    text += _last_accuracy(log)
    if found is not None and found.beta is not None and not found.off.any():
        text += f"; beta {found.beta:.4g} and the reference fit every row"
    if not suspect:
        text += "; whether the reference is the right one is open" * (suspect is None)
        text += "; no sign of a wrong reference" * (suspect is False)
    if not log.train and "chosen" in log.reward:
        curve = log.reward["chosen"]
        top = int(np.nanargmax(curve))
        drop = float(curve[top] - curve[last]) / beta
        if log.rows()[0] < top < last and drop > thresholds.material * log.level:
            text += (
                f"; rewards/chosen was highest at step {log.step[top]} ({curve[top]:.4g}), since then {-drop:+.4g} nats"
            )
    return _finding("reward-change", text)


def _accuracy(log: Logged) -> Findings:
    if log.accuracy is None:
        return []
    row = int(np.flatnonzero(np.isfinite(log.accuracy))[-1])
    text = (
        f"rewards/accuracies is {log.accuracy[row]:.3g} at step {log.step[row]} ({log.where}): the share of pairs "
        f"whose margin grew against the reference, not the share in which the policy prefers chosen (ranking accuracy)"
    )
    return _finding("reward-accuracy", text)


def _no_pairs(ds: xr.Dataset) -> Findings:
    """A log without any pair: of SFT, where it counts tokens."""
    if not without_pairs(ds):
        return []
    names = {str(name) for name in ds.data_vars}
    text = "no rewards and no log-probabilities of pairs: "
    tokens = {"train_mean_token_accuracy", "eval_mean_token_accuracy"} & names
    text += "this looks like the log of SFT" if tokens else "no log of preference training"
    for key in ("loss", "eval_loss"):
        if key in names and (known := ds[key].values[0][np.isfinite(ds[key].values[0])]).size:
            text += f"; {key} {known[0]:.3g}" + (f" → {known[-1]:.3g}" if known.size > 1 else "")
    return _finding("no-pairs", text)


def reward_findings(
    ds: xr.Dataset, /, *, beta: float | None = None, thresholds: Thresholds = DEFAULT
) -> tuple[bool, Findings]:
    """(whether the reference is another policy than the one training started from, findings) from logged rewards.

    `beta`: the run's β, used where it cannot be recovered (train rows alone) and compared where it can. Reads
    `eval_rewards_*`, `eval_NAME_rewards_*`, `train_rewards_*` of the first seed, with `logp` where the table is a log
    of means, `*_logps_*` else. Codes: FINDING_CODES. Without rewards nothing is found, or that it is no log of pairs.
    Raises TrajectoryError for a beta that is not a positive number.

    >>> from toyld.trajectory import trajectory
    >>> reward = np.array([0.0, -0.5, -0.75, -1.5])
    >>> run = {"eval_rewards_chosen": reward[None], "logp": (-100.25 + 10 * reward).reshape(1, 4, 1, 1)}
    >>> suspect, found = reward_findings(trajectory(run, step=[0, 10, 20, 30], probe=["chosen"]))
    >>> suspect, [finding["code"] for finding in found]
    (False, ['reward-consistent', 'step-zero', 'reward-change'])
    """
    if beta is not None and not (isinstance(beta, int | float) and 0 < beta < math.inf):
        fail("beta > 0, a number", repr(beta)[:40], "give the run's beta, or leave it out")
    with np.errstate(all="ignore"):  # absurd numbers give no line, and no warning either
        return _findings(ds, beta, thresholds)


def _findings(ds: xr.Dataset, beta: float | None, thresholds: Thresholds) -> tuple[bool, Findings]:
    logs = logged(ds)
    findings: Findings = _no_pairs(ds)
    live: list[Logged] = []
    lines: dict[str, Recovered | None] = {}
    known = beta
    for log in logs:
        findings += _margins(log)
        if stuck := _stuck(log, beta, thresholds):
            findings += stuck
        elif own := proportional(log.points(), thresholds=thresholds):
            text = f"{log.where}: rewards are {own:.5g} times the log-probability itself: a loss without a reference"
            findings += _finding("reference-free", text)
        else:
            live.append(log)
    for log in live:
        if not log.train:
            own_beta, found, lines[log.name] = _identity(log, beta, thresholds)
            known = known if known is not None else own_beta
            findings += found
    suspect: bool | None = False
    if live:
        lr = np.asarray(ds.lr.values[0], float) if "lr" in ds else np.full(ds.sizes["step"], np.nan)
        suspect, found_start = start(live, lr, beta=known, thresholds=thresholds)
        findings.append(found_start)
    evaluations = [log for log in live if not log.train]
    for log in evaluations or live:
        line = lines.get(log.name) if not log.train else None
        findings += _change(log, line.beta if line is not None else known, line, suspect, thresholds) + _accuracy(log)
    return bool(suspect), findings
