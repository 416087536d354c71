# %% [markdown]
# # 13. Errata: what is not true as worded
#
# **Question.** Theory travels by slogan: "larger steps amplify everything", "SFT pushes everything else down", "the
# rarer the rejected answer, the more the top answer gains". Which of these sentences survive a counterexample?
#
# A claim that fails is a result. Here each one keeps its place in the registry as *refuted*: with a small
# counterexample, a certificate for its sign, and the corrected statement beside it. None of this touches the
# decomposition itself (chapter 1) or the two guarantees of squeezing (chapter 2): those are proved.

# %%
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from toyld import claims, objectives
from toyld import softmax as sm
from toyld.book import formula, recorded, says, verdict
from toyld.claims import exact, hold
from toyld.claims.preference import DIGIT, PRINTED
from toyld.probes import make
from toyld.probes.released import audit

# %% [markdown]
# ## The list of the book
#
# Seventeen statements (and one that goes with the first), printed or commonly read so, that are false or true only
# under a condition.
#
# | | as printed, or as commonly read | what is so |
# |---|---|---|
# | F1 | Fig. 4: the argmax along y⁺ goes from −113 to −63 | that is along shuffled words; along y⁺ it starts at −61.6 |
# | F1b | DPO's argmax rises faster than y⁺ did in SFT | after as many examples it has risen 52.4 nats less |
# | F2 | App. C.2: a uniform π has ‖π‖² = 1/√V | 1/V |
# | F3 | Eq. 17: IPO's coefficient is β(1 − a) | it vanishes at the target and reverses beyond it |
# | F4 | Eq. 20: where its hinge is active, SLiC pushes as DPO | its coefficient is 1 there |
# | F5 | App. B.2.2: SPPO has no negative gradient | a slip of sign: it pushes y⁻ down, up to a target |
# | F6 | §3.3: squeezed mass goes largely to y* | if π is peaky; if it is flat all others share alike |
# | F7 | the third trend: the rarer y⁻, the more y* rises | the more the others fall; y* itself rises less |
# | F8 | Claim 5: a larger step amplifies all effects | who gains at a small step may lose at a larger one |
# | F9 | App. A.3: PPO does not push valleys hard | not after the first update; in the first it does |
# | F10 | squeezing explains why DPO lowers y⁺ | not at one shared context: it takes coupled ones |
# | F11 | SFT pushes down everything else | logits only; rare classes gain while y is no peak |
# | F12 | BS-T (Li et al.), Theorem 5.2: the residual | its overall sign is the opposite one |
# | F13 | §2: the error is O(η²‖∇z(x_u)‖²) | with a constant that depends on observer and model |
# | F14 | App. C.2: what is plotted bounds ‖K‖ from below | the notebook computes another quantity |
# | F15 | App. B: the diagonal of ∇_z π is 1 − π_iπ_i | π_i(1 − π_i) |
# | F16 | Table 1: extended SFT makes better answers | it had more updates: beside as many of plain SFT, worse |
# | F17 | §4: y_rnd is random English words | the words of another answer, shuffled |
#
# Where each is shown, and the claim that was tried:
#
# | | shown in | claim |
# |---|---|---|
# | F1 | chapter 11 | `preference.argmax-as-published` |
# | F1b | here | `preference.argmax-rises-faster-than-sft` |
# | F2 | here | `decomposition.printed-uniform-norm` |
# | F3 | chapter 4, here | `residual.printed-ipo` |
# | F4 | chapter 4 | `residual.printed-slic` |
# | F5 | chapter 4 | `residual.sppo-has-no-negative-gradient` |
# | F6 | here | `squeeze.mass-goes-to-the-top` |
# | F7 | chapter 3 | `trends.rarer-label-lifts-top-more` |
# | F8 | chapter 2, here | `squeeze.larger-step-amplifies-all` |
# | F9 | chapter 10 | `policy.ppo-spares-valleys` |
# | F10 | chapters 4, 8 | `pair.squeezing-lowers-winner` |
# | F11 | chapters 1, 7 | `sft.lowers-everything-else` |
# | F12 | here | `unlearning.bst-printed-residual` |
# | F13 | chapter 5 | `step.constant-free-of-features` |
# | F14 | here | `akg.notebook-ranks-like-the-norm` |
# | F15 | here | `decomposition.printed-jacobian` |
# | F16 | chapter 8 | `alignment.extend-wins-at-equal-updates` |
# | F17 | here | none; the files say so |
#
# Of F16 one can only say what happens where answers can be judged by the language itself (chapter 8): the paper's
# judges, models of that time, cannot be asked again. Its win rates also leave out long answers and always show the two
# answers in the same order.

# %%
faulty = recorded("preference.argmax-rises-faster-than-sft", rung="published")
start = PRINTED[0] + DIGIT - recorded("preference.argmax-as-published", rung="published").value
labels = {label for c in claims.every().values() for label in re.findall(r"\bF\d+\b", c.source)}
says("Seventeen statements", len(labels | {"F16", "F17"}))  # F16 is filed under Table 1, F17 is no claim
flat = sm.softmax(np.zeros(V := 10))
formula("1/V |", flat @ flat, 1 / V)
formula("1/√V", np.linalg.norm(flat), 1 / np.sqrt(V))  # what is printed is the norm, not its square
says("from −113 to −63", *PRINTED)
says("it starts at −61.6", start)
says("risen 52.4 nats less", -faulty.value)
for id, rung, expected in (
    ("preference.argmax-as-published", "published", "refuted"),
    ("preference.argmax-rises-faster-than-sft", "published", "refuted"),
    ("akg.notebook-ranks-like-the-norm", "digits", "refuted"),
    ("alignment.extend-wins-at-equal-updates", "tiny", "refuted"),
):
    effect = recorded(id, rung=rung)
    print(f"recorded: {id} {verdict(id, rung=rung)}, {effect.value:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]")
    np.testing.assert_equal(verdict(id, rung=rung), expected)

# %% [markdown]
# ## How a refutation is certified
#
# Floating point can be wrong about a sign. So the counterexample is a handful of rationals, and its margin is evaluated
# in *ball arithmetic*: every operation returns an interval that certainly contains the true value. If the interval lies
# below zero, the statement is false; nobody has to trust a rounding. F8, for example: at step 1 class 2 gains, at step
# 2 it loses.

# %%
(larger,) = claims.select(["squeeze.larger-step-amplifies-all"])
case = larger.counterexample.case
p, y, s, more = case["p"], case["y"], case["s"], case["more"]
i = 2
before, after = exact.log_alphas(p, y, s), exact.log_alphas(p, y, s * more)
print("“" + larger.statement + "”")
print(f"  {larger.counterexample}: pushing down class {y}, what happens to class {i}?")
print(f"  log π'/π at step {s}: {before[i].str(8)}\n  log π'/π at step {s * more}: {after[i].str(8)}")
np.testing.assert_equal(bool(before[i] > 0), True)
np.testing.assert_equal(bool(after[i] < 0), True)
says("at step 1 class 2 gains, at step 2 it loses", s, i, s * more)
hold(larger.id)

# %% [markdown]
# ## All that was refuted about one softmax
#
# Beside the list of the book these are readings of the paper and of later work, and natural strengthenings of our own
# theorems; the source says which. A small counterexample each, and the name of the statement that is true instead
# (`toyld claims NAME` prints it).

# %%
steps = [c for c in claims.every().values() if c.about == "step"]
refuted = [c for c in steps if c.expect == "refuted"]
print(f"{len(refuted)} statements refuted, out of {len(steps)} claims about one softmax\n")
for claim in refuted:
    hold(claim.id, examples=100)
    print(f"{claim.id}\n  “{claim.statement}”\n  source:  {claim.source}\n  fails:   {claim.counterexample}")
    print(f"  instead: {claim.instead}\n")

# %% [markdown]
# ## A slip in a coefficient (F3)
#
# The paper's table of residuals (App. B.2.2) prints, for IPO, the coefficient β(1 − a) with a = h − 1/2β, where h is
# the log-ratio margin. Differentiating IPO's own loss (h − 1/2β)² gives
#
#     c₊ = −c₋ = −2(h − 1/2β)
#
# which is *zero* at the target margin and pulls back beyond it. The printed one is β at the target: IPO would overshoot
# by one unit. It matters, because "does the push on the rejected answer stop?" is what decides squeezing.

# %%
β = 0.3
h = np.linspace(0.0, 4.0, 161)
ipo = objectives.get("ipo", beta=β)
zeros = np.zeros_like(h)
batch = objectives.pair_batch(h - 5.0, zeros - 5.0, zeros - 5.0, zeros - 5.0)
true = ipo.coefficients(batch)[0]
a = h - 1 / (2 * β)
printed = β * (1.0 - a)
formula("a = h − 1/2β", a, h - 1 / (2 * β))
formula("(h − 1/2β)²", ipo.loss(batch), (h - 1 / (2 * β)) ** 2)
formula("c₊ = −c₋ = −2(h − 1/2β)", true, -ipo.coefficients(batch)[1], -2 * (h - 1 / (2 * β)))
some = np.argmin(np.abs(a + 1.27))
print(f"at h = {h[some]:.3f}: true {true[some]:.2f}, printed {printed[some]:.2f}")

# %% [markdown]
# ## Random words that are not random (F17)
#
# Among the probes of §4 is y_rnd, "random English words", text that no human writes. The files that were released, and
# with which the published curves were measured, hold something else under that name (`random_nonhum`): the words of
# the answer to another prompt (`irr_test`) in another order. Does it matter? Take a model that knows no order: one
# softmax over words, the same in every place. A shuffled text then has the log-probability of the text *itself*, after
# any training:
#
#     log π(shuffled) − log π(text) = 0,      Δ log π(random words) = another number
#
# so what falls or rises with y_rnd includes what happens to the words of a natural answer. `toyld.probes` makes both:
# `random_nonhum` as released, `random_words` as said; `audit` tells by content what a file holds.

# %%
taught = [f"{who} {verb} the {what}" for who in ("we", "you") for verb, what in (("see", "sea"), ("see", "sky"))]
never = ["you hear the rain", "we hear a bird", "they hear no rain", "you see a bird"]
train, test = (
    [{"prompt": f"{name} {i}?", "chosen": text, "rejected": "no idea"} for i, text in enumerate(texts)]
    for name, texts in (("taught", taught), ("test", never))
)
probes = make(train, ["irr_test", "random_nonhum", "random_words"], seed=0, test=test)
kinds = audit(probes).kinds
print({key: kinds[key].what for key in ("irr_test", "random_nonhum", "random_words")})
np.testing.assert_equal(kinds["random_nonhum"].what, "permutation of irr_test")
np.testing.assert_equal(kinds["random_words"].what == kinds["random_nonhum"].what, False)

vocabulary = sorted({word for text in (*taught, *never, "no idea") for word in text.split()})
z = np.zeros(len(vocabulary))


def logp(text, z):
    return sum(sm.log_softmax(z)[vocabulary.index(word)] for word in text.split())


after = z
for text in taught * 20:  # SFT, word by word
    for word in text.split():
        after = sm.step(after, sm.residual(after, vocabulary.index(word), c=1.0), s=0.1)
moves = {}
for key in ("chosen", "irr_test", "random_nonhum", "random_words"):
    texts = [text for text in probes.responses[key] if text is not None]
    moves[key] = [logp(text, after) - logp(text, z) for text in texts]
    print(f"SFT of the taught answers moves {key:14s} by {np.mean(moves[key]):+6.2f} nats on average")
sources = [a for a, b in zip(moves["irr_test"], probes.responses["random_nonhum"], strict=True) if b is not None]
formula("log π(shuffled) − log π(text) = 0", np.subtract(moves["random_nonhum"], sources), 0)
np.testing.assert_array_less(1.0, abs(np.mean(moves["random_words"]) - np.mean(moves["random_nonhum"])))

# %% [markdown]
# And the released files themselves, if they are at hand (`preference/` of the folder that TOYLD_DATA names). A word is
# a stretch without white space; by it *every* row is such a permutation.

# %%
folder = Path(os.environ.get("TOYLD_DATA", "nowhere"), "preference")
for name in ("train", "test"):
    if not (folder / f"hh_probing_{name}.jsonl").is_file():
        print(f"hh_probing_{name}.jsonl is not at hand")
        continue
    found = audit(folder / f"hh_probing_{name}.jsonl").kinds["random_nonhum"]
    rows = len(found.relations["permutation of", "irr_test"]) + len(found.relations["copy of", "irr_test"])
    print(f"{name}: random_nonhum holds the words of irr_test in {rows} of {found.texts} rows")
    np.testing.assert_equal(rows, found.texts)

# %% [markdown]
# ## What is proved, what is first order, what is measured
#
# - **Proved**: nothing here but refutations, each certified in ball arithmetic.
# - **First order**: nothing here.
# - **Measured**: nothing here but refutations, by runs.
# - **Refuted or open**: of one softmax `decomposition.printed-uniform-norm`, `residual.printed-ipo`,
#   `residual.printed-slic`, `residual.sppo-has-no-negative-gradient`, `squeeze.mass-goes-to-the-top`,
#   `trends.rarer-label-lifts-top-more`, `squeeze.larger-step-amplifies-all`, `policy.ppo-spares-valleys`,
#   `pair.squeezing-lowers-winner`, `sft.lowers-everything-else`, `unlearning.bst-printed-residual`,
#   `step.constant-free-of-features`, `decomposition.printed-jacobian`; of runs, by the authors' logs
#   `preference.argmax-as-published` and `preference.argmax-rises-faster-than-sft`, by networks on MNIST (10 seeds)
#   `akg.notebook-ranks-like-the-norm`, by tiny transformers (32 seeds) `alignment.extend-wins-at-equal-updates`.
#
# Exercises: `theory/solutions/13_errata.py`.

# %%
says("(10 seeds)", recorded("akg.notebook-ranks-like-the-norm", rung="digits").n)
says("(32 seeds)", recorded("alignment.extend-wins-at-equal-updates", rung="tiny").n)

# %% [markdown]
# ## Picture

# %%
figure, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
ax.plot(h, true, color="black", label="−dL/dh, from the loss")
ax.plot(h, printed, color="tab:orange", ls="--", label="as printed (Eq. 17)")
ax.axhline(0, color="gray", lw=0.6)
ax.axvline(1 / (2 * β), color="gray", lw=0.6)
ax.text(1 / (2 * β), ax.get_ylim()[1], " target margin 1/2β", va="top", fontsize=8)
ax.set(xlabel="log-ratio margin h (nats)", ylabel="c₊ = −c₋", title="IPO stops at its target, and pulls back beyond")
ax.legend(loc="lower left")
figure.savefig("13_errata.png")
plt.close(figure)
