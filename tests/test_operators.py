"""Linear operators against their definitions, written as matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from controllable import operators
from tests import programs
from tests.refusal import refused

SHAPE = (6, 8, 3)
SIZE = 6 * 8 * 3
KNOWN = np.random.default_rng(0).random(SHAPE) < 0.4
FREQUENCIES = operators.frequency_columns(SHAPE, 0.5)
MATRIX = np.random.default_rng(1).normal(size=(10, SIZE)) @ np.diag(np.linspace(1, 3, SIZE))
BLUR = operators.gaussian_kernel(0.6)
MOTION = operators.motion_kernel(3.0, 30.0)
ASYMMETRIC = np.random.default_rng(2).random((3, 4))  # The other kernels are point-symmetric.


def convolve(kernel):
    return lambda x: scipy.ndimage.convolve(x, kernel[..., None], mode="wrap")


# Operators, and their definitions as functions of one image (None: no short definition).
OPERATORS = {
    "mask": (operators.mask(KNOWN), lambda x: x * KNOWN),
    "channel_mean": (operators.channel_mean(SHAPE), lambda x: x.mean(-1, keepdims=True)),
    "luma": (
        operators.channel_mean(SHAPE, (0.3, 0.6, 0.1)),
        lambda x: x @ np.array([[0.3], [0.6], [0.1]]),
    ),
    "block_mean": (operators.block_mean(SHAPE, 2), lambda x: x.reshape(3, 2, 4, 2, 3).mean((1, 3))),
    "gaussian_blur": (operators.convolution(SHAPE, BLUR), convolve(BLUR)),
    "motion_blur": (operators.convolution(SHAPE, MOTION), convolve(MOTION)),
    "asymmetric_blur": (operators.convolution(SHAPE, ASYMMETRIC), convolve(ASYMMETRIC)),
    "dense": (operators.dense(SHAPE, MATRIX), lambda x: MATRIX @ x.reshape(-1)),
    "fourier_mask": (operators.fourier_mask(FREQUENCIES), None),
    "compressed_sensing": (operators.compressed_sensing(SHAPE, 40), None),
}


def matrix_of(function, *shape):
    """The matrix (M, N) of a linear function of batches of arrays with N = prod(shape) entries."""
    size = np.prod(shape)
    columns = np.asarray(jax.jit(function)(jnp.eye(size).reshape(-1, *shape)), np.float64)
    return columns.reshape(size, -1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_theorems(name):
    """A fits its definition, A* is its transpose, its pseudo-inverse Moore-Penrose, V unitary.

    The noise has covariance noise_std^2 times the projector to the range of A.
    """
    operator, definition = OPERATORS[name]
    a = matrix_of(operator.forward, *SHAPE)
    y_shape = operator.forward(jnp.zeros((1, *SHAPE))).shape[1:]
    if definition:
        columns = [definition(x).reshape(-1) for x in np.eye(SIZE).reshape(-1, *SHAPE)]
        expected = np.stack(columns, 1)
        np.testing.assert_allclose(a, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_allclose(
        matrix_of(operator.adjoint, *y_shape), a.T, atol=1e-5 * np.abs(a).max()
    )
    c_shape = operator.to_basis(jnp.zeros((1, *SHAPE))).shape[1:]
    rank = int(np.broadcast_to(operator.measured, c_shape).sum())
    pinv = np.linalg.pinv(a, rcond=5e-4)
    assert rank == np.linalg.matrix_rank(a, tol=5e-4 * np.linalg.norm(a, 2))
    np.testing.assert_allclose(
        matrix_of(operator.pseudo_inverse, *y_shape), pinv, atol=1e-4 * np.abs(pinv).max()
    )
    noise = matrix_of(lambda z: operator.observe(jnp.zeros_like(z), z, 0.5), *SHAPE)
    np.testing.assert_allclose(noise @ noise.T, 0.25 * a @ pinv, atol=2e-5)
    x = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    np.testing.assert_allclose(operator.from_basis(operator.to_basis(x)), x, atol=1e-5)
    c = operator.to_basis(x)
    np.testing.assert_allclose(jnp.linalg.norm(c), jnp.linalg.norm(x), rtol=1e-5)
    again = operator.from_measured(operator.to_measured(c))
    measured = np.broadcast_to(operator.measured, c_shape)
    np.testing.assert_allclose(again[:, measured], c[:, measured], atol=1e-5)


PRODUCTS = ("channel_mean", "luma", "block_mean", "dense", "compressed_sensing")


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_exact(name):
    """Measurements must not depend on the bits that accelerators leave out by default."""
    operator, _ = OPERATORS[name]
    x = jnp.zeros((1, *SHAPE))
    y, c = operator.forward(x), operator.to_basis(x)

    def everything(x, y, c):
        pair = operator.to_basis(x), operator.from_basis(c)
        back = operator.adjoint(y), operator.pseudo_inverse(y), operator.solution(y)
        return pair, back, operator.forward(x), operator.observe(x, x, 0.1)

    exact = programs.exact_products(everything, x, y, c)
    assert exact
    assert all(exact)


def test_fourier_mask_is_fourier():
    """The measurement is the real minus the imaginary part of numpy's transform where known."""
    x = np.random.default_rng(0).normal(size=(1, *SHAPE))
    f = np.fft.fft2(x, axes=(1, 2), norm="ortho")
    opposite = np.roll(FREQUENCIES[:, ::-1], 1, 1)
    y = OPERATORS["fourier_mask"][0].forward(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(
        y, (f.real - f.imag) * (FREQUENCIES | opposite)[..., None], atol=1e-5
    )
    known = np.zeros((6, 8), bool)
    known[1, 2] = known[0, 3] = True  # Each is kept with its opposite.
    kept = operators.fourier_mask(known).singular_values[..., 0]
    assert sorted(zip(*np.nonzero(kept))) == [(0, 3), (0, 5), (1, 2), (5, 6)]


def test_kernels_and_masks():
    """Kernels have sum 1, horizontal motion stays in its row, and masks keep the given shares."""
    for kernel in (BLUR, MOTION, operators.motion_kernel(4, 0)):
        assert kernel.sum() == pytest.approx(1)
    assert np.flatnonzero(operators.motion_kernel(4, 0).sum(1) > 1e-9).tolist() == [2]
    across = operators.motion_kernel(4, 0).sum(0)
    down = operators.motion_kernel(4, 90).sum(1)
    np.testing.assert_allclose(across, down, atol=1e-9)
    a = matrix_of(OPERATORS["compressed_sensing"][0].forward, *SHAPE)
    np.testing.assert_allclose(a @ a.T, np.eye(40), atol=1e-5)
    assert np.abs(a).max() < 0.5  # Rows are spread.
    assert (~operators.box((8, 8, 1), 0.5)).sum() == 16
    assert operators.random_pixels((8, 8, 3), 0.25).sum() == 48
    assert operators.random_pixels((8, 8, 3), 0.0).sum() == 3
    np.testing.assert_array_equal(
        operators.random_pixels((8, 8), 0.25), operators.random_pixels((8, 8, 3), 0.25)[..., 2]
    )
    hidden = ~operators.box((6, 12, 1), 1 / 3)[..., 0]
    assert hidden[2:4, 4:8].all()
    assert hidden.sum() == 8
    columns = operators.frequency_columns((6, 16, 1), 0.5)
    assert columns.shape == (6, 16)
    assert (columns == columns[0]).all()
    assert columns[0].sum() == 8
    assert columns[0, [0, 1, -1]].all()  # Half of them are the lowest frequencies.


def test_moments_of_kernels():
    """A Gaussian has the given deviation; a line of length L has variance L^2 / 12 along it."""

    def second_moments(kernel):  # About its center, in (rows, columns).
        positions = np.stack(np.indices(kernel.shape)) - (kernel.shape[0] - 1) / 2
        return np.einsum("ahw,bhw,hw->ab", positions, positions, kernel)

    np.testing.assert_allclose(
        second_moments(operators.gaussian_kernel(1.5)), 2.25 * np.eye(2), atol=0.03 * 2.25
    )
    assert operators.gaussian_kernel(1.5).shape == (11, 11)
    for degrees in (0, 30, 60, 90, 135):
        along = np.array([-np.sin(np.radians(degrees)), np.cos(np.radians(degrees))])
        moments = second_moments(operators.motion_kernel(12.0, degrees))
        # Bilinear weights add a variance of up to 1/4.
        np.testing.assert_allclose(moments, 12 * np.outer(along, along), atol=0.7)


def grid(shape):
    """Coordinates (rows, columns) of pixels, from the center."""
    return np.stack(np.indices(shape)) - (np.array(shape).reshape(2, 1, 1) - 1) / 2


def test_radon():
    """At 0 degrees it sums columns; integrals of a Gaussian at (a, b) are one at its projection."""
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    down, reverse = operators.radon((6, 8), [0, 180])(jnp.asarray(x))
    padding = (len(down) - 8) // 2
    np.testing.assert_allclose(down[padding : padding + 8], x.sum(0), atol=1e-5)
    np.testing.assert_allclose(reverse, down[::-1], atol=1e-4)
    rows, columns = grid((40, 40))
    a, b, std, angles = 4.0, -3.0, 3.0, [0.0, 30.0, 75.0, 120.0]
    x = np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / (2 * std**2))
    found = operators.radon((40, 40), angles)(jnp.asarray(x, jnp.float32))
    along, radians = np.arange(found.shape[1]) - (found.shape[1] - 1) / 2, np.radians(angles)
    centers = np.cos(radians) * b - np.sin(radians) * a
    squares = (along - centers[:, None]) ** 2
    expected = std * np.sqrt(2 * np.pi) * np.exp(-squares / (2 * std**2))
    np.testing.assert_allclose(found, expected, atol=0.03 * expected.max())


def test_coil_fourier():
    """The measurement is the masked transform of the image times each sensitivity."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 6, 8)) + 1j * rng.normal(size=(2, 6, 8))
    known = rng.random((6, 8)) < 0.4
    x = rng.normal(size=(6, 8))
    expected = np.stack([np.fft.fft2(each * x, norm="ortho")[known] for each in maps])
    found = operators.coil_fourier(maps, known)(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, atol=1e-4)


FUNCTIONS = {
    "radon": operators.radon((6, 8), [0, 45, 100]),
    "more measurements than pixels": operators.radon((6, 8), np.arange(0, 180, 12)),
    "coil_fourier": operators.coil_fourier(np.exp(1j * grid((6, 8)))[:, :, :], FREQUENCIES),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_decompose(name):
    """The decomposition of a function has its values, and the adjoint of its matrix."""
    function = FUNCTIONS[name]
    operator = operators.decompose(function, (6, 8))
    a = matrix_of(jax.vmap(function), 6, 8)
    np.testing.assert_allclose(matrix_of(operator.forward, 6, 8), a, atol=2e-3 * np.abs(a).max())
    found = matrix_of(operator.adjoint, len(a))
    np.testing.assert_allclose(found, a.T, atol=2e-3 * np.abs(a).max())
    near = jax.linear_transpose(jax.vmap(function), jnp.zeros((1, 6, 8)))
    y = jax.random.normal(jax.random.key(0), jax.vmap(function)(jnp.zeros((1, 6, 8))).shape)
    np.testing.assert_allclose(near(y)[0].reshape(-1), a.T @ y.reshape(-1), atol=1e-3)


BUILDERS = {
    "block_mean": lambda shape: operators.block_mean(shape, 2),
    "motion_blur": lambda shape: operators.motion_blur(shape, 2.0, 30.0),
    "fourier_mask": lambda shape: operators.fourier_mask(FREQUENCIES, channels=len(shape) == 3),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_events_without_channels(name):
    """An operator of images (H, W) is that of images (H, W, 1), without the last axis."""
    flat, image = BUILDERS[name]((6, 8)), BUILDERS[name]((6, 8, 1))
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    y = flat.forward(x)
    expected = image.forward(x[..., None])
    np.testing.assert_allclose(y.reshape(2, -1), expected.reshape(2, -1), atol=1e-5)
    assert flat.adjoint(y).shape == flat.pseudo_inverse(y).shape == x.shape
    adjoint = image.adjoint(expected)[..., 0]
    np.testing.assert_allclose(flat.adjoint(y), adjoint, atol=1e-5)


INVALID = [
    (operators.radon, ((6,), [0]), r"shape \(6,\) at 1 angles is not defined"),
    (operators.radon, ((6, 8), []), "at 0 angles is not defined"),
    (operators.coil_fourier, (np.ones((2, 6, 8)), np.ones((8, 6))), "do not fit"),
    (operators.decompose, (jnp.square, (3,)), "The function is not linear"),
    (operators.decompose, (jnp.ravel, (80, 80)), "6400 entries; .* up to 4096"),
    (operators.block_mean, (SHAPE, 4), "Blocks of 4x4 pixels do not tile images of 6x8"),
    (operators.channel_mean, (SHAPE, (0.5, 0.5)), "images of 3 channels: pass 3 weights"),
    (operators.convolution, (SHAPE, np.ones((7, 3))), r"\(7, 3\) does not fit images of 6x8"),
    (operators.compressed_sensing, (SHAPE, 0), "0 measurements .* choose from 1 to 144"),
    (operators.dense, (SHAPE, np.ones((3, 5))), r"\(3, 5\) does not fit events .* 144 columns"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), INVALID)
def test_invalid_values(make, arguments, message):
    refused(message, make, *arguments)
