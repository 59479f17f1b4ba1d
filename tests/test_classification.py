"""The noise-conditional classifier: training, exact restarts, accuracy by noise level, guidance."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from auxiliary import classification, fitting

import training
from datasets import Batches
from errors import InputError
from experiment import Experiment
from runs import locked, save_tree
from tests import tiny

SMALL = {
    "classifier.n_iters": 2,
    "classifier.batch_size": 16,
    "sampling.method": "solver",
    "sampling.num_steps": 3,
}


# --- training of auxiliary networks ---------------------------------------------------------------


def fit(path, *, total=7, stop=None, **settings):
    """Fit a linear map from pixels to labels with noise; stop before step `stop`, if given."""
    experiment = Experiment(tiny.config())

    def loss(params, batch, key, shift):
        x = batch.pixels.reshape(len(batch.pixels), -1) / 16 + shift * jax.random.normal(key)
        return jnp.square(x @ params["w"] - batch.labels).mean()

    class Stopping(Batches):
        def iterate(self, start):
            for n, batch in enumerate(super().iterate(start), start):
                if n == stop:
                    raise KeyboardInterrupt
                yield batch

    batches = Stopping(experiment.train, 16, 0, labelled=True)
    options = {
        "key": jax.random.key(1),
        "settings": {"total": total} | settings,
        "constants": [jnp.float32(0.1)],
    }
    return fitting.fit(
        experiment, path, {"w": jnp.zeros(64)}, loss, batches, optax.adam(0.1), total, **options
    )


def test_a_restart_ends_with_the_same_bits(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fitting, "SAVE_EVERY", 2)
    straight = fit(tmp_path / "a.safetensors")
    path = tmp_path / "b.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(path, stop=5)
    assert not path.exists()
    resumed = fit(path)
    assert "continuing from step 4" in capsys.readouterr().out
    assert np.array_equal(straight["w"], resumed["w"])
    assert np.array_equal(fitting.load(path, {"w": np.zeros(64)}, "mode", {})["w"], resumed["w"])
    with pytest.raises(InputError, match="was trained with total = 7, but this run has 9"):
        fitting.load(path, {"w": np.zeros(64)}, "mode", {"total": 9})
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "a.safetensors",
        "b.safetensors",
        "lock",
    ]
    again = fit(path)
    assert "nothing left to do" in capsys.readouterr().out
    assert np.array_equal(again["w"], resumed["w"])


def test_noise_differs_between_steps(tmp_path, monkeypatch):
    """The key of a step is a function of its number."""
    experiment, values = Experiment(tiny.config()), []
    monkeypatch.setattr(fitting, "LOG_EVERY", 1)
    monkeypatch.setattr(fitting, "_report", lambda step, losses, unit: values.extend(losses))

    def loss(params, batch, key):
        return jax.random.normal(key) + 0 * params["w"].sum()

    batches = Batches(experiment.train, 16, 0)
    arguments = tmp_path / "a.safetensors", {"w": jnp.ones(2)}, loss, batches, optax.sgd(0.1), 4
    fitting.fit(experiment, *arguments, key=jax.random.key(3), settings={})
    keys = [jax.random.fold_in(jax.random.key(3), i) for i in range(4)]
    np.testing.assert_allclose(values, [jax.random.normal(key) for key in keys], rtol=1e-6)


def test_other_settings_are_refused(tmp_path, monkeypatch):
    """Neither the state of a training that was stopped nor a finished network is replaced."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", 2)
    path, partial = tmp_path / "a.safetensors", tmp_path / "a.partial"
    with pytest.raises(KeyboardInterrupt):
        fit(path, stop=5)
    before = partial.read_bytes()
    message = "a.partial was trained with other settings; .* Move the file .* Differences"
    with pytest.raises(InputError, match=f"{message}: rate: 'absent' there, 2 now"):
        fit(path, rate=2)
    assert partial.read_bytes() == before
    fit(path)
    before = path.read_bytes()
    message = "Differences: rate: 'absent' there, 2 now; total: 7 there, 3 now"
    with pytest.raises(
        InputError, match=f"a.safetensors was trained with other settings.* {message}"
    ):
        fit(path, total=3, rate=2)
    assert path.read_bytes() == before
    moved = tmp_path / "elsewhere" / "b.safetensors"
    moved.parent.mkdir()
    path.rename(moved)
    moved.with_suffix(".partial").write_bytes(before)  # As a finished one, with other settings.
    with pytest.raises(InputError, match="b.safetensors was trained with other settings"):
        fit(moved, total=3)
    assert not (tmp_path / "elsewhere" / "lock").exists()


def test_another_network_is_not_replaced(tmp_path):
    """Its settings are compared, although its arrays do not fit."""
    path = tmp_path / "a.safetensors"
    save_tree(path, {"w": np.zeros(3)}, {"total": 1}, 1)
    with pytest.raises(InputError, match="Differences: total: 1 there, 7 now"):
        fit(path)


def test_damaged_files_are_trained_again(tmp_path, caplog):
    path = tmp_path / "a.safetensors"
    for each in (path, path.with_suffix(".partial")):
        each.write_bytes(b"damaged")
    fit(path, total=2)
    assert caplog.text.count("It is not used, and is replaced") == 2
    assert fitting.load(path, {"w": np.zeros(64)}, "mode", {"total": 2})


def test_the_place_of_the_images_does_not_matter(tmp_path, capsys):
    """Earlier versions stored it with the other settings."""
    path, stored = tmp_path / "a.safetensors", {"path": "/a", "tfrecords_path": "", "size": 8}
    save_tree(path, {"w": np.ones(64)}, {"total": 7, "data": stored}, 7)
    assert (fit(path, data={"size": 8})["w"] == 1).all()
    assert "nothing left to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="Differences: data.size: 8 there, 9 now.$"):
        fit(path, data={"size": 9})


def test_a_loss_that_is_not_finite(tmp_path):
    experiment = Experiment(tiny.config())
    batches = Batches(experiment.train, 16, 0)

    def loss(params, batch, key):
        return jnp.log(params["w"]).sum() * jnp.nan

    arguments = tmp_path / "a.safetensors", {"w": jnp.ones(2)}, loss, batches, optax.sgd(0.1)
    with pytest.raises(InputError, match="step 3: the loss is nan"):
        fitting.fit(experiment, *arguments, 3, key=jax.random.key(0), settings={})
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("bad_step", [2, 3])
def test_parameters_that_overflow_are_not_saved(tmp_path, monkeypatch, bad_step):
    """All losses are finite, and the update of one step makes a parameter infinite."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", 2)
    experiment = Experiment(tiny.config())

    def update(updates, count, params=None):
        bad = count == bad_step - 1
        return jax.tree.map(lambda leaf: jnp.where(bad, jnp.inf, leaf), updates), count + 1

    optimizer = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    arguments = tmp_path / "a.safetensors", {"w": jnp.ones(2)}, lambda params, batch, key: 0.0
    arguments += Batches(experiment.train, 16, 0), optimizer, 3
    with pytest.raises(InputError, match=f"step {bad_step}: the parameters or the optimizer state"):
        fitting.fit(experiment, *arguments, key=jax.random.key(0), settings={})
    saved = [path.name for path in tmp_path.iterdir() if path.name != "lock"]
    assert saved == (["a.partial"] if bad_step == 3 else [])


def test_two_processes_do_not_train_the_same_network(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="is in use by process"):
        fit(tmp_path / "a.safetensors")


# --- the classifier -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir that has a classifier and no score model."""
    folder = tmp_path_factory.mktemp("classifier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "NUM_LEVELS", 3)
        classification.train(tiny.config(**SMALL), str(folder))
    return folder


def test_accuracy_is_written(workdir):
    result = json.loads((workdir / "classifier" / "accuracy.json").read_text())
    assert (result["images"], result["classes"]) == (359, 10)
    sde = Experiment(tiny.config()).sde
    ends = [float(sde.noise_to_signal(t)) for t in (sde.t_end, sde.T)]
    levels = [row["noise_level"] for row in result["levels"]]
    np.testing.assert_allclose(levels, [ends[0], np.sqrt(ends[0] * ends[1]), ends[1]], rtol=1e-5)
    assert all(0 <= row["accuracy"] <= 1 and row["nats"] > 0 for row in result["levels"])


def test_training_images(tmp_path, monkeypatch):
    used = []

    def fit(experiment, path, params, loss, batches, *rest, settings, **options):
        used.append((batches, settings))

    monkeypatch.setattr(fitting, "fit", fit)
    monkeypatch.setattr(classification, "report", lambda *_: None)
    classification.train(tiny.config(**SMALL), str(tmp_path))
    ((batches, settings),) = used
    assert settings["data"]["dataset"] == "digits"
    assert settings["images"] == batches.images.digest  # Wherever they are.
    assert not {"path", "tfrecords_path"} & settings["data"].keys()
    assert (len(batches.images), batches.batch_size, batches.labelled) == (1438, 16, True)


def test_accuracy_counts_every_image_once(monkeypatch):
    """The measures of a classifier that assigns probability 1/2 to class 3 for every image."""
    monkeypatch.setattr(classification, "NUM_LEVELS", 1)
    experiment = Experiment(tiny.config(**SMALL))
    constant = jnp.log(jnp.full(10, 0.5 / 9).at[3].set(0.5))

    def log_probs(x, t):
        return jnp.broadcast_to(constant, (len(x), 10))

    monkeypatch.setattr(experiment, "class_log_probs", lambda params: log_probs)
    (row,) = classification.accuracy(experiment, {})
    threes = (experiment.test.labels == 3).mean()
    assert row["accuracy"] == pytest.approx(threes)
    nats = -threes * np.log(0.5) - (1 - threes) * np.log(0.5 / 9)
    assert row["nats"] == pytest.approx(nats, rel=1e-5)
    assert row["stderr"] == pytest.approx(np.sqrt(threes * (1 - threes) / 359))


def test_images_are_noised_but_not_flipped(monkeypatch):
    """The classifier gets x_t = alpha x + std z of test images as they are."""
    experiment = Experiment(tiny.config(**SMALL | {"data.dataset": "black_and_white"}))
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
    evaluate, t = classification._compile_evaluation(experiment), jnp.float32(0.3)
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


def test_guidance_from_a_workdir(workdir):
    """The classifier's gradient changes samples; without a classifier nothing is compiled."""
    changes = SMALL | {"guidance.classes": (1, 2), "guidance.scale": 30.0}
    experiment = Experiment(tiny.config(**changes))
    params = experiment.init_params()
    with pytest.raises(InputError, match="guidance.classes needs a classifier"):
        experiment.sample_images(params, 0, 2)
    classification.provide(experiment, workdir)
    images, nfe, *_ = experiment.sample_images(params, 0, 4)
    plain = Experiment(tiny.config(**SMALL)).sample_images(params, 0, 4).x
    assert nfe.tolist() == [3] * 4
    assert (images != plain).any((1, 2, 3)).all()


def test_invalid_input(workdir, tmp_path):
    classes = {"guidance.classes": (1,)}
    with pytest.raises(
        InputError, match="does not exist; train it first, with --mode=train_classifier"
    ):
        classification.provide(Experiment(tiny.config(**classes)), tmp_path)
    config = tiny.config(**classes, **{"training.snapshot_sampling": True})
    with pytest.raises(InputError, match="does not exist; train it first"):  # Before compilation.
        training.train(config, str(tmp_path / "w"))
    assert list(tmp_path.iterdir()) == []
    other = Experiment(tiny.config(**classes, **{"model.beta_max": 10.0}))
    with pytest.raises(InputError, match="was trained with sde = .*beta_max=20.0.* but this run"):
        classification.provide(other, workdir)
    other = Experiment(tiny.config(**classes, **{"data.centered": False}))
    with pytest.raises(InputError, match="was trained with data.centered = True, but this run has"):
        classification.provide(other, workdir)
    other = Experiment(tiny.config(**classes, **{"data.dataset": "black_and_white"}))
    with pytest.raises(InputError, match="was trained with data.dataset = 'digits', but this run"):
        classification.provide(other, workdir)
    other = Experiment(tiny.config(**classes, **{"classifier.blocks_per_group": 2}))
    with pytest.raises(InputError, match="holds another network than the config's"):
        classification.provide(other, workdir)
    message = "classifier.num_classes = 3, but the labels of data.dataset go from 0 to 9"
    with pytest.raises(InputError, match=message):
        classification.train(tiny.config(**SMALL | {"classifier.num_classes": 3}), str(tmp_path))
    with pytest.raises(InputError, match="classifier.num_classes = 10 needs images with labels"):
        classification.train(tiny.config(**SMALL | {"data.dataset": "noise"}), str(tmp_path))
    with pytest.raises(InputError, match="classifier.batch_size = 15 does not divide"):
        classification.train(tiny.config(**SMALL | {"classifier.batch_size": 15}), str(tmp_path))
    with pytest.raises(
        InputError, match="classifier.lr = 0.0 must be a finite number, at least 1e-30"
    ):
        classification.train(tiny.config(**SMALL | {"classifier.lr": 0.0}), str(tmp_path))
