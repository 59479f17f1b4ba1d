"""Linear operators y = A x by their singular value decomposition, A = U S V*.

V* and U are functions (masks, transforms, small matrices), so no array of the size of A is stored.
The adjoint, the pseudo-inverse and functions of A A* follow from the decomposition (Kawar et al.
2022, arXiv:2201.11793, Section 3 and Appendix D). A batch of events x, such as images, has shape
(B, *event). Coefficients have shape (B, ...), where (...) is the shape of `singular_values`.
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

LinearMap = Callable[[Any], Array]  # of JAX or NumPy arrays
Shape = tuple[int, ...]
"""The shape of one event: (H, W, C) for images, (H, W) for images without channels, ..."""

# Singular values below this fraction of the largest one count as 0: in float32, a division by them
# would leave fewer than two correct digits.
NEGLIGIBLE = 1e-3

# Measurements must not depend on the bits that accelerators leave out of products by default.
matmul = functools.partial(jnp.matmul, precision="highest")
einsum = functools.partial(jnp.einsum, precision="highest")


def _identity(x: Array) -> Array:
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A real linear map A of events. To define one, state these five fields.

    Attributes:
      singular_values: (...), 0 for coefficients that A does not measure.
      to_basis, from_basis: V* and V, unitary: events (B, *event) to coefficients and back.
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

    def __repr__(self) -> str:
        values = np.asarray(self.singular_values)
        return f"Operator(entries={values.size}, rank={np.count_nonzero(values)})"

    @property
    def measured(self) -> np.ndarray:
        """Where the singular values are not 0; bool (...)."""
        return self.singular_values > 0

    def forward(self, x: Array | np.ndarray) -> Array:
        """Return A x for events x (B, *event)."""
        return self.to_measured(self.to_basis(x) * self.singular_values)

    def adjoint(self, y: Array) -> Array:
        """Return A* y for measurements y (B, ...)."""
        return self.from_basis(self.from_measured(y) * self.singular_values)

    def pseudo_inverse(self, y: Array) -> Array:
        """Return the least-squares solution of A x = y with the smallest norm; (B, *event)."""
        return self.from_basis(self.solution(y))

    def solution(self, y: Array) -> Array:
        """Return the coefficients of `pseudo_inverse`; (B, ...)."""
        values = self.singular_values
        inverse = np.divide(1, values, where=self.measured, out=np.zeros_like(values))
        return self.from_measured(y) * inverse

    def observe(self, x: Array | np.ndarray, z: Array, noise_std: float) -> Array:
        """Return A x + noise_std n for standard normal z (B, *event).

        The noise n is z projected to the range of A, where it is white.
        """
        signal = self.to_basis(x) * self.singular_values
        noise = self.to_basis(z) * (noise_std * self.measured)
        return self.to_measured(signal + noise)


Builder = Callable[..., Operator]


def with_or_without_channels(build: Builder) -> Builder:
    """Extend build(shape, ...) for shapes (H, W, C) to events without a channel axis, (H, W)."""

    @functools.wraps(build)
    def build_for(shape: Shape, *arguments: Any, **options: Any) -> Operator:
        if len(shape) != 2:
            return build(shape, *arguments, **options)
        operator = build((*shape, 1), *arguments, **options)
        is_image = operator.forward(np.zeros((1, *shape, 1), np.float32)).ndim == 4

        def to_measured(c: Array) -> Array:
            y = operator.to_measured(c)
            return y[..., 0] if is_image else y

        return Operator(
            operator.singular_values,
            to_basis=lambda x: operator.to_basis(x[..., None]),
            from_basis=lambda c: operator.from_basis(c)[..., 0],
            to_measured=to_measured,
            from_measured=lambda y: operator.from_measured(y[..., None] if is_image else y),
        )

    return build_for


def cosine_matrix(n: int) -> np.ndarray:
    """Return the matrix (n, n) of the orthonormal DCT-II; row 0 gives the mean times sqrt(n)."""
    k, i = np.mgrid[:n, :n]
    matrix = np.cos(np.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.astype(np.float32)
