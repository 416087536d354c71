"""What a saved checkpoint is, whatever its path: a fingerprint of its settings and of its weights.

Two paths to one checkpoint have one fingerprint, and other weights under the same path have another. Files of
safetensors up to 64 MiB are read whole; of larger ones the size, the header and three pieces of every tensor are, so
that it takes seconds: training moves every tensor, but a change that misses every piece is not noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["fingerprint"]

WHOLE = 2**26  # bytes up to which a file is read whole
PIECE = 2**12  # bytes read at the beginning, in the middle and at the end of a tensor
_PATHS = ("_name_or_path", "base_model_name_or_path")  # settings that say where from, not what


def fingerprint(model: str, /, *, base: str | None = None, commit: str | None = None) -> str:
    """16 hexadecimal digits of a folder's settings and weights (and its `base`'s, for an adapter), or name@commit.

    `commit`: of what comes from the Hub, where it is known: the model, or the base of an adapter.

    >>> import tempfile
    >>> folders = [tempfile.mkdtemp() for _ in range(2)]
    >>> for folder in folders:
    ...     _ = Path(folder, "config.json").write_text('{"vocab_size": 4}')
    ...     _ = Path(folder, "model.safetensors").write_bytes(b"weights")
    >>> fingerprint(folders[0]) == fingerprint(folders[1])
    True
    >>> _ = Path(folders[1], "model.safetensors").write_bytes(b"Weights")
    >>> fingerprint(folders[0]) == fingerprint(folders[1])
    False
    >>> fingerprint("some/model", commit="1f2e3d")
    'some/model@1f2e3d'
    """
    folder = Path(model)
    if not folder.is_dir():
        return model if commit is None else f"{model}@{commit}"
    digest = hashlib.sha256()
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            digest.update(f"\n{name} ".encode() + _settings((folder / name).read_bytes()))
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"\n{file.name} {size} ".encode())
        with file.open("rb") as opened:
            for piece in _pieces(opened, size):
                digest.update(piece)
    if base is not None:
        digest.update(f"\nbase {fingerprint(base, commit=commit)}".encode())
    return digest.hexdigest()[:16]


def _settings(payload: bytes) -> bytes:
    try:
        found = json.loads(payload)
        return json.dumps({key: value for key, value in found.items() if key not in _PATHS}, sort_keys=True).encode()
    except (ValueError, AttributeError, RecursionError):  # damaged: loading it will say so
        return payload


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """The file whole, or its header and pieces of its tensors: 8 bytes n, n bytes of JSON, the tensors' bytes."""
    if size <= WHOLE:
        while piece := file.read(2**20):
            yield piece
        return
    n = int.from_bytes(file.read(8), "little")
    header = file.read(min(n, size))
    yield header
    try:
        spans = [one["data_offsets"] for name, one in json.loads(header).items() if name != "__metadata__"]
        starts = [at for a, b in sorted(spans) for at in (a, (a + b) // 2, max(a, b - PIECE))]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):  # damaged: loading it will say so
        return
    for start in starts:
        file.seek(8 + n + start)
        yield file.read(PIECE)
