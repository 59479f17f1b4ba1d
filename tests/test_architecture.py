"""The size and the structure of the code: budgets, and imports without cycles.

A budget that does not hold yet has today's value in CURRENT. It may only fall.
"""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "docs", "scripts"}  # Folders whose code the program does not use.
STUDIES = {"benchmarks", "studies"}  # They import most modules, and none imports them.
BUDGETS = {
    "lines of code": 19_000,  # without experiments in configs/*/
    "lines of tests": 14_000,
    "top-level modules": 22,
    "modules on a chain of imports": 9,
    "lines of a package": 3_146,
    "lines of a file": 350,
    "lines of a function": 45,
    "parameters of a function": 8,
}
CURRENT = {
    "lines of code": 32_618,
    "lines of tests": 20_860,
    "top-level modules": 26,
    "lines of a package": 4_877,  # studies; models and api have 3,255
}


@functools.cache
def sources() -> dict[str, list[Path]]:
    """The Python files of each top-level module or package."""
    found = {path.stem: [path] for path in ROOT.glob("*.py")}
    for path in sorted(ROOT.glob("[a-z]*/**/*.py")):
        found.setdefault(path.relative_to(ROOT).parts[0], []).append(path)
    return {name: files for name, files in found.items() if name not in OUTSIDE}


@functools.cache
def imports() -> dict[str, set[str]]:
    """The top-level modules that each one imports, anywhere in its files."""
    found: dict[str, set[str]] = {name: set() for name in sources()}
    for name, paths in sources().items():
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found[name] |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found[name].add(node.module.split(".")[0])
        found[name] &= sources().keys() - {name}
    return found


def depth(name: str) -> int:
    """The number of modules on the longest chain of imports that starts at `name`."""
    return 1 + max(map(depth, imports()[name]), default=0)


def lines(*paths: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def measured() -> dict[str, dict[str, int]]:
    """The values that each budget limits, by name. Functions are without their docstrings."""
    found: dict[str, dict[str, int]] = {name: {} for name in BUDGETS}
    found["lines of tests"] = {"all": lines(*ROOT.glob("tests/**/*.py"))}
    found["top-level modules"] = {"all": len(sources())}
    found["modules on a chain of imports"] = {n: depth(n) for n in sources().keys() - STUDIES}
    others = {"docs": ROOT.glob("docs/**/*.py"), "scripts": ROOT.glob("scripts/*.py")}
    for package, files in {**sources(), **others}.items():
        code = set(files) - set(ROOT.glob("configs/*/*.py"))
        found["lines of a package"][package] = lines(*code)
        for path in code:
            name = str(path.relative_to(ROOT))
            found["lines of a file"][name] = lines(path)
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef):
                    function = f"{name}:{node.lineno} {node.name}"
                    text = (ast.get_docstring(node) or "").splitlines()
                    length = node.end_lineno - node.lineno + 1 - len(text)
                    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                    count = len({each.arg for each in given} - {"self", "cls"})
                    found["lines of a function"][function] = length
                    found["parameters of a function"][function] = count
    found["lines of code"] = {"all": sum(found["lines of a package"].values())}
    return found


def test_imports_have_no_cycle():
    list(graphlib.TopologicalSorter(imports()).static_order())  # Raises CycleError, naming it.


def test_budgets():
    for what, values in measured().items():
        limit = CURRENT.get(what, BUDGETS[what])
        assert max(values.values()) <= limit, (what, {n: v for n, v in values.items() if v > limit})
