"""The authors' released logs (Ren & Sutherland, ICLR 2025) as plain arrays; `toyld.trajectory` makes the table of them.

A run is a text file of JSON lines, one object of means per evaluation, appended to by every start of the program, and
perhaps an array [checkpoint, metric, example] without column names, written when a run ended. Per example, over the L
tokens of a response: `logps_eval_SET/PROBE` = Σ log π(label), `argmax_prob_logits` = Σ log max π, `PROBE_A_o` =
√(V x̄² + V − 2) with x̄ = mean ‖π‖, `p_e` = mean ‖π − e_label‖, `energy` = mean (1 − π(label)).

**Which rows belong** (`toyld.trajectory._rows`). With the array, those whose means are the array's. Without it, first
occurrences: a start that writes row 0 and then row 1 again, to the last bit, repeats the same run, and all it
writes before the end is known. A start that repeats row 0 alone and is followed by unknown rows may be another run:
refused. Where row 0 stands several times before row 1, the rows behind tell whether processes took turns (refused);
where they do not, a note says that a second process cannot be excluded. The first row of the file not in the array
tells that this is the array of a program started again, perhaps from a model that had trained: has_step0 is 0.
Not detectable without the array: rows in another order (the `means-only` note says that the order is the file's), and a
second process whose first row is not row 0. Nor with it: a reversed array, as its own order is then the only clock.

**The argmax bug** (`argmax_prob_logits`, `p_e`, `energy` and an unprefixed `A_o` overwritten by another probe). Three
entailed tests; each failure is a proof, a pass is none:
1. max π ≥ π(label) at every token, so argmax ≥ chosen in every example, and in the mean.
2. With d = ‖π − e‖ and p = π(label): d² = ‖π‖² + 1 − 2p and d ≥ 1 − p, so (d + √2 p)² ≥ ‖π‖² + 1. Averaged (Jensen),
   p_e + √2 (1 − energy) ≥ √((A_o² + 2)/V), for means too. ‖π‖ ≥ 1/√V gives V ≤ A_o² + 1 for every probe's A_o, so no
   V needs to be known. It shows `p_e` and `energy` measured on contexts flatter than the chosen ones; argmax falls with
   them because one pass wrote all three. Also energy ≤ p_e ≤ √2 energy.
3. An unprefixed `A_o` equal to another probe's `PROBE_A_o` in every row.

So a bug that overwrites argmax alone shows in an array per example where the other probe is less likely than the chosen
response, and in means only where it is so in the mean. Where neither the array nor `chosen_A_o`, `p_e` and `energy` are
there, nothing can be tested, and the released program overwrote it in those layouts: argmax is left out, with a note.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from toyld.checked import TrajectoryError, fail
from toyld.trajectory._rows import align, first_occurrences, note_extra, refuse_interleaved, refuse_two_runs
from toyld.trajectory._sniff import sniff
from toyld.trajectory._text import once, show
from toyld.trajectory.table import ROUNDING32

__all__ = ["Log", "Options", "read_log"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Notes = list[tuple[str, str]]

_LOGP = re.compile(r"logps_eval_([^/]+)/(.+)", re.DOTALL)
_ARGMAX, _EXCEPT, _PE, _ENERGY, _A = "argmax_prob_logits", "except_argmax_prob_logits", "p_e", "energy", "A_o"
_OVERWRITTEN = (_ARGMAX, _PE, _ENERGY, _A)  # one pass writes them, so they are wrong together
_EPS32 = float(np.finfo(np.float32).eps)  # the released program computes in float32
_MOST_KEYS, _MOST_SETS = 512, 64  # the released programs write up to 50 keys, in one or two sets; time goes with both
_PIECE = 1 << 16  # characters of a line that are looked at together
_SUMS = 4 * _EPS32 * 2**9  # rounding of its sums over vocabularies of up to 2^18 tokens: √V eps, four of them


class Options(NamedTuple):
    """Options of `toyld.trajectory.read_authors`."""

    rows: slice = slice(None)
    eval_every: int = 1000
    n_examples: int = 500
    has_step0: bool = True
    vocab_size: int | None = None
    keep_buggy_argmax: bool = False
    batch_size: int | None = None

    def check(self) -> None:
        """One line unless each is usable."""
        for name in ("eval_every", "n_examples", "batch_size", "vocab_size"):
            value = 1 if getattr(self, name) is None and name in ("batch_size", "vocab_size") else getattr(self, name)
            if type(value) is not int or value < 1 or (name == "batch_size" and self.eval_every % value):
                fail(f"a positive whole number {name}, batch_size dividing eval_every", show(value), "correct it")
        if not isinstance(self.rows, slice) or self.rows.step not in (None, 1):
            fail("rows as slice(first, end), every row between", show(self.rows), "select evaluations in the table")


class Log(NamedTuple):
    """What one log holds: arrays [step, example] by variable and probe, arrays [step] by variable, and the rest."""

    by_probe: dict[str, dict[str, Floats]]
    by_step: dict[str, Floats]
    examples_seen: list[int]
    example: list[str]
    attrs: dict[str, str | int]
    notes: Notes
    has_step0: bool

    def arrays(self) -> tuple[list[str], dict[str, Floats]]:
        """The probes, and the variables with one seed: [seed, step, probe, example] or [seed, step]."""
        probes = list(dict.fromkeys(probe for arrays in self.by_probe.values() for probe in arrays))
        gap = np.full((len(self.examples_seen), len(self.example)), np.nan)
        full = {name: np.stack([a.get(probe, gap) for probe in probes], 1) for name, a in self.by_probe.items()}
        return probes, {name: values[None] for name, values in (full | self.by_step).items()}


def _members(path: Path) -> tuple[Path, list[Path], list[Path], bool]:
    """(the JSON lines, the arrays beside them, the Git-LFS pointers beside them, whether it is the only log there)."""
    try:
        files = sorted(f for f in (path if path.is_dir() else path.parent).iterdir() if f.is_file())
        kinds = {f: sniff(f) for f in files if f == path or os.access(f, os.R_OK)}
    except OSError as error:
        fail("a log or its folder", f"{path.name}: {error.strerror}", "check the path")
    found = [f for f, kind in kinds.items() if kind == "authors"]
    logs = [path] if path in kinds else found if path.is_dir() else []
    pointers = [f for f, kind in kinds.items() if kind == "lfs"]
    if pointers and (not logs or path in pointers):
        names = ", ".join(f.name for f in pointers)
        fail("a log of JSON lines", f"a Git-LFS pointer file ({names})", "fetch the content with `git lfs pull`")
    if len(logs) != 1 or kinds[logs[0]] != "authors":
        names = ", ".join(f.name for f in logs) or f"none in {path.name}"
        fail("one log of JSON lines with keys logps_eval_SET/PROBE", names, "name such a file or its folder")
    arrays = [f for f, kind in kinds.items() if kind == "npy" or (kind == "other" and f.suffix == ".npy")]
    return logs[0], arrays, pointers, len(found) == 1


def _rows(path: Path) -> tuple[list[dict[str, float]], list[tuple[int, bool]]]:
    """The rows, and for each broken piece (rows before it, whether it is what a killed program leaves).

    A killed program leaves the beginning of an object without a line end; the next start writes on behind it.
    """
    decoder = json.JSONDecoder(object_pairs_hook=once)
    rows: list[dict[str, float]] = []
    broken: list[tuple[int, bool]] = []
    for raw in path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        text, at = raw.decode("utf-8", "replace").strip(), 0
        while at < len(text):
            if at > _PIECE:  # an error of the decoder counts lines from the start: keep that near
                text, at = text[at:], 0
            try:
                value, end = decoder.raw_decode(text, at)
            except TrajectoryError:
                raise
            except (ValueError, RecursionError):
                end = text.find("{", at + 1)
                broken.append((len(rows), end > 0 and "}" not in text[at:end]))
                at = end if end > 0 else len(text)
                continue
            at = re.compile(r"\s*").match(text, end).end()  # type: ignore[union-attr]
            if not isinstance(value, dict):
                broken.append((len(rows), False))
                continue
            for key, number in value.items():
                good = type(number) is float or (type(number) is int and number.bit_length() < 1000)
                if not good or "\ufffd" in key:
                    got = f"row {len(rows)}, key {show(key)} = {show(number)}"
                    fail("numbers (double precision) under UTF-8 keys", got, "repair the log")
            rows.append({key: float(number) for key, number in value.items()})
    if not rows:
        fail("at least one evaluation", f"no complete JSON object in {path.name}", "look for a log that is not empty")
    return rows, broken


def _array(path: Path) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises many kinds on bad bytes
        fail("a numeric .npy array", f"{path.name} ({show(str(error))})", "remove it or put the real one there")
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.ndim != 3 or 0 in array.shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        fail("floats [checkpoint, metric, example]", f"{path.name} with {got}", "remove it or put the real one there")
    return array


def _bug(columns: dict[str, Floats], logps: dict[str, str], peaks: dict[str, str], per_example: bool) -> str | None:
    """Why argmax was not measured on the chosen contexts (module docstring), or None where it may stand."""
    argmax, label = columns.get(_ARGMAX, np.zeros(1)), {probe: columns[key] for probe, key in logps.items()}
    below = {probe: argmax < logp - ROUNDING32 * np.abs(logp) for probe, logp in label.items()}
    if below["chosen"].any():
        share = below["chosen"][np.isfinite(label["chosen"]) & np.isfinite(argmax)].mean()
        clean = [probe for probe, cells in below.items() if per_example and not cells.any()]
        fits = f"; it is never below the label of {', '.join(clean)}" if clean else ""
        cells = "(checkpoint, example)" if per_example else "the means"
        return f"argmax is below the chosen label's log-probability, impossible, in {share:.1%} of {cells}{fits}"
    if _A in columns and peaks:
        equal = [probe for probe, key in peaks.items() if np.array_equal(columns[key], columns[_A], equal_nan=True)]
        if equal and "chosen" not in equal:
            return f"the unprefixed A_o, written with argmax, is that of {', '.join(equal)}"
    if _PE in columns and _ENERGY in columns:
        pe, energy = columns[_PE], columns[_ENERGY]
        if (energy > pe + _SUMS).any() or (pe > np.sqrt(2) * energy + _SUMS).any():
            return "p_e and energy, written with argmax, contradict each other (energy <= p_e <= sqrt(2) energy)"
        known = {probe: columns[key] for probe, key in peaks.items() if np.isfinite(columns[key]).any()}
        if "chosen" in known:
            size = min(float(np.nanmin(norm)) for norm in known.values()) ** 2 + 1
            have = (pe + np.sqrt(2) * (1 - energy)) * (1 + _SUMS)
            clash = {probe: have < np.sqrt((norm**2 + 2) / size) for probe, norm in known.items()}
            if not clash["chosen"].any():
                return None
            share = clash["chosen"].mean()
            fits = ", ".join(probe for probe, cells in clash.items() if not cells.any()) or "no probe"
            return (
                f"p_e and energy, written with argmax, are impossible beside chosen_A_o in {share:.1%} of evaluations, "
                f"for any vocabulary the log allows (V <= {size:.0f}); they fit the A_o of {fits}"
            )
    why = "argmax cannot be checked (neither an array per example nor all of p_e, energy and chosen_A_o)"
    return None if per_example else f"{why}, and the released program wrote it along another probe in such logs"


def _named(columns: dict[str, Floats], chosen: str, notes: Notes, per_example: bool, options: Options) -> Log:
    """From logged columns [step, example] to variables by probe, without what is known to be wrong."""
    if columns.pop(_EXCEPT, None) is not None:
        text = f"{_EXCEPT} left out: log(1 - max pi) underflows in float32 where it matters, and is NaN elsewhere"
        notes.append(("non-finite-rows", text))
    for key, values in columns.items():
        if count := int((~np.isfinite(values)).sum()):
            notes.append(("non-finite-rows", f"{count} of {values.size} values of {show(key)} not finite or missing"))
            columns[key] = np.where(np.isfinite(values), values, np.nan)
    logps = {match[2]: key for key in columns if (match := _LOGP.fullmatch(key))}
    peaks = {key.removesuffix("_A_o"): key for key in columns if key.endswith("_A_o") and key != "_A_o"}
    by_probe: dict[str, dict[str, Floats]] = {"logp": {probe: columns[key] for probe, key in logps.items()}}
    reason = _bug(columns, logps, peaks, per_example) if set(_OVERWRITTEN) & set(columns) else None
    if reason is not None:
        gone = {key: columns.pop(key) for key in _OVERWRITTEN if key in columns}
        notes.append(("argmax-bug", f"{reason}; left out: {', '.join(gone)}"))
        if options.keep_buggy_argmax and _ARGMAX in gone:
            by_probe["argmax_logp_as_logged"] = {"chosen": gone[_ARGMAX]}
    for key, name in ((_ARGMAX, "argmax_logp"), (_PE, "residual_norm"), (_ENERGY, "label_gap")):
        if key in columns:
            by_probe[name] = {"chosen": columns.pop(key)}
    norm = {probe: columns.pop(key) for probe, key in peaks.items()}
    if (bare := columns.pop(_A, None)) is not None:
        norm.setdefault("chosen", bare)
    if norm:
        by_probe["a_norm_logged"] = norm
    if norm and (size := options.vocab_size) is not None:
        squares = np.concatenate([a.ravel() for a in norm.values()]) ** 2
        low, high = float(np.fmax.reduce(squares)) / 2 + 1, float(np.fmin.reduce(squares)) + 1
        if not low * (1 - _SUMS) <= size <= high * (1 + _SUMS):
            fail(f"a vocab_size within [{low:.0f}, {high:.0f}], as the log's A_o entail", str(size), "correct it")
        if per_example:  # the mean over examples cannot be inverted
            by_probe["pi_norm"] = {probe: np.sqrt(np.maximum((a**2 + 2) / size - 1, 0)) for probe, a in norm.items()}
    by_step: dict[str, Floats] = {}
    for key in [key for key in columns if key not in logps.values()]:  # other programs' keys
        name = "eval_" + re.sub(r"[^A-Za-z0-9_]", "_", key)
        if name in by_step:
            fail("keys that differ in letters, digits or _", show(key), "rename it in the log")
        by_step[name] = columns[key].mean(1)
    steps, examples = columns[chosen].shape
    attrs: dict[str, str | int] = {"n_examples": examples if per_example else options.n_examples}
    seen = [(i + (not options.has_step0)) * options.eval_every for i in range(steps)]
    names = [str(i) for i in range(examples)] if per_example else ["mean"]
    return Log(by_probe, by_step, seen, names, attrs, notes, options.has_step0)


def read_log(path: Path, options: Options) -> Log:
    """Read one of the authors' runs, under np.errstate(all="ignore"); see `toyld.trajectory.read_authors`."""
    source, arrays, pointers, alone = _members(path)
    notes = [("lfs-pointer", f"{file.name} is a Git-LFS pointer, not the data: skipped") for file in pointers]
    digest = {source.name: hashlib.sha256(source.read_bytes()).hexdigest()}
    means, broken = _rows(source)
    first = options.rows.indices(len(means))[0]
    means, broken = means[options.rows], [(b - first, killed) for b, killed in broken if b >= first]
    keys = list(dict.fromkeys(key for row in means for key in row))
    sets = sorted({match[1] for key in keys if (match := _LOGP.fullmatch(key))})
    if len(sets) != 1:
        fail("rows of one probing set (keys logps_eval_SET/PROBE)", show(sets), "keep one set's rows, or other rows")
    chosen = f"logps_eval_{sets[0]}/chosen"
    if lacking := [i for i, row in enumerate(means) if chosen not in row]:
        fail(f"{chosen} in every row", f"none in rows {show(lacking)}", "repair the log")
    different = len({frozenset(row) for row in means})
    if len(keys) > _MOST_KEYS or different > _MOST_SETS:
        got = f"{len(keys)} in {different} sets"
        fail(f"at most {_MOST_KEYS} keys, in {_MOST_SETS} sets", got, "keep the rows of one program")
    present = np.array([[key in row for key in keys] for row in means])
    table = np.array([[row.get(key, np.nan) for key in keys] for row in means])
    if broken:
        notes.append(("non-finite-rows", f"{len(broken)} incomplete JSON row(s), as a killed program leaves: left out"))
    columns: dict[str, Floats] = {}
    refused: list[str] = []
    started = True
    for file in arrays:
        try:
            array = _array(file)
        except TrajectoryError as error:
            refused.append(str(error))
            continue
        if (aligned := align(array, table, present)) is None:
            refused.append(f"{file.name} {array.shape}, whose means fit no columns of the {len(means)} JSON rows")
            continue
        order, label = aligned
        columns = {keys[k]: np.array(array[:, order.index(k)], np.float64) for k in sorted(order)}
        digest[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        kept = {t: i for i, t in reversed(list(enumerate(label)))}
        extra = [i for i, t in enumerate(label) if t < 0 or kept[t] != i]
        started = label[0] >= 0
        note_extra(label, extra, notes, ", they are not in the array per example")
        if missing := sorted(set(range(len(array))) - set(label)):
            text = f"checkpoints {show(missing)} have no complete JSON row: taken from the array per example"
            notes.append(("non-finite-rows", text))
        if not started and options.has_step0:
            text = "row 0 is not in the array per example, which may begin with a model that had trained: its first "
            text += "checkpoint is not known to be the start (where it is, leave the other rows out with rows=)"
            notes.append(("duplicate-rows", text))
        break
    per_example = bool(columns)
    if refused and not per_example and alone:  # beside several logs the array may be another's
        fail("an array per example that belongs to the JSON", "; ".join(refused), "fetch the right one or remove it")
    if not per_example:
        new, label = first_occurrences(table, present)
        refuse_two_runs(new, label)
        refuse_interleaved(label, new, [table[:, keys.index(key)] for key in (chosen, _ARGMAX) if key in keys], notes)
        for b, killed in broken:  # a row lost inside the run would shift all later steps
            if b < len(label) and not (killed and label[b] == 0):
                got = f"a broken piece before row {b}, inside the run"
                fail("complete JSON rows", got, "repair it (steps are rows)")
        note_extra(label, sorted(set(range(len(label))) - set(new)), notes, "")
        columns = {key: table[new, k, None] for k, key in enumerate(keys)}
        text = "no array per example: each value is a mean over the probing set; the order of evaluations is that of "
        notes.append(("means-only", f"{text}the file"))
    log = _named(columns, chosen, notes, per_example, options)
    log = log._replace(has_step0=log.has_step0 and started)
    log.attrs.update(probing_set=sets[0], eval_every=options.eval_every, fingerprints=json.dumps(digest))
    return log
