"""Devices and processes: one mesh, and what is split over it.

Batches are split along the mesh axis `data` over all devices of all hosts. Everything else is
replicated, except the state of training, which is split too if training.shard_params is set.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
import os
import re
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

import errors
from errors import InputError

Tree = TypeVar("Tree")

SMALL = 2**12  # Splitting an array of fewer entries saves little memory and adds messages.


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh over `devices`, by default all devices of all processes."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def on_cpu(mesh: Mesh) -> bool:
    """Return whether the devices, which may be compilation targets only, are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of an array that is the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_axis(mesh: Mesh | AbstractMesh, axis: int = 0) -> NamedSharding:
    """Return the sharding of an array whose axis number `axis` is split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def shard_largest_axis(mesh: Mesh | AbstractMesh, tree: Tree) -> Tree:
    """Return shardings that split each large array along the largest axis that devices divide."""

    def choose(leaf: jax.Array) -> NamedSharding:
        fitting = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if math.prod(leaf.shape) < SMALL or not fitting:
            return replicated(mesh)
        _, negative_axis = max(fitting)
        return along_axis(mesh, -negative_axis)

    return jax.tree.map(choose, tree)


def gather(mesh: Mesh, tree: Tree) -> Tree:
    """Replicate arrays for a computation; their gradients are split by `shard_largest_axis`.

    The compiler would split the computation as the parameters are, which takes more messages.
    """

    @jax.custom_vjp
    def whole(tree: Tree) -> Tree:
        return lax.with_sharding_constraint(tree, replicated(mesh))

    def backward(_: None, grads: Tree) -> tuple[Tree]:
        return (lax.with_sharding_constraint(grads, shard_largest_axis(mesh, grads)),)

    whole.defvjp(lambda tree: (whole(tree), None), backward)
    return whole(tree)


def shard(mesh: Mesh, local: Tree, axis: int = 0) -> Tree:
    """Return global arrays, split along `axis`, of which this process has the rows `local_rows`."""

    def to_global(rows: np.ndarray) -> Array:
        size = rows.shape[axis] * mesh.size // len(mesh.local_devices)
        mine = local_rows(mesh, size)
        shape = (*rows.shape[:axis], size, *rows.shape[axis + 1 :])

        def part(index: Any) -> np.ndarray:
            wanted = np.arange(size)[index[axis]]
            return np.take(rows, np.searchsorted(mine, wanted), axis)

        return jax.make_array_from_callback(shape, along_axis(mesh, axis), part)

    return jax.tree.map(to_global, local)


def shard_complete(mesh: Mesh, complete: Tree) -> Tree:
    """Return global arrays, split along their first axis; every process passes all rows."""

    def to_global(rows: np.ndarray | Array) -> Array:
        rows = np.asarray(rows)
        return jax.make_array_from_callback(rows.shape, along_axis(mesh), rows.__getitem__)

    return jax.tree.map(to_global, complete)


@functools.lru_cache
def local_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """Return the rows of a global batch that the devices of a process hold, in ascending order.

    Devices of one process need not be neighbors in the mesh. `process` is this one by default.
    """
    process = jax.process_index() if process is None else process
    indices = along_axis(mesh).devices_indices_map((batch_size,)).items()
    mine = [index for device, (index,) in indices if device.process_index == process]
    return np.sort(np.concatenate([np.arange(batch_size)[index] for index in mine]))


def fetch(tree: Any) -> Any:
    """Return global arrays as numpy arrays, complete on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def wait(name: str) -> None:
    """Wait until all processes have made this call; process 0 has then written its files."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


# --- several processes ----------------------------------------------------------------------------

SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
OPEN_MPI = (
    "OMPI_MCA_orte_hnp_uri",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
)
KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Connect this process to the others of its run, before the first use of devices.

    Without arguments, a TPU pod, SLURM, Open MPI or Kubernetes provides them; elsewhere nothing
    happens. Raises InputError for arguments that do not fit together.
    """
    # JAX's preemption service would catch SIGTERM, which `Preemption` handles.
    jax.config.update("jax_enable_preemption_service", False)
    arguments = (coordinator, num_processes, process_id)
    if any(value is not None for value in arguments):
        _check(*arguments)
        jax.distributed.initialize(*arguments, cluster_detection_method="deactivate")
    elif _has_peers():
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        with contextlib.suppress(ValueError):  # The library is there, but no TPU.
            jax.distributed.initialize()  # It finds the others through the TPU's metadata server.


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    host, _, port = (coordinator or "").rpartition(":")
    number = -1 if process_id is None else process_id
    if not (host and port.isdecimal() and 0 <= number < (num_processes or 0)):
        raise InputError(
            f"--coordinator={coordinator}, --num_processes={num_processes} and --process_id="
            f"{process_id} must be HOST:PORT of process 0, such as 10.0.0.1:8476, the number of "
            "processes, and the number of this one, from 0. Give all three, or none."
        )


def _has_peers() -> bool:
    """Return whether `jax.distributed.initialize()` finds other processes by the environment."""
    for names, count in ((SLURM, "SLURM_NTASKS"), (OPEN_MPI, "OMPI_COMM_WORLD_SIZE")):
        if all(name in os.environ for name in names) and int(os.environ[count]) > 1:
            return True
    # JAX lists the job's pods with the package of this name.
    has_package = importlib.util.find_spec("kubernetes") is not None
    return has_package and all(name in os.environ for name in KUBERNETES)


class Preemption:
    """While entered, signals do not end the process, but make `reached` True on all processes.

    They are `errors.ending_signals`. A second Ctrl-C has its usual effect; so have all of them
    outside of the main thread, where Python cannot set them.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.signal: signal.Signals | None = None
        self._agreed: Array | None = None  # on the devices
        self._any = jax.jit(jax.numpy.any, out_shardings=replicated(mesh))

    def __enter__(self) -> Preemption:
        is_main = threading.current_thread() is threading.main_thread()
        numbers = errors.ending_signals() if is_main else []
        self._previous = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        errors.discard_lost_output()
        if number == signal.SIGINT:
            print("\nSaving the state; press Ctrl-C again to stop at once.", flush=True)
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def reached(self, after: Array) -> bool:
        """Return whether to stop now; `after` is a result of the latest computation.

        Several processes must call this equally often. It covers the signals before the previous
        call, so that no call waits for the computation in progress, except on CPUs, where XLA runs
        independent operations in any order.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        waits = jax.default_backend() == "cpu"
        if waits:
            jax.block_until_ready(after)
        mine = shard(self._mesh, np.full(len(self._mesh.local_devices), self.signal is not None))
        previous, self._agreed = self._agreed, self._any(mine)
        if waits:
            jax.block_until_ready(self._agreed)
        return previous is not None and bool(previous)


WORKSPACE = 8  # arrays like a batch that algorithms need at least, beside those of a network


def check_memory(entries: int, what: str) -> None:
    """Raise InputError if arrays with so many float32 numbers do not fit the free memory."""
    needed, free = 4 * WORKSPACE * entries, _free_bytes()
    if needed > free:
        raise InputError(
            f"{what} needs {needed / 1e9:.3g} GB of memory or more, but {free / 1e9:.3g} GB are "
            "free. Lower the number or the size of the events, or batch_size."
        )


def _free_bytes() -> float:
    """Return the free memory of the host, or the memory of the device if that is less."""
    limits = [(jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)]
    for path, pattern, unit in (
        ("/proc/meminfo", r"MemAvailable: *(\d+)", 1024),
        ("/sys/fs/cgroup/memory.max", r"(\d+)", 1),
    ):
        with contextlib.suppress(OSError):
            found = re.search(pattern, Path(path).read_text())
            limits += [unit * int(found[1])] if found else []
    return min(limits)
