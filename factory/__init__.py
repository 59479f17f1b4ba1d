"""From a config to the objects that it describes: SDE, network, score model and sampler.

`validated` completes and checks a config against the registries of names; every other function
of this package takes a config that it returned.
"""

from __future__ import annotations

import datasets
import likelihood
import sampling
import solvers
import train_state
from configs import validation
from configs.default import Config, complete
from controllable.methods import METHODS
from factory.flow import make_flow
from factory.objects import (
    attention_note,
    make_abstract_network,
    make_classifier,
    make_network,
    make_score_model,
    make_sde,
)
from factory.sampler import Sampler, Samples
from factory.samplers import ADAPTIVE, FRAMES, SAMPLERS, fields_read, make_sampler
from models import NETWORKS, networks_supporting
from models.layers import ACTIVATIONS
from models.score import PARAMETERIZATIONS
from sde_lib import SDES

__all__ = [
    "ADAPTIVE",
    "FRAMES",
    "SAMPLERS",
    "Sampler",
    "Samples",
    "attention_note",
    "make_abstract_network",
    "choices",
    "make_classifier",
    "fields_read",
    "make_flow",
    "make_network",
    "make_sampler",
    "make_score_model",
    "make_sde",
    "validated",
]


def validated(config: Config, num_devices: int, mode: str = "") -> Config:
    """Return the complete config, locked. Raise InputError, with all problems, if it is invalid.

    Args:
      config: any config; missing fields get their defaults.
      num_devices: devices that share each batch.
      mode: the mode whose own rules apply as well, such as "restore".
    """
    config = complete(config)
    validation.check(config, choices(), num_devices, mode)
    return config


def choices() -> validation.Choices:
    """Return the names that a config may use, from the registries."""
    return validation.Choices(
        names={
            "data.dataset": datasets.DATASETS,
            "model.name": NETWORKS,
            "model.nonlinearity": ACTIVATIONS,
            "model.parameterization": ("default", *PARAMETERIZATIONS),
            "training.sde": SDES,
            "optim.optimizer": train_state.OPTIMIZERS,
            "sampling.method": SAMPLERS,
            "sampling.predictor": sampling.PREDICTORS,
            "sampling.corrector": sampling.CORRECTORS,
            "sampling.solver": (*solvers.SOLVERS, ADAPTIVE),
            "sampling.schedule": solvers.SCHEDULES,
            "eval.bpd_trace": likelihood.PROBES,
            "restore.method": METHODS,
        },
        class_conditional=networks_supporting("class_conditional"),
        remat=networks_supporting("remat"),
        bfloat16=networks_supporting("bfloat16"),
        fourier=[name for name, each in NETWORKS.items() if "embedding_type" in each.fields],
        probability_flow=sampling.FLOW_PREDICTORS,
        stepwise=[name for name, each in METHODS.items() if each.requires_pc],
    )
