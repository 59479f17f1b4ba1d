"""The objects that a config describes: devices, data, SDE, network, loss and sampler.

Its construction validates the config, so that every problem is reported before anything
is compiled or written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from PIL import Image

import datasets
import losses
import sampling
import sharding
from api.conditional import NetworkScore
from api.trained import TrainedModel
from configs import folders, parts
from configs.default import Config
from configs.validation import validated
from controllable.guidance import LogProbs, class_log_probs
from datasets import Batch
from errors import InputError, advice, naming
from models.building import Params, abstract_network, network_score
from models.conditions import Condition, Kinds
from models.layers import Rngs
from readers.arrays import read_condition
from runs import progress
from runs.checkpoints import EMA, PARAMS, Checkpoints, Found, tree_checksum
from sampling import Samples
from sharding import Tree

CLASSIFIER = "classifier"  # the folder of a workdir with the classifier that guides samples
GRID = 64  # images in the sample grid of a snapshot


class Experiment:
    """An experiment, as its config describes it.

    Attributes:
      config: the complete config, locked.
      sde, score_model, scaler: see `sde_lib.SDE`, `models.score.ScoreModel` and `datasets.Scaler`.
      network, graph, abstract_params: the network without values, its structure without
        parameters, and the shapes of its parameters as nested dictionaries, replicated.
      image_shape, image_range: (H, W, C), and the smallest and the largest value of an entry.
      objective: the distribution of times, and the weights of the loss.
      num_scales: noise levels of discrete-time training, or None.
      labelled: whether the network is conditioned on something: `score_model.kinds`.
      sharded: whether the state of training is split over the devices.
      classifier, guide: the parameters of what guides samples, see `load_guidance`, or None.
      fitted: noise levels that were fitted to the network of samples (`loading.read_schedules`).
      train, test: the images, loaded on first use; not needed for sampling.

    Raises InputError for an invalid config, and from `train` and `test` for the images.
    """

    def __init__(
        self,
        config: Config,
        # jaxlib has no stubs, so pyright takes jax.Device for a variable.
        devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
        *,
        mode: str = "",
        network: Callable[[Rngs], nnx.Module] | None = None,
    ) -> None:
        """Validate the config, with the checks of a mode; `network` replaces that of the config."""
        self.mesh = sharding.make_mesh(devices)
        self.config = config = validated(config, self.mesh.size, mode)
        self.sde = parts.make_sde(config)
        self.num_scales = None if config.training.continuous else config.model.num_scales
        self.sharded = config.training.shard_params
        self.score_model = parts.make_score_model(config, self.sde, self.num_scales)
        self.labelled = bool(self.score_model.kinds)
        self.scaler = datasets.make_scaler(config.data)
        self.image_shape = datasets.image_shape(config.data)
        self.image_range = datasets.model_range(config.data)
        self.objective = parts.make_objective(config, self.score_model)
        self.classifier: Params | None = None
        self.guide: Params | None = None
        self.fitted: tuple[sampling.Fitted, ...] = ()
        self._build = network or functools.partial(parts.make_network, config)
        self.network = abstract_network(lambda: self._build(Rngs(jax.random.key(0))))
        self.graph, shapes = nnx.split(self.network, nnx.Param)
        self.abstract_params = jax.tree.map(self._replicated, nnx.to_pure_dict(shapes))
        self._apply = functools.partial(network_score, self.score_model, self.graph)
        _ = self.sampler  # Its options are checked now, before anything is compiled.

    def _replicated(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        whole = sharding.replicated(self.mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole)

    def key(self, purpose: str) -> Array:
        """Return the root of all random numbers for one purpose; a function of config.seed."""
        return parts.root_key(self.config.seed, purpose)

    @functools.cached_property
    def train(self) -> datasets.Images:
        with progress.waiting("reading the training images"):
            return datasets.load(self.config.data, "train")

    @functools.cached_property
    def test(self) -> datasets.Images:
        with progress.waiting("reading the held-out images"):
            return datasets.load(self.config.data, "test")

    def prepare(self, key: Array, images: np.ndarray | Array, *, flip: bool) -> Array:
        """Return a batch of uint8 images (B, H, W, C) in the range of the model, float32.

        With `flip`, as in training, images are flipped at random.
        """
        options = {"uniform_dequantization": self.config.data.uniform_dequantization}
        return datasets.augment(key, jnp.asarray(images), self.scaler, random_flip=flip, **options)

    def pixels(self, x: Array) -> Array:
        """Return samples of the model as uint8 images, 0 .. 255."""
        return self.scaler.pixels(
            x,
            dequantized=self.config.data.uniform_dequantization,
            truncate=self.config.eval.legacy_rounding,
        )

    def rows(self, batch: Tree) -> Tree:
        """Return global arrays, split along their rows; each process passes all rows."""
        return sharding.shard_complete(self.mesh, batch)

    def batches(
        self, images: datasets.Images, batch_size: int, *, steps: int = 1, labelled: bool = False
    ) -> datasets.Batches:
        """Return shuffled batches, of which this process loads its own rows."""
        rows = sharding.local_rows(self.mesh, batch_size)
        return images.batches(batch_size, self.config.seed, steps, labelled, rows)

    def state_shardings(self, tree: Tree) -> Tree:
        """Return the shardings of a part of the training state; see training.shard_params."""
        if self.sharded:
            return sharding.shard_largest_axis(self.mesh, tree)
        whole = sharding.replicated(self.mesh)
        return jax.tree.map(lambda leaf: whole, tree)

    def init_params(self) -> Params:
        """Return initial parameters, sharded as `state_shardings` states."""
        # Computed one by one: parameters of the same shape share one compiled program.
        network = self._build(Rngs(self.key("init")))
        params = nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])
        return jax.device_put(params, self.state_shardings(self.abstract_params))

    def trained(self, workdir: str | Path, number: int | None = None) -> tuple[Found, Params]:
        """Return a snapshot of `workdir`, by default the newest, and its EMA parameters.

        Raises InputError if the workdir holds another network, or the checkpoint does not exist or
        is damaged.
        """
        folders.check_workdir(workdir, self.config)
        checkpoints = Checkpoints(workdir)
        found = checkpoints.pick(number)
        with advice("Choose another one with --checkpoint."), progress.waiting(f"reading {found}"):
            return found, checkpoints.restore(found, {EMA: self.abstract_params})[EMA]

    def identity(self, workdir: str | Path, found: Found) -> dict[str, int]:
        """Return what identifies the parameters of a checkpoint: its step and their checksum."""
        return {"step": found.step, "ema": Checkpoints(workdir).checksum(found, EMA)}

    def trained_model(self, params: Params, step: int = 0) -> TrainedModel:
        """Return the prior of the network with these parameters, sharded as in training or not."""
        data, options = self.config.data, {}
        if data.std:
            options = {"loc": data.mean, "scale": data.std}
        if self.sharded:
            params = jax.jit(functools.partial(sharding.gather, self.mesh))(params)
        guided = {"classifier": self.classifier, "log_probs": self.class_log_probs}
        found = TrainedModel(
            NetworkScore(params, self._apply, self.sde, **guided),
            self.image_shape,
            support=self.image_range,
            scaler=self.scaler,
            to_pixels=self.pixels,
            config=self.config,
            step=step,
            mesh=self.mesh,
            **options,
        )
        found.kinds = self.score_model.kinds
        found.defaults = parts.sampler_defaults(self.config, self.fitted)
        if self.classifier is not None:
            found.kinds = Kinds(self.config.classifier.num_classes)
        return found

    @property
    def sampler(self) -> sampling.Sampler:
        """The sampler that config.sampling describes, with the levels that are `fitted`."""
        return parts.make_sampler(self.config, self.sde, self.fitted)

    @property
    def guidance(self) -> dict[str, Any]:
        """The arguments of `TrainedModel.given` that config.guidance states."""
        options, guide = self.config.guidance, self.guide
        return {
            "classes": tuple(options.classes) or None,
            "guidance_scale": options.scale,
            "guidance_interval": tuple(options.interval),
            "guide": None if guide is None else self.trained_model(guide),
        }

    def sample_condition(self, first: int, count: int) -> Any:
        """Return the conditions of images first .. first + count - 1, for `TrainedModel.given`.

        They are those of config.guidance.condition or of held-out images, or None for a network
        that takes neither vectors nor images.
        """
        options, kinds = self.config.guidance, self.score_model.kinds
        if not kinds.paired:
            return None
        if options.condition:
            return read_condition(options.condition)
        batch = datasets.in_turn(self.test, first, count)
        return kinds.select(batch._replace(labels=None) if options.classes else batch)

    def sample_inputs(self) -> dict[str, Any]:
        """Return checksums of what samples depend on besides the network and the config."""
        trees: dict[str, Any] = {"classifier": self.classifier, "guide": self.guide}
        if self.score_model.kinds.paired:
            from_file = self.config.guidance.condition
            trees["condition"] = self.sample_condition(0, 1 if from_file else len(self.test))
        if self.sampler is not parts.make_sampler(self.config, self.sde):
            trees["fitted"] = [np.array(each.levels) for each in self.fitted]
        return {name: tree_checksum(tree) for name, tree in trees.items() if tree is not None}

    def draw_images(self, model: TrainedModel, first: int, count: int) -> Samples:
        """Return images first .. first + count - 1 by `sampler`, on the host: x and frames uint8.

        Image i depends on (config.seed, i) alone, up to rounding, unless the corrector couples the
        images of a batch (`sampling.langevin`). Raises InputError if the sampler is unstable, and
        NotFiniteError if a sample is not finite.
        """
        model = model.given(self.sample_condition(first, count), **self.guidance)
        temperature = self.config.sampling.temperature
        settings = {"first": first, "batch_size": count, "temperature": temperature}
        samples = model.draw(self.sampler, count, self.key("sample"), **settings)
        x, frames = (model.to_images(each) for each in (samples.x, samples.frames))
        return samples._replace(x=x, frames=frames, nfe=np.asarray(samples.nfe))

    def sample_grid(self, params: Params) -> Image.Image:
        drawn = self.draw_images(self.trained_model(params), 0, GRID)
        return datasets.image_grid(np.asarray(drawn.x))

    def score(
        self, params: Params, rngs: Rngs | None = None, condition: Condition | None = None
    ) -> functools.partial[Array]:
        """Return the score of the network with these parameters, sharded as in training or not.

        Args:
          rngs: keys for dropout; None turns dropout off.
          condition: what images are conditioned on, for a conditional network; None for p_t(x).
        """
        params = sharding.gather(self.mesh, params) if self.sharded else params
        network = nnx.merge(self.graph, params)
        return functools.partial(self.score_model.score, network, rngs=rngs, condition=condition)

    def load_classifier(self, workdir: str | Path, *, optional: bool = False) -> None:
        """Set `classifier` to that of a workdir, if config.guidance needs one.

        If it is `optional`, it is loaded where there is one, and config.guidance has no effect.

        Raises InputError if it was not trained, or for other images, another scale of them, another
        SDE or another network.
        """
        folder = Path(workdir, CLASSIFIER)
        trained = optional and folder.is_dir() and bool(Checkpoints(folder).snapshots())
        if self.labelled or not (trained if optional else self.config.guidance.classes):
            return
        if not folder.is_dir():
            needed = "guidance.classes needs a network with classes, or a classifier"
            train = "train it with --mode=train_classifier"
            raise InputError(f"{needed}: {folder} does not exist; {train}.")
        folders.check_config(folder, self.config, "noised classes")
        shapes = nnx.to_pure_dict(nnx.split(self.classifier_network, nnx.Param)[1])
        like = jax.tree.map(self._replicated, shapes)
        checkpoints = Checkpoints(folder)
        self.classifier = checkpoints.restore(checkpoints.pick(None), {PARAMS: like})[PARAMS]

    def load_guidance(self, workdir: str | Path) -> None:
        """Load what guides samples, `classifier` and `guide`, and check their conditions.

        Raises InputError if something does not exist, is damaged or does not fit the network.
        """
        self.load_classifier(workdir)
        if self.config.guidance.checkpoint:
            with naming("guidance.checkpoint"):
                self.guide = self.trained(workdir, self.config.guidance.checkpoint)[1]
        self.trained_model({}).given(self.sample_condition(0, 1), **self.guidance)

    @functools.cached_property
    def classifier_network(self) -> nnx.Module:
        return abstract_network(lambda: parts.make_classifier(self.config, Rngs(jax.random.key(0))))

    def class_log_probs(self, classifier: Params) -> LogProbs:
        """Return log p_t(class | x) by the classifier with these parameters."""
        graph = nnx.split(self.classifier_network, nnx.Param)[0]
        return class_log_probs(nnx.merge(graph, classifier), self.sde)

    def draw(self, key: Array, x: Array, *, even: bool = False) -> tuple[Array, Array]:
        """Return times t (B,) and noise z (B, ...) of the objective for x; see `losses.draw`."""
        return losses.draw(key, self.sde, x, self.objective.times, even=even)

    def loss(
        self,
        params: Params,
        x: Array,
        t: Array,
        z: Array,
        rngs: Rngs | None = None,
        condition: Condition | None = None,
    ) -> Array:
        """Return the training objective of each image (B,); see `score` for the arguments."""
        marginal = self.score_model.marginal(t)
        return losses.denoising_score_matching(
            functools.partial(self.score(params, rngs, condition), marginal=marginal),
            *(self.sde, x, t, z),
            marginal=marginal,
            weight=self.objective.weight(t),
            reduce_mean=self.config.training.reduce_mean,
        )

    @functools.cached_property
    def held_out_loss(self) -> Callable[[Params, Batch, Array], tuple[Array, Array]]:
        """(params, batch, key) -> the images' losses and times t (B,), which are even; compiled.

        There is no dropout, and a conditional network gets the true condition.
        """
        split, whole = sharding.along_axis(self.mesh), sharding.replicated(self.mesh)

        @functools.partial(jax.jit, in_shardings=(None, split, whole), out_shardings=(split, split))
        def compute(params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
            data_key, noise_key = jax.random.split(key)
            x = self.prepare(data_key, batch.pixels, flip=False)
            t, z = self.draw(noise_key, x, even=True)
            return self.loss(params, x, t, z, condition=self.score_model.kinds.select(batch)), t

        return compute
