# %% [markdown]
# # Exercises to chapter 12

# %%
import numpy as np

from toyld.book import says
from toyld.claims import hold
from toyld.premem import copying_bound, pre_memorisation

# %% [markdown]
# ## Exercise 1: by hand
#
# One prompt, four checkpoints, threshold p = 1.5: accuracies .25, .75, 1, .5 and perplexities 6, 2, 1.2, 1.8. Write
# down PreMem at each checkpoint, as a list `by_hand`.

# %% tags=["solution"]
by_hand = [0.25, 0.75, 0.75, 0.5]

# %%
p = 1.5
accuracy, perplexity = np.array([0.25, 0.75, 1.0, 0.5]), np.array([6.0, 2.0, 1.2, 1.8])
np.testing.assert_array_equal(by_hand, pre_memorisation(accuracy, perplexity, threshold=p))
print("PreMem by checkpoint:", by_hand)
says("threshold p = 1.5", p)
says("accuracies .25, .75, 1, .5 and perplexities 6, 2, 1.2, 1.8", *accuracy, *perplexity)
masked = accuracy * (perplexity > p)
says("Masked: .25, .75, 0, .5", *masked)
says("(the third checkpoint copies: 1.2 ≤ 1.5)", perplexity[2], p)
says("Largest so far: .25, .75, .75, .75", *np.maximum.accumulate(masked))
says("accuracy now: .25, .75, .75, .5", *by_hand)

# %% [markdown] tags=["solution"]
# **Solution.** Masked: .25, .75, 0, .5 (the third checkpoint copies: 1.2 ≤ 1.5). Largest so far: .25, .75, .75, .75.
# The smaller of that and the accuracy now: .25, .75, .75, .5.

# %% tags=["mistake"]
# takes the masked accuracy itself, as if what was understood were lost while the model copies
by_hand = [0.25, 0.75, 0.0, 0.5]

# %% [markdown]
# ## Exercise 2: how long must a trace be?
#
# You watch at p = 1.2 and want copying to account for less than 1 % of right answers. Write `tokens_needed(p, share)`,
# the smallest number of tokens T of a trace with p^{−T} < share.

# %% tags=["solution"]


def tokens_needed(p: float, share: float) -> int:
    """Smallest T with p^{−T} < share."""
    return int(np.floor(-np.log(share) / np.log(p))) + 1


# %%
share, thresholds = 0.01, (1.05, 1.2, 2.0)
needed = [tokens_needed(p, share) for p in thresholds]
for p, tokens in zip(thresholds, needed, strict=True):
    np.testing.assert_array_less(copying_bound(tokens, threshold=p), share)
    np.testing.assert_array_less(share, copying_bound(tokens - 1, threshold=p))
    print(f"p = {p}: {tokens} tokens")
says("You watch at p = 1.2", thresholds[1])
says("less than 1 % of right answers", share)
says("At p = 1.2 that takes 26 tokens", thresholds[1], needed[1])
says("at p = 1.05 it takes 95", thresholds[0], needed[0])
says("at p = 2 only 7", thresholds[2], needed[2])
hold("premem.copying-is-bounded")

# %% [markdown] tags=["solution"]
# **Solution.** p^{−T} < share says T log p > −log share. At p = 1.2 that takes 26 tokens, at p = 1.05 it takes 95, at
# p = 2 only 7. A lower threshold waits longer for the copy and needs longer traces.

# %% tags=["mistake"]
# forgets that perplexity is a mean over tokens: 1/p is the probability of one token, not of the trace


def tokens_needed(p: float, share: float) -> int:
    return int(1 / (p * share)) + 1


# %% [markdown]
# ## Exercise 3: a metric that can be gamed
#
# A colleague trains on each problem's solution worded anew in every epoch, and watches the perplexity of the first
# wording. Make up a log of that, three checkpoints of one prompt: `accuracy`, `perplexity` (of the wording that is
# watched) and `recited` (the probability of all wordings together that were shown in training), such that PreMem ends
# at 1 for p = 1.5 although no answer is right but the recited ones. Which premise of `premem.copying-is-bounded` is
# kept, and why does that not help?

# %% tags=["solution"]
accuracy = np.array([0.0, 0.5, 1.0])
perplexity = np.array([4.0, 4.0, 4.0])
recited = np.array([0.0, 0.5, 1.0])

# %%
p = 1.5
found = pre_memorisation(accuracy, perplexity, threshold=p)
np.testing.assert_array_equal(found[-1], 1.0)
np.testing.assert_allclose(accuracy, recited)  # nothing is right but what was shown
np.testing.assert_array_less(perplexity[-1] ** -20.0, 1e-6)  # and the watched wording, of 20 tokens, is never given
print("PreMem", found, "recited", recited)
says("ends at 1 for p = 1.5", found[-1], p)
hold("premem.copying-is-bounded")

# %% [markdown] tags=["solution"]
# **Solution.** The watched wording stays improbable, so that nothing is masked, and PreMem is the accuracy. The bound
# holds: what is above p^{−T} comes from other right traces. But these were trained, too. What has to be watched is the
# probability of *all* that was shown: copied should mean that any of the shown wordings is.

# %% tags=["mistake"]
# lets the watched wording be copied: then the metric does its work, and PreMem ends at 0
accuracy = np.array([0.0, 0.5, 1.0])
perplexity = np.array([4.0, 1.2, 1.0])
recited = np.array([0.0, 0.5, 1.0])
