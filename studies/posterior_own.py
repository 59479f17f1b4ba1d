"""Posterior samplers of this code, with the exact scores of `studies.posterior_cases`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from api.posterior import BATCH_SIZE
from api.weighted import TOLERANCE, WeightedPosterior
from controllable.methods import METHODS
from controllable.operators import Operator
from score_sde import Prior, TrainedModel, operators
from sde_lib import SDE
from studies.posterior_cases import CALLS, Problem

DEFAULT = "default"  # of `Prior.posterior`
EVIDENCE = "log_evidence"  # of the default, with exact draws as its samples


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["function", "sde", "counted"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class CountedScore:
    """The score of x_t for events of a prior.

    Attributes:
      arrays, function: those of the prior; `function` is its score.
      counted: whether CALLS counts evaluations and gradients; only reverse mode is possible then.
    """

    arrays: tuple[Array, ...]
    function: Callable[..., Array]
    sde: SDE
    counted: bool = False

    def __call__(self, x: Array, t: Array) -> Array:
        """Return the score (B, D) of states x (B, D) at times t (B,)."""
        alpha, std = self.sde.alpha(t)[:, None], self.sde.std(t)[:, None]
        if self.counted:
            _count("evaluations")
            x = _counting(x)
        return self.function(self.arrays, x / alpha, std / alpha) / alpha


def _count(name: str) -> None:
    jax.debug.callback(lambda: CALLS.update([name]))


def _backward(_: None, gradient: Array) -> tuple[Array]:
    _count("gradients")
    return (gradient,)


_counting = jax.custom_vjp(lambda x: x)
_counting.defvjp(lambda x: (x, None), _backward)


def counted(model: TrainedModel) -> TrainedModel:
    """Return a model whose score counts evaluations and gradients in CALLS."""
    found, apply = copy.copy(model), model.score.apply

    def call(params: Any, x: Array, t: Array, condition: Any) -> Array:
        _count("evaluations")
        return apply(params, _counting(x), t, condition)

    found.score = dataclasses.replace(model.score, apply=call)
    return found


@functools.cache
def _operator(matrix: bytes, rows: int) -> Operator:
    """Return one operator for equal matrices, so that its samplers compile once."""
    values = np.frombuffer(matrix).reshape(rows, -1)
    return operators.dense((values.shape[1],), values)


def exact_score(prior: Any, sde: SDE, *, counted: bool = False) -> CountedScore:
    """Return the score of one of `studies.posterior_priors`."""
    arrays = tuple(jnp.asarray(each) for each in prior.arrays)
    return CountedScore(arrays, type(prior).score, sde, counted)


def draw(
    method: str, steps: int, problem: Problem, count: int, scale: float
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return `count` samples given each y (B, count, D), and what weighted ones state.

    `scale` is the step size of "dps". Derivatives along each entry count as gradients. Costs are
    those of a particle. By DEFAULT, the posterior chooses the method.
    """
    size, own = problem.matrix.shape[1], METHODS.get(method)
    is_weighted = own is None or own.condition is None
    std = {"prior_std": problem.prior.std}
    options = {"dps": {"scale": scale}, "pigdm": std, "weighted_pigdm": std, "daps": std}
    chosen: dict[str, Any] = options.get(method, {})
    if own and own.steps == 1:  # Importance weights; "smc" has its default.
        chosen = chosen | {"particles": count}
    score = exact_score(problem.prior, problem.sde, counted=not is_weighted)
    posterior = Prior(score, problem.sde, (size,), support=problem.support).posterior(
        jnp.asarray(problem.y, jnp.float32),
        problem.operator or _operator(problem.matrix.tobytes(), len(problem.matrix)),
        noise=problem.noise,
        method=method if own else None,
        **chosen,
    )
    if method == EVIDENCE and isinstance(posterior, WeightedPosterior):
        weights = posterior.weigh(0, None, BATCH_SIZE, TOLERANCE)
        return problem.exact[:, :count], _judge(problem, weights)
    jax.effects_barrier()
    CALLS.clear()
    sampler = posterior.make_sampler(None, None if is_weighted else steps)
    batch = count * len(problem.y)
    drawn = posterior.draw(sampler, count, jax.random.key(1), batch_size=batch)
    x = np.asarray(drawn.x, np.float64).reshape(len(problem.y), count, size)
    jax.effects_barrier()
    if not is_weighted:
        return x, {}
    CALLS["evaluations"] = int(drawn.nfe.max())
    CALLS["gradients"] = CALLS["evaluations"] * size
    return x, _judge(problem, drawn.weights)


def _judge(problem: Problem, weights: Any) -> dict[str, Any]:
    """Return errors of log p(y), those which are stated, and effective sizes in percent."""
    sizes = 100 * np.asarray(weights.effective_size)
    found = {"size": float(np.median(sizes)), "smallest": float(sizes.min())}
    if problem.log_evidence is None:
        return found
    gaps = np.asarray(weights.log_evidence) - problem.log_evidence
    stated = math.sqrt(np.mean(np.square(weights.log_evidence_error)))
    rms, largest = math.sqrt(np.mean(gaps**2)), float(np.abs(gaps).max())
    found |= {"log_rms": rms, "log_largest": largest, "stated": stated}
    return found | {"sizes": sizes.tolist(), "gaps": gaps.tolist()}
