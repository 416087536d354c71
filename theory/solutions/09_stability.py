# %% [markdown]
# # Exercises to chapter 9
#
# Whom a lesson reaches: the kernel of a linear model, what a rank correlation is worth, and who moves whom.

# %%
import numpy as np
import torch

from toyld import digits, influence
from toyld import softmax as sm
from toyld.book import says

data = digits.embedded()
x = data.images[:5].double()

# %% [markdown]
# ## Exercise 1: where the assumption is a theorem
#
# For which networks does the ranking of ‖K_uo‖ stay by necessity? Take a linear classifier, z = W x + b with V classes,
# all of W and b trained. Derive the Frobenius norm ‖K_uo‖ and write it as `norm(x_o, x_u, classes)`, for two images
# given as vectors. What can training change about it? And what if z = W φ(x) + b with φ frozen?


# %% tags=["solution"]
def norm(x_o: np.ndarray, x_u: np.ndarray, classes: int) -> float:
    """‖K_uo‖ of z = W x + b."""
    return float(abs(x_o @ x_u + 1.0) * np.sqrt(classes))


# %%
vectors = x.flatten(1).numpy()
by_hand = [[norm(o, u, 10) for u in vectors] for o in vectors]
untrained = influence.Model(digits.mlp(64, depth=0, seed=1, dtype=torch.float64))
np.testing.assert_allclose(influence.frobenius(untrained, x, x).numpy(), by_hand, rtol=1e-12)
run = digits.train(
    data, network=lambda seed: digits.mlp(64, depth=0, seed=seed), seeds=[1],
    recipe=digits.Recipe(lr=0.03, images=None, epochs=2), dtype=torch.float64,
)  # fmt: skip
np.testing.assert_allclose(influence.frobenius(influence.Model(run.module()), x, x).numpy(), by_hand, rtol=1e-12)
print(f"a linear classifier: loss {run.losses[0, 0]:.2f} → {run.losses[-1, 0]:.2f}, every ‖K_uo‖ as it was")

# %% [markdown] tags=["solution"]
# **Solution.** ∂z_v/∂W_{wi} = 1[v=w] x_i and ∂z_v/∂b_w = 1[v=w], so K = ∇z(x_o) ∇z(x_u)ᵀ = (⟨x_o, x_u⟩ + 1) I. The
# norm of I is √V, hence ‖K_uo‖ = |⟨x_o, x_u⟩ + 1| √V. Neither W nor b stands in it: training changes nothing, and every
# ranking stays for ever. With a frozen φ put φ(x) for x (chapter 6 lives there). All that chapter 9 saw change is
# features that learn.


# %% tags=["mistake"]
# forgets that the bias is trained, too: it adds one to every inner product
def norm(x_o, x_u, classes):
    return float(abs(x_o @ x_u) * np.sqrt(classes))


# %% [markdown]
# ## Exercise 2: what a high rank correlation allows
#
# "The ranking is stable: its rank correlation is .9." How far may single norms have moved? Let log ‖K_uo‖ be normal
# over observers with deviation σ, and let every one change by independent normal noise with deviation τ = rσ. Derive,
# as functions of r alone,
#
# - `pearson(r)`: the correlation of the logarithms before and after,
# - `spearman(r)`: the rank correlation (of two normal variables with correlation ρ it is `6 / π · arcsin(ρ / 2)`),
# - `same_order(r)`: the share of pairs of observers that are in the same order before and after.
#
# How large is r, and what is the share, where the rank correlation is .9?


# %% tags=["solution"]
def pearson(r: float) -> float:
    """Correlation of a and a + r b, a and b independent and standard normal."""
    return 1.0 / np.sqrt(1.0 + r**2)


def spearman(r: float) -> float:
    """Their rank correlation."""
    return 6.0 / np.pi * np.arcsin(pearson(r) / 2.0)


def same_order(r: float) -> float:
    """P(the sign of a difference stays)."""
    return 0.5 + np.arcsin(pearson(r)) / np.pi


# %%
rng = np.random.default_rng(0)
n = 40_000
for r in (0.2, 0.5, 2.0):
    before = rng.normal(size=n)
    after = before + r * rng.normal(size=n)
    ranks = [np.argsort(np.argsort(values)) for values in (before, after)]
    pairs = np.sign(before[::2] - before[1::2]) == np.sign(after[::2] - after[1::2])
    seen = np.corrcoef(before, after)[0, 1], np.corrcoef(*ranks)[0, 1], pairs.mean()
    np.testing.assert_allclose([pearson(r), spearman(r), same_order(r)], seen, atol=4.0 * 0.5 / np.sqrt(n / 2))
wanted = 0.9
at = next(r for r in np.arange(0.0, 2.0, 1e-4) if spearman(r) <= wanted)
print(f"rank correlation {wanted}: r = {at:.2f}, {same_order(at):.1%} of the pairs keep their order")
says("correlation is .9", wanted)
says("at r = .46, nearly half of the spread", at, at)
says("86 % of the pairs keep their order, one in seven changes it", same_order(at), 1 - same_order(at))

# %% [markdown] tags=["solution"]
# **Solution.** With σ = 1, Cov(a, a + rb) = 1 and Var(a + rb) = 1 + r², so ρ = 1/√(1 + r²). The difference of two
# observers is normal before and after with the same correlation ρ; two centred normal variables with correlation ρ have
# equal signs with probability ½ + arcsin(ρ)/π (the angle between two half-planes). The rank correlation is .9
# at r = .46, nearly half of the spread between observers, and then 86 % of the pairs keep their order, one in seven
# changes it. A high rank correlation is easy where observers differ a lot, whatever their kernels do: say how much they
# differ, too.


# %% tags=["mistake"]
# leaves out that the noise widens the spread after, so that the correlation would be a share of variance
def pearson(r):
    return 1.0 - r**2


def spearman(r):
    return 6.0 / np.pi * np.arcsin(pearson(r) / 2.0)


def same_order(r):
    return 0.5 + np.arcsin(pearson(r)) / np.pi


# %% [markdown]
# ## Exercise 3: who moves whom
#
# Two inputs o and u have the same label y, and K(x_o, x_u) = k I. Predict first: o is known (π_o(y) near 1), u is not.
# Which of the two lessons moves the other input more? Then write, to first order in the rate,
#
# - `influence_of(p_u, p_o, y)`: Δ log π(·|x_o), over ηk, by one SFT step on (x_u, y), of which π_u = p_u, π_o = p_o,
# - `known` and `new`: two predictions over three classes, for which the two lessons differ more than twentyfold in
#   norm, though ‖K_uo‖ = ‖K_ou‖.
#
# Which entry of the two changes is the same nevertheless?


# %% tags=["solution"]
def influence_of(p_u: np.ndarray, p_o: np.ndarray, y: int) -> np.ndarray:
    """A(x_o) (e_y − π_u), A = I − 1πᵀ."""
    push = np.eye(len(p_u))[y] - p_u
    return push - p_o @ push


known, new = np.array([0.98, 0.01, 0.01]), np.array([0.02, 0.97, 0.01])

# %%
one, back = influence_of(new, known, 0), influence_of(known, new, 0)
for p_u, p_o, found in ((new, known, one), (known, new, back)):
    small = 1e-6  # the truth: the logits of o move by small · (e_y − π_u)
    moved = np.log(p_o) - small * sm.residual(np.log(p_u), 0, c=1.0)
    np.testing.assert_allclose((sm.log_softmax(moved) - np.log(p_o)) / small, found, atol=1e-5)
ratio = np.linalg.norm(one) / np.linalg.norm(back)
np.testing.assert_array_less(20.0, max(ratio, 1.0 / ratio))
np.testing.assert_allclose(one[0], back[0], rtol=1e-12)
sizes = np.linalg.norm(one), np.linalg.norm(back)
print(f"the lesson not known moves the other by {sizes[0]:.2f} ηk, the known one by {sizes[1]:.3f}")

# %% [markdown] tags=["solution"]
# **Solution.** −AKG = k A(x_o)(e_y − π_u): the observer gives A, the lesson gives G. A known lesson has nothing left to
# teach, e_y − π_u is nearly 0, while A(x_o) is never small where it matters: it takes a mean off. So the lesson that
# is not known moves the other one more: for `known` and `new` above by far. A norm of K sees none of this. The entry of
# the label is the same in both, (e_y − π_o)ᵀ(e_y − π_u) (`decomposition.lessons-act-back-equally`): a known observer
# gains little for its label from any lesson, and loses a lot elsewhere.


# %% tags=["mistake"]
# takes the residual of the observer: what o has still to learn, where it is u that teaches
def influence_of(p_u, p_o, y):
    push = np.eye(len(p_o))[y] - p_o
    return push - p_o @ push


known, new = np.array([0.98, 0.01, 0.01]), np.array([0.02, 0.97, 0.01])
