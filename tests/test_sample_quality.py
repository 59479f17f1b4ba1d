"""Metrics of samples on disk: restarts, statistics files of all formats, and custom features."""

import dataclasses
import json

import numpy as np
import pytest

import datasets
from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics, sample_quality, statistics_files
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.splits import NoReferenceError
from metrics.stage import Context
from readers.files import read_npz
from runs import round_paths, save_arrays
from tests import tiny

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


@pytest.fixture
def folder(tmp_path):
    """Rounds of samples, as evaluation writes them; the samples are held-out digits."""
    experiment = Experiment(config())
    images = features.as_samples(experiment, experiment.test.pixels[:SAMPLES])
    (tmp_path / "checkpoint_1").mkdir()
    for index, path in enumerate(round_paths(tmp_path / "checkpoint_1", "samples", 4)):
        np.savez(path, samples=images[16 * index : 16 * (index + 1)])
    return tmp_path / "checkpoint_1"


def measure(folder, **changes):
    experiment = Experiment(config(**changes))
    sample_quality.check(experiment)
    prepared = sample_quality.prepare(experiment, folder.parent)
    return sample_quality.run(Context(experiment, {}, folder, prepared))


def unused_extractor(*, published):
    """An extractor whose function is not called."""
    return Extractor("some", "0" * 64, "", lambda images: None, published)


# --- the metrics ---


def test_metrics_equal_those_of_all_features(folder):
    """Features are computed in rounds; the metrics are those of all features at once."""
    entry = measure(folder)
    experiment = Experiment(config())
    pools = []
    for images in (experiment.train.pixels, experiment.test.pixels[:SAMPLES]):
        pixels = features.as_samples(experiment, images)[:, 2:6:3, 2:6:3].reshape(-1, 4)
        pools.append(pixels.astype(np.float32) / np.float32(255))
    real, generated = pools
    distance = distances.frechet_distance(*map(Moments.from_features, pools))
    # Errors come from groups of shuffled images.
    generated = generated[np.random.default_rng(0).permutation(50)]
    real = np.random.default_rng(1).permutation(real)
    without = []
    for group in range(10):
        rest = np.delete(generated, np.s_[group::10], 0)
        without.append(distances.frechet_distance(*map(Moments.from_features, (rest, real))))
    jackknife = distances.jackknife(distance, without)
    frechet, expected = entry["frechet"], (distance, jackknife.stderr, jackknife.extrapolated)
    found = tuple(frechet[name] for name in ("value", "stderr", "extrapolated"))
    assert found == pytest.approx(expected, rel=1e-4)
    kid = distances.kernel_distance(real, generated)
    others = {"kid": kid, **distances.precision_recall(real, generated)._asdict()}
    for name, estimate in others.items():
        found = (entry[name]["value"], entry[name]["stderr"])
        assert found == pytest.approx(tuple(estimate), rel=1e-4)
    assert entry["precision"]["value"] != entry["recall"]["value"]
    assert entry["inception_score"] is None  # There are no logits.
    assert entry["reference"]["images"] == 1438
    assert entry["rounding"] == "nearest"
    json.dumps(entry, allow_nan=False)
    rows = sample_quality.measures(entry)
    label = f"({entry['features']}, n = 50)"
    assert [(row.name, row.value) for row in rows] == [
        (f"{name} {label}", entry[key]["value"])
        for name, key in zip(
            ("FD_n50", "KID", "precision", "recall"), ("frechet", "kid", "precision", "recall")
        )
    ]
    assert rows[0].note.startswith("against 1438 digits train; ")
    assert rows[1].note == "all pairs of 50 and 1438 images"


def entropy(counts):
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


def test_error_of_the_inception_score():
    """The jackknife leaves out one of ten groups; the score of certain labels is exp(entropy)."""
    labels = np.random.default_rng(0).integers(0, 4, 40) ** 2 // 3
    found = sample_quality.inception_score(1e4 * np.eye(4)[labels], published=True)
    counts = np.bincount(labels, minlength=4)
    assert found["value"] == pytest.approx(np.exp(entropy(counts)))
    rest = [counts - np.bincount(labels[group::10], minlength=4) for group in range(10)]
    without = np.exp([entropy(each) for each in rest])
    stderr = np.sqrt(0.9 * np.square(without - without.mean()).sum())
    assert found["stderr"] == pytest.approx(stderr)
    assert found["name"] == "IS"


def test_a_restart_computes_only_missing_rounds(folder, monkeypatch):
    before = measure(folder)
    (folder / f"features_{before['features']}_2.npz").unlink()
    sizes = []

    def recording(images):
        sizes.append(len(images))
        return original(images)

    original = corners
    monkeypatch.setitem(globals(), "corners", recording)
    assert measure(folder) == before
    assert sizes == [16]


@pytest.mark.parametrize(
    ("count", "published", "name"),
    [
        (9_999, True, "FID_n9999"),
        (9_999, False, "FD_n9999"),
        (10_000, True, "FID"),
        (10_000, False, "FD"),
    ],
)
def test_fid_requires_ten_thousand_images_and_the_published_features(count, published, name):
    pool = np.random.default_rng(0).normal(size=(count, 2))
    reference = statistics_files.Reference(Moments.from_features(pool[:50]), None, {})
    assert sample_quality.frechet(pool, published, reference)["name"] == name


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
        reference = statistics_files.Reference(moments, real[order], {})
        extractor = unused_extractor(published=False)
        entries.append(sample_quality.measure([path], extractor, reference))
    for key in ("frechet", "kid", "inception_score", "precision", "recall"):
        one, other = (entry[key] for entry in entries)
        assert one["value"] == pytest.approx(other["value"], rel=1e-6)
        assert 0.5 < one["stderr"] / other["stderr"] < 2
    kid, frechet = entries[0]["kid"], entries[0]["frechet"]
    assert abs(kid["value"]) < 2 * kid["stderr"]
    assert abs(frechet["extrapolated"]) < 2 * frechet["stderr"]


# --- features ---


def test_the_classifier_of_the_digits(tmp_path, monkeypatch):
    """It is accurate on held-out digits, which give an inception score near the number of classes.

    It is trained once.
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
    # Other labels or images need another classifier.
    train = features.as_samples(experiment, experiment.train.pixels)
    labels = experiment.train.labels
    for images, classes in ((train, labels[::-1]), (train[::-1], labels)):
        with pytest.raises(TypeError, match="not callable"):
            features._load_or_train_classifier(images, classes, tmp_path)


def rewrite(path, **changes):
    """Change arrays of a file, whose description still fits."""
    arrays = read_npz(path)
    depends = json.loads(str(arrays.pop("depends")))
    del arrays["arrays"]
    save_arrays(path, arrays | changes, depends)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, kernel0=np.ones(3)),
        lambda path: rewrite(path, kernel1=np.ones((3, 1))),
    ],
)
def test_a_damaged_classifier_is_trained_again(tmp_path, monkeypatch, damage, caplog):
    images, labels = np.zeros((20, 2, 2, 1), np.uint8), np.arange(20) % 2
    options = features.CLASSIFIER_OPTIONS | {"max_iter": 1}
    monkeypatch.setattr(features, "CLASSIFIER_OPTIONS", options)
    before = features._load_or_train_classifier(images, labels, tmp_path)
    (path,) = (tmp_path / "statistics").iterdir()
    damage(path)
    after = features._load_or_train_classifier(images, labels, tmp_path)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert f"{path} is damaged; the classifier is trained again" in caplog.text


def test_images_in_the_format_of_samples():
    """The 17 grey levels of the digits become 0 .. 255, whatever the dequantization."""
    levels = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1)
    found = features.as_samples(Experiment(config()), levels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.ravel(), np.round(np.arange(17) * 255 / 16))


@pytest.mark.parametrize(
    "invalid",
    [
        lambda images: None,
        lambda images: {"logits": images[:, 0, 0]},
        lambda images: {"pool": images[:2, 0, 0]},
        lambda images: {"pool": images},
        lambda images: {"pool": np.full((16, 2), np.nan)},
        lambda images: {"pool": images[:, 0, 0], "other": images[:, 0, 0]},
    ],
)
def test_a_custom_extractor_with_invalid_outputs(folder, monkeypatch, invalid):
    monkeypatch.setitem(globals(), "corners", invalid)
    with pytest.raises(InputError, match="corners' .* for 16 images.* must map uint8 images"):
        measure(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"eval.features": "vgg"},
        {"eval.features": "no.module:f"},
        {"eval.features": "tests/x.py:f"},
        {"eval.features": ":f"},
        {"eval.features": "json:"},
        {"eval.features": "json:a:b"},
        {"eval.features": "json:dumps()"},
        {"eval.features": "json:f"},
        {"data.dataset": "noise", "eval.features": "classifier"},
        {"eval.num_samples": 9},
        {"eval.stats_path": "no.npz"},
        {"eval.stats_path": "~no_such_user/s.npz"},
        {"eval.stats_split": "dev"},
    ],
)
def test_invalid_settings(tmp_path, changes):
    """One line names the field and its value."""
    (field, value) = list(changes.items())[-1]
    with pytest.raises(InputError) as caught:
        measure(tmp_path / "checkpoint_1", **changes)
    assert f"{field} = {value!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


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
    with np.load(path) as file:
        arrays = dict(file)
    experiment = Experiment(config(**changes))
    images = features.as_samples(experiment, experiment.test.pixels)
    pool = images[:, 2:6:3, 2:6:3].reshape(359, 4) / 255
    np.testing.assert_allclose(arrays["pool_3"], pool, rtol=1e-6)
    np.testing.assert_allclose(arrays["mu"], pool.mean(0), rtol=1e-6)
    np.testing.assert_allclose(arrays["sigma"], np.cov(pool.T), rtol=1e-5)
    assert json.loads(str(arrays["protocol"]))["images"] == 359
    assert {each.name for each in tmp_path.iterdir()} == {"test.npz", "test_rounds"}
    assert [each.name for each in (tmp_path / "test_rounds").iterdir()] == ["notes.txt"]
    # An existing file is an error, before a classifier is trained.
    monkeypatch.setattr(features, "_train_classifier", None)  # A call would raise TypeError.
    changes["eval.features"] = "classifier"
    with pytest.raises(InputError, match=f"{tmp_path}/test.npz exists and is not overwritten"):
        reference_statistics.fid_stats(config(**changes), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_moments_are_those_of_all_images_even_if_few_features_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_statistics, "MAX_FEATURES", 100)
    experiment = Experiment(config(**{"eval.batch_size": 64}))
    extractor = features.make_extractor(experiment, tmp_path)
    path = tmp_path / "few.npz"
    computed = reference_statistics.compute(experiment, extractor, path)
    protocol = reference_statistics.expected_protocol(experiment, extractor)
    pool = extractor.extract(features.as_samples(experiment, experiment.train.pixels)).pool
    for found in (computed, load(path, extractor, protocol)):
        assert (len(found.pool), found.protocol["images"]) == (100, 1438)
        np.testing.assert_allclose(found.moments.covariance, np.cov(pool.T), rtol=1e-6)


def test_statistics_of_another_protocol_or_damaged(folder, monkeypatch, caplog):
    """Named ones are rejected, with the differences; those of the workdir are computed again."""
    before = measure(folder)
    (path,) = (folder.parent / "statistics").iterdir()
    named = {"eval.stats_path": str(path)}
    for changes, words in (
        ({"eval.stats_split": "test"}, "\n  split: 'train' in the file, 'test' in this run"),
        ({"eval.features": f"{__name__}:others"}, ":corners' in the file, "),
        ({"guidance.classes": (0, 1)}, "\n  classes: None in the file, [0, 1] in this run"),
    ):
        with pytest.raises(InputError) as caught:
            measure(folder, **named | changes)
        assert words in str(caught.value)
    read = datasets.DATASETS["digits"]

    def one_pixel(split, config):
        images = read(split, config)
        pixels = images.pixels.copy()
        pixels[7, 0, 0] = 16 - pixels[7, 0, 0]
        return dataclasses.replace(images, pixels=pixels)

    def one_fewer(split, config):
        images = read(split, config)
        return dataclasses.replace(images, pixels=images.pixels[:-1], labels=images.labels[:-1])

    for change, field in ((one_pixel, "data_sha256"), (one_fewer, "images")):
        monkeypatch.setitem(datasets.DATASETS, "digits", change)
        with pytest.raises(InputError, match=f"another protocol; .*:\n  {field}"):
            measure(folder, **named)
    assert measure(folder)["reference"]["images"] == 1437
    assert "The statistics are computed again" in caplog.text
    monkeypatch.setitem(datasets.DATASETS, "digits", read)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match="cannot be read as .npz"):
        measure(folder, **named)
    assert measure(folder) == before
    assert f"{path} cannot be read as .npz" in caplog.text


def load(path, extractor, protocol):
    return statistics_files.load(path, extractor, protocol)


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
    own = statistics(protocol=None)
    inception, other = (unused_extractor(published=published) for published in (True, False))
    for name, removed, count in (("official", ("mu", "sigma"), 40), ("edm", ("pool_3",), None)):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{each: own[each] for each in own.keys() - set(removed)})
        found = load(path, inception, {"classes": None})
        expected = Moments(None, own["mu"], own["sigma"])
        assert distances.frechet_distance(found.moments, expected) == pytest.approx(0, abs=1e-12)
        assert (found.protocol["images"], found.pool is not None) == (count, name == "official")
        assert found.protocol["path"] == str(path)
        with pytest.raises(InputError, match="features of FID's Inception network"):
            load(path, other, {})
        # They are compared with samples of all classes equally often, and with no others.
        with pytest.raises(NoReferenceError, match="does not state the classes of its images"):
            load(path, inception, {"classes": [0, 1]})
    # Moments suffice for a Frechet distance and an inception score.
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", pool=rng.normal(size=(40, 3)), logits=rng.normal(size=(40, 4)))
    entry = sample_quality.measure([tmp_path / "a.npz"], inception, found)
    names = [row.name.split(" (")[0] for row in sample_quality.measures(entry)]
    assert names == ["FID_n40", "IS"]


@pytest.mark.parametrize(
    "changes",
    [
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
        {"protocol": np.array("{")},
        {"protocol": np.array("[" * 10**5)},
        {"protocol": np.zeros(3)},
        {"protocol": np.array("[]")},
        {"protocol": np.array("{}")},
        {"protocol": np.array('{"extractor": "a", "images": "x"}')},
    ],
)
def test_damaged_statistics(tmp_path, changes):
    path = tmp_path / "a.npz"
    np.savez(path, **statistics())
    assert load(path, unused_extractor(published=True), {}).protocol["images"] == 40
    np.savez(path, **statistics(**changes))
    problem = "is damaged: " if "protocol" in changes else "holds no statistics: it"
    with pytest.raises(InputError, match=f"a.npz {problem}.*compute it with --mode=fid_stats") as e:
        load(path, unused_extractor(published=True), {})
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="a pickle, which could execute arbitrary code"):
        load(tmp_path / "edm2.pkl", unused_extractor(published=True), {})


# --- samples of some classes ---


def test_samples_of_some_classes_are_compared_with_images_of_these(folder):
    """The images have the requested proportions; the file's name and protocol state the classes."""
    entry = measure(folder, **{"guidance.classes": (1, 0, 0, 1, 0, 0)})  # Two thirds: class 0.
    experiment = Experiment(config())
    labels = experiment.train.labels
    zeros, ones = (np.flatnonzero(labels == each) for each in (0, 1))
    cycles = min(len(zeros) // 2, len(ones))
    reference = entry["reference"]
    assert (reference["images"], reference["classes"]) == (3 * cycles, [0, 0, 1])
    (path,) = (folder.parent / "statistics").iterdir()
    assert "_train_classes_0-0-1_" in path.name
    spaced = [
        found[np.linspace(0, len(found) - 1, count).round().astype(int)]
        for found, count in ((zeros, 2 * cycles), (ones, cycles))
    ]
    images = features.as_samples(experiment, experiment.train.pixels[np.concatenate(spaced)])
    pool = corners(images)["pool"].astype(np.float32)
    with np.load(path) as file:
        np.testing.assert_allclose(file["mu"], pool.mean(0), rtol=1e-6)
        np.testing.assert_allclose(file["sigma"], np.cov(pool.T), rtol=1e-5)
    note = sample_quality.measures(entry)[0].note
    assert f"against {3 * cycles} digits train of the classes 0, 0, 1; " in note
    # Without guidance another file is used, and neither takes the place of the other.
    assert measure(folder)["reference"]["images"] == 1438
    assert len(list((folder.parent / "statistics").iterdir())) == 2


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.arange(40) % 2, ()),  # The requested proportions: all images, as without guidance.
        (np.arange(40) % 4 // 2, ()),
        (np.arange(40) % 3 % 2, (0, 1)),
        (np.arange(40) % 4, (0, 1)),
        (None, ()),
    ],
)
def test_requests_for_all_classes_equally_often(monkeypatch, labels, expected):
    """All images are used if they are balanced, which is assumed of images without labels."""
    images = datasets.Images(np.zeros((40, 8, 8, 1), np.uint8), labels)
    monkeypatch.setitem(datasets.DATASETS, "digits", lambda split, config: images)
    changes = {"guidance.classes": (1, 0), "classifier.num_classes": 2}
    experiment = Experiment(config(**changes))
    assert reference_statistics.reference_classes(experiment) == expected


def test_many_classes_have_a_short_name():
    names = set()
    for repeats in (2, 3):
        classes = tuple(range(10)) * repeats + (9,)
        experiment = Experiment(config(**{"guidance.classes": classes}))
        extractor = unused_extractor(published=False)
        names.add(reference_statistics.statistics_path(experiment, extractor, "").stem)
        protocol = reference_statistics.expected_protocol(experiment, extractor)
        text = sample_quality.describe(protocol | {"images": 99})
        assert text == "99 digits train of the requested classes"
    assert len(names) == 2
    assert max(map(len, names)) < 60


@pytest.mark.parametrize(
    ("dataset", "problem"),
    [
        ("noise", "guidance.classes needs images with labels; those of data.datas"),
        ("black_and_white", "guidance.classes requests classes of which data.dataset has only 4"),
    ],
)
def test_without_images_of_the_classes_there_is_no_distance(folder, dataset, problem):
    """One line states why; the class score needs no reference."""
    entry = measure(folder, **{"data.dataset": dataset, "guidance.classes": (3, 1)})
    json.dumps(entry, allow_nan=False)
    (row,) = sample_quality.measures(entry)
    assert row.value is None
    assert row.note.startswith(f"no distance: {problem}")
