"""What samplers share: the score that they take, random numbers, the loop over steps, and results.

Random numbers have one key per image, so that the noise of an image depends on its own key only,
not on the batch that contains the image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import struct
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from errors import InputError
from sde_lib import SDE, Score

PRIOR = 2**31 - 1  # folded into a key for the prior; larger than the number of any step
FRAMES = 16  # states of a trajectory, at most
MOST_ERROR = 30.0  # the growth of errors; with 20 steps on the schedule log_snr, at most 6
MOST_STD = 3.0  # of the states of Gaussian data, relative to the exact one; official samplers: 1.02

Carry = Any
"""A pytree of arrays whose first axis counts images."""


# --- scores ---------------------------------------------------------------------------------------


static = functools.partial(struct.field, pytree_node=False)
"""A field that is a part of the structure of a pytree."""


@struct.dataclass
class GuidedScore:
    """The score of events given a condition, `guided(x, t)`: a pytree with the leaf `condition`.

    Attributes:
      condition: classes (B,), or any pytree of arrays (B, ...); None for none.
      function: (x, t, condition) -> score.
      evaluations: a function from times t to the evaluations of the network in one call, per image
        and of t's shape. Evaluations of a classifier are not counted.
    """

    condition: Any
    function: Callable[[Array, Array, Any], Array] = static()
    evaluations: Callable[[Array], Array] = static(default=jnp.ones_like)

    def __call__(self, x: Array, t: Array) -> Array:
        def repeated(rows: Array) -> Array:
            # Particles of an event are rows of x that follow each other.
            return rows if len(rows) == len(x) else jnp.repeat(rows, len(x) // len(rows), 0)

        return self.function(x, t, jax.tree.map(repeated, self.condition))


def wrapped(
    function: Callable[[Score, Any, Array, Array], Array], score: Score, known: Any = None
) -> GuidedScore:
    """Return the score (x, t) -> function(score, known, x, t).

    Its leaves are those of `known`, a pytree of arrays (B, ...), and of the condition of `score`.
    """
    inner = score
    if not isinstance(inner, GuidedScore):
        inner = GuidedScore(None, lambda x, t, _: score(x, t))

    def evaluate(x: Array, t: Array, leaves: tuple[Any, Any]) -> Array:
        return function(dataclasses.replace(inner, condition=leaves[0]), leaves[1], x, t)

    return GuidedScore((inner.condition, known), evaluate, inner.evaluations)


def by_event(score: Score) -> tuple[list[Array], Callable[[list[Array]], Score]]:
    """Return the leaves (B, ...) of a score, and leaves of one event -> score of a batch of one.

    Only a guided score has leaves: the arrays of another one, if any, are those of a network.
    """
    score = score.bind() if hasattr(score, "bind") else score  # pyright: ignore
    if not isinstance(score, GuidedScore):
        return [], lambda _: score
    leaves, tree = jax.tree.flatten(score)
    return leaves, lambda row: tree.unflatten([leaf[None] for leaf in row])


def evaluations(score: Score, t: Array) -> Array:
    """Return the network evaluations in one call of a score at times t: 1 if it is not guided."""
    return getattr(score, "evaluations", jnp.ones_like)(t)


# --- random numbers -------------------------------------------------------------------------------


def image_keys(key: Array, indices: Array | np.ndarray) -> Array:
    """Return the keys (B,) of the images with the given indices (B,), derived from `key`."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def fold_in(keys: Array, data: int | Array) -> Array:
    """Apply jax.random.fold_in to each of the keys (B,)."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def standard_normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, " ..."]:
    """Draw standard normal noise of shape (B, ...), image i from keys[i]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def uniform(keys: Array, shape: tuple[int, ...]) -> Float[Array, " ..."]:
    """Draw uniform noise in [0, 1) of shape (B, ...), image i from keys[i]."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape[1:]))(keys)


def prior_sample(keys: Array, sde: SDE, shape: tuple[int, ...]) -> Float[Array, " ..."]:
    """Draw samples of shape (B, ...) from the prior of the SDE, one for each of the keys (B,).

    Samplers derive the noise of their steps from the same keys, by the numbers of the steps.
    """
    return sde.prior_std * standard_normal(fold_in(keys, PRIOR), shape)


# --- the loop -------------------------------------------------------------------------------------


class Loop(NamedTuple):
    """A sampler of n steps, which a program can execute in parts.

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


class Frames:
    """The states after some of n steps, in an array (B, F + 1, ...) that a loop carries.

    Args:
      n: the number of steps.
      shown: the numbers (F,) of the steps, from 0, after which the state is kept.
    """

    def __init__(self, n: int, shown: np.ndarray | Sequence[int]) -> None:
        self.count = len(shown)
        # The states after other steps are written to an extra frame, which is dropped.
        self._positions = np.full(n, self.count)
        self._positions[np.asarray(shown, int)] = np.arange(self.count)

    def start(self, x: Array) -> Array:
        """Return the array for states of the shape of x (B, ...), empty if none is kept."""
        return jnp.zeros((len(x), self.count + 1 if self.count else 0, *x.shape[1:]))

    def put(self, frames: Array, step: int | Array, x: Array) -> Array:
        """Return the array with the state x (B, ...) after a step, if it is one of those kept."""
        if not self.count:
            return frames
        return frames.at[:, jnp.asarray(self._positions)[step]].set(x)

    def finish(self, frames: Array) -> Array:
        """Return the states (F, B, ...)."""
        return frames[:, : self.count].swapaxes(0, 1)


def frame_indices(noise_to_signal: np.ndarray, count: int = FRAMES) -> np.ndarray:
    """Choose up to `count` of n states to show, evenly spaced in what is seen of the noise.

    In x = alpha x_0 + std z the noise makes an angle of arctan(std / alpha) with the data. The
    chosen states, which include the first and the last one, divide the way of this angle evenly.
    Equal steps in time would mostly show nothing but noise. The levels std / alpha (n,) of the
    states may be 0 and inf; `count` is at least 2.
    """
    angles = np.arctan(noise_to_signal)
    way = np.append(0, np.abs(np.diff(angles))).cumsum()
    count = min(count, len(way))
    nearest = np.abs(way[:, None] - np.linspace(0, way[-1], count)).argmin(0)
    order = np.arange(count)
    distinct = np.maximum.accumulate(nearest - order) + order
    return np.minimum(distinct, len(way) - count + order)


def is_finite(x: Array) -> Bool[Array, " b"]:
    """Return whether all entries of each image of x (B, ...) are finite."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def note_bad(bad_step: Array, x: Array, step: int | Array) -> Int[Array, " b"]:
    """Return `bad_step` (B,) after step number `step`, whose result is x (B, ...)."""
    return jnp.where((bad_step == 0) & ~is_finite(x), step, bad_step)


# --- samplers -------------------------------------------------------------------------------------


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


def to_samples(
    x: Array, nfe: Array, frames: Array | None = None, bad_step: Array | None = None
) -> Samples:
    """Return the samples; without `bad_step`, failures count as those of step 1."""
    nfe = jnp.broadcast_to(nfe, len(x))
    frames = x[None][:0] if frames is None else frames
    bad_step = jnp.zeros(len(x), jnp.int32) if bad_step is None else bad_step
    return Samples(x, nfe, frames, jnp.where(is_finite(x), 0, jnp.maximum(bad_step, 1)))


class Setting(NamedTuple):
    """What a sampler is made for: the SDE, its number of steps, and the scale of the data.

    `data_std` is a typical standard deviation of an entry of the data, to a factor of about 2, for
    tolerances and the test of stability.
    """

    name: str
    sde: SDE
    steps: int
    data_std: float


class Growth(NamedTuple):
    """How far states of a sampler are from exact ones for data N(0, c^2 I), after each of n steps.

    The score of such data is linear, so a step is a linear map of the state plus noise. A sampler
    can keep the right standard deviation and still multiply errors of the network: a step from a
    high noise level to a low one subtracts predicted noise of the high level; its error remains.

    Attributes:
      stds: their std (n,), relative to the exact one.
      errors: the std (n,) of the error, relative to the same, if the network predicts the noise
        with independent errors of std 1; empty if it is not computed.
    """

    stds: np.ndarray
    errors: np.ndarray


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
      growth: the growth of its states and of errors; None if it is not known.
      advice: what to change if that is too large, or if samples are not finite.
      frame_levels: the noise levels std / alpha of `Samples.frames`; empty if they are unknown.
      denoises: whether samples are means of x_0 given the last state, without its noise.
      unit: what `steps` and `Samples.bad_step` count: "step", or "evaluation" for a few-step solver
        that has several in a step.
    """

    loop: Callable[..., Loop]
    steps: int | None = None
    title: str = ""
    growth: Callable[[], Growth] | None = None
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
        if self.growth is None:
            return
        stds, errors = self.growth()
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
