# %% [markdown]
# # 10. Policy gradients: when is a negative gradient harmless?
#
# **Question.** DPO pushes rejected answers down and squeezes (chapter 2). PPO, GRPO and REINFORCE push wrong answers
# down in every update and are said to do no harm: because the model sampled the answers itself, and because of the
# ratio π/π_old (App. A.3 of the paper). Which of the two protects, from what, and when does neither?

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import objectives
from toyld import softmax as sm
from toyld.claims import hold
from toyld.tiny.experiments import policy
from toyld.tiny.reinforce import Practice, Round
from toyld.tiny.verifier import ask_models

# %% [markdown]
# ## From the theorem to the residual
#
# The policy-gradient theorem writes the gradient of an expected reward as an expectation over what is sampled,
#
# > (10.1) ∇ E_π[r] = E_{y~π}[Â_y ∇ log π_y], Â = r − b for any baseline b, for E_{y~π}[∇ log π_y] = 0.
#
# With ∇_z log π_y = e_y − π, one sampled token moves its logits along −Â(π − e_y): the residual of chapter 1 with
# coefficient c = Â. Descent on it is SFT on y where Â > 0 and a negative gradient where Â < 0. The baseline, and
# whether one keeps only right answers (Â = r) or only wrong ones (Â = r − 1), change the expectation not at all.

# %%
z, r = np.array([2.0, 1.0, 0.0, -1.0, -4.0]), np.array([1.0, 0.0, 1.0, 0.0, 0.0])
p = sm.softmax(z)
every = {b: -sum(p[y] * sm.residual(z, np.array(y), c=np.array(r[y] - b)) for y in range(5)) for b in (0.0, 0.4, 1.0)}
for b, gradient in every.items():
    print(f"baseline {b:.1f}: ∇E[r] =", gradient.round(4))
    np.testing.assert_allclose(gradient, p * (r - p @ r), atol=1e-15)
for id in ("policy.psr-equals-nsr", "policy.grpo-weights"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# ## The signs, from samples
#
# What is equal in expectation is not equal in a sample. Five tiny transformers were taught eight answers for a little
# while, so that about one in nine of the answers that they sample is right; a verifier knows the facts. Take the
# gradients of right answers pushed up and of wrong ones pushed down, from 8 answers a prompt: do two samples agree? Do
# the signs?

# %%
start, models = policy.begun(tuple(range(2000, 2005)))
noise = policy.noise(start, models)
for arm, words in (("signed +", "right ones up"), ("signed −", "wrong ones down")):
    one = noise[f"policy, noise, {arm}"]
    norm, cosine = one.eval_norm.values.mean(), one.eval_draws.values.mean()
    print(f"{words:16s} norm {norm:.2f}, cosine of two samples {cosine:.2f}")
one = noise["policy, noise, signed +"]
print(f"cosine of the two signs, 8 answers a prompt: {one.eval_signs.values.mean():.2f};", end=" ")
print(f"64 answers: {one.eval_all.values.mean():.2f}")
found = hold("reinforcement.negatives-are-noisier", runs=noise)
effect = found.effect
print(f"{found.claim.id}: {found.verdict}, {effect.value:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]")

# %% [markdown]
# Nine in ten answers are wrong. To push all of them down is to push the few right ones up, as a small difference of
# large numbers: a gradient four times as long, of which most is noise. So it is the size of the step that counts. At
# the rate .1 of the right ones, 8 iterations of negatives alone gain less (`reinforcement.positives-gain-more`: p =
# 4e-4, left open by Holm's correction) and lose pass@16 (`reinforcement.negatives-keep-pass`, refuted), the opposite of
# what was reported for a model that is right at 63 % (Zhu et al. 2025). With 32 iterations at a quarter of that rate,
# whose steps are as long as those of the positives, the sum of the rates and so at first order the expected path are
# the same, but the loss is far smaller (`reinforcement.small-steps-spare-pass`), and right answers gain .08, positives
# .10: what negatives cost here is samples, four times as many. GRPO's division by the group's spread gives both signs
# one total weight and leaves out prompts without a right answer, where there is nothing but noise.

# %% [markdown]
# ## PPO's ratio
#
# PPO takes the ratio ρ = π_y/π_old and clips it: for Â < 0
#
# > (10.2) c = Âρ for ρ ≥ 1 − ε, and 0 below: *linear in π_y, then nothing.*
#
# That is damping relative to π_old, and π_old is what the *first* inner update starts from. There ρ = 1 and the push is
# Â, however rare the token: PPO does not spare valleys. Look at real samples, before and after some updates on them.

# %%
how = Practice(samples=8, positive=0.0, lr=0.1)
said = ask_models(models, start.language, start.data.prompts["chosen"], samples=8, draw=1)
one = Round(models, start.language, said, how)
first, now = one.tokens(one.logits), models
for _ in range(4):
    now = type(now)(now.shape, now.seeds, now.flat - 0.1 * one.gradient(now))
then = one.tokens(one.read(now))
pushed = np.isfinite(first["push"])
rare = pushed & (first["logp"] < -5.0)
print(f"first update: push {first['push'][pushed].min():.4f} to {first['push'][pushed].max():.4f}", end="; ")
print(f"{rare.sum()} tokens below e⁻⁵ among them")
ratio = np.exp(then["logp"] - first["logp"])
clip = objectives.PPO().clip
cut = pushed & (ratio < 1.0 - clip - 1e-5)
alive = pushed & (ratio > 1.0 - clip + 1e-5)
# float32: log π is off by about 1e-6, and the push is read off a residual as small as ‖π − e‖
known = alive & (first["gap"] > 1e-2) & (then["gap"] > 1e-2)
np.testing.assert_allclose(first["push"][pushed & (first["gap"] > 1e-2)], -1.0, rtol=1e-3)
np.testing.assert_allclose(then["push"][known], -ratio[known], rtol=1e-3)
np.testing.assert_array_equal(then["push"][cut], 0.0)
print(
    f"after 4: −ρ for {alive.sum()} tokens, 0 for {cut.sum()}; cut off of the rare {np.mean(cut[rare]):.2f},", end=" "
)
print(f"of the others {np.mean(cut[pushed & ~rare]):.2f}")
for id in ("policy.ppo-push", "policy.ppo-spares-valleys", "policy.ppo-inner-epochs"):
    print(f"{id}: {hold(id).verdict}")
inner = policy.inner(start, models)
for id in ("reinforcement.first-update-hits-valleys", "reinforcement.clip-stops-rare-tokens"):
    print(f"{id}: {hold(id, runs=inner).verdict}")

# %% [markdown]
# ## Whose answers
#
# So in a strictly on-policy update it is the sampling that protects, not the ratio: rare tokens get the full push, but
# rarely. In expectation over y ~ π the push on every logit is 0, and so is the threshold between losers and winners
# (T7). Push wrong answers down and do nothing else, for six iterations: the models' own answers; hotter ones; such as
# the models gave at the start, again and again.

# %%
behaviour = policy.behaviour(start, models)
print("wrong answers  in valleys  losers  ‖π − e‖ first, last  held-out right answers, nats  entropy there")
for ds in behaviour.values():
    valley, gap, losers = (ds[f"eval_{key}"].values for key in ("valley", "gap", "losers"))
    held, h = ds.eval_logp_new.values, ds.eval_entropy_new.values
    print(f"{ds.attrs['arm']:14s} {valley[:, 0].mean():10.2f} {losers[:, 0].mean():7.2f}", end=" ")
    print(f"{gap[:, 0].mean():13.2f} {gap[:, -2].mean():5.2f} {(held[:, -1] - held[:, 0]).mean():+26.1f}", end=" ")
    print(f"{h[:, 0].mean():18.2f} → {h[:, -1].mean():.2f}")
for id in ("own-answers-avoid-valleys", "own-answers-squeeze-less", "own-answers-spare-held-out"):
    print(f"reinforcement.{id}: {hold(f'reinforcement.{id}', runs=behaviour).verdict}")

# %% [markdown]
# What the models say themselves costs little. Hotter samples lie in valleys twice as often and squeeze: nine of ten
# other tokens lose, and entropy falls by about half (−55 % over 20 seeds). And answers that were the models' own once
# stop being so: pushed down again and again, they slide into valleys, where the push is strongest
# (`reinforcement.frozen-answers-spiral`). There the ratio seems to protect, since it is taken to whoever sampled
# (`reinforcement.ratio-ends-the-spiral`). Both are open: p = 4e-4 and 3e-4 over 20 seeds, which Holm's correction over
# all claims does not pass.
#
# Neither protects right answers. In models that know nearly half of the answers already,
# one update of GRPO lowers the right ones at half of the prompts, its positive half at one in nine
# (`reinforcement.displaces-the-taught`: lazy likelihood displacement), and much of this is the size of the step. Which
# prompts gain can be foretold from hidden states and errors (GWHES, `reinforcement.gwhes-ranks-prompts`); but that what
# is improbable has most to gain tells much of it already, and that GWHES tells more is not sure
# (`reinforcement.gwhes-beats-surprise`, open).
#
# | 20 seeds | effect [95 %] |
# |---|---|
# | GRPO, 8 iterations: share of right answers, trained prompts | +.12 [.08, .16] |
# | the same, held-out prompts | −.00 [−.01, .00] |
# | right ones up against wrong ones down, 8 iterations at .1: share of right answers (open) | +.07 [.04, .11] |
# | wrong ones down, 8 iterations at .1: pass@16 | −.24 [−.30, −.17] |
# | wrong ones down, 32 iterations at .025: pass@16 | −.04 [−.09, .01] |
# | the same: share of right answers | +.08 [.04, .12] |
# | GRPO's negative against its positive half: entropy, nats a token | +.13 [.08, .19] |
# | prompts whose right answers fall by GRPO, not by its positive half, half known | +.39 [.26, .53] |
# | rank correlation of −GWHES with the gain of right answers (19 seeds) | +.40 [.28, .52] |
# | the same of −log π of the right answers before | +.31 [.21, .41] |
# | difference of the two (open) | +.09 [−.07, .24] |

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.0), layout="constrained")
some = np.random.default_rng(0).permutation(np.flatnonzero(pushed))[:1500]
axes[0].scatter(first["logp"].ravel()[some], first["push"].ravel()[some], s=3, color="tab:gray", label="first update")
axes[0].scatter(first["logp"].ravel()[some], then["push"].ravel()[some], s=3, color="tab:red", label="fifth update")
axes[0].set(xlabel="log π_old of the token", ylabel="push c", ylim=(-1.8, 0.1))
axes[0].legend(fontsize=7)
colours = {"own": "black", "hot": "tab:orange", "frozen": "tab:red", "frozen, ppo": "tab:blue"}
for arm, colour in colours.items():
    ds = behaviour[f"policy, behaviour, {arm}"]
    axes[1].plot(ds.step.values[:-1], ds.eval_valley.values[:, :-1].mean(0), "o-", ms=3, color=colour, label=arm)
axes[1].set(xlabel="iterations", ylabel="share of pushed tokens in valleys", ylim=(0, 0.8))
axes[1].legend(fontsize=7)
figure.savefig("10_policy_gradient.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# A prompt of which every answer is wrong (r = 0 throughout). What does negative-only REINFORCE do there, in expectation
# and at a finite step? What does GRPO do?
#
# **Solution.** In expectation nothing: E_{y~π}[π − e_y] = 0, the first-order push vanishes. But each sample is a step
# of its own, z' = z + s(π − e_y), and entropy is not linear: here its mean after one sample lies below what it was, by
# an amount of order s². That is a drift without a signal. GRPO's advantages are 0 in such a group: nothing happens.

# %%
for s in (0.01, 0.1, 1.0):
    after = [sm.step(z, sm.residual(z, np.array(y), c=np.array(-1.0)), s=s) for y in range(5)]
    drift = sum(p[y] * (sm.entropy(after[y]) - sm.entropy(z)) for y in range(5))
    push = sum(p[y] * (after[y] - z) for y in range(5))
    print(f"s = {s:4.2f}: mean push {np.abs(push).max():.0e}, of entropy {drift:+.2e}, over s² {drift / s**2:+.3f}")
    np.testing.assert_allclose(push, 0.0, atol=1e-15 + 1e-15 * s)
    np.testing.assert_array_less(drift, 0.0)
np.testing.assert_array_equal(objectives.group_advantages(np.zeros(8)), 0.0)
