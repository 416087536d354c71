"""K6 and K8 in pretrained models: for each claim, tables where it holds, where it is refuted, where it says nothing."""

import numpy as np
import pytest

from toyld import claims
from toyld.claims.runs import RunClaim, evaluate_on
from toyld.claims.similarity_in_language_models import cleared, settings
from toyld.trajectory import trajectory

RUNS = {i: c for i, c in claims.every().items() if isinstance(c, RunClaim) and c.rungs == ("llm",)}
MINE = {i: c for i, c in RUNS.items() if i.startswith(("remedy.", "similarity."))}
SEEDS = 12
HIDDEN, LAYERS = ({"kernel": kernel, "language": "network sgd"} for kernel in ("hidden", "layers"))


def built(arm, m, chosen, test, attrs, told=()):
    """The margin is m[k] at update k; chosen and untrained change so much a nat of it, jittered by seed."""
    rng = np.random.default_rng(sum(map(ord, arm + str(sorted(attrs.items())))))
    one, two = (1.0 + 0.02 * rng.normal(size=(2, SEEDS, 1)))[..., None, None]
    m = np.asarray(m, float)[None, :, None, None]
    paths = [chosen * m * one, (chosen * one - 1.0) * m + np.zeros((SEEDS, 1, 1, 1)), test * m * two]
    columns = {}
    for name, value in dict(told).items():
        columns[f"eval_text_{name}"] = np.full((SEEDS, m.shape[1]), np.nan)
        columns[f"eval_text_{name}"][:, 0] = value * (1.0 + 0.01 * rng.normal(size=SEEDS))
    return trajectory(
        {"logp": -100.0 + np.concatenate(paths, 2), **columns}, step=range(m.shape[1]),
        probe=["chosen", "rejected", "test_chosen"], seed=range(SEEDS), world="llm", stage="dpo", arm=arm, attrs=attrs,
    )  # fmt: skip


def run(arm, *, chosen=0.2, test=-0.1, most=22.0, **attrs):
    attrs = {"experiment": "remedies", "first_step": 1.0, **LAYERS, **attrs}
    return built(arm, np.minimum(np.arange(23.0), most), chosen, test, attrs)


def beside(arm, control, where, low=-0.2, high=-0.05):
    """(holds, refuted, silent) for "the arm's untrained text ends higher"."""
    pair = [run(arm, test=high, **where), run(control, test=low, **where)]
    other = [run(arm, test=low, **where), run(control, test=high, **where)]
    return pair, other, ([run(arm, **where), run("rpo", **where)], "the claim is about other arms")


def near(arm, control, where, near, far):
    """(holds, refuted, silent) for "the arm's fall differs by little"."""
    made = [[run(arm, test=t, **where), run(control, test=-0.2, **where)] for t in (near, far)]
    silent = [run(arm, most=4.0, **where), run(control, **where)]
    return *made, (silent, "reach the margin 5")


WHERE = (("sgd", "head"), ("rmsprop", "all"))
CELLS = [(p, q) for p in ("likely", "rare") for q in ("other", "shared")]
TEXTS = ("temperature 1", "temperature 16", "another answer", "another permuted", "permutation")


def pool(fall, *, pace=1.0, leak=0.0, where=WHERE, most=12.0):
    """fall: change of an untrained story a nat of margin, by what is rare and what is shared (1 or 0)."""
    out = []
    for optimizer, layers in where:
        for p, q in CELLS:
            rare, shared = p == "rare", q == "shared"
            told = {"logp": -2.0 - 2.5 * rare + leak * shared, "labels": 0.004 + 0.002 * shared}
            attrs = {"experiment": "similarity", "design": "pool", "margin": 5.0, "optimizer": optimizer}
            attrs |= {"layers": layers, "probability": p, "labels": q}
            m = np.minimum(np.arange(13.0) * (pace if rare else 1.0), most)
            out.append(built(f"{p} {q}", m, 0.2, fall(rare, shared), attrs, told))
    return out


def sampled(chosen=None, most=12.0, **falls):
    out = []
    for optimizer, layers in WHERE:
        for name in TEXTS:
            attrs = {"experiment": "similarity", "design": "sampled", "margin": 5.0, "optimizer": optimizer}
            attrs |= {"layers": layers, "text": name}
            key = name.replace(" ", "_")
            m = np.minimum(np.arange(13.0), most)
            out.append(built(name, m, (chosen or {}).get(key, 0.2), falls.get(key, -0.1), attrs))
    return out


GONE = "are not there"
RARE = pool(lambda rare, shared: -0.2 + 0.1 * rare)
COMMON = pool(lambda rare, shared: -0.1 - 0.1 * shared)
RARE_HARMS, COMMON_SPARES = (
    pool(lambda rare, shared: -0.1 - 0.1 * rare), pool(lambda rare, shared: -0.2 + 0.1 * shared)
)  # fmt: skip
HALF = (pool(lambda rare, shared: -0.1, where=WHERE[:1]), GONE)
LATE = (sampled(most=3.0), "reach the margin")
CASES = {
    "remedy.more-than-slower-updates": beside("projected", "top-component", LAYERS),
    "remedy.more-than-slower-updates-in-head": beside("centred", "slower", HIDDEN),
    "remedy.more-than-a-component-in-head": beside("projected", "top-component", HIDDEN),
    "remedy.head-alone-does-nothing": near("centred-head", "plain", LAYERS, -0.2, -0.1),
    "remedy.random-direction-changes-little": near("random", "plain", HIDDEN, -0.2, -0.3),
    "remedy.projection-spares-more-in-head": beside("projected", "centred", HIDDEN),
    "remedy.fixed-mean-serves": near("centred-fixed", "centred", HIDDEN, -0.21, -0.4),
    "remedy.chosen-pays-little": (
        [run("centred", chosen=0.195), run("plain", chosen=0.2)],
        [run("centred", chosen=0.1), run("plain", chosen=0.2)],
        ([run("centred", **HIDDEN), run("plain", **HIDDEN)], "about the kernels layers"),
    ),
    "similarity.rare-text-spares": (RARE, RARE_HARMS, HALF),
    "similarity.common-words-displace": (COMMON, COMMON_SPARES, HALF),
    "similarity.rare-text-displaces-per-update": (
        pool(lambda rare, shared: -0.1, pace=2.0), pool(lambda rare, shared: -0.1, pace=0.5), HALF
    ),
    "similarity.common-words-displace-per-update": (COMMON, COMMON_SPARES, HALF),
    "similarity.random-tokens-spare": (
        sampled(temperature_1=-0.3, temperature_16=-0.1), sampled(temperature_1=-0.3, temperature_16=-0.2), LATE
    ),
    "similarity.shuffling-spares": (sampled(another_answer=-0.2), sampled(another_permuted=-0.2), LATE),
    "similarity.own-words-spare": (sampled(another_permuted=-0.2), sampled(permutation=-0.2), LATE),
    "similarity.own-words-cost-chosen": (
        sampled(chosen={"permutation": 0.1}), sampled(chosen={"another_permuted": 0.1}), LATE
    ),
}  # fmt: skip


def named(tables):
    return {f"{i} {ds.attrs['arm']}": ds for i, ds in enumerate(tables)}


def test_every_claim_has_its_controls():
    assert set(CASES) == set(MINE)


@pytest.mark.parametrize("id", CASES)
def test_it_holds_is_refuted_and_says_nothing_where_it_should(id):
    holds, refuted, (silent, reason) = CASES[id]
    for tables, verdict in ((holds, "holds"), (refuted, "refuted")):
        result = evaluate_on(MINE[id], named(tables))
        assert result.verdict == verdict, "\n".join(result.lines())
        assert {trial.effect.n for trial in result.tested} == {SEEDS}
    nothing = evaluate_on(MINE[id], named(silent))
    assert nothing.summary == "not applicable"
    assert reason in nothing.why


def test_slower_updates_are_compared_though_their_rate_is_another():
    one = MINE["remedy.more-than-slower-updates"]
    holds = [run("centred", test=-0.05), run("slower", test=-0.2, first_step=0.5)]
    assert evaluate_on(one, named(holds)).verdict == "holds"
    other = [run("centred", test=-0.05), run("top-component", test=-0.2, first_step=0.5)]
    assert "two step sizes" in evaluate_on(one, named(other)).why


def test_effects_are_cleared_of_what_texts_differ_in_otherwise():
    """Only log π acts, and shared texts are more probable by .5 nats: what they seem to do is that."""
    tables = pool(lambda rare, shared: -0.2 + 0.1 * (2.5 * rare - 0.5 * shared), leak=0.5)
    found = cleared(
        settings(tables)["rmsprop", "all"], lambda ds: ds.logp.values[:, 5, 2, 0] - ds.logp.values[:, 0, 2, 0]
    )
    assert abs(found["labels"].mean()) < 0.02
    assert found["probability"].mean() == pytest.approx(5.0 * 0.25, rel=0.05)
