"""Training: recorded official steps, devices, restarts, damaged files and non-finite losses."""

import dataclasses
import functools
import gc
import itertools
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as orbax
import pytest

import datasets
import evaluation
import losses
import sharding
import training
from commands import conversion
from configs import folders
from configs.default import complete
from errors import InputError
from experiment import Experiment
from pretrained import parameter_names, stored_parameters
from runs import checkpoints as checkpoint_files
from runs.checkpoints import BACKUPS, LOCK, SNAPSHOTS, Checkpoints
from runs.training_log import read_curves
from tests import reference, tiny
from tests.refusal import refused
from training import state as states
from training.state import TrainState


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def norm(tree) -> np.float64:
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in leaves(tree)))


def identical(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


# Adam's first update is about lr * sign(gradient), so that gradients of the size of rounding errors
# take full steps in directions that depend on the processor. In float64 the loss of the first step
# is 970.9373007; ours and the recorded one are 2e-7 from it, on either side. On one processor the
# later losses then differ by 1e-5 to 7e-5 from the recording and the gradient norms by 2e-4 to
# 8e-4; on another one all of them by less than 1e-5. The norms of the parameters agree on both.
LATER_STEPS = {"ncsnv2_smld": 2e-3}  # relative tolerances of loss and gradient norm


@pytest.mark.slow
@pytest.mark.parametrize("name", reference.notes("train_step"))
def test_recorded_training_steps(name):
    """Loss, unclipped gradient norm, and the norms of parameters and EMA after each update."""
    note, a = reference.notes("train_step")[name], reference.arrays("train_step")
    config = reference.config(note["folder"])
    config.unlock()
    config.data.dataset = "noise"
    config.training.update(batch_size=2, n_jitted_steps=1)
    config.eval.batch_size = 2
    config.model.dropout = 0.0
    config.model.ema_rate = note["ema_rate"]
    config.optim.update(note["optim"])
    experiment = Experiment(config, jax.devices()[:1])
    job, trained = training.score_job(experiment), reference.trained(note["folder"])
    opt_state = job.optimizer.init(trained.params)
    state = TrainState(jnp.int32(0), trained.params, trained.ema, opt_state)

    t = a.get(f"{name}/t")
    if t is None:  # SMLD counts its noise levels from the largest, DDPM from the smallest.
        labels, n = a[f"{name}/labels"].astype(np.float32), config.model.num_scales
        t = (n - 1 - labels if config.training.sde == "vesde" else labels) / np.float32(n - 1)
    draws = jnp.asarray(t), jnp.asarray(a[f"{name}/z"])
    step = state.step

    def one(state, x, t, z):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "prepare", lambda key, images, flip: images)
            patch.setattr(losses, "draw", lambda *args, **options: (t, z))
            return training.train_step(state, datasets.Batch(x), job=job)

    one = jax.jit(one)
    for i in range(note["nsteps"]):
        state, metrics = one(state, a[f"{name}/data"][i], draws[0][i], draws[1][i])
        for value, key in (
            (metrics["loss"], "loss"),
            (metrics["grad_norm"], "grad_norm"),
            (norm(state.params), "param_norm_after"),
            (norm(state.ema), "ema_norm_after"),
        ):
            expected = a[f"{name}/{key}"][i]
            from_gradient = i > 0 and key in ("loss", "grad_norm")
            rtol = LATER_STEPS.get(name, 1e-5) if from_gradient else 1e-5
            np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=f"{key}, step {i}")
    assert state.step == step + note["nsteps"]

    if f"{name}/target_final/Conv_0/kernel" in a:
        for tree, kind in ((state.params, "target_final"), (state.ema, "ema_final")):
            layout = parameter_names.flax_layout(experiment.network)
            for path, param in stored_parameters.export_params(layout, tree).items():
                if "NIN_1/b" in path:
                    continue  # Its exact gradient is 0; Adam turns rounding noise into steps.
                expected = a[f"{name}/{kind}/{path}"]
                np.testing.assert_allclose(param, expected, atol=2e-5, err_msg=path)


def test_held_out_losses(monkeypatch):
    """They are those of the same evenly spaced test images in every call, once each.

    Test images are white here, and the training images black.
    """
    monkeypatch.setattr(training.loop, "MOST_HELD_OUT", 10)
    config = tiny.config(**{"data.dataset": "black_and_white", "training.batch_size": 8})
    experiment = Experiment(config)
    noise, used = [], []
    batch = type(experiment.test).batch

    def record(images, indices, **options):
        used.extend(indices)
        return batch(images, indices, **options)

    def loss(ema, batch, key):
        assert ema == "the EMA"
        assert (np.asarray(batch.pixels) == 255).all()
        noise.append(jax.random.key_data(key).tolist())
        return np.arange(8.0), np.linspace(0, 1, 8)

    monkeypatch.setattr(type(experiment.test), "batch", record)
    job = dataclasses.replace(training.score_job(experiment), held_out=loss)
    for _ in range(2):
        per_image, stderr, levels = training.held_out_losses(job, "the EMA")
        # The rest of the last batch does not count.
        np.testing.assert_array_equal(per_image, np.arange(10) % 8)
    assert (levels[1].sum(), levels[0].sum()) == (10, per_image.sum())
    assert stderr == losses.mean_stderr(per_image, np.linspace(0, 1, 8)[per_image.astype(int)])
    np.testing.assert_array_equal(used[:10], np.linspace(0, 15, 10).round())
    assert used[16:] == used[:16]
    assert noise[2:] == noise[:2]
    assert noise[0] != noise[1]
    assert next(training.loop._batches(job, 0)).pixels.max() == 0


def test_steps_of_logs_checkpoints_and_the_end(monkeypatch):
    """They are due once a multiple of the frequency is reached, here in calls of three steps.

    A run continued at step 4, in calls of two steps, starts with the batches of call 2.
    """
    settings = complete(tiny.config(**{"training.n_jitted_steps": 3})).training
    settings.unlock().update(dict.fromkeys(training.loop.FREQUENCIES, 7))
    due = [step for step in range(3, 28, 3) if training.loop.due_after(step, 27, settings)]
    assert due == [9, 15, 21, 27]
    assert [training.last_step(start, 10, 3) for start in (0, 2, 9)] == [9, 8, 9]
    job = training.score_job(Experiment(tiny.config(**{"training.n_jitted_steps": 2})))

    def batches(job, first):
        raise Killed(first)

    monkeypatch.setattr(training.loop, "_batches", batches)
    log = SimpleNamespace(step=4, total=6, stalled=lambda patience: False)
    with pytest.raises(Killed, match="^2$"):
        training.loop._run(job, TrainState(jnp.int32(4), {}, {}, ()), None, log, None, 0)


# --- optimizer ------------------------------------------------------------------------------------


def example_params(**fixed):
    """Parameters of several shapes; `fixed` ones are frequencies of Fourier features."""
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "Wide": (2, 2)}
    dense = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {"layers": {"0": dense, "fourier": fixed}, "bias": np.ones(3, np.float32)}


@pytest.mark.parametrize(("grad_clip", "warmup"), [(0.0, 4), (0.5, 0), (1e3, 4)])
def test_the_optimizer_is_that_of_optax(grad_clip, warmup):
    """Adam with decoupled weight decay, warm-up, and clipping of gradients above the limit."""
    options = {"lr": 0.1, "beta1": 0.8, "eps": 1e-3, "weight_decay": 0.3}
    rates = optax.linear_schedule(0.0, 0.1, 4) if warmup else 0.1
    expected = optax.adamw(rates, b1=0.8, eps=1e-3, weight_decay=0.3)
    if grad_clip:
        expected = optax.chain(optax.clip_by_global_norm(grad_clip), expected)
    results, rng = [], np.random.default_rng(1)
    grads = [
        jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), example_params())
        for _ in range(6)
    ]
    for optimizer in (
        expected,
        states.make_optimizer(**options, grad_clip=grad_clip, warmup=warmup),
    ):
        params = example_params()
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for grad in grads:
            updates, state = update(grad, state, params)
            params = jax.tree.map(np.add, params, updates)
        results.append((params, state))
    for a, b in zip(*map(leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_frequencies_of_fourier_features_do_not_decay():
    """With zero gradients all other parameters shrink by the rate times the decay."""
    params = example_params(W=np.ones(5, np.float32))
    optimizer = states.adamw(0.1, 0.3)
    state = optimizer.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(optax.adamw(0.1).init(params))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    after = optax.apply_updates(params, updates)
    assert identical(after["layers"]["fourier"], params["layers"]["fourier"])
    after["layers"].pop("fourier")
    for a, b in zip(leaves(after), leaves(example_params()), strict=True):
        np.testing.assert_allclose(a, (1 - 0.1 * 0.3) * b, rtol=1e-6)


def test_share_of_the_initial_weights():
    """An average of zeros that starts at 1 is the share, of which a note tells."""
    for rate, ramp in itertools.product((0.0, 0.05, 0.9, 0.998), (False, True)):
        rates = np.broadcast_to(states.ema_rate(rate, ramp, jnp.arange(150)), 150)
        found = [states.initial_share(rate, ramp, steps) for steps in range(151)]
        shares = np.append(1.0, np.cumprod(rates, dtype=np.float64))
        np.testing.assert_allclose(found, shares, rtol=1e-4, atol=1e-12)
    # As in the official PyTorch release, whose count starts at 1.
    rates = states.ema_rate(0.998, True, jnp.array([0, 9, 10**6]))
    np.testing.assert_allclose(rates, [2 / 11, 11 / 20, 0.998], rtol=1e-6)
    for rate, ramp, steps, words in (
        (0.998, False, 100, "82% of the initial weights"),
        (0.998, True, 1, "18% of the initial weights"),
        (0.998, False, 2600, ""),
        (0.998, True, 100, ""),
        (0.998, False, 0, ""),  # of an imported file
    ):
        note = states.initial_share_note(rate, ramp, steps)
        assert (bool(note), words in note) == (bool(words), True)


def test_checksums_depend_on_every_array():
    checksum = checkpoint_files.tree_checksum
    tree = jax.tree.map(jnp.asarray, example_params(W=np.ones(5, np.float32)))
    arrays, structure = jax.tree.flatten(tree)
    found = [checksum(tree)]
    for i, array in enumerate(arrays):
        last = array.at[(-1,) * array.ndim].add(1e-3)
        found.append(checksum(structure.unflatten([*arrays[:i], last, *arrays[i + 1 :]])))
    assert len(set(found)) == len(arrays) + 1
    swapped = [arrays[-1], *arrays[1:-1], arrays[0]]
    assert checksum(structure.unflatten(swapped)) not in found
    assert checksum(jax.tree.map(jnp.copy, tree)) == found[0]


# --- runs -----------------------------------------------------------------------------------------


def run(config, devices=None):
    """Return the losses of a run's steps and its last state, without the training loop."""
    experiment = Experiment(config, devices)
    job = training.score_job(experiment)
    state, steps = job.initial_state(), training.compile_steps(job)
    batches = datasets.Batches(experiment.train, config.training.batch_size, config.seed)
    curve = []
    for n in range(config.training.n_iters):
        state, metrics = steps(state, sharding.shard(experiment.mesh, batches[n], axis=1))
        curve.extend(np.asarray(metrics["loss"]))
    return np.array(curve), state


@functools.cache
def one_device():
    """The losses of six steps on one device, and the last state."""
    return run(tiny.config(), jax.devices()[:1])


@pytest.mark.slow
def test_a_scan_of_steps_equals_a_loop(monkeypatch):
    """As on accelerators, and by steps that need no memory for two states."""
    config = tiny.config()
    experiment = Experiment(config, jax.devices()[:1])
    job = training.score_job(experiment)
    images = datasets.Batches(experiment.train, 16, config.seed, steps=6)[0]
    before = job.initial_state()
    monkeypatch.setattr(sharding, "on_cpu", lambda mesh: False)
    steps = training.compile_steps(job)
    after, metrics = steps(before, sharding.shard(experiment.mesh, images, axis=1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.ema)))
    curve, looped = one_device()
    np.testing.assert_allclose(metrics["loss"], curve, rtol=1e-5)
    for a, b in zip(leaves(after.ema), leaves(looped.ema)):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert after.step == looped.step == 6


def test_conditional_networks_get_partly_hidden_labels(monkeypatch):
    changes = {"data.num_classes": 10, "model.class_dropout": 0.5, "training.batch_size": 64}
    experiment = Experiment(tiny.config(**changes))
    job, given = training.score_job(experiment), []
    pixels, labels = (leaf[0] for leaf in next(training.loop._batches(job, 0))[:2])
    parts = [job.part(jax.random.key(seed), datasets.Batch(pixels, labels)) for seed in (0, 1)]
    kinds = experiment.score_model.kinds
    first, second = (
        np.asarray(kinds.arguments(part.condition, part.x)["classes"]) for part in parts
    )
    assert set(first[first != labels].tolist()) == {10}
    assert 10 < (first == 10).sum() < 54
    assert (first != second).any()

    def score(params, rngs, condition):
        given.append(condition)
        return lambda x, t, marginal: x

    monkeypatch.setattr(experiment, "score", score)
    assert job.loss({}, parts[0]).shape == (64,)
    assert given == [parts[0].condition]


# --- restarts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of six steps: snapshots 1 and 2 at steps 4 and 6, and backups at both."""
    workdir = tmp_path_factory.mktemp("trained")
    with tiny.shared_steps():
        yield workdir, training.train(tiny.config(), str(workdir))


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of that run, to change."""
    return shutil.copytree(trained[0], tmp_path / "w")


class Killed(Exception):
    pass


def test_golden_steps_on_any_number_of_devices(trained):
    """If a change is meant to alter training, update the numbers and the changelog."""
    curve, _ = one_device()
    np.testing.assert_allclose(curve[:3], [1.077502, 1.004528, 0.953935], rtol=1e-4)
    two_devices = read_curves(trained[0] / "metrics.jsonl")["training/loss"].values
    np.testing.assert_allclose(two_devices, curve.reshape(3, 2).mean(1), rtol=5e-6)


def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, trained):
    """Also if it was to have more steps. There are backups of every other step."""
    collect, steps = training.loop.TrainingLog.collect, []

    def kill(self, step, metrics):
        if step == 5:
            raise Killed
        collect(self, step, metrics)

    def record(self, step, metrics):
        steps.append(step)
        collect(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop.TrainingLog, "collect", kill)
        with pytest.raises(Killed):
            training.train(tiny.config(**{"training.n_iters": 9}), str(tmp_path / "w"))
    monkeypatch.setattr(training.loop.TrainingLog, "collect", record)
    assert identical(training.train(tiny.config(), str(tmp_path / "w")), trained[1])
    assert steps == [5, 6]
    checkpoints = Checkpoints(tmp_path / "w")
    found = [(each.step, each.folder) for each in checkpoints.find()]
    assert found == [(6, BACKUPS), (6, SNAPSHOTS), (4, BACKUPS), (4, SNAPSHOTS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", reference.cases(["checkpoint_1", "one.pth"], ["one.pth"]))
def test_an_exported_and_imported_run_ends_as_an_uninterrupted_one(tmp_path, trained, name):
    """Official Flax and PyTorch files preserve step, parameters, EMA and Adam's state."""
    if name.endswith(".pth"):
        pytest.importorskip("torch", reason="not installed (requirements-dev.txt)")
    conversion.export_checkpoint(tiny.config(), str(trained[0]), str(tmp_path / name), 1)
    workdir = str(tmp_path / "w")
    assert conversion.import_checkpoint(tiny.config(), workdir, str(tmp_path / name)) == 1
    assert identical(training.train(tiny.config(), workdir), trained[1])


def damage(folder):
    """Truncate every data file of a checkpoint to half its size."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_if_the_newest_checkpoints_are_damaged_the_previous_one_is_used(copied, trained, caplog):
    """If all of them are damaged, nothing is overwritten."""
    for folder, number in ((SNAPSHOTS, 2), (BACKUPS, 6)):
        damage(copied / folder / f"checkpoint_{number}")
    assert identical(training.train(tiny.config(), str(copied)), trained[1])
    assert "damaged" in caplog.text
    assert sorted(Checkpoints(copied).snapshots()) == [1, 2]
    for folder in copied.glob("checkpoints*/checkpoint_*"):
        damage(folder)
    words = "none of them can be read; nothing is overwritten"
    refused(words, training.train, tiny.config(), str(copied))


def change_a_byte(folder):
    """Change one byte of the largest file of a checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    data = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0x40
    data.write_bytes(bytes(content))


def test_content_that_differs_from_its_checksum(tmp_path, monkeypatch):
    """Orbax notices most changes itself."""
    tree, checkpoints = {"a": jnp.arange(3.0)}, Checkpoints(tmp_path, create=True)
    checksum = checkpoint_files.tree_checksum
    for number, wrong in ((1, 0), (2, 1)):
        patched = functools.partial(lambda tree, wrong: checksum(tree) ^ wrong, wrong=wrong)
        monkeypatch.setattr(checkpoint_files, "tree_checksum", patched)
        checkpoints.save(BACKUPS, number, {"tree": tree}, step=number, config={})
    checkpoints.close()
    monkeypatch.setattr(checkpoint_files, "tree_checksum", checksum)
    checkpoints = Checkpoints(tmp_path)
    damaged, whole = checkpoints.find()
    assert identical(checkpoints.restore(whole, {"tree": tree}), {"tree": tree})
    words = "is damaged: the checksum of tree is not the one"
    refused(words, checkpoints.restore, damaged, {"tree": tree})
    refused("is damaged: it has no checksum of ema", checkpoints.checksum, whole, "ema")


def test_opening_beside_training_is_tried_again(trained, monkeypatch):
    """Training removes a backup between the listing of a folder and the reading of its metadata."""
    failures = iter([FileNotFoundError("checkpoint_4")] * 3)
    manager = orbax.CheckpointManager

    def removed(path, options):
        failure = next(failures, None)
        if failure:
            raise failure
        return manager(path, options=options)

    monkeypatch.setattr(orbax, "CheckpointManager", removed)
    assert Checkpoints(trained[0]).find()
    assert next(failures, None) is None


@pytest.mark.parametrize("call", ["save", "wait", "close"])
def test_a_moved_workdir_is_noticed(tmp_path, call):
    """Also if Orbax, which was writing in the background, has made one of its folders again."""
    workdir = tmp_path / "w"
    workdir.mkdir()
    (workdir / LOCK).touch()
    checkpoints = Checkpoints(workdir, create=True)
    save = functools.partial(checkpoints.save, BACKUPS, trees={"a": jnp.ones(3)}, config={})
    save(1, step=1)
    checkpoints.wait()
    workdir.rename(tmp_path / "moved")
    for folder in (BACKUPS, SNAPSHOTS):
        (workdir / folder).mkdir(parents=True)
    calls = {"save": lambda: save(2, step=2), "wait": checkpoints.wait, "close": checkpoints.close}
    for _ in range(2):
        refused("was moved, deleted or replaced while this run wrote", calls[call])
        (workdir / LOCK).touch()
    assert [found.step for found in Checkpoints(tmp_path / "moved").find()] == [1]
    assert not Checkpoints(workdir).find()


def test_a_run_without_a_snapshot_is_used_by_its_newest_backup(copied):
    """As after a signal before the first snapshot; not if another checkpoint is asked for."""
    shutil.rmtree(copied / SNAPSHOTS)
    experiment = Experiment(tiny.config())
    found, ema = experiment.trained(copied)
    assert str(found) == f"{BACKUPS}/checkpoint_6 (step 6)"
    refused("has no checkpoint_2; existing checkpoints: none", experiment.trained, copied, 2)
    (snapshot,) = evaluation._select(Checkpoints(copied), tiny.config(), None)
    assert snapshot == found


def test_checkpoints_with_damaged_metadata_are_skipped(copied, caplog):
    """Also if a value was changed, so that it differs from its checksum.

    Evaluation does not read backups, which training, beside it, removes at any time.
    """
    path = copied / BACKUPS / "checkpoint_6" / "info" / "metadata"
    written, valid = json.loads(path.read_text()), {"step": 6, "config": {}, "checksums": {}}
    damaged = [[], {"step": 6, "config": {}}, valid | {"checksums": {"about": 7}}]
    damaged += [valid | {"step": step} for step in (None, "6", -1, 10**9 + 1)]
    damaged += [written | {"step": 5}, written | {"config": {"seed": 1}}]
    for text in ("", *map(json.dumps, damaged)):
        path.write_text(text)
        caplog.clear()
        assert sorted(Checkpoints(copied).snapshots()) == [1, 2]
        assert not caplog.text
        assert [found.number for found in Checkpoints(copied).find(BACKUPS)] == [4]
        assert "checkpoints-meta/checkpoint_6 is damaged and is skipped" in caplog.text


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "info/metadata", "ema/manifest.ocdbt"])
def test_named_pipes_in_checkpoints_are_not_opened(copied, trained, name, caplog):
    """Opening one would wait without end."""
    path = copied / SNAPSHOTS / "checkpoint_2" / name
    path.unlink()
    os.mkfifo(path)
    like = {"ema": trained[1].ema}
    if name == "_CHECKPOINT_METADATA":
        refused("is a named pipe.* Move this checkpoint", Checkpoints, copied)
    elif name == "info/metadata":
        assert sorted(Checkpoints(copied).snapshots()) == [1]
        assert "metadata is a named pipe" in caplog.text
    else:
        checkpoints = Checkpoints(copied)
        refused("is a named pipe", checkpoints.restore, checkpoints.pick(2), like)


def test_damaged_metadata_of_orbax(copied, trained):
    """One line; the advice works."""
    path = copied / SNAPSHOTS / "checkpoint_2" / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"commit_timestamp_nsecs": float("nan")}))
    refused("_CHECKPOINT_METADATA is damaged: .* Delete these files", Checkpoints, copied)
    path.unlink()
    checkpoints = Checkpoints(copied)
    checkpoints.restore(checkpoints.pick(2), {"ema": trained[1].ema})


def test_strays_among_checkpoints_are_named(tmp_path, copied, caplog):
    folder = copied / SNAPSHOTS
    (folder / "checkpoint_x").mkdir()
    (folder / "checkpoint_8").write_text("")
    (folder / "checkpoint_9").mkdir()
    assert sorted(Checkpoints(copied).snapshots()) == [1, 2]
    for name in ("checkpoint_x is no", "checkpoint_8 is no", "checkpoint_9 is damaged"):
        assert name in caplog.text
    (tmp_path / "file" / SNAPSHOTS).parent.mkdir()
    (tmp_path / "file" / SNAPSHOTS).write_text("")
    refused("checkpoints must be a folder of checkpoints", Checkpoints, tmp_path / "file")


def test_checkpoints_replace_a_missing_config(copied):
    (copied / "config.json").unlink()
    (copied / BACKUPS / "checkpoint_6" / "info" / "metadata").write_text("damaged")
    other = tiny.config(**{"model.nf": 16})
    for check in (folders.claim, folders.check_config):
        with pytest.raises(InputError, match=r"another config. .*\n  model.nf: 8 there, 16 now"):
            check(copied, complete(other), "training")
    with pytest.raises(InputError, match="model.nf: 8 there, 16 now"):
        folders.check_workdir(copied, complete(other))
    folders.check_workdir(copied, complete(tiny.config()))
    assert not (copied / "config.json").exists()


def test_another_experiment_in_the_workdir_is_refused(trained):
    before = {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")}
    config = tiny.config(**{"model.nf": 16, "optim.lr": 0.5, "eval.batch_size": 8})
    message = r"model.nf: 8 there, 16 now\n  optim.lr: 0.0?01?.* there, 0.5 now"
    with pytest.raises(InputError, match=message):
        training.train(config, str(trained[0]))
    assert before == {path: path.stat().st_mtime_ns for path in trained[0].rglob("*")}


# --- long training --------------------------------------------------------------------------------

COMPILATION = "/jax/core/compile/backend_compile_duration"
LONG = {
    **{"model.nf": 4, "model.num_scales": 20, "training.batch_size": 2, "training.n_iters": 5000},
    **{"training.log_freq": 50, "training.eval_freq": 100, "training.snapshot_freq": 500},
    **{"training.snapshot_freq_for_preemption": 250, "training.snapshot_sampling": True},
    **{"sampling.method": "solver", "sampling.num_steps": 2},
}


@pytest.mark.long
def test_training_does_not_grow(tmp_path, monkeypatch):
    """Between steps 1,000 and 5,000, with checkpoints, samples and held-out losses.

    The margin of memory is 10 KB a step, and the state has 100 KB. A file or thread that each
    checkpoint leaves would add 20 of them. The measured growth is 16 MB, due to the allocator.
    """
    process, compiled, usage = Path("/proc/self"), [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event == COMPILATION else None
    )
    collect = training.loop.TrainingLog.collect

    def measure(log, step, metrics):
        collect(log, step, metrics)
        if step % 1000 == 999:  # No checkpoint is being written.
            gc.collect()
            pages = int((process / "statm").read_text().split()[1])
            files, threads = (len(list((process / name).iterdir())) for name in ("fd", "task"))
            usage[step] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads, len(compiled)

    monkeypatch.setattr(training.loop.TrainingLog, "collect", measure)
    training.train(tiny.config(**LONG), str(tmp_path))
    grown = [after - before for before, after in zip(usage[999], usage[4999])]
    assert grown[3] == 0, usage
    assert all(grown < most for grown, most in zip(grown, (40, 3, 5))), usage
