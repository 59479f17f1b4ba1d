"""Training logs: what they write, after a restart as well, and how the curves are read back."""

import json

import numpy as np
import pytest
from PIL import Image

from runs.training_log import TrainingLog, read_curves, remove_later_steps
from tests.refusal import refused


def metrics(loss, steps=2):
    """Metrics of some steps, with five noise levels, of which the last did not occur."""
    counts = np.array([1, 1, 1, 1, 0])
    return {
        "loss": np.full(steps, loss, np.float32),
        "grad_norm": np.full(steps, 2.0),
        "levels": np.tile(np.stack([loss * counts, counts]), (steps, 1, 1)),
    }


def log_steps(workdir, start, stop):
    """Log every two steps with the loss 1 / step, and one held-out loss at the end."""
    with TrainingLog(workdir, start, stop, batch_size=8) as log:
        before = len(lines(workdir)) if log.is_writer else 0
        for step in range(start + 2, stop + 1, 2):
            log.collect(step, metrics(1 / step))
            log.training()
            if log.is_writer:  # A line is on disk at once.
                assert len(lines(workdir)) == before + (step - start) // 2
        log.held_out(np.array([0.25, 0.75]), 0.125, np.array([[1.0, 0.0], [2, 0]]))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_one_line_for_each_report(tmp_path, capsys):
    log_steps(tmp_path, 0, 4)
    first, second, held_out = lines(tmp_path)
    speed = second.pop("training/images_per_second")
    assert speed > 0
    assert second == {"step": 4, "training/loss": 0.25, "training/grad_norm": 2.0}
    assert held_out == {"step": 4, "held_out/loss": 0.5, "held_out/loss_stderr": 0.125}
    assert first["step"] == 2
    printed = capsys.readouterr().out
    assert f"step 4: loss 0.25000, {speed:.0f} images/s, ETA 00:00" in printed
    line = "step 4: held-out loss 0.50000 +- 0.12500 of the EMA parameters, without dropout, on 2"
    assert f"{line} images" in printed


def test_a_restart_replaces_later_steps(tmp_path):
    """It starts from a checkpoint before the end of the log, whose last line was cut off."""
    log_steps(tmp_path, 0, 8)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 10, "training/lo')
    log_steps(tmp_path, 4, 6)
    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6, 6]
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves["training/loss"].steps.tolist() == [2, 4, 6]
    assert curves["training/loss"].values == pytest.approx([1 / 2, 1 / 4, 1 / 6])
    log_steps(tmp_path, 0, 2)
    assert [line["step"] for line in lines(tmp_path)] == [2, 2]


def test_reading_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    remove_later_steps(path, 3)
    assert read_curves(path) == {}
    assert not path.exists()
    text = ['{"step": 4, "a": 3.0}', '{"step": 2, "a": 1, "b": null}', '{"step": 4, "a": 2.5}']
    path.write_bytes("\n".join([*text, "[1]", "{}", "", '{"step"']).encode() + b"\xff")
    curves = read_curves(path)
    assert list(curves) == ["a"]
    assert curves["a"].steps.tolist() == [2, 4]
    assert curves["a"].values.tolist() == [1, 2.5]


def test_losses_that_are_not_finite(tmp_path):
    """One in training stops it; a held-out one is null, and not in the curves."""
    bad = metrics(1.0, steps=3)
    bad["loss"][1] = np.nan
    with TrainingLog(tmp_path, 10, 20, batch_size=8) as log:
        log.check()
        log.collect(12, metrics(1.0))
        log.collect(15, bad)
        refused(r"Step 14: the loss is nan and the gradient norm 2", log.training)
        assert lines(tmp_path) == []
        log.held_out(np.array([np.nan]), np.nan, np.zeros((2, 5)))
    assert lines(tmp_path) == [{"step": 15, "held_out/loss": None, "held_out/loss_stderr": None}]
    assert read_curves(tmp_path / "metrics.jsonl") == {}


def test_tensorboard_shows_the_same_scalars(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_steps(tmp_path, 0, 8)
    (path,) = tmp_path.glob("tensorboard/events.*")
    path.rename(path.with_name("events.out.tfevents.1.host"))  # Names are unique to the second.
    log_steps(tmp_path, 4, 6)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, curve in read_curves(tmp_path / "metrics.jsonl").items():
        shown = events.Scalars(name)
        assert [event.step for event in shown] == curve.steps.tolist()
        assert [event.value for event in shown] == pytest.approx(curve.values)
    levels = {tag for tag in events.Tags()["scalars"] if tag.startswith("training_loss_by_t/")}
    assert levels == {f"training_loss_by_t/{t}" for t in ("0.10", "0.30", "0.50", "0.70")}


@pytest.mark.parametrize("process", [0, 1])
def test_only_process_0_writes(tmp_path, monkeypatch, capsys, process):
    monkeypatch.setattr("jax.process_index", lambda: process)
    log_steps(tmp_path, 0, 4)
    with TrainingLog(tmp_path, 6, 6, batch_size=8) as log:
        log.samples(Image.new("L", (8, 8), 255))
    path, printed = tmp_path / "samples" / "step_6.png", capsys.readouterr().out
    if process:
        assert not [each for each in tmp_path.rglob("*") if each.is_file()]
        assert printed == ""
    else:
        assert Image.open(path).size == (8, 8)
        assert f"samples in {path}" in printed
