"""Log-probabilities of many responses to one prompt by `toyld.llm.score`, beside one forward a response and one batch.

    python benchmarks/scoring.py [--size smoke|paper]

The same six numbers a token (log π of the label and of the argmax, entropy, largest probability, ‖π‖², ‖π − e‖)
three ways: ours; "released", a forward for each response alone with float32 logits of every position, log_softmax,
softmax and one_hot of them all, as the released code of the paper has it; "padded", all responses in one batch and the
same formulas. Prints one JSON line per comparison (keys: README.md beside this file) on standard output and a table on
standard error. Exits 1 when results disagree, or any of our numbers is off a float64 model's; a missed target is only
marked. One thread, CPU time, contestants interleaved, medians.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL"):  # read when numpy is imported
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler, which is asked about memory, says when it starts

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from contexts import name_of, seconds  # noqa: E402
from softmax import Effort, Result  # noqa: E402

from toyld.llm.encode import Encoded  # noqa: E402
from toyld.llm.score import score_tokens  # noqa: E402

TOLERANCE = 1e-5  # a token: nats, or of a probability
FASTER, SMALLER = 7.0, 20.0  # than the released way: the targets
CONFIGS = {"GPT-NeoX": ("GPTNeoXConfig", 50_304), "Qwen2": ("Qwen2Config", 50_257)}
Floats = list[np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Size:
    """A model of V classes (0: its usual 50 thousand), width d and L layers; n responses of T tokens behind C."""

    classes: int
    width: int
    depth: int
    heads: int
    context: int
    responses: int
    tokens: int

    def make(self, kind: str) -> tuple[Any, list[Encoded]]:
        """A random model whose probabilities are not all alike, and random tokens."""
        torch.manual_seed(0)
        name, usual = CONFIGS[kind]
        sizes = {"hidden_size": self.width, "num_hidden_layers": self.depth, "num_attention_heads": self.heads}
        grouped = {"num_key_value_heads": self.heads // 2} if kind == "Qwen2" else {}
        config = getattr(transformers, name)(
            vocab_size=self.classes or usual,
            intermediate_size=4 * self.width,
            max_position_embeddings=self.context + self.tokens,
            bos_token_id=1,
            eos_token_id=2,
            **sizes,
            **grouped,
        )
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(10.0)
        draw = np.random.default_rng(0)
        prompt = draw.integers(0, config.vocab_size, self.context).tolist()
        answers = draw.integers(0, config.vocab_size, (self.responses, self.tokens)).tolist()
        return model, [Encoded((*prompt, *answer), self.context) for answer in answers]


def ours(model: Any, given: list[Encoded]) -> Floats:
    return score_tokens(model, given, batch_size=len(given)).numbers


def released(model: Any, given: list[Encoded]) -> Floats:
    """One response after another, and of each every position."""
    return [_everything(model, torch.tensor([item.ids]), [item])[0] for item in given]


def padded(model: Any, given: list[Encoded]) -> Floats:
    """All responses as one batch; they are of one length here, so that nothing is padded in fact."""
    return _everything(model, torch.tensor([item.ids for item in given]), given)


@torch.no_grad()
def exactly(model: Any, given: list[Encoded]) -> Floats:
    """The numbers of a float64 copy of the model: no contestant, but who says which of two contestants is off."""
    model, found = copy.deepcopy(model).double(), []
    for item in given:
        hidden = model.base_model(input_ids=torch.tensor([item.ids])).last_hidden_state[0, item.start - 1 : -1]
        log_pi = model.get_output_embeddings()(hidden).log_softmax(-1)
        labels, pi = torch.tensor(item.ids[item.start :]), log_pi.exp()
        label = log_pi.gather(1, labels[:, None])[:, 0]
        entropy, norm2, top = -(pi * log_pi).sum(1), pi.square().sum(1), log_pi.amax(1)
        off = pi.scatter_add(1, labels[:, None], -torch.ones_like(label)[:, None]).norm(dim=1)
        found.append(torch.stack([label, top, entropy, top.exp(), norm2, off]).numpy())
    return found


def differ(a: Floats, b: Floats) -> float:
    """The largest difference of any of the six numbers of any token, relative to the number where it is above 1."""
    return max(float((abs(x - y) / np.maximum(1.0, abs(y))).max()) for x, y in zip(a, b, strict=True))


@torch.no_grad()
def _everything(model: Any, ids: torch.Tensor, given: list[Encoded]) -> Floats:
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()[:, :-1]
    labels = ids[:, 1:]
    log_pi, pi = logits.log_softmax(-1), logits.softmax(-1)
    e = torch.nn.functional.one_hot(labels, logits.shape[-1])
    label = log_pi.gather(-1, labels[..., None])[..., 0]
    entropy, norm2 = -(pi * log_pi).sum(-1), pi.square().sum(-1)
    numbers = torch.stack([label, log_pi.amax(-1), entropy, pi.amax(-1), norm2, (pi - e).norm(dim=-1)], 1)
    return [row[:, item.start - 1 :].numpy() for row, item in zip(numbers, given, strict=True)]


def peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that torch's allocator held at once for a call, above what it held before; what it returned.

    From the profiler's record of every allocation: operators' own scratch memory counts, that of libraries below torch
    and the memory of Python do not.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiled:
        returned = call()
    events = profiled.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(np.cumsum([size for _, size in moves]).tolist(), default=0), returned


def compare(kind: str, size: Size, how: Effort) -> Iterator[Result]:
    """Ours beside both others on one model."""
    model, given = size.make(kind)
    ways = {"ours": ours, "released": released, "padded": padded}
    ours(model, given)  # the check whether the model can share a prompt is made once for a model
    bytes_, found = {}, {}
    for name, way in ways.items():
        bytes_[name], found[name] = peak(lambda way=way: way(model, given))
    exact = exactly(model, given)
    took = seconds({name: lambda way=way: way(model, given) for name, way in ways.items()}, how, "cpu")
    where = name_of("cpu"), torch.get_num_threads(), how.repeats
    tokens = f"{size.context}+{size.responses}x{size.tokens}"
    text = f"{kind} V={model.config.vocab_size} d={size.width} L={size.depth} {tokens}"
    for name in ("released", "padded"):
        agree = differ(found["ours"], found[name])
        extra = {"off_float64": differ(found["ours"], exact), "off_float64_theirs": differ(found[name], exact)}
        extra |= {"ms": 1e3 * took["ours"], "ms_theirs": 1e3 * took[name]}
        extra |= {"peak_bytes": bytes_["ours"], "peak_bytes_theirs": bytes_[name]}
        extra |= {"memory_ratio": bytes_[name] / bytes_["ours"]}
        target = FASTER if name == "released" and not size.classes else 0.0
        yield Result("score", name, text, took[name] / took["ours"], target, agree, TOLERANCE, *where, extra)


def comparisons(size: str) -> Iterator[Result]:
    """All comparisons of a size, one at a time."""
    torch.set_num_threads(1)
    how = Effort(1, 0.0) if size == "smoke" else Effort(3, 0.0)
    shape = Size(300, 32, 2, 4, 16, 4, 8) if size == "smoke" else Size(0, 256, 6, 4, 128, 12, 64)
    for kind in CONFIGS:
        yield from compare(kind, shape, how)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and return 1 if any results disagree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["smoke", "paper"], default="paper")
    given, wrong = parser.parse_args(arguments), 0
    for done in comparisons(given.size):
        print(done.line(), flush=True)
        bad = not max(done.agree, done.extra["off_float64"]) <= done.tolerance  # also for nan
        wrong += bad
        reached = done.ratio >= done.target and done.extra["memory_ratio"] >= SMALLER
        verdict = "no target" if not done.target else "reached" if reached else "missed"
        verdict = "RESULTS DISAGREE" if bad else verdict
        name, memory = f"{done.benchmark}/{done.against}", f"memory 1/{done.extra['memory_ratio']:.0f}"
        print(
            f"{name:16} {done.size:42} {done.ratio:6.2f} × target {done.target:g}, {memory}: {verdict}", file=sys.stderr
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
