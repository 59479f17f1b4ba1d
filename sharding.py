"""The device mesh: batches are split along its axis `data` over all devices of all hosts, all else is replicated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from errors import InputError

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices`, by default all there are."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_axis(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Axis number `axis` of an array split over the devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


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
