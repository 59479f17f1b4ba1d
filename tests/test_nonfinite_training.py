"""training.on_nonfinite: losses, gradients and states that are not finite, at chosen steps."""

import dataclasses
import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import datasets
import sharding
import training
from errors import InputError
from experiment import Experiment
from runs.checkpoints import Checkpoints
from runs.training_log import read_curves
from tests import tiny
from tests.refusal import refused
from tests.test_training import Killed, identical, leaves
from tests.test_training_log import metrics
from training import state as states
from training.state import Rollbacks


class Run:
    """Training of one parameter vector, whose loss is NaN at chosen (step, rollbacks).

    It replaces the compiled step by one that compiles in milliseconds and depends on the same
    values: the state, the step and the random numbers of `Job.root`.
    """

    def __init__(self, monkeypatch, bad=(), overflow=()):
        self.bad, self.overflow, self.killed_at = set(bad), set(overflow), None
        monkeypatch.setattr(training.Job, "initial_state", lambda job: initial(job.optimizer))
        monkeypatch.setattr(training.loop, "compile_steps", self.compile_steps)
        monkeypatch.setattr(training.loop, "_batches", lambda job, first: iter(lambda: {}, 1))
        monkeypatch.setattr(training.loop, "held_out_losses", self.held_out_losses)
        self.shown = []  # parameters of held-out losses
        collect = training.loop.TrainingLog.collect

        def kill(log, step, metrics):
            if step == self.killed_at:
                raise Killed
            collect(log, step, metrics)

        monkeypatch.setattr(training.loop.TrainingLog, "collect", kill)

    def compile_steps(self, job, rollbacks=0):
        root = job.root(rollbacks)

        def step(state, batch):
            number = int(state.step) + 1
            noise = jax.random.normal(jax.random.fold_in(root, number), (2,))
            grads = {"w": jnp.full((2, 2), noise[0]), "b": noise}
            loss = jnp.nan if (number, rollbacks) in self.bad else noise.sum()
            updated = states.update(state, grads, job.optimizer, 0.9)
            if (number, rollbacks) in self.overflow:
                updated = updated._replace(params={"w": updated.params["w"] * jnp.inf, "b": noise})
            if job.settings.on_nonfinite == "skip":
                updated = states.keep_if(jnp.isfinite(loss), updated, state)
            values = metrics(1.0, steps=1) | {"loss": np.array([loss])}
            return updated, jax.tree.map(jnp.asarray, values)

        return step

    def held_out_losses(self, job, ema):
        self.shown.append(jax.device_get(ema))
        return np.ones(2), 0.0, np.ones((2, 5))

    def train(self, workdir, policy, **changes):
        config = tiny.config(**{"training.on_nonfinite": policy, "training.n_iters": 12, **changes})
        return training.train(config, str(workdir))


def initial(optimizer):
    return states.create({"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, optimizer)


def saved(workdir):
    """The states of all checkpoints, by step, which must be finite."""
    like = initial(states.make_optimizer(**tiny.config().optim))
    checkpoints = Checkpoints(workdir)
    found = {}
    for each in checkpoints.find():
        trees = checkpoints.restore(each, states.to_checkpoint(like))
        found[each.step] = states.from_checkpoint(trees)
    checkpoints.close()
    assert all(np.isfinite(leaf).all() for state in found.values() for leaf in leaves(state))
    return found


def test_held_out_loss_and_samples_are_those_of_the_ema(tmp_path, monkeypatch):
    run = Run(monkeypatch)

    def sample_grid(self, params):
        run.shown.append(jax.device_get(params))
        return Image.new("L", (8, 8))

    monkeypatch.setattr(Experiment, "sample_grid", sample_grid)
    changes = {"training.n_iters": 2, "training.snapshot_sampling": True}
    state = run.train(tmp_path, "stop", **changes)
    assert (tmp_path / "samples" / "step_2.png").is_file()
    assert len(run.shown) == 2
    assert not identical(state.ema, state.params)
    assert all(identical(each, state.ema) for each in run.shown)


def test_stop(tmp_path, monkeypatch):
    """The error states step, rate, loss, norm and the remedies."""
    message = refused("", Run(monkeypatch, bad=[(5, 0)]).train, tmp_path, "stop")
    for part in (
        "Step 5: the loss is nan and the gradient norm 2 at learning rate 0.001",
        "training.on_nonfinite (stop, skip or rollback)",
        "optim.lr or optim.grad_clip",
    ):
        assert part in message
    assert sorted(saved(tmp_path)) == [2, 4]


def test_sigterm_saves_the_state(tmp_path, monkeypatch, capsys):
    """The run stops at once; the next one ends as an uninterrupted run does."""
    run, before = Run(monkeypatch), signal.getsignal(signal.SIGTERM)
    collect = training.loop.TrainingLog.collect

    def signalled(log, step, metrics):
        collect(log, step, metrics)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop.TrainingLog, "collect", signalled)
        assert run.train(tmp_path / "w", "stop").step == 3
    assert "step 3: stopped by SIGTERM" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    whole = run.train(tmp_path / "whole", "stop")
    assert identical(run.train(tmp_path / "w", "stop"), whole)


def test_states_that_overflow_are_not_saved(tmp_path, monkeypatch):
    """All losses are finite, and the update of step 3 makes the parameters infinite."""
    run = Run(monkeypatch, overflow=[(3, 0)])
    message = "Step 3: parameters are not finite, and the loss is .* at learning rate 0.001"
    for policy in ("stop", "skip"):
        refused(message, run.train, tmp_path / policy, policy)
        assert sorted(saved(tmp_path / policy)) == [2]


def test_skip(tmp_path, monkeypatch, capsys):
    """A skipped step changes the step number only: the state after it is that before it."""
    run = Run(monkeypatch, bad=[(5, 0), (6, 0)])
    state = run.train(tmp_path, "skip")
    found = saved(tmp_path)
    assert state.step == 12
    assert found[6 if 6 in found else 4].step in (4, 6)
    assert "step 6: steps skipped, as not finite: 2 (5, 6)" in capsys.readouterr().out
    assert np.isfinite(read_curves(tmp_path / "metrics.jsonl")["training/loss"].values).all()
    assert state.opt_state[1][0].count == 10


@pytest.mark.slow
def test_ten_skipped_steps_in_a_row_stop_training(tmp_path, monkeypatch):
    bad = [(step, 0) for step in (3, *range(5, 15))]
    words = "Step 14: the loss is nan .* in 10 steps in a row"
    steps = {"training.n_iters": 20}
    refused(words, Run(monkeypatch, bad=bad).train, tmp_path / "ten", "skip", **steps)
    assert Run(monkeypatch, bad=bad[:-1]).train(tmp_path / "nine", "skip", **steps).step == 20


def test_rollback(tmp_path, monkeypatch, capsys):
    """Training continues from step 4 with other noise; the log forgets the failed steps."""
    state = Run(monkeypatch, bad=[(5, 0)]).train(tmp_path, "rollback")
    assert json.loads((tmp_path / "rollbacks.json").read_text()) == {
        "number": 1,
        "step": 5,
        "repeated": 1,
    }
    printed = capsys.readouterr().out
    assert "step 4: rollback 1: Step 5: the loss is nan" in printed
    assert "step 4: continuing from checkpoints-meta/checkpoint_4 (step 4)" in printed
    assert state.step == 12
    assert sorted(saved(tmp_path)) == [4, 8, 10, 12]
    without = Run(monkeypatch).train(tmp_path / "without", "rollback")
    assert not identical(state.params, without.params)
    assert not (tmp_path / "without" / "rollbacks.json").exists()


def test_rollback_to_the_initial_state_and_after_an_overflow(tmp_path, monkeypatch, capsys):
    run = Run(monkeypatch, bad=[(1, 0)], overflow=[(7, 1)])
    assert run.train(tmp_path, "rollback").step == 12
    printed = capsys.readouterr().out
    assert "step 0: rollback 1: Step 1: the loss is nan" in printed
    assert "step 6: rollback 2: Step 8: parameters and moving average are not finite" in printed
    saved(tmp_path)


BAD = [(5, 0), (5, 1), (9, 2)]


@pytest.mark.slow
def test_killed_runs_with_rollbacks_end_as_an_uninterrupted_one(tmp_path, monkeypatch):
    """Killed in steps 5 and 9, and between each rollback and the next checkpoint."""
    run = Run(monkeypatch, bad=BAD)
    whole, files = run.train(tmp_path / "whole", "rollback"), [tmp_path / "whole"]
    for killed_at in (5, 9):
        files.append(tmp_path / str(killed_at))
        run.killed_at = killed_at
        with pytest.raises(Killed):
            run.train(files[-1], "rollback")
        run.killed_at = None
        assert identical(run.train(files[-1], "rollback"), whole)
    assert len({(each / "rollbacks.json").read_bytes() for each in files}) == 1
    write = Rollbacks.write

    def write_and_kill(rollbacks, workdir):
        write(rollbacks, workdir)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Rollbacks, "write", write_and_kill)
        for _ in range(3):
            with pytest.raises(Killed):
                run.train(tmp_path / "killed", "rollback")
    assert identical(run.train(tmp_path / "killed", "rollback"), whole)


@pytest.mark.slow
def test_three_rollbacks_without_progress_stop_training(tmp_path, monkeypatch, capsys):
    rollbacks = Rollbacks()
    for step, expected in ((5, (1, 5, 1)), (4, (2, 5, 2)), (5, (3, 5, 3)), (6, (4, 6, 1))):
        rollbacks = rollbacks.next(step)
        assert rollbacks == expected
    run = Run(monkeypatch, bad=[(5, number) for number in range(10)])
    for _ in range(2):  # The same command stops again at once.
        with pytest.raises(InputError, match="Step 5: the loss is nan .* good checkpoint is kept"):
            run.train(tmp_path, "rollback")
        assert json.loads((tmp_path / "rollbacks.json").read_text())["number"] == 3
    assert capsys.readouterr().out.count("rollback 3") == 1
    assert sorted(saved(tmp_path)) == [2, 4]


def test_a_damaged_file_of_rollbacks_is_named(tmp_path):
    for content, message in (
        ("{", "JSON"),
        ('{"number": -1, "step": 5, "repeated": 1}', "number=-1"),
        ('{"number": 1, "step": 5, "repeated": 4294967297}', "repeated=4294967297"),
        ('{"number": 1.5, "step": 5, "repeated": 1}', "'number' is of type float"),
    ):
        (tmp_path / "rollbacks.json").write_text(content)
        words = rf"rollbacks\.json .*{message}.* Restore it, or delete"
        refused(words, states.read_rollbacks, tmp_path)


@pytest.mark.slow
def test_the_policy_can_be_changed_in_a_workdir(tmp_path, monkeypatch):
    """The run with rollbacks keeps its noise, and so ends as an uninterrupted one."""
    run = Run(monkeypatch, bad=[(5, 0)])
    with pytest.raises(InputError, match="Continue with another training.on_nonfinite"):
        run.train(tmp_path / "skip", "stop")
    assert run.train(tmp_path / "skip", "skip").step == 12
    whole = run.train(tmp_path / "whole", "rollback")
    run.killed_at = 8
    with pytest.raises(Killed):
        run.train(tmp_path / "stop", "rollback")
    run.killed_at = None
    assert identical(run.train(tmp_path / "stop", "stop"), whole)


# --- compiled programs ----------------------------------------------------------------------------


def test_a_skipped_step():
    """NaN in the optimizer's inputs does not reach the state, and a finite step is as without."""
    config = tiny.config(**{"training.batch_size": 4, "training.on_nonfinite": "skip"})
    job = dataclasses.replace(
        training.score_job(Experiment(config)),
        loss=lambda params, part: jnp.square(part.z - params["w"] * part.x).mean((1, 2, 3)),
        init=lambda: {"w": jnp.ones(())},
        abstract_params={"w": jax.ShapeDtypeStruct((), jnp.float32)},
    )
    step = training.jit_step(job)
    pixels = np.zeros((4, *job.experiment.image_shape), np.uint8)
    batch = sharding.shard(job.experiment.mesh, datasets.Batch(pixels))
    bad = job.initial_state()._replace(params={"w": jnp.float32(np.nan)})
    before = [leaf.copy() for leaf in leaves(bad)[1:]]  # The step donates them.
    after, values = step(bad, batch)
    assert math.isnan(values["loss"])
    assert after.step == 1
    for x, y in zip(before, leaves(after)[1:], strict=True):
        np.testing.assert_array_equal(x, y)
    state, values = step(job.initial_state(), batch)
    assert np.isfinite(values["loss"])
    assert state.opt_state[1][0].count == 1


@pytest.mark.parametrize("sharded", [False, True])
def test_all_finite(sharded):
    """One bad value in any array is found; the largest finite values are finite."""
    mesh = sharding.make_mesh(jax.devices()[:2])
    tree = {"w": np.full((64, 128), 3e38, np.float32), "b": np.zeros(8192, np.float32)}
    tree |= {"count": np.int32(2**31 - 1), "scale": np.float32(-3e38)}
    bad = [("w", (63, 127), np.nan), ("b", 5000, np.inf), ("scale", (), -np.inf)]
    for name, index, value in [*bad, ("scale", (), 3e38)]:
        changed = {key: np.array(leaf) for key, leaf in tree.items()}
        changed[name][index] = value
        if sharded:
            places = sharding.shard_largest_axis(mesh, changed)
            changed = jax.device_put(changed, places)
        assert bool(states.all_finite(changed)) == bool(np.isfinite(value))
