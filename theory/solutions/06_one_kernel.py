# %% [markdown]
# # Exercises to chapter 6
#
# Worlds of one or two contexts are enough to see everything that chapter 6 is about. `world` makes one: logits of its
# contexts, their kernel S, and pairs of single tokens, each as (context, token).

# %%
import numpy as np

from toyld import contexts, objectives
from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold
from toyld.contexts import Gram, Responses, World


def world(logits, kernel, **sides):
    """A world of contexts; sides: kind = [(context, token), …], one single-token response a prompt."""
    kinds = {}
    for kind, rows in sides.items():
        context, token = np.array(rows).T[:, None, :, None]
        kinds[kind] = Responses(context, token, np.ones_like(context, bool))
    logits = np.asarray(logits, float)
    return World(logits[None], Gram(np.asarray(kernel, float)[None]), kinds, len(logits), (0,))


# %% [markdown]
# ## Exercise 1: two lessons that disagree
#
# Two pairs share a prompt: a ≻ b, and c ≻ a. Five tokens, one context with S = 1, a uniform start. The kernel has
# nothing off its diagonal, so there is no cross-talk. What becomes of log π(a) under DPO? Its loss is the mean over the
# two pairs.
#
# Write `torn(updates, lr, beta)`: log π(a) after so many updates, from a recursion for one number; no softmax is needed
# before the end. Does it converge?

# %% tags=["solution"]


def torn(updates, lr, beta):
    """log π(a) after `updates` of DPO at rate `lr` on a ≻ b and c ≻ a."""
    x = 0.0  # the logit of c; that of b is −x, that of a stays 0
    for _ in range(updates):
        x += lr / 2.0 * beta / (1.0 + np.exp(beta * x))
    return -np.log(3.0 + 2.0 * np.cosh(x))


# %%
a, b, c = 0, 1, 2
one = world(np.zeros((1, 5)), [[1.0]], chosen=[(0, a), (0, c)], rejected=[(0, b), (0, a)])
dpo = objectives.get("dpo", beta=0.5)
run = contexts.train(one, dpo, lr=8.0, steps=150, rejected="rejected", at=(0, 1, 10, 150))
for updates, got in zip(run.steps, run.value("logp", "chosen")[:, 0, 0], strict=True):
    np.testing.assert_allclose(torn(updates, 8.0, 0.5), got, rtol=1e-10)
hold("kernel.conflicting-labels")
start, first, *_, end = (torn(updates, 8.0, 0.5) for updates in run.steps)
print(f"log π(a): {start:.2f} → {end:.2f} in {run.steps[-1]} updates")
says("in 150 updates from −1.61 to −10.0", run.steps[-1], start, end)
says("each at half the rate", np.arccosh((np.exp(-first) - 3) / 2) / (8.0 * 0.5 / 2))  # x is ηβ/2 at the full rate
z = run.state.logits[0, 0]
formula("3 + e^{−x} + e^{x}", np.exp(z).sum(), 3 + np.exp(-z[c]) + np.exp(z[c]))
formula("−log(3 + 2 cosh x)", end, -np.log(3 + 2 * np.cosh(z[c])))

# %% [markdown] tags=["solution"]
# **Solution.** The first pair pushes a up and b down by k₁ = β σ(−β (z_a − z_b)), the second c up and a down by
# k₂ = β σ(−β (z_c − z_a)), each at half the rate, since the loss is their mean. At the start k₁ = k₂. Then z_a has not
# moved and z_c = −z_b = x, so that both margins are x and k₁ = k₂ again, and so on: z_a stays 0 for ever, and
# x ← x + ½ η β σ(−βx). The partition sum is that of two untouched tokens, of a, and of b and c: 3 + e^{−x} + e^{x}. So
# log π(a) = −log(3 + 2 cosh x). The push never becomes 0, x grows without end (like a logarithm), and log π(a) → −∞: in
# 150 updates from −1.61 to −10.0. Labels that disagree displace an answer without any cross-talk; that is why
# `kernel.no-cross-talk` needs contexts that belong to one pair each.

# %% tags=["mistake"]
# Equal pushes up and down leave the logit of a where it is; that is not yet log π(a), for c grows beside it.


def torn(updates, lr, beta):
    return -np.log(5.0)


# %% [markdown]
# ## Exercise 2: how alike must two contexts be?
#
# A single pair: y⁺ is one token at context 0, y⁻ one token at context 1; S has 1 on its diagonal and s off it. DPO's
# first update moves log π(y⁺). Its own push lifts it; the push on y⁻ arrives with weight s. Find the s above which y⁺
# falls, to first order in the rate, for logits `up` (of context 0) and `down` (of context 1).
#
# Write `critical(up, down, plus, minus)`, infinity where no s > 0 makes y⁺ fall. Before you compute: can y⁺ fall though
# the two answers are *different* tokens? Say which tokens would have to be likely at the two contexts.

# %% tags=["solution"]


def critical(up, down, plus, minus):
    """The coupling s above which the first update of DPO lowers log π(y⁺)."""
    wish = np.eye(len(up))[plus] - sm.softmax(np.asarray(up))
    push = np.eye(len(down))[minus] - sm.softmax(np.asarray(down))
    own, theirs = wish @ wish, wish @ push
    return own / theirs if theirs > 0.0 else np.inf


# %%
cases = {
    "the same token": ([2.0, 0.0, 0.0], [0.0, 0.0, 0.0], 0, 0),
    "other tokens, both contexts believe in a third": ([2.0, -2.0, 1.0], [-3.0, 0.0, 4.0], 0, 1),
    "other tokens, each the likely one": ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], 0, 1),
}
for words, (up, down, plus, minus) in cases.items():
    s = critical(up, down, plus, minus)
    for near, falls in [(0.98 * s, False), (1.02 * s, True)] if np.isfinite(s) else [(0.99, False)]:
        np.testing.assert_array_less(near, 1.0)  # S must stay positive semi-definite
        one = world([up, down], [[1.0, near], [near, 1.0]], chosen=[(0, plus)], rejected=[(1, minus)])
        path = contexts.train(one, dpo, lr=1e-3, steps=1, rejected="rejected").value("logp", "chosen")[:, 0, 0]
        np.testing.assert_equal(bool(path[-1] < path[0]), falls, err_msg=f"{words}, s = {near}")
    print(f"{words}: y⁺ falls above s = {s:.3f}")

# %% [markdown] tags=["solution"]
# **Solution.** With g₊ = e_{y⁺} − π_0, g₋ = e_{y⁻} − π_1 and the push k on both, the update moves z_0 by
# ηk (g₊ − s g₋), and log π(y⁺) to first order by the inner product of that with g₊: ηk (‖g₊‖² − s ⟨g₊, g₋⟩). So
# s* = ‖g₊‖² / ⟨g₊, g₋⟩, if that is positive. (‖g₊‖² shrinks as y⁺ is learnt: what was safe before SFT need not be safe
# after it.) For different tokens
#
#     ⟨g₊, g₋⟩ = −π_1(y⁺) − π_0(y⁻) + ⟨π_0, π_1⟩,
#
# positive as soon as both contexts believe in the same third token and not in the two answers. Then pushing y⁻ down at
# context 1 lifts that token there, the kernel carries the lift over, and y⁺ pays. No word in common is needed: this is
# squeezing, at one remove. A score that counts words in common cannot see it, nor one of features alone, like CHES.

# %% tags=["mistake"]
# Only equal tokens were thought to touch one another: the parts π of both residuals were forgotten.


def critical(up, down, plus, minus):
    wish = np.eye(len(up))[plus] - sm.softmax(np.asarray(up))
    return wish @ wish / wish[plus] if plus == minus else np.inf


# %% [markdown]
# ## Exercise 3: a centred step that climbs
#
# Centring replaces φ_u by φ_u − μ in the gradient. Break it: give two contexts with features of *one* dimension
# (`features`, two numbers), their logits over two tokens (`logits`, two rows) and a label each (`labels`), such that a
# small centred step of SFT on both *raises* the loss. Both weights of the mean are ½. When is that impossible?

# %% tags=["solution"]
features = [1.0, 3.0]
logits = [[0.0, 0.0], [6.0, 0.0]]
labels = [0, 0]

# %%
phi = np.array(features)[:, None]
both = world(logits, phi @ phi.T, chosen=list(enumerate(labels)))
changes = {}
for how, lever in (("plain", None), ("centred", contexts.centred(np.full((1, 2), 0.5)))):
    path = contexts.train(both, objectives.get("sft"), lr=1e-3, steps=1, precondition=lever).loss
    changes[how] = float(path[-1].mean() - path[0].mean()) / 1e-3
np.testing.assert_array_less(changes["plain"], 0.0)
np.testing.assert_array_less(1e-6, changes["centred"])
hold("kernel.centred-descends")
print("change of the loss per unit of η: " + ", ".join(f"{how} {x:+.4f}" for how, x in changes.items()))

# %% [markdown] tags=["solution"]
# **Solution.** The loss changes by −η ⟨R, S P R⟩ with P = I − w1ᵀ. In one dimension that is −η ⟨r, r'⟩ with
# r = Σ φ_u R_u, what the lessons ask of W, and r' = Σ (φ_u − μ) R_u, what it is told. Let context 1 know its answer
# already, so that R_1 ≈ 0: then r ≈ φ_0 R_0 and r' ≈ (φ_0 − μ) R_0, and the signs differ as soon as 0 < φ_0 < μ. A
# lesson whose feature lies below the mean is read the wrong way round. It cannot happen where all entries of S w are
# equal, say λ, w the weights of the mean: then S P = S − λ (a λ in every entry) is positive semi-definite
# (`kernel.nearest-mean-descends`). The mean must be the point nearest to 0 among all weighted means, as it is for
# features of equal length and equal cosines.

# %% tags=["mistake"]
# Features as long and as alike as one another: here the mean is the point of their hull nearest to 0, and all is safe.
features = [-1.0, 1.0]
logits = [[0.0, 0.0], [6.0, 0.0]]
labels = [0, 0]
