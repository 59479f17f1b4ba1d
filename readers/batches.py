"""Images of one split, and the order in which training and evaluation read them."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from readers.preprocessing import Pixels

MAX_HASHED = 100_000  # images; reading more of them takes too long at every start
HASHED_AT_ONCE = 1_000  # images


class Batch(NamedTuple):
    """uint8 images (B, H, W, C) and what they are conditioned on; None where that is not used.

    It is int32 labels (B,), vectors (B, d) and other images (B, H, W, C'), each of them optional.
    All may have a leading axis of training steps.
    """

    pixels: np.ndarray | Array
    labels: np.ndarray | Array | None = None
    vector: np.ndarray | Array | None = None
    image: np.ndarray | Array | None = None


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of one split (N, H, W, C) uint8, and what is known of them.

    Each is an array or another sequence that is indexed along N like one: classes 0, 1, ... (N,),
    and vectors float32 (N, d) and images (N, H, W, C') that `data.condition` names.
    """

    pixels: Pixels
    labels: np.ndarray | None = None
    vector: Pixels | None = None
    image: Pixels | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: np.ndarray, *, labelled: bool = False) -> Batch:
        """Return the images at `indices` (B,), and if `labelled`, all that is known of them."""
        indices = np.asarray(indices)
        if not labelled:
            return Batch(self.pixels[indices])
        known = {"labels": self.labels, "vector": self.vector, "image": self.image}
        known = {name: each[indices] for name, each in known.items() if each is not None}
        if not known:
            raise ValueError("labelled = True: the images have no labels.")
        if "labels" in known:
            known["labels"] = known["labels"].astype(np.int32)
        return Batch(self.pixels[indices], **known)

    def batches(self, *arguments: Any) -> Batches:
        """Return the `Batches` of these images with the other arguments of that class."""
        return Batches(self, *arguments)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the images, of which up to MAX_HASHED are read, and of all labels."""
        count = min(len(self), MAX_HASHED)
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        content = hashlib.sha256(str(len(self)).encode())
        for indices in np.array_split(chosen, -(-count // HASHED_AT_ONCE)):
            for images in (self.pixels, self.vector, self.image):
                if images is not None:
                    content.update(np.ascontiguousarray(images[indices]).tobytes())
        if self.labels is not None:
            content.update(np.asarray(self.labels, np.int64).tobytes())
        return content.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """An infinite stream of shuffled training batches.

    Item n depends only on the images, `seed` and n, not on the number of hosts or on restarts. It
    contains `steps` consecutive batches, of which it loads the given rows, or all: pixels
    (steps, rows, H, W, C) and, if `labelled`, the other fields of `Batch` that are known.
    """

    images: Images
    batch_size: int
    seed: int
    steps: int = 1
    labelled: bool = False
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return 2**62 // (self.batch_size * self.steps)  # grain requires a length.

    def __getitem__(self, index: int) -> Batch:
        import grain  # Its import takes a fifth of the start of main.py.

        order = grain.MapDataset.range(len(self.images)).seed(self.seed).shuffle().repeat()
        rows = range(self.batch_size) if self.rows is None else self.rows
        batches = []
        for step in range(index * self.steps, (index + 1) * self.steps):
            start = step * self.batch_size
            indices = np.array([order[start + row] for row in rows])
            batches.append(self.images.batch(indices, labelled=self.labelled))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def iterate(self, start: int) -> Iterator[Batch]:
        """Yield the items from number `start` on, read ahead by a background thread."""
        import grain  # As above.

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(grain.MapDataset.source(self)[start:].to_iter_dataset(options))


def rounds(images: Images, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """Divide the images, in order, into batches of equal size, the last one filled up.

    Returns pairs of indices (batch_size,) and the number of them that count.
    """
    batches = []
    for start in range(0, len(images), batch_size):
        indices = np.arange(start, start + batch_size) % len(images)
        batches.append((indices, min(batch_size, len(images) - start)))
    return batches
