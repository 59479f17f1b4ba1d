"""Import of EDM's networks: recorded outputs, configs that files state, and errors."""

import functools
import importlib
import json
import math
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pretrained
import score_sde as ss
from commands import conversion
from configs import edm_networks, validation
from configs.default import from_json
from configs.folders import stored_config
from configs.parts import make_network
from experiment import Experiment
from loading import load_config
from models import building
from models.conditions import Condition
from models.layers import Rngs
from pretrained import edm_import
from pretrained.edm_import import read_network
from pretrained.stored_parameters import export_params
from sde_lib import expand
from tests import edm_files, reference, tiny
from tests.edm_files import dumps
from tests.refusal import refused

FOLDERS = sorted(
    {path.parent.name for path in (reference.SHARED / "edm").glob("*/network-snapshot.pkl")}
)
BETA_MIN, BETA_D = np.float32(0.1), np.float32(19.9)


def recorded(name):
    return reference.find(f"edm/{name}/network-snapshot.pkl")


def info(name):
    return json.loads(reference.find(f"edm/{name}/info.json").read_text())


@functools.cache
def experiment(name):
    """The experiment that a recorded file states."""
    config = from_json(pretrained.read_config(recorded(name)))
    return Experiment(config, jax.devices()[:1])


@functools.cache
def trained(name):
    return pretrained.read(recorded(name), experiment(name).network, experiment(name).config)


# --- files ---

TENSORS = {
    "u": np.arange(3, dtype=np.float32),
    "model.map_layer0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "model.enc.16x16_conv.bias": np.ones(4, np.float32),
}


def written(folder, content):
    path = folder / "network-snapshot-000100.pkl"
    path.write_bytes(content if isinstance(content, bytes) else dumps(content))
    return path


def test_a_network_is_read_as_data(tmp_path):
    """Tensors and arguments are those that were written; the source is not run.

    Tensors may be views, here a transposed part of a storage.
    """
    path = written(tmp_path, edm_files.network(TENSORS, img_resolution=16, dropout=0.5))
    network = read_network(path)
    assert network.kind == "EDMPrecond"
    assert network.keywords == {"img_resolution": 16, "dropout": 0.5}
    assert network.data_set["xflip"] is True
    assert network.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(network.tensors[name], tensor)
    data = np.arange(6, dtype=np.float32)
    view = edm_files.tensor(data, shape=(3, 2), strides=(1, 3))
    found = read_network(written(tmp_path, edm_files.network({"weight": view}))).tensors["weight"]
    np.testing.assert_array_equal(found, data.reshape(2, 3).T)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(tmp_path, protocol):
    """Instructions of all protocols that Python writes for plain values are followed."""
    plain = {"a": [1, 2.5, -70_000, 2**40, (), (1,), (1, 2), "text", b"bytes", None, True, {1, 2}]}
    if protocol == 2:  # It has no instruction for bytes, and none for sets.
        plain = {"a": [1, 2.5, (1, 2, 3), "text"]}
    content = pickle.dumps(plain, protocol)
    refused("it has no entry 'ema'", read_network, written(tmp_path, content))  # Read to its end.


# --- recorded networks ---


def times_and_labels(name, sigma):
    """Our times (B,) of EDM's noise levels (B,), and the labels of the network as EDM states them.

    The labels are computed in float32, as in the recorded code.
    """
    ours, sigma = experiment(name), np.asarray(sigma, np.float32)
    model, sde = ours.score_model, ours.sde
    match info(name)["class_name"]:
        case "EDMPrecond":
            return sigma, np.log(sigma) / 4
        case "VEPrecond":  # The standard deviation of images in [0, 1] is half as large.
            return sde.time_at(sigma / 2), sigma / 2
        case "VPPrecond":
            root = np.sqrt(BETA_MIN**2 + 2 * BETA_D * np.log(1 + sigma**2))
            return sde.time_at(sigma), 999 * (root - BETA_MIN) / BETA_D
    levels = np.arange(model.num_scales)
    times = jnp.asarray(levels * sde.T / (model.num_scales - 1), jnp.float32)
    alpha, std = map(np.asarray, model.marginal(times))
    nearest = np.abs(std / alpha - sigma[:, None]).argmin(1)
    return times[nearest], levels[nearest].astype(np.float32)


def marginal(name, sigma):
    """alpha and std (B,) of our noisy images, from EDM's noise levels without our times."""
    ours, sigma = experiment(name), np.asarray(sigma, np.float64)
    match info(name)["class_name"]:
        case "EDMPrecond":
            alpha, std = np.ones_like(sigma), sigma
        case "VEPrecond":
            alpha, std = np.ones_like(sigma), sigma / 2
        case "VPPrecond":
            alpha, std = 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma)
        case _:
            return ours.score_model.marginal(jnp.asarray(times_and_labels(name, sigma)[0]))
    return jnp.asarray(alpha, jnp.float32), jnp.asarray(std, jnp.float32)


def denoised(name, x, sigma, classes):
    """EDM's denoiser at x = x_0 + sigma z (B, H, W, C): by the output, and by the score."""
    ours = experiment(name)
    model, is_centered = ours.score_model, ours.score_model.centered
    t, label = (jnp.asarray(each, jnp.float32) for each in times_and_labels(name, sigma))
    # The recorded code rounds small times of the VP SDE.
    np.testing.assert_allclose(model.label(t), label, rtol=1e-4, atol=1e-3)
    alpha, std = marginal(name, sigma)
    c_skip, c_out, c_in = (
        expand(coefficient(alpha, std, model.data_std), x)
        for coefficient in (model.table.c_skip, model.table.c_out, model.table.c_in)
    )
    state = expand(alpha, x) * (x if is_centered else (x + 1) / 2)

    @jax.jit
    def apply(params, inputs, label):
        network = nnx.merge(ours.graph, params)
        return model.output(network, inputs, label, condition=Condition(classes))

    with jax.default_matmul_precision("highest"):
        output = apply(trained(name).ema, c_in * state, label)
    score = model.score_from_output(output, state, t)
    _, std = model.marginal(t)
    by_score = (state + expand(std**2, x) * score) / expand(alpha, x)
    images = (c_skip * state + c_out * output, by_score)
    return [image if is_centered else 2 * image - 1 for image in images]


@pytest.mark.parametrize("name", reference.cases(FOLDERS, slow=FOLDERS[:2] + FOLDERS[3:7]))
def test_recorded_denoisers(name):
    """Denoised images agree to 1e-5 of an image's largest value, also without class."""
    io = np.load(reference.find(f"edm/{name}/io.npz"))
    cases = {"denoised": None}
    if "class_labels" in io:
        cases = {"denoised": jnp.asarray(io["class_labels"].argmax(1)), "denoised_no_class": None}
    for key, classes in cases.items():
        x, expected = (np.moveaxis(io[each], 1, -1) for each in ("x", key))
        image, by_score = denoised(name, x, io["sigma"], classes)
        assert reference.image_error(image, expected) < 1e-5
        # At high noise levels, terms of x + sigma^2 score cancel, in float32.
        largest = np.abs(x).max((1, 2, 3))
        assert np.max(np.abs(by_score - expected).max((1, 2, 3)) / largest) < 2e-5


# --- files of other networks ---

SMALL = {"img_resolution": 8, "img_channels": 2, "model_channels": 4, "channel_mult": [1, 2]}
SMALL |= {"num_blocks": 1, "attn_resolutions": [4]}
ADM = {"model_type": "DhariwalUNet", "model_channels": 32, "channel_mult": [1, 2]}
SONG, FIR = {"model_type": "SongUNet"}, {"resample_filter": [1, 3, 3, 1]}
LONG = {"resample_filter": [1, 5, 10, 10, 5, 1]}
OPTIONS = {
    "defaults of SongUNet": ("VPPrecond", {}),
    "classes": ("EDMPrecond", SONG | {"label_dim": 3}),
    "one level": ("VPPrecond", {"channel_mult": [1], "num_blocks": 2, "attn_resolutions": []}),
    "Fourier, narrow": ("EDMPrecond", SONG | {"embedding_type": "fourier"}),
    "Fourier, VE": ("VEPrecond", {"embedding_type": "fourier", "channel_mult_noise": 2}),
    "positional, wide": ("EDMPrecond", SONG | {"channel_mult_noise": 2, "channel_mult_emb": 3}),
    "skips": ("VEPrecond", {"encoder_type": "skip", "decoder_type": "skip"} | FIR),
    "residual without FIR": ("VPPrecond", {"encoder_type": "residual"}),
    "residual, long FIR": ("EDMPrecond", SONG | {"encoder_type": "residual"} | LONG),
    "ADM": ("EDMPrecond", ADM),
    "ADM, classes": ("iDDPMPrecond", ADM | {"label_dim": 3, "channel_mult": [1, 2, 3]}),
    "ADM, VP": ("VPPrecond", ADM | {"num_blocks": 2}),
}


def small(kind, options, folder):
    """Return the experiment of a small network of EDM, random parameters, and a file of it."""
    arguments = SMALL | options
    ours = Experiment(edm_networks.experiment(kind, (), arguments), jax.devices()[:1])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), ours.abstract_params
    )
    is_adm = ours.config.model.name == "adm"
    if is_adm and "class_embedding" in params:
        params["class_embedding"]["embedding"][-1] = 0  # EDM's layer for classes has no bias.
    tensors = export_params(edm_import.edm_layout(ours.network, ours.config), params)
    tensors = edm_files.combined(tensors, scaled_classes=not is_adm)
    tensors["model.enc.4x4_down.conv0.resample_filter"] = np.ones((1, 1, 2, 2), np.float32)
    if is_adm and kind == "iDDPMPrecond":  # Variances, which are ignored.
        tensors |= {
            name: np.concatenate([tensors[name], tensors[name] + 1])
            for name in ("model.out_conv.weight", "model.out_conv.bias")
        }
        tensors["u"] = np.ones(1001, np.float32)
    return ours, params, written(folder, edm_files.network(tensors, kind, **arguments))


def assert_same(params, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)
    jax.tree.map(close, params, expected)


FEW = ("classes", "Fourier, VE", "skips", "residual without FIR", "ADM, classes")


@pytest.mark.parametrize("name", reference.cases(OPTIONS, slow=OPTIONS.keys() - {*FEW}))
def test_every_parameter_is_in_the_file(tmp_path, name):
    """The file states the config; it has each parameter of the network once, and nothing else."""
    ours, params, path = small(*OPTIONS[name], tmp_path)
    config = from_json(pretrained.read_config(path))
    again = Experiment(config, jax.devices()[:1])
    assert again.config.model == ours.config.model
    found = pretrained.read(path, again.network, again.config)
    assert found.step == 0
    assert_same(found.params, params)


@pytest.mark.slow
def test_modes_and_the_python_api(tmp_path):
    """The file states its config."""
    ours, params, path = small("VEPrecond", {"img_channels": 1}, tmp_path)
    config = load_config(path)
    assert (config.data.dataset, config.data.random_flip) == ("CIFAR10", True)
    assert conversion.import_checkpoint(config, str(tmp_path / "run"), str(path)) == 1
    assert_same(ours.trained(str(tmp_path / "run"))[1], params)
    assert stored_config(tmp_path / "run").model.nf == 4
    model = ss.load(path)
    x = jax.random.normal(jax.random.key(0), (2, *model.event_shape))
    expected = ours.score(params)(x, jnp.array([0.2, 0.7]))
    np.testing.assert_allclose(model.score(x, jnp.array([0.2, 0.7])), expected, rtol=1e-3)


def test_a_config_of_the_paper_fits(tmp_path):
    """Configs without the fields that only EDM's networks need can describe one of them."""
    _, params, path = small("VPPrecond", {"img_channels": 1}, tmp_path)
    config = tiny.config(**{"data.image_size": 8, "model.nf": 4, "model.ch_mult": (1, 2)})
    config.model.update(attn_resolutions=(4,))
    ours = Experiment(config, jax.devices()[:1])
    assert_same(pretrained.read(path, ours.network, ours.config).ema, params)


MISMATCHES = [
    ({"model.nf": 8}, "model.nf = 4, and the config 8"),
    ({"model.attn_resolutions": ()}, "model.attn_resolutions = .4,., and the config"),
    ({"training.sde": "vesde"}, "training.sde = 'vpsde', and the config 'vesde'"),
    ({"data.num_classes": 3}, "data.num_classes = 0, and the config 3"),
    ({"model.parameterization": "velocity"}, "'default', and the config 'velocity'"),
]


def test_other_configs_are_errors(tmp_path):
    ours, _, path = small("VPPrecond", {}, tmp_path)
    for changes, message in MISMATCHES:
        config = ours.config.copy_and_resolve_references().unlock()
        config.update_from_flattened_dict(changes)
        refused(message, pretrained.read, path, ours.network, config)


UNSUPPORTED = [
    ("PFGMPrecond", {}, "'PFGMPrecond'"),
    ("EDMPrecond", {"model_type": "DiT"}, "model_type = 'DiT'"),
    ("EDMPrecond", {"depth": 3}, "depth"),
    ("EDMPrecond", {"img_channels": "3"}, "img_channels = 3 must be of the type of 3"),
    ("EDMPrecond", {"label_dim": True}, "label_dim = True"),
    ("EDMPrecond", {"channel_mult": 2}, "channel_mult = 2"),
    ("EDMPrecond", {"num_blocks": 2**60}, "num_blocks = 1152921504606846976"),
    ("VPPrecond", {"M": 500}, "M = 500"),
    ("iDDPMPrecond", {"C_1": 0.1}, "C_1 = 0.1"),
    ("VPPrecond", {"encoder_type": "odd"}, "encoder_type = 'odd'"),
    ("VPPrecond", {"resample_filter": [1, 2]}, "resample_filter = .1, 2."),
]


@pytest.mark.parametrize(("kind", "options", "message"), UNSUPPORTED)
def test_networks_that_cannot_be_represented_are_errors(tmp_path, kind, options, message):
    path = written(tmp_path, edm_files.network({}, kind, **options))
    refused(f"{message}.*{path.name}", pretrained.read_config, path)


# --- configs/edm ---

VP = {"embedding_type": "positional", "encoder_type": "standard", "channel_mult_noise": 1}
VP |= {"model_type": "SongUNet", "decoder_type": "standard", "resample_filter": [1, 1]}
VE = VP | {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
VE |= {"resample_filter": [1, 3, 3, 1]}
CIFAR = {"model_channels": 128, "channel_mult": [2, 2, 2], "dropout": 0.13, "augment_dim": 9}
FFHQ = {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "dropout": 0.05, "augment_dim": 9}
FFHQ |= {"img_resolution": 64}
IMAGENET = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4]}
IMAGENET |= {"img_resolution": 64, "label_dim": 1000}
PUBLISHED = {
    "cifar10_ddpmpp": VP | CIFAR,
    "cifar10_ncsnpp": VE | CIFAR,
    "cifar10_ddpmpp_conditional": VP | CIFAR | {"label_dim": 10},
    "cifar10_ncsnpp_conditional": VE | CIFAR | {"label_dim": 10},
    "ffhq_64_ddpmpp": VP | FFHQ,
    "ffhq_64_ncsnpp": VE | FFHQ,
    "afhqv2_64_ddpmpp": VP | FFHQ | {"dropout": 0.25},
    "afhqv2_64_ncsnpp": VE | FFHQ | {"dropout": 0.25},
    "imagenet_64_adm": IMAGENET,
}


def test_each_published_network_has_a_config():
    files = (pathlib.Path(edm_networks.__file__).parent / "edm").glob("*.py")
    ours = {"digits_ddpmpp", "emoji_ddpmpp_conditional"}
    assert {path.stem for path in files} == PUBLISHED.keys() | ours


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    """The config of an experiment is that which a file with EDM's options states."""
    module = importlib.import_module(f"configs.edm.{name}")
    assert f"--config=configs/edm/{name}.py " in module.__doc__
    ours = validation.validated(module.get_config(), 1)
    stated = validation.validated(edm_networks.experiment("EDMPrecond", (), PUBLISHED[name]), 1)
    edm_import._check(pathlib.Path("edm.pkl"), stated, ours)
    assert ours.model.dropout == stated.model.dropout
    assert ours.sampling.to_dict() == stated.sampling.to_dict() or "64" in name


SIZES = {"cifar10_ddpmpp": 55.7, "ffhq_64_ddpmpp": 61.8, "imagenet_64_adm": 295.9}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), SIZES.items())
def test_sizes_of_published_networks(name, millions):
    """The numbers of parameters are those of EDM's Table 7."""
    config = validation.validated(importlib.import_module(f"configs.edm.{name}").get_config(), 1)
    network = building.abstract_network(lambda: make_network(config, Rngs(jax.random.key(0))))
    layout = edm_import.edm_layout(network, config)
    assert len({stored.names for stored in layout}) == len(layout)
    assert sum(math.prod(stored.shape) for stored in layout) / 1e6 == pytest.approx(millions, 1e-3)
