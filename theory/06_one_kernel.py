# %% [markdown]
# # 6. Many contexts, one kernel
#
# **Question.** In one softmax DPO never lowers the preferred answer (chapter 4). In language models it does, and
# everything else falls with it. What is the least that must be added for that to happen?
#
# A language model is many softmaxes, one for every *context*: the prompt and the answer so far. They are not strangers.
# Each has a feature φ_u (its last hidden state), one head W reads them all, z_u = W φ_u, and whatever an update writes
# into W for one context is read by every other. Train the head alone, and that is all there is:
#
#     Z ← Z − η S R(Z),       S_uv = ⟨φ_u, φ_v⟩,       R_u = Σ_{tokens trained at u} k (π_u − e_y)
#
# u and v are contexts, rows of Z; S is the *kernel*; R holds the residuals of chapters 1 to 4, and k is the push of the
# loss on a token (SFT: 1; DPO: ±β(1 − a), chapter 4). No network, nothing approximated; whole runs take a second.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from toyld import contexts, objectives
from toyld.claims import hold
from toyld.contexts import Features, Responses, World
from toyld.diagnosis import diagnose
from toyld.trajectory import at_margin as read_at

# %% [markdown]
# ## It is the head's own gradient descent
#
# Five contexts with features in ℝ⁴, two answers of three tokens that share the first context, the prompt; DPO by
# torch's autograd on W, and by the formula.

# %%
rng = np.random.default_rng(0)
phi, w0 = rng.normal(size=(5, 4)), rng.normal(size=(7, 4))
where = np.array([[0, 1, 2], [0, 3, 4]])  # contexts of y+ and of y−
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
print("after 100 updates of DPO: log π(y+), log π(y−) =", np.round(ours, 3))
np.testing.assert_allclose(ours, log_probs().detach().numpy(), rtol=1e-11)

# %% [markdown]
# ## No cross-talk, no displacement
#
# Let the kernel be diagonal, every context a stranger to every other, and let every context belong to one pair. Then a
# token of y+ behind the first difference is only ever pulled up, at the first difference the pair's own two pushes lift
# it (chapter 4), and before it they cancel. DPO *cannot* lower a preferred answer in such a world, at any step size,
# however long it runs. One off-diagonal entry is enough to break that: let a context of y+ resemble one of y−, and the
# push on y− arrives at y+.

# %%


def run_with(kernel: np.ndarray) -> np.ndarray:
    """log π(y+) along 200 updates of DPO."""
    one = World(world.logits, contexts.Gram(kernel[None]), world.responses, 5, (0,))
    found = contexts.train(one, objectives.get("dpo"), lr=2.0, steps=200, rejected="rejected", at=range(201))
    return found.value("logp", "chosen")[:, 0, 0]


strangers = np.diag(np.diag(phi @ phi.T))
alone = run_with(strangers)
np.testing.assert_array_less(-1e-12, np.diff(alone))
print(f"strangers:      log π(y+) {alone[0]:.2f} → {alone[-1]:.2f}")
coupled = strangers.copy()
coupled[2, 3] = coupled[3, 2] = 0.9 * np.sqrt(coupled[2, 2] * coupled[3, 3])
together = run_with(coupled)
print(f"one resemblance: log π(y+) {together[0]:.2f} → {together[-1]:.2f}")
np.testing.assert_array_less(together[-1], together[0])
for id in ("kernel.dual-form", "kernel.no-cross-talk", "kernel.own-contexts-suffice", "kernel.diagonal-suffices"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# ## The paper's Figures 3 and 4, in closed form
#
# Now a language. Questions have one right answer each, told in function words and content words with synonyms, so that
# every answer can be said in other words, or the same form filled with other content. A quarter of every feature is its
# context's own, a little more than half common to all (as in language models, whose hidden states point one way), the
# rest shared by contexts of similar prompts and similar last words. A short SFT on y+, then DPO against answers that
# the model gave before; 32 worlds at once, means over worlds and prompts. (Rates look large since a loss is a mean over
# prompts and DPO's push is β/2 at first.)

# %%
shared = {"identity": 0.25, "common": 0.55, "prompt": 0.1, "token": 0.1}
facts = contexts.languages.facts(seeds=range(32), kernel=shared)
sft = contexts.train(facts, objectives.get("sft"), lr=1.2, steps=20, at=range(21))
dpo = contexts.train(
    facts, objectives.get("dpo"), lr=24.0, steps=60, state=sft.state, rejected="rejected", at=range(0, 61, 2)
)
KINDS = {
    "chosen": "y+",
    "chosen_gptsemantic": "y+ in other words",
    "chosen_gptformat": "y+'s form, other content",
    "rejected": "y−",
    "reject_gptsemantic": "y− in other words",
    "irr_train": "another prompt's y+",
    "test_chosen": "answer to a test prompt",
    "random_permute": "y+ shuffled",
}


def path(stage, kind, variable="logp"):
    """Mean over worlds and prompts at every evaluation."""
    return stage.value(variable, kind).mean((1, 2))


print(f"{'':26s} start  after SFT  after DPO")
for kind, words in KINDS.items():
    start, middle, end = path(sft, kind)[0], path(sft, kind)[-1], path(dpo, kind)[-1]
    print(f"{words:26s}{start:6.1f}{middle:11.1f}{end:11.1f}")

top, chosen = path(dpo, "chosen", "argmax_logp"), path(dpo, "chosen")
verdict = diagnose(dpo.table("dpo", "baseline")).verdict
print(f"DPO: Δ log π(y+) {chosen[-1] - chosen[0]:+.1f}, Δ argmax along y+ {top[-1] - top[0]:+.1f}: {verdict}")
np.testing.assert_equal(verdict, "squeezing")
change = {kind: path(dpo, kind)[-1] - path(dpo, kind)[0] for kind in KINDS}
np.testing.assert_array_less(list(change.values()), 0.0)
np.testing.assert_array_less(change["rejected"], change["reject_gptsemantic"])
np.testing.assert_array_less(change["chosen_gptsemantic"], change["chosen"])

# %% [markdown]
# SFT lifts y+, its twin in other words, and another prompt's answer too (the model begins to answer question A with the
# facts of question B). DPO lowers everything, y− most and before its own rephrases, y+ least and behind them; what
# rises is the argmax along y+. That is the paper's squeezing, and nothing here is a network: contexts that differ and
# features that are shared made it. Which of the paper's findings hold in such worlds, over 32 seeds and three kernels,
# stands on the scoreboard (`toyld claims "supervised.*" "preference.*"`, column contexts). Not all do: here only one of
# the similar answers goes up and then down, and shuffled words of a *taught* answer rise.
#
# ## What amplifies it: the component that all features share
#
# Hidden states of language models have a large common part (anisotropy). Add c·11ᵀ to S: every context's total
# push then reaches all others. From one SFT loss (a nat a token), at one learnt margin m = Δ(ℓ₊ − ℓ₋) and with y−
# sampled from the model itself:

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
    print(f"c = {c:.1f}: Δ log π(y+) {found['chosen']:+6.2f}   Δ of an untaught answer {found['test_chosen']:+6.2f}")
np.testing.assert_array_less(np.diff([found["chosen"] for found in amplified.values()]), 0.0)
np.testing.assert_array_less(np.diff([found["test_chosen"] for found in amplified.values()]), 0.0)
for id in ("kernel.common-slope", "kernel.common-share", "kernel.on-policy-negatives-drop-out"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# The slope in c has a closed form (`kernel.common-slope`): the push reaches response o through c·⟨G_o, Σ G⟩, the sum of
# all residuals (G_o = Σ_u (e_y − π_u) over the tokens of o). It is not negative always. For a single pair what y+
# suffers per nat of margin, at the first update, is monotone in c (`kernel.common-share`); at a finite margin it need
# not be (`kernel.common-share-at-a-margin`). Over 32 seeds of a Markov language, with answers of the model's own and
# with random words as y−, the trend holds at equal margin (`displacement.common-amplifies`).
#
# ## Improbable or similar?
#
# The usual story blames answers y− that the model would never give. But the push on a token is π − e_y, and once
# π_y ≪ 1 making it rarer changes nothing more:

# %%
for rare in (0.25, 0.02, 3e-6):
    push = np.array([1 - rare, -(1 - rare)])  # all else on one token
    print(f"π(y−) = {rare:<8.2g} ‖π − e_y‖ = {np.linalg.norm(push):.3f}")
hold("similarity.probability-scales-the-push")

# %% [markdown]
# What does change is *whom it reaches*. Interventions on one factor at a time, at equal margin: with Z fixed,
# uncoupling y−'s own contexts from all others spares untrained answers (`similarity.coupling-displaces`); with S fixed,
# making y− improbable does not make them fall more, rather less (`similarity.improbable-displaces-more` is refuted).
# Both sentences are about answers that nobody trained; the chosen answer can lose a little by rarer y−.
# Correlations over sampled pairs are no such intervention: there improbability, couplings and labels come mixed.
#
# ## A remedy: take the mean out of the update
#
# If a shared component carries the damage, leave it out: use φ_u − μ in the gradient, μ the mean feature of the
# training contexts, and the full φ in the forward pass. In dual form that is one line, R ← R − w·1ᵀR with w the weights
# of the mean (1/n each), and it cancels any c·11ᵀ *exactly* (`kernel.common-component-cancels`).

# %%
centred = at_margin(2.0, centre=True)
print(f"c = 2, plain   {amplified[2.0]['chosen']:+6.2f} {amplified[2.0]['test_chosen']:+6.2f}")
print(f"c = 2, centred {centred['chosen']:+6.2f} {centred['test_chosen']:+6.2f}")
for kind in ("chosen", "test_chosen"):
    np.testing.assert_array_less(amplified[2.0][kind], centred[kind])
for id in ("kernel.common-component-cancels", "kernel.centred-descends", "kernel.nearest-mean-descends"):
    print(f"{id}: {hold(id).verdict}")

# %% [markdown]
# At this margin what c = 2 had taken is back. It has its price and its limits. It needs more updates
# (`centring.needs-more-updates`); a centred step need not lower the loss (`kernel.centred-descends` is refuted;
# projecting μ out of the features does keep descent, `centring.projection-descends`); and where the shared part is not
# a constant, one for all contexts, subtracting the mean undoes little of the damage (`centring.undoes-any-component` is
# refuted). For the chosen answer DPO+NLL does better (`centring.chosen-above-remedies` is refuted).
#
# ## What is proved, what is measured
#
# | | |
# |---|---|
# | proved, any step | the dual form; no cross-talk, no displacement; the cancelled component; SFT stable to ηλ = 4 |
# | proved, first order with remainder | who moves whom (`kernel.one-step`); slope and share of a common component |
# | measured, 32 seeds, two small languages | `displacement`, `similarity`, `centring`, `foresight`, `supervised` … |
# | not said here | what moves when features train too: chapters on networks |
#
# ## Picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.2), sharey=True, layout="constrained")
looks = {
    "chosen": "tab:blue",
    "chosen_gptsemantic": "tab:cyan",
    "rejected": "tab:red",
    "irr_train": "tab:green",
    "test_chosen": "tab:gray",
}
for ax, stage, name in zip(axes, (sft, dpo), ("SFT", "then DPO"), strict=True):
    for kind, colour in looks.items():
        ax.plot(stage.steps, path(stage, kind), color=colour, label=KINDS[kind])
    ax.plot(stage.steps, path(stage, "chosen", "argmax_logp"), color="black", ls="--", label="argmax along y+")
    ax.set(xlabel="updates", title=name)
axes[0].set_ylabel("log π of the answer (nats)")
axes[0].legend(fontsize=7, loc="lower right")
figure.savefig("06_one_kernel.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# Two pairs share a prompt: a ≻ b and c ≻ a, five tokens, one context, a uniform start. What becomes of log π(a) under
# DPO, although the kernel has nothing off its diagonal? And what if a is chosen in both, a ≻ b and a ≻ c?
#
# **Solution.** With the two lessons a is pushed up by one pair and down by the other with the same strength: its logit
# stands still, while c's rises and b's falls. So log π(a) = −log(3 + 2 cosh x) → −∞ with x the way that c has gone.
# Chosen in both it only rises. Conflicting labels displace without any cross-talk.

# %%


def two_pairs(pairs: list[tuple[int, int]]) -> np.ndarray:
    """log π(a) along DPO on pairs (winner, loser) of single tokens at one context."""
    sides = [np.array(side)[None, :, None] for side in zip(*pairs, strict=True)]
    ones = np.ones((1, len(pairs), 1), bool)
    responses = {
        kind: Responses(np.zeros_like(side), side, ones)
        for kind, side in zip(("chosen", "rejected"), sides, strict=True)
    }
    one = World(np.zeros((1, 1, 5)), contexts.Gram(np.ones((1, 1, 1))), responses, 1, (0,))
    found = contexts.train(one, objectives.get("dpo", beta=0.5), lr=8.0, steps=150, rejected="rejected", at=range(151))
    return found.value("logp", "chosen")[:, 0, 0]  # a is the winner of the first pair


a, b, c = 0, 1, 2
torn, agreed = two_pairs([(a, b), (c, a)]), two_pairs([(a, b), (a, c)])
print(f"a ≻ b, c ≻ a: log π(a) {torn[0]:.2f} → {torn[-1]:.2f};   a ≻ b, a ≻ c: {agreed[0]:.2f} → {agreed[-1]:.2f}")
np.testing.assert_array_less(np.diff(torn), 0.0)
np.testing.assert_array_less(0.0, np.diff(agreed))
hold("kernel.conflicting-labels")
