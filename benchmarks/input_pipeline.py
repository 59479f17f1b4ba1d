"""Images that each kind of source delivers, beside those that a train step eats; writes docs/input_pipeline.md.

python -m benchmarks.input_pipeline    (makes its own files, in a temporary folder)
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
import numpy as np
from absl import app, flags
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_sample_images

import datasets
import train_state
import training
from benchmarks.markdown import header, machine, row
from configs.vp.photos_ddpmpp_continuous import get_config
from experiment import Experiment
from readers import cache, preprocessing
from tests import examples

FLAGS = flags.FLAGS
flags.DEFINE_string("output", "docs/input_pipeline.md", "The file to write.")
flags.DEFINE_integer("files", 256, "Different images of each source.")
flags.DEFINE_integer(
    "images", 2048, "Images timed of each source; ten times as many where nothing is decoded."
)

BATCH = 64
PHOTO = Image.fromarray(load_sample_images().images[0])  # 640x427
INTRODUCTION = """# How fast images come

Written by `python -m benchmarks.input_pipeline`
on {machine}.

Batches of {batch} images through `datasets.Batches`, as training takes them, of {files} different images; crops of one
photograph, which compress as photographs do. CPU time is that of the whole process, so it hardly depends on what else
the machine does, as the rate does. A device that eats 1,000 images/s keeps as many cores busy as the CPU time has
milliseconds. Decoding takes a thread for each core: Pillow lets go of Python's lock while it decodes and resizes.

Up to 2 GiB, images are decoded once and stay in memory: the rows 'decoded' are the first epoch of small sets, and every
epoch of large ones.
"""


def crops(count: int, height: int, width: int) -> list[Image.Image]:
    """Parts of the photograph of this size, enlarged if need be."""
    rng = np.random.default_rng(0)
    photo = PHOTO.resize((max(640, width + 64), max(427, height + 64)))
    corners = rng.integers(
        0, (photo.width - width + 1, photo.height - height + 1), (count, 2)
    ).tolist()
    return [photo.crop((left, top, left + width, top + height)) for left, top in corners]


def of_tfds(root: Path, name: str, count: int, height: int, width: int, kind: str) -> Path:
    """A set in TFDS's layout, in one ArrayRecord file of encoded images."""
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    writer = ArrayRecordWriter(
        str(folder / f"{name}-train.array_record-00000-of-00001"), "group_size:1"
    )
    for image in crops(count, height, width):
        writer.write(examples.example(image=examples.encoded(image, kind)))
    writer.close()
    info = {
        "name": name,
        "fileFormat": "array_record",
        "splits": [{"name": "train", "shardLengths": [str(count)]}],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


def of_folder(root: Path, count: int, suffix: str, height: int, width: int) -> Path:
    """A folder of image files."""
    root.mkdir()
    for i, image in enumerate(crops(count, height, width)):
        image.save(root / f"{i}.{suffix}", quality=90)
    return root


def of_tfrecords(root: Path, count: int, size: int) -> Path:
    """A TFRecord file of raw images, as those of FFHQ."""
    planes = [np.asarray(image).transpose(2, 0, 1).tobytes() for image in crops(count, size, size)]
    records = [examples.example(shape=[3, size, size], data=each) for each in planes]
    return examples.write_tfrecords(root / f"x-r{size.bit_length() - 1:02d}.tfrecords", records)


def of_array(root: Path, count: int, size: int) -> Path:
    """An .npy file of images in bytes."""
    np.save(
        root / f"{size}.npy", np.stack([np.asarray(image) for image in crops(count, size, size)])
    )
    return root / f"{size}.npy"


def sources(root: Path, count: int) -> Iterator[tuple[str, dict, bool]]:
    """Name, fields of config.data, and whether images stay in memory."""
    cifar = of_tfds(root / "tfds", "cifar10", count, 32, 32, "PNG")
    yield (
        "CIFAR-10 (TFDS, PNG), in memory",
        {"dataset": "CIFAR10", "image_size": 32, "path": str(cifar)},
        True,
    )
    yield (
        "CIFAR-10 (TFDS, PNG), decoded",
        {"dataset": "CIFAR10", "image_size": 32, "path": str(cifar)},
        False,
    )
    celeba = of_tfds(root / "tfds", "celeb_a", count, 218, 178, "JPEG")
    yield (
        "CelebA at 64 (TFDS, JPEG), decoded",
        {"dataset": "CELEBA", "image_size": 64, "path": str(celeba)},
        False,
    )
    for suffix in ("jpg", "png", "webp"):
        folder = str(of_folder(root / suffix, count, suffix, 400, 600))
        yield (
            f"folder, 600x400 .{suffix} to 256",
            {"dataset": "folder", "image_size": 256, "path": folder},
            False,
        )
    for size in (256, 1024):
        few = count if size == 256 else max(BATCH, count // 8)
        path = str(of_tfrecords(root, few, size))
        yield (
            f"FFHQ at {size} (TFRecord)",
            {"dataset": "FFHQ", "image_size": size, "path": path},
            False,
        )
    path = str(of_array(root, count, 64))
    yield "array of 64x64, .npy", {"dataset": "array", "image_size": 64, "path": path}, True


def measure(data: ml_collections.ConfigDict, images: int) -> tuple[float, float]:
    """Images/s, and CPU milliseconds for each, once the first batches are there."""
    batches = datasets.Batches(datasets.load(data, "train"), BATCH, seed=0).iterate(0)
    count = max(1, images // BATCH)
    for _ in range(
        8 + len(datasets.load(data, "train")) // BATCH
    ):  # Fills the memory and the queue.
        next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return count * BATCH / wall, 1000 * cpu / (count * BATCH)


def of_a_train_step() -> tuple[float, float]:
    """The same of what configs/vp/photos_ddpmpp_continuous.py trains."""
    config, repeats = get_config(), 10
    experiment = Experiment(config, jax.devices()[:1])
    optimizer = train_state.make_optimizer(config.optim)
    steps, state = (
        training.compile_steps(experiment, optimizer),
        training.init_state(experiment, optimizer),
    )
    batch = datasets.Batches(experiment.train, config.training.batch_size, 0)[0]
    state, metrics = jax.block_until_ready(steps(state, batch))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        state, metrics = jax.block_until_ready(steps(state, batch))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    images = repeats * config.training.batch_size
    return images / wall, 1000 * cpu / images


def main(_: list[str]) -> None:
    """Measures every source and writes the page."""
    lines = header("Source", "images/s", "MB/s", "CPU ms an image")
    with tempfile.TemporaryDirectory() as folder:
        cache.FOLDER = Path(folder) / "cache"
        for name, fields, kept in sources(Path(folder), FLAGS.files):
            data = get_config().data
            data.update(fields, held_out=1e-6)
            preprocessing.MEMORY = 2**31 if kept else 0
            rate, cpu = measure(
                data, FLAGS.images * (10 if kept else 1) // (8 if data.image_size == 1024 else 1)
            )
            size = 3 * data.image_size**2 / 1e6
            lines.append(row(name, f"{rate:,.0f}", f"{rate * size:,.0f}", f"{cpu:.3f}"))
            print(lines[-1], flush=True)
    rate, cpu = of_a_train_step()
    lines.append(
        row(
            "*eaten:* a train step of configs/vp/photos_ddpmpp_continuous.py, here",
            f"{rate:,.0f}",
            "",
            f"{cpu:.1f}",
        )
    )
    print(lines[-1])
    text = INTRODUCTION.format(machine=machine(), batch=BATCH, files=FLAGS.files)
    Path(FLAGS.output).write_text("\n".join([text, *lines, ""]))


if __name__ == "__main__":
    app.run(main)
