"""Metrics of samples on disk: restarts, statistics files of all formats, and custom features."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import scipy.stats

import datasets
from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics, sample_quality
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.stage import Context
from runs import round_paths
from tests import tiny
from tests.refusal import refused

SAMPLES = 50


def corners(images):
    """Features for these tests: four pixels that are not constant."""
    return {"pool": images[:, 2:6:3, 2:6:3].reshape(len(images), -1) / 255}


others = corners


def config(**changes):
    fields = {
        "eval.features": f"{__name__}:corners",
        "eval.num_samples": SAMPLES,
        "eval.batch_size": 16,
        "eval.enable_metrics": True,
    }
    return tiny.config(**fields | changes)


def measure(folder, **changes):
    experiment = Experiment(config(**changes))
    sample_quality.check(experiment)
    prepared = sample_quality.prepare(experiment, folder.parent)
    return sample_quality.run(Context(experiment, {}, folder, prepared))


@pytest.fixture(scope="module")
def experiment():
    return Experiment(config())


@pytest.fixture(scope="module")
def measured(tmp_path_factory, experiment):
    """A workdir with rounds of samples, which are held-out digits, and their metrics."""
    workdir = tmp_path_factory.mktemp("measured")
    images = features.as_samples(experiment, experiment.test.pixels[:SAMPLES])
    (workdir / "checkpoint_1").mkdir()
    for index, path in enumerate(round_paths(workdir / "checkpoint_1", "samples", 4)):
        np.savez(path, samples=images[16 * index : 16 * (index + 1)])
    return workdir, measure(workdir / "checkpoint_1")


@pytest.fixture
def folder(measured, tmp_path):
    return shutil.copytree(measured[0], tmp_path / "w") / "checkpoint_1"


def extractor(*, published=False):
    """An extractor whose function is not called."""
    return Extractor("some", "0" * 64, "", lambda images: None, published)


# --- the metrics ---


def test_metrics_equal_those_of_all_features(measured, experiment):
    """Features are computed in rounds; the metrics are those of all features at once."""
    entry = measured[1]
    pools = [
        corners(features.as_samples(experiment, images))["pool"].astype(np.float32)
        for images in (experiment.train.pixels, experiment.test.pixels[:SAMPLES])
    ]
    # Errors come from groups of shuffled images.
    real, generated = (np.random.default_rng(s).permutation(x) for s, x in zip((1, 0), pools))
    moments = Moments.from_features(real)

    def distance(kept):
        some = Moments.from_features(generated[np.isin(np.arange(SAMPLES) % 10, kept)])
        return distances.frechet_distance(some, moments)

    jackknife = distances.jackknife(distance, 10)
    expected = {"frechet": jackknife}
    expected |= {"kid": distances.kernel_distance(real, generated)}
    expected |= distances.precision_recall(real, generated)
    for name, values in expected.items():
        found = entry[name]["value"], entry[name]["stderr"]
        assert found == pytest.approx(tuple(values[:2]), rel=1e-4)
    assert entry["frechet"]["extrapolated"] == pytest.approx(jackknife.extrapolated, rel=1e-4)
    assert entry["precision"]["value"] != entry["recall"]["value"]
    assert entry["inception_score"] is None  # There are no logits.
    assert (entry["reference"]["images"], entry["rounding"]) == (1438, "nearest")
    json.dumps(entry, allow_nan=False)
    rows = sample_quality.measures(entry)
    names = zip(("FD_n50", "KID", "precision", "recall"), expected)
    label = f"({entry['features']}, n = 50)"
    assert [(row.name, row.value) for row in rows] == [
        (f"{name} {label}", entry[key]["value"]) for name, key in names
    ]
    assert rows[0].note.startswith("against 1438 digits train; ")
    assert rows[1].note == "all pairs of 50 and 1438 images"


def test_error_of_the_inception_score():
    """The jackknife leaves out one of ten groups; the score of certain labels is exp(entropy)."""
    labels = np.random.default_rng(0).integers(0, 4, 40) ** 2 // 3
    found = sample_quality.inception_score(1e4 * np.eye(4)[labels], published=True)
    kept = [labels, *(np.delete(labels, np.s_[group::10]) for group in range(10))]
    value, *without = (np.exp(scipy.stats.entropy(np.bincount(each))) for each in kept)
    stderr = np.sqrt(0.9 * np.square(without - np.mean(without)).sum())
    assert (found["value"], found["stderr"]) == pytest.approx((value, stderr))
    assert found["name"] == "IS"


def test_fid_requires_ten_thousand_images_and_the_published_features():
    pool = np.random.default_rng(0).normal(size=(10_000, 2))
    reference = reference_statistics.Reference(Moments.from_features(pool[:50]), None, {})
    names = [
        sample_quality.frechet(pool[start:], published, reference)["name"]
        for start in (1, 0)
        for published in (True, False)
    ]
    assert names == ["FID_n9999", "FD_n9999", "FID", "FD"]


def test_sorted_images_have_the_errors_of_shuffled_ones(tmp_path):
    """Samples and reference from the same four clusters, sorted or in cycles."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    centers = 5 * rng.normal(size=(4, 3))
    cyclic, real = (centers[labels] + rng.normal(size=(400, 3)) for _ in range(2))
    logits = 3 * np.eye(4)[labels] + rng.normal(size=(400, 4))
    entries, path = [], tmp_path / "round_0.npz"
    for order in (np.arange(400), np.argsort(labels, kind="stable")):
        np.savez(path, pool=cyclic[order], logits=logits[order])
        moments = Moments.from_features(real[order])
        reference = reference_statistics.Reference(moments, real[order], {})
        entries.append(sample_quality.measure([path], extractor(), reference))
    for key in ("frechet", "kid", "inception_score", "precision", "recall"):
        one, other = (entry[key] for entry in entries)
        assert one["value"] == pytest.approx(other["value"], rel=1e-6)
        assert 0.5 < one["stderr"] / other["stderr"] < 2
    kid, frechet = entries[0]["kid"], entries[0]["frechet"]
    assert abs(kid["value"]) < 2 * kid["stderr"]
    assert abs(frechet["extrapolated"]) < 2 * frechet["stderr"]


# --- features ---


def test_the_classifier_of_the_digits(tmp_path, monkeypatch):
    """It is accurate on held-out digits, whose score is near the number of classes.

    It is trained once for the same images and labels.
    """
    experiment = Experiment(config(**{"eval.features": "classifier"}))
    extractor = features.make_extractor(experiment, tmp_path)
    test = features.as_samples(experiment, experiment.test.pixels)
    pool, logits = extractor.extract(test)
    assert pool.shape == (359, features.HIDDEN_UNITS)
    assert not Moments.from_features(pool).rank_deficient
    assert (logits.argmax(1) == experiment.test.labels).mean() > 0.94
    assert 7 < distances.inception_score(logits) < 10
    monkeypatch.setattr(features, "_train_classifier", None)  # A call would raise TypeError.
    again = features.make_extractor(experiment, tmp_path)
    assert (again.digest, again.label) == (extractor.digest, extractor.label)
    np.testing.assert_array_equal(again.extract(test[:5]).pool, pool[:5])
    other = dataclasses.replace(experiment.train, labels=experiment.train.labels[::-1])
    experiment.train = other
    with pytest.raises(TypeError, match="not callable"):
        features.make_extractor(experiment, tmp_path)


def test_images_in_the_format_of_samples(experiment):
    """The 17 gray levels of the digits become 0 .. 255, whatever the dequantization."""
    found = features.as_samples(experiment, np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.ravel(), np.round(np.arange(17) * 255 / 16))


def test_a_custom_extractor_with_invalid_outputs(experiment, monkeypatch):
    images = np.zeros((16, 8, 8, 1), np.uint8)
    one = images[:, 0, 0]
    nan = np.full((16, 2), np.nan)
    for outputs in (None, {"logits": one}, {"pool": one[:2]}, {"pool": images}, {"pool": nan}):
        monkeypatch.setitem(globals(), "corners", lambda images, outputs=outputs: outputs)
        extract = features.make_extractor(experiment, "").extract
        refused("corners' .* for 16 images.* must map uint8 images", extract, images)


def test_invalid_settings(tmp_path):
    """One line names the field and its value."""
    names = ("vgg", "no.module:f", ":f", "json:", "json:a:b", "json:f")
    for field, value, others in (
        *(("eval.features", name, {}) for name in names),
        ("eval.features", "classifier", {"data.dataset": "noise"}),
        ("eval.num_samples", 9, {}),
        ("eval.stats_path", "no.npz", {}),
        ("eval.stats_path", "~no_such_user/s.npz", {}),
        ("eval.stats_split", "dev", {}),
    ):
        message = refused("", measure, tmp_path / "checkpoint_1", **{field: value}, **others)
        assert f"{field} = {value!r}" in message


# --- statistics ---


def test_fid_stats(tmp_path, monkeypatch):
    """It uses all images, without dequantization; an interrupted run resumes."""
    changes = {"eval.stats_split": "test", "eval.batch_size": 64, "eval.stats_path": "~/test.npz"}
    monkeypatch.setenv("HOME", str(tmp_path))
    calls, original = [], corners

    def interrupted(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(images)

    monkeypatch.setitem(globals(), "corners", interrupted)
    (tmp_path / "test_rounds").mkdir()  # A folder of the user's stays, with what is in it.
    (tmp_path / "test_rounds" / "notes.txt").touch()
    with pytest.raises(KeyboardInterrupt):
        reference_statistics.fid_stats(config(**changes), str(tmp_path))
    path = reference_statistics.fid_stats(config(**changes), str(tmp_path))
    assert calls == [64, 64, 64, 64, 64, 64, 39]  # The fourth round is computed twice.
    experiment, arrays = Experiment(config(**changes)), dict(np.load(path))
    pool = original(features.as_samples(experiment, experiment.test.pixels))["pool"]
    for name, value in {"pool_3": pool, "mu": pool.mean(0), "sigma": np.cov(pool.T)}.items():
        np.testing.assert_allclose(arrays[name], value, rtol=1e-5)
    assert json.loads(str(arrays["protocol"]))["images"] == 359
    assert {each.name for each in tmp_path.iterdir()} == {"test.npz", "test_rounds"}
    assert [each.name for each in (tmp_path / "test_rounds").iterdir()] == ["notes.txt"]
    # An existing file is an error, before a classifier is trained.
    monkeypatch.setattr(features, "_train_classifier", None)  # A call would raise TypeError.
    again = config(**changes | {"eval.features": "classifier"})
    words = f"{tmp_path}/test.npz exists and is not overwritten"
    refused(words, reference_statistics.fid_stats, again, str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_moments_are_those_of_all_images_even_if_few_features_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_statistics, "MAX_FEATURES", 100)
    experiment = Experiment(config(**{"eval.batch_size": 64}))
    own = features.make_extractor(experiment, tmp_path)
    path = tmp_path / "few.npz"
    computed = reference_statistics.compute(experiment, own, path)
    protocol = reference_statistics.expected_protocol(experiment, own)
    pool = own.extract(features.as_samples(experiment, experiment.train.pixels)).pool
    rows = np.linspace(0, 1437, 100).round().astype(int)
    for found in (computed, reference_statistics.load(path, own, protocol)):
        assert found.protocol["images"] == 1438
        np.testing.assert_array_equal(found.pool, pool[rows])
        np.testing.assert_allclose(found.moments.covariance, np.cov(pool.T), rtol=1e-6)


def test_statistics_of_another_protocol_or_damaged(folder, monkeypatch, caplog):
    """Named ones are rejected, with the differences; those of the workdir are computed again."""
    (path,) = (folder.parent / "statistics").iterdir()

    def load(**changes):
        changed = Experiment(config(**changes))
        own = features.make_extractor(changed, folder)
        return reference_statistics.load_or_compute(changed, own, folder.parent)

    before, named = load(), {"eval.stats_path": str(path)}
    for changes, words in (
        ({"eval.stats_split": "test"}, "\n  split: 'train' in the file, 'test' in this run"),
        ({"eval.features": f"{__name__}:others"}, ":corners' in the file, "),
        ({"guidance.classes": (0, 1)}, "\n  classes: None in the file, [0, 1] in this run"),
    ):
        with pytest.raises(InputError) as caught:
            load(**named | changes)
        assert words in str(caught.value)
    read = datasets.DATASETS["digits"]

    def one_pixel(*arguments):
        images = read(*arguments)
        pixels = images.pixels.copy()
        pixels[7, 0, 0] = 16 - pixels[7, 0, 0]
        return dataclasses.replace(images, pixels=pixels)

    with monkeypatch.context() as patch:
        patch.setitem(datasets.DATASETS, "digits", one_pixel)
        with pytest.raises(InputError, match="another protocol; .*:\n  data_sha256"):
            load(**named)
    path.write_bytes(path.read_bytes()[:-700])
    refused("cannot be read as .npz", load, **named)
    np.testing.assert_array_equal(load().moments.covariance, before.moments.covariance)
    assert f"{path} cannot be read as .npz" in caplog.text
    assert "The statistics are computed again" in caplog.text


def statistics(**changes):
    """The arrays of an intact statistics file with `changes`; None removes an array."""
    pool = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    moments = Moments.from_features(pool)
    protocol = json.dumps({"extractor": "some", "images": 40})
    arrays = {"pool_3": pool, "mu": moments.mean, "sigma": moments.covariance}
    arrays |= {"protocol": np.array(protocol)} | changes
    return {name: value for name, value in arrays.items() if value is not None}


def test_statistics_of_other_code_bases(tmp_path):
    """The official code saves features, EDM and pytorch-fid moments; none states its images."""
    own, load, inception = statistics(), reference_statistics.load, extractor(published=True)
    for name, arrays, count in (("official", ["pool_3"], 40), ("edm", ["mu", "sigma"], None)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{each: own[each] for each in arrays})
        found = load(path, inception, {"classes": None})
        expected = Moments(None, own["mu"], own["sigma"])
        assert distances.frechet_distance(found.moments, expected) == pytest.approx(0, abs=1e-12)
        assert (found.protocol["images"], found.pool is not None) == (count, name == "official")
        assert found.protocol["path"] == str(path)
        refused("features of FID's Inception network", load, path, extractor(), {})
        # They are compared with samples of all classes equally often, and with no others.
        words = "does not state the classes of its images"
        refused(words, load, path, inception, {"classes": [0, 1]})
    # Moments suffice for a Frechet distance and an inception score.
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", pool=rng.normal(size=(40, 3)), logits=rng.normal(size=(40, 4)))
    entry = sample_quality.measure([tmp_path / "a.npz"], inception, found)
    names = [row.name.split(" (")[0] for row in sample_quality.measures(entry)]
    assert names == ["FID_n40", "IS"]


def test_damaged_statistics(tmp_path):
    path, inception = tmp_path / "a.npz", extractor(published=True)
    np.savez(path, **statistics())
    assert reference_statistics.load(path, inception, {}).protocol["images"] == 40
    for changes in (
        {"mu": np.full(3, np.nan)},
        {"pool_3": np.full((40, 3), np.inf)},
        {"sigma": np.array(["text"])},
        {"sigma": np.diag([1.0, 1.0, -1.0])},
        {"sigma": np.eye(3) + np.eye(3, k=1)},
        {"sigma": np.eye(4)},
        {"mu": np.zeros(4)},
        {"mu": np.zeros((3, 1))},
        {"mu": np.zeros(())},
        {"pool_3": np.zeros((40, 2))},
        {"pool_3": np.zeros((0, 3))},
        {"pool_3": np.zeros(3), "mu": None, "sigma": None},
        {"pool_3": None, "mu": None, "sigma": None},
        {"mu": None},
        *({"protocol": np.array(each)} for each in ("{", "[" * 10**5, "[]", "{}")),
        {"protocol": np.zeros(3)},
        {"protocol": np.array('{"extractor": "a", "images": "x"}')},
    ):
        np.savez(path, **statistics(**changes))
        problem = (
            "(is damaged|cannot be read .its protocol)"
            if "protocol" in changes
            else "holds no statistics: it"
        )
        words = f"a.npz {problem}.*compute it with --mode=fid_stats"
        refused(words, reference_statistics.load, path, inception, {})


# --- samples of some classes ---


def test_samples_of_some_classes_are_compared_with_images_of_these(folder, experiment):
    """The images have the requested proportions; the file's name and protocol state the classes."""
    entry = measure(folder, **{"guidance.classes": (1, 0, 0, 1, 0, 0)})  # Two thirds: class 0.
    labels = experiment.train.labels
    zeros, ones = (np.flatnonzero(labels == each) for each in (0, 1))
    cycles = min(len(zeros) // 2, len(ones))
    reference = entry["reference"]
    assert (reference["images"], reference["classes"]) == (3 * cycles, [0, 0, 1])
    # Without guidance another file is used, and neither takes the place of the other.
    paths = list((folder.parent / "statistics").iterdir())
    (path,) = (path for path in paths if "_train_classes_0-0-1_" in path.name)
    assert len(paths) == 2
    spaced = [
        found[np.linspace(0, len(found) - 1, count).round().astype(int)]
        for found, count in ((zeros, 2 * cycles), (ones, cycles))
    ]
    images = features.as_samples(experiment, experiment.train.pixels[np.concatenate(spaced)])
    pool, arrays = corners(images)["pool"].astype(np.float32), np.load(path)
    np.testing.assert_allclose(arrays["mu"], pool.mean(0), rtol=1e-6)
    np.testing.assert_allclose(arrays["sigma"], np.cov(pool.T), rtol=1e-5)
    note = sample_quality.measures(entry)[0].note
    assert f"against {3 * cycles} digits train of the requested classes; " in note


def test_requests_for_all_classes_equally_often(monkeypatch):
    """All images are used if they are balanced, which is assumed of images without labels."""
    for labels, expected in (
        (np.arange(40) % 2, ()),  # The requested proportions: all images, as without guidance.
        (np.arange(40) % 3 % 2, (0, 1)),
        (np.arange(40) % 4, (0, 1)),
        (None, ()),
    ):
        images = datasets.Images(np.zeros((40, 8, 8, 1), np.uint8), labels)
        monkeypatch.setitem(datasets.DATASETS, "digits", lambda *_, images=images: images)
        changes = {"guidance.classes": (1, 0), "classifier.num_classes": 2}
        found = reference_statistics.reference_classes(Experiment(config(**changes)))
        assert found == expected


def test_without_images_of_the_classes_there_are_no_metrics(folder):
    for dataset, problem in (
        ("noise", "guidance.classes needs images with labels; those of data.datas"),
        ("black_and_white", "data.dataset has only 4 images of guidance.classes"),
    ):
        refused(problem, measure, folder, **{"data.dataset": dataset, "guidance.classes": (3, 1)})
