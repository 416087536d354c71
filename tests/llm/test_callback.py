"""The callback in real trainers: it changes nothing, measures what it says, catches wrong starts, survives a kill."""

import gc
import json
import math
import os
import random
import re
import signal

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")
pytest.importorskip("peft", reason="needs peft: pip install -e .[llm]")

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from toyld.checked import BadInput
from toyld.diagnosis import diagnose
from toyld.diagnosis.causes import make_run
from toyld.llm import LearningDynamicsCallback, ProbeSet, WrongReference, checkpoints, live, policy, start
from toyld.trajectory import RunFolder, read

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run
PROBED, PAIRS = 4, 12


class Start:
    """The real pretrained model, its tokenizer, and preference pairs made of real stories."""

    def __init__(self, data):
        self.path = str(data / "models" / "stories260K")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
        stories = [story.split() for story in json.loads((data / "preference" / "tinystories_1000.json").read_text())]
        self.rows = [
            {
                "prompt": " ".join(stories[i][:8]),
                "chosen": " " + " ".join(stories[i][8:16]),
                "rejected": " " + " ".join(stories[i + 40][8:16]),
            }
            for i in range(PAIRS + PROBED)
        ]
        self.probes = ProbeSet.from_preference(self.rows[PAIRS:], extra=["other_prompt", "permuted"], seed=0)

    def model(self, **settings):
        return transformers.AutoModelForCausalLM.from_pretrained(self.path, **settings)

    def lora(self, scale=0.0, **settings):
        """A model with an adapter, whose output is 0 unless it is scaled."""
        torch.manual_seed(0)
        made = get_peft_model(
            self.model(**settings), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        )
        for name, parameter in made.named_parameters():
            if "lora_B" in name and scale:
                parameter.data = scale * torch.randn_like(parameter)
        return made

    def dpo(self, out, model=None, reference="same", **settings):
        """A DPOTrainer; reference: "same" = loaded from the same path, or a model, or None for what TRL makes."""
        model = self.model() if model is None else model
        reference = self.model(dtype=model.dtype) if isinstance(reference, str) else reference
        args = DPOConfig(**(_common(out) | {"learning_rate": 1e-3} | settings))
        return DPOTrainer(
            model=model, ref_model=reference, args=args, processing_class=self.tokenizer,
            train_dataset=Dataset.from_list(self.rows[:PAIRS]), eval_dataset=Dataset.from_list(self.rows[PAIRS:]),
        )  # fmt: skip

    def sft(self, out, model=None, **settings):
        """An SFTTrainer on the chosen responses."""
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in self.rows[:PAIRS]]
        args = SFTConfig(**(_common(out) | {"learning_rate": 1e-3} | settings))
        model = self.model() if model is None else model
        return SFTTrainer(
            model=model, args=args, processing_class=self.tokenizer, train_dataset=Dataset.from_list(rows)
        )

    def plain(self, out, model=None, **settings):
        """A Trainer of transformers on the same tokens."""
        texts = [self.tokenizer(row["prompt"] + row["chosen"])["input_ids"][:24] for row in self.rows[:PAIRS]]
        rows = [{"input_ids": ids, "labels": ids} for ids in texts if len(ids) == 24]
        args = transformers.TrainingArguments(**(_common(out) | settings))
        model = self.model() if model is None else model
        return transformers.Trainer(model=model, args=args, train_dataset=rows, processing_class=self.tokenizer)


def _common(out):
    return {
        "output_dir": str(out), "per_device_train_batch_size": 2, "per_device_eval_batch_size": 4, "max_steps": 2,
        "logging_steps": 1, "report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "save_strategy": "no", "disable_tqdm": True, "seed": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(data):
    """What trainers are made of."""
    gc.collect()
    gc.freeze()  # each train() collects garbage, among all that trl has imported
    with checkpoints.quiet():
        yield Start(data)
    gc.unfreeze()


@pytest.fixture(scope="module")
def ready(world, tmp_path_factory):
    """A DPOTrainer that is not trained, for tests that put back what they change."""
    return world.dpo(tmp_path_factory.mktemp("ready"))


def watch(world, trainer, out, **options):
    """(callback, the lines that it says), joined to a trainer."""
    lines = []
    callback = LearningDynamicsCallback(
        trainer,
        options.pop("probes", world.probes),
        **({"out": out, "every": 1, "tell": lines.append, "report": False} | options),
    )
    trainer.add_callback(callback)
    return callback, lines


def train(trainer, **options):
    """Train from fixed random numbers."""
    transformers.set_seed(5)
    trainer.train(**options)


class Tracker(transformers.TrainerCallback):
    """What a tracker would be told, and a last word at a step."""

    def __init__(self, at=None, do=lambda: None):
        self.rows, self.at, self.do = [], at, do

    def on_log(self, args, state, control, logs, **_):
        self.rows.append({**logs, "step": state.global_step})

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.at:
            self.do()


class Eager(torch.nn.Module):
    """Draws random numbers even in eval mode, and keeps a layer in eval mode while it trains."""

    def forward(self, x):
        random.random()
        np.random.random()  # noqa: NPY002
        return x + 0 * torch.rand(1)


def end_of(trainer):
    """All that training leaves behind, and what it logged but times and ld/*."""
    times = ("runtime", "per_second", "total_flos")
    rows = [row for row in trainer.state.log_history if not any(key.startswith("ld/") for key in row)]
    return {
        "weights": {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
        "trained": {name: p.requires_grad for name, p in trainer.model.named_parameters()},
        "modes": {name: layer.training for name, layer in trainer.model.named_modules()},
        "moments": {k: v["exp_avg_sq"].clone() for k, v in trainer.optimizer.state_dict()["state"].items()},
        "log": [{k: v for k, v in row.items() if not any(t in k for t in times)} for row in rows],
        "random": (random.random(), np.random.random(), torch.rand(3)),  # noqa: NPY002
        "settings": (trainer.model.config.use_cache, trainer.processing_class.padding_side),
    }


def assert_same(a, b):
    for key in a:
        if isinstance(a[key], dict) and a[key] and torch.is_tensor(next(iter(a[key].values()))):
            assert a[key].keys() == b[key].keys()
            assert all(torch.equal(a[key][name], b[key][name]) for name in a[key]), key
        elif key == "random":
            assert a[key][:2] == b[key][:2]
            assert torch.equal(a[key][2], b[key][2]), key
        else:
            assert a[key] == b[key], key


def dropout(world):
    """A model that draws dropout and other random numbers, with a layer that is not in its training mode."""
    model = world.model(attention_dropout=0.2)
    model.model.layers[0].mlp.act_fn = torch.nn.Sequential(model.model.layers[0].mlp.act_fn, Eager())
    model.model.layers[0].mlp.act_fn.append(torch.nn.Dropout(0.3))
    return model


def uneven(world, out, **settings):
    """DPO with dropout, accumulated gradients, evaluations, and logs at some of the steps."""
    more = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2}
    return world.dpo(out, dropout(world), disable_dropout=False, max_steps=4, **more, **settings)


def reentrant(world, out):
    """A fresh adapter on the base, with the older kind of checkpointing."""
    kind = {"use_reentrant": True}
    return world.dpo(out, world.lora(), None, gradient_checkpointing=True, gradient_checkpointing_kwargs=kind)


def half(world, out, **settings):
    """A trained adapter on a base in half precision, as a quantised one would have it."""
    return world.dpo(out, world.lora(scale=0.1, dtype=torch.bfloat16), None, bf16=True, **settings)


slow, quiet = pytest.mark.slow, pytest.mark.filterwarnings("ignore")  # torch's compiler warns of much
CASES = [
    pytest.param(uneven, id="dpo"),
    pytest.param(lambda w, o: half(w, o, gradient_checkpointing=True), id="adapter"),
    pytest.param(lambda w, o: w.sft(o), id="sft"),
    pytest.param(lambda w, o: w.plain(o, dropout(w), learning_rate=1e-3), id="plain"),
    pytest.param(reentrant, id="reentrant", marks=slow),
    pytest.param(lambda w, o: w.sft(o, w.lora(), gradient_checkpointing=True), id="sft-lora", marks=slow),
    pytest.param(lambda w, o: w.dpo(o, torch_compile=True), id="compiled", marks=[slow, quiet]),
]


@pytest.mark.parametrize("make", CASES)
def test_training_is_the_same_to_the_bit_with_and_without(world, tmp_path, make):
    ends = []
    for with_it in (True, False):
        transformers.set_seed(3)
        trainer = make(world, tmp_path / f"{with_it}")
        if with_it:
            watched, _ = watch(world, trainer, tmp_path / "ld")
        train(trainer)
        ends.append(end_of(trainer))
    assert len(ends[0]["log"]) >= 2
    assert_same(*ends)
    assert watched.table.step.values.tolist() == list(range(trainer.state.max_steps + 1))
    moved = np.abs(watched.table.logp.values[0, -1] - watched.table.logp.values[0, 0])
    assert np.nanmax(moved) > 0.1, "it trained, and the probes saw it"


# --- what is measured -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A DPO run from beginning to end, saved after two updates: (trainer, callback, lines, tracker, folder)."""
    folder, transformer_rows = tmp_path_factory.mktemp("whole"), Tracker()
    transformers.set_seed(3)
    trainer = world.dpo(folder / "out", max_steps=4, save_strategy="steps", save_steps=2)
    callback, lines = watch(world, trainer, folder / "ld", report=True)
    trainer.add_callback(transformer_rows)
    train(trainer)
    return trainer, callback, lines, transformer_rows.rows, folder


def by_hand(world, model, kind, i):
    """log π and the largest log π of each token of a probe, from the model's own logits."""
    prompt, response = world.probes.prompts[i], world.probes.responses[kind][i]
    ids = [*world.tokenizer(prompt + response)["input_ids"], world.tokenizer.eos_token_id]
    begin = len(world.tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        pi = model.eval()(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [float(pi[t - 1, ids[t]]) for t in range(begin, len(ids))], pi[begin - 1 : -1]


def test_every_cell_is_the_score_of_its_own_response_before_and_after(world, whole):
    trainer, callback, *_ = whole
    ds = read(whole[-1] / "ld")
    assert ds.identical(callback.table)
    assert ds.probe.values.tolist() == ["chosen", "rejected", "irr_train", "random_permute"]
    for step, model in ((0, world.model()), (-1, trainer.model)):
        for kind in ds.probe.values:
            for i in range(PROBED):
                cell = ds.sel(probe=kind).isel(seed=0, step=step, example=i)
                label, pi = by_hand(world, model, kind, i)
                assert cell.n_tokens == len(label)
                np.testing.assert_allclose(cell.logp, sum(label), rtol=0, atol=1e-5 * len(label))
                np.testing.assert_allclose(cell.argmax_logp, pi.max(1).values.sum(), rtol=0, atol=1e-5 * len(label))
    np.testing.assert_array_equal(ds.ref_logp.values, ds.logp.values[:, 0])
    assert 0 < ds.attrs["noise_floor"] < 1e-5
    assert (ds.attrs["has_step0"], ds.attrs["stage"], ds.attrs["objective"]) == (1, "dpo", "trl.sigmoid")


def test_each_row_has_the_loss_of_its_own_step(whole):
    trainer, callback, *_ = whole
    logged = {row["step"]: row for row in trainer.state.log_history if "loss" in row}
    assert sorted(logged) == [1, 2, 3, 4]
    for name, theirs in (("loss", "loss"), ("lr", "learning_rate"), ("grad_norm", "grad_norm")):
        mine = callback.table[name].values[0]
        assert np.isnan(mine[0])
        np.testing.assert_array_equal(mine[1:], [logged[step][theirs] for step in (1, 2, 3, 4)])


def test_trackers_get_the_keys_in_their_units(whole):
    _, callback, _, rows, _ = whole
    rows = [row for row in rows if "ld/chosen_logp" in row]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    ds, row = callback.table.isel(seed=0, step=-1), rows[-1]
    sums = {"chosen_logp", "rejected_logp", "irr_train_logp", "random_permute_logp", "argmax_logp", "greedy_gap"}
    sums |= {"others_logp"}
    alone = {"top1_prob", "entropy", "rank_acc", "frac_squeezed", "noise_floor"}
    assert {key for key in row if key.startswith("ld/")} == {
        f"ld/{key}" for key in (*sums, *(f"{key}_sum" for key in sums), *alone)
    }

    def mean(values):
        return sum(float(v) for v in values) / PROBED

    for kind in ds.probe.values:
        one = ds.sel(probe=kind)
        np.testing.assert_allclose(row[f"ld/{kind}_logp_sum"], mean(one.logp), rtol=1e-12)
        per_token = [float(a) / float(n) for a, n in zip(one.logp, one.n_tokens, strict=True)]
        np.testing.assert_allclose(row[f"ld/{kind}_logp"], mean(per_token), rtol=1e-12)
    assert row["ld/others_logp"] == (row["ld/irr_train_logp"] + row["ld/random_permute_logp"]) / 2
    np.testing.assert_allclose(row["ld/greedy_gap"], row["ld/argmax_logp"] - row["ld/chosen_logp"], rtol=1e-9)
    chosen, rejected = (ds.logp.sel(probe=kind).values for kind in ("chosen", "rejected"))
    assert row["ld/rank_acc"] == np.mean(chosen >= rejected)
    assert 0 < row["ld/top1_prob"] < 1
    assert row["ld/noise_floor"] == callback.table.attrs["noise_floor"]


def test_the_end_is_a_verdict_and_a_page(whole):
    _, callback, lines, _, folder = whole
    board = json.loads((folder / "ld" / "verdict.json").read_text())
    assert board["runs"][0]["verdict"] == diagnose(callback.table).verdict
    assert "dpo-baseline" in (folder / "ld" / "report.html").read_text()
    assert lines[0].startswith("step 0: 4 prompts × 4 kinds; policy and reference differ by at most 0.0e+00")
    assert "loss 0.6931 (0.6931 at equal policies)" in lines[0]
    assert lines[-1].startswith("consistent with")


def test_evaluations_are_counted_once_and_the_last_policy_is_not_the_best_one(world, whole, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "a_loss", "greater_is_better": False}
    transformers.set_seed(3)
    trainer = world.dpo(
        tmp_path, max_steps=4, eval_strategy="steps", eval_steps=3, eval_on_start=True, save_strategy="steps",
        save_steps=3, logging_strategy="no", **best,
    )  # fmt: skip
    trainer.eval_dataset = {"a": trainer.eval_dataset, "b": trainer.eval_dataset}
    callback, _ = watch(world, trainer, tmp_path / "ld", every="eval")
    other, _ = watch(world, trainer, tmp_path / "other", every=3)
    train(trainer)
    assert trainer.state.best_global_step == 3
    for each in (callback, other):
        assert each.table.step.values.tolist() == [0, 3, 4]
        np.testing.assert_array_equal(each.table.logp.values, whole[1].table.logp.values[:, [0, 3, 4]])
    told = [row["step"] for row in trainer.state.log_history if "ld/chosen_logp" in row]
    assert told == [0, 0, 3, 3, 4, 4], "once by each of the two"
    trainer.evaluate()
    assert callback.table.sizes["step"] == 3, "evaluations after training are none of this run"


# --- before the first update ----------------------------------------------------------------------------------------


class Enough(Exception):
    """Nothing more is asked of a trainer."""


def stop_at(trainer, step, error=Enough):
    def stop():
        raise error

    trainer.add_callback(Tracker(step, stop))


STARTS = [
    pytest.param(lambda w, o: w.dpo(o, w.lora(), None), id="base"),
    pytest.param(lambda w, o: w.dpo(o, w.lora(scale=0.1), None), id="adapter"),
    pytest.param(lambda w, o: w.dpo(o, None, None, precompute_ref_log_probs=True, bf16=True), id="computed-bf16"),
    pytest.param(lambda w, o: w.dpo(o, w.model(dtype=torch.bfloat16)), id="bf16"),
    pytest.param(lambda w, o: w.dpo(o, reference=None), id="reloaded", marks=slow),
    pytest.param(lambda w, o: w.dpo(o, None, None, precompute_ref_log_probs=True), id="computed", marks=slow),
    pytest.param(half, id="adapter-bf16", marks=slow),
    pytest.param(lambda w, o: w.dpo(o, reference=w.model(dtype=torch.bfloat16)), id="bf16-reference", marks=slow),
]


@pytest.mark.parametrize("make", STARTS)
def test_a_right_start_raises_no_alarm(world, tmp_path, make):
    trainer = make(world, tmp_path)
    callback, lines = watch(world, trainer, tmp_path / "ld")
    stop_at(trainer, 0)
    with pytest.raises(Enough):
        train(trainer)
    assert len(lines) == 1
    assert re.search(r"; loss 0\.69\d+ \(0\.6931 at equal policies\); scoring noise", lines[0]), lines
    assert not any(trainer._metrics.values()), "its loss is not among those that will be logged"
    assert ("no reference model" in lines[0]) == trainer.args.precompute_ref_log_probs
    if not trainer.args.precompute_ref_log_probs:
        off = np.abs(callback.table.ref_logp.values - callback.table.logp.values[:, 0])
        same = trainer.ref_model is None or trainer.ref_model.dtype == trainer.model.dtype
        assert (off.max() == 0) == same


def sft_first(world, tmp_path):
    """A model trained in this process: TRL takes as reference what lies where its config says it was loaded from."""
    model = world.model()
    world.sft(tmp_path / "sft", model, learning_rate=3e-3).train()
    return world.dpo(tmp_path, model, None, max_steps=1)


def adapter_on_base(world, tmp_path):
    """A trained adapter as policy, the base below it as reference."""
    trainer = world.dpo(tmp_path, world.lora(scale=0.3), None)
    trainer.model.delete_adapter("ref")  # as versions of TRL did it that made no copy of the adapter
    return trainer


def base_as_model(world, tmp_path):
    """The same with the base loaded a second time."""
    return world.dpo(tmp_path, world.lora(scale=0.3), world.model())


def computed_elsewhere(world, tmp_path):
    """Log-probabilities of another model in the data: only the loss can tell."""
    trainer = world.dpo(tmp_path, reference=None, precompute_ref_log_probs=True)
    for p in trainer.model.parameters():
        p.data += 0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    return trainer


@pytest.mark.parametrize("make", [sft_first, adapter_on_base, base_as_model, computed_elsewhere])
def test_a_wrong_reference_ends_the_run_before_the_first_update(world, tmp_path, make):
    trainer = make(world, tmp_path)
    callback, lines = watch(world, trainer, tmp_path / "ld")
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(
        WrongReference, match=r"^expected the policy as reference .*the loss is \d.*; (pass|merge)"
    ) as it:
        train(trainer)
    assert "\n" not in str(it.value)
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not (tmp_path / "ld").exists(), "once it is right, the same folder will do"
    if make is sft_first:
        assert "ref_model=" in str(it.value)
        callback.wrong_reference = "warn"
        train(trainer)
        assert any(line.startswith("step 0: wrong reference: ") for line in lines)
        assert callback.table.step.values.tolist() == [0, 1]


KINDS = ["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"]
KINDS += ["apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]


def test_the_loss_of_every_kind_is_its_constant_where_policies_are_equal(world, ready, monkeypatch):
    from trl.trainer.utils import add_fused_lm_head

    other = world.lora(scale=0.3).merge_and_unload()
    add_fused_lm_head(other)
    equal = ready.ref_model
    for kinds in [*([kind] for kind in KINDS), ["sigmoid", "bco_pair", "sft"]]:
        smoothing = 0.1 if kinds[0] in ("exo_pair", "robust", "aot") else 0.0
        for name, value in (("loss_type", kinds), ("loss_weights", [0.5] * len(kinds)), ("label_smoothing", smoothing)):
            monkeypatch.setattr(ready.args, name, value)
            monkeypatch.setattr(ready, {"loss_type": "loss_types"}.get(name, name), value)
        monkeypatch.setattr(ready, "ref_model", equal)
        loss = start.check_loss(ready, 1e-6)
        assert loss.same, (kinds, loss)
        np.testing.assert_allclose(loss.value, loss.constant, rtol=2e-5, err_msg=str(kinds))
        if kinds == ["sigmoid"]:
            assert abs(loss.constant - 0.5 * math.log(2)) < 1e-12
        if kinds[0] in ("sigmoid", "ipo", "bco_pair", "aot", "sft"):
            monkeypatch.setattr(ready, "ref_model", other)
            assert start.check_loss(ready, 1e-6).same == (kinds == ["sft"]), kinds
    monkeypatch.setattr(ready, "use_weighting", True)
    assert start.check_loss(ready, 1e-6) == "weights or an auxiliary loss enter its loss"


def test_faults_are_told_in_a_line(world, ready, tmp_path, monkeypatch):
    callback, _ = watch(world, ready, tmp_path)
    ready.remove_callback(callback)

    def lines(*changes, of=None):
        with monkeypatch.context() as patch:
            for thing, name, value in changes:
                patch.setattr(thing, name, value)
            return list(start.faults(of or ready, world.probes, callback._cells))

    assert lines() == []
    parts = [part for part in ready.model.parameters() if part.requires_grad]
    assert lines((ready, "ref_model", ready.model))[0].startswith("the reference trains along with the policy")
    base = world.model()
    shared = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    found = lines((ready, "ref_model", base), (ready, "model", shared))
    assert [line.split(":")[0] for line in found] == ["the reference trains along with the policy"]
    found = lines(*((part, "requires_grad", False) for part in parts))
    assert [line.split(";")[0] for line in found] == ["nothing trains: no parameter requires a gradient"]
    assert lines((ready.args, "learning_rate", 0.0)) == ["nothing trains: the learning rate is 0; set learning_rate"]
    assert lines((ready.args, "beta", 0.0))[0].startswith("nothing trains: beta is 0")
    dropping = world.model(attention_dropout=0.1)
    assert lines((ready, "ref_model", dropping)) == [], "in eval mode it drops nothing"
    found = lines((ready, "ref_model", dropping.train()))
    assert [line.split(",")[0] for line in found] == ["the reference draws dropout of 0.1"]
    found = lines((ready.args, "max_length", 20))
    assert [line.split(" of ")[0] for line in found] == ["truncation cuts 24", "8"]
    assert "chosen of example 0: cut to" in found[1]
    rows = Dataset.from_list([{**row, "chosen_ids": [7, *row["chosen_ids"]]} for row in ready.eval_dataset])
    found = lines((ready, "eval_dataset", rows))
    told = "4 of 8 probes found in the trainer's data have other tokens there, chosen of example 0: from token "
    assert [line[: len(told)] for line in found] == [told]


def test_right_tokens_raise_no_alarm_and_eos_is_named(world, ready, tmp_path):
    probes = ProbeSet.from_preference(world.rows[:PAIRS], extra=[], seed=0)
    for trainer, found in ((ready, 2 * PAIRS), (world.sft(tmp_path), PAIRS)):
        told = {}
        for eos in (True, False):
            callback, _ = watch(world, trainer, tmp_path / "ld", probes=probes, eos=eos)
            trainer.remove_callback(callback)
            told[eos] = list(start.faults(trainer, probes, callback._cells))
        assert told[True] == []
        assert len(told[False]) == 1
        assert told[False][0].startswith(f"{found} of {found} probes")
        assert "pass eos=True" in told[False][0]


# --- killed, resumed, refused ---------------------------------------------------------------------------------------


def evaluations(folder):
    return {file.name: file.read_bytes() for file in sorted((folder / "dpo-baseline").glob("eval-*.nc"))}


@forks
def test_killed_and_resumed_it_ends_with_the_same_bytes(world, whole, tmp_path):
    def again(at=None):
        transformers.set_seed(3)
        trainer = world.dpo(tmp_path / "out", max_steps=4, save_strategy="steps", save_steps=2)
        watch(world, trainer, tmp_path / "ld", report=True)
        trainer.add_callback(Tracker(at, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        return trainer

    child = os.fork()
    if not child:  # pragma: no cover
        try:
            train(again(3))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list(evaluations(tmp_path / "ld")) == [f"eval-{step:08d}.nc" for step in (0, 1, 2, 3)]
    assert read(tmp_path / "ld").sizes["step"] == 4, "what a killed run leaves can be read"
    assert json.loads((tmp_path / "ld" / "verdict.json").read_text())["runs"][0]["n_evaluations"] == 4
    with pytest.raises(BadInput, match=r"^out: expected a new folder, got .*resume_from_checkpoint"):
        train(again())
    train(again(), resume_from_checkpoint=True)
    assert evaluations(tmp_path / "ld") == evaluations(whole[-1] / "ld")
    aside = {file.name for file in (tmp_path / "ld" / "dpo-baseline").glob(".superseded-*")}
    assert aside == {".superseded-eval-00000003.nc"}


def test_joined_on_resume_it_has_no_step_0_and_another_run_is_refused(world, whole, tmp_path):
    checkpoint = str(whole[-1] / "out" / "checkpoint-2")
    trainer = world.dpo(tmp_path / "out", max_steps=4)
    _, lines = watch(world, trainer, tmp_path / "ld")
    train(trainer, resume_from_checkpoint=checkpoint)
    ds = read(tmp_path / "ld")
    assert (ds.step.values.tolist(), ds.attrs["has_step0"]) == ([2, 3, 4], 0)
    assert "resumed in a new folder" in lines[0]
    assert "step 0" in diagnose(ds).missing
    np.testing.assert_array_equal(ds.logp.values, whole[1].table.logp.values[:, 2:])
    with pytest.raises(BadInput, match="expected one training a folder, got a second train"):
        train(trainer)
    other = world.dpo(tmp_path / "out", max_steps=4, beta=0.2)
    watch(world, other, tmp_path / "ld")
    with pytest.raises(BadInput, match=r"^expected the run that is there, got config.parameters.beta = 0.2, was 0.1"):
        train(other, resume_from_checkpoint=checkpoint)
    assert other.state.global_step == 2


def test_in_a_folder_of_a_larger_run_a_stage_begins_anew_or_goes_on(world, tmp_path):
    folder = RunFolder.create(tmp_path / "run", command="a test", config={}, stages=["dpo"])
    trainer = world.dpo(tmp_path / "out", max_steps=1)
    for _ in range(2):
        callback, _ = watch(world, trainer, folder, arm="a", wrong_reference="warn")
        train(trainer)
        trainer.remove_callback(callback)
    assert callback.table.step.values.tolist() == [0, 1]
    names = sorted(file.name for file in (tmp_path / "run" / "dpo-a").iterdir())
    assert names == [f"{prefix}eval-0000000{s}.nc" for prefix in (".superseded-", "") for s in (0, 1)]


def test_a_run_that_is_stopped_has_what_it_measured(world, tmp_path):
    trainer = world.dpo(tmp_path / "out")
    watch(world, trainer, tmp_path / "ld", report=True)
    stop_at(trainer, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    assert read(tmp_path / "ld").step.values.tolist() == [0, 1]
    assert json.loads((tmp_path / "ld" / "verdict.json").read_text())["runs"][0]["n_evaluations"] == 2


def test_bad_options_are_one_line(world, ready, tmp_path):
    for options, match in (
        ({"every": 0}, "every: expected 'eval' or a number of updates, got 0"),
        ({"every": "eval"}, "every: expected an evaluation strategy"),
        ({"wrong_reference": "no"}, "wrong_reference: expected 'raise' or 'warn', got 'no'"),
        ({"max_length": 1}, "max-length: expected at least 2"),
    ):
        with pytest.raises(BadInput, match=match):
            watch(world, ready, tmp_path / "ld", **options)
    callback, _ = watch(world, ready, tmp_path / "ld")
    ready.remove_callback(callback)
    with pytest.raises(BadInput, match="expected a training that has begun"):
        _ = callback.table


# --- while it goes on -----------------------------------------------------------------------------------------------


def test_a_run_that_squeezes_is_told_once_with_what_to_try():
    run, said, told = make_run("squeezing", seed=0), set(), []
    for evaluation in range(2, run.sizes["step"] + 1):
        told += live.news(diagnose(run.isel(step=slice(0, evaluation))), said)
    assert sum("warning:" in line for line in told) == 1
    assert sum("consistent with squeezing (chosen" in line for line in told) == 1
    assert any("to try:" in line for line in told)
    calm = make_run("healthy", seed=0)
    assert live.news(diagnose(calm), set()) == []


def test_what_one_process_refuses_is_said_as_it_is():
    class Alone:
        accelerator = type("", (), {"num_processes": 1})()

    def refuse():
        raise BadInput("no")

    assert policy.everywhere(Alone, lambda: 3) == [3]
    with pytest.raises(BadInput, match="no"):
        policy.everywhere(Alone, refuse)


@pytest.mark.slow
def test_the_benchmark_runs_and_weights_are_equal(script, compared):
    lines, printed = compared(script("callback"))
    assert [(line["benchmark"], line["against"], line["agree"]) for line in lines] == [("callback", "floor", 0.0)]
    assert lines[0]["overhead"] > lines[0]["overhead_of_forwards"] > 0
    assert lines[0]["floor"] > lines[0]["floor_shared"] > 0
    assert "callback/floor" in printed
