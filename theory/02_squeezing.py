# %% [markdown]
# # 2. The squeezing effect
#
# **Question.** A negative gradient pushes one answer down. Where does its probability go?
#
# Intuition says: to everybody. The paper (§3.3, App. E) says: to whatever the model already believed most, while the
# rest *loses* too. That is the squeezing effect. Here is the exact rule.

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import softmax as sm
from toyld.claims import hold

p = np.array([0.70, 0.20, 0.08, 0.02])
z = np.log(p)
y = 3  # the penalised class, nearly impossible already
after = sm.softmax(sm.step(z, sm.residual(z, y, c=-1.0), s=1.0))
print("before", p)
print("after ", after.round(4))
np.testing.assert_array_equal(after.round(4), [0.8064, 0.1397, 0.0496, 0.0043])

# %% [markdown]
# Only 2 points could be taken from class 3, yet class 0 gained 11: classes 1 and 2, which nobody touched, paid for it.
#
# ## Two guarantees
#
# The penalised class always falls, and y*, the most likely of the others, always rises: for every distribution and
# every step, not only small ones (Claims 1 and 2).

# %%
for id in ("squeeze.penalised-falls", "squeeze.runner-up-rises"):
    result = hold(id)
    print(f"{id}: {result.cases:,} cases, none against")

# %% [markdown]
# ## Who wins: one threshold
#
# Since Δz = s(π − e_y), every class other than y has
#
#     log π'_i/π_i = s (π_i − τ(s)),     τ(s) = (1/s) log Σ_j π_j e^{s(π_j − 1[j=y])}
#
# One number decides: above τ a class gains, below it loses. For small steps τ = ‖π‖² − π_y; it only rises with the
# step, up to π_{y*}, so that in the end y* alone is left.

# %%
tau = sm.threshold(z, y, s=1.0)
print(f"τ(1) = {tau:.4f}, τ(0+) = {sm.threshold_limit(z, y):.4f}, winners: {np.flatnonzero(sm.winners(z, y, s=1.0))}")
np.testing.assert_allclose(np.log(after / p)[:3], 1.0 * (p - tau)[:3])
for id in ("squeeze.threshold-law", "squeeze.threshold-limit", "squeeze.threshold-rises", "squeeze.threshold-ceiling"):
    hold(id)

# %% [markdown]
# ## How peaky is peaky?
#
# From a flat distribution everybody gains alike. From a peaky one only y* gains: exactly when the second largest of the
# others is below τ(s). There is a number that suffices, and no smaller one does: once the top class holds
# 1/√3 ≈ 0.577 and is not the one penalised, every other class falls, at every step.

# %%
flat = np.zeros(4)
print("flat :", sm.alpha(flat, 0, s=1.0).round(3))
print("peaky:", sm.alpha(z, y, s=1.0).round(3))
hold("squeeze.uniform-shares-equally")
hold("squeeze.winner-takes-all")
hold("squeeze.peak-takes-all")

# %% [markdown]
# ## A valley lowers the entropy
#
# Pushing down a likely class spreads the model out. Pushing down an unlikely one does the opposite: if the surprise of
# the label is at least the entropy, −log π_y ≥ H(π), a *valley*, then H falls, whatever the step. That is why a
# negative gradient on an answer that the model would never give makes it more certain, not less. The condition is
# sufficient, not necessary: just above a valley H may fall too.

# %%
wide = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
for label in range(5):
    change = sm.entropy(sm.step(wide, sm.residual(wide, label, c=-1.0), s=0.5)) - sm.entropy(wide)
    kind = "valley" if sm.valley_depth(wide, label) >= 0 else "      "
    print(f"push down class {label} (π = {sm.softmax(wide)[label]:.3f}) {kind}  ΔH = {change:+.4f}")
hold("entropy.valley")
hold("entropy.only-valleys-lower-it")

# %% [markdown]
# ## Picture

# %%
steps = np.linspace(0.01, 12, 200)
mild = np.log([0.45, 0.30, 0.15, 0.10])
figure, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
ax.plot(steps, [float(sm.threshold(mild, 3, s=s)) for s in steps], color="black", label="τ(s)")
for i, style in enumerate(("-", "--", ":")):
    ax.axhline(np.exp(mild[i]), ls=style, color="tab:blue", lw=1)
    ax.text(steps[-1], np.exp(mild[i]), f" class {i}", va="center")
ax.set(xlabel="step s", ylabel="probability", title="A class gains while τ(s) is below it", xlim=(0, 12))
ax.legend()
figure.savefig("02_squeezing.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# "A larger step amplifies every effect" (Claim 5). Find a class in the picture's model that gains at a small step and
# loses at a large one.
#
# **Solution.** Class 1, with π = 0.30: τ starts at ‖π‖² − π_3 = 0.225 and passes 0.30 on its way to 0.45. The claim as
# worded is refuted; what is true is that y* only gains, y only loses, and losers stay losers.

# %%
small, large = (sm.log_alpha(mild, 3, s=s)[1] for s in (0.5, 12.0))
np.testing.assert_array_less(0.0, small)
np.testing.assert_array_less(large, 0.0)
hold("squeeze.larger-step-amplifies-all")
hold("squeeze.runner-up-grows-with-step")
