"""Every number that a verdict depends on, each with its reason; none was fitted to a run."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

__all__ = ["DEFAULT", "Thresholds", "reasons"]


def _because(value: float, reason: str) -> float:
    return field(default=value, metadata={"reason": reason})


@dataclass(frozen=True)
class Thresholds:
    """The numbers of `toyld.diagnosis`; `reasons()` lists them with why they are what they are.

    >>> DEFAULT.flat
    0.25
    """

    flat: float = _because(
        0.25,
        "a move is flat beside another if it is less than a quarter of it: two moves are told apart by direction only "
        "where one does not dwarf the other; argmax must also keep three quarters of its room below log 1 = 0",
    )
    material: float = _because(
        0.01,
        "a mean that moved by less than a hundredth of the response's starting log-probability has not moved for a "
        "reader of the text, however many examples make it significant; argmax counts on the scale of its response",
    )
    difference: float = _because(
        2.0 * 2.0**0.5,
        "two measurements with equal noise (of scoring, or the jitter of a curve from evaluation to evaluation) differ "
        "by two standard deviations of a difference",
    )
    jitter_evaluations: float = _because(
        8, "second differences of fewer evaluations measure the curve's own bend, not its jitter"
    )
    reference: float = _because(
        4.0,
        "standard errors by which the policy at step 0 must differ from its reference where the scoring noise is not "
        "known: a false alarm would hide the verdict, and the question is put to every run",
    )
    rough_evaluations: float = _because(
        4,
        "from here on a verdict counts with a rough jitter: the median of two second differences lets a curve pass "
        "that jumps once and stays, and not one that swings; one second difference is a bend like any other",
    )
    level: float = _because(0.95, "intervals, two-sided")
    resamples: float = _because(1000, "percentile bootstrap over examples: 25 resamples lie beyond either bound")
    warning_run: float = _because(2, "an early warning needs two evaluations in a row: one may be jitter")
    collapse: float = _because(
        0.5, "collapse: the argmax path has lost half of its surprise, and its gap to chosen has not closed"
    )
    effective_examples: float = _because(
        10, "a mean of exp-moments carried by fewer examples than this says nothing of those that were not drawn"
    )
    first_rows: float = _because(
        5, "a line from the first logged rows back to step 0 has three degrees of freedom left, so a t quantile of 3"
    )
    settle_updates: float = _because(
        2.5,
        "rewards that start at 0 and settle with a time constant of t updates leave the first row, a mean of s "
        "updates, short of the next by about t / s of itself: no run finishes moving within two or three updates",
    )
    token_noise: float = _because(
        0.1,
        "nats of scoring noise per token, where none was measured: bfloat16 rounds logits from 16 to 32 in steps of "
        "1/8, so by 1/16 at most, and the forward pass that made them adds as much; independent from token to token, "
        "of about one nat each, it leaves this times the root of a response's nats",
    )
    unlogged_level: float = _because(
        1000, "nats of a response where no log-probability was logged: a long one, so that less is called material"
    )
    largest_beta: float = _because(
        1.0, "where beta is not known: training with rewards above a reference uses smaller ones, often 0.01 to 0.5"
    )
    printed: float = _because(
        5e-5,
        "half a unit of the fourth decimal: trainers log all digits, model cards four; digits that do not print "
        "because they are zeros must not make a value less exact than that",
    )
    near: float = _because(
        3.0,
        "times the rounding within which a point counts for the line's last fit: the line before it may be off by the "
        "rounding at two of its points; what fits is decided afterwards, from bounds without a factor",
    )
    precise: float = _because(
        100, "units of rounding in a reward that tells r = beta log pi from chance: with fewer digits many values agree"
    )
    majority: float = _because(0.5, "a line belongs to a log if more than half of the values lie on it")
    spare_points: float = _because(
        2, "values on a line beyond its unknowns where others are called wrong: one more could fit by chance"
    )
    missing_rejected: float = _because(0.1, "without rejected, healthy and rejection are not told apart")
    missing_examples: float = _because(0.2, "means hide mixed populations, and have no intervals")
    missing_floor: float = _because(0.05, "the scoring noise was not measured")
    missing_step0: float = _because(0.2, "changes count from the first evaluation, after training had begun")
    missing_jitter: float = _because(
        0.15, "under `jitter_evaluations` evaluations a shift that all examples share cannot be told from a trend"
    )
    unclear: float = _because(0.3, "a mean beyond its floor that its interval does not tell from 0 may be either")
    disagreement: float = _because(0.2, "the largest class among the examples is another than that of the means")
    missing_others: float = _because(0.05, "no other probe says where the mass went")


DEFAULT = Thresholds()


def reasons(thresholds: Thresholds = DEFAULT, /) -> dict[str, tuple[float, str]]:
    """Name -> (value, why it is that).

    >>> reasons()["level"]
    (0.95, 'intervals, two-sided')
    """
    return {f.name: (getattr(thresholds, f.name), f.metadata["reason"]) for f in fields(thresholds)}
