"""The Inception network of FID with random weights: recorded outputs and files.

The tests do not require the published weights.
"""

import itertools

import numpy as np
import pytest
import safetensors.numpy

from experiment import Experiment
from metrics import features, inception, inception_weights
from tests import reference, tiny
from tests.refusal import refused

RECORD = "inception_io"
MISSING = "not installed (requirements-dev.txt)"


def fill(seed: int) -> tuple[dict[str, np.ndarray], np.random.Generator]:
    """Return a random state dict, generated as for the record, and the generator afterwards."""
    rng, tensors = np.random.default_rng(seed), {}
    draws = {
        "num_batches_tracked": lambda shape: 0,
        "running_var": lambda shape: rng.uniform(0.5, 1.5, shape),
        "running_mean": lambda shape: 0.1 * rng.normal(size=shape),
        "bias": lambda shape: 0.1 * rng.normal(size=shape),
        "bn.weight": lambda shape: rng.uniform(0.8, 1.6, shape),
        "weight": lambda shape: rng.normal(size=shape) * np.sqrt(1.6 / np.prod(shape[1:])),
    }
    for name, shape in sorted(reference.notes(RECORD)["names"].items()):
        draw = next(draws[end] for end in draws if name.endswith(end))
        tensors[name] = np.asarray(draw(shape), np.float32)
    return tensors, rng


@pytest.fixture(scope="module")
def tensors():
    return fill(2015)[0]


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "random.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def experiment(path, **changes) -> Experiment:
    fields = {"data.dataset": "noise", "data.image_size": 32, "data.num_channels": 3}
    fields |= {"eval.features": "inception", "eval.inception_path": str(path)}
    fields |= {"eval.batch_size": 4}
    return Experiment(tiny.config(**fields | changes))


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The relative error in the Euclidean norm."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.slow
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
    torch = pytest.importorskip("torch", reason=MISSING)
    pytest.importorskip("torch_fidelity", reason=MISSING)
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors, rng = fill(seed)
    path = tmp_path / "random.pth"
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)
    images = rng.integers(0, 256, (4, 40, 350, 3), dtype=np.uint8)
    theirs = FeatureExtractorInceptionV3("random", ["2048", "logits"], str(path))
    pool, logits = theirs(torch.tensor(images).permute(0, 3, 1, 2))
    resized = experiment(path, **{"eval.features": "inception_tf"})
    ours = features.make_extractor(resized, tmp_path).extract(images)
    assert error(ours.pool, pool.numpy()) < 1e-5
    assert error(ours.logits, logits.numpy()) < 1e-5


def test_interpolation():
    """Interpolation is exact for linear ramps, and symmetric if pixel centres are at 1/2."""
    for size, half_pixel in itertools.product((8, 299, 500), (True, False)):
        w = inception.interpolation_weights(size, half_pixel)
        shift = 0.5 if half_pixel else 0
        positions = np.clip((np.arange(299) + shift) * size / 299 - shift, 0, size - 1)
        np.testing.assert_allclose(w @ np.arange(size), positions, rtol=1e-4, atol=1e-4)
        assert np.allclose(w.sum(1), 1, rtol=1e-6)
        assert np.allclose(w, w[::-1, ::-1], atol=1e-4) == (half_pixel or size == 299)


# --- files ---


def test_pytorch_files(tensors, weights, tmp_path, monkeypatch):
    """A .pth file has the same parameters; neither requires PyTorch."""
    torch = pytest.importorskip("torch", reason=MISSING)
    path = tmp_path / "random.pth"
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)
    read = inception_weights.read(path)
    assert read.digest == inception_weights.read(weights).digest
    assert not read.standard
    # Treat the SHA-256 of the random weights as the standard one.
    monkeypatch.setattr(inception_weights, "STANDARD", "")
    assert inception_weights.read(path).standard


def test_files_with_other_content_are_errors(tmp_path):
    named = tmp_path / inception_weights.FILE
    named.write_bytes(b"<html>")
    refused(r"SHA-256 begins with \w{8} instead of 6726825d", inception_weights.read, named)
    names = reference.notes(RECORD)["names"]
    first = {name: np.zeros(names[name]) for name in names if name.startswith("Conv2d_1a")}
    wrong = {"Conv2d_1a_3x3.conv.weight": np.zeros((32, 3, 3, 5))}
    path = tmp_path / "part.safetensors"
    for tensors, words in (
        (first | wrong, r"has shape \(32, 3, 3, 5\) in the file and \(32, 3"),
        (first, r"Conv2d_2a_3x3\.\S+, which the network has with shape \S+, is not in the file"),
    ):
        safetensors.numpy.save_file(tensors, path)
        refused(words, inception_weights.read, path)


def test_search_for_the_weights(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(inception_weights, "CACHES", (folder,))
    monkeypatch.setenv("HOME", str(tmp_path))
    url = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015"
    for arguments, words in (
        ((), rf"nor in .*cache\. They are not .* from {url}-12-05-6726825d.pth "),
        ((folder,), r"not at eval.inception_path = '\S*cache'\. They"),
        (("~no_such_user",), "eval.inception_path = '~no_such_user': the home"),
    ):
        refused(words, inception_weights.find, *arguments)
    folder.mkdir()
    file = folder / inception_weights.FILE
    file.touch()
    for arguments in ((), (folder,), (file,), ("~/cache",)):
        assert inception_weights.find(*arguments) == file
    changes = {"data.num_channels": 2}
    refused("data.num_channels = 2", features.make_extractor, experiment(file, **changes), tmp_path)
