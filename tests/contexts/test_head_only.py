"""K1: head-only fine-tuning of a causal LM by torch autograd and torch.optim, against the closed form of its contexts.

The head is untied first: the embedding is copied and the copy trained. Everything else of the model stands still, so
that its last hidden states are fixed features, and 100 updates of gradient descent are 100 updates of Z ← Z − η S R(Z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from toyld import contexts, objectives
from toyld.checked import BadInput
from toyld.contexts import Optimizer

LARGEST = 1e-9  # nats: of |Δ log π| over all tokens, after 100 updates
BETA, STEPS = 0.1, 50
FORMS = ["kernel", "feature"]


class CausalLM(torch.nn.Module):
    """Embedding, one layer of causal attention, a tied linear head; float64."""

    def __init__(self, vocab: int = 30, width: int = 12, *, bias: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(vocab, width)
        self.place = torch.nn.Parameter(0.3 * torch.randn(40, width))
        self.layer = torch.nn.TransformerEncoderLayer(width, 3, 24, dropout=0.0, batch_first=True)
        self.head = torch.nn.Linear(width, vocab, bias=bias)
        self.head.weight = self.embedding.weight
        self.double()

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        return self.layer(self.embedding(ids) + self.place[:length], src_mask=causal)


def untied(head: torch.nn.Linear) -> torch.nn.Linear:
    """A copy of the head with weights of its own."""
    own = torch.nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, dtype=torch.float64)
    own.load_state_dict(head.state_dict())
    assert own.weight.data_ptr() != head.weight.data_ptr()
    return own


def sequences(rng: np.random.Generator, vocab: int, rows: int) -> dict[str, Any]:
    """Prompts of 5 tokens, one of them twice, ragged responses of up to 6; pairs that begin alike."""
    prompt = rng.integers(vocab, size=(rows, 5))
    prompt[1] = prompt[0]
    found = {}
    for kind in ("chosen", "rejected", "test"):
        asked = rng.integers(vocab, size=prompt.shape) if kind == "test" else prompt
        text = rng.integers(vocab, size=(rows, 6))
        if kind == "rejected":
            text[:, 0] = found["chosen"][0][:, 5]
        length = rng.integers(2, 7, (rows, 1))
        place = np.arange(11)[None]
        mask = (place >= 5) & (place < 5 + length)
        found[kind] = np.concatenate([asked, text], 1), mask
    return {kind: (torch.as_tensor(ids), torch.as_tensor(mask)) for kind, (ids, mask) in found.items()}


def log_probs(head: torch.nn.Linear, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log π of every token of the response, (P, L − 1), 0 elsewhere: the way it is written everywhere."""
    logp = F.log_softmax(head(hidden[:, :-1]), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return logp * mask[:, 1:]


def by_autograd(
    head: torch.nn.Linear, states: dict[str, Any], *, lr: tuple[float, float], order: Any, momentum: float
) -> dict[str, list[torch.Tensor]]:
    """SFT, then DPO against the policy at its start; kind → log π of all tokens after every stage."""
    found: dict[str, list[torch.Tensor]] = {kind: [] for kind in states}
    for stage, rate in zip(("sft", "dpo"), lr, strict=True):
        optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=momentum)
        with torch.no_grad():
            ref = {kind: log_probs(head, *one).sum(-1) for kind, one in states.items()}
        for step in range(STEPS):
            rows = slice(None) if order is None else torch.as_tensor(order[step])
            now = {k: log_probs(head, *(a[rows] for a in states[k])).sum(-1) for k in ("chosen", "rejected")}
            if stage == "sft":
                loss = -now["chosen"].mean()
            else:
                gap = now["chosen"] - ref["chosen"][rows] - now["rejected"] + ref["rejected"][rows]
                loss = -F.logsigmoid(BETA * gap).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for kind, one in states.items():
                found[kind].append(log_probs(head, *one))
    return found


def by_closed_form(
    head: torch.nn.Linear, states: dict[str, Any], *, lr: tuple[float, float], form: Any, order: Any, momentum: float
) -> tuple[dict[str, list[np.ndarray]], torch.Tensor]:
    """The same from the hidden states; and the change of the head's weights."""
    world = contexts.from_hidden(states, weight=head.weight, bias=head.bias)
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in states}
    state = None
    for name, rejected, rate in zip(("sft", "dpo"), (None, "rejected"), lr, strict=True):
        objective = objectives.get(name, **({"beta": BETA} if name == "dpo" else {}))
        optimizer = Optimizer("sgd", momentum=momentum)
        state = contexts.train(
            world, objective, lr=rate, steps=STEPS, state=state, rejected=rejected, order=order, form=form,
            optimizer=optimizer,
        ).state  # fmt: skip
        z = contexts.logits(world, state)
        for kind, r in world.responses.items():
            found[kind].append(contexts.measure.token_log_probs(z, r)[0].numpy())
    return found, contexts.head(world, state)[0]


def check_exact(head: torch.nn.Linear, states: dict[str, Any], form: Any, **how: Any) -> float:
    """Largest |Δ log π| of any token; asserts that it is rounding, and that there was something to be learnt."""
    ours, change = by_closed_form(head, states, form=form, **how)
    start = {name: value.detach().clone() for name, value in head.named_parameters()}
    with torch.no_grad():
        before = log_probs(head, *states["chosen"]).sum(-1)
    theirs = by_autograd(head, states, **how)
    worst, largest = 0.0, 0.0
    for kind, (_, _, mask) in states.items():
        for stage in range(2):
            values = [row[known] for row, known in zip(theirs[kind][stage], mask[:, 1:], strict=True)]
            for p, row in enumerate(values):
                worst = max(worst, float(np.abs(ours[kind][stage][p, : len(row)] - row.numpy()).max()))
                largest = max(largest, float(row.abs().max()))
    moved = float((theirs["chosen"][0].sum(-1) - before).mean())
    gap = [(theirs["chosen"][s] - theirs["rejected"][s]).sum(-1).mean() for s in range(2)]
    assert moved > 1.0, "SFT has learnt nothing"
    assert float(gap[1] - gap[0]) > 1.0, "DPO has learnt nothing"
    assert worst <= LARGEST, f"|Δ log π| = {worst:.1e}"
    moved_by = [(head.weight.detach() - start["weight"]).T]
    if head.bias is not None:
        moved_by.append((head.bias.detach() - start["bias"])[None])
    assert float((change - torch.cat(moved_by)).abs().max()) <= LARGEST
    print(f"largest |Δ log π| {worst:.1e} of log-probabilities up to {largest:.1f} nats")
    return worst


HOW = {
    "descent": {"order": None, "momentum": 0.0},
    "stochastic": {"order": np.random.default_rng(7).integers(6, size=(STEPS, 2)), "momentum": 0.0},
    "momentum": {"order": None, "momentum": 0.9},
    "stochastic-momentum": {"order": np.random.default_rng(8).integers(6, size=(STEPS, 3)), "momentum": 0.5},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("how", HOW)
def test_head_only_training_of_a_random_model_is_the_closed_form(how, bias, form):
    model = CausalLM(bias=bias)
    states = {}
    for kind, (ids, mask) in sequences(np.random.default_rng(3), 30, 6).items():
        with torch.no_grad():
            states[kind] = model.hidden(ids), ids, mask
    scale = 1.0 - HOW[how]["momentum"]
    assert check_exact(untied(model.head), states, form, lr=(0.02 * scale, 0.5 * scale), **HOW[how]) <= LARGEST


@pytest.mark.parametrize("form", FORMS)
def test_head_only_training_of_a_real_model_on_real_text_is_the_closed_form(data, form):
    transformers = pytest.importorskip("transformers", reason="needs the extra llm: pip install toyld[llm]")
    import json

    folder = data / "models/stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    head = model.get_output_embeddings()
    assert head.weight is model.get_input_embeddings().weight, "this model is tied"
    stories = json.loads((data / "preference/tinystories_1000.json").read_text())[:12]
    ids = torch.as_tensor([tokenizer(story)["input_ids"][:36] for story in stories])
    mask = torch.arange(36).expand(4, -1) >= 20
    kinds = {
        "chosen": ids[:4],
        "rejected": torch.cat([ids[:4, :20], ids[4:8, 20:]], 1),  # another story's continuation
        "test": ids[8:],
    }
    states = {}
    for kind, rows in kinds.items():
        with torch.no_grad():
            states[kind] = model.model(rows).last_hidden_state, rows, mask
        # What is trained below is the model's own head: the same log-probabilities as its forward pass has.
        with torch.no_grad():
            logp = F.log_softmax(model(rows).logits[:, :-1], -1).gather(-1, rows[:, 1:, None])[..., 0]
        assert torch.allclose(logp * mask[:, 1:], log_probs(head, *states[kind]), atol=1e-12)
    how = HOW["descent"]
    assert check_exact(untied(head), states, form, lr=(0.02, 0.3), **how) <= LARGEST


def test_the_contexts_of_a_model_are_its_distinct_prefixes():
    """A shared prompt, a shared first token and a repeated sequence are trained once each, with all their labels."""
    hidden, ids = np.random.default_rng(0).normal(size=(3, 4, 2)), np.array([[1, 2, 3, 4], [1, 2, 5, 4], [1, 2, 3, 4]])
    hidden[1:, :2], hidden[2] = hidden[0, :2], hidden[0]
    world = contexts.from_hidden({"test": (hidden, ids), "chosen": (hidden[:2], ids[:2])}, weight=np.ones((6, 2)))
    assert world.responses["chosen"].context.tolist() == [[[0, 1, 2], [0, 1, 3]]]
    assert world.responses["test"].context.tolist() == [[[0, 1, 2], [0, 1, 3], [0, 1, 2]]]
    assert (world.trained, world.size) == (4, (1, 4, 6))
    assert np.array_equal(world.kernel.features[0], [hidden[0, 0], hidden[0, 1], hidden[0, 2], hidden[1, 2]])


def test_what_does_not_fit_is_one_clear_line():
    hidden, ids = np.zeros((2, 4, 3)), np.zeros((2, 4), int)
    weight = np.ones((5, 3))
    for sequence, words in (
        ((hidden, ids[:, :2]), r"chosen: expected hidden states \(P, L, 3\).*got \(2, 4, 3\) and \(2, 2\)"),
        ((hidden[..., :2], ids), r"\(P, L, 3\).*got \(2, 4, 2\)"),
        ((hidden, ids, np.ones((2, 4), bool)), "behind at least one other"),
        ((hidden, ids, np.zeros((2, 4), bool)), "at least one token"),
        ((hidden, np.where(np.arange(4) < 2, -100, ids)), "chosen: expected token ids from 0 to 4, got -100; pass ids"),
        ((hidden, ids + 5), "chosen: expected token ids from 0 to 4, got 5; pass ids and a mask, not labels"),
        ((hidden, ids + 0.5), "chosen: expected token ids as integers, got dtype float64"),
        ((hidden + np.nan, ids), "chosen: expected finite hidden states"),
    ):
        with pytest.raises(BadInput, match=words):
            contexts.from_hidden({"chosen": sequence}, weight=weight)
    with pytest.raises(BadInput, match="expected a kind among chosen, rejected, got test"):
        contexts.from_hidden({"test": (hidden, ids)}, weight=weight)


def test_what_stands_on_padding_is_not_read():
    """Padded left, the rows of padding attend to nothing, and may hold anything."""
    hidden, ids = np.random.default_rng(0).normal(size=(1, 4, 2)), np.array([[0, 1, 2, 3]])
    mask = np.array([[False, False, False, True]])
    wanted = contexts.from_hidden({"chosen": (hidden, ids, mask)}, weight=np.ones((6, 2)))
    hidden[:, 0] = np.nan
    found = contexts.from_hidden({"chosen": (hidden, ids, mask)}, weight=np.ones((6, 2)))
    assert np.array_equal(found.logits, wanted.logits)
    assert np.isfinite(found.logits).all()


def test_the_recipe_for_a_model_of_ones_own_runs(data):
    """The code of the module's docstring, as it stands there."""
    transformers = pytest.importorskip("transformers", reason="needs the extra llm: pip install toyld[llm]")
    folder = data / "models/stories260K"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    text = contexts.hidden.__doc__
    code = "\n".join(line[4:] for line in text[text.index("    def states") :].splitlines())
    names = {"torch": torch, "tokenizer": tokenizer, "model": model, "contexts": contexts, "objectives": objectives}
    names["prompts"] = ["Once upon a time", "A dog and a cat went"]
    names |= {
        "chosen": [" there was a girl.", " home."],
        "rejected": [" it rained and rained.", " under the table, sad."],
    }
    exec(code, names)
    run = names["run"]
    assert run.value("logp", "chosen").shape == (2, 1, 2)
    assert run.loss[-1, 0] < run.loss[0, 0]
    assert names["change"].shape == model.get_output_embeddings().weight.shape
    for p, (ask, say) in enumerate(zip(names["prompts"], names["chosen"], strict=True)):
        said = tokenizer(say, add_special_tokens=False).input_ids
        ids = torch.tensor([tokenizer(ask).input_ids + said])
        with torch.no_grad():
            logp = F.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[-len(said) :].sum()
        assert run.value("logp", "chosen")[0, 0, p] == pytest.approx(float(logp), abs=1e-9), "padded, and yet the same"
