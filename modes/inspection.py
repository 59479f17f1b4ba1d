"""`--mode=inspect_data`: what a data set holds, how it looks, and the sigma_max that it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import datasets
from configs.default import Config, complete
from errors import InputError
from readers import folders, published
from workdir import write_picture

SHOWN = 100  # images on a contact sheet
MOST = 2000, 2**28  # images and numbers among which distances are measured


def prepare(config: Config) -> None:
    published.prepare(complete(config).data)


def inspect(config: Config, workdir: str) -> dict[str, Any]:
    """Prints counts, shapes, values and classes of both splits; draws WORKDIR/data/SPLIT.png; suggests a sigma_max.

    Returns what it prints of the training images. Raises InputError if the images cannot be read.
    """
    data = complete(config).data
    scaler = datasets.make_scaler(data)
    if data.dataset.lower() == "folder" and data.path:
        _tell_files(Path(data.path).expanduser(), data.image_size)
    results = {
        split: _inspect_split(split, datasets.load(data, split), Path(workdir))
        for split in ("test", "train")
    }
    result, sample = results["train"]
    x = np.asarray(scaler.scale(jnp.asarray(sample))).reshape(len(sample), -1)
    distance = largest_distance(x)
    some = (
        "all"
        if len(sample) == result["images"]
        else f"{len(sample)} random ones (hence a lower bound) of"
    )
    print(
        f"suggested model.sigma_max, for the VE SDE: {distance:.3g} (the config has {config.model.sigma_max:g})\n"
        f"  The largest Euclidean distance between two of {some} {result['images']} training images, in the range\n"
        f"  of the model: with it, noise reaches from any image to any other (Song & Ermon 2020, Technique 1)."
    )
    return result | {"sigma_max": distance}


def _inspect_split(
    split: str, images: datasets.Images, workdir: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """Tells of one split; returns that, and a random sample of it."""
    count, shape = len(images), images.pixels[0].shape
    most = max(2, min(MOST[0], MOST[1] // int(np.prod(shape))))
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:most])
    sample = images.batch(chosen).pixels
    result = {"images": count, "shape": shape, "dtype": str(sample.dtype)}
    result |= {
        "range": (sample.min().item(), sample.max().item()),
        "mean": sample.mean((0, 1, 2), np.float64).tolist(),
    }
    result["std"] = sample.std((0, 1, 2), np.float64).tolist()
    print(f"{split}: {count} images {shape}, {sample.dtype}")
    levels = f"  values {result['range'][0]:g} .. {result['range'][1]:g}"
    for name in ("mean", "std"):
        levels += f", {name} by channel {', '.join(f'{value:.4g}' for value in result[name])}"
    print(levels + ("" if len(sample) == count else f" (of {len(sample)} at random)"))
    if images.labels is not None:
        classes, counts = np.unique(images.labels, return_counts=True)
        result["classes"] = dict(zip(classes.tolist(), counts.tolist()))
        print(f"  {len(classes)} classes of {counts.min()} to {counts.max()} images")
    path = workdir / "data" / f"{split}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = datasets.image_grid(sample[np.random.default_rng(1).permutation(len(sample))[:SHOWN]])
    write_picture(path, sheet)
    print(f"  picture: {path}")
    return result, sample


def _tell_files(folder: Path, size: int) -> None:
    """Prints what became of the files of a folder, all that cannot be read among them."""
    files = folders.index(folder)
    if len(files.good) < len(files.names):
        print(folders.problems(files, folder, len(files.names)))
    if not len(files.good):
        raise InputError(f"None of the {len(files.names)} image files under {folder} can be read.")
    sides, names = files.sizes[files.good], folders.classes(files.names[files.good].tolist())[0]
    print(
        f"{len(sides)} files of {' x '.join(map(str, sides.min(0)))} to {' x '.join(map(str, sides.max(0)))} pixels"
    )
    if small := int((sides.min(1) < size).sum()):
        print(f"{small} of them are smaller than data.image_size = {size}, and are enlarged")
    if names:
        print(
            f"classes by folder: {', '.join(f'{i} {folders.printable(name)}' for i, name in enumerate(names))}"
        )


def largest_distance(x: np.ndarray) -> float:
    """The largest Euclidean distance between two rows of x (N, D)."""
    x = jnp.asarray(x) - x.mean(0)
    squares = jnp.sum(x**2, 1)
    gram = jax.jit(lambda a, b: jnp.matmul(a, b.T, precision="highest"))
    largest, pair = -np.inf, (0, 0)
    for start in range(0, len(x), 500):
        rows = slice(start, start + 500)
        distances = np.asarray(squares[rows, None] + squares - 2 * gram(x[rows], x))
        i, j = np.unravel_index(distances.argmax(), distances.shape)
        if distances[i, j] > largest:
            largest, pair = distances[i, j], (start + i, j)
    return float(jnp.linalg.norm(x[pair[0]] - x[pair[1]]))
