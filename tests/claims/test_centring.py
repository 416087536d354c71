"""Centring claims: for each, tables where it holds, where it is refuted, and of which it says nothing."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims import centring
from toyld.claims.runs import RunClaim, evaluate_on
from toyld.contexts.experiments import remedies
from toyld.trajectory import trajectory

MINE = {id: c for id, c in claims.every().items() if id.startswith("centring.")}
RUNS = {id: c for id, c in MINE.items() if isinstance(c, RunClaim)}
SEEDS = 12


def table(arm, *, chosen=0.0, test=0.0, top=0.1, speed=1.0, kernel="common", language="facts", loss=-0.01, **more):
    """A run with these changes a nat of margin, the margin growing by `speed` an update to 25; seeds jitter."""
    rng = np.random.default_rng(sum(map(ord, arm + kernel)))
    steps = np.arange(0, int(25 / speed) + 2)
    m = np.minimum(speed * steps, more.pop("most", 25.0))[None, :, None]
    noise = 1.0 + 0.02 * rng.normal(size=(SEEDS, 1, 3))
    path = {
        "chosen": -50.0 + chosen * m * noise,
        "rejected": -60.0 + (chosen * noise - 1.0) * m,
        "test_chosen": -50.0 + (test + 0.002 * rng.normal(size=(SEEDS, 1, 1))) * m * noise,
    }
    argmax = -40.0 + (top + 0.002 * rng.normal(size=(SEEDS, 1, 1))) * m * noise
    logp = np.stack(list(path.values()), axis=2)
    return trajectory(
        {
            "logp": logp,
            "argmax_logp": np.stack([argmax] * 3, axis=2),
            "loss": np.broadcast_to(1.0 + loss * steps, logp.shape[:2]),
        },
        step=steps, probe=list(path), example=[f"e{i}" for i in range(3)], seed=range(SEEDS), stage="preference",
        arm=arm, attrs={"experiment": "remedies", "kernel": kernel, "language": language, "first_step": 1.0} | more,
    )  # fmt: skip


def pair(arm, good, control, bad, **same):
    return [table(arm, **good, **same), table(control, **bad, **same)]


UP, DOWN = {"chosen": 0.05, "test": -0.05}, {"chosen": -0.2, "test": -0.5}
CLOSE = {"chosen": -0.2, "test": -0.49}
WIDE = {"chosen": -0.1, "top": 0.2}
THREE = [table("plain", **DOWN), table("centred", **UP), table("without-component", **UP)]


def every(arm, good, bad, kernel, **others):
    """A world with an arm and all remedies, which do as `bad` but for those named (None: not run); IPO ends below 5."""
    how = {name: {**bad, "most": 4.9} if name == "ipo" else bad for name in remedies.REMEDIES}
    how |= {name.replace("_", "-"): doing for name, doing in others.items()}
    made = [table(name, kernel=kernel, **doing) for name, doing in how.items() if doing is not None]
    return [table(arm, **good, kernel=kernel), *made]


# id -> (where it holds, where it is refuted, where it says nothing and a word of the reason)
CASES = {
    "centring.spares-chosen": (
        pair("centred", UP, "plain", DOWN),
        pair("centred", DOWN, "plain", UP),
        (pair("centred", UP, "plain", DOWN, kernel="uneven"), "about the kernels common, slight"),
    ),
    "centring.spares-untrained": (
        pair("centred", UP, "plain", DOWN),
        pair("centred", {"chosen": 0.5, "test": -0.6}, "plain", DOWN),
        ([table("centred", **UP), table("plain", **DOWN, first_step=0.5)], "two step sizes"),
    ),
    "centring.narrows-the-gap": (
        pair("centred", UP, "plain", WIDE),
        pair("centred", WIDE, "plain", UP),
        (pair("centred", UP, "rpo", WIDE), "about other arms"),
    ),
    "centring.spares-at-equal-updates": (
        pair("centred", {**DOWN, "speed": 0.5}, "plain", DOWN),  # as low at equal margin, half as far
        pair("centred", {**DOWN, "speed": 0.9}, "plain", UP),
        (pair("centred", {**UP, "most": 4.0}, "plain", DOWN), "nine seeds of ten reach the margin 5"),
    ),
    "centring.needs-more-updates": (
        pair("centred", {**UP, "speed": 0.5}, "plain", DOWN, kernel="clusters"),
        pair("centred", {**UP, "speed": 2.0}, "plain", DOWN, kernel="clusters"),
        ([table("centred"), table("plain", language="markov")], "of two worlds"),
    ),
    "centring.keeps-descending": (
        [table("centred")],
        [table("centred", loss=0.01)],
        ([table("plain")], "not the centred arm"),
    ),
    "centring.direction-matters": (
        pair("centred", UP, "top-component", DOWN),
        pair("centred", DOWN, "random", UP),
        (pair("centred", UP, "plain", DOWN), "about other arms"),
    ),
    "centring.spares-everywhere": (
        pair("centred", UP, "plain", DOWN, kernel="prompt"),
        pair("centred", DOWN, "plain", UP, kernel="prompt"),
        ([table("centred"), table("plain", experiment=None)], "not a run of the experiment"),
    ),
    "centring.random-changes-nothing": (
        pair("random", CLOSE, "plain", DOWN),
        pair("random", UP, "plain", DOWN),
        (pair("top-direction", CLOSE, "plain", DOWN), "about other arms"),
    ),
    "centring.projection-spares-more": (
        pair("projected", UP, "centred", DOWN, kernel="uneven"),
        pair("projected", DOWN, "centred", UP, kernel="measured"),
        (pair("projected", UP, "centred", DOWN), "about the kernels uneven, measured"),
    ),
    "centring.undoes-a-constant": (
        THREE,
        [THREE[0], table("centred", chosen=-0.15, test=-0.4), THREE[2]],
        (THREE[:2], "no runs on the kernels"),
    ),
    "centring.undoes-any-component": (
        [table(ds.attrs["arm"], **how, kernel="uneven") for ds, how in zip(THREE, (DOWN, UP, UP), strict=True)],
        [table(ds.attrs["arm"], **how, kernel="clusters") for ds, how in zip(THREE, (DOWN, CLOSE, UP), strict=True)],
        (THREE, "no runs on the kernels"),
    ),
    "centring.chosen-above-remedies": (
        every("centred", UP, DOWN, "common"),
        every("centred", UP, DOWN, "common", rpo={"chosen": 0.1}),
        (pair("centred", UP, "extend", DOWN), "facts common lacks rpo"),
    ),
    "centring.chosen-above-balanced": (
        every("centred", UP, DOWN, "common", rpo={"chosen": 0.1}),
        every("centred", UP, DOWN, "common", simpo={"chosen": 0.1}),
        (every("centred", UP, DOWN, "common", simpo=None), "facts common lacks simpo"),
    ),
    "centring.untrained-above-remedies": (
        every("centred", UP, DOWN, "common"),
        every("centred", UP, DOWN, "common", ipo={"test": 0.0, "most": 4.9}),
        (every("centred", UP, DOWN, "common", dpop={"most": 3.0}), "of dpop and centred reach a margin"),
    ),
    "centring.projected-above-remedies": (
        every("projected", UP, DOWN, "uneven"),
        every("projected", UP, DOWN, "uneven", gate_dpo={"test": 0.0}),
        (every("projected", UP, DOWN, "measured"), "no runs on the kernel uneven"),
    ),
    "centring.spares-real-text": (
        pair("projected", UP, "plain", DOWN, kernel="measured"),
        pair("centred", DOWN, "plain", UP, kernel="measured"),
        (pair("centred", UP, "plain", DOWN), "about the kernels measured"),
    ),
    "centring.projected-on-real-text": (
        every("projected", UP, DOWN, "measured"),
        every("projected", UP, DOWN, "measured", extend={"test": 0.0}),
        (every("projected", UP, DOWN, "measured", ipo=None), "facts measured lacks ipo"),
    ),
    "centring.adds-to-nll": (
        pair("rpo-centred", UP, "rpo", DOWN),
        pair("rpo-centred", DOWN, "rpo", UP),
        (pair("rpo-centred", UP, "plain", DOWN), "about other arms"),
    ),
}


def named(tables):
    return {f"{i} {ds.attrs['arm']}": ds for i, ds in enumerate(tables)}


def test_every_run_claim_has_its_controls():
    assert set(CASES) == set(RUNS)


@pytest.mark.parametrize("id", CASES)
def test_it_holds_is_refuted_and_says_nothing_where_it_should(id):
    holds, refuted, (silent, reason) = CASES[id]
    assert evaluate_on(RUNS[id], named(holds)).verdict == "holds"
    assert evaluate_on(RUNS[id], named(refuted)).verdict == "refuted"
    nothing = evaluate_on(RUNS[id], named(silent))
    assert nothing.summary == "not applicable"
    assert reason in nothing.why


def test_only_margins_that_nine_seeds_of_ten_reach_are_compared():
    slow = table("rpo", test=-0.5, most=10.0)
    assert centring.reached(table("plain")) == remedies.MARGINS
    assert centring.reached(table("plain"), slow) == remedies.MARGINS[:1]
    few = table("rpo")
    few["logp"] = few.logp.copy()
    few.logp.loc[{"seed": few.seed[0], "probe": "rejected"}] = -60.0  # one of twelve never gets there: 92 % do
    assert centring.reached(few) == remedies.MARGINS
    few.logp.loc[{"seed": few.seed[:2], "probe": "rejected"}] = -60.0  # two: 83 %
    assert centring.reached(few) == ()


@pytest.mark.parametrize(("how", "verdict"), [(UP, "refuted"), (DOWN, "holds"), (CLOSE, "holds")])
def test_a_random_vector_must_change_nothing_either_way(how, verdict):
    claim = RUNS["centring.random-changes-nothing"]
    assert evaluate_on(claim, named(pair("random", how, "plain", DOWN))).verdict == verdict
    assert evaluate_on(claim, named(pair("random-projected", DOWN, "plain", how))).verdict == verdict


ALL_REMEDIES = {
    "centring.chosen-above-remedies": ("centred", "common"),
    "centring.untrained-above-remedies": ("centred", "common"),
    "centring.projected-above-remedies": ("projected", "uneven"),
    "centring.projected-on-real-text": ("projected", "measured"),
}


@pytest.mark.parametrize("id", ALL_REMEDIES)
def test_a_claim_about_all_remedies_needs_every_one_of_them(id):
    arm, kernel = ALL_REMEDIES[id]
    whole = every(arm, UP, DOWN, kernel)
    for name in remedies.REMEDIES:
        lacking = [ds for ds in whole if ds.attrs["arm"] != name]
        assert f"facts {kernel} lacks {name}" in RUNS[id].premises(*lacking)
        # the other language's world must have it too
        other = [ds.assign_attrs(language="markov") for ds in lacking]
        assert f"markov {kernel} lacks {name}" in RUNS[id].premises(*whole, *other)
        better = table(name, chosen=0.3, test=0.2, kernel=kernel, most=4.9 if name == "ipo" else 25.0)
        assert RUNS[id].check(*lacking, better).high < 0.0, name
    strange = [ds.assign_coords(seed=ds.seed + 1) if ds.attrs["arm"] == "rpo" else ds for ds in whole]
    assert "of other seeds" in RUNS[id].premises(*strange)


@pytest.mark.parametrize("id", [id for id in ALL_REMEDIES if "real-text" not in id])
def test_every_remedy_of_a_statement_is_tried_on_the_board(id):
    arm, kernel = ALL_REMEDIES[id]
    worlds = [arms for (_, one), arms in remedies.SMOKE.items() if one == kernel]
    assert worlds
    for arms in worlds:
        assert {arm, *remedies.REMEDIES} <= set(arms)
    words = {"rpo": "DPO+NLL", "npo+nll": "NPO+NLL", "extend": "after extend"}
    for name in remedies.REMEDIES:
        assert words.get(name, name).lower() in RUNS[id].statement.lower()


def test_ipo_is_compared_halfway_to_its_target():
    target = 0.5 / remedies.ARMS["ipo"].objective.beta
    assert abs(remedies.HALFWAY - target / 2.0) < 1e-12
    both = every("centred", {**UP, "test": 0.0}, DOWN, "common", ipo={"test": -0.1, "most": 4.9})
    effect = evaluate_on(RUNS["centring.untrained-above-remedies"], named(both)).effect
    assert effect.value == pytest.approx(0.1 * target / 2.0, rel=0.05)


def test_updates_to_a_margin_are_read_between_evaluations():
    ds = table("plain", speed=2.0)
    assert centring.updates_to(ds, 5.0) == pytest.approx(np.full(SEEDS, 2.5), abs=1e-9)
    assert np.isnan(centring.updates_to(table("rpo", most=4.0), 5.0)).all()


@pytest.mark.parametrize("id", [id for id, c in MINE.items() if c.about == "step"])
def test_claims_on_one_update_come_out_as_asserted(id):
    result = claims.hold(id, examples=500)
    assert result.cases >= 500
    assert result.as_expected
