# %% [markdown]
# # Exercises to chapter 11
#
# Reading runs: which mechanism, what a fall of chosen says, and a log that is not what it says.

# %%
import numpy as np

from toyld import softmax as sm
from toyld.book import recorded, says
from toyld.claims.preference import CHECKPOINT, PRINTED
from toyld.diagnosis import diagnose
from toyld.diagnosis.causes import make_run


def kl(a, b):
    """KL(a‖b) in nats."""
    return float(np.sum(a * (np.log(a) - np.log(b))))


# %% [markdown]
# ## Exercise 1: name the mechanism
#
# A run says how far three means moved, in nats a response: chosen, argmax (along the chosen contexts) and rejected.
# Write `name(chosen, argmax, rejected, still)`, which returns "not-learning", "rejection", "healthy", "sft-normal",
# "squeezing", "displacement" or "divergence". A move of less than `still` counts as none, and so does a fall of the
# argmax by less than a quarter of what chosen falls. It is tried on runs of known cause. Predict before you run it:
# which of the seven does a plot of chosen alone confuse?


# %% tags=["solution"]
def name(chosen: float, argmax: float, rejected: float, still: float) -> str:
    """The mechanism that three changes are consistent with."""
    if argmax > still and argmax > chosen:
        return "squeezing"
    if chosen > still:
        return "healthy" if rejected < -still else "sft-normal"
    if chosen < -still:
        return "divergence" if argmax < min(-still, chosen / 4.0) else "displacement"
    return "rejection" if rejected < -still else "not-learning"


# %%
for cause in ("not-learning", "rejection", "healthy", "sft-normal", "squeezing", "displacement", "divergence"):
    told = []
    for seed in range(5):
        run = make_run(cause, seed=seed).mean("example").isel(seed=0)
        moved = run.isel(step=-1) - run.isel(step=0)
        chosen, argmax = float(moved.logp.sel(probe="chosen")), float(moved.argmax_logp.sel(probe="chosen"))
        rejected = float(moved.logp.sel(probe="rejected")) if "rejected" in moved.probe else 0.0
        told.append(name(chosen, argmax, rejected, still=0.3))
    print(f"{cause:13s} chosen {chosen:+6.2f}, argmax {argmax:+6.2f}, rejected {rejected:+6.2f} (the last) → {told}")
    np.testing.assert_array_equal(told, [cause] * 5)
down = next(share for share in np.arange(0.0, 1.0, 0.01) if name(-10.0, -10.0 * share, 0.0, still=0.3) == "divergence")
says("by less than a quarter of what chosen falls", down)

# %% [markdown] tags=["solution"]
# **Solution.** Squeezing is the conjunction: the argmax rises, and by more than chosen does, whatever chosen does. Next
# comes chosen itself: up with rejected down is a healthy pair, up alone is plain SFT; down with the argmax down is
# divergence, down with the argmax where it was is displacement. What is left has not moved chosen: either rejected went
# down, or nothing did. Chosen alone confuses squeezing, displacement and divergence, and in a mild case squeezing with
# health.


# %% tags=["mistake"]
# takes a falling chosen answer for squeezing, as one does who has no argmax
def name(chosen, argmax, rejected, still):
    if chosen < -still:
        return "squeezing"
    if chosen > still:
        return "healthy" if rejected < -still else "sft-normal"
    return "rejection" if rejected < -still else "not-learning"


# %% [markdown]
# ## Exercise 2: who must fall?
#
# A model π_0 is trained to π_1, by whatever loss. Predict the sign of the mean of log π_1(y) − log π_0(y) where y is
# drawn from π_0; from π_1; from data with a distribution q of their own. Then write the three means as
#
# - `of_start(p0, p1)`, `of_end(p0, p1)`, `of_data(q, p0, p1)`,
#
# in closed form, with divergences `kl(a, b)` alone. When does the data rise? (All distributions are over the same
# answers, and none of their probabilities is 0.)


# %% tags=["solution"]
def of_start(p0: np.ndarray, p1: np.ndarray) -> float:
    """E over y ~ π_0."""
    return -kl(p0, p1)


def of_end(p0: np.ndarray, p1: np.ndarray) -> float:
    """E over y ~ π_1."""
    return kl(p1, p0)


def of_data(q: np.ndarray, p0: np.ndarray, p1: np.ndarray) -> float:
    """E over y ~ q."""
    return kl(q, p0) - kl(q, p1)


# %%
rng = np.random.default_rng(0)
for _ in range(20):
    q, p0, p1 = sm.softmax(rng.normal(0.0, 2.0, (3, 30)))
    change = np.log(p1) - np.log(p0)
    truth = [p0 @ change, p1 @ change, q @ change]
    np.testing.assert_allclose([of_start(p0, p1), of_end(p0, p1), of_data(q, p0, p1)], truth, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_less([truth[0], -truth[1]], 0.0)
z = np.log(p0)
trained = sm.softmax(sm.step(z, sm.residual(z, int(np.argmin(p0)), c=-1.0), s=3.0))  # a negative gradient, say
print(f"samples of the start {of_start(p0, trained):+.3f}, of the end {of_end(p0, trained):+.3f} nats")

# %% [markdown] tags=["solution"]
# **Solution.** By the definition of the divergence, E_{π_0}[log π_1 − log π_0] = −KL(π_0‖π_1) ≤ 0: what the model
# would have said before training must fall, whatever the loss. E_{π_1}[log π_1 − log π_0] = KL(π_1‖π_0) ≥ 0: what it
# says afterwards has risen. For data of its own insert log q: E_q[log π_1 − log π_0] = KL(q‖π_0) − KL(q‖π_1), so the
# data rise if and only if the model came closer to them. Chosen answers on which SFT was done look like samples of the
# start: that they fall in DPO is no news.


# %% tags=["mistake"]
# takes the divergence the wrong way round: it is the mean over its first argument
def of_start(p0, p1):
    return -kl(p1, p0)


def of_end(p0, p1):
    return kl(p0, p1)


def of_data(q, p0, p1):
    return kl(p0, q) - kl(p1, q)


# %% [markdown]
# ## Exercise 3: an argmax from elsewhere
#
# A colleague logs chosen from −152 to −156 and an "argmax" from −113 to −63: "squeezing, +50 nats!" Her log holds both
# numbers for each of 500 prompts. Name a check that needs no other file: write `impossible(chosen, argmax)`, how many
# values prove that the argmax was measured along other contexts, and `usable(chosen, argmax)`, the argmax as far as it
# may still be used (NaN where not). Arrays have one value for each prompt and evaluation. What is left to be said of
# her run?


# %% tags=["solution"]
def impossible(chosen: np.ndarray, argmax: np.ndarray) -> int:
    """Nothing is likelier than the argmax along the same contexts."""
    return int(np.sum(argmax < chosen))


def usable(chosen: np.ndarray, argmax: np.ndarray) -> np.ndarray:
    """All of it or nothing: the impossible values are only where it shows."""
    return argmax if impossible(chosen, argmax) == 0 else np.full_like(argmax, np.nan)


# %%
fall = recorded("preference.chosen-falls", "pythia410m_baseline", rung="published")
prompts = recorded("preference.argmax-as-published", rung="published").n
says("chosen from −152 to −156", CHECKPOINT, CHECKPOINT - fall.value)
says("from −113 to −63", *PRINTED)
says("+50 nats", PRINTED[1] - PRINTED[0])
says("for each of 500 prompts", prompts)
clean = make_run("squeezing", seed=1)
spoilt = clean.copy(deep=True)
spoilt.argmax_logp[:] = np.roll(clean.argmax_logp.values, 1, axis=-1)  # each prompt with its neighbour's contexts
for run, expected in ((clean, "squeezing"), (spoilt, "cannot-tell")):
    chosen, argmax = run.logp.sel(probe="chosen").values, run.argmax_logp.sel(probe="chosen").values
    n, left = impossible(chosen, argmax), usable(chosen, argmax)
    found = diagnose(run)
    print(f"impossible values: {n:3d} of {chosen.size} → {found.verdict}")
    np.testing.assert_equal(found.verdict, expected)
    np.testing.assert_equal(n > 0, expected == "cannot-tell")
    np.testing.assert_array_equal(np.isnan(left), np.full(left.shape, n > 0))

# %% [markdown] tags=["solution"]
# **Solution.** Count the values with argmax < chosen: along the same contexts there are none, for whatever model. If
# there is one, the argmax was measured elsewhere; all of it goes, not only the impossible values, since those are just
# where it shows. What is left is chosen and rejected: whether the margin grew, and whether chosen fell by more than
# fresh samples must. Squeezing is then neither shown nor excluded.


# %% tags=["mistake"]
# drops the values that are impossible and believes the others, which were measured along the same wrong contexts
def impossible(chosen, argmax):
    return int(np.sum(argmax < chosen))


def usable(chosen, argmax):
    return np.where(argmax < chosen, np.nan, argmax)
