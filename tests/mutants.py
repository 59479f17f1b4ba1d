"""Mutation testing: draw small faults at random, and list those that no test notices.

    python -m tests.mutants --seed=0 --count=100 sde_lib losses solvers models/score.py

Each fault changes one expression or statement of the named modules, packages or files. It is
written to a temporary copy of the checkout, where the tests of its module run until one fails.
Annotations, docstrings, imports, decorators and the messages of errors are never changed.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SWAPS: dict[Any, Any] = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.Lt: ast.LtE, ast.Gt: ast.GtE}
SWAPS |= {ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn, ast.And: ast.Or}
SWAPS |= {new: old for old, new in SWAPS.items()}
SWAPS |= {ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv}
Mutant = tuple[Path, str, str]  # The path of a file, the change, and the faulty source.
SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "ctx", "op", "ops"}
SKIPPED_CODE = re.compile(r"strict=|raise |import |from |__all__|if TYPE_CHECKING:|f?['\"]")
CONVERSIONS = {"jit", "asarray", "float", "int", "bool", "tuple", "list"}  # The value is the same.
SYMMETRIC = {"maximum", "minimum"}  # in their arguments
# Tests that reach a package through other modules:
TESTS = {
    "controllable": ("inverse_problems", "guidance", "operators", "posterior", "smc", "daps"),
    "solvers": ("likelihood", "metropolis", "fitting", "prior", "sampling"),
}


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield faulty versions of a node."""
    match node:
        case ast.BinOp(left, operator, right) if type(operator) in SWAPS:
            yield from (left, ast.BinOp(left, SWAPS[type(operator)](), right))
        case ast.BoolOp(operator, values):
            yield ast.BoolOp(SWAPS[type(operator)](), values)
        case ast.Compare(left, [operator], right):
            yield ast.Compare(left, [SWAPS[type(operator)]()], right)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.Constant(bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Call(function, arguments, keywords):
            name = ast.unparse(function).split(".")[-1]
            if name not in CONVERSIONS:
                yield from (each for each in arguments[:1] if not isinstance(each, ast.Starred))
            for i in range(len(keywords)):
                if keywords[i].arg != "strict":  # It only checks.
                    yield ast.Call(function, arguments, keywords[:i] + keywords[i + 1 :])
            for i in range(len(arguments) - 1 if name not in SYMMETRIC else 0):
                swapped = [*arguments[:i], arguments[i + 1], arguments[i], *arguments[i + 2 :]]
                yield ast.Call(function, swapped, keywords)
        case ast.If(test, body, orelse) | ast.IfExp(test, body, orelse):
            yield type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Expr() | ast.AugAssign():
            yield ast.Pass()


def faults(node: ast.AST) -> Iterator[tuple[Any, ast.AST]]:
    """Yield the nodes of a tree with their replacements."""
    if not isinstance(node, ast.Module):
        if SKIPPED_CODE.match(ast.unparse(node)):
            return
        yield from ((node, new) for new in replacements(node))
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in SKIPPED_FIELDS:
                yield from faults(child)


class Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def draw(root: Path, targets: Sequence[str], count: int, seed: int) -> Iterator[Mutant]:
    """Draw mutants of modules, packages or files at random, each fault with equal probability."""
    paths = [path for name in targets for path in (root / name, root / f"{name}.py")]
    files = {each for path in paths for each in ([path] if path.is_file() else path.rglob("*.py"))}
    trees = {path: ast.parse(path.read_text()) for path in sorted(files)}
    found = [(path, *pair) for path, tree in trees.items() for pair in faults(tree)]
    for path, old, new in random.Random(seed).sample(found, min(count, len(found))):
        line = path.read_text().splitlines()[old.lineno - 1].strip()
        before, after = (ast.unparse(each).splitlines()[0] for each in (old, new))
        name = path.relative_to(root)
        change = f"{name}:{old.lineno}: `{before}` -> `{after}` in `{line}`"
        source = ast.unparse(ast.fix_missing_locations(Replace(old, new).visit(trees[path])))
        Replace(new, old).visit(trees[path])
        yield name, change, source


def tests_of(path: Path, root: Path) -> list[str]:
    """Return the test files of a module's name, its importers, and those of its package."""
    parts = path.with_suffix("").parts
    module, name, package = parts[-1], ".".join(parts), ".".join(parts[:-1])
    imports = rf"^\s*((import|from) {name}\b|from {package or name} import .*\b{module}\b)"
    files = sorted((root / "tests").glob("test_*.py"), key=lambda file: file.stat().st_size)
    found = [each for each in files if each.stem == f"test_{module}"]
    found += [each for each in files if re.search(imports, each.read_text(), re.M)]
    for other in (*parts[-2::-1], *TESTS.get(parts[0], ())):
        found += [each for each in files if each.stem == f"test_{other}"]
    found += [each for each in files if re.search(rf"^import {package}$", each.read_text(), re.M)]
    return [str(each.relative_to(root)) for each in dict.fromkeys(found)]


def failure(root: Path, arguments: Sequence[str], seconds: float) -> str:
    """Run pytest; return the name of the first failed test, or "" if there is none."""
    command = ["timeout", "--signal=KILL", str(seconds), sys.executable, "-B", "-m", "pytest"]
    command += ["-n", "0", "-x", "-q", *arguments]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", ended.stdout, re.M)
    return failed[1] if failed else "" if ended.returncode == 0 else "no result"


def survivors(root: Path, mutants: Sequence[Mutant], seconds: float) -> Iterator[str]:
    """Test mutants in a copy of the checkout; yield changes that no test notices in time."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / root.name
        shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "demo"))
        (copy / ".cache").symlink_to(root / ".cache")  # Compiled programs, found by their content.
        every = {test for path, *_ in mutants for test in tests_of(path, root)}
        if broken := failure(copy, ["--collect-only", *sorted(every)], seconds):
            raise SystemExit(f"{broken} cannot be collected")
        for path, change, source in mutants:
            (copy / path).write_text(source)
            failed = failure(copy, tests_of(path, root), seconds)
            shutil.copyfile(root / path, copy / path)
            print(f"{change}: {failed or 'survived'}", flush=True)
            if "::" in failed and failure(copy, [failed], seconds) == failed:  # else: a new case
                raise SystemExit(f"{failed} fails without the change, too")
            if failed in ("", "no result"):
                yield change


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="+", help="modules, packages or files")
    for name, default in {"count": 100, "seed": 0, "seconds": 900}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    drawn = [*draw(ROOT, given.targets, given.count, given.seed)]
    print("\nsurvivors:", *survivors(ROOT, drawn, given.seconds), sep="\n")
