"""The evaluation stage `sampling`: generated images, in rounds, and pictures of the first ones.

If the data set can be read, there is a picture of held-out images, too, to compare with.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import datasets
from errors import InputError
from experiment import Experiment
from metrics.stage import Context, Measure, Results, Stage, rows_of_classes
from runs import Arrays, load_rounds, round_paths, write_picture

GRID_IMAGES = 100  # Maximum number of images in samples.png.


def run(context: Context) -> Results:
    """Generate images 0 .. num_samples - 1, and a picture of the first ones.

    A round holds `samples`, uint8 (N, H, W, C); `nfe` (N,); `classes` (N,) if config.guidance
    states classes; and the `seconds` (1,) that it took. One round of images is in memory at a time.
    The speed is that of the fastest round. Raises NotFiniteError, before the round is written, if a
    sample is not finite.
    """
    experiment, config = context.experiment, context.experiment.config.eval
    compute = functools.partial(_sample_round, context)
    paths = context.run_rounds("samples", len(sample_paths(context)), compute)
    in_grid = paths[: -(-GRID_IMAGES // config.batch_size)]
    count = min(len(in_grid) * config.batch_size, config.num_samples)
    grid = load_rounds(in_grid, samples=(count, *experiment.image_shape))["samples"][:GRID_IMAGES]
    picture = context.folder / "samples.png"
    write_picture(picture, datasets.image_grid(grid))
    with contextlib.suppress(InputError):  # Samples require no data.
        images = held_out(experiment, len(grid))
        columns = math.ceil(math.sqrt(len(grid)))  # As in samples.png.
        write_picture(context.folder / "real.png", datasets.image_grid(images, columns=columns))
    count = config.num_samples
    rounds = load_rounds(paths, nfe=(count,), seconds=(len(paths),))
    nfe = rounds["nfe"]
    sizes = np.diff([*range(0, count, config.batch_size), count])
    entry = {
        "images": count,
        "nfe": float(nfe.mean()),
        "nfe_range": [int(nfe.min()), int(nfe.max())],
        "images_per_second": float((sizes / rounds["seconds"]).max()),
        "compilation_included": len(paths) == 1,
        "picture": str(picture),
    }
    guidance = experiment.config.guidance
    if guidance.classes or guidance.checkpoint or experiment.score_model.kinds.paired:
        kind = "classifier-free" if experiment.labelled else "classifier"
        kind = "autoguidance" if guidance.checkpoint else kind
        unset = ("checkpoint", 0), ("condition", "")
        stated = dict(each for each in guidance.to_dict().items() if each not in unset)
        fields = json.loads(json.dumps(stated))  # JSON has lists in place of tuples.
        entry["guidance"] = {"kind": kind} | fields
    return entry


def _sample_round(context: Context, index: int) -> Arrays:
    """Generate the images of a round; the first round also writes their trajectories."""
    experiment, config = context.experiment, context.experiment.config.eval
    start = index * config.batch_size
    count = min(config.batch_size, config.num_samples - start)
    sampling = experiment.config.sampling
    # One round has one program; the corrector 'langevin' couples the images of a batch.
    coupled = (sampling.method.lower(), sampling.corrector.lower()) == ("pc", "langevin")
    size = config.batch_size if coupled or start or count < config.num_samples else count
    began = time.monotonic()
    drawn = experiment.draw_images(context.model, start, size)
    seconds = np.array([time.monotonic() - began])
    arrays = {"samples": drawn.x[:count], "nfe": drawn.nfe[:count], "seconds": seconds}
    classes = np.asarray(experiment.config.guidance.classes, np.int32)
    if len(classes):
        arrays["classes"] = classes[np.arange(start, start + count) % len(classes)]
    if index == 0 and len(drawn.frames):
        picture = datasets.trajectory_grid(drawn.frames, experiment.sampler.frame_levels)
        write_picture(context.folder / "trajectory.png", picture)
    return arrays


def held_out(experiment: Experiment, count: int) -> np.ndarray:
    """At most `count` test images, uint8 (N, H, W, C), of the same classes as the samples."""
    classes, scaler = experiment.config.guidance.classes, experiment.scaler
    rows = rows_of_classes(experiment.test, classes).reshape(-1, len(classes) or 1)
    cycles = min(len(rows), -(-count // rows.shape[1]))
    chosen = rows[np.linspace(0, len(rows) - 1, cycles).round().astype(int)].ravel()[:count]
    values = jnp.asarray(experiment.test.batch(chosen).pixels)
    return np.asarray(scaler.pixels(scaler.scale(values), dequantized=False))


def sample_paths(context: Context) -> list[Path]:
    """The files of the rounds of samples."""
    config = context.experiment.config.eval
    return round_paths(context.folder, "samples", -(-config.num_samples // config.batch_size))


STAGE = Stage(
    name="sampling",
    key="samples",
    kind="samples",
    check=lambda experiment: experiment.sampler.check_stable(),
    run=run,
    measures=lambda entry: [Measure("NFE of a sample", entry["nfe"], None, entry["images"])],
)
