# %% [markdown]
# # Exercises to chapter 4
#
# Every loss of log-probabilities has the residual G = c (π − e_y) with c = −∂L/∂ log π_y; c < 0 pushes y down. DPO:
# L = −log a, a = σ(βh), h the margin, c₊ = −c₋ = β(1 − a).

# %%
import numpy as np
import torch

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold
from toyld.objectives import get, pair_batch

rng = np.random.default_rng(0)
beta = 0.1
dpo = get("dpo", beta=beta)


def pairs(margins):
    """Pairs with these margins h: y⁺ is h above its reference, y⁻ at it."""
    level = np.full(len(margins), -2.0)
    return pair_batch(level, level, level - margins, level)


# %% [markdown]
# ## Exercise 1: read the push off the loss
#
# Your DPO log shows a loss of 0.05 for one pair. How hard is its y⁻ still being pushed, as a share of the push at the
# start, where h = 0? And if 0.05 is the *mean* over many pairs: is the mean push then the same, larger, or smaller?
#
# Write `push_share(loss)`, |c₋| over its value at h = 0, from the loss of one pair. And `spread`: −1, 0 or 1, the sign
# of (mean push) − (push of a pair with the mean loss), for pairs whose losses differ.


# %% tags=["solution"]
def push_share(loss):
    """|c₋| of DPO over its value at the start, from the loss of the pair."""
    return 2 * (1 - np.exp(-loss))


spread = -1

# %%
margins = rng.normal(20, 30, size=1000)
batch, start = pairs(margins), pairs(np.zeros(1))
losses, pushes = dpo.loss(batch), dpo.push(batch).rejected[:, 0] / dpo.push(start).rejected[0, 0]
np.testing.assert_allclose(push_share(losses), pushes, rtol=1e-9)
np.testing.assert_equal(spread, np.sign(pushes.mean() - push_share(losses.mean())))
one = 0.05
settled = pairs(np.array([-np.log(np.expm1(one)) / beta]))  # the h at which −log σ(βh) is that
share = (dpo.push(settled).rejected / dpo.push(start).rejected)[0, 0]
print(f"loss {dpo.loss(settled)[0]:.4f}: push {push_share(one):.4f} of its start")
np.testing.assert_allclose([dpo.loss(settled)[0], push_share(one)], [one, share])
tenth = np.append(np.zeros(9), 10 * one)  # nine pairs settled, all the loss in the tenth
says("a loss of 0.05 for one pair", one)
says("if 0.05 is the *mean* over many pairs", tenth.mean())
says("At the start a is one half", np.exp(-dpo.loss(start)[0]))
says("At L = 0.05 that is 0.098, a tenth", dpo.loss(settled)[0], share, share)
says("Let nine pairs in ten be settled", (tenth == 0).mean())
mean_share = push_share(tenth).mean()
formula("2(1 − e^{−L})", pushes, 2 * (1 - np.exp(-losses)))
says("the tenth has L = 0.5 and the mean is 0.05, the mean share is 0.079", tenth[-1], tenth.mean(), mean_share)
says("which is pushed at 0.79 of its start", push_share(tenth[-1]))
hold("residual.dpo-never-reverses")

# %% [markdown] tags=["solution"]
# **Solution.** L = −log a, so a = e^{−L} and |c₋| = β(1 − e^{−L}). At the start a is one half: the share of the start
# is 2(1 − e^{−L}). At L = 0.05 that is 0.098, a tenth: DPO's push can be read off its loss, pair by pair.
#
# Not so from a mean. 1 − e^{−L} is concave in L, so by Jensen the mean push is at most that of the mean loss: a bound,
# not a value. And it hides who is pushed. Let nine pairs in ten be settled, with losses near zero. If the tenth has L =
# 0.5 and the mean is 0.05, the mean share is 0.079, all of it on one answer, which is pushed at 0.79 of its start.


# %% tags=["mistake"]
# The loss was taken for the push: small loss, proportionally small push; and then a mean is a mean.
def push_share(loss):
    return loss / np.log(2)


spread = 0

# %% [markdown]
# ## Exercise 2: a slip in a derivative
#
# Unlikelihood training lowers a rejected answer by L = −log(1 − π_y). Derive c. How large is the whole push on the
# logits, ‖G‖₁ = Σ_i |G_i|, and how does it compare with gradient ascent's (L = log π_y, c = −1) for likely and for
# unlikely answers? Where are the two equally hard?
#
# Write `unlikelihood_push(logp)`, the c at log π_y = logp, `size(p_y)` and `ascent_size(p_y)`, the ‖G‖₁ of the two at
# π_y = p_y, and `equal_at`, the π_y where they agree.


# %% tags=["solution"]
def unlikelihood_push(logp):
    """c = −∂L/∂ log π_y of L = −log(1 − π_y)."""
    return np.exp(logp) / np.expm1(logp)


def size(p_y):
    """‖G‖₁ of unlikelihood."""
    return 2 * p_y


def ascent_size(p_y):
    """‖G‖₁ of gradient ascent."""
    return 2 * (1 - p_y)


equal_at = 0.5

# %%
tried = np.array([0.9, 0.5, 0.1, 1e-3, 1e-6])
own, ascent = [], []
for p_y in tried:
    z = torch.tensor(np.log([p_y, *(np.array([0.6, 0.3, 0.1]) * (1 - p_y))]), requires_grad=True)
    logp = torch.log_softmax(z, 0)[0]
    (g,) = torch.autograd.grad(-torch.log1p(-logp.exp()), z, retain_graph=True)
    c = unlikelihood_push(float(logp.detach()))
    np.testing.assert_allclose(g, sm.residual(z.detach().numpy(), 0, c=c), rtol=1e-6, atol=1e-12)
    own.append(float(g.abs().sum()))
    ascent.append(float(torch.autograd.grad(logp, z)[0].abs().sum()))
    print(f"π_y = {p_y:g}: ‖G‖₁ of unlikelihood {own[-1]:.2g}, of gradient ascent {ascent[-1]:.2g}")
np.testing.assert_allclose(size(tried), own, rtol=1e-6)
np.testing.assert_allclose(ascent_size(tried), ascent, rtol=1e-6)
np.testing.assert_allclose(size(equal_at), ascent_size(equal_at))
formula("c = −π_y/(1 − π_y)", unlikelihood_push(np.log(tried)), -tried / (1 - tried))
formula("2π_y for unlikelihood", own, 2 * tried, rtol=1e-6)
formula("2(1 − π_y) for gradient ascent", ascent, 2 * (1 - tried), rtol=1e-6)
says("They agree at π_y = 1/2", tried[np.isclose(own, ascent)][0])
hold("unlearning.unlikelihood-residual")
hold("unlearning.unlikelihood-logarithmic")

# %% [markdown] tags=["solution"]
# **Solution.** c is a derivative in log π_y, not in π_y: ∂/∂ log π_y = π_y ∂/∂π_y. The derivative of −log(1 − π_y) in
# π_y is 1/(1 − π_y), so
#
#     c = −π_y/(1 − π_y)
#
# The entries of π − e_y are 1 − π_y for the label, up to sign, and sum to the same for all others. So ‖G‖₁ is 2π_y for
# unlikelihood and 2(1 − π_y) for gradient ascent. They agree at π_y = 1/2, and are mirror images: unlikelihood pushes
# what is likely and leaves a valley alone; gradient ascent pushes hardest where there is nothing left to push.


# %% tags=["mistake"]
# The derivative was taken in π_y instead of log π_y: a factor π_y is missing, and with it all mildness in a valley.
def unlikelihood_push(logp):
    return 1 / np.expm1(logp)


def size(p_y):
    return np.full_like(p_y, 2.0)


def ascent_size(p_y):
    return 2 * (1 - p_y)


equal_at = 0.0

# %% [markdown]
# ## Exercise 3: who rises with the pair?
#
# y⁺ and y⁻ are answers at the same context. For DPO (c₊ = −c₋) z' = z + s(e₊ − e₋). Derive the factor π'_j/π_j of all
# classes j outside the pair. When do they rise? Predict first: y⁻ lies in a valley of a peaky model, as in chapter 2;
# does y* gain?
#
# Then break the premise c₊ = −c₋: let the push on y⁻ be k times as hard as the pull on y⁺, z' = z − s[(π − e₊) − k(π −
# e₋)], and find a k and a model where y⁺ itself *falls*.
#
# Write `rest_factor(p, plus, minus, s)`; `star_gains`, True or False; `p_found` (probabilities; class 0 is y⁺, class 1
# is y⁻) and `k_found`.


# %% tags=["solution"]
def rest_factor(p, plus, minus, s):
    """π'_j/π_j of every class j outside the pair, one number."""
    return 1 / (1 + p[plus] * np.expm1(s) + p[minus] * np.expm1(-s))


star_gains = False
p_found, k_found = np.array([0.01, 0.01, 0.98]), 3.0

# %%
for _ in range(50):
    p, s = rng.dirichlet(np.ones(5)), rng.uniform(0.01, 3)
    factors = sm.softmax(np.log(p) + s * np.array([1, -1, 0, 0, 0])) / p
    np.testing.assert_allclose(rest_factor(p, 0, 1, s), factors[2:], rtol=1e-9)
    np.testing.assert_equal(bool(factors[2] > 1), bool(p[1] > p[0] * np.exp(s)))
p = np.array([0.70, 0.20, 0.08, 0.02])  # y⁺ = class 2, y⁻ = class 3
after = sm.softmax(sm.step(np.log(p), sm.pair_residual(np.log(p), 2, 3), s=1.0))
np.testing.assert_equal(star_gains, bool(after[0] > p[0]))
p_found = np.asarray(p_found, dtype=float)
np.testing.assert_allclose(p_found.sum(), 1.0)
z = np.log(p_found)
change = sm.log_softmax(sm.step(z, sm.pair_residual(z, 0, 1, c_minus=-k_found), s=0.1)) - sm.log_softmax(z)
np.testing.assert_array_less(change[0], 0.0)
np.testing.assert_array_less(0.0, k_found)
print(f"y* goes from {p[0]:.3f} to {after[0]:.3f}; with k = {k_found:g}, Δ log π(y⁺) = {change[0]:+.4f}")
says("At y* with 0.98 and k = 3", p_found.max(), k_found)
says("it is 1.96 for y* and 1.02 for y⁺", (k_found - 1) * p_found[2], 1 + (k_found - 1) * p_found[0])
for id in ("pair.rest-moves-together", "pair.winner-rises", "residual.balanced"):
    hold(id)

# %% [markdown] tags=["solution"]
# **Solution.** Only two logits move, so π'_j/π_j = 1/Z for all others, with
#
#     Z = Σ_j π_j e^{Δz_j} = 1 + π₊(e^s − 1) + π₋(e^{−s} − 1)
#
# They rise if Z < 1, that is π₊(e^s − 1) < π₋(1 − e^{−s}), and dividing by e^s − 1: if π₋ > π₊ e^s. The pair exchanges
# mass between itself; the rest gains what y⁻ loses beyond the gain of y⁺. A y⁻ in a valley has nothing to give, so y*
# *falls*, as all the rest does: no squeezing.
#
# With k the π does not cancel: Δz_j = s(k − 1)π_j for the others, s(1 + (k − 1)π₊) for y⁺, so that for k > 1 squeezing
# is back. At y* with 0.98 and k = 3, Δz/s: it is 1.96 for y* and 1.02 for y⁺, which loses against the mean.
# (`residual.balanced` counts the losses without c₊ = −c₋; `pair.winner-rises` says which k are safe.)


# %% tags=["mistake"]
# Chapter 2 was applied to y⁻ alone, as if the pull on y⁺ did not cancel the π: the top gains, and nothing can lower y⁺.
def rest_factor(p, plus, minus, s):
    return sm.alpha(np.log(p), minus, s=s)[np.argmax(p)]


star_gains = True
p_found, k_found = np.array([0.3, 0.3, 0.4]), 1.0
