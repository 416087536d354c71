"""What chosen *must* lose if they were fresh samples of the starting policy (Rafailov et al. 2024, 2406.02900, §3.5).

With Δ = log π_t(y|x) − log π_0(y|x) and y ~ π_0(·|x), independent of π_t: E[exp Δ | x] = Σ_y π_t(y|x) = 1, hence
E Δ = −KL(π_0 ‖ π_t) ≤ 0. A reference trained to its optimum on chosen makes chosen look like such samples, so that a
fall of chosen alone proves nothing. The chosen that were trained on are no fresh samples and need not fall.

Size, to second order: if Δ given x is normal with variance v, E exp Δ = 1 forces its mean to be −v/2. Over prompts the
variance of all Δ is s² = E v + ¼ Var v, so that s²/2 overstates the loss E v/2 by Var(v)/8. With κ = sd(v)/E v, solving
s² = E v + ¼ κ² (E v)² gives E v = 2(√(1 + κ² s²) − 1)/κ²: s² for prompts all alike, about 2s/κ for s ≫ 1/κ.

Test: exp Δ is an e-value (expectation 1 under the null), the mean over examples is one whatever their dependence, the
product Σ Δ one if examples are drawn independently; so is the average of the two, and P(E ≥ 1/α) ≤ α by Markov.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toyld.diagnosis.curves import Curves
from toyld.diagnosis.resample import bootstrap_means, interval, known_mean, number, p_value
from toyld.diagnosis.thresholds import DEFAULT, Thresholds

__all__ = ["FRESH", "log_e_value", "null_model", "second_order_loss"]

Floats = NDArray[np.float64]
FRESH = "sampled"  # the probe that holds fresh samples of the starting policy


def second_order_loss(variance: Floats | float, /, *, spread: float = 0.0) -> Floats:
    """Expected change of log π, nats, of fresh samples: −E v/2 from the variance s² of Δ over examples.

    `spread`: κ = standard deviation of v between prompts over its mean (0: all alike); exact if Δ given the prompt is
    normal. With v in proportion to length, κ is the coefficient of variation of the number of tokens.

    >>> float(second_order_loss(4.0)), round(float(second_order_loss(4.0, spread=1.0)), 4)
    (-2.0, -1.2361)
    """
    s2 = np.asarray(variance, float)
    # (√(1 + k) − 1)/κ² = s²/(√(1 + k) + 1) with k = κ² s²: nothing cancels, and κ = 0 needs no branch
    return -s2 / (np.sqrt(1.0 + spread**2 * s2) + 1.0)


def log_e_value(delta: Floats, /, *, count: int = 1) -> float:
    """Log of an e-value against "these are fresh samples": the average of mean exp Δ and of the product exp Σ Δ.

    `delta`: [seed, example], changes in nats; the product runs over the examples of a seed, the mean over all. `count`:
    examples behind each entry where entries are means: exp(count · mean) is the product, exp(mean) ≤ the mean (Jensen).
    P(log E ≥ log 1/α) ≤ α for fresh samples that are independent given the two policies.

    >>> round(log_e_value(np.array([[3.0, -1.0]])), 3) == round(float(np.log((np.e**3 + 1/np.e)/4 + np.e**2/2)), 3)
    True
    """
    from scipy.special import logsumexp

    known = np.isfinite(delta)
    mean = logsumexp(delta[known]) - math.log(known.sum())
    rows = known.any(1)
    product = logsumexp(count * np.where(known, delta, 0.0).sum(1)[rows]) - math.log(rows.sum())
    return float(np.logaddexp(mean, product) - math.log(2.0))


def _spread(c: Curves) -> float | None:
    """κ where lengths are known: if every token adds its share of variance, v goes with the number of tokens."""
    tokens = c.tokens.get("chosen")
    if tokens is None or np.isfinite(tokens).sum() < 2 or not np.nanmean(tokens) > 0:
        return None
    return float(np.nanstd(tokens) / np.nanmean(tokens))


def null_model(c: Curves, /, *, seed: int = 0, thresholds: Thresholds = DEFAULT) -> dict[str, Any] | None:
    """The null model beside the change of chosen; None without two evaluations of chosen. Nats, JSON-ready.

    `d_chosen`, `low`, `high`: measured. `expected` (≤ 0) with `expected_low`, `expected_high`: of fresh samples;
    `method`: "sampled" = the mean change of the probe `sampled`, which is −KL itself; "second order, lengths" or
    "second order" = from the variance of Δ over the chosen; None with means only. `alike`, `uneven`: the same for κ = 0
    (the most that the variance allows for normal Δ) and κ = 1. `reliable`: False where exp Δ over these examples is
    carried by fewer than `effective_examples`, as counted, (Σe)²/Σe², or as normal Δ would have it, n exp(−s²): then
    the normal shape cannot be checked, and the size is a guess from the bulk. `excess` = d_chosen − expected where that
    is reliable, with an interval where it is paired with `sampled`. `log_e`: as if scoring were exact, the measured
    noise taken off. `p`, `refuted`: the test that chosen behave as fresh samples, by that e-value where the noise was
    measured, else by the mean alone (one-sided t: it must not rise), which noise without bias leaves as it is; None
    for means of unknown noise. `share_above`: share of examples with Δ ≥ log 1/α, in expectation at most α = 1 − level.

    >>> from toyld.trajectory import trajectory
    >>> logp = np.array([[-50.0, -60.0, -55.0, -45.0], [-51.0, -58.0, -57.5, -46.0]])
    >>> run = trajectory({"logp": logp[None, :, None]}, step=[0, 9], probe=["chosen"], example=list("abcd"))
    >>> from toyld.diagnosis.curves import curves
    >>> found = null_model(curves(run))
    >>> found["d_chosen"], found["expected"], found["refuted"]
    (-0.625, -1.78125, False)
    """
    if c.chosen is None or len(c.step) < 2:
        return None
    delta = c.chosen[-1] - c.chosen[0]
    n = int(np.isfinite(delta).sum())
    if n == 0:
        return None
    alpha = 1.0 - thresholds.level
    out: dict[str, Any] = {"d_chosen": number(known_mean(delta)), "low": None, "high": None}
    out |= dict.fromkeys(("expected", "expected_low", "expected_high", "method", "alike", "uneven"))
    out |= dict.fromkeys(("reliable", "effective", "excess", "excess_low", "excess_high", "share_above"))
    seeds, rest = (len(delta), 0) if c.means_only else divmod(len(delta), c.n_examples or len(delta))
    if rest or not seeds:
        seeds = 1
    quiet = (delta - c.floor).reshape(seeds, -1)
    log_e = log_e_value(quiet, count=max(1, c.n_examples or 1) if c.means_only else 1)
    out["log_e"] = number(log_e)
    if c.floor_known:
        out["p"] = min(1.0, math.exp(-max(0.0, log_e)))
    else:  # noise of unknown size has E exp > 1 and would refute by itself; without bias it leaves the mean alone
        out["p"] = None if c.means_only or n < 2 else p_value(delta)
    out["refuted"] = None if out["p"] is None else bool(out["p"] <= alpha)
    if not c.means_only and n >= 2:
        _sizes(out, c, delta, seed, thresholds)
        out["share_above"] = number((quiet >= -math.log(alpha)).sum() / n)
    return {**out, "text": _text(out, c)}


def _sizes(out: dict[str, Any], c: Curves, delta: Floats, seed: int, thresholds: Thresholds) -> None:
    fresh = c.logp.get(FRESH)
    moved = None if fresh is None else fresh[-1] - fresh[0]
    series = {"d": delta, "dd": delta**2}
    if moved is not None and np.isfinite(moved).sum() >= 2:
        series |= {"fresh": moved, "excess": delta - moved}
    drawn = bootstrap_means({k: a[None] for k, a in series.items()}, seed=seed, thresholds=thresholds)

    def bounds(a: Floats) -> tuple[float | None, float | None]:
        low, high = interval(a, thresholds=thresholds)
        return number(low), number(high)

    out["low"], out["high"] = bounds(drawn["d"][:, 0])
    known = delta[np.isfinite(delta)]
    # bootstrap variances are (n − 1)/n of the unbiased one
    variance, n = float(known.var(ddof=1)), len(known)
    variances = np.maximum(0.0, (drawn["dd"] - drawn["d"] ** 2)[:, 0]) * (n / (n - 1))
    out["alike"] = number(second_order_loss(variance))
    out["uneven"] = number(second_order_loss(variance, spread=1.0))
    weight = np.exp(known - known.max())
    effective = min(float(weight.sum() ** 2 / (weight**2).sum()), n * math.exp(-variance))
    out["effective"] = number(effective)
    if "fresh" in series:
        out |= {"method": "sampled", "expected": number(known_mean(series["fresh"])), "reliable": True}
        out["expected_low"], out["expected_high"] = bounds(drawn["fresh"][:, 0])
        out["excess"] = number(known_mean(series["excess"]))
        out["excess_low"], out["excess_high"] = bounds(drawn["excess"][:, 0])
        return
    spread = _spread(c)
    out["method"] = "second order" if spread is None else "second order, lengths"
    out["expected"] = number(second_order_loss(variance, spread=spread or 0.0))
    out["expected_low"], out["expected_high"] = bounds(second_order_loss(variances, spread=spread or 0.0))
    out["reliable"] = bool(effective >= thresholds.effective_examples)
    if out["reliable"]:
        out["excess"] = number(known_mean(delta) - second_order_loss(variance, spread=spread or 0.0))


def _text(out: dict[str, Any], c: Curves) -> str:
    """One sentence for people; the test's p and e stay in their keys."""
    fall = -out["d_chosen"]
    if not fall > 0:
        return "chosen did not fall: nothing to explain"
    start = "the policy before training" if c.has_step0 else "the policy at the first evaluation"
    such = f"if chosen reads like what {start} writes itself (as after SFT on such), "
    sizes = _range(out)
    if out["method"] == FRESH:
        text = f"whatever the loss, fresh answers of {start} fall too, here by {_size(-out['expected'])} nats"
        such = ""
    elif sizes is None:
        text = "some fall is to be expected whatever the loss, by an amount that means do not show"
        return f"{such}{text}; the fall of {_size(fall)} may be only that"
    else:
        why = "from" if out["reliable"] else "rough: from"
        text = f"a fall is to be expected whatever the loss, by about {_between(*sizes)} nats "
        text += f"({why} the spread of the changes)"
    assert sizes is not None
    least, most = (-out[end] if out[end] is not None else fall for end in ("high", "low"))
    where = "less than that" if most < sizes[0] else "beyond that" if least > sizes[1] else "within that"
    text = f"{such}{text}; the fall of {_size(fall)} is {where}"
    return text + "; though some chosen rose by more than such answers would" * bool(out["refuted"])


def _range(out: dict[str, Any]) -> tuple[float, float] | None:
    """The smallest and the largest fall of fresh samples, nats; None where the size is not known."""
    if out["expected"] is None:
        return None
    ends = (
        ("expected_low", "expected_high") if out["reliable"] else ("alike", "uneven", "expected_low", "expected_high")
    )
    falls = [-out["expected" if out[end] is None else end] for end in ends]
    return max(0.0, min(falls)), max(0.0, *falls)


def _size(x: float) -> str:
    return f"{max(0.0, x):.3g}" if x < 1000 else f"{x:.0f}"


def _between(low: float, high: float) -> str:
    ends = _size(low), _size(high)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
