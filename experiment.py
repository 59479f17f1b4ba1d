"""What a config describes, built once for training and evaluation: mesh, data, SDE, network, score and sampler.

Construction checks the whole config, so that what is wrong in it is said before anything is compiled or written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import datasets
import losses
import sampling
import sharding
from checkpoints import Checkpoints, Found
from configs.default import Config, complete
from controllable import guidance
from datasets import Batch
from errors import InputError
from factory import (
    Samples,
    check_guidance,
    make_classifier,
    make_network,
    make_sampler,
    make_score_model,
    make_sde,
)
from models.building import Params, abstract_network
from models.layers import Rngs
from sde_lib import Score
from sharding import Tree
from workdir import check_workdir

POSITIVE = (
    "training.n_iters",
    "training.n_jitted_steps",
    "training.accumulate",
    "training.log_freq",
    "training.eval_freq",
    "training.snapshot_freq",
    "training.snapshot_freq_for_preemption",
    "sampling.n_steps_each",
    "sampling.num_steps",
    "training.dequantizer_iters",
    "eval.num_samples",
    "eval.bpd_num_repeats",
    "eval.bpd_probes",
)
PURPOSES = ("init", "train", "loss", "bpd", "sample", "dequantize", "classify", "restore")


class Experiment:
    """An experiment as its config describes it.

    Attributes:
      mesh: the devices. sde, scaler, model: see their classes. network: without values, see `models.building.abstract_network`; graph:
        the same without its parameters, which are nested dictionaries like abstract_params, replicated.
      sharded: whether the state of training is split over the devices.
      num_scales: noise levels of discrete-time training, or None.
      labelled: whether the network is told the class of an image.
      classifier: the parameters of the classifier that guides, or None; `classification.provide` sets it.
      train, test: the images, read when first asked for: whoever only samples need not have them.

    Raises InputError, on construction, for whatever is wrong in the config, and from `train` and `test` for the images.
    """

    def __init__(self, config: Config, devices: Sequence[jax.Device] | None = None) -> None:
        self.config = config = complete(config)
        self.mesh = sharding.make_mesh(devices)
        for field in POSITIVE:
            if _get(config, field) < 1:
                raise InputError(f"{field} = {_get(config, field)} must be at least 1.")
        if config.training.n_iters < config.training.n_jitted_steps:
            raise InputError(
                f"training.n_iters = {config.training.n_iters} must be at least training.n_jitted_steps = "
                f"{config.training.n_jitted_steps}; raise the one or lower the other."
            )
        for field in ("training.batch_size", "eval.batch_size"):
            sharding.check_batch_size(self.mesh, _get(config, field), field)
        if config.training.batch_size % (config.training.accumulate * self.mesh.size):
            raise InputError(
                f"training.batch_size = {config.training.batch_size} does not divide into training.accumulate = "
                f"{config.training.accumulate} parts for {self.mesh.size} devices."
            )
        self.sde = make_sde(config)
        self.num_scales = None if config.training.continuous else config.model.num_scales
        self.labelled = config.data.num_classes > 0
        if config.training.importance_weighting and not (
            config.training.likelihood_weighting and config.training.continuous
        ):
            raise InputError(
                "training.importance_weighting = True needs training.likelihood_weighting = True and "
                "training.continuous = True."
            )
        self.draw_options = {"importance_weighting": config.training.importance_weighting}
        self.loss_options = {
            **self.draw_options,
            "num_scales": self.num_scales,
            "likelihood_weighting": config.training.likelihood_weighting,
            "reduce_mean": config.training.reduce_mean,
        }
        self.model = make_score_model(config, self.sde, self.num_scales)
        self.sampler = make_sampler(config, self.sde)
        check_guidance(config)
        self.classifier: Params | None = None
        self.network = abstract_network(lambda: make_network(config, Rngs(self.key("init"))))
        self.graph, shapes = nnx.split(self.network, nnx.Param)
        whole = sharding.replicated(self.mesh)
        abstract = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)
        self.abstract_params = jax.tree.map(abstract, nnx.to_pure_dict(shapes))
        self.sharded = config.training.shard_params
        self.scaler = datasets.make_scaler(config.data)
        self.image_shape = (
            config.data.image_size,
            config.data.image_size,
            config.data.num_channels,
        )

    @functools.cached_property
    def train(self) -> datasets.Images:
        """The training images."""
        return datasets.load(self.config.data, "train")

    @functools.cached_property
    def test(self) -> datasets.Images:
        """The held-out images."""
        return datasets.load(self.config.data, "test")

    def key(self, purpose: str) -> Array:
        """The root of all random numbers that serve one purpose; a function of config.seed."""
        return jax.random.fold_in(jax.random.key(self.config.seed), PURPOSES.index(purpose))

    def state_shardings(self, tree: Tree) -> Tree:
        """The shardings of what training changes, as config.training.shard_params says."""
        whole = lambda leaf: sharding.replicated(self.mesh)
        return (
            sharding.shard_largest_axis(self.mesh, tree)
            if self.sharded
            else jax.tree.map(whole, tree)
        )

    def init_params(self) -> Params:
        """Fresh parameters, placed as `state_shardings` says.

        They are computed one by one, not in one program: those of a shape share what is compiled for them.
        """
        params = nnx.to_pure_dict(
            nnx.split(make_network(self.config, Rngs(self.key("init"))), nnx.Param)[1]
        )
        return jax.device_put(params, self.state_shardings(self.abstract_params))

    def trained(self, workdir: str, number: int | None = None) -> tuple[Found, Params]:
        """A kept checkpoint of `workdir`, by default the newest, and its EMA parameters.

        Raises InputError if the workdir holds another network, no such checkpoint, or a damaged one.
        """
        check_workdir(workdir, self.config)
        checkpoints = Checkpoints(workdir)
        found = checkpoints.pick(number)
        return found, checkpoints.restore(found, {"ema": self.abstract_params})["ema"]

    def score(
        self, params: Params, rngs: Rngs | None = None, classes: Array | None = None
    ) -> Score:
        """The score function of the network with these parameters; with `rngs` dropout is on.

        With `classes` (B,) that of images of these classes, else of any, p_t(x); not for networks that are told none.
        """
        params = sharding.gather(self.mesh, params) if self.sharded else params
        return functools.partial(
            self.model.score, nnx.merge(self.graph, params), rngs=rngs, classes=classes
        )

    def guided_score(
        self, params: Params, classes: Array | None, classifier: Params | None = None
    ) -> Score:
        """The score of images of these classes (B,), as config.guidance says; with None, of any images.

        A network that was trained with classes guides itself, another one is guided by the classifier. Raises
        InputError if that is missing.
        """
        strength = {
            "scale": self.config.guidance.scale,
            "interval": tuple(self.config.guidance.interval),
        }
        if classes is None:
            return self.score(params)
        if self.labelled:
            score = lambda x, t, classes: self.score(params, classes=classes)(x, t)
            return guidance.classifier_free(score, classes, self.sde, **strength)
        if classifier is None:
            raise InputError(
                "guidance.classes needs a classifier; train one with --mode=train_classifier."
            )
        log_probs = self.class_log_probs(classifier)
        return guidance.classifier(self.score(params), log_probs, classes, self.sde, **strength)

    def class_log_probs(self, classifier: Params) -> guidance.LogProbs:
        """What the classifier with these parameters says of noised images."""
        graph = nnx.split(self.classifier_network, nnx.Param)[0]
        return guidance.class_log_probs(nnx.merge(graph, classifier), self.sde)

    @functools.cached_property
    def classifier_network(self) -> nnx.Module:
        """The noise-conditional classifier, without values as `network` is."""
        return abstract_network(lambda: make_classifier(self.config, Rngs(self.key("classify"))))

    def classes(self, indices: Array | np.ndarray) -> Array | None:
        """The classes (B,) asked of images number `indices` (B,) by config.guidance; None if any will do."""
        asked = self.config.guidance.classes
        return jnp.asarray(asked, jnp.int32)[indices % len(asked)] if asked else None

    def hide_classes(self, key: Array, labels: Array | None) -> Array | None:
        """Labels (B,) as training tells them: a share model.class_dropout of them becomes "no class"."""
        if labels is None:
            return None
        hidden = jax.random.bernoulli(key, self.config.model.class_dropout, labels.shape)
        return jnp.where(hidden, self.config.data.num_classes, labels)

    def prepare(self, key: Array, images: Array, *, flip: bool) -> Array:
        """A batch of uint8 images (B, H, W, C) as the model is to see it in training or, without `flip`, held out."""
        dequantize = self.config.data.uniform_dequantization
        return datasets.augment(
            key, images, self.scaler, random_flip=flip, uniform_dequantization=dequantize
        )

    @functools.cached_property
    def held_out_loss(self) -> Callable[[Params, Batch, Array], tuple[Array, Array]]:
        """(params, B images, key) -> their losses and times t (B,); compiled, without dropout, true labels told.

        The parameters may be placed as in training or replicated.
        """
        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)

        @functools.partial(jax.jit, in_shardings=(None, split, whole), out_shardings=(split, split))
        def loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
            data_key, noise_key = jax.random.split(key)
            x, score = (
                self.prepare(data_key, batch.pixels, flip=False),
                self.score(params, classes=batch.labels),
            )
            t, z = losses.draw(noise_key, self.sde, x, self.num_scales, **self.draw_options)
            return losses.denoising_score_matching(score, self.sde, x, t, z, **self.loss_options), t

        return loss

    @functools.cached_property
    def sample(self) -> Callable[[Params, Array], Samples]:
        """(params, image numbers (B,)) -> samples x and frames as uint8 images; compiled, sharded.

        Image number i depends on (config.seed, i) alone, unless the corrector couples a batch (`sampling.langevin`).
        Classes are those of config.guidance. The parameters may be placed as in training or replicated.
        """

        def sample(params: Params, indices: Array, classifier: Params | None) -> Samples:
            keys = sampling.image_keys(self.key("sample"), indices)
            prior = sampling.prior_sample(keys, self.sde, (indices.shape[0], *self.image_shape))
            score = self.guided_score(params, self.classes(indices), classifier)
            x, nfe, frames = self.sampler(keys, score, self.config.sampling.temperature * prior)
            return Samples(self.pixels(x), nfe, self.pixels(frames))

        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)
        outputs = Samples(split, split, sharding.along_axis(self.mesh, 1))
        compiled = jax.jit(sample, in_shardings=(None, split, whole), out_shardings=outputs)
        return lambda params, indices: compiled(params, indices, self.classifier)

    def pixels(self, x: Array) -> Array:
        """Samples of the model as uint8 images, 0 .. 255."""
        options = {
            "dequantized": self.config.data.uniform_dequantization,
            "truncate": self.config.eval.legacy_rounding,
        }
        return self.scaler.pixels(x, **options)

    def rows(self, batch: Tree) -> Tree:
        """Arrays of rows that every process has whole, as global arrays split over the devices."""
        rows = sharding.local_rows(len(jax.tree.leaves(batch)[0]))
        return sharding.shard(
            self.mesh, jax.tree.map(lambda leaf: leaf[rows.start : rows.stop], batch)
        )

    def sample_images(self, params: Params, first: int, count: int) -> Samples:
        """Images number first .. first + count - 1 of this experiment, on the host: uint8 (count, H, W, C)."""
        padded = -(-count // self.mesh.size) * self.mesh.size
        images, nfe, frames = sharding.fetch(
            self.sample(params, self.rows(np.arange(first, first + padded)))
        )
        return Samples(images[:count], nfe[:count], frames[:, :count])


# --- workdirs ---------------------------------------------------------------------------------------------------------


def _get(config: Config, field: str) -> Any:
    return functools.reduce(getattr, field.split("."), config)
