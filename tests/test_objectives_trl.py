"""Our 15 `trl.…` losses against TRL's own code: value and gradient, on given log-probabilities and a tiny Llama."""

from __future__ import annotations

import ast
import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("trl", reason='TRL is not installed; pip install -e ".[llm]" to compare with its own losses')

import torch
import trl
from numpy.testing import assert_allclose

from toyld import objectives
from toyld.objectives import Batch

LOSS_TYPES = [name.removeprefix("trl.") for name in objectives.OBJECTIVES if name.startswith("trl.")]
SMOOTHED = {"robust", "exo_pair", "aot", "aot_unpaired"}
EPS64, EPS32 = np.finfo(np.float64).eps, np.finfo(np.float32).eps


def ours(loss_type: str, beta: float = 0.1, label_smoothing: float = 0.1, tau: float = 0.05) -> Any:
    given: dict[str, float] = {} if loss_type == "sft" else {"beta": beta}
    if loss_type in SMOOTHED:
        given["label_smoothing"] = label_smoothing
    if loss_type == "discopop":
        given["discopop_tau"] = tau
    return objectives.get(f"trl.{loss_type}", **given)


def trl_loss(
    policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor, loss_types: list[str], *, beta: float = 0.1,
    label_smoothing: float = 0.1, tau: float = 0.05, weights: list[float] | None = None, ld_alpha: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """TRL's own `DPOTrainer._compute_loss` on given per-token log-probabilities (2B, T), through a model that recites.

    The trainer is replaced by the attributes that method reads; nothing of the loss is.
    """

    def recite(values: torch.Tensor) -> Any:
        # As the model does: log-probabilities of ignored labels are 0 and carry no gradient.
        values, blank = torch.where(mask.bool(), values, 0.0), torch.zeros_like(values)
        return lambda **_: SimpleNamespace(log_probs=values, entropy=blank, mean_logits=blank, is_top1=blank.bool())

    self = SimpleNamespace(
        model=torch.nn.Module().eval(), ref_model=recite(reference), aux_loss_enabled=False,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        precompute_ref_logps=False, ld_alpha=ld_alpha, f_divergence_type="reverse_kl", beta=beta,
        loss_types=loss_types, loss_weights=weights or [1.0] * len(loss_types), label_smoothing=label_smoothing,
        use_weighting=False, args=SimpleNamespace(discopop_tau=tau, gradient_checkpointing_kwargs=None),
        _total_train_tokens=0, _tp_size=1,
        _metrics={"eval": defaultdict(list)},
    )  # fmt: skip
    self.model.is_gradient_checkpointing = False
    first = torch.zeros_like(mask[:, :1])  # the prompt's last token: log-probabilities are one shorter than input_ids
    completion_mask = torch.cat([first, mask], dim=1)
    inputs = {"input_ids": torch.zeros_like(completion_mask), "attention_mask": torch.ones_like(completion_mask),
              "completion_mask": completion_mask}  # fmt: skip
    return trl.DPOTrainer._compute_loss(self, recite(policy), inputs, False)


def ragged(seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy and reference log-probabilities (2B, T), chosen rows first, 0 on padding as TRL has it; mask int."""
    rng = np.random.default_rng(seed)
    size, width = 1 + seed % 5, 1 + seed % 6
    lengths = rng.integers(1, width + 1, 2 * size)
    lengths[0] = width
    mask = np.arange(width) < lengths[:, None]
    policy, reference = (np.where(mask, -scale * rng.exponential(size=mask.shape), 0.0) for _ in range(2))
    return torch.asarray(policy), torch.asarray(reference), torch.asarray(mask.astype(np.int64))


def as_batch(policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> Batch:
    (plus, minus), (ref_plus, ref_minus), (m_plus, m_minus) = (a.chunk(2) for a in (policy, reference, mask))
    return Batch(chosen=plus, rejected=minus, ref_chosen=ref_plus, ref_rejected=ref_minus,
                 chosen_mask=m_plus, rejected_mask=m_minus)  # fmt: skip


def assert_same(objective: Any, seed: int, loss_types: list[str], *, scale: float = 1.0, **settings: Any) -> None:
    policy, reference, mask = ragged(seed, scale)
    leaf = policy.clone().requires_grad_()
    theirs = trl_loss(leaf, reference, mask, loss_types, **settings)
    theirs.backward()
    batch = as_batch(policy, reference, mask)
    rows = len(policy) // 2
    # TRL averages the rows. Both sum log-probabilities of size `scale` and take exp: eps Σ|log π| relative.
    # TRL keeps EXO's label smoothing in a float32 tensor, so its logarithm is good to float32.
    eps = EPS32 if "exo_pair" in loss_types else EPS64
    rtol = 64 * eps * (1.0 + float(policy.abs().sum() + reference.abs().sum()))
    assert_allclose(float(objective.loss(batch).mean()), float(theirs.detach()), rtol=rtol, atol=rtol)
    push = objective.push(batch)
    mine = -torch.cat([push.chosen, push.rejected]) / rows
    # torch's σ' = σ(1 − σ) has an absolute error of eps where σ → 1; ours is relative.
    assert_allclose(mine.numpy(), leaf.grad.numpy(), rtol=rtol, atol=rtol * float(leaf.grad.abs().max()) + 4 * EPS64)


def test_every_loss_type_of_the_installed_trl_is_here():
    message = ""
    try:
        trl_loss(*ragged(1), ["no such loss"])
    except ValueError as error:
        message = str(error)
    assert sorted(ast.literal_eval(message.split("one of ")[1])) == sorted(LOSS_TYPES)
    assert len(LOSS_TYPES) == 15


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_value_and_gradient_are_trls_own(loss_type, beta):
    for seed in range(12):
        settings = {"beta": beta, "label_smoothing": 0.2 if seed % 2 else 0.1, "tau": 0.05 if seed % 3 else 0.3}
        assert_same(ours(loss_type, **settings), seed, [loss_type], **settings)


@pytest.mark.parametrize("loss_type", [t for t in LOSS_TYPES if t != "discopop"])
def test_value_and_gradient_are_trls_own_at_margins_of_hundreds(loss_type):
    for seed in range(6):
        assert_same(ours(loss_type), seed, [loss_type], scale=300.0)


def test_trls_discopop_is_not_finite_where_ours_is():
    """e^{−u} m is ∞ · 0 in TRL for u < −709; the limit is 0, and so the loss −log σ(u)."""
    policy, reference = torch.asarray([[-9000.0], [-1.0]]), torch.asarray([[-1.0], [-1.0]])
    mask = torch.ones((2, 1), dtype=torch.int64)
    assert not torch.isfinite(trl_loss(policy.double(), reference.double(), mask, ["discopop"]))
    assert_allclose(
        ours("discopop").loss(as_batch(policy.double(), reference.double(), mask)).item(), 899.9, rtol=1e-12
    )


def test_label_smoothing_does_not_touch_sigmoid():
    for seed in range(4):
        assert_same(objectives.DPO(), seed, ["sigmoid"], label_smoothing=0.4)
        assert_same(objectives.CDPO(epsilon=0.0), seed, ["sigmoid"], label_smoothing=0.4)


def test_sppo_hard_is_sppo_with_eta_one_over_beta():
    for seed in range(4):
        assert_same(objectives.SPPO(eta=1 / 0.3), seed, ["sppo_hard"], beta=0.3)


def test_ld_alpha_is_ld_dpo():
    for seed in range(8):
        assert_same(objectives.LDDPO(beta=0.4, alpha=0.3), seed, ["sigmoid"], beta=0.4, ld_alpha=0.3)


def test_a_list_of_losses_with_weights_is_a_mix():
    for seed in range(8):
        assert_same(objectives.Mix(), seed, ["sigmoid", "bco_pair", "sft"], weights=[0.8, 0.2, 1.0])


@pytest.mark.parametrize("bug", ["ipo", "sigmoid_norm"])
def test_forgetting_trls_length_normalisation_is_caught(bug):
    paper = objectives.IPO() if bug == "ipo" else objectives.DPO()
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(paper, 5, [bug])


def test_swapping_chosen_and_rejected_is_caught(monkeypatch):
    right = objectives.DPO.margin
    monkeypatch.setattr(objectives.DPO, "margin", lambda self, batch: -right(self, batch))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(objectives.Sigmoid(), 5, ["sigmoid"])


def test_simpo_cpo_and_orpo_are_those_of_trls_other_trainers():
    cpo = pytest.importorskip("trl.experimental.cpo", reason="this TRL has no experimental CPO trainer")
    orpo = pytest.importorskip("trl.experimental.orpo", reason="this TRL has no experimental ORPO trainer")
    batch = as_batch(*ragged(9))
    here = SimpleNamespace(device="cpu")
    means, totals = ([getattr(batch, f)(s) for s in ("chosen", "rejected")] for f in ("mean", "total"))
    sums = SimpleNamespace(alpha=0.0, label_smoothing=0.0, accelerator=here, beta=1.5)
    simpo = cpo.CPOTrainer.cpo_loss(SimpleNamespace(**vars(sums), loss_type="simpo", simpo_gamma=0.7), *means)[0]
    assert_allclose(objectives.SimPO(1.5, 0.7).loss(batch), simpo, rtol=64 * EPS64)
    logistic = cpo.CPOTrainer.cpo_loss(SimpleNamespace(**vars(sums), loss_type="sigmoid"), *totals)[0]
    assert_allclose(objectives.CPO(1.5, 0.0).loss(batch), logistic, rtol=64 * EPS64)
    odds = orpo.ORPOTrainer.odds_ratio_loss(SimpleNamespace(beta=0.6, accelerator=here), *means)[0]
    assert_allclose(objectives.ORPO(0.6).loss(batch) + means[0], -odds, rtol=64 * EPS32)


# ---------------------------------------------------------------------------- a real model and a real trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """TRL's DPOTrainer on a random two-layer Llama of 64 tokens, its reference another one, four ragged pairs."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{i}": i for i in range(61)} | {"<pad>": 61, "<eos>": 62, "<unk>": 63}
    words_only = Tokenizer(WordLevel(words, unk_token="<unk>"))
    words_only.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=61, eos_token_id=62, bos_token_id=None,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    rng = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(0, 61, n))

    data = Dataset.from_list(
        [{"prompt": text(3 + i), "chosen": " " + text(4 + i), "rejected": " " + text(7 - i)} for i in range(4)]
    )
    args = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("dpo")), per_device_train_batch_size=4, report_to=[], bf16=False,
        use_cpu=True, gradient_checkpointing=False, disable_dropout=True, dataloader_pin_memory=False,
    )  # fmt: skip
    made = trl.DPOTrainer(model, ref_model=reference, args=args, train_dataset=data, processing_class=tokenizer)
    return made, next(iter(made.get_train_dataloader()))


def per_token(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """log π of the next token at every position, by a plain forward pass and log-softmax: (2B, T−1)."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_real_model_gets_trls_gradient(trainer, loss_type):
    made, inputs = trainer
    made.loss_types, made.loss_weights, made.label_smoothing = [loss_type], [1.0], 0.1
    model = made.model
    model.zero_grad()
    theirs = made.compute_loss(model, inputs)
    theirs.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with torch.no_grad():
        reference = per_token(made.ref_model, inputs)
    loss = ours(loss_type).loss(as_batch(per_token(model, inputs), reference, inputs["completion_mask"][:, 1:])).mean()
    loss.backward()
    # float32 through two layers; the log-probabilities of a row sum to tens of nats.
    assert_allclose(loss.item(), theirs.item(), rtol=1e3 * EPS32)
    largest = max(float(g.abs().max()) for g in expected)
    assert largest > 0
    for p, g in zip(model.parameters(), expected, strict=True):
        assert_allclose(p.grad.numpy(), g.numpy(), rtol=1e3 * EPS32, atol=1e3 * EPS32 * largest)
