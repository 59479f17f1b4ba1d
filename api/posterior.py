"""`Posterior`: the distribution of x given measurements of it; samples and their calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
from api import calibration, execution
from api.arguments import Seed, as_rows, checked, key_of
from api.calibration import Calibration, Simulated
from api.execution import FromPosterior, Place
from api.measuring import Simulate, check_method, count_of, shape_of, shape_of_y
from controllable.measurements import Evidence
from controllable.methods import METHODS, Chosen, choose_method
from errors import InputError
from sampling import Sampler, Samples

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
      method: the name of the method, also if it is chosen by default.
    """

    def __init__(
        self,
        prior: Prior,
        y: Array | np.ndarray | float | None,
        y_shape: tuple[int, ...],
        model: Evidence,
        method: str,
        options: Mapping[str, Any],
    ) -> None:
        """Check all arguments; see `Prior.posterior`. `y_shape` is that of one measurement."""
        self.prior, self.model, self.method = prior, model, method
        self._chosen = choose_method(method, **options)  # Reports mistakes now.
        self._options = dict(options)
        check_method(model, method)
        self._y_shape = y_shape
        self._of_z, self._offset = prior.units.measurement(self.model)
        self.y, self.batch_shape = None, ()
        if y is not None:
            y = jnp.asarray(y, jnp.float32)
            self.y, self.batch_shape = as_rows("y", y, y_shape, "the measurement of an event")
        # Reports now that a condition is missing, or another number of them.
        rows = prior.condition_rows(np.arange(1))
        prior.score_given(rows if self.y is None else prior.paired_rows(len(self.y)))

    def __repr__(self) -> str:
        y = None if self.y is None else (*self.batch_shape, *self._y_shape)
        return f"{type(self).__name__}({self.prior}, y of shape {y}, method={self.method!r})"

    @checked
    def sample(
        self,
        sample_shape: int | tuple[int, ...] = (),
        seed: Seed = 0,
        *,
        sampler: str | None = None,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        return_info: bool = False,
        **options: Any,
    ) -> Any:
        """Draw samples (*sample_shape, *batch_shape, *event_shape) of x given y.

        The arguments are those of `Prior.sample`. Methods that change the steps of predictor and
        corrector, 'projection', 'dps', 'ddrm' and 'daps', always use the sampler 'pc', without a
        corrector for the last three. 'smc' has a sampler of its own: see `api.weighted`, also for
        `return_info`.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        if return_info:
            raise self._needs_weights("return_info = True")
        chosen = self.make_sampler(sampler, steps, **options)
        drawn = self._draw_given(chosen, count_of(sample_shape), seed, batch_size)
        return self._arranged(drawn.x, sample_shape)

    def log_evidence(self, *arguments: Any, **options: Any) -> Any:
        """Return log p(y), for method = 'smc': see `api.weighted.WeightedPosterior`."""
        raise self._needs_weights("log_evidence")

    def _needs_weights(self, what: str) -> InputError:
        weighted = [name for name, method in METHODS.items() if method.condition is None]
        return InputError(
            f"{what} needs weighted particles, which method = {self.method!r} does not have. "
            f"Choose method = {' or '.join(map(repr, weighted))}."
        )

    def _draw_given(self, sampler: Sampler, count: int, seed: Seed, batch_size: int) -> Samples:
        if self.y is None:
            raise InputError("The posterior has no y; pass the measurement to Prior.posterior.")
        key = jax.random.fold_in(key_of(seed), POSTERIOR)
        return self.draw(sampler, count, key, batch_size=batch_size)

    def _arranged(self, x: Array, sample_shape: int | tuple[int, ...]) -> Array:
        """Return events of `draw` as (*sample_shape, *batch_shape, *event_shape)."""
        count, shape = count_of(sample_shape), self.prior.event_shape
        x = jnp.reshape(x, (math.prod(self.batch_shape), count, *shape)).swapaxes(0, 1)
        return x.reshape(*shape_of(sample_shape), *self.batch_shape, *shape)

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
        """Return events number first .. first + count - 1 with what the sampler reports of them.

        Event i is one given y[i // samples]; its random numbers follow from the key and from i.

        Args:
          y, first_y: other measurements (B, ...) than those of the posterior, and the number of the
            first one.
          first, count: by default, all events.
          batch_size: the number of events that are computed at a time.
        """
        prior = self.prior
        given: Any = self.y if y is None else y
        count = (first_y + len(given)) * samples - first if count is None else count
        make_task = self._task_maker(
            *(sampler, self._method(), given),
            lambda numbers: numbers // samples,
            first_y,
        )
        return prior.compute(make_task, key, first, count, batch_size, prior.event_shape)

    def _task_maker(
        self,
        sampler: Sampler,
        method: Chosen,
        given: Any,
        number_of: Callable[[np.ndarray], np.ndarray],
        first_y: int,
    ) -> execution.MakeTask:
        """Return what makes the task of events, whose measurements are number_of(numbers).

        The first one that is `given` has the number first_y.
        """
        prior, given = self.prior, given - self._offset
        support = prior.units.range_of_z(prior.support)

        def make_task(keys: Array, numbers: np.ndarray, place: Place) -> FromPosterior:
            which = np.minimum(number_of(numbers), first_y + len(given) - 1)  # Padded at the end.
            score = prior.score_given(place(prior.condition_rows(which)))
            return FromPosterior(
                *(score, keys, self._of_z.given(place(given[which - first_y])), prior.sde),
                *(prior.event_shape, sampler, method, support),
            )

        return make_task

    def make_sampler(
        self, name: str | None = None, steps: int | None = None, **options: Any
    ) -> Sampler:
        """Return a sampler that fits the method; the arguments are those of `sample`."""
        method = METHODS[self.method]
        if method.requires_pc:
            if name not in (None, "pc"):
                raise InputError(
                    f"method = {self.method!r} changes the steps of the sampler 'pc', so sampler = "
                    f"{name!r} is not possible. Omit sampler, or choose another method."
                )
            name = "pc"
        if name == "pc" and not method.allows_corrector:
            options["corrector"] = "none"
        chosen = self.prior.make_sampler(name, steps, fitted=False, **options)
        if method.uses_predictor:
            chosen.check_stable()
        return chosen

    def _method(self) -> Chosen:
        """Return the method for z. It estimates the std of the prior if none is given."""
        options = dict(self._chosen.options)
        if "prior_std" not in options:
            return self._chosen
        std = options["prior_std"] if "prior_std" in self._options else self.prior.std
        options["prior_std"] = std / self.prior.units.typical_scale
        return choose_method(self.method, **options)

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
        given y. Over many x, the rank of x among the samples must be uniform, and independent of y.

        Args:
          simulations: the number of events x.
          samples: the number of samples given each y.
          simulate: (x, key) -> y, for a measurement that is given by its `log_likelihood`.
          seed, sampler, steps, batch_size, options: those of `sample`.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        size, chosen = max(1, batch_size // samples), self.make_sampler(sampler, steps, **options)
        rounds = [
            self.ranks(first, size, samples, seed, chosen, simulate, batch_size=batch_size)
            for first in range(0, simulations, size)
        ]
        ranks, y = (np.concatenate(parts)[:simulations] for parts in zip(*rounds))
        return calibration.judge(ranks, self.statistics, y)

    @property
    def statistics(self) -> list[str]:
        """The names of the columns of `ranks`."""
        names = calibration.directions(self.prior.event_shape)[1]
        density = [calibration.LOG_PROB] if self.model.has_density else []
        return [*names, *density, calibration.DISTANCE]

    def ranks(
        self,
        first: int,
        count: int,
        samples: int,
        seed: Seed,
        sampler: Sampler,
        simulate: Simulate | None = None,
        *,
        batch_size: int = BATCH_SIZE,
    ) -> Simulated:
        """Return the simulations number first .. first + count - 1.

        The columns of the ranks are `statistics`; `sampler` is one of `make_sampler`. `calibrate`
        describes the other arguments and the errors.
        """
        if simulate is None and not self.model.can_simulate:
            raise InputError(
                "calibrate needs simulate, a function (x, key) -> y, where the measurement is "
                "given by log_likelihood."
            )
        x_key, reference_key, noise_key, sample_key, rank_key = (
            jax.random.fold_in(key_of(seed), purpose) for purpose in range(5)
        )
        of_prior = self._sampler_of_prior(sampler)
        options: dict[str, Any] = {"batch_size": batch_size}
        x, references = (
            jnp.asarray(self.prior.draw(of_prior, count, key, first=first, **options).x)
            for key in (x_key, reference_key)
        )
        numbers = np.arange(first, first + count)
        noise_keys = sampling.image_keys(noise_key, numbers)
        y = jax.vmap(simulate)(x, noise_keys) if simulate else self.model.simulate(x, noise_keys)
        if simulate:
            shape_of_y(self.model, self.prior.event_shape, y[0])
        options |= {"y": y, "first": first * samples, "first_y": first}
        drawn = self.draw(sampler, samples, sample_key, **options).x
        drawn = jnp.reshape(drawn, (count, samples, *self.prior.event_shape))
        truth = self._statistics(x[:, None], y, references)[:, 0]
        u = sampling.uniform(sampling.image_keys(rank_key, numbers), truth.shape)
        ranks = calibration.ranks(truth, self._statistics(drawn, y, references), np.asarray(u))
        return Simulated(ranks, calibration.features(np.asarray(y)))

    def _sampler_of_prior(self, sampler: Sampler) -> Sampler:
        """Return the sampler of the events that `ranks` measures."""
        return sampler

    def _statistics(self, x: Array, y: Array, references: Array) -> np.ndarray:
        """Return the statistics (N, L, K) of events x (N, L, *event_shape)."""
        count, length = x.shape[:2]
        z, references = (self.prior.units.standardized(each) for each in (x, references))
        flat = np.asarray(z, np.float64).reshape(count, length, -1)
        vectors, _ = calibration.directions(self.prior.event_shape)
        columns = [flat @ vectors.T]
        if self.model.has_density:
            evidence = self.model.given(jnp.repeat(y, length, 0))
            logps = _log_prob(evidence, x.reshape(-1, *self.prior.event_shape))
            columns.append(np.asarray(logps, np.float64).reshape(count, length, 1))
        distances = np.linalg.norm(flat - np.asarray(references).reshape(count, 1, -1), axis=-1)
        return np.concatenate([*columns, distances[..., None]], -1)


@eqx.filter_jit
def _log_prob(measurement: Evidence, x: Array) -> Array:
    return measurement.log_prob(x)
