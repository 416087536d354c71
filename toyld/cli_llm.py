"""The commands that need the extra `llm`: an example to try them on, pairs looked at, responses to watch, scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

__all__ = ["example", "probe", "probes", "scan"]

_File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
_Word = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
_Steps = Annotated[tuple[int, ...], arg(metavar="STEP…", help_behavior_hint="")]
_Kinds = Annotated[str, arg(metavar="KIND,…", help_behavior_hint="")]
_Negated = Annotated[bool, arg(help_behavior_hint="")]  # shown as --no-…: its help says what that does


def example(
    out: Positional[Path] = Path("example"),
    /,
    *,
    seed: int = 0,
    size: Literal["smoke", "full"] = "full",
    force: bool = False,
) -> int:
    """Make a small language model, preference pairs and a DPO run of TRL's, to try the other commands on.

    Real at small size, without a network: a Llama of a hundred thousand parameters learns a made-up language in about a
    minute of a CPU core. A killed command, typed again, goes on; a finished folder stays as it is.

    Args:
        out: Folder to write; it is made if it is not there.
        seed: Of the language, of the weights and of all that is drawn.
        size: "smoke" is quick and its model knows next to nothing.
        force: Make everything anew.
    """
    from toyld.llm.example import show

    return show(out, seed=seed, size=size, force=force)


def probe(
    *,
    models: Annotated[tuple[str, ...], arg(metavar="MODEL…")],
    data: Path,
    out: Path,
    reference: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None,
    steps: _Steps = (),
    kinds: _Kinds = "",
    held_out: bool = False,
    n: int = 128,
    max_length: int = 512,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    eos: _Negated = True,
    seed: int = 0,
    resume: bool = False,
    stage: str = "dpo",
    arm: str = "baseline",
) -> int:
    """Score preference pairs and other probes at saved checkpoints of a language model, into a run folder.

    Args:
        models: Checkpoints in training order, the policy before training first: folders, PEFT adapters, Hub names.
        data: Preference pairs: JSON lines with prompt, chosen, rejected and, where there are, further responses.
        out: The run folder; one file a checkpoint, which `toyld diagnose` reads at any time.
        reference: The reference model, if its log-probabilities are wanted too.
        steps: Optimiser steps of the checkpoints (by default from trainer_state.json, else 0, 1, 2, …).
        kinds: Response kinds, separated by commas; by default chosen, rejected, those that the data carry, irr_train
            and random_permute.
        held_out: The run does not train on these pairs (another prompt's answer is then irr_test).
        n: Examples at most, a random sample.
        max_length: Tokens of prompt and response; the prompt loses its beginning first.
        batch_size: Responses scored at once.
        dtype: What the model computes in; the softmax is in float32 always.
        device: Where; auto is cuda if there is one.
        eos: Do not score the EOS token behind a plain-text response (by default it is scored, as TRL trains it).
        seed: Of the choice of examples and of the made responses.
        resume: Go on with a run folder: measure what is missing.
        stage: Name of the stage.
        arm: Name of the arm.
    """
    from toyld.llm.terminal import show

    return show(
        models,
        data,
        out,
        reference=reference,
        steps=steps or None,
        kinds=tuple(filter(None, kinds.split(","))),
        held_out=held_out,
        n=n,
        max_length=max_length,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        eos=eos,
        seed=seed,
        resume=resume,
        stage=stage,
        arm=arm,
    )


def probes(
    data: Positional[Annotated[str, arg(metavar="DATA")]],
    /,
    *,
    out: Path,
    n: int = 500,
    kinds: _Kinds = "",
    rewriter: _Word = None,
    sampler: _Word = None,
    test: _Word = None,
    train: _Word = None,
    held_out: bool = False,
    room: int = 256,
    cache: _File = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: int = 0,
) -> int:
    """Make the responses to watch (rephrased, shuffled, borrowed, …) of preference pairs, as data for `toyld probe`.

    What a model writes is kept at once: a killed command, typed again, goes on where it was.

    Args:
        data: Preference pairs: JSON lines, Parquet, or owner/name:split on the Hub.
        out: The file to write, JSON lines; it must not be there yet.
        n: Examples at most, a random sample.
        kinds: Response kinds, separated by commas; by default all that the data carry and that can be made.
        rewriter: A model that rephrases, by its instruction for each kind (an instruction-tuned one, of course).
        sampler: A model that answers the prompts: the policy before training.
        test: Pairs that are never trained on: their answers are irr_test, shuffled they are random_nonhum.
        train: All pairs that the run trains on, where the data are not all of them.
        held_out: The run does not train on these pairs.
        room: Tokens that a model may write at most.
        cache: Where models' answers are kept (by default beside the file).
        dtype: What the models compute in.
        device: Where; auto is cuda if there is one.
        seed: Of the choice of examples and of all that is drawn.
    """
    from toyld.llm.making import show_built

    return show_built(
        data,
        out,
        n=n,
        kinds=tuple(filter(None, kinds.split(","))),
        rewriter=rewriter,
        sampler=sampler,
        test=test,
        train=train,
        held_out=held_out,
        room=room,
        cache=cache,
        dtype=dtype,
        device=device,
        seed=seed,
    )


def scan(
    data: Positional[Annotated[str, arg(metavar="DATA")]],
    /,
    *,
    model: str,
    json: _File = None,
    n: int = 128,
    max_length: Annotated[int | None, arg(metavar="TOKENS", help_behavior_hint="")] = None,
    through: Literal["layers", "head", "none"] = "layers",
    objective: str = "dpo",
    optimizer: Literal["adamw", "rmsprop", "sgd"] = "adamw",
    lr: float = 1e-6,
    batch: int = 32,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    eos: _Negated = True,
    seed: int = 0,
) -> int:
    """Look at preference pairs before training on them: which will displace, are off-policy, truncated, faulty.

    Args:
        data: Preference pairs: JSON lines with prompt, chosen and rejected, as text or as messages.
        model: The policy before training: a folder, a PEFT adapter or a name on the Hub.
        json: Also write findings, and numbers for every scored pair, to this file.
        n: Pairs that the model reads, a random sample; texts and tokens of all are checked.
        max_length: As training will cut (by default TRL's 1024, or the model's positions).
        through: How one update is foreseen: the gradient of all layers, the head alone (K3: no gradient, less memory,
            and less to be trusted), or not at all (only texts and tokens are checked).
        objective: The loss, by its name in `toyld objectives`.
        optimizer: The optimiser of the foreseen update, from a fresh state.
        lr: Its learning rate.
        batch: Pairs in an update, for K3.
        batch_size: Responses in the model at once.
        dtype: What the model computes in.
        device: Where; auto is cuda if there is one.
        eos: Add no EOS token behind a plain-text response (by default it is added, as TRL does).
        seed: Of the choice of pairs.
    """
    from toyld.llm.scanning import show

    return show(
        data,
        model,
        json=json,
        n=n,
        max_length=max_length,
        through=through,
        objective=objective,
        optimizer=optimizer,
        lr=lr,
        batch=batch,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        eos=eos,
        seed=seed,
    )
