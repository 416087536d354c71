# %% [markdown]
# # 6. Many contexts, one kernel
#
# **Question.** In one softmax DPO never lowers the preferred answer (chapter 4). In language models it does, and
# everything else falls with it. What is the least that must be added for that to happen?
#
# A language model is many softmaxes, one for every *context*: the prompt and the answer so far. They are not strangers.
# Each context u has a feature φ_u (its last hidden state), and one matrix W, the head, reads them all: its logits are
# z_u = W φ_u. Train the head alone. Every trained token at a context u contributes its residual k (π_u − e_y) of
# chapters 1 to 4, where k is the push of the loss on that token (SFT: k = 1; DPO: k = ±β(1 − a), chapter 4); call their
# sum R_u. The gradient by W is Σ_u R_u φ_uᵀ, so one update moves the logits of any context o by −η Σ_u ⟨φ_o, φ_u⟩ R_u.
# With the logits of all contexts as rows of one matrix Z, a whole run is
#
#     Z ← Z − η S R(Z),       S_ou = ⟨φ_o, φ_u⟩,       R_u = Σ_{tokens trained at u} k (π_u − e_y)
#
# S is the *kernel*: how far a wish about u moves o. R holds the residuals. There is no network here and nothing is
# approximated, and so a whole run takes a second and every cause can be switched off by itself.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from toyld import contexts, objectives
from toyld.book import formula, recorded, says
from toyld.claims import hold
from toyld.contexts import Features, Responses, World
from toyld.diagnosis import diagnose
from toyld.trajectory import at_margin as read_at

# %% [markdown]
# ## It is the head's own gradient descent
#
# Five contexts with features in ℝ⁴ and two answers of three tokens. Their first tokens share a context, the prompt
# itself; after that each answer has contexts of its own. DPO by torch's autograd on W, and by the formula:

# %%
rng = np.random.default_rng(0)
phi, w0 = rng.normal(size=(5, 4)), rng.normal(size=(7, 4))
where = np.array([[0, 1, 2], [0, 3, 4]])  # contexts of y⁺ and of y⁻
labels = rng.integers(7, size=(2, 3))
plus, minus = (Responses(where[i][None, None], labels[i][None, None], np.ones((1, 1, 3), bool)) for i in (0, 1))
world = World((phi @ w0.T)[None], Features(phi[None]), {"chosen": plus, "rejected": minus}, 5, (0,))
run = contexts.train(world, objectives.get("dpo"), lr=2.0, steps=100, rejected="rejected")

head = torch.tensor(w0, requires_grad=True)
rows = torch.tensor(phi[where])


def log_probs() -> torch.Tensor:
    return torch.log_softmax(rows @ head.T, -1).gather(-1, torch.tensor(labels)[..., None]).sum((1, 2))


reference = log_probs().detach()
for _ in range(100):
    ratio = log_probs() - reference
    loss = -torch.nn.functional.logsigmoid(0.1 * (ratio[0] - ratio[1]))
    (gradient,) = torch.autograd.grad(loss, head)
    head.data -= 2.0 * gradient
ours = [float(run.value("logp", kind)[-1, 0, 0]) for kind in ("chosen", "rejected")]
print("after 100 updates of DPO: log π(y⁺), log π(y⁻) =", np.round(ours, 3))
np.testing.assert_allclose(ours, log_probs().detach().numpy(), rtol=1e-11)

# %% [markdown]
# ## No cross-talk, no displacement
#
# Let the kernel be diagonal, every context a stranger to every other, and let every context belong to one pair. Then
# nothing reaches a token of y⁺ but its own pair's pushes at its own context. Before the first token that differs, y⁺
# and y⁻ share contexts and labels, and the two pushes cancel. Where they first differ they share a context with two
# labels, and together lift y⁺'s (chapter 4). Behind that, y⁺'s contexts are its own, and it is only pulled up. DPO
# *cannot* lower a preferred answer in such a world, at any step size, however long it runs (`kernel.no-cross-talk`).
#
# Drop either premise and it can. One off-diagonal entry is enough: let a context of y⁺ resemble one of y⁻, and the push
# on y⁻ arrives at y⁺ (`kernel.own-contexts-suffice` is refuted). Or keep the diagonal and let one answer be chosen in
# one pair and rejected in another (`kernel.diagonal-suffices` is refuted, Exercise 1).

# %%


def run_with(kernel: np.ndarray) -> np.ndarray:
    """log π(y⁺) along 200 updates of DPO."""
    one = World(world.logits, contexts.Gram(kernel[None]), world.responses, 5, (0,))
    found = contexts.train(one, objectives.get("dpo"), lr=2.0, steps=200, rejected="rejected", at=range(201))
    return found.value("logp", "chosen")[:, 0, 0]


strangers = np.diag(np.diag(phi @ phi.T))
alone = run_with(strangers)
np.testing.assert_array_less(-1e-12, np.diff(alone))
print(f"strangers:       log π(y⁺) {alone[0]:.2f} → {alone[-1]:.2f}")
coupled = strangers.copy()
coupled[2, 3] = coupled[3, 2] = 0.9 * np.sqrt(coupled[2, 2] * coupled[3, 3])
together = run_with(coupled)
print(f"one resemblance: log π(y⁺) {together[0]:.2f} → {together[-1]:.2f}")
np.testing.assert_array_less(together[-1], together[0])
for id in ("kernel.dual-form", "kernel.no-cross-talk", "kernel.own-contexts-suffice", "kernel.diagonal-suffices"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# ## The paper's Figures 3 and 4, in closed form
#
# Now a language. Questions have one right answer each, told in function words and content words with synonyms, so that
# every answer can be said in other words, or the same form filled with other content. Of every feature's square a
# quarter is its context's own and a little more than half is common to all (hidden states of language models point one
# way, too); contexts of similar prompts and contexts of similar last words share the rest. A short SFT on y⁺, then DPO
# against answers that the model gave before; 32 worlds at once, means over worlds and prompts. (Rates look large since
# a loss is a mean over prompts, and since the push of DPO is β/2 at the reference.)

# %%
shared = {"identity": 0.25, "common": 0.55, "prompt": 0.1, "token": 0.1}
facts = contexts.languages.facts(seeds=range(32), kernel=shared)
sft = contexts.train(facts, objectives.get("sft"), lr=1.2, steps=20, at=range(21))
dpo = contexts.train(
    facts, objectives.get("dpo"), lr=24.0, steps=60, state=sft.state, rejected="rejected", at=range(0, 61, 2)
)
KINDS = {
    "chosen": "y⁺",
    "chosen_gptsemantic": "y⁺ in other words",
    "chosen_gptformat": "y⁺'s form, other content",
    "rejected": "y⁻",
    "reject_gptsemantic": "y⁻ in other words",
    "irr_train": "another prompt's y⁺",
    "test_chosen": "answer to a test prompt",
    "random_permute": "y⁺ shuffled",
}
beta = 0.1
again = objectives.pair_batch(*np.log([[0.2], [0.1]]))  # y⁺ and y⁻ where the policy is the reference
formula("the push of DPO is β/2", objectives.get("dpo", beta=beta).push(again).chosen[0, 0], beta / 2)
says("32 worlds at once", len(facts.seeds))
says("square a quarter is its context's own", shared["identity"])


def path(stage, kind, variable="logp"):
    """Mean over worlds and prompts at every evaluation."""
    return stage.value(variable, kind).mean((1, 2))


print(f"{'':26s} start  after SFT  after DPO")
for kind, words in KINDS.items():
    start, middle, end = path(sft, kind)[0], path(sft, kind)[-1], path(dpo, kind)[-1]
    print(f"{words:26s}{start:6.1f}{middle:11.1f}{end:11.1f}")

top, chosen = path(dpo, "chosen", "argmax_logp"), path(dpo, "chosen")
verdict = diagnose(dpo.table("dpo", "baseline")).verdict
print(f"DPO: Δ log π(y⁺) {chosen[-1] - chosen[0]:+.1f}, Δ argmax along y⁺ {top[-1] - top[0]:+.1f}: {verdict}")
np.testing.assert_equal(verdict, "squeezing")
change = {kind: path(dpo, kind)[-1] - path(dpo, kind)[0] for kind in KINDS}
np.testing.assert_array_less(list(change.values()), 0.0)
np.testing.assert_array_less(change["rejected"], min(x for kind, x in change.items() if kind != "rejected"))
np.testing.assert_array_less(max(x for kind, x in change.items() if kind != "chosen"), change["chosen"])
lifted = [path(sft, kind)[-1] - path(sft, kind)[0] for kind in ("chosen", "chosen_gptsemantic", "irr_train")]
np.testing.assert_array_less(0.0, lifted)
says("y⁺ 8 nats, the argmax along it rises by 3", chosen[0] - chosen[-1], top[-1] - top[0])
says("over 32 seeds and three kernels", recorded("supervised.similar-bell", rung="contexts").n)

# %% [markdown]
# SFT lifts y⁺, its twin in other words, and another prompt's answer too: the model begins to answer question A with
# the facts of question B. DPO lowers everything, y⁻ most and before its own rephrases, y⁺ least. While it takes from
# y⁺ 8 nats, the argmax along it rises by 3: probability that nobody asked for goes to what the model believes most.
# That is the paper's squeezing, and no network was needed: contexts that differ and features that are shared made it.
#
# Which of the paper's findings hold in such worlds, over 32 seeds and three kernels, stands on the scoreboard
# (`toyld claims "supervised.*" "preference.*"`, column contexts). Not all do: of the answers similar to y⁺ only the one
# of its form goes up and then down in SFT (`supervised.similar-bell` is refuted), and shuffled words of a *taught*
# answer rise (`supervised.shuffled-fall` is refuted).
#
# ## What amplifies it: the component that all features share
#
# Hidden states of language models have a large common part (their cosines are far from 0, *anisotropy*). Add a constant
# c to every entry of S: now every context's push reaches all others, alike or not. To compare kernels fairly, start
# from one SFT loss (a nat a token), draw y⁻ from the model itself, and read all at one learnt margin of 10 nats. The
# margin is m = Δ log π(y⁺) − Δ log π(y⁻), Δ since the beginning of DPO.

# %%
MARGIN = 10.0


def at_margin(common: float, *, centre: bool = False) -> dict[str, float]:
    """Change of chosen and of an untaught answer when DPO has learnt the margin, mean over worlds."""
    world = contexts.languages.facts(
        seeds=range(8), kernel={"identity": 0.6, "prompt": 0.2, "token": 0.2, "common": common}
    )
    learnt = contexts.train(world, objectives.get("sft"), lr=1.2, steps=400, until=6.0, kinds=["chosen"])
    said = contexts.respond(world, learnt.state, seed=0)
    world, state = contexts.with_texts(world, learnt.state, {"rejected": said})
    weights = np.full((8, world.trained), 1 / world.trained)
    stage = contexts.train(
        world, objectives.get("dpo"), lr=10.0, steps=720, state=state, rejected="rejected",
        at=range(0, 721, 12), kinds=["chosen", "rejected", "test_chosen"],
        precondition=contexts.centred(weights) if centre else None,
    )  # fmt: skip
    table = stage.table("dpo", "baseline")
    return {kind: float(read_at(table, MARGIN, kind).mean()) for kind in ("chosen", "test_chosen")}


amplified = {c: at_margin(c) for c in (0.0, 0.5, 2.0)}
for c, found in amplified.items():
    print(f"c = {c:.1f}: Δ log π(y⁺) {found['chosen']:+6.2f}   Δ of an untaught answer {found['test_chosen']:+6.2f}")
np.testing.assert_array_less(np.diff([found["chosen"] for found in amplified.values()]), 0.0)
np.testing.assert_array_less(np.diff([found["test_chosen"] for found in amplified.values()]), 0.0)
for id in ("kernel.common-slope", "kernel.common-share", "kernel.common-share-at-a-margin"):
    print(f"{id}: {hold(id).verdict}")
says("one learnt margin of 10 nats", MARGIN)
says("Over 32 seeds of a Markov language", recorded("displacement.common-amplifies", rung="contexts").n)
for id in ("displacement.common-amplifies", "similarity.coupling-displaces", "centring.needs-more-updates"):
    says("over 32 seeds of two small languages", recorded(id, rung="contexts").n)

# %% [markdown]
# To first order this has a closed form. Let G_o = Σ_u (e_y − π_u) over the tokens of an answer o: its pull on the
# logits, summed over its contexts. Then c adds to o's change ηc times the inner product of G_o with what all pairs pull
# together (`kernel.common-slope`): an answer loses if it points away from that and gains if it points along. What y⁺
# pays *per nat of margin*, for a single pair at its first update, is monotone in c (`kernel.common-share`); at a finite
# margin it need not be (`kernel.common-share-at-a-margin` is refuted). Over 32 seeds of a Markov language, with the
# model's own answers and with random words as y⁻, the trend holds at equal margin (`displacement.common-amplifies`).
#
# ## Improbable or similar?
#
# The usual story blames answers y⁻ that the model would never give. But an update on y⁻ pushes by π − e_y, and
# 1 − π_y scales it, nothing else (`similarity.probability-scales-the-push`, where the other tokens keep their
# proportions). Once π_y is small, making it smaller changes hardly anything:

# %%
sizes = {}
for rare in (0.25, 0.02, 3e-6):
    sizes[rare] = np.linalg.norm([1 - rare, -(1 - rare)])  # all else on one token
    print(f"π(y⁻) = {rare:<8.2g} ‖π − e_y‖ = {sizes[rare]:.3f}")
hold("similarity.probability-scales-the-push")
asked = *list(sizes)[1:], sizes[3e-6] / sizes[0.02] - 1.0
says("From one in fifty to three in a million the push grows by 2 %", *asked)

# %% [markdown]
# From one in fifty to three in a million the push grows by 2 %. What can change much more is *whom it reaches*.
# Interventions on one factor at a time, at equal margin: with Z fixed, uncoupling y⁻'s own contexts from all others
# spares untrained answers (`similarity.coupling-displaces`); with S fixed, making y⁻ improbable does not make them fall
# more, rather less (`similarity.improbable-displaces-more` is refuted). Both sentences are about answers that nobody
# trained; the chosen answer can lose a little by rarer y⁻. Correlations over sampled pairs are no such intervention:
# there improbability, coupling and labels come mixed.
#
# ## A remedy: take the mean out of the update
#
# If a shared component carries the damage, leave it out: use φ_u − μ in the gradient, μ the mean feature of the
# training contexts, and the full φ in the forward pass. In dual form that is one line, R ← R − w·1ᵀR with w the weights
# of the mean (1/n each), and it cancels any constant c *exactly* (`kernel.common-component-cancels`).

# %%
centred = at_margin(2.0, centre=True)
print(f"c = 2, plain   {amplified[2.0]['chosen']:+6.2f} {amplified[2.0]['test_chosen']:+6.2f}")
print(f"c = 2, centred {centred['chosen']:+6.2f} {centred['test_chosen']:+6.2f}")
for kind in ("chosen", "test_chosen"):
    np.testing.assert_array_less(amplified[2.0][kind], centred[kind])
for id in ("kernel.common-component-cancels", "kernel.centred-descends", "kernel.nearest-mean-descends"):
    print(f"{id}: {hold(id).verdict}")
says("what c = 2 had taken is back", max(amplified))
np.testing.assert_allclose(centred["chosen"], amplified[0.0]["chosen"], atol=0.3)

# %% [markdown]
# At this margin what c = 2 had taken is back. It has its price and its limits. It needs more updates
# (`centring.needs-more-updates`). A centred step need not lower the loss (`kernel.centred-descends` is refuted,
# Exercise 3); it does where `kernel.nearest-mean-descends` says, and if μ is projected out of the features instead
# (`centring.projection-descends`). Where the shared part is not one constant for all contexts, subtracting the mean can
# leave most of the damage (`centring.undoes-any-component` is refuted). And for the chosen answer DPO+NLL does
# better (`centring.chosen-above-remedies` is refuted).

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: `kernel.dual-form`, `kernel.no-cross-talk`, `kernel.common-component-cancels`,
#   `similarity.probability-scales-the-push`: for the head alone, at any step size.
# - **First order**: `kernel.common-slope`, `kernel.common-share`, `kernel.nearest-mean-descends`,
#   `centring.projection-descends`.
# - **Measured**: `displacement.common-amplifies`, `similarity.coupling-displaces`, `centring.needs-more-updates`, the
#   head alone, over 32 seeds of two small languages.
# - **Refuted or open**: `kernel.own-contexts-suffice`, `kernel.diagonal-suffices`, `kernel.common-share-at-a-margin`,
#   `kernel.centred-descends`, `similarity.improbable-displaces-more`, `centring.undoes-any-component`,
#   `centring.chosen-above-remedies`, and of the paper's findings in this world `supervised.similar-bell`,
#   `supervised.shuffled-fall`.

# %% [markdown]
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.2), sharey=True, layout="constrained")
looks = {"chosen": "tab:blue", "chosen_gptsemantic": "tab:cyan", "rejected": "tab:red", "irr_train": "tab:green"}
for ax, stage, name in zip(axes, (sft, dpo), ("SFT", "then DPO"), strict=True):
    for kind, colour in (looks | {"test_chosen": "tab:gray"}).items():
        ax.plot(stage.steps, path(stage, kind), color=colour, label=KINDS[kind])
    ax.plot(stage.steps, path(stage, "chosen", "argmax_logp"), color="black", ls="--", label="argmax along y⁺")
    ax.set(xlabel="updates", title=name)
axes[0].set_ylabel("log π of the answer (nats)")
axes[0].legend(fontsize=7, loc="lower right")
figure.savefig("06_one_kernel.png")
plt.close(figure)

# %% [markdown]
# ## What next
#
# Exercises: `theory/solutions/06_one_kernel.py` (lessons that disagree, how alike is too alike, a step that climbs).
#
# Here features stood still, and who resembles whom was drawn. In a network attention makes the kernel and training
# changes it. Which of this survives in a transformer, and what does SFT alone do there to every other answer?
