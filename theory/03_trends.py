# %% [markdown]
# # 3. Two trends, and the measure in which they are true
#
# **Question.** The paper (§3.3, App. E) adds two trends to its guarantees. *Rarer*: the smaller π(y⁻), the worse, "all
# other y ≠ y* fall more and y* rises more". *Peakier*: the more peaked the model, the more it is squeezed. Both are
# stories that practitioners tell: "an improbable rejected answer makes the model collapse". Are they true?
#
# A trend compares two worlds, so two things must be said first: what is held fixed, and what is measured. How far y*
# rises can mean three things:
#
#     mass    Δπ_{y*} = π'_{y*} − π_{y*}
#     factor  α_{y*} = π'_{y*}/π_{y*}
#     share   ρ = Δπ_{y*}/|Δπ_y|, what y* gets for each unit of probability taken from y
#
# All of it follows from chapter 2: for i ≠ y, log π'_i/π_i = s π_i − K, and K decides.

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import softmax as sm
from toyld.book import formula, says
from toyld.claims import hold


def measures(p, y, s):
    """(mass, factor, share) of y* when y is pushed down by a step s."""
    z = np.log(p)
    factor = np.exp(sm.log_alpha(z, y, s=s)[sm.runner_up(z, y)])
    return (factor - 1) * p[sm.runner_up(z, y)], factor, float(sm.squeezing_ratio(z, y, s=s))


# %% [markdown]
# ## Rarer, first reading: one model, two rejected answers
#
# Take one distribution and push down either its third class or the last. In K only the term of the label is special,
#
#     e^K = Σ_j π_j e^{s(π_j − 1[j=y])} = Σ_j π_j e^{s π_j} − (1 − e^{−s}) π_y e^{s π_y}
#
# and x e^{sx} grows with x: what a likely label takes out of the sum is more. So the rarer label has the larger K, and
# under it *everybody* but the two labels does worse, all by the same factor e^{−K}/e^{−K'}. And y* is one of them.

# %%
p = np.array([0.6, 0.2, 0.15, 0.05])
gained = {}
for y in (2, 3):
    alpha = sm.alpha(np.log(p), y, s=1.0)  # α_i = π'_i/π_i
    gained[y], _, _ = measures(p, y, 1.0)
    print(f"push down class {y} (π = {p[y]:.2f}): α = {alpha.round(4)}   y* gains {gained[y]:.4f}")
common, rare = (sm.alpha(np.log(p), y, s=1.0) for y in (2, 3))
np.testing.assert_array_less(rare[:2], common[:2])
np.testing.assert_allclose(rare[0] / common[0], rare[1] / common[1])
y, s = 2, 0.7
sums = np.exp(s * p[0]) / sm.alpha(np.log(p), y, s=s)[0]  # e^K, from what became of y*
label = np.eye(len(p))[y]
formula(
    "e^K = Σ_j π_j e^{s(π_j − 1[j=y])} = Σ_j π_j e^{s π_j} − (1 − e^{−s}) π_y e^{s π_y}",
    sums,
    p @ np.exp(s * (p - 1 * label)),
    p @ np.exp(s * p) - (1 - np.exp(-s)) * p[y] * np.exp(s * p[y]),
)
hold("trends.rarer-label-squeezes-others-more")

# %% [markdown]
# One part of the trend is a theorem: the others fall more. The other, "and y* rises more", is not merely false
# sometimes. In this reading it is false always: here y* gains 0.152 from the label at 15 %, but 0.114 from the one at
# 5 %. The registry keeps the sentence as refuted, with a counterexample in exact fractions.

# %%
refuted = hold("trends.rarer-label-lifts-top-more")
case = refuted.claim.counterexample.case
print(f"“{refuted.claim.statement}” {refuted.verdict}:")
print(f"π = ({', '.join(map(str, case['p']))}), labels {case['a']} (rarer) and {case['b']}, s = {case['s']}")
says("y* gains 0.152 from the label at 15 %, but 0.114 from the one at 5 %", gained[2], p[2], gained[3], p[3])

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
says("proportions q = (.7, .2, .1)", *q)
rarest = min(table)
says("from .095 at π_y = .2 to .053 at π_y = .001", table[0.2][0], list(table)[3], table[rarest][0], rarest)
says("there each unit taken from y⁻ comes with 98 for y*", table[rarest][2])

# %% [markdown]
# Read upwards, from a likely label to a rare one. The rarest other class falls more and more. The mass and the factor
# of y* *shrink*, the mass from .095 at π_y = .2 to .053 at π_y = .001: where there is next to nothing to take, there is
# little to give. But the share explodes: there each unit taken from y⁻ comes with 98 for y*, paid by the classes that
# nobody mentioned. That is the true core of the trend: a rare negative is not strong, it is *misdirected*. What the
# table shows of the losers and of the share is so for every q and s:

# %%
hold("trends.scaled-rarer-lifts-top-more")  # refuted: neither mass nor factor need grow
hold("trends.scaled-losers-fall-more")  # losers fall more, and there are more of them
hold("trends.share-falls-with-label")  # the share never falls as the label gets rarer, and mostly rises
law = hold("trends.share-law")
print(law.claim.statement)

# %% [markdown]
# When does y* gain *more* from a rarer label, then? To first order log α_{y*} = s(π_{y*} − ‖π‖² + π_y) (chapter 2).
# With u = 1 − π_y, what the others hold, π_{y*} = u q* and ‖π‖² = u²‖q‖² + (1 − u)², so that the rate of the factor is
#
#     π_{y*} − ‖π‖² + π_y = u (1 + q* − u (1 + ‖q‖²))
#
# a parabola in u, and the rate of the mass is u q* times it. Set the derivatives to zero: y* gains most mass at π_y = 1
# − (2/3)(1 + q*)/(1 + ‖q‖²), its largest factor at 1 − (1/2)(1 + q*)/(1 + ‖q‖²). Below these points a rarer label lifts
# y* less, above them more. They lie between .195 and 1/2, whatever q, since q*² ≤ ‖q‖² ≤ q*: the "rare rejected answer"
# of the story, π(y⁻) = 10⁻⁶ or so, is far on the side where the words of the trend are wrong.

# %%
grid = np.linspace(0.01, 0.8, 7901)
rows = np.column_stack([np.outer(1 - grid, q), grid])
top, norm, norm_q, u = rows[:, 0], np.linalg.norm(rows, axis=1), np.linalg.norm(q), 1 - grid
formula("π_{y*} − ‖π‖² + π_y = u (1 + q* − u (1 + ‖q‖²))", top - norm**2 + grid, u * (1 + q[0] - u * (1 + norm_q**2)))
factors = np.expm1(sm.log_alpha(np.log(rows), np.full(len(grid), 3), s=1e-4))[:, 0]  # by a step, not by its rate
turns = {"mass": grid[np.argmax(top * factors)], "factor": grid[np.argmax(factors)]}
print(f"q = {q}: largest mass at π_y = {turns['mass']:.3f}, largest factor at {turns['factor']:.3f}")
formula("1 − (2/3)(1 + q*)/(1 + ‖q‖²)", turns["mass"], 1 - (2 / 3) * (1 + q[0]) / (1 + norm_q**2), atol=1e-3)
formula("1 − (1/2)(1 + q*)/(1 + ‖q‖²)", turns["factor"], 1 - (1 / 2) * (1 + q[0]) / (1 + norm_q**2), atol=1e-3)
most, least = ((1 + grid) / (1 + grid**2)).max(), (1 + grid) / (1 + grid)  # ‖q‖² is at least q*² and at most q*
says("They lie between .195 and 1/2", 1 - 2 / 3 * most, 1 - least.max() / 2)
story = 1e-6
np.testing.assert_array_less(measures(np.append((1 - story) * q, story), 3, s)[:2], table[rarest][:2])
says("π(y⁻) = 10⁻⁶ or so", story)
for id in ("trends.scaled-turning-point", "trends.scaled-rarer-lifts-top-less", "trends.vanishing-label"):
    hold(id)

# %% [markdown]
# ## Peakier
#
# Keep π_y fixed and move mass from another class to y*. Of the two halves of the trend, again one is a theorem. K is
# the logarithm of a sum of x e^{sx}, which is convex, so that K grows when the large gets larger and the small smaller:
# every class but y* does worse, at every step, and the set of losers only grows. The other half turns.

# %%
p_y, s = 0.05, 1.0
tops = np.linspace(0.35, 0.94, 60)
peaks = np.column_stack([tops, 0.95 - tops, np.full(60, p_y / 2), np.full(60, p_y / 2)])
alphas = sm.alpha(np.log(peaks), np.full(60, 3), s=s)
gains = peaks[:, 0] * (alphas[:, 0] - 1)
for top in (0.5, 0.6, 0.75, 0.85, 0.94):
    i = np.argmin(np.abs(tops - top))
    print(f"π_y* = {tops[i]:.2f}: others {alphas[i, 1]:.3f}, {alphas[i, 2]:.3f}   y* factor {alphas[i, 0]:.4f}, "
          f"mass {gains[i]:+.4f}")  # fmt: skip
hold("trends.peakier-raises-threshold")
hold("trends.peakier-lifts-top-more")  # refuted

# %% [markdown]
# What y* gains rises and turns: a model that is already certain has nothing left to gain. Indeed K ≥ s(‖π‖² − π_y)
# (chapter 2: τ only rises) and ‖π‖² ≥ π_{y*}² + π_y², so log α_{y*} ≤ s π_{y*}(1 − π_{y*}) + s π_y(1 − π_y). Once
# π_{y*} ≥ 1/2, π_y is at most 1 − π_{y*}, and both terms are at most the first:
#
#     log α_{y*} ≤ 2 s π_{y*} (1 − π_{y*})
#
# Where it turns depends on where the mass comes from. But there are limits, and no sharper ones: the mass of y* still
# rises if π_{y*} ends at 1/2 or below (to first order in s); and from any class, at every step, its factor falls from
# 3/4 on and its mass from (3 + √3)/6 ≈ .789 on. The sharp case has three classes and a label without mass.

# %%
half = 0.5
on_top = tops >= half  # the first class is y*
P = tops[on_top]
formula("log α_{y*} ≤ 2 s π_{y*} (1 − π_{y*})", np.log(alphas[on_top, 0]), 2 * s * P * (1 - P))
two = np.log(np.column_stack([P, 1 - P]))  # two classes, a small step: as much as the bound allows
small = 1e-6
reached = s * sm.log_alpha(two, np.ones(len(P), int), s=small)[:, 0] / small
formula("2 s π_{y*} (1 − π_{y*})", reached, 2 * s * P * (1 - P), rtol=1e-4)
bare = np.linspace(half, 0.999, 5001)
three = np.log(np.column_stack([bare, 1 - bare, np.full(5001, 1e-12)]))
lifts = np.expm1(sm.log_alpha(three, np.full(5001, 2), s=1e-5)[:, 0])
factor_turns, mass_turns = bare[np.argmax(lifts)], bare[np.argmax(bare * lifts)]
formula("from 3/4 on", factor_turns, 3 / 4, atol=2e-4)
formula("(3 + √3)/6", mass_turns, (3 + np.sqrt(3)) / 6, atol=2e-4)
says("≈ .789 on", mass_turns)
says("Once π_{y*} ≥ 1/2", half)
says("if π_{y*} ends at 1/2 or below", half)
np.testing.assert_array_less(np.diff(alphas[tops >= 3 / 4, 0]), 0.0)
np.testing.assert_array_less(np.diff(gains[tops >= 0.789]), 0.0)
for id in ("trends.peakier-turning-point", "trends.peak-lifts-top-less", "trends.peak-has-little-to-gain"):
    hold(id)

# %% [markdown]
# "Peakier" can also mean a lower temperature, π ∝ q^k with k rising. Then even the set of losers is not safe: a class
# that loses may be saved by cooling, unless y is a valley (chapter 2). An answer that the model would hardly give
# mostly is one, and for it the losers' half stands.

# %%
hold("trends.colder-keeps-losers")  # refuted
hold("trends.colder-valley-keeps-losers")
hold("trends.colder-lifts-top-more")  # refuted: mass and factor of y* may both fall

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: for one softmax, at any step: `trends.rarer-label-squeezes-others-more`,
#   `trends.scaled-losers-fall-more`, `trends.share-falls-with-label`, `trends.share-law`,
#   `trends.scaled-rarer-lifts-top-less` (s ≤ 1), `trends.vanishing-label`, `trends.peakier-raises-threshold`,
#   `trends.peak-lifts-top-less`, `trends.peak-has-little-to-gain`, `trends.colder-valley-keeps-losers`.
# - **First order**: `trends.scaled-turning-point`, `trends.peakier-turning-point`.
# - **Measured**: nothing here.
# - **Refuted or open**: `trends.rarer-label-lifts-top-more`, `trends.scaled-rarer-lifts-top-more`,
#   `trends.peakier-lifts-top-more`, `trends.colder-keeps-losers`, `trends.colder-lifts-top-more`.

# %% [markdown]
# ## Picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
rare = np.geomspace(1e-3, 0.9, 200)
masses, shares = np.array([measures(np.append((1 - x) * q, x), 3, 0.5) for x in rare]).T[[0, 2]]
left.semilogx(rare, masses, color="tab:blue", label="mass Δπ of y*")
left.axvline(turns["mass"], color="tab:blue", lw=0.8, ls=":")
left.text(turns["mass"] * 0.9, 0.005, "turns here as s → 0", ha="right", fontsize=8, color="tab:blue")
left.set(xlabel="π(y⁻)", ylabel="mass Δπ of y*", title="Rarer: less mass, more share", ylim=(0, None))
twin = left.twinx()
twin.loglog(rare, shares, color="tab:orange", ls="--")
twin.set_ylabel("share ρ (dashed)")
right.plot(P, gains[on_top], color="tab:blue", label="mass of y*")
right.plot(P, alphas[on_top, 0] - 1, color="tab:green", ls="--", label="factor of y* − 1")
right.plot(P, alphas[on_top, 1] - 1, color="tab:orange", ls=":", label="factor of the second − 1")
right.axhline(0, color="black", lw=0.6)
right.set(xlabel="π(y*)", title="Peakier: y* gains up to a point", ylim=(-0.95, None))
right.legend(loc="lower left", fontsize=8)
figure.savefig("03_trends.png")
plt.close(figure)

# %% [markdown]
# ## What next
#
# Exercises: `theory/solutions/03_trends.py` (where a peakier model stops gaining, how misdirected a rare negative is, a
# step so large that the theorem's premise breaks).
#
# So far the push on y was given. It comes from a loss, and losses differ in how hard they push, and in what makes them
# stop. Which of them leave a rare answer alone? Chapter 4.
