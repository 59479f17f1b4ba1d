"""Images/s from each kind of data source, compared with what a train step consumes.

python -m benchmarks.input_pipeline

Writes docs/input_pipeline.md. The data are written to a temporary folder first.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import train_state
from absl import app, flags
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from sklearn.datasets import load_sample_images

import datasets
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
    "images", 2048, "Images timed of each source; ten times as many if none is decoded."
)

BATCH = 64
REPEATS = 10  # timed train steps
PHOTO = Image.fromarray(load_sample_images().images[0])  # 640x427
INTRODUCTION = """# Input speed

Written by `python -m benchmarks.input_pipeline`
on {machine}.

Batches of {batch} images come from `datasets.Batches`, as in training. Each source holds {files}
different images: crops of one photograph, which compress as photographs do. CPU time is that of the
whole process. Unlike the rate, it hardly depends on background load. A device that consumes 1,000
images/s keeps as many cores busy as the CPU time has milliseconds. Decoding uses one thread per
core: Pillow releases Python's lock while it decodes and resizes.

Up to 2 GiB, images are decoded once and stay in memory. The rows 'decoded' describe the first epoch
of small data sets, and every epoch of large ones.
"""


class Source(NamedTuple):
    """A data source: its name, its fields of config.data, and whether images stay in memory."""

    name: str
    fields: dict[str, Any]
    in_memory: bool = False


# --- sources ---


def crops(count: int, height: int, width: int) -> list[Image.Image]:
    """Return crops of the photograph of this size, which is enlarged if necessary."""
    rng = np.random.default_rng(0)
    photo = PHOTO.resize((max(640, width + 64), max(427, height + 64)))
    limits = photo.width - width + 1, photo.height - height + 1
    corners = rng.integers(0, limits, (count, 2)).tolist()
    return [photo.crop((left, top, left + width, top + height)) for left, top in corners]


def write_tfds(root: Path, name: str, count: int, height: int, width: int, kind: str) -> Path:
    """Write a data set in TFDS's layout, one ArrayRecord file of encoded images; return `root`."""
    folder = root / name / "1.0.0"
    folder.mkdir(parents=True)
    path = folder / f"{name}-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for image in crops(count, height, width):
        writer.write(examples.example(image=examples.encoded(image, kind)))
    writer.close()
    splits = [{"name": "train", "shardLengths": [str(count)]}]
    info = {"name": name, "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return root


def write_folder(root: Path, count: int, suffix: str, height: int, width: int) -> Path:
    """Write a folder of image files; return it."""
    root.mkdir()
    for i, image in enumerate(crops(count, height, width)):
        image.save(root / f"{i}.{suffix}", quality=90)
    return root


def write_tfrecords(root: Path, count: int, size: int) -> Path:
    """Write a TFRecord file of raw images, in FFHQ's format; return its path."""
    planes = [np.asarray(image).transpose(2, 0, 1).tobytes() for image in crops(count, size, size)]
    records = [examples.example(shape=[3, size, size], data=each) for each in planes]
    return examples.write_tfrecords(root / f"x-r{size.bit_length() - 1:02d}.tfrecords", records)


def write_array(root: Path, count: int, size: int) -> Path:
    """Write an .npy file of uint8 images; return its path."""
    path = root / f"{size}.npy"
    np.save(path, np.stack([np.asarray(image) for image in crops(count, size, size)]))
    return path


def sources(root: Path, count: int) -> Iterator[Source]:
    """Write each data source with `count` images under `root` and yield it."""
    cifar = write_tfds(root / "tfds", "cifar10", count, 32, 32, "PNG")
    fields = {"dataset": "CIFAR10", "image_size": 32, "path": str(cifar)}
    yield Source("CIFAR-10 (TFDS, PNG), in memory", fields, in_memory=True)
    yield Source("CIFAR-10 (TFDS, PNG), decoded", fields)
    celeba = write_tfds(root / "tfds", "celeb_a", count, 218, 178, "JPEG")
    fields = {"dataset": "CELEBA", "image_size": 64, "path": str(celeba)}
    yield Source("CelebA at 64 (TFDS, JPEG), decoded", fields)
    for suffix in ("jpg", "png", "webp"):
        folder = write_folder(root / suffix, count, suffix, 400, 600)
        fields = {"dataset": "folder", "image_size": 256, "path": str(folder)}
        yield Source(f"folder, 600x400 .{suffix} to 256", fields)
    for size, files in ((256, count), (1024, max(BATCH, count // 8))):
        path = write_tfrecords(root, files, size)
        fields = {"dataset": "FFHQ", "image_size": size, "path": str(path)}
        yield Source(f"FFHQ at {size} (TFRecord)", fields)
    path = write_array(root, count, 64)
    fields = {"dataset": "array", "image_size": 64, "path": str(path)}
    yield Source("array of 64x64, .npy", fields, in_memory=True)


# --- timing ---


def rates(run: Callable[[], Any], runs: int, images: int) -> tuple[float, float]:
    """Call `run`, which processes `images`; return images/s and CPU milliseconds per image."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(runs):
        run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total = runs * images
    return total / wall, 1000 * cpu / total


def measure(data: ml_collections.ConfigDict, images: int) -> tuple[float, float]:
    """Return images/s and CPU milliseconds per image of a source, after the first batches."""
    batches = datasets.Batches(datasets.load(data, "train"), BATCH, seed=0).iterate(0)
    warm_up = 8 + len(datasets.load(data, "train")) // BATCH  # fills the memory and the queue
    for _ in range(warm_up):
        next(batches)
    return rates(lambda: next(batches), max(1, images // BATCH), BATCH)


def measure_train_step() -> tuple[float, float]:
    """Return images/s and CPU milliseconds per image of training photos_ddpmpp_continuous."""
    config = get_config()
    experiment = Experiment(config, jax.devices()[:1])
    optimizer = train_state.make_optimizer(config.optim)
    train = training.compile_steps(experiment, optimizer)
    batch = datasets.Batches(experiment.train, config.training.batch_size, 0)[0]
    state = training.init_state(experiment, optimizer)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(train(state, batch))

    step()
    return rates(step, REPEATS, config.training.batch_size)


def main(_: list[str]) -> None:
    """Measure every source and write the page."""
    lines = header("Source", "images/s", "MB/s", "CPU ms an image")
    with tempfile.TemporaryDirectory() as folder:
        cache.FOLDER = Path(folder) / "cache"
        for source in sources(Path(folder), FLAGS.files):
            data = get_config().data
            data.update(source.fields, held_out=1e-6)
            preprocessing.MEMORY = 2**31 if source.in_memory else 0
            images = 10 * FLAGS.images if source.in_memory else FLAGS.images
            if data.image_size == 1024:
                images //= 8
            rate, cpu = measure(data, images)
            megabytes = 3 * data.image_size**2 / 1e6
            lines.append(row(source.name, f"{rate:,.0f}", f"{rate * megabytes:,.0f}", f"{cpu:.3f}"))
            print(lines[-1], flush=True)
    rate, cpu = measure_train_step()
    name = "*consumed:* a train step of configs/vp/photos_ddpmpp_continuous.py, here"
    lines.append(row(name, f"{rate:,.0f}", "", f"{cpu:.1f}"))
    print(lines[-1])
    text = INTRODUCTION.format(machine=machine(), batch=BATCH, files=FLAGS.files)
    Path(FLAGS.output).write_text("\n".join([text, *lines, ""]))


if __name__ == "__main__":
    app.run(main)
