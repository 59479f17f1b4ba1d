"""`--mode=inspect_data`: statistics and pictures of a data set, and a value for model.sigma_max."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import datasets
from configs.default import Config
from errors import InputError, expand_home, printable
from experiment import Experiment
from readers import folders, published
from readers.image_sizes import ImageSize, sides
from runs import write_picture

SHOWN = 100  # images on a contact sheet
MAX_SAMPLE = 2000  # images of which statistics and distances are computed
MAX_ENTRIES = 2**28  # entries of all these images together


def prepare(config: Config, workdir: str) -> None:
    """Download and prepare the data set of `config`, `--mode=prepare_data`; workdir is not used."""
    del workdir
    published.prepare(Experiment(config, jax.local_devices()[:1]).config.data)


def inspect(config: Config, workdir: str) -> dict[str, Any]:
    """Print statistics of both splits, write WORKDIR/data/SPLIT.png and suggest a sigma_max.

    Returns the statistics of the training images. Raises InputError if images cannot be read.
    """
    config = Experiment(config, jax.local_devices()[:1]).config  # Checks the size of the images.
    data = config.data
    if data.dataset.lower() == "folder" and data.path:
        _describe_files(expand_home(data.path, "data.path"), data.image_size)
    # All images are read before the first picture is written.
    splits = {split: datasets.load(data, split) for split in ("test", "train")}
    samples, result = {split: _draw_sample(images) for split, images in splits.items()}, {}
    scaler = datasets.make_scaler(data)
    for split, sample in samples.items():
        result = _describe(split, splits[split], sample)
        path = Path(workdir, "data", f"{split}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = sample[np.random.default_rng(1).permutation(len(sample))[:SHOWN]]
        pixels = scaler.pixels(scaler.scale(jnp.asarray(shown)), dequantized=False)
        write_picture(path, datasets.image_grid(np.asarray(pixels)))
        print(f"  picture: {path}")
    sample, images = samples["train"], result["images"]
    x = np.asarray(scaler.scale(jnp.asarray(sample)))
    distance = largest_distance(x.reshape(len(sample), -1))
    subset = f"all {images} training images"
    if len(sample) < images:
        subset = f"{len(sample)} of {images} training images (a lower bound for all)"
    print(
        f"suggested model.sigma_max, for the VE SDE: {distance:.3g} (the config has "
        f"{config.model.sigma_max:g})\n"
        f"  This is the largest Euclidean distance between two of {subset},\n"
        "  in the model's range (Song & Ermon 2020, Technique 1)."
    )
    return result | {"sigma_max": distance}


def _draw_sample(images: datasets.Images) -> np.ndarray:
    """Return a random sample (n, H, W, C) of the images of a split."""
    size = max(2, min(MAX_SAMPLE, MAX_ENTRIES // int(np.prod(images.pixels[0].shape))))
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:size])
    return np.asarray(images.batch(chosen).pixels)


def _describe(split: str, images: datasets.Images, sample: np.ndarray) -> dict[str, Any]:
    """Print and return statistics of a split, given a random sample."""
    count, shape = len(images), sample.shape[1:]
    result: dict[str, Any] = {
        "images": count,
        "shape": shape,
        "dtype": str(sample.dtype),
        "range": (sample.min().item(), sample.max().item()),
        "mean": sample.mean((0, 1, 2), np.float64).tolist(),
        "std": sample.std((0, 1, 2), np.float64).tolist(),
    }
    print(f"{split}: {count} images {shape}, {sample.dtype}")
    levels = f"  values {result['range'][0]:g} .. {result['range'][1]:g}"
    for name in ("mean", "std"):
        levels += f", {name} by channel {', '.join(f'{value:.4g}' for value in result[name])}"
    print(levels + (f" (of {len(sample)} at random)" if len(sample) < count else ""))
    if images.labels is not None:
        classes, counts = np.unique(images.labels, return_counts=True)
        result["classes"] = dict(zip(classes.tolist(), counts.tolist()))
        print(f"  {len(classes)} classes of {counts.min()} to {counts.max()} images")
    return result


def _describe_files(folder: Path, size: ImageSize) -> None:
    """Print the number, sizes and classes of image files, and list all that cannot be read."""
    files = folders.index(folder)
    if len(files.good) < len(files.names):
        print(folders.problems(files, folder, len(files.names)))
        folders.LISTED.add(folder)
    if not len(files.good):
        raise InputError(f"None of the {len(files.names)} image files under {folder} can be read.")
    found = files.sizes[files.good]
    smallest, largest = (" x ".join(map(str, side)) for side in (found.min(0), found.max(0)))
    shown = smallest if smallest == largest else f"{smallest} to {largest}"
    print(f"{len(found)} files of {shown} pixels")
    height, width = sides(size)
    small = int((found < (width, height)).any(1).sum())
    if small:
        print(f"{small} of them are smaller than data.image_size = {size}, and are enlarged")
    names, _ = folders.classes(files.names[files.good].tolist())
    if names:
        listed = ", ".join(f"{i} {printable(name)}" for i, name in enumerate(names))
        print(f"classes by folder: {listed}")


def largest_distance(x: np.ndarray) -> float:
    """Return the largest Euclidean distance between two rows of x (N, D)."""
    x = x - x.mean(0)
    squares = np.sum(x**2, 1)
    distances = squares[:, None] + squares - 2 * x @ x.T
    i, j = np.unravel_index(distances.argmax(), distances.shape)
    return float(np.linalg.norm(x[i] - x[j]))
