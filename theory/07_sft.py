# %% [markdown]
# # 7. What SFT does to everything else
#
# **Question.** SFT raises log π(y⁺ | x_u) and nothing else is asked of it. What becomes of all other responses: the
# same thing in other words, the answers that the model gave before, the answers to other questions, nonsense? And when
# the model then answers one question with a fact that it was taught for another, where does that come from?
#
# So far one kernel joined all contexts (chapter 6). Here a transformer makes it. Its language is made up, so that every
# probability of the source is known: questions (relation, entity), whose facts are concepts, told in words that have
# synonyms. A model that was pretrained knows the grammar and how popular a concept is in a relation, and a part of the
# facts.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from toyld import objectives
from toyld.claims import hold
from toyld.tiny import scene, train
from toyld.tiny.experiments import _worlds, stages

seeds = tuple(range(2000, 2004))
world = _worlds.world(seeds)
models, data, language = world.models, world.data, world.language


def spoken(text: np.ndarray) -> str:
    """A text with a letter for a word's part of speech."""
    names = [
        f"f{t - language.functions}" if t < language.words else f"c{(t - language.words) // 2}" for t in text if t > 0
    ]
    return " ".join(names)


for kind in ("chosen", "chosen_gptsemantic", "chosen_gptformat", "rejected", "irr_train", "random_permute"):
    print(f"{kind:20s} {spoken(data.texts[kind][0, 0])}")

# %% [markdown]
# (f = function words, c = concepts; two words of one concept print alike. `chosen_gptsemantic` says the same concepts,
# `chosen_gptformat` keeps the function words. Rejected is what the pretrained model said itself.)
#
# ## One token
#
# At a context o, one update of the loss −log π(y_u | χ_u) at contexts u moves log π(v | χ_o) to first order by
#
#     Δ log π(v|χ_o) = −η Σ_u (e_v − π_o)ᵀ K(o, u) (π_u − e_{y_u}).                                           (7.1)
#
# If only the head trains, K = ⟨h_o, h_u⟩ I, and the product falls into three parts:
#
#     η Σ_u ⟨h_o, h_u⟩ ( 1[v = y_u]  −  π_u(v)  +  ⟨π_o, π_u⟩ − π_o(y_u) ).                                   (7.2)
#                         taught        pushed down     normalisation
#
# v's own logit rises where v is what was taught at a similar context, and falls where v is what the model thought
# likely there; then the mean of all logits' changes under π_o is taken off. A response sums (7.2) over its tokens. At a
# small step that is what happens.

# %%
kinds = [
    "chosen", "chosen_gptsemantic", "chosen_gptformat", "rejected", "chosen_initial",
    "irr_train", "irr_test", "random_permute", "random_nonhum",
]  # fmt: skip
of = scene(data, kinds, models)
h = models.hidden(of.inputs).flatten(1, 2).double()  # (seed, context, width)
logp = models.logits(of.inputs).flatten(1, 2).double().log_softmax(-1)
p = logp.exp()
taught = of.responses["chosen"]


def parts(kind: str, seed: int) -> list[float]:
    """(taught, pushed down, normalisation) of (7.2) for the mean response of a kind, per unit of η."""
    keep, own = taught.mask[seed], of.responses[kind]
    u, y = taught.context[seed][keep], taught.token[seed][keep]
    here = own.mask[seed]
    o, v = own.context[seed][here], own.token[seed][here]
    gram = h[seed][o] @ h[seed][u].T
    lift, down = (v[:, None] == y[None]).double(), -p[seed][u][:, v].T
    rest = p[seed][o] @ p[seed][u].T - p[seed][o][:, y]
    prompts = len(here)  # the loss is a mean over them, and so is what is reported
    return [float((gram * part).sum() / prompts / prompts) for part in (lift, down, rest)]


eta = 1e-4
small = train(models, data, objectives.get("sft"), lr=eta, steps=1, layers="head", kinds=kinds)
print("kind                 taught    down  normal.    sum  happens (per unit of η, means over 4 seeds)")
for kind in kinds:
    found = np.mean([parts(kind, s) for s in range(len(seeds))], axis=0)
    happens = np.diff(small.value("logp", kind).mean((1, 2)))[0] / eta
    print(f"{kind:20s}" + "".join(f"{x:8.1f}" for x in (*found, found.sum(), happens)))
    np.testing.assert_allclose(happens, found.sum(), rtol=0.05, atol=0.2)

# %% [markdown]
# Every kind is lifted and pushed down by nearly as much, for all hidden states have much in common and all texts share
# their grammar; what is left over decides. The answers y⁺, here or behind another question, are lifted
# more than they are pushed. The model's own answers, rejected or not, hold what it thought likely and are pushed more.
# Words of y⁺ in another order are lifted as they are taught somewhere.
#
# At one shared context all this is a theorem: y rises and the most likely other token falls; another token v rises
# exactly if π(v) is small, π(v) < ‖π‖² − π(y) for small steps. That is the mirror image of squeezing (chapter 2), and
# it says when a bell can be seen at all: v rises while y is improbable and falls when y has become likely.

# %%
for id in ("sft.label-rises-runner-up-falls", "sft.threshold", "sft.likely-label-lowers-the-rest"):
    print(f"{id}: {hold(id).verdict}")
print("sft.lowers-everything-else:", hold("sft.lowers-everything-else").verdict)

# %% [markdown]
# ## A whole run
#
# All layers train, as in the paper: 50 updates of plain descent, until y⁺ has kept about a fifth of its loss.

# %%
sft = train(
    models, data, objectives.get("sft"), lr=_worlds.RECIPES["sgd"].sft, steps=50, at=(0, 4, 8, 15, 30, 50),
    kinds=[*kinds, "reject_gptsemantic"],
)  # fmt: skip
run = {"sft": sft.table("sft", "baseline", experiment="stages", model="sgd")}
print("after updates:       " + "".join(f"{k:8d}" for k in sft.steps))
for kind in kinds:
    path = sft.value("logp", kind).mean((1, 2))
    print(f"{kind:20s} " + "".join(f"{x:8.2f}" for x in path - path[0]))
for id in ("supervised.chosen-rises", "supervised.untaught-rise-less", "supervised.own-answers-fall"):
    found = hold(id, runs=run)
    print(f"{id}: {found.verdict}, {found.effect.value:+.2f} [{found.effect.low:+.2f}, {found.effect.high:+.2f}] nats")

# %% [markdown]
# (The intervals are over four seeds, each a language and a model of its own.)
#
# y⁺ goes up throughout (S1). The taught answer to *another* question goes up behind this one (S3), an untaught
# question's does not (S4). Rejected answers fall: here they are the model's own words, and samples of the policy that
# SFT starts from *must* fall in expectation, whatever is taught, for E log π/π₀ = −KL(π₀ ‖ π). Taught random words
# instead, they fall by more. So S2 (responses similar to y⁺ first rise, then fall) cannot be tested on own answers,
# only on the rephrases of y⁺, and there a hint is left, during the first updates. Shuffled words (S5) are pulled by
# what they share with y⁺ and pushed as everything is; how that ends depends on how long SFT is.
#
# ## Where facts of question B come from
#
# That log π of B's answer rises behind question A is a statement about scores. Does the model *say* it? Sample answers
# and look at the wrong ones. A chance is a place with a wrong concept beside another question whose fact there is not
# A's own either; a hit, where the two agree. Untaught questions give the base rate: which questions are taught was
# drawn by lot.

# %%
before, after = (stages.said(m, data) for m in (models, sft.models))
for asked, words in (("", "taught"), ("test_", "untaught")):
    print(f"asked {words} questions; share of concepts right: ", end="")
    print(f"{before[f'eval_{asked}right'].mean():.2f} → {after[f'eval_{asked}right'].mean():.2f}")
    for kin, where in (("", "same relation"), ("_elsewhere", "other relations")):
        for what, facts in (("borrowed", "taught"), ("guessed", "untaught")):
            name = f"eval_{asked}{what}{kin}"
            print(f"  facts of {facts:8s} questions, {where:15s} {before[name].mean():.2f} → {after[name].mean():.2f}")
gain = after["eval_test_borrowed"] - before["eval_test_borrowed"]
rest = after["eval_test_guessed"] - before["eval_test_guessed"]
np.testing.assert_array_less(rest.mean(), gain.mean())

# %% [markdown]
# SFT teaches the taught questions, nothing about the others, and makes the model's errors on *both* look like what was
# taught: a third of the chances to name a taught fact of the same relation are taken after it, under a fifth before.
# From other relations hardly anything is borrowed. That is (7.2) again: the hidden states at "relation r, entity e, …"
# and "relation r, entity e', …" have much in common, so ⟨h_o, h_u⟩ is large and 1[v = y_u] pulls the fact of (r, e') up
# behind (r, e). What looks like hallucination is generalisation along K. (It is no proof that LLMs do the same.)
#
# ## What is measured
#
# Twenty seeds, two optimisers, each until y⁺ has kept a quarter of its loss (RMSprop for 100 updates: 23 %, plain
# descent for 50: 26 %);
# `toyld claims "supervised.*"`. Where the optimisers stop at different losses (36 and 9 %) they seem to differ in S3
# and S5 by far more than they do here.
#
# | | claim | here | RMSprop | plain descent |
# |---|---|---|---|---|
# | S1 | y⁺ rises throughout | holds | +8.3 nats | +8.0 |
# | S2 | the similar rise, then fall | open on rephrases of y⁺ | +0.1 ± .2 | +0.1 ± .3 |
# | | own answers fall | must, whatever is taught | −4.7 | −6.5 |
# | S3 | other questions' taught answers rise | early; later open | +2.4, at the end +2.1 | +2.4, at the end +1.8 |
# | S4 | untaught ones rise less | holds, they fall | −4.5 | −7.1 |
# | S5 | shuffled words fall | open | +2.0 | −2.0 ± 1.1 |
# | S6 | the same in every model | refuted by S5 under RMSprop | | |
# | S3, said | a taught fact, asked an untaught question | holds | .20 → .35 | .20 → .40 |
#
# One architecture of two layers, 39 tokens, answers of at most seven: what differs from the paper (S5) may differ
# for that reason. In closed form S2 and S5 fail, too (figure sft_in_closed_form).

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.1), layout="constrained")
for kind, colour, label in (
    ("chosen", "black", "y⁺"),
    ("irr_train", "tab:blue", "another question's, taught"),
    ("chosen_gptsemantic", "tab:green", "y⁺ in other words"),
    ("random_permute", "tab:gray", "y⁺ shuffled"),
    ("irr_test", "tab:orange", "another question's, untaught"),
    ("rejected", "tab:red", "y⁻"),
):
    path = sft.value("logp", kind).mean(-1)
    path = path - path[0]
    axes[0].plot(sft.steps, path.mean(1), color=colour, label=label)
    axes[0].fill_between(sft.steps, path.min(1), path.max(1), color=colour, alpha=0.15, lw=0)
axes[0].set(xlabel="updates of SFT", ylabel="change of log π, nats (range of 4 seeds)")
axes[0].set_ylim(bottom=-24)  # room for the words
axes[0].legend(fontsize=6.5, loc="lower left")
bars = [("borrowed", "taught,\nsame relation"), ("guessed", "untaught,\nsame relation")]
bars += [("borrowed_elsewhere", "taught,\nother relation"), ("guessed_elsewhere", "untaught,\nother relation")]
for i, (name, _) in enumerate(bars):
    axes[1].bar(
        i - 0.2, before[f"eval_test_{name}"].mean(), 0.38, color="lightgray", label="before" if i == 0 else None
    )
    axes[1].bar(i + 0.2, after[f"eval_test_{name}"].mean(), 0.38, color="black", label="after SFT" if i == 0 else None)
axes[1].set_xticks(range(4), [words for _, words in bars], fontsize=6.5)
axes[1].set(ylabel="share of chances", title="whose facts wrong answers name")
axes[1].legend(fontsize=7)
figure.savefig("07_sft.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# Let the model answer as it always did: v ~ π at one shared context, o = u. Show that to first order SFT on y leaves
# fresh answers where they are on average, but lowers those that are not y. By how much? What does that say of
# `rejected`, and of S2?
#
# **Solution.** By (7.2) with o = u and k = ‖h‖², Δ(v) = ηk (1[v = y] − π(v) − π(y) + ‖π‖²). Its mean over v ~ π is
# π(y) − ‖π‖² − π(y) + ‖π‖² = 0: scores have no mean, so nothing moves fresh samples to first order. The part from
# v = y is π(y)(1 − 2π(y) + ‖π‖²) ηk ≥ π(y)(1 − π(y))² ηk, so that the rest of them loses exactly as much. Rejected
# answers here are such samples that are mostly not y⁺: they fall at once, and the faster the likelier y⁺ has become.
# A bell needs responses that the model finds improbable, not its own.

# %%
context = int(taught.context[0, 0, 1])  # the first concept of the first taught answer
y = int(taught.token[0, 0, 1])
pi = p[0, context]
shift = torch.nn.functional.one_hot(torch.tensor(y), len(pi)) - pi - pi[y] + pi @ pi
np.testing.assert_allclose(float(pi @ shift), 0.0, atol=1e-12)
wrong = float(pi @ shift - pi[y] * shift[y])
np.testing.assert_allclose(wrong, -float(pi[y] * (1 - 2 * pi[y] + pi @ pi)), rtol=1e-9)
print(f"π(y) = {float(pi[y]):.3f}: answers other than y lose {-wrong:.4f} ηk together, y gains as much")
