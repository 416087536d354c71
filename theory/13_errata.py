# %% [markdown]
# # 13. Errata: what is not true as worded
#
# **Question.** Theory travels by slogan: "larger steps amplify everything", "SFT pushes everything else down", "the
# rarer the rejected answer, the more the top answer gains". Which of these sentences survive a counterexample?
#
# A claim that fails is a result. Here each one keeps its place in the registry as *refuted*: with a small
# counterexample in exact rationals, a certificate for its sign, and the corrected statement beside it. None of this
# touches the decomposition itself (chapter 1) or the two guarantees of squeezing (chapter 2): those are proved.

# %%
import os
import re
from fractions import Fraction
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from toyld import claims, objectives
from toyld import softmax as sm
from toyld.claims import exact, hold
from toyld.probes import make
from toyld.probes.released import audit

steps = [c for c in claims.every().values() if c.about == "step"]
refuted = [c for c in steps if c.expect == "refuted"]
print(f"{len(refuted)} statements refuted, out of {len(steps)} claims about one softmax\n")

# %% [markdown]
# ## How a refutation is certified
#
# Floating point can be wrong about a sign. So the counterexample is a handful of rationals, and its margin is evaluated
# in *ball arithmetic*: every operation returns an interval that certainly contains the true value. If the interval lies
# below zero, the statement is false; nobody has to trust a rounding.

# %%
(larger,) = claims.select(["squeeze.larger-step-amplifies-all"])
case = larger.counterexample.case
p, y, s, more = case["p"], case["y"], case["s"], case["more"]
before, after = exact.log_alphas(p, y, s), exact.log_alphas(p, y, s * more)
print("“" + larger.statement + "”")
print(f"  {larger.counterexample}: pushing down class {y}, what happens to class 2?")
print(f"  log π'/π at step {s}: {before[2].str(8)}\n  log π'/π at step {s * more}: {after[2].str(8)}")
np.testing.assert_equal(bool(after[2] < before[2]), True)
hold(larger.id)

# %% [markdown]
# ## The list
#
# Statements of the paper and of later work that are false as printed or as commonly read, expectations that the cited
# work itself corrects, and natural strengthenings of our own theorems; the source says which. A small counterexample
# each.

# %%
for claim in refuted:
    hold(claim.id, examples=100)
    print(f"{claim.id}\n  “{claim.statement}”\n  source:  {claim.source}\n  fails:   {claim.counterexample}")
    print(f"  instead: {claim.instead}: {claims.every()[claim.instead].statement}\n")
faults = {int(n) for claim in refuted for n in re.findall(r"\(F(\d+)", claim.source)} | {17}  # F17: data, see below
print(
    "of our list of faulty statements (F-numbers, see CONTRIBUTING.md) settled here:",
    ", ".join(f"F{n}" for n in sorted(faults)),
)

# %% [markdown]
# ## A slip in a coefficient
#
# The paper's table of residuals (App. B.2.2) prints, for IPO, the coefficient β(1 − a) with a = h − 1/2β, where h is
# the log-ratio margin. Differentiating IPO's own loss (h − 1/2β)² gives
#
#     c₊ = −c₋ = −2(h − 1/2β)
#
# which is *zero* at the target margin and pulls back beyond it. The printed one is β at the target: IPO would overshoot
# by one unit. It matters, because "does the push on the rejected answer stop?" is what decides squeezing.

# %%
beta = 0.3
margins = np.linspace(0.0, 4.0, 161)
ipo = objectives.get("ipo", beta=beta)
zeros = np.zeros_like(margins)
batch = objectives.pair_batch(margins - 5.0, zeros - 5.0, zeros - 5.0, zeros - 5.0)
true = ipo.coefficients(batch)[0]
printed = beta * (1.0 - (margins - 1 / (2 * beta)))
np.testing.assert_allclose(true, -2.0 * (margins - 1 / (2 * beta)), rtol=1e-12, atol=1e-12)
at = 1 / (2 * beta) - 1.27
print(f"at h = {at:.3f}: true {-2 * (at - 1 / (2 * beta)):.2f}, printed {beta * (1 - (at - 1 / (2 * beta))):.2f}")

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
np.testing.assert_allclose(moves["random_nonhum"], sources, rtol=1e-12)
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
# ## Picture

# %%
figure, ax = plt.subplots(figsize=(5.5, 3), layout="constrained")
ax.plot(margins, true, color="black", label="−dL/dh, from the loss")
ax.plot(margins, printed, color="tab:orange", ls="--", label="as printed (Eq. 17)")
ax.axhline(0, color="gray", lw=0.6)
ax.axvline(1 / (2 * beta), color="gray", lw=0.6)
ax.text(1 / (2 * beta), ax.get_ylim()[1], " target margin 1/2β", va="top", fontsize=8)
ax.set(xlabel="log-ratio margin h (nats)", ylabel="c₊ = −c₋", title="IPO stops at its target, and pulls back beyond")
ax.legend(loc="lower left")
figure.savefig("13_errata.png")
plt.close(figure)

# %% [markdown]
# ## Exercise
#
# "After SFT on y every other class is less likely." Refute it by hand: three classes, rational probabilities.
#
# **Solution.** A class j gains if π_j < ‖π‖² − π_y (to first order), so take a peaky π and a label that is no peak.
# With π = (8/10, 1/10, 1/10) and y = 1, ‖π‖² − π_y = 0.66 − 0.1 = 0.56 > 1/10: class 2 gains, though nobody asked.

# %%
p = (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10))
gain = exact.log_alphas(p, 1, Fraction(1, 2), 1)[2]
print("class 2, log π'/π =", gain)
np.testing.assert_equal(bool(gain > 0), True)
np.testing.assert_equal(bool(sm.winners(np.log([0.8, 0.1, 0.1]), 1, s=0.5, c=1.0)[2]), True)
hold("sft.lowers-everything-else")
