"""The command line: bad input gives one line and exit code 1, and nothing is written."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

import main
from commands import command_line, samples, stored
from configs import default, validation
from configs.folders import claim
from configs.parts import warn_unused
from errors import InputError
from tests import tiny
from tests.refusal import refused

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/vp/digits_ddpmpp_continuous.py"


def run(*args: str, workdir: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "main.py", *args, f"--workdir={workdir}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_the_config_of_a_workdir(tmp_path):
    """It has the values and types of the config that was claimed, and takes every override."""
    config = tiny.config(**{"guidance.classes": (1, 2), "sampling.snr": 0.25, "seed": 3})
    claim(tmp_path, validation.validated(config, 2), "training")
    for source in (tmp_path, tmp_path / "config.json"):
        found = stored.get_config(str(source))
        assert found.to_dict() == default.complete(config).to_dict()
        found.data.image_size = (8, 16)  # A field of two types.
    refused("nothing does not exist, so that", stored.get_config, str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no config.json and no checkpoint, so that"):
        stored.get_config(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("given", "config"),
    [
        (["--workdir=w", "--mode=eval"], "STORED:w"),
        (["--mode", "eval", "--workdir", "w"], "STORED:w"),
        (["--config=v/config.json", "--workdir=w"], "STORED:v/config.json"),
        (["-config", "v/config.json", "--workdir=w"], "STORED:v/config.json"),
        (["--config=configs/default.py", "--workdir=w"], "configs/default.py"),
        (["--source=a.safetensors", "--workdir=w"], "STORED:a.safetensors"),
        (["--source=a.pth", "--workdir=w"], "STORED:w"),
        (["--config=configs/default.py", "--source=a.safetensors"], "configs/default.py"),
        (["--mode=eval"], None),
    ],
)
def test_which_config_is_read(given, config, monkeypatch, tmp_path):
    overrides = ["--config.training.batch_size=4", "--noconfig.training.continuous"]
    if "STORED" in str(config):  # Sources exist.
        monkeypatch.chdir(tmp_path)
        for path in ("a.safetensors", "a.pth"):
            Path(path).touch()
    name, *flags = command_line.with_stored_config(["main.py", *given, *overrides])
    assert name == "main.py"
    assert flags[-2:] == overrides
    expected = config and f"--config={config.replace('STORED', str(command_line.STORED))}"
    assert [flag for flag in flags if flag.startswith("--config=")] == [expected] * bool(config)
    assert ("--workdir=w" in flags) == ("w" in " ".join(given[:4]).replace("--", ""))


@pytest.mark.slow
def test_a_workdir_knows_its_config(tmp_path):
    """After the first command, --config is not needed; overrides apply."""
    first = run(CONFIG, "--mode=train", "--config.training.n_iters=2", workdir=tmp_path)
    assert first.returncode == 0, first.stderr
    result = run("--mode=train", "--config.training.n_iters=3", workdir=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stdout
    result = run("--mode=train", "--config.model.nf=32", workdir=tmp_path)
    assert result.returncode == 1
    assert "model.nf: 16 there, 32 now" in result.stderr
    result = run("--mode=train", workdir=tmp_path / "new")
    assert result.stderr.startswith("Error: ")
    assert "new does not exist" in result.stderr
    assert not (tmp_path / "new").exists()


SLOW = ("diffrax", "grain", "matplotlib", "orbax.checkpoint", "scipy.stats")
WORKDIR = ("main.py", CONFIG, "--workdir=/dev/null/w")


@pytest.mark.parametrize(
    ("arguments", "message", "absent"),
    [
        (("main.py", "--help"), f"images to draw; {samples.COUNT} by default.", ("jax",)),
        ((*WORKDIR, "--mode=dream"), "Error: --mode = 'dream' is unknown", ("jax",)),
        ((*WORKDIR, "--mode=eval", "--cuont=3"), "Error: Unknown command line flag", ("jax",)),
        ((*WORKDIR, "--flagfile=nothing"), "Error: Unable to open flagfile: ", ("jax",)),
        (WORKDIR, "Error: --mode must be given", ("jax",)),
        (("-c", "import score_sde"), "", ("jax",)),
        (("-c", "import score_sde as ss; ss.load, ss.VPSDE, ss.Calibration"), "", SLOW),
    ],
)
def test_slow_imports_are_left_out(arguments, message, absent):
    """Help and errors of flags do not wait for JAX, nor the Python API for what it rarely uses."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    imported = set(re.findall(r"import time: .*\| +(\S+)", result.stderr))
    assert "errors" in imported
    assert imported.isdisjoint(absent)
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == message.startswith("Error")


PARSED = {
    "--config.training.batchsize=64": "training.batchsize = '64' is not a known field; did you me",
    "--config.trainin.batch_size=64": "trainin.batch_size = '64' is not a known field; did you me",
    "--config.training.batch_size=many": "training.batch_size = 'many' must be an integer from 1",
    "--config.eval.enable_bpd=maybe": "eval.enable_bpd = 'maybe' must be True or False.",
    "--config.data.category=cat": "this config has no field data.category",
    "--count=many": "--count=many must be an integer.",
    "--cuont=3": "Unknown command line flag 'cuont'. Did you mean: count",
    "--mode=dream": "--mode = 'dream' is unknown; known: calibrate, ema",
    "--config=README.md": "--config=README.md must be a Python file (.py), which is executed, or",
    "--config=w/config.json:a": "--config=w/config.json:a must be a Python file (.py), which is",
    "--config=configs/vp/digits_ddpm_continuous.py": "does not exist. Did you mean configs/",
    "--config=configs/nothing.py": "configs/nothing.py does not exist. configs/ has experiments",
    "--config.model.name=unet": "model.name = 'unet' must be one of adm, ddpm, mlp, ncsn",
    "--mode=import": "--mode=import needs --source: The checkpoint to import",
    "train": "unexpected positional arguments: train. Did you mean --mode=train?",
}


def test_flags_that_cannot_be_parsed(tmp_path):
    """One line names the flag or field, its value and what is allowed."""
    calls = [[CONFIG, "--mode=sample", f"--workdir={tmp_path / 'w'}", flag] for flag in PARSED]
    program = [sys.executable, "-m", "tests.parse_flags"]
    result = subprocess.run(
        program, cwd=ROOT, input=json.dumps(calls), capture_output=True, text=True
    )
    found = dict(zip(PARSED, json.loads(result.stdout), strict=True))
    wrong = {flag: text for flag, text in found.items() if PARSED[flag] not in text or "\n" in text}
    assert not wrong
    assert not (tmp_path / "w").exists()


def set_flags(**values):
    if not main.FLAGS.is_parsed():
        main.FLAGS.mark_as_parsed()
    for name, value in values.items():
        main.FLAGS[name].value, main.FLAGS[name].present = value, 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--mode and --workdir must be given, as in python main.py --config="),
        ({"mode": "train", "workdir": ""}, "--workdir is empty"),
        ({"mode": "report", "workdir": "a\x1b[2J"}, r"--workdir=a\\x1b\[2J has control characters"),
        (
            {"mode": "train", "workdir": "w", "source": "a.pth"},
            "--source only applies to --mode=import, sample, not train. To train on from a file,",
        ),
    ],
)
def test_flags_of_modes(flags, message):
    """A flag that a mode does not read is an error."""
    with flagsaver.flagsaver():
        set_flags(**flags)
        refused(message, main._check_flags, ["main.py"])


def test_arguments_of_a_mode(monkeypatch):
    """Flags become arguments or config fields; the others keep their defaults."""
    calls, command = [], main.COMMANDS["sample"]
    monkeypatch.setattr(main, "_config", tiny.config)
    with flagsaver.flagsaver():
        set_flags(mode="sample", workdir="w", seed=3, checkpoint=1, classes=["1", "2"])
        main._check_flags(["main.py"])
        main._run(lambda *a, **k: calls.append((a, k)), command)
        set_flags(classes=["a"])
        refused("--classes=a must be integers", main._run, calls.append, command)
    (((config, workdir), arguments),) = calls
    assert (config.seed, config.guidance.classes, workdir) == (3, (1, 2), "w")
    assert arguments == {"number": 1}
    assert main.functions().keys() == main.COMMANDS.keys()


def test_list(capsys):
    """Each name that `--list` prints can be given as it is."""
    with flagsaver.flagsaver():
        set_flags(list=True)
        with pytest.raises(SystemExit, match="0"):
            main._check_flags(["main.py"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[0] == " "]
    assert len(names) > 60
    assert "digits_vp" in names
    paths = [default.find_network(name) if "/" not in name else name for name in names]
    assert all(Path(default.find_file(path)).is_file() for path in paths)


@pytest.mark.parametrize("flag", ["workdir", "source", "target"])
def test_paths_of_flags(flag, monkeypatch):
    """`~` is the home directory, also where the shell leaves it; URLs are errors."""
    monkeypatch.setenv("HOME", "/home/user")

    def parsed(value):
        argv = ["main.py", "--config=configs/vp/digits_ddpmpp_continuous.py", f"--{flag}={value}"]
        return command_line.with_stored_config(argv)

    for value, expected in {"~/a": "/home/user/a", "./~/a": "./~/a", "a//b/": "a//b/"}.items():
        assert f"--{flag}={expected}" in parsed(value)
    for value, message in {
        "gs://bucket/a": f"--{flag} = 'gs://bucket/a' is a URL; only local paths are possible",
        "~no_such_user/a": f"--{flag} = '~no_such_user/a': the home directory",
    }.items():
        refused(message, parsed, value)


def test_the_process(tmp_path, monkeypatch):
    """Characters that a terminal lacks are escapes; programs are cached without a home, too."""
    changes, raw = {}, io.BytesIO()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("errors.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("errors.hide_background_errors", lambda: None)
    monkeypatch.setattr("jax.config.update", changes.__setitem__)
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    monkeypatch.setattr("sys.stderr", io.StringIO())  # It cannot be configured.
    main._set_up()
    print("a \N{SNOWMAN}")
    assert raw.getvalue() == b"a \\u2603\n"
    assert changes["jax_compilation_cache_dir"] == str(tmp_path / "score_sde" / "jax")


@pytest.mark.parametrize(
    ("changes", "given", "ignored"),
    [
        ({"sampling.method": "pc"}, ("num_steps", "snr", "schedule"), "schedule"),
        ({"sampling.method": "ode"}, ("noise_removal", "trajectory"), "trajectory"),
        ({"sampling.method": "solver"}, ("num_steps", "schedule", "curve"), "curve"),
        ({"sampling.method": "solver", "sampling.solver": "heun"}, ("curve", "churn"), "churn"),
        (
            {"sampling.method": "solver", "sampling.solver": "adaptive_sde"},
            ("tolerance", "schedule"),
            "schedule",
        ),
        ({"sampling.method": "solver", "sampling.solver": "restart"}, ("restart", "solver"), ""),
    ],
)
def test_fields_without_effect_are_named(changes, given, ignored, capsys):
    warn_unused(tiny.config(**changes), {"seed", *(f"sampling.{name}" for name in given)})
    found = capsys.readouterr().out
    assert found.startswith(f"sampling.{ignored}: no effect on ") if ignored else not found
