# %% [markdown]
# # Exercises to chapter 10
#
# Policy gradients: GRPO's weights, what PPO's ratio damps, and a prompt without any right answer.

# %%
import numpy as np

from toyld import objectives
from toyld import softmax as sm
from toyld.book import formula, says
from toyld.tiny.verifier import advantages

# %% [markdown]
# ## Exercise 1: which sign weighs more?
#
# In a group of answers to one prompt `right` are right (r = 1) and `wrong` are wrong (r = 0). Write `weights(right,
# wrong, kind)`: the sum of the positive advantages, and the sum of the sizes of the negative ones, for
#
# - kind "signed": Â = 2r − 1,
# - kind "group" (GRPO): Â = (r − mean)/std with the mean and the standard deviation (over n, not n − 1) of the group,
#   and 0 throughout where all rewards are equal.
#
# Which of the two is dominated by wrong answers where one answer in nine is right? What does either do with a prompt of
# which every answer is wrong?


# %% tags=["solution"]
def weights(right: int, wrong: int, kind: str) -> tuple[float, float]:
    """Total positive and total negative weight of a group."""
    if kind == "signed":
        return float(right), float(wrong)
    both = np.sqrt(right * wrong)
    return float(both), float(both)


# %%
r = np.array([1.0, 0.0])
formula("Â = 2r − 1", advantages(r[None, None], "signed")[0, 0], 2 * r - 1)
for right, wrong in ((1, 8), (4, 4), (7, 1), (0, 8)):
    rewards = np.array([1.0] * right + [0.0] * wrong)
    for kind in ("signed", "group"):
        given = advantages(rewards[None, None], kind)
        up, down = weights(right, wrong, kind)
        np.testing.assert_allclose(up, given[given > 0].sum(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(down, -given[given < 0].sum(), rtol=1e-12, atol=1e-12)
        print(f"{right} right, {wrong} wrong, {kind:6s}: +{up:.2f} and −{down:.2f}")
up, down = weights(1, 8, "signed")
says("where one answer in nine is right", up / (up + down))
says("have eight times the weight where one in nine is right", down / up, up / (up + down))

# %% [markdown] tags=["solution"]
# **Solution.** Signed: one for each answer, so the wrong ones have eight times the weight where one in nine is right,
# and all of it at a prompt without right answers. GRPO: let m be the share of right answers; the standard deviation is
# √(m(1 − m)), a right answer has (1 − m)/√(m(1 − m)) and all of them together nm(1 − m)/√(m(1 − m)) = n√(m(1 − m)), a
# wrong one −m/√(m(1 − m)), all together the same with a minus: √(right · wrong) for both signs. Where all are wrong
# there is no spread, and GRPO does nothing (`policy.grpo-weights`).


# %% tags=["mistake"]
# divides by the variance: each answer then counts by its rarity alone, and the total no longer goes down with m
def weights(right, wrong, kind):
    if kind == "signed":
        return float(right), float(wrong)
    return float(right + wrong), float(right + wrong)


# %% [markdown]
# ## Exercise 2: what does the clip stop first?
#
# PPO pushes a token y down, by an advantage Â < 0 of size one, in updates on one and the same sample. Write
#
# - `push(rho, clip)`: PPO's coefficient c at the ratio ρ = π_y/π_old,
# - `updates(p, y, s, clip)`: the number of updates with a non-zero push, when one softmax with probabilities p at the
#   start takes steps of effective size s, z' = z − s c (π − e_y).
#
# Predict first: of a likely and a rare token of the same softmax, which one is pushed longer?


# %% tags=["solution"]
def push(rho: float, clip: float) -> float:
    """Âρ while the ratio is not clipped, 0 after that."""
    return -rho if rho >= 1.0 - clip else 0.0


def updates(p: np.ndarray, y: int, s: float, clip: float) -> int:
    """Updates until the clip stops the push."""
    z, done = np.log(p), 0
    while c := push(float(sm.softmax(z)[y] / p[y]), clip):
        z, done = sm.step(z, sm.residual(z, y, c=c), s=s), done + 1
    return done


# %%
clip, step = objectives.PPO().clip, 1e-6


def loss(rho):
    return -min(-rho, -float(np.clip(rho, 1.0 - clip, 1.0 + clip)))


for rho in (1.5, 1.0, 0.9, 0.79, 0.1):  # c = −dL/d log π_y, by a difference
    slope = (loss(rho * np.exp(step)) - loss(rho * np.exp(-step))) / (2.0 * step)
    np.testing.assert_allclose(push(rho, clip), -slope, atol=1e-9)
p = np.array([0.6, 0.3, 0.099, 0.001])
counts = [updates(p, y, 0.05, clip) for y in range(4)]
print("updates until the clip, from the likeliest token to the rarest:", counts)
np.testing.assert_array_less(counts[3], counts[0])
says("after 4 updates", counts[3])
says("only after 15", counts[0])


# %% [markdown] tags=["solution"]
# **Solution.** For Â < 0 the loss is max(ρ, clipped ρ): its slope is that of ρ down to 1 − ε and 0 below. To first
# order a step moves log π_y by −sρ‖π − e_y‖²: largest where the model thinks y unlikely. So the rare token is through
# the clip after 4 updates, the likeliest only after 15. But the ratio ends what it did not prevent: at the first
# update, where ρ = 1, both were pushed alike.


# %% tags=["mistake"]
# clips the ratio but keeps the gradient: below 1 − ε the loss is constant, and a constant has no slope
def push(rho, clip):
    return -max(rho, 1.0 - clip)


def updates(p, y, s, clip):
    z, done = np.log(p), 0
    while sm.softmax(z)[y] / p[y] >= 1.0 - clip and done < 1000:
        z, done = sm.step(z, sm.residual(z, y, c=-1.0), s=s), done + 1
    return done


# %% [markdown]
# ## Exercise 3: a prompt without a right answer
#
# Every answer to a prompt is wrong. Negative-only REINFORCE takes a sample y ~ π and one step z' = z + s(π − e_y), and
# so on. Write for one softmax with logits z, all expectations over y ~ π and exact (no sampling):
#
# - `mean_push(z, s)`: the expected change of z,
# - `drift(z, s)`: the expected change of the entropy.
#
# What is the order of the drift in s? In the softmax of chapter 10 it is negative. Is it always? With two classes and
# logits `(d / 2, -d / 2)` find `turning`, the d > 0 at which its leading term changes its sign.


# %% tags=["solution"]
def mean_push(z: np.ndarray, s: float) -> np.ndarray:
    """E[z' − z]."""
    p = sm.softmax(z)
    return sum(p[y] * s * (p - np.eye(len(z))[y]) for y in range(len(z)))


def drift(z: np.ndarray, s: float) -> float:
    """E[H(z')] − H(z)."""
    p = sm.softmax(z)
    after = [sm.entropy(z + s * (p - np.eye(len(z))[y])) for y in range(len(z))]
    return float(p @ np.array(after) - sm.entropy(z))


turning = 1.543405  # the root of d tanh(d/2) = 1

# %%
z = np.array([2.0, 1.0, 0.0, -1.0, -4.0])
np.testing.assert_allclose(mean_push(z, 0.5), 0.0, atol=1e-15)
ratios = [drift(z, s) / s**2 for s in (1e-1, 1e-2, 1e-3)]
np.testing.assert_allclose(ratios[1:], ratios[2], rtol=0.02)  # of second order
np.testing.assert_array_less(ratios, 0.0)
np.testing.assert_array_equal(objectives.group_advantages(np.zeros(8)), 0.0)  # GRPO: no spread, no push
s = 1e-3
for d, sign in ((turning - 0.01, -1.0), (turning + 0.01, 1.0)):
    np.testing.assert_array_less(0.0, sign * drift(np.array([d / 2.0, -d / 2.0]), s))
likely = sm.softmax(np.array([turning, 0.0]))[0]
print(f"drift over s²: {ratios[2]:.4f} in the softmax of the chapter; of two classes it turns at p = {likely:.3f}")
formula("d tanh(d/2) = 1", turning * np.tanh(turning / 2), 1, rtol=1e-5)
says("d = 1.54, p = .82", turning, likely)

d, h = np.linspace(-3.0, 3.0, 25), 1e-3
p = 1.0 / (1.0 + np.exp(-d))
moves = [np.diff(s * (np.array([q, 1.0 - q]) - np.eye(2)), axis=1).ravel() * -1 for q in p]  # of d, for y = 0 and 1
falls, rises = np.transpose(moves)
variance = p * falls**2 + (1.0 - p) * rises**2
formula("−2s(1 − p)", falls, -2 * s * (1 - p))
formula("by 2sp with", rises, 2 * s * p)
formula("variance 4s²p(1 − p)", variance, 4 * s**2 * p * (1 - p))
entropies = [sm.entropy(np.stack([d + k * h, 0.0 * d], axis=1)) for k in (-1, 0, 1)]
second = np.diff(entropies, n=2, axis=0)[0] / h**2
drifts = np.array([drift(np.array([one / 2.0, -one / 2.0]), s) for one in d])
says("The drift is half of H''(d) times that", np.median(drifts / (second * variance)))
formula("H''(d) = −p(1 − p)(1 − d tanh(d/2))", second, -p * (1 - p) * (1 - d * np.tanh(d / 2)), atol=1e-6)

# %% [markdown] tags=["solution"]
# **Solution.** E_{y~π}[π − e_y] = 0: the first-order push vanishes. But each sample is a step of its own, and entropy
# is not linear: its mean changes by an amount of order s². With two classes, d = z₀ − z₁ moves by −2s(1 − p) with
# probability p and by 2sp with 1 − p, p = σ(d): mean 0, variance 4s²p(1 − p). The drift is half of H''(d) times that.
# From H'(d) = −d p(1 − p) follows
#
#     H''(d) = −p(1 − p)(1 − d tanh(d/2))
#
# which changes its sign where d tanh(d/2) = 1: d = 1.54, p = .82. A model that is less sure than that gets surer on
# average, a surer one less sure: a drift without a signal, both ways. GRPO's advantages are 0 in such a group: nothing
# happens.


# %% tags=["mistake"]
# takes the entropy at the mean logits: the mean of a curved function is not the function of the mean
def mean_push(z, s):
    return 0.0 * z


def drift(z, s):
    return float(sm.entropy(z + mean_push(z, s)) - sm.entropy(z))


turning = 0.0
