"""The command line: bad input gives one line and exit code 1, and nothing is written."""

import io
import json
import pkgutil
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

import main
from commands import command_line, samples
from configs import default, validation
from configs.folders import claim
from configs.parts import warn_unused
from errors import InputError
from loading import load_config, read_config_file
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
        found = load_config(source)
        assert found.to_dict() == default.complete(config).to_dict()
        found.data.image_size = (8, 16)  # A field of two types.
    refused("nothing does not exist. Name", load_config, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no config.json and no checkpoint. Name"):
        load_config(tmp_path / "empty")


SOURCES = {  # Which config is read, by the flags that are given.
    ("workdir=w",): "w",
    ("config=v/config.json", "workdir=w"): "v/config.json",
    ("config=configs/default.py", "workdir=w"): "configs/default.py",
    ("source=a.safetensors", "workdir=w"): "a.safetensors",
    ("source=a.pth", "workdir=w"): "w",
    ("config=configs/default.py", "source=a.safetensors"): "configs/default.py",
    ("source=digits_vp",): str(ROOT / "zoo" / "digits_vp.safetensors"),
    ("workdir=~/a",): "/home/user/a",
    ("workdir=./~/a",): "./~/a",
    ("workdir=a//b/",): "a//b/",
}


def test_which_config_is_read(monkeypatch, tmp_path):
    """`~` is the home directory, also where the shell leaves it; URLs are errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/user")
    for path in ("a.safetensors", "a.pth"):
        Path(path).touch()
    read = []
    monkeypatch.setattr("loading.load_config", lambda path, given: read.append((path, given)))
    monkeypatch.setattr("loading.read_config_file", lambda path: read.append((path, {"seed"})))
    monkeypatch.setattr(command_line, "change", lambda config, fields: config)
    for flags, path in SOURCES.items():
        with flagsaver.flagsaver():
            set_flags(**dict(each.split("=") for each in flags))
            command_line.read_config(["seed=1"])
            assert read.pop() == (path, {"seed"})
            source = flags[-1] == "source=digits_vp"
            assert main.FLAGS.source == path or not source
    for value, message in {
        "gs://bucket/a": "--target = 'gs://bucket/a' is a URL; only local paths are possible",
        "~no_such_user/a": "--target = '~no_such_user/a': the home directory",
    }.items():
        with flagsaver.flagsaver():
            set_flags(workdir="w", target=value)
            refused(message, command_line.read_config, [])


def test_fields_on_the_command_line():
    """Commands for the official code, integers for real numbers, and booleans in all forms."""
    given = {
        "--config.model.nf=64": 64,
        "--config.training.sde=vpsde": "vpsde",
        "--config.model.ch_mult=(1, 2)": (1, 2),
        "--config.model.attn_resolutions=[16, 8]": (16, 8),
        "--config.optim.weight_decay=0.1": 0.1,
        "--config.model.fourier_scale=8": 8.0,
        "--config.model.dropout=0": 0.0,
        "--config.eval.enable_sampling": True,
        "--noconfig.eval.enable_loss": False,
        "--config.eval.enable_bpd=true": True,
        "--config.eval.enable_metrics=0": False,
        "--config.data.image_size=(48, 32)": (48, 32),
        "--config.data.path=a=b": "a=b",
        "-config.guidance.classes 1,2": (1, 2),
        "--config.model.attention_type=x": "x",
    }
    arguments = [word for flag in given for word in re.split(r"(?<=classes) ", flag)]
    others, fields = command_line._split(["main.py", *arguments, "--mode=eval", "train"])
    assert others == ["main.py", "--mode=eval", "train"]
    config = default.get_default_config()
    config.model.update(nf=1, ch_mult=(1,), attn_resolutions=(1,), fourier_scale=16.0)
    config.model.attention_type = "ddpm"
    found = command_line.change(config, fields)
    for field, expected in zip(fields, given.values(), strict=True):
        section, _, key = field.partition("=")[0].partition(".")
        value = found[section][key]
        assert (value, type(value)) == (expected, type(expected)), field


def test_two_names_of_a_field():
    config = tiny.config()
    config.model.num_classes = config.model.get_ref("num_scales")
    assert command_line.change(config, ["model.num_scales=7"]).model.num_classes == 7


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


SLOW = ("diffrax", "grain", "matplotlib", "orbax.checkpoint", "scipy.stats")
WORKDIR = ("main.py", CONFIG, "--workdir=/dev/null/w")


@pytest.mark.parametrize(
    ("arguments", "message", "absent"),
    [
        (("main.py", "--help"), f"images to draw; {samples.COUNT} by default.", ("jax",)),
        ((*WORKDIR, "--mode=eval", "--cuont=3"), "Error: --cuont is not a known flag", ("jax",)),
        ((*WORKDIR, "--flagfile=nothing"), "Error: Unable to open flagfile: ", ("jax",)),
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
    "--config.training.batchsize=64": "Did you mean training.batch_size?",
    "--config.trainin.batch_size=64": "is not a known field. Did you mean training.batch",
    "--config.training.batch_size=many": "training.batch_size = 'many' must be an integer from 1",
    "--config.eval.enable_bpd=maybe": "eval.enable_bpd = 'maybe' must be True or False.",
    "--config.data.category=cat": "this config has no field data.category",
    "--count=many": "--count=many must be an integer.",
    "--cuont=3": "--cuont is not a known flag. Did you mean --count?",
    "--training.batch_size=3": "is not a known flag. Did you mean --config.training.batch_size?",
    "--config.sampling.solver=dpm++2m": "unipc_2, unipc_3. Did you mean dpm++_2m?",
    "--mode=dream": "--mode = 'dream' must be one of calibrate, ema",
    "--config=README.md": "config = 'README.md' must be a Python file (.py) or a config.json",
    "--config=configs/vp/digits_ddpm_continuous.py": "does not exist. Did you mean configs/",
    "--config=configs/nothing.py": "configs/nothing.py does not exist. configs/ has experiments",
    "--config.model.name=unet": "model.name = 'unet' must be one of adm, ddpm, mlp, ncsn",
    "--mode=import": "--mode=import needs --source: The checkpoint to import",
    "--source=nothing": "--source=nothing does not exist. It must be",
    "--source=digts_vp": "such as digits_vp. Did you mean digits_vp?",
    "train": "unexpected positional arguments: train. Did you mean --mode=train?",
}


@pytest.mark.slow
def test_flags_that_cannot_be_parsed(tmp_path):
    """One line names the flag or field, its value and what is allowed."""
    calls = [[CONFIG, "--mode=sample", f"--workdir={tmp_path / 'w'}", flag] for flag in PARSED]
    for call in (call for call in calls if call[-1].startswith("--source=")):
        call.pop(0)
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
        ({"mode": "trian"}, "--mode = 'trian' must be one of .*train"),
        ({"mode": "train", "workdir": ""}, "--workdir is empty"),
        ({"mode": "report", "workdir": "a\x1b[2J"}, r"--workdir=a\\x1b\[2J has control characters"),
        (
            {"mode": "train", "workdir": "w", "source": "a.pth"},
            "--source only applies to --mode=import, sample, fit_schedule, not train. To train on",
        ),
    ],
)
def test_flags_of_modes(flags, message):
    """A flag that a mode does not read is an error."""
    with flagsaver.flagsaver():
        set_flags(**flags)
        refused(message, main.check_flags, ["main.py"])


def test_arguments_of_a_mode(monkeypatch):
    """Flags become arguments or config fields; the others keep their defaults."""
    calls, command = [], main.COMMANDS["sample"]

    def sample(config, workdir, given, **arguments):
        calls.append((config, workdir, given, arguments))

    monkeypatch.setattr("commands.samples.sample", sample)
    monkeypatch.setattr("loading.load_config", lambda *_: tiny.config())
    with flagsaver.flagsaver():
        set_flags(mode="sample", workdir="w", seed=3, checkpoint=1, classes=["1", "2"])
        main.check_flags(["main.py"])
        main.run(command, ["sampling.snr=0.5"])
    ((config, workdir, given, arguments),) = calls
    assert (config.seed, config.guidance.classes, config.sampling.snr) == (3, (1, 2), 0.5)
    assert (workdir, arguments) == ("w", {"number": 1})
    assert given == {"seed", "guidance.classes", "sampling.snr"}


def test_functions_of_modes():
    assert all(callable(pkgutil.resolve_name(each.function)) for each in main.COMMANDS.values())


def test_list(capsys):
    """Each name that `--list` prints can be given as it is; titles are whole sentences."""
    with flagsaver.flagsaver():
        set_flags(list=True)
        with pytest.raises(SystemExit, match="0"):
            main.check_flags(["main.py"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line[0] == " "]
    assert [line for line in lines if line.split()[1:] and line[-1] != "."] == []
    names = [line.split()[0] for line in lines]
    assert len(names) > 60
    assert "digits_vp" in names
    paths = [default.find_network(name) if "/" not in name else name for name in names]
    assert all(Path(default.find_file(path)).is_file() for path in paths)


def test_the_reader_of_a_list_may_end():
    """As `head` does: no traceback, and the end of a program that SIGPIPE stops."""
    command = f"{sys.executable} main.py --list | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (128 + signal.SIGPIPE, "")


def test_completion(capsys):
    """Bash completes flags, fields, modes, configs and networks by one command."""
    with flagsaver.flagsaver():
        set_flags(completion=True)
        with pytest.raises(SystemExit, match="0"):
            main.check_flags(["main.py"])
    start, words, name = capsys.readouterr().out.split("'")
    assert (start, name) == ("complete -o default -W ", " score-sde\n")
    names = {"--workdir", "--config.sampling.solver", "train", "digits_vp"}
    assert names | {"configs/vp/digits_ddpmpp_continuous.py"} <= set(words.split())


def test_a_folder_for_samples_of_a_file():
    with flagsaver.flagsaver():
        set_flags(mode="sample", source="digits_vp")
        main.check_flags(["main.py"])
        assert main.FLAGS.workdir == "samples"


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


def test_config_files_that_do_not_work(tmp_path):
    path = tmp_path / "wrong.py"
    for text, message in {
        "def get_config(): return 1 / 0": "ZeroDivisionError: division by zero",
        "def get_config(): return {}": r"get_config\(\) returned dict, but it must return an ml_",
        "x =": "SyntaxError: invalid syntax",
        "import nothing_of_this_name": "No module named 'nothing_of_this_name'",
        "x = 1": "it does not define a function get_config",
    }.items():
        path.write_text(text)
        refused(message, read_config_file, path)
