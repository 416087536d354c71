"""A real DPOTrainer with `LearningDynamicsCallback` and without: what probing adds, beside the least that it can add.

    python benchmarks/callback.py [--size smoke|paper] [--device cpu|cuda]

The floor is arithmetic: every token of every probe goes forward once an evaluation, and a token of training costs three
forwards in the policy (one forward, one backward) and one in the reference. `ratio` is that floor over what the
callback added (1.3 times the floor is aimed at, a ratio of 0.77; sharing prompts can beat the floor), `agree` the
largest difference of the trained weights, which must be 0. Prints one JSON line per comparison (keys: README.md beside
this file) on standard output and a table on standard error. Exits 1 where weights differ. One thread; CPU time, on an
accelerator wall time.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL"):  # read when numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from softmax import Result  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

from toyld.llm import LearningDynamicsCallback, ProbeSet, callback, policy  # noqa: E402

TARGET = 1 / 1.3
EXTRA = ("other_prompt", "permuted", "random", "truncated")


@dataclass(frozen=True)
class Size:
    """A Llama of `layers` × `width`; pairs of `prompt` + `response` tokens; `probes` examples at `evaluations`."""

    vocabulary: int
    width: int
    layers: int
    prompt: int
    response: int
    batch: int
    steps: int
    every: int
    probes: int
    repeats: int

    def __str__(self) -> str:
        tokens = f"{self.prompt}+{self.response} tokens"
        return (
            f"V={self.vocabulary:,} d={self.width} L={self.layers} {tokens}, {self.steps} updates of {self.batch} pairs"
            f", {self.probes} prompts every {self.every}"
        )


SIZES = {
    "smoke": [Size(256, 32, 1, 8, 8, 2, 4, 2, 4, 1)],
    "paper": [Size(4096, 256, 6, 64, 32, 8, 12, 4, 16, 2), Size(4096, 256, 6, 64, 32, 8, 12, 12, 4, 2)],
}


def tokenizer(size: Size) -> Any:
    """A word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", "<pad>", *(f"w{i}" for i in range(size.vocabulary - 4))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def pairs(size: Size) -> list[dict[str, str]]:
    """Prompts and answers of random words, all of one length."""
    draw = random.Random(0)

    def text(n: int) -> str:
        return " ".join(f"w{draw.randrange(size.vocabulary - 4)}" for _ in range(n))

    many = size.batch * size.steps + size.probes
    return [
        {"prompt": text(size.prompt), "chosen": " " + text(size.response), "rejected": " " + text(size.response)}
        for _ in range(many)
    ]


def model(size: Size, device: str) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=3 * size.width,
        num_hidden_layers=size.layers, num_attention_heads=size.width // 32, max_position_embeddings=256,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).to(device)


class Clock:
    """Seconds of CPU, or of the wall where an accelerator works."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def train(size: Size, device: str, *, probed: bool) -> tuple[float, float, Any, Any]:
    """(seconds of train(), seconds of them in forwards of probes, trained model, callback or None)."""
    rows, words, clock, inside = pairs(size), tokenizer(size), Clock(device), 0.0
    with tempfile.TemporaryDirectory() as out:
        args = DPOConfig(
            output_dir=out, per_device_train_batch_size=size.batch, max_steps=size.steps, learning_rate=1e-4,
            bf16=device == "cuda", gradient_checkpointing=False, logging_steps=1, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=device == "cpu",
        )  # fmt: skip
        trainer = DPOTrainer(
            model=model(size, device), ref_model=model(size, device), args=args, processing_class=words,
            train_dataset=datasets.Dataset.from_list(rows[size.probes :]),
        )  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        watched, before = None, policy.score
        if probed:
            probes = ProbeSet.from_preference(rows[: size.probes], extra=EXTRA, seed=0)
            watched = LearningDynamicsCallback(
                trainer, probes, every=size.every, out=Path(out) / "ld", tell=lambda line: None
            )
            trainer.add_callback(watched)

        def timed(*given: Any, **options: Any) -> Any:
            nonlocal inside
            begin = clock()
            found = before(*given, **options)
            inside += clock() - begin
            return found

        callback.policy.score = timed
        try:
            begin = clock()
            trainer.train()
            return clock() - begin, inside, trainer.model, watched
        finally:
            callback.policy.score = before


def comparisons(size: str, device: str) -> Iterator[Result]:
    """Each size in turn: with and without, alternating."""
    for one in SIZES[size]:
        if size != "smoke":
            train(one, device, probed=True)  # compiles, fills caches, imports what draws the report
        plain, probed, forwards = [], [], []
        for _ in range(one.repeats):
            seconds, _, bare, _ = train(one, device, probed=False)
            plain.append(seconds)
            seconds, inside, same, watched = train(one, device, probed=True)
            probed.append(seconds)
            forwards.append(inside)
        overhead = (statistics.median(probed) - statistics.median(plain)) / statistics.median(plain)
        taught = 4.0 * one.steps * one.batch * 2 * (one.prompt + one.response + 1)
        evaluations = watched.table.sizes["step"]
        every = sum(len(item.ids) for item in watched._cells.items)
        prompts = {item.ids[: item.start] for item in watched._cells.items}
        shared = sum(map(len, prompts)) + sum(len(item.ids) - item.start for item in watched._cells.items)
        floor = evaluations * every / taught
        apart = max(
            float((a - b).detach().abs().max()) for a, b in zip(bare.parameters(), same.parameters(), strict=True)
        )
        spent = statistics.median(probed) - statistics.median(plain)
        extra = {
            "overhead": overhead, "floor": floor, "floor_shared": evaluations * shared / taught,
            "overhead_of_forwards": statistics.median(forwards) / statistics.median(plain),
            "seconds_without": statistics.median(plain), "seconds_an_evaluation": spent / evaluations,
        }  # fmt: skip
        ratio = floor / max(overhead, 1e-9)
        yield Result(
            "callback",
            "floor",
            str(one),
            ratio,
            TARGET,
            apart,
            0.0,
            device,
            torch.get_num_threads(),
            one.repeats,
            extra,
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="paper")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected an accelerator that torch sees, got none; leave --device out")
    wrong = 0
    for done in comparisons(given.size, given.device):
        print(done.line(), flush=True)
        bad = not done.agree <= done.tolerance  # also for nan
        wrong += bad
        verdict = "WEIGHTS DIFFER" if bad else "reached" if done.ratio >= done.target else "missed"
        more = f"adds {done.extra['overhead']:.1%}, floor {done.extra['floor']:.1%}"
        name = f"{done.benchmark}/{done.against}"
        print(
            f"{name:16} {done.size} {done.ratio:5.2f} × ({more}) target {done.target:.2f}: {verdict}", file=sys.stderr
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
