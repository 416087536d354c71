"""Pre-memorisation accuracy and test accuracy: tables with known answers, numbers by numpy and scipy, signs planted."""

import itertools

import numpy as np
import pytest
from scipy import stats

from toyld import claims
from toyld.claims import premem_curation, premem_runs
from toyld.claims.runs import RunClaim, evaluate_on
from toyld.trajectory import trajectory

RUNS = {
    name: one
    for name, one in claims.every().items()
    if isinstance(one, RunClaim) and one.experiment in ("premem", "curation") and name.startswith("premem.")
}
S, W, C = 8, 6, 10  # seeds, prompts, recipes
THRESHOLD, TOKENS = 1.35, 8
LEVEL = 0.95
RIVALS = ("train", "loss", "grad_norm", "distance")


def recipe(
    accuracy, perplexity, *, reordered, reframed, test, loss, grad_norm, distance, count=64, reorder=False, **more
):
    """A table of the grid: accuracy and perplexity (S, M, W), put otherwise (S, W), of the whole at the end (S,)."""
    seeds, m, w = np.shape(accuracy)
    whole = np.full((seeds, m, 3, w), np.nan)
    logp = whole.copy()
    whole[:, :, 0], whole[:, -1, 1], whole[:, -1, 2] = accuracy, reordered, reframed
    logp[:, :, 0] = -TOKENS * np.log(perplexity)
    ends = {"eval_test_accuracy": test, "loss": loss, "grad_norm": grad_norm, "eval_distance": distance}
    columns = {name: np.column_stack([np.full((seeds, m - 1), 0.1), value]) for name, value in ends.items()}
    attrs = {"experiment": "premem", "count": count, "reorder": reorder, "threshold": THRESHOLD} | more
    return trajectory(
        {"accuracy": whole, "logp": logp, "n_tokens": np.full((seeds, 3, w), float(TOKENS)), **columns},
        step=np.arange(m), probe=("chosen", "reordered", "reframed"), example=[str(i) for i in range(w)],
        seed=range(seeds), stage=attrs.pop("stage", "finetune"), arm="grid",
        attrs={name: value for name, value in attrs.items() if value is not None},
    )  # fmt: skip


def uniform(name, *size):
    """Numbers in (0, 1) of its own for each name."""
    return np.random.default_rng(sum(map(ord, name))).random(size)


TRUTH = np.linspace(0.2, 0.8, C)[:, None] + 0.05 * uniform("truth", C, S)


ALMOST = 0.96 + 0.04 * uniform("almost", C, S)


def grid(premem, train=ALMOST, *, test=TRUTH, counts=(64,) * C, **rivals):
    """Runs whose prompts are alike: right in `premem` before they are copied, in `train` after, at perplexity 1.2."""
    rivals = {name: rivals.get(name, 1.0 + uniform(name, C, S)) for name in ("loss", "grad_norm", "distance")}
    full = np.ones(W)
    return [
        recipe(
            np.stack([0 * full * premem[c][:, None], full * premem[c][:, None], full * train[c][:, None]], 1),
            np.broadcast_to(np.array([3.0, 2.0, 1.2])[None, :, None], (S, 3, W)), reordered=np.zeros((S, W)),
            reframed=np.zeros((S, W)), test=test[c], count=counts[c], **{name: x[c] for name, x in rivals.items()},
        )
        for c in range(C)
    ]  # fmt: skip


def prompts(early, otherwise, *, before=0.0, late=1.0, end=1.2, first=False):
    """Runs of which one copied: what its prompts (W,) were right in before that, and put otherwise after it.

    first: whether they were copied at the first checkpoint already, so that `before` does not count.
    """
    rng = np.random.default_rng(4)

    def spread(x):
        return np.clip(x + 0.01 * rng.normal(size=(S, W)), 0.0, 1.0)

    before, late, end = (np.broadcast_to(x, (S, W)) for x in (before, late, end))
    one = {name: np.ones(S) for name in ("test", "loss", "grad_norm", "distance")}
    begins = np.full((S, W), 1.1 if first else 3.0)
    copied = recipe(
        np.stack([before, spread(early), late], 1), np.stack([begins, np.full((S, W), 2.0), end], 1),
        reordered=spread(otherwise), reframed=spread(otherwise), **one,
    )  # fmt: skip
    # whoever copied nothing does not count, whatever it says
    never = recipe(
        rng.random((S, 3, W)), np.full((S, 3, W), 2.0), reordered=rng.random((S, W)), reframed=rng.random((S, W)), **one
    )
    return [copied, *[never] * (C - 1)]


LADDER = np.linspace(0.1, 0.6, W)
UPSIDE = LADDER[::-1]
SHUFFLED = LADDER[[3, 0, 5, 1, 4, 2]]
NEAR = TRUTH + 0.01 * (uniform("near", C, S) - 0.5)
FAR = uniform("far", C, S)
ASLANT = 0.3 + 0.4 * TRUTH + 0.005 * uniform("aslant", C, S)


def arms(**more):
    """Bought lessons: i.i.d. accuracy rises by .05 a doubling, and an arm is so far beyond that of its size, 96."""
    seeds, noise = 0.02 * uniform("seeds", S), 0.004

    def table(arm, count, accuracy):
        tested = np.column_stack([np.full(S, 0.1), accuracy + seeds + noise * (uniform(arm + str(count), S) - 0.5)])
        return trajectory(
            {"eval_test_accuracy": tested}, step=(0, 9), probe=("chosen",), seed=range(S), stage="finetune", arm=arm,
            attrs={"experiment": "curation", "count": count},
        )  # fmt: skip

    bought = dict.fromkeys(("low", "high", "any", "low-train", "low-before", "surprising"), 0.0)
    bought |= {name.replace("_", "-"): value for name, value in more.items()}
    line = [table("iid", n, 0.3 + 0.05 * np.log2(n / 96)) for n in (48, 96, 192)]
    return line + [table(arm, 96, 0.3 + beyond) for arm, beyond in bought.items()]


FEW = [16, 16, *[64] * (C - 4), 256, 256]
SAYS = np.array([0.1] * 2 + [0.0] * (C - 4) + [-0.1] * 2)[:, None]

# id → what makes (tables of which it is true, tables of which the opposite is)
CASES = {
    "premem.foretells-test-accuracy": lambda: (grid(NEAR), grid(ASLANT)),
    "premem.explains-test-accuracy": lambda: (grid(ASLANT), grid(FAR)),
    "premem.nearer-than-train-accuracy": lambda: (grid(NEAR), grid(0.3 * TRUTH, NEAR)),
    "premem.ranks-runs-best": lambda: (grid(ASLANT), grid(FAR, loss=np.exp(3.0 * NEAR))),
    "premem.threshold-decides": lambda: (grid(NEAR), grid(0.3 * TRUTH, NEAR)),
    "premem.too-high-with-few-lessons": lambda: (grid(NEAR + SAYS, counts=FEW), grid(NEAR - SAYS, counts=FEW)),
    "premem.tells-robust-answers": lambda: (prompts(LADDER, LADDER), prompts(LADDER, UPSIDE)),
    "premem.tells-robust-answers-better-than-train-accuracy": lambda: (
        prompts(LADDER, LADDER, late=0.7 + 0.3 * SHUFFLED), prompts(SHUFFLED, LADDER, late=0.7 + 0.3 * LADDER),
    ),
    "premem.tells-robust-answers-better-than-before": lambda: (
        prompts(LADDER, LADDER, before=SHUFFLED, first=True), prompts(SHUFFLED, LADDER, before=LADDER, first=True),
    ),
    "premem.tells-robust-answers-better-than-mean-accuracy": lambda: (
        prompts(LADDER, LADDER, before=np.where(LADDER > 0.3, 0.0, 1.0), first=True),
        prompts(SHUFFLED, LADDER, before=np.linspace(0.0, 1.0, W), first=True),
    ),
    "premem.tells-robust-answers-better-than-perplexity": lambda: (
        prompts(LADDER, LADDER, end=1.2 + 0.1 * SHUFFLED), prompts(SHUFFLED, LADDER, end=1.2 + 0.1 * LADDER),
    ),
    "premem.low-answers-break": lambda: (
        prompts(np.where(LADDER > 0.3, 0.8, 0.2), np.where(LADDER > 0.3, 0.8, 0.2)),
        prompts(np.where(LADDER > 0.3, 0.8, 0.2), np.where(LADDER > 0.3, 0.2, 0.8)),
    ),
    "premem.low-beats-high": lambda: (arms(low=0.03, high=0.01), arms(low=0.01, high=0.03)),
    "premem.low-beats-any-relatives": lambda: (arms(low=0.03, any=0.01), arms(low=0.01, any=0.03)),
    "premem.curation-saves-data": lambda: (arms(low=0.02), arms(low=-0.02)),
    "premem.curation-saves-a-third": lambda: (arms(low=0.05), arms(low=0.01)),  # 2 and 1.15 times as many
    "premem.curation-beats-rivals": lambda: (arms(low=0.03), arms(low=0.03, low_before=0.05)),
}  # fmt: skip


def named(tables):
    return {f"table {i}": ds for i, ds in enumerate(tables)}


def test_every_claim_on_runs_has_its_opposite_here():
    assert set(CASES) == set(RUNS)
    assert len(RUNS) == 17


@pytest.mark.parametrize("id", CASES)
def test_a_claim_holds_where_it_is_true_and_is_refuted_by_the_opposite(id):
    true, opposite = (evaluate_on(RUNS[id], named(tables)) for tables in CASES[id]())
    assert (true.verdict, opposite.verdict) == ("holds", "refuted")
    assert true.effect.value > 0 > opposite.effect.value


# ---- known numbers ------------------------------------------------------------------------------------------------


def test_premem_equal_to_test_accuracy_has_an_r2_of_one():
    found = RUNS["premem.foretells-test-accuracy"].check(*grid(TRUTH))
    assert found.value == pytest.approx(0.1, abs=1e-12)
    assert RUNS["premem.explains-test-accuracy"].check(*grid(0.2 + 0.5 * TRUTH)).value == pytest.approx(0.1, abs=1e-12)
    assert RUNS["premem.foretells-test-accuracy"].check(*grid(0.2 + 0.5 * TRUTH)).value < 0.0, "not of the line"
    mean = np.full((C, S), TRUTH.mean())
    assert RUNS["premem.foretells-test-accuracy"].check(*grid(mean)).value == pytest.approx(-0.9, abs=1e-12)


@pytest.mark.parametrize(
    ("rival", "form"), [*itertools.product(RIVALS[1:], (np.asarray, np.exp)), ("train", np.asarray)]
)
def test_any_better_rival_turns_the_ranking(rival, form):
    """One that is a line in test accuracy, or whose logarithm is one; training accuracy stands as it is."""
    premem = TRUTH / 2 + 0.1 * uniform("noise", C, S)
    told = {rival: form(0.2 + TRUTH * 0.9)}
    found = RUNS["premem.ranks-runs-best"].check(*grid(premem, **told))
    r2 = np.corrcoef(premem.ravel(), TRUTH.ravel())[0, 1] ** 2
    assert found.value == pytest.approx(r2 - 1.0, abs=1e-10)
    assert found.value < -0.01


def test_an_arm_on_the_line_at_twice_its_size_is_worth_a_doubling():
    """On lines of one slope a seed: accuracy .3 + .05·log₂(n/96) and the arm's, at 96 lessons, that of 192."""
    slope, level = 0.04 + 0.02 * uniform("slope", S), 0.3 + 0.1 * uniform("level", S)

    def table(arm, count, worth):
        tested = np.column_stack([level, level + slope * np.log2(worth / 96)])
        return trajectory(
            {"eval_test_accuracy": tested}, step=(0, 9), probe=("chosen",), seed=range(S), stage="finetune", arm=arm,
            attrs={"experiment": "curation", "count": count},
        )  # fmt: skip

    worth = {"low": 192, "high": 48, "any": 96, "low-train": 144, "low-before": 384, "surprising": 24}
    tables = (*(table("iid", n, n) for n in (384, 48, 96, 192)), *(table(arm, 96, n) for arm, n in worth.items()))
    found = premem_curation.ratios(tables)
    assert found == pytest.approx({"iid": 1.0} | {arm: n / 96 for arm, n in worth.items()}, rel=1e-9)
    for arm, n in worth.items():
        np.testing.assert_allclose(premem_curation.efficiency(tables, ratio=n / 96)[arm], 0.0, atol=1e-12)
        np.testing.assert_allclose(premem_curation.efficiency(tables)[arm], slope * np.log2(n / 96), atol=1e-12)
    assert RUNS["premem.curation-saves-a-third"].check(*tables).value == pytest.approx((slope * np.log2(4 / 3)).mean())


# ---- every effect, by loops, numpy and scipy ----------------------------------------------------------------------


def drawn(seed, *, copied=True):
    """A grid in which nothing is like anything else; seed 0 never copies, other runs copy half of the time."""
    rng = np.random.default_rng(seed)
    out = []
    for c in range(C):
        perplexity = 1.02 + 1.5 * rng.random((S, 4, W))
        some = (rng.random(S) < 0.6) & (np.arange(S) > 0) & copied
        perplexity[some, -1] = 1.02 + 0.4 * rng.random((int(some.sum()), W)) ** 2
        perplexity[~some, -1, 2:] += 0.5  # a few prompts are copied, and the run does not count
        perplexity[~some, -1, :2] = 1.1
        accuracy = rng.integers(0, 5, (S, 4, W)) / 4
        accuracy[:, -1] = np.maximum(accuracy[:, -1], rng.integers(0, 5, (S, W)) / 4)
        other = [rng.integers(0, 9, (S, W)) / 8 for _ in range(2)]
        ends = {name: 0.1 + rng.random(S) for name in ("loss", "grad_norm", "distance")}
        how = {"reordered": other[0], "reframed": other[1], "count": (16, 32, 64)[c % 3], "reorder": bool(c % 2)}
        out.append(recipe(accuracy, perplexity, test=rng.random(S), **how, **ends))
    return out


def chosen(ds):
    """(accuracy, perplexity) (S, M, W) of what is taught."""
    at = list(ds.probe.values).index("chosen")
    return ds.accuracy.values[:, :, at], np.exp(-ds.logp.values[:, :, at] / TOKENS)


def by_loops(ds, threshold=THRESHOLD):
    """PreMem (S, W) at the end, number by number."""
    accuracy, perplexity = chosen(ds)
    out = np.zeros((accuracy.shape[0], accuracy.shape[2]))
    for s, i in np.ndindex(out.shape):
        fresh = [a for a, p in zip(accuracy[s, :, i], perplexity[s, :, i], strict=True) if p > threshold]
        out[s, i] = min(max(fresh, default=0.0), accuracy[s, -1, i])
    return out


def r2(test, number, weight, line):
    """R² where each seed counts as often as its weight says."""
    w = np.broadcast_to(weight, test.shape).ravel()
    x, y = number.ravel(), test.ravel()
    fit = np.polyval(np.polyfit(x, y, 1, w=np.sqrt(w)), x) if line else x
    return 1.0 - (w * (y - fit) ** 2).sum() / (w * (y - np.average(y, weights=w)) ** 2).sum()


def shares(test, number, line):
    """R² plus S times what a seed of more weight would add to it, by finite differences."""
    h, out = 1e-4, []
    for more in h * np.eye(S):
        up, down = (r2(test, number, 1.0 + sign * more, line) for sign in (1, -1))
        out.append(r2(test, number, np.ones(S), line) + S * (up - down) / (2 * h))
    return np.array(out)


def spearman(a, b):
    return 0.0 if len(set(a)) == 1 or len(set(b)) == 1 else stats.spearmanr(a, b).statistic


def seen(tables):
    """By seed, of the runs that copied half and the wordings they did not train on: (PreMem, put otherwise, rivals)."""
    out = [[] for _ in range(S)]
    for ds in tables:
        (accuracy, perplexity), premem = chosen(ds), by_loops(ds)
        for s in range(S):
            if np.mean(perplexity[s, -1] <= THRESHOLD) >= 0.5:
                rivals = {"train": accuracy[s, -1], "before": accuracy[s, 0], "mean": accuracy[s].mean(0)}
                rivals["perplexity"] = perplexity[s, -1]
                for how in ("reframed",) if ds.attrs["reorder"] else ("reordered", "reframed"):
                    out[s].append((premem[s], ds.accuracy.sel(probe=how).values[s, -1], rivals))
    return out


def mean_of(tables, read):
    found = [[x for x in (read(*one) for one in own) if np.isfinite(x)] for own in seen(tables)]
    return np.array([np.mean(one) if one else np.nan for one in found])


def better(tables, rival):
    """The rival with the sign that serves it."""
    mine, theirs = (
        mean_of(tables, lambda premem, other, have, x=x: spearman(premem if x is None else have[x], other))
        for x in (None, rival)
    )
    return [mine - theirs * np.sign(np.nanmean(theirs))]


def broken(premem, other, have):
    sure = have["train"] == 1
    low, high = (other[sure & side] for side in (premem < 0.5, premem >= 0.5))
    return high.mean() - low.mean() if len(low) and len(high) else np.nan


def of_grid(id, tables):
    """The parts of a claim's effect, an array (S,) each."""
    columns = {"test": "eval_test_accuracy", "loss": "loss", "grad_norm": "grad_norm", "distance": "eval_distance"}
    end = {name: np.array([ds[column].values[:, -1] for ds in tables]) for name, column in columns.items()}
    end |= {"premem": np.array([by_loops(ds).mean(1) for ds in tables])}
    end |= {"early": np.array([by_loops(ds, 1.05).mean(1) for ds in tables])}
    end |= {"train": np.array([chosen(ds)[0][:, -1].mean(1) for ds in tables])}

    def number(name):
        return shares(end["test"], end[name], False)

    def line(name, form=np.asarray):
        return shares(end["test"], form(end[name]), True)

    if id == "ranks-runs-best":
        best = [max((line(x), line(x, np.log)), key=np.mean) for x in RIVALS[1:]]
        return [line("premem") - other for other in (line("train"), *best)]
    if id == "too-high-with-few-lessons":
        above = end["premem"] - end["test"]
        few, many = ([c for c in range(C) if tables[c].attrs["count"] == n] for n in (16, 64))
        return [above[few].mean(0) - above[many].mean(0)]
    own = "tells-robust-answers-better-than-"
    return {
        "foretells-test-accuracy": lambda: [number("premem") - 0.9],
        "explains-test-accuracy": lambda: [line("premem") - 0.9],
        "nearer-than-train-accuracy": lambda: [number("premem") - number("train")],
        "threshold-decides": lambda: [number("premem") - number("early")],
        "tells-robust-answers": lambda: [mean_of(tables, lambda premem, other, _: spearman(premem, other))],
        own + "train-accuracy": lambda: better(tables, "train"),
        own + "before": lambda: better(tables, "before"),
        own + "mean-accuracy": lambda: better(tables, "mean"),
        own + "perplexity": lambda: better(tables, "perplexity"),
        "low-answers-break": lambda: [mean_of(tables, broken)],
    }[id]()


def of_arms(id, tables):
    end = {ds.attrs["arm"]: ds.eval_test_accuracy.values[:, -1] for ds in tables if ds.attrs["arm"] != "iid"}
    line = {ds.attrs["count"]: ds.eval_test_accuracy.values[:, -1] for ds in tables if ds.attrs["arm"] == "iid"}
    fits = [np.polyfit(np.log2(list(line)), [one[s] for one in line.values()], 1) for s in range(S)]
    third = np.array([np.polyval(fit, np.log2(1.5 * 96)) for fit in fits])
    return {
        "low-beats-high": [end["low"] - end["high"]],
        "low-beats-any-relatives": [end["low"] - end["any"]],
        "curation-saves-data": [end["low"] - line[96]],
        "curation-saves-a-third": [end["low"] - third],
        "curation-beats-rivals": [end["low"] - end[x] for x in ("low-train", "low-before", "surprising")],
    }[id]


def intervals(parts):
    """(value, low, high, p) of the least of several means: every part must be above 0, one below will do against it."""
    parts = [part[np.isfinite(part)] for part in parts]
    tests = [stats.ttest_1samp(part, 0.0, alternative="greater") for part in parts]
    lows, highs = (
        [stats.ttest_1samp(x, 0.0).confidence_interval(level) for x in parts]
        for level in (LEVEL, 1 - (1 - LEVEL) / len(parts))
    )
    return (
        min(part.mean() for part in parts), min(one.low for one in lows), min(one.high for one in highs),
        max(test.pvalue for test in tests), min(map(len, parts)),
    )  # fmt: skip


def moved(tables, change):
    """The same tables with other test accuracies."""
    return [ds.assign(eval_test_accuracy=change(ds.eval_test_accuracy)) for ds in tables]


def scattered():
    rng = np.random.default_rng(7)
    return moved(arms(), lambda x: x + 0.05 * rng.random(x.shape))


@pytest.fixture(scope="module")
def tables():
    return {"premem": drawn(11), "curation": scattered()}


def agrees(id, tables):
    """Whether a claim's effect is what loops, numpy and scipy find in the same tables."""
    claim = RUNS[f"premem.{id}"]
    own = tables[claim.experiment]
    assert claim.premises(*own) is None
    found = claim.check(*own)
    wanted = intervals((of_grid if claim.experiment == "premem" else of_arms)(id, own))
    np.testing.assert_allclose((found.value, found.low, found.high, found.p, found.n), wanted, rtol=2e-6, atol=1e-8)
    assert found.low < found.value < found.high
    return found


@pytest.mark.parametrize("id", [id.removeprefix("premem.") for id in CASES])
def test_effects_are_those_of_numpy_with_students_intervals_over_seeds(id, tables):
    found = agrees(id, tables)
    # seed 0 copied in no run: where prompts are compared it has nothing to say
    assert (found.n < S) == ("robust" in id or id == "low-answers-break")


# ---- where they say nothing ---------------------------------------------------------------------------------------


def cut(tables, **attrs):
    """The first table with other attributes; None takes one away."""
    first = tables[0].copy()
    first.attrs = {k: v for k, v in (first.attrs | attrs).items() if v is not None}
    return [first, *tables[1:]]


def untested(ds):
    return ds.assign(loss=ds.eval_test_accuracy).drop_vars("eval_test_accuracy")


NOT = "no finetuning with sampled accuracies"
ARMS = "not all arms, or fewer than three sizes"
SILENT = {
    "another stage": ("premem", lambda t: cut(t, stage="dpo"), NOT),
    "no test": ("premem", lambda t: [untested(t[0]), *t[1:]], NOT),
    "no samples": ("premem", lambda t: [*t[1:], t[0].drop_vars("accuracy")], NOT),
    "no threshold": ("premem", lambda t: cut(t, threshold=None), NOT),
    "no loss": ("premem", lambda t: [*t[1:], t[0].drop_vars("loss")], NOT),
    "no number of lessons": ("premem", lambda t: cut(t, count=None), NOT),
    "no other wordings": ("premem", lambda t: [t[0].sel(probe=["chosen"]), *t[1:]], "not asked in other wordings"),
    "few recipes": ("premem", lambda t: t[:9], "fewer than 10 recipes"),
    "one seed": ("premem", lambda t: [ds.isel(seed=[0]) for ds in t], "one seed alone"),
    "other seeds": ("premem", lambda t: [*t[:-1], t[-1].isel(seed=slice(1, None))], "other seeds"),
    "another order of seeds": ("premem", lambda t: [*t[:-1], t[-1].isel(seed=slice(None, None, -1))], "other seeds"),
    "an arm of another stage": ("curation", lambda t: cut(t, stage="sft"), "no finetuning with accuracies of held-out"),
    "an arm without test": ("curation", lambda t: [*t[:-1], untested(t[-1])], "no finetuning with accuracies"),
    "an arm less": ("curation", lambda t: t[:-1], ARMS),
    "two sizes": ("curation", lambda t: t[1:], ARMS),
    "no size of the arms": ("curation", lambda t: [t[0], t[1].assign_attrs(count=97), *t[2:]], "no i.i.d. lessons of"),
    "an arm of other seeds": ("curation", lambda t: [*t[:-1], t[-1].isel(seed=slice(1, None))], "other seeds"),
    "an arm without a number": ("curation", lambda t: cut(t, count=None), "no finetuning with accuracies"),
    "an arm twice": ("curation", lambda t: [*t, t[-1].copy()], "an arm twice"),
    "arms of two sizes": ("curation", lambda t: [*t[:-1], t[-1].assign_attrs(count=48)], "an arm twice, or no i.i.d."),
    "data do not help": ("curation", lambda t: moved(t, lambda x: 1.0 - x), "more i.i.d. lessons do not help"),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_claim_says_why_it_says_nothing(name, tables):
    experiment, make, reason = SILENT[name]
    made = named(make(tables[experiment] if experiment == "premem" else arms(low=0.02)))
    for claim in [one for one in RUNS.values() if one.experiment == experiment][::4]:
        found = evaluate_on(claim, made)
        assert found.summary == "not applicable"
        assert reason in found.why


def test_a_number_that_is_the_same_everywhere_explains_nothing():
    test, same = TRUTH, np.ones_like(TRUTH)
    np.testing.assert_allclose(premem_runs.explained(test, same, line=True).mean(), 0.0, atol=1e-12)


def test_runs_none_of_which_copied_have_no_prompts_to_compare():
    never = drawn(0, copied=False)
    for id in ("tells-robust-answers", "tells-robust-answers-better-than-train-accuracy"):
        found = RUNS[f"premem.{id}"].check(*never)
        assert (found.n, np.isnan(found.p)) == (0, True), "a mean of nothing"


def test_they_look_at_tables_of_their_own_experiment_alone(tables):
    """Tables of another design beside them change nothing."""
    for id, other in (("premem.low-beats-high", "premem"), ("premem.ranks-runs-best", "curation")):
        claim = RUNS[id]
        own = named(tables[claim.experiment])
        mixed = own | {f"other {i}": ds for i, ds in enumerate(tables[other])}
        assert evaluate_on(claim, mixed).effect == evaluate_on(claim, own).effect
        assert evaluate_on(claim, mixed).effect is not None


# ---- the test of the tests ----------------------------------------------------------------------------------------


def premem_is_training_accuracy(patch):
    def of_table(ds, *, threshold):
        return ds.accuracy.sel(probe="chosen").values

    patch.setattr(premem_runs, "of_table", of_table)


def r2_of_the_line(patch):
    whole = premem_runs.explained
    patch.setattr(premem_runs, "explained", lambda test, number, *, line: whole(test, number, line=True))


def r2_of_the_number(patch):
    whole = premem_runs.explained
    patch.setattr(premem_runs, "explained", lambda test, number, *, line: whole(test, number, line=False))


def shares_that_know_the_deviations(patch):
    """1 − S·E_s/D: the same mean, another interval."""

    def explained(test, number, *, line):
        away = number - number.mean()
        fit = test.mean() + (away * test).sum() / (away**2).sum() * away if line else number
        return 1.0 - test.shape[1] * ((test - fit) ** 2).sum(0) / ((test - test.mean()) ** 2).sum()

    patch.setattr(premem_runs, "explained", explained)


def one_threshold_for_all(patch):
    whole = premem_runs.ends
    patch.setattr(premem_runs, "ends", lambda tables, *, threshold=None: whole(tables))


def whoever_copied_or_not(patch):
    patch.setattr(premem_runs, "_copies", lambda ds: np.ones(len(ds.seed), bool))


def correlation_of_values(patch):
    patch.setattr(
        premem_runs, "_correlation", lambda a, b: float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) * np.ptp(b) else 0.0
    )


def lines_upside_down(patch):
    whole = premem_curation._lines
    patch.setattr(premem_curation, "_lines", lambda *given: (whole(*given)[0], -whole(*given)[1]))


def accuracy_before(patch):
    patch.setattr(premem_curation, "_end", lambda ds: ds.eval_test_accuracy.values[:, 0])


RED = {
    premem_is_training_accuracy: ["foretells-test-accuracy", "nearer-than-train-accuracy", "tells-robust-answers"],
    r2_of_the_line: ["foretells-test-accuracy", "nearer-than-train-accuracy", "threshold-decides"],
    r2_of_the_number: ["explains-test-accuracy", "ranks-runs-best"],
    shares_that_know_the_deviations: ["foretells-test-accuracy", "explains-test-accuracy", "ranks-runs-best"],
    one_threshold_for_all: ["threshold-decides"],
    whoever_copied_or_not: ["tells-robust-answers", "low-answers-break"],
    correlation_of_values: ["tells-robust-answers", "tells-robust-answers-better-than-perplexity"],
    lines_upside_down: ["curation-saves-a-third"],
    accuracy_before: ["low-beats-high", "curation-saves-data", "curation-beats-rivals"],
}


@pytest.mark.parametrize("bug", RED, ids=lambda bug: bug.__name__.replace("_", "-"))
def test_a_planted_bug_turns_them_red(bug, monkeypatch, tables):
    bug(monkeypatch)
    for id in RED[bug]:
        with pytest.raises(AssertionError):
            agrees(id, tables)
