# %% [markdown]
# # Exercises to chapter 3
#
# A negative step of size s on the label y. By chapter 2, for small s,
#
#     log π'_i/π_i = s (π_i − ‖π‖² + π_y)   (i ≠ y),       log π'_y/π_y = s (π_y − 1 − ‖π‖² + π_y)
#
# y* is the most likely class other than y. The others have the proportions q, π_j = (1 − π_y) q_j; q* is the largest.

# %%
import numpy as np

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold

rng = np.random.default_rng(0)
p, s = rng.dirichlet(np.ones(4)), 1e-7
rates = sm.log_alpha(np.log(p), 3, s=s) / s
formula("(π_i − ‖π‖² + π_y)", rates[:3], p[:3] - (p**2).sum() + p[3], rtol=1e-5)
formula("(π_y − 1 − ‖π‖² + π_y)", rates[3], p[3] - 1 - (p**2).sum() + p[3], rtol=1e-5)

# %% [markdown]
# ## Exercise 1: where a peakier model stops gaining
#
# "The peakier, the more it is squeezed." Take three classes: y* with P, a second one with 1 − P, and a label of
# vanishing probability. To first order in s, at which rate does y* gain *mass*? For which P is it largest, and what is
# left of the trend beyond?
#
# Write `mass_rate(P)`, the limit of Δπ_{y*}/s, and `turn`, the P with the largest rate.


# %% tags=["solution"]
def mass_rate(P):
    """dπ_{y*}/ds at s = 0 for π = (P, 1 − P, 0+)."""
    return P * (1 - P) * (2 * P - 1)


turn = (3 + np.sqrt(3)) / 6

# %%
P = np.linspace(0.5, 0.999, 4991)
tiny = 1e-9
z = np.log(np.column_stack([P * (1 - tiny), (1 - P) * (1 - tiny), np.full(len(P), tiny)]))
step = 1e-5
gain = P * np.expm1(sm.log_alpha(z, np.full(len(P), 2), s=step)[:, 0])  # a step really taken
lost = (1 - P) * np.expm1(sm.log_alpha(z, np.full(len(P), 2), s=step)[:, 1])
np.testing.assert_allclose(mass_rate(P), gain / step, atol=1e-5)
np.testing.assert_allclose(turn, P[np.argmax(gain)], atol=2e-4)
np.testing.assert_allclose(gain, -lost, atol=1e-11)
print(f"largest gain of mass at π_y* = {P[np.argmax(gain)]:.4f}, derived {turn:.4f}")
formula("P − P² − (1 − P)² = (1 − P)(2P − 1)", P - P**2 - (1 - P) ** 2, (1 - P) * (2 * P - 1))
slope = np.polynomial.Polynomial([0, -1, 3, -2]).deriv()(P)  # P(1 − P)(2P − 1), multiplied out
formula("−6P² + 6P − 1", slope, -6 * P**2 + 6 * P - 1)
formula("P = (3 + √3)/6", P[np.argmax(gain)], (3 + np.sqrt(3)) / 6, atol=2e-4)
says("≈ .789", P[np.argmax(gain)])
says("times what P is above one half", np.roots([-2, 3, -1]).min())
says("zero at 1/2 and at 1", *np.sort(np.roots([-2, 3, -1])))  # of (1 − P)(2P − 1)
np.testing.assert_allclose([mass_rate(1 / 2), mass_rate(1)], 0.0, atol=1e-15)
hold("trends.peak-lifts-top-less")

# %% [markdown] tags=["solution"]
# **Solution.** The rate of log π_{y*} is π_{y*} − ‖π‖² + π_y → P − P² − (1 − P)² = (1 − P)(2P − 1), and mass is P times
# it: P(1 − P) times what P is above one half, doubled. It is zero at 1/2 and at 1: where both are alike neither wins,
# and where one has all there is nothing left to win. The derivative −6P² + 6P − 1 vanishes at P = (3 + √3)/6 ≈ .789,
# the sharp constant of the chapter. Beyond it a peakier model lifts y* *less*; what still grows is the fall of the
# second class, in log-probability. Since the label has nothing to give, what y* gains is exactly what the second class
# loses.


# %% tags=["mistake"]
# Factor and mass were confused: this is the rate of log π_{y*}, which turns at another place.
def mass_rate(P):
    return (1 - P) * (2 * P - 1)


turn = 3 / 4

# %% [markdown]
# ## Exercise 2: how misdirected is a rare negative?
#
# The share ρ = Δπ_{y*}/|Δπ_y| says how much y* gets for each unit taken from y. Derive it to first order, and show that
# for a rare label ρ ≈ C/π_y. What is C in terms of q? For which q is it zero: when is even the rarest negative
# harmless?
#
# Write `share(p, y)`, the limit of ρ for s → 0, and `constant(q)`, the C.


# %% tags=["solution"]
def share(p, y):
    """ρ of an infinitesimal negative step on y."""
    square, top = (p**2).sum(), np.delete(p, y).max()
    return top * (top - square + p[y]) / (p[y] * (1 + square - 2 * p[y]))


def constant(q):
    """lim π_y ρ for π_y → 0, the others in the proportions q."""
    square, top = (q**2).sum(), q.max()
    return top * (top - square) / (1 + square)


# %%
for _ in range(50):
    p = rng.dirichlet(np.ones(rng.integers(2, 7)))
    y = rng.integers(len(p))
    np.testing.assert_allclose(share(p, y), sm.squeezing_ratio(np.log(p), y, s=1e-6), rtol=1e-4)
q = np.array([0.7, 0.2, 0.1])
for rare in (1e-4, 1e-6):
    np.testing.assert_allclose(rare * share(np.append((1 - rare) * q, rare), 3), constant(q), rtol=2e2 * rare)
    print(f"π_y = {rare:g}: for each unit taken from y, y* gets {share(np.append((1 - rare) * q, rare), 3):.4g}")
even = np.full(5, 0.2)
np.testing.assert_allclose(constant(even), 0.0, atol=1e-15)
np.testing.assert_allclose([share(np.append((1 - x) * even, x), 5) for x in (1e-6, 0.3)], 0.2)  # a fifth each, always
says("For q = (.7, .2, .1) it is .073", *q, constant(q))
says("at a label of one in a million", rare)
np.testing.assert_array_less(1e4, constant(q) / rare)  # tens of thousands
formula("C = q*(q* − ‖q‖²)/(1 + ‖q‖²)", constant(q), q[0] * (q[0] - (q**2).sum()) / (1 + (q**2).sum()))
rho, size, top = sm.squeezing_ratio(np.log(p), y, s=1e-6), np.linalg.norm(p), np.delete(p, y).max()
formula(
    "ρ = π_{y*} (π_{y*} − ‖π‖² + π_y) / (π_y (1 + ‖π‖² − 2π_y))",
    rho,
    top * (top - size**2 + p[y]) / (p[y] * (1 + size**2 - 2 * p[y])),
    rtol=1e-4,
)
hold("trends.share-law")
hold("trends.share-falls-with-label")

# %% [markdown] tags=["solution"]
# **Solution.** To first order Δπ_i = π_i times the change of log π_i, so s cancels:
#
#     ρ = π_{y*} (π_{y*} − ‖π‖² + π_y) / (π_y (1 + ‖π‖² − 2π_y))
#
# For π_y → 0, π_{y*} → q* and ‖π‖² → ‖q‖², which leaves ρ ≈ C/π_y with C = q*(q* − ‖q‖²)/(1 + ‖q‖²). For q = (.7, .2,
# .1) it is .073: at a label of one in a million y* gains tens of thousands of times what y loses, and all of that is
# taken from others. C is zero where ‖q‖² = q*, that is where all the others are tied: then each gets the same share of
# what y gives, and nobody pays. (Classes without mass do not count.)


# %% tags=["mistake"]
# y was taken to fall by its own logit alone, log π'_y/π_y = −s(1 − π_y): the normaliser moves it, too.
def share(p, y):
    square, top = (p**2).sum(), np.delete(p, y).max()
    return top * (top - square + p[y]) / (p[y] * (1 - p[y]))


def constant(q):
    return q.max() * (q.max() - (q**2).sum())


# %% [markdown]
# ## Exercise 3: break the premise
#
# With the others in proportion, y* gains *less* from a vanishing label, says `trends.vanishing-label`, unless the step
# is large and the model flat (`toyld claims trends.vanishing-label` prints how large and how flat). Are these premises
# needed? Find a step and a model for which the slogan "the rarer, the more y* rises" is true down to π_y → 0.
#
# Derive the slope of log α_{y*} in π_y at π_y → 0. It helps to write 1/α_{y*} = Σ_j π_j e^{Δz_j − Δz_{y*}} and
# x_j = s(q* − q_j). Write `slope(q, s)`, and `q_found` (an array that sums to 1) and `s_found` with a negative slope.


# %% tags=["solution"]
def slope(q, s):
    """d log α_{y*}/dπ_y at π_y → 0, the others in the proportions q."""
    x = s * (q.max() - q)
    own = np.exp(-s * (1 + q.max()))
    return (q @ ((1 - x) * np.exp(-x)) - own) / (q @ np.exp(-x))


q_found, s_found = np.append(0.1, np.full(90, 0.01)), 20.0


# %%
def log_factor(q, p_y, s):
    """log α_{y*} for π = ((1 − π_y) q, π_y)."""
    p = np.append((1 - p_y) * q, p_y)
    return sm.log_alpha(np.log(p), len(q), s=s)[np.argmax(q)]


for q, s in (([0.7, 0.2, 0.1], 0.5), ([0.7, 0.2, 0.1], 20.0), ([0.4, 0.35, 0.25], 3.0), ([0.2] * 5, 1.0)):
    seen = (log_factor(np.array(q), 2e-7, s) - log_factor(np.array(q), 1e-7, s)) / 1e-7
    np.testing.assert_allclose(slope(np.array(q), s), seen, rtol=1e-3, atol=1e-6)
    np.testing.assert_array_less(0.0, seen)
q_found = np.asarray(q_found, dtype=float)
np.testing.assert_allclose(q_found.sum(), 1.0)
np.testing.assert_array_less(slope(q_found, s_found), 0.0)
falling = [log_factor(q_found, p_y, s_found) for p_y in (1e-6, 1e-5, 1e-4)]
np.testing.assert_array_less(np.diff(falling), 0.0)  # the likelier the label, the less y* gains
print(f"V = {len(q_found) + 1}, q* = {q_found.max():.3f}, s = {s_found:g}: slope {slope(q_found, s_found):+.3f}")
low, high = q_found.min(), q_found.max()
says("A class at 0.1 among ninety at 0.01, and s = 20", high, (q_found < high).sum(), low, s_found)
says("there x is 1.8", s_found * (high - low))
hold("trends.vanishing-label")

# %% [markdown] tags=["solution"]
# **Solution.** Put π_j = (1 − π_y) q_j into F = 1/α_{y*}: for j ≠ y the exponent is −(1 − π_y) x_j, for the label it is
# −s(1 + π_{y*} − π_y). Differentiate at π_y = 0, product and exponent:
#
#     dF/dπ_y = −Σ_j q_j e^{−x_j} + Σ_j q_j x_j e^{−x_j} + e^{−s(1 + q*)}
#
# and the slope of log α_{y*} is minus that over F: it has the sign of Σ_j q_j (1 − x_j) e^{−x_j} − e^{−s(1 + q*)}. Mass
# with x_j above 1 counts against: classes that are far from y* *at this step*. One needs much of it (a flat model, so
# that q* itself is small) and a large step. A class at 0.1 among ninety at 0.01, and s = 20: there x is 1.8 for all
# others, and the slope is negative. So the premises are needed, and the exception is nothing that training meets: a
# step of that size moves a logit by many nats at once.


# %% tags=["mistake"]
# The factor (1 − π_y) was differentiated in front of e^{…} only, and forgotten in the exponent.
def slope(q, s):
    x = s * (q.max() - q)
    return (q @ np.exp(-x) - np.exp(-s * (1 + q.max()))) / (q @ np.exp(-x))


q_found, s_found = np.append(0.1, np.full(90, 0.01)), 20.0
