"""Build hooks: `pip install .` installs this clone's flat modules as one package, `score_sde`.

The clone has top-level modules such as `datasets`, which would hide other packages of that name in
site-packages. The wheel therefore holds a copy of them in `score_sde/`, whose `__init__.py` is
`score_sde.py`, with imports of each other rewritten: `import losses` becomes `import
score_sde.losses as losses`. Positions of the rewritten names come from `ast`, so that strings and
comments stay as they are, and lines keep their numbers. `pyproject.toml` lists the folders.
"""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PACKAGE = "score_sde"


def rewrite(source: str, modules: Collection[str], package: str = PACKAGE) -> str:
    """Return Python source with absolute imports of `modules` as imports from `package`.

    The names that the imports bind do not change. Raises ValueError for an import that is written
    in an unusual way, such as with a line break after `from`.
    """
    lines = source.encode().splitlines(keepends=True)  # The columns of `ast` count bytes.
    # From the end, so that positions of the remaining insertions stay right.
    for line, column, text in sorted(_insertions(lines, modules, package), reverse=True):
        old = lines[line - 1]
        lines[line - 1] = old[:column] + text.encode() + old[column:]
    return b"".join(lines).decode()


def _insertions(
    lines: Sequence[bytes], modules: Collection[str], package: str
) -> Iterator[tuple[int, int, str]]:
    """Yield what to insert: the number of the line, from 1, the column, and the text."""
    for node in ast.walk(ast.parse(b"".join(lines))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module.partition(".")[0] in modules:
                start = node.col_offset + len("from ")
                if not lines[node.lineno - 1].startswith(node.module.encode(), start):
                    raise ValueError(f"line {node.lineno}: write 'from {node.module} import ...'.")
                yield node.lineno, start, f"{package}."
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                if first in modules:
                    yield alias.lineno, alias.col_offset, f"{package}."
                if first in modules and not alias.asname:  # `first` is the name to bind.
                    parent = "" if first == alias.name else f", {package}.{first}"
                    yield alias.end_lineno or 0, alias.end_col_offset or 0, f"{parent} as {first}"


def write_package(root: Path, folders: Sequence[str], target: Path) -> None:
    """Write the package's files to `target`: the modules in `root` and all files of `folders`."""
    files = sorted(root.glob("*.py"))
    for folder in folders:
        files += sorted(each for each in (root / folder).rglob("*") if each.is_file())
    modules = {*folders, *(path.stem for path in root.glob("*.py"))} - {PACKAGE}
    for path in files:
        if "__pycache__" in path.parts:
            continue
        name = path.relative_to(root)
        copy = target / ("__init__.py" if str(name) == f"{PACKAGE}.py" else name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            copy.write_text(rewrite(path.read_text(encoding="utf-8"), modules), encoding="utf-8")
        else:
            copy.write_bytes(path.read_bytes())


class Build(BuildHookInterface):
    """Puts the rewritten package into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise RuntimeError(
                "pip install -e . is not supported: use the clone itself, in which changes take "
                "effect at once. Run main.py there, or set PYTHONPATH to it; CONTRIBUTING.md."
            )
        self.folder = tempfile.TemporaryDirectory()
        write_package(Path(self.root), self.config["folders"], Path(self.folder.name))
        build_data["force_include"][self.folder.name] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.folder.cleanup()


class Dependencies(MetadataHookInterface):
    """Reads the dependencies from requirements.txt."""

    def update(self, metadata: dict[str, Any]) -> None:
        lines = (Path(self.root) / "requirements.txt").read_text().splitlines()
        metadata["dependencies"] = [line for line in lines if line and not line.startswith("#")]
