# %% [markdown]
# # 3. Two trends, and the measure in which they are true
#
# **Question.** The paper (§3.3, App. E) adds two trends to its guarantees. *Peakier*: the more peaked the model, the
# more it is squeezed. *Rarer*: the smaller π(y⁻), the worse, "all other y ≠ y* fall more and y* rises more". Both are
# stories practitioners tell: "an improbable rejected answer makes the model collapse". Are they true?
#
# A trend compares two worlds, so two things must be said first: what is held fixed, and what is measured. How far y*
# rises can mean three things:
#
#     mass    Δπ_{y*} = π'_{y*} − π_{y*}
#     factor  α_{y*} = π'_{y*}/π_{y*}
#     share   ρ = Δπ_{y*}/|Δπ_y|, what y* gets for each unit of probability taken from y

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import softmax as sm
from toyld.claims import hold


def measures(p, y, s):
    """(mass, factor, share) of y* when y is pushed down by a step s."""
    z = np.log(p)
    factor = np.exp(sm.log_alpha(z, y, s=s)[sm.runner_up(z, y)])
    return (factor - 1) * p[sm.runner_up(z, y)], factor, float(sm.squeezing_ratio(z, y, s=s))


# %% [markdown]
# ## Rarer, first reading: one model, two rejected answers
#
# Take one distribution and push down either class 2 or class 3. Since log π'_i/π_i = s π_i − K with
#
#     e^K = Σ_j π_j e^{s π_j} − (1 − e^{−s}) π_y e^{s π_y}
#
# and x e^{sx} grows with x, the rarer label has the larger K. So under the rarer label *everybody* but the two labels
# does worse, all by the same factor, and y* is one of them.

# %%
p = np.array([0.6, 0.2, 0.15, 0.05])
for y in (2, 3):
    alpha = sm.alpha(np.log(p), y, s=1.0)
    mass, factor, share = measures(p, y, 1.0)
    print(f"push down class {y} (π = {p[y]:.2f}): α = {alpha.round(4)}   y* gains {mass:.4f}")
common, rare = (sm.alpha(np.log(p), y, s=1.0) for y in (2, 3))
np.testing.assert_array_less(rare[:2], common[:2])
np.testing.assert_allclose(rare[0] / common[0], rare[1] / common[1])
hold("trends.rarer-label-squeezes-others-more")

# %% [markdown]
# Half of the trend is a theorem: the others fall more. The other half, "and y* rises more", is not merely false
# sometimes. In this reading it is false always; its certified counterexample is the first that one meets.

# %%
refuted = hold("trends.rarer-label-lifts-top-more")
case = refuted.claim.counterexample.case
print(f"“{refuted.claim.statement}” {refuted.verdict}:")
print(f"π = ({', '.join(map(str, case['p']))}), labels {case['a']} (rarer) and {case['b']}, s = {case['s']}")

# %% [markdown]
# ## Rarer, second reading: the same answer, made less likely
#
# Now one label, whose own logit falls while the other classes keep their proportions q = (.7, .2, .1).

# %%
q, s = np.array([0.7, 0.2, 0.1]), 0.5
print("   π_y    α of the rarest other   mass of y*   factor of y*   share of y*")
table = {}
for p_y in (0.001, 0.01, 0.05, 0.2, 0.4):
    p = np.append((1 - p_y) * q, p_y)
    table[p_y] = measures(p, 3, s)
    mass, factor, share = table[p_y]
    print(f"{p_y:6.3f} {sm.alpha(np.log(p), 3, s=s)[2]:18.4f} {mass:17.3f} {factor:13.3f} {share:13.2f}")
np.testing.assert_array_equal([round(t[2], 2) for t in table.values()], [98.42, 10.45, 2.63, 1.16, 0.92])

# %% [markdown]
# Read upwards, from a likely label to a rare one. The rarest other class falls more and more. The mass and the factor
# of y* *shrink*: where there is next to nothing to take, there is little to give. But the share explodes: at π_y = .001
# each unit taken from y⁻ comes with 98 for y*, paid by the classes that nobody mentioned. That is the true core of the
# trend: a rare negative is not strong, it is *misdirected*.

# %%
hold("trends.scaled-losers-fall-more")  # losers fall more, and there are more of them
hold("trends.scaled-rarer-lifts-top-more")  # refuted: neither mass nor factor need grow
hold("trends.share-falls-with-label")  # the share never falls as the label gets rarer
law = hold("trends.share-law")
print(law.claim.statement)

# %% [markdown]
# When does y* gain *more* from a rarer label, then? To first order in the step there is an exact turning point: the
# mass is largest at π_y = 1 − (2/3)(1 + q*)/(1 + ‖q‖²), the factor at 1 − (1/2)(1 + q*)/(1 + ‖q‖²). Below it a rarer
# label lifts y* less, above it more. These points lie between .195 and 1/2, whatever q: the "rare rejected answer" of
# the story, π(y⁻) = 10⁻⁶ or so, is far on the side where the words of the trend are wrong.

# %%
square = (q**2).sum()
turns = {"mass": 1 - 2 / 3 * (1 + q[0]) / (1 + square), "factor": 1 - 0.5 * (1 + q[0]) / (1 + square)}
grid = np.linspace(0.01, 0.8, 7901)
rows = np.column_stack([np.outer(1 - grid, q), grid])
tiny = 1e-4
factors = np.expm1(sm.log_alpha(np.log(rows), np.full(len(grid), 3), s=tiny))[:, 0]
found = {"mass": grid[np.argmax(rows[:, 0] * factors)], "factor": grid[np.argmax(factors)]}
for name in turns:
    print(f"largest {name:6s} at π_y = {found[name]:.3f}, predicted {turns[name]:.3f}")
    np.testing.assert_allclose(found[name], turns[name], atol=1e-3)
hold("trends.scaled-turning-point")
hold("trends.scaled-rarer-lifts-top-less")
hold("trends.vanishing-label")

# %% [markdown]
# ## Peakier
#
# Keep π_y fixed and move mass from another class to y*. Of the two halves of the trend, again one is a theorem: the
# threshold τ(s) of chapter 2 rises, so every class but y* does worse, at every step, and the set of losers only grows
# (from x e^{sx} being convex). The other half turns.

# %%
p_y, s = 0.05, 1.0
tops = np.linspace(0.35, 0.94, 60)
peaks = np.column_stack([tops, 0.95 - tops, np.full(60, p_y / 2), np.full(60, p_y / 2)])
label = np.full(60, 3)
alphas = sm.alpha(np.log(peaks), label, s=s)
for top in (0.5, 0.6, 0.75, 0.85, 0.94):
    i = np.argmin(np.abs(tops - top))
    print(f"π_y* = {tops[i]:.2f}: others {alphas[i, 1]:.3f}, {alphas[i, 2]:.3f}   y* factor {alphas[i, 0]:.4f}, "
          f"mass {peaks[i, 0] * (alphas[i, 0] - 1):+.4f}")  # fmt: skip
hold("trends.peakier-raises-threshold")
hold("trends.peakier-lifts-top-more")  # refuted

# %% [markdown]
# What y* gains rises and turns. It vanishes as π_{y*} → 1 (which also takes π_y → 0): a model that is already certain
# has nothing left to gain, since
#
#     log α_{y*} ≤ 2 s π_{y*} (1 − π_{y*})           once π_{y*} ≥ 1/2.
#
# Where it turns depends on where the mass comes from, but there are sharp limits: the mass still rises if π_{y*} ends
# at 1/2 or below (to first order in s), and at every step the factor falls from 3/4 on, the mass from (3 + √3)/6 ≈
# .789 on.

# %%
gains = peaks[:, 0] * (alphas[:, 0] - 1)
on_top = tops >= 0.5  # the first class is y*
np.testing.assert_array_less(np.diff(alphas[tops >= 0.75, 0]), 0.0)
np.testing.assert_array_less(np.diff(gains[tops >= 0.789]), 0.0)
np.testing.assert_array_less(np.log(alphas[on_top, 0]), 2 * s * tops[on_top] * (1 - tops[on_top]))
for id in ("trends.peakier-turning-point", "trends.peak-lifts-top-less", "trends.peak-has-little-to-gain"):
    hold(id)

# %% [markdown]
# "Peakier" can also mean a lower temperature, π ∝ q^k with k rising. Then even the set of losers is not safe: a class
# that loses may be saved by cooling, unless y is a valley (chapter 2). For a valley, which an answer that the model
# would hardly give mostly is, the losers' half stands.

# %%
hold("trends.colder-keeps-losers")  # refuted
hold("trends.colder-valley-keeps-losers")
hold("trends.colder-lifts-top-more")  # refuted: mass and factor of y* may both fall

# %% [markdown]
# ## Picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
rare = np.geomspace(1e-3, 0.9, 200)
rows = np.column_stack([np.outer(1 - rare, q), rare])
masses, shares = np.array([(m, r) for m, _, r in (measures(row, 3, 0.5) for row in rows)]).T
left.semilogx(rare, masses, color="tab:blue", label="mass Δπ of y*")
left.axvline(turns["mass"], color="tab:blue", lw=0.8, ls=":")
left.text(turns["mass"] * 0.9, 0.005, "turns here as s → 0", ha="right", fontsize=8, color="tab:blue")
left.set(xlabel="π(y⁻)", ylabel="mass Δπ of y*", title="Rarer: less mass, more share", ylim=(0, None))
twin = left.twinx()
twin.loglog(rare, shares, color="tab:orange", ls="--")
twin.set_ylabel("share ρ (dashed)")
right.plot(tops[on_top], gains[on_top], color="tab:blue", label="mass of y*")
right.plot(tops[on_top], alphas[on_top, 0] - 1, color="tab:green", ls="--", label="factor of y* − 1")
right.plot(tops[on_top], alphas[on_top, 1] - 1, color="tab:orange", ls=":", label="factor of the second − 1")
right.axhline(0, color="black", lw=0.6)
right.set(xlabel="π(y*)", title="Peakier: y* gains up to a point")
right.legend()
figure.savefig("03_trends.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# Three classes: y*, one other class with x, and y with π_y = ε. To first order in s, y* gains mass at the rate
# π_{y*}(π_{y*} − ‖π‖² + π_y) (chapter 2: the threshold is ‖π‖² − π_y). For ε → 0, at which π_{y*} is the gain
# largest, and what becomes of the claim "peakier squeezes more" there?
#
# **Solution.** With P = π_{y*} and x = 1 − P: P − P² − (1 − P)² = (1 − P)(2P − 1), so the rate is P(1 − P)(2P − 1),
# zero at 1/2 and at 1. Its derivative −6P² + 6P − 1 vanishes at P = (3 + √3)/6 ≈ .789, the sharp constant of the
# claim above. Beyond it a peakier model lifts y* *less*. What y* gains is then exactly what the other class loses.

# %%
steepest = (3 + np.sqrt(3)) / 6
grid = np.linspace(0.5, 0.999, 5001)
eps = 1e-9
rows = np.column_stack([grid * (1 - eps), (1 - grid) * (1 - eps), np.full(len(grid), eps)])
gain = rows[:, 0] * np.expm1(sm.log_alpha(np.log(rows), np.full(len(grid), 2), s=1e-5))[:, 0]
print(f"largest gain at π_y* = {grid[np.argmax(gain)]:.4f}, predicted {steepest:.4f}")
np.testing.assert_allclose(grid[np.argmax(gain)], steepest, atol=1e-3)
hold("trends.peak-lifts-top-less")
