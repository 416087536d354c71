"""What is expected of run claims at rung `llm`: what two recorded runs of real language models gave, and by how much.

`stories`: stories260K, 400 pairs made of TinyStories. `hh`: a Llama of 5.9 million parameters, 240 Anthropic-HH pairs.
Units are the probed prompts; *open* is what Holm's correction over the rung leaves undecided, or what neither run can
tell. A test compares this with the evidence. Claims on other experiments say it beside their statements.
"""

from __future__ import annotations

from collections.abc import Mapping

from toyld.claims.base import Expect

__all__ = ["EXPECTED"]

EXPECTED: Mapping[str, tuple[Expect, str]] = {
    "supervised.chosen-rises": ("open", "hh baseline: +3.2 [-0.25, 8.7]; stories baseline: +0.4 [-2.1, 5.8]"),
    "supervised.similar-bell": ("open", "hh baseline: -1.1 [-6.9, 1.8]; stories baseline: -1.6 [-7.6, 2.2]"),
    "supervised.other-answers-rise": ("holds", "hh baseline: +36 [28, 45]; stories baseline: +62 [41, 83]"),
    "supervised.other-answers-rise-early": ("holds", "hh baseline: +23 [18, 29]; stories baseline: +48 [33, 63]"),
    "supervised.untaught-rise-less": ("open", "hh baseline: +16 [7, 26]; stories baseline: +34 [13, 55]"),
    "supervised.shuffled-fall": ("open", "hh baseline: -28 [-35, -21]; stories baseline: -17 [-27, -7]"),
    "supervised.argmax-rises-too": ("open", "hh baseline: +3.6 [-1.8, 9]; stories baseline: -4.2 [-7.2, -1.1]"),
    "supervised.extend-lifts-rejected": (
        "holds",
        "hh extend-passes: +43 [34, 52]; hh extend-updates: +32 [25, 38]; stories extend-passes: +60 [38, "
        "82]; stories extend-updates: +50 [34, 66]",
    ),
    "supervised.trends-everywhere": ("refuted", "all runs: -28 [-35, -19]"),
    "supervised.closer-rises-more": ("open", "hh baseline: +4.7 [1.8, 8.1]"),
    "supervised.chosen-rises-most": ("open", "hh baseline: +18 [4.2, 39]; stories baseline: -30 [-51, -0.95]"),
    "supervised.form-twin-bell": ("open", "hh baseline: +0.091 [-3.2, 2.1]"),
    "supervised.taught-words-outlast": ("open", "hh baseline: +16 [8.6, 23]; stories baseline: +1.3 [-2.6, 5.2]"),
    "supervised.answers-everywhere": ("open", "all runs: +16 [7, 29]"),
    "preference.extend-slows-others-at-equal-updates": (
        "open",
        "hh extend-updates against hh baseline: +1.9 [1.1, 2.6]; stories extend-updates against stories "
        "baseline: +1.4 [0.5, 2.6]",
    ),
    "preference.extend-slows-others-at-equal-passes": (
        "open",
        "hh extend-passes against hh baseline: +1.2 [0.26, 2.1]; stories extend-passes against stories "
        "baseline: +3.3 [2.1, 4.9]",
    ),
    "preference.extend-slows-others-at-equal-margin": (
        "open",
        "hh extend-passes against hh baseline: +0.65 [-0.0022, 1.1]",
    ),
    "preference.extend-spares-chosen-at-equal-updates": (
        "holds",
        "hh extend-updates against hh baseline: +1.9 [1.4, 2.4]; stories extend-updates against stories "
        "baseline: +2.2 [1.8, 2.5]",
    ),
    "preference.extend-spares-chosen-at-equal-passes": (
        "holds",
        "hh extend-passes against hh baseline: +1.3 [0.92, 1.7]; stories extend-passes against stories "
        "baseline: +2.6 [2.1, 3.1]",
    ),
    "preference.extend-spares-chosen-at-equal-margin": (
        "holds",
        "hh extend-passes against hh baseline: +1.1 [0.69, 1.4]",
    ),
    "preference.extend-slows-argmax-early-at-equal-updates": (
        "open",
        "hh extend-updates against hh baseline: -0.012 [-0.35, 0.33]; stories extend-updates against stories "
        "baseline: -0.09 [-0.57, 0.39]",
    ),
    "preference.extend-slows-argmax-early-at-equal-passes": (
        "open",
        "hh extend-passes against hh baseline: -0.024 [-0.58, 0.53]; stories extend-passes against stories "
        "baseline: -0.12 [-0.7, 0.46]",
    ),
    "preference.extend-lowers-total-argmax-at-equal-updates": (
        "open",
        "hh extend-updates against hh baseline: +0.51 [0.056, 0.96]; stories extend-updates against stories "
        "baseline: +0.045 [-0.44, 0.53]",
    ),
    "preference.extend-lowers-total-argmax-at-equal-passes": (
        "open",
        "hh extend-passes against hh baseline: +1.1 [0.47, 1.7]; stories extend-passes against stories "
        "baseline: -0.44 [-1, 0.13]",
    ),
    "preference.sampled-negatives-spare-chosen": (
        "open",
        "neither run can tell: a run of stage sft; the claim is about dpo; its arm is baseline; the claim is "
        "about on-policy; its arm is extend; the claim is about on-policy",
    ),
    "preference.sampled-negatives-spare-others": (
        "open",
        "neither run can tell: a run of stage sft; the claim is about dpo; its arm is baseline; the claim is "
        "about on-policy; its arm is extend; the claim is about on-policy",
    ),
    "preference.sampled-negatives-slow-argmax": (
        "open",
        "neither run can tell: a run of stage sft; the claim is about dpo; its arm is baseline; the claim is "
        "about on-policy; its arm is extend; the claim is about on-policy",
    ),
    "preference.observed-fall": ("open", "hh baseline: -1.6 [-4.3, 1.8]; stories baseline: +6.3 [4.5, 8.5]"),
    "preference.chosen-outlasts-rephrases": ("holds", "hh baseline: +6.5 [4.8, 8.6]"),
    "preference.rejected-leads-rephrases": ("holds", "hh baseline: +7.6 [5.8, 9.7]"),
    "preference.margin-grows": ("holds", "hh baseline: +20 [17, 23]; stories baseline: +12 [9.4, 15]"),
    "preference.argmax-rises": ("open", "hh baseline: -0.11 [-1.1, 0.87]; stories baseline: +1.5 [0.76, 2.1]"),
    "preference.argmax-rises-faster-than-sft": (
        "open",
        "neither run can tell: the stages do not push alike: 1e-05 and 5e-05 at first; the stages do not push"
        " alike: 2e-05 and 4e-05 at first",
    ),
    "preference.chosen-falls": ("conditional", "hh baseline: -6.3 [-8.6, -4.1]; stories baseline: +1.4 [0.78, 2.1]"),
    "preference.gap-widens": ("conditional", "hh baseline: -6.5 [-8.8, -4.1]; stories baseline: +2.9 [2, 3.8]"),
    "preference.longer-sft-squeezes-more": (
        "open",
        "neither run can tell: a run of stage sft; the claim is about dpo; its arm is extend; the claim is "
        "about baseline",
    ),
    "preference.extend-slows-others": (
        "open",
        "hh extend-passes against hh baseline: +1.2 [0.26, 2.1]; hh extend-updates against hh baseline: +1.9 "
        "[1.1, 2.6]; stories extend-passes against stories baseline: +3.3 [2.1, 4.9]; stories extend-updates "
        "against stories baseline: +1.4 [0.5, 2.6]",
    ),
    "preference.extend-slows-argmax-early": (
        "open",
        "hh extend-passes against hh baseline: -0.024 [-0.58, 0.53]; hh extend-updates against hh baseline: "
        "-0.012 [-0.35, 0.33]; stories extend-passes against stories baseline: -0.12 [-0.7, 0.46]; stories "
        "extend-updates against stories baseline: -0.09 [-0.57, 0.39]",
    ),
    "preference.extend-lowers-total-argmax": (
        "open",
        "hh extend-passes against hh baseline: +1.1 [0.47, 1.7]; hh extend-updates against hh baseline: +0.51"
        " [0.056, 0.96]; stories extend-passes against stories baseline: -0.44 [-1, 0.13]; stories extend-"
        "updates against stories baseline: +0.045 [-0.44, 0.53]",
    ),
    "preference.argmax-rises-off-the-answers": (
        "open",
        "hh baseline: -1.7 [-2.6, -0.77]; stories baseline: +3.8 [2.8, 4.8]",
    ),
    "preference.longer-sft-leaves-less-to-argmax": (
        "open",
        "neither run can tell: a run of stage sft; the claim is about dpo; its arm is extend; the claim is "
        "about baseline",
    ),
}
