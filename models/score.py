"""From a network to score(x, t): the conventions that tie one to an SDE live here and in the SDE itself."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models.layers import Rngs
from sde_lib import SDE, expand


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """How a network (x, label) -> output becomes a score; holds no parameters.

    Attributes:
      sde: the SDE that the network was trained for. It says which label stands for t and what the output means.
      num_scales: the number of noise levels of discrete-time training; None for a network trained in continuous time.
      centered: whether data lie in [-1, 1]; else in [0, 1], and the network is shown 2 x - 1.
      sigmas: divisors of the output (`model.scale_by_sigma`): a table of noise scales that the integer part of the
        label looks up, () if the label itself is the noise scale (Fourier embedding), or None for no division.
      num_classes: the number of classes that the network is told of (`data.num_classes`), and what it is told for
        "no class"; 0 for a network that knows none.
      dtype: the type of the images that the network is shown, and so of what it computes; its output is float32.
    """

    sde: SDE
    num_scales: int | None = None
    centered: bool = True
    sigmas: tuple[float, ...] | None = None
    num_classes: int = 0
    dtype: jnp.dtype = jnp.dtype("float32")

    def output(
        self,
        network: nnx.Module,
        x: Array,
        label: Array,
        rngs: Rngs | None = None,
        classes: Array | None = None,
    ) -> Array:
        """Output of the network for states x (B, ...), labels and classes (B,), divided by sigma if asked."""
        told = {}
        if self.num_classes:
            told["classes"] = (
                jnp.full(x.shape[:1], self.num_classes) if classes is None else classes
            )
        x = x if self.centered else 2 * x - 1
        h = network(x.astype(self.dtype), label, rngs, **told).astype(jnp.float32)
        if self.sigmas is None:
            return h
        sigma = jnp.asarray(self.sigmas, h.dtype)[label.astype(jnp.int32)] if self.sigmas else label
        return h / expand(sigma, h)

    def score(
        self,
        network: nnx.Module,
        x: Array,
        t: Array,
        rngs: Rngs | None = None,
        classes: Array | None = None,
    ) -> Array:
        """Estimate of grad_x log p_t(x) for x (B, ...) and t (B,); with `rngs` dropout is on.

        With `classes` (B,) it is that of log p_t(x | class), from a network that is told them.
        """
        output = self.output(network, x, self.sde.label(t, self.num_scales), rngs, classes)
        return self.sde.score_from_output(output, t, self.num_scales)
