"""JAX programs as lists of operations, for tests of precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr

JAXPRS = Jaxpr, ClosedJaxpr
PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """Iterate over all equations of a program, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        values = list(equation.params.values())
        for inner in jax.tree.leaves(values, is_leaf=lambda value: isinstance(value, JAXPRS)):
            if isinstance(inner, JAXPRS):
                yield from equations(getattr(inner, "jaxpr", inner))


def exact(jaxpr: Jaxpr) -> list[bool]:
    """Return for each matrix product and convolution of a program whether it is exact."""
    found = []
    for equation in equations(jaxpr):
        if equation.primitive.name in PRODUCTS:
            precision = equation.params["precision"]
            pair = precision if isinstance(precision, tuple) else (precision, precision)
            found.append(all(each == lax.Precision.HIGHEST for each in pair))
    return found


def exact_products(function: Callable, *arguments: Any) -> list[bool]:
    """Return for each product of a function whether it is exact on accelerators.

    Their default precision, in place of that of `tests/conftest.py`, rounds products that do not
    state their own.
    """
    with jax.default_matmul_precision("bfloat16"):
        return exact(jax.make_jaxpr(function)(*arguments).jaxpr)
