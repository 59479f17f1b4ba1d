"""Evaluation: results on disk, restarts in the middle, and images that depend on (seed, number) alone."""

import functools
import json
import os
import resource
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import evaluation
import experiment as experiments
import training
from errors import InputError
from factory import Samples
from metrics import sample_quality
from metrics.features import Extractor, Features
from tests import tiny
from workdir import load_rounds, round_paths


def config(**changes):
    options = {"eval.enable_bpd": True, "eval.enable_sampling": True, "training.n_iters": 4}
    options |= {"eval.bpd_num_repeats": 2, "eval.bpd_probes": 2, "eval.bpd_tolerance": 1e-3}
    options |= {"eval.enable_metrics": True}
    return tiny.config(**options | changes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("evaluated"))
    training.train(config(), workdir)
    return workdir, evaluation.evaluate(config(), workdir)


def test_results(evaluated, capsys):
    workdir, results = evaluated
    folder = f"{workdir}/eval/checkpoint_1"
    with open(f"{folder}/results.json") as file:
        on_disk = json.load(file)
    assert on_disk == results[1]
    assert on_disk["step"] == 4
    assert (on_disk["loss"]["images"], on_disk["bpd"]["images"], on_disk["samples"]["images"]) == (
        359,
        359,
        10,
    )
    read = lambda name: np.concatenate(
        [np.load(f"{folder}/bpd_{i}.npz")[name] for i in range(6)]
    ).reshape(2, 359)
    bpd, bound, spread = read("bpd"), read("bound"), read("probe_stderr")
    assert on_disk["bpd"]["mean"] == pytest.approx(bpd.mean(), rel=1e-6)
    assert on_disk["bpd"]["stderr"] == pytest.approx(
        bpd.mean(0).std(ddof=1) / np.sqrt(359), rel=1e-6
    )
    assert on_disk["bpd"]["bound"]["mean"] == pytest.approx(bound.mean(), rel=1e-6)
    assert on_disk["bpd"]["probe_stderr"] == pytest.approx(
        np.sqrt((spread**2).sum()) / (2 * 359), rel=1e-6
    )
    assert 0 < on_disk["bpd"]["solver_error"] < 0.05
    # Untrained, it takes pixels for independent and nearly normal: worse than uniform grey levels, log2(17) bits.
    assert 4 < on_disk["bpd"]["mean"] < 14
    samples = np.load(f"{folder}/samples_0.npz")["samples"]
    assert (samples.shape, samples.dtype) == ((10, 8, 8, 1), np.uint8)
    assert Image.open(f"{folder}/samples.png").size == (4 * 66, 3 * 66)
    assert on_disk["metrics"]["images"] == 10
    assert on_disk["metrics"]["frechet"]["value"] > 1


def test_the_report_of_an_evaluation(evaluated):
    """report.json holds what results.json does, and what it was evaluated with; the page its measures and pictures."""
    workdir, results = evaluated
    with open(f"{workdir}/eval/report.json") as file:
        data = json.load(file)
    (checkpoint,), (environment,) = data["checkpoints"], data["environments"]
    assert checkpoint["results"] == results[1]
    assert sum(checkpoint["bpd_histogram"]["counts"]) == 359
    assert checkpoint["bpd_histogram"]["mean"] == pytest.approx(results[1]["bpd"]["mean"], rel=1e-6)
    assert checkpoint["sampling"]["nfe"] == {"mean": 21, "least": 21, "most": 21}
    assert checkpoint["sampling"]["images_per_second"] > 0
    assert checkpoint["sampling"]["compilation_included"]
    assert len(checkpoint["measures"]) == 8
    assert data["curves"]["training"]["steps"] == [2, 4]
    assert data["config"]["eval"]["num_samples"] == 10
    assert environment["jax"] == jax.__version__
    assert environment["devices"] == "2 x cpu"
    page = Path(workdir, "eval", "report.html").read_text()
    assert all(measure["name"] in page for measure in checkpoint["measures"])
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<svg") == 2


def test_a_restart_does_only_what_is_missing(evaluated, monkeypatch):
    workdir, results = evaluated
    folder = f"{workdir}/eval/checkpoint_1"
    before = {name: np.load(f"{folder}/{name}.npz") for name in ("bpd_4", "loss_1", "samples_0")}
    for name in before:
        __import__("os").remove(f"{folder}/{name}.npz")
    done, save = [], evaluation.write_atomically
    for module in (evaluation, experiments):
        monkeypatch.setattr(
            module,
            "write_atomically",
            lambda path, write: done.append(path.stem) or save(path, write),
        )
    again = evaluation.evaluate(config(), workdir)
    assert again == results
    assert sorted(set(done)) == ["bpd_4", "config", "loss_1", "results", "samples", "samples_0"]
    for name, arrays in before.items():
        for key in set(arrays) - {"seconds"}:
            assert np.array_equal(arrays[key], np.load(f"{folder}/{name}.npz")[key])


def test_sampling_that_was_killed_goes_on(tmp_path, monkeypatch):
    """Killed while the second of three rounds is written, it does that one and the last; the images are the same."""
    experiment = experiments.Experiment(config(**{"eval.batch_size": 4}))
    stage = functools.partial(evaluation.sampling_stage, experiment, experiment.init_params())
    asked, sample, replace = [], experiment.sample_images, os.replace
    monkeypatch.setattr(
        experiment, "sample_images", lambda *args: asked.append(args[1:]) or sample(*args)
    )
    folders = [tmp_path / name for name in ("whole", "killed")]
    for folder in folders:
        folder.mkdir()
    whole = stage(folders[0], None)

    def killed(source, target):
        if target.name == "samples_1.npz":
            source.write_bytes(source.read_bytes()[:100])
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        stage(folders[1], None)
    monkeypatch.setattr(os, "replace", replace)
    assert sorted(path.name for path in folders[1].iterdir()) == [
        "samples_0.npz",
        "samples_1.npz.tmp",
    ]
    asked.clear()
    result = stage(folders[1], None)
    assert asked == [(4, 4), (8, 4)]
    assert result["samples"] | {"picture": ""} == whole["samples"] | {"picture": ""}
    theirs, ours = (load_rounds(round_paths(folder, "samples", 3)) for folder in folders)
    assert len(ours["samples"]) == 10
    assert np.array_equal(ours["samples"], theirs["samples"])
    assert theirs["first"].tolist() == [True, False, False]
    assert ours["first"].tolist() == [True, True, False]  # Each run compiles once.


def test_only_a_round_of_images_and_one_file_at_a_time(tmp_path):
    """Of 300 rounds that hold 30 MB together: little memory, and fewer open files than rounds."""
    count, shape = 300, (8, 64, 64, 3)
    sample = lambda ema, first, size: Samples(
        np.full(shape, first % 256, np.uint8), np.full(8, 5), np.zeros((0, 8))
    )
    experiment = SimpleNamespace(
        config=config(), sample_images=sample, classes=lambda indices: None, labelled=False
    )
    experiment.config.eval.update(batch_size=8, num_samples=8 * count)
    extract = lambda images: Features(images[:, :2, 0, 0].astype(np.float32), None)
    paths = lambda name: round_paths(tmp_path, name, count)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tracemalloc.start()
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 20, hard)
    )
    try:
        evaluation.sampling_stage(experiment, None, tmp_path, None)
        sample_quality.run_features(tmp_path, paths("samples"), Extractor("kind", "0", "", extract))
        pool = load_rounds(paths("features_kind-0"), "pool")["pool"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        tracemalloc.stop()
    assert pool[:, 0].tolist() == (8 * np.arange(count) % 256).repeat(8).tolist()
    assert peak < count * np.prod(shape) / 3


def test_a_damaged_round_is_named(tmp_path):
    (tmp_path / "samples_0.npz").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"samples_0.npz cannot be read: .* Without it, it is computed again"
    ):
        load_rounds(round_paths(tmp_path, "samples", 1))


def test_images_depend_on_seed_and_number_alone(evaluated):
    """Not on the batch size or the number of devices, up to rounding: at most one grey level of 17."""
    params = experiments.Experiment(config()).init_params()
    images = {}
    for devices, first, count in ((1, 0, 6), (2, 0, 6), (8, 2, 3)):
        experiment = experiments.Experiment(
            config(**{"training.batch_size": 16}), jax.devices()[:devices]
        )
        images[devices], nfe, _ = experiment.sample_images(jax.device_get(params), first, count)
        assert nfe.tolist() == [21] * count
    assert np.abs(images[1].astype(int) - images[2]).max() <= 16
    assert np.abs(images[1][2:5].astype(int) - images[8]).max() <= 16
    assert np.abs(images[1][0].astype(int) - images[1][1]).max() > 30


def test_bits_per_dim_do_not_depend_on_the_batch(evaluated):
    results = evaluation.evaluate(
        config(**{"eval.batch_size": 200, "eval.enable_sampling": False}), evaluated[0], "other"
    )
    assert results[1]["bpd"]["mean"] == pytest.approx(evaluated[1][1]["bpd"]["mean"], abs=1e-4)
    assert "metrics" not in results[1]  # Without samples there is nothing to measure.


def test_an_eval_folder_of_other_settings_is_refused(evaluated):
    with pytest.raises(
        InputError, match=r"name another folder or mend:\n  eval.batch_size: 120 there, 60 now"
    ):
        evaluation.evaluate(config(**{"eval.batch_size": 60}), evaluated[0])
    with pytest.raises(InputError, match=r"guidance.scale: 4.0 there, 3.0 now"):
        evaluation.evaluate(config(**{"guidance.scale": 3.0}), evaluated[0])


def test_a_network_of_another_config_is_refused(evaluated):
    with pytest.raises(InputError, match=r"model.nf: 8 there, 4 now"):
        evaluation.evaluate(config(**{"model.nf": 4}), evaluated[0], "third")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        (
            "eval.bpd_trace",
            "cauchy",
            "eval.bpd_trace = 'cauchy' is unknown; known: Gaussian, Rademacher, exact",
        ),
        ("eval.bpd_t_min", 1.5, "eval.bpd_t_min = 1.5 must lie between 0 and 1.0"),
        ("eval.bpd_tolerance", 0.0, "eval.bpd_tolerance = 0.0 above 0"),
        ("training.importance_weighting", True, "needs training.likelihood_weighting = True"),
    ],
)
def test_settings_of_the_likelihood(evaluated, field, value, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluation.evaluate(config(**{field: value}), evaluated[0], "fourth")


def test_nothing_to_evaluate(evaluated, tmp_path):
    with pytest.raises(InputError, match="does not exist; train first"):
        evaluation.evaluate(config(), str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no checkpoint from eval.begin_ckpt = 1 .* it has: none"):
        evaluation.evaluate(config(), str(tmp_path))
    with pytest.raises(InputError, match="it has: 1"):
        evaluation.evaluate(config(**{"eval.begin_ckpt": 7}), evaluated[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ve.digits_ncsnpp_continuous", "subvp.digits_ddpmpp_continuous"])
def test_the_other_sdes(tmp_path, name):
    """Train, score and sample with the VE SDE (NCSN++, predictor and corrector) and the sub-VP SDE."""
    c = tiny.config(
        name, **{"training.n_iters": 2, "training.snapshot_freq": 2, "eval.enable_loss": False}
    )
    training.train(c, str(tmp_path))
    result = evaluation.evaluate(c, str(tmp_path))[1]
    assert result["bpd"]["failed"] == result["bpd"]["bound"]["failed"] == 0
    assert result["bpd"]["probe_stderr"] is None  # There is but one probe.
    assert result["samples"]["nfe"] == (42 if name.startswith("ve") else 21)


def test_the_ode_sampler(evaluated):
    experiment = experiments.Experiment(config(**{"sampling.method": "ode"}))
    images, nfe, _ = experiment.sample_images(experiment.init_params(), 0, 4)
    assert images.shape == (4, 8, 8, 1)
    assert (nfe > 20).all()
