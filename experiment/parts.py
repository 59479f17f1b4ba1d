"""A sampler compiled in parts, so that it can show its progress and be stopped between steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh

import progress
import sharding
from factory import Sampler
from solvers import Loop

SECONDS = 0.5  # that a part takes, about
PARTS = 50  # of several processes, which must agree

Prepare = Callable[..., tuple[Loop, Array]]
"""The loop and its initial states, from the arguments of the sampler."""


class InParts:
    """A sampler as three compiled programs: the start, any number of steps, and the end.

    Attributes:
      whole: the sampler as one program.
    """

    def __init__(
        self, prepare: Prepare, sampler: Sampler, mesh: Mesh, in_shardings: Any, outputs: Any
    ) -> None:
        """Compile nothing yet.

        Args:
          prepare: see `Prepare`.
          sampler: states the steps of its loop; an adaptive one has none and is one program.
          mesh: the devices.
          in_shardings: the shardings of the arguments.
          outputs: those of the result.
        """

        def whole(*arguments: Any) -> Any:
            loop, x = prepare(*arguments)
            return loop.run(x)

        def start(*arguments: Any) -> Any:
            loop, x = prepare(*arguments)
            return loop.start(x)

        def advance(carry: Any, first: Array, last: Array, *arguments: Any) -> Any:
            return lax.fori_loop(first, last, prepare(*arguments)[0].step, carry)

        def finish(carry: Any, *arguments: Any) -> Any:
            return prepare(*arguments)[0].finish(carry)

        split = sharding.along_axis(mesh)  # Images are the first axis of all arrays in a carry.
        self.steps, self.unit = sampler.steps, sampler.unit
        self.whole = jax.jit(whole, in_shardings=in_shardings, out_shardings=outputs)
        self.start = jax.jit(start, in_shardings=in_shardings, out_shardings=split)
        self.advance = jax.jit(
            advance,
            in_shardings=(split, None, None, *in_shardings),
            out_shardings=split,
            donate_argnums=0,
        )
        self.finish = jax.jit(finish, in_shardings=(split, *in_shardings), out_shardings=outputs)

    def __call__(self, text: str, *arguments: Any) -> Any:
        """Return the samples; `text` says what is done, such as "drawing 64 samples"."""
        if self.steps is None or self.steps == 1:
            steps = "one step" if self.steps else "adaptive steps"
            with progress.waiting(f"{text} with {steps}"):
                return jax.block_until_ready(self.whole(*arguments))
        with progress.counting(text, self.steps, self.unit) as update:
            carry, done, size = self.start(*arguments), 0, 1
            while done < self.steps:
                began, last = time.monotonic(), min(done + size, self.steps)
                carry = jax.block_until_ready(self.advance(carry, done, last, *arguments))
                size = self._size(last - done, time.monotonic() - began)
                done = last
                update(done)
            return self.finish(carry, *arguments)

    def _size(self, size: int, seconds: float) -> int:
        """Return the steps of the next part; the last one had `size`."""
        if jax.process_count() > 1:
            return -(-(self.steps or 1) // PARTS)
        return max(1, min(10 * size, int(size * SECONDS / max(seconds, 1e-6))))
