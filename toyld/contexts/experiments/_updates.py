"""Updates on changed features, Z ← Z − η S P R: the mean subtracted or projected out, and controls for either.

P acts on the residual: taking a vector ν = Φᵀa off every feature is P = I − a 1ᵀ, and projecting the direction of
v = Φᵀa out of the features is P = I − a aᵀS/(aᵀSa).
"""

from __future__ import annotations

import numpy as np

from toyld.contexts import kernels
from toyld.contexts.world import World

__all__ = ["UPDATES", "counts", "preconditioner"]

UPDATES = ("centred", "centred-uniform", "projected", "top-direction", "top-component", "random", "random-projected")


def counts(w: World, /) -> np.ndarray:
    """Tokens of chosen and rejected responses at each trained context, (B, n)."""
    out = np.zeros((w.size[0], w.trained))
    for kind in ("chosen", "rejected"):
        r = w.responses[kind]
        for b in range(len(out)):
            np.add.at(out[b], r.context[b][r.mask[b]], 1.0)
    return out


def _projector(gram: np.ndarray, a: np.ndarray) -> np.ndarray:
    """P = I − a aᵀS/(aᵀSa): features without their part along v = Φᵀa."""
    through = np.einsum("bij,bj->bi", gram, a)
    scale = np.einsum("bi,bi->b", a, through)
    return np.eye(gram.shape[-1]) - a[:, :, None] * through[:, None, :] / scale[:, None, None]


def preconditioner(update: str, w: World, /) -> np.ndarray | None:
    """P (B, n, n) of an update with changed features, Z ← Z − η S P R; None for the plain one.

    centred: φ − μ, μ the mean over the tokens of chosen and rejected; centred-uniform: over their contexts. projected:
    φ without its part along μ. top-direction: without its part along the first right singular vector of the features;
    top-component: along their first principal component (that of φ − μ). random: minus a random vector of the length
    of μ, of any direction in the span of the features; random-projected: without its part along such a vector.

    >>> from toyld.contexts import languages
    >>> p = preconditioner("projected", languages.facts(seeds=[0], concepts=4, prompts=3, length=4))
    >>> bool(np.allclose(p @ p, p))
    True
    """
    if update in ("plain", "without-component"):
        return None
    token = counts(w)
    used = (token > 0).astype(float)
    weight = token if update != "centred-uniform" else used
    mean = weight / weight.sum(-1, keepdims=True)
    if update.startswith("centred"):
        return kernels.centred(mean)
    own = slice(0, w.trained)
    gram = np.asarray(w.kernel.block(own, own)) * used[:, :, None] * used[:, None, :]
    if update == "projected":
        return _projector(gram, mean)
    if update == "top-direction":
        return _projector(gram, np.linalg.eigh(gram)[1][..., -1])
    if update == "top-component":
        off = np.eye(w.trained) - used[:, :, None] * mean[:, None, :]
        top = np.linalg.eigh(off @ gram @ np.swapaxes(off, 1, 2))[1][..., -1]
        return _projector(gram, np.einsum("bji,bj->bi", off, top))
    values, vectors = np.linalg.eigh(gram)
    known = values > 1e-9 * values[:, -1:]
    # The largest eigenvalue gets the first number, so that contexts which only other worlds have change nothing.
    noise = np.stack([np.random.default_rng([seed, 71]).normal(size=w.trained)[::-1] for seed in w.seeds])
    a = np.einsum("bij,bj->bi", vectors, np.where(known, noise / np.sqrt(np.where(known, values, 1.0)), 0.0)) * used
    if update == "random-projected":
        return _projector(gram, a)
    lengths = [np.sqrt(np.einsum("bi,bij,bj->b", x, gram, x)) for x in (mean, a)]
    a = a * (lengths[0] / lengths[1])[:, None]
    return np.eye(w.trained) - a[:, :, None] * used[:, None, :]
