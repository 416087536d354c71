"""Every figure of the paper (arXiv 2407.10490, version 4), and what stands for it here or why nothing can.

Figures 13 to 16, and those of Appendices E and F, are named by what they show where their own numbers are not needed.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FIGURES", "Row"]


class Row(NamedTuple):
    """A figure of the paper: where it stands, what it shows, our figures (slugs), and what is and is not the same."""

    where: str
    shows: str
    ours: tuple[str, ...]
    said: str


FIGURES = (
    Row(
        "Figure 1 (§2)",
        "One update seen by other images, the influence of all updates, and who ends up alike, on MNIST",
        ("learning_a_four", "error_of_first_order"),
        "Regenerated on the 8×8 digits that come with scikit-learn, where a 4 looks like a 6 rather than a 9. On "
        "MNIST itself the claims `lifts.*` were recorded: `toyld claims 'lifts.*'` shows both.",
    ),
    Row(
        "Figure 2 (§3)",
        "A drawing of the directions in which several losses push, and of squeezing",
        ("loss_zoo", "squeezing_panels", "squeezing_at_a_glance"),
        "A drawing without data. What it draws is computed here: each loss's push, and each class's probability "
        "after one step.",
    ),
    Row(
        "Figure 3 (§4.1)",
        "SFT: log-probability of every kind of response",
        ("sft_in_closed_form", "sft_in_transformers", "sft_and_dpo_in_a_language_model", "published_runs"),
        "Regenerated on closed-form worlds, tiny transformers and a Llama of 5.9 million parameters. Of the "
        "paper's own SFT runs the one used here logs the chosen response and its argmax alone (A of "
        "published_runs). The authors' repository also holds means of every kind for an SFT of Qwen1.5-1.8B; that "
        "run was not at hand.",
    ),
    Row(
        "Figure 4 (§4.2)",
        "DPO: log-probability of every kind of response, and of the argmax (last panel)",
        (
            "published_kinds",
            "published_runs",
            "published_shares",
            "dpo_in_closed_form",
            "dpo_in_transformers",
            "squeezing_at_a_glance",
            "sft_and_dpo_in_a_language_model",
        ),
        "All kinds but the argmax are redrawn from two released DPO runs. The argmax of the last panel, −113 to "
        "−63 in the text, was measured along the contexts of shuffled words (the argmax bug): no released model "
        "has −113 along the chosen response. published_runs sets the mended logs beside the older one.",
    ),
    Row(
        "Figure 5 (§4.3)",
        "SFT on both answers (“extend”), then DPO, against the baseline",
        ("extend_in_transformers", "dpo_in_closed_form", "extend_spares_the_rest", "common_component"),
        "Regenerated in closed form and in tiny transformers, with controls of equal weight and equal updates. The "
        "paper's curves need runs of a large model; the authors' repository holds means of SFT with both answers "
        "and of DPO of Qwen1.5-1.8B, which were not at hand.",
    ),
    Row(
        "Table 1 (§4.3)",
        "How often extend's answers win, by two language models as judges",
        ("wins_by_ground_truth",),
        "The answers were not released, and the judges are commercial models. Here the judge is a language whose "
        "facts are known.",
    ),
    Row(
        "Figure 6 (App. C.1)",
        "A drawing of how the kernel between two digits is computed",
        (),
        "A drawing without data; `toyld.influence.blocks` computes the kernel.",
    ),
    Row(
        "Figure 7 (App. C.1)",
        "Norms of the kernel between digits while MNIST is learnt, by pairs of classes",
        ("rank_stability",),
        "Regenerated on 8×8 digits; on MNIST the claims `stability.*` were recorded.",
    ),
    Row(
        "Figure 8 (App. C.2)",
        "A bound on the kernel (LBK) and the signed change (SignDelta) for every kind, in SFT on five targets and "
        "in DPO",
        ("published_influence",),
        "The row of DPO is redrawn from a released log, by the formula of the authors' notebook and with what "
        "remains of Eq. 26. The rows of SFT need logs per example with every kind, which the runs at hand do not "
        "have.",
    ),
    Row(
        "Figure 9 (App. C.2)",
        "Quantities between: how peaked the model is along each response, and others",
        ("published_influence",),
        "How peaked the model is along every kind is redrawn from the mended logs; the rest is not.",
    ),
    Row(
        "Figure 10 (§3.1, App. D.1)",
        "A drawing of teacher forcing, and a map of the kinds of responses",
        (),
        "Drawings without data; `toyld.probes` names the kinds and makes them.",
    ),
    Row("Figure 11 (App. D.1)", "The prompts that ask for rephrases", (), "Text, not data."),
    Row("Figure 12 (App. D.1)", "Examples of every kind of response", (), "Text; the authors released the whole set."),
    Row(
        "Figures 13 to 16 (App. D)",
        "SFT and DPO again on other models and on UltraFeedback, rephrases by form and meaning, longer SFT before DPO",
        ("published_kinds", "sft_in_transformers", "dpo_in_transformers"),
        "Of the DPO runs Pythia-1B is redrawn from its released means; forms, meanings and longer SFT are tried in "
        "tiny transformers. The other curves need models of up to 2.8 billion parameters, and logs that are not at "
        "hand.",
    ),
    Row(
        "App. E",
        "Squeezing in logistic regression: one step on a flat, a peaked and a valley start, small and large V",
        ("squeezing_panels", "threshold_and_winners", "rare_label"),
        "Redrawn from the authors' own random numbers, with exact statements beside them.",
    ),
    Row(
        "App. F",
        "The remedy in detail, and answers compared",
        ("wins_by_ground_truth", "remedies_in_transformers", "remedies_at_margin"),
        "The answers need Qwen1.5-1.8B and were not released; the remedy itself is tried beside others.",
    ),
)
