"""What a config describes without any computation: devices, data, SDE, network and parameters."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import datasets
import progress
import sharding
import train_state
from checkpoints import Checkpoints, Found
from configs.default import Config
from errors import advice
from factory import (
    make_abstract_network,
    make_network,
    make_sampler,
    make_score_model,
    make_sde,
    validated,
)
from models.building import Params
from models.layers import Rngs
from runs import check_workdir
from sharding import Tree

PURPOSES = (
    "init",
    "train",
    "loss",
    "bpd",
    "sample",
    "dequantize",
    "classify",
    "restore",
    "measure",
    "encode",
    "init_dequantizer",
    "init_classifier",
    "rollback",
    "calibrate",
)
"""What random numbers are for. Add new purposes at the end: the key depends on the position."""


class Setup:
    """The part of an `Experiment` that its config describes; see there."""

    def __init__(
        self,
        config: Config,
        # jaxlib has no stubs, so pyright takes jax.Device for a variable.
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        *,
        mode: str = "",
    ) -> None:
        """Build the experiment of `config` on `devices`; `mode` adds that mode's own checks."""
        self.mesh = sharding.make_mesh(devices)
        self.config = config = validated(config, self.mesh.size, mode)
        self.sde = make_sde(config)
        self.num_scales = None if config.training.continuous else config.model.num_scales
        self.labelled = config.data.num_classes > 0
        self.sharded = config.training.shard_params
        self.model = make_score_model(config, self.sde, self.num_scales)
        self.sampler = make_sampler(config, self.sde)
        self.scaler = datasets.make_scaler(config.data)
        self.image_shape = datasets.image_shape(config.data)
        self.image_range = datasets.model_range(config.data)
        self.classifier: Params | None = None
        self.network = make_abstract_network(config)
        self.graph, shapes = nnx.split(self.network, nnx.Param)
        self.abstract_params = jax.tree.map(self._replicated, nnx.to_pure_dict(shapes))

    def _replicated(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        whole = sharding.replicated(self.mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    def key(self, purpose: str) -> Array:
        """Return the root of all random numbers for one purpose; a function of config.seed."""
        return jax.random.fold_in(jax.random.key(self.config.seed), PURPOSES.index(purpose))

    # --- data -------------------------------------------------------------------------------------

    @functools.cached_property
    def train(self) -> datasets.Images:
        """The training images."""
        with progress.waiting("reading the training images"):
            return datasets.load(self.config.data, "train")

    @functools.cached_property
    def test(self) -> datasets.Images:
        """The held-out images."""
        with progress.waiting("reading the held-out images"):
            return datasets.load(self.config.data, "test")

    def prepare(self, key: Array, images: np.ndarray | Array, *, flip: bool) -> Array:
        """Return a batch of uint8 images (B, H, W, C) in the range of the model, float32.

        With `flip`, as in training, images are flipped at random.
        """
        dequantize = self.config.data.uniform_dequantization
        u = jnp.asarray(images)
        return datasets.augment(
            key, u, self.scaler, random_flip=flip, uniform_dequantization=dequantize
        )

    def pixels(self, x: Array) -> Array:
        """Return samples of the model as uint8 images, 0 .. 255."""
        return self.scaler.pixels(
            x,
            dequantized=self.config.data.uniform_dequantization,
            truncate=self.config.eval.legacy_rounding,
        )

    def rows(self, batch: Tree) -> Tree:
        """Return global arrays, split along their rows; every process passes all rows."""
        return sharding.shard_complete(self.mesh, batch)

    def batches(
        self, images: datasets.Images, batch_size: int, *, steps: int = 1, labelled: bool = False
    ) -> datasets.Batches:
        """Return the shuffled training batches, of which this process loads its own rows."""
        rows = sharding.local_rows(self.mesh, batch_size)
        return datasets.Batches(images, batch_size, self.config.seed, steps, labelled, rows)

    # --- parameters -------------------------------------------------------------------------------

    def state_shardings(self, tree: Tree) -> Tree:
        """Return the shardings of a part of the training state; see training.shard_params."""
        if self.sharded:
            return sharding.shard_largest_axis(self.mesh, tree)
        return jax.tree.map(lambda leaf: sharding.replicated(self.mesh), tree)

    def init_params(self) -> Params:
        """Return initial parameters, sharded as `state_shardings` states.

        They are computed one by one: parameters of the same shape share one compiled program.
        """
        network = make_network(self.config, Rngs(self.key("init")))
        params = nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])
        return jax.device_put(params, self.state_shardings(self.abstract_params))

    def trained(self, workdir: str, number: int | None = None) -> tuple[Found, Params]:
        """Return a snapshot of `workdir`, by default the newest, and its EMA parameters.

        Raises InputError if the workdir holds another network, or the checkpoint does not exist or
        is damaged.
        """
        check_workdir(workdir, self.config)
        checkpoints = Checkpoints(workdir)
        found = checkpoints.pick(number)
        with advice("Choose another one with --checkpoint."), progress.waiting(f"reading {found}"):
            return found, train_state.restore_ema(checkpoints, found, self.abstract_params)

    def identity(self, workdir: str, found: Found) -> dict[str, int]:
        """Return what identifies the parameters of a checkpoint: its step and their checksum."""
        checksum = train_state.ema_checksum(Checkpoints(workdir), found)
        return {"step": found.step, "ema": checksum}
