"""What a model says of a sample of preference pairs: a table of numbers, findings and a summary (`toyld.llm.scan`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from toyld.llm.encode import Encoded
from toyld.llm.faults import Finding, TokenPair, shared_start

__all__ = ["OPTIMIZERS", "read"]

OFF, SURE = 1.0, 4.0  # nats a token above the entropy, and how many standard errors, from which a text is not its own
OPTIMIZERS = ("adamw", "rmsprop", "sgd")
Cut = tuple[Encoded, Encoded]
Columns = dict[str, Any]


def read(
    model: Any,
    sample: Sequence[TokenPair],
    cut: Sequence[Cut],
    loss: Any,
    settings: dict[str, Any],
    /,
    *,
    batch_size: int,
    tell: Callable[[str, int, int], object] | None,
) -> tuple[list[dict[str, Any]], list[Finding], dict[str, float]]:
    """An entry a pair, the findings, the numbers of the whole; `cut`: chosen and rejected as they are scored."""
    from toyld.llm.pairs import score_pairs

    chosen, rejected = ([both[i] for both in cut] for i in (0, 1))
    heard = 0

    def tick(count: int) -> None:
        nonlocal heard
        heard += count
        if tell is not None:
            tell("scoring", heard, 2 * len(cut))

    options = {"objective": loss, "batch": settings["batch"], "batch_size": batch_size, "tick": tick}
    scores = score_pairs(model, chosen, rejected, **options)
    columns: Columns = {"k3_own": scores.own, "k3_update": scores.update}
    columns |= {"ches": scores.ches, "ches_normalised": scores.ches_normalised}
    for name, side in (("chosen", scores.chosen), ("rejected", scores.rejected)):
        columns |= {f"{what}_{name}": getattr(side, what) for what in ("logp", "tokens", "surprise", "entropy", "off")}
    columns |= {"cut_chosen": np.array([one.cut for one in chosen], float)}
    columns |= {"cut_rejected": np.array([one.cut for one in rejected], float)}
    columns |= {"shared_start": np.array([shared_start(pair) for pair in sample], float)}
    if settings["through"] == "layers":
        columns["predicted"] = _predicted(model, chosen, rejected, loss, settings, batch_size, tell)
    rows = np.array([pair.number for pair in sample])
    table = [{"row": int(row)} | {name: float(x[i]) for name, x in columns.items()} for i, row in enumerate(rows)]
    classes = int(model.get_output_embeddings().weight.shape[0])
    return table, _findings(rows, columns, classes), _summary(columns, classes)


def _summary(columns: Columns, classes: int) -> dict[str, float]:
    found = {"scored": float(len(columns["ches"])), "log_V": float(np.log(classes))}
    found["chosen_likelier"] = float((columns["logp_chosen"] > columns["logp_rejected"]).mean())
    for side in ("chosen", "rejected"):
        weight = columns[f"tokens_{side}"] / columns[f"tokens_{side}"].sum()
        found |= {f"{what}_{side}": float(columns[f"{what}_{side}"] @ weight) for what in ("surprise", "entropy")}
    for name in ("predicted", "k3_update"):
        if name in columns:
            found |= {f"{name}_mean": float(columns[name].mean()), f"{name}_falls": float((columns[name] < 0).mean())}
    return found


def _predicted(
    model: Any, chosen: Any, rejected: Any, loss: Any, settings: dict[str, Any], size: int, tell: Any
) -> Any:
    """Δlog π(y⁺) by one update on all pairs, first order, all layers."""
    import torch

    from toyld.llm.foresee import Pairs, foresee

    if not any(p.requires_grad for p in model.parameters()):  # a saved adapter
        model.requires_grad_(True)
    kinds: dict[str, Any] = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}
    trained = [p for p in model.parameters() if p.requires_grad]
    rule = kinds[settings["optimizer"]](trained, lr=settings["lr"], weight_decay=0.0)
    if tell is not None:
        tell("foreseeing one update", 0, 1)
    found = foresee(model, Pairs(chosen, rejected, objective=loss), chosen, optimizer=rule, batch_size=size).predicted
    if tell is not None:
        tell("foreseeing one update", 1, 1)
    return found


def _findings(rows: Any, columns: Columns, classes: int) -> list[Finding]:
    """Of the scored pairs, each with its rows, worst first."""
    found: list[Finding] = []

    def finding(code: str, severity: Any, hit: Any, worst: Any, what: str, do: str) -> None:
        picked = rows[hit][np.argsort(-worst[hit], kind="stable")]
        if len(picked):
            found.append(Finding(code, severity, tuple(map(int, picked)), len(rows), what, do))

    name, means = ("predicted", "all layers") if "predicted" in columns else ("k3_update", "K3, the head alone")
    change = columns[name]
    what = f"scored: the first update is predicted to lower the chosen response ({means}), worst first"
    do = "a fall is no harm by itself: see where the mass goes (toyld probe, then toyld diagnose)"
    finding("displacement", "warning", change < 0.0, -change, what, do)
    surprise = columns["surprise_rejected"]
    guess = np.log(classes)
    what = f"scored: the rejected response is less probable than random tokens (log V = {guess:.1f} nats a token)"
    do = "look whether it is text that this model knows"
    finding("improbable-rejected", "warning", surprise > guess, surprise, what, do)
    advice = {
        "rejected": "the loss can fall while little changes in what the model says; sample them from the model itself",
        "chosen": "train on the chosen responses first (SFT), or sample them from the model",
    }
    for side, do in advice.items():
        beyond = columns[f"surprise_{side}"] - columns[f"entropy_{side}"]
        hit = (beyond > OFF) & (columns[f"off_{side}"] > SURE)
        what = f"scored: the {side} response is off-policy, more than {OFF:g} nat a token above the model's entropy"
        finding(f"off-policy-{side}", "warning" if side == "rejected" else "note", hit, beyond, what, do)
    return found
