"""The policy's own answers while it trains: what is sampled, judged, kept and told; training does not notice."""

import doctest
import gc
import importlib.util
import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="needs trl: pip install -e .[llm]")

import torch
import transformers
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from toyld.checked import BadInput
from toyld.llm import LearningDynamicsCallback, ProbeSet, Solved, accuracies, checkpoints
from toyld.llm.answers import answers
from toyld.llm.questions import questions
from toyld.llm.solved import Exam, check_kept
from toyld.premem import of_table
from toyld.probes.recipes import draws
from toyld.report.copying import copying, sentence
from toyld.trajectory import read, trajectory

_spec = importlib.util.spec_from_file_location("callbacks", Path(__file__).with_name("test_callback.py"))
callbacks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(callbacks)

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on, where other threads run
STEPS, EVERY, SAVED, KILLED = 40, 8, 24, 36
TAUGHT = [(12, 25), (31, 48), (54, 23), (17, 52), (26, 61)]
HELD_OUT = [(13, 24), (43, 34), (31, 45)]


def sums(pairs):
    """Worked sums: tens, ones, answer."""
    ids = tuple(f"{a} and {b}" for a, b in pairs)
    worked = tuple(f" {a // 10 + b // 10} tens, {a % 10} + {b % 10}, so {a + b}" for a, b in pairs)
    return ProbeSet(ids, tuple(f"{a} + {b}?" for a, b in pairs), {"chosen": worked})


def right(prompt, answer, solution):
    """Whether the last word is that of the solution; draws random numbers, as a checker may."""
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(1)
    return answer.split()[-1:] == solution.split()[-1:]


SOLVED = Solved(right, samples=3, held_out=sums(HELD_OUT))


@pytest.fixture(scope="module")
def model(data):
    """The real pretrained model and its tokenizer."""
    path = str(data / "models" / "stories260K")
    gc.collect()
    gc.freeze()  # each train() collects garbage, among all that trl has imported
    with checkpoints.quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        yield transformers.AutoModelForCausalLM.from_pretrained(path).eval(), tokenizer
    gc.unfreeze()


def sft(model, out, solved=SOLVED, at=None):
    """(SFTTrainer on worked sums, its callback or None, the lines that this says); killed at a step."""
    loaded, tokenizer = model
    transformers.set_seed(3)
    rows = [
        {"prompt": p, "completion": r}
        for p, r in zip(sums(TAUGHT).prompts, sums(TAUGHT).responses["chosen"], strict=True)
    ]
    settings = callbacks._common(out / "out") | {
        "per_device_train_batch_size": 5, "max_steps": STEPS, "learning_rate": 4e-3, "lr_scheduler_type": "constant",
        "save_strategy": "steps", "save_steps": SAVED, "logging_steps": EVERY,
    }  # fmt: skip
    again = transformers.AutoModelForCausalLM.from_pretrained(loaded.name_or_path)
    trainer = SFTTrainer(
        model=again, args=SFTConfig(**settings), processing_class=tokenizer, train_dataset=Dataset.from_list(rows)
    )
    lines, callback = [], None
    if solved is not None:
        asked = {"every": EVERY, "out": out / "ld", "tell": lines.append, "solved": solved}
        before = torch.get_rng_state()
        callback = LearningDynamicsCallback(trainer, sums(TAUGHT), **asked)
        assert torch.equal(torch.get_rng_state(), before), "the checker draws some"
        trainer.add_callback(callback)
    trainer.add_callback(callbacks.Tracker(at, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    return trainer, callback, lines


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """A run from beginning to end: (trainer, table, lines, folder, all that it leaves behind)."""
    folder = tmp_path_factory.mktemp("whole")
    trainer, callback, lines = sft(model, folder)
    callbacks.train(trainer)
    return trainer, callback.table, lines, folder, callbacks.end_of(trainer)


def test_a_run_that_learns_its_solutions_by_heart_is_right_and_was_not_before(whole):
    trainer, ds, lines, folder, _ = whole
    assert read(folder / "ld").identical(ds)
    assert ds.step.values.tolist() == list(range(0, 41, 8))
    own = ds.sel(probe="chosen").isel(seed=0)
    accuracy, perplexity = own.accuracy.values, np.exp(-own.logp.values / own.n_tokens.values)
    assert accuracy[0].max() == 0
    assert accuracy[-1].mean() > 0.9
    assert (np.diff(perplexity, axis=0) < 0).all()
    copied = (perplexity <= 1.1).mean(1)
    assert (copied[0], copied[-1]) == (0, 1)
    premem = of_table(ds, threshold=1.1)[0, -1]
    by_hand = np.minimum((accuracy * (perplexity > 1.1)).max(0), accuracy[-1])
    np.testing.assert_array_equal(premem, by_hand)
    assert 0 < premem.mean() < accuracy[-1].mean() - 0.2
    rows = [row for row in trainer.state.log_history if "ld/premem" in row]
    assert [row["step"] for row in rows] == list(range(0, 41, 8))
    told = [rows[-1][f"ld/{name}"] for name in ("accuracy", "copied", "premem")]
    np.testing.assert_allclose(told, [accuracy[-1].mean(), 1.0, premem.mean()], rtol=1e-15)
    assert [row["ld/test_accuracy"] for row in rows] == ds.eval_accuracy.values[0].tolist()
    assert ds.eval_accuracy.values[0].max() > 0
    assert lines[-2] == sentence(ds)
    assert lines[-2].endswith("5 of 5 solutions copied; held-out prompts right " + lines[-2].split("right ")[-1])
    assert "answers not ended after" in lines[0]
    page = (folder / "ld" / "report.html").read_text()
    assert sentence(ds) in page
    assert "Right, and copied" in page


def test_a_saved_checkpoint_answers_as_the_policy_did_when_it_was_saved(model, whole):
    _, ds, _, folder, _ = whole
    loaded = checkpoints.load_model(str(folder / "out" / f"checkpoint-{SAVED}"))
    found = accuracies(loaded, model[1], sums(TAUGHT), SOLVED, step=SAVED)
    np.testing.assert_array_equal(found, ds.accuracy.sel(step=SAVED, probe="chosen").values[0])
    assert 0 < found.mean() < 1


def test_training_is_the_same_to_the_bit_with_and_without(model, whole, tmp_path):
    trainer, *_ = sft(model, tmp_path, solved=None)
    callbacks.train(trainer)
    assert len(whole[-1]["log"]) >= 4
    callbacks.assert_same(whole[-1], callbacks.end_of(trainer))


@pytest.mark.slow
@pytest.mark.parametrize("make", callbacks.CASES)
def test_training_of_every_kind_is_the_same_to_the_bit(data, tmp_path, make):
    with checkpoints.quiet():
        world, ends = callbacks.Start(data), []
        for solved in (Solved(lambda _, answer, __: len(answer) % 2, samples=2, max_new_tokens=8), None):
            transformers.set_seed(3)
            trainer = make(world, tmp_path / f"{solved is None}")
            if solved is not None:
                watched, _ = callbacks.watch(world, trainer, tmp_path / "ld", solved=solved)
            callbacks.train(trainer)
            ends.append(callbacks.end_of(trainer))
    callbacks.assert_same(*ends)
    accuracy = watched.table.accuracy.sel(probe="chosen")
    assert accuracy.shape == (1, trainer.state.max_steps + 1, callbacks.PROBED)
    assert len(np.unique(accuracy)) > 1


@forks
def test_killed_and_resumed_it_has_the_same_premem(model, whole, tmp_path):
    child = os.fork()
    if not child:  # pragma: no cover
        try:
            callbacks.train(sft(model, tmp_path, at=KILLED)[0])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert read(tmp_path / "ld").step.values.tolist() == [0, 8, 16, 24, 32]
    trainer, callback, lines = sft(model, tmp_path)
    with pytest.raises(
        BadInput, match=r"^solved: expected Solved\(right, \.\.\.\), got function; wrap your function so"
    ):
        LearningDynamicsCallback(trainer, sums(TAUGHT), every=EVERY, out=tmp_path / "other", solved=right)
    other = LearningDynamicsCallback(
        trainer, sums(TAUGHT), every=EVERY, out=tmp_path / "ld", solved=replace(SOLVED, threshold=1.3)
    )
    for mine, theirs in ((other, callback), (callback, other)):
        trainer.remove_callback(theirs)
        trainer.add_callback(mine)
        if mine is other:
            with pytest.raises(BadInput, match=r"config\.solved\.threshold = 1.3, was 1.1"):
                callbacks.train(trainer, resume_from_checkpoint=True)
    callbacks.train(trainer, resume_from_checkpoint=True)
    assert callback.table.identical(whole[1])
    assert lines[-2] == whole[2][-2]
    fresh = copying(callback.table.sel(step=slice(SAVED + 1, None)))
    assert fresh.premem[-1].mean() < copying(callback.table).premem[-1].mean(), "what was measured before counts"


# --- what is sampled ------------------------------------------------------------------------------------------------

PROMPTS = ("Once upon a time there", "Tim", "The big dog sat on the mat and said to the little")


def by_hand(model, ids, *, longest, ends, pick):
    """An answer token by token, from the logits of the whole text each time: no cache, no padding."""
    said = []
    while len(said) < longest and not (said and said[-1] in ends):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *said]])).logits[0, -1].double().numpy()
        said.append(pick(logits, len(said)))
    return tuple(said)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_are_those_found_by_hand_whatever_stands_beside_them(model, temperature):
    loaded, tokenizer = model
    asked = [tuple(tokenizer(text)["input_ids"]) for text in PROMPTS]
    ends = [2, tokenizer(" the")["input_ids"][-1]]  # an ordinary token, so that an answer ends before the last place

    def picker(ids, k):
        def pick(logits, t):
            if temperature == 0:
                return int(logits.argmax())
            u = (draws(7, "answer", 40, k, " ".join(map(str, ids)), count=t + 1)[t] >> 11) / 2**53
            pi = np.exp((logits - logits.max()) / temperature)
            return int(np.argmax(np.cumsum(pi) / pi.sum() > u))

        return pick

    how = {"longest": 14, "ends": ends, "temperature": temperature, "seed": 7, "step": 40}
    found = answers(loaded, asked, samples=2, batch_size=4, **how)
    for ids, mine in zip(asked, found, strict=True):
        expected = [by_hand(loaded, ids, longest=14, ends=ends, pick=picker(ids, k)) for k in range(2)]
        assert mine == expected
        assert answers(loaded, [ids], samples=2, batch_size=1, **how) == [expected]
    assert {len(ids) for mine in found for ids in mine} > {14}, "some end early, some do not"
    if temperature:
        assert found[0][0] != found[0][1]
        assert answers(loaded, asked, samples=2, **(how | {"step": 41})) != found
        assert answers(loaded, asked, samples=2, **(how | {"seed": 8})) != found


def test_first_tokens_are_as_frequent_as_the_policy_has_them(model):
    loaded, tokenizer = model
    ids, n = tuple(tokenizer(PROMPTS[0])["input_ids"]), 2000
    found = np.array(answers(loaded, [ids], longest=1, ends=[], samples=n, temperature=1.0, batch_size=500)[0])[:, 0]
    with torch.no_grad():
        pi = loaded(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()
    off = np.abs(np.bincount(found, minlength=len(pi)) / n - pi)
    assert (off <= 5 * np.sqrt(pi * (1 - pi) / n) + 5 / n).all()  # five standard deviations, and five counts
    assert len(set(found.tolist())) > 10


def test_sampling_leaves_a_model_as_it_was_and_its_settings_out(model):
    loaded, tokenizer = model
    ids = [tuple(tokenizer(text)["input_ids"]) for text in PROMPTS]
    plain = answers(loaded, ids, longest=8, ends=[2], samples=2)
    own = transformers.GenerationConfig(top_k=1, repetition_penalty=9.0, do_sample=True, eos_token_id=plain[0][0][3])
    before, loaded.generation_config = loaded.generation_config, own
    state = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    loaded.train()
    loaded.model.norm.eval()
    attention = loaded.model.layers[0].self_attn
    attention.attention_dropout = 0.5
    try:
        found = answers(loaded, ids, longest=8, ends=[2], samples=2)
        assert loaded.training
        assert not loaded.model.norm.training
        assert loaded.generation_config is own
    finally:
        attention.attention_dropout = 0.0
        loaded.generation_config = before
        loaded.eval()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.random.get_state()[1].tolist() == state[1]  # noqa: NPY002
    assert random.getstate() == state[2]
    end = own.eos_token_id
    cut = [[ids[: ids.index(end) + 1] if end in ids else ids for ids in mine] for mine in plain]
    assert found == cut, "its end token counts, its penalties do not"


def test_messages_go_through_the_chat_template_and_the_checker_sees_texts(model):
    loaded, _ = model
    chat = transformers.AutoTokenizer.from_pretrained(loaded.name_or_path)
    chat.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<unk>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    asked = ({"role": "user", "content": "2 + 2?"},)
    probes = ProbeSet(("a", "b"), ("2 + 2?",) * 2, {"chosen": ("It is 4", None)}, messages=(asked, asked))
    (one,) = questions(chat, probes)
    text = chat.decode(one.ids)
    assert (text.count("user: 2 + 2?"), text.rstrip().endswith("assistant:"), one.end) == (1, True, chat.unk_token_id)
    heard = []
    how = {"samples": 2, "max_new_tokens": 5}
    found = accuracies(loaded, chat, probes, Solved(lambda *given: heard.append(given) or 0.25, **how))
    np.testing.assert_array_equal(found, [0.25, np.nan])
    assert heard[0] == ([{"role": "user", "content": "2 + 2?"}], "It is 4", "It is 4")
    assert 2 <= len(heard) <= 3
    assert all("user" not in answer and "<" not in answer for _, answer, _ in heard)
    exam = Exam(chat, probes, Solved(lambda *_: True, **how), room=None)
    assert exam.ends == sorted([chat.unk_token_id, chat.eos_token_id])


def test_every_prompt_has_the_mean_of_its_own_marks(model):
    loaded, tokenizer = model
    probes = ProbeSet(tuple("abc"), PROMPTS, {"chosen": (" was", None, " cat")})

    def mark(prompt, answer, solution):
        return 1.0 / (1 + PROMPTS.index(prompt) + len(answer))

    found = accuracies(loaded, tokenizer, probes, Solved(mark, max_new_tokens=6, batch_size=3, samples=8), step=5)
    how = {"longest": 6, "ends": [2], "samples": 8, "temperature": 0.8, "step": 5}
    for prompt, mean in zip(PROMPTS, found, strict=True):
        ids = tuple(tokenizer(prompt)["input_ids"])
        texts = [tokenizer.decode([*ids, *said], skip_special_tokens=True) for said in answers(loaded, [ids], **how)[0]]
        by_hand = np.nan if prompt == PROMPTS[1] else np.mean([mark(prompt, t[len(prompt) :], "") for t in texts])
        np.testing.assert_allclose(mean, by_hand, rtol=1e-15)
        assert len(set(texts)) < len(texts) or prompt != PROMPTS[0], "equal answers are counted as often as they come"


def test_the_text_of_an_answer_keeps_what_stands_behind_the_prompt(model):
    loaded, tokenizer = model
    heard = []
    probes = ProbeSet(("a",), (PROMPTS[0],), {"chosen": (" was a cat",)})
    accuracies(loaded, tokenizer, probes, Solved(lambda *given: not heard.append(given), temperature=0.0))
    ids = tokenizer(PROMPTS[0])["input_ids"]
    said = answers(loaded, [tuple(ids)], longest=8, ends=[2], temperature=0.0)[0][0]
    assert heard[-1][1].startswith(" was a ")
    assert tokenizer.decode([*ids, *said], skip_special_tokens=True).startswith(PROMPTS[0] + heard[-1][1][:8])


# --- bad input ------------------------------------------------------------------------------------------------------

OPTIONS = [
    ({"right": 3}, r"^right: expected a function \(prompt, answer, solution\) → bool, got 3"),
    ({"samples": 0}, "^samples: expected a whole number of at least 1, got 0"),
    ({"samples": 2.0}, "^samples: expected a whole number"),
    ({"max_new_tokens": 0}, "^max_new_tokens: expected a whole number of at least 1, got 0"),
    ({"batch_size": 0}, "^batch_size: expected"),
    ({"temperature": -1.0}, "^temperature: expected a finite number of at least 0, got -1.0"),
    ({"temperature": float("nan")}, "^temperature: expected"),
    ({"threshold": 1.0}, "^threshold: expected a perplexity above 1, got 1.0"),
    ({"held_out": [{"prompt": "1 + 1"}]}, "^held_out: expected a ProbeSet, got list"),
]


@pytest.mark.parametrize(("options", "match"), OPTIONS)
def test_options_out_of_range_are_one_line(options, match):
    with pytest.raises(BadInput, match=match) as it:
        Solved(**({"right": right} | options))
    assert "\n" not in str(it.value)


def fails(prompt, answer, solution):
    """Fails on all but solutions."""
    if answer != solution:
        raise KeyError("no number\nin it")
    return True


CHECKERS = [
    (lambda *_: None, "^right: expected True, False or a share from 0 to 1 for prompt 12 and 25 .*, got None"),
    (lambda *_: 2, "^right: expected True, False or a share .*, got 2"),
    (lambda *_: float("nan"), "^right: expected True, False or a share .*, got nan"),
    (lambda *_: "yes", "^right: expected True, False or a share .*, got 'yes'"),
    (lambda *_: False, "^right: expected a checker that finds solutions right, got wrong for all 5 of them"),
    (lambda prompt: True, "^right: expected a verdict for prompt 12 and 25 .*, got TypeError"),
    (
        fails,
        "^right: expected a verdict for prompt 12 and 25 and the answer .*, got KeyError .*; it is called as right",
    ),
]


@pytest.mark.parametrize(("checker", "match"), CHECKERS)
def test_a_checker_that_fails_names_the_prompt(model, checker, match):
    with pytest.raises(BadInput, match=match) as it:
        accuracies(*model, sums(TAUGHT), Solved(checker, max_new_tokens=2))
    assert "\n" not in str(it.value)


def test_prompts_without_room_or_solution_and_models_that_cannot_answer_are_refused(model):
    loaded, tokenizer = model
    with pytest.raises(BadInput, match=r"expected room for 510 tokens .*, got prompt 12 and 25 of \d+ tokens and 512 "):
        accuracies(loaded, tokenizer, sums(TAUGHT), Solved(right, max_new_tokens=510))
    with pytest.raises(BadInput, match=r"^prompt 0: expected room for an answer of 511 tokens"):
        answers(loaded, [(1, 5)], longest=511, ends=[2])
    none = ProbeSet(("a",), ("x",), {"chosen": (None,), "rejected": ("y",)})
    with pytest.raises(BadInput, match=r"^expected probes with a worked solution each as kind 'chosen', got none"):
        accuracies(loaded, tokenizer, none, Solved(right))
    with pytest.raises(BadInput, match=r"^expected a causal language model that generates, got Linear"):
        accuracies(torch.nn.Linear(2, 2), tokenizer, sums(TAUGHT), Solved(right))


def test_some_wrong_solutions_are_told_and_other_questions_refused(model):
    exam = Exam(model[1], sums(TAUGHT), Solved(lambda _, answer, __: "37" not in answer), room=None)
    assert exam.note == "right finds 1 of 5 solutions wrong, the solution of prompt 12 and 25 for one"
    asked = {"answers": json.loads(json.dumps(SOLVED.told))}
    kept = trajectory({"loss": [[1.0]]}, step=[8], probe=["chosen"], attrs=asked)
    check_kept(SOLVED, [kept])
    for mine, ds in ((None, kept), (Solved(right), kept), (SOLVED, kept.drop_attrs().assign_attrs())):
        with pytest.raises(BadInput, match=r"^solved: expected that of the evaluation at step 8"):
            check_kept(mine, [ds])


# --- what is said of it ---------------------------------------------------------------------------------------------


def table(accuracy, logp, **attrs):
    """One probe of responses of ten tokens."""
    told = {"accuracy": np.array(accuracy)[None, :, None], "logp": np.array(logp)[None, :, None]}
    told["n_tokens"] = np.full((1, 1, len(accuracy[0])), 10.0)
    return trajectory(told, step=range(len(accuracy)), probe=["chosen"], example=list("abcd")[: len(accuracy[0])],
                      attrs=attrs)  # fmt: skip


def test_examples_and_evaluations_that_were_not_asked_are_left_out():
    nan = np.nan
    ds = table([[0.5, 0.2, nan], [nan] * 3, [1.0, 0.8, nan]], [[-9.0, -9, -9], [-5, -5, -5], [-0.1, -5, -5]])
    assert copying(ds) is None
    assert sentence(ds) == ""
    found = copying(ds.assign_attrs(premem_threshold=1.1))
    assert found.step.tolist() == [0, 2]
    np.testing.assert_array_equal(found.premem[-1], [0.5, 0.8])
    np.testing.assert_array_equal(found.copied, [[0, 0], [1, 0]])
    assert found.held_out is None
    assert sentence(ds.assign_attrs(premem_threshold=1.1)).endswith("1.1); 1 of 2 solutions copied")
    low, high = found.intervals()["premem"]
    assert low[-1] < 0.65 < high[-1]


@pytest.mark.parametrize("name", ["llm.answers", "llm.questions", "llm.solved", "report.copying"])
def test_examples_in_docstrings(name):
    failed, tried = doctest.testmod(importlib.import_module(f"toyld.{name}"))
    assert failed == 0
    assert tried
