"""Convolutions with their own rule of differentiation, against those that JAX derives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models import convolution
from models.convolution import LAYOUT, convolve

CASES = {  # (features in and out, size of the weight, padding)
    "3x3, more out": ((3, 5), (3, 3), None),
    "3x3, more in": ((5, 2), (3, 3), None),
    "phase": ((3, 4), (2, 2), ((1, 0), (0, 1))),
    "no square, more in": ((3, 2), (2, 3), ((0, 1), (1, 2))),
}


@pytest.fixture(autouse=True)
def gradients_by_rows(monkeypatch):
    """Tests have eight devices and narrow layers, with which the gradient is the plain one."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(convolution, "WIDE", 1)


def loss(function, g):
    return lambda x, weight: jnp.sum(g * jnp.sin(function(x, weight)))


@pytest.mark.parametrize("name", CASES)
def test_derivatives(name):
    """First and second ones in both modes, and those of each image on its own."""
    (channels, features), size, padding = CASES[name]
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (4, 6, 8, channels))
    weight = jax.random.normal(keys[1], (*size, channels, features))

    def plain(x, weight):
        zeros = "SAME" if padding is None else padding
        return lax.conv_general_dilated(x, weight, (1, 1), zeros, dimension_numbers=LAYOUT)

    g = jax.random.normal(keys[2], plain(x, weight).shape)

    def derivatives(function):
        def of_weight(x, g):
            return jax.grad(loss(function, g[None]), 1)(x[None], weight)

        def slope(x, weight):
            return jax.jvp(loss(function, g), (x, weight), (x, weight))[1]

        gradient = jax.grad(loss(function, g), (0, 1))
        return {
            "forward": jax.jvp(function, (x, weight), (2 * x + 1, weight - 1)),
            "reverse": gradient(x, weight),
            "of each image": jax.vmap(of_weight)(x, g),
            "forward over reverse": jax.jvp(gradient, (x, weight), (x, weight))[1],
            "reverse over forward": jax.grad(slope, (0, 1))(x, weight),
        }

    own = functools.partial(convolve, padding=padding)
    np.testing.assert_array_equal(own(x, weight), plain(x, weight))
    found, expected = (jax.jit(lambda f=f: derivatives(f))() for f in (own, plain))
    for which, value in expected.items():
        for a, b in zip(jax.tree.leaves(found[which]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=which)


def test_no_work_for_arguments_that_are_not_differentiated(monkeypatch):
    """A derivative along x alone needs no products with the weight's tangent, and vice versa."""

    def convolutions(argnums):
        x, weight = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 3))
        gradient = jax.grad(loss(convolve, 1.0), argnums)
        return jax.jit(gradient).lower(x, weight).compile().as_text().count(" convolution(")

    assert (convolutions(0), convolutions(1), convolutions((0, 1))) == (2, 2, 3)
    monkeypatch.setattr(convolution, "weight_gradient", None)
    assert convolutions(0) == 2


@pytest.mark.parametrize(
    ("platform", "devices", "wide"), [("cpu", 1, 3), ("cpu", 8, 3), ("tpu", 1, 3), ("cpu", 1, 4)]
)
def test_only_wide_layers_on_a_single_cpu_have_another_gradient(
    platform, devices, wide, monkeypatch
):
    """Elsewhere the program holds the gradient that JAX derives. The layer has 3 features."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(convolution, "WIDE", wide)
    gradient = jax.jit(jax.grad(loss(convolve, 1.0), 1))
    shapes = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 3))
    text = gradient.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert ("[b, 0, f]x[0, i, o]" in text) == ((platform, devices, wide) == ("cpu", 1, 3))
    assert text.count("stablehlo.convolution") == 2


def test_dtype_is_that_of_the_images():
    x, weight = jnp.ones((2, 4, 4, 3), jnp.bfloat16), jnp.ones((3, 3, 3, 3))
    gradients = jax.grad(lambda x, w: convolve(x, w).astype("float32").sum(), (0, 1))(x, weight)
    assert convolve(x, weight).dtype == gradients[0].dtype == jnp.bfloat16
    assert gradients[1].dtype == jnp.float32
    np.testing.assert_array_equal(gradients[1][1, 1], 32)
