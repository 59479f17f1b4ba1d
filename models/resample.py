"""Up- and down-sampling of NHWC images by 2, by pixels or through FIR filters (StyleGAN2's upfirdn).

A FIR filter here is a short 1-D kernel, normalised to sum 1 and applied along height and width. Each 1-D pass is a sum
of shifted slices, one set for every output phase, so nothing is multiplied with stuffed zeros and XLA can fuse a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

FACTOR = 2
LAYOUT = ("NHWC", "HWIO", "NHWC")


def upsample_nearest(x: Array) -> Array:
    """Repeats every pixel: (B, H, W, C) -> (B, 2H, 2W, C)."""
    return jnp.repeat(jnp.repeat(x, FACTOR, axis=1), FACTOR, axis=2)


def downsample_mean(x: Array) -> Array:
    """Means of 2x2 pixels: (B, H, W, C) -> (B, H/2, W/2, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // FACTOR, FACTOR, width // FACTOR, FACTOR, channels).mean(
        (2, 4)
    )


def upsample_fir(x: Array, kernel: Sequence[float]) -> Array:
    """Inserts zeros between pixels, then filters with gain 4: (B, H, W, C) -> (B, 2H, 2W, C)."""
    surplus = len(kernel) - FACTOR
    return _separable(x, kernel, up=FACTOR, pad=((surplus + 1) // 2 + FACTOR - 1, surplus // 2))


def downsample_fir(x: Array, kernel: Sequence[float]) -> Array:
    """Filters, then keeps every second pixel: (B, H, W, C) -> (B, H/2, W/2, C)."""
    surplus = len(kernel) - FACTOR
    return _separable(x, kernel, down=FACTOR, pad=((surplus + 1) // 2, surplus // 2))


def downsample_conv(x: Array, weight: Array, kernel: Sequence[float]) -> Array:
    """FIR filter followed by a convolution of stride 2 with `weight` (H, W, in, out)."""
    surplus = len(kernel) - FACTOR + weight.shape[0] - 1
    x = _separable(x, kernel, pad=((surplus + 1) // 2, surplus // 2))
    return lax.conv_general_dilated(x, weight, (FACTOR, FACTOR), "VALID", dimension_numbers=LAYOUT)


def upsample_conv(x: Array, weight: Array, kernel: Sequence[float]) -> Array:
    """Transposed convolution of stride 2 with `weight` (H, W, in, out), followed by a FIR filter with gain 4."""
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
    return _separable(x, kernel, pad=pad, gain=FACTOR)


def _separable(
    x: Array,
    kernel: Sequence[float],
    *,
    pad: tuple[int, int],
    up: int = 1,
    down: int = 1,
    gain: int | None = None,
) -> Array:
    taps = np.asarray(kernel, np.float64)
    taps = taps / taps.sum() * (up if gain is None else gain)
    for axis in (1, 2):
        x = _filter(x, taps, axis, pad, up, down)
    return x


def _filter(
    x: Array, taps: np.ndarray, axis: int, pad: tuple[int, int], up: int, down: int
) -> Array:
    """1-D upfirdn along `axis`: stuff `up - 1` zeros after each entry, pad, convolve with `taps`, keep every `down`-th.

    A negative pad crops. Entry m of the result is sum_k flipped_taps[k] stuffed[m down + k - pad[0]], and stuffed[j] is
    x[j / up] where up divides j and 0 elsewhere; so the entries m = p (mod up) form a phase that needs few of the taps.
    """
    flipped, length = taps[::-1], x.shape[axis]
    out_length = (length * up + sum(pad) - len(taps)) // down + 1
    phases = []
    for phase in range(up):
        first = phase * down - pad[0]
        used = [(k, (first + k) // up) for k in range(len(taps)) if (first + k) % up == 0]
        count = -(-(out_length - phase) // up)
        phases.append(
            sum(
                flipped[k].astype(x.dtype) * _slice(x, axis, start, count, down)
                for k, start in used
            )
        )
    if up == 1:
        return phases[0]
    shape = (*x.shape[:axis], out_length, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _slice(x: Array, axis: int, start: int, count: int, stride: int) -> Array:
    """x[start], x[start + stride], ... (`count` entries) along `axis`, with zeros beyond both ends."""
    stop = start + (count - 1) * stride + 1
    before, after = max(0, -start), max(0, stop - x.shape[axis])
    if before or after:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (before, after)
        x = jnp.pad(x, widths)
    return lax.slice_in_dim(x, start + before, stop + before, stride, axis)
