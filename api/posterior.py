"""`Posterior`: the distribution of x given measurements of it; samples and their calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
from api import calibration, compiled, settings
from api.arguments import checked
from api.batches import Draw, Seed, count_of, in_batches, key_of, shape_of
from api.calibration import Calibration
from api.measurement_models import (
    Density,
    MeasurementModel,
    Simulate,
    make_model,
)
from controllable.methods import METHODS
from controllable.operators import Operator
from errors import InputError, choose
from factory import Sampler, Samples

if TYPE_CHECKING:
    from api.prior import Prior

BATCH_SIZE = 256
POSTERIOR = 2**31  # folded into a key: an event of the prior with the same seed has other noise


class Posterior:
    """The distribution of x given y; `Prior.posterior` makes one.

    Attributes:
      prior: the prior of x.
      model: how y depends on x.
      y: measurements (B, ...), one for each entry of the batch shape; None, if only `calibrate` is
        to be used.
      batch_shape: the leading axes of y.
      method: the name of the method.
    """

    def __init__(
        self,
        prior: Prior,
        y: Array | np.ndarray | float | None,
        operator: Operator | Callable[[Array], Array] | None,
        *,
        noise: float | str | None,
        log_likelihood: Density | None,
        method: str | None,
        options: Mapping[str, Any],
    ) -> None:
        """Check all arguments; see `Prior.posterior`."""
        self.prior = prior
        default = "moment_matching" if log_likelihood is None else "daps"
        self.method = default if method is None else method
        choose(METHODS, self.method, "method")
        self.model: MeasurementModel = make_model(operator, noise, log_likelihood, self.method)
        self._options = dict(options)
        settings.method_options(self._options)  # Report mistakes now.
        self._y_shape = self.model.y_shape(prior.event_shape, y)
        self.y, self.batch_shape = self._batch(y)

    # --- samples ------------------------------------------------------------------------------

    @checked
    def sample(
        self,
        sample_shape: int | tuple[int, ...] = (),
        seed: Seed = 0,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> Array:
        """Draw samples (*sample_shape, *batch_shape, *event_shape) of x given y.

        The arguments are those of `Prior.sample`. Methods that change the steps of predictor and
        corrector, 'projection', 'dps', 'ddrm' and 'daps', always use the sampler 'pc', without a
        corrector for the last three.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        if self.y is None:
            raise InputError("The posterior has no y; pass the measurement to Prior.posterior.")
        count = count_of(sample_shape)
        measurements = math.prod(self.batch_shape)
        chosen = self._choose_sampler(sampler, steps, options)
        draw = self._draw(self.y, 0, count, chosen)
        key = jax.random.fold_in(key_of(seed), POSTERIOR)
        x = in_batches(draw, count * measurements, key, batch_size, chosen, self.prior.event_shape)
        x = x.reshape(measurements, count, *self.prior.event_shape).swapaxes(0, 1)
        return x.reshape(*shape_of(sample_shape), *self.batch_shape, *self.prior.event_shape)

    def _draw(self, y: Array, first: int, count: int, sampler: Sampler) -> Draw:
        """Return a function that draws event first + i given y[i // count]."""
        prior, options = self.prior, self._method_options()

        def draw(keys: Array, indices: np.ndarray) -> Samples:
            rows = np.minimum((indices - first) // count, len(y) - 1)  # The last batch is padded.
            return compiled.draw_posterior(
                prior.score,
                prior.sde,
                prior.event_shape,
                sampler,
                keys,
                self.method,
                options,
                self.model.given(y[rows]),
                prior.support,
            )

        return draw

    def _choose_sampler(
        self, name: str | None, steps: int | None, options: Mapping[str, Any]
    ) -> Sampler:
        method, changed = METHODS[self.method], dict(options)
        if method.requires_pc and name not in (None, "pc"):
            raise InputError(
                f"method = {self.method!r} changes the steps of the sampler 'pc', so sampler = "
                f"{name!r} is not possible. Leave sampler out, or choose another method."
            )
        if method.requires_pc:
            name = "pc"
        if name == "pc" and not method.allows_corrector:
            changed["corrector"] = "none"
        chosen = self.prior.make_sampler(name, steps, changed)
        if method.uses_predictor:
            chosen.check_stable()
        return chosen

    def _method_options(self) -> settings.MethodOptions:
        options = self._options
        if self.method in ("pigdm", "daps") and "prior_std" not in options:
            options = options | {"prior_std": self.prior.std}
        return settings.method_options(options)

    # --- calibration --------------------------------------------------------------------------

    @checked
    def calibrate(
        self,
        simulations: int = 200,
        samples: int = 63,
        seed: Seed = 0,
        *,
        simulate: Simulate | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> Calibration:
        """Test whether samples have the spread that they should have; `api.calibration`.

        Draws events x of the prior by this sampler, measurements y of each, and `samples` samples
        given y. Over many x, the rank of x among the samples must be uniform.

        Args:
          simulations: the number of events x.
          samples: the number of samples given each y.
          simulate: (x, key) -> y, for a measurement that is given by its `log_likelihood`.
          seed, sampler, steps, batch_size, options: those of `sample`.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        size = max(1, batch_size // samples)
        options = {"simulate": simulate, "sampler": sampler, "steps": steps, **options}
        rounds = [
            self.ranks(first, size, samples, seed, batch_size=batch_size, **options)
            for first in range(0, simulations, size)
        ]
        return calibration.judge(np.concatenate(rounds)[:simulations], self.statistics)

    @property
    def statistics(self) -> list[str]:
        """The names of the columns of `ranks`."""
        names = calibration.directions(self.prior.event_shape)[1]
        if self.model.has_density:
            names.append(calibration.LOG_PROB)
        return [*names, calibration.DISTANCE]

    @checked
    def ranks(
        self,
        first: int,
        count: int,
        samples: int,
        seed: Seed = 0,
        *,
        simulate: Simulate | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Any,
    ) -> np.ndarray:
        """Return the ranks (count, K) of the simulations number first .. first + count - 1.

        The columns are `statistics`; `calibrate` describes the arguments and errors.
        """
        if simulate is None and not self.model.can_simulate:
            raise InputError(
                "calibrate needs simulate, a function (x, key) -> y, where the measurement is "
                "given by log_likelihood."
            )
        chosen, shape = self._choose_sampler(sampler, steps, options), self.prior.event_shape
        root = key_of(seed)
        x_seed, reference_seed, noise_seed, sample_seed, rank_seed = (
            jax.random.fold_in(root, purpose) for purpose in range(5)
        )
        numbers = np.arange(first, first + count)

        def draw_prior(keys: Array, indices: np.ndarray) -> Samples:
            del indices
            prior = self.prior
            return compiled.draw(
                prior.score, prior.sde, prior.event_shape, chosen, keys, jnp.float32(1)
            )

        x, references = (
            in_batches(draw_prior, count, each, batch_size, chosen, shape, first=first)
            for each in (x_seed, reference_seed)
        )
        noise_keys = sampling.image_keys(noise_seed, numbers)
        y = jax.vmap(simulate)(x, noise_keys) if simulate else self.model.simulate(x, noise_keys)
        if simulate:
            self.model.y_shape(shape, y[0])
        start = first * samples
        draw = self._draw(y, start, samples, chosen)
        drawn = in_batches(
            draw, count * samples, sample_seed, batch_size, chosen, shape, first=start
        )
        drawn = drawn.reshape(count, samples, *shape)
        truth = self._statistics(x[:, None], y, references)[:, 0]
        u = sampling.uniform(sampling.image_keys(rank_seed, numbers), truth.shape)
        return calibration.ranks(truth, self._statistics(drawn, y, references), np.asarray(u))

    def _statistics(self, x: Array, y: Array, references: Array) -> np.ndarray:
        """Return the statistics (N, L, K) of events x (N, L, *event_shape)."""
        count, length = x.shape[:2]
        flat = np.asarray(x, np.float64).reshape(count, length, -1)
        vectors, _ = calibration.directions(self.prior.event_shape)
        columns = [flat @ vectors.T]
        if self.model.has_density:
            evidence = self.model.given(jnp.repeat(y, length, 0))
            logps = compiled.log_prob(evidence, x.reshape(-1, *self.prior.event_shape))
            columns.append(np.asarray(logps, np.float64).reshape(count, length, 1))
        distances = np.linalg.norm(flat - np.asarray(references).reshape(count, 1, -1), axis=-1)
        return np.concatenate([*columns, distances[..., None]], -1)

    # --- checks -------------------------------------------------------------------------------

    def _batch(self, y: Any) -> tuple[Array | None, tuple[int, ...]]:
        """Return measurements as (B, ...), and their batch shape."""
        if y is None:
            return None, ()
        axes = len(self._y_shape)
        batch_shape = y.shape[: max(y.ndim - axes, 0)]
        if y.ndim < axes or y.shape[y.ndim - axes :] != self._y_shape:
            raise InputError(
                f"y has shape {y.shape}, but the operator measures an event in the shape "
                f"{self._y_shape}: the last axes of y must be these."
            )
        return jnp.asarray(y, jnp.float32).reshape(
            math.prod(batch_shape), *self._y_shape
        ), batch_shape
