"""What a score network is conditioned on: a class, a vector or an image, or several of them.

A network receives the kinds that it was built for (`Kinds`) as keyword arguments. "No condition" is
one of their values, which training shows for a share `model.class_dropout` of the events: the class
`num_classes`, and vectors and images of zeros. A last entry of the vector, and a last channel of
the image, is 1 for a condition and 0 for none, because zeros can be a condition as well.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Condition(NamedTuple):
    """What events are conditioned on; None for the kinds that are missing.

    Attributes:
      classes: (B,), ints in 0 .. num_classes, where num_classes stands for "no class".
      vector: (B, d), real numbers.
      image: (B, H, W, C') with the H and W of the event. uint8 is scaled to [-1, 1]; other types
        are not scaled.
      given: (B,), whether an event has a condition; None if all have.
    """

    classes: Any = None
    vector: Any = None
    image: Any = None
    given: Any = None


@dataclasses.dataclass(frozen=True)
class Kinds:
    """The kinds of condition that a network was built for; 0 for each one that it was not.

    Attributes:
      num_classes: the number of classes (`data.num_classes`).
      vector_size: the entries d of the vector (`data.vector_size`).
      image_channels: the channels C' of the image (`data.image_channels`).
      dropped: whether training hid conditions, so that the network estimates p(x) as well.
      vector_mean, vector_std: of each entry of the vector, which is standardized by them; () for no
        standardization.
    """

    num_classes: int = 0
    vector_size: int = 0
    image_channels: int = 0
    dropped: bool = True
    vector_mean: tuple[float, ...] = ()
    vector_std: tuple[float, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of classes, entries and channels, by the fields of `Condition`."""
        sizes = (self.num_classes, self.vector_size, self.image_channels)
        return dict(zip(Condition._fields, sizes))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of `Condition` that the network takes."""
        return tuple(name for name, size in self.sizes.items() if size)

    @property
    def paired(self) -> bool:
        """Whether each event needs a condition of its own: a vector or an image."""
        return bool(self.vector_size or self.image_channels)

    def select(self, batch: Any) -> Condition | None:
        """Return what the events of a `datasets.Batch` are conditioned on; None for no kinds."""
        arrays = dict(zip(Condition._fields, (batch.labels, batch.vector, batch.image)))
        return Condition(**{name: arrays[name] for name in self.names}) if self else None

    def arguments(self, condition: Condition | None, x: Array) -> dict[str, Array]:
        """Return the keyword arguments of a network for events x (B, ...).

        They are those of `names`: classes (B,), vector (B, d + 1) and image (B, H, W, C' + 1).
        Kinds that are missing in `condition` are "no condition".
        """
        wanted, count = condition or Condition(), x.shape[0]
        given = jnp.ones(count, bool) if wanted.given is None else wanted.given
        found = {}
        if self.num_classes:
            none = self.num_classes
            classes = jnp.full(count, none) if wanted.classes is None else wanted.classes
            found["classes"] = jnp.where(given, classes, none)
        if self.vector_size:
            vector = wanted.vector
            if vector is not None and self.vector_std:
                vector = (vector - jnp.float32(self.vector_mean)) / jnp.float32(self.vector_std)
            found["vector"] = _flagged(vector, given, (count, self.vector_size))
        if self.image_channels:
            shape = (*x.shape[:-1], self.image_channels)
            found["image"] = _flagged(wanted.image, given, shape).astype(x.dtype)
        return found


UNCONDITIONAL = Kinds()


def _flagged(values: Array | None, given: Array, shape: tuple[int, ...]) -> Array:
    """Return values (B, ..., n) and a last entry 1, or zeros where none are given."""
    if values is None:
        return jnp.zeros((*shape[:-1], shape[-1] + 1))
    values = jnp.asarray(values)
    if values.dtype == jnp.uint8:
        values = values / 127.5 - 1
    flag = jnp.ones((*shape[:-1], 1))
    flagged = jnp.concatenate([values.astype(jnp.float32), flag], -1)
    return jnp.where(given.reshape(-1, *[1] * (len(shape) - 1)), flagged, 0.0)


def dropped(key: Array, condition: Condition | None, rate: float) -> Condition | None:
    """Replace the condition of a share `rate` of the events by "no condition", for training."""
    arrays = jax.tree.leaves(condition)
    if condition is None or not arrays:
        return condition
    return condition._replace(given=~jax.random.bernoulli(key, rate, (len(arrays[0]),)))
