"""Centred updates inside TRL's DPOTrainer, against the plain loop of the experiments, which has its losses."""

import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")

import datasets
import torch
import transformers
import trl

from toyld import objectives
from toyld.llm.centred import centred
from toyld.llm.command import hushed
from toyld.llm.encode import encode
from toyld.llm.experiments._loop import Rows, Texts, _batch

ROWS = [
    {"prompt": "a b c", "chosen": " d e", "rejected": " f g h i"},
    {"prompt": "t", "chosen": " a b c d e f g h i j k l m", "rejected": " s"},
]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    named = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrst"])}
    words = Tokenizer(models.WordLevel(named, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


def llama(seed):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.rand_like(p))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("how", [None, "subtract", "project"])
def test_dpo_trainer_and_the_plain_loop_have_the_same_loss_and_gradients(tmp_path, how):
    """TRL computes with the head's matrix, never calling it; the loop calls it at the tokens that are read."""
    args = trl.DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_length=32,
        gradient_checkpointing=False,
    )  # fmt: skip
    with hushed():
        trainer = trl.DPOTrainer(
            model=llama(0), ref_model=llama(1), args=args, train_dataset=datasets.Dataset.from_list(ROWS),
            processing_class=tokenizer(),
        )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    rows, reference = Rows(llama(0)), Rows(llama(1))
    asked = [row["prompt"] for row in ROWS]
    texts = Texts.of(
        [x for side in ("chosen", "rejected") for x in encode(tokenizer(), asked, [r[side] for r in ROWS])]
    )

    def ours():
        mine, theirs = texts.logp(rows)[0], texts.logp(reference)[0].detach()
        return objectives.get("dpo", beta=trainer.beta).loss(_batch(mine, theirs, texts.mask, sides)).mean()

    sides = ["chosen", "rejected"]
    model = trainer.model
    if how is None:
        theirs, mine = trainer.compute_loss(model, dict(batch)), ours()
    else:
        with centred(model, how=how):
            theirs = trainer.compute_loss(model, dict(batch))
            theirs.backward()
        with centred(rows, how=how):
            mine = ours()
            mine.backward()
    torch.testing.assert_close(theirs.detach().cpu(), mine.detach(), rtol=1e-5, atol=1e-6)
    if how is None:
        theirs.backward()
        mine.backward()
    wanted = {name: p.grad for name, p in rows.body.named_parameters()}
    assert abs(float(theirs.detach()) - 0.6931) > 1e-3
    for name, p in model.base_model.named_parameters():
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(p.grad.cpu(), wanted[name], rtol=1e-4, atol=3e-5 * scale)
