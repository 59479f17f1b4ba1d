"""The training state split over devices: the rule, the messages, and the same result."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import sharding
import training
from benchmarks import hlo
from datasets import Batch
from experiment import Experiment
from runs.checkpoints import BACKUPS, Checkpoints
from tests import tiny
from tests.test_training import identical, one_device, run
from training import state as states
from training.state import TrainState


@pytest.fixture
def _small(monkeypatch):
    """Most arrays of the tiny network count as large."""
    monkeypatch.setattr(sharding, "SMALL", 64)


def test_which_axis_is_split():
    """The largest that the devices divide; small arrays are not split."""
    mesh = sharding.make_mesh(jax.devices())
    shapes = {
        (3, 3, 64, 128): PartitionSpec(None, None, None, "data"),
        (3, 3, 128, 64): PartitionSpec(None, None, "data"),
        (64, 64): PartitionSpec("data"),
        (64, 100): PartitionSpec("data"),
        (1001, 99): PartitionSpec(),
        (512,): PartitionSpec(),
        (511, 8): PartitionSpec(),  # It has fewer than 4,096 entries.
        (512, 8): PartitionSpec("data"),
        (): PartitionSpec(),
    }
    tree = {shape: jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes}
    shardings = sharding.shard_largest_axis(mesh, tree)
    assert {shape: each.spec for shape, each in shardings.items()} == shapes


# --- rows of several processes --------------------------------------------------------------------


class Client:
    """The process of a stand-in for a device."""

    def __init__(self, process: int) -> None:
        self.process_index = lambda: process


@dataclasses.dataclass(frozen=True)
class Device:
    """A stand-in for a device of any process, as the process of `client` sees it."""

    id: int
    process_index: int
    client: Client
    platform: str = "cpu"
    device_kind: str = "cpu"


PROCESSES = [(0, 0, 1, 1), (0, 1, 0, 1), (1, 0, 0, 1), (2, 0, 1, 0, 2, 1)]


def mesh_of(processes, process):
    client = Client(process)
    return sharding.make_mesh([Device(i, each, client) for i, each in enumerate(processes)])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("processes", PROCESSES)
def test_rows_of_all_processes_are_the_whole_batch(monkeypatch, processes, axis):
    """`shard` gives each device the rows of its index, from those that its process has loaded."""
    size = 3 * len(processes)
    rows = [sharding.local_rows(mesh_of(processes, 0), size, i) for i in range(max(processes) + 1)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(size))  # Each is loaded once.
    batch = np.arange(2 * size * 2).reshape((size, 2, 2) if axis == 0 else (2, size, 2))
    found = np.full(batch.shape, -1)

    def place(shape, where, part):
        assert shape == batch.shape
        for device, index in where.devices_indices_map(shape).items():
            if device.process_index == process:
                found[index] = part(index)

    monkeypatch.setattr(jax, "make_array_from_callback", place)
    for process in range(max(processes) + 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        mesh = mesh_of(processes, process)
        sharding.shard(mesh, np.take(batch, sharding.local_rows(mesh, size), axis), axis)
    np.testing.assert_array_equal(found, batch)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_order_of_devices_does_not_change_a_batch(axis):
    mesh = sharding.make_mesh([jax.devices()[i] for i in (2, 0, 3, 1)])
    batch = {"a": np.arange(64).reshape(8, 8), "b": np.arange(24.0).reshape(8, 3)[:, [0, 1, 2] * 8]}
    found = sharding.shard(mesh, batch, axis)
    for name, array in batch.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].sharding == sharding.along_axis(mesh, axis)
    complete = sharding.shard_complete(mesh, batch)
    np.testing.assert_array_equal(complete["a"], batch["a"])
    assert sharding.local_rows(mesh, 8).tolist() == list(range(8))


# --- the state ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_the_loss_curve_is_that_of_one_device():
    whole, _ = one_device()
    curve, state = run(tiny.config(**{"training.shard_params": True}), jax.devices())
    np.testing.assert_allclose(curve, whole, rtol=2e-6)
    arrays = jax.tree.leaves(state)
    on_first_device = sum(array.addressable_data(0).size for array in arrays)
    # More than 1 / 8, because arrays of 3 x 3 x 1 x 8 and similar ones are not split.
    assert on_first_device < sum(array.size for array in arrays) / 4


@pytest.mark.slow
@pytest.mark.usefixtures("_small")
def test_checkpoints_are_independent_of_the_devices(tmp_path):
    """Checkpoints of 8 or 1 devices, split or not, restore on any number, split or not."""
    saved = {}
    for devices, split in [(8, True), (2, True), (1, False)]:
        config = tiny.config(**{"training.shard_params": split})
        job = training.score_job(Experiment(config, jax.devices()[:devices]))
        if not saved:
            params = jax.device_get(tiny.random_params(job.experiment))
            host = TrainState(jnp.int32(0), params, params, job.optimizer.init(params))
        saved[devices, split] = states.to_checkpoint(jax.device_put(host, job.shardings()))
    checkpoints = Checkpoints(tmp_path, create=True)
    for kind in [(8, True), (1, False)]:
        checkpoints.save(BACKUPS, 1, saved[kind], step=1, config={})
        checkpoints.close()
        checkpoints = Checkpoints(tmp_path, create=True)
        (found,) = checkpoints.find()
        for like in saved.values():
            restored = checkpoints.restore(found, like)
            assert identical(restored, saved[kind])
            placed = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, like)
            assert all(jax.tree.leaves(placed))


# --- messages -------------------------------------------------------------------------------------


def compiled_step(**fields) -> tuple[dict[str, list[int]], Experiment]:
    """The collectives of the training step for eight devices, in bytes."""
    experiment = Experiment(tiny.config(**fields), jax.devices())
    job = training.score_job(experiment)
    images = jax.ShapeDtypeStruct((16, *experiment.image_shape), jnp.uint8)
    lowered = training.jit_step(job).lower(job.abstract_state(), Batch(images))
    return hlo.collectives(lowered.compile().as_text()), experiment


def sizes(tree) -> collections.Counter:
    return collections.Counter(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
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
    text = """ENTRY %main () -> () {
      %all-reduce.7 = (f32[32]{0}, bf16[2,3]{1,0}, /*index=2*/pred[]) all-reduce(%a, %b, %c)
      %all-gather-start.1 = (f32[4]{0}, f32[32]{0}) all-gather-start(%d), dimensions={0}
      ROOT %all-gather-done.1 = f32[32]{0} all-gather-done(%all-gather-start.1)
      %fusion = f32[5] fusion(%all-reduce.7)
}
"""
    assert hlo.collectives(text) == {"all-reduce": [128, 12, 1], "all-gather": [128]}
