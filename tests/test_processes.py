"""Two processes of main.py compared with one: killed, preempted and evaluated; their flags."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import evaluation
import sharding
import training
from runs.checkpoints import BACKUPS, Checkpoints
from tests import tiny
from tests.refusal import refused
from tests.test_training import leaves
from training import state as states

ROOT = Path(__file__).parents[1]
FIELDS = {"training.n_iters": 8, "training.eval_freq": 100, "eval.enable_bpd": False}
PROGRAM = """
import os, sys
from absl import app
import main, training
step, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
collect = training.loop.TrainingLog.collect
def signalled(self, at, metrics):
    collect(self, at, metrics)
    if at == step:
        os.kill(os.getpid(), number)
training.loop.TrainingLog.collect = signalled
app.run(main.main, flags_parser=main.parse_flags)
"""


def start(
    folder: Path, mode: str, signals: tuple[int, int], step: int = 0
) -> list[subprocess.CompletedProcess]:
    """Run main.py in two processes, in the workdir folder/w.

    Each process receives its signal, if not 0, after `step`.
    """
    (folder / "config.py").write_text(
        f"from tests import tiny\nget_config = lambda: tiny.config(**{FIELDS})\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    processes = []
    for i, number in enumerate(signals):
        flags = [f"--config={folder / 'config.py'}", f"--workdir={folder / 'w'}", f"--mode={mode}"]
        flags += [f"--coordinator={address}", "--num_processes=2", f"--process_id={i}"]
        command = [sys.executable, "-c", PROGRAM, str(step), str(int(number)), *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, **pipes))
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        subprocess.CompletedProcess(p.args, p.returncode, out) for p, out in zip(processes, outputs)
    ]


def same(workdir: Path, one_process, step: int) -> None:
    """Assert that the newest state in `workdir` equals one process's state at this step."""
    like = states.to_checkpoint(one_process[1])
    ours, found = Checkpoints(workdir).restore_latest(like)
    assert found.step == step
    there = Checkpoints(one_process[0])
    (expected,) = [each for each in there.find() if each.step == step and each.folder == BACKUPS]
    for a, b in zip(leaves(ours), leaves(there.restore(expected, like)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_two_processes_stop_continue_and_evaluate_as_one(tmp_path):
    """Both are killed after step 3; then one gets SIGTERM after step 5; then they end.

    The states, the loss, and every pixel of the samples are those of one process.
    """
    folder, workdir = tmp_path, tmp_path / "one"
    one_process = workdir, training.train(tiny.config(**FIELDS), str(workdir))
    killed = start(folder, "train", (signal.SIGKILL, signal.SIGKILL), step=3)
    stopped = start(folder, "train", (0, signal.SIGTERM), step=5)
    assert [process.returncode for process in killed] == [-signal.SIGKILL] * 2
    assert [process.returncode for process in stopped] == [0, 0], stopped
    # Both processes stop one step after the signal.
    assert "step 6: stopped by another process's signal; the state is saved" in stopped[0].stdout
    same(folder / "w", one_process, 6)
    for mode in ("train", "eval"):
        ended = start(folder, mode, (0, 0))
        assert [process.returncode for process in ended] == [0, 0], ended
        if mode == "train":
            assert "continuing from checkpoints-meta/checkpoint_6" in ended[0].stdout
            same(folder / "w", one_process, 8)
    evaluation.evaluate(tiny.config(**FIELDS), str(one_process[0]))
    for kept in (1, 2):
        one, two = (each / "eval" / f"checkpoint_{kept}" for each in (one_process[0], folder / "w"))
        results = [json.loads((each / "results.json").read_text()) for each in (one, two)]
        assert results[0]["loss"]["mean"] == pytest.approx(results[1]["loss"]["mean"], rel=2e-6)
        samples = [np.load(each / "samples_0.npz")["samples"].astype(int) for each in (one, two)]
        # A value on the boundary between two gray levels may be rounded to either.
        assert np.mean(samples[0] != samples[1]) < 1e-3


# --- discovery of processes -----------------------------------------------------------------------


def test_flags_that_do_not_fit_together(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", pytest.fail)
    address = "10.0.0.1:80"
    for arguments in (
        *((address, None, None), (None, 2, 0), ("10.0.0.1", 2, 0), (address, 0, 0)),
        (address, 2, -1),
    ):
        message = f"--coordinator={arguments[0]}, --num_processes={arguments[1]} and .* all three"
        refused(message, sharding.join, *arguments)


def test_clusters_are_detected_by_their_variables(monkeypatch):
    """jax.distributed reads the process number and count from the same variables."""
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: called.append(args))
    slurm = dict.fromkeys(sharding.SLURM, "0")
    for environment, calls in (
        (slurm | {"SLURM_NTASKS": "1"}, 0),
        (slurm | {"SLURM_NTASKS": "4"}, 1),
        ({"SLURM_NTASKS": "4"}, 0),  # In a batch script, before srun.
        (dict.fromkeys(sharding.OPEN_MPI, "2"), 1),
        (dict.fromkeys(sharding.KUBERNETES, "2"), 0),  # Without JAX's package for it.
        ({}, 0),
    ):
        called.clear()
        for name in (*sharding.SLURM, *sharding.OPEN_MPI, *sharding.KUBERNETES):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        sharding.join()
        assert called == [()] * calls
