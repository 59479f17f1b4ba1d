"""Solvers of the probability flow and the reverse SDE: few-step solvers and adaptive ones.

A few-step solver is a function from noise levels to a `Plan`, a table of coefficients that
`few_step` executes. To add a solver, write such a function and enter it in `SOLVERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from solvers.adaptive import adaptive_sde, integrate
from solvers.loop import Loop, single
from solvers.multistep import data_multistep, deis, second_order, third_order, unipc
from solvers.plan import Plan, few_step, few_step_loop, identity_plan
from solvers.schedules import SCHEDULES, frame_indices, karras, noise_levels
from solvers.single_step import euler, heun

__all__ = [
    "SCHEDULES",
    "SOLVERS",
    "Loop",
    "Plan",
    "Solver",
    "adaptive_sde",
    "few_step",
    "few_step_loop",
    "frame_indices",
    "identity_plan",
    "integrate",
    "karras",
    "noise_levels",
    "single",
]


class Solver(NamedTuple):
    """A few-step solver.

    Attributes:
      plan: a function from noise levels (n + 1,) to a Plan. The levels descend to 0 or to the level
        at which to stop; to encode, they ascend.
      noise_prediction: whether the plan combines predictions of the noise, not of the data.
      stochastic: whether the plan adds noise. A solver that adds none can encode.
      options: the fields of `config.sampling` that `plan` takes as keyword arguments.
    """

    plan: Callable[..., Plan]
    noise_prediction: bool = False
    stochastic: bool = False
    options: tuple[str, ...] = ()


CHURN = ("churn", "churn_interval", "churn_noise")

SOLVERS = {
    "ddim": Solver(partial(data_multistep, order=1, weights=second_order)),
    "dpm++_2m": Solver(partial(data_multistep, order=2, weights=second_order)),
    "dpm++_3m": Solver(partial(data_multistep, order=3, weights=third_order)),
    "dpm++_3m_diffusers": Solver(
        partial(data_multistep, order=3, weights=partial(third_order, curvature_weight=0.5))
    ),
    "dpm++_2m_sde": Solver(
        partial(data_multistep, order=2, weights=second_order, sde=True), stochastic=True
    ),
    "unipc_2": Solver(partial(unipc, order=2)),
    "unipc_3": Solver(partial(unipc, order=3)),
    "deis": Solver(deis, noise_prediction=True),
    "euler": Solver(euler, noise_prediction=True, options=("curve",)),
    "heun": Solver(heun, noise_prediction=True, options=("curve", "second_point")),
    "heun_churn": Solver(heun, noise_prediction=True, stochastic=True, options=CHURN),
    "restart": Solver(heun, noise_prediction=True, stochastic=True, options=("restart",)),
}
