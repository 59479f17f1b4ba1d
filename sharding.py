"""The device mesh: batches are split along its axis `data` over all devices of all hosts.

All else is replicated but, if training.shard_params asks for it, the state of training, which is split along it, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax import lax
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


def spread(mesh: Mesh, tree: Tree) -> Tree:
    """Shardings of arrays that need not be on every device: each is split along its largest axis that can be.

    Small arrays and those that have no such axis are replicated.
    """

    def of_leaf(leaf: jax.Array) -> NamedSharding:
        fitting = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
        return along_axis(mesh, -max(fitting)[1]) if math.prod(leaf.shape) >= SMALL and fitting else replicated(mesh)

    return jax.tree.map(of_leaf, tree)


def gather(mesh: Mesh, tree: Tree) -> Tree:
    """The arrays whole on every device, to compute with; their gradients are split as by `spread`.

    Without it the compiler would split the computation as the parameters are, which takes more messages.
    """

    @jax.custom_vjp
    def whole(tree: Tree) -> Tree:
        return lax.with_sharding_constraint(tree, replicated(mesh))

    def backward(_: None, grads: Tree) -> tuple[Tree]:
        return (lax.with_sharding_constraint(grads, spread(mesh, grads)),)

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
