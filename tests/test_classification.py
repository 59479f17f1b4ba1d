"""The noise-conditional classifier: training, exact restarts, accuracy by noise level, guidance."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import training
from configs import folders
from configs.default import complete
from errors import InputError
from experiment import Experiment
from tests import tiny
from tests.refusal import refused
from tests.test_training import Killed, identical
from training import classifier

SMALL = {
    "classifier.n_iters": 4,
    "classifier.batch_size": 16,
    "sampling.method": "solver",
    "sampling.num_steps": 3,
}
CLASSES = {"guidance.classes": (1,)}


def config(**changes):
    return tiny.config(**SMALL | changes)


@pytest.fixture(scope="module", autouse=True)
def _few_levels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "NUM_LEVELS", 3)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir that has a classifier and no score model, and the parameters of the classifier."""
    folder = tmp_path_factory.mktemp("classifier")
    with tiny.shared_steps():
        yield folder, classifier.train(config(**{"training.shard_params": True}), str(folder))


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_accuracy_is_written(trained):
    result = json.loads((trained[0] / "classifier" / "accuracy.json").read_text())
    assert (result["images"], result["classes"]) == (359, 10)
    sde = Experiment(tiny.config()).sde
    ends = [float(sde.noise_to_signal(t)) for t in (sde.t_end, sde.T)]
    levels = [row["noise_level"] for row in result["levels"]]
    np.testing.assert_allclose(levels, [ends[0], np.sqrt(ends[0] * ends[1]), ends[1]], rtol=1e-5)
    assert all(0 <= row["accuracy"] <= 1 and row["nats"] > 0 for row in result["levels"])


@pytest.mark.slow
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, trained, capsys):
    collect = training.loop.TrainingLog.collect

    def kill(self, step, metrics):
        if step == 4:
            raise Killed
        collect(self, step, metrics)

    again = config(**{"training.shard_params": True})
    with monkeypatch.context() as patch:
        patch.setattr(training.loop.TrainingLog, "collect", kill)
        with pytest.raises(Killed):
            classifier.train(again, str(tmp_path))
    assert not (tmp_path / "classifier" / "accuracy.json").exists()
    assert identical(classifier.train(again, str(tmp_path)), trained[1])
    assert "continuing from checkpoints-meta/checkpoint_2" in capsys.readouterr().out


def test_images_labels_and_noise_of_the_steps():
    """They are training images with their labels, and each step and purpose has its own noise."""
    experiment = Experiment(config(), jax.devices()[:1])
    job = classifier.make_job(experiment)
    batch = jax.tree.map(lambda leaf: leaf[0], next(training.loop._batches(job, 0)))
    parts = [job.part(jax.random.key(seed), batch) for seed in (0, 1)]
    assert (parts[0].x.shape, job.settings.n_iters) == ((16, 8, 8, 1), 4)
    np.testing.assert_array_equal(parts[0].condition.classes, batch.labels)
    assert (parts[0].t != parts[1].t).all()
    assert (parts[0].z != parts[1].z).any()
    roots = [each.root(0) for each in (job, training.score_job(experiment))]
    assert (jax.random.key_data(roots[0]) != jax.random.key_data(roots[1])).any()


def test_accuracy_counts_every_image_once(monkeypatch):
    """The measures of a classifier that assigns probability 1/2 to class 3 for every image."""
    monkeypatch.setattr(classifier, "NUM_LEVELS", 1)
    experiment = Experiment(config())
    constant = jnp.log(jnp.full(10, 0.5 / 9).at[3].set(0.5))

    def log_probs(x, t):
        return jnp.broadcast_to(constant, (len(x), 10))

    monkeypatch.setattr(experiment, "class_log_probs", lambda params: log_probs)
    (row,) = classifier.accuracy(experiment, {})
    threes = (experiment.test.labels == 3).mean()
    assert row["accuracy"] == pytest.approx(threes)
    nats = -threes * np.log(0.5) - (1 - threes) * np.log(0.5 / 9)
    assert row["nats"] == pytest.approx(nats, rel=1e-5)
    assert row["stderr"] == pytest.approx(np.sqrt(threes * (1 - threes) / 359))


def test_images_are_noised_but_not_flipped(monkeypatch):
    """The classifier gets x_t = alpha x + std z of test images as they are."""
    experiment = Experiment(config(**{"data.dataset": "black_and_white"}))
    inputs, asked, prepare = [], [], experiment.prepare

    def record(key, pixels, *, flip):
        asked.append(flip)
        return prepare(key, pixels, flip=flip)

    def log_probs(x, t):
        inputs.append((x, t))
        return jnp.zeros((len(x), 10))

    monkeypatch.setattr(experiment, "prepare", record)
    monkeypatch.setattr(experiment, "class_log_probs", lambda params: log_probs)
    batch = experiment.test.batch(np.arange(16), labelled=True)
    evaluate, t = classifier._compile_evaluation(experiment), jnp.float32(0.3)
    with jax.disable_jit():
        evaluate({}, batch, t, jax.random.key(0))
    assert asked == [False]
    ((x, times),) = inputs
    assert (times == t).all()
    alpha, std = float(experiment.sde.alpha(t)), float(experiment.sde.std(t))
    assert alpha < 0.95
    # White is 1; the standard error of the mean is std / 32.
    assert x.mean() == pytest.approx(alpha, abs=std / 8)
    assert x.std() == pytest.approx(std, rel=0.1)


# --- guidance -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_guidance_from_a_workdir(trained):
    """The classifier's gradient changes samples; without a classifier nothing is compiled."""
    experiment = Experiment(config(**{"guidance.classes": (1, 2), "guidance.scale": 30.0}))
    params = experiment.init_params()
    refused("classifier", experiment.draw_images, experiment.trained_model(params), 0, 2)
    experiment.load_classifier(trained[0])
    images, nfe, *_ = experiment.draw_images(experiment.trained_model(params), 0, 4)
    plain = Experiment(config())
    plain = plain.draw_images(plain.trained_model(params), 0, 4).x
    assert nfe.tolist() == [3] * 4
    assert (images != plain).any((1, 2, 3)).all()


@pytest.mark.slow
def test_a_classifier_of_another_experiment_is_refused(trained, tmp_path):
    """So are other settings, except for the place of the images."""
    for name, value in (
        ("model.beta_max", 10.0),
        ("data.dataset", "black_and_white"),
        ("classifier.blocks_per_group", 2),
    ):
        other = Experiment(tiny.config(**CLASSES, **{name: value}))
        with pytest.raises(InputError, match=rf"{name}: .* there, .* now"):
            other.load_classifier(trained[0])
    folder = shutil.copytree(trained[0], tmp_path / "w") / "classifier"
    for name, value in (("classifier.lr", 0.5), ("classifier.n_iters", 9), ("seed", 3)):
        with pytest.raises(InputError, match=f"{name}: .* there, {value} now"):
            classifier.train(config(**{name: value}), str(folder.parent))
    folders.check_config(folder, complete(config(**{"data.path": "/elsewhere"})), "classifier")


def test_missing_classifiers_and_labels(tmp_path):
    refused("--mode=train_classifier", Experiment(tiny.config(**CLASSES)).load_classifier, tmp_path)
    sampling = tiny.config(**CLASSES, **{"training.snapshot_sampling": True})
    # Before compilation.
    refused("--mode=train_classifier", training.train, sampling, str(tmp_path / "w"))
    for changes, message in (
        ({"classifier.num_classes": 3}, "classifier.num_classes = 3"),
        ({"data.dataset": "noise"}, "classifier.num_classes = 10"),
        ({"classifier.batch_size": 15}, "classifier.batch_size = 15"),
        ({"classifier.lr": 0.0}, "classifier.lr = 0.0"),
    ):
        refused(message, classifier.train, config(**changes), str(tmp_path / "w"))
    assert list(tmp_path.iterdir()) == []
