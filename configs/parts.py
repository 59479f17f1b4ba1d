"""The objects that parts of a config describe: SDE, networks, score model, objective and sampler.

The constructors take plain arguments; only these functions and `experiment.Experiment` read them
from a config.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

import datasets
import losses
import sampling
from configs.default import Config, complete
from configs.validation import time_distribution
from models import NETWORKS
from models.classifier import WideResnet
from models.conditions import Kinds
from models.layers import Rngs
from models.score import ScoreModel, conventions
from options import plain
from sde_lib import SDE, SDES, VESDE

PURPOSES = (
    *("init", "train", "loss", "bpd", "sample", "dequantize", "classify", "restore", "measure"),
    *("encode", "init_dequantizer", "init_classifier", "rollback", "calibrate"),
)
"""What random numbers are for. Add new ones at the end: the key depends on the position."""


def root_key(seed: int, purpose: str) -> Array:
    """Return the root of all random numbers for one purpose."""
    return jax.random.fold_in(jax.random.key(seed), PURPOSES.index(purpose))


def make_sde(config: Config) -> SDE:
    """Return the SDE that config.training.sde names, with its fields from config.model."""
    sde = SDES[config.training.sde.lower()]
    names = [field.name for field in dataclasses.fields(sde)]
    return sde(**{name: config.model[name] for name in names if name in config.model})


def make_kinds(config: Config) -> Kinds:
    """Return what the network of a config is conditioned on."""
    data, dropped = config.data, config.model.class_dropout > 0
    units = tuple(data.vector_mean), tuple(data.vector_std)
    return Kinds(data.num_classes, data.vector_size, data.image_channels, dropped, *units)


def make_network(config: Config, rngs: Rngs) -> nnx.Module:
    """Return the network that config.model names, with random initial parameters."""
    network = NETWORKS[config.model.name]
    options = network.arguments(config.model)
    options["image_size"] = config.data.image_size
    options["num_channels"] = config.data.num_channels
    sizes = make_kinds(config).sizes.values()
    named = zip(("classes", "vector_size", "image_channels"), sizes)
    options |= {name: size for name, size in named if size}
    if config.training.remat:
        options["remat"] = True
    return network.build(**options, rngs=rngs)


def make_classifier(config: Config, rngs: Rngs) -> nnx.Module:
    """Return the noise-conditional classifier of config.classifier, with initial parameters."""
    options = config.classifier
    return WideResnet(
        num_channels=config.data.num_channels,
        num_outputs=options.num_classes,
        blocks_per_group=options.blocks_per_group,
        channel_multiplier=options.channel_multiplier,
        rngs=rngs,
    )


def make_score_model(config: Config, sde: SDE, num_scales: int | None) -> ScoreModel:
    """Return the conventions between the network and the SDE of a config.

    `num_scales` is the number of noise levels of discrete-time training, or None.
    """
    model, sigmas = config.model, None
    # In continuous time, the label of other embeddings is the noise scale itself, not an index.
    options = NETWORKS[model.name].arguments(model)
    has_index = options.get("embedding_type", "positional").lower() == "positional" or num_scales
    if model.get("scale_by_sigma", False):
        ladder = VESDE(sigma_min=model.sigma_min, sigma_max=model.sigma_max)
        sigmas = tuple(ladder.sigmas(model.num_scales).tolist()) if has_index else ()
    fields = conventions(config.training.sde.lower())._asdict()
    if model.parameterization.lower() != "default":
        fields["parameterization"] = model.parameterization.lower()
    score_model = ScoreModel(
        sde,
        num_scales,
        **fields,
        centered=config.data.centered,
        sigmas=sigmas,
        data_std=model.sigma_data,
        kinds=make_kinds(config),
        dtype=jnp.dtype(model.dtype),
    )
    score_model.check_training(config.training.sde)
    return score_model


def make_sampler(
    config: Config, sde: SDE, fitted: tuple[sampling.Fitted, ...] = ()
) -> sampling.Sampler:
    """Return the sampler that config.sampling describes, for images."""
    std, defaults = datasets.model_std(config.data), sampler_defaults(config, fitted)
    return sampling.make(sampler_name(config), sde, data_std=std, defaults=defaults)


def make_objective(config: Config, score_model: ScoreModel) -> losses.Objective:
    """Return the distribution of times and the weights that config.training describes."""
    training, sde = config.training, score_model.sde
    name = time_distribution(training)
    if name == "importance":
        weight = functools.partial(losses.importance_weight, sde)
        return losses.Objective(losses.importance_times, weight)
    if name == "log_normal":
        times = functools.partial(losses.log_normal_times, mean=training.p_mean, std=training.p_std)
        weight = functools.partial(losses.edm_weight, sde, data_std=score_model.data_std)
        return losses.Objective(times, weight)
    times = losses.uniform_times
    if score_model.num_scales is not None:
        times = functools.partial(losses.level_times, num_scales=score_model.num_scales)
    weight = score_model.loss_weight
    if training.likelihood_weighting:
        weight = functools.partial(losses.likelihood_weight, sde)
    return losses.Objective(times, weight)


def sampler_name(config: Config) -> str:
    """Return the name of the sampler of config.sampling, as in `sampling.kinds`."""
    method = config.sampling.method.lower()
    return config.sampling.solver.lower() if method == "solver" else method


def sampler_defaults(config: Config, fitted: tuple[sampling.Fitted, ...] = ()) -> sampling.Defaults:
    """Return the defaults of samplers that config.sampling states."""
    options = {name: plain(value) for name, value in config.sampling.items()}
    return sampling.Defaults(
        config.sampling.solver.lower(),
        config.sampling.num_steps or None,
        config.model.num_scales,
        options,
        fitted,
    )


def warn_unused(config: Config, given: Collection[str]) -> None:
    """Print the fields of config.sampling that are `given` and that its sampler does not read."""
    config = complete(config)
    name = sampler_name(config)
    read = {"method", "temperature", *sampling.kinds()[name].options}
    if not sampling.kinds()[name].adaptive:
        read.add("num_steps")
    if config.sampling.method.lower() == "solver":
        read.add("solver")
    unused = sorted(
        field for field in given if field.startswith("sampling.") and field[9:] not in read
    )
    if not unused or jax.process_index():
        return
    hint = " For a few-step solver add --config.sampling.method=solver."
    print(
        f"{', '.join(unused)}: no effect on the sampler {name!r}."
        f"{hint if config.sampling.method.lower() != 'solver' else ''}"
    )
