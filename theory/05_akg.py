# %% [markdown]
# # 5. A·K·G in real networks
#
# **Question.** Chapters 1 to 4 had one softmax, where a lesson on x moves the logits of x along its own residual G and
# nothing else. A network shares its parameters between all inputs. What does one update on one image do to the beliefs
# about every other image, and how far can that be said beforehand?
#
# Proposition 1 of the paper answers to first order. After one step of gradient descent on (x_u, y_u)
#
#     Δ log π(·|x_o) = −η A(x_o) K(x_o, x_u) G(x_u) + O(η²)
#
# Chapter 1 derived it by the chain rule; only now K is no longer ‖x‖² I:
#
# - G = ∇_z L, what the lesson asks for: π − e_y for SFT, times c for the losses of chapter 4;
# - K = ∇_θ z(x_o) ∇_θ z(x_u)ᵀ, a V×V matrix for every pair of inputs, the *empirical neural tangent kernel*: its entry
#   (i, j) says by how much a wish about logit j at x_u moves logit i at x_o;
# - A = I − 1πᵀ, which takes from a change of logits what softmax cannot see.
#
# `toyld.influence` computes all three for any torch module, and their product without forming any of them.

# %%
import copy

import matplotlib.pyplot as plt
import numpy as np
import torch

from toyld import digits, influence
from toyld.book import formula, says
from toyld.claims import hold
from toyld.digits.experiments import RECORD

# %% [markdown]
# ## One step on a four
#
# Real digits (8×8 pixels, they come with scikit-learn) and the paper's LeNet (tanh, so that it is smooth), trained for
# three passes, so that it begins to know them. Then one plain step on one held-out four, and what it does to the belief
# "it is a four", π(four), on that image, on the sixes, and on the nines.

# %%
data = digits.embedded()
recipe = digits.Recipe(lr=0.1, images=None, epochs=3)
net = digits.train(data, network="lenet", seeds=[0], recipe=recipe, dtype=torch.float64).module()
images, labels = data.test_images.double(), data.test_labels
kind = {c: torch.nonzero(labels == c)[:, 0] for c in (4, 6, 9)}
four = images[kind[4][:1]]
seen = torch.cat([four, images[kind[6]], images[kind[9]]])  # observers: the four itself, all sixes, all nines
groups = {"the 4 itself": slice(0, 1), "6s": slice(1, 1 + len(kind[6])), "9s": slice(1 + len(kind[6]), None)}

model = influence.Model(net)
lesson = influence.teach(four, torch.tensor([4]))
step = influence.update(model, lesson, lr=0.01)
predicted = influence.predict(model, step, seen)  # one gradient and one forward-mode pass, for all observers
happened = influence.actual(model, step, seen)
before = torch.softmax(model(seen), -1)
gains = {}
print(f"π(four|four) = {before[0, 4]:.3f}; one step on it, and class 4 is thought more likely of")
for name, rows in groups.items():
    told, true = predicted[rows, 4].mean(), happened[rows, 4].mean()
    gains[name] = gain = (before[rows, 4] * happened[rows, 4].expm1()).mean()
    print(f"  {name:12s} Δ log π(4) predicted {told:+.4f}, actual {true:+.4f};  Δ π(4) {gain:+.6f}")
np.testing.assert_allclose(predicted, happened, atol=0.05 * float(happened.abs().max()))
lifted = {name: happened[rows, 4].mean() for name, rows in groups.items()}
says("by 0.038 on the four itself", lifted["the 4 itself"])
says("on the sixes, by 0.004 on the nines", lifted["9s"])
np.testing.assert_allclose(lifted["6s"], lifted["the 4 itself"], rtol=0.05)
says("8×8 pixels", *images.shape[-2:])
says("the sixes gain a third of what the four does", gains["6s"] / gains["the 4 itself"])

# %% [markdown]
# One step raises log π(four) by 0.038 on the four itself, by nearly as much on the sixes, by 0.004 on the nines. Nobody
# mentioned a six: that is K at work, and by the paper's account the way in which a language model comes to answer
# question A with the facts of question B. The scale matters, too: in probability the sixes gain a third of what the
# four does, since π(four) is smaller there; where it is minute, Δ log π may be large and nobody see it.
#
# One network, one image: is it a rule? The registry asks such questions of many networks. That a lesson on a four lifts
# "four" everywhere holds on these digits (`lifts.four-lifts-all`); that it lifts it on nines more than on noughts, as
# in the paper's example from MNIST, is open there (`lifts.four-lifts-nine`): at 8×8 pixels a four looks like a six.
#
# ## The three matrices
#
# They can be formed where the network is small. Their product is the prediction, to rounding:

# %%
parts = influence.blocks(model, step, seen[:30])
print("A", tuple(parts.A.shape), " K", tuple(parts.K.shape), " G", tuple(parts.G.shape))
change = torch.einsum("oij,ojuk,uk->oi", parts.A, parts.K, parts.G)
formula("Δ log π(·|x_o) = −η A(x_o) K(x_o, x_u) G(x_u)", predicted[:30], -step.lr * change)
a, k = parts.A[3], parts.K[0, :, 0]
np.testing.assert_allclose(a @ a, a, atol=1e-12)  # a projection …
np.testing.assert_allclose(torch.softmax(model(seen[3:4]), -1)[0] @ a, 0.0, atol=1e-12)  # … that keeps the mass
np.testing.assert_allclose(k, k.T, atol=1e-9)  # K(x, x) is symmetric,
np.testing.assert_array_less(-1e-9, torch.linalg.eigvalsh(k))  # and never negative
for id in ("decomposition.projection", "decomposition.kernel", "decomposition.residual-sums-to-zero"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# What of chapter 2 survives in a network? Write a = π − e_y. A negative step on (x, y) moves the logits of x by +ηKa,
# and the gradient of log π_y in z is e_y − π = −a, so that to first order
#
#     Δ log π_y = −η aᵀ K a ≤ 0
#
# since K(x, x) is positive semi-definite: a small step lowers *the penalised answer* in every network
# (`network.penalised-falls`). What does not survive is "y* rises": that needed K = ‖x‖² I. A class is now judged by its
# score (Ka)_i instead of π_i, and if y* shares its features with y, it goes down with it (`network.runner-up-rises` is
# refuted; in the digit networks y* still rises in most cases, `network.runner-up-mostly-rises`).
#
# A network's K splits into the head's part, which *is* a multiple of I, and the part of the layers below, which is
# not. On the four itself the head has about half of it, 0.52; on the sixes 0.30:

# %%
whole = influence.kernel(model, seen, four)[:, :, 0]
head = influence.kernel(influence.Model(net, parameters="head.*"), seen, four)[:, :, 0]
body = influence.kernel(influence.Model(net, parameters=["conv*", "full*"]), seen, four)[:, :, 0]
eye = torch.eye(10, dtype=torch.float64)
np.testing.assert_allclose(head, head[:, :1, :1] * eye, atol=1e-12)
np.testing.assert_allclose(whole, head + body, atol=1e-9)
shares = {}
raised = before[0] - torch.eye(10)[4]  # a
negative = influence.teach(four, torch.tensor([4]), weight=-1.0)
down = influence.predict(model, influence.update(model, negative, lr=step.lr), four)
formula("Δ log π_y = −η aᵀ K a ≤ 0", down[0, 4], -step.lr * raised @ whole[0] @ raised, 0)
for name, rows in groups.items():
    share = float((torch.linalg.matrix_norm(head[rows]) / torch.linalg.matrix_norm(whole[rows])).mean())
    norm = float(torch.linalg.matrix_norm(whole[rows]).mean())
    shares[name] = share
    print(f"  {name:12s} ‖K‖ = {norm:6.2f}, head alone / whole = {share:.2f}")
says("about half of it, 0.52; on the sixes 0.30", *[shares["the 4 itself"]] * 2, shares["6s"])
for id in ("network.penalised-falls", "network.runner-up-rises"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# The head alone is chapter 6: exact for whole runs, and a fraction of what a network does when all of it trains.
#
# ## How far first order reaches
#
# The error of the prediction is of second order: log error against log η has a slope of 2.00, so that a hundredth of
# the step has a ten-thousandth of the error. At η = 0.001 it is 0.2 % of the change. The constant is another matter. It
# holds the curvature of log π(x_o) along the step, and no bound by ‖∇_θ z(x_u)‖² alone can be uniform over models
# (`step.constant-free-of-features` and `step.constant-free-of-curvature` are refuted). A guide is how far the Taylor
# series of the normaliser goes: to η = 0.33 here, if the logits were linear in θ.

# %%
rates = np.geomspace(1e-5, 1e-3, 5)
found = influence.errors(model, lesson, seen, lrs=rates)
print(f"order of the error over two decades: {found.order:.3f}; error/change at η = .001: {found.relative[-1]:.1%}")
says("a slope of 2.00", found.order)
shares_of = rates[0] / rates[-1], found.error[0] / found.error[-1]
says("a hundredth of the step has a ten-thousandth of the error", *shares_of)
constant = float(found.error[-1]) / rates[-1] ** 2
formula("O(η²)", found.error, constant * rates**2, rtol=0.02, atol=0.0)
says("At η = 0.001 it is 0.2 % of the change", rates[-1], found.relative[-1])
radius = float(influence.safe_step(model, influence.update(model, lesson, lr=1.0), seen).min())
print(f"Taylor radius of log π along this step: η = {radius:.2f} (of linear logits: a guide, not a guarantee)")
says("to η = 0.33 here", radius)
for id in ("step.constant-free-of-features", "step.constant-free-of-curvature", "step.taylor-radius"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# ## Adam is another kernel
#
# Proposition 1 is about gradient descent. The paper's own runs use RMSprop, most people's AdamW: they divide each entry
# of the gradient by a root of its mean square. With D the diagonal matrix of the inverses θ moves by −ηD∇_θ z(x_u)ᵀG,
# and the kernel becomes ∇z D ∇zᵀ. Momentum and decay move θ without this lesson at all: drift. With both the
# prediction misses 0.02 % of the change; with the plain kernel 31 %, even at its best step size: it is wrong at *first*
# order, and no small step mends that.

# %%
trained = copy.deepcopy(net)
optimizer = torch.optim.Adam(trained.parameters(), lr=1e-5)
for i in range(3):  # its state after three other lessons
    optimizer.zero_grad()
    influence.teach(images[50 * i : 50 * i + 50], labels[50 * i : 50 * i + 50]).value(
        trained(images[50 * i : 50 * i + 50])
    ).backward()
    optimizer.step()
warm = influence.Model(trained)
adam = influence.update(warm, lesson, optimizer=optimizer)
true = influence.actual(warm, adam, seen)
told = influence.predict(warm, adam, seen)
drift = influence.normalised(*warm.tangent(seen, adam.drift))  # what momentum would do without this lesson
plain = influence.predict(warm, influence.update(warm, lesson, lr=1e-5), seen)
lesson_part = true - drift
plain *= (plain * lesson_part).sum() / (plain**2).sum()  # even at the best step size, and not charged with the drift
miss = {
    "∇z D ∇zᵀ + drift": float((told - true).norm() / true.norm()),
    "∇z ∇zᵀ": float((plain - lesson_part).norm() / lesson_part.norm()),
}
print("Adam, relative error: " + ", ".join(f"{name} {x:.2%}" for name, x in miss.items()))
says("misses 0.02 % of the change; with the plain kernel 31 %", *miss.values())

# %% [markdown]
# ## Sequences: token to token
#
# For a language model the answer is a sequence, and every place in it is a softmax of its own, whose context is the
# text before (*teacher forcing*: the given text, whatever the model would have said). So there is a K for every pair of
# places, and the change at place m is a sum over l of what the lesson at place l does to it (§2, Eq. 5). A small
# network with attention, one sequence, the lesson "say it":

# %%
torch.manual_seed(0)


class Attention(torch.nn.Module):
    """Embeddings of tokens and places, one causal attention, a head."""

    def __init__(self, size: int = 12, places: int = 10, d: int = 16) -> None:
        super().__init__()
        self.token, self.place = torch.nn.Embedding(size, d), torch.nn.Embedding(places, d)
        self.mix, self.norm, self.head = torch.nn.Linear(d, 3 * d), torch.nn.LayerNorm(d), torch.nn.Linear(d, size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        q, k, v = self.mix(h)[:, None].chunk(3, -1)
        h = h + torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return self.head(self.norm(h))


text = torch.randint(12, (1, 11))
reader = influence.Model(Attention().double())
say = influence.update(reader, influence.teach(text[:, :-1], text[:, 1:]), lr=0.01)
matrix = influence.blocks(reader, say, text[:, :-1]).tokens(text[:, 1:])[0, :, 0]  # (m, l)
others = (matrix.sum() - matrix.trace()) / (10 * 9)
print(f"token-to-token influence: own position {matrix.diagonal().mean():+.3f}, others {others:+.4f}")
print(f"position 2 on 7: {matrix[7, 2]:+.4f}, 7 on 2: {matrix[2, 7]:+.4f}")
np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)  # lessons act back equally, as K is symmetric
print("decomposition.lessons-act-back-equally:", hold("decomposition.lessons-act-back-equally").verdict)
np.testing.assert_array_less(0.0, matrix.diagonal())  # its own lesson lifts every token, to first order

# %% [markdown]
# A lesson is heard where it is taught: its own token rises by 0.20 nats, and what the other places hear averages to
# nothing. But there are many of them, and they do not all hear the same: some pairs move each other by 0.09.

# %%
across = matrix - torch.diag(matrix.diagonal())
says("its own token rises by 0.20 nats", matrix.diagonal().mean())
says("some pairs move each other by 0.09", across.abs().max())
says("over 32 seeds of small networks", len(RECORD["smoke"]))

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `decomposition.projection`, `decomposition.kernel`, `decomposition.residual-sums-to-zero`,
#   `network.penalised-falls`, `step.taylor-radius`; and, tested to rounding for each kind of layer, that the
#   prediction, the product of the three matrices and the tangent of the update are one.
# - **First order**: all predictions; `decomposition.lessons-act-back-equally`.
# - **Measured**: over 32 seeds of small networks that read the digits of this chapter (rung `digits`):
#   `lifts.four-lifts-all`, `network.runner-up-mostly-rises`, `akg.error-is-second-order`, `akg.preconditioned-kernel`,
#   `akg.plain-kernel-stays-wrong`.
# - **Refuted or open**: `network.runner-up-rises`, `step.constant-free-of-features`,
#   `step.constant-free-of-curvature`; open: `lifts.four-lifts-nine`.

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.8, 3.0), layout="constrained")
for i, (name, rows) in enumerate(groups.items()):
    axes[0].bar(np.arange(10) + 0.27 * (i - 1), happened[rows].mean(0).numpy(), width=0.25, label=name)
    axes[0].plot(np.arange(10) + 0.27 * (i - 1), predicted[rows].mean(0).numpy(), "k_", ms=5)
axes[0].set(xticks=range(10), xlabel="class", ylabel="Δ log π (nats)", title="step on a 4 (dash: predicted)")
axes[0].legend(fontsize=7)
axes[1].loglog(rates, found.change, "o-", label="change")
axes[1].loglog(rates, found.error, "s-", label="error of first order")
axes[1].set(xlabel="η", ylabel="nats", title="second order")
axes[1].legend(fontsize=7)
size = float(matrix.abs().max())
shown = axes[2].imshow(matrix.numpy(), cmap="RdBu_r", vmin=-size, vmax=size)
axes[2].set(xlabel="taught position l", ylabel="observed position m", title="token to token")
figure.colorbar(shown, ax=axes[2], shrink=0.85, label="predicted Δ log π (nats)")
figure.savefig("05_akg.png")
plt.close(figure)

# %% [markdown]
# ## What next
#
# Exercises: `theory/solutions/05_akg.py` (what a frozen body leaves, an answer that goes down with its neighbour, whom
# Adam's first step squeezes).
#
# One step, to first order: that is all that A·K·G says. A fine-tuning run has thousands. Is there a setting with many
# contexts, cross-talk and all, in which whole runs can be computed exactly? Yes: train the head alone. That is
# chapter 6, and it is enough for DPO to lower the answer that it prefers.
