"""Rectangular images: the field data.image_size as (H, W), from files to networks and modes."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import datasets
import evaluation
import training
from commands import inspection, restoration
from configs import validation
from configs.default import Config, complete, get_default_config
from configs.folders import check_config, claim, dependencies
from errors import InputError
from experiment import Experiment
from models import NETWORKS, building, layers, networks_supporting
from readers import image_files, preprocessing
from runs import report
from tests import reference, tiny
from tests.refusal import refused

SHAPE = (8, 4)
RANDOM = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("own_cache")


def config(path, **changes):
    """Return a tiny experiment on the grey images of 8x4 pixels in a file."""
    fields = {"data.dataset": "array", "data.path": str(path), "data.image_size": SHAPE}
    return tiny.config(**fields | changes)


# --- the field ---


def test_one_value_has_one_form():
    """Equal sides are an integer, and lists are tuples, so that equal configs compare equal."""
    for size, expected in (((8, 8), 8), ([8, 8], 8), ([8, 4], (8, 4)), ((8, 4), (8, 4)), (8, 8)):
        c = complete(Config({"data": {"image_size": size}}))
        assert c.data.image_size == expected
    assert dependencies("checkpoint", complete(get_default_config()))["data.image_size"] == 32


@pytest.mark.parametrize("size", [(8,), (8, 4, 4), (8, 0), (8, 4.5), "8x4", (5000, 8), None])
def test_invalid_values(size):
    c = tiny.config(**{"data.image_size": size})
    allowed = "(must be an integer from 1 to 4096,|needs model.name = mlp)"
    refused(f"data.image_size = .* {allowed}", validation.validated, c, 1)


def test_a_stored_config_is_that_of_the_rectangle(tmp_path):
    """The list in config.json equals the pair; other sizes are refused in one message."""
    c = complete(config("a.npy"))
    claim(tmp_path, c, "training")
    (tmp_path / "checkpoints" / "checkpoint_1").mkdir(parents=True)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["data"]["image_size"] == [8, 4]
    check_config(tmp_path, c, "training")
    for size, shown in (((4, 8), r"\[4, 8\]"), (8, "8")):
        other = complete(config("a.npy", **{"data.image_size": size}))
        with pytest.raises(InputError, match=rf"data.image_size: \[8, 4\] there, {shown} now"):
            check_config(tmp_path, other, "training")


# --- networks ---

OPTIONS = {
    "nf": 4,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "num_scales": 5,
    "fir": True,
    "progressive": "output_skip",
    "progressive_input": "residual",
}


def build(name, image_size):
    """Return a network and random parameters."""
    options = OPTIONS | ({"nf": 32} if name == "ddpm" else {})
    arguments = NETWORKS[name].arguments(options) | {"image_size": image_size, "num_channels": 2}

    def make():
        return NETWORKS[name].build(**arguments, rngs=layers.Rngs(jax.random.key(0)))

    graph, shapes = nnx.split(building.abstract_network(make), nnx.Param)
    rng = np.random.default_rng(1)

    def draw(leaf):
        return 0.2 * rng.normal(size=leaf.shape).astype(np.float32)

    return graph, jax.tree.map(draw, nnx.to_pure_dict(shapes))


ALL = sorted(networks_supporting("remat") + ["ncsn", "ncsnv2_64"])


@pytest.mark.parametrize("name", reference.cases(ALL, slow={*ALL} - {"ncsnpp"}))
def test_networks(name):
    """Parameters are those of the square network, and transposition commutes with the network.

    For the latter, kernels are transposed as well. Attention is invariant to the order of pixels.
    """
    graph, params = build(name, (16, 8))
    _, of_square = build(name, 16)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, of_square)
    x = RANDOM.uniform(size=(2, 16, 8, 2)).astype(np.float32)
    label = np.array([1, 3])
    transposed = build(name, (8, 16))[0]
    turned = jax.tree.map(lambda a: a.swapaxes(0, 1) if a.ndim == 4 else a, params)

    def apply(graph, params, x):
        return nnx.merge(graph, params)(x, label)

    y = jax.jit(lambda *args: apply(graph, *args))(params, x)
    other = jax.jit(lambda *args: apply(transposed, *args))(turned, x.swapaxes(1, 2))
    assert y.shape == x.shape
    scale = np.abs(y).max()
    np.testing.assert_allclose(y / scale, other.swapaxes(1, 2) / scale, atol=2e-4)
    assert np.abs(y[:, 1:] - y[:, :-1]).max() > 0.01 * scale


# --- readers ---


@pytest.mark.parametrize("size", [(48, 32), (5, 64), (64, 5), (20, 20)])
@pytest.mark.parametrize("of_file", [(60, 90), (33, 33), (250, 200)])
def test_crops_have_the_ratio_of_the_sides(size, of_file):
    """Resizing a ramp gives the coordinates in the file, from the center in steps of one scale.

    Coordinates differ by at most half a pixel for the rounding of bytes, half for that of the
    center, and a quarter for that of the crop; the last quarter is for the kernel at the border.
    """
    image = Image.fromarray(
        np.stack([*np.indices(of_file), np.zeros(of_file)], -1).astype(np.uint8)
    )
    found = image_files.to_array(preprocessing.crop_resize(image, size)).astype(float)
    assert found.shape == (*size, 3)
    scale = min(of_file[0] / size[0], of_file[1] / size[1])  # pixels of the file for one here
    for axis, (before, after) in enumerate(zip(of_file, size)):
        steps = np.indices(size)[axis] - (after - 1) / 2
        np.testing.assert_allclose(found[..., axis], (before - 1) / 2 + scale * steps, atol=1.5)


def test_folders(tmp_path, capsys):
    for i in range(12):
        pixels = RANDOM.integers(0, 256, (8, 4 - i % 2, 3), np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    fields = {"data.dataset": "folder", "data.num_channels": 3, "data.held_out": 0.25}
    result = inspection.inspect(config(tmp_path / "images", **fields), str(tmp_path / "w"))
    assert result["shape"] == (8, 4, 3)
    assert "6 of them are smaller than data.image_size = (8, 4)" in capsys.readouterr().out


def test_arrays(tmp_path):
    pixels = RANDOM.integers(0, 256, (20, 8, 4), np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    assert datasets.load(config(tmp_path / "a.npy").data, "train").pixels[:3].shape == (3, 8, 4, 1)
    message = r"have shape \(8, 4, 1\); data.image_size = \(4, 8\) .* require \(4, 8, 1\)"
    other = config(tmp_path / "a.npy", **{"data.image_size": (4, 8)})
    refused(message, datasets.load, other.data, "train")
    np.save(tmp_path / "narrow.npy", pixels[..., :3])  # Not one image with three channels.
    narrow = config(tmp_path / "narrow.npy", **{"data.image_size": (8, 3)})
    assert datasets.load(narrow.data, "train").pixels[0].shape == (8, 3, 1)


@pytest.mark.parametrize(
    "name", ["CIFAR10", "SVHN", "CELEBA", "FASHION_MNIST", "FFHQ", "CelebAHQ", "digits"]
)
def test_published_data_sets_are_square(tmp_path, name):
    message = rf"data.image_size = \(8, 4\): data.dataset = '{name}' has only square images"
    if name == "digits":
        message = r"have shape \(8, 8, 1\); data.image_size = \(8, 4\)"
    refused(message, datasets.load, config(tmp_path, **{"data.dataset": name}).data, "train")


# --- modes ---


def corners(images):
    """Features for these tests: four pixels."""
    return {"pool": images[:, 2:6:3, :4:3].reshape(len(images), -1) / 255}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir of two training steps, between which training was interrupted."""
    folder = tmp_path_factory.mktemp("rectangles")
    np.save(folder / "a.npy", RANDOM.integers(0, 256, (40, 8, 4), np.uint8))
    for steps in (1, 2):
        state = training.train(run(folder, **{"training.n_iters": steps}), str(folder / "w"))
        assert int(state.step) == steps
    return folder


def run(folder, **changes):
    """Return the config of `trained` for a mode."""
    fields = {
        "model.ch_mult": (1, 2),
        "model.attn_resolutions": (4,),
        "sampling.method": "solver",
        "sampling.num_steps": 3,
        "training.n_iters": 2,
        "training.snapshot_freq": 2,
    }
    return config(folder / "a.npy", **fields | changes)


@pytest.mark.slow
def test_evaluation(trained):
    folder = trained / "w"
    changes = {
        "eval.enable_sampling": True,
        "eval.enable_bpd": True,
        "eval.enable_metrics": True,
        "eval.features": f"{__name__}:corners",
        "eval.bpd_num_repeats": 1,
        "eval.bpd_tolerance": 1e-2,
        "eval.batch_size": 16,
    }
    (result,) = evaluation.evaluate(run(trained, **changes), str(folder)).values()
    assert np.isfinite(result["bpd"]["mean"])
    with np.load(folder / "eval" / "checkpoint_1" / "samples_0.npz") as saved:
        assert saved["samples"].shape[1:] == (8, 4, 1)
    assert "Images of 8x4x1." in report.write(folder).read_text()
    (path,) = (folder / "statistics").glob("*.npz")
    assert path.name.startswith("array_8x4_")
    written = path.stat().st_mtime_ns
    again = evaluation.evaluate(run(trained, **changes), str(folder))
    assert list(again.values()) == [result]  # The list in config.json equals the pair.
    assert path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_restoration(trained):
    changes = {
        "restore.count": 2,
        "restore.samples": 1,
        "restore.task": "super_resolution",
        "restore.method": "moment_matching",
        "restore.factor": 2,
    }
    found = restoration.restore(run(trained, **changes), str(trained / "w"))
    assert found["misfit"] < 1e-3
    (path,) = (trained / "w" / "restore").rglob("samples_0.npz")
    with np.load(path) as saved:
        assert saved["x"].shape[-3:] == (8, 4, 1)


def test_files_to_restore(tmp_path):
    """Image files are cropped to the rectangle."""
    pixels = RANDOM.integers(0, 256, (8, 4), np.uint8)
    Image.fromarray(np.pad(pixels, ((0, 0), (3, 3)))).save(tmp_path / "a.png")
    changes = {"restore.input": str(tmp_path), "data.uniform_dequantization": False}
    experiment = Experiment(config("a.npy", **changes))
    _, images = restoration.load_images(experiment, experiment.image_shape)
    np.testing.assert_array_equal(experiment.pixels(images)[0, ..., 0], pixels)
