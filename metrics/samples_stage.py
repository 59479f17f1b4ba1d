"""The evaluation stage `sampling`: generated images, in rounds, and pictures of the first ones.

If the data set can be read, there is a picture of held-out images, too, to compare with.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import datasets
from configs.default import Config
from errors import InputError
from experiment import Experiment
from metrics import splits
from metrics.stage import Cell, Context, Measure, Results, Stage
from runs import Arrays, load_rounds, round_paths, write_picture

GRID_IMAGES = 100  # Maximum number of images in samples.png.


def run(context: Context) -> Results:
    """Generate images 0 .. num_samples - 1, and a picture of the first ones.

    A round holds `samples`, uint8 (N, H, W, C); `nfe` (N,); `classes` (N,) if config.guidance
    states classes; the `seconds` (1,) that it took; and whether it was the `first` (1,) round of a
    process, which includes compilation. One round of images is in memory at a time. Raises
    NotFiniteError, before the round is written, if a sample is not finite.
    """
    config = context.experiment.config.eval
    size = config.batch_size
    computed = []

    def compute(index: int) -> Arrays:
        count = min(size, config.num_samples - index * size)
        arrays = _sample_round(context, index, count, first=not computed)
        computed.append(index)
        return arrays

    paths = context.run_rounds("samples", _round_count(config), compute)
    rounds_in_grid = -(-GRID_IMAGES // size)
    grid = load_rounds(paths[:rounds_in_grid], "samples")["samples"][:GRID_IMAGES]
    picture = context.folder / "samples.png"
    write_picture(picture, datasets.image_grid(grid))
    _write_held_out(context, len(grid))
    nfe = load_rounds(paths, "nfe")["nfe"]
    entry = {"images": config.num_samples, "nfe": float(nfe.mean()), "picture": str(picture)}
    return entry | _guidance(context.experiment)


def _sample_round(context: Context, index: int, count: int, *, first: bool) -> Arrays:
    """Generate the `count` images of a round; the first round also writes their trajectories."""
    experiment = context.experiment
    size = experiment.config.eval.batch_size
    start = time.monotonic()
    samples, nfe, frames, _ = experiment.sample_images(context.ema, index * size, size)
    arrays = {
        "samples": samples[:count],
        "nfe": nfe[:count],
        "seconds": np.array([time.monotonic() - start]),
        "first": np.array([first]),
    }
    classes = experiment.classes(np.arange(index * size, index * size + count))
    if classes is not None:
        arrays["classes"] = np.asarray(classes)
    if index == 0 and len(frames):
        levels = experiment.sampler.frame_levels
        write_picture(context.folder / "trajectory.png", datasets.trajectory_grid(frames, levels))
    return arrays


def _write_held_out(context: Context, count: int) -> None:
    """Write real.png with `count` held-out images, of the same classes as the samples.

    Samples require no data: if the images cannot be read, there is no picture.
    """
    experiment = context.experiment
    classes = experiment.config.guidance.classes
    try:
        rows = splits.rows_of_classes(experiment.test, classes).reshape(-1, len(classes) or 1)
        cycles = min(len(rows), -(-count // rows.shape[1]))
        chosen = rows[np.linspace(0, len(rows) - 1, cycles).round().astype(int)].ravel()[:count]
        values = jnp.asarray(experiment.test.batch(chosen).pixels)
    except InputError:
        return
    scaler = experiment.scaler
    images = np.asarray(scaler.pixels(scaler.scale(values), dequantized=False))
    columns = math.ceil(math.sqrt(count))  # As in samples.png.
    write_picture(context.folder / "real.png", datasets.image_grid(images, columns=columns))


def _guidance(experiment: Experiment) -> Results:
    """The guidance of the samples, if there is any."""
    guidance = experiment.config.guidance
    if not guidance.classes:
        return {}
    kind = "classifier-free" if experiment.labelled else "classifier"
    fields = json.loads(json.dumps(guidance.to_dict()))  # JSON has lists in place of tuples.
    return {"guidance": {"kind": kind} | fields}


def _round_count(config: Config) -> int:
    return -(-config.num_samples // config.batch_size)


def sample_paths(folder: Path, config: Config) -> list[Path]:
    """The files of the rounds of samples, given config.eval."""
    return round_paths(folder, "samples", _round_count(config))


def check(experiment: Experiment) -> None:
    """Raise InputError if the sampler is unstable."""
    experiment.sampler.check_stable()


def measures(entry: Results) -> list[Measure]:
    """No rows: the samples are measured by the stage `metrics`."""
    return []


def cells(entry: Results | None) -> list[Cell]:
    """The cells of the printed table."""
    text = "-" if entry is None else f"{entry['images']}, {entry['nfe']:.0f} NFE"
    return [Cell("samples", text, width=14)]


def notes(entries: Sequence[Results]) -> list[str]:
    """The paths of the pictures."""
    return [f"picture: {entry['picture']}" for entry in entries]


STAGE = Stage(
    name="sampling",
    key="samples",
    kind="samples",
    run=run,
    measures=measures,
    cells=cells,
    notes=notes,
    check=check,
    needs_classifier=True,
)
