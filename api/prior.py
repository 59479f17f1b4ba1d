"""`Prior`: a distribution given by its score, with samples, log-densities and posteriors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

import sampling
from api import execution, scores
from api.arguments import Seed, as_rows, checked, key_of, keys_of, warn
from api.density import PROBES, log_density
from api.execution import AlongFlow, FromPrior, Place
from api.fitting import fit_levels
from api.measuring import Units, count_of, make_measurement, shape_of, shape_of_y
from api.posterior import Posterior
from api.weighted import WeightedPosterior
from controllable.methods import METHODS, WEIGHTED, default_method
from controllable.operators import Operator
from likelihood import TOLERANCE, check_dequantized
from options import FLAG
from sampling import Defaults, Fitted, Flow, Sampler, Samples
from sde_lib import SDE, Score

SAMPLER, STEPS = "dpm++_3m", 24  # if the score has no errors that noise would correct
BATCH_SIZE = 1024
FEW_ENTRIES = 64  # of an event, below which norms vary too much for the steps of 'langevin'


class Prior:
    """The distribution whose noised versions have the score `score(x, t)` = grad_x log p_t(x).

    With `loc` and `scale`, the score is that of z = (x - loc) / scale instead: of a network that
    was trained on standardized data. Everything is in the units of x, but latent codes (`encode`),
    the step size of the method 'dps' and options that are noise levels of the SDE: those are of z.

    Attributes:
      score: z (B, *event_shape), t (B,) -> (B, *event_shape): a function, or a pytree of arrays.
      sde: the SDE that noises z; `sde_lib`.
      event_shape: the shape of one event, for example (2,), (H, W) or (H, W, C).
      support: the smallest and the largest value of the data, if known. They also set the scale of
        the tolerances of samplers, which otherwise follows from the noise levels.
      mesh: the devices that share each batch (`sharding.make_mesh`); None for one device.
      defaults: the default sampler, its steps and options.
      units: loc and scale, each a number or an array that broadcasts to an event.

    Events of all methods have any number of leading batch axes. Random numbers follow from `seed`,
    an int or a key of `jax.random`: event i depends on the seed and i, not on the batch size, but
    for the corrector 'langevin', whose step size averages norms over the batch. It is the default
    of 'pc' for events of 64 entries or more.
    """

    exact = True  # Whether the score is checked, and samplers take it for exact.

    @checked
    def __init__(
        self,
        score: Score,
        sde: SDE,
        shape: tuple[int, ...],
        *,
        support: tuple[float, float] | None = None,
        mesh: Mesh | None = None,
        loc: np.ndarray | float = 0.0,
        scale: np.ndarray | float = 1.0,
    ) -> None:
        """Check the score on some events. Raises InputError if its values do not fit."""
        self.score, self.sde = score, sde
        self.units = Units(shape, np.asarray(loc), np.asarray(scale))
        self.event_shape, self.support = shape, support
        self.mesh = mesh if mesh is not None and mesh.size > 1 else None
        self.defaults = Defaults()
        if self.exact:
            scores.check_score(score, sde, shape)
        self._typical_std = self.units.typical_std(support, sde)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sde}, shape={self.event_shape})"

    @checked
    def sample(
        self,
        sample_shape: int | tuple[int, ...] = (),
        seed: Seed = 0,
        *,
        first: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        batch_size: int = BATCH_SIZE,
        return_error: bool = False,
        **options: Any,
    ) -> Any:
        """Draw samples (*sample_shape, *event_shape).

        Args:
          sample_shape: a number or a shape.
          seed: an int or a key.
          first: the number of the first event; `sample(8, first=8)` continues `sample(8)`.
          sampler: one of `sampling.kinds()`. The default for a score that is given as a function
            is 'dpm++_3m' with 24 steps, whose spread was within 1 % of Gaussians, mixtures and
            heavy tails for every SDE (docs/sampling.md), and within 2 % if the noise at t_end is a
            fifth of the width of the data; for a network, it is that of its config.
          steps: the number of steps, unless they are adaptive.
          temperature: the factor of the initial noise.
          batch_size: the number of events that are computed at a time.
          return_error: whether to return also the error of the steps (*sample_shape,): the root
            mean square difference from samples of the same noise in half as many steps.
          options: those of the sampler, such as schedule, predictor, corrector, snr.

        Raises InputError for an invalid argument, and NotFiniteError if a sample is not finite.
        """
        if sampler is None and self.exact:
            levels_given = isinstance(options.get("schedule"), (tuple, list))
            sampler, steps = SAMPLER, steps or (None if levels_given else STEPS)
        settings = {"first": first, "batch_size": batch_size, "temperature": temperature}
        shape, found = (*shape_of(sample_shape), *self.event_shape), []
        samplers = [self.make_sampler(sampler, steps, **options)]
        if return_error:
            samplers.append(self.make_sampler(sampler, steps, halved=True, **options))
        for chosen in samplers:
            x = self.draw(chosen, count_of(sample_shape), key_of(seed), **settings).x
            found.append(jnp.reshape(x, shape))
        if not return_error:
            return found[0]
        event_axes = tuple(range(-len(self.event_shape), 0))
        return found[0], jnp.sqrt(jnp.mean(jnp.square(found[0] - found[1]), event_axes))

    def draw(
        self,
        sampler: Sampler,
        count: int,
        key: Array,
        *,
        first: int = 0,
        batch_size: int = BATCH_SIZE,
        temperature: float = 1.0,
    ) -> Samples:
        """Return events number first .. first + count - 1 with what the sampler reports of them."""
        sampler.check_stable()
        factor = jnp.float32(temperature)

        def make_task(keys: Array, numbers: np.ndarray, place: Place) -> FromPrior:
            given = self.score_given(place(self.condition_rows(numbers)))
            return FromPrior(given, keys, factor, self.sde, self.event_shape, sampler)

        return self.compute(make_task, key, first, count, batch_size, self.event_shape)

    def compute(self, make_task: execution.MakeTask, *arguments: Any) -> Samples:
        """Return the samples of `execution.in_batches` with these arguments, as events."""
        found = execution.in_batches(make_task, *arguments, mesh=self.mesh)
        x, frames = (self.units.to_data(each) for each in (found.x, found.frames))
        return found._replace(x=x, frames=frames)

    @checked
    def fit_schedule(self, steps: int, *, sampler: str | None = None, seed: Seed = 0) -> Fitted:
        """Fit noise levels for samples in few steps, and use them from now on; return them.

        The trajectories of 64 events, at 64 levels, show the errors of steps between these levels.
        The result has the smallest sum of errors (`solvers.fitting`). `sample` uses it for this
        `sampler`, by default its own, with as many steps and no other `schedule`; posteriors do
        not. Raises InputError for solvers with options or several evaluations a step.
        """
        name = sampler or (SAMPLER if self.exact else self.defaults.sampler)
        fitted = fit_levels(self, name, steps, key_of(seed))
        self.defaults = self.defaults._replace(fitted=(*self.defaults.fitted, fitted))
        return fitted

    def make_sampler(
        self, name: str | None = None, steps: int | None = None, fitted: bool = True, **options: Any
    ) -> Sampler:
        """Return a sampler, as `sample` takes it; without `fitted`, on the default levels."""
        defaults = self.defaults if fitted else self.defaults._replace(fitted=())
        if math.prod(self.event_shape) < FEW_ENTRIES:
            defaults = defaults._replace(options={"corrector": "metropolis", **defaults.options})
        options |= {"data_std": self._typical_std, "defaults": defaults}
        return sampling.make(name, self.sde, steps, **options)

    @functools.cached_property
    def std(self) -> float:
        """The standard deviation of an entry of the data, estimated from 64 samples."""
        with jax.ensure_compile_time_eval():  # The caller may be compiled.
            x = self.sample(64, seed=0)
            return float(jnp.sqrt(jnp.mean(jnp.square(x - x.mean(0)))))

    def condition_rows(self, numbers: np.ndarray) -> Any:
        """Return what events with these numbers (B,) are conditioned on; see `api.conditional`."""
        return None

    def paired_rows(self, count: int) -> Any:
        """Return a condition for each of `count` events. Raises InputError for another number."""
        return None

    def score_given(self, rows: Any) -> Score:
        """Return the score of events with these rows of the condition."""
        return self.score

    @checked
    def log_prob(
        self,
        x: Array,
        *,
        seed: Seed = 0,
        trace: str | None = None,
        probes: int = PROBES,
        tolerance: float = TOLERANCE,
        steps: int | None = None,
        return_error: bool = False,
    ) -> Any:
        """Return log p(x) in nats of events x (..., *event_shape), in their batch shape.

        p is the density of the probability-flow ODE at time sde.t_min (arXiv:2011.13456, Appendix
        D.2). It can be differentiated once, in reverse mode, in x and in the arrays of the score.

        Args:
          seed: of the probes, or keys (B,); by default the same, so that log p is a function.
          trace: 'exact', 'Rademacher' or 'Gaussian'; by default exact for up to EXACT_DIMS entries.
          probes: random probes for each event, if the trace is not exact.
          tolerance: of the steps of the solver, per dimension.
          steps: fixed noise levels instead of adaptive steps, such as 16; see docs/likelihood.md.
          return_error: whether to return also the estimated error, in nats: that of the solver; for
            random probes, the standard error of the trace (NaN for a single one); and
            `likelihood.model_error`, for data that the noise at T does not hide, or that are as
            narrow as the noise at t_min; in quadrature. Errors of the score are not contained.

        Raises InputError for events of another shape or of integers, and other invalid arguments.
        """
        x, batch_shape = as_rows("x", jnp.asarray(x), self.event_shape)
        check_dequantized(x)
        options: Any = {"trace": trace, "probes": probes, "tolerance": tolerance, "steps": steps}
        z, keys = self.units.standardized(x), keys_of(seed, len(x))
        found = log_density(self, z, keys, **options, model_error=return_error)
        logp = found.logp.reshape(batch_shape) - self.units.log_volume
        if not return_error:
            return logp
        errors = jnp.stack([found.solver_error, found.probe_stderr, found.model_error])
        return logp, jnp.linalg.norm(errors, axis=0).reshape(batch_shape)

    def by_rows(self, compute: Callable[..., Any], *rows: Any) -> Any:
        """Return compute(score, *rows), of rows that the devices share, given their conditions."""

        def given(condition: Any, *rows: Any) -> Any:
            return compute(self.score_given(condition), *rows)

        return execution.by_rows(self.mesh, given, self.paired_rows(len(rows[0])), *rows)

    @checked
    def encode(
        self,
        x: Array,
        *,
        sampler: str = "ode",
        steps: int | None = None,
        return_nfe: bool = False,
        **options: Any,
    ) -> Any:
        """Return the latent codes of events (..., *event_shape) by the probability-flow ODE.

        A code follows the prior of the SDE if its event follows the data (Section 4.3). With
        `return_nfe`, also return the network evaluations of each event, of the batch shape.

        Args:
          sampler: 'ode' for adaptive steps, or a few-step solver that draws no noise.
          steps, options: of a few-step solver, as for `sample`.

        Raises InputError for an invalid argument, and NotFiniteError if a code is not finite.
        """
        encoder = self.make_flow(sampler, steps, **options).encoder
        return self._follow(encoder, x, return_nfe, from_data=True)

    @checked
    def decode(
        self,
        z: Array,
        *,
        sampler: str = "ode",
        steps: int | None = None,
        return_nfe: bool = False,
        **options: Any,
    ) -> Any:
        """Return the events of latent codes, of the same shape; the inverse of `encode`."""
        decoder = self.make_flow(sampler, steps, **options).decoder
        return self._follow(decoder, z, return_nfe, from_data=False)

    def make_flow(self, name: str, steps: int | None = None, **options: Any) -> Flow:
        """Return the probability flow in both directions, as `encode` takes it."""
        return sampling.make_flow(name, self.sde, steps, defaults=self.defaults, **options)

    def _follow(self, flow: Sampler, x: Array, return_nfe: bool, *, from_data: bool) -> Any:
        x, batch_shape = as_rows("x", jnp.asarray(x), self.event_shape)
        x = x.astype(jnp.result_type(x, jnp.float32))
        x = self.units.standardized(x) if from_data else x

        def compute(score: Score, x: Array) -> tuple[Array, Array, Array]:
            found = execution.run(AlongFlow(score, x, flow), f"following the flow of {len(x)}")
            return found.x, found.nfe, found.bad_step

        y, nfe, bad_step = self.by_rows(compute, x)
        execution.check_finite(bad_step, flow)
        y = (y if from_data else self.units.to_data(y)).reshape(*batch_shape, *self.event_shape)
        return (y, nfe.reshape(batch_shape)) if return_nfe else y

    @functools.partial(checked, weights=FLAG)
    def posterior(
        self,
        y: Array | np.ndarray | None = None,
        operator: Operator | Callable[[Array], Array] | None = None,
        *,
        noise: float | str | None = None,
        log_likelihood: Callable[[Array, Array], Array] | None = None,
        method: str | None = None,
        weights: bool = False,
        **options: Any,
    ) -> Posterior:
        """Return the `Posterior` of x given the measurement y = f(x) + noise.

        Args:
          y: the measurement, or several with leading batch axes.
          operator: f, an `Operator` (`score_sde.operators`), or any differentiable function of one
            event.
          noise: the standard deviation of Gaussian noise, or 'poisson' for counts of rate f(x).
          log_likelihood: instead of operator and noise, a function (x, y) -> log p(y | x) of one
            event x, up to a constant.
          method: one of `controllable.methods.METHODS`; by default 'smc' where it is affordable,
            otherwise one that may be biased, with a warning (`default_method`).
          weights: whether to correct 'moment_matching' (the default) or 'pigdm' by importance
            weights, for events of up to 64 entries; see `api.importance`.
          options: of the method, see docs/python.md; `prior_std` is estimated by default.

        Raises InputError for arguments that do not fit each other.
        """
        model = make_measurement(operator, noise, log_likelihood, options)
        y_shape = shape_of_y(model, self.event_shape, y)
        if weights:
            method = WEIGHTED + (method or "moment_matching")
        if method is None:
            method, warning = default_method(model, self.event_shape, y_shape, options)
            if warning:
                warn(warning)
        has_particles = method in METHODS and METHODS[method].condition is None
        made = WeightedPosterior if has_particles else Posterior
        return made(self, y, y_shape, model, method, options)
