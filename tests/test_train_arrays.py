"""Training from Python: events of any shape, modules of a user, restarts, and bad input."""

from __future__ import annotations

import functools
import itertools
import signal
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

import score_sde as ss
import training
from commands import samples
from configs.vp import vectors_mlp
from runs.training_log import read_curves
from sharding import Preemption
from tests import reference
from tests.refusal import refused
from tests.test_stops import digest, finish, start_python, wait_for
from training.events import open_stream

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(64, 2)) * [3.0, 0.1] + [10.0, -1.0]
QUICK = {"steps": 4, "batch_size": 16, "nf": 8, "num_res_blocks": 1}


class Scalar(nnx.Module):
    """The same factor for all entries; returns `returned` of them."""

    def __init__(self, returned=2):
        self.factor, self.returned = nnx.Param(jnp.ones(())), returned

    def __call__(self, x, label, rngs=None):
        return self.factor[...] * x[:, : self.returned]


class Normalized(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))

    def __call__(self, x, label):
        return self.norm(x)


class OneEvent(eqx.Module):
    """A module of Equinox, which sees one event (2,)."""

    linear: eqx.nn.Linear

    def __call__(self, x, label, key=None):
        assert x.shape == (2,)
        return self.linear(x) * label


IMAGES = QUICK | {"ch_mult": (1,), "attn_resolutions": ()}
MODULES = {"nnx": Scalar(), "equinox": OneEvent(eqx.nn.Linear(2, 2, key=jax.random.key(0)))}
CASES = {
    "vectors": (VECTORS, QUICK),
    "grid": (RNG.normal(size=(20, 3, 2)).tolist(), QUICK),
    "real images": (RNG.normal(size=(20, 8, 4, 1)), IMAGES | {"sde": "ve"}),
    "bytes": (RNG.integers(0, 256, (20, 4, 4, 3), dtype=np.uint8), IMAGES),
    "nnx": (VECTORS, {"steps": 4, "network": MODULES["nnx"], "sde": ss.RectifiedFlow(T=0.99)}),
    "equinox": (VECTORS, {"steps": 4, "network": MODULES["equinox"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", reference.cases(CASES, ["real images", "equinox"]))
def test_kinds_of_events_and_networks(name, tmp_path):
    """Samples, and densities of vectors; a workdir can be loaded if it names the network."""
    data, options = CASES[name]
    model = ss.train(data, workdir=tmp_path, **options)
    shape = np.shape(data)[1:]
    x = model.sample(3, steps=2)
    assert (x.shape, model.event_shape) == ((3, *shape), shape)
    assert model.step == 4 or model.config.training.patience
    if name == "vectors":
        assert np.isfinite(model.log_prob(x, probes=1)).all()
    if name in MODULES:
        refused("the network is an argument of .* not stored", ss.load, tmp_path)
        return
    loaded = ss.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    np.testing.assert_array_equal(loaded.units.scale, model.units.scale)
    if name == "vectors":
        np.testing.assert_allclose(loaded.sample(3, steps=2), x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_conditions():
    """Vectors are standardized; without a condition, the network has no prior."""
    vector, classes = RNG.normal(size=(64, 3)) * 1e6 + 1e7, np.arange(64) % 5
    given = {"vector": vector, "classes": classes}
    model = ss.train(VECTORS, condition=given, **QUICK)
    assert model.kinds.sizes == {"classes": 5, "vector": 3, "image": 0}
    rows = {name: each[:4] for name, each in given.items()}
    inputs = model.kinds.arguments(model.given(rows).condition, jnp.zeros((4, 2)))
    standardized = (vector[:4] - vector.mean(0)) / vector.std(0)
    np.testing.assert_allclose(inputs["vector"][:, :3], standardized, rtol=1e-3, atol=1e-3)
    x = model.sample(4, condition=rows, steps=2)
    assert np.isfinite(model.log_prob(x, condition=rows)).all()
    refused("Pass condition=", model.sample, 4)


@pytest.mark.slow
def test_posterior_of_the_linear_gaussian_task():
    """theta ~ N(0, I) and y = A theta + 0.5 z; the posterior is normal (closed form)."""
    rng = np.random.default_rng(1)
    A = np.array([[1.0, 0.5], [-0.5, 1.0], [0.3, 0.3]])

    def simulate(count):
        theta = rng.normal(size=(count, 2))
        return theta, theta @ A.T + 0.5 * rng.normal(size=(count, 3))

    theta, y = simulate(100_000)
    model = ss.train(theta, condition=y, steps=3000, batch_size=512, nf=64, learning_rate=2e-3)
    covariance = np.linalg.inv(np.eye(2) + A.T @ A / 0.25)
    for observed in simulate(4)[1]:
        x = np.asarray(model.sample(4000, condition=observed))
        mean = covariance @ A.T @ observed / 0.25
        np.testing.assert_allclose(x.mean(0), mean, atol=0.05)
        np.testing.assert_allclose(x.std(0), np.sqrt(np.diag(covariance)), rtol=0.05)
        expected = scipy.stats.multivariate_normal(mean, covariance).logpdf(x[:100])
        assert np.abs(model.log_prob(x[:100], condition=observed) - expected).mean() < 0.1
    found = model.calibrate(*simulate(300))
    assert found.kind == "calibrated", found.verdict


@pytest.mark.slow
def test_events_have_the_units_of_the_data():
    """An untrained network predicts 0, whose EDM denoiser is that of standard normal data z."""
    model = ss.train(VECTORS, **QUICK | {"steps": 1, "learning_rate": 1e-30})
    x = np.asarray(model.sample(2000, sampler="ode"))
    mean, std = VECTORS.mean(0), VECTORS.std(0)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.1 * std.max())
    np.testing.assert_allclose(x.std(0), std, rtol=0.1)
    expected = -0.5 * np.square((x - mean) / std).sum(-1) - np.log(np.sqrt(2 * np.pi) * std).sum()
    np.testing.assert_allclose(model.log_prob(x), expected, atol=0.02)
    np.testing.assert_allclose(model.from_images(model.to_images(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_no_files_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ss.train(VECTORS, **QUICK)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_vectors_by_commands(tmp_path):
    """Training and samples of a file of vectors, in the units of the file."""
    np.save(tmp_path / "a.npy", VECTORS)
    config = vectors_mlp.get_config()
    config.data.update(path=str(tmp_path / "a.npy"), value_range=(-10.0, 30.0))
    config.training.update(n_iters=2, batch_size=16)
    training.train(config, str(tmp_path / "w"))
    samples.sample(config, str(tmp_path / "w"), 3, folder="three")
    (written,) = tmp_path.rglob("samples_0.npz")
    x = np.load(written)["samples"][:3]
    assert x.shape == (3, 2)
    np.testing.assert_allclose(x.mean(), 10.0, atol=20.0)


def files(folder):
    curves = read_curves(folder / "metrics.jsonl")["held_out/loss"]
    return curves.steps.tolist(), curves.values.tolist()


def batches():
    """Yield 30 batches and a shorter one."""
    rng = np.random.default_rng(1)
    for size in (*[8] * 30, 5):
        yield rng.normal(size=(size, 2)) * [3.0, 0.1] + [10.0, -1.0]


class Pairs:
    """An iterable of events with vectors and classes, of which few are at the beginning."""

    def __iter__(self):
        for number, x in enumerate(batches()):
            yield [x, {"vector": x[:, 0] + 3, "classes": np.full(len(x), number)}]


@pytest.mark.slow
def test_batches():
    """The first ones are held out and standardize; those of each iteration follow each other."""
    events = list(batches())
    stream, first = open_stream(batches, 10)
    rows = stream.batches(np.arange(8))
    np.testing.assert_array_equal(first.pixels, np.concatenate(events[:10]))
    found = [each.pixels[0] for each in itertools.islice(rows.iterate(18), 4)]
    np.testing.assert_array_equal(found, np.float32([*events[28:30], *events[10:12]]))
    held_out = next(iter(Pairs()))
    options = {"steps": 2, "nf": 8, "num_res_blocks": 1, "num_classes": 31}
    model = ss.train(Pairs(), held_out=held_out, **options)
    assert model.kinds.sizes == {"classes": 31, "vector": 1, "image": 0}
    np.testing.assert_allclose(model.units.loc, np.concatenate(events[:10]).mean(0), rtol=1e-4)
    model = ss.train(batches(), mean=(1.0, 2.0), std=(3.0, 4.0), steps=20, nf=8, num_res_blocks=1)
    assert model.units.scale.tolist() == [3.0, 4.0]


STOPPED = [pytest.param(VECTORS, 0, 1, marks=pytest.mark.slow), (VECTORS, 2, 6), (batches, 0, 7)]


@pytest.mark.slow
@pytest.mark.parametrize(("data", "patience", "stopped"), STOPPED)
def test_a_stopped_run_continues_with_the_same_result(
    tmp_path, monkeypatch, data, patience, stopped
):
    """Parameters and held-out losses are the same, and so is the step at which patience ends.

    After the first step there is no held-out loss yet.
    """
    train = functools.partial(ss.train, data, steps=60, patience=patience, learning_rate=0.1)
    size = {"batch_size": 8} if data is VECTORS else {}
    train = functools.partial(train, nf=8, num_res_blocks=1, **size)
    whole = train(workdir=tmp_path / "whole")
    calls, reached = [], Preemption.reached

    def stop(self, after):
        calls.append(after)
        self.signal = signal.SIGTERM if len(calls) == stopped else None
        return reached(self, after)

    monkeypatch.setattr(Preemption, "reached", stop)
    with pytest.raises(SystemExit):
        train(workdir=tmp_path / "parts")
    parts = train(workdir=tmp_path / "parts")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    steps, losses = files(tmp_path / "whole")
    if patience:
        assert len(losses) - np.argmin(losses) - 1 == patience
        assert whole.step == steps[np.argmin(losses)] < steps[-1] < 60
    again = train(workdir=tmp_path / "whole")  # Nothing is left to do.
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    with pytest.raises(ss.InputError, match=r"(?s)results of another config.*data\.mean"):
        ss.train(VECTORS + 1, workdir=tmp_path / "whole", **train.keywords)


TRAIN = """
import hashlib, jax, numpy as np, score_sde as ss
data = np.random.default_rng(0).normal(size=(64, 2))
model = ss.train(data, workdir={!r}, steps=12, batch_size=8, nf=8, num_res_blocks=1)
params = b"".join(np.asarray(each).tobytes() for each in jax.tree.leaves(model.params))
print("parameters", hashlib.sha256(params).hexdigest())
"""


@pytest.mark.slow
def test_a_killed_run_continues_with_the_same_result(tmp_path):
    """Parameters, their average, the state of the optimizer and the log, byte for byte."""

    def start(workdir):
        return start_python(TRAIN.format(str(workdir)), text=True)

    whole = finish(start(tmp_path / "whole"))
    killed = []
    for saved in ("[1-9]*", "[5-9]*"):  # Also while a checkpoint is written.
        process = start(tmp_path / "parts")
        wait_for(tmp_path / "parts" / "checkpoints-meta" / f"checkpoint_{saved}", process)
        process.kill()
        process.communicate()
        killed.append(process.returncode)
    assert -signal.SIGKILL in killed
    parts = finish(start(tmp_path / "parts"))
    assert (whole[0], whole[1][-1]) == (parts[0], parts[1][-1])
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")


def test_outside_of_the_main_thread():
    with ThreadPoolExecutor() as pool:
        train = functools.partial(ss.train, VECTORS, patience=0, **QUICK)
        assert pool.submit(train).result().step == 4


def times(value, count=12):
    """Return a function that yields a value again and again."""
    return lambda: itertools.repeat(value, count)


SEVERAL = times(VECTORS)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (SEVERAL, {"condition": VECTORS}, "condition = an array .* is for arrays"),
        (SEVERAL, {"batch_size": 3}, "batch_size = 3 is for arrays"),
        (SEVERAL, {"held_out": 0.2}, "held_out = 0.2 is for arrays"),
        (SEVERAL, {"held_out": VECTORS[:, :1]}, r"held_out has the shapes {'events': \(1,\)}"),
        (SEVERAL(), {}, "data is an iterator, .* leave out workdir"),
        (times(VECTORS, 10), {}, "data has 10 batches; there must be more than 10"),
        (times(VECTORS * np.nan), {}, "batch 1 of data = an array .* finite"),
        (times((VECTORS,) * 3), {}, r"batch 1 of data = .* or a pair \(events, condition\)"),
        (lambda: iter([VECTORS, VECTORS[:, 1:]] * 9), {}, "batch 2 of data has the shapes"),
        (lambda: 3, {}, "data cannot be iterated over: TypeError"),
        (lambda: (1 / 0 for _ in "a"), {}, "data fails at batch 1: ZeroDivisionError"),
        (VECTORS, {"held_out": (VECTORS, VECTORS)}, "held_out has the shapes .*'vector'"),
        (VECTORS, {"num_classes": 9}, "num_classes = 9 needs images with labels"),
        (VECTORS, {"std": "a"}, r"std = \['a'\] must be"),
        (VECTORS, {"condition": {}}, "condition has 'nothing'; it can"),
        (VECTORS, {"condition": [[1, 2], [3]]}, "condition cannot be converted .*: ValueError"),
        (VECTORS, {"condition": {"classes": np.full(64, 2**40)}}, "data.num_classes = 10995"),
        (np.array([[1.0, np.nan]] * 3), {}, "data = an array .* finite real numbers"),
        (np.zeros((0, 2)), {}, r"shape \(0, 2\)"),
        (np.zeros(5), {}, "with 2 to 16 axes"),
        (["a", "b"], {}, "with 2 to 16 axes"),
        (np.ones((9, 2)), {}, r"the same in all events, number \[0, 1\]"),
        (VECTORS, {"steps": 0}, "steps = 0 must be an integer"),
        (VECTORS, {"sde": "xx"}, "sde = 'xx'"),
        (VECTORS, {"sde": 3}, "sde is an object of type int"),
        (VECTORS, {"network": "ddpmpp"}, "data.image_size = .* needs model.name = mlp, not"),
        (VECTORS, {"network": "unknown"}, "network = 'unknown'"),
        (VECTORS, {"network": len}, "a module of Flax NNX or Equinox"),
        (VECTORS, {"network": Scalar(1)}, r"returns the shape \(2, 1\)"),
        (VECTORS, {"network": Normalized()}, "BatchStat"),
        (VECTORS, {"network": eqx.nn.Linear(2, 2, key=jax.random.key(0))}, "cannot be applied"),
        (VECTORS, {"condition": VECTORS[:3]}, r"\(3, 2\); it must begin with \(64,\)"),
        (VECTORS, {"condition": VECTORS * np.nan}, r"condition \(vector\) = .* finite"),
        (VECTORS, {"condition": {"level": VECTORS}}, "condition has 'level'; it can have classes"),
        (VECTORS, {"condition": {"classes": VECTORS[:, 0]}}, "must be integers from 0"),
        (VECTORS, {"condition": VECTORS * 0}, "condition has entries that are the same"),
        (VECTORS, {"condition": np.zeros((64, 8, 8))}, r"must begin with \(64, 2\)"),
        (VECTORS, {"batch_size": 0}, "batch_size = 0 must be an integer"),
        (VECTORS, {"ch_mult": (1, 2)}, r"ch_mult = \(1, 2\) has no effect"),
        (VECTORS, {"held_out": 1.5}, "held_out = 1.5 must be"),
        (np.zeros((9, 7, 4, 1), np.uint8), {"ch_mult": (1, 2)}, "cannot be halved 1 times"),
    ],
)
def test_bad_input_is_one_line_before_training(tmp_path, data, options, message):
    refused(message, ss.train, data, workdir=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
