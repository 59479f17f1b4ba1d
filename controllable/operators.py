"""Linear measurements of images, y = A x + noise, by the singular value decomposition A = U S V*.

V* and U are functions (masks, transforms, small matrices), so no array of the size of A is stored.
The adjoint, the pseudo-inverse and functions of A A* follow from the decomposition (Kawar et al.
2022, arXiv:2201.11793, Section 3 and Appendix D). Images have shape (B, H, W, C). Coefficients have
shape (B, ...), where (...) is the shape of `singular_values`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from errors import InputError

LinearMap = Callable[[Any], Array]  # of JAX or NumPy arrays
Shape = tuple[int, int, int]

# Singular values below this fraction of the largest one count as 0: in float32, a division by them
# would leave fewer than two correct digits.
NEGLIGIBLE = 1e-3

# Measurements must not depend on the bits that accelerators leave out of products by default.
_matmul = functools.partial(jnp.matmul, precision="highest")
_einsum = functools.partial(jnp.einsum, precision="highest")


def _identity(x: Array) -> Array:
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A real linear map A of images. To define one, state these five fields.

    Attributes:
      singular_values: (...), 0 for coefficients that A does not measure.
      to_basis, from_basis: V* and V, unitary: images (B, H, W, C) to coefficients and back.
      to_measured: U, coefficients to measurements y (B, ...). It must ignore coefficients whose
        singular value is 0.
      from_measured: U*, measurements to coefficients. The coefficients whose singular value is 0
        are arbitrary.
    """

    singular_values: np.ndarray
    to_basis: LinearMap = _identity
    from_basis: LinearMap = _identity
    to_measured: LinearMap = _identity
    from_measured: LinearMap = _identity

    @property
    def measured(self) -> np.ndarray:
        """Where the singular values are not 0; bool (...)."""
        return self.singular_values > 0

    def forward(self, x: Array | np.ndarray) -> Array:
        """Return A x for images x (B, H, W, C)."""
        return self.to_measured(self.to_basis(x) * self.singular_values)

    def adjoint(self, y: Array) -> Array:
        """Return A* y for measurements y (B, ...)."""
        return self.from_basis(self.from_measured(y) * self.singular_values)

    def pseudo_inverse(self, y: Array) -> Array:
        """Return the least-squares solution of A x = y with the smallest norm; (B, H, W, C)."""
        return self.from_basis(self.solution(y))

    def solution(self, y: Array) -> Array:
        """Return the coefficients of `pseudo_inverse`; (B, ...)."""
        values = self.singular_values
        inverse = np.divide(1, values, where=self.measured, out=np.zeros_like(values))
        return self.from_measured(y) * inverse

    def observe(self, x: Array | np.ndarray, z: Array, noise_std: float) -> Array:
        """Return A x + noise_std n for standard normal z (B, H, W, C).

        The noise n is z projected to the range of A, where it is white.
        """
        signal = self.to_basis(x) * self.singular_values
        noise = self.to_basis(z) * (noise_std * self.measured)
        return self.to_measured(signal + noise)


def mask(known: np.ndarray) -> Operator:
    """Keep the pixels where `known` is True and set the others to 0.

    `known` is a bool array (H, W, C), or (B, H, W, C) with one mask per image.
    """
    known = np.asarray(known, np.float32)

    def keep(a: Array) -> Array:
        return a * known

    return Operator(known, to_measured=keep, from_measured=keep)


def channel_mean(shape: Shape, weights: tuple[float, ...] | None = None) -> Operator:
    """Average the channels, or take a sum with the given weights: grey images (B, H, W, 1).

    Raises InputError unless there is one weight per channel and one of them is not 0.
    """
    channels = shape[-1]
    if weights is None:
        weights = (1 / channels,) * channels
    if len(weights) != channels or not any(weights):
        raise InputError(
            f"Channel weights {weights} do not fit images of {channels} channels: "
            f"give {channels} weights, not all of them 0."
        )
    norm = np.linalg.norm(weights)
    direction = np.asarray(weights, np.float64) / norm
    basis, _ = np.linalg.qr(np.column_stack([direction, np.eye(channels)]))
    basis[:, 0] = direction  # QR may change its sign.
    basis = basis.astype(np.float32)
    values = np.zeros(shape, np.float32)
    values[..., 0] = norm

    def to_basis(x: Array) -> Array:
        return _matmul(x, basis)

    def from_basis(c: Array) -> Array:
        return _matmul(c, basis.T)

    def to_measured(c: Array) -> Array:
        return c[..., :1]

    def from_measured(y: Array) -> Array:
        return jnp.pad(y, ((0, 0),) * 3 + ((0, channels - 1),))

    return Operator(values, to_basis, from_basis, to_measured, from_measured)


def block_mean(shape: Shape, factor: int) -> Operator:
    """Average blocks of factor x factor pixels: images (B, H / factor, W / factor, C).

    Raises InputError if the blocks do not tile the image.
    """
    height, width, channels = shape
    if factor < 1 or height % factor or width % factor:
        raise InputError(
            f"Blocks of {factor}x{factor} pixels do not tile images of {height}x{width}: "
            f"choose a factor that divides height and width."
        )
    basis = _cosine_matrix(factor)
    blocks = (height // factor, factor, width // factor, factor, channels)
    values = np.zeros(blocks, np.float32)
    values[:, 0, :, 0] = 1 / factor

    def transform_blocks(a: Array, matrix: np.ndarray) -> Array:
        return _einsum("bhiwjc,ki,lj->bhkwlc", a, matrix, matrix)

    def to_basis(x: Array) -> Array:
        return transform_blocks(x.reshape(-1, *blocks), basis)

    def from_basis(c: Array) -> Array:
        return transform_blocks(c, basis.T).reshape(-1, *shape)

    def to_measured(c: Array) -> Array:
        return c[:, :, 0, :, 0]

    def from_measured(y: Array) -> Array:
        return jnp.zeros((len(y), *blocks), y.dtype).at[:, :, 0, :, 0].set(y)

    return Operator(values, to_basis, from_basis, to_measured, from_measured)


def convolution(shape: Shape, kernel: np.ndarray) -> Operator:
    """Convolve each channel with a kernel (h, w), centred, with periodic boundaries.

    Raises InputError if the kernel is larger than the image.
    """
    height, width, _ = shape
    if kernel.ndim != 2 or kernel.shape[0] > height or kernel.shape[1] > width:
        raise InputError(
            f"A kernel of shape {kernel.shape} does not fit images of {height}x{width}: "
            f"it must have two axes and be no larger than the image."
        )
    padded = np.zeros((height, width))
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    centre = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    response = np.fft.fft2(np.roll(padded, (-centre[0], -centre[1]), (0, 1)))[..., None]
    values = np.abs(response)
    phase = (response / np.maximum(values, 1e-30)).astype(np.complex64)
    values = np.where(values > NEGLIGIBLE * values.max(), values, 0.0).astype(np.float32)

    def from_basis(c: Array) -> Array:
        return jnp.fft.ifft2(c, axes=(1, 2), norm="ortho").real

    def to_measured(c: Array) -> Array:
        return from_basis(jnp.where(values > 0, c, 0) * phase)

    def from_measured(y: Array) -> Array:
        return _fourier(y) * np.conj(phase)

    singular_values = np.broadcast_to(values, shape)
    return Operator(singular_values, _fourier, from_basis, to_measured, from_measured)


def fourier_mask(known: np.ndarray) -> Operator:
    """Keep the Fourier coefficients where `known` (H, W) is True, as in MRI; set the others to 0.

    The coefficients of a real image at opposite frequencies are conjugate, so a frequency is known
    if its opposite is. Measurements (B, H, W, C) are real: the real part of the unitary transform
    minus its imaginary part (the Hartley transform). White noise is white in them, too.
    """
    known = np.asarray(known, bool)
    opposite = np.roll(known[::-1, ::-1], (1, 1), (0, 1))
    values = (known | opposite)[..., None].astype(np.float32)

    def hartley(x: Array) -> Array:  # its own inverse
        frequencies = _fourier(x)
        return frequencies.real - frequencies.imag

    def keep(c: Array) -> Array:
        return c * values

    return Operator(values, hartley, hartley, keep, keep)


def compressed_sensing(shape: Shape, rows: int, seed: int = 0) -> Operator:
    """Measure `rows` random coefficients (B, rows) of the cosine transform of x with random signs.

    These measurements are orthonormal and as incoherent with pixels as Gaussian ones, and need no
    matrix. Raises InputError unless `rows` is from 1 to the size of the image.
    """
    size = math.prod(shape)
    if not 0 < rows <= size:
        raise InputError(
            f"{rows} measurements of an image of {size} entries: choose from 1 to {size}."
        )
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1], np.float32), shape)
    chosen = np.sort(rng.permutation(size)[:rows])
    values = np.zeros(size, np.float32)
    values[chosen] = 1
    vertical, horizontal = _cosine_matrix(shape[0]), _cosine_matrix(shape[1])

    def to_basis(x: Array) -> Array:
        frequencies = _einsum("bhwc,kh,lw->bklc", x * signs, vertical, horizontal)
        return frequencies.reshape(-1, size)

    def from_basis(c: Array) -> Array:
        frequencies = c.reshape(-1, *shape)
        return _einsum("bklc,kh,lw->bhwc", frequencies, vertical, horizontal) * signs

    def to_measured(c: Array) -> Array:
        return c[:, chosen]

    def from_measured(y: Array) -> Array:
        return jnp.zeros((len(y), size), y.dtype).at[:, chosen].set(y)

    return Operator(values, to_basis, from_basis, to_measured, from_measured)


def dense(shape: Shape, matrix: np.ndarray) -> Operator:
    """Multiply the flattened image by a matrix (M, H W C) with M <= H W C: measurements (B, M).

    The matrix is decomposed by numpy. Raises InputError if its shape does not fit.
    """
    count, size = len(matrix), math.prod(shape)
    if matrix.shape != (count, size) or count > size:
        raise InputError(
            f"A matrix of shape {matrix.shape} does not fit images of shape {shape}: "
            f"it must have {size} columns and at most as many rows."
        )
    u, s, vh = np.linalg.svd(matrix, full_matrices=True)
    values = np.zeros(size, np.float32)
    values[:count] = np.where(s > NEGLIGIBLE * s.max(), s, 0)
    u, vh = u.astype(np.float32), vh.astype(np.float32)

    def to_basis(x: Array) -> Array:
        return _matmul(x.reshape(-1, size), vh.T)

    def from_basis(c: Array) -> Array:
        return _matmul(c, vh).reshape(-1, *shape)

    def to_measured(c: Array) -> Array:
        return _matmul(jnp.where(values > 0, c, 0)[:, :count], u.T)

    def from_measured(y: Array) -> Array:
        return jnp.pad(_matmul(y, u), ((0, 0), (0, size - count)))

    return Operator(values, to_basis, from_basis, to_measured, from_measured)


# --- masks and kernels --------------------------------------------------------------------------


def box(shape: Shape, share: float) -> Bool[np.ndarray, "h w c"]:
    """Return a mask that hides a box in the middle, whose sides are `share` of the image's."""
    known = np.ones(shape, bool)
    rows, columns = (
        slice(round(n * (1 - share) / 2), round(n * (1 + share) / 2)) for n in shape[:2]
    )
    known[rows, columns] = False
    return known


def random_pixels(shape: Shape, share: float, seed: int = 0) -> Bool[np.ndarray, "h w c"]:
    """Return a mask that keeps all channels of a random `share` of the pixels."""
    count = shape[0] * shape[1]
    known = np.random.default_rng(seed).permutation(count) < max(1, round(share * count))
    return np.broadcast_to(known.reshape(*shape[:2], 1), shape)


def frequency_columns(shape: Shape, share: float, seed: int = 0) -> Bool[np.ndarray, "h w"]:
    """Return a mask of Fourier columns, like the Cartesian undersampling of an MRI scanner.

    It keeps `share` of the columns, half of them at the lowest frequencies and half at random.
    """
    width = shape[1]
    frequency = np.abs(np.fft.fftfreq(width))
    count = max(1, round(share * width))
    lowest = np.argsort(frequency, kind="stable")[: (count + 1) // 2]
    others = np.setdiff1d(np.arange(width), lowest)
    chosen = np.random.default_rng(seed).permutation(others)[: count // 2]
    return np.broadcast_to(np.isin(np.arange(width), [*lowest, *chosen]), shape[:2])


def gaussian_kernel(std: float) -> Float[np.ndarray, "h h"]:
    """Return a Gaussian kernel of sum 1 with `std` in pixels, cut off at three of them."""
    radius = max(1, math.ceil(3 * std))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def motion_kernel(length: float, angle: float) -> Float[np.ndarray, "h h"]:
    """Return the kernel of sum 1 of a straight movement over `length` pixels.

    `angle` is measured against the horizontal, in degrees.
    """
    radius = max(1, math.ceil(length / 2))
    kernel = np.zeros((2 * radius + 2, 2 * radius + 2))
    direction = math.radians(angle)
    for distance in np.linspace(-length / 2, length / 2, 64):
        y = radius - distance * math.sin(direction)
        x = radius + distance * math.cos(direction)
        top, left = math.floor(y), math.floor(x)
        # Bilinear weights distribute the point over the four pixels around it.
        vertical = [1 - y + top, y - top]
        horizontal = [1 - x + left, x - left]
        kernel[top : top + 2, left : left + 2] += np.outer(vertical, horizontal)
    return kernel[:-1, :-1] / kernel.sum()


def _fourier(x: Array) -> Array:
    return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")


def _cosine_matrix(n: int) -> np.ndarray:
    """Return the matrix (n, n) of the orthonormal DCT-II; row 0 gives the mean times sqrt(n)."""
    k, i = np.mgrid[:n, :n]
    matrix = np.cos(np.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)
