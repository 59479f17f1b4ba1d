"""The device mesh: batches are split along its axis `data` over all devices of all hosts.

All else is replicated but, if training.shard_params asks for it, the state of training, which is split along it, too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import TypeVar

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import InputError

Tree = TypeVar("Tree")

SMALL = 2**12  # Arrays of fewer entries are not worth a message each.


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all there are."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices, which may be such as are only compiled for, are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_axis(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def shard_largest_axis(mesh: Mesh, tree: Tree) -> Tree:
    """Shardings of arrays that need not be on every device: each is split along its largest axis that can be.

    Small arrays and those that have no such axis are replicated.
    """

    def of_leaf(leaf: jax.Array) -> NamedSharding:
        fitting = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        return (
            along_axis(mesh, -max(fitting)[1])
            if math.prod(leaf.shape) >= SMALL and fitting
            else replicated(mesh)
        )

    return jax.tree.map(of_leaf, tree)


def gather(mesh: Mesh, tree: Tree) -> Tree:
    """The arrays whole on every device, to compute with; their gradients are split as by `shard_largest_axis`.

    Without it the compiler would split the computation as the parameters are, which takes more messages.
    """

    @jax.custom_vjp
    def whole(tree: Tree) -> Tree:
        return lax.with_sharding_constraint(tree, replicated(mesh))

    def backward(_: None, grads: Tree) -> tuple[Tree]:
        return (lax.with_sharding_constraint(grads, shard_largest_axis(mesh, grads)),)

    whole.defvjp(lambda tree: (whole(tree), None), backward)
    return whole(tree)


def shard(mesh: Mesh, local: Tree, axis: int = 0) -> Tree:
    """The global arrays of which this process holds the rows `local` along `axis`, in the order of `local_rows`."""
    sharding = along_axis(mesh, axis)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), local)


def local_rows(batch_size: int) -> range:
    """The rows of a global batch that this process loads."""
    size = batch_size // jax.process_count()
    return range(jax.process_index() * size, (jax.process_index() + 1) * size)


def fetch(tree: object) -> object:
    """Global arrays as numpy arrays, whole on every process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    return jax.device_get(tree)


def wait(name: str) -> None:
    """Returns when all processes are here; process 0 has then written what it was to write."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def check_batch_size(mesh: Mesh, batch_size: int, field: str) -> None:
    """Raises InputError if the devices cannot share a batch evenly."""
    if batch_size < 1 or batch_size % mesh.size:
        raise InputError(
            f"{field} = {batch_size} does not divide among {mesh.size} devices; use a positive multiple of {mesh.size}."
        )


# --- several processes ---

FLAGS = ("--coordinator", "--num_processes", "--process_id")
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
    """Makes this process number `process_id` of `num_processes`, which meet at `coordinator`, HOST:PORT of number 0.

    Without arguments, what a TPU pod, SLURM, Open MPI or Kubernetes says of them counts; elsewhere nothing happens.
    To be called before the first use of devices. Raises InputError for arguments that do not fit together.
    """
    jax.config.update(
        "jax_enable_preemption_service", False
    )  # It would catch SIGTERM, which `Preemption` is to do.
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given):
        _check(given, coordinator, num_processes, process_id)
        jax.distributed.initialize(
            coordinator, num_processes, process_id, cluster_detection_method="deactivate"
        )
    elif _has_peers():
        jax.distributed.initialize()
    elif importlib.util.find_spec("libtpu"):
        with contextlib.suppress(ValueError):  # There is no TPU in spite of its library.
            jax.distributed.initialize()  # It asks the TPU's metadata server who the others are.


def _check(
    given: list[bool], coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    if not all(given):
        missing = " and ".join(flag for flag, there in zip(FLAGS, given) if not there)
        raise InputError(
            f"{', '.join(FLAGS)} go together; {missing} is missing. Give all three, or none."
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            f"--coordinator={coordinator} must be HOST:PORT of process 0, as in 10.0.0.1:8476."
        )
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
    return (
        indexed and importlib.util.find_spec("kubernetes") is not None
    )  # With it, JAX asks for the job's pods.


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
