"""The rung `published`: the authors' released logs, known by their content, and the effects recorded from them.

The released logs record neither stage nor model. `RELEASED` says for each log, by the digests of its files, under which
name the authors published it (`src/exp_results/NAME` of Joshua-Ren/Learning_dynamics_LLM, Apache-2.0) and what that
name says of it. A log with another content is not in this table, whatever it is called.

What of them lies under $TOYLD_DATA/runs/authors is computed now; for the rest the effects in `toyld/evidence` stand in.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import xarray as xr

from toyld.checked import BadInput, TrajectoryError
from toyld.checkout import checkout
from toyld.claims.base import Claim, registry
from toyld.claims.effects import Effect, untested
from toyld.claims.runs import RunClaim, RunResult, Trial, decide, try_on
from toyld.files import write_whole
from toyld.trajectory import read_authors

__all__ = ["COMMAND", "EVIDENCE", "RELEASED", "Released", "current", "evidence", "find", "outcomes", "record"]

SCHEMA = 1
EVIDENCE = "published-authors.json"
COMMAND = "python -c \"from toyld import scoreboard; scoreboard.record('toyld/evidence/published-authors.json')\""


@dataclass(frozen=True)
class Released:
    """One released log: what its name says of it, and the sha256 of its files: JSON lines, array per example."""

    stage: str
    model: str
    files: tuple[str, ...]
    arm: str = "unknown"
    note: str = ""


RELEASED: dict[str, Released] = {
    "pythia410_baseline_sft_verify_argmax_bug": Released(
        "sft",
        "Pythia-410M",
        (
            "f926090b9d250db30bf6c6ce8219788ff15404fdb592f6d85e069f277ef3ceef",
            "1fba9842c0e74a0d2ee1abc1f5f8db8ed0a4a291b42ad592962c65b1a3357fbb",
        ),
        arm="baseline",
        note="argmax fixed",
    ),
    "prob_pythia410m_dpo": Released(
        "dpo",
        "Pythia-410M",
        (
            "fd72d85d02bc9ba15ae9e955278d96d96c6055f154898768f7cdc150ed1a0fab",
            "1d701ebbe295d1fcd2b8964ce117052b3679aa1a257b66c2f59672a34f7354ab",
        ),
        note="no SFT before: chosen starts where the SFT log starts; argmax of shuffled responses",
    ),
    "pythia410_baseline_dpo_checkbug": Released(
        "dpo",
        "Pythia-410M",
        (
            "1bf4b073153eb5a107984dbc127a91fc1e671b8fd5c6ec0a83916e0c2ebdc6f3",
            "ce82db5ff257a97fee642898c65b8afc15e71591206e47bcbd99013c51aadcf9",
        ),
        arm="baseline",
        note="no SFT before; argmax fixed; swings by 10 to 20 nats between evaluations",
    ),
    "pythia410_baseline_dpo_checkbug_5e7": Released(
        "dpo",
        "Pythia-410M",
        (
            "2e594861545663712fcbdf35b322d9efb22cd6913cf88bd267fb969e1bc16273",
            "ee20740bf0d610b4eb54cb53ef49e7052b9e8b8f4a303ea4df3932ca42ae8019",
        ),
        arm="baseline",
        note="no SFT before; argmax fixed",
    ),
    "pythia410m_baseline_dpo_checkbug_5e7": Released(
        "dpo",
        "Pythia-410M",
        ("411a441aadf80b150f9d8e5c8c24cac11fa517f8c1ce25a4f1d7e52a3c5062f1",),
        arm="baseline",
        note="means only; its first 40 evaluations are those of pythia410_baseline_dpo_checkbug_5e7: not another run",
    ),
    "verifyargmax_pythia1b_dpo_ep10_chosen": Released(
        "dpo",
        "Pythia-1B",
        ("7eb7ed2dc1c192557f2ddcf0b416bec3356caafc69403ca84dcb106ca7561c27",),
        note="means only; argmax of shuffled responses",
    ),
}


def _digests(folder: Path) -> set[str]:
    try:
        return {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}
    except OSError:  # what cannot be read is not one of them
        return set()


def find(root: str | None, /) -> dict[str, xr.Dataset]:
    """The released logs under ROOT/runs/authors, in the order of `RELEASED`, with stage, arm and model filled in.

    >>> find(None)
    {}
    """
    folder = Path(root or "", "runs", "authors")
    found: dict[str, xr.Dataset] = {}
    for path in sorted(folder.iterdir()) if root and folder.is_dir() else ():
        have = _digests(path) if path.is_dir() else set()
        for name, known in RELEASED.items():
            if set(known.files) <= have and name not in found:
                try:
                    ds = read_authors(path, stage=known.stage, arm=known.arm)
                except TrajectoryError:
                    continue  # another log beside it: the folder cannot be read as one run
                found[name] = ds.assign_attrs(model=known.model)
    return {name: found[name] for name in RELEASED if name in found}


def evidence() -> dict[str, Any] | None:
    """The recorded effects that come with the package; None if they do not."""
    path = files("toyld").joinpath("evidence", EVIDENCE)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _recorded(known: Mapping[str, Any], id: str) -> list[Trial]:
    """The trials of one claim as they were recorded, without verdicts."""
    one = known["results"].get(id, {"per_run": [], "not_applicable": {}})
    out = []
    for entry in one["per_run"]:
        numbers: dict[str, Any] = {
            k: float("nan") if entry[k] is None else entry[k] for k in ("value", "low", "high", "p", "p_below")
        }
        effect = Effect(n=entry["n"], **numbers)
        out.append(Trial(tuple(entry["runs"]), effect, untested(effect), recorded=True))
    for reason, arranged in one["not_applicable"].items():
        out += [Trial(tuple(names), None, reason, recorded=True) for names in arranged]
    return out


def _run_claims() -> dict[str, RunClaim]:
    from toyld.claims import every

    return {id: one for id, one in every().items() if isinstance(one, RunClaim) and "published" in one.rungs}


@functools.cache
def outcomes(root: str | None, /) -> dict[str, RunResult]:
    """Every run claim of this rung tried as one family: computed for the logs under `root`, else as recorded."""
    runs, known = find(root), evidence()
    family: dict[str, list[Trial]] = {}
    for id, one in _run_claims().items():
        recorded = [] if known is None else _recorded(known, id)
        if one.takes == "all":  # of all runs together, or not at all
            whole = known is None or all(set(trial.runs) <= set(runs) for trial in recorded)
            family[id] = try_on(one, runs) if runs and whole else recorded
        else:
            family[id] = try_on(one, runs) + [trial for trial in recorded if not set(trial.runs) <= set(runs)]
    source = None if known is None else {k: known[k] for k in ("date", "hardware", "command", "commit")}
    out = {}
    for id, trials in decide(family).items():
        old = source if any(trial.recorded for trial in trials) else None
        out[id] = RunResult(registry[id], tuple(trials), old, "published")  # type: ignore[arg-type]
    return out


def current(claim: Claim, /) -> RunResult:
    """What this rung says of one run claim, with the logs that $TOYLD_DATA names."""
    return outcomes(os.environ.get("TOYLD_DATA"))[claim.id]


def _plain(effect: Effect) -> dict[str, Any]:
    numbers = {name: getattr(effect, name) for name in ("value", "low", "high", "n", "p")} | {"p_below": effect.below}
    return {k: None if isinstance(v, float) and v != v else v for k, v in numbers.items()}


def _results(outcome: Mapping[str, RunResult]) -> dict[str, Any]:
    results = {}
    for id, result in outcome.items():
        refused: dict[str, list[Sequence[str]]] = {}
        for trial in result.trials:
            if trial.effect is None:
                refused.setdefault(trial.why or "", []).append(trial.runs)
        per_run = [{"runs": t.runs, **_plain(t.effect)} for t in result.trials if t.effect is not None]
        whole = {} if result.effect is None else _plain(result.effect)
        results[id] = {
            "verdict": result.summary,
            "effect": whole.get("value"),
            **{k: whole.get(k) for k in ("low", "high", "n")},
            "per_run": per_run,
            "not_applicable": refused,
        }
    return results


def record(path: str | Path, /) -> None:
    """Write the effects of all released logs under $TOYLD_DATA to `path`, with what they were computed from.

    Raises:
        BadInput: a released log is not there, so that the record would have a gap; or the code is not that of a commit.
    """
    import toyld

    root, code, started = os.environ.get("TOYLD_DATA"), checkout(), time.process_time()
    if missing := [name for name in RELEASED if name not in find(root)]:
        msg = f"expected all released logs under $TOYLD_DATA/runs/authors, got none of {', '.join(missing)}"
        raise BadInput(msg + "; fetch them from Joshua-Ren/Learning_dynamics_LLM")
    if code["dirty"] is not False:
        got = "no checkout" if code["dirty"] is None else "changes that are not committed"
        msg = f"expected the code of a commit for the record to name, got {got}; commit or stash them (git status)"
        raise BadInput(msg)
    outcomes.cache_clear()
    made = outcomes(root)
    about = {
        "schema": SCHEMA,
        "claims": list(made),
        "command": COMMAND,
        **code,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "device_seconds": round(time.process_time() - started, 1),
        "versions": {
            "toyld": toyld.__version__,
            "python": ".".join(map(str, sys.version_info[:3])),
            **{name: version(name) for name in ("numpy", "scipy", "xarray")},
        },
        "seeds": [],  # nothing is drawn: Student's t over the examples and the evaluations' jitter
        "size": None,
        "data": {
            f"{name}/{file}": digest
            for name, one in RELEASED.items()
            for file, digest in zip(("prob_train_metrics.json", "logp_npy_all_chosen.npy"), one.files, strict=False)
        },
        "runs": {name: {"stage": r.stage, "model": r.model, "note": r.note} for name, r in RELEASED.items()},
        "results": _results(made),
    }
    write_whole(Path(path), (json.dumps(about, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
