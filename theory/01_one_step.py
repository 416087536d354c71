# %% [markdown]
# # 1. One step of one softmax
#
# **Question.** The last layer of a language model turns logits z, one number for each of V classes (its tokens), into
# probabilities π = softmax(z), that is π_i = e^{z_i}/Σ_j e^{z_j}. We take one gradient step on one example (x_u, y_u):
# an input and the answer that we teach. How does the log-probability of *every* answer change, at any input x_o that we
# care to observe, also of the answers that we did not train on?
#
# Ren & Sutherland (§2, Eq. 3) answer with one decomposition:
#
#     Δ log π(·|x_o) = −η · A(x_o) · K(x_o, x_u) · G(x_u, y_u) + O(η²)
#
# It is the chain rule, read from right to left:
#
# - **G** = ∂L/∂z is what the loss asks of the logits at x_u;
# - gradient descent changes the parameters θ by −η ∇_θ z(x_u)ᵀ G, and that moves the logits at x_o by −η K G, where
#   **K** = ∇_θ z(x_o) ∇_θ z(x_u)ᵀ says how much a wish about x_u is heard at x_o;
# - **A** = ∂ log π/∂z turns a change of logits into a change of log-probabilities.
#
# Chapters 1 to 4 look at one input, x_o = x_u = x, and at a linear softmax z = Wx. There ∂L/∂W = G xᵀ, so that a step
# moves the logits by exactly −η G xᵀx: K = ‖x‖² I, and nothing is left to approximate but the softmax itself. Write
# s = η‖x‖² for the effective step:
#
#     z' = z − s G

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold

z = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
p = sm.softmax(z)
print("π =", p.round(4))

# %% [markdown]
# ## G, the residual
#
# For cross-entropy on the label y (that is SFT) the loss is L = −log π_y = −z_y + log Σ_j e^{z_j}. Its derivative in
# z_i is π_i, less one for the label itself:
#
#     G = π − e_y                                            (§3.1, Eq. 5)
#
# Descent goes along −G: every other class is pushed down in proportion to its own probability, and the label is pulled
# up by what it lacks, 1 − π_y. The entries sum to zero: logits are moved around, not created.
#
# A word on the code of this book: `hold(id)` tries a claim of the registry on some hundreds of cases and raises if it
# does not come out as asserted; `says` and `formula` hold the numbers and formulas of the text to what the code gives.

# %%
y = 3
g = sm.residual(z, y)
print("G =", g.round(4))
label = np.eye(len(z))[y]
formula("G = π − e_y", g, p - label)
formula("z' = z − s G", sm.step(z, g, s=p[0]), z - p[0] * g)
hold("decomposition.residual-sums-to-zero")

# %% [markdown]
# ## A, the normaliser
#
# Since log π_i = z_i − log Σ_j e^{z_j},
#
#     A = ∂ log π/∂z = I − 1πᵀ                               (§2, below Eq. 3)
#
# A subtracts from every logit change its π-weighted mean: (A d)_i = d_i − Σ_j π_j d_j. So a common shift of all logits
# does nothing (A1 = 0), to subtract the mean twice is to subtract it once (A² = A: a projection), and to first order
# the π-weighted mean of Δ log π is zero (πᵀA = 0): what some classes gain, others lose.
#
# How large A is depends on how peaky the model is: ‖A‖² = V − 2 + V‖π‖² (App. C.2, the sum of its squared entries).
# Remember ‖π‖² = Σ_i π_i², the chance that two draws from the model agree: 1/V for a flat model, nearly 1 for a certain
# one, here 0.47. It will decide who wins in chapter 2.

# %%
a = sm.jacobian(z)
np.testing.assert_allclose(a @ a, a, atol=1e-15)
np.testing.assert_allclose(p @ a, 0.0, atol=1e-15)
nudged = z + 1e-6 * np.eye(len(z)), z - 1e-6 * np.eye(len(z))  # one logit at a time
slopes = (sm.log_softmax(nudged[0]) - sm.log_softmax(nudged[1])).T / 2e-6
formula("A = ∂ log π/∂z = I − 1πᵀ", a, slopes, np.eye(len(z)) - 1 * p, atol=1e-8)
formula("‖A‖² = V − 2 + V‖π‖²", (a**2).sum(), len(z) - 2 + len(z) * (p**2).sum())
says("nearly 1 for a certain one, here 0.47", sm.softmax(20 * z) @ sm.softmax(20 * z), p @ p)
hold("decomposition.projection")

# %% [markdown]
# ## The first order, and the whole truth
#
# With K = I the prediction is −s A G, and the truth is one softmax away. At s = 0.1 the largest change is 0.14 nats and
# the prediction is off by 0.0006; at s = 1 it is 1.33 nats and off by 0.074. The error is of second order: a tenth of
# the step has a hundredth of the error.

# %%
steps = np.array([1e-3, 1e-2, 1e-1, 1.0])
changes, errors = [], []
for s in steps:
    exact = sm.log_softmax(sm.step(z, g, s=s)) - sm.log_softmax(z)
    error = exact - -s * a @ g
    changes.append(np.abs(exact).max())
    errors.append(np.abs(error).max())
    print(f"s = {s:5g}   largest |Δ log π| {changes[-1]:8.5f}   errors of −sAG {error.round(8)}")
says("At s = 0.1 the largest change is 0.14 nats and the prediction is off by 0.0006", steps[2], changes[2], errors[2])
says("at s = 1 it is 1.33 nats and off by 0.074", steps[3], changes[3], errors[3])
orders = np.diff(np.log(errors)) / np.diff(np.log(steps))
np.testing.assert_allclose(orders[0], 2.0, atol=0.02)
parts = steps[1] / steps[2], errors[1] / errors[2]
says("a tenth of the step has a hundredth of the error", *parts)

# %% [markdown]
# Look at the errors: in each row they are one and the same number, and never positive. With d = −sG the truth is
#
#     log π'_i/π_i = d_i − log Σ_j π_j e^{d_j}
#
# and first order is d_i − Σ_j π_j d_j. What A leaves out, ρ = log Σ_j π_j e^{d_j} − Σ_j π_j d_j, does not depend on i:
#
#     Δ log π = −s A G − ρ,       0 ≤ ρ ≤ s²/2
#
# (ρ ≥ 0 since the logarithm of a mean is at least the mean of the logarithms. ρ ≤ s²/2 is an exercise: an eighth of the
# squared range of d, which is at most twice s.) So first order never mistakes who gains more than whom. It may mistake
# who gains: a class that it promises less than ρ loses. And nobody gains for free: in the π-weighted mean Δ log π = −ρ.
# *No step of any loss can raise all classes at once*, and the mean of what they lose is a divergence, Σ_i π_i
# log(π'_i/π_i) = −KL(π‖π').

# %%
kl = (p * np.log(p / sm.softmax(sm.step(z, g, s=1.0)))).sum()
d = -s * g  # of the last step
rho = np.log(p @ np.exp(d)) - p @ d
formula("log π'_i/π_i = d_i − log Σ_j π_j e^{d_j}", exact, d - np.log(p @ np.exp(d)))
formula("Δ log π = −s A G − ρ", exact, -s * a @ g - rho)
formula("0 ≤ ρ ≤ s²/2", 0, errors, steps**2 / 2)
formula("ρ ≤ s²/2", rho, s**2 / 2)
formula("Σ_i π_i log(π'_i/π_i) = −KL(π‖π')", p @ exact, -kl)
widest = np.ptp(sm.residual(np.array([-20.0, 20.0]), 0))  # a sure model, and another label
share = np.linspace(0.0, 1.0, 101)
variance = (share * (1 - share)).max()  # of a range of one
says("an eighth of the squared range of d, which is at most twice s", variance / 2, widest)
hold("decomposition.remainder")
hold("decomposition.mass-leak")

# %% [markdown]
# ## Positive and negative
#
# A coefficient c scales the residual: c = 1 is SFT, c < 0 is a **negative gradient**, as in the rejected side of DPO,
# in unlearning, or for a bad sample in policy gradients. To first order the two are mirror images. Beyond it they are
# not: add up what a step up and a step down do, and ±d cancel, while the two ρ add. Every class alike is left with the
# same number, never positive; at s = 0.5 here it is −0.028.

# %%
s = 0.5
up = sm.log_alpha(z, y, s=s, c=1.0)  # α_i = π'_i/π_i
down = sm.log_alpha(z, y, s=s, c=-1.0)
print("log π'/π, label pulled up  :", up.round(4))
print("log π'/π, label pushed down:", down.round(4))
print("their sum                  :", (up + down).round(4))
np.testing.assert_allclose(up + down, (up + down)[0], atol=1e-14)
says("at s = 0.5 here it is −0.028", s, (up + down)[0])
hold("sft.mirror")

# %% [markdown]
# Look at the first row again. Pulling up an unlikely label *raises* three of the four other classes: only the top class
# pays for all of it. "SFT pushes everything else down" is true of logits; after normalising it is true of the classes
# that are pushed harder than the average. Chapter 13 keeps the sentence as a refuted claim.

# %%
print("classes that gain when the label is pulled up:", np.flatnonzero(sm.winners(z, y, s=s, c=1.0)))
np.testing.assert_array_equal(sm.winners(z, y, s=s, c=1.0), [False, True, True, True, True])
says("*raises* three of the four other classes", (np.delete(up, y) > 0.0).mean())
hold("sft.lowers-everything-else")

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `decomposition.residual-sums-to-zero`, `decomposition.projection`, `decomposition.mass-leak`,
#   `sft.mirror`: for one softmax, at any step.
# - **First order**: Δ log π = −s A G, with its remainder ρ in `decomposition.remainder`.
# - **Measured**: nothing here.
# - **Refuted or open**: `sft.lowers-everything-else`.

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True, layout="constrained")
colours = ["tab:orange" if i == y else "tab:blue" for i in range(len(z))]
for ax, change, c, title in zip(axes, (up, down), (1.0, -1.0), ("pulled up", "pushed down"), strict=True):
    ax.bar(np.arange(len(z)), change, color=colours)
    ax.plot(np.arange(len(z)), -s * c * a @ g, "k_", ms=16, label="first order")
    ax.axhline(0, color="black", lw=0.6)
    ax.set(title=f"label (orange) {title}", xticks=range(5), xticklabels=[f"{x:.2f}" for x in p])
    ax.set_xlabel("class, by its probability π")
axes[0].set_ylabel("Δ log π (nats), s = 0.5")
axes[1].legend()
figure.savefig("01_one_step.png")
plt.close(figure)

# %% [markdown]
# ## What next
#
# Exercises: `theory/solutions/01_one_step.py` (what nobody can gain, how far first order may be off, whom SFT lifts).
#
# A negative gradient took probability from the label. Probability does not vanish: who gets it? That is chapter 2.
