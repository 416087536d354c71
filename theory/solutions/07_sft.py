# %% [markdown]
# # Exercises to chapter 7
#
# All three live in one or two softmaxes, where (7.2) with h of length one is all there is and a whole run of SFT takes
# a moment. `sft` gives the logits of one softmax along such a run.

# %%
import numpy as np

from toyld import contexts, objectives
from toyld import softmax as sm
from toyld.book import formula, says
from toyld.contexts import Gram, Responses, World


def sft(z, y, *, s, updates):
    """Logits (updates + 1, V) along SFT on token y."""
    path = [np.asarray(z, float)]
    for _ in range(updates):
        path.append(sm.step(path[-1], sm.residual(path[-1], y), s=s))
    return np.array(path)


# %% [markdown]
# ## Exercise 1: a model's own answers
#
# Let the model answer as it always did, v ~ π, at the one context where SFT teaches y. By (7.2) with o = u and step
# s = η‖h‖², what happens to log π(v), to first order and per unit of s, on average over its answers? And to the part of
# that average that comes from answers other than y?
#
# Write `drift(p, y)`, which returns both numbers, Σ_v π(v) Δ(v)/s over all v and over v ≠ y. What does that say of
# `rejected`, and of S2?

# %% tags=["solution"]


def drift(p, y):
    """Σ_v π(v) Δ(v)/s over all tokens, and over those that are not y."""
    others = -p[y] * (1 - 2 * p[y] + (p**2).sum())
    return 0.0, others


# %%
rng = np.random.default_rng(7)
s = 1e-6
for size in (2, 5, 39):
    z, y = rng.normal(0.0, 2.0, size), 1
    p = sm.softmax(z)
    before, after = sm.log_softmax(sft(z, y, s=s, updates=1))
    change = p * (after - before) / s
    np.testing.assert_allclose(drift(p, y), [change.sum(), change.sum() - change[y]], atol=1e-5)
    print(f"{size} tokens, π(y) = {p[y]:.3f}: other answers lose {-drift(p, y)[1]:.4f} s together, y gains as much")
formula("π(y)(1 − 2π(y) + ‖π‖²)", change[y], p[y] * (1 - 2 * p[y] + (p**2).sum()), rtol=1e-4)
np.testing.assert_array_less(p[y] * (1 - p[y]) ** 2, -drift(p, y)[1])

# %% [markdown] tags=["solution"]
# **Solution.** With o = u the bracket of (7.2) is 1[v = y] − π(v) + ‖π‖² − π(y). Its mean over v ~ π is
# π(y) − ‖π‖² + ‖π‖² − π(y) = 0: to first order nothing moves a model's own answers on average, for it takes away as
# much from some as it gives to others. The part from v = y is π(y)(1 − 2π(y) + ‖π‖²), at least π(y)(1 − π(y))² since
# ‖π‖² is at least π(y)², so that all other answers together lose exactly as much. `rejected` is such an answer, and
# mostly not y⁺: it falls at once, the faster the likelier y⁺ has become, and to second order (−KL) y's gain does not
# even make up for it. So a fall of own answers is no finding. S2 needs responses that the model finds improbable.

# %% tags=["mistake"]
# Only the tokens' own logits were counted, and the normalisation forgotten: v rises if taught and falls if likely.


def drift(p, y):
    return p[y] - (p**2).sum(), p[y] ** 2 - (p**2).sum()


# %% [markdown]
# ## Exercise 2: make a bell
#
# Give logits `z` of five tokens, a label `y` and another token `v` such that SFT on y first raises log π(v) by more
# than a nat and in the end leaves it below its start. Before you run it, predict π(y) at the top of the bell, in the
# limit where v and all tokens but two are improbable: `turn`.

# %% tags=["solution"]
z = [6.0, 0.0, -1.0, -1.0, -1.0]
y, v = 1, 2
turn = 0.5

# %%
path = sm.log_softmax(sft(z, y, s=0.05, updates=6000))
top = int(path[:, v].argmax())
np.testing.assert_array_less(path[0, v] + 1.0, path[top, v])
np.testing.assert_array_less(path[-1, v], path[0, v])
np.testing.assert_equal(v != y, True)
np.testing.assert_allclose(np.exp(path[top, y]), turn, atol=0.05)
rise, end = path[top, v] - path[0, v], path[-1, v] - path[0, v]
print(f"log π(v) rises by {rise:.1f} nats, turns at π(y) = {np.exp(path[top, y]):.2f} and ends {end:+.1f}")
q = np.array([0.5, 1.0])
formula("π(y) = π(y)² + (1 − π(y))²", q, q**2 + (1 - q) ** 2)
says("by 2.2 nats", rise)
says("with the roots one half and one", q[0])

# %% [markdown] tags=["solution"]
# **Solution.** Let the model be sure of a third token at first. SFT takes from that token, which is likely, and gives
# to y; v's own logit hardly moves, for it is neither taught nor likely. But the normaliser falls with the favourite, so
# log π(v) rises, here by 2.2 nats. It turns where π(v) = ‖π‖² − π(y). If nearly all of π is on y and the old favourite,
# this reads π(y) = π(y)² + (1 − π(y))², with the roots one half and one: v turns when y overtakes. From then on y's own
# growing logit is the normaliser. So rephrases of y⁺ can show a bell if the model was sure of something else, and a
# model's own answer, being what it was sure of, cannot.

# %% tags=["mistake"]
# What the model says itself was taken for v, its old favourite: that one is pushed down from the first update on.
z = [6.0, 0.0, -1.0, -1.0, -1.0]
y, v = 1, 0
turn = 0.5

# %% [markdown]
# ## Exercise 3: whose fact rises behind whose question?
#
# Two questions A and B, one context each, with features of length one and cosine ρ. SFT teaches both, y_A at A and y_B
# at B ≠ A, as the mean of two losses; only the head trains. What becomes of log π_A(y_B), B's fact behind A's question?
#
# Write `critical(p_a, p_b, y_a, y_b)`: the ρ above which it rises at the first update (to first order). Then predict,
# for a cosine of .6 and a uniform start over five tokens, the sign of its change at the first update and at the last of
# a long run: `signs`, two numbers ±1.

# %% tags=["solution"]


def critical(p_a, p_b, y_a, y_b):
    """The cosine above which B's fact rises behind A's question at the first update."""
    own = p_a[y_b] + p_a[y_a] - p_a @ p_a
    pull = 1.0 - p_b[y_b] + p_a @ p_b - p_a[y_b]
    return own / pull


signs = (1, -1)

# %%


def behind(z_a, z_b, y_a, y_b, rho, **options):
    """log π_A(y_B) along SFT on both questions."""
    rows = {"chosen": [y_a, y_b], "irr_train": [y_b, y_a]}
    where, ones = np.array([[[0], [1]]]), np.ones((1, 2, 1), bool)
    kinds = {kind: Responses(where, np.array(tokens)[None, :, None], ones) for kind, tokens in rows.items()}
    world = World(np.array([[z_a, z_b]], float), Gram(np.array([[[1.0, rho], [rho, 1.0]]])), kinds, 2, (0,))
    run = contexts.train(world, objectives.get("sft"), at=range(options["steps"] + 1), **options)
    return run.value("logp", "irr_train")[:, 0, 0]


for z_a, z_b in ([np.zeros(5)] * 2, rng.normal(0.0, 0.7, (2, 5)), rng.normal(0.0, 0.7, (2, 5))):
    edge = critical(sm.softmax(z_a), sm.softmax(z_b), 0, 1)
    for rho in (edge - 0.05, edge + 0.05):
        step = np.diff(behind(z_a, z_b, 0, 1, rho, lr=1e-4, steps=1))[0]
        np.testing.assert_equal(bool(step > 0.0), bool(rho > edge), err_msg=f"at cosine {rho}")
    print(f"B's fact rises behind A above a cosine of {edge:.3f}")
rho = 0.6
long = np.diff(behind(np.zeros(5), np.zeros(5), 0, 1, rho, lr=0.2, steps=400))
says("for a cosine of .6", rho)
np.testing.assert_equal(tuple(np.sign(long[[0, -1]])), signs)
classes = 5
uniform = np.full(classes, 1.0 / classes)
y_a, y_b = 0, 1
formula("the edge is 1/(V − 1)", critical(uniform, uniform, y_a, y_b), 1 / (classes - 1))
rising = int((long > 0.0).argmin())
print(f"from a uniform start, at cosine {rho}, it rises for {rising} updates and then falls")
says("here it rises for 13 updates and falls for ever after", rising)
np.testing.assert_array_less(long[rising:], 0.0)

# %% [markdown] tags=["solution"]
# **Solution.** (7.2) at o = A, v = y_B. The lesson at A itself (u = A) gives −π_A(y_B) + ‖π_A‖² − π_A(y_A): B's fact is
# not what A is taught. The lesson at B gives ρ times 1 − π_B(y_B) + ⟨π_A, π_B⟩ − π_A(y_B): there it is. So the edge is
# where the two cancel; from a uniform start the edge is 1/(V − 1), small for many tokens: nearly any similarity will
# do.
#
# Later both lessons fade with what is left to learn. Let e = 1 − π(y_A) at A, and q = π(y_B) there; by symmetry the
# same is left at B. The logit of B's fact at A gains ρe − q, that of A's own answer e − ρq, and A's own answer has
# become the normaliser: log π_A(y_B) changes by the difference, −(1 − ρ)(e + q), for every ρ below one. Up, then down:
# here it rises for 13 updates and falls for ever after. S3, too, is a bell.

# %% tags=["mistake"]
# Only B's lesson was followed: it always pulls B's fact up behind A. But A has a lesson of its own.


def critical(p_a, p_b, y_a, y_b):
    return 0.0


signs = (1, 1)
