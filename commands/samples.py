"""`--mode=sample`: images of a trained model, as PNG files and a grid.

NAME of their folder `WORKDIR/sample/checkpoint_K/NAME/` states sampler, seed and classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

import datasets
import sharding
from commands.models import open_model
from configs.default import Config, complete
from configs.folders import dependencies, owned
from configs.parts import warn_unused
from errors import InputError
from experiment import Experiment
from runs import Arrays, load_rounds, results_folder, run_rounds, write_picture
from training import state

BATCH = 64  # images that are drawn at a time, at most
COUNT = 64
MOST = 10**5  # images, each of which is a file
FILE = "{:05d}.png"
GRID = 100  # images in grid.png, at most


def sample(
    config: Config,
    workdir: str,
    count: int = COUNT,
    *,
    number: int | None = None,
    folder: str | None = None,
    source: str | None = None,
    given: Collection[str] = (),
) -> Path:
    """Draw images 0 .. count - 1 of checkpoint `number`, or of `source`; return the folder.

    Image i is a function of config.seed and i, as in evaluation. A run that was stopped continues
    from its rounds, `samples_R.npz`; images of real numbers, or of other than 1 or 3 channels, are
    in them only. Fields of config.sampling in `given` that the sampler does not read are named.
    Raises InputError for invalid input and a folder of another sampler, NotFiniteError for samples.
    """
    if not 1 <= count <= MOST:
        raise InputError(f"--count={count} must be an integer from 1 to {MOST}.")
    config, devices = complete(config), sharding.make_mesh().size
    size = min(max(1, BATCH // devices), -(-count // devices)) * devices
    config.eval.batch_size = size  # No larger than the images need.
    experiment = Experiment(config)
    config = experiment.config
    warn_unused(config, given)
    experiment.sampler.check_stable()
    experiment.load_guidance(workdir)
    model, identity, title, name = open_model(experiment, workdir, number, source)
    if "sampling.schedule" in given:
        experiment.fitted = ()
    sampler = experiment.sampler  # With the noise levels that were fitted to the model.
    depends = dependencies("samples", config) | identity | experiment.sample_inputs()
    output = results_folder(Path(workdir, "sample", name), folder or _name(config), taken=())

    def compute(index: int) -> Arrays:
        samples = experiment.draw_images(model, index * size, size)
        if index == 0 and len(samples.frames):
            grid = datasets.trajectory_grid(samples.frames, sampler.frame_levels)
            write_picture(output / "trajectory.png", grid)
        return {"samples": np.asarray(samples.x), "nfe": np.asarray(samples.nfe)}

    print(f"{title}: {count} images by {sampler.title}, seed {config.seed}", flush=True)
    note = state.initial_share_note(config.model.ema_rate, config.model.ema_ramp, model.step)
    if note and not config.ema.std:  # Reconstructed averages have no share of initial weights.
        print(note, flush=True)
    with owned(output, config, "sampling"):
        paths = run_rounds(output, "samples", -(-count // size), compute, depends)
        nfe = _write_images(output, paths, (size, *experiment.image_shape), count)
    print(f"{nfe:.0f} evaluations of the network for an image (NFE)")
    print(f"pictures: {output}/grid.png, and {FILE.format(0)} to {FILE.format(count - 1)}")
    return output


def _name(config: Config) -> str:
    """Return a name for the folder of these samples."""
    options, sampler = config.sampling, config.sampling.method.lower()
    if sampler == "solver":
        sampler = f"{options.solver.lower()}-{options.num_steps or 20}"
    classes = "".join(f"-{each}" for each in config.guidance.classes)
    return f"{sampler}-seed-{config.seed}" + (f"-classes{classes}" if classes else "")


def _write_images(folder: Path, paths: Sequence[Path], shape: tuple[int, ...], count: int) -> float:
    """Write a grid and each of `count` images of rounds of a shape; return the mean NFE.

    One round is in memory at a time. Images of an earlier run that drew more are removed.
    """
    for path in folder.glob("*.png"):
        if path.stem.isdecimal() and int(path.stem) >= count:
            path.unlink()
    in_grid, nfe = [], []
    for first, path in zip(range(0, count, shape[0]), paths):
        found = load_rounds([path], samples=shape, nfe=shape[:1])
        images = found["samples"][: count - first]
        in_grid.append(images[: max(0, GRID - first)])
        nfe.append(found["nfe"][: count - first])
        if images.dtype == np.uint8 and images.shape[-1] in (1, 3):
            for index, image in enumerate(images, first):
                write_picture(folder / FILE.format(index), datasets.to_picture(image))
    write_picture(folder / "grid.png", datasets.image_grid(np.concatenate(in_grid)))
    return float(np.concatenate(nfe).mean())
