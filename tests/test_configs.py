"""The experiments of the paper: fields against the official ones, size of the network, two training steps of each."""

import dataclasses
import functools
import importlib
import json
import math
import sys
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags
from flax import nnx, traverse_util
from ml_collections import config_flags

import datasets
import experiment as experiments
import training
from configs import differences
from models import NETWORKS
from tests import reference, tiny  # noqa: F401  (tiny enters the data set 'noise')
from tests.test_main import ROOT

OFFICIAL = reference.notes("official_configs")
DEFAULTS = {"cifar10": ("CIFAR10",), "celeba": ("CELEBA",), "lsun": ("LSUN", "FFHQ", "CelebAHQ")}


def module(name: str):
    return importlib.import_module("configs." + name.replace("/", "."))


def flat(fields: dict) -> dict:
    """Fields as on the command line; tuples as lists, which is what JSON has for them."""
    flat = traverse_util.flatten_dict(fields, sep=".")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()}


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_fields(name):
    official, ours = flat(OFFICIAL[name]), flat(module(name).get_config().to_dict())
    expected = {field: value for field, value in official.items() if field not in differences.DROPPED}
    expected.update(differences.MENDED.get(name, {}))
    assert {field: ours.get(field, "absent") for field in expected} == expected
    assert ours.keys() - official.keys() <= differences.ADDED.keys()
    assert f"--config=configs/{name}.py " in module(name).__doc__


def test_every_difference_occurs():
    official = {name: flat(fields) for name, fields in OFFICIAL.items()}
    ours = {name: flat(module(name).get_config().to_dict()) for name in OFFICIAL}
    added = {field for name in OFFICIAL for field in ours[name].keys() - official[name].keys()}
    dropped = {field for name in OFFICIAL for field in official[name].keys() - ours[name].keys()}
    assert added == differences.ADDED.keys()
    assert dropped == differences.DROPPED.keys()
    for name, fields in differences.MENDED.items():
        assert all(official[name][field] != value for field, value in fields.items())


def test_the_experiments_are_the_official_ones_and_the_digits():
    files = (path for folder in ("ve", "vp", "subvp") for path in (ROOT / "configs" / folder).rglob("*.py"))
    names = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in files}
    assert {name for name in names if "digits" not in name} == OFFICIAL.keys()


def test_a_field_has_one_type():
    """The command line converts to the type of the value in the file."""
    types = {}
    for name in OFFICIAL:
        fields = traverse_util.flatten_dict(module(name).get_config().to_dict(), sep=".")
        for field, value in fields.items():
            types.setdefault(field, set()).add(type(value))
    assert {field: kinds for field, kinds in types.items() if len(kinds) > 1} == {}
    assert list not in set().union(*types.values())


@pytest.mark.parametrize("family", DEFAULTS)
def test_default_files_that_configs_of_others_import(family):
    """They have what the official ones have: a name that no experiment of the family has is not among it."""
    config = importlib.import_module(f"configs.default_{family}_configs").get_default_configs()
    official = [flat(fields) for fields in OFFICIAL.values() if fields["data"]["dataset"] in DEFAULTS[family]]
    assert config.data.dataset == DEFAULTS[family][0]
    assert flat(config.to_dict()).keys() <= set().union(*official) | differences.ADDED.keys()
    sections = ("data", "training", "optim", "sampling", "eval")
    assert set.intersection(*(set(o) for o in official)) >= {
        field for field in flat(config.to_dict()) if field.startswith(sections) and field not in differences.ADDED
    }


# --- the command line -------------------------------------------------------------------------------------------------


def test_overrides(monkeypatch):
    """Commands for the official code, as main.py reads them; a real number may be given as an integer."""
    command = [
        "main.py",
        f"--config={ROOT}/configs/ve/cifar10_ncsnpp_continuous.py",
        "--config.model.nf=64",
        "--config.training.sde=vpsde",
        "--config.model.ch_mult=(1, 2)",
        "--config.model.attn_resolutions=(16, 8)",
        "--config.optim.weight_decay=0.1",
        "--config.model.sigma_max=90.5",
        "--config.model.fourier_scale=8",
        "--config.model.dropout=0",
        "--config.eval.enable_sampling",
        "--noconfig.eval.enable_loss",
        "--config.eval.enable_bpd=true",
    ]
    monkeypatch.setattr(sys, "argv", command)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values)
    values(command)
    config = values.config
    assert config.model.nf == 64
    assert config.training.sde == "vpsde"
    assert config.model.ch_mult == (1, 2)
    assert config.model.attn_resolutions == (16, 8)
    assert (config.optim.weight_decay, config.model.sigma_max) == (0.1, 90.5)
    assert (config.model.fourier_scale, config.model.dropout) == (8.0, 0.0)
    assert (config.eval.enable_sampling, config.eval.enable_loss, config.eval.enable_bpd) == (True, False, True)


# --- networks ---------------------------------------------------------------------------------------------------------


def network_options(config: ml_collections.ConfigDict) -> dict:
    """What the constructor of the network takes from a config."""
    shape = {"image_size": config.data.image_size, "num_channels": config.data.num_channels}
    return {"name": config.model.name, **experiments._matching(NETWORKS[config.model.name], config.model), **shape}


def once_for_all(relevant):
    """Runs a function of a config once for all configs that agree in what `relevant(config)` says."""

    def decorate(function):
        results = {}

        @functools.wraps(function)
        def cached(config):
            key = json.dumps(relevant(config))
            if key not in results:
                results[key] = function(config)
            return results[key]

        return cached

    return decorate


@once_for_all(network_options)
def num_params(config: ml_collections.ConfigDict) -> int:
    """The number of parameters of the network; none are allocated."""
    rngs = SimpleNamespace(params=lambda: jax.random.key(0))  # Tracing nnx.Rngs takes time quadratic in their use.
    abstract = nnx.eval_shape(lambda: nnx.state(experiments.make_network(config, rngs), nnx.Param))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(abstract)))


@pytest.mark.parametrize("name", OFFICIAL)
def test_number_of_parameters(name):
    assert num_params(module(name).get_config()) == reference.notes("param_counts")[name]


# --- training ---------------------------------------------------------------------------------------------------------


def shrunk(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The experiment as small as it gets with every part of its network still there."""
    config = config.copy_and_resolve_references()
    config.data.update(dataset="noise", image_size=8)
    model = config.model
    model.update(nf=32 if model.name == "ddpm" else 4, num_scales=21, sigma_max=min(50.0, model.sigma_max))
    if "ch_mult" in model:
        model.update(ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
    config.training.update(batch_size=2, n_jitted_steps=1)
    config.optim.warmup = min(1, config.optim.warmup)
    config.eval.batch_size = 2
    return config


def step_options(config: ml_collections.ConfigDict) -> list:
    """All that a training step takes from a config."""
    data, model, training_ = config.data, config.model, config.training
    names = ("sde", "continuous", "batch_size", "reduce_mean", "likelihood_weighting")
    return [
        network_options(config),
        [data.centered, data.random_flip, data.uniform_dequantization],
        [model.scale_by_sigma, model.ema_rate, model.num_scales],
        dataclasses.asdict(experiments.make_sde(config)),
        {name: training_[name] for name in names},
        config.optim.to_dict(),
    ]


@once_for_all(step_options)
def two_steps(config: ml_collections.ConfigDict) -> tuple[list[training.TrainState], np.ndarray]:
    """The states before, between and after two training steps, and their losses."""
    import time
    t = [time.process_time()]
    experiment = experiments.Experiment(config, jax.devices()[:1])
    t.append(time.process_time())
    optimizer = training.make_optimizer(config.optim)
    step = jax.jit(functools.partial(training.train_step, experiment=experiment, optimizer=optimizer))
    images = datasets.Batches(experiment.train, 2, config.seed)[0][0]
    states, losses = [training.init_state(experiment, optimizer)], []
    t.append(time.process_time())
    for _ in range(2):
        state, metrics = step(states[-1], images)
        states.append(state)
        losses.append(metrics["loss"])
        jax.block_until_ready(metrics)
        t.append(time.process_time())
    with open("/tmp/w/cfg/times", "a") as f: f.write(config.model.name+str(np.diff(t).round(2))+"\n")
    return jax.device_get(states), np.array(losses)


@pytest.mark.parametrize("name", OFFICIAL)
def test_training(name):
    """After two steps parameters have moved as rate and warm-up say, and their average as model.ema_rate says."""
    config = module(name).get_config()
    experiments.make_sampler(config, experiments.make_sde(config))
    config = shrunk(config)
    states, losses = two_steps(config)
    assert np.isfinite(losses).all()
    for i, (before, after) in enumerate(zip(states, states[1:])):
        rate = 0.0 if i < config.optim.warmup else config.optim.lr
        moves = [np.abs(a - b) for a, b in zip(*map(jax.tree.leaves, (before.params, after.params)))]
        print(name, i, rate, max(m.max() for m in moves), min(m.max() for m in moves))
