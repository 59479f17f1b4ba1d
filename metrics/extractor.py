"""The type of feature extractors: named functions from images to features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


class Features(NamedTuple):
    """`pool` (B, D) and `logits` (B, K) or None."""

    pool: Float32[np.ndarray, "b d"]
    logits: Float32[np.ndarray, "b k"] | None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A named function from uint8 images (B, H, W, C), on the host, to features.

    Attributes:
      name: the value of config.eval.features, or the version of the Inception network.
      digest: SHA-256 of the weights or of the source text.
      preprocessing: a description of how images are preprocessed.
      published: whether these are the features of published statistics, whose files do not state
        their features.
    """

    name: str
    digest: str
    preprocessing: str
    extract: Callable[[np.ndarray], Features]
    published: bool = False

    @property
    def label(self) -> str:
        """Name and digest, for use in file names."""
        return f"{self.name.replace(':', '.')}-{self.digest[:8]}"
