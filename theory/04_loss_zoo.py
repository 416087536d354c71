# %% [markdown]
# # 4. The loss zoo: who stops pushing, and with what
#
# **Question.** DPO, IPO, SPPO, KTO, NPO, … all want the rejected answer y⁻ below the chosen y⁺. Chapter 2 says what a
# negative gradient does. So for each loss: how hard does it push y⁻ down, and what makes it let go?
#
# Write ℓ = Σ_t log π(y_t) for the log-probability of an answer, r = ℓ − ℓ_ref, and h = r₊ − r₋ for the margin.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from toyld import objectives
from toyld import softmax as sm
from toyld.claims import hold
from toyld.objectives import get, pair_batch

# %% [markdown]
# ## One residual for all
#
# Every loss of log-probabilities has, at each token of an answer, the gradient
#
#     G = ∂loss/∂z = c (π − e_y),        c = −∂loss/∂ log π_y          (§3.1; App. B.2.2)
#
# the residual of SFT times one number. Losses differ in c₊ and c₋ only. c > 0 pulls the answer up, c < 0 is a negative
# gradient. Here is DPO's, by automatic differentiation and by its formula c₊ = β(1 − a), a = σ(βh) (Eq. 7).

# %%
z = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
y, other = 1, torch.tensor([-3.0], dtype=torch.float64)
own = torch.log_softmax(z, 0)[y : y + 1]
dpo = get("dpo", beta=0.1)
batch = pair_batch(own, other, own.detach() - 0.7, other)  # y⁺ is 0.7 nats above its reference, so h = 0.7
dpo.loss(batch).sum().backward()
c = 0.1 * (1 - 1 / (1 + np.exp(-0.1 * 0.7)))
print("autograd :", z.grad.numpy().round(5))
print("c (π − e):", sm.residual(z.detach().numpy(), y, c=c).round(5))
np.testing.assert_allclose(z.grad.numpy(), sm.residual(z.detach().numpy(), y, c=c), atol=1e-15)
for name in ("sft", "dpo", "ipo", "sppo", "kto", "npo"):
    print(hold(f"residual.{name}").claim.statement)

# %% [markdown]
# ## The table
#
# The package computes this table from the losses' code, by probing; nothing in it is typed in by hand
# (`python -m toyld.objectives` prints all of it). The start is π = π_ref, one token of −1 nat each.

# %%
names = ("sft", "ga", objectives.Robust.name, "npo", "dpo", "ipo", "sppo", "kto", "slic", "nsr", "unlikelihood", "ppo")
for name in names:
    row = objectives.row(name)
    print(f"{name:13s} c₊ {row.plus:6.3f}  c₋ {row.minus:7.3f}  fades with: {row.fades:38s} floor: {row.bounded}")
for id in ("residual.sign-table", "residual.caps", "residual.floors", "residual.no-floor"):
    hold(id)

# %% [markdown]
# What makes the push fade is one of four things.
#
# - **nothing**: GA, and robust DPO, whose label smoothing keeps a push of βε/(1 − 2ε) for ever. No floor either.
# - **the margin** (DPO, IPO, SLiC): only the *difference* counts, not how improbable y⁻ is by itself.
# - **a log-ratio of its own** (NPO, KTO, SPPO; for PPO to the old policy): how far y⁻ has come.
# - **its own probability** (unlikelihood, NSR): a rare answer is left alone. These spare the valleys of chapter 2.
#
# The difference in numbers, at the reference, for ever rarer y⁻:

# %%
rare = np.log([1e-1, 1e-3, 1e-6, 1e-12])
calm = np.full_like(rare, -1.0)
for name in ("dpo", "ipo", "npo", "unlikelihood", "nsr"):
    pushes = get(name).push(pair_batch(calm, rare)).rejected[:, 0]  # π = π_ref: margin 0, log-ratio 0
    print(f"{name:13s} push on y⁻ at π(y⁻) = 1e-1, 1e-3, 1e-6, 1e-12:", " ".join(f"{c:9.2g}" for c in pushes))
np.testing.assert_array_equal(get("dpo").push(pair_batch(calm, rare)).rejected[:, 0], -0.05)

# %% [markdown]
# ## Why DPO is gentle, and when it is not
#
# At π = π_ref the coefficient is β/2: with β = 0.1 a DPO step is a twentieth of an SFT step at the same learning rate.
# It is never above β and never changes sign. But this is a statement about plain gradient descent. RMSprop and Adam
# divide by the size of the gradient, and the factor β/2 with it.

# %%
hold("residual.dpo-at-reference")
hold("residual.dpo-never-reverses")
hold("residual.rmsprop-divides-out-beta")

# %% [markdown]
# ## Six losses run
#
# y⁺ and y⁻ at contexts of their own, each a softmax over four classes with the label at 1/4; β = 1, η = 1/β = 1. How
# far has y⁻ fallen after n steps of size s = 0.1?


# %%
def run(objective, marks, s=0.1):
    """Log-ratios (r₊, r₋) and the loss at the step numbers in `marks`."""
    start, logits, seen = np.log([0.25]), {1: np.zeros(4), -1: np.zeros(4)}, []
    for n in range(max(marks) + 1):
        plus, minus = (sm.log_softmax(logits[side])[:1] for side in (1, -1))
        batch = pair_batch(plus, minus, start, start)
        if n in marks:
            seen.append((plus[0] - start[0], minus[0] - start[0], objective.loss(batch)[0]))
        for side, push in zip((1, -1), objective.push(batch)[:2], strict=True):
            logits[side] = sm.step(logits[side], sm.residual(logits[side], 0, c=push[0, 0]), s=s)
    return np.array(seen)


marks = (10, 100, 1000)
runs = {
    "ga": run(get("ga"), marks),
    "npo": run(get("npo", beta=1.0), marks),
    "kto": run(get("kto", beta=1.0), marks),
    "dpo": run(get("dpo", beta=1.0), marks),
    "ipo": run(get("ipo", beta=1.0), marks),
    "sppo": run(get("sppo", eta=1.0), marks),
}
print("log-ratio of y⁻ after n =", *marks, "steps, and the loss at the end")
for name, seen in runs.items():
    print(f"{name:5s}", " ".join(f"{r:9.3f}" for r in seen[:, 1]), f"   loss {seen[-1, 2]:9.4f}")
margins = {name: seen[:, 0] - seen[:, 1] for name, seen in runs.items()}
growth = np.diff(margins["dpo"])[-1] / np.log(marks[-1] / marks[-2])
print(f"DPO's margin grows by {growth:.2f} per e-fold of n; IPO's ends at {margins['ipo'][-1]:.4f}")
np.testing.assert_allclose(growth, 1.0, atol=0.05)  # 1/β
np.testing.assert_allclose(margins["ipo"][-1], 0.5, atol=1e-9)  # 1/2β
np.testing.assert_allclose(runs["sppo"][-1, 1], -0.5, atol=1e-9)  # −η/2

# %% [markdown]
# GA runs off linearly. NPO and DPO never stop either: they slow down like (1/β) log n, and KTO looks the same. IPO and
# SPPO stop at a target, margin 1/2β and log-ratio −η/2, and a step s ≤ 1/8 (IPO) or 1/4 (SPPO) does not overshoot it.
# Beyond its target IPO turns round and pulls y⁻ up, exactly against DPO, whose direction it shared until then.

# %%
for id in (
    "unlearning.ga-linear",
    "unlearning.npo-logarithmic",
    "residual.dpo-never-stops",
    "residual.ipo-stops-at-target",
    "residual.sppo-stops-at-target",
    "residual.ipo-sides-with-dpo",
    "residual.ipo-reverses",
):
    hold(id)

# %% [markdown]
# ## Three slips worth knowing
#
# The paper's appendix prints the coefficient of IPO as β(1 − a) with a = h − 1/2β: that is β at the target, where the
# true one is zero (Eq. 17). It gives SLiC DPO's factor β(1 − a), where there is none (Eq. 20). And it says that SPPO
# has no negative gradient (Eq. 22): it has c₋ = −η at the reference. What tames it is not its sign but that it ends.

# %%
for id in ("residual.printed-ipo", "residual.printed-slic", "residual.sppo-has-no-negative-gradient"):
    result = hold(id)
    print(f"{result.verdict}: {result.claim.statement}")

# %% [markdown]
# ## “The loss goes to zero” is not “the push on y⁻ goes to zero”
#
# 1. DPO's loss does go to zero above, while log π(y⁻) falls without end: the pushes are small, their sum is infinite.
# 2. GRPO's loss *is* zero at the first inner step, since a group's advantages sum to zero. Its push is not.
# 3. A push may be gone where the loss is at its worst. KTO's and APO-zero's sigmoids fade both ways: a y⁻ that is far
#    above its reference is out of their reach.
# 4. Robust DPO's loss goes through zero and on to −∞, its push does not go to zero at all.

# %%
start = np.array([-2.0])
grpo = get("grpo")
print("GRPO  loss", grpo.loss(pair_batch(start, start)), " push on y⁻", grpo.push(pair_batch(start, start)).rejected[0])
np.testing.assert_array_equal(grpo.loss(pair_batch(start, start)), 0.0)
lifted = pair_batch(start, start, start, start - 100.0)  # y⁻ is 100 nats above its reference
apo, robust = objectives.APOZero(), objectives.Robust()
half = apo.loss(lifted)[0] - 0.5  # the other half is y⁺, at its reference
print(f"APO-zero  y⁻'s half of the loss {half:.4f}, of at most 1; push on y⁻ {apo.push(lifted).rejected[0, 0]:.1e}")
for margin in (0.0, 20.0, 40.0, 400.0):
    won = pair_batch(start, start, start - margin, start)
    pushed = robust.push(won).rejected[0, 0]
    print(f"robust DPO  margin {margin:5.0f}: loss {robust.loss(won)[0]:8.4f}  c₋ {pushed:.4f}")
np.testing.assert_allclose(robust.push(won).rejected, -0.1 * 0.1 / 0.8)

# %% [markdown]
# ## Picture
#
# One-token answers. y⁻ starts at π = π_ref = 0.1 and is pushed down while y⁺ stays. The push on it, relative to its
# start: 1 = as hard as then, 0 = let go, below 0 = pulled up. With y⁺ held still the margin and the own log-ratio are
# one number, so DPO and NPO coincide here, and so do IPO and SPPO.

# %%
logp = np.linspace(np.log(0.1), np.log(1e-12), 200)
styles = {"ga": "-", "dpo": "-", "npo": "--", "kto": "-.", "slic": ":", "ipo": "-", "sppo": "--", "unlikelihood": "-."}
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, style in styles.items():
    # A pair at a time: KTO looks across the batch.
    fixed = np.log([0.1])
    push = [get(name).push(pair_batch(fixed, lp[None], fixed, fixed)).rejected[0, 0] for lp in logp]
    ax.plot(logp / np.log(10), np.array(push) / push[0], style, label=name)
ax.axhline(0, color="black", lw=0.6)
ax.invert_xaxis()
ax.set(
    xlabel="log₁₀ π(y⁻)", ylabel="push on y⁻ / its start", title="Who lets go (default parameters)", ylim=(-1.5, 1.15)
)
ax.legend(loc="lower left", ncols=2, fontsize=8)
figure.savefig("04_loss_zoo.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# Your DPO log shows, for one pair, a loss of 0.05. How hard is y⁻ still being pushed, as a share of the push at the
# start? And if 0.05 is the *mean* over pairs?
#
# **Solution.** The loss is L = −log a, so |c₋| = β(1 − a) = β(1 − e^{−L}): at the start L = log 2 gives β/2; at L =
# .05 it is .0488 β, a tenth of that. DPO's push can be read off its loss, pair by pair. A mean gives only a bound: 1 −
# e^{−L} is concave, so the mean push is *at most* that. If nine pairs in ten are settled and the tenth has L = .5, the
# mean loss is .05 and the mean push .039 β, all of it on one answer, at eight tenths of its start.

# %%
margin = -np.log(np.expm1(0.05)) / 0.1  # the h with loss 0.05 at β = 0.1
settled = pair_batch(start, start, start - margin, start)
ratio = dpo.push(settled).rejected[0, 0] / dpo.push(pair_batch(start, start)).rejected[0, 0]
print(f"loss {dpo.loss(settled)[0]:.4f}: push {ratio:.3f} of its start")
np.testing.assert_allclose(dpo.loss(settled), 0.05)
np.testing.assert_allclose(ratio, 2 * (1 - np.exp(-0.05)))
print(f"one pair in ten at loss 0.5: mean push {0.1 * (1 - np.exp(-0.5)):.3f} β")
hold("residual.dpo-never-reverses")
