"""Posteriors by weighted particles, which state how far to trust them, and the evidence p(y)."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from api import calibration, execution
from api.arguments import Seed, checked, key_of, warn
from api.importance import importance_loop
from api.measuring import count_of
from api.posterior import BATCH_SIZE, POSTERIOR, Posterior
from controllable import smc
from controllable.measurements import Measurement
from controllable.methods import METHODS, choose_method
from errors import InputError, unknown_option
from sampling import Sampler, Samples, image_keys
from sharding import check_memory

_importance = functools.cache(lambda guide: functools.partial(importance_loop, guide=guide))
"""The loop for a guide; the same one for each call, because it identifies compiled programs."""
FEWEST = 512  # particles for each measurement, by default
FINER = 4  # times as many steps for the evidence, which those of samples shift a little
MOST_SETS = 32  # of particles for each measurement, to estimate the evidence
TOLERANCE = 0.05  # nats


class WeightedPosterior(Posterior):
    """A `Posterior` whose method is a sampler of its own, with P particles for each measurement.

    The samples given one y come from the same particles, of which there are at least as many.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Check all arguments; see `Prior.posterior`."""
        super().__init__(*arguments, **options)
        most = METHODS[self.method].most_entries
        y_shape = () if isinstance(self.model, Measurement) else self._y_shape
        for what, shape in (("An event", self.prior.event_shape), ("y", y_shape)):
            if math.prod(shape) > most:
                raise InputError(
                    f"{what} of shape {shape} has {math.prod(shape)} entries, but method = "
                    f"{self.method!r} is for up to {most}. Choose another method."
                )
        if self.method != "smc" and not self.model.has_density:
            raise InputError("weights = True needs noise > 0: without it, y has no density.")

    @checked
    def sample(
        self,
        sample_shape: int | tuple[int, ...] = (),
        seed: Seed = 0,
        *,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        return_info: bool = False,
        **options: Any,
    ) -> Any:
        """Draw samples (*sample_shape, *batch_shape, *event_shape) of x given y.

        With `return_info`, also return an `Info` of how far to trust them. If weights are too
        uneven, a warning says so. `batch_size` counts particles; those of one y are always computed
        together.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        count = count_of(sample_shape)
        chosen = self.make_sampler(steps=steps, **options)
        drawn = self._draw_given(chosen, count, seed, batch_size)
        x = self._arranged(drawn.x, sample_shape)
        if not execution.is_traced(drawn.weights):
            info = self._judge(drawn.weights, count)
            return (x, info) if return_info else x
        if return_info:
            raise InputError("return_info = True is not possible in a compiled function.")
        return x

    @checked
    def log_evidence(
        self,
        seed: Seed = 0,
        *,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        tolerance: float = TOLERANCE,
        return_error: bool = False,
    ) -> Any:
        """Return log p(y) in nats, of the batch shape of y.

        Its differences compare priors and operators (Bayes factors). p(y) is a density of y; with
        an operator of smaller rank than y has entries, of y in the range of the operator. A
        `log_likelihood` defines it up to the constant that it leaves out.

        Args:
          seed, steps, batch_size: those of `sample`, but 4 times as many steps by default.
          tolerance: the standard error in nats to reach. Independent sets of particles are added to
            a measurement until then, up to 32; in a compiled function there is only one.
          return_error: whether to return also the standard error of log p(y). A mode of the prior
            that no particle found is not part of it.

        Raises InputError for an invalid argument, and NotFiniteError if y is impossible.
        """
        found = self.weigh(seed, steps, batch_size, tolerance)
        if not execution.is_traced(found):
            self._judge(found, 1)
        value, error = (each.reshape(self.batch_shape) for each in found[1:])
        return (value, error) if return_error else value

    def weigh(self, seed: Seed, steps: int | None, size: int, tolerance: float) -> smc.Weights:
        """Return what all sets of particles of `log_evidence` say; `size` is its batch_size."""
        sampler, given = self.make_sampler(steps=steps), cast(Array, self.y)
        if steps is None and sampler.steps != 1:
            sampler = self.make_sampler(steps=FINER * (sampler.steps or 1))
        first = self._draw_given(sampler, 1, seed, size).weights
        if execution.is_traced(first):
            return first
        found, pool = [], functools.partial(smc.pool, particles=self._particles(1))
        for i in range(len(given)):
            sets = [smc.Weights(*(each[i : i + 1] for each in first))]
            row = {"y": given[i : i + 1], "first_y": i, "first": i, "batch_size": size}
            while len(sets) < MOST_SETS and pool(sets).log_evidence_error > tolerance:
                keys = image_keys(key_of(seed), POSTERIOR + np.arange(len(sets), 2 * len(sets)))
                sets += [self.draw(sampler, 1, key, **row).weights for key in keys]
            found.append(pool(sets))
        return smc.Weights(*map(jnp.concatenate, zip(*found)))

    def _judge(self, weights: smc.Weights, samples: int) -> calibration.Info:
        """Return the verdict on weights, and warn if they are too uneven."""
        info = calibration.judge_weights(weights, self.batch_shape, self._particles(samples))
        if not info.reliable:
            warn(info.verdict)
        return info

    def _particles(self, samples: int) -> int:
        """Return the number for each measurement, see `METHODS`.

        By default there are more than samples, because particles have common ancestors, so that
        those drawn from as many have larger errors than independent samples.
        """
        return max(samples, self._given_particles or max(4 * samples, FEWEST))

    @property
    def _given_particles(self) -> int:
        return dict(self._chosen.options)["particles"]

    def draw(
        self,
        sampler: Sampler,
        samples: int,
        key: Array,
        *,
        y: Array | None = None,
        first_y: int = 0,
        first: int = 0,
        count: int | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> Samples:
        """Return events as `Posterior.draw` does, a batch of measurements at a time."""
        given: Any = self.y if y is None else y
        particles, shape = self._particles(samples), self.prior.event_shape
        options = dict(self._method().options) | {"particles": particles}
        make_task = self._task_maker(
            *(sampler, choose_method(self.method, **options), given),
            lambda numbers: numbers,
            first_y,
        )
        size = max(1, batch_size // particles)
        entries = math.prod(shape) * (2 * math.prod(shape) + math.prod(self._y_shape))
        check_memory(size * particles * entries, f"Covariances of {size * particles} particles")
        count = (first_y + len(given)) * samples - first if count is None else count
        begin, end = first // samples, (first + count - 1) // samples + 1  # measurements
        drawn = self.prior.compute(make_task, key, begin, end - begin, size, (particles, *shape))
        chosen = slice(first - begin * samples, first - begin * samples + count)
        x = drawn.x[:, :samples].reshape(-1, *shape)[chosen]
        nfe, bad_step = (jnp.repeat(each, samples)[chosen] for each in (drawn.nfe, drawn.bad_step))
        return Samples(x, nfe, x[None][:0], bad_step, drawn.weights)

    def make_sampler(
        self, name: str | None = None, steps: int | None = None, **options: Any
    ) -> Sampler:
        """Return the sampler of the method; only `steps` can be chosen."""
        method = METHODS[self.method]
        fixed = {"sampler": name, "steps": steps if method.steps == 1 else None}
        for given, value in (fixed | options).items():
            if value is not None:
                owner = f"method = {self.method!r}, which is itself a sampler"
                raise unknown_option(given, value, owner, [] if method.steps == 1 else ["steps"])
        count = 1 if method.steps == 1 else steps or self.prior.defaults.steps or method.steps
        title = f"{self.method!r}, {count} steps"
        return Sampler(
            method.loop or _importance(method.guide),
            count,
            title,
            advice="raise steps or particles",
        )

    def _sampler_of_prior(self, sampler: Sampler) -> Sampler:
        return self.prior.make_sampler()
