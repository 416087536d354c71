"""Exercises and their solutions: read from `theory/solutions/`, run, and given to students without the answers."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from toyld.book.chapters import Broken, Cell, Chapter, Namespace, Shown, read
from toyld.checked import BadInput

__all__ = ["Exercise", "Sheet", "blank", "names", "notebook", "of", "refusal", "script", "sheet", "solve"]

_HEAD = re.compile(r"## Exercise (\d+): (.+)")


@dataclass(frozen=True)
class Exercise:
    """One exercise: question, the code that answers it, its check, the derivation, and plausible wrong answers."""

    number: int
    title: str
    question: Cell
    solution: Cell
    check: Cell
    derivation: Cell
    mistakes: tuple[Cell, ...]


@dataclass(frozen=True)
class Sheet:
    """The exercises to one chapter; `setup` are the cells before the first of them."""

    chapter: Chapter
    setup: tuple[Cell, ...]
    exercises: tuple[Exercise, ...]


def of(path: Path, /) -> Path:
    """The file of the exercises to a chapter."""
    return path.parent / "solutions" / path.name


def sheet(path: Path, /) -> Sheet:
    """Read theory/solutions/NN_topic.py: for each exercise question, solution, check, derivation, mistakes, in order.

    Raises:
        BadInput: a cell that is missing or stands elsewhere; says where.
    """
    script = read(path)

    def wrong(cell: Cell | None, expected: str) -> BadInput:
        got = "the end" if cell is None else f"a {'code' if cell.code else 'markdown'} cell, tags {list(cell.tags)}"
        return BadInput(f"{path.name}:{cell.line if cell else 'end'}: expected {expected}, got {got}")

    starts = [i for i, c in enumerate(script.cells) if not c.code and c.source.startswith("## Exercise")]
    if not starts:
        raise wrong(None, "a markdown cell '## Exercise 1: a title'")
    exercises = []
    for number, (start, stop) in enumerate(zip(starts, [*starts[1:], len(script.cells)], strict=True), 1):
        question, *rest = script.cells[start:stop]
        head = _HEAD.match(question.source)
        if not head or int(head[1]) != number:
            raise wrong(question, f"'## Exercise {number}: a title'")
        form = [
            ("the solution: code tagged solution", True, ("solution",)),
            ("the check: untagged code", True, ()),
            ("the derivation: markdown tagged solution", False, ("solution",)),
            ("a mistake: code tagged mistake", True, ("mistake",)),
        ]
        for (what, code, tags), cell in zip(form, [*rest, None, None, None, None], strict=False):
            if cell is None or (cell.code, cell.tags) != (code, tags):
                raise wrong(cell, f"{what} of exercise {number}")
        for cell in rest[4:]:
            if (cell.code, cell.tags) != (True, ("mistake",)):
                raise wrong(cell, f"nothing but mistakes at the end of exercise {number}")
        solution, check, derivation, *mistakes = rest
        if not derivation.source.startswith("**Solution.**"):
            raise wrong(derivation, "'**Solution.**' at the start of the derivation")
        exercises.append(Exercise(number, head[2].strip(), question, solution, check, derivation, tuple(mistakes)))
    return Sheet(script, script.cells[: starts[0]], tuple(exercises))


def names(source: str, /) -> set[str]:
    """The names that a cell of answers gives: functions and assigned names.

    >>> sorted(names("def f(x):\\n    return x\\na, b = 1, 2"))
    ['a', 'b', 'f']

    Raises:
        BadInput: anything else than functions, assignments and imports.
    """
    given: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            given.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if not all(isinstance(part, ast.Name | ast.Tuple | ast.expr_context) for part in ast.walk(target)):
                    msg = f"expected answers to plain names, got {ast.unparse(node)!r}"
                    raise BadInput(msg)
                given |= {part.id for part in ast.walk(target) if isinstance(part, ast.Name)}
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            msg = f"expected functions and assigned names in a solution, got {ast.unparse(node).splitlines()[0]!r}"
            raise BadInput(msg)
    return given


def blank(source: str, /) -> str:
    """A solution without its answers: functions keep signature and docstring, names become `...`.

    >>> print(blank("def f(x):\\n    '''Twice x.'''\\n    return 2 * x  # as derived\\n\\n\\nslope = 2.0"))
    def f(x):
        '''Twice x.'''
        raise NotImplementedError("your answer")
    <BLANKLINE>
    <BLANKLINE>
    slope = ...  # your answer
    """
    names(source)  # nothing else stands there
    lines, out = source.splitlines(), ""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            inner = node.body[0]
            documented = ast.get_docstring(node, clean=False) is not None
            last = inner.end_lineno if documented else inner.lineno - 1
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            if inner.lineno == node.lineno:  # def f(x): return x
                head = [ast.unparse(node.args).join((f"def {node.name}(", "):"))]
            else:
                head = [line for line in lines[first - 1 : last] if line.strip() and not line.lstrip().startswith("#")]
            text = "\n".join([*head, '    raise NotImplementedError("your answer")'])
            gap = "\n\n\n"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            text, gap = ast.unparse(node), "\n"
        else:
            text, gap = "\n".join(f"{name} = ...  # your answer" for name in sorted(names(ast.unparse(node)))), "\n"
        if out.rstrip().endswith('raise NotImplementedError("your answer")'):
            gap = "\n\n\n"
        out += (gap if out else "") + text
    return out


def solve(one: Sheet, folder: Path, /) -> tuple[Namespace, dict[int, Shown], dict[int, dict[str, object]]]:
    """Run a sheet with its solutions: its module, what each check gave, and the names before each exercise.

    Raises:
        Broken: a cell raised.
    """
    space = Namespace(one.chapter.path, folder)
    for cell in one.setup:
        if cell.code:
            space.run(cell)
    shown, before = {}, {}
    for exercise in one.exercises:
        before[exercise.number] = space.snapshot()
        space.run(exercise.solution)
        shown[exercise.number] = space.run(exercise.check)
    return space, shown, before


def refusal(space: Namespace, before: dict[str, object], answer: str, one: Exercise, /) -> BaseException | None:
    """What the check of an exercise raises if `answer` stands in place of its solution; None if it is content.

    Raises:
        Broken: the answer itself raised.
    """
    space.restore(before)
    space.run(one.solution, answer)
    try:
        space.run(one.check)
    except Broken as broken:
        return broken.__cause__
    return None


def _unsaid(check: str, prose: str, /) -> str:
    """A check without the `says` and `formula` of the derivation, which would tell students its numbers."""
    lines = check.splitlines()
    for node in reversed(ast.parse(check).body):
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("says", "formula"):
            phrase = ast.literal_eval(call.args[0])
            if " ".join(phrase.split()) not in prose:
                del lines[node.lineno - 1 : node.end_lineno]
    return "\n".join(lines)


def script(one: Sheet, /) -> str:
    """The students' version as a percent script: questions, blanks, checks."""
    asked = [c.source for c in one.setup if not c.code] + [e.question.source for e in one.exercises]
    prose = " ".join("\n\n".join(asked).split())
    cells = [(cell.code, cell.source) for cell in one.setup]
    for exercise in one.exercises:
        cells += [
            (False, exercise.question.source),
            (True, blank(exercise.solution.source)),
            (True, _unsaid(exercise.check.source, prose)),
        ]
    parts = []
    for code, source in cells:
        marked = source if code else "\n".join(f"# {line}".rstrip() for line in source.splitlines())
        parts.append(f"# %%{'' if code else ' [markdown]'}\n{marked}\n")
    return "\n".join(parts)


def notebook(one: Sheet, /) -> str:
    """The students' version as a notebook, the same bytes each time."""
    import jupytext

    made = jupytext.reads(script(one), fmt="py:percent")
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.nbformat, made.nbformat_minor = 4, 5
    for place, cell in enumerate(made.cells):
        cell["id"] = f"cell-{place}"  # by default drawn at random
    return str(jupytext.writes(made, fmt="ipynb"))
