"""What a name of training data stands for: a file, a folder that `datasets` saved, a data set on the Hub, or rows."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

from toyld.checked import BadInput

__all__ = ["opened"]

_HUB = re.compile(r"([\w.-]+/[\w.-]+)(?::(\S+))?")
_FILES = (".json", ".jsonl", ".gz", ".parquet", ".txt", ".csv")  # a path that is not there, not a name on the Hub


def opened(source: Any, /) -> Any:
    """What `toyld.probes.preference.records` iterates: rows and files of JSON as they are, the rest by `datasets`.

    source: rows; the path of a file of JSON or Parquet, or of a folder that `datasets` saved; `owner/name` or
    `owner/name:split` on the Hub (the split is train unless named, and may be cut, as in train[:500]).

    Raises:
        BadInput: a name on the Hub without network or cache, a damaged Parquet file, no package `datasets`.

    >>> opened([{"text": "a"}])
    [{'text': 'a'}]
    """
    if not isinstance(source, str | PathLike):
        return source
    path = Path(source)
    if path.is_dir():
        return _by_datasets(f"the folder {path}", _saved(path), "give one file of JSON lines or Parquet")
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                return path
        options = {"data_files": str(path), "split": "train", "streaming": True}  # no copy in a cache
        do = "copy it again"
        return _by_datasets(f"the Parquet file {path.name}", lambda d: d.load_dataset("parquet", **options), do)
    name = _HUB.fullmatch(str(source))
    if name is None or path.suffix in _FILES:
        return path  # whose reader says that there is no such file
    return _by_datasets(
        f"{name[1]}, which is no file here and could not be loaded from the Hub",
        lambda d: d.load_dataset(name[1], split=name[2] or "train"),
        f"run datasets.load_dataset({name[1]!r}) once with a network, or give a file",
    )


def _saved(path: Path) -> Any:
    """How `datasets` reads a folder: one that it saved, or one with data files in it."""
    if (path / "dataset_dict.json").is_file():
        return lambda d: d.load_from_disk(str(path / "train"))
    if (path / "dataset_info.json").is_file():
        return lambda d: d.load_from_disk(str(path))
    return lambda d: d.load_dataset(str(path), split="train")


def _by_datasets(what: str, load: Any, do: str) -> Any:
    try:
        import datasets
    except ImportError:
        msg = f"expected the package datasets for {what}, got none installed; pip install -e '.[llm]'"
        raise BadInput(msg) from None
    try:
        return load(datasets)
    except Exception as error:  # datasets raises many kinds of errors: the first line of their words
        words = (str(error).strip().splitlines() or [""])[0][:200]
        raise BadInput(f"expected a data set, got {what} ({type(error).__name__}: {words}); {do}") from error
