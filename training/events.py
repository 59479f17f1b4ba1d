"""Events of a user for `ss.train`: as arrays, or as batches that an iterable returns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from api.arguments import Numbers, converted, show, user_code
from datasets import Batch, Images, check_labels
from errors import InputError
from readers.arrays import Selection

FIRST = 10  # batches that are read before training
AXES = {"classes": (1, 1), "vector": (1, 2), "image": (3, 4)}
"""The fewest and the most axes of each kind of condition."""


def batch_of(name: str, value: Any) -> Batch:
    """Return events, or a pair (events, condition), of any types of numbers.

    Raises InputError, which begins with `name`, for other values, and if there are no events.
    """
    pair = value if isinstance(value, (tuple, list)) else (value,)
    if len(pair) not in (1, 2):
        raise InputError(f"{name} = {show(value)} must be events, or a pair (events, condition).")
    events = np.asarray(converted(name, pair[0], Numbers(2, 16)))
    if not events.size:
        raise InputError(f"{name} has shape {events.shape}: it contains no events.")
    return Batch(events, **(_conditions(pair[1], events.shape) if len(pair) > 1 else {}))


def _conditions(condition: Any, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return a condition of a user as fields of `Batch`. Raises InputError for another form."""
    if condition is None:
        return {}
    if not isinstance(condition, Mapping):
        with user_code("condition cannot be converted to an array"):
            condition = {"image" if np.ndim(condition) > 2 else "vector": condition}
    found = {}
    for name, value in condition.items() or [("nothing", None)]:
        if name not in AXES:
            raise InputError(f"condition has {name!r}; it can have {', '.join(AXES)}.")
        array = np.asarray(converted(f"condition ({name})", value, Numbers(*AXES[name])))
        expected = shape[:3] if name == "image" else shape[:1]
        if array.shape[: len(expected)] != expected:
            raise InputError(
                f"condition ({name}) has the shape {array.shape}; it must begin with {expected}, "
                "as that of data."
            )
        if name == "classes" and (array.dtype.kind not in "iu" or array.min() < 0):
            raise InputError("condition (classes) must be integers from 0.")
        if name != "classes" and array.dtype != np.uint8:
            array = array.astype(np.float32)
        found[name] = array[..., None] if array.ndim in (1, 3) and name != "classes" else array
    return {"labels" if name == "classes" else name: each for name, each in found.items()}


def images_of(batch: Batch, chosen: np.ndarray | None = None) -> Images:
    """Return the events of a batch, or the `chosen` ones, with their conditions."""
    chosen = np.arange(len(batch.pixels)) if chosen is None else chosen
    known: Any = (None if each is None else each[chosen] for each in batch[1:])
    return Images(Selection(np.asarray(batch.pixels), chosen), *known)


def check_same(name: str, batch: Batch, first: Batch) -> None:
    """Raise InputError unless the events and conditions of a batch have the shapes of the first."""
    shapes = [
        {kind: leaf.shape[1:] for kind, leaf in zip(("events", *AXES), each) if leaf is not None}
        for each in (batch, first)
    ]
    is_byte = [each.pixels.dtype == np.uint8 for each in (batch, first)]
    if shapes[0] != shapes[1] or is_byte[0] != is_byte[1]:
        raise InputError(f"{name} has the shapes {shapes[0]}, but data begins with {shapes[1]}.")


# --- batches --------------------------------------------------------------------------------------


def is_stream(data: Any) -> bool:
    """Return whether data are an iterable of batches, or a function that returns one."""
    is_array = hasattr(data, "__array__") or isinstance(data, (list, tuple, str, bytes, Mapping))
    return callable(data) or (hasattr(data, "__iter__") and not is_array)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stream(Images):
    """The batches of an iterable. Its arrays are those of the first batch, whose size all have.

    `open` returns an iterable that begins with the first batch, of which `skipped` batches are held
    out; of each, this process has the `rows`. `num_classes` is 0 without classes.
    """

    open: Callable[[], Iterable[Batch]]
    skipped: int = 0
    num_classes: int = 0
    rows: Any = None

    def batches(self, *arguments: Any) -> Any:
        """Return the stream with the rows that are the last argument; see `Images.batches`."""
        return dataclasses.replace(self, rows=arguments[-1])

    def iterate(self, start: int) -> Iterator[Batch]:
        """Yield the batches from number `start` on, of one iteration after the other."""
        known: Any = (self.pixels, self.labels, self.vector, self.image)
        first, number, before = Batch(*known), 0, -1
        while number > before:
            before = number
            for batch in itertools.islice(self.open(), self.skipped, None):
                check_same(f"batch {number + 1} of data", batch, first)
                images = images_of(batch)
                if self.num_classes:
                    check_labels(images, self.num_classes, "num_classes")
                if len(images) != len(self):  # The last batch of a data set may be shorter.
                    continue
                number += 1
                if number > start:
                    labelled = any(each is not None for each in batch[1:])
                    one = images.batch(self.rows, labelled=labelled)
                    yield jax.tree.map(lambda leaf: leaf[None], one)
        raise InputError(
            f"data ends after {number} batches of {len(self)} events for training. Lower steps, or "
            "pass a function that returns a new iterator at each call."
        )


def _read(make: Callable[[], Iterable[Any]]) -> Iterator[Batch]:
    """Yield the batches of one iteration. Raises InputError for what code of a user raises."""
    with user_code("data cannot be iterated over"):
        iterator, end = iter(make()), object()
    for number in itertools.count(1):
        with user_code(f"data fails at batch {number}"):
            item = next(iterator, end)
        if item is end:
            return
        yield batch_of(f"batch {number} of data", item)


def open_stream(data: Any, skipped: int) -> tuple[Stream, Batch]:
    """Return the stream of data, and the first batches as one; `skipped` of them are held out."""
    make: Any = data if callable(data) else functools.partial(iter, data)
    reader = functools.partial(_read, make)
    iterator = reader()
    found = list(itertools.islice(iterator, FIRST + 1))
    if len(found) <= skipped:
        raise InputError(
            f"data has {len(found)} batches; there must be more than {skipped}, which are held "
            "out. Pass held_out=events, or smaller batches."
        )
    for number, batch in enumerate(found, 1):
        check_same(f"batch {number} of data", batch, found[0])
    if isinstance(data, Iterator):  # It cannot be read again.
        reader = functools.partial(iter, itertools.chain(found, iterator))
    first = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found[:FIRST])
    return Stream(**found[0]._asdict(), open=reader, skipped=skipped), first
