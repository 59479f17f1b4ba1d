"""Evaluation: results on disk, restarts, and images that depend only on seed and number."""

import dataclasses
import functools
import json
import os
import resource
import shutil
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from factory import Samples
from PIL import Image

import evaluation
import likelihood
import losses
import report
import training
from configs import default
from configs.fields import FIELDS
from errors import InputError
from experiment import Experiment
from metrics import bits_per_dim_stage, loss_stage, sample_quality_stage, samples_stage
from metrics.features import Extractor, Features
from metrics.stage import Context, summarize, summary_measure
from metrics.stages import STAGES
from runs import claim, dependencies, load_rounds, round_paths
from runs.checkpoints import SNAPSHOTS, Checkpoints
from tests import gaussian, tiny
from tests.test_experiment import random_params
from tests.test_training import change_a_byte

REPLACE = os.replace


def config(**changes):
    fields = {
        "data.dataset": "few_digits",
        "training.n_iters": 4,
        "eval.batch_size": 24,
        "eval.enable_bpd": True,
        "eval.enable_sampling": True,
        "eval.enable_metrics": True,
        "eval.bpd_num_repeats": 2,
        "eval.bpd_probes": 2,
        "eval.bpd_tolerance": 1e-3,
    }
    return tiny.config(**fields | changes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("evaluated"))
    training.train(config(), workdir)
    return workdir, evaluation.evaluate(config(), workdir)


def test_results(evaluated, tmp_path):
    workdir, results = evaluated
    folder = Path(workdir, "eval", "checkpoint_1")
    on_disk = json.loads((folder / "results.json").read_text())
    assert on_disk == results[1]
    assert list(on_disk) == ["step", "loss", "bpd", "samples", "metrics", "measures"]
    assert on_disk["step"] == 4
    counts = [on_disk[key]["images"] for key in ("loss", "bpd", "samples", "metrics")]
    assert counts == [60, 60, 10, 10]
    samples = np.load(folder / "samples_0.npz")["samples"]
    assert (samples.shape, samples.dtype) == ((10, 8, 8, 1), np.uint8)
    for name in ("samples", "real"):  # The same grid.
        assert Image.open(folder / f"{name}.png").size == (4 + 4 * 68, 4 + 3 * 68)
    rounds = load_rounds(round_paths(folder, "losses", 3))
    assert on_disk["loss"]["mean"] == pytest.approx(rounds["loss"].mean(), rel=1e-6)
    stderr = losses.mean_stderr(rounds["loss"], rounds["t"])
    assert on_disk["loss"]["stderr"] == pytest.approx(stderr, rel=1e-6)
    # Metrics are those of the saved samples.
    extractor, reference, _ = sample_quality_stage.prepare(Experiment(config()), Path(workdir))
    features = extractor.extract(samples)
    np.savez(tmp_path / "features.npz", pool=features.pool, logits=features.logits)
    again = sample_quality_stage.measure([tmp_path / "features.npz"], extractor, reference)
    assert again["frechet"] == on_disk["metrics"]["frechet"]
    assert again["frechet"]["value"] > 1


def test_results_of_the_likelihood(evaluated):
    workdir, results = evaluated
    found = results[1]["bpd"]
    arrays = load_rounds(round_paths(Path(workdir, "eval", "checkpoint_1"), "bpd", 6))
    bpd, bound, probe_stderr = (
        arrays[name].reshape(2, 60) for name in ("bpd", "bound", "probe_stderr")
    )
    assert found["mean"] == pytest.approx(bpd.mean(), rel=1e-6)
    stderr = bpd.mean(0).std(ddof=1) / np.sqrt(60)
    assert found["stderr"] == pytest.approx(stderr, rel=1e-6)
    assert found["bound"]["mean"] == pytest.approx(bound.mean(), rel=1e-6)
    due_to_probes = np.sqrt((probe_stderr**2).sum()) / (2 * 60)
    assert found["probe_stderr"] == pytest.approx(due_to_probes, rel=1e-6)
    assert found["solver_error"] == pytest.approx(arrays["solver_error"].mean(), rel=1e-6)
    assert 0 < found["solver_error"] < 0.05
    assert found["nfe"] == pytest.approx(arrays["nfe"].mean(), rel=1e-6)
    assert (found["passes"], found["data"]) == (2, "test")
    # The two passes differ in noise and probes.
    assert (bpd[0] != bpd[1]).all()
    # The untrained network models pixels as independent and nearly normal, which is worse than the
    # log2(17) bits of uniform gray levels.
    assert 4 < found["mean"] < 14


def save(folder, experiment, number, step, **trees):
    """Save a snapshot in a workdir of this experiment."""
    claim(folder, experiment.config, "training")
    checkpoints = Checkpoints(folder, create=True)
    checkpoints.save(SNAPSHOTS, number, trees, step=step, config=experiment.config.to_dict())
    checkpoints.close()


def test_loss_and_samples_are_those_of_the_ema(tmp_path):
    """The checkpoint has parameters that differ from their moving average."""
    changes = {"data.dataset": "noise", "sampling.method": "solver", "sampling.num_steps": 2}
    changes |= {"eval.enable_bpd": False, "eval.enable_metrics": False}
    c = tiny.config(**changes, **{"eval.batch_size": 16, "eval.num_samples": 4})
    experiment = Experiment(c)
    params, ema = (random_params(experiment, seed) for seed in (0, 1))
    save(tmp_path, experiment, 1, 2, params=params, ema=ema)
    result = evaluation.evaluate(c, str(tmp_path))[1]
    samples = load_rounds(round_paths(tmp_path / "eval" / "checkpoint_1", "samples", 1))["samples"]
    (tmp_path / "expected").mkdir()
    values = []
    for tree in (ema, params):
        expected = experiment.sample_images(tree, 0, 4).x
        assert np.array_equal(samples, expected) == (tree is ema)
        values.append(loss_stage.run(Context(experiment, tree, tmp_path / "expected"))["mean"])
        (tmp_path / "expected" / "losses_0.npz").unlink()
    assert result["loss"]["mean"] == values[0] != values[1]


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """A workdir with the checkpoints 2, 9 and 10 of different parameters."""
    folder = tmp_path_factory.mktemp("three")
    experiment = Experiment(tiny.config())
    for number in (10, 2, 9):
        save(folder, experiment, number, 4 * number, ema=random_params(experiment, number))
    return folder


def recorded_evaluation(monkeypatch, folder, name, number=None, **changes):
    """Evaluate with stages that compute nothing; return their names and inputs, and the results."""
    inputs = []

    def replaced(each):
        def run(context):
            inputs.append((each.name, context))
            return {"mean": 0.0, "stderr": 0.0, "images": 2, "failed": 0}

        return dataclasses.replace(
            each,
            run=run,
            prepare=lambda experiment, workdir: None,
            measures=lambda entry: [],
            cells=lambda entry: [],
            notes=lambda entries: [],
        )

    monkeypatch.setattr(evaluation, "STAGES", tuple(map(replaced, STAGES)))
    results = evaluation.evaluate(tiny.config(**changes), str(folder), name, number)
    return inputs, results


def test_checkpoints_from_begin_to_end(monkeypatch, three_checkpoints):
    """Both ends are included; checkpoints are in the order of their numbers."""
    for begin, end, numbers in ((1, 26, [2, 9, 10]), (2, 9, [2, 9]), (10, 10, [10])):
        changes = {"eval.begin_ckpt": begin, "eval.end_ckpt": end, "eval.enable_sampling": False}
        inputs, results = recorded_evaluation(monkeypatch, three_checkpoints, "range", **changes)
        assert list(results) == numbers
        assert [result["step"] for result in results.values()] == [4 * n for n in numbers]
        folders = [context.folder.name for _, context in inputs]
        assert folders[::2] == folders[1::2] == [f"checkpoint_{number}" for number in numbers]


def test_a_damaged_checkpoint_is_skipped(monkeypatch, three_checkpoints, tmp_path, caplog):
    shutil.copytree(three_checkpoints, tmp_path / "w")
    change_a_byte(tmp_path / "w" / SNAPSHOTS / "checkpoint_9")
    _, results = recorded_evaluation(monkeypatch, tmp_path / "w", "damaged")
    assert list(results) == [2, 10]
    assert "This checkpoint is skipped" in caplog.text
    for number in (2, 10):
        change_a_byte(tmp_path / "w" / SNAPSHOTS / f"checkpoint_{number}")
    with pytest.raises(InputError, match="None of the 3 selected checkpoints of .* can be read"):
        recorded_evaluation(monkeypatch, tmp_path / "w", "damaged")


def test_metrics_require_samples(monkeypatch, three_checkpoints):
    """Stages that are not enabled do not run; one that requires them is an error."""
    changes = {"eval.enable_sampling": False, "eval.enable_metrics": True}
    message = "eval.enable_metrics = True requires eval.enable_sampling = True. Set --config.eval"
    with pytest.raises(InputError, match=message):
        recorded_evaluation(monkeypatch, three_checkpoints, "required", **changes)
    assert not (three_checkpoints / "required").exists()
    changes = {"eval.enable_loss": False, "eval.enable_bpd": False}
    inputs, _ = recorded_evaluation(monkeypatch, three_checkpoints, "others", **changes)
    assert [name for name, _ in inputs] == ["sampling"] * 3


def test_dequantizers_are_checked_first(monkeypatch, three_checkpoints, tmp_path):
    """All of them, before anything is written; a checkpoint that cannot be read needs none."""
    shutil.copytree(three_checkpoints, tmp_path / "w")
    lacking = [9]

    def make(experiment, workdir, number):
        if number in lacking:
            raise InputError(f"no dequantizer of checkpoint {number}")

    monkeypatch.setattr(evaluation.dequantization, "make", make)
    monkeypatch.setattr(evaluation.dequantization, "identity", lambda *_: "a dequantizer")
    evaluate = functools.partial(recorded_evaluation, monkeypatch, tmp_path / "w", "checked")
    with pytest.raises(InputError, match="no dequantizer of checkpoint 9"):
        evaluate()
    assert not (tmp_path / "w" / "checked").exists()
    assert list(evaluate(**{"eval.enable_bpd": False})[1]) == [2, 9, 10]
    change_a_byte(tmp_path / "w" / SNAPSHOTS / "checkpoint_9")
    assert list(evaluate()[1]) == [2, 10]


def test_what_rounds_depend_on(monkeypatch, three_checkpoints):
    """The parameters and the step, the seed, the dequantizer and the classifier."""
    monkeypatch.setattr(evaluation.dequantization, "make", lambda *_: None)
    monkeypatch.setattr(evaluation.dequantization, "identity", lambda *_: "a dequantizer")
    classifier = {"a": np.ones(2, np.float32)}

    def provide(experiment, workdir):
        experiment.classifier = classifier

    monkeypatch.setattr(evaluation.classification, "provide", provide)
    changes = {"guidance.classes": (1,), "eval.enable_metrics": True}
    inputs, _ = recorded_evaluation(monkeypatch, three_checkpoints, "depends", **changes)
    first, second = inputs[:4], inputs[4:8]
    for (name, context), (_, other) in zip(first, second):
        found = context.depends
        assert (found["step"], other.depends["step"]) == (8, 36)
        assert found["ema"] != other.depends["ema"]
        assert found["seed"] == 42
        assert ("dequantizer" in found) == (name == "bpd")
        assert ("classifier" in found) == (name in ("sampling", "metrics"))
        leaves = zip(*map(jax.tree.leaves, (context.ema, other.ema)))
        assert all((a != b).any() for a, b in leaves)
        assert {"model.nf", "model.dtype", "eval.batch_size"} <= found.keys()
        of_images = name in ("loss", "bpd")
        assert ("data.path" in found) == of_images
        assert ("training.reduce_mean" in found) == (name == "loss")
        assert ("eval.bpd_tolerance" in found) == (name == "bpd")
        assert ("sampling.method" in found) == ("guidance.scale" in found) == (not of_images)
        assert ("classifier.lr" in found) == (not of_images)
        assert not {"training.n_iters", "eval.begin_ckpt", "eval.features"} & found.keys()
    assert first[1][1].depends["dequantizer"] == "a dequantizer"
    before = first[2][1].depends["classifier"]
    classifier["a"] = np.zeros(2, np.float32)
    inputs, _ = recorded_evaluation(monkeypatch, three_checkpoints, "depends", **changes)
    assert inputs[2][1].depends["classifier"] != before


@pytest.fixture
def black_and_white(tmp_path, monkeypatch):
    """The context of an experiment with black training images and white test images.

    `seen` are the images, keys and so on of which the loss or bits/dim were computed.
    """
    experiment, seen = Experiment(tiny.config(**BLACK_AND_WHITE)), []

    def held_out_loss(params, batch, key):
        seen.append((np.asarray(batch.pixels), jax.random.key_data(key).tolist()))
        return np.arange(len(batch.pixels)), np.arange(len(batch.pixels)) % 3

    def bits_per_dim(params, pixels, rows, repeat):
        seen.append((np.asarray(pixels), np.asarray(rows).tolist(), repeat))
        row = np.asarray(rows, float)
        names = ("bpd", "nfe", "probe_stderr", "solver_error", "bound")
        return dict.fromkeys(names, row + 100 * repeat)

    monkeypatch.setattr(experiment, "held_out_loss", held_out_loss)
    monkeypatch.setattr(bits_per_dim_stage, "compile_bits_per_dim", lambda *_: bits_per_dim)
    return Context(experiment, {}, tmp_path, dequantize=lambda *_: None), seen


BLACK_AND_WHITE = {
    "data.dataset": "black_and_white",
    "eval.batch_size": 10,
    "eval.bpd_num_repeats": 2,
}


def test_the_loss_is_that_of_test_images(black_and_white):
    """Each image counts once; the noise of the rounds differs."""
    context, seen = black_and_white
    result = loss_stage.run(context)
    assert [(pixels.min(), len(pixels)) for pixels, _ in seen] == [(255, 10), (255, 10)]
    assert seen[0][1] != seen[1][1]
    assert (result["images"], result["mean"]) == (16, (45 + 15) / 16)
    values, t = (np.append(found, found[:6]) for found in (np.arange(10), np.arange(10) % 3))
    assert result["stderr"] == losses.mean_stderr(values, t)


@pytest.mark.parametrize(("split", "grey"), [("test", 255), ("train", 0)])
def test_bits_per_dim_are_those_of_the_chosen_split(black_and_white, split, grey):
    """Two passes over 16 images; the standard error is that of the images' means over passes."""
    context, seen = black_and_white
    with context.experiment.config.unlocked():
        context.experiment.config.eval.bpd_dataset = split
    result = bits_per_dim_stage.run(context)
    assert all((pixels == grey).all() for pixels, *_ in seen)
    numbers = [*range(10), *range(10, 16), *range(4)]
    assert sum((rows for _, rows, _ in seen), []) == 2 * numbers
    assert [repeat for *_, repeat in seen] == [0, 0, 1, 1]
    assert (result["images"], result["mean"], result["data"]) == (16, 50 + 7.5, split)
    assert result["stderr"] == pytest.approx(np.arange(16).std(ddof=1) / 4)
    assert (result["gap"]["mean"], result["gap"]["stderr"]) == (0, 0)


def test_a_bound_below_the_value_is_explained():
    """The error is that of the images' differences, in the table's notes and in the report."""

    def entry(gap, stderr):
        summary = {"mean": 2.0, "stderr": 0.1, "images": 9, "failed": 0}
        details = {"passes": 1, "nfe": 9.0, "solver_error": np.nan, "probe_stderr": None}
        gap = summary | {"mean": gap, "stderr": stderr}
        return summary | details | {"data": "test", "bound": summary, "gap": gap}

    entries = [entry(0.01, 0.02), entry(-0.03, 0.02), entry(-0.05, 0.02)]
    within, beyond = bits_per_dim_stage.notes(entries)
    assert within.startswith(
        "the bound is 0.0300 +- 0.0200 bits/dim lower than the value: this is w"
    )
    assert "0.0500 +- 0.0200 bits/dim lower than the value, more than 2 standard errors" in beyond
    notes = [bits_per_dim_stage.measures(each)[1].note for each in entries]
    assert notes[0] == "variational: an upper bound in the mean"
    assert notes[1:] == [f"{notes[0]}; {line}" for line in (within, beyond)]


def test_bits_per_dim_of_gaussian_data():
    """Bits/dim follow from the density of N(0.1, 0.5^2) at the smallest time and from log q."""
    fields = {"eval.bpd_trace": "exact", "eval.bpd_tolerance": 1e-4, "eval.bpd_t_min": 0.05}
    experiment = Experiment(tiny.config(**fields), jax.devices()[:1])
    sde = experiment.sde

    def score(params):
        return gaussian.score(sde, 0.1, 0.5)

    experiment.score = score
    log_q = np.array([0.0, 50.0, -20.0], np.float32)

    def dequantize(images, keys):
        return experiment.scaler.dequantize(images, 0.5), jax.numpy.asarray(log_q)

    images = experiment.test.pixels[:3]
    compute = bits_per_dim_stage.compile_bits_per_dim(experiment, dequantize)
    found = compute({}, images, np.arange(3), 0)
    x = (images + 0.5) / 17 * 2 - 1
    alpha, var = float(sde.alpha(0.05)), float(sde.var(0.05))
    logp = scipy.stats.norm.logpdf(x, alpha * 0.1, np.sqrt(alpha**2 * 0.25 + var))
    nats = logp.sum((1, 2, 3)) + 64 * np.log(2 / 17) - log_q
    np.testing.assert_allclose(found["bpd"], -nats / 64 / np.log(2), atol=2e-3)
    assert (found["probe_stderr"] == 0).all()
    assert (np.abs(found["solver_error"]) < 1e-2).all()
    # The bound is near, as the score is exact; its estimate is random.
    np.testing.assert_allclose(found["bound"], found["bpd"], atol=1)
    again = compute({}, images, np.arange(3), 1)
    assert (found["bound"] != again["bound"]).all()


def test_errors_due_to_the_probes():
    """That of a mean of probes; that of a mean of images and passes, each with its own probes."""
    values = np.array([[1.0, 2, 4, 5], [0, 0, 0, 6]], np.float32)
    found = likelihood.probe_stderr(jax.numpy.asarray(values), "Rademacher")
    np.testing.assert_allclose(found, values.std(1, ddof=1) / 2, rtol=1e-6)
    assert np.isnan(likelihood.probe_stderr(jax.numpy.ones((3, 1)), "Gaussian")).all()
    combined = bits_per_dim_stage._combined_stderr(np.array([[3.0, 4.0], [0.0, 0.0]]))
    assert combined == pytest.approx(5 / 4)
    assert bits_per_dim_stage._combined_stderr(np.full((2, 2), np.nan)) is None


def test_failed_images_are_left_out():
    found = summarize(np.array([1.0, np.nan, 3.0]))
    assert found == {"mean": 2, "stderr": 1, "images": 2, "failed": 1}
    found = summarize(np.array([1.0, np.inf, 2.0, -np.inf, 6.0]))
    assert found["mean"] == 3
    assert found["stderr"] == pytest.approx(np.sqrt(7 / 3))
    assert found["failed"] == 2
    note = summary_measure("loss", found, "a note").note
    assert note == "a note; 2 images failed and are left out"
    with pytest.raises(InputError, match="Only 1 of 3 images have a finite value"):
        summarize(np.array([np.nan, 1.0, np.nan]))


def test_measures(evaluated):
    """results.json lists the rows of the report, in the order of the stages.

    Ten images are too few for KID.
    """
    result = evaluated[1][1]
    measures = result["measures"]
    assert all(list(each) == ["name", "value", "stderr", "images", "note"] for each in measures)
    label = f"({result['metrics']['features']}, n = 10)"
    assert [each["name"] for each in measures] == [
        "held-out loss",
        "bits/dim, test images",
        "bits/dim, test images, bound",
        f"FD_n10 {label}",  # KID requires 30 images.
        f"class. score {label}",
        f"precision {label}",
        f"recall {label}",
    ]
    assert measures[1]["value"] == result["bpd"]["mean"]
    assert measures[2]["stderr"] == result["bpd"]["bound"]["stderr"]
    assert measures[3]["value"] == result["metrics"]["frechet"]["value"]
    assert measures[3]["stderr"] == result["metrics"]["frechet"]["stderr"]
    assert result["metrics"]["kid"] is None
    assert measures[1]["note"].startswith("probability-flow ODE, 2 passes, ")


def test_the_printed_table():
    """The tables show a dash for each result that a checkpoint lacks."""
    loss = {"mean": 0.0862, "stderr": 0.0083, "images": 359, "failed": 0}
    metrics = dict.fromkeys(("kid", "inception_score", "precision", "recall"))
    metrics |= {"frechet": {"name": "FD_n120", "value": 0.5377, "stderr": 0.2142}, "images": 120}
    metrics |= {"features": "corners-0", "reference": {"images": 99, "path": "stats.npz"}}
    samples = {"images": 120, "nfe": 250.0, "picture": "samples.png"}
    first = {"step": 5, "loss": loss}
    second = {"step": 2600, "samples": samples, "metrics": metrics}
    text = evaluation._table({1: first, 12: second})
    assert text.splitlines() == [
        "checkpoint      step                loss            bits/dim               bound  "
        "       samples",
        "         1         5    0.0862 +- 0.0083                   -                   -  "
        "             -",
        "        12      2600                   -                   -                   -  "
        "  120, 250 NFE",
        "checkpoint    images             FD_n120                 KID        class. score  "
        "       precision            recall",
        "        12       120    0.5377 +- 0.2142                   -                   -  "
        "               -                 -",
        "features: corners-0, against 99 in stats.npz",
        "picture: samples.png",
    ]


def test_stages_state_unique_names_and_keys():
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    assert len({stage.key for stage in STAGES} | {"step", "measures"}) == len(STAGES) + 2
    for stage in STAGES:
        assert f"enable_{stage.name}" in config().eval


def test_the_report_of_an_evaluation(evaluated):
    """report.json holds results.json, the environment and the config; the page shows them."""
    workdir, results = evaluated
    report.note_environment(Path(workdir, "eval"), Experiment(config()).mesh)
    report.write(workdir)
    with open(f"{workdir}/eval/report.json") as file:
        data = json.load(file)
    (checkpoint,), (environment,) = data["checkpoints"], data["environments"]
    assert checkpoint["results"] == results[1]
    assert sum(checkpoint["bpd_histogram"]["counts"]) == 60
    assert checkpoint["bpd_histogram"]["mean"] == pytest.approx(results[1]["bpd"]["mean"], rel=1e-6)
    assert checkpoint["sampling"]["nfe"] == {"mean": 21, "least": 21, "most": 21}
    seconds = np.load(f"{workdir}/eval/checkpoint_1/samples_0.npz")["seconds"].sum()
    assert checkpoint["sampling"]["images_per_second"] == pytest.approx(10 / seconds, rel=1e-3)
    assert checkpoint["sampling"]["compilation_included"]
    assert len(checkpoint["measures"]) == 7
    assert data["curves"]["training"]["steps"] == [2, 4]
    assert data["config"]["eval"]["num_samples"] == 10
    assert environment["jax"] == jax.__version__
    assert environment["devices"] == "2 x cpu"
    page = Path(workdir, "eval", "report.html").read_text()
    assert all(measure["name"] in page for measure in checkpoint["measures"])
    assert page.count("data:image/png;base64,") == 2  # samples and held-out images
    assert page.count("<svg") == 2


def test_a_restart_computes_only_missing_rounds(evaluated, monkeypatch):
    workdir, results = evaluated
    folder = Path(workdir, "eval", "checkpoint_1")
    before = {}
    for name in ("bpd_4", "losses_1", "samples_0"):
        path = folder / f"{name}.npz"
        before[name] = load_rounds([path])
        path.unlink()
    written = []

    def recording_replace(source, target):
        written.append(Path(target).stem)
        REPLACE(source, target)

    monkeypatch.setattr(os, "replace", recording_replace)
    again = evaluation.evaluate(config(), workdir)
    assert again == results
    pictures = ["samples", "real"]
    rounds = ["bpd_4", "losses_1", "samples_0"]
    assert sorted(set(written)) == sorted([*pictures, *rounds, "config", "results"])
    for name, arrays in before.items():
        found = load_rounds([folder / f"{name}.npz"])
        for key in set(arrays) - {"seconds"}:
            assert np.array_equal(arrays[key], found[key])


def test_sampling_resumes_after_it_is_killed(tmp_path, monkeypatch):
    """If killed while writing the second of three rounds, it repeats that round and does the last.

    The images are those of an uninterrupted run.
    """
    experiment = Experiment(config(**{"eval.batch_size": 4}))
    params = experiment.init_params()
    calls, sample_images = [], experiment.sample_images

    def recording_sample_images(params, first, count):
        calls.append((first, count))
        return sample_images(params, first, count)

    monkeypatch.setattr(experiment, "sample_images", recording_sample_images)
    contexts = [Context(experiment, params, tmp_path / name) for name in ("whole", "killed")]
    for context in contexts:
        context.folder.mkdir()
    whole, killed = contexts
    expected = samples_stage.run(whole)

    def interrupted_replace(source, target):
        if target.name == "samples_1.npz":
            raise KeyboardInterrupt
        REPLACE(source, target)

    monkeypatch.setattr(os, "replace", interrupted_replace)
    with pytest.raises(KeyboardInterrupt):
        samples_stage.run(killed)
    monkeypatch.setattr(os, "replace", REPLACE)
    names = sorted(path.name for path in killed.folder.iterdir())
    assert names == ["samples_0.npz"]
    (killed.folder / ".samples_1.npz.tmp").write_bytes(b"PK")  # A kill leaves an incomplete file.
    calls.clear()
    entry = samples_stage.run(killed)
    assert calls == [(4, 4), (8, 4)]
    assert entry | {"picture": ""} == expected | {"picture": ""}
    complete, resumed = (
        load_rounds(round_paths(context.folder, "samples", 3)) for context in contexts
    )
    assert len(resumed["samples"]) == 10
    assert np.array_equal(resumed["samples"], complete["samples"])
    assert complete["first"].tolist() == [True, False, False]
    assert resumed["first"].tolist() == [True, True, False]  # Each process compiles once.


def test_memory_and_open_files_do_not_grow_with_the_number_of_rounds(tmp_path, monkeypatch):
    """300 rounds of 30 MB in total need the memory of few rounds, and 20 open files."""
    count, shape = 300, (8, 64, 64, 3)

    def sample_images(params, first, size):
        images = np.full(shape, first % 256, np.uint8)
        return Samples(images, np.full(8, 5), np.zeros((0, 8)), np.zeros(8))

    def extract(images):
        return Features(images[:, :2, 0, 0].astype(np.float32), None)

    monkeypatch.setattr(Experiment, "sample_images", lambda self, *inputs: sample_images(*inputs))
    changes = {"eval.batch_size": 8, "eval.num_samples": 8}
    (tmp_path / "first").mkdir()
    # The first round of a process loads libraries, which need more memory than all rounds.
    samples_stage.run(Context(Experiment(config(**changes)), {}, tmp_path / "first"))
    experiment = Experiment(config(**changes | {"eval.num_samples": 8 * count}))
    extractor = Extractor("kind", "0", "", extract)
    open_files = max(map(int, os.listdir("/proc/self/fd")))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tracemalloc.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 20, hard))
    try:
        samples_stage.run(Context(experiment, {}, tmp_path))
        samples = round_paths(tmp_path, "samples", count)
        paths = sample_quality_stage.run_features(tmp_path, samples, extractor, {})
        pool = load_rounds(paths, "pool")["pool"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        tracemalloc.stop()
    assert paths == round_paths(tmp_path, "features_kind-0", count)
    assert pool[:, 0].tolist() == (8 * np.arange(count) % 256).repeat(8).tolist()
    assert peak < count * np.prod(shape) / 3


def test_a_damaged_round_is_named(tmp_path):
    (tmp_path / "samples_0.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"samples_0.npz cannot be read"):
        load_rounds(round_paths(tmp_path, "samples", 1))


def test_images_depend_on_seed_and_number_alone():
    """They differ between batch sizes and device counts by at most one gray level of 17."""
    params = Experiment(config()).init_params()
    images = {}
    for devices, first, count in ((1, 0, 6), (2, 0, 6), (8, 2, 3)):
        c = config(**{"training.batch_size": 16})
        experiment = Experiment(c, jax.devices()[:devices])
        images[devices], nfe, *_ = experiment.sample_images(jax.device_get(params), first, count)
        assert nfe.tolist() == [21] * count
    assert np.abs(images[1].astype(int) - images[2]).max() <= 16
    assert np.abs(images[1][2:5].astype(int) - images[8]).max() <= 16
    assert np.abs(images[1][0].astype(int) - images[1][1]).max() > 30


@pytest.mark.slow
def test_bits_per_dim_do_not_depend_on_the_batch(evaluated):
    workdir, results = evaluated
    c = config(
        **{"eval.batch_size": 40, "eval.enable_sampling": False, "eval.enable_metrics": False}
    )
    other = evaluation.evaluate(c, workdir, "other")
    assert other[1]["bpd"]["mean"] == pytest.approx(results[1]["bpd"]["mean"], abs=1e-4)
    assert other[1].keys().isdisjoint({"samples", "metrics"})


def rejected(folder, name, message, **changes):
    """Check that the evaluation of a workdir is rejected with a message, and writes nothing."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=message):
        evaluation.evaluate(tiny.config(**changes), str(folder), name)
    assert sorted(folder.rglob("*")) == before


def test_an_evaluation_folder_of_another_config_is_rejected(monkeypatch, three_checkpoints):
    recorded_evaluation(monkeypatch, three_checkpoints, "claimed")
    for message, changes in (
        ("eval.batch_size: 120 there, 60 now", {"eval.batch_size": 60}),
        ("guidance.scale: 4.0 there, 3.0 now", {"guidance.scale": 3.0}),
    ):
        rejected(three_checkpoints, "claimed", message, **changes)


def test_rounds_of_another_state_are_computed_again(tmp_path):
    """Step 6 replaces step 2 as checkpoint_1; the second evaluation is that of step 6."""
    changes = {"data.dataset": "noise", "eval.batch_size": 16}
    changes |= {f"eval.enable_{stage}": False for stage in ("bpd", "sampling", "metrics")}
    c = tiny.config(**changes)

    def loss(folder: str) -> float:
        return evaluation.evaluate(c, str(tmp_path), folder)[1]["loss"]["mean"]

    found = []
    for step in (2, 6):
        experiment = Experiment(c)
        save(tmp_path, experiment, 1, step, ema=random_params(experiment, seed=step))
        found.append(loss("eval"))
    before, after = found
    assert after != before
    assert after == loss("fresh")


def test_fields_that_rounds_depend_on():
    """Fields of training alone, of the range of checkpoints and of the metrics may change."""
    fixed = dependencies("evaluation", default.complete(config())).keys()
    names = [name for name in FIELDS if name.startswith("eval.")]
    assert set(names) - fixed == {
        "eval.begin_ckpt",
        "eval.end_ckpt",
        "eval.enable_sampling",
        "eval.enable_loss",
        "eval.enable_bpd",
        "eval.enable_metrics",
        "eval.features",
        "eval.inception_path",
        "eval.stats_path",
        "eval.stats_split",
    }
    assert {name for name in fixed if name.startswith("training.")} == {
        "training.sde",
        "training.continuous",
        "training.reduce_mean",
        "training.likelihood_weighting",
        "training.importance_weighting",
        "training.time_distribution",
        "training.p_mean",
        "training.p_std",
    }


def test_the_number_of_steps_belongs_to_networks_of_discrete_time():
    for continuous in (True, False):
        c = default.complete(tiny.config(**{"training.continuous": continuous}))
        for kind, depends in (("checkpoint", not continuous), ("training", True)):
            assert ("model.num_scales" in dependencies(kind, c)) == depends


def test_a_network_of_another_config_is_rejected(three_checkpoints):
    rejected(three_checkpoints, "third", "model.nf: 8 there, 4 now", **{"model.nf": 4})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "eval.bpd_trace",
            "cauchy",
            "eval.bpd_trace = 'cauchy' is unknown; known: Gaussian, Rademacher, exact",
        ),
        ("eval.bpd_dataset", "dev", "eval.bpd_dataset = 'dev' is unknown; known: test, train"),
        ("eval.bpd_t_min", 1.5, r"must be at least 1e-05, .* 'vpsde' is trained at, and below 1"),
        (
            "eval.bpd_tolerance",
            0.0,
            "eval.bpd_tolerance = 0.0 must be a finite number, at least 1e-08",
        ),
        ("training.importance_weighting", True, "needs training.likelihood_weighting = True"),
    ],
)
def test_invalid_settings_of_the_likelihood(three_checkpoints, field, value, message):
    rejected(three_checkpoints, "fourth", message, **{field: value})


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("vp.digits_ddpmpp_continuous", 1e-5),
        ("edm.digits_ddpmpp", 0.002),
        ("edm.cifar10_ddpmpp", 0.002),
        ("flow.digits_ddpmpp", 1e-3),
    ],
)
def test_images_are_placed_at_times_of_training(name, smallest):
    """The experiments do so; below, the score is that of an untrained network."""
    bits_per_dim_stage.check(Experiment(tiny.config(name)))
    below = tiny.config(name, **{"eval.bpd_t_min": 0.9 * smallest})
    with pytest.raises(InputError, match=f"must be at least {smallest:g}, the smallest time that"):
        bits_per_dim_stage.check(Experiment(below))


def test_nothing_to_evaluate(three_checkpoints, tmp_path):
    with pytest.raises(InputError, match="does not exist; train first"):
        evaluation.evaluate(config(), str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="no checkpoint_0; existing checkpoints: none"):
        evaluation.evaluate(config(), str(tmp_path))
    with pytest.raises(InputError, match="no checkpoint_7; existing checkpoints: 2, 9, 10"):
        evaluation.evaluate(tiny.config(), str(three_checkpoints), number=7)
    assert list(tmp_path.iterdir()) == []


def test_other_ways_to_choose_checkpoints(monkeypatch, three_checkpoints, capsys):
    """By number; and if none is in the range, as after an import, the newest, with a line."""
    changes = {f"eval.enable_{stage}": False for stage in ("loss", "bpd", "sampling")}
    with pytest.raises(InputError, match="set one of eval.enable_loss, eval.enable_bpd"):
        evaluation.evaluate(tiny.config(**changes), str(three_checkpoints))
    evaluate = functools.partial(recorded_evaluation, monkeypatch, three_checkpoints, "chosen")
    assert list(evaluate(number=2)[1]) == [2]
    assert "no checkpoint from" not in capsys.readouterr().out
    assert list(evaluate(**{"eval.begin_ckpt": 11})[1]) == [10]
    assert "no checkpoint from eval.begin_ckpt = 11 to" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ve.digits_ncsnpp_continuous", "subvp.digits_ddpmpp_continuous"])
def test_the_other_sdes(tmp_path, name):
    """Train and evaluate the VE SDE (NCSN++, predictor-corrector) and the sub-VP SDE."""
    changes = {"training.n_iters": 2, "training.snapshot_freq": 2, "eval.enable_loss": False}
    changes |= {"data.dataset": "few_digits", "eval.batch_size": 24}
    c = tiny.config(name, **changes)
    training.train(c, str(tmp_path))
    result = evaluation.evaluate(c, str(tmp_path))[1]
    assert result["bpd"]["failed"] == result["bpd"]["bound"]["failed"] == 0
    assert result["bpd"]["probe_stderr"] is None  # A single probe leaves it unknown.
    assert result["samples"]["nfe"] == (42 if name.startswith("ve") else 21)


def test_the_ode_sampler():
    experiment = Experiment(config(**{"sampling.method": "ode"}))
    images, nfe, *_ = experiment.sample_images(experiment.init_params(), 0, 4)
    assert images.shape == (4, 8, 8, 1)
    assert (nfe > 20).all()
