"""The structure of the code: few modules, and short chains of imports without cycles."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTSIDE = {"tests", "docs", "scripts"}  # Folders whose code the program does not use.
APART = {"benchmarks", "studies"}  # Measurements, which the program does not use.
MOST_MODULES = 29  # top-level modules and packages
MOST_IMPORTS = 164  # pairs of them of which the first imports the second
DEPTH = 10  # modules on the longest chain of imports


def sources() -> dict[str, list[Path]]:
    """The Python files of each top-level module or package."""
    found = {path.stem: [path] for path in ROOT.glob("*.py")}
    for folder in sorted(path for path in ROOT.iterdir() if path.is_dir()):
        files = sorted(folder.rglob("*.py"))
        if files and not folder.name.startswith(".") and folder.name not in OUTSIDE:
            found[folder.name] = files
    return found


@functools.cache
def imports() -> dict[str, set[str]]:
    """The top-level modules that each one imports, anywhere in its files."""
    names = sources()
    found: dict[str, set[str]] = {name: set() for name in names}
    for name, paths in names.items():
        for path in paths:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found[name] |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found[name].add(node.module.split(".")[0])
        found[name] &= names.keys() - {name}
    return found


def depth(name: str) -> int:
    """The number of modules on the longest chain of imports that starts at `name`."""
    return 1 + max(map(depth, imports()[name]), default=0)


def test_number_of_modules():
    found = sorted(sources().keys() - APART)
    assert len(found) <= MOST_MODULES, found


def test_imports_have_no_cycle():
    list(graphlib.TopologicalSorter(imports()).static_order())  # Raises CycleError, naming it.


def test_length_of_import_chains():
    deepest = max((name for name in imports() if name not in APART), key=depth)
    assert depth(deepest) <= DEPTH, {name: depth(name) for name in imports()}


def test_number_of_imports():
    pairs = sum(len(imported) for name, imported in imports().items() if name not in APART)
    assert pairs <= MOST_IMPORTS, pairs
