"""The objects that a config describes: devices, data, SDE, network, score and sampler.

Training, evaluation and all other modes build one `Experiment`. Its construction validates the
config, so that every problem is reported before anything is compiled or written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import datasets
import losses
import sampling
import sharding
import train_state
from checkpoints import Checkpoints, Found
from configs import remedies
from configs.default import Config
from controllable import guidance
from datasets import Batch
from errors import InputError, advice
from factory import (
    Samples,
    make_classifier,
    make_network,
    make_sampler,
    make_score_model,
    make_sde,
    validated,
)
from models.building import Params, abstract_network
from models.layers import Rngs
from sde_lib import Score
from sharding import Tree
from workdir import check_workdir

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
)
"""What random numbers are for. Add new purposes at the end: the key depends on the position."""


class Experiment:
    """An experiment, as its config describes it.

    Attributes:
      config: the complete config, locked.
      mesh: the devices.
      sde, model, sampler, scaler: see `sde_lib.SDE`, `models.score.ScoreModel`, `factory.Sampler`
        and `datasets.Scaler`.
      network, graph, abstract_params: the network without values, its structure without
        parameters, and the shapes of its parameters as nested dictionaries, replicated.
      image_shape: (H, W, C).
      num_scales: noise levels of discrete-time training, or None.
      labelled: whether the network is conditioned on the class of an image.
      sharded: whether the state of training is split over the devices.
      classifier: the parameters of the classifier that guides samples, or None;
        `auxiliary.classification.provide` sets it.
      train, test: the images, loaded on first use; not needed for sampling.

    Raises:
      InputError: on construction for an invalid config; from `train` and `test` for the images.
    """

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
        size = config.data.image_size
        self.image_shape = (size, size, config.data.num_channels)
        self.classifier: Params | None = None
        self.network = abstract_network(lambda: make_network(config, Rngs(self.key("init"))))
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
        return datasets.load(self.config.data, "train")

    @functools.cached_property
    def test(self) -> datasets.Images:
        """The held-out images."""
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
        with advice("Choose another one with --checkpoint."):
            return found, train_state.restore_ema(checkpoints, found, self.abstract_params)

    def identity(self, workdir: str, found: Found) -> dict[str, int]:
        """Return what identifies the parameters of a checkpoint: its step and their checksum."""
        checksum = train_state.ema_checksum(Checkpoints(workdir), found)
        return {"step": found.step, "ema": checksum}

    # --- scores -----------------------------------------------------------------------------------

    def score(
        self, params: Params, rngs: Rngs | None = None, classes: Array | None = None
    ) -> Score:
        """Return the score function of the network with these parameters.

        Args:
          params: sharded as in training, or replicated.
          rngs: keys for dropout; None turns dropout off.
          classes: the class of each image (B,), for a conditional network; None for p_t(x).
        """
        params = sharding.gather(self.mesh, params) if self.sharded else params
        network = nnx.merge(self.graph, params)
        return functools.partial(self.model.score, network, rngs=rngs, classes=classes)

    def guided_score(
        self, params: Params, classes: Array | None, classifier: Params | None = None
    ) -> Score:
        """Return the score of images of the classes (B,), guided as config.guidance states.

        Without classes it is the unconditional score. A network that was trained with classes is
        guided without a classifier. Raises InputError if a classifier is needed and missing.
        """
        if classes is None:
            return self.score(params)
        scale = self.config.guidance.scale
        interval = tuple(self.config.guidance.interval)
        if self.labelled:

            def class_score(x: Array, t: Array, classes: Array | None) -> Array:
                return self.score(params, classes=classes)(x, t)

            return guidance.classifier_free(
                class_score, classes, self.sde, scale=scale, interval=interval
            )
        if classifier is None:
            raise InputError(
                "guidance.classes needs a classifier; train one with --mode=train_classifier."
            )
        log_probs = self.class_log_probs(classifier)
        return guidance.classifier(
            self.score(params), log_probs, classes, self.sde, scale=scale, interval=interval
        )

    @functools.cached_property
    def classifier_network(self) -> nnx.Module:
        """The noise-conditional classifier, without values."""
        return abstract_network(
            lambda: make_classifier(self.config, Rngs(self.key("init_classifier")))
        )

    def class_log_probs(self, classifier: Params) -> guidance.LogProbs:
        """Return log p_t(class | x) by the classifier with these parameters."""
        graph = nnx.split(self.classifier_network, nnx.Param)[0]
        return guidance.class_log_probs(nnx.merge(graph, classifier), self.sde)

    def classes(self, indices: Array | np.ndarray) -> Array | None:
        """Return the classes (B,) that config.guidance requests for images number `indices` (B,).

        None if it requests none.
        """
        requested = self.config.guidance.classes
        if not requested:
            return None
        return jnp.asarray(requested, jnp.int32)[indices % len(requested)]

    def hide_classes(self, key: Array, labels: np.ndarray | Array | None) -> Array | None:
        """Replace a share model.class_dropout of the labels (B,) by "no class", for training."""
        if labels is None:
            return None
        hidden = jax.random.bernoulli(key, self.config.model.class_dropout, labels.shape)
        return jnp.where(hidden, self.config.data.num_classes, labels)

    # --- loss and samples -------------------------------------------------------------------------

    def draw(self, key: Array, x: Array) -> tuple[Array, Array]:
        """Return times t (B,) and noise z (B, ...) of the training objective for a batch x."""
        importance_weighting = self.config.training.importance_weighting
        return losses.draw(
            key, self.sde, x, self.num_scales, importance_weighting=importance_weighting
        )

    def loss(self, score: Score, x: Array, t: Array, z: Array) -> Array:
        """Return the training objective of each image (B,)."""
        settings = self.config.training
        return losses.denoising_score_matching(
            score,
            self.sde,
            x,
            t,
            z,
            marginal=self.model.marginal,
            likelihood_weighting=settings.likelihood_weighting,
            importance_weighting=settings.importance_weighting,
            reduce_mean=settings.reduce_mean,
        )

    @functools.cached_property
    def held_out_loss(self) -> Callable[[Params, Batch, Array], tuple[Array, Array]]:
        """(params, batch, key) -> the images' losses and times t (B,); compiled.

        There is no dropout, and a conditional network gets the true classes. The parameters may be
        sharded as in training, or replicated.
        """
        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)

        @functools.partial(jax.jit, in_shardings=(None, split, whole), out_shardings=(split, split))
        def compute(params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
            data_key, noise_key = jax.random.split(key)
            x = self.prepare(data_key, batch.pixels, flip=False)
            t, z = self.draw(noise_key, x)
            classes = None if batch.labels is None else jnp.asarray(batch.labels)
            score = self.score(params, classes=classes)
            return self.loss(score, x, t, z), t

        return compute

    @functools.cached_property
    def sample(self) -> Callable[[Params, np.ndarray | Array], Samples]:
        """(params, image numbers (B,)) -> samples, with x and frames as uint8 images; compiled.

        Image i depends on (config.seed, i) alone, up to rounding, unless the corrector couples the
        images of a batch (`sampling.langevin`). The parameters may be sharded as in training, or
        replicated.
        """

        def compute(params: Params, indices: Array, classifier: Params | None) -> Samples:
            keys = sampling.image_keys(self.key("sample"), indices)
            prior = sampling.prior_sample(keys, self.sde, (indices.shape[0], *self.image_shape))
            score = self.guided_score(params, self.classes(indices), classifier)
            samples = self.sampler(keys, score, self.config.sampling.temperature * prior)
            return samples._replace(x=self.pixels(samples.x), frames=self.pixels(samples.frames))

        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)
        outputs = Samples._make((split, split, sharding.along_axis(self.mesh, 1), split))
        compiled = jax.jit(compute, in_shardings=(None, split, whole), out_shardings=outputs)

        def sample(params: Params, indices: np.ndarray | Array) -> Samples:
            return compiled(params, indices, self.classifier)

        return sample

    def sample_images(self, params: Params, first: int, count: int) -> Samples:
        """Return images first .. first + count - 1 on the host: uint8 (count, H, W, C).

        Raises NotFiniteError if a sample is not finite.
        """
        padded = -(-count // self.mesh.size) * self.mesh.size
        indices = self.rows(np.arange(first, first + padded))
        x, nfe, frames, bad_step = sharding.fetch(self.sample(params, indices))
        remedies.check_samples(self.config, bad_step[:count], self.sampler.steps)
        return Samples(x[:count], nfe[:count], frames[:, :count], bad_step[:count])
