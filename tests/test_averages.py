"""Power-function averages, and their reconstruction by `--mode=ema`, against closed forms.

`training/averages.py` and `commands/averaging.py`. Tests of a workdir fill its snapshots with the
averages of a known walk of parameters, without training.
"""

import functools
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file
from scipy import integrate

import pretrained
import training
from commands import averaging, conversion, samples
from errors import InputError, NotFiniteError
from experiment import Experiment
from loading import load_config
from runs.checkpoints import SNAPSHOTS, Checkpoints
from tests import tiny
from tests.refusal import refused
from tests.test_training import change_a_byte, identical, leaves
from training import averages
from training import state as states

STDS = (0.05, 0.1)
GAMMA = {0.05: 16.97, 0.1: 6.94}  # as in section 3 of the paper


def profile(std, steps):
    """The weight of each step 1 .. steps: the integral of the profile over the step."""
    ends = (np.arange(steps + 1) / steps) ** (averages.exponent(std) + 1)
    return np.diff(ends)


def walk(steps, size, seed=0):
    """A random walk of parameters (steps, size), from a point other than 0."""
    return 3 + np.random.default_rng(seed).normal(size=(steps, size)).cumsum(0) / np.sqrt(steps)


def relative(found, expected, origin=0.0):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected - origin)


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [1e-3, 0.03, 0.05, 0.1, 0.2887, 0.3])
def test_exponents(std):
    """The width of the profile x^gamma on (0, 1), integrated numerically, is std."""
    gamma = averages.exponent(std)
    assert gamma > -0.382
    moments = [integrate.quad(lambda x, k=k: x ** (gamma + k), 0, 1)[0] for k in range(3)]
    mean, square = moments[1] / moments[0], moments[2] / moments[0]
    assert np.sqrt(square - mean**2) == pytest.approx(std, rel=1e-4)
    if std in GAMMA:
        assert gamma == pytest.approx(GAMMA[std], abs=0.005)


@pytest.mark.parametrize("std", [0.05, 0.3])
def test_weights_of_the_recursion(std):
    """Averages of unit vectors are the weights: the integral of x^gamma, and of relative width std.

    The tolerances are those of float32, and of 2,000 steps.
    """
    steps = 2000

    def step(average, t):
        return averages.follow(average, jax.nn.one_hot(t - 1, steps), (std,), t), None

    start = (jnp.full(steps, 7.0),)  # which the first step forgets
    (weights,), _ = jax.lax.scan(step, start, jnp.arange(1, steps + 1))
    weights = np.asarray(weights, np.float64)
    np.testing.assert_allclose(weights, profile(std, steps), rtol=1e-3, atol=1e-6)
    mean = weights @ np.arange(steps)
    width = np.sqrt(weights @ (np.arange(steps) - mean) ** 2) / steps
    assert width == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("t", [2, 1000, 1_000_000])
def test_decay_is_exact_in_float32(t):
    """1 - beta is 1.8e-5 after a million steps; float32 would round beta itself to 6e-8."""
    (found,) = averages.follow((jnp.zeros(1),), jnp.ones(1), (0.05,), jnp.int32(t))
    expected = 1 - (1 - np.longdouble(1) / t) ** (averages.exponent(0.05) + 1)
    assert float(found[0]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("t", "gamma"), [(1.0, 6.94), (0.3, 6.94), (0.3, -0.38), (2.5, 40.0)])
@pytest.mark.parametrize(("s", "delta"), [(1.0, 16.97), (0.3, 0.0)])
def test_inner_products(t, gamma, s, delta):
    def product(x):
        return (gamma + 1) * x**gamma / t ** (gamma + 1) * (delta + 1) * x**delta / s ** (delta + 1)

    expected = integrate.quad(product, 0, min(t, s), epsabs=0, epsrel=1e-11)[0]
    assert averages.inner_products(t, gamma, s, delta) == pytest.approx(expected, rel=1e-7)


def evenly(steps, snapshots):
    """The steps of evenly spaced snapshots."""
    return [steps * k // snapshots for k in range(1, snapshots + 1)]


def combined(x, snapshots, std):
    """The combination of averages of x (steps, n) in evenly spaced snapshots, and its error."""
    times = evenly(len(x), snapshots)
    weights, error = averages.combination(times, STDS, len(x), std)
    stored_averages = [[profile(s, t) @ x[:t] for s in STDS] for t in times]
    return np.tensordot(weights, np.array(stored_averages), 2), error


@pytest.mark.parametrize(("std", "snapshots"), [(0.04, 2), (0.07, 8), (0.15, 32), (0.07, 32)])
def test_errors_of_independent_parameters(std, snapshots):
    """The stated error bounds that of white noise, up to 5 % for its 2,000 samples.

    Averages are projections of the profiles to steps, which do not increase distances. With many
    more steps than snapshots they are equal.
    """
    steps, noise = 640, np.random.default_rng(1).normal(size=(640, 2000))
    found, error = combined(noise, snapshots, std)
    found = relative(found, profile(std, steps) @ noise)
    assert 0.5 * error < found < 1.05 * error


# --- states and checkpoints -----------------------------------------------------------------------


def example_state(value=1.0):
    params = {"a": jnp.full(3, value), "b": jnp.full((2, 2), value)}
    return states.create(params, optax.sgd(0.5), len(STDS))


def test_a_checkpoint_has_a_tree_for_each():
    state = example_state()._replace(averages=({"a": jnp.zeros(3)}, {"a": jnp.ones(3)}))
    trees = states.to_checkpoint(state)
    assert list(trees) == ["params", "ema", "optimizer", "average_0", "average_1"]
    assert states.from_checkpoint(trees) == state


def test_they_must_be_finite():
    def not_finite(step, text):
        return NotFiniteError(text, step)

    log = SimpleNamespace(step=3, latest="", not_finite=not_finite)
    training.loop.check_state(example_state(), log)
    bad = example_state()
    bad.averages[1]["b"] = bad.averages[1]["b"].at[0, 1].set(np.nan)
    with pytest.raises(NotFiniteError, match="moving average are not finite"):
        training.loop.check_state(bad, log)


def test_they_are_split_as_the_ema_is():
    config = tiny.config(**{"model.ema_stds": STDS, "training.shard_params": True, "model.nf": 64})
    experiment = Experiment(config)
    found = training.score_job(experiment).shardings()
    assert found.averages == (found.ema, found.ema)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(found.averages))


# --- training -------------------------------------------------------------------------------------


def train_config(**changes):
    fields = {"model.ema_stds": STDS, "training.snapshot_freq": 1, "training.n_iters": 3}
    return tiny.config(**fields, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three steps with a snapshot of each, and its last state."""
    workdir = tmp_path_factory.mktemp("averages")
    return workdir, training.train(train_config(), str(workdir))


def snapshot(workdir, number, *names):
    """Some trees of a snapshot."""
    checkpoints, like = Checkpoints(workdir), Experiment(train_config()).abstract_params
    return checkpoints.restore(checkpoints.pick(number), dict.fromkeys(names, like))


@pytest.mark.slow
def test_training_averages_the_parameters_of_its_steps(trained):
    """In float32, from the parameters in the snapshots; the main average is that of a usual run."""
    workdir, state = trained
    params = [leaves(snapshot(workdir, number, "params")) for number in range(1, 4)]
    for average, std in zip(state.averages, STDS, strict=True):
        for found, *each in zip(leaves(average), *params, strict=True):
            expected = np.tensordot(profile(std, 3), np.array(each, np.float64), 1)
            np.testing.assert_allclose(found, expected, atol=1e-6)
    stored_last = snapshot(workdir, 3, "average_0", "average_1")
    assert identical(tuple(stored_last.values()), state.averages)


@pytest.mark.slow
def test_from_training_to_samples(trained, tmp_path, capsys):
    """A width between the stored ones; the file is sampled from, and can be trained further.

    The export of a checkpoint leaves out the averages, which other code lacks.
    """
    workdir, target = trained[0], tmp_path / "all.safetensors"
    conversion.export_checkpoint(train_config(), str(workdir), str(target), 3)
    assert {name.split("/")[0] for name in load_file(target)} == {"params", "ema", "mu", "nu"}
    config = load_config(str(workdir))
    config.ema.std = 0.075
    path = averaging.reconstruct(config, str(workdir), str(tmp_path / "a.safetensors"))
    assert "3 snapshots with model.ema_stds = (0.05, 0.1) give" in capsys.readouterr().out
    source = load_config(str(path))
    source.sampling.update(method="solver", num_steps=2)
    source.model.ema_ramp = False  # With it, the EMA has forgotten the initial weights.
    folder = samples.sample(source, str(tmp_path / "s"), 2, source=str(path))
    assert (folder / "00001.png").exists()
    assert "initial weights" not in capsys.readouterr().out  # It has none.
    conversion.import_checkpoint(source, str(tmp_path / "w"), str(path))
    first = snapshot(tmp_path / "w", 3, "ema", "average_0", "average_1")
    assert identical(first["average_0"], first["ema"])
    assert identical(first["average_1"], first["ema"])


# --- reconstruction -------------------------------------------------------------------------------

STEPS, SNAPSHOT = 96, 12


def walk_config(**changes):
    fields = {"model.ema_stds": STDS, "model.embedding_type": "fourier"}
    return tiny.config("ve.digits_ncsnpp_continuous", **fields, **changes)


@functools.cache
def parameters():
    """The parameters of each step: a walk, except for the frequencies, which are constant."""
    like, rng = Experiment(walk_config()).abstract_params, np.random.default_rng(0)

    def draw(path, leaf):
        fixed = path[-1].key == "W"
        noise = rng.normal(size=(1 if fixed else STEPS, *leaf.shape)) / 10
        return np.broadcast_to(1 + noise.cumsum(0), (STEPS, *leaf.shape))

    return jax.tree.map_with_path(draw, like)


def average(std, step):
    """The average of the walk after a step."""
    weights = profile(std, step)
    return jax.tree.map(
        lambda x: np.tensordot(weights, x[:step], 1).astype(np.float32), parameters()
    )


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A workdir whose eight snapshots hold the averages of the walk, and one of step 0."""
    workdir, experiment = tmp_path_factory.mktemp("walk"), Experiment(walk_config())
    place = jax.tree.map(lambda leaf: leaf.sharding, experiment.abstract_params)
    for number in range(STEPS // SNAPSHOT + 1):
        step = number * SNAPSHOT
        trees = {f"average_{i}": average(std, max(1, step)) for i, std in enumerate(STDS)}
        trees = {name: jax.device_put(tree, place) for name, tree in trees.items()}
        tiny.save(workdir, experiment, number, step, **trees)
    return workdir


def reconstruct(workdir, std, target, **options):
    config = walk_config(**{"ema.std": std})
    path = averaging.reconstruct(config, str(workdir), str(target), **options)
    return pretrained.read(path, Experiment(config).network, config)


def distance(found, expected):
    """The relative distance of the moved parameters from their start at 1; float16 has 2**-11."""
    parts = [np.concatenate([leaf.ravel() for leaf in leaves(tree)]) for tree in (found, expected)]
    return relative(*parts, origin=1)


@pytest.mark.parametrize(("std", "tolerance"), [(0.05, 2**-10), (0.07, 5e-3), (0.15, 2e-2)])
def test_reconstructed_files(walked, tmp_path, capsys, std, tolerance):
    """Stored widths up to half precision, others up to the stated tolerance; fixed ones exactly."""
    trained = reconstruct(walked, std, tmp_path / "a.safetensors")
    assert trained.step == STEPS
    assert distance(trained.ema, average(std, STEPS)) < tolerance
    assert identical(trained.params, trained.ema)
    frequencies = [
        (leaf, expected[0].astype(np.float16))
        for (path, leaf), expected in zip(
            jax.tree.leaves_with_path(trained.ema), jax.tree.leaves(parameters()), strict=True
        )
        if path[-1].key == "W"
    ]
    assert len(frequencies) == 1
    np.testing.assert_array_equal(*frequencies[0])
    output = capsys.readouterr().out
    assert "safetensors: 8 snapshots" in output
    assert "Warning" not in output


def test_an_earlier_checkpoint(walked, tmp_path, capsys):
    """Later snapshots do not count. The error of the profile of three snapshots is 4 %."""
    trained = reconstruct(walked, 0.07, tmp_path / "a.safetensors", number=3)
    assert trained.step == 3 * SNAPSHOT
    assert "safetensors: 3 snapshots" in capsys.readouterr().out
    assert distance(trained.ema, average(0.07, trained.step)) < 0.05
    shutil.copytree(walked, tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / SNAPSHOTS / "checkpoint_8")
    again = reconstruct(tmp_path / "w", 0.07, tmp_path / "b.safetensors", number=3)
    assert identical(again.ema, trained.ema)


def test_a_large_error_is_a_warning_and_the_default_target(walked, tmp_path, capsys):
    workdir = shutil.copytree(walked, tmp_path / "w")
    path = averaging.reconstruct(walk_config(**{"ema.std": 0.2}), str(workdir))
    assert path == workdir / "ema_0.2.safetensors"
    assert load_config(path).ema.std == 0.2
    assert "Warning: this is more than 5%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"ema.std": 0.0}, {}, r"ema.std = 0.0"),
        ({"ema.std": 0.31}, {}, r"ema.std = 0.31"),
        ({"model.ema_stds": ()}, {}, r"model.ema_stds = \(\)"),
        ({"model.ema_stds": (0.1, 0.1)}, {}, r"\(0.1, 0.1\) must be different"),
        ({"model.ema_stds": (0.1, 0.4)}, {}, r"ema_stds = \(0.1, 0.4\)"),
        ({"model.ema_stds": (0.1,)}, {}, r"model.ema_stds: \[0.05, 0.1\] there, \[0.1\] now"),
        ({"ema.std": 0.3}, {}, r"7\d\.\d\d%, and at most 50% is allowed"),
        ({}, {"number": 0}, r"100.00%, and at most 50% is"),
        ({}, {"number": 9}, r"no checkpoint_9; existing checkpoints: 0, 1"),
        ({}, {"target": "a.pth"}, r"--target .*'a.pth'"),
    ],
)
def test_bad_requests(walked, changes, options, message):
    before = sorted(walked.iterdir())
    config = walk_config(**{"ema.std": 0.1})
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):  # Some have a line for each field.
        averaging.reconstruct(config, str(walked), **options)
    assert sorted(walked.iterdir()) == before


@pytest.mark.slow
def test_bad_files(walked, tmp_path):
    config = walk_config(**{"ema.std": 0.1})
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"")

    def check(message, workdir):
        refused(message, averaging.reconstruct, config, str(workdir), str(target))

    check("a.safetensors exists; nothing is overwritten", walked)
    target.unlink()
    check("has no checkpoint_0; existing checkpoints: none", tmp_path / "nothing")
    shutil.copytree(walked, tmp_path / "w")
    change_a_byte(tmp_path / "w" / SNAPSHOTS / "checkpoint_4")
    check("checkpoint_4 .*damaged.* Or move it to another folder", tmp_path / "w")
    shutil.rmtree(tmp_path / "w" / SNAPSHOTS / "checkpoint_4")
    averaging.reconstruct(config, str(tmp_path / "w"), str(target))
