"""The SDE, the networks and the score model of a config."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from configs.default import Config
from errors import InputError
from models import NETWORKS
from models.building import abstract_network
from models.classifier import WideResnet
from models.layers import Rngs, attending_levels, larger_sides
from models.score import ScoreModel, conventions, one
from sde_lib import SDE, SDES, VESDE


def make_sde(config: Config) -> SDE:
    """Return the SDE that config.training.sde names, with its fields from config.model."""
    sde = SDES[config.training.sde.lower()]
    names = [field.name for field in dataclasses.fields(sde)]
    return sde(**{name: config.model[name] for name in names if name in config.model})


def make_network(config: Config, rngs: Rngs) -> nnx.Module:
    """Return the network that config.model names, with random initial parameters."""
    network = NETWORKS[config.model.name]
    options = network.arguments(config.model)
    options["image_size"] = config.data.image_size
    options["num_channels"] = config.data.num_channels
    if config.data.num_classes:
        options["classes"] = config.data.num_classes
    if config.training.remat:
        options["remat"] = True
    return network.build(**options, rngs=rngs)


def make_abstract_network(config: Config) -> nnx.Module:
    """Return the network of a config, with shapes in place of arrays.

    Raises InputError if it cannot have images of data.image_size.
    """
    return abstract_network(lambda: make_network(config, Rngs(jax.random.key(0))))


def attention_note(config: Config) -> str:
    """Return a line if no level has a side that model.attn_resolutions names, else ''."""
    model = config.model
    reads = "attn_resolutions" in NETWORKS[model.name].arguments(model)
    if not reads or not model.attn_resolutions:
        return ""
    levels = len(model.ch_mult)
    if any(attending_levels(config.data.image_size, model.attn_resolutions, levels)):
        return ""
    found = ", ".join(map(str, larger_sides(config.data.image_size, levels)))
    return (
        f"model.attn_resolutions = {tuple(model.attn_resolutions)}: the levels of the network have "
        f"the sides {found}, so that none has self-attention"
    )


def make_classifier(config: Config, rngs: Rngs) -> WideResnet:
    """Return the noise-conditional classifier of config.classifier, with initial parameters."""
    return WideResnet(
        num_channels=config.data.num_channels,
        num_outputs=config.classifier.num_classes,
        blocks_per_group=config.classifier.blocks_per_group,
        channel_multiplier=config.classifier.channel_multiplier,
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
        num_classes=config.data.num_classes,
        dtype=jnp.dtype(model.dtype),
    )
    _check(score_model, config.training.sde)
    return score_model


def _check(model: ScoreModel, sde_name: str) -> None:
    """Raise InputError if the parameterization does not fit the data or discrete time."""
    which = f"model.parameterization = {model.parameterization!r}"
    if model.table.c_in is not one and not model.centered:
        raise InputError(
            f"{which} needs data.centered = True, since its coefficients are those of data with "
            "mean 0."
        )
    if model.table.score is None and model.sigmas is not None:
        raise InputError(f"{which} needs model.scale_by_sigma = False.")
    if model.num_scales is None:
        return
    if model.table.c_noise_of_level is None:
        raise InputError(f"{which} needs training.continuous = True.")
    with jax.ensure_compile_time_eval():
        _, smallest_std = model.marginal(jnp.zeros(1))
        has_noise = bool(smallest_std[0] > 0)
    if not has_noise:
        raise InputError(
            f"training.sde = {sde_name!r} cannot be trained in discrete time: its first level has "
            "no noise. Set training.continuous = True."
        )
