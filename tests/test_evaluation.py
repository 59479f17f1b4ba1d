"""Evaluation: results on disk, restarts, and images that depend only on seed and number."""

import dataclasses
import functools
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import evaluation
import likelihood
import losses
import sampling
import training
from api.trained import Bits, TrainedModel
from datasets import Images
from errors import InputError
from experiment import Experiment
from metrics import held_out as held_out_stages
from metrics import sample_quality, samples_stage, stage
from metrics.stage import Context, Measure, summarize, summary_measure
from runs import load_rounds, report, round_paths
from runs.checkpoints import SNAPSHOTS, Checkpoints
from sampling import Samples
from tests import gaussian, tiny
from tests.refusal import refused
from tests.test_training import change_a_byte

REPLACE = os.replace


def corners(images):
    """Features for these tests: four pixels, and two of them as logits."""
    pool = images[:, 2:6:3, 2:6:3].reshape(len(images), -1) / 255
    return {"pool": pool, "logits": pool[:, :2]}


def config(**changes):
    fields = {
        "data.dataset": "few_digits",
        "sampling.method": "solver",
        "sampling.num_steps": 1,
        "eval.features": f"{__name__}:corners",
        "eval.batch_size": 24,
        "eval.enable_bpd": True,
        "eval.enable_sampling": True,
        "eval.enable_metrics": True,
        "eval.bpd_num_repeats": 2,
        "eval.bpd_probes": 2,
    }
    return tiny.config(**fields | changes)


@pytest.fixture(scope="module")
def experiment():
    """An experiment whose compiled programs the tests share."""
    return Experiment(config())


def random_bits(model, images, keys, **options):
    """Arrays as of `TrainedModel.bits`, which test_image_sizes.py runs with a network."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(keys[0])))
    return Bits(*(rng.uniform(1, 2, len(images)) for _ in Bits._fields))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, experiment):
    """The workdir and the results of a checkpoint whose parameters differ from their average."""
    workdir = tmp_path_factory.mktemp("evaluated")
    params, ema = (tiny.random_params(experiment, scale=scale) for scale in (-0.1, 0.1))
    tiny.save(workdir, experiment, 1, 4, params=params, ema=ema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "Experiment", lambda config: experiment)
        patch.setattr(TrainedModel, "bits", random_bits)
        return workdir, evaluation.evaluate(config(), str(workdir))[1], (params, ema)


def test_results(evaluated, experiment, tmp_path):
    """Of the moving average; on disk, they are those that are returned."""
    workdir, results, trees = evaluated
    folder = workdir / "eval" / "checkpoint_1"
    assert json.loads((folder / "results.json").read_text()) == results
    assert list(results) == ["step", "loss", "bpd", "samples", "metrics", "measures"]
    counts = [results[key]["images"] for key in ("loss", "bpd", "samples", "metrics")]
    assert (results["step"], counts) == (4, [60, 60, 10, 10])
    samples = np.load(folder / "samples_0.npz")["samples"]
    assert (samples.shape, samples.dtype) == ((10, 8, 8, 1), np.uint8)
    for name in ("samples", "real"):  # The same grid.
        assert Image.open(folder / f"{name}.png").size == (4 + 4 * 68, 4 + 3 * 68)
    for name, tree in zip(("params", "ema"), trees):
        drawn = experiment.draw_images(experiment.trained_model(tree), 0, 24).x[:10]
        (tmp_path / name).mkdir()
        loss = held_out_stages.run_loss(Context(experiment, tree, tmp_path / name))
        same = np.array_equal(samples, drawn), loss == results["loss"]
        assert same == ((True, True) if name == "ema" else (False, False))
    rounds = load_rounds(round_paths(folder, "losses", 3))
    expected = rounds["loss"].mean(), losses.mean_stderr(rounds["loss"], rounds["t"])
    found = results["loss"]["mean"], results["loss"]["stderr"]
    assert found == pytest.approx(expected, rel=1e-6)
    # Metrics are those of the saved samples.
    extractor, reference = sample_quality.prepare(experiment, workdir)
    np.savez(tmp_path / "features.npz", **extractor.extract(samples)._asdict())
    again = sample_quality.measure([tmp_path / "features.npz"], extractor, reference)
    assert again["frechet"] == results["metrics"]["frechet"]


def test_results_of_the_likelihood(evaluated):
    found = evaluated[1]["bpd"]
    arrays = load_rounds(round_paths(evaluated[0] / "eval" / "checkpoint_1", "bpd", 6))
    names = ("bpd", "bound", "probe_stderr")
    bpd, bound, probe_stderr = (arrays[name].reshape(2, 60) for name in names)
    expected = {
        "mean": bpd.mean(),
        "stderr": bpd.mean(0).std(ddof=1) / np.sqrt(60),
        "probe_stderr": np.sqrt((probe_stderr**2).sum()) / (2 * 60),
        "solver_error": arrays["solver_error"].mean(),
        "nfe": arrays["nfe"].mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["bound"]["mean"] == pytest.approx(bound.mean(), rel=1e-6)
    assert (found["passes"], found["data"]) == (2, "test")
    counts, edges = found["histogram"]["counts"], found["histogram"]["edges"]
    assert (sum(counts), edges[0], edges[-1]) == (60, bpd.mean(0).min(), bpd.mean(0).max())
    assert (bpd[0] != bpd[1]).all()  # The two passes differ in noise and probes.


def test_measures_and_report(evaluated):
    """results.json lists the lines that are printed, which the page shows, too."""
    workdir, result, _ = evaluated
    measures, metrics = result["measures"], result["metrics"]
    assert all(list(each) == list(Measure._fields) for each in measures)
    label = f"({metrics['features']}, n = 10)"
    assert {each["name"]: each["value"] for each in measures} == {
        "held-out loss": result["loss"]["mean"],
        "bits/dim, test images": result["bpd"]["mean"],
        "bits/dim, test images, bound": result["bpd"]["bound"]["mean"],
        "NFE of a sample": 1.0,
        f"FD_n10 {label}": metrics["frechet"]["value"],
        f"class. score {label}": metrics["inception_score"]["value"],
        f"precision {label}": metrics["precision"]["value"],
        f"recall {label}": metrics["recall"]["value"],
    }  # Ten images are too few for KID.
    rows = [Measure("loss", 0.0862, 0.0083, 359), Measure("NFE", 250.0, None, 9, "a note")]
    lines = ["  loss  0.0862 +- 0.0083", "  NFE   250                 a note"]
    assert evaluation.table(rows).splitlines() == lines
    page = report.write(workdir).read_text()
    assert all(measure["name"] in page for measure in measures)


def test_a_restart_computes_only_missing_rounds(evaluated, experiment, monkeypatch):
    workdir, results, _ = evaluated
    folder = workdir / "eval" / "checkpoint_1"
    rounds = ("losses_1", "samples_0", f"features_{results['metrics']['features']}_0")
    paths = [folder / f"{name}.npz" for name in rounds]
    before = [load_rounds([path]) for path in paths]
    for path in paths:
        path.unlink()
    written = set()

    def recording_replace(source, target):
        written.add(Path(target).name.rpartition(".")[0])
        REPLACE(source, target)

    monkeypatch.setattr(os, "replace", recording_replace)
    monkeypatch.setattr(evaluation, "Experiment", lambda config: experiment)
    again = evaluation.evaluate(config(), str(workdir))[1]
    again["samples"]["images_per_second"] = results["samples"]["images_per_second"]
    assert again == results
    assert written == {"samples", "real", *rounds, "config", "results"}
    for path, arrays in zip(paths, before):
        found = load_rounds([path])
        same = {key: np.array_equal(arrays[key], found[key]) for key in arrays}
        assert all(same[key] for key in same.keys() - {"seconds"})


# --- which stages and checkpoints -----------------------------------------------------------------


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory):
    """A workdir with the checkpoints 2, 9 and 10 of different parameters."""
    folder, experiment = tmp_path_factory.mktemp("three"), Experiment(tiny.config())
    for number in (10, 2, 9):
        ema = tiny.random_params(experiment, scale=0.1 * number)
        tiny.save(folder, experiment, number, 4 * number, ema=ema)
    return folder


def recorded_evaluation(monkeypatch, folder, name, number=None, **changes):
    """Evaluate with stages that compute nothing; return their names and inputs, and the results."""
    inputs = []

    def replaced(each):
        def run(context):
            inputs.append((each.name, context))
            return {}

        nothing = {"prepare": lambda experiment, workdir: None, "measures": lambda entry: []}
        return dataclasses.replace(each, run=run, **nothing)

    monkeypatch.setattr(evaluation, "STAGES", tuple(map(replaced, evaluation.STAGES)))
    results = evaluation.evaluate(tiny.config(**changes), str(folder), name, number)
    return inputs, results


def test_which_checkpoints(monkeypatch, three_checkpoints, tmp_path, capsys, caplog):
    """From begin to end, both included, in order; a number; or else the newest, with a line."""
    for begin, end, number, selected in (
        (1, 26, None, [2, 9, 10]),
        (2, 9, None, [2, 9]),
        (10, 10, 2, [2]),
        (11, 26, None, [10]),
    ):
        c = tiny.config(**{"eval.begin_ckpt": begin, "eval.end_ckpt": end})
        found = evaluation._select(Checkpoints(three_checkpoints), c, number)
        assert [(each.number, each.step) for each in found] == [(n, 4 * n) for n in selected]
        newest = f"no checkpoint from eval.begin_ckpt = {begin} to"
        assert (newest in capsys.readouterr().out) == (begin == 11)
    folder = shutil.copytree(three_checkpoints, tmp_path / "w")
    change_a_byte(folder / SNAPSHOTS / "checkpoint_9")
    assert list(recorded_evaluation(monkeypatch, folder, "damaged")[1]) == [2, 10]
    assert "This checkpoint is skipped" in caplog.text
    change_a_byte(folder / SNAPSHOTS / "checkpoint_10")
    words = "None of the 1 selected checkpoints of .* can be read"
    refused(words, recorded_evaluation, monkeypatch, folder, "damaged", 10)


def test_what_rounds_depend_on(monkeypatch, three_checkpoints):
    """The parameters and the step, the seed and the classifier, which must exist."""
    evaluate = functools.partial(recorded_evaluation, monkeypatch, three_checkpoints, "depends")
    refused("classifier does not exist", evaluate, **{"guidance.classes": (1,)})
    classifier = {"a": np.ones(2, np.float32)}

    def load(experiment, workdir):
        experiment.classifier = classifier

    monkeypatch.setattr(Experiment, "load_classifier", load)
    changes = {"guidance.classes": (1,), "eval.enable_metrics": True, "eval.end_ckpt": 9}
    inputs, _ = evaluate(**changes)
    first, second = inputs[:4], inputs[4:8]
    assert [name for name, _ in first] == ["loss", "bpd", "sampling", "metrics"]
    for (name, context), (_, other) in zip(first, second):
        found = context.depends
        assert (found["step"], other.depends["step"], found["seed"]) == (8, 36, 42)
        assert found["ema"] != other.depends["ema"]
        leaves = zip(*map(jax.tree.leaves, (context.ema, other.ema)))
        assert all((a != b).any() for a, b in leaves)
        assert {"model.nf", "model.dtype", "eval.batch_size"} <= found.keys()
        of_samples = name in ("sampling", "metrics")
        for field, expected in {
            "classifier": of_samples,
            "data.path": not of_samples,
            "training.reduce_mean": name == "loss",
            "eval.bpd_tolerance": name == "bpd",
            "sampling.method": of_samples,
            "guidance.scale": of_samples,
            "training.n_iters": False,
            "eval.features": False,
        }.items():
            assert (field in found) == expected, (name, field)


NO_STAGE = {f"eval.enable_{stage}": False for stage in ("loss", "bpd", "sampling")}
REJECTED = [
    ("no checkpoint_7; existing checkpoints: 2, 9, 10", 7, {}),
    ("set one of eval.enable_loss, eval.enable_bpd", None, NO_STAGE),
    ("requires eval.enable_sampling = True", None, {"eval.enable_metrics": True} | NO_STAGE),
    ("eval.batch_size: 120 there, 60 now", None, {"eval.batch_size": 60}),
    ("guidance.scale: 4.0 there, 3.0 now", None, {"guidance.scale": 3.0}),
    ("model.nf: 8 there, 4 now", None, {"model.nf": 4}),
    ("eval.bpd_trace = 'cauchy' must be one of", None, {"eval.bpd_trace": "cauchy"}),
    ("eval.bpd_t_min = 1.5 must be at least 1e-05", None, {"eval.bpd_t_min": 1.5}),
    ("likelihood_weighting = True", None, {"training.importance_weighting": True}),
    ("data.path", None, {"data.dataset": "CIFAR10", "data.image_size": 32}),
]


def test_what_is_rejected(monkeypatch, three_checkpoints, tmp_path):
    """Before anything is written: bad values, and a workdir or a folder of another config."""
    recorded_evaluation(monkeypatch, three_checkpoints, "claimed")
    before = sorted(three_checkpoints.rglob("*"))
    for words, number, changes in REJECTED:
        with pytest.raises(InputError, match=words):
            evaluation.evaluate(tiny.config(**changes), str(three_checkpoints), "claimed", number)
    assert sorted(three_checkpoints.rglob("*")) == before
    missing, words = str(tmp_path / "nowhere"), "no checkpoint_0; existing checkpoints: none"
    refused("does not exist; train first", evaluation.evaluate, config(), missing)
    refused(words, evaluation.evaluate, config(), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --- loss and bits/dim ----------------------------------------------------------------------------


@pytest.fixture
def black_and_white(tmp_path, monkeypatch):
    """The context of an experiment with black training images and white test images.

    `seen` are the images, keys and so on of which the loss or bits/dim were computed.
    """
    changes = {"eval.batch_size": 10, "eval.bpd_num_repeats": 2}
    experiment, seen = Experiment(tiny.config(**{"data.dataset": "black_and_white"} | changes)), []

    def held_out_loss(params, batch, key):
        seen.append((np.asarray(batch.pixels), jax.random.key_data(key).tolist()))
        return np.arange(len(batch.pixels)), np.arange(len(batch.pixels)) % 3

    def bits(model, images, keys, **options):
        repeat, batch = divmod(len(seen), 2)
        seen.append((np.asarray(images), keys))
        return Bits(*[np.arange(len(images)) + 10 * batch + 100.0 * repeat] * 5)

    monkeypatch.setattr(experiment, "held_out_loss", held_out_loss)
    monkeypatch.setattr(TrainedModel, "bits", bits)
    return Context(experiment, {}, tmp_path), seen


def test_the_loss_is_that_of_test_images(black_and_white):
    """Each image counts once; the noise of the rounds differs."""
    context, seen = black_and_white
    result = held_out_stages.run_loss(context)
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
    result = held_out_stages.run_bits(context)
    assert all((pixels == grey).all() for pixels, _ in seen)
    for index, (_, keys) in enumerate(seen):  # They depend on the pass and the image.
        key = jax.random.fold_in(context.experiment.key("bpd"), index // 2)
        rows = np.arange(10) if index % 2 == 0 else np.append(np.arange(10, 16), np.arange(4))
        assert (keys == sampling.image_keys(key, rows)).all()
    assert (result["images"], result["mean"], result["data"]) == (16, 50 + 7.5, split)
    assert result["stderr"] == pytest.approx(np.arange(16).std(ddof=1) / 4)
    # A bound below the value is explained; the error is that of the images' differences.
    notes = []
    for mean in (0.01, -0.03, -0.05):
        entry = result | {"gap": {"mean": mean, "stderr": 0.02}}
        notes.append(held_out_stages.measures_of_bits(entry)[1].note)
    start = "variational: an upper bound in the mean"
    below = " +- 0.0200 bits/dim lower than the value: "
    assert notes[0] == start
    assert notes[1] == f"{start}; it is 0.0300{below}this is within 2 standard errors"
    assert notes[2].startswith(f"{start}; it is 0.0500{below}it bounds the density of the reverse")


def test_bits_per_dim_of_gaussian_data():
    """Bits/dim follow from the density of N(0.1, 0.5^2) at the smallest time."""
    changes = {"data.dataset": "noise", "data.image_size": 2}
    experiment = Experiment(tiny.config(**changes), jax.devices()[:1])
    sde = experiment.sde
    experiment._apply = lambda params, x, t, _: gaussian.score(sde, 0.1, 0.5)(x, t)
    model, images = experiment.trained_model({}), experiment.test.pixels[:3]
    options = {"trace": "exact", "tolerance": 1e-4, "t_min": 0.05}
    keys = [sampling.image_keys(jax.random.key(seed), np.arange(3)) for seed in (0, 1)]
    found, again = (model.bits(jax.numpy.asarray(images), each, **options) for each in keys)
    x = np.asarray(model.from_images(images, jax.random.key(0)))
    noise = (x + 1) / 2 * 256 - images
    assert -1e-4 <= noise.min() < noise.max() <= 1 + 1e-4
    alpha, var = float(sde.alpha(0.05)), float(sde.var(0.05))
    logp = scipy.stats.norm.logpdf(x, alpha * 0.1, np.sqrt(alpha**2 * 0.25 + var))
    nats = logp.sum((1, 2, 3)) + 4 * np.log(2 / 256)
    np.testing.assert_allclose(found.bpd, -nats / 4 / np.log(2), atol=2e-3)
    assert (found.probe_stderr == 0).all()
    assert (np.abs(found.solver_error) < 1e-2).all()
    # The bound is near, as the score is exact; its estimate is random.
    np.testing.assert_allclose(found.bound, found.bpd, atol=4)
    assert (found.bound != again.bound).all()


def test_errors_of_means():
    """That of a mean of probes; images that failed are left out of means over images."""
    values = np.array([[1.0, 2, 4, 5], [0, 0, 0, 6]], np.float32)
    found = likelihood.probe_stderr(jax.numpy.asarray(values), "Rademacher")
    np.testing.assert_allclose(found, values.std(1, ddof=1) / 2, rtol=1e-6)
    assert np.isnan(likelihood.probe_stderr(jax.numpy.ones((3, 1)), "Gaussian")).all()
    found = summarize(np.array([1.0, np.inf, 2.0, -np.inf, 6.0]))
    assert found == {"mean": 3, "stderr": pytest.approx(np.sqrt(7 / 3)), "images": 3, "failed": 2}
    note = summary_measure("loss", found, "a note").note
    assert note == "a note; 2 images failed and are left out"
    refused("Only 1 of 3 images have", summarize, np.array([np.nan, 1.0, np.nan]))


# --- samples --------------------------------------------------------------------------------------


def test_sampling_resumes_after_it_is_killed(tmp_path, monkeypatch):
    """If killed while writing the second of three rounds, it repeats that round and does the last.

    The images are those of an uninterrupted run.
    """
    experiment, calls = Experiment(config(**{"eval.batch_size": 4})), []

    def draw_images(model, first, count):
        calls.append((first, count))
        numbers = np.arange(first, first + count, dtype=np.uint8)
        images = np.tile(numbers[:, None, None, None], (1, 8, 8, 1))
        return Samples(images, np.full(count, 5), np.zeros((0, count)), np.zeros(count))

    monkeypatch.setattr(experiment, "draw_images", draw_images)
    contexts = [Context(experiment, {}, tmp_path / name) for name in ("whole", "killed")]
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
    assert [path.name for path in killed.folder.iterdir()] == ["samples_0.npz"]
    (killed.folder / ".samples_1.npz.tmp").write_bytes(b"PK")  # A kill leaves an incomplete file.
    calls.clear()
    entry = samples_stage.run(killed)
    assert calls == [(4, 4), (8, 4)]
    assert entry.keys() == expected.keys()
    same = ("images", "nfe", "nfe_range", "compilation_included")
    assert [entry[name] for name in same] == [expected[name] for name in same]
    assert entry["nfe_range"] == [5, 5]
    complete, resumed = (load_rounds(samples_stage.sample_paths(context)) for context in contexts)
    assert len(resumed["samples"]) == 10
    assert np.array_equal(resumed["samples"], complete["samples"])
    speeds = np.array([4, 4, 2]) / resumed["seconds"]
    assert entry["images_per_second"] == pytest.approx(speeds.max())  # Others may have compiled.


@pytest.mark.parametrize(("method", "size"), [("solver", 10), ("pc", 24)])
def test_one_round_computes_only_its_images(tmp_path, monkeypatch, method, size):
    """Unless the corrector couples the images of a batch, as that of this config's pc does."""
    changes = {"sampling.method": method, "sampling.num_steps": 30}
    experiment = Experiment(config(**{"sampling.corrector": "langevin"} | changes))
    monkeypatch.setattr(experiment, "draw_images", lambda *arguments: pytest.fail(f"{arguments}"))
    with pytest.raises(pytest.fail.Exception, match=rf", 0, {size}\)$"):
        samples_stage.run(Context(experiment, {}, tmp_path))


def test_images_depend_on_seed_and_number_alone(experiment, evaluated):
    """They differ between batch sizes and device counts by at most one gray level of 17."""
    params = jax.device_get(evaluated[2][1])
    two = experiment.draw_images(experiment.trained_model(params), 0, 24).x.astype(int)
    other = Experiment(config(), jax.devices())
    eight = other.draw_images(other.trained_model(params), 2, 3).x
    assert np.abs(two[2:5] - eight).max() <= 16
    assert np.abs(two[0] - two[1]).max() > 30


def labelled(*labels):
    """Images that are their own numbers, with these labels."""
    return Images(np.arange(len(labels), dtype=np.uint8), np.array(labels))


def test_rows_of_classes():
    """Images alternate as the classes do, as many as there are; those of a class are spread out."""
    images = labelled(*[0] * 6, *[1] * 4, *[2] * 9)
    assert stage.rows_of_classes(images, ()).tolist() == list(range(19))
    assert stage.rows_of_classes(images, (1, 0)).tolist() == [6, 0, 7, 2, 8, 3, 9, 5]
    twice = stage.rows_of_classes(images, (2, 2, 1))
    assert images.labels[twice].tolist() == [2, 2, 1] * 4
    assert len(set(twice.tolist())) == 12
    whole = labelled(2, 0, 1, 1, 0, 2)
    assert sorted(stage.rows_of_classes(whole, (0, 1, 2))) == list(range(6))
    for images, classes in ((Images(np.zeros(3)), (0,)), (labelled(1, 2), (1, 7))):
        refused("guidance.classes", stage.rows_of_classes, images, classes)


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
