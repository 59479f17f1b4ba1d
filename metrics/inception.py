"""The Inception network used for FID (Szegedy et al., arXiv:1512.00567; TensorFlow's 2015 weights).

It differs from the paper and from torchvision: average pooling excludes the padding, the last block
uses max pooling, and there are 1008 classes. Layers are named as in the file of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

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

Window = tuple[int, int]


class Outputs(NamedTuple):
    """Features `pool` (B, 2048) for FID and KID, and `logits` (B, 1008) for the inception score."""

    pool: Array
    logits: Array


class ConvNorm(nnx.Module):
    """Convolution, batch normalization with fixed statistics, ReLU.

    By default, padding is SAME for stride 1 and VALID otherwise.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        window: Window,
        stride: int = 1,
        padding: str | None = None,
        *,
        rngs: Rngs,
    ) -> None:
        padding = padding or ("SAME" if stride == 1 else "VALID")
        self.conv = nnx.Conv(
            in_features,
            features,
            window,
            stride,
            padding=padding,
            use_bias=False,
            precision=EXACT,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(features, use_running_average=True, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jax.nn.relu(self.bn(self.conv(x)))


def max_pool(x: Array) -> Array:
    """Max-pool 3x3 pixels with stride 2: (B, H, W, C) -> (B, (H - 1) // 2, (W - 1) // 2, C)."""
    return nnx.max_pool(x, (3, 3), (2, 2))


def mean_pool(x: Array) -> Array:
    """Average 3x3 pixels with stride 1, excluding the padding; keeps the shape (B, H, W, C)."""
    return nnx.avg_pool(x, (3, 3), (1, 1), padding="SAME", count_include_pad=False)


def same_max_pool(x: Array) -> Array:
    """Max-pool 3x3 pixels with stride 1; keeps the shape (B, H, W, C)."""
    return nnx.max_pool(x, (3, 3), (1, 1), padding="SAME")


class MixedA(nnx.Module):
    """Branches of 1x1, 5x5 and two 3x3 convolutions, at 35x35."""

    def __init__(self, in_features: int, pool_features: int, *, rngs: Rngs) -> None:
        self.branch1x1 = ConvNorm(in_features, 64, (1, 1), rngs=rngs)
        self.branch5x5_1 = ConvNorm(in_features, 48, (1, 1), rngs=rngs)
        self.branch5x5_2 = ConvNorm(48, 64, (5, 5), rngs=rngs)
        self.branch3x3dbl_1 = ConvNorm(in_features, 64, (1, 1), rngs=rngs)
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3), rngs=rngs)
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3), rngs=rngs)
        self.branch_pool = ConvNorm(in_features, pool_features, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branches = (
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            double,
            self.branch_pool(mean_pool(x)),
        )
        return jnp.concatenate(branches, -1)


class ReductionA(nnx.Module):
    """Reduce 35x35 to 17x17."""

    def __init__(self, *, rngs: Rngs) -> None:
        self.branch3x3 = ConvNorm(288, 384, (3, 3), 2, rngs=rngs)
        self.branch3x3dbl_1 = ConvNorm(288, 64, (1, 1), rngs=rngs)
        self.branch3x3dbl_2 = ConvNorm(64, 96, (3, 3), rngs=rngs)
        self.branch3x3dbl_3 = ConvNorm(96, 96, (3, 3), 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate([self.branch3x3(x), double, max_pool(x)], -1)


class MixedB(nnx.Module):
    """Branches of 1x1, one 7x7 and two 7x7 convolutions, at 17x17; each 7x7 is a 1x7 and a 7x1."""

    def __init__(self, features: int, *, rngs: Rngs) -> None:
        flat, tall = (1, 7), (7, 1)
        self.branch1x1 = ConvNorm(768, 192, (1, 1), rngs=rngs)
        self.branch7x7_1 = ConvNorm(768, features, (1, 1), rngs=rngs)
        self.branch7x7_2 = ConvNorm(features, features, flat, rngs=rngs)
        self.branch7x7_3 = ConvNorm(features, 192, tall, rngs=rngs)
        self.branch7x7dbl_1 = ConvNorm(768, features, (1, 1), rngs=rngs)
        self.branch7x7dbl_2 = ConvNorm(features, features, tall, rngs=rngs)
        self.branch7x7dbl_3 = ConvNorm(features, features, flat, rngs=rngs)
        self.branch7x7dbl_4 = ConvNorm(features, features, tall, rngs=rngs)
        self.branch7x7dbl_5 = ConvNorm(features, 192, flat, rngs=rngs)
        self.branch_pool = ConvNorm(768, 192, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return jnp.concatenate([self.branch1x1(x), once, twice, self.branch_pool(mean_pool(x))], -1)


class ReductionB(nnx.Module):
    """Reduce 17x17 to 8x8."""

    def __init__(self, *, rngs: Rngs) -> None:
        self.branch3x3_1 = ConvNorm(768, 192, (1, 1), rngs=rngs)
        self.branch3x3_2 = ConvNorm(192, 320, (3, 3), 2, rngs=rngs)
        self.branch7x7x3_1 = ConvNorm(768, 192, (1, 1), rngs=rngs)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), rngs=rngs)
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), rngs=rngs)
        self.branch7x7x3_4 = ConvNorm(192, 192, (3, 3), 2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        wide = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return jnp.concatenate(
            [self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(wide), max_pool(x)], -1
        )


class MixedC(nnx.Module):
    """Branches that end in parallel 1x3 and 3x1 convolutions, at 8x8.

    `pool` is the pooling at the start of the last branch.
    """

    def __init__(self, in_features: int, pool: Callable[[Array], Array], *, rngs: Rngs) -> None:
        self.pool = pool
        self.branch1x1 = ConvNorm(in_features, 320, (1, 1), rngs=rngs)
        self.branch3x3_1 = ConvNorm(in_features, 384, (1, 1), rngs=rngs)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), rngs=rngs)
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), rngs=rngs)
        self.branch3x3dbl_1 = ConvNorm(in_features, 448, (1, 1), rngs=rngs)
        self.branch3x3dbl_2 = ConvNorm(448, 384, (3, 3), rngs=rngs)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), rngs=rngs)
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), rngs=rngs)
        self.branch_pool = ConvNorm(in_features, 192, (1, 1), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(once),
            self.branch3x3_2b(once),
            self.branch3x3dbl_3a(twice),
            self.branch3x3dbl_3b(twice),
            self.branch_pool(self.pool(x)),
        ]
        return jnp.concatenate(branches, -1)


class Inception(nnx.Module):
    """uint8 images (B, H, W, C) of any H and W, with C = 1 or 3 -> Outputs in float32.

    Args:
      half_pixel: how images are resized to the network's input; see `resize`.
    """

    def __init__(self, half_pixel: bool = True, *, rngs: Rngs) -> None:
        self.half_pixel = half_pixel
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), 2, rngs=rngs)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), padding="VALID", rngs=rngs)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3), rngs=rngs)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1), rngs=rngs)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), padding="VALID", rngs=rngs)
        self.Mixed_5b = MixedA(192, 32, rngs=rngs)
        self.Mixed_5c = MixedA(256, 64, rngs=rngs)
        self.Mixed_5d = MixedA(288, 64, rngs=rngs)
        self.Mixed_6a = ReductionA(rngs=rngs)
        self.Mixed_6b = MixedB(128, rngs=rngs)
        self.Mixed_6c = MixedB(160, rngs=rngs)
        self.Mixed_6d = MixedB(160, rngs=rngs)
        self.Mixed_6e = MixedB(192, rngs=rngs)
        self.Mixed_7a = ReductionB(rngs=rngs)
        self.Mixed_7b = MixedC(1280, mean_pool, rngs=rngs)
        # The paper averages here; the weights require max pooling.
        self.Mixed_7c = MixedC(2048, same_max_pool, rngs=rngs)
        self.fc = nnx.Linear(POOL_FEATURES, NUM_CLASSES, precision=EXACT, rngs=rngs)

    def __call__(self, images: Array) -> Outputs:
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
        return Outputs(pool, self.fc(pool))


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
