"""Handwritten digits as tensors: the embedded 8×8 digits, and MNIST from a folder or by checked download.

    x = (pixel/peak − mean)/std        peak 16 (8×8) or 255 (MNIST); mean, std: of all training pixels, one number each

`embedded`: the 1,797 real digits that come with scikit-learn (E. Alpaydin, C. Kaynak), every fifth of each class held
out. `mnist`: the four idx files as published (Y. LeCun et al.), known by the md5 of what they hold, packed or not.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from toyld.checked import BadInput

__all__ = [
    "CLASSES",
    "FILES",
    "MIRRORS",
    "Digits",
    "Source",
    "download",
    "draw",
    "embedded",
    "flipped",
    "held",
    "mnist",
]

CLASSES = 10
SUBSET, FLIPS = 1, 2  # streams of random numbers, apart from each other and from those of training


class Source(NamedTuple):
    """One published file: bytes and md5 of what it holds, md5 of the .gz as published."""

    size: int
    md5: str
    packed: str


FILES: dict[str, Source] = {
    "train-images-idx3-ubyte": Source(47040016, "6bbc9ace898e44ae57da46a324031adb", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "train-labels-idx1-ubyte": Source(60008, "a25bea736e30d166cdddb491f175f624", "d53e105ee54ea40749a09fcbcd1e9432"),
    "t10k-images-idx3-ubyte": Source(7840016, "2646ac647ad5339dbf082846283269ea", "9fb629c4189551a2d022fa330f9573f3"),
    "t10k-labels-idx1-ubyte": Source(10008, "27ae3e4e09519cfbb04c329615203637", "ec29112dd5afa0611ce80d1b7f02629c"),
}
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")


@dataclass(frozen=True, eq=False)
class Digits:
    """Digits in two parts: images (N, 1, H, W) float32, scaled as the module says, labels (N,) int64; held-out ones.

    source: where they are from, for provenance; the same digits have the same one.

    >>> digits = embedded()
    >>> digits.side, len(digits.labels), len(digits.test_labels)
    (8, 1442, 355)
    """

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    name: str
    source: str
    mean: float
    std: float

    @property
    def side(self) -> int:
        """Height and width of an image."""
        return self.images.shape[-1]

    def pixels(self, images: torch.Tensor, /) -> torch.Tensor:
        """Scaled images as brightness again: 0 to 1.

        >>> digits = embedded()
        >>> pixels = digits.pixels(digits.images)
        >>> bool(pixels.min().abs() < 1e-6), bool((pixels.max() - 1).abs() < 1e-6)
        (True, True)
        """
        return images * self.std + self.mean

    def subset(self, n: int, /, *, seed: int) -> Digits:
        """n training images, drawn by `draw`, beside the same held-out ones.

        >>> embedded().subset(100, seed=3).labels.bincount().tolist()
        [10, 10, 10, 10, 10, 10, 10, 10, 10, 10]
        """
        at = torch.from_numpy(draw(self.labels.numpy(), n, seed=seed))
        return replace(self, images=self.images[at], labels=self.labels[at])


def draw(labels: np.ndarray, n: int, /, *, seed: int, stream: int = SUBSET) -> np.ndarray:
    """Places (n,) of n examples out of labels (N,), increasing; each class has its share of n up to one example.

    Random numbers of their own by seed and stream. Raises BadInput for n outside of 1 … N.

    >>> draw(np.array([0, 0, 1, 1, 1, 1]), 3, seed=0).shape
    (3,)
    """
    if not 1 <= n <= len(labels):
        msg = f"images: expected 1 to {len(labels)}, got {n}; ask for as many, or for all"
        raise BadInput(msg)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
    order = rng.permutation(len(labels))
    # Number every example within its class, in random order; the k-th of a class of m stands at (k + ½)/m of the way.
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = (np.arange(len(own)) + 0.5) / len(own)
    return np.sort(order[np.argsort(rank[order], kind="stable")[:n]])


def flipped(labels: np.ndarray, share: float, /, *, seed: int) -> np.ndarray:
    """Labels (N,) of which round(share·N) are another of the ten classes, each alike likely; as integers.

    Random numbers of their own by seed. Raises BadInput for a share outside of 0 … 1.

    >>> int((flipped(np.zeros(50, int), 0.2, seed=1) != 0).sum())
    10
    """
    if not 0 <= share <= 1:
        msg = f"noise: expected a share from 0 to 1 of the labels, got {share}; 0.2 flips a fifth"
        raise BadInput(msg)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(FLIPS,)))
    at = rng.permutation(len(labels))[: round(share * len(labels))]
    out = labels.copy()
    out[at] = (out[at] + rng.integers(1, CLASSES, len(at))) % CLASSES
    return out


def embedded() -> Digits:
    """scikit-learn's 1,797 real digits of 8×8 pixels; the 5th, 10th, … of each class, in their order, are held out.

    >>> embedded().images.shape
    torch.Size([1442, 1, 8, 8])
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target
    test = np.zeros(len(labels), bool)
    for label in range(CLASSES):
        test[np.flatnonzero(labels == label)[4::5]] = True
    levels = found.images.astype(np.uint8)
    source = "the optical digits that come with scikit-learn, every fifth of each class held out"
    return _digits((levels[~test], labels[~test], levels[test], labels[test]), 16, "embedded", source)


def mnist(folder: str | Path | None = None, /) -> Digits:
    """MNIST, 60,000 and 10,000 digits of 28×28 pixels, from a folder with its four idx files, each as .gz or plain.

    folder: left out, the folder mnist in the one that $TOYLD_DATA names.
    Raises BadInput: a file missing, cut short, packed badly, or with other bytes than those published.

    >>> mnist("no/such/folder")
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: expected train-images-idx3-ubyte or its .gz in no/such/folder, got neither; name its folder
    """
    images, labels, test_images, test_labels = (_idx(name, content) for name, content in held(folder))
    source = "MNIST, md5 " + ", ".join(of.md5[:8] for of in FILES.values())
    return _digits((images, labels, test_images, test_labels), 255, "mnist", source)


def held(folder: str | Path | None = None, /) -> Iterator[tuple[str, bytes]]:
    """What MNIST's four files hold, unpacked, one after the other by name; checked: the very bytes published.

    folder, BadInput: as of `mnist`.

    >>> next(held("no/such/folder"))
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: expected train-images-idx3-ubyte or its .gz in no/such/folder, got neither; name its folder
    """
    if folder is None:
        root = os.environ.get("TOYLD_DATA")
        if not root:
            raise BadInput("expected a folder with MNIST, got none; name it, set TOYLD_DATA, or download it")
        folder = Path(root) / "mnist"
    for name, of in FILES.items():
        yield name, _read(Path(folder), name, of)


def download(folder: str | Path | None = None, /, *, mirrors: Iterable[str] = MIRRORS) -> Digits:
    """MNIST by checked download of its four .gz files into a folder (pooch's cache by default); those there are kept.

    The md5 of each .gz is checked on arrival, that of what it holds when it is read. mirrors: tried in turn.
    Raises BadInput where no mirror gives the published file.

    >>> download("no/such/folder", mirrors=[])
    Traceback (most recent call last):
        ...
    toyld.checked.BadInput: expected train-images-idx3-ubyte.gz from a mirror, got none to ask; fetch it by hand
    """
    import pooch

    folder = Path(folder) if folder is not None else Path(pooch.os_cache("toyld")) / "mnist"
    for name, of in FILES.items():
        if any((folder / file).is_file() for file in (name, f"{name}.gz")):
            continue  # `mnist` checks it
        why = "none to ask"
        for mirror in mirrors:
            try:
                pooch.retrieve(f"{mirror}{name}.gz", f"md5:{of.packed}", fname=f"{name}.gz", path=folder)
                break
            except (OSError, ValueError) as error:  # no connection, or other bytes
                why = f"{type(error).__name__} from {mirror}"
        else:
            msg = f"expected {name}.gz from a mirror, got {why}; fetch it by hand"
            raise BadInput(msg)
    return mnist(folder)


def _digits(parts: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], peak: int, name: str, source: str) -> Digits:
    """Levels of brightness, 0 … peak, and labels; scaled by the mean and spread of the training pixels."""
    for levels, labels in (parts[:2], parts[2:]):
        if len(levels) != len(labels) or levels.ndim != 3 or labels.ndim != 1:
            msg = f"expected as many images as labels, got {levels.shape} and {labels.shape}; fetch the files again"
            raise BadInput(msg)
        if labels.max() >= CLASSES:
            msg = f"expected labels 0 to {CLASSES - 1}, got {labels.max()}; fetch the files again"
            raise BadInput(msg)
    share = np.bincount(parts[0].ravel(), minlength=256) / parts[0].size
    bright = np.arange(256) / peak
    mean = float(share @ bright)
    std = float(np.sqrt(share @ (bright - mean) ** 2))
    scale = torch.from_numpy(((bright - mean) / std).astype(np.float32))
    (images, own), (test_images, other) = (
        (scale[torch.from_numpy(levels.astype(np.int32))][:, None], torch.from_numpy(labels.astype(np.int64)))
        for levels, labels in (parts[:2], parts[2:])
    )
    return Digits(images, own, test_images, other, name, source, mean, std)


def _read(folder: Path, name: str, of: Source) -> bytes:
    """What a file holds, plain or packed, if it is what was published."""
    plain, packed = folder / name, folder / f"{name}.gz"
    file = plain if plain.is_file() else packed
    if not file.is_file():
        msg = f"expected {name} or its .gz in {folder}, got neither; name its folder"
        raise BadInput(msg)
    try:
        with gzip.open(file) if file == packed else file.open("rb") as opened:
            content = opened.read(of.size + 1)  # no more than is asked for, whatever the file unpacks to
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        msg = f"expected a whole gzip file, got {file.name} ({type(error).__name__}); fetch it again"
        raise BadInput(msg) from None
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if len(content) != of.size or got != of.md5:
        size = f"{len(content)} bytes" if len(content) <= of.size else "more"
        msg = f"expected {of.size} bytes with md5 {of.md5} in {file.name}, got {size} with {got}; fetch it again"
        raise BadInput(msg)
    return content


def _idx(name: str, content: bytes) -> np.ndarray:
    """The array in an idx file: two zero bytes, 8 = bytes, the number of axes, each length in 4 bytes, the data."""
    header = content[: 4 + 4 * content[3]] if content[:3] == b"\0\0\x08" and len(content) > 3 else b""
    shape = [int.from_bytes(header[i : i + 4], "big") for i in range(4, len(header), 4)]
    if not header or len(header) + math.prod(shape) != len(content):
        msg = f"expected an idx file of bytes, got header {content[:4].hex()} in {name}; fetch it again"
        raise BadInput(msg)
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
