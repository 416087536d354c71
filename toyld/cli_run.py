"""`toyld run WORLD`: fine-tuning runs of the worlds of this package, into a folder that `toyld diagnose` reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

__all__ = ["contexts", "digits", "llm", "tiny"]


_Weights = Annotated[tuple[str, ...] | None, arg(metavar="NAME=NUMBER…", help_behavior_hint="")]
_Numbers = Annotated[tuple[float, ...] | None, arg(metavar="NUMBER…", help_behavior_hint="")]
_Counts = Annotated[tuple[int, ...] | None, arg(metavar="N…", help_behavior_hint="")]
_Number = Annotated[float | None, arg(metavar="NUMBER", help_behavior_hint="")]
_Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
_Data = Annotated[str | None, arg(metavar="PATH|embedded|download", help_behavior_hint="")]
_Word = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
_Kinds = Annotated[str, arg(metavar="KIND,…", help_behavior_hint="")]
_Arms = Annotated[tuple[str, ...] | None, arg(metavar="ARM…", help_behavior_hint="")]
_Images = Annotated[int | Literal["all"] | None, arg(metavar="N|all", help_behavior_hint="")]


def contexts(
    *,
    out: Path,
    size: Literal["smoke", "paper"] = "paper",
    resume: bool = False,
    sweep: bool = False,
    language: Literal["facts", "markov"] = "facts",
    seeds: _Count = None,
    first_seed: int = 0,
    objective: str = "dpo",
    beta: _Numbers = None,
    lr: _Numbers = None,
    steps: _Count = None,
    sft_lr: _Number = None,
    sft_steps: _Counts = None,
    temperature: _Numbers = None,
    common: _Numbers = None,
    kernel: _Weights = None,
    evaluations: int = 20,
    margin: _Number = None,
    workers: int = 1,
) -> int:
    """SFT, then DPO, of many contexts coupled by one kernel, in closed form; after plain and after extended SFT.

    With --sweep: all products of the values of beta, lr, sft-steps, temperature and common, after plain SFT, as tables.
    What is not given depends on the size; numbers below are for smoke | paper.

    Args:
        out: Folder to write: a run folder, or with --sweep chunk-*.csv, runs.csv (a row a run) and summary.csv.
        size: Of the worlds, and how many seeds, updates and conditions where they are not given.
        resume: Go on with the run or sweep that is there.
        sweep: Many conditions instead of one run.
        language: facts: questions with one right answer, told in synonyms; markov: a chain of tokens.
        seeds: How many worlds: seeds first-seed, first-seed + 1, … (4 | 32)
        first_seed: The first of them.
        objective: Of the stage after SFT; see `toyld objectives`. With --sweep one with a β.
        beta: β of the objective. (the objective's own, 0.1 for dpo; sweep: 0.1 | 0.05 0.1 0.2)
        lr: Learning rate of the stage after SFT, for the mean over pairs. (12 | 24; sweep: 12 | 12 24 48)
        steps: Its updates. (60 | 60; sweep: 100 | 100)
        sft_lr: Learning rate of SFT. (0.6 | 1.2)
        sft_steps: Updates of SFT. (40 | 40; sweep: 10 40 | 10 20 40)
        temperature: At which y− is sampled from the model before training: 1 = its own answers, 8 = nearly uniform.
            (1 | 1; sweep: 1 8 | 1 2 8)
        common: Weight of the feature that all contexts share (anisotropy).
            (0.1 | 0.1; sweep: 0 0.2 1.6 | 0 0.1 0.2 0.4 0.8 1.6)
        kernel: Weights of components of the kernel: identity, common, prompt, token, prefix, position. Those not named
            stay as they are. (identity=0.5 common=0.1 prompt=0.2 token=0.2)
        evaluations: Of each stage, evenly spaced.
        margin: Sweeps also compare where the margin has grown by this many nats. (10 | 10)
        workers: Processes that compute a sweep.
    """
    from toyld.checked import BadInput
    from toyld.running import contexts as show

    several = {"beta": beta, "lr": lr, "sft_steps": sft_steps, "temperature": temperature, "common": common}
    for name, values in {**several, "kernel": kernel}.items():
        if values is not None and not values:
            msg = f"--{name.replace('_', '-')}: expected at least one value behind it, got none; name one or drop it"
            raise BadInput(msg)
    given = {name: values or () for name, values in several.items()} | {
        "language": language, "seeds": seeds, "first_seed": first_seed, "objective": objective, "steps": steps,
        "sft_lr": sft_lr, "kernel": _weights(kernel or ()), "evaluations": evaluations, "margin": margin,
        "workers": workers,
    }  # fmt: skip
    return show(out, size=size, resume=resume, sweep=sweep, given=given)


def digits(
    *,
    out: Path,
    size: Literal["smoke", "paper"] = "paper",
    resume: bool = False,
    data: _Data = None,
    network: Literal["mlp", "lenet"] = "mlp",
    seeds: _Count = None,
    first_seed: int = 0,
    images: _Images = None,
    epochs: _Number = None,
    lr: _Number = None,
    batch: _Count = None,
    noise: float = 0.0,
    probes: _Count = None,
    evaluations: _Count = None,
) -> int:
    """Supervised training on handwritten digits, many networks at once: each digit a prompt, its label the response.

    What is not given depends on the size; numbers below are for smoke | paper.

    Args:
        out: Folder to write: a run folder.
        size: Smoke: the embedded 8×8 digits, seconds. Paper: MNIST by the paper's recipe, a minute; lenet some minutes.
        resume: Go on with the run that is there.
        data: embedded, download (MNIST, into a cache), or a folder with MNIST's four idx files.
            (embedded | the folder mnist in $TOYLD_DATA)
        network: mlp: four hidden layers of 128, ReLU; lenet: two convolutions, 60-42-10, tanh.
        seeds: How many networks: seeds first-seed, first-seed + 1, … They differ in initial weights and in the order of
            the images; images, labels and probes are the same for all. (4 | 10)
        first_seed: The first of them; it draws the images, the labels that are flipped, and the probes.
        images: So many of the training images, or all. (all | 2000)
        epochs: Passes over the images; may be fractional. (10 | 100)
        lr: Learning rate at the start; it falls to 0 by half a cosine. (0.1 | 0.001)
        batch: Images an update. (64 | 64)
        noise: Share of the training labels that are flipped, each to one of the nine others. With three tenths or
            more the verdict may be squeezing, though no gradient is negative: wrong labels lag behind the
            likeliest ones.
        probes: Images of each kind that are measured, at most. (50 | 200)
        evaluations: After the one at the start, evenly spaced. (10 | 20)
    """
    from toyld.running import digits as show

    given = {
        "network": network, "seeds": seeds, "first_seed": first_seed, "images": images, "epochs": epochs, "lr": lr,
        "batch": batch, "noise": noise, "probes": probes, "evaluations": evaluations,
    }  # fmt: skip
    return show(out, size=size, resume=resume, data=data, given=given)


def tiny(
    *,
    out: Path,
    size: Literal["smoke", "paper"] = "paper",
    resume: bool = False,
    minutes: _Number = None,
    seeds: _Count = None,
    first_seed: int = 0,
    arms: _Arms = None,
    objective: str = "dpo",
    beta: _Number = None,
    optimizer: Literal["rmsprop", "sgd", "adamw"] = "rmsprop",
    sft_lr: _Number = None,
    sft_steps: _Count = None,
    lr: _Number = None,
    steps: _Count = None,
    batch: _Count = None,
    prompts: _Count = None,
    temperature: float = 1.0,
    shared: int = 0,
    concentration: _Number = None,
    knowledge: _Number = None,
    width: _Count = None,
    depth: _Count = None,
    heads: _Count = None,
    pretrain_steps: _Count = None,
    evaluations: _Count = None,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int = 1,
) -> int:
    """Pretraining, SFT and preferences of tiny transformers on languages whose probabilities are known, seeds at once.

    What is not given depends on the size; numbers below are for smoke | paper.

    Args:
        out: Folder to write: a run folder.
        size: Of the languages and models, and how many seeds and updates. On one thread of a CPU half a minute | a
            quarter of an hour.
        resume: Go on with the run that is there.
        minutes: Stop after the evaluation under way once so many have passed; the same command with --resume goes on.
        seeds: How many languages, each with its own model: seeds first-seed, first-seed + 1, … (8 | 32)
        first_seed: The first of them.
        arms: Some of baseline, extend-updates (SFT on rejected answers, too, in as many updates), extend-passes (in as
            many passes over the chosen answers, so twice the updates), on-policy (rejected answers are those of the
            model after SFT). (all)
        objective: Of the stage after SFT; see `toyld objectives`.
        beta: β of the objective. (the objective's own, 0.1 for dpo)
        optimizer: Of SFT and of the stage after it; the paper's is rmsprop.
        sft_lr: Learning rate of SFT. (rmsprop 0.0003, sgd 0.03, adamw 0.001)
        sft_steps: Its updates, in the arm baseline. (80 | 40)
        lr: Learning rate of the stage after SFT. (rmsprop 0.0002, sgd 0.3, adamw 0.0005)
        steps: Its updates. (60 | 60)
        batch: Rows an update, in every arm; a divisor of the prompts. (as many as prompts)
        prompts: How many are trained; as many others are held out. (8 | 12)
        temperature: At which the model says the rejected answers: 1 = its own, 8 = nearly uniform words.
        shared: So many first tokens of a rejected answer are those of the chosen one.
        concentration: Of the facts: small = prompts of a relation share them. (1 | 1)
        knowledge: Share of the facts that the source knows on which models are pretrained. (0.3 | 0.3)
        width: Of the models. (32 | 64)
        depth: Blocks. (2 | 3)
        heads: Of the attention. (2 | 4)
        pretrain_steps: Updates of pretraining. (300 | 600)
        evaluations: Of each stage, evenly spaced; pretraining keeps its state as often. (10 | 20)
        device: cuda: a GPU; a resumed run then ends with other last digits.
        threads: Of the CPU. With several, a resumed run may end with other last digits.
    """
    from toyld.running import tiny as show

    given = {
        "seeds": seeds, "first_seed": first_seed, "arms": arms, "objective": objective, "beta": beta,
        "optimizer": optimizer, "sft_lr": sft_lr, "sft_steps": sft_steps, "lr": lr, "steps": steps, "batch": batch,
        "prompts": prompts, "temperature": temperature, "shared": shared, "concentration": concentration,
        "knowledge": knowledge, "width": width, "depth": depth, "heads": heads, "pretrain_steps": pretrain_steps,
        "evaluations": evaluations, "device": device, "threads": threads,
    }  # fmt: skip
    return show(out, size=size, resume=resume, minutes=minutes, given=given)


def llm(
    *,
    out: Path,
    model: str,
    data: str,
    probe_data: _Word = None,
    recipe: Literal["small", "paper"] = "small",
    resume: bool = False,
    arms: _Arms = None,
    objective: str = "dpo",
    beta: _Number = None,
    sft_term: _Number = None,
    optimizer: _Word = None,
    sft_lr: _Number = None,
    lr: _Number = None,
    warmup: _Count = None,
    clip: _Number = None,
    sft_epochs: _Number = None,
    epochs: _Number = None,
    batch: _Count = None,
    accumulation: _Count = None,
    pairs: _Count = None,
    held_out: _Number = None,
    probes: _Count = None,
    kinds: _Kinds = "",
    evaluations: _Count = None,
    every: _Count = None,
    max_length: _Count = None,
    lora: _Count = None,
    bf16: bool = False,
    checkpointing: bool = False,
    seed: _Count = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int = 1,
) -> int:
    """SFT, then preferences, of a Hugging Face model in TRL's own trainers, probed; after plain and after extended SFT.

    What is not given depends on the recipe; numbers below are for small | paper. With several processes (accelerate
    launch, torchrun) they share the rows of an update, and one writes.

    Args:
        out: Folder to write: a run folder, with the models at the end of each stage.
        model: A folder, or a name on the Hub.
        data: Preference pairs: a file, a folder of `datasets`, or a name on the Hub. The first rows are trained on.
        probe_data: What to measure instead of the first pairs: a probe set, or other pairs.
        recipe: small: for models of up to some millions of parameters, minutes of a CPU. paper: as the paper trained
            models of .4 to 2.8 billion parameters.
        resume: Go on with the run that is there.
        arms: Some of baseline, extend-updates (SFT on rejected answers, too, in as many updates), extend-passes (in as
            many passes over the chosen answers, so twice the updates), on-policy (rejected answers are those of the
            model after SFT). (the first three)
        objective: Of the stage after SFT; see `toyld objectives`.
        beta: β of the objective. (the objective's own, 0.1 for dpo)
        sft_term: Weight of the mean −log π a token of the chosen answers, added to it. (0)
        optimizer: As TRL names it: rmsprop, adamw, sgd, … (rmsprop)
        sft_lr: Learning rate of SFT. (5e-05 | 5e-07)
        lr: Learning rate of the stage after it. (1e-05 | 5e-07)
        warmup: Updates at the beginning of each stage in which its rate rises; it stays from there. (20 | 150)
        clip: Largest norm of a gradient. (10 | 10)
        sft_epochs: Passes of SFT over the pairs, in the arm baseline; may be fractional. (2 | 4)
        epochs: Passes of the stage after it. (2 | 8)
        batch: Pairs (in SFT answers) at once, in all processes together. (8 | 4)
        accumulation: So many batches are one update. (1 | 1)
        pairs: So many pairs are trained on, the first of the data. (400 | 5000)
        held_out: So many rows of the data, or a share of them, are kept out of the pairs, by seed and prompts; their
            answers are irr_test. Without it the rows behind the pairs are. (0)
        probes: So many prompts are measured, the first that are trained on. (48 | 500)
        kinds: Response kinds, separated by commas; by default chosen, rejected, those that the data carry, irr_train,
            random_permute, and irr_test and random_nonhum where rows are not trained on.
        evaluations: Of each stage, evenly spaced. (10; the paper's: see every)
        every: An evaluation each time so many rows were trained on. (see evaluations; 1000)
        max_length: Tokens of prompt and response; the prompt loses its beginning first, down to half of them.
            (256 | 512)
        lora: Rank of adapters on all linear layers; they are merged after each stage. (all weights are trained)
        bf16: Products in bfloat16; weights stay in float32.
        checkpointing: Activations are computed again in the backward pass, which takes less memory.
        seed: Of the order of the rows, of what is held out, and of the probes. (0 | 1024)
        device: auto is cuda if there is one. On cuda a resumed run ends with other last digits.
        threads: Of the CPU, in each process. With several, a resumed run may end with other last digits.
    """
    from toyld.running import llm as show

    given = {
        "model": model, "data": data, "probe_data": probe_data, "arms": arms, "objective": objective, "beta": beta,
        "sft_term": sft_term, "optimizer": optimizer, "sft_lr": sft_lr, "lr": lr, "warmup": warmup, "clip": clip,
        "sft_epochs": sft_epochs, "epochs": epochs, "batch": batch, "accumulation": accumulation, "pairs": pairs,
        "held_out": held_out, "probes": probes, "kinds": tuple(filter(None, kinds.split(","))),
        "evaluations": evaluations, "every": every, "max_length": max_length, "lora": lora, "bf16": bf16,
        "checkpointing": checkpointing, "seed": seed, "device": device, "threads": threads,
    }  # fmt: skip
    return show(out, resume=resume, recipe=recipe, given=given)


def _weights(words: Iterable[str]) -> dict[str, float]:
    """name=number words as weights, each once."""
    from toyld.checked import BadInput

    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            weight = float(number)
        except ValueError:
            msg = f"--kernel: expected NAME=NUMBER, for example identity=0.5, got {word!r}"
            raise BadInput(msg) from None
        if name in found:
            msg = f"--kernel: expected each component once, got {name} twice; drop one"
            raise BadInput(msg)
        found[name] = weight
    return found
