"""The Inception network of FID with random weights: recorded outputs and files.

The tests do not require the published weights.
"""

import jax
import numpy as np
import pytest
import safetensors.numpy

from errors import InputError
from experiment import Experiment
from metrics import features, inception_weights
from models import inception
from tests import reference, tiny

RECORD = "inception_io"


def fill(seed: int) -> tuple[dict[str, np.ndarray], np.random.Generator]:
    """Return a random state dict, generated as for the record, and the generator afterwards."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in sorted(reference.notes(RECORD)["names"].items()):
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.zeros((), np.int64)
            continue
        if name.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("running_mean") or name.endswith("bias"):
            value = 0.1 * rng.normal(size=shape)
        elif name.endswith("bn.weight"):
            value = rng.uniform(0.8, 1.6, shape)
        else:
            value = rng.normal(size=shape) * np.sqrt(1.6 / np.prod(shape[1:]))
        tensors[name] = value.astype(np.float32)
    return tensors, rng


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.safetensors"
    safetensors.numpy.save_file(fill(2015)[0], path)
    return path


def experiment(path, **changes) -> Experiment:
    fields = {
        "data.dataset": "noise",
        "data.image_size": 32,
        "data.num_channels": 3,
        "eval.batch_size": 4,
    }
    fields |= {"eval.features": "inception", "eval.inception_path": str(path)}
    return Experiment(tiny.config(**fields | changes))


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative error in the Euclidean norm."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def test_recorded_outputs(weights, tmp_path):
    """On two devices. Images in a batch that is not full have the same features."""
    record = reference.arrays(RECORD)
    extractor = features.make_extractor(experiment(weights), tmp_path)
    pool, logits = extractor.extract(record["images_uint8"])
    assert error(pool, record["pool3"]) < 1e-5
    assert error(logits, record["logits"]) < 1e-5
    again = extractor.extract(record["images_uint8"][:3])
    np.testing.assert_array_equal(again.pool, pool[:3])
    assert extractor.name == "inception-other-weights"
    assert not extractor.published


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2015, 7])
def test_outputs_of_torch_fidelity(tmp_path, seed):
    """Features with TensorFlow's resizing, for two sets of random weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    pytest.importorskip(
        "torch_fidelity", reason="torch-fidelity is not installed (requirements-dev.txt)"
    )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors, rng = fill(seed)
    path = tmp_path / "random.pth"
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)
    images = rng.integers(0, 256, (4, 40, 350, 3), dtype=np.uint8)
    theirs = FeatureExtractorInceptionV3("random", ["2048", "logits"], str(path))
    pool, logits = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    extractor = features.make_extractor(
        experiment(path, **{"eval.features": "inception_tf"}), tmp_path
    )
    ours = extractor.extract(images)
    assert error(ours.pool, pool.numpy()) < 1e-5
    assert error(ours.logits, logits.numpy()) < 1e-5


@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize("size", [8, 299, 500])
def test_interpolation(size, half_pixel):
    """Interpolation is exact for linear ramps, and symmetric if pixel centres are at 1/2."""
    w = inception.interpolation_weights(size, half_pixel)
    shift = 0.5 if half_pixel else 0
    positions = np.clip((np.arange(299) + shift) * size / 299 - shift, 0, size - 1)
    np.testing.assert_allclose(w.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(w @ np.arange(size), positions, rtol=1e-4, atol=1e-4)
    assert np.allclose(w, w[::-1, ::-1], atol=1e-4) == (half_pixel or size == 299)
    if size == 299:
        np.testing.assert_allclose(w, np.eye(299), atol=1e-6)


def test_interpolation_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    x = np.random.default_rng(0).normal(size=(1, 9, 301, 2)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), size=(299, 299), mode="bilinear"
    )
    np.testing.assert_allclose(inception.resize(x, True), theirs.permute(0, 2, 3, 1), atol=1e-4)


# --- files ---


def test_pytorch_files(weights, tmp_path, monkeypatch):
    """A .pth file and its .safetensors copy have the same parameters."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    path = tmp_path / "random.pth"
    torch.save({name: torch.tensor(tensor) for name, tensor in fill(2015)[0].items()}, path)
    read = inception_weights.read(path)
    assert read.digest == inception_weights.read(weights).digest
    # Treat the SHA-256 of the random weights as the standard one.
    monkeypatch.setattr(inception_weights, "STANDARD", "")
    target = inception_weights.to_safetensors(path)
    again = inception_weights.read(target)
    assert (again.digest, again.standard) == (read.digest, True)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, read.params))


def test_files_with_other_content_are_errors(tmp_path):
    named = tmp_path / inception_weights.FILE
    named.write_bytes(b"<html>")
    with pytest.raises(
        InputError,
        match=r"its SHA-256 begins with \w{8} instead of 6726825d, .* Download it again",
    ):
        inception_weights.read(named)
    names = reference.notes(RECORD)["names"]
    tensors = {
        name: np.zeros(shape, np.float32)
        for name, shape in names.items()
        if name.startswith("Conv2d_1a")
    }
    for change, message in (
        (
            {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 5))},
            r"has shape \(32, 3, 3, 5\) in the file and \(32, 3",
        ),
        ({}, r"Conv2d_2a_3x3\.\S+, which the network has with shape \S+, is not in the file"),
    ):
        path = tmp_path / "part.safetensors"
        safetensors.numpy.save_file(tensors | change, path)
        with pytest.raises(InputError, match=message):
            inception_weights.read(path)


def test_search_for_the_weights(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(inception_weights, "CACHES", (folder,))
    address = (
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth"
    )
    with pytest.raises(InputError, match=rf"nor in .*cache\. They are not .* from {address} "):
        inception_weights.find()
    with pytest.raises(InputError, match=r"not at eval.inception_path = '\S*cache'\. They"):
        inception_weights.find(folder)
    folder.mkdir()
    file = folder / inception_weights.FILE
    file.touch()
    assert inception_weights.find() == file
    assert inception_weights.find(folder) == file
    assert inception_weights.find(file) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert inception_weights.find("~/cache") == file
    with pytest.raises(InputError, match="eval.inception_path = '~no_such_user': the home"):
        inception_weights.find("~no_such_user")


def test_images_of_two_channels_are_errors(tmp_path):
    file = tmp_path / inception_weights.FILE
    file.touch()
    with pytest.raises(
        InputError, match="for images of 1 or 3 channels, but data.num_channels = 2"
    ):
        features.make_extractor(experiment(file, **{"data.num_channels": 2}), tmp_path)
