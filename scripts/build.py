"""Build hooks: the wheel has the modules of this clone as one package, `score_sde`.

Lines that import one of them name the package there: `import losses` becomes `from score_sde import
losses`, so that modules such as `datasets` cannot conflict with other packages of their names.
"""

import re
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

OUTSIDE = {"tests", "docs", "benchmarks", "studies"}  # Packages that the program does not import.
NETWORK = "zoo/digits_vp.safetensors"  # for first steps without a clone


def rewrite(source: str, modules: set[str]) -> str:
    """Return Python source that imports `modules` from the package; each import has its line."""
    names = "|".join(modules)
    source = re.sub(
        rf"(?m)^( *)from (?=({names})(\.[\w.]+)? import )", r"\1from score_sde.", source
    )
    return re.sub(rf"(?m)^( *)import (?=({names})( as \w+)?$)", r"\1from score_sde import ", source)


def write_package(root: Path, target: Path) -> None:
    """Write the modules in `root`, and the files of its packages, to `target`."""
    packages = {path.parent.name for path in root.glob("*/__init__.py")} - OUTSIDE | {"configs"}
    inside = (path for each in packages for path in (root / each).rglob("*"))
    paths = [root / NETWORK, *root.glob("*.py"), *inside]
    modules = packages | {path.stem for path in root.glob("*.py")} - {"score_sde"}
    for path in paths:
        if path.is_file() and path.suffix != ".pyc":
            name = "__init__.py" if path == root / "score_sde.py" else path.relative_to(root)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            if path.suffix == ".py":
                content = rewrite(content.decode(), modules).encode()
            (target / name).write_bytes(content)


class Build(BuildHookInterface):
    """Puts the package into the wheel."""

    def initialize(self, version: str, build_data: dict) -> None:
        if version == "editable":
            raise RuntimeError("pip install -e . is not supported: use the clone; CONTRIBUTING.md.")
        self.folder = tempfile.TemporaryDirectory()
        write_package(Path(self.root), Path(self.folder.name))
        build_data["force_include"][self.folder.name] = "score_sde"

    def finalize(self, *_: object) -> None:
        self.folder.cleanup()


class Dependencies(MetadataHookInterface):
    """Reads the dependencies from requirements.txt."""

    def update(self, metadata: dict) -> None:
        lines = (Path(self.root) / "requirements.txt").read_text().splitlines()
        metadata["dependencies"] = [line for line in lines if line and not line.startswith("#")]
