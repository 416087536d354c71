"""Remedies in transformers: for each claim, tables where it holds, where it is refuted, where it says nothing."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims.runs import RunClaim, evaluate_on
from toyld.trajectory import trajectory

OWN = ("remedy.", "shield.", "unlearning.")
RUNS = {i: c for i, c in claims.every().items() if i.startswith(OWN) and isinstance(c, RunClaim) and "tiny" in c.rungs}
SEEDS = 12
LAYERS = {"kernel": "layers", "language": "network rmsprop"}
HIDDEN = {"kernel": "hidden", "language": "network sgd"}


def spread(arm):
    """Factors (seed, 1) about 1, of its own for each arm."""
    return 1.0 + 0.02 * np.random.default_rng(sum(map(ord, arm))).normal(size=(SEEDS, 1))


def built(arm, paths, attrs, **columns):
    """A table of changes (step,) by probe, jittered by seed; columns: (step,) each."""
    steps = np.arange(len(next(iter(paths.values()))))
    start = attrs.pop("start_at", {})
    logp = np.stack([start.get(p, -60.0) + np.asarray(y, float) * spread(arm + p) for p, y in paths.items()], axis=2)
    more = {name: np.asarray(y, float) * spread(arm + name) for name, y in columns.items()}
    return trajectory(
        {"logp": logp[..., None], **more}, step=attrs.pop("step", steps), probe=list(paths), example=["a"],
        seed=range(SEEDS), stage="preference", arm=arm, attrs=attrs,
    )  # fmt: skip


def run(arm, *, chosen=0.0, test=-0.3, speed=1.0, most=20.0, share=None, at=None, gap=0.0, **attrs):
    """The margin grows by `speed` an update up to `most`; chosen and untrained change so much a nat of it.

    at: where the untrained answer starts; gap: how far rejected stands under chosen at the start.
    """
    m = np.minimum(speed * np.arange(int(22 / speed)), most)
    paths = {"chosen": chosen * m, "rejected": (chosen - 1.0) * m, "test_chosen": test * m}
    attrs = {"experiment": "remedies", "first_step": 1.0, **LAYERS, **attrs}
    attrs["start_at"] = {"test_chosen": at or -60.0, "chosen": -60.0, "rejected": -60.0 - gap}
    return built(arm, paths, attrs, **({} if share is None else {"eval_mean_share": np.full(len(m), share)}))


def forgot(arm, fall, others=0.3):
    """Penalised answers fall along `fall` at updates 0, 6, 12, 24, all others by a share of that."""
    fall = np.array(fall)
    kinds = {"rejected": -fall} | dict.fromkeys(("chosen", "test_chosen", "irr_hum"), -others * fall)
    return built(arm, kinds, {"experiment": "remedies", "step": [0, 6, 12, 24], "kernel": "layers"})


def first(arm, moved, *, fall=None, test=0.1, optimizer="sgd", start="taught", **attrs):
    """First updates: parameters moved so far, rejected fell as far or `fall`, untrained answers by `test` a time."""
    step = np.array([0.0, 1.0, 4.0])
    paths = {"rejected": -(moved if fall is None else fall) * step, "test_chosen": -test * step}
    told = {"experiment": "shield", "optimizer": optimizer, "start": start, "rate": 0.1, "step": step.astype(int)}
    if arm != "sft":
        told["beta"] = float(arm.split()[1])
    return built(arm, {"chosen": step, **paths}, {**told, **attrs}, train_moved=moved * step)


def beside(best, good, bad, **others):
    arms = ("plain", "centred", "projected", "extend", "rpo", "gate-dpo", "length-normalised")
    return [run(arm, **(others.get(arm.replace("-", "_")) or (good if arm == best else bad))) for arm in arms]


UP, DOWN = {"chosen": 0.05, "test": -0.1}, {"chosen": -0.1, "test": -0.4}
ELSE = "the claim is about other arms"
SLOW, FAST = {"speed": 0.5}, {"speed": 2.0}


def centred(where, arms=("centred", "plain")):
    good, bad = ([run(a, **x, **where) for a, x in zip(arms, how, strict=True)] for how in ((UP, DOWN), (DOWN, UP)))
    return good, bad, ([run(arms[0], **where), run("rpo", **where)], ELSE)


def shielded(good, bad, optimizer="sgd", start="taught", control="sft"):
    """good, bad: (dpo .1's or dpo .5's arguments, the control's)."""
    arm = "dpo 0.1" if control == "sft" else "dpo 0.5"
    made = [
        [first(name, **how, optimizer=optimizer, start=start) for name, how in zip((arm, control), both, strict=True)]
        for both in (good, bad)
    ]
    return *made, ([first(arm, 1.0, optimizer="other"), first(control, 1.0, optimizer="other")], "another optimiser")


def m(moved, **more):
    return {"moved": moved, **more}


# id -> (where it holds, where it is refuted, where it says nothing and a word of the reason)
CASES = {
    "remedy.spares-chosen-in-head": centred(HIDDEN),
    "remedy.spares-untrained-in-head": centred(HIDDEN, ("projected", "plain")),
    "remedy.spares-chosen-in-all-layers": centred(LAYERS, ("projected", "plain")),
    "remedy.spares-untrained-in-all-layers": centred(LAYERS),
    "remedy.spares-more-than-a-random-direction": centred(LAYERS, ("projected", "random-projected")),
    "remedy.head-is-not-enough": centred(LAYERS, ("centred", "centred-head")),
    "remedy.little-to-undo": (
        [run("centred", test=-0.38), run("plain", **DOWN)],
        [run("centred", test=-0.3), run("plain", **DOWN)],
        ([run("centred", kernel="common"), run("plain", kernel="common")], "about the kernels hidden, layers"),
    ),
    "remedy.mean-is-small": (
        [run("plain", share=0.1, **HIDDEN), run("plain", share=0.4, language="network rmsprop")],  # read once
        [run("plain", share=0.4, **HIDDEN)],
        ([run("plain", **HIDDEN)], "not measured"),
    ),
    "remedy.nll-and-gate-raise-chosen": ([run("rpo", **UP)], [run("gate-dpo", **DOWN)], ([run("plain")], ELSE)),
    "remedy.nll-spares-chosen-most": (
        beside("rpo", UP, DOWN),
        beside("rpo", UP, DOWN, extend={"chosen": 0.1}),
        (beside("rpo", UP, DOWN)[:-1], "length-normalised is not there"),
    ),
    "remedy.extend-spares-untrained-most": (
        beside("extend", UP, DOWN),
        beside("extend", UP, DOWN, gate_dpo={"test": -0.05}),
        (beside("extend", UP, DOWN, rpo={"most": 7.0}), "of rpo reach both margins"),
    ),
    "remedy.extend-pays-beforehand": (
        [run("extend", at=-62.0), run("plain")],
        [run("extend", at=-58.0), run("plain")],
        ([run("extend"), run("plain", first_step=0.5)], "two step sizes"),
    ),
    "remedy.extend-ends-higher": (
        [run("extend", **UP, at=-60.5), run("plain", **DOWN)],
        [run("extend", **UP, at=-66.0), run("plain", **DOWN)],
        ([run("extend"), run("plain", most=3.0)], "reach the margin 5"),
    ),
    "remedy.extend-costs-untrained-at-equal-gap": (
        # Of one slope, so equal at equal margin but for the start: extend goes 16 nats, the other 6.
        [run("extend"), run("plain", gap=10.0)],
        [run("extend", at=-50.0), run("plain", gap=10.0)],
        ([run("extend", most=14.0), run("plain", gap=10.0)], "come to a gap of 16 nats"),
    ),
    "remedy.reshaped-losses-change-nothing": (
        [run("ipo", most=4.9), run("plain", test=-0.31)],
        [run("simpo", test=-0.4), run("plain")],
        ([run("simpo", most=4.0), run("plain")], "reach a margin"),
    ),
    "remedy.remedies-are-slower": (
        [run("simpo", **SLOW), run("plain")],
        [run("gate-dpo", **FAST), run("plain")],
        ([run("length-normalised"), run("plain")], ELSE),
    ),
    "remedy.ipo-stops-at-its-target": ([run("ipo", most=5.0)], [run("ipo", most=7.0)], ([run("dpop")], ELSE)),
    "remedy.dpop-is-far-behind": (
        [run("dpop", most=5.0), run("plain")],
        [run("dpop", most=15.0), run("plain")],
        ([run("simpo"), run("plain")], ELSE),
    ),
    "unlearning.ga-speeds-up-in-networks": (
        [forgot("ga", [0, 1, 2, 8])], [forgot("ga", [0, 3, 6, 8])], ([forgot("npo", [0, 1, 2, 8])], ELSE),
    ),
    "unlearning.npo-slows-down-in-networks": (
        [forgot("npo-strong", [0, 3, 6, 8])], [forgot("npo-strong", [0, 1, 2, 8])], ([forgot("npo", [0] * 4)], ELSE),
    ),
    "unlearning.published-npo-slows-down-in-networks": (
        [forgot("npo", [0, 3, 6, 8])], [forgot("npo", [0, 1, 2, 8])], ([forgot("ga", [0] * 4)], ELSE),
    ),
    "unlearning.npo-spares-nothing-at-equal-fall": (
        [forgot("npo", [0, 2, 4, 6]), forgot("ga", [0, 2, 4, 8])],
        [forgot("npo", [0, 2, 4, 6], others=0.1), forgot("ga", [0, 2, 4, 8])],
        ([forgot("npo", [0, 0.1, 0.2, 0.3]), forgot("ga", [0, 2, 4, 8])], "fall by 1 nat"),
    ),
    "shield.sgd-scales-with-beta": shielded((m(5.0), m(1.0)), (m(1.0), m(1.0)), control="dpo 0.1"),
    "shield.rmsprop-divides-beta-out": shielded((m(1.0), m(1.0)), (m(5.0), m(1.0)), "rmsprop", control="dpo 0.1"),
    "shield.sgd-tenfold-before-sft": shielded((m(1.0), m(14.0)), (m(1.0), m(5.0)), start="pretrained"),
    "shield.sgd-tenfold-after-sft": shielded((m(1.0), m(14.0)), (m(1.0), m(5.0))),
    "shield.rmsprop-takes-it-away": shielded((m(1.2), m(1.0)), (m(1.0), m(1.2)), "adamw"),
    "shield.sgd-spares-untrained": shielded((m(1.0), m(1.0, test=0.3)), (m(1.0, test=0.3), m(1.0))),
    "shield.rmsprop-harms-untrained": shielded((m(1.0, test=0.3), m(1.0)), (m(1.0), m(1.0, test=0.3)), "rmsprop"),
}  # fmt: skip


def named(tables):
    return {f"{i} {ds.attrs['arm']}": ds for i, ds in enumerate(tables)}


def test_every_claim_has_its_controls():
    assert set(CASES) == set(RUNS)


@pytest.mark.parametrize("id", CASES)
def test_it_holds_is_refuted_and_says_nothing_where_it_should(id):
    holds, refuted, (silent, reason) = CASES[id]
    assert evaluate_on(RUNS[id], named(holds)).verdict == "holds"
    assert evaluate_on(RUNS[id], named(refuted)).verdict == "refuted"
    nothing = evaluate_on(RUNS[id], named(silent))
    assert nothing.summary == "not applicable"
    assert reason in nothing.why
