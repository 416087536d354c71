# %% [markdown]
# # 12. Right before it copies
#
# **Question.** A model is trained on worked solutions, one for each problem. At the end it recites them all: training
# accuracy is all but perfect, whatever becomes of new problems. Was there a moment at which it did say something?
#
# Kang et al. (2411.07681) propose one: count an answer only as long as the model has not yet begun to copy that
# problem's solution. For a training prompt i, watched at checkpoints m, let acc be the probability that the model's own
# sample ends in the right answer, and perp the perplexity of the trace that it is taught, of T tokens:
#
#     perp = exp( −(1/T) Σ_t log π(y_t | x, y_<t) )                                               (12.1)
#     masked_m = acc_m · 1[perp_m > p]                                                            (12.2)
#     PreMem_m = min( max_{m' ≤ m} masked_{m'}, acc_m )                                           (12.3)
#
# p is a threshold: at perp ≤ p the trace counts as *copied*. The paper reports that the mean of PreMem over training
# prompts foretells test accuracy over models, data and recipes, with R² about .9 and more. Here we ask what the
# definition can and cannot do, in a world where everything can be computed.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import gmean

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.book.recorded import recorded, verdict
from toyld.claims import hold
from toyld.claims.premem_curation import SAVED
from toyld.figures import _premem
from toyld.premem import copying_bound, pre_memorisation
from toyld.tiny.sums import SumSizes

# %% [markdown]
# ## The definition at its ends
#
# A prompt that is never copied keeps its accuracy; one that is copied from the first checkpoint on has nothing, however
# well it is answered; one that is copied late keeps what it had before; and a prompt whose answer is lost again loses
# what it had, because of the last term of (12.3).

# %%
REPORTED = 0.9  # the abstract of 2411.07681: "around or exceeding"
says("with R² about .9 and more", REPORTED)
own = np.array([0.5, 0.25, 0.8])  # probabilities of a trace's tokens
T = len(own)
formula(
    "perp = exp( −(1/T) Σ_t log π(y_t | x, y_<t) )", np.reciprocal(gmean(own)), np.exp(-(1 / T) * np.log(own).sum())
)
logs = {
    "never copied": ([0.2, 0.6, 0.7], [9.0, 4.0, 3.0]),
    "copied from the start": ([0.9, 1.0, 1.0], [1.1, 1.0, 1.0]),
    "copied at the end": ([0.2, 0.6, 1.0], [9.0, 4.0, 1.1]),
    "copied, then forgotten": ([0.2, 0.6, 0.3], [9.0, 4.0, 1.1]),
}
for name, (accuracy, perplexity) in logs.items():
    acc, perp, p = np.array(accuracy), np.array(perplexity), 1.5
    print(f"{name:24s}", pre_memorisation(acc, perp, threshold=p))
masked = np.where(perp > p, acc, np.zeros_like(acc))  # of the last log
formula("masked_m = acc_m · 1[perp_m > p]", masked, acc * (1 * (perp > p)))
formula("PreMem_m = min( max_{m' ≤ m} masked_{m'}, acc_m )", pre_memorisation(acc, perp, threshold=p),
        np.minimum(np.maximum.accumulate(masked), acc))  # fmt: skip
for id in ("accuracy-until-copied", "zero-if-always-copied", "late-copy-keeps-the-best-before", "never-falls"):
    print(f"premem.{id}: {hold(f'premem.{id}').verdict}")

# %% [markdown]
# ## Copying alone cannot be right for long
#
# Why should a perplexity a token be the right clock? While the trace is not copied, its own probability is perp^{−T},
# below p^{−T}. So whatever PreMem has above that comes from *other* right traces: from having understood, in whatever
# way. For a trace of 100 tokens and p = 1.1 copying accounts for 7·10⁻⁵ at most. For a trace of one token it may
# account for 91 % of the right answers: on one-word answers the metric means nothing. (All that of probabilities; the
# share of right answers among a few samples adds noise, and the maximum in (12.3) picks its lucky draws.)

# %%
low_threshold, tokens = 1.1, 100
long, short = (copying_bound(n, threshold=low_threshold) for n in (tokens, 1))
says("For a trace of 100 tokens and p = 1.1 copying accounts for 7·10⁻⁵ at most", tokens, low_threshold, long)
says("account for 91 % of the right answers", short)
_ = hold("premem.copying-is-bounded"), hold("premem.higher-threshold-masks-more")

# %% [markdown]
# ## A world of methods and wordings
#
# Solutions have 8 steps. At each step a softmax chooses among 8 options of which 3 are right, for every problem alike;
# the lesson shows one of the right ones, drawn by lot. Understanding is to prefer the right three, copying is to prefer
# the one that was shown. An answer is right if all steps are:
#
#     acc = Π_t Σ_{v right} π_t(v)                                                                (12.4)
#
# Problems resemble each other, some more, some less. With a share s_i of its features common to all, the kernel of
# chapter 6 between two problems at the same step is
#
#     S_ij = √(s_i s_j) + (1 − s_i) 1[i = j]                                                      (12.5)
#
# What all lessons have in common passes through the first term: as lots differ, that is the right three, alike. What is
# this lesson's own passes through the second. Training is SFT by plain descent, Z ← Z − η S R(Z). As in practice the
# model is asked 16 times at every checkpoint, and the share of right answers among these samples stands for acc.

# %%
STEPS, OPTIONS, RIGHT, TEST, SAMPLES, RATE, UPDATES = 8, 8, 3, 64, 16, 0.3, 400
says(
    "Solutions have 8 steps. At each step a softmax chooses among 8 options of which 3 are right", STEPS, OPTIONS, RIGHT
)
says("model is asked 16 times", SAMPLES)


def kernel_of(share: np.ndarray, problems: int) -> np.ndarray:
    """S between all problems and the first ones, which are taught."""
    kernel = np.sqrt(np.outer(share, share[:problems]))
    kernel[np.arange(problems), np.arange(problems)] += 1.0 - share[:problems]
    return kernel


some = np.array([0.2, 0.5, 0.9])
formula("S_ij = √(s_i s_j) + (1 − s_i) 1[i = j]", kernel_of(some, len(some)),
        np.sqrt(np.outer(some, some)) + np.diag((1 - some) * 1))  # fmt: skip


def learn(seed: int, problems: int, common: float) -> dict[str, np.ndarray]:
    """A run by checkpoint: training problems (sampled accuracy, perplexity) and the mean over test problems."""
    rng = np.random.default_rng((seed, problems, round(1000 * common)))
    share = np.clip(common * rng.uniform(0.2, 1.8, problems + TEST), 0.0, 0.98)
    z = rng.normal(size=(len(share), STEPS, OPTIONS))
    shown = np.eye(OPTIONS)[rng.integers(RIGHT, size=(problems, STEPS))]
    kernel, watched = kernel_of(share, problems), {0, *np.round(np.geomspace(1, UPDATES, 40)).astype(int)}
    seen = {name: [] for name in ("accuracy", "perplexity", "test")}
    for update in range(UPDATES + 1):
        p = sm.softmax(z)
        if update in watched:
            right = np.minimum(p[..., :RIGHT].sum(-1).prod(-1), 1.0)
            own = (p[:problems] * shown).sum(-1)
            seen["accuracy"].append(rng.binomial(SAMPLES, right[:problems]) / SAMPLES)
            seen["perplexity"].append(np.exp(-np.log(own).mean(-1)))
            seen["test"].append(right[problems:].mean())
        z = z - RATE * np.einsum("ij,jtv->itv", kernel, p[:problems] - shown)
    return {name: np.array(path) for name, path in seen.items()}


# %% [markdown]
# ## 40 recipes
#
# How many problems are taught (4 to 64), how much they have in common (2 to 80 %): 40 runs, and as many with other
# seeds. Every run ends with a training accuracy above 90 %, while test accuracy goes from nothing to nearly everything.
# How well does a number foretell it? There are two questions in that. *Does it rank the runs?* is answered by the
# squared correlation r². *Is it the test accuracy?* is answered by
#
#     R² = 1 − Σ (test − number)² / Σ (test − mean test)²                                         (12.6)
#
# which is below 0 for a number that is worse than knowing the mean. The threshold p must come from somewhere: it is
# chosen on the first 40 runs and tried on the others.

# %%
PROBLEMS, SHARES, THRESHOLDS = (4, 8, 16, 32, 64), (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8), (1.05, 1.2, 1.5, 2, 3)
says("(4 to 64)", PROBLEMS[0], PROBLEMS[-1])
says("## 40 recipes", len(PROBLEMS) * len(SHARES))
says("in common (2 to 80 %): 40 runs", 100 * SHARES[0], SHARES[-1], len(PROBLEMS) * len(SHARES))
says("on the first 40 runs", len(PROBLEMS) * len(SHARES))
chosen_on, tried_on = ([learn(seed, n, share) for n in PROBLEMS for share in SHARES] for seed in (1000, 0))


def end(runs: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.array([one[name][-1].mean() for one in runs])


def premem(run: dict[str, np.ndarray], p: float) -> np.ndarray:
    return pre_memorisation(run["accuracy"], run["perplexity"], threshold=p)[-1]


def ranks(number: np.ndarray, test: np.ndarray) -> float:
    return np.corrcoef(number, test)[0, 1] ** 2


def fits(number: np.ndarray, test: np.ndarray) -> float:
    return 1 - ((test - number) ** 2).sum() / ((test - test.mean()) ** 2).sum()


least_trained = 0.9
np.testing.assert_array_less(least_trained, end([*chosen_on, *tried_on], "accuracy"))
says("accuracy above 90 %", least_trained)
print("                  first runs     other runs\n                  r²      R²     r²      R²")
table = {}
for name in ("accuracy", *THRESHOLDS):
    numbers = [
        end(runs, name) if name == "accuracy" else np.array([premem(one, name).mean() for one in runs])
        for runs in (chosen_on, tried_on)
    ]
    pairs = list(zip(numbers, (end(chosen_on, "test"), end(tried_on, "test")), strict=True))
    table[name] = [number for pair in pairs for number in (ranks(*pair), fits(*pair))]
    print(f"{'training' if name == 'accuracy' else f'PreMem, {name}':13s}" + "".join(f"{x:7.2f}" for x in table[name]))
best = max(THRESHOLDS, key=lambda p: table[p][1])
print(f"chosen: p = {best}")

# %% [markdown]
# So the idea works in this world. Training accuracy is near 1 everywhere: as an estimate of test accuracy it is worse
# than none (R² below −1), though what little it varies does rank the runs to some extent. PreMem spreads over the whole
# range, and at the threshold chosen on other runs its R² is .83. But R² hangs on p as much as on the idea, and is below
# 0 at either end of the table: too low a threshold counts copies as understanding, too high a one throws away what was
# understood late. (With 3 right options a step, to understand is a perplexity of 3: there all of it counts as copied.)
# For ranks alone the best threshold is another one, 1.2 in both halves of the table.

# %%
number, test = np.array([premem(one, best).mean() for one in tried_on]), end(tried_on, "test")
worse_than_none = -1.0
np.testing.assert_array_less([table["accuracy"][1], table["accuracy"][3]], worse_than_none)
says("on other runs its R² is .83", fits(number, test))
for half in (0, 2):
    says("is another one, 1.2", max(THRESHOLDS, key=lambda p, half=half: table[p][half]))
formula("1 − Σ (test − number)² / Σ (test − mean test)²", fits(number, test),
        1 - ((test - number) ** 2).sum() / ((test - test.mean()) ** 2).sum())  # fmt: skip
np.testing.assert_array_less([table[THRESHOLDS[0]][3], table[THRESHOLDS[-1]][3]], 0.0)
says("R² below −1", worse_than_none)
says("With 3 right options a step, to understand is a perplexity of 3", RIGHT, (RIGHT**STEPS) ** (1 / STEPS))

# %% [markdown]
# ## Networks that have to find the method
#
# This world is made for the idea: copying and understanding are two terms of one kernel. In the experiment `premem`
# (rung `tiny`) transformers, pretrained on sums with slips, are finetuned on worked solutions: four numbers taken in
# any of 24 right orders, 8 tokens. There are 108 recipes with 64 to 576 lessons, 4 to 64 passes, other rates, augmented
# or not, two sizes of model, and 12 seeds. No tested problem was taught, in whatever order or words. To understand
# without copying is a perplexity of 24^{1/8} = 1.49; copied is what is at 1.35 or below, as calibrated on other seeds.

# %%
grid, sizes = _premem.load(), SumSizes()
orders, counts, passes = math.factorial(sizes.terms), np.unique(grid["count"]), np.unique(grid["passes"])
(threshold,), seeds = np.unique(grid["threshold"]), len(np.unique(grid["seed"]))
says("any of 24 right orders, 8 tokens. There are 108 recipes", orders, sizes.length, len(grid["seed"]) // seeds)
says("with 64 to 576 lessons, 4 to 64 passes", *counts[[0, -1]], *passes[[0, -1]])
says("two sizes of model, and 12 seeds", seeds)
share = 1 / sizes.length
says("24^{1/8} = 1.49; copied is what is at 1.35", orders, share, orders**share, threshold)
hold("premem.too-high-a-threshold-masks-understanding")
names = ("foretells-test-accuracy", "nearer-than-train-accuracy", "ranks-runs-best", "too-high-with-few-lessons",
         "tells-robust-answers", "tells-robust-answers-better-than-mean-accuracy", "low-beats-high",
         "curation-saves-data", "curation-saves-a-third")  # fmt: skip
told = {id: recorded(f"premem.{id}", rung="tiny") for id in names}
for id, e in told.items():
    print(f"{id:46s} {e.value:+.3f} [{e.low:+.3f}, {e.high:+.3f}] {verdict(f'premem.{id}', rung='tiny')}")
r2 = told["foretells-test-accuracy"]
says("with an R² of .78 [.73, .84], not .9", *(REPORTED + x for x in (r2.value, r2.low, r2.high)), REPORTED)
says("Training accuracy has −.66", REPORTED + r2.value - told["nearer-than-train-accuracy"].value)
few, many = ([grid[x][grid["count"] == n].mean() for x in (_premem.column(threshold), "test")] for n in counts[[0, -1]])
says("64 lessons it is .40 and the test .35, with 576 it is .55 and the test .61", counts[0], *few, counts[-1], *many)
says("with answers to other wordings is .35", told["tells-robust-answers"].value)
says("is better by .10", -told["tells-robust-answers-better-than-mean-accuracy"].value)
high, iid = told["low-beats-high"], told["curation-saves-data"]
says("by .061 [.019, .104] more", high.value, high.low, high.high)
says("only by .007 [−.013, .028]", iid.value, iid.low, iid.high)
says("worth 1.5 times as many", SAVED)

# %% [markdown]
# PreMem foretells test accuracy with an R² of .78 [.73, .84], not .9; corrected (Holm) for all that is tried on tiny
# networks, that is undecided (`premem.foretells-test-accuracy`). Training accuracy has −.66, which is far worse
# (`premem.nearer-than-train-accuracy`), and a line in PreMem ranks runs better than one in training accuracy, in the
# loss, the norm of its gradient or the distance from the start
# (`premem.ranks-runs-best`). With 64 lessons it is .40 and the test .35, with 576 it is .55 and the test .61
# (`premem.too-high-with-few-lessons`). Why was not measured; theory knows that luck in few samples lifts it
# (`premem.fewer-samples-flatter`) and that it does not see what is lost after copying (`premem.blind-after-copying`).
# Prompt by prompt its rank correlation with answers to other wordings is .35 (`premem.tells-robust-answers`); the mean
# of training accuracy over all checkpoints, which masks nothing, is better by .10
# (`premem.tells-robust-answers-better-than-mean-accuracy`).
#
# Does it save data? Lessons like those of low PreMem raise test accuracy by .061 [.019, .104] more than lessons like
# those of high PreMem (`premem.low-beats-high`, undecided when corrected), but only by .007 [−.013, .028] more than any
# (`premem.curation-saves-data`); that they are worth 1.5 times as many is refuted (`premem.curation-saves-a-third`).

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `premem.accuracy-until-copied`, `premem.zero-if-always-copied`, `premem.higher-threshold-masks-more`,
#   `premem.late-copy-keeps-the-best-before`, `premem.copying-is-bounded`, `premem.fewer-samples-flatter`,
#   `premem.too-high-a-threshold-masks-understanding`, `premem.blind-after-copying`.
# - **First order**: nothing here.
# - **Measured**: nothing by a claim in the first world, of 40 runs for choosing and 40 for trying.
# - **Refuted or open**: `premem.never-falls`; too small to be sure in the tests' grid, decided in the recorded one as
#   printed above: `premem.foretells-test-accuracy`, `premem.nearer-than-train-accuracy`, `premem.ranks-runs-best`,
#   `premem.too-high-with-few-lessons`, `premem.tells-robust-answers`, `premem.low-beats-high`,
#   `premem.tells-robust-answers-better-than-mean-accuracy`, `premem.curation-saves-data`,
#   `premem.curation-saves-a-third`.

# %% [markdown]
# ## Picture

# %%
says("of 40 runs for choosing and 40 for trying", len(chosen_on), len(tried_on))
figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.2), layout="constrained")
pairs = {"One point a run, 40 recipes": (end(tried_on, "accuracy"), number, test),
         "Transformers, 108 recipes": (grid["train"], grid[_premem.column(threshold)], grid["test"])}  # fmt: skip
for axes, (title, (copying, mine, new)) in zip((left, right), pairs.items(), strict=True):
    axes.plot([0, 1], [0, 1], color="black", lw=0.6)
    axes.scatter(copying, new, marker="s", s=4, alpha=0.5, color="tab:gray", label="training accuracy")
    axes.scatter(mine, new, marker="o", s=4, alpha=0.5, color="tab:blue", label="PreMem")
    axes.set(xlabel="number at the end of training", ylabel="test accuracy", title=title)
left.legend(fontsize=7)
figure.savefig("12_prememorisation.png")
plt.close(figure)

# %% [markdown]
# Exercises with solutions: `theory/solutions/12_prememorisation.py`.
