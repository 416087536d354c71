"""What is said of a row of logits, in one pass over tiles of the vocabulary that never holds the row whole.

For a row z of V logits with m = max z at i* (the first of equals), and sums over the *other* classes,

    s1 = Σ_{i≠i*} e^{z_i−m},   s2 = Σ_{i≠i*} e^{2(z_i−m)},   s3 = Σ_{i≠i*} (z_i−m) e^{z_i−m},   Z = 1 + s1:

    log max π = −log1p(s1),   log π_y = log max π (y = i*), else z_y − m − log1p(s1),   H = log1p(s1) − s3/Z,
    ‖π‖² = (1 + s2)/Z²,   ‖π − e_y‖² = (s1² + s2)/Z² (y = i*), else ‖π‖² − 2π_y + 1.

No sum contains the number it is compared with, so float32 keeps its digits near certainty, where 1 − π_y rounds to 0:
log π_y = −1.9e-8 is that. (Below some 1e-19 the squares of ‖π − e_y‖ leave float32.) Two tiles merge associatively: the
lower maximum joins the sums of the other tile after rescaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["NAMES", "Sums", "merge", "numbers", "scan", "sums"]

Tensor = Any  # torch is imported where it is used
NAMES = ("logp", "argmax_logp", "entropy", "top1", "pi_norm2", "residual_norm")
LOWEST = -1e4  # e^LOWEST is 0 in float32 and in float64, and 0 · LOWEST is not nan
BLOCK = 64  # classes whose maximum is taken before the position of the largest is looked for
TILES = {"cpu": (256, 2048), "cuda": (2048, 8192)}  # rows and classes of a tile: 2 MiB on a CPU, some 64 MiB else


@dataclass(frozen=True)
class Sums:
    """Of N rows: the largest logit and where it is; s1, s2, s3 over all other classes. (N,) each."""

    top: Tensor
    at: Tensor
    others: Tensor
    squares: Tensor
    weighted: Tensor


def sums(z: Tensor, /, *, first: int = 0, scratch: Tensor | None = None) -> Sums:
    """The sums of a tile of logits (N, W) whose first class is `first`; the tile is overwritten, and so is `scratch`.

    >>> import torch
    >>> found = sums(torch.tensor([[0.0, 3.0, 0.0]]), first=10)
    >>> found.top.item(), found.at.item(), round(found.others.item(), 6) == round(2 * 2.718281828**-3, 6)
    (3.0, 11, True)
    """
    import torch

    top, at = _max(z)
    # A row of −inf alone has no largest: 0 in its place gives e^z = 0, and its weight is 0 when tiles merge.
    z.sub_(torch.where(top == -torch.inf, 0.0, top)[:, None]).clamp_(min=LOWEST)
    e = torch.exp(z, out=scratch).scatter_(1, at[:, None], 0.0)
    squares = torch.linalg.vector_norm(e, dim=1).square()
    others = e.sum(1)
    return Sums(top, at + first, others, squares, e.mul_(z).sum(1))


def _max(z: Tensor) -> tuple[Tensor, ...]:
    """max and argmax of rows. Positions are dear on a CPU, maxima are not: look for them in the best block alone."""
    import torch

    n, width = z.shape
    if z.device.type != "cpu" or width % BLOCK or width < 4 * BLOCK:
        return tuple(z.max(1))
    blocks = z.view(n, width // BLOCK, BLOCK)
    top, best = blocks.amax(2).max(1)
    return top, best * BLOCK + blocks[torch.arange(n), best].argmax(1)


def merge(a: Sums, b: Sums, /) -> Sums:
    """The sums over the classes of both tiles; of equal maxima that of `a` is the argmax.

    >>> import torch
    >>> z = torch.tensor([[1.0, 5.0, 2.0, 4.5]])
    >>> both = merge(sums(z[:, :2].clone()), sums(z[:, 2:].clone(), first=2))
    >>> whole = sums(z.clone())
    >>> both.at.item(), torch.allclose(both.weighted, whole.weighted, rtol=1e-6)
    (1, True)
    """
    import torch

    high = a.top >= b.top
    top = torch.maximum(a.top, b.top)  # nan stays nan

    def pick(name: str) -> tuple[Tensor, Tensor]:
        x, y = getattr(a, name), getattr(b, name)
        return torch.where(high, x, y), torch.where(high, y, x)

    at, _ = pick("at")
    (s1, t1), (s2, t2), (s3, t3) = pick("others"), pick("squares"), pick("weighted")
    finite = torch.where(top == -torch.inf, 0.0, top)
    down = (torch.minimum(a.top, b.top) - finite).clamp(min=LOWEST)
    weight = down.exp()
    others = s1 + weight * (1 + t1)
    squares = s2 + weight.square() * (1 + t2)
    weighted = s3 + weight * (t3 + down * (1 + t1))
    return Sums(top, at, others, squares, weighted)


def numbers(found: Sums, at_label: Tensor, labels: Tensor, rows: Tensor, /) -> Tensor:
    """(6, M) float64 in the order of `NAMES`: for M labels, each of one of the N `rows`, with its logit `at_label`.

    Rows whose largest logit is not finite are nan.

    >>> import torch
    >>> z = torch.tensor([[18.0, 0.0]])  # π = 1 − 1.5e-8: in float32 1 − π is 0
    >>> one = numbers(sums(z.clone()), z[0, :1], torch.tensor([0]), torch.tensor([0]))
    >>> [f"{x:.3g}" for x in one[:, 0].tolist()]
    ['-1.52e-08', '-1.52e-08', '2.89e-07', '1', '1', '2.15e-08']
    """
    import torch

    top, s1, s2, s3, at_label = (
        x.cpu().double() for x in (found.top, found.others, found.squares, found.weighted, at_label)
    )
    labels, rows = labels.cpu(), rows.cpu()
    right = found.at.cpu()[rows] == labels
    total = 1 + s1
    best = -torch.log1p(s1)
    norm2, entropy = (1 + s2) / total.square(), -best - s3 / total
    label = torch.where(right, best[rows], at_label - top[rows] + best[rows])
    near = (s1.square() + s2) / total.square()
    residual = torch.where(right, near[rows], norm2[rows] - 2 * label.exp() + 1).sqrt()
    out = torch.stack([label, best[rows], entropy[rows], best.exp()[rows], norm2[rows], residual])
    return torch.where(torch.isfinite(top)[rows], out, torch.nan)


def scan(
    features: Tensor, logits: Callable[[Tensor, int, int], Tensor], classes: int, rows: Tensor, labels: Tensor, /
) -> Tensor:
    """`numbers` of labels behind rows of features (N, d), where logits(features, a, b) are those of classes a … b − 1.

    `rows` (M,), ascending, and `labels` (M,) on the CPU. `logits` returns a new tensor each time, float32 or float64.
    Memory: two tiles of `TILES`.
    """
    import torch

    n, width = TILES.get(features.device.type, TILES["cuda"])
    out, scratch = [torch.empty(6, 0, dtype=torch.float64)], None
    for start, begin, end in _chunks(rows, len(features), n):
        some, mine, wanted = features[start : start + n], rows[begin:end] - start, labels[begin:end]
        found: Sums | None = None
        for a in range(0, classes, width):
            b = min(a + width, classes)
            z = logits(some, a, b)
            if found is None:  # the logits may be on another device than the features
                here, wanted = mine.to(z.device), wanted.to(z.device)
                at_label = torch.full(wanted.shape, torch.nan, dtype=z.dtype, device=z.device)
            inside = (wanted >= a) & (wanted < b)
            at_label = torch.where(inside, z[here, (wanted - a).clamp(0, b - a - 1)], at_label)
            if scratch is None or scratch.shape != z.shape or scratch.dtype != z.dtype:
                scratch = torch.empty_like(z)
            tile = sums(z, first=a, scratch=scratch)
            found = tile if found is None else merge(found, tile)
        assert found is not None
        out.append(numbers(found, at_label, wanted, mine))
    return torch.cat(out, 1)


def _chunks(rows: Tensor, n_rows: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(first row, first label, behind the last label) of each chunk of rows that has labels."""
    import torch

    starts = range(0, n_rows, size)
    edges = torch.searchsorted(rows, torch.tensor([*starts, n_rows])).tolist()
    for start, begin, end in zip(starts, edges[:-1], edges[1:], strict=True):
        if end > begin:
            yield start, begin, end
