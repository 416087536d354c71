"""What rewards still tell: β and reference recovered from logs of known cause, spoilt rows found, no false alarm."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from toyld.diagnosis import DEFAULT, as_json, diagnose
from toyld.diagnosis.rewards import FINDING_CODES, reward_findings
from toyld.trajectory import NOTE_CODES, TrajectoryError, read, trajectory

REF = {"chosen": -180.25, "rejected": -190.5}


# --- logs of known cause ---------------------------------------------------------------------------------------------


def printed(values, digits):
    """As a log prints them: `digits` decimals, or float32 where None."""
    return np.asarray(values, np.float32).astype(float) if digits is None else np.round(values, digits)


def evaluations(seed=0, n=20, beta=0.1, digits=4, start=None, ref=None, every=50):
    """Rewards and log-probabilities of one set at n steps, as printed; rewards[0] is `start` where given."""
    rng = np.random.default_rng(seed)
    shape = {side: np.cumsum(rng.normal(slope, 0.1, n)) for side, slope in (("chosen", -0.02), ("rejected", -0.1))}
    if start is not None:
        shape = {side: a - a[0] + start for side, a in shape.items()}
    out = {}
    for side, reward in shape.items():
        level = (ref or REF)[side]
        out[f"eval_rewards_{side}"] = printed(reward, digits)
        out[f"eval_logps_{side}"] = printed(level + reward / beta, digits)
    out["eval_rewards_margins"] = printed(shape["chosen"] - shape["rejected"], digits)
    out["eval_rewards_accuracies"] = np.full(n, 0.75)
    return out, np.arange(n) * every + (0 if start is not None else every)


def train(seed=0, tau=100.0, settled=(0.3, -2.0), offset=(0.0, 0.0), every=10, total=400, pairs=80, warm=40):
    """Train rows of a run whose rewards settle with a time constant of `tau` updates at full learning rate."""
    rng = np.random.default_rng(seed)
    t = np.arange(total)
    lr = 1e-5 * np.minimum(1, (t + 1) / warm) * (1 - t / total)
    path = np.append(0, np.cumsum(lr))[:-1] / 1e-5
    steps = np.arange(every, total + 1, every)
    out = {"lr": lr[steps - 1]}
    for i, side in enumerate(("chosen", "rejected")):
        reward = settled[i] * (1 - np.exp(-path / tau))
        spread = np.array([np.sqrt(np.mean(reward[s - every : s] ** 2)) for s in steps]) + abs(offset[i]) / 2
        noise = spread * rng.standard_normal(steps.size) / np.sqrt(pairs)
        out[f"train_rewards_{side}"] = np.array([reward[s - every : s].mean() for s in steps]) + offset[i] + noise
        out[f"train_logps_{side}"] = -150 + 5 * rng.standard_normal(steps.size)
    out["train_rewards_margins"] = out["train_rewards_chosen"] - out["train_rewards_rejected"]
    return out, steps


def table(log):
    """As the reader of trainer states makes it: the evaluation's log-probabilities are `logp`."""
    columns, steps = log
    columns = dict(columns)
    logp = np.full((1, len(steps), 2, 1), np.nan)
    for i, side in enumerate(("chosen", "rejected")):
        if (values := columns.pop(f"eval_logps_{side}", None)) is not None:
            logp[0, :, i, 0] = values
    rest = {name: np.asarray(a)[None] for name, a in columns.items()}
    zero = bool(steps[0] == 0)
    return trajectory({"logp": logp, **rest}, step=steps, probe=["chosen", "rejected"], has_step0=zero)


def findings(log, **kwargs):
    suspect, found = reward_findings(table(log), **kwargs)
    assert_plain(found)
    return suspect, found


def assert_plain(found):
    for finding in found:
        assert set(finding) == {"code", "text"}
        assert finding["code"] in FINDING_CODES
        assert finding["text"].isprintable()
        assert "nan" not in finding["text"], finding


def text(found, code):
    (one,) = [finding["text"] for finding in found if finding["code"] == code]
    return one


def codes(found):
    return [finding["code"] for finding in found]


# --- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [2, 4, None])
def test_intervals_hold_the_truth_and_rounding_is_no_mismatch(digits):
    """300 logs: none is called inconsistent, and β and the reference lie in their 95 % intervals in at least 90 %."""
    from toyld.diagnosis._line import recover
    from toyld.diagnosis._logged import logged

    recovered, hit = 0, {"beta": 0, "chosen": 0, "rejected": 0}
    for seed in range(300):
        n, beta = (4, 9, 40)[seed % 3], (0.01, 0.1, 0.5)[seed // 3 % 3]
        (log,) = logged(table(evaluations(seed, n=n, beta=beta, digits=digits)))
        found = recover(log.points(), thresholds=DEFAULT)
        if found is None:  # few rows of few digits: the slope is blurred
            assert digits == 2
            continue
        recovered += 1
        assert not found.off.any(), (seed, found.excess.max())
        hit["beta"] += found.low <= beta <= found.high
        for i, side in enumerate(REF):
            hit[side] += abs(found.ref[i][0] - REF[side]) <= found.ref[i][1]
    assert recovered >= (200 if digits == 2 else 300)
    assert min(hit.values()) >= 0.9 * recovered, hit
    if digits is not None:  # errors as assumed, so the intervals are not idle either
        assert max(hit.values()) < recovered, hit


def test_rewards_too_coarse_for_their_interval_give_no_beta():
    """Rounding shrinks the slope by its share of the variance; more rows narrow the interval, and not that bias."""
    from toyld.diagnosis._line import Points, recover

    def of(n, spread):
        x = np.random.default_rng(0).normal(0, spread, n)
        y, zero = -180 + x / 0.1, np.zeros(n, int)
        return recover(
            Points(np.round(x, 2), y, zero, np.arange(n), np.full(n, 5e-3), np.full(n, 1e-9)), thresholds=DEFAULT
        )

    assert of(900, 0.01) is None  # the bias is some four half widths
    few, wide = of(20, 0.01), of(900, 0.1)
    for found in (few, wide):
        assert found.low <= 0.1 <= found.high


def test_beta_and_reference_are_said_with_their_digits():
    suspect, found = findings(evaluations(beta=0.25))
    line = text(found, "reward-consistent")
    assert not suspect
    assert "beta 0.2500" in line
    assert "-180.25" in line
    assert "-190.50" in line
    assert "all 40 values fit" in line


@pytest.mark.parametrize("key", ["eval_rewards_chosen", "eval_rewards_rejected", "eval_logps_chosen"])
@pytest.mark.parametrize("row", [0, 7, 19])
def test_a_changed_row_is_found_and_the_others_still_give_beta(key, row):
    columns, steps = evaluations()
    columns[key][row] += 0.03
    del columns["eval_rewards_margins"]
    _, found = findings((columns, steps))
    line = text(found, "reward-mismatch")
    assert f"1 of 20 rows (steps {steps[row]})" in line
    assert f"{key.rpartition('_')[2]} at step {steps[row]}" in line
    assert "beta 0.1 " in line or "beta 0.10000" in line
    assert "reward-consistent" not in codes(found)
    assert "-1" in text(found, "reward-change")  # β is known all the same
    assert "fit every row" not in text(found, "reward-change")


def test_a_moving_reference_is_a_mismatch():
    columns, steps = evaluations(digits=None)
    drift = np.linspace(0, -20, len(steps))
    columns["eval_logps_chosen"] += drift
    columns["eval_logps_rejected"] += drift**2 / 20
    _, found = findings((columns, steps))
    assert "no single beta and reference" in text(found, "reward-mismatch")
    assert "moves" in text(found, "reward-mismatch")
    assert "reward-consistent" not in codes(found)


def test_two_slopes_are_no_line():
    columns, steps = evaluations()
    columns["eval_logps_rejected"] = np.round(REF["rejected"] + columns["eval_rewards_rejected"] / 0.2, 4)
    _, found = findings((columns, steps))
    assert "reward-mismatch" in codes(found)


def test_rewards_with_the_wrong_sign_or_frozen_are_a_mismatch():
    columns, steps = evaluations(digits=None)
    wrong = {**columns, "eval_rewards_chosen": -columns["eval_rewards_chosen"]}
    wrong["eval_rewards_rejected"] = -columns["eval_rewards_rejected"]
    wrong["eval_rewards_margins"] = -columns["eval_rewards_margins"]
    assert "reward-mismatch" in codes(findings((wrong, steps))[1])
    one = {name: a for name, a in columns.items() if "margins" not in name}
    frozen = one | {
        name: np.full(len(steps), a[0]) for name, a in one.items() if "rewards_c" in name or "rewards_r" in name
    }
    assert "reward-mismatch" in codes(findings((frozen, steps))[1])


@pytest.mark.parametrize("prefix", ["eval", "train"])
def test_margins_are_chosen_minus_rejected(prefix):
    columns, steps = evaluations(digits=4) if prefix == "eval" else train()
    assert "reward-mismatch" not in codes(findings((columns, steps))[1])
    columns[f"{prefix}_rewards_margins"][3] += 0.0007
    line = text(findings((columns, steps))[1], "reward-mismatch")
    assert f"1 row(s) (steps {steps[3]})" in line
    columns[f"{prefix}_rewards_margins"][3:] += 0.7
    assert "half precision" not in text(findings((columns, steps))[1], "reward-mismatch")


def test_a_given_beta_is_compared():
    log = evaluations(beta=0.1)
    assert "reward-mismatch" not in codes(findings(log, beta=0.1)[1])
    assert "given as 0.5" in text(findings(log, beta=0.5)[1], "reward-mismatch")


@pytest.mark.parametrize("beta", [0, -1, math.nan, math.inf, "0.1"])
def test_a_beta_that_is_none_gives_one_line(beta):
    with pytest.raises(TrajectoryError, match="expected beta > 0") as caught:
        reward_findings(table(evaluations()), beta=beta)
    assert "\n" not in str(caught.value)


def test_one_evaluation_recovers_nothing():
    _, found = findings(evaluations(n=1))
    assert "cannot be recovered" in text(found, "reward-change")
    assert "reward-consistent" not in codes(found)


def test_rewards_without_a_reference_are_recognised_and_not_suspected():
    """ORPO, SimPO, CPO: r = β log π is far from 0 at the start, and that is right."""
    columns, steps = evaluations(start=0.0, digits=None)
    for side in REF:
        columns[f"eval_rewards_{side}"] = 2.0 * (columns[f"eval_logps_{side}"] / 150)
        columns[f"eval_logps_{side}"] = columns[f"eval_logps_{side}"] / 150
    del columns["eval_rewards_margins"]
    suspect, found = findings((columns, steps))
    assert (suspect, codes(found)) == (False, ["reference-free"])
    assert "are 2 times" in found[0]["text"]
    columns, steps = train()
    for side in REF:
        columns[f"train_rewards_{side}"] = 0.1 * columns[f"train_logps_{side}"]
    del columns["train_rewards_margins"]
    suspect, found = findings((columns, steps))
    assert (suspect, codes(found)) == (False, ["reference-free"])


# --- the start -------------------------------------------------------------------------------------------------------


def test_rewards_of_0_at_step_0_clear_the_reference():
    suspect, found = findings(evaluations(start=0.0))
    assert not suspect
    assert "0 within rounding" in text(found, "step-zero")


@pytest.mark.parametrize("offset", [-3.0, 0.5])
def test_rewards_other_than_0_at_step_0_make_the_reference_suspect(offset):
    suspect, found = findings(evaluations(start=offset))
    assert suspect
    assert f"{abs(offset) * 10:.3g} nats" in text(found, "reference-suspect")
    assert diagnose(table(evaluations(start=offset))).verdict == "wrong-reference"


def test_scoring_noise_at_step_0_is_named_and_not_suspected():
    suspect, found = findings(evaluations(start=0.05))  # half a nat of 180
    assert not suspect
    assert "not 0, but 0.5 nats is below 1%" in text(found, "step-zero")


def first_row(chosen, rejected, level, *, step=0, **more):
    """A row before the first update and three after it, which move by 0.01 nats at a β of 0.1."""
    prefix = "train" if step else "eval"
    columns = {"rewards_chosen": chosen, "rewards_rejected": rejected, "logps_chosen": level, "logps_rejected": level}
    moved = {"rewards": 0.001 * np.arange(4), "logps": 0.01 * np.arange(4)}
    columns = {f"{prefix}_{name}": value - moved[name.partition("_")[0]] for name, value in columns.items()}
    return columns | {name: np.full(4, value) for name, value in more.items()}, np.array([step, 10, 20, 30])


def test_without_beta_rewards_at_step_1_are_not_called_small():
    """−0.8 at −90 nats is 8 nats = 9 % if β is 0.1, and 0.9 % if it is 1."""
    log = first_row(-0.801, -0.7, -90.0, step=1)
    suspect, found = findings(log)
    line = text(found, "step-zero")
    assert not suspect
    assert "without beta" in line
    assert "--beta" in line
    assert "below" not in line
    assert "whether" in line
    assert "8.01 nats" in text(findings(log, beta=0.1)[1], "reference-suspect")
    assert "0.801 nats is below 1%" in text(findings(log, beta=1.0)[1], "step-zero")


def test_without_beta_rewards_that_are_far_off_at_any_beta_are_suspected():
    log = first_row(-8.0, -7.0, -90.0, step=1)
    assert "8 nats or more (at any beta up to 1)" in text(findings(log)[1], "reference-suspect")


@pytest.mark.parametrize(("nats", "suspicious"), [(0.05, False), (0.15, False), (0.8, False), (1.2, True)])
def test_scoring_noise_of_short_responses_is_no_other_policy(nats, suspicious):
    """−10 nats, some ten tokens: one scored in half precision is off by 0.3 nats (one standard deviation)."""
    suspect, found = findings(first_row(0.1 * nats, -0.1 * nats, -10.0), beta=0.1)
    assert suspect is suspicious
    line = text(found, "reference-suspect" if suspicious else "step-zero")
    assert ("another reference, or noise" in line) == (nats in (0.15, 0.8))
    assert ("is below 1%" in line) == (nats == 0.05)
    if nats == 0.15:
        assert "(1.5% of the log-probability)" in line
        assert "no sign of a wrong reference" not in text(found, "reward-change")
        assert "is open" in text(found, "reward-change")


def test_without_log_probabilities_only_what_is_much_of_a_long_response_is_suspected():
    for reward, suspicious in ((-0.05, False), (-0.9, False), (-3.0, True)):
        columns, steps = first_row(reward, 0.5 * reward, -90.0)
        bare = {name: a for name, a in columns.items() if "logps" not in name}
        suspect, found = findings((bare, steps), beta=0.1)
        assert suspect is suspicious, reward
        if not suspicious:
            assert "of unknown responses" in text(found, "step-zero")


def test_rewards_that_cancel_in_the_mean_are_not_called_fine():
    """Mean margins of −0.01 with a loss of 0.93: pairs are off by 1.4 / β (root mean square), some up, some down."""
    wrong = {"eval_rewards_accuracies": 0.48, "eval_loss": 0.93}
    suspect, found = findings(first_row(-0.05, -0.04, -90.0, **wrong), beta=0.1)
    line = text(found, "step-zero")
    assert not suspect  # another loss would explain it
    assert "accuracy 0.48 and loss 0.93" in line
    assert "by 13.6 nats or more" in line
    assert "unless the loss is another one" in line
    assert "no sign of a wrong reference" not in text(found, "reward-change")
    assert "is open" in text(found, "reward-change")
    suspect, found = findings(first_row(0.0, 0.0, -90.0, **wrong), beta=0.1)
    assert "the reference is the policy at the start" not in text(found, "step-zero")
    assert "loss 0.93" in text(found, "step-zero")


@pytest.mark.parametrize(
    "fine",
    [
        {"eval_rewards_accuracies": 0.0, "eval_loss": 0.6931},  # equal policies
        {"eval_rewards_accuracies": 0.49, "eval_loss": 0.6938},  # their scoring noise
        {"eval_rewards_accuracies": 0.0, "eval_loss": 1.0},  # equal policies, hinge
        {"eval_rewards_accuracies": 0.49, "eval_loss": math.nan},
        {"eval_rewards_accuracies": 0.49},
        {"eval_loss": 0.93},
    ],
)
def test_noise_or_another_loss_alone_say_nothing_of_single_pairs(fine):
    suspect, found = findings(first_row(-0.05, -0.04, -90.0, **fine), beta=0.1)
    assert not suspect
    assert "is below 1%" in text(found, "step-zero")
    assert "single pairs" not in text(found, "step-zero")
    assert "no sign of a wrong reference" in text(found, "reward-change")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_the_bound_on_single_pairs_holds_for_any_margins(smoothing):
    """The root mean square that loss and mean margin prove is never above the true one, and near it at no mean."""
    from toyld.diagnosis._logged import Logged
    from toyld.diagnosis._start import _pairs

    rng, beta, said = np.random.default_rng(0), 0.1, 0
    for _ in range(300):
        margins = rng.normal(rng.normal(0, 0.5), rng.uniform(0.1, 3), 500)
        loss = np.mean(np.logaddexp(0, -margins) * (1 - smoothing) + np.logaddexp(0, margins) * smoothing)
        one = {name: np.array([value]) for name, value in (("chosen", margins.mean()), ("rejected", 0.0))}
        more = {"accuracy": np.array([(margins > 0).mean()]), "loss": np.array([loss])}
        level = {"chosen": np.array([-10.0])}
        line = _pairs(Logged("", False, np.array([0]), one, level, **more), 0, beta, DEFAULT)
        if line:
            said += 1
            proved = float(line.partition("reference by ")[2].partition(" nats")[0])
            assert proved <= np.sqrt(np.mean(margins**2)) / beta * 1.005  # three digits are printed
    assert said > 100


def path_of(rates, *, train=False):
    from toyld.diagnosis._logged import Logged
    from toyld.diagnosis._start import _path

    steps = np.arange(1, len(rates) + 1) * 10
    log = Logged("", train, steps, {"chosen": np.zeros(len(rates))}, {})
    return _path(log, log.rows(), np.asarray(rates, float)).tolist()


def test_the_learning_rate_before_the_first_row_is_summed_from_0_in_warm_up():
    assert path_of([1, 2, 3]) == [5, 20, 45]  # rises: from 0
    assert path_of([3, 2, 1]) == [30, 55, 70]  # falls: as in the first row
    assert path_of([2, 2, 2]) == [20, 40, 60]
    assert path_of([1, 2, 3], train=True) == [2.5, 12.5, 32.5]  # windows
    assert path_of([0, 0, 0]) == path_of([math.nan] * 3) == [10, 20, 30]  # unknown: updates


@pytest.mark.parametrize(("offset", "suspicious"), [(0.0, False), (4.0, True)])
def test_a_first_train_row_at_step_1_was_scored_before_the_update(offset, suspicious):
    columns, steps = train(offset=(offset, offset))
    first = {name: np.append(offset if "rewards" in name else a[0], a) for name, a in columns.items()}
    first["train_rewards_margins"][0] = 0.0
    suspect, found = findings((first, np.append(1, steps)))
    assert suspect is suspicious
    assert "(step 1), scored before it" in text(found, "reference-suspect" if suspicious else "step-zero")


def test_no_healthy_run_is_suspected():
    """400 runs that start at their reference and settle within 5 to 1000 updates, rows every 5 to 50."""
    rng = np.random.default_rng(1)
    for seed in range(400):
        every, tau = int(rng.choice([5, 10, 25, 50])), float(np.exp(rng.uniform(np.log(5), np.log(1000))))
        settled = np.sort(rng.uniform(-8, 3, 2))[::-1]  # training settles at a margin above 0
        log = train(seed, tau=tau, settled=settled, every=every, pairs=int(rng.choice([20, 80, 320])))
        suspect, found = findings(log, beta=0.1 if seed % 2 else None)
        assert not suspect, (seed, every, tau, settled, found)
        assert "eval_on_start" in text(found, "step-zero")


@pytest.mark.parametrize("offset", [(-3.0, 2.0), (2.0, -3.0), (-3.0, -3.0)])
def test_a_reference_far_away_is_caught_from_the_first_train_rows(offset):
    """At least 95 of 100 logs of one row in ten updates, without an evaluation at step 0."""
    caught = 0
    for seed in range(100):
        log = train(seed, offset=offset, tau=(50, 300)[seed % 2], settled=(0.2, -1.0))
        suspect, found = findings(log)
        caught += suspect
        assert ("reference-suspect" in codes(found)) == suspect
    assert caught >= 95


def test_evaluations_alone_are_suspected_only_at_a_margin_below_0():
    """A late first evaluation above 0 may be of a run that has finished moving; below 0, no training settles."""
    columns, steps = evaluations(n=8, digits=4, every=100)
    for side, level in (("chosen", 2.0), ("rejected", -3.0)):
        reward = level + 0.001 * np.arange(8)
        columns[f"eval_rewards_{side}"], columns[f"eval_logps_{side}"] = reward, REF[side] + reward / 0.1
    columns["eval_rewards_margins"] = columns["eval_rewards_chosen"] - columns["eval_rewards_rejected"]
    suspect, found = findings((columns, steps))
    assert not suspect
    assert "or a run that has finished moving within 100 updates" in text(found, "step-zero")
    assert "no sign of a wrong reference" not in text(found, "reward-change")
    assert "whether the reference is the right one is open" in text(found, "reward-change")
    swapped = {}
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        swapped[f"eval_rewards_{side}"] = columns[f"eval_rewards_{other}"]
        swapped[f"eval_logps_{side}"] = columns[f"eval_logps_{other}"]
    suspect, found = findings((swapped, steps))
    assert suspect
    assert "before training" in text(found, "reference-suspect")


@pytest.mark.parametrize("offset", [(-3.0, 2.0), (2.0, -3.0)])
def test_constant_rewards_without_decimals_are_caught(offset):
    columns, steps = train()
    for side, reward in zip(REF, offset, strict=True):
        columns[f"train_rewards_{side}"] = np.full(len(steps), reward)
    columns["train_rewards_margins"] = np.full(len(steps), offset[0] - offset[1])
    assert findings((columns, steps))[0]


def test_a_learning_rate_that_falls_explains_rewards_that_stop():
    """Rewards in proportion to the summed learning rate lead back to 0 along it, however slowly they move later."""
    steps = np.array([100, 101, 200, 300, 400, 500])
    lr = np.where(steps == 100, 1e-5, 1e-7)
    path = np.cumsum(np.append(lr[0], (lr[1:] + lr[:-1]) / 2) * np.diff(np.append(0, steps)))
    columns = {"lr": lr}
    for side, scale in (("chosen", -0.9), ("rejected", 0.6)):
        reward = np.where(steps == 101, np.nan, scale * path / path[-1])
        columns[f"eval_rewards_{side}"], columns[f"eval_logps_{side}"] = reward, REF[side] + reward / 0.03
    assert not findings((columns, steps))[0]
    columns["lr"] = np.full(len(steps), 1e-5)
    assert findings((columns, steps))[0]


def test_without_log_probabilities_train_rows_make_nothing_suspect():
    columns, steps = train(offset=(-3.0, 2.0))
    bare = {name: a for name, a in columns.items() if "logps" not in name}
    suspect, found = findings((bare, steps))
    assert not suspect
    assert "step-zero" in codes(found)


# --- stuck, changes, accuracy ----------------------------------------------------------------------------------------


def test_stuck_rewards_are_explained_by_what_the_log_probabilities_do():
    columns, steps = evaluations(start=0.0)
    still = {name: np.zeros(20) if "rewards" in name else a for name, a in columns.items()}
    suspect, found = findings((still, steps))
    assert (suspect, codes(found)) == (False, ["stuck-rewards"])
    assert "reference moves with the policy" in found[0]["text"]
    still |= {name: np.full(20, a[0]) for name, a in columns.items() if "logps" in name}
    assert "nothing is trained" in text(findings((still, steps))[1], "stuck-rewards")
    columns, steps = train()
    noise = np.random.default_rng(0).normal(0, 1e-3, len(steps))
    still = {name: noise if "rewards" in name else a for name, a in columns.items()}
    del still["train_rewards_margins"]
    assert "stuck-rewards" not in codes(findings((still, steps))[1])
    still["loss"] = np.full(len(steps), 0.6931)
    assert "0.6931 = ln 2" in text(findings((still, steps))[1], "stuck-rewards")


def test_the_change_is_counted_from_the_reference_and_squeezing_is_not_claimed():
    columns, steps = evaluations(n=3)
    for side, reward in (("chosen", [0.2, 0.5, -0.8]), ("rejected", [-0.5, -1.5, -3.0])):
        columns[f"eval_rewards_{side}"] = np.array(reward)
        columns[f"eval_logps_{side}"] = REF[side] + np.array(reward) / 0.1
    del columns["eval_rewards_margins"]
    line = text(findings((columns, steps))[1], "reward-change")
    assert "chosen -8 nats (-4.4%), rejected -30 nats (-15.7%): the margin grew by 22" in line
    assert "accuracy 0.75" in line
    assert "beta 0.1 and the reference fit every row" in line
    assert "no sign of a wrong reference" in line
    assert "squeezing" not in line
    assert "highest at step 100 (0.5), since then -13 nats" in line
    assert "ranking accuracy" in text(findings((columns, steps))[1], "reward-accuracy")


def test_a_drop_within_what_is_material_is_not_told():
    for drop, told in ((0.15, False), (0.25, True)):  # 1.5 and 2.5 nats of 180
        columns, steps = evaluations(n=4)
        for side, reward in (("chosen", [0.1, 0.5, 0.45, 0.5 - drop]), ("rejected", [-0.5, -1.5, -2.5, -3.0])):
            columns[f"eval_rewards_{side}"] = np.array(reward)
            columns[f"eval_logps_{side}"] = REF[side] + np.array(reward) / 0.1
        del columns["eval_rewards_margins"]
        line = text(findings((columns, steps), beta=0.1)[1], "reward-change")
        assert ("highest at step" in line) == told


def test_train_rows_alone_need_beta():
    log = train()
    plain = text(findings(log)[1], "reward-change")
    assert "add --beta 0.1, your DPOConfig.beta" in plain
    rewards = log[0]["train_rewards_rejected"]
    assert f"rewards/rejected {rewards[0]:.3g} → {rewards[-1]:.3g}" in plain
    line = text(findings(log, beta=0.5)[1], "reward-change")
    assert f"rejected {log[0]['train_rewards_rejected'][-1] / 0.5:+.4g} nats" in line


# --- any table -------------------------------------------------------------------------------------------------------


def test_nothing_is_found_where_no_rewards_were_logged():
    run = trajectory({"logp": [[[[-3.0]], [[-2.5]]]], "loss": [[0.6931, 0.6931]]}, step=[0, 10], probe=["chosen"])
    assert reward_findings(run) == (False, [])


def test_log_probabilities_of_other_examples_are_not_the_evaluation_s():
    """A table per example (probes) beside eval_rewards: the line is not drawn through both."""
    columns, steps = evaluations()
    logp = np.random.default_rng(0).normal(-150, 5, (1, len(steps), 2, 4))
    rest = {name: a[None] for name, a in columns.items() if "logps" not in name}
    ds = trajectory({"logp": logp, **rest}, step=steps, probe=["chosen", "rejected"], example=list("abcd"))
    _, found = reward_findings(ds)
    assert not {"reward-mismatch", "reward-consistent"} & set(codes(found))


def test_named_sets_are_each_read_on_their_own():
    a, steps = evaluations(seed=1, beta=0.1, start=0.0)
    b, _ = evaluations(seed=2, beta=0.1, start=0.0, ref={"chosen": -90.25, "rejected": -80.0})
    both = {name.replace("eval_", "eval_a_"): v for name, v in a.items()}
    both |= {name.replace("eval_", "eval_b_"): v for name, v in b.items()}
    suspect, found = findings((both, steps))
    lines = [f["text"] for f in found if f["code"] == "reward-consistent"]
    assert not suspect
    assert ["of a" in lines[0], "-180.2" in lines[0], "of b" in lines[1], "-90.2" in lines[1]] == [True] * 4


NAMES = [
    f"{p}_{k}" for p in ("eval", "train", "eval_x") for k in ("rewards_chosen", "rewards_rejected", "logps_chosen")
]
NAMES += ["eval_rewards_margins", "eval_rewards_accuracies", "loss", "lr", "eval_loss", "train_rewards_margins"]
VALUES = st.one_of(
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, -0.0, 1e-300, 1e300, -1e300, 0.6931, 1e-12, -1.0]),
    st.just(math.nan),
)


@settings(max_examples=100)
@given(st.data())
def test_any_table_gets_findings_and_no_exception(data):
    n = data.draw(st.integers(1, 7))
    steps = sorted(data.draw(st.sets(st.integers(0, 60), min_size=n, max_size=n)))
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    columns = {name: data.draw(hnp.arrays(float, (1, n), elements=VALUES)) for name in names}
    logp = data.draw(hnp.arrays(float, (1, n, 2, 1), elements=st.floats(-1e300, 0) | st.just(math.nan)))
    if all(np.isnan(a).all() for a in [logp, *columns.values()]):
        logp[0, 0, 0, 0] = -1.0
    ds = trajectory({"logp": logp, **columns}, step=steps, probe=["chosen", "rejected"], has_step0=steps[0] == 0)
    suspect, found = reward_findings(ds, beta=data.draw(st.sampled_from([None, 0.1, 1e-300, 1e300])))
    assert isinstance(suspect, bool)
    assert suspect == ("reference-suspect" in codes(found))
    assert all(f["code"] in FINDING_CODES and f["text"].isprintable() for f in found)


def test_codes_extend_the_notes():
    assert FINDING_CODES[: len(NOTE_CODES)] == NOTE_CODES
    assert len(set(FINDING_CODES)) == len(FINDING_CODES)


# --- the real logs ---------------------------------------------------------------------------------------------------

REAL = {
    "llama2": ("beta 0.0999999 ± 1.5e-06", "-183.850520", "-189.51881", "chosen +1.4", "rejected -8.59"),
    "mamba": ("beta 0.1000024 ± 2.9e-06", "-354.57015", "-274.08377", "chosen -4.598", "rejected -16.04"),
    "zephyr": ("beta 0.10000002 ± 3.1e-07", "-254.23512", "-256.96995", "chosen -45.17", "rejected -83.08"),
    "tinyllama": (),
}


@pytest.mark.parametrize("kind", REAL)
def test_real_logs_give_no_alarm_and_their_beta(data, kind):
    (path,) = (data / "runs" / "trl").glob(f"{kind}*")
    ds = read(path)
    verdict = diagnose(ds)
    assert verdict.verdict == "cannot-tell"
    json.dumps(as_json(verdict, path="x"), allow_nan=False)
    suspect, found = reward_findings(ds)
    assert_plain(found)
    assert not suspect
    assert "reward-mismatch" not in codes(found)
    assert "eval_on_start" in text(found, "step-zero")
    if kind == "tinyllama":
        assert "cannot be recovered" in text(found, "reward-change")
        assert "rejected -7.732 nats" in text(reward_findings(ds, beta=0.1)[1], "reward-change")
    said = " ".join(f["text"] for f in found)
    for part in REAL[kind]:
        assert part in said, part
