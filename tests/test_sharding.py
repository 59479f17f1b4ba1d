"""The training state split over devices: the rule, the messages, and the same result."""

import collections
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import experiment as experiments
import sharding
import train_state
import training
from benchmarks import collectives, train_step
from checkpoints import BACKUPS, Checkpoints
from tests import tiny
from tests.test_training import identical, run


@pytest.fixture
def _small(monkeypatch):
    """Most arrays of the tiny network count as large."""
    monkeypatch.setattr(sharding, "SMALL", 64)


def test_which_axis_is_split():
    mesh = sharding.make_mesh(jax.devices())
    shapes = {
        (3, 3, 64, 128): PartitionSpec(None, None, None, "data"),
        (3, 3, 128, 64): PartitionSpec(None, None, "data"),
        (64, 64): PartitionSpec("data"),
        (64, 100): PartitionSpec("data"),
        (1001, 99): PartitionSpec(),
        (512,): PartitionSpec(),
        (): PartitionSpec(),
    }
    tree = {shape: jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes}
    shardings = sharding.shard_largest_axis(mesh, tree)
    assert {shape: each.spec for shape, each in shardings.items()} == shapes


@pytest.mark.usefixtures("_small")
def test_the_loss_curve_is_that_of_one_device():
    whole, _ = run(tiny.config(), jax.devices()[:1])
    curve, state = run(tiny.config(**{"training.shard_params": True}), jax.devices())
    np.testing.assert_allclose(curve, whole, rtol=2e-6)
    arrays = jax.tree.leaves(state)
    on_first_device = sum(array.addressable_data(0).size for array in arrays)
    # More than 1 / 8, because arrays of 3 x 3 x 1 x 8 and similar ones are not split.
    assert on_first_device < sum(array.size for array in arrays) / 4


@pytest.mark.usefixtures("_small")
def test_checkpoints_are_independent_of_the_devices(tmp_path):
    """Checkpoints of 8, 2 or 1 devices, split or not, restore on any other number, split or not."""
    optimizer = train_state.make_optimizer(tiny.config().optim)
    states, rng = {}, np.random.default_rng(0)
    for devices, split in [(8, True), (8, False), (2, True), (1, False)]:
        config = tiny.config(**{"training.shard_params": split})
        experiment = experiments.Experiment(config, jax.devices()[:devices])
        if not states:
            params = jax.tree.map(
                lambda a: rng.normal(size=a.shape).astype(a.dtype), experiment.abstract_params
            )
            host = train_state.TrainState(jnp.int32(0), params, params, optimizer.init(params))
        states[devices, split] = train_state.to_checkpoint(
            jax.device_put(host, training.state_shardings(experiment, optimizer))
        )
    checkpoints = Checkpoints(tmp_path, create=True)
    for kind in [(8, True), (1, False)]:
        checkpoints.save(BACKUPS, 1, states[kind], step=1, config={})
        checkpoints.close()
        checkpoints = Checkpoints(tmp_path, create=True)
        (found,) = checkpoints.find()
        for like in states.values():
            restored = checkpoints.restore(found, like)
            assert identical(restored, states[kind])
            placed = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, like)
            assert all(jax.tree.leaves(placed))


# --- messages -------------------------------------------------------------------------------------


def compiled_step(**fields) -> tuple[dict[str, list[int]], experiments.Experiment]:
    """The collectives of the training step for eight devices, in bytes."""
    experiment = experiments.Experiment(tiny.config(**fields), jax.devices())
    return collectives.collectives(train_step.lower(experiment).compile().as_text()), experiment


def sizes(tree) -> collections.Counter:
    return collections.Counter(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def test_messages_of_the_step():
    """The gradients, each once, and a few numbers for the metrics."""
    found, experiment = compiled_step()
    assert found.keys() == {"all-reduce"}
    reduced, grads = collections.Counter(found["all-reduce"]), sizes(experiment.abstract_params)
    assert grads <= reduced
    assert sum((reduced - grads).elements()) < 200


@pytest.mark.usefixtures("_small")
def test_messages_of_the_step_with_split_parameters():
    """Each split array is gathered once; gradients and the parts of their norm are summed.

    XLA's CPU backend, which has no reduce-scatter, splits the gradients after the sum.
    """
    found, experiment = compiled_step(**{"training.shard_params": True})
    assert found.keys() == {"all-reduce", "all-gather"}
    params = experiment.abstract_params
    shardings = jax.tree.leaves(experiment.state_shardings(params))
    pairs = zip(jax.tree.leaves(params), shardings)
    split = [leaf for leaf, where in pairs if not where.is_fully_replicated]
    assert collections.Counter(found["all-gather"]) == sizes(split)
    reduced, grads = collections.Counter(found["all-reduce"]), sizes(params)
    assert grads <= reduced
    assert sum((reduced - grads).elements()) < 200 + 2 * 4 * len(split)


def test_bytes_of_hlo_types():
    text = """
      %all-reduce.7 = (f32[32]{0}, bf16[2,3]{1,0}, /*index=2*/pred[]) all-reduce(%a, %b, %c)
      %all-gather-start.1 = (f32[4]{0}, f32[32]{0}) all-gather-start(%d), dimensions={0}
      ROOT %all-gather-done.1 = f32[32]{0} all-gather-done(%all-gather-start.1)
      %fusion = f32[5] fusion(%all-reduce.7)
    """
    assert collectives.collectives(text) == {"all-reduce": [128, 12, 1], "all-gather": [128]}
