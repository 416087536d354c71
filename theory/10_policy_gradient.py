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
from toyld.book import formula, recorded, says, verdict
from toyld.claims import hold
from toyld.tiny.experiments import policy
from toyld.tiny.reinforce import Practice, Round
from toyld.tiny.verifier import ask_models

# %% [markdown]
# ## From the theorem to the residual
#
# The reward r says how good an answer is: here 1 if it is right and 0 if it is wrong. The policy-gradient theorem
# writes the gradient of the expected reward as an expectation over what the model samples,
#
#     ∇ E_π[r] = E_{y~π}[Â_y ∇ log π_y],      Â = r − b for any baseline b, since E_{y~π}[∇ log π_y] = 0.       (10.1)
#
# With ∇_z log π_y = e_y − π, one sampled token moves its logits along −Â(π − e_y): the residual of chapter 1 with
# coefficient c = Â. That is SFT on y where Â > 0 and a negative gradient where Â < 0. The baseline changes nothing in
# the expectation. Nor does it matter whether one keeps the right answers alone and pushes them up (Â = r) or the wrong
# ones alone and pushes them down (Â = r − 1): both are a baseline.

# %%
z, r = np.array([2.0, 1.0, 0.0, -1.0, -4.0]), np.array([1.0, 0.0, 1.0, 0.0, 0.0])
p = sm.softmax(z)
every = {b: -sum(p[y] * sm.residual(z, np.array(y), c=np.array(r[y] - b)) for y in range(5)) for b in (0.0, 0.4, 1.0)}
for b, gradient in every.items():
    print(f"baseline {b:.1f}: ∇E[r] =", gradient.round(4))
    np.testing.assert_allclose(gradient, p * (r - p @ r), atol=1e-15)
formula("E_{y~π}[∇ log π_y] = 0", p @ (np.eye(len(p)) - p), 0)
slopes = np.array([(sm.softmax(z + 1e-6 * e) - sm.softmax(z - 1e-6 * e)) @ r / 2e-6 for e in np.eye(len(z))])
formula("∇ E_π[r] = E_{y~π}[Â_y ∇ log π_y]", slopes, every[0.4], atol=1e-8)
for id in ("policy.psr-equals-nsr", "policy.grpo-weights"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# ## The signs, from samples
#
# What is equal in expectation is not equal in a sample. Five tiny transformers were taught eight answers for a little
# while, so that six in seven of the answers that they sample are wrong; a verifier knows the facts. Take the gradients
# of right answers pushed up and of wrong ones pushed down, from 8 answers a prompt: do two samples agree? Do the signs?

# %%
start, models = policy.begun(tuple(range(2000, 2005)))
noise = policy.noise(start, models)
said = ask_models(models, start.language, start.data.prompts["chosen"], samples=policy.SAMPLES, draw=1)
print(f"{said.reward.mean():.1%} of the answers are right")
says("six in seven of the answers that they sample are wrong", 1.0 - said.reward.mean())
says("from 8 answers a prompt", policy.SAMPLES)
norms = {}
for arm, words in (("signed +", "right ones up"), ("signed −", "wrong ones down")):
    one = noise[f"policy, noise, {arm}"]
    norms[arm], cosine = one.eval_norm.values.mean(), one.eval_draws.values.mean()
    print(f"{words:16s} norm {norms[arm]:.1f}, cosine of two samples {cosine:.2f}")
one = noise["policy, noise, signed +"]
print(f"cosine of the two signs, 8 answers a prompt: {one.eval_signs.values.mean():.2f};", end=" ")
print(f"64 answers: {one.eval_all.values.mean():.2f}")
found = hold("reinforcement.negatives-are-noisier", runs=noise)
print(f"{found.claim.id}: {found.verdict}, {found.effect.value:+.2f}")

# %% [markdown]
# Most answers are wrong. To push all of them down is to push the few right ones up, as a small difference of
# large numbers: a gradient four times as long, of which most is noise. So the size of the step counts. What it costs
# was recorded with larger models and 32 seeds. Let both signs practise for 8 iterations at the same rate, .1:
#
# - right answers pushed up gain .13 [.10, .16] more of right answers than wrong ones pushed down do
#   (`reinforcement.positives-gain-more`);
# - wrong answers pushed down lose .24 [.18, .31] of pass@16, the share of prompts with a right one among sixteen
#   answers (`reinforcement.negatives-keep-pass` is refuted). That is the opposite of what was reported of a model that
#   is right nearly two times in three (Zhu et al. (2025));
# - with 32 iterations at the rate .025 steps are as long as those of the positives, the sum of the rates and so at
#   first order the expected path are the same, and of that loss .01 is left (`reinforcement.small-steps-spare-pass`).
#
# So what negatives cost here is samples, four times as many. GRPO divides advantages by their spread in the prompt's
# group of answers. That gives both signs one total weight, and leaves out prompts without any right answer, where there
# is nothing but noise.

# %%
gain, lost, saved = (
    recorded(f"reinforcement.{id}", rung="tiny")
    for id in ("positives-gain-more", "negatives-keep-pass", "small-steps-spare-pass")
)
(_, rounds), (_, _, rate) = policy.SIGNS["signed −"]
(_, more), (_, _, small) = policy.SIGNS["signed −, small steps"]
says("a gradient four times as long", norms["signed −"] / norms["signed +"])
says("with a right one among sixteen answers", policy.K)
REPORTED_RIGHT = 0.63  # of Qwen2.5-Math-7B's first answers on MATH, before training
says("right nearly two times in three", REPORTED_RIGHT)
says("samples, four times as many", more / rounds)
says("with larger models and 32 seeds", gain.n)
says("for 8 iterations at the same rate, .1", rounds, rate)
says("gain .13 [.10, .16] more", gain.value, gain.low, gain.high)
says("lose .24 [.18, .31] of pass@16", -lost.value, -lost.high, -lost.low, policy.K)
says("with 32 iterations at the rate .025", more, small)
says("of that loss .01 is left", -(lost.value + saved.value))
np.testing.assert_allclose(rounds * rate, more * small)

# %% [markdown]
# ## PPO's ratio
#
# PPO takes the ratio ρ = π_y/π_old and clips it: its loss is −min(ρÂ, clip(ρ, 1 − ε, 1 + ε)Â), and for Â < 0
#
#     c = Âρ for ρ ≥ 1 − ε, and 0 below: linear in π_y, then nothing.                                         (10.2)
#
# That is damping relative to π_old, and π_old is what the *first* inner update starts from. There ρ = 1 and the push is
# Â, however rare the token: PPO does not spare valleys (tokens with log π_y ≤ −H, chapter 2). Look at real samples,
# before and after some updates on them.

# %%
how = Practice(samples=8, positive=0.0, lr=0.1)
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
ρ, c, Â, ε = ratio[known | cut], then["push"][known | cut], -np.ones((known | cut).sum()), clip
formula("c = Âρ for ρ ≥ 1 − ε, and 0 below", c, np.where(ρ >= 1 - ε, Â * ρ, 0), rtol=1e-3)
print(f"after 4: −ρ for {alive.sum()} tokens, 0 for {cut.sum()};", end=" ")
print(f"cut off of the rare {np.mean(cut[rare]):.1f}, of the others {np.mean(cut[pushed & ~rare]):.1f}")
for id in ("policy.ppo-push", "policy.ppo-spares-valleys", "policy.ppo-inner-epochs"):
    print(f"{id}: {hold(id).verdict}")
inner = policy.inner(start, models)
for id in ("reinforcement.first-update-hits-valleys", "reinforcement.clip-stops-rare-tokens"):
    print(f"{id}: {hold(id, runs=inner).verdict}")

# %% [markdown]
# In later updates on the same answers the ratio does protect: to first order a push c moves log π_y by s c ‖π − e_y‖²,
# so that rare tokens fall fastest, pass 1 − ε first, and are then left alone.
#
# ## Whose answers
#
# So in a strictly on-policy update it is the sampling that protects, not the ratio: rare tokens get the full push, but
# rarely. In expectation over y ~ π the push on every logit is 0 (`entropy.on-policy-negatives-cancel`), and so is the
# threshold of chapter 2 between losers and winners, ‖π‖² − π_y (`entropy.break-even`). Push wrong answers down and do
# nothing else, for six iterations: the models' own answers; hotter ones (sampled at twice the temperature); such as the
# models gave at the start, again and again ("frozen").

# %%
np.testing.assert_allclose(p @ (p @ p - p), 0.0, atol=1e-15)  # the mean threshold over y ~ π
s, c, y = 1e-6, p[0], 1
formula("s c ‖π − e_y‖²", sm.log_alpha(z, y, s=s, c=c)[y], s * c * ((p - np.eye(len(p))[y]) ** 2).sum(), rtol=1e-4)
hold("entropy.on-policy-negatives-cancel")
hold("entropy.break-even")
behaviour = policy.behaviour(start, models)
print("wrong answers  in valleys  losers  ‖π − e‖ first, last  held-out right answers, nats  entropy there")
for ds in behaviour.values():
    valley, gap, losers = (ds[f"eval_{key}"].values for key in ("valley", "gap", "losers"))
    held, h = ds.eval_logp_new.values, ds.eval_entropy_new.values
    print(f"{ds.attrs['arm']:14s} {valley[:, 0].mean():10.2f} {losers[:, 0].mean():7.2f}", end=" ")
    print(f"{gap[:, 0].mean():13.2f} {gap[:, -2].mean():5.2f} {(held[:, -1] - held[:, 0]).mean():+26.1f}", end=" ")
    print(f"{h[:, 0].mean():18.1f} → {h[:, -1].mean():.1f}")
own, hot = behaviour["policy, behaviour, own"], behaviour["policy, behaviour, hot"]
often = [one.eval_valley.values[:, 0].mean() for one in (hot, own)]
falls = hot.eval_entropy_new.values.mean(0)
says("sampled at twice the temperature", policy.BEHAVIOURS["hot"][1] / policy.BEHAVIOURS["own"][1])
says("in valleys twice as often and squeeze: nine of ten", often[0] / often[1], hot.eval_losers.values[:, 0].mean())
says("entropy falls by two fifths", 1.0 - falls[-1] / falls[0])
says("taught twice as long", policy.LEVELS[1][0] / policy.LEVELS[0][0])
for id in ("own-answers-avoid-valleys", "own-answers-squeeze-less", "own-answers-spare-held-out"):
    print(f"reinforcement.{id}: {hold(f'reinforcement.{id}', runs=behaviour).verdict}")

# %% [markdown]
# What the models say themselves costs little, but not nothing: of the answers that they were taught they lose .51
# nats [.40, .62] a response (recorded; `reinforcement.own-answers-spare-the-taught`). Hotter samples lie in valleys
# twice as often and squeeze: nine of ten other tokens lose, and entropy falls by two fifths. And answers that were
# the models' own once stop being so: pushed down again and again, they slide into valleys, where the push is
# strongest (`reinforcement.frozen-answers-spiral`). There the ratio does protect, since it is taken to whoever
# sampled (`reinforcement.ratio-ends-the-spiral`).
#
# Neither protects right answers, which share features and words with the wrong ones that are pushed down. In models
# taught twice as long, one update of GRPO lowers the right ones at .57 more of the prompts than its positive half does
# (`reinforcement.displaces-the-taught`: lazy likelihood displacement); a smaller step lowers them at .29 fewer. Which
# prompts gain can be foretold from hidden states and errors (GWHES, `reinforcement.gwhes-ranks-prompts`); but that what
# is improbable has most to gain tells much of it already, and that GWHES tells more is not sure
# (`reinforcement.gwhes-beats-surprise`).
#
# | recorded, larger models, 32 seeds | effect and its interval |
# |---|---|
# | GRPO, 8 iterations: share of right answers, trained prompts | +.14 [.12, .16] |
# | the same, held-out prompts | +.02 [.01, .03] |
# | GRPO's negative against its positive half: entropy, nats a token | +.09 [.05, .13] |
# | first PPO update: residual in valleys against the rest, over the advantage | +.66 [.63, .69] |
# | six inner updates: share cut off in valleys against the rest | +.49 [.45, .53] |
# | hot against own: share in valleys | +.28 [.27, .29] |
# | hot against own: share of other tokens that lose | +.38 [.35, .42] |
# | own against hot: held-out right answers, nats a response | +12.3 [10.9, 13.7] |
# | frozen: growth of the residual, beyond that of own | +.29 [.22, .36] |
# | the same, beyond that under PPO's ratio | +.27 [.21, .33] |
# | rank correlation of −GWHES with the gain of right answers | +.30 [.21, .38] |
# | its lead over −log π of the right answers before (not sure) | +.05 [−.03, .13] |

# %%


def span(id):
    """The recorded effect of larger models and its interval."""
    effect = recorded(f"reinforcement.{id}", rung="tiny")
    print(f"reinforcement.{id:26s} {effect.value:+7.3f} [{effect.low:.3f}, {effect.high:.3f}]  ", end="")
    print(verdict(f"reinforcement.{id}", rung="tiny"))
    return effect.value, effect.low, effect.high


says("larger models, 32 seeds", recorded("reinforcement.raises-trained", rung="tiny").n)
says("8 iterations: share of right answers, trained prompts | +.14 [.12, .16]", rounds, *span("raises-trained"))
says("held-out prompts | +.02 [.01, .03]", *span("raises-held-out"))
says("nats a token | +.09 [.05, .13]", *span("group-negatives-keep-entropy"))
says("over the advantage | +.66 [.63, .69]", *span("first-update-hits-valleys"))
says("cut off in valleys against the rest | +.49 [.45, .53]", *span("clip-stops-rare-tokens"))
says("share in valleys | +.28 [.27, .29]", *span("own-answers-avoid-valleys"))
says("other tokens that lose | +.38 [.35, .42]", *span("own-answers-squeeze-less"))
says("nats a response | +12.3 [10.9, 13.7]", *span("own-answers-spare-held-out"))
says("beyond that of own | +.29 [.22, .36]", *span("frozen-answers-spiral"))
says("beyond that under PPO's ratio | +.27 [.21, .33]", *span("ratio-ends-the-spiral"))
says("gain of right answers | +.30 [.21, .38]", *span("gwhes-ranks-prompts"))
says("before (not sure) | +.05 [−.03, .13]", *span("gwhes-beats-surprise"))
taught = recorded("reinforcement.own-answers-spare-the-taught", rung="tiny")
says(".51 nats [.40, .62] a response", -taught.value, -taught.high, -taught.low)
says("at .57 more of the prompts", span("displaces-the-taught")[0])
says("at .29 fewer", span("displacement-is-large-steps")[0])

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `policy.psr-equals-nsr`, `policy.grpo-weights`, `policy.ppo-push`, `policy.ppo-inner-epochs`,
#   `entropy.on-policy-negatives-cancel`, `entropy.break-even`.
# - **First order**: nothing here.
# - **Measured**: in tiny transformers under plain descent; few seeds here, more in the tests, and 32 seeds recorded:
#   `reinforcement.raises-trained`, `reinforcement.negatives-are-noisier`, `reinforcement.small-steps-spare-pass`,
#   `reinforcement.first-update-hits-valleys`, `reinforcement.clip-stops-rare-tokens`,
#   `reinforcement.own-answers-avoid-valleys`, `reinforcement.own-answers-squeeze-less`,
#   `reinforcement.own-answers-spare-held-out`, `reinforcement.displaces-the-taught`,
#   `reinforcement.gwhes-ranks-prompts`.
# - **Refuted or open**: refuted are `policy.ppo-spares-valleys` and `reinforcement.negatives-keep-pass`; open in the
#   smaller models of the tests, and held in the recorded ones, `reinforcement.positives-gain-more`,
#   `reinforcement.frozen-answers-spiral`, `reinforcement.ratio-ends-the-spiral`; open there and refuted in those
#   `reinforcement.own-answers-spare-the-taught`; open in both `reinforcement.gwhes-beats-surprise`.
#
# Exercises: `theory/solutions/10_policy_gradient.py`.

# %%
for id in ("positives-gain-more", "frozen-answers-spiral", "ratio-ends-the-spiral"):
    np.testing.assert_equal(verdict(f"reinforcement.{id}", rung="tiny"), "holds")
np.testing.assert_equal(verdict("reinforcement.gwhes-beats-surprise", rung="tiny"), "undecided")
np.testing.assert_equal(verdict("reinforcement.own-answers-spare-the-taught", rung="tiny"), "refuted")
says("32 seeds recorded", gain.n)

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
