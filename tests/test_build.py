"""The package that `pip install .` makes of this clone: its imports, files and command."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from readers import published
from tests.test_architecture import APART, sources

pytest.importorskip("hatchling", reason="hatchling is not installed (requirements-dev.txt)")
from scripts import build

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["folders"]

# --- rewriting on small sources -------------------------------------------------------------------

SMALL = {  # A clone with one module, and one package.
    "lossy.py": "NAME = 'lossy'",
    "nets/__init__.py": "import lossy\nNAME = f'nets of {lossy.NAME}'",
    "nets/layers.py": "from nets import NAME as PARENT\nNAME = f'layers of {PARENT}'",
    "nets/relative.py": "from . import layers\nfrom .layers import NAME as SAME\nNAME = SAME",
}
STATEMENTS = [
    "import lossy; found = lossy.NAME",
    "import lossy as other; found = other.NAME",
    "import os, lossy, sys; found = os.sep + lossy.NAME + sys.platform",
    "import lossy as a, nets as b; found = a.NAME + b.NAME",
    "from lossy import NAME as found",
    "from nets import layers; found = layers.NAME",
    "from nets.layers import (  # comment\n    NAME as found,\n)",
    "from nets.relative import NAME as found",
    "import nets.layers; found = nets.NAME + nets.layers.NAME",
    "import nets.layers as layers; found = layers.NAME",
    "import nets.layers, lossy; found = nets.layers.NAME + lossy.NAME",
    "def inner():\n    import nets.layers\n    return nets.layers.NAME\nfound = inner()",
    "class A:\n    from lossy import NAME\nfound = A.NAME",
    "ä = 'ü'; import lossy; found = ä + lossy.NAME",
    "try:\n    import nets.missing\nexcept ImportError as error:\n    found = type(error).__name__",
]


@pytest.fixture
def execute(tmp_path):
    """A function that runs a source beside the small clone, flat or as the package `renamed`."""

    def run(source: str, package: str) -> str:
        folder = tmp_path / (package or "flat")
        for name, text in {**SMALL, "used.py": source}.items():
            path = folder / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(build.rewrite(text, ("lossy", "nets"), package) if package else text)
        command = f"import {f'{package}.used' if package else 'used'} as used; print(used.found)"
        process = [sys.executable, "-S", "-c", command]
        return subprocess.run(process, cwd=folder, check=True, capture_output=True).stdout

    return run


@pytest.mark.parametrize("source", STATEMENTS)
def test_rewritten_imports_bind_the_same_names(source, execute):
    """The package is found only as `renamed`, so that an import without the prefix would fail."""
    assert execute(source, "renamed") == execute(source, "")


@pytest.mark.parametrize(
    "source",
    [
        "text = 'import lossy'  # import lossy\n",
        '"""from lossy import NAME"""\n',
        "from . import lossy\n",
        "from .nets import layers\n",
        "import lossy_other, other.lossy\n",
        "from other import lossy, nets\n",
        "lossy = nets = None\n",
        "import renamed as r\n",
    ],
)
def test_other_text_is_unchanged(source):
    assert build.rewrite(source, ("lossy", "nets"), "renamed") == source


def test_imports_for_type_checkers_are_rewritten():
    source = "if TYPE_CHECKING:\n\tfrom lossy import NAME\nx: 'NAME'\n"
    assert "\tfrom renamed.lossy import NAME\n" in build.rewrite(source, ("lossy",), "renamed")


def test_unusual_imports_are_errors():
    with pytest.raises(ValueError, match=r"line 2: write 'from lossy import \.\.\.'"):
        build.rewrite("\nfrom \\\n  lossy import NAME", ("lossy",))


# --- the whole tree -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built") / "score_sde"
    build.write_package(ROOT, FOLDERS, folder)
    return folder


def test_the_package_has_all_modules(package):
    """All that the program uses, and the files that it reads."""
    found = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    modules = [path for name, paths in sources().items() if name not in APART for path in paths]
    expected = {path.relative_to(ROOT) for path in modules} - {Path("score_sde.py")}
    assert {path for path in found if path.suffix == ".py"} == expected | {Path("__init__.py")}
    assert {Path("report/template.html"), Path("report/style.css")} <= found


def test_all_imports_of_the_package_are_rewritten(package):
    """Each import names the package, a library, or is relative; none of the project's modules."""
    modules = {*sources(), "tests", "docs"} - {"score_sde"}
    rewritten = 0
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [
                each.name for each in getattr(node, "names", []) if isinstance(node, ast.Import)
            ]
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & modules, (path, names)
            rewritten += sum(name.startswith("score_sde.") for name in names)
    assert rewritten > 600


def test_no_string_names_a_module_to_import(package):
    """Strings are not rewritten. The names in them are those of libraries, or given by users."""
    modules, found = set(sources()), []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            function = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if function.split(".")[-1] in (
                "import_module",
                "find_spec",
                "__import__",
                "run_module",
            ):
                names = [each.value for each in node.args if isinstance(each, ast.Constant)]
                found += names
                assert not {str(name).split(".")[0] for name in names} & modules, (path, names)
    assert "libtpu" in found


def test_no_public_name_hides_a_module(package):
    """`import score_sde.NAME as NAME` would bind the name of the same spelling instead."""
    names = {
        name
        for node in ast.parse((package / "__init__.py").read_text()).body
        for name in [each.asname or each.name for each in getattr(node, "names", [])]
    }
    assert {"load", "Prior"} <= names
    assert not names & sources().keys()


def test_metadata():
    """Each fact has one home."""
    assert PROJECT["project"]["dynamic"] == ["version", "dependencies"]
    needed = {
        re.split("[>=]", each)[0] for each in PROJECT["project"]["optional-dependencies"]["tfds"]
    }
    assert needed == set(published.PACKAGES.values())
    development = (ROOT / "requirements-dev.txt").read_text().splitlines()
    (torch,) = PROJECT["project"]["optional-dependencies"]["torch"]
    assert torch in development


def test_editable_installation_is_refused():
    hook = build.Build(str(ROOT), {"folders": FOLDERS}, None, None, "", "wheel")
    with pytest.raises(RuntimeError, match="use the clone itself"):
        hook.initialize("editable", {})


# --- an installed package -------------------------------------------------------------------------

FLAGS = (
    "--config=configs/vp/digits_ddpmpp_continuous.py",
    "--workdir=demo",
    *("--config.model.nf=8", "--config.model.ch_mult=(1,)", "--config.model.num_res_blocks=1"),
    *("--config.model.attn_resolutions=()", "--config.model.num_scales=21"),
    *("--config.training.n_iters=4", "--config.training.batch_size=16"),
    *("--config.training.n_jitted_steps=1", "--config.training.snapshot_sampling=False"),
    *("--config.eval.num_samples=4", "--config.eval.enable_metrics=False"),
    "--config.eval.enable_bpd=False",
)


class Environment:
    """A fresh environment that has the package, and a folder to run commands in.

    It finds the libraries of this environment after its own, by a .pth file: installing them again
    would take minutes.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder / "environment", with_pip=True)
        self.bin, self.folder = folder / "environment" / "bin", folder / "elsewhere"
        self.folder.mkdir()
        (self.libraries,) = (folder / "environment").glob("lib/python*/site-packages")
        before = set(self.libraries.iterdir())
        (self.libraries / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
        # pip fails if the requirements are not met, because it may not download them.
        self.run("python", "-m", "pip", "install", "--no-index", str(wheel))
        self.added = {path.name for path in set(self.libraries.iterdir()) - before}

    def run(self, program: str, *arguments: str, seconds: float = 300) -> str:
        """Run a program of the environment; return its output. The clone is not on its path."""
        environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
        ended = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        assert ended.returncode == 0, ended.stdout
        return ended.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels built from the clone, and from its sdist."""
    folder = tmp_path_factory.mktemp("dist")
    hatch = [sys.executable, "-m", "hatchling", "build", "-d"]
    subprocess.run([*hatch, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("score_sde-*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    command = [*pip, "-w", str(folder / "again"), str(archive)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (direct,), (again,) = folder.glob("*.whl"), (folder / "again").glob("*.whl")
    return direct, again


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("installed"), wheels[1])


@pytest.mark.slow
def test_names_in_the_wheel(wheels):
    """One package, without tests; the same files if built from an sdist."""
    direct, again = (zipfile.ZipFile(path).namelist() for path in wheels)
    assert sorted(direct) == sorted(again)
    folders = {name.split("/")[0] for name in direct}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"score_sde"}
    assert not {"tests", "docs", "scripts", *APART} & {name.split("/")[1] for name in direct}


@pytest.mark.slow
def test_installation_adds_two_names(installed):
    names = {name.split("-")[0] for name in installed.added} - {"shared.pth", "__pycache__"}
    assert names == {"score_sde"}
    assert "Required-by" in installed.run("python", "-m", "pip", "show", "score-sde")


@pytest.mark.slow
def test_all_modules_can_be_imported(installed):
    """Each under the name of the package, and none under that of the clone."""
    code = (
        "import importlib, pkgutil, sys, score_sde;"
        "found = [each.name for each in pkgutil.walk_packages(score_sde.__path__, 'score_sde.')];"
        "[importlib.import_module(name) for name in found];"
        "print(*found); print(*sys.modules)"
    )
    *_, imported, loaded = installed.run("python", "-c", code).splitlines()
    assert {"score_sde.main", "score_sde.models.ncsnpp"} <= set(imported.split())
    assert not set(sources()) - {"score_sde"} & set(loaded.split())


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.6, 1.5])
def test_a_signal_while_the_command_imports_its_modules(installed, seconds):
    """One line, as from the clone; Python itself takes 0.1 seconds to start."""
    process = subprocess.Popen(
        [installed.bin / "score-sde", *FLAGS, "--mode=train"],
        cwd=installed.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGINT
    assert output.split("\n")[1].startswith("Stopped by SIGINT.")


@pytest.mark.slow
def test_command_and_python_example(installed):
    """In a folder without the clone; then the README's example with the workdir."""
    help_text = subprocess.run(
        [installed.bin / "score-sde", "--help"],
        cwd=installed.folder,
        capture_output=True,
        text=True,
    ).stdout
    assert "score-sde --config=configs/vp/" in help_text
    assert "--workdir: " in help_text
    assert "step 4" in installed.run("score-sde", *FLAGS, "--mode=train")
    assert "bits/dim" in installed.run("score-sde", *FLAGS, "--mode=eval")
    assert "demo/eval/report.html" in installed.run("score-sde", "--workdir=demo", "--mode=report")
    readme = (ROOT / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    example += "print(ss.__file__, answers.shape, 'checkpoint', model.step)"
    *_, last = installed.run("python", "-c", example).splitlines()
    assert last == f"{installed.libraries}/score_sde/__init__.py (64, 1, 8, 8, 1) checkpoint 4"


@pytest.mark.slow
def test_datasets_of_hugging_face_stay_importable(installed):
    """Both in one process: the package's module `datasets` is not a top-level one."""
    pip = [installed.bin / "python", "-m", "pip", "install", "--quiet", "datasets"]
    if subprocess.run(pip, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("Hugging Face's datasets cannot be downloaded")
    code = (
        "import datasets, score_sde.datasets;"
        "print(datasets.Dataset.from_dict({'a': [1, 2]}).num_rows, datasets.__file__);"
        "print(score_sde.datasets.__file__)"
    )
    *_, theirs, ours = installed.run("python", "-c", code).splitlines()
    assert theirs == f"2 {installed.libraries}/datasets/__init__.py"
    assert ours == f"{installed.libraries}/score_sde/datasets.py"
    assert importlib.util.find_spec("datasets").origin == str(ROOT / "datasets.py")
