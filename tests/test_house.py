"""The house rules, executed: imports point one way, the package is light, every test can fail."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "toyld").rglob("*.py"))
# A module may import what stands at or before its own level.
LEVELS = [
    {"files", "checkout", "_stable", "softmax", "checked", "objectives", "trajectory", "rollout", "_fused", "premem"},
    {"probes"},
    {"contexts", "influence"},
    {"diagnosis", "claims"},
    {"report"},
    {"digits", "tiny", "llm"},
    {"scoreboard"},
    {"figures", "book", "lab", "running", "cli", "cli_llm", "cli_run", "cli_teach", "__main__"},
]
LEVEL = {name: i for i, level in enumerate(LEVELS) for name in level}


def imports(path):
    """Modules of toyld that a file imports, as top-level names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "toyld":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            package = path.relative_to(ROOT).parts[: -node.level]
            full = [*package, *(node.module or "").split(".")]
            yield full[1] if len(full) > 1 and full[1] else node.names[0].name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toyld."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("toyld."))


def home(path):
    """Top-level name within toyld of a source file."""
    return path.relative_to(ROOT / "toyld").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    here = home(path)
    if here == "__init__":
        assert not list(imports(path)), "import toyld loads the standard library only"
        return
    assert here in LEVEL, f"{here}: give the module a level in this test"
    for there in imports(path):
        assert there == here or LEVEL[there] <= LEVEL[here], f"{here} imports {there}, which stands above it"


def test_import_toyld_loads_the_standard_library_only():
    code = "import sys; before = set(sys.modules); import toyld; print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(out.stdout.split()) <= {"toyld"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_that_compute_do_not_import_the_terminal(path):
    if home(path) in ("cli", "cli_llm", "cli_run", "cli_teach") or path.name == "__main__.py":
        return
    top = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {(a.name if isinstance(n, ast.Import) else n.module or "").split(".")[0] for n in top for a in n.names}
    assert not names & {"tyro", "rich", "pooch"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_small_and_say_what_they_are_about(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module starts with one sentence"


def test_text_is_read_and_written_as_utf_8_everywhere():
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
        and "encoding" not in {keyword.arg for keyword in node.keywords}
    ]
    assert not bare, "say encoding='utf-8': elsewhere the default is another"


def test_public_lists_name_what_exists():
    for path in SOURCES:
        if path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text())
        listed = [
            {e.value for e in n.value.elts}
            for n in tree.body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
        ]
        defined = {
            getattr(n, "name", None)
            for n in tree.body
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
        }
        if listed and path.name != "__init__.py":
            assert defined - {"register"} <= listed[0] | _claims(tree), f"{path}: {defined - listed[0]} not in __all__"


def _claims(tree):
    """Names of checks: public through the registry, not through the module."""
    return {
        n.name
        for n in tree.body
        if isinstance(n, ast.FunctionDef) and any("claim" in ast.unparse(d) for d in n.decorator_list)
    }


def test_every_test_can_fail():
    idle = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "theory").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                calls = " ".join(ast.unparse(c.func).lower() for c in ast.walk(node) if isinstance(c, ast.Call))
                asserts = any(isinstance(a, ast.Assert) for a in ast.walk(node))
                if not asserts and not re.search(r"assert|raises|warns|check|survives", calls):
                    idle.append(f"{path.name}:{node.lineno} {node.name}")
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                name = ast.unparse(node.value.func).split(".")[-1]
                if name in {"allclose", "isclose", "array_equal", "equal"}:
                    idle.append(f"{path.name}:{node.lineno} compares and throws the answer away")
    assert not idle, idle


def test_declared_dependencies_cover_every_import():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = " ".join(project["dependencies"]).replace("-", "_")
    extras = {home: " ".join(project["optional-dependencies"][home]).replace("-", "_") for home in ("llm", "book")}
    names = {"flint": "python_flint", "sklearn": "scikit_learn", "markdown_it": "markdown_it_py"}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.level == 0
                else []
            )
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top != "toyld":
                    declared = core + extras.get(home(path), "")
                    assert names.get(top, top) in declared, f"{path.name} imports {top}: declare it in pyproject.toml"
