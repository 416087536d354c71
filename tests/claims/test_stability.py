"""C1's claims on made-up tables: where each must hold, where it must be refuted, what it leaves out; the cosine."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims import stability
from toyld.claims.runs import RunClaim, evaluate_on
from toyld.trajectory import trajectory

MINE = {id: c for id, c in claims.every().items() if id.startswith("stability.") and isinstance(c, RunClaim)}
SEEDS = 16
STEPS = [0, 10, 20, 50, 80, 90, 100]
PAIRS = ("4_9", "5_8", "3_5", "7_9", "6_7", "2_5")
# One number a checkpoint, where all is as App. C.1 says; NaN where nothing is measured.
NONE = float("nan")
AS_STATED = {
    **{
        f"rank_before_{kind}": [NONE, 0.6, 0.8, NONE, NONE, 0.97, 0.98]
        for kind in ("seen", "new", "relative", "others")
    },
    **{f"rank_last_{kind}": [0.5, 0.6, 0.7, 0.95, 0.97, 0.98, 1.0] for kind in ("seen", "new")},
    **{f"rank_matched_{kind}": [NONE] * 6 + [0.85] for kind in ("seen", "new")},
    "change_last": [9.0, 5.0, 2.0, 0.4, 0.3, 0.1, 0.0],
    "shape_last": [0.9, 0.8, 0.7, 0.35, 0.3, 0.1, 0.0],
    "rank_swapped": [0.4] * 6 + [0.3],
    "shared": [0.4] * 6 + [0.3],
    **{name: [0.4, 0.4, 0.4, 0.8, 0.4, 0.4, 1.0] for name in ("partners", "partners_relative")},
    "foretold_by_norm": [0.95, NONE, NONE, 0.9, NONE, NONE, 0.87],
    "asymmetry": [0.1] * 6 + [2.0],
    "sum_fit": [NONE] + [0.95] * 6,
    "sampled_fit": [NONE] * 6 + [-9.0],
    **{f"alike_{kind}{pair}": [0.0] * 6 + [0.3] for pair in PAIRS[:4] for kind in ("", "relative_")},
    **{f"alike_{kind}{pair}": [0.0] * 6 + [-0.3] for pair in PAIRS[4:] for kind in ("", "relative_")},
    **{f"lead_{kind}4_9": [0.0] * 6 + [0.2] for kind in ("", "relative_")},
}


def table(*, rate="constant", stage="kernels", without=(), **changed):
    """A table of kernels whose seeds scatter by .01 around the numbers given."""
    rng = np.random.default_rng(0)
    columns = {
        f"eval_{name}": np.array(values) + 0.01 * rng.normal(size=(SEEDS, len(STEPS)))
        for name, values in (AS_STATED | changed).items()
        if name not in without
    }
    return trajectory(
        columns, step=STEPS, probe=["digits"], seed=range(SEEDS), world="digits", stage=stage, arm="x",
        attrs={"experiment": "stability", "rate": rate},
    )  # fmt: skip


def effect(id, **changed):
    result = evaluate_on(MINE[id], {"made up": table(**changed)})
    return result.summary, result.effect


# What must turn each claim round, one change at a time.
OTHERWISE = {
    "stability.late-ranking-stays": [
        {"rank_before_seen": [NONE, 0.6, 0.8, NONE, NONE, 0.97, 0.85]},
        {"rank_before_new": [NONE, 0.6, 0.8, NONE, NONE, 0.85, 0.97]},
    ],
    "stability.half-way-ranking-stays": [
        {"rank_last_seen": [0.99, 0.99, 0.99, 0.8, 0.99, 0.99, 1.0]},
        {"rank_last_new": [0.99, 0.99, 0.99, 0.8, 0.99, 0.99, 1.0]},
    ],
    "stability.kernel-moves-on": [{"shape_last": [9.0, 5.0, 2.0, 0.2, 0.3, 0.3, 0.0]}],
    "stability.early-is-messier": [
        {"rank_before_seen": [NONE, 0.97, 0.98, NONE, NONE, 0.8, 0.6]},
        {"rank_before_new": [NONE, 0.97, 0.98, NONE, NONE, 0.8, 0.6]},
    ],
    "stability.early-is-messier-at-equal-change": [
        {"rank_matched_seen": [NONE] * 6 + [0.99]},
        {"rank_matched_new": [NONE] * 6 + [0.99]},
    ],
    "stability.ranking-is-more-than-size": [
        {"rank_before_relative": [NONE, 0.99, 0.99, NONE, NONE, 0.8, 0.98]},
        {"rank_before_others": [NONE, 0.99, 0.99, NONE, NONE, 0.98, 0.8]},
    ],
    "stability.lessons-rank-differently": [
        {"rank_swapped": [0.1] * 6 + [0.99]},
        {"shared": [0.1] * 6 + [0.7]},
    ],
    "stability.norm-foretells-who-moves": [
        {"foretold_by_norm": [0.7, NONE, NONE, 0.9, NONE, NONE, 0.9]},
        {"foretold_by_norm": [0.9, NONE, NONE, 0.7, NONE, NONE, 0.9]},
        {"foretold_by_norm": [0.9, NONE, NONE, 0.9, NONE, NONE, 0.7]},
    ],
    "stability.norm-foretells-less-late": [{"foretold_by_norm": [0.9, NONE, NONE, 0.8, NONE, NONE, 0.95]}],
    "stability.influence-is-lopsided": [{"asymmetry": [3.0] * 6 + [0.4]}],
    "stability.changes-add-up": [{"sum_fit": [NONE, *[0.99] * 5, 0.3]}],
    "stability.partners-are-settled": [
        {"partners": [0.9, 0.9, 0.9, 0.3, 0.9, 0.9, 1.0]},
        {"partners_relative": [0.9, 0.9, 0.9, 0.3, 0.9, 0.9, 1.0]},
    ],
    "stability.nine-is-nearest-to-four": [
        {"lead_4_9": [1.0] * 6 + [-0.2]},
        {"lead_relative_4_9": [1.0] * 6 + [-0.2]},
    ],
    **{
        f"stability.{'pair' if sign > 0 else 'apart'}-{pair.replace('_', '-')}": [
            {f"alike_{pair}": [sign] * 6 + [-0.3 * sign]},
            {f"alike_relative_{pair}": [sign] * 6 + [-0.3 * sign]},
        ]
        for pair, sign in zip(PAIRS, (1, 1, 1, 1, -1, -1), strict=True)
    },
}


def test_every_run_claim_of_the_chapter_is_tried_here():
    assert set(MINE) == {*OTHERWISE, "stability.few-updates-add-up"}


@pytest.mark.parametrize("id", OTHERWISE)
def test_claims_hold_where_all_is_as_the_paper_says(id):
    verdict, found = effect(id)
    assert verdict == "holds", found


@pytest.mark.parametrize(("id", "changed"), [(id, one) for id, ones in OTHERWISE.items() for one in ones])
def test_claims_are_refuted_where_one_thing_is_otherwise(id, changed):
    verdict, found = effect(id, **changed)
    assert verdict == "refuted", found


def test_sums_are_judged_by_what_they_leave():
    assert effect("stability.few-updates-add-up")[0] == "refuted"
    assert effect("stability.few-updates-add-up", sampled_fit=[NONE] * 6 + [0.9])[0] == "holds"
    _, found = effect("stability.changes-add-up", sum_fit=[NONE] * 6 + [0.75])
    assert found.value == pytest.approx(np.log(2), abs=0.03)


def test_effects_are_the_numbers_they_name():
    bar = stability.STABLE
    assert effect("stability.late-ranking-stays")[1].value == pytest.approx(0.97 - bar, abs=0.01)
    assert effect("stability.half-way-ranking-stays")[1].value == pytest.approx(0.95 - bar, abs=0.01)
    assert effect("stability.early-is-messier")[1].value == pytest.approx(0.975 - 0.7, abs=0.01)
    assert effect("stability.early-is-messier-at-equal-change")[1].value == pytest.approx(0.1, abs=0.01)
    assert effect("stability.influence-is-lopsided")[1].value == pytest.approx(2 - np.log(2), abs=0.01)


def test_early_and_late_are_compared_at_a_constant_rate_alone():
    one = MINE["stability.early-is-messier"]
    assert "freezes" in (one.premises(table(rate="cosine")) or "")
    assert one.premises(table()) is None
    assert MINE["stability.late-ranking-stays"].premises(table(rate="cosine")) is None


def test_a_kernel_that_only_grows_does_not_move_on():
    verdict, found = effect("stability.kernel-moves-on", change_last=[9.0] * 7, shape_last=[0.9, 0.8, 0.7, *[0.0] * 4])
    assert verdict == "refuted"
    assert found.value == pytest.approx(-stability.MOVES, abs=0.01)


def test_what_is_not_measured_is_not_judged():
    for id, name in (("stability.changes-add-up", "sum_fit"), ("stability.pair-4-9", "alike_relative_4_9")):
        assert name in (MINE[id].premises(table(without=(name,))) or ""), id
        assert "stage dpo" in (MINE[id].premises(table(stage="dpo")) or "")


def test_the_bars_leave_as_many_pairs_in_their_order_as_said():
    for rho, share in ((0.9, 0.86), (0.8, 0.80)):
        assert 0.5 + np.arcsin(2 * np.sin(np.pi * rho / 6)) / np.pi == pytest.approx(share, abs=0.005)


def test_the_relative_norm_is_1_with_itself_and_less_with_others():
    rng = np.random.default_rng(1)
    o, u = rng.normal(size=(2, 5, 12))
    other, same = (stability.relative_norm_is_a_cosine.check(o=o, u=x) for x in (u, o))
    for margin in (other, same):
        assert (margin.value >= -np.asarray(margin.bound)).all()
    np.testing.assert_allclose(same.value[:, 1], 0.0, atol=1e-9)
    assert (other.value[:, 1] > 1e-3).all()
