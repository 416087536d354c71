# %% [markdown]
# # 1. One step of one softmax
#
# **Question.** A language model's last layer turns logits z into probabilities π = softmax(z). We take one gradient
# step on one example. How does the log-probability of *every* answer change, also of those we did not train on?
#
# Ren & Sutherland (§2, Eq. 3) answer with one decomposition:
#
#     Δ log π(·|x_o) = −η · A(x_o) · K(x_o, x_u) · G(x_u, y_u) + O(η²)
#
# A says how logits become log-probabilities, K how much the updated example x_u moves the observed one x_o, and G what
# the loss wants at x_u. In this chapter x_o = x_u and the model is a linear softmax z = Wx, so K = ‖x‖² I, and
# everything can be computed exactly. Write s = η‖x‖² for the effective step.

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import softmax as sm
from toyld.claims import hold

z = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
p = sm.softmax(z)
print("π =", p.round(4))

# %% [markdown]
# ## G, the residual
#
# For cross-entropy on the label y (that is SFT) the gradient in the logits is
#
#     G = π − e_y                                            (§3.1, Eq. 5)
#
# Every other class is pushed down in proportion to its own probability, and the label is pulled up by what it lacks.
# The entries sum to zero: logits are moved around, not created.

# %%
y = 3
g = sm.residual(z, y)  # in the chapters, hold(id) tries a claim and raises if it does not come out as asserted
print("G =", g.round(4))
np.testing.assert_allclose(g.sum(), 0.0, atol=1e-15)
hold("decomposition.residual-sums-to-zero")

# %% [markdown]
# ## A, the normaliser
#
#     A = ∂ log π / ∂z = I − 1πᵀ                             (§2, below Eq. 3)
#
# A subtracts from every logit change its π-weighted mean. It is a projection, and it knows how peaky the model is:
# ‖A‖² = V − 2 + V‖π‖² (App. C.2).

# %%
a = sm.jacobian(z)
np.testing.assert_allclose(a @ a, a, atol=1e-15)
np.testing.assert_allclose((a**2).sum(), len(z) - 2 + len(z) * (p**2).sum())
hold("decomposition.projection")

# %% [markdown]
# ## The first order, and the whole truth
#
# With K = I the prediction is −s A G. The truth is one softmax away. The error is second order: a tenth of the step
# makes a hundredth of the error.

# %%
steps = np.array([1e-3, 1e-2, 1e-1, 1.0])
errors = []
for s in steps:
    exact = sm.log_softmax(sm.step(z, g, s=s)) - sm.log_softmax(z)
    first_order = -s * a @ g
    errors.append(np.abs(exact - first_order).max())
    print(f"s = {s:5g}   largest |Δ log π| {np.abs(exact).max():8.5f}   error of −sAG {errors[-1]:.2e}")
orders = np.diff(np.log(errors)) / np.diff(np.log(steps))
np.testing.assert_allclose(orders[0], 2.0, atol=0.02)

# %% [markdown]
# ## Positive and negative
#
# A coefficient c scales the residual: c = 1 is SFT, c < 0 is a **negative gradient**, as in the rejected half of DPO,
# in unlearning, or for a bad sample in policy gradients. To first order the two are mirror images. They are not beyond
# it: for every class alike, the two log-ratios sum to the same number, and it is never positive.

# %%
up = sm.log_alpha(z, y, s=0.5, c=1.0)
down = sm.log_alpha(z, y, s=0.5, c=-1.0)
print("log π'/π, label pulled up  :", up.round(4))
print("log π'/π, label pushed down:", down.round(4))
print("their sum                  :", (up + down).round(4))
np.testing.assert_allclose(up + down, (up + down)[0], atol=1e-14)
hold("sft.mirror")

# %% [markdown]
# Pulling up an unlikely label *raises* some of the other classes too: not every class pays for the label's gain. "SFT
# pushes everything else down" is true of logits only, and chapter 13 keeps it as a refuted claim.

# %%
print("classes that gain when class 3 is pulled up:", np.flatnonzero(sm.winners(z, y, s=0.5, c=1.0)))
hold("sft.lowers-everything-else")

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), sharey=True, layout="constrained")
for ax, change, title in zip(axes, (up, down), ("label 3 pulled up", "label 3 pushed down"), strict=True):
    ax.bar(np.arange(len(z)), change, color=["tab:orange" if i == y else "tab:blue" for i in range(len(z))])
    ax.axhline(0, color="black", lw=0.6)
    ax.set(title=title, xlabel="class, from likely to unlikely")
axes[0].set_ylabel("Δ log π (nats)")
figure.savefig("01_one_step.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# Show that no step can raise every class: the π-weighted mean of Δ log π is never positive. By how much is it negative?
#
# **Solution.** Σ π_i log(π'_i/π_i) = −KL(π ‖ π'), and KL ≥ 0 with equality only for π' = π.

# %%
after = sm.softmax(sm.step(z, g, s=0.5))
kl = (p * np.log(p / after)).sum()
np.testing.assert_allclose((p * up).sum(), -kl)
hold("decomposition.mass-leak")
