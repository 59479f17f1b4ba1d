"""Resampling of NHWC images by a factor of 2, by pixels or with FIR filters (StyleGAN2's upfirdn).

A FIR filter is a short 1-D kernel, normalized to sum 1 and applied along height and width. Each 1-D
pass is a sum of shifted slices, one set for every output phase: it multiplies with no inserted
zeros, and XLA can fuse it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from models.convolution import LAYOUT, convolve

FACTOR = 2


def upsample_nearest(x: Array) -> Array:
    """Repeat every pixel: (B, H, W, C) -> (B, 2H, 2W, C)."""
    return jnp.repeat(jnp.repeat(x, FACTOR, axis=1), FACTOR, axis=2)


def upsample_nearest_conv(x: Array, weight: Array) -> Array:
    """Return convolve(upsample_nearest(x), weight).

    x is (B, H, W, in) and `weight` (3, 3, in, out); returns (B, 2H, 2W, out) in the dtype of x.

    On CPUs, where products take most of the time, the result is computed by phases. On accelerators
    memory takes most, and phases would move more: 5 % in a train step of DDPM++, by TPU's compiler.
    """
    return lax.platform_dependent(x, weight, cpu=_conv_phases, default=_conv_repeated)


def _conv_repeated(x: Array, weight: Array) -> Array:
    return convolve(upsample_nearest(x), weight)


def _conv_phases(x: Array, weight: Array) -> Array:
    """Compute the four phases of the result, the parities of its rows and columns, one by one.

    The 3x3 window of a pixel of the result covers 2x2 pixels of x. So each phase is a convolution
    of x with a 2x2 kernel, whose entries are sums of weights: 4/9 of the products.
    """
    rows = []
    for row in range(FACTOR):
        phases = []
        for column in range(FACTOR):
            merged = _merge_taps(_merge_taps(weight, 0, row), 1, column)
            pad = (1 - row, row), (1 - column, column)
            phases.append(convolve(x, merged, pad))
        rows.append(jnp.stack(phases, 3))
    batch, height, width, _ = x.shape
    return jnp.stack(rows, 2).reshape(batch, FACTOR * height, FACTOR * width, -1)


def _merge_taps(weight: Array, axis: int, phase: int) -> Array:
    """Add those of the three taps along `axis` that fall on the same pixel before upsampling."""
    first, middle, last = jnp.split(weight, 3, axis)
    merged = (first + middle, last) if phase else (first, middle + last)
    return jnp.concatenate(merged, axis)


def downsample_mean(x: Array) -> Array:
    """Average 2x2 pixels: (B, H, W, C) -> (B, H/2, W/2, C)."""
    batch, height, width, channels = x.shape
    shape = (batch, height // FACTOR, FACTOR, width // FACTOR, FACTOR, channels)
    return x.reshape(shape).mean((2, 4))


def upsample_fir(x: Array, kernel: Sequence[float]) -> Array:
    """Insert zeros between pixels and filter with gain 4: (B, H, W, C) -> (B, 2H, 2W, C)."""
    surplus = len(kernel) - FACTOR
    pad = ((surplus + 1) // 2 + FACTOR - 1, surplus // 2)
    return _filter_separably(x, kernel, up=FACTOR, pad=pad)


def downsample_fir(x: Array, kernel: Sequence[float]) -> Array:
    """Filter and keep every second pixel: (B, H, W, C) -> (B, H/2, W/2, C)."""
    surplus = len(kernel) - FACTOR
    pad = ((surplus + 1) // 2, surplus // 2)
    return _filter_separably(x, kernel, down=FACTOR, pad=pad)


def downsample_conv(x: Array, weight: Array, kernel: Sequence[float]) -> Array:
    """Filter x (B, H, W, in), then convolve with stride 2 and `weight` (h, w, in, out).

    Returns (B, H/2, W/2, out).
    """
    surplus = len(kernel) - FACTOR + weight.shape[0] - 1
    pad = ((surplus + 1) // 2, surplus // 2)
    x = _filter_separably(x, kernel, pad=pad)
    return lax.conv_general_dilated(x, weight, (FACTOR, FACTOR), "VALID", dimension_numbers=LAYOUT)


def upsample_conv(x: Array, weight: Array, kernel: Sequence[float]) -> Array:
    """Apply a transposed convolution of stride 2, then a filter with gain 4.

    x is (B, H, W, in) and `weight` (h, w, in, out); returns (B, 2H, 2W, out).
    """
    size = weight.shape[0]
    x = lax.conv_general_dilated(
        x,
        weight,
        (1, 1),
        [(size - 1, size - 1)] * 2,
        lhs_dilation=(FACTOR, FACTOR),
        dimension_numbers=LAYOUT,
    )
    surplus = len(kernel) - FACTOR - (size - 1)
    pad = ((surplus + 1) // 2 + FACTOR - 1, surplus // 2 + 1)
    return _filter_separably(x, kernel, pad=pad, gain=FACTOR)


def _filter_separably(
    x: Array,
    kernel: Sequence[float],
    *,
    pad: tuple[int, int],
    up: int = 1,
    down: int = 1,
    gain: int | None = None,
) -> Array:
    """Apply the 1-D filter along height and width; each pass has gain `gain`, by default `up`."""
    taps = np.asarray(kernel, np.float64)
    taps = taps / taps.sum() * (up if gain is None else gain)
    for axis in (1, 2):
        x = _filter(x, taps, axis, pad, up, down)
    return x


def _filter(
    x: Array, taps: np.ndarray, axis: int, pad: tuple[int, int], up: int, down: int
) -> Array:
    """Apply 1-D upfirdn along `axis`.

    It inserts `up - 1` zeros after each entry, pads, convolves with `taps` and keeps every
    `down`-th entry. A negative pad crops. Entry m of the result is

        sum_k flipped_taps[k] stuffed[m down + k - pad[0]],

    where stuffed[j] is x[j / up] if up divides j, else 0. The entries m = p (mod up) form a phase,
    which depends on few of the taps.
    """
    flipped = taps[::-1]
    out_length = (x.shape[axis] * up + sum(pad) - len(taps)) // down + 1
    phases = []
    for phase in range(up):
        first = phase * down - pad[0]
        count = -(-(out_length - phase) // up)
        used = [k for k in range(len(taps)) if (first + k) % up == 0]
        terms = (
            flipped[k].astype(x.dtype) * _slice(x, axis, (first + k) // up, count, down)
            for k in used
        )
        phases.append(sum(terms))
    if up == 1:
        return phases[0]
    shape = (*x.shape[:axis], out_length, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _slice(x: Array, axis: int, start: int, count: int, stride: int) -> Array:
    """Return `count` entries x[start], x[start + stride], ... along `axis`; 0 beyond the ends."""
    stop = start + (count - 1) * stride + 1
    before = max(0, -start)
    after = max(0, stop - x.shape[axis])
    if before or after:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (before, after)
        x = jnp.pad(x, widths)
    return lax.slice_in_dim(x, start + before, stop + before, stride, axis)
