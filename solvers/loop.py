"""A sampler as a loop whose steps a program can execute in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array, lax

Carry = Any
"""A pytree of arrays whose first axis counts images."""


class Loop(NamedTuple):
    """A sampler of n steps.

    Attributes:
      n: the number of steps. An adaptive solver is a loop of one step.
      start: the first carry, from states (B, ...).
      step: (number of the step, from 0, carry) -> carry.
      finish: the result, from the last carry.
    """

    n: int
    start: Callable[[Array], Carry]
    step: Callable[[Any, Carry], Carry]
    finish: Callable[[Carry], Any]

    def run(self, x: Array) -> Any:
        """Execute all steps from the states x (B, ...), and return the result."""
        carry = self.start(x)
        if self.n == 1:
            return self.finish(self.step(0, carry))
        return self.finish(lax.fori_loop(0, self.n, self.step, carry))

    def then(self, function: Callable[[Any], Any]) -> Loop:
        """Return the loop whose result is `function` of this loop's result."""
        finish = self.finish
        return self._replace(finish=lambda carry: function(finish(carry)))


def single(solve: Callable[[Array], Any]) -> Loop:
    """Return the loop whose only step is `solve`, from states to the result."""
    return Loop(1, lambda x: x, lambda _, x: solve(x), lambda result: result)
