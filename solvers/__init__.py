"""Solvers of the probability flow and the reverse SDE: few-step solvers and adaptive ones.

A few-step solver is a function from noise levels to a `Plan`, a table of coefficients that
`few_step` executes. To add a solver, write such a function and enter it in `SOLVERS`.
"""

from __future__ import annotations

from functools import partial

from options import NOT_NEGATIVE, POSITIVE, Entries, Integer, Name, Option, Real
from solvers.adaptive import adaptive_sde, integrate
from solvers.loop import Loop, frame_indices, single
from solvers.multistep import data_multistep, deis, second_order, third_order, unipc
from solvers.plan import (
    SCHEDULES,
    Plan,
    Solver,
    few_step,
    few_step_loop,
    identity_plan,
    karras,
    noise_levels,
)
from solvers.single_step import CURVES, euler, heun

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

CURVE = {
    "curve": Option(
        "linear",
        Name(CURVES),
        "Time and scale in which 'euler' and 'heun' take straight steps: linear in the noise level "
        "(EDM), in its square (VE), or along the VP SDE with its scale.",
    )
}
SECOND_POINT = {
    "second_point": Option(
        1.0,
        Real(0, 1, open_low=True),
        "Second evaluation of 'heun', as a share of the step: 1 for Heun's method, 0.5 for the "
        "midpoint method.",
    )
}
CHURN = {
    "churn": Option(1.0, NOT_NEGATIVE, "S_churn of 'heun_churn'."),
    "churn_interval": Option(
        (0.0, 1e9),
        Entries((NOT_NEGATIVE, NOT_NEGATIVE)),
        "S_min and S_max of 'heun_churn': the noise levels at which it adds noise.",
    ),
    "churn_noise": Option(1.0, NOT_NEGATIVE, "S_noise of 'heun_churn': scale of the added noise."),
}
RESTART = {
    "restart": Option(
        (3, 1, 0.3, 1.0),
        Entries((Integer(1, 100), Integer(1, 100), POSITIVE, POSITIVE)),
        "Levels, repetitions, lowest and highest noise level of 'restart'.",
    )
}

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
    "euler": Solver(euler, noise_prediction=True, options=CURVE),
    "heun": Solver(heun, noise_prediction=True, options={**CURVE, **SECOND_POINT}),
    "heun_churn": Solver(heun, noise_prediction=True, stochastic=True, options=CHURN),
    "restart": Solver(heun, noise_prediction=True, stochastic=True, options=RESTART),
}
