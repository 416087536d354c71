# %% [markdown]
# # Exercises to chapter 1
#
# One softmax, π = softmax(z), K = I: a step of size s on label y moves the logits by d = −s(π − e_y) if it pulls y up,
# and by −d if it pushes y down. Write log-probabilities in nats; V is the number of classes.

# %%
import numpy as np

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold

rng = np.random.default_rng(0)
models = [rng.normal(scale=scale, size=size) for scale in (0.3, 1, 3) for size in (2, 3, 5, 50)]  # logits

# %% [markdown]
# ## Exercise 1: nobody gains for free
#
# Move the logits by any d: by whatever loss, optimiser or hand. Show that the π-weighted mean of Δ log π is never
# positive, so that no update can make every answer more likely. How large is the loss to second order in d?
#
# Write `leak(z, d)`, the exact mean Σ_i π_i Δ log π_i, and `leak_second_order(z, d)`, its first term that is not zero.


# %% tags=["solution"]
def leak(z, d):
    """Σ_i π_i log(π'_i/π_i) for π' = softmax(z + d), a number."""
    p, q = sm.softmax(z), sm.softmax(z + d)
    return -(p * np.log(p / q)).sum()


def leak_second_order(z, d):
    """The term of `leak` that is quadratic in d, a number."""
    p = sm.softmax(z)
    return -(p @ d**2 - (p @ d) ** 2) / 2


# %%
ratios = []
for z in models:
    d = rng.normal(size=z.shape)
    change = sm.log_softmax(z + d) - sm.log_softmax(z)
    np.testing.assert_allclose(leak(z, d), sm.softmax(z) @ change, atol=1e-12)
    np.testing.assert_array_less(leak(z, d), 0.0)
    shift = d + 3.0  # softmax does not see a common shift, so neither may the answer
    np.testing.assert_allclose(leak_second_order(z, shift), leak_second_order(z, d), atol=1e-10)
    ratios.append(leak_second_order(z, 1e-3 * d) / leak(z, 1e-3 * d))
    variance = sm.softmax(z) @ (d - sm.softmax(z) @ d) ** 2
print(f"second order over exact, for small steps: {min(ratios):.4f} to {max(ratios):.4f}")
np.testing.assert_allclose(ratios, 1.0, atol=0.01)
formula("−Var_π(d)/2", leak_second_order(z, d), -variance / 2)
hold("decomposition.mass-leak")

# %% [markdown] tags=["solution"]
# **Solution.** Σ_i π_i log(π'_i/π_i) = −KL(π‖π'), and a divergence is at least 0, and is 0 for π' = π alone. (Jensen:
# the mean of log(π'_i/π_i) is at most the logarithm of the mean of π'_i/π_i, which is log Σ_i π'_i = 0.)
#
# For its size write log π'_i/π_i = d_i − K with K = log Σ_j π_j e^{d_j}, so that the mean is Σ_i π_i d_i − K. The
# Taylor series of K is what statistics calls the cumulants: the mean of d, half its variance, and so on. The mean
# cancels:
#
#     Σ_i π_i Δ log π_i = −Var_π(d)/2 + O(‖d‖³)
#
# The variance is under π: to move logits of classes without mass costs nothing.


# %% tags=["mistake"]
# The logits were not centred: half the mean square instead of half the variance, which a common shift of z changes.
def leak(z, d):
    p, q = sm.softmax(z), sm.softmax(z + d)
    return -(p * np.log(p / q)).sum()


def leak_second_order(z, d):
    return -(sm.softmax(z) @ d**2) / 2


# %% [markdown]
# ## Exercise 2: the error is one number, and a small one
#
# The chapter says that first order misses every log-probability by one and the same ρ. Derive ρ for a step s on label
# y, and show 0 ≤ ρ ≤ s²/2. (A variance is at most a quarter of the square of the range; how far apart can two entries
# of π − e_y be?) Which softmax comes close to the bound?
#
# Write `remainder(z, y, s)`, the ρ of a step that pulls y up, and logits `z_worst` of two classes such that pulling up
# class 0 by s = 0.1 costs at least a quarter of the bound.


# %% tags=["solution"]
def remainder(z, y, s):
    """The ρ ≥ 0 with Δ log π = −s A (π − e_y) − ρ, a number."""
    p = sm.softmax(z)
    d = -s * (p - np.eye(len(z))[y])
    return np.log(p @ np.exp(d)) - p @ d


z_worst = np.log([1.0, 3.0])


# %%
shares = []
for z in models:
    for y in (0, len(z) - 1):
        for s in (0.01, 0.3, 2.0):
            g = sm.residual(z, y)
            error = sm.log_softmax(z - s * g) - sm.log_softmax(z) - -s * sm.jacobian(z) @ g
            np.testing.assert_allclose(error, -remainder(z, y, s), atol=1e-12)
            rho = remainder(z, y, s)
            shares.append(rho / (s**2 / 2))
print(f"ρ over its bound s²/2, in the models tried: {max(shares):.3f} at most")
np.testing.assert_array_less(shares, 1.0)
np.testing.assert_array_less(0.0, shares)
formula("ρ ≤ s²/2", rho, s**2 / 2)
on_one = np.linspace(0, 1, 101)  # mass on one of two values
spread = on_one * (1 - on_one)  # their variance over the square of the range
says("A variance is at most a quarter of the square of the range", spread.max())
says("between 0 and a quarter of the squared range", 0 * s, spread.max())
says("between 0 and an eighth of the squared range", 0 * s, spread.max() / 2)
widest = np.ptp(sm.residual(np.array([-20.0, 20.0]), 0))
says("the range of d is at most twice s, and an eighth of its square is the bound", widest, spread.max() / 2)
says("would take half of the mass on the label", on_one[spread.argmax()])
np.testing.assert_equal(np.shape(z_worst), (2,))
small = 0.1
part = 1 / 4
np.testing.assert_array_less(part, remainder(z_worst, 0, small) / (small**2 / 2))
says("costs at least a quarter of the bound", part)
says("by s = 0.1", small)
q = np.linspace(0, 1, 10001)
variance = (1 - q) * q**2 + q * q**2 - (q**2 - (1 - q) * q) ** 2  # of (−q, q) under (1 − q, q)
formula("4q³(1 − q)", variance, 4 * q**3 * (1 - q))
says("is largest at q = 3/4, where it is 27/64", q[variance.argmax()], variance.max())
says("would guess once in four", 1 - q[variance.argmax()])
hold("decomposition.remainder")

# %% [markdown] tags=["solution"]
# **Solution.** With d = −s(π − e_y) the truth is log π'_i/π_i = d_i − K(1), K(t) = log Σ_j π_j e^{t d_j}, and first
# order is d_i − Σ_j π_j d_j = d_i − K'(0). So ρ = K(1) − K'(0), the same for every i. K''(t) is the variance of d under
# softmax(z + t d), between 0 and a quarter of the squared range; integrate twice: ρ is between 0 and an eighth of
# the squared range. The entries of π − e_y lie between π_y − 1 and the largest other probability, so that the range of
# d is at most twice s, and an eighth of its square is the bound.
#
# No softmax attains it: that would take half of the mass on the label, whose entry is then no longer near minus one.
# With two classes and q = 1 − π_y the variance of (−q, q) makes ρ, for small steps, a share 4q³(1 − q) of the bound; it
# is largest at q = 3/4, where it is 27/64: a label that one would guess once in four. Large steps on a rarer label,
# which pass there on their way, come a little closer.


# %% tags=["mistake"]
# The mean was taken over classes instead of over π: every class counts alike, however improbable.
def remainder(z, y, s):
    d = -s * (sm.softmax(z) - np.eye(len(z))[y])
    return np.log(np.exp(d).mean()) - d.mean()


z_worst = np.log([1.0, 3.0])

# %% [markdown]
# ## Exercise 3: whom does SFT lift?
#
# Pulling up a label raised other classes too. Which, to first order in s? Give the rule, and the probability of the
# label from which on nobody else gains.
#
# Write `lifted(p, y)`: from probabilities p a boolean array, true for the classes other than y that gain by a small SFT
# step on y. And `lifts_nobody(p, y)`: a condition on p and y, without any comparison of single classes, that is
# sufficient for nobody else to gain, and that `[0.5, 0.3, 0.2]` with y = 0 fulfils.


# %% tags=["solution"]
def lifted(p, y):
    """Classes other than y whose probability rises by a small SFT step on y, boolean (V,)."""
    gain = p < (p**2).sum() - p[y]
    gain[y] = False
    return gain


def lifts_nobody(p, y):
    """True if p alone says that no other class rises."""
    return p[y] >= (p**2).sum()


# %%
seen = quiet = 0
for z in models:
    for y in range(len(z)):
        p = sm.softmax(z)
        truly = sm.winners(z, y, s=1e-6, c=1.0)  # by the exact formula
        truly[y] = False
        np.testing.assert_array_equal(lifted(p, y), truly)
        seen += truly.sum()
        quiet += bool(lifts_nobody(p, y))
        if lifts_nobody(p, y):
            np.testing.assert_array_equal(truly, False)
example = np.array([0.5, 0.3, 0.2])
np.testing.assert_equal(bool(lifts_nobody(example, 0)), True)
np.testing.assert_array_less(0, [seen, quiet])
print(f"{seen} classes lifted by lessons on others; {quiet} lessons that are known to lift nobody")
says("at (0.5, 0.3, 0.2), ‖π‖² = 0.38 is below π_y = 0.5", *example, example @ example, example[0])
for id in ("sft.threshold", "sft.likely-label-lowers-the-rest", "sft.lowers-everything-else"):
    hold(id)

# %% [markdown] tags=["solution"]
# **Solution.** To first order Δ log π_j = −s(A G)_j = −s(G_j − Σ_i π_i G_i), with G = π − e_y. For j ≠ y the entry is
# G_j = π_j, and the mean is Σ_i π_i(π_i − 1[i=y]) = ‖π‖² − π_y. So
#
#     j ≠ y gains  ⟺  π_j < ‖π‖² − π_y
#
# The unlikely ones gain. If π_y ≥ ‖π‖² the right side is not positive and nobody is below it; at (0.5, 0.3, 0.2),
# ‖π‖² = 0.38 is below π_y = 0.5. So it is the lesson on an answer that the model does not yet believe that lifts
# others: the beginning of SFT, and the peaky model.


# %% tags=["mistake"]
# A was forgotten: it is the logits of the others that all fall, their probabilities need not.
def lifted(p, y):
    return np.zeros(len(p), dtype=bool)


def lifts_nobody(p, y):
    return True
