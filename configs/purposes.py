"""What random numbers are for: each purpose has its own root, a function of config.seed."""

import jax
from jax import Array

PURPOSES = (
    "init",
    "train",
    "loss",
    "bpd",
    "sample",
    "dequantize",  # no longer used
    "classify",
    "restore",
    "measure",
    "encode",
    "init_dequantizer",  # no longer used
    "init_classifier",
    "rollback",
    "calibrate",
)
"""What random numbers are for. Add new purposes at the end: the key depends on the position."""


def root(seed: int, purpose: str) -> Array:
    """Return the root of all random numbers for one purpose."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))
