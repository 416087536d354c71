# %% [markdown]
# # Exercises to chapter 2
#
# A negative step of size s on the label y: z' = z + s(π − e_y). For i ≠ y, log π'_i/π_i = s(π_i − τ(s)), with τ(0+) =
# ‖π‖² − π_y; y* is the most likely class other than y. `sm.threshold` and `sm.threshold_limit` give τ from logits.

# %%
import numpy as np
from scipy.optimize import brentq

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold

rng = np.random.default_rng(0)

# %% [markdown]
# ## Exercise 1: the step that turns a winner into a loser
#
# "A larger step amplifies every effect." Take π = (0.45, 0.30, 0.15, 0.10), the last class as label. Which classes gain
# from a small step and lose from a large one, and from which step on do they lose?
#
# Write `turning_step(p, y, i)`: the step at which class i ≠ y breaks even, 0 if no step ever lifts it, `np.inf` if
# every step does.


# %% tags=["solution"]
def turning_step(p, y, i):
    """The s > 0 with τ(s) = π_i; 0 for a class that always loses, inf for one that always gains."""
    z = np.log(p)
    if p[i] <= sm.threshold_limit(z, y):
        return 0.0
    if i == sm.runner_up(z, y):
        return np.inf
    upper = 1.0
    while sm.threshold(z, y, s=upper) < p[i]:
        upper *= 2
    return brentq(lambda s: sm.threshold(z, y, s=s) - p[i], 1e-6, upper)


# %%
p = np.array([0.45, 0.30, 0.15, 0.10])
says("Take π = (0.45, 0.30, 0.15, 0.10), the last class as label", *p)
for i in range(3):
    print(f"class {i}, π = {p[i]:.2f}: gains up to s = {turning_step(p, 3, i):.3f}")
np.testing.assert_equal([turning_step(p, 3, 0), turning_step(p, 3, 2)], [np.inf, 0])
turn = turning_step(p, 3, 1)
np.testing.assert_array_less([0, turn], [turn, 1e3])
around = [sm.log_alpha(np.log(p), 3, s=turn * part)[1] for part in (0.9, 0.999, 1.001, 1.1)]
np.testing.assert_array_equal(np.sign(around), [1, 1, -1, -1])
for _ in range(50):
    q = rng.dirichlet(np.ones(5))
    y, i = rng.choice(5, 2, replace=False)
    turn_q = turning_step(q, y, i)
    for s in (0.01, 0.1, 1.0, 10.0):
        np.testing.assert_equal(bool(sm.winners(np.log(q), y, s=s)[i]), bool(s < turn_q))
says("between 0.225 and 0.45, and 0.30 does: it turns at s = 1.50", p @ p - p[3], p[0], p[1], turn)
says("The third class, at 0.15, is below", p[2])
hold("squeeze.larger-step-amplifies-all")
hold("squeeze.runner-up-grows-with-step")

# %% [markdown] tags=["solution"]
# **Solution.** Class i gains as long as π_i > τ(s), and τ rises from ‖π‖² − π_y to π_{y*}. So only classes strictly
# between the two turn: here between 0.225 and 0.45, and 0.30 does: it turns at s = 1.50. The top class is y* and always
# gains. The third class, at 0.15, is below the threshold from the beginning and never does. Since τ only rises, there
# is one turning point: a loser stays a loser.


# %% tags=["mistake"]
# Small-step thinking: who gains to first order was taken to gain at every step.
def turning_step(p, y, i):
    return np.inf if p[i] > sm.threshold_limit(np.log(p), y) else 0.0


# %% [markdown]
# ## Exercise 2: how peaky is peaky?
#
# Let the top class hold P, and let the label y be another one. Show: if P is at least some number, every class but the
# top loses, whatever else π looks like and at every step. Which number, and why does no smaller one do?
#
# Look for the π that makes it hardest. Write `margin(P)`: the smallest that τ(0+) − π_i can be for three classes, the
# top, y and i, over all ways to divide 1 − P among the last two (each at most P; take P ≥ 0.4). And `peak`, the
# smallest P with a margin that is not negative.


# %% tags=["solution"]
def margin(P):
    """min over x of ‖π‖² − π_y − x, π = (P, x, π_y = 1 − P − x)."""
    rest = 1 - P
    return P**2 - rest + rest**2 / 2


peak = 1 / np.sqrt(3)


# %%
for P in (0.4, 0.5, 0.6, 0.7, 0.9):
    x = np.linspace(1e-9, 1 - P - 1e-9, 2001)
    label = 1 - P - x
    fair = (x <= P) & (label <= P)
    tried = (P**2 + x**2 + label**2 - label - x)[fair]
    brute = tried.min()
    np.testing.assert_allclose(margin(P), brute, atol=1e-6)
np.testing.assert_allclose(margin(peak), 0.0, atol=1e-12)
rest = (1 - 0.99 * peak) / 2
np.testing.assert_array_less(0.0, sm.log_alpha(np.log([0.99 * peak, rest, rest]), 2, s=1e-3)[1])  # below: one escapes
for _ in range(300):
    top = rng.uniform(peak, 1)
    q = np.append(top, (1 - top) * rng.dirichlet(np.full(rng.integers(2, 9), 0.5)))
    change = sm.log_alpha(np.log(np.maximum(q, 1e-300)), len(q) - 1, s=rng.uniform(0.01, 20))
    np.testing.assert_array_less(change[1:], 0.0)
print(f"every class but the top falls once it holds {peak:.4f}; the margin there is {margin(peak):.1e}")
P = np.linspace(0.4, 1, 101)
eps, margins = 1 - P, margin(P)
says("both are half of ε", x[fair][tried.argmin()] / (x + label)[0])
says("Put in ε: half of", (margins / (3 * P**2 - 1))[0])
says("as long as they are below one half", P[(P - P**2).argmax()])
twice = margins + margins
formula("P² + ε²/2 − ε", margins, P**2 + eps**2 / 2 - eps)
formula("3P² − 1", twice, 3 * P**2 - 1)
formula("P = 1/√3", peak, 1 / np.sqrt(3))
says("take P ≥ 0.4", P.min())
hold("squeeze.peak-takes-all")

# %% [markdown] tags=["solution"]
# **Solution.** Class i with probability x loses to first order if x < ‖π‖² − π_y, and then at every step, since τ only
# rises. Write ε = 1 − P. With three classes x + π_y = ε and the margin is P² + x² + π_y² − (x + π_y), smallest where
# the sum of squares is smallest: both are half of ε, the label as likely as the class in question. That leaves
#
#     margin = P² + ε²/2 − ε
#
# Put in ε: half of 3P² − 1. It vanishes at P = 1/√3. More classes only help: with more of them x + π_y ≤ ε, and x − x²
# + π_y − π_y² rises with both of them as long as they are below one half, so that it is largest where they take all of
# ε.


# %% tags=["mistake"]
# The label was taken to have no mass, π_y = 0: but its own mass lowers the threshold, and that is the harder case.
def margin(P):
    rest = 1 - P
    return P**2 + rest**2 - rest


peak = 1 / 2

# %% [markdown]
# ## Exercise 3: a label that is no valley, and yet
#
# Chapter 2: pushing down a valley, −log π_y ≥ H, lowers the entropy H at every step. Derive the rate dH/ds at s = 0 for
# any label, and read off a *counterexample* to the converse: a label that is no valley and lowers H all the same.
#
# Write `entropy_rate(p, y)`, the rate, and `p_found` and `y_found`: three or more probabilities and a label with
# −log π_y < H and a negative rate.


# %% tags=["solution"]
def entropy_rate(p, y):
    """dH/ds at s = 0 of a negative step on y, nats per unit step."""
    d = p - np.eye(len(p))[y]
    d = d - p @ d  # A: logits minus their mean are log-probabilities
    return -(p * d) @ np.log(p)


p_found, y_found = np.array([0.5, 0.4, 0.1]), 1


# %%
def entropy_change(p, y, s):
    z = np.log(p)
    return sm.entropy(sm.step(z, sm.residual(z, y, c=-1.0), s=s)) - sm.entropy(z)


for _ in range(50):
    q = rng.dirichlet(np.ones(rng.integers(2, 8)))
    y = rng.integers(len(q))
    central = (entropy_change(q, y, 1e-4) - entropy_change(q, y, -1e-4)) / 2e-4
    np.testing.assert_allclose(entropy_rate(q, y), central, atol=1e-6)
    if -np.log(q[y]) >= -(q @ np.log(q)):
        np.testing.assert_array_less(entropy_rate(q, y), 1e-12)
p_found = np.asarray(p_found, dtype=float)
np.testing.assert_allclose(p_found.sum(), 1.0)
surprise, entropy = -np.log(p_found[y_found]), -(p_found @ np.log(p_found))
np.testing.assert_array_less(surprise, entropy)  # no valley
np.testing.assert_array_less(entropy_change(p_found, y_found, 0.01), 0.0)
print(f"surprise {surprise:.3f} < H = {entropy:.3f}, dH/ds = {entropy_rate(p_found, y_found):+.4f}")
hold("entropy.valley")
hold("entropy.first-order-law")
says("(0.5, 0.4, 0.1) with the second class", *p_found)
rate = entropy_rate(p_found, y_found)
says("a surprise of 0.916, an entropy of 0.943, and H falls at the rate 0.042", surprise, entropy, -rate)

# %% [markdown] tags=["solution"]
# **Solution.** With Δ = A(π − e_y), the rate of log π, H = −Σ π_i log π_i has the rate −Σ π_i Δ_i (log π_i + 1), and
# the 1 drops out, since Σ π_i Δ_i = 0. What A subtracts makes a covariance of it:
#
#     dH/ds = −Cov_π(log π, π − e_y) = −Cov_π(log π, π) − π_y (−log π_y − H)
#
# The first covariance is never negative, as log π rises with π: that term always lowers H. The second is surprise less
# entropy, times −π_y: it lowers H in a valley and raises it outside; but just outside it is too small to win.
# So take a label a little more likely than a valley in a distribution that is not flat: (0.5, 0.4, 0.1) with the second
# class as label has a surprise of 0.916, an entropy of 0.943, and H falls at the rate 0.042.


# %% tags=["mistake"]
# A was forgotten: the change of the logits was put in for the change of the log-probabilities.
def entropy_rate(p, y):
    return -(p * (p - np.eye(len(p))[y])) @ np.log(p)


p_found, y_found = np.array([0.5, 0.4, 0.1]), 1
