"""Pre-memorisation train accuracy (Kang et al., 2411.07681): how often a model is right before it copies its lesson.

A run is watched at checkpoints m. For every training prompt i there are

    acc   the probability that an answer the model samples itself is right (in practice a share of some samples),
    perp  exp(−(1/T) log π(gold trace | prompt)), the perplexity of the T tokens that it is trained to give.

It *copies* prompt i at m where perp ≤ p. What it was right in without copying, and still is:

    masked_m = acc_m · 1[perp_m > p]
    PreMem_m = min( max_{m' ≤ m} masked_{m'},  acc_m )

With acc from few samples the maximum over many checkpoints is biased upwards; bounds below are for acc itself, and for
answers drawn as perplexity measures them, at temperature 1: colder ones repeat a trace before it counts as copied.

A prompt that is never copied has PreMem = acc; one that is copied from the first checkpoint on has 0. A checkpoint at
which copying pauses counts again: the mask looks at each checkpoint alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from array_api_compat import array_namespace
from numpy.typing import NDArray

from toyld.checked import BadInput

__all__ = ["copied", "copying_bound", "of_table", "perplexities", "pre_memorisation"]

Array = Any


def copied(perplexity: Array, /, *, threshold: float) -> Array:
    """Where the gold trace counts as copied, perp ≤ threshold; the threshold is a perplexity, above 1.

    >>> import numpy as np
    >>> copied(np.array([2.0, 1.1, 1.05]), threshold=1.1)
    array([False,  True,  True])

    Raises:
        BadInput: a threshold that is not above 1 (no perplexity is below it, so that nothing was ever copied).
    """
    if not 1.0 < threshold < float("inf"):
        msg = f"threshold: expected a perplexity above 1, got {threshold}"
        raise BadInput(msg)
    return perplexity <= threshold


def pre_memorisation(accuracy: Array, perplexity: Array, /, *, threshold: float) -> Array:
    """PreMem at every checkpoint (M, …) from accuracies in [0, 1] and perplexities of the gold traces, both (M, …).

    The last row is what predicts test accuracy: its mean over prompts. Prompt by prompt it says which answers rest on
    more than their own trace.

    >>> import numpy as np
    >>> accuracy = np.array([[0.1, 0.1, 0.1], [0.5, 0.2, 0.4], [0.9, 1.0, 0.3]])      # 3 checkpoints, 3 prompts
    >>> perplexity = np.array([[3.0, 1.0, 3.0], [2.0, 1.0, 2.5], [1.0, 1.0, 2.0]])    # copied late, at once, never
    >>> pre_memorisation(accuracy, perplexity, threshold=1.5)[-1]
    array([0.5, 0. , 0.3])

    Raises:
        BadInput: shapes that differ, no checkpoint, accuracies outside [0, 1], perplexities below 1, or not a number.
    """
    xp = array_namespace(accuracy, perplexity)
    if accuracy.shape != perplexity.shape or accuracy.ndim == 0 or accuracy.shape[0] == 0:
        msg = f"expected accuracies and perplexities of one shape (checkpoints, …), got {tuple(accuracy.shape)} and "
        raise BadInput(msg + f"{tuple(perplexity.shape)}")
    if not all(xp.isdtype(x.dtype, "real floating") for x in (accuracy, perplexity)):
        msg = f"expected accuracies and perplexities as floats, got {accuracy.dtype} and {perplexity.dtype}; cast them"
        raise BadInput(msg)
    if not bool(xp.all((accuracy >= 0) & (accuracy <= 1))):
        raise BadInput("accuracy: expected shares between 0 and 1; a value is not, or is no number")
    # a product of probabilities may round a little above 1
    if not bool(xp.all(perplexity >= 1 - 8 * xp.finfo(perplexity.dtype).eps)):
        raise BadInput("perplexity: expected values of 1 and more, exp of a mean of −log π; a value is not")
    best = xp.zeros_like(accuracy[0, ...])
    out = []
    for m in range(accuracy.shape[0]):
        fresh = ~copied(perplexity[m, ...], threshold=threshold)
        best = xp.maximum(best, accuracy[m, ...] * xp.astype(fresh, accuracy.dtype))
        out.append(xp.minimum(best, accuracy[m, ...]))
    return xp.stack(out, axis=0)


def copying_bound(tokens: Array, /, *, threshold: float) -> Array:
    """threshold^{−T}: the most that copying a trace of T tokens can add to a masked accuracy.

    While perp > p the gold trace itself has probability perp^{−T} < p^{−T}, so that PreMem of probabilities (not of
    shares of a few samples) is at most p^{−T} plus the best probability of all *other* correct traces so far. For a
    trace of one token that says nothing (p = 1.1: .91), for one of a hundred it is 7·10⁻⁵: the metric needs long
    traces, or a high threshold.

    >>> float(round(copying_bound(100, threshold=1.1), 6))
    7.3e-05
    """
    copied(1.0, threshold=threshold)
    return threshold**-tokens


def perplexities(ds: xr.Dataset, /, *, probe: str = "chosen") -> NDArray[np.float64]:
    """exp(−logp/n_tokens) of a probe of a table, (seed, step, example).

    >>> from toyld.trajectory import trajectory
    >>> told = {"logp": [[[[-8.0]], [[0.0]]]], "n_tokens": [[[8.0]]]}
    >>> perplexities(trajectory(told, step=[0, 10], probe=["chosen"])).round(3)[0, :, 0].tolist()
    [2.718, 1.0]
    """
    one = ds[["logp", "n_tokens"]].sel(probe=probe).transpose("seed", "step", "example")
    return np.exp(-one.logp.values / one.n_tokens.values[:, None])


def of_table(ds: xr.Dataset, /, *, threshold: float, probe: str = "chosen") -> NDArray[np.float64]:
    """PreMem (seed, step, example) of a table's `accuracy` and of the perplexities exp(−logp/n_tokens) of a probe.

    Raises:
        BadInput: a table without them, or with holes where both are asked for.

    >>> from toyld.trajectory import trajectory
    >>> told = {"accuracy": [[[[0.5]], [[0.9]]]], "logp": [[[[-8.0]], [[-0.1]]]], "n_tokens": [[[8.0]]]}
    >>> of_table(trajectory(told, step=[0, 10], probe=["chosen"]), threshold=1.2)[0, :, 0].tolist()
    [0.5, 0.5]
    """
    missing = [name for name in ("accuracy", "logp", "n_tokens") if name not in ds.data_vars]
    if missing or probe not in ds.probe.values:
        got = f"no {', '.join(missing)}" if missing else f"probes {', '.join(map(str, ds.probe.values))}"
        raise BadInput(
            f"expected a table with accuracy, logp and n_tokens of probe {probe!r}, got {got}; sample answers"
        )
    accuracy = ds.accuracy.sel(probe=probe).transpose("step", "seed", "example").values
    perplexity = np.moveaxis(perplexities(ds, probe=probe), 1, 0)
    return np.moveaxis(pre_memorisation(accuracy, perplexity, threshold=threshold), 0, 1)
