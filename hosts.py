"""Several processes as one: how they find each other, and how they stop together when one is told to."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from types import FrameType

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from errors import InputError
from sharding import along_axis, replicated

FLAGS = ("--coordinator", "--num_processes", "--process_id")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Makes this process number `process_id` of `num_processes`, which meet at `coordinator`, HOST:PORT of number 0.

    Without arguments, what a TPU pod, SLURM, Open MPI or Kubernetes says of them counts; elsewhere nothing happens.
    To be called before the first use of devices. Raises InputError for arguments that do not fit together.
    """
    jax.config.update("jax_enable_preemption_service", False)  # It would catch SIGTERM, which `Preemption` is to do.
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given):
        _check(given, coordinator, num_processes, process_id)
        jax.distributed.initialize(coordinator, num_processes, process_id, cluster_detection_method="deactivate")
    elif _has_peers():
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        with contextlib.suppress(ValueError):  # There is no TPU in spite of its library.
            jax.distributed.initialize()  # It asks the TPU's metadata server who the others are.


def _check(given: list[bool], coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if not all(given):
        missing = " and ".join(flag for flag, there in zip(FLAGS, given) if not there)
        raise InputError(f"{', '.join(FLAGS)} go together; {missing} is missing. Give all three, or none.")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator={coordinator} must be HOST:PORT of process 0, as in 10.0.0.1:8476.")
    if num_processes < 1:
        raise InputError(f"--num_processes={num_processes} must be at least 1.")
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} must lie from 0 to {num_processes - 1}, as --num_processes={num_processes}."
        )


def _has_peers() -> bool:
    """Whether the environment is one in which `jax.distributed.initialize()` finds other processes."""
    for names, count in ((SLURM, "SLURM_NTASKS"), (OPEN_MPI, "OMPI_COMM_WORLD_SIZE")):
        if all(name in os.environ for name in names) and int(os.environ[count]) > 1:
            return True
    indexed = all(name in os.environ for name in KUBERNETES)
    return indexed and importlib.util.find_spec("kubernetes") is not None  # With it, JAX asks for the job's pods.


class Preemption:
    """While entered, SIGTERM does not end the process, but makes `reached` true in all processes, at the same call."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh, self._told = mesh, False
        self._agreed: Array | None = None  # on the devices
        self._any = jax.jit(jax.numpy.any, out_shardings=replicated(mesh))

    def __enter__(self) -> Preemption:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def reached(self, after: Array) -> bool:
        """Whether to stop now; `after` comes from the latest computation.

        Several processes call it equally often, and learn what was known one call ago: so they need not wait for what
        they have just started. CPUs do wait, for they run what is independent in any order, and two processes that
        send in different orders wait for each other for ever.
        """
        if jax.process_count() == 1:
            return self._told
        wait = jax.block_until_ready if jax.default_backend() == "cpu" else lambda array: array
        wait(after)
        flags = np.full(jax.local_device_count(), self._told)
        mine = jax.make_array_from_process_local_data(along_axis(self._mesh), flags)
        before, self._agreed = self._agreed, wait(self._any(mine))
        return before is not None and bool(before)
