# %% [markdown]
# # 9. Whom a lesson reaches, and whether that stays
#
# **Question.** One update on x_u moves the prediction at x_o by −η A(x_o) K(x_o, x_u) G(x_u). A and G can be read off
# the model's own probabilities; K = ∇z(x_o) ∇z(x_u)ᵀ cannot, and it changes all the time. The paper's account of whole
# runs rests on an assumption (App. C.1): not K but its *ranking* stays, the order of ‖K_uo‖ over observers o. Is that
# so, since when, and what is it worth?
#
# The assumption needs care in three places, and this chapter takes them in turn. A falling learning rate freezes
# everything, rankings too. A ranking may be one of mere size: large images couple with all others. And a norm leaves
# out A and G.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

from toyld import digits, influence
from toyld.claims import hold
from toyld.digits.experiments import stability

# %% [markdown]
# ## The norm, and the norm without size
#
# ‖K_uo‖ is symmetric, since K(x_u, x_o) = K(x_o, x_u)ᵀ. With J = ∇z it is ‖K_uo‖² = ⟨J_oᵀJ_o, J_uᵀJ_u⟩, an inner
# product of Gram matrices in the space of parameters. So dividing by √(‖K_uu‖‖K_oo‖) gives a cosine, between 0 and 1:
# coupling without size.

# %%
data = digits.embedded()
model = influence.Model(digits.mlp(64, width=8, depth=1, seed=3, dtype=torch.float64))
x = data.images[:3].double()
norm = influence.frobenius(model, x, x)
jacobian = torch.cat([j.reshape(3, 10, -1) for j in influence.jacobian(model, x).values()], -1)
gram = jacobian.mT @ jacobian
np.testing.assert_allclose(norm**2, torch.einsum("oab,uab->ou", gram, gram), rtol=1e-10)
cosine = norm / (norm.diagonal()[:, None] * norm.diagonal()[None]).sqrt()
print("‖K‖ of three digits:", norm.numpy().round(1).tolist())
print("their cosines:      ", cosine.numpy().round(3).tolist())
print("stability.relative-norm-is-a-cosine:", hold("stability.relative-norm-is-a-cosine").verdict)

# %% [markdown]
# ## Along a run
#
# Five networks of two hidden layers learn the 8×8 digits at a constant rate. Two digits of each class are taught, two
# held-out ones of each class observe; every kernel between them is exact.

# %%
shares = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.5, 0.8, 0.9, 1.0)
setting = replace(stability.SIZES["smoke"][0], summed=2, shares=shares)
seeds = range(2000, 2005)
table = stability.tables(seeds, settings=[setting])
(run,) = table.values()
epochs = run.step.values / 23


def mean(name: str) -> np.ndarray:
    """A curve: the mean over seeds."""
    return run[f"eval_{name}"].values.mean(0)


print("epoch   E‖K‖ of its start   change of shape in a tenth   Spearman's: with a tenth before, with the end")
kept = np.flatnonzero(np.isfinite(mean("shape_before")))  # those with a checkpoint a tenth before
for i in kept:
    print(
        f"{epochs[i]:5.1f} {mean('norm')[i] / mean('norm')[0]:17.0f} {mean('shape_before')[i]:28.2f} "
        f"{mean('rank_before_new')[i]:24.3f} {mean('rank_last_new')[i]:24.3f}"
    )
np.testing.assert_array_less(50.0, mean("norm")[-1] / mean("norm")[0])
for id in ("stability.late-ranking-stays", "stability.early-is-messier"):
    found = hold(id, runs=table)
    print(f"{id}: {found.verdict}, {found.effect.value:+.3f} [{found.effect.low:+.3f}, {found.effect.high:+.3f}]")

# %% [markdown]
# (An effect is the margin above the bar: +.091 above .9 is a correlation of .991. Correlations are Spearman's rank
# correlations over observers, means over lessons.)
#
# Norms grow a hundredfold within three epochs, and in those epochs the order is messy; then they go on growing by a
# third, and the order of observers hardly changes. Growth alone cannot change it: so measure how far the *shape* of the
# kernel moves, E‖K/k − K'/k'‖ with k, k' the mean norms, blind to a factor on all of K. That is a fourteenth in a tenth
# of the run: the MLP's kernel mostly grows by now, and its stable order says less than it seems to. In LeNet the shape
# goes on moving, by a quarter in a tenth, and the order stays there too (`stability.kernel-moves-on`). At a constant
# rate, that is a fact about the kernel; under a cosine schedule the last correlations are 1 because nothing moves any
# more.
#
# Is early messier only because more happens then? Compare at equal change: go from the start to where the kernel has
# changed its shape as far as it does from half-way to the end.

# %%
half = int(np.argmin(np.abs(run.step.values - run.step.values[-1] / 2)))
print(f"from half-way the kernel moves by {mean('change_last')[half]:.2f} of its size,", end=" ")
print(f"its shape by {mean('shape_last')[half]:.2f};", end=" ")
print(f"rank correlation {mean('rank_last_new')[half]:.3f} from there,", end=" ")
print(f"{mean('rank_matched_new')[-1]:.3f} over as much change at the start")
np.testing.assert_array_less(mean("shape_last")[half], 0.7 * mean("change_last")[half])  # the rest is growth
np.testing.assert_array_less(mean("rank_matched_new")[-1], mean("rank_last_new")[half])

# %% [markdown]
# ## Is it size?
#
# Rank the observers of u by the cosine, or only those of other classes: both rankings stay as well. Here two lessons of
# different classes rank observers in different ways. And the network did not invent all of it: the plain overlap
# |⟨x_o, x_u⟩| of the images has most of the MLP's final ranking.

# %%
for what, words in (
    ("rank_before_relative", "with a tenth before, by cosine"),
    ("rank_before_others", "with a tenth before, other classes only"),
    ("rank_swapped", "with a lesson of another class, now"),
    ("rank_pixels", "with the overlap of the images"),
    ("rank_first_new", "with the untrained network's"),
):
    print(f"{words:42s} {mean(what)[-1]:.3f}")
for id in ("stability.ranking-is-more-than-size", "stability.lessons-rank-differently"):
    print(f"{id}: {hold(id, runs=table).verdict}")

# %% [markdown]
# ## What the norm leaves out
#
# Move the model by one update on u alone and rank the observers by ‖Δ log π‖. ‖K_uo‖ foretells much of that order, and
# less so late, when A differs between observers. What a norm cannot tell is the direction: what u does to o and what o
# does to u have the same ‖K‖ and differ by an order of magnitude, because a digit that is known teaches nothing (G = 0)
# and can still be taught.

# %%
for name, words in (("norm", "‖K‖"), ("first", "‖A K G‖")):
    curve = run[f"eval_foretold_by_{name}"].values.mean(0)
    print(f"{words:8s} foretells at the start, half-way, the end:", curve[np.isfinite(curve)].round(3))
print("what u does to o over what o does to u, typically:", f"{np.exp(mean('asymmetry')[-1]):.0f}-fold")
for id in ("decomposition.influence-is-symmetric", "decomposition.lessons-act-back-equally"):
    print(f"{id}: {hold(id).verdict}")
for id in (
    "stability.norm-foretells-who-moves",
    "stability.norm-foretells-less-late",
    "stability.influence-is-lopsided",
):
    print(f"{id}: {hold(id, runs=table).verdict}")

# %% [markdown]
# ## Does it add up?
#
# Accumulated influence is a sum over the run. First order of *every* update, its own Δθ with momentum and decay in it,
# adds up to nine tenths of what happens (R² over observers and classes). Twenty updates, each standing for a twentieth
# of the run, do not: their sum is farther from the truth than no change at all. A curve through some epochs can be
# looked at; it cannot be integrated.

# %%
for name, words in (("sum_fit", "every update"), ("sampled_fit", "twenty updates")):
    print(f"{words:15s} R² = {np.nanmean(run[f'eval_{name}'].values[:, -1]):.2f}")
np.testing.assert_array_less(np.nanmax(run.eval_sampled_fit.values), np.nanmin(run.eval_sum_fit.values[:, -1]))

# %% [markdown]
# ## What is measured
#
# | 8×8 digits, a constant rate | MLP, 16 seeds | LeNet, 8 seeds |
# |---|---|---|
# | late: from a tenth to the next | .99 | .96 |
# | early: the first two tenths | .87 | .63 |
# | from half-way to the end: change in all, of shape | .29, .14 | .49, .47 |
# | rank correlation over that, and over as much change of shape at the start | .98, .96 | .92, .78 |
# | two lessons' rankings at the end | .28 | .18 |
# | ‖K‖ foretells who moves, at the end | .90 | .87 |
# | 9 is nearest to 4, by cosine or as it is | in 0 of 16 | in 0 of 8 |
#
# All these seeds share their training images: they tell of starts and orders, given these. The small digits are not
# MNIST's, and 4 and 9 are no pair there. MNIST under the paper's recipe is recorded at paper size on the scoreboard;
# `toyld claims "stability.*"` has the intervals. *Messy first, then settled* is what all these runs show. The paper
# puts the messy time at epochs 0 to 30 of 1,000. Two MLPs trained so long on MNIST at a constant rate agree: from epoch
# 30 on the norms grow thirteenfold, and the ranking of epoch 30 has a correlation of .91 with the last one (that of
# epoch 10: .75).

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.0), layout="constrained")
axes[0].plot(epochs, mean("norm") / mean("norm")[0], color="black", label="E‖K‖ of its start")
axes[0].plot(
    epochs[kept], mean("shape_before")[kept], color="tab:red", marker="o", ms=3, label="its change of shape in a tenth"
)
axes[0].set(yscale="log", xlabel="epoch", ylabel="ratio of norms")
axes[0].legend(fontsize=7)
for kind, colour, label in (
    ("new", "black", "‖K‖, a tenth before"),
    ("relative", "tab:blue", "cosine, a tenth before"),
    ("others", "tab:green", "other classes, a tenth before"),
):
    axes[1].plot(epochs[kept], mean(f"rank_before_{kind}")[kept], color=colour, marker="o", ms=3, label=label)
axes[1].plot(epochs, mean("rank_swapped"), color="tab:gray", ls=":", label="‖K‖, another lesson's, now")
axes[1].set(ylim=(0, 1.02), xlabel="epoch", ylabel="Spearman's rank correlation with")
axes[1].legend(fontsize=7, loc="lower right", bbox_to_anchor=(1.0, 0.3))
figure.savefig("09_stability.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# For which networks is the assumption a theorem? Take z = W x + b, and z = W φ(x) with φ frozen. What is ‖K_uo‖, what
# is the cosine, and what can training change?
#
# **Solution.** K = (⟨x_o, x_u⟩ + 1) I for all W: its norm is |⟨x_o, x_u⟩ + 1| √V, constant in time, and so is every
# ranking; the cosine is that of (x, 1). With a frozen φ put φ(x) for x and leave out the 1 (chapter 6 lives there). All
# that this chapter saw change is features that learn.

# %%
flat = influence.Model(digits.mlp(64, depth=0, seed=1, dtype=torch.float64))
before = influence.frobenius(flat, x, x)
overlap = x.flatten(1) @ x.flatten(1).T + 1.0
np.testing.assert_allclose(before, overlap.abs() * 10**0.5, rtol=1e-12)
linear = digits.train(
    data, network=lambda seed: digits.mlp(64, depth=0, seed=seed), seeds=[1],
    recipe=digits.Recipe(lr=0.03, images=None, epochs=2), dtype=torch.float64,
)  # fmt: skip
after = influence.frobenius(influence.Model(linear.module()), x, x)
np.testing.assert_allclose(after, before, rtol=1e-12)
print(f"a linear classifier: loss {linear.losses[0, 0]:.2f} → {linear.losses[-1, 0]:.2f}, every ‖K_uo‖ as it was")
