"""Dockerfile and cluster scripts: linters find nothing, they fit each other, and they resume.

Programs of the clusters are not available. Stand-ins in PATH take the place of Python and SLURM.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import main

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
JOB = SCRIPTS / "kubernetes-job.yaml"
SHELL = [SCRIPTS / "train.sh", SCRIPTS / "slurm.sbatch", ROOT / ".ci" / "run"]
PAGE = (ROOT / "docs" / "accelerators.md").read_text()

# --- linters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("linter", "paths"),
    [("shellcheck", SHELL), ("hadolint", [ROOT / "Dockerfile"]), ("yamllint", [JOB])],
)
def test_linters_find_nothing(linter, paths):
    program = shutil.which(linter, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip(f"{linter} is not installed (requirements-dev.txt)")
    strict = ["--strict"] if linter == "yamllint" else []
    command = [program, *strict, *map(str, paths)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_job_fits_the_schema():
    """Of the newest Kubernetes that the package has; unknown fields are errors."""
    reason = "kubernetes-validate is not installed (requirements-dev.txt)"
    validate = pytest.importorskip("kubernetes_validate", reason=reason)
    for resource in yaml.safe_load_all(JOB.read_text()):
        validate.validate(resource, validate.latest_version(), strict=True)


# --- they fit each other --------------------------------------------------------------------------


@pytest.mark.parametrize("text", [path.read_text() for path in [*SHELL[:2], JOB]] + [PAGE])
def test_flags_exist(text):
    """The flags of main.py in scripts and on the page; those of other programs are listed."""
    lines = "\n".join(line for line in text.splitlines() if "#SBATCH" not in line)
    given = set(re.findall(r"(?<=[ '`\"])--(\w+)(?==)", lines))
    others = {"command", "filename", "gpus", "nodes", "signal", "time", "volume", "worker"}
    others |= {"file", "output", "prefix", "set", "shape", "topology", "zone"}
    assert given - others <= set(main.FLAGS), given


def test_job():
    """One process for each pod of the job, with the service's name for the first."""
    service, job = yaml.safe_load_all(JOB.read_text())
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    flags = dict(each.split("=", 1) for each in container["args"] if each.startswith("--"))
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert flags["--coordinator"].startswith(f"{name}-0.{pod['subdomain']}:")
    assert int(flags["--num_processes"]) == spec["completions"] == spec["parallelism"]
    assert flags["--process_id"] == f"$({container['env'][0]['name']})"
    exits = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert exits["containerName"] == container["name"]
    assert f"exit {exits['values'][0]}\n" in (SCRIPTS / "train.sh").read_text()
    assert container["args"][0] in PAGE
    user = f"\nUSER {pod['securityContext']['runAsUser']}\n"
    assert user in (ROOT / "Dockerfile").read_text()


# --- they resume ----------------------------------------------------------------------------------

ARGUMENTS = ["configs/vp/digits_ddpmpp_continuous.py", "runs", "40", "--config.seed=7"]
DONE = "mkdir -p runs/checkpoints-meta/checkpoint_40"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A function that puts a program of this name, a script for bash, first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SCORE_SDE_WAIT", "0")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))

    def make(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)

    return make


def bash(script: str, folder: Path) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPTS / script), *ARGUMENTS]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("program", "code"),
    [(DONE, 0), ("exit 0", 75), ("exit 143", 75), ("exit 1", 1), (f"{DONE}; exit 3", 3)],
)
def test_exit_codes_of_training(program, code, stand_in, tmp_path):
    stand_in("python", f'echo "$@"; {program}')
    ended = bash("train.sh", tmp_path)
    assert ended.returncode == code, ended
    assert ended.stdout.split()[1:] == [
        *("--mode=train", f"--config={ARGUMENTS[0]}", "--workdir=runs"),
        *("--config.training.n_iters=40", "--config.seed=7"),
    ]


def test_sigterm_reaches_training(stand_in, tmp_path):
    """The shell waits until training has saved its state, and then reports the stop."""
    save = "sleep 0.5; touch saved; exit 0"
    stand_in("python", f"trap '{save}' TERM; echo started; while true; do sleep 0.05; done")
    command = ["bash", str(SCRIPTS / "train.sh"), *ARGUMENTS]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 75
    assert (tmp_path / "saved").exists()


def make_environment(folder: Path, monkeypatch, job: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", str(job))
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()


@pytest.mark.parametrize(
    ("program", "code", "requeued"), [(DONE, 0, False), ("exit 0", 0, True), ("exit 1", 1, False)]
)
def test_slurm_queues_a_stopped_job_again(program, code, requeued, stand_in, tmp_path, monkeypatch):
    make_environment(tmp_path, monkeypatch, 12)
    stand_in("srun", f'echo "$@"; {program}')
    stand_in("scontrol", 'echo "$@" > scontrol.log')
    ended = bash("slurm.sbatch", tmp_path)
    assert ended.returncode == code, ended
    assert "python main.py --mode=train --config=configs/vp/" in ended.stdout
    log = tmp_path / "scontrol.log"
    assert (log.read_text() if log.exists() else "") == ("requeue 12\n" if requeued else "")


TINY = [
    *("--config.model.nf=8", "--config.model.ch_mult=(1,)", "--config.model.num_res_blocks=1"),
    *("--config.model.attn_resolutions=()", "--config.training.batch_size=16"),
    *("--config.training.snapshot_sampling=False", "--config.training.log_freq=1"),
]
SRUN = """
shift
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" >> task$task.log 2>&1 &
    last=$!
done
until [[ -e stopped ]] || grep -q ^step task0.log; do sleep 0.1; done
[[ -e stopped ]] || kill -TERM $last
touch stopped
wait
"""


@pytest.mark.long
def test_slurm_job_of_two_tasks_is_stopped_and_continues(stand_in, tmp_path, monkeypatch):
    """Two processes find each other by SLURM's variables; one of them receives SIGTERM."""
    with socket.socket() as free:  # JAX derives the port from the number of the job.
        job = next(n for n in range(4096) if free.connect_ex(("127.0.0.1", 61440 + n)))
    make_environment(tmp_path, monkeypatch, job)
    (tmp_path / "main.py").symlink_to(ROOT / "main.py")
    stand_in("python", f'exec {sys.executable} "$@"')
    stand_in("srun", SRUN)
    stand_in("scontrol", 'echo "$@" > scontrol.log')
    command = ["bash", str(SCRIPTS / "slurm.sbatch"), ARGUMENTS[0], "runs", "4000", *TINY]
    logs = [tmp_path / f"task{i}.log" for i in range(2)]
    for requeued in (True, False):
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
        assert ended.returncode == 0, [ended, *(log.read_text() for log in logs)]
        assert (tmp_path / "scontrol.log").exists() == requeued
        (tmp_path / "scontrol.log").unlink(missing_ok=True)
        saved = (tmp_path / "runs" / "checkpoints-meta").iterdir()
        step = max(int(path.name.rpartition("_")[2]) for path in saved)
        if requeued:
            assert f"step {step}: stopped by another process's signal" in logs[0].read_text()
            command[4] = str(step + 2)
    assert step == int(command[4])
