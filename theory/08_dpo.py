# %% [markdown]
# # 8. What DPO does to everything else
#
# **Question.** DPO asks for one thing, that log π(y⁺)/π_ref(y⁺) grow beyond log π(y⁻)/π_ref(y⁻). It gets that. What
# else falls and rises, why can y⁺ itself fall, and is what the model then *says* any better? The paper's remedy, to
# teach y⁻ in SFT first (extend), was judged by other language models. Here the language is known, and no judge needed.

# %%
import matplotlib.pyplot as plt
import numpy as np

from toyld import objectives
from toyld import softmax as sm
from toyld.book import formula, recorded, says, verdict
from toyld.claims import hold
from toyld.claims.effects import ranked
from toyld.tiny import probe, scene, train
from toyld.tiny.experiments import _worlds, alignment, stages

seeds = tuple(range(2000, 2004))
world = _worlds.world(seeds, "smoke")
data, recipe, beta, taught = world.data, _worlds.RECIPES["sgd"], _worlds.BETA, 30

# %% [markdown]
# ## The residual
#
# Models, language and pairs are those of chapter 7; y⁻ is what the pretrained model said itself. The loss is −log σ(βm)
# with the margin m = Δ log π(y⁺) − Δ log π(y⁻), Δ since the reference, the model that SFT left. With a = σ(βm) its
# derivatives by the logits at the contexts χ⁺ of y⁺ and χ⁻ of y⁻ are those of SFT, times one factor, and of two signs:
#
#     G⁺ = β (1 − a) (π(·|χ⁺) − e_{y⁺}),      G⁻ = −β (1 − a) (π(·|χ⁻) − e_{y⁻}).                              (8.1)
#
# At the reference a is one half: there the push is β/2, at β = .1 a twentieth of what SFT pushes with. It fades as the
# margin grows, but never becomes 0. All of y⁻'s tokens are pushed by the same factor, however improbable they are.

# %%
sft = train(world.models, data, objectives.get("sft"), lr=recipe.sft, steps=taught, kinds=["chosen"])
dpo = objectives.get("dpo", beta=beta)
kinds = [
    "chosen", "chosen_gptsemantic", "chosen_gptformat", "rejected", "reject_gptsemantic", "reject_gptformat",
    "irr_train", "test_chosen",
]  # fmt: skip
stage = train(sft.models, data, dpo, lr=recipe.dpo, steps=20, rejected="rejected", at=(0, 1, 3, 8, 20), kinds=kinds)
gap = stage.value("logp", "chosen") - stage.value("logp", "rejected")
margin = gap - gap[0]
push = beta / (1.0 + np.exp(beta * margin))  # β(1 − a)
print("updates     ", *stage.steps)
print("margin, nats", margin.mean((1, 2)).round(1))
print("β(1 − a)    ", push.mean((1, 2)).round(4))
formula("the push is β/2", push[0], beta / 2)
says("At the reference a is one half", 1.0 - push[0].mean() / beta)
says("at β = .1 a twentieth of", beta, push[0].mean())  # SFT's push is 1
np.testing.assert_allclose(np.log1p(np.exp(-beta * margin)).mean(-1), stage.loss, rtol=1e-4)
for id in ("residual.dpo", "residual.dpo-at-reference", "residual.dpo-never-stops"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# (RMSprop, with which the paper trained, divides the size of a gradient out, and that twentieth with it:
# `shield.rmsprop-divides-beta-out`.)
#
# ## One context cannot displace
#
# Let y⁺ and y⁻ be single tokens at one context. The two softmax terms of (8.1) cancel and, with s = η β(1 − a) ‖h‖²,
#
#     z' = z + s (e_{y⁺} − e_{y⁻}).                                                                          (8.2)
#
# So y⁺ rises, whatever π and s (T10), and all tokens but the two move by one factor. Squeezing (chapter 2), in which
# nearly everything but the most likely token falls, is what a *lone* negative gradient does. If y⁺ falls in DPO, then
# other contexts did it.

# %%
z = np.random.default_rng(1).normal(0.0, 2.0, 12)
plus, minus = 3, 7
s = 5.0
after = sm.step(z, sm.pair_residual(z, plus, minus), s=s)
formula("z' = z + s (e_{y⁺} − e_{y⁻})", after, z + s * (np.eye(len(z))[plus] - np.eye(len(z))[minus]))
moved = sm.log_softmax(after) - sm.log_softmax(z)
rest = np.delete(moved, [plus, minus])
np.testing.assert_allclose(rest, rest[0])
print(f"y⁺ {moved[plus]:+.2f}, y⁻ {moved[minus]:+.2f}, each of the others {rest[0]:+.2f}")
for id in ("pair.winner-rises", "pair.rest-moves-together", "pair.squeezing-lowers-winner", "pair.entanglement"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# Now the network, at the reference, the head alone learning: an update moves log π(v | χ_o) by the sum over contexts u
# of η ⟨h_o, h_u⟩ (π_o − e_v)ᵀ G_u. Walk along y⁺. *Before* the first token that differs, y⁺ and y⁻ share contexts and
# labels, and the pushes at the context itself cancel. *Where* they differ it is (8.2). *Behind*, y⁺ has its contexts to
# itself and is pulled up. Compare u = o, both sides, with all other contexts:

# %%
of = scene(data, ["chosen", "rejected"], sft.models)
h = sft.models.hidden(of.inputs).flatten(1, 2).double().numpy()
pi = probe(sft.models, of, variables=False)[1].softmax(-1).numpy()
shown = {"before they differ": [], "where they differ": [], "behind": []}
for s in range(len(seeds)):
    sides = {kind: [x[s].numpy() for x in of.responses[kind]] for kind in ("chosen", "rejected")}
    g = np.zeros_like(pi[s])
    for sign, (context, token, mask) in zip((1, -1), sides.values(), strict=True):
        g[context[mask]] = sign * beta / 2.0 * (pi[s][context[mask]] - np.eye(pi.shape[-1])[token[mask]])
    gram = h[s] @ h[s].T
    (context, token, mask), (twin, _, _) = sides["chosen"], sides["rejected"]
    for i, (mine, theirs) in enumerate(zip(data.texts["chosen"][s], data.texts["rejected"][s], strict=True)):
        first = int((mine != theirs).argmax()) if (mine != theirs).any() else len(mine)
        for t in np.flatnonzero(mask[i]):
            o, v = context[i, t], token[i, t]
            each = gram[o] * (g @ (pi[s][o] - np.eye(pi.shape[-1])[v]))  # by context u
            own = each[o] + (each[twin[i, t]] if t <= first else 0.0)  # up to there y⁻'s context is the same
            where = ("before they differ", "where they differ", "behind")[int(t >= first) + int(t > first)]
            shown[where].append((own, each.sum() - own))
for where, pairs in shown.items():
    own, others = np.mean(pairs, axis=0)
    print(f"{where:19s} own context {own:+6.2f}, all others {others:+6.2f} (per unit of η, a token of y⁺)")
own = {where: np.array(pairs)[:, 0] for where, pairs in shown.items()}
np.testing.assert_allclose(own["before they differ"], 0.0, atol=1e-4)
np.testing.assert_array_less(0.0, np.concatenate([own["where they differ"], own["behind"]]))
np.testing.assert_array_less([np.mean(pairs, axis=0)[1] for pairs in shown.values()], 0.0)

# %% [markdown]
# On its own each context lifts y⁺'s token or leaves it alone; all others together press it down, in the mean of each of
# the three places: their hidden states have much in common with o's, and some of the y⁻ there say what y⁺ says here.
# Worst off is what y⁺ shares with y⁻: nothing lifts it, and in whole networks, too, it pays
# (`tokens.shared-beginning-pays`). Whether y⁺ falls is the balance of the two, and so a matter of what contexts share,
# not of squeezing at one context. For a pair trained alone it is one inner product of gradients g = ∇ log π (any
# network, to first order, with a C > 0; `pair.entanglement`):
#
#     Δ log π(y⁺) = C (‖g₊‖² − ⟨g₊, g₋⟩)                                                                     (8.3)
#
# In a small step its sign decides for a pair alone (`tokens.condition-1-decides-alone`), and no longer where many pairs
# train together (`tokens.condition-1-decides-in-company` is refuted): then all their gradients count.
#
# ## A whole run
#
# All layers train, by plain descent, after SFT of 30 updates.

# %%
about = {"experiment": "stages", "model": "sgd", "sft_updates": taught, "sft_passes": float(taught)}
run = {"dpo": stage.table("dpo", "baseline", **about)}
says("after SFT of 30 updates", taught)
print("after updates:       " + "".join(f"{k:8d}" for k in stage.steps))
for kind in kinds:
    path = stage.value("logp", kind).mean((1, 2))
    print(f"{kind:20s} " + "".join(f"{x:8.2f}" for x in path - path[0]))
top = stage.value("argmax_logp", "chosen").mean((1, 2))
print(f"{'argmax along chosen':20s} " + "".join(f"{x:8.2f}" for x in top - top[0]), f"from {top[0]:.1f} nats")
for id in ("margin-grows", "chosen-outlasts-rephrases", "rejected-leads-rephrases", "argmax-rises"):
    got = hold(f"preference.{id}", runs=run)
    print(f"{id}: {got.verdict}, {got.effect.value:+.2f} [{got.effect.low:+.2f}, {got.effect.high:+.2f}] nats")

# %% [markdown]
# (Intervals over four seeds.) Recorded with the package: 32 seeds of the larger transformers of chapter 7, with RMSprop
# and by plain descent.


# %%
def both(id: str, word: str, *which: str) -> list[float]:
    """Effect, low, high: with RMSprop, under plain descent; `word`: the verdict over all runs."""
    np.testing.assert_equal(verdict(id, rung="tiny"), word)
    effects = [recorded(id, model, *which, rung="tiny") for model in ("rmsprop", "sgd")]
    return [x for e in effects for x in (e.value, e.low, e.high)]


long, slows = "after 30", "preference.extend-slows-others-at-equal"
says("| holds | by 6.6 [5.6, 7.9] | by 9.0 [7.7, 10.7] |", *both("preference.observed-fall", "holds", long))
says("| open | by .5 [.3, .8] | by 5.3 [4.7, 5.9] |", *both("preference.chosen-falls", "undecided", long))
says("| holds | by 7.3 [6.6, 8.2] | by 7.6 [6.9, 8.3] |", *both("preference.chosen-outlasts-rephrases", "holds", long))
leads = both("preference.rejected-leads-rephrases", "holds", long)
says("| holds | by 14.7 [13.9, 15.6] | by 6.8 [6.1, 7.6] |", *leads)
says("| holds | by 35 [34, 36] | by 26 [25, 27] |", *both("preference.margin-grows", "holds", long))
says("| holds | by .7 [.5, .8] | by 2.3 [2.1, 2.4] |", *both("preference.argmax-rises", "holds", long))
says("| open | by −2.0 [−3.1, −.2] | by 2.9 [2.1, 3.9] |", *both(f"{slows}-updates", "undecided"))
says("| open | by .2 [−.2, .8] | by 1.3 [1.0, 1.6] |", *both(f"{slows}-margin", "undecided"))
lowers = both("preference.extend-lowers-total-argmax-at-equal-updates", "refuted")
says("| refuted | by −.6 [−.7, −.4] | by −.9 [−1.1, −.7] |", *lowers)
wider = []  # D6, seed by seed: how far the gap widens after the longer SFT, less that after the shorter
for model in ("rmsprop", "sgd"):
    parts = [recorded("preference.gap-widens", model, k, rung="tiny").parts[0] for k in (long, "after 15")]
    wider.append(ranked([parts[0] - parts[1]]))
d6 = [x for e in wider for x in (e.value, e.low, e.high)]
says("| by .10 [−.04, .24] | by −1.2 [−1.7, −.7] |", *d6)
says("32 seeds of the larger", wider[0].n)
says("SFT of thirty updates; “together” is over those after fifteen", *reversed(stages.SFT_UPDATES))
says("what twenty seeds of this chapter's", len(stages.tables.__defaults__[0]))

# %% [markdown]
# | | the paper says of DPO | together | RMSprop | plain descent |
# |---|---|---|---|---|
# | D1 | all responses but at most one fall | holds | by 6.6 [5.6, 7.9] | by 9.0 [7.7, 10.7] |
# | | y⁺ falls | open | by .5 [.3, .8] | by 5.3 [4.7, 5.9] |
# | D2 | y⁺ outlasts its rephrases | holds | by 7.3 [6.6, 8.2] | by 7.6 [6.9, 8.3] |
# | D3 | y⁻ falls faster than its rephrases | holds | by 14.7 [13.9, 15.6] | by 6.8 [6.1, 7.6] |
# | D4 | the margin grows | holds | by 35 [34, 36] | by 26 [25, 27] |
# | D5 | the argmax along y⁺ rises | holds | by .7 [.5, .8] | by 2.3 [2.1, 2.4] |
# | D6 | longer SFT squeezes more (the gap widens more) | not tested | by .10 [−.04, .24] | by −1.2 [−1.7, −.7] |
# | D7 | after extend others fall less, equal updates | open | by −2.0 [−3.1, −.2] | by 2.9 [2.1, 3.9] |
# | | the same, at an equal margin | open | by .2 [−.2, .8] | by 1.3 [1.0, 1.6] |
# | | the argmax rises less in all, equal updates | refuted | by −.6 [−.7, −.4] | by −.9 [−1.1, −.7] |
#
# (After SFT of thirty updates; “together” is over those after fifteen, too. A plural is as strong as its weakest part.
# D6 is worked out above from recorded gaps and stands in no family of tests.) D1 to D5 hold whatever the optimiser.
# That y⁺ itself falls does not: under plain descent it does, with RMSprop it hardly moves. Extended SFT spares the
# other responses under plain descent alone, and the argmax rises *more* after it. `toyld claims "preference.*"` has
# every comparison, and what twenty seeds of this chapter's smaller models say.
#
# ## Is what it says any better?
#
# Four models of each arm, trained by plain descent; now let them answer. An answer is right if it is well formed and
# every concept in it is true. Extended SFT makes two updates where plain SFT makes one, for as many passes over y⁺: so
# there are two controls, of as many passes and of as many updates.

# %%
tables = alignment.tables(seeds, plans={"sgd": alignment.Plan(30, (), (0, 4, 16), ())})
names = {"plain SFT, as many passes": "baseline after 30", "plain SFT, as many updates": "baseline after 60"}
arms = {name: tables[f"alignment sgd dpo {arm}"] for name, arm in (names | {"extend": "extend after 60"}).items()}
print("greedy answers that are right, by updates of DPO", *arms["extend"].step.values)
for name, ds in arms.items():
    print(f"{name:28s}", ds.eval_right_trained_greedy.values.mean(0).round(2))
won = arms["extend"].eval_beats_updates_right_trained_greedy.values.mean(0)
there = np.isfinite(won)
print("extend wins over as many updates, at updates", *arms["extend"].step.values[there], won[there].round(2))
for id in ("alignment.dpo-leaves-the-language", "alignment.sft-leaves-the-language"):
    print(f"{id}: {hold(id, runs=tables).verdict}")

every = [["rmsprop", "after 30"], ["rmsprop", "after 60"], ["sgd", "after 45"], ["sgd", "after 90"]]
lost = [recorded("alignment.dpo-loses-facts", *run, rung="tiny").value for run in every]
says("by .23 to .60 of all greedy answers", min(lost), max(lost))


def rates(id: str, word: str) -> list[float]:
    """The same of claims about a win rate less one half."""
    return [0.5 + x for x in both(id, word)]


value, low, high = 0.5 - np.reshape(both("alignment.extend-loses-before-dpo", "holds"), (2, 3)).T
behind = np.stack([value, high, low], axis=1).ravel()
says("win .41 [.37, .46] and .39 [.36, .43]", *behind)
says("by .09 [.03, .14] and .12 [.09, .15]", *both("alignment.short-dpo-favours-extend", "undecided"))
says("a bell of .28 [.19, .36] and .14 [.07, .20]", *both("alignment.dpo-first-repairs-extend", "holds"))
says(".51 [.47, .55] and .53 [.49, .56] at its best", *rates("alignment.extend-wins-after-some-dpo", "undecided"))
says(".45 [.44, .46] and .43 [.42, .44]", *rates("alignment.extend-wins-at-equal-updates", "refuted"))

# %% [markdown]
# Four models with eight questions each say little. The larger ones (RMSprop first, then plain descent):
#
# - DPO on truthful pairs makes answers to the trained questions *less* often right than SFT had made them, by .23 to
#   .60 of all greedy answers in four runs (`alignment.dpo-loses-facts`). The pairs are won all the while.
# - Beside plain SFT of as many passes, the paper's comparison, greedy answers after extend win .41 [.37, .46] and .39
#   [.36, .43] of the time before any DPO, ties counted half (`alignment.extend-loses-before-dpo`). A short DPO brings
#   extend up by .09 [.03, .14] and .12 [.09, .15] (`alignment.short-dpo-favours-extend`, sure of the second), for there
#   it makes more answers right before a longer one makes fewer: a bell of .28 [.19, .36] and .14 [.07, .20]
#   (`alignment.dpo-first-repairs-extend`). Whether extend is ever ahead is open: .51 [.47, .55] and .53 [.49, .56] at
#   its best (`alignment.extend-wins-after-some-dpo`).
# - Beside plain SFT of as many *updates* it loses, .45 [.44, .46] and .43 [.42, .44] over lengths of DPO
#   (`alignment.extend-wins-at-equal-updates` is refuted). Two passes over y⁺ are worth more than one over both.
# - π leaves the language in SFT already, for one answer to a question is learnt by heart, and much farther in DPO.
#   Answers repeat themselves more, surely only under plain descent (`alignment.dpo-repeats`).

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `residual.dpo`, `residual.dpo-at-reference`, `residual.dpo-never-stops`, `pair.winner-rises`,
#   `pair.rest-moves-together`: for one softmax, at any step.
# - **First order**: `pair.entanglement`, in any network; the table of places is first order too, for the head alone.
# - **Measured**: `preference.observed-fall`, `preference.chosen-falls`, `preference.chosen-outlasts-rephrases`,
#   `preference.rejected-leads-rephrases`, `preference.margin-grows`, `preference.argmax-rises`,
#   `preference.gap-widens`, `tokens.shared-beginning-pays`, `tokens.condition-1-decides-alone`,
#   `shield.rmsprop-divides-beta-out`, `alignment.sft-leaves-the-language`, `alignment.dpo-leaves-the-language`: in
#   transformers on one made-up language.
# - **Refuted or open**: `pair.squeezing-lowers-winner`, `tokens.condition-1-decides-in-company`,
#   `preference.extend-slows-others-at-equal-updates`, `preference.extend-slows-others-at-equal-margin`,
#   `preference.extend-lowers-total-argmax-at-equal-updates`, `alignment.extend-wins-at-equal-updates`,
#   `alignment.extend-wins-after-some-dpo`, `alignment.short-dpo-favours-extend`, `alignment.dpo-repeats`; and open in
#   smaller models, sure in the larger: `alignment.dpo-loses-facts`, `alignment.extend-loses-before-dpo`,
#   `alignment.dpo-first-repairs-extend`.

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.0), layout="constrained")
colours = {"chosen": "tab:blue", "chosen_gptsemantic": "tab:cyan", "rejected": "tab:red", "test_chosen": "tab:gray"}
for kind, colour in colours.items():
    path = stage.value("logp", kind).mean((1, 2))
    axes[0].plot(stage.steps, path - path[0], color=colour, marker="o", ms=3, label=kind)
axes[0].plot(stage.steps, top - top[0], color="black", ls=":", label="argmax along chosen")
axes[0].set(xlabel="updates of DPO", ylabel="change, nats")
axes[0].legend(fontsize=7)
for (name, ds), colour in zip(arms.items(), ("tab:blue", "tab:orange", "tab:red"), strict=True):
    axes[1].plot(ds.step, ds.eval_right_trained_greedy.values.mean(0), color=colour, marker="o", ms=3, label=name)
axes[1].set(ylim=(0, 1.05), xlabel="updates of DPO", ylabel="greedy answers that are right")
axes[1].legend(fontsize=7)
figure.savefig("08_dpo.png")
plt.close(figure)

# %% [markdown]
# ## What next
#
# Exercises: `theory/solutions/08_dpo.py` (what a win rate cannot see, how long DPO takes, when the winner falls).
#
# All of this rests on who resembles whom, on K. Chapters 6 to 8 read it off one moment. Does its ranking stay while the
# network learns, and what is it worth if it does not?
