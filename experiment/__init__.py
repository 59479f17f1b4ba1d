"""The objects that a config describes: devices, data, SDE, network, score and sampler.

Training, evaluation and all other modes build one `Experiment`. Its construction validates the
config, so that every problem is reported before anything is compiled or written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import losses
import sampling
import sharding
from configs import remedies, rules
from controllable import guidance
from datasets import Batch
from errors import InputError
from experiment.parts import InParts
from experiment.setup import PURPOSES, Setup
from factory import Samples, make_classifier
from models.building import Params, abstract_network
from models.layers import Rngs
from sde_lib import Score

__all__ = ["PURPOSES", "Experiment", "InParts"]


class Experiment(Setup):
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

    def draw(self, key: Array, x: Array, *, even: bool = False) -> tuple[Array, Array]:
        """Return times t (B,) and noise z (B, ...) of the training objective for a batch x.

        `even` spreads the times evenly; see `losses.draw`.
        """
        return losses.draw(key, self.sde, x, self._objective.times, even=even)

    def loss(self, score: Score, x: Array, t: Array, z: Array) -> Array:
        """Return the training objective of each image (B,)."""
        return losses.denoising_score_matching(
            score,
            self.sde,
            x,
            t,
            z,
            marginal=self.model.marginal,
            weight=self._objective.weight(self.sde, t),
            reduce_mean=self.config.training.reduce_mean,
        )

    @functools.cached_property
    def _objective(self) -> losses.Objective:
        """The distribution of times and the weights that config.training describes."""
        training = self.config.training
        if rules.importance_sampling(training):
            return losses.Objective(losses.importance_times, losses.importance_weight)
        if training.time_distribution.lower() == "log_normal":
            times = functools.partial(
                losses.log_normal_times, mean=training.p_mean, std=training.p_std
            )
            weight = functools.partial(losses.edm_weight, data_std=self.model.data_std)
            return losses.Objective(times, weight)
        times = losses.uniform_times
        if self.num_scales is not None:
            times = functools.partial(losses.level_times, num_scales=self.num_scales)
        if training.likelihood_weighting:
            return losses.Objective(times, losses.likelihood_weight)
        return losses.Objective(times, lambda _, t: self.model.loss_weight(t))

    @functools.cached_property
    def held_out_loss(self) -> Callable[[Params, Batch, Array], tuple[Array, Array]]:
        """(params, batch, key) -> the images' losses and times t (B,), which are even; compiled.

        There is no dropout, and a conditional network gets the true classes. The parameters may be
        sharded as in training, or replicated.
        """
        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)

        @functools.partial(jax.jit, in_shardings=(None, split, whole), out_shardings=(split, split))
        def compute(params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
            data_key, noise_key = jax.random.split(key)
            x = self.prepare(data_key, batch.pixels, flip=False)
            t, z = self.draw(noise_key, x, even=True)
            classes = None if batch.labels is None else jnp.asarray(batch.labels)
            score = self.score(params, classes=classes)
            return self.loss(score, x, t, z), t

        return compute

    @functools.cached_property
    def _in_parts(self) -> InParts:
        """(params, image numbers (B,), classifier) -> samples, with pixels; see `sample`."""

        def prepare(params: Params, indices: Array, classifier: Params | None) -> tuple:
            keys = sampling.image_keys(self.key("sample"), indices)
            prior = sampling.prior_sample(keys, self.sde, (indices.shape[0], *self.image_shape))
            score = self.guided_score(params, self.classes(indices), classifier)
            loop = self.sampler.loop(keys, score).then(self._with_pixels)
            return loop, self.config.sampling.temperature * prior

        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)
        outputs = Samples._make((split, split, sharding.along_axis(self.mesh, 1), split))
        inputs = (None, split, whole)
        return InParts(prepare, self.sampler, self.mesh, inputs, outputs)

    def _with_pixels(self, samples: Samples) -> Samples:
        return samples._replace(x=self.pixels(samples.x), frames=self.pixels(samples.frames))

    def sample(self, params: Params, indices: np.ndarray | Array) -> Samples:
        """Return samples number `indices` (B,), with x and frames as uint8 images; one program.

        Image i depends on (config.seed, i) alone, up to rounding, unless the corrector couples the
        images of a batch (`sampling.langevin`). The parameters may be sharded as in training, or
        replicated.
        """
        return self._in_parts.whole(params, indices, self.classifier)

    def sample_images(self, params: Params, first: int, count: int) -> Samples:
        """Return images first .. first + count - 1 on the host: uint8 (count, H, W, C).

        Says how far it has come. Raises InputError if the sampler is unstable, and NotFiniteError
        if a sample is not finite.
        """
        self.sampler.check_stable()
        padded = -(-count // self.mesh.size) * self.mesh.size
        indices = self.rows(np.arange(first, first + padded))
        samples = self._in_parts(f"drawing {count} samples", params, indices, self.classifier)
        x, nfe, frames, bad_step = sharding.fetch(samples)
        steps, unit = self.sampler.steps, self.sampler.unit
        remedies.check_samples(self.config, bad_step[:count], steps, unit)
        return Samples(x[:count], nfe[:count], frames[:, :count], bad_step[:count])
