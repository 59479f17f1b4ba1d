"""The paper's experiments: fields against the official ones, network sizes, two training steps."""

import dataclasses
import functools
import importlib
import json
import math
import re
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx, traverse_util

import datasets
import training
from configs import default, parts
from configs.fields import INERT
from experiment import Experiment
from models import NETWORKS
from models.layers import Rngs
from tests import reference, tiny  # noqa: F401  (tiny registers the data set 'noise')
from training.state import TrainState

ROOT = Path(__file__).parents[1]
OFFICIAL = reference.notes("official_configs")
# Where our fields differ from the official ones, and why; other differences are not allowed.
# Sections are whole. A real number is a float here, so that flags accept any real number.
REASONS = {
    "data.path": "Officially, TFDS finds the images, or data.tfrecords_path names them.",
    "data.held_out data.value_range data.mean data.std data.vector_mean "
    "data.vector_std": "The official code reads published sets of bytes only.",
    "data.num_classes data.condition data.vector_size data.image_channels model.class_dropout": (
        "The official networks are unconditional."
    ),
    "model.ema_ramp": "Officially, in the PyTorch release only; its effect is gone at the end.",
    "model.ema_stds ema": "Officially, there is one moving average.",
    "model.parameterization": "The official networks estimate the noise, or for VE the score.",
    "model.sigma_data training.p_mean training.p_std": "From EDM, which came later.",
    "model.dtype": "The official code computes in float32.",
    "model.attend_after_each_up_block": "True for the U-Net of Ho et al. (2020).",
    "model.num_classes": "The official NCSN reads model.num_scales by this name.",
    "model.fourier_scale": "Missing in three NCSN++ with a positional embedding; no effect there.",
    "training.sde": "Missing in ve/ncsn/celeba, which has the value as training.loss.",
    "training.importance_weighting": "From Song et al. (2021b), which came later.",
    "training.time_distribution": "Officially, times are uniform.",
    "training.patience": "Officially, training does not depend on held-out losses.",
    "training.on_nonfinite": "Officially, training continues with NaN and saves it.",
    "training.shard_params training.remat training.accumulate": "Officially, memory is not saved.",
    "sampling.solver sampling.schedule sampling.churn sampling.churn_interval sampling.churn_noise "
    "sampling.curve sampling.second_point sampling.restart": "Officially, no few-step solvers.",
    "sampling.tolerance": "The official code has no adaptive SDE solver.",
    "sampling.trajectory": "Officially, intermediate states are not drawn.",
    "sampling.num_steps": "The official samplers take model.num_scales steps.",
    "sampling.temperature": "Officially, the temperature is 1.",
    "guidance": "Officially, classes are arguments of functions.",
    "classifier": "The official code does not train a classifier.",
    "restore calibrate": "Officially, inverse problems are notebooks, and nothing is calibrated.",
    "model.beta_min model.beta_max training.n_jitted_steps eval.enable_sampling eval.enable_loss "
    "eval.enable_bpd eval.bpd_dataset": "Missing in the two experiments of 1024 pixels.",
    "eval.bpd_num_repeats eval.bpd_probes": "Officially, constants.",
    "eval.bpd_trace eval.bpd_tolerance eval.bpd_t_min": "Officially, arguments of a function.",
    "eval.bpd_steps": "Officially, steps are adaptive.",
    "eval.enable_metrics": "Officially, sampling always computes metrics.",
    "eval.features": "Officially, TF-GAN's Inception, or another one from 256 pixels on.",
    "eval.inception_path eval.stats_path eval.stats_split": "Officially, files are downloaded.",
    "eval.legacy_rounding": "Officially, samples are truncated to bytes; here, rounded.",
}
ADDED = set(" ".join(REASONS).split())
DROPPED = {"device", "training.loss", "training.continuouse"}
MENDED = {"ve/ncsnv2/bedroom": {"training.continuous": False}}  # What training.continuouse means.
DEFAULTS = {"cifar10": ("CIFAR10",), "celeba": ("CELEBA",), "lsun": ("LSUN", "FFHQ", "CelebAHQ")}


def module(name: str):
    return importlib.import_module("configs." + name.replace("/", "."))


def flat(fields: dict) -> dict:
    """Return the fields by their command-line names, with tuples as lists, as in JSON."""
    flat = traverse_util.flatten_dict(fields, sep=".")
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()
    }


def listed(fields):
    """Return the names under which ADDED lists these fields: the field or its section."""
    sections = {field: field.partition(".")[0] for field in fields}
    return {section if section in ADDED else field for field, section in sections.items()}


# --- fields ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_fields(name):
    official, ours = flat(OFFICIAL[name]), flat(module(name).get_config().to_dict())
    expected = {field: value for field, value in official.items() if field not in DROPPED}
    expected.update(MENDED.get(name, {}))
    assert {field: ours.get(field, "absent") for field in expected} == expected
    assert listed(ours.keys() - official.keys()) <= ADDED
    assert f"--config=configs/{name}.py " in module(name).__doc__


def test_every_difference_occurs():
    official = {name: flat(fields) for name, fields in OFFICIAL.items()}
    ours = {name: flat(module(name).get_config().to_dict()) for name in OFFICIAL}
    added = {field for name in OFFICIAL for field in ours[name].keys() - official[name].keys()}
    dropped = {field for name in OFFICIAL for field in official[name].keys() - ours[name].keys()}
    assert listed(added) == ADDED
    assert dropped == DROPPED <= INERT.keys()
    for name, fields in MENDED.items():
        assert all(official[name][field] != value for field, value in fields.items())


def test_the_experiments_are_the_official_ones_and_some_small_ones():
    files = (
        path
        for folder in ("ve", "vp", "subvp")
        for path in (ROOT / "configs" / folder).rglob("*.py")
    )
    names = {path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in files}
    small = {name for name in names if re.search("digits|photos|fashion|emoji|vectors", name)}
    assert names - small == OFFICIAL.keys()


def test_a_field_has_one_type():
    """The command line converts to the type of the value in the file."""
    types = {}
    for name in OFFICIAL:
        fields = traverse_util.flatten_dict(module(name).get_config().to_dict(), sep=".")
        for field, value in fields.items():
            types.setdefault(field, set()).add(type(value))
    assert {field: kinds for field, kinds in types.items() if len(kinds) > 1} == {}
    assert list not in set().union(*types.values())


@pytest.mark.parametrize(("family", "names"), DEFAULTS.items())
def test_default_files_that_configs_of_others_import(family, names):
    """They have no field that an experiment of the family lacks; files of users set the others."""
    defaults = module(f"default_{family}_configs").get_default_configs()
    official = [
        set(flat(fields)) for fields in OFFICIAL.values() if fields["data"]["dataset"] in names
    ]
    assert defaults.data.dataset == names[0]
    common = set.intersection(*official)
    assert listed(flat(defaults.to_dict())) - ADDED <= common


# --- networks -------------------------------------------------------------------------------------


def network_options(config: ml_collections.ConfigDict) -> dict:
    """Return the constructor arguments of the network of a config."""
    shape = {"image_size": config.data.image_size, "num_channels": config.data.num_channels}
    return {
        "name": config.model.name,
        **NETWORKS[config.model.name].arguments(config.model),
        **shape,
    }


COUNTS: dict[str, int] = {}  # By `network_options`: many experiments have the same network.


def num_params(config: ml_collections.ConfigDict) -> int:
    """Return the number of parameters of the network, without allocating them."""

    def params() -> nnx.State:
        return nnx.state(parts.make_network(config, Rngs(jax.random.key(0))), nnx.Param)

    key = json.dumps(network_options(config))
    if key not in COUNTS:
        leaves = jax.tree.leaves(jax.eval_shape(params))
        COUNTS[key] = sum(math.prod(leaf.shape) for leaf in leaves)
    return COUNTS[key]


@pytest.mark.slow
def test_numbers_of_parameters():
    found = {name: num_params(module(name).get_config()) for name in OFFICIAL}
    assert found == {name: reference.notes("param_counts")[name] for name in OFFICIAL}


# --- training -------------------------------------------------------------------------------------


def shrunk(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return the experiment with the smallest network that uses every option, for 8x8 pixels."""
    config = config.copy_and_resolve_references()
    config.data.update(dataset="noise", image_size=8)
    model = config.model
    model.update(nf=32 if model.name == "ddpm" else 4, num_scales=21, sigma_max=5.0)
    if "ch_mult" in model:
        # One block for each level, in the second half of the network.
        model.update(ch_mult=(1, 2), num_res_blocks=0, attn_resolutions=(4,))
    config.training.update(batch_size=2, n_jitted_steps=1)
    config.optim.warmup = min(1, config.optim.warmup)
    config.eval.batch_size = 2
    return config


def step_options(config: ml_collections.ConfigDict) -> list:
    """Return everything in a config that a training step depends on."""
    names = {
        "data": ("centered", "random_flip", "uniform_dequantization"),
        "model": ("scale_by_sigma", "ema_rate", "ema_ramp", "num_scales"),
        "training": ("sde", "continuous", "batch_size", "reduce_mean", "likelihood_weighting"),
        "optim": tuple(config.optim),
    }
    fields = [config[section][field] for section in names for field in names[section]]
    return [network_options(config), dataclasses.asdict(parts.make_sde(config)), fields]


STEPS: dict[str, tuple[list[TrainState], np.ndarray]] = {}  # By `step_options`.


def two_steps(config: ml_collections.ConfigDict) -> tuple[list[TrainState], np.ndarray]:
    """Return the states before, between and after two steps from random parameters, and losses."""
    key = json.dumps(step_options(config))
    if key in STEPS:
        return STEPS[key]
    job = training.score_job(Experiment(config, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype), job.abstract_params
    )
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(job.optimizer.init, params)
    )
    states, losses = [TrainState(np.int32(0), params, params, zeros)], []
    batches = datasets.Batches(job.experiment.train, config.training.batch_size, config.seed)
    step = jax.jit(functools.partial(training.train_step, job=job))
    for i in range(2):
        state, metrics = step(states[-1], datasets.Batch(batches[i].pixels[0]))
        states.append(jax.device_get(state))
        losses.append(metrics["loss"])
    STEPS[key] = states, np.array(losses)
    return STEPS[key]


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFICIAL)
def test_training(name):
    """Steps have the size of the learning rate, and the EMA follows model.ema_rate."""
    config = module(name).get_config()
    parts.make_sampler(config, parts.make_sde(config))
    states, losses = two_steps(shrunk(config))
    assert np.isfinite(losses).all()
    for step, (before, after) in enumerate(zip(states, states[1:])):
        changes = jax.tree.map(lambda a, b: np.abs(b - a).max(), before.params, after.params)
        # The largest step of Adam.
        expected = 0.0 if step == 0 and config.optim.warmup > 0 else config.optim.lr
        assert max(jax.tree.leaves(changes)) == pytest.approx(expected, rel=0.01)
        rate = config.model.ema_rate
        for ema, old, new in zip(*map(jax.tree.leaves, (after.ema, before.ema, after.params))):
            np.testing.assert_allclose(ema, rate * old + (1 - rate) * new, rtol=1e-6, atol=1e-7)


def test_a_published_config_names_no_file():
    """Only the fields that may name files change: LSUN's category, a text as well, stays."""
    config = importlib.import_module("configs.ve.church_ncsnpp_continuous").get_config()
    config.update_from_flattened_dict(
        {"data.path": "/a", "restore.input": "/b", "restore.mask": "/c.png", "eval.stats_path": "d"}
    )
    found = default.reset(config, default.not_data(config))
    assert (found.data.path, found.restore.input, found.eval.stats_path) == ("", "", "")
    assert found.restore.mask == "box"
    assert found.data.category == config.data.category == "church_outdoor"
    assert config.data.path == "/a"
