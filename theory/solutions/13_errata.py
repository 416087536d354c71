# %% [markdown]
# # Exercises to chapter 13
#
# Refutations by hand: counterexamples in fractions, certified in ball arithmetic, and a misprint.

# %%
from fractions import Fraction

import numpy as np

from toyld import objectives
from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import exact, hold

# %% [markdown]
# ## Exercise 1: SFT pushes everything else down
#
# Refute it by hand. Derive first which classes gain to first order by an SFT step on y, and write `gainers(p, y)`, the
# list of them. Then find three rational probabilities `p` (a tuple of Fractions that add up to 1) and a label `y` for
# which a class that nobody asked for gains, and certify it.


# %% tags=["solution"]
def gainers(p: tuple[Fraction, ...], y: int) -> list[int]:
    """Classes that gain by a small SFT step on y, the label among them."""
    threshold = sum(x * x for x in p) - p[y]
    return [j for j, x in enumerate(p) if j == y or x < threshold]


p, y = (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10)), 1

# %%
np.testing.assert_equal(sum(p), 1)
np.testing.assert_equal(len(p), 3)
others = [j for j in gainers(p, y) if j != y]
np.testing.assert_array_less(0, len(others))
for j in range(3):  # α certified at a small step: a ball that lies above or below 0
    ball = exact.log_alphas(p, y, Fraction(1, 1000), 1)[j]
    np.testing.assert_equal(bool(ball > 0), j in gainers(p, y))
for logits in np.random.default_rng(0).normal(0.0, 2.0, (50, 6)):
    q = tuple(Fraction(float(x)) for x in sm.softmax(logits))
    label = int(np.argmin(q))
    truth = np.flatnonzero(sm.log_softmax(sm.step(logits, sm.residual(logits, label), s=1e-7)) > sm.log_softmax(logits))
    np.testing.assert_array_equal(sorted(gainers(q, label)), truth)
print(f"p = ({', '.join(map(str, p))}), y = {y}: class {others[0]} gains, too")
hold("sft.lowers-everything-else")
square = float(sum(x * x for x in p))
formula("(8/10, 1/10, 1/10)", np.array(p, float), np.array([8 / 10, 1 / 10, 1 / 10]))
says("‖π‖² − π_y = .66 − .1 = .56", square, float(p[y]), square - float(p[y]))

# %% [markdown] tags=["solution"]
# **Solution.** To first order Δ log π = −s A G with G = π − e_y: class j ≠ y changes by −s(π_j − Σ_i π_i G_i), and
# Σ_i π_i G_i = ‖π‖² − π_y. So j gains if π_j < ‖π‖² − π_y: take a peaky π and a label that is no peak. With π =
# (8/10, 1/10, 1/10) and y = 1 it is ‖π‖² − π_y = .66 − .1 = .56, more than what the last class has: it gains, though
# nobody asked.


# %% tags=["mistake"]
# looks at the logits: there every other class falls, but the normaliser falls, too
def gainers(p, y):
    return [y]


p, y = (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10)), 1

# %% [markdown]
# ## Exercise 2: IPO as printed
#
# IPO's loss for one pair is (h − 1/2β)², h = ℓ_+ − ℓ_- of log-ratios to the reference. Derive its coefficient on the
# chosen answer and write it as `coefficient(h, beta)`. The paper prints β(1 − a), a = h − 1/2β. Write the margin
# `where_both_agree(beta)` at which true and printed coefficient are equal, and the margin `printed_rest(beta)` at which
# a run by the printed one would come to rest.


# %% tags=["solution"]
def coefficient(h: float, beta: float) -> float:
    """c₊ = −dL/dℓ_+."""
    return -2.0 * (h - 1.0 / (2.0 * beta))


def where_both_agree(beta: float) -> float:
    """−2a = β(1 − a)."""
    return 1.0 / (2.0 * beta) - beta / (2.0 - beta)


def printed_rest(beta: float) -> float:
    """a = 1."""
    return 1.0 / (2.0 * beta) + 1.0


# %%
for β in (0.1, 0.5, 1.0):
    h = np.linspace(-3.0, 8.0, 45)
    zeros = np.zeros_like(h)
    batch = objectives.pair_batch(h - 5.0, zeros - 5.0, zeros - 5.0, zeros - 5.0)
    true = objectives.get("ipo", beta=β).coefficients(batch)[0]
    np.testing.assert_allclose([coefficient(float(x), β) for x in h], true, rtol=1e-12, atol=1e-12)
    at = where_both_agree(β)
    a = at - 1 / (2 * β)
    np.testing.assert_allclose(coefficient(at, β), β * (1.0 - a), rtol=1e-12)
    rest = printed_rest(β)
    np.testing.assert_allclose(β * (1.0 - (rest - 1 / (2 * β))), 0.0, atol=1e-12)
    print(f"β = {β}: target {1 / (2 * β):.2f}, both agree at {at:.3f}, as printed it rests at {rest:.2f}")
formula("(h − 1/2β)²", objectives.get("ipo", beta=β).loss(batch), (h - 1 / (2 * β)) ** 2)
formula("a = h − 1/2β", a, at - 1 / (2 * β))
formula("c₊ = −2(h − 1/2β) = −2a", coefficient(at, β), -2 * (at - 1 / (2 * β)), -2 * a)
formula("−2a = β(1 − a)", -2 * a, β * (1 - a))
formula("a = −β/(2 − β)", a, -β / (2 - β))

# %% [markdown] tags=["solution"]
# **Solution.** dL/dℓ_+ = dL/dh, so c₊ = −2(h − 1/2β) = −2a: zero at the target, reversed beyond it. Both agree where
# −2a = β(1 − a), that is a = −β/(2 − β), just short of the target. There the printed one is still positive; at the
# target it is β, and it comes to rest at a = 1, one unit of log-ratio too far. By then the true one pulls back.


# %% tags=["mistake"]
# takes the derivative of the square without its factor of two
def coefficient(h, beta):
    return -(h - 1.0 / (2.0 * beta))


def where_both_agree(beta):
    return 1.0 / (2.0 * beta) - beta / (1.0 - beta) if beta < 1.0 else 0.0


def printed_rest(beta):
    return 1.0 / (2.0 * beta)


# %% [markdown]
# ## Exercise 3: a counterexample of your own
#
# "A larger step amplifies every change: if a class gains at the step s, it gains at least as much at a larger step."
# Chapter 13 refutes it with three classes. Find one with five: probabilities `p` (Fractions), the label `y` that is
# pushed down, two steps `s` and `larger`, and the class `i` that gains at `s` and falls at `larger`. Which class cannot
# be the one, and why?

# %% tags=["solution"]
p = (Fraction(6, 20), Fraction(5, 20), Fraction(4, 20), Fraction(3, 20), Fraction(2, 20))
y, i = 1, 2
s, larger = Fraction(1, 2), Fraction(8)

# %%
np.testing.assert_equal(sum(p), 1)
np.testing.assert_equal(len(p), 5)
np.testing.assert_array_less([0, float(s)], [float(s), float(larger)])
np.testing.assert_equal(i == y, False)
small, large = (exact.log_alphas(p, y, step)[i] for step in (s, larger))
print(f"class {i}: log π'/π = {small.str(6)} at step {s}, {large.str(6)} at step {larger}")
np.testing.assert_equal(bool(small > 0), True)
np.testing.assert_equal(bool(large < 0), True)
hold("squeeze.runner-up-grows-with-step")

# %% [markdown] tags=["solution"]
# **Solution.** A class gains exactly if π_i > τ(s), and the threshold τ(s) rises from ‖π‖² − π_y at s = 0 to π_{y*},
# the probability of the likeliest other class. So take any class in between, a label that is not rare (so that the
# threshold starts low), and a step that is large enough. It cannot be y*: that one rises at every step, and by more
# at a larger one; nor y itself, which falls (`squeeze.runner-up-grows-with-step`).

# %% tags=["mistake"]
# takes the likeliest other class, the one that the slogan is true of
p = (Fraction(6, 20), Fraction(5, 20), Fraction(4, 20), Fraction(3, 20), Fraction(2, 20))
y, i = 1, 0
s, larger = Fraction(1, 2), Fraction(8)
