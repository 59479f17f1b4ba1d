"""Guidance: recorded official runs, mixtures with known classes, class-conditional networks."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pretrained
import sampling
import solvers
from controllable import guidance
from experiment import Experiment
from metrics import samples_stage
from metrics.stage import Context
from sde_lib import VESDE, VPSDE
from tests import gaussian, mixture, reference, tiny
from tests.refusal import refused

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


CASES = ["ve/reverse_diffusion+langevin", "vp/reverse_diffusion+langevin", "vp/euler_maruyama+none"]


@pytest.mark.parametrize("case", reference.cases(CASES, CASES[1:2]))
def test_recorded_trajectories(monkeypatch, case):
    """For VE `class_log_probs` is the official classifier; for VP we pass the official one."""
    note, a = reference.notes("controllable")[f"classcond/{case}"], reference.arrays("controllable")
    sde = dataclasses.replace(reference.sde(note["sde"]), t_end=note["eps"])
    logits, log_probs = official_classifier(sde)
    if case.startswith("ve"):
        log_probs = guidance.class_log_probs(logits, sde)
    labels, data = jnp.asarray(a["classcond/labels"]), reference.arrays("samplers")
    score = guidance.classifier(gaussian.score(sde, data["mu"], data["s"]), log_probs, labels, sde)
    noises = reference.replay(monkeypatch, a[f"classcond/{case}/noises"])
    x, _ = reference.trajectory(note, score, sde, noises)
    assert reference.image_error(x, a[f"classcond/{case}/out_denoise"]) < 1e-4


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


@pytest.mark.parametrize("sde", [VESDE(), VPSDE()], ids=["ve", "vp"])
def test_bayes_rule(sde):
    """The gradient of the optimal classifier turns the mixture's score into a component's."""
    classes = jnp.array([0, 1, 2, 2])
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
    "deis": {"schedule": "karras"},
    "adaptive_sde": {"tolerance": 0.1},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_with_every_sampler(name):
    """Each image belongs to the component of its class, and evaluations are counted."""
    sde, classes, interval = VPSDE(), jnp.arange(12) % 3, (0.05, 2.0)
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


# --- class-conditional networks -----------------------------------------------------------------


def test_export(tmp_path):
    """Only .safetensors files can hold class-conditional networks."""
    experiment = Experiment(tiny.config(**{"data.num_classes": 10}))
    params = tiny.random_params(experiment)
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
        refused("data.num_classes > 0 .* .safetensors files", write, name)


def test_evaluation_samples_the_classes(tmp_path):
    """Image i has the class classes[i % 3]; results.json states the guidance."""
    changes = {"data.num_classes": 10, "guidance.classes": (3, 1, 4), "guidance.scale": 1.0}
    changes |= {"sampling.method": "solver", "sampling.num_steps": 3}
    experiment = Experiment(tiny.config(**tiny.MLP, **changes))
    params = tiny.random_params(experiment)
    result = samples_stage.run(Context(experiment, params, tmp_path))
    stated = {"kind": "classifier-free", "classes": [3, 1, 4], "scale": 1.0, "interval": [0.0, 1e6]}
    assert result["guidance"] == stated
    with np.load(tmp_path / "samples_0.npz") as round:
        assert round["classes"].tolist() == [3, 1, 4, 3, 1, 4, 3, 1, 4, 3]
        assert round["nfe"].tolist() == [3] * 10
    json.dumps(result)
