"""Metrics of samples on disk: restarts, statistics files of all formats, and custom features."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest

import datasets
import progress
from errors import InputError
from experiment import Experiment
from metrics import (
    distances,
    features,
    reference_statistics,
    sample_quality_stage,
    statistics_files,
)
from metrics.distances import Moments
from metrics.features import Extractor, Features
from metrics.splits import NoReferenceError
from metrics.stage import Context
from metrics.statistics_files import load
from readers.files import mismatch
from report import measures
from runs import files, round_paths, rounds
from tests import tiny

SAMPLES = 50


def corners(images):
    """Features for these tests: four pixels that are not constant."""
    return {"pool": images[:, 2:6:3, 2:6:3].reshape(len(images), -1) / 255}


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


def prepare(workdir, **changes):
    experiment = Experiment(config(**changes))
    sample_quality_stage.check(experiment)
    return experiment, sample_quality_stage.prepare(experiment, workdir)


def unused_extractor(*, published):
    """An extractor whose function is not called."""
    return Extractor("some", "0" * 64, "", lambda images: None, published)


def measure(folder, **changes):
    experiment, prepared = prepare(folder.parent, **changes)
    return sample_quality_stage.run(Context(experiment, {}, folder, prepared=prepared))


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
    assert entry["frechet"]["value"] == pytest.approx(distance, rel=1e-6)
    assert entry["frechet"]["name"] == "FD_n50"
    # Errors come from groups of shuffled images.
    generated = generated[np.random.default_rng(0).permutation(50)]
    real = np.random.default_rng(1).permutation(real)
    without = []
    for group in range(10):
        rest = np.delete(generated, np.s_[group::10], 0)
        moments = map(Moments.from_features, (rest, real))
        without.append(distances.frechet_distance(*moments))
    jackknife = distances.jackknife(distance, without)
    assert entry["frechet"]["stderr"] == pytest.approx(jackknife.stderr, rel=1e-4)
    assert entry["frechet"]["extrapolated"] == pytest.approx(jackknife.extrapolated, rel=1e-4)
    kid = distances.kernel_distance(real, generated)
    assert entry["kid"]["value"] == pytest.approx(kid.value, rel=1e-5)
    assert entry["kid"]["stderr"] == pytest.approx(kid.stderr, rel=1e-4)
    assert entry["kid"]["pairs"] == [50, 1438]
    for name, expected in distances.precision_recall(real, generated)._asdict().items():
        assert entry[name]["value"] == pytest.approx(expected.value)
        assert entry[name]["stderr"] == pytest.approx(expected.stderr)
    assert entry["precision"]["value"] != entry["recall"]["value"]
    assert entry["inception_score"] is None  # There are no logits.
    assert entry["reference"]["images"] == 1438
    json.dumps(entry, allow_nan=False)


def entropy(counts):
    shares = counts[counts > 0] / counts.sum()
    return -(shares * np.log(shares)).sum()


def test_error_of_the_inception_score():
    """The jackknife leaves out one of ten groups; the score of certain labels is exp(entropy)."""
    labels = np.random.default_rng(0).integers(0, 4, 40) ** 2 // 3
    logits = 1e4 * np.eye(4)[labels]
    reference = statistics_files.Reference(Moments.from_features(np.ones((3, 2))), None, {})
    extractor = unused_extractor(published=True)
    sets = sample_quality_stage.FeatureSets(np.ones((40, 2)), logits, extractor, None, reference)
    found = sample_quality_stage.inception_score(sets)
    counts = np.bincount(labels, minlength=4)
    assert found["value"] == pytest.approx(np.exp(entropy(counts)))
    without = np.array(
        [np.exp(entropy(counts - np.bincount(labels[g::10], minlength=4))) for g in range(10)]
    )
    stderr = np.sqrt(0.9 * np.square(without - without.mean()).sum())
    assert found["stderr"] == pytest.approx(stderr)
    assert found["name"] == "IS"
    shuffled = sample_quality_stage.FeatureSets.shuffled(
        labels[:, None], logits, extractor, reference
    )
    np.testing.assert_array_equal(shuffled.logits.argmax(1), shuffled.pool[:, 0])
    assert (shuffled.pool[:, 0] != labels).any()


@pytest.mark.parametrize(("legacy", "rounding"), [(True, "truncated"), (False, "nearest")])
def test_the_rounding_of_samples_is_stated(folder, legacy, rounding):
    assert measure(folder, **{"eval.legacy_rounding": legacy})["rounding"] == rounding


def test_table_and_report(folder):
    entry = measure(folder)
    cells = sample_quality_stage.cells(entry)
    titles = ["images", "FD_n50", "KID", "class. score", "precision", "recall"]
    assert [cell.title for cell in cells] == titles
    assert (cells[0].text, cells[3].text) == ("50", "-")
    assert cells[2].text == f"{entry['kid']['value']:.4f} +- {entry['kid']['stderr']:.4f}"
    (note,) = sample_quality_stage.notes([entry])
    assert f"features: {entry['features']}, against 1438 digits train in " in note
    rows = sample_quality_stage.measures(entry)
    assert [row.value for row in rows] == [
        entry[key]["value"] for key in ("frechet", "kid", "precision", "recall")
    ]
    assert rows[0].name == f"FD_n50 ({entry['features']}, n = 50)"
    assert rows[0].note.startswith("against 1438 digits train; ")
    assert rows[1].note == "all pairs of 50 and 1438 images"


def test_a_restart_computes_only_missing_rounds(folder, monkeypatch):
    before = measure(folder)
    (label,) = {path.name.rsplit("_", 1)[0] for path in folder.glob("features_*")}
    (folder / f"{label}_2.npz").unlink()
    loaded, original = [], files.read_npz

    def recording_read(path, *names):
        loaded.append(path.stem)
        return original(path, *names)

    for module in (files, rounds):
        monkeypatch.setattr(module, "read_npz", recording_read)
    assert measure(folder) == before
    assert [name for name in loaded if name.startswith("samples")] == ["samples_2"]


def test_fid_requires_ten_thousand_images_and_the_published_features():
    rng = np.random.default_rng(0)
    moments = Moments.from_features(rng.normal(size=(50, 2)))
    reference = statistics_files.Reference(moments, None, {})
    names = {}
    for count in (9_999, 10_000):
        for published in (True, False):
            pool, extractor = rng.normal(size=(count, 2)), unused_extractor(published=published)
            sets = sample_quality_stage.FeatureSets.shuffled(pool, None, extractor, reference)
            names[count, published] = sample_quality_stage.frechet(sets)["name"]
    assert names == {
        (9_999, True): "FID_n9999",
        (9_999, False): "FD_n9999",
        (10_000, True): "FID",
        (10_000, False): "FD",
    }


def test_sorted_images_have_the_errors_of_shuffled_ones(tmp_path):
    """Samples and reference from the same four clusters, sorted or in cycles."""
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    centers = 5 * rng.normal(size=(4, 3))
    cyclic, real = (centers[labels] + rng.normal(size=(400, 3)) for _ in range(2))
    logits = 3 * np.eye(4)[labels] + rng.normal(size=(400, 4))
    entries = []
    order = np.argsort(labels, kind="stable")
    for samples, references in ((cyclic, real), (cyclic[order], real[order])):
        reference = statistics_files.Reference(
            Moments.from_features(references), references, {"path": ""}
        )
        path = tmp_path / "round_0.npz"
        np.savez(path, pool=samples, logits=logits if samples is cyclic else logits[order])
        extractor = unused_extractor(published=False)
        entries.append(sample_quality_stage.measure([path], extractor, reference))
    for key in ("frechet", "kid", "inception_score", "precision", "recall"):
        one, other = (entry[key] for entry in entries)
        assert one["value"] == pytest.approx(other["value"], rel=1e-6)
        assert 0.5 < one["stderr"] / other["stderr"] < 2
    kid = entries[0]["kid"]
    assert abs(kid["value"]) < 2 * kid["stderr"]
    assert abs(entries[0]["frechet"]["extrapolated"]) < 2 * entries[0]["frechet"]["stderr"]


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


def test_images_in_the_format_of_samples():
    """The 17 grey levels of the digits become 0 .. 255, whatever the dequantization."""
    levels = np.arange(17, dtype=np.uint8).reshape(1, 17, 1, 1)
    found = features.as_samples(Experiment(config()), levels)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found.ravel(), np.round(np.arange(17) * 255 / 16))


# --- statistics ---


def test_fid_stats(tmp_path, monkeypatch):
    """It uses all images, without dequantization; an interrupted run resumes."""
    changes = {
        "eval.stats_split": "test",
        "eval.stats_path": str(tmp_path / "test.npz"),
        "eval.batch_size": 64,
    }
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
    with pytest.raises(InputError, match="exists and is not overwritten"):
        reference_statistics.fid_stats(config(**changes), str(tmp_path))


def test_existing_statistics_are_noticed_before_a_classifier_is_trained(tmp_path, monkeypatch):
    """The path may be below the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(features, "_train_classifier", None)  # A call would raise TypeError.
    (tmp_path / "s.npz").touch()
    changes = {"eval.features": "classifier", "eval.stats_path": "~/s.npz"}
    with pytest.raises(InputError, match=f"{tmp_path}/s.npz exists and is not overwritten"):
        reference_statistics.fid_stats(config(**changes), str(tmp_path / "w"))
    changes["eval.stats_path"] = "~no_such_user/s.npz"
    with pytest.raises(InputError, match="eval.stats_path = '~no_such_user/s.npz': the home"):
        reference_statistics.fid_stats(config(**changes), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_statistics_below_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    experiment = Experiment(config(**{"eval.stats_path": "~/s.npz"}))
    extractor = unused_extractor(published=False)
    path = reference_statistics.statistics_path(experiment, extractor, tmp_path / "w")
    assert path == tmp_path / "s.npz"


@pytest.fixture
def announced(monkeypatch):
    """The texts of blocks that may take long."""
    texts = []

    @contextlib.contextmanager
    def waiting(text):
        texts.append(text)
        yield

    monkeypatch.setattr(progress, "waiting", waiting)
    return texts


def test_the_training_of_the_classifier_is_announced(tmp_path, monkeypatch, announced):
    def train(images, labels):
        assert announced[-1] == "training the classifier of eval.features"
        return {name: np.zeros((1, 1)) for name in ("kernel0", "bias0", "kernel1", "bias1")}

    monkeypatch.setattr(features, "_train_classifier", train)
    features.make_extractor(Experiment(config(**{"eval.features": "classifier"})), tmp_path)
    assert "reading the training images for the classifier of eval.features" in announced


def test_long_computations_are_announced(folder, announced):
    measure(folder)
    assert "reading the reference images for their checksum" in announced
    metrics = [text for text in announced if text.startswith("computing the metric ")]
    assert [text.split()[-1] for text in metrics] == [
        metric.key for metric in sample_quality_stage.METRICS
    ]


def test_moments_are_those_of_all_images_even_if_few_features_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_statistics, "MAX_FEATURES", 100)
    experiment = Experiment(config(**{"eval.batch_size": 64}))
    extractor = features.make_extractor(experiment, tmp_path)
    path = tmp_path / "few.npz"
    computed = reference_statistics.compute(experiment, extractor, path)
    protocol = reference_statistics.expected_protocol(experiment, extractor)
    loaded = load(path, extractor, protocol)
    for found in (computed, loaded):
        assert (len(found.pool), found.moments.count) == (100, 1438)
    images = features.as_samples(experiment, experiment.train.pixels)
    pool = extractor.extract(images).pool
    np.testing.assert_allclose(loaded.moments.covariance, np.cov(pool.T), rtol=1e-6)


def test_statistics_of_another_protocol_are_rejected(folder, tmp_path):
    measure(folder)
    (path,) = (folder.parent / "statistics").iterdir()
    message = r"another protocol; .*:\n  split: 'train' in the file, 'test' in this run"
    with pytest.raises(InputError, match=message):
        measure(folder, **{"eval.stats_path": str(path), "eval.stats_split": "test"})
    message = r":\n  extractor: '\S*:corners' in the file, 'classifier' in this run\n  digest"
    with pytest.raises(InputError, match=message):
        measure(folder, **{"eval.stats_path": str(path), "eval.features": "classifier"})
    experiment = Experiment(config())
    extractor = features.make_extractor(experiment, tmp_path)
    protocol = reference_statistics.expected_protocol(experiment, extractor) | {"image_size": 32}
    with pytest.raises(InputError, match=r":\n  image_size: 8 in the file, 32 in this run"):
        load(path, extractor, protocol)


def split_config(*classes, **changes):
    return config(**{"guidance.classes": classes} | changes)


def test_samples_of_some_classes_are_compared_with_images_of_these(folder):
    """The images have the requested proportions; the file's name and protocol state the classes."""
    fields = {"guidance.classes": (1, 0, 0, 1, 0, 0)}  # Two thirds are of class 0.
    entry = measure(folder, **fields)
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
    note = sample_quality_stage.notes([entry])[0]
    assert f"against {3 * cycles} digits train of the classes 0, 0, 1 in " in note
    # Without guidance another file is used, and neither takes the place of the other.
    assert measure(folder)["reference"]["images"] == 1438
    assert len(list((folder.parent / "statistics").iterdir())) == 2
    for changes, found in ((fields, "None"), ({}, r"\[0, 0, 1\]")):
        other = (
            path if not changes else next(each for each in path.parent.iterdir() if each != path)
        )
        with pytest.raises(InputError, match=f"another protocol; .*:\n  classes: {found} in the"):
            measure(folder, **changes | {"eval.stats_path": str(other)})


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
    experiment = Experiment(split_config(1, 0, **{"classifier.num_classes": 2}))
    assert reference_statistics.reference_classes(experiment) == expected


def test_many_classes_have_a_short_name():
    names = []
    for classes in (tuple(range(10)) * 2 + (9,), tuple(range(10)) * 3 + (9,)):
        experiment = Experiment(split_config(*classes))
        extractor = unused_extractor(published=False)
        names.append(reference_statistics._name(experiment, extractor))
        protocol = reference_statistics.expected_protocol(experiment, extractor)
        entry = {"reference": protocol | {"images": 99}}
        text = sample_quality_stage.reference_images(entry)
        assert text == "99 digits train of the requested classes"
    assert len(set(names)) == 2
    assert max(map(len, names)) < 60


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"data.dataset": "noise"},
            "guidance.classes needs images with labels; those of data.datas",
        ),
        (
            {"data.dataset": "black_and_white"},
            "guidance.classes requests classes of which data.dataset has only 4 images in",
        ),
    ],
)
def test_without_images_of_the_classes_there_is_no_distance(folder, changes, problem):
    """One line states why; the class score needs no reference."""
    entry = measure(folder, **changes | {"guidance.classes": (3, 1)})
    json.dumps(entry, allow_nan=False)
    cells = sample_quality_stage.cells(entry)
    assert [cell.text for cell in cells] == ["50", *["-"] * 5]
    (note,) = sample_quality_stage.notes([entry])
    assert f"no distance: {problem}" in note
    assert sample_quality_stage.measures(entry) == []
    assert not mismatch(entry, measures.RESULTS["metrics?"])


def test_published_statistics_have_no_classes(tmp_path):
    """They are compared with samples of all classes equally often, and with no others."""
    pool = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    np.savez(tmp_path / "official.npz", pool_3=pool)
    published = unused_extractor(published=True)
    with pytest.raises(NoReferenceError, match="official.npz does not state the classes of its"):
        load(tmp_path / "official.npz", published, {"classes": [0, 1]})
    assert load(tmp_path / "official.npz", published, {"classes": None}).moments.count == 40


def test_statistics_of_other_images_are_rejected(folder, monkeypatch):
    """The config is the same; one pixel of one image has another value, or one image is missing."""
    measure(folder)
    read = datasets.DATASETS["digits"]

    def one_pixel(split, config):
        images = read(split, config)
        pixels = images.pixels.copy()
        pixels[7, 0, 0] = 16 - pixels[7, 0, 0]
        return dataclasses.replace(images, pixels=pixels)

    def one_fewer(split, config):
        images = read(split, config)
        return dataclasses.replace(images, pixels=images.pixels[:-1], labels=images.labels[:-1])

    monkeypatch.setitem(datasets.DATASETS, "digits", one_pixel)
    with pytest.raises(InputError, match=r"another protocol; .*:\n  data_sha256: "):
        measure(folder)
    monkeypatch.setitem(datasets.DATASETS, "digits", one_fewer)
    with pytest.raises(InputError, match=r":\n  images: 1438 in the file, 1437 in this run"):
        measure(folder)


def test_statistics_of_other_code_bases(tmp_path):
    """The official code saves features, EDM and pytorch-fid moments; none states its images."""
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(40, 3)).astype(np.float32)
    moments = Moments.from_features(pool)
    np.savez(tmp_path / "official.npz", pool_3=pool)
    np.savez(tmp_path / "edm.npz", mu=moments.mean, sigma=moments.covariance)
    inception, other = (unused_extractor(published=published) for published in (True, False))
    for name, count, has_features in (("official.npz", 40, True), ("edm.npz", None, False)):
        found = load(tmp_path / name, inception, {})
        assert distances.frechet_distance(found.moments, moments) == pytest.approx(0, abs=1e-12)
        assert (found.moments.count, found.pool is not None) == (count, has_features)
        assert found.protocol["path"] == str(tmp_path / name)
        message = r"features of FID's Inception network .* with features some-00000000"
        with pytest.raises(InputError, match=message):
            load(tmp_path / name, other, {})


def test_statistics_without_features(tmp_path):
    """They give a Frechet distance and an inception score."""
    rng = np.random.default_rng(0)
    moments = Moments.from_features(rng.normal(size=(40, 3)))
    np.savez(tmp_path / "edm.npz", mu=moments.mean, sigma=moments.covariance)
    inception = unused_extractor(published=True)
    reference = load(tmp_path / "edm.npz", inception, {})
    path = tmp_path / "round_0.npz"
    np.savez(path, pool=rng.normal(size=(40, 3)), logits=rng.normal(size=(40, 4)))
    entry = sample_quality_stage.measure([path], inception, reference)
    assert (entry["kid"], entry["precision"], entry["recall"]) == (None, None, None)
    cells = sample_quality_stage.cells(entry)
    assert [cell.title for cell in cells if cell.text != "-"] == ["images", "FID_n40", "IS"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("edm2.pkl", b"\x80\x04", "is a pickle, which could execute arbitrary code; EDM also"),
        ("broken.npz", b"PK\x03\x04", "broken.npz cannot be read as .npz: File is not a zip file"),
        ("empty.npz", None, "holds no statistics: it has neither 'pool_3' nor both 'mu' and 's"),
    ],
)
def test_files_without_statistics(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        np.savez(path, images=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(path, unused_extractor(published=True), {})


def statistics(**changes):
    """The arrays of an intact statistics file with `changes`; None removes an array."""
    pool = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    moments = Moments.from_features(pool)
    protocol = json.dumps({"extractor": "some", "images": 40})
    arrays = {"pool_3": pool, "mu": moments.mean, "sigma": moments.covariance}
    arrays |= {"protocol": np.array(protocol)} | changes
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": np.full(3, np.nan)}, "'mu' has values that are not finite numbers"),
        ({"pool_3": np.full((40, 3), np.inf)}, "'pool_3' has values that are not finite"),
        ({"sigma": np.array(["text"])}, "'sigma' has values that are not finite numbers"),
        ({"sigma": np.diag([1.0, 1.0, -1.0])}, "'sigma' has negative variances"),
        ({"sigma": np.eye(3) + np.eye(3, k=1)}, "'sigma' is not symmetric"),
        ({"sigma": np.eye(4)}, "its arrays have the shapes"),
        ({"mu": np.zeros(4)}, "its arrays have the shapes"),
        ({"mu": np.zeros((3, 1))}, "its arrays have the shapes"),
        ({"mu": np.zeros(())}, "its arrays have the shapes"),
        ({"pool_3": np.zeros((40, 2))}, "its arrays have the shapes"),
        ({"pool_3": np.zeros((0, 3))}, "its arrays have the shapes"),
        ({"pool_3": np.zeros(3), "mu": None, "sigma": None}, "its arrays have the shapes"),
        ({"mu": None}, "it has only one of 'mu' and 'sigma'"),
        ({"protocol": np.array("{")}, "its protocol is not JSON"),
        ({"protocol": np.array("[" * 10**5)}, "its protocol is not JSON"),
        ({"protocol": np.zeros(3)}, "its protocol is not JSON"),
        ({"protocol": np.array("[]")}, "its protocol is a list instead of an object"),
        ({"protocol": np.array("{}")}, "its protocol has no 'extractor'"),
        ({"protocol": np.array('{"extractor": "some"}')}, "its protocol states None images"),
        ({"protocol": np.array('{"extractor": "a", "images": "x"}')}, "'images' is a string inst"),
        ({"protocol": np.array('{"extractor": "a", "images": -1}')}, "its protocol states -1 im"),
    ],
)
def test_damaged_statistics(tmp_path, changes, message):
    path = tmp_path / "a.npz"
    np.savez(path, **statistics())
    assert load(path, unused_extractor(published=True), {}).moments.count == 40
    np.savez(path, **statistics(**changes))
    with pytest.raises(InputError, match=f"a.npz is damaged: {message}"):
        load(path, unused_extractor(published=True), {})


def flip(path):
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_statistics_in_a_workdir_are_computed_again(folder, caplog):
    before = measure(folder)
    (path,) = (folder.parent / "statistics").iterdir()
    flip(path)
    assert measure(folder) == before
    assert f"{path} cannot be read as .npz" in caplog.text
    assert "The statistics are computed again" in caplog.text
    flip(path)
    with pytest.raises(InputError, match="eval.stats_path = '|cannot be read as .npz"):
        measure(folder, **{"eval.stats_path": str(path)})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:700]),
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, kernel0=np.ones(3)),
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
    assert f"{path}" in caplog.text
    assert "the classifier is trained again" in caplog.text


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"eval.features": "vgg"},
            "= 'vgg' is unknown; known: classifier, inception, inception_tf, module:function",
        ),
        (
            {"eval.features": "no.module:f"},
            "'no.module:f' cannot be imported: No module named 'no'",
        ),
        ({"eval.features": "tests/x.py:f"}, "'tests/x.py:f' must be the name of a module, a colon"),
        ({"eval.features": ":f"}, "':f' must be the name of a module, a colon and the name of a"),
        ({"eval.features": "json:"}, "'json:' must be the name of a module"),
        ({"eval.features": "json:a:b"}, "'json:a:b' must be the name of a module"),
        ({"eval.features": "json:dumps()"}, r"'json:dumps\(\)' must be the name of a module"),
        ({"eval.features": "json:f"}, "'json:f' cannot be imported: .* has no attribute 'f'"),
        (
            {"eval.features": "classifier", "data.dataset": "noise"},
            "needs labels, which data.dataset = 'noise' lacks",
        ),
        ({"eval.num_samples": 9}, "eval.num_samples = 9 must be at least 10"),
        (
            {"eval.stats_path": "no.npz"},
            "eval.stats_path = 'no.npz' does not exist; --mode=fid_stats writes it",
        ),
        ({"eval.stats_split": "dev"}, "eval.stats_split = 'dev' is unknown; known: test, train"),
    ],
)
def test_invalid_settings(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(tmp_path, **changes)


def test_a_custom_extractor_with_invalid_outputs(folder, monkeypatch):
    monkeypatch.setitem(globals(), "corners", lambda images: {"logits": images[:, 0, 0]})
    with pytest.raises(InputError, match=r":corners' returned logits for 16 images, but no 'pool'"):
        measure(folder)
    monkeypatch.setitem(globals(), "corners", lambda images: {"pool": images[:2, 0, 0]})
    message = r":corners' returned 'pool' of shape \(2, 1\) for 16 images; it"
    with pytest.raises(InputError, match=message):
        measure(folder)


def test_functions_that_are_no_extractors(folder, monkeypatch):
    message = "'os:system' failed for 16 images with TypeError: .* It must map uint8 images"
    with pytest.raises(InputError, match=message):
        measure(folder, **{"eval.features": "os:system"})
    monkeypatch.setitem(globals(), "corners", lambda images: {"pool": np.full((16, 2), np.nan)})
    with pytest.raises(InputError, match=":corners' returned 'pool' with values that are not fin"):
        measure(folder)


def test_batches_are_padded():
    sizes = []

    def extract(batch):
        sizes.append(len(batch))
        return Features(batch.reshape(len(batch), -1).astype(np.float32), None)

    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1)
    found = features.extract_in_batches(extract, images, 3)
    assert sizes == [3, 3, 3]
    assert found.pool[:, 0].tolist() == list(range(7))
    assert found.logits is None
