"""EDM's samplers and losses, recorded from its code with small random networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
import solvers
import solvers.plan
from models.conditions import Condition
from sde_lib import EDMSDE, expand
from tests import reference, test_edm_import

NAMES = ("e01_edm_ddpmpp", "e02_edm_ncsnpp", "e03_edm_ddpmpp_cond", "e04_vp_ddpmpp")
NAMES += ("e05_ve_ncsnpp", "e06_ve_ncsnpp_skip", "e07_edm_adm")
FOLDERS = reference.cases(NAMES, slow=NAMES[1:])
RANGE = EDMSDE(T=200.0, t_min=1e-4, t_end=1e-4)  # Its states are EDM's: y with noise of level t.


class Recorded:
    """A recorded network: its denoiser in EDM's units, and the recorded arrays, as NHWC."""

    def __init__(self, name):
        self.kind = test_edm_import.info(name)["class_name"]
        self.experiment = test_edm_import.experiment(name)
        self.params = test_edm_import.trained(name).params
        self.arrays = dict(np.load(reference.find(f"edm/{name}/io.npz")))
        self.classes = None
        if "class_labels" in self.arrays:
            self.classes = jnp.asarray(self.arrays["class_labels"].argmax(1))

    def images(self, name):
        return jnp.asarray(np.moveaxis(self.arrays[name], -3, -1), jnp.float32)

    @property
    def levels(self):
        """The lowest and highest noise level of the network."""
        return {"EDMPrecond": (0, np.inf), "VPPrecond": (1e-3, 152.0), "VEPrecond": (0.02, 100.0)}[
            self.kind
        ]

    def to_ours(self, y, sigma):
        """Our noisy images, and their times (B,)."""
        sde = self.experiment.sde
        if self.kind == "VEPrecond":  # Images in [0, 1] instead of [-1, 1].
            return (y + 1) / 2, sde.time_at(sigma / 2)
        # EDM's networks have no highest level, and our SDE's T is that of its samplers.
        t = sigma if self.kind == "EDMPrecond" else sde.time_at(sigma)
        return expand(sde.alpha(t), y) * y, t

    def denoise(self, params, y, sigma):
        """D(y; sigma) (B, H, W, C) for levels (B,)."""
        x, t = self.to_ours(y, sigma)
        score = self.experiment.score(params, condition=Condition(self.classes))(x, t)
        mean = self.experiment.sde.posterior_mean(score, x, t)
        return 2 * mean - 1 if self.kind == "VEPrecond" else mean

    def score(self, y, sigma):
        return (self.denoise(self.params, y, sigma) - y) / expand(sigma**2, y)


recorded = functools.cache(Recorded)


def karras(name, lowest=0.002, highest=80.0):
    low, high = recorded(name).levels
    return np.append(solvers.karras(min(highest, high), max(lowest, low), 8), 0.0)


def follow(name, solver, levels, **options):
    """Run a solver in EDM's units, from the recorded latents; relative error to a recorded run."""
    network, solver = recorded(name), solvers.SOLVERS[solver]
    plan = solver.plan(levels, **options)
    start = network.images("latents") * levels[0]
    keys = jax.random.split(jax.random.key(0), len(start)) if solver.stochastic else None

    @jax.jit
    def run(start):
        return solvers.few_step(
            keys, network.score, RANGE, start, plan, 0.0, noise_prediction=solver.noise_prediction
        )[0]

    return run(start)


def error(found, expected):
    """The largest difference relative to the largest recorded value."""
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_heun(name):
    expected = np.moveaxis(recorded(name).arrays["edm_sampler_8"], 1, -1)
    assert error(follow(name, "heun", karras(name)), expected) < 1e-4


@pytest.mark.parametrize("name", FOLDERS)
def test_heun_with_churn(name, monkeypatch):
    """With the recorded noise of each step in place of random numbers."""
    noise = recorded(name).images("churn_noise")
    monkeypatch.setattr(
        solvers.plan, "_noise", lambda keys, row, purpose, shape: noise[jnp.asarray(row) // 2]
    )
    options = {"churn": 10.0, "churn_interval": (0.05, 50.0), "churn_noise": 1.003}
    expected = np.moveaxis(recorded(name).arrays["edm_sampler_8_churn"], 1, -1)
    found = follow(name, "heun_churn", karras(name), **options)
    assert error(found, expected) < 1e-4


def levels_of(curve, name):
    """The time steps of EDM's ablations, cut to the levels that the network supports."""
    low, high = recorded(name).levels
    if curve == "linear":
        return karras(name)
    if curve == "ve":
        return np.append(np.geomspace(min(100.0, high), max(0.02, low), 8), 0.0)
    t = np.linspace(1, 1e-3, 8)
    exponent = 19.9 / 2 * t**2 + 0.1 * t
    if high < 100.1:  # Other betas, so that the levels end at those of the network.
        ends = np.log1p([high**2, max(low, np.sqrt(np.expm1(exponent[-1]))) ** 2])
        slope, beta_min = np.linalg.solve([[0.5, 1], [5e-7, 1e-3]], ends)
        exponent = slope / 2 * t**2 + beta_min * t
    return np.append(np.sqrt(np.expm1(exponent)), 0.0)


ABLATIONS = {
    "euler_vp": ("euler", {"curve": "vp"}),
    "heun_vp": ("heun", {"curve": "vp"}),
    "euler_ve": ("euler", {"curve": "ve"}),
    "heun_ve": ("heun", {"curve": "ve"}),
    "euler_edm": ("euler", {"curve": "linear"}),
    "heun_edm_alpha05": ("heun", {"curve": "linear", "second_point": 0.5}),
}


@pytest.mark.parametrize("run", reference.cases(ABLATIONS, slow=set(ABLATIONS) - {"heun_vp"}))
@pytest.mark.parametrize("name", FOLDERS)
def test_ablations(name, run):
    expected = np.moveaxis(recorded(name).arrays[f"ablation_{run}"], 1, -1)
    solver, options = ABLATIONS[run]
    found = follow(name, solver, levels_of(options["curve"], name), **options)
    assert error(found, expected) < 1e-4


def loss_level(network):
    """The noise levels of the recorded losses (B,), from the recorded random numbers."""
    u = network.arrays["loss_level_noise"].ravel().astype(np.float64)
    if network.kind == "EDMPrecond":
        return np.exp(-1.2 + 1.2 * u)
    if network.kind == "VEPrecond":
        return 0.02 * (100 / 0.02) ** u
    t = 1 + u * (1e-5 - 1)
    return np.sqrt(np.expm1(19.9 / 2 * t**2 + 0.1 * t))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_losses(name):
    """The objective of the experiment, at the recorded levels, and its gradient."""
    network = recorded(name)
    ours, sde = network.experiment, network.experiment.sde
    sigma = jnp.asarray(loss_level(network), jnp.float32)
    images, noise = network.images("loss_images"), network.images("loss_noise")
    x = (images + 1) / 2 if network.kind == "VEPrecond" else images
    t = sde.time_at(sigma / 2 if network.kind == "VEPrecond" else sigma)
    weight = ours.score_model.loss_weight(t)
    if network.kind == "EDMPrecond":
        np.testing.assert_allclose(weight, losses.edm_weight(sde, t, data_std=0.5), rtol=1e-5)

    def loss(params):
        score = ours.score(params, condition=Condition(network.classes))
        per_image = losses.denoising_score_matching(score, sde, x, t, noise, weight=weight)
        return per_image.mean(), per_image

    grads, per_image = jax.jit(jax.grad(loss, has_aux=True))(network.params)
    expected = network.arrays["loss"].reshape(len(x), -1).mean(1)
    np.testing.assert_allclose(per_image, expected, rtol=1e-5)
    if network.classes is not None and ours.config.model.name == "ncsnpp":
        # Our rows include EDM's bias, and the factor of its one-hot labels, the root of 10.
        table = grads["class_embedding"]
        table |= {"bias": table["embedding"].sum(0), "embedding": table["embedding"] * 10**0.5}
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))) * x[0].size
    np.testing.assert_allclose(norm, network.arrays["loss_grad_norm"], rtol=1e-4)
