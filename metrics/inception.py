"""The Inception network used for FID (Szegedy et al., arXiv:1512.00567; TensorFlow's 2015 weights).

It differs from the paper and from torchvision: average pooling excludes the padding, the last block
uses max pooling, and there are 1008 classes. Layers are named as in the file of the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from models.layers import Rngs

SIDE = 299  # height and width of the network's input
POOL_FEATURES = 2048
NUM_CLASSES = 1008
EXACT = jax.lax.Precision.HIGHEST  # By default, accelerators round products to fewer bits.


class Features(NamedTuple):
    """`pool` (B, D) for FID and KID, and `logits` (B, K) for the inception score, or None."""

    pool: Any
    logits: Any


Convs = Sequence[tuple[int, ...]]
"""Convolutions one after the other: features, height and width of the window, stride (or 1)."""


class ConvNorm(nnx.Module):
    """Convolution, by default SAME for stride 1 and else VALID; fixed batch normalization; ReLU."""

    def __init__(
        self, in_features: int, conv: tuple[int, ...], padding: str = "", *, rngs: Rngs
    ) -> None:
        features, height, width, stride = (*conv, 1)[:4]
        padding = padding or ("SAME" if stride == 1 else "VALID")
        kernel = {"kernel_size": (height, width), "strides": stride, "padding": padding}
        options = {"use_bias": False, "precision": EXACT, "rngs": rngs}
        self.conv = nnx.Conv(in_features, features, **kernel, **options)
        self.bn = nnx.BatchNorm(features, use_running_average=True, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.bn(self.conv(x)))


# Of 3x3 pixels; the last two have stride 1, keep the shape, and exclude the padding.
max_pool = functools.partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2))
same_max_pool = functools.partial(nnx.max_pool, window_shape=(3, 3), padding="SAME")
mean_pool = functools.partial(
    nnx.avg_pool, window_shape=(3, 3), padding="SAME", count_include_pad=False
)


class Block(nnx.Module):
    """Branches of convolutions, of which the last starts with `pool`; outputs are concatenated.

    The convolutions of a branch are called NAME_1, NAME_2, ..., or NAME if there is only one. With
    `split`, the last two have the same input, are called NAME_Na and NAME_Nb, and are both outputs.
    """

    def __init__(
        self,
        in_features: int,
        branches: Mapping[str, Convs],
        pool: Callable[[Array], Array],
        *,
        split: bool = False,
        rngs: Rngs,
    ) -> None:
        self.pool, names = pool, []
        for branch, convs in branches.items():
            layers = [f"{branch}_{i}" for i in range(1, len(convs) + 1)]
            if len(convs) == 1:
                layers = [branch]
            elif split:
                layers[-2:] = f"{layers[-2]}a", f"{layers[-2]}b"
            inputs = [in_features, *(features for features, *_ in convs)]
            for layer, features, conv in zip(layers, inputs, convs):
                setattr(self, layer, ConvNorm(features, conv, rngs=rngs))
            names.append(tuple(layers))
        self.branches = tuple(names)

    def __call__(self, x: Array) -> Array:
        outputs = []
        for branch in self.branches:
            y = before = self.pool(x) if branch == self.branches[-1] else x
            for name in branch:
                if name.endswith("b"):
                    outputs.append(y)
                    y = before
                before, y = y, getattr(self, name)(y)
            outputs.append(y)
        return jnp.concatenate(outputs, -1)


def mixed_a(pool_features: int) -> dict[str, Convs]:
    """Branches of 1x1, 5x5 and two 3x3 convolutions, at 35x35."""
    return {
        "branch1x1": [(64, 1, 1)],
        "branch5x5": [(48, 1, 1), (64, 5, 5)],
        "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3)],
        "branch_pool": [(pool_features, 1, 1)],
    }


def mixed_b(n: int) -> dict[str, Convs]:
    """Branches of 1x1, one 7x7 and two 7x7 convolutions, at 17x17; each 7x7 is a 1x7 and a 7x1."""
    return {
        "branch1x1": [(192, 1, 1)],
        "branch7x7": [(n, 1, 1), (n, 1, 7), (192, 7, 1)],
        "branch7x7dbl": [(n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)],
        "branch_pool": [(192, 1, 1)],
    }


REDUCTION_A = {  # 35x35 to 17x17
    "branch3x3": [(384, 3, 3, 2)],
    "branch3x3dbl": [(64, 1, 1), (96, 3, 3), (96, 3, 3, 2)],
    "branch_pool": [],
}
REDUCTION_B = {  # 17x17 to 8x8
    "branch3x3": [(192, 1, 1), (320, 3, 3, 2)],
    "branch7x7x3": [(192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)],
    "branch_pool": [],
}
MIXED_C = {  # at 8x8, with parallel convolutions at the end
    "branch1x1": [(320, 1, 1)],
    "branch3x3": [(384, 1, 1), (384, 1, 3), (384, 3, 1)],
    "branch3x3dbl": [(448, 1, 1), (384, 3, 3), (384, 1, 3), (384, 3, 1)],
    "branch_pool": [(192, 1, 1)],
}


class Inception(nnx.Module):
    """uint8 images (B, H, W, C) of any H and W, with C = 1 or 3 -> Features in float32."""

    def __init__(self, half_pixel: bool = True, *, rngs: Rngs) -> None:
        self.half_pixel = half_pixel
        self.Conv2d_1a_3x3 = ConvNorm(3, (32, 3, 3, 2), rngs=rngs)
        self.Conv2d_2a_3x3 = ConvNorm(32, (32, 3, 3), "VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = ConvNorm(32, (64, 3, 3), rngs=rngs)
        self.Conv2d_3b_1x1 = ConvNorm(64, (80, 1, 1), rngs=rngs)
        self.Conv2d_4a_3x3 = ConvNorm(80, (192, 3, 3), "VALID", rngs=rngs)
        self.Mixed_5b = Block(192, mixed_a(32), mean_pool, rngs=rngs)
        self.Mixed_5c = Block(256, mixed_a(64), mean_pool, rngs=rngs)
        self.Mixed_5d = Block(288, mixed_a(64), mean_pool, rngs=rngs)
        self.Mixed_6a = Block(288, REDUCTION_A, max_pool, rngs=rngs)
        self.Mixed_6b = Block(768, mixed_b(128), mean_pool, rngs=rngs)
        self.Mixed_6c = Block(768, mixed_b(160), mean_pool, rngs=rngs)
        self.Mixed_6d = Block(768, mixed_b(160), mean_pool, rngs=rngs)
        self.Mixed_6e = Block(768, mixed_b(192), mean_pool, rngs=rngs)
        self.Mixed_7a = Block(768, REDUCTION_B, max_pool, rngs=rngs)
        self.Mixed_7b = Block(1280, MIXED_C, mean_pool, split=True, rngs=rngs)
        # The paper averages here; the weights require max pooling.
        self.Mixed_7c = Block(2048, MIXED_C, same_max_pool, split=True, rngs=rngs)
        self.fc = nnx.Linear(POOL_FEATURES, NUM_CLASSES, precision=EXACT, rngs=rngs)

    def __call__(self, images: Array) -> Features:
        x = resize(images.astype(jnp.float32), self.half_pixel)
        x = jnp.broadcast_to(x, (*x.shape[:3], 3))
        # To [-1, 1] as pytorch-fid does, or as TensorFlow's graph of 2015 does.
        x = x * (2 / 255) - 1 if self.half_pixel else (x - 128) / 128
        x = max_pool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = max_pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pool = x.mean((1, 2))
        return Features(pool, self.fc(pool))


def resize(x: Array, half_pixel: bool) -> Array:
    """Interpolate x (B, H, W, C) bilinearly at SIDE x SIDE points, without a low-pass filter.

    With `half_pixel`, points are pixel centres, as in PyTorch's align_corners=False and thus in
    pytorch-fid. Otherwise they are upper left corners of pixels, as in TensorFlow's graph of 2015
    and thus in torch-fidelity.
    """
    rows = jnp.asarray(interpolation_weights(x.shape[1], half_pixel))
    columns = jnp.asarray(interpolation_weights(x.shape[2], half_pixel))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=EXACT)


def interpolation_weights(size: int, half_pixel: bool) -> np.ndarray:
    """Return the weights (SIDE, size) of `size` pixels at SIDE points; rows sum to 1."""
    shift = 0.5 if half_pixel else 0.0
    position = (np.arange(SIDE) + shift) * (size / SIDE) - shift
    position = np.clip(position, 0, size - 1)
    distance = np.abs(position[:, None] - np.arange(size))
    return np.maximum(0, 1 - distance).astype(np.float32)
