"""Saved checkpoints of one run: their optimiser steps, their weights, the tokenizer that fits them all.

A checkpoint is a folder that `save_pretrained` or a Trainer wrote, a folder with a PEFT adapter (loaded on its base
model), or the name of a whole model on the Hub. Nothing is unpickled: weights are read from safetensors, and what has
none is refused.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toyld.checked import BadInput
from toyld.llm import weights

__all__ = [
    "Course",
    "check_fit",
    "course",
    "fingerprint",
    "load_config",
    "load_model",
    "load_tokenizer",
    "pick_device",
    "positions",
    "quiet",
]

DTYPES = ("float32", "bfloat16", "float16")
_INSTALL = 'in the clone of toyld: pip install -e ".[llm]"'
_ADAPTER = "adapter_model.safetensors"
_ROOM = "max_position_embeddings"
_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})/")  # in the paths of the Hub's cache
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Course:
    """Checkpoints in training order with their optimiser steps; how the steps are known, in words."""

    models: tuple[str, ...]
    steps: tuple[int, ...]
    known_from: str

    @property
    def has_step0(self) -> bool:
        """Whether the first is the policy before the first update."""
        return self.steps[0] == 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hugging Face's progress bars and advice off for the while; BadInput where transformers is not installed."""
    try:
        from transformers.utils import logging
    except ImportError:
        raise BadInput("expected the package transformers, got none installed; " + _INSTALL) from None
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def course(models: Sequence[str], /, *, steps: Sequence[int] | None = None) -> Course:
    """Each checkpoint's optimiser step: as given, else from its trainer_state.json, else 0, 1, 2, …

    The first checkpoint is the policy before training, step 0, whatever training of its own its folder remembers;
    only if the second one's log begins with the first one's is it a later checkpoint of the same run.

    Raises:
        BadInput: no models, a folder that is not there, steps that are missing or do not increase.
    """
    if not models:
        raise BadInput("--models: expected at least one checkpoint, got none; name them in training order")
    for model in models:
        _locate(model)
    if steps is not None:
        if len(steps) != len(models):
            msg = f"--steps: expected one step a model, got {len(steps)} for {len(models)}; give both in training order"
            raise BadInput(msg)
        found, known = list(steps), "as given"
    else:
        states = [_trainer_state(model) for model in models]
        if all(state is None for state in states[1:]):
            found, known = list(range(len(models))), "not known: counted 0, 1, 2, …"
        else:
            without = [m for m, state in zip(models[1:], states[1:], strict=True) if state is None]
            if without:
                msg = f"expected a trainer_state.json in every checkpoint but the first, got none in {without[0]}; "
                raise BadInput(msg + "give all steps with --steps")
            found = [0 if state is None else state[0] for state in states]
            known = "from trainer_state.json"
            if states[0] and states[1] and not (states[0][1] and states[1][1][: len(states[0][1])] == states[0][1]):
                found[0] = 0  # trained in another run: an earlier stage
    if found[0] < 0 or any(b <= a for a, b in itertools.pairwise(found)):
        msg = f"expected steps that increase from 0 on, got {' '.join(map(str, found))} ({known}); "
        raise BadInput(msg + "name the checkpoints in training order, the policy before training first, or use --steps")
    return Course(tuple(models), tuple(found), known)


def _locate(model: str) -> None:
    folder = Path(model)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            msg = f"expected config.json or adapter_config.json in {model}, got neither; name a saved checkpoint"
            raise BadInput(msg)
    elif folder.exists() or not _HUB_NAME.fullmatch(model):
        msg = f"expected a model folder or a name on the Hub, got {model!r}; "
        raise BadInput(msg + ("it is a file" if folder.exists() else "there is no such folder"))


def _trainer_state(model: str) -> tuple[int, list[Any]] | None:
    """(global_step, log_history) of a checkpoint's folder; None without the file."""
    path = Path(model) / "trainer_state.json"
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_bytes())
        step, log = state["global_step"], state.get("log_history", [])
        if not isinstance(step, int) or isinstance(step, bool) or not isinstance(log, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"expected global_step in {path}, got a damaged file; give the steps with --steps") from None
    return step, log


def pick_device(device: str, /) -> str:
    """`auto` as cuda where there is one, else cpu."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device: expected a machine with CUDA for cuda, got none; use cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def load_model(model: str, /, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The causal language model of a checkpoint, in eval mode; a PEFT adapter on its base model.

    Raises:
        BadInput: what cannot be loaded, in one line.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise BadInput(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "use_safetensors": True}
    base = _base(model)
    loaded = _try(AutoModelForCausalLM.from_pretrained, model if base is None else base, model, **options)
    if base is not None:
        from peft import PeftModel

        loaded = _try(lambda adapter: PeftModel.from_pretrained(loaded, adapter), model, model)
    return loaded.to(device).eval()


def load_config(model: str, /) -> Any:
    """The config of a checkpoint, that of its base model for an adapter: all that can be checked before loading."""
    from transformers import AutoConfig

    base = _base(model)
    return _try(AutoConfig.from_pretrained, model if base is None else base, model)


def fingerprint(model: str, /) -> str:
    """`weights.fingerprint` of a checkpoint: the same for every path to the same weights."""
    base = _base(model)
    return weights.fingerprint(model, base=base, commit=_commit(model if base is None else base, model))


def _commit(name: str, asked: str) -> str | None:
    """The commit of a model on the Hub that is loaded here; None for a folder."""
    if Path(name).is_dir():
        return None
    from transformers.utils import cached_file

    found = _COMMIT.search(Path(_try(cached_file, name, asked, filename="config.json")).as_posix())
    return found[1] if found else None


def _base(model: str) -> str | None:
    """The base model of an adapter's folder; None for a whole model. Adapters without safetensors are refused."""
    _locate(model)
    if not _is_adapter(model, model):
        return None
    try:
        from peft import PeftConfig
    except ImportError:
        msg = f"expected the package peft for the adapter {model}, got none installed; {_INSTALL}"
        raise BadInput(msg) from None
    base = _try(PeftConfig.from_pretrained, model, model).base_model_name_or_path
    if not base:
        raise BadInput(f"expected base_model_name_or_path in the adapter_config.json of {model}, got none; fill it in")
    if _is_adapter(str(base), model) and not (Path(base) / "config.json").is_file():
        raise BadInput(f"expected a whole model as base of the adapter {model}, got the adapter {base}; merge that one")
    return str(base)


def _is_adapter(model: str, asked: str) -> bool:
    """Whether a folder holds an adapter; BadInput where its weights would be unpickled, or it is on the Hub.

    `asked`: the checkpoint that is meant, whose base `model` may be.
    """
    if Path(model).is_dir():
        if not (Path(model) / "adapter_config.json").is_file():
            return False
        if not (Path(model) / _ADAPTER).is_file():
            there = ", ".join(sorted(file.name for file in Path(model).glob("adapter_model*"))) or "none"
            msg = f"expected {_ADAPTER} in the adapter {model}, got {there}; save it again with safetensors"
            raise BadInput(msg + " (save_pretrained of peft does), since nothing is unpickled here")
        return True
    from transformers.utils import find_adapter_config_file

    if _try(find_adapter_config_file, model, asked) is not None:
        msg = f"expected a folder for an adapter, got {model} on the Hub; download it and name the folder"
        raise BadInput(msg)
    return False


def positions(config: Any, /) -> int | None:
    """The longest sequence that a model's config gives positions for; None where it sets no limit."""
    room = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, _ROOM, None)
    return room if isinstance(room, int) and room > 0 else None


def _try(load: Callable[..., Any], what: str, model: str, **options: Any) -> Any:
    """transformers and peft raise many kinds of errors on what they cannot load: the first line of their words."""
    try:
        return load(what, **options)
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0][:160]
        got = model if what == model else f"{what}, base of the adapter {model}"
        msg = f"expected a causal language model that transformers can load, got {got}: {type(error).__name__} {words}"
        raise BadInput(msg) from error


def load_tokenizer(models: Sequence[str], /, *, chat: bool = False) -> Any:
    """The tokenizer of the latest checkpoint that has one (with a chat template if `chat`); all must agree on tokens.

    Raises:
        BadInput: none found; two checkpoints whose vocabularies differ.
    """
    from transformers import AutoTokenizer

    best: tuple[str, Any] | None = None
    for model in reversed(models):
        if Path(model).is_dir() and not any(Path(model).glob("tokenizer*")) and not any(Path(model).glob("vocab*")):
            continue
        try:
            found = AutoTokenizer.from_pretrained(model)
        except Exception:  # none there: another checkpoint may have it
            continue
        if best is not None and found.get_vocab() != best[1].get_vocab():
            msg = f"expected one vocabulary in all checkpoints, got other tokens in {model} than in {best[0]}; "
            raise BadInput(msg + "probe each run with its own checkpoints")
        if best is None or (chat and not best[1].chat_template and found.chat_template):
            best = (model, found)
    if best is None:
        msg = f"expected a tokenizer beside at least one checkpoint, got none in {', '.join(models)[:200]}; "
        raise BadInput(msg + "copy tokenizer.json and tokenizer_config.json into the first one's folder")
    return best[1]


def check_fit(config: Any, model: str, /, *, size: int | None, largest_id: int, longest: int) -> int:
    """The vocabulary size in a model's config; BadInput unless it is `size` (if given) and the tokens fit in.

    `largest_id`, `longest`: of the token ids and of the sequences to come.
    """
    found, room = int(config.get_text_config().vocab_size), positions(config)
    if size is not None and found != size:
        msg = f"expected one vocabulary in all checkpoints, got {found} tokens in {model} after {size}; "
        raise BadInput(msg + "probabilities over different vocabularies do not compare")
    if largest_id >= found:
        msg = (
            f"expected token ids below the {found} of {model}, got {largest_id}; use the tokenizer it was trained with"
        )
        raise BadInput(msg)
    if room is not None and longest > room:
        raise BadInput(f"--max-length: expected at most the {room} positions of {model}, got a sequence of {longest}")
    return found
