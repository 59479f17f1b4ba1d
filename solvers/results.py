"""What a sampler is and returns: its loop, its samples, and the evaluations that they took."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array

import solvers
from errors import InputError
from sde_lib import Score
from solvers import stability
from solvers.loop import is_finite

MOST_ERROR = 30.0  # the growth of errors; with 20 steps on the schedule log_snr, at most 6
MOST_STD = 3.0  # of the states of Gaussian data, relative to the exact one; official samplers: 1.02


class Samples(NamedTuple):
    """The result of a sampler.

    Attributes:
      x: samples (B, ...).
      nfe: evaluations of the network for each of them (B,). It is exact for fixed steps, and an
        upper bound where classifier-free guidance meets adaptive steps. Evaluations of a
        classifier are not counted.
      frames: states on the way to x, in order (F, B, ...), F <= FRAMES; F = 0 unless requested.
      bad_step: the step (B,), from 1, after which the state was first not finite, or the evaluation
        (`Sampler.unit`); 0 if x is finite. Adaptive steps are not counted: 1 if x is not finite.
      weights: what a sampler of weighted particles reports, `controllable.smc.Weights`; else ().
    """

    x: Array
    nfe: Array
    frames: Array
    bad_step: Array
    weights: Any = ()


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A loop to samples, and how it counts its steps.

    Attributes:
      loop: (keys (B,), score) -> Loop from samples of the prior (B, ...) to Samples. That of 'pc'
        has two more arguments, by name: a `constraint` for its loop, and `wrap_predictor`, a
        function from its predictor to the one that it uses instead; the attribute `evaluations` of
        the latter states its score evaluations in a step, if these are not one. The samplers of
        `make_flow` ignore the keys, and start from any states.
      steps: the number of steps, or of evaluations, see `unit`; None if steps are adaptive.
      title: the sampler in words.
      growth: the growth of its states and of errors, `solvers.stability`; None if it is not known.
      advice: what to change if that is too large, or if samples are not finite.
      frame_levels: the noise levels std / alpha of `Samples.frames`; empty if they are unknown.
      denoises: whether samples are means of x_0 given the last state, without its noise.
      unit: what `steps` and `Samples.bad_step` count: "step", or "evaluation" for a few-step solver
        that has several in a step.
    """

    loop: Callable[..., solvers.Loop]
    steps: int | None = None
    title: str = ""
    growth: Callable[[], stability.Growth] | None = None
    advice: str = "choose another sampler"
    frame_levels: tuple[float, ...] = ()
    unit: str = "step"
    denoises: bool = True

    def __call__(self, keys: Array | None, score: Score, x: Array, **changes: Any) -> Samples:
        """Return the samples from the initial states x (B, ...); see `loop`."""
        return self.loop(keys, score, **changes).run(x)

    def check_stable(self) -> None:
        """Raise InputError if a step is unstable; warn, once, if it multiplies network errors."""
        return self._checked

    @functools.cached_property
    def _checked(self) -> None:
        stds, errors = (np.array([]),) * 2 if self.growth is None else self.growth()
        if not np.all(stds <= MOST_STD):
            step = int(np.argmin(stds <= MOST_STD))
            raise InputError(
                f"{self.unit} {step + 1} of {self.steps} of the sampler is unstable: the states of "
                f"Gaussian data then have {stds[step]:.3g} times their standard deviation, of "
                f"which {MOST_STD:g} times are allowed. To correct it, {self.advice}."
            )
        if np.any(errors > MOST_ERROR):
            step = int(np.argmax(errors > MOST_ERROR))
            logging.warning(
                "%s %d of %d of the sampler multiplies errors of the network by %.3g; samples may "
                "be noise. To correct it, %s.",
                *(self.unit, step + 1, self.steps, errors[step], self.advice),
            )


# --- results of loops ---------------------------------------------------------------------------


def single_loop(solve: Callable[[Score, Array], Samples]) -> Callable[..., solvers.Loop]:
    """Return the loop of a sampler that draws no noise and has one adaptive step."""

    def loop(keys: Array | None, score: Score) -> solvers.Loop:
        del keys
        return solvers.single(functools.partial(solve, score))

    return loop


def evaluations(score: Score, t: Array) -> Array:
    """Return the network evaluations in one call of a score at times t: 1 if it is not guided."""
    return getattr(score, "evaluations", jnp.ones_like)(t)


def total_nfe(score: Score, times: Array, calls: int = 1) -> Array:
    """Return the network evaluations () of `calls` calls at each of the times (n,)."""
    return (calls * evaluations(score, times).sum()).astype(jnp.int32)


def most_evaluations(score: Score, times: Array) -> Array:
    """Return the most network evaluations of a call at any of the times."""
    return evaluations(score, times).max().astype(jnp.int32)


def to_samples(
    x: Array, nfe: Array, frames: Array | None = None, bad_step: Array | None = None
) -> Samples:
    """Return the samples; without `bad_step`, failures count as those of step 1."""
    nfe = jnp.broadcast_to(nfe, len(x))
    frames = x[None][:0] if frames is None else frames
    bad_step = jnp.zeros(len(x), jnp.int32) if bad_step is None else bad_step
    return Samples(x, nfe, frames, jnp.where(is_finite(x), 0, jnp.maximum(bad_step, 1)))
