"""The reader of the authors' released logs (Ren & Sutherland, ICLR 2025): from their arrays to the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from toyld.trajectory._authors import Options, read_log
from toyld.trajectory.table import trajectory

__all__ = ["read_authors"]


def read_authors(
    path: str | Path,
    /,
    *,
    stage: str = "unknown",
    arm: str = "unknown",
    eval_every: int = 1000,
    batch_size: int | None = None,
    n_examples: int = 500,
    vocab_size: int | None = None,
    has_step0: bool = True,
    rows: slice = slice(None),
    keep_buggy_argmax: bool = False,
) -> xr.Dataset:
    """One run of the authors' released logs (Ren & Sutherland, ICLR 2025): a folder, or the file of JSON lines in it.

    Rows that do not belong, the argmax bug and the rest are found in the numbers, dropped and noted; what that can and
    cannot find stands in `toyld.trajectory._authors`. Logged keys become `logp`, `argmax_logp`, `residual_norm` (p_e),
    `label_gap` (energy) and `a_norm_logged` (A_o); other keys `eval_KEY`. `pi_norm2` cannot be recovered from A_o (a
    mean of norms was squared); with `vocab_size` (the logits' width: 50304 for Pythia) and an array per example,
    `pi_norm` can.

    The log does not record, and the caller may state: `stage`, `arm`; `eval_every`, training examples between two
    evaluations; `batch_size`, examples per update (without it `step` counts examples, see attr step_unit);
    `n_examples` behind the means where there is no array; `has_step0`, whether row 0 precedes the first update
    (0 all the same where the array per example lacks the first row of the file).
    `rows` = slice(first, end) reads a part of the JSON rows. `keep_buggy_argmax` keeps an argmax that is dropped, as
    `argmax_logp_as_logged`, to show it beside a right one.
    Raises TrajectoryError for a log that cannot be read without guessing.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.json"
    >>> _ = path.write_text('{"logps_eval_prob_train/chosen": -3.0}\\n{"logps_eval_prob_train/chosen": -2.5}\\n')
    >>> read_authors(path, stage="sft").logp.values.ravel()
    array([-3. , -2.5])
    """
    options = Options(rows, eval_every, n_examples, has_step0, vocab_size, keep_buggy_argmax, batch_size)
    options.check()
    with np.errstate(all="ignore"):  # absurd numbers are refused by `validate`
        log = read_log(Path(path), options)
    probes, variables = log.arrays()
    return trajectory(
        variables,
        step=[seen // (batch_size or 1) for seen in log.examples_seen],
        examples_seen=log.examples_seen,
        probe=probes,
        example=log.example,
        world="published",
        stage=stage,
        arm=arm,
        step_unit="updates" if batch_size else "examples",
        has_step0=log.has_step0,
        notes=log.notes,
        attrs={**log.attrs, "vocab_size": vocab_size},
    )
