"""Measures of samples on disk: restarts, statistics files of ours and of others, features of the user's own."""

import json

import numpy as np
import pytest

import datasets
from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics, sample_quality
from metrics.distances import Moments
from metrics.features import Extractor, Features
from metrics.reference_statistics import load
from tests import tiny
from workdir import round_paths

SAMPLES = 50


def corners(images):
    """Features for the tests (`eval.features=tests.test_image_quality:corners`): four pixels that are not always 0."""
    return {"pool": images[:, 2:6:3, 2:6:3].reshape(len(images), -1) / 255}


def config(**changes):
    fields = {
        "eval.features": f"{__name__}:corners",
        "eval.num_samples": SAMPLES,
        "eval.batch_size": 16,
    }
    return tiny.config(**fields | {"eval.enable_metrics": True} | changes)


@pytest.fixture
def folder(tmp_path):
    """Rounds of samples, which are held-out digits, as evaluation leaves them."""
    experiment = Experiment(config())
    images = features.spread(experiment, experiment.test.pixels[:SAMPLES])
    (tmp_path / "checkpoint_1").mkdir()
    for index, path in enumerate(round_paths(tmp_path / "checkpoint_1", "samples", 4)):
        np.savez(path, samples=images[16 * index : 16 * (index + 1)])
    return tmp_path / "checkpoint_1"


def measure(folder, **changes):
    experiment = Experiment(config(**changes))
    stage = sample_quality.make_stage(experiment, str(folder.parent))
    return stage(experiment, None, folder, None)["metrics"]


def test_measures(folder):
    """Those of all features at once, though they were computed in rounds."""
    found = measure(folder)
    experiment = Experiment(config())
    real, generated = (
        features.spread(experiment, images.pixels)[:, 2:6:3, 2:6:3]
        .reshape(-1, 4)
        .astype(np.float32)
        / np.float32(255)
        for images in (experiment.train, datasets.Images(experiment.test.pixels[:SAMPLES]))
    )
    distance = distances.frechet_distance(Moments.of(real), Moments.of(generated))
    assert found["frechet"]["value"] == pytest.approx(distance, rel=1e-6)
    assert found["frechet"]["name"] == "FD_n50"
    assert found["frechet"]["stderr"] > 0
    assert found["kid"]["value"] == pytest.approx(
        distances.kernel_distance(real, generated, 144).value, rel=1e-5
    )
    assert found["precision"]["value"] == pytest.approx(
        distances.precision_recall(real, generated).precision
    )
    assert found["inception_score"] is None  # There are no logits.
    assert found["reference"]["images"] == 1438
    assert found["frechet"]["extrapolated"] < distance
    json.dumps(found, allow_nan=False)
    lines = sample_quality.table({1: {"metrics": found}})
    assert "FD_n50" in lines[0]
    assert "against 1438 digits train in " in lines[-1]


def test_a_restart_does_only_what_is_missing(folder, monkeypatch):
    before = measure(folder)
    (label,) = {path.name.rsplit("_", 1)[0] for path in folder.glob("features_*")}
    (folder / f"{label}_2.npz").unlink()
    done, original = [], np.load
    monkeypatch.setattr(
        np, "load", lambda path, **options: done.append(path.stem) or original(path, **options)
    )
    assert measure(folder) == before
    assert [name for name in done if name.startswith("samples")] == ["samples_2"]


def test_an_fid_is_called_so_with_ten_thousand_images_of_the_published_features():
    rng = np.random.default_rng(0)
    reference = reference_statistics.Reference(Moments.of(rng.normal(size=(50, 2))), None, {})
    names = {
        (count, published): sample_quality._frechet(
            rng.normal(size=(count, 2)), Extractor("", "", "", None, published), reference
        )["name"]
        for count in (9_999, 10_000)
        for published in (True, False)
    }
    assert names == {
        (9_999, True): "FID_n9999",
        (9_999, False): "FD_n9999",
        (10_000, True): "FID",
        (10_000, False): "FD",
    }


def test_the_classifier_of_the_digits(tmp_path, monkeypatch):
    """It knows held-out digits, trains once, and gives an inception score near the number of classes."""
    experiment = Experiment(config(**{"eval.features": "classifier"}))
    extractor = features.make(experiment, tmp_path)
    test = features.spread(experiment, experiment.test.pixels)
    pool, logits = extractor.extract(test)
    assert pool.shape == (359, features.HIDDEN)
    assert not Moments.of(pool).rank_deficient
    assert (logits.argmax(1) == experiment.test.labels).mean() > 0.94
    assert 7 < distances.inception_score(logits) < 10
    monkeypatch.setattr(features, "_train_classifier", None)  # It would fail if it were called.
    again = features.make(experiment, tmp_path)
    assert (again.digest, again.label) == (extractor.digest, extractor.label)
    np.testing.assert_array_equal(again.extract(test[:5]).pool, pool[:5])


# --- statistics -------------------------------------------------------------------------------------------------------


def test_fid_stats(tmp_path, monkeypatch):
    """All images of the split, undequantized, the last partial batch too; what is interrupted goes on."""
    c = config(
        **{
            "eval.stats_split": "test",
            "eval.stats_path": str(tmp_path / "test.npz"),
            "eval.batch_size": 64,
        }
    )
    calls, original = [], corners

    def interrupted(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise OSError("interrupted")
        return original(images)

    monkeypatch.setitem(globals(), "corners", interrupted)
    with pytest.raises(OSError, match="interrupted"):
        reference_statistics.fid_stats(c, str(tmp_path))
    path = reference_statistics.fid_stats(c, str(tmp_path))
    assert calls == [64, 64, 64, 64, 64, 64, 39]  # The fourth one twice.
    with np.load(path) as file:
        arrays = dict(file)
    experiment = Experiment(c)
    pool = (
        features.spread(experiment, experiment.test.pixels)[:, 2:6:3, 2:6:3].reshape(359, 4) / 255
    )
    np.testing.assert_allclose(arrays["pool_3"], pool, rtol=1e-6)
    np.testing.assert_allclose(arrays["mu"], pool.mean(0), rtol=1e-6)
    np.testing.assert_allclose(arrays["sigma"], np.cov(pool.T), rtol=1e-5)
    assert json.loads(str(arrays["protocol"]))["images"] == 359
    assert [each.name for each in tmp_path.iterdir()] == ["test.npz"]
    with pytest.raises(InputError, match="exists; nothing is overwritten"):
        reference_statistics.fid_stats(c, str(tmp_path))


def test_moments_are_of_all_images_though_few_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_statistics, "KEPT", 100)
    experiment = Experiment(config(**{"eval.batch_size": 64}))
    extractor = features.make(experiment, tmp_path)
    made = reference_statistics.make(experiment, extractor, tmp_path / "few.npz")
    read = load(
        tmp_path / "few.npz", extractor, reference_statistics.expected(experiment, extractor)
    )
    assert (
        (len(made.pool), made.moments.count) == (len(read.pool), read.moments.count) == (100, 1438)
    )
    pool = extractor.extract(features.spread(experiment, experiment.train.pixels)).pool
    np.testing.assert_allclose(read.moments.covariance, np.cov(pool.T), rtol=1e-6)


def test_statistics_of_another_protocol_are_refused(folder, tmp_path):
    measure(folder)
    (path,) = (folder.parent / "statistics").iterdir()
    sentence = r"statistics of another protocol:\n  split: 'train' there, 'test' now"
    with pytest.raises(InputError, match=sentence):
        measure(folder, **{"eval.stats_path": str(path), "eval.stats_split": "test"})
    sentence = r"protocol:\n  extractor: '\S*:corners' there, 'classifier' now\n  digest"
    with pytest.raises(InputError, match=sentence):
        measure(folder, **{"eval.stats_path": str(path), "eval.features": "classifier"})
    extractor = features.make(Experiment(config()), tmp_path)
    protocol = reference_statistics.expected(Experiment(config()), extractor) | {"image_size": 32}
    with pytest.raises(InputError, match=r"protocol:\n  image_size: 8 there, 32 now"):
        load(path, extractor, protocol)


def test_statistics_of_others(tmp_path):
    """The official code keeps features, EDM and pytorch-fid moments; of images they do not tell."""
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(40, 3)).astype(np.float32)
    moments = Moments.of(pool)
    np.savez(tmp_path / "official.npz", pool_3=pool)
    np.savez(tmp_path / "edm.npz", mu=moments.mean, sigma=moments.covariance)
    inception, other = (
        Extractor("some", "0" * 64, "", None, published) for published in (True, False)
    )
    for name, count, kept in (("official.npz", 40, True), ("edm.npz", None, False)):
        found = load(tmp_path / name, inception, {})
        assert distances.frechet_distance(found.moments, moments) == pytest.approx(0, abs=1e-12)
        assert (found.moments.count, found.pool is not None) == (count, kept)
        assert found.protocol["path"] == str(tmp_path / name)
        with pytest.raises(
            InputError, match=r"such files are of FID's Inception, .* with features some-00000000"
        ):
            load(tmp_path / name, other, {})
    found = load(tmp_path / "edm.npz", inception, {})
    np.savez(
        tmp_path / "round_0.npz", pool=rng.normal(size=(40, 3)), logits=rng.normal(size=(40, 4))
    )
    measured = sample_quality.measure([tmp_path / "round_0.npz"], inception, found)
    assert (measured["kid"], measured["precision"], measured["recall"]) == (None, None, None)
    assert "FID_n40" in sample_quality.table({1: {"metrics": measured}})[0]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "edm2.pkl",
            b"\x80\x04",
            "is a pickle, which could run anything; EDM has its statistics as .npz, too",
        ),
        ("broken.npz", b"PK\x03\x04", "is no complete .npz file of arrays"),
        ("empty.npz", None, "has no statistics: neither 'pool_3' nor 'mu' and 'sigma'"),
    ],
)
def test_files_without_statistics(tmp_path, name, content, sentence):
    path = tmp_path / name
    if content is None:
        np.savez(path, images=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        load(path, Extractor("", "", "", None, True), {})


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"eval.features": "vgg"},
            "= 'vgg' is unknown; known: classifier, inception, inception_tf, module:function",
        ),
        (
            {"eval.features": "no.module:f"},
            "'no.module:f' cannot be imported: No module named 'no'",
        ),
        ({"eval.features": "json:f"}, "'json:f' cannot be imported: .* has no attribute 'f'"),
        (
            {"eval.features": "classifier", "data.dataset": "noise"},
            "needs labels, which data.dataset = 'noise' lacks",
        ),
        ({"eval.num_samples": 9}, "eval.num_samples = 9 must be at least 10"),
        (
            {"eval.stats_path": "no.npz"},
            "eval.stats_path = 'no.npz' does not exist; --mode=fid_stats makes it",
        ),
        ({"eval.stats_split": "dev"}, "eval.stats_split = 'dev' is unknown; known: test, train"),
    ],
)
def test_bad_settings(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        sample_quality.make_stage(Experiment(config(**changes)), str(tmp_path))


def test_a_function_that_returns_no_features(folder, monkeypatch):
    monkeypatch.setitem(globals(), "corners", lambda images: {"logits": images[:, 0, 0]})
    with pytest.raises(InputError, match=r":corners' returned logits for 16 images, but no 'pool'"):
        measure(folder)
    monkeypatch.setitem(globals(), "corners", lambda images: {"pool": images[:2, 0, 0]})
    with pytest.raises(
        InputError, match=r":corners' returned 'pool' of shape \(2, 1\) for 16 images; it"
    ):
        measure(folder)


def test_batches_are_filled_up():
    seen = []

    def extract(batch):
        seen.append(len(batch))
        return Features(batch.reshape(len(batch), -1), None)

    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    found = features.in_batches(extract, images, 3)
    assert seen == [3, 3, 3]
    assert found.pool[:, 0].tolist() == list(range(7))
    assert found.logits is None
