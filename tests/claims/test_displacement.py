"""Claims on displacement: tables where each must hold, be refuted, or say nothing; and the record."""

import numpy as np
import pytest

from toyld.claims import RunClaim, every
from toyld.claims.runs import decide, evaluate_on, summary, try_on
from toyld.contexts import experiments
from toyld.trajectory import trajectory

CLAIMS = {id: c for id, c in every().items() if id.startswith("displacement.")}
SEEDS = 16
MARGIN = np.array([0.0, 4.0, 9.0, 14.0, 19.0, 24.0])


def made(
    c, chosen, *, argmax=0.1, test=-0.5, negatives="model", design="equal loss", arm="baseline", halve=1, start=-20.0,
    late=0.0, local="mixture", taught=1.0,
):  # fmt: skip
    """A run whose chosen, argmax and untaught responses move by so many nats for every nat of margin.

    start: level of chosen before; late: what is added to chosen and rejected alike over the last evaluation.
    """
    rng = np.random.default_rng([7, int(100 * c), halve])
    wobble = 1.0 + 0.02 * rng.normal(size=(SEEDS, 1, 3))
    end = late * np.eye(len(MARGIN))[-1][None, :, None] * wobble
    moves = MARGIN[None, :, None] * wobble

    def path(level, slope):
        return level + slope * moves + end

    logp = np.stack([path(start, chosen), path(-60.0, chosen) - MARGIN[None, :, None], path(-40.0, test)], axis=2)
    top = np.stack([path(start + 10.0, argmax), np.full_like(moves, np.nan), np.full_like(moves, np.nan)], axis=2)
    top = np.where(np.isnan(top), top, np.minimum(np.maximum(top, logp), 0.0))
    attrs = {
        "experiment": "common", "design": design, "common": c, "negatives": negatives, "halve": halve,
        "setting": "made", "language": "markov", "local": local, "sft_passes": 75.0, "taught": taught,
    }  # fmt: skip
    return trajectory(
        {"logp": logp, "argmax_logp": top}, step=range(0, 60, 10), probe=["chosen", "rejected", "test_chosen"],
        seed=range(SEEDS), example=list("abc"), world="contexts", stage="dpo", arm=arm, attrs=attrs,
    )  # fmt: skip


def sweep(chosen, **options):
    """Three values of c with these slopes, and the like of every option that is a list."""
    return [
        made(c, slope, **{name: v[i] if isinstance(v, list) else v for name, v in options.items()})
        for i, (c, slope) in enumerate(zip((0.0, 1.0, 4.0), chosen, strict=True))
    ]


FALLING, RISING = [0.2, -0.2, -1.0], [-1.0, -0.2, 0.2]
EQUAL, LESS = [0.2, 0.2, 0.2], [0.1, 0.0, -0.1]
CONTROL = "displacement.on-policy-displaces-more"  # tried condition by condition


def beside(own, random, cs=(0.0, 1.0, 4.0), **options):
    """Runs against the model's own answers and against random words."""
    return [
        made(c, slope, negatives=name, **options)
        for name, slopes in (("model", own), ("uniform", random))
        for c, slope in zip(cs, slopes, strict=True)
    ]


def halved(full, half):
    return [
        made(c, slope, halve=h)
        for h, slopes in ((1, full), (2, half))
        for c, slope in zip((0.0, 4.0), slopes, strict=True)
    ]


def extended(extend, plain, *, start=(-21.0, -20.0), late=(0.0, 0.0), c=1.0, negatives="hot"):
    """Extended beside plain SFT: slopes, levels before, and what the last evaluation adds."""
    return [
        made(c, slope, arm=arm, design="equal updates", negatives=negatives, start=level, late=more)
        for arm, slope, level, more in (("extend", extend, start[0], late[0]), ("baseline", plain, start[1], late[1]))
    ]


ELSEWHERE = [made(0.0, 0.1).assign_attrs(experiment="another")]
CASES = {
    "displacement.common-amplifies": (sweep(FALLING), sweep(RISING), sweep(FALLING)[:1]),
    "displacement.common-amplifies-untaught": (
        sweep([0.1] * 3, test=[-0.1, -0.5, -1.0]), sweep(FALLING, test=[-1.0, -0.5, -0.1]), ELSEWHERE,
    ),
    "displacement.common-widens-gap": (
        sweep(FALLING, argmax=[0.2, 0.1, 0.3]), sweep(FALLING, argmax=[0.4, -0.2, -1.2]), ELSEWHERE,
    ),
    "displacement.common-raises-argmax": (
        sweep(FALLING, argmax=[0.05, 0.15, 0.3]), sweep(FALLING, argmax=[0.3, 0.15, 0.05]), ELSEWHERE,
    ),
    "displacement.chosen-falls-without-common": (
        [made(0.0, -0.1), made(4.0, 0.3)], [made(0.0, 0.1), made(4.0, -0.3)], [made(4.0, -0.1)],
    ),
    "displacement.untaught-falls-without-common": (
        [made(0.0, 0.1, test=-0.1), made(0.0, 0.1, test=0.2, local="identity")], [made(0.0, 0.1, test=0.1)],
        [made(0.0, 0.1, local="identity")],
    ),
    "displacement.on-policy-displaces-more": (
        beside([0.1, -0.4, -1.0], [0.2, -0.2, -0.4]), beside([0.3, -0.1, -0.2], [0.2, -0.2, -0.4]), sweep(FALLING),
    ),
    "displacement.on-policy-displaces-more-if-common": (
        beside([0.3, -0.1, -1.0], [0.2, -0.2, -0.4]), beside([0.1, -0.4, -0.2], [0.2, -0.2, -0.4]),
        beside([0.1, -0.4], [0.2, -0.2], (0.0, 1.0)),
    ),
    "displacement.on-policy-displaces-more-the-longer-sft": (
        [*beside(EQUAL, EQUAL, taught=1.5), *beside(LESS, EQUAL, taught=1.0), *beside(LESS, EQUAL, taught=0.5)],
        [*beside(EQUAL, EQUAL, taught=0.5), *beside(LESS, EQUAL, taught=1.0), *beside(LESS, EQUAL, taught=1.5)],
        beside(EQUAL, LESS),
    ),
    "displacement.not-the-step-size": (
        halved([0.2, -0.8], [0.2, -0.81]), halved([0.2, -0.8], [0.2, -0.6]), sweep(FALLING),
    ),
    "displacement.extend-spares-at-margin": (extended(-0.1, -0.3), extended(-0.3, -0.1), sweep(FALLING)),
    "displacement.extend-helps-without-common": (
        extended(0.2, 0.1, c=0.0), extended(0.1, 0.1, c=0.0), extended(0.2, 0.1, c=4.0),
    ),
    "displacement.extend-help-fades-with-common": (
        extended(0.1, -0.1, late=(-6.0, 0.0)), extended(0.1, -0.1),
        [ds.assign_attrs(language="facts") for ds in extended(0.1, -0.1)],
    ),
    "displacement.extend-hurts-with-common": (
        extended(-0.1, -0.1), extended(0.2, -0.1), extended(-0.1, -0.1, negatives="base"),
    ),
}  # fmt: skip


def tried(id, tables):
    """The verdict of one claim on these tables alone."""
    return evaluate_on(CLAIMS[id], {f"r{i}": ds for i, ds in enumerate(tables)})


def test_every_claim_has_its_controls():
    assert set(CASES) == set(CLAIMS)
    assert all(isinstance(c, RunClaim) and c.rungs == ("contexts",) for c in CLAIMS.values())
    assert {c.takes for id, c in CLAIMS.items() if id != CONTROL} == {"all"}
    assert all(c.instead in every() for c in CLAIMS.values() if c.expect == "refuted")


@pytest.mark.parametrize("id", CASES)
def test_holds_where_it_must(id):
    result = tried(id, CASES[id][0])
    assert result.summary == "holds"
    assert 0.0 < result.effect.low <= result.effect.value <= result.effect.high
    assert result.effect.n == SEEDS


@pytest.mark.parametrize("id", CASES)
def test_is_refuted_where_it_must_be(id):
    result = tried(id, CASES[id][1])
    assert result.summary == "refuted"
    assert result.effect.value < 0.0


@pytest.mark.parametrize("id", CASES)
def test_says_why_it_does_not_apply(id):
    tables = CASES[id][2]
    result = tried(id, tables)
    if any(ds.attrs.get("experiment") == "common" for ds in tables):
        assert result.summary == "not applicable"
        assert result.why.startswith("no runs")
    else:  # tables of other experiments are not even handed to it
        assert result.summary == "not run"


@pytest.mark.parametrize("id", CASES)
def test_tables_of_other_experiments_change_nothing(id):
    before, after = tried(id, CASES[id][0]), tried(id, [*ELSEWHERE, *CASES[id][0]])
    assert before.effect == after.effect


@pytest.mark.parametrize("id", CASES)
def test_one_bad_setting_is_enough(id):
    other = [ds.assign_attrs(setting="another") for ds in CASES[id][1]]
    assert tried(id, [*CASES[id][0], *other]).summary == ("conditional" if id == CONTROL else "refuted")


def test_on_policy_and_random_negatives_are_compared_from_one_policy_alone():
    own, random = beside([0.1], [0.2], (4.0,))
    assert len(tried(CONTROL, [own, random]).tested) == 1
    for other in (random.assign_attrs(taught=0.5), random.assign_attrs(setting="another"), made(1.0, 0.2)):
        assert tried(CONTROL, [own, other.assign_attrs(negatives="uniform")]).summary == "not applicable"


def test_half_a_step_is_compared_at_one_length_of_sft():
    shorter = [made(c, -1.0, taught=1.5) for c in (0.0, 4.0)]
    good = halved([0.2, -0.8], [0.2, -0.81])
    id = "displacement.not-the-step-size"
    assert tried(id, [*shorter, *good]).effect == tried(id, good).effect


def test_seeds_that_miss_the_margin_are_not_counted():
    tables = sweep(FALLING)
    short = tables[1].copy(deep=True)
    short.logp[0, :, 1] = short.logp[0, :, 0] - 40.0  # rejected keeps its distance: this seed's margin stays 0
    assert tried("displacement.common-amplifies", [tables[0], short, tables[2]]).effect.n == SEEDS - 1


# -- the record


@pytest.fixture(scope="module")
def found():
    return experiments.run("common")


def test_the_record_is_as_asserted(found):
    family = decide({id: try_on(one, found) for id, one in CLAIMS.items()})
    for id, trials in family.items():
        tested = [trial for trial in trials if trial.tested]
        assert len(tested) == (4 + 3 + 3 if id == CONTROL else 1)
        assert min(trial.effect.n for trial in tested) >= 31  # one seed falls short of the larger margin at c = 4
        if CLAIMS[id].expect == "open":  # too little for a verdict among the hundreds of trials of the whole rung
            assert tested[0].effect.two_sided > 0.05 / 400
        else:
            assert summary(trials) == CLAIMS[id].expect, id


def test_the_sign_against_random_words_turns_with_c_and_with_the_length_of_sft(found):
    def sign(c, taught):
        one = {name: ds for name, ds in found.items() if (ds.attrs["common"], ds.attrs.get("taught")) == (c, taught)}
        return evaluate_on(CLAIMS[CONTROL], {name: ds for name, ds in one.items() if ds.attrs["halve"] == 1}).summary

    assert [sign(4.0, taught) for taught in (1.5, 1.0, 0.5)] == ["holds"] * 3
    assert [sign(0.0, taught) for taught in (1.5, 1.0, 0.5)] == ["refuted", "refuted", "undecided"]
    assert [sign(1.0, taught) for taught in (1.5, 0.5)] == ["undecided", "holds"]


def test_mislabelled_worlds_turn_the_record_red(found):
    flipped = {name: ds.assign_attrs(common=4.0 - ds.attrs["common"]) for name, ds in found.items()}
    assert evaluate_on(CLAIMS["displacement.common-amplifies"], flipped).summary == "refuted"
    swapped = {
        name: ds.assign_attrs(negatives={"model": "uniform", "uniform": "model"}.get(ds.attrs["negatives"], "hot"))
        for name, ds in found.items()
    }
    assert evaluate_on(CLAIMS[f"{CONTROL}-if-common"], swapped).summary == "refuted"
    lengths = {name: ds.assign_attrs(taught=2.0 - ds.attrs.get("taught", 1.0)) for name, ds in found.items()}
    assert evaluate_on(CLAIMS[f"{CONTROL}-the-longer-sft"], lengths).summary == "refuted"
    crossed = {
        name: ds.assign_attrs(arm={"extend": "baseline", "baseline": "extend"}[ds.attrs["arm"]])
        for name, ds in found.items()
        if ds.attrs["design"] == "equal updates"
    }
    assert evaluate_on(CLAIMS["displacement.extend-hurts-with-common"], crossed).summary == "refuted"
