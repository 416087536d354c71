# %% [markdown]
# # Exercises to chapter 5
#
# To first order Δ log π(·|x_o) = −η A K G; K(x_o, x_u) = ∇_θ z(x_o) ∇_θ z(x_u)ᵀ couples every pair of inputs and
# classes. `net` is the chapter's LeNet on digits; its last layer is z = W h + b, and `features` gives h.

# %%
import numpy as np
import torch

from toyld import digits, influence
from toyld import softmax as sm
from toyld.book import says
from toyld.claims import hold

data = digits.embedded()
recipe = digits.Recipe(lr=0.1, images=None, epochs=3)
net = digits.train(data, network="lenet", seeds=[0], recipe=recipe, dtype=torch.float64).module()
images, labels = data.test_images.double(), data.test_labels


def features(x):
    """The inputs h of the last layer, (n, d)."""
    seen = []
    hook = net.head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    net(x)
    hook.remove()
    return seen[0].numpy()


# %% [markdown]
# ## Exercise 1: freeze the body
#
# Train nothing but the last layer, W and b. What is K(x_o, x_u)? How large is then the error of the predicted *logits*,
# and what remains of the error of first order in the log-probabilities?
#
# Write `head_kernel(h_o, h_u)`, the number k with K = k I, and `logit_change(h_o, h_u, g, lr)`, the change of the
# logits at x_o, (V,), by one step of gradient descent on a loss with ∂L/∂z = g at x_u.


# %% tags=["solution"]
def head_kernel(h_o, h_u):
    """k with K(x_o, x_u) = k I."""
    return h_o @ h_u + 1.0


def logit_change(h_o, h_u, g, lr):
    """Δz(x_o) by one step, at any lr."""
    return -lr * head_kernel(h_o, h_u) * g


# %%
head = influence.Model(net, parameters="head.*")
taught, lesson = images[:1], influence.teach(images[:1], labels[:1])
h, h_u = features(images[:40]), features(taught)[0]
K = influence.kernel(head, images[:40], taught)[:, :, 0].numpy()
for i in range(40):
    np.testing.assert_allclose(K[i], head_kernel(h[i], h_u) * np.eye(10), atol=1e-9)
step = influence.update(head, lesson, lr=1.0)  # a large step: nothing is small here
moved = {name: head.theta[name] + d for name, d in step.displacement.items()}
change = (head.at(moved, images[:40]) - head(images[:40])).detach().numpy()
g = lesson.residual(head(taught)).detach().numpy()[0]
for i in range(40):
    np.testing.assert_allclose(change[i], logit_change(h[i], h_u, g, 1.0), atol=1e-9)
p = torch.softmax(head(images[:40]), -1).detach().numpy()
leak = (p * influence.actual(head, step, images[:40]).numpy()).sum(-1)
print(f"η = 1: logits exact; Σ π Δ log π between {leak.min():.3f} and {leak.max():.5f}")
np.testing.assert_array_less(leak, 1e-12)
hold("decomposition.mass-leak")

# %% [markdown] tags=["solution"]
# **Solution.** ∂z_k/∂W_{kj} = h_j and ∂z_k/∂b_k = 1, and no other logit sees row k. So K(x_o, x_u) = (⟨h_o, h_u⟩ + 1)
# I: every class is coupled to itself alone, all alike. The features do not move, z is linear in (W, b), and the change
# of the logits is *exactly* −η K G at any step. What first order then misses is the normaliser: the same ρ for all
# classes (chapter 1), with −ρ = Σ π Δ log π = −KL(π‖π'). So with a frozen body all of chapters 1 to 4 holds, with s =
# ηk; and at another input with k > 0 the same classes are pulled and pushed as at x_u, whatever is believed there.


# %% tags=["mistake"]
# The bias was forgotten: it, too, is shared by all inputs, and adds one to every ⟨h_o, h_u⟩.
def head_kernel(h_o, h_u):
    return h_o @ h_u


def logit_change(h_o, h_u, g, lr):
    return -lr * head_kernel(h_o, h_u) * g


# %% [markdown]
# ## Exercise 2: the answer that goes down with its neighbour
#
# In one softmax with K = I, pushing y down always lifts y*. Let K be any symmetric, positive semi-definite matrix: the
# logits move by sKa, a = π − e_y. Show that y falls whatever K. Then find a K for which y* *falls* too.
#
# Write `scores(K, p, y)`, the vector that says who gains (the class with the largest entry always does), and `K_found`,
# of three rows, for p = (0.5, 0.3, 0.2) and y = 1: class 0 is to fall, by a small step and by a large one.


# %% tags=["solution"]
def scores(K, p, y):
    """(K a)_i: to first order class i gains if its score is above the π-weighted mean of all scores."""
    return K @ (p - np.eye(len(p))[y])


K_found = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

# %%
rng = np.random.default_rng(0)
for _ in range(100):
    B, q, y = rng.normal(size=(4, 4)), rng.dirichlet(np.ones(4)), rng.integers(4)
    K = B @ B.T
    change = sm.log_softmax(np.log(q) + 0.5 * scores(K, q, y)) - np.log(q)
    np.testing.assert_array_less(change[y], 0.0)
    np.testing.assert_array_less(0.0, change[np.argmax(scores(K, q, y))])
p = np.array([0.5, 0.3, 0.2])
K_found = np.asarray(K_found, dtype=float)
np.testing.assert_allclose(K_found, K_found.T, atol=1e-12)
np.testing.assert_array_less(-1e-12, np.linalg.eigvalsh(K_found))
for s in (0.01, 1.0):
    change = sm.log_softmax(np.log(p) + s * scores(K_found, p, 1)) - np.log(p)
    np.testing.assert_array_less(change[:2], 0.0)
    print(f"s = {s:g}: Δ log π = {change.round(4)}")
np.testing.assert_equal(K_found.shape, (len(p), len(p)))
says("for p = (0.5, 0.3, 0.2)", *p)
says("(−0.2, −0.2, 0)", *scores(K_found, p, 1))
for id in ("network.penalised-falls", "network.top-score-rises", "network.runner-up-rises"):
    hold(id)

# %% [markdown] tags=["solution"]
# **Solution.** log π_y is concave in z with gradient e_y − π = −a, so it stays below its tangent: Δ log π_y ≤ −s aᵀKa ≤
# 0.
#
# As in chapter 2, log π'_i/π_i = s(Ka)_i − K(s) with a mean K(s): a class gains if its score is high. For y* to have a
# low one, let it share what y has: K = v vᵀ with v = (1, 1, 0), two answers that hang on one feature. Then Ka = v⟨v, a⟩
# and ⟨v, a⟩ = π_0 + π_1 − 1 < 0: the scores are (−0.2, −0.2, 0). Both go down together, and the third class, which
# nobody had in mind, takes all. Paraphrases of a rejected answer are such neighbours; so is a good answer that
# begins with the same words.


# %% tags=["mistake"]
# K was asked to lower y* by force, through a negative diagonal: no features have a negative square.
def scores(K, p, y):
    return K @ (p - np.eye(len(p))[y])


K_found = np.diag([-1.0, 1.0, 1.0])

# %% [markdown]
# ## Exercise 3: whom does Adam's first step squeeze?
#
# z = Wx, one example, a negative gradient on y. Plain descent squeezes: y* gains, the poor lose. Now take one step of
# Adam (no history, ε → 0): its first update divides each entry of the gradient by its own absolute value. Derive the
# change of the logits at x, and predict who of the others gains.
#
# Write `adam_first_step(x, g, lr)`, the change of z at the same input x by Adam's first step on a loss with ∂L/∂z = g,
# and `losers`, the number of classes other than y that lose when y is pushed down so in a model of 50 classes.


# %% tags=["solution"]
def adam_first_step(x, g, lr):
    """Δz (V,) at x."""
    return -lr * np.abs(x).sum() * np.sign(g)


losers = 0

# %%
V, y = 50, 7
x, W = rng.normal(size=6), rng.normal(size=(V, 6))
z = W @ x
weight = torch.nn.Parameter(torch.tensor(W))
optimizer = torch.optim.Adam([weight], lr=0.01, eps=1e-300)
torch.log_softmax(weight @ torch.tensor(x), 0)[y].backward()  # descend on +log π_y: push y down
optimizer.step()
change = weight.detach().numpy() @ x - z
np.testing.assert_allclose(change, adam_first_step(x, sm.residual(z, y, c=-1.0), 0.01), rtol=1e-7)
adam = np.delete(sm.log_softmax(z + change) - sm.log_softmax(z), y)
plain = np.delete(sm.log_alpha(z, y, s=0.01 * x @ x), y)
np.testing.assert_equal([losers, True], [int((adam < 0).sum()), bool((plain < 0).sum() > 0)])
print(f"plain descent: {(plain < 0).sum()} of {V - 1} others lose; Adam's first step: {(adam < 0).sum()}")
more = 100
for _ in range(more):
    optimizer.zero_grad()
    torch.log_softmax(weight @ torch.tensor(x), 0)[y].backward()
    optimizer.step()
later = sm.log_softmax(weight.detach().numpy() @ x) - sm.log_softmax(z)
np.testing.assert_array_less(0.0, np.delete(later, y))
says("in a model of 50 classes", V)
says("in 100 more steps", more)
hold("residual.rmsprop-divides-out-beta")

# %% [markdown] tags=["solution"]
# **Solution.** The gradient in W is g xᵀ, and divided by its absolute values it is sign(g) sign(x)ᵀ. So W moves by
# −lr sign(g) sign(x)ᵀ, and Δz = −lr sign(g) ⟨sign(x), x⟩ = −lr ‖x‖₁ sign(g).
#
# For a negative gradient g = −(π − e_y): every class but y has the sign −, however probable it is. All other logits
# rise by the same amount, and y's falls by it; after normalising all others gain by one and the same factor. Nobody is
# squeezed: it was the π in G that made the rich richer, and Adam's first step has thrown its size away, with that of β
# in DPO (chapter 4).
#
# Nor does it squeeze anybody in 100 more steps on this one example: the mean squares that Adam divides by remember the
# size of each entry by itself, and each stays near sign(g). But an example is not a run. With others in the batch and
# in the running means, the divisor of an entry is set by them as well: K is then ∇z D ∇zᵀ with their D (chapter 5), and
# the rule of chapter 2 says nothing about it, in either direction.


# %% tags=["mistake"]
# The kernel of plain descent was kept: with Adam K is no longer ‖x‖² I.
def adam_first_step(x, g, lr):
    return -lr * (x @ x) * g


losers = 49
