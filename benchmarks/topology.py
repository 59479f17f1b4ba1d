"""Compilation for TPUs that are not present, with libtpu."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

import jax

from errors import InputError, brief

HELP = (
    "Compile for these TPUs, which need not be present (pip install libtpu): v5e:2x4, v5p:2x2x1, "
    "v6e:1x1, ..."
)
# Without these, libtpu queries the network for minutes for the local TPU's type, and only one
# process at a time can load it.
LIBTPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


def devices(name: str) -> list[Any]:
    """Return the devices of a topology such as "v5e:2x4", as targets of compilation.

    Raises InputError if libtpu is not installed or does not support the topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology={name} needs TPU's compiler: pip install libtpu.")
    for variable, value in LIBTPU_VARIABLES.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"--topology={name} is unknown to libtpu; a valid one is v5e:2x4: {brief(error)}"
        ) from error


def describe(name: str) -> str:
    """Return how results for a topology were obtained, for tables."""
    kind = devices(name)[0].device_kind
    version = importlib.metadata.version("libtpu")
    return f"compiled ahead of time for {kind} ({name}) by libtpu {version}, not run"
