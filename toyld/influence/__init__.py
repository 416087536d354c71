"""A·K·G for any torch module: what one update does to every other input's beliefs, predicted, exact, and actual.

    Δlog π(·|x_o) = −η A(x_o) K(x_o, x_u) G(x_u) + O(η²)                                   (§2, Proposition 1)

A = I − 1πᵀ normalises, K = ∇_θ z(x_o) ∇_θ z(x_u)ᵀ (the empirical neural tangent kernel of the logits) couples inputs,
and G = ∂L/∂z is what the lesson asks for. Four calls, for classifiers and sequence models, any loss, any subset of
parameters (LoRA too), SGD, RMSprop or Adam with its state:

>>> import torch
>>> from toyld import influence
>>> _ = torch.manual_seed(0)
>>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
>>> x = torch.randn(5, 4, dtype=torch.float64)
>>> model = influence.Model(net)
>>> lesson = influence.teach(x[:1], torch.tensor([2]))                 # "the first input is a 2"
>>> step = influence.update(model, lesson, lr=1e-3)                     # or optimizer=torch.optim.Adam(…)
>>> predicted = influence.predict(model, step, x)                       # (5, 3) nats, no K formed
>>> happened = influence.actual(model, step, x)                         # the real change
>>> bool((predicted - happened).abs().max() < 1e-4), bool(predicted[0, 2] > 0)
(True, True)
>>> influence.blocks(model, step, x).K.shape                            # the three matrices themselves
torch.Size([5, 3, 1, 3])
"""

from __future__ import annotations

from toyld.influence.blocks import Blocks, blocks
from toyld.influence.kernel import jacobian, kernel
from toyld.influence.lesson import IGNORED, Lesson, from_objective, log_probs, teach
from toyld.influence.model import Model
from toyld.influence.norms import Estimate, estimated, frobenius
from toyld.influence.predict import Errors, actual, errors, normalised, predict, safe_step
from toyld.influence.proxies import lbk, lbk_as_released, sign_delta, sign_delta_as_released
from toyld.influence.stability import RankStability, rank_stability
from toyld.influence.update import Update, update

__all__ = [
    "IGNORED",
    "Blocks",
    "Errors",
    "Estimate",
    "Lesson",
    "Model",
    "RankStability",
    "Update",
    "actual",
    "blocks",
    "errors",
    "estimated",
    "frobenius",
    "from_objective",
    "jacobian",
    "kernel",
    "lbk",
    "lbk_as_released",
    "log_probs",
    "normalised",
    "predict",
    "rank_stability",
    "safe_step",
    "sign_delta",
    "sign_delta_as_released",
    "teach",
    "update",
]
