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
for id in ("stability.relative-norm-is-a-cosine", "decomposition.kernel"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# ## Along a run
#
# Six networks of two hidden layers learn the 8×8 digits at a constant rate. Two digits of each class are taught, two
# held-out ones of each class observe; every kernel between them is exact.

# %%
shares = (0.0, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.9, 1.0)
setting = replace(stability.SIZES["smoke"][0], summed=2, shares=shares)
seeds = range(2000, 2006)
table = stability.tables(seeds, settings=[setting])
(run,) = table.values()
epochs = run.step.values / 23


def mean(name: str) -> np.ndarray:
    """A curve: the mean over seeds."""
    return run[f"eval_{name}"].values.mean(0)


print("epoch   E‖K‖   change in a tenth   rank correlation: with a tenth before, with the end")
for i, epoch in enumerate(epochs):
    print(
        f"{epoch:5.1f} {mean('norm')[i]:7.0f} {mean('change_before')[i]:13.2f} "
        f"{mean('rank_before_new')[i]:24.3f} {mean('rank_last_new')[i]:24.3f}"
    )
np.testing.assert_array_less(50.0, mean("norm")[-1] / mean("norm")[0])
for id in ("stability.late-ranking-stays", "stability.early-is-messier"):
    found = hold(id, runs=table)
    print(f"{id}: {found.verdict}, {found.effect.value:+.3f} [{found.effect.low:+.3f}, {found.effect.high:+.3f}]")

# %% [markdown]
# Norms grow a hundredfold within three epochs, and in those epochs the order is messy; then they go on growing by a
# third, the kernel moves by a tenth of its size in a tenth of the run, and the order of observers hardly changes. At a
# constant rate, that is a fact about the kernel; under a cosine schedule the last correlations are 1 because nothing
# moves any more.
#
# Is early messier only because more happens then? Compare at equal change: go from the start to where the kernel has
# moved as far, relative to its size, as it does from half-way to the end.

# %%
half = int(np.argmin(np.abs(run.step.values - run.step.values[-1] / 2)))
print(f"from half-way the kernel moves by {mean('change_last')[half]:.2f} of its size;", end=" ")
print(f"rank correlation {mean('rank_last_new')[half]:.3f} from there,", end=" ")
print(f"{mean('rank_matched_new')[-1]:.3f} over as much change at the start")
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
# | | 8×8 digits, 32 seeds of an MLP, 8 of a LeNet | MNIST, 10 seeds, the paper's recipe |
# |---|---|---|
# | late: from a tenth to the next | .99, .96 | above .99 (MLP, also at a constant rate; LeNet) |
# | early: the first two tenths | .84, .62 | .85 (MLP at a constant rate) |
# | at equal change, late and early | .98 and .92, .92 and .84 | .97 and .81 (MLP), .99 and .96 (LeNet) |
# | two lessons' rankings at the end | .26, .18 | .79 (MLP): mostly size; .16 (LeNet) |
# | ‖K‖ foretells who moves, at the end | .90, .87 | .86, .93 |
# | 9 is nearest to 4, by cosine | in 0 of 32, 0 of 8 | in 8 of 10, 10 of 10 |
# | 9 is nearest to 4, by ‖K‖ as it is | in 0 of 32, 0 of 8 | in 2 of 10, 10 of 10 |
#
# 4-9 and 5-8 couple more than with others on MNIST, 6-7 less, as the paper says; of 2-5 and 3-5, and of 7-9 in the MLP,
# that is not sure. The small digits are others, and there 4 and 9 are no pair. `toyld claims "stability.*"` has the
# intervals. *Messy first, then settled* is what all runs show; when it settles differs: the MLP on MNIST sits on a
# plateau for more than ten of its 100 epochs, and its order by cosine is made afterwards. The paper puts the messy time
# at epochs 0 to 30 of 1,000. Two MLPs trained so long at a constant rate agree: from epoch 30 on the norms grow
# thirteenfold, and the ranking of epoch 30 has a correlation of .91 with the last one (that of epoch 10: .75).

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.0), layout="constrained")
axes[0].plot(epochs, mean("norm") / mean("norm")[0], color="black", label="E‖K‖, of its start")
axes[0].plot(epochs, mean("change_before"), color="tab:red", marker="o", ms=3, label="change in a tenth of the run")
axes[0].set(yscale="log", xlabel="epoch")
axes[0].legend(fontsize=7)
for kind, colour, label in (
    ("new", "black", "‖K‖"),
    ("relative", "tab:blue", "cosine"),
    ("others", "tab:green", "other classes"),
):
    axes[1].plot(epochs, mean(f"rank_before_{kind}"), color=colour, marker="o", ms=3, label=label)
axes[1].plot(epochs, mean("rank_swapped"), color="tab:gray", ls=":", label="‖K‖, another lesson's")
axes[1].set(ylim=(0, 1.02), xlabel="epoch", ylabel="rank correlation with a tenth before")
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
