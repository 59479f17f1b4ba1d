"""The commands of the documentation are correct, and run.

The fast tests parse all of them. The long one runs them in a folder with the files of the checkout,
as they are written, with small networks and few samples: flags are appended, none is changed.
`test_python_page.py` runs the snippets.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.default import complete
from configs.folders import claim
from tests import documented, examples, reference, tiny
from tests.documented import PAGES, PYTHON, ROOT, Command

EXCEPTIONS = {  # Why commands with one of these texts are not run.
    "installs or downloads something": (
        *("apt-get install", "pip install", "pre-commit install", "make lint", "curl -O", "unzip "),
        "--mode=prepare_data",
    ),
    "needs a container engine, a cluster or TPU's compiler": (
        *("docker ", "apptainer ", "gcloud ", "kubectl ", "sbatch ", "--topology="),
    ),
    "packs the commits, which the folder of the tests lacks": ("git archive",),
    "changes the shell; the tests select Python otherwise": ("source .venv/bin/activate",),
    "runs these tests": ("make test",),
    "takes minutes or hours; other tests run it at tiny size": (
        *("benchmarks train_step", "benchmarks forward"),
        *("benchmarks sampling", "benchmarks likelihood", "studies.sampling", "studies.likelihood"),
        *("studies.inverse_problems", "studies.claims", "--classes=0,1,2"),
    ),
    "needs the weights of FID's network": ("--config.eval.features=inception",),
    "needs a data set or a file that is downloaded": (
        *("--config.eval.legacy_rounding", "--mode=train --config.data.path=.", "fashion_mnist"),
        *("ve/cifar10_ncsnpp_continuous.py --workdir=work --mode=train", "ffhq_256"),
        *("--config.data.dataset=SVHN", "configs/vp/emoji_ddpmpp_continuous.py", "edm-cifar10"),
        "deep_continuous.py --workdir=work --config.training",
    ),
}
COMMANDS = [command for page in PAGES for command in documented.commands(page)]


def value(command: Command, name: str) -> str:
    """The value of a flag, or ''."""
    start = f"--{name}="
    return next((word.removeprefix(start) for word in command.words if word.startswith(start)), "")


def exception(command: Command) -> str | None:
    """The first text of EXCEPTIONS that the command contains."""
    texts = itertools.chain.from_iterable(EXCEPTIONS.values())
    return next((text for text in texts if text in command.text), None)


# --- all commands parse ---


def test_exceptions():
    """This test runs Python and make. A new line of another program needs an entry above."""
    others = [each for each in COMMANDS if each.words[0] not in (*PYTHON, "score-sde", "make")]
    assert [str(command) for command in others if exception(command) is None] == []
    used = {exception(command) for command in COMMANDS}
    assert {*itertools.chain.from_iterable(EXCEPTIONS.values())} - used == set()


CALLS = [command for command in COMMANDS if command.is_main]
DIGITS = [f"--config={documented.DIGITS}", "--workdir=a"]
WRONG_CALLS = [
    [*DIGITS, "--mode=train", "--no_such_flag=1"],
    [*DIGITS, "--mode=no_such_mode"],
    [*DIGITS, "--mode=train", "--config.training.no_such_field=1"],
    [*DIGITS, "--mode=train", "--config.training.sde=no_such_sde"],
    ["--config=configs/no_such_config.py", "--workdir=a", "--mode=train"],
]


def link_checkout(folder: Path) -> None:
    """Fill a folder with links to the files of the checkout."""
    for path in ROOT.iterdir():
        if path.name not in ("demo", ".git", ".venv"):
            (folder / path.name).symlink_to(path)


@pytest.mark.slow
def test_calls_of_main(tmp_path):
    """Config files exist; flags, fields and values are valid. Wrong ones are found."""
    link_checkout(tmp_path)  # Workdirs have a config, but no model.
    for name in {value(command, "workdir") for command in CALLS}:
        claim(tmp_path / name, complete(tiny.config()), "training")
    unique = [*dict.fromkeys(command.flags for command in CALLS)]
    given = json.dumps([*unique, *WRONG_CALLS])
    program = [sys.executable, "-m", "tests.parse_flags"]
    errors = json.loads(subprocess.check_output(program, input=given, text=True, cwd=tmp_path))
    assert len(unique) > 20
    found = [f"{' '.join(flags)}\n  {error}" for flags, error in zip(unique, errors) if error]
    assert not found, "\n".join(found)
    for call, error in zip(WRONG_CALLS, errors[len(unique) :], strict=True):
        wrong = re.findall("no_such_[a-z]+", " ".join(call))
        assert wrong[0] in error


def test_modules_and_their_flags():
    """`python -m`: the module can be found, and it or an import of it defines the flags."""
    for command in COMMANDS:
        if command.words[:2] in [(python, "-m") for python in PYTHON]:
            module, *arguments = command.words[2:]
            spec = importlib.util.find_spec(module)
            assert spec is not None, command
            if module.split(".")[0] in ("benchmarks", "docs", "studies", "tests"):
                folder = (ROOT / module.split(".")[0]).rglob("*.py")
                source = "".join(path.read_text() for path in folder)
                for flag in re.findall(r"--(\w+)", " ".join(arguments)):
                    assert re.search(rf"[\"'](--)?{flag}[\"']", source), f"{command}: --{flag}"


def test_targets_of_make():
    for command in COMMANDS:
        if command.words[0] == "make":
            ended = subprocess.run(
                ["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True
            )
            assert not ended.returncode, f"{command}: {ended.stderr}"


def test_the_readme_activates_the_environment():
    """After `make demo` its blocks run as pasted."""
    for language, text in documented.blocks(ROOT / "README.md"):
        if language != "python" and re.search(r"^python ", text, re.M):
            assert text.startswith("source .venv/bin/activate\n"), text


# --- commands and snippets run ---

SMALL = """
--config.training.n_iters=4 --config.training.n_jitted_steps=1 --config.training.batch_size=16
--config.training.log_freq=2 --config.training.eval_freq=4 --config.training.snapshot_freq=4
--config.training.snapshot_freq_for_preemption=4 --config.optim.warmup=1
--noconfig.training.snapshot_sampling
--config.model.nf=8 --config.model.num_res_blocks=1 --config.model.num_scales=21
--config.eval.num_samples=20 --config.eval.batch_size=120 --config.eval.bpd_tolerance=0.1
--config.classifier.n_iters=4 --config.classifier.batch_size=16
--config.classifier.blocks_per_group=1 --config.classifier.channel_multiplier=1
--config.restore.samples=2 --config.restore.count=2
--config.calibrate.simulations=20 --config.calibrate.samples=20
"""
FOR_DIGITS = ["--config.model.ch_mult=(1,)", "--config.model.attn_resolutions=()"]
FOR_OTHERS = ["--config.model.attn_resolutions=(8,)", "--config.data.image_size=16"]
NEEDS_NO_MODEL = ("train", "import", "inspect_data", "prepare_data")


def run(command: Command, checkout) -> None:
    """Run a call of main.py in the checkout, with small values appended; check that it succeeds.

    The config of a workdir, which a call without --config takes, has these values already.
    """
    config = value(command, "config")
    small = [*SMALL.split(), *(FOR_DIGITS if "digits" in config else FOR_OTHERS)] if config else []
    workdir = checkout / value(command, "workdir")
    if value(command, "mode") == "import":  # It starts a workdir.
        shutil.rmtree(workdir, ignore_errors=True)
    if value(command, "mode") not in NEEDS_NO_MODEL and not workdir.exists():
        results = shutil.ignore_patterns("eval", "statistics")
        shutil.copytree(checkout / "demo", workdir, ignore=results)
    shutil.rmtree(workdir / "restore", ignore_errors=True)  # Of another choice for the same flag.
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "commands")}
    environment.pop("JAX_PLATFORMS", None)
    ended = subprocess.run(
        [sys.executable, "main.py", *command.flags, *small],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert not ended.returncode, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"


def expanded(command: Command) -> list[Command]:
    """The command itself, or the calls of main.py that make would run for it."""
    if command.words[0] != "make":
        return [command]
    recipe = subprocess.check_output(["make", "-n", *command.words[1:]], cwd=ROOT, text=True)
    lines = [line.split() for line in recipe.splitlines()]
    return [
        Command(command.page, " ".join(words), tuple(words))
        for words in lines
        if words[:2] == [".venv/bin/python", "main.py"]
    ]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with links to the checkout, a model in `demo`, and files that commands name."""
    folder = tmp_path_factory.mktemp("checkout")
    link_checkout(folder)
    (demo,) = [command for command in COMMANDS if str(command) == "README.md: make demo"][:1]
    for command in expanded(demo):
        run(command, folder)
    (folder / "images").mkdir()
    for i, pixels in enumerate(examples.images(40, 64, 64, 3)):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    mask = np.full((8, 8), 255, np.uint8)
    mask[2:5] = 0
    Image.fromarray(mask).save(folder / "file.png")
    for step in (12, 24):
        recorded = reference.find("ve_cifar10_ncsnpp_continuous") / "checkpoint_flax"
        shutil.copy(recorded, folder / f"checkpoint_{step}.pth")
    return folder


RUN = [command for command in COMMANDS if command.runs and not exception(command)]


@pytest.mark.long
@pytest.mark.parametrize("page", sorted({command.page for command in RUN}))
def test_commands_run(page, checkout):
    """In their order, with a folder `work` of the page."""
    shutil.rmtree(checkout / "work", ignore_errors=True)
    for command in RUN:
        if command.page == page:
            for call in expanded(command):
                if call.is_main:
                    run(call, checkout)
                else:
                    subprocess.run([sys.executable, *call.words[1:]], cwd=checkout, check=True)
