# %% [markdown]
# # Exercises to chapter 8
#
# From a judge that cannot see how good two models are, to the push with which DPO stops protecting its winner.

# %%
import numpy as np

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold

rng = np.random.default_rng(8)

# %% [markdown]
# ## Exercise 1: what a win rate cannot see
#
# A judge is shown pairs of answers to the same question, one of each model, and reports the share that the first model
# wins, ties half. Let the judge be perfect: it prefers a right answer to a wrong one and cannot tell two others apart.
#
# Write `win_rate(mine, theirs)` from the shares of right answers of both models alone. Then give `before` and `after`,
# each a pair (mine, theirs) of shares, so that from before to after *both* models get worse while the first one's win
# rate rises by at least a fifth.

# %% tags=["solution"]


def win_rate(mine, theirs):
    """What a perfect judge reports of models that are right in these shares of cases."""
    return 0.5 + 0.5 * (mine - theirs)


before, after = (0.2, 0.8), (0.1, 0.2)

# %%
for _ in range(3):
    right = rng.random((2, 500)) < rng.random((2, 1))  # which answers are right, question by question
    judged = np.where(right[0] == right[1], 0.5, right[0])
    np.testing.assert_allclose(win_rate(*right.mean(1)), judged.mean(), atol=1e-12)
np.testing.assert_array_less(after, before)
rise = win_rate(*after) - win_rate(*before)
least = 0.2
np.testing.assert_array_less(least - 1e-9, rise)
says("rises by at least a fifth", least)
print(f"right: {before} → {after}, win rate {win_rate(*before):.2f} → {win_rate(*after):.2f}")
x, y = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
np.testing.assert_array_equal((x > y) + 0.5 * (x == y), 0.5 + 0.5 * (x - y))
gained = win_rate(x, y) - win_rate(0 * x, 0 * y)
says("is one half and half the *difference*", win_rate(0 * x, 0 * y)[0], gained.max())

# %% [markdown] tags=["solution"]
# **Solution.** With x and y 1 for a right answer and 0 for a wrong one, 1[x > y] + ½·1[x = y] = ½ + ½(x − y) in all
# four cases. So the mean over pairs is one half and half the *difference* of the shares of right answers: it cannot see
# their sum. It does not even matter which questions they answer right. A model that falls from little to less gains on
# one that falls from much to little. That is what DPO does to extend and its control of as many updates in the chapter.

# %% tags=["mistake"]
# The share of wins was taken among the right answers of both, as if ties did not count.


def win_rate(mine, theirs):
    return mine / (mine + theirs)


before, after = (0.2, 0.8), (0.1, 0.2)

# %% [markdown]
# ## Exercise 2: how long does a margin take?
#
# A pair of single tokens at one context, as in (8.2), with a small constant rate s₀ = η‖h‖²: by how much does an update
# widen the margin m? Take the number n of updates as continuous and solve for the n at which m has grown from 0 to its
# value: write `updates(m, s, beta)`, s for s₀. How many does a margin of 25 nats take at β = .1, compared with those
# that it would take if the first push went on undiminished?

# %% tags=["solution"]


def updates(m, s, beta):
    """The number of updates at rate s after which the margin is m, in the limit of small s."""
    return (np.expm1(beta * m) / beta + m) / (2.0 * s * beta)


# %%
beta, s, goal = 0.1, 0.1, 25.0
z = np.zeros(6)
margins = [0.0]
while margins[-1] < goal:
    push = beta / (1.0 + np.exp(beta * margins[-1]))
    z = sm.step(z, sm.residual(z, 0, c=push) + sm.residual(z, 1, c=-push), s=s)
    margins.append(z[0] - z[1])
for m in (1.0, 5.0, goal):
    taken = int(np.searchsorted(margins, m))
    np.testing.assert_allclose(updates(m, s, beta), taken, rtol=0.02)
    print(f"a margin of {m:4.1f} nats after {taken:6d} updates")
longer = (len(margins) - 1) / (goal / margins[1])
print(f"{longer:.1f} times as many as the first push would have taken")
says("a margin of 25 nats take at β = .1", goal, beta)
says("For 25 nats at β = .1 it takes 2.7 times", goal, beta, longer)
r = 2.0 * s * beta
says("an update adds twice s₀β", margins[1] / (s * beta * (1.0 - 0.5)))  # a is 1/2 at first
says("With r for twice s₀β", r / (s * beta))
formula("((e^{βm} − 1)/β + m)/r", updates(m, s, beta), ((np.exp(beta * m) - 1) / beta + m) / r)
hold("residual.dpo-never-stops")

# %% [markdown] tags=["solution"]
# **Solution.** By (8.2) an update adds twice s₀β(1 − a) to z_{y⁺} − z_{y⁻}, and 1 − a = σ(−βm). With r for twice s₀β,
# dm/dn = r/(1 + e^{βm}). Separate, (1 + e^{βm}) dm = r dn, and integrate: n = ((e^{βm} − 1)/β + m)/r. While m is small
# the pace is that of the first push; later n is exponential in βm, and so m grows like a logarithm, slower and slower,
# never to an end (`residual.dpo-never-stops`). For 25 nats at β = .1 it takes 2.7 times the updates of the first pace.

# %% tags=["mistake"]
# The push was taken to be β, as if 1 − a were one at the reference, and to stay so.


def updates(m, s, beta):
    return m / (2.0 * s * beta)


# %% [markdown]
# ## Exercise 3: when the winner falls at one context after all
#
# (8.2) needs pushes of equal size. Let a loss push y⁻ down k times as hard as y⁺ up (length normalisation or a weight
# does that): Δz = s[(e_{y⁺} − π) − k(e_{y⁻} − π)]. Derive the first-order change of log π(y⁺) per unit of s and write
# it as `winner(p, plus, minus, k)`. Which k is the largest that can never lower y⁺, whatever π? Call it `safe`, and
# give four probabilities `p` (y⁺ first, y⁻ second) in which a k of 2.2 does lower it.

# %% tags=["solution"]


def winner(p, plus, minus, k):
    """Δ log π(y⁺)/s to first order if y⁻ is pushed down k times as hard as y⁺ is pulled up."""
    return 1.0 + (k - 2.0) * p[plus] + k * p[minus] - (k - 1.0) * (p @ p)


safe = 2.0
p = np.array([0.01, 0.01, 0.97, 0.01])

# %%


def moved(p, k, s):
    """Log-probability changes per unit of s by one step."""
    z = np.log(p)
    g = sm.residual(z, 0, c=1.0) + sm.residual(z, 1, c=-k)
    return (sm.log_softmax(sm.step(z, g, s=s)) - np.log(p)) / s


for k in (0.5, 1.0, 2.0, 2.2, 5.0):
    for _ in range(3):
        q = rng.dirichlet(np.full(4, 0.5))
        change = moved(q, k, 1e-6)[0]
        np.testing.assert_allclose(winner(q, 0, 1, k), change, atol=1e-4)
formula(
    "1 + (k − 2)π(y⁺) + kπ(y⁻) − (k − 1)‖π‖²",
    change,
    1 + (k - 2) * q[0] + k * q[1] - (k - 1) * (q**2).sum(),
    rtol=1e-3,
)
formula("1 − (k − 1) = 2 − k", 1 - (k - 1), 2 - k)
says("y⁺ is safe up to k = 2", safe)
np.testing.assert_allclose(p.sum(), 1.0)
lowered = 2.2
np.testing.assert_array_less(moved(p, lowered, 0.1)[0], 0.0)
says("a k of 2.2 does", lowered)
says("with one half as the other end", 1.0 / safe)
anything = rng.dirichlet(np.full(4, 0.2), size=2000) + 1e-9
anything /= anything.sum(1, keepdims=True)
np.testing.assert_array_less(0.0, [winner(q, 0, 1, safe - 1e-9) for q in anything])
peaked = np.array([1e-6, 1e-6, 1.0 - 3e-6, 1e-6])
np.testing.assert_array_less(winner(peaked, 0, 1, safe + 1e-3), 0.0)
print(f"k = 2.2 changes log π(y⁺) by {moved(p, 2.2, 0.1)[0]:+.3f} s, k = 1 by {moved(p, 1.0, 0.1)[0]:+.3f} s")
hold("pair.winner-rises")

# %% [markdown] tags=["solution"]
# **Solution.** Δz = s[e_{y⁺} − k e_{y⁻} + (k − 1)π]. Take off its mean under π: log π(y⁺) changes by s times
#
#     1 + (k − 1)π(y⁺) − (π(y⁺) − kπ(y⁻) + (k − 1)‖π‖²) = 1 + (k − 2)π(y⁺) + kπ(y⁻) − (k − 1)‖π‖².
#
# With k = 1 that is 1 − π(y⁺) + π(y⁻) > 0. The last term is worst where a third token has all the mass, and then it
# leaves 1 − (k − 1) = 2 − k. So y⁺ is safe up to k = 2 and not beyond (`pair.winner-rises` proves it for every step,
# with one half as the other end, where y⁻ would rise): with pushes of unequal size the favourite takes what is left
# over, and squeezing is back in a single softmax.

# %% tags=["mistake"]
# The push on y⁻ was taken for harmless to y⁺, since it touches another logit: the normaliser was left out.


def winner(p, plus, minus, k):
    return 1.0 - p[plus]


safe = np.inf
p = np.array([0.01, 0.01, 0.97, 0.01])
