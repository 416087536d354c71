# %% [markdown]
# # 2. The squeezing effect
#
# **Question.** A negative gradient pushes one answer down. Where does its probability go?
#
# Intuition says: to everybody. The paper (§3.3, App. E) says: to whatever the model already believed most, while the
# rest *loses* too. That is the squeezing effect. Here is the exact rule, first as an example: four answers, and a step
# s = 1 down on the last one, which is nearly impossible already.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import brentq

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold

p = np.array([0.70, 0.20, 0.08, 0.02])
z = np.log(p)
y, s = 3, 1.0  # the penalised class, the step
after = sm.softmax(sm.step(z, sm.residual(z, y, c=-1.0), s=s))
print("before", p)
print("after ", after.round(4))

# %% [markdown]
# The last class went from 2 % to 0.4 %. So at most 2 points were there to be given away, yet the first class gained
# 10.6. The two in the middle, which nobody touched, paid for it: one went from 20 % to 14 %, the other from 8 % to 5 %.

# %%
says("a step s = 1 down on the last one", s)
says("The last class went from 2 % to 0.4 %", p[3], after[3])
points = 100 * p[3], 100 * (after[0] - p[0])
says("at most 2 points were there to be given away, yet the first class gained 10.6", *points)
says("one went from 20 % to 14 %, the other from 8 % to 5 %", p[1], after[1], p[2], after[2])

# %% [markdown]
# ## One formula
#
# A negative step moves the logits by +s(π − e_y): each class *up* by s times its own probability, and y down,
#
#     Δz_i = s π_i   (i ≠ y),       Δz_y = −s(1 − π_y).
#
# So logits that were high already rise most. Normalise (chapter 1):
#
#     log π'_i/π_i = Δz_i − K(s),       K(s) = log Σ_j π_j e^{Δz_j}
#
# e^{K} is a mean of the e^{Δz_j}. A class gains if its own e^{Δz_i} is above that mean, and loses if it is below.

# %%
dz = sm.step(z, sm.residual(z, y, c=-1.0), s=s) - z
formula("Δz_i = s π_i", np.delete(dz, y), s * np.delete(p, y))
formula("Δz_y = −s(1 − π_y)", dz[y], -s * (1 - p[y]))
normalised = dz - np.log(p @ np.exp(dz))
formula("log π'_i/π_i = Δz_i − K(s), K(s) = log Σ_j π_j e^{Δz_j}", np.log(after / p), normalised)

# %% [markdown]
# ## Two guarantees
#
# Two classes are settled at once. Δz_y is the smallest of all: *the penalised class always falls*. And with y* the most
# likely class other than y, Δz_{y*} is the largest of all: *y\* always rises*. That holds for every distribution and
# every step, not only for small ones (Claims 1 and 2 of the paper; `cases` counts what `hold` tried).

# %%
for id in ("squeeze.penalised-falls", "squeeze.runner-up-rises"):
    result = hold(id)
    print(f"{id}: {result.cases:,} cases, none against")

# %% [markdown]
# ## Who wins among the rest: one threshold
#
# Divide K by s, and every class other than y has
#
#     log π'_i/π_i = s (π_i − τ(s)),     τ(s) = K(s)/s = (1/s) log Σ_j π_j e^{s(π_j − 1[j=y])}
#
# One number decides: above τ a class gains, below it loses. Where is τ?
#
# - **Small steps**: τ(0+) = K'(0) = Σ_j π_j(π_j − 1[j=y]) = ‖π‖² − π_y. A peaky model (large ‖π‖²) has a high
#   threshold, an unlikely label does not lower it: few winners. In the example it is 0.52, and the second class, at
#   0.20, loses.
# - **Larger steps**: K is convex and K(0) = 0, so τ = K(s)/s only rises with the step. At s = 1 it is 0.56.
# - **In the end** it reaches π_{y*} from below: the classes are dropped one after the other, until y* alone gains.

# %%
tau = sm.threshold(z, y, s=s)
print(f"τ(1) = {tau:.4f}, τ(0+) = {sm.threshold_limit(z, y):.4f}, winners: {np.flatnonzero(sm.winners(z, y, s=s))}")
label = np.eye(len(p))[y]
formula("log π'_i/π_i = s (π_i − τ(s))", np.log(after / p)[:3], s * (p - tau)[:3])
formula("(1/s) log Σ_j π_j e^{s(π_j − 1[j=y])}", tau, (1 / s) * np.log(p @ np.exp(s * (p - 1 * label))))
formula("‖π‖² − π_y", sm.threshold_limit(z, y), (p**2).sum() - p[y])
says("In the example it is 0.52, and the second class, at 0.20, loses", p @ p - p[y], p[1])
says("At s = 1 it is 0.56", s, tau)
for id in ("squeeze.threshold-law", "squeeze.threshold-limit", "squeeze.threshold-rises", "squeeze.threshold-ceiling"):
    hold(id)

# %% [markdown]
# So "a larger step amplifies every effect" (the paper's Claim 5) is not true of everybody: a class between the first τ
# and π_{y*} gains from a small step and loses from a large one. In the model of the picture below the second class
# does, at 0.30, since τ starts at 0.225 and rises towards 0.45. True is: y* only gains, y only loses, and losers stay
# losers.

# %%
mild = np.array([0.45, 0.30, 0.15, 0.10])
small, large = (sm.log_alpha(np.log(mild), 3, s=step)[1] for step in (0.5, 12.0))
np.testing.assert_array_less(0.0, small)
np.testing.assert_array_less(large, 0.0)
ends = [sm.threshold_limit(np.log(mild), 3), sm.threshold(np.log(mild), 3, s=1e4)]
says("at 0.30, since τ starts at 0.225 and rises towards 0.45", mild[1], *ends)
hold("squeeze.larger-step-amplifies-all")  # refuted
hold("squeeze.runner-up-grows-with-step")

# %% [markdown]
# ## How peaky is peaky?
#
# From a flat distribution everybody but y gains alike: there is no squeezing at all. From a peaky one only y* gains:
# exactly when the second largest of the others is below τ(s). Somewhere between there is a peak that suffices, whatever
# the rest looks like, and no lower one does: once the top class holds 1/√3 ≈ 0.577 and is not the one penalised, every
# other class falls, at every step. The worst case is a second class as likely as the label; exercise: derive it.

# %%
flat = np.zeros(4)
print("flat :", sm.alpha(flat, 0, s=s).round(3))  # α_i = π'_i/π_i
print("peaky:", sm.alpha(z, y, s=s).round(3))


def spare(top):
    """What the second class is short of the threshold if it and the label share what the top leaves."""
    rest = (1 - top) / 2
    return sm.threshold_limit(np.log([top, rest, rest]), 2) - rest


peak = brentq(spare, 0.4, 0.9)
formula("the top class holds 1/√3", peak, 1 / np.sqrt(3))
says("≈ 0.577", peak)
hold("squeeze.uniform-shares-equally")
hold("squeeze.winner-takes-all")
hold("squeeze.peak-takes-all")

# %% [markdown]
# ## A valley lowers the entropy
#
# Does a negative gradient make the model more or less certain? Entropy is H(π) = −Σ π log π, the mean surprise. Pushing
# down a likely class spreads the model out. Pushing down an unlikely one feeds the peak: if the surprise of the label
# is at least the mean surprise, −log π_y ≥ H(π), call it a *valley*, then H falls, whatever the step. That is why a
# negative gradient on an answer that the model would never give makes it more certain, not less. The condition is
# sufficient, not necessary: for some labels that are just too likely for a valley H falls too.

# %%
wide = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
print(f"H = {sm.entropy(wide):.3f}")
for label in range(5):
    change = sm.entropy(sm.step(wide, sm.residual(wide, label, c=-1.0), s=0.5)) - sm.entropy(wide)
    kind = "valley" if sm.valley_depth(wide, label) >= 0 else "      "
    print(f"push down class {label}, surprise {-sm.log_softmax(wide)[label]:.3f} {kind}  ΔH = {change:+.4f}")
hold("entropy.valley")
hold("entropy.only-valleys-lower-it")  # refuted

# %% [markdown]
# Note what was assumed: one softmax and K = ‖x‖² I, so that every class is coupled to itself alone and all alike. In a
# network neither guarantee for y* need hold (chapter 5), and in one softmax a preference *pair* does not squeeze
# (chapter 4).

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: at any step of one softmax: `squeeze.penalised-falls`, `squeeze.runner-up-rises`,
#   `squeeze.threshold-law`, `squeeze.threshold-rises`, `squeeze.threshold-ceiling`,
#   `squeeze.runner-up-grows-with-step`, `squeeze.uniform-shares-equally`, `squeeze.winner-takes-all`,
#   `squeeze.peak-takes-all`, `entropy.valley`.
# - **First order**: τ = ‖π‖² − π_y, with its remainder in `squeeze.threshold-limit`.
# - **Measured**: nothing here.
# - **Refuted or open**: `squeeze.larger-step-amplifies-all`, `entropy.only-valleys-lower-it`.

# %% [markdown]
# ## Picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", width_ratios=(1, 1.5))
left.bar(np.arange(4) - 0.2, p, width=0.4, color="lightgray", label="before")
left.bar(np.arange(4) + 0.2, after, width=0.4, color="tab:blue", label="after")
left.axhline(tau, color="black", lw=1, label="τ(s)")
left.set(xlabel="class (the last is pushed down)", ylabel="probability", title="One rare class pushed down")
left.set_xticks(range(4))
left.legend(fontsize=8)
steps = np.linspace(0.01, 12, 200)
right.plot(steps, [float(sm.threshold(np.log(mild), 3, s=step)) for step in steps], color="black", label="τ(s)")
for i, style in enumerate(("-", "--", ":")):
    right.axhline(mild[i], ls=style, color="tab:blue", lw=1)
    right.text(steps[-1], mild[i], f" class {i}", va="center")
right.set(xlabel="step s", title="A class gains while τ(s) is below it", xlim=(0, 12))
right.legend(loc="lower right")
figure.savefig("02_squeezing.png")
plt.close(figure)

# %% [markdown]
# ## What next
#
# Exercises: `theory/solutions/02_squeezing.py` (the step at which a winner turns loser, the constant of the peak, what
# entropy does to first order).
#
# Peakier models have a higher threshold, rarer labels do not lower it. The paper makes two trends of that, and
# practitioners tell them as stories: the peakier the model and the rarer the rejected answer, the worse. In which
# measure are they true? Chapter 3.
