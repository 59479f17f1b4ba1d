"""`--mode=sample`: images of a trained model, as PNG files and a grid.

They are written to `WORKDIR/sample/checkpoint_K/NAME/`, where NAME states the sampler, the seed and
the classes, or is --eval_folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import datasets
import pretrained
import sharding
import train_state
from auxiliary import classification
from checkpoints import tree_checksum
from configs import remedies
from configs.default import Config, complete
from errors import InputError
from experiment import Experiment
from models.building import Params
from runs import (
    Arrays,
    dependencies,
    load_rounds,
    owned,
    results_folder,
    run_rounds,
    write_picture,
)

BATCH = 64  # images that are drawn at a time, at most
MOST = 10**5  # images, each of which is a file
FILE = "{:05d}.png"
GRID = 100  # images in grid.png, at most


def sample(
    config: Config,
    workdir: str,
    count: int,
    *,
    number: int | None = None,
    folder: str | None = None,
    source: str | None = None,
) -> Path:
    """Draw images 0 .. count - 1 of checkpoint `number`, by default the newest; return the folder.

    With a `source`, as for --mode=import, they are images of that file, and the workdir may be new.

    Image i is a function of config.seed and i, as in evaluation. It writes `00000.png` and so on,
    `grid.png` with the first ones, and the rounds `samples_R.npz`, from which a run that was
    stopped continues. Images with other than 1 or 3 channels, or of real numbers, are in the rounds
    only.

    Raises InputError for an invalid config or count, a workdir of another network, and a folder of
    another sampler; NotFiniteError if a sample is not finite.
    """
    if not 1 <= count <= MOST:
        raise InputError(f"--count={count} must be an integer from 1 to {MOST}.")
    experiment = Experiment(_with_batches(config, count))
    config = experiment.config
    experiment.sampler.check_stable()
    classification.provide(experiment, workdir)
    network = (
        _from_file(experiment, source) if source else _from_workdir(experiment, workdir, number)
    )
    params, depends = network.params, dependencies("samples", config) | network.identity
    if experiment.classifier is not None:
        depends["classifier"] = tree_checksum(experiment.classifier)
    parent = Path(workdir) / "sample" / network.folder
    output = results_folder(parent, folder or _name(config), taken=())
    size = config.eval.batch_size

    def compute(index: int) -> Arrays:
        samples = experiment.sample_images(params, index * size, size)
        if index == 0 and len(samples.frames):
            levels = experiment.sampler.frame_levels
            grid = datasets.trajectory_grid(samples.frames, levels)
            write_picture(output / "trajectory.png", grid)
        return {"samples": np.asarray(samples.x), "nfe": np.asarray(samples.nfe)}

    print(
        f"{network.title}: {count} images by {remedies.describe(config)}, seed {config.seed}",
        flush=True,
    )
    note = train_state.initial_share_note(config.model, network.identity["step"])
    if note and not config.ema.std:  # Reconstructed averages have no share of initial weights.
        print(note, flush=True)
    with owned(output, config, "sampling"):
        paths = run_rounds(output, "samples", -(-count // size), compute, depends)
        arrays = load_rounds(paths, "samples", "nfe")
        _write_images(output, arrays["samples"][:count])
    print(f"{arrays['nfe'][:count].mean():.0f} evaluations of the network for an image (NFE)")
    print(f"pictures: {output}/grid.png, and {FILE.format(0)} to {FILE.format(count - 1)}")
    return output


class Network(NamedTuple):
    """A trained network.

    Attributes:
      params: the EMA parameters.
      identity: the training step, and the checksum of the parameters.
      title, folder: its name in messages, and for a folder.
    """

    params: Params
    identity: dict[str, int]
    title: str
    folder: str


def _from_workdir(experiment: Experiment, workdir: str, number: int | None) -> Network:
    found, params = experiment.trained(workdir, number)
    identity = experiment.identity(workdir, found)
    return Network(params, identity, str(found), f"checkpoint_{found.number}")


def _from_file(experiment: Experiment, source: str) -> Network:
    folder = _folder_of(source)
    trained = pretrained.read(source, experiment.network, experiment.config)
    params = jax.device_put(trained.ema, sharding.replicated(experiment.mesh))
    identity = {"step": trained.step, "ema": tree_checksum(params)}
    return Network(params, identity, f"{source} (step {trained.step})", folder)


def _folder_of(source: str) -> str:
    """Return the name of the folder for samples of a file: its stem.

    Raises InputError if that is no name of a folder.
    """
    name = Path(os.path.abspath(source)).stem
    if name in ("", ".", ".."):
        raise InputError(
            f"--source={source} has no name that its folder of samples could have. Rename or copy "
            "it, for example to network.safetensors."
        )
    return name


def _with_batches(config: Config, count: int) -> Config:
    """Return the complete config with batches that are no larger than the images need."""
    devices = sharding.make_mesh().size
    config = complete(config)
    largest = max(devices, BATCH // devices * devices)
    config.eval.batch_size = min(largest, -(-count // devices) * devices)
    return config


def _name(config: Config) -> str:
    """Return a name for the folder of these samples."""
    options, method = config.sampling, config.sampling.method.lower()
    sampler = f"{options.solver.lower()}-{options.num_steps}" if method == "solver" else method
    classes = "".join(f"-{each}" for each in config.guidance.classes)
    return f"{sampler}-seed-{config.seed}" + (f"-classes{classes}" if classes else "")


def _write_images(folder: Path, images: np.ndarray) -> None:
    """Write a grid and each image, and remove images of an earlier run that drew more."""
    for path in folder.glob("*.png"):
        if path.stem.isdecimal() and int(path.stem) >= len(images):
            path.unlink()
    write_picture(folder / "grid.png", datasets.image_grid(images[:GRID]))
    if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        return
    for index, image in enumerate(images):
        write_picture(folder / FILE.format(index), datasets.to_picture(image))
