"""Conditions: classes, vectors and images, from data to samples, densities and guidance."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from PIL import Image

import datasets
import evaluation
import pretrained
import score_sde as ss
import training
from api import weighted
from api.conditional import ConditionalPrior, NetworkScore
from commands import calibration, latents, restoration, samples
from controllable import guidance, operators
from experiment import Experiment
from models import conditions
from models.conditions import Condition, Kinds
from runs import load_rounds
from sde_lib import VPSDE, expand
from tests import reference, tiny
from tests.refusal import refused

SDE = VPSDE()
MAP, STD, WIDE = jnp.array([[1.0, 0.5], [0.0, -1.0], [0.7, 0.0]]), 0.5, 2.0


def gaussian(params, x, t, condition):
    """The score of N(c MAP, STD^2), or that of N(0, WIDE^2) without a condition; `params` is a
    factor of the standard deviation."""
    mean, std = (0.0, WIDE) if condition is None else (condition.vector @ MAP, params * STD)
    var = SDE.alpha(t) ** 2 * std**2 + SDE.var(t)
    return (expand(SDE.alpha(t), x) * mean - x) / expand(var, x)


def prior(params=1.0, apply=gaussian, **kinds):
    found = ConditionalPrior(NetworkScore(jnp.float32(params), apply, SDE), SDE, (2,))
    found.kinds = Kinds(**({"vector_size": 3} | kinds))
    return found


C = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


# --- given a condition, in closed form ------------------------------------------------------------


@pytest.mark.slow
def test_samples_and_densities():
    """Event i has condition i % 4; densities are those of each pair."""
    model, mean = prior(), C @ MAP
    x = np.asarray(model.sample(800, condition=C, batch_size=300)).reshape(200, 4, 2)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.15)
    np.testing.assert_allclose(x.std(0), STD, atol=0.1)
    for other in ({}, {"condition": C[0]}):
        found = np.asarray(model.sample(800, batch_size=300, **other))
        assert np.abs(found.reshape(200, 4, 2).mean(0) - mean).max() > 0.5
    exact = scipy.stats.norm.logpdf(x[:2], mean, STD).sum(-1)
    logp, _ = model.log_prob(x[:2], condition=np.stack([C, C]), return_error=True)
    np.testing.assert_allclose(logp, exact, atol=0.02)
    given = model.given(C[1]).log_prob(x[:2, 1], steps=32)
    np.testing.assert_allclose(given, exact[:, 1], atol=0.02)
    heun = {"condition": C, "sampler": "heun", "steps": 30}
    z = model.encode(x[0], **heun)
    np.testing.assert_allclose(z, (x[0] - mean) / STD, atol=0.05)
    np.testing.assert_allclose(model.decode(z, **heun), x[0], atol=0.02)
    gradient = jax.grad(lambda c: model.log_prob(x[0, 0], condition=c, steps=32))(jnp.asarray(C[0]))
    np.testing.assert_allclose(gradient, MAP @ (x[0, 0] - mean[0]) / STD**2, atol=0.1)


@pytest.mark.parametrize(
    "method",
    [{"method": "moment_matching"}, {"method": "smc"}]
    + [pytest.param({"weights": True}, marks=pytest.mark.slow)],
)
def test_posteriors(method, monkeypatch):
    """A measurement of the first entry narrows it, around the mean that the condition gives."""
    y, noise = np.array([[0.3], [-1.0], [0.0], [2.0]], np.float32), 0.5
    observe = operators.dense((2,), np.array([[1.0, 0.0]], np.float32))
    found = prior().posterior(y, observe, noise=noise, condition=C, **method)
    x = np.asarray(found.sample(400, batch_size=800))
    mean = np.array(C @ MAP)
    mean[:, 0] = (mean[:, 0] + y[:, 0]) / 2  # Both have the variance 1/4.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.15)
    np.testing.assert_allclose(x.std(0), [[np.sqrt(1 / 8), STD]] * 4, atol=0.1)
    if method == {"method": "smc"}:  # Also the second set of each measurement has its condition.
        monkeypatch.setattr(weighted, "MOST_SETS", 2)
        exact = scipy.stats.norm.logpdf(y[:, 0], (C @ MAP)[:, 0], math.hypot(STD, noise))
        np.testing.assert_allclose(found.log_evidence(steps=3, tolerance=1e-6), exact, atol=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_calibration_of_pairs():
    """Errors of the score are noticed, because the events are those of the data."""
    rng = np.random.default_rng(1)
    c = rng.normal(size=(200, 3)).astype(np.float32)
    x = (c @ MAP + STD * rng.normal(size=(200, 2))).astype(np.float32)
    assert prior().calibrate(x, c, steps=10).kind == "calibrated"
    assert prior(0.6).calibrate(x, c, steps=10).kind == "overconfident"
    other = c[np.roll(np.arange(200), 1)]
    assert prior().calibrate(x, other, steps=10).kind != "calibrated"


def test_autoguidance():
    """A weaker network whose spread is larger guides; the result is exact for Gaussians."""
    scale, weaker = 2.0, 1.5
    model, guide = prior(), prior(weaker)
    t, x = jnp.array([0.1, 0.6]), jnp.array([[0.5, -1.0], [2.0, 0.3]])
    interval = (0.0, float(SDE.noise_to_signal(jnp.float32(0.3))))
    condition = Condition(vector=C[:2])
    for given, scales in ((guidance.ALL_LEVELS, (scale, scale)), (interval, (scale, 1.0))):
        score = dataclasses.replace(
            *(model.score,), condition=condition, guide=guide.score, scale=scale, interval=given
        )
        narrow, wide = (gaussian(each, x, t, condition) for each in (1.0, weaker))
        factor = expand(jnp.array(scales), x)
        np.testing.assert_allclose(score(x, t), wide + factor * (narrow - wide), rtol=1e-5)
    mean, guided = np.tile(C @ MAP, (200, 1)), {"guide": guide, "guidance_scale": scale}
    x = model.sample(800, condition=C, sampler="heun", steps=20, **guided)
    # The guided flow scales x by exp of an integral.
    assert np.std(x - mean) == pytest.approx(guided_std(scale, weaker), abs=0.05)
    assert np.std(x - mean) < 0.95 * STD


def guided_std(scale, weaker):
    """Return the standard deviation after the probability flow, whose score is -k(t) x."""
    t = np.linspace(SDE.t_end, SDE.T, 20_001, dtype=np.float32)
    alpha, var = (np.asarray(each(jnp.asarray(t)), np.float64) for each in (SDE.alpha, SDE.var))
    slopes = [1 / (alpha**2 * std**2 + var) for std in (STD, weaker * STD)]
    k = slopes[1] + scale * (slopes[0] - slopes[1])
    beta = np.asarray(SDE.diffusion(jnp.asarray(t)), np.float64) ** 2
    rate = -beta / 2 + beta / 2 * k  # dx/dt = rate x
    return float(np.exp(-np.trapezoid(rate, t)))


CLASSES = {"num_classes": 3, "vector_size": 3}


@pytest.mark.parametrize(
    ("message", "kinds", "given"),
    [
        (r"vector = .*\(4, 2\).* must be .* of shape \(3,\)", {}, {"condition": C[:, :2]}),
        ("vector must hold finite", {}, {"condition": C * np.nan}),
        ("vector = an array of .* must be real", {}, {"condition": "a"}),
        (r"is an array, but .* classes of size 3 and vector of size 3", CLASSES, {"condition": C}),
        ("condition is vector, but", CLASSES, {"condition": {"vector": C}}),
        ("condition is angle, but", {}, {"condition": {"angle": C}}),
        (r"vector = an array of shape \(0, 3\)", {}, {"condition": C[:0]}),
        ("classes = .* must be integers", CLASSES, {"condition": {"vector": C, "classes": [0.5]}}),
        ("must be from 0 to 2", CLASSES, {"condition": {"vector": C, "classes": 2**40}}),
        ("4 of vector, 2 of classes", CLASSES, {"condition": {"vector": C}, "classes": (1, 2)}),
        ("must be from 0 to 2", CLASSES, {"condition": {"vector": C}, "classes": (3,)}),
        ("classes = .* need a class-conditional", {}, {"condition": C, "classes": (1,)}),
        ("condition = None: .* Pass condition", {"dropped": False}, {}),
        ("guide = 3 must be a trained model", {}, {"condition": C, "guide": 3}),
        ("stps = 3 has no .* Did you mean steps", {}, {"condition": C, "stps": 3}),
    ],
)  # fmt: skip
def test_bad_conditions(message, kinds, given):
    model, x = prior(**kinds), np.zeros((20, 2), np.float32)
    refused(message, model.sample, 2, **given)
    if given.keys() == {"condition"}:
        for function in (model.log_prob, model.encode, model.decode, model.calibrate):
            refused(message, function, x, **given)
        refused(message, model.posterior, x, lambda x: x, noise=1.0, **given)


def test_bad_pairs():
    model, x = prior(), np.zeros((3, 2), np.float32)
    refused("condition has 4 rows for 3 events", model.log_prob, x, condition=C)
    other = ConditionalPrior(model.score, VPSDE(beta_max=10.0), (2,))
    refused("guide has VPSDE", model.sample, 2, condition=C, guide=other)
    refused(r"guide has vector of size 2", model.sample, 2, guide=prior(vector_size=2))
    refused("guidance_scale = 'a' must be", model.given, C, guidance_scale="a")
    refused("condition = None: calibrate", model.calibrate, np.zeros((20, 2)), None)
    assert model.given(C.astype(np.longdouble)).condition.vector.dtype == np.float32
    without = prior(dropped=False)
    refused("condition = None", without.posterior, x[0], lambda x: x, noise=1.0)


# --- networks -------------------------------------------------------------------------------------


def test_no_condition_differs_from_zeros():
    """Bytes are scaled, and a last entry or channel tells a condition from none."""
    kinds, x = Kinds(2, 3, 1), jnp.zeros((2, 4, 4, 1))
    image = np.full((2, 4, 4, 1), 255, np.uint8)
    given = Condition(np.array([1, 0]), np.zeros((2, 3)), image, np.array([True, False]))
    found = kinds.arguments(given, x)
    assert found["classes"].tolist() == [1, 2]
    assert found["vector"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found["image"][0], np.ones((4, 4, 2)))
    none = kinds.arguments(None, x)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), found, none)
    assert kinds.names == ("classes", "vector", "image")
    assert Kinds().arguments(given, x) == {}


NETWORKS = {
    "ncsnpp": {},
    "ddpm": {"model.nf": 64},
    "adm": {"model.nf": 32},
    "before": {"model.name": "ncsnpp", "model.class_embedding": "before"},
}


@pytest.mark.parametrize("name", reference.cases(NETWORKS, {"ncsnpp", "adm"}))
def test_networks(name, tmp_path):
    """The score depends on each kind; parameters are added, and all others keep their names."""
    changes = {"model.name": name} | NETWORKS[name]
    sizes = {"data.num_classes": 2, "data.vector_size": 3, "data.image_channels": 2}
    experiment = Experiment(tiny.config(**changes, **sizes))
    params, x = tiny.random_params(experiment, scale=0.3), jnp.ones((2, 8, 8, 1))
    rng = np.random.default_rng(0)
    vector, image = rng.normal(size=(2, 3)), rng.normal(size=(2, 8, 8, 2))
    given = Condition(np.array([0, 1]), vector, image, np.ones(2, bool))
    score = jax.jit(lambda condition: experiment.score(params, condition=condition)(x, jnp.ones(2)))
    whole, none = score(given), score(None)
    np.testing.assert_allclose(score(given._replace(given=np.zeros(2, bool))), none, atol=1e-4)
    for other in ({"classes": np.array([1, 0])}, {"vector": 2 * vector}, {"image": 2 * image}):
        assert np.abs(score(given._replace(**other)) - whole).max() > 1e-3
    without = Experiment(tiny.config(**changes)).abstract_params
    assert params.keys() - without.keys() == {"class_embedding", "vector_embedding"}
    if name == "ddpm":  # The official code has no such network.
        trained = pretrained.Trained(0, params, params)
        write = pretrained.writer(tmp_path / "a")
        refused(
            "data.image_channels > 0", write, None, trained, experiment.network, experiment.config
        )


def test_conditions_are_dropped_together():
    given = Condition(np.ones(2000, int), np.ones((2000, 1)))
    found = Kinds(2, 1).arguments(
        conditions.dropped(jax.random.key(0), given, 0.25), jnp.zeros(2000)
    )
    missing = found["classes"] == 2
    np.testing.assert_array_equal(missing, found["vector"][:, 1] == 0)
    assert float(missing.mean()) == pytest.approx(0.25, abs=0.04)


# --- data and commands ----------------------------------------------------------------------------


def write_arrays(path, **changes):
    """Write digits, each with its mean as a vector, and its left half as an image."""
    images = datasets.load(tiny.config().data, "test")
    pixels = np.asarray(images.pixels)[:40] * 15
    half = pixels * (np.arange(8) < 4)[:, None].astype(np.uint8)
    level = pixels.mean((1, 2, 3)).astype(np.float32) / 255
    arrays = {"images": pixels, "level": level, "half": half, "labels": images.labels[:40]}
    np.savez(path, **{name: each for name, each in (arrays | changes).items() if each is not None})
    return str(path)


PAIRS = {
    "data.dataset": "array",
    "data.condition": ("level", "half"),
    "data.vector_size": 1,
    "data.image_channels": 1,
    "data.held_out": 0.3,
}


def test_arrays(tmp_path):
    """Conditions stay with their images, in batches and splits, and when images are flipped."""
    path = write_arrays(tmp_path / "a.npz")
    changes = PAIRS | {"data.path": path, "data.random_flip": True, "model.class_dropout": 0.0}
    experiment = Experiment(tiny.config(**changes))
    batch = next(experiment.batches(experiment.train, 16, labelled=True).iterate(0))
    batch = jax.tree.map(lambda leaf: leaf[0], batch)
    np.testing.assert_allclose(batch.vector[:, 0], batch.pixels.mean((1, 2, 3)) / 255, rtol=1e-5)
    part = training.score_job(experiment).part(jax.random.key(0), batch)
    x, image = np.asarray(part.x), np.asarray(part.condition.image)
    mirrored = np.abs(image[:, :, 4:]).sum((1, 2, 3)) > np.abs(image[:, :, :4]).sum((1, 2, 3))
    assert 2 < mirrored.sum() < 14
    shown = np.where(mirrored[:, None, None, None], image[:, :, 4:], image[:, :, :4])
    pixels = np.asarray(experiment.pixels(jnp.asarray(x)))
    kept = np.where(mirrored[:, None, None, None], pixels[:, :, 4:], pixels[:, :, :4])
    np.testing.assert_allclose(kept, shown, atol=8)
    other = write_arrays(tmp_path / "b.npz", level=np.zeros(40))
    changed = datasets.load(tiny.config(**changes | {"data.path": other}).data, "train")
    assert changed.digest != experiment.train.digest


@pytest.mark.parametrize(
    ("message", "arrays", "changes"),
    [
        ("'level' must be an array of 40 vectors .* has images", {"level": None}, {}),
        (r"must be an array of 40 vectors .*level \(39,\)", {"level": np.zeros(39)}, {}),
        ("'level' must be .* of finite numbers", {"level": np.full(40, np.nan)}, {}),
        (r"requires conditions of shape \(8, 8, 1\), but .* have \(4, 8, 1\)",
         {"half": np.zeros((40, 4, 8))}, {}),
        ("Set --config.data.vector_size=1", {}, {"data.vector_size": 2}),
        (r"data.vector_size = 1 requires .* have \(0,\)", {},
         {"data.condition": ("half",)}),
    ],
)  # fmt: skip
def test_bad_arrays(tmp_path, message, arrays, changes):
    path = write_arrays(tmp_path / "a.npz", **arrays)
    config = tiny.config(**PAIRS | {"data.path": path} | changes)
    refused(message, lambda: Experiment(config).train)


def test_paired_folders(tmp_path):
    """Images of the same name in the folder beside data.path; also with another suffix."""
    for number in range(20):
        for folder, level, suffix in (("clean", number, "png"), ("noisy", 2 * number, "webp")):
            path = tmp_path / folder / f"{number}.{suffix}"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (level,) * 3).save(path, lossless=True)
    changes = {"data.dataset": "folder", "data.path": str(tmp_path / "clean")}
    changes |= {"data.condition": ("noisy",), "data.image_channels": 1, "data.held_out": 0.3}
    config = tiny.config(**changes).data
    train = datasets.load(config, "train")
    batch = train.batch(np.arange(len(train)), labelled=True)
    np.testing.assert_array_equal(batch.image, 2 * batch.pixels)
    assert batch.labels is None
    (tmp_path / "noisy" / "3.webp").unlink()
    refused(
        "1 of .* have none in .*noisy, such as 3.png",
        lambda: [datasets.load(config, split) for split in ("train", "test")],
    )


FAST = {"sampling.method": "solver", "sampling.solver": "ddim", "sampling.num_steps": 3}


@pytest.mark.slow
def test_commands(tmp_path):
    """Conditions of held-out images or of a file, with guidance; codes are those of the API."""
    changes = PAIRS | FAST | {"data.path": write_arrays(tmp_path / "a.npz"), "guidance.scale": 2.0}
    changes |= {"eval.enable_bpd": True, "eval.bpd_num_repeats": 1, "eval.bpd_steps": 3}
    changes |= {"eval.enable_sampling": True, "eval.batch_size": 16}
    changes |= {"restore.method": "pigdm", "restore.count": 2, "restore.samples": 1}
    changes |= {"calibrate.simulations": 20, "calibrate.samples": 20}
    folder, file = tiny.untrained(tmp_path / "w", scale=0.3, **changes), tmp_path / "c.npz"
    (results,) = evaluation.evaluate(tiny.config(**changes), str(folder)).values()
    assert np.isfinite(results["bpd"]["mean"])
    assert results["samples"]["nfe"] == 6
    np.savez(file, vector=np.ones((1, 1)), image=np.zeros((1, 8, 8, 1), np.uint8))
    drawn, restored = {}, {}
    for given in ({}, {"guidance.condition": str(file)}, {"guidance.checkpoint": 3}):
        config, name = tiny.config(**changes | given), "".join(given) or "held-out"
        (path,) = samples.sample(config, str(folder), 3, folder=name).glob("samples_*.npz")
        drawn[name] = load_rounds([path], samples=(4, 8, 8, 1))["samples"][:3]
        assert restoration.restore(config, str(folder), folder=name)["nfe"] == 6
        (path,) = folder.glob(f"restore/*/{name}/samples_0.npz")
        restored[name] = load_rounds([path], x=(2, 8, 8, 1))["x"]
    assert calibration.calibrate(tiny.config(**changes), str(folder))["simulations"] == 20
    for found in (drawn, restored):
        assert (found["held-out"] != found["guidance.condition"]).any()
        assert (found["held-out"] != found["guidance.checkpoint"]).any()
    latents.encode(tiny.config(**changes), str(folder))
    model, experiment = ss.load(folder), Experiment(tiny.config(**changes))
    x = latents.load_images(experiment, 3)
    condition = experiment.score_model.kinds.select(experiment.test.batch([0, 1, 2], labelled=True))
    with np.load(next((folder / "latents").rglob("latents.npz"))) as stored:
        codes = model.encode(x, condition=condition, sampler="ddim")
        np.testing.assert_allclose(stored["codes"][:3], codes, rtol=1e-3, atol=1e-3)
    np.savez(file, vector=np.ones((3, 1)), image=np.zeros((1, 8, 8, 1), np.uint8))
    config = tiny.config(**changes | {"guidance.condition": str(file)})
    for command, count in ((restoration.restore, 2), (latents.encode, latents.ENCODED)):
        refused(f"condition has 3 rows for {count} events", command, config, str(folder))
    np.savez(file, vector=np.ones((1, 1)), other=np.ones((1, 1)))
    refused("condition is vector, other", samples.sample, config, str(folder), 3)
    config = tiny.config(**changes | {"guidance.checkpoint": 99})
    refused("guidance.checkpoint: .*99", samples.sample, config, str(folder), 3)
