"""Linear measurements of images, y = A x + noise, each known by its singular value decomposition A = U S V*.

V* and U are given as functions (masks, transforms, small matrices), so that nothing of the size of A is ever held. All
there is to know of A follows: A itself, its adjoint, its pseudo-inverse, and functions of A A* (Kawar et al. 2022,
arXiv:2201.11793, Section 3 and Appendix D). Images have shape (B, H, W, C), coefficients (B, ...) the shape that
`singular_values` has. A new operator states five things, as those below do.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from errors import InputError

Map = Callable[[Array], Array]
Shape = tuple[int, int, int]

NEGLIGIBLE = (
    1e-3  # of the largest singular value: float32 could not divide by less with two digits left.
)


def _same(x: Array) -> Array:
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A linear map A of images, real from real.

    Attributes:
      singular_values: of shape (...), 0 where A measures nothing.
      to_basis, from_basis: V* and V, unitary: images (B, H, W, C) to coefficients (B, ...) and back.
      to_measured: U: coefficients to measurements y (B, ...); it does not read those whose singular value is 0.
      from_measured: U*: measurements to coefficients, with anything where the singular value is 0.
    """

    singular_values: np.ndarray
    to_basis: Map = _same
    from_basis: Map = _same
    to_measured: Map = _same
    from_measured: Map = _same

    @property
    def measured(self) -> np.ndarray:
        """Where the singular values are not 0; bool (...)."""
        return self.singular_values > 0

    def forward(self, x: Array) -> Array:
        """A x."""
        return self.to_measured(self.singular_values * self.to_basis(x))

    def adjoint(self, y: Array) -> Array:
        """A* y."""
        return self.from_basis(self.singular_values * self.from_measured(y))

    def pseudo_inverse(self, y: Array) -> Array:
        """The image of least norm among those whose A x is nearest to y."""
        return self.from_basis(self.solution(y))

    def solution(self, y: Array) -> Array:
        """Coefficients of `pseudo_inverse`."""
        inverse = np.divide(
            1, self.singular_values, where=self.measured, out=np.zeros_like(self.singular_values)
        )
        return inverse * self.from_measured(y)

    def observe(self, x: Array, z: Array, noise_std: float) -> Array:
        """A x + noise_std n, with noise n made of z (B, H, W, C), standard normal: as white as A's range lets it be."""
        return self.to_measured(
            self.singular_values * self.to_basis(x) + noise_std * self.measured * self.to_basis(z)
        )


def mask(known: np.ndarray) -> Operator:
    """Pixels as they are where `known`, bool, and 0 elsewhere; (H, W, C), or (B, H, W, C) for a mask of each image."""
    known = np.asarray(known, np.float32)
    return Operator(known, from_measured=lambda y: known * y, to_measured=lambda c: known * c)


def channel_mean(shape: Shape, weights: tuple[float, ...] | None = None) -> Operator:
    """Grey images (B, H, W, 1) of colours: their mean, or another weighted sum of the channels."""
    weights = (
        np.full(shape[-1], 1 / shape[-1]) if weights is None else np.asarray(weights, np.float64)
    )
    if weights.shape != shape[-1:] or not np.any(weights):
        raise InputError(
            f"Images of {shape[-1]} channels need as many weights, not all of them 0; got {weights}."
        )
    norm = np.linalg.norm(weights)
    basis, _ = np.linalg.qr(np.column_stack([weights / norm, np.eye(shape[-1])]))
    basis[:, 0] = weights / norm  # QR may turn its sign.
    basis = basis.astype(np.float32)
    values = np.zeros(shape, np.float32)
    values[..., 0] = norm
    return Operator(
        values,
        to_basis=lambda x: x @ basis,
        from_basis=lambda c: c @ basis.T,
        to_measured=lambda c: c[..., :1],
        from_measured=lambda y: jnp.pad(y, ((0, 0),) * 3 + ((0, shape[-1] - 1),)),
    )


def block_mean(shape: Shape, factor: int) -> Operator:
    """Means of blocks of factor x factor pixels: images (B, H / factor, W / factor, C)."""
    height, width, channels = shape
    if factor < 1 or height % factor or width % factor:
        raise InputError(
            f"Blocks of {factor}x{factor} pixels do not tile images of {height}x{width}."
        )
    basis = _cosines(factor)
    blocks = (height // factor, factor, width // factor, factor, channels)
    values = np.zeros(blocks, np.float32)
    values[:, 0, :, 0] = 1 / factor
    turn = lambda x, basis: jnp.einsum("bhiwjc,ki,lj->bhkwlc", x, basis, basis)
    return Operator(
        values,
        to_basis=lambda x: turn(x.reshape(-1, *blocks), basis),
        from_basis=lambda c: turn(c, basis.T).reshape(-1, *shape),
        to_measured=lambda c: c[:, :, 0, :, 0],
        from_measured=lambda y: jnp.zeros((len(y), *blocks), y.dtype).at[:, :, 0, :, 0].set(y),
    )


def convolution(shape: Shape, kernel: np.ndarray) -> Operator:
    """Images blurred by a kernel (h, w) around its centre, each channel by itself; edges meet opposite edges."""
    height, width, _ = shape
    if kernel.ndim != 2 or kernel.shape[0] > height or kernel.shape[1] > width:
        raise InputError(
            f"A kernel of shape {kernel.shape} does not fit images of {height}x{width}."
        )
    padded = np.zeros((height, width))
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    response = np.fft.fft2(
        np.roll(padded, (-(kernel.shape[0] // 2), -(kernel.shape[1] // 2)), (0, 1))
    )[..., None]
    values = np.abs(response)
    phase = (response / np.maximum(values, 1e-30)).astype(np.complex64)
    values = np.where(values > NEGLIGIBLE * values.max(), values, 0.0).astype(np.float32)
    to_basis, from_basis = _fourier, lambda c: jnp.fft.ifft2(c, axes=(1, 2), norm="ortho").real
    return Operator(
        np.broadcast_to(values, shape),
        to_basis=to_basis,
        from_basis=from_basis,
        to_measured=lambda c: from_basis(phase * jnp.where(values > 0, c, 0)),
        from_measured=lambda y: jnp.conj(phase) * to_basis(y),
    )


def fourier_mask(known: np.ndarray) -> Operator:
    """The discrete Fourier transform where `known` (H, W), bool, as in magnetic resonance imaging; 0 elsewhere.

    A real image has the same information at a frequency and at its opposite: both are known if one is. Measurements are
    real, (B, H, W, C): the real part F of the unitary transform less its imaginary part (Hartley's transform), in which
    white noise is what it is in F.
    """
    known = np.asarray(known, bool)
    opposite = np.roll(known[::-1, ::-1], (1, 1), (0, 1))
    values = (known | opposite)[..., None].astype(np.float32)
    hartley = lambda x: (lambda f: f.real - f.imag)(_fourier(x))  # Its own inverse.
    keep = lambda c: values * c
    return Operator(
        values, to_basis=hartley, from_basis=hartley, to_measured=keep, from_measured=keep
    )


def compressed_sensing(shape: Shape, rows: int, seed: int = 0) -> Operator:
    """`rows` random measurements (B, rows): of the cosine transform of the image with random signs.

    These rows are orthonormal and as incoherent with pixels as Gaussian ones, and need no matrix.
    """
    size = math.prod(shape)
    if not 0 < rows <= size:
        raise InputError(
            f"Images of {size} entries have from 1 to {size} measurements, not {rows}."
        )
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.float32([-1, 1]), shape)
    chosen = np.sort(rng.permutation(size)[:rows])
    values = np.zeros(size, np.float32)
    values[chosen] = 1
    rows_of, columns_of = _cosines(shape[0]), _cosines(shape[1])
    return Operator(
        values,
        to_basis=lambda x: jnp.einsum("bhwc,kh,lw->bklc", signs * x, rows_of, columns_of).reshape(
            -1, size
        ),
        from_basis=lambda c: (
            signs * jnp.einsum("bklc,kh,lw->bhwc", c.reshape(-1, *shape), rows_of, columns_of)
        ),
        to_measured=lambda c: c[:, chosen],
        from_measured=lambda y: jnp.zeros((len(y), size), y.dtype).at[:, chosen].set(y),
    )


def dense(shape: Shape, matrix: np.ndarray) -> Operator:
    """Any matrix (M, H W C) with M <= H W C, small enough for numpy: measurements (B, M)."""
    count, size = len(matrix), math.prod(shape)
    if matrix.shape != (count, size) or count > size:
        raise InputError(
            f"A matrix of shape {matrix.shape} does not measure images {shape}: (M <= {size}, {size}) does."
        )
    u, s, vh = np.linalg.svd(matrix, full_matrices=True)
    values = np.zeros(size, np.float32)
    values[:count] = np.where(s > NEGLIGIBLE * s.max(), s, 0)
    u, vh = u.astype(np.float32), vh.astype(np.float32)
    return Operator(
        values,
        to_basis=lambda x: x.reshape(-1, size) @ vh.T,
        from_basis=lambda c: (c @ vh).reshape(-1, *shape),
        to_measured=lambda c: jnp.where(values > 0, c, 0)[:, :count] @ u.T,
        from_measured=lambda y: jnp.pad(y @ u, ((0, 0), (0, size - count))),
    )


# --- what to measure --------------------------------------------------------------------------------------------------


def box(shape: Shape, share: float) -> np.ndarray:
    """Known pixels around an unknown box in the middle, whose sides are `share` of the image's; bool (H, W, C)."""
    known = np.ones(shape, bool)
    rows, columns = (
        slice(round(n * (1 - share) / 2), round(n * (1 + share) / 2)) for n in shape[:2]
    )
    known[rows, columns] = False
    return known


def random_pixels(shape: Shape, share: float, seed: int = 0) -> np.ndarray:
    """A share of the pixels, drawn at random, in all their channels; bool (H, W, C)."""
    count = shape[0] * shape[1]
    known = np.random.default_rng(seed).permutation(count) < max(1, round(share * count))
    return np.broadcast_to(known.reshape(*shape[:2], 1), shape)


def columns_of_frequencies(shape: Shape, share: float, seed: int = 0) -> np.ndarray:
    """Fourier columns as a scanner takes them: half of the share at the lowest frequencies, half at random; (H, W)."""
    width = shape[1]
    frequency = np.abs(np.fft.fftfreq(width))
    count = max(1, round(share * width))
    lowest = np.argsort(frequency, kind="stable")[: (count + 1) // 2]
    others = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(width), lowest))[
        : count // 2
    ]
    return np.broadcast_to(np.isin(np.arange(width), [*lowest, *others]), shape[:2])


def gaussian_kernel(std: float) -> np.ndarray:
    """A Gaussian of `std` pixels, cut off at three of them; (h, h), of sum 1."""
    radius = max(1, math.ceil(3 * std))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """A straight movement over `length` pixels, `angle` degrees against the horizontal; (h, h), of sum 1."""
    radius = max(1, math.ceil(length / 2))
    kernel = np.zeros((2 * radius + 2, 2 * radius + 2))
    for distance in np.linspace(
        -length / 2, length / 2, 64
    ):  # Each point of the way is shared by its four pixels.
        y, x = (
            radius - distance * math.sin(math.radians(angle)),
            radius + distance * math.cos(math.radians(angle)),
        )
        top, left = math.floor(y), math.floor(x)
        kernel[top : top + 2, left : left + 2] += np.outer(
            [1 - y + top, y - top], [1 - x + left, x - left]
        )
    return kernel[:-1, :-1] / kernel.sum()


def _fourier(x: Array) -> Array:
    return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")


def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) as a matrix (n, n); its row 0 takes the mean times sqrt(n)."""
    k, i = np.mgrid[:n, :n]
    matrix = np.cos(np.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)
