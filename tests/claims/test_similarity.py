"""K8's claims on made-up tables: where each must hold, where it must be refuted, what it leaves out; the readers."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims import similarity as sim
from toyld.claims.runs import RunClaim, evaluate_on
from toyld.trajectory import trajectory

MINE = {
    id: c
    for id, c in claims.every().items()
    if id.startswith("similarity.") and isinstance(c, RunClaim) and "contexts" in c.rungs
}
SEEDS = 16
TARGET = 8.0
PROBES = ("chosen", "rejected", "test_chosen")


def spread(seed, scale=0.05):
    return np.random.default_rng(seed).normal(0.0, scale, SEEDS)


def table(design, *, test=-1.0, chosen=0.0, top=1.0, rate=-1.0, target=TARGET, seeds=range(SEEDS), draw=0, **levels):
    """A run of two equal examples whose changes, linear in the margin, are those given where it passes `target`."""
    ends = np.zeros((len(seeds), 3, 3, 2))
    tops = np.zeros((len(seeds), 3, 3, 2))
    for k, part in enumerate((0.0, 0.75, 1.25)):
        for i, moved in enumerate(
            (chosen + spread(1 + 10 * draw), chosen + spread(1 + 10 * draw) - target, test + spread(2 + 10 * draw))
        ):
            ends[:, k, i] = (part * moved)[:, None]
        tops[:, k] = (part * (top + spread(3 + 10 * draw)))[:, None, None]
    later = np.full((len(seeds), 2), np.nan)
    rates = {"eval_rate_test_chosen": rate + spread(4 + 10 * draw), "eval_rate_margin": 1.0 + spread(5 + 10 * draw)}
    return trajectory(
        {
            "logp": ends - 100.0,
            "argmax_logp": tops - 50.0,
            **{name: np.concatenate([value[:, None], later], 1) for name, value in rates.items()},
        },
        step=[0, 4, 8], probe=PROBES, example=["a", "b"], seed=list(seeds), world="contexts", stage="dpo", arm="x",
        attrs={"experiment": "similarity", "design": design, "margin": target, "language": "facts"} | levels,
    )  # fmt: skip


def cell(rho, level, share=0.5, **more):
    """A cell of the factorial, with noise of its own unless `draw` is given."""
    levels = {"coupling": rho, "level": level, "anisotropy": share, "variant": "plain"}
    return table("factorial", **levels | {"draw": int(10 * (1 + rho + level + share))} | more)


def square(share=0.5, *, coupling=-4.0, improbability=0.5, **more):
    """The four corners with these main effects and no interaction."""
    return {
        f"{share} {rho} {level}": cell(
            rho, level, share, test=-1.0 + coupling * rho + improbability * (level > 4), **more
        )
        for rho in (0.0, 1.0)
        for level in (sim.LIKELY, sim.RARE)
    }


def pair(design, factor, values, *, share=0.5, **what):
    """Two runs that differ in one factor; `what`: keyword of `table` → its two values."""
    base = {"anisotropy": share, "level": 4.0}
    return {
        f"{factor} {value}": table(
            design, draw=i, **base, **{factor: value}, **{key: pick[i] for key, pick in what.items()}
        )
        for i, value in enumerate(values)
    }


def ranks(label, logp):
    values = {"eval_first_label_given_rest": label + spread(6), "eval_first_logp_given_rest": logp + spread(7)}
    return trajectory(
        {name: np.clip(value, -1, 1)[:, None] for name, value in values.items()},
        step=[0], probe=["test_chosen"], seed=range(SEEDS), stage="first update", arm="pairs",
        attrs={"experiment": "similarity", "design": "pairs", "language": "facts", "anisotropy": 0.5},
    )  # fmt: skip


def rare_and_middle(rare, middle):
    return {
        "rare": cell(1.0, sim.RARE, test=rare),
        "middle": table("peak", anisotropy=0.5, level=4.0, power=1.0, test=middle),
    }


def shares(*effects):
    return {k: v for a, e in zip((0.0, 0.2, 0.5), effects, strict=True) for k, v in square(a, coupling=e).items()}


# claim → tables where it holds, tables where it is refuted
CASES = {
    "coupling-displaces": (square(), square(coupling=4.0)),
    "improbable-displaces-more": (square(improbability=-0.5), square()),
    "improbable-costs-chosen": (
        {"rare": cell(1.0, sim.RARE, chosen=-1.0), "likely": cell(1.0, sim.LIKELY)},
        {"rare": cell(1.0, sim.RARE), "likely": cell(1.0, sim.LIKELY, chosen=-1.0)},
    ),
    "coupling-outweighs-probability": (square() | square(0.2), square() | square(0.2, coupling=-0.5)),
    "common-amplifies-coupling": (shares(-0.5, -2.0, -5.0), shares(-5.0, -2.0, -0.5)),
    "coupling-squeezes": (
        {"on": cell(1.0, 4.0), "off": cell(0.0, 4.0, test=1.0)},
        {"on": cell(1.0, 4.0, test=1.0), "off": cell(0.0, 4.0)},
    ),
    "improbability-saturates": (rare_and_middle(-4.0, -4.0), rare_and_middle(-4.0, -8.0)),
    "first-update-coupling": (
        {"on": cell(1.0, 4.0, rate=-2.0), "off": cell(0.0, 4.0)},
        {"on": cell(1.0, 4.0), "off": cell(0.0, 4.0, rate=-2.0)},
    ),
    "first-update-improbable": (
        {"rare": cell(1.0, sim.RARE, rate=-2.0), "likely": cell(1.0, sim.LIKELY)},
        {"rare": cell(1.0, sim.RARE), "likely": cell(1.0, sim.LIKELY, rate=-2.0)},
    ),
    "flat-beliefs-spare": (
        pair("peak", "power", (0.0, 1.0), test=(-1.0, -2.0)),
        pair("peak", "power", (0.0, 1.0), test=(-2.0, -1.0)),
    ),
    "flat-beliefs-squeeze-less": (
        pair("peak", "power", (0.0, 1.0), top=(1.0, 2.0)),
        pair("peak", "power", (0.0, 1.0), top=(2.0, 1.0)),
    ),
    "same-bag-spares": (
        pair("bag", "bag", ("own", "other"), test=(-1.0, -2.0)),
        pair("bag", "bag", ("own", "other"), test=(-2.0, -1.0)),
    ),
    "same-bag-costs-chosen": (
        pair("bag", "bag", ("own", "other"), chosen=(-2.0, -1.0)),
        pair("bag", "bag", ("own", "other"), chosen=(-1.0, -2.0)),
    ),
    "on-policy-displaces-more": (
        pair("sampled", "text", ("temperature 1", "temperature 16"), test=(-2.0, -1.0)),
        pair("sampled", "text", ("temperature 1", "temperature 16"), test=(-1.0, -2.0)),
    ),
    "permutation-spares": (
        pair("sampled", "text", ("permutation", "temperature 1"), test=(-1.0, -2.0)),
        pair("sampled", "text", ("permutation", "temperature 1"), test=(-2.0, -1.0)),
    ),
    "pairs-rank-with-labels": ({"pairs": ranks(0.5, 0.0)}, {"pairs": ranks(-0.5, 0.0)}),
    "pairs-rank-with-improbability": ({"pairs": ranks(0.0, -0.5)}, {"pairs": ranks(0.0, 0.5)}),
}


def test_every_claim_has_its_cases():
    assert {f"similarity.{name}" for name in CASES} == set(MINE)


@pytest.mark.parametrize("name", CASES)
def test_a_claim_holds_where_it_must_and_is_refuted_where_it_must(name):
    one = MINE[f"similarity.{name}"]
    assert one.rungs in (("contexts",), ("contexts", "tiny"), ("contexts", "tiny", "llm"))
    assert one.experiment == "similarity"
    for tables, verdict in zip(CASES[name], ("holds", "refuted"), strict=True):
        result = evaluate_on(one, tables)
        assert result.verdict == verdict, "\n".join(result.lines())
        assert {trial.effect.n for trial in result.tested} == {SEEDS}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_said_of_other_designs(name):
    one = MINE[f"similarity.{name}"]
    others = {k: v.assign_attrs(design="another") for k, v in CASES[name][0].items()}
    assert evaluate_on(one, others).summary == "not applicable"
    elsewhere = {k: v.assign_attrs(experiment="another") for k, v in CASES[name][0].items()}
    assert evaluate_on(one, elsewhere).trials == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"level": 1.3}, "two runs that differ in more than one factor"),
        ({"language": "markov"}, "two runs that differ in more than one factor"),
        ({"variant": "half the rate"}, "two runs that differ in more than one factor"),
        ({"anisotropy": 0.0}, "two runs that differ in more than one factor"),
        ({"coupling": 0.5}, "the claim is about other levels of the factors"),
    ],
)
def test_two_runs_differ_in_one_factor_alone(change, reason):
    one = MINE["similarity.coupling-displaces"]
    on, off = cell(1.0, 4.0), cell(0.0, 4.0).assign_attrs(change)
    assert one.premises(on, off) == reason
    assert one.premises(on, cell(0.0, 4.0)) is None


def test_claims_about_shared_components_leave_others_out():
    assert evaluate_on(MINE["similarity.coupling-displaces"], square(0.0)).summary == "not applicable"
    weak = pair("sampled", "text", ("temperature 1", "temperature 16"), share=0.2, test=(-2.0, -1.0))
    assert evaluate_on(MINE["similarity.on-policy-displaces-more"], weak).summary == "not applicable"
    assert evaluate_on(MINE["similarity.coupling-outweighs-probability"], square(0.0)).summary == "not applicable"
    assert evaluate_on(MINE["similarity.common-amplifies-coupling"], square(0.5)).summary == "not applicable"
    without = square(0.0, coupling=-0.1)  # does not count: a share of 0
    assert evaluate_on(MINE["similarity.coupling-outweighs-probability"], without | square(0.5)).verdict == "holds"


def test_one_setting_against_the_rest_is_not_held():
    one = MINE["similarity.coupling-outweighs-probability"]
    here = square(0.2) | square(0.5)
    there = {f"markov {k}": v.assign_attrs(language="markov") for k, v in square(coupling=-0.5).items()}
    assert evaluate_on(one, here).verdict == "holds"
    assert evaluate_on(one, here | there).verdict == "refuted"


@pytest.mark.parametrize("improbability", [-3.0, 3.0])
def test_improbability_counts_in_either_direction(improbability):
    tables = square(0.2) | square(0.5, coupling=-4.0, improbability=improbability)
    assert evaluate_on(MINE["similarity.coupling-outweighs-probability"], tables).verdict == "refuted"


def test_seeds_that_miss_the_margin_do_not_count():
    on, off = cell(1.0, 4.0), cell(0.0, 4.0)
    short = off.copy(deep=True)
    short["logp"].loc[{"probe": "rejected", "seed": 3}] = -100.0
    short["logp"].loc[{"probe": "test_chosen", "seed": 3, "step": [4, 8]}] = -1e4
    found = evaluate_on(MINE["similarity.coupling-displaces"], {"on": on, "off": short}).effect
    assert found.n == SEEDS - 1
    assert abs(found.value) < 0.1
    short["logp"].loc[{"probe": "rejected", "seed": [4]}] = -100.0  # 14 of 16 are fewer than nine of ten
    assert evaluate_on(MINE["similarity.coupling-displaces"], {"on": on, "off": short}).summary == "not applicable"


def test_changes_and_rates_are_read_at_the_margin_and_at_the_start():
    ds = cell(1.0, 4.0, test=-3.0, top=2.0, rate=-7.0, draw=0)
    assert sim.change(ds) == pytest.approx(-3.0 + spread(2), rel=1e-9)
    assert sim.change(ds, "chosen") == pytest.approx(spread(1), abs=1e-9)
    assert sim.change(ds, variable="argmax_logp") == pytest.approx(2.0 + spread(3), rel=1e-9)
    assert sim.rate(ds) == pytest.approx(-7.0 + spread(4), rel=1e-12)
    assert sim.rate(ds, "margin") == pytest.approx(1.0 + spread(5), rel=1e-12)


def test_squeezed_counts_responses_that_fall_below_a_rising_argmax():
    ds = cell(1.0, 4.0)
    assert sim.squeezed(ds).tolist() == [1.0] * SEEDS
    one = ds.copy(deep=True)
    one["logp"].loc[{"probe": "test_chosen", "example": "a"}] = -np.arange(3.0)[::-1] - 100.0  # rises
    assert sim.squeezed(one).tolist() == [0.5] * SEEDS
    flat = ds.copy(deep=True)
    flat["argmax_logp"].loc[{"probe": "test_chosen"}] = -50.0
    assert sim.squeezed(flat).tolist() == [0.0] * SEEDS
    late = ds.copy(deep=True)  # falls for good only after the margin was reached: at it, still above
    late["logp"].loc[{"probe": "test_chosen"}] = np.array([0.0, 5.0, -4.0])[:, None] - 100.0
    assert sim.squeezed(late).tolist() == [0.0] * SEEDS
    short = ds.copy(deep=True)
    short["logp"].loc[{"probe": "rejected", "seed": 3}] = -100.0
    assert np.isnan(sim.squeezed(short)).tolist() == [s == 3 for s in range(SEEDS)]


def test_effects_are_those_of_a_two_by_two():
    change = {(1.0, sim.LIKELY): -8.0, (1.0, sim.RARE): -5.0, (0.0, sim.LIKELY): -2.0, (0.0, sim.RARE): -1.0}
    tables = [cell(rho, level, test=value, draw=0) for (rho, level), value in change.items()]
    (found,) = sim.effects(tables).values()
    noise = spread(2)
    assert found["mean"] == pytest.approx(-4.0 + noise, rel=1e-9)
    assert found["coupling"] == pytest.approx(-5.0, rel=1e-9)
    assert found["improbability"] == pytest.approx(2.0, rel=1e-9)
    assert found["interaction"] == pytest.approx(1.0, rel=1e-9)
    assert list(sim.effects([*tables, *square(0.2).values()])) == ["facts a=0.5", "facts a=0.2"]
    assert sim.effects(tables[:3]) == {}


def test_the_spread_of_the_cells_is_cut_into_orthogonal_parts():
    """Against sums of squares over the twelve cells, taken one by one."""
    rng = np.random.default_rng(11)
    cells = {(a, r, z): float(rng.normal(-3.0, 1.0)) for a in (0.0, 0.2, 0.5) for r in (1.0, 0.0) for z in (1.3, 12.7)}
    tables = [cell(r, z, a, test=value, draw=0) for (a, r, z), value in cells.items()]
    others = [cell(1.0, 1.3, 0.5, test=50.0, variant="half the rate")]
    found = sim.decomposition([*tables, *others], "facts")
    y = np.array(list(cells.values())).reshape(3, 2, 2)
    whole = ((y - y.mean()) ** 2).sum()
    share, coupling = y.mean((1, 2)) - y.mean(), y.mean((0, 2)) - y.mean()
    cross = y.mean(2) - y.mean() - share[:, None] - coupling[None]
    wanted = {
        "common": 4 * (share**2).sum(),
        "coupling": 6 * (coupling**2).sum(),
        "common x coupling": 2 * (cross**2).sum(),
    }
    for name, part in wanted.items():
        assert found[name] == pytest.approx(part / whole, rel=1e-9)
    assert found["probability"] == pytest.approx(1.0 - sum(wanted.values()) / whole, rel=1e-9)


def test_saturation_fails_on_either_side():
    one = MINE["similarity.improbability-saturates"]
    for rare, verdict in ((-3.9, "holds"), (-3.5, "refuted"), (-4.6, "refuted")):
        tables = {
            "rare": cell(1.0, sim.RARE, test=rare),
            "middle": table("peak", anisotropy=0.5, level=4.0, power=1.0, test=-4.0),
        }
        assert evaluate_on(one, tables).verdict == verdict
    other = table("peak", anisotropy=0.2, level=4.0, power=1.0)
    assert one.premises(cell(1.0, sim.RARE), other) == "two runs that differ in more than one factor"
    assert one.premises(cell(0.0, sim.RARE), other) == "the claim is about other levels of the factors"


def test_the_effect_that_counts_is_the_weakest_setting():
    tables = square(0.5, coupling=-6.0, draw=0) | square(0.2, coupling=-3.0, draw=0)
    found = evaluate_on(MINE["similarity.coupling-outweighs-probability"], tables).effect
    assert found.value == pytest.approx(3.0 / 2.0 - 0.5, rel=1e-9)
