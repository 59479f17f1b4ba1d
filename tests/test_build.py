"""The package that `pip install .` makes of this clone: its imports, files and command."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import score_sde
from tests.test_architecture import sources

pytest.importorskip("hatchling", reason="hatchling is not installed (requirements-dev.txt)")
from scripts import build

ROOT = Path(__file__).parents[1]


def test_the_package(tmp_path):
    """It has all modules of the program and the files that they read; no import is forgotten."""
    build.write_package(ROOT, tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    inside = [paths for name, paths in sources().items() if name not in build.OUTSIDE]
    expected = {str(path.relative_to(ROOT)) for paths in inside for path in paths}
    assert found - expected == {"__init__.py", "runs/page.html", "runs/page.css", build.NETWORK}
    assert expected - found == {"score_sde.py"}
    imported = set()
    for path in tmp_path.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {each.name.split(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).split(".")[0])
    assert imported & sources().keys() == {"score_sde"}


# --- an installed package -------------------------------------------------------------------------

FLAGS = shlex.split("""--config=configs/vp/digits_ddpmpp_continuous.py --workdir=demo
    --config.model.nf=8 --config.model.ch_mult=(1,) --config.model.num_res_blocks=1
    --config.model.attn_resolutions=() --config.model.num_scales=21 --config.training.n_iters=4
    --config.training.batch_size=16 --config.training.n_jitted_steps=1 --config.eval.num_samples=4
    --noconfig.training.snapshot_sampling --noconfig.eval.enable_metrics
    --noconfig.eval.enable_bpd""")
SCRIPT = """
import importlib, pickle, pkgutil, sys
ORDER
assert (datasets.OWNER, models.OWNER) == ("another package", "the script")
sde = ss.VPSDE(t_min=0.1)
assert pickle.loads(pickle.dumps(sde)) == sde
for each in pkgutil.walk_packages(ss.__path__, "score_sde."):
    importlib.import_module(each.name)
print(*sys.modules)
"""


def run(folder: Path, program: str, *arguments: str) -> str:
    """Run a program of the environment in `folder`. The clone is not on its path."""
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".cache" / "jax")
    command = [folder / "new" / "bin" / program, *arguments]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode in (0, program == "score-sde"), ended.stderr  # --help ends with 1.
    return ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a new environment, in which the wheel of the sdist is installed.

    A .pth file adds the libraries of this environment. There are other modules of our names:
    `datasets` in site-packages, and `models` beside the script.
    """
    folder = tmp_path_factory.mktemp("installed")
    hatch = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(hatch, cwd=ROOT, check=True, capture_output=True)
    venv.create(folder / "new", with_pip=True)
    (libraries,) = (folder / "new").glob("lib/python*/site-packages")
    (libraries / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
    (libraries / "datasets.py").write_text("OWNER = 'another package'")
    (folder / "models.py").write_text("OWNER = 'the script'")
    before, (archive,) = set(libraries.iterdir()), folder.glob("score_sde-*.tar.gz")
    # pip fails if the requirements are not met, because it may not download them.
    options = ("--no-index", "--no-build-isolation", str(archive))
    run(folder, "python", "-m", "pip", "install", *options)
    added = {path.name.split("-")[0] for path in set(libraries.iterdir()) - before}
    assert added - {"__pycache__"} == {"score_sde"}
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ours_first", [True, False])
def test_modules_beside_others_of_the_same_names(folder, ours_first):
    imports = ["import score_sde as ss", "import datasets, models"]
    order = "; ".join(imports if ours_first else imports[::-1])
    (folder / "script.py").write_text(SCRIPT.replace("ORDER", order))
    loaded = set(run(folder, "python", "script.py").split())
    assert {"score_sde.models.ncsnpp", "score_sde.configs.validation"} <= loaded
    assert set(sources()) & loaded == {"score_sde", "datasets", "models"}


@pytest.mark.long
def test_command_and_python_example(folder):
    """In a folder without the clone; then the README's example."""
    assert "score-sde --config=configs/vp/" in run(folder, "score-sde", "--help")
    for arguments, expected in (
        (("--version",), score_sde.__version__),
        (("--mode=sample", "--source=digits_vp", "--workdir=s", "--count=1"), "s/sample/digits_vp"),
        ((*FLAGS, "--mode=train"), "step 4"),
        ((*FLAGS, "--mode=eval"), "held-out loss"),
        (("--workdir=demo", "--mode=report"), "demo/eval/report.html"),
    ):
        assert expected in run(folder, "score-sde", *arguments)
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    example += "print(restored.shape, 'step', model.step)"
    assert "(16, 1, 8, 8, 1) step 2600" in run(folder, "python", "-c", example)
