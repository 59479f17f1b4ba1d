"""Guidance: recorded official runs, mixtures with known classes, class-conditional networks."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import datasets
import pretrained
import sampling
import solvers
from controllable import guidance
from errors import InputError
from experiment import Experiment
from metrics import samples_stage
from metrics.stage import Context
from models.conditions import Condition
from pretrained import parameter_names
from sde_lib import VESDE, VPSDE
from studies import guidance as study
from tests import gaussian, mixture, reference, tiny
from tests.test_sampling import KEYS, recorded_moments, replay, to_recorded_range

SDES = {"ve": VESDE(), "vp": VPSDE()}
CONDITIONAL = {"data.num_classes": 10, "guidance.classes": (3, 1, 4), "guidance.scale": 1.0}

# --- recorded official runs ---------------------------------------------------------------------


def official_classifier(sde):
    """The classifier of the recordings: CIFAR-10's preprocessing and a linear map over 1 + sigma.

    Returns its logits, and the official log p(class | x), which passes x and std for any SDE.
    """
    mean = np.array([0.49139968, 0.48215841, 0.44653091], np.float32)
    std = np.array([0.24703223, 0.24348513, 0.26158784], np.float32)
    weights = reference.arrays("controllable")["classcond/W"]

    def logits(images, sigma):
        return jnp.einsum("bhwc,hwck->bk", (images - mean) / std, weights) / (1 + sigma[:, None])

    return logits, lambda x, t: jax.nn.log_softmax(logits(x, sde.std(t)))


def test_recorded_logits_and_gradients():
    a = reference.arrays("controllable")
    logits, _ = official_classifier(VESDE())
    x, sigma, labels = (jnp.asarray(a[f"classcond/{name}"]) for name in ("x", "sigma", "labels"))
    np.testing.assert_allclose(logits(x, sigma), a["classcond/logits"], rtol=1e-5)
    guided = guidance.classifier(
        lambda x, t: jnp.zeros_like(x),
        lambda x, t: jax.nn.log_softmax(logits(x, sigma)),
        labels,
        VESDE(),
    )
    assert reference.image_error(guided(x, jnp.ones(3)), a["classcond/grad"]) < 1e-5


CASES = ["ve/reverse_diffusion+langevin", "vp/reverse_diffusion+langevin", "vp/euler_maruyama+none"]


@pytest.mark.parametrize("case", CASES)
def test_recorded_trajectories(monkeypatch, case):
    """For VE `class_log_probs` is the official classifier; for VP we pass the official one."""
    note, a = reference.notes("controllable")[f"classcond/{case}"], reference.arrays("controllable")
    sde = dataclasses.replace(reference.sde(note["sde"]), t_end=note["eps"])
    logits, log_probs = official_classifier(sde)
    if case.startswith("ve"):
        log_probs = guidance.class_log_probs(logits, sde)
    score = guidance.classifier(
        gaussian.score(sde, *recorded_moments()), log_probs, jnp.asarray(a["classcond/labels"]), sde
    )
    noises = replay(monkeypatch, a[f"classcond/{case}/noises"])
    updates = {
        "predictor": sampling.PREDICTORS[note["predictor"]],
        "corrector": sampling.CORRECTORS[note["corrector"]],
    }
    with jax.disable_jit():
        prior, steps = sampling.prior_sample(KEYS, sde, (3, 8, 8, 3)), sde.discretize(10)
        x, *_ = sampling.predictor_corrector(
            KEYS, score, sde, prior, steps, snr=note["snr"], **updates
        )
    x = to_recorded_range(note["inverse_scaler"], x)
    assert reference.image_error(x, a[f"classcond/{case}/out_denoise"]) < 1e-4
    assert next(noises, None) is None


# --- a mixture, whose components are the classes ------------------------------------------------

MIXTURE = mixture.make(3, (2, 2, 1))


def bayes(images, sigma):
    """Logits of the Bayes-optimal classifier of data + sigma z: the components' log-densities."""

    def of_one(x, sigma):
        var = MIXTURE.stds**2 + sigma**2
        squares = jnp.square(x - MIXTURE.means).reshape(3, -1).sum(-1)
        return -0.5 * (squares / var + x.size * jnp.log(var))

    return jax.vmap(of_one)(images, sigma)


def class_score(sde):
    """The class-conditional score of the mixture, with the interface of a network."""

    def score(x, t, classes):
        if classes is None:
            return MIXTURE.score(sde)(x, t)
        stds = MIXTURE.stds[classes].reshape(-1, 1, 1, 1)
        return gaussian.score(sde, MIXTURE.means[classes], stds)(x, t)

    return score


@pytest.mark.parametrize("name", SDES)
def test_bayes_rule(name):
    """The gradient of the optimal classifier turns the mixture's score into a component's."""
    sde, classes = SDES[name], jnp.array([0, 1, 2, 2])
    t = jnp.array([0.05, 0.3, 0.6, 1.0])
    noise = jax.random.normal(jax.random.key(0), (4, 2, 2, 1))
    x = jnp.sqrt(sde.alpha(t) ** 2 + sde.var(t)).reshape(-1, 1, 1, 1) * noise
    log_probs = guidance.class_log_probs(bayes, sde)
    inside = np.array([False, True, True, False]).reshape(-1, 1, 1, 1)
    interval = tuple(float(level) for level in sde.noise_to_signal(jnp.array([0.29, 0.61])))
    options = [{}, {"scale": 0.0}, {"scale": 2.0}, {"scale": 2.0, "interval": interval}]

    @jax.jit
    def scores(x):
        unconditional, conditional = MIXTURE.score(sde), class_score(sde)
        with_classifier = [
            guidance.classifier(unconditional, log_probs, classes, sde, **each)(x, t)
            for each in options
        ]
        without_classifier = [
            guidance.classifier_free(conditional, classes, sde, **each)(x, t) for each in options
        ]
        return conditional(x, t, classes), unconditional(x, t), with_classifier, without_classifier

    conditional, unconditional, *results = scores(x)
    scaled = unconditional + 2 * (conditional - unconditional)
    expected = [conditional, unconditional, scaled, np.where(inside, scaled, conditional)]
    for guided in results:
        for ours, exact in zip(guided, expected, strict=True):
            np.testing.assert_allclose(ours, exact, rtol=2e-3, atol=2e-4)


SAMPLERS = {
    "pc": {"steps": 100, "predictor": "euler_maruyama", "corrector": "ald", "snr": 0.1},
    "ode": {},
    "deis": {"schedule": "karras"},
    "adaptive_sde": {"tolerance": 0.1},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_with_every_sampler(name):
    """Each image belongs to the component of its class, and evaluations are counted."""
    sde, classes, interval = SDES["vp"], jnp.arange(12) % 3, (0.05, 2.0)
    sampler = sampling.make(name, sde, **SAMPLERS[name])
    keys = sampling.image_keys(jax.random.key(0), jnp.arange(12))
    prior = sampling.prior_sample(keys, sde, (12, 2, 2, 1))

    @jax.jit
    def run(classes):
        return sampler(
            keys,
            guidance.classifier_free(class_score(sde), classes, sde, scale=1.5, interval=interval),
            prior,
        )

    x, nfe, *_ = run(classes)
    z = (x - MIXTURE.means[classes]) / MIXTURE.stds[classes].reshape(-1, 1, 1, 1)
    assert np.abs(z).max() < 4.5
    if name in ("pc", "deis"):
        levels = solvers.noise_levels(sde, "karras", 20)[:-1]
        calls_per_level = 1
        if name == "pc":
            levels = sde.noise_to_signal(sde.sampling_times(100))
            calls_per_level = 2
        guided = int(((interval[0] <= levels) & (levels <= interval[1])).sum())
        assert 0 < guided < len(levels)
        assert set(nfe.tolist()) == {calls_per_level * (len(levels) + guided)}
    else:
        assert (nfe % 2 == 0).all()  # an upper bound: two evaluations for each call


def test_evaluations():
    """Two inside the interval, one outside and where the scale is 1; classifiers do not count."""
    sde, t = VESDE(), jnp.array([0.1, 0.5, 0.9])
    interval = (float(sde.std(0.4)), float(sde.std(0.6)))

    def count(**options):
        return guidance.classifier_free(None, t, sde, **options).evaluations(t).tolist()

    assert count(scale=2.0, interval=interval) == [1, 2, 1]
    assert count(scale=2.0) == [2, 2, 2]
    assert count(scale=1.0) == [1, 1, 1]
    with_classifier = guidance.classifier(None, None, t, sde, scale=2.0)
    assert solvers.results.evaluations(with_classifier, t).tolist() == [1, 1, 1]
    assert solvers.results.evaluations(lambda x, t: x, t).tolist() == [1, 1, 1]


# --- class-conditional networks -----------------------------------------------------------------


@pytest.fixture(scope="module")
def conditional():
    """An experiment with a class-conditional network, and random parameters."""
    experiment = Experiment(
        tiny.config(**CONDITIONAL, **{"sampling.method": "solver", "sampling.num_steps": 3})
    )
    return experiment, tiny.random_params(experiment)


def test_scores_depend_on_the_class(conditional):
    experiment, params = conditional
    x, t = jnp.ones((3, 8, 8, 1)), jnp.full(3, 0.5)
    score = jax.jit(
        lambda params, classes: experiment.score(params, condition=Condition(classes))(x, t)
    )
    none = jax.jit(lambda params: experiment.score(params)(x, t))(params)
    first, second, hidden = score(params, jnp.array([0, 9, 10]))
    assert not np.allclose(first, second, rtol=1e-3)
    np.testing.assert_allclose(hidden, none[0], rtol=1e-5)


def test_conditional_networks_add_one_parameter(conditional):
    def paths(network):
        return [path for path, *_ in parameter_names.parameters(network)]

    unconditional_paths = paths(Experiment(tiny.config()).network)
    conditional_paths = paths(conditional[0].network)
    added = [path for path in conditional_paths if path not in unconditional_paths]
    assert added == [("class_embedding", "embedding")]
    assert set(unconditional_paths) < set(conditional_paths)


def test_export(conditional, tmp_path):
    """Only .safetensors files can hold these networks."""
    experiment, params = conditional
    squares = jax.tree.map(np.square, params)  # Adam's second moments are not negative.
    trained = pretrained.Trained(3, params, params, params, squares, 2)

    def write(name):
        with open(tmp_path / name, "wb") as file:
            pretrained.writer(tmp_path / name)(file, trained, experiment.network, experiment.config)

    write("a.safetensors")
    again = pretrained.read(tmp_path / "a.safetensors", experiment.network, experiment.config).ema
    jax.tree.map(np.testing.assert_array_equal, params, again)
    names = ["a.pth", "a"] if importlib.util.find_spec("torch") else ["a"]
    for name in names:
        with pytest.raises(InputError, match="data.num_classes > 0 .* .safetensors files"):
            write(name)


def test_evaluation_samples_the_classes(conditional, tmp_path):
    """Image i has the class classes[i % 3]; results.json states the guidance."""
    experiment, params = conditional
    result = samples_stage.run(Context(experiment, params, tmp_path))
    assert result["guidance"] == {
        "kind": "classifier-free",
        "classes": [3, 1, 4],
        "scale": 1.0,
        "interval": [0.0, 1e6],
    }
    with np.load(tmp_path / "samples_0.npz") as round:
        assert round["classes"].tolist() == [3, 1, 4, 3, 1, 4, 3, 1, 4, 3]
        assert round["nfe"].tolist() == [3] * 10
    json.dumps(result)


def test_picture_has_a_column_for_each_class(tmp_path):
    """Of classes in any order; with as many rows as the rarest class has images."""
    classes = np.array([4, 1, 4, 3, 1, 4, 3])
    images = np.arange(7, dtype=np.uint8).reshape(7, 1, 1, 1) * np.ones((1, 8, 8, 1), np.uint8)
    for index, part in enumerate((slice(0, 4), slice(4, 7))):
        path = tmp_path / f"samples_{index}.npz"
        np.savez(path, samples=images[part], classes=classes[part])
    study.draw(tmp_path / "a.png", tmp_path)
    expected = datasets.image_grid(images[[1, 3, 0, 4, 6, 2]], titles=["1", "3", "4"])
    np.testing.assert_array_equal(Image.open(tmp_path / "a.png"), expected)


def test_distance_to_the_nearest_digit():
    training, x = np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[3.0, 4.0], [10.0, 1.0]])
    np.testing.assert_allclose(study.distance_to_nearest(x, training), [5, 1])
