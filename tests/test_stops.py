"""Every way in which a command ends early: one line, an exit code, and nothing lost."""

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs.folders import owned
from errors import InputError
from runs import locked, results_folder, write_json
from runs.checkpoints import Checkpoints
from tests import tiny
from tests.refusal import refused
from tests.test_files import KINDS

ROOT = Path(__file__).parents[1]
CONFIG = """
from tests import tiny

def get_config():
    return tiny.config(**{changes})
"""
FREQUENT = {
    "training.n_iters": 4000,
    "training.snapshot_freq": 1000,
    "training.snapshot_freq_for_preemption": 2,
}


def write_config(folder, **changes):
    path = folder / "tiny_config.py"
    path.write_text(CONFIG.format(changes=FREQUENT | changes))
    return path


def start(config, workdir, mode="train", *flags, cache=ROOT / ".cache" / "jax", **options):
    command = [sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [*command, f"--mode={mode}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(cache)},
        **options,
    )


def finish(process):
    """The exit code and the lines of the output that are not those of training or of progress."""
    output = process.communicate(timeout=120)[0]
    assert "Traceback" not in output, output
    lines = [
        line
        for line in output.splitlines()
        if line and not line.startswith("step ") and not line.endswith((" ...", " so far"))
    ]
    print(output)  # pytest shows it if the test fails.
    return process.returncode, lines


def wait_for(path, process):
    """Wait until a file exists."""
    end = time.monotonic() + 100
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.2)


# --- the lock of a workdir ---


def enter(context):
    with context:
        pass


def test_folders_have_one_owner(tmp_path):
    """The lock of a process that has ended is taken over, but not for another config."""
    config = tiny.config()
    for _ in range(2):
        with owned(tmp_path, config, "evaluation"):
            message = f"is in use by process {os.getpid()} on .*use another --workdir"
            refused(message, enter, locked(tmp_path))
            assert json.loads((tmp_path / "config.json").read_text())["seed"] == config.seed
            write_json(tmp_path / "results.json", {})
    config.model.nf = 16
    with pytest.raises(InputError, match=r"model\.nf: 8 there, 16 now"):
        enter(owned(tmp_path, config, "evaluation"))


def test_a_lock_that_is_no_file(tmp_path):
    for name, make in KINDS.items():
        if name in ("a named pipe", "a folder", "Too many levels of symbolic links"):
            (tmp_path / name).mkdir()
            make(tmp_path / name / "lock")
            refused("lock (is a|cannot be read)", enter, locked(tmp_path / name))


def test_folders_of_results(tmp_path):
    """They lie in the workdir, and are not those of other modes, such as that of checkpoints."""
    for name in ("", ".", "..", "a/../../b", "/tmp/a"):
        refused("must be the name of a folder in the workdir", results_folder, tmp_path, name)
    refused("=checkpoints/a is a folder of other", results_folder, tmp_path, "checkpoints/a")
    assert results_folder(tmp_path, "samples", taken=()) == tmp_path / "samples"
    assert results_folder(tmp_path, "eval/a") == tmp_path / "eval" / "a"


# --- files that cannot be written ---


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    refused("a.json/b.json cannot be written: Not a directory", write_json, path / "b.json", {})
    with pytest.raises(TypeError):
        write_json(path, object())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        refused("a.json cannot be written: File too large", write_json, path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "1")]


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


@pytest.mark.long
def test_a_checkpoint_that_cannot_be_written(tmp_path):
    """One line; once files may be large enough, the same command continues."""
    config, workdir = write_config(tmp_path, **{"training.n_iters": 8}), tmp_path / "w"
    cache = tmp_path / "cache"  # Its files are cut short, too.
    code, lines = finish(start(config, workdir, cache=cache, preexec_fn=limit_file_size))
    assert (code, len(lines)) == (1, 1)
    assert re.match(r"Error: .*cannot be written", lines[0])
    assert finish(start(config, workdir, cache=cache)) == (0, [])


FULL_DISK = {
    "sample": ["--count=2"],
    "eval": [],
    "export": ["--average_only", "--target=a.safetensors"],
    "restore": ["--config.restore.task=inpaint"],
    "encode": [],
    "interpolate": [],
    "inspect_data": [],
    "fid_stats": [],
    "train_classifier": ["--config.classifier.n_iters=2"],
}


def limit_more():
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))


def one_error(process):
    """The last line of a command that fails, which is the only one that begins with Error."""
    code, lines = finish(process)
    assert code == 1
    assert [line.startswith("Error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
    return lines[-1]


@pytest.mark.long
@pytest.mark.parametrize("mode", FULL_DISK)
def test_a_full_disk_in_other_modes(tmp_path, mode):
    """The last line names the file, also where a library writes it."""
    changes = {"training.n_iters": 8, "sampling.method": "ode", "sampling.noise_removal": False}
    if mode in ("sample", "restore"):
        changes = {"training.n_iters": 8}
    workdir = tiny.untrained(tmp_path / "w", **FREQUENT | changes)
    flags = [flag.replace("=a.", f"={tmp_path}/a.") for flag in FULL_DISK[mode]]
    config, cache = write_config(tmp_path, **changes), tmp_path / "cache"
    process = start(config, workdir, mode, *flags, cache=cache, preexec_fn=limit_more)
    assert " cannot be written: " in one_error(process)


# --- signals ---


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
def test_signals_in_training_save_the_state(tmp_path, number, code):
    config, workdir = write_config(tmp_path), tmp_path / "w"
    process = start(config, workdir)
    wait_for(workdir / "checkpoints-meta" / "checkpoint_*[0-9]", process)
    second = finish(start(config, workdir))
    assert (second[0], len(second[1])) == (1, 1)
    assert f"is in use by process {process.pid} on" in second[1][0]
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code
    assert "Traceback" not in output
    name = signal.Signals(number).name
    (step,) = re.findall(rf"step (\d+): stopped by {name}; the state is saved", output)
    assert (workdir / "checkpoints-meta" / f"checkpoint_{step}").is_dir()


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "seconds"),
    [*itertools.product((signal.SIGINT, signal.SIGTERM), (0.5, 2.0, 6.0)), (signal.SIGHUP, 6.0)],
)
def test_signals_outside_of_training(tmp_path, number, seconds):
    """At any time: while modules are imported, while programs are compiled, and later."""
    config = write_config(tmp_path, **{"classifier.n_iters": 10**6})
    process = start(config, tmp_path / "w", "train_classifier")
    time.sleep(seconds)
    process.send_signal(number)
    code, lines = finish(process)
    assert code == 128 + number or (seconds < 1 and code in (-number, 128 + number))
    assert [line for line in lines if "Stopped by" in line] or seconds < 1


START = "import errors, os, sys; errors.start_command(); "


def start_python(code, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": ROOT} | options
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", START + code], env=environment, **options)


@pytest.mark.parametrize(
    ("handler", "code", "count"), [(signal.SIG_DFL, 129, 1), (signal.SIG_IGN, 0, 0)]
)
def test_a_lost_terminal(handler, code, count):
    """One line, unless SIGHUP is ignored, as `nohup` asks for."""
    process = start_python(
        f"os.kill(os.getpid(), {signal.SIGHUP:d})",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, handler),
        text=True,
    )
    found, lines = finish(process)
    assert (found, len(lines)) == (code, count)


def read_line(terminal):
    text = b""
    while not text.endswith(b"\n"):  # A terminal may pass on a part of a line.
        text += os.read(terminal, 9)
    return text


def test_output_to_a_lost_terminal():
    """It is discarded; without that, printing raises OSError."""
    master, terminal = os.openpty()
    text = "print('a', flush=True); input(); errors.discard_lost_output(); print('b', flush=True)"
    for expected in (b"b\r\n", None):
        process = start_python(text, stdin=subprocess.PIPE, stdout=terminal, stderr=None)
        assert read_line(master) == b"a\r\n"
        if expected is None:
            os.close(master)
        process.communicate(b"\n", timeout=60)
        assert process.returncode == 0
        assert expected is None or read_line(master) == expected
    os.close(terminal)


# --- standard streams ---


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(tmp_path, closed):
    """/dev/null takes their place, so that nothing is printed into a file."""
    text = "f = open('f', 'wb'); print(1, flush=True); print(2, file=sys.stderr); sys.stdin.read()"
    command = f'exec "$0" -c "$1" {closed}'
    process = subprocess.Popen(
        ["sh", "-c", command, sys.executable, START + text],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
    )
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "f").read_bytes() == b""


@pytest.mark.long
@pytest.mark.parametrize(("redirection", "code"), [("<&- >&- 2>&-", 0), (">/dev/full", 1)])
def test_images_without_standard_output(tmp_path, redirection, code):
    """The images are written without it; if it is full, one line says so."""
    workdir = tiny.untrained(tmp_path / "w", **FREQUENT)
    command = f'exec "$0" main.py --workdir="$1" --mode=sample --count=2 {redirection}'
    process = subprocess.run(
        ["sh", "-c", command, sys.executable, workdir],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax")},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert (process.returncode, process.stderr.count("\n")) == (code, code)
    assert code or list(workdir.rglob("*.png"))


# --- kills ---


def digest(workdir):
    """The checksums in the newest checkpoint, and the log without the speed."""
    checkpoints = Checkpoints(workdir)
    newest = checkpoints.find()[0]
    log = re.sub(r', "[a-z/_]*_per_second": [^,}]*', "", (workdir / "metrics.jsonl").read_text())
    checksums = [checkpoints.checksum(newest, name) for name in ("params", "ema", "optimizer")]
    return newest.step, checksums, log


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_runs_end_as_uninterrupted_ones(tmp_path, seed):
    """25 kills at random times, in as many runs as that takes; also while the modules load."""
    config = write_config(tmp_path, **{"training.n_iters": 150, "training.snapshot_freq": 50})
    assert finish(start(config, tmp_path / "whole")) == (0, [])
    expected = digest(tmp_path / "whole")
    rng, kills, runs = np.random.default_rng(seed), 0, 0
    while kills < 25:
        runs += 1
        workdir = tmp_path / f"run_{runs}"
        while True:
            process = start(config, workdir)
            try:
                code = process.wait(rng.uniform(1, 12) if kills < 25 else 120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                continue
            assert (code, finish(process)) == (0, (0, []))
            break
        assert digest(workdir) == expected
