"""Probes of saved checkpoints, end to end: real gradient steps, a run folder that survives, a verdict; bad input."""

import json
import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs transformers: pip install -e .[llm]")

import torch
import transformers

from toyld import cli
from toyld.checked import BadInput
from toyld.llm import checkpoints, encode, score, weights
from toyld.llm import probe as probing
from toyld.objectives import Batch, get
from toyld.trajectory import read

WORDS = ["<unk>", "<s>", "</s>", "<pad>", "sky", "grass", "what", "colour", "is", "it", "blue", "green", "red", "a"]
WORDS += ["very", "the", "of", "and", "no", "yes", "deep", "light", "one", "two"]
SIZE = len(WORDS)
PAIRS = [
    {"prompt": "what colour is the sky", "chosen": " it is a very deep blue", "rejected": " it is red"},
    {"prompt": "what colour is grass", "chosen": " grass is green and light", "rejected": " blue and blue"},
    {"prompt": "is the sky green", "chosen": " no the sky is blue", "rejected": " yes it is very green"},
    {"prompt": "is it one of two", "chosen": " yes it is one of two", "rejected": " no", "irr_hum": " deep red grass"},
]


def tokenizer():
    """Words with BOS, built here: nothing is fetched."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def model(seed=0, vocabulary=SIZE, **more):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=vocabulary, num_key_value_heads=2, **(sizes | more))
    made = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        made.lm_head.weight.mul_(20.0)  # peaky: labels, maxima and means differ
    return made


def keep(folder, trained, *, step=None, log=(), words=True):
    """Save a checkpoint as a Trainer does; its path."""
    trained.save_pretrained(folder)
    if words:
        tokenizer().save_pretrained(folder)
    if step is not None:
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": list(log)}))
    return str(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints and the pairs."""
    folder = tmp_path_factory.mktemp("saved")
    with checkpoints.quiet():
        models = [keep(folder / f"any{i}", model(i), step=None if i == 0 else 10 * i) for i in range(3)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    return models, folder / "pairs.jsonl"


def files(folder):
    """Name → bytes of everything in a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def run(capsys, *arguments):
    """Exit code, stdout and stderr of `toyld probe …`, in process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["probe", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_every_cell_is_the_score_of_its_own_response_behind_its_own_prompt(saved, tmp_path):
    models, pairs = saved
    report = probing.probe(models, pairs, tmp_path / "run", reference=models[0])
    ds = read(tmp_path / "run")
    assert report.measured == (0, 10, 20)
    assert (ds.attrs["has_step0"], ds.attrs["vocab_size"], ds.attrs["world"]) == (1, SIZE, "llm")
    assert ds.step.values.tolist() == [0, 10, 20]
    assert ds.probe.values.tolist() == ["chosen", "rejected", "irr_train", "irr_hum", "random_permute"]
    probes, _ = probing.read_probes(pairs)
    words = tokenizer()
    for s, name in enumerate(models):
        loaded = transformers.LlamaForCausalLM.from_pretrained(name)
        for kind in ds.probe.values:
            for example, prompt, text in zip(probes.ids, probes.prompts, probes.responses[kind], strict=True):
                cell = ds.sel(probe=kind, example=example).isel(seed=0, step=s)
                if text is None:
                    assert np.isnan(cell.logp), "nothing missing is ever a number"
                    continue
                ids = words(prompt + text)["input_ids"] + [2]
                first = len(words(prompt)["input_ids"])
                with torch.no_grad():
                    logits = loaded(torch.tensor([ids])).logits[0].double()
                log_pi = torch.log_softmax(logits, -1)
                label = sum(float(log_pi[t - 1, ids[t]]) for t in range(first, len(ids)))
                top = sum(float(log_pi[t - 1].max()) for t in range(first, len(ids)))
                assert cell.n_tokens == len(ids) - first
                assert logits.abs().max() < 8
                bound = 4 * 8 * np.finfo(np.float32).eps * float(cell.n_tokens)
                np.testing.assert_allclose([cell.logp, cell.argmax_logp], [label, top], rtol=0, atol=bound)
    np.testing.assert_array_equal(ds.ref_logp.values, ds.logp.values[:, 0])
    assert 0 < ds.attrs["noise_floor"] < 32 * np.finfo(np.float32).eps
    assert np.isnan(ds.logp.sel(probe="irr_hum")).sum() == 3 * 3, "one example in four has one"
    assert float(abs(ds.logp[0, 1] - ds.logp[0, 0]).max()) > 0.1, "other weights, other scores"


def test_resume_measures_what_is_missing_and_gives_the_same_files(saved, tmp_path, monkeypatch):
    models, pairs = saved
    whole, part = tmp_path / "whole", tmp_path / "part"
    probing.probe(models, pairs, whole, reference=models[1])
    seen = []
    loads = checkpoints.load_model

    def failing(name, **options):
        seen.append(name)
        if name == models[2] and not (part / "go").exists():
            raise KeyboardInterrupt
        return loads(name, **options)

    monkeypatch.setattr(checkpoints, "load_model", failing)
    with pytest.raises(KeyboardInterrupt):
        probing.probe(models, pairs, part, reference=models[1])
    assert read(part).step.values.tolist() == [0, 10], "what is there is read at any time"
    (part / "dpo-baseline/.eval-00000020.nc.17.part").write_bytes(b"CDF\x02 half")
    with pytest.raises(BadInput, match="--resume"):
        probing.probe(models, pairs, part, reference=models[1])
    seen.clear()
    (part / "go").touch()
    again = probing.probe(models, pairs, part, reference=models[1], resume=True)
    assert (again.measured, again.skipped) == ((20,), (0, 10))
    assert seen == [models[2]], "the reference is not measured again"
    (part / "go").unlink()
    (part / "dpo-baseline/.eval-00000020.nc.17.part").unlink()
    assert files(part) == files(whole)
    seen.clear()
    assert probing.probe(models, pairs, part, reference=models[1], resume=True).skipped == (0, 10, 20)
    assert seen == []


def test_a_killed_writer_loses_at_most_the_evaluation_under_way(saved, tmp_path):
    models, pairs = saved
    probing.probe(models, pairs, tmp_path / "whole")
    child = os.fork()
    if child == 0:  # dies in the middle of the second evaluation
        try:

            def die(what, done, total):
                if what == "any1":
                    os.kill(os.getpid(), signal.SIGKILL)

            probing.probe(models, pairs, tmp_path / "run", tell=die)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert read(tmp_path / "run").step.values.tolist() == [0]
    assert probing.probe(models, pairs, tmp_path / "run", resume=True).measured == (10, 20)
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_run_may_grow_but_not_change(saved, tmp_path):
    models, pairs = saved
    probing.probe(models[:2], pairs, tmp_path / "run", kinds=["rejected"])
    first = files(tmp_path / "run")
    grown = probing.probe(models, pairs, tmp_path / "run", kinds=["rejected"], resume=True)
    assert (grown.measured, grown.skipped) == ((20,), (0, 10))
    assert first.items() <= files(tmp_path / "run").items()
    assert read(tmp_path / "run").probe.values.tolist() == ["chosen", "rejected"]
    changed = [
        (
            {"models": [models[0], models[2]], "steps": [0, 10]},
            r"expected the weights that step 10 was measured with \(.*any1\), got others",
        ),
        ({"max_length": 20}, "config.max_length = 20"),
        ({"eos": False}, "config.eos = False"),
        ({"models": models[1:]}, "config.weights.first"),
        ({"kinds": ["rejected", "permuted"]}, "config.kinds"),
    ]
    for options, message in changed:
        given = {"kinds": ["rejected"], "models": models, **options}
        with pytest.raises(BadInput, match=message):
            probing.probe(given.pop("models"), pairs, tmp_path / "run", resume=True, **given)
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:3])))
    with pytest.raises(BadInput, match=r"config\.examples = 3"):
        probing.probe(models, tmp_path / "other.jsonl", tmp_path / "run", kinds=["rejected"], resume=True)


def test_a_checkpoint_is_known_by_its_weights_not_by_its_path(saved, tmp_path, monkeypatch):
    models, pairs = saved
    given = [str(shutil.copytree(name, tmp_path / f"m{i}")) for i, name in enumerate(models[:2])]
    rejected = {"kinds": ["rejected"], "resume": True}
    probing.probe(given, pairs, tmp_path / "run", reference=given[0], kinds=["rejected"])
    first = files(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(models[1])
    again = probing.probe(["m0", "link"], pairs, "run", reference=models[0], **rejected)
    assert (again.measured, again.skipped) == ((), (0, 10))
    assert files(tmp_path / "run") == first, "the paths stay as they were first given"
    assert read(tmp_path / "run/dpo-baseline/eval-00000010.nc").attrs["checkpoint"] == given[1]
    for i, message in (
        (1, r"expected the weights that step 10 was measured with \(.*m1\), got others in .*m1; use another folder"),
        (0, r"config\.weights\.first = '[0-9a-f]{16}', was '[0-9a-f]{16}'"),
    ):
        shutil.copy(f"{models[2]}/model.safetensors", given[i])
        with pytest.raises(BadInput, match=message):
            probing.probe(given, pairs, "run", reference=models[0], **rejected)
    with pytest.raises(BadInput, match=r"config\.weights\.reference = '[0-9a-f]{16}', was"):
        probing.probe([models[0], "link"], pairs, "run", reference=models[1], **rejected)


def test_fingerprints_of_large_files_see_every_tensor_and_those_of_adapters_their_base(saved, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    (base,) = [shutil.copytree(saved[0][0], tmp_path / "base")]
    whole, file = weights.fingerprint(str(base)), base / "model.safetensors"
    monkeypatch.setattr(weights, "WHOLE", 100)
    monkeypatch.setattr(weights, "PIECE", 8)
    tensors = load_file(file)
    before = {weights.fingerprint(str(base))}
    assert before != {whole}, "the file is sampled"
    for name, values in tensors.items():
        save_file(tensors | {name: values + 1}, file, metadata={"format": "pt"})
        before.add(weights.fingerprint(str(base)))
    assert len(before) == 1 + len(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"\xff" * 200)  # damaged: loading tells, not this
    (adapter / "adapter_config.json").write_text("{")
    alone, based = (weights.fingerprint(str(adapter), base=b) for b in (None, str(base)))
    assert alone != based
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(settings | {"_name_or_path": "elsewhere"}))
    assert weights.fingerprint(str(adapter), base=str(base)) == based
    (base / "config.json").write_text(json.dumps(settings | {"rms_norm_eps": 0.1}))
    assert weights.fingerprint(str(adapter), base=str(base)) != based
    hub = [weights.fingerprint(str(adapter), base="a/b", commit=commit) for commit in (None, "1f", "2e")]
    assert len({alone, based, *hub}) == 5


def test_on_the_hub_a_commit_tells_the_weights_and_an_adapter_is_refused(saved, tmp_path, monkeypatch):
    import huggingface_hub

    models, pairs = saved
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for name, commit in (("whole", "1" * 40), ("adapter", "2" * 40)):
        repository = tmp_path / f"models--some--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(commit)
        shutil.copytree(models[0], repository / "snapshots" / commit)
    (tmp_path / "models--some--adapter/snapshots" / ("2" * 40) / "adapter_config.json").write_text("{}")
    probing.probe(["some/whole"], pairs, tmp_path / "run", kinds=["rejected"])
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["config"]["weights"] == {"first": f"some/whole@{'1' * 40}", "reference": None}
    with pytest.raises(BadInput, match="expected a folder for an adapter, got some/adapter on the Hub; download it"):
        probing.probe(["some/adapter"], pairs, tmp_path / "other")


def test_an_adapter_is_its_base_with_the_adapter_merged(saved, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="needs peft: pip install -e .[llm]")
    models, pairs = saved
    base = transformers.LlamaForCausalLM.from_pretrained(models[0])
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    adapted.save_pretrained(tmp_path / "adapter")
    keep(tmp_path / "merged", adapted.merge_and_unload())
    for name in ("adapter", "merged"):
        probing.probe([models[0], str(tmp_path / name)], pairs, tmp_path / f"run-{name}", kinds=["rejected"])
    one, other = (read(tmp_path / f"run-{name}").logp for name in ("adapter", "merged"))
    np.testing.assert_allclose(one, other, rtol=0, atol=64 * np.finfo(np.float32).eps * 8)
    assert float(abs(one[0, 1] - one[0, 0]).max()) > 0.01
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    for name, message in (("/nowhere/base", "base of the adapter"), (None, "expected base_model_name_or_path")):
        settings["base_model_name_or_path"] = name
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
        with pytest.raises(BadInput, match=message):
            probing.probe([models[0], str(tmp_path / "adapter")], pairs, tmp_path / "run")
    settings["base_model_name_or_path"] = models[0]
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter/adapter_model.safetensors").unlink()
    torch.save(peft.get_peft_model_state_dict(adapted), tmp_path / "adapter/adapter_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was unpickled"))
    message = (
        r"expected adapter_model.safetensors in the adapter .*, got adapter_model.bin; save it again with safetens"
    )
    with pytest.raises(BadInput, match=message):
        probing.probe([models[0], str(tmp_path / "adapter")], pairs, tmp_path / "run")
    with pytest.raises(BadInput, match=message):
        checkpoints.load_model(str(tmp_path / "adapter"))


def test_steps_come_from_the_trainers_own_state(saved, tmp_path):
    log = [{"loss": 1.0, "step": 5}, {"loss": 0.5, "step": 10}]
    other = [{"loss": 3.0, "step": 5}]

    def at(name, step=None, log=()):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        if step is not None:
            (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": list(log)}))
        return str(folder)

    base, sft = at("base"), at("sft", 2000, other)
    one, two, three = at("c1", 5, log[:1]), at("c2", 10, log), at("c3", 20, [*log, {"loss": 0.1, "step": 20}])
    way = checkpoints.course([base, one, two, three])
    assert (way.steps, way.has_step0, way.known_from) == ((0, 5, 10, 20), True, "from trainer_state.json")
    assert checkpoints.course([sft, one, two]).steps == (0, 5, 10), "the first one's own training is another stage"
    assert checkpoints.course([one, two, three]).steps == (5, 10, 20), "a run without its start knows that"
    assert not checkpoints.course([one, two]).has_step0
    assert checkpoints.course([base, at("x"), at("y")]).steps == (0, 1, 2)
    assert checkpoints.course([sft, base]).steps == (0, 1)
    assert checkpoints.course([base, one], steps=[3, 7]).steps == (3, 7)
    bad = [
        (([base, two, one],), {}, "expected steps that increase from 0 on, got 0 10 5"),
        (([base, one, at("x")],), {}, "expected a trainer_state.json in every checkpoint but the first, got none in"),
        (([base, one],), {"steps": [0]}, "--steps: expected one step a model, got 1 for 2"),
        (([base, one],), {"steps": [-1, 4]}, "expected steps that increase from 0 on, got -1 4"),
        (([],), {}, "--models: expected at least one checkpoint, got none"),
    ]
    for arguments, options, message in bad:
        with pytest.raises(BadInput) as refused:
            checkpoints.course(*arguments, **options)
        assert message in str(refused.value)
    (tmp_path / "c2/trainer_state.json").write_text('{"global_step": ')
    with pytest.raises(BadInput, match="expected global_step in"):
        checkpoints.course([base, two])


def broken(saved, tmp_path, what):
    """Arguments of a call that cannot serve."""
    models, pairs = saved
    good = {"--models": models[:1], "--data": pairs, "--out": tmp_path / "run"}
    folder = tmp_path / "made"
    if what in ("a folder without a model", "a model without a tokenizer", "another vocabulary", "other tokens"):
        other = model(1, vocabulary=SIZE + (what == "another vocabulary"))
        with checkpoints.quiet():
            keep(folder, other, words=what == "other tokens")
        if what == "a folder without a model":
            (folder / "config.json").unlink()
        if what == "other tokens":
            text = (folder / "tokenizer.json").read_text()
            (folder / "tokenizer.json").write_text(text.replace('"sky"', '"sea"'))
        first = [] if what == "a model without a tokenizer" else models[:1]
        return good | {"--models": [*first, folder]}
    if what == "a damaged model":
        shutil.copytree(models[0], folder)
        (folder / "model.safetensors").write_bytes(b"\x00" * 99)
        return good | {"--models": [folder]}
    if what == "weights that are not numbers":
        wrong = model(1)
        with torch.no_grad():
            wrong.lm_head.weight[4] = float("nan")
        with checkpoints.quiet():
            keep(folder, wrong)
        return good | {"--models": [folder]}
    if what == "few positions":
        with checkpoints.quiet():
            keep(folder, model(1, max_position_embeddings=8))
        return good | {"--models": [folder]}
    rows = {"no data": "", "an empty response": '{"prompt": "sky", "chosen": " ", "rejected": "red"}'}
    rows["messages for a tokenizer without template"] = json.dumps(
        {name: [{"role": role, "content": name}] for name, role in (("prompt", "user"), ("chosen", "assistant"))}
        | {"rejected": [{"role": "assistant", "content": "no"}]}
    )
    if what in rows:
        (tmp_path / "rows.jsonl").write_text(rows[what])
        return good | {"--data": tmp_path / "rows.jsonl"}
    return (
        good
        | {
            "no such folder": {"--models": ["/nowhere/at/all"]},
            "a name that the Hub does not tell offline": {"--models": ["nobody/nothing"]},
            "no such data": {"--data": tmp_path / "nothing.jsonl"},
            "a kind that cannot be had": {"--kinds": "chosen,irr_test"},
            "an unknown kind": {"--kinds": "charm"},
            "no examples": {"--n": 0},
            "no batch": {"--batch-size": 0},
            "a name that is no path": {"--stage": "a/b"},
        }[what]
    )


BAD = {
    "no such folder": "expected a model folder or a name on the Hub, got '/nowhere/at/all'; there is no such folder",
    "a name that the Hub does not tell offline": "transformers can load, got nobody/nothing: OSError",
    "a folder without a model": "expected config.json or adapter_config.json in",
    "a model without a tokenizer": "expected a tokenizer beside at least one checkpoint, got none",
    "another vocabulary": "expected one vocabulary in all checkpoints, got 25 tokens in",
    "other tokens": "expected one vocabulary in all checkpoints, got other tokens in",
    "a damaged model": "expected a causal language model that transformers can load, got",
    "weights that are not numbers": "expected finite log-probabilities, got nan for response 0",
    "few positions": "--max-length: expected at most the 8 positions of",
    "no data": "expected at least one pair, got none",
    "an empty response": "expected at least one pair, got none (expected two responses, got an empty chosen ' '",
    "messages for a tokenizer without template": "expected a tokenizer with a chat template, got none",
    "no such data": "expected a readable file, got nothing.jsonl",
    "a kind that cannot be had": "--kinds: expected responses of kind irr_test, got none",
    "an unknown kind": "'charm'",
    "no examples": "--n: expected at least 1, got 0",
    "no batch": "--batch-size: expected at least 1, got 0",
    "a name that is no path": "expected a stage named in letters, digits and _, got 'a/b'",
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_2(what, saved, tmp_path, capsys):
    arguments = []
    for name, value in broken(saved, tmp_path, what).items():
        arguments += [name, *(value if isinstance(value, list) else [value])]
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert BAD[what] in err
    assert err.count("\n") == 1, err
    assert not (tmp_path / "run").exists(), "a second try needs no --resume"


def test_what_was_there_stays_where_nothing_could_be_scored(saved, tmp_path):
    arguments = broken(saved, tmp_path, "weights that are not numbers")
    models, pairs, out = (arguments[f"--{name}"] for name in ("models", "data", "out"))
    out.mkdir()
    with pytest.raises(BadInput, match="expected finite"):
        probing.probe([str(models[0])], pairs, out)
    assert files(out) == {}
    assert out.is_dir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="expected finite"):
        probing.probe([str(models[0])], pairs, out)
    assert set(files(out)) == {"notes.txt", "run.json"}, "a folder in use is left as it is"


def test_rows_left_out_are_named_with_the_reason(saved, tmp_path, capsys):
    models, _ = saved
    same = PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}
    lines = [json.dumps(PAIRS[0]), json.dumps(PAIRS[1]), "{", json.dumps(PAIRS[2] | {"chosen": ""}), json.dumps(same)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    arguments = ["--models", models[0], "--data", tmp_path / "rows.jsonl", "--out", tmp_path / "run"]
    code, said, _ = run(capsys, *arguments, "--kinds", "rejected")
    assert code == 0
    what = "row 2, not valid JSON; row 3, chosen is empty; row 4, chosen equals rejected (rows counted from 0)"
    assert f"3 of 5 rows left out: {what}\n" in said
    more = [{"prompt": 3, "chosen": "a", "rejected": "b"}, PAIRS[2] | {"rejected": " "}, PAIRS[2] | {"chosen": None}]
    more.append(PAIRS[2] | {"chosen": " ", "rejected": " "})
    (tmp_path / "rows.jsonl").write_text("\n".join([*map(json.dumps, more), *lines]))
    said = str(probing.read_probes(tmp_path / "rows.jsonl")[1])
    assert said == (
        "7 of 9 rows left out: row 0, expected the prompt as a string like the responses, got int 3; "
        "row 1, rejected is empty; row 2, expected chosen as a string or a list of messages, got NoneType None; "
        "row 3, chosen and rejected are empty; row 6, not valid JSON; and 2 more (rows counted from 0)"
    )


def test_help_says_what_no_eos_does(capsys):
    code, said, _ = run(capsys, "--help")
    words = re.sub(r"[\s│]+", " ", said)
    assert code == 0
    assert "--no-eos Do not score the EOS token behind a plain-text response (by default it is scored" in words
    assert "as TRL trains it). --seed" in words, "no default behind it"
    assert "(default: '')" not in words


def test_without_transformers_the_line_says_what_to_install(saved, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    models, pairs = saved
    code, _, err = run(capsys, "--models", models[0], "--data", pairs, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert (
        'expected the package transformers, got none installed; in the clone of toyld: pip install -e ".[llm]"' in err
    )


def test_probe_sets_and_conversations_are_read_too(saved, tmp_path):
    models, pairs = saved
    probes, _ = probing.read_probes(pairs, n=2)
    probes.to_jsonl(tmp_path / "probes.jsonl")
    assert probing.read_probes(tmp_path / "probes.jsonl")[0] == probes
    assert set(probing.read_probes(pairs, held_out=True)[0].responses) == {*probes.responses, "irr_hum", "irr_test"} - {
        "irr_train"
    }
    chat = [
        {side: [{"role": "assistant" if side != "prompt" else "user", "content": row[side]}] for side in list(row)[:3]}
        for row in PAIRS
    ]
    chat[3]["chosen"].append({"role": "user", "content": "two"})  # no other text can take the place of two messages
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chat)))
    shutil.copytree(models[0], tmp_path / "model")
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }} </s> {% endfor %}"
    words.save_pretrained(tmp_path / "model")
    report = probing.probe([str(tmp_path / "model")], tmp_path / "chat.jsonl", tmp_path / "run", kinds=["rejected"])
    assert report.n_examples == 3
    assert report.left_out.rows == ((3, "a response is not one message of the assistant"),)
    ds = read(tmp_path / "run")
    lengths = [[len(PAIRS[int(i)][side].split()) + 1 for i in ds.example.values] for side in ("chosen", "rejected")]
    np.testing.assert_array_equal(ds.n_tokens.values[0], lengths)


def test_tokens_and_scores_are_those_of_trls_own_trainer(tmp_path):
    """TRL's DPO trainer tokenises the pairs and logs their mean log-probability: ours are the same."""
    trl = pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")
    import datasets

    words, trained, reference = tokenizer(), model(1), model(2)
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"),
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=64,
        per_device_eval_batch_size=len(PAIRS),
        disable_tqdm=True,
    )
    rows = datasets.Dataset.from_list([{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in PAIRS])
    trainer = trl.DPOTrainer(
        model=trained,
        ref_model=reference,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=words,
    )
    logged = trainer.evaluate()
    for side in ("chosen", "rejected"):
        ours = encode.encode(words, [row["prompt"] for row in PAIRS], [row[side] for row in PAIRS], max_length=64)
        theirs = [
            (tuple(row["prompt_ids"] + row[f"{side}_ids"]), len(row["prompt_ids"])) for row in trainer.eval_dataset
        ]
        assert [(item.ids, item.start) for item in ours] == theirs
        mean = float(score.score_encoded(trained, ours).logp.mean())
        np.testing.assert_allclose(logged[f"eval_logps/{side}"], mean, rtol=32 * np.finfo(np.float32).eps)


def per_token(trained, items):
    """Log-probabilities (B, T) that gradients flow through, and their mask."""
    size = max(len(item.ids) for item in items)
    ids, mask = torch.zeros(len(items), size, dtype=torch.long), torch.zeros(len(items), size)
    for b, item in enumerate(items):
        ids[b, : len(item.ids)] = torch.tensor(item.ids)
        mask[b, item.start : len(item.ids)] = 1
    log_pi = torch.log_softmax(trained(input_ids=ids).logits[:, :-1], -1)
    return log_pi.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:], mask[:, 1:]


def train(data, folder, name, *, lr, updates, n=5):
    """Checkpoints of a few real updates of stories260K on real pairs: before, in the middle, at the end."""
    with (data / "preference/hh_pairs.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    short = [r for r in rows if len(r["prompt"]) < 150 and all(20 < len(r[s]) < 120 for s in ("chosen", "rejected"))]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, short[:n])))
    words = transformers.AutoTokenizer.from_pretrained(data / "models/stories260K")
    trained = transformers.AutoModelForCausalLM.from_pretrained(data / "models/stories260K")
    items = {
        side: encode.encode(words, [r["prompt"] for r in short[:n]], [r[side] for r in short[:n]], max_length=256)
        for side in (("chosen", "rejected") if name == "dpo" else ("chosen",))
    }
    with torch.no_grad():
        reference = {f"ref_{side}": per_token(trained, item)[0] for side, item in items.items()}
    optimiser = torch.optim.AdamW(trained.parameters(), lr=lr, weight_decay=0.0)
    saved = []
    for step in range(updates + 1):
        if step in (0, updates // 2, updates):
            trained.save_pretrained(folder / f"m{step}")
            state = {"global_step": step, "log_history": []}
            (folder / f"m{step}/trainer_state.json").write_text(json.dumps(state))
            saved.append(str(folder / f"m{step}"))
        batch = {
            key: value
            for side, item in items.items()
            for key, value in zip((side, f"{side}_mask"), per_token(trained, item), strict=True)
        }
        loss = get(name).loss(Batch(**batch, **(reference if name == "dpo" else {}))).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    words.save_pretrained(folder / "m0")
    return saved


@pytest.mark.parametrize(
    ("name", "lr", "verdict"),
    [("dpo", 5e-4, "healthy"), ("sft", 1e-4, "sft-normal")],
)
def test_a_few_real_updates_probed_and_diagnosed(data, tmp_path, capsys, name, lr, verdict):
    with checkpoints.quiet():
        models = train(data, tmp_path, name, lr=lr, updates=6)
    out = tmp_path / "run"
    code, said, err = run(
        capsys,
        "--models",
        *models,
        "--data",
        tmp_path / "pairs.jsonl",
        "--out",
        out,
        "--max-length",
        256,
        "--kinds",
        "chosen,rejected,irr_train,random_permute",
        "--stage",
        name,
    )
    assert (code, err) == (0, "")
    assert f"next: toyld diagnose {out}" in said
    assert "steps from trainer_state.json" in said
    ds = read(out)
    assert ds.step.values.tolist() == [0, 3, 6]
    assert bool((ds.argmax_logp >= ds.logp).where(ds.logp.notnull(), True).all())
    with pytest.raises(SystemExit) as stop:
        cli.main(["diagnose", str(out), "--json", str(tmp_path / "verdict.json")])
    assert stop.value.code == 0
    capsys.readouterr()
    found = json.loads((tmp_path / "verdict.json").read_text())["runs"][0]
    assert found["verdict"] == verdict
    assert found["n_evaluations"] == 3
    assert found["noise_floor"] == ds.attrs["noise_floor"]
    moved = ds.logp.mean("example").isel(seed=0)
    for kind in ("chosen", "rejected"):
        change = float(moved.sel(probe=kind, step=6) - moved.sel(probe=kind, step=0))
        np.testing.assert_allclose(found["numbers"][f"d_{kind}"], change, rtol=0, atol=1e-6)
    assert found["numbers"]["d_chosen"] > 5
    assert (found["numbers"]["d_rejected"] < -20) == (name == "dpo")
