"""TPUs that are not there: libtpu compiles for them on any machine, which says what the chips' compiler would make."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

import jax

from errors import InputError, brief

HELP = "Compile for these TPUs, which need not be there (pip install libtpu): v5e:2x4, v5p:2x2x1, v6e:1x1, ..."
ALONE = {  # Else libtpu asks the network, minutes long, which TPU this is, and one process at a time can load it.
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
}


def devices(name: str) -> list[Any]:
    """The devices of a topology such as "v5e:2x4", to compile for.

    Raises InputError where libtpu is missing or does not know the topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology={name} needs TPU's compiler: pip install libtpu.")
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"--topology={name} is unknown to libtpu; v5e:2x4 is one it knows: {brief(error)}"
        ) from error


def described(name: str) -> str:
    """What a page says of numbers that come from such a compilation."""
    kind = devices(name)[0].device_kind
    return f"compiled ahead of time for {kind} ({name}) by libtpu {importlib.metadata.version('libtpu')}, not run"
