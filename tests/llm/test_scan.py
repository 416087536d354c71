"""Pairs before training: K3 against autograd, CHES and surprise, planted faults, and the command from end to end."""

import json
import sys

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld import cli, contexts
from toyld.checked import BadInput
from toyld.contexts.predict import ches, terms
from toyld.llm.encode import Encoded
from toyld.llm.foresee import Pairs, foresee
from toyld.llm.pairs import score_pairs
from toyld.llm.sampled import _findings
from toyld.llm.scan import scan
from toyld.llm.score import score_encoded

VOCAB = 41
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}


def tiny(kind="llama", dtype=torch.float64, vocab=VOCAB):
    torch.manual_seed(3)
    common = SIZES | {"vocab_size": vocab, "intermediate_size": 24}
    if kind == "phi":  # a head with a bias
        config = transformers.PhiConfig(**common)
    elif kind == "gemma2":  # a soft cap that bends
        config = transformers.Gemma2Config(**common, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0)
    elif kind == "cohere":  # a scale
        config = transformers.CohereConfig(**common, num_key_value_heads=1, logit_scale=0.25)
    else:
        config = transformers.LlamaConfig(**common, num_key_value_heads=1, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(6.0 if p.ndim > 1 else 1.0).add_(0.05 * torch.randn(p.shape))
    return model.to(dtype).eval()


def some(n, seed, shared=None):
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        prompt = (
            shared[i].ids[: shared[i].start] if shared else tuple(rng.integers(0, VOCAB, rng.integers(2, 9)).tolist())
        )
        found.append(Encoded((*prompt, *rng.integers(0, VOCAB, rng.integers(3, 12)).tolist()), len(prompt)))
    return found


CHOSEN = some(6, 0)
REJECTED = some(6, 1, CHOSEN)


@pytest.mark.parametrize("kind", ["llama", "phi", "gemma2", "cohere"])
def test_k3_is_the_first_order_step_of_the_head(kind):
    model = tiny(kind)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # apart from the embedding
    model.requires_grad_(False)
    head.requires_grad_(True)
    found = score_pairs(model, CHOSEN, REJECTED, batch=64, batch_size=4)
    assert found.batch == 6
    exact = foresee(model, Pairs(CHOSEN, REJECTED), CHOSEN, lr=1.0)
    np.testing.assert_allclose(found.update, exact.predicted, rtol=1e-6)
    for p in (0, 4):
        alone = foresee(model, Pairs(CHOSEN[p : p + 1], REJECTED[p : p + 1]), CHOSEN[p : p + 1], lr=1.0)
        np.testing.assert_allclose(found.own[p], alone.predicted[0], rtol=1e-6)


def test_a_batch_of_pairs_is_the_mean_over_all_batches():
    model = tiny()
    model.requires_grad_(False)
    model.get_output_embeddings().requires_grad_(True)
    found = score_pairs(model, CHOSEN[:3], REJECTED[:3], batch=2)
    with_0 = [
        foresee(model, Pairs([CHOSEN[0], CHOSEN[j]], [REJECTED[0], REJECTED[j]]), CHOSEN[:1], lr=1.0).predicted[0]
        for j in (1, 2)
    ]
    assert found.update[0] == pytest.approx(np.mean(with_0), rel=1e-6)


def test_scores_are_those_of_the_world_of_hidden_states():
    model = tiny()
    sides = {}
    for name, items in (("chosen", CHOSEN), ("rejected", REJECTED)):
        length = max(len(item.ids) for item in items)
        ids = np.array([item.ids + (0,) * (length - len(item.ids)) for item in items])
        mask = np.array([[item.start <= t < len(item.ids) for t in range(length)] for item in items])
        with torch.no_grad():
            states = model.model(torch.tensor(ids)).last_hidden_state.numpy()
        sides[name] = (states, ids, mask)
    world = contexts.from_hidden(sides, weight=model.lm_head.weight.detach().numpy())
    found, wanted = score_pairs(model, CHOSEN, REJECTED, batch=6, batch_size=2), terms(world)
    np.testing.assert_allclose(found.update, wanted["total"][0], rtol=1e-6)
    np.testing.assert_allclose(found.own, 6 * (wanted["own"] + wanted["rejected"])[0], rtol=1e-6)
    np.testing.assert_allclose(found.ches, ches(world)["ches"][0], rtol=1e-6)
    np.testing.assert_allclose(found.ches_normalised, ches(world)["normalised"][0], rtol=1e-6)


def test_ches_does_not_overflow_in_half_precision():
    model = tiny(dtype=torch.float16)
    with torch.no_grad():
        model.model.norm.weight.mul_(2000.0)  # sums of states beyond 65,504
        model.lm_head.weight.div_(2000.0)
    found = score_pairs(model, CHOSEN, REJECTED)
    assert abs(found.ches).max() > np.finfo(np.float16).max
    assert np.isfinite([found.ches, found.ches_normalised, found.update]).all()


def test_surprise_is_that_of_the_scores_and_entropy_on_average_of_own_samples():
    model = tiny(dtype=torch.float32)
    found = score_pairs(model, CHOSEN, REJECTED)
    for side, items in ((found.chosen, CHOSEN), (found.rejected, REJECTED)):
        scores = score_encoded(model, items)
        np.testing.assert_allclose(side.logp, scores.logp, rtol=1e-5)
        np.testing.assert_allclose(side.entropy, scores.entropy, rtol=1e-5)
        np.testing.assert_allclose(side.surprise * side.tokens, -side.logp, rtol=1e-12)
    torch.manual_seed(0)
    said = model.generate(
        torch.ones(200, 1, dtype=torch.long), do_sample=True, top_k=0, max_new_tokens=20, min_new_tokens=20,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    own = [Encoded(tuple(row), 1) for row in said.tolist()]
    off = score_pairs(model, own, own[::-1]).chosen.off
    assert abs(off.mean()) < 4 / 200**0.5  # a standard normal's mean
    assert 0.8 < off.std() < 1.25
    assert score_pairs(model, some(40, 9), some(40, 8)).chosen.off.mean() > 5 / 40**0.5  # uniform tokens are not


# ---- planted faults ----

TEXT = "the cat sat on a mat and saw one red bird fly over old grey walls while rain fell"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a byte-level tokenizer of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    path = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT] * 5, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(path)
    tiny("llama", torch.float32, vocab=len(tokenizer)).save_pretrained(path)
    return path


def sentence(rng, n=6):
    return " ".join(rng.choice(WORDS, n))


def clean(n=12):
    rng = np.random.default_rng(0)
    return [
        {"prompt": f"{w} {sentence(rng, 4)}:", "chosen": f" {sentence(rng)}.", "rejected": f" {sentence(rng)}."}
        for w in (WORDS * 2)[:n]
    ]


def written(tmp_path, rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def codes(tmp_path, folder, rows, **options):
    options = {"through": "none", "max_length": 64} | options
    return {one.code: one for one in scan(written(tmp_path, rows), str(folder), **options).findings}


def test_clean_pairs_have_no_faults(tmp_path, folder):
    assert codes(tmp_path, folder, clean()) == {}


def dialogue(row, more):
    return row | {"prompt": f"Human: {row['prompt']}\n\nAssistant:", "chosen": row["chosen"] + more}


PLANTED = {
    "eos-inside": lambda row: row | {"chosen": " the cat</s> sat."},
    "special-in-response": lambda row: row | {"rejected": " a <pad> mat."},
    "doubled-bos": lambda row: row | {"prompt": "<s>" + row["prompt"]},
    "unknown-markup": lambda row: row | {"prompt": f"<|im_start|>user {row['prompt']}"},
    "boundary-merged": lambda row: row | {"prompt": row["prompt"] + " ", "chosen": "cat.", "rejected": "the mat."},
    "words-glued": lambda row: row | {"prompt": row["prompt"][:-1], "chosen": "sat on it", "rejected": "x saw it"},
    "prompt-in-one-response": lambda row: row | {"chosen": row["prompt"] + row["chosen"]},
    "prompt-repeated": lambda row: row | {s: row["prompt"] + row[s] for s in ("chosen", "rejected")},
    "turn-in-response": lambda row: dialogue(row, "\n\nHuman: a cat?"),
    "near-duplicates": lambda row: row | {"chosen": f"{row['rejected'][:-1]} fly."},
    "truncated": lambda row: row | {"rejected": " zyx" * 30},
    "prompt-too-long": lambda row: row | {"prompt": "qzx " * 40},
    "refused-rows": lambda row: row | {"chosen": "  "},
    "shared-start": lambda row: row | {s: f" the cat sat on a mat and {row[s]}" for s in ("chosen", "rejected")},
}


@pytest.mark.parametrize("code", list(PLANTED))
def test_a_planted_fault_is_found_in_its_rows(tmp_path, folder, code):
    rows = clean()
    for i in (2, 7):
        rows[i] = PLANTED[code](rows[i])
    found = codes(tmp_path, folder, rows)
    assert code in found
    assert found[code].rows == (2, 7)
    assert str(found[code]).startswith("2 of 12 rows ")
    beside = {"boundary-merged": {"words-glued"}, "prompt-in-one-response": {"truncated"}}
    beside |= {
        "prompt-repeated": {"shared-start", "near-duplicates", "truncated"},
        "prompt-too-long": {"boundary-merged"},
    }
    assert set(found) <= {code} | beside.get(code, set())


def test_copies_and_contradictions(tmp_path, folder):
    rows = clean()
    rows += [rows[0], rows[1] | {"chosen": rows[1]["rejected"], "rejected": rows[1]["chosen"]}]
    rows.append(rows[2] | {"chosen": rows[2]["rejected"], "rejected": " one bird."})
    found = codes(tmp_path, folder, rows)
    assert {code: one.rows for code, one in found.items()} == {
        "duplicate-pairs": (12,),
        "contradictory-pairs": (1, 13),
        "chosen-and-rejected": (2, 14),
    }


def test_lengths_that_give_the_pair_away(tmp_path, folder):
    rows = [row | {"chosen": row["chosen"][:-1] + row["chosen"] + row["rejected"]} for row in clean(24)]
    found = codes(tmp_path, folder, rows)
    assert list(found) == ["length-imbalance"]
    assert "times as long" in str(found["length-imbalance"])


def conversation(row):
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {side: [{"role": role, "content": row[side].strip()}] for side, role in roles.items()}


def test_conversations_need_a_template_and_the_template_eos(tmp_path, folder):
    rows = [conversation(row) for row in clean()]
    found = codes(tmp_path, folder, rows)
    assert found["no-chat-template"].rows == tuple(range(12))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ends = "{{ m.content }}{% if m.role == 'assistant' %}END{% endif %}"
    for end, wanted in (("</s>", set()), ("\n", {"template-without-eos"})):
        line = "{% for m in messages %}" + ends.replace("END", end) + "{% endfor %}"
        tokenizer.chat_template = "<s>" + line + "{% if add_generation_prompt %}{% endif %}"
        other = tmp_path / f"chat{len(wanted)}"
        tokenizer.save_pretrained(other)
        (other / "config.json").write_text((folder / "config.json").read_text())
        assert set(codes(tmp_path, other, rows)) == wanted


def test_padding_with_eos_is_noted(tmp_path, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    found = codes(tmp_path, tmp_path, clean())
    assert [(one.code, one.severity, one.rows) for one in found.values()] == [("pad-is-eos", "note", ())]


# ---- the model's view, and the command ----


def test_the_scored_pairs_and_the_findings_agree(tmp_path, folder):
    rows = clean()
    rows[3]["rejected"] = " \x07\x06\x05\x04\x03\x02"  # the model is random: only the arithmetic is tested
    path = written(tmp_path, rows)
    found = scan(path, str(folder), n=10, max_length=64, lr=1e-4, objective="dpo")
    pairs = {pair["row"]: pair for pair in found.pairs}
    assert len(pairs) == 10
    by_code = {one.code: one for one in found.findings}
    falls = sorted((row for row in pairs if pairs[row]["predicted"] < 0), key=lambda row: pairs[row]["predicted"])
    assert list(by_code["displacement"].rows if falls else ()) == falls
    assert found.summary["predicted_falls"] == pytest.approx(len(falls) / 10)
    for row, pair in pairs.items():
        assert pair["flags"] == [code for code in by_code if row in by_code[code].rows] or set(pair["flags"]) == {
            code for code in by_code if row in by_code[code].rows
        }
        beyond = pair["surprise_rejected"] - pair["entropy_rejected"]
        flagged = row in by_code["off-policy-rejected"].rows if "off-policy-rejected" in by_code else False
        assert flagged == (beyond > 1.0 and pair["off_rejected"] > 4.0)
    head = scan(path, str(folder), n=10, max_length=64, through="head")
    assert "predicted" not in head.pairs[0]
    assert head.pairs[0]["k3_own"] == found.pairs[0]["k3_own"]


def test_findings_of_the_model_name_the_worst_first():
    rows, flat = np.array([4, 5, 8, 9]), np.zeros(4)
    columns = {
        "predicted": np.array([-1.0, 2.0, -3.0, 0.0]),
        "off_chosen": flat,
        "off_rejected": np.array([9.0, 9.0, 3.0, 9.0]),
    }
    columns |= {"surprise_chosen": flat, "entropy_chosen": flat, "entropy_rejected": flat + 1.0}
    columns["surprise_rejected"] = np.array([2.5, 4.0, 9.0, 1.9])
    found = {one.code: one.rows for one in _findings(rows, columns, classes=20)}  # log 20 = 3.0
    assert found == {"displacement": (8, 4), "improbable-rejected": (8, 5), "off-policy-rejected": (5, 4)}


def test_a_prompt_that_fills_the_length_is_not_scored(tmp_path, folder):
    rows = clean()
    rows[2] = PLANTED["prompt-too-long"](rows[2])
    found = scan(written(tmp_path, rows), str(folder), max_length=64, through="head")
    assert [pair["row"] for pair in found.pairs] == [0, 1, *range(3, 12)]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["toyld", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    return left.value.code


def test_the_command_prints_and_writes(tmp_path, folder, capsys, monkeypatch):
    rows = clean()
    rows[5]["chosen"] = " the cat</s> sat."
    file = tmp_path / "scan.json"
    path = written(tmp_path, rows)
    assert (
        run(monkeypatch, "scan", path, "--model", str(folder), "--n", "6", "--max-length", "64", "--json", str(file))
        == 0
    )
    printed = capsys.readouterr()
    assert "eos-inside" in printed.out
    assert "1 of 12" in printed.out
    assert "nats a token" in printed.out
    assert printed.err == ""
    written_down = json.loads(file.read_text())
    assert written_down["schema"] == 1
    assert written_down["rows"] == 12
    assert written_down["findings"][0]["code"] == "eos-inside"
    assert written_down["findings"][0]["rows"] == [5]
    assert len(written_down["pairs"]) == 6
    named = " ".join(written_down["units"])
    for name in written_down["pairs"][0]:
        assert name in ("row", "flags") or name in named or f"{name.split('_')[0]}_…" in named


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-length", "65"), "at most the 64 positions"),
        (("--n", "0"), "--n: expected at least 1"),
        (("--objective", "nothing"), "nothing"),
        (("--lr", "0"), "--lr: expected a finite number > 0"),
        (("--json", "/nowhere/at/all.json"), "--json: expected a file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, folder, capsys, monkeypatch, options, words):
    assert run(monkeypatch, "scan", written(tmp_path, clean()), "--model", str(folder), *options) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


def test_what_has_no_pairs_or_no_head_is_refused(tmp_path, folder):
    with pytest.raises(BadInput, match="expected"):
        scan(written(tmp_path, [{"text": "a"}]), str(folder))
    with pytest.raises(BadInput, match="expected a model with a linear head"):
        score_pairs(torch.nn.Linear(2, 2), CHOSEN, REJECTED)


def test_real_pairs_are_not_drowned_in_faults(data, tmp_path):
    lines = (data / "preference" / "hh_pairs.jsonl").read_text().splitlines()[:300]
    path = tmp_path / "hh.jsonl"
    path.write_text("\n".join(lines))
    found = scan(path, str(data / "models" / "stories260K"), through="none").findings
    assert len({row for one in found if one.severity == "fault" for row in one.rows}) <= 3  # 1 %
    assert {one.code for one in found} >= {"truncated", "prompt-too-long"}
