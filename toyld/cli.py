"""The executable theory of LLM fine-tuning dynamics.

Exit 0: done and every check held. 1: a check failed. 2: bad input (one line) or bad arguments (the parser's words).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

# What to write behind an option; "" hides a default that is nothing at all.
_File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
_Run = Annotated[Path | None, arg(metavar="PATH", help_behavior_hint="")]
_Word = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
_Number = Annotated[str | None, arg(metavar="NUMBER", help_behavior_hint="")]
_Numbers = Annotated[tuple[float, ...] | None, arg(metavar="NUMBER…", help_behavior_hint="")]
_Globs = Annotated[tuple[str, ...], arg(metavar="[GLOB…]", help_behavior_hint="")]
_Paths = Annotated[tuple[str, ...], arg(metavar="PATH…", help_behavior_hint="")]
_Names = Annotated[tuple[str, ...], arg(metavar="[NAME…]", help_behavior_hint="")]
_Classes = Annotated[str | None, arg(metavar="CLASS,…", help_behavior_hint="")]

__all__ = ["claims", "diagnose", "figures", "guard", "main", "objectives", "step"]


def claims(
    globs: Positional[_Globs] = (),
    /,
    *,
    rung: _Word = None,
    examples: int = 2000,
    seed: int | Literal["random"] = 0,
    json: _File = None,
) -> int:
    """Try the claims and print the scoreboard: what holds, what is refuted, and how well it was tested.

    Args:
        globs: Claim ids, chapters or globs such as 'squeeze.*' (all by default); up to five are printed in full.
        rung: Only this rung of the ladder.
        examples: Sampled cases per claim (dear claims take fewer); an optimiser then hunts for counterexamples.
        seed: A number, or "random" to explore (the seed is printed).
        json: Also write the board to this file.
    """
    from rich.console import Console
    from rich.progress import track

    from toyld import scoreboard
    from toyld.checked import BadInput
    from toyld.claims import describe, evaluate, select, surprise

    if examples < 1:
        msg = f"--examples: expected at least 1, got {examples}"
        raise BadInput(msg)
    if json is not None and (json.is_dir() or not json.absolute().parent.is_dir()):
        msg = f"--json: expected a file in an existing folder, got {json}"
        raise BadInput(msg)
    if seed == "random":
        seed = int.from_bytes(os.urandom(4), "big")
    chosen = select(globs)
    errors = Console(stderr=True)
    if any("tiny" in one.rungs and rung in (None, "tiny") for one in chosen):
        print("the rung tiny trains its small transformers anew, all of them: some minutes", file=sys.stderr)
    rows = list(
        track(
            scoreboard.score(chosen, rung=rung, examples=examples, seed=seed),
            total=sum(rung is None or rung in c.rungs for c in chosen),
            description="trying claims",
            console=errors,
            disable=not errors.is_terminal,
            transient=True,
        )
    )
    Console(width=None if sys.stdout.isatty() else 160).print(scoreboard.table(rows))
    if len(chosen) <= 5:  # few enough to read
        print("\n" + "\n\n".join(map(describe, chosen)) + "\n")
    print(f"seed {seed}, {examples} examples a claim")
    if json is not None:
        _write_json(json, {"schema": scoreboard.SCHEMA, "seed": seed, "examples": examples, "claims": rows})
    surprises = [(r, at, got) for r in rows for at, got in scoreboard.surprises(r)]
    for r, at, got in surprises:
        found = r["cells"][at]
        line = f"{r['id']} at rung {at}: expected {found['expect']}, got {got} ({found.get('why')})"
        if got == "refuted":  # show the simplest case that breaks it
            line = surprise(evaluate(select([r["id"]])[0], examples=examples, seed=seed, rung=at))
        print(line, file=sys.stderr)
    return 1 if surprises else 0


def step(
    *,
    logits: _Numbers = None,
    probs: _Numbers = None,
    label: int,
    s: float = 1.0,
    c: float = -1.0,
) -> int:
    """One update of one softmax, class by class: who gains, who loses, where the threshold lies.

    Args:
        logits: The logits z, one per class.
        probs: Or the probabilities π, one per class.
        label: The class whose log-probability is pushed, counted from 0.
        s: Effective step η‖x‖².
        c: Coefficient: 1 pulls the label up (SFT), −1 pushes it down (negative gradient).
    """
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from toyld import checked, softmax

    if (logits is None) == (probs is None):
        msg = "expected one of --logits and --probs, got " + ("neither" if logits is None else "both")
        raise checked.BadInput(msg)
    if logits is not None:
        z = checked.logits(np.asarray(logits, dtype=float), name="--logits")
    else:
        z = np.log(checked.probabilities(np.asarray(probs, dtype=float), name="--probs"))
    checked.labels(label, z, name="--label")
    checked.positive(s, name="--s")
    if not np.isfinite(c) or c == 0:
        msg = f"--c: expected a finite number other than 0, got {c}"
        raise checked.BadInput(msg)
    with np.errstate(all="ignore"):  # what floats cannot tell is said in words below
        p, change = softmax.softmax(z), softmax.log_alpha(z, label, s=s, c=c)
        tau, limit = softmax.threshold(z, label, s=s * abs(c)), softmax.threshold_limit(z, label)
        share = 1.0 if len(z) == 2 else float(softmax.squeezing_ratio(z, label, s=s * abs(c)))
        depth = float(softmax.valley_depth(z, label))
    if not np.isfinite(change).all():
        msg = f"--s, --c: expected a step that moves the logits by a finite amount, got s·c = {s * c:g}"
        raise checked.BadInput(msg)
    out = Table(box=None, pad_edge=False)
    for name in ("class", "before", "after", "log ratio", ""):
        out.add_column(name, justify="left" if name == "" else "right")
    star = int(softmax.runner_up(z, label))
    for i in range(len(z)):
        role = "label" if i == label else "largest other" if i == star else ""
        before_after = (f"{x:.4f}" if x >= 5e-5 else f"{x:.1e}" for x in (p[i], p[i] * np.exp(change[i])))
        out.add_row(str(i), *before_after, f"{change[i]:+.4f}", role)
    Console().print(out)
    if c < 0:
        print(f"τ = {tau:.4f}: other classes above it gain, those below lose (→ {limit:.4f} as s → 0)")
        known = np.isfinite(share)
        print(
            f"the largest other class gains {f'{share:.2f}' if known else 'too much for floats'} per unit of mass taken"
        )
        valley = depth >= 0 and (z[label] < z.max() or np.ptp(z) == 0)  # near certainty the depth rounds to 0
        print(f"the label is {'a valley: entropy falls' if valley else 'no valley'} (−log π − H = {depth:+.4f})")
    return 0


def objectives(names: Positional[_Names] = (), /) -> int:
    """What each loss pushes: does it push the rejected answer y− down, what makes that push stop, is the loss bounded.

    Args:
        names: Only these objectives (all by default), for example dpo ipo trl.nca_pair.
    """
    from rich.console import Console
    from rich.table import Table

    from toyld.objectives import row, table

    rows = [row(name) for name in names] if names else table()
    out = Table(box=None, pad_edge=False)
    for column in ("objective", "c₊", "c₋", "push on y− stops with", "lowers y+", "bounded", "source"):
        out.add_column(column, justify="right" if column.startswith("c") else "left", overflow="fold")
    for r in rows:
        out.add_row(r.name, f"{r.plus:.3g}", f"{r.minus:.3g}", r.fades, r.lowers_chosen, r.bounded, r.source)
    Console(width=None if sys.stdout.isatty() else 160).print(out, markup=False)
    print(
        "c₊, c₋: push on the chosen and the rejected answer at π = π_ref, one token of −1 nat, default parameters;\n"
        "the gradient in the logits is c(π − e_y), so c > 0 pulls up and c < 0 is a negative gradient. “later”: not\n"
        "at π_ref, but somewhere. “both ways”: also for badly wrong pairs. Computed by probing each loss."
    )
    return 0


def figures(
    *,
    list: bool = False,
    only: _Globs = (),
    size: Literal["smoke", "paper"] = "paper",
    out: Path = Path("figures"),
    format: str = "png,svg",
    check: bool = False,
    from_data: bool = False,
    resume: bool = False,
    dpi: int = 200,
    quiet: bool = False,
) -> int:
    """Draw the figures: SLUG.png, SLUG.svg, SLUG.csv (the data) and SLUG.json (how it was made), one line a figure.

    Last it writes index.html, a page of all figures that lie in the folder, and manifest.json with the same for
    programs.

    Args:
        list: Only list them: slug, title, the paper's figure, what it reads, cost, whether it is there, tags, claims.
        only: Slugs, tags or globs of either (all figures by default).
        size: "smoke" is small and quick, "paper" the full size.
        out: Folder to write to; it is made if it is not there.
        format: Picture formats out of png, svg, pdf, separated by commas.
        check: Assert each caption's claim on the data; exit 1 if one fails.
        from_data: Redraw from the CSV files in the folder, computing nothing.
        resume: Keep a figure whose files are all there, whole, and were made by the same code and packages, from the
            same inputs, at the same size and resolution; go on with the others. Without it all are made anew.
        dpi: Dots an inch of PNG pictures.
        quiet: Print only what went wrong or was skipped.
    """
    from toyld.figures import main as render

    return render(
        list=list,
        only=only,
        size=size,
        out=out,
        format=format,
        check=check,
        from_data=from_data,
        resume=resume,
        dpi=dpi,
        quiet=quiet,
    )


def diagnose(
    paths: Positional[_Paths] = (),
    /,
    *,
    json: _File = None,
    html: _File = None,
    fail_on: _Classes = None,
    control: _Run = None,
    beta: _Number = None,
) -> int:
    """What runs are consistent with: squeezing, plain displacement, divergence, a wrong reference, or nothing of it.

    Args:
        paths: Run folders, tables, trainer_state.json of TRL, the authors' logs; several stand side by side.
        json: Also write verdicts, numbers and reasons to this file.
        html: Also write one self-contained page with plots.
        fail_on: Exit 1 if a run has one of these verdicts (commas between), for example squeezing,divergence; a run of
            which nothing can be told counts only as cannot-tell.
        control: A run from the same start to compare with at matched steps.
        beta: The runs' β (DPOConfig.beta), where a log of rewards does not tell it.
    """
    from toyld.checked import BadInput
    from toyld.report import run

    try:
        number = None if beta is None else float(beta)
    except ValueError:
        msg = f"--beta: expected a finite number > 0, got {beta!r}"
        raise BadInput(msg) from None
    return run(paths, json_file=json, html_file=html, fail_on=fail_on, control=control, beta=number)


def _write_json(path: Path, value: object) -> None:
    from toyld.files import write_whole

    write_whole(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `toyld`."""
    from toyld.cli_llm import example, probe, probes, scan
    from toyld.cli_run import contexts, digits, llm, tiny
    from toyld.cli_teach import book, lab

    app, worlds = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    worlds.command(contexts)
    worlds.command(digits)
    worlds.command(tiny)
    worlds.command(llm)
    for command in (claims, diagnose, example, figures, objectives, probe, probes, scan):
        app.command(command)
    app.command(worlds, name="run", help="Fine-tune a world of this package, into a folder that can be diagnosed.")
    app.command(book)
    app.command(lab)
    app.command(step)
    sys.exit(
        guard(
            lambda: app.cli(prog="toyld", args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
        )
    )


def guard(run: Callable[[], int | None]) -> int:
    """Run a command: bad input becomes one line on stderr and exit code 2; a bug keeps its traceback."""
    from toyld.checked import BadInput

    try:
        return int(run() or 0)
    except BrokenPipeError:  # the reader, say `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BadInput as bad:
        message = str(bad)
    except OSError as bad:
        message = f"expected a file or folder that can be read and written, got {bad.filename}: {bad.strerror}"
    print("toyld: " + " ".join(message.split()), file=sys.stderr)
    return 2
