"""TRL's trainers as `toyld run llm` uses them: the tokens are those that are probed, the losses are those meant."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")

import torch
import transformers
import trl

from toyld import objectives
from toyld.llm.batches import Answers, PairsOfAnswers
from toyld.llm.command import hushed
from toyld.llm.encode import encode
from toyld.llm.plan import Plan
from toyld.llm.trainers import ObjectiveTrainer, preferences, supervised

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrst"]
ROWS = [
    {"prompt": "a b c", "chosen": " d e", "rejected": " f g h i"},
    {"prompt": "a b c d e f g h i j", "chosen": " k", "rejected": " l m n o p q r s t a b"},
    {"prompt": "t", "chosen": " a b c d e f g h i j k l m", "rejected": " s"},
    {"prompt": "k l m n o p", "chosen": " q r s t a b c d e", "rejected": " a b c"},
]
LONGEST = 10
PLAN = Plan("model", "data", batch=4, max_length=LONGEST, pairs=4, probes=4, warmup=0)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def model(seed=0, cls=transformers.GPT2Config, **more):
    torch.manual_seed(seed)
    config = cls(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=64, bos_token_id=1, **more)
    made = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        made.transformer.wte.weight.mul_(20.0)  # log-ratios of several nats
    return made.eval()


def trainer(tmp_path, plan=PLAN, seed=0, **how):
    with hushed():
        return preferences(plan, model(seed), model(1), tokenizer(), ROWS, tmp_path, **{"steps": 1, "every": 1} | how)


def of(ids, start):
    return tuple(ids[:start]), tuple(ids[start:])


def responses(batch, mask):
    """(context, response) of every row, padding taken away."""
    rows = zip(batch["input_ids"], batch["attention_mask"], mask, strict=True)
    return [of(ids[kept == 1].tolist(), int((kept - here).sum())) for ids, kept, here in rows]


def test_both_trainers_see_the_tokens_that_are_probed_however_long_the_rows_are(tmp_path):
    probed = {}
    for side in ("chosen", "rejected"):
        prompts = [row["prompt"] for row in ROWS]
        found = encode(tokenizer(), prompts, [row[side] for row in ROWS], max_length=LONGEST)
        probed[side] = [of(item.ids, item.start) for item in found]
        assert {len(item.ids) for item in found} > {LONGEST}
        assert any(item.cut for item in found) or side == "rejected"
    pairs = trainer(tmp_path)
    batch = pairs.data_collator([pairs.train_dataset[i] for i in range(4)])
    assert responses(batch, batch["completion_mask"]) == probed["chosen"] + probed["rejected"]
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
    with hushed():
        answers = supervised(PLAN, model(), tokenizer(), rows, tmp_path, steps=1, every=1)
    batch = answers.data_collator([answers.train_dataset[i] for i in range(4)])
    assert responses(batch, (batch["labels"] != -100).long()) == probed["chosen"]
    assert (isinstance(pairs.data_collator, PairsOfAnswers), type(answers.data_collator)) == (True, Answers)


def test_dropout_is_off_in_both_stages(tmp_path):
    assert model().transformer.drop.p > 0
    with hushed():
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in ROWS]
        sft = supervised(PLAN, model(), tokenizer(), rows, tmp_path, steps=1, every=1)
    for one in (sft, trainer(tmp_path)):
        assert {module.p for module in one.model.modules() if isinstance(module, torch.nn.Dropout)} == {0}


def graded(one):
    """Loss and gradient of a trainer on all pairs, as training computes them."""
    one.model.train()
    one.model.zero_grad()
    batch = one._prepare_inputs(one.data_collator([one.train_dataset[i] for i in range(4)]))
    loss = one.compute_loss(one.model, batch)
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in one.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", [name for name in objectives.OBJECTIVES if name.startswith("trl.")])
def test_a_loss_of_trl_is_the_same_by_trl_and_by_our_objective(kind, tmp_path, monkeypatch):
    for term in (0.0, 0.5):
        plan = replace(PLAN, objective=kind, sft_term=term)
        native = trainer(tmp_path, plan)
        assert type(native) is trl.DPOTrainer
        monkeypatch.setattr("toyld.llm.trainers.NATIVE", "none of TRL's")
        ours = trainer(tmp_path, plan)
        monkeypatch.undo()
        assert isinstance(ours, ObjectiveTrainer)
        (loss, gradient), (same, also) = graded(native), graded(ours)
        assert same == pytest.approx(loss, rel=1e-5)
        assert torch.linalg.norm(gradient - also) < 1e-5 * torch.linalg.norm(gradient)
        assert torch.linalg.norm(gradient) > 1e-3


def test_an_objective_that_trl_has_not_is_trained_by_its_own_push(tmp_path):
    for name in ("ipo", "simpo", "npo", "dpop"):
        ours = trainer(tmp_path, replace(PLAN, objective=name))
        batch = ours.data_collator([ours.train_dataset[i] for i in range(4)])
        mask = batch["completion_mask"][:, 1:].bool()

        def scores(policy, batch=batch):
            logits = policy(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
            return logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]

        mine, theirs = scores(ours.model), scores(ours.ref_model).detach()
        sides = {}
        for k, side in enumerate(("chosen", "rejected")):
            sides |= {
                side: mine.chunk(2)[k].detach(),
                f"ref_{side}": theirs.chunk(2)[k],
                f"{side}_mask": mask.chunk(2)[k],
            }
        push = ours.objective.push(objectives.Batch(**sides))
        ours.model.zero_grad()
        (-(torch.cat([push.chosen, push.rejected]) * mine).sum() / 4).backward()
        wanted = torch.cat([p.grad.flatten() for p in ours.model.parameters() if p.grad is not None])
        loss, gradient = graded(ours)
        assert torch.linalg.norm(gradient - wanted) < 1e-4 * torch.linalg.norm(wanted), name
        assert loss == pytest.approx(float(ours.objective.loss(objectives.Batch(**sides)).mean()), rel=1e-5)
        log = ours._metrics["train"]
        ratios = np.mean([float(v) for v in log["log_ratio/chosen"]])
        assert ratios == pytest.approx(
            float(((sides["chosen"] - sides["ref_chosen"]) * mask.chunk(2)[0]).sum() / 4), rel=1e-4
        )


def test_every_setting_of_the_plan_reaches_the_trainers(tmp_path):
    plan = replace(PLAN, lr=3e-4, optimizer="adamw", clip=2.0, accumulation=3, warmup=7, seed=5, processes=2)
    plan = replace(plan, objective="trl.exo_pair", parameters={"beta": 0.3}, checkpointing=True)
    args = trainer(tmp_path, plan, steps=6, every=2).args
    found = {name: getattr(args, name) for name in ("learning_rate", "max_grad_norm", "gradient_accumulation_steps")}
    assert found == {"learning_rate": 3e-4, "max_grad_norm": 2.0, "gradient_accumulation_steps": 3}
    assert (args.warmup_steps, args.seed, args.max_steps, args.save_steps) == (7, 5, 6, 2)
    assert (args.optim, args.per_device_train_batch_size, args.gradient_checkpointing) == ("adamw_torch", 2, True)
    assert (args.loss_type, args.beta, args.label_smoothing) == (["exo_pair"], 0.3, 1e-3), "the objective's own"
