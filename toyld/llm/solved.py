"""Whether a policy solves the prompts that it trains on, by answers of its own: what pre-memorisation accuracy needs.

    solved = Solved(right, samples=4, held_out=test_probes)
    trainer.add_callback(LearningDynamicsCallback(trainer, probes, every=50, out="run/ld", solved=solved))

where probes are prompts that the run trains on and their solutions, `ProbeSet(names, prompts, {"chosen": solutions})`,
and right(prompt, answer, solution) says whether an answer is right: True or False, or a share from 0 to 1. It knows
what counts, the last number for one. Answers and solutions are texts; prompts too, or messages where the probes have
them.

    accuracy     of a prompt: mean of `right` over its sampled answers (`toyld.llm.answers`)
    perplexity   of its solution: exp(−log π / tokens), its end token among them; copied where ≤ threshold
    PreMem       `toyld.premem`: the best accuracy before copying, at most the accuracy now

An evaluation samples `samples` answers to every prompt, which costs more than scoring: answers are written token by
token. The accuracy of few samples is a rough number, and PreMem a maximum of such numbers, so that it lies too high.
Answers colder than temperature 1, at which perplexity is measured, repeat a solution before it counts as copied: then
PreMem lies too high again. Prompts that read alike get the same answers.

The threshold has to lie below the perplexity of one who understands, W^{1/T} where W solutions of T tokens are equally
good (chapter 12): solutions of one right form, or of a few tokens, tell nothing, for to understand them is to give
them. With held-out solutions at hand see how perplexed the policy is at those.
Tables have the accuracy of every prompt; of held-out prompts they have the mean and its standard error.

Tried were full and LoRA training on a CPU, in one process and in two, and parameters sharded by torch's own FSDP. **Not
run**: accelerators, Accelerate's FSDP, DeepSpeed ZeRO, quantised models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from toyld import premem
from toyld.checked import BadInput
from toyld.llm import policy
from toyld.llm.answers import Ids, answers
from toyld.llm.checkpoints import positions
from toyld.llm.questions import Question, questions
from toyld.probes import ProbeSet

__all__ = ["Exam", "Solved", "accuracies", "check_kept"]

Floats = NDArray[np.float64]
LONGER = 1.5  # answers may be longer than the longest solution


@dataclass(frozen=True)
class Solved:
    """How prompts are answered and answers judged.

    right: (prompt, answer, solution) → True, False or a share from 0 to 1; whether it finds the solutions themselves
    right is tried before training. samples: answers a prompt. temperature: 0 is the likeliest token each time, and one
    answer. max_new_tokens: of an answer; by default one and a half times the longest solution's. threshold: a solution
    of this perplexity, above 1, or less counts as copied; how to choose it: see the module. seed: names the random
    numbers, with step and prompt. batch_size: answers written at a time. held_out: prompts that are not trained on,
    with their solutions as "chosen"; their accuracy is what PreMem is to tell.

    Raises:
        BadInput: options outside these ranges.
    """

    right: Callable[[Any, str, str], bool | float]
    samples: int = 4
    temperature: float = 0.8
    max_new_tokens: int | None = None
    threshold: float = 1.1
    seed: int = 0
    batch_size: int = 32
    held_out: ProbeSet | None = None

    def __post_init__(self) -> None:
        if not callable(self.right):
            raise BadInput(f"right: expected a function (prompt, answer, solution) → bool, got {self.right!r}")
        for name in ("samples", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (name == "max_new_tokens" and value is None):
                raise BadInput(f"{name}: expected a whole number of at least 1, got {value!r}")
        if self.held_out is not None and not isinstance(self.held_out, ProbeSet):
            raise BadInput(
                f"held_out: expected a ProbeSet, got {type(self.held_out).__name__}; make one of the prompts"
            )
        if not 0 <= self.temperature < math.inf:
            raise BadInput(f"temperature: expected a finite number of at least 0, got {self.temperature!r}")
        premem.copied(1.0, threshold=self.threshold)

    @property
    def told(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON; a function has no name that two runs share."""
        names = ("samples", "temperature", "max_new_tokens", "threshold", "seed")
        held = None if self.held_out is None else self.held_out.sha256[:16]
        return {name: getattr(self, name) for name in names} | {"held_out": held}


class Exam:
    """The prompts of a run as questions, tokenised and tried once: `Solved` for these probes and this model's room.

    Raises:
        BadInput: no solutions, or none that is found right; no room for an answer; a checker that fails.
    """

    def __init__(self, tokenizer: Any, probes: ProbeSet, solved: Solved, /, *, room: int | None) -> None:
        self.tokenizer, self.solved = tokenizer, solved
        self.row = {example: i for i, example in enumerate(probes.ids)}
        self.asked = questions(tokenizer, probes)
        self.held_out = [] if solved.held_out is None else questions(tokenizer, solved.held_out)
        both = [*self.asked, *self.held_out]
        ends: set[Any] = {getattr(tokenizer, "eos_token_id", None), *(one.end for one in both)}
        self.ends = sorted(ends - {None})
        self.longest = solved.max_new_tokens or math.ceil(LONGER * (1 + max(one.tokens for one in both)))
        self.unended = ""  # of the last answers, those that were cut, in words
        for one in both:
            if room is not None and len(one.ids) + self.longest > room:
                msg = f"max_new_tokens: expected room for {self.longest} tokens behind every prompt, got prompt "
                msg += f"{one.example} of {len(one.ids)} tokens and {room} positions; "
                raise BadInput(msg + "lower max_new_tokens, or leave the prompt out")
        wrong = [one.example for one in both if not _judged(solved, one, one.solution)]
        if len(wrong) == len(both):
            msg = f"right: expected a checker that finds solutions right, got wrong for all {len(both)} of them, "
            raise BadInput(msg + f"{both[0].solution!r:.80} for one; it is called as right(prompt, answer, solution)")
        some = f"the solution of prompt {wrong[0]} for one" if wrong else ""
        self.note = f"right finds {len(wrong)} of {len(both)} solutions wrong, {some}" if wrong else ""

    def answered(self, model: Any, asked: Sequence[Question], /, *, step: int, together: bool = False) -> Any:
        """(accuracy of each question, how many answers were cut)."""
        solved = self.solved
        said = answers(
            model, [one.ids for one in asked], longest=self.longest, ends=self.ends, samples=solved.samples,
            temperature=solved.temperature, seed=solved.seed, step=step, batch_size=solved.batch_size,
            together=together,
        )  # fmt: skip
        cut = sum(len(ids) == self.longest and ids[-1] not in self.ends for mine in said for ids in mine)
        # Judged when all are written: where parameters are sharded, a checker that fails must keep nobody waiting.
        marks = []
        for one, mine in zip(asked, said, strict=True):
            known = {ids: _judged(solved, one, _text(self.tokenizer, one, ids)) for ids in dict.fromkeys(mine)}
            marks.append(float(np.mean([known[ids] for ids in mine])))
        return np.array(marks), cut

    @property
    def attrs(self) -> dict[str, Any]:
        """What a table says of them."""
        return {"premem_threshold": float(self.solved.threshold), "answers": self.solved.told}

    def measure(self, trainer: Any, /, *, step: int, kinds: Sequence[str]) -> dict[str, Any]:
        """Variables of one evaluation for a table: accuracy, NaN but for "chosen", and that of held-out prompts.

        Prompts are dealt to the processes in turn; where parameters are sharded every process answers all.
        """
        every = [*self.asked, *self.held_out]
        spread = policy.sharded(trainer)
        model = trainer.model_wrapped if spread else policy.bare(trainer)
        many, mine = trainer.accelerator.num_processes, trainer.accelerator.process_index
        deal = 1 if spread else many
        rows = list(range(mine % deal, len(every), deal))

        def part() -> Any:
            if not rows:
                return rows, (np.zeros(0), 0)
            return rows, self.answered(model, [every[i] for i in rows], step=step, together=spread and many > 1)

        marks, cut = np.zeros(len(every)), 0
        for theirs, (found, unended) in policy.everywhere(trainer, part)[:deal]:
            marks[theirs] = found
            cut += unended
        total = len(every) * self.solved.samples
        self.unended = f"{cut} of {total} answers not ended after {self.longest} tokens" if cut else ""
        accuracy = np.full((1, 1, len(kinds), len(self.row)), np.nan)
        accuracy[0, 0, list(kinds).index("chosen")] = self._spread(marks[: len(self.asked)])
        held = marks[len(self.asked) :]
        if not len(held):
            return {"accuracy": accuracy}
        error = float(held.std(ddof=1) / len(held) ** 0.5) if len(held) > 1 else math.nan
        return {"accuracy": accuracy, "eval_accuracy": [[held.mean()]], "eval_accuracy_error": [[error]]}

    def _spread(self, marks: Floats) -> Floats:
        out = np.full(len(self.row), np.nan)
        out[[self.row[one.example] for one in self.asked]] = marks
        return out


def check_kept(solved: Solved | None, tables: Iterable[xr.Dataset], /) -> None:
    """BadInput unless evaluations made before were asked the same: PreMem looks at all of them."""
    mine = None if solved is None else solved.told
    for ds in tables:
        was = json.loads(ds.attrs.get("answers", "null"))
        if was != mine:
            msg = f"solved: expected that of the evaluation at step {ds.step.values[0]}, {was}, got {mine}; "
            raise BadInput(msg + "begin in another folder")


def accuracies(model: Any, tokenizer: Any, probes: ProbeSet, solved: Solved, /, *, step: int = 0) -> Floats:
    """Accuracy of a model's own answers to every prompt of the probes, (examples,); NaN where there is no solution.

    For saved checkpoints, with the scores that `toyld probe` wrote of the same probes (see `toyld.trajectory.read` and
    `toyld.premem`):

        table = read("run")
        accuracy = np.stack([accuracies(model, tokenizer, probes, solved, step=step) for model, step in checkpoints])
        pre_memorisation(accuracy, perplexities(table)[0], threshold=solved.threshold)[-1].mean()

    Raises:
        BadInput: as `Exam` and `toyld.llm.answers`.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=128, max_position_embeddings=32, **size))
    >>> class Letters:
    ...     eos_token_id = 0
    ...     def __call__(self, text, add_special_tokens=True):
    ...         return {"input_ids": [ord(c) for c in text]}
    ...     def decode(self, ids, skip_special_tokens):
    ...         return "".join(chr(i) for i in ids)
    >>> probes = ProbeSet(("sum",), ("1 + 1",), {"chosen": (" = 2",)})
    >>> some = Solved(lambda prompt, answer, solution: answer != "", samples=2)
    >>> accuracies(model, Letters(), probes, some)
    array([1.])
    """
    exam = Exam(tokenizer, probes, solved, room=positions(getattr(model, "config", None)))
    marks, _ = exam.answered(model, exam.asked, step=step)
    return exam._spread(marks)


def _text(tokenizer: Any, question: Question, said: Ids) -> str:
    """An answer as text: some tokenizers drop the space before the first token that they decode."""
    ids = (list(question.ids), [*question.ids, *said], list(said))
    given, whole, alone = (str(tokenizer.decode(each, skip_special_tokens=True)) for each in ids)
    return whole[len(given) :] if whole.startswith(given) else alone


def _judged(solved: Solved, question: Question, answer: str) -> float:
    where = f"for prompt {question.example} and the answer {answer!r:.80}"
    try:
        value = solved.right(question.prompt, answer, question.solution)
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0][:160]
        msg = f"right: expected a verdict {where}, got {type(error).__name__} {words}; "
        raise BadInput(
            msg + "it is called as right(prompt, answer, solution) and returns False for what it cannot read"
        ) from error
    if isinstance(value, bool | np.bool_ | Real) and 0 <= float(value) <= 1:
        return float(value)
    raise BadInput(f"right: expected True, False or a share from 0 to 1 {where}, got {value!r:.60}; correct it")
