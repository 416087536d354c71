"""What models say when asked, judged by the language itself: which of two is right, which is likelier under the truth.

Answers are greedy or sampled at temperature 1, to the prompts that were trained on and to held-out ones. No judge: an
answer is right if `measures.right` says so, and likelier if its log-probability under the source with κ = 1 is higher.

How often a sampled answer is right is read without the noise of whole samples. An answer is led along its facts: where
a function word is due, π gives one of them, where a concept is due, one of the words for the true one; what π gives to
these words multiplies up, and at each END it adds to the chance. Its mean over led answers is the probability that an
answer of temperature 1 is right (Rao and Blackwell: each led answer stands for all that part from it by a wrong word).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from toyld.tiny.decoding import Decoder, answers
from toyld.tiny.language import Language
from toyld.tiny.measures import divergence, entropy, repetition, right
from toyld.tiny.models import Models
from toyld.tiny.texts import Texts

__all__ = [
    "JUDGES", "PLACES", "WAYS", "Said", "Spoken", "Told", "borrowed", "chance", "columns", "distances", "speak", "told", "wins",
]  # fmt: skip
